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
	// Relay.Hostname. A mail exchanger of this name is not taken for ourselves unless Relay.OwnNames has it.
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
// The Relay serves the grants one after the other, in their order, and calls the Done of each once, when its recipients
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

// share asks the Egress, and serves what it grants.
func (t *transfer) share(ctx context.Context, hosts []host, names []string, pending []int) {
	grants, err := t.r.Egress.Choose(ctx, EgressRequest{Env: t.env, Domain: t.domain, Hosts: names, Recipients: slices.Clone(pending)})
	// Each grant gets its Done, whatever happens to those before it.
	next := 0
	defer func() {
		for _, g := range grants[next:] {
			if g.Done != nil {
				g.Done(0)
			}
		}
	}()
	if err != nil {
		t.grantTrace(ctx, Grant{Recipients: pending, Err: err})
		t.settle(pending, err)
		return
	}
	if err := t.checkGrants(grants, pending); err != nil {
		t.r.logger().ErrorContext(ctx, "mta: wrong answer of the Egress", "id", t.env.ID, "domain", t.domain, "err", err)
		t.settle(pending, err)
		return
	}
	t.granted = true
	for next < len(grants) {
		g := grants[next]
		next++
		t.grant(ctx, hosts, g)
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

// grant serves the recipients of one grant.
func (t *transfer) grant(ctx context.Context, hosts []host, g Grant) {
	t.told = map[int]struct{}{}
	if g.Done != nil {
		defer func() { g.Done(len(t.told)) }() // also if a hook panics
	}
	if len(g.Recipients) == 0 {
		return
	}
	t.grantTrace(ctx, g)
	if g.Err != nil {
		t.settle(g.Recipients, g.Err)
		return
	}
	t.source = g.Source
	t.source.Addr = g.Source.Addr.Unmap()
	if t.source.Name == "" && t.source.Addr.IsValid() {
		t.source.Name = t.source.Addr.String()
	}
	t.serve(ctx, hosts, slices.Clone(g.Recipients))
}

func (t *transfer) grantTrace(ctx context.Context, g Grant) {
	if f := t.r.trace().Granted; f != nil {
		info := GrantedInfo{Domain: t.domain, Source: g.Source, Recipients: slices.Clone(g.Recipients), Err: g.Err}
		if g.Err != nil {
			info.Source = Source{}
		}
		f(ctx, info)
	}
}
