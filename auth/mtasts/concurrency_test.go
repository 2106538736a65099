package mtasts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// A gate is a policy host that tells of each request and answers when it is let.
type gate struct {
	entered chan string
	release chan struct{}
	serve   http.HandlerFunc
	now     atomic.Int32
	most    atomic.Int32
}

func newGate(serve http.HandlerFunc) *gate {
	return &gate{entered: make(chan string, 1000), release: make(chan struct{}), serve: serve}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := g.now.Add(1)
	defer g.now.Add(-1)
	for m := g.most.Load(); n > m && !g.most.CompareAndSwap(m, n); m = g.most.Load() {
	}
	g.entered <- r.Host
	select {
	case <-g.release:
		g.serve(w, r)
	case <-r.Context().Done():
	}
}

// within fails the test instead of hanging it.
func within[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("%s did not happen", what)
		panic("unreachable")
	}
}

type answer struct {
	p       Policy
	problem error
}

// ask asks in a goroutine.
func ask(ctx context.Context, c *Cache, domain string) <-chan answer {
	out := make(chan answer, 1)
	go func() {
		p, problem := c.Policy(ctx, domain)
		out <- answer{p, problem}
	}()
	return out
}

// A hundred messages to one domain are one fetch, and all of them have its result.
func TestCacheOneFetch(t *testing.T) {
	for name, serve := range map[string]http.HandlerFunc{"enforce": file(ModeEnforce, "864000", "mx.example.org"), "": status(500)} {
		w := newWorld(t, nil)
		g := newGate(serve)
		w.set(g.ServeHTTP)
		c := w.cache(new(Memory))
		var all []<-chan answer
		for range 100 {
			all = append(all, ask(t.Context(), c, "example.org"))
		}
		within(t, g.entered, "a fetch")
		close(g.release)
		for _, a := range all {
			if got := within(t, a, "an answer"); string(got.p.Mode) != name || (got.problem == nil) != (name != "") {
				t.Errorf("%+v", got)
			}
		}
		if n := w.fetches(); n != 1 {
			t.Errorf("%q: %d fetches", name, n)
		}
	}
}

// Who has a policy that counts waits for nobody else's fetch.
func TestCacheNoWaiting(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	c := w.cache(nil)
	w.expect(t, c, "first", "enforce", "1", "", 1)
	g := newGate(file(ModeTesting, "864000", "mx.example.org"))
	w.set(g.ServeHTTP)
	w.id("example.org", "2")
	first := ask(t.Context(), c, "example.org")
	within(t, g.entered, "a fetch")
	w.fetches()
	for range 20 {
		w.expect(t, c, "meanwhile", "enforce", "1", "", 0)
	}
	close(g.release)
	if got := within(t, first, "the answer"); got.p.ID != "2" || got.problem != nil {
		t.Errorf("%+v", got)
	}
	w.expect(t, c, "and then", "testing", "2", "", 0)
}

// Who leaves takes nothing from those who wait, and nothing is held against the policy host.
func TestCacheCallerLeaves(t *testing.T) {
	w := newWorld(t, nil)
	g := newGate(file(ModeEnforce, "864000", "mx.example.org"))
	w.set(g.ServeHTTP)
	c := w.cache(nil)
	ctx, cancel := context.WithCancel(t.Context())
	first := ask(ctx, c, "example.org")
	within(t, g.entered, "the first fetch")
	second := ask(t.Context(), c, "example.org")
	cancel()
	if got := within(t, first, "the first answer"); got.p.Mode != "" || !errors.Is(got.problem, context.Canceled) {
		t.Errorf("%+v", got)
	}
	within(t, g.entered, "the second fetch")
	// A third one leaves while it waits.
	ctx, cancel = context.WithCancel(t.Context())
	third := ask(ctx, c, "example.org")
	cancel()
	if got := within(t, third, "the third answer"); got.p.Mode != "" || !errors.Is(got.problem, context.Canceled) {
		t.Errorf("%+v", got)
	}
	close(g.release)
	if got := within(t, second, "the second answer"); got.p.Mode != ModeEnforce || got.problem != nil {
		t.Errorf("%+v", got)
	}
	// With a policy that is kept, it is still the answer.
	w.id("example.org", "2")
	g = newGate(nil)
	w.set(g.ServeHTTP)
	ctx, cancel = context.WithCancel(t.Context())
	fourth := ask(ctx, c, "example.org")
	within(t, g.entered, "the fourth fetch")
	cancel()
	if got := within(t, fourth, "the fourth answer"); got.p.ID != "1" || got.problem == nil {
		t.Errorf("%+v", got)
	}
	if log := w.logged(); log != "" {
		t.Errorf("nobody is told: %s", log)
	}
}

// So many fetches at a time and no more; who cannot wait goes without, and it is not remembered.
func TestCacheMaxFetches(t *testing.T) {
	w := newWorld(t, nil)
	g := newGate(file(ModeEnforce, "864000", "mx.example.org"))
	w.set(g.ServeHTTP)
	var names []string
	for i := range 12 {
		d := fmt.Sprintf("d%d.example.net", i)
		names = append(names, "mta-sts."+d)
		w.id(d, "1")
		w.dns.Set("mta-sts."+d, dnstest.A("127.0.0.1"))
	}
	f := w.serveNames(t, g.ServeHTTP, names...)
	c := &Cache{Fetcher: f, Now: w.now, MaxFetches: 3}
	var all []<-chan answer
	for i := range 12 {
		all = append(all, ask(t.Context(), c, fmt.Sprintf("d%d.example.net", i)))
	}
	for range 3 {
		within(t, g.entered, "a fetch")
	}
	w.id("late.example.net", "1")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if p, problem := c.Policy(ctx, "late.example.net"); p.Mode != "" || !errors.Is(problem, errBusy) || !errors.Is(problem, context.DeadlineExceeded) {
		t.Errorf("%+v, %v", p, problem)
	}
	c.mu.Lock()
	if st := c.domains["late.example.net"]; st.failure != nil || st.burst != 0 || st.fetching != nil {
		t.Errorf("%v, %d, %v", st.failure, st.burst, st.fetching)
	}
	c.mu.Unlock()
	close(g.release)
	for _, a := range all {
		if got := within(t, a, "an answer"); got.p.Mode != ModeEnforce {
			t.Errorf("%+v", got)
		}
	}
	if n := g.most.Load(); n != 3 {
		t.Errorf("%d at a time", n)
	}
}

// With a policy that is kept, no place among the fetches is waited for.
func TestCacheBusyKept(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	c := w.cache(nil)
	c.MaxFetches = 1
	w.expect(t, c, "first", "enforce", "1", "", 1)
	c.slots <- struct{}{}
	w.pass(24 * time.Hour)
	w.expect(t, c, "while others fetch", "enforce", "1", "", 0)
	<-c.slots
	w.expect(t, c, "afterwards", "enforce", "1", "", 1)
}

// Everything at once, for the race detector; the memory is too small, the clock runs, hosts and records come and go.
func TestCacheTurmoil(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "100000", "mx.example.org"))
	var names []string
	for i := range 6 {
		d := fmt.Sprintf("d%d.example.net", i)
		names = append(names, "mta-sts."+d)
		w.id(d, "1")
		w.dns.Set("mta-sts."+d, dnstest.A("127.0.0.1"))
	}
	var n atomic.Int32
	f := w.serveNames(t, func(rw http.ResponseWriter, r *http.Request) {
		if n.Add(1)%5 == 0 {
			status(500)(rw, r)
			return
		}
		file(ModeEnforce, "100000", "mx.example.org")(rw, r)
	}, names...)
	s := new(Memory)
	c := &Cache{Fetcher: f, Store: s, Now: w.now, Logger: w.cache(nil).Logger, MaxDomains: 3, MaxFetches: 2}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 40 {
				d := fmt.Sprintf("d%d.example.net", (i*7+worker)%6)
				switch {
				case i%10 == worker:
					w.id(d, fmt.Sprint(i))
				case i%13 == worker:
					w.pass(time.Hour)
				case i%20 == worker:
					if err := c.Refresh(t.Context()); err != nil {
						t.Error(err)
					}
				}
				if p, _ := c.Policy(t.Context(), d); p.Mode == ModeEnforce && (p.ID == "" || !p.Matches("mx.example.org")) {
					t.Errorf("%+v", p)
				}
			}
		})
	}
	wg.Wait()
	if len(c.domains) > 3 || c.lru.Len()+c.bare.Len() != len(c.domains) {
		t.Errorf("%d domains", len(c.domains))
	}
	for _, st := range c.domains {
		if st.pins != 0 || st.fetching != nil {
			t.Errorf("%s has %d pins, %v", st.domain, st.pins, st.fetching)
		}
	}
	for e, err := range s.All(t.Context()) {
		if err != nil || e.Validate() != nil || !strings.HasSuffix(e.Domain, ".example.net") {
			t.Errorf("%+v, %v", e, err)
		}
	}
}
