package mtasts

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// With Refresh once a day a policy never comes to its end while its domain has mail, and the host is never
// asked for more than that.
func TestRefresh(t *testing.T) {
	for name, s := range map[string]Store{"memory": nil, "store": new(Memory)} {
		w := newWorld(t, file(ModeEnforce, "259200", "mx.example.org")) // three days
		c := w.cache(s)
		w.expect(t, c, name+": first", "enforce", "1", "", 1)
		refresh := func(why string, fetches int) {
			t.Helper()
			if err := c.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
			if n := w.fetches(); n != fetches {
				t.Errorf("%s: %s: %d fetches, want %d", name, why, n, fetches)
			}
		}
		refresh("new", 0)
		w.pass(23*time.Hour + 59*time.Minute)
		refresh("about a day old", 1)
		refresh("at once again", 0)
		w.set(status(500))
		w.pass(24 * time.Hour)
		refresh("the host fails", 1)
		refresh("and is not tried again", 0)
		w.pass(24 * time.Hour)
		w.record("example.org", dnstest.ServFail)
		refresh("DNS fails too", 0)
		w.expect(t, c, name+": kept", "enforce", "1", KindDNS, 0)
		w.pass(23 * time.Hour)
		w.set(file(ModeEnforce, "259200", "mx.example.org"))
		w.id("example.org", "2")
		refresh("an hour before its end", 1)
		w.expect(t, c, name+": saved", "enforce", "2", "", 0)

		// It ends, and is forgotten.
		w.set(status(500))
		w.pass(72 * time.Hour)
		if _, err := c.Cached(t.Context(), "example.org"); err != nil {
			t.Error(err)
		}
		refresh("at its end", 0)
		if _, err := c.Cached(t.Context(), "example.org"); !errors.Is(err, ErrNoEntry) {
			t.Errorf("%s: %v", name, err)
		}
		if s != nil {
			if _, err := s.Load(t.Context(), "example.org"); !errors.Is(err, ErrNoEntry) {
				t.Error(err)
			}
		}
		w.expect(t, c, name+": gone", "", "", KindFetch, 1)
	}
}

// What nobody asks for is left to its end; what is asked for daily is not, although it is never old when it is asked for.
func TestRefreshUsed(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "31557600", "mx.example.org"))
	s := new(Memory)
	c := w.cache(s)
	w.expect(t, c, "first", "enforce", "1", "", 1)
	for range 29 {
		w.pass(24 * time.Hour)
		if err := c.Refresh(t.Context()); err != nil || w.fetches() != 1 {
			t.Fatal("not refreshed", err)
		}
	}
	// A restart keeps in mind when it was used.
	c = w.cache(s)
	w.expect(t, c, "used", "enforce", "1", "", 0)
	for range 29 {
		w.pass(24 * time.Hour)
		if err := c.Refresh(t.Context()); err != nil || w.fetches() != 1 {
			t.Fatal("not refreshed", err)
		}
	}
	c = w.cache(s)
	w.pass(24 * time.Hour)
	if err := c.Refresh(t.Context()); err != nil || w.fetches() != 0 {
		t.Error("refreshed after 30 days without use", err)
	}
	w.expect(t, c, "used again, and refreshed then", "enforce", "1", "", 1)
}

func TestRefreshNone(t *testing.T) {
	w := newWorld(t, file(ModeNone, "864000"))
	c := w.cache(new(Memory))
	w.expect(t, c, "first", "", "", "", 1)
	w.pass(24 * time.Hour)
	if err := c.Refresh(t.Context()); err != nil || w.fetches() != 0 {
		t.Error("none is refreshed", err)
	}
	w.pass(9 * 24 * time.Hour)
	if err := c.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c.Cached(t.Context(), "example.org"); !errors.Is(err, ErrNoEntry) {
		t.Error(err)
	}
}

// Many domains are refreshed a few at a time, and the end of the context ends it.
func TestRefreshMany(t *testing.T) {
	w := newWorld(t, nil)
	const n = 50
	var names []string
	s := new(Memory)
	for i := range n {
		d := fmt.Sprintf("d%d.example.net", i)
		names = append(names, "mta-sts."+d)
		w.id(d, "1")
		w.dns.Set("mta-sts."+d, dnstest.A("127.0.0.1"))
		e := Entry{Domain: d, Policy: Policy{ID: "1", Mode: ModeEnforce, MX: []string{"mx.example.org"}, MaxAge: 240 * time.Hour}, Fetched: w.now().Add(-20 * time.Hour), Used: w.now()}
		if err := s.Save(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	g := newGate(file(ModeTesting, "864000", "mx.example.org"))
	c := &Cache{Fetcher: w.serveNames(t, g.ServeHTTP, names...), Store: s, Now: w.now}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Refresh(ctx) }()
	for range refreshWorkers {
		within(t, g.entered, "a fetch")
	}
	cancel()
	if err := within(t, done, "the end"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := g.most.Load(); n != refreshWorkers {
		t.Errorf("%d at a time", n)
	}
	close(g.release)
	if err := c.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	for e, err := range s.All(t.Context()) {
		if err != nil || e.Policy.Mode != ModeTesting || !e.Fetched.Equal(w.now()) {
			t.Errorf("%+v, %v", e, err)
		}
	}
}

// countStore counts how often it is listed.
type countStore struct {
	Memory
	lists atomic.Int32
}

func (s *countStore) All(ctx context.Context) iter.Seq2[Entry, error] {
	s.lists.Add(1)
	return s.Memory.All(ctx)
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(countStore)
		c := &Cache{Store: s, RefreshAfter: time.Hour}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		if s.lists.Load() != 1 {
			t.Error("not refreshed at the start")
		}
		time.Sleep(10*time.Hour + time.Minute) // of the bubble
		synctest.Wait()
		if n := s.lists.Load(); n != 11 {
			t.Errorf("refreshed %d times", n)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// An entry that was fetched anew while Refresh was about to forget it stays.
func TestForgetRace(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "864000", "mx.example.org"))
	s := new(Memory)
	c := w.cache(s)
	w.expect(t, c, "first", "enforce", "1", "", 1)
	if err := c.forget(t.Context(), "example.org"); err != nil {
		t.Fatal(err)
	}
	w.expect(t, c, "still there", "enforce", "1", "", 0)
	if _, err := s.Load(t.Context(), "example.org"); err != nil {
		t.Error(err)
	}
}

var _ http.Handler = (*gate)(nil)
