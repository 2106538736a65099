package queue

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
)

// A delivery is one leased item on its way through the queue.
type delivery struct {
	q      *Queue
	lease  Lease
	ended  bool                    // by an operator: nothing was attempted
	cancel context.CancelCauseFunc // of the context that Next gets; guarded by mu

	mu       sync.Mutex          // also held while the lease is extended, so that no extension undoes a longer one
	over     bool                // Deliver has returned: the Attempt is inert
	lost     bool                // the lease is
	end      time.Time           // of the lease, at the latest
	receipts []mailspine.Receipt // by recipient
}

var _ mailspine.Attempt = (*delivery)(nil)

func newDelivery(q *Queue, l Lease, end time.Time) *delivery {
	return &delivery{q: q, lease: l, end: end, receipts: make([]mailspine.Receipt, len(l.Envelope.Recipients))}
}

const (
	// commitMargin is for how long a lease lasts beyond the answer to the final
	// dot: enough to settle the result.
	commitMargin = time.Minute
	// maxCommit bounds what BeforeCommit grants. RFC 5321 section 4.5.3.2.6 has 10 minutes.
	maxCommit = 24 * time.Hour
)

// BeforeCommit implements mailspine.Attempt.
func (d *delivery) BeforeCommit(ctx context.Context, max time.Duration) error {
	d.mu.Lock()
	over := d.over
	d.mu.Unlock()
	if over {
		return nil
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// The store is asked even if the lease is known to last: it alone knows.
	return d.extend(ctx, min(max, maxCommit)+commitMargin, maxCommit*2)
}

// Record implements mailspine.Attempt.
func (d *delivery) Record(i int, r mailspine.Receipt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over || i < 0 || i >= len(d.receipts) {
		return
	}
	r.Reply = line(r.Reply, maxText)
	d.receipts[i] = r
}

// extend makes the lease last for ttl at least, if it ends within the next
// "within". A lease that is lost, or that ended while the store failed, is
// ErrLeaseLost, and cancels the delivery.
func (d *delivery) extend(ctx context.Context, ttl, within time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost {
		return ErrLeaseLost
	}
	begun := time.Now()
	left := d.end.Sub(begun)
	if left > within {
		return nil
	}
	ttl = max(ttl, left) // never shorter than it is
	lost, err := d.q.Store.Extend(ctx, ttl, d.lease.Token)
	switch {
	case err == nil && len(lost) == 0:
		d.end = begun.Add(ttl)
		return nil
	case err == nil, errors.Is(err, ErrLeaseLost), !time.Now().Before(d.end):
		d.lost = true
		if d.cancel != nil {
			d.cancel(ErrLeaseLost)
		}
		return ErrLeaseLost
	}
	return err
}

// finish makes the Attempt inert and returns the receipts, which do not change any more.
func (d *delivery) finish() []mailspine.Receipt {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	return d.receipts
}

func (d *delivery) isLost() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lost
}

func (d *delivery) info() AttemptInfo {
	return AttemptInfo{
		Item: d.lease.Token.Item, Route: d.lease.Route, Envelope: d.lease.Envelope,
		Attempt: d.attempt(), Age: d.lease.Age,
	}
}

// attempt is which one it is, from 1. What an operator ends has its last one, or 0.
func (d *delivery) attempt() int {
	if d.ended {
		return d.lease.Attempts
	}
	return d.lease.Attempts + 1
}
