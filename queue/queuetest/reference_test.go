package queuetest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A reference is a store that does what the contract says in the plainest way,
// looking at everything each time. The kit and the model are tried on it, and
// mutants are made of it.
type reference struct {
	mu     sync.Mutex
	closed bool
	msgs   map[mailspine.MsgID]*refMessage
	tombs  map[mailspine.MsgID]time.Time
	items  map[queue.ItemID]*refItem
	lines  map[groupOf]*refLine
	last   map[queue.Route]uint64 // the turn that a route had last
	turn   uint64
	next   queue.ItemID
	epoch  uint64
	lapse  time.Time // no lease ends before it
	change chan struct{}
	quirk  string // a rule that it breaks; "": none
}

type refMessage struct {
	env  *mailspine.Envelope
	body []byte
	put  time.Time
	n    int
}

type refItem struct {
	id       queue.ItemID
	msg      *refMessage
	line     groupOf
	open     []queue.RecipientState
	attempts int
	due      time.Time
	order    uint64 // of what is due at the same time
	epoch    uint64
	leased   bool
	held     bool
	hold     string // the reason for which it is held, also while its lease lasts
	reason   string
}

// A refLine is a tenant of a route.
type refLine struct {
	weight, deficit int
	last            uint64 // the turn that it began last
}

func newReference() *reference {
	return &reference{msgs: map[mailspine.MsgID]*refMessage{}, tombs: map[mailspine.MsgID]time.Time{}, items: map[queue.ItemID]*refItem{},
		lines: map[groupOf]*refLine{}, last: map[queue.Route]uint64{}, change: make(chan struct{})}
}

// reopen is the store after a restart of its process.
func (s *reference) reopen() *reference {
	n := newReference()
	n.quirk = s.quirk
	n.msgs, n.tombs, n.items, n.lines, n.next, n.epoch, n.turn = s.msgs, s.tombs, s.items, s.lines, s.next, s.epoch, s.turn
	for _, it := range n.items {
		if it.leased {
			it.end(time.Now())
		}
	}
	return n
}

// begin locks the store, and does what time has done.
func (s *reference) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return queue.ErrClosed
	}
	now := time.Now()
	if now.Before(s.lapse) {
		return nil
	}
	s.lapse = now.Add(1000 * time.Hour)
	for _, it := range s.items {
		if it.leased && !now.Before(it.due) {
			it.end(it.due)
		}
		if it.leased && it.due.Before(s.lapse) {
			s.lapse = it.due
		}
	}
	return nil
}

// end ends a lease without a settlement.
func (it *refItem) end(due time.Time) {
	it.leased, it.due = false, due
	if it.hold != "" {
		it.held, it.reason = true, it.hold
	}
}

func (s *reference) changed() {
	close(s.change)
	s.change = make(chan struct{})
}

func (it *refItem) state(now time.Time) queue.ItemState {
	switch {
	case it.held:
		return queue.ItemHeld
	case it.leased:
		return queue.ItemLeased
	case now.Before(it.due):
		return queue.ItemWaiting
	}
	return queue.ItemDue
}

func copyStates(in []queue.RecipientState) []queue.RecipientState {
	out := slices.Clone(in)
	for i, r := range out {
		if r.Last.Status != nil {
			st := *r.Last.Status
			if st.Err != nil {
				st.Err = errors.New(st.Err.Error())
			}
			out[i].Last.Status = &st
		}
	}
	return out
}

func (it *refItem) envelope() *mailspine.Envelope {
	var index []int
	for _, r := range it.open {
		index = append(index, r.Index)
	}
	return it.msg.env.Subset(index).Clone()
}

func (it *refItem) show(now time.Time) queue.Item {
	show := queue.Item{ID: it.id, Message: it.msg.env.ID, Route: it.line.route, Envelope: it.envelope(), States: copyStates(it.open), State: it.state(now),
		Attempts: it.attempts, Age: now.Sub(it.msg.put), Due: it.due.Sub(now), Reason: it.reason, Size: int64(len(it.msg.body))}
	if it.held {
		show.Due = 0
	}
	return show
}

func (s *reference) lease(it *refItem, ttl time.Duration) queue.Lease {
	now := time.Now()
	s.epoch++
	it.leased, it.held, it.epoch, it.due = true, false, s.epoch, now.Add(cmp.Or(ttl, queue.DefaultLeaseTTL))
	if it.due.Before(s.lapse) {
		s.lapse = it.due
	}
	return queue.Lease{Token: queue.Token{Item: it.id, Epoch: it.epoch}, Route: it.line.route, Envelope: it.envelope(), Recipients: copyStates(it.open),
		Attempts: it.attempts, Age: now.Sub(it.msg.put), Size: int64(len(it.msg.body))}
}

func (s *reference) leased(t queue.Token) *refItem {
	if it := s.items[t.Item]; it != nil && it.leased && it.epoch == t.Epoch {
		return it
	}
	return nil
}

func (s *reference) Put(ctx context.Context, m queue.Message, c mailspine.Content) error {
	body, err := s.read(ctx, m, c)
	if err != nil {
		return err
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.add(m, body)
	return nil
}

func (s *reference) read(ctx context.Context, m queue.Message, c mailspine.Content) ([]byte, error) {
	if err := errors.Join(ctx.Err(), m.Validate(c)); err != nil {
		return nil, err
	}
	r, err := c.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	body, err := io.ReadAll(r)
	if err == nil && int64(len(body)) != c.Size() {
		err = io.ErrUnexpectedEOF
	}
	return body, err
}

func (s *reference) add(m queue.Message, body []byte) {
	now := time.Now()
	id := m.Envelope.ID
	if end, ok := s.tombs[id]; s.msgs[id] != nil || ok && now.Sub(end) <= queue.TombstoneTTL {
		return
	}
	msg := &refMessage{env: m.Envelope.Clone(), body: body, put: now, n: len(m.Items)}
	s.msgs[id] = msg
	for _, n := range m.Items {
		s.next++
		it := &refItem{id: s.next, msg: msg, line: groupOf{n.Route, m.Envelope.Tenant}, due: now.Add(m.Delay), order: uint64(s.next), held: m.Hold != "", hold: m.Hold, reason: m.Hold}
		for _, i := range slices.Sorted(slices.Values(n.Recipients)) {
			it.open = append(it.open, queue.RecipientState{Index: i})
		}
		s.items[it.id] = it
		l := s.lines[it.line]
		if l == nil {
			l = &refLine{}
			s.lines[it.line] = l
		}
		if l.weight == 0 || s.quirk != "keeps the first weight" {
			l.weight = min(max(1, m.Weight), queue.MaxWeight)
		}
	}
	s.changed()
}

// better orders the items of a line.
func (s *reference) better(a, b *refItem) int {
	if s.quirk == "ignores priorities" {
		return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.order, b.order))
	}
	return cmp.Or(cmp.Compare(b.msg.env.Priority, a.msg.env.Priority), a.due.Compare(b.due), cmp.Compare(a.order, b.order))
}

// pick returns the item whose turn it is, or nil.
func (s *reference) pick(exclude []queue.Route) *refItem {
	now := time.Now()
	ready := map[groupOf][]*refItem{}
	for _, it := range s.items {
		if it.state(now) == queue.ItemDue && !slices.Contains(exclude, it.line.route) {
			ready[it.line] = append(ready[it.line], it)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	for g, l := range s.lines {
		if ready[g] == nil && !slices.Contains(exclude, g.route) {
			l.deficit = 0
		}
	}
	route := slices.MinFunc(slices.Collect(maps.Keys(ready)), func(a, b groupOf) int {
		return cmp.Or(cmp.Compare(s.last[a.route], s.last[b.route]), cmp.Compare(a.route, b.route))
	}).route
	s.turn++
	s.last[route] = s.turn
	for {
		// Who is in its turn goes on, then the one whose turn is longest ago.
		var line groupOf
		var l *refLine
		for g := range ready {
			if x := s.lines[g]; g.route == route && (l == nil || x.last < l.last || x.last == l.last && g.tenant < line.tenant) {
				line, l = g, x
			}
		}
		it := slices.MinFunc(ready[line], s.better)
		if s.quirk == "lets a priority pass other tenants" {
			for g, list := range ready {
				if x := slices.MinFunc(list, s.better); g.route == route && x.msg.env.Priority > it.msg.env.Priority {
					return x
				}
			}
		}
		price := max(1, (len(it.msg.body)+64<<10-1)/(64<<10))
		if s.quirk == "counts messages, not octets" {
			price = 1
		}
		if l.deficit >= price {
			l.deficit -= price
			if l.deficit == 0 {
				s.turn++
				l.last = s.turn
			}
			return it
		}
		l.deficit += l.weight
		if l.deficit < price {
			s.turn++
			l.last = s.turn
		}
	}
}

func (s *reference) Lease(ctx context.Context, r queue.LeaseRequest) ([]queue.Lease, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var out []queue.Lease
	for range max(1, r.Max) {
		it := s.pick(r.Exclude)
		if it == nil {
			break
		}
		out = append(out, s.lease(it, r.TTL))
	}
	return out, nil
}

func (s *reference) Extend(ctx context.Context, ttl time.Duration, tokens ...queue.Token) (lost []queue.Token, err error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for _, t := range tokens {
		if it := s.leased(t); it != nil {
			it.due = time.Now().Add(ttl)
			s.lapse = time.Time{}
		} else {
			lost = append(lost, t)
		}
	}
	return lost, nil
}

func (s *reference) Settle(ctx context.Context, list ...queue.Settlement) ([]error, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.mu.Unlock()
	errs := make([]error, len(list))
	for i, x := range list {
		errs[i] = s.settle(ctx, x)
	}
	return errs, nil
}

func (s *reference) settle(ctx context.Context, x queue.Settlement) error {
	var bodies [][]byte
	for _, e := range x.Emit {
		b, err := s.read(ctx, e.Message, e.Content)
		if err != nil {
			return err
		}
		bodies = append(bodies, b)
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	it := s.leased(x.Token)
	if it == nil {
		return queue.ErrLeaseLost
	}
	if len(x.Results) != len(it.open) {
		return errors.New("reference: wrong number of results")
	}
	var open []queue.RecipientState
	for i, r := range x.Results {
		if st := it.open[i]; r.State == queue.Open {
			st.Warned = st.Warned || r.Warned
			st.Last = r
			open = append(open, st)
		}
	}
	it.open, it.leased, it.hold, it.reason = copyStates(open), false, "", ""
	it.attempts++
	it.due = time.Now().Add(x.Delay)
	s.epoch++
	it.order = s.epoch + 1<<32
	if len(open) == 0 {
		s.drop(it)
	}
	for i, e := range x.Emit {
		s.add(e.Message, bodies[i])
	}
	s.changed()
	return nil
}

// drop removes an item, and a message with its last item.
func (s *reference) drop(it *refItem) {
	delete(s.items, it.id)
	if it.msg.n--; it.msg.n == 0 {
		delete(s.msgs, it.msg.env.ID)
		s.tombs[it.msg.env.ID] = time.Now()
	}
}

func (s *reference) Abandon(ctx context.Context, delay time.Duration, reason string, tokens ...queue.Token) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for _, t := range tokens {
		if it := s.leased(t); it != nil {
			it.reason = reason
			it.end(time.Now().Add(delay))
		}
	}
	s.changed()
	return nil
}

type refReader struct{ *bytes.Reader }

func (refReader) Close() error { return nil }

func (s *reference) Open(ctx context.Context, id mailspine.MsgID) (io.ReadCloser, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	m := s.msgs[id]
	if m == nil {
		return nil, queue.ErrNotFound
	}
	return refReader{bytes.NewReader(m.body)}, nil
}

func (s *reference) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.changed()
	}
	return nil
}

// matching returns the items that match.
func (s *reference) matching(f queue.Filter) []*refItem {
	var list []*refItem
	for _, id := range slices.Sorted(maps.Keys(s.items)) {
		if it := s.items[id]; f.Match(it.show(time.Now())) {
			list = append(list, it)
		}
	}
	return list
}

func (s *reference) List(ctx context.Context, f queue.Filter) iter.Seq2[queue.Item, error] {
	return func(yield func(queue.Item, error) bool) {
		err := f.Validate()
		if err == nil {
			err = s.begin(ctx)
		}
		if err != nil {
			yield(queue.Item{}, err)
			return
		}
		var show []queue.Item
		for _, it := range s.matching(f) {
			show = append(show, it.show(time.Now()))
		}
		s.mu.Unlock()
		for _, it := range show {
			if !yield(it, nil) {
				return
			}
		}
	}
}

func (s *reference) Breakdown(ctx context.Context) iter.Seq2[queue.Group, error] {
	return func(yield func(queue.Group, error) bool) {
		if err := s.begin(ctx); err != nil {
			yield(queue.Group{}, err)
			return
		}
		groups := map[groupOf]*queue.Group{}
		for _, it := range s.items {
			g := groups[it.line]
			if g == nil {
				g = &queue.Group{Route: it.line.route, Tenant: it.line.tenant}
				groups[it.line] = g
			}
			g.Items++
			switch it.state(time.Now()) {
			case queue.ItemDue:
				g.Due++
			case queue.ItemWaiting:
				g.Waiting++
			case queue.ItemLeased:
				g.Leased++
			case queue.ItemHeld:
				g.Held++
			}
		}
		s.mu.Unlock()
		for _, g := range groups {
			if !yield(*g, nil) {
				return
			}
		}
	}
}

func (s *reference) Stats(ctx context.Context) (queue.Stats, error) {
	var st queue.Stats
	for g, err := range s.Breakdown(ctx) {
		if err != nil {
			return st, err
		}
		addGroup(&st, g)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.msgs {
		st.Messages++
		st.Bytes += int64(len(m.body))
	}
	return st, nil
}

func (s *reference) Control(ctx context.Context, f queue.Filter, c queue.Command) (ch queue.Changed, err error) {
	if err := errors.Join(f.Validate(), c.Validate()); err != nil {
		return ch, err
	}
	if err := s.begin(ctx); err != nil {
		return ch, err
	}
	defer s.mu.Unlock()
	now := time.Now()
	for _, it := range s.matching(f) {
		ch.Matched++
		st := it.state(now)
		switch {
		case st == queue.ItemLeased:
			ch.Leased++
			continue
		case c.Op == queue.OpHold && !(it.held && it.hold == c.Reason):
			it.held, it.hold, it.reason = true, c.Reason, c.Reason
		case c.Op == queue.OpRelease && it.held:
			it.held, it.hold, it.reason, it.due = false, "", "", now
		case c.Op == queue.OpFlush && st == queue.ItemWaiting:
			it.due = now
		case c.Op == queue.OpDelete:
			s.drop(it)
		case c.Op == queue.OpReroute && it.line.route != c.Route:
			old := s.lines[it.line]
			it.line.route = c.Route
			if s.lines[it.line] == nil {
				s.lines[it.line] = &refLine{weight: old.weight}
			}
		default:
			continue
		}
		ch.Changed++
	}
	if s.quirk != "wakes nobody" {
		s.changed()
	}
	return ch, nil
}

func (s *reference) Take(ctx context.Context, f queue.Filter, n int, ttl time.Duration) ([]queue.Lease, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var out []queue.Lease
	for _, it := range s.matching(f) {
		if !it.leased && len(out) < max(1, n) {
			out = append(out, s.lease(it, ttl))
		}
	}
	return out, nil
}

func (s *reference) Wait(ctx context.Context, exclude []queue.Route) error {
	for {
		if err := s.begin(ctx); err != nil {
			return err
		}
		now := time.Now()
		next := now.Add(1000 * time.Hour)
		for _, it := range s.items {
			if !it.held && !slices.Contains(exclude, it.line.route) && it.due.Before(next) {
				next = it.due
			}
		}
		change := s.change
		s.mu.Unlock()
		if !now.Before(next) {
			return nil
		}
		t := time.NewTimer(next.Sub(now))
		select {
		case <-ctx.Done():
		case <-change:
		case <-t.C:
		}
		t.Stop()
	}
}

func (s *reference) Health(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	s.mu.Unlock()
	return nil
}

func reopenReference(t *testing.T, s queue.Store) queue.Store {
	s.Close()
	return s.(*reference).reopen()
}

func TestReference(t *testing.T) {
	Run(t, Harness{Open: func(*testing.T) queue.Store { return newReference() }, Reopen: reopenReference, Synctest: true})
}
