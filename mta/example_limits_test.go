package mta_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/mta"
)

// How is a Relay kept from doing too much to one site at once, and what does a delivery come to that is too much? Here a site has
// one place, taken by a delivery whose server does not answer, and nobody waits.
func ExampleRelay_limits() {
	called, end := make(chan bool), make(chan bool)
	relay := &mta.Relay{
		Hostname: "out.example.org",
		Resolver: dnstest.New(dnstest.Zone{
			"example.com":    {dnstest.MX(10, "mx.example.com")},
			"mx.example.com": {dnstest.A("192.0.2.1")},
		}),
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, // for the example
		Limits:       mta.SiteLimits{Max: 1, Wait: -1},
		Dial: func(context.Context, string, string) (net.Conn, error) {
			called <- true
			<-end
			return nil, errors.New("no network")
		},
	}
	bob, _ := mailspine.ParseAddress("bob@example.com")
	env := &mailspine.Envelope{ID: "1", Recipients: []mailspine.Recipient{{Address: bob}}}
	first := make(chan error)
	go func() {
		first <- relay.Deliver(context.Background(), env, mailspine.StringContent("Subject: one\r\n\r\n"))
	}()
	<-called

	err := relay.Deliver(context.Background(), env, mailspine.StringContent("Subject: two\r\n\r\n"))
	var later *mailspine.NotNow
	if errors.As(err, &later) {
		fmt.Println(later.Rule, "-", later.Reason)
	}
	for _, s := range relay.Sites() {
		fmt.Printf("%s: %d of %d places taken\n", s.Site, s.Busy, s.Window)
	}
	close(end)
	fmt.Println(mailspine.Status(<-first).Reply())
	// Output:
	// site/concurrency - 1 of 1 places at mx.example.com are taken
	// mx.example.com: 1 of 1 places taken
	// 451 4.4.1 mx.example.com[192.0.2.1]: connection failed
}
