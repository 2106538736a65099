package mta

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A session is one connection, and the transfer that uses it.
type session struct {
	c    *client
	host string
	addr string
	peer string // host and address, for texts
	from string // our side of it, in receipts
	tls  mailspine.TLSInfo

	// Of the transfer; nil while the session is kept.
	t       *transfer
	release func() bool // ends the watch over ctx; false: ctx is done
	reused  bool        // it was opened by an earlier transfer
	heard   bool        // and has accepted MAIL from this one
	failed  bool        // something went wrong that was no result

	// Of the dialogue.
	usable bool // it is in step: QUIT makes sense
	dirty  bool // there is a transaction that RSET has to end before the next MAIL

	// For further transfers.
	key      sessionKey
	reusable bool      // it is what any transfer with that key would open
	born     time.Time // when it was opened
	used     int       // transactions, so far
	since    time.Time // when it was put into the pool
	until    time.Time // for how long it is kept there
	elem     *list.Element
}

// done ends the use of the connection: it is kept for further transfers, or ended, with QUIT if the dialogue is
// in step.
func (s *session) done() {
	if !s.release() {
		s.c.close()
		return
	}
	times, r := s.t.times, s.t.r
	if !s.failed && r.keep(s) {
		return
	}
	if s.usable {
		s.c.quit(times.Quit)
		return
	}
	s.c.close()
}

// watchWire shows the dialogue to the trace.
func (s *session) watchWire(ctx context.Context, r *Relay) {
	s.c.wire = nil
	if w := r.trace().Wire; w != nil {
		s.c.wire = func(sent bool, line string) {
			w(ctx, WireLine{Host: s.host, Addr: s.addr, Sent: sent, Line: line})
		}
	}
}

// reply tells the trace of a reply, and checks for the good-bye that may come at
// any time: 421 ends the session (RFC 5321 section 4.2.1).
func (s *session) reply(ctx context.Context, command, rcpt string, r reply, err error) (reply, error) {
	if err != nil {
		s.usable = false
		return r, s.broken(ctx, command, err)
	}
	s.t.said = r
	if f := s.t.r.trace().Reply; f != nil {
		f(ctx, ReplyInfo{Domain: s.t.domain, Host: s.host, Addr: s.addr, Command: command, Recipient: rcpt, Reply: r.String()})
	}
	if r.code == 421 {
		s.usable = false
		return r, refusal(s.peer, command, r)
	}
	return r, nil
}

// broken classifies an error of the connection.
func (s *session) broken(ctx context.Context, command string, err error) error {
	var me *mailspine.Error
	var te *tlsError
	if cerr := ctx.Err(); cerr != nil {
		return fmt.Errorf("mta: %s after %s: %w", s.peer, command, errors.Join(cerr, err))
	}
	cause := fmt.Errorf("mta: %s, %s: %w", s.peer, command, err)
	switch {
	case errors.As(err, &me):
		return err
	case errors.As(err, &te):
		return mailspine.Errorf(451, "4.7.5", "TLS with %s failed", s.peer).WithCause(cause)
	case isProtocol(err):
		return mailspine.Errorf(451, "4.5.0", "%s does not follow the protocol (%s)", s.peer, command).WithCause(cause)
	case isTimeout(err):
		return mailspine.Errorf(451, "4.4.2", "%s timed out (%s)", s.peer, command).WithCause(cause)
	}
	return mailspine.Errorf(451, "4.4.2", "Lost the connection with %s (%s)", s.peer, command).WithCause(cause)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// open does greeting, EHLO and TLS. clear: TLS was tried and failed, and may be
// done without.
func (s *session) open(ctx context.Context, clear bool) error {
	t := s.t
	r, err := s.c.greeting(t.times.Greeting)
	if r, err = s.reply(ctx, "greeting", "", r, err); err != nil {
		return err
	}
	s.usable = true
	if r.code != 220 {
		return s.unexpected("greeting", r)
	}
	if err := s.hello(ctx); err != nil {
		return err
	}
	if clear {
		return nil
	}
	if s.c.has("STARTTLS") {
		if err := s.startTLS(ctx); err != nil {
			return err
		}
	} else if t.tls.rule.Level > TLSOpportunistic {
		err := s.noTLS(nil)
		t.outcome(ctx, s, err)
		return err
	} else {
		t.outcome(ctx, s, nil)
	}
	if t.env.RequireTLS && !s.c.has("REQUIRETLS") {
		return mailspine.Errorf(550, "5.7.30", "The message requires REQUIRETLS, which %s does not offer", s.peer)
	}
	// In clear although there should be TLS is for this transfer only: the next one tries again.
	s.reusable = s.tls.Version != "" || !s.c.has("STARTTLS")
	return nil
}

// hello says EHLO or HELO.
func (s *session) hello(ctx context.Context) error {
	name := s.t.source.Hostname
	if name == "" {
		name = s.t.r.Hostname
	}
	if name == "" {
		name = localName(s.c.conn)
	} else if ascii, err := mailspine.ASCIIDomain(name); err == nil {
		name = ascii
	}
	r, err := s.c.hello(s.t.times.Hello, name)
	if r, err = s.reply(ctx, "EHLO", "", r, err); err != nil {
		return err
	}
	if !r.ok() {
		return s.unexpected("EHLO", r)
	}
	return nil
}

// startTLS negotiates TLS and says hello again.
func (s *session) startTLS(ctx context.Context) error {
	t := s.t
	var verified string
	r, err := s.c.startTLS(ctx, t.times.Hello, t.times.TLS, t.tlsConfig(s.host, &verified))
	if err == nil && !r.ok() {
		// The offer was not meant: opportunistically, the session goes on in clear
		// (RFC 3207 section 4.1).
		if r, err = s.reply(ctx, "STARTTLS", "", r, nil); err != nil {
			return err
		}
		if !r.refusal() {
			return s.unexpected("STARTTLS", r)
		}
		if t.tls.rule.Level > TLSOpportunistic {
			err := s.noTLS(refusal(s.peer, "STARTTLS", r))
			t.outcome(ctx, s, err)
			return err
		}
		t.outcome(ctx, s, nil)
		return nil
	}
	if err == nil {
		s.tls = tlsInfo(s.c.tlsState(), verified)
		t.last.TLS = s.tls
	}
	var te *tlsError
	if err == nil || errors.As(err, &te) {
		t.outcome(ctx, s, err)
	}
	if f := t.r.trace().TLS; f != nil && (err == nil || errors.As(err, &te)) {
		f(ctx, TLSDoneInfo{Domain: t.domain, Host: s.host, Level: t.tls.rule.Level, TLS: s.tls, Err: err})
	}
	if _, err = s.reply(ctx, "STARTTLS", "", r, err); err != nil {
		return err
	}
	return s.hello(ctx)
}

// noTLS is for a server without TLS where a rule demands it.
func (s *session) noTLS(cause error) error {
	if s.t.env.RequireTLS {
		return mailspine.Errorf(550, "5.7.10", "The message requires TLS, which %s does not offer", s.peer).WithCause(cause)
	}
	return mailspine.Errorf(451, "4.7.4", "The policy for %s demands TLS, which %s does not offer", s.t.domain, s.peer).WithCause(cause)
}

// unexpected is for a reply that is neither the one hoped for nor 421: a refusal,
// or nonsense such as a 250 in place of a 354.
func (s *session) unexpected(command string, r reply) error {
	if r.refusal() {
		return refusal(s.peer, command, r)
	}
	s.usable = false
	return mailspine.Errorf(451, "4.5.0", "%s does not follow the protocol (%s)", s.peer, command).
		WithCause(fmt.Errorf("mta: %s answered %s with %d", s.peer, command, r.code))
}

// deliver sends the message to the recipients, in as many transactions as it
// takes. It returns those that have no result, and why.
func (s *session) deliver(ctx context.Context, pending []int) ([]int, error) {
	pending, err := s.fit(pending)
	if err != nil {
		return nil, nil // all have their result
	}
	// Each transaction settles at least one recipient, or ends the loop.
	for len(pending) > 0 {
		n := len(pending)
		if pending, err = s.transact(ctx, pending); err == nil && len(pending) == n {
			err = errors.New("mta: a transaction without a result")
		}
		if err != nil {
			s.failed = true
			return pending, err
		}
	}
	return nil, nil
}

// stale reports whether an error of deliver is no more than the end of a connection that was kept: the server
// hung up, or wants no more on it, before it accepted MAIL. A new connection is then made, whose answer counts. Nothing
// was sent twice, since no message can be taken before MAIL.
func (s *session) stale(err error) bool { return err != nil && s.reused && !s.heard }

// fit settles what this server's extensions make impossible, for good: another
// host of the domain is expected to be no different.
func (s *session) fit(pending []int) ([]int, error) {
	t := s.t
	all := func(err *mailspine.Error) ([]int, error) {
		t.settle(pending, err)
		return nil, err
	}
	if v, ok := s.c.ext["SIZE"]; ok {
		// RFC 1870 section 4: no number, or 0, is no limit.
		if limit, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64); err == nil && limit > 0 && t.msg.Size() > limit {
			return all(mailspine.Errorf(552, "5.3.4", "The message has %d octets, and %s takes at most %d", t.msg.Size(), s.peer, limit))
		}
	}
	if t.facts.eightBit && !s.c.has("8BITMIME") {
		return all(mailspine.Errorf(554, "5.6.3", "The message has 8-bit data, and %s does not offer 8BITMIME", s.peer))
	}
	if !s.c.has("SMTPUTF8") {
		if t.env.UTF8 {
			return all(mailspine.Errorf(550, "5.6.7", "The message needs SMTPUTF8, which %s does not offer", s.peer))
		}
		if !isASCII(t.env.From.Local) {
			return all(mailspine.Errorf(553, "5.6.7", "The sender's address needs SMTPUTF8, which %s does not offer", s.peer))
		}
		var rest []int
		for _, i := range pending {
			if isASCII(t.env.Recipients[i].Address.Local) {
				rest = append(rest, i)
				continue
			}
			t.errs[i] = mailspine.Errorf(553, "5.6.7", "The recipient's address needs SMTPUTF8, which %s does not offer", s.peer)
		}
		pending = rest
	}
	if by := t.env.DeliverBy; !by.Time.IsZero() && by.Return {
		// RFC 2852 section 4.1.4: with mode R a message is not relayed when its time is over, nor
		// to a server that would not watch it.
		if !by.Time.After(time.Now()) {
			return all(mailspine.Errorf(554, "5.4.7", "The time for delivery is over"))
		}
		if !s.c.has("DELIVERBY") {
			return all(mailspine.Errorf(550, "5.3.3", "The message needs DELIVERBY, which %s does not offer", s.peer))
		}
	}
	return pending, nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// rewatch makes the end of ctx drop the connection, until release.
func (s *session) rewatch(ctx context.Context) {
	s.release = context.AfterFunc(ctx, s.c.abort)
}

// settle records what the server said to some recipients, and their result.
func (s *session) settle(index []int, r reply, err error) {
	rec := s.receipt()
	rec.Reply, rec.DSNRelayed = r.String(), err == nil && s.c.has("DSN")
	for _, i := range index {
		s.t.errs[i] = err
		s.t.attempt.Record(i, rec)
	}
}

// receipt is what is known without a reply.
func (s *session) receipt() mailspine.Receipt {
	return mailspine.Receipt{RemoteMTA: s.host, RemoteAddr: s.addr, Source: s.from, TLS: s.tls}
}
