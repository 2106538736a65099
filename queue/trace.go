package queue

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/mailspine/mailspine"
)

// A Trace is a set of hooks, each of which may be nil. They are called on the
// path of delivery, from many goroutines: they must return soon. What they are
// given must not be modified, and is valid until they return.
type Trace struct {
	// Queued is called when a message is durably stored.
	Queued func(context.Context, QueuedInfo)
	// Leased is called when an item was leased, before the Gate is asked.
	Leased func(context.Context, AttemptInfo)
	// Delivered, Deferred and Failed are called for each recipient after its
	// result was settled.
	Delivered func(context.Context, ResultInfo)
	Deferred  func(context.Context, ResultInfo)
	Failed    func(context.Context, ResultInfo)
	// Held is called when an item was given back without an attempt.
	Held func(context.Context, HeldInfo)
	// Reported is called when a notification was handed over.
	Reported func(context.Context, ReportedInfo)
	// Lost is called when the result of a delivery could not be recorded,
	// because its lease was lost, or the store failed while Run ended: it may be
	// delivered again.
	Lost func(context.Context, AttemptInfo)
}

// QueuedInfo describes a message that was stored.
type QueuedInfo struct {
	Envelope *mailspine.Envelope
	Items    []NewItem
	Size     int64
	Delay    time.Duration
}

// AttemptInfo describes an item that is being worked on.
type AttemptInfo struct {
	Item     ItemID
	Route    Route
	Envelope *mailspine.Envelope
	Attempt  int // this one, from 1; of what Queue.Bounce ends, the last one, or 0
	Age      time.Duration
}

// ResultInfo describes what became of one recipient in one attempt.
type ResultInfo struct {
	AttemptInfo
	Index     int // in Envelope.Recipients
	Recipient mailspine.Recipient
	Result    Result
	Cause     mailspine.Cause
	Expired   bool          // failed because there was no more time to try
	Delay     time.Duration // until the next attempt, if it is deferred
	Duration  time.Duration // of the Deliver call
}

// HeldInfo describes why an item was given back without an attempt.
type HeldInfo struct {
	AttemptInfo
	Reason string
	Delay  time.Duration
	Gate   bool // by the Gate; otherwise by Next
}

// ReportedInfo describes a notification.
type ReportedInfo struct {
	Message  mailspine.MsgID // the message that it is about
	Envelope *mailspine.Envelope
	Size     int64
}

// Counts is a snapshot of what a Queue has done since it was made. All but Running and
// HeldRoutes only grow.
type Counts struct {
	Running    int // items that are being delivered
	HeldRoutes int // routes that the Gate holds at present

	Queued  uint64 // messages stored by Deliver
	Refused uint64 // messages that Deliver did not store

	Delivered uint64 // recipients
	Deferred  uint64 // results that left a recipient open
	Failed    uint64 // recipients, expired ones among them
	Expired   uint64 // recipients

	Held       uint64 // items given back without an attempt
	Reports    uint64 // notifications handed over
	Unreported uint64 // failures that nobody is told, because the sender is <> (see Queue.Postmaster), and reports that the Store refuses as bad

	Lost        uint64 // deliveries whose result could not be recorded
	Panics      uint64 // of Next and other plugged-in parts, recovered
	StoreErrors uint64 // failed operations of the Store
}

// counters is what Counts is made of.
type counters struct {
	queued, refused, delivered, deferred, failed, expired, held,
	reports, unreported, lost, panics, storeErrors atomic.Uint64
}

// Stats returns what the queue has done so far. It is safe for concurrent use.
func (q *Queue) Stats() Counts {
	q.mu.Lock()
	running, routes := len(q.places.running), q.places.held(q.now())
	q.mu.Unlock()
	c := &q.counters
	return Counts{
		Running: running, HeldRoutes: routes,
		Queued: c.queued.Load(), Refused: c.refused.Load(),
		Delivered: c.delivered.Load(), Deferred: c.deferred.Load(), Failed: c.failed.Load(), Expired: c.expired.Load(),
		Held: c.held.Load(), Reports: c.reports.Load(), Unreported: c.unreported.Load(),
		Lost: c.lost.Load(), Panics: c.panics.Load(), StoreErrors: c.storeErrors.Load(),
	}
}
