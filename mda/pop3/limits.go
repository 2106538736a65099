package pop3

import (
	"context"
	"net/netip"
	"time"
)

// Limits bound what clients can use up. In each field zero means the default
// named there, and a negative number no limit.
type Limits struct {
	MaxConns        int // connections at the same time; default 2,000; beyond: -ERR [SYS/TEMP]
	MaxConnsPerAddr int // of these from one IPv4 address or IPv6 /64 network; default 50; beyond: -ERR [SYS/TEMP]
	MaxCommands     int // commands of one connection; default 10,000,000: RETR and DELE of every message, and more
	MaxErrors       int // refused commands one after the other; default 20
	MaxAuthFailures int // failed logins of one connection; default 3

	Login     time.Duration // to log in; default 3 minutes
	Command   time.Duration // for a complete command line; default 10 minutes (RFC 1939 section 3)
	Write     time.Duration // for each 32 KiB to be written; default 1 minute
	Handshake time.Duration // for TLS; default 30 seconds
	Session   time.Duration // for the whole connection; default 12 hours
}

func (l Limits) withDefaults() Limits {
	count := func(n *int, def int) {
		if *n == 0 {
			*n = def
		}
	}
	count(&l.MaxConns, 2000)
	count(&l.MaxConnsPerAddr, 50)
	count(&l.MaxCommands, 10_000_000)
	count(&l.MaxErrors, 20)
	count(&l.MaxAuthFailures, 3)
	span := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	span(&l.Login, 3*time.Minute)
	span(&l.Command, 10*time.Minute)
	span(&l.Write, time.Minute)
	span(&l.Handshake, 30*time.Second)
	span(&l.Session, 12*time.Hour)
	return l
}

// A Trace has hooks into a server. Each may be nil. They are called by the
// connection's goroutine, which waits for them, and get its context.
type Trace struct {
	// Connected is called when a connection is accepted, before anything is sent.
	Connected func(ctx context.Context, remote netip.AddrPort)
	// Disconnected is called when it is over.
	Disconnected func(ctx context.Context, remote netip.AddrPort, lasted time.Duration)
	// Wire is called for each line, without its line end, sent by us or by the client. Passwords and
	// what AUTH exchanges are replaced by "***", and a message by its size in brackets.
	Wire func(ctx context.Context, remote netip.AddrPort, sent bool, line string)
}

// Stats are counts since the server began, and Conns the connections now.
type Stats struct {
	Conns     int64 // open now
	Accepted  int64 // connections let in
	TooMany   int64 // connections refused by a limit
	AuthOK    int64
	AuthBad   int64
	Retrieved int64 // messages sent whole
	Deleted   int64 // messages removed at QUIT
	Errors    int64 // commands refused
	Timeouts  int64 // connections cut off for being slow or silent
	Panics    int64
}
