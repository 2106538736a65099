package mtasts

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// The defaults of a Cache.
const (
	DefaultMaxDomains   = 10_000
	DefaultMaxFetches   = 32
	DefaultRefreshAfter = 24 * time.Hour
	DefaultRetryAfter   = 5 * time.Minute
	DefaultKeepUnused   = 30 * 24 * time.Hour
)

const (
	// maxTextInMemory bounds the policies in memory, all together, in octets.
	maxTextInMemory = 32 << 20
	// maxBurst is how many fetches of one domain there are in RetryAfter, whatever its record says: an id that
	// changes with every lookup would otherwise cost a fetch for each message.
	maxBurst = 5
	// longFetch is how long a fetch has run when the end of its caller's time counts as a failure of the policy host.
	longFetch = 5 * time.Second
)

// A Cache knows the policies of the domains that mail is sent to: what was fetched is kept until its max_age, in memory and
// in a [Store]. All methods are safe for concurrent use, and it has no goroutines of its own. The fields
// are not to be changed once it is in use, and it must not be copied. It needs no closing; a Store is closed by
// whoever opened it.
type Cache struct {
	// Fetcher gets what is not known. Required: without one nobody has a policy but those in the Store.
	Fetcher *Fetcher
	// Store keeps policies over a restart. nil: they are in memory only, MaxDomains of them.
	Store Store
	// Logger hears of policies that cannot be fetched or refreshed, and of a Store that fails. nil: slog.Default.
	Logger *slog.Logger
	// Now is the clock; nil: time.Now. If it goes back, policies are refreshed, and count until they would have anyway.
	Now func() time.Time

	// MaxDomains is how many domains are in memory, those that have no policy included, which go first; else it is the one not asked for longest. Zero or
	// negative: DefaultMaxDomains. The policies themselves have 32 MiB together.
	MaxDomains int
	// MaxFetches is how many fetches there are at a time; others wait, as long as their context lets them. Zero or
	// negative: DefaultMaxFetches.
	MaxFetches int
	// RefreshAfter is the age at which a policy that is asked for is fetched again, or half its max_age if that is less. Zero or
	// negative: DefaultRefreshAfter.
	RefreshAfter time.Duration
	// RetryAfter is how long a policy that could not be fetched is not tried again under the same id. Zero or negative:
	// DefaultRetryAfter, the least that RFC 8461 section 3.3 has in mind.
	RetryAfter time.Duration
	// KeepUnused is how long Refresh goes on refreshing a policy that nobody asks for. Zero or negative: DefaultKeepUnused.
	KeepUnused time.Duration

	get func(ctx context.Context, domain string) (Policy, error) // tests; nil: Fetcher.Fetch

	once  sync.Once
	slots chan struct{} // one in it for each fetch under way

	mu      sync.Mutex
	domains map[string]*state
	lru     list.List // of *state with an entry, the one used last in front
	bare    list.List // of *state without one, the same
	text    int       // octets of the policies in domains
}

// state is what is known of a domain. All fields but io are under Cache.mu.
type state struct {
	domain string
	elem   *list.Element
	pins   int // calls that hold it: it is not evicted
	loaded bool
	entry  Entry // without one: Fetched is zero

	failure  *failure
	fetching chan struct{} // closed when the fetch under way ends; nil: there is none
	since    time.Time     // when the fetches counted in burst began
	burst    int
	warned   time.Time // when the log was last told that the record is gone

	io sync.Mutex // held while the Store is written, so that the last entry is the one that stays
}

// failure is what keeps a policy from being fetched again at once.
type failure struct {
	id    string
	until time.Time
	wait  time.Duration
	err   error
}

// maxRetry bounds the time between two attempts to refresh a policy that counts still: it grows from RetryAfter, since each attempt
// can keep one message waiting for Fetcher.Timeout.
const maxRetry = time.Hour

func or[T int | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

func (c *Cache) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Cache) log() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.Default()
}

// Policy returns the policy to obey now for mail to a domain, which may have U-labels and is the part of the recipient's address after
// the @, not a host. The zero Policy means that there is none: the domain publishes none, or says that it has none any more (ModeNone), or
// it could not be had.
//
// problem says what is wrong, for reports and logs: as a rule an *[Error]. It comes with the zero Policy or with one that was kept. It
// is never a reason to defer mail (but of a message with REQUIRETLS, which nothing else secures): without a policy mail is delivered as if the domain had none (RFC 8461
// section 3.3). A caller whose context is at its end is told so too.
//
// Policy takes as long as a lookup and a fetch do (Fetcher.Timeout). Where nothing is kept and MaxFetches are under way it waits for its
// turn until the context ends: if it went on without, whoever keeps many fetches busy could take the policies of others away.
//
// The record is looked up each time (a Resolver with a cache makes that cheap). A new id means that the policy is fetched again, and so does its age.
// Where that fails the old one counts until its max_age. A fetch that failed is not repeated for RetryAfter, and two of one domain
// are never under way at the same time: others wait for it, or use what is kept if that still counts.
//
// Mail that a policy in force keeps from being delivered is to be deferred, and Policy is to be asked again for each attempt and before mail is
// bounced (section 5.1): the domain may have published another one.
func (c *Cache) Policy(ctx context.Context, domain string) (p Policy, problem error) {
	return c.policy(ctx, domain, false)
}

// policy is Policy; with refresh it fetches earlier, and does not count as use.
func (c *Cache) policy(ctx context.Context, domain string, refresh bool) (Policy, error) {
	d, ok := policyDomain(domain)
	if !ok {
		return Policy{}, nil
	}
	st := c.pin(d)
	defer c.unpin(st)
	unread := c.load(ctx, st)
	if c.Fetcher == nil {
		return c.kept(st, &Error{Kind: KindFetch, Domain: d, Err: errors.New("no Fetcher")})
	}
	id, err := LookupRecord(ctx, c.Fetcher.Resolver, d)
	if err != nil {
		p, found := c.lookup(st)
		if p.Mode != ModeNone && found {
			// RFC 8461 section 5.1: a record that is gone does not end a policy that is kept.
			if ctx.Err() == nil && c.warn(st) {
				c.log().Warn("mtasts: record not found, the policy that is kept counts", "domain", d, "err", err)
			}
		} else if errors.Is(err, ErrNoRecord) {
			err = nil // as most domains
			if unread != nil {
				// There may be a policy all the same.
				err = &Error{Kind: KindFetch, Domain: d, Err: fmt.Errorf("what is kept cannot be read: %w", unread)}
			}
		}
		if !refresh {
			c.touch(ctx, st)
		}
		return obey(p), err
	}
	// More than a few rounds are only possible while ids change all the time.
	for range maxBurst {
		c.mu.Lock()
		now := c.now()
		usable := !st.entry.Fetched.IsZero() && (!st.entry.Expired(now) || c.fresh(st.entry, id, now))
		kept := Policy{}
		if usable {
			kept = st.entry.Policy
		}
		if usable && !c.due(st.entry, id, now, refresh) {
			c.mu.Unlock()
			if !refresh {
				c.touch(ctx, st)
			}
			return obey(kept), nil
		}
		if f := st.failure; f != nil && f.id == id && now.Before(f.until) && f.until.Sub(now) <= f.wait {
			c.mu.Unlock()
			return obey(kept), f.err
		}
		if wait := st.fetching; wait != nil {
			c.mu.Unlock()
			if usable {
				return obey(kept), nil
			}
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return Policy{}, &Error{Kind: KindFetch, Domain: d, Err: fmt.Errorf("waiting for another fetch: %w", context.Cause(ctx))}
			}
		}
		if !c.mayFetch(st, now) {
			c.mu.Unlock()
			return obey(kept), &Error{Kind: KindFetch, Domain: d, Err: fmt.Errorf("fetched %d times within %v, and to be fetched again", maxBurst, or(c.RetryAfter, DefaultRetryAfter))}
		}
		done := make(chan struct{})
		st.fetching = done
		c.mu.Unlock()

		p, err := c.fetch(ctx, st, done, id, usable, refresh)
		return obey(p), err
	}
	return c.kept(st, &Error{Kind: KindFetch, Domain: d, Err: errors.New("the policy changes faster than it can be fetched")})
}

// obey makes no policy of one that says that there is none (RFC 8461 section 5).
func obey(p Policy) Policy {
	if p.Mode == ModeNone {
		return Policy{}
	}
	return p
}

// lookup returns the policy that is kept and counts now, whatever its mode.
func (c *Cache) lookup(st *state) (Policy, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.entry.Fetched.IsZero() || st.entry.Expired(c.now()) {
		return Policy{}, false
	}
	return st.entry.Policy, true
}

func (c *Cache) kept(st *state, problem error) (Policy, error) {
	p, _ := c.lookup(st)
	return obey(p), problem
}

// fresh: what was fetched under this id just now is used even if its max_age says less. RFC 8461 section 3.3 lets a sender limit
// how often it fetches, and to take what is known is better than to take nothing meanwhile.
func (c *Cache) fresh(e Entry, id string, now time.Time) bool {
	age := now.Sub(e.Fetched)
	return e.Policy.ID == id && age >= 0 && age < or(c.RetryAfter, DefaultRetryAfter)
}

// due reports whether an entry that counts is to be fetched again.
func (c *Cache) due(e Entry, id string, now time.Time, refresh bool) bool {
	if e.Policy.ID != id {
		return true // RFC 8461 section 3.1: the id changes with the policy
	}
	if c.fresh(e, id, now) || e.Policy.Mode == ModeNone {
		// Nothing is lost when "none" ends by itself, and no alert is due where it cannot be refreshed (section 3.3).
		return false
	}
	limit := or(c.RefreshAfter, DefaultRefreshAfter)
	if refresh {
		// Whoever calls Refresh once in RefreshAfter finds a policy a little younger than that.
		limit /= 2
	}
	age := now.Sub(e.Fetched)
	return age < 0 || age >= min(limit, e.Policy.MaxAge/2)
}

// mayFetch counts a fetch, if it is not one too many.
func (c *Cache) mayFetch(st *state, now time.Time) bool {
	if age := now.Sub(st.since); age < 0 || age >= or(c.RetryAfter, DefaultRetryAfter) {
		st.since, st.burst = now, 0
	}
	if st.burst >= maxBurst {
		return false
	}
	st.burst++
	return true
}

// warn reports whether the log is to be told, once in RetryAfter, that the record of a policy that is kept is gone.
func (c *Cache) warn(st *state) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if age := now.Sub(st.warned); age >= 0 && age < or(c.RetryAfter, DefaultRetryAfter) {
		return false
	}
	st.warned = now
	return true
}

// fetch fetches a policy for whoever set st.fetching to done, takes that back and closes it. It returns what counts from now on.
func (c *Cache) fetch(ctx context.Context, st *state, done chan struct{}, id string, usable, refresh bool) (Policy, error) {
	defer func() {
		c.mu.Lock()
		st.fetching = nil
		c.mu.Unlock()
		close(done)
	}()
	began := time.Now()
	p, err := c.limited(ctx, st.domain, usable && !refresh)
	took := time.Since(began)
	if err == nil {
		p.ID = id
		c.take(st, p, refresh)
		c.save(ctx, st)
		return p, nil
	}

	kept, level, err := c.failed(ctx, st, id, usable, took, err)
	if level != silent {
		c.log().Log(ctx, level, "mtasts: policy not fetched", "domain", st.domain, "id", id, "kept", string(kept.Mode), "err", err)
	}
	return kept, err
}

// silent is no level of slog: the log is not told.
const silent = slog.Level(-1 << 20)

// failed decides what a fetch that failed means: what counts, how loud the log is, and what the caller is told.
func (c *Cache) failed(ctx context.Context, st *state, id string, usable bool, took time.Duration, err error) (Policy, slog.Level, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept, level := Policy{}, slog.LevelInfo
	if usable {
		kept = st.entry.Policy
		if kept.Mode != ModeNone {
			// RFC 8461 section 3.3: tell administrators of a policy that cannot be refreshed.
			level = slog.LevelWarn
		}
	}
	cause := ctx.Err()
	switch {
	case errors.Is(err, errBusy):
		st.burst-- // nothing was fetched
		if usable {
			err = nil
		}
		return kept, silent, err
	case cause != nil && !(errors.Is(cause, context.DeadlineExceeded) && took >= longFetch):
		// The caller left; that says nothing about the policy host.
		st.burst--
		return kept, silent, err
	}
	wait := or(c.RetryAfter, DefaultRetryAfter)
	if f := st.failure; f != nil && f.id == id && kept.ID == id {
		wait = max(wait, min(2*f.wait, maxRetry))
	}
	st.failure = &failure{id: id, until: c.now().Add(wait), wait: wait, err: err}
	return kept, level, err
}

// take makes a policy that was fetched the one that counts.
func (c *Cache) take(st *state, p Policy, refresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	used := now
	if refresh && !st.entry.Used.IsZero() {
		used = st.entry.Used
	}
	c.set(st, Entry{Domain: st.domain, Policy: p, Fetched: now, Used: used})
	st.failure = nil
}

// errBusy: MaxFetches are under way.
var errBusy = errors.New("too many policies are being fetched")

// limited fetches when it is its turn; with noWait only if that is now.
func (c *Cache) limited(ctx context.Context, domain string, noWait bool) (Policy, error) {
	c.init()
	select {
	case c.slots <- struct{}{}:
	default:
		if noWait {
			return Policy{}, errBusy
		}
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return Policy{}, &Error{Kind: KindFetch, Domain: domain, Err: fmt.Errorf("%w: %w", errBusy, context.Cause(ctx))}
		}
	}
	defer func() { <-c.slots }()
	if c.get != nil {
		return c.get(ctx, domain)
	}
	return c.Fetcher.Fetch(ctx, domain)
}

func (c *Cache) init() {
	c.once.Do(func() { c.slots = make(chan struct{}, or(c.MaxFetches, DefaultMaxFetches)) })
}

// pin returns the state of a domain, which stays until unpin, and puts it in front.
func (c *Cache) pin(domain string) *state {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.domains[domain]
	if st == nil {
		st = &state{domain: domain}
		if c.domains == nil {
			c.domains = map[string]*state{}
		}
		c.domains[domain] = st
		st.elem = c.bare.PushFront(st)
	} else {
		c.listOf(st).MoveToFront(st.elem)
	}
	st.pins++
	c.evict()
	return st
}

func (c *Cache) unpin(st *state) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st.pins--
	c.evict()
}

// listOf is the list that a state is in.
func (c *Cache) listOf(st *state) *list.List {
	if st.entry.Fetched.IsZero() {
		return &c.bare
	}
	return &c.lru
}

// evict makes room. What is pinned stays, so there are at most MaxDomains and as many as there are callers. Domains without a policy
// go first, but for an eighth of MaxDomains: else whoever makes us send to enough of them, which costs nothing, could have a policy forgotten that
// he then keeps us from fetching again. It looks at no more than it evicts and what is pinned.
func (c *Cache) evict() {
	most := or(c.MaxDomains, DefaultMaxDomains)
	over := func() int { return c.lru.Len() + c.bare.Len() - most }
	c.drop(&c.bare, func() bool { return over() > 0 && c.bare.Len() > most/8 })
	c.drop(&c.lru, func() bool { return over() > 0 || c.text > maxTextInMemory })
}

// drop forgets what is in a list and not pinned while that is wanted, from the end of it.
func (c *Cache) drop(l *list.List, wanted func() bool) {
	for e := l.Back(); e != nil && wanted(); {
		st, prev := e.Value.(*state), e.Prev()
		if st.pins == 0 {
			c.text -= textOf(st.entry.Policy)
			l.Remove(e)
			delete(c.domains, st.domain)
		}
		e = prev
	}
}

// set replaces the entry of a state. c.mu is held.
func (c *Cache) set(st *state, e Entry) {
	c.text += textOf(e.Policy) - textOf(st.entry.Policy)
	before := c.listOf(st)
	st.entry = e
	if now := c.listOf(st); now != before {
		before.Remove(st.elem)
		st.elem = now.PushFront(st)
	}
}

// textOf is about what a policy takes in memory.
func textOf(p Policy) int {
	n := len(p.ID)
	for _, m := range p.MX {
		n += len(m) + 16
	}
	return n
}

// load takes what the Store has for a domain, once. A Store that fails is asked again the next time.
func (c *Cache) load(ctx context.Context, st *state) error {
	if c.Store == nil {
		return nil
	}
	c.mu.Lock()
	loaded := st.loaded
	c.mu.Unlock()
	if loaded {
		return nil
	}
	e, err := c.Store.Load(ctx, st.domain)
	if err == nil {
		if err = e.Validate(); err == nil && e.Domain != st.domain {
			err = fmt.Errorf("the entry is of %s", e.Domain)
		}
	}
	if err != nil && !errors.Is(err, ErrNoEntry) {
		c.log().Error("mtasts: load a policy", "domain", st.domain, "err", err)
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !st.loaded {
		st.loaded = true
		if err == nil && st.entry.Fetched.IsZero() {
			c.set(st, e)
		}
	}
	return nil
}

// save writes what is known of a domain to the Store. It does so although the caller may be leaving, since the policy
// was fetched already.
func (c *Cache) save(ctx context.Context, st *state) {
	if c.Store == nil {
		return
	}
	st.io.Lock()
	defer st.io.Unlock()
	c.mu.Lock()
	e := st.entry
	c.mu.Unlock()
	if e.Fetched.IsZero() {
		return // forgotten meanwhile
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := c.Store.Save(ctx, e); err != nil {
		c.log().Error("mtasts: save a policy", "domain", st.domain, "err", err)
	}
}

// storeTimeout bounds a write to the Store that goes on without its caller.
const storeTimeout = 30 * time.Second

// touch notes that a domain is in use, once a day.
func (c *Cache) touch(ctx context.Context, st *state) {
	c.mu.Lock()
	now := c.now()
	age := now.Sub(st.entry.Used)
	if st.entry.Fetched.IsZero() || age >= 0 && age < 24*time.Hour {
		c.mu.Unlock()
		return
	}
	st.entry.Used = now
	c.mu.Unlock()
	c.save(ctx, st)
}

// Cached returns what is kept for a domain, without looking anything up, whether it has expired or not. The error matches ErrNoEntry if
// there is nothing.
func (c *Cache) Cached(ctx context.Context, domain string) (Entry, error) {
	d, ok := policyDomain(domain)
	if !ok {
		return Entry{}, ErrNoEntry
	}
	st := c.pin(d)
	defer c.unpin(st)
	c.load(ctx, st)
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.entry.Fetched.IsZero() {
		return Entry{}, ErrNoEntry
	}
	return st.entry, nil
}
