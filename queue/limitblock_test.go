package queue_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

var quietly = slog.New(slog.DiscardHandler)

// A remote is a shared Limiter that can be cut off, and counts what it is asked.
type remote struct {
	queue.Limiter
	takes, returns, renews atomic.Int64
	down                   atomic.Bool
}

var errDown = errors.New("connection refused")

func newRemote(now func() time.Time) *remote {
	return &remote{Limiter: memqueue.NewLimiter(&memqueue.LimiterOptions{Now: now})}
}

func (r *remote) Take(ctx context.Context, req queue.TakeRequest) (queue.Permit, error) {
	r.takes.Add(1)
	if r.down.Load() {
		return queue.Permit{}, errDown
	}
	return r.Limiter.Take(ctx, req)
}

func (r *remote) Return(ctx context.Context, id queue.PermitID, unused int64) error {
	r.returns.Add(1)
	if r.down.Load() {
		return errDown
	}
	return r.Limiter.Return(ctx, id, unused)
}

func (r *remote) Renew(ctx context.Context, ttl time.Duration, ids ...queue.PermitID) ([]queue.PermitID, error) {
	r.renews.Add(1)
	if r.down.Load() {
		return nil, errDown
	}
	return r.Limiter.Renew(ctx, ttl, ids...)
}

// A BlockLimiter is a Limiter, and keeps its contract, but for the second of a Rate.
func TestBlockLimiter(t *testing.T) {
	open := func(t *testing.T, now func() time.Time) queue.Limiter {
		return queue.NewBlockLimiter(newRemote(now), &queue.BlockOptions{Logger: quietly})
	}
	queuetest.RunLimiter(t, queuetest.LimiterHarness{
		Open: open,
		OpenSmall: func(*testing.T) queue.Limiter {
			return queue.NewBlockLimiter(newRemote(nil), &queue.BlockOptions{Keys: 10, Permits: 10, Logger: quietly})
		},
		Synctest: true,
		Coarse:   true,
	})
	t.Run("RealTime", func(t *testing.T) {
		queuetest.RunLimiter(t, queuetest.LimiterHarness{Open: open})
	})
}

func quotaOf(n int64) queue.Limit {
	return queue.Limit{Kind: queue.Quota, Key: "q", Max: n, Per: queue.MaxPer}
}

func take(l queue.Limiter, n int64, limits ...queue.Limit) (queue.Permit, error) {
	return l.Take(context.Background(), queue.TakeRequest{Limits: limits, N: n, TTL: time.Hour})
}

func isOver(err error) bool {
	var over *queue.OverLimit
	return errors.As(err, &over)
}

// Ten nodes with fifty deliveries each keep one cap, to the last one: what a node holds and does not use comes back.
func TestBlockLimiterNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newRemote(nil)
		const cap, nodes = 10_000, 10
		var granted atomic.Int64
		var wg sync.WaitGroup
		var all []*queue.BlockLimiter
		for n := range nodes {
			l := queue.NewBlockLimiter(shared, &queue.BlockOptions{Logger: quietly})
			all = append(all, l)
			for w := range 50 {
				wg.Go(func() {
					for i := range 60 {
						p, err := take(l, 1, quotaOf(cap))
						switch {
						case isOver(err):
							time.Sleep(time.Second)
							continue
						case err != nil:
							t.Errorf("Take: %v", err)
							return
						}
						time.Sleep(time.Duration(1+(n+w+i)%7) * 100 * time.Millisecond)
						unused := int64(0)
						if i%10 == 0 {
							unused = 1
						}
						l.Return(t.Context(), p.ID, unused)
						granted.Add(1 - unused)
					}
				})
			}
		}
		wg.Wait()
		asked := shared.takes.Load()
		time.Sleep(time.Minute) // longer than Hold
		for left := true; left; {
			left = false
			for _, l := range all {
				if _, err := take(l, 1, quotaOf(cap)); err == nil {
					granted.Add(1)
					left = true
				}
			}
		}
		if granted.Load() != cap {
			t.Errorf("%d nodes were granted %d, the cap is %d", nodes, granted.Load(), cap)
		}
		if asked > cap/10 {
			t.Errorf("for %d Takes the shared limiter was asked %d times", cap, asked)
		}
		for _, l := range all {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// What a node holds at most is a block, and it goes back after Hold, or at Close.
func TestBlockLimiterHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newRemote(nil)
		l := queue.NewBlockLimiter(shared, &queue.BlockOptions{Block: 20, Hold: time.Second, Logger: quietly})
		defer l.Close()
		held := func() int64 {
			u, err := shared.Usage(t.Context(), quotaOf(100))
			if err != nil {
				t.Fatal(err)
			}
			return u[0].Used
		}
		p, err := take(l, 3, quotaOf(100))
		if err != nil || held() != 20 {
			t.Fatalf("%v; the node holds %d, want a block of 20", err, held())
		}
		// Somebody may still give back: the block stays, and is used.
		time.Sleep(time.Minute)
		if held() != 20 || shared.renews.Load() == 0 {
			t.Errorf("the node holds %d after %d renewals", held(), shared.renews.Load())
		}
		l.Return(t.Context(), p.ID, 1)
		time.Sleep(3 * time.Second)
		if held() != 2 {
			t.Errorf("after Hold the node holds %d, and has used 2", held())
		}
		if _, err := take(l, 50, quotaOf(100)); err != nil || held() != 52 {
			t.Errorf("%v; the node holds %d, want what was wanted", err, held())
		}
		if _, err := take(l, 1, quotaOf(100)); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil || held() != 53 {
			t.Errorf("%v; after Close the node holds %d, and has used 53", err, held())
		}
	})
}

// A shared limiter that is away: what was granted before is handed out, and nothing more.
func TestBlockLimiterFailsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newRemote(nil)
		l := queue.NewBlockLimiter(shared, &queue.BlockOptions{Block: 5, Logger: quietly})
		defer l.Close()
		slot := queue.Limit{Kind: queue.Slots, Key: "s", Max: 5}
		s, err := take(l, 1, slot)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := take(l, 1, quotaOf(100)); err != nil {
			t.Fatal(err)
		}
		shared.down.Store(true)
		n := 0
		for range 50 {
			if _, err := take(l, 1, quotaOf(100)); err == nil {
				n++
			} else if isOver(err) || !errors.Is(err, errDown) || !mailspine.Status(err).Temporary() {
				t.Fatalf("Take while the limiter is away: %v", err)
			}
		}
		if n != 4 {
			t.Errorf("%d were granted while nobody could be asked, of a block with 4 left", n)
		}
		if took := shared.takes.Load(); took > 3 {
			t.Errorf("the limiter that is away was asked %d times at one moment", took)
		}
		if _, err := take(l, 1, slot); !errors.Is(err, errDown) {
			t.Errorf("a slot: %v", err)
		}
		// The slot that is held lasts as long as the shared limiter keeps it for us, and no longer.
		time.Sleep(30 * time.Second)
		if ended, err := l.Renew(t.Context(), time.Hour, s.ID); err != nil || len(ended) > 0 {
			t.Errorf("within the TTL: %v, %v", ended, err)
		}
		time.Sleep(40 * time.Second)
		if ended, err := l.Renew(t.Context(), time.Hour, s.ID); err != nil || len(ended) != 1 {
			t.Errorf("after the TTL: %v, %v; want the slot to be lost", ended, err)
		}
		shared.down.Store(false)
		time.Sleep(time.Second)
		for range 5 {
			if _, err := take(l, 1, slot); err != nil {
				t.Fatalf("it is back: %v", err)
			}
		}
		if _, err := take(l, 1, slot); !isOver(err) {
			t.Errorf("a sixth of five slots: %v", err)
		}
	})
}

// Slots are kept for who comes next, and held by no more than Max over all nodes.
func TestBlockLimiterSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newRemote(nil)
		slot := queue.Limit{Kind: queue.Slots, Key: "s", Max: 4}
		var held, most atomic.Int64
		var wg sync.WaitGroup
		var all []*queue.BlockLimiter
		for range 3 {
			l := queue.NewBlockLimiter(shared, &queue.BlockOptions{Hold: 2 * time.Second, Logger: quietly})
			all = append(all, l)
			for w := range 5 {
				wg.Go(func() {
					for i := range 100 {
						p, err := take(l, 1, slot)
						if err != nil {
							time.Sleep(time.Duration(300+w*17) * time.Millisecond)
							continue
						}
						n := held.Add(1)
						for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
						}
						time.Sleep(time.Duration(50+i) * time.Millisecond)
						held.Add(-1)
						l.Return(t.Context(), p.ID, 0)
					}
				})
			}
		}
		wg.Wait()
		if most.Load() != 4 {
			t.Errorf("%d slots were held at the same time, want 4", most.Load())
		}
		before := shared.takes.Load()
		p, err := take(all[0], 1, slot)
		if err != nil {
			time.Sleep(time.Minute)
			p, err = take(all[0], 1, slot)
		}
		for range 100 {
			if err != nil {
				t.Fatal(err)
			}
			all[0].Return(t.Context(), p.ID, 0)
			p, err = take(all[0], 1, slot)
		}
		if n := shared.takes.Load() - before; n > 2 {
			t.Errorf("for 100 deliveries one after another the shared limiter was asked %d times", n)
		}
		all[0].Return(t.Context(), p.ID, 0)
		time.Sleep(time.Minute)
		u, err := shared.Usage(t.Context(), slot)
		if err != nil || u[0].Used != 0 {
			t.Errorf("after Hold %d slots are kept, %v", u[0].Used, err)
		}
		for _, l := range all {
			l.Close()
		}
	})
}

// What is held of a period that is over is not handed out in the next one.
func TestBlockLimiterPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newRemote(nil)
		nodes := []*queue.BlockLimiter{
			queue.NewBlockLimiter(shared, &queue.BlockOptions{Block: 40, Hold: time.Hour, Logger: quietly}),
			queue.NewBlockLimiter(shared, &queue.BlockOptions{Block: 40, Hold: time.Hour, Logger: quietly}),
		}
		l := queue.Limit{Kind: queue.Quota, Key: "q", Max: 100, Per: queue.Day}
		time.Sleep(24*time.Hour - time.Minute)
		for _, n := range nodes {
			if _, err := take(n, 1, l); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		granted := 0
		for i := range 300 {
			if _, err := take(nodes[i%2], 1, l); err == nil {
				granted++
			}
		}
		if granted != 100 {
			t.Errorf("in the new period %d were granted, want 100", granted)
		}
		for _, n := range nodes {
			n.Close()
		}
	})
}

// In a span of time, Burst and what comes back in it and in Hold is granted, over all nodes.
func TestBlockLimiterRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newRemote(nil)
		const hold = 5 * time.Second
		l := queue.Limit{Kind: queue.Rate, Key: "r", Max: 600, Per: time.Minute, Burst: 100}
		var nodes []*queue.BlockLimiter
		for range 4 {
			nodes = append(nodes, queue.NewBlockLimiter(shared, &queue.BlockOptions{Block: 25, Hold: hold, Logger: quietly}))
		}
		var at []time.Duration // of each grant
		begun := time.Now()
		for i := range 4000 {
			n := nodes[i%len(nodes)]
			if i/500%2 == 1 {
				n = nodes[0] // the others rest, and hold
			}
			if _, err := n.Take(t.Context(), queue.TakeRequest{Limits: []queue.Limit{l}, TTL: -1}); err == nil {
				at = append(at, time.Since(begun))
			}
			time.Sleep(time.Duration(i*7919%61) * time.Millisecond)
		}
		for i := range at {
			for j := i; j < len(at); j += 17 {
				span := at[j] - at[i] + hold
				if most := 100 + int(600*span/time.Minute) + 1; j-i+1 > most {
					t.Fatalf("in %v there were %d, over %d", at[j]-at[i], j-i+1, most)
				}
			}
		}
		if least := int(600 * time.Since(begun) / time.Minute / 2); len(at) < least {
			t.Errorf("in %v only %d were granted, over %d came back", time.Since(begun), len(at), least)
		}
		for _, n := range nodes {
			n.Close()
		}
	})
}

func BenchmarkBlockLimiter(b *testing.B) {
	l := queue.NewBlockLimiter(memqueue.NewLimiter(nil), &queue.BlockOptions{Block: 1000})
	defer l.Close()
	req := queue.TakeRequest{Limits: []queue.Limit{{Kind: queue.Quota, Key: "q", Max: queue.MaxLimit, Per: queue.Day}}}
	b.ReportAllocs()
	for b.Loop() {
		p, err := l.Take(b.Context(), req)
		if err != nil {
			b.Fatal(err)
		}
		l.Return(b.Context(), p.ID, 0)
	}
}
