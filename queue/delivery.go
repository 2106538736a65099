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
			settled = q.giveBack(work, d, wait, "held by its sender", false)
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
			hold = Hold{Reason: "the gate failed: " + line(err.Error(), maxText)}
		}
		if hold.IsZero() {
			q.pass(d.lease.Route)
		} else {
			until := hold.Until
			if until.IsZero() {
				until = q.now().Add(holdUnknown)
			}
			if wait := until.Sub(q.now()); wait > 0 {
				// The items of a route that is held are asked for one by one: that is one failure.
				if news := q.hold(d.lease.Route, until); news && err != nil {
					q.logger().ErrorContext(ctx, "asking the gate failed", "route", d.lease.Route, "err", err)
				}
				settled = q.giveBack(work, d, wait, hold.String(), true)
				return
			}
		}
	}

	errs, index := q.ways(ctx, d)
	begun := time.Now()
	if n := len(env.Recipients); index == nil || len(index) > 0 {
		actx := mailspine.WithAttempt(ctx, d)
		part := env
		if index != nil {
			part, n = env.Subset(index), len(index)
			actx = mailspine.WithSubset(actx, index)
		}
		got := mailspine.ErrorsFor(q.next(actx, d, part, storedContent{store: q.Store, id: env.ID, size: d.lease.Size}), n)
		if index == nil {
			errs = got
		}
		for j, i := range index {
			errs[i] = got[j]
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

// ways asks the Router again. Recipients that have no way get its error, and are not given to
// Next: index has the others, and is nil if it is all of them. Those that would go another way by now
// go along: an item is not split once it is stored.
func (q *Queue) ways(ctx context.Context, d *delivery) (errs mailspine.RecipientErrors, index []int) {
	if q.Router == nil {
		return nil, nil // by domain there is always one
	}
	env := d.lease.Envelope
	for i, rcpt := range env.Recipients {
		_, err := q.routeNow(ctx, d, env, rcpt)
		if err != nil && errs == nil {
			errs = make(mailspine.RecipientErrors, len(env.Recipients))
			index = make([]int, 0, len(env.Recipients))
			for j := range i {
				index = append(index, j)
			}
		}
		switch {
		case err != nil:
			errs[i] = err
		case errs != nil:
			index = append(index, i)
		}
	}
	return errs, index
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
