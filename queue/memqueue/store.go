package memqueue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// The defaults of Options.
const (
	DefaultMaxMessages   = 100_000
	DefaultMaxBytes      = 256 << 20
	DefaultMaxTombstones = 1_000_000
)

// Options bound a Store. The zero value, and nil, mean the defaults.
type Options struct {
	// MaxMessages is how many messages are stored at most; 0: DefaultMaxMessages.
	MaxMessages int
	// MaxBytes is how many octets of content are stored at most; 0: DefaultMaxBytes.
	MaxBytes int64
	// MaxTombstones is how many IDs of finished messages are remembered at most.
	// Beyond it the oldest are forgotten before queue.TombstoneTTL is over; 0:
	// DefaultMaxTombstones.
	MaxTombstones int
}

// A Store keeps messages in memory. It is made by [New].
//
// What a settlement emits is never refused for being over the limits: a report
// takes the place of the recipients that it is about, so that the overshoot is
// bounded by the number of items stored.
type Store struct {
	limits Options

	began    time.Time // zero of the schedule's times
	mu       sync.Mutex
	closed   bool
	ops      sync.WaitGroup // operations under way; added to only with mu held and not closed
	changed  chan struct{}  // closed and replaced when something may have become due
	messages map[mailspine.MsgID]*message
	slots    map[queue.ItemID]sched.Slot
	items    sched.Slab[item] // by the Slots of sched
	sched    sched.Schedule
	lastItem queue.ItemID
	bytes    int64 // of stored content and of content that is being read
	reading  int   // messages that are being read, which count as stored

	tombstones map[mailspine.MsgID]struct{}
	graves     []grave // in the order of their end
}

var (
	_ queue.Store         = (*Store)(nil)
	_ queue.Inspector     = (*Store)(nil)
	_ queue.Controller    = (*Store)(nil)
	_ queue.Waiter        = (*Store)(nil)
	_ queue.HealthChecker = (*Store)(nil)
)

type grave struct {
	id  mailspine.MsgID
	end int64
}

type message struct {
	env   *mailspine.Envelope // ours, never modified
	body  []byte              // never modified, so readers outlive the message
	items []sched.Slot        // those that are left
	put   int64
}

type item struct {
	id       queue.ItemID
	msg      *message
	rcpts    []recipient // those that are open, by index
	attempts int
	epoch    uint64
	reason   string
}

type recipient struct {
	index  int
	last   queue.Result
	warned bool
}

// New returns an empty Store. nil options are the defaults.
func New(o *Options) *Store {
	s := &Store{
		began:      time.Now(),
		changed:    make(chan struct{}),
		messages:   map[mailspine.MsgID]*message{},
		slots:      map[queue.ItemID]sched.Slot{},
		tombstones: map[mailspine.MsgID]struct{}{},
	}
	if o != nil {
		s.limits = *o
	}
	if s.limits.MaxMessages <= 0 {
		s.limits.MaxMessages = DefaultMaxMessages
	}
	if s.limits.MaxBytes <= 0 {
		s.limits.MaxBytes = DefaultMaxBytes
	}
	if s.limits.MaxTombstones <= 0 {
		s.limits.MaxTombstones = DefaultMaxTombstones
	}
	s.sched.Advance(0)
	return s
}

// now returns the time on the schedule's clock.
func (s *Store) now() int64 { return int64(time.Since(s.began)) }

// begin starts an operation, which ends with s.ops.Done. On success it returns
// with s.mu held.
func (s *Store) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return queue.ErrClosed
	}
	s.ops.Add(1)
	return nil
}

func (s *Store) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Close ends the store and forgets all that is in it. It implements queue.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		s.notify()
	}
	s.mu.Unlock()
	s.ops.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages, s.slots, s.tombstones, s.graves = nil, nil, nil, nil
	s.items, s.sched = sched.Slab[item]{}, sched.Schedule{}
	return nil
}

// Put implements queue.Store. Its nil promises memory only.
func (s *Store) Put(ctx context.Context, m queue.Message, msg mailspine.Content) error {
	if err := m.Validate(msg); err != nil {
		return err
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.ops.Done()
	id, size := m.Envelope.ID, msg.Size()
	s.bury(s.now())
	if s.known(id) {
		s.mu.Unlock()
		return nil
	}
	if err := s.full(size); err != nil {
		s.mu.Unlock()
		return err
	}
	// The content is read without the lock; what it takes is reserved.
	s.bytes += size
	s.reading++
	s.mu.Unlock()
	body, err := mailspine.ReadContent(ctx, msg, size)
	if err == nil {
		err = ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes -= size
	s.reading--
	if err != nil {
		return fmt.Errorf("memqueue: reading message %s: %w", id, err)
	}
	if !s.known(id) { // another Put may have been faster
		s.insert(m, body)
		s.notify()
	}
	return nil
}

// known reports whether id is stored or has a tombstone.
func (s *Store) known(id mailspine.MsgID) bool {
	_, stored := s.messages[id]
	_, dead := s.tombstones[id]
	return stored || dead
}

// bury forgets the tombstones that have had their time, or are too many.
func (s *Store) bury(now int64) {
	n := 0
	for n < len(s.graves) && (now > s.graves[n].end || len(s.graves)-n > s.limits.MaxTombstones) {
		delete(s.tombstones, s.graves[n].id)
		n++
	}
	s.graves = s.graves[n:]
}

// full returns an error if there is no room for a message of size more octets.
func (s *Store) full(size int64) error {
	var why string
	switch {
	case len(s.messages)+s.reading >= s.limits.MaxMessages:
		why = fmt.Sprintf("memqueue: full at %d messages", s.limits.MaxMessages)
	case size > s.limits.MaxBytes-s.bytes:
		why = fmt.Sprintf("memqueue: %d more octets would pass %d", size, s.limits.MaxBytes)
	default:
		return nil
	}
	return mailspine.Errorf(452, "4.3.1", "Insufficient system storage").WithCause(errors.New(why))
}

func (s *Store) insert(m queue.Message, body []byte) {
	now := s.now()
	s.sched.Advance(now)
	msg := &message{env: m.Envelope.Clone(), body: body, put: now}
	s.messages[msg.env.ID] = msg
	s.bytes += int64(len(body))
	for _, n := range m.Items {
		s.lastItem++
		i := s.sched.Add(sched.Item{
			Route: string(n.Route), Tenant: msg.env.Tenant, Priority: msg.env.Priority, Size: int64(len(body)), Weight: max(1, m.Weight),
		})
		it := s.items.Claim(i)
		it.id, it.msg = s.lastItem, msg
		for _, r := range n.Recipients {
			it.rcpts = append(it.rcpts, recipient{index: r})
		}
		slices.SortFunc(it.rcpts, func(a, b recipient) int { return a.index - b.index })
		msg.items = append(msg.items, i)
		s.slots[it.id] = i
		if m.Hold != "" {
			it.reason = m.Hold
			s.sched.Hold(i)
			continue
		}
		s.sched.Wait(i, now+sched.Span(m.Delay))
	}
}

// Lease implements queue.Store.
func (s *Store) Lease(ctx context.Context, req queue.LeaseRequest) ([]queue.Lease, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.ops.Done()
	defer s.mu.Unlock()
	now, n := s.now(), max(1, req.Max)
	exclude := sched.Strings(req.Exclude)
	var slots []sched.Slot
	for {
		s.sched.Advance(now)
		slots = s.sched.Lease(slots, n-len(slots), now+leaseTTL(req.TTL), exclude)
		if len(slots) == n || !s.sched.Behind() {
			break
		}
	}
	return s.leases(slots, now), nil
}

// leases begins the leases of items that were lent.
func (s *Store) leases(slots []sched.Slot, now int64) []queue.Lease {
	leases := make([]queue.Lease, 0, len(slots))
	for _, i := range slots {
		it := s.items.At(i)
		it.epoch++
		env, states := it.open()
		leases = append(leases, queue.Lease{
			Token: queue.Token{Item: it.id, Epoch: it.epoch}, Route: queue.Route(s.sched.Route(i)),
			Envelope: env, Recipients: states,
			Attempts: it.attempts, Age: time.Duration(now - it.msg.put), Size: int64(len(it.msg.body)),
		})
	}
	return leases
}

// open returns the envelope for the recipients that are open, and what is
// remembered of each; both are the caller's.
func (it *item) open() (*mailspine.Envelope, []queue.RecipientState) {
	index := make([]int, len(it.rcpts))
	states := make([]queue.RecipientState, len(it.rcpts))
	for i, r := range it.rcpts {
		index[i] = r.index
		states[i] = queue.RecipientState{Index: r.index, Last: keep(r.last), Warned: r.warned}
	}
	return it.msg.env.Subset(index).Clone(), states
}

func leaseTTL(ttl time.Duration) int64 {
	if ttl <= 0 {
		ttl = queue.DefaultLeaseTTL
	}
	return sched.Span(ttl)
}

// holder returns the item of a lease that is held, or 0.
func (s *Store) holder(t queue.Token) sched.Slot {
	i := s.slots[t.Item]
	if i == 0 || s.sched.State(i) != sched.Leased || s.items.At(i).epoch != t.Epoch {
		return 0
	}
	return i
}

// Extend implements queue.Store. A ttl of 0 is queue.DefaultLeaseTTL.
func (s *Store) Extend(ctx context.Context, ttl time.Duration, tokens ...queue.Token) (lost []queue.Token, err error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.ops.Done()
	defer s.mu.Unlock()
	now := s.now()
	s.sched.Advance(now)
	for _, t := range tokens {
		if i := s.holder(t); i != 0 {
			s.sched.Lend(i, now+leaseTTL(ttl))
		} else {
			lost = append(lost, t)
		}
	}
	s.notify() // a shortened lease may be the next to end
	return lost, nil
}

// Settle implements queue.Store.
func (s *Store) Settle(ctx context.Context, settlements ...queue.Settlement) ([]error, error) {
	// Emissions are read before the lock is taken: their content may come from
	// this store.
	bodies := make([][][]byte, len(settlements))
	errs := make([]error, len(settlements))
	for i, st := range settlements {
		for _, e := range st.Emit {
			if errs[i] = e.Message.Validate(e.Content); errs[i] != nil {
				break
			}
			body, err := mailspine.ReadContent(ctx, e.Content, e.Content.Size())
			if err != nil {
				errs[i] = fmt.Errorf("memqueue: reading message %s: %w", e.Message.Envelope.ID, err)
				break
			}
			bodies[i] = append(bodies[i], body)
		}
	}
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.ops.Done()
	defer s.mu.Unlock()
	for i, st := range settlements {
		if errs[i] == nil {
			errs[i] = s.settle(st, bodies[i])
		}
	}
	s.notify()
	return errs, nil
}

func (s *Store) settle(st queue.Settlement, bodies [][]byte) error {
	now := s.now()
	s.sched.Advance(now)
	i := s.holder(st.Token)
	if i == 0 {
		return queue.ErrLeaseLost
	}
	it := s.items.At(i)
	if len(st.Results) != len(it.rcpts) {
		return fmt.Errorf("memqueue: settlement has %d results for %d recipients", len(st.Results), len(it.rcpts))
	}
	for _, r := range st.Results {
		if r.State > queue.Failed {
			return fmt.Errorf("memqueue: settlement with the unknown state %d", r.State)
		}
	}
	it.attempts++
	open := it.rcpts[:0]
	for k, r := range it.rcpts {
		if res := st.Results[k]; res.State == queue.Open {
			r.warned = r.warned || res.Warned
			r.last = keep(res)
			r.last.Warned = r.warned
			open = append(open, r)
		}
	}
	clear(it.rcpts[len(open):])
	it.rcpts = open
	if len(open) > 0 {
		it.reason = ""
		s.sched.Wait(i, now+sched.Span(st.Delay))
	} else {
		s.finish(i, now)
	}
	s.bury(now)
	for k, e := range st.Emit {
		if !s.known(e.Message.Envelope.ID) {
			s.insert(e.Message, bodies[k])
		}
	}
	return nil
}

// keep returns what is remembered of a result: of the cause its text only.
func keep(r queue.Result) queue.Result {
	if r.Status != nil {
		c := *r.Status
		if c.Err != nil {
			c.Err = errors.New(c.Err.Error())
		}
		r.Status = &c
	}
	return r
}

// finish removes an item whose recipients are all done, and its message after
// the last item.
func (s *Store) finish(i sched.Slot, now int64) {
	it := s.items.At(i)
	m := it.msg
	delete(s.slots, it.id)
	s.items.Free(i)
	s.sched.Remove(i)
	m.items = slices.DeleteFunc(m.items, func(x sched.Slot) bool { return x == i })
	if len(m.items) > 0 {
		return
	}
	delete(s.messages, m.env.ID)
	s.bytes -= int64(len(m.body))
	s.tombstones[m.env.ID] = struct{}{}
	s.graves = append(s.graves, grave{m.env.ID, now + int64(queue.TombstoneTTL)})
}

// Abandon implements queue.Store.
func (s *Store) Abandon(ctx context.Context, delay time.Duration, reason string, tokens ...queue.Token) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.ops.Done()
	defer s.mu.Unlock()
	now := s.now()
	s.sched.Advance(now)
	for _, t := range tokens {
		switch i := s.holder(t); {
		case i == 0:
		case s.sched.FromHold(i):
			s.sched.Hold(i)
		default:
			s.items.At(i).reason = reason
			s.sched.Wait(i, now+sched.Span(delay))
		}
	}
	s.notify()
	return nil
}

// Open implements queue.Store.
func (s *Store) Open(ctx context.Context, id mailspine.MsgID) (io.ReadCloser, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.ops.Done()
	defer s.mu.Unlock()
	m := s.messages[id]
	if m == nil {
		return nil, fmt.Errorf("memqueue: message %s: %w", id, queue.ErrNotFound)
	}
	return reader{bytes.NewReader(m.body)}, nil
}

type reader struct{ *bytes.Reader }

func (reader) Close() error { return nil }
