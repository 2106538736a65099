package ledger

import (
	"container/heap"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mailspine/mailspine/queue"
)

// The defaults of Options.
const (
	DefaultMaxKeys    = 1_000_000
	DefaultMaxPermits = 1_000_000
)

// Options tune a Ledger.
type Options struct {
	MaxKeys    int              // how many keys are counted at the same time; 0: DefaultMaxKeys
	MaxPermits int              // how many permits are open; 0: DefaultMaxPermits
	Block      int64            // what is reserved at a time; 0: a fiftieth of a limit, up to 1,000
	Now        func() time.Time // nil: time.Now
	Journal    Journal          // nil: nothing survives
	Records    []Record         // what the Journal has
}

// A Ledger is a queue.Limiter. It is made by [New].
type Ledger struct {
	opt  Options
	base time.Time

	mu       sync.Mutex
	idle     *sync.Cond // of mu: a write ended
	closed   bool
	last     moment
	accounts map[key]*account
	sweepAt  int           // when there are so many accounts the dead ones go
	sweptAt  time.Duration // when that was done last
	permits  map[queue.PermitID]*permit
	ends     permitHeap
	nextID   uint64
	writing  *write // under way
	next     *write // gathers
	lowered  map[*account]struct{}
}

var _ queue.Limiter = (*Ledger)(nil)

// A moment is a reading of the clock.
type moment struct {
	at    time.Duration // since the Ledger was made; it never goes back
	wall  int64         // nanoseconds since 1970; it never goes back
	clock int64         // the same as the clock has it
}

type permit struct {
	id    queue.PermitID
	n     int64
	end   time.Duration
	parts []part
	index int // in the heap
}

// A part is what a permit took of one account.
type part struct {
	a      *account
	n      int64
	scaled bool  // n is the request's N
	period int64 // of a Quota

	before, gone, back int64 // the account's used, gone and back, before n was taken
}

// New returns a Ledger with the counts of o.Records, which are valid.
func New(o Options) *Ledger {
	if o.MaxKeys <= 0 {
		o.MaxKeys = DefaultMaxKeys
	}
	if o.MaxPermits <= 0 {
		o.MaxPermits = DefaultMaxPermits
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	l := &Ledger{
		opt: o, base: o.Now(), accounts: map[key]*account{}, sweepAt: minSweep,
		permits: map[queue.PermitID]*permit{}, lowered: map[*account]struct{}{},
	}
	l.idle = sync.NewCond(&l.mu)
	// Permits of an earlier process are not known any more, and must not be taken for ours.
	var b [8]byte
	rand.Read(b[:])
	l.nextID = binary.LittleEndian.Uint64(b[:])
	l.load(o.Records)
	l.opt.Records = nil
	return l
}

// now reads the clock. It is called with mu.
func (l *Ledger) now() moment {
	t := l.opt.Now()
	clock := t.UnixNano()
	l.last = moment{at: max(l.last.at, t.Sub(l.base)), wall: max(l.last.wall, clock), clock: clock}
	return l.last
}

// Take implements queue.Limiter.
func (l *Ledger) Take(ctx context.Context, req queue.TakeRequest) (queue.Permit, error) {
	req, err := req.Normal()
	if err != nil {
		return queue.Permit{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for range maxRounds {
		if err := ctx.Err(); err != nil {
			return queue.Permit{}, err
		}
		if l.closed {
			return queue.Permit{}, queue.ErrClosed
		}
		t := l.now()
		l.expire(t)
		var buf [4]*account
		accounts, n, err := l.weigh(req, t, buf[:0])
		if err != nil {
			return queue.Permit{}, err
		}
		if err := l.admit(req, accounts, t); err != nil {
			return queue.Permit{}, err
		}
		w := l.reserve(req, accounts, n, t)
		if w == nil {
			return l.grant(req, accounts, n, t), nil
		}
		for _, a := range accounts {
			a.pins++
		}
		err = l.await(ctx, w)
		for _, a := range accounts {
			a.pins--
		}
		if err != nil {
			return queue.Permit{}, err
		}
	}
	return queue.Permit{}, errors.New("queue: the limiter is too busy")
}

// maxRounds bounds how often a Take reserves again because others were faster.
const maxRounds = 100

// weigh finds the accounts, brings them to the moment, and says how much can be taken. An account that is
// new is not remembered yet.
func (l *Ledger) weigh(req queue.TakeRequest, t moment, accounts []*account) ([]*account, int64, error) {
	n := req.N
	var over *queue.OverLimit
	for _, lim := range req.Limits {
		a := l.account(lim, t)
		accounts = append(accounts, a)
		room, need := a.room(lim), lim.N
		if need == 0 {
			need = req.Min
			n = min(n, room)
		}
		if room >= need {
			continue
		}
		wait, never := a.wait(lim, need, t)
		if over == nil || never && !over.Never || never == over.Never && wait > over.Wait {
			over = &queue.OverLimit{Limit: lim, Need: need, Room: room, Wait: wait, Never: never}
		}
	}
	if over != nil {
		return nil, 0, over
	}
	return accounts, n, nil
}

// account returns the account of a limit as it is at a moment.
func (l *Ledger) account(lim queue.Limit, t moment) *account {
	k := keyOf(lim)
	a := l.accounts[k]
	if a == nil {
		a = &account{key: k, at: t.at}
	}
	a.advance(lim, t)
	return a
}

// admit remembers the accounts that are new, if there is room for them and the permit.
func (l *Ledger) admit(req queue.TakeRequest, accounts []*account, t moment) error {
	if req.TTL > 0 && len(l.permits) >= l.opt.MaxPermits {
		return fmt.Errorf("%w: there are %d permits", queue.ErrLimiterFull, len(l.permits))
	}
	fresh := func() (n int) {
		for _, a := range accounts {
			if l.accounts[a.key] != a {
				n++
			}
		}
		return n
	}
	if fresh() == 0 {
		return nil
	}
	if n := len(l.accounts) + fresh(); n > l.sweepAt || n > l.opt.MaxKeys && t.at-l.sweptAt >= time.Second {
		l.sweep(t) // it may drop some of these, too
	}
	if len(l.accounts)+fresh() > l.opt.MaxKeys {
		return fmt.Errorf("%w: there are %d keys", queue.ErrLimiterFull, len(l.accounts))
	}
	for _, a := range accounts {
		l.accounts[a.key] = a
	}
	return nil
}

// minSweep is how many accounts there are at least when dead ones are looked for.
const minSweep = 1024

// sweep forgets the accounts that are dead. It is done when there are twice as many as it left the last time, so
// that each account is looked at about once, and once a second when there is no room.
func (l *Ledger) sweep(t moment) {
	for k, a := range l.accounts {
		if a.dead(t) {
			delete(l.accounts, k)
			delete(l.lowered, a)
		}
	}
	l.sweepAt = max(minSweep, 2*len(l.accounts))
	l.sweptAt = t.at
}

// grant takes n.
func (l *Ledger) grant(req queue.TakeRequest, accounts []*account, n int64, t moment) queue.Permit {
	var p *permit
	out := queue.Permit{N: n}
	if req.TTL > 0 {
		if l.nextID++; l.nextID == 0 {
			l.nextID++
		}
		p = &permit{id: queue.PermitID(l.nextID), n: n, end: t.at + req.TTL, parts: make([]part, 0, len(accounts))}
		out.ID, out.TTL = p.id, req.TTL
	}
	for i, a := range accounts {
		lim := req.Limits[i]
		x := part{a: a, n: lim.N, period: a.period, before: a.used, gone: a.gone, back: a.back}
		if lim.N == 0 {
			x.n, x.scaled = n, true
		}
		a.used += x.n
		if lim.Kind == queue.Quota {
			if left := a.left(lim, t); out.Period == 0 || left < out.Period {
				out.Period = left
			}
		}
		if p != nil {
			p.parts = append(p.parts, x)
		}
	}
	if p != nil {
		l.permits[p.id] = p
		heap.Push(&l.ends, p)
	}
	return out
}

// expire ends the permits whose time is over.
func (l *Ledger) expire(t moment) {
	for len(l.ends) > 0 && l.ends[0].end <= t.at {
		l.end(l.ends[0], 0, t)
	}
}

// end ends a permit of which so much was not used.
func (l *Ledger) end(p *permit, unused int64, t moment) {
	delete(l.permits, p.id)
	heap.Remove(&l.ends, p.index)
	unused = min(max(unused, 0), p.n)
	for _, x := range p.parts {
		give := int64(0)
		switch {
		case x.a.kind == queue.Slots:
			give = x.n
		case x.scaled:
			give = unused
		case unused == p.n:
			give = x.n
		}
		switch x.a.kind {
		case queue.Quota:
			if x.period != x.a.period {
				continue
			}
		case queue.Rate:
			var begun bool
			if give, begun = x.a.remains(x, give); begun {
				x.a.at = max(x.a.at, t.at)
			}
			x.a.back += give
		}
		x.a.used -= give
		l.lower(x.a, t)
	}
}

// Renew implements queue.Limiter.
func (l *Ledger) Renew(ctx context.Context, ttl time.Duration, ids ...queue.PermitID) (ended []queue.PermitID, err error) {
	if ttl <= 0 {
		ttl = queue.DefaultPermitTTL
	}
	ttl = min(ttl, queue.MaxPermitTTL)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(ctx); err != nil {
		return nil, err
	}
	t := l.now()
	l.expire(t)
	for _, id := range ids {
		p := l.permits[id]
		if p == nil {
			ended = append(ended, id)
			continue
		}
		p.end = t.at + ttl
		heap.Fix(&l.ends, p.index)
	}
	return ended, nil
}

func (l *Ledger) usable(ctx context.Context) error {
	if l.closed {
		return queue.ErrClosed
	}
	return ctx.Err()
}

// Return implements queue.Limiter.
func (l *Ledger) Return(ctx context.Context, id queue.PermitID, unused int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(ctx); err != nil {
		return err
	}
	t := l.now()
	l.expire(t)
	p := l.permits[id]
	if p == nil {
		return nil
	}
	for _, x := range p.parts {
		// What has come back by itself is not given back.
		if x.a.kind == queue.Rate {
			x.a.advance(x.a.policy(), t)
		}
	}
	l.end(p, unused, t)
	return nil
}

// Usage implements queue.Limiter.
func (l *Ledger) Usage(ctx context.Context, limits ...queue.Limit) ([]queue.Usage, error) {
	if len(limits) > queue.MaxLimits {
		return nil, fmt.Errorf("%w: %d limits, over %d", queue.ErrBadLimit, len(limits), queue.MaxLimits)
	}
	all := make([]queue.Usage, len(limits))
	for i, lim := range limits {
		n, err := lim.Normal()
		if err != nil {
			return nil, err
		}
		all[i].Limit = n
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(ctx); err != nil {
		return nil, err
	}
	t := l.now()
	l.expire(t)
	for i := range all {
		u := &all[i]
		a := l.account(u.Limit, t)
		u.Used, u.Room = a.used, a.room(u.Limit)
		if need := max(u.Limit.N, 1); u.Room < need {
			u.Wait, u.Never = a.wait(u.Limit, need, t)
		}
	}
	return all, nil
}

// Stats counts what a Ledger remembers.
type Stats struct{ Keys, Permits int }

// Stats returns how much is remembered.
func (l *Ledger) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{len(l.accounts), len(l.permits)}
}

// permitHeap has the permit that ends first at the top.
type permitHeap []*permit

func (h permitHeap) Len() int           { return len(h) }
func (h permitHeap) Less(i, j int) bool { return h[i].end < h[j].end }
func (h permitHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *permitHeap) Push(x any) {
	p := x.(*permit)
	p.index = len(*h)
	*h = append(*h, p)
}
func (h *permitHeap) Pop() any {
	old := *h
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return p
}
