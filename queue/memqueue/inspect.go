package memqueue

import (
	"context"
	"iter"
	"time"

	"github.com/mailspine/mailspine/queue"
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
		s.sched.promote(time.Now())
		ids := make([]queue.ItemID, 0, len(s.items))
		for id, it := range s.items {
			if f.ID == "" || f.ID == it.msg.env.ID {
				ids = append(ids, id)
			}
		}
		s.mu.Unlock()
		s.ops.Done()
		for _, id := range ids {
			if err := s.begin(ctx); err != nil {
				yield(queue.Item{}, err)
				return
			}
			it := s.items[id]
			var show queue.Item
			if it != nil {
				now := time.Now()
				s.sched.promote(now)
				env, states := it.open()
				show = queue.Item{
					ID: id, Message: env.ID, Route: it.route, Envelope: env, States: states,
					Attempts: it.attempts, Age: now.Sub(it.msg.put), Due: it.due.Sub(now),
					State: itemStates[it.state], Reason: it.reason, Size: int64(len(it.msg.body)),
				}
				if it.state == held {
					show.Due = 0
				}
			}
			s.mu.Unlock()
			s.ops.Done()
			if it != nil && f.Match(show) && !yield(show, nil) {
				return
			}
		}
	}
}

var itemStates = [states]queue.ItemState{
	waiting: queue.ItemWaiting, leased: queue.ItemLeased, ready: queue.ItemDue, held: queue.ItemHeld,
} // never written

// Stats implements queue.Inspector.
func (s *Store) Stats(ctx context.Context) (queue.Stats, error) {
	if err := s.begin(ctx); err != nil {
		return queue.Stats{}, err
	}
	defer s.ops.Done()
	defer s.mu.Unlock()
	s.sched.promote(time.Now())
	n := s.sched.count
	return queue.Stats{
		Messages: int64(len(s.messages)), Items: int64(len(s.items)),
		Due: int64(n[ready]), Waiting: int64(n[waiting]), Leased: int64(n[leased]), Held: int64(n[held]),
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
		s.sched.promote(time.Now())
		type key struct {
			route  queue.Route
			tenant string
		}
		groups := map[key]*queue.Group{}
		for _, it := range s.items {
			k := key{it.route, it.msg.env.Tenant}
			g := groups[k]
			if g == nil {
				g = &queue.Group{Route: k.route, Tenant: k.tenant}
				groups[k] = g
			}
			g.Items++
			*map[state]*int64{waiting: &g.Waiting, leased: &g.Leased, ready: &g.Due, held: &g.Held}[it.state]++
		}
		s.mu.Unlock()
		s.ops.Done()
		for _, g := range groups {
			if !yield(*g, nil) {
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
	for {
		// s.mu is held.
		s.sched.promote(time.Now())
		if s.sched.has(exclude) {
			s.mu.Unlock()
			return nil
		}
		var timer <-chan time.Time
		if due, ok := s.sched.next(); ok {
			timer = time.After(time.Until(due))
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
