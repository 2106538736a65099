package smtpclient

import (
	"context"
	"time"

	"github.com/mailspine/mailspine"
)

// A Transaction is what [Client.Send] sends: one message, to some recipients of one envelope.
type Transaction struct {
	// Env has the sender, the recipients and the parameters. It is not modified. Required.
	Env *mailspine.Envelope
	// Rcpts are indices into Env.Recipients. nil: all.
	Rcpts []int
	// Msg is the message. Required.
	Msg *Message
	// Max bounds the recipients of the transaction. 0: the server's LIMITS alone.
	Max int
	// Commit is called just before the point of no return: before the final dot, before the last octet of a large message
	// sent with BDAT, and before a flight of commands that has the message in it. It gets the longest time that can pass until the
	// last reply. An error means that the message is not sent. From there on
	// the end of ctx does not close the connection, and the replies are waited for up to ten seconds longer. nil: always leave.
	Commit func(ctx context.Context, max time.Duration) error
	// Replied is called for each reply, in order. rcpt is the index of the recipient for RCPT, and in LMTP
	// for the replies to the message, whose command is "message"; otherwise -1. nil: nobody is told.
	Replied func(command string, rcpt int, r Reply)
}

// A State says what became of a recipient.
type State uint8

// The states.
const (
	// Open: there is no result. Without an error of Send the recipient goes into the next transaction (the server,
	// or Max, allowed no more in this one); with one, the server has no message for it.
	Open State = iota
	// Taken: the server answered for it.
	Taken
	// Refused: by the server with a reply, or by Send, since the server does not offer what it takes.
	Refused
	// InDoubt: the message was sent, and there is no reply: the server may have it or not. To send it again, to
	// this or another host, may send it twice.
	InDoubt
)

// An Outcome is what became of one recipient.
type Outcome struct {
	Rcpt    int // index into Env.Recipients
	State   State
	Command string // that was answered: "MAIL", "RCPT", "DATA" or "message", which stands for BDAT too; "" without a reply
	Reply   Reply  // that settled it; zero: there is none
	// Err says why it is not taken: an *mailspine.Error, of the reply's codes and text if there is one. nil where State is
	// Taken or Open.
	Err error
	// Heard: it was sent in RCPT, as far as is known, and the server did not refuse MAIL: it may have looked at it.
	Heard bool
}

// A Result is the result of one transaction.
type Result struct {
	Outcomes []Outcome // one for each recipient of the Transaction, in order
	Mail     Reply     // to MAIL; zero: there is none
}

// Send does one transaction. It is the caller's to call it again while recipients are Open and there is no error, and to
// decide whether a refusal of MAIL is the last word.
//
// With PIPELINING (RFC 2920) the commands go out in flights of up to 4 KiB, most often one. With CHUNKING (RFC 3030) beside it, a
// message of up to InMemory octets goes behind them, so that the transaction takes one round trip: MAIL, RCPT..., BDAT n
// LAST and the message. Otherwise it is sent when the replies are there and somebody is accepted, with BDAT or else DATA. A
// server that has refused MAIL or all recipients still gets the message that is in the flight, and says to it what it likes: nobody
// has it then. In LMTP the message waits for the replies to RCPT, since BDAT without recipients has no reply
// there (RFC 2033 section 4.3).
//
// The result is never nil. With an error the connection is at its end, unless InStep says otherwise. These are special:
//
//   - *[MessageError]: see there. Recipients without an outcome are Open.
//   - ErrUsedUp: nothing was sent. Open another connection.
//   - *[InDoubtError]: the recipients that may have the message are InDoubt, with this error. Silent in it
//     tells a connection that broke without a sound. On one that was used before, and then kept, it was the server
//     (or something in between) that ended it while nobody looked, as servers do when their idle time is over; what was sent met a
//     closed door. A caller may then treat InDoubt as Open and repeat at once on a new connection: that it is sent twice is
//     as likely as with DATA when the connection ends after the dot has reached a server that took it and could not say so, and
//     it is what a repetition by a queue would do, later.
//
// What must not be sent is refused without a command: a message that is larger than SIZE allows, that needs 8BITMIME, BINARYMIME (554 5.6.3; nothing
// is converted), SMTPUTF8, REQUIRETLS or DELIVERBY of a server that has it not, or that has a bare CR or LF and is not sent as BINARYMIME.
func (c *Client) Send(ctx context.Context, t *Transaction) (*Result, error) {
	x := &exchange{c: c, t: t, res: &Result{}}
	x.recipients()
	if !c.fit(t, x.res) {
		return x.res, nil
	}
	x.choose()
	if len(x.batch) == 0 {
		return x.res, nil
	}
	if c.limits.MailMax > 0 && c.mails >= c.limits.MailMax {
		return x.res, mailspine.Errorf(451, "4.3.2", "%s takes no more messages on this connection", c.peer).WithCause(ErrUsedUp)
	}
	if !c.inStep {
		return x.res, c.fail(ctx, "MAIL", errOutOfStep)
	}
	return x.res, x.run(ctx)
}

// recipients makes the outcomes.
func (x *exchange) recipients() {
	rcpts := x.t.Rcpts
	n := len(rcpts)
	if rcpts == nil {
		n = len(x.t.Env.Recipients)
	}
	x.res.Outcomes = make([]Outcome, n)
	for i := range x.res.Outcomes {
		if x.res.Outcomes[i].Rcpt = i; rcpts != nil {
			x.res.Outcomes[i].Rcpt = rcpts[i]
		}
	}
}

// choose fills batch with the recipients of this transaction, as many as are allowed.
func (x *exchange) choose() {
	limits := x.c.limits
	most := x.t.Max
	if most <= 0 || limits.RcptMax > 0 && limits.RcptMax < most {
		most = limits.RcptMax
	}
	if most <= 0 {
		most = len(x.res.Outcomes)
	}
	var domains map[string]bool // RFC 9422: RCPTDOMAINMAX
	if limits.RcptDomainMax > 0 {
		domains = map[string]bool{}
	}
	x.batch = make([]int, 0, min(most, len(x.res.Outcomes)))
	for i := range x.res.Outcomes {
		o := &x.res.Outcomes[i]
		if o.State != Open {
			continue
		}
		if len(x.batch) >= most {
			break
		}
		if domains != nil {
			d := x.t.Env.Recipients[o.Rcpt].Address.Domain
			if a, err := x.t.Env.Recipients[o.Rcpt].Address.ASCIIDomain(); err == nil {
				d = a
			}
			if !domains[d] && len(domains) >= limits.RcptDomainMax {
				continue
			}
			domains[d] = true
		}
		x.batch = append(x.batch, i)
	}
}
