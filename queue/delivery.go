package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/mailspine/mailspine"
)

// handle takes one item from lease to settlement.
func (q *Queue) handle(work context.Context, d *delivery) {
	settled := false
	defer q.stop(d)
	defer func() {
		// What plugged-in parts do must not take the process down, nor lose
		// the item: it goes back to the store. Next has its own recover.
		if r := recover(); r != nil {
			q.panicked(work, d, "queue", r)
		}
		if !settled {
			q.abandon(work, d, holdUnknown, "internal error")
		}
	}()
	ctx, cancel := context.WithCancelCause(work)
	defer cancel(nil)
	d.mu.Lock()
	d.cancel = cancel
	d.mu.Unlock()

	if f := q.trace().Leased; f != nil {
		f(ctx, d.info())
	}
	env := d.lease.Envelope
	if t := env.HoldUntil; !t.IsZero() {
		// A delay in a store is bounded, and its clock is not ours.
		if wait := t.Sub(q.now()); wait > 0 {
			settled = q.giveBack(work, d, max(wait, minWait), "held by its sender", false)
			return
		}
	}
	if q.Gate != nil {
		hold, err := q.ready(ctx, d)
		if err != nil {
			if errors.Is(context.Cause(ctx), errShutdown) {
				settled = q.giveBack(work, d, 0, "interrupted by a shutdown", true)
				return
			}
			q.logger().ErrorContext(ctx, "asking the gate failed", "route", d.lease.Route, "err", err)
			hold = Hold{Reason: "the gate failed: " + line(err.Error(), maxText)}
		}
		if !hold.IsZero() {
			until := hold.Until
			if until.IsZero() {
				until = q.now().Add(holdUnknown)
			}
			if wait := until.Sub(q.now()); wait > 0 {
				q.hold(d.lease.Route, until)
				settled = q.giveBack(work, d, wait, hold.String(), true)
				return
			}
		}
	}

	// The Router is asked again. Recipients that have no way are not given to
	// Next. Those that would go another way by now go along: an item is not
	// split once it is stored.
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	var index []int
	for i, rcpt := range env.Recipients {
		if _, err := q.routeNow(ctx, d, env, rcpt); err != nil {
			errs[i] = err
		} else {
			index = append(index, i)
		}
	}

	begun := time.Now()
	if len(index) > 0 {
		actx := mailspine.WithAttempt(ctx, d)
		part := env
		if len(index) < len(env.Recipients) {
			part = env.Subset(index)
			actx = mailspine.WithSubset(actx, index)
		}
		msg := storedContent{store: q.Store, id: env.ID, size: d.lease.Size}
		err := q.next(actx, d, part, msg)
		for j, e := range mailspine.ErrorsFor(err, len(index)) {
			errs[index[j]] = e
		}
	}
	took := time.Since(begun)
	receipts := d.finish()
	if d.isLost() {
		taken := 0
		for _, err := range errs {
			if err == nil {
				taken++
			}
		}
		q.lostLease(work, d, taken)
		settled = true
		return
	}
	for i, err := range errs {
		// Interrupted by ourselves: as good as not tried. A lost answer to the
		// final dot may be among these: taking twice is better than losing.
		if err != nil && errors.Is(context.Cause(ctx), errShutdown) && mailspine.Status(err).Temporary() {
			errs[i] = &mailspine.NotNow{Until: q.now(), Reason: "interrupted by a shutdown"}
		}
	}
	settled = q.conclude(work, d, errs, receipts, took)
}

// ready asks the Gate. A panic is a failure of it.
func (q *Queue) ready(ctx context.Context, d *delivery) (hold Hold, err error) {
	defer func() {
		if r := recover(); r != nil {
			q.panicked(ctx, d, "Gate", r)
			hold, err = Hold{}, fmt.Errorf("queue: Gate panicked: %v", r)
		}
	}()
	return q.Gate.Ready(ctx, d.lease.Route)
}

// routeNow asks the Router during a delivery. A panic is a temporary failure: it
// must not undo what was delivered.
func (q *Queue) routeNow(ctx context.Context, d *delivery, env *mailspine.Envelope, rcpt mailspine.Recipient) (route Route, err error) {
	defer func() {
		if r := recover(); r != nil {
			q.panicked(ctx, d, "Router", r)
			route, err = "", fmt.Errorf("queue: Router panicked: %v", r)
		}
	}()
	return q.route(ctx, env, rcpt)
}

// next calls Next. A panic is a temporary failure.
func (q *Queue) next(ctx context.Context, d *delivery, env *mailspine.Envelope, msg mailspine.Content) (err error) {
	// A Deliverer that ends its goroutine has not taken the message.
	err = errors.New("queue: Next did not return")
	defer func() {
		if r := recover(); r != nil {
			q.panicked(ctx, d, "Next", r)
			err = fmt.Errorf("queue: Next panicked: %v", r)
		}
	}()
	return q.Next.Deliver(ctx, env, msg)
}

func (q *Queue) panicked(ctx context.Context, d *delivery, who string, r any) {
	q.counters.panics.Add(1)
	q.logger().ErrorContext(ctx, "panic", "in", who, "id", d.lease.Envelope.ID, "route", d.lease.Route,
		"panic", fmt.Sprint(r), "stack", string(debug.Stack()))
}

// lostLease tells that the result of a delivery could not be recorded.
func (q *Queue) lostLease(ctx context.Context, d *delivery, taken int) {
	q.counters.lost.Add(1)
	q.logger().ErrorContext(ctx, "the result of a delivery is not recorded: it may be delivered again", "id", d.lease.Envelope.ID,
		"route", d.lease.Route, "recipients", len(d.lease.Envelope.Recipients), "taken", taken)
	if f := q.trace().Lost; f != nil {
		f(ctx, d.info())
	}
}

// clock tells for how long the message could have been delivered, and
// whether its sender's own limit (RFC 2852) is over and how far away it is.
func (q *Queue) clock(l Lease) (age, deliverBy time.Duration, limited bool) {
	age = l.Age
	now := q.now()
	if h := l.Envelope.HoldUntil; !h.IsZero() {
		age = max(0, min(age, now.Sub(h)))
	}
	if t := l.Envelope.DeliverBy.Time; !t.IsZero() {
		return age, t.Sub(now), true
	}
	return age, 0, false
}

// retry asks the policy.
func (q *Queue) retry(ctx context.Context, d *delivery, attempts int) (delay time.Duration, ok bool) {
	age, by, limited := q.clock(d.lease)
	if limited && d.lease.Envelope.DeliverBy.Return && by <= 0 {
		return 0, false
	}
	delay, ok = q.policy(ctx, d, attempts, age)
	if limited && by > 0 {
		delay = min(delay, by)
	}
	if delay <= 0 {
		delay = minWait
	}
	return min(delay, maxDelay), ok
}

func (q *Queue) policy(ctx context.Context, d *delivery, attempts int, age time.Duration) (delay time.Duration, ok bool) {
	if q.Retry == nil {
		return DefaultRetry{}.Next(attempts, age, q.random())
	}
	defer func() {
		// A policy that panics must not undo what was delivered.
		if r := recover(); r != nil {
			q.panicked(ctx, d, "Retry", r)
			delay, ok = DefaultRetry{}.Next(attempts, age, 0.5)
		}
	}()
	return q.Retry.Next(attempts, age, q.random())
}

// giveBack ends a lease without an attempt, or as expired if there is no more time
// to try. It reports whether the lease has been dealt with.
func (q *Queue) giveBack(ctx context.Context, d *delivery, wait time.Duration, reason string, gate bool) bool {
	if _, ok := q.retry(ctx, d, d.lease.Attempts); !ok {
		errs := make(mailspine.RecipientErrors, len(d.lease.Envelope.Recipients))
		for i := range errs {
			errs[i] = &mailspine.NotNow{Reason: reason}
		}
		return q.conclude(ctx, d, errs, d.finish(), 0)
	}
	wait = min(max(wait, 0), maxDelay)
	if !q.abandon(ctx, d, wait, reason) {
		return false
	}
	q.counters.held.Add(1)
	q.logger().InfoContext(ctx, "not now", "id", d.lease.Envelope.ID, "route", d.lease.Route, "reason", reason, "delay", wait)
	if f := q.trace().Held; f != nil {
		f(ctx, HeldInfo{AttemptInfo: d.info(), Reason: reason, Delay: wait, Gate: gate})
	}
	return true
}

// abandon gives a lease back. If the store fails, the lease ends by itself.
func (q *Queue) abandon(ctx context.Context, d *delivery, delay time.Duration, reason string) bool {
	if err := q.Store.Abandon(context.WithoutCancel(ctx), delay, reason, d.lease.Token); err != nil {
		q.counters.storeErrors.Add(1)
		q.logger().ErrorContext(ctx, "giving an item back failed", "id", d.lease.Envelope.ID, "err", err)
		return false
	}
	return true
}

// notNow returns the NotNow of an error, unless an *Error decides.
func notNow(err error) *mailspine.NotNow {
	var refusal *mailspine.Error
	var nn *mailspine.NotNow
	if errors.As(err, &refusal) || !errors.As(err, &nn) {
		return nil
	}
	return nn
}
