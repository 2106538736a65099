package mta_test

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/auth/tlsrpt"
	"github.com/mailspine/mailspine/mta"
)

// A Relay that obeys what domains publish about TLS: DANE where the resolver's answers are authentic, then MTA-STS. The outcomes
// are counted for the reports that the domains ask for. Explain tells what holds for a domain and why.
func ExampleRelay_policies() {
	key := sha256.Sum256([]byte("the public key of the server"))
	zone := dnstest.Zone{ // in a program: a dns.Client with Trusted servers, behind a dns.Cache
		"secure.example":             {dnstest.Signed, dnstest.MX(10, "mx.secure.example")},
		"mx.secure.example":          {dnstest.A("192.0.2.1")},
		"_25._tcp.mx.secure.example": {dnstest.TLSA(3, 1, 1, key[:])},
		"plain.example":              {dnstest.MX(10, "mx.plain.example")},
		"mx.plain.example":           {dnstest.A("192.0.2.2")},
	}
	relay := &mta.Relay{
		Resolver:   zone,
		Hostname:   "out.example.org",
		MTASTS:     &mtasts.Cache{Fetcher: &mtasts.Fetcher{Resolver: zone}},
		TLSReports: &tlsrpt.Collector{}, // a tlsrpt.Reporter sends what it counts
		// A partner's certificate is verified though he publishes nothing.
		TLSPolicy: mta.TLSRules{"partner.example": {Level: mta.TLSVerify}},
	}
	for _, domain := range []string{"secure.example", "plain.example"} {
		plan, err := relay.Explain(context.Background(), domain)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s: %s\n", plan.Hosts[0].Name, plan.Hosts[0].TLS)
	}
	// Output:
	// mx.secure.example: DANE: 1 usable TLSA record at _25._tcp.mx.secure.example; the certificate need not name the host
	// mx.plain.example: opportunistic (no DANE: the mail exchangers are not secured by DNSSEC, no MTA-STS)
}
