package mta

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/dial"
)

// defaultFallbackDelay is longer than the quarter of a second that RFC 8305 section 5 has for people who wait: a mail server
// that is slow is no reason to send it another SYN.
const defaultFallbackDelay = 2 * time.Second

// errOvertaken is the trace's error of a connection that was given up because another one was there first.
var errOvertaken = errors.New("mta: given up, another address of the host has answered")

// A dialed is one attempt to connect. err is classified; it is nil if there is a connection.
type dialed struct {
	addr  netip.AddrPort
	conn  net.Conn
	err   error
	cause error // what the dialer said
	took  time.Duration
	panic any // of Relay.Dial, for the goroutine of Deliver, where a queue catches it; nil: none
}

// A raced is an address of t.rest that was tried beside another one, and came to nothing. It is the result of tryAddr when
// its turn comes.
type raced struct {
	addr    netip.AddrPort
	source  Source
	receipt mailspine.Receipt
	err     error
}

// race opens a connection to target, or, in the spirit of RFC 8305, to one of t.rest if beside is set and target has not
// answered after FallbackDelay: then there are two attempts under way, never more, and the first that succeeds is what is used. The other
// is given up. It is waited for, which takes no time if Relay.Dial does as its contract says.
//
// Each attempt is one of left, unless no connection was made, since the address is forbidden. One that is made beside target takes a
// turn of the site's OpenRate, and does not wait for it.
func (t *transfer) race(ctx context.Context, h host, target netip.AddrPort, beside bool, left *int) dialed {
	delay := t.r.FallbackDelay
	if delay == 0 {
		delay = defaultFallbackDelay
	}
	var next netip.AddrPort
	if beside && delay > 0 && *left > 1 {
		next = t.nextBeside(target)
	}
	if !next.IsValid() {
		return t.report(ctx, h, t.dialOne(ctx, h, target), left)
	}
	ctx1, stop1 := context.WithCancel(ctx)
	defer stop1()
	ctx2, stop2 := context.WithCancel(ctx)
	defer stop2()
	one, two := make(chan dialed, 1), make(chan dialed, 1)
	go t.dialAside(ctx1, h, target, one) // received below, in every case
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case d := <-one:
		raise(d)
		return t.report(ctx, h, d, left)
	case <-timer.C:
	}
	t.visit.takeTurn()
	go t.dialAside(ctx2, h, next, two) // the same
	var a, b dialed
	select {
	case a = <-one:
		if a.err == nil || a.panic != nil {
			stop2()
		}
		b = <-two
	case b = <-two:
		if b.err == nil || b.panic != nil {
			stop1()
		}
		a = <-one
	}
	raise(a, b)
	winner, other := &a, &b
	if a.err != nil && b.err == nil {
		winner, other = &b, &a
	}
	if winner.err == nil {
		if other.conn != nil || errors.Is(other.cause, context.Canceled) && ctx.Err() == nil {
			if other.conn != nil {
				other.conn.Close() // it came in the same moment
				other.conn = nil
			}
			other.err, other.cause = errOvertaken, errOvertaken
			if other == &a {
				t.unreached(ctx, a.addr, mailspine.Errorf(451, "4.4.1", "%s: no answer soon", peerName(h, a.addr)).WithCause(errOvertaken))
			}
		}
	} else {
		t.visit.setRaced(&raced{addr: next, source: t.source, receipt: t.dialing(h, next), err: b.err})
	}
	t.report(ctx, h, *other, left)
	return t.report(ctx, h, *winner, left)
}

// dialAside is dialOne in a goroutine of its own.
func (t *transfer) dialAside(ctx context.Context, h host, addr netip.AddrPort, to chan<- dialed) {
	d := dialed{addr: addr}
	defer func() {
		d.panic = recover()
		to <- d
	}()
	d = t.dialOne(ctx, h, addr)
}

// raise goes on with the panic of an attempt, if there is one, and leaves no connection of the others open.
func raise(all ...dialed) {
	for _, d := range all {
		if d.panic == nil {
			continue
		}
		for _, o := range all {
			if o.conn != nil {
				o.conn.Close()
			}
		}
		panic(d.panic)
	}
}

// nextBeside returns the first of t.rest that may be connected to; zero: none.
func (t *transfer) nextBeside(target netip.AddrPort) netip.AddrPort {
	g := t.guard()
	if g.Check(target.Addr()) != nil {
		return netip.AddrPort{} // there is nothing to wait for
	}
	for _, a := range t.rest {
		if g.Check(a) == nil {
			return netip.AddrPortFrom(a, target.Port())
		}
	}
	return netip.AddrPort{}
}

// report counts an attempt, and tells trace and log of it.
func (t *transfer) report(ctx context.Context, h host, d dialed, left *int) dialed {
	if !errors.Is(d.cause, dial.ErrForbidden) {
		*left--
	}
	if f := t.r.trace().Dialed; f != nil {
		info := DialedInfo{Domain: t.domain, Host: h.name, Addr: d.addr.String(), Source: t.source.Name, Duration: d.took, Err: d.cause}
		if d.conn != nil {
			info.Local = localAddr(d.conn)
		}
		f(ctx, info)
	}
	if d.err != nil && d.cause != errOvertaken {
		t.unreached(ctx, d.addr, d.err)
		var bind *BindError
		var proxy *ProxyError
		level, what := slog.LevelDebug, "mta: cannot connect"
		if errors.As(d.err, &bind) {
			level, what = slog.LevelWarn, "mta: source address cannot be used"
		} else if errors.As(d.err, &proxy) {
			level, what = slog.LevelWarn, "mta: proxy cannot be used"
		}
		t.log(ctx, level, what, peerName(h, d.addr), d.cause)
	}
	return d
}

// dialOne makes one attempt to connect. It only reads t.
func (t *transfer) dialOne(ctx context.Context, h host, addr netip.AddrPort) dialed {
	start := time.Now()
	conn, err := t.dial(ctx, addr)
	d := dialed{addr: addr, conn: conn, cause: err, took: time.Since(start)}
	switch {
	case err == nil:
	case t.granted && isBind(err):
		d.conn, d.cause = nil, &BindError{Source: t.source, Err: err}
		// The address is nobody's business but ours.
		d.err = mailspine.Errorf(451, "4.4.1", "The address to send from is not available").WithCause(d.cause)
	default:
		d.conn, d.err = nil, dialError(peerName(h, addr), err)
	}
	return d
}
