package queue

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/report"
)

const (
	// maxReturnedHeader bounds the header that is returned, in octets. What is
	// beyond is cut off at a line.
	maxReturnedHeader = 64 << 10
	// notifyTimeout bounds handing over a notification, which happens even when Run ends.
	notifyTimeout = time.Minute
)

// A note is a delivery status notification that is about to be handed over.
type note struct {
	env     *mailspine.Envelope
	content []byte
	dropped bool // the store refused it
}

// postmasterReport begins the ID of a report to the postmaster, and of the parts that a
// forwarder makes of it (Envelope.PartID): one that fails is not reported again.
const postmasterReport = "dsn-pm-"

// isReport reports whether a message is a notification of this package.
func isReport(env *mailspine.Envelope) bool {
	return env.From.IsZero() && strings.HasPrefix(string(env.ID), "dsn-")
}

// reader returns who is told of the failures of a message: its sender, and the postmaster in the
// place of the null reverse-path. The zero Address: nobody.
func (q *Queue) reader(env *mailspine.Envelope) mailspine.Address {
	switch {
	case !env.From.IsZero():
		return env.From
	case strings.HasPrefix(string(env.ID), postmasterReport):
		return mailspine.Address{}
	}
	return q.Postmaster
}

// mayWarn reports whether a sender may be told of a recipient's delay, which was not yet done. RFC 3461
// section 4.1: without a NOTIFY, delays may be told.
func mayWarn(r mailspine.Recipient, warned bool) bool {
	return !warned && (r.Notify == 0 || r.Notify&mailspine.NotifyDelay != 0)
}

// warnable reports whether there is a recipient whose delay the sender may be told.
func (q *Queue) warnable(d *delivery) bool {
	for i, r := range d.lease.Envelope.Recipients {
		if mayWarn(r, d.lease.Recipients[i].Warned) {
			return !d.lease.Envelope.From.IsZero()
		}
	}
	return false
}

// warn marks the recipients whose sender is told of the delay now, and reports whether there are any.
func (q *Queue) warn(d *delivery, verdicts []verdict) (any bool) {
	after := orDefault(q.WarnAfter, DefaultWarnAfter)
	age, by, limited := q.clock(d.lease)
	late := limited && by <= 0 // RFC 2852 section 4: with N, the sender is told, and it goes on
	if !late && (after < 0 || age < after) || d.lease.Envelope.From.IsZero() {
		return false
	}
	for i := range verdicts {
		v := &verdicts[i]
		if v.result.State == Open && mayWarn(d.lease.Envelope.Recipients[i], v.result.Warned) {
			v.warn, v.late = true, late
			v.result.Warned = true
			any = true
		}
	}
	return any
}

// action says what is reported of a recipient; "": nothing.
func action(env *mailspine.Envelope, rcpt mailspine.Recipient, v *verdict) report.Action {
	if env.From.IsZero() {
		// The postmaster is not the sender, whose NOTIFY it was: a NEVER does not count, nor what else
		// was asked for. It is the last that is heard of the message.
		if v.result.State == Failed {
			return report.Failed
		}
		return ""
	}
	relayed := v.result.Receipt.RemoteMTA != "" // a next hop without a name is our own mail drop
	switch {
	case v.warn:
		return report.Delayed
	case v.result.State == Failed && (rcpt.Notify == 0 || rcpt.Notify&mailspine.NotifyFailure != 0):
		return report.Failed
	case v.result.State != Delivered:
		return ""
	case relayed && env.DeliverBy.Trace && !env.DeliverBy.Time.IsZero() && rcpt.Notify != mailspine.NotifyNever:
		return report.Relayed // RFC 2852: by-trace asks for each hand-over
	case rcpt.Notify&mailspine.NotifySuccess == 0 || v.result.Receipt.DSNRelayed:
		return ""
	case relayed:
		// RFC 3461 section 5.2.2: who hands a message to a system that will not tell
		// says "relayed".
		return report.Relayed
	}
	return report.Delivered
}

// notification makes what the sender is told, or returns nil. Nothing is ever sent to
// the null reverse-path (RFC 5321 section 4.5.5).
//
// Its ID is a hash of the message's and of what is told of whom: when the same
// comes out a second time, because a process died before it was settled, it is
// the same notification; when something else does, it is another.
func (q *Queue) notification(ctx context.Context, d *delivery, verdicts []verdict, delay time.Duration) *note {
	env := d.lease.Envelope
	reader := q.reader(env)
	if reader.IsZero() {
		return nil
	}
	any := false
	for i := range verdicts {
		any = any || action(env, env.Recipients[i], &verdicts[i]) != ""
	}
	if !any {
		return nil
	}
	now, host := q.now(), q.hostname()
	status := report.Delivery{
		ReportingMTA: report.Typed{Type: "dns", Value: host},
		EnvelopeID:   env.EnvID,
		Arrival:      now.Add(-d.lease.Age),
	}
	if env.Origin.Helo != "" {
		status.ReceivedFrom = report.Typed{Type: "dns", Value: line(env.Origin.Helo, mailspine.MaxDomain)}
	}
	var s sections
	id := sha256.New()
	fmt.Fprintf(id, "%s\n", env.ID)
	for i := range verdicts {
		v, rcpt := &verdicts[i], env.Recipients[i]
		a := action(env, rcpt, v)
		if a == "" {
			continue
		}
		fmt.Fprintf(id, "%d %s\n", d.lease.Recipients[i].Index, a)
		r := fields(rcpt, v, a)
		if !v.skipped && !d.ended {
			r.LastAttempt = now
		}
		if a == report.Delayed {
			r.WillRetryUntil = q.giveUp(now, d)
		}
		s.add(rcpt, v, r, d.ended)
		status.Recipients = append(status.Recipients, r)
	}
	sum := id.Sum(nil)
	prefix := "dsn-"
	if env.From.IsZero() {
		prefix = postmasterReport
	}
	msgID := mailspine.MsgID(prefix + hex.EncodeToString(sum[:16]))
	m := report.Message{
		From:      "Mail Delivery System <MAILER-DAEMON@" + host + ">",
		To:        reader,
		Subject:   s.subject(env),
		Date:      now,
		MessageID: string(msgID) + "@" + host,
		Text:      q.text(host, &s, d, now, delay),
		Delivery:  status,
		UTF8:      env.UTF8 || !reader.IsASCII(),
	}
	m.Returned, m.Full = q.returned(ctx, d, s.failed.Len() > 0 && !env.From.IsZero())
	content, body := m.Bytes()
	return &note{content: content, env: &mailspine.Envelope{
		ID:         msgID,
		Recipients: []mailspine.Recipient{{Address: reader, Notify: mailspine.NotifyNever}},
		Body:       body,
		// A report that holds nothing but ASCII goes where SMTPUTF8 is not known.
		UTF8:       m.UTF8 && (!reader.IsASCII() || !isASCII(content)),
		RequireTLS: env.RequireTLS, // RFC 8689 section 5: as well protected as the message
		Priority:   env.Priority,
		Origin:     mailspine.Origin{Time: now},
		Tenant:     env.Tenant,
	}}
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// fields makes the fields of a recipient, but for the dates.
func fields(rcpt mailspine.Recipient, v *verdict, a report.Action) report.Recipient {
	r := report.Recipient{Final: report.ForAddress(rcpt.Address), Action: a}
	if t, addr, ok := strings.Cut(rcpt.ORcpt, ";"); ok {
		r.Original = report.Typed{Type: strings.ToLower(t), Value: addr}
	}
	if v.result.Receipt.RemoteMTA != "" {
		r.RemoteMTA = report.Typed{Type: "dns", Value: v.result.Receipt.RemoteMTA}
	}
	reply := v.result.Receipt.Reply
	switch st := v.result.Status; {
	case st != nil:
		r.Status = mailspine.Status(st).Enhanced
		if reply == "" || v.expired {
			reply = line(st.Reply(), maxText)
		}
	case a == report.Delayed:
		r.Status = mailspine.EnhancedCode{4, 0, 0} // given back each time
	default:
		r.Status = mailspine.EnhancedCode{2, 0, 0}
	}
	if v.late {
		r.Status = mailspine.EnhancedCode{4, 4, 7} // RFC 2852 section 4: the time that the sender set is over
	}
	if reply != "" && (a == report.Failed || a == report.Delayed) {
		r.Diagnostic = report.Typed{Type: "smtp", Value: reply}
	}
	return r
}

// sections are the lists of recipients in the part for people.
type sections struct {
	failed, delayed, delivered strings.Builder
}

// add writes who it is about, what happened in words, and the answer as it was. What was ended was so by
// an operator.
func (s *sections) add(rcpt mailspine.Recipient, v *verdict, r report.Recipient, ended bool) {
	b := &s.delivered
	switch r.Action {
	case report.Failed:
		b = &s.failed
	case report.Delayed:
		b = &s.delayed
	}
	to := rcpt.Address.String()
	fmt.Fprintf(b, "  <%s>\n", line(to, mailspine.MaxPath))
	if o := line(r.Original.Value, mailspine.MaxPath); o != "" && !strings.EqualFold(o, to) {
		fmt.Fprintf(b, "    (you wrote to <%s>)\n", o)
	}
	const indent = "    "
	switch {
	case r.Action == report.Delivered:
	case r.Action == report.Relayed && v.result.Receipt.DSNRelayed:
		wrap(b, indent, "handed to "+r.RemoteMTA.Value+", which brings it on its way")
	case r.Action == report.Relayed:
		wrap(b, indent, "handed to "+r.RemoteMTA.Value+", which will not report any further")
	case r.Diagnostic.IsZero():
		wrap(b, indent, "There was no attempt yet: mail to this destination has to wait at present.")
	default:
		switch {
		case ended:
			wrap(b, indent, "Those who run this mail system have given it up.")
		case v.late:
			wrap(b, indent, "It was not delivered in the time that you set for that.")
		default:
			wrap(b, indent, why(r.Status))
		}
		if v.skipped {
			wrap(b, indent, "There was no attempt since then: mail to this destination has to wait at present.")
		}
		// The answer is not wrapped: it is what others will search for.
		if r.RemoteMTA.Value != "" && !v.expired {
			fmt.Fprintf(b, "    %s said: %s\n", line(r.RemoteMTA.Value, mailspine.MaxDomain), r.Diagnostic.Value)
		} else {
			fmt.Fprintf(b, "    %s\n", r.Diagnostic.Value)
		}
	}
}

func (s *sections) subject(env *mailspine.Envelope) string {
	switch {
	case env.From.IsZero():
		return "A message without a sender could not be delivered"
	case s.failed.Len() > 0:
		return "Your message could not be delivered"
	case s.delayed.Len() > 0:
		return "Your message is delayed"
	}
	return "Your message was delivered"
}

// text is the part for people.
func (q *Queue) text(host string, s *sections, d *delivery, now time.Time, delay time.Duration) string {
	env := d.lease.Envelope
	whose := "Your"
	var b strings.Builder
	fmt.Fprintf(&b, "This is the mail system at %s.\n", host)
	if env.From.IsZero() {
		whose = "The"
		b.WriteString("\n")
		wrap(&b, "", "This is for the postmaster: a message with the null reverse-path, which may be a report of another failure, has failed. Nobody else is told.")
	}
	if s.failed.Len() > 0 {
		fmt.Fprintf(&b, "\n%s message could not be delivered, and will not be tried again, to:\n\n%s", whose, &s.failed)
	}
	if s.delayed.Len() > 0 {
		fmt.Fprintf(&b, "\n%s message has not been delivered yet to:\n\n%s\n", whose, &s.delayed)
		b.WriteString("You need not send it again. The next attempt is about " + now.Add(delay).Format(time.RFC1123Z))
		if t := q.giveUp(now, d); !t.IsZero() {
			b.WriteString(",\nthe last one " + t.Format(time.RFC1123Z))
		}
		b.WriteString(".\n")
	}
	if s.delivered.Len() > 0 {
		fmt.Fprintf(&b, "\n%s message was delivered to:\n\n%s", whose, &s.delivered)
	}
	fmt.Fprintf(&b, "\nIt has the queue ID %s and arrived %s", env.ID, now.Add(-d.lease.Age).Format(time.RFC1123Z))
	if env.From.IsZero() && env.Origin.Addr.IsValid() {
		fmt.Fprintf(&b, "\nfrom %s", env.Origin.Addr.Addr())
	}
	b.WriteString(".\n")
	return b.String()
}

// returned is what the notification gives back of the message. RFC 3461
// section 4.3: the whole message only where the sender asked for it and something
// failed, and here only where it is not large, and can be carried as it is;
// RFC 8689 section 5: never of one that requires TLS. Otherwise its header.
func (q *Queue) returned(ctx context.Context, d *delivery, failed bool) (b []byte, full bool) {
	env := d.lease.Envelope
	limit := orDefault(q.MaxReturn, DefaultMaxReturn)
	msg := storedContent{q.Store, env.ID, d.lease.Size}
	ctx = context.WithoutCancel(ctx)
	if env.Ret == mailspine.RetFull && failed && !env.RequireTLS && d.lease.Size <= limit {
		if b, err := mailspine.ReadContent(ctx, msg, limit); err == nil && report.CanReturn(b) {
			return b, true
		}
	}
	r, err := msg.Open(ctx)
	if err != nil {
		q.logger().ErrorContext(ctx, "a notification goes without the header of its message", "id", env.ID, "err", err)
		return nil, false
	}
	defer r.Close()
	b, err = io.ReadAll(io.LimitReader(r, maxReturnedHeader))
	if err != nil {
		q.logger().ErrorContext(ctx, "a notification goes without the header of its message", "id", env.ID, "err", err)
		return nil, false
	}
	return header(b), false
}

// header returns the header block that b begins with, without the empty line.
func header(b []byte) []byte {
	if bytes.HasPrefix(b, []byte("\r\n")) {
		return []byte{}
	}
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		return b[:i+2]
	}
	if len(b) < maxReturnedHeader {
		return b // a message without a body
	}
	return b[:bytes.LastIndexByte(b, '\n')+1]
}

// notify hands a note to Notifications. It reports false if it is to be emitted
// into the store.
func (q *Queue) notify(ctx context.Context, n *note) bool {
	if q.Notifications == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), notifyTimeout)
	defer cancel()
	err := func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("queue: Notifications panicked: %v", r)
				q.counters.panics.Add(1)
			}
		}()
		return q.Notifications.Deliver(ctx, n.env, mailspine.BytesContent(n.content))
	}()
	if err != nil {
		q.logger().ErrorContext(ctx, "a notification was refused by Notifications, it goes into the queue", "id", n.env.ID, "err", err)
	}
	return err == nil
}

// emission makes a note a message for the store.
func (n *note) emission(ctx context.Context, q *Queue, d *delivery) Emission {
	route, err := q.routeNow(ctx, d, n.env, n.env.Recipients[0])
	if err != nil {
		route = DomainRoute(n.env.Recipients[0]) // the Router is asked again when it is leased
	}
	return Emission{
		Message: Message{Envelope: n.env, Items: []NewItem{{Route: route, Recipients: []int{0}}}, Weight: q.weight(n.env)},
		Content: mailspine.BytesContent(n.content),
	}
}
