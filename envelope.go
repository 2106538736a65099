package mailspine

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// MaxMeta is the largest total size of the keys and values of Envelope.Meta,
// in octets.
const MaxMeta = 4 << 10

// An Envelope is what travels with a message but is not in it (RFC 5598 section
// 3): who gets it, who is told when that fails, where it came from, and what
// the systems that handle it need to know.
//
// Whoever holds an Envelope that it did not make must not modify it: make a
// [Envelope.Clone] first. New fields may be added; stores keep all of them.
type Envelope struct {
	// ID names the message in queues, logs and replies. Servers set it with
	// NewMsgID; a queue fills it in when it is empty. Two different messages never
	// share one; see [MsgID].
	ID MsgID
	// From is the reverse-path; the zero Address is <>, for mail that must never
	// be answered (RFC 5321 section 4.5.5).
	From Address
	// Recipients are the forward-paths, at least one.
	Recipients []Recipient

	// Ret and EnvID are what the sender asked of delivery status notifications
	// (RFC 3461 sections 4.3 and 4.4). EnvID is decoded: no xtext.
	Ret   Ret
	EnvID string

	Body       Body // what the content may contain (RFC 6152, RFC 3030)
	UTF8       bool // the message needs SMTPUTF8 (RFC 6531)
	RequireTLS bool // the message must not travel without verified TLS (RFC 8689)

	DeliverBy DeliverBy // zero: no limit of its own (RFC 2852)
	Priority  int       // -9 to 9, 0 is normal (RFC 6710)
	HoldUntil time.Time // zero: now (RFC 4865)

	// Origin tells where the message came from.
	Origin Origin

	// Tenant, Stream and Pool say on whose behalf the message is sent, as which
	// kind of mail, and from which pool of addresses. They come from the login or
	// the application, never from the message.
	Tenant, Stream, Pool string

	// Verdict is what authentication of the message found. Only a receiver
	// writes it, never a stranger's header; nil: not checked.
	Verdict *Verdict

	// Meta is the application's, at most MaxMeta octets in all: stored with the
	// message, never sent.
	Meta map[string]string
}

// A Recipient is one forward-path and what the sender asked for it.
type Recipient struct {
	Address Address
	Notify  Notify // when to send a DSN (RFC 3461 section 4.1)
	// ORcpt is the original recipient as address type and decoded address,
	// "rfc822;joe@example.org" (RFC 3461 section 4.2); "": not given.
	ORcpt string
}

// Ret says how much of a message a DSN returns (RFC 3461 section 4.3).
type Ret uint8

// The values of Ret.
const (
	RetUnset Ret = iota // not given: our choice
	RetFull             // the whole message
	RetHdrs             // its header only
)

// Notify is the set of events of which a sender wants a DSN (RFC 3461 section
// 4.1). Zero means not given: failures are told, delays may be.
type Notify uint8

// The members of Notify. NotifyNever excludes the others.
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// Body is the BODY parameter of MAIL FROM.
type Body uint8

// The values of Body.
const (
	Body7Bit   Body = iota // US-ASCII lines; also when nothing was declared
	Body8Bit               // 8BITMIME (RFC 6152)
	BodyBinary             // BINARYMIME (RFC 3030)
)

// DeliverBy is the BY parameter of MAIL FROM (RFC 2852), with the time made
// absolute.
type DeliverBy struct {
	Time   time.Time // zero: no limit
	Return bool      // R: give up then; otherwise N: tell the sender, and go on
	Trace  bool      // T: report each relay
}

// An Origin tells where a message entered.
type Origin struct {
	Addr  netip.AddrPort // the client; invalid: made here, or from a local socket
	Local netip.AddrPort // our side of the connection
	Helo  string         // the client's EHLO, HELO or LHLO argument
	Proto string         // "ESMTPSA" and so on (RFC 3848); "": not by SMTP
	TLS   TLSInfo        // zero: no TLS
	Login string         // the authenticated user; "": none
	Time  time.Time      // when the transaction began
}

// A Verdict is what authentication found about the origin of a message, in
// short. auth.Checker has the long form.
//
// The results are the words of RFC 8601 section 2.7: none, pass, fail,
// softfail, neutral, policy, temperror, permerror; "" is not checked.
type Verdict struct {
	SPF   string // of MAIL FROM, or of HELO for a null reverse-path
	DKIM  string // the best of the signatures
	DMARC string
	ARC   string

	SPFDomain   string   // the domain that SPF was evaluated for
	DKIMDomains []string // d= of each signature that passes
	FromDomain  string   // the author domain, of the From header field
	Policy      string   // the domain owner's wish, as published: none, quarantine, reject
	// Disposition is what the receiver made of it: none, quarantine or reject.
	Disposition string

	// BIMI is the result for the author domain's indicator; "": not looked for.
	BIMI string
	// Indicator is where the domain says that its indicator is, a https URI, and Evidence where
	// the document is that vouches for it. Both come from DNS, and nobody has looked
	// behind them; "": none.
	Indicator, Evidence string
}

// Clone returns a copy that shares nothing with e.
func (e *Envelope) Clone() *Envelope {
	c := *e
	c.Recipients = slices.Clone(e.Recipients)
	c.Meta = maps.Clone(e.Meta)
	if e.Verdict != nil {
		v := *e.Verdict
		v.DKIMDomains = slices.Clone(v.DKIMDomains)
		c.Verdict = &v
	}
	return &c
}

// Subset returns a shallow copy of e for the recipients at the given indices,
// in that order. It shares Meta and Verdict with e. It panics if an index is
// out of range.
func (e *Envelope) Subset(index []int) *Envelope {
	c := *e
	c.Recipients = make([]Recipient, len(index))
	for i, j := range index {
		c.Recipients[i] = e.Recipients[j]
	}
	return &c
}

// PartID makes an ID for an envelope that goes on by itself with some of the
// recipients of a message, or is delivered a second time on purpose: queues are idempotent by ID,
// and would take one part for a repetition of another. It is made of the ID, the sender and the recipients, and so
// it is the same when the same is delivered again. It begins like the ID, for who reads logs;
// without an ID it is empty.
//
//	sub := env.Subset(index)
//	sub.ID = sub.PartID()
func (e *Envelope) PartID() MsgID {
	if e.ID == "" {
		return ""
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n", e.ID, e.From.Path())
	for _, r := range e.Recipients {
		fmt.Fprintf(h, "%s\n", r.Address.Path()) // an address has no control characters
	}
	return e.ID[:min(len(e.ID), 31)] + "-" + MsgID(hex.EncodeToString(h.Sum(nil)[:16])) // 64 octets at most
}

// Validate checks what every Deliverer may rely on, and names the field that
// is wrong. It does not demand an ID.
func (e *Envelope) Validate() error {
	field := func(name, format string, args ...any) error {
		return fmt.Errorf("mailspine: Envelope.%s: "+format, append([]any{name}, args...)...)
	}
	if e.ID != "" {
		if err := e.ID.Validate(); err != nil {
			return field("ID", "%w", err)
		}
	}
	if err := e.From.Validate(); err != nil {
		return field("From", "%w", err)
	}
	if len(e.Recipients) == 0 {
		return field("Recipients", "empty")
	}
	for i, r := range e.Recipients {
		name := fmt.Sprintf("Recipients[%d]", i)
		if r.Address.IsZero() {
			return field(name, "the null address cannot receive mail")
		}
		if err := r.Address.Validate(); err != nil {
			return field(name, "%w", err)
		}
		if r.Notify&NotifyNever != 0 && r.Notify != NotifyNever || r.Notify > NotifyNever|NotifySuccess|NotifyFailure|NotifyDelay {
			return field(name+".Notify", "NEVER stands alone (RFC 3461 section 4.1)")
		}
		if len(r.ORcpt) > 500 || hasControl(r.ORcpt) {
			return field(name+".ORcpt", "over 500 octets, or with control characters (RFC 3461 section 4.2)")
		}
	}
	if e.Ret > RetHdrs {
		return field("Ret", "unknown value %d", e.Ret)
	}
	if len(e.EnvID) > 100 || hasControl(e.EnvID) {
		return field("EnvID", "over 100 octets, or with control characters (RFC 3461 section 4.4)")
	}
	if e.Body > BodyBinary {
		return field("Body", "unknown value %d", e.Body)
	}
	if e.Priority < -9 || e.Priority > 9 {
		return field("Priority", "%d is not from -9 to 9 (RFC 6710 section 3)", e.Priority)
	}
	size := 0
	for k, v := range e.Meta {
		size += len(k) + len(v)
	}
	if size > MaxMeta {
		return field("Meta", "%d octets, over %d", size, MaxMeta)
	}
	return nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

// A MsgID names a message: 1 to 64 letters, digits, '-' and '_', so that it is
// safe in file names, replies and log lines.
type MsgID string

// crockford is the alphabet of Crockford's base 32: no I, L, O, U.
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// NewMsgID returns an ID that is unique for all practical purposes: 48 bits of
// milliseconds, then 80 random bits, in 26 characters that sort by time.
func NewMsgID() MsgID {
	var b [16]byte
	ms := uint64(time.Now().UnixMilli())
	for i := range 6 {
		b[i] = byte(ms >> (40 - 8*i))
	}
	rand.Read(b[6:])
	var out [26]byte
	// 130 bits of output for 128 of input: the first character has 3 of them.
	var acc, bits uint
	bits = 2
	n := 0
	for _, c := range b {
		acc = acc<<8 | uint(c)
		bits += 8
		for bits >= 5 {
			bits -= 5
			out[n] = crockford[acc>>bits&31]
			n++
		}
		acc &= 1<<bits - 1
	}
	return MsgID(out[:])
}

// Validate reports whether id has the form of a MsgID.
func (id MsgID) Validate() error {
	if len(id) == 0 || len(id) > 64 {
		return errors.New("a message ID has 1 to 64 characters")
	}
	for i := 0; i < len(id); i++ {
		if c := id[i]; !isLetDig(c) && c != '-' && c != '_' {
			return errors.New("a message ID is made of letters, digits, '-' and '_'")
		}
	}
	return nil
}
