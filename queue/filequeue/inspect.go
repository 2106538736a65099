package filequeue

import (
	"context"
	"fmt"
	"iter"

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
		var items []queue.Item
		err := s.search(ctx, f, listViews, func(views []view) error {
			items = items[:0]
			for i := range views {
				v := &views[i]
				env, states, err := v.load()
				if err != nil {
					return fmt.Errorf("filequeue: item %d: %w", v.id, err)
				}
				it := v.item()
				it.Message, it.Envelope, it.States = env.ID, env, states
				if f.Match(it) {
					items = append(items, it)
				}
			}
			return nil
		}, func() error {
			for _, it := range items {
				if !yield(it, nil) {
					return errStop
				}
			}
			return nil
		})
		if err != nil && err != errStop {
			yield(queue.Item{}, err)
		}
	}
}

// How many items are looked at before the lock is given up, and how many found are
// dealt with at a time.
const (
	searchStep  = 1024
	listViews   = 128
	changeViews = 1000
)

// search calls found with views of items that match as far as memory tells, up to most at a time (but for
// those of one message), and
// after each time then, outside of the operation, so that the store can be closed meanwhile. Each item that is there all the time is found once.
// What that takes of memory does not depend on how many items there are. An error of either ends the search.
func (s *Store) search(ctx context.Context, f queue.Filter, most int, found func([]view) error, then func() error) error {
	for from := slot(1); from != 0; {
		if err := s.begin(ctx); err != nil {
			return err
		}
		var views []view
		var err error
		if f.ID != "" || f.Item != 0 {
			from = 0
			views, err = s.few(f)
		} else {
			views, from = s.some(f, from, most)
		}
		if err == nil && len(views) > 0 {
			err = found(views)
		}
		s.drop(views...)
		s.end()
		if err != nil {
			return err
		}
		if len(views) > 0 && then != nil {
			if err := then(); err != nil {
				return err
			}
		}
	}
	return nil
}

// some returns up to most views of items whose Slots are from one on, and where to go on, or 0.
func (s *Store) some(f queue.Filter, from slot, most int) ([]view, slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.advance()
	var views []view
	for end := s.items.End(); from < end; from++ {
		if len(views) == most {
			return views, from
		}
		if from%searchStep == 0 {
			// Nobody waits for long, however many do not match.
			s.mu.Unlock()
			s.mu.Lock()
			now = s.advance()
		}
		if s.items.Has(from) {
			views = s.collect(views, from, f, now)
		}
	}
	return views, 0
}

// few is search for the items of one message, or one item.
func (s *Store) few(f queue.Filter) ([]view, error) {
	var views []view
	s.mu.Lock()
	if f.ID == "" {
		if i := s.item(f.Item); i != 0 {
			views = s.collect(nil, i, f, s.advance())
		}
		s.mu.Unlock()
		return views, nil
	}
	list := s.candidates(f.ID)
	s.mu.Unlock()
	c, ok, err := s.choose(f.ID, list)
	if err != nil {
		return nil, fmt.Errorf("filequeue: message %s: %w", f.ID, err)
	}
	if !ok {
		return nil, nil
	}
	defer s.release(c.put)
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.still(c); m != nil {
		now := s.advance()
		for i := range s.each(m) {
			views = s.collect(views, i, f, now)
		}
	}
	return views, nil
}

// collect appends a view of an item, if it matches as far as memory tells. mu is held.
func (s *Store) collect(views []view, i slot, f queue.Filter, now int64) []view {
	if !s.matches(f, i) || f.Tenant != "" && f.Tenant != s.sched.Tenant(i) {
		return views
	}
	v := s.view(i, now)
	if !inMemory(f).Match(v.item()) {
		s.releaseLocked(v.put, v.state)
		return views
	}
	return append(views, v)
}

// inMemory returns what of a filter can be decided without the journal. What search finds has its Tenant.
func inMemory(f queue.Filter) queue.Filter {
	return queue.Filter{Item: f.Item, Route: f.Route, State: f.State, MinAge: f.MinAge, MaxAge: f.MaxAge}
}

// Breakdown implements queue.Inspector.
func (s *Store) Breakdown(ctx context.Context) iter.Seq2[queue.Group, error] {
	return func(yield func(queue.Group, error) bool) {
		if err := s.begin(ctx); err != nil {
			yield(queue.Group{}, err)
			return
		}
		s.mu.Lock()
		s.advance()
		lines := s.sched.Lines()
		s.mu.Unlock()
		s.end()
		for _, l := range lines {
			n := l.Counts
			if !yield(queue.Group{
				Route: queue.Route(l.Route), Tenant: l.Tenant, Items: n.Sum(),
				Due: n[sched.Ready], Waiting: n[sched.Waiting], Leased: n[sched.Leased] + n[sched.Busy], Held: n[sched.Held],
			}, nil) {
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
	s.advance()
	n := s.sched.Counts()
	return queue.Stats{
		Messages: int64(s.messages.Len()), Items: int64(s.items.Len()), Bytes: s.bytes,
		Due: n[sched.Ready], Waiting: n[sched.Waiting], Leased: n[sched.Leased] + n[sched.Busy], Held: n[sched.Held],
	}, nil
}
