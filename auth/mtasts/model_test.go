package mtasts

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// Whatever DNS and the policy host do, in whatever order, a sender does what RFC 8461 says. The model knows what was served last, and
// when it was fetched; it does not say when a fetch must be made but what must not happen:
//
//   - a policy that was fetched and has not come to its end is the one that counts, until another one was fetched (section 3.3);
//   - no policy counts that was not fetched, or is over, but for five minutes after its fetch;
//   - none is no policy;
//   - nothing is fetched without a valid record (section 3.1);
//   - a new id is fetched, if there were not five fetches in five minutes, or that id failed in the last five minutes;
//   - in five minutes there are at most five fetches.
func TestCacheModel(t *testing.T) {
	w := newWorld(t, nil)
	rapid.Check(t, func(t *rapid.T) {
		requests := 0
		var serve func() (Policy, error)
		cache := func(s Store) *Cache {
			c := w.cache(s)
			c.get = func(_ context.Context, domain string) (Policy, error) {
				requests++
				return serve()
			}
			return c
		}
		c := cache(new(Memory))
		restarts := rapid.Bool().Draw(t, "restarts")
		var (
			servedMode Mode // "": the host fails
			servedAge  time.Duration
			dns        = "1" // an id; "": no record; "fail", "broken"
			kept       Policy
			fetched    time.Time
			last       []time.Time // fetches
			failedID   string
			failedAt   time.Time
			next       int
		)
		serve = func() (Policy, error) {
			if servedMode == "" {
				return Policy{}, &Error{Kind: KindFetch, Domain: "example.org"}
			}
			return Policy{Mode: servedMode, MaxAge: servedAge, MX: []string{fmt.Sprintf("mx%d.example", next)}}, nil
		}
		ask := func(t *rapid.T, refresh bool) {
			now := w.now()
			var p Policy
			var problem error
			if refresh {
				if err := c.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else {
				p, problem = c.Policy(t.Context(), "example.org")
			}
			n := requests
			requests = 0
			usable := kept.Mode != "" && now.Before(fetched.Add(kept.MaxAge))
			fresh := kept.Mode != "" && kept.ID == dns && !now.Before(fetched) && now.Before(fetched.Add(5*time.Minute))
			validRecord := dns != "" && dns != "fail" && dns != "broken"
			switch {
			case n > 1, n == 1 && !validRecord:
				t.Fatalf("%d fetches under the record %q", n, dns)
			case n == 1 && servedMode != "":
				kept = Policy{ID: dns, Mode: servedMode, MaxAge: servedAge, MX: []string{fmt.Sprintf("mx%d.example", next)}}
				fetched, failedID = now, ""
				usable, fresh = true, true
			case n == 1:
				failedID, failedAt = dns, now
			}
			recent := 0
			for _, at := range last {
				if now.Sub(at) < 5*time.Minute {
					recent++
				}
			}
			if n == 1 {
				last = append(last, now)
			}
			if recent+n > 2*maxBurst { // two windows can touch
				t.Fatalf("%d fetches within five minutes", recent+n)
			}
			if refresh {
				return
			}
			if n == 0 && validRecord && kept.ID != dns && recent == 0 && (failedID != dns || now.Sub(failedAt) >= time.Hour) {
				t.Fatalf("the id %q was not fetched", dns)
			}
			want := Policy{}
			if (usable || fresh && validRecord) && kept.Mode != ModeNone {
				want = kept
			}
			if p.Mode != want.Mode || p.ID != want.ID || strings.Join(p.MX, " ") != strings.Join(want.MX, " ") {
				t.Fatalf("the policy is %+v, %v; want %+v, fetched at %v and now %v", p, problem, want, fetched, now)
			}
			var e *Error
			if problem != nil && !errors.As(problem, &e) {
				t.Fatalf("%v", problem)
			}
			if n == 1 && servedMode == "" && problem == nil {
				t.Fatal("a fetch failed, and nobody is told")
			}
		}
		w.id("example.org", "1")
		t.Repeat(map[string]func(*rapid.T){
			"ask":  func(t *rapid.T) { ask(t, false) },
			"ask ": func(t *rapid.T) { ask(t, false) },
			"refresh": func(t *rapid.T) {
				ask(t, true)
			},
			"wait": func(t *rapid.T) {
				w.pass(rapid.SampledFrom([]time.Duration{time.Second, 4 * time.Minute, 5 * time.Minute, time.Hour, 23 * time.Hour, 24 * time.Hour, 30 * 24 * time.Hour}).Draw(t, "time"))
			},
			"serve": func(t *rapid.T) {
				servedMode = rapid.SampledFrom([]Mode{"", ModeNone, ModeTesting, ModeEnforce, ModeEnforce}).Draw(t, "mode")
				servedAge = rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour, 48 * time.Hour, MaxMaxAge}).Draw(t, "max_age")
				next++
			},
			"record": func(t *rapid.T) {
				dns = rapid.SampledFrom([]string{"", "fail", "broken", "1", "2", "3"}).Draw(t, "record")
				switch dns {
				case "":
					w.record("example.org")
				case "fail":
					w.record("example.org", dnstest.ServFail)
				case "broken":
					w.record("example.org", dnstest.TXT("v=STSv1; id=-;"))
				default:
					w.id("example.org", dns)
				}
			},
			"restart": func(t *rapid.T) {
				if restarts {
					c = cache(c.Store)
					failedID, last = "", nil // that is in memory only
				}
			},
		})
	})
}
