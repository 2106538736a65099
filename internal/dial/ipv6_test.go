package dial

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// The same over real IPv6: refused in every spelling of the address, let through where it is listed, from the address that
// was asked for, and never to the other family.
func TestDialIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("this machine has no IPv6 loopback: %v", err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	at := func(host string) string {
		return net.JoinHostPort(host, strings.TrimPrefix(l.Addr().String(), "[::1]:"))
	}
	allow := &Guard{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("::1/128")}, LocalAddr: netip.IPv6Loopback()}
	for _, host := range []string{"::1", "0:0:0:0:0:0:0:1", "::0.0.0.1", "::1%lo"} {
		if _, err := new(Guard).DialContext(t.Context(), "tcp", at(host)); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v", host, err)
		}
		conn, err := allow.DialContext(t.Context(), "tcp", at(host))
		if err != nil {
			if strings.Contains(host, "%") {
				continue // a system may know no zone for it
			}
			t.Errorf("%s is listed: %v", host, err)
			continue
		}
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if from := peer.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); from != netip.IPv6Loopback() {
			t.Errorf("connected from %s", from)
		}
		peer.Close()
		conn.Close()
	}
	// That ::1 is allowed says nothing about IPv4 in IPv6, nor about IPv4.
	allow.LocalAddr = netip.Addr{}
	for _, host := range []string{"::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "127.0.0.1"} {
		if _, err := allow.DialContext(t.Context(), "tcp", at(host)); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v", host, err)
		}
	}
	// The names of a stranger are no way around it.
	g := &Guard{Resolver: fixed("::1")}
	if _, err := g.DialContext(t.Context(), "tcp6", at("mx.example.org")); !errors.Is(err, ErrForbidden) {
		t.Errorf("through a name: %v", err)
	}
	if port == 0 {
		t.Error("no port")
	}
}
