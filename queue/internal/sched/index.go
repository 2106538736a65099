package sched

import (
	"iter"
	"math/bits"
)

// An Index finds Slots by a hash of what they stand for. It takes 8 to 12 octets for each. It grows
// and shrinks by one bucket at a time (linear hashing), so that no single call
// takes long. The zero Index with Hash set is empty.
//
// Slots with equal hashes are all found: whoever needs to know which of them is meant compares
// what they stand for.
type Index struct {
	// Hash returns the hash of a Slot that is in the Index, always the same. Its
	// lower bits choose the bucket.
	Hash func(Slot) uint64

	heads vector[Slot]
	next  Slab[Slot] // by Slot: the next in its bucket
}

// Len returns how many Slots there are.
func (x *Index) Len() int { return x.next.Len() }

// bucket returns where a hash belongs: with 2^k <= n < 2^(k+1) buckets, those from n on
// are not split off yet.
func (x *Index) bucket(hash uint64) int {
	n := uint64(x.heads.n)
	mask := uint64(1) << bits.Len64(n-1)
	b := hash & (mask - 1)
	if b >= n {
		b &= mask>>1 - 1
	}
	return int(b)
}

// Add puts a Slot in, which must not be in already.
func (x *Index) Add(i Slot) {
	if x.heads.n == 0 {
		x.heads.push(0)
	}
	x.link(i, x.next.Claim(i), x.Hash(i))
	if x.next.Len() > x.heads.n {
		x.split()
	}
}

func (x *Index) link(i Slot, next *Slot, hash uint64) {
	head := x.heads.at(x.bucket(hash))
	*next, *head = *head, i
}

// split adds a bucket, and moves there what belongs there now.
func (x *Index) split() {
	x.heads.push(0)
	last := x.heads.n - 1
	head := x.heads.at(last &^ (1 << (bits.Len(uint(last)) - 1)))
	i := *head
	*head = 0
	x.relink(i)
}

// relink puts a bucket's Slots where they belong.
func (x *Index) relink(i Slot) {
	for i != 0 {
		next := x.next.At(i)
		after := *next
		x.link(i, next, x.Hash(i))
		i = after
	}
}

// Remove takes a Slot out.
func (x *Index) Remove(i Slot) {
	for at := x.heads.at(x.bucket(x.Hash(i))); *at != 0; at = x.next.At(*at) {
		if *at == i {
			*at = *x.next.At(i)
			break
		}
	}
	x.next.Free(i)
	for range 2 { // faster than it grows, so as to keep up
		if n := x.heads.n; x.next.Len() < n/2 {
			// The last bucket goes back to the one that it was split off.
			i := *x.heads.at(n - 1)
			x.heads.pop()
			x.relink(i)
		}
	}
}

// Find yields the Slots with a hash. The Index must not change meanwhile.
func (x *Index) Find(hash uint64) iter.Seq[Slot] {
	return func(yield func(Slot) bool) {
		if x.heads.n == 0 {
			return
		}
		for i := *x.heads.at(x.bucket(hash)); i != 0; i = *x.next.At(i) {
			if x.Hash(i) == hash && !yield(i) {
				return
			}
		}
	}
}
