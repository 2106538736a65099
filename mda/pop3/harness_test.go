package pop3

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/peertest"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/maildir"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

const (
	user     = "ann@example.org"
	password = " two spaces: correct horse "
)

// users knows ann, with a password that has spaces; bug cannot be checked.
var users = mailspine.AuthenticatorFunc(func(_ context.Context, c mailspine.Credentials) (*mailspine.Login, error) {
	switch {
	case c.Service != "pop3" || !c.TLS:
		return nil, errors.New("wrong service, or no TLS")
	case c.Username == "bug":
		return nil, errors.New("the database is away")
	case c.Username == "nothing":
		return nil, nil
	case c.Username == user && c.Password == password && (c.AuthzID == "" || c.AuthzID == user):
		return &mailspine.Login{Name: user}, nil
	}
	return nil, mailspine.ErrBadCredentials
})

// simple knows one user.
func simple(name, password string) mailspine.Authenticator {
	return mailspine.AuthenticatorFunc(func(_ context.Context, c mailspine.Credentials) (*mailspine.Login, error) {
		if c.Username != name || c.Password != password {
			return nil, mailspine.ErrBadCredentials
		}
		return &mailspine.Login{Name: name}, nil
	})
}

// A bench is a server with a mailbox and a listener each for STLS and TLS.
type bench struct {
	*Server
	t        testing.TB
	box      mailbox.Mailbox
	cert     *peertest.Cert
	plain    string // addresses
	implicit string
}

func newBench(t testing.TB, change func(*Server)) *bench {
	t.Helper()
	return newBenchOn(t, memory.New(nil), change)
}

// eachStore runs a test with a store in memory and with one on disk.
func eachStore(t *testing.T, test func(t *testing.T, store mailbox.Store)) {
	t.Run("memory", func(t *testing.T) { test(t, memory.New(nil)) })
	t.Run("maildir", func(t *testing.T) {
		store := onDisk(t, t.TempDir())
		t.Cleanup(func() { store.Close() })
		test(t, store)
	})
}

func onDisk(t testing.TB, dir string) mailbox.Store {
	t.Helper()
	store, err := maildir.Open(dir, &maildir.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func newBenchOn(t testing.TB, store mailbox.Store, change func(*Server)) *bench {
	t.Helper()
	account, err := store.Account(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	box, err := account.Open(t.Context(), mailbox.Inbox)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, box: box, cert: peertest.SelfSigned(t, "localhost")}
	b.Server = &Server{Mailboxes: store, Auth: users, TLSConfig: b.cert.Config, AuthDelay: -1, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(b.Server)
	}
	done := make(chan error, 2)
	listen := func(serve func(net.Listener) error) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- serve(l) }()
		return l.Addr().String()
	}
	b.plain, b.implicit = listen(b.Serve), listen(b.ServeTLS)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return b
}

func (b *bench) add(text string) mailbox.UID {
	b.t.Helper()
	c, err := b.box.Append(b.t.Context(), mailspine.StringContent(text), mailbox.AppendOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return c.UID
}

func (b *bench) count() int {
	b.t.Helper()
	info, err := b.box.Info(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return info.Messages
}

func (b *bench) clientTLS() *tls.Config {
	return &tls.Config{RootCAs: b.cert.Pool, ServerName: "localhost"}
}

// A client is the other side of a conversation.
type client struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

// dial connects without TLS.
func (b *bench) dial() *client {
	b.t.Helper()
	nc, err := net.Dial("tcp", b.plain)
	if err != nil {
		b.t.Fatal(err)
	}
	return newClient(b.t, nc)
}

func newClient(t testing.TB, nc net.Conn) *client {
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{t: t, nc: nc, r: bufio.NewReader(nc)}
}

// dialTLS connects with implicit TLS, and reads the greeting.
func (b *bench) dialTLS() *client {
	b.t.Helper()
	nc, err := tls.Dial("tcp", b.implicit, b.clientTLS())
	if err != nil {
		b.t.Fatal(err)
	}
	c := newClient(b.t, nc)
	c.want("+OK")
	return c
}

// session is a client that is logged in.
func (b *bench) session() *client {
	b.t.Helper()
	c := b.dialTLS()
	c.do("USER "+user, "+OK")
	c.do("PASS "+password, "+OK")
	return c
}

func (c *client) send(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, line+"\r\n"); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) line() string {
	c.t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("%q: %v", s, err)
	}
	if !strings.HasSuffix(s, "\r\n") {
		c.t.Fatalf("%q has no CRLF", s)
	}
	return strings.TrimSuffix(s, "\r\n")
}

func (c *client) want(prefix string) string {
	c.t.Helper()
	s := c.line()
	if !strings.HasPrefix(s, prefix) {
		c.t.Fatalf("%q instead of %q", s, prefix)
	}
	return s
}

// do says a line and wants an answer that begins so.
func (c *client) do(line, prefix string) string {
	c.t.Helper()
	c.send(line)
	return c.want(prefix)
}

// lines says a line and returns the answer of several, without dots stuffed.
func (c *client) lines(line string) string {
	c.t.Helper()
	c.do(line, "+OK")
	return c.rest()
}

func (c *client) rest() string {
	c.t.Helper()
	var b strings.Builder
	for {
		s := c.line()
		if s == "." {
			return b.String()
		}
		b.WriteString(strings.TrimPrefix(s, ".") + "\r\n")
	}
}

// eof wants the connection to end.
func (c *client) eof() {
	c.t.Helper()
	if s, err := io.ReadAll(c.r); err != nil || len(s) > 0 {
		c.t.Fatalf("%q, %v instead of the end", s, err)
	}
}
