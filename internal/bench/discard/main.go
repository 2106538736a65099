package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/mailspine/mailspine"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to accept on")
	count := flag.Int("count", 0, "count messages, and end 300 ms after this many; 0: for ever, without a count")
	limit := flag.Duration("limit", time.Hour, "with -count: end after this long")
	flag.Parse()
	t := &tally{enough: *count, done: make(chan struct{})}
	s := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		t.connected()
		return session{t}, nil
	}))
	s.Addr, s.Domain = *listen, "discard.example"
	s.ReadTimeout, s.WriteTimeout = time.Minute, time.Minute
	s.MaxMessageBytes, s.MaxRecipients = 50<<20, 1000
	served := make(chan error, 1)
	go func() { served <- s.ListenAndServe() }()
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, os.Interrupt, syscall.SIGTERM)
	var over <-chan time.Time
	if *count > 0 {
		over = time.After(*limit)
	}
	var err error
	select {
	case err = <-served:
	case <-over:
	case <-stopped:
	case <-t.done:
		time.Sleep(300 * time.Millisecond) // for what comes twice, and for QUIT
	}
	s.Close()
	if err != nil && !errors.Is(err, smtp.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, "discard:", err)
		os.Exit(1)
	}
	if *count > 0 {
		json.NewEncoder(os.Stdout).Encode(t.report())
	}
}

// A tally counts messages. It remembers the Message-ID of each, so that losses and duplicates show.
type tally struct {
	enough int // 0: nothing is counted
	done   chan struct{}

	mu          sync.Mutex
	connections int
	messages    int
	seen        map[string]bool
	first, last time.Time
}

// A report is a tally as it is printed.
type report struct {
	Connections int     `json:"connections"`
	Messages    int     `json:"messages"`
	Distinct    int     `json:"distinct"`
	Seconds     float64 `json:"seconds"` // between the first message and the last
	Rate        float64 `json:"msgs_per_s"`
}

func (t *tally) connected() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.connections++
}

func (t *tally) took(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = time.Now()
	if t.messages == 0 {
		t.first, t.seen = t.last, map[string]bool{}
	}
	t.messages++
	t.seen[id] = true
	if t.messages == t.enough {
		close(t.done)
	}
}

func (t *tally) report() report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := report{Connections: t.connections, Messages: t.messages, Distinct: len(t.seen), Seconds: t.last.Sub(t.first).Seconds()}
	if r.Seconds > 0 {
		r.Rate = float64(t.messages-1) / r.Seconds
	}
	return r
}

// A session takes everything and keeps nothing.
type session struct{ t *tally }

// Reset implements smtp.Session.
func (session) Reset() {}

// Logout implements smtp.Session.
func (session) Logout() error { return nil }

// Mail implements smtp.Session.
func (session) Mail(string, *smtp.MailOptions) error { return nil }

// Rcpt implements smtp.Session.
func (session) Rcpt(string, *smtp.RcptOptions) error { return nil }

// Data implements smtp.Session.
func (s session) Data(r io.Reader) error {
	if s.t.enough == 0 {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	h, err := mailspine.ParseHeader(r, 0)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if err == nil {
		s.t.took(h.Get("Message-ID"))
	}
	return err
}
