package queuetest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// badFilters returns filters that are not valid.
func badFilters() map[string]queue.Filter {
	return map[string]queue.Filter{
		"bad sender": {Sender: "nobody"}, "bad recipient": {Recipient: "a b@c@d"}, "bad domain": {Domain: "exa mple.net"}, "unknown state": {State: queue.ItemHeld + 1},
		"negative age": {MinAge: -1}, "negative upper age": {MaxAge: -1}, "empty range": {MinAge: 2, MaxAge: 1},
	}
}

// mixture puts messages that differ in everything a Filter looks at.
func (k *kit) mixture() {
	k.Helper()
	add := func(id, from, tenant, stream string, items ...string) {
		m := message(id)
		m.Envelope.From = mailspine.Address{}
		if from != "" {
			m.Envelope.From = address(from)
		}
		m.Envelope.Tenant, m.Envelope.Stream = tenant, stream
		for _, it := range items {
			route, list, _ := strings.Cut(it, ": ")
			n := queue.NewItem{Route: queue.Route(route)}
			for _, r := range strings.Fields(list) {
				n.Recipients = append(n.Recipients, len(m.Envelope.Recipients))
				m.Envelope.Recipients = append(m.Envelope.Recipients, mailspine.Recipient{Address: address(r)})
			}
			m.Items = append(m.Items, n)
		}
		k.put(m)
	}
	add("m1", "news@Shop.example", "shop", "bulk", "net: ann@example.net bob@example.net", "com: cid@example.com")
	add("m2", "", "shop", "", "net: Ann@Example.NET")
	add("m3", "boss@bücher.example", "news", "bulk", "com: ann@example.com", "pool/7: dan@bücher.example eve@example.net")
	add("m4", "news@other.example", "", "tx", "net: ann@sub.example.net")
}

type filterCase struct {
	name string
	f    queue.Filter
	want string // as "message/route", sorted
}

var mixtureFilters = []filterCase{
	{"zero", queue.Filter{}, "m1/com m1/net m2/net m3/com m3/pool/7 m4/net"},
	{"ID", queue.Filter{ID: "m1"}, "m1/com m1/net"},
	{"unknown ID", queue.Filter{ID: "m"}, ""},
	{"route", queue.Filter{Route: "net"}, "m1/net m2/net m4/net"},
	{"route as it is", queue.Filter{Route: "NET"}, ""},
	{"tenant", queue.Filter{Tenant: "shop"}, "m1/com m1/net m2/net"},
	{"stream", queue.Filter{Stream: "bulk"}, "m1/com m1/net m3/com m3/pool/7"},
	{"sender", queue.Filter{Sender: "news@shop.example"}, "m1/com m1/net"},
	{"sender, in capitals", queue.Filter{Sender: "NEWS@SHOP.EXAMPLE"}, "m1/com m1/net"},
	{"sender's domain", queue.Filter{Sender: "@other.example"}, "m4/net"},
	{"sender's domain as an A-label", queue.Filter{Sender: "@xn--bcher-kva.example"}, "m3/com m3/pool/7"},
	{"null sender", queue.Filter{Sender: "<>"}, "m2/net"},
	{"recipient", queue.Filter{Recipient: "ann@example.net"}, "m1/net m2/net"},
	{"second recipient", queue.Filter{Recipient: "Bob@example.net"}, "m1/net"},
	{"recipient's domain", queue.Filter{Recipient: "@example.com"}, "m1/com m3/com"},
	{"domain", queue.Filter{Domain: "Example.net"}, "m1/net m2/net m3/pool/7"},
	{"domain, not a parent's", queue.Filter{Domain: "sub.example.net"}, "m4/net"},
	{"domain as a U-label", queue.Filter{Domain: "bücher.example"}, "m3/pool/7"},
	{"recipient and domain", queue.Filter{Recipient: "dan@bücher.example", Domain: "example.net"}, "m3/pool/7"},
	{"tenant and domain", queue.Filter{Tenant: "shop", Domain: "example.net"}, "m1/net m2/net"},
	{"ID and route", queue.Filter{ID: "m3", Route: "com"}, "m3/com"},
	{"sender, stream, route", queue.Filter{Sender: "@shop.example", Stream: "bulk", Route: "com"}, "m1/com"},
	{"ID of another tenant", queue.Filter{ID: "m3", Tenant: "shop"}, ""},
	{"leased", queue.Filter{State: queue.ItemLeased}, ""},
	{"old", queue.Filter{MinAge: 100 * time.Hour}, ""},
	{"young", queue.Filter{MaxAge: 100 * time.Hour}, "m1/com m1/net m2/net m3/com m3/pool/7 m4/net"},
} // never written

func sorted(m map[string]queue.Item) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), " ")
}

func sortedNames(l []queue.Lease) string {
	n := names(l)
	slices.Sort(n)
	return strings.Join(n, " ")
}

var filterCases = []testCase{
	{"FilterList", "A Filter selects the items that match every field that is not zero: List yields those.", func(k *kit) {
		k.mixture()
		for _, c := range mixtureFilters {
			if got := sorted(k.list(c.f)); got != c.want {
				k.Errorf("List by %s: %q, want %q", c.name, got, c.want)
			}
		}
		for name, it := range k.list(queue.Filter{}) {
			if got := sorted(k.list(queue.Filter{Item: it.ID})); got != name {
				k.Errorf("List by the item ID of %s: %q", name, got)
			}
			if got := sorted(k.list(queue.Filter{Item: it.ID, Route: "elsewhere"})); got != "" {
				k.Errorf("List by item ID and another route: %q", got)
			}
		}
	}, inspecting},
	{"FilterControl", "Control carries out a command on the items that match every field of the Filter that is not zero.", func(k *kit) {
		k.mixture()
		for i, c := range mixtureFilters {
			n := int64(len(strings.Fields(c.want)))
			reason := fmt.Sprintf("hold %d", i)
			k.control(c.f, hold(reason), changed(n))
			if !is[queue.Inspector](k) {
				continue
			}
			held := k.list(queue.Filter{State: queue.ItemHeld})
			maps.DeleteFunc(held, func(_ string, it queue.Item) bool { return it.Reason != reason })
			if got := sorted(held); got != c.want {
				k.Errorf("held by %s: %q, want %q", c.name, got, c.want)
			}
		}
	}, controlling},
	{"FilterTake", "Take leases items that match every field of the Filter that is not zero.", func(k *kit) {
		k.mixture()
		k.control(queue.Filter{}, hold("x"), changed(6)) // so that what is abandoned is as it was
		for _, c := range mixtureFilters {
			l := k.take(c.f, 10, long)
			if got := sortedNames(l); got != c.want {
				k.Errorf("Take by %s: %q, want %q", c.name, got, c.want)
			}
			k.abandon(0, l...)
		}
		l := k.takeOne(queue.Filter{ID: "m2"}, long)
		if got := k.take(queue.Filter{Item: l.Token.Item}, 10, long); len(got) != 0 {
			k.Errorf("Take of an item that is leased: %v", names(got))
		}
		k.abandon(0, l)
		if got := k.takeOne(queue.Filter{Item: l.Token.Item}, long); got.Envelope.ID != "m2" {
			k.Errorf("Take by the item ID of m2: %s", got.Envelope.ID)
		}
	}, controlling},
	{"FilterDone", "A Filter looks at the recipients that are not done.", func(k *kit) {
		k.put(message("m1", "example.net: ann bob"))
		s := settlement(k.one(long), queue.Open)
		s.Results[0] = queue.Result{State: queue.Delivered}
		k.settle(s)
		k.control(queue.Filter{Recipient: "ann@example.net"}, remove, unchanged(0))
		k.control(queue.Filter{Recipient: "bob@example.net"}, hold("x"), changed(1))
		k.control(queue.Filter{Domain: "example.net"}, release, changed(1))
	}, controlling},
	{"FilterState", "Filter.State is that of the item: due, waiting until it is due, leased, or held; an item whose lease has ended is due.", func(k *kit) {
		late, held := simple("waiting"), simple("held")
		late.Delay, held.Hold = 100*long, "x"
		k.put(simple("leased"))
		k.one(long)
		k.put(simple("lapsed"))
		k.one(k.tick)
		k.put(simple("due"))
		k.put(late)
		k.put(held)
		time.Sleep(k.tick + k.tick/2)
		for st, want := range map[queue.ItemState]string{
			queue.AnyState:    "due/example.net held/example.net lapsed/example.net leased/example.net waiting/example.net",
			queue.ItemDue:     "due/example.net lapsed/example.net",
			queue.ItemWaiting: "waiting/example.net",
			queue.ItemLeased:  "leased/example.net",
			queue.ItemHeld:    "held/example.net",
		} {
			if is[queue.Inspector](k) {
				if got := sorted(k.list(queue.Filter{State: st})); got != want {
					k.Errorf("List of state %v: %q, want %q", st, got, want)
				}
			}
			n := queue.Changed{Matched: int64(len(strings.Fields(want)))}
			if st == queue.ItemLeased || st == queue.AnyState {
				n.Leased = 1
			}
			if st != queue.AnyState && st != queue.ItemLeased {
				n.Changed = n.Matched
			}
			if st == queue.AnyState {
				n.Changed = n.Matched - 1
			}
			k.control(queue.Filter{State: st}, reroute(queue.Route("smarthost-"+st.String())), n)
			k.control(queue.Filter{}, reroute("example.net"), queue.Changed{Matched: 5, Changed: n.Changed, Leased: 1})
		}
	}, controlling},
	{"FilterAge", "Filter.MinAge and MaxAge bound the time since the message was put: not less than MinAge, less than MaxAge.", func(k *kit) {
		for i := range 4 {
			k.put(simple(fmt.Sprintf("m%d", i)))
			time.Sleep(2 * k.tick)
		}
		// Now they are 8, 6, 4 and 2 ticks old. Another lease does not make them younger.
		k.abandon(0, k.lease(10, long)...)
		for _, c := range []struct {
			f    queue.Filter
			want int64
		}{
			{queue.Filter{MinAge: 3 * k.tick}, 3}, {queue.Filter{MaxAge: 3 * k.tick}, 1}, {queue.Filter{MinAge: 3 * k.tick, MaxAge: 7 * k.tick}, 2},
			{queue.Filter{MinAge: 9 * k.tick}, 0}, {queue.Filter{MaxAge: k.tick}, 0}, {queue.Filter{MaxAge: 9 * k.tick}, 4},
		} {
			k.control(c.f, hold("x"), changed(c.want))
			k.control(c.f, release, changed(c.want))
		}
	}, controlling | hours},
}
