package mta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mailspine/mailspine"
)

// A step is a command of a transaction.
type step struct {
	command string // "RSET", "MAIL", "RCPT" or "DATA"
	rcpt    int    // index of the recipient of RCPT
}

// A transaction is one attempt to send the message to some recipients: as many as the server takes at once.
//
// Its commands go out in flights. With PIPELINING (RFC 2920) a flight is as many of them as maxFlight has
// room for, most often all, down to DATA; otherwise it is one. The replies to a flight are
// all read before the next, and before the message is sent.
type transaction struct {
	s       *session
	pending []int // without a result before it
	batch   int   // the first so many of them are its recipients

	reset bool // RSET was sent, or is not needed
	mail  bool // MAIL was sent
	sent  int  // RCPT was sent for pending[:sent]
	data  bool // DATA was sent
	full  bool // the server takes no more recipients in this one

	told     []int // who would count as heard of for the first time
	answered int   // pending[:answered] have a reply to RCPT
	accepted []int // of these, who has no result until the message has
	later    []int // of these, who comes in the next transaction
	verdict  reply // to DATA
}

// transact does one transaction for some of pending. It returns the
// recipients that have no result. With an error, the session has ended.
func (s *session) transact(ctx context.Context, pending []int) (rest []int, err error) {
	batch := s.t.r.MaxRecipients
	if batch <= 0 {
		batch = 100
	}
	x := &transaction{s: s, pending: pending, batch: min(batch, len(pending)), reset: !s.dirty}
	s.used++
	for !x.data {
		flight, err := x.queue()
		if err != nil {
			// Nothing of it is sent, not even the part that was queued.
			s.c.out, s.usable = s.c.out[:0], false
			x.untell()
			return x.open(), err
		}
		if len(flight) == 0 {
			// Nobody was accepted.
			s.dirty = true
			return x.rest(), nil
		}
		if rest, err, over := x.fly(ctx, flight); over {
			return rest, err
		}
	}
	return x.finish(ctx)
}

// open returns the recipients that have no result.
func (x *transaction) open() []int {
	return append(append(append([]int(nil), x.accepted...), x.later...), x.pending[x.answered:]...)
}

// rest returns those that have none after this transaction.
func (x *transaction) rest() []int {
	if len(x.later) == 0 {
		return x.pending[x.sent:]
	}
	return append(x.later, x.pending[x.sent:]...)
}

// queue queues the next flight and returns it. It is empty when there is nothing to do but to give up.
func (x *transaction) queue() ([]step, error) {
	c, t := x.s.c, x.s.t
	pipelining := c.has("PIPELINING") && !t.r.NoPipelining
	var flight []step
	rcpts := false
	for len(flight) == 0 || pipelining {
		var st step
		var line string
		switch {
		case !x.reset:
			st.command, line = "RSET", "RSET"
		case !x.mail:
			st.command, line = "MAIL", x.s.mail(x.pending)
		case x.sent < x.batch && !x.full:
			st = step{"RCPT", x.pending[x.sent]}
			line = x.s.rcpt(t.env.Recipients[st.rcpt])
		case !x.data && (rcpts || len(x.accepted) > 0):
			st.command, line = "DATA", "DATA"
		default:
			return flight, nil
		}
		if len(flight) > 0 && len(c.out)+len(line)+2 > maxFlight {
			break
		}
		if err := c.queue(line); err != nil {
			return nil, err
		}
		flight = append(flight, st)
		switch st.command {
		case "RSET":
			x.reset = true
		case "MAIL":
			x.mail = true
		case "RCPT":
			x.sent++
			rcpts = true
			x.tell(st.rcpt)
		case "DATA":
			x.data = true // RFC 2920 section 3.1: the last of a flight
			return flight, nil
		}
	}
	return flight, nil
}

// tell notes that the server hears of a recipient, before it does: what may have been heard counts.
func (x *transaction) tell(i int) {
	t := x.s.t
	if t.told == nil {
		return
	}
	if _, ok := t.told[i]; !ok {
		t.told[i] = struct{}{}
		x.told = append(x.told, i)
	}
}

// untell takes that back: the server refused MAIL, and so did not look at the recipients that came along.
func (x *transaction) untell() {
	for _, i := range x.told {
		delete(x.s.t.told, i)
	}
	x.told = nil
}

// fly sends a flight and reads its replies. over: the transaction has come to an end, with rest and err.
func (x *transaction) fly(ctx context.Context, flight []step) (rest []int, err error, over bool) {
	s := x.s
	said, err := s.c.flush(s.t.times.of(flight[0].command))
	for n, st := range flight {
		r := said
		if n > 0 || err == nil && said.code == 0 {
			r, err = s.c.next(s.t.times.of(st.command))
		}
		rcpt := ""
		if st.command == "RCPT" && s.t.r.trace().Reply != nil {
			rcpt = s.t.env.Recipients[st.rcpt].Address.String()
		}
		if r, err = s.reply(ctx, st.command, rcpt, r, err); err != nil {
			if r.code != 0 && st.command != "RCPT" && st.command != "DATA" {
				x.untell()
			}
			return x.open(), err, true
		}
		switch st.command {
		case "RSET":
			if !r.ok() {
				x.untell()
				return x.open(), x.end(flight[n+1:], "RSET", r), true
			}
			s.dirty = false
		case "MAIL":
			switch {
			case r.ok() && r.code != 221: // which is good-bye
				s.heard = true
			case r.code/100 == 5 && (!s.reused || s.heard):
				x.untell()
				s.settle(x.pending, r, refusal(s.peer, "MAIL", r))
				s.drain(flight[n+1:])
				return nil, nil, true
			default:
				// A server that takes nothing from anybody now: another may. Or one that has enough of this connection.
				x.untell()
				return x.open(), x.end(flight[n+1:], "MAIL", r), true
			}
		case "RCPT":
			x.answered++
			switch {
			case r.ok():
				x.accepted = append(x.accepted, st.rcpt)
			case r.code == 452 && len(x.accepted) > 0 && (r.enhanced.IsZero() || r.enhanced == mailspine.EnhancedCode{4, 5, 3}):
				// RFC 5321 section 4.5.3.1.10: too many recipients for one transaction. This
				// one and the rest go in the next, but those that were sent along, and are taken nevertheless.
				x.later, x.full = append(x.later, st.rcpt), true
			case r.refusal():
				s.settle([]int{st.rcpt}, r, refusal(s.peer, "RCPT", r))
			default:
				x.answered-- // no result
				return x.open(), s.unexpected("RCPT", r), true
			}
		case "DATA":
			x.verdict = r
		}
	}
	return nil, nil, false
}

// end is for a reply that ends the session. The replies to the rest of the flight are read, for a good-bye that the
// server understands.
func (x *transaction) end(flight []step, command string, r reply) error {
	err := x.s.unexpected(command, r)
	x.s.drain(flight)
	return err
}

// drain reads the replies to the rest of a flight that has become void. If they do not come at once, the dialogue is
// not in step any more.
func (s *session) drain(flight []step) {
	if len(flight) == 0 || !s.usable {
		return
	}
	s.dirty = true // some of it may have been taken seriously
	defer func(end time.Time) { s.c.end = end }(s.c.end)
	s.c.end = s.c.limit(s.t.times.Quit)
	for _, st := range flight {
		r, err := s.c.next(s.t.times.Quit)
		if err == nil && st.command == "DATA" && r.code == 354 {
			r, err = s.c.cmd(s.t.times.Quit, ".")
		}
		if err != nil || r.code == 421 || !r.ok() && !r.refusal() {
			s.usable = false
			return
		}
	}
}

// finish does what the reply to DATA says.
func (x *transaction) finish(ctx context.Context) ([]int, error) {
	s, r := x.s, x.verdict
	switch {
	case r.code == 354 && len(x.accepted) > 0:
		return s.message(ctx, x.accepted, x.rest())
	case r.code == 354:
		// RFC 2920 section 3.1: the server takes a message for nobody, and gets an empty one. Whatever it
		// says to that, nobody has got anything.
		r, err := s.c.cmd(s.t.times.DataDone, ".")
		if _, err = s.reply(ctx, "message", "", r, err); err != nil {
			return x.rest(), err
		}
		return x.rest(), nil
	case r.refusal():
		// Without recipients there is nobody whose result it is.
		s.settle(x.accepted, r, refusal(s.peer, "DATA", r))
		s.dirty = true
		return x.rest(), nil
	}
	return append(x.accepted, x.rest()...), s.unexpected("DATA", r)
}

// of returns the time-out for the reply to a command.
func (t RelayTimeouts) of(command string) time.Duration {
	switch command {
	case "RCPT":
		return t.Rcpt
	case "DATA":
		return t.Data
	}
	return t.Mail
}

// message sends the message to the recipients that were accepted.
func (s *session) message(ctx context.Context, accepted, rest []int) ([]int, error) {
	t := s.t
	s.usable = false // no command is possible until the message is through
	commit := func() error {
		// The most that can pass from here to the reply.
		if err := t.attempt.BeforeCommit(ctx, t.times.DataBlock+t.times.DataDone); err != nil {
			return fmt.Errorf("mta: not sent: %w", err)
		}
		// From here on the end of ctx does not drop the connection.
		if !s.release() {
			return ctx.Err()
		}
		s.release = func() bool { return true }
		return nil
	}
	times := dataTimes{block: t.times.DataBlock, done: t.times.DataDone}
	var r reply
	var err error
	if t.facts.wire != nil {
		r, err = s.c.dataAtOnce(ctx, t.facts.wire, t.msg.Size(), times, commit)
	} else {
		var body io.ReadCloser
		if body, err = t.msg.Open(ctx); err != nil {
			// Not the server's fault, and another one would not help.
			t.settle(append(accepted, rest...), fmt.Errorf("mta: open the message: %w", err))
			return nil, err
		}
		defer body.Close()
		r, err = s.c.data(ctx, body, t.msg.Size(), times, commit)
	}
	var doubt *inDoubtError
	var local *localError
	switch {
	case errors.Is(err, errEarly):
		// The server refused before it had the whole message: the answer is the same.
		if _, err := s.reply(ctx, "message", "", r, nil); err != nil {
			return append(accepted, rest...), err
		}
		s.usable = false
		s.settle(accepted, r, refusal(s.peer, "message", r))
		return rest, refusal(s.peer, "message", r) // rest needs another connection
	case errors.As(err, &doubt):
		err := s.broken(context.WithoutCancel(ctx), "message", err)
		t.settle(accepted, err)
		return rest, err
	case errors.As(err, &local):
		t.settle(append(accepted, rest...), err)
		return nil, err
	case err != nil:
		return append(accepted, rest...), s.broken(ctx, "message", err)
	}
	s.usable = r.code != 421
	s.reply(ctx, "message", "", r, nil)
	if r.ok() {
		s.settle(accepted, r, nil)
	} else {
		s.settle(accepted, r, refusal(s.peer, "message", r))
		if r.code == 421 {
			return rest, refusal(s.peer, "message", r)
		}
	}
	if len(rest) > 0 {
		s.rewatch(ctx)
	}
	return rest, nil
}
