package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// maxHolds bounds the routes remembered as held, and so the Exclude of a
	// lease. A route beyond it is leased and given back again.
	maxHolds = 1000
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
	q.running = map[*delivery]struct{}{}
	q.perRoute = map[Route]int{}
	q.holds = map[Route]time.Time{}
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
		room, exclude, next := q.room()
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

// room returns how many items may be leased, which routes not, and when a hold
// ends next (0: there is none). The number is so small that no route can get more
// than its share.
func (q *Queue) room() (n int, exclude []Route, next time.Duration) {
	now := q.now()
	concurrency := max(1, orDefault(q.Concurrency, DefaultConcurrency))
	perRoute := max(1, orDefault(q.PerRoute, DefaultPerRoute))
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(concurrency-len(q.running), perRoute)
	for r, until := range q.holds {
		left := until.Sub(now)
		if left <= 0 {
			delete(q.holds, r)
			continue
		}
		exclude = append(exclude, r)
		if next == 0 || left < next {
			next = left
		}
	}
	for r, running := range q.perRoute {
		if _, held := q.holds[r]; held {
			continue
		}
		if running >= perRoute {
			exclude = append(exclude, r)
		} else {
			n = min(n, perRoute-running)
		}
	}
	return n, exclude, next
}

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
	// The goroutine ends with wctx, and rest waits for it.
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		select {
		case <-q.wake:
			cancel()
		case <-wctx.Done():
		}
	}()
	err := w.Wait(wctx, exclude)
	ended := wctx.Err() != nil
	cancel()
	<-woken
	if err != nil && !ended && ctx.Err() == nil && !errors.Is(err, ErrClosed) {
		q.counters.storeErrors.Add(1)
		q.logger().ErrorContext(ctx, "waiting failed", "err", err)
	}
	return ended
}

// nudge makes the loop look again.
func (q *Queue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// hold keeps a route from being leased.
func (q *Queue) hold(r Route, until time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.holds[r]; !ok && len(q.holds) >= maxHolds {
		return
	}
	q.holds[r] = until
}

// start registers a delivery, of an item that was asked for at a time.
func (q *Queue) start(l Lease, asked time.Time) *delivery {
	d := &delivery{q: q, lease: l, end: asked.Add(q.leaseTTL()), receipts: make([]receipt, len(l.Envelope.Recipients))}
	q.mu.Lock()
	q.running[d] = struct{}{}
	q.perRoute[l.Route]++
	q.mu.Unlock()
	return d
}

// stop forgets a delivery.
func (q *Queue) stop(d *delivery) {
	q.mu.Lock()
	delete(q.running, d)
	if q.perRoute[d.lease.Route]--; q.perRoute[d.lease.Route] == 0 {
		delete(q.perRoute, d.lease.Route)
	}
	q.mu.Unlock()
	q.nudge()
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
		all := make([]*delivery, 0, len(q.running))
		for d := range q.running {
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
