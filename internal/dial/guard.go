package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/mailspine/mailspine"
)

// DefaultTimeout is how long a Guard waits for a connection unless told
// otherwise, names resolved and all addresses tried.
const DefaultTimeout = 30 * time.Second

// maxAddrs bounds how many addresses of one name are tried: half of them IPv6
// and half IPv4 if there are both. A name with a thousand addresses would
// otherwise keep us busy for its owner.
const maxAddrs = 8

// ErrForbidden matches, with errors.Is, every refusal by a Guard.
var ErrForbidden = errors.New("address is not allowed")

// A ForbiddenError is an address that a Guard refused. It matches
// [ErrForbidden].
type ForbiddenError struct {
	Addr  netip.Addr   // as it would have been connected to
	Range netip.Prefix // the range that it is in
	What  string       // what that range is for, in words
}

// Error names the address and the range.
func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("%s is not allowed: %s, %s", e.Addr, e.Range, e.What)
}

// Is reports whether target is ErrForbidden.
func (e *ForbiddenError) Is(target error) bool { return target == ErrForbidden }

// A Guard dials, and refuses addresses that no stranger may send us to:
// loopback, private, shared, link-local, unspecified, multicast, broadcast,
// reserved, documentation and benchmarking ranges, cloud metadata, and IPv6
// addresses that lead to such IPv4 addresses through a well-known translator or
// tunnel. A network's own NAT64 prefix is not known to it: list it in Forbid.
//
// The zero value and a nil *Guard are safe and useful. A Guard is safe for
// concurrent use as long as its fields are not changed. It holds nothing and needs no
// closing. Proxies of the environment are not used.
type Guard struct {
	// AllowPrivate lists what is allowed although it is in a refused range. It
	// is compared with the address itself, an IPv4-mapped IPv6 address counting as
	// IPv4; to allow 127.0.0.0/8 does not allow its NAT64 or 6to4 forms.
	// Empty: nothing.
	AllowPrivate []netip.Prefix

	// Forbid lists what is refused in addition, whatever AllowPrivate says:
	// public addresses of services that trust our address. Empty: nothing.
	Forbid []netip.Prefix

	// LocalAddr is the address that connections are made from, with a port that the kernel
	// chooses (on Linux at connect, so that connections to different targets can share one). Zero: the
	// kernel chooses both. A target of the other family cannot be reached. If the address is not one of this host, the
	// error has a *os.SyscallError for "bind".
	LocalAddr netip.Addr

	// Timeout bounds a whole dial, in addition to its context. Zero or negative:
	// DefaultTimeout.
	Timeout time.Duration

	// Resolver looks up host names. nil: the system's. Whatever it answers is
	// checked like any other address.
	Resolver mailspine.Resolver

	// Control, if set, is called on each socket after its target was found
	// allowed and before it connects, as net.Dialer's ControlContext, to set
	// options on it.
	Control func(ctx context.Context, network, address string, c syscall.RawConn) error
}

// ranges is built on first use and never changes.
var ranges = sync.OnceValue(forbiddenRanges)

// Check returns nil if a connection to addr is allowed, otherwise a
// *[ForbiddenError]. The zone of an IPv6 address is disregarded. The zero Addr is
// refused.
func (g *Guard) Check(addr netip.Addr) error {
	if !addr.IsValid() {
		return &ForbiddenError{Addr: addr, What: "not an address"}
	}
	// Without the zone: netip.Prefix.Contains is false for every address with
	// one, and fe80::1%eth0 and ::1%x would come through.
	ip := addr.WithZone("").Unmap()
	if g != nil {
		if p, ok := contains(g.Forbid, ip); ok {
			return &ForbiddenError{Addr: addr, Range: p, What: "listed as forbidden"}
		}
		if _, ok := contains(g.AllowPrivate, ip); ok {
			return nil
		}
	}
	if r, ok := special(ip); ok {
		return &ForbiddenError{Addr: addr, Range: r.prefix, What: r.what}
	}
	if ip.Is4() {
		return nil
	}
	if v4, p, what, ok := embedded(ip); ok {
		if r, bad := special(v4); bad {
			return &ForbiddenError{Addr: addr, Range: p, What: what + " to " + v4.String() + ", " + r.what}
		}
		if g != nil {
			if _, bad := contains(g.Forbid, v4); bad {
				return &ForbiddenError{Addr: addr, Range: p, What: what + " to " + v4.String() + ", listed as forbidden"}
			}
		}
		if nat64.Contains(ip) {
			return nil
		}
	}
	if !globalUnicast.Contains(ip) {
		return &ForbiddenError{Addr: addr, Range: everything6, What: "not global unicast (RFC 4291 section 2.4)"}
	}
	return nil
}

func special(ip netip.Addr) (netRange, bool) {
	for _, r := range ranges() {
		if r.prefix.Contains(ip) {
			return r, true
		}
	}
	return netRange{}, false
}

func contains(list []netip.Prefix, ip netip.Addr) (netip.Prefix, bool) {
	for _, p := range list {
		q := p
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			// ip was unmapped, and so must be a prefix that was written mapped.
			q = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		if q.Contains(ip) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// DialContext connects to addr, "host:port" with a host name, an IPv4 or a
// bracketed IPv6 address. network is "tcp", "tcp4" or "tcp6". Its signature is
// that of net.Dialer and of http.Transport's field.
//
// Of a host name, at most eight addresses are tried, one after the other; an
// address that is refused does not keep the others from being tried. The error
// of the first address is returned, a *net.OpError, which matches ErrForbidden
// if that address was refused. Names are absolute: no search list applies when
// Resolver is set.
func (g *Guard) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, opError(network, net.UnknownNetworkError(network))
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, opError(network, err)
	}
	// A service name would be looked up in files of the system.
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, opError(network, &net.AddrError{Err: "invalid port", Addr: addr})
	}
	// The empty host is this host, for net.Dialer.
	if host == "" {
		return nil, opError(network, &ForbiddenError{Addr: netip.IPv6Unspecified(), Range: netip.PrefixFrom(netip.IPv6Unspecified(), 128), What: "no host, which is this host"})
	}
	timeout := DefaultTimeout
	if g != nil && g.Timeout > 0 {
		timeout = g.Timeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	var addrs []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{ip}
	} else if addrs, err = g.resolve(ctx, network, host); err != nil {
		return nil, opError(network, err)
	}
	if len(addrs) == 0 {
		return nil, opError(network, &net.AddrError{Err: "no address", Addr: host})
	}
	d := g.dialer()
	var first error
	for i, ip := range addrs {
		conn, err := g.dialOne(ctx, d, network, net.JoinHostPort(ip.String(), port), len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// dialer returns a dialer that asks the Guard about each socket before it
// connects.
func (g *Guard) dialer() *net.Dialer {
	d := &net.Dialer{
		// One address at a time is given to it; there is nothing to race.
		FallbackDelay: -1,
		ControlContext: func(ctx context.Context, network, address string, c syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return &ForbiddenError{What: "not an address: " + strconv.Quote(address)}
			}
			if err := g.Check(ap.Addr()); err != nil {
				return err
			}
			if g != nil {
				lateBind(g.LocalAddr, c)
				if g.Control != nil {
					return g.Control(ctx, network, address, c)
				}
			}
			return nil
		},
	}
	if g != nil && g.LocalAddr.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(g.LocalAddr, 0))
	}
	return d
}

// dialOne gives one address its share of the time that is left.
func (g *Guard) dialOne(ctx context.Context, d *net.Dialer, network, addr string, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	// Not every system has a control hook (Plan 9 has none). Nothing was
	// written yet.
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		conn.Close()
		return nil, opError(network, &ForbiddenError{What: "not an address"})
	}
	if err := g.Check(tcp.AddrPort().Addr()); err != nil {
		conn.Close()
		return nil, opError(network, err)
	}
	return conn, nil
}

// resolve returns at most maxAddrs addresses of host, the families taking
// turns, IPv6 first.
func (g *Guard) resolve(ctx context.Context, network, host string) ([]netip.Addr, error) {
	var v4, v6 []netip.Addr
	if g == nil || g.Resolver == nil {
		all, err := net.DefaultResolver.LookupNetIP(ctx, "ip"+network[len("tcp"):], host)
		if err != nil {
			return nil, err
		}
		for _, ip := range all {
			if ip = ip.Unmap(); ip.Is4() {
				v4 = append(v4, ip)
			} else {
				v6 = append(v6, ip)
			}
		}
	} else {
		var err4, err6 error
		if network != "tcp6" {
			v4, err4 = mailspine.LookupA(ctx, g.Resolver, host)
		}
		if network != "tcp4" {
			v6, err6 = mailspine.LookupAAAA(ctx, g.Resolver, host)
		}
		// Half an answer is enough to connect. If there is none, the temporary
		// failure is the one to tell, since the other proves nothing.
		if len(v4)+len(v6) == 0 {
			if err4 == nil || err6 != nil && mailspine.IsNotFound(err4) {
				err4 = err6
			}
			return nil, err4
		}
	}
	var addrs []netip.Addr
	for i := 0; len(addrs) < maxAddrs && (i < len(v4) || i < len(v6)); i++ {
		if i < len(v6) {
			addrs = append(addrs, v6[i])
		}
		if i < len(v4) && len(addrs) < maxAddrs {
			addrs = append(addrs, v4[i])
		}
	}
	return addrs, nil
}

func opError(network string, err error) error {
	return &net.OpError{Op: "dial", Net: network, Err: err}
}
