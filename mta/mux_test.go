package mta

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// note is a Deliverer that tells who it is.
type note struct {
	name string
	log  *[]string
	fail func(i int, r mailspine.Recipient) error // by recipient; nil: takes all
}

func (n *note) Deliver(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
	var to []string
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	for i, r := range env.Recipients {
		to = append(to, r.Address.String())
		if n.fail != nil {
			errs[i] = n.fail(i, r)
		}
	}
	*n.log = append(*n.log, n.name+": "+strings.Join(to, " "))
	return errs.Err()
}

func TestMuxRoutes(t *testing.T) {
	var log []string
	d := func(name string) mailspine.Deliverer { return &note{name: name, log: &log} }
	shared := d("shared")
	m := &Mux{
		Routes: map[string]mailspine.Deliverer{
			"example.org": d("exact"), ".example.org": d("sub"), ".deep.example.org": d("deep"), "BÜCHER.example.": d("idn"),
			"[192.0.2.1]": d("literal"), "one.example": shared, "two.example": shared,
		},
		Default: d("default"),
	}
	for to, want := range map[string]string{
		"a@example.org": "exact", "a@EXAMPLE.org": "exact", "a@x.example.org": "sub", "a@y.x.example.org": "sub",
		"a@deep.example.org": "sub", "a@x.deep.example.org": "deep", "a@notexample.org": "default", "a@org": "default",
		"a@xn--bcher-kva.example": "idn", "a@bücher.example": "idn", "a@[192.0.2.1]": "literal", "a@[192.0.2.2]": "default",
	} {
		log = nil
		if err := m.Deliver(t.Context(), envelope(t, "s@s.example", to), mailspine.StringContent("x")); err != nil {
			t.Errorf("%s: %v", to, err)
		}
		if len(log) != 1 || log[0] != want+": "+to {
			t.Errorf("%s went %v, want %s", to, log, want)
		}
	}
	// Keys with one Deliverer are one delivery.
	log = nil
	m.Deliver(t.Context(), envelope(t, "s@s.example", "a@one.example", "a@example.org", "a@two.example"), mailspine.StringContent("x"))
	if want := []string{"shared: a@one.example a@two.example", "exact: a@example.org"}; !slices.Equal(log, want) {
		t.Errorf("%v, want %v", log, want)
	}
}

// Functions cannot be compared: a Mux of them works all the same.
func TestMuxFuncs(t *testing.T) {
	n := 0
	f := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { n++; return nil })
	m := &Mux{Routes: map[string]mailspine.Deliverer{"a.example": f, "b.example": f}, Default: f}
	if err := m.Deliver(t.Context(), envelope(t, "s@s.example", "a@a.example", "b@b.example", "c@c.example"), mailspine.StringContent("x")); err != nil || n != 3 {
		t.Errorf("%v, %d calls", err, n)
	}
}

// Results of the parts, in the order of the recipients; what the Attempt is told
// has the indices of the whole.
func TestMuxMerges(t *testing.T) {
	record := mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
		for i, r := range env.Recipients {
			mailspine.AttemptFrom(ctx).Record(i, mailspine.Receipt{Reply: r.Address.Local})
		}
		return nil
	})
	later := &mailspine.NotNow{Reason: "closed"}
	busy := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return later })
	short := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
		return mailspine.RecipientErrors{nil}
	})
	m := &Mux{Routes: map[string]mailspine.Deliverer{"ok.example": record, "busy.example": busy, "short.example": short}}
	env := envelope(t, "s@s.example", "a@busy.example", "b@ok.example", "c@nowhere.example", "d@ok.example", "e@busy.example", "f@short.example", "g@short.example")
	a := &attempt{}
	err := m.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent("x"))
	for i, want := range []string{"451 4.3.2", "", "550 5.1.2", "", "451 4.3.2", "", "451 4.3.0"} {
		wantStatus(t, env.Recipients[i].Address.String(), mailspine.ErrorAt(err, i), want)
	}
	var notNow *mailspine.NotNow
	if !errors.As(mailspine.ErrorAt(err, 0), &notNow) || notNow != later {
		t.Errorf("NotNow is lost: %v", mailspine.ErrorAt(err, 0))
	}
	if len(a.receipts) != 2 || a.receipts[1].Reply != "b" || a.receipts[3].Reply != "d" {
		t.Errorf("receipts %v", a.receipts)
	}
}

// A mistake in the routes names the key, loses no mail and bounces none.
func TestMuxMisconfigured(t *testing.T) {
	d := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return nil })
	for key, routes := range map[string]map[string]mailspine.Deliverer{
		`Mux.Routes["nil.example"]`:   {"nil.example": nil},
		`Mux.Routes["a b"]`:           {"a b": d},
		`Mux.Routes[""]`:              {"": d},
		`Mux.Routes["."]`:             {".": d},
		`Mux.Routes["*.example.org"]`: {"*.example.org": d},
		`Mux.Routes[".[192.0.2.1]"]`:  {".[192.0.2.1]": d},
		`Mux.Routes["example.org"]`:   {"example.org": d, "EXAMPLE.org": d},
	} {
		m := &Mux{Routes: routes, Default: d}
		env := envelope(t, "s@s.example", "a@elsewhere.example")
		err := m.Deliver(t.Context(), env, mailspine.StringContent("x"))
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("Deliver: %v, want an error about %s", err, key)
		}
		wantStatus(t, key, err, "451 4.3.0")
		if _, err := m.Route(t.Context(), env, env.Recipients[0]); err == nil {
			t.Errorf("%s: Route has no error", key)
		}
		wantStatus(t, key, m.CheckRecipient(t.Context(), env, env.Recipients[0]), "451 4.3.0")
	}
	var zero Mux
	env := envelope(t, "s@s.example", "a@elsewhere.example")
	wantStatus(t, "zero Mux, Deliver", zero.Deliver(t.Context(), env, mailspine.StringContent("x")), "550 5.1.2")
	wantStatus(t, "zero Mux, CheckRecipient", zero.CheckRecipient(t.Context(), env, env.Recipients[0]), "550 5.7.1")
}

type siteRouter struct{ mailspine.Deliverer }

func (siteRouter) Route(context.Context, *mailspine.Envelope, mailspine.Recipient) (queue.Route, error) {
	return "site:big", nil
}

type wrapper struct{ inner mailspine.Deliverer }

func (w wrapper) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	return w.inner.Deliver(ctx, env, msg)
}
func (w wrapper) Unwrap() mailspine.Deliverer { return w.inner }

func TestMuxRoute(t *testing.T) {
	d := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return nil })
	m := &Mux{Routes: map[string]mailspine.Deliverer{"big.example": wrapper{siteRouter{d}}, "own.example": d}}
	for to, want := range map[string]queue.Route{
		"a@big.example": "site:big", "a@OWN.example": "own.example", "a@bücher.example": "xn--bcher-kva.example", "a@[192.0.2.1]": "[192.0.2.1]",
	} {
		got, err := m.Route(t.Context(), nil, mailspine.Recipient{Address: addr(t, to)})
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", to, got, err, want)
		}
	}
}

func TestMuxCheckRecipient(t *testing.T) {
	d := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return nil })
	only := func(local string) mailspine.RecipientChecker {
		return mailspine.RecipientCheckerFunc(func(_ context.Context, _ *mailspine.Envelope, r mailspine.Recipient) error {
			if r.Address.Local != local {
				return mailspine.Errorf(550, "5.1.1", "No such user")
			}
			return nil
		})
	}
	m := &Mux{
		Routes: map[string]mailspine.Deliverer{
			"checked.example": Checked{To: d, Recipients: only("bob")}, "wrapped.example": wrapper{Checked{To: d, Recipients: only("ann")}}, "unchecked.example": d,
		},
		Default: d,
	}
	env := envelope(t, "s@s.example", "a@a.example")
	for to, want := range map[string]string{
		"bob@checked.example": "", "ann@checked.example": "550 5.1.1", "ann@wrapped.example": "", "bob@unchecked.example": "550 5.7.1", "bob@else.example": "550 5.7.1",
	} {
		wantStatus(t, to, m.CheckRecipient(t.Context(), env, mailspine.Recipient{Address: addr(t, to)}), want)
	}
	if _, ok := mailspine.Find[mailspine.Stager](Checked{To: wrapper{stager{d}}}); !ok {
		t.Error("Checked hides a Stager")
	}
	wantStatus(t, "Checked without To", Checked{}.Deliver(t.Context(), env, mailspine.StringContent("x")), "451 4.3.0")
}

type stager struct{ mailspine.Deliverer }

func (stager) Stage(context.Context, int64) (mailspine.Stage, error) { return nil, nil }

// Whatever the routes and recipients: every recipient comes to exactly one
// Deliverer, the one of its most specific key, and gets that one's result for it.
func TestMuxSplitsProperly(t *testing.T) {
	domains := []string{"a.example", "b.example", "x.a.example", "y.x.a.example", "other.example"}
	keys := []string{"a.example", ".a.example", "b.example", ".x.a.example", ".example", "[192.0.2.1]"}
	rapid.Check(t, func(rt *rapid.T) {
		type call struct{ key, to string }
		var calls []call
		made := map[string]mailspine.Deliverer{}
		deliverer := func(key string) mailspine.Deliverer {
			return &callback{func(_ context.Context, env *mailspine.Envelope) error {
				errs := make(mailspine.RecipientErrors, len(env.Recipients))
				for i, r := range env.Recipients {
					calls = append(calls, call{key, r.Address.String()})
					if len(r.Address.Local)%2 == 0 {
						errs[i] = fmt.Errorf("%s refuses %s", key, r.Address)
					}
				}
				return errs.Err()
			}}
		}
		m := &Mux{Routes: map[string]mailspine.Deliverer{}}
		for _, k := range rapid.SliceOfDistinct(rapid.SampledFrom(keys), rapid.ID[string]).Draw(rt, "keys") {
			made[k] = deliverer(k)
			m.Routes[k] = made[k]
		}
		if rapid.Bool().Draw(rt, "default") {
			m.Default = deliverer("default")
			made["default"] = m.Default
		}
		env := &mailspine.Envelope{}
		for i := range rapid.IntRange(1, 20).Draw(rt, "recipients") {
			env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{
				Local: fmt.Sprintf("u%d", i*7), Domain: rapid.SampledFrom(domains).Draw(rt, "domain"),
			}})
		}
		err := m.Deliver(t.Context(), env, mailspine.StringContent("x"))
		seen := map[string]string{}
		for _, c := range calls {
			if other, twice := seen[c.to]; twice {
				rt.Fatalf("%s went to %s and to %s", c.to, other, c.key)
			}
			seen[c.to] = c.key
		}
		for i, r := range env.Recipients {
			want := model(r.Address.Domain, made)
			got := seen[r.Address.String()]
			if got != want {
				rt.Fatalf("%s went to %q, want %q", r.Address, got, want)
			}
			text := ""
			switch {
			case want == "":
				text = "550 5.1.2 There is no route to this domain"
			case len(r.Address.Local)%2 == 0:
				text = want + " refuses " + r.Address.String()
			}
			e := mailspine.ErrorAt(err, i)
			if (e == nil) != (text == "") || e != nil && e.Error() != text {
				rt.Fatalf("%s: error %v, want %q", r.Address, e, text)
			}
		}
	})
}

// model finds the key by looking at each.
func model(domain string, keys map[string]mailspine.Deliverer) string {
	best := ""
	for k := range keys {
		switch {
		case k == domain:
			return k
		case strings.HasPrefix(k, ".") && strings.HasSuffix(domain, k) && len(k) > len(best):
			best = k
		}
	}
	if best == "" && keys["default"] != nil {
		best = "default"
	}
	return best
}

type callback struct {
	f func(context.Context, *mailspine.Envelope) error
}

func (c *callback) Deliver(ctx context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
	return c.f(ctx, env)
}
