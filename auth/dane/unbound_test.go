package dane

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/internal/peertest"
)

// zones are signed and served for a real validating resolver. The zone "example" is trusted, and delegates to the others.
func zones(rec mailspine.TLSA) []*peertest.Zone {
	tlsa := func(host string) string { return strings.Replace(Format(host, 25, rec), " IN", " 300 IN", 1) }
	// spoilt changes the signatures of one type at names that begin with a label.
	spoilt := func(label string, t uint16, sig *mdns.RRSIG) bool {
		return sig.TypeCovered == t && strings.Contains(sig.Hdr.Name, label+".")
	}
	signed := &peertest.Zone{Name: "signed.example", Records: []string{
		"signed.example. 600 IN MX 10 mx.signed.example.",
		"mx.signed.example. 600 IN A 192.0.2.1",
		"mx.signed.example. 600 IN AAAA 2001:db8::1",
		tlsa("mx.signed.example"),
		"six.signed.example. 600 IN AAAA 2001:db8::2",
		tlsa("six.signed.example"),
		"none.signed.example. 600 IN A 192.0.2.2",
		"nodata.signed.example. 600 IN A 192.0.2.3",
		"_25._tcp.nodata.signed.example. 600 IN TXT \"no TLSA\"",
		"pkix.signed.example. 600 IN A 192.0.2.3",
		strings.Replace(tlsa("pkix.signed.example"), "TLSA 3", "TLSA 1", 1),
		"alias.signed.example. 600 IN CNAME mx.signed.example.",
		"alias2.signed.example. 600 IN CNAME none.signed.example.",
		tlsa("alias2.signed.example"),
		"out.signed.example. 600 IN CNAME host.plain.example.",
		tlsa("out.signed.example"),
		"out2.signed.example. 600 IN CNAME host.plain.example.",
		"to.signed.example. 600 IN A 192.0.2.4",
		"_25._tcp.to.signed.example. 600 IN CNAME _25._tcp.host.plain.example.",
		"tampered.signed.example. 600 IN A 192.0.2.5",
		tlsa("tampered.signed.example"),
		"expired.signed.example. 600 IN A 192.0.2.6",
		tlsa("expired.signed.example"),
		"future.signed.example. 600 IN A 192.0.2.6",
		tlsa("future.signed.example"),
		"bare.signed.example. 600 IN A 192.0.2.7",
		tlsa("bare.signed.example"),
		"badaddr.signed.example. 600 IN A 192.0.2.8",
		tlsa("badaddr.signed.example"),
		"badalias.signed.example. 600 IN CNAME mx.signed.example.",
	}}
	signed.Before = func(set []mdns.RR, sig *mdns.RRSIG) {
		now := time.Now()
		switch sig.TypeCovered = set[0].Header().Rrtype; {
		case spoilt("expired", mdns.TypeTLSA, sig):
			sig.Inception, sig.Expiration = uint32(now.Add(-48*time.Hour).Unix()), uint32(now.Add(-24*time.Hour).Unix())
		case spoilt("future", mdns.TypeTLSA, sig):
			sig.Inception, sig.Expiration = uint32(now.Add(24*time.Hour).Unix()), uint32(now.Add(48*time.Hour).Unix())
		}
	}
	signed.After = func(_ []mdns.RR, sig *mdns.RRSIG) *mdns.RRSIG {
		switch {
		case spoilt("bare", mdns.TypeTLSA, sig):
			return nil
		case spoilt("tampered", mdns.TypeTLSA, sig), spoilt("badaddr", mdns.TypeA, sig), spoilt("badalias", mdns.TypeCNAME, sig):
			sig.Signature = strings.Repeat("A", 40) + sig.Signature[40:] // 30 octets of zeros in base64
		}
		return sig
	}
	// A zone of which somebody holds back the records, and cannot prove that there are none.
	stripped := &peertest.Zone{Name: "stripped.example", Records: []string{"mx.stripped.example. 600 IN A 192.0.2.9"},
		After: func(_ []mdns.RR, sig *mdns.RRSIG) *mdns.RRSIG {
			if sig.TypeCovered == mdns.TypeNSEC {
				return nil
			}
			return sig
		}}
	// A zone whose signatures are of another key than the one that its parent knows.
	forged := &peertest.Zone{Name: "forged.example", Records: []string{"mx.forged.example. 600 IN A 192.0.2.10", tlsa("mx.forged.example")},
		After: func(_ []mdns.RR, sig *mdns.RRSIG) *mdns.RRSIG { sig.KeyTag++; return sig }}
	plain := &peertest.Zone{Name: "plain.example", Unsigned: true, Records: []string{
		"plain.example. 600 IN MX 10 host.plain.example.",
		"host.plain.example. 600 IN A 192.0.2.11",
		tlsa("host.plain.example"),
		"in.plain.example. 600 IN CNAME mx.signed.example.",
		tlsa("in.plain.example"),
	}}
	return []*peertest.Zone{{Name: "example"}, signed, stripped, forged, plain}
}

// DANE over real DNSSEC: zones signed here, validated by unbound, asked through the client and the cache of auth/dns.
func TestLookupUnbound(t *testing.T) {
	p := newPKI(t)
	rec := Record(p.leaf.Certificate, UsageEE, SelectorSPKI, MatchSHA256)
	for _, plainErrors := range []bool{false, true} {
		name := map[bool]string{false: "extended errors", true: "plain SERVFAIL"}[plainErrors]
		t.Run(name, func(t *testing.T) {
			u := peertest.StartUnbound(t, peertest.UnboundConfig{Zones: zones(rec), NoExtendedErrors: plainErrors})
			r := &dns.Cache{Resolver: &dns.Client{Servers: []string{u.Addr}, Trusted: []string{u.Addr}, Timeout: 10 * time.Second, Total: 30 * time.Second}}
			for domain, want := range map[string]bool{"signed.example": true, "plain.example": false} {
				if a, err := r.Lookup(t.Context(), domain, mailspine.TypeMX); err != nil || a.Authentic != want {
					t.Errorf("MX of %s: authentic %v, %v; want %v", domain, a.Authentic, err, want)
				}
			}
			for range 2 { // the second time from the cache
				lookupUnbound(t, r, p)
			}
			// The same server, not listed as trusted.
			untrusted := &dns.Client{Servers: []string{u.Addr}, Timeout: 10 * time.Second}
			for _, host := range []string{"mx.signed.example", "out.signed.example", "host.plain.example"} {
				if recs, err := Lookup(t.Context(), untrusted, host, 25); err != nil || recs.All != nil || recs.Secure {
					t.Errorf("%s from a server that is not trusted: %+v, %v", host, recs, err)
				}
			}
		})
	}
}

func lookupUnbound(t *testing.T, r mailspine.Resolver, p pki) {
	t.Helper()
	for _, c := range []struct {
		host   string
		base   string // "": no records
		usable bool
		secure bool
		err    error
	}{
		{host: "mx.signed.example", base: "mx.signed.example", usable: true, secure: true},
		{host: "six.signed.example", base: "six.signed.example", usable: true, secure: true},
		{host: "none.signed.example", secure: true},   // NXDOMAIN, proven
		{host: "nodata.signed.example", secure: true}, // NODATA, proven
		{host: "pkix.signed.example", base: "pkix.signed.example", secure: true},
		{host: "gone.signed.example"},
		{host: "alias.signed.example", base: "mx.signed.example", usable: true, secure: true},
		{host: "alias2.signed.example", base: "alias2.signed.example", usable: true, secure: true},
		{host: "out.signed.example", base: "out.signed.example", usable: true, secure: true},
		{host: "out2.signed.example", secure: true},
		{host: "to.signed.example", secure: true}, // the records themselves lead out of what is signed
		{host: "host.plain.example"},
		{host: "in.plain.example"},
		{host: "tampered.signed.example", err: mailspine.ErrDNSBogus},
		{host: "expired.signed.example", err: mailspine.ErrDNSBogus},
		{host: "future.signed.example", err: mailspine.ErrDNSBogus},
		{host: "bare.signed.example", err: mailspine.ErrDNSBogus},
		{host: "badaddr.signed.example", err: mailspine.ErrDNSBogus},
		{host: "badalias.signed.example", err: mailspine.ErrDNSBogus},
		{host: "mx.stripped.example", err: mailspine.ErrDNSBogus},
		{host: "mx.forged.example", err: mailspine.ErrDNSBogus},
		{host: "mx.elsewhere.org", err: mailspine.ErrDNSTemporary}, // REFUSED: the resolver knows nothing else
	} {
		recs, err := Lookup(t.Context(), r, c.host, 25)
		if c.err != nil {
			if !errors.Is(err, c.err) || recs.All != nil {
				t.Errorf("%s: %+v, %v; want %v", c.host, recs, err, c.err)
			}
			if s := mailspine.Status(err); s.Code != 451 {
				t.Errorf("%s: %v does not defer", c.host, s)
			}
			continue
		}
		if err != nil || recs.Base != c.base || (len(recs.Usable) > 0) != c.usable || (len(recs.All) > 0) != (c.base != "") || recs.Secure != c.secure {
			t.Errorf("%s: %+v, %v; want base %q, usable %v, secure %v", c.host, recs, err, c.base, c.usable, c.secure)
			continue
		}
		if c.usable {
			if _, err := Verify(recs.Usable, chainOf(p.leaf), recs.Names, now); err != nil {
				t.Errorf("%s: %v", c.host, err)
			}
			if !slices.Contains(recs.Names, c.host) || recs.TTL <= 0 || recs.TTL > 10*time.Minute {
				t.Errorf("%s: names %q, TTL %v", c.host, recs.Names, recs.TTL)
			}
		}
	}
}
