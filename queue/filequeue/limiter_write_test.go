package filequeue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
)

func takeOf(l *Limiter, n int64, limits ...queue.Limit) (queue.Permit, error) {
	return l.Take(ctx, queue.TakeRequest{Limits: limits, N: n})
}

func mustTake(t *testing.T, l *Limiter, n int64, limits ...queue.Limit) queue.Permit {
	t.Helper()
	p, err := takeOf(l, n, limits...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// All who wait for a write share one; who stops waiting has taken nothing, and Close waits for the others.
func TestLimiterShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := new(durabletest.Disk)
		f := &durabletest.Faults{FS: d}
		l := mustOpenLimiter(t, "limits", &LimiterOptions{fs: f, Logger: quiet()})
		release := make(chan struct{})
		f.Set(func(c durabletest.Call) error {
			if c.Op == durabletest.Sync {
				<-release
			}
			return nil
		})
		limit := func(i int) queue.Limit {
			return queue.Limit{Kind: queue.Quota, Key: fmt.Sprintf("login/%d", i), Max: 10, Per: queue.Day}
		}
		var wg sync.WaitGroup
		var granted atomic.Int64
		for i := range 60 {
			wg.Go(func() {
				if _, err := takeOf(l, 1, limit(i%50)); err != nil {
					t.Error(err)
				}
				granted.Add(1)
			})
		}
		synctest.Wait()
		if granted.Load() != 0 {
			t.Fatalf("%d were granted before anything was on the disk", granted.Load())
		}
		late, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := l.Take(late, queue.TakeRequest{Limits: []queue.Limit{limit(7)}, N: 8}); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled while it waits: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(release)
		wg.Wait()
		if n := f.Calls(durabletest.Sync); n > 2 {
			t.Errorf("60 Takes of 50 keys that came together cost %d syncs", n)
		}
		if u, err := l.Usage(ctx, limit(7)); err != nil || u[0].Used != 2 {
			t.Errorf("%d are used, %v; who was cancelled took nothing", u[0].Used, err)
		}

		release = make(chan struct{})
		wg.Go(func() {
			if _, err := takeOf(l, 1, limit(99)); err != nil && !errors.Is(err, queue.ErrClosed) {
				t.Error(err)
			}
		})
		synctest.Wait()
		var closed atomic.Bool
		wg.Go(func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			closed.Store(true)
		})
		synctest.Wait()
		if closed.Load() {
			t.Error("Close did not wait for a write")
		}
		close(release)
		wg.Wait()
	})
}

// Within a block nothing is written, and a crash costs a block at most, also after much was given back.
func TestLimiterBlock(t *testing.T) {
	d := new(durabletest.Disk)
	l := mustOpenLimiter(t, "limits", &LimiterOptions{fs: d, Logger: quiet()})
	q := queue.Limit{Kind: queue.Quota, Key: "q", Max: 10_000, Per: queue.MaxPer}
	before := d.Syncs()
	for range 1000 {
		mustTake(t, l, 1, q)
	}
	if n := d.Syncs() - before; n != 5 {
		t.Errorf("1000 of 10,000 cost %d syncs, want 5: the block is a fiftieth", n)
	}
	for range 20 {
		p := mustTake(t, l, 5000, q)
		if err := l.Return(ctx, p.ID, 5000); err != nil {
			t.Fatal(err)
		}
	}
	mustTake(t, l, 1, queue.Limit{Kind: queue.Quota, Key: "another", Max: 10, Per: queue.MaxPer}) // it is written with this
	l = mustOpenLimiter(t, "limits", &LimiterOptions{fs: d.Crash(0), Logger: quiet()})
	if u, err := l.Usage(ctx, q); err != nil || u[0].Used < 1000 || u[0].Used > 1200 {
		t.Errorf("after a crash %d count, %v; 1000 were used, and a block is 200", u[0].Used, err)
	}
}

// A Rate that was lowered is known as that after a crash.
func TestLimiterLoweredRate(t *testing.T) {
	d := new(durabletest.Disk)
	now := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	o := &LimiterOptions{fs: d, Now: func() time.Time { return now }, Logger: quiet()}
	l := mustOpenLimiter(t, "limits", o)
	r := queue.Limit{Kind: queue.Rate, Key: "r", Max: 1_000_000, Per: time.Hour}
	mustTake(t, l, 500, r)
	r.Max, r.Burst = 10, 1000
	mustTake(t, l, 1, r)
	now = now.Add(time.Minute)
	o.fs = d.Crash(0)
	l = mustOpenLimiter(t, "limits", o)
	if u, err := l.Usage(ctx, r); err != nil || u[0].Used < 501 {
		t.Errorf("after a crash %d count, %v; 501 were taken, and 10 come back in an hour", u[0].Used, err)
	}
}

// What was counted while the process lived is worth as much as its record when the wall clock is wrong later.
func TestLimiterClockAfterCrash(t *testing.T) {
	d := new(durabletest.Disk)
	now := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	o := &LimiterOptions{fs: d, Now: func() time.Time { return now }, compact: 1, Block: 1, Logger: quiet()}
	l := mustOpenLimiter(t, "limits", o)
	q := queue.Limit{Kind: queue.Quota, Key: "q", Max: 10, Per: time.Hour}
	r := queue.Limit{Kind: queue.Rate, Key: "r", Max: 10, Per: time.Hour}
	mustTake(t, l, 10, q, r)
	start := now
	now = now.Add(5 * time.Hour)
	for range 50 { // q is forgotten, and the log replaced
		mustTake(t, l, 1, queue.Limit{Kind: queue.Quota, Key: "another", Max: 50, Per: queue.Day})
	}
	mustTake(t, l, 10, r)
	if l.log.log.Number() < 2 || l.Stats().Keys > 2 {
		t.Fatalf("the log was replaced %d times, %d keys", l.log.log.Number()-1, l.Stats().Keys)
	}
	now = start.Add(time.Minute)
	o.fs = d.Crash(0)
	l = mustOpenLimiter(t, "limits", o)
	// In the period that the clock was in, q was not used.
	var over *queue.OverLimit
	total := 0
	for range 20 {
		if _, err := takeOf(l, 1, q); err == nil {
			total++
		} else if !errors.As(err, &over) {
			t.Fatal(err)
		}
	}
	if total != 10 || over.Wait < 5*time.Hour {
		t.Errorf("the clock is back in a period that was used up: %d were granted, 10 of the later one; the wait is %v", total, over.Wait)
	}
	if _, err := takeOf(l, 1, r); !errors.As(err, &over) {
		t.Errorf("a rate that was used up, seen from before: %v", err)
	}
}
