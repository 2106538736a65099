package memqueue

import (
	"context"
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// Control implements queue.Controller. It is one step.
func (s *Store) Control(ctx context.Context, f queue.Filter, c queue.Command) (queue.Changed, error) {
	var n queue.Changed
	if err := c.Validate(); err != nil {
		return n, err
	}
	if err := s.matching(ctx, f, func(i sched.Slot, it queue.Item, now int64) bool {
		n.Matched++
		switch {
		case it.State == queue.ItemLeased:
			n.Leased++
		case s.control(i, it, c, now):
			n.Changed++
		}
		return true
	}); err != nil {
		return queue.Changed{}, err
	}
	return n, nil
}

// control carries out a command on an item that is not leased, and reports whether
// it changed anything.
func (s *Store) control(i sched.Slot, it queue.Item, c queue.Command, now int64) bool {
	switch c.Op {
	case queue.OpHold:
		if it.State == queue.ItemHeld && it.Reason == c.Reason {
			return false
		}
		s.items.At(i).reason = c.Reason
		s.sched.Hold(i)
	case queue.OpRelease:
		if it.State != queue.ItemHeld {
			return false
		}
		s.items.At(i).reason = ""
		s.sched.Wait(i, now)
	case queue.OpFlush:
		if it.State != queue.ItemWaiting {
			return false
		}
		s.sched.Wait(i, now)
	case queue.OpDelete:
		s.finish(i, now)
	case queue.OpReroute:
		if it.Route == c.Route {
			return false
		}
		s.sched.Move(i, string(c.Route))
	}
	return true
}

// Take implements queue.Controller.
func (s *Store) Take(ctx context.Context, f queue.Filter, most int, ttl time.Duration) ([]queue.Lease, error) {
	var leases []queue.Lease
	most = max(1, most)
	err := s.matching(ctx, f, func(i sched.Slot, it queue.Item, now int64) bool {
		if it.State != queue.ItemLeased {
			s.sched.Lend(i, now+leaseTTL(ttl))
			leases = append(leases, s.leases([]sched.Slot{i}, now)...)
		}
		return len(leases) < most
	})
	return leases, err
}

// matching calls do for each item that matches, with the lock held, until it
// returns false. do may change the item.
func (s *Store) matching(ctx context.Context, f queue.Filter, do func(i sched.Slot, it queue.Item, now int64) bool) error {
	if err := f.Validate(); err != nil {
		return err
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.ops.Done()
	defer s.mu.Unlock()
	defer s.notify()
	now := s.now()
	s.sched.Advance(now)
	for _, id := range s.candidates(f) {
		i := s.slots[id]
		if i == 0 {
			continue
		}
		if it := s.show(i, now); f.Match(it) && !do(i, it, now) {
			break
		}
	}
	return nil
}
