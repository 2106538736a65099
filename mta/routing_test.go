package mta

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/internal/dial"
)

// What DNS says decides where a message goes, and what becomes of it when it
// cannot go anywhere.
func TestRelayRouting(t *testing.T) {
	const good = "S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\nC: RCPT TO:<%s>\nS: 250 ok\n" +
		"C: DATA\nS: 354 ok\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye"
	const busy = "S: 421 4.3.2 too busy"
	mx := func(pref uint16, host string) mailspine.MX { return mailspine.MX{Preference: pref, Host: host} }
	for _, tt := range []struct {
		name    string
		to      string // bob@dest.example unless set
		zone    map[string]any
		scripts map[string]string
		edit    func(*Relay)
		dialed  []string // by address, in order
		want    string
	}{
		{name: "preference order, not the order of the answer",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(20, "b.dest.example"), mx(10, "a.dest.example"), mx(30, "c.dest.example")},
				"a.dest.example A": "192.0.2.1", "b.dest.example A": "192.0.2.2", "c.dest.example A": "192.0.2.3"},
			scripts: map[string]string{"192.0.2.1": busy, "192.0.2.2": good},
			dialed:  []string{"192.0.2.1:25", "192.0.2.2:25"}},
		{name: "all addresses of a host, IPv4 and IPv6 in turn",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}, "a.dest.example A": "192.0.2.1 192.0.2.2",
				"a.dest.example AAAA": "2001:db8::1"},
			scripts: map[string]string{"192.0.2.2": good},
			dialed:  []string{"192.0.2.1:25", "[2001:db8::1]:25", "192.0.2.2:25"}},
		{name: "implicit MX", zone: map[string]any{"dest.example A": "192.0.2.1"},
			scripts: map[string]string{"192.0.2.1": good}, dialed: []string{"192.0.2.1:25"}},
		{name: "implicit MX with IPv6 only", zone: map[string]any{"dest.example AAAA": "2001:db8::1"},
			scripts: map[string]string{"2001:db8::1": good}, dialed: []string{"[2001:db8::1]:25"}},
		{name: "no MX, no address", zone: map[string]any{"dest.example TXT": "1"}, want: "550 5.1.2"},
		{name: "no such domain", zone: map[string]any{}, want: "550 5.1.2"},
		{name: "null MX", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "")}, "dest.example A": "192.0.2.1"}, want: "556 5.1.10"},
		{name: "null MX written as a dot", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, ".")}}, want: "556 5.1.10"},
		{name: "null MX beside another means nothing",
			zone:    map[string]any{"dest.example MX": []mailspine.MX{mx(0, ""), mx(5, "a.dest.example")}, "a.dest.example A": "192.0.2.1"},
			scripts: map[string]string{"192.0.2.1": good}, dialed: []string{"192.0.2.1:25"}},
		{name: "MX lookup fails for now: never the implicit MX",
			zone: map[string]any{"dest.example MX": mailspine.ErrDNSTemporary, "dest.example A": "192.0.2.1"}, want: "451 4.4.3"},
		{name: "MX lookup bogus",
			zone: map[string]any{"dest.example MX": mailspine.ErrDNSBogus, "dest.example A": "192.0.2.1"}, want: "451 4.4.3"},
		{name: "MX lookup with an error nobody knows",
			zone: map[string]any{"dest.example MX": errors.New("oops"), "dest.example A": "192.0.2.1"}, want: "451 4.4.3"},
		{name: "address lookup fails for now",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}, "a.dest.example A": mailspine.ErrDNSTemporary}, want: "451 4.4.3"},
		{name: "address lookup fails for one host, the other is used",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example"), mx(1, "b.dest.example")},
				"a.dest.example A": mailspine.ErrDNSTemporary, "b.dest.example A": "192.0.2.2"},
			scripts: map[string]string{"192.0.2.2": good}, dialed: []string{"192.0.2.2:25"}},
		{name: "A fails for now, AAAA is there",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")},
				"a.dest.example A": mailspine.ErrDNSTemporary, "a.dest.example AAAA": "2001:db8::1"},
			scripts: map[string]string{"2001:db8::1": good}, dialed: []string{"[2001:db8::1]:25"}},
		{name: "MX without address", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}}, want: "550 5.4.4"},
		{name: "one without address for good, one unreachable for now: temporary",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example"), mx(1, "b.dest.example")}, "a.dest.example A": "192.0.2.1"},
			want: "451 4.4.1", dialed: []string{"192.0.2.1:25"}},
		{name: "A is not there, AAAA fails for now: that proves nothing",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}, "a.dest.example TXT": "1",
				"a.dest.example AAAA": mailspine.ErrDNSTemporary}, want: "451 4.4.3"},
		{name: "implicit MX whose address fails for now",
			zone: map[string]any{"dest.example A": mailspine.ErrDNSTemporary}, want: "451 4.4.3"},
		{name: "MX with U-labels", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "bücher.example")},
			"xn--bcher-kva.example A": "192.0.2.1"}, want: "550 5.4.4"},
		{name: "MX that is an ASCII name only in lower case", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "\u212aa.example")},
			"ka.example A": "192.0.2.1"}, want: "550 5.4.4"},
		{name: "MX that is an address", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "192.0.2.1")}}, want: "550 5.4.4"},
		{name: "MX that is localhost", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "localhost")}, "localhost A": "127.0.0.1"}, want: "550 5.4.4"},
		{name: "MX twice: the better preference counts",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(30, "a.dest.example"), mx(20, "b.dest.example"), mx(10, "A.dest.example.")},
				"a.dest.example A": "192.0.2.1", "b.dest.example A": "192.0.2.2"},
			scripts: map[string]string{"192.0.2.2": good}, dialed: []string{"192.0.2.1:25", "192.0.2.2:25"}},
		{name: "we are the best MX by address", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(10, "a.dest.example"), mx(20, "b.dest.example")},
			"a.dest.example A": "192.0.2.1", "a.dest.example AAAA": "2001:db8::1", "b.dest.example A": "192.0.2.2"},
			edit: func(r *Relay) { r.OwnAddrs = []netip.Addr{netip.MustParseAddr("2001:db8::1")} }, want: "554 5.4.6"},
		{name: "we are the second by address: only the better ones are used",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(10, "a.dest.example"), mx(20, "b.dest.example"), mx(20, "c.dest.example"), mx(30, "d.dest.example")},
				"a.dest.example A": "192.0.2.1", "b.dest.example A": "192.0.2.2", "c.dest.example A": "192.0.2.9 192.0.2.3", "d.dest.example A": "192.0.2.4"},
			edit: func(r *Relay) { r.OwnAddrs = []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.3")} }, want: "451 4.4.1", dialed: []string{"192.0.2.1:25"}},
		{name: "a worse name and a better address: the better one counts",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(10, "a.dest.example"), mx(20, "out.sender.example")},
				"a.dest.example A": "192.0.2.1", "out.sender.example A": "192.0.2.2"},
			edit: func(r *Relay) { r.OwnAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, want: "554 5.4.6"},
		{name: "our address in an address literal", to: "bob@[192.0.2.1]",
			edit: func(r *Relay) { r.OwnAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, want: "554 5.4.6"},
		{name: "our address, and a host that cannot be looked up",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(10, "a.dest.example"), mx(20, "b.dest.example")},
				"a.dest.example A": mailspine.ErrDNSTemporary, "b.dest.example A": "192.0.2.2"},
			edit: func(r *Relay) { r.OwnAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, scripts: map[string]string{"192.0.2.2": good},
			dialed: []string{"192.0.2.2:25"}},
		{name: "a server that greets with our name: those that are no better would give the message back",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(10, "a.dest.example"), mx(20, "b.dest.example")},
				"a.dest.example A": "192.0.2.1 192.0.2.9", "b.dest.example A": "192.0.2.2"},
			scripts: map[string]string{"192.0.2.1": "S: 220-OUT.sender.example. ESMTP\nS: 220 hi\nC: QUIT\nS: 221 bye"},
			dialed:  []string{"192.0.2.1:25"}, want: "554 5.4.6"},
		{name: "a worse server that greets with another of our names: temporary, for the better one may come back",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(10, "a.dest.example"), mx(20, "b.dest.example")},
				"a.dest.example A": "192.0.2.1", "b.dest.example A": "192.0.2.2"},
			edit:    func(r *Relay) { r.OwnNames = []string{"mx.sender.example"} },
			scripts: map[string]string{"192.0.2.2": "S: 220 mx.sender.example\nC: QUIT\nS: 221 bye"},
			dialed:  []string{"192.0.2.1:25", "192.0.2.2:25"}, want: "451 4.4.1"},
		{name: "a server that greets with the name of the source",
			zone:    map[string]any{"dest.example A": "192.0.2.1"},
			edit:    func(r *Relay) { r.Egress = grantAll(srcA) },
			scripts: map[string]string{"192.0.2.1": "S: 220 a.out.example ESMTP\nC: QUIT\nS: 221 bye"},
			dialed:  []string{"192.0.2.1:25"}, want: "554 5.4.6"},
		{name: "MX that is no host name", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a b\r\n.example")}}, want: "550 5.4.4"},
		{name: "MX at loopback", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}, "a.dest.example A": "127.0.0.1"},
			want: "550 5.4.4"},
		{name: "MX in a private network", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}, "a.dest.example A": "10.0.0.1"},
			want: "550 5.4.4"},
		{name: "implicit MX at IPv6 loopback", zone: map[string]any{"dest.example AAAA": "::1"}, want: "550 5.4.4"},
		{name: "MX at a metadata service", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}, "a.dest.example A": "169.254.169.254"},
			want: "550 5.4.4"},
		{name: "a forbidden address is passed over",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example"), mx(1, "b.dest.example")},
				"a.dest.example A": "127.0.0.1 10.0.0.1", "b.dest.example A": "192.0.2.2"},
			scripts: map[string]string{"192.0.2.2": good}, dialed: []string{"192.0.2.2:25"}},
		{name: "address literal", to: "bob@[192.0.2.9]", scripts: map[string]string{"192.0.2.9": good}, dialed: []string{"192.0.2.9:25"}},
		{name: "IPv6 address literal", to: "bob@[IPv6:2001:db8::9]", scripts: map[string]string{"2001:db8::9": good}, dialed: []string{"[2001:db8::9]:25"}},
		{name: "address literal at loopback", to: "bob@[127.0.0.1]", want: "550 5.4.4"},
		{name: "IPv6 address literal at loopback", to: "bob@[IPv6:::1]", want: "550 5.4.4"},
		{name: "IPv6 address literal that is an IPv4 address", to: "bob@[IPv6:::ffff:10.0.0.1]", want: "550 5.4.4"},
		{name: "we are the best MX", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(10, "OUT.sender.example"), mx(20, "b.dest.example")},
			"b.dest.example A": "192.0.2.2"}, want: "554 5.4.6"},
		{name: "we are the second: only the better ones are used",
			zone: map[string]any{"dest.example MX": []mailspine.MX{mx(10, "a.dest.example"), mx(20, "mx.sender.example"), mx(20, "b.dest.example"), mx(30, "c.dest.example")},
				"a.dest.example A": "192.0.2.1", "b.dest.example A": "192.0.2.2", "c.dest.example A": "192.0.2.3"},
			edit: func(r *Relay) { r.OwnNames = []string{"mx.sender.example"} }, want: "451 4.4.1", dialed: []string{"192.0.2.1:25"}},
		{name: "we are the implicit MX", to: "bob@out.sender.example", zone: map[string]any{"out.sender.example A": "192.0.2.1"}, want: "554 5.4.6"},
		{name: "another port", zone: map[string]any{"dest.example A": "192.0.2.1"}, edit: func(r *Relay) { r.Port = 2525 },
			scripts: map[string]string{"192.0.2.1": good}, dialed: []string{"192.0.2.1:2525"}},
		{name: "no more connections than allowed",
			zone:   map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}, "a.dest.example A": "192.0.2.1 192.0.2.2 192.0.2.3"},
			edit:   func(r *Relay) { r.MaxConnections = 2 },
			dialed: []string{"192.0.2.1:25", "192.0.2.2:25"}, want: "451 4.4.1"},
		{name: "5yz greeting everywhere", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}, "a.dest.example A": "192.0.2.1 192.0.2.2"},
			scripts: map[string]string{"192.0.2.1": "S: 554 5.7.1 no\nCLOSE", "192.0.2.2": "S: 554 5.7.1 no\nCLOSE"},
			dialed:  []string{"192.0.2.1:25", "192.0.2.2:25"}, want: "554 5.7.1"},
		{name: "5yz greeting at the second, the first is down", zone: map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}, "a.dest.example A": "192.0.2.1 192.0.2.2"},
			scripts: map[string]string{"192.0.2.2": "S: 554 5.7.1 no\nCLOSE"},
			dialed:  []string{"192.0.2.1:25", "192.0.2.2:25"}, want: "451 4.4.1"},
		{name: "refused by the first for good: the second is not asked",
			zone:    map[string]any{"dest.example MX": []mailspine.MX{mx(0, "a.dest.example")}, "a.dest.example A": "192.0.2.1 192.0.2.2"},
			scripts: map[string]string{"192.0.2.1": "S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\nC: RCPT TO:<bob@dest.example>\nS: 550 5.1.1 no\nC: QUIT\nS: 221 bye"},
			dialed:  []string{"192.0.2.1:25"}, want: "550 5.1.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t)
			n.zone = tt.zone
			to := tt.to
			if to == "" {
				to = "bob@dest.example"
			}
			for ip, s := range tt.scripts {
				n.scripts[ip] = []script{script(strings.ReplaceAll(s, "%s", to))}
			}
			r := n.relay()
			if tt.edit != nil {
				tt.edit(r)
			}
			err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", to), mailspine.StringContent("x\r\n"))
			n.done()
			wantStatus(t, tt.name, mailspine.ErrorAt(err, 0), tt.want)
			if !slices.Equal(n.dialed, tt.dialed) {
				t.Errorf("connected to %v, want %v", n.dialed, tt.dialed)
			}
		})
	}
}

// grantAll is an Egress with one source.
func grantAll(s Source) Egress {
	return EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
		return []Grant{{Source: s, Recipients: req.Recipients}}, nil
	})
}

// RFC 5321 section 5.1: the domain may be an alias, and then it is the target's mail exchangers that count. A mail exchanger must not be one,
// but many are. A name that leads nowhere proves that there is nothing; one that leads in a circle proves nothing.
func TestRelayCNAME(t *testing.T) {
	zone := dnstest.Zone{
		"alias.example":   {dnstest.CNAME("dest.example")},
		"dest.example":    {dnstest.MX(10, "mx.dest.example")},
		"mx.dest.example": {dnstest.CNAME("host.example")},
		"host.example":    {dnstest.A("192.0.2.1")},
		"bare.example":    {dnstest.CNAME("host.example")},
		"lost.example":    {dnstest.CNAME("nowhere.example")},
		"empty.example":   {dnstest.CNAME("text.example")},
		"text.example":    {dnstest.TXT("x")},
		"circle.example":  {dnstest.CNAME("elcric.example")},
		"elcric.example":  {dnstest.CNAME("circle.example")},
		"nomx.example":    {dnstest.MX(10, "lost.example")},
	}
	if err := zone.Check(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ domain, want, host string }{
		{"alias.example", "", "mx.dest.example"},
		{"bare.example", "", "bare.example"},
		{"lost.example", "550 5.1.2", ""},
		{"empty.example", "550 5.1.2", ""},
		{"circle.example", "451 4.4.3", ""},
		{"nomx.example", "550 5.4.4", ""},
	} {
		n := newNetwork(t)
		r := n.relay()
		r.Resolver = zone
		if tt.host != "" {
			n.scripts["192.0.2.1"] = []script{taking("ann@sender.example", "bob@"+tt.domain)}
		}
		a := &attempt{}
		err := r.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@"+tt.domain), mailspine.StringContent("x\r\n"))
		n.done()
		wantStatus(t, tt.domain, mailspine.ErrorAt(err, 0), tt.want)
		if tt.host != "" && a.receipts[0].RemoteMTA != tt.host {
			t.Errorf("%s: %+v", tt.domain, a.receipts[0])
		}
	}
}

// A Smarthost may be another program on this host, and greet with the same name.
func TestSmarthostGreetsAsWe(t *testing.T) {
	n := newNetwork(t)
	n.zone["filter.example A"] = "192.0.2.1"
	n.scripts["192.0.2.1"] = []script{"S: 220 out.sender.example\n" + script(strings.TrimPrefix(open, "S: 220 hi\n")) + one + bye}
	r := n.relay()
	bob(t, &Smarthost{Relay: r, Address: "filter.example:10025"}, "")
	n.done()
}

// Without AllowPrivate, and with the Relay's own dialer, loopback is not connected to.
func TestRelayGuard(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := newNetwork(t)
	n.mx("dest.example", "127.0.0.1")
	r := &Relay{Resolver: mailspine.ResolverFunc(n.lookup), Port: uint16(l.Addr().(*net.TCPAddr).Port)}
	err = r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
	wantStatus(t, "guard", err, "550 5.4.4")
	if err = mailspine.ErrorAt(err, 0); !errors.Is(err, dial.ErrForbidden) {
		t.Errorf("%v does not match dial.ErrForbidden", err)
	}
	if strings.Contains(mailspine.Status(err).Message, "loopback") {
		t.Errorf("the text for the peer tells about our network: %q", mailspine.Status(err).Message)
	}
}

// A DNS time-out defers the message: 451 4.4.3.
func TestRelayDNSTimeout(t *testing.T) {
	r := &Relay{Resolver: mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
		ctx, cancel := context.WithTimeout(ctx, 0)
		defer cancel()
		<-ctx.Done()
		return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: typ, Kind: mailspine.ErrDNSTemporary, Err: ctx.Err()}
	})}
	err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
	wantStatus(t, "DNS time-out", mailspine.ErrorAt(err, 0), "451 4.4.3")
}

// Inside of one preference the order is random: over many tries each host is first.
func TestRelayRandomOrder(t *testing.T) {
	first := map[string]bool{}
	for range 1000 {
		tr := &transfer{r: &Relay{}, domain: "dest.example"}
		tr.all = usable([]mailspine.MX{{Preference: 20, Host: "last.example"}, {Preference: 10, Host: "a.example"}, {Preference: 10, Host: "b.example"}, {Preference: 10, Host: "A.example."}})
		hosts, err := tr.choose(t.Context())
		if err != nil || len(hosts) != 3 || hosts[2].name != "last.example" {
			t.Fatalf("%v, %v", hosts, err)
		}
		first[hosts[0].name] = true
	}
	if len(first) != 2 {
		t.Errorf("only %v was ever first", first)
	}
}

// A domain may list any number of hosts and addresses: what is tried is bounded.
func TestRelayBoundsDNS(t *testing.T) {
	n := newNetwork(t)
	var mxs []mailspine.MX
	for i := range 500 {
		name := fmt.Sprintf("mx%d.dest.example", i)
		mxs = append(mxs, mailspine.MX{Preference: 1, Host: name})
		var ips []string
		for j := range 100 {
			ips = append(ips, fmt.Sprintf("10.%d.%d.1", i%200, j))
		}
		n.zone[name+" A"] = strings.Join(ips, " ")
	}
	n.zone["dest.example MX"] = mxs
	asked := 0
	r := n.relay()
	r.Resolver = mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
		asked++
		return n.lookup(ctx, name, typ)
	})
	err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
	wantStatus(t, "all forbidden", mailspine.ErrorAt(err, 0), "550 5.4.4")
	if asked > 1+2*maxHosts {
		t.Errorf("asked %d questions", asked)
	}
	r.AllowPrivate = append(r.AllowPrivate, netip.MustParsePrefix("10.0.0.0/8"))
	err = r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
	wantStatus(t, "nobody there", mailspine.ErrorAt(err, 0), "451 4.4.1")
	if len(n.dialed) != 6 {
		t.Errorf("%d connections were tried, want 6", len(n.dialed))
	}
}

// A greeting is whatever a stranger says: only our own name as its first word is ours.
func FuzzGreeting(f *testing.F) {
	for _, s := range []string{"out.sender.example ESMTP", "OUT.sender.example.", "", " out.sender.example", "out.sender.example.evil.example", "bücher.example x",
		"xn--bcher-kva.example", "\x00\xff.\u3002", "[192.0.2.1] hi", strings.Repeat("a", 5000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tr := &transfer{r: &Relay{Hostname: "out.sender.example", OwnNames: []string{"bücher.example", ""}}, domain: "dest.example"}
		tr.parts = []part{{domain: tr.domain}}
		err := tr.greetedBy(text)
		word, _, _ := strings.Cut(text, " ")
		ascii, aerr := mailspine.ASCIIDomain(word)
		ours := aerr == nil && (ascii == "out.sender.example" || ascii == "xn--bcher-kva.example")
		if !tr.greeted || (err != nil) != ours || tr.looping != ours {
			t.Errorf("%q: %v, ours: %v", text, err, ours)
		}
	})
}
