package mta

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/mailspine/mailspine"
)

// A Source is one address that mail is sent from.
type Source struct {
	// Name is what people and receipts call it; "": its address.
	Name string
	// Addr is the local address of the connections, with no port; hosts of the other
	// family are not tried. Zero: the system's choice.
	Addr netip.Addr
	// Hostname is the name in EHLO, a domain name that resolves to Addr; "":
	// Relay.Hostname. A mail exchanger of this name is not taken for ourselves unless Relay.OwnNames has it; a server that greets
	// with it, when it is sent from here, is.
	Hostname string
}

// String returns the name, or else the address.
func (s Source) String() string {
	switch {
	case s.Name != "":
		return s.Name
	case s.Addr.IsValid():
		return s.Addr.String()
	}
	return "default"
}

// An Egress chooses the sources that a [Relay] sends from, and keeps their
// limits.
//
// Choose is asked once for each domain of a delivery, when its hosts are known and
// before a connection is made. It divides the recipients of the request: each of them is in exactly one of the
// grants. Those that are in none, or in more than one, are not sent, which is a
// temporary error: a limit is kept also when an Egress is wrong. An error holds for all recipients; one that
// mailspine.Status does not know is temporary.
//
// Several domains of a delivery that share a site are asked for one after the other before the first is sent; their grants with the same source are
// served together.
//
// The Relay serves the grants of a domain one after the other, in their order, and calls the Done of each once, when its recipients
// have their results, and also if nothing was sent or ctx ended. The request is the Egress's, but for Env, which it must not modify
// or keep; the grants are the Relay's. Choose must be safe for concurrent use.
type Egress interface {
	Choose(ctx context.Context, req EgressRequest) ([]Grant, error)
}

// The EgressFunc type makes an Egress of a function.
type EgressFunc func(ctx context.Context, req EgressRequest) ([]Grant, error)

// Choose calls f.
func (f EgressFunc) Choose(ctx context.Context, req EgressRequest) ([]Grant, error) {
	return f(ctx, req)
}

// An EgressRequest asks for sources.
type EgressRequest struct {
	Env    *mailspine.Envelope
	Domain string   // where the message goes, in lower case with A-labels; for a Smarthost the host's name
	Hosts  []string // the mail exchangers, in the order in which they will be tried
	// Recipients are those of the domain: indices into Env.Recipients, ascending, at
	// least one.
	Recipients []int
}

// A Grant is leave to send to some recipients, or says why they must wait.
type Grant struct {
	// Recipients are indices out of the request's Recipients.
	Recipients []int
	// Source is where they are sent from.
	Source Source
	// Err is the result of the recipients if they are not sent: a *mailspine.NotNow
	// if they wait. nil: they are sent.
	Err error
	// Done is told how many of the recipients a server heard of in a RCPT command, whatever it answered:
	// those that count. Where the server refused MAIL, RCPT commands that went along in the same flight were not looked at and do not
	// count. Of the others nobody knows, so that they are given back. A recipient
	// that two hosts heard of counts once. nil: nobody is told.
	Done func(sent int)
}

type sourceKey struct{}

// SourceFrom returns the source that a connection has to be made from, for a
// Relay.Dial. ok is false where no Egress chose one.
func SourceFrom(ctx context.Context) (s Source, ok bool) {
	s, ok = ctx.Value(sourceKey{}).(Source)
	return s, ok
}

// A BindError is inside of the temporary error (451 4.4.1) of recipients whose source has an
// address that could not be bound: most often it is not an address of this host. No other address
// or host is tried from that source then.
type BindError struct {
	Source Source
	Err    error
}

// BindRule is the rule that a [BindError] names.
const BindRule = "egress/bind"

// Error names the source, the rule and the cause.
func (e *BindError) Error() string {
	return fmt.Sprintf("mta: source %s (%s), address %s: %v", e.Source, BindRule, e.Source.Addr, e.Err)
}

// Unwrap returns the error of the system.
func (e *BindError) Unwrap() error { return e.Err }

// isBind reports whether a dial failed because of our own address.
func isBind(err error) bool {
	var se *os.SyscallError
	return errors.As(err, &se) && se.Syscall == "bind"
}

// A round is a source, and the grants for it that are served together: at most one of each domain.
type round struct {
	source Source
	grants []domainGrant
}

type domainGrant struct {
	Grant
	part int // index into transfer.parts
	done bool
}

// share asks the Egress for each domain, and serves what it grants. The grants of one domain are served in their order, one after the
// other; those of several domains with the same source together.
func (t *transfer) share(ctx context.Context) {
	var rounds []*round
	// Each grant gets its Done, whatever happens to those before it.
	defer func() {
		for _, r := range rounds {
			r.done(nil)
		}
	}()
	for i := range t.parts {
		rounds = t.ask(ctx, i, rounds)
	}
	t.granted = true
	for _, r := range rounds {
		t.grant(ctx, r)
	}
}

// ask asks for one domain, and adds the grants to the rounds.
func (t *transfer) ask(ctx context.Context, part int, rounds []*round) []*round {
	p := t.parts[part]
	grants, err := t.r.Egress.Choose(ctx, EgressRequest{Env: t.env, Domain: p.domain, Hosts: hostNames(t.hosts), Recipients: slices.Clone(p.index)})
	if err != nil {
		t.grantTrace(ctx, p.domain, Grant{Recipients: p.index, Err: err})
	} else if err = t.checkGrants(grants, p.index); err != nil {
		t.r.logger().ErrorContext(ctx, "mta: wrong answer of the Egress", "id", t.env.ID, "domain", p.domain, "err", err)
	}
	if err != nil {
		t.settle(p.index, err)
		for i := range grants {
			grants[i].Recipients = nil // nothing is sent, but Done is called
		}
	}
	from := 0
	for _, g := range grants {
		i := len(rounds)
		if g.Err == nil {
			for i = from; i < len(rounds) && !rounds[i].takes(g, part); i++ {
			}
		}
		if i == len(rounds) {
			rounds = append(rounds, &round{source: g.Source})
		}
		rounds[i].grants = append(rounds[i].grants, domainGrant{Grant: g, part: part})
		from = i + 1
	}
	return rounds
}

// takes reports whether a grant can be served in the round of others.
func (r *round) takes(g Grant, part int) bool {
	return r.source == g.Source && r.grants[0].Err == nil && r.grants[len(r.grants)-1].part != part
}

// done tells the grants how many of their recipients a server heard of.
func (r *round) done(told map[int]struct{}) {
	for i := range r.grants {
		g := &r.grants[i]
		if g.done {
			continue
		}
		g.done = true
		n := 0
		for _, rcpt := range g.Recipients {
			if _, ok := told[rcpt]; ok {
				n++
			}
		}
		if g.Done != nil {
			g.Done(n)
		}
	}
}

// checkGrants returns an error unless each of pending, and nothing else, is in one grant.
func (t *transfer) checkGrants(grants []Grant, pending []int) error {
	open := make(map[int]bool, len(pending))
	for _, i := range pending {
		open[i] = true
	}
	for _, g := range grants {
		for _, i := range g.Recipients {
			if !open[i] {
				return fmt.Errorf("mta: Egress: recipient %d was not asked for, or is granted twice", i)
			}
			delete(open, i)
		}
		if h := g.Source.Hostname; h != "" && g.Err == nil {
			if err := (mailspine.Address{Local: "x", Domain: h}).Validate(); err != nil {
				return fmt.Errorf("mta: Egress: the Hostname of source %s: %w", g.Source, err)
			}
		}
	}
	if len(open) > 0 {
		return fmt.Errorf("mta: Egress: %d of %d recipients are in no grant", len(open), len(pending))
	}
	return nil
}

// grant serves the recipients of one round.
func (t *transfer) grant(ctx context.Context, r *round) {
	t.told = map[int]struct{}{}
	defer func() { r.done(t.told) }() // also if a hook panics
	// The part of the transfer that this round is, for texts and hooks.
	defer func(parts []part, domain string) { t.parts, t.domain = parts, domain }(t.parts, t.domain)
	var served []part
	for _, g := range r.grants {
		if len(g.Recipients) == 0 {
			continue
		}
		domain := t.parts[g.part].domain
		t.grantTrace(ctx, domain, g.Grant)
		if g.Err != nil {
			t.settle(g.Recipients, g.Err)
			continue
		}
		served = append(served, part{domain, slices.Clone(g.Recipients)})
	}
	if len(served) == 0 {
		return
	}
	t.parts, t.domain = served, served[0].domain
	t.source = r.source
	t.source.Addr = r.source.Addr.Unmap()
	if t.source.Name == "" && t.source.Addr.IsValid() {
		t.source.Name = t.source.Addr.String()
	}
	t.serve(ctx, t.recipients())
}

func (t *transfer) grantTrace(ctx context.Context, domain string, g Grant) {
	if f := t.r.trace().Granted; f != nil {
		info := GrantedInfo{Domain: domain, Source: g.Source, Recipients: slices.Clone(g.Recipients), Err: g.Err}
		if g.Err != nil {
			info.Source = Source{}
		}
		f(ctx, info)
	}
}
