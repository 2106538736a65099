package dial_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mailspine/mailspine/internal/dial"
)

func ExampleGuard_DialContext() {
	var g dial.Guard
	// A stranger's MX record leads to our own network.
	_, err := g.DialContext(context.Background(), "tcp", "10.0.0.1:25")
	fmt.Println(errors.Is(err, dial.ErrForbidden))
	fmt.Println(err)
	// Output:
	// true
	// dial tcp 10.0.0.1:25: 10.0.0.1 is not allowed: 10.0.0.0/8, private use (RFC 1918)
}

func ExampleGuard_Check() {
	g := &dial.Guard{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	for _, s := range []string{"127.0.0.1", "::1", "64:ff9b::7f00:1", "9.9.9.9"} {
		fmt.Println(s, g.Check(netip.MustParseAddr(s)))
	}
	// Output:
	// 127.0.0.1 <nil>
	// ::1 ::1 is not allowed: ::1/128, loopback (RFC 4291 section 2.5.3)
	// 64:ff9b::7f00:1 64:ff9b::7f00:1 is not allowed: 64:ff9b::/96, NAT64 (RFC 6052) to 127.0.0.1, loopback (RFC 1122 section 3.2.1.3)
	// 9.9.9.9 <nil>
}
