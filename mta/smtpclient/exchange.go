package smtpclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
)

// A step is a command of a transaction.
type step struct {
	command string // "RSET", "MAIL", "RCPT", "DATA" or "BDAT"
	at      int    // of RCPT: the index of the outcome
}

// An exchange is a transaction under way.
//
// Its commands go out in flights. With PIPELINING (RFC 2920) a flight is as many of them as maxFlight has
// room for, most often all, down to DATA or BDAT; otherwise it is one. The replies to a flight are
// all read before the next, and before the message is sent, unless it is in the flight.
type exchange struct {
	c     *Client
	t     *Transaction
	res   *Result
	batch []int // indices of the outcomes of its recipients

	reset  bool // RSET was sent, or is not needed
	mail   bool // MAIL was sent
	sent   int  // RCPT was sent for batch[:sent]
	last   bool // DATA or BDAT was sent, or is to be sent with a large message
	bdat   bool // the message goes with BDAT in a flight
	stream bool // a large message goes with BDAT, when there is nothing else to be sent
	full   bool // the server takes no more recipients in this one

	accepted []int // outcomes that get their state with the message
	later    []int // outcomes that come in the next transaction, though they were sent
	verdict  Reply // to DATA

	stop func() bool // ends the watch over ctx; nil: it has ended
	wait *wait       // not nil: the whole message was sent, all that is missing are replies
}

// chunking reports whether BDAT is used.
func (x *exchange) chunking() bool {
	return !x.c.o.NoChunking && x.c.has("CHUNKING")
}

func (x *exchange) binary() bool { return x.t.Env.Body == mailspine.BodyBinary }

func (x *exchange) run(ctx context.Context) error {
	c := x.c
	x.stop = context.AfterFunc(ctx, c.abort)
	returned := false
	defer func() {
		x.release()
		if !returned {
			c.abort() // a hook panics: nobody knows what would come next
		}
	}()
	err := x.flights(ctx)
	returned = true
	return err
}

// flights does the work of run.
func (x *exchange) flights(ctx context.Context) error {
	c := x.c
	x.reset = c.state == fresh
	for !x.last {
		flight, err := x.queue()
		if err != nil {
			// Nothing of it is sent, not even the part that was queued.
			c.out, c.inStep = c.out[:0], false
			x.untell()
			return fmt.Errorf("smtpclient: %w", err)
		}
		if len(flight) == 0 && !x.last {
			// Nobody was accepted.
			c.state = max(c.state, begun)
			return nil
		}
		if len(flight) == 0 {
			break
		}
		if over, err := x.fly(ctx, flight); over {
			return err
		}
	}
	return x.finish(ctx)
}

// release ends the watch over ctx. It reports whether ctx was not done before.
func (x *exchange) release() bool {
	if x.stop == nil {
		return true
	}
	ok := x.stop()
	x.stop = nil
	return ok
}

// commit asks for leave to send the end of the message, after which at most d can pass to the last reply.
func (x *exchange) commit(ctx context.Context, d time.Duration) error {
	if x.t.Commit != nil {
		if err := x.t.Commit(ctx, d); err != nil {
			return &MessageError{fmt.Errorf("not sent: %w", err)}
		}
	}
	// From here on the end of ctx does not close the connection.
	if !x.release() {
		return &MessageError{ctx.Err()}
	}
	return nil
}

// queue queues the next flight and returns it. It is empty when there is nothing to do but to send a large message, or to give up.
func (x *exchange) queue() ([]step, error) {
	c := x.c
	pipelining := c.has("PIPELINING") && !c.o.NoPipelining
	small := x.t.Msg.buf != nil
	var flight []step
	rcpts := false
	for len(flight) == 0 || pipelining {
		var st step
		var line string
		switch {
		case !x.reset:
			st.command, line = "RSET", "RSET"
		case !x.mail:
			st.command, line = "MAIL", c.mail(x.t.Env, x.t.Msg, x.needsUTF8())
		case x.sent < len(x.batch) && !x.full:
			st = step{"RCPT", x.batch[x.sent]}
			line = c.rcpt(x.t.Env.Recipients[x.res.Outcomes[st.at].Rcpt])
		case !rcpts && len(x.accepted) == 0:
			return flight, nil
		case !x.chunking():
			st.command, line = "DATA", "DATA"
		case (!small || c.o.LMTP) && len(flight) > 0:
			return flight, nil // the message waits for the replies
		case !small:
			x.last, x.stream = true, true
			return nil, nil
		default:
			st.command, line = "BDAT", fmt.Sprintf("BDAT %d LAST", x.t.Msg.chunk(x.binary()))
		}
		if len(flight) > 0 && len(c.out)+len(line)+2 > maxFlight {
			break
		}
		if len(line)+2 > maxFlight {
			return nil, fmt.Errorf("a command of %d octets", len(line)+2)
		}
		if err := c.queue(line); err != nil {
			return nil, err
		}
		flight = append(flight, st)
		switch st.command {
		case "RSET":
			x.reset = true
			if c.state == loaded && x.chunking() && small {
				// If it were refused, the message behind it would go to the recipients from before.
				return flight, nil
			}
		case "MAIL":
			x.mail = true
			c.mails++
		case "RCPT":
			x.sent++
			rcpts = true
			x.res.Outcomes[st.at].Heard = true // before it is: what may have been heard counts
		case "DATA":
			x.last = true // RFC 2920 section 3.1: the last of a flight
			return flight, nil
		case "BDAT":
			x.last, x.bdat = true, true
			return flight, nil
		}
	}
	return flight, nil
}

// needsUTF8 reports whether SMTPUTF8 is asked for: where it is offered and needed (RFC 6531 section 3.4).
func (x *exchange) needsUTF8() bool {
	env := x.t.Env
	if !x.c.has("SMTPUTF8") {
		return false
	}
	if env.UTF8 || !isASCII(env.From.Local) {
		return true
	}
	for _, i := range x.batch {
		if !isASCII(env.Recipients[x.res.Outcomes[i].Rcpt].Address.Local) {
			return true
		}
	}
	return false
}

// untell takes back that recipients were heard of: the server refused MAIL, and so did not look at those that came along.
func (x *exchange) untell() {
	for i := range x.res.Outcomes {
		x.res.Outcomes[i].Heard = false
	}
}

// settle gives a reply's result to some recipients.
func (x *exchange) settle(at []int, command string, r Reply) {
	var err error
	r.Lines = r.brief() // a hostile server has a long reply for each recipient, and all are kept
	state := Taken
	if !r.OK() {
		state, err = Refused, x.c.refusal(command, r)
	}
	for _, i := range at {
		o := &x.res.Outcomes[i]
		o.State, o.Command, o.Reply, o.Err = state, command, r, err
	}
}

// doubt gives all recipients of the transaction that may have the message the result that is known: none. why is of class 4.
func (x *exchange) doubt(at []int, why error) {
	for _, i := range at {
		if o := &x.res.Outcomes[i]; o.State == Open || o.State == Taken {
			o.State, o.Command, o.Reply, o.Err = InDoubt, "", Reply{}, why
		}
	}
}

// possible returns the recipients that may get the message: those that were sent and not refused.
func (x *exchange) possible() []int {
	var at []int
	for _, i := range x.batch[:x.sent] {
		// One of later was refused too, but for this transaction only.
		later := false
		for _, l := range x.later {
			later = later || l == i
		}
		if !later {
			at = append(at, i)
		}
	}
	return at
}

// lost ends the exchange with a failure of the connection, while the reply to command was waited for. When the whole message has gone out, who
// may have it is in doubt.
func (x *exchange) lost(ctx context.Context, command string, silent bool, err error) error {
	c := x.c
	c.inStep = false
	if x.wait == nil {
		return c.fail(ctx, command, err)
	}
	silent = silent && c.got == 0 && hungUp(err)
	derr := c.broke(command, &InDoubtError{Silent: silent, Err: err})
	x.doubt(x.possible(), derr)
	return derr
}

// reply reads the next reply.
func (x *exchange) reply(command string) (Reply, error) {
	d := x.c.times.of(command)
	if x.wait == nil {
		return x.c.next(d)
	}
	if err := x.wait.next(d); err != nil {
		return Reply{}, err
	}
	return x.c.read()
}

func (x *exchange) replied(command string, at int, r Reply) {
	if x.t.Replied == nil {
		return
	}
	rcpt := -1
	if at >= 0 {
		rcpt = x.res.Outcomes[at].Rcpt
	}
	x.t.Replied(command, rcpt, r)
}

// fly sends a flight and reads its replies. over: the transaction has come to an end.
func (x *exchange) fly(ctx context.Context, flight []step) (over bool, err error) {
	c := x.c
	var said Reply
	if x.bdat {
		said, err = x.launch(ctx)
		var local *MessageError
		if errors.As(err, &local) {
			c.inStep = false
			return true, err
		}
		defer func() {
			if x.wait != nil {
				x.wait.end()
			}
		}()
	} else {
		said, err = c.flush(c.times.of(flight[0].command))
	}
	for n, st := range flight {
		r := said
		if n > 0 || err == nil && said.Code == 0 {
			r, err = x.reply(st.command)
		}
		command, at := st.command, -1
		switch command {
		case "BDAT":
			command = "message"
		case "RCPT":
			at = st.at
		}
		if err != nil {
			if r.Code != 0 && n == 0 && x.wait == nil && command != "RCPT" && command != "message" {
				x.untell() // nothing was sent
			}
			return true, x.lost(ctx, command, n == 0, err)
		}
		if st.command != "BDAT" { // whose reply may be one of several
			x.replied(command, at, r)
		}
		if r.Code == 421 && st.command != "BDAT" {
			// Whatever was sent behind it, a server that goes does not take it.
			if command == "RSET" || command == "MAIL" {
				x.untell()
			}
			return true, c.refusal(command, r)
		}
		switch st.command {
		case "RSET":
			if !r.OK() {
				x.untell()
				return true, x.void(ctx, flight[n+1:], r)
			}
			c.state = fresh
		case "MAIL":
			x.res.Mail = r
			switch {
			case r.OK() && r.Code != goodbye:
			case r.Refusal():
				x.untell()
				var open []int
				for i := range x.res.Outcomes {
					if x.res.Outcomes[i].State == Open {
						open = append(open, i)
					}
				}
				x.settle(open, "MAIL", r)
				x.drain(flight[n+1:])
				return true, nil
			default:
				x.untell()
				return true, x.nonsense("MAIL", r)
			}
		case "RCPT":
			switch {
			case r.OK() && r.Code != goodbye:
				x.accepted = append(x.accepted, st.at)
			case r.Code == 452 && len(x.accepted) > 0 && (r.Enhanced.IsZero() || r.Enhanced == mailspine.EnhancedCode{4, 5, 3}):
				// RFC 5321 section 4.5.3.1.10: too many recipients for one transaction. This
				// one and the rest go in the next, but those that were sent along, and are taken nevertheless.
				x.later, x.full = append(x.later, st.at), true
			case r.Refusal():
				x.settle([]int{st.at}, "RCPT", r)
			default:
				return true, x.nonsense("RCPT", r)
			}
		case "DATA":
			x.verdict = r
		case "BDAT":
			return true, x.judge(r)
		}
	}
	return false, nil
}

// nonsense ends the exchange for a reply that is neither yes nor no.
func (x *exchange) nonsense(command string, r Reply) error {
	x.c.inStep = false
	err := x.c.nonsense(command, r)
	if x.wait != nil {
		err = x.c.broke(command, &InDoubtError{Err: err})
		x.doubt(x.possible(), err)
	}
	return err
}

// launch sends a flight that ends with a small message. Results are as those of flush, but for a *MessageError. When all of it is sent there
// is a wait.
func (x *exchange) launch(ctx context.Context) (Reply, error) {
	c := x.c
	out := c.out
	c.out = c.out[:0]
	if c.br.Buffered() > 0 {
		return c.unasked()
	}
	// The most that can pass from here to the last reply.
	reply := c.times.Mail + c.times.DataDone
	if err := x.commit(ctx, c.times.DataBlock+reply); err != nil {
		x.untell()
		return Reply{}, err
	}
	derr := c.conn.SetDeadline(c.limit(c.times.DataBlock))
	if derr == nil && c.conn == c.raw && !quiet(c.raw) {
		return c.unasked()
	}
	if derr != nil {
		return Reply{}, derr
	}
	c.show(out)
	x.showMessage()
	wire := x.t.Msg.behind(out, x.binary())
	if n, err := c.conn.Write(wire); err != nil && n < len(wire) {
		return c.lastWords(err) // the server never got the whole of it
	}
	c.got = 0
	x.wait = newWait(ctx, c.conn, reply)
	return Reply{}, nil
}

// drain reads the replies to the rest of a flight that has become void. If they do not come at once, the dialogue is
// not in step any more.
func (x *exchange) drain(flight []step) {
	c := x.c
	if len(flight) == 0 || !c.inStep {
		return
	}
	c.state = max(c.state, begun) // some of it may have been taken seriously
	defer func(end time.Time) { c.end = end }(c.end)
	c.end = time.Now().Add(c.times.Quit)
	for _, st := range flight {
		r, err := c.next(c.times.Quit)
		if err == nil && st.command == "DATA" && r.Code == 354 {
			r, err = c.cmd(c.times.Quit, ".")
		}
		if err != nil || r.Code == 421 || !r.OK() && !r.Refusal() {
			c.inStep = false
			return
		}
	}
}

// void is for a flight that began with an RSET that was refused. The replies to the rest of it are read, and mean nothing; but if the message is
// among it, and was taken, it is not known for whom.
func (x *exchange) void(ctx context.Context, flight []step, r Reply) error {
	c := x.c
	if !r.Refusal() {
		c.inStep = false
	}
	err := c.Refusal("RSET", r)
	if x.wait == nil {
		x.drain(flight)
		return err
	}
	for _, st := range flight {
		later, rerr := x.reply(st.command)
		if rerr != nil {
			return x.lost(ctx, st.command, false, rerr)
		}
		if later.Code == 421 {
			return err
		}
		if st.command == "BDAT" && !later.Refusal() {
			return x.nonsense("RSET", r)
		}
	}
	return err
}

// of returns the time-out for the reply to a command.
func (t Timeouts) of(command string) time.Duration {
	switch command {
	case "RCPT":
		return t.Rcpt
	case "DATA":
		return t.Data
	case "BDAT", "message":
		return t.DataDone
	}
	return t.Mail
}

// finish does what the reply to DATA says, or sends a large message with BDAT.
func (x *exchange) finish(ctx context.Context) error {
	c, r := x.c, x.verdict
	switch {
	case x.stream || r.Code == 354 && len(x.accepted) > 0:
		return x.message(ctx)
	case r.Code == 354 && !c.o.LMTP: // where it would be followed by no reply at all
		// RFC 2920 section 3.1: the server takes a message for nobody, and gets an empty one. Whatever it
		// says to that, nobody has got anything.
		r, err := c.cmd(c.times.DataDone, ".")
		if err != nil {
			return x.lost(ctx, "message", false, err)
		}
		x.replied("message", -1, r)
		switch {
		case r.Code == 421:
			return c.refusal("message", r)
		case !r.OK() && !r.Refusal():
			return x.nonsense("message", r)
		}
		return nil
	case r.Refusal():
		// Without recipients there is nobody whose result it is.
		x.settle(x.accepted, "DATA", r)
		if c.state = max(c.state, begun); len(x.accepted) > 0 {
			c.state = loaded
		}
		return nil
	}
	return x.nonsense("DATA", r)
}

// message sends the message, after a 354 or with BDAT, and reads what the server says to it.
func (x *exchange) message(ctx context.Context) error {
	c := x.c
	c.inStep = false // no command is possible until the message is through
	var r Reply
	var err error
	switch {
	case !x.stream && x.t.Msg.buf != nil:
		r, err = x.atOnce(ctx)
	case !x.stream:
		bw := bufio.NewWriterSize(c.conn, 32<<10)
		r, err = x.streamed(ctx, bw, &dotWriter{w: bw})
	default:
		bw := bufio.NewWriterSize(c.conn, 32<<10)
		n := x.t.Msg.chunk(x.binary())
		line := fmt.Sprintf("BDAT %d LAST\r\n", n)
		if c.br.Buffered() > 0 {
			if r, err = c.unasked(); err == nil {
				err = errEarly
			}
			break
		}
		c.show([]byte(line))
		bw.WriteString(line)
		r, err = x.streamed(ctx, bw, &chunkWriter{w: bw, binary: x.binary(), left: n})
	}
	var doubt *InDoubtError
	var local *MessageError
	switch {
	case errors.Is(err, errEarly):
		// The server refused before it had the whole message: the answer is the same.
		about, at := -1, x.accepted
		if c.o.LMTP { // RFC 2033 section 4.2: a reply is about one recipient, and the next one's does not follow from it
			at = at[:1]
			about = at[0]
		}
		x.replied("message", about, r)
		if r.Code != 421 {
			x.settle(at, "message", r)
			c.state = loaded
		}
		if len(at) < len(x.accepted) && r.Code/100 == 5 {
			return c.broke("message", err)
		}
		return c.refusal("message", r) // who is left needs another connection
	case errors.As(err, &local):
		return err
	case errors.As(err, &doubt):
		derr := c.broke("message", err)
		x.doubt(x.accepted, derr)
		return derr
	case err != nil:
		return x.lost(ctx, "message", false, err)
	}
	if wire := c.o.Wire; wire != nil && !x.stream {
		wire(true, ".")
	}
	x.wait = newWait(ctx, c.conn, c.times.DataDone)
	defer x.wait.end()
	c.inStep = true
	if r, err = x.reply("message"); err != nil {
		c.inStep = false
		derr := c.broke("message", &InDoubtError{Err: err})
		x.doubt(x.accepted, derr)
		return derr
	}
	return x.verdicts(r)
}

// judge does what the reply to a message means that was in a flight. r is the reply to BDAT, or in LMTP the first one.
func (x *exchange) judge(r Reply) error {
	c := x.c
	if len(x.accepted) > 0 {
		return x.verdicts(r)
	}
	// Whatever it says, nobody has got anything.
	x.replied("message", -1, r)
	c.state = max(c.state, begun)
	switch {
	case r.Code == 421:
		return c.refusal("message", r)
	case !r.OK() && !r.Refusal():
		c.inStep = false
		return c.nonsense("message", r)
	}
	return nil
}

// verdicts settles the accepted recipients with the replies to the message, of which r is the first. In LMTP there is one for
// each (RFC 2033 section 4.2), otherwise one for all.
func (x *exchange) verdicts(r Reply) error {
	c := x.c
	each := [][]int{x.accepted}
	if c.o.LMTP {
		each = nil
		for i := range x.accepted {
			each = append(each, x.accepted[i:i+1])
		}
	}
	var last error
	refused := false
	for i, at := range each {
		var err error
		if i > 0 {
			r, err = x.reply("message")
		}
		if err == nil && (r.Code == goodbye || !r.OK() && !r.Refusal()) {
			err = protocolErrorf("message was answered with %d", r.Code)
		}
		if err != nil {
			c.inStep = false
			derr := c.broke("message", &InDoubtError{Err: err})
			for _, rest := range each[i:] {
				x.doubt(rest, derr)
			}
			return derr
		}
		about := -1
		if c.o.LMTP {
			about = at[0]
		}
		x.replied("message", about, r)
		x.settle(at, "message", r)
		refused = refused || !r.OK()
		if r.Code == 421 {
			last = c.refusal("message", r)
			if i+1 < len(each) {
				last = c.broke("message", &InDoubtError{Err: last})
				for _, rest := range each[i+1:] {
					x.doubt(rest, last)
				}
			}
			return last
		}
	}
	c.state = fresh
	if refused && x.chunking() {
		c.state = loaded // RFC 3030 section 2: after a BDAT that failed comes RSET
	}
	return x.surplus()
}

// surplus looks for more replies than there were commands in a flight with the message in it: then it is not known
// which of them was the one to the message. A good-bye is none of them.
func (x *exchange) surplus() error {
	c := x.c
	if !x.bdat || c.br.Buffered() == 0 {
		return nil
	}
	if b, _ := c.br.Peek(min(3, c.br.Buffered())); string(b) == "421" {
		return nil
	}
	c.inStep = false
	err := c.broke("message", &InDoubtError{Err: protocolErrorf("more replies than commands")})
	x.doubt(x.accepted, err)
	return err
}
