package egress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/mta"
)

// modelKey is what is known of a source or domain, day by day, without any of the
// shortcuts of a counter.
type modelKey struct {
	caps   []int64
	weight int64
	sent   map[Day]int64
	open   map[Day]int64 // granted, and not ended
	missed time.Time     // when a grant reached nobody, and none did since
}

func (k *modelKey) back(now time.Time) bool {
	return !k.missed.IsZero() && now.Sub(k.missed) < time.Minute
}

func (k *modelKey) number(d Day) int {
	n := 1
	for day, sent := range k.sent {
		if day < d && sent > 0 {
			n++
		}
	}
	return n
}

func (k *modelKey) used(d Day) int64 { return k.sent[d] + k.open[d] }

func (k *modelKey) room(d Day) int64 {
	if n := k.number(d); n <= len(k.caps) {
		return max(0, k.caps[n-1]-k.used(d))
	}
	return 1 << 60
}

func newModelKey(caps []int64, weight int) *modelKey {
	return &modelKey{caps: caps, weight: int64(max(weight, 1)), sent: map[Day]int64{}, open: map[Day]int64{}}
}

// modelGrant is one grant under way.
type modelGrant struct {
	done   func(int)
	keys   []*modelKey
	day    Day
	n      int64
	really int64 // how many went out before the process was killed
}

func ladder(label string) *rapid.Generator[[]int64] {
	return rapid.Custom(func(t *rapid.T) []int64 {
		caps := rapid.SliceOfN(rapid.Int64Range(1, 6), 1, 4).Draw(t, label)
		for i := 1; i < len(caps); i++ {
			caps[i] += caps[i-1]
		}
		return caps
	})
}

// A Selector that is closed and made anew again and again answers exactly as a model does that has a table of
// what was sent on each day.
func TestSelectorModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &clock{noon}
		disk := new(durabletest.Disk)
		names := []string{"a", "b", "c"}[:rapid.IntRange(1, 3).Draw(t, "sources")]
		sources := map[string]*modelKey{}
		var members []Member
		for _, name := range names {
			caps := ladder("caps").Draw(t, name)
			weight := rapid.IntRange(0, 3).Draw(t, "weight")
			sources[name] = newModelKey(caps, weight)
			members = append(members, Member{src(name, caps...), weight})
		}
		caps := ladder("caps").Draw(t, "domain")
		domain := newModelKey(caps, 1)
		block := rapid.Int64Range(0, 5).Draw(t, "block")
		var state *File
		var s *Selector
		var under []modelGrant
		open := func() {
			var err error
			if state, err = Open("state", &Options{fs: disk, compact: 1000}); err != nil {
				t.Fatal(err)
			}
			s = newSelector(c, state, Pool{Name: "p", Members: members})
			s.Domains = []Domain{{Name: "x.example", WarmUp: Ladder(caps)}}
			s.Block = block
		}
		end := func(i int, sent int64) {
			g := under[i]
			under = append(under[:i], under[i+1:]...)
			g.done(int(sent))
			for _, k := range g.keys {
				k.open[g.day] -= g.n
				k.sent[g.day] += sent
			}
			if src := g.keys[0]; sent == 0 {
				src.missed = c.t
			} else {
				src.missed = time.Time{}
			}
		}
		restart := func() {
			for len(under) > 0 {
				end(0, rapid.Int64Range(0, under[0].n).Draw(t, "sent at the end"))
			}
			if err := errors.Join(s.Close(), state.Close()); err != nil {
				t.Fatal(err)
			}
			for _, k := range sources {
				k.missed = time.Time{}
			}
			open()
		}
		open()
		t.Repeat(map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				n := int64(rapid.IntRange(1, 8).Draw(t, "recipients"))
				withDomain := rapid.Bool().Draw(t, "of the domain")
				day := DayOf(c.t)
				var want []string
				left, byDomain := n, int64(0)
				if withDomain {
					byDomain = max(0, n-domain.room(day))
					left -= byDomain
				}
				type part struct {
					key *modelKey
					n   int64
				}
				var parts []part
				tried := map[string]bool{}
				for left > 0 {
					best := ""
					for _, name := range names {
						k := sources[name]
						if tried[name] || k.room(day) == 0 {
							continue
						}
						switch {
						case best == "":
							best = name
						case k.back(c.t) != sources[best].back(c.t):
							if sources[best].back(c.t) {
								best = name
							}
						case k.used(day)*sources[best].weight < sources[best].used(day)*k.weight:
							best = name
						}
					}
					if best == "" {
						break
					}
					tried[best] = true
					k := sources[best]
					got := min(left, k.room(day))
					left -= got
					parts = append(parts, part{k, got})
					want = append(want, fmt.Sprintf("%s:%d", best, got))
				}
				if left > 0 {
					want = append(want, fmt.Sprintf("wait:%d (%s)", left, RuleSource))
				}
				if byDomain > 0 {
					want = append(want, fmt.Sprintf("wait:%d (%s)", byDomain, RuleDomain))
				}
				from := "other.example"
				if withDomain {
					from = "x.example"
				}
				grants := choose(t, s, envelope("", from), int(n))
				if got := say(grants); got != strings.Join(want, " ") {
					t.Fatalf("%s of %d: %s; want %s", day, n, got, strings.Join(want, " "))
				}
				for i, p := range parts {
					g := modelGrant{done: grants[i].Done, keys: []*modelKey{p.key}, day: day, n: p.n}
					if withDomain {
						g.keys = append(g.keys, domain)
					}
					for _, k := range g.keys {
						k.open[day] += p.n
					}
					under = append(under, g)
				}
			},
			"end": func(t *rapid.T) {
				if len(under) == 0 {
					t.Skip("nothing is under way")
				}
				i := rapid.IntRange(0, len(under)-1).Draw(t, "grant")
				end(i, rapid.Int64Range(0, under[i].n).Draw(t, "sent"))
			},
			"day": func(t *rapid.T) {
				// A delivery does not last from the day before yesterday.
				for i := len(under) - 1; i >= 0; i-- {
					if under[i].day < DayOf(c.t) {
						end(i, 0)
					}
				}
				c.days(rapid.IntRange(1, 3).Draw(t, "days"))
			},
			"restart": func(*rapid.T) { restart() },
			"": func(t *rapid.T) {
				counts, err := s.Status(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				day := DayOf(c.t)
				for _, n := range counts {
					k := domain
					if n.Kind == KindSource {
						k = sources[n.Name]
					}
					if n.Day != day || n.Number != k.number(day) || n.Sent != k.sent[day] || n.Reserved != k.open[day] || n.Lost != 0 {
						t.Fatalf("%+v; want sending day %d, %d sent, %d under way", n, k.number(day), k.sent[day], k.open[day])
					}
				}
			},
		})
		restart()
		s.Close()
		state.Close()
	})
}

// Whatever happens, the process being killed and the power being cut with messages under way, the clock
// set back and forth, each sending day's cap holds to the copy; and a kill loses no more than a block and what was
// under way.
func TestSelectorKilled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &clock{noon}
		caps := []int64{4, 12, 30, 70}
		disk := new(durabletest.Disk)
		block := rapid.Int64Range(1, 6).Draw(t, "block")
		key := newModelKey(caps, 1) // by the latest day on which something was granted
		var state *File
		var s *Selector
		var under []modelGrant
		var top Day
		lost := map[Day]int64{}
		open := func() {
			var err error
			if state, err = Open("state", &Options{fs: disk, compact: 1000}); err != nil {
				t.Fatal(err)
			}
			s = newSelector(c, state, Pool{Name: "p", Members: []Member{{Source: src("a", caps...)}}})
			s.Domains = []Domain{{Name: "x.example", WarmUp: Ladder(caps)}}
			s.Block = block
		}
		open()
		t.Repeat(map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				n := rapid.IntRange(1, 9).Draw(t, "recipients")
				for _, g := range choose(t, s, envelope("", "x.example"), n) {
					if g.Err != nil {
						continue
					}
					top = max(top, DayOf(c.t))
					n := int64(len(g.Recipients))
					really := rapid.Int64Range(0, n).Draw(t, "really sent")
					key.sent[top] += really
					if number := key.number(top); number <= len(caps) && key.sent[top] > caps[number-1] {
						t.Fatalf("%v: %d were sent on sending day %d, over %d", top, key.sent[top], number, caps[number-1])
					}
					under = append(under, modelGrant{done: g.Done, day: top, n: n, really: really})
				}
			},
			"end": func(t *rapid.T) {
				if len(under) == 0 {
					t.Skip("nothing is under way")
				}
				i := rapid.IntRange(0, len(under)-1).Draw(t, "grant")
				under[i].done(int(under[i].really))
				under = append(under[:i], under[i+1:]...)
			},
			"clock": func(t *rapid.T) { c.t = c.t.Add(time.Duration(rapid.IntRange(-40, 60).Draw(t, "hours")) * time.Hour) },
			"kill": func(t *rapid.T) {
				for _, g := range under {
					lost[g.day] += g.n - g.really
				}
				lost[top] += block - 1
				under = nil
				if rapid.Bool().Draw(t, "power cut") {
					disk = disk.Crash(rapid.Uint64().Draw(t, "seed"))
				} else {
					// The process is gone, and what it wrote is there. Its lock is free.
					state.Close()
				}
				open()
			},
			"close": func(*rapid.T) {
				for _, g := range under {
					lost[g.day] += g.n - g.really // counts as sent
				}
				under = nil
				if err := errors.Join(s.Close(), state.Close()); err != nil {
					t.Fatal(err)
				}
				open()
			},
			"": func(t *rapid.T) {
				counts, err := s.Status(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				way := int64(0)
				for _, g := range under {
					if g.day == top {
						way += g.n - g.really
					}
				}
				for _, n := range counts {
					used := n.Sent + n.Lost + n.Reserved
					if n.Day == top && (used < key.sent[top] || used > key.sent[top]+way+lost[top]) {
						t.Fatalf("%+v: %d count; %d were sent, %d are under way, at most %d are lost", n, used, key.sent[top], way, lost[top])
					}
					if n.Capped && used > n.Cap {
						t.Fatalf("%+v: more counts than the cap has", n)
					}
					if n.Number > key.number(n.Day) {
						t.Fatalf("%+v: sending day %d is only number %d", n, n.Day, key.number(n.Day))
					}
				}
			},
		})
		s.Close()
		state.Close()
	})
}

// All the mail of a warm-up, with a kill now and then: no day goes over its cap, and every one is filled but for
// what the kills lost. Many rounds with MAILSPINE_SOAK=1.
func TestWarmUpWithKills(t *testing.T) {
	rounds := 20
	if soak() {
		rounds = 2000
	}
	for seed := range uint64(rounds) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		disk := new(durabletest.Disk)
		c := &clock{noon}
		g := Geometric{First: 50, Factor: 1.5, Days: 6}
		day := 1
		for ; ; day++ {
			limit, capped := g.Cap(day)
			if !capped {
				break
			}
			sent, lost := int64(0), int64(0)
			for alive := true; alive; {
				state, err := Open("state", &Options{fs: disk})
				if err != nil {
					t.Fatal(err)
				}
				s := &Selector{Pools: []Pool{{Name: "p", Members: []Member{{Source: Source{Name: "a", WarmUp: g}}}}}, State: state, Now: c.now, Logger: slog.New(slog.DiscardHandler)}
				killAt := rnd.IntN(200)
				for i := 0; ; i++ {
					grants, err := s.Choose(context.Background(), mta.EgressRequest{Env: envelope("", ""), Recipients: []int{0, 1}})
					if err != nil {
						t.Fatal(err)
					}
					if grants[0].Err != nil {
						alive = false
						break
					}
					n := len(grants[0].Recipients)
					sent += int64(n)
					if i == killAt {
						lost += max(1, limit/50) - 1
						break
					}
					grants[0].Done(n)
				}
				if alive || rnd.IntN(2) == 0 {
					disk = disk.Crash(rnd.Uint64())
				} else {
					s.Close()
					state.Close()
				}
			}
			if sent > limit || sent < limit-lost {
				t.Fatalf("seed %d, day %d: %d sent of %d, and %d may be lost", seed, day, sent, limit, lost)
			}
			c.days(1)
		}
		if day != 7 {
			t.Fatalf("seed %d: the warm-up ended on day %d", seed, day)
		}
	}
}
