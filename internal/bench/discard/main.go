package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/emersion/go-smtp"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to accept on")
	flag.Parse()
	s := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return session{}, nil }))
	s.Addr, s.Domain = *listen, "discard.example"
	s.ReadTimeout, s.WriteTimeout = time.Minute, time.Minute
	s.MaxMessageBytes, s.MaxRecipients = 50<<20, 1000
	if err := s.ListenAndServe(); err != nil && !errors.Is(err, smtp.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, "discard:", err)
		os.Exit(1)
	}
}

// A session takes everything and keeps nothing.
type session struct{}

// Reset implements smtp.Session.
func (session) Reset() {}

// Logout implements smtp.Session.
func (session) Logout() error { return nil }

// Mail implements smtp.Session.
func (session) Mail(string, *smtp.MailOptions) error { return nil }

// Rcpt implements smtp.Session.
func (session) Rcpt(string, *smtp.RcptOptions) error { return nil }

// Data implements smtp.Session.
func (session) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}
