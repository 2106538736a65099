package mta

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
)

// explainNet has a domain of each kind.
func explainNet(t testing.TB) *network {
	n := newNetwork(t)
	n.zone["dest.example MX"] = mailspine.Answer{MX: mxs("10:a.dest.example 20:b.dest.example 20:c.dest.example 30:out.sender.example 40:d.dest.example")}
	n.zone["a.dest.example A"] = "192.0.2.1 10.0.0.1"
	n.zone["a.dest.example AAAA"] = "2001:db8::1"
	n.zone["b.dest.example A"] = "192.0.2.2"
	n.zone["c.dest.example A"] = mailspine.ErrDNSTemporary
	n.zone["implicit.example A"] = "192.0.2.3"
	n.zone["null.example MX"] = mxs("0:.")
	n.zone["temp.example MX"] = mailspine.ErrDNSTemporary
	n.zone["self.example MX"] = mxs("10:out.sender.example 20:b.dest.example")
	n.zone["private.example A"] = "127.0.0.1"
	n.zone["policy.example MX"] = mxs("10:a.dest.example 20:b.dest.example")
	n.zone["strict.example MX"] = mxs("10:a.dest.example")
	n.zone["smart.example A"] = "10.0.0.7"
	return n
}

func explainRelay(n *network) *Relay {
	r := n.relay()
	r.TLSPolicy = TLSRules{"policy.example": {Level: TLSVerify, Hosts: []string{"b.dest.example"}}, "strict.example": {Hosts: []string{"x.example"}}}
	return r
}

// What people are shown, for each kind of domain.
func TestRelayExplain(t *testing.T) {
	n := explainNet(t)
	r := explainRelay(n)
	var b strings.Builder
	for _, d := range []string{"DEST.example.", "implicit.example", "null.example", "temp.example", "gone.example", "self.example", "private.example",
		"policy.example", "strict.example", "[192.0.2.5]", "[IPv6:2001:db8::5]"} {
		p, err := r.Explain(t.Context(), d)
		if err != nil {
			t.Fatalf("%s: %v", d, err)
		}
		b.WriteString(p.String() + "\n")
		// The JSON form has all of it.
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		back := &Plan{}
		if err := json.Unmarshal(text, back); err != nil || !reflect.DeepEqual(p, back) {
			t.Errorf("%s: %v: %s", d, err, text)
		}
	}
	s := &Smarthost{Relay: r, Address: "smart.example:2525"}
	p, err := s.Explain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.WriteString(p.String())
	const file = "testdata/explain.txt"
	if os.Getenv("MAILSPINE_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("%s differs; got\n%s", file, b.String())
	}
	if len(n.dialed) > 0 {
		t.Errorf("connected to %v", n.dialed)
	}
	if len(r.sites.byName) > 0 || len(r.routes.byName) > 0 {
		t.Error("asking leaves traces")
	}
}

// A delivery does what the plan says.
func TestRelayExplainIsTrue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := explainNet(t)
		n.zone["dest.example MX"] = mxs("10:a.dest.example 20:b.dest.example 30:e.dest.example")
		n.zone["e.dest.example A"] = "192.0.2.5 192.0.2.6"
		r := explainRelay(n)
		turns := func() []string {
			p, err := r.Explain(t.Context(), "dest.example")
			if err != nil {
				t.Fatal(err)
			}
			var list []string
			for turn := 1; ; turn++ {
				before := len(list)
				for _, h := range p.Hosts {
					for _, a := range h.Addrs {
						if a.Turn == turn {
							list = append(list, a.Addr.String())
						}
					}
				}
				if len(list) == before {
					return list
				}
			}
		}
		// By and by addresses fail and work; each time the plan is compared with what is then done.
		for i, alive := range []string{"192.0.2.2", "2001:db8::1", "", "192.0.2.6", "192.0.2.1", "", "192.0.2.5"} {
			want := turns()
			n.dialed = nil
			status := "451 4.4.1"
			if alive != "" {
				n.scripts[alive] = []script{open + one + bye}
				status = ""
			}
			bob(t, r, status)
			n.done()
			if end := slices.Index(want, netip.AddrPortFrom(first(alive), 25).String()); end >= 0 {
				want = want[:end+1]
			}
			if !slices.Equal(n.dialed, want) {
				t.Errorf("%d: connected to %v, the plan was %v", i, n.dialed, want)
			}
			time.Sleep(time.Minute)
		}
	})
}

func first(ip string) netip.Addr { a, _ := netip.ParseAddr(ip); return a }

// What is remembered and kept is in the plan.
func TestRelayExplainState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1 192.0.2.2")
		r := n.relay()
		r.IdleTimeout = time.Minute
		dial := r.Dial
		r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "192.0.2.1:25" {
				return dial(ctx, network, addr)
			}
			client, server := net.Pipe()
			n.wg.Go(func() { (&taker{}).serve(server) })
			return client, nil
		}
		began := time.Now()
		bob(t, r, "")
		time.Sleep(time.Second)
		p, err := r.Explain(t.Context(), "dest.example")
		if err != nil {
			t.Fatal(err)
		}
		h := p.Hosts[0]
		if h.Kept != 1 || !p.Limits.Known || p.Limits.Idle != 1 || p.Limits.Site != p.Site {
			t.Errorf("%+v", p)
		}
		if a := h.Addrs[0]; a.Dead == "" || !a.DeadSince.Equal(began) || !a.DeadUntil.Equal(began.Add(5*time.Minute)) || a.Turn != 1 {
			t.Errorf("%+v; a host for which a connection is kept is not dead", a)
		}
		r.CloseIdle()
		p, _ = r.Explain(t.Context(), "dest.example")
		if a := p.Hosts[0].Addrs; a[0].Turn != 2 || a[1].Turn != 1 || a[1].Dead != "" || p.Hosts[0].Kept != 0 {
			t.Errorf("%+v", a)
		}
		if s := p.String(); !strings.Contains(s, "not reachable since 2000-01-01T00:00:00Z, after all others until 2000-01-01T00:05:00Z: 451 4.4.1") {
			t.Errorf("%s", s)
		}
		n.wg.Wait()
	})
}

// A question without sense, and an end of ctx, are errors; so is an unusable Relay.
func TestRelayExplainErrors(t *testing.T) {
	n := explainNet(t)
	r := explainRelay(n)
	for _, d := range []string{"", "a b", "a\r\nb.example", "a..b", "[300.1.1.1]", strings.Repeat("a.", 200) + "example"} {
		if p, err := r.Explain(t.Context(), d); err == nil {
			t.Errorf("%q: %v", d, p)
		} else if strings.ContainsAny(err.Error(), "\r\n") {
			t.Errorf("%q: the error breaks the line: %q", d, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Explain(ctx, "dest.example"); err == nil {
		t.Error("no error at the end of ctx")
	}
	if _, err := new(Relay).Explain(t.Context(), "dest.example"); err == nil {
		t.Error("no error without a Resolver")
	}
	if _, err := (&Smarthost{Relay: r, Address: "x"}).Explain(t.Context()); err == nil {
		t.Error("no error for a bad Address")
	}
	// What DNS says cannot break a line either.
	n.zone["evil.example MX"] = &mailspine.DNSError{Kind: mailspine.ErrDNSTemporary, Server: "a\x1b[2J\r\nb"}
	p, err := r.Explain(t.Context(), "evil.example")
	if err != nil || strings.ContainsAny(p.String(), "\r\x1b") || strings.Count(p.String(), "\n") != 3 {
		t.Errorf("%q, %v", p, err)
	}
}
