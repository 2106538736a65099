package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	mdns "github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// short is a time-out for servers that will not answer, in tests.
const short = 50 * time.Millisecond

func start(t testing.TB, z dnstest.Zone) *dnstest.Server {
	t.Helper()
	s, err := dnstest.Start(z)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// handle serves with a function of the test's own.
func handle(t *testing.T, h func(w mdns.ResponseWriter, q *mdns.Msg)) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	srv := &mdns.Server{PacketConn: conn, Handler: mdns.HandlerFunc(h), NotifyStartedFunc: func() { close(started) }}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.ActivateAndServe() })
	<-started
	t.Cleanup(func() { _ = srv.Shutdown(); wg.Wait() })
	return conn.LocalAddr().String()
}

func client(s *dnstest.Server) *dns.Client {
	return &dns.Client{Servers: []string{s.Addr()}, Timeout: 5 * time.Second}
}

var equate = cmpopts.EquateComparable(mailspine.MX{}, mailspine.SRV{}, netip.Addr{})

func TestClientTypes(t *testing.T) {
	s := start(t, dnstest.Zone{
		"example.org":              {dnstest.MX(10, "mx.example.org"), dnstest.MX(20, "mx2.example.org"), dnstest.TXT("v=spf1", " -all"), dnstest.A("192.0.2.1"), dnstest.AAAA("2001:db8::1")},
		"nomail.example":           {dnstest.MX(0, "")},
		"1.2.0.192.in-addr.arpa":   {dnstest.PTR("example.org")},
		"_imaps._tcp.example.org":  {dnstest.SRV(1, 2, 993, "imap.example.org")},
		"_pop3s._tcp.example.org":  {dnstest.SRV(0, 0, 0, ".")},
		"_25._tcp.mx.example.org":  {dnstest.TLSA(3, 1, 1, []byte("0123456789abcdef0123456789abcdef"))},
		"alias.example":            {dnstest.CNAME("alias2.example")},
		"alias2.example":           {dnstest.CNAME("example.org"), dnstest.TTL(7 * time.Second)},
		"sel._domainkey.ex.org":    {dnstest.TXT(strings.Repeat("k", 1000))},
		"*.wild.example":           {dnstest.A("192.0.2.9")},
		"binary.example":           {dnstest.TXT("\x00\xff\"\\\r\n")},
		"dangling.example":         {dnstest.CNAME("nowhere.example")},
		"circle.example":           {dnstest.CNAME("circle.example")},
		"empty.nonterminal.ex.org": {dnstest.A("192.0.2.9")},
		"short.example":            {dnstest.SOA(3 * time.Second)},
	})
	c := client(s)
	const ttl = dnstest.DefaultTTL
	for _, tc := range []struct {
		name string
		typ  mailspine.Type
		want mailspine.Answer
		kind error
	}{
		{"Example.ORG.", mailspine.TypeMX, mailspine.Answer{CanonicalName: "example.org", TTL: ttl, MX: []mailspine.MX{{Preference: 10, Host: "mx.example.org"}, {Preference: 20, Host: "mx2.example.org"}}}, nil},
		{"nomail.example", mailspine.TypeMX, mailspine.Answer{CanonicalName: "nomail.example", TTL: ttl, MX: []mailspine.MX{{}}}, nil},
		{"example.org", mailspine.TypeTXT, mailspine.Answer{CanonicalName: "example.org", TTL: ttl, TXT: []string{"v=spf1 -all"}}, nil},
		{"1.2.0.192.in-addr.arpa", mailspine.TypePTR, mailspine.Answer{CanonicalName: "1.2.0.192.in-addr.arpa", TTL: ttl, Names: []string{"example.org"}}, nil},
		{"_imaps._tcp.example.org", mailspine.TypeSRV, mailspine.Answer{CanonicalName: "_imaps._tcp.example.org", TTL: ttl, SRV: []mailspine.SRV{{Priority: 1, Weight: 2, Port: 993, Target: "imap.example.org"}}}, nil},
		{"_pop3s._tcp.example.org", mailspine.TypeSRV, mailspine.Answer{CanonicalName: "_pop3s._tcp.example.org", TTL: ttl, SRV: []mailspine.SRV{{}}}, nil},
		{"_25._tcp.mx.example.org", mailspine.TypeTLSA, mailspine.Answer{CanonicalName: "_25._tcp.mx.example.org", TTL: ttl, TLSA: []mailspine.TLSA{{Usage: 3, Selector: 1, MatchingType: 1, Data: []byte("0123456789abcdef0123456789abcdef")}}}, nil},
		{"alias.example", mailspine.TypeTXT, mailspine.Answer{CanonicalName: "example.org", TTL: 7 * time.Second, TXT: []string{"v=spf1 -all"}}, nil},
		{"alias.example", mailspine.TypeCNAME, mailspine.Answer{CanonicalName: "alias.example", TTL: ttl, Names: []string{"alias2.example"}}, nil},
		{"sel._domainkey.ex.org", mailspine.TypeTXT, mailspine.Answer{CanonicalName: "sel._domainkey.ex.org", TTL: ttl, TXT: []string{strings.Repeat("k", 1000)}}, nil},
		{"binary.example", mailspine.TypeTXT, mailspine.Answer{CanonicalName: "binary.example", TTL: ttl, TXT: []string{"\x00\xff\"\\\r\n"}}, nil},
		{"nowhere.example", mailspine.TypeA, mailspine.Answer{CanonicalName: "nowhere.example", TTL: ttl}, mailspine.ErrNXDomain},
		{"dangling.example", mailspine.TypeA, mailspine.Answer{CanonicalName: "nowhere.example", TTL: ttl}, mailspine.ErrNXDomain},
		{"nomail.example", mailspine.TypeA, mailspine.Answer{CanonicalName: "nomail.example", TTL: ttl}, mailspine.ErrNoData},
		{"nonterminal.ex.org", mailspine.TypeA, mailspine.Answer{CanonicalName: "nonterminal.ex.org", TTL: ttl}, mailspine.ErrNoData},
		{"short.example", mailspine.TypeA, mailspine.Answer{CanonicalName: "short.example", TTL: 3 * time.Second}, mailspine.ErrNoData},
		{"no.short.example", mailspine.TypeA, mailspine.Answer{CanonicalName: "no.short.example", TTL: 3 * time.Second}, mailspine.ErrNXDomain},
		{"circle.example", mailspine.TypeA, mailspine.Answer{}, mailspine.ErrDNSTemporary},
		{"example.org", mailspine.Type(257), mailspine.Answer{}, mailspine.ErrDNSTemporary},
	} {
		a, err := c.Lookup(t.Context(), tc.name, tc.typ)
		if !errors.Is(err, tc.kind) || (err == nil) != (tc.kind == nil) {
			t.Errorf("%s %s: %v", tc.name, tc.typ, err)
		}
		if d := cmp.Diff(tc.want, a, equate); d != "" {
			t.Errorf("%s %s (-want +got):\n%s", tc.name, tc.typ, d)
		}
		var de *mailspine.DNSError
		if errors.As(err, &de) && (de.Name != tc.name || de.Type != tc.typ) {
			t.Errorf("%s %s: the error is about %s %s", tc.name, tc.typ, de.Name, de.Type)
		}
	}
	if ips, err := mailspine.LookupA(t.Context(), c, "a.b.wild.example"); err != nil || len(ips) != 1 || ips[0].String() != "192.0.2.9" {
		t.Errorf("wildcard: %v, %v", ips, err)
	}
	if ips, err := mailspine.LookupAAAA(t.Context(), c, "example.org"); err != nil || len(ips) != 1 || ips[0].String() != "2001:db8::1" {
		t.Errorf("AAAA: %v, %v", ips, err)
	}
}

// Each fault of dnstest, and what becomes of it.
func TestClientFaults(t *testing.T) {
	for _, c := range []struct {
		name    string
		fault   dnstest.FaultKind
		kind    error // nil: the truth came through
		detail  string
		timeout bool
		tcp     bool
	}{
		{name: "servfail", fault: dnstest.ServFail, kind: mailspine.ErrDNSTemporary, detail: "SERVFAIL"},
		{name: "refused", fault: dnstest.Refused, kind: mailspine.ErrDNSTemporary, detail: "REFUSED"},
		{name: "notimp", fault: dnstest.NotImp, kind: mailspine.ErrDNSTemporary, detail: "FORMERR or NOTIMP"},
		{name: "formerr", fault: dnstest.FormErr},
		{name: "badversion", fault: dnstest.BadVersion},
		{name: "timeout", fault: dnstest.Timeout, kind: mailspine.ErrDNSTemporary, timeout: true},
		{name: "truncate", fault: dnstest.Truncate, tcp: true},
		{name: "truncateall", fault: dnstest.TruncateAll, kind: mailspine.ErrDNSTemporary, detail: "truncated over TCP", tcp: true},
		{name: "garbage", fault: dnstest.Garbage, kind: mailspine.ErrDNSTemporary, timeout: true},
		{name: "cutshort", fault: dnstest.CutShort, kind: mailspine.ErrDNSTemporary, detail: "malformed reply"},
		{name: "wrongid", fault: dnstest.WrongID, kind: mailspine.ErrDNSTemporary, timeout: true},
		{name: "wrongquestion", fault: dnstest.WrongQuestion, kind: mailspine.ErrDNSTemporary, timeout: true},
		{name: "noquestion", fault: dnstest.NoQuestion, kind: mailspine.ErrDNSTemporary, timeout: true},
		{name: "notresponse", fault: dnstest.NotResponse, kind: mailspine.ErrDNSTemporary, timeout: true},
		{name: "spoof", fault: dnstest.Spoof},
		{name: "lame", fault: dnstest.Lame, kind: mailspine.ErrDNSTemporary, detail: "does not resolve"},
		{name: "empty", fault: dnstest.Empty, kind: mailspine.ErrNoData},
		{name: "unrelated", fault: dnstest.Unrelated, kind: mailspine.ErrDNSTemporary, detail: "other names"},
		{name: "loop", fault: dnstest.Loop, kind: mailspine.ErrDNSTemporary, detail: "CNAMEs"},
		{name: "flood", fault: dnstest.Flood, kind: mailspine.ErrDNSTemporary, detail: "more than 1000 records", tcp: true},
		{name: "close", fault: dnstest.Close, kind: mailspine.ErrDNSTemporary, detail: "over TCP", tcp: true},
		{name: "bogus", fault: dnstest.Bogus, kind: mailspine.ErrDNSBogus, detail: "DNSSEC Bogus"},
		{name: "bogusplain", fault: dnstest.BogusPlain, kind: mailspine.ErrDNSTemporary, detail: "SERVFAIL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, dnstest.Zone{"a.example": {c.fault, dnstest.TXT("the truth")}})
			cl := &dns.Client{Servers: []string{s.Addr()}, Timeout: 5 * time.Second}
			if c.timeout {
				cl.Timeout = short
			}
			a, err := cl.Lookup(t.Context(), "a.example", mailspine.TypeTXT)
			if c.kind == nil {
				if err != nil || !slices.Equal(a.TXT, []string{"the truth"}) {
					t.Errorf("got %v, %v", a.TXT, err)
				}
			} else if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.detail) || len(a.TXT) > 0 {
				t.Errorf("got %v, %v", a.TXT, err)
			}
			var de *mailspine.DNSError
			if errors.As(err, &de) {
				if de.Timeout() != c.timeout {
					t.Errorf("Timeout() = %v for %v", de.Timeout(), err)
				}
				if de.Server != s.Addr() {
					t.Errorf("Server is %q", de.Server)
				}
			}
			if st := cl.Stats(); (st.TCP > 0) != c.tcp || st.InFlight != 0 {
				t.Errorf("stats %+v", st)
			}
		})
	}
}

// A validating server without extended errors is found out.
func TestClientBogusWithoutReason(t *testing.T) {
	s := start(t, dnstest.Zone{
		"bogus.example":  {dnstest.BogusPlain, dnstest.A("192.0.2.66")},
		"broken.example": {dnstest.ServFail},
	})
	c := client(s)
	c.Trusted = c.Servers
	if a, err := c.Lookup(t.Context(), "bogus.example", mailspine.TypeA); !errors.Is(err, mailspine.ErrDNSBogus) || a.Addrs != nil {
		t.Errorf("bogus: %v, %v", a, err)
	}
	if _, err := c.Lookup(t.Context(), "broken.example", mailspine.TypeA); !errors.Is(err, mailspine.ErrDNSTemporary) || errors.Is(err, mailspine.ErrDNSBogus) {
		t.Errorf("broken: %v", err)
	}
}

func TestClientTrust(t *testing.T) {
	zone := dnstest.Zone{
		"signed.example":          {dnstest.Signed, dnstest.A("192.0.2.1")},
		"plain.signed.example":    {dnstest.Unsigned, dnstest.A("192.0.2.2")},
		"to-signed.example":       {dnstest.CNAME("signed.example")},
		"alias.signed.example":    {dnstest.CNAME("signed.example")},
		"to-plain.signed.example": {dnstest.CNAME("plain.signed.example")},
	}
	one, two := start(t, zone), start(t, zone)
	for _, c := range []struct {
		name    string
		servers []string
		trusted []string
		want    bool
	}{
		{"signed.example", []string{one.Addr()}, []string{one.Addr()}, true},
		{"signed.example", []string{one.Addr()}, nil, false},
		{"signed.example", []string{one.Addr(), two.Addr()}, []string{two.Addr()}, false},
		{"alias.signed.example", []string{one.Addr()}, []string{one.Addr()}, true},
		{"plain.signed.example", []string{one.Addr()}, []string{one.Addr()}, false},
		{"to-signed.example", []string{one.Addr()}, []string{one.Addr()}, false},
		{"to-plain.signed.example", []string{one.Addr()}, []string{one.Addr()}, false},
		{"no.signed.example", []string{one.Addr()}, []string{one.Addr()}, true}, // a proof of absence
		{"no.signed.example", []string{one.Addr()}, nil, false},
		{"no.example", []string{one.Addr()}, []string{one.Addr()}, false},
	} {
		cl := &dns.Client{Servers: c.servers, Trusted: c.trusted}
		a, err := cl.Lookup(t.Context(), c.name, mailspine.TypeA)
		if err != nil && !mailspine.IsNotFound(err) {
			t.Fatal(err)
		}
		if a.Authentic != c.want {
			t.Errorf("%s from %d servers, %d trusted: Authentic is %v", c.name, len(c.servers), len(c.trusted), a.Authentic)
		}
	}
}

// A server that leaves a chain open is asked on, and one untrue link spoils it.
func TestClientOpenChain(t *testing.T) {
	link := func(ad map[string]bool) func(w mdns.ResponseWriter, q *mdns.Msg) {
		return func(w mdns.ResponseWriter, q *mdns.Msg) {
			m := new(mdns.Msg)
			m.SetReply(q)
			m.Authoritative = true
			name := q.Question[0].Name
			m.AuthenticatedData = ad[name]
			rr := map[string]string{
				"a.example.":     "a.example. 60 IN CNAME b.example.",
				"b.example.":     "b.example. 20 IN CNAME c.example.",
				"c.example.":     "c.example. 40 IN A 192.0.2.3",
				"loop1.example.": "loop1.example. 60 IN CNAME loop2.example.",
				"loop2.example.": "loop2.example. 60 IN CNAME loop1.example.",
			}[name]
			if rr == "" {
				m.Rcode = mdns.RcodeNameError
			} else if r, err := mdns.NewRR(rr); err == nil {
				m.Answer = []mdns.RR{r}
			}
			_ = w.WriteMsg(m)
		}
	}
	for _, c := range []struct {
		ad   map[string]bool
		want bool
	}{
		{map[string]bool{"a.example.": true, "b.example.": true, "c.example.": true}, true},
		{map[string]bool{"a.example.": true, "c.example.": true}, false},
		{map[string]bool{"c.example.": true}, false},
		{map[string]bool{"a.example.": true, "b.example.": true}, false},
	} {
		addr := handle(t, link(c.ad))
		cl := &dns.Client{Servers: []string{addr}, Trusted: []string{addr}}
		a, err := cl.Lookup(t.Context(), "a.example", mailspine.TypeA)
		if err != nil || len(a.Addrs) != 1 || a.CanonicalName != "c.example" || a.TTL != 20*time.Second || a.Authentic != c.want {
			t.Errorf("AD of %v: %+v, %v", c.ad, a, err)
		}
		if _, err := cl.Lookup(t.Context(), "loop1.example", mailspine.TypeA); !errors.Is(err, mailspine.ErrDNSTemporary) || !strings.Contains(err.Error(), "CNAMEs") {
			t.Errorf("a circle over many questions: %v", err)
		}
	}
}

func TestClientServers(t *testing.T) {
	good := start(t, dnstest.Zone{"a.example": {dnstest.A("192.0.2.1")}})
	for _, fault := range []dnstest.FaultKind{dnstest.Timeout, dnstest.ServFail, dnstest.Refused, dnstest.Lame, dnstest.CutShort, dnstest.WrongID, dnstest.Close} {
		bad := start(t, dnstest.Zone{"a.example": {fault, dnstest.A("192.0.2.66")}})
		c := &dns.Client{Servers: []string{bad.Addr(), good.Addr()}, Timeout: short}
		ips, err := mailspine.LookupA(t.Context(), c, "a.example")
		if err != nil || len(ips) != 1 || ips[0].String() != "192.0.2.1" {
			t.Errorf("fault %d: %v, %v", fault, ips, err)
		}
		if n := bad.Count("a.example", mailspine.TypeA); n == 0 {
			t.Errorf("fault %d: the first server was not asked first", fault)
		}
		// Who did not answer is asked last from now on.
		silent := c.Stats().Silent == 1
		if want := fault == dnstest.Timeout || fault == dnstest.WrongID || fault == dnstest.Close; silent != want {
			t.Errorf("fault %d: counted as silent: %v", fault, silent)
		}
		bad.ResetQueries()
		if _, err := mailspine.LookupA(t.Context(), c, "a.example"); err != nil {
			t.Errorf("fault %d: %v", fault, err)
		}
		if n := bad.Count("a.example", mailspine.TypeA); silent && n > 0 {
			t.Errorf("fault %d: the silent server was asked %d times more", fault, n)
		}
	}
}

func TestClientRefusesNames(t *testing.T) {
	s := start(t, dnstest.Zone{})
	c := client(s)
	for _, name := range []string{"", "..", "a..b", ".a", "a b.example", "a\x00.example", "bücher.example", `a\.b`, strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 127) + "a"} {
		_, err := c.Lookup(t.Context(), name, mailspine.TypeMX)
		if !errors.Is(err, mailspine.ErrNXDomain) || !errors.Is(err, dns.ErrBadName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := c.Lookup(t.Context(), "a.example", mailspine.Type(6)); !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, mailspine.ErrDNSTemporary) {
		t.Errorf("SOA: %v", err)
	}
	if q := s.Queries(); len(q) > 0 {
		t.Errorf("asked %v", q)
	}
}

func TestClientConfiguration(t *testing.T) {
	for _, c := range []*dns.Client{
		{Servers: []string{"localhost:53"}},
		{Servers: []string{"192.0.2.1:dns"}},
		{Servers: []string{""}},
		{Servers: []string{"192.0.2.1"}, Trusted: []string{"192.0.2.2"}},
		{Servers: []string{"192.0.2.1"}, Trusted: []string{"x"}},
	} {
		_, err := c.Lookup(t.Context(), "a.example", mailspine.TypeA)
		if !errors.Is(err, mailspine.ErrDNSTemporary) || !strings.Contains(err.Error(), "dns: Client.") {
			t.Errorf("%v, %v: %v", c.Servers, c.Trusted, err)
		}
	}
	var asked []string
	for _, addr := range []string{"192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:53", "::ffff:192.0.2.1"} {
		c := &dns.Client{Servers: []string{addr}, Trusted: []string{addr}, Rounds: 1, Dial: func(_ context.Context, network, address string) (net.Conn, error) {
			asked = append(asked, network+" "+address)
			return nil, errors.New("no network today")
		}}
		if _, err := c.Lookup(t.Context(), "a.example", mailspine.TypeA); !errors.Is(err, mailspine.ErrDNSTemporary) || !strings.Contains(err.Error(), "today") {
			t.Error(err)
		}
	}
	want := []string{"udp 192.0.2.1:53", "udp 192.0.2.1:5353", "udp [2001:db8::1]:53", "udp [2001:db8::1]:53", "udp [2001:db8::1]:53", "udp 192.0.2.1:53"}
	if !slices.Equal(asked, want) {
		t.Errorf("asked %q", asked)
	}
}

func TestClientRandomCase(t *testing.T) {
	s := start(t, dnstest.Zone{"a-long-enough-name.example": {dnstest.A("192.0.2.1")}})
	c := client(s)
	c.RandomCase = true
	for range 20 {
		if _, err := mailspine.LookupA(t.Context(), c, "a-long-enough-name.example"); err != nil {
			t.Fatal(err)
		}
	}
	forms := map[string]bool{}
	for _, q := range s.Queries() {
		forms[q.Name] = true
	}
	if len(forms) < 10 {
		t.Errorf("20 questions in %d forms", len(forms))
	}
}

// A flood of forged replies is left behind by asking over TCP.
func TestClientForgedFlood(t *testing.T) {
	s := start(t, dnstest.Zone{"a.example": {dnstest.A("192.0.2.1")}})
	forger := handle(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		for i := range uint16(40) {
			m := new(mdns.Msg)
			m.SetReply(q)
			m.Id = q.Id + 1 + i
			_ = w.WriteMsg(m)
		}
	})
	c := &dns.Client{Servers: []string{s.Addr()}, Timeout: 5 * time.Second, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if network == "udp" {
			address = forger
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	if _, err := mailspine.LookupA(t.Context(), c, "a.example"); err != nil {
		t.Error(err)
	}
	if st := c.Stats(); st.Forged != 16 || st.TCP != 1 {
		t.Errorf("stats %+v", st)
	}
}

// Over TCP, a reply to something else is not waited out: nobody else can have
// sent it.
func TestClientWrongOverTCP(t *testing.T) {
	udp := start(t, dnstest.Zone{"a.example": {dnstest.Truncate}})
	for _, fault := range []dnstest.FaultKind{dnstest.WrongID, dnstest.WrongQuestion, dnstest.NotResponse, dnstest.NoQuestion, dnstest.Garbage} {
		tcp := start(t, dnstest.Zone{"a.example": {fault, dnstest.A("192.0.2.66")}})
		c := &dns.Client{Servers: []string{udp.Addr()}, Timeout: 5 * time.Second, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if network == "tcp" {
				address = tcp.Addr()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}}
		ips, err := mailspine.LookupA(t.Context(), c, "a.example")
		if !errors.Is(err, mailspine.ErrDNSTemporary) || !strings.Contains(err.Error(), "answers something else") || ips != nil {
			t.Errorf("fault %d: %v, %v", fault, ips, err)
		}
	}
}

// Whatever is in a zone, it is the same in memory and over the wire.
func TestMemoryAndWireAgree(t *testing.T) {
	s := start(t, nil)
	c := client(s)
	c.Trusted = c.Servers
	names := []string{"example", "a.example", "b.a.example", "*.example", "*.a.example", "c.d.e.example", "other", "x.y.other"}
	types := []mailspine.Type{mailspine.TypeA, mailspine.TypeAAAA, mailspine.TypeMX, mailspine.TypeTXT, mailspine.TypePTR, mailspine.TypeSRV, mailspine.TypeTLSA, mailspine.TypeCNAME}
	record := func(t *rapid.T) dnstest.Record {
		host := rapid.SampledFrom(append([]string{"", "missing.example"}, names...)).Draw(t, "host")
		n := rapid.Uint16Max(3).Draw(t, "n")
		switch rapid.IntRange(0, 9).Draw(t, "record") {
		case 0:
			return dnstest.A(fmt.Sprintf("192.0.2.%d", n))
		case 1:
			return dnstest.AAAA(fmt.Sprintf("2001:db8::%d", n))
		case 2:
			return dnstest.MX(n, host)
		case 3:
			return dnstest.TXT(string(rapid.SliceOfN(rapid.Byte(), 0, 600).Draw(t, "text")), "second")
		case 4:
			return dnstest.PTR(host)
		case 5:
			return dnstest.SRV(n, n, n, host)
		case 6:
			return dnstest.TLSA(uint8(n), 1, 1, []byte{byte(n)})
		case 7:
			return rapid.SampledFrom([]dnstest.Record{dnstest.Signed, dnstest.Unsigned}).Draw(t, "mark")
		case 8:
			return dnstest.TTL(time.Duration(n) * time.Minute)
		}
		return dnstest.SOA(time.Duration(n) * time.Minute)
	}
	rapid.Check(t, func(t *rapid.T) {
		for _, q := range append(names, ".") {
			s.Delete(q)
		}
		for _, name := range rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID[string]).Draw(t, "names") {
			if rapid.IntRange(0, 3).Draw(t, "alias") == 0 {
				s.Set(name, dnstest.CNAME(rapid.SampledFrom(append([]string{"missing.example"}, names...)).Draw(t, "target")))
				continue
			}
			s.Set(name, rapid.SliceOfN(rapid.Custom(record), 0, 4).Draw(t, "records")...)
		}
		for _, name := range append([]string{"z.example", "q.z.example", "d.e.example", "no.b.a.example", "nothing"}, names...) {
			typ := rapid.SampledFrom(types).Draw(t, "type")
			a, err := s.Lookup(context.Background(), name, typ)
			b, err2 := c.Lookup(context.Background(), name, typ)
			if d := cmp.Diff(a, b, equate, cmpopts.EquateEmpty()); d != "" {
				t.Fatalf("%s %s (-memory +wire):\n%s", name, typ, d)
			}
			for _, kind := range []error{mailspine.ErrNXDomain, mailspine.ErrNoData, mailspine.ErrDNSTemporary, mailspine.ErrDNSBogus} {
				if errors.Is(err, kind) != errors.Is(err2, kind) {
					t.Fatalf("%s %s: in memory %v, over the wire %v", name, typ, err, err2)
				}
			}
		}
	})
}
