package sched

import (
	"iter"
	"math/bits"
)

// A Slot names a place in a Slab, and an item in a Schedule. The zero Slot is
// none. It is used again after it was freed.
type Slot uint32

// MaxSlots is how many places a Slab has at most.
const MaxSlots = 1<<32 - chunkSize

const (
	chunkBits = 10
	chunkSize = 1 << chunkBits
)

// A Slab keeps values by Slot, in chunks of 1,024. Growing copies no value, and a chunk
// that is empty is given back, but for one. The zero Slab is empty.
//
// Free places are used from the lowest on, so that what is left after a peak gathers in
// few chunks.
type Slab[T any] struct {
	chunks []*[chunkSize]T // nil: empty
	used   []uint16        // places taken, of each chunk
	taken  [][chunkSize / 64]uint64
	low    int // no chunk before it has room
	n      int
	spare  *[chunkSize]T // zero
}

// Len returns how many places are taken.
func (s *Slab[T]) Len() int { return s.n }

// At returns the value of a place that is taken. The pointer is valid until the place is freed.
func (s *Slab[T]) At(i Slot) *T {
	return &s.chunks[i>>chunkBits][i&(chunkSize-1)]
}

// Has reports whether a place is taken.
func (s *Slab[T]) Has(i Slot) bool {
	c := int(i >> chunkBits)
	return i != 0 && c < len(s.taken) && s.taken[c][i%chunkSize/64]&(1<<(i%64)) != 0
}

// Alloc takes the lowest free place, whose value is zero. It panics when there
// are MaxSlots.
func (s *Slab[T]) Alloc() Slot {
	for s.low < len(s.used) && s.used[s.low] == chunkSize {
		s.low++
	}
	if s.low == MaxSlots>>chunkBits {
		panic("sched: the slab is full")
	}
	s.reach(s.low)
	for w, m := range &s.taken[s.low] {
		if m != ^uint64(0) {
			i := Slot(s.low<<chunkBits + w*64 + bits.TrailingZeros64(^m))
			s.take(i)
			return i
		}
	}
	panic("sched: a chunk with room has none")
}

// Claim takes a given place, which must be free, with the value zero: so two Slabs can
// have the same Slots.
func (s *Slab[T]) Claim(i Slot) *T {
	s.reach(int(i >> chunkBits))
	s.take(i)
	return s.At(i)
}

// reach makes chunks up to c. The zero Slot is never free.
func (s *Slab[T]) reach(c int) {
	for len(s.used) <= c {
		s.chunks = append(s.chunks, nil)
		s.used = append(s.used, 0)
		s.taken = append(s.taken, [chunkSize / 64]uint64{})
		if len(s.used) == 1 {
			s.used[0], s.taken[0][0] = 1, 1
		}
	}
}

func (s *Slab[T]) take(i Slot) {
	c := i >> chunkBits
	if s.chunks[c] == nil {
		s.chunks[c], s.spare = s.spare, nil
		if s.chunks[c] == nil {
			s.chunks[c] = new([chunkSize]T)
		}
	}
	s.taken[c][i%chunkSize/64] |= 1 << (i % 64)
	s.used[c]++
	s.n++
}

// Free gives a place back.
func (s *Slab[T]) Free(i Slot) {
	c := int(i >> chunkBits)
	clear(s.chunks[c][i&(chunkSize-1) : i&(chunkSize-1)+1])
	s.taken[c][i%chunkSize/64] &^= 1 << (i % 64)
	s.used[c]--
	s.n--
	s.low = min(s.low, c)
	if s.used[c] == 0 || c == 0 && s.used[c] == 1 {
		s.spare, s.chunks[c] = s.chunks[c], nil
	}
}

// All yields the places that are taken, in order. The Slab must not change
// meanwhile, but for what was yielded last.
func (s *Slab[T]) All() iter.Seq2[Slot, *T] {
	return func(yield func(Slot, *T) bool) {
		for c, chunk := range s.chunks {
			if chunk == nil {
				continue
			}
			for w, m := range s.taken[c] {
				if c == 0 && w == 0 {
					m &^= 1
				}
				for ; m != 0; m &= m - 1 {
					i := w*64 + bits.TrailingZeros64(m)
					if !yield(Slot(c<<chunkBits+i), &chunk[i]) {
						return
					}
				}
			}
		}
	}
}

// A vector is an array that grows and shrinks at its end without being copied.
type vector[T any] struct {
	chunks []*[chunkSize]T
	n      int
}

func (v *vector[T]) at(i int) *T { return &v.chunks[i>>chunkBits][i&(chunkSize-1)] }

func (v *vector[T]) push(x T) {
	if v.n == len(v.chunks)<<chunkBits {
		v.chunks = append(v.chunks, new([chunkSize]T))
	}
	*v.at(v.n) = x
	v.n++
}

// pop forgets the last element. One empty chunk is kept.
func (v *vector[T]) pop() {
	v.n--
	if full := (v.n + chunkSize - 1) >> chunkBits; len(v.chunks) > full+1 {
		v.chunks[len(v.chunks)-1] = nil
		v.chunks = v.chunks[:full+1]
	}
}

// End returns a Slot that is higher than all that are taken.
func (s *Slab[T]) End() Slot { return Slot(len(s.chunks) << chunkBits) }
