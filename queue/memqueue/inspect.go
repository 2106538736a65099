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
		if err := s.begin(ctx); err != nil {
			yield(queue.Item{}, err)
			return
		}
		s.sched.promote(time.Now())
		ids := make([]queue.ItemID, 0, len(s.items))
		for id, it := range s.items {
			if matches(it, f) {
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
					Leased: it.state == leased, Held: it.state == held,
					Reason: it.reason, Size: int64(len(it.msg.body)),
				}
				if it.state == held {
					show.Due = 0
				}
			}
			s.mu.Unlock()
			s.ops.Done()
			if it != nil && !yield(show, nil) {
				return
			}
		}
	}
}

func matches(it *item, f queue.Filter) bool {
	return (f.ID == "" || f.ID == it.msg.env.ID) &&
		(f.Route == "" || f.Route == it.route) &&
		(f.Tenant == "" || f.Tenant == it.msg.env.Tenant)
}

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
