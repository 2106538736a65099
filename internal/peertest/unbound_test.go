package peertest

import (
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The resolver validates the zones, and asks nobody for anything else.
func TestUnbound(t *testing.T) {
	u := StartUnbound(t, UnboundConfig{Zones: []*Zone{
		{Name: "example", Records: []string{"a.example. 60 IN A 192.0.2.1", "x.y.example. 60 IN A 192.0.2.2"}},
		{Name: "plain.example", Unsigned: true, Records: []string{"a.plain.example. 60 IN A 192.0.2.3"}},
		{Name: "signed.example", Records: []string{"a.signed.example. 60 IN A 192.0.2.4"}},
		{Name: "broken.example", Records: []string{"a.broken.example. 60 IN A 192.0.2.5"},
			After: func(_ []dns.RR, sig *dns.RRSIG) *dns.RRSIG { return nil }},
	}})
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		ad    bool
	}{
		{"a.example.", dns.TypeA, dns.RcodeSuccess, true},
		{"a.example.", dns.TypeTLSA, dns.RcodeSuccess, true},
		{"y.example.", dns.TypeA, dns.RcodeSuccess, true}, // an empty non-terminal
		{"0.example.", dns.TypeA, dns.RcodeNameError, true},
		{"zz.y.example.", dns.TypeA, dns.RcodeNameError, true},
		{"a.plain.example.", dns.TypeA, dns.RcodeSuccess, false},
		{"b.plain.example.", dns.TypeA, dns.RcodeNameError, false},
		{"a.signed.example.", dns.TypeA, dns.RcodeSuccess, true},
		{"a.broken.example.", dns.TypeA, dns.RcodeServerFailure, false},
		{"example.org.", dns.TypeA, dns.RcodeRefused, false},
		{".", dns.TypeNS, dns.RcodeRefused, false},
	} {
		q := new(dns.Msg)
		q.SetQuestion(c.name, c.qtype)
		q.AuthenticatedData = true
		client := dns.Client{Timeout: 10 * time.Second}
		m, _, err := client.Exchange(q, u.Addr)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if m.Rcode != c.rcode || m.AuthenticatedData != c.ad {
			t.Errorf("%s %s: %s, AD %v; want %s, %v", c.name, dns.TypeToString[c.qtype], dns.RcodeToString[m.Rcode], m.AuthenticatedData,
				dns.RcodeToString[c.rcode], c.ad)
		}
	}
}
