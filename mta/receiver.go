package mta

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/internal/smtpd"
)

// A Receiver is a server for port 25: it takes mail from the world for the
// recipients that are ours (RFC 5321).
//
// It is no relay. Recipients decides at RCPT what is taken, and without it
// nothing is. AUTH is not offered: users submit through msa.Server.
//
// While a message is staged, Checker evaluates SPF, DKIM and DMARC. Then
//
//   - a message that the author domain's DMARC policy rejects is refused (550 5.7.1), and so
//     is one without exactly one author domain; one whose result is a temperror is refused for
//     now (451 4.7.1). Next does not see them. The fields of auth.Checker soften each of that;
//   - Authentication-Results fields with our ID, and every Received-SPF field, are removed:
//     they are forged;
//   - the fields Authentication-Results, Received-SPF and Received are added on top, in that
//     order (RFC 7208 section 9.1);
//   - the verdict goes into Envelope.Verdict, where a mailspine.Deliverer finds what to do with a
//     message that the policy wants quarantined.
//
// The body is not touched, nor any other header field: malformed MIME passes as it
// is. A header that ends with a line that is no field gets the empty line that it lacks: for some readers
// such a line ends the header, others would find forged results below it. (With a Checker that enforces
// DMARC the message is refused, since what its author is depends on the reader.) What SMTP itself does not allow (a bare CR or LF, NUL, lines over the
// limit) is refused by the server.
//
// A message from the null reverse-path is a report, and reports have one
// recipient (RFC 3464 section 2): a second one is refused with 452 4.5.3, so that a client that
// has more sends one message for each.
//
// Under TLS, REQUIRETLS (RFC 8689) is offered: a message that comes with it has Envelope.RequireTLS, which goes on with it through
// queues and into its reports. Without TLS the parameter is refused (530 5.7.10). The header field TLS-Required is for who sends the
// message on, and is left as it is.
//
// Next and Recipients are required for anything to be taken; the other fields have
// useful zero values. A Receiver is safe for concurrent use; its fields must not change once
// it serves, and it must not be copied then.
type Receiver struct {
	// Hostname is our name in the greeting, in Received fields, and the domain of
	// the address <postmaster>. "": the system's.
	Hostname string
	// TLSConfig offers STARTTLS. nil: it is not offered.
	TLSConfig *tls.Config

	// Recipients decides at RCPT. nil: every recipient is refused with 550 5.7.1.
	// A Mux or an mda.Agent is one. It should accept postmaster at every domain that it accepts
	// (RFC 5321 section 4.5.1).
	Recipients mailspine.RecipientChecker
	// Checker authenticates messages. nil: they are taken unchecked, with a
	// Received field only, and with Authentication-Results fields that bear Hostname as well as
	// Received-SPF fields removed.
	Checker *auth.Checker

	// Next takes the messages. Required. If it or what it wraps is a
	// mailspine.Stager, messages are staged there.
	Next mailspine.Deliverer
	// Undelivered takes a message for the recipients that Next did not take it
	// for, if it took it for others: SMTP has one reply for all. It is to bounce, and finds the
	// reasons with [mailspine.FailuresFrom]. nil is for a Next that takes all or none, as a queue.Queue does; should such a
	// Next give mixed results nevertheless, the worst of them is the reply, so that nothing is lost, and messages have
	// one recipient from then on.
	Undelivered mailspine.Deliverer

	// NoRequireTLS says that REQUIRETLS is not offered, and is refused with 555 5.5.4: for a Next behind which there is somebody who
	// passes messages on to other systems without a look at Envelope.RequireTLS. A queue.Queue, a Relay and a Smarthost do look, and
	// delivery into a mailbox is none of its business (RFC 8689 section 4.4).
	NoRequireTLS bool

	// Limits bound what clients can use up. The zero value: the defaults.
	Limits ReceiverLimits
	// Logger gets a line for each message. nil: slog.Default().
	Logger *slog.Logger
	// Trace has hooks into what happens; nil: none.
	Trace *ReceiverTrace
	// Now tells the time for Received fields. nil: time.Now.
	Now func() time.Time

	once   sync.Once
	server *smtpd.Server
	door   *smtpd.Door
}

// ReceiverLimits bound what the clients of a [Receiver] can use up. In each field zero is the
// default named there, and a negative number no limit.
type ReceiverLimits struct {
	MaxConns        int   // connections at the same time; 0: 2,000; beyond: 421 4.3.2
	MaxConnsPerAddr int   // of these from one IPv4 address or IPv6 /64 network; 0: 50; beyond: 421 4.7.0
	MaxCommands     int   // commands of one connection; 0: 10,000; beyond: 421 4.7.0
	MaxErrors       int   // refused commands since the last message taken, 452 4.5.3 aside; 0: 20; beyond: 421 4.7.0
	MaxRecipients   int   // of one message; 0: 1,000; beyond: 452 4.5.3
	MaxSize         int64 // octets of one message; 0: 50 MiB; beyond: 552 5.3.4
	MaxLine         int   // octets of one text line with its CRLF; 0: 1,000

	Command   time.Duration // for a complete command line; 0: 5 minutes
	DataBlock time.Duration // between two pieces of a message; 0: 3 minutes
	Data      time.Duration // for a whole message; 0: 30 minutes
	Write     time.Duration // for a reply to be written; 0: 1 minute
	Handshake time.Duration // for TLS; 0: 30 seconds
	Session   time.Duration // for the whole connection; 0: 2 hours
	Deliver   time.Duration // for Next, and for Undelivered, to take a message; 0: 5 minutes
}

// A ReceiverTrace has hooks into a [Receiver]. Any may be nil. They are called on
// the path of the connection, which waits for them, with its context.
type ReceiverTrace struct {
	// Connected is called when a connection is accepted.
	Connected func(ctx context.Context, remote netip.AddrPort)
	// Disconnected is called when it is over.
	Disconnected func(ctx context.Context, remote netip.AddrPort, lasted time.Duration)
	// Wire is called for each line without its line end, sent by us or by the
	// client. What AUTH exchanges is replaced by "***", and a message by its size.
	Wire func(ctx context.Context, remote netip.AddrPort, sent bool, line string)
	// Checked is called with the results of authentication, before they are acted
	// upon. Neither may be changed.
	Checked func(ctx context.Context, env *mailspine.Envelope, r *auth.Results)
	// Message is called before the reply to a message: its envelope, the octets
	// received, and the error; nil: taken.
	Message func(ctx context.Context, env *mailspine.Envelope, size int64, err error)
}

// ReceiverStats are counts since the Receiver began, and Conns the connections now.
type ReceiverStats struct {
	Conns    int64 // open now
	Accepted int64 // connections let in
	TooMany  int64 // connections refused by a limit
	Messages int64 // messages taken
	Refused  int64 // messages refused after their data
	Errors   int64 // commands refused
	Timeouts int64 // connections cut off for being slow or silent
	Panics   int64
}

func (r *Receiver) init() {
	r.once.Do(func() {
		l := r.Limits
		r.server = &smtpd.Server{
			Hostname: r.Hostname, TLSConfig: r.TLSConfig, Logger: r.Logger,
			Handler: smtpd.HandlerFunc(r.newSession), Extensions: smtpd.Extensions{RequireTLS: !r.NoRequireTLS},
			Limits: smtpd.Limits{
				MaxConns: l.MaxConns, MaxConnsPerAddr: l.MaxConnsPerAddr, MaxCommands: l.MaxCommands, MaxErrors: l.MaxErrors,
				MaxRecipients: l.MaxRecipients, MaxSize: l.MaxSize, MaxLine: l.MaxLine,
				Command: l.Command, DataBlock: l.DataBlock, Data: l.Data, Write: l.Write, Handshake: l.Handshake,
				Session: l.Session, Deliver: l.Deliver,
			},
		}
		if t := r.Trace; t != nil {
			r.server.Trace = &smtpd.Trace{Connected: t.Connected, Disconnected: t.Disconnected, Wire: t.Wire, Message: t.Message}
		}
		r.door = &smtpd.Door{Next: r.Next, Undelivered: r.Undelivered, Limit: l.Deliver, Logger: r.Logger}
	})
}

// Serve accepts connections on l until Shutdown or Close is called, and then
// returns nil; or until l fails. It closes l. It returns an error at once if a
// required field is missing. Several Serves may run at once.
func (r *Receiver) Serve(l net.Listener) error {
	err := r.validate()
	if err != nil {
		l.Close()
		return err
	}
	r.init()
	return r.server.Serve(l)
}

func (r *Receiver) validate() error {
	if r.Next == nil {
		return errors.New("mta: Receiver.Next is nil")
	}
	if r.Checker != nil {
		return r.Checker.Validate()
	}
	return nil
}

// Shutdown stops accepting, tells idle clients 421 4.3.2, lets transactions that
// have begun end, and returns when every connection is gone. If ctx ends before that, the rest is
// closed, and Shutdown returns ctx's error.
func (r *Receiver) Shutdown(ctx context.Context) error {
	r.init()
	return r.server.Shutdown(ctx)
}

// Close stops accepting and closes every connection at once. A message that has
// arrived in full is still delivered, though its client does not learn of it: prefer
// Shutdown.
func (r *Receiver) Close() error {
	r.init()
	return r.server.Close()
}

// Stats returns the counts.
func (r *Receiver) Stats() ReceiverStats {
	r.init()
	s := r.server.Stats()
	return ReceiverStats{Conns: s.Conns, Accepted: s.Accepted, TooMany: s.TooMany, Messages: s.Messages,
		Refused: s.Refused, Errors: s.Errors, Timeouts: s.Timeouts, Panics: s.Panics}
}

// A receiverSession is one connection.
type receiverSession struct {
	r *Receiver
	c *smtpd.Conn
}

func (r *Receiver) newSession(_ context.Context, c *smtpd.Conn) (smtpd.Session, error) {
	return &receiverSession{r, c}, nil
}

var errOneReport = mailspine.Errorf(452, "4.5.3", "A message from <> has one recipient")

// Mail accepts every sender: what is to be said of it, SPF and DMARC say with the message.
func (s *receiverSession) Mail(context.Context, *smtpd.Transaction) error { return nil }

// Rcpt asks Recipients.
func (s *receiverSession) Rcpt(ctx context.Context, tx *smtpd.Transaction, rcpt *mailspine.Recipient) error {
	if s.r.Recipients == nil {
		return errNoRelay
	}
	if tx.Envelope.From.IsZero() && len(tx.Envelope.Recipients) > 0 {
		return errOneReport
	}
	if err := s.r.door.Rcpt(tx); err != nil {
		return err
	}
	return s.r.Recipients.CheckRecipient(ctx, tx.Envelope, *rcpt)
}

// Data checks the message while the door stages it.
func (s *receiverSession) Data(ctx context.Context, tx *smtpd.Transaction, data io.Reader) (string, error) {
	if s.r.Checker == nil {
		return s.r.door.Take(ctx, tx, data, s.prepare(nil))
	}
	check := s.r.Checker.Start(ctx, tx.Envelope)
	defer check.Cancel()
	return s.r.door.Take(ctx, tx, io.TeeReader(data, check), s.prepare(check))
}

// prepare acts on the results once the message is complete.
func (s *receiverSession) prepare(check *auth.Check) smtpd.Prepare {
	r := s.r
	return func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content, h *mailspine.Header) (mailspine.Content, error) {
		var head []byte
		checker := r.Checker
		if check != nil {
			res := check.Finish()
			env.Verdict = res.Verdict()
			if t := r.Trace; t != nil && t.Checked != nil {
				t.Checked(ctx, env, res)
			}
			if no := res.Reject(); no != nil {
				return nil, no
			}
			head = res.Header()
		} else {
			checker = &auth.Checker{ID: s.c.Hostname()}
		}
		now := time.Now
		if r.Now != nil {
			now = r.Now
		}
		head = append(head, smtpd.Received(env, s.c.Hostname(), now())...)
		forged := checker.Forged
		edit := mailspine.HeaderEdit{Prepend: head, Drop: forged}
		switch ok, err := smtpd.HeaderEnds(ctx, msg, h); {
		case err != nil:
			return nil, err
		case !ok:
			edit.Append = []byte("\r\n")
		case !slices.ContainsFunc(h.Fields, forged):
			return mailspine.Prepend(msg, head), nil // as nearly always; the header need not be read again
		}
		return mailspine.Edit(ctx, msg, edit)
	}
}

// Reset and Close have nothing to do: a session keeps nothing between messages.
func (s *receiverSession) Reset() {}
func (s *receiverSession) Close() {}
