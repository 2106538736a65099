package mta

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
	"golang.org/x/net/proxy"
)

// A ProxyError is a failure of the proxy that connections are made through, not of the mail exchanger: it cannot be connected
// to, refuses us, or does not do as its protocol says. It is inside of the temporary error (451 4.4.1) of the recipients, whose text does
// not name the proxy. No other host is tried then, and it says nothing about any.
type ProxyError struct {
	Proxy string // its address and port
	Err   error  // without user name and password
}

// Error names the proxy and the cause.
func (e *ProxyError) Error() string { return fmt.Sprintf("mta: proxy %s: %v", e.Proxy, e.Err) }

// Unwrap returns the cause.
func (e *ProxyError) Unwrap() error { return e.Err }

// proxyTimeout bounds the conversation with a proxy that has no Timeout of its own, connecting included.
const proxyTimeout = 30 * time.Second

// SOCKS5 connects through a SOCKS5 proxy (RFC 1928, RFC 1929). Its Dial is for Relay.Dial:
//
//	out := &mta.SOCKS5{Addr: "10.0.0.5:1080"}
//	relay := &mta.Relay{Resolver: resolver, Hostname: "out.example.org", Dial: out.Dial}
//
// Names are looked up by the Relay and checked there: the proxy gets addresses only. It is the operator's choice, so its own address is
// not checked. The mail exchangers see the address of the proxy, which Relay.Hostname has to resolve to.
//
// With several proxies, each of them one source of an [Egress], choose with [SourceFrom]:
//
//	relay.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
//		source, _ := mta.SourceFrom(ctx)
//		return proxies[source.Name].Dial(ctx, network, address)
//	}
//
// It is safe for concurrent use; its fields must not change after first use.
type SOCKS5 struct {
	// Addr is the proxy's host and port. Required.
	Addr string
	// User and Password are sent to the proxy, in the clear as RFC 1929 has it, if it asks for them. "": none are offered.
	// They are in no error, log or trace.
	User, Password string
	// From is the address that the proxy connects from. A source of another address is refused, since what an Egress
	// grants to one address must not leave from another. Zero: not known, and only sources without an address are served.
	From netip.Addr
	// Timeout bounds all until the proxy has connected. 0 or less: 30 s. It is bounded by Timeouts.Connect of the Relay too.
	Timeout time.Duration
}

// String names the proxy, without user name and password.
func (s SOCKS5) String() string { return "socks5://" + s.Addr }

// GoString is String, so that no %#v shows the password.
func (s SOCKS5) GoString() string { return s.String() }

// Dial opens a connection through the proxy. Its errors are a *[ProxyError], or what the proxy says about the target as the system
// would have said it: syscall.ECONNREFUSED, EHOSTUNREACH, ENETUNREACH and ETIMEDOUT.
func (s *SOCKS5) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) { return nil, &ProxyError{s.Addr, err} }
	if src, _ := SourceFrom(ctx); src.Addr.IsValid() && src.Addr.Unmap() != s.From.Unmap() {
		return fail(fmt.Errorf("it does not connect from %s, the address of source %s", src.Addr, src))
	}
	var auth *proxy.Auth
	if s.User != "" {
		auth = &proxy.Auth{User: s.User, Password: s.Password}
	}
	d, err := proxy.SOCKS5("tcp", s.Addr, auth, nil)
	if err != nil {
		return fail(err)
	}
	// What comes back is the connection itself and no wrapper, so that the kernel can be asked about it.
	over, ok := d.(interface {
		DialWithConn(ctx context.Context, c net.Conn, network, address string) (net.Addr, error)
	})
	if !ok {
		return fail(errors.New("this version of x/net/proxy is not known"))
	}
	ctx, conn, cancel, err := dialProxy(ctx, s.Addr, s.Timeout)
	defer cancel()
	if err != nil {
		return fail(err)
	}
	if _, err := over.DialWithConn(ctx, conn, network, address); err != nil {
		conn.Close()
		if cerr := ctx.Err(); cerr != nil {
			return fail(fmt.Errorf("%w: %w", cerr, socksCause(err)))
		}
		if target := socksReply(err); target != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Err: target}
		}
		return fail(socksCause(err))
	}
	return conn, nil
}

// socksReply returns what a proxy says about the target and not about itself, as the system would say it; nil: something else.
// x/net/proxy tells the code of RFC 1928 section 6 by its text only.
func socksReply(err error) error {
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Err == nil {
		return nil
	}
	text, ok := strings.CutPrefix(oe.Err.Error(), "unknown error ")
	if !ok {
		return nil
	}
	switch text {
	case "network unreachable":
		return syscall.ENETUNREACH
	case "host unreachable":
		return syscall.EHOSTUNREACH
	case "connection refused":
		return syscall.ECONNREFUSED
	case "TTL expired":
		return syscall.ETIMEDOUT
	}
	return nil
}

// socksCause is the part of an error that says something.
func socksCause(err error) error {
	var oe *net.OpError
	if errors.As(err, &oe) && oe.Err != nil && strings.HasPrefix(oe.Op, "socks") {
		return oe.Err
	}
	return err
}

// dialProxy connects to a proxy. The context that it returns is bounded by the time-out; cancel is never nil.
func dialProxy(ctx context.Context, addr string, timeout time.Duration) (context.Context, net.Conn, context.CancelFunc, error) {
	if timeout <= 0 {
		timeout = proxyTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	return ctx, conn, cancel, err
}

// PROXYProtocol connects through a TCP proxy such as HAProxy, and tells it with a PROXY protocol header (version 2) where from and
// where to: the source is the address that the [Egress] chose, the destination the mail exchanger. The proxy then connects from
// the one to the other, so that one host sends from the addresses of another. Its Dial is for Relay.Dial:
//
//	out := &mta.PROXYProtocol{Addr: "10.0.0.6:2525"}
//	relay := &mta.Relay{Resolver: resolver, Egress: selector, Dial: out.Dial}
//
// For HAProxy that is
//
//	listen mail-out
//		bind 10.0.0.6:2525 accept-proxy
//		mode tcp
//		server mx 0.0.0.0:0 source 0.0.0.0 usesrc clientip
//
// Whoever can connect to such a proxy can send from its addresses: let nobody else in. The proxy has no way to say
// that it cannot connect: it hangs up, and that looks as if the mail exchanger had.
//
// It is safe for concurrent use; its fields must not change after first use.
type PROXYProtocol struct {
	// Addr is the proxy's host and port. Required.
	Addr string
	// From has the addresses to send from where no source was chosen, or one without an address: the first of
	// the target's family. With none the connection fails.
	From []netip.Addr
	// Timeout bounds connecting to the proxy and sending the header. 0 or less: 30 s. It is bounded by Timeouts.Connect of the Relay
	// too.
	Timeout time.Duration
}

// Dial opens a connection through the proxy. Its errors are *[ProxyError].
func (p *PROXYProtocol) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) { return nil, &ProxyError{p.Addr, err} }
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fail(errors.New("the target is no address and port"))
	}
	to = netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())
	from, err := p.from(ctx, to.Addr())
	if err != nil {
		return fail(err)
	}
	header := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.TCPAddrFromAddrPort(to))
	raw, err := header.Format()
	if err != nil {
		return fail(err)
	}
	ctx, conn, cancel, err := dialProxy(ctx, p.Addr, p.Timeout)
	defer cancel()
	if err != nil {
		return fail(err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetWriteDeadline(deadline)
	}
	// Up to 52 octets into an empty buffer; so nothing here waits for long, but ctx counts nevertheless.
	stop := context.AfterFunc(ctx, func() { conn.SetWriteDeadline(time.Unix(1, 0)) })
	_, err = conn.Write(raw)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = conn.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return fail(err)
	}
	return conn, nil
}

// from returns the address to send from.
func (p *PROXYProtocol) from(ctx context.Context, to netip.Addr) (netip.Addr, error) {
	if s, _ := SourceFrom(ctx); s.Addr.IsValid() {
		if a := s.Addr.Unmap(); a.Is4() == to.Is4() {
			return a.WithZone(""), nil
		}
		return netip.Addr{}, fmt.Errorf("source %s has no address of the family of %s", s, to)
	}
	for _, a := range p.From {
		if a = a.Unmap(); a.IsValid() && a.Is4() == to.Is4() {
			return a.WithZone(""), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("there is no address to connect to %s from", to)
}
