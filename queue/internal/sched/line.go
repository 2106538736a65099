package sched

import "strings"

// A line is a tenant's items of a route. It is there while there are items of it, in
// any state.
type line struct {
	route, tenant Slot
	bands         Slot // the first, with the highest priority
	ready         uint32
	count         [states]uint32
	weight        uint16
	at            uint32 // in the route's turns, from 1; 0: not there
	had           uint64 // its virtual time: what it has had, by its weight
	seq           uint64 // orders lines that have had the same
}

// A route is there while it has lines.
type route struct {
	name       string
	lines      int
	turns      []Slot // lines that have something ready; a heap, whose turn it is at index 0
	had        uint64 // of the line that was served last
	prev, next Slot   // in the ring of routes with turns
	excluded   uint64 // in the call of this number
}

type lineKey struct{ route, tenant Slot }

// unit is how far an item of cost 1 moves a line of weight 1. Sums do not overflow before 10^10 items of the
// highest cost.
const unit = 1 << 20

// line returns the line of a route and tenant, and makes what is missing.
func (s *Schedule) line(name string, tenant string) Slot {
	r, ok := s.routeOf[name]
	if !ok {
		name = strings.Clone(name)
		r = s.routes.Alloc()
		s.routes.At(r).name = name
		if s.routeOf == nil {
			s.routeOf, s.lineOf = map[string]Slot{}, map[lineKey]Slot{}
		}
		s.routeOf[name] = r
	}
	k := lineKey{r, s.tenants.Use(tenant)}
	i, ok := s.lineOf[k]
	if ok {
		s.tenants.Drop(k.tenant)
		return i
	}
	i = s.lines.Alloc()
	*s.lines.At(i) = line{route: r, tenant: k.tenant, weight: 1}
	s.lineOf[k] = i
	s.routes.At(r).lines++
	return i
}

// band returns the band of a priority of a line for one more item. There are 256 at
// most, and one as a rule.
func (s *Schedule) band(i Slot, priority int8) Slot {
	at := &s.lines.At(i).bands
	for *at != 0 && s.bands.At(*at).priority > priority {
		at = &s.bands.At(*at).next
	}
	if *at == 0 || s.bands.At(*at).priority != priority {
		b := s.bands.Alloc()
		*s.bands.At(b) = band{line: i, priority: priority, next: *at}
		*at = b
	}
	s.bands.At(*at).items++
	return *at
}

// dropBand forgets one item of a band, with the last the band, and so on.
func (s *Schedule) dropBand(i Slot) {
	b := s.bands.At(i)
	if b.items--; b.items > 0 {
		return
	}
	l := s.lines.At(b.line)
	at := &l.bands
	for *at != i {
		at = &s.bands.At(*at).next
	}
	*at = b.next
	li := b.line
	if b.behind {
		s.catchUp(i, b)
	}
	s.bands.Free(i)
	if l.bands != 0 {
		return
	}
	r := s.routes.At(l.route)
	delete(s.lineOf, lineKey{l.route, l.tenant})
	s.tenants.Drop(l.tenant)
	if r.lines--; r.lines == 0 {
		delete(s.routeOf, r.name)
		s.routes.Free(l.route)
	}
	s.lines.Free(li)
}

// enter gives a line that has something ready a place among its route's turns.
func (s *Schedule) enter(i Slot, l *line) {
	r := s.routes.At(l.route)
	from := r.had
	if len(r.turns) > 0 {
		from = s.lines.At(r.turns[0]).had
	}
	// Not before those who wait already: whoever comes again and again with one item
	// would pass them each time.
	l.had = max(l.had, from)
	s.turnSeq++
	l.seq = s.turnSeq
	r.turns = append(r.turns, i)
	l.at = uint32(len(r.turns))
	s.riseTurn(r, len(r.turns)-1)
	if len(r.turns) == 1 {
		s.enterRing(l.route, r)
	}
}

// leave takes a line that has nothing ready any more out of its route's turns.
func (s *Schedule) leave(l *line) {
	r := s.routes.At(l.route)
	i, last := int(l.at)-1, len(r.turns)-1
	l.at = 0
	if i != last {
		r.turns[i] = r.turns[last]
		s.lines.At(r.turns[i]).at = uint32(i) + 1
	}
	r.turns = r.turns[:last]
	if i != last {
		s.sinkTurn(r, s.riseTurn(r, i))
	}
	if last == 0 {
		r.turns = nil
		s.leaveRing(l.route, r)
	} else if cap(r.turns) > 64 && last < cap(r.turns)/4 {
		r.turns = append(make([]Slot, 0, cap(r.turns)/2), r.turns...)
	}
}

// served moves the line on whose turn it was.
func (s *Schedule) served(l *line, cost uint16) {
	r := s.routes.At(l.route)
	r.had = l.had
	l.had += uint64(cost) * unit / uint64(l.weight)
	s.turnSeq++
	l.seq = s.turnSeq
	s.sinkTurn(r, int(l.at)-1)
}

func (s *Schedule) beforeTurn(a, b Slot) bool {
	x, y := s.lines.At(a), s.lines.At(b)
	return x.had < y.had || x.had == y.had && x.seq < y.seq
}

func (s *Schedule) swapTurns(r *route, i, j int) {
	t := r.turns
	t[i], t[j] = t[j], t[i]
	s.lines.At(t[i]).at, s.lines.At(t[j]).at = uint32(i)+1, uint32(j)+1
}

func (s *Schedule) riseTurn(r *route, i int) int {
	for i > 0 && s.beforeTurn(r.turns[i], r.turns[(i-1)/2]) {
		s.swapTurns(r, i, (i-1)/2)
		i = (i - 1) / 2
	}
	return i
}

func (s *Schedule) sinkTurn(r *route, i int) {
	for {
		k := 2*i + 1
		if k >= len(r.turns) {
			return
		}
		if k+1 < len(r.turns) && s.beforeTurn(r.turns[k+1], r.turns[k]) {
			k++
		}
		if !s.beforeTurn(r.turns[k], r.turns[i]) {
			return
		}
		s.swapTurns(r, i, k)
		i = k
	}
}

// enterRing makes a route the last in turn.
func (s *Schedule) enterRing(i Slot, r *route) {
	s.active++
	if s.turn == 0 {
		r.prev, r.next, s.turn = i, i, i
		return
	}
	first := s.routes.At(s.turn)
	r.prev, r.next = first.prev, s.turn
	s.routes.At(r.prev).next, first.prev = i, i
}

func (s *Schedule) leaveRing(i Slot, r *route) {
	s.active--
	if r.next == i {
		s.turn = 0
	} else {
		s.routes.At(r.prev).next, s.routes.At(r.next).prev = r.next, r.prev
		if s.turn == i {
			s.turn = r.next
		}
	}
	r.prev, r.next = 0, 0
}
