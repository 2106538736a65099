package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
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

// A recorder is a Handler whose sessions note what they get.
type recorder struct {
	mu       sync.Mutex
	messages []received
	calls    []string

	mail  func(*Transaction) error
	rcpt  func(*Transaction, *mailspine.Recipient) error
	data  func(*Transaction, io.Reader) (string, error) // nil: read all and take it
	login bool                                          // offers AUTH
}

type received struct {
	env  mailspine.Envelope
	data string
}

func (r *recorder) NewSession(_ context.Context, c *Conn) (Session, error) {
	r.note("new")
	s := &recorderSession{r: r, c: c}
	if r.login {
		return &recorderAuth{s}, nil
	}
	return s, nil
}

func (r *recorder) note(call string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call)
}

func (r *recorder) got() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]received(nil), r.messages...)
}

type recorderSession struct {
	r *recorder
	c *Conn
}

func (s *recorderSession) Mail(_ context.Context, tx *Transaction) error {
	s.r.note("mail " + tx.Envelope.From.Path())
	if s.r.mail != nil {
		return s.r.mail(tx)
	}
	return nil
}

func (s *recorderSession) Rcpt(_ context.Context, tx *Transaction, rcpt *mailspine.Recipient) error {
	s.r.note("rcpt " + rcpt.Address.Path())
	if s.r.rcpt != nil {
		return s.r.rcpt(tx, rcpt)
	}
	return nil
}

func (s *recorderSession) Data(_ context.Context, tx *Transaction, r io.Reader) (string, error) {
	s.r.note("data")
	if s.r.data != nil {
		return s.r.data(tx, r)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return "", err
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.r.messages = append(s.r.messages, received{*tx.Envelope.Clone(), string(b)})
	return "Ok: queued as " + string(tx.Envelope.ID), nil
}

func (s *recorderSession) Reset() { s.r.note("reset") }
func (s *recorderSession) Close() { s.r.note("close") }

type recorderAuth struct{ *recorderSession }

func (s *recorderAuth) Mechanisms() []string {
	if s.c.TLS() == nil {
		return nil
	}
	return []string{"TEST"}
}

func (s *recorderAuth) Auth(_ context.Context, mech string) (Exchange, error) {
	if mech != "TEST" {
		return nil, mailspine.Errorf(504, "5.5.4", "Mechanism not offered")
	}
	return &testExchange{}, nil
}

// testExchange wants "hello", then "secret", each after a challenge.
type testExchange struct{ step int }

func (e *testExchange) Next(response []byte) ([]byte, bool, error) {
	if response == nil {
		return []byte("say"), false, nil
	}
	e.step++
	switch {
	case string(response) == "broken":
		return nil, false, errors.New("the data base at 10.0.0.3 is away")
	case string(response) == "panic":
		panic("exchange")
	case e.step == 1 && string(response) == "hello":
		return []byte("and"), false, nil
	case e.step == 2 && string(response) == "secret":
		return nil, true, nil
	}
	return nil, false, mailspine.ErrBadCredentials
}

func (e *testExchange) Login() *mailspine.Login { return &mailspine.Login{Name: "joe"} }

// logs collects what is logged.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start serves on a port of the kernel's choice until the test ends.
func start(t testing.TB, s *Server) string {
	t.Helper()
	return startOn(t, s, s.Serve)
}

func startOn(t testing.TB, s *Server, serve func(net.Listener) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if s.Hostname == "" {
		s.Hostname = "mx.example.org"
	}
	if s.Logger == nil {
		s.Logger = quiet()
	}
	if s.AuthDelay == 0 {
		s.AuthDelay = -1
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

// A client speaks lines.
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
	return newClient(t, nc)
}

func newClient(t testing.TB, nc net.Conn) *client {
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{t, nc, bufio.NewReader(nc)}
}

func (c *client) send(raw string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, raw); err != nil {
		c.t.Fatalf("sending %q: %v", raw, err)
	}
}

var replyLine = regexp.MustCompile(`^[2-5][0-9][0-9][ -][ -~]*\r\n$`)

// reply reads one reply, all its lines; "" at the end of the connection.
func (c *client) reply() string {
	c.t.Helper()
	var b strings.Builder
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			if b.Len() > 0 || line != "" {
				c.t.Fatalf("half a reply: %q%q: %v", b.String(), line, err)
			}
			return ""
		}
		if !replyLine.MatchString(line) || len(line) > 512 {
			c.t.Fatalf("malformed reply line %q", line)
		}
		b.WriteString(strings.TrimSuffix(line, "\r\n"))
		if line[3] == ' ' {
			return b.String()
		}
		b.WriteByte('\n')
	}
}

func (c *client) expect(prefix string) string {
	c.t.Helper()
	r := c.reply()
	if !strings.HasPrefix(r, prefix) || prefix == "" && r != "" {
		c.t.Fatalf("got reply %q, want %q", r, prefix)
	}
	return r
}

func (c *client) cmd(line, prefix string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	return c.expect(prefix)
}

func (c *client) closed() {
	c.t.Helper()
	if r := c.reply(); r != "" {
		c.t.Fatalf("got %q, want the end of the connection", r)
	}
}

func (c *client) startTLS() {
	c.t.Helper()
	c.cmd("STARTTLS", "220 ")
	tc := tls.Client(c.nc, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.nc, c.br = tc, bufio.NewReader(tc)
}

var testTLS = sync.OnceValue(func() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx.example.org"}, DNSNames: []string{"mx.example.org"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
})

var idPattern = regexp.MustCompile(`\b[0-9A-HJKMNP-TV-Z]{26}\b`)

// transcript plays testdata/name.txt against addr. "C: " lines are sent with
// CRLF, "C> " ones are a quoted Go string and sent as they are, "S: " lines are
// expected, IDs standing as ID, "TLS" starts TLS, "EOF" is the end of the connection; "#" begins a comment.
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
			if !replyLine.MatchString(got) {
				t.Errorf("%s: malformed %q", where, got)
			}
			got = idPattern.ReplaceAllString(strings.TrimSuffix(got, "\r\n"), "ID")
			if got != rest {
				t.Errorf("%s:\n got S: %s\nwant S: %s", where, got, rest)
			}
		case "TLS":
			tc := tls.Client(c.nc, &tls.Config{InsecureSkipVerify: true})
			if err := tc.Handshake(); err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			c.nc, c.br = tc, bufio.NewReader(tc)
		case "EOF":
			if b, err := c.br.ReadString('\n'); err == nil || b != "" {
				t.Errorf("%s: got %q, want the end of the connection", where, b)
			}
		case "", "#":
		default:
			t.Fatalf("%s: what is %q?", where, line)
		}
	}
}
