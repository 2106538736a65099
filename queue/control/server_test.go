package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// Everything that a queue says arrives as it was.
func TestRoundTrip(t *testing.T) {
	bare := queue.Item{ID: 2, Message: "02", State: queue.ItemHeld, Envelope: &mailspine.Envelope{ID: "02"}}
	f := &fake{
		items:   []queue.Item{someItem(), bare},
		groups:  []queue.Group{{Route: "example.net", Tenant: "acme", Items: 10, Due: 1, Waiting: 2, Leased: 3, Held: 4}, {}},
		stats:   queue.Stats{Messages: 1, Items: 2, Due: 3, Waiting: 4, Leased: 5, Held: 6, Bytes: 7},
		changed: queue.Changed{Matched: 3, Changed: 2, Leased: 1},
	}
	c := serve(t, &Server{Queue: f})
	ctx := t.Context()
	filter := queue.Filter{
		ID: "01ABC", Item: 1 << 63, Route: "r", Tenant: "<t&>", Stream: "s", Sender: "<>", Recipient: "@example.net", Domain: "bücher.example",
		State: queue.ItemLeased, MinAge: time.Hour, MaxAge: 2*time.Hour + 1,
	}

	var items []queue.Item
	for it, err := range c.List(ctx, filter) {
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, it)
	}
	// The cause of a status has only its text on the other side.
	text := cmp.Comparer(func(a, b *mailspine.Error) bool {
		return a == nil && b == nil || a != nil && b != nil && a.Error() == b.Error()
	})
	if d := cmp.Diff(f.items, items, text, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
		t.Errorf("List (-want +got):\n%s", d)
	}
	if d := cmp.Diff(filter, f.filter); d != "" {
		t.Errorf("Filter (-want +got):\n%s", d)
	}

	var groups []queue.Group
	for g, err := range c.Breakdown(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, g)
	}
	if d := cmp.Diff(f.groups, groups); d != "" {
		t.Errorf("Breakdown (-want +got):\n%s", d)
	}
	if st, err := c.StoreStats(ctx); st != f.stats || err != nil {
		t.Errorf("StoreStats: %+v, %v", st, err)
	}
	if err := c.Health(ctx); err != nil {
		t.Errorf("Health: %v", err)
	}
	for _, cmd := range []queue.Command{
		{Op: queue.OpHold, Reason: "because"}, {Op: queue.OpRelease}, {Op: queue.OpFlush}, {Op: queue.OpDelete}, {Op: queue.OpReroute, Route: "x"}, {Op: queue.OpReroute},
	} {
		if ch, err := c.Control(ctx, queue.Filter{}, cmd); ch != f.changed || err != nil || f.command != cmd || f.filter != (queue.Filter{}) {
			t.Errorf("%v: %+v, %v; the queue saw %+v, %+v", cmd, ch, err, f.filter, f.command)
		}
	}
	st := &mailspine.Error{Code: 550, Enhanced: mailspine.EnhancedCode{5, 7, 1}, Message: "Not <wanted>\nat all", Err: errors.New("secret")}
	if ch, err := c.Bounce(ctx, filter, st); ch != f.changed || err != nil || f.filter != filter {
		t.Errorf("Bounce: %+v, %v", ch, err)
	}
	if f.status.Reply() != st.Reply() || f.status.Err != nil {
		t.Errorf("Bounce: the queue saw %v", f.status)
	}
	if _, err := c.Bounce(ctx, filter, nil); err != nil || f.status != nil {
		t.Errorf("Bounce without a status: the queue saw %v, %v", f.status, err)
	}
	i, err := c.Info(ctx)
	if err != nil || i.Protocol != 1 || i.PID != os.Getpid() || i.Counts == nil || i.Counts.Queued != 7 || time.Since(i.Started) > time.Minute {
		t.Errorf("Info: %+v, %v", i, err)
	}
	if items, err := c.Show(ctx, "01ABC"); len(items) != 2 || err != nil || f.filter != (queue.Filter{ID: "01ABC"}) {
		t.Errorf("Show: %d items, %v", len(items), err)
	}
}

// An error is the same on both sides: for errors.Is, for mailspine.Status and for people.
func TestErrors(t *testing.T) {
	remote := mailspine.Errorf(452, "4.2.2", "Over quota")
	for _, tt := range []struct {
		err error
		is  error
	}{
		{fmt.Errorf("x: %w", queue.ErrNotFound), queue.ErrNotFound},
		{fmt.Errorf("x: %w", queue.ErrBadFilter), queue.ErrBadFilter},
		{fmt.Errorf("x: %w", queue.ErrBadCommand), queue.ErrBadCommand},
		{fmt.Errorf("x: %w", queue.ErrClosed), queue.ErrClosed},
		{queue.ErrNoStore, queue.ErrNoStore},
		{queue.ErrNotRunning, queue.ErrNotRunning},
		{fmt.Errorf("no list: %w", errors.ErrUnsupported), errors.ErrUnsupported},
		{&os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, syscall.ENOSPC},
		{remote, nil},
		{errors.New("something else"), nil},
	} {
		f := &fake{err: tt.err, changed: queue.Changed{Matched: 2, Changed: 1}}
		c := serve(t, &Server{Queue: f, Open: func(context.Context, mailspine.MsgID) (io.ReadCloser, error) { return nil, tt.err }})
		ctx := t.Context()
		_, statsErr := c.StoreStats(ctx)
		ch, controlErr := c.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpFlush})
		_, bounceErr := c.Bounce(ctx, queue.Filter{}, remote550())
		_, openErr := c.Open(ctx, "x")
		if ch != f.changed {
			t.Errorf("%v: Control says %+v", tt.err, ch)
		}
		for name, err := range map[string]error{
			"StoreStats": statsErr, "Control": controlErr, "Bounce": bounceErr, "Open": openErr, "Health": c.Health(ctx),
			"List": last(c.List(ctx, queue.Filter{})), "Breakdown": last(c.Breakdown(ctx)),
		} {
			switch {
			case err == nil, err.Error() != tt.err.Error():
				t.Errorf("%s: %v, want %v", name, err, tt.err)
			case tt.is != nil && !errors.Is(err, tt.is):
				t.Errorf("%s: %v is not %v", name, err, tt.is)
			case mailspine.Status(err).Reply() != mailspine.Status(tt.err).Reply():
				t.Errorf("%s: Status is %s, want %s", name, mailspine.Status(err).Reply(), mailspine.Status(tt.err).Reply())
			}
		}
	}
}

func remote550() *mailspine.Error { return mailspine.Errorf(550, "5.7.1", "No") }

// last returns the error that ends a sequence.
func last[T any](seq func(func(T, error) bool)) (err error) {
	for _, err = range seq {
	}
	return err
}

// An error after some items arrives after them.
func TestErrorInTheMiddle(t *testing.T) {
	f := &fake{items: []queue.Item{someItem(), someItem()}, err: queue.ErrClosed}
	c := serve(t, &Server{Queue: f})
	n := 0
	var err error
	for _, err = range c.List(t.Context(), queue.Filter{}) {
		n++
	}
	if n != 3 || !errors.Is(err, queue.ErrClosed) {
		t.Errorf("%d, %v", n, err)
	}
}

// What is wrong does not get as far as the server, and what gets there is refused.
func TestBadCalls(t *testing.T) {
	f := &fake{}
	c := serve(t, &Server{Queue: f})
	ctx := t.Context()
	bad := queue.Filter{Sender: "nobody"}
	_, e1 := c.Control(ctx, bad, queue.Command{Op: queue.OpFlush})
	_, e2 := c.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpHold})
	_, e3 := c.Control(ctx, queue.Filter{}, queue.Command{})
	_, e4 := c.Bounce(ctx, bad, remote550())
	_, e5 := c.Bounce(ctx, queue.Filter{}, &mailspine.Error{Message: "no code"})
	_, e6 := c.Bounce(ctx, queue.Filter{}, mailspine.Errorf(450, "4.7.1", "No"))
	_, e7 := c.Open(ctx, "../../etc/passwd")
	_, e8 := c.Show(ctx, "")
	_, e9 := c.Show(ctx, "gone")
	_, e10 := c.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpHold, Reason: strings.Repeat("x", maxRequest)})
	for i, tt := range []struct{ err, want error }{
		{e1, queue.ErrBadFilter}, {e2, queue.ErrBadCommand}, {e3, queue.ErrBadCommand}, {e4, queue.ErrBadFilter}, {e5, queue.ErrBadCommand},
		{e6, queue.ErrBadCommand}, {e7, ErrBadRequest}, {e8, ErrBadRequest}, {e9, queue.ErrNotFound}, {e10, ErrBadRequest},
		{last(c.List(ctx, bad)), queue.ErrBadFilter},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%d: %v, want %v", i+1, tt.err, tt.want)
		}
	}
	if f.calls != 1 { // Show("gone")
		t.Errorf("the queue was asked %d times", f.calls)
	}
}

func TestContent(t *testing.T) {
	text := "Subject: x\r\n\r\n" + strings.Repeat("0123456789\r\n", 100_000)
	cut := errors.New("checksum")
	c := serve(t, &Server{Queue: &fake{}, Open: func(_ context.Context, id mailspine.MsgID) (io.ReadCloser, error) {
		switch id {
		case "whole":
			return io.NopCloser(strings.NewReader(text)), nil
		case "rotten": // ends with an error instead of EOF
			return io.NopCloser(io.MultiReader(strings.NewReader(text), errReader{cut})), nil
		case "empty":
			return io.NopCloser(strings.NewReader("")), nil
		}
		return nil, queue.ErrNotFound
	}})
	read := func(id mailspine.MsgID) (string, error) {
		r, err := c.Open(t.Context(), id)
		if err != nil {
			return "", err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		return string(b), err
	}
	if got, err := read("whole"); got != text || err != nil {
		t.Errorf("%d octets, %v", len(got), err)
	}
	if got, err := read("empty"); got != "" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := read("rotten"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("what could not be read to its end was taken for whole: %v", err)
	}
	if _, err := read("none"); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("%v", err)
	}
	without := serve(t, &Server{Queue: &fake{}})
	if _, err := without.Open(t.Context(), "x"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a server without Open: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// A Client is a Queue, and can be served again.
func TestChain(t *testing.T) {
	f := &fake{items: []queue.Item{someItem()}, changed: queue.Changed{Matched: 1}, err: nil}
	inner := serve(t, &Server{Queue: f, Open: func(context.Context, mailspine.MsgID) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("text")), nil
	}})
	outer := serve(t, &Server{Queue: inner})
	if items, err := outer.Show(t.Context(), "01ABC"); len(items) != 1 || err != nil {
		t.Errorf("Show: %v, %v", items, err)
	}
	r, err := outer.Open(t.Context(), "01ABC")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); string(b) != "text" || err != nil {
		t.Errorf("Open: %q, %v", b, err)
	}
}

func TestServeRefuses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Queue: &fake{}}
	if err := s.Serve(l); err == nil || !strings.Contains(err.Error(), "no Unix socket") {
		t.Errorf("TCP: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the listener is still open")
	}
	ul, err := Listen(filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	if err := new(Server).Serve(ul); err == nil || !strings.Contains(err.Error(), "Queue is nil") {
		t.Errorf("no queue: %v", err)
	}
}

func TestNoServer(t *testing.T) {
	dir := shortDir(t)
	for _, path := range []string{filepath.Join(dir, "none"), dead(t, dir)} {
		c := &Client{Path: path}
		if _, err := c.Info(t.Context()); !errors.Is(err, ErrNoServer) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"", strings.Repeat("x", 200), "@abstract", "a\x00b"} {
		if _, err := (&Client{Path: path}).Info(t.Context()); err == nil || errors.Is(err, ErrNoServer) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// dead makes a socket as a killed process leaves it.
func dead(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	return path
}

// Shutdown lets a command end, and Close stops it.
func TestStop(t *testing.T) {
	for _, kill := range []bool{false, true} {
		f := &fake{block: make(chan struct{}), ended: make(chan error, 1), changed: queue.Changed{Matched: 5}}
		s := &Server{Queue: f}
		c := serve(t, s)
		type result struct {
			ch  queue.Changed
			err error
		}
		got := make(chan result, 1)
		go func() {
			ch, err := c.Control(context.Background(), queue.Filter{}, queue.Command{Op: queue.OpFlush})
			got <- result{ch, err}
		}()
		for begun := false; !begun; time.Sleep(time.Millisecond) {
			f.mu.Lock()
			begun = f.calls > 0
			f.mu.Unlock()
		}
		if kill {
			s.Close()
			select {
			case err := <-f.ended:
				if err == nil {
					t.Error("the command was not stopped")
				}
			default:
				t.Error("Close returned before the command had ended")
			}
			if r := <-got; r.err == nil {
				t.Errorf("a command that was stopped: %+v", r)
			}
			continue
		}
		down := make(chan error, 1)
		go func() { down <- s.Shutdown(context.Background()) }()
		// Nobody else gets in; the one who is there gets the answer.
		for ; ; time.Sleep(time.Millisecond) {
			if _, err := c.Info(t.Context()); errors.Is(err, ErrNoServer) {
				break
			}
		}
		select {
		case err := <-down:
			t.Errorf("Shutdown did not wait: %v", err)
		default:
		}
		close(f.block)
		if r := <-got; r.err != nil || r.ch != f.changed {
			t.Errorf("a command during Shutdown: %+v", r)
		}
		if err := <-down; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if _, err := os.Lstat(c.Path); err == nil {
			t.Error("the socket is still there")
		}
	}
}

// A Shutdown whose context ends cuts off what is left.
func TestShutdownEnds(t *testing.T) {
	f := &fake{block: make(chan struct{}), ended: make(chan error, 1)}
	s := &Server{Queue: f}
	c := serve(t, s)
	go c.Control(context.Background(), queue.Filter{}, queue.Command{Op: queue.OpFlush})
	for begun := false; !begun; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		begun = f.calls > 0
		f.mu.Unlock()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := <-f.ended; err == nil {
		t.Error("the command was not stopped")
	}
}

// The log says who did what.
func TestLog(t *testing.T) {
	var b syncBuffer
	f := &fake{changed: queue.Changed{Matched: 3, Changed: 2, Leased: 1}}
	c := serve(t, &Server{Queue: f, Logger: b.logger()})
	if _, err := c.Control(t.Context(), queue.Filter{Tenant: "acme"}, queue.Command{Op: queue.OpHold, Reason: "unpaid"}); err != nil {
		t.Fatal(err)
	}
	want := []string{"op=hold", `filter="{\"tenant\":\"acme\"}"`, "reason=unpaid", "matched=3", "changed=2", "leased=1", fmt.Sprintf("uid=%d", os.Getuid()), fmt.Sprintf("pid=%d", os.Getpid())}
	if _, ok := knows(t); !ok {
		want = want[:6]
	}
	for _, w := range want {
		if !slices.Contains(strings.Fields(b.String()), w) {
			t.Errorf("no %s in %s", w, b.String())
		}
	}
}
