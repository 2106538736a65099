package filequeue

import (
	"hash/maphash"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// Tombstones are the IDs of finished messages, as two 64-bit hashes each, with seeds
// that nobody outside knows: a message is lost if its hashes are those of another.
type tombstones struct {
	max         int
	seeds       [2]maphash.Seed
	list        sched.Slab[tombstone]
	index       sched.Index // by the first hash
	first, last slot        // in the order in which they were buried, which is by their end, but for those read from the journal
}

type tombstone struct {
	key  [2]uint64
	end  int64
	next slot
}

// graveCost is what a tombstone takes in the journal at most, in octets.
const graveCost = 96

func (t *tombstones) init(most int) {
	t.max = most
	t.seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}
	t.index.Hash = func(i slot) uint64 { return t.list.At(i).key[0] }
}

func (t *tombstones) len() int { return t.list.Len() }

func (t *tombstones) key(id mailspine.MsgID) [2]uint64 {
	return [2]uint64{maphash.String(t.seeds[0], string(id)), maphash.String(t.seeds[1], string(id))}
}

// until returns the latest end of the tombstones with a key; ok is false if there are none.
func (t *tombstones) until(k [2]uint64) (end int64, ok bool) {
	for i := range t.index.Find(k[0]) {
		if x := t.list.At(i); x.key == k && (!ok || x.end > end) {
			end, ok = x.end, true
		}
	}
	return end, ok
}

func (t *tombstones) has(id mailspine.MsgID, now int64) bool {
	t.expire(now)
	end, ok := t.until(t.key(id))
	return ok && end >= now
}

// bury remembers an ID until end, or longer if it was to be already.
func (t *tombstones) bury(id mailspine.MsgID, end int64) {
	k := t.key(id)
	if old, ok := t.until(k); ok && old >= end {
		return
	}
	i := t.list.Alloc()
	*t.list.At(i) = tombstone{key: k, end: end}
	t.index.Add(i)
	if t.last == 0 {
		t.first = i
	} else {
		t.list.At(t.last).next = i
	}
	t.last = i
}

// expire forgets some of those that have had their time, or are too many: more than are
// buried, and not so many that anybody waits.
func (t *tombstones) expire(now int64) {
	for range 100 {
		if t.first == 0 {
			return
		}
		x := t.list.At(t.first)
		if x.end >= now && t.list.Len() <= t.max {
			return
		}
		next := x.next
		t.index.Remove(t.first)
		t.list.Free(t.first)
		if t.first = next; next == 0 {
			t.last = 0
		}
	}
}
