package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/mailspine/mailspine"
)

// Limited is a Deliverer that asks a Limiter before each delivery, and passes on what is granted: messages of a login,
// copies to a site, connections from an address.
//
//	next := &queue.Limited{Next: relay, Limiter: limiter, Limits: func(env *mailspine.Envelope) []queue.Limit {
//		return []queue.Limit{
//			{Kind: queue.Slots, Key: "tenant/" + env.Tenant, Max: 20},                 // connections
//			{Kind: queue.Quota, Key: "tenant/" + env.Tenant, Max: 5000, Per: queue.Day}, // recipients
//		}
//	}}
//
// The recipients of the envelope are the N of the request. A delivery that has no room gets *mailspine.NotNow, which
// says until when and by which limit: nothing was attempted, and a queue asks again then. One that would never have room is
// refused with 452 4.5.3, so that a client sends fewer recipients at a time.
// When Deliver ends, slots are given back, and so are the recipients that do not count.
//
// A Limiter that fails closes the way: NotNow for a minute. Slots are renewed while Next works; if one is lost meanwhile, since the
// Limiter could not be told, the context of Next is done, with ErrPermitLost as its cause.
type Limited struct {
	// Next gets what is granted. Required: without it nothing is delivered, and the error is ErrNoNext.
	Next mailspine.Deliverer
	// Limiter counts. nil: ErrNoLimiter.
	Limiter Limiter
	// Limits says what a delivery counts against; none: nothing. It must not modify env nor keep it, and must be safe for concurrent use. nil: ErrNoLimiter.
	Limits func(env *mailspine.Envelope) []Limit
	// Partial passes on as many recipients as there is room for, the first ones, and NotNow for the others. That is for what
	// stands behind a Queue. false: all or none.
	Partial bool
	// Counts says whether a recipient with this result counts, nil being a success; nil: all count but those with NotNow. For a
	// submission service, where what is not accepted is nobody's mail: func(err error) bool { return err == nil }.
	Counts func(err error) bool
	// TTL is for how long the slots of a process that died are kept; 0: DefaultPermitTTL.
	TTL time.Duration

	Logger *slog.Logger     // nil: slog.Default
	Now    func() time.Time // for NotNow.Until; nil: time.Now
}

var _ mailspine.Deliverer = (*Limited)(nil)

// The errors of [Limited].
var (
	ErrNoLimiter  = errors.New("queue: Limited.Limiter or Limited.Limits is nil")
	ErrPermitLost = errors.New("queue: the permit of the limiter is lost")
)

// unrenewedTTL is for how long a permit without slots lasts at least.
const unrenewedTTL = time.Hour

// limiterDown is for how long a Limiter that failed closes a way.
const limiterDown = time.Minute

// Unwrap returns Next.
func (d *Limited) Unwrap() mailspine.Deliverer { return d.Next }

func (d *Limited) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

func (d *Limited) logger() *slog.Logger {
	if d.Logger != nil {
		return d.Logger
	}
	return slog.Default()
}

// Deliver implements mailspine.Deliverer.
func (d *Limited) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if d.Next == nil {
		return ErrNoNext
	}
	if d.Limiter == nil || d.Limits == nil {
		return ErrNoLimiter
	}
	limits := d.Limits(env)
	if len(limits) == 0 {
		return d.Next.Deliver(ctx, env, msg)
	}
	all := len(env.Recipients)
	req := TakeRequest{Limits: limits, N: int64(all), TTL: min(max(d.TTL, 0), MaxPermitTTL)}
	if d.Partial {
		req.Min = 1
	}
	slots := slices.ContainsFunc(limits, func(l Limit) bool { return l.Kind == Slots })
	if !slots {
		// Nobody else waits for what a dead process holds, and a permit that is not renewed should last as long as the delivery.
		req.TTL = max(req.TTL, unrenewedTTL)
	}
	permit, err := d.Limiter.Take(ctx, req)
	if err != nil {
		return d.refuse(ctx, env, err)
	}
	n := min(int(permit.N), all)
	unused := permit.N
	defer func() {
		// Also after a panic of Next, and when ctx is done: what was taken is not kept.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := d.Limiter.Return(ctx, permit.ID, unused); err != nil {
			d.logger().WarnContext(ctx, "giving back to the limiter failed: it counts as used", "id", env.ID, "err", err)
		}
	}()
	if slots {
		var done func()
		ctx, done = d.hold(ctx, permit)
		defer done()
	}
	unused = 0 // should Next not return
	if n == all {
		err = d.Next.Deliver(ctx, env, msg)
		unused = d.unused(err, all)
		return err
	}
	index := make([]int, n)
	for i := range index {
		index[i] = i
	}
	err = d.Next.Deliver(mailspine.WithSubset(ctx, index), env.Subset(index), msg)
	unused = d.unused(err, n)
	errs := make(mailspine.RecipientErrors, all)
	copy(errs, mailspine.ErrorsFor(err, n))
	for i := n; i < all; i++ {
		errs[i] = &mailspine.NotNow{Reason: fmt.Sprintf("the limits have room for %d of %d recipients", n, all), Rule: "limits"}
	}
	return errs
}

// unused counts the recipients that do not count.
func (d *Limited) unused(err error, n int) (unused int64) {
	for i := range n {
		e := mailspine.ErrorAt(err, i)
		counts := notNow(e) == nil
		if d.Counts != nil {
			counts = d.Counts(e)
		}
		if !counts {
			unused++
		}
	}
	return unused
}

// refuse says what a Take's error means to whoever delivers.
func (d *Limited) refuse(ctx context.Context, env *mailspine.Envelope, err error) error {
	var over *OverLimit
	switch {
	case errors.As(err, &over) && over.Never:
		return mailspine.Errorf(452, "4.5.3", "Too many recipients for the limits that hold here").WithCause(err)
	case over != nil:
		return over.NotNow(d.now())
	case ctx.Err() != nil:
		return err
	}
	d.logger().ErrorContext(ctx, "the limiter failed: nothing is passed on", "id", env.ID, "err", err)
	return &mailspine.NotNow{Until: d.now().Add(limiterDown), Reason: "the limiter failed", Rule: "limiter"}
}

// hold renews a permit until done is called, and ends the context when it is lost.
func (d *Limited) hold(ctx context.Context, p Permit) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	ends := time.Now().Add(p.TTL)
	go func() { // done waits for it
		defer close(ended)
		tick := time.NewTicker(max(p.TTL/4, time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			asked := time.Now()
			rctx, stop := context.WithTimeout(ctx, p.TTL/4)
			lost, err := d.Limiter.Renew(rctx, p.TTL, p.ID)
			stop()
			switch {
			case err == nil && len(lost) == 0:
				ends = asked.Add(p.TTL)
			case ctx.Err() != nil:
				return
			case err == nil || !time.Now().Before(ends):
				d.logger().ErrorContext(ctx, "a permit of the limiter is lost, and its delivery ended", "err", err)
				cancel(ErrPermitLost)
				return
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}

// A LimitGate is the Gate in front of [Limited]: it holds the routes whose limits have no room, so that a Queue does not
// lease what it would have to give back. It takes nothing, since a Gate is not told when a delivery ends.
//
// A LimitGate without a Limiter or Limits holds every route, as one whose Limiter fails does.
type LimitGate struct {
	Limiter Limiter
	// Limits says what deliveries on a route count against; none: nothing. It must be safe for concurrent use.
	Limits func(r Route) []Limit
	Now    func() time.Time // nil: time.Now
}

var _ Gate = (*LimitGate)(nil)

// Ready implements Gate.
func (g *LimitGate) Ready(ctx context.Context, r Route) (Hold, error) {
	if g.Limiter == nil || g.Limits == nil {
		return Hold{}, errors.New("queue: LimitGate.Limiter or LimitGate.Limits is nil")
	}
	limits := g.Limits(r)
	if len(limits) == 0 {
		return Hold{}, nil
	}
	usage, err := g.Limiter.Usage(ctx, limits...)
	if err != nil {
		return Hold{}, err
	}
	now := time.Now()
	if g.Now != nil {
		now = g.Now()
	}
	var hold Hold
	for _, u := range usage {
		need := max(u.Limit.N, 1)
		if u.Room >= need {
			continue
		}
		over := &OverLimit{Limit: u.Limit, Need: need, Room: u.Room, Wait: u.Wait, Never: u.Never}
		h := over.Hold(now)
		if h.Until.IsZero() {
			// Only another policy helps. A Queue asks again in a minute.
			return h, nil
		}
		if h.Until.After(hold.Until) {
			hold = h
		}
	}
	return hold, nil
}
