package queue

import (
	"container/heap"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// The defaults of BlockOptions.
const (
	DefaultBlockHold    = 10 * time.Second
	DefaultBlockTTL     = time.Minute
	DefaultBlockKeys    = 100_000
	DefaultBlockPermits = 1_000_000
)

// BlockOptions tune a BlockLimiter. The zero value, and nil, mean the defaults.
type BlockOptions struct {
	// Block is how much of a limit is taken at a time, where there is room and a request does not want more; 0: a
	// fiftieth of its Max (of a Rate, of its Burst), 1 to 1,000.
	Block int64
	// Hold is for how long what nobody uses is kept before it goes back; 0: DefaultBlockHold.
	Hold time.Duration
	// TTL is for how long the shared Limiter keeps what a node holds that died, from 4 times Hold up; 0: DefaultBlockTTL.
	TTL time.Duration
	// Keys and Permits bound what is remembered; beyond it a Take is ErrLimiterFull. 0: DefaultBlockKeys and
	// DefaultBlockPermits.
	Keys, Permits int
	// Logger gets what goes wrong behind the scenes; nil: slog.Default.
	Logger *slog.Logger
}

// A BlockLimiter is a Limiter that takes blocks from another one, which many nodes share and which is far away, and
// hands them out: most Takes ask nobody. It is made by [NewBlockLimiter].
//
// It grants nothing that the shared Limiter did not grant before, so the nodes keep one cap. What it costs is that a
// node holds up to a block of each key that another node could have used, until Hold after the last use; and that what
// comes back of a Rate can be used up to Hold later, so that in a span of time Burst and what comes back in it and in
// Hold can be granted. Slots are taken one by one, and kept for Hold for who comes next.
//
// It fails closed: while the shared Limiter cannot be asked, what it granted before is handed out, and nothing more. A
// slot whose renewal the shared Limiter does not get until TTL is over is lost, and Renew says so. A refusal is
// believed for a second at most, and a failure for a second.
type BlockLimiter struct {
	next Limiter
	opt  BlockOptions

	stop    context.CancelFunc // of the janitor
	janitor sync.WaitGroup
	ops     sync.WaitGroup // calls under way; added to only with mu held and not closed

	mu      sync.Mutex
	closed  bool
	pools   map[poolKey]*pool
	blocks  map[*block]struct{} // all that the shared Limiter has a permit for
	permits map[PermitID]*blockPermit
	ends    blockHeap
	nextID  uint64
	down    error // what asking said last, until downTo
	downTo  time.Time
}

var _ Limiter = (*BlockLimiter)(nil)

type poolKey struct {
	kind LimitKind
	key  string
	per  time.Duration
}

// A pool is what is held of one key.
type pool struct {
	limit  Limit         // the latest policy
	free   []*block      // with something left, the oldest first
	busy   chan struct{} // closed when the call under way ends; nil: there is none
	blocks int           // in BlockLimiter.blocks
	// over is the latest refusal, at refused. It is believed until again.
	over           *OverLimit
	refused, again time.Time
	retired        []*block // of a policy that allowed more: to go back before anything is asked for
}

// A block is a permit of the shared Limiter.
type block struct {
	id      PermitID
	pool    *pool
	n       int64
	left    int64     // not handed out
	out     int64     // handed out, and may come back
	end     time.Time // of the permit
	fetched time.Time
	valid   time.Time // when its period ends; zero: never
	idle    time.Time // of a slot: since when it is free
	listed  bool      // in pool.free
	retired bool      // it is to go back
	ended   bool      // the permit is
}

type blockPermit struct {
	id    PermitID
	n     int64
	end   time.Time
	parts []blockPart
	index int
}

type blockPart struct {
	b      *block
	limit  int // the index in the request
	n      int64
	scaled bool
}

// NewBlockLimiter returns a Limiter on top of next, which it does not close. nil options are the defaults. It has a goroutine
// that renews what is held and gives back what is not used, until Close.
func NewBlockLimiter(next Limiter, o *BlockOptions) *BlockLimiter {
	l := &BlockLimiter{
		next:  next,
		pools: map[poolKey]*pool{}, blocks: map[*block]struct{}{}, permits: map[PermitID]*blockPermit{},
	}
	if o != nil {
		l.opt = *o
	}
	l.opt.Hold = orDefault(max(l.opt.Hold, 0), DefaultBlockHold)
	l.opt.TTL = min(max(orDefault(l.opt.TTL, DefaultBlockTTL), 4*l.opt.Hold), MaxPermitTTL)
	l.opt.Keys = orDefault(max(l.opt.Keys, 0), DefaultBlockKeys)
	l.opt.Permits = orDefault(max(l.opt.Permits, 0), DefaultBlockPermits)
	if l.opt.Logger == nil {
		l.opt.Logger = slog.Default()
	}
	var b [8]byte
	rand.Read(b[:])
	l.nextID = binary.LittleEndian.Uint64(b[:])
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.janitor.Go(func() { l.tidy(ctx) })
	return l
}

// begin starts a call, which ends with l.ops.Done. On success it returns with mu.
func (l *BlockLimiter) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	l.ops.Add(1)
	return nil
}

// maxFetches bounds how often a Take asks for more because others were faster.
const maxFetches = 20

// Take implements Limiter.
func (l *BlockLimiter) Take(ctx context.Context, req TakeRequest) (Permit, error) {
	req, err := req.Normal()
	if err != nil {
		return Permit{}, err
	}
	if err := l.begin(ctx); err != nil {
		return Permit{}, err
	}
	defer l.ops.Done()
	defer l.mu.Unlock()
	pools := make([]*pool, len(req.Limits))
	for i, lim := range req.Limits {
		if pools[i], err = l.pool(lim); err != nil {
			return Permit{}, err
		}
	}
	asked := make([]bool, len(pools)) // and got what there was
	for range maxFetches {
		now := time.Now()
		l.expire(now)
		if req.TTL > 0 && len(l.permits) >= l.opt.Permits {
			return Permit{}, fmt.Errorf("%w: there are %d permits", ErrLimiterFull, len(l.permits))
		}
		again, over, err := l.gather(ctx, req, pools, asked, now)
		switch {
		case err != nil:
			return Permit{}, err
		case over != nil:
			return Permit{}, over
		case !again:
			return l.hand(req, pools, now), nil
		}
		if err := ctx.Err(); err != nil {
			return Permit{}, err
		}
	}
	return Permit{}, errors.New("queue: the limiter is too busy")
}

// pool returns the pool of a limit, under its policy. It is called with mu.
func (l *BlockLimiter) pool(lim Limit) (*pool, error) {
	k := poolKey{lim.Kind, lim.Key, lim.Per}
	p := l.pools[k]
	if p == nil {
		if len(l.pools) >= l.opt.Keys {
			return nil, fmt.Errorf("%w: there are %d keys", ErrLimiterFull, len(l.pools))
		}
		p = &pool{limit: lim}
		l.pools[k] = p
	}
	old := p.limit
	p.limit = lim
	if old.Max != lim.Max || old.Burst != lim.Burst || old.Offset != lim.Offset {
		p.over = nil
	}
	if lim.Max < old.Max || lim.Burst < old.Burst || lim.Offset != old.Offset {
		// What was granted under the old policy is not what the new one grants.
		for _, b := range p.free {
			b.retired, b.listed = true, false
			p.retired = append(p.retired, b)
		}
		p.free = nil
	}
	return p, nil
}

// usable reports whether what is left of a block can be handed out.
func (l *BlockLimiter) usable(b *block, now time.Time) bool {
	return !b.ended && !b.retired && now.Before(b.end) && (b.valid.IsZero() || now.Before(b.valid)) &&
		(b.pool.limit.Kind != Rate || now.Before(b.fetched.Add(l.opt.Hold)))
}

// have returns what is left in a pool, after throwing out what is of no use.
func (l *BlockLimiter) have(p *pool, now time.Time) (n int64) {
	p.free = slices.DeleteFunc(p.free, func(b *block) bool {
		b.listed = b.left > 0 && l.usable(b, now)
		return !b.listed
	})
	for _, b := range p.free {
		n += b.left
	}
	return n
}

// gather sees to it that each pool has what the request wants. again means that it gave up mu, so that all
// has to be looked at anew.
func (l *BlockLimiter) gather(ctx context.Context, req TakeRequest, pools []*pool, asked []bool, now time.Time) (again bool, over *OverLimit, err error) {
	worse := func(o *OverLimit) {
		if over == nil || o.Never && !over.Never || o.Never == over.Never && o.Wait > over.Wait {
			over = o
		}
	}
	for i, p := range pools {
		lim := req.Limits[i]
		want, need := lim.N, lim.N
		if lim.N == 0 {
			want, need = req.N, req.Min
		}
		have := l.have(p, now)
		switch most := mostOf(lim); {
		case need > most:
			worse(&OverLimit{Limit: lim, Need: need, Room: have, Never: true})
			continue
		case have >= want, have >= need && asked[i]:
			continue
		}
		if p.over != nil && now.Before(p.again) && max(need-have, 1) > p.over.Room {
			if have < need {
				wait := max(p.over.Wait-now.Sub(p.refused), 1)
				if p.over.Never {
					wait = 0
				}
				worse(&OverLimit{Limit: lim, Need: need, Room: have + p.over.Room, Wait: wait, Never: p.over.Never})
			}
			continue
		}
		if l.down != nil && now.Before(l.downTo) {
			if have < need {
				return false, nil, l.down
			}
			continue
		}
		if busy := p.busy; busy != nil {
			l.mu.Unlock()
			select {
			case <-busy:
			case <-ctx.Done():
			}
			l.mu.Lock()
			return true, nil, ctx.Err()
		}
		asked[i] = true
		if err := l.fetch(ctx, p, lim, want-have, max(need-have, 1)); err != nil && have < need {
			return false, nil, err
		}
		return true, nil, nil
	}
	return false, over, nil
}

// mostOf returns what a limit gives at all.
func mostOf(l Limit) int64 {
	if l.Kind == Rate && l.Max > 0 {
		return l.Burst
	}
	return l.Max
}

// fetch asks the shared Limiter for n, at least min. A refusal is noted in the pool. It is called with mu, which it gives up
// meanwhile.
func (l *BlockLimiter) fetch(ctx context.Context, p *pool, lim Limit, n, least int64) error {
	p.busy = make(chan struct{})
	retired := p.retired
	p.retired = nil
	size := l.opt.Block
	if size <= 0 {
		size = min(max(mostOf(lim)/50, 1), 1000)
	}
	req := TakeRequest{N: min(max(n, size), max(mostOf(lim), n)), Min: least, TTL: l.opt.TTL}
	if lim.Kind != Slots {
		lim.N = 0
	}
	req.Limits = []Limit{lim}
	if lim.Kind == Slots {
		req.N, req.Min = 1, 1
	}
	l.mu.Unlock()
	for _, b := range retired {
		l.giveBack(ctx, b)
	}
	asked := time.Now()
	got, err := l.next.Take(ctx, req)
	l.mu.Lock()
	close(p.busy)
	p.busy = nil
	var over *OverLimit
	switch now := time.Now(); {
	case err == nil:
		b := &block{id: got.ID, pool: p, n: got.N, left: got.N, end: asked.Add(got.TTL), fetched: asked, idle: now, listed: true}
		if lim.Kind == Slots {
			b.n, b.left = lim.N, lim.N
		}
		if got.Period > 0 {
			b.valid = asked.Add(got.Period)
		}
		p.over, l.down = nil, nil
		p.free = append(p.free, b)
		l.blocks[b] = struct{}{}
		p.blocks++
	case errors.As(err, &over):
		p.over, p.refused, p.again = over, now, now.Add(min(over.Wait, time.Second))
		if over.Never {
			p.again = now.Add(time.Second)
		}
		l.down = nil
	default:
		err = fmt.Errorf("queue: the shared limiter cannot be asked: %w", err)
		if ctx.Err() == nil && !errors.Is(err, ErrBadLimit) && !errors.Is(err, ErrLimiterFull) {
			l.down, l.downTo = err, now.Add(time.Second)
		}
		return err
	}
	return nil
}

// hand gives out what gather found. It is called with mu.
func (l *BlockLimiter) hand(req TakeRequest, pools []*pool, now time.Time) Permit {
	out := Permit{N: req.N}
	for i, p := range pools {
		if req.Limits[i].N == 0 {
			out.N = min(out.N, l.have(p, now))
		}
	}
	perm := &blockPermit{n: out.N, end: now.Add(max(req.TTL, 0))}
	for i, p := range pools {
		n, scaled := req.Limits[i].N, false
		if n == 0 {
			n, scaled = out.N, true
		}
		for _, b := range p.free {
			if n == 0 {
				break
			}
			k := min(n, b.left)
			n -= k
			b.left -= k
			if !b.valid.IsZero() {
				if d := b.valid.Sub(now); out.Period == 0 || d < out.Period {
					out.Period = d
				}
			}
			if req.TTL > 0 {
				b.out += k
				perm.parts = append(perm.parts, blockPart{b, i, k, scaled})
			}
		}
	}
	if req.TTL > 0 {
		if l.nextID++; l.nextID == 0 {
			l.nextID++
		}
		perm.id = PermitID(l.nextID)
		out.ID, out.TTL = perm.id, req.TTL
		l.permits[perm.id] = perm
		heap.Push(&l.ends, perm)
	}
	return out
}

// Renew implements Limiter.
func (l *BlockLimiter) Renew(ctx context.Context, ttl time.Duration, ids ...PermitID) (ended []PermitID, err error) {
	if ttl <= 0 {
		ttl = DefaultPermitTTL
	}
	ttl = min(ttl, MaxPermitTTL)
	if err := l.begin(ctx); err != nil {
		return nil, err
	}
	defer l.ops.Done()
	defer l.mu.Unlock()
	now := time.Now()
	l.expire(now)
	for _, id := range ids {
		p := l.permits[id]
		if p != nil && slices.ContainsFunc(p.parts, func(x blockPart) bool {
			return x.b.pool.limit.Kind == Slots && (x.b.ended || !now.Before(x.b.end))
		}) {
			l.end(p, 0, now)
			p = nil
		}
		if p == nil {
			ended = append(ended, id)
			continue
		}
		p.end = now.Add(ttl)
		heap.Fix(&l.ends, p.index)
	}
	return ended, nil
}

// Return implements Limiter.
func (l *BlockLimiter) Return(ctx context.Context, id PermitID, unused int64) error {
	if err := l.begin(ctx); err != nil {
		return err
	}
	defer l.ops.Done()
	defer l.mu.Unlock()
	now := time.Now()
	l.expire(now)
	if p := l.permits[id]; p != nil {
		l.end(p, unused, now)
	}
	return nil
}

func (l *BlockLimiter) expire(now time.Time) {
	for len(l.ends) > 0 && !now.Before(l.ends[0].end) {
		l.end(l.ends[0], 0, now)
	}
}

// end ends a permit. It is called with mu.
func (l *BlockLimiter) end(p *blockPermit, unused int64, now time.Time) {
	delete(l.permits, p.id)
	heap.Remove(&l.ends, p.index)
	unused = min(max(unused, 0), p.n)
	limit, give := -1, int64(0)
	// Backwards, so that what is given back is of the youngest blocks, which last longest.
	for _, x := range slices.Backward(p.parts) {
		if x.limit != limit {
			limit, give = x.limit, 0
			switch {
			case x.scaled:
				give = unused
			case unused == p.n, x.b.pool.limit.Kind == Slots:
				give = MaxLimit
			}
		}
		k := min(give, x.n)
		give -= k
		b := x.b
		b.out -= x.n
		b.left += k
		if k > 0 && !b.listed && !b.retired {
			b.pool.free, b.listed = append(b.pool.free, b), true
		}
		b.idle = now
	}
}

// Usage implements Limiter. What this BlockLimiter holds and has not handed out counts as room.
func (l *BlockLimiter) Usage(ctx context.Context, limits ...Limit) ([]Usage, error) {
	if err := l.begin(ctx); err != nil {
		return nil, err
	}
	l.mu.Unlock()
	defer l.ops.Done()
	all, err := l.next.Usage(ctx, limits...)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.expire(now)
	for i := range all {
		u := &all[i]
		p := l.pools[poolKey{u.Limit.Kind, u.Limit.Key, u.Limit.Per}]
		if p == nil {
			continue
		}
		have := l.have(p, now)
		u.Used = max(0, u.Used-have)
		if u.Room += have; u.Room >= max(u.Limit.N, 1) {
			u.Wait, u.Never = 0, false
		}
	}
	return all, nil
}

// Close gives back what is not used. Permits that are open count as used but for their slots. It does not close the shared
// Limiter; if that cannot be told, what it lent comes back to it as from a node that died. A second Close does nothing.
func (l *BlockLimiter) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	l.ops.Wait()
	l.stop()
	l.janitor.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var err error
	for b := range l.blocks {
		if e := l.next.Return(ctx, b.id, b.left); e != nil && err == nil {
			err = fmt.Errorf("queue: giving back what was not used: %w", e)
		}
	}
	return err
}

type blockHeap []*blockPermit

func (h blockHeap) Len() int           { return len(h) }
func (h blockHeap) Less(i, j int) bool { return h[i].end.Before(h[j].end) }
func (h blockHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *blockHeap) Push(x any) {
	p := x.(*blockPermit)
	p.index = len(*h)
	*h = append(*h, p)
}
func (h *blockHeap) Pop() any {
	old := *h
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return p
}
