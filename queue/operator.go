package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
)

// ErrNotRunning is the error of Queue.Health where Run is not running.
var ErrNotRunning = errors.New("queue: Run is not running: nothing is delivered")

const (
	// operatorWorkers is how many items are changed one by one at the same time: stores sync
	// together what comes together.
	operatorWorkers = 16
	// operatorTTL is how long the lease of an item lasts that is ended at once.
	operatorTTL = time.Minute
)

// need returns the optional interface of the Store that an operation needs.
func need[T any](q *Queue, name string) (t T, err error) {
	if q.Store == nil {
		return t, ErrNoStore
	}
	t, ok := q.Store.(T)
	if !ok {
		return t, fmt.Errorf("queue: the store, a %T, is no %s: %w", q.Store, name, errors.ErrUnsupported)
	}
	return t, nil
}

// fails yields an error.
func fails[T any](err error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		yield(none, err)
	}
}

// List yields the items of the Store that match (see Inspector.List). A Store that is no Inspector
// makes it yield an error that matches errors.ErrUnsupported; the same is true of
// the methods that follow, each for the interface that it needs.
func (q *Queue) List(ctx context.Context, f Filter) iter.Seq2[Item, error] {
	s, err := need[Inspector](q, "Inspector")
	if err != nil {
		return fails[Item](err)
	}
	return s.List(ctx, f)
}

// StoreStats counts what is in the Store (see Inspector.Stats). What the Queue has done is told
// by Stats.
func (q *Queue) StoreStats(ctx context.Context) (Stats, error) {
	s, err := need[Inspector](q, "Inspector")
	if err != nil {
		return Stats{}, err
	}
	return s.Stats(ctx)
}

// Breakdown yields the counts of each route and tenant (see Inspector.Breakdown).
func (q *Queue) Breakdown(ctx context.Context) iter.Seq2[Group, error] {
	s, err := need[Inspector](q, "Inspector")
	if err != nil {
		return fails[Group](err)
	}
	return s.Breakdown(ctx)
}

// Health returns nil if the Store takes messages, as far as it tells (HealthChecker), and Run is
// running. Otherwise it says what is wrong; it matches ErrNotRunning if Run is not.
func (q *Queue) Health(ctx context.Context) error {
	if q.Store == nil {
		return ErrNoStore
	}
	var err error
	if h, ok := q.Store.(HealthChecker); ok {
		err = h.Health(ctx)
	}
	q.mu.Lock()
	active := q.active
	q.mu.Unlock()
	if !active {
		err = errors.Join(err, ErrNotRunning)
	}
	return err
}

// Control carries out a command on the items that match, as Controller.Control says, and makes the
// queue look at them at once. A flush or a release of items makes it ask the Gate again
// for their routes; the Gate's word still counts.
//
// A reroute without a Route asks the Router anew for each item, and needs an Inspector too. An
// item is not divided: it goes the way of the first of its recipients that has one. Items that the
// Router has no way for are left alone; the first such error is returned, when all others were done.
func (q *Queue) Control(ctx context.Context, f Filter, c Command) (Changed, error) {
	s, err := need[Controller](q, "Controller")
	if err != nil {
		return Changed{}, err
	}
	if err := errors.Join(f.Validate(), c.Validate()); err != nil {
		return Changed{}, err
	}
	var done Changed
	if c.Op == OpReroute && c.Route == "" {
		done, err = q.reroute(ctx, s, f)
	} else {
		done, err = s.Control(ctx, f, c)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch c.Op {
	case OpFlush, OpRelease:
		// Of a filter without a route it is not known which ones they are. To ask the Gate
		// once more does no harm.
		q.places.forget(f.Route)
	case OpReroute:
		q.places.forget(c.Route)
	}
	q.nudge()
	q.logCommand(ctx, c.Op.String(), done, err)
	return done, err
}

func (q *Queue) logCommand(ctx context.Context, op string, done Changed, err error) {
	args := []any{"op", op, "matched", done.Matched, "changed", done.Changed, "leased", done.Leased}
	if err != nil {
		args = append(args, "err", err)
	}
	q.logger().InfoContext(ctx, "command", args...)
}

// each does something with each item that matches, with several at the same
// time. It stops at an error, and returns what was done until then.
func (q *Queue) each(ctx context.Context, f Filter, do func(context.Context, Item) (Changed, error)) (Changed, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu     sync.Mutex
		done   Changed
		failed error
		work   = make(chan Item)
		wg     sync.WaitGroup
	)
	add := func(c Changed, err error) {
		mu.Lock()
		defer mu.Unlock()
		done.Matched += c.Matched
		done.Changed += c.Changed
		done.Leased += c.Leased
		if err != nil && failed == nil {
			failed = err
			cancel()
		}
	}
	for range operatorWorkers {
		wg.Go(func() {
			for it := range work {
				if ctx.Err() == nil {
					add(do(ctx, it))
				}
			}
		})
	}
	for it, err := range q.List(ctx, f) {
		if err != nil {
			add(Changed{}, err)
			break
		}
		if it.State == ItemLeased {
			add(Changed{Matched: 1, Leased: 1}, nil)
			continue
		}
		select {
		case work <- it:
		case <-ctx.Done():
		}
		if err := ctx.Err(); err != nil {
			add(Changed{}, err)
			break
		}
	}
	close(work)
	wg.Wait()
	return done, failed
}

// reroute asks the Router for each item.
func (q *Queue) reroute(ctx context.Context, s Controller, f Filter) (Changed, error) {
	var mu sync.Mutex
	var first error // of the Router
	done, err := q.each(ctx, f, func(ctx context.Context, it Item) (Changed, error) {
		to, err := q.wayOf(ctx, it.Envelope)
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = fmt.Errorf("queue: routing item %d of message %s: %w", it.ID, it.Message, err)
			}
		}
		if err != nil || to == it.Route {
			return Changed{Matched: 1}, nil
		}
		return s.Control(ctx, Filter{Item: it.ID}, Command{Op: OpReroute, Route: to})
	})
	if err == nil {
		err = first
	}
	return done, err
}

// wayOf returns the route of the first recipient that has one, or the first error.
func (q *Queue) wayOf(ctx context.Context, env *mailspine.Envelope) (r Route, err error) {
	defer func() {
		if p := recover(); p != nil {
			q.counters.panics.Add(1)
			r, err = "", fmt.Errorf("queue: Router panicked: %v", p)
		}
	}()
	for _, rcpt := range env.Recipients {
		r, rerr := q.route(ctx, env, rcpt)
		if rerr == nil {
			return r, nil
		}
		if err == nil {
			err = rerr
		}
	}
	return "", err
}

// Bounce gives up the items that match and are not being delivered, whatever they are waiting for, with a status for
// all of their recipients; nil: 554 5.3.0. One that is not permanent is ErrBadCommand.
// It is a failure as any other: senders are told according to
// what they asked for, the postmaster of those that have none, and so are Outcomes and Trace, with no
// attempt counted. Status.Message is told to them.
//
// The reports of this bounce are not touched, though they may match as well; other messages that are stored meanwhile may be missed. After an
// error, what Changed counts has been given up. Bounce needs an Inspector and a Controller, and
// works whether Run is running or not.
func (q *Queue) Bounce(ctx context.Context, f Filter, status *mailspine.Error) (Changed, error) {
	s, err := need[Controller](q, "Controller")
	if err != nil {
		return Changed{}, err
	}
	if status == nil {
		status = mailspine.Errorf(554, "5.3.0", "Given up by those who run this mail system")
	}
	if status.Temporary() {
		return Changed{}, fmt.Errorf("%w: a bounce needs a permanent status, not %s", ErrBadCommand, status.Reply())
	}
	if err := f.Validate(); err != nil {
		return Changed{}, err
	}
	st := *mailspine.Status(status)
	st.Message = line(st.Message, maxText)
	// The items are found by List and taken one by one: a Take of all that match, over and over, would never
	// end if the reports match as well.
	begun := q.now()
	done, err := q.each(ctx, f, func(ctx context.Context, it Item) (Changed, error) {
		if isReport(it.Envelope) && !it.Envelope.Origin.Time.Before(begun) {
			return Changed{}, nil // ours
		}
		f := f
		f.Item = it.ID
		leases, err := s.Take(ctx, f, 1, operatorTTL)
		if err != nil || len(leases) == 0 {
			return Changed{Matched: 1, Leased: 1}, err // it has been leased since
		}
		c := Changed{Matched: 1}
		if err := q.bounce(ctx, leases[0], &st); err != nil {
			return c, err
		}
		c.Changed = 1
		return c, nil
	})
	q.mu.Lock()
	q.nudge()
	q.mu.Unlock()
	q.logCommand(ctx, "bounce", done, err)
	return done, err
}

// bounce ends a lease with one status for all.
func (q *Queue) bounce(ctx context.Context, l Lease, st *mailspine.Error) (err error) {
	d := newDelivery(q, l, time.Now().Add(operatorTTL))
	d.ended = true
	verdicts := make([]verdict, len(l.Envelope.Recipients))
	for i := range verdicts {
		v := &verdicts[i]
		v.result = Result{State: Failed, Status: st, Warned: l.Recipients[i].Warned}
		v.cause = q.classify(ctx, d, st, mailspine.Receipt{})
	}
	set, note := q.settlement(ctx, d, verdicts, 0)
	if err := q.settleOnce(ctx, &set, note); err != nil {
		q.counters.storeErrors.Add(1)
		q.abandon(ctx, d, 0, "could not be bounced")
		return fmt.Errorf("queue: bouncing item %d of message %s: %w", l.Token.Item, l.Envelope.ID, err)
	}
	defer func() {
		if r := recover(); r != nil { // of Outcomes or Trace: it is done
			q.panicked(ctx, d, "Bounce", r)
		}
	}()
	q.tell(ctx, d, verdicts, note, 0, 0)
	return nil
}
