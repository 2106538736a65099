package dnstest_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// A zone in memory is a Resolver.
func ExampleZone() {
	ctx := context.Background()
	zone := dnstest.Zone{
		"example.org":    {dnstest.MX(10, "mx.example.org"), dnstest.TXT("v=spf1 mx -all")},
		"mx.example.org": {dnstest.A("192.0.2.25")},
		"no.example":     {dnstest.MX(0, ".")},
		"down.example":   {dnstest.Timeout},
	}
	for _, name := range []string{"example.org", "no.example", "mx.example.org", "nowhere.example", "down.example"} {
		mxs, err := mailspine.LookupMX(ctx, zone, name)
		fmt.Println(name, mxs, err)
	}
	// Output:
	// example.org [{10 mx.example.org}] <nil>
	// no.example [{0 }] <nil>
	// mx.example.org [] lookup "mx.example.org" MX: no record of this type
	// nowhere.example [] lookup "nowhere.example" MX: no such domain
	// down.example [] lookup "down.example" MX: temporary failure: time-out
}

// A real server, whose zone changes under the one who asks.
func ExampleStart() {
	server, err := dnstest.Start(dnstest.Zone{
		"example.org": {dnstest.Signed, dnstest.A("192.0.2.1")},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()

	ctx := context.Background()
	client := &dns.Client{Servers: []string{server.Addr()}, Trusted: []string{server.Addr()}}
	a, err := client.Lookup(ctx, "example.org", mailspine.TypeA)
	fmt.Println(a.Addrs, a.Authentic, err)

	server.Set("example.org", dnstest.Refused)
	_, err = client.Lookup(ctx, "example.org", mailspine.TypeA)
	fmt.Println(errors.Is(err, mailspine.ErrDNSTemporary))

	fmt.Println(server.Queries())
	// Output:
	// [192.0.2.1] true <nil>
	// true
	// [{example.org A udp} {example.org A udp}]
}
