package queuetest

import (
	"context"
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// filter draws a Filter. Ages are half a second off, so that none is at its bound.
func (m *model) filter(rt *rapid.T) queue.Filter {
	var f queue.Filter
	odds := func(what string) bool { return rapid.IntRange(0, 4).Draw(rt, "by "+what) == 0 }
	if odds("ID") {
		f.ID = mailspine.MsgID(fmt.Sprintf("m%d", rapid.IntRange(0, 30).Draw(rt, "id")))
	}
	if odds("item") && len(m.leases) > 0 {
		f.Item = rapid.SampledFrom(m.leases).Draw(rt, "item").token.Item
	}
	if odds("route") {
		f.Route = rapid.SampledFrom(modelRoutes).Draw(rt, "route")
	}
	if odds("tenant") {
		f.Tenant = rapid.SampledFrom(modelTenants).Draw(rt, "tenant")
	}
	if odds("domain") {
		f.Domain = string(rapid.SampledFrom(modelRoutes).Draw(rt, "domain"))
	}
	if odds("recipient") {
		f.Recipient = fmt.Sprintf("u%d%d@%s", rapid.IntRange(0, 2).Draw(rt, "item"), rapid.IntRange(0, 2).Draw(rt, "number"), rapid.SampledFrom(modelRoutes).Draw(rt, "of"))
	}
	if odds("state") {
		f.State = queue.ItemState(rapid.IntRange(0, int(queue.ItemHeld)).Draw(rt, "state"))
	}
	if odds("age") {
		f.MinAge = time.Duration(rapid.SampledFrom([]int{0, 1, 90}).Draw(rt, "least"))*time.Second + time.Second/2
		f.MaxAge = f.MinAge + time.Duration(rapid.SampledFrom([]int{1, 90, 4000}).Draw(rt, "most"))*time.Second
	}
	return f
}

// matching returns the items that match, by looking at each.
func (m *model) matching(f queue.Filter) []*modelItem {
	var list []*modelItem
	now := time.Now()
	for _, it := range m.items {
		// The item ID is not known before the first lease.
		show := queue.Item{ID: it.token.Item, Message: it.msg, Route: it.route, State: it.state(now), Age: now.Sub(it.put)}
		show.Envelope = &mailspine.Envelope{Tenant: it.tenant}
		for _, i := range it.open {
			show.Envelope.Recipients = append(show.Envelope.Recipients, mailspine.Recipient{Address: m.messages[it.msg].rcpts[i]})
		}
		if f.Match(show) {
			list = append(list, it)
		}
	}
	return list
}

func (m *model) list(rt *rapid.T) {
	f := m.filter(rt)
	now := time.Now()
	want := m.matching(f)
	n := 0
	for got, err := range m.s.(queue.Inspector).List(context.Background(), f) {
		if err != nil {
			rt.Fatalf("List: %v", err)
		}
		n++
		found := false
		for _, it := range want {
			if !it.is(queue.Lease{Envelope: got.Envelope, Recipients: got.States}) {
				continue
			}
			found = true
			due := it.due.Sub(now)
			if it.held {
				due = 0
			}
			if got.State != it.state(now) || got.Route != it.route || got.Attempts != it.attempts || len(got.States) != len(it.open) ||
				(got.Age-now.Sub(it.put)).Abs() > time.Second/10 || got.State != queue.ItemDue && (got.Due-due).Abs() > time.Second/10 ||
				got.State == queue.ItemDue && got.Due > 0 || it.held && got.Reason != it.hold {
				rt.Fatalf("List shows %+v; want state %v, route %s, due in %v, held for %q", got, it.state(now), it.route, due, it.hold)
			}
		}
		if !found {
			rt.Fatalf("List by %+v shows %s by %s, which does not match", f, got.Message, got.Route)
		}
	}
	if n != len(want) {
		rt.Fatalf("List by %+v shows %d items, want %d", f, n, len(want))
	}
}

func (m *model) control(rt *rapid.T) {
	f := m.filter(rt)
	c := queue.Command{Op: queue.Op(rapid.IntRange(int(queue.OpHold), int(queue.OpReroute)).Draw(rt, "operation"))}
	switch c.Op {
	case queue.OpHold:
		c.Reason = rapid.SampledFrom([]string{"held", "operator"}).Draw(rt, "reason")
	case queue.OpReroute:
		c.Route = rapid.SampledFrom(modelRoutes).Draw(rt, "to")
	case queue.OpDelete: // not too often all of it
		f.ID = mailspine.MsgID(fmt.Sprintf("m%d", rapid.IntRange(0, 30).Draw(rt, "delete")))
	}
	got, err := m.s.(queue.Controller).Control(context.Background(), f, c)
	if err != nil {
		rt.Fatalf("Control: %v", err)
	}
	now := time.Now()
	var want queue.Changed
	for _, it := range m.matching(f) {
		want.Matched++
		st := it.state(now)
		switch {
		case st == queue.ItemLeased:
			want.Leased++
			continue
		case c.Op == queue.OpHold && it.hold != c.Reason:
			it.held, it.hold, it.before = true, c.Reason, time.Time{}
		case c.Op == queue.OpRelease && it.held:
			it.held, it.hold, it.due, it.before = false, "", now, time.Time{}
		case c.Op == queue.OpFlush && st == queue.ItemWaiting:
			it.due, it.before = now, time.Time{}
		case c.Op == queue.OpDelete:
			m.drop(it, now)
		case c.Op == queue.OpReroute && it.route != c.Route:
			it.route, it.loose = c.Route, true
		default:
			continue
		}
		want.Changed++
	}
	if got != want {
		rt.Fatalf("Control by %+v of %+v: %+v, want %+v", f, c, got, want)
	}
}

func (m *model) take(rt *rapid.T) {
	f := m.filter(rt)
	n := rapid.IntRange(1, 4).Draw(rt, "max")
	ttl := drawDelay(rt, "ttl") + 30*time.Second
	if ttl%time.Second == 0 {
		ttl += time.Second / 2
	}
	now := time.Now()
	var free []*modelItem
	for _, it := range m.matching(f) {
		if !it.isLeased(now) {
			free = append(free, it)
		}
	}
	leases, err := m.s.(queue.Controller).Take(context.Background(), f, n, ttl)
	if err != nil {
		rt.Fatalf("Take: %v", err)
	}
	if len(leases) != min(n, len(free)) {
		rt.Fatalf("Take of at most %d returned %d, %d match and are not leased", n, len(leases), len(free))
	}
	for _, l := range leases {
		found := false
		for i, it := range free {
			if it.is(l) && it.route == l.Route {
				m.compare(rt, it, l, now)
				m.lend(it, l, now.Add(ttl))
				free = append(free[:i], free[i+1:]...)
				found = true
				break
			}
		}
		if !found {
			rt.Fatalf("took %s for %s, which does not match %+v, or is leased", l.Envelope.ID, l.Route, f)
		}
	}
}
