package durabletest

import "math/rand/v2"

// sector is what a disk writes whole or not at all.
const sector = 512

// Crash returns the disk as it may be found after the power was cut at this
// moment, if it was not before: what is synced, and of the rest the part that the seed chooses.
//
//	seed 0   nothing that is not synced
//	seed 1   everything
//	even     what was done up to some moment, and nothing later
//	odd      any part, in sectors, in any order
//
// d is not changed, and the two share nothing. The new disk has the same limit
// and no cut ahead.
func (d *Disk) Crash(seed uint64) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.init()
	r := rand.New(rand.NewPCG(seed, 0x6d61696c))
	c := &crash{seed: seed, r: r, nodes: map[*node]*node{}, until: r.IntN(d.seq + 2)}
	out := &Disk{locks: map[string]bool{}, limit: d.limit}

	// Names are decided before the tree is copied, on a copy of each directory.
	c.names = map[*node]map[string]*node{}
	kept := map[*half]bool{}
	var keep func(h *half)
	keep = func(h *half) {
		if h == nil || kept[h] || h.done {
			return
		}
		keep(h.after)
		kept[h] = true
		m := c.dir(h.dir)
		if h.to == nil {
			delete(m, h.name)
		} else {
			m[h.name] = h.to
		}
		keep(h.with)
	}
	for _, h := range d.meta {
		if c.keep(h.seq) {
			keep(h)
		}
	}
	out.root = c.copy(d.root)
	out.root.links = 1
	for _, n := range c.nodes {
		if !n.dir {
			out.used += int64(len(n.data))
		}
	}
	return out
}

type crash struct {
	seed  uint64
	r     *rand.Rand
	until int
	nodes map[*node]*node
	names map[*node]map[string]*node
}

func (c *crash) keep(seq int) bool {
	switch {
	case c.seed == 0:
		return false
	case c.seed == 1:
		return true
	case c.seed%2 == 0:
		return seq < c.until
	}
	return c.r.IntN(2) == 0
}

func (c *crash) dir(n *node) map[string]*node {
	m := c.names[n]
	if m == nil {
		m = make(map[string]*node, len(n.durable))
		for k, v := range n.durable {
			m[k] = v
		}
		c.names[n] = m
	}
	return m
}

func (c *crash) copy(n *node) *node {
	if done := c.nodes[n]; done != nil {
		return done
	}
	out := &node{dir: n.dir, perm: n.perm, mod: n.mod}
	c.nodes[n] = out
	if n.dir {
		out.names, out.durable = map[string]*node{}, map[string]*node{}
		for k, v := range c.dir(n) {
			child := c.copy(v)
			child.links++
			out.names[k], out.durable[k] = child, child
		}
		return out
	}
	out.synced = append([]byte(nil), n.synced...)
	for _, w := range n.pending {
		for _, p := range c.parts(w) {
			out.synced = p.apply(out.synced)
		}
	}
	out.data = append([]byte(nil), out.synced...)
	return out
}

// parts returns what of a write reached the disk.
func (c *crash) parts(w write) []write {
	if c.seed < 2 || c.seed%2 == 0 || w.cut {
		if c.keep(w.seq) {
			return []write{w}
		}
		return nil
	}
	share := c.r.IntN(5) // of sectors that are kept: none to all, in quarters
	var out []write
	for off, rest := w.off, w.data; len(rest) > 0; {
		n := min(int64(len(rest)), sector-off%sector)
		if c.r.IntN(4) < share {
			out = append(out, write{seq: w.seq, off: off, data: rest[:n]})
		}
		off, rest = off+n, rest[n:]
	}
	return out
}
