package dnstest_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

func TestZoneCheck(t *testing.T) {
	good := dnstest.Zone{
		"Example.org.": {dnstest.A("192.0.2.1"), dnstest.AAAA("::1"), dnstest.MX(0, "."), dnstest.TXT(""), dnstest.SRV(0, 0, 0, ""), dnstest.NS("ns.example.org"), dnstest.SOA(0)},
		"":             {dnstest.SOA(time.Hour)},
		"*.example":    {dnstest.CNAME("example.org"), dnstest.Signed, dnstest.TTL(0), dnstest.Timeout},
		"nothing":      {},
	}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for about, c := range map[string]struct {
		name string
		recs []dnstest.Record
	}{
		"not an address":           {"a.example", []dnstest.Record{dnstest.A("300.0.0.1")}},
		"IPv6 in A":                {"a.example", []dnstest.Record{dnstest.A("::1")}},
		"IPv4 in AAAA":             {"a.example", []dnstest.Record{dnstest.AAAA("192.0.2.1")}},
		"a zone in AAAA":           {"a.example", []dnstest.Record{dnstest.AAAA("fe80::1%eth0")}},
		"no host":                  {"a.example", []dnstest.Record{dnstest.MX(1, "a..b")}},
		"label of 64":              {"a.example", []dnstest.Record{dnstest.CNAME(strings.Repeat("a", 64))}},
		"no text":                  {"a.example", []dnstest.Record{dnstest.TXT()}},
		"text of 70,000 octets":    {"a.example", []dnstest.Record{dnstest.TXT(strings.Repeat("a", 70_000))}},
		"a negative minimum":       {"a.example", []dnstest.Record{dnstest.SOA(-1)}},
		"a CNAME and others":       {"a.example", []dnstest.Record{dnstest.CNAME("b.example"), dnstest.A("192.0.2.1")}},
		"two CNAMEs":               {"a.example", []dnstest.Record{dnstest.CNAME("b.example"), dnstest.CNAME("c.example")}},
		"a name that cannot exist": {"a..example", []dnstest.Record{dnstest.A("192.0.2.1")}},
	} {
		z := dnstest.Zone{c.name: c.recs}
		if err := z.Check(); err == nil || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%s: %v", about, err)
		}
		if _, err := z.Lookup(t.Context(), c.name, mailspine.TypeA); !errors.Is(err, mailspine.ErrDNSTemporary) {
			t.Errorf("%s: a question gives %v", about, err)
		}
		if s, err := dnstest.Start(z); err == nil {
			s.Close()
			t.Errorf("%s: started", about)
		}
	}
}

func TestZoneLookup(t *testing.T) {
	z := dnstest.Zone{
		"example.org":            {dnstest.A("192.0.2.1"), dnstest.A("192.0.2.2"), dnstest.TTL(time.Minute)},
		"deep.below.example.org": {dnstest.TXT("x")},
		"*.wild.example":         {dnstest.A("192.0.2.3")},
		"is.wild.example":        {dnstest.TXT("x")},
		"sub.ent.wild.example":   {dnstest.TXT("x")},
		"alias.example":          {dnstest.CNAME("Example.ORG"), dnstest.TTL(30 * time.Second)},
		"wildalias.example":      {dnstest.CNAME("any.wild.example")},
		"dangling.example":       {dnstest.CNAME("none.example")},
		"circle.example":         {dnstest.CNAME("circle2.example")},
		"circle2.example":        {dnstest.CNAME("circle.example")},
		"to-broken.example":      {dnstest.CNAME("broken.example")},
		"broken.example":         {dnstest.ServFail},
		"partly.example":         {dnstest.Fault{Kind: dnstest.Refused, Type: mailspine.TypeMX}, dnstest.A("192.0.2.4")},
		"neg.test":               {dnstest.SOA(time.Minute), dnstest.TTL(20 * time.Second)},
		"neg2.test":              {dnstest.SOA(20 * time.Second), dnstest.TTL(time.Minute)},
	}
	for _, c := range []struct {
		name string
		typ  mailspine.Type
		want string // addresses, or text
		kind error
		end  string // CanonicalName
		ttl  time.Duration
	}{
		{"example.org", mailspine.TypeA, "192.0.2.1 192.0.2.2", nil, "example.org", time.Minute},
		{"EXAMPLE.org.", mailspine.TypeA, "192.0.2.1 192.0.2.2", nil, "example.org", time.Minute},
		{"alias.example", mailspine.TypeA, "192.0.2.1 192.0.2.2", nil, "example.org", 30 * time.Second},
		{"example.org", mailspine.TypeMX, "", mailspine.ErrNoData, "example.org", dnstest.DefaultTTL},
		{"below.example.org", mailspine.TypeA, "", mailspine.ErrNoData, "below.example.org", dnstest.DefaultTTL},
		{"org", mailspine.TypeA, "", mailspine.ErrNoData, "org", dnstest.DefaultTTL},
		{"other.example.org", mailspine.TypeA, "", mailspine.ErrNXDomain, "other.example.org", dnstest.DefaultTTL},
		{"com", mailspine.TypeA, "", mailspine.ErrNXDomain, "com", dnstest.DefaultTTL},
		{"a.wild.example", mailspine.TypeA, "192.0.2.3", nil, "a.wild.example", dnstest.DefaultTTL},
		{"a.b.wild.example", mailspine.TypeA, "192.0.2.3", nil, "a.b.wild.example", dnstest.DefaultTTL},
		{"a.wild.example", mailspine.TypeMX, "", mailspine.ErrNoData, "a.wild.example", dnstest.DefaultTTL},
		{"wildalias.example", mailspine.TypeA, "192.0.2.3", nil, "any.wild.example", dnstest.DefaultTTL},
		// RFC 4592 section 2.2.1: names that exist stop the wildcard, and so do those above them.
		{"is.wild.example", mailspine.TypeA, "", mailspine.ErrNoData, "is.wild.example", dnstest.DefaultTTL},
		{"ent.wild.example", mailspine.TypeA, "", mailspine.ErrNoData, "ent.wild.example", dnstest.DefaultTTL},
		{"x.is.wild.example", mailspine.TypeA, "", mailspine.ErrNXDomain, "x.is.wild.example", dnstest.DefaultTTL},
		{"x.ent.wild.example", mailspine.TypeA, "", mailspine.ErrNXDomain, "x.ent.wild.example", dnstest.DefaultTTL},
		{"dangling.example", mailspine.TypeA, "", mailspine.ErrNXDomain, "none.example", dnstest.DefaultTTL},
		{"circle.example", mailspine.TypeA, "", mailspine.ErrDNSTemporary, "", 0},
		{"to-broken.example", mailspine.TypeA, "", mailspine.ErrDNSTemporary, "", 0},
		{"partly.example", mailspine.TypeA, "192.0.2.4", nil, "partly.example", dnstest.DefaultTTL},
		{"partly.example", mailspine.TypeMX, "", mailspine.ErrDNSTemporary, "", 0},
		{"neg.test", mailspine.TypeA, "", mailspine.ErrNoData, "neg.test", 20 * time.Second},
		{"a.b.neg2.test", mailspine.TypeA, "", mailspine.ErrNXDomain, "a.b.neg2.test", 20 * time.Second},
		{"a..b", mailspine.TypeA, "", mailspine.ErrDNSTemporary, "", 0},
		{"example.org", mailspine.Type(2), "", mailspine.ErrNoData, "example.org", dnstest.DefaultTTL},
	} {
		a, err := z.Lookup(t.Context(), c.name, c.typ)
		var got []string
		for _, ip := range a.Addrs {
			got = append(got, ip.String())
		}
		got = append(got, a.TXT...)
		if strings.Join(got, " ") != c.want || (err == nil) != (c.kind == nil) || err != nil && !errors.Is(err, c.kind) || a.CanonicalName != c.end || a.TTL != c.ttl {
			t.Errorf("%s %s: %+v, %v", c.name, c.typ, a, err)
		}
	}
}

func TestSigned(t *testing.T) {
	z := dnstest.Zone{
		"example":              {dnstest.Signed, dnstest.A("192.0.2.1")},
		"a.b.example":          {dnstest.A("192.0.2.1")},
		"plain.example":        {dnstest.Unsigned},
		"a.plain.example":      {dnstest.A("192.0.2.1")},
		"island.plain.example": {dnstest.Signed, dnstest.A("192.0.2.1")},
		"*.w.example":          {dnstest.A("192.0.2.1")},
		"*.u.example":          {dnstest.Unsigned, dnstest.A("192.0.2.1")},
		"out.example":          {dnstest.CNAME("other")},
		"other":                {dnstest.A("192.0.2.1")},
	}
	for name, want := range map[string]bool{
		"example": true, "a.b.example": true, "no.example": true, "b.example": true, "plain.example": false, "a.plain.example": false, "no.plain.example": false,
		"island.plain.example": true, "x.w.example": true, "x.u.example": false, "other": false, "out.example": false, "no": false,
	} {
		a, err := z.Lookup(t.Context(), name, mailspine.TypeA)
		if err != nil && !mailspine.IsNotFound(err) {
			t.Error(err)
		}
		if a.Authentic != want {
			t.Errorf("%s: Authentic is %v", name, a.Authentic)
		}
	}
}

func TestZoneFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := dnstest.Zone{
			"timeout": {dnstest.Timeout}, "bogus": {dnstest.Bogus, dnstest.A("192.0.2.1")}, "bogusplain": {dnstest.BogusPlain}, "garbage": {dnstest.Garbage},
			"trunc": {dnstest.Truncate, dnstest.A("192.0.2.1")}, "spoof": {dnstest.Spoof, dnstest.A("192.0.2.1")},
			"slow":  {dnstest.Fault{Kind: dnstest.Delay, Delay: time.Hour}, dnstest.A("192.0.2.1")},
			"slowf": {dnstest.Fault{Kind: dnstest.ServFail, Delay: time.Hour}},
		}
		for name, kind := range map[string]error{"timeout": mailspine.ErrDNSTemporary, "bogus": mailspine.ErrDNSBogus, "bogusplain": mailspine.ErrDNSBogus,
			"garbage": mailspine.ErrDNSTemporary, "trunc": nil, "spoof": nil, "slow": nil, "slowf": mailspine.ErrDNSTemporary} {
			begin := time.Now()
			a, err := z.Lookup(t.Context(), name, mailspine.TypeA)
			if !errors.Is(err, kind) || (err == nil) != (len(a.Addrs) == 1) {
				t.Errorf("%s: %+v, %v", name, a, err)
			}
			if d := time.Since(begin); (d == time.Hour) != strings.HasPrefix(name, "slow") {
				t.Errorf("%s took %v", name, d)
			}
			var de *mailspine.DNSError
			if errors.As(err, &de) && de.Timeout() != (name == "timeout") {
				t.Errorf("%s: Timeout() is %v", name, de.Timeout())
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := z.Lookup(ctx, "slow", mailspine.TypeA); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, mailspine.ErrDNSTemporary) {
			t.Errorf("got %v", err)
		}
		if _, err := z.Lookup(ctx, "trunc", mailspine.TypeA); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestTXT(t *testing.T) {
	long := strings.Repeat("0123456789", 100)
	z := dnstest.Zone{"a": {dnstest.TXT("one ", "two"), dnstest.TXT(long), dnstest.TXT(""), dnstest.TXT("\x00\\\"\xff")}}
	txt, err := mailspine.LookupTXT(t.Context(), z, "a")
	if err != nil || !slices.Equal(txt, []string{"one two", long, "", "\x00\\\"\xff"}) {
		t.Errorf("%q, %v", txt, err)
	}
}

func TestReverse(t *testing.T) {
	ip := netip.MustParseAddr("2001:db8::25")
	z := dnstest.Zone{mailspine.ReverseName(ip): {dnstest.PTR("mx.example.org")}}
	names, err := mailspine.LookupPTR(t.Context(), z, ip)
	if err != nil || !slices.Equal(names, []string{"mx.example.org"}) {
		t.Errorf("%q, %v", names, err)
	}
}
