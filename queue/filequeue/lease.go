package filequeue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// maxLease bounds what one Lease returns: each item of it has its envelope in memory.
const maxLease = 1000

// Lease implements queue.Store. It returns at most 1,000 items at once. An item whose record
// cannot be read is left out, and told to the log; it is tried again, at once and then when its
// lease would have ended.
//
// While results could not be recorded, because a sync failed or the disk is
// full to the last, there are no leases: what is delivered then would be again.
func (s *Store) Lease(ctx context.Context, req queue.LeaseRequest) ([]queue.Lease, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	if err := s.mayLease(); err != nil {
		return nil, err
	}
	exclude := sched.Strings(req.Exclude)
	n := min(max(req.Max, 1), maxLease)
	var slots []slot
	var got []view
	s.mu.Lock()
	for {
		now := s.advance()
		had := len(slots)
		slots = s.sched.Lease(slots, n-had, now+leaseTTL(req.TTL), exclude)
		for _, i := range slots[had:] {
			got = append(got, s.lend(i, now))
		}
		if len(slots) == n || !s.sched.Behind() {
			break
		}
		// A great many items became due at once. Others have their turn before
		// we look at more of them.
		s.mu.Unlock()
		s.mu.Lock()
	}
	s.mu.Unlock()
	return s.leases(got)
}

// mayLease returns why there are no leases now, or nil.
func (s *Store) mayLease() error {
	if err := s.failure(); err != nil {
		return err
	}
	if s.full.Load() {
		return s.room(s.opt.MinFree / 8)
	}
	return nil
}

func leaseTTL(ttl time.Duration) int64 {
	if ttl <= 0 {
		ttl = queue.DefaultLeaseTTL
	}
	return sched.Span(ttl)
}

// lend begins the lease of an item that the schedule has lent. mu is held.
func (s *Store) lend(i slot, now int64) view {
	s.epoch++
	s.items.At(i).epoch = s.epoch
	return s.view(i, now)
}

// leases reads the records of items that were lent. Those that cannot be read are
// left out; it is an error if there is nothing else.
func (s *Store) leases(got []view) ([]queue.Lease, error) {
	leases := make([]queue.Lease, 0, len(got))
	slots := make([]slot, 0, len(got))
	var failed error
	for i := range got {
		v := &got[i]
		env, states, err := v.load()
		s.drop(*v)
		if err != nil {
			failed = fmt.Errorf("filequeue: item %d: %w", v.id, err)
			s.log.Error("filequeue: an item cannot be read", "item", uint64(v.id), "err", err)
			s.unreadable(queue.Token{Item: v.id, Epoch: v.epoch})
			continue
		}
		slots = append(slots, v.slot)
		leases = append(leases, queue.Lease{
			Token: queue.Token{Item: v.id, Epoch: v.epoch}, Route: v.route, Envelope: env, Recipients: states,
			Attempts: int(v.tries), Age: v.age, Size: v.size,
		})
	}
	s.readable(slots, leases)
	if len(leases) == 0 && failed != nil {
		return nil, failed
	}
	return leases, nil
}

// readable remembers the IDs of messages whose items were leased: a settlement needs them, and
// what was delivered must be recorded even if the message cannot be read any more.
func (s *Store) readable(slots []slot, leases []queue.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, i := range slots {
		if s.item(leases[k].Token.Item) == i {
			s.ids[i] = strings.Clone(string(leases[k].Envelope.ID))
			delete(s.unread, i)
		}
	}
	// What was leased and came back by itself is not needed.
	if len(s.ids) > 1000+2*s.sched.Out() {
		for i := range s.ids {
			if st := s.sched.State(i); st != sched.Leased && st != sched.Busy {
				delete(s.ids, i)
			}
		}
	}
}

// unreadable gives an item back whose record could not be read, once: the disk may
// have been busy. If that is so again it stays leased, or it would be tried all the time.
func (s *Store) unreadable(t queue.Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.advance()
	i := s.holder(t, now)
	if i == 0 || s.unread[i] {
		return
	}
	s.unread[i] = true
	if s.sched.FromHold(i) {
		s.sched.Hold(i)
	} else {
		s.sched.Wait(i, now)
	}
	s.notify()
}

// holder returns the item of a token whose lease is held, or 0. mu is held.
func (s *Store) holder(t queue.Token, now int64) slot {
	i := s.item(t.Item)
	if i == 0 || s.sched.State(i) != sched.Leased || s.items.At(i).epoch != t.Epoch || s.sched.Due(i) <= now {
		return 0
	}
	return i
}

// Extend implements queue.Store. It writes nothing: leases do not outlive the process.
func (s *Store) Extend(ctx context.Context, ttl time.Duration, tokens ...queue.Token) (lost []queue.Token, err error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.advance()
	earlier := false
	for _, t := range tokens {
		i := s.holder(t, now)
		if i == 0 {
			if i = s.item(t.Item); i != 0 && s.sched.State(i) == sched.Busy && s.items.At(i).epoch == t.Epoch {
				continue // being settled: the lease cannot end meanwhile
			}
			lost = append(lost, t)
			continue
		}
		due := now + leaseTTL(ttl)
		earlier = earlier || due < s.sched.Due(i)
		s.sched.Lend(i, due)
	}
	if earlier {
		s.notify()
	}
	return lost, nil
}

// Wait implements queue.Waiter.
func (s *Store) Wait(ctx context.Context, exclude []queue.Route) error {
	skip := sched.Strings(exclude)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.mu.Lock()
		switch {
		case s.closed:
			s.mu.Unlock()
			return queue.ErrClosed
		case s.failed != nil:
			err := s.failed
			s.mu.Unlock()
			return err
		}
		now := s.advance()
		if s.sched.HasReady(skip) {
			s.mu.Unlock()
			return nil
		}
		var timer *time.Timer
		var due <-chan time.Time
		if next, ok := s.sched.Next(); ok {
			timer = time.NewTimer(time.Duration(next - now))
			due = timer.C
		}
		changed := s.changed
		s.waiters++
		s.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-s.done:
		case <-changed:
		case <-due:
		}
		s.mu.Lock()
		s.waiters--
		s.mu.Unlock()
		if timer != nil {
			timer.Stop()
		}
	}
}

var errResults = errors.New("filequeue: a settlement needs one result for each recipient that is open, of a known state")
