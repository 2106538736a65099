package sched

import "math"

// What one call of Advance does at most.
const (
	stepBands = 256 // bands found to have something due
	stepItems = 512 // items made ready
)

// Advance says what time it is, which is never before an earlier call's. Items that
// are due are made ready, and so are those whose lease has ended. If there are
// too many for one call, Behind is true after it.
func (s *Schedule) Advance(now int64) {
	if !s.running {
		s.now, s.running = math.MinInt64, true
	}
	s.now = max(s.now, now)
	for range stepBands {
		if s.clock.v.n == 0 || s.clock.v.at(0).due > s.now {
			break
		}
		i := s.clock.v.at(0).band
		b := s.bands.At(i)
		s.ripen(b.root, s.items.At(b.root), b)
		if b.first != 0 && b.root != 0 && s.items.At(b.root).due <= s.now {
			s.fallBehind(i, b) // it has had its turn
		}
	}
	for n := 0; n < stepItems && s.behind != 0; {
		i := s.behind
		s.behind = s.bands.At(i).after
		n += 1 + s.promote(i, promoteAtOnce) // 1 for looking at it
	}
}

// Behind reports whether there is something due that Advance has not got to.
func (s *Schedule) Behind() bool {
	return s.running && (s.behind != 0 || s.clock.v.n > 0 && s.clock.v.at(0).due <= s.now)
}

// Next returns when Advance will have something to do; ok is false if never. While it is Behind,
// that is now.
func (s *Schedule) Next() (due int64, ok bool) {
	switch {
	case s.Behind():
		return s.now, true
	case s.clock.v.n == 0:
		return 0, false
	}
	return s.clock.v.at(0).due, true
}

// Lease lends up to n items that are ready until a time, and appends them to to. It goes
// round the routes, but for those excluded; these keep their turns. It looks at each
// excluded route once.
func (s *Schedule) Lease(to []Slot, n int, until int64, exclude []string) []Slot {
	s.exclude(exclude)
	var aside []Slot
	for n > 0 && s.turn != 0 {
		i := s.turn
		r := s.routes.At(i)
		if r.excluded == s.call {
			s.leaveRing(i, r)
			aside = append(aside, i)
			continue
		}
		s.turn = r.next
		x := s.pick(r)
		it := s.items.At(x)
		it.is &= stateBits
		s.place(x, it, Leased, until)
		to = append(to, x)
		n--
	}
	for k := len(aside) - 1; k >= 0; k-- {
		s.enterRing(aside[k], s.routes.At(aside[k]))
		s.turn = aside[k] // the last of the ring, and now the first
	}
	return to
}

// exclude marks routes for a call, and returns how many of them have something ready.
func (s *Schedule) exclude(list []string) (ready int) {
	s.call++
	for _, name := range list {
		if i, ok := s.routeOf[name]; ok {
			if r := s.routes.At(i); r.excluded != s.call {
				r.excluded = s.call
				if r.next != 0 {
					ready++
				}
			}
		}
	}
	return ready
}

// pick takes out the item of a route whose turn it is, which is Busy then.
func (s *Schedule) pick(r *route) Slot {
	l := s.lines.At(r.turns[0])
	at := l.bands
	for {
		b := s.bands.At(at)
		s.notice(at, b)
		if b.first != 0 {
			break
		}
		at = b.next
	}
	i := s.bands.At(at).first
	it := s.items.At(i)
	s.served(l, it.cost)
	s.take(i, it)
	return i
}

// HasReady reports whether a route that is not excluded has something ready.
func (s *Schedule) HasReady(exclude []string) bool {
	return s.active > 0 && (len(exclude) == 0 || s.active > s.exclude(exclude))
}

// Counts returns how many items there are in each state. It is quick while
// Advance is not Behind, and looks at each item otherwise, which is a matter of milliseconds for a million.
func (s *Schedule) Counts() Counts {
	c := Counts(s.total)
	if s.Behind() {
		s.due(func(_ *item, from, to State) {
			c[from]--
			c[to]++
		})
	}
	return c
}

// Out returns how many items are Leased or Busy, with those whose lease has ended and that Advance has not got to.
func (s *Schedule) Out() int { return int(s.total[Leased] + s.total[Busy]) }

// due calls f for each item whose state Advance will change.
func (s *Schedule) due(f func(it *item, from, to State)) {
	for _, it := range s.items.All() {
		if from, to := it.state(), it.at(s.now, s.running); from != to {
			f(it, from, to)
		}
	}
}

// A Line is what Lines tells of a route and tenant.
type Line struct {
	Route  string
	Tenant string
	Counts Counts
}

// Lines returns the counts of each route and tenant that has items, with the
// same time taken as by Counts.
func (s *Schedule) Lines() []Line {
	list := make([]Line, 0, s.lines.Len())
	var at map[Slot]int
	behind := s.Behind()
	if behind {
		at = make(map[Slot]int, s.lines.Len())
	}
	for i, l := range s.lines.All() {
		x := Line{Route: s.routes.At(l.route).name, Tenant: s.tenants.Text(l.tenant)}
		for st, n := range l.count {
			x.Counts[st] = int64(n)
		}
		if behind {
			at[i] = len(list)
		}
		list = append(list, x)
	}
	if behind {
		s.due(func(it *item, from, to State) {
			c := &list[at[s.bands.At(it.band).line]].Counts
			c[from]--
			c[to]++
		})
	}
	return list
}
