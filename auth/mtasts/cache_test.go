package mtasts

import (
	"context"
	"errors"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// expect asks for a policy and compares: the mode and id that count ("" for none), the problem's kind ("": none) and the
// requests that it took.
func (w *world) expect(t *testing.T, c *Cache, why, mode, id string, kind Kind, fetches int) {
	t.Helper()
	p, problem := c.Policy(t.Context(), "example.org")
	var e *Error
	got := Kind("")
	if errors.As(problem, &e) {
		got = e.Kind
	} else if problem != nil {
		t.Errorf("%s: the problem is no *Error: %v", why, problem)
	}
	if string(p.Mode) != mode || p.ID != id || got != kind {
		t.Errorf("%s: mode %q, id %q, %v; want %q, %q, %q", why, p.Mode, p.ID, problem, mode, id, kind)
	}
	if n := w.fetches(); n != fetches {
		t.Errorf("%s: %d fetches, want %d", why, n, fetches)
	}
}

func TestCache(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	c := w.cache(nil)
	w.expect(t, c, "it is fetched", "enforce", "1", "", 1)
	w.expect(t, c, "and kept", "enforce", "1", "", 0)
	if p, _ := c.Policy(t.Context(), "EXAMPLE.org."); p.ID != "1" || !p.Matches("mx.example.org") || p.MaxAge != 240*time.Hour {
		t.Errorf("%+v", p)
	}
	for _, domain := range []string{"other.example.org", "sub.example.org", "org", "[192.0.2.1]", "", "a b", "nothing.example"} {
		if p, problem := c.Policy(t.Context(), domain); p.Mode != "" || problem != nil {
			t.Errorf("%q has no policy, and nothing is wrong with it: %+v, %v", domain, p, problem)
		}
	}
	if n := w.fetches(); n != 0 {
		t.Errorf("%d fetches", n)
	}
	w.set(file(ModeTesting, "864000", "mx.example.org"))
	w.expect(t, c, "nobody looks before the id changes", "enforce", "1", "", 0)
	w.id("example.org", "2")
	w.expect(t, c, "a new id", "testing", "2", "", 1)
	w.expect(t, c, "and kept", "testing", "2", "", 0)
}

// Without a policy that is kept, nothing that goes wrong is more than a problem (RFC 8461 section 3.3).
func TestCacheNothingKept(t *testing.T) {
	for name, c := range map[string]struct {
		setup   func(w *world)
		kind    Kind
		fetches int
	}{
		"DNS fails":        {func(w *world) { w.record("example.org", dnstest.ServFail) }, KindDNS, 0},
		"DNS is bogus":     {func(w *world) { w.record("example.org", dnstest.Bogus) }, KindDNS, 0},
		"a broken record":  {func(w *world) { w.record("example.org", dnstest.TXT("v=STSv1; id=-;")) }, KindRecord, 0},
		"two records":      {func(w *world) { w.record("example.org", dnstest.TXT("v=STSv1; id=1;"), dnstest.TXT("v=STSv1; id=2;")) }, KindRecord, 0},
		"the host is gone": {func(w *world) { w.dns.Set("mta-sts.example.org") }, KindFetch, 0},
		"404":              {func(w *world) { w.set(status(404)) }, KindFetch, 1},
		"no policy":        {func(w *world) { w.set(policy("x")) }, KindPolicy, 1},
		"certificate":      {func(w *world) { w.fetcher.Roots = newCA(t).pool }, KindWebPKI, 0},
		"forbidden":        {func(w *world) { w.fetcher.AllowPrivate = nil }, KindFetch, 0},
		"no Resolver":      {func(w *world) { w.fetcher.Resolver = nil }, KindDNS, 0},
	} {
		w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
		c.setup(w)
		cache := w.cache(nil)
		w.expect(t, cache, name, "", "", c.kind, c.fetches)
		if _, err := cache.Cached(t.Context(), "example.org"); !errors.Is(err, ErrNoEntry) {
			t.Errorf("%s: something is kept: %v", name, err)
		}
	}
	if p, problem := new(Cache).Policy(t.Context(), "example.org"); p.Mode != "" || problem == nil {
		t.Errorf("without a Fetcher: %+v, %v", p, problem)
	}
}

// What is kept counts to its end, whatever happens to DNS and to the policy host (RFC 8461 sections 3.3 and 5.1).
func TestCacheKept(t *testing.T) {
	for name, c := range map[string]struct {
		setup   func(w *world)
		kind    Kind
		fetches int
	}{
		"DNS fails":       {func(w *world) { w.record("example.org", dnstest.ServFail) }, KindDNS, 0},
		"DNS is bogus":    {func(w *world) { w.record("example.org", dnstest.Bogus) }, KindDNS, 0},
		"record gone":     {func(w *world) { w.record("example.org") }, KindRecord, 0},
		"name gone":       {func(w *world) { w.dns.Delete("_mta-sts.example.org"); w.dns.Delete("*.example.org") }, KindRecord, 0},
		"a broken record": {func(w *world) { w.record("example.org", dnstest.TXT("v=STSv1; id=-;")) }, KindRecord, 0},
		"two records":     {func(w *world) { w.record("example.org", dnstest.TXT("v=STSv1; id=1;"), dnstest.TXT("v=STSv1; id=2;")) }, KindRecord, 0},
		"new id, 404":     {func(w *world) { w.id("example.org", "2"); w.set(status(404)) }, KindFetch, 1},
		"new id, broken":  {func(w *world) { w.id("example.org", "2"); w.set(policy("version: STSv1\nmode: none\n")) }, KindPolicy, 1},
		"new id, no host": {func(w *world) { w.id("example.org", "2"); w.dns.Set("mta-sts.example.org") }, KindFetch, 0},
		"new id, MITM":    {func(w *world) { w.id("example.org", "2"); w.fetcher.Roots = newCA(t).pool }, KindWebPKI, 0},
	} {
		w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
		cache := w.cache(nil)
		w.expect(t, cache, name+": first", "enforce", "1", "", 1)
		w.pass(5 * time.Hour)
		w.logged()
		c.setup(w)
		w.expect(t, cache, name, "enforce", "1", c.kind, c.fetches)
		w.expect(t, cache, name+": again", "enforce", "1", c.kind, 0)
		if log := w.logged(); c.kind != KindDNS && strings.Count(log, "level=WARN") != 1 {
			t.Errorf("%s: administrators are told once: %s", name, log)
		}
		w.pass(10*24*time.Hour - 5*time.Hour - time.Second)
		if p, _ := cache.Policy(t.Context(), "example.org"); p.Mode != ModeEnforce {
			t.Errorf("%s: not kept to its end", name)
		}
		w.pass(time.Second)
		if p, _ := cache.Policy(t.Context(), "example.org"); p.Mode != "" {
			t.Errorf("%s: kept over its end", name)
		}
	}
}

func TestCacheFailureRemembered(t *testing.T) {
	w := newWorld(t, status(500))
	c := w.cache(nil)
	w.expect(t, c, "first", "", "", KindFetch, 1)
	w.pass(5*time.Minute - time.Second)
	w.expect(t, c, "not within five minutes", "", "", KindFetch, 0)
	w.id("example.org", "2")
	w.expect(t, c, "under another id at once (RFC 8461 section 3.3: per version ID)", "", "", KindFetch, 1)
	w.pass(5*time.Minute - time.Second)
	w.expect(t, c, "not within five minutes of that", "", "", KindFetch, 0)
	w.set(file(ModeEnforce, "864000", "mx.example.org"))
	w.pass(time.Second)
	w.expect(t, c, "and then", "enforce", "2", "", 1)
	if log := w.logged(); strings.Count(log, "policy not fetched") != 2 || strings.Contains(log, "WARN") {
		t.Errorf("%s", log)
	}
}

func TestCacheRefreshOnUse(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	c := w.cache(nil)
	w.expect(t, c, "first", "enforce", "1", "", 1)
	w.pass(24*time.Hour - time.Second)
	w.expect(t, c, "younger than a day", "enforce", "1", "", 0)
	w.pass(time.Second)
	w.set(file(ModeEnforce, "864000", "mx.example.org", "mx2.example.org"))
	w.expect(t, c, "a day old", "enforce", "1", "", 1)
	if p, _ := c.Policy(t.Context(), "example.org"); len(p.MX) != 2 {
		t.Error("the new policy counts")
	}
	w.set(status(500))
	w.pass(24 * time.Hour)
	w.expect(t, c, "it cannot be refreshed", "enforce", "1", KindFetch, 1)
	// Each attempt keeps a message waiting, so they grow rarer: 5, 10, 20, 40, 60, 60 minutes.
	for _, m := range []time.Duration{5, 10, 20, 40, 60, 60} {
		w.pass(m*time.Minute - time.Second)
		w.expect(t, c, "too early", "enforce", "1", KindFetch, 0)
		w.pass(time.Second)
		w.expect(t, c, "again", "enforce", "1", KindFetch, 1)
	}
	w.set(file(ModeTesting, "864000", "mx.example.org"))
	w.pass(time.Hour)
	w.expect(t, c, "the host is back", "testing", "1", "", 1)
	w.set(status(500))
	w.pass(24 * time.Hour)
	w.expect(t, c, "and fails anew", "testing", "1", KindFetch, 1)
	w.pass(5 * time.Minute)
	w.expect(t, c, "the waiting begins anew", "testing", "1", KindFetch, 1)
}

// Whoever has only a short max_age is asked before it is over.
func TestCacheShortAge(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "3600", "mx.example.org"))
	c := w.cache(nil)
	w.expect(t, c, "first", "enforce", "1", "", 1)
	w.pass(29 * time.Minute)
	w.expect(t, c, "before half its time", "enforce", "1", "", 0)
	w.pass(time.Minute)
	w.expect(t, c, "after half its time", "enforce", "1", "", 1)

	w.set(file(ModeEnforce, "0", "mx.example.org"))
	w.id("example.org", "2")
	w.expect(t, c, "no time at all", "enforce", "2", "", 1)
	w.pass(5*time.Minute - time.Second)
	w.expect(t, c, "it is not fetched for each message", "enforce", "2", "", 0)
	w.pass(time.Second)
	w.set(status(500))
	w.expect(t, c, "but does not last", "", "", KindFetch, 1)
}

// RFC 8461 section 5: none means no policy; section 8.3: it is how a domain takes its policy back.
func TestCacheNone(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	c := w.cache(new(Memory))
	w.expect(t, c, "first", "enforce", "1", "", 1)
	w.set(file(ModeNone, "86400"))
	w.id("example.org", "2")
	w.expect(t, c, "taken back", "", "", "", 1)
	w.expect(t, c, "and known", "", "", "", 0)
	if e, err := c.Cached(t.Context(), "example.org"); err != nil || e.Policy.Mode != ModeNone || e.Policy.ID != "2" {
		t.Errorf("%+v, %v", e, err)
	}
	w.set(status(404))
	w.pass(23 * time.Hour)
	w.expect(t, c, "nobody refreshes it", "", "", "", 0)
	w.record("example.org")
	w.expect(t, c, "nor misses its record", "", "", "", 0)
	if log := w.logged(); log != "" {
		t.Errorf("and nobody is told: %s", log)
	}
	w.set(file(ModeEnforce, "864000", "mx.example.org"))
	w.id("example.org", "3")
	w.expect(t, c, "and published again", "enforce", "3", "", 1)
}

// An id that is another one with each lookup does not cost a fetch for each message.
func TestCacheFlapping(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	c := w.cache(nil)
	total := 0
	for i := range 100 {
		w.id("example.org", strings.Repeat("x", 1+i%7)+"y")
		p, _ := c.Policy(t.Context(), "example.org")
		total += w.fetches()
		if p.Mode != ModeEnforce {
			t.Fatal("the policy is lost")
		}
		w.pass(time.Second)
	}
	if total != maxBurst {
		t.Errorf("%d fetches in 100 s, want %d", total, maxBurst)
	}
	w.id("example.org", "new")
	w.expect(t, c, "no more", "enforce", "xxxxxy", KindFetch, 0)
	w.pass(5 * time.Minute)
	w.expect(t, c, "until five minutes have passed", "enforce", "new", "", 1)
}

func TestCacheClockBack(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	c := w.cache(nil)
	w.expect(t, c, "first", "enforce", "1", "", 1)
	w.pass(-100 * 24 * time.Hour)
	w.set(status(500))
	w.expect(t, c, "what seems to be of the future is fetched again", "enforce", "1", KindFetch, 1)
	w.pass(-100 * 24 * time.Hour)
	w.expect(t, c, "and failures are not remembered for a hundred days", "enforce", "1", KindFetch, 1)
	w.set(file(ModeTesting, "864000", "mx.example.org"))
	w.pass(time.Hour)
	w.expect(t, c, "until the host is back", "testing", "1", "", 1)
}

// A restart forgets nothing: the mail of a domain with a policy is protected although nothing can be asked.
func TestCacheRestart(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	dir := t.TempDir()
	open := func() (*Cache, *File) {
		f, err := OpenFile(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		return w.cache(f), f
	}
	c, f := open()
	w.expect(t, c, "first", "enforce", "1", "", 1)
	f.Close()
	w.record("example.org", dnstest.ServFail)
	w.set(status(500))
	w.pass(9 * 24 * time.Hour)
	c, f = open()
	w.expect(t, c, "after a restart", "enforce", "1", KindDNS, 0)
	if p, _ := c.Policy(t.Context(), "example.org"); !p.Matches("mx.example.org") || p.Matches("evil.example") {
		t.Errorf("%+v", p)
	}
	f.Close()
	w.pass(24 * time.Hour)
	c, f = open()
	w.expect(t, c, "after its end", "", "", KindDNS, 0)
	f.Close()
}

// brokenStore fails in chosen ways.
type brokenStore struct {
	Memory
	load, save error
	loads      int
}

func (b *brokenStore) Load(ctx context.Context, domain string) (Entry, error) {
	b.loads++
	if b.load != nil {
		return Entry{}, b.load
	}
	return b.Memory.Load(ctx, domain)
}

func (b *brokenStore) Save(ctx context.Context, e Entry) error {
	if b.save != nil {
		return b.save
	}
	return b.Memory.Save(ctx, e)
}

func (b *brokenStore) All(ctx context.Context) iter.Seq2[Entry, error] {
	if b.load != nil {
		return func(yield func(Entry, error) bool) { yield(Entry{}, b.load) }
	}
	return b.Memory.All(ctx)
}

func TestCacheStoreFails(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	s := &brokenStore{load: errors.New("no disk"), save: errors.New("full disk")}
	c := w.cache(s)
	w.expect(t, c, "it is fetched all the same", "enforce", "1", "", 1)
	w.expect(t, c, "and kept in memory", "enforce", "1", "", 0)
	if log := w.logged(); !strings.Contains(log, "no disk") || !strings.Contains(log, "full disk") {
		t.Errorf("the log is told: %s", log)
	}
	if err := c.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("Refresh: %v", err)
	}
	// What the Store has is found once it can be read.
	e := Entry{Domain: "example.org", Policy: Policy{ID: "1", Mode: ModeTesting, MX: []string{"old.example"}, MaxAge: 240 * time.Hour}, Fetched: w.now().Add(-time.Hour), Used: w.now()}
	s.save = nil
	if err := s.Memory.Save(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	c = w.cache(s)
	w.record("example.org", dnstest.ServFail)
	w.expect(t, c, "not to be read", "", "", KindDNS, 0)
	w.record("example.org")
	w.expect(t, c, "not to be read, and the record is gone", "", "", KindFetch, 0)
	w.record("example.org", dnstest.ServFail)
	s.load, s.loads = nil, 0
	w.expect(t, c, "to be read", "testing", "1", KindDNS, 0)
	w.expect(t, c, "and again", "testing", "1", KindDNS, 0)
	if s.loads != 1 {
		t.Errorf("read %d times", s.loads)
	}
	// An entry that cannot be is none.
	bad := &lyingStore{e: Entry{Domain: "example.org", Policy: Policy{ID: "1", Mode: "all", MaxAge: time.Hour}, Fetched: w.now()}}
	w.expect(t, w.cache(bad), "an entry that cannot be", "", "", KindDNS, 0)
	bad.e.Policy.Mode, bad.e.Domain = ModeNone, "example.net"
	w.expect(t, w.cache(bad), "another's entry", "", "", KindDNS, 0)
	if log := w.logged(); strings.Count(log, "load a policy") != 4 {
		t.Errorf("%s", log)
	}
}

// impatientStore saves nothing for somebody who has left.
type impatientStore struct{ Memory }

func (s *impatientStore) Save(ctx context.Context, e Entry) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.Memory.Save(ctx, e)
}

// What was fetched is saved although the caller leaves.
func TestCacheSavesForNobody(t *testing.T) {
	w := newWorld(t, nil)
	s := new(impatientStore)
	c := w.cache(s)
	ctx, cancel := context.WithCancel(t.Context())
	c.get = func(context.Context, string) (Policy, error) {
		cancel()
		return Policy{Mode: ModeEnforce, MX: []string{"mx.example.org"}, MaxAge: time.Hour}, nil
	}
	if p, problem := c.Policy(ctx, "example.org"); p.Mode != ModeEnforce || problem != nil {
		t.Errorf("%+v, %v", p, problem)
	}
	if e, err := s.Load(t.Context(), "example.org"); err != nil || e.Policy.ID != "1" {
		t.Errorf("%+v, %v", e, err)
	}
	// Nor does the log hear of a record that was not found because nobody waited for it.
	w.logged()
	if p, _ := c.Policy(ctx, "example.org"); p.Mode != ModeEnforce || w.logged() != "" {
		t.Errorf("%+v", p)
	}
}

type lyingStore struct {
	Memory
	e Entry
}

func (l *lyingStore) Load(context.Context, string) (Entry, error) { return l.e, nil }

// Memory is bounded, and what is in the Store comes back.
func TestCacheBounded(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	c := w.cache(nil)
	c.MaxDomains = 2
	w.expect(t, c, "first", "enforce", "1", "", 1)
	for _, d := range []string{"none1.example", "none2.example", "none3.example"} {
		if _, problem := c.Policy(t.Context(), d); problem != nil {
			t.Error(problem)
		}
		if n := len(c.domains); n > 2 || n != c.lru.Len()+c.bare.Len() {
			t.Errorf("%d domains in memory, %d in the lists", n, c.lru.Len()+c.bare.Len())
		}
	}
	w.expect(t, c, "not put out by domains without a policy", "enforce", "1", "", 0)
	c = w.cache(new(Memory))
	c.MaxDomains = 2
	w.expect(t, c, "first", "enforce", "1", "", 1)
	for _, d := range []string{"none1.example", "none2.example", "none3.example"} {
		_, _ = c.Policy(t.Context(), d)
	}
	w.expect(t, c, "found in the Store", "enforce", "1", "", 0)

	// What is asked for goes last.
	c = w.cache(nil)
	c.MaxDomains = 2
	w.expect(t, c, "first", "enforce", "1", "", 1)
	for _, d := range []string{"none1.example", "none2.example", "none3.example"} {
		_, _ = c.Policy(t.Context(), d)
		w.expect(t, c, "asked for meanwhile", "enforce", "1", "", 0)
	}
	// What is in use stays the same.
	c.MaxDomains = 1
	st := c.pin("example.org")
	for _, d := range []string{"none1.example", "none2.example", "none3.example"} {
		c.unpin(c.pin(d))
	}
	if c.domains["example.org"] != st || len(c.domains) != 1 {
		t.Errorf("%d domains", len(c.domains))
	}
	c.unpin(st)

	// Large policies count by their size.
	c = w.cache(nil)
	c.MaxDomains = 1 << 20
	big := Policy{ID: "1", Mode: ModeEnforce, MaxAge: time.Hour}
	for range MaxMX {
		big.MX = append(big.MX, strings.Repeat("abcdefg.", 12)+"example")
	}
	for i := range 1000 {
		st := c.pin(strings.Repeat("x", 1+i%60) + "." + strings.Repeat("y", 1+i/60) + ".example")
		c.mu.Lock()
		c.set(st, Entry{Domain: st.domain, Policy: big, Fetched: w.now()})
		c.mu.Unlock()
		c.unpin(st)
	}
	sum := 0
	for _, st := range c.domains {
		sum += textOf(st.entry.Policy)
	}
	if c.text != sum || c.text > maxTextInMemory || len(c.domains) < 100 {
		t.Errorf("%d octets of %d domains, counted as %d", sum, len(c.domains), c.text)
	}
}

// The resolver's error is there for whoever wants to know.
func TestCacheProblemUnwraps(t *testing.T) {
	w := newWorld(t, nil)
	w.record("example.org", dnstest.ServFail)
	_, problem := w.cache(nil).Policy(t.Context(), "example.org")
	if !errors.Is(problem, mailspine.ErrDNSTemporary) || !strings.HasPrefix(problem.Error(), "mtasts: example.org: dns: ") {
		t.Error(problem)
	}
}

// Whoever makes us send to many domains without a policy puts no policy out, and many policies put out those that were not asked for longest.
func TestCacheFlood(t *testing.T) {
	w := newWorld(t, status(404))
	c := w.cache(nil)
	c.MaxDomains = 16
	add := func(name string, i int) {
		st := c.pin(name + strings.Repeat("x", i) + ".example")
		defer c.unpin(st)
		if name == "has" {
			c.take(st, Policy{ID: "1", Mode: ModeEnforce, MX: []string{"mx.example"}, MaxAge: time.Hour}, false)
		}
	}
	for i := range 14 {
		add("has", i)
	}
	for i := range 60 {
		add("none", i)
	}
	if c.lru.Len() != 14 || c.bare.Len() != 2 || len(c.domains) != 16 {
		t.Errorf("%d with a policy, %d without, %d in all", c.lru.Len(), c.bare.Len(), len(c.domains))
	}
	for i := range 60 {
		add("has", i)
	}
	if c.lru.Len() != 15 || c.bare.Len() != 1 /* a newcomer has no policy yet */ || len(c.domains) != 16 {
		t.Errorf("%d with a policy, %d without, %d in all", c.lru.Len(), c.bare.Len(), len(c.domains))
	}
	for i := 45; i < 60; i++ {
		if _, ok := c.domains["has"+strings.Repeat("x", i)+".example"]; !ok {
			t.Errorf("the policy that came as number %d is gone", i)
		}
	}
	if sum := 15 * textOf(Policy{ID: "1", MX: []string{"mx.example"}}); c.text != sum {
		t.Errorf("counted as %d octets, not %d", c.text, sum)
	}
}
