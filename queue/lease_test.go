package queue_test

import (
	"context"
	"errors"
	"iter"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

func exit() { runtime.Goexit() }

// A faulty store fails when a test says so.
type faulty struct {
	queue.Store
	mu     sync.Mutex
	extend func(ttl time.Duration) (lose bool, err error)
	settle func() error
	lease  func() error
	log    []time.Duration // the TTLs of Extend
}

func (f *faulty) Wait(ctx context.Context, exclude []queue.Route) error {
	return f.Store.(queue.Waiter).Wait(ctx, exclude)
}

func (f *faulty) List(ctx context.Context, fl queue.Filter) iter.Seq2[queue.Item, error] {
	return f.Store.(queue.Inspector).List(ctx, fl)
}

func (f *faulty) Stats(ctx context.Context) (queue.Stats, error) {
	return f.Store.(queue.Inspector).Stats(ctx)
}

func (f *faulty) Breakdown(ctx context.Context) iter.Seq2[queue.Group, error] {
	return f.Store.(queue.Inspector).Breakdown(ctx)
}

func (f *faulty) Control(ctx context.Context, fl queue.Filter, c queue.Command) (queue.Changed, error) {
	return f.Store.(queue.Controller).Control(ctx, fl, c)
}

func (f *faulty) Take(ctx context.Context, fl queue.Filter, max int, ttl time.Duration) ([]queue.Lease, error) {
	return f.Store.(queue.Controller).Take(ctx, fl, max, ttl)
}

func (f *faulty) Lease(ctx context.Context, r queue.LeaseRequest) ([]queue.Lease, error) {
	f.mu.Lock()
	fail := f.lease
	f.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			return nil, err
		}
	}
	return f.Store.Lease(ctx, r)
}

func (f *faulty) Extend(ctx context.Context, ttl time.Duration, tokens ...queue.Token) ([]queue.Token, error) {
	f.mu.Lock()
	f.log = append(f.log, ttl)
	fail := f.extend
	f.mu.Unlock()
	if fail != nil {
		switch lose, err := fail(ttl); {
		case err != nil:
			return nil, err
		case lose:
			return tokens, nil
		}
	}
	return f.Store.Extend(ctx, ttl, tokens...)
}

func (f *faulty) Settle(ctx context.Context, s ...queue.Settlement) ([]error, error) {
	f.mu.Lock()
	fail := f.settle
	f.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			return nil, err
		}
	}
	return f.Store.Settle(ctx, s...)
}

// A delivery that takes long keeps its lease.
func TestRenewal(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.answer = func(context.Context, *mailspine.Envelope) error { time.Sleep(3 * time.Hour); return nil }
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(4 * time.Hour)
		b.wantLog("0s ann")
		if c := b.q.Stats(); c.Delivered != 1 || c.Lost != 0 {
			t.Errorf("Stats: %+v", c)
		}
	})
}

func TestBeforeCommit(t *testing.T) {
	f := &faulty{}
	run(t, func(b *bench) { f.Store = b.store; b.q.Store = f }, func(b *bench) {
		var after mailspine.Attempt
		b.answer = func(ctx context.Context, _ *mailspine.Envelope) error {
			a := mailspine.AttemptFrom(ctx)
			after = a
			if err := a.BeforeCommit(ctx, 10*time.Minute); err != nil {
				t.Errorf("BeforeCommit: %v", err)
			}
			// From now on the store is away: the lease must last for the answer.
			f.mu.Lock()
			f.extend = func(time.Duration) (bool, error) { return false, errors.New("away") }
			f.mu.Unlock()
			time.Sleep(10 * time.Minute)
			return ctx.Err()
		}
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(time.Hour)
		b.wantLog("0s ann")
		if c := b.q.Stats(); c.Delivered != 1 || c.Lost != 0 {
			t.Errorf("Stats: %+v", c)
		}
		if len(f.log) == 0 || f.log[0] <= 10*time.Minute {
			t.Errorf("Extend was called with %v, want more than 10m", f.log)
		}
		// After Deliver returned it does nothing.
		n := len(f.log)
		after.Record(0, mailspine.Receipt{RemoteMTA: "late"})
		if err := after.BeforeCommit(context.Background(), time.Minute); err != nil || len(f.log) != n {
			t.Errorf("BeforeCommit after the delivery: %v, %d calls", err, len(f.log)-n)
		}
	})
}

// The dot guard: a lease that is lost is found out before the final dot, not after.
func TestBeforeCommitLost(t *testing.T) {
	f := &faulty{}
	var lost atomic.Int64
	run(t, func(b *bench) {
		f.Store = b.store
		f.extend = func(time.Duration) (bool, error) { return true, nil }
		b.q.Store = f
		b.q.Trace = &queue.Trace{Lost: func(context.Context, queue.AttemptInfo) { lost.Add(1) }}
	}, func(b *bench) {
		dots := 0
		b.answer = func(ctx context.Context, _ *mailspine.Envelope) error {
			if err := mailspine.AttemptFrom(ctx).BeforeCommit(ctx, time.Minute); err != nil {
				if !errors.Is(err, queue.ErrLeaseLost) || !errors.Is(context.Cause(ctx), queue.ErrLeaseLost) {
					t.Errorf("BeforeCommit: %v, cause %v; want ErrLeaseLost", err, context.Cause(ctx))
				}
				f.mu.Lock()
				f.extend = nil
				f.mu.Unlock()
				return err
			}
			dots++
			return nil
		}
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(time.Hour)
		b.wantLog("0s ann, 5m0s ann")
		if dots != 1 || lost.Load() != 1 || b.q.Stats().Lost != 1 || b.q.Stats().Delivered != 1 {
			t.Errorf("%d final dots, %d losses told; %+v", dots, lost.Load(), b.q.Stats())
		}
	})
}

// A lease that is lost while a delivery runs stops it.
func TestLostWhileRunning(t *testing.T) {
	f := &faulty{}
	run(t, func(b *bench) {
		f.Store = b.store
		f.extend = func(time.Duration) (bool, error) { return true, nil }
		b.q.Store = f
	}, func(b *bench) {
		var n atomic.Int64 // the lost delivery may still be running
		b.answer = func(ctx context.Context, _ *mailspine.Envelope) error {
			if n.Add(1) > 1 {
				return nil
			}
			<-ctx.Done()
			if d := time.Since(b.start); d > queue.DefaultLeaseTTL {
				t.Errorf("the delivery was stopped after %v, want while the lease could have lasted", d)
			}
			return ctx.Err()
		}
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(time.Hour)
		b.wantLog("0s ann, 5m0s ann")
	})
}

// A store that cannot renew, until the lease must have ended, means that it is lost.
func TestRenewalFails(t *testing.T) {
	f := &faulty{}
	run(t, func(b *bench) {
		f.Store = b.store
		f.extend = func(time.Duration) (bool, error) { return false, errors.New("away") }
		b.q.Store = f
	}, func(b *bench) {
		var n atomic.Int64 // the lost delivery may still be running
		b.answer = func(ctx context.Context, _ *mailspine.Envelope) error {
			if n.Add(1) > 1 {
				return nil
			}
			<-ctx.Done()
			if d := time.Since(b.start); d < queue.DefaultLeaseTTL || d > queue.DefaultLeaseTTL*5/4 {
				t.Errorf("the delivery was stopped after %v", d)
			}
			return ctx.Err()
		}
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(time.Hour)
		synctest.Wait()
		if c := b.q.Stats(); c.Delivered != 1 || c.Lost != 1 || c.StoreErrors == 0 || len(b.got) != 2 {
			t.Errorf("Stats: %+v; Next got %s", c, b.log())
		}
	})
}

// A result that cannot be settled is kept, and nothing is delivered twice.
func TestSettleFails(t *testing.T) {
	f := &faulty{}
	run(t, func(b *bench) { f.Store = b.store; b.q.Store = f }, func(b *bench) {
		f.mu.Lock()
		f.settle = func() error {
			if time.Since(b.start) < 3*time.Hour {
				return errors.New("disk full")
			}
			return nil
		}
		f.mu.Unlock()
		b.answer = byLocal(map[string]error{"bob": errUnknown})
		b.send(envelope("m1", "ann@example.net", "bob@example.net"))
		time.Sleep(2 * time.Hour)
		if st := b.stats(); st.Leased != 1 || b.q.Stats().Running != 1 {
			t.Errorf("the store has %+v, want the item leased", st)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := b.log(); got != "0s ann+bob, 3h0m0s sender report" && len(b.got) != 2 {
			t.Errorf("Next got %s", got)
		}
		if c := b.q.Stats(); c.Delivered != 2 || c.Failed != 1 || c.StoreErrors < 100 {
			t.Errorf("Stats: %+v", c)
		}
	})
}

func TestLeaseFails(t *testing.T) {
	f := &faulty{}
	run(t, func(b *bench) {
		f.Store = b.store
		f.lease = func() error {
			if time.Since(b.start) < time.Hour {
				return errors.New("away")
			}
			return nil
		}
		b.q.Store = f
	}, func(b *bench) {
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(time.Hour + time.Minute)
		synctest.Wait()
		if c := b.q.Stats(); c.Delivered != 1 || c.StoreErrors < 50 || c.StoreErrors > 200 {
			t.Errorf("Stats: %+v", c)
		}
	})
}

func TestShutdownWaits(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.answer = func(context.Context, *mailspine.Envelope) error { time.Sleep(20 * time.Second); return nil }
		b.send(envelope("m1", "ann@example.net"))
		synctest.Wait()
		if err := b.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if d := time.Since(b.start); d != 20*time.Second {
			t.Errorf("Run ended after %v, want 20s", d)
		}
		if st := b.stats(); st.Items != 0 {
			t.Errorf("left in the store: %+v", st)
		}
		b.send(envelope("m2", "bob@example.net")) // storing goes on
		time.Sleep(time.Hour)
		b.wantLog("0s ann")
	})
}

func TestShutdownInterrupts(t *testing.T) {
	for name, grace := range map[string]time.Duration{"grace": 10 * time.Second, "none": -1} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bench) { b.q.Grace = grace }, func(b *bench) {
				b.answer = func(ctx context.Context, env *mailspine.Envelope) error {
					<-ctx.Done()
					// Some were taken before.
					return mailspine.RecipientErrors{nil, ctx.Err()}.Err()
				}
				b.send(envelope("m1", "ann@example.net", "bob@example.net"))
				synctest.Wait()
				if err := b.stop(); err != nil {
					t.Errorf("Run: %v", err)
				}
				if d := time.Since(b.start); d != max(0, grace) {
					t.Errorf("Run ended after %v, want %v", d, grace)
				}
				it, ok := items(t, b.store)["example.net: bob"]
				if !ok || it.State == queue.ItemLeased || it.Due > 0 {
					t.Errorf("in the store: %+v, want bob, due at once", items(t, b.store))
				}
			})
		})
	}
	run(t, func(b *bench) { b.q.Grace = time.Second }, func(b *bench) {
		b.answer = func(ctx context.Context, env *mailspine.Envelope) error { <-ctx.Done(); return ctx.Err() }
		b.send(envelope("m1", "ann@example.net"))
		synctest.Wait()
		if err := b.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if it := items(t, b.store)["example.net: ann"]; it.Attempts != 0 || it.State == queue.ItemLeased || it.Due > 0 {
			t.Errorf("in the store: %+v, want no attempt counted", it)
		}
	})
}

// Run that ends while the store fails leaves the lease alone.
func TestShutdownUnsettled(t *testing.T) {
	f := &faulty{settle: func() error { return errors.New("disk full") }}
	run(t, func(b *bench) { f.Store = b.store; b.q.Store = f; b.q.Grace = time.Minute }, func(b *bench) {
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(time.Minute)
		if err := b.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if it := items(t, b.store)["example.net: ann"]; it.State != queue.ItemLeased || it.Due <= 0 {
			t.Errorf("in the store: %+v, want it leased", it)
		}
		if c := b.q.Stats(); c.Lost != 1 || c.Delivered != 0 {
			t.Errorf("Stats: %+v", c)
		}
	})
}
