package queuetest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// pile puts n items of a tenant on a route, in few messages, each item with a recipient of
// its own.
func (k *kit) pile(id, tenant string, route queue.Route, n, weight int, change func(*queue.Message)) {
	k.Helper()
	const each = 100
	for i := 0; i < n; i += each {
		m := queue.Message{Envelope: &mailspine.Envelope{ID: mailspine.MsgID(fmt.Sprintf("%s%d", id, i/each)), Tenant: tenant}, Weight: weight}
		for j := range min(each, n-i) {
			m.Envelope.Recipients = append(m.Envelope.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: fmt.Sprintf("u%d", i+j), Domain: "example.net"}})
			m.Items = append(m.Items, queue.NewItem{Route: route, Recipients: []int{j}})
		}
		if change != nil {
			change(&m)
		}
		k.put(m)
	}
}

// turns leases n items, up to 7 at a time, and counts them by tenant.
func (k *kit) turns(n int) map[string]int {
	k.Helper()
	count := map[string]int{}
	for n > 0 {
		l := k.lease(min(n, 7), long)
		if len(l) == 0 {
			k.Fatal("nothing is due any more")
		}
		for _, x := range l {
			count[x.Envelope.Tenant]++
		}
		n -= len(l)
	}
	return count
}

// share checks how many of the turns a tenant got; a round may be cut off in the
// middle at either end.
func (k *kit) share(count map[string]int, tenant string, want, slack int) {
	k.Helper()
	if n := count[tenant]; n < want-slack || n > want+slack {
		k.Errorf("turns by tenant: %v; %q got %d, want %d, give or take %d", count, tenant, n, want, slack)
	}
}

var weightCases = []testCase{
	{"WeightProportion", "Inside a route, Lease goes round the tenants in proportion to their weights; 0 is 1.", func(k *kit) {
		k.pile("a", "three", "r", 400, 3, nil)
		k.pile("b", "one", "r", 200, 0, nil)
		k.share(k.turns(400), "three", 300, 4)
	}, 0},
	{"WeightMany", "Twice the weight, twice the turns, for any number of tenants.", func(k *kit) {
		weights := map[string]int{"a": 1, "b": 2, "c": 5, "d": 12}
		for t, w := range weights {
			k.pile(t, t, "r", 200, w, nil)
		}
		count := k.turns(300)
		for t, w := range weights {
			k.share(count, t, 15*w, w+1)
		}
	}, 0},
	{"WeightRoutes", "The weight of a tenant is its share of a route, not of the routes: they have one item of each in turn.", func(k *kit) {
		k.pile("a", "heavy", "r1", 100, queue.MaxWeight, nil)
		k.pile("b", "light", "r2", 100, 1, nil)
		k.share(k.turns(100), "light", 50, 2)
	}, 0},
	{"WeightLatest", "The weight of the latest message of a tenant counts from now on.", func(k *kit) {
		k.pile("a", "a", "r", 300, 3, nil)
		k.pile("b", "b", "r", 300, 1, nil)
		k.share(k.turns(80), "a", 60, 5)
		k.pile("a-light", "a", "r", 1, 1, nil)
		k.share(k.turns(80), "a", 40, 5)
		k.pile("b-heavy", "b", "r", 1, 3, nil)
		k.share(k.turns(80), "b", 60, 5)
		k.put(func() queue.Message { // an ID that is stored: changes nothing
			m := simple("b-heavy0")
			m.Envelope.Tenant, m.Items[0].Route, m.Weight = "b", "r", 100
			return m
		}())
		k.share(k.turns(80), "b", 60, 5)
	}, 0},
	{"WeightEmitted", "The weight of a message that a settlement emits counts as that of any other.", func(k *kit) {
		k.pile("b", "b", "r", 200, 1, nil)
		k.pile("a", "a", "r", 100, 1, nil)
		k.put(simple("m1"))
		s := settlement(k.lease(1, long, "r")[0], queue.Failed)
		m := queue.Message{Envelope: simple("r1").Envelope, Items: []queue.NewItem{{Route: "r", Recipients: []int{0}}}, Weight: 3}
		m.Envelope.Tenant = "a"
		s.Emit = []queue.Emission{{Message: m, Content: text("r1")}}
		k.settle(s)
		k.share(k.turns(80), "a", 60, 5)
	}, 0},
	{"WeightBad", "Weight is from 0 to MaxWeight; a message that Message.Validate refuses is ErrBadMessage, and one that it takes is stored.", func(k *kit) {
		for _, w := range []int{-1, queue.MaxWeight + 1, queue.MaxWeight} {
			m := simple(fmt.Sprintf("m%d", w+1))
			m.Weight = w
			err := k.s.Put(k.ctx, m, text("m1"))
			if bad := m.Validate(text("m1")) != nil; bad != errors.Is(err, queue.ErrBadMessage) || !bad && err != nil {
				k.Errorf("Put with weight %d: %v, Validate refuses it: %v", w, err, bad)
			} else if bad {
				k.none("nothing was put")
			} else {
				k.one(long)
			}
		}
	}, 0},
	{"WeightReopen", "Weights survive a restart, as the messages do.", func(k *kit) {
		k.pile("a", "three", "r", 400, 3, nil)
		k.pile("b", "one", "r", 200, 1, nil)
		k.reopen()
		k.share(k.turns(400), "three", 300, 4)
	}, reopening},
	{"WeightSize", "An item costs 1 for each begun 64 KiB of its content, so that octets count and not messages; and never less than 1.", func(k *kit) {
		put := func(id, tenant string, n, size int) {
			for i := range n {
				m := simple(fmt.Sprintf("%s%d", id, i))
				m.Envelope.Tenant = tenant
				if err := k.s.Put(k.ctx, m, mailspine.StringContent(strings.Repeat("x", size))); err != nil {
					k.Fatalf("Put: %v", err)
				}
			}
		}
		put("large", "large", 16, 3<<16+1) // costs 4
		put("empty", "empty", 50, 0)       // costs 1
		put("small", "small", 50, 64<<10)  // costs 1
		count := k.turns(72)
		k.share(count, "large", 8, 2)
		k.share(count, "small", 32, 5)
		k.share(count, "empty", 32, 5)
	}, 0},
	{"PriorityOrder", "Of a tenant of a route, Lease takes the items with the highest Envelope.Priority first (RFC 6710), those of one priority in the order in which they became due.", func(k *kit) {
		for i, p := range []int{0, -9, 9, 1, 0, -1, 9} {
			m := simple(fmt.Sprintf("m%d", i))
			m.Envelope.Priority = p
			k.put(m)
		}
		late := simple("late")
		late.Envelope.Priority, late.Delay = 5, 4*k.tick
		k.put(late)
		var got []string
		lease := func(n int) {
			for _, l := range k.lease(n, long) {
				got = append(got, string(l.Envelope.ID))
			}
		}
		lease(1)
		time.Sleep(4*k.tick + k.tick/2)
		lease(2)
		lease(10)
		if want := "[m2 m6 late m3 m0 m4 m5 m1]"; fmt.Sprint(got) != want {
			k.Errorf("leased in the order %v, want %v", got, want)
		}
	}, 0},
	{"PriorityRetry", "An item keeps its priority when it is due again, by a retry or a release.", func(k *kit) {
		for _, id := range []string{"low", "high"} {
			m := simple(id)
			m.Envelope.Priority = map[string]int{"low": -3, "high": 3}[id]
			k.put(m)
		}
		l := k.lease(2, long)
		if len(l) != 2 || l[0].Envelope.ID != "high" || l[0].Envelope.Priority != 3 {
			k.Fatalf("leased %v, want high and low", names(l))
		}
		k.finish(l[1], queue.Open)
		k.abandon(0, l[0])
		if l = k.lease(2, long); len(l) != 2 || l[0].Envelope.ID != "high" {
			k.Errorf("after a retry %v, want high and low", names(l))
		}
		if !is[queue.Controller](k) {
			return
		}
		k.abandon(0, l...)
		k.control(queue.Filter{}, hold("x"), changed(2))
		k.control(queue.Filter{ID: "low"}, release, changed(1))
		k.control(queue.Filter{ID: "high"}, release, changed(1))
		if l = k.lease(2, long); len(l) != 2 || l[0].Envelope.ID != "high" {
			k.Errorf("after a release %v, want high and low", names(l))
		}
	}, 0},
	{"PriorityReopen", "Priorities survive a restart, as the messages do.", func(k *kit) {
		for i, p := range []int{0, -5, 9, 3} {
			m := simple(fmt.Sprintf("m%d", i))
			m.Envelope.Priority = p
			k.put(m)
		}
		k.reopen()
		if l := k.lease(4, long); fmt.Sprint(names(l)) != "[m2/example.net m3/example.net m0/example.net m1/example.net]" {
			k.Errorf("leased in the order %v, want m2, m3, m0, m1", names(l))
		}
	}, reopening},
	{"PriorityTenants", "A priority counts inside of a tenant's line only: it takes no turn from another tenant, nor from another route.", func(k *kit) {
		urgent := func(m *queue.Message) { m.Envelope.Priority = 9 }
		k.pile("hog", "hog", "r1", 100, 1, urgent)
		low := func(m *queue.Message) { m.Envelope.Priority = -9 }
		k.pile("shop", "shop", "r1", 3, 1, low)
		k.pile("news", "news", "r2", 3, 1, low)
		count := k.turns(14)
		if count["shop"] != 3 || count["news"] != 3 {
			k.Errorf("the first 14 leases by tenant: %v, want all 3 of shop, and of news", count)
		}
	}, 0},
	{"Hog", "A tenant's backlog, however long, delays another tenant's single item by at most a few deliveries, and so does a route's.", func(k *kit) {
		n := 100_000
		if testing.Short() || !k.h.Synctest {
			n = 1000
		}
		k.pile("hog", "hog", "r", n, 0, nil)
		k.turns(10)
		k.pile("single", "shop", "r", 1, 0, nil)
		if count := k.turns(3); count["shop"] != 1 {
			k.Errorf("behind %d items of another tenant, an item was not among the next 3: %v", n, count)
		}
		k.turns(10)
		k.pile("other", "hog", "r2", 1, 0, nil)
		for i := range 4 {
			if i == 3 {
				k.Errorf("behind %d items of another route, an item was not among the next 3", n)
			} else if k.lease(1, long)[0].Route == "r2" {
				break
			}
		}
	}, 0},
}
