package mta_test

import (
	"context"
	"fmt"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/mta"
)

// Where would mail for a domain go, and why not elsewhere?
func ExampleRelay_Explain() {
	relay := &mta.Relay{
		Hostname: "out.example.net",
		Resolver: dnstest.Zone{
			"example.org":         {dnstest.MX(10, "mx1.example.org"), dnstest.MX(20, "mx2.example.org"), dnstest.MX(30, "out.example.net")},
			"mx1.example.org":     {dnstest.A("8.8.8.25"), dnstest.AAAA("2600::25")},
			"mx2.example.org":     {dnstest.A("10.0.0.25")},
			"nothing.example.org": {dnstest.MX(0, ".")},
		},
	}
	for _, domain := range []string{"example.org", "nothing.example.org"} {
		plan, err := relay.Explain(context.Background(), domain)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Print(plan)
	}
	// Output:
	// example.org: found by mx, site mx1.example.org~0a8d8f187a03a1f8
	//      10 mx1.example.org
	//         TLS opportunistic (no DANE: the mail exchangers are not secured by DNSSEC)
	//         1.    8.8.8.25:25
	//         2.    [2600::25]:25
	//      20 mx2.example.org
	//         TLS opportunistic (no DANE: the mail exchangers are not secured by DNSSEC)
	//         never 10.0.0.25:25
	//               10.0.0.25 is not allowed: 10.0.0.0/8, private use (RFC 1918)
	//      30 out.example.net: not used: this host itself
	//   site: 5 deliveries at a time; now 0, and 0 waiting, over 0 connections
	//   at most 6 addresses are tried in one delivery
	// nothing.example.org: found by mx
	//   nothing is sent: 556 5.1.10 The domain nothing.example.org takes no mail (null MX)
}
