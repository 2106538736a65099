package mta_test

import (
	"context"
	"fmt"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/mta"
)

// Two domains with the mail exchangers of one provider are one site: with BySite a queue whose Router and Gate is the Relay leases, limits and
// delivers them together.
func ExampleRelay_Route() {
	relay := &mta.Relay{
		BySite: true,
		Resolver: dnstest.Zone{
			"one.example":   {dnstest.MX(10, "a.mail.provider.example"), dnstest.MX(20, "b.mail.provider.example")},
			"two.example":   {dnstest.MX(1, "a.mail.provider.example"), dnstest.MX(5, "b.mail.provider.example")},
			"three.example": {dnstest.MX(10, "mail.three.example")},
			"four.example":  {dnstest.A("192.0.2.4")},
		},
	}
	for _, to := range []string{"ann@one.example", "bob@two.example", "eve@three.example", "joe@four.example", "zoe@five.example"} {
		addr, err := mailspine.ParseAddress(to)
		if err != nil {
			fmt.Println(err)
			return
		}
		route, err := relay.Route(context.Background(), &mailspine.Envelope{}, mailspine.Recipient{Address: addr})
		fmt.Println(to, route, err)
	}
	// Output:
	// ann@one.example mail.provider.example~d267f6ac34e208d2 <nil>
	// bob@two.example mail.provider.example~d267f6ac34e208d2 <nil>
	// eve@three.example mail.three.example <nil>
	// joe@four.example four.example <nil>
	// zoe@five.example five.example <nil>
}
