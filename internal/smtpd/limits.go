package smtpd

import "time"

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
	Deliver   time.Duration // for Next to take a complete message, see Door; default 5 minutes
}

// withDefaults returns l with every field meaning what it says: zero is no limit.
func (l Limits) withDefaults() Limits {
	setInt := func(p *int, def int) {
		if *p == 0 {
			*p = def
		}
		*p = max(*p, 0)
	}
	setTime := func(p *time.Duration, def time.Duration) {
		if *p == 0 {
			*p = def
		}
		*p = max(*p, 0)
	}
	setInt(&l.MaxConns, 2000)
	setInt(&l.MaxConnsPerAddr, 50)
	setInt(&l.MaxCommands, 10_000)
	setInt(&l.MaxErrors, 20)
	setInt(&l.MaxAuthFailures, 3)
	setInt(&l.MaxRecipients, 1000)
	setInt(&l.MaxLine, 1000)
	if l.MaxSize == 0 {
		l.MaxSize = 50 << 20
	}
	l.MaxSize = max(l.MaxSize, 0)
	setTime(&l.Command, 5*time.Minute)
	setTime(&l.DataBlock, 3*time.Minute)
	setTime(&l.Data, 30*time.Minute)
	setTime(&l.Write, time.Minute)
	setTime(&l.Handshake, 30*time.Second)
	setTime(&l.Session, 2*time.Hour)
	setTime(&l.Deliver, 5*time.Minute)
	return l
}

// The bounds that are not for configuration.
const (
	// maxCommandLine is the longest command line with its CRLF. RFC 5321 section
	// 4.5.3.1.4 has 512, and the extensions add to that: 26 for SIZE, 500 for AUTH
	// (RFC 4954), 109 for ENVID and RET, 500 for ORCPT (RFC 3461), longer UTF-8
	// paths (RFC 6531).
	maxCommandLine = 2048
	// maxAuthLine is the longest line of an AUTH exchange, the command included (RFC 4954).
	maxAuthLine = 12288
	// maxJunkLine is how much of a line that is too long is skipped before the
	// connection is given up.
	maxJunkLine = 1 << 20
	// readBuffer and writeBuffer are what an idle connection costs besides its goroutine.
	readBuffer  = 4096
	writeBuffer = 2048
	// dataBuffer is what is read at once of a message, and what a connection has besides while one comes in.
	dataBuffer = 16 << 10
)

// earliest returns the earlier of two deadlines; zero is never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// after returns now+d, and never for d == 0.
func after(now time.Time, d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return now.Add(d)
}
