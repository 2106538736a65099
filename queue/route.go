package queue

import (
	"context"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A Router says which route a recipient takes: recipients of a message with the same Route
// are leased and delivered together, up to 1,000 of them.
//
// Route is asked when a message is put, and again when it is leased. It must
// not modify env, and must be safe for concurrent use. A permanent error (see
// mailspine.Status) means that there is no way to this recipient, a temporary
// one that it cannot be told now.
type Router interface {
	Route(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) (Route, error)
}

// The RouterFunc type makes a Router of a function.
type RouterFunc func(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) (Route, error)

// Route calls f.
func (f RouterFunc) Route(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) (Route, error) {
	return f(ctx, env, rcpt)
}

// DomainRoute is the route of a recipient where no Router says otherwise: its
// domain in lower case, with A-labels where it has such a form.
func DomainRoute(rcpt mailspine.Recipient) Route {
	d, err := rcpt.Address.ASCIIDomain()
	if err != nil {
		d = strings.ToLower(rcpt.Address.Domain)
	}
	return Route(d)
}

// A Gate says whether a route can be served now.
//
// Ready is asked for each item after it was leased and before it is delivered.
// A zero Hold means go. Otherwise the item goes back to the store without an
// attempt counted, and the route is left alone until Hold.Until. An error closes the
// gate for a minute: what keeps a limit must not be passed by when it fails.
//
// Senders are told of a delay and messages expire although their route is held: once in a
// quarter of an hour the items of a held route that have become due are looked at, and the Gate asked
// for each; they wait then until the hold ends, or something is to be told. It must be safe for concurrent use.
type Gate interface {
	Ready(ctx context.Context, r Route) (Hold, error)
}

// The GateFunc type makes a Gate of a function.
type GateFunc func(ctx context.Context, r Route) (Hold, error)

// Ready calls f.
func (f GateFunc) Ready(ctx context.Context, r Route) (Hold, error) { return f(ctx, r) }

// A Hold says why a route cannot be served now. The zero Hold says that it can.
type Hold struct {
	Until  time.Time // when to ask again; zero in a Hold that is not: in a minute
	Reason string    // for people
	Rule   string    // for programs
}

// IsZero reports whether there is nothing that holds.
func (h Hold) IsZero() bool { return h.Until.IsZero() && h.Reason == "" && h.Rule == "" }

// String tells reason and rule.
func (h Hold) String() string {
	switch {
	case h.Rule == "":
		return h.Reason
	case h.Reason == "":
		return h.Rule
	}
	return h.Reason + " (" + h.Rule + ")"
}
