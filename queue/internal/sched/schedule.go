package sched

import "iter"

// A State is what an item is waiting for.
type State uint8

// The states. An item that is new is Busy.
const (
	Busy    State = iota // its owner is about to put it elsewhere
	Waiting              // until it is due
	Leased               // until the lease ends
	Ready                // due, and to be leased
	Held                 // until it is put elsewhere
	states
)

// Counts counts items by State.
type Counts [states]int64

// MaxWeight and MaxCost bound the weight of a line and the cost of an item.
const (
	MaxWeight = 1000
	MaxCost   = 1000
)

// CostUnit is how many octets of content an item has for each 1 of its cost.
const CostUnit = 64 << 10

// An Item is what Add needs to know.
type Item struct {
	Route    string
	Tenant   string
	Priority int   // -128 to 127; the higher goes first
	Size     int64 // of the content: 1 of cost for each begun CostUnit, up to MaxCost
	Weight   int   // of the line from now on, up to MaxWeight; 0: as it is, which is 1 at first
}

// A Schedule knows what is due, and whose turn it is. Times are nanoseconds on a clock of
// the owner's, which may be negative. The zero Schedule is empty.
type Schedule struct {
	now     int64 // of Advance
	running bool  // it was called
	seq     uint32
	turnSeq uint64
	call    uint64
	total   [states]int64
	items   Slab[item]
	bands   Slab[band]
	lines   Slab[line]
	routes  Slab[route]
	tenants Names
	routeOf map[string]Slot
	lineOf  map[lineKey]Slot
	clock   clock
	behind  Slot // the ring of bands that have something due in their heap; whose turn it is
	turn    Slot // the ring of routes that have something ready; whose turn it is
	active  int  // routes in it
}

// count is where all counting is done.
func (s *Schedule) count(b *band, st State, n int) {
	s.total[st] += int64(n)
	s.lines.At(b.line).count[st] += uint32(n)
}

// Len returns how many items there are.
func (s *Schedule) Len() int { return s.items.Len() }

// Has reports whether a Slot is an item's.
func (s *Schedule) Has(i Slot) bool { return s.items.Has(i) }

// Add makes an item, which is Busy. It panics at MaxSlots items.
func (s *Schedule) Add(n Item) Slot {
	l := s.line(n.Route, n.Tenant)
	if n.Weight > 0 {
		s.lines.At(l).weight = uint16(min(n.Weight, MaxWeight))
	}
	i := s.items.Alloc()
	it := s.items.At(i)
	it.band = s.band(l, int8(max(-128, min(n.Priority, 127))))
	it.cost = uint16(min(max(1, (n.Size+CostUnit-1)/CostUnit), MaxCost))
	s.count(s.bands.At(it.band), Busy, 1)
	return i
}

// Remove forgets an item. Its Slot may be used again.
func (s *Schedule) Remove(i Slot) {
	it := s.items.At(i)
	s.take(i, it)
	b := it.band
	s.count(s.bands.At(b), Busy, -1)
	s.items.Free(i)
	s.dropBand(b)
}

// Move gives an item another route. Its state stays, and so does its due time, but
// that an item which is Ready becomes due now.
func (s *Schedule) Move(i Slot, r string) {
	it := s.items.At(i)
	old, due, flags := it.state(), it.due, it.is&^stateBits
	was := it.band
	b := s.bands.At(was)
	l := s.lines.At(b.line)
	weight := l.weight
	if s.routes.At(l.route).name == r {
		return
	}
	priority, tenant := b.priority, s.tenants.Text(l.tenant)
	s.take(i, it)
	s.count(s.bands.At(was), Busy, -1)
	n := len(s.lineOf)
	to := s.line(r, tenant)
	if len(s.lineOf) > n {
		s.lines.At(to).weight = weight
	}
	it.band = s.band(to, priority)
	s.count(s.bands.At(it.band), Busy, 1)
	s.dropBand(was)
	switch it.is |= flags; old {
	case Waiting:
		s.place(i, it, Waiting, due)
	case Ready:
		s.place(i, it, Waiting, due)
	case Leased:
		s.place(i, it, Leased, due)
	case Held:
		s.rest(it, Held)
	}
}

// take makes an item Busy, wherever it was.
func (s *Schedule) take(i Slot, it *item) {
	switch st := it.state(); st {
	case Busy:
		return
	case Ready:
		s.delist(it)
	case Waiting, Leased:
		s.pull(i, it)
		s.count(s.bands.At(it.band), st, -1)
	case Held:
		s.count(s.bands.At(it.band), Held, -1)
	}
	it.set(Busy)
	s.count(s.bands.At(it.band), Busy, 1)
}

// rest makes an item that is Busy Held.
func (s *Schedule) rest(it *item, st State) {
	b := s.bands.At(it.band)
	s.count(b, Busy, -1)
	s.count(b, st, 1)
	it.set(st)
}

// place makes an item that is Busy Waiting or Leased.
func (s *Schedule) place(i Slot, it *item, st State, due int64) {
	b := s.bands.At(it.band)
	it.due = due
	s.count(b, Busy, -1)
	if s.running {
		it.due = max(due, s.now)
		if st == Waiting && due <= s.now && (b.root == 0 || s.items.At(b.root).due > s.now) {
			s.enlist(i, it)
			return
		}
	}
	s.count(b, st, 1)
	it.set(st)
	s.push(i, it)
	s.notice(it.band, b)
}

// notice looks whether a band has something due that nobody has seen yet.
func (s *Schedule) notice(i Slot, b *band) {
	if s.running && !b.behind && b.root != 0 && s.items.At(b.root).due <= s.now {
		s.fallBehind(i, b)
		s.promote(i, promoteAtOnce)
	}
}

// Wait makes an item wait until it is due. A time that is past is now, unless Advance was never called. What it was before does not matter, here and in what follows; that its
// lease lapsed, or that it was held, is forgotten.
func (s *Schedule) Wait(i Slot, due int64) {
	it := s.items.At(i)
	s.take(i, it)
	it.is &= stateBits
	s.place(i, it, Waiting, due)
}

// Hold makes an item Held.
func (s *Schedule) Hold(i Slot) {
	it := s.items.At(i)
	s.take(i, it)
	it.is &= stateBits
	s.rest(it, Held)
}

// Reserve makes an item Busy. FromHold and Lapsed stay as they are.
func (s *Schedule) Reserve(i Slot) { s.take(i, s.items.At(i)) }

// Lend makes an item Leased until a time. If it was Held, or was lent when it was, it
// is Held again when the lease has ended by itself.
func (s *Schedule) Lend(i Slot, until int64) {
	it := s.items.At(i)
	held := it.state() == Held
	s.take(i, it)
	if held {
		it.is |= flagHeld
	}
	s.place(i, it, Leased, until)
}

// State returns the state of an item. One that is due counts as Ready, or Held, even if
// Advance has not got to it.
func (s *Schedule) State(i Slot) State { return s.items.At(i).at(s.now, s.running) }

func (it *item) at(now int64, running bool) State {
	st := it.state()
	if (st == Waiting || st == Leased) && running && it.due <= now {
		if it.has(flagHeld) {
			return Held
		}
		return Ready
	}
	return st
}

// Due returns when an item is due, or was, or when its lease ends. It means nothing for one that is Held.
func (s *Schedule) Due(i Slot) int64 { return s.items.At(i).due }

// FromHold reports whether a lease of an item that was held is under way.
func (s *Schedule) FromHold(i Slot) bool { return s.items.At(i).has(flagHeld) }

// Lapsed reports whether an item is due because its lease ended by itself.
func (s *Schedule) Lapsed(i Slot) bool {
	it := s.items.At(i)
	return it.has(flagLapsed) || it.state() == Leased && !it.has(flagHeld) && s.State(i) == Ready
}

// Route returns the route of an item.
func (s *Schedule) Route(i Slot) string {
	return s.routes.At(s.lineFor(i).route).name
}

// Tenant returns the tenant of an item.
func (s *Schedule) Tenant(i Slot) string { return s.tenants.Text(s.lineFor(i).tenant) }

// Weight returns the weight of an item's line.
func (s *Schedule) Weight(i Slot) int { return int(s.lineFor(i).weight) }

// Priority returns the priority of an item.
func (s *Schedule) Priority(i Slot) int { return int(s.bands.At(s.items.At(i).band).priority) }

func (s *Schedule) lineFor(i Slot) *line {
	return s.lines.At(s.bands.At(s.items.At(i).band).line)
}

// All yields the items in the order of their Slots. Nothing may change meanwhile.
func (s *Schedule) All() iter.Seq[Slot] {
	return func(yield func(Slot) bool) {
		for i := range s.items.All() {
			if !yield(i) {
				return
			}
		}
	}
}

// Sum returns how many items are counted.
func (c Counts) Sum() (n int64) {
	for _, k := range c {
		n += k
	}
	return n
}
