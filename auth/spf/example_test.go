package spf_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/spf"
)

// records is a Resolver for the examples; package auth/dns has the real one.
func records(txt map[string]string) mailspine.Resolver {
	return mailspine.ResolverFunc(func(_ context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
		if s, ok := txt[name]; ok && t == mailspine.TypeTXT {
			return mailspine.Answer{TXT: []string{s}}, nil
		}
		return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: mailspine.ErrNXDomain}
	})
}

func ExampleVerifier() {
	v := &spf.Verifier{Resolver: records(map[string]string{
		"example.org":     "v=spf1 ip4:192.0.2.0/24 -all exp=why.example.org",
		"why.example.org": "%{i} does not send for %{d}",
	})}
	from := mailspine.Address{Local: "joe", Domain: "example.org"}
	for _, ip := range []string{"192.0.2.7", "198.51.100.7"} {
		r := v.Check(context.Background(), netip.MustParseAddr(ip), "mail.example.org", from)
		fmt.Printf("%s %s %q\n", r.Status, r.Mechanism, r.Explanation)
	}
	// Output:
	// pass ip4:192.0.2.0/24 ""
	// fail -all "198.51.100.7 does not send for example.org"
}

func ExampleResult_Header() {
	v := &spf.Verifier{Resolver: records(map[string]string{"example.org": "v=spf1 ip4:192.0.2.0/24 -all"})}
	r := v.Check(context.Background(), netip.MustParseAddr("192.0.2.7"), "mail.example.org", mailspine.Address{Local: "joe", Domain: "example.org"})
	fmt.Print(strings.ReplaceAll(string(r.Header("mx.example.net")), "\r\n", "\n"))
	// Output:
	// Received-SPF: pass
	// 	(mx.example.net: domain of joe@example.org designates 192.0.2.7 as permitted sender)
	// 	receiver=mx.example.net;
	// 	client-ip=192.0.2.7;
	// 	envelope-from="joe@example.org";
	// 	helo=mail.example.org;
	// 	identity=mailfrom;
	// 	mechanism="ip4:192.0.2.0/24"
}

func ExampleParseRecord() {
	_, err := spf.ParseRecord("v=spf1 ip4:192.0.2.300 -all")
	fmt.Println(err)
	// Output:
	// spf: term "ip4:192.0.2.300" at octet 7: not an ip4 address (RFC 7208 section 5.6)
}
