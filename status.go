package mailspine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// An EnhancedCode is an enhanced mail system status code, class.subject.detail
// (RFC 3463). The zero value means that there is none.
type EnhancedCode [3]int

// ParseEnhancedCode parses a status-code of RFC 3463 section 2: a class of 2, 4
// or 5, and a subject and a detail of one to three digits each, without leading
// zeros.
func ParseEnhancedCode(s string) (EnhancedCode, error) {
	var c EnhancedCode
	rest := s
	for i := range c {
		part := rest
		if i < 2 {
			var ok bool
			if part, rest, ok = strings.Cut(rest, "."); !ok {
				return EnhancedCode{}, enhancedError(s, "it has three numbers with dots between them")
			}
		}
		if len(part) == 0 || len(part) > 3 || len(part) > 1 && part[0] == '0' {
			return EnhancedCode{}, enhancedError(s, "each number has one to three digits and no leading zero")
		}
		for _, d := range []byte(part) {
			if d < '0' || d > '9' {
				return EnhancedCode{}, enhancedError(s, "it is made of digits and dots")
			}
			c[i] = c[i]*10 + int(d-'0')
		}
	}
	if c[0] != 2 && c[0] != 4 && c[0] != 5 {
		return EnhancedCode{}, enhancedError(s, "its class is 2, 4 or 5")
	}
	return c, nil
}

func enhancedError(s, rule string) error {
	if len(s) > 20 {
		s = s[:20] + "..."
	}
	return fmt.Errorf("mailspine: enhanced code %q: %s (RFC 3463 section 2)", s, rule)
}

// IsZero reports whether there is no code.
func (c EnhancedCode) IsZero() bool { return c == EnhancedCode{} }

// String returns the code as "5.1.1", or "" when there is none.
func (c EnhancedCode) String() string {
	if c.IsZero() {
		return ""
	}
	return strconv.Itoa(c[0]) + "." + strconv.Itoa(c[1]) + "." + strconv.Itoa(c[2])
}

// MarshalText is [EnhancedCode.String].
func (c EnhancedCode) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is [ParseEnhancedCode], but empty text is the zero code.
func (c *EnhancedCode) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*c = EnhancedCode{}
		return nil
	}
	p, err := ParseEnhancedCode(string(text))
	if err == nil {
		*c = p
	}
	return err
}

// An Error is an SMTP reply that refuses something, now (4yz) or for good
// (5yz). It is how every part of Mailspine says "no" to the other side.
//
// Message goes to the peer, and must not tell what is nobody's business; Err is
// the cause, which goes to the log only. An Error whose Code is neither 4yz
// nor 5yz is treated as 451 4.3.0 by [Status].
type Error struct {
	Code     int          // 400 to 599
	Enhanced EnhancedCode // zero: class.0.0 of the code
	Message  string       // one line or more (LF between them), for the peer
	Err      error        // the cause, for the log; nil: none
}

// Error returns the reply and the cause: a text for logs, not for peers.
func (e *Error) Error() string {
	s := e.Reply()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Reply returns the reply without the cause: "550 5.1.1 No such user".
func (e *Error) Reply() string {
	s := strconv.Itoa(e.Code)
	if !e.Enhanced.IsZero() {
		s += " " + e.Enhanced.String()
	}
	if e.Message != "" {
		s += " " + e.Message
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Temporary reports whether trying again later may help: it is true unless
// Code is 5yz.
func (e *Error) Temporary() bool { return e.Code < 500 || e.Code > 599 }

// Errorf returns an Error with a code, an enhanced code ("5.1.1") and a text for
// the peer. It panics if the enhanced code does not parse, so it wants a
// constant there. A cause is added with [Error.WithCause].
func Errorf(code int, enhanced, format string, args ...any) *Error {
	ec, err := ParseEnhancedCode(enhanced)
	if err != nil {
		panic(err)
	}
	return &Error{Code: code, Enhanced: ec, Message: fmt.Sprintf(format, args...)}
}

// WithCause returns a copy of e whose Err is err.
func (e *Error) WithCause(err error) *Error {
	c := *e
	c.Err = err
	return &c
}

// Status says what to answer to an error. It is total: every error has an
// answer, and an unknown one is 451 4.3.0 with a fixed text, so that a bug or a
// full disk never bounces mail and its text never reaches the peer.
//
//   - nil: nil.
//   - The first *Error found from the outside in decides, its Enhanced code
//     filled in when it is zero or contradicts Code.
//   - [RecipientErrors] found before that: the worst of its elements, a
//     temporary one before a permanent one, because the whole can still change.
//   - *[NotNow]: 451 4.3.2.
//   - Temporary DNS failures, bogus answers included: 451 4.4.3.
//   - Out of space or over a disk quota: 452 4.3.1.
//   - Time-outs: 451 4.4.2 for network operations, otherwise 451 4.4.7.
//     A cancelled context: 451 4.3.2.
//   - Everything else: 451 4.3.0.
//
// The result is a new value; its Err is err itself.
func Status(err error) *Error {
	if err == nil {
		return nil
	}
	if s := statusOf(err); s != nil {
		c := *s
		if c.Code < 400 || c.Code > 599 {
			return unknown(err)
		}
		if c.Enhanced[0] != c.Code/100 {
			c.Enhanced = EnhancedCode{c.Code / 100, 0, 0}
		}
		c.Err = err
		return &c
	}
	reply := func(code int, ec EnhancedCode, msg string) *Error {
		return &Error{Code: code, Enhanced: ec, Message: msg, Err: err}
	}
	var notNow *NotNow
	var dns *DNSError
	var ne net.Error
	switch {
	case errors.As(err, &notNow):
		return reply(451, EnhancedCode{4, 3, 2}, "Not accepting this message now, try again later")
	case errors.As(err, &dns) && dns.Temporary():
		return reply(451, EnhancedCode{4, 4, 3}, "Temporary failure of a name lookup")
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return reply(452, EnhancedCode{4, 3, 1}, "Insufficient system storage")
	case errors.Is(err, context.Canceled):
		return reply(451, EnhancedCode{4, 3, 2}, "Interrupted, try again later")
	case errors.Is(err, context.DeadlineExceeded):
		return reply(451, EnhancedCode{4, 4, 7}, "Timed out, try again later")
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout():
		return reply(451, EnhancedCode{4, 4, 2}, "Connection timed out")
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return reply(451, EnhancedCode{4, 4, 2}, "Connection lost")
	}
	return unknown(err)
}

func unknown(err error) *Error {
	return &Error{Code: 451, Enhanced: EnhancedCode{4, 3, 0}, Message: "Local error in processing", Err: err}
}

// statusOf walks the chain of err depth first, outermost first, as errors.As
// does, and stops at whichever of *Error and RecipientErrors comes first.
func statusOf(err error) *Error {
	switch e := err.(type) {
	case nil:
		return nil
	case *Error:
		return e
	case RecipientErrors:
		var worst *Error
		for _, re := range e {
			if s := Status(re); s != nil && (worst == nil || s.Temporary() && !worst.Temporary()) {
				worst = s
			}
		}
		return worst
	case interface{ Unwrap() error }:
		return statusOf(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, u := range e.Unwrap() {
			if s := statusOf(u); s != nil {
				return s
			}
		}
	}
	return nil
}
