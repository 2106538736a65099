package mta

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/dial"
)

// tryAddr delivers over one address. It returns the recipients without a result, and
// why there is none. It uses a connection that was kept, or else opens one, or a second one for a message that may go in
// clear after a failed handshake. One that was kept, and turns out to be of no use any more, counts for nothing.
func (t *transfer) tryAddr(ctx context.Context, h host, addr netip.Addr, pending []int, left *int) ([]int, error) {
	port := t.r.Port
	if t.fixed != nil {
		port = t.fixed.port
	} else if port == 0 {
		port = 25
	}
	target := netip.AddrPortFrom(addr, port)
	if s := t.reuse(ctx, h, target); s != nil {
		rest, err := s.deliver(ctx, pending)
		stale := s.stale(err) && ctx.Err() == nil
		s.done()
		if !stale {
			*left--
			return rest, err
		}
		t.log(ctx, slog.LevelDebug, "mta: a kept connection is of no use any more", s.peer, err)
	}
	var err error
	for _, clear := range []bool{false, true} {
		var s *session
		s, err = t.connect(ctx, h, target, clear)
		if errors.Is(err, dial.ErrForbidden) {
			break // no connection was made
		}
		*left--
		if err == nil {
			pending, err = s.deliver(ctx, pending)
			s.done()
			break
		}
		var te *tlsError
		if !errors.As(err, &te) || t.tls.rule.Level > TLSOpportunistic || ctx.Err() != nil {
			break
		}
	}
	return pending, err
}

// connect opens a connection and brings it to the point where MAIL can be sent:
// greeting, EHLO, TLS as the rule demands. Its errors are classified.
func (t *transfer) connect(ctx context.Context, h host, addr netip.AddrPort, clear bool) (*session, error) {
	t.last, t.said = mailspine.Receipt{RemoteMTA: h.name, RemoteAddr: addr.String(), Source: t.source.Name}, reply{}
	start := time.Now()
	conn, err := t.dial(ctx, addr)
	if f := t.r.trace().Dialed; f != nil {
		info := DialedInfo{Domain: t.domain, Host: h.name, Addr: addr.String(), Source: t.source.Name, Duration: time.Since(start), Err: err}
		if err == nil {
			info.Local = localAddr(conn)
		}
		f(ctx, info)
	}
	peer := h.name + "[" + addr.Addr().String() + "]"
	if strings.HasPrefix(h.name, "[") {
		peer = h.name
	}
	if err != nil {
		if t.granted && isBind(err) {
			bind := &BindError{Source: t.source, Err: err}
			t.log(ctx, slog.LevelWarn, "mta: source address cannot be used", peer, bind)
			// The address is nobody's business but ours.
			return nil, mailspine.Errorf(451, "4.4.1", "The address to send from is not available").WithCause(bind)
		}
		t.log(ctx, slog.LevelDebug, "mta: cannot connect", peer, err)
		return nil, dialError(peer, err)
	}
	s := &session{
		t: t, c: newClient(conn, t.times.Total), host: h.name, addr: addr.String(), peer: peer, from: t.source.Name,
		key: t.key(h, addr), born: start,
	}
	if s.from == "" {
		s.from = localAddr(conn)
	}
	t.last.Source = s.from
	s.watchWire(ctx, t.r)
	// Closing the connection ends whatever waits for it.
	s.rewatch(ctx)
	if err := s.open(ctx, clear); err != nil {
		s.failed = true
		level := slog.LevelDebug
		if st := mailspine.Status(err); t.tls.rule.Level > TLSOpportunistic && st.Enhanced[1] == 7 {
			level = slog.LevelWarn
		}
		t.log(ctx, level, "mta: session failed", peer, err)
		s.done()
		return nil, err
	}
	return s, nil
}

// everywhere allows each address, for a target that no stranger chose.
var everywhere = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} // never changes

// dial opens a connection to a checked address, from the source of the transfer.
func (t *transfer) dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	guard := &dial.Guard{AllowPrivate: t.r.AllowPrivate, Timeout: t.times.Connect, LocalAddr: t.source.Addr}
	if t.fixed != nil {
		guard.AllowPrivate = everywhere
	}
	if err := guard.Check(addr.Addr()); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, t.times.Connect)
	defer cancel()
	if t.r.Dial == nil {
		return guard.DialContext(ctx, "tcp", addr.String())
	}
	if t.granted {
		ctx = context.WithValue(ctx, sourceKey{}, t.source)
	}
	return t.r.Dial(ctx, "tcp", addr.String())
}

// dialError classifies a connection that could not be opened. An address that the
// guard refuses will not become a better one: the domain's owner has to change it.
func dialError(peer string, err error) *mailspine.Error {
	var what string
	var ne net.Error
	switch {
	case errors.Is(err, dial.ErrForbidden):
		return mailspine.Errorf(550, "5.4.4", "The mail exchanger %s has an address that is not on the public Internet", peer).WithCause(err)
	case errors.Is(err, syscall.ECONNREFUSED):
		what = "connection refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		what = "no route"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		what = "connection timed out"
	default:
		what = "connection failed"
	}
	return mailspine.Errorf(451, "4.4.1", "%s: %s", peer, what).WithCause(err)
}
