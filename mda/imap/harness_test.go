package imap

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
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

const (
	user     = "ann@example.org"
	password = "correct horse"
)

var users = mailspine.AuthenticatorFunc(func(_ context.Context, c mailspine.Credentials) (*mailspine.Login, error) {
	switch {
	case c.Service != "imap" || !c.TLS:
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

// A bench is a server with an account and a listener each for STARTTLS and TLS.
type bench struct {
	*Server
	t        testing.TB
	account  mailbox.Account
	cert     *peertest.Cert
	plain    string // addresses
	implicit string
}

func newBench(t testing.TB, change func(*Server)) *bench {
	t.Helper()
	return newBenchOn(t, memory.New(&memory.Options{MaxTombs: 20, Quota: mailbox.QuotaLimit{Bytes: 30 << 20}}), change)
}

func newBenchOn(t testing.TB, store mailbox.Store, change func(*Server)) *bench {
	t.Helper()
	account, err := store.Account(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, account: account, cert: peertest.SelfSigned(t, "localhost")}
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

func (b *bench) box(name string) mailbox.Mailbox {
	b.t.Helper()
	m, err := b.account.Open(b.t.Context(), name)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

func (b *bench) add(name, text string, flags ...mailbox.Flag) mailbox.UID {
	b.t.Helper()
	c, err := b.box(name).Append(b.t.Context(), mailspine.StringContent(text), mailbox.AppendOptions{Flags: flags, InternalDate: time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)})
	if err != nil {
		b.t.Fatal(err)
	}
	return c.UID
}

func (b *bench) clientTLS() *tls.Config {
	return &tls.Config{RootCAs: b.cert.Pool, ServerName: "localhost"}
}

// A client speaks the protocol by hand.
type client struct {
	t   testing.TB
	nc  net.Conn
	r   *bufio.Reader
	tag byte
}

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
	return &client{t: t, nc: nc, r: bufio.NewReader(nc), tag: 'a'}
}

func (b *bench) dialTLS() *client {
	b.t.Helper()
	nc, err := tls.Dial("tcp", b.implicit, b.clientTLS())
	if err != nil {
		b.t.Fatal(err)
	}
	c := newClient(b.t, nc)
	c.want("* OK")
	return c
}

// session is a client that is logged in.
func (b *bench) session() *client {
	b.t.Helper()
	c := b.dialTLS()
	c.ok(`LOGIN ` + user + ` "` + password + `"`)
	return c
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, s); err != nil {
		c.t.Fatal(err)
	}
}

// line reads a line, with the literals in it.
func (c *client) line() string {
	c.t.Helper()
	var b strings.Builder
	for {
		s, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("%q: %v", s, err)
		}
		b.WriteString(s)
		s = strings.TrimSuffix(s, "\r\n")
		if i := strings.LastIndexByte(s, '{'); i >= 0 && strings.HasSuffix(s, "}") {
			n := 0
			for _, d := range s[i+1 : len(s)-1] {
				n = 10*n + int(d-'0')
			}
			if _, err := io.CopyN(&b, c.r, int64(n)); err != nil {
				c.t.Fatal(err)
			}
			continue
		}
		return strings.TrimSuffix(b.String(), "\r\n")
	}
}

func (c *client) want(prefix string) string {
	c.t.Helper()
	s := c.line()
	if !strings.HasPrefix(s, prefix) {
		c.t.Fatalf("%q instead of %q", s, prefix)
	}
	return s
}

// do says a command and returns the untagged replies and the tagged one without its tag.
func (c *client) do(command string) (untagged []string, tagged string) {
	c.t.Helper()
	c.send(string(c.tag) + " " + command + "\r\n")
	return c.rest()
}

func (c *client) rest() (untagged []string, tagged string) {
	c.t.Helper()
	tag := string(c.tag) + " "
	for {
		s := c.line()
		if r, ok := strings.CutPrefix(s, tag); ok {
			if c.tag++; c.tag > 'z' {
				c.tag = 'a'
			}
			return untagged, r
		}
		untagged = append(untagged, s)
	}
}

// ok wants OK, and returns the untagged replies as lines.
func (c *client) ok(command string) string {
	c.t.Helper()
	untagged, tagged := c.do(command)
	if !strings.HasPrefix(tagged, "OK") {
		c.t.Fatalf("%s: %s", command, tagged)
	}
	return strings.Join(untagged, "\n")
}

// no wants a refusal that begins so.
func (c *client) no(command, prefix string) string {
	c.t.Helper()
	untagged, tagged := c.do(command)
	if !strings.HasPrefix(tagged, prefix) {
		c.t.Fatalf("%s: %s, not %s", command, tagged, prefix)
	}
	return strings.Join(untagged, "\n")
}

func (c *client) eof() {
	c.t.Helper()
	if s, err := io.ReadAll(c.r); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || len(s) > 0 {
		c.t.Fatalf("%q, %v instead of the end", s, err)
	}
}
