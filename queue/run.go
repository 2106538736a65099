package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// holdUnknown is for how long a Hold without an end, or a Gate that failed, holds.
	holdUnknown = time.Minute
	// minWait is what a wait of zero or less becomes: nothing is tried again at
	// once, over and over.
	minWait = time.Second
	// maxDelay bounds every delay that is given to a store.
	maxDelay = 365 * 24 * time.Hour
)

// Run delivers what is due until ctx is done, and then returns nil. It has one
// goroutine for each item that is being delivered, at most Concurrency, and one
// that renews leases; all have ended when it returns. A store that fails is
// asked again, less and less often; one that was closed ends Run with
// ErrClosed.
//
// When ctx is done, nothing new is begun. Deliveries that are running may go on
// for Grace; then their context is done, and what they leave unfinished is given back,
// due at once and with no attempt counted. A Deliverer that does not heed its context keeps Run from
// returning.
//
// A result that cannot be settled because the store fails is kept, its lease
// renewed, and tried again until it is: in one process nothing is delivered a
// second time because of that, unless the store cannot renew leases either until this
// one has ended. Meanwhile it takes up one of the Concurrency places.
func (q *Queue) Run(ctx context.Context) error {
	if q.Store == nil {
		return ErrNoStore
	}
	if q.Next == nil {
		return ErrNoNext
	}
	q.mu.Lock()
	if q.active {
		q.mu.Unlock()
		return ErrRunning
	}
	q.active = true
	q.places = newPlaces(max(1, orDefault(q.Concurrency, DefaultConcurrency)), max(1, orDefault(q.PerRoute, DefaultPerRoute)))
	q.wake = make(chan struct{}, 1)
	q.mu.Unlock()

	// work outlives ctx by Grace.
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	var deliveries, renewer sync.WaitGroup
	renewed := make(chan struct{})
	renewer.Go(func() { q.renew(work, renewed) })

	err := q.loop(ctx, work, &deliveries)

	grace := orDefault(q.Grace, DefaultGrace)
	if grace > 0 {
		t := time.AfterFunc(grace, func() { stop(errShutdown) })
		deliveries.Wait()
		t.Stop()
	}
	stop(errShutdown)
	deliveries.Wait()
	close(renewed)
	renewer.Wait()
	q.mu.Lock()
	q.active = false
	q.mu.Unlock()
	return err
}

// errShutdown is the cause of a delivery's context when Grace is over.
var errShutdown = errors.New("queue: shutting down")

// loop leases and starts deliveries until ctx is done.
func (q *Queue) loop(ctx, work context.Context, deliveries *sync.WaitGroup) error {
	failures, idle := 0, 0
	for ctx.Err() == nil {
		q.mu.Lock()
		room, exclude, next := q.places.room(q.now())
		q.tight = len(q.places.full) > 0
		q.mu.Unlock()
		if room == 0 {
			q.pause(ctx, next)
			continue
		}
		asked := time.Now()
		leases, err := q.Store.Lease(ctx, LeaseRequest{Max: room, TTL: q.leaseTTL(), Exclude: exclude})
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			if errors.Is(err, ErrClosed) {
				return fmt.Errorf("queue: leasing: %w", err)
			}
			q.counters.storeErrors.Add(1)
			q.logger().ErrorContext(ctx, "leasing failed", "err", err)
			q.pause(ctx, backoff(&failures))
			continue
		}
		failures = 0
		for _, l := range leases {
			d := q.start(l, asked)
			deliveries.Go(func() { q.handle(work, d) })
		}
		if len(leases) < room {
			q.mu.Lock()
			q.places.looked(q.now())
			q.mu.Unlock()
		}
		if len(leases) > 0 {
			idle = 0
			continue
		}
		if q.rest(ctx, exclude, next) {
			idle = 0
		} else if idle++; idle > 3 {
			// A Waiter that promises work which is not there must not make us spin.
			q.pause(ctx, min(time.Second, time.Millisecond<<min(idle, 10)))
		}
	}
	return nil
}

// backoff counts a failure and returns for how long to wait: from 100 ms to half a minute.
func backoff(failures *int) time.Duration {
	d := min(100*time.Millisecond<<min(*failures, 10), 30*time.Second)
	*failures++
	return d
}

func (q *Queue) leaseTTL() time.Duration { return orDefault(max(q.LeaseTTL, 0), DefaultLeaseTTL) }

// pause waits until ctx is done, something changed, or d is over; 0: no limit.
func (q *Queue) pause(ctx context.Context, d time.Duration) {
	var timer <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
	case <-q.wake:
	case <-timer:
	}
}

// rest waits until there may be work. It reports whether something other than
// the store's Waiter ended the rest, or there is none.
func (q *Queue) rest(ctx context.Context, exclude []Route, next time.Duration) bool {
	w, ok := q.Store.(Waiter)
	if !ok {
		poll := orDefault(max(q.Poll, 0), DefaultPoll)
		if next > 0 {
			poll = min(poll, next)
		}
		q.pause(ctx, poll)
		return true
	}
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if next > 0 {
		wctx, cancel = context.WithTimeout(wctx, next)
		defer cancel()
	}
	q.mu.Lock()
	q.rouse = cancel
	q.mu.Unlock()
	select {
	case <-q.wake:
		cancel()
	default:
	}
	err := w.Wait(wctx, exclude)
	q.mu.Lock()
	q.rouse = nil
	q.mu.Unlock()
	ended := wctx.Err() != nil
	if err != nil && !ended && ctx.Err() == nil && !errors.Is(err, ErrClosed) {
		q.counters.storeErrors.Add(1)
		q.logger().ErrorContext(ctx, "waiting failed", "err", err)
	}
	return ended
}

// nudge makes the loop look again. q.mu is held.
func (q *Queue) nudge() {
	select {
	case q.wake <- struct{}{}: // never without Run: wake is nil then
	default:
	}
	if q.rouse != nil {
		q.rouse()
	}
}

// hold keeps a route from being leased. It reports whether the route was not held before.
func (q *Queue) hold(r Route, until time.Time) (news bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	news = !now.Before(q.places.holds[r].end)
	q.places.hold(r, now, until)
	return news
}

// pass notes that the Gate let an item of a route through.
func (q *Queue) pass(r Route) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.places.pass(r, q.now())
}

// start registers a delivery, of an item that was asked for at a time.
func (q *Queue) start(l Lease, asked time.Time) *delivery {
	d := newDelivery(q, l, asked.Add(q.leaseTTL()))
	q.mu.Lock()
	q.places.start(d)
	q.mu.Unlock()
	return d
}

// stop forgets a delivery. A loop that is waiting for work has no use for its place, unless a
// route had none left.
func (q *Queue) stop(d *delivery) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.places.stop(d)
	if q.rouse == nil || q.tight {
		q.nudge()
	}
}

// renew keeps the leases of what is running, until done is closed.
func (q *Queue) renew(ctx context.Context, done <-chan struct{}) {
	ttl := q.leaseTTL()
	tick := time.NewTicker(max(ttl/6, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		q.mu.Lock()
		all := make([]*delivery, 0, len(q.places.running))
		for d := range q.places.running {
			all = append(all, d)
		}
		q.mu.Unlock()
		for _, d := range all {
			if err := d.extend(context.WithoutCancel(ctx), ttl, ttl*2/3); err != nil && !errors.Is(err, ErrLeaseLost) {
				q.counters.storeErrors.Add(1)
				q.logger().ErrorContext(ctx, "renewing a lease failed", "id", d.lease.Envelope.ID, "err", err)
			}
		}
	}
}
