package filequeue

import (
	"hash/maphash"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// What is in memory of messages and items is in slabs without pointers, so that millions of
// them cost the garbage collector nothing. It is guarded by Store.mu.
//
// Times in memory are nanoseconds of the monotonic clock since the store was
// opened; before that they are negative.

type slot = sched.Slot

// A message is what is known of one in memory. Its ID is in the journal only.
type message struct {
	put   int64  // when
	size  uint32 // of the content; isHuge: it is in Store.huge
	hash  uint32
	loc   location
	cost  uint32 // octets of its put entry and content in the journal
	items slot   // the first
	flags uint32
}

// The flags of a message. Below them is how many of its items are Busy.
const (
	isMoving = 1 << 31 // the compactor is copying it
	isFiled  = 1 << 30 // the content, or its end, is in a file: Store.bodies has its number
	busyBits = isFiled - 1
	isHuge   = 1<<32 - 1
)

func (m *message) is(f uint32) bool { return m.flags&f != 0 }

// An item is what is known of one besides what the schedule knows. It has the
// Slot that it has there.
type item struct {
	id     uint64
	epoch  uint64
	msg    slot
	next   slot   // item of the message
	seg    uint32 // of the record with the settle entry that has its recipients; 0: they are in the message's put entry
	offset uint32
	open   uint32 // recipients
	tries  uint16 // up to 65,535
	cost   uint16 // of that settle entry, as costOf has it
}

// costUnit is the unit in which the sizes of settle entries are kept.
const costUnit = 64

// costOf returns how many units a settle entry takes in the journal, but not more than can be
// counted: that is 4 MiB, and far less than such entries are.
func costOf(octets int64) uint16 { return uint16(min((octets+costUnit-1)/costUnit, 1<<16-1)) }

// A location is that of an entry in the journal.
type location struct {
	seg    uint32 // number of the segment; 0: none
	offset uint32 // of the record
	entry  uint32 // in its meta
}

// maxOffset is the size at which a segment takes no more, whatever Options.SegmentSize says, so that
// offsets fit a location. It is reached only if no new segment can be begun.
const maxOffset = 3 << 30

// A spot is a location whose segment is kept open, until it is released.
type spot struct {
	seg    *segment
	offset int64
	entry  uint32
}

// segment returns the one with a number, which must exist. mu is held.
func (s *Store) segment(n uint32) *segment {
	return s.segments[uint64(n)-s.segments[0].number]
}

// keep keeps the segment of a location readable until release; mu is held.
func (s *Store) keep(l location) spot {
	seg := s.segment(l.seg)
	seg.users++
	return spot{seg, int64(l.offset), l.entry}
}

func (s *Store) release(spots ...spot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(spots...)
}

// releaseLocked is release with mu held.
func (s *Store) releaseLocked(spots ...spot) {
	for _, p := range spots {
		if p.seg == nil {
			continue
		}
		if p.seg.users--; p.seg.users == 0 && p.seg.gone {
			p.seg.log.Close()
		}
	}
}

func locate(seg *segment, offset int64, entry uint32) location {
	return location{uint32(seg.number), uint32(offset), entry}
}

// hashID returns the hash by which a message is found.
func (s *Store) hashID(id mailspine.MsgID) uint32 {
	if s.opt.testHash != nil {
		return s.opt.testHash(id)
	}
	return uint32(maphash.String(s.seed, string(id)))
}

func hashItem(id uint64) uint64 { return id * 0x9e3779b97f4a7c15 >> 32 }

// initRecords makes the indexes.
func (s *Store) initRecords() {
	s.seed = maphash.MakeSeed()
	s.byID.Hash = func(i slot) uint64 { return hashItem(s.items.At(i).id) }
	s.byMsg.Hash = func(m slot) uint64 { return uint64(s.messages.At(m).hash) }
	s.bodies, s.huge, s.reasons = map[slot]uint64{}, map[slot]int64{}, map[slot]slot{}
	s.ids, s.unread = map[slot]string{}, map[slot]bool{}
}

// item returns the Slot of an item, or 0. mu is held.
func (s *Store) item(id queue.ItemID) slot {
	for i := range s.byID.Find(hashItem(uint64(id))) {
		if s.items.At(i).id == uint64(id) {
			return i
		}
	}
	return 0
}

// A candidate is a message that may have some ID: only its record can tell.
type candidate struct {
	msg  slot
	put  spot
	when int64 // message.put
	hash uint32
}

// candidates returns the messages whose IDs have the hash of id, with their segments kept. There
// is one if the message is stored, and none otherwise, as a rule. mu is held.
func (s *Store) candidates(id mailspine.MsgID) []candidate {
	var list []candidate
	for m := range s.byMsg.Find(uint64(s.hashID(id))) {
		x := s.messages.At(m)
		list = append(list, candidate{m, s.keep(x.loc), x.put, x.hash})
	}
	return list
}

// choose returns the candidate that has the ID, by reading the records, and releases
// the others; ok is false if none has it. mu is not held.
func (s *Store) choose(id mailspine.MsgID, list []candidate) (c candidate, ok bool, err error) {
	for k, x := range list {
		if ok || err != nil {
			s.release(x.put)
			continue
		}
		var got mailspine.MsgID
		if got, err = readID(x.put); err == nil && got == id {
			c, ok = list[k], true
			continue
		}
		s.release(x.put)
	}
	if ok {
		err = nil
	}
	return c, ok, err
}

// still returns the message of a candidate, or nil if it is finished. A Slot may be another
// message's by now, which was put later. mu is held.
func (s *Store) still(c candidate) *message {
	if !s.messages.Has(c.msg) {
		return nil
	}
	m := s.messages.At(c.msg)
	if m.put != c.when || m.hash != c.hash {
		return nil
	}
	return m
}

// stored reports whether the message of a candidate is still there.
func (s *Store) stored(c candidate) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.still(c) != nil
}

// reason returns that of an item; mu is held.
func (s *Store) reason(i slot) string {
	if n, ok := s.reasons[i]; ok {
		return s.names.Text(n)
	}
	return ""
}

// setReason remembers why an item is held or was abandoned. Reasons that are the
// same are kept once. mu is held.
func (s *Store) setReason(i slot, why string) {
	old, had := s.reasons[i]
	if why != "" {
		s.reasons[i] = s.names.Use(why)
	} else {
		delete(s.reasons, i)
	}
	if had {
		s.names.Drop(old)
	}
}

// insert makes a message of an entry that is durable. Delays begin at base. mu
// is held.
func (s *Store) insert(p *putEntry, at location, cost, base int64) slot {
	mi := s.messages.Alloc()
	m := s.messages.At(mi)
	*m = message{
		put: min(s.now(), p.put-s.wall(0)), hash: s.hashID(p.env.ID), loc: at, cost: uint32(cost),
	}
	s.byMsg.Add(mi)
	size := p.body.size()
	if m.size = uint32(size); size >= isHuge {
		m.size, s.huge[mi] = isHuge, size
	}
	if p.body.file != 0 {
		m.flags |= isFiled
		s.bodies[mi] = p.body.file
	}
	link := &m.items
	for k := range p.items {
		from := &p.items[k]
		i := s.sched.Add(sched.Item{Route: from.route, Tenant: p.env.Tenant, Priority: p.priority, Size: size, Weight: max(1, from.weight)})
		it := s.items.Claim(i)
		*it = item{id: from.id, epoch: from.epoch, msg: mi, tries: triesOf(from.attempts), open: uint32(from.open)}
		*link, link = i, &it.next
		s.byID.Add(i)
		s.setReason(i, from.reason)
		if from.held {
			s.sched.Hold(i)
		} else {
			s.sched.Wait(i, base+from.delay)
		}
	}
	s.bytes += size
	s.live += cost
	return mi
}

func triesOf(attempts uint64) uint16 { return uint16(min(attempts, 1<<16-1)) }

// size returns that of a message's content. mu is held.
func (s *Store) size(mi slot) int64 {
	if n := s.messages.At(mi).size; n != isHuge {
		return int64(n)
	}
	return s.huge[mi]
}

// removeItem forgets an item, and its message with the last: then done is true, and file is
// the number of its body, if it has one. mu is held.
func (s *Store) removeItem(i slot) (done bool, file uint64) {
	it := s.items.At(i)
	mi := it.msg
	m := s.messages.At(mi)
	link := &m.items
	for *link != i { // not many, or they are removed in order
		link = &s.items.At(*link).next
	}
	*link = it.next
	s.live -= int64(it.cost) * costUnit
	s.setReason(i, "")
	delete(s.ids, i)
	delete(s.unread, i)
	s.byID.Remove(i)
	s.items.Free(i)
	s.sched.Remove(i)
	if m.items != 0 {
		return false, 0
	}
	s.bytes -= s.size(mi)
	if m.is(isFiled) {
		file = s.bodies[mi]
		delete(s.bodies, mi)
	}
	delete(s.huge, mi)
	s.live -= int64(m.cost)
	s.byMsg.Remove(mi)
	s.messages.Free(mi)
	return true, file
}

// each yields the items of a message. mu is held; what is yielded may be removed.
func (s *Store) each(m *message) func(yield func(slot) bool) {
	return func(yield func(slot) bool) {
		for i := m.items; i != 0; {
			next := s.items.At(i).next
			if !yield(i) {
				return
			}
			i = next
		}
	}
}
