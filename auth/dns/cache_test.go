package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

func TestCacheTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := dnstest.New(dnstest.Zone{
			"a.example":      {dnstest.A("192.0.2.1"), dnstest.TTL(time.Minute)},
			"zero.example":   {dnstest.A("192.0.2.1"), dnstest.TTL(0)},
			"long.example":   {dnstest.A("192.0.2.1"), dnstest.TTL(30 * 24 * time.Hour)},
			"neg.example":    {dnstest.SOA(90 * time.Second)},
			"longneg.test":   {dnstest.SOA(30 * 24 * time.Hour), dnstest.TTL(30 * 24 * time.Hour)},
			"broken.example": {dnstest.ServFail},
			"bogus.example":  {dnstest.Bogus},
		})
		c := &dns.Cache{Resolver: s}
		for _, q := range []struct {
			name string
			keep time.Duration // how long the cache keeps it; 0: not at all
			kind error
		}{
			{"a.example", time.Minute, nil},
			{"zero.example", 0, nil},
			{"long.example", dns.DefaultMaxTTL, nil},
			{"neg.example", 90 * time.Second, mailspine.ErrNoData},
			{"no.neg.example", 90 * time.Second, mailspine.ErrNXDomain},
			{"longneg.test", dns.DefaultMaxNegativeTTL, mailspine.ErrNoData},
			{"broken.example", dns.DefaultFailureTTL, mailspine.ErrDNSTemporary},
			{"bogus.example", dns.DefaultFailureTTL, mailspine.ErrDNSBogus},
		} {
			look := func() mailspine.Answer {
				t.Helper()
				a, err := c.Lookup(t.Context(), q.name, mailspine.TypeA)
				if q.kind == nil && err != nil || !errors.Is(err, q.kind) {
					t.Errorf("%s: %v", q.name, err)
				}
				return a
			}
			fresh := look()
			if q.keep > 0 {
				time.Sleep(q.keep - time.Second)
				// What is left of the TTL is told, absence included.
				if a := look(); a.TTL != time.Second && !errors.Is(q.kind, mailspine.ErrDNSTemporary) && !errors.Is(q.kind, mailspine.ErrDNSBogus) ||
					a.CanonicalName != fresh.CanonicalName {
					t.Errorf("%s: kept as %+v", q.name, a)
				}
				if n := s.Count(q.name, mailspine.TypeA); n != 1 {
					t.Errorf("%s: asked %d times while it was kept", q.name, n)
				}
				time.Sleep(time.Second)
			}
			look()
			if n := s.Count(q.name, mailspine.TypeA); n != 2 {
				t.Errorf("%s: asked %d times, once after it had expired", q.name, n)
			}
		}
		st := c.Stats()
		if st.Hits != 2 || st.NegativeHits != 3 || st.FailureHits != 2 || st.Misses != 16 {
			t.Errorf("%+v", st)
		}
	})
}

func TestCacheLimitsOfTTL(t *testing.T) {
	zone := dnstest.Zone{
		"a.example":  {dnstest.A("192.0.2.1"), dnstest.TTL(10 * time.Second)},
		"x.example":  {dnstest.ServFail},
		"zero.test":  {dnstest.A("192.0.2.1"), dnstest.TTL(0)},
		"noneg.test": {dnstest.SOA(0)},
	}
	for _, c := range []struct {
		about string
		cache *dns.Cache
		name  string
		keep  time.Duration
	}{
		{"MinTTL", &dns.Cache{MinTTL: time.Minute}, "a.example", time.Minute},
		{"MinTTL of nothing", &dns.Cache{MinTTL: time.Minute}, "zero.test", time.Minute},
		{"MinTTL of absence", &dns.Cache{MinTTL: time.Minute}, "noneg.test", time.Minute},
		{"MaxTTL", &dns.Cache{MaxTTL: 3 * time.Second}, "a.example", 3 * time.Second},
		{"MaxTTL wins", &dns.Cache{MaxTTL: 3 * time.Second, MinTTL: time.Minute}, "a.example", 3 * time.Second},
		{"MaxNegativeTTL", &dns.Cache{MaxNegativeTTL: 3 * time.Second}, "no.such.name", 3 * time.Second},
		{"FailureTTL", &dns.Cache{FailureTTL: time.Minute}, "x.example", time.Minute},
		{"FailureTTL has a limit", &dns.Cache{FailureTTL: time.Hour}, "x.example", 5 * time.Minute},
		{"no FailureTTL", &dns.Cache{FailureTTL: -1}, "x.example", 0},
	} {
		t.Run(c.about, func(t *testing.T) {
			now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			s := dnstest.New(zone)
			cache := c.cache
			cache.Resolver, cache.Now = s, func() time.Time { return now }
			asked := func() bool {
				before := len(s.Queries())
				_, _ = cache.Lookup(t.Context(), c.name, mailspine.TypeA)
				return len(s.Queries()) > before
			}
			asked()
			now = now.Add(c.keep - time.Millisecond)
			if c.keep > 0 && asked() {
				t.Error("forgotten too soon")
			}
			now = now.Add(time.Millisecond)
			if !asked() {
				t.Error("kept too long")
			}
			// A clock that goes back must not make it live longer than it should.
			now = now.Add(-24 * time.Hour)
			if a, err := cache.Lookup(t.Context(), c.name, mailspine.TypeA); err == nil && a.TTL > max(c.keep, 10*time.Second) {
				t.Errorf("TTL %v after the clock went back", a.TTL)
			}
		})
	}
}

func TestCacheKeys(t *testing.T) {
	s := dnstest.New(dnstest.Zone{"a.example": {dnstest.A("192.0.2.1"), dnstest.TXT("x")}, "b.example": {dnstest.A("192.0.2.2")}})
	c := &dns.Cache{Resolver: s}
	for range 3 {
		for _, name := range []string{"a.example", "A.EXAMPLE", "a.example."} {
			if ips, err := mailspine.LookupA(t.Context(), c, name); err != nil || ips[0] != netip.MustParseAddr("192.0.2.1") {
				t.Error(ips, err)
			}
			if txt, err := mailspine.LookupTXT(t.Context(), c, name); err != nil || txt[0] != "x" {
				t.Error(txt, err)
			}
		}
		if ips, err := mailspine.LookupA(t.Context(), c, "b.example"); err != nil || ips[0] != netip.MustParseAddr("192.0.2.2") {
			t.Error(ips, err)
		}
	}
	if n := len(s.Queries()); n != 3 {
		t.Errorf("asked %d times: %v", n, s.Queries())
	}
	c.Flush()
	if st := c.Stats(); st.Entries != 0 || st.Bytes != 0 {
		t.Errorf("after Flush: %+v", st)
	}
	if _, err := mailspine.LookupA(t.Context(), c, "a.example"); err != nil || len(s.Queries()) != 4 {
		t.Error("Flush did not forget")
	}
	if c.Unwrap() != mailspine.Resolver(s) {
		t.Error("Unwrap")
	}
}

// Errors that are kept are errors of the contract, in the asker's words.
func TestCacheErrors(t *testing.T) {
	s := dnstest.New(dnstest.Zone{"b.example": {dnstest.Timeout}})
	c := &dns.Cache{Resolver: mailspine.ResolverFunc(func(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
		a, err := s.Lookup(ctx, name, t)
		var de *mailspine.DNSError
		if errors.As(err, &de) {
			de.Server = "192.0.2.53:53"
		}
		return a, err
	})}
	for i, name := range []string{"no.example", "NO.example."} {
		_, err := c.Lookup(t.Context(), name, mailspine.TypeMX)
		var de *mailspine.DNSError
		if !errors.As(err, &de) || de.Kind != mailspine.ErrNXDomain || de.Name != name || (de.Server == "") != (i == 1) {
			t.Errorf("%d: %+v", i, err)
		}
	}
	for range 2 {
		_, err := c.Lookup(t.Context(), "b.example", mailspine.TypeMX)
		var de *mailspine.DNSError
		if !errors.As(err, &de) || !de.Timeout() || mailspine.Status(err).Enhanced != (mailspine.EnhancedCode{4, 4, 3}) {
			t.Errorf("%+v", err)
		}
	}

	// A caller in a hurry does not spoil it for others.
	ctx, cancel := context.WithCancel(t.Context())
	c = &dns.Cache{Resolver: mailspine.ResolverFunc(func(ctx2 context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
		cancel()
		if ctx2.Err() != nil {
			return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: mailspine.ErrDNSTemporary, Err: ctx2.Err()}
		}
		return mailspine.Answer{TXT: []string{"x"}, TTL: time.Hour}, nil
	})}
	if _, err := c.Lookup(ctx, "a.example", mailspine.TypeTXT); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := c.Lookup(ctx, "a.example", mailspine.TypeTXT); !errors.Is(err, context.Canceled) || !errors.Is(err, mailspine.ErrDNSTemporary) {
		t.Error(err)
	}
	if _, err := c.Lookup(t.Context(), "a.example", mailspine.TypeTXT); err != nil {
		t.Errorf("somebody else's end was kept: %v", err)
	}

	// Errors that are not of the contract pass through and are not kept.
	calls := 0
	odd := errors.New("odd")
	c = &dns.Cache{Resolver: mailspine.ResolverFunc(func(context.Context, string, mailspine.Type) (mailspine.Answer, error) {
		calls++
		return mailspine.Answer{}, odd
	})}
	for range 2 {
		if _, err := c.Lookup(t.Context(), "a.example", mailspine.TypeTXT); err != odd {
			t.Error(err)
		}
	}
	if calls != 2 {
		t.Errorf("%d calls", calls)
	}

	var zero dns.Cache
	if _, err := zero.Lookup(t.Context(), "a.example", mailspine.TypeTXT); !errors.Is(err, mailspine.ErrDNSTemporary) {
		t.Error(err)
	}
	if _, err := c.Lookup(t.Context(), "a..example", mailspine.TypeTXT); !errors.Is(err, dns.ErrBadName) || !errors.Is(err, mailspine.ErrNXDomain) {
		t.Error(err)
	}
}

func TestCacheBounds(t *testing.T) {
	big := strings.Repeat("x", 1000)
	s := mailspine.ResolverFunc(func(_ context.Context, name string, _ mailspine.Type) (mailspine.Answer, error) {
		n := 1
		if strings.HasPrefix(name, "huge") {
			n = 100
		}
		a := mailspine.Answer{CanonicalName: name, TTL: time.Hour}
		for range n {
			a.TXT = append(a.TXT, big)
		}
		return a, nil
	})
	c := &dns.Cache{Resolver: s, MaxEntries: 100}
	for i := range 1000 {
		// One that is used again and again stays.
		for _, name := range []string{"used.example", fmt.Sprintf("n%d.example", i)} {
			if _, err := c.Lookup(t.Context(), name, mailspine.TypeTXT); err != nil {
				t.Fatal(err)
			}
		}
		if st := c.Stats(); st.Entries > 100 {
			t.Fatalf("%+v", st)
		}
	}
	if st := c.Stats(); st.Entries != 100 || st.Evictions != 901 || st.Hits != 999 {
		t.Errorf("%+v", st)
	}

	const maxBytes = 64 << 10
	c = &dns.Cache{Resolver: s, MaxBytes: maxBytes}
	for i := range 1000 {
		if _, err := c.Lookup(t.Context(), fmt.Sprintf("n%d.example", i), mailspine.TypeTXT); err != nil {
			t.Fatal(err)
		}
		if st := c.Stats(); st.Bytes > maxBytes || st.Bytes < 0 {
			t.Fatalf("%+v", st)
		}
	}
	before := c.Stats()
	if before.Entries < 30 || before.Entries > 64 {
		t.Errorf("%d entries of about 1.4 KiB in 64 KiB", before.Entries)
	}
	// One huge answer does not drive out all others.
	if _, err := c.Lookup(t.Context(), "huge.example", mailspine.TypeTXT); err != nil {
		t.Fatal(err)
	}
	if after := c.Stats(); after.Entries != before.Entries || after.Evictions != before.Evictions {
		t.Errorf("%+v, then %+v", before, after)
	}
}

// Two lookups of one name at one time leave one entry.
func TestCacheSameQuestionTwice(t *testing.T) {
	var c *dns.Cache
	depth := 0
	c = &dns.Cache{Resolver: mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
		if depth++; depth == 1 {
			if _, err := c.Lookup(ctx, name, typ); err != nil { // overtakes the first
				t.Error(err)
			}
		}
		return mailspine.Answer{TXT: []string{"x"}, TTL: time.Hour}, nil
	})}
	if _, err := c.Lookup(t.Context(), "a.example", mailspine.TypeTXT); err != nil {
		t.Error(err)
	}
	if st := c.Stats(); st.Entries != 1 || st.Misses != 2 || st.Bytes > 600 {
		t.Errorf("%+v", st)
	}
}

// The cache against a model that keeps everything: what it says is what the
// world said not longer ago than it may be kept.
func TestCacheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		type said struct {
			at   time.Time
			text string
			ttl  time.Duration
			kind error
		}
		history := map[string][]said{}
		serial := 0
		world := mailspine.ResolverFunc(func(_ context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			serial++
			s := said{at: now, text: fmt.Sprint(serial), ttl: time.Duration(rapid.IntRange(0, 20).Draw(t, "ttl")) * time.Second,
				kind: rapid.SampledFrom([]error{nil, nil, nil, mailspine.ErrNXDomain, mailspine.ErrDNSTemporary, mailspine.ErrDNSBogus}).Draw(t, "kind")}
			history[name] = append(history[name], s)
			a := mailspine.Answer{CanonicalName: s.text, TTL: s.ttl}
			if s.kind != nil {
				return a, &mailspine.DNSError{Name: name, Type: typ, Kind: s.kind}
			}
			a.TXT = []string{s.text}
			return a, nil
		})
		c := &dns.Cache{Resolver: world, MaxEntries: 3, MaxTTL: 15 * time.Second, MaxNegativeTTL: 10 * time.Second, Now: func() time.Time { return now }}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 6).Draw(t, "wait")) * time.Second)
			name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "name")
			a, err := c.Lookup(context.Background(), name, mailspine.TypeTXT)
			h := history[name]
			last := h[len(h)-1]
			if a.CanonicalName != last.text {
				t.Fatalf("%s: answer %q is older than the last, %q", name, a.CanonicalName, last.text)
			}
			if (err == nil) != (last.kind == nil) || err != nil && !errors.Is(err, last.kind) {
				t.Fatalf("%s: %v, and it was %v", name, err, last.kind)
			}
			limit := min(last.ttl, 15*time.Second)
			switch last.kind {
			case mailspine.ErrNXDomain:
				limit = min(last.ttl, 10*time.Second)
			case mailspine.ErrDNSTemporary, mailspine.ErrDNSBogus:
				limit = dns.DefaultFailureTTL
			}
			age := now.Sub(last.at)
			if age > 0 && age >= limit {
				t.Fatalf("%s: kept for %v, allowed are %v", name, age, limit)
			}
			if last.kind == nil && age > 0 && a.TTL != limit-age {
				t.Fatalf("%s: TTL %v of %v after %v", name, a.TTL, limit, age)
			}
			if st := c.Stats(); st.Entries > 3 {
				t.Fatalf("%d entries", st.Entries)
			}
		}
	})
}

func TestCacheConcurrent(t *testing.T) {
	s := dnstest.New(dnstest.Zone{"*.example": {dnstest.A("192.0.2.1"), dnstest.TTL(time.Second)}})
	var mu sync.Mutex
	now := time.Now()
	c := &dns.Cache{Resolver: s, MaxEntries: 50, Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(10 * time.Millisecond)
		return now
	}}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 300 {
				if _, err := mailspine.LookupA(t.Context(), c, fmt.Sprintf("n%d.example", (i*7+g)%100)); err != nil {
					t.Error(err)
				}
				if i%50 == 0 {
					c.Flush()
				}
			}
		})
	}
	wg.Wait()
	if st := c.Stats(); st.Entries > 50 || st.Hits+st.Misses != 2400 {
		t.Errorf("%+v", st)
	}
}

func BenchmarkCacheHit(b *testing.B) {
	c := &dns.Cache{Resolver: dnstest.New(dnstest.Zone{"a.example": {dnstest.A("192.0.2.1"), dnstest.TTL(time.Hour)}})}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Lookup(ctx, "a.example", mailspine.TypeA); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkClient(b *testing.B) {
	s := start(b, dnstest.Zone{"a.example": {dnstest.A("192.0.2.1")}})
	c := client(s)
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Lookup(ctx, "a.example", mailspine.TypeA); err != nil {
			b.Fatal(err)
		}
	}
}
