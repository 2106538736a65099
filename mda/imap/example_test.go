package imap_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"

	goimap "github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/imap"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

// A server over a mailbox in memory, and a client that reads one message.
func Example() {
	// A certificate for example.com, of tests: take your own.
	web := httptest.NewTLSServer(nil)
	defer web.Close()
	pool := x509.NewCertPool()
	pool.AddCert(web.Certificate())

	store := memory.New(nil)
	account, _ := store.Account(context.Background(), "ann@example.org")
	account.Deliver(context.Background(), mailspine.StringContent("Subject: Hello\r\n\r\nHow are you?\r\n"), mailbox.DeliverOptions{})

	srv := &imap.Server{
		Mailboxes: store,
		Auth: mailspine.AuthenticatorFunc(func(_ context.Context, c mailspine.Credentials) (*mailspine.Login, error) {
			if c.Username != "ann@example.org" || c.Password != "secret" {
				return nil, mailspine.ErrBadCredentials
			}
			return &mailspine.Login{Name: c.Username}, nil
		}),
		TLSConfig: &tls.Config{Certificates: web.TLS.Certificates},
		Logger:    slog.New(slog.DiscardHandler),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go srv.ServeTLS(l)
	defer srv.Close()

	c, err := imapclient.DialTLS(l.Addr().String(), &imapclient.Options{TLSConfig: &tls.Config{RootCAs: pool, ServerName: "example.com"}})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	if err := c.Login("ann@example.org", "secret").Wait(); err != nil {
		panic(err)
	}
	box, _ := c.Select("INBOX", nil).Wait()
	fmt.Println(box.NumMessages, "message")
	msgs, _ := c.Fetch(goimap.SeqSetNum(1), &goimap.FetchOptions{
		Envelope: true, BodySection: []*goimap.FetchItemBodySection{{Specifier: goimap.PartSpecifierText}},
	}).Collect()
	fmt.Printf("%s: %s", msgs[0].Envelope.Subject, msgs[0].BodySection[0].Bytes)
	// Output:
	// 1 message
	// Hello: How are you?
}
