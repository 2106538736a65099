package mailspine

import (
	"context"
	"time"
)

// An Event is what happened to one recipient's copy of a message we sent.
type Event string

// The events. Delivered, Deferred and Failed come from the queue; the others
// come back later.
const (
	EventDelivered    Event = "delivered"    // the next hop took it
	EventDeferred     Event = "deferred"     // refused for now, or not reached
	EventFailed       Event = "failed"       // given up: refused for good, or expired
	EventBounced      Event = "bounced"      // taken, and a failure reported afterwards
	EventComplained   Event = "complained"   // reported as spam by the reader
	EventUnsubscribed Event = "unsubscribed" // by the reader
)

// A Cause says why a delivery did not happen, as far as it can be told, in
// terms that matter to a sender. Causes on the sender's side say nothing
// against the recipient.
type Cause string

// The causes. The zero value is unknown.
const (
	CauseUnknown          Cause = ""
	CauseRecipientUnknown Cause = "recipient-unknown"
	CauseMailboxFull      Cause = "mailbox-full"
	CauseInactive         Cause = "inactive"
	CauseMoved            Cause = "moved"
	CauseDomainBad        Cause = "domain-bad"
	CauseContent          Cause = "content"
	CauseSize             Cause = "size"
	CauseAuthentication   Cause = "sender-authentication"
	CauseReputation       Cause = "sender-reputation"
	CauseRate             Cause = "rate"
	CausePolicy           Cause = "policy"
	CauseRelayDenied      Cause = "relay-denied"
	CauseNetwork          Cause = "network"
	CauseProtocol         Cause = "protocol"
	CauseExpired          Cause = "expired"
	CauseAutoReply        Cause = "auto-reply"
	CauseOther            Cause = "other"
)

// An Outcome is one event of one recipient, as the parts of the system tell it
// to each other: the queue and the feedback loop to reputation, suppression and
// egress.
type Outcome struct {
	Time      time.Time
	Event     Event
	ID        MsgID
	From      Address
	Recipient Address

	Tenant, Stream, Pool string

	Attempt int // which attempt it was, from 1; 0: not known
	// First is set for the first result of the first attempt: the one that
	// warm-up counts.
	First   bool
	Status  *Error // the refusal; nil: none
	Cause   Cause
	Receipt Receipt
}

// An OutcomeSink takes Outcomes. Record is called after the fact, from many
// goroutines, and on the path of delivery: it returns soon and has no error to
// return. What it cannot take it counts.
type OutcomeSink interface {
	Record(ctx context.Context, o Outcome)
}

// The OutcomeSinkFunc type makes an OutcomeSink of a function.
type OutcomeSinkFunc func(ctx context.Context, o Outcome)

// Record calls f.
func (f OutcomeSinkFunc) Record(ctx context.Context, o Outcome) { f(ctx, o) }

// A Classifier finds the cause behind a refusal. It is a pure function, safe
// for concurrent use and linear in the length of the reply, which a stranger wrote.
type Classifier interface {
	Classify(status *Error, r Receipt) Cause
}

// Reputation tells how a sender is doing. Egress asks it before it
// speeds up. It is safe for concurrent use.
type Reputation interface {
	// Standing returns what is known of the mail that key selects, up to now.
	// Nothing known is a zero Standing, not an error.
	Standing(ctx context.Context, key ReputationKey) (Standing, error)
}

// A ReputationKey selects mail. An empty field selects all.
type ReputationKey struct {
	Tenant, Stream string
	Source         string // our IP address
	Domain         string // the sending domain
	Provider       string // the receiving side
}

// A Standing is a count of outcomes in a window.
type Standing struct {
	Since     time.Time // the beginning of the window
	Delivered int64
	Deferred  int64
	Blocked   int64 // refused with a cause on the sender's side
	Bounced   int64 // refused with a cause on the recipient's side
	Complaint int64
	// Enough is set when the sample is large enough to judge by.
	Enough bool
}

// ReturnPaths makes reverse-paths that tell, when mail comes back to one,
// which message and recipient it was made for (variable envelope return path),
// sealed so that strangers cannot make them. It is safe for concurrent use.
type ReturnPaths interface {
	// Seal returns the reverse-path for a copy of a message to one recipient.
	Seal(env *Envelope, rcpt Recipient) (Address, error)
	// Open takes a sealed path apart. ok is false for an address that is not a
	// sealed path at all; a forged, damaged or expired one is an error.
	Open(a Address) (info ReturnPath, ok bool, err error)
}

// A ReturnPath is what a sealed reverse-path holds.
type ReturnPath struct {
	ID             MsgID
	Tenant, Stream string
	Recipient      string // the address, or a keyed hash of it, as the sealer chose
	Sealed         time.Time
}
