package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A syncBuffer takes a log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *syncBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(s, nil)) }

// knows returns what the system says of a connection to ourselves.
func knows(t *testing.T) (peer, bool) {
	t.Helper()
	l, err := Listen(filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	p, err := credentials(a.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	return p, p.known
}

// What HTTP lets a client say and we do not want is refused, and the queue never hears of it.
func TestHostileRequests(t *testing.T) {
	f := &fake{}
	c := serve(t, &Server{Queue: f, Open: func(context.Context, mailspine.MsgID) (io.ReadCloser, error) {
		t.Error("content was opened")
		return nil, queue.ErrNotFound
	}})
	post := func(path, body string) string {
		return fmt.Sprintf("POST /v1/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	}
	get := func(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" }
	const flush = `{"filter":{},"command":{"op":"flush"}}`
	for _, tt := range []struct{ name, send, code string }{
		{"GET of a command", get("/v1/control"), "405"},
		{"DELETE", "DELETE /v1/control HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "405"},
		{"OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400"},
		{"POST of a view", post("stats", "{}"), "405"},
		{"no such call", get("/v1/"), "404"},
		{"no version", get("/control"), "404"},
		{"traversal", get("/v1/messages/../../etc/passwd"), "307"},
		{"traversal, encoded", get("/v1/messages/..%2f..%2fetc%2fpasswd/content"), "400"},
		{"traversal, twice encoded", get("/v1/messages/%252e%252e/content"), "400"},
		{"NUL in the ID", get("/v1/messages/a%00b/content"), "400"},
		{"an ID that is too long", get("/v1/messages/" + strings.Repeat("a", 65) + "/content"), "400"},
		{"an empty body", post("control", ""), "400"},
		{"no JSON", post("control", "flush"), "400"},
		{"an array", post("control", "[]"), "400"},
		{"no filter", post("control", `{"command":{"op":"flush"}}`), "400"},
		{"a null filter", post("control", `{"filter":null,"command":{"op":"flush"}}`), "400"},
		{"no command", post("control", `{"filter":{}}`), "400"},
		{"no such operation", post("control", `{"filter":{},"command":{"op":"explode"}}`), "400"},
		{"a member that is not known", post("control", `{"filter":{},"command":{"op":"flush"},"dry":true}`), "400"},
		{"a filter that is not known", post("control", `{"filter":{"planet":"mars"},"command":{"op":"delete"}}`), "400"},
		{"an empty member", post("control", `{"filter":{"tenant":""},"command":{"op":"delete"}}`), "400"},
		{"a null member", post("control", `{"filter":{"id":null},"command":{"op":"delete"}}`), "400"},
		{"no item", post("control", `{"filter":{"item":0},"command":{"op":"delete"}}`), "400"},
		{"no age", post("control", `{"filter":{"min_age":"0s"},"command":{"op":"delete"}}`), "400"},
		{"a member in other letters", post("control", `{"filter":{"Tenant":"a"},"command":{"op":"delete"}}`), "400"},
		{"two objects", post("control", flush+flush), "400"},
		{"a bad filter", post("list", `{"filter":{"sender":"x"}}`), "400"},
		{"a state that is none", post("list", `{"filter":{"state":"any"}}`), "400"},
		{"a command with a list", post("list", flush), "400"},
		{"a status with a list", post("list", `{"filter":{},"status":{"code":550}}`), "400"},
		{"a bounce with an empty status", post("bounce", `{"filter":{},"status":{}}`), "400"},
		{"a bounce with a code that is none", post("bounce", `{"filter":{},"status":{"code":5500}}`), "400"},
		{"a temporary bounce", post("bounce", `{"filter":{},"status":{"code":450}}`), "400"},
		{"a bounce with half a code", post("bounce", `{"filter":{},"status":{"code":550,"enhanced":"5.1"}}`), "400"},
		{"deep", post("list", `{"filter":`+strings.Repeat("[", 30_000)), "400"},
		{"huge", post("list", `{"filter":{"tenant":"`+strings.Repeat("x", 200_000)+`"}}`), "400"},
		{"a body that says to be huge", "POST /v1/list HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999999\r\n\r\n{]", "400"},
		{"a huge header", "GET /v1/info HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 50_000) + "\r\n\r\n", "431"},
		{"no HTTP", "EHLO mail.example\r\n\r\n", "400"},
	} {
		got := raw(t, c, tt.send)
		if first, _, _ := strings.Cut(got, "\r\n"); !strings.HasPrefix(first, "HTTP/1.1 "+tt.code) {
			t.Errorf("%s: %q, want %s", tt.name, got, tt.code)
		}
	}
	if f.calls != 0 {
		t.Errorf("the queue was asked %d times", f.calls)
	}
	if err := c.Health(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Who stops reading a list ends it.
func TestListEndsWithItsClient(t *testing.T) {
	f := &fake{endless: true, ended: make(chan error, 1)}
	c := serve(t, &Server{Queue: f})
	n := queue.ItemID(0)
	for it, err := range c.List(t.Context(), queue.Filter{}) {
		if n++; err != nil || it.ID != n {
			t.Fatalf("item %d: %+v, %v", n, it, err)
		}
		if n == 100 {
			break
		}
	}
	<-f.ended
	// And so does a context.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n = 0
	var err error
	for _, err = range c.List(ctx, queue.Filter{}) {
		if n++; n == 100 {
			cancel()
		}
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-f.ended
}

// Who takes nothing of a list is cut off.
func TestListEndsWithoutReader(t *testing.T) {
	f := &fake{endless: true, ended: make(chan error, 1)}
	c := serve(t, &Server{Queue: f, WriteTimeout: 100 * time.Millisecond})
	nc, err := net.Dial("unix", c.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, "POST /v1/list HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n{\"filter\":{}}")
	<-f.ended
}

// Who goes away, also by half, stops the command.
func TestCommandEndsWithItsClient(t *testing.T) {
	f := &fake{block: make(chan struct{}), ended: make(chan error, 1)}
	c := serve(t, &Server{Queue: f})
	const body = `{"filter":{},"command":{"op":"flush"}}`
	for _, half := range []bool{false, true} {
		nc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: c.Path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(nc, "POST /v1/control HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		if half {
			nc.CloseWrite()
		} else {
			nc.Close()
		}
		if err := <-f.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("half %v: %v", half, err)
		}
		nc.Close()
	}
}

// Who is slow to ask is cut off: in the header, and in the body. Who asked may wait for the answer in silence.
func TestSlowRequests(t *testing.T) {
	f := &fake{block: make(chan struct{})}
	c := serve(t, &Server{Queue: f, ReadTimeout: 50 * time.Millisecond})
	if got := raw(t, c, "GET /v1/info HTTP/1.1\r\nHost: x\r\nX: "); got != "" && !strings.HasPrefix(got, "HTTP/1.1 4") {
		t.Errorf("half a header: %q", got)
	}
	if got := raw(t, c, "POST /v1/control HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"filter\":{}"); !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("half a body: %q", got)
	}
	time.AfterFunc(200*time.Millisecond, func() { close(f.block) })
	if _, err := c.Control(t.Context(), queue.Filter{}, queue.Command{Op: queue.OpFlush}); err != nil {
		t.Errorf("a slow command: %v", err)
	}
}

// Connections are bounded, and a place comes free when one ends.
func TestMaxConns(t *testing.T) {
	f := &fake{}
	c := serve(t, &Server{Queue: f, MaxConns: 2})
	var silent []net.Conn
	for range 2 {
		nc, err := net.Dial("unix", c.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		// An answer shows that it has its place.
		io.WriteString(nc, "GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := nc.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		silent = append(silent, nc)
	}
	if err := c.Health(t.Context()); err == nil {
		t.Error("a third connection was served")
	}
	silent[0].Close()
	for ; ; time.Sleep(time.Millisecond) { // until the server has noticed; the test's time-out bounds it
		if c.Health(t.Context()) == nil {
			break
		}
	}
}

// The kernel says who has connected, and strangers get an error.
func TestPeers(t *testing.T) {
	p, ok := knows(t)
	if !ok {
		t.Skip("this system does not say who has connected")
	}
	if int(p.uid) != os.Getuid() || int(p.pid) != os.Getpid() {
		t.Errorf("%+v", p)
	}
	s := &Server{Queue: &fake{}}
	if got := s.examine(nopConn{}); !errors.Is(got.rejected, ErrForbidden) {
		t.Errorf("what is no Unix socket: %v", got.rejected)
	}
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	s = &Server{AllowUIDs: []uint32{4711}, Queue: &fake{}}
	c := serve(t, s)
	for _, path := range []string{c.Path, filepath.Dir(c.Path)} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for uid, want := range map[int]error{4711: nil, 4712: ErrForbidden, 0: nil} {
		if got := asUser(t, uid, c); !errors.Is(got, want) || (want == nil) != (got == nil) {
			t.Errorf("user %d: %v, want %v", uid, got, want)
		}
	}
	// Strangers who say nothing keep nobody out.
	var idle []net.Conn
	for range 2 * maxRejects {
		nc, err := dialAs(4712, c.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		idle = append(idle, nc)
	}
	if err := c.Health(t.Context()); err != nil {
		t.Errorf("beside %d strangers: %v", len(idle), err)
	}
}

type nopConn struct{ net.Conn }

func asUser(t *testing.T, uid int, c *Client) error {
	t.Helper()
	nc, err := dialAs(uid, c.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, "GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	b, err := io.ReadAll(nc)
	switch {
	case err != nil:
		return err
	case strings.HasPrefix(string(b), "HTTP/1.1 403") && strings.Contains(string(b), `"class":"forbidden"`):
		return ErrForbidden
	case strings.HasPrefix(string(b), "HTTP/1.1 200"):
		return nil
	}
	return errors.New(string(b))
}

// A server that is none, or that says too much, is an error and no panic.
func TestHostileServer(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":         "",
		"no HTTP":         "220 mail.example ESMTP\r\n",
		"another service": "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found",
		"no JSON":         "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"cut off":         "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"messages\":1,",
		"no end":          "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}\n{}\n",
		"a redirect":      "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://example.org/\r\nContent-Length: 0\r\n\r\n",
		"odd states":      "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"item\":{\"id\":1,\"state\":\"due\",\"recipients\":[{}],\"envelope\":{}}}\n",
		"a header":        "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
		"an empty error":  "HTTP/1.1 500 No\r\nConnection: close\r\n\r\n{\"error\":{}}",
	} {
		path := filepath.Join(shortDir(t), "s")
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.SetDeadline(time.Now().Add(10 * time.Second))
				c.Read(make([]byte, 1))
				io.WriteString(c, answer)
				if u, ok := c.(*net.UnixConn); ok {
					u.CloseWrite()
				}
				io.Copy(io.Discard, c)
				c.Close()
			}
		}()
		c := &Client{Path: path}
		if err := last(c.List(t.Context(), queue.Filter{})); err == nil {
			t.Errorf("%s: List ended well", name)
		}
		if name != "no end" && name != "odd states" {
			if _, err := c.StoreStats(t.Context()); err == nil {
				t.Errorf("%s: StoreStats ended well", name)
			}
		}
		l.Close()
		<-done
	}
}

// A server that says nothing does not hold its client for ever.
func TestSilentServer(t *testing.T) {
	l, err := Listen(filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := &Client{Path: l.Addr().String(), Timeout: 50 * time.Millisecond}
	var ne net.Error
	if _, err := c.Info(t.Context()); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("%v", err)
	}
}

func TestAllowance(t *testing.T) {
	a := &allowance{r: strings.NewReader("0123456789"), left: 4}
	if b, err := io.ReadAll(a); string(b) != "0123" || err == nil {
		t.Errorf("%q, %v", b, err)
	}
}
