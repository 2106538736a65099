package filequeue

import (
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// A view is what is in memory of an item, at some moment, with its segments kept.
type view struct {
	slot   slot
	id     queue.ItemID
	route  queue.Route
	put    spot
	state  spot // without a segment: there is none
	epoch  uint64
	tries  uint16
	open   uint32
	weight int
	age    time.Duration
	due    time.Duration
	status sched.State
	held   bool // or will be again, when its lease ends
	reason string
	size   int64
	msg    mailspine.MsgID // "" if it is not known without reading
}

// view is called with mu held. It ends with drop.
func (s *Store) view(i slot, now int64) view {
	it := s.items.At(i)
	m := s.messages.At(it.msg)
	v := view{
		slot: i, id: queue.ItemID(it.id), route: queue.Route(s.sched.Route(i)), put: s.keep(m.loc),
		epoch: it.epoch, tries: it.tries, open: it.open, weight: s.sched.Weight(i), age: time.Duration(now - m.put), due: time.Duration(s.sched.Due(i) - now),
		status: s.sched.State(i), reason: s.reason(i), size: s.size(it.msg), msg: mailspine.MsgID(s.ids[i]),
	}
	v.held = v.status == sched.Held || s.sched.FromHold(i)
	if it.seg != 0 {
		v.state = s.keep(location{it.seg, it.offset, 0})
	}
	return v
}

func (s *Store) drop(views ...view) {
	for i := range views {
		s.release(views[i].put, views[i].state)
	}
}

// item is what an Inspector shows, without what is in the journal: neither Message, Envelope nor States.
func (v *view) item() queue.Item {
	it := queue.Item{
		ID: v.id, Route: v.route, Attempts: int(v.tries), Age: v.age, Due: v.due,
		State: itemStates[v.status], Reason: v.reason, Size: v.size,
	}
	if v.status == sched.Held {
		it.Due = 0
	}
	return it
}

var itemStates = [...]queue.ItemState{
	sched.Busy: queue.ItemLeased, sched.Leased: queue.ItemLeased, sched.Waiting: queue.ItemWaiting, sched.Ready: queue.ItemDue, sched.Held: queue.ItemHeld,
} // never written

// load reads the envelope with the recipients that are open, and their states.
func (v *view) load() (*mailspine.Envelope, []queue.RecipientState, error) {
	p, err := readPut(v.put)
	if err != nil {
		return nil, nil, err
	}
	rcpts, err := v.recipients(p)
	if err != nil {
		return nil, nil, err
	}
	index := make([]int, len(rcpts))
	states := make([]queue.RecipientState, len(rcpts))
	for i, r := range rcpts {
		if r.index >= len(p.env.Recipients) {
			return nil, nil, errDecode
		}
		index[i] = r.index
		states[i] = queue.RecipientState{Index: r.index, Last: r.last, Warned: r.last.Warned}
	}
	return p.env.Subset(index), states, nil
}

// recipients returns those that are open. p may be nil: then it is read if need be.
func (v *view) recipients(p *putEntry) ([]recipient, error) {
	if v.state.seg != nil {
		_, meta, err := v.state.seg.log.ReadMeta(v.state.offset)
		if err != nil {
			return nil, err
		}
		var list []recipient
		found := false
		err = eachEntry(meta, func(_ int, kind byte, d *decoder) error {
			if kind != kindSettle || found {
				d.b = nil
				return nil
			}
			if e := d.settle(); d.err == nil && e.item == uint64(v.id) {
				list, found = e.rcpts, true
			}
			return nil
		})
		if err == nil && !found {
			err = fmt.Errorf("%w: no results of item %d", errDecode, v.id)
		}
		return list, err
	}
	if p == nil {
		var err error
		if p, err = readPut(v.put); err != nil {
			return nil, err
		}
	}
	it, err := p.item(v.id)
	if err != nil {
		return nil, err
	}
	return it.rcpts, nil
}

// putAt returns the put entry at a place in the journal, not decoded yet.
func putAt(at spot) (*decoder, error) {
	_, meta, err := at.seg.log.ReadMeta(at.offset)
	if err != nil {
		return nil, err
	}
	return entryAt(meta, at.entry, kindPut)
}

func readPut(at spot) (*putEntry, error) {
	d, err := putAt(at)
	if err != nil {
		return nil, err
	}
	return d.put()
}

// damage reports whether a record is not what was written: reading it again would be of no use, as it may be after other
// errors.
func damage(err error) bool {
	var corrupt *durable.CorruptError
	return errors.Is(err, errDecode) || errors.As(err, &corrupt)
}

// readID returns the ID of the message at a place in the journal.
func readID(at spot) (mailspine.MsgID, error) {
	d, err := putAt(at)
	if err != nil {
		return "", err
	}
	id := mailspine.MsgID(d.str())
	return id, d.err
}
