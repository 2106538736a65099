package mta

import (
	"context"
	"crypto/tls"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// taking is a server that takes a message for recipients.
func taking(from string, to ...string) script {
	var b strings.Builder
	b.WriteString("S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<" + from + ">\nS: 250 ok\n")
	for _, r := range to {
		b.WriteString("C: RCPT TO:<" + r + ">\nS: 250 ok\n")
	}
	b.WriteString("C: DATA\nS: 354 go\nC: x\nC: .\nS: 250 2.0.0 taken\nC: QUIT\nS: 221 bye\n")
	return script(b.String())
}

// Whatever their domains, all recipients go over one connection, to an address that
// a stranger could not have named, and no MX is asked for.
func TestSmarthost(t *testing.T) {
	for _, tt := range []struct {
		name, address string
		zone          map[string]any
		dialed        string
	}{
		{"private address", "10.0.0.7:2525", nil, "10.0.0.7:2525"},
		{"loopback IPv6", "[::1]:25", nil, "[::1]:25"},
		{"name", "MAIL.ISP.example:587", map[string]any{"mail.isp.example A": "10.0.0.7"}, "10.0.0.7:587"},
		{"name with a dot", "mail.isp.example.:25", map[string]any{"mail.isp.example AAAA": "fd00::7"}, "[fd00::7]:25"},
	} {
		n := newNetwork(t)
		n.zone = tt.zone
		ip := netip.MustParseAddrPort(tt.dialed).Addr().String()
		n.scripts[ip] = []script{taking("ann@sender.example", "a@one.example", "b@two.example", "c@one.example")}
		s := &Smarthost{Relay: n.relay(), Address: tt.address}
		s.Relay.AllowPrivate = nil
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		a := &attempt{}
		err := s.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "a@one.example", "b@two.example", "c@one.example"), mailspine.StringContent("x\r\n"))
		n.done()
		wantStatus(t, tt.name, err, "")
		if len(n.dialed) != 1 || n.dialed[0] != tt.dialed {
			t.Errorf("%s: connected to %v, want %s once", tt.name, n.dialed, tt.dialed)
		}
		if r := a.receipts[1]; r.Reply != "250 2.0.0 taken" || r.RemoteAddr != tt.dialed {
			t.Errorf("%s: receipt %+v", tt.name, r)
		}
	}
}

// More recipients than one transaction takes are sent in several, over the same connection.
func TestSmarthostTransactions(t *testing.T) {
	n := newNetwork(t)
	n.scripts["10.0.0.7"] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\n" +
		"C: MAIL FROM:<ann@sender.example>\nS: 250 ok\nC: RCPT TO:<a@one.example>\nS: 250 ok\nC: RCPT TO:<b@two.example>\nS: 550 5.1.1 no\n" +
		"C: DATA\nS: 354 go\nC: x\nC: .\nS: 250 ok\n" +
		"C: MAIL FROM:<ann@sender.example>\nS: 250 ok\nC: RCPT TO:<c@three.example>\nS: 250 ok\nC: DATA\nS: 354 go\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye"}
	s := &Smarthost{Relay: n.relay(), Address: "10.0.0.7:25"}
	s.Relay.MaxRecipients = 2
	env := envelope(t, "ann@sender.example", "a@one.example", "b@two.example", "c@three.example", "d@four.example")
	env.Recipients[3].Address.Domain = "not a domain"
	err := s.Deliver(t.Context(), env, mailspine.StringContent("x\r\n"))
	n.done()
	for i, want := range []string{"", "550 5.1.1", "", "550 5.1.3"} {
		wantStatus(t, env.Recipients[i].Address.String(), mailspine.ErrorAt(err, i), want)
	}
}

// Several addresses are tried in turn; what happened at the first does not matter if the next takes the message.
func TestSmarthostAddresses(t *testing.T) {
	n := newNetwork(t)
	n.zone["mail.isp.example A"] = "10.0.0.7 10.0.0.8"
	n.zone["mail.isp.example AAAA"] = "fd00::7"
	n.scripts["fd00::7"] = []script{"S: 421 busy"}
	n.scripts["10.0.0.8"] = []script{taking("ann@sender.example", "bob@dest.example")}
	s := &Smarthost{Relay: n.relay(), Address: "mail.isp.example:25"}
	err := s.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
	n.done()
	wantStatus(t, "addresses", err, "")
	if got := strings.Join(n.dialed, " "); got != "10.0.0.7:25 [fd00::7]:25 10.0.0.8:25" {
		t.Errorf("connected to %s", got)
	}
}

// The policy is asked with the host's name, and the certificate is verified for it.
func TestSmarthostTLS(t *testing.T) {
	for _, tt := range []struct {
		address, key, cert, want string
	}{
		{"mail.isp.example:25", "mail.isp.example", "mail.isp.example", ""},
		{"mail.isp.example:25", "mail.isp.example", "other.example", "451 4.7.5"},
		{"10.0.0.7:25", "[10.0.0.7]", "10.0.0.7", ""},
	} {
		// A pipe has no buffer: each side may wait for the other until a time-out.
		synctest.Test(t, func(t *testing.T) {
			authority := newCA(t)
			n := newNetwork(t)
			n.certs = authority.server(t, tt.cert)
			n.zone["mail.isp.example A"] = "10.0.0.7"
			s := "S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\n"
			if tt.want == "" {
				n.scripts["10.0.0.7"] = []script{script(s+"TLS\n") + script(strings.TrimPrefix(string(taking("ann@sender.example", "bob@dest.example")), "S: 220 hi\n"))}
			} else {
				n.scripts["10.0.0.7"] = []script{script(s + "TLSFAIL")}
			}
			r := n.relay()
			r.TLSPolicy = TLSRules{tt.key: {Level: TLSVerify, Roots: authority.pool}}
			err := (&Smarthost{Relay: r, Address: tt.address}).Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
			n.done()
			wantStatus(t, tt.address+" "+tt.cert, mailspine.ErrorAt(err, 0), tt.want)
		})
	}
}

// What is wrong with a configuration defers mail and bounces none; a loop does.
func TestSmarthostRefuses(t *testing.T) {
	n := newNetwork(t)
	n.zone["gone.example TXT"] = "" // the name is there, and has no address
	for _, tt := range []struct {
		address string
		edit    func(*Smarthost)
		want    string
		valid   bool
	}{
		{"", nil, "451 4.3.0", false},
		{"mail.isp.example", nil, "451 4.3.0", false},
		{"mail.isp.example:smtp", nil, "451 4.3.0", false},
		{"mail.isp.example:0", nil, "451 4.3.0", false},
		{"mail.isp.example:65536", nil, "451 4.3.0", false},
		{":25", nil, "451 4.3.0", false},
		{"two words:25", nil, "451 4.3.0", false},
		{"a\r\nb:25", nil, "451 4.3.0", false},
		{"[fe80::1%eth0]:25", nil, "451 4.3.0", false},
		{"::1:25", nil, "451 4.3.0", false},
		{"none.example:25", nil, "451 4.4.3", true},
		{"gone.example:25", nil, "451 4.4.3", true},
		{"mail.isp.example:25", func(s *Smarthost) { s.Relay.Resolver = nil }, "451 4.4.3", false},
		{"mail.isp.example:25", func(s *Smarthost) { s.Relay = nil }, "451 4.4.3", false},
		{"OUT.sender.example:25", nil, "554 5.4.6", true},
		{"mail.isp.example:25", func(s *Smarthost) { s.Relay.OwnNames = []string{"mail.isp.example"} }, "554 5.4.6", true},
		{"mail.isp.example:25", func(s *Smarthost) {
			s.Relay.TLSPolicy = TLSRules{"": {Hosts: []string{"other.example"}}}
		}, "451 4.7.5", true},
	} {
		s := &Smarthost{Relay: n.relay(), Address: tt.address}
		if tt.edit != nil {
			tt.edit(s)
		}
		if err := s.Validate(); (err == nil) != tt.valid || err != nil && !strings.Contains(err.Error(), "Smarthost.Address") {
			t.Errorf("%q: Validate says %v", tt.address, err)
		}
		err := s.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
		wantStatus(t, tt.address, err, tt.want)
	}
	if len(n.dialed) > 0 {
		t.Errorf("connected to %v", n.dialed)
	}
}

// In a Mux, recipients of different domains share the route of the Smarthost, and a Receiver takes
// nothing for it from strangers.
func TestSmarthostInMux(t *testing.T) {
	s := &Smarthost{Address: "10.0.0.7:25"}
	m := &Mux{Routes: map[string]mailspine.Deliverer{"local.example": mailspine.DelivererFunc(nil)}, Default: wrap{s}}
	env := envelope(t, "ann@sender.example", "a@one.example", "b@two.example", "c@local.example")
	var got []queue.Route
	for _, r := range env.Recipients {
		route, err := m.Route(t.Context(), env, r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, route)
	}
	if got[0] != "10.0.0.7:25" || got[1] != got[0] || got[2] != "local.example" {
		t.Errorf("routes %q", got)
	}
	wantStatus(t, "relaying", m.CheckRecipient(t.Context(), env, env.Recipients[0]), "550 5.7.1")
	if _, err := (&Smarthost{}).Route(t.Context(), env, env.Recipients[0]); !mailspine.Status(err).Temporary() {
		t.Errorf("the route of a Smarthost without address: %v", err)
	}
}

// A host that says nothing is left when its time is over, as a mail exchanger is.
func TestSmarthostSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.scripts["10.0.0.7"] = []script{"STALL"}
		start := time.Now()
		err := (&Smarthost{Relay: n.relay(), Address: "10.0.0.7:25"}).Deliver(context.Background(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
		wantStatus(t, "silent", mailspine.ErrorAt(err, 0), "451 4.4.2")
		if took := time.Since(start); took != 5*time.Minute {
			t.Errorf("took %v", took)
		}
		n.done()
	})
}

// The host of a Smarthost comes from no answer that could be forged: REQUIRETLS is met by its certificate and its offer.
func TestSmarthostRequireTLS(t *testing.T) {
	for _, tt := range []struct{ ehlo, want string }{
		{"S: 250-hi\nS: 250 REQUIRETLS", ""},
		{"S: 250 hi", "550 5.7.30"},
	} {
		synctest.Test(t, func(t *testing.T) {
			authority := newCA(t)
			n := newNetwork(t)
			n.certs = authority.server(t, "mail.isp.example")
			n.zone["mail.isp.example A"] = "10.0.0.7"
			s := "S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\nTLS\nC: EHLO out.sender.example\n" + tt.ehlo + "\n"
			if tt.want == "" {
				s += "C: MAIL FROM:<ann@sender.example> REQUIRETLS\nS: 250 ok\nC: RCPT TO:<bob@dest.example>\nS: 250 ok\nC: DATA\nS: 354 go\nC: x\nC: .\nS: 250 ok\n"
			}
			n.scripts["10.0.0.7"] = []script{script(s + "C: QUIT\nS: 221 bye")}
			r := n.relay()
			r.TLSConfig = &tls.Config{RootCAs: authority.pool}
			env := envelope(t, "ann@sender.example", "bob@dest.example")
			env.RequireTLS = true
			err := (&Smarthost{Relay: r, Address: "mail.isp.example:25"}).Deliver(t.Context(), env, mailspine.StringContent("x\r\n"))
			n.done()
			wantStatus(t, tt.ehlo, mailspine.ErrorAt(err, 0), tt.want)
		})
	}
}

// An Egress is asked for a Smarthost with the host's name.
func TestSmarthostEgress(t *testing.T) {
	n := newNetwork(t)
	n.zone["mail.isp.example A"] = "10.0.0.7"
	n.scripts["10.0.0.7"] = []script{taking("ann@sender.example", "a@one.example", "b@two.example")}
	l := &ledger{answer: func(req EgressRequest) ([]Grant, error) {
		return []Grant{{Source: srcB, Recipients: req.Recipients}}, nil
	}}
	r := n.relay()
	r.Egress = l
	err := (&Smarthost{Relay: r, Address: "mail.isp.example:25"}).Deliver(t.Context(), envelope(t, "ann@sender.example", "a@one.example", "b@two.example"), mailspine.StringContent("x\r\n"))
	n.done()
	wantStatus(t, "egress", err, "")
	l.check(t, "b 2")
	if len(l.asked) != 1 || l.asked[0].Domain != "mail.isp.example" || len(l.asked[0].Recipients) != 2 {
		t.Errorf("asked %+v", l.asked)
	}
}

// Whatever an operator writes, an address is taken or refused, and never dialed in another form.
func FuzzSmarthostAddress(f *testing.F) {
	for _, s := range []string{"mail.example:25", "[::1]:25", "[::ffff:10.0.0.1]:25", "1.2.3.4:0", "a\r\nb:25", ":25", "[fe80::1%x]:1", "bücher.example:587", "256.1.1.1:25"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := (&Smarthost{Address: s}).endpoint()
		if err != nil {
			return
		}
		if e.port == 0 {
			t.Fatalf("%q has port 0", s)
		}
		if _, ok := (mailspine.Address{Domain: e.name}).Literal(); !ok && (!isHostname(e.name) || e.name == "") {
			t.Fatalf("%q has the host %q", s, e.name)
		}
	})
}
