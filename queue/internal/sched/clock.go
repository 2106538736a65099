package sched

// A clock has the bands with something in their heap that are not behind; the one that is due
// first at index 0. It is a heap itself.
type clock struct{ v vector[alarm] }

type alarm struct {
	due  int64
	seq  uint32
	band Slot
}

// set puts a band where it belongs after its heap's root changed.
func (c *clock) set(s *Schedule, i Slot, b *band) {
	if b.root == 0 || b.behind {
		if b.at != 0 {
			c.remove(s, int(b.at)-1)
			b.at = 0
		}
		return
	}
	it := s.items.At(b.root)
	a := alarm{it.due, it.seq, i}
	if b.at == 0 {
		c.v.push(a)
		b.at = uint32(c.v.n)
	}
	at := int(b.at) - 1
	*c.v.at(at) = a
	c.down(s, c.up(s, at))
}

func (c *clock) less(i, j int) bool {
	a, b := c.v.at(i), c.v.at(j)
	return a.due < b.due || a.due == b.due && int32(a.seq-b.seq) < 0
}

func (c *clock) swap(s *Schedule, i, j int) {
	a, b := c.v.at(i), c.v.at(j)
	*a, *b = *b, *a
	s.bands.At(a.band).at, s.bands.At(b.band).at = uint32(i)+1, uint32(j)+1
}

func (c *clock) up(s *Schedule, i int) int {
	for i > 0 && c.less(i, (i-1)/2) {
		c.swap(s, i, (i-1)/2)
		i = (i - 1) / 2
	}
	return i
}

func (c *clock) down(s *Schedule, i int) {
	for {
		k := 2*i + 1
		if k >= c.v.n {
			return
		}
		if k+1 < c.v.n && c.less(k+1, k) {
			k++
		}
		if !c.less(k, i) {
			return
		}
		c.swap(s, i, k)
		i = k
	}
}

func (c *clock) remove(s *Schedule, i int) {
	last := c.v.n - 1
	if i != last {
		c.swap(s, i, last)
	}
	c.v.pop()
	if i != last {
		c.down(s, c.up(s, i))
	}
}
