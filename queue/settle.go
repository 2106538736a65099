package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// maxText bounds replies and error texts that are stored, in octets.
const maxText = 1000

// line makes one line of valid UTF-8, at most max octets long, of a text that a stranger may have
// written.
func line(s string, max int) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }), " ")
	if len(s) > max {
		for max > 0 && !utf8.RuneStart(s[max]) {
			max--
		}
		s = s[:max]
	}
	return strings.ToValidUTF8(s, "?")
}

// A verdict is what the queue makes of one recipient's result.
type verdict struct {
	result  Result
	cause   mailspine.Cause
	skipped bool // given back: nothing was attempted
	expired bool
	warn    bool // the sender is told of the delay now
	late    bool // because the time that the sender set is over
}

// skipped is the verdict of a recipient that is given back: what was known of it stays.
func skipped(st RecipientState) verdict {
	v := verdict{result: st.Last, skipped: true}
	v.result.State = Open
	v.result.Warned = st.Warned
	return v
}

// conclude makes results of errors, and settles them. It reports whether the
// lease has been dealt with.
//
// If all recipients were given back (NotNow), so is the item, and no attempt is
// counted. If only some were, they stay open with what was remembered of them, and
// wait with those that were refused for now, for as long as the policy says; if there are
// none of these, until the time that NotNow says. The attempt is
// counted then, because it was one for the others.
func (q *Queue) conclude(ctx context.Context, d *delivery, errs mailspine.RecipientErrors, receipts []mailspine.Receipt, took time.Duration) bool {
	attempt := d.lease.Attempts + 1
	all := true // given back
	var later time.Duration
	var reason string
	for _, err := range errs {
		nn := notNow(err)
		if nn == nil {
			all = false
			continue
		}
		wait := holdUnknown
		switch {
		case errors.Is(context.Cause(ctx), errShutdown):
			wait = 0 // somebody else may go on at once
		case !nn.Until.IsZero():
			// An Until that has passed must not make us spin.
			wait = max(nn.Until.Sub(q.now()), minWait)
		}
		if reason == "" || wait < later {
			later = wait
			reason = Hold{Reason: line(nn.Reason, maxText), Rule: line(nn.Rule, maxText)}.String()
			if reason == "" {
				reason = "not now"
			}
		}
	}
	tried := attempt
	if all {
		tried = d.lease.Attempts
	}
	delay, more := q.retry(ctx, d, tried)
	if all && more {
		return q.giveBack(ctx, d, later, reason, false)
	}

	verdicts := make([]verdict, len(errs))
	deferred := false
	for i, err := range errs {
		v := &verdicts[i]
		v.result = Result{Receipt: receipts[i], Warned: d.lease.Recipients[i].Warned}
		nn := notNow(err)
		switch {
		case err == nil:
			v.result.State = Delivered
			continue
		case nn != nil && more:
			*v = skipped(d.lease.Recipients[i])
			continue
		}
		st := mailspine.Status(err)
		st.Message = line(st.Message, maxText)
		st.Err = errors.New(line(err.Error(), maxText))
		v.result.Status = st
		v.cause = q.classify(ctx, d, st, receipts[i])
		switch {
		case !st.Temporary():
			v.result.State = Failed
		case !more:
			v.result.State = Failed
			v.expired = true
			v.cause = mailspine.CauseExpired
			if nn != nil {
				// The last refusal tells more than that it was not tried since. There may be none.
				st = d.lease.Recipients[i].Last.Status
				v.result.Receipt = d.lease.Recipients[i].Last.Receipt
			}
			v.result.Status = expired(st)
		default:
			v.result.State = Open
			deferred = true
		}
	}
	if !deferred {
		delay = later
		if later > 0 { // 0: interrupted, and due at once
			delay = q.bound(d, later)
		}
	}
	q.warn(d, verdicts)
	q.settle(ctx, d, verdicts, delay, took)
	return true
}

// expired is the status of a recipient that was refused for now once too often
// (RFC 3463 section 3.5, X.4.7).
func expired(last *mailspine.Error) *mailspine.Error {
	msg := "Delivery time expired"
	if last != nil {
		msg += "; the last answer was: " + last.Reply()
	} else {
		msg += "; there was no attempt"
	}
	e := mailspine.Errorf(554, "5.4.7", "%s", line(msg, maxText))
	if last != nil {
		e.Err = last.Err
	}
	return e
}

func (q *Queue) classify(ctx context.Context, d *delivery, st *mailspine.Error, r mailspine.Receipt) (cause mailspine.Cause) {
	if q.Classifier == nil {
		return mailspine.CauseUnknown
	}
	defer func() {
		if p := recover(); p != nil {
			q.panicked(ctx, d, "Classifier", p)
			cause = mailspine.CauseUnknown
		}
	}()
	return q.Classifier.Classify(st, r)
}

// settle records the results, and tells of them. It reports false if they are not
// recorded; nothing more can be done then. A store that fails is tried
// again while the lease lasts, which is renewed all the time: what is known must not be
// delivered again.
func (q *Queue) settle(ctx context.Context, d *delivery, verdicts []verdict, delay, took time.Duration) bool {
	s, note := q.settlement(ctx, d, verdicts, delay)
	for failures := 0; ; {
		err := q.settleOnce(ctx, &s, note)
		if err == nil {
			break
		}
		if errors.Is(err, ErrLeaseLost) || d.isLost() {
			q.lostLease(ctx, d, taken(verdicts))
			return false
		}
		q.counters.storeErrors.Add(1)
		q.logger().ErrorContext(ctx, "settling failed", "id", d.lease.Envelope.ID, "route", d.lease.Route, "err", err)
		if ctx.Err() != nil || errors.Is(err, ErrClosed) {
			// Not given back, but left to its lease: another process must not
			// repeat it sooner than that.
			q.lostLease(ctx, d, taken(verdicts))
			return false
		}
		t := time.NewTimer(backoff(&failures))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
	q.tell(ctx, d, verdicts, note, delay, took)
	return true
}

// settlement makes a Settlement of verdicts, with what is reported of them.
func (q *Queue) settlement(ctx context.Context, d *delivery, verdicts []verdict, delay time.Duration) (Settlement, *note) {
	s := Settlement{Token: d.lease.Token, Results: make([]Result, len(verdicts)), Delay: delay}
	for i, v := range verdicts {
		s.Results[i] = v.result
	}
	ctx = context.WithoutCancel(ctx)
	note := q.notification(ctx, d, verdicts, delay)
	if note != nil && !q.notify(ctx, note) {
		s.Emit = []Emission{note.emission(ctx, q, d)}
	}
	return s, note
}

// settleOnce settles, even if Run is ending. If the store refuses as bad what is told of the
// result, the result is settled without.
func (q *Queue) settleOnce(ctx context.Context, s *Settlement, n *note) error {
	for {
		errs, err := q.Store.Settle(context.WithoutCancel(ctx), *s)
		if err == nil && len(errs) == 1 {
			err = errs[0]
		} else if err == nil {
			err = fmt.Errorf("queue: the store settled %d of 1", len(errs))
		}
		if len(s.Emit) == 0 || !errors.Is(err, ErrBadMessage) {
			return err
		}
		q.counters.storeErrors.Add(1)
		q.counters.unreported.Add(1)
		q.logger().ErrorContext(ctx, "a notification is dropped, the store refuses it", "id", s.Emit[0].Message.Envelope.ID, "err", err)
		s.Emit, n.dropped = nil, true
	}
}

// taken counts the recipients that were delivered.
func taken(verdicts []verdict) (n int) {
	for _, v := range verdicts {
		if v.result.State == Delivered {
			n++
		}
	}
	return n
}

// tell counts, logs and passes on the results, after they were settled.
func (q *Queue) tell(ctx context.Context, d *delivery, verdicts []verdict, n *note, delay, took time.Duration) {
	if n != nil && !n.dropped {
		q.counters.reports.Add(1)
		if f := q.trace().Reported; f != nil {
			f(ctx, ReportedInfo{Message: d.lease.Envelope.ID, Envelope: n.env, Size: int64(len(n.content))})
		}
	}
	for i := range verdicts {
		v := &verdicts[i]
		if v.skipped {
			continue
		}
		var event mailspine.Event
		var hook func(context.Context, ResultInfo)
		wait := time.Duration(0)
		switch v.result.State {
		case Delivered:
			q.counters.delivered.Add(1)
			event, hook = mailspine.EventDelivered, q.trace().Delivered
		case Failed:
			q.counters.failed.Add(1)
			if v.expired {
				q.counters.expired.Add(1)
			}
			if q.reader(d.lease.Envelope).IsZero() {
				q.counters.unreported.Add(1)
			}
			event, hook = mailspine.EventFailed, q.trace().Failed
		default:
			q.counters.deferred.Add(1)
			wait = delay
			event, hook = mailspine.EventDeferred, q.trace().Deferred
		}
		q.log(ctx, d, i, v, event, wait, took)
		if q.Outcomes != nil {
			q.Outcomes.Record(ctx, d.outcome(i, v, event))
		}
		if hook != nil {
			hook(ctx, ResultInfo{
				AttemptInfo: d.info(), Index: i, Recipient: d.lease.Envelope.Recipients[i], Result: v.result,
				Cause: v.cause, Expired: v.expired, Delay: wait, Duration: took,
			})
		}
	}
}

// outcome makes an Outcome of what was settled for a recipient.
func (d *delivery) outcome(i int, v *verdict, event mailspine.Event) mailspine.Outcome {
	env := d.lease.Envelope
	return mailspine.Outcome{
		Time: d.q.now(), Event: event, ID: env.ID, From: env.From, Recipient: env.Recipients[i].Address,
		Tenant: env.Tenant, Stream: env.Stream, Pool: env.Pool,
		Attempt: d.attempt(),
		// Attempts are counted for an item: this recipient may have been left out of the first ones.
		First:  !d.ended && d.lease.Recipients[i].Last.Status == nil,
		Status: v.result.Status, Cause: v.cause, Receipt: v.result.Receipt,
	}
}

// log writes the line of a result. Nothing is made for a level that is off.
func (q *Queue) log(ctx context.Context, d *delivery, i int, v *verdict, event mailspine.Event, wait, took time.Duration) {
	log := q.logger()
	if !log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	env := d.lease.Envelope
	attrs := [...]slog.Attr{
		slog.String("id", string(env.ID)), slog.String("to", env.Recipients[i].Address.String()),
		slog.Int("attempt", d.attempt()), slog.String("mta", v.result.Receipt.RemoteMTA), slog.Duration("took", took),
		{}, {}, // perhaps
	}
	n := 5
	if v.result.Status != nil {
		attrs[n] = slog.String("status", v.result.Status.Error())
		n++
	}
	if wait > 0 {
		attrs[n] = slog.Duration("delay", wait)
		n++
	}
	log.LogAttrs(ctx, slog.LevelInfo, string(event), attrs[:n]...)
}
