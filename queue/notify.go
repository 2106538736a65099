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
}

// warn marks the recipients whose sender is told of the delay now. RFC 3461
// section 4.1: without a NOTIFY, delays may be told.
func (q *Queue) warn(d *delivery, verdicts []verdict) {
	after := orDefault(q.WarnAfter, DefaultWarnAfter)
	age, by, limited := q.clock(d.lease)
	late := limited && by <= 0 // RFC 2852 section 4: with N, the sender is told, and it goes on
	if after < 0 || age < after && !late || d.lease.Envelope.From.IsZero() {
		return
	}
	for i := range verdicts {
		v := &verdicts[i]
		notify := d.lease.Envelope.Recipients[i].Notify
		if v.result.State == Open && !v.result.Warned && (notify == 0 || notify&mailspine.NotifyDelay != 0) {
			v.warn = true
			v.result.Warned = true
		}
	}
}

// action says what is reported of a recipient; "": nothing.
func action(rcpt mailspine.Recipient, v verdict) report.Action {
	switch {
	case v.warn:
		return report.Delayed
	case v.result.State == Failed && (rcpt.Notify == 0 || rcpt.Notify&mailspine.NotifyFailure != 0):
		return report.Failed
	case v.result.State == Delivered && rcpt.Notify&mailspine.NotifySuccess != 0 && !v.result.Receipt.DSNRelayed:
		// RFC 3461 section 5.2.2: who hands a message to a system that will not tell
		// says "relayed". A next hop without a name is our own mail drop.
		if v.result.Receipt.RemoteMTA != "" {
			return report.Relayed
		}
		return report.Delivered
	}
	return ""
}

// notification makes what the sender is told, or returns nil. Nothing is ever sent to
// the null reverse-path (RFC 5321 section 4.5.5).
//
// Its ID is a hash of the message's and of what is told of whom: when the same
// comes out a second time, because a process died before it was settled, it is
// the same notification; when something else does, it is another.
func (q *Queue) notification(ctx context.Context, d *delivery, verdicts []verdict, delay time.Duration) *note {
	env := d.lease.Envelope
	if env.From.IsZero() {
		return nil
	}
	now := q.now()
	utf8 := env.UTF8 || !env.From.IsASCII()
	host := q.hostname()
	status := report.Delivery{
		ReportingMTA: report.Typed{Type: "dns", Value: host},
		EnvelopeID:   env.EnvID,
		Arrival:      now.Add(-d.lease.Age),
	}
	if env.Origin.Helo != "" {
		status.ReceivedFrom = report.Typed{Type: "dns", Value: line(env.Origin.Helo, mailspine.MaxDomain)}
	}
	var sections [3]strings.Builder // failed, delayed, delivered
	id := sha256.New()
	fmt.Fprintf(id, "%s\n", env.ID)
	failed := false
	for i, v := range verdicts {
		rcpt := env.Recipients[i]
		a := action(rcpt, v)
		if a == "" {
			continue
		}
		fmt.Fprintf(id, "%d %s\n", d.lease.Recipients[i].Index, a)
		r := report.Recipient{Final: report.ForAddress(rcpt.Address), Action: a, LastAttempt: now}
		if t, addr, ok := strings.Cut(rcpt.ORcpt, ";"); ok {
			r.Original = report.Typed{Type: strings.ToLower(t), Value: addr}
		}
		if v.result.Receipt.RemoteMTA != "" {
			r.RemoteMTA = report.Typed{Type: "dns", Value: v.result.Receipt.RemoteMTA}
		}
		reply := v.result.Receipt.Reply
		if st := v.result.Status; st != nil {
			r.Status = mailspine.Status(st).Enhanced
			if reply == "" || v.expired {
				reply = line(st.Reply(), maxText)
			}
		} else if a == report.Delayed {
			r.Status = mailspine.EnhancedCode{4, 0, 0} // given back each time
		} else {
			r.Status = mailspine.EnhancedCode{2, 0, 0}
		}
		if reply != "" && (a == report.Failed || a == report.Delayed) {
			r.Diagnostic = report.Typed{Type: "smtp", Value: reply}
		}
		section := &sections[2]
		switch a {
		case report.Failed:
			section, failed = &sections[0], true
		case report.Delayed:
			section = &sections[1]
			r.WillRetryUntil = q.giveUp(now, d.lease)
		}
		fmt.Fprintf(section, "  <%s>\n", line(rcpt.Address.String(), mailspine.MaxPath))
		switch {
		case a == report.Relayed:
			fmt.Fprintf(section, "    handed to %s, which will not report any further\n", r.RemoteMTA.Value)
		case a == report.Delivered:
		case reply == "":
			section.WriteString("    not tried yet\n")
		case r.RemoteMTA.Value != "" && !v.expired:
			fmt.Fprintf(section, "    %s said: %s\n", r.RemoteMTA.Value, reply)
		default:
			fmt.Fprintf(section, "    %s\n", reply)
		}
		status.Recipients = append(status.Recipients, r)
	}
	if len(status.Recipients) == 0 {
		return nil
	}
	sum := id.Sum(nil)
	msgID := mailspine.MsgID("dsn-" + hex.EncodeToString(sum[:16]))
	m := report.Message{
		From:      "Mail Delivery System <MAILER-DAEMON@" + host + ">",
		To:        env.From,
		Subject:   subject(&sections),
		Date:      now,
		MessageID: string(msgID) + "@" + host,
		Text:      q.text(host, &sections, d, now, delay),
		Delivery:  status,
		UTF8:      utf8,
	}
	m.Returned, m.Full = q.returned(ctx, d, failed)
	content, body := m.Bytes()
	return &note{content: content, env: &mailspine.Envelope{
		ID:         msgID,
		Recipients: []mailspine.Recipient{{Address: env.From, Notify: mailspine.NotifyNever}},
		Body:       body,
		UTF8:       utf8,
		RequireTLS: env.RequireTLS, // RFC 8689 section 5: as well protected as the message
		Priority:   env.Priority,
		Origin:     mailspine.Origin{Time: now},
		Tenant:     env.Tenant,
	}}
}

func subject(sections *[3]strings.Builder) string {
	switch {
	case sections[0].Len() > 0:
		return "Your message could not be delivered"
	case sections[1].Len() > 0:
		return "Your message is delayed"
	}
	return "Your message was delivered"
}

// text is the part for people.
func (q *Queue) text(host string, sections *[3]strings.Builder, d *delivery, now time.Time, delay time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "This is the mail system at %s.\n", host)
	if s := sections[0].String(); s != "" {
		b.WriteString("\nYour message could not be delivered to:\n\n" + s)
	}
	if s := sections[1].String(); s != "" {
		b.WriteString("\nYour message has not been delivered yet to:\n\n" + s)
		b.WriteString("\nYou need not send it again. The next attempt is about " + now.Add(delay).Format(time.RFC1123Z))
		if t := q.giveUp(now, d.lease); !t.IsZero() {
			b.WriteString(",\nthe last one " + t.Format(time.RFC1123Z))
		}
		b.WriteString(".\n")
	}
	if s := sections[2].String(); s != "" {
		b.WriteString("\nYour message was delivered to:\n\n" + s)
	}
	fmt.Fprintf(&b, "\nIt has the queue ID %s and arrived %s.\n", d.lease.Envelope.ID, now.Add(-d.lease.Age).Format(time.RFC1123Z))
	return b.String()
}

// giveUp is when there is no more time to try, where that is known.
func (q *Queue) giveUp(now time.Time, l Lease) time.Time {
	var t time.Time
	age, by, limited := q.clock(l)
	switch p := q.Retry.(type) {
	case nil:
		t = now.Add(DefaultLifetime - age)
	case DefaultRetry:
		life := p.Lifetime
		if life <= 0 {
			life = DefaultLifetime
		}
		t = now.Add(life - age)
	}
	if limited && l.Envelope.DeliverBy.Return {
		if u := now.Add(by); t.IsZero() || u.Before(t) {
			t = u
		}
	}
	return t
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
		Message: Message{Envelope: n.env, Items: []NewItem{{Route: route, Recipients: []int{0}}}},
		Content: mailspine.BytesContent(n.content),
	}
}
