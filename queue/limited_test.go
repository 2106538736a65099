package queue_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

func envelopeTo(tenant string, rcpts ...string) *mailspine.Envelope {
	env := &mailspine.Envelope{ID: mailspine.NewMsgID(), From: mailspine.Address{Local: "ann", Domain: "example.org"}, Tenant: tenant}
	for _, r := range rcpts {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: r, Domain: "example.net"}})
	}
	return env
}

var hello = mailspine.StringContent("Subject: hello\r\n\r\n")

func byTenant(limits ...queue.Limit) func(*mailspine.Envelope) []queue.Limit {
	return func(env *mailspine.Envelope) []queue.Limit {
		var all []queue.Limit
		for _, l := range limits {
			l.Key = env.Tenant
			all = append(all, l)
		}
		return all
	}
}

func usedBy(t *testing.T, l queue.Limiter, tenant string, lim queue.Limit) int64 {
	t.Helper()
	lim.Key = tenant
	u, err := l.Usage(t.Context(), lim)
	if err != nil {
		t.Fatal(err)
	}
	return u[0].Used
}

var (
	dailyTen = queue.Limit{Kind: queue.Quota, Max: 10, Per: queue.Day}
	oneSlot  = queue.Limit{Kind: queue.Slots, Max: 1}
)

func TestLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter := memqueue.NewLimiter(nil)
		var got []*mailspine.Envelope
		var result error
		d := &queue.Limited{
			Limiter: limiter, Logger: quietly, Limits: byTenant(dailyTen, oneSlot),
			Next: mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
				got = append(got, env)
				if usedBy(t, limiter, env.Tenant, oneSlot) != 1 {
					t.Error("no slot is held during the delivery")
				}
				return result
			}),
		}
		deliver := func(env *mailspine.Envelope) error {
			t.Helper()
			got = nil
			err := d.Deliver(t.Context(), env, hello)
			if n := usedBy(t, limiter, env.Tenant, oneSlot); n != 0 {
				t.Errorf("%d slots are held after the delivery", n)
			}
			return err
		}
		count := func(tenant string, want int64) {
			t.Helper()
			if n := usedBy(t, limiter, tenant, dailyTen); n != want {
				t.Errorf("%d recipients count, want %d", n, want)
			}
		}
		if err := deliver(envelopeTo("shop", "a", "b", "c")); err != nil || len(got) != 1 {
			t.Fatal(err, got)
		}
		count("shop", 3)

		// What was not attempted does not count; a refusal does.
		result = mailspine.RecipientErrors{nil, &mailspine.NotNow{}, mailspine.Errorf(550, "5.1.1", "No such user"), errors.New("x")}
		if err := deliver(envelopeTo("shop", "a", "b", "c", "d")); len(err.(mailspine.RecipientErrors)) != 4 {
			t.Fatal(err)
		}
		count("shop", 6)
		result = &mailspine.NotNow{Reason: "closed"}
		deliver(envelopeTo("shop", "a", "b"))
		count("shop", 6)

		// No room: nothing is passed on.
		result = nil
		var nn *mailspine.NotNow
		err := deliver(envelopeTo("shop", "a", "b", "c", "d", "e"))
		if !errors.As(err, &nn) || nn.Rule != "quota shop" || !nn.Until.Equal(time.Now().Truncate(queue.Day).Add(queue.Day)) || len(got) != 0 {
			t.Fatalf("%v, %v", err, got)
		}
		count("shop", 6)

		// More than the day has at all.
		err = deliver(envelopeTo("shop", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"))
		if s := mailspine.Status(err); s.Code != 452 || s.Enhanced != (mailspine.EnhancedCode{4, 5, 3}) || errors.As(err, &nn) {
			t.Fatal(err)
		}

		// As many as there is room for.
		d.Partial = true
		err = deliver(envelopeTo("shop", "a", "b", "c", "d", "e", "f"))
		re, ok := err.(mailspine.RecipientErrors)
		if !ok || len(re) != 6 || len(got) != 1 || len(got[0].Recipients) != 4 {
			t.Fatalf("%v, %v", err, got)
		}
		for i, err := range re {
			if late := errors.As(err, &nn); late != (i >= 4) {
				t.Errorf("recipient %d: %v", i, err)
			}
		}
		count("shop", 10)
		if err := deliver(envelopeTo("shop", "a")); !errors.As(err, &nn) || len(got) != 0 {
			t.Error(err)
		}
		if err := deliver(envelopeTo("news", "a")); err != nil {
			t.Errorf("another tenant: %v", err)
		}

		// A submission service counts what it accepted.
		d.Partial, d.Counts = false, func(err error) bool { return err == nil }
		result = mailspine.RecipientErrors{nil, errors.New("full")}
		deliver(envelopeTo("mail", "a", "b"))
		count("mail", 1)
	})
}

// What records by recipient records for the right ones when a part goes on.
func TestLimitedPartReceipts(t *testing.T) {
	att := &attempts{}
	d := &queue.Limited{
		Limiter: memqueue.NewLimiter(nil), Partial: true,
		Limits: byTenant(queue.Limit{Kind: queue.Quota, Max: 2, Per: queue.Day}),
		Next: mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
			for i := range 5 {
				mailspine.AttemptFrom(ctx).Record(i, mailspine.Receipt{})
			}
			return nil
		}),
	}
	d.Deliver(mailspine.WithAttempt(t.Context(), att), envelopeTo("x", "a", "b", "c"), hello)
	if att.records.Load() != 2 {
		t.Errorf("%d receipts of a part of 2 recipients", att.records.Load())
	}
}

type attempts struct{ records atomic.Int64 }

func (a *attempts) BeforeCommit(context.Context, time.Duration) error { return nil }
func (a *attempts) Record(int, mailspine.Receipt)                     { a.records.Add(1) }

// Whatever becomes of Next, its slot comes back.
func TestLimitedPanic(t *testing.T) {
	limiter := memqueue.NewLimiter(nil)
	d := &queue.Limited{Limiter: limiter, Limits: byTenant(oneSlot, dailyTen),
		Next: mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { panic("bug") })}
	func() {
		defer func() { recover() }()
		d.Deliver(t.Context(), envelopeTo("x", "a", "b"), hello)
	}()
	if usedBy(t, limiter, "x", oneSlot) != 0 || usedBy(t, limiter, "x", dailyTen) != 2 {
		t.Error("after a panic the slot is held, or the recipients do not count")
	}
	ctx, cancel := context.WithCancel(t.Context())
	d.Next = mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { cancel(); return ctx.Err() })
	d.Deliver(ctx, envelopeTo("x", "a"), hello)
	if usedBy(t, limiter, "x", oneSlot) != 0 {
		t.Error("after a cancelled delivery the slot is held")
	}
}

// A limiter that fails lets nothing through, and bounces nothing.
func TestLimitedFailsClosed(t *testing.T) {
	shared := newRemote(nil)
	shared.down.Store(true)
	next := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
		t.Error("passed on")
		return nil
	})
	now := time.Now()
	d := &queue.Limited{Next: next, Limiter: shared, Limits: byTenant(dailyTen), Logger: quietly, Now: func() time.Time { return now }}
	var nn *mailspine.NotNow
	if err := d.Deliver(t.Context(), envelopeTo("x", "a"), hello); !errors.As(err, &nn) || !nn.Until.Equal(now.Add(time.Minute)) {
		t.Errorf("away: %v", err)
	}
	closed := memqueue.NewLimiter(nil)
	closed.Close()
	d.Limiter = closed
	if err := d.Deliver(t.Context(), envelopeTo("x", "a"), hello); !errors.As(err, &nn) {
		t.Errorf("closed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Deliver(ctx, envelopeTo("x", "a"), hello); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for _, d := range []*queue.Limited{{Next: next}, {Next: next, Limiter: memqueue.NewLimiter(nil)}, {Next: next, Limits: byTenant(dailyTen)}} {
		if err := d.Deliver(t.Context(), envelopeTo("x", "a"), hello); err != queue.ErrNoLimiter {
			t.Errorf("half made: %v", err)
		}
	}
	d = &queue.Limited{Limiter: memqueue.NewLimiter(nil), Limits: byTenant(dailyTen)}
	if err := d.Deliver(t.Context(), envelopeTo("x", "a"), hello); err != queue.ErrNoNext {
		t.Errorf("without Next: %v", err)
	}
	if g := (&queue.LimitGate{}); func() bool { _, err := g.Ready(t.Context(), "x"); return err == nil }() {
		t.Error("a LimitGate without a Limiter lets everything through")
	}
	shared.Limiter.Close()
	g := &queue.LimitGate{Limiter: shared, Limits: func(queue.Route) []queue.Limit { return []queue.Limit{quotaOf(5)} }}
	if _, err := g.Ready(t.Context(), "x"); err == nil {
		t.Error("a LimitGate whose Limiter fails lets everything through")
	}
}

// A slot lasts as long as the delivery, however long that is; if it cannot be kept, the delivery ends.
func TestLimitedRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newRemote(nil)
		d := &queue.Limited{Limiter: shared, Limits: byTenant(oneSlot), TTL: time.Minute, Logger: quietly,
			Next: mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
				select {
				case <-time.After(time.Hour):
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				return nil
			})}
		done := make(chan error)
		go func() { done <- d.Deliver(t.Context(), envelopeTo("x", "a"), hello) }()
		for range 50 {
			time.Sleep(time.Minute)
			if usedBy(t, shared, "x", oneSlot) != 1 {
				t.Fatal("the slot is lost during the delivery")
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		go func() { done <- d.Deliver(t.Context(), envelopeTo("x", "a"), hello) }()
		time.Sleep(10 * time.Minute)
		shared.down.Store(true)
		begun := time.Now()
		err := <-done
		if took := time.Since(begun); !errors.Is(err, queue.ErrPermitLost) || took < 30*time.Second || took > 2*time.Minute {
			t.Errorf("cut off from the limiter, after %v: %v", took, err)
		}
		if !mailspine.Status(err).Temporary() {
			t.Error("that is permanent")
		}
	})
}

// Behind a Queue: no more than the slots at a time, no more than the quota in a day, and all of it in the end;
// and what cannot go is held by its route, not leased again and again.
func TestLimitedQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter := memqueue.NewLimiter(nil)
		slot := queue.Limit{Kind: queue.Slots, Key: "site/example.net", Max: 3}
		quota := queue.Limit{Kind: queue.Quota, Key: "site/example.net", Max: 40, Per: queue.Day}
		var running, most, delivered atomic.Int64
		next := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
			n := running.Add(1)
			defer running.Add(-1)
			most.Store(max(most.Load(), n))
			time.Sleep(10 * time.Second)
			delivered.Add(1)
			return nil
		})
		store := memqueue.New(nil)
		q := &queue.Queue{
			Store: store, Logger: quietly, WarnAfter: -1,
			Next: &queue.Limited{Next: next, Limiter: limiter, Logger: quietly,
				Limits: func(*mailspine.Envelope) []queue.Limit { return []queue.Limit{slot, quota} }},
			Gate: &queue.LimitGate{Limiter: limiter, Limits: func(queue.Route) []queue.Limit { return []queue.Limit{slot, quota} }},
		}
		for range 100 {
			if err := q.Deliver(t.Context(), envelopeTo("x", "a"), hello); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- q.Run(ctx) }()
		time.Sleep(10 * time.Hour)
		if n := delivered.Load(); n != 40 {
			t.Errorf("on the first day %d were delivered, want 40", n)
		}
		time.Sleep(2 * queue.Day)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if delivered.Load() != 100 || most.Load() != 3 {
			t.Errorf("%d were delivered, %d at a time; want 100 and 3", delivered.Load(), most.Load())
		}
		// A Queue looks at what is held every quarter of an hour. Without the Gate it would be every second.
		if held := q.Stats().Held; held > 10_000 {
			t.Errorf("items were given back %d times", held)
		}
		store.Close()
	})
}

// What a client said does not reach a log raw.
func TestLimitString(t *testing.T) {
	for _, c := range []struct {
		l    queue.Limit
		want string
	}{
		{queue.Limit{Kind: queue.Slots, Key: "login/δοκιμή@example.org", Max: 3}, "slots login/δοκιμή@example.org (3)"},
		{queue.Limit{Kind: queue.Quota, Key: "a\r\nb", Max: 3, Per: time.Hour}, `quota "a\r\nb" (3 in 1h0m0s)`},
		{queue.Limit{Kind: queue.Rate, Key: "\x1b[31m\xff", Max: 3, Per: time.Minute, Burst: 9}, `rate "\x1b[31m\xff" (3 in 1m0s, 9 at once)`},
	} {
		if got := c.l.String(); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
		over := &queue.OverLimit{Limit: c.l, Need: 1, Wait: time.Second}
		for _, s := range []string{over.Error(), over.NotNow(time.Now()).Error(), over.Hold(time.Now()).String()} {
			if strings.ContainsFunc(s, unicode.IsControl) {
				t.Errorf("%q", s)
			}
		}
	}
}
