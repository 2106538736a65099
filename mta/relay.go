package mta

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
)

// A Relay sends messages to the mail exchangers of their recipients' domains, by
// SMTP (RFC 5321). It is a Deliverer: nil means that a remote server took the
// message for every recipient.
//
// Each domain of the envelope is served on its own, one after the other. For
// each, the mail exchangers are tried in order of preference, until one of them
// has answered for every recipient:
//
//   - A host that cannot be connected to, that refuses with its greeting or its
//     answer to EHLO, that refuses MAIL for now, that breaks the protocol or is lost
//     before the final dot, is left for the next. If no host is left, the result is
//     temporary if any of them failed temporarily.
//   - A refusal of MAIL for good, of RCPT, of DATA or of the message is a result.
//   - What happens after the final dot is not tried again on another host, since
//     the first may have taken the message: a lost connection is 451 4.4.2.
//
// An *mailspine.Error made from a reply has the server's code, enhanced code
// and text (without control characters, at most 1,000 octets). The package's
// page lists the codes that the Relay makes itself.
//
// Just before each final dot the Relay asks the Attempt of its context
// (mailspine.AttemptFrom) for leave, and records a Receipt for each recipient.
// When ctx ends, the connection is dropped, but for the time after a final
// dot: then the reply is waited for up to ten seconds longer.
//
// The message is sent as it is. With a CR or LF that is not part of a CRLF it is
// refused; with 8-bit data it goes to servers with 8BITMIME only; nothing is converted. Of the
// envelope, RET, ENVID, NOTIFY and ORCPT are passed on to servers with DSN, BY to those with
// DELIVERBY, the priority to those with MT-PRIORITY.
//
// One connection is used for each domain of a delivery; with an [Egress], one for each source that the
// recipients of a domain were divided over. A Relay has no limit of its own on
// how many deliveries are under way: a queue has.
//
// A connection on which all went well is kept for a moment (IdleTimeout), and used for the next delivery to the same
// address and port of the same host, from the same source under the same name, whose TLS rule is the same: level, names and
// roots (the same pool, not an equal one); a message with RequireTLS uses only those that were opened for one. One that is in clear although
// the server offered TLS is not kept. If the server has ended a kept connection in the meantime, or refuses MAIL on it, a new one is opened
// at once, whose answer counts; that is no failed attempt, and none of MaxConnections. Time-outs, limits, receipts, the dot guard and hooks
// are each delivery's own. The certificate was verified when the connection was opened. CloseIdle ends those that are kept.
//
// To servers that offer PIPELINING (RFC 2920) MAIL, RCPT and DATA are sent in one flight, in pieces of at most 4 KiB;
// the message is never sent before the reply to DATA.
//
// A message of up to 64 KiB is read once, into memory, and sent in one piece; a larger one is read twice, as a stream.
//
// Resolver is required; without one Deliver is a temporary error. The other
// fields have useful zero values. A Relay is safe for concurrent use; its fields
// must not change, and it must not be copied, after first use.
type Relay struct {
	// Resolver looks up mail exchangers and addresses. Required.
	Resolver mailspine.Resolver

	// Hostname is our name in EHLO: a domain name that resolves to the address that
	// we send from, or an address literal. "": the literal of the connection's local
	// address, which many servers do not like. A mail exchanger of this name is
	// ourselves, and mail is never sent to it.
	Hostname string
	// OwnNames are further names under which we are a mail exchanger.
	OwnNames []string

	// Port is the port of the mail exchangers. 0: 25.
	Port uint16
	// AllowPrivate lists private, loopback and other special addresses that may be connected to: without
	// it only public ones are, since whoever publishes an MX chooses where we connect
	// to. nil: none.
	AllowPrivate []netip.Prefix
	// Egress chooses the address that each domain's recipients are sent from, or says that
	// they are not sent now. nil: the system chooses the address, and nothing waits.
	Egress Egress
	// Dial opens a connection. network is "tcp" and address an IP address and a
	// port, already checked against AllowPrivate. With an Egress, [SourceFrom] tells
	// from the context which source the connection has to be made from. A Dial that depends on anything else in the context
	// needs a negative IdleTimeout, since its connections are used for other deliveries too. nil: a dialer that checks again
	// in the socket, and binds the source's address.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// TLSConfig is the base of each connection's TLS configuration: client certificates, roots,
	// versions (at least TLS 1.2 unless it says otherwise). ServerName and InsecureSkipVerify
	// are not used: the host and TLSPolicy decide. nil: the defaults.
	TLSConfig *tls.Config
	// TLSPolicy says which domains must have TLS. nil: TLSOpportunistic for all. A
	// message with RequireTLS needs TLSVerify, REQUIRETLS at the server, and mail
	// exchangers that come from an authentic answer or are named in the rule
	// (RFC 8689 section 4.2.1), whatever the policy says.
	TLSPolicy TLSPolicy

	// IdleTimeout is for how long a connection is kept after a delivery, for the next one. 0: 5 s; negative: connections
	// are not kept.
	IdleTimeout time.Duration
	// MaxIdle bounds how many connections are kept, to all hosts together; the one that waited longest
	// is ended for one more. 0: 256.
	MaxIdle int
	// MaxPerConnection is how many transactions a connection is used for at most, before it is not kept any more: many
	// servers have such a limit. 0: 100.
	MaxPerConnection int
	// MaxAge is for how long after it was opened a connection is used for new deliveries. 0: 5 min.
	MaxAge time.Duration
	// NoPipelining sends one command at a time, also to servers that offer PIPELINING: for the way through a
	// device that understands less than the server behind it.
	NoPipelining bool

	// Timeouts bound each step.
	Timeouts RelayTimeouts
	// MaxConnections bounds how many connections are tried for one domain in one
	// delivery, over all hosts and addresses, those that are used again among them; with an Egress, for each source. 0: 6. A message that goes in clear after a failed
	// handshake may take one more than that.
	MaxConnections int
	// MaxRecipients bounds the recipients of one transaction; more are sent in several, over the
	// same connection. 0: 100, what every server must take (RFC 5321 section 4.5.3.1.8).
	MaxRecipients int

	// Logger gets a line at debug level for each connection that failed, and
	// one at warning level for each breach of a TLS policy. nil: slog.Default().
	Logger *slog.Logger
	// Trace has hooks into each step; nil: none.
	Trace *RelayTrace

	idle idlePool
	bufs sync.Pool // of *[]byte, for messages on the wire
}

var _ mailspine.Deliverer = (*Relay)(nil)

// RelayTimeouts has the time-outs of a [Relay]. Zero is the default of each, from RFC 5321
// section 4.5.3.2 where that has one. A negative value is taken for zero. A reply has to arrive whole within its
// time; one octet a minute does not extend it.
type RelayTimeouts struct {
	Connect   time.Duration // to open a connection; 0: 30 s
	Greeting  time.Duration // for the greeting; 0: 5 min
	Hello     time.Duration // for EHLO, HELO and STARTTLS; 0: 5 min
	TLS       time.Duration // for the handshake; 0: 1 min
	Mail      time.Duration // for MAIL; 0: 5 min
	Rcpt      time.Duration // for each RCPT; 0: 5 min
	Data      time.Duration // for DATA; 0: 2 min
	DataBlock time.Duration // to send 32 KiB of the message; 0: 3 min
	DataDone  time.Duration // for the reply to the final dot; 0: 10 min
	Quit      time.Duration // for RSET and QUIT; 0: 2 s
	// Total bounds the use of a connection by one delivery, from its opening, or its being taken up again, to the final dot, however its parts
	// share it. 0: 1 h.
	Total time.Duration
}

func (t RelayTimeouts) withDefaults() RelayTimeouts {
	set := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	set(&t.Connect, 30*time.Second)
	set(&t.Greeting, 5*time.Minute)
	set(&t.Hello, 5*time.Minute)
	set(&t.TLS, time.Minute)
	set(&t.Mail, 5*time.Minute)
	set(&t.Rcpt, 5*time.Minute)
	set(&t.Data, 2*time.Minute)
	set(&t.DataBlock, 3*time.Minute)
	set(&t.DataDone, 10*time.Minute)
	set(&t.Quit, 2*time.Second)
	set(&t.Total, time.Hour)
	return t
}

func (r *Relay) logger() *slog.Logger {
	if r.Logger != nil {
		return r.Logger
	}
	return slog.Default()
}

// Deliver sends a message. See [Relay] for the meaning of its errors. The
// result is RecipientErrors unless all recipients were taken or the message can be
// sent to nobody.
func (r *Relay) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if r.Resolver == nil {
		return errors.New("mta: Relay.Resolver is nil")
	}
	facts, err := r.prepare(ctx, env, msg)
	if err != nil {
		return err
	}
	defer r.release(facts)
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	var order []string
	index := map[string][]int{}
	for i, rcpt := range env.Recipients {
		domain, err := recipientDomain(rcpt)
		if err != nil {
			errs[i] = err
			continue
		}
		if index[domain] == nil {
			order = append(order, domain)
		}
		index[domain] = append(index[domain], i)
	}
	for _, domain := range order {
		r.transfer(ctx, env, msg, facts, domain, errs).run(ctx, index[domain])
	}
	return errs.Err()
}

// prepare checks what does not depend on the recipients, and reads the message once.
func (r *Relay) prepare(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) (contentFacts, error) {
	if r.Hostname != "" {
		if err := (mailspine.Address{Local: "x", Domain: r.Hostname}).Validate(); err != nil {
			return contentFacts{}, fmt.Errorf("mta: Relay.Hostname: %w", err)
		}
	}
	if err := env.From.Validate(); err != nil {
		return contentFacts{}, mailspine.Errorf(553, "5.1.7", "The sender's address is not valid").WithCause(err)
	}
	if env.Body == mailspine.BodyBinary {
		return contentFacts{}, mailspine.Errorf(554, "5.6.3", "A binary message cannot be sent: it needs a server with BINARYMIME and CHUNKING, which this host does not use")
	}
	var buf []byte
	if b, ok := r.bufs.Get().(*[]byte); ok {
		buf = *b
	}
	facts, err := inspect(ctx, msg, buf)
	if err != nil {
		return facts, fmt.Errorf("mta: read the message: %w", err)
	}
	if facts.bare {
		return facts, errBareLineEnd
	}
	return facts, nil
}

// release gives back what prepare took.
func (r *Relay) release(f contentFacts) {
	if f.wire != nil {
		r.bufs.Put(&f.wire)
	}
}

// recipientDomain returns the domain of a recipient that can be sent to.
func recipientDomain(rcpt mailspine.Recipient) (string, error) {
	domain, err := rcpt.Address.ASCIIDomain()
	if err == nil {
		err = rcpt.Address.Validate()
	}
	if err != nil || domain == "" {
		return "", mailspine.Errorf(550, "5.1.3", "The recipient's address is not valid").WithCause(err)
	}
	return domain, nil
}

func (r *Relay) transfer(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content, facts contentFacts, domain string, errs mailspine.RecipientErrors) *transfer {
	return &transfer{
		r: r, env: env, msg: msg, facts: facts, domain: domain, errs: errs,
		times: r.Timeouts.withDefaults(), attempt: mailspine.AttemptFrom(ctx),
	}
}
