package control

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A fake is a Queue that says what it is told to. Fields must not be changed while it is used.
type fake struct {
	items   []queue.Item
	groups  []queue.Group
	stats   queue.Stats
	changed queue.Changed
	err     error         // of everything, lists after their items
	block   chan struct{} // not nil: commands wait for it, or for their context
	endless bool          // the list has no end

	mu      sync.Mutex
	filter  queue.Filter
	command queue.Command
	status  *mailspine.Error
	calls   int
	ended   chan error // of an endless list or a blocked command: why it ended
}

func (f *fake) saw(filter queue.Filter, c queue.Command, st *mailspine.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.filter, f.command, f.status = filter, c, st
	f.calls++
}

func (f *fake) List(ctx context.Context, filter queue.Filter) iter.Seq2[queue.Item, error] {
	f.saw(filter, queue.Command{}, nil)
	return func(yield func(queue.Item, error) bool) {
		for _, it := range f.items {
			if !yield(it, nil) {
				return
			}
		}
		for n := queue.ItemID(1); f.endless; n++ {
			if ctx.Err() != nil {
				f.ended <- ctx.Err()
				return
			}
			it := someItem()
			it.ID = n
			if !yield(it, nil) {
				f.ended <- nil
				return
			}
		}
		if f.err != nil {
			yield(queue.Item{}, f.err)
		}
	}
}

func (f *fake) StoreStats(context.Context) (queue.Stats, error) { return f.stats, f.err }

func (f *fake) Breakdown(context.Context) iter.Seq2[queue.Group, error] {
	return func(yield func(queue.Group, error) bool) {
		for _, g := range f.groups {
			if !yield(g, nil) {
				return
			}
		}
		if f.err != nil {
			yield(queue.Group{}, f.err)
		}
	}
}

func (f *fake) Health(context.Context) error { return f.err }

func (f *fake) Control(ctx context.Context, filter queue.Filter, c queue.Command) (queue.Changed, error) {
	f.saw(filter, c, nil)
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			f.ended <- ctx.Err()
			return f.changed, ctx.Err()
		}
	}
	return f.changed, f.err
}

func (f *fake) Bounce(_ context.Context, filter queue.Filter, st *mailspine.Error) (queue.Changed, error) {
	f.saw(filter, queue.Command{}, st)
	return f.changed, f.err
}

func (f *fake) Stats() queue.Counts { return queue.Counts{Queued: 7, Running: 1} }

// someItem has something in every field that travels.
func someItem() queue.Item {
	return queue.Item{
		ID: 1 << 60, Message: "01ABC", Route: "example.net", State: queue.ItemWaiting, Attempts: 3,
		Age: 90*time.Minute + 1, Due: -time.Second, Reason: "not <now>", Size: 4711,
		Envelope: &mailspine.Envelope{
			ID: "01ABC", From: mailspine.Address{Local: "ann", Domain: "example.org"},
			Recipients: []mailspine.Recipient{
				{Address: mailspine.Address{Local: "bob", Domain: "example.net"}, Notify: mailspine.NotifyFailure, ORcpt: "rfc822;bob@example.net"},
				{Address: mailspine.Address{Local: "Zoë", Domain: "bücher.example"}},
			},
			Ret: mailspine.RetHdrs, EnvID: "env", Priority: -3, UTF8: true, Tenant: "acme", Stream: "news",
			HoldUntil: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
			Origin:    mailspine.Origin{Addr: netip.MustParseAddrPort("[2001:db8::1]:4711"), Helo: "client.example", Proto: "ESMTPSA", Login: "ann", Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)},
			Verdict:   &mailspine.Verdict{SPF: "pass", DKIMDomains: []string{"example.org"}},
			Meta:      map[string]string{"order": "17"},
		},
		States: []queue.RecipientState{
			{Index: 4, Warned: true, Last: queue.Result{
				Status:  &mailspine.Error{Code: 450, Enhanced: mailspine.EnhancedCode{4, 2, 0}, Message: "Greylisted", Err: errors.New("try later")},
				Receipt: mailspine.Receipt{RemoteMTA: "mx.example.net", RemoteAddr: "192.0.2.1:25", Reply: "450 Greylisted"}, Warned: true,
			}},
			{Index: 9},
		},
	}
}

// shortDir makes a directory with a path that leaves room for a socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serve serves s until the test ends, and returns a client.
func serve(t testing.TB, s *Server) *Client {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return &Client{Path: path, Timeout: 20 * time.Second}
}

// raw sends octets to a server, and returns all that it answers.
func raw(t *testing.T, c *Client, send string) string {
	t.Helper()
	nc, err := net.Dial("unix", c.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(nc, send) // the server may have seen enough before the end
	b, err := io.ReadAll(nc)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("reading: %v", err)
	}
	return string(b)
}
