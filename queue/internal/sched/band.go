package sched

// An item is 32 octets, and has no pointers.
type item struct {
	due  int64
	band Slot
	seq  uint32 // in the heap: orders what is due at the same time
	// In the band's heap, which is a leftist one: the children, and the parent. In its list: next is
	// right, previous is up.
	left, right, up Slot
	cost            uint16
	rank            uint8 // in the heap: 1 more than that of right
	is              uint8 // State, and flags
}

const (
	stateBits  = 1<<3 - 1
	flagLapsed = 1 << 3 // a lease ended by itself
	flagHeld   = 1 << 4 // a lease, and it was held before
)

func (it *item) state() State     { return State(it.is & stateBits) }
func (it *item) set(s State)      { it.is = it.is&^stateBits | uint8(s) }
func (it *item) has(f uint8) bool { return it.is&f != 0 }

// A band is the items of a line that have one priority.
type band struct {
	line     Slot
	next     Slot // band of the line, with a lower priority
	items    uint32
	root     Slot   // of the heap of those waiting and leased
	first    Slot   // of the list of those ready
	last     Slot   //
	at       uint32 // in the clock, from 1; 0: not there
	after    Slot   // in the ring of bands that are behind
	before   Slot
	priority int8
	behind   bool // there are items in the heap that are due
}

func (s *Schedule) less(a, b *item) bool {
	return a.due < b.due || a.due == b.due && int32(a.seq-b.seq) < 0
}

// meld makes one heap of two, and returns its root. It goes down the right
// sides, which are not longer than the logarithm of the size.
func (s *Schedule) meld(i, j Slot) Slot {
	if i == 0 {
		return j
	}
	if j == 0 {
		return i
	}
	a, b := s.items.At(i), s.items.At(j)
	if s.less(b, a) {
		i, j, a = j, i, b
	}
	a.right = s.meld(a.right, j)
	s.items.At(a.right).up = i
	s.lean(a)
	return i
}

func (s *Schedule) rank(i Slot) uint8 {
	if i == 0 {
		return 0
	}
	return s.items.At(i).rank
}

// lean puts the higher side to the left, and reports whether the rank changed.
func (s *Schedule) lean(it *item) bool {
	if s.rank(it.left) < s.rank(it.right) {
		it.left, it.right = it.right, it.left
	}
	r := s.rank(it.right) + 1
	changed := r != it.rank
	it.rank = r
	return changed
}

// push puts an item into the heap of its band.
func (s *Schedule) push(i Slot, it *item) {
	b := s.bands.At(it.band)
	s.seq++
	it.seq, it.left, it.right, it.up, it.rank = s.seq, 0, 0, 0, 1
	b.root = s.meld(b.root, i)
	s.items.At(b.root).up = 0
	if b.root == i && !b.behind {
		s.clock.set(s, it.band, b)
	}
}

// pull takes an item out of the heap of its band.
func (s *Schedule) pull(i Slot, it *item) {
	b := s.bands.At(it.band)
	sub := s.meld(it.left, it.right)
	up := it.up
	if sub != 0 {
		s.items.At(sub).up = up
	}
	it.left, it.right, it.up = 0, 0, 0
	if up == 0 {
		b.root = sub
		if !b.behind {
			s.clock.set(s, it.band, b)
		}
		return
	}
	p := s.items.At(up)
	if p.left == i {
		p.left = sub
	} else {
		p.right = sub
	}
	for s.lean(p) && p.up != 0 { // ranks are logarithms: this is not far
		p = s.items.At(p.up)
	}
}

// enlist puts an item, which is in no place, at the end of the list of those ready.
func (s *Schedule) enlist(i Slot, it *item) {
	b := s.bands.At(it.band)
	s.count(b, Ready, 1)
	it.set(Ready)
	it.up, it.right, it.left = b.last, 0, 0
	if b.last == 0 {
		b.first = i
	} else {
		s.items.At(b.last).right = i
	}
	b.last = i
	l := s.lines.At(b.line)
	l.ready++
	if l.at == 0 {
		s.enter(b.line, l)
	}
}

// delist takes an item out of the list. The line stays where it is in its
// route's turns until it has nothing left.
func (s *Schedule) delist(it *item) {
	b := s.bands.At(it.band)
	s.count(b, Ready, -1)
	if it.up == 0 {
		b.first = it.right
	} else {
		s.items.At(it.up).right = it.right
	}
	if it.right == 0 {
		b.last = it.up
	} else {
		s.items.At(it.right).up = it.up
	}
	it.right, it.up = 0, 0
	l := s.lines.At(b.line)
	l.ready--
	if b.first == 0 && b.behind {
		s.promote(it.band, promoteAtOnce) // what is taken next is the first of what is due
	}
	if l.ready == 0 {
		s.leave(l)
	}
}

// promoteAtOnce is how many items of one band are made ready before it is another's turn.
const promoteAtOnce = 32

// promote makes ready up to n items of a band that is behind, those that are due
// first, and returns how many there were.
func (s *Schedule) promote(i Slot, n int) int {
	b := s.bands.At(i)
	done := 0
	for ; done < n && b.root != 0; done++ {
		x := b.root
		it := s.items.At(x)
		if it.due > s.now {
			break
		}
		s.ripen(x, it, b)
	}
	if b.root == 0 || s.items.At(b.root).due > s.now {
		s.catchUp(i, b)
	}
	return done
}

// ripen does with an item in the heap what is to be done when it is due.
func (s *Schedule) ripen(i Slot, it *item, b *band) {
	s.pull(i, it)
	s.count(b, it.state(), -1)
	if it.has(flagHeld) {
		it.is &^= flagHeld | flagLapsed
		it.set(Held)
		s.count(b, Held, 1)
		return
	}
	if it.state() == Leased {
		it.is |= flagLapsed
	}
	s.enlist(i, it)
}

// fallBehind puts a band that has something due into the ring of those that
// are behind.
func (s *Schedule) fallBehind(i Slot, b *band) {
	b.behind = true
	s.clock.set(s, i, b)
	if s.behind == 0 {
		s.behind, b.before, b.after = i, i, i
		return
	}
	first := s.bands.At(s.behind)
	b.before, b.after = first.before, s.behind
	s.bands.At(b.before).after, first.before = i, i
}

func (s *Schedule) catchUp(i Slot, b *band) {
	b.behind = false
	if b.after == i {
		s.behind = 0
	} else {
		s.bands.At(b.before).after, s.bands.At(b.after).before = b.after, b.before
		if s.behind == i {
			s.behind = b.after
		}
	}
	b.before, b.after = 0, 0
	s.clock.set(s, i, b)
}
