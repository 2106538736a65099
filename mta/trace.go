package mta

import (
	"context"
	"time"

	"github.com/mailspine/mailspine"
)

// A RelayTrace is a set of hooks into the steps of a [Relay]. Any of them may be
// nil. They are called on the path of the delivery, in the order of events, with the
// context of Deliver: they return soon. A delivery calls one at a time; several
// deliveries call at the same time. Infos may get more fields. Where domains of one site are served together, Resolved and Granted are called for
// each of them, the Domain of a reply to RCPT is the recipient's, and that of the other hooks is the first one.
type RelayTrace struct {
	// Resolved is called when the mail exchangers of a domain are known, or not.
	Resolved func(ctx context.Context, info ResolvedInfo)
	// Granted is called for each part that an Egress made of a domain's recipients.
	Granted func(ctx context.Context, info GrantedInfo)
	// Dialed is called after each attempt to connect, also for an address that
	// was forbidden. Of two that were under way at once (see Relay.FallbackDelay) the one that is used comes last.
	Dialed func(ctx context.Context, info DialedInfo)
	// Reused is called in place of Dialed, TLS and the replies to them, when a connection is used again.
	Reused func(ctx context.Context, info ReusedInfo)
	// TLS is called after each handshake.
	TLS func(ctx context.Context, info TLSDoneInfo)
	// Reply is called for each reply to a command of a transaction, and for the greeting.
	Reply func(ctx context.Context, info ReplyInfo)
	// Wire is called for each line sent and received, without line end and with control
	// characters replaced. The lines of the message are not shown, only their number of octets.
	// Secrets are never shown. The commands of a flight are shown when it is sent, before the replies to it. The good-bye of a
	// connection that was kept comes after its deliveries, with context.Background.
	Wire func(ctx context.Context, line WireLine)
}

// ResolvedInfo tells which hosts take mail for a domain.
type ResolvedInfo struct {
	Domain string
	Site   string   // what the hosts are called together, also to Relay.Route; "": not known
	Hosts  []string // in the order in which they will be tried; of one preference, those with a kept connection go first all the same
	Err    error
}

// GrantedInfo tells which source some recipients are sent from, or why they are not sent.
type GrantedInfo struct {
	Domain     string
	Source     Source // zero with Err
	Recipients []int  // indices into the envelope
	Err        error  // a *mailspine.NotNow where a cap says so
}

// DialedInfo tells about one connection, or why there is none.
type DialedInfo struct {
	Domain   string
	Host     string
	Addr     string // address and port
	Source   string // the name of the egress source; "": there is none
	Local    string // our side of the connection; "": there is no connection
	Duration time.Duration
	Err      error
}

// ReusedInfo tells about a connection that is used again.
type ReusedInfo struct {
	Domain   string
	Host     string
	Addr     string        // address and port
	Source   string        // the name of the egress source; "": there is none
	Local    string        // our side of the connection
	Idle     time.Duration // for how long nobody used it
	Messages int           // transactions on it so far
}

// TLSDoneInfo tells about one handshake.
type TLSDoneInfo struct {
	Domain string
	Host   string
	Level  TLSLevel
	// Policy is what the level comes from: "requiretls", "dane", "mta-sts", "local" (Relay.TLSPolicy) or "opportunistic".
	Policy string
	TLS    mailspine.TLSInfo // zero if it failed
	// Resumed: it resumed the session of an earlier connection, which takes one certificate and half of the work.
	Resumed bool
	Err     error
}

// ReplyInfo tells what a server answered.
type ReplyInfo struct {
	Domain    string
	Host      string
	Addr      string
	Command   string // "greeting", "EHLO", "MAIL", "RCPT", "DATA", "message" (the final dot) and so on
	Recipient string // for RCPT
	Reply     string // in one line, cleaned and cut
}

// WireLine is one line of a dialogue.
type WireLine struct {
	Host string
	Addr string
	Sent bool // by us
	Line string
}

// trace returns the hooks; without any, one that has none.
func (r *Relay) trace() RelayTrace {
	if r.Trace == nil {
		return RelayTrace{}
	}
	return *r.Trace
}
