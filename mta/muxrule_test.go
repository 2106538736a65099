package mta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

func TestMuxRules(t *testing.T) {
	var log []string
	d := func(name string) mailspine.Deliverer { return &note{name: name, log: &log} }
	m := &Mux{
		Rules: []Rule{
			{Tenant: "acme", Stream: "bulk", Domain: "example.org", To: d("acme bulk to example.org")},
			{Tenant: "acme", Stream: "bulk", To: d("acme bulk")},
			{Stream: "bulk", To: d("bulk")},
			{From: "<>", To: d("reports")},
			{From: "Ann@BÜCHER.example", To: d("ann")},
			{From: "bücher.example", To: d("books")},
			{From: ".sender.example", Domain: ".example.org", To: d("subdomains")},
			{From: "[192.0.2.1]", To: d("literal")},
			{From: `"a@b"@sender.example`, To: d("quoted")},
			{Tenant: "other", Domain: "example.org", To: d("other")},
		},
		Routes:  map[string]mailspine.Deliverer{"example.org": d("route")},
		Default: d("default"),
	}
	for _, tt := range []struct{ tenant, stream, from, to, want string }{
		{"acme", "bulk", "s@s.example", "a@example.org", "acme bulk to example.org"},
		{"acme", "bulk", "s@s.example", "a@EXAMPLE.org", "acme bulk to example.org"},
		{"acme", "bulk", "s@s.example", "a@x.example.org", "acme bulk"},
		{"acme", "", "s@s.example", "a@example.org", "route"},
		{"ACME", "", "s@s.example", "a@example.org", "route"},
		{"", "bulk", "s@s.example", "a@example.org", "bulk"},
		{"other", "bulk", "s@s.example", "a@example.org", "bulk"}, // the earlier one, though this has a tenant's own
		{"other", "", "s@s.example", "a@example.org", "other"},
		{"other", "", "", "a@example.org", "reports"},
		{"", "", "", "a@example.org", "reports"},
		{"", "", "Ann@xn--bcher-kva.example", "a@else.example", "ann"},
		{"", "", "ann@xn--bcher-kva.example", "a@else.example", "books"},
		{"", "", "x@BÜCHER.example", "a@else.example", "books"},
		{"", "", "x@sub.bücher.example", "a@else.example", "default"},
		{"", "", "x@a.sender.example", "a@x.example.org", "subdomains"},
		{"", "", "x@a.sender.example", "a@example.org", "route"},
		{"", "", "x@sender.example", "a@x.example.org", "default"},
		{"", "", "x@[192.0.2.1]", "a@else.example", "literal"},
		{"", "", "x@[192.0.2.2]", "a@else.example", "default"},
		{"", "", `"a@b"@Sender.example`, "a@else.example", "quoted"},
	} {
		log = nil
		env := envelope(t, tt.from, tt.to)
		env.Tenant, env.Stream = tt.tenant, tt.stream
		if err := m.Deliver(t.Context(), env, mailspine.StringContent("x")); err != nil {
			t.Fatalf("%+v: %v", tt, err)
		}
		if want := tt.want + ": " + tt.to; len(log) != 1 || log[0] != want {
			t.Errorf("%+v went %q", tt, log)
		}
	}
	// A rule is for some recipients of a message only.
	log = nil
	env := envelope(t, "x@a.sender.example", "a@example.org", "b@x.example.org", "c@else.example", "d@y.example.org")
	if err := m.Deliver(t.Context(), env, mailspine.StringContent("x")); err != nil {
		t.Fatal(err)
	}
	if want := []string{"route: a@example.org", "subdomains: b@x.example.org d@y.example.org", "default: c@else.example"}; !slices.Equal(log, want) {
		t.Errorf("%q, want %q", log, want)
	}
}

// A way that a rule chose has a key of its own, unless it is the one that there would be without rules.
func TestMuxRuleRoutes(t *testing.T) {
	var log []string
	plain, bulk := &note{name: "plain", log: &log}, &note{name: "bulk", log: &log}
	site := siteRouter{plain}
	m := &Mux{
		Rules: []Rule{
			{Name: "bulk", Stream: "bulk", To: bulk},
			{Stream: "plain", To: plain},
			{Tenant: "a", To: bulk},
			{Tenant: "b", To: bulk},
			{Name: "bulk", Tenant: "c", To: bulk},
			{Tenant: "d", To: site},
			{Name: "house-1.x", Tenant: "e", To: &Smarthost{Address: "10.0.0.7:25"}},
			{Tenant: "f", To: &Mux{Rules: []Rule{{Name: "inner", Stream: "s", To: plain}}, Default: bulk}},
		},
		Routes:  map[string]mailspine.Deliverer{"bulk.example": bulk, "site.example": site},
		Default: plain,
	}
	for _, tt := range []struct {
		tenant, stream, to string
		want               queue.Route
	}{
		{"", "", "x@dest.example", "dest.example"},
		{"", "bulk", "x@DEST.example", "dest.example#bulk"},
		{"", "bulk", "x@bulk.example", "bulk.example"},
		{"", "plain", "x@dest.example", "dest.example"},
		{"", "plain", "x@bulk.example", "bulk.example#2"},
		{"a", "", "x@dest.example", "dest.example#3"},
		{"b", "", "x@dest.example", "dest.example#3"}, // the same Deliverer is the same way
		{"c", "", "x@dest.example", "dest.example#bulk"},
		{"d", "", "x@dest.example", "site:big#6"},
		{"d", "", "x@site.example", "site:big"},
		{"e", "", "x@dest.example", "10.0.0.7:25#house-1.x"},
		{"f", "", "x@dest.example", "dest.example#8"},
		{"f", "s", "x@dest.example", "dest.example#inner#8"},
	} {
		env := envelope(t, "s@s.example", tt.to)
		env.Tenant, env.Stream = tt.tenant, tt.stream
		got, err := m.Route(t.Context(), env, env.Recipients[0])
		if err != nil || got != tt.want {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
	}
}

func TestMuxRuleCheckRecipient(t *testing.T) {
	d := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return nil })
	all := mailspine.RecipientCheckerFunc(func(context.Context, *mailspine.Envelope, mailspine.Recipient) error { return nil })
	m := &Mux{
		Rules:  []Rule{{From: "closed.example", To: d}, {Tenant: "t", To: Checked{To: wrapper{d}, Recipients: all}}},
		Routes: map[string]mailspine.Deliverer{"here.example": Checked{To: wrapper{d}, Recipients: all}},
	}
	for _, tt := range []struct{ tenant, from, to, want string }{
		{"", "s@s.example", "a@here.example", ""},
		{"", "s@closed.example", "a@here.example", "550 5.7.1"}, // the rule's Deliverer is no checker
		{"", "s@s.example", "a@else.example", "550 5.7.1"},
		{"t", "s@s.example", "a@else.example", ""},
	} {
		env := envelope(t, tt.from)
		env.Tenant = tt.tenant
		wantStatus(t, fmt.Sprintf("%+v", tt), m.CheckRecipient(t.Context(), env, mailspine.Recipient{Address: addr(t, tt.to)}), tt.want)
	}
}

// A mistake in the rules names the rule, loses no mail and bounces none.
func TestMuxRulesMisconfigured(t *testing.T) {
	d := &note{log: new([]string)}
	e := &note{log: new([]string)}
	for want, rules := range map[string][]Rule{
		`Mux.Rules[0]: the Deliverer is nil`:                                        {{Tenant: "a"}},
		`Mux.Rules[1]: there is no condition`:                                       {{Tenant: "a", To: d}, {To: d}},
		`Mux.Rules[0]: field Domain: mailspine: address "x@a b"`:                    {{Domain: "a b", To: d}},
		`Mux.Rules[0]: field From: mailspine: address "a@"`:                         {{From: "a@", To: d}},
		`Mux.Rules[0]: field From: mailspine: address "@sender.example"`:            {{From: "@sender.example", To: d}},
		`Mux.Rules[0]: field From: an address literal has no subdomains`:            {{From: ".[192.0.2.1]", To: d}},
		`Mux.Rules[0]: field From: mailspine: address "<a@sender.example>"`:         {{From: "<a@sender.example>", To: d}},
		`Mux.Rules[1]: the same conditions as Rules[0]`:                             {{From: "A@B.example", Tenant: "t", To: d}, {Tenant: "t", From: "A@b.EXAMPLE", To: e}},
		`Mux.Rules[2]: another Deliverer than Rules[0], which has the Name "w" too`: {{Name: "w", Tenant: "a", To: d}, {Name: "w", Tenant: "b", To: d}, {Name: "w", Tenant: "c", To: e}},
		`Mux.Rules[0]: the Name "1" is not 1 to 63 letters`:                         {{Name: "1", Tenant: "a", To: d}},
		`Mux.Rules[0]: the Name "a#b" is not 1 to 63 letters`:                       {{Name: "a#b", Tenant: "a", To: d}},
		`Mux.Rules[0]: the Name "` + strings.Repeat("x", 64) + `" is `:              {{Name: strings.Repeat("x", 64), Tenant: "a", To: d}},
	} {
		m := &Mux{Rules: rules, Default: d}
		env := envelope(t, "s@s.example", "a@elsewhere.example")
		err := m.Deliver(t.Context(), env, mailspine.StringContent("x"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Deliver: %v, want an error about %s", err, want)
		}
		wantStatus(t, want, err, "451 4.3.0")
		if _, err := m.Route(t.Context(), env, env.Recipients[0]); err == nil {
			t.Errorf("%s: Route has no error", want)
		}
		wantStatus(t, want, m.CheckRecipient(t.Context(), env, env.Recipients[0]), "451 4.3.0")
	}
	if len(*d.log)+len(*e.log) > 0 {
		t.Error("something was delivered")
	}
	// Functions cannot be compared: two of one Name may well be the same.
	f := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return nil })
	funcs := &Mux{Rules: []Rule{{Name: "w", Tenant: "a", To: f}, {Name: "w", Tenant: "b", To: f}}}
	for tenant, want := range map[string]queue.Route{"a": "d.example#w", "b": "d.example#w", "c": "d.example"} {
		env := envelope(t, "s@s.example", "a@d.example")
		env.Tenant = tenant
		if r, err := funcs.Route(t.Context(), env, env.Recipients[0]); r != want || err != nil {
			t.Errorf("%s: %q, %v", tenant, r, err)
		}
	}
	// Rules alone: what none of them is for is refused as without them.
	m := &Mux{Rules: []Rule{{Tenant: "a", To: d}}}
	env := envelope(t, "s@s.example", "a@elsewhere.example")
	wantStatus(t, "no rule", m.Deliver(t.Context(), env, mailspine.StringContent("x")), "550 5.1.2")
	if r, err := m.Route(t.Context(), env, env.Recipients[0]); r != "elsewhere.example" || err != nil {
		t.Errorf("%q, %v", r, err)
	}
}

// Whatever the rules, routes and envelope: every recipient comes to the Deliverer that looking at each rule in order
// finds, Route and CheckRecipient agree with Deliver, and two messages that take different ways to a domain
// have different routes.
func TestMuxRulesModel(t *testing.T) {
	words := []string{"", "a", "b"}
	keys := []string{"a.example", ".a.example", ".example", "b.example", "[192.0.2.1]"}
	domains := []string{"a.example", "x.a.example", "b.example", "c.example", "[192.0.2.1]", "[192.0.2.2]"}
	holds := func(key, domain string) bool {
		return key == "" || key == domain || key[0] == '.' && domain[0] != '[' && strings.HasSuffix(domain, key)
	}
	rapid.Check(t, func(rt *rapid.T) {
		var got map[string]int // who it came to, by recipient
		deliverers := make([]mailspine.Deliverer, 4)
		for i := range deliverers {
			deliverers[i] = &Checked{
				To: &callback{func(_ context.Context, env *mailspine.Envelope) error {
					for _, r := range env.Recipients {
						if at, twice := got[r.Address.String()]; twice {
							rt.Fatalf("%s came to %d and to %d", r.Address, at, i)
						}
						got[r.Address.String()] = i
					}
					return nil
				}},
				Recipients: mailspine.RecipientCheckerFunc(func(context.Context, *mailspine.Envelope, mailspine.Recipient) error {
					return mailspine.Errorf(550, "5.7.1", "%d", i)
				}),
			}
		}
		var rules []Rule
		var to []int // the Deliverer of each rule
		seen := map[string]bool{}
		for range rapid.IntRange(0, 12).Draw(rt, "rules") {
			r := Rule{
				Tenant: rapid.SampledFrom(words).Draw(rt, "tenant"), Stream: rapid.SampledFrom(words).Draw(rt, "stream"),
				From:   rapid.SampledFrom(append([]string{"", "<>", "u@a.example", "v@x.a.example"}, keys...)).Draw(rt, "from"),
				Domain: rapid.SampledFrom(append([]string{"", ""}, keys...)).Draw(rt, "domain"),
			}
			k := strings.Join([]string{r.Tenant, r.Stream, r.From, r.Domain}, "|")
			if k == "|||" || seen[k] {
				continue
			}
			seen[k] = true
			n := rapid.IntRange(0, 3).Draw(rt, "to")
			r.To = deliverers[n]
			if rapid.Bool().Draw(rt, "named") {
				r.Name = fmt.Sprintf("way%d", n)
			}
			rules, to = append(rules, r), append(to, n)
		}
		m := &Mux{Rules: rules, Routes: map[string]mailspine.Deliverer{}}
		base := map[string]mailspine.Deliverer{}
		number := map[mailspine.Deliverer]int{}
		for i, d := range deliverers {
			number[d.(*Checked).To] = i
		}
		for _, k := range rapid.SliceOfDistinct(rapid.SampledFrom(keys), rapid.ID[string]).Draw(rt, "routes") {
			m.Routes[k] = deliverers[rapid.IntRange(0, 3).Draw(rt, "route")]
			base[k] = m.Routes[k]
		}
		if rapid.Bool().Draw(rt, "default") {
			m.Default = deliverers[0]
			base["default"] = m.Default
		}
		// Several messages, so that their routes can be compared.
		ways := map[queue.Route]int{}
		for range 4 {
			got = map[string]int{}
			env := &mailspine.Envelope{ID: "X", Tenant: rapid.SampledFrom(words).Draw(rt, "env tenant"), Stream: rapid.SampledFrom(words).Draw(rt, "env stream")}
			if d := rapid.SampledFrom(append([]string{""}, domains...)).Draw(rt, "sender"); d != "" {
				env.From = mailspine.Address{Local: rapid.SampledFrom([]string{"u", "v"}).Draw(rt, "local"), Domain: d}
			}
			for i := range rapid.IntRange(1, 6).Draw(rt, "recipients") {
				env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{
					Local: fmt.Sprintf("r%d", i), Domain: rapid.SampledFrom(domains).Draw(rt, "to domain"),
				}})
			}
			err := m.Deliver(t.Context(), env, mailspine.StringContent("x"))
			for i, r := range env.Recipients {
				want := -1
				for j, c := range rules {
					from := c.From == "" || c.From == "<>" && env.From.IsZero() || c.From == env.From.String() ||
						c.From != "<>" && !strings.Contains(c.From, "@") && !env.From.IsZero() && holds(c.From, env.From.Domain)
					if (c.Tenant == "" || c.Tenant == env.Tenant) && (c.Stream == "" || c.Stream == env.Stream) && from && holds(c.Domain, r.Address.Domain) {
						want = to[j]
						break
					}
				}
				if want < 0 {
					domain := r.Address.Domain
					k := model(domain, base)
					if domain[0] == '[' && k != domain { // a literal has no parents
						if k = ""; base["default"] != nil {
							k = "default"
						}
					}
					if k != "" {
						want = number[base[k].(*Checked).To]
					}
				}
				at, ok := got[r.Address.String()]
				if !ok {
					at = -1
				}
				if at != want {
					rt.Fatalf("%s of %+v came to %d, want %d", r.Address, env, at, want)
				}
				if (mailspine.ErrorAt(err, i) == nil) != (want >= 0) {
					rt.Fatalf("%s: %v", r.Address, mailspine.ErrorAt(err, i))
				}
				said := mailspine.Status(m.CheckRecipient(t.Context(), env, r)).Message
				if ok := fmt.Sprint(want); want >= 0 && said != ok || want < 0 && said != errNoRelay.Message {
					rt.Fatalf("CheckRecipient of %s: %q", r.Address, said)
				}
				route, rerr := m.Route(t.Context(), env, r)
				if rerr != nil {
					rt.Fatal(rerr)
				}
				if before, known := ways[route]; known && before != want {
					rt.Fatalf("route %q is the way to %d and to %d", route, before, want)
				}
				ways[route] = want
			}
		}
	})
}

// Two ways to one domain are two routes in a queue: a hold of one does not touch the other, and messages of both are not delivered
// together.
func TestMuxRulesInQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := make(chan string, 10)
		to := func(name string) mailspine.Deliverer {
			return &callback{func(_ context.Context, env *mailspine.Envelope) error {
				got <- name + " " + env.Tenant
				return nil
			}}
		}
		m := &Mux{Rules: []Rule{{Name: "own", Tenant: "acme", To: to("own")}}, Default: to("default")}
		store := memqueue.New(nil)
		begun := time.Now()
		var held atomic.Int64
		q := &queue.Queue{
			Store: store, Next: m, Router: m, Logger: slog.New(slog.DiscardHandler), Hostname: "q.example",
			Gate: queue.GateFunc(func(_ context.Context, r queue.Route) (queue.Hold, error) {
				if until := begun.Add(time.Hour); r == "dest.example#own" && time.Now().Before(until) {
					held.Add(1)
					return queue.Hold{Until: until, Reason: "closed"}, nil
				}
				return queue.Hold{}, nil
			}),
		}
		for i, tenant := range []string{"acme", "other", "acme", "", "other"} {
			env := envelope(t, "s@s.example", "a@dest.example")
			env.ID, env.Tenant = mailspine.MsgID(fmt.Sprint("M", i)), tenant
			if err := q.Deliver(t.Context(), env, mailspine.StringContent("x\r\n")); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		drain := func(n int) (all []string) {
			for range n {
				all = append(all, <-got)
			}
			slices.Sort(all)
			return all
		}
		if all := drain(3); !slices.Equal(all, []string{"default ", "default other", "default other"}) {
			t.Errorf("%q", all)
		}
		if time.Since(begun) > time.Second || held.Load() == 0 {
			t.Errorf("the way that is open took %v; the other was held %d times", time.Since(begun), held.Load())
		}
		if all := drain(2); !slices.Equal(all, []string{"own acme", "own acme"}) || time.Since(begun) < time.Hour {
			t.Errorf("%q after %v", all, time.Since(begun))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		store.Close()
	})
}

// Whatever an operator writes into a rule: a mistake that is told, or a rule that can be asked.
func FuzzRule(f *testing.F) {
	for _, s := range [][3]string{{"w", "<>", "example.org"}, {"", "a@b.example", ".example.org"}, {"x.y", ".bücher.example", "[IPv6:::1]"}, {"1", "@", "."},
		{"a", `"a@b"@c.example`, "[192.0.2.1]"}, {"", "xn--", "a..b"}, {"", "[", "]"}, {"", "<a@b>", " "}, {"", "a@", ".[192.0.2.1]"}} {
		f.Add(s[0], s[1], s[2], "u@x.example.org", "v@b.example")
	}
	d := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return nil })
	f.Fuzz(func(t *testing.T, name, from, domain, to, sender string) {
		m := &Mux{Rules: []Rule{{Name: name, From: from, Domain: domain, To: d}}}
		env := &mailspine.Envelope{ID: "X", Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "x", Domain: to}}}}
		if a, err := mailspine.ParseAddress(to); err == nil {
			env.Recipients[0].Address = a
		}
		if a, err := mailspine.ParseAddress(sender); err == nil {
			env.From = a
		} else {
			env.From = mailspine.Address{Local: "x", Domain: sender}
		}
		err := m.Deliver(t.Context(), env, mailspine.StringContent("x"))
		route, rerr := m.Route(t.Context(), env, env.Recipients[0])
		if m.bad != nil {
			if !errors.Is(err, m.bad) || !errors.Is(rerr, m.bad) || !mailspine.Status(err).Temporary() {
				t.Fatalf("%v, %v", err, rerr)
			}
			return
		}
		// The rule is the only way.
		if taken := err == nil; taken != strings.Contains(string(route), "#") {
			t.Fatalf("route %q, and the result is %v", route, err)
		}
		if err == nil && from == "<>" && !env.From.IsZero() {
			t.Fatal("a rule for the null sender took another's")
		}
	})
}

// Many tenants with a rule each cost no time when it is another one's message.
func BenchmarkMuxRules(b *testing.B) {
	d := &callback{func(context.Context, *mailspine.Envelope) error { return nil }}
	m := &Mux{Default: d}
	for i := range 100_000 {
		m.Rules = append(m.Rules, Rule{Tenant: fmt.Sprint(i), Domain: "example.org", To: &callback{}})
	}
	m.Rules = append(m.Rules, Rule{Stream: "bulk", To: &callback{}}, Rule{From: "<>", To: &callback{}})
	env := envelope(b, "s@s.example", "r@example.net")
	env.Tenant = "77777"
	if _, err := m.Route(b.Context(), env, env.Recipients[0]); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m.Route(b.Context(), env, env.Recipients[0])
	}
}
