package egress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta"
)

// noon is a time in the middle of a day.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }
func (c *clock) days(n int)     { c.t = c.t.AddDate(0, 0, n) }

func newSelector(c *clock, state State, pools ...Pool) *Selector {
	s := &Selector{Pools: pools, State: state, Logger: slog.New(slog.DiscardHandler)}
	if c != nil {
		s.Now = c.now
	}
	return s
}

func src(name string, caps ...int64) Source {
	s := Source{Name: name}
	if len(caps) > 0 {
		s.WarmUp = Ladder(caps)
	}
	return s
}

func mkpool(name string, tenants []string, members ...Member) Pool {
	return Pool{Name: name, Members: members, Tenants: tenants}
}

func envelope(tenant, from string) *mailspine.Envelope {
	return &mailspine.Envelope{Tenant: tenant, From: mailspine.Address{Local: "ann", Domain: from}}
}

// tb is what testing.TB and rapid.T have in common.
type tb interface {
	Helper()
	Fatal(args ...any)
	Errorf(format string, args ...any)
}

func choose(t tb, s *Selector, env *mailspine.Envelope, n int) []mta.Grant {
	t.Helper()
	req := mta.EgressRequest{Env: env, Domain: "dest.example", Hosts: []string{"mx.dest.example"}}
	for i := range n {
		req.Recipients = append(req.Recipients, i)
	}
	grants, err := s.Choose(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return grants
}

// say makes a line of grants: "a1:3 a2:2 wait:1 (rule)".
func say(grants []mta.Grant) string {
	var words []string
	for _, g := range grants {
		var nn *mailspine.NotNow
		switch {
		case errors.As(g.Err, &nn):
			words = append(words, fmt.Sprintf("wait:%d (%s)", len(g.Recipients), nn.Rule))
		case g.Err != nil:
			words = append(words, g.Err.Error())
		default:
			words = append(words, fmt.Sprintf("%s:%d", g.Source.Name, len(g.Recipients)))
		}
	}
	return strings.Join(words, " ")
}

// send grants and sends everything that is granted, and says it.
func send(t tb, s *Selector, env *mailspine.Envelope, n int) string {
	t.Helper()
	grants := choose(t, s, env, n)
	for _, g := range grants {
		if g.Done != nil {
			g.Done(len(g.Recipients))
		}
	}
	return say(grants)
}

func expect(t tb, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s; want %s", what, got, want)
	}
}

// Two sources with weights, shared by two tenants, a dedicated one for a third.
func TestPools(t *testing.T) {
	c := &clock{noon}
	s := newSelector(c, NewMemory(),
		mkpool("shared", []string{"one", "two"}, Member{src("a1"), 3}, Member{src("a2"), 0}),
		mkpool("own", []string{"three"}, Member{src("b1"), 1}),
	)
	defer s.Close()
	var got []string
	for i := range 8 {
		got = append(got, send(t, s, envelope([]string{"one", "two"}[i%2], "x.example"), 1))
	}
	expect(t, "weights 3 and 1", strings.Join(got, " "), "a1:1 a2:1 a1:1 a1:1 a1:1 a2:1 a1:1 a1:1")
	expect(t, "dedicated", send(t, s, envelope("three", "x.example"), 5), "b1:5")
	for _, tt := range []struct{ tenant, pool string }{
		{"four", ""}, {"", ""}, {"one", "own"}, {"three", "shared"}, {"four", "own"}, {"one", "none"}, {"four", "none"}, {"ONE", ""},
	} {
		env := envelope(tt.tenant, "x.example")
		env.Pool = tt.pool
		_, err := s.Choose(t.Context(), mta.EgressRequest{Env: env, Recipients: []int{0}})
		if !errors.Is(err, ErrNoPool) || !mailspine.Status(err).Temporary() {
			t.Errorf("tenant %q, pool %q: %v; want a temporary ErrNoPool", tt.tenant, tt.pool, err)
		}
	}
	env := envelope("one", "x.example")
	env.Pool = "shared"
	expect(t, "its own pool by name", send(t, s, env, 1), "a1:1")
}

// Pools without tenants are for all who have no other; an envelope may choose among them.
func TestGeneralPools(t *testing.T) {
	s := newSelector(&clock{noon}, NewMemory(),
		mkpool("own", []string{"three"}, Member{src("b1"), 1}),
		mkpool("first", nil, Member{src("a1"), 1}),
		mkpool("second", nil, Member{src("a2"), 1}, Member{src("a1"), 1}),
	)
	defer s.Close()
	expect(t, "anybody", send(t, s, envelope("", "x.example"), 2), "a1:2")
	env := envelope("nobody", "x.example")
	env.Pool = "second"
	expect(t, "by name", send(t, s, env, 1), "a2:1")
	env.Tenant = "three"
	if _, err := s.Choose(t.Context(), mta.EgressRequest{Env: env, Recipients: []int{0}}); !errors.Is(err, ErrNoPool) {
		t.Errorf("a tenant with a pool of its own in another: %v", err)
	}
}

// The cap holds to the copy: what is over goes to the next source, and then it waits, with the
// reason, until midnight.
func TestSourceCap(t *testing.T) {
	c := &clock{noon}
	s := newSelector(c, NewMemory(), mkpool("p", nil, Member{src("a1", 3, 5), 1}, Member{src("a2", 4), 1}))
	defer s.Close()
	env := envelope("", "x.example")
	expect(t, "day 1", send(t, s, env, 2), "a1:2")
	expect(t, "day 1", send(t, s, env, 10), "a2:4 a1:1 wait:5 (egress/source-cap)")
	grants := choose(t, s, env, 2)
	expect(t, "full", say(grants), "wait:2 (egress/source-cap)")
	nn := grants[0].Err.(*mailspine.NotNow)
	expect(t, "reason", nn.Reason, "warm-up: source a1 sent 3 of 3 on its day 1; source a2 sent 4 of 4 on its day 1")
	if want := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC); !nn.Until.Equal(want) {
		t.Errorf("until %v, want %v", nn.Until, want)
	}
	if !slices.Equal(grants[0].Recipients, []int{0, 1}) {
		t.Errorf("who waits: %v", grants[0].Recipients)
	}
	c.t = nn.Until
	expect(t, "day 2, when a1 has 5 and a2 no cap", send(t, s, env, 4), "a1:4")
	expect(t, "day 2", send(t, s, env, 50), "a2:50")
	c.days(1)
	expect(t, "day 3 without caps", send(t, s, env, 100), "a1:100")
}

// A day without mail, or on which nothing was really sent, raises no cap.
func TestSendingDays(t *testing.T) {
	c := &clock{noon}
	s := newSelector(c, NewMemory(), mkpool("p", nil, Member{src("a", 1, 2, 4), 1}))
	defer s.Close()
	env := envelope("", "x.example")
	expect(t, "day 1", send(t, s, env, 9), "a:1 wait:8 (egress/source-cap)")
	c.days(7)
	expect(t, "after a week without mail", say(choose(t, s, env, 3)), "a:2 wait:1 (egress/source-cap)") // not ended
	c.days(1)
	grants := choose(t, s, env, 9)
	expect(t, "nothing was sent on the day before", say(grants), "a:2 wait:7 (egress/source-cap)")
	grants[0].Done(0)
	c.days(1)
	expect(t, "nor on the next", send(t, s, env, 9), "a:2 wait:7 (egress/source-cap)")
	c.days(1)
	expect(t, "day 3", send(t, s, env, 9), "a:4 wait:5 (egress/source-cap)")
}

// What is granted before midnight counts for the day before, which its end makes a sending day.
func TestMidnight(t *testing.T) {
	c := &clock{noon.Add(12*time.Hour - time.Second)}
	s := newSelector(c, NewMemory(), mkpool("p", nil, Member{src("a", 2, 3, 5), 1}))
	defer s.Close()
	env := envelope("", "x.example")
	first := choose(t, s, env, 2)
	c.t = c.t.Add(2 * time.Second)
	expect(t, "still day 1: nothing is known to be sent", say(choose(t, s, env, 1)), "a:1")
	first[0].Done(2)
	expect(t, "day 2, one under way", send(t, s, env, 9), "a:2 wait:7 (egress/source-cap)")
	c.days(1)
	expect(t, "day 3", send(t, s, env, 9), "a:5 wait:4 (egress/source-cap)")
	first[0].Done(2)
	expect(t, "Done twice", send(t, s, env, 1), "wait:1 (egress/source-cap)")
}

// Two that end after midnight make one sending day.
func TestMidnightTwice(t *testing.T) {
	c := &clock{noon}
	s := newSelector(c, NewMemory(), mkpool("p", nil, Member{src("a", 2, 3, 5), 1}))
	defer s.Close()
	env := envelope("", "x.example")
	first, second := choose(t, s, env, 1), choose(t, s, env, 1)
	c.days(1)
	choose(t, s, env, 1)[0].Done(0)
	first[0].Done(1)
	second[0].Done(1)
	expect(t, "day 2", send(t, s, env, 9), "a:3 wait:6 (egress/source-cap)")
}

// A Done that tells too much, too little, or twice, changes no more than its own reservation.
func TestDone(t *testing.T) {
	s := newSelector(&clock{noon}, NewMemory(), mkpool("p", nil, Member{src("a", 9), 1}))
	defer s.Close()
	env := envelope("", "x.example")
	for _, told := range []int{-5, 100} {
		g := choose(t, s, env, 3)[0]
		g.Done(told)
		g.Done(2)
	}
	choose(t, s, env, 2)
	st, _ := s.Status(t.Context())
	if st[0].Sent != 3 || st[0].Reserved != 2 || st[0].Room != 4 {
		t.Errorf("%+v", st[0])
	}
}

// The order of selection is exact for the largest counts and weights.
func TestLess(t *testing.T) {
	m := func(sent int64, weight uint64) member {
		return member{&source{counter: counter{sent: sent}}, weight}
	}
	for _, tt := range []struct {
		a, b member
		less bool
	}{
		{m(1, 2), m(1, 1), true}, {m(1, 1), m(1, 2), false}, {m(2, 2), m(1, 1), false}, {m(0, 1), m(0, 9), false},
		{m(1<<53, 1e6), m(1<<53-1, 1), true}, {m(1<<53-1, 1), m(1<<53, 1e6), false},
		{m(1<<53-1, 1e6), m(1<<53, 1e6), true}, {m(1<<60, 1), m(1<<60-1, 1), false},
		{m(1, 64), m(1<<58, 1), true}, {m(1<<58, 1), m(1, 64), false}, // 2 to the power of 64
	} {
		if got := tt.a.less(tt.b); got != tt.less {
			t.Errorf("%d/%d < %d/%d is %v", tt.a.sent, tt.a.weight, tt.b.sent, tt.b.weight, got)
		}
	}
}

// hookState calls a hook while it saves.
type hookState struct {
	*Memory
	hook func()
}

func (h *hookState) Save(ctx context.Context, recs ...Record) error {
	if f := h.hook; f != nil {
		h.hook = nil
		f()
	}
	return h.Memory.Save(ctx, recs...)
}

// A write of yesterday that ends today covers nothing of today.
func TestMidnightWhileSaving(t *testing.T) {
	day := noon
	var mu sync.Mutex
	state := &hookState{Memory: NewMemory()}
	s := newSelector(nil, state, mkpool("p", nil, Member{src("a", 1<<40), 1}))
	s.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return day }
	env := envelope("", "x.example")
	done := make(chan struct{})
	state.hook = func() {
		mu.Lock()
		day = day.AddDate(0, 0, 1)
		mu.Unlock()
		go func() {
			defer close(done)
			choose(t, s, env, 1)
		}()
		for {
			if st, _ := s.Status(t.Context()); st[0].Reserved > 0 && st[0].Day == DayOf(noon)+1 {
				return
			}
			runtime.Gosched()
		}
	}
	choose(t, s, env, 1)
	<-done
	if r := state.recs[Key{KindSource, "a"}]; r.Day != DayOf(noon)+1 || r.Held < 1 {
		t.Errorf("the State has %+v, and one is granted on the next day", r)
	}
	s.Close()
}

// A clock that goes back gives no cap twice, and no day.
func TestClockBack(t *testing.T) {
	c := &clock{noon}
	state := NewMemory()
	s := newSelector(c, state, mkpool("p", nil, Member{src("a", 1, 2), 1}))
	env := envelope("", "x.example")
	expect(t, "day 1", send(t, s, env, 2), "a:1 wait:1 (egress/source-cap)")
	c.days(-3)
	grants := choose(t, s, env, 1)
	expect(t, "three days back", say(grants), "wait:1 (egress/source-cap)")
	nn := grants[0].Err.(*mailspine.NotNow)
	if want := noon.Add(12 * time.Hour); !nn.Until.Equal(want) || !strings.Contains(nn.Reason, "which is 2026-03-01, ahead of the clock") {
		t.Errorf("%v", nn)
	}
	s.Close()
	s = newSelector(c, state, mkpool("p", nil, Member{src("a", 1, 2), 1}))
	defer s.Close()
	expect(t, "and after a restart", send(t, s, env, 1), "wait:1 (egress/source-cap)")
	c.days(4)
	expect(t, "day 2", send(t, s, env, 3), "a:2 wait:1 (egress/source-cap)")
}

// The sending domain has a cap of its own, over all sources and tenants.
func TestDomainCap(t *testing.T) {
	c := &clock{noon}
	s := newSelector(c, NewMemory(), mkpool("p", []string{"one"}, Member{src("a1", 3), 1}), mkpool("q", nil, Member{src("a2"), 1}))
	s.Domains = []Domain{{Name: "News.example", WarmUp: Ladder{5, 10}}, {Name: "bücher.example"}}
	defer s.Close()
	expect(t, "source and domain", send(t, s, envelope("one", "NEWS.example"), 7), "a1:3 wait:2 (egress/source-cap) wait:2 (egress/domain-cap)")
	grants := choose(t, s, envelope("two", "news.example"), 4)
	expect(t, "another tenant", say(grants), "a2:2 wait:2 (egress/domain-cap)")
	if !slices.Equal(grants[1].Recipients, []int{2, 3}) {
		t.Errorf("who waits: %v", grants[1].Recipients)
	}
	nn := grants[1].Err.(*mailspine.NotNow)
	// Two are not sent yet, and may be given back.
	if !strings.Contains(nn.Reason, "domain news.example sent 3 of 5 on its day 1") {
		t.Errorf("%v", nn)
	}
	grants[0].Done(1)
	expect(t, "one was given back", send(t, s, envelope("two", "news.example"), 4), "a2:1 wait:3 (egress/domain-cap)")
	expect(t, "a subdomain is another", send(t, s, envelope("two", "x.news.example"), 9), "a2:9")
	expect(t, "no domain", send(t, s, envelope("two", ""), 9), "a2:9")
	expect(t, "IDN", send(t, s, envelope("two", "xn--bcher-kva.example"), 2), "a2:2")
	s2 := newSelector(c, NewMemory(), mkpool("q", nil, Member{src("a2"), 1}))
	s2.Domains = []Domain{{Name: "author.example", WarmUp: Ladder{1}}}
	s2.SendingDomain = func(env *mailspine.Envelope) string { return env.Meta["author"] }
	defer s2.Close()
	env := envelope("", "bounces.example")
	env.Meta = map[string]string{"author": "Author.Example"}
	expect(t, "by function", send(t, s2, env, 2), "a2:1 wait:1 (egress/domain-cap)")
}

// While others are under way, who waits asks again soon: they may give back what they have.
func TestUnderWay(t *testing.T) {
	c := &clock{noon}
	s := newSelector(c, NewMemory(), mkpool("p", nil, Member{src("a", 2), 1}))
	defer s.Close()
	env := envelope("", "x.example")
	first := choose(t, s, env, 2)
	nn := choose(t, s, env, 1)[0].Err.(*mailspine.NotNow)
	if !nn.Until.Equal(noon.Add(time.Minute)) || nn.Reason != "warm-up: source a sent 0 of 2 on its day 1, 2 under way" {
		t.Errorf("%v", nn)
	}
	first[0].Done(1)
	c.t = nn.Until
	expect(t, "what was given back", send(t, s, env, 2), "a:1 wait:1 (egress/source-cap)")
	// At midnight there is a new day anyway.
	c.days(1)
	choose(t, s, env, 1)
}

// A restart goes on where the Selector ended, to the copy; a second Selector cannot count by itself.
func TestRestart(t *testing.T) {
	c := &clock{noon}
	state := NewMemory()
	pools := []Pool{mkpool("p", nil, Member{src("a", 1000, 2000), 1}, Member{src("b", 1), 5})}
	s := newSelector(c, state, pools...)
	s.Domains = []Domain{{Name: "x.example", WarmUp: Ladder{800}}}
	env := envelope("", "x.example")
	expect(t, "day 1", send(t, s, env, 7), "a:7")
	other := newSelector(c, state, pools...)
	if _, err := other.Choose(t.Context(), mta.EgressRequest{Env: env, Recipients: []int{0}}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second Selector: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Errorf("closing one that never had the state: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if _, err := s.Choose(t.Context(), mta.EgressRequest{Env: env, Recipients: []int{0}}); !errors.Is(err, ErrClosed) {
		t.Errorf("Choose after Close: %v", err)
	}
	for _, r := range state.recs {
		if r.Sent != r.Held {
			t.Errorf("after a clean end: %+v", r)
		}
	}
	s = newSelector(c, state, pools...)
	s.Domains = []Domain{{Name: "x.example", WarmUp: Ladder{800}}}
	defer s.Close()
	got, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got[0].Sent != 7 || got[0].Room != 993 || got[2].Sent != 7 || got[2].Cap != 800 || got[2].Key != (Key{KindDomain, "x.example"}) || got[1].Number != 1 {
		t.Errorf("status %+v", got)
	}
	expect(t, "the rest of the day", send(t, s, env, 2000), "b:1 a:792 wait:1207 (egress/domain-cap)")
}

// What is wrong with the fields is said with the field's name, and nothing is granted.
func TestValidate(t *testing.T) {
	a := Member{src("a"), 1}
	for _, tt := range []struct {
		name string
		edit func(*Selector)
		want string
	}{
		{"no state", func(s *Selector) { s.State = nil }, "Selector.State"},
		{"block", func(s *Selector) { s.Block = -1 }, "Selector.Block"},
		{"no pools", func(s *Selector) { s.Pools = nil }, "Selector.Pools is empty"},
		{"no name", func(s *Selector) { s.Pools[1].Name = "" }, "Pools[1].Name"},
		{"two pools of a name", func(s *Selector) { s.Pools[1].Name = "p" }, "Pools[1].Name"},
		{"no members", func(s *Selector) { s.Pools[1].Members = nil }, "Pools[1].Members"},
		{"weight", func(s *Selector) { s.Pools[0].Members[0].Weight = -1 }, "Pools[0].Members[0].Weight"},
		{"large weight", func(s *Selector) { s.Pools[0].Members[0].Weight = 1e6 + 1 }, "Pools[0].Members[0].Weight"},
		{"source without name", func(s *Selector) { s.Pools[0].Members[0].Source.Name = "" }, "Members[0].Source.Name"},
		{"source with a bad name", func(s *Selector) { s.Pools[0].Members[0].Source.Name = "a b" }, "Members[0].Source.Name"},
		{"long name", func(s *Selector) { s.Pools[0].Members[0].Source.Name = strings.Repeat("x", 256) }, "Members[0].Source.Name"},
		{"unspecified address", func(s *Selector) { s.Pools[0].Members[0].Source.Addr = netip.IPv4Unspecified() }, "Members[0].Source.Addr"},
		{"mapped address", func(s *Selector) { s.Pools[0].Members[0].Source.Addr = netip.MustParseAddr("::ffff:192.0.2.1") }, "Members[0].Source.Addr"},
		{"host name", func(s *Selector) { s.Pools[0].Members[0].Source.Hostname = "a\r\nb" }, "Members[0].Source.Hostname"},
		{"empty ladder", func(s *Selector) { s.Pools[0].Members[0].Source.WarmUp = Ladder{} }, "Members[0].Source.WarmUp"},
		{"ladder down", func(s *Selector) { s.Pools[0].Members[0].Source.WarmUp = Ladder{2, 1} }, "step 2"},
		{"ladder from zero", func(s *Selector) { s.Pools[0].Members[0].Source.WarmUp = Ladder{0, 1} }, "step 1"},
		{"geometric down", func(s *Selector) { s.Pools[0].Members[0].Source.WarmUp = Geometric{Factor: 0.5} }, "Geometric.Factor"},
		{"geometric days", func(s *Selector) { s.Pools[0].Members[0].Source.WarmUp = Geometric{Days: -1} }, "Geometric.Days"},
		{"geometric first", func(s *Selector) { s.Pools[0].Members[0].Source.WarmUp = Geometric{First: -5} }, "Geometric.First"},
		{"two sources of a name", func(s *Selector) { s.Pools[1].Members = []Member{{src("a", 5), 1}} }, "Pools[1].Members[0].Source.Name"},
		{"a source twice in a pool", func(s *Selector) { s.Pools[0].Members = []Member{a, a} }, "Pools[0].Members[1].Source.Name"},
		{"a dedicated source in a second pool", func(s *Selector) { s.Pools[1].Members = []Member{a}; s.Pools[1].Tenants = []string{"x"} }, "dedicated"},
		{"a shared source in a dedicated pool", func(s *Selector) {
			s.Pools[0].Tenants = []string{"x"}
			s.Pools[1].Members = []Member{{src("c"), 1}, a}
		}, "Pools[1].Members[1].Source"},
		{"a tenant in two pools", func(s *Selector) { s.Pools[0].Tenants, s.Pools[1].Tenants = []string{"x", "y"}, []string{"z", "x"} }, "Pools[1].Tenants[1]"},
		{"a tenant twice", func(s *Selector) { s.Pools[0].Tenants = []string{"x", "x"} }, "Pools[0].Tenants[1]"},
		{"domain", func(s *Selector) { s.Domains = []Domain{{Name: "x.example"}, {Name: "two words"}} }, "Domains[1].Name"},
		{"no domain", func(s *Selector) { s.Domains = []Domain{{}} }, "Domains[0].Name"},
		{"a domain twice", func(s *Selector) { s.Domains = []Domain{{Name: "x.example"}, {Name: "X.Example"}} }, "Domains[1].Name"},
		{"a domain's schedule", func(s *Selector) { s.Domains = []Domain{{Name: "x.example", WarmUp: Ladder{}}} }, "Domains[0].WarmUp"},
	} {
		s := newSelector(&clock{noon}, NewMemory(), mkpool("p", nil, a), mkpool("q", nil, Member{src("b"), 1}))
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		tt.edit(s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q in it", tt.name, err, tt.want)
		}
		env := envelope("", "x.example")
		if grants, err := s.Choose(t.Context(), mta.EgressRequest{Env: env, Recipients: []int{0}}); err == nil || !mailspine.Status(err).Temporary() {
			t.Errorf("%s: granted %v, %v", tt.name, say(grants), err)
		}
		if _, err := s.Explain(t.Context(), env, ""); err == nil {
			t.Errorf("%s: explained", tt.name)
		}
		if _, err := s.Status(t.Context()); err == nil {
			t.Errorf("%s: has a status", tt.name)
		}
	}
}

// badState fails where it is told to.
type badState struct {
	*Memory
	claim, save error
	recs        []Record
}

func (b *badState) Claim(ctx context.Context) ([]Record, error) {
	if b.claim != nil {
		return nil, b.claim
	}
	recs, err := b.Memory.Claim(ctx)
	return append(recs, b.recs...), err
}

func (b *badState) Save(ctx context.Context, recs ...Record) error {
	if b.save != nil {
		return b.save
	}
	return b.Memory.Save(ctx, recs...)
}

// A State that fails grants nothing, and what was to be granted is free again when it works.
func TestStateFails(t *testing.T) {
	c := &clock{noon}
	b := &badState{Memory: NewMemory(), claim: errors.New("locked")}
	s := newSelector(c, b, mkpool("p", nil, Member{src("a", 3), 1}))
	s.Domains = []Domain{{Name: "x.example", WarmUp: Ladder{3}}}
	env := envelope("", "x.example")
	req := mta.EgressRequest{Env: env, Recipients: []int{0, 1, 2}}
	if _, err := s.Choose(t.Context(), req); !errors.Is(err, b.claim) {
		t.Errorf("Claim fails: %v", err)
	}
	b.claim = nil
	b.save = errors.New("disk full")
	for range 3 {
		if _, err := s.Choose(t.Context(), req); !errors.Is(err, b.save) || !mailspine.Status(err).Temporary() || strings.Contains(mailspine.Status(err).Message, "disk") {
			t.Errorf("Save fails: %v", err)
		}
	}
	b.save = nil
	expect(t, "it works again", send(t, s, env, 4), "a:3 wait:1 (egress/domain-cap)")
	b.save = errors.New("disk full")
	if err := s.Close(); !errors.Is(err, b.save) {
		t.Errorf("Close: %v", err)
	}
	if _, err := b.Claim(t.Context()); err != nil {
		t.Errorf("Close with an error released nothing: %v", err)
	}
	b = &badState{Memory: NewMemory(), recs: []Record{rec(KindSource, "a", 1, 0, 0, 0)}}
	s = newSelector(c, b, mkpool("p", nil, Member{src("a", 3), 1}))
	if _, err := s.Choose(t.Context(), req); err == nil {
		t.Error("granted over a record that cannot be")
	}
}

// A block spares the disk, and a crash loses no more than what was left of it.
func TestBlocks(t *testing.T) {
	c := &clock{noon}
	state := NewMemory()
	newOne := func() *Selector { return newSelector(c, state, mkpool("p", nil, Member{src("a", 1000, 2000), 1})) }
	s := newOne()
	saves := 0
	s.Trace = &Trace{Saved: func(context.Context, SavedInfo) { saves++ }}
	env := envelope("", "x.example")
	for range 100 {
		expect(t, "sending", send(t, s, env, 1), "a:1")
	}
	// A fiftieth of 1,000 is 20; and one when the day began to be a sending day.
	if saves != 6 {
		t.Errorf("%d writes for 100 copies, want 6", saves)
	}
	// The process is killed: nobody closes the Selector, and the state is claimed by another.
	state.claimed = false
	s = newOne()
	st, _ := s.Status(t.Context())
	if st[0].Sent+st[0].Lost < 100 || st[0].Sent+st[0].Lost > 119 {
		t.Errorf("after a crash, 100 sent: %+v", st[0])
	}
	expect(t, "after a crash", send(t, s, env, 2000), fmt.Sprintf("a:%d wait:%d (egress/source-cap)", 1000-st[0].Sent-st[0].Lost, 1000+st[0].Sent+st[0].Lost))
	state.claimed = false
	s = newOne()
	c.days(1)
	expect(t, "day 2 after crashes", send(t, s, env, 2001), "a:2000 wait:1 (egress/source-cap)")
	s.Close()
}

// A crash in the middle of the first delivery of a day does not make it a sending day; one after it does.
func TestCrashAndDays(t *testing.T) {
	c := &clock{noon}
	state := NewMemory()
	newOne := func() *Selector {
		state.claimed = false
		return newSelector(c, state, mkpool("p", nil, Member{src("a", 5, 9), 1}))
	}
	env := envelope("", "x.example")
	choose(t, newOne(), env, 3) // killed while it is under way
	s := newOne()
	expect(t, "three may have been sent", say(choose(t, s, env, 9)), "a:2 wait:7 (egress/source-cap)")
	c.days(1)
	s = newOne()
	expect(t, "nothing is known to be sent", send(t, s, env, 1), "a:1")
	c.days(1)
	s = newOne() // killed after it
	expect(t, "day 2", send(t, s, env, 10), "a:9 wait:1 (egress/source-cap)")
}

// The verdict of Explain is what Choose does, and reserves nothing.
func TestExplain(t *testing.T) {
	c := &clock{noon}
	s := newSelector(c, NewMemory(), mkpool("p", []string{"one", "two"}, Member{src("a1", 2), 1}, Member{src("a2"), 2}))
	s.Domains = []Domain{{Name: "x.example", WarmUp: Ladder{4}}}
	defer s.Close()
	env := envelope("one", "x.example")
	for i := range 6 {
		e, err := s.Explain(t.Context(), env, "dest.example")
		if err != nil {
			t.Fatal(err)
		}
		again, _ := s.Explain(t.Context(), env, "dest.example")
		if e.Source != again.Source {
			t.Errorf("explained %s, then %s", e.Source, again.Source)
		}
		if e.Source != "" && e.Sources[0].Name != e.Source {
			t.Errorf("%s is chosen, and %s is first", e.Source, e.Sources[0].Name)
		}
		want := e.Source + ":1"
		if e.Source == "" {
			want = fmt.Sprintf("wait:1 (%s)", e.Wait.Rule)
		}
		expect(t, fmt.Sprint("copy ", i), send(t, s, env, 1), want)
	}
	e, _ := s.Explain(t.Context(), env, "dest.example")
	b, _ := json.Marshal(e)
	want := `{"tenant":"one","pool":"p","sendingDomain":"x.example","domain":"dest.example",` +
		`"sending":{"kind":"domain","name":"x.example","day":"2026-03-01","number":1,"capped":true,"cap":4,"sent":4,"reserved":0,"lost":0,"room":0},` +
		`"sources":[{"kind":"source","name":"a2","day":"2026-03-01","number":1,"capped":false,"cap":0,"sent":2,"reserved":0,"lost":0,"room":0,"weight":2,"load":1},` +
		`{"kind":"source","name":"a1","day":"2026-03-01","number":1,"capped":true,"cap":2,"sent":2,"reserved":0,"lost":0,"room":0,"weight":1,"load":2}],` +
		`"wait":{"Until":"2026-03-02T00:00:00Z","Reason":"warm-up: domain x.example sent 4 of 4 on its day 1","Rule":"egress/domain-cap"}}`
	if string(b) != want {
		t.Errorf("explained\n%s, want\n%s", b, want)
	}
	if _, err := s.Explain(t.Context(), envelope("three", ""), ""); !errors.Is(err, ErrNoPool) {
		t.Errorf("a tenant without a pool: %v", err)
	}
}

// The hooks tell each answer.
func TestTrace(t *testing.T) {
	s := newSelector(&clock{noon}, NewMemory(), mkpool("p", []string{"one"}, Member{src("a1", 2), 1}))
	defer s.Close()
	var got []string
	s.Trace = &Trace{Chosen: func(_ context.Context, i ChosenInfo) {
		got = append(got, fmt.Sprint(i.Pool, " ", i.Domain, " ", i.SendingDomain, " ", say(i.Grants), " ", i.Err != nil))
	}}
	send(t, s, envelope("one", "x.example"), 3)
	s.Choose(t.Context(), mta.EgressRequest{Env: envelope("two", "x.example"), Recipients: []int{0}})
	want := []string{"p dest.example x.example a1:2 wait:1 (egress/source-cap) false", "  x.example  true"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Many deliveries at the same time, with some that fail, fill the cap exactly and never pass it, and the
// weights hold.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	state, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	c := &clock{noon}
	s := newSelector(c, state, mkpool("p", nil, Member{src("a", 300), 1}, Member{src("b", 500), 1}))
	s.Domains = []Domain{{Name: "x.example", WarmUp: Ladder{700}}}
	var mu sync.Mutex
	sent := map[string]int{}
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			env := envelope("", "x.example")
			for i := range 200 {
				for _, g := range choose(t, s, env, 1+(w+i)%3) {
					if g.Err != nil {
						continue
					}
					n := len(g.Recipients)
					if (w+i)%5 == 0 {
						n-- // one was not heard of
					}
					mu.Lock()
					sent[g.Source.Name] += n
					mu.Unlock()
					runtime.Gosched()
					g.Done(n)
				}
			}
		})
	}
	wg.Wait()
	if sent["a"]+sent["b"] != 700 || sent["a"] > 300 || sent["b"] > 500 {
		t.Errorf("sent %v; want 700 in all", sent)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	recs, _ := state.Claim(t.Context())
	for _, r := range recs {
		want := sent[r.Name]
		if r.Kind == KindDomain {
			want = 700
		}
		if r.Sent != int64(want) || r.Held != int64(want) {
			t.Errorf("%+v, and %d were sent", r, want)
		}
	}
}

// A hundred thousand tenants with a dedicated source each: a few hundred octets for each, and the choice as fast.
func TestManyTenants(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 1000
	}
	pools := make([]Pool, n)
	for i := range pools {
		name := fmt.Sprint("t", i)
		pools[i] = mkpool(name, []string{name}, Member{src(name, 5, 10), 1})
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := newSelector(&clock{noon}, NewMemory(), pools...)
	defer s.Close()
	last := fmt.Sprint("t", n-1)
	expect(t, "the last tenant", send(t, s, envelope(last, "x.example"), 6), last+":5 wait:1 (egress/source-cap)")
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / int64(n); each > 1000 {
		t.Errorf("%d octets for each tenant", each)
	} else {
		t.Logf("%d octets for each tenant", each)
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, members := range []int{1, 2, 16} {
		var m []Member
		for i := range members {
			m = append(m, Member{src(fmt.Sprint("a", i), 1<<40), 1})
		}
		b.Run(fmt.Sprint(members), func(b *testing.B) {
			s := newSelector(&clock{noon}, NewMemory(), mkpool("p", nil, m...))
			s.Domains = []Domain{{Name: "x.example", WarmUp: Ladder{1 << 40}}}
			defer s.Close()
			req := mta.EgressRequest{Env: envelope("", "x.example"), Domain: "dest.example", Recipients: []int{0}}
			b.ReportAllocs()
			for b.Loop() {
				grants, err := s.Choose(b.Context(), req)
				if err != nil {
					b.Fatal(err)
				}
				grants[0].Done(1)
			}
		})
	}
}

// slowState takes its time, and knows what a crash would find at the worst.
type slowState struct {
	*Memory
	mu   sync.Mutex
	held map[Key]int64
}

func (s *slowState) Save(ctx context.Context, recs ...Record) error {
	s.mu.Lock()
	for _, r := range recs {
		s.held[r.Key] = min(s.held[r.Key], r.Held)
	}
	s.mu.Unlock()
	for range 10 {
		runtime.Gosched()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range recs {
		s.held[r.Key] = r.Held
	}
	return s.Memory.Save(ctx, recs...)
}

// At no moment would a crash forget what is granted, also while others give back and make the
// State have less.
func TestAlwaysCovered(t *testing.T) {
	for _, block := range []int64{1, 2, 7} {
		state := &slowState{Memory: NewMemory(), held: map[Key]int64{}}
		s := newSelector(&clock{noon}, state, mkpool("p", nil, Member{src("a", 1<<40), 1}))
		s.Block = block
		key := Key{KindSource, "a"}
		var total int64 // granted and under way, or sent
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 300 {
					g := choose(t, s, envelope("", "x.example"), 1+(w+i)%4)[0]
					n := int64(len(g.Recipients))
					state.mu.Lock()
					total += n
					if held := state.held[key]; held < total {
						t.Errorf("%d are granted or sent, and the State has %d", total, held)
					}
					state.mu.Unlock()
					runtime.Gosched()
					sent := n * int64((w+i)%2)
					state.mu.Lock()
					total -= n - sent
					state.mu.Unlock()
					g.Done(int(sent))
				}
			})
		}
		wg.Wait()
		if held := state.held[key]; held < total || held > total+block-1 {
			t.Errorf("block %d: %d were sent, and a crash would find %d", block, total, held)
		}
		s.Close()
	}
}

// panicky is a schedule that is broken.
type panicky struct{ broken *bool }

func (p panicky) Cap(int) (int64, bool) {
	if *p.broken {
		panic("broken")
	}
	return 5, true
}

// A part that panics takes nothing with it: the Selector goes on when it is well.
func TestPanic(t *testing.T) {
	broken := true
	s := newSelector(&clock{noon}, NewMemory(), mkpool("p", nil, Member{Source{Name: "a", WarmUp: panicky{&broken}}, 1}))
	func() {
		defer func() { recover() }()
		choose(t, s, envelope("", "x.example"), 3)
	}()
	broken = false
	expect(t, "after a panic", send(t, s, envelope("", "x.example"), 6), "a:5 wait:1 (egress/source-cap)")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A pool with more sources than recipients have room in: each gets what it can take, and the division is found at once.
func TestManySources(t *testing.T) {
	var members []Member
	for i := range 5000 {
		members = append(members, Member{src(fmt.Sprint("s", i), 1), 1 + i%3})
	}
	s := newSelector(&clock{noon}, NewMemory(), mkpool("p", nil, members...))
	defer s.Close()
	grants := choose(t, s, envelope("", "x.example"), 1000)
	if len(grants) != 1000 || grants[999].Source.Name != "s999" {
		t.Errorf("%d grants, the last %s", len(grants), say(grants[len(grants)-1:]))
	}
}

// A source that reaches nobody does not stop its pool: the others go first for a minute.
func TestDeadSource(t *testing.T) {
	c := &clock{noon}
	s := newSelector(c, NewMemory(), mkpool("p", nil, Member{src("dead"), 1}, Member{src("good", 3), 1}))
	defer s.Close()
	env := envelope("", "x.example")
	choose(t, s, env, 1)[0].Done(0)
	expect(t, "the other goes first", send(t, s, env, 2), "good:2")
	e, err := s.Explain(t.Context(), env, "d.example")
	if err != nil || e.Source != "good" || !e.Sources[1].StandsBack || e.Sources[1].Name != "dead" {
		t.Errorf("%+v, %v", e, err)
	}
	expect(t, "it is taken when the other is full", say(choose(t, s, env, 2)), "good:1 dead:1") // not ended
	c.t = c.t.Add(time.Minute)
	expect(t, "after a minute it is tried again", say(choose(t, s, env, 1)), "dead:1")
	choose(t, s, env, 1)[0].Done(1)
	expect(t, "and goes on when it reached somebody", say(choose(t, s, env, 1)), "dead:1")
}
