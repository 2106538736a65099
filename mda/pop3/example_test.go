package pop3_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
	"github.com/mailspine/mailspine/mda/pop3"
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

	srv := &pop3.Server{
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

	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "example.com"})
	if err != nil {
		panic(err)
	}
	fmt.Fprint(c, "USER ann@example.org\r\nPASS secret\r\nRETR 1\r\nQUIT\r\n")
	for s := bufio.NewScanner(c); s.Scan(); {
		fmt.Println(strings.TrimSpace(s.Text()))
	}
	// Output:
	// +OK Ready
	// +OK Now the password
	// +OK 1 messages, 32 octets
	// +OK 32 octets
	// Subject: Hello
	//
	// How are you?
	// .
	// +OK Goodbye
}
