package mta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/dial"
)

// A transfer is the part of one Deliver call that goes to one domain, or to a Smarthost.
type transfer struct {
	r       *Relay
	env     *mailspine.Envelope
	msg     mailspine.Content
	facts   contentFacts
	domain  string                    // of the recipients; the host's name if fixed
	fixed   *endpoint                 // of a Smarthost; nil: the mail exchangers of domain
	errs    mailspine.RecipientErrors // the whole delivery's; only our indices are written
	times   RelayTimeouts
	attempt mailspine.Attempt

	rule     TLSRule
	secure   bool // the answer that named the hosts was authentic
	implicit bool // there is no MX: the domain is its own

	granted bool              // an Egress chose source
	source  Source            // zero: the system's choice
	told    map[int]struct{}  // the recipients that a server heard of, from this source
	last    mailspine.Receipt // of the connection under way, without its last reply
	said    reply             // which is this; zero: there is none yet
}

// run delivers to the recipients with the given indices, and leaves each one's
// result in t.errs.
func (t *transfer) run(ctx context.Context, pending []int) {
	if err := t.loadRule(ctx); err != nil {
		t.settle(pending, err)
		return
	}
	hosts, err := t.hosts(ctx)
	names := make([]string, len(hosts))
	for i, h := range hosts {
		names[i] = h.name
	}
	if f := t.r.trace().Resolved; f != nil {
		f(ctx, ResolvedInfo{Domain: t.domain, Hosts: slices.Clone(names), Err: err})
	}
	if err == nil {
		err = t.checkSecure()
	}
	if err != nil {
		t.settle(pending, err)
		return
	}
	if t.r.Egress != nil {
		t.share(ctx, hosts, names, pending)
		return
	}
	t.serve(ctx, hosts, pending)
}

// serve tries the hosts, from t.source. The number of connections is bounded by MaxConnections; the time
// by the time-outs of each, and by ctx.
func (t *transfer) serve(ctx context.Context, hosts []host, pending []int) {
	left := t.r.MaxConnections
	if left <= 0 {
		left = 6
	}
	var worst failure
	var bind *BindError
	for _, h := range hosts {
		if left <= 0 || ctx.Err() != nil || bind != nil {
			break
		}
		t.last, t.said = mailspine.Receipt{RemoteMTA: h.name, Source: t.source.Name}, reply{}
		addrs, err := t.addrs(ctx, h)
		if err != nil {
			worst.add(err, t.lastReceipt())
		}
		for _, a := range addrs {
			if left <= 0 || ctx.Err() != nil {
				break
			}
			pending, err = t.tryAddr(ctx, h, a, pending, &left)
			if len(pending) == 0 {
				return
			}
			worst.add(err, t.lastReceipt())
			// Without its address the source reaches no other host either.
			if errors.As(err, &bind) {
				break
			}
		}
	}
	err := worst.err
	if cerr := ctx.Err(); cerr != nil {
		err = fmt.Errorf("mta: delivery to %s: %w", t.domain, cerr)
	}
	for _, i := range pending {
		t.errs[i] = err
		t.attempt.Record(i, worst.receipt)
	}
}

// loadRule asks the policy, and raises the rule for REQUIRETLS.
func (t *transfer) loadRule(ctx context.Context) error {
	if p := t.r.TLSPolicy; p != nil {
		rule, err := p.TLSRule(ctx, t.domain)
		if err != nil {
			return mailspine.Errorf(451, "4.7.5", "The TLS policy of %s could not be found out, try again later", t.domain).WithCause(err)
		}
		t.rule = rule
	}
	if t.env.RequireTLS {
		t.rule.Level = max(t.rule.Level, TLSVerify)
	}
	return nil
}

// checkSecure is RFC 8689 section 4.2.1: with REQUIRETLS, the names of the hosts must not
// come from an answer that could be forged. A Smarthost's comes from none.
func (t *transfer) checkSecure() error {
	if !t.env.RequireTLS || t.secure || t.fixed != nil || t.rule.Hosts != nil || t.rule.Names != nil {
		return nil
	}
	return mailspine.Errorf(550, "5.7.10", "The message requires TLS, and the mail exchangers of %s are not secured by DNSSEC or policy", t.domain)
}

// A failure keeps the error that a delivery ends with when no host is left: the
// last temporary one, or else the last.
type failure struct {
	err     error
	receipt mailspine.Receipt
}

func (f *failure) add(err error, r mailspine.Receipt) {
	if err == nil {
		err = errors.New("mta: no result") // a bug; never "delivered"
	}
	if f.err == nil || mailspine.Status(err).Temporary() || !mailspine.Status(f.err).Temporary() {
		f.err, f.receipt = err, r
	}
}

// settle gives the same result to several recipients.
func (t *transfer) settle(index []int, err error) {
	for _, i := range index {
		t.errs[i] = err
	}
}

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
		if !errors.As(err, &te) || t.rule.Level > TLSOpportunistic || ctx.Err() != nil {
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
		if st := mailspine.Status(err); t.rule.Level > TLSOpportunistic && st.Enhanced[1] == 7 {
			level = slog.LevelWarn
		}
		t.log(ctx, level, "mta: session failed", peer, err)
		s.done()
		return nil, err
	}
	return s, nil
}

// lastReceipt is what is known of the last connection.
func (t *transfer) lastReceipt() mailspine.Receipt {
	rec := t.last
	if t.said.code != 0 {
		rec.Reply = t.said.String()
	}
	return rec
}

func (t *transfer) log(ctx context.Context, level slog.Level, what, peer string, err error) {
	t.r.logger().LogAttrs(ctx, level, what, slog.String("id", string(t.env.ID)),
		slog.String("domain", t.domain), slog.String("peer", peer), slog.Any("err", err))
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
