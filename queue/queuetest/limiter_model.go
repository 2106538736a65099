package queuetest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine/queue"
)

// checkLimiterModel compares a Limiter with a model of the contract over random histories: what is granted, how much of it, when a
// refusal ends, and what is left.
//
// In the model time moves in steps of ten seconds, in which a whole number of each Rate comes back, so that
// no rule is tested in the middle of a rounding.
func checkLimiterModel(t *testing.T, h LimiterHarness) {
	rapid.Check(t, func(rt *rapid.T) {
		rapid.SyncTest(rt, func(rt *rapid.T) {
			m := &limiterModel{h: h, t: t, l: h.Open(t, nil)}
			defer func() { m.l.Close() }()
			m.keys = []*limiterCount{
				{limit: queue.Limit{Kind: queue.Slots, Key: "x"}},
				{limit: queue.Limit{Kind: queue.Slots, Key: "y"}},
				{limit: queue.Limit{Kind: queue.Quota, Key: "x", Per: time.Minute}},
				{limit: queue.Limit{Kind: queue.Quota, Key: "x", Per: time.Hour, Offset: 10 * time.Minute}},
				{limit: queue.Limit{Kind: queue.Quota, Key: "y", Per: queue.Day}},
				{limit: queue.Limit{Kind: queue.Rate, Key: "x", Per: time.Minute}},
				{limit: queue.Limit{Kind: queue.Rate, Key: "y", Per: 50 * time.Second}},
			}
			for _, c := range m.keys {
				c.drained = time.Now()
			}
			actions := map[string]func(*rapid.T){
				"take": m.take, "take again": m.take, "return": m.giveBack, "renew": m.renew, "sleep": m.sleep, "": m.check,
			}
			if h.Reopen != nil {
				actions["reopen"] = m.reopen
			}
			rt.Repeat(actions)
		})
	})
}

type limiterModel struct {
	h       LimiterHarness
	t       *testing.T
	l       queue.Limiter
	keys    []*limiterCount
	permits []*limiterPermit // all that were ever given
}

type limiterCount struct {
	limit   queue.Limit // with the Max of the last call
	used    int64
	period  int64
	drained time.Time
	returns int // how often something was given back to a Rate
}

type limiterPermit struct {
	id    queue.PermitID
	n     int64
	end   time.Time
	over  bool
	parts []limiterPart
}

type limiterPart struct {
	c      *limiterCount
	n      int64
	scaled bool
	period int64
	at     time.Time
	// returns is the count's, before this was taken.
	returns int
}

// now brings the model to the present.
func (m *limiterModel) now() time.Time {
	t := time.Now()
	for _, p := range m.permits {
		if !p.over && !t.Before(p.end) {
			m.end(p, 0)
		}
	}
	for _, c := range m.keys {
		switch c.limit.Kind {
		case queue.Quota:
			if p := (t.UnixNano() + int64(c.limit.Offset)) / int64(c.limit.Per); p != c.period {
				c.period, c.used = p, 0
			}
		case queue.Rate:
			c.used = max(0, c.used-c.limit.Max*int64(t.Sub(c.drained))/int64(c.limit.Per))
			c.drained = t
		}
	}
	return t
}

func (m *limiterModel) end(p *limiterPermit, unused int64) {
	p.over = true
	unused = min(max(unused, 0), p.n)
	for _, x := range p.parts {
		switch {
		case x.c.limit.Kind == queue.Slots:
			x.c.used -= x.n
		case x.c.limit.Kind == queue.Quota && x.period != x.c.period:
		case x.scaled:
			x.c.used -= unused
		case unused == p.n:
			x.c.used -= x.n
		}
	}
}

// limits draws some limits, with a policy that is often the last one.
func (m *limiterModel) limits(rt *rapid.T) (limits []queue.Limit, counts []*limiterCount) {
	for i, c := range m.keys {
		if rapid.IntRange(0, 2).Draw(rt, "with") > 0 {
			continue
		}
		l := &m.keys[i].limit
		if l.Max == 0 || rapid.IntRange(0, 9).Draw(rt, "new policy") == 0 {
			switch {
			case l.Kind != queue.Rate:
				l.Max = rapid.Int64Range(0, 30).Draw(rt, "max")
			case l.Per == time.Minute:
				l.Max = rapid.SampledFrom([]int64{6, 12, 60}).Draw(rt, "max")
				l.Burst = rapid.SampledFrom([]int64{0, 1, 5, 100}).Draw(rt, "burst")
			default:
				l.Max = rapid.SampledFrom([]int64{5, 25}).Draw(rt, "max")
			}
		}
		x := *l
		x.N = rapid.SampledFrom([]int64{0, 0, 0, 1, 3}).Draw(rt, "own n")
		limits, counts = append(limits, x), append(counts, c)
	}
	return limits, counts
}

func (m *limiterModel) take(rt *rapid.T) {
	m.now() // what came back until now came back by the old policy
	limits, counts := m.limits(rt)
	if len(limits) == 0 {
		rt.Skip("no limits")
	}
	t := m.now()
	req := queue.TakeRequest{Limits: limits, N: rapid.Int64Range(1, 12).Draw(rt, "n")}
	if rapid.Bool().Draw(rt, "partial") {
		req.Min = rapid.Int64Range(1, req.N).Draw(rt, "min")
	}
	req.TTL = rapid.SampledFrom([]time.Duration{30 * time.Second, 5 * time.Minute, 2 * time.Hour}).Draw(rt, "ttl")

	n, over, least := req.N, false, req.Min
	if least == 0 {
		least = req.N
	}
	for i, c := range counts {
		room := limits[i].Max - c.used
		if limits[i].Kind == queue.Rate && limits[i].Burst > 0 {
			room = limits[i].Burst - c.used
		}
		switch own := ownN(limits[i]); {
		case own > 0:
			over = over || room < own
		case room < least:
			over = true
		default:
			n = min(n, room)
		}
	}
	p, err := m.l.Take(context.Background(), req)
	var refused *queue.OverLimit
	switch {
	case over && !errors.As(err, &refused):
		rt.Fatalf("Take(%+v) returned %+v, %v: there is no room", req, p, err)
	case over:
		return
	case err != nil:
		rt.Fatalf("Take(%+v): %v: there is room for %d", req, err, n)
	case p.N != n || p.TTL != req.TTL || p.ID == 0:
		rt.Fatalf("Take(%+v) returned %+v, want %d", req, p, n)
	}
	mp := &limiterPermit{id: p.ID, n: n, end: t.Add(req.TTL)}
	for i, c := range counts {
		x := limiterPart{c: c, n: ownN(limits[i]), period: c.period, at: t, returns: c.returns}
		if x.n == 0 {
			x.n, x.scaled = n, true
		}
		c.used += x.n
		mp.parts = append(mp.parts, x)
	}
	if slices.ContainsFunc(m.permits, func(q *limiterPermit) bool { return q.id == p.ID }) {
		rt.Fatalf("the permit %d was given twice", p.ID)
	}
	m.permits = append(m.permits, mp)
}

// ownN is what a limit takes whatever the request says; 0: as the request says.
func ownN(l queue.Limit) int64 {
	if l.N == 0 && l.Kind == queue.Slots {
		return 1
	}
	return l.N
}

func (m *limiterModel) giveBack(rt *rapid.T) {
	if len(m.permits) == 0 {
		rt.Skip("no permits")
	}
	t := m.now()
	p := rapid.SampledFrom(m.permits).Draw(rt, "permit")
	unused := rapid.Int64Range(-1, 15).Draw(rt, "unused")
	before := map[*limiterCount]int64{}
	for _, c := range m.keys {
		before[c] = c.used
	}
	if !p.over {
		m.end(p, unused)
	}
	if err := m.l.Return(context.Background(), p.id, unused); err != nil {
		rt.Fatalf("Return: %v", err)
	}
	// How much of a Rate's that was taken earlier is there still is up to the driver: between nothing and
	// what the model gave back. The latest is all there at the same moment, unless others were given back
	// since: a driver need not know which of them has begun to drain.
	for _, x := range p.parts {
		if x.c.limit.Kind != queue.Rate {
			continue
		}
		x.c.used = max(0, x.c.used)
		u := m.usage(rt, x.c)
		if u.Used < x.c.used || u.Used > before[x.c] {
			rt.Fatalf("after Return %v has %d used, not from %d to %d", x.c.limit, u.Used, x.c.used, before[x.c])
		}
		if x.at.Equal(t) && x.returns == x.c.returns && len(m.permits) > 0 && m.permits[len(m.permits)-1] == p && u.Used != x.c.used {
			rt.Fatalf("given back at once, %v has %d used, not %d", x.c.limit, u.Used, x.c.used)
		}
		x.c.used = u.Used
		x.c.returns++
	}
}

func (m *limiterModel) renew(rt *rapid.T) {
	if len(m.permits) == 0 {
		rt.Skip("no permits")
	}
	t := m.now()
	ps := rapid.SliceOfN(rapid.SampledFrom(m.permits), 1, 3).Draw(rt, "permits")
	ttl := rapid.SampledFrom([]time.Duration{30 * time.Second, 10 * time.Minute}).Draw(rt, "ttl")
	var ids, want []queue.PermitID
	for _, p := range ps {
		ids = append(ids, p.id)
		if p.over {
			want = append(want, p.id)
		} else {
			p.end = t.Add(ttl)
		}
	}
	ended, err := m.l.Renew(context.Background(), ttl, ids...)
	if err != nil || !slices.Equal(ended, want) {
		rt.Fatalf("Renew returned %v, %v; want %v", ended, err, want)
	}
}

func (m *limiterModel) sleep(rt *rapid.T) {
	m.now()
	time.Sleep(10 * time.Second * time.Duration(rapid.SampledFrom([]int{1, 1, 2, 3, 7, 40, 1000, 10_000}).Draw(rt, "steps")))
}

func (m *limiterModel) reopen(*rapid.T) {
	m.now()
	m.l = m.h.Reopen(m.t, m.l)
	for _, p := range m.permits {
		// Permits may end with the process. If they do not, a driver has nodes, and no Reopen.
		if !p.over {
			m.end(p, 0)
		}
	}
}

func (m *limiterModel) usage(rt *rapid.T, c *limiterCount) queue.Usage {
	u, err := m.l.Usage(context.Background(), c.limit)
	if err != nil {
		rt.Fatalf("Usage of %v: %v", c.limit, err)
	}
	return u[0]
}

func (m *limiterModel) check(rt *rapid.T) {
	m.now()
	for _, c := range m.keys {
		if c.limit.Max == 0 && c.limit.Kind == queue.Rate {
			continue // not used yet
		}
		if u := m.usage(rt, c); u.Used != c.used {
			rt.Fatalf("%v has %d used, not %d", c.limit, u.Used, c.used)
		}
	}
}
