package queue_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// A queue that delivers into a queue loses none of the parts of a message, which share
// their ID, and a part that is delivered again is no second message.
func TestQueueIntoQueue(t *testing.T) {
	store := memqueue.New(nil)
	second := &queue.Queue{Store: store}
	f := &faulty{}
	run(t, func(b *bench) {
		second.Logger = b.q.Logger
		f.Store, b.q.Store = b.store, f
		var failures atomic.Int32
		f.settle = func() error { // the results of the first deliveries are lost
			if failures.Add(1) <= 2 {
				return queue.ErrLeaseLost
			}
			return nil
		}
		b.q.Next = mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
			b.deliver(ctx, env, msg)
			return second.Deliver(ctx, env, msg)
		})
	}, func(b *bench) {
		b.answer = func(context.Context, *mailspine.Envelope) error { return nil }
		id := strings.Repeat("m", 64)
		b.send(envelope(id, "ann@example.net", "bob@example.com"))
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if len(b.got) != 4 || b.stats().Items != 0 {
			t.Errorf("the first queue delivered %s, and has %+v", b.log(), b.stats())
		}
		if got := slices.Sorted(maps.Keys(items(t, store))); !slices.Equal(got, []string{"example.com: bob", "example.net: ann"}) {
			t.Errorf("the second queue has %q", got)
		}
		if st, err := store.Stats(context.Background()); err != nil || st.Messages != 2 {
			t.Errorf("the second queue has %+v, %v", st, err)
		}
	})
}

// A forwarder puts the message back into the queue that delivers it, for somebody else.
func TestForward(t *testing.T) {
	run(t, func(b *bench) {
		b.q.Next = mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
			b.deliver(ctx, env, msg)
			if env.Recipients[0].Address.Local != "ann" {
				return nil
			}
			env = env.Clone()
			env.Recipients[0].Address = addr("bob@example.com")
			return b.q.Deliver(ctx, env, msg)
		})
	}, func(b *bench) {
		b.answer = func(context.Context, *mailspine.Envelope) error { return nil }
		b.send(envelope("m1", "ann@example.net"))
		b.wantLog("0s ann, 0s bob")
	})
}
