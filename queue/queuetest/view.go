package queuetest

import (
	"context"
	"errors"
	"fmt"
	"testing/synctest"
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

// A groupOf names a group.
type groupOf struct {
	route  queue.Route
	tenant string
}

// breakdown returns the groups, and checks that they sum up to Stats.
func (k *kit) breakdown() map[groupOf]queue.Group {
	k.Helper()
	in := k.s.(queue.Inspector)
	groups := map[groupOf]queue.Group{}
	var sum queue.Stats
	for g, err := range in.Breakdown(k.ctx) {
		if err != nil {
			k.Fatalf("Breakdown: %v", err)
		}
		if _, twice := groups[groupOf{g.Route, g.Tenant}]; twice {
			k.Errorf("route %s, tenant %q is yielded twice", g.Route, g.Tenant)
		}
		groups[groupOf{g.Route, g.Tenant}] = g
		addGroup(&sum, g)
	}
	st, err := in.Stats(k.ctx)
	if err != nil {
		k.Fatalf("Stats: %v", err)
	}
	sum.Messages, sum.Bytes = st.Messages, st.Bytes
	if sum != st {
		k.Errorf("the groups sum up to %+v, Stats are %+v", sum, st)
	}
	return groups
}

func addGroup(sum *queue.Stats, g queue.Group) {
	sum.Items += g.Items
	sum.Due += g.Due
	sum.Waiting += g.Waiting
	sum.Leased += g.Leased
	sum.Held += g.Held
}

// wait starts a Wait that is expected to return what it returned within
// patience.
func (k *kit) wait(ctx context.Context, exclude ...queue.Route) (result func() error) {
	k.Helper()
	w := k.s.(queue.Waiter)
	c := make(chan error, 1)
	go func() { c <- w.Wait(ctx, exclude) }()
	if k.h.Synctest {
		synctest.Wait() // until it waits
	}
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
	{"ListEnds", "List ends when yield returns false, can be ranged over again, and holds no lock while it yields.", func(k *kit) {
		const n = 40
		for i := range n {
			k.put(message(fmt.Sprintf("m%d", i), fmt.Sprintf("d%d.example: ann", i%3)))
		}
		seq := k.s.(queue.Inspector).List(k.ctx, queue.Filter{})
		for _, stop := range []int{1, n / 2, n} {
			seen := map[queue.ItemID]bool{}
			for it, err := range seq {
				if err != nil || seen[it.ID] {
					k.Fatalf("List: item %d, seen before: %v, %v", it.ID, seen[it.ID], err)
				}
				seen[it.ID] = true
				if len(seen) == 1 { // each of these would hang
					l := k.lease(1, long)
					k.abandon(0, l...)
					if _, err := k.s.(queue.Inspector).Stats(k.ctx); err != nil {
						k.Fatalf("Stats: %v", err)
					}
				}
				if len(seen) == stop {
					break
				}
			}
			if len(seen) != stop {
				k.Errorf("%d items, want %d", len(seen), stop)
			}
		}
		if l := k.lease(n, long); len(l) != n {
			k.Errorf("%d of %d items are due after it", len(l), n)
		}
	}, inspecting},
	{"ListInvalid", "A Filter that is not valid is the only thing that List yields, with ErrBadFilter.", func(k *kit) {
		k.put(simple("m1"))
		for name, f := range badFilters() {
			n := 0
			for it, err := range k.s.(queue.Inspector).List(k.ctx, f) {
				if n++; !errors.Is(err, queue.ErrBadFilter) || it.Message != "" {
					k.Errorf("%s: List yields %+v, %v; want queue.ErrBadFilter", name, it, err)
				}
			}
			if n != 1 {
				k.Errorf("%s: List yields %d times, want once", name, n)
			}
		}
	}, inspecting},
	{"ListContext", "A method whose context has ended returns its error, and after Close ErrClosed: List and Breakdown yield it, and nothing else.", func(k *kit) {
		k.put(simple("m1"))
		in := k.s.(queue.Inspector)
		check := func(ctx context.Context, want error) {
			k.Helper()
			n := 0
			for _, err := range in.List(ctx, queue.Filter{}) {
				if n++; !errors.Is(err, want) {
					k.Errorf("List yields %v, want %v", err, want)
				}
			}
			for _, err := range in.Breakdown(ctx) {
				if n++; !errors.Is(err, want) {
					k.Errorf("Breakdown yields %v, want %v", err, want)
				}
			}
			if n != 2 {
				k.Errorf("List and Breakdown yield %d times, want once each", n)
			}
			if _, err := in.Stats(ctx); !errors.Is(err, want) {
				k.Errorf("Stats: %v, want %v", err, want)
			}
		}
		ctx, cancel := context.WithCancel(k.ctx)
		cancel()
		check(ctx, context.Canceled)
		if err := k.s.Close(); err != nil {
			k.Fatalf("Close: %v", err)
		}
		check(k.ctx, queue.ErrClosed)
	}, inspecting},
	{"ListOwned", "What List yields belongs to the caller.", func(k *kit) {
		m := message("m1", "example.net: ann bob")
		m.Envelope.Meta = map[string]string{"k": "v"}
		k.put(m)
		k.settle(settlement(k.one(long), queue.Open))
		it := k.list(queue.Filter{})["m1/example.net"]
		it.Envelope.Recipients[0].Address.Local = "eve"
		it.Envelope.Meta["k"] = "changed"
		it.States[0].Last.Status.Message = "changed"
		l := k.one(long)
		if rcpts(l) != "ann bob" || l.Envelope.Meta["k"] != "v" || l.Recipients[0].Last.Status.Message != "Try later" {
			k.Errorf("what the caller changed came back: %+v %+v", l.Envelope, l.Recipients)
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
	{"Breakdown", "Breakdown yields the counts of Stats for each route and tenant that has items, each once; they sum up to those of Stats.", func(k *kit) {
		check := func(want ...queue.Group) {
			k.Helper()
			got := k.breakdown()
			if len(got) != len(want) {
				k.Errorf("%d groups, want %d: %+v", len(got), len(want), got)
			}
			for _, g := range want {
				if got[groupOf{g.Route, g.Tenant}] != g {
					k.Errorf("route %s, tenant %q: %+v, want %+v", g.Route, g.Tenant, got[groupOf{g.Route, g.Tenant}], g)
				}
			}
		}
		check()
		shop := message("m1", "a: ann", "a: bob", "b: cid")
		shop.Envelope.Tenant = "shop"
		k.put(shop)
		k.put(message("m2", "a: ann"))
		late, held := message("m3", "a: ann"), message("m4", "b: ann")
		late.Delay, held.Hold = 100*long, "x"
		held.Envelope.Tenant = "shop"
		k.put(late)
		k.put(held)
		check(queue.Group{Route: "a", Tenant: "shop", Items: 2, Due: 2}, queue.Group{Route: "b", Tenant: "shop", Items: 2, Due: 1, Held: 1},
			queue.Group{Route: "a", Items: 2, Due: 1, Waiting: 1})
		l := k.lease(1, long, "a")[0]
		check(queue.Group{Route: "a", Tenant: "shop", Items: 2, Due: 2}, queue.Group{Route: "b", Tenant: "shop", Items: 2, Leased: 1, Held: 1},
			queue.Group{Route: "a", Items: 2, Due: 1, Waiting: 1})
		k.finish(l, queue.Delivered)
		for _, l := range k.lease(10, long) {
			if l.Envelope.Tenant == "" {
				k.finish(l, queue.Failed)
				continue
			}
			s := settlement(l, queue.Open)
			s.Delay = 100 * long
			k.settle(s)
		}
		check(queue.Group{Route: "a", Tenant: "shop", Items: 2, Waiting: 2}, queue.Group{Route: "b", Tenant: "shop", Items: 1, Held: 1},
			queue.Group{Route: "a", Items: 1, Waiting: 1})
		for range k.s.(queue.Inspector).Breakdown(k.ctx) {
			k.put(message("m5", "c: ann")) // it holds no lock while it yields: this would hang
			break
		}
		k.finish(k.one(long), queue.Delivered)
		check(queue.Group{Route: "a", Tenant: "shop", Items: 2, Waiting: 2}, queue.Group{Route: "b", Tenant: "shop", Items: 1, Held: 1},
			queue.Group{Route: "a", Items: 1, Waiting: 1})
	}, inspecting},
	{"BreakdownControl", "Stats and Breakdown count items where commands have put them.", func(k *kit) {
		in := k.s.(queue.Inspector)
		check := func(want ...queue.Group) {
			k.Helper()
			got := k.breakdown()
			for _, g := range want {
				if got[groupOf{g.Route, g.Tenant}] != g {
					k.Errorf("route %s: %+v, want %+v", g.Route, got[groupOf{g.Route, g.Tenant}], g)
				}
			}
			if len(got) != len(want) {
				k.Errorf("%d groups, want %d: %+v", len(got), len(want), got)
			}
		}
		k.put(message("m1", "a: ann", "b: bob"))
		k.put(message("m2", "a: ann"))
		k.control(queue.Filter{ID: "m1"}, hold("x"), changed(2))
		check(queue.Group{Route: "a", Items: 2, Due: 1, Held: 1}, queue.Group{Route: "b", Items: 1, Held: 1})
		k.control(queue.Filter{Route: "a"}, reroute("c"), changed(2))
		check(queue.Group{Route: "c", Items: 2, Due: 1, Held: 1}, queue.Group{Route: "b", Items: 1, Held: 1})
		k.control(queue.Filter{Route: "b"}, release, changed(1))
		check(queue.Group{Route: "c", Items: 2, Due: 1, Held: 1}, queue.Group{Route: "b", Items: 1, Due: 1})
		l := k.takeOne(queue.Filter{ID: "m1", Route: "c"}, long)
		check(queue.Group{Route: "c", Items: 2, Due: 1, Leased: 1}, queue.Group{Route: "b", Items: 1, Due: 1})
		k.abandon(0, l)
		check(queue.Group{Route: "c", Items: 2, Due: 1, Held: 1}, queue.Group{Route: "b", Items: 1, Due: 1})
		k.control(queue.Filter{Route: "c"}, remove, changed(2))
		check(queue.Group{Route: "b", Items: 1, Due: 1})
		if st, err := in.Stats(k.ctx); err != nil || st != (queue.Stats{Messages: 1, Items: 1, Due: 1, Bytes: text("m1").Size()}) {
			k.Errorf("Stats: %+v, %v", st, err)
		}
	}, inspecting | controlling},
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
	{"WaitQuiet", "Wait never returns twice for the same cause without anything being due.", func(k *kit) {
		late, held := simple("late"), simple("held")
		late.Delay, held.Hold = 100*long, "x"
		k.put(late)
		k.put(held)
		k.put(message("blocked", "blocked: ann"))
		k.put(simple("m1"))
		if l := k.lease(10, long, "blocked"); len(l) != 1 {
			k.Fatalf("leased %v, want m1", names(l))
		}
		ctx, cancel := context.WithTimeout(k.ctx, 4*k.tick)
		defer cancel()
		for n := 0; ; n++ {
			if err := k.wait(ctx, "blocked")(); err != nil {
				break
			}
			if n > 5 {
				k.Fatal("Wait returned 5 times, with nothing due and nothing changed")
			}
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
