package dane

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

func TestCheck(t *testing.T) {
	p, next := newPKI(t), newPKI(t)
	chain := chainOf(p.leaf, p.middle, p.root)
	ending := chainOf(issue(t, p.middle, "mx.example.org", func(c *x509.Certificate) { c.NotAfter = now.Add(7 * 24 * time.Hour) }), p.middle)
	rec := func(c *issued, u, s, m uint8) dnstest.Record {
		return dnstest.TLSA(u, s, m, Record(c.Certificate, u, s, m).Data)
	}
	advice := Format("mx.example.org", 25, Record(p.leaf.Certificate, 3, 1, 1))
	zone := func(host []dnstest.Record, tlsa ...dnstest.Record) dnstest.Zone {
		z := dnstest.Zone{"example.org": {dnstest.Signed}, "mx.example.org": append(host, dnstest.A("192.0.2.1"))}
		if tlsa != nil {
			z["_25._tcp.mx.example.org"] = tlsa
		}
		return z
	}
	many := make([]dnstest.Record, 50)
	for i := range many {
		many[i] = dnstest.TLSA(0, 1, 1, []byte{byte(i), 31: 0})
	}
	for _, c := range []struct {
		about string
		zone  dnstest.Zone
		chain []*x509.Certificate
		probe error
		want  string   // codes with their levels
		texts []string // that must be somewhere
	}{
		{"as it should be", zone(nil, rec(p.leaf, 3, 1, 1), rec(next.leaf, 3, 1, 1)), chain, nil, "note ok, note unused", nil},
		{"no next key", zone(nil, rec(p.leaf, 3, 1, 1)), chain, nil, "note ok, note rollover", nil},
		{"an authority needs none", zone(nil, rec(p.root, 2, 1, 1)), chain, nil, "note ok", nil},
		{"an authority, but the chain ends soon", zone(nil, rec(p.middle, 2, 1, 1)), ending, nil, "note ok, warning expiring", []string{"within two weeks"}},
		{"dates do not matter with usage 3", zone(nil, dnstest.TLSA(3, 1, 1, Record(ending[0], 3, 1, 1).Data)), ending, nil, "note ok, note rollover", nil},
		{"nothing", zone(nil), chain, nil, "warning absent", []string{advice}},
		{"nothing, and nothing to see", zone(nil), nil, errors.New("refused"), "warning probe, warning absent", []string{"refused"}},
		{"not signed", zone([]dnstest.Record{dnstest.Unsigned}), chain, nil, "warning insecure", []string{advice}},
		{"records not signed", zone(nil, dnstest.Unsigned, rec(p.leaf, 3, 1, 1)), chain, nil, "warning insecure", []string{"1 TLSA records"}},
		{"another key", zone(nil, rec(next.leaf, 3, 1, 1)), chain, nil, "problem mismatch", []string{advice, "no record matches"}},
		{"hidden by a stronger digest", zone(nil, rec(p.leaf, 3, 1, 1), rec(next.leaf, 3, 1, 2)), chain, nil, "note ignored, problem mismatch", []string{"would match"}},
		{"wrong name", zone(nil, rec(p.root, 2, 0, 1)), chainOf(issue(t, p.middle, "mail.example.org", nil), p.middle, p.root), nil, "problem mismatch", []string{"another host"}},
		{"bogus", zone(nil, dnstest.Bogus), chain, nil, "problem lookup", nil},
		{"only PKIX", zone(nil, rec(p.leaf, 1, 1, 1)), chain, nil, "warning unusable, problem unusable", nil},
		{"PKIX beside", zone(nil, rec(p.leaf, 1, 1, 1), rec(p.leaf, 3, 1, 1), rec(next.leaf, 3, 1, 1)), chain, nil, "warning unusable, note ok, note unused", nil},
		{"whole certificate", zone(nil, rec(p.leaf, 3, 0, 1), rec(next.leaf, 3, 1, 1)), chain, nil, "note fragile, note ok, note unused", nil},
		{"no certificate", zone(nil, rec(p.leaf, 3, 1, 1)), nil, nil, "warning probe", nil},
		{"many", zone(nil, many...), chain, nil, strings.Repeat("warning unusable, ", 21) + "problem unusable", []string{"30 more"}},
	} {
		probe := func(_ context.Context, host string) ([]*x509.Certificate, error) {
			if host != "mx.example.org" {
				t.Errorf("%s: asked for %q", c.about, host)
			}
			return c.chain, c.probe
		}
		found := Check(t.Context(), c.zone, []string{"mx.example.org"}, 25, probe)
		var got, all []string
		for _, f := range found {
			if f.Host != "mx.example.org" || f.Text == "" {
				t.Errorf("%s: %+v", c.about, f)
			}
			got = append(got, f.Level.String()+" "+f.Code)
			all = append(all, f.String())
		}
		text := strings.Join(all, "\n")
		if g := strings.Join(got, ", "); g != c.want {
			t.Errorf("%s: %s, want %s\n%s", c.about, g, c.want, text)
		}
		for _, s := range c.texts {
			if !strings.Contains(text, s) {
				t.Errorf("%s: %q is not in\n%s", c.about, s, text)
			}
		}
	}
}

func TestCheckHosts(t *testing.T) {
	p := newPKI(t)
	z := dnstest.Zone{
		"example.org":            {dnstest.Signed},
		"a.example.org":          {dnstest.A("192.0.2.1")},
		"_25._tcp.a.example.org": {dnstest.TLSA(3, 1, 1, Record(p.leaf.Certificate, 3, 1, 1).Data)},
		"b.example.org":          {dnstest.A("192.0.2.2")},
		"c.example.org":          {dnstest.CNAME("a.example.org")},
	}
	// Without a probe, the records alone. An alias is shown the name of its base.
	found := Check(t.Context(), z, []string{"a.example.org", "b.example.org", "[192.0.2.1]", ""}, 0, nil)
	var got []string
	for _, f := range found {
		got = append(got, f.Host+" "+f.Code)
	}
	if s := strings.Join(got, ", "); s != "b.example.org absent, [192.0.2.1] insecure,  insecure" {
		t.Errorf("found %s", s)
	}
	sni := ""
	found = Check(t.Context(), z, []string{"c.example.org"}, 0, func(_ context.Context, host string) ([]*x509.Certificate, error) {
		sni = host
		return chainOf(p.leaf), nil
	})
	if sni != "a.example.org" || len(found) == 0 || found[0].Code != CodeOK {
		t.Errorf("asked for %q: %v", sni, found)
	}
	if found = Check(t.Context(), nil, []string{"a.example.org"}, 25, nil); len(found) != 1 || found[0].Code != CodeLookup {
		t.Errorf("no resolver: %v", found)
	}
	var r mailspine.Resolver = z
	if found = Check(t.Context(), r, nil, 25, nil); found != nil {
		t.Errorf("no hosts: %v", found)
	}
}
