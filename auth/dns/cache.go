package dns

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
)

// The limits of a Cache unless its fields say otherwise.
const (
	DefaultMaxEntries     = 10_000
	DefaultMaxBytes       = 16 << 20
	DefaultMaxTTL         = 24 * time.Hour
	DefaultMaxNegativeTTL = time.Hour // RFC 2308 section 5 finds one to three hours sensible
	DefaultFailureTTL     = 5 * time.Second
)

// maxFailureTTL is the most that a failure may be kept (RFC 9520 section 3.2).
const maxFailureTTL = 5 * time.Minute

// A Cache keeps the answers of another Resolver, the absence of names and
// records included, for their TTL, and failures for some seconds, so that one broken domain
// with many mails does not become many time-outs (RFC 9520). A lookup that failed because
// its caller's context ended is not kept.
//
// The TTL of a kept answer is what is left of it. Answers share their slices with
// the cache and each other. Of a kept error, DNSError.Server is empty.
//
// When the cache is full, what was not used for the longest time goes. The
// zero value is ready to use once Resolver is set. A Cache is safe for
// concurrent use, as long as its fields are not changed, and must not be copied.
type Cache struct {
	// Resolver has what the cache has not. nil: every lookup is a temporary
	// failure.
	Resolver mailspine.Resolver

	// MaxEntries and MaxBytes bound what is kept; the octets are estimated, and
	// an answer of more than a sixteenth of them is passed on and not kept.
	// Zero or negative: DefaultMaxEntries, DefaultMaxBytes.
	MaxEntries int
	MaxBytes   int64

	// MinTTL keeps answers, absence included, for longer than their owner
	// wants. It is there for resolvers that tell no TTL, such as [System]:
	// without it nothing of theirs is kept. Zero: TTLs are honoured; a TTL of
	// zero is not kept.
	MinTTL time.Duration
	// MaxTTL keeps answers for less time than their owner allows. Zero or
	// negative: DefaultMaxTTL.
	MaxTTL time.Duration
	// MaxNegativeTTL is MaxTTL for the absence of names and records. Zero or
	// negative: DefaultMaxNegativeTTL.
	MaxNegativeTTL time.Duration
	// FailureTTL is how long temporary and bogus failures are kept, at most
	// five minutes (RFC 9520 section 3.2). Zero: DefaultFailureTTL. Negative:
	// they are not kept.
	FailureTTL time.Duration

	// Now tells the time. nil: time.Now.
	Now func() time.Time

	mu      sync.Mutex
	entries map[question]*list.Element // of *entry
	recent  list.List                  // the most recently used in front
	bytes   int64
	stats   CacheStats
}

var _ mailspine.Resolver = (*Cache)(nil)

type entry struct {
	key     question
	answer  mailspine.Answer
	err     *mailspine.DNSError // nil: answer has records
	ttl     time.Duration       // as it was when stored
	expires time.Time
	size    int64
}

// CacheStats counts what a [Cache] did since it was made.
type CacheStats struct {
	Hits         uint64 // lookups answered with kept records
	NegativeHits uint64 // lookups answered with kept absence
	FailureHits  uint64 // lookups answered with a kept failure
	Misses       uint64 // lookups passed on
	Evictions    uint64 // entries that went for want of room
	Entries      int    // kept now, expired ones included until somebody asks for them
	Bytes        int64  // of memory that they take, estimated
}

// Stats returns the counters.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Entries = c.recent.Len()
	s.Bytes = c.bytes
	return s
}

// Flush forgets everything but the counters.
func (c *Cache) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries = nil
	c.recent.Init()
	c.bytes = 0
}

// Unwrap returns the Resolver.
func (c *Cache) Unwrap() mailspine.Resolver { return c.Resolver }

// Lookup implements mailspine.Resolver. Names that cannot be in the DNS fail
// as in [Client.Lookup], and are not passed on.
func (c *Cache) Lookup(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	if c.Resolver == nil {
		return mailspine.Answer{}, dnsError(name, t, mailspine.ErrDNSTemporary, errors.New("dns: Cache.Resolver is nil"))
	}
	if err := ctx.Err(); err != nil {
		return mailspine.Answer{}, dnsError(name, t, mailspine.ErrDNSTemporary, err)
	}
	n, err := canonicalName(name)
	if err != nil {
		return mailspine.Answer{}, dnsError(name, t, mailspine.ErrNXDomain, err)
	}
	key := question{n, t}
	if a, err, ok := c.get(key, name); ok {
		return a, err
	}
	// Not under the lock: others look up other names. Two that look up the same
	// one at the same time are joined by the Client.
	a, err := c.Resolver.Lookup(ctx, name, t)
	if ctx.Err() == nil {
		c.put(key, a, err)
	}
	return a, err
}

func (c *Cache) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Cache) get(key question, name string) (mailspine.Answer, error, bool) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.entries[key]
	if el == nil {
		c.stats.Misses++
		return mailspine.Answer{}, nil, false
	}
	e := el.Value.(*entry)
	left := e.expires.Sub(now)
	if left <= 0 {
		c.remove(el)
		c.stats.Misses++
		return mailspine.Answer{}, nil, false
	}
	c.recent.MoveToFront(el)
	a := e.answer
	// A clock that went back does not make an answer younger than it was.
	a.TTL = min(left, e.ttl)
	if e.err == nil {
		c.stats.Hits++
		return a, nil, true
	}
	err := *e.err
	err.Name = name
	if err.Temporary() {
		c.stats.FailureHits++
		a.TTL = 0
	} else {
		c.stats.NegativeHits++
	}
	return a, &err, true
}

// ttl returns how long to keep an outcome; 0: not at all.
func (c *Cache) ttl(a mailspine.Answer, err error) time.Duration {
	or := func(d, def time.Duration) time.Duration {
		if d <= 0 {
			return def
		}
		return d
	}
	switch {
	case err == nil:
		return min(max(a.TTL, c.MinTTL), or(c.MaxTTL, DefaultMaxTTL))
	case mailspine.IsNotFound(err):
		return min(max(a.TTL, c.MinTTL), or(c.MaxNegativeTTL, DefaultMaxNegativeTTL))
	case c.FailureTTL < 0:
		return 0
	}
	return min(or(c.FailureTTL, DefaultFailureTTL), maxFailureTTL)
}

func (c *Cache) put(key question, a mailspine.Answer, err error) {
	ttl := c.ttl(a, err)
	if ttl <= 0 {
		return
	}
	e := &entry{key: key, answer: a, ttl: ttl, expires: c.now().Add(ttl)}
	if err != nil {
		// Only the contract's errors: of others, nobody knows what they mean.
		var de *mailspine.DNSError
		if !errors.As(err, &de) {
			return
		}
		kept := *de
		kept.Server = ""
		e.err = &kept
	}
	e.size = size(e)
	maxEntries, maxBytes := c.MaxEntries, c.MaxBytes
	if maxEntries <= 0 {
		maxEntries = DefaultMaxEntries
	}
	if maxBytes <= 0 {
		maxBytes = DefaultMaxBytes
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// What was known before is out of date, whether the new fits or not.
	if old := c.entries[key]; old != nil {
		c.remove(old)
	}
	if e.size > maxBytes/16 {
		return
	}
	if c.entries == nil {
		c.entries = map[question]*list.Element{}
	}
	c.entries[key] = c.recent.PushFront(e)
	c.bytes += e.size
	for c.recent.Len() > maxEntries || c.bytes > maxBytes {
		c.remove(c.recent.Back())
		c.stats.Evictions++
	}
}

// remove is called with c.mu held.
func (c *Cache) remove(el *list.Element) {
	e := c.recent.Remove(el).(*entry)
	delete(c.entries, e.key)
	c.bytes -= e.size
}

// size estimates the memory of an entry: its strings and slices, and what a
// map, a list and the entry itself take.
func size(e *entry) int64 {
	const overhead, str, addr = 400, 16, 24
	n := overhead + len(e.key.name) + len(e.answer.CanonicalName)
	n += addr * len(e.answer.Addrs)
	for _, m := range e.answer.MX {
		n += 8 + str + len(m.Host)
	}
	for _, s := range e.answer.TXT {
		n += str + len(s)
	}
	for _, s := range e.answer.Names {
		n += str + len(s)
	}
	for _, s := range e.answer.SRV {
		n += 8 + str + len(s.Target)
	}
	for _, s := range e.answer.TLSA {
		n += 32 + len(s.Data)
	}
	if e.err != nil {
		n += 100 + len(e.err.Name) // with a small detail
	}
	return int64(n)
}
