package mailspine

import (
	"context"
	"time"
)

// An Attempt is what the queue lends to a delivery through the context: what a
// nil error cannot carry. Get it with [AttemptFrom].
//
// Its methods are safe for concurrent use. After the Deliver call returned
// they do nothing.
type Attempt interface {
	// BeforeCommit is the dot guard. A Deliverer that hands the message to
	// someone who will not forget it (a remote MTA) calls it just before the
	// point of no return, the final dot, with the longest time it will wait for
	// the answer. The queue extends its lease past that. An error means that the
	// lease is lost, and somebody else may be delivering: drop the connection
	// without the dot, and return the error.
	BeforeCommit(ctx context.Context, max time.Duration) error

	// Record tells what happened at the next hop for recipient i of the
	// envelope given to Deliver. The last Receipt for an i wins.
	Record(i int, r Receipt)
}

// A Receipt is what is known of the next hop of one recipient. DSNs, logs and
// reputation are made from it. Every field may be zero: not known.
type Receipt struct {
	RemoteMTA  string // the host's name, as in Remote-MTA of RFC 3464 section 2.3.5
	RemoteAddr string // its address and port
	Reply      string // the reply that settled the recipient, one line, at most 1,000 octets
	Source     string // our own address, or the name of the egress source
	TLS        TLSInfo
	DSNRelayed bool // the next hop took over the sender's DSN requests (RFC 3461 section 5.2.2)
}

// TLSInfo describes the TLS of a connection, in or out, in the strings that
// people read. The zero value means that there was none.
type TLSInfo struct {
	Version  string `json:",omitempty"` // "TLS 1.3"
	Cipher   string `json:",omitempty"` // "TLS_AES_128_GCM_SHA256"
	Peer     string `json:",omitempty"` // the name the peer's certificate was verified for; "": not verified
	ServerID string `json:",omitempty"` // the SNI name
}

type attemptKey struct{}

type noAttempt struct{}

func (noAttempt) BeforeCommit(context.Context, time.Duration) error { return nil }
func (noAttempt) Record(int, Receipt)                               {}

// AttemptFrom returns the Attempt of a delivery. It is never nil: outside of a
// queue it is one that does nothing.
func AttemptFrom(ctx context.Context) Attempt {
	if a, ok := ctx.Value(attemptKey{}).(Attempt); ok {
		return a
	}
	return noAttempt{}
}

// WithAttempt returns a context that lends a to the delivery that gets it.
func WithAttempt(ctx context.Context, a Attempt) context.Context {
	return context.WithValue(ctx, attemptKey{}, a)
}

// WithSubset returns a context for a delivery to a part of the recipients:
// what it records for recipient i is recorded for recipient index[i] of the
// Attempt in ctx. It goes with [Envelope.Subset]. index is not copied.
func WithSubset(ctx context.Context, index []int) context.Context {
	a := AttemptFrom(ctx)
	if a == (noAttempt{}) {
		return ctx
	}
	return WithAttempt(ctx, subset{a, index})
}

type subset struct {
	Attempt
	index []int
}

func (s subset) Record(i int, r Receipt) {
	if i >= 0 && i < len(s.index) {
		s.Attempt.Record(s.index[i], r)
	}
}
