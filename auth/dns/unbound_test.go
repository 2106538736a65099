package dns_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/internal/peertest"
)

// A real validating resolver, over zones signed here: what is secure, what is not, what is forged, and that the client
// tells them apart whether the resolver gives the reason of a failure or not.
func TestClientUnbound(t *testing.T) {
	zones := func() []*peertest.Zone {
		many := []string{"example. 60 IN MX 10 mx.example.", "a.example. 60 IN A 192.0.2.1", "alias.example. 60 IN CNAME a.example.",
			"out.example. 60 IN CNAME a.plain.example."}
		for i := range 60 { // more than a datagram holds
			many = append(many, fmt.Sprintf("_25._tcp.many.example. 60 IN TLSA 3 1 1 %s%02d", strings.Repeat("0", 62), i))
		}
		return []*peertest.Zone{
			{Name: "example", Records: many},
			{Name: "plain.example", Unsigned: true, Records: []string{"a.plain.example. 60 IN A 192.0.2.2", "in.plain.example. 60 IN CNAME a.example."}},
			{Name: "expired.example", Records: []string{"a.expired.example. 60 IN A 192.0.2.3"}, Before: func(set []mdns.RR, sig *mdns.RRSIG) {
				if set[0].Header().Rrtype != mdns.TypeDNSKEY {
					sig.Inception, sig.Expiration = uint32(time.Now().Add(-48*time.Hour).Unix()), uint32(time.Now().Add(-24*time.Hour).Unix())
				}
			}},
			{Name: "keyless.example", Records: []string{"a.keyless.example. 60 IN A 192.0.2.4"}, After: func(set []mdns.RR, sig *mdns.RRSIG) *mdns.RRSIG {
				if set[0].Header().Rrtype == mdns.TypeDNSKEY {
					return nil
				}
				return sig
			}},
		}
	}
	for _, plain := range []bool{false, true} {
		u := peertest.StartUnbound(t, peertest.UnboundConfig{Zones: zones(), NoExtendedErrors: plain})
		for _, c := range []struct {
			name      string
			typ       mailspine.Type
			kind      error // nil: there are records
			authentic bool
		}{
			{"example", mailspine.TypeMX, nil, true},
			{"a.example", mailspine.TypeA, nil, true},
			{"alias.example", mailspine.TypeA, nil, true},
			{"alias.example", mailspine.TypeCNAME, nil, true},
			{"a.example", mailspine.TypeTLSA, mailspine.ErrNoData, true},
			{"none.example", mailspine.TypeA, mailspine.ErrNXDomain, true},
			{"_25._tcp.many.example", mailspine.TypeTLSA, nil, true},
			{"a.plain.example", mailspine.TypeA, nil, false},
			{"none.plain.example", mailspine.TypeA, mailspine.ErrNXDomain, false},
			{"out.example", mailspine.TypeA, nil, false},
			{"out.example", mailspine.TypeCNAME, nil, true},
			{"in.plain.example", mailspine.TypeA, nil, false},
			{"a.expired.example", mailspine.TypeA, mailspine.ErrDNSBogus, false},
			{"none.expired.example", mailspine.TypeA, mailspine.ErrDNSBogus, false},
			{"a.keyless.example", mailspine.TypeA, mailspine.ErrDNSBogus, false},
			{"example.org", mailspine.TypeA, mailspine.ErrDNSTemporary, false}, // REFUSED
		} {
			for _, trust := range []bool{true, false} {
				client := &dns.Client{Servers: []string{u.Addr}, Timeout: 10 * time.Second, Total: 30 * time.Second}
				if trust {
					client.Trusted = client.Servers
				}
				a, err := client.Lookup(t.Context(), c.name, c.typ)
				want := c.kind
				if !trust && plain && want == mailspine.ErrDNSBogus {
					want = mailspine.ErrDNSTemporary // a SERVFAIL like any other
				}
				if !errors.Is(err, want) {
					t.Errorf("extended errors %v, trusted %v: %s %s: %v, want %v", !plain, trust, c.name, c.typ, err, want)
				}
				if a.Authentic != (c.authentic && trust) {
					t.Errorf("extended errors %v, trusted %v: %s %s: Authentic is %v", !plain, trust, c.name, c.typ, a.Authentic)
				}
				if c.name == "_25._tcp.many.example" && (len(a.TLSA) != 60 || client.Stats().TCP == 0) {
					t.Errorf("%d records, %d questions over TCP", len(a.TLSA), client.Stats().TCP)
				}
			}
		}
	}
}
