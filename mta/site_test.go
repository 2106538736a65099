package mta

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

func mxs(s string) []mailspine.MX {
	var list []mailspine.MX
	for i, f := range strings.Fields(s) {
		mx := mailspine.MX{Preference: uint16(i)}
		if _, err := fmt.Sscanf(f, "%d:%s", &mx.Preference, &mx.Host); err != nil {
			mx.Host = f
		}
		list = append(list, mx)
	}
	return list
}

func TestSite(t *testing.T) {
	for _, tt := range []struct{ name, mx, want string }{
		{"none", "", ""},
		{"null MX", "0:.", ""},
		{"one host is its name", "10:MX.Dest.example.", "mx.dest.example"},
		{"the same host twice is one", "10:mx.dest.example 20:mx.dest.example", "mx.dest.example"},
		{"what they have in common", "1:aspmx.l.google.com 5:alt1.aspmx.l.google.com 5:alt2.aspmx.l.google.com", "aspmx.l.google.com~"},
		{"one below the other's parent", "1:a.l.google.com 5:b.l.google.com", "l.google.com~"},
		{"nothing but the last label", "10:mx.one.example 20:mx.two.example", "mx.one.example~"},
		{"nothing at all", "20:mx.one.test 10:mx.two.example", "mx.two.example~"},
		{"labels are compared whole", "10:mx.ample.test 20:mx.example.test", "mx.ample.test~"},
		{"no host name beside one", "10:a_b.dest.example 5:two\x00words 7:bücher.example", "a_b.dest.example"},
		{"only what is no host name", "5:two\x00words 7:bücher.example", ""},
	} {
		got := Site(mxs(tt.mx))
		name, hash, many := strings.Cut(got, "~")
		if many {
			name += "~"
		}
		if name != tt.want || many && len(hash) != 16 {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// What does not change a site, and what does.
func TestSiteSame(t *testing.T) {
	const base = "1:aspmx.l.example 5:alt1.l.example 5:alt2.l.example 10:alt3.l.example"
	for _, tt := range []struct {
		name, mx string
		same     bool
	}{
		{"other numbers in the same order", "10:aspmx.l.example 20:alt1.l.example 20:alt2.l.example 30:alt3.l.example", true},
		{"another order of the answer", "10:alt3.l.example 5:alt2.l.example 5:alt1.l.example 1:aspmx.l.example", true},
		{"case and dots", "1:ASPMX.l.example. 5:alt1.L.example 5:alt2.l.example. 10:alt3.l.example", true},
		{"two are no longer equal", "1:aspmx.l.example 5:alt1.l.example 6:alt2.l.example 10:alt3.l.example", false},
		{"another best", "5:aspmx.l.example 1:alt1.l.example 5:alt2.l.example 10:alt3.l.example", false},
		{"one less", "1:aspmx.l.example 5:alt1.l.example 5:alt2.l.example", false},
		{"one more", base + " 20:alt4.l.example", false},
	} {
		if got := Site(mxs(tt.mx)) == Site(mxs(base)); got != tt.same {
			t.Errorf("%s: the same site: %v", tt.name, got)
		}
	}
}

// A site depends on nothing but which hosts there are and in which order they are preferred; also where there are too many.
func TestSiteModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ranks := rapid.MapOfN(rapid.StringMatching(`[a-z]{1,4}\.(one|two)\.example`), rapid.IntRange(0, 4), 1, 40).Draw(t, "ranks")
		step := rapid.Uint16Range(1, 1000).Draw(t, "step")
		var plain, other []mailspine.MX
		for name, rank := range ranks {
			plain = append(plain, mailspine.MX{Preference: uint16(rank), Host: name})
			other = append(other, mailspine.MX{Preference: 7 + uint16(rank)*step, Host: strings.ToUpper(name) + "."})
		}
		rand.Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
		a, b := Site(plain), Site(other)
		if a != b || a == "" || strings.ContainsAny(a, "# \x00") {
			t.Fatalf("%q and %q", a, b)
		}
		if n := len(usable(plain)); n > maxHosts || n < min(maxHosts, len(ranks)) {
			t.Fatalf("%d hosts of %d", n, len(ranks))
		}
	})
}

// Two domains of one site go in one transaction, and each recipient has its own result; a third one has other servers, and a fourth does not exist.
func TestRelaySharesSite(t *testing.T) {
	n := newNetwork(t)
	n.zone["a.example MX"] = mxs("10:mx1.host.example 20:mx2.host.example")
	n.zone["b.example MX"] = mxs("1:mx1.host.example 2:mx2.host.example")
	n.mx("c.example", "192.0.2.3")
	n.zone["mx1.host.example A"] = "192.0.2.1"
	n.zone["mx2.host.example A"] = "192.0.2.2"
	n.scripts["192.0.2.1"] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n" +
		"C: RCPT TO:<x@a.example>\nS: 250 ok\nC: RCPT TO:<z@a.example>\nS: 550 5.1.1 no\nC: RCPT TO:<y@b.example>\nS: 250 ok\nC: DATA\nS: 354 ok\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye"}
	n.scripts["192.0.2.3"] = []script{taking("ann@sender.example", "w@c.example")}
	var resolved, dialed, rcpts []string
	r := n.relay()
	r.Trace = &RelayTrace{
		Reply: func(_ context.Context, i ReplyInfo) {
			if i.Command == "RCPT" {
				rcpts = append(rcpts, i.Domain+" "+i.Recipient)
			}
		},
		Resolved: func(_ context.Context, i ResolvedInfo) {
			resolved = append(resolved, fmt.Sprint(i.Domain, " ", i.Site != "" && i.Site == Site(mxs("1:mx1.host.example 2:mx2.host.example")), " ", i.Err != nil))
		},
		Dialed: func(_ context.Context, i DialedInfo) { dialed = append(dialed, i.Domain+" "+i.Addr) },
	}
	env := envelope(t, "ann@sender.example", "x@a.example", "y@b.example", "z@a.example", "w@c.example", "v@gone.example")
	err := r.Deliver(t.Context(), env, mailspine.StringContent("x\r\n"))
	n.done()
	for i, want := range []string{"", "", "550 5.1.1", "", "550 5.1.2"} {
		wantStatus(t, env.Recipients[i].Address.String(), mailspine.ErrorAt(err, i), want)
	}
	if want := []string{"a.example true false", "b.example true false", "c.example false false", "gone.example false true"}; !slices.Equal(resolved, want) {
		t.Errorf("resolved %q, want %q", resolved, want)
	}
	if want := []string{"a.example x@a.example", "a.example z@a.example", "b.example y@b.example", "c.example w@c.example"}; !slices.Equal(rcpts, want) {
		t.Errorf("replies %q, want %q", rcpts, want)
	}
	if want := []string{"a.example 192.0.2.1:25", "c.example 192.0.2.3:25"}; !slices.Equal(dialed, want) {
		t.Errorf("dialed %q, want %q", dialed, want)
	}
}

// Domains of one site for which not the same is demanded do not share a transaction.
func TestRelaySharesNot(t *testing.T) {
	pool := newCA(t).pool
	for _, tt := range []struct {
		name string
		rule TLSRule // of b.example
		auth [2]bool
		mx   string // of b.example, if it is another one
		want int    // groups
	}{
		{name: "the same", want: 1},
		{name: "level", rule: TLSRule{Level: TLSEncrypt}, want: 2},
		{name: "names", rule: TLSRule{Names: []string{"x"}}, want: 2},
		{name: "no names at all", rule: TLSRule{Names: []string{}}, want: 2},
		{name: "roots", rule: TLSRule{Roots: pool}, want: 2},
		{name: "hosts", rule: TLSRule{Hosts: []string{"*.host.example"}}, want: 2},
		{name: "authentic", auth: [2]bool{false, true}, want: 2},
		{name: "both authentic: DANE knows the domain", auth: [2]bool{true, true}, want: 2},
		{name: "another host", mx: "10:mx1.host.example 20:mx3.host.example", want: 2},
	} {
		n := newNetwork(t)
		if tt.mx == "" {
			tt.mx = "10:mx1.host.example 20:mx2.host.example"
		}
		n.zone["a.example MX"] = mailspine.Answer{MX: mxs("10:mx1.host.example 20:mx2.host.example"), Authentic: tt.auth[0]}
		n.zone["b.example MX"] = mailspine.Answer{MX: mxs(tt.mx), Authentic: tt.auth[1]}
		r := n.relay()
		r.TLSPolicy = TLSRules{"b.example": tt.rule}
		var ts []*transfer
		for i, d := range []string{"a.example", "b.example"} {
			tr := r.transfer(t.Context(), envelope(t, "", "x@a.example", "y@b.example"), nil, contentFacts{}, d, nil)
			tr.parts = []part{{d, []int{i}}}
			ts = append(ts, tr)
		}
		findAll(t.Context(), ts)
		if got := join(ts); len(got) != tt.want {
			t.Errorf("%s: %d transfers, want %d", tt.name, len(got), tt.want)
		}
	}
}

// A failure of a shared connection tells every recipient, in a text that is true for each.
func TestRelayShareFails(t *testing.T) {
	n := newNetwork(t)
	for _, d := range []string{"a.example", "b.example"} {
		n.zone[d+" MX"] = mxs("10:mx1.host.example")
	}
	n.zone["mx1.host.example A"] = "192.0.2.1"
	n.scripts["192.0.2.1"] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: QUIT\nS: 221 bye"}
	r := n.relay()
	r.TLSPolicy = TLSRules{"": {Level: TLSEncrypt}}
	a := &attempt{}
	err := r.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "x@a.example", "y@b.example"), mailspine.StringContent("x\r\n"))
	n.done()
	for i := range 2 {
		wantStatus(t, "no TLS", mailspine.ErrorAt(err, i), "451 4.7.4")
		if text := mailspine.Status(mailspine.ErrorAt(err, i)).Message; strings.Contains(text, "a.example") || strings.Contains(text, "b.example") {
			t.Errorf("recipient %d is told %q", i, text)
		}
		if a.receipts[i].RemoteMTA != "mx1.host.example" {
			t.Errorf("receipt %d: %+v", i, a.receipts[i])
		}
	}
}

// An Egress is asked for each domain; what it grants from one source goes together, and each grant learns of its own recipients.
func TestRelayShareEgress(t *testing.T) {
	n := newNetwork(t)
	for _, d := range []string{"a.example", "b.example", "c.example"} {
		n.zone[d+" MX"] = mxs("10:mx1.host.example")
	}
	n.zone["mx1.host.example A"] = "192.0.2.1"
	const hello = "S: 220 hi\nC: EHLO %s\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n"
	const end = "C: DATA\nS: 354 ok\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye"
	n.scripts["192.0.2.1"] = []script{
		script(fmt.Sprintf(hello, "a.out.example") + "C: RCPT TO:<r0@a.example>\nS: 250 ok\nC: RCPT TO:<r3@b.example>\nS: 550 5.1.1 no\n" + end),
		script(fmt.Sprintf(hello, "out.sender.example") + "C: RCPT TO:<r1@a.example>\nS: 250 ok\nC: RCPT TO:<r4@b.example>\nS: 250 ok\n" + end),
		script(fmt.Sprintf(hello, "a.out.example") + "C: RCPT TO:<r2@a.example>\nS: 250 ok\n" + end),
	}
	full := &mailspine.NotNow{Reason: "full", Rule: "cap"}
	l := &ledger{answer: func(req EgressRequest) ([]Grant, error) {
		switch req.Domain {
		case "a.example": // the same source twice: two turns
			return []Grant{{Source: srcA, Recipients: []int{0}}, {Source: srcB, Recipients: []int{1}}, {Source: srcA, Recipients: []int{2}}}, nil
		case "b.example":
			return []Grant{{Source: srcA, Recipients: []int{3}}, {Source: srcB, Recipients: []int{4}}, {Recipients: []int{5}, Err: full}}, nil
		}
		return []Grant{{Source: srcA, Recipients: []int{0}}}, nil // not what it was asked for
	}}
	var granted []string
	r := n.relay()
	r.Egress = l
	r.Trace = &RelayTrace{Granted: func(_ context.Context, i GrantedInfo) {
		granted = append(granted, fmt.Sprint(i.Domain, " ", i.Source, " ", i.Recipients))
	}}
	env := envelope(t, "ann@sender.example", "r0@a.example", "r1@a.example", "r2@a.example", "r3@b.example", "r4@b.example", "r5@b.example", "r6@c.example")
	a := &attempt{}
	err := r.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent("x\r\n"))
	n.done()
	for i, want := range []string{"", "", "", "550 5.1.1", "", "451 4.3.2", "451 4.3.0"} {
		wantStatus(t, env.Recipients[i].Address.String(), mailspine.ErrorAt(err, i), want)
	}
	slices.Sort(l.done)
	l.check(t, "a 0", "a 1", "a 1", "a 1", "b 1", "b 1", "default 0")
	if len(l.asked) != 3 || l.asked[1].Domain != "b.example" || !slices.Equal(l.asked[1].Recipients, []int{3, 4, 5}) {
		t.Errorf("asked %+v", l.asked)
	}
	want := []string{"a.example a [0]", "b.example a [3]", "a.example b [1]", "b.example b [4]", "a.example a [2]", "b.example default [5]"}
	if !slices.Equal(granted, want) {
		t.Errorf("granted\n%s\nwant\n%s", strings.Join(granted, "\n"), strings.Join(want, "\n"))
	}
	for i, want := range []string{"a", "b", "a", "a", "b"} {
		if a.receipts[i].Source != want {
			t.Errorf("recipient %d was sent from %s, not %s", i, a.receipts[i].Source, want)
		}
	}
}

// Many domains are looked up at a time, but not all.
func TestRelayLookupsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		r := newNetwork(t).relay()
		r.Resolver = mailspine.ResolverFunc(func(_ context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer now.Add(-1)
			time.Sleep(time.Second)
			return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: typ, Kind: mailspine.ErrNXDomain}
		})
		var to []string
		for i := range 80 {
			to = append(to, fmt.Sprintf("x@d%d.example", i))
		}
		start := time.Now()
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", to...), mailspine.StringContent("x\r\n"))
		for i := range to {
			wantStatus(t, to[i], mailspine.ErrorAt(err, i), "550 5.1.2")
		}
		if took := time.Since(start); took != 10*time.Second || most.Load() != maxLookups {
			t.Errorf("took %v, with %d look-ups at a time", took, most.Load())
		}
	})
}

// A Resolver that panics does so in the goroutine of Deliver, where a queue catches it.
func TestRelayLookupPanics(t *testing.T) {
	n := newNetwork(t)
	n.zone["a.example MX"] = mxs("10:mx1.a.example 20:mx2.a.example")
	for _, tt := range []struct {
		to   []string
		name string // that nobody must ask for
	}{
		{[]string{"x@a.example", "y@b.example", "z@c.example"}, "b.example"},
		{[]string{"x@a.example"}, "mx2.a.example"},
	} {
		r := n.relay()
		r.OwnAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.99")}
		r.Resolver = mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			if name == tt.name {
				panic("resolver")
			}
			return n.lookup(ctx, name, typ)
		})
		func() {
			defer func() {
				if p := recover(); p == nil || !strings.HasPrefix(fmt.Sprint(p), "resolver\n") {
					t.Errorf("%s: caught %v", tt.name, p)
				}
			}()
			r.Deliver(t.Context(), envelope(t, "ann@sender.example", tt.to...), mailspine.StringContent("x\r\n"))
		}()
	}
}

func TestRelayRoute(t *testing.T) {
	n := newNetwork(t)
	n.zone["many.example MX"] = mxs("10:mx1.host.example 20:mx2.host.example")
	n.zone["same.example MX"] = mxs("1:mx1.host.example 2:mx2.host.example")
	n.zone["one.example MX"] = mxs("10:mx1.host.example")
	n.zone["implicit.example A"] = "192.0.2.1"
	n.zone["null.example MX"] = mxs("0:.")
	n.zone["bad.example MX"] = mxs("0:two\x00words")
	n.zone["temp.example MX"] = mailspine.ErrDNSTemporary
	n.zone["bogus.example MX"] = mailspine.ErrDNSBogus
	n.zone["xn--bcher-kva.example MX"] = mxs("10:mx1.host.example")
	site := Site(mxs("10:mx1.host.example 20:mx2.host.example"))
	for _, bySite := range []bool{false, true} {
		r := n.relay()
		r.BySite = bySite
		for to, want := range map[string]string{
			"x@many.example": site, "x@SAME.example": site, "x@one.example": "mx1.host.example", "x@bücher.example": "mx1.host.example",
			"x@implicit.example": "implicit.example", "x@null.example": "null.example", "x@bad.example": "bad.example", "x@temp.example": "temp.example",
			"x@bogus.example": "bogus.example", "x@gone.example": "gone.example", "x@[192.0.2.1]": "[192.0.2.1]", "x@[IPv6:2001:db8::1]": "[ipv6:2001:db8::1]",
		} {
			rcpt := mailspine.Recipient{Address: addr(t, to)}
			if !bySite {
				want = string(queue.DomainRoute(rcpt))
			}
			for range 2 {
				if got, err := r.Route(t.Context(), &mailspine.Envelope{}, rcpt); err != nil || string(got) != want {
					t.Errorf("BySite %v: the route of %s is %s, %v; want %s", bySite, to, got, err, want)
				}
			}
		}
	}
	// Malformed, and without a Resolver: a route all the same.
	r := &Relay{BySite: true, Resolver: mailspine.ResolverFunc(n.lookup)}
	if got, err := r.Route(t.Context(), nil, mailspine.Recipient{Address: mailspine.Address{Local: "x", Domain: "a\r\nb"}}); err != nil || got != "a\r\nb" {
		t.Errorf("%q, %v", got, err)
	}
	r = &Relay{BySite: true}
	if got, err := r.Route(t.Context(), nil, mailspine.Recipient{Address: addr(t, "x@many.example")}); err != nil || got != "many.example" {
		t.Errorf("%q, %v", got, err)
	}
}

// For how long a site is remembered, and for how long a failure.
func TestRelayRouteTime(t *testing.T) {
	for _, tt := range []struct {
		name string
		ttl  time.Duration
		err  error
		kept time.Duration
	}{
		{"short", time.Second, nil, time.Minute},
		{"as it is", 10 * time.Minute, nil, 10 * time.Minute},
		{"long", 24 * time.Hour, nil, time.Hour},
		{"failure", 0, mailspine.ErrDNSTemporary, time.Minute},
		{"no such domain", time.Hour, mailspine.ErrNXDomain, time.Minute},
		{"no MX", 10 * time.Minute, mailspine.ErrNoData, 10 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				r := &Relay{BySite: true, Resolver: mailspine.ResolverFunc(func(_ context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
					asked++
					a := mailspine.Answer{TTL: tt.ttl}
					if tt.err != nil {
						return a, &mailspine.DNSError{Name: name, Type: typ, Kind: tt.err}
					}
					a.MX = mxs("10:mx.dest.example")
					return a, nil
				})}
				ask := func() { r.Route(t.Context(), nil, mailspine.Recipient{Address: addr(t, "x@dest.example")}) }
				ask()
				time.Sleep(tt.kept - 1)
				ask()
				if asked != 1 {
					t.Errorf("asked %d times in %v", asked, tt.kept)
				}
				time.Sleep(time.Nanosecond)
				ask()
				if asked != 2 {
					t.Errorf("asked %d times in more than %v", asked, tt.kept)
				}
			})
		})
	}
}

// A DNS that does not answer costs two seconds for a domain and all who ask for it, and no error.
func TestRelayRouteWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		r := &Relay{BySite: true, Resolver: mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			asked.Add(1)
			<-ctx.Done()
			return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: typ, Kind: mailspine.ErrDNSTemporary, Err: ctx.Err()}
		})}
		start := time.Now()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if got, err := r.Route(t.Context(), nil, mailspine.Recipient{Address: mailspine.Address{Local: "x", Domain: "dest.example"}}); got != "dest.example" || err != nil {
					t.Errorf("%s, %v", got, err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took != routeTimeout || asked.Load() != 1 {
			t.Errorf("took %v, with %d look-ups", took, asked.Load())
		}
		// Again and again: less each time, since a message may have many such domains.
		start = time.Now()
		for i := range 100 {
			r.Route(t.Context(), nil, mailspine.Recipient{Address: mailspine.Address{Local: "x", Domain: fmt.Sprintf("d%d.example", i)}})
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("100 domains took %v", took)
		}
		if n := r.routes.missed.Load(); n != 101 {
			t.Errorf("%d look-ups came to no end", n)
		}
		// Whoever gives up earlier spoils nothing for the others.
		r = &Relay{BySite: true, Resolver: r.Resolver}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r.Route(ctx, nil, mailspine.Recipient{Address: mailspine.Address{Local: "x", Domain: "other.example"}})
		}()
		synctest.Wait()
		start = time.Now()
		r.Route(t.Context(), nil, mailspine.Recipient{Address: mailspine.Address{Local: "x", Domain: "other.example"}})
		<-ended
		if took := time.Since(start); took != time.Second+routeTimeout {
			t.Errorf("took %v", took)
		}
		// An answer ends that.
		r.Resolver = mailspine.ResolverFunc(func(context.Context, string, mailspine.Type) (mailspine.Answer, error) {
			return mailspine.Answer{MX: mxs("10:mx.dest.example")}, nil
		})
		if got, _ := r.Route(t.Context(), nil, mailspine.Recipient{Address: mailspine.Address{Local: "x", Domain: "third.example"}}); got != "mx.dest.example" || r.routes.missed.Load() != 0 {
			t.Errorf("%s, %d", got, r.routes.missed.Load())
		}
	})
}

// However many domains there are, no more are remembered.
func TestRelayRouteBounded(t *testing.T) {
	n := 0
	r := &Relay{BySite: true, Resolver: mailspine.ResolverFunc(func(context.Context, string, mailspine.Type) (mailspine.Answer, error) {
		n++
		return mailspine.Answer{MX: mxs("10:mx.dest.example"), TTL: time.Hour}, nil
	})}
	ask := func(i int) {
		r.Route(t.Context(), nil, mailspine.Recipient{Address: mailspine.Address{Local: "x", Domain: fmt.Sprintf("d%d.example", i)}})
	}
	for i := range maxRoutes + 100 {
		ask(i)
		ask(0) // is always used
	}
	if n != maxRoutes+100 || len(r.routes.byName) != maxRoutes || r.routes.recent.Len() != maxRoutes {
		t.Errorf("%d look-ups, %d and %d are remembered", n, len(r.routes.byName), r.routes.recent.Len())
	}
	ask(1)
	if n != maxRoutes+101 {
		t.Error("the one that was not used for the longest time is still there")
	}
}

// A queue with the Relay as its Router hands over in one delivery what goes to one site, and that is one transaction.
func TestRelayRouteInQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		for _, d := range []string{"a.example", "b.example"} {
			n.zone[d+" MX"] = mxs("10:mx1.host.example 20:mx2.host.example")
		}
		n.zone["mx1.host.example A"] = "192.0.2.1"
		n.scripts["192.0.2.1"] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n" +
			"C: RCPT TO:<x@a.example>\nS: 250 ok\nC: RCPT TO:<y@b.example>\nS: 250 ok\nC: DATA\nS: 354 ok\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye"}
		r := n.relay()
		r.BySite = true
		var routes []queue.Route
		delivered := make(chan struct{}, 2)
		q := &queue.Queue{
			Store: memqueue.New(nil), Hostname: "out.sender.example", Logger: r.Logger, Router: r, Next: r,
			Gate: queue.GateFunc(func(_ context.Context, route queue.Route) (queue.Hold, error) {
				routes = append(routes, route)
				return queue.Hold{}, nil
			}),
			Outcomes: mailspine.OutcomeSinkFunc(func(context.Context, mailspine.Outcome) { delivered <- struct{}{} }),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		if err := q.Deliver(ctx, envelope(t, "ann@sender.example", "x@a.example", "y@b.example"), mailspine.StringContent("x\r\n")); err != nil {
			t.Fatal(err)
		}
		<-delivered
		<-delivered
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		q.Store.Close()
		n.done()
		if want := Site(mxs("10:mx1.host.example 20:mx2.host.example")); len(routes) != 1 || string(routes[0]) != want {
			t.Errorf("routes %q, want %q", routes, want)
		}
	})
}

// Whatever DNS says, a site is a name that can be a route, a line of a log and a key.
func FuzzSite(f *testing.F) {
	f.Add("mx1.dest.example\nmx2.dest.example", uint16(10))
	f.Add("a\nA.\na..\n.\n", uint16(0))
	f.Add("bücher.example\n\x00\n#\n~\n"+strings.Repeat("a.", 200)+"\n-.-", uint16(65535))
	f.Fuzz(func(t *testing.T, names string, step uint16) {
		var list []mailspine.MX
		for i, n := range strings.Split(names, "\n") {
			list = append(list, mailspine.MX{Preference: uint16(i) * step, Host: n})
		}
		site := Site(list)
		if len(site) > mailspine.MaxDomain+17 {
			t.Fatalf("%d octets", len(site))
		}
		for _, c := range []byte(site) {
			if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-._~", rune(c)) {
				t.Fatalf("%q", site)
			}
		}
		slices.Reverse(list)
		if again := Site(list); again != site {
			t.Fatalf("%q and %q", site, again)
		}
	})
}

// An MTA-STS policy that both domains have lets them share; a different one, or a problem, does not.
func TestRelaySharesSTS(t *testing.T) {
	one := mtasts.Policy{ID: "1", Mode: mtasts.ModeEnforce, MX: []string{"*.host.example"}, MaxAge: time.Hour}
	two := one
	two.ID = "2"
	for _, tt := range []struct {
		name    string
		a, b    mtasts.Policy
		problem error
		want    int
	}{
		{"none", mtasts.Policy{}, mtasts.Policy{}, nil, 1},
		{"the same", one, one, nil, 1},
		{"another", one, two, nil, 2},
		{"one of them", mtasts.Policy{}, one, nil, 2},
		{"a problem", mtasts.Policy{}, mtasts.Policy{}, errors.New("unreachable"), 2},
	} {
		n := newNetwork(t)
		r := n.relay()
		r.MTASTS = policyFunc(func(domain string) (mtasts.Policy, error) {
			if domain == "a.example" {
				return tt.a, nil
			}
			return tt.b, tt.problem
		})
		var ts []*transfer
		for i, d := range []string{"a.example", "b.example"} {
			n.zone[d+" MX"] = mxs("10:mx1.host.example 20:mx2.host.example")
			tr := r.transfer(t.Context(), envelope(t, "", "x@a.example", "y@b.example"), nil, contentFacts{}, d, nil)
			tr.parts = []part{{d, []int{i}}}
			ts = append(ts, tr)
		}
		findAll(t.Context(), ts)
		if got := join(ts); len(got) != tt.want {
			t.Errorf("%s: %d transfers, want %d", tt.name, len(got), tt.want)
		}
	}
}

type policyFunc func(domain string) (mtasts.Policy, error)

func (f policyFunc) Policy(_ context.Context, domain string) (mtasts.Policy, error) { return f(domain) }
