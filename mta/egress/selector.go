package egress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta"
)

// The rules that a mailspine.NotNow of a Selector names.
const (
	RuleSource = "egress/source-cap" // no source of the pool has room
	RuleDomain = "egress/domain-cap" // the sending domain has none
)

var (
	// ErrNoPool is matched by the error for a message whose tenant no pool is for, or that
	// names a pool which is not for its tenant. It is temporary: a mistake of the configuration bounces nothing at
	// once.
	ErrNoPool = errors.New("egress: no pool")
	// ErrNoState is returned while Selector.State is nil.
	ErrNoState = errors.New("egress: Selector.State is nil")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("egress: the Selector is closed")
)

// underWay is how long to wait for what others have reserved and may give back.
const underWay = time.Minute

// A Selector is an mta.Egress: it chooses a source for each delivery, and keeps the
// caps. See the page of the package for the rules.
//
// Its fields must not change after first use; to change them, Close it and
// make another with the same State. The first use claims the State. A Selector whose fields or State are bad
// grants nothing: every method returns the error, which is temporary. It is safe
// for concurrent use, and must not be copied then.
type Selector struct {
	// Pools are the sources and who may use them. Required.
	Pools []Pool
	// Domains are the sending domains that are counted. A domain that is not here has no cap of
	// its own.
	Domains []Domain
	// State remembers what was sent. Required: without it nothing is sent, since every
	// restart would begin the day's caps anew.
	State State

	// SendingDomain tells which domain a message is sent as, "" for none. It must be safe for
	// concurrent use, and fast. nil: the domain of the reverse-path, which a wrapper
	// that seals return paths may have replaced; notifications have none.
	SendingDomain func(*mailspine.Envelope) string
	// Block is how many copies one durable write reserves for a source or domain: the first of them is
	// used, and the others are what a crash may lose of a day's cap at most, besides what was under way. 0: a fiftieth of the
	// cap, from 1 to 1,000; 1,000 without a cap. 1: nothing is lost, and each delivery waits for the disk.
	Block int64

	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: slog.Default
	Trace  *Trace           // nil: none

	// saving is held while records are written: they reach the State in the order in which they were
	// made. It is taken before mu.
	saving sync.Mutex

	mu     sync.Mutex
	house  *house // nil: not claimed yet
	closed bool
}

var _ mta.Egress = (*Selector)(nil)

// A Trace is a set of hooks. Any may be nil. They are called on the path of a
// delivery, by many goroutines at once. They return soon, and do not call the Selector.
type Trace struct {
	// Chosen is called for each answer of Choose, also for one that grants nothing.
	Chosen func(ctx context.Context, info ChosenInfo)
	// Saved is called after each write to the State.
	Saved func(ctx context.Context, info SavedInfo)
}

// ChosenInfo tells what a delivery was granted. It may get more fields.
type ChosenInfo struct {
	Env           *mailspine.Envelope
	Domain        string // where it goes
	Pool          string // "": none
	SendingDomain string
	Grants        []mta.Grant // not to be modified
	Err           error       // for all recipients
}

// SavedInfo tells of a write. It may get more fields.
type SavedInfo struct {
	Records  []Record
	Duration time.Duration
	Err      error
}

func (s *Selector) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Selector) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

// Validate says which field is wrong, or contradicts another.
func (s *Selector) Validate() error {
	_, err := s.build()
	return err
}

// open claims the State, once. It is called with mu.
func (s *Selector) open(ctx context.Context) error {
	switch {
	case s.closed:
		return ErrClosed
	case s.house != nil:
		return nil
	}
	h, err := s.build()
	if err != nil {
		return err
	}
	recs, err := s.State.Claim(ctx)
	if err != nil {
		return fmt.Errorf("egress: claim the state: %w", err)
	}
	if err := h.load(recs); err != nil {
		return errors.Join(err, s.State.Release())
	}
	s.house = h
	return nil
}

func (h *house) load(recs []Record) error {
	counters := make(map[Key]*counter, len(h.sources)+len(h.order))
	for _, src := range h.sources {
		counters[src.key] = &src.counter
	}
	for _, c := range h.order {
		counters[c.key] = c
	}
	for _, r := range recs {
		if err := r.Validate(); err != nil {
			return err
		}
		if c := counters[r.Key]; c != nil {
			c.load(r)
		}
	}
	return nil
}

// domain returns the sending domain of a message in its normal form.
func (s *Selector) domain(env *mailspine.Envelope) string {
	name := env.From.Domain
	if s.SendingDomain != nil {
		name = s.SendingDomain(env)
	}
	if ascii, err := mailspine.ASCIIDomain(name); err == nil {
		return ascii
	}
	return strings.ToLower(name)
}

// A share is what one source gets of a message.
type share struct {
	*source
	n int
}

// A plan is the answer to a message, before anything is reserved.
type plan struct {
	pool    *pool
	sending string
	domain  *counter // of the sending domain; nil: it is not counted
	shares  []share
	// The recipients that wait, for their source or domain, and why.
	bySource, byDomain       int
	sourceHolds, domainHolds *mailspine.NotNow
}

// plan divides n recipients. It is called with mu, and brings the counters that it looks at to
// the day. sending is the sending domain.
func (s *Selector) plan(env *mailspine.Envelope, sending string, n int) (p plan, err error) {
	now := s.now()
	today := DayOf(now)
	p.sending = sending
	if p.pool, err = s.house.find(env); err != nil {
		return p, err
	}
	if c := s.house.domains[p.sending]; c != nil {
		*c = c.on(today)
		p.domain = c
		if room := c.room(); room < int64(n) {
			p.byDomain = n - int(room)
			p.domainHolds = hold(now, RuleDomain, "domain", c)
		}
	}
	left := n - p.byDomain
	for _, m := range p.pool.members {
		m.counter = m.counter.on(today)
	}
	// The one that has sent least for its weight, of those with room; the first of equals.
	var best *member
	for i := range p.pool.members {
		m := &p.pool.members[i]
		if m.room() > 0 && (best == nil || m.before(*best, now)) {
			best = m
		}
	}
	switch {
	case left == 0 || best == nil:
	case best.room() >= int64(left):
		p.shares = []share{{best.source, left}}
		left = 0
	default:
		// It is filled, then the next, and so on: what they have sent already decides.
		for _, m := range p.pool.byLoad(now) {
			k := int(min(int64(left), m.room()))
			if k > 0 {
				p.shares = append(p.shares, share{m.source, k})
				left -= k
			}
		}
	}
	if left > 0 {
		p.bySource = left
		var full []*counter
		for _, m := range p.pool.members {
			full = append(full, &m.counter)
		}
		p.sourceHolds = hold(now, RuleSource, "source", full...)
	}
	return p, nil
}

// maxNamed bounds how many sources a reason names.
const maxNamed = 4

// hold says why counters without room make a message wait, and until when.
func hold(now time.Time, rule, what string, full ...*counter) *mailspine.NotNow {
	nn := &mailspine.NotNow{Rule: rule}
	var b strings.Builder
	for i, c := range full {
		until := (c.day + 1).Start()
		if c.reserved > 0 {
			// What is under way may be given back. The others need not wait until tomorrow for it.
			if soon := now.Add(underWay); soon.Before(until) {
				until = soon
			}
		}
		if nn.Until.IsZero() || until.Before(nn.Until) {
			nn.Until = until
		}
		if i >= maxNamed {
			continue
		}
		if i > 0 {
			b.WriteString("; ")
		}
		limit, _ := c.limit()
		fmt.Fprintf(&b, "%s %s sent %d of %d on its day %d", what, c.key.Name, c.sent+c.lost, limit, c.number)
		if c.reserved > 0 {
			fmt.Fprintf(&b, ", %d under way", c.reserved)
		}
		if c.day > DayOf(now) {
			fmt.Fprintf(&b, ", which is %v, ahead of the clock", c.day)
		}
	}
	if n := len(full) - maxNamed; n > 0 {
		fmt.Fprintf(&b, "; and %d more", n)
	}
	nn.Reason = "warm-up: " + b.String()
	return nn
}

// Choose reserves room for the recipients of a delivery. Those for which there is none
// get a *mailspine.NotNow. What is granted is durable as reserved when it returns; the
// Done of each grant says what of it was used.
func (s *Selector) Choose(ctx context.Context, req mta.EgressRequest) ([]mta.Grant, error) {
	p, grants, err := s.choose(ctx, req)
	if s.Trace != nil && s.Trace.Chosen != nil {
		info := ChosenInfo{Env: req.Env, Domain: req.Domain, SendingDomain: p.sending, Grants: grants, Err: err}
		if p.pool != nil {
			info.Pool = p.pool.name
		}
		s.Trace.Chosen(ctx, info)
	}
	return grants, err
}

func (s *Selector) choose(ctx context.Context, req mta.EgressRequest) (p plan, grants []mta.Grant, err error) {
	p, res, covered, err := s.reserve(ctx, req)
	if err != nil {
		return p, nil, err
	}
	next := req.Recipients
	take := func(n int) []int {
		part := next[:n:n]
		next = next[n:]
		return part
	}
	grants = make([]mta.Grant, 0, len(res)+2)
	for i, sh := range p.shares {
		grants = append(grants, mta.Grant{Recipients: take(sh.n), Source: sh.mta(), Done: res[i].done(ctx)})
	}
	if p.bySource > 0 {
		grants = append(grants, mta.Grant{Recipients: take(p.bySource), Err: p.sourceHolds})
	}
	if p.byDomain > 0 {
		grants = append(grants, mta.Grant{Recipients: take(p.byDomain), Err: p.domainHolds})
	}
	if !covered {
		if err := s.cover(ctx, res); err != nil {
			// Nobody is sent what a crash would forget.
			for _, g := range grants[:len(res)] {
				g.Done(0)
			}
			return p, nil, err
		}
	}
	return p, grants, nil
}

// reserve plans, and reserves what is planned. covered reports whether the State has it already.
func (s *Selector) reserve(ctx context.Context, req mta.EgressRequest) (p plan, res []reservation, covered bool, err error) {
	p.sending = s.domain(req.Env)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err = s.open(ctx); err != nil {
		return p, nil, false, err
	}
	if p, err = s.plan(req.Env, p.sending, len(req.Recipients)); err != nil {
		return p, nil, false, err
	}
	res = make([]reservation, len(p.shares))
	covered = true
	for i, sh := range p.shares {
		r := &res[i]
		*r = reservation{s: s, source: &sh.counter, domain: p.domain, n: int64(sh.n), day: sh.day}
		r.source.reserve(r.n)
		covered = covered && r.source.used() <= r.source.bound
		if r.domain != nil {
			r.domainDay = r.domain.day
			r.domain.reserve(r.n)
			covered = covered && r.domain.used() <= r.domain.bound
		}
	}
	return p, res, covered, nil
}

// A reservation is one grant that has not ended.
type reservation struct {
	s              *Selector
	source         *counter
	domain         *counter // nil: none
	n              int64
	day, domainDay Day
	ended          bool
}

// done returns the Done of a grant. The context is for traces and logs.
func (r *reservation) done(ctx context.Context) func(int) {
	ctx = context.WithoutCancel(ctx)
	return func(sent int) {
		first, write := r.end(int64(sent))
		if !write {
			return
		}
		// An error is logged, and costs nothing but what a crash would lose.
		_ = r.s.save(ctx, func() (recs []Record) {
			for i, c := range []*counter{r.source, r.domain} {
				if c == nil {
					continue
				}
				if rec, ok := c.want(r.s.Block); ok {
					recs = append(recs, rec)
				} else if first[i] {
					recs = append(recs, c.record())
				}
			}
			return recs
		})
	}
}

// end settles the reservation, once. first says whether it made the day a sending day of the source and of the domain,
// which is to be known at once, whatever comes then; write, whether there is something to be written.
func (r *reservation) end(sent int64) (first [2]bool, write bool) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.ended {
		return first, false
	}
	r.ended = true
	sent = min(max(sent, 0), r.n)
	first[0] = r.source.settle(r.day, r.n, sent)
	if r.source.missed = r.s.now(); sent > 0 {
		r.source.missed = time.Time{}
	}
	write = first[0] || r.source.stale(r.s.Block)
	if r.domain != nil {
		first[1] = r.domain.settle(r.domainDay, r.n, sent)
		write = write || first[1] || r.domain.stale(r.s.Block)
	}
	return first, write && !r.s.closed
}

// cover makes what is reserved durable. While one writes, others gather, and the
// next write is for all of them.
func (s *Selector) cover(ctx context.Context, res []reservation) error {
	return s.save(ctx, func() (recs []Record) {
		seen := map[*counter]bool{}
		for i := range res {
			for _, c := range []*counter{res[i].source, res[i].domain} {
				if c == nil || seen[c] {
					continue
				}
				seen[c] = true
				if r, ok := c.want(s.Block); ok {
					recs = append(recs, r)
				}
			}
		}
		return recs
	})
}

// save writes the records that pick returns, which is called with mu.
func (s *Selector) save(ctx context.Context, pick func() []Record) error {
	s.saving.Lock()
	defer s.saving.Unlock()
	recs, err := s.pick(pick)
	if err != nil || len(recs) == 0 {
		return err // without records, another's write had them
	}
	if err := s.write(ctx, recs); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range recs {
		s.house.counter(r.Key).saved(r)
	}
	return nil
}

func (s *Selector) pick(pick func() []Record) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	return pick(), nil
}

func (s *Selector) write(ctx context.Context, recs []Record) error {
	start := time.Now()
	err := s.State.Save(ctx, recs...)
	if err != nil {
		err = fmt.Errorf("egress: save what is sent: %w", err)
		s.logger().ErrorContext(ctx, "egress: the state cannot be written", "err", err)
	}
	if s.Trace != nil && s.Trace.Saved != nil {
		s.Trace.Saved(ctx, SavedInfo{Records: recs, Duration: time.Since(start), Err: err})
	}
	return err
}

func (h *house) counter(k Key) *counter {
	if k.Kind == KindDomain {
		return h.domains[k.Name]
	}
	return &h.byName[k.Name].counter
}

// Close writes the exact counts, and gives the State back, which it does not close. Call it when no delivery
// is under way: what is counts as sent. From then on nothing is granted. A second Close does
// nothing.
func (s *Selector) Close() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	recs, claimed := s.shut()
	if !claimed {
		return nil
	}
	var err error
	if len(recs) > 0 {
		err = s.write(context.Background(), recs)
	}
	return errors.Join(err, s.State.Release())
}

// shut closes the door. claimed is false if there is nothing to write and to give back.
func (s *Selector) shut() (recs []Record, claimed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.house == nil {
		s.closed = true
		return nil, false
	}
	s.closed = true
	for _, src := range s.house.sources {
		if src.touched {
			recs = append(recs, src.final())
		}
	}
	for _, c := range s.house.order {
		if c.touched {
			recs = append(recs, c.final())
		}
	}
	return recs, true
}
