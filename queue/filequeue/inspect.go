package filequeue

import (
	"context"
	"fmt"
	"iter"

	"github.com/mailspine/mailspine/queue"
)

// List implements queue.Inspector. It takes 8 octets for each item that is
// stored while it runs.
func (s *Store) List(ctx context.Context, f queue.Filter) iter.Seq2[queue.Item, error] {
	return func(yield func(queue.Item, error) bool) {
		if err := f.Validate(); err != nil {
			yield(queue.Item{}, err)
			return
		}
		ids, err := s.match(ctx, f)
		if err != nil {
			yield(queue.Item{}, err)
			return
		}
		for _, id := range ids {
			it, ok, err := s.show(ctx, id)
			if err == nil && (!ok || !f.Match(it)) {
				continue // it went meanwhile
			}
			if !yield(it, err) || err != nil {
				return
			}
		}
	}
}

func (s *Store) match(ctx context.Context, f queue.Filter) ([]queue.ItemID, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []queue.ItemID
	fits := func(it *item) {
		if (f.Route == "" || f.Route == it.line.lane.route) && (f.Tenant == "" || f.Tenant == it.line.tenant) {
			ids = append(ids, it.id)
		}
	}
	if f.ID != "" {
		if m := s.messages[f.ID]; m != nil {
			for _, it := range m.items {
				fits(it)
			}
		}
		return ids, nil
	}
	for _, it := range s.items {
		fits(it)
	}
	return ids, nil
}

func (s *Store) show(ctx context.Context, id queue.ItemID) (queue.Item, bool, error) {
	if err := s.begin(ctx); err != nil {
		return queue.Item{}, false, err
	}
	defer s.end()
	s.mu.Lock()
	now := s.now()
	s.sched.advance(now)
	it := s.items[id]
	if it == nil {
		s.mu.Unlock()
		return queue.Item{}, false, nil
	}
	v := s.view(it, now)
	s.mu.Unlock()
	env, states, err := v.load()
	s.release(v.segments()...)
	if err != nil {
		return queue.Item{}, false, fmt.Errorf("filequeue: item %d of message %s: %w", id, v.msg, err)
	}
	show := queue.Item{
		ID: id, Message: v.msg, Route: v.route, Envelope: env, States: states, Attempts: int(v.attempts), Age: v.age, Due: v.due,
		State: itemStates[v.status], Reason: v.reason, Size: v.size,
	}
	if v.status == held {
		show.Due = 0
	}
	return show, true, nil
}

var itemStates = [statuses]queue.ItemState{
	waiting: queue.ItemWaiting, leased: queue.ItemLeased, busy: queue.ItemLeased, ready: queue.ItemDue, held: queue.ItemHeld,
} // never written

// Breakdown implements queue.Inspector.
func (s *Store) Breakdown(ctx context.Context) iter.Seq2[queue.Group, error] {
	return func(yield func(queue.Group, error) bool) {
		if err := s.begin(ctx); err != nil {
			yield(queue.Group{}, err)
			return
		}
		s.mu.Lock()
		s.sched.advance(s.now())
		groups := map[*line]*queue.Group{}
		for _, it := range s.items {
			g := groups[it.line]
			if g == nil {
				g = &queue.Group{Route: it.line.lane.route, Tenant: it.line.tenant}
				groups[it.line] = g
			}
			g.Items++
			switch itemStates[it.status] {
			case queue.ItemWaiting:
				g.Waiting++
			case queue.ItemLeased:
				g.Leased++
			case queue.ItemDue:
				g.Due++
			case queue.ItemHeld:
				g.Held++
			}
		}
		s.mu.Unlock()
		s.end()
		for _, g := range groups {
			if !yield(*g, nil) {
				return
			}
		}
	}
}

// Stats implements queue.Inspector.
func (s *Store) Stats(ctx context.Context) (queue.Stats, error) {
	if err := s.begin(ctx); err != nil {
		return queue.Stats{}, err
	}
	defer s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sched.advance(s.now())
	n := &s.sched.count
	return queue.Stats{
		Messages: int64(len(s.messages)), Items: int64(len(s.items)), Bytes: s.bytes,
		Due: int64(n[ready]), Waiting: int64(n[waiting]), Leased: int64(n[leased] + n[busy]), Held: int64(n[held]),
	}, nil
}
