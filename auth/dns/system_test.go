package dns_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// system returns the adapter over a net.Resolver that asks s.
func system(s *dnstest.Server) *dns.System {
	return &dns.System{Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, s.Addr())
	}}}
}

func TestSystem(t *testing.T) {
	s := start(t, dnstest.Zone{
		"example.org":             {dnstest.Signed, dnstest.MX(10, "mx.example.org"), dnstest.TXT("v=spf1", " -all"), dnstest.A("192.0.2.1"), dnstest.AAAA("2001:db8::1")},
		"nomail.example":          {dnstest.MX(0, "")},
		"1.2.0.192.in-addr.arpa":  {dnstest.PTR("example.org")},
		"_imaps._tcp.example.org": {dnstest.SRV(1, 2, 993, "imap.example.org")},
		"alias.example":           {dnstest.CNAME("example.org")},
		"broken.example":          {dnstest.ServFail},
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa": {dnstest.PTR("six.example.org")},
	})
	r := system(s)
	for _, c := range []struct {
		name string
		typ  mailspine.Type
		want mailspine.Answer
		kind error
	}{
		{"example.org.", mailspine.TypeMX, mailspine.Answer{CanonicalName: "example.org", MX: []mailspine.MX{{Preference: 10, Host: "mx.example.org"}}}, nil},
		{"nomail.example", mailspine.TypeMX, mailspine.Answer{CanonicalName: "nomail.example", MX: []mailspine.MX{{}}}, nil},
		{"Example.org", mailspine.TypeTXT, mailspine.Answer{CanonicalName: "example.org", TXT: []string{"v=spf1 -all"}}, nil},
		{"1.2.0.192.in-addr.arpa", mailspine.TypePTR, mailspine.Answer{CanonicalName: "1.2.0.192.in-addr.arpa", Names: []string{"example.org"}}, nil},
		{"_imaps._tcp.example.org", mailspine.TypeSRV, mailspine.Answer{CanonicalName: "_imaps._tcp.example.org", SRV: []mailspine.SRV{{Priority: 1, Weight: 2, Port: 993, Target: "imap.example.org"}}}, nil},
		{"alias.example", mailspine.TypeCNAME, mailspine.Answer{CanonicalName: "alias.example", Names: []string{"example.org"}}, nil},
		{"example.org", mailspine.TypeCNAME, mailspine.Answer{CanonicalName: "example.org"}, mailspine.ErrNoData},
		{"no.example.org", mailspine.TypeTXT, mailspine.Answer{CanonicalName: "no.example.org"}, mailspine.ErrNoData}, // cannot tell
		{"nomail.example", mailspine.TypeA, mailspine.Answer{CanonicalName: "nomail.example"}, mailspine.ErrNoData},
		{"broken.example", mailspine.TypeTXT, mailspine.Answer{}, mailspine.ErrDNSTemporary},
		{"example.org", mailspine.TypeTLSA, mailspine.Answer{}, mailspine.ErrDNSTemporary},
		{"not-an-address.example", mailspine.TypePTR, mailspine.Answer{}, mailspine.ErrDNSTemporary},
		{"a..b", mailspine.TypeA, mailspine.Answer{}, mailspine.ErrNXDomain},
	} {
		a, err := r.Lookup(t.Context(), c.name, c.typ)
		if (err == nil) != (c.kind == nil) || err != nil && !errors.Is(err, c.kind) {
			t.Errorf("%s %s: %v", c.name, c.typ, err)
		}
		if d := cmp.Diff(c.want, a, equate, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s %s (-want +got):\n%s", c.name, c.typ, d)
		}
	}
	if ips, err := mailspine.LookupA(t.Context(), r, "example.org"); err != nil || len(ips) != 1 || ips[0].String() != "192.0.2.1" {
		t.Errorf("A: %v, %v", ips, err)
	}
	if ips, err := mailspine.LookupAAAA(t.Context(), r, "example.org"); err != nil || len(ips) != 1 || ips[0].String() != "2001:db8::1" {
		t.Errorf("AAAA: %v, %v", ips, err)
	}
	name := "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
	if a, err := r.Lookup(t.Context(), name, mailspine.TypePTR); err != nil || !slices.Equal(a.Names, []string{"six.example.org"}) {
		t.Errorf("PTR over IPv6: %v, %v", a.Names, err)
	}
	if _, err := r.Lookup(t.Context(), "example.org", mailspine.TypeTLSA); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("TLSA: %v", err)
	}
	for _, name := range []string{"2.0.192.in-addr.arpa", "1.2.3.256.in-addr.arpa", "x" + name[1:], name[:62] + "x.ip6.arpa", "1x0" + name[3:]} {
		if _, err := r.Lookup(t.Context(), name, mailspine.TypePTR); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("PTR of %s: %v", name, err)
		}
	}
}

func TestSystemTime(t *testing.T) {
	s := start(t, dnstest.Zone{"silent.example": {dnstest.Timeout}})
	r := system(s)
	r.Timeout = short
	_, err := r.Lookup(t.Context(), "silent.example", mailspine.TypeMX)
	var de *mailspine.DNSError
	if !errors.As(err, &de) || de.Kind != mailspine.ErrDNSTemporary || !de.Timeout() {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	r.Timeout = time.Minute
	if _, err := r.Lookup(ctx, "silent.example", mailspine.TypeMX); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, mailspine.ErrDNSTemporary) {
		t.Errorf("got %v", err)
	}
}
