package mta

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// A session is one connection, and the transfer that uses it.
type session struct {
	c    *smtpclient.Client
	host string
	addr string
	peer string // host and address, for texts
	from string // our side of it, in receipts
	tls  mailspine.TLSInfo

	// Of the transfer; nil while the session is kept.
	t       *transfer
	over    func() error // why ctx has ended
	reused  bool         // it was opened by an earlier transfer
	heard   bool         // and has accepted MAIL from this one
	failed  bool         // something went wrong that was no result
	doubted bool         // somebody may have got the message, or not

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
	if s.over() != nil {
		s.c.Close()
		return
	}
	if !s.failed && s.t.r.keep(s) {
		return
	}
	s.c.Quit(context.Background())
}

// watchWire shows the dialogue to the trace.
func (s *session) watchWire(ctx context.Context, r *Relay) {
	w := r.trace().Wire
	if w == nil {
		s.c.SetWire(nil)
		return
	}
	s.c.SetWire(func(sent bool, line string) {
		w(ctx, WireLine{Host: s.host, Addr: s.addr, Sent: sent, Line: line})
	})
}

// reply tells the trace of a reply, and checks for the good-bye that may come at
// any time: 421 ends the session (RFC 5321 section 4.2.1).
func (s *session) reply(ctx context.Context, command, rcpt string, r reply, err error) (reply, error) {
	if err != nil {
		return r, err
	}
	s.told(ctx, command, rcpt, r)
	if r.Code == 421 {
		return r, s.c.Refusal(command, r)
	}
	return r, nil
}

// told tells the trace of a reply.
func (s *session) told(ctx context.Context, command, rcpt string, r reply) {
	s.t.said = r
	if f := s.t.r.trace().Reply; f != nil {
		f(ctx, ReplyInfo{Domain: s.t.domainOf(rcpt), Host: s.host, Addr: s.addr, Command: command, Recipient: rcpt, Reply: r.String()})
	}
}

// open does greeting, EHLO, TLS and what a Smarthost needs. clear: TLS was tried and failed, and may be
// done without.
func (s *session) open(ctx context.Context, clear bool) error {
	t := s.t
	if t.fixed != nil && t.fixed.implicit {
		var verified string
		err := s.c.Handshake(ctx, t.tlsConfig(s.host, &verified))
		if s.shaken(ctx, err, verified); err != nil {
			return err
		}
	}
	r, err := s.c.Greeting(ctx)
	if r, err = s.reply(ctx, "greeting", "", r, err); err != nil {
		return err
	}
	if r.Code != 220 {
		return s.c.Refusal("greeting", r)
	}
	if err := t.greetedBy(r.Lines[0]); err != nil {
		return err
	}
	if err := s.hello(ctx); err != nil {
		return err
	}
	if !clear {
		if err := s.secure(ctx); err != nil {
			return err
		}
	}
	if t.fixed != nil && t.fixed.cred != nil {
		return s.login(ctx)
	}
	return nil
}

// secure does the TLS that is to be done.
func (s *session) secure(ctx context.Context) error {
	t := s.t
	switch {
	case s.tls.Version != "": // it began with the connection
	case s.c.Has("STARTTLS"):
		if err := s.startTLS(ctx); err != nil {
			return err
		}
	case t.tls.rule.Level > TLSOpportunistic:
		err := s.noTLS(nil)
		t.outcome(ctx, s, err)
		return err
	default:
		t.outcome(ctx, s, nil)
	}
	if t.env.RequireTLS && !s.c.Has("REQUIRETLS") {
		return mailspine.Errorf(550, "5.7.30", "The message requires REQUIRETLS, which %s does not offer", s.peer)
	}
	// In clear although there should be TLS is for this transfer only: the next one tries again.
	s.reusable = s.tls.Version != "" || !s.c.Has("STARTTLS")
	return nil
}

// login authenticates with a Smarthost's credentials. What is wrong with them is our mistake, and bounces no mail.
func (s *session) login(ctx context.Context) error {
	err := s.c.Auth(ctx, s.t.fixed.cred)
	var ae *smtpclient.AuthError
	if !errors.As(err, &ae) {
		return err
	}
	if ae.Reply.Code != 0 {
		s.told(ctx, "AUTH", "", ae.Reply)
	}
	s.t.log(ctx, slog.LevelWarn, "mta: authentication failed", s.peer, err)
	if !mailspine.Status(err).Temporary() {
		return mailspine.Errorf(451, "4.7.8", "The authentication with %s failed", s.peer).WithCause(err)
	}
	return err
}

// hello says EHLO or HELO.
func (s *session) hello(ctx context.Context) error {
	name := s.t.source.Hostname
	if name == "" {
		name = s.t.r.Hostname
	}
	if ascii, err := mailspine.ASCIIDomain(name); err == nil {
		name = ascii
	}
	r, err := s.c.Hello(ctx, name)
	if r, err = s.reply(ctx, "EHLO", "", r, err); err != nil {
		return err
	}
	if !r.OK() {
		return s.c.Refusal("EHLO", r)
	}
	return nil
}

// startTLS negotiates TLS and says hello again.
func (s *session) startTLS(ctx context.Context) error {
	t := s.t
	var verified string
	r, err := s.c.StartTLS(ctx, t.tlsConfig(s.host, &verified))
	if err == nil && !r.OK() {
		// The offer was not meant: opportunistically, the session goes on in clear
		// (RFC 3207 section 4.1).
		if r, err = s.reply(ctx, "STARTTLS", "", r, nil); err != nil {
			return err
		}
		if !r.Refusal() {
			return s.c.Refusal("STARTTLS", r)
		}
		if t.tls.rule.Level > TLSOpportunistic {
			err := s.noTLS(s.c.Refusal("STARTTLS", r))
			t.outcome(ctx, s, err)
			return err
		}
		t.outcome(ctx, s, nil)
		return nil
	}
	s.shaken(ctx, err, verified)
	if _, err = s.reply(ctx, "STARTTLS", "", r, err); err != nil {
		return err
	}
	return s.hello(ctx)
}

// shaken tells who wants to know how a handshake came out, if err is about one.
func (s *session) shaken(ctx context.Context, err error, verified string) {
	t := s.t
	if err == nil {
		s.tls = tlsInfo(s.tlsState(), verified)
		t.last.TLS = s.tls
	}
	var te *tlsError
	if err == nil || errors.As(err, &te) {
		t.outcome(ctx, s, err)
	}
	if f := t.r.trace().TLS; f != nil && (err == nil || errors.As(err, &te)) {
		f(ctx, TLSDoneInfo{Domain: t.domain, Host: s.host, Level: t.tls.rule.Level, Policy: string(t.tls.from), TLS: s.tls, Resumed: s.tlsState().DidResume, Err: err})
	}
}

// noTLS is for a server without TLS where a rule demands it.
func (s *session) noTLS(cause error) error {
	if s.t.env.RequireTLS {
		return mailspine.Errorf(550, "5.7.10", "The message requires TLS, which %s does not offer", s.peer).WithCause(cause)
	}
	return mailspine.Errorf(451, "4.7.4", "The policy for %s demands TLS, which %s does not offer", s.t.whom(), s.peer).WithCause(cause)
}

// deliver sends the message to the recipients, in as many transactions as it
// takes. It returns those that have no result, and why.
func (s *session) deliver(ctx context.Context, pending []int) ([]int, error) {
	// Each transaction settles at least one recipient, or ends the loop.
	for len(pending) > 0 {
		n := len(pending)
		var err error
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

// transact does one transaction for some of pending. It returns the
// recipients that have no result. With an error, the session has ended.
func (s *session) transact(ctx context.Context, pending []int) (rest []int, err error) {
	t := s.t
	most := t.r.MaxRecipients
	if most <= 0 {
		most = 100
	}
	res, err := s.c.Send(ctx, &smtpclient.Transaction{
		Env: t.env, Rcpts: pending, Msg: t.facts.msg, Max: most, Commit: t.attempt.BeforeCommit,
		Replied: func(command string, i int, r reply) {
			rcpt := ""
			if i >= 0 && t.r.trace().Reply != nil {
				rcpt = t.env.Recipients[i].Address.String()
			}
			s.told(ctx, command, rcpt, r)
		},
	})
	s.used = s.c.Transactions()
	s.heard = s.heard || res.Mail.OK() && res.Mail.Code != 221 // which is good-bye
	stale := s.reused && !s.heard
	var doubt *smtpclient.InDoubtError
	silent := errors.As(err, &doubt) && doubt.Silent
	rec := s.receipt()
	dsn := s.c.Has("DSN")
	for i := range res.Outcomes {
		o := &res.Outcomes[i]
		if o.Heard && t.told != nil {
			t.told[o.Rcpt] = struct{}{} // what may have been heard counts
		}
		switch {
		case o.State == smtpclient.Open, o.State == smtpclient.InDoubt && stale && silent:
			rest = append(rest, o.Rcpt)
			continue
		case o.Command == "MAIL" && (stale || o.Reply.Code/100 == 4):
			// A server that takes nothing from anybody now: another may. Or one that has enough of this connection.
			rest, err = append(rest, o.Rcpt), o.Err
			continue
		case o.State == smtpclient.InDoubt:
			s.doubted = true
		}
		t.errs[o.Rcpt] = o.Err
		if o.Reply.Code != 0 {
			if i == 0 || o.Reply.Code != res.Outcomes[i-1].Reply.Code || &o.Reply.Lines[0] != &res.Outcomes[i-1].Reply.Lines[0] {
				rec.Reply = o.Reply.String() // once for all recipients that it settles
			}
			rec.DSNRelayed = o.Err == nil && dsn
			t.attempt.Record(o.Rcpt, rec)
		}
	}
	var local *smtpclient.MessageError
	if errors.As(err, &local) {
		// Not the server's fault, and another one would not help.
		err = fmt.Errorf("mta: %w", err)
		t.settle(rest, err)
		return nil, err
	}
	return rest, err
}

// tlsState describes the TLS of the connection; zero: none.
func (s *session) tlsState() tls.ConnectionState {
	state, _ := s.c.TLS()
	return state
}

// stale reports whether an error of deliver is no more than the end of a connection that was kept: the server
// hung up, or wants no more on it, before it accepted MAIL. A new connection is then made, whose answer counts. Nothing
// was sent twice: no message can be taken without MAIL, and one that was sent along counts as not taken only if the server ended
// the connection without a sound (see smtpclient.Client.Send).
func (s *session) stale(err error) bool { return err != nil && s.reused && !s.heard && !s.doubted }

// rewatch makes ctx the one that counts.
func (s *session) rewatch(ctx context.Context) { s.over = ctx.Err }

// receipt is what is known without a reply.
func (s *session) receipt() mailspine.Receipt {
	return mailspine.Receipt{RemoteMTA: s.host, RemoteAddr: s.addr, Source: s.from, TLS: s.tls}
}
