package memqueue

import (
	"context"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// List implements queue.Inspector.
func (s *Store) List(ctx context.Context, f queue.Filter) iter.Seq2[queue.Item, error] {
	return func(yield func(queue.Item, error) bool) {
		if err := f.Validate(); err != nil {
			yield(queue.Item{}, err)
			return
		}
		if err := s.begin(ctx); err != nil {
			yield(queue.Item{}, err)
			return
		}
		ids := s.candidates(f)
		s.mu.Unlock()
		s.ops.Done()
		for _, id := range ids {
			if err := s.begin(ctx); err != nil {
				yield(queue.Item{}, err)
				return
			}
			i := s.slots[id]
			var show queue.Item
			if i != 0 {
				now := s.now()
				s.sched.Advance(now)
				show = s.show(i, now)
			}
			s.mu.Unlock()
			s.ops.Done()
			if i != 0 && f.Match(show) && !yield(show, nil) {
				return
			}
		}
	}
}

// candidates returns the items among which those are that match.
func (s *Store) candidates(f queue.Filter) []queue.ItemID {
	if f.Item != 0 {
		return []queue.ItemID{f.Item}
	}
	if f.ID == "" {
		return slices.Collect(maps.Keys(s.slots))
	}
	var ids []queue.ItemID
	if m := s.messages[f.ID]; m != nil {
		for _, i := range m.items {
			ids = append(ids, s.items.At(i).id)
		}
	}
	return ids
}

// show returns what an Inspector shows of an item.
func (s *Store) show(i sched.Slot, now int64) queue.Item {
	it := s.items.At(i)
	env, states := it.open()
	show := queue.Item{
		ID: it.id, Message: env.ID, Route: queue.Route(s.sched.Route(i)), Envelope: env, States: states,
		Attempts: it.attempts, Age: time.Duration(now - it.msg.put),
		State: itemStates[s.sched.State(i)], Reason: it.reason, Size: int64(len(it.msg.body)),
	}
	if show.State != queue.ItemHeld {
		show.Due = time.Duration(s.sched.Due(i) - now)
	}
	return show
}

var itemStates = [...]queue.ItemState{
	sched.Busy: queue.ItemLeased, sched.Waiting: queue.ItemWaiting, sched.Leased: queue.ItemLeased, sched.Ready: queue.ItemDue, sched.Held: queue.ItemHeld,
} // never written

// Stats implements queue.Inspector.
func (s *Store) Stats(ctx context.Context) (queue.Stats, error) {
	if err := s.begin(ctx); err != nil {
		return queue.Stats{}, err
	}
	defer s.ops.Done()
	defer s.mu.Unlock()
	s.sched.Advance(s.now())
	n := s.sched.Counts()
	return queue.Stats{
		Messages: int64(len(s.messages)), Items: int64(len(s.slots)),
		Due: n[sched.Ready], Waiting: n[sched.Waiting], Leased: n[sched.Leased], Held: n[sched.Held],
		Bytes: s.bytes,
	}, nil
}

// Breakdown implements queue.Inspector.
func (s *Store) Breakdown(ctx context.Context) iter.Seq2[queue.Group, error] {
	return func(yield func(queue.Group, error) bool) {
		if err := s.begin(ctx); err != nil {
			yield(queue.Group{}, err)
			return
		}
		s.sched.Advance(s.now())
		lines := s.sched.Lines()
		s.mu.Unlock()
		s.ops.Done()
		for _, l := range lines {
			n := l.Counts
			if !yield(queue.Group{
				Route: queue.Route(l.Route), Tenant: l.Tenant, Items: n.Sum(),
				Due: n[sched.Ready], Waiting: n[sched.Waiting], Leased: n[sched.Leased], Held: n[sched.Held],
			}, nil) {
				return
			}
		}
	}
}

// Health implements queue.HealthChecker: it tells when the store is full.
func (s *Store) Health(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.ops.Done()
	defer s.mu.Unlock()
	return s.full(1)
}

// Wait implements queue.Waiter.
func (s *Store) Wait(ctx context.Context, exclude []queue.Route) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.ops.Done()
	skip := sched.Strings(exclude)
	for {
		// s.mu is held.
		now := s.now()
		s.sched.Advance(now)
		if s.sched.HasReady(skip) {
			s.mu.Unlock()
			return nil
		}
		var timer <-chan time.Time
		if due, ok := s.sched.Next(); ok {
			timer = time.After(time.Duration(due - now))
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-timer:
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return queue.ErrClosed
		}
	}
}
