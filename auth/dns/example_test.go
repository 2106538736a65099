package dns_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// What a sender learns about a domain. The server is a test's own; in life it
// is a validating resolver on the same host.
func ExampleClient() {
	server, err := dnstest.Start(dnstest.Zone{
		"example.org":             {dnstest.Signed, dnstest.MX(10, "mx.example.org"), dnstest.TXT("v=spf1 mx -all")},
		"_25._tcp.mx.example.org": {dnstest.TLSA(3, 1, 1, make([]byte, 32))},
		"mx.example.org":          {dnstest.A("192.0.2.25")},
		"forged.example":          {dnstest.Bogus},
		"down.example":            {dnstest.Refused},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()

	resolver := &dns.Client{Servers: []string{server.Addr()}, Trusted: []string{server.Addr()}}
	ctx := context.Background()
	for _, name := range []string{"example.org", "mx.example.org", "nobody.example", "forged.example", "down.example"} {
		a, err := resolver.Lookup(ctx, name, mailspine.TypeMX)
		switch {
		case err == nil:
			fmt.Printf("%s: %v, authentic: %v\n", name, a.MX, a.Authentic)
		case errors.Is(err, mailspine.ErrNXDomain):
			fmt.Printf("%s: does not exist\n", name)
		case errors.Is(err, mailspine.ErrNoData):
			fmt.Printf("%s: has no MX\n", name)
		case errors.Is(err, mailspine.ErrDNSBogus):
			fmt.Printf("%s: failed its checks\n", name)
		default:
			fmt.Printf("%s: ask later (%s)\n", name, mailspine.Status(err).Reply())
		}
	}
	tlsa, authentic, err := mailspine.LookupTLSA(ctx, resolver, "_25._tcp.mx.example.org")
	fmt.Println("DANE:", len(tlsa), authentic, err)
	// Output:
	// example.org: [{10 mx.example.org}], authentic: true
	// mx.example.org: has no MX
	// nobody.example: does not exist
	// forged.example: failed its checks
	// down.example: ask later (451 4.4.3 Temporary failure of a name lookup)
	// DANE: 1 true <nil>
}

// A cache before a resolver, with a clock of its own.
func ExampleCache() {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	world := dnstest.New(dnstest.Zone{
		"example.org": {dnstest.A("192.0.2.1"), dnstest.TTL(time.Minute)},
	})
	cache := &dns.Cache{Resolver: world, Now: func() time.Time { return now }}

	ctx := context.Background()
	for range 3 {
		a, err := cache.Lookup(ctx, "example.org", mailspine.TypeA)
		fmt.Println(a.Addrs, a.TTL, err)
		now = now.Add(40 * time.Second)
	}
	s := cache.Stats()
	fmt.Println(s.Hits, "hit,", s.Misses, "misses,", s.Entries, "entry")
	// Output:
	// [192.0.2.1] 1m0s <nil>
	// [192.0.2.1] 20s <nil>
	// [192.0.2.1] 1m0s <nil>
	// 1 hit, 2 misses, 1 entry
}

// The system's own resolver, kept for a minute since it tells no TTL.
func ExampleSystem() {
	var resolver mailspine.Resolver = &dns.Cache{Resolver: &dns.System{}, MinTTL: time.Minute}
	_, err := resolver.Lookup(context.Background(), "not..a.name", mailspine.TypeA)
	fmt.Println(errors.Is(err, mailspine.ErrNXDomain), errors.Is(err, dns.ErrBadName))
	// Output:
	// true true
}
