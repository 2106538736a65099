package imap

import (
	"context"
	"net/netip"
	"time"
)

// Limits bound what clients can use up. In each field zero means the default
// named there, and a negative number no limit. A command without its literals has at most
// 50 KiB, a literal that is not a message 4 KiB; an idle connection is closed after 35 minutes, one that is slow with a command after 30
// seconds, with a message after 5 minutes: these are go-imap's.
type Limits struct {
	MaxConns        int // connections at the same time; default 2,000; beyond: BYE
	MaxConnsPerAddr int // of these from one IPv4 address or IPv6 /64 network; default 50; beyond: BYE
	MaxAuthFailures int // failed logins of one connection; default 3

	MaxMessage int64 // octets of a message in APPEND; default 50 MiB; beyond: NO [TOOBIG]

	Login     time.Duration // to log in; default 3 minutes
	Handshake time.Duration // for implicit TLS; default 30 seconds
	Session   time.Duration // for the whole connection; default 24 hours
}

func (l Limits) withDefaults() Limits {
	count := func(n *int, def int) {
		if *n == 0 {
			*n = def
		}
	}
	count(&l.MaxConns, 2000)
	count(&l.MaxConnsPerAddr, 50)
	count(&l.MaxAuthFailures, 3)
	if l.MaxMessage == 0 {
		l.MaxMessage = 50 << 20
	}
	span := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	span(&l.Login, 3*time.Minute)
	span(&l.Handshake, 30*time.Second)
	span(&l.Session, 24*time.Hour)
	return l
}

// A Trace has hooks into a server. Each may be nil. They are called by the connection's goroutine, which waits for
// them, and get its context.
type Trace struct {
	// Connected is called when a session begins, after the handshake of implicit TLS.
	Connected func(ctx context.Context, remote netip.AddrPort)
	// Disconnected is called when it is over.
	Disconnected func(ctx context.Context, remote netip.AddrPort, lasted time.Duration)
	// LoggedIn is called after each login: the account, "" if it failed, and why.
	LoggedIn func(ctx context.Context, remote netip.AddrPort, login string, err error)
}

// Stats are counts since the server began, and Conns the sessions now.
type Stats struct {
	Conns    int64 // open now
	Accepted int64 // connections let in
	TooMany  int64 // connections refused by a limit
	AuthOK   int64
	AuthBad  int64
	Appended int64 // messages
	Errors   int64 // commands that failed for a reason of ours
}
