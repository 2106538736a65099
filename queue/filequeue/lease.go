package filequeue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// maxLease bounds what one Lease returns: each item of it has its envelope in memory.
const maxLease = 1000

// Lease implements queue.Store. It returns at most 1,000 items at once. An item whose record
// cannot be read is left out, and told to the log; it is tried again when its
// lease would have ended.
//
// While results could not be recorded, because a sync failed or the disk is
// full to the last, there are no leases: what is delivered then would be again.
func (s *Store) Lease(ctx context.Context, req queue.LeaseRequest) ([]queue.Lease, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	if err := s.failure(); err != nil {
		return nil, err
	}
	if s.full.Load() {
		if err := s.room(s.opt.MinFree / 8); err != nil {
			return nil, err
		}
	}
	if req.TTL <= 0 {
		req.TTL = queue.DefaultLeaseTTL
	}
	var skip map[queue.Route]bool
	if len(req.Exclude) > 0 {
		skip = make(map[queue.Route]bool, len(req.Exclude))
		for _, r := range req.Exclude {
			skip[r] = true
		}
	}
	s.mu.Lock()
	now := s.now()
	s.sched.advance(now)
	var got []view
	for range min(max(req.Max, 1), maxLease) {
		it := s.sched.next(skip)
		if it == nil {
			break
		}
		s.epoch++
		it.epoch = s.epoch
		s.sched.wait(it, now+span(req.TTL), leased)
		got = append(got, s.view(it, now))
	}
	s.mu.Unlock()
	leases := make([]queue.Lease, 0, len(got))
	var failed error
	for i := range got {
		v := &got[i]
		env, states, err := v.load()
		s.release(v.segments()...)
		if err != nil {
			failed = fmt.Errorf("filequeue: item %d of message %s: %w", v.id, v.msg, err)
			s.log.Error("filequeue: an item cannot be read", "id", v.msg, "item", uint64(v.id), "err", err)
			continue
		}
		leases = append(leases, queue.Lease{
			Token: queue.Token{Item: v.id, Epoch: v.epoch}, Route: v.route, Envelope: env, Recipients: states,
			Attempts: int(v.attempts), Age: v.age, Size: v.size,
		})
	}
	if len(leases) == 0 && failed != nil {
		return nil, failed
	}
	return leases, nil
}

// A view is what is in memory of an item, at some moment, with its segments kept.
type view struct {
	id       queue.ItemID
	msg      mailspine.MsgID
	route    queue.Route
	tenant   string
	put      location
	state    location // without a segment: there is none
	epoch    uint64
	attempts uint32
	age      time.Duration
	due      time.Duration
	status   status
	reason   string
	size     int64
}

// view is called with mu held.
func (s *Store) view(it *item, now int64) view {
	v := view{
		id: it.id, msg: it.msg.id, route: it.line.lane.route, tenant: it.line.tenant, put: s.keep(it.msg.loc), state: it.state,
		epoch: it.epoch, attempts: it.attempts, age: time.Duration(now - it.msg.put), due: time.Duration(it.due - now),
		status: it.status, reason: it.reason, size: it.msg.size,
	}
	if v.state.seg != nil {
		s.keep(v.state)
	}
	return v
}

func (v *view) segments() []*segment {
	if v.state.seg == nil {
		return []*segment{v.put.seg}
	}
	return []*segment{v.put.seg, v.state.seg}
}

// load reads the envelope with the recipients that are open, and their states.
func (v *view) load() (*mailspine.Envelope, []queue.RecipientState, error) {
	p, err := readPut(v.put)
	if err != nil {
		return nil, nil, err
	}
	rcpts, err := v.recipients(p)
	if err != nil {
		return nil, nil, err
	}
	index := make([]int, len(rcpts))
	states := make([]queue.RecipientState, len(rcpts))
	for i, r := range rcpts {
		if r.index >= len(p.env.Recipients) {
			return nil, nil, errDecode
		}
		index[i] = r.index
		states[i] = queue.RecipientState{Index: r.index, Last: r.last, Warned: r.last.Warned}
	}
	return p.env.Subset(index), states, nil
}

// recipients returns those that are open. p may be nil: then it is read if need be.
func (v *view) recipients(p *putEntry) ([]recipient, error) {
	if v.state.seg != nil {
		_, meta, err := v.state.seg.log.ReadMeta(v.state.offset)
		if err != nil {
			return nil, err
		}
		d, err := entryAt(meta, v.state.entry, kindSettle)
		if err != nil {
			return nil, err
		}
		e := d.settle()
		if d.err != nil || e.item != uint64(v.id) {
			return nil, errDecode
		}
		return e.rcpts, nil
	}
	if p == nil {
		var err error
		if p, err = readPut(v.put); err != nil {
			return nil, err
		}
	}
	it, err := p.item(v.id)
	if err != nil {
		return nil, err
	}
	return it.rcpts, nil
}

func readPut(loc location) (*putEntry, error) {
	_, meta, err := loc.seg.log.ReadMeta(loc.offset)
	if err != nil {
		return nil, err
	}
	d, err := entryAt(meta, loc.entry, kindPut)
	if err != nil {
		return nil, err
	}
	return d.put()
}

// holder returns the item of a token whose lease is held, or nil. mu is held.
func (s *Store) holder(t queue.Token, now int64) *item {
	it := s.items[t.Item]
	if it == nil || it.status != leased || it.epoch != t.Epoch || it.due <= now {
		return nil
	}
	return it
}

// Extend implements queue.Store. It writes nothing: leases do not outlive the process.
func (s *Store) Extend(ctx context.Context, ttl time.Duration, tokens ...queue.Token) (lost []queue.Token, err error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	earlier := false
	for _, t := range tokens {
		it := s.items[t.Item]
		if it != nil && it.status == busy && it.epoch == t.Epoch {
			continue // being settled: the lease cannot end meanwhile
		}
		if it = s.holder(t, now); it == nil {
			lost = append(lost, t)
			continue
		}
		s.sched.take(it)
		due := now + span(ttl)
		earlier = earlier || due < it.due
		s.sched.wait(it, due, leased)
	}
	if earlier {
		s.notify()
	}
	return lost, nil
}

// Wait implements queue.Waiter.
func (s *Store) Wait(ctx context.Context, exclude []queue.Route) error {
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
		now := s.now()
		s.sched.advance(now)
		if s.sched.hasReady(exclude) {
			s.mu.Unlock()
			return nil
		}
		var timer *time.Timer
		var due <-chan time.Time
		if len(s.sched.heap) > 0 {
			timer = time.NewTimer(time.Duration(s.sched.heap[0].due - now))
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
