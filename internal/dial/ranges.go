package dial

import (
	"encoding/binary"
	"net/netip"
)

// A netRange is a range of addresses that no stranger may send us to.
type netRange struct {
	prefix netip.Prefix
	what   string
}

// forbiddenRanges returns what is refused, the more specific range before the
// less specific one. The list follows the IANA special-purpose address
// registries of RFC 6890, everything that is not globally reachable, and adds
// the metadata services that sit on public addresses.
//
// It is built once by a sync.OnceValue in guard.go and never changes.
func forbiddenRanges() []netRange {
	var all []netRange
	for _, r := range []struct{ prefix, what string }{
		{"0.0.0.0/8", "this network (RFC 791 section 3.2)"},
		{"10.0.0.0/8", "private use (RFC 1918)"},
		{"100.64.0.0/10", "shared address space (RFC 6598)"},
		{"127.0.0.0/8", "loopback (RFC 1122 section 3.2.1.3)"},
		{"168.63.129.16/32", "cloud metadata"},
		{"169.254.169.254/32", "cloud metadata"},
		{"169.254.0.0/16", "link-local (RFC 3927)"},
		{"172.16.0.0/12", "private use (RFC 1918)"},
		{"192.0.0.0/24", "protocol assignments (RFC 6890)"},
		{"192.0.2.0/24", "documentation (RFC 5737)"},
		{"192.88.99.0/24", "6to4 relay anycast (RFC 7526)"},
		{"192.168.0.0/16", "private use (RFC 1918)"},
		{"198.18.0.0/15", "benchmarking (RFC 2544)"},
		{"198.51.100.0/24", "documentation (RFC 5737)"},
		{"203.0.113.0/24", "documentation (RFC 5737)"},
		{"224.0.0.0/4", "multicast (RFC 5771)"},
		{"255.255.255.255/32", "limited broadcast (RFC 919)"},
		{"240.0.0.0/4", "reserved (RFC 1112)"},

		{"::/128", "unspecified (RFC 4291 section 2.5.2)"},
		{"::1/128", "loopback (RFC 4291 section 2.5.3)"},
		{"::/96", "IPv4-compatible (RFC 4291 section 2.5.5.1)"},
		{"64:ff9b:1::/48", "translation for local use (RFC 8215)"},
		{"100::/64", "discard (RFC 6666)"},
		{"2001::/32", "Teredo (RFC 4380)"},
		{"2001::/23", "protocol assignments (RFC 2928)"},
		{"2001:db8::/32", "documentation (RFC 3849)"},
		{"3fff::/20", "documentation (RFC 9637)"},
		{"5f00::/16", "segment routing (RFC 9602)"},
		{"fc00::/7", "unique local (RFC 4193)"},
		{"fe80::/10", "link-local (RFC 4291 section 2.5.6)"},
		{"fec0::/10", "site-local (RFC 3879)"},
		{"ff00::/8", "multicast (RFC 4291 section 2.7)"},
	} {
		all = append(all, netRange{netip.MustParsePrefix(r.prefix), r.what})
	}
	return all
}

// globalUnicast is all of IPv6 that is given out to anyone (RFC 4291 section
// 2.4, and the IANA registry: 2000::/3). What is outside and not listed above
// is refused too, so that a block that gets a meaning one day was never open.
var (
	globalUnicast = netip.MustParsePrefix("2000::/3")
	everything6   = netip.MustParsePrefix("::/0")
	nat64         = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour     = netip.MustParsePrefix("2002::/16")
)

// embedded returns the IPv4 address that a packet to ip ends up at when a
// translator or a tunnel on the way has its say: NAT64 (RFC 6052), 6to4 (RFC
// 3056), ISATAP (RFC 5214). IPv4-mapped addresses are unmapped before; Teredo
// and IPv4-compatible ones are refused as a whole.
func embedded(ip netip.Addr) (v4 netip.Addr, prefix netip.Prefix, what string, ok bool) {
	b := ip.As16()
	switch {
	case nat64.Contains(ip):
		return netip.AddrFrom4([4]byte(b[12:16])), nat64, "NAT64 (RFC 6052)", true
	case sixToFour.Contains(ip):
		return netip.AddrFrom4([4]byte(b[2:6])), sixToFour, "6to4 (RFC 3056)", true
	}
	// The interface identifier of ISATAP is 00-00-5E-FE and the IPv4 address, with
	// the universal/local bit free (RFC 5214 section 6.1).
	if id := binary.BigEndian.Uint32(b[8:12]); id&^0x02000000 == 0x00005efe {
		p, _ := ip.Prefix(96)
		return netip.AddrFrom4([4]byte(b[12:16])), p, "ISATAP (RFC 5214)", true
	}
	return netip.Addr{}, netip.Prefix{}, "", false
}
