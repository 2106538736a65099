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
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// maxReason bounds the reasons of Abandon and of a hold, in octets; what is
// longer is cut.
const maxReason = 1000

func cutReason(s string) string {
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "")
	}
	return s
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
	defer b.free(s)
	if err := ctx.Err(); err != nil {
		s.removeBody(b.ref.file)
		return err
	}
	var e encoder
	p := s.newPut(m, b.ref)
	e.put(p)
	s.hook("put.encoded")
	err = s.append([]durable.Record{{Meta: e.b, Body: b.head}}, func(seg *segment, locs []durable.Location) {
		s.insert(p, locate(seg, locs[0].Offset, 0), int64(len(e.b)+len(b.head))+entryCost, s.advance())
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
		if other := s.pending[id]; other != nil {
			s.mu.Unlock()
			select {
			case <-other: // and look whether it was put
				continue
			case <-ctx.Done():
				return false, ctx.Err()
			}
		}
		if s.tombs.has(id, s.now()) {
			s.mu.Unlock()
			return false, nil
		}
		s.pending[id] = make(chan struct{})
		list := s.candidates(id)
		s.mu.Unlock()
		if len(list) == 0 {
			return true, nil
		}
		// The records are read without the lock. Nobody puts this ID meanwhile; a message that is
		// finished meanwhile was stored a moment ago, which is as good.
		c, known, err := s.choose(id, list)
		if err == nil && !known {
			return true, nil
		}
		s.release(c.put)
		s.unclaim(id)
		if err != nil {
			err = fmt.Errorf("filequeue: is message %s stored already: %w", id, err)
		}
		return false, err
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
	p := &putEntry{
		env: m.Envelope, put: stamp, stamp: stamp, body: ref, items: make([]putItem, len(m.Items)),
		priority: max(-128, min(m.Envelope.Priority, 127)),
	}
	s.mu.Lock()
	first := s.nextItem + 1
	s.nextItem += uint64(len(m.Items))
	s.mu.Unlock()
	for i, n := range m.Items {
		it := &p.items[i]
		it.id, it.route = first+uint64(i), string(n.Route)
		it.delay, it.held, it.reason = sched.Span(m.Delay), m.Hold != "", cutReason(m.Hold)
		it.weight = min(max(1, m.Weight), queue.MaxWeight)
		it.open = len(n.Recipients)
		it.rcpts = make([]recipient, it.open)
		for j, r := range slices.Sorted(slices.Values(n.Recipients)) {
			it.rcpts[j].index = r
		}
	}
	return p
}
