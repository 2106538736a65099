package mta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/mailspine/mailspine"
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

	rule     TLSRule     // of the local policy, for the domain
	tls      tlsDecision // for the host that is being tried; see decide
	secure   bool        // the answer that named the hosts was authentic
	implicit bool        // there is no MX: the domain is its own

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
	leave, err := t.enter(ctx, hosts)
	if err != nil {
		t.settle(pending, err)
		return
	}
	defer leave()
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
		if err := t.decide(ctx, h); err != nil {
			worst.add(err, t.lastReceipt())
			continue
		}
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
	if t.said.code != 0 {
		rec.Reply = t.said.String()
	}
	return rec
}

func (t *transfer) log(ctx context.Context, level slog.Level, what, peer string, err error) {
	t.r.logger().LogAttrs(ctx, level, what, slog.String("id", string(t.env.ID)),
		slog.String("domain", t.domain), slog.String("peer", peer), slog.Any("err", err))
}
