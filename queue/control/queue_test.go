package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"sync"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// bare is a Store without optional interfaces.
type bare struct{ queue.Store }

func newQueue(t *testing.T, store queue.Store, n int) *queue.Queue {
	t.Helper()
	t.Cleanup(func() { store.Close() })
	q := &queue.Queue{Store: store, Logger: slog.New(slog.DiscardHandler), Hostname: "mx.example.org"}
	for i := range n {
		env := &mailspine.Envelope{
			ID: mailspine.MsgID(fmt.Sprintf("m%d", i)), From: mailspine.Address{Local: "ann", Domain: "example.org"}, Tenant: fmt.Sprintf("t%d", i%3),
			Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "bob", Domain: fmt.Sprintf("d%d.example", i%5)}}},
		}
		if err := q.Deliver(t.Context(), env, mailspine.StringContent("Subject: hello\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	return q
}

// A queue over the socket is the queue.
func TestRealQueue(t *testing.T) {
	q := newQueue(t, memqueue.New(nil), 30)
	c := serve(t, &Server{Queue: q})
	ctx := t.Context()
	if n := length(t, c.List(ctx, queue.Filter{Tenant: "t1"})); n != 10 {
		t.Errorf("t1 has %d items", n)
	}
	if n := length(t, c.Breakdown(ctx)); n != 15 {
		t.Errorf("%d groups", n)
	}
	if err := c.Health(ctx); !errors.Is(err, queue.ErrNotRunning) {
		t.Errorf("Health: %v", err)
	}
	r, err := c.Open(ctx, "m7")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); string(b) != "Subject: hello\r\n\r\n" || err != nil {
		t.Errorf("Open: %q, %v", b, err)
	}
	if _, err := c.Open(ctx, "none"); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("Open: %v", err)
	}
	for _, tt := range []struct {
		f    queue.Filter
		c    queue.Command
		want queue.Changed
	}{
		{queue.Filter{Tenant: "t1"}, queue.Command{Op: queue.OpHold, Reason: "unpaid"}, queue.Changed{Matched: 10, Changed: 10}},
		{queue.Filter{State: queue.ItemHeld, Domain: "d1.example"}, queue.Command{Op: queue.OpRelease}, queue.Changed{Matched: 2, Changed: 2}},
		{queue.Filter{ID: "m0"}, queue.Command{Op: queue.OpReroute, Route: "x"}, queue.Changed{Matched: 1, Changed: 1}},
		{queue.Filter{Route: "x"}, queue.Command{Op: queue.OpDelete}, queue.Changed{Matched: 1, Changed: 1}},
	} {
		if got, err := c.Control(ctx, tt.f, tt.c); got != tt.want || err != nil {
			t.Errorf("%v: %+v, %v, want %+v", tt.c.Op, got, err, tt.want)
		}
	}
	if got, err := c.Bounce(ctx, queue.Filter{ID: "m1"}, remote550()); got != (queue.Changed{Matched: 1, Changed: 1}) || err != nil {
		t.Errorf("Bounce: %+v, %v", got, err)
	}
	// The report of the bounce is there, the message that it is about is not, and neither is the one that was deleted.
	if n := length(t, c.List(ctx, queue.Filter{Sender: "<>", Recipient: "ann@example.org"})); n != 1 {
		t.Errorf("%d reports", n)
	}
	if st, err := c.StoreStats(ctx); st.Items != 29 || st.Held != 8 || err != nil {
		t.Errorf("%+v, %v", st, err)
	}
	// What the queue finds wrong comes back as what it is.
	if _, err := c.Bounce(ctx, queue.Filter{}, mailspine.Errorf(450, "4.7.1", "No")); !errors.Is(err, queue.ErrBadCommand) {
		t.Errorf("Bounce: %v", err)
	}
}

func TestRealQueueWithoutInterfaces(t *testing.T) {
	c := serve(t, &Server{Queue: newQueue(t, bare{memqueue.New(nil)}, 1)})
	ctx := t.Context()
	_, statsErr := c.StoreStats(ctx)
	_, controlErr := c.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpFlush})
	_, bounceErr := c.Bounce(ctx, queue.Filter{}, nil)
	for i, err := range []error{last(c.List(ctx, queue.Filter{})), last(c.Breakdown(ctx)), statsErr, controlErr, bounceErr} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%d: %v", i, err)
		}
	}
	none := serve(t, &Server{Queue: &queue.Queue{}})
	if _, err := none.StoreStats(ctx); !errors.Is(err, queue.ErrNoStore) {
		t.Errorf("%v", err)
	}
	if _, err := none.Open(ctx, "x"); !errors.Is(err, queue.ErrNoStore) {
		t.Errorf("%v", err)
	}
}

// Operators at work while mail is delivered: every item is delivered, failed or deleted once.
func TestRealQueueBusy(t *testing.T) {
	const n = 400
	var mu sync.Mutex
	seen := map[mailspine.MsgID]int{}
	q := newQueue(t, memqueue.New(nil), n)
	q.Next = mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
		mu.Lock()
		defer mu.Unlock()
		if !env.From.IsZero() {
			seen[env.ID]++
		}
		return nil
	})
	c := serve(t, &Server{Queue: q, MaxConns: 100})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var ops sync.WaitGroup
	var gone int64
	count := func(ch queue.Changed, err error) {
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		gone += ch.Changed
		mu.Unlock()
	}
	go func() { done <- q.Run(ctx) }()
	for i := range 8 {
		ops.Go(func() {
			f := queue.Filter{Tenant: fmt.Sprintf("t%d", i%3)}
			if _, err := c.Control(ctx, f, queue.Command{Op: queue.OpHold, Reason: "x"}); err != nil {
				t.Error(err)
			}
			length(t, c.List(ctx, f))
			count(c.Control(ctx, queue.Filter{Route: "d1.example", Sender: "ann@example.org"}, queue.Command{Op: queue.OpDelete}))
			count(c.Bounce(ctx, queue.Filter{Domain: "d2.example"}, remote550()))
			if _, err := c.StoreStats(ctx); err != nil {
				t.Error(err)
			}
			if _, err := c.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpRelease}); err != nil {
				t.Error(err)
			}
		})
	}
	ops.Wait()
	for {
		if _, err := c.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpRelease}); err != nil {
			t.Fatal(err)
		}
		st, err := c.StoreStats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st.Items == 0 {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for id, k := range seen {
		if k != 1 {
			t.Errorf("%s was delivered %d times", id, k)
		}
	}
	if int64(len(seen))+gone != n {
		t.Errorf("%d delivered, %d deleted or bounced, of %d", len(seen), gone, n)
	}
}

// length counts what a sequence yields, none of which may be an error.
func length[T any](t *testing.T, seq iter.Seq2[T, error]) (n int) {
	t.Helper()
	for _, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}
