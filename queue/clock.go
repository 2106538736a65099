package queue

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/mailspine/mailspine"
)

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

// ageIn is the age, as clock has it, that an item will have after a wait.
func (q *Queue) ageIn(l Lease, wait time.Duration) time.Duration {
	age := l.Age + wait
	if h := l.Envelope.HoldUntil; !h.IsZero() {
		age = min(age, q.now().Add(wait).Sub(h))
	}
	return max(0, age)
}

// bound shortens the wait of an item that is given back: it is looked at again when
// there is no more time to try, when its sender's own limit is over, and when
// its sender is to be told of the delay.
func (q *Queue) bound(d *delivery, wait time.Duration) time.Duration {
	wait = min(max(wait, minWait), maxDelay)
	if _, by, limited := q.clock(d.lease); limited && by > 0 {
		wait = min(wait, by)
	}
	if after := orDefault(q.WarnAfter, DefaultWarnAfter); after >= 0 && q.warnable(d) {
		left := after - d.lease.Age
		if h := d.lease.Envelope.HoldUntil; !h.IsZero() {
			left = max(left, after-q.now().Sub(h))
		}
		if left > 0 {
			wait = min(wait, left)
		}
	}
	if q.gaveUp(d, wait) {
		wait = q.endOf(d, wait)
	}
	return max(wait, time.Millisecond)
}

// endOf finds the wait after which the policy will have given up, which is not longer than one that is known. A policy is a
// pure function of the age, so that it can be found: in 35 steps for the longest wait.
func (q *Queue) endOf(d *delivery, wait time.Duration) time.Duration {
	low := time.Duration(0)
	for wait-low > time.Millisecond {
		if mid := low + (wait-low)/2; q.gaveUp(d, mid) {
			wait = mid
		} else {
			low = mid
		}
	}
	return wait
}

// giveUp is when there is no more time to try, where that is known.
func (q *Queue) giveUp(now time.Time, d *delivery) time.Time {
	var t time.Time
	age, by, limited := q.clock(d.lease)
	p, usual := q.Retry.(DefaultRetry)
	switch {
	case usual || q.Retry == nil:
		t = now.Add(p.lifetime() - age)
	case !q.gaveUp(d, 0) && q.gaveUp(d, maxDelay):
		t = now.Add(q.endOf(d, maxDelay))
	}
	if limited && d.lease.Envelope.DeliverBy.Return {
		if u := now.Add(by); t.IsZero() || u.Before(t) {
			t = u
		}
	}
	return t
}

// gaveUp reports whether the policy will have given up after a wait.
func (q *Queue) gaveUp(d *delivery, wait time.Duration) (up bool) {
	age := q.ageIn(d.lease, wait)
	var p RetryPolicy = DefaultRetry{}
	if q.Retry != nil {
		p = q.Retry
		defer func() {
			if recover() != nil { // it has been told of already
				_, ok := DefaultRetry{}.Next(d.lease.Attempts, age, 0.5)
				up = !ok
			}
		}()
	}
	_, ok := p.Next(d.lease.Attempts, age, 0.5)
	return !ok
}

// giveBack ends a lease without an attempt, or as expired if there is no more time
// to try. The item is due again after the wait, or when something is to be told of
// it before. It reports whether the lease has been dealt with.
func (q *Queue) giveBack(ctx context.Context, d *delivery, wait time.Duration, reason string, gate bool) bool {
	env := d.lease.Envelope
	if errors.Is(context.Cause(ctx), errShutdown) {
		wait = 0 // somebody else may go on at once
	} else {
		if _, ok := q.retry(ctx, d, d.lease.Attempts); !ok {
			errs := make(mailspine.RecipientErrors, len(env.Recipients))
			for i := range errs {
				errs[i] = &mailspine.NotNow{Reason: reason}
			}
			return q.conclude(ctx, d, errs, d.finish(), 0)
		}
		verdicts := make([]verdict, len(env.Recipients))
		for i := range verdicts {
			verdicts[i] = skipped(d.lease.Recipients[i])
		}
		wait = q.bound(d, wait)
		if q.warn(d, verdicts) {
			// The store remembers that it was told, and counts an attempt for that.
			if q.settle(ctx, d, verdicts, wait, 0) {
				q.explain(ctx, d, wait, reason)
				q.tellHeld(ctx, d, wait, reason, gate)
			}
			return true
		}
	}
	if !q.abandon(ctx, d, wait, reason) {
		return false
	}
	q.tellHeld(ctx, d, wait, reason, gate)
	return true
}

// explain keeps the reason of an item that was settled, for who asks why it waits: a Settlement has none.
// What fails here is not missed: the next time that the item is given back it has its reason.
func (q *Queue) explain(ctx context.Context, d *delivery, wait time.Duration, reason string) {
	c, ok := q.Store.(Controller)
	if !ok {
		return
	}
	leases, err := c.Take(ctx, Filter{Item: d.lease.Token.Item}, 1, operatorTTL)
	for _, l := range leases {
		err = errors.Join(err, q.Store.Abandon(context.WithoutCancel(ctx), wait, reason, l.Token))
	}
	if err != nil {
		q.counters.storeErrors.Add(1)
		q.logger().ErrorContext(ctx, "noting why an item waits failed", "id", d.lease.Envelope.ID, "err", err)
	}
}

func (q *Queue) tellHeld(ctx context.Context, d *delivery, wait time.Duration, reason string, gate bool) {
	q.counters.held.Add(1)
	if log := q.logger(); log.Enabled(ctx, slog.LevelInfo) {
		log.LogAttrs(ctx, slog.LevelInfo, "not now", slog.String("id", string(d.lease.Envelope.ID)),
			slog.String("route", string(d.lease.Route)), slog.String("reason", reason), slog.Duration("delay", wait))
	}
	if f := q.trace().Held; f != nil {
		f(ctx, HeldInfo{AttemptInfo: d.info(), Reason: reason, Delay: wait, Gate: gate})
	}
}
