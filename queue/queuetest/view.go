package queuetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine/queue"
)

// list returns what matches by "message/route".
func (k *kit) list(f queue.Filter) map[string]queue.Item {
	k.Helper()
	items := map[string]queue.Item{}
	for it, err := range k.s.(queue.Inspector).List(k.ctx, f) {
		if err != nil {
			k.Fatalf("List: %v", err)
		}
		items[fmt.Sprintf("%s/%s", it.Message, it.Route)] = it
	}
	return items
}

// wait starts a Wait that is expected to return what it returned within
// patience.
func (k *kit) wait(ctx context.Context, exclude ...queue.Route) (result func() error) {
	k.Helper()
	w := k.s.(queue.Waiter)
	c := make(chan error, 1)
	go func() { c <- w.Wait(ctx, exclude) }()
	return func() error {
		k.Helper()
		limit := patience
		if k.h.Synctest {
			limit = 100 * time.Hour
		}
		select {
		case err := <-c:
			return err
		case <-time.After(limit):
			k.Fatal("Wait did not return")
			return nil
		}
	}
}

var viewCases = []testCase{
	{"List", "List yields the items that match, with the recipients that are not done, and in which state they are.", func(k *kit) {
		m := message("m1", "example.net: ann bob", "example.com: cid")
		m.Envelope.Tenant = "shop"
		k.put(m)
		held := message("m2", "example.net: dan")
		held.Hold = "content filter"
		k.put(held)
		late := message("m3", "example.net: eve")
		late.Delay = 100 * long
		k.put(late)
		for _, l := range k.lease(10, long, "example.com") {
			s := settlement(l, queue.Open)
			s.Results[0] = queue.Result{State: queue.Delivered}
			s.Delay = 50 * long
			k.settle(s)
		}
		k.lease(10, long)
		all := k.list(queue.Filter{})
		if len(all) != 4 {
			k.Fatalf("%d items, want 4: %v", len(all), all)
		}
		a, b, c, d := all["m1/example.net"], all["m1/example.com"], all["m2/example.net"], all["m3/example.net"]
		if a.State != queue.ItemWaiting || a.Attempts != 1 || len(a.Envelope.Recipients) != 1 || a.Envelope.Recipients[0].Address.Local != "bob" ||
			len(a.States) != 1 || a.States[0].Index != 1 || a.States[0].Last.Status == nil || a.Due <= 40*long || a.Due > 50*long || a.Size == 0 {
			k.Errorf("the item that waits: %+v of %+v", a, a.Envelope)
		}
		if b.State != queue.ItemLeased || b.Due <= 0 || b.Due > long || b.Attempts != 0 {
			k.Errorf("the item that is leased: %+v", b)
		}
		if c.State != queue.ItemHeld || c.Reason != "content filter" {
			k.Errorf("the item that is held: %+v", c)
		}
		if d.State != queue.ItemWaiting || d.Due <= 90*long || d.ID == a.ID {
			k.Errorf("the item that is not due yet: %+v", d)
		}
		for name, c := range map[string]struct {
			f queue.Filter
			n int
		}{
			"ID": {queue.Filter{ID: "m1"}, 2}, "route": {queue.Filter{Route: "example.net"}, 3}, "tenant": {queue.Filter{Tenant: "shop"}, 2},
			"all three": {queue.Filter{ID: "m1", Route: "example.com", Tenant: "shop"}, 1}, "none": {queue.Filter{ID: "m2", Tenant: "shop"}, 0},
		} {
			if got := k.list(c.f); len(got) != c.n {
				k.Errorf("List by %s: %d items, want %d", name, len(got), c.n)
			}
		}
		for range k.s.(queue.Inspector).List(k.ctx, queue.Filter{}) {
			// It holds no lock while it yields: this would hang.
			k.put(simple("m4"))
			break
		}
	}, inspecting},
	{"ListReason", "The reason of the last Abandon is kept for Inspector.", func(k *kit) {
		k.put(simple("m1"))
		if err := k.s.Abandon(k.ctx, long, "daily cap of 203.0.113.7 reached", k.one(long).Token); err != nil {
			k.Fatal(err)
		}
		if it := k.list(queue.Filter{})["m1/example.net"]; it.Reason != "daily cap of 203.0.113.7 reached" || it.State == queue.ItemLeased || it.Attempts != 0 {
			k.Errorf("after Abandon: %+v", it)
		}
	}, inspecting},
	{"Stats", "Stats counts messages, items by state, and the octets of each message once; it agrees with List.", func(k *kit) {
		in := k.s.(queue.Inspector)
		check := func(want queue.Stats) {
			k.Helper()
			got, err := in.Stats(k.ctx)
			if err != nil {
				k.Fatalf("Stats: %v", err)
			}
			if got != want {
				k.Errorf("Stats are %+v, want %+v", got, want)
			}
			if n := len(k.list(queue.Filter{})); int64(n) != want.Items {
				k.Errorf("List has %d items, Stats %d", n, want.Items)
			}
		}
		size := text("m1").Size()
		check(queue.Stats{})
		k.put(message("m1", "example.net: ann", "example.com: bob"))
		check(queue.Stats{Messages: 1, Items: 2, Due: 2, Bytes: size})
		l := k.lease(1, long)[0]
		check(queue.Stats{Messages: 1, Items: 2, Due: 1, Leased: 1, Bytes: size})
		s := settlement(l, queue.Open)
		s.Delay = 100 * long
		held := simple("r1")
		held.Hold = "x"
		s.Emit = []queue.Emission{{Message: held, Content: text("r1")}}
		k.settle(s)
		check(queue.Stats{Messages: 2, Items: 3, Due: 1, Waiting: 1, Held: 1, Bytes: 2 * size})
		k.finish(k.one(long), queue.Delivered)
		check(queue.Stats{Messages: 2, Items: 2, Waiting: 1, Held: 1, Bytes: 2 * size})
		ttl := 8 * k.tick // long enough to look, in real time
		start := time.Now()
		k.put(simple("m2"))
		k.one(ttl)
		check(queue.Stats{Messages: 3, Items: 3, Leased: 1, Waiting: 1, Held: 1, Bytes: 3 * size})
		l = k.after(start, ttl, long)
		k.finish(l, queue.Delivered)
		check(queue.Stats{Messages: 2, Items: 2, Waiting: 1, Held: 1, Bytes: 2 * size})
	}, inspecting},
	{"WaitPut", "Wait returns nil when an item is due: at once if there is one, and when one is put.", func(k *kit) {
		res := k.wait(k.ctx)
		k.put(simple("m1"))
		if err := res(); err != nil {
			k.Fatalf("Wait: %v", err)
		}
		if err := k.wait(k.ctx)(); err != nil {
			k.Fatalf("Wait with an item due: %v", err)
		}
		k.one(long)
	}, waiting},
	{"WaitDue", "Wait returns nil when an item becomes due, by its delay or because a lease ended.", func(k *kit) {
		m := simple("m1")
		m.Delay = k.tick
		k.put(m)
		for _, what := range []string{"a delay", "a lease"} {
			// It may return early, but not for ever: Lease decides.
			for {
				if err := k.wait(k.ctx)(); err != nil {
					k.Fatalf("Wait for %s: %v", what, err)
				}
				if l := k.lease(1, k.tick); len(l) > 0 {
					break
				}
			}
		}
	}, waiting},
	{"WaitExclude", "Wait does not return for routes that are excluded.", func(k *kit) {
		k.put(message("m1", "a.example: ann"))
		ctx, cancel := context.WithTimeout(k.ctx, k.tick)
		defer cancel()
		if err := k.wait(ctx, "a.example")(); !errors.Is(err, context.DeadlineExceeded) {
			k.Errorf("Wait with the only route excluded: %v, want context.DeadlineExceeded", err)
		}
		res := k.wait(k.ctx, "a.example")
		k.put(message("m2", "b.example: ann"))
		if err := res(); err != nil {
			k.Errorf("Wait for another route: %v", err)
		}
	}, waiting},
	{"WaitSettle", "Wait returns when something changed so that an item may be due: a settlement's report, an abandoned lease.", func(k *kit) {
		k.put(simple("m1"))
		l := k.one(long)
		res := k.wait(k.ctx)
		if err := k.s.Abandon(k.ctx, 0, "", l.Token); err != nil {
			k.Fatal(err)
		}
		if err := res(); err != nil {
			k.Errorf("Wait after Abandon: %v", err)
		}
		l = k.one(long)
		res = k.wait(k.ctx)
		s := settlement(l, queue.Failed)
		s.Emit = []queue.Emission{{Message: simple("r1"), Content: text("r1")}}
		k.settle(s)
		if err := res(); err != nil {
			k.Errorf("Wait after a report: %v", err)
		}
	}, waiting},
	{"WaitEnds", "Wait returns the context's error when it ends, and ErrClosed when the store is closed.", func(k *kit) {
		ctx, cancel := context.WithCancel(k.ctx)
		res := k.wait(ctx)
		cancel()
		if err := res(); !errors.Is(err, context.Canceled) {
			k.Errorf("Wait: %v, want context.Canceled", err)
		}
		res = k.wait(k.ctx)
		if k.h.Synctest {
			time.Sleep(k.tick)
		}
		if err := k.s.Close(); err != nil {
			k.Errorf("Close: %v", err)
		}
		if err := res(); !errors.Is(err, queue.ErrClosed) {
			k.Errorf("Wait: %v, want queue.ErrClosed", err)
		}
	}, waiting},
	{"Health", "Health returns nil while Put works.", func(k *kit) {
		h := k.s.(queue.HealthChecker)
		if err := h.Health(k.ctx); err != nil {
			k.Errorf("Health: %v", err)
		}
	}, checking},
}
