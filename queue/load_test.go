package queue_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// many is how many messages a test of load has: all of them with MAILSPINE_SOAK=1.
func many(all, some int) int {
	if os.Getenv("MAILSPINE_SOAK") == "1" {
		return all
	}
	return some
}

func roomy(n int) *memqueue.Store {
	return memqueue.New(&memqueue.Options{MaxMessages: 4 * n, MaxBytes: 1 << 40})
}

// What is due at once after a restart is no stampede: never more at a time than Concurrency and PerRoute say, the
// Gate is asked for no more than is delivered, and what failed together is not due together.
func TestRestartIsNoStampede(t *testing.T) {
	n := many(100_000, 5000)
	var mu sync.Mutex
	var now, most, asked int
	at, mostAt := map[queue.Route]int{}, 0
	run(t, func(b *bench) {
		b.store = roomy(n)
		b.q.Store, b.q.Retry, b.q.Rand = b.store, nil, nil
		b.q.Gate = queue.GateFunc(func(context.Context, queue.Route) (queue.Hold, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return queue.Hold{}, nil
		})
		b.q.Next = mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
			r := queue.Route(env.Recipients[0].Address.Domain)
			mu.Lock()
			now++
			at[r]++
			most, mostAt = max(most, now), max(mostAt, at[r])
			mu.Unlock()
			time.Sleep(time.Microsecond)
			mu.Lock()
			now--
			at[r]--
			mu.Unlock()
			return errBusy
		})
		for i := range n { // before Run: as after a restart, all of it is due
			b.send(envelope(fmt.Sprintf("m%d", i), fmt.Sprintf("ann@d%d.example", i%10)))
		}
	}, func(b *bench) {
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if most != queue.DefaultConcurrency || mostAt > queue.DefaultPerRoute {
			t.Errorf("%d at a time, %d of one route", most, mostAt)
		}
		if asked != n || b.q.Stats().Deferred != uint64(n) {
			t.Errorf("the gate was asked %d times, %+v; want %d", asked, b.q.Stats(), n)
		}
		// Five minutes, more or less by a fifth: 120 seconds to spread over.
		var due [12]int
		for it, err := range b.q.List(ctx, queue.Filter{}) {
			i := int((it.Due - 238*time.Second) / (10*time.Second + 200*time.Millisecond))
			if err != nil || i < 0 || i >= len(due) {
				t.Fatalf("due in %v, %v", it.Due, err)
			}
			due[i]++
		}
		for i, got := range due {
			if got < n/20 || got > n/8 {
				t.Errorf("%d of %d are due in the %d. twelfth of the time: %v", got, n, i+1, due)
			}
		}
	})
}

// A backlog of one tenant delays a message of another by the deliveries that run, and a few.
func TestHogDelaysNobody(t *testing.T) {
	n := many(100_000, 5000)
	for name, to := range map[string]string{"same destination": "ann@example.net", "another destination": "ann@example.com"} {
		t.Run(name, func(t *testing.T) {
			var begun, before atomic.Int64
			var at atomic.Int64 // what had begun when the message was put
			run(t, func(b *bench) {
				b.store = roomy(n)
				b.q.Store = b.store
				b.q.Next = mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
					k := begun.Add(1)
					if env.Tenant == "shop" {
						before.Store(k - 1 - at.Load())
					}
					time.Sleep(time.Second)
					return nil
				})
				for i := range n {
					env := envelope(fmt.Sprintf("hog%d", i), "x@example.net")
					env.Tenant = "hog"
					b.send(env)
				}
			}, func(b *bench) {
				time.Sleep(10*time.Second + time.Millisecond)
				at.Store(begun.Load())
				env := envelope("receipt", to)
				env.Tenant = "shop"
				before.Store(-1)
				b.send(env)
				time.Sleep(10 * time.Second)
				synctest.Wait()
				if got := before.Load(); got < 0 || got > queue.DefaultPerRoute+4 {
					t.Errorf("%d deliveries began before it, want at most %d", got, queue.DefaultPerRoute+4)
				}
			})
		})
	}
}

// Weights decide who gets how much of a destination, and reports do not change them.
func TestWeight(t *testing.T) {
	var mu sync.Mutex
	got := map[string]int{}
	run(t, func(b *bench) {
		b.q.Weight = func(env *mailspine.Envelope) int {
			return map[string]int{"gold": 3, "odd": -5, "huge": 1 << 40}[env.Tenant]
		}
		b.q.PerRoute = 1
		b.q.Next = mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
			if env.From.IsZero() {
				return nil
			}
			mu.Lock()
			got[env.Tenant]++
			mu.Unlock()
			time.Sleep(time.Second)
			return errUnknown // so that there are reports, for the same tenants
		})
		for i := range 400 {
			for _, tenant := range []string{"gold", "plain"} {
				env := envelope(fmt.Sprint(tenant, i), "x@example.net")
				env.Tenant, env.From = tenant, addr("sender@example.net") // reports go the same way
				b.send(env)
			}
		}
		for _, tenant := range []string{"odd", "huge"} { // out of bounds, and no error
			env := envelope(tenant, "x@example.com")
			env.Tenant = tenant
			b.send(env)
		}
	}, func(b *bench) {
		time.Sleep(200 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if sum := got["gold"] + got["plain"]; sum < 195 || got["gold"]*4 < sum*3-12 || got["gold"]*4 > sum*3+12 {
			t.Errorf("delivered: %v, want three for gold to one for plain", got)
		}
		if got["odd"] != 1 || got["huge"] != 1 {
			t.Errorf("delivered: %v", got)
		}
	})
}

// A destination that is dead and slow takes its PerRoute places, and nobody else's.
func TestSlowDestination(t *testing.T) {
	var dead, most atomic.Int64
	var last atomic.Int64
	run(t, func(b *bench) {
		b.q.Next = mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
			if env.Recipients[0].Address.Domain == "dead.example" {
				most.Store(max(most.Load(), dead.Add(1)))
				defer dead.Add(-1)
				time.Sleep(10 * time.Minute)
				return errBusy
			}
			time.Sleep(100 * time.Millisecond)
			last.Store(int64(time.Since(b.start)))
			return nil
		})
		for i := range 1000 {
			b.send(envelope(fmt.Sprintf("dead%d", i), "x@dead.example"))
			b.send(envelope(fmt.Sprintf("m%d", i), fmt.Sprintf("x@d%d.example", i%20)))
		}
	}, func(b *bench) {
		time.Sleep(time.Minute)
		synctest.Wait()
		// 24 places are left: 1,000 deliveries of 0.1 s take 4.2 s.
		if c := b.q.Stats(); c.Delivered != 1000 || time.Duration(last.Load()) > 6*time.Second {
			t.Errorf("Stats %+v, the last after %v", c, time.Duration(last.Load()))
		}
		if most.Load() != queue.DefaultPerRoute {
			t.Errorf("%d deliveries to the dead destination at a time, want %d", most.Load(), queue.DefaultPerRoute)
		}
	})
}

// A Queue holds what is being delivered, and no more, however long the Store's queue is, and
// however many destinations are held.
func TestQueueMemoryIsBounded(t *testing.T) {
	n := many(100_000, 10_000)
	for name, held := range map[string]bool{"busy": false, "held": true} {
		t.Run(name, func(t *testing.T) {
			store := roomy(n)
			defer store.Close()
			block, ready := make(chan struct{}), make(chan struct{})
			var running, back atomic.Int64
			q := &queue.Queue{
				Store: store, Logger: slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError})), Hostname: "mx.example.org",
				Next: mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
					if running.Add(1) == queue.DefaultConcurrency {
						close(ready)
					}
					<-block
					return nil
				}),
				Trace: &queue.Trace{Held: func(context.Context, queue.HeldInfo) {
					if back.Add(1) == int64(n) {
						close(ready)
					}
				}},
			}
			if held {
				q.Gate = queue.GateFunc(func(context.Context, queue.Route) (queue.Hold, error) {
					return queue.Hold{Until: time.Now().Add(24 * time.Hour), Reason: "closed"}, nil
				})
			}
			msg := mailspine.StringContent(letter)
			for i := range n {
				if err := q.Deliver(ctx, envelope("", fmt.Sprintf("x@d%d.example", i)), msg); err != nil {
					t.Fatal(err)
				}
			}
			heap := func() int64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			before := heap()
			rctx, stop := context.WithCancel(ctx)
			done := make(chan error)
			go func() { done <- q.Run(rctx) }()
			<-ready
			grown := heap() - before
			// 32 deliveries with their stacks, or 1,000 routes that are held; and what the store keeps of a reason.
			most := int64(1 << 20)
			if held {
				most += int64(n) * 100
			}
			t.Logf("%d items: %d octets more", n, grown)
			if grown > most {
				t.Errorf("with %d items stored the queue has %d octets more than before Run, want at most %d", n, grown, most)
			}
			close(block)
			stop()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
	}
}
