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
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// tryAddr delivers over one address. It returns the recipients without a result, and
// why there is none. It uses a connection that was kept, or else opens one, or a second one for a message that may go in
// clear after a failed handshake. One that was kept, and turns out to be of no use any more, counts for nothing.
//
// t.rest has the addresses of the host whose turn comes later. One of them may take the place of addr: because a connection to
// it is kept, or because addr does not answer soon and it does. Then addr has its place in t.rest.
func (t *transfer) tryAddr(ctx context.Context, h host, addr netip.Addr, pending []int, left *int) ([]int, error) {
	// At most *left times, and each time for fewer recipients.
	for {
		rest, err := t.tryOnce(ctx, h, addr, pending, left)
		if !errors.Is(err, smtpclient.ErrUsedUp) || len(rest) == len(pending) || *left <= 0 || ctx.Err() != nil {
			return rest, err
		}
		pending = rest
	}
}

// tryOnce is tryAddr with one connection that works, after which recipients may be left because the server takes no more of them on it.
func (t *transfer) tryOnce(ctx context.Context, h host, addr netip.Addr, pending []int, left *int) ([]int, error) {
	target := netip.AddrPortFrom(addr, t.port())
	if r := t.visit.takeRaced(target, t.source); r != nil {
		t.last, t.said = r.receipt, reply{}
		return pending, r.err
	}
	if rest, err, done := t.tryKept(ctx, h, target, pending, left); done {
		return rest, err
	}
	slept, err := t.visit.mayOpen(ctx)
	if err != nil {
		*left = 0 // no other address would be different
		return pending, err
	}
	if slept {
		// Another delivery may have kept its connection meanwhile.
		if rest, err, done := t.tryKept(ctx, h, target, pending, left); done {
			t.visit.giveTurn()
			return rest, err
		}
	}
	for _, clear := range []bool{false, true} {
		var s *session
		s, err = t.connect(ctx, h, &target, clear, left)
		if err == nil {
			pending, err = s.deliver(ctx, pending)
			t.judgeUse(ctx, s, err)
			s.done()
			t.visit.closed()
			break
		}
		var te *tlsError
		if !errors.As(err, &te) || t.tls.rule.Level > TLSOpportunistic || ctx.Err() != nil {
			break
		}
		t.visit.takeTurn()
	}
	var pe *ProxyError
	if errors.As(err, &pe) {
		*left = 0 // it is the way to all of them
	}
	return pending, err
}

// port is the port of the hosts.
func (t *transfer) port() uint16 {
	switch {
	case t.fixed != nil:
		return t.fixed.port
	case t.r.Port != 0:
		return t.r.Port
	}
	return 25
}

// tryKept delivers over a connection that was kept to the address, or to one of t.rest. done: there was one, and the
// rest is its result.
func (t *transfer) tryKept(ctx context.Context, h host, target netip.AddrPort, pending []int, left *int) (rest []int, err error, done bool) {
	if !t.warm(h.name) {
		return pending, nil, false
	}
	// At most maxAddrsPerHost.
	for i := -1; i < len(t.rest); i++ {
		to := target
		if i >= 0 {
			to = netip.AddrPortFrom(t.rest[i], target.Port())
		}
		s := t.reuse(ctx, h, to)
		if s == nil {
			continue
		}
		peer := s.peer
		t.visit.opened(to)
		rest, err := s.deliver(ctx, pending)
		stale := s.stale(err) && ctx.Err() == nil
		if !stale {
			t.judgeUse(ctx, s, err)
		}
		s.done()
		t.visit.closed()
		if stale {
			t.log(ctx, slog.LevelDebug, "mta: a kept connection is of no use any more", peer, err)
			continue
		}
		*left--
		if i >= 0 {
			t.rest[i] = target.Addr()
		}
		return rest, err, true
	}
	return pending, nil, false
}

// judgeOpen tells the visit why a connection to an address came to nothing before MAIL, while it is still open.
func (t *transfer) judgeOpen(ctx context.Context, addr netip.AddrPort, err error) {
	var bind *BindError
	var proxy *ProxyError
	switch {
	case t.visit == nil || ctx.Err() != nil:
	case isTurnedAway(err):
		t.visit.turnedAway(addr)
	case errors.As(err, &bind), errors.As(err, &proxy):
	default:
		// What TLS came to (X.7.X) says nothing about how busy a server is.
		if st := mailspine.Status(err); st.Temporary() && st.Enhanced[1] != 7 {
			t.visit.failed = true
		}
	}
}

// judgeUse tells it what a delivery over an open connection came to. A server that says good-bye after it accepted MAIL may be busy, or be
// stopped: but that is not because of the number of connections.
func (t *transfer) judgeUse(ctx context.Context, s *session, err error) {
	switch {
	case t.visit == nil || ctx.Err() != nil:
	case !isTurnedAway(err):
		t.visit.worked = true
	case s.heard:
		t.visit.failed = true
	default:
		t.visit.turnedAway(s.key.addr)
	}
}

// isTurnedAway reports whether a server has, or may have, too many connections: it takes none, says good-bye, or refuses with
// words that say so.
func isTurnedAway(err error) bool {
	var me *mailspine.Error
	if !errors.As(err, &me) {
		return false
	}
	if me.Code == 421 || errors.Is(err, syscall.ECONNREFUSED) {
		return true
	}
	if me.Code/100 != 4 {
		return false
	}
	text := strings.ToLower(me.Message) // at most maxReplyText
	if !strings.Contains(text, "too many") {
		return false
	}
	return strings.Contains(text, "connection") || strings.Contains(text, "concurren") || strings.Contains(text, "sessions")
}

// connect opens a connection and brings it to the point where MAIL can be sent:
// greeting, EHLO, TLS as the rule demands. Its errors are classified. Without clear the connection may be to one of t.rest in
// place of target, which is changed then. A connection that is returned, the visit has been told of.
func (t *transfer) connect(ctx context.Context, h host, target *netip.AddrPort, clear bool, left *int) (*session, error) {
	start := time.Now()
	d := t.race(ctx, h, *target, !clear, left)
	if d.addr != *target {
		t.trade(*target, d.addr)
		*target = d.addr
	}
	peer := peerName(h, d.addr)
	t.last, t.said, t.greeted = t.dialing(h, d.addr), reply{}, false
	if d.err != nil {
		t.judgeOpen(ctx, d.addr, d.err)
		return nil, d.err
	}
	t.visit.opened(d.addr)
	conn := d.conn
	s := &session{
		t: t, c: t.client(conn, peer), host: h.name, addr: d.addr.String(), peer: peer, from: t.source.Name,
		key: t.key(h, d.addr), born: start,
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
		if !t.greeted {
			t.unreached(ctx, d.addr, err)
		}
		level := slog.LevelDebug
		if st := mailspine.Status(err); t.tls.rule.Level > TLSOpportunistic && st.Enhanced[1] == 7 {
			level = slog.LevelWarn
		}
		t.log(ctx, level, "mta: session failed", peer, err)
		t.judgeOpen(ctx, d.addr, err)
		s.done()
		t.visit.closed()
		return nil, err
	}
	t.reached(d.addr)
	return s, nil
}

// trade puts target in the place that addr has in t.rest.
func (t *transfer) trade(target, addr netip.AddrPort) {
	for i, a := range t.rest {
		if a == addr.Addr() {
			t.rest[i] = target.Addr()
			return
		}
	}
}

// dialing is the receipt of a connection that is being opened.
func (t *transfer) dialing(h host, addr netip.AddrPort) mailspine.Receipt {
	return mailspine.Receipt{RemoteMTA: h.name, RemoteAddr: addr.String(), Source: t.source.Name}
}

// peerName names a server for people: host and address.
func peerName(h host, addr netip.AddrPort) string {
	if strings.HasPrefix(h.name, "[") {
		return h.name
	}
	return h.name + "[" + addr.Addr().String() + "]"
}

// everywhere allows each address, for a target that no stranger chose.
var everywhere = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} // never changes

// guard is what the connections of the transfer are opened with.
func (t *transfer) guard() *dial.Guard {
	guard := &dial.Guard{AllowPrivate: t.r.AllowPrivate, Timeout: t.times.Connect, LocalAddr: t.source.Addr}
	if t.fixed != nil {
		guard.AllowPrivate = everywhere
	}
	return guard
}

// dial opens a connection to a checked address, from the source of the transfer.
func (t *transfer) dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	guard := t.guard()
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
	var pe *ProxyError
	switch {
	case errors.As(err, &pe):
		// Where it is, and what it said, is nobody's business but ours.
		return mailspine.Errorf(451, "4.4.1", "The way out is not available").WithCause(err)
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
