package mta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
)

// A transfer is the part of one Deliver call that goes to one site, for one domain or several (see join), or to a Smarthost.
type transfer struct {
	r       *Relay
	env     *mailspine.Envelope
	msg     mailspine.Content
	facts   contentFacts
	domain  string                    // of the recipients, of those of the first part; the host's name if fixed
	parts   []part                    // of one domain each; at least one
	fixed   *endpoint                 // of a Smarthost; nil: the mail exchangers of domain
	errs    mailspine.RecipientErrors // the whole delivery's; only our indices are written
	times   RelayTimeouts
	attempt mailspine.Attempt

	// What find found.
	rule     TLSRule // of the local policy, for the domain
	how      string  // how the hosts were found, one of the found constants; "": they were not
	site     string  // what its hosts are called together; see Site
	all      []host  // that the domain names, those that are not used among them
	hosts    []host  // that are used, in the order in which they are tried
	secure   bool    // the answer that named the hosts was authentic
	target   string  // the domain, or what it is an alias of, as that answer says; "": not known
	implicit bool    // there is no MX: the domain is its own
	looked   bool    // hosts were looked for, with the error lookErr
	lookErr  error
	failed   error     // why nothing can be sent
	sts      *stsState // what is known of the domain's MTA-STS policy; nil: not asked for

	visit   *visit                // at the site; see enter
	tls     tlsDecision           // for the host that is being tried; see decide
	known   map[string]addrsFound // by host
	rest    []netip.Addr          // of the host that is being tried: those whose turn comes later
	probing func()                // ends the probe of a dead site that this is; nil: it is none
	greeted bool                  // the connection under way had a 220
	looping bool                  // the host that was tried last is this one; see looped

	granted bool              // an Egress chose source
	source  Source            // zero: the system's choice
	told    map[int]struct{}  // the recipients that a server heard of, from this source
	last    mailspine.Receipt // of the connection under way, without its last reply
	said    reply             // which is this; zero: there is none yet
}

// run delivers to the recipients with the given indices, all of one domain, and leaves each one's
// result in t.errs.
func (t *transfer) run(ctx context.Context, pending []int) {
	t.parts = []part{{t.domain, pending}}
	t.find(ctx)
	t.resolved(ctx)
	t.send(ctx)
}

// resolved tells the trace what find found.
func (t *transfer) resolved(ctx context.Context) {
	if f := t.r.trace().Resolved; f != nil && t.looked {
		f(ctx, ResolvedInfo{Domain: t.domain, Site: t.site, Hosts: hostNames(t.hosts), Err: t.lookErr})
	}
}

func hostNames(hosts []host) []string {
	names := make([]string, len(hosts))
	for i, h := range hosts {
		names[i] = h.name
	}
	return names
}

// send delivers to the recipients of all parts, when find is done.
func (t *transfer) send(ctx context.Context) {
	err := t.failed
	leave := func() {}
	if err == nil && t.stays() {
		return
	}
	if err == nil {
		leave, err = t.enter(ctx, t.hosts)
	}
	if err != nil {
		t.settle(t.recipients(), err)
		return
	}
	defer leave()
	if t.r.Egress != nil {
		t.share(ctx)
		return
	}
	t.serve(ctx, t.recipients())
}

// whom names the domain in a text for all recipients.
func (t *transfer) whom() string {
	if len(t.parts) > 1 {
		return "the recipients' domains"
	}
	return t.domain
}

// serve delivers from t.source. What may have been refused only because several domains shared a transaction is tried for each by
// itself.
func (t *transfer) serve(ctx context.Context, pending []int) {
	t.along(ctx, pending)
	if len(t.parts) > 1 {
		t.apart(ctx)
	}
}

// along tries the hosts, from t.source. The number of connections is bounded by MaxConnections; the time
// by the time-outs of each, and by ctx.
func (t *transfer) along(ctx context.Context, pending []int) {
	w := walk{t: t, left: t.maxConnections(), pending: pending}
	t.looping = false
	t.visit.setRaced(nil) // of recipients before, which says nothing about now
	var late []lateHost   // at most maxHosts
	for _, h := range t.arrange(ctx, t.hosts) {
		if !w.on(ctx, h) {
			break
		}
		t.last, t.said = mailspine.Receipt{RemoteMTA: h.name, Source: t.source.Name}, reply{}
		// RFC 7672 section 2.1: the addresses before the TLSA records.
		addrs, err := t.addrs(ctx, h)
		if err == nil {
			err = t.decide(ctx, h)
		}
		if err != nil {
			w.worst.add(err, t.lastReceipt())
			continue
		}
		fresh, dead := t.sift(h, addrs)
		if len(dead) > 0 {
			late = append(late, lateHost{h, t.tls, dead})
		}
		if w.try(ctx, h, fresh) {
			return
		}
	}
	if len(late) > 0 && w.late(ctx, late) {
		return
	}
	if w.worst.err == nil {
		w.worst.add(nil, t.lastReceipt())
	}
	for _, i := range w.pending {
		t.errs[i] = w.worst.err
		if cerr := ctx.Err(); cerr != nil {
			t.errs[i] = fmt.Errorf("mta: delivery to %s: %w", t.destination(i), cerr)
		}
		t.attempt.Record(i, w.worst.receipt)
	}
}

// maxConnections is how many connections are tried.
func (t *transfer) maxConnections() int {
	if n := t.r.MaxConnections; n > 0 {
		return n
	}
	return 6
}

// destination is the domain of one recipient, or the host of a Smarthost.
func (t *transfer) destination(i int) string {
	for _, p := range t.parts {
		if slices.Contains(p.index, i) {
			return p.domain
		}
	}
	return t.domain
}

// domainOf is the domain of a recipient as hooks are told of it; "": of all.
func (t *transfer) domainOf(rcpt string) string {
	if rcpt == "" || len(t.parts) < 2 {
		return t.domain
	}
	if d, err := mailspine.ASCIIDomain(rcpt[strings.LastIndexByte(rcpt, '@')+1:]); err == nil {
		return d
	}
	return t.domain
}

// A walk is the way of some recipients along the hosts.
type walk struct {
	t       *transfer
	left    int // connections that may still be tried
	tried   bool
	pending []int // without a result
	worst   failure
	bind    *BindError
	self    *uint16 // the preference of a host that turned out to be this one
}

// on reports whether a host may be tried, and any after it.
func (w *walk) on(ctx context.Context, h host) bool {
	return w.left > 0 && ctx.Err() == nil && w.bind == nil && (w.self == nil || h.pref < *w.self)
}

// try tries addresses of a host, and reports whether every recipient has a result.
func (w *walk) try(ctx context.Context, h host, addrs []netip.Addr) bool {
	t := w.t
	t.rest = addrs
	for len(t.rest) > 0 && w.on(ctx, h) {
		a := t.rest[0]
		t.rest = t.rest[1:]
		before := w.left
		var err error
		w.pending, err = t.tryAddr(ctx, h, a, w.pending, &w.left)
		w.tried = w.tried || w.left < before
		if len(w.pending) == 0 {
			t.answered()
			return true
		}
		w.worst.add(err, t.lastReceipt())
		// Without its address the source reaches no other host either.
		errors.As(err, &w.bind)
		if t.looping {
			t.looping, w.self = false, &h.pref
		}
	}
	t.rest = nil
	return false
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

// lastReceipt is what is known of the last connection.
func (t *transfer) lastReceipt() mailspine.Receipt {
	rec := t.last
	if t.said.Code != 0 {
		rec.Reply = t.said.String()
	}
	return rec
}

func (t *transfer) log(ctx context.Context, level slog.Level, what, peer string, err error) {
	t.r.logger().LogAttrs(ctx, level, what, slog.String("id", string(t.env.ID)),
		slog.String("domain", t.domain), slog.String("peer", peer), slog.Any("err", err))
}
