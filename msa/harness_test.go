package msa

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

var testTLS = sync.OnceValue(func() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail.example.org"}, DNSNames: []string{"mail.example.org"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
})

// users has cheap hashes; the real cost is measured in TestMemoryUsersCost.
func users(t testing.TB) *MemoryUsers {
	t.Helper()
	u := &MemoryUsers{Memory: 64, Passes: 1}
	for _, l := range []mailspine.Login{
		{Name: "joe@example.org", Tenant: "acme", Stream: "bulk", Pool: "p1", Addresses: []string{"sales@example.org", "@joe.example"}},
		{Name: "role", Addresses: []string{"info@bücher.example"}},
		{Name: "../../etc/passwd"},
	} {
		if err := u.Add(l, "sesame"); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// A box is a Next that keeps what it gets.
type box struct {
	mu   sync.Mutex
	envs []*mailspine.Envelope
	data []string
	fail func(mailspine.Recipient) error
	why  mailspine.RecipientErrors
}

func (b *box) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	data, err := mailspine.ReadContent(ctx, msg, 1<<20)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.why = mailspine.FailuresFrom(ctx)
	res := make(mailspine.RecipientErrors, len(env.Recipients))
	taken := []int{}
	for i, r := range env.Recipients {
		if b.fail != nil {
			res[i] = b.fail(r)
		}
		if res[i] == nil {
			taken = append(taken, i)
		}
	}
	if len(taken) > 0 {
		b.envs, b.data = append(b.envs, env.Subset(taken)), append(b.data, string(data))
	}
	return res.Err()
}

func (b *box) last(t testing.TB) (*mailspine.Envelope, string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.envs) == 0 {
		t.Fatal("nothing was delivered")
	}
	return b.envs[len(b.envs)-1], b.data[len(b.data)-1]
}

func (b *box) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.envs)
}

func fixedNow() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC) }

func newServer(t testing.TB, next mailspine.Deliverer) *Server {
	return &Server{
		Hostname: "mail.example.org", TLSConfig: testTLS(), Auth: users(t), Next: next, Now: fixedNow, AuthDelay: -1,
		Logger: slog.New(slog.DiscardHandler), Limits: Limits{MaxSize: 10_000, MaxRecipients: 2},
	}
}

func start(t testing.TB, s *Server, serve func(net.Listener) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

type client struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

func dialTo(t testing.TB, addr string) *client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{t, nc, bufio.NewReader(nc)}
}

// loggedIn is a client behind STARTTLS, EHLO and AUTH.
func loggedIn(t testing.TB, addr, user string) *client {
	t.Helper()
	c := dialTo(t, addr)
	c.expect("220 ")
	c.startTLS()
	c.cmd("EHLO client.example", "250-")
	c.cmd("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00sesame")), "235 ")
	return c
}

func (c *client) startTLS() {
	c.t.Helper()
	c.cmd("STARTTLS", "220 ")
	c.tls()
}

func (c *client) tls() {
	c.t.Helper()
	tc := tls.Client(c.nc, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.nc, c.br = tc, bufio.NewReader(tc)
}

func (c *client) send(raw string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, raw); err != nil {
		c.t.Fatalf("sending: %v", err)
	}
}

func (c *client) reply() string {
	c.t.Helper()
	var b strings.Builder
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			return b.String()
		}
		b.WriteString(strings.TrimSuffix(line, "\r\n"))
		if len(line) < 4 || line[3] == ' ' {
			return b.String()
		}
		b.WriteByte('\n')
	}
}

func (c *client) expect(prefix string) string {
	c.t.Helper()
	r := c.reply()
	if !strings.HasPrefix(r, prefix) {
		c.t.Fatalf("got reply %q, want %q", r, prefix)
	}
	return r
}

func (c *client) cmd(line, prefix string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	return c.expect(prefix)
}

// submit sends a message and returns the reply to its data.
func (c *client) submit(from, msg string, to ...string) string {
	c.t.Helper()
	c.cmd("MAIL FROM:<"+from+">", "250 ")
	for _, r := range to {
		c.cmd("RCPT TO:<"+r+">", "250 ")
	}
	c.cmd("DATA", "354 ")
	c.send(msg + ".\r\n")
	return c.reply()
}

var idPattern = regexp.MustCompile(`\b[0-9A-HJKMNP-TV-Z]{26}\b`)

// transcript plays testdata/name.txt: "C: " is sent with CRLF, "C> " is a quoted
// Go string sent as it is, "S: " is expected, IDs standing as ID, "TLS" starts
// TLS; "#" begins a comment.
func transcript(t *testing.T, addr, name string) {
	t.Helper()
	file := "testdata/" + name + ".txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := dialTo(t, addr)
	for i, line := range strings.Split(string(text), "\n") {
		where := fmt.Sprintf("%s:%d", file, i+1)
		kind, rest, _ := strings.Cut(line, " ")
		switch kind {
		case "C:":
			c.send(rest + "\r\n")
		case "C>":
			raw, err := strconv.Unquote(rest)
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			c.send(raw)
		case "S:":
			got, err := c.br.ReadString('\n')
			if err != nil {
				t.Fatalf("%s: %v, want %q", where, err, rest)
			}
			if got = idPattern.ReplaceAllString(strings.TrimSuffix(got, "\r\n"), "ID"); got != rest {
				t.Errorf("%s:\n got S: %s\nwant S: %s", where, got, rest)
			}
		case "TLS":
			c.tls()
		case "", "#":
		default:
			t.Fatalf("%s: what is %q?", where, line)
		}
	}
}
