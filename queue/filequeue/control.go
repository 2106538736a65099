package filequeue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// errStop ends a search that has found enough.
var errStop = errors.New("filequeue: enough")

// Control implements queue.Controller. Items are changed some hundred at a time, each time
// with one record and one sync. Reasons are cut to 1,000 octets. An item whose record is
// damaged is passed over if the Filter has to read it; the others are changed, and the error tells of it.
func (s *Store) Control(ctx context.Context, f queue.Filter, c queue.Command) (queue.Changed, error) {
	var n queue.Changed
	if err := c.Validate(); err != nil {
		return n, err
	}
	if err := f.Validate(); err != nil {
		return n, err
	}
	if err := s.failure(); err != nil {
		return n, err
	}
	c.Reason = cutReason(c.Reason)
	var damaged error
	err := s.search(ctx, f, changeViews, func(views []view) error {
		list, err := s.matching(f, views, &damaged)
		if err != nil {
			return err
		}
		return s.command(list, f, c, &n)
	}, nil)
	if err == nil {
		err = damaged
	}
	if err != nil {
		return n, fmt.Errorf("filequeue: %s: %w", c.Op, err)
	}
	return n, nil
}

// matching returns those of what was found that match. An item whose record is damaged is left
// out, and told; damaged is set to the first such error.
func (s *Store) matching(f queue.Filter, views []view, damaged *error) ([]*view, error) {
	var list []*view
	for i := range views {
		v := &views[i]
		if f.NeedsEnvelope() {
			env, _, err := v.load()
			if err != nil {
				err = fmt.Errorf("filequeue: item %d: %w", v.id, err)
			}
			switch {
			case err != nil && !damage(err):
				return nil, err
			case err != nil:
				s.log.Error("filequeue: an item cannot be read", "item", uint64(v.id), "err", err)
				if *damaged == nil {
					*damaged = err
				}
				continue
			}
			it := v.item()
			it.Message, it.Envelope = env.ID, env
			if !f.Match(it) {
				continue
			}
		}
		list = append(list, v)
	}
	return list, nil
}

// A commanded is an item that is Busy because of a command.
type commanded struct {
	slot  slot
	state sched.State // before
	due   int64
	file  uint64 // the body of the message that went with it
	done  mailspine.MsgID
}

// command carries out a command on items, and counts.
func (s *Store) command(list []*view, f queue.Filter, c queue.Command, n *queue.Changed) error {
	if len(list) == 0 {
		return nil
	}
	entry := &controlEntry{op: c.Op, text: c.Reason}
	if c.Op == queue.OpReroute {
		entry.text = string(c.Route)
	}
	var items []commanded
	var spots []spot // of the messages of what is deleted
	s.mu.Lock()
	now := s.advance()
	entry.stamp = s.wall(now)
	for _, v := range list {
		for {
			i := s.item(v.id)
			if i == 0 || !s.matches(f, i) {
				break // it went, or went on, meanwhile
			}
			st := s.sched.State(i)
			changes := s.changes(i, st, entry)
			if changes && !s.makeBusy(i) {
				s.cond.Wait()
				continue
			}
			n.Matched++
			switch {
			case st == sched.Leased || st == sched.Busy:
				n.Leased++
			case changes:
				// What had a lease of it before knows now that it has not.
				s.epoch++
				s.items.At(i).epoch = s.epoch
				items = append(items, commanded{slot: i, state: st, due: s.sched.Due(i)})
				entry.items = append(entry.items, controlItem{id: uint64(v.id)})
				if c.Op == queue.OpDelete {
					spots = append(spots, s.keep(s.messages.At(s.items.At(i).msg).loc))
				}
			}
			break
		}
	}
	s.mu.Unlock()
	if len(items) == 0 {
		return nil
	}
	for k, at := range spots {
		id, err := readID(at)
		if err != nil && !damage(err) {
			// Without its ID a message that was removed could be put again.
			s.release(spots...)
			s.uncommand(items)
			return err
		}
		if err != nil { // it can be removed nevertheless, but its ID is not remembered
			s.log.Error("filequeue: the ID of a message that is removed cannot be read", "item", entry.items[k].id, "err", err)
		}
		items[k].done, entry.items[k].done = id, id
	}
	s.release(spots...)
	var e encoder
	e.control(entry)
	s.hook("control.prepared")
	err := s.append([]durable.Record{{Meta: e.b}}, func(*segment, []durable.Location) {
		now := s.advance()
		for k := range items {
			it := &items[k]
			s.unreserve(it.slot)
			if c.Op == queue.OpReroute { // it stays what it was
				s.restore(it)
			}
			var done bool
			if done, it.file = s.control(it.slot, c.Op, entry.text, now); done && it.done != "" {
				s.tombs.bury(it.done, now+int64(queue.TombstoneTTL))
			}
		}
		n.Changed += int64(len(items))
		s.notify()
	})
	if err != nil {
		s.uncommand(items)
		return err
	}
	s.hook("control.done")
	for _, it := range items {
		s.removeBody(it.file)
	}
	return nil
}

// matches reports whether an item has the state and the route of a filter. These may change while its envelope is read,
// so they are looked at again after that. mu is held.
func (s *Store) matches(f queue.Filter, i slot) bool {
	return (f.State == queue.AnyState || f.State == itemStates[s.sched.State(i)]) &&
		(f.Route == "" || string(f.Route) == s.sched.Route(i))
}

// uncommand makes items what they were, after a command that came to nothing.
func (s *Store) uncommand(items []commanded) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range items {
		s.restore(&items[k])
		s.unreserve(items[k].slot)
	}
	s.notify()
}

// restore makes an item what it was before the command. mu is held.
func (s *Store) restore(it *commanded) {
	if it.state == sched.Held {
		s.sched.Hold(it.slot)
	} else {
		s.sched.Wait(it.slot, it.due)
	}
}

// changes reports whether a command changes an item. mu is held.
func (s *Store) changes(i slot, st sched.State, c *controlEntry) bool {
	switch {
	case st == sched.Leased || st == sched.Busy:
		return false
	case c.op == queue.OpHold:
		return st != sched.Held || s.reason(i) != c.text
	case c.op == queue.OpRelease:
		return st == sched.Held
	case c.op == queue.OpFlush:
		return st == sched.Waiting
	case c.op == queue.OpReroute:
		return s.sched.Route(i) != c.text
	}
	return true
}

// control changes an item as a command says. What becomes due does so at base. done and file are as
// in removeItem. mu is held.
func (s *Store) control(i slot, op queue.Op, text string, base int64) (done bool, file uint64) {
	switch op {
	case queue.OpHold:
		s.setReason(i, text)
		s.sched.Hold(i)
	case queue.OpRelease:
		s.setReason(i, "")
		s.sched.Wait(i, base)
	case queue.OpFlush:
		s.sched.Wait(i, base)
	case queue.OpDelete:
		return s.removeItem(i)
	case queue.OpReroute:
		s.sched.Move(i, text)
	}
	return false, 0
}

// Take implements queue.Controller. It returns at most 1,000 items at once, and, like
// Lease, leaves out what cannot be read.
func (s *Store) Take(ctx context.Context, f queue.Filter, most int, ttl time.Duration) ([]queue.Lease, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	if err := s.mayLease(); err != nil {
		return nil, err
	}
	most = min(max(most, 1), maxLease)
	var got []view
	var damaged error
	err := s.search(ctx, f, changeViews, func(views []view) error {
		list, err := s.matching(f, views, &damaged)
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		defer s.notify() // a lease may end before the item would have been due
		now := s.advance()
		for _, v := range list {
			i := s.item(v.id)
			if i == 0 || !s.matches(f, i) {
				continue
			}
			if st := s.sched.State(i); st == sched.Leased || st == sched.Busy {
				continue
			}
			s.sched.Lend(i, now+leaseTTL(ttl))
			if got = append(got, s.lend(i, now)); len(got) == most {
				return errStop
			}
		}
		return nil
	}, nil)
	leases, failed := s.leases(got)
	if err == nil || err == errStop {
		err = failed
	}
	if err == nil && len(leases) == 0 {
		err = damaged
	}
	if err != nil {
		return leases, fmt.Errorf("filequeue: take: %w", err)
	}
	return leases, nil
}
