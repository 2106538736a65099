package msa

import (
	"context"
	"net/netip"
	"time"

	"github.com/mailspine/mailspine"
)

// Limits bound what clients can use up. In each field zero means the default
// named there, and a negative number no limit.
type Limits struct {
	MaxConns        int // connections at the same time; default 2,000; beyond: 421 4.3.2
	MaxConnsPerAddr int // of these from one IPv4 address or IPv6 /64 network; default 50; beyond: 421 4.7.0
	MaxCommands     int // commands of one connection; default 10,000; beyond: 421 4.7.0
	MaxErrors       int // refused commands since the last accepted message, 452 4.5.3 aside; default 20; beyond: 421 4.7.0
	MaxAuthFailures int // failed AUTH of one connection; default 3; the last one: 421 4.7.0

	MaxRecipients int   // of one message; default 1,000; beyond: 452 4.5.3, the ones before stay accepted
	MaxSize       int64 // octets of one message; default 50 MiB; beyond: 552 5.3.4
	MaxLine       int   // octets of one text line with its CRLF; default 1,000 (RFC 5321 section 4.5.3.1.6)

	Command   time.Duration // for a complete command line; default 5 minutes (RFC 5321 section 4.5.3.2.7)
	DataBlock time.Duration // between two pieces of a message; default 3 minutes
	Data      time.Duration // for a whole message; default 30 minutes
	Write     time.Duration // for a reply to be written; default 1 minute
	Handshake time.Duration // for TLS; default 30 seconds
	Session   time.Duration // for the whole connection; default 2 hours
	Deliver   time.Duration // for Next and Undelivered, each, to take a complete message; default 5 minutes
}

// A Trace has hooks into a server. Each may be nil. They are called by the
// connection's goroutine, which waits for them, and get its context.
type Trace struct {
	// Connected is called when a connection is accepted, before anything is sent.
	Connected func(ctx context.Context, remote netip.AddrPort)
	// Disconnected is called when it is over.
	Disconnected func(ctx context.Context, remote netip.AddrPort, lasted time.Duration)
	// Wire is called for each line, without its line end, sent by us or by the
	// client. What AUTH exchanges is replaced by "***", and a
	// message by its size in brackets.
	Wire func(ctx context.Context, remote netip.AddrPort, sent bool, line string)
	// Message is called before the reply to a message: its envelope, the octets
	// received, and the error; nil: taken.
	Message func(ctx context.Context, env *mailspine.Envelope, size int64, err error)
}

// Stats are counts since the server began, and Conns the connections now.
type Stats struct {
	Conns    int64 // open now
	Accepted int64 // connections let in
	TooMany  int64 // connections refused by a limit
	Messages int64 // messages taken
	Refused  int64 // messages refused after their data
	Errors   int64 // commands refused
	AuthOK   int64
	AuthBad  int64
	Timeouts int64 // connections cut off for being slow or silent
	Panics   int64
}
