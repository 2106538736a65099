package queuetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// checkModel compares a store with a model of the contract over random
// histories: what is leased, to whom, when, in which order, and with which memory.
//
// In the model, time moves in whole seconds, and all delays but 0 end half a
// second between, so that a store may keep time to the millisecond, and no rule
// is tested at the instant at which it changes.
func checkModel(t *testing.T, h Harness) {
	for range pick(0, 1, 4, 50) { // times -rapid.checks
		checkHistories(t, h)
	}
}

func checkHistories(t *testing.T, h Harness) {
	rapid.Check(t, func(rt *rapid.T) {
		rapid.SyncTest(rt, func(rt *rapid.T) {
			m := &model{h: h, t: t, s: h.Open(t), messages: map[mailspine.MsgID]*modelMessage{}}
			defer func() { m.s.Close() }()
			actions := map[string]func(*rapid.T){
				"put": m.put, "lease": m.lease, "settle": m.settle, "abandon": m.abandon, "extend": m.extend,
				"sleep": m.sleep, "read": m.read, "": m.check,
			}
			if h.Reopen != nil {
				actions["reopen"] = m.reopen
			}
			if _, ok := m.s.(queue.Inspector); ok {
				actions["list"] = m.list
			}
			if _, ok := m.s.(queue.Controller); ok {
				actions["control"], actions["take"] = m.control, m.take
			}
			if rapid.Bool().Draw(rt, "weighted") {
				m.weights = map[string]int{"shop": 3, "news": 2}
			}
			rt.Repeat(actions)
		})
	})
}

type model struct {
	h        Harness
	t        *testing.T
	s        queue.Store
	messages map[mailspine.MsgID]*modelMessage // with those that are finished
	items    []*modelItem                      // that are not finished
	leases   []modelLease                      // all that were ever given
	weights  map[string]int                    // of tenants; nil: all are 1
}

type modelMessage struct {
	items    int
	size     int64
	rcpts    []mailspine.Address
	finished time.Time
}

type modelItem struct {
	msg      mailspine.MsgID
	route    queue.Route
	tenant   string
	priority int
	open     []int
	last     map[int]queue.Result
	attempts int
	put      time.Time
	due      time.Time
	held     bool
	leased   bool
	hold     string      // why it is held, also while it is leased; "": it is not
	loose    bool        // where it is in its line is not known
	before   time.Time   // when it would be due, had it not been taken before; zero: it was not
	token    queue.Token // the last that was given
}

type modelLease struct {
	it    *modelItem
	token queue.Token
}

var (
	modelRoutes  = []queue.Route{"a.example", "b.example", "c.example"}
	modelTenants = []string{"", "shop", "news"}
)

func drawDelay(rt *rapid.T, label string) time.Duration {
	d := time.Duration(rapid.SampledFrom([]int{0, 0, 1, 2, 90, 4000}).Draw(rt, label)) * time.Second
	if d > 0 {
		d += time.Second / 2
	}
	return d
}

func (it *modelItem) isLeased(now time.Time) bool { return it.leased && now.Before(it.due) }
func (it *modelItem) isDue(now time.Time) bool    { return !it.held && !now.Before(it.due) }

func (it *modelItem) state(now time.Time) queue.ItemState {
	switch {
	case it.held:
		return queue.ItemHeld
	case it.isLeased(now):
		return queue.ItemLeased
	case it.isDue(now):
		return queue.ItemDue
	}
	return queue.ItemWaiting
}

// pass does what time has done: what was held is held again when its lease has ended.
func (m *model) pass() {
	now := time.Now()
	for _, it := range m.items {
		if it.leased && !now.Before(it.due) {
			it.leased, it.held = false, it.hold != ""
		}
	}
}

// known tells what is stored or has a tombstone.
func (m *model) known(id mailspine.MsgID) bool {
	msg := m.messages[id]
	return msg != nil && (msg.items > 0 || time.Since(msg.finished) <= queue.TombstoneTTL)
}

func (m *model) draw(rt *rapid.T) (queue.Message, mailspine.Content) {
	id := mailspine.MsgID(fmt.Sprintf("m%d", rapid.IntRange(0, 30).Draw(rt, "id")))
	if msg := m.messages[id]; msg != nil && msg.items == 0 && time.Since(msg.finished) == queue.TombstoneTTL {
		time.Sleep(time.Second)
	}
	msg := queue.Message{Envelope: &mailspine.Envelope{ID: id, Tenant: rapid.SampledFrom(modelTenants).Draw(rt, "tenant")}}
	msg.Envelope.Priority = rapid.SampledFrom([]int{0, 0, 0, -9, 5}).Draw(rt, "priority")
	msg.Weight = m.weights[msg.Envelope.Tenant]
	for i, r := range rapid.Permutation(modelRoutes).Draw(rt, "routes")[:rapid.IntRange(1, 3).Draw(rt, "items")] {
		n := queue.NewItem{Route: r}
		for j := range rapid.IntRange(1, 3).Draw(rt, "recipients") {
			n.Recipients = append(n.Recipients, len(msg.Envelope.Recipients))
			msg.Envelope.Recipients = append(msg.Envelope.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: fmt.Sprintf("u%d%d", i, j), Domain: string(r)}})
		}
		msg.Items = append(msg.Items, n)
	}
	msg.Delay = drawDelay(rt, "delay")
	if rapid.IntRange(0, 9).Draw(rt, "hold") == 0 {
		msg.Hold = "held"
	}
	return msg, text(string(id))
}

func (m *model) stored(msg queue.Message, c mailspine.Content) {
	id := msg.Envelope.ID
	if m.known(id) {
		return
	}
	stored := &modelMessage{items: len(msg.Items), size: c.Size()}
	for _, r := range msg.Envelope.Recipients {
		stored.rcpts = append(stored.rcpts, r.Address)
	}
	m.messages[id] = stored
	for _, n := range msg.Items {
		m.items = append(m.items, &modelItem{
			msg: id, route: n.Route, tenant: msg.Envelope.Tenant, priority: msg.Envelope.Priority, open: n.Recipients, last: map[int]queue.Result{},
			put: time.Now(), due: time.Now().Add(msg.Delay), held: msg.Hold != "", hold: msg.Hold,
		})
	}
}

func (m *model) put(rt *rapid.T) {
	msg, c := m.draw(rt)
	if err := m.s.Put(context.Background(), msg, c); err != nil {
		rt.Fatalf("Put: %v", err)
	}
	m.stored(msg, c)
}

func (m *model) lease(rt *rapid.T) {
	req := queue.LeaseRequest{
		Max: rapid.IntRange(1, 6).Draw(rt, "max"), TTL: drawDelay(rt, "ttl") + 30500*time.Millisecond,
		Exclude: rapid.SliceOfNDistinct(rapid.SampledFrom(modelRoutes), 0, 2, rapid.ID[queue.Route]).Draw(rt, "exclude"),
	}
	if req.TTL%time.Second == 0 {
		req.TTL += time.Second / 2
	}
	leases, err := m.s.Lease(context.Background(), req)
	if err != nil {
		rt.Fatalf("Lease: %v", err)
	}
	m.pass()
	now := time.Now()
	due := slices.DeleteFunc(slices.Clone(m.items), func(it *modelItem) bool {
		return !it.isDue(now) || slices.Contains(req.Exclude, it.route)
	})
	if len(leases) != min(req.Max, len(due)) {
		rt.Fatalf("Lease of at most %d returned %d, %d are due", req.Max, len(leases), len(due))
	}
	byRoute, byTenant := map[queue.Route]int{}, map[string]int{}
	lane := func(it *modelItem) string { return string(it.route) + " " + it.tenant }
	for _, l := range leases {
		i := slices.IndexFunc(due, func(it *modelItem) bool { return it.is(l) && it.route == l.Route })
		if i < 0 {
			rt.Fatalf("leased %s for %s, which is not due", l.Envelope.ID, l.Route)
		}
		it := due[i]
		for _, other := range due {
			if lane(other) == lane(it) && (other.priority > it.priority || other.priority == it.priority && other.due.Before(it.due) && !it.loose && !other.loose) {
				rt.Fatalf("%s, due at %v, priority %d, was leased before %s, due at %v, priority %d, of the same tenant and route",
					it.msg, it.due, it.priority, other.msg, other.due, other.priority)
			}
		}
		due = slices.Delete(due, i, i+1)
		byRoute[it.route]++
		byTenant[lane(it)]++
		m.compare(rt, it, l, now)
		m.lend(it, l, now.Add(req.TTL))
	}
	// Fair: who was left waiting got as much as any other, but for one.
	for _, it := range due {
		for r, n := range byRoute {
			if n > byRoute[it.route]+1 {
				rt.Fatalf("route %s got %d leases, and %s, which had more, %d", r, n, it.route, byRoute[it.route])
			}
		}
		for _, tenant := range modelTenants {
			if n := byTenant[string(it.route)+" "+tenant]; !m.fair(tenant, n, it.tenant, byTenant[lane(it)]) {
				rt.Fatalf("on route %s, tenant %q got %d leases, and %q, which had more, %d; weights are %v", it.route, tenant, n, it.tenant, byTenant[lane(it)], m.weights)
			}
		}
	}
}

// fair tells whether a tenant may have got n leases, when another that had
// items left got few. Between equals that is one more at most; else each may be in its
// turn when the leases begin, and when they end.
func (m *model) fair(tenant string, n int, other string, few int) bool {
	if m.weights == nil {
		return n <= few+1
	}
	w, v := max(1, m.weights[tenant]), max(1, m.weights[other])
	return n*v <= few*w+w*v+w+v
}

// is tells whether a lease is of the item: no two items share a recipient.
func (it *modelItem) is(l queue.Lease) bool {
	return it.msg == l.Envelope.ID && len(l.Recipients) > 0 && slices.Contains(it.open, l.Recipients[0].Index)
}

// lend makes the item's the lease.
func (m *model) lend(it *modelItem, l queue.Lease, until time.Time) {
	it.before = time.Time{}
	if !it.held && time.Now().Before(it.due) {
		it.before = it.due
	}
	it.leased, it.held, it.loose, it.token, it.due = true, false, false, l.Token, until
	m.leases = append(m.leases, modelLease{it, l.Token})
}

func (m *model) compare(rt *rapid.T, it *modelItem, l queue.Lease, now time.Time) {
	if it.token != (queue.Token{}) && (l.Token.Item != it.token.Item || l.Token.Epoch <= it.token.Epoch) {
		rt.Fatalf("lease %+v of %s after %+v", l.Token, it.msg, it.token)
	}
	if l.Attempts != it.attempts || l.Envelope.Tenant != it.tenant || l.Size != m.messages[it.msg].size {
		rt.Fatalf("lease of %s: %+v, want %d attempts, tenant %q", it.msg, l, it.attempts, it.tenant)
	}
	if age := now.Sub(it.put); (l.Age - age).Abs() > time.Second/10 {
		rt.Fatalf("age of %s is %v, want %v", it.msg, l.Age, age)
	}
	if len(l.Recipients) != len(it.open) || len(l.Envelope.Recipients) != len(it.open) {
		rt.Fatalf("%s has recipients %+v, want %v", it.msg, l.Recipients, it.open)
	}
	for j, r := range l.Recipients {
		want := it.last[it.open[j]]
		if r.Index != it.open[j] || r.Warned != want.Warned || (r.Last.Status == nil) != (want.Status == nil) ||
			r.Last.Status != nil && r.Last.Status.Message != want.Status.Message {
			rt.Fatalf("%s, recipient %d: %+v, want %+v", it.msg, it.open[j], r, want)
		}
	}
}

func (m *model) someLease(rt *rapid.T) modelLease {
	if len(m.leases) == 0 {
		rt.Skip("no leases yet")
	}
	// Mostly new ones: old ones are lost.
	return m.leases[len(m.leases)-1-rapid.IntRange(0, min(len(m.leases)-1, 12)).Draw(rt, "lease")]
}

func (l modelLease) isHeld(now time.Time) bool { return l.it.isLeased(now) && l.it.token == l.token }

func (m *model) settle(rt *rapid.T) {
	l := m.someLease(rt)
	it := l.it
	s := queue.Settlement{Token: l.token, Delay: drawDelay(rt, "delay")}
	for range it.open {
		r := queue.Result{State: rapid.SampledFrom([]queue.State{queue.Open, queue.Delivered, queue.Failed}).Draw(rt, "state")}
		if r.State != queue.Delivered {
			r.Status = mailspine.Errorf(450, "4.2.1", "No. %d", rapid.IntRange(0, 99).Draw(rt, "status"))
			r.Warned = rapid.Bool().Draw(rt, "warned")
		}
		s.Results = append(s.Results, r)
	}
	if rapid.IntRange(0, 3).Draw(rt, "emit") == 0 {
		msg, c := m.draw(rt)
		s.Emit = []queue.Emission{{Message: msg, Content: c}}
	}
	now := time.Now() // draw may have slept
	errs, err := m.s.Settle(context.Background(), s)
	if err != nil || len(errs) != 1 {
		rt.Fatalf("Settle: %v, %v", errs, err)
	}
	if !l.isHeld(now) {
		if !errors.Is(errs[0], queue.ErrLeaseLost) {
			rt.Fatalf("Settle with a lost lease: %v", errs[0])
		}
		return
	}
	if errs[0] != nil {
		rt.Fatalf("Settle: %v", errs[0])
	}
	it.leased, it.hold, it.before = false, "", time.Time{}
	it.attempts++
	var open []int
	for j, r := range s.Results {
		if i := it.open[j]; r.State == queue.Open {
			open = append(open, i)
			r.Warned = r.Warned || it.last[i].Warned
			it.last[i] = r
		}
	}
	it.open, it.due = open, now.Add(s.Delay)
	if len(open) == 0 {
		m.drop(it, now)
	}
	for _, e := range s.Emit {
		m.stored(e.Message, e.Content)
	}
}

func (m *model) drop(it *modelItem, now time.Time) {
	m.items = slices.DeleteFunc(m.items, func(x *modelItem) bool { return x == it })
	msg := m.messages[it.msg]
	if msg.items--; msg.items == 0 {
		msg.finished = now
	}
}

func (m *model) abandon(rt *rapid.T) {
	l := m.someLease(rt)
	delay := drawDelay(rt, "delay")
	if err := m.s.Abandon(context.Background(), delay, "later", l.token); err != nil {
		rt.Fatalf("Abandon: %v", err)
	}
	if now := time.Now(); l.isHeld(now) {
		l.it.leased, l.it.held, l.it.due, l.it.before = false, l.it.hold != "", now.Add(delay), time.Time{}
	}
}

func (m *model) extend(rt *rapid.T) {
	l := m.someLease(rt)
	ttl := drawDelay(rt, "ttl") + 30*time.Second
	if ttl%time.Second == 0 {
		ttl += time.Second / 2
	}
	lost, err := m.s.Extend(context.Background(), ttl, l.token)
	if err != nil {
		rt.Fatalf("Extend: %v", err)
	}
	now := time.Now()
	if l.isHeld(now) != (len(lost) == 0) {
		rt.Fatalf("Extend: lost %v, the lease is held: %v", lost, l.isHeld(now))
	}
	if len(lost) == 0 {
		l.it.due = now.Add(ttl)
	}
}

func (m *model) sleep(rt *rapid.T) {
	time.Sleep(time.Duration(rapid.SampledFrom([]int{1, 2, 31, 95, 3700}).Draw(rt, "seconds")) * time.Second)
}

func (m *model) read(rt *rapid.T) {
	id := mailspine.MsgID(fmt.Sprintf("m%d", rapid.IntRange(0, 30).Draw(rt, "id")))
	r, err := m.s.Open(context.Background(), id)
	if msg := m.messages[id]; msg == nil || msg.items == 0 {
		if !errors.Is(err, queue.ErrNotFound) {
			rt.Fatalf("Open of %s, which is not stored: %v", id, err)
		}
		return
	}
	if err != nil {
		rt.Fatalf("Open of %s: %v", id, err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "Subject: "+string(id)+"\r\n\r\nHello.\r\n" {
		rt.Fatalf("content of %s is %q, %v", id, b, err)
	}
}

// reopen gives back all leases before, so that it does not matter whether a store
// ends them when it is opened.
func (m *model) reopen(rt *rapid.T) {
	now := time.Now()
	for _, it := range m.items {
		if it.isLeased(now) {
			if err := m.s.Abandon(context.Background(), 0, "", it.token); err != nil {
				rt.Fatalf("Abandon: %v", err)
			}
			it.leased, it.held, it.due, it.before = false, it.hold != "", now, time.Time{}
		}
	}
	m.s = m.h.Reopen(m.t, m.s)
	in, ok := m.s.(queue.Inspector)
	if !ok {
		return
	}
	// A store may keep leases in memory. What was taken while it waited, and came
	// back because its lease ended, may wait again then.
	for got, err := range in.List(context.Background(), queue.Filter{State: queue.ItemWaiting}) {
		if err != nil {
			rt.Fatalf("List: %v", err)
		}
		for _, it := range m.items {
			if it.is(queue.Lease{Envelope: got.Envelope, Recipients: got.States}) && it.before.After(it.due) {
				it.due = it.before
			}
		}
	}
}

// check compares the counts after each step.
func (m *model) check(rt *rapid.T) {
	m.pass()
	in, ok := m.s.(queue.Inspector)
	if !ok {
		return
	}
	var want queue.Stats
	now := time.Now()
	for _, msg := range m.messages {
		if msg.items > 0 {
			want.Messages++
			want.Bytes += msg.size
		}
	}
	groups := map[groupOf]queue.Group{}
	for _, it := range m.items {
		g := queue.Group{Route: it.route, Tenant: it.tenant, Items: 1}
		*map[queue.ItemState]*int64{queue.ItemDue: &g.Due, queue.ItemWaiting: &g.Waiting, queue.ItemLeased: &g.Leased, queue.ItemHeld: &g.Held}[it.state(now)]++
		addGroup(&want, g)
		old := groups[groupOf{it.route, it.tenant}]
		g.Items, g.Due, g.Waiting, g.Leased, g.Held = g.Items+old.Items, g.Due+old.Due, g.Waiting+old.Waiting, g.Leased+old.Leased, g.Held+old.Held
		groups[groupOf{it.route, it.tenant}] = g
	}
	if got, err := in.Stats(context.Background()); err != nil || got != want {
		rt.Fatalf("Stats are %+v, %v; want %+v", got, err, want)
	}
	n := 0
	for g, err := range in.Breakdown(context.Background()) {
		if n++; err != nil || groups[groupOf{g.Route, g.Tenant}] != g {
			rt.Fatalf("Breakdown yields %+v, %v; want %+v", g, err, groups[groupOf{g.Route, g.Tenant}])
		}
	}
	if n != len(groups) {
		rt.Fatalf("Breakdown has %d groups, want %d", n, len(groups))
	}
}
