package filequeue

import (
	"fmt"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A record's meta is a list of entries, which happen together: each is a kind,
// a length, and content. Version 2 has control entries, and put entries end in weights and the priority. A segment of an
// older version is read, and nothing is appended to it.
const (
	magic         = "MSQUEUE\n"
	formatVersion = 2
)

// The kinds of entries.
const (
	kindOpen    = 'O' // a process began, or a segment
	kindPut     = 'P' // a message, as it was put or as it is now
	kindSettle  = 'S' // the end of a lease, with results
	kindAbandon = 'A' // the end of a lease, without
	kindGraves  = 'T' // tombstones, copied from a segment that goes
	kindControl = 'C' // what an operator did; since version 2
)

func (e *encoder) entry(kind byte, f func(e *encoder)) {
	e.byte(kind)
	e.nest(f)
}

// eachEntry calls f with each entry of a record and its offset in meta.
func eachEntry(meta []byte, f func(offset int, kind byte, d *decoder) error) error {
	d := decoder{b: meta}
	for len(d.b) > 0 {
		at := len(meta) - len(d.b)
		kind := d.byte()
		in := decoder{b: d.raw()}
		if d.err != nil {
			return d.err
		}
		if err := f(at, kind, &in); err != nil {
			return err
		}
		if in.err != nil {
			return in.err
		}
	}
	return nil
}

// entryAt returns the content of the entry at an offset.
func entryAt(meta []byte, offset uint32, kind byte) (*decoder, error) {
	if uint64(offset) >= uint64(len(meta)) || meta[offset] != kind {
		return nil, fmt.Errorf("%w: no entry of kind %c at %d", errDecode, kind, offset)
	}
	d := decoder{b: meta[offset+1:]}
	in := decoder{b: d.raw()}
	return &in, d.err
}

// An openEntry begins a process's life and every segment.
type openEntry struct {
	generation uint64 // the high bits of epochs
	nextItem   uint64
	nextFile   uint64
	stamp      int64 // wall time, in nanoseconds since 1970; so are all stamps
}

func (e *encoder) open(o openEntry) {
	e.entry(kindOpen, func(e *encoder) {
		e.uint(o.generation)
		e.uint(o.nextItem)
		e.uint(o.nextFile)
		e.int(o.stamp)
	})
}

func (d *decoder) open() openEntry {
	return openEntry{d.uint(), d.uint(), d.uint(), d.int()}
}

// A bodyRef says where content is: head is in the body of the record, the rest
// in a file from fileOff on, if file is not 0.
type bodyRef struct {
	headOff, headLen uint64
	file             uint64
	fileOff          int64
	fileSize         int64  // of the whole file
	fileCRC          uint32 // CRC-32C of the whole file; for a program that verifies
}

func (b bodyRef) size() int64 {
	if b.file == 0 {
		return int64(b.headLen)
	}
	return int64(b.headLen) + b.fileSize - b.fileOff
}

// A putEntry is a message: as it was put, or rewritten with what happened to
// its items since.
type putEntry struct {
	env   *mailspine.Envelope
	put   int64 // stamp of the Put
	stamp int64 // of this entry; the items' delays begin here
	body  bodyRef
	items []putItem
	// priority is that of the envelope, which is not read when a store is opened. In entries of version 1 it is 0.
	priority int
	raw      []byte // the envelope, as it is in the record; of putHead only
}

type putItem struct {
	id       uint64
	route    string
	attempts uint64
	epoch    uint64
	delay    int64 // nanoseconds
	held     bool
	reason   string
	rcpts    []recipient // those that are open
	open     int         // how many they are, where rcpts is not decoded
	weight   int         // of its tenant on its route; in entries of version 1: 0
}

// A recipient that is open, and its last result.
type recipient struct {
	index int
	last  queue.Result
}

func (e *encoder) put(p *putEntry) {
	e.entry(kindPut, func(e *encoder) {
		e.str(string(p.env.ID)) // again in the envelope, so that it is found fast
		e.str(p.env.Tenant)
		e.int(p.put)
		e.int(p.stamp)
		e.uint(p.body.headOff)
		e.uint(p.body.headLen)
		e.uint(p.body.file)
		e.int(p.body.fileOff)
		e.int(p.body.fileSize)
		e.uint(uint64(p.body.fileCRC))
		e.uint(uint64(len(p.items)))
		for i := range p.items {
			it := &p.items[i]
			e.uint(it.id)
			e.str(it.route)
			e.uint(it.attempts)
			e.uint(it.epoch)
			e.int(it.delay)
			e.bool(it.held)
			e.str(it.reason)
			e.recipients(it.rcpts)
		}
		e.nest(func(e *encoder) { e.envelope(p.env) })
		e.int(int64(p.priority))
		for i := range p.items {
			e.uint(uint64(p.items[i].weight))
		}
	})
}

// putHead decodes what a store needs to know of a put entry when it is opened. Envelope and recipients are checked, but not
// decoded: env has ID and tenant only, items have no rcpts, and the envelope is in raw, as long as the input is valid.
func (d *decoder) putHead() *putEntry { return d.putWith(false) }

func (d *decoder) putWith(rcpts bool) *putEntry {
	p := &putEntry{env: &mailspine.Envelope{}}
	p.env.ID = mailspine.MsgID(d.str())
	p.env.Tenant = d.str()
	p.put, p.stamp = d.int(), d.int()
	p.body = bodyRef{d.uint(), d.uint(), d.uint(), d.int(), d.int(), uint32(d.uint())}
	for range d.count() {
		if d.err != nil {
			break
		}
		it := putItem{id: d.uint(), route: d.str(), attempts: d.uint(), epoch: d.uint(), delay: d.int(), held: d.bool(), reason: d.str()}
		it.rcpts, it.open = d.recipients(rcpts)
		p.items = append(p.items, it)
	}
	p.raw = d.raw()
	p.priority = int(max(-128, min(d.int(), 127)))
	for i := range p.items {
		p.items[i].weight = int(min(d.uint(), queue.MaxWeight))
	}
	return p
}

func (d *decoder) put() (*putEntry, error) {
	p := d.putWith(true)
	id := p.env.ID
	in := decoder{b: p.raw}
	p.env, p.raw = in.envelope(), nil
	if in.err != nil {
		d.fail()
	}
	if d.err != nil {
		return nil, d.err
	}
	if p.env.ID != id || p.check() != nil {
		return nil, errDecode
	}
	return p, nil
}

// check finds what would make later code index out of range; a record with a
// right checksum has it only if a program wrote it so.
func (p *putEntry) check() error {
	n := len(p.env.Recipients)
	for i := range p.items {
		for _, r := range p.items[i].rcpts {
			if r.index >= n {
				return errDecode
			}
		}
	}
	return nil
}

func (p *putEntry) item(id queue.ItemID) (*putItem, error) {
	for i := range p.items {
		if p.items[i].id == uint64(id) {
			return &p.items[i], nil
		}
	}
	return nil, fmt.Errorf("%w: message %s has no item %d", errDecode, p.env.ID, id)
}

func (e *encoder) recipients(list []recipient) {
	e.uint(uint64(len(list)))
	for _, r := range list {
		e.uint(uint64(r.index))
		if r.last.Status == nil && r.last == (queue.Result{}) {
			e.bool(false) // most are new
			continue
		}
		e.bool(true)
		e.result(r.last)
	}
}

// recipients decodes a list, or only checks it, and returns how many there are.
func (d *decoder) recipients(decode bool) (list []recipient, n int) {
	n = d.count()
	if decode {
		list = make([]recipient, 0, n)
	}
	for range n {
		if d.err != nil {
			return nil, 0
		}
		i := d.uint()
		if i > 1<<30 {
			d.fail()
			return nil, 0
		}
		tried := d.bool()
		switch {
		case decode && tried:
			list = append(list, recipient{int(i), d.result()})
		case decode:
			list = append(list, recipient{index: int(i)})
		case tried:
			d.skipResult()
		}
	}
	return list, n
}

// A settleEntry ends a lease with results. rcpts are those that are still open.
// If there are none the item is done, and done names its message: whether that
// is finished too shows when all items are done.
type settleEntry struct {
	item     uint64
	epoch    uint64
	stamp    int64
	delay    int64
	attempts uint64
	done     mailspine.MsgID
	rcpts    []recipient
	open     int // how many they are, where rcpts is not decoded
}

func (e *encoder) settle(s *settleEntry) {
	e.entry(kindSettle, func(e *encoder) {
		e.uint(s.item)
		e.uint(s.epoch)
		e.int(s.stamp)
		e.int(s.delay)
		e.uint(s.attempts)
		e.str(string(s.done))
		e.recipients(s.rcpts)
	})
}

func (d *decoder) settle() *settleEntry { return d.settleWith(true) }

// settleHead decodes a settle entry without rcpts.
func (d *decoder) settleHead() *settleEntry { return d.settleWith(false) }

func (d *decoder) settleWith(rcpts bool) *settleEntry {
	s := &settleEntry{item: d.uint(), epoch: d.uint(), stamp: d.int(), delay: d.int(), attempts: d.uint(), done: mailspine.MsgID(d.str())}
	s.rcpts, s.open = d.recipients(rcpts)
	return s
}

// An abandonEntry ends a lease without results.
type abandonEntry struct {
	item   uint64
	epoch  uint64
	stamp  int64
	delay  int64
	reason string
}

func (e *encoder) abandon(a *abandonEntry) {
	e.entry(kindAbandon, func(e *encoder) {
		e.uint(a.item)
		e.uint(a.epoch)
		e.int(a.stamp)
		e.int(a.delay)
		e.str(a.reason)
	})
}

func (d *decoder) abandon() *abandonEntry {
	return &abandonEntry{d.uint(), d.uint(), d.int(), d.int(), d.str()}
}

// A controlEntry is a command on items, all of which it changes.
type controlEntry struct {
	op    queue.Op
	stamp int64
	text  string // the reason of a hold, or the route
	items []controlItem
}

// A controlItem is an item of a controlEntry. If it is removed, done names its
// message, as in a settleEntry; it is empty if that could not be read.
type controlItem struct {
	id   uint64
	done mailspine.MsgID
}

func (e *encoder) control(c *controlEntry) {
	e.entry(kindControl, func(e *encoder) {
		e.byte(byte(c.op))
		e.int(c.stamp)
		e.str(c.text)
		e.uint(uint64(len(c.items)))
		for _, it := range c.items {
			e.uint(it.id)
			if c.op == queue.OpDelete {
				e.str(string(it.done))
			}
		}
	})
}

func (d *decoder) control() *controlEntry {
	c := &controlEntry{op: queue.Op(d.byte()), stamp: d.int(), text: d.str()}
	if c.op < queue.OpHold || c.op > queue.OpReroute {
		d.fail()
	}
	for range d.count() {
		if d.err != nil {
			break
		}
		it := controlItem{id: d.uint()}
		if c.op == queue.OpDelete {
			it.done = mailspine.MsgID(d.str())
		}
		c.items = append(c.items, it)
	}
	return c
}

// A grave is the tombstone of a finished message.
type grave struct {
	id    mailspine.MsgID
	stamp int64
}

func (e *encoder) graves(list []grave) {
	e.entry(kindGraves, func(e *encoder) {
		e.uint(uint64(len(list)))
		for _, g := range list {
			e.str(string(g.id))
			e.int(g.stamp)
		}
	})
}

func (d *decoder) graves() []grave {
	var list []grave
	for range d.count() {
		if d.err != nil {
			return nil
		}
		list = append(list, grave{mailspine.MsgID(d.str()), d.int()})
	}
	return list
}
