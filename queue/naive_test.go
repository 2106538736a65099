package queue_test

import (
	"context"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A naive store is the contract in the plainest form: a list, and a look at all of it each time. It
// has the optional interfaces that operators need.
type naive struct {
	mu      sync.Mutex
	items   []*naiveItem
	bodies  map[mailspine.MsgID]string
	last    queue.ItemID
	changed chan struct{}
}

type naiveItem struct {
	queue.Item
	put    time.Time
	due    time.Time
	epoch  uint64
	tenant string
	held   bool // and so again when its lease ends
}

func newNaive() *naive {
	return &naive{bodies: map[mailspine.MsgID]string{}, changed: make(chan struct{})}
}

func (s *naive) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *naive) look(now time.Time) {
	for _, it := range s.items {
		it.Age, it.Due = now.Sub(it.put), it.due.Sub(now)
		switch {
		case it.State == queue.ItemLeased && it.Due > 0:
		case it.held:
			it.State, it.Due = queue.ItemHeld, 0
		case it.Due > 0:
			it.State = queue.ItemWaiting
		default:
			it.State = queue.ItemDue
		}
	}
}

func (s *naive) Put(ctx context.Context, m queue.Message, msg mailspine.Content) error {
	body, err := mailspine.ReadContent(ctx, msg, 1<<20)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(m, string(body))
	return nil
}

func (s *naive) put(m queue.Message, body string) {
	if _, ok := s.bodies[m.Envelope.ID]; ok {
		return
	}
	s.bodies[m.Envelope.ID] = body
	now := time.Now()
	for _, n := range m.Items {
		s.last++
		it := &naiveItem{put: now, due: now.Add(m.Delay), held: m.Hold != "", tenant: m.Envelope.Tenant, Item: queue.Item{
			ID: s.last, Message: m.Envelope.ID, Route: n.Route, Envelope: m.Envelope.Subset(n.Recipients), Reason: m.Hold, Size: int64(len(body)),
		}}
		for _, i := range n.Recipients {
			it.States = append(it.States, queue.RecipientState{Index: i})
		}
		s.items = append(s.items, it)
	}
	s.notify()
}

func (s *naive) lease(it *naiveItem, now time.Time, ttl time.Duration) queue.Lease {
	it.epoch++
	it.State, it.due = queue.ItemLeased, now.Add(ttl)
	return queue.Lease{
		Token: queue.Token{Item: it.ID, Epoch: it.epoch}, Route: it.Route, Envelope: it.Envelope.Clone(), Recipients: slices.Clone(it.States),
		Attempts: it.Attempts, Age: now.Sub(it.put), Size: it.Size,
	}
}

func (s *naive) Lease(ctx context.Context, r queue.LeaseRequest) (l []queue.Lease, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.look(now)
	for _, it := range s.items {
		if it.State == queue.ItemDue && !slices.Contains(r.Exclude, it.Route) && len(l) < max(1, r.Max) {
			l = append(l, s.lease(it, now, r.TTL))
		}
	}
	return l, nil
}

func (s *naive) Take(ctx context.Context, f queue.Filter, n int, ttl time.Duration) (l []queue.Lease, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.look(now)
	for _, it := range s.items {
		if it.State != queue.ItemLeased && f.Match(it.Item) && len(l) < max(1, n) {
			l = append(l, s.lease(it, now, ttl))
		}
	}
	return l, nil
}

func (s *naive) Control(ctx context.Context, f queue.Filter, c queue.Command) (done queue.Changed, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.look(now)
	s.items = slices.DeleteFunc(s.items, func(it *naiveItem) bool {
		switch {
		case !f.Match(it.Item):
			return false
		case it.State == queue.ItemLeased:
			done.Matched++
			done.Leased++
			return false
		}
		done.Matched++
		switch {
		case c.Op == queue.OpHold:
			it.held, it.Reason = true, c.Reason
		case c.Op == queue.OpRelease && it.held, c.Op == queue.OpFlush && it.State == queue.ItemWaiting:
			it.held, it.Reason, it.due = false, "", now
		case c.Op == queue.OpReroute && it.Route != c.Route:
			it.Route = c.Route
		case c.Op == queue.OpDelete:
		default:
			return false
		}
		done.Changed++
		return c.Op == queue.OpDelete
	})
	s.notify()
	return done, nil
}

func (s *naive) of(t queue.Token) *naiveItem {
	s.look(time.Now())
	for _, it := range s.items {
		if it.ID == t.Item && it.epoch == t.Epoch && it.State == queue.ItemLeased {
			return it
		}
	}
	return nil
}

func (s *naive) Extend(ctx context.Context, ttl time.Duration, tokens ...queue.Token) (lost []queue.Token, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range tokens {
		if it := s.of(t); it != nil {
			it.due = time.Now().Add(ttl)
		} else {
			lost = append(lost, t)
		}
	}
	return lost, nil
}

func (s *naive) Settle(ctx context.Context, all ...queue.Settlement) (errs []error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range all {
		it := s.of(st.Token)
		if it == nil {
			errs = append(errs, queue.ErrLeaseLost)
			continue
		}
		for _, e := range st.Emit {
			body, err := mailspine.ReadContent(ctx, e.Content, 1<<20)
			if err != nil {
				return nil, err
			}
			s.put(e.Message, string(body))
		}
		var open []int
		var states []queue.RecipientState
		for i, r := range st.Results {
			if r.State == queue.Open {
				open = append(open, i)
				states = append(states, queue.RecipientState{Index: it.States[i].Index, Last: r, Warned: r.Warned})
			}
		}
		it.Envelope, it.States = it.Envelope.Subset(open), states
		it.State, it.due, it.held, it.Reason = queue.ItemWaiting, time.Now().Add(st.Delay), false, ""
		it.Attempts++
		errs = append(errs, nil)
	}
	s.items = slices.DeleteFunc(s.items, func(it *naiveItem) bool { return len(it.States) == 0 })
	s.notify()
	return errs, nil
}

func (s *naive) Abandon(ctx context.Context, delay time.Duration, reason string, tokens ...queue.Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range tokens {
		if it := s.of(t); it != nil {
			it.State, it.due = queue.ItemWaiting, time.Now().Add(delay)
			if !it.held {
				it.Reason = reason
			}
		}
	}
	s.notify()
	return nil
}

func (s *naive) Open(ctx context.Context, id mailspine.MsgID) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return io.NopCloser(strings.NewReader(s.bodies[id])), nil
}

func (s *naive) Close() error { return nil }

func (s *naive) List(ctx context.Context, f queue.Filter) iter.Seq2[queue.Item, error] {
	return func(yield func(queue.Item, error) bool) {
		// Not a snapshot: what comes meanwhile is listed too.
		for last := queue.ItemID(0); ; {
			s.mu.Lock()
			s.look(time.Now())
			i := slices.IndexFunc(s.items, func(it *naiveItem) bool { return it.ID > last })
			if i < 0 {
				s.mu.Unlock()
				return
			}
			it := s.items[i].Item
			last = it.ID
			it.Envelope = it.Envelope.Clone()
			s.mu.Unlock()
			if f.Match(it) && !yield(it, nil) {
				return
			}
		}
	}
}

func (s *naive) Stats(ctx context.Context) (st queue.Stats, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look(time.Now())
	for _, it := range s.items {
		st.Items++
		switch it.State {
		case queue.ItemDue:
			st.Due++
		case queue.ItemWaiting:
			st.Waiting++
		case queue.ItemLeased:
			st.Leased++
		case queue.ItemHeld:
			st.Held++
		}
	}
	return st, nil
}

func (s *naive) Breakdown(context.Context) iter.Seq2[queue.Group, error] {
	return func(func(queue.Group, error) bool) {}
}

func (s *naive) Wait(ctx context.Context, exclude []queue.Route) error {
	for {
		s.mu.Lock()
		s.look(time.Now())
		next := time.Hour
		due := false
		for _, it := range s.items {
			due = due || it.State == queue.ItemDue && !slices.Contains(exclude, it.Route)
			if it.Due > 0 {
				next = min(next, it.Due)
			}
		}
		changed := s.changed
		s.mu.Unlock()
		if due {
			return nil
		}
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}
