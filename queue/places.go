package queue

import "time"

const (
	// maxHolds bounds the routes remembered as held, and so the Exclude of a
	// lease. A route beyond it is leased and given back again.
	maxHolds = 1000
	// lookEvery is how long a held route is left out of leasing at a stretch. Then the items
	// that have become due are looked at, each once, so that senders are told of delays, and what has no
	// more time is given up: that comes later by this at most.
	lookEvery = 15 * time.Minute
	// lookFor bounds a look. A longer queue is looked at in several.
	lookFor = 5 * time.Minute
)

// A routeHold is what is remembered of a route that the Gate holds.
type routeHold struct {
	end   time.Time // of the hold, as the Gate said last
	since time.Time // when it was looked at last
	until time.Time // it is left out until then
	look  time.Time // it is being looked at, until then at the latest: not left out, though held
	asked bool      // it is in the lease that is being asked for, while it is looked at
}

func (h routeHold) excludes(now time.Time) bool { return now.Before(h.until) && !now.Before(h.look) }

// leaveOut keeps the route from being leased until the hold ends, or it is to be looked at.
func (h routeHold) leaveOut() routeHold {
	h.look, h.asked = time.Time{}, false
	h.until = h.end
	if end := h.since.Add(lookEvery); end.Before(h.until) {
		h.until = end
	}
	return h
}

// places counts what is being delivered, so that no route gets more than its
// share, and knows which routes are held. It is guarded by Queue.mu. What it
// needs for a lease it knows without a look at all that is running.
type places struct {
	all, each int // at most so many items, and so many of one route
	running   map[*delivery]struct{}
	perRoute  map[Route]int
	level     []int              // level[n] is how many routes have n items running, n from 1 to each
	full      map[Route]struct{} // those that have all of them
	holds     map[Route]routeHold

	// What room makes of holds, for as long as it is true: with a thousand of them it would be most of the
	// work of a lease.
	known  bool
	left   []Route   // the routes that are left out
	next   time.Time // when the first of their holds ends; zero: none
	purged time.Time // when purge looked last
}

func newPlaces(all, each int) places {
	each = min(each, all)
	return places{
		all: all, each: each, running: map[*delivery]struct{}{}, perRoute: map[Route]int{},
		level: make([]int, each+1), full: map[Route]struct{}{}, holds: map[Route]routeHold{},
	}
}

func (p *places) start(d *delivery) {
	p.running[d] = struct{}{}
	n := p.perRoute[d.lease.Route]
	p.move(d.lease.Route, n, n+1)
}

func (p *places) stop(d *delivery) {
	if _, ok := p.running[d]; !ok {
		return // twice is once
	}
	delete(p.running, d)
	n := p.perRoute[d.lease.Route]
	p.move(d.lease.Route, n, n-1)
}

// move notes that a route has n items running, and had one more or less.
func (p *places) move(r Route, was, n int) {
	p.level[was]--
	p.level[n]++
	if n == 0 {
		delete(p.perRoute, r)
	} else {
		p.perRoute[r] = n
	}
	switch p.each {
	case n:
		p.full[r] = struct{}{}
	case was:
		delete(p.full, r)
	}
}

// room returns how many items may be leased, which routes not, and when a hold
// ends next (0: there is none). The number is so small that no route can get more
// than its share.
func (p *places) room(now time.Time) (n int, exclude []Route, next time.Duration) {
	n = min(p.all-len(p.running), p.each)
	for k := p.each - 1; k > 0; k-- {
		if p.level[k] > 0 {
			n = min(n, p.each-k)
			break
		}
	}
	if !p.known || !p.next.IsZero() && !now.Before(p.next) {
		p.leftOut(now)
	}
	exclude = make([]Route, 0, len(p.full)+len(p.left))
	exclude = append(exclude, p.left...)
	for r := range p.full {
		exclude = append(exclude, r)
	}
	if !p.next.IsZero() {
		next = max(p.next.Sub(now), time.Nanosecond)
	}
	return n, exclude, next
}

// leftOut finds the routes that are left out because they are held.
func (p *places) leftOut(now time.Time) {
	p.known, p.left, p.next = true, p.left[:0], time.Time{}
	for r, h := range p.holds {
		if now.Before(h.look) {
			_, full := p.full[r]
			h.asked = !full
			p.holds[r] = h
			p.known = false // full changes
		}
		if h.excludes(now) {
			p.left = append(p.left, r)
			if p.next.IsZero() || h.until.Before(p.next) {
				p.next = h.until
			}
		}
	}
}

// hold keeps a route from being leased until then, or until it is looked at.
func (p *places) hold(r Route, now, until time.Time) {
	h, ok := p.holds[r]
	if !ok && len(p.holds) >= maxHolds && !p.purge(now) {
		return
	}
	p.known = false
	h.end = until
	switch {
	case !ok:
		h.since = now
	case now.Before(h.look):
		p.holds[r] = h
		return
	case now.Sub(h.since) >= lookEvery:
		h.since, h.until, h.look = now, now, now.Add(lookFor)
		p.holds[r] = h
		return
	}
	p.holds[r] = h.leaveOut()
}

// pass notes that the Gate let an item through. If it held another one meanwhile, that counts as it did,
// but need not be looked at soon.
func (p *places) pass(r Route, now time.Time) {
	h, ok := p.holds[r]
	switch {
	case !ok:
	case h.excludes(now):
		h.since = now
		p.holds[r] = h
	default:
		p.forget(r)
	}
}

// forget makes the Gate be asked for a route again; "": for all.
func (p *places) forget(r Route) {
	p.known = false
	if r == "" {
		clear(p.holds)
	} else {
		delete(p.holds, r)
	}
}

// purge forgets the holds that are over, and reports whether there were any. It looks once a second at most.
func (p *places) purge(now time.Time) (any bool) {
	if since := now.Sub(p.purged); since >= 0 && since < time.Second {
		return false
	}
	p.purged = now
	for r, h := range p.holds {
		if !now.Before(h.end) {
			delete(p.holds, r)
			any, p.known = true, false
		}
	}
	return any
}

// looked ends the looks that are under way: the lease that was asked for found nothing more that is due.
func (p *places) looked(now time.Time) {
	for r, h := range p.holds {
		if now.Before(h.look) && h.asked {
			h.since, p.known = now, false
			p.holds[r] = h.leaveOut()
		}
	}
}

// held counts the routes that are held.
func (p *places) held(now time.Time) (n int) {
	for _, h := range p.holds {
		if now.Before(h.end) {
			n++
		}
	}
	return n
}
