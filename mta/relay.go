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
	"github.com/mailspine/mailspine/auth/tlsrpt"
)

// A Relay sends messages to the mail exchangers of their recipients' domains, by
// SMTP (RFC 5321). It is a Deliverer: nil means that a remote server took the
// message for every recipient.
//
// The domains of the envelope that have the same mail exchangers (see [Site]), and of whose connections the same is demanded, are served together; otherwise
// one after the other. For each site, the mail exchangers are tried in order of preference, until one of them
// has answered for every recipient:
//
//   - A host that cannot be connected to, that refuses with its greeting or its
//     answer to EHLO, that refuses MAIL for now, that breaks the protocol or is lost
//     before the final dot, is left for the next. If no host is left, the result is
//     temporary if any of them failed temporarily.
//   - A refusal of MAIL for good, of RCPT, of DATA or of the message is a result.
//     Where domains shared a transaction and the answer may have been meant for another of them, each is
//     tried once more by itself.
//   - What happens after the final dot is not tried again on another host, since
//     the first may have taken the message: a lost connection is 451 4.4.2.
//
// Mail exchangers are found by RFC 5321 section 5.1: MX, or else the domain itself, when it is certain that there is no MX; a null MX (RFC
// 7505) refuses. At most 16 are considered, and 8 addresses of each, IPv4 and IPv6 in turn. Inside of a preference the order is random, but those
// to which a connection is kept come first. Addresses that could not be connected to lately come after all others (DeadTime). Mail that would come
// back to us is refused (Hostname, OwnNames, OwnAddrs, and the name in a server's greeting). Explain says what that comes to for a domain.
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
// refused; with 8-bit data it goes to servers with 8BITMIME only, a binary one (Envelope.Body) to those with BINARYMIME; nothing is converted. Of the
// envelope, RET, ENVID, NOTIFY and ORCPT are passed on to servers with DSN, BY to those with
// DELIVERBY, the priority to those with MT-PRIORITY.
//
// One connection is used for each site of a delivery; with an [Egress], one for each source that the
// recipients were divided over. How many deliveries are under way to a site at once is bounded (Limits), how many there are in all is
// not: a queue has a limit. What finds no place comes back as a *mailspine.NotNow. If the first address of a host does not answer
// soon, the next one is tried beside it (FallbackDelay).
//
// A connection on which all went well is kept for a moment (IdleTimeout), and used for the next delivery to any
// address of the same host and port, from the same source under the same name, whose TLS is decided by the same: level, names and
// roots (the same pool, not an equal one) of the rule, TLSA records, and MTA-STS policy; a message with RequireTLS uses only those that were opened for one. One that is in clear although
// the server offered TLS is not kept. If the server has ended a kept connection in the meantime, or refuses MAIL on it, a new one is opened
// at once, whose answer counts; that is no failed attempt, and none of MaxConnections. Time-outs, limits, receipts, the dot guard and hooks
// are each delivery's own. The certificate was verified when the connection was opened. CloseIdle ends those that are kept. A new connection resumes the TLS
// session of an earlier one of the same kind, and the certificate is verified again.
//
// To servers that offer PIPELINING (RFC 2920) the commands are sent in one flight, in pieces of at most 4 KiB. To those that offer CHUNKING
// (RFC 3030) too, a message of up to 64 KiB goes with them, in one round trip; the others get it after the reply to DATA. If
// a connection is lost when the whole message has gone out, who may have it gets 451 4.4.2, and no other host is tried; but on a connection that
// was kept, and ends without one octet of reply, the server had hung up before it read a thing, and a new one is opened
// (see smtpclient.Client.Send). The limits that a server tells with LIMITS (RFC 9422) are obeyed.
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
	// OwnAddrs are the addresses at which we receive mail. A mail exchanger that has one of them is ourselves, whatever it is called: it
	// and those that are no better are not used (RFC 5321 section 5.1). With any of them, the addresses of all mail
	// exchangers of a domain are looked up before the first one is tried. Without, we are found only by name: in the MX records, or when
	// a server greets with a name of ours. nil: none.
	OwnAddrs []netip.Addr

	// BySite makes Route, which a queue asks for the route of each recipient, say the name of the [Site] that the domain
	// belongs to in place of the domain. Ready, as the queue's Gate, knows these routes. false: the domain.
	BySite bool

	// DeadTime is for how long an address is remembered to which no connection could be opened: it refused, did not answer in
	// time, or greeted with a 4yz reply. It is tried after all others then; if a delivery has no other, one at a time tries, and those
	// that come meanwhile get the same temporary error at once (451 4.4.1), so that a dead site costs one worker. A connection that
	// is opened ends that, for all. At most 4,096 addresses are remembered, for each source. 0: 5 min; negative: none.
	DeadTime time.Duration

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
	// in the socket, and binds the source's address. It must return when its context ends, and two of its calls may be under way for one
	// delivery. SOCKS5 and PROXYProtocol have one.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// TLSConfig is the base of each connection's TLS configuration: client certificates, roots,
	// versions (at least TLS 1.2 unless it says otherwise). ServerName and InsecureSkipVerify
	// are not used: the host and TLSPolicy decide. nil: the defaults.
	TLSConfig *tls.Config
	// TLSPolicy says which domains must have TLS. nil: TLSOpportunistic for all. A
	// message with RequireTLS needs TLSVerify (by DANE or an authority), REQUIRETLS at the server, and mail
	// exchangers that come from an authentic answer, or are named in the rule or in an MTA-STS policy that is enforced
	// (RFC 8689 section 4.2.1), whatever the policy says. What the domain publishes about TLS adds to the rule: see NoDANE and MTASTS.
	// In order of strength: REQUIRETLS, DANE, MTA-STS, the rule. A message with "TLS-Required: No" in its header (RFC 8689 section 5) needs
	// the rule only.
	TLSPolicy TLSPolicy
	// NoDANE leaves TLSA records alone. Without it DANE (RFC 7672) is in force for the hosts that publish them, where the Resolver gives
	// authentic answers (mailspine.Answer.Authentic); with one that never does it is as if NoDANE were set.
	NoDANE bool
	// MTASTS knows the MTA-STS policies of domains (RFC 8461): an *mtasts.Cache. Where DANE verifies the certificate, it does not
	// count. nil: MTA-STS is not looked for.
	MTASTS STSPolicies
	// TLSReports is told the outcome of each new connection's TLS, and of each policy that could not be had, for the reports that the
	// recipients' domains ask for (RFC 8460): a *tlsrpt.Collector. Not told are connections to a Smarthost or an address literal, or
	// where the domain's policies do not count: under a rule with Override, for a message with "TLS-Required: No", for a report of that kind. An error
	// of it is logged and no more. nil: nobody is told.
	TLSReports tlsrpt.Recorder

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
	// NoChunking sends messages with DATA, also to servers that offer CHUNKING.
	NoChunking bool

	// Limits bounds how many deliveries are under way to one site, and how fast connections are opened. Zero: the
	// defaults.
	Limits SiteLimits
	// FallbackDelay is for how long a connection may take before the host's next address is tried beside it, if it has
	// one; the first that succeeds is used (in the spirit of RFC 8305). At most two are under way. 0: 2 s; negative: the next
	// address is tried when the one before has failed.
	FallbackDelay time.Duration

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

	idle     idlePool
	sites    siteTable
	sessions tlsSessions
	routes   routeTable
	dead     deadHosts
	bufs     sync.Pool // of *[]byte, for messages on the wire
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

// withDefaults sets those that smtpclient has no default for, or that are needed without a client.
func (t RelayTimeouts) withDefaults() RelayTimeouts {
	if t.Connect <= 0 {
		t.Connect = 30 * time.Second
	}
	if t.Quit <= 0 {
		t.Quit = 2 * time.Second
	}
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
	ts := make([]*transfer, len(order))
	for i, domain := range order {
		ts[i] = r.transfer(ctx, env, msg, facts, domain, errs)
		ts[i].parts = []part{{domain, index[domain]}}
	}
	findAll(ctx, ts)
	for _, t := range ts {
		t.resolved(ctx)
	}
	for _, t := range join(ts) {
		t.send(ctx)
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
	var buf []byte
	if b, ok := r.bufs.Get().(*[]byte); ok {
		buf = *b
	}
	facts, err := inspect(ctx, msg, buf)
	if err != nil {
		return facts, fmt.Errorf("mta: read the message: %w", err)
	}
	if facts.bare && env.Body != mailspine.BodyBinary {
		return facts, errBareLineEnd
	}
	return facts, nil
}

// release gives back what prepare took.
func (r *Relay) release(f contentFacts) {
	if b := f.buffer(); b != nil {
		r.bufs.Put(&b)
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
