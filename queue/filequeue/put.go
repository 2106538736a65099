package filequeue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
)

// maxReason bounds the reasons of Abandon and of a hold, in octets; what is
// longer is cut.
const maxReason = 1000

func reason(s string) string {
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "")
	}
	return strings.Clone(s) // not to keep what it is part of
}

// Put implements queue.Store. When it returns nil, content and envelope have been
// synced. A context that ends while the sync is under way does not stop it.
func (s *Store) Put(ctx context.Context, m queue.Message, msg mailspine.Content) error {
	if err := m.Validate(msg); err != nil {
		return err
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.end()
	id := m.Envelope.ID
	owned, err := s.claim(ctx, id)
	if err != nil || !owned {
		return err
	}
	defer s.unclaim(id)
	if err := s.accepts(); err != nil {
		return err
	}
	b, err := s.bring(ctx, msg)
	if err != nil {
		return fmt.Errorf("filequeue: put %s: %w", id, err)
	}
	if err := ctx.Err(); err != nil {
		s.removeBody(b.ref.file)
		return err
	}
	var e encoder
	p := s.newPut(m, b.ref)
	e.put(p)
	s.hook("put.encoded")
	err = s.append([]durable.Record{{Meta: e.b, Body: b.head}}, func(seg *segment, locs []durable.Location) {
		s.insert(p, location{seg, locs[0].Offset, 0}, int64(len(e.b)+len(b.head))+entryCost, s.now())
		s.notify()
	})
	if err != nil {
		if !errors.Is(err, durable.ErrFailed) {
			s.removeBody(b.ref.file) // otherwise the record may be there
		}
		return fmt.Errorf("filequeue: put %s: %w", id, err)
	}
	s.hook("put.done")
	return nil
}

// claim makes the caller the only one who puts a message with this ID, until
// unclaim. If it is known there is nothing to do, and owned is false.
func (s *Store) claim(ctx context.Context, id mailspine.MsgID) (owned bool, err error) {
	for {
		s.mu.Lock()
		if s.known(id) {
			s.mu.Unlock()
			return false, nil
		}
		other := s.pending[id]
		if other == nil {
			s.pending[id] = make(chan struct{})
			s.mu.Unlock()
			return true, nil
		}
		s.mu.Unlock()
		select {
		case <-other: // and look whether it was put
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

func (s *Store) unclaim(id mailspine.MsgID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.pending[id])
	delete(s.pending, id)
}

// newPut makes the entry of a message that is claimed. It shares the envelope.
func (s *Store) newPut(m queue.Message, ref bodyRef) *putEntry {
	stamp := s.wall(s.now())
	p := &putEntry{env: m.Envelope, put: stamp, stamp: stamp, body: ref, items: make([]putItem, len(m.Items))}
	s.mu.Lock()
	first := s.nextItem + 1
	s.nextItem += uint64(len(m.Items))
	s.mu.Unlock()
	for i, n := range m.Items {
		it := &p.items[i]
		it.id, it.route = first+uint64(i), string(n.Route)
		it.delay, it.held, it.reason = span(m.Delay), m.Hold != "", reason(m.Hold)
		it.rcpts = make([]recipient, len(n.Recipients))
		for j, r := range slices.Sorted(slices.Values(n.Recipients)) {
			it.rcpts[j].index = r
		}
	}
	return p
}

// insert makes a message of an entry that is durable. Delays begin at base. mu
// is held.
func (s *Store) insert(p *putEntry, at location, cost, base int64) *message {
	m := &message{
		id: mailspine.MsgID(strings.Clone(string(p.env.ID))), put: min(s.now(), p.put-s.wall(0)), size: p.body.size(),
		loc: at, file: p.body.file, cost: cost, items: make([]*item, len(p.items)),
	}
	block := make([]item, len(p.items))
	tenant := strings.Clone(p.env.Tenant)
	for i := range p.items {
		from := &p.items[i]
		it := &block[i]
		*it = item{
			id: queue.ItemID(from.id), msg: m, line: s.sched.line(queue.Route(from.route), tenant),
			epoch: from.epoch, attempts: uint32(from.attempts), open: uint32(len(from.rcpts)), reason: from.reason,
		}
		m.items[i] = it
		s.items[it.id] = it
		if from.held {
			s.sched.rest(it, held)
		} else {
			s.sched.wait(it, base+from.delay, waiting)
		}
	}
	s.messages[m.id] = m
	s.bytes += m.size
	s.live += m.cost
	return m
}

// removeItem forgets an item that is busy, and its message with the last. mu is held.
func (s *Store) removeItem(it *item) {
	m := it.msg
	s.sched.leave(it)
	delete(s.items, it.id)
	s.live -= it.cost
	m.items = slices.DeleteFunc(m.items, func(x *item) bool { return x == it })
	if len(m.items) == 0 {
		delete(s.messages, m.id)
		s.bytes -= m.size
		s.live -= m.cost
	}
}
