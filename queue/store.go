package queue

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/mailspine/mailspine"
)

// A Store keeps messages and hands them out for delivery. It is the driver
// interface of this package: applications use a [Queue], which owns all policy
// (routes, retries, reports); a Store only remembers, durably and atomically.
//
// The unit of leasing is the item: one message for one [Route], with some of
// the message's recipients. The content is stored once and shared by the items
// of a message. An item is in one of three states: waiting until it is due,
// leased until its lease ends, held until somebody releases it. One due time
// serves both of the first two: a lease that ends makes the item due again, so
// that the work of a dead process comes back by itself.
//
// All methods are safe for concurrent use. Delays, never instants, cross the
// interface: the store owns the clock. Slices and envelopes given to a Store are
// not kept; those returned belong to the caller. A method whose context ends
// returns its error; the operation then has happened entirely or not at all.
// Errors that say nothing else are temporary; out of space is an error for
// which mailspine.Status answers 452 4.3.1, and leaves nothing behind.
//
// There are seven methods because a lease, its renewal, its two ends and the
// content it refers to are one protocol; none can be left to an optional
// interface. What a driver may add: [Inspector], [Controller], [Waiter],
// [HealthChecker] and mailspine.Stager.
type Store interface {
	// Put stores a message and its items. When it returns nil, they survive a
	// crash of the process and of the machine (a driver that does not promise
	// that says so in its name). It is all or nothing, and idempotent:
	// m.Envelope.ID is required, and a Put of an ID that is stored, or was
	// within the last hour ([TombstoneTTL]), changes nothing and returns nil.
	//
	// Every recipient is in exactly one item; otherwise the error is
	// [ErrBadMessage].
	Put(ctx context.Context, m Message, msg mailspine.Content) error

	// Lease returns up to req.Max items that are due, and makes each the
	// caller's for req.TTL. It returns at once, with none if none is due. Two callers
	// never hold the same lease: each lease of an item has a higher Epoch than the
	// one before.
	//
	// It is fair: it goes round the routes that have items due, one item of each, and inside a route
	// round the tenants, in proportion to their weights (Message.Weight): a weighted deficit
	// round robin in which an item costs 1 for each begun 64 KiB of its content. Of a tenant
	// of a route it takes the items with the highest Envelope.Priority first (RFC 6710), those of one priority in the
	// order in which they became due.
	Lease(ctx context.Context, req LeaseRequest) ([]Lease, error)

	// Extend makes leases last for ttl from now. Those that had been lost
	// already are returned, and nothing is changed for them.
	Extend(ctx context.Context, ttl time.Duration, tokens ...Token) (lost []Token, err error)

	// Settle ends leases. Each Settlement is one atomic and durable step: its results, its
	// delay and the messages that it emits. The returned slice has an entry for each
	// Settlement: nil, or [ErrLeaseLost] if the lease is not held any more (nothing
	// has changed then), or another error. A message whose last recipient is
	// done is removed with its content.
	Settle(ctx context.Context, s ...Settlement) ([]error, error)

	// Abandon ends leases without a delivery having been tried: the attempt is not
	// counted, and the items are due again after delay. The reason is kept for
	// [Inspector]. Leases that are lost are ignored.
	Abandon(ctx context.Context, delay time.Duration, reason string, tokens ...Token) error

	// Open returns the content of a message, as it was put. The reader is an
	// io.Seeker too, and stays readable until it is closed, even if the message is removed
	// meanwhile. An unknown ID is [ErrNotFound].
	Open(ctx context.Context, id mailspine.MsgID) (io.ReadCloser, error)

	// Close gives back what the store holds. It waits for operations under way;
	// later ones return [ErrClosed]. Leases are not given up: they end by
	// themselves, or, for a store that has one process, when it is opened again.
	Close() error
}

// TombstoneTTL is for how long a Store remembers the ID of a message that it
// has finished with, so that a Put repeated after a lost reply is no second message.
const TombstoneTTL = time.Hour

// The errors of a Store, matched with errors.Is.
var (
	ErrClosed     = errors.New("queue: store is closed")
	ErrNotFound   = errors.New("queue: no such message")
	ErrLeaseLost  = errors.New("queue: lease is lost")
	ErrBadMessage = errors.New("queue: bad message")
)

// A Route is the key that recipients share who can be served together, over
// the same connections: by default their domain. It is compared as it is, so
// routers return it in lower case.
type Route string

// An ItemID names an item in its store, and is never used again there.
type ItemID uint64

// A Token stands for a lease. The epoch fences: with that of a lease that has ended,
// nothing can be changed.
type Token struct {
	Item  ItemID
	Epoch uint64
}

// A Message is what Put stores.
type Message struct {
	Envelope *mailspine.Envelope // valid, with an ID
	Items    []NewItem           // at least one
	Delay    time.Duration       // the items are first due after it; 0: now
	Hold     string              // not empty: the items are held, for this reason
	// Weight is the share of its routes that the message's tenant gets from now on, beside other
	// tenants: twice the weight, twice the turns. 1 to MaxWeight; 0: 1. The latest message
	// of a tenant counts.
	Weight int
}

// MaxWeight is the largest Message.Weight.
const MaxWeight = 1000

// A NewItem is the part of a message that goes one route. Several items of a
// message may have the same route.
type NewItem struct {
	Route      Route
	Recipients []int // indices in Envelope.Recipients, at least one
}

// A LeaseRequest says what a Lease call wants.
type LeaseRequest struct {
	Max     int           // at most so many items; 0: 1
	TTL     time.Duration // how long the leases last; 0: 5 minutes
	Exclude []Route       // routes that cannot be served now
}

// DefaultLeaseTTL is what LeaseRequest.TTL 0 means.
const DefaultLeaseTTL = 5 * time.Minute

// A Lease is an item lent to a worker.
type Lease struct {
	Token Token
	Route Route
	// Envelope has only the item's recipients that are not done, in their
	// original order.
	Envelope *mailspine.Envelope
	// Recipients has what is remembered of each of Envelope.Recipients.
	Recipients []RecipientState
	Attempts   int           // deliveries tried so far
	Age        time.Duration // since the message was put
	Size       int64         // of the content, in octets
}

// A RecipientState is what a store remembers of a recipient that is not done.
type RecipientState struct {
	Index  int    // in the recipients of the message as it was put
	Last   Result // the result of the last attempt; zero before the first
	Warned bool   // the sender was told of the delay
}

// A State is what became of one recipient.
type State uint8

// The states. A recipient that is not open is done: it is not leased again.
const (
	Open      State = iota // to be tried again
	Delivered              // taken by the next hop
	Failed                 // given up
)

// String returns the state's name in lower case.
func (s State) String() string {
	switch s {
	case Open:
		return "open"
	case Delivered:
		return "delivered"
	case Failed:
		return "failed"
	}
	return "invalid"
}

// A Result is the outcome of one attempt for one recipient.
type Result struct {
	State   State
	Status  *mailspine.Error // the refusal; nil for Delivered. Err is not stored, only its text.
	Receipt mailspine.Receipt
	Warned  bool // the sender is told of the delay with this settlement, or was before
}

// A Settlement ends one lease.
type Settlement struct {
	Token Token
	// Results has one entry for each of Lease.Envelope.Recipients, in order.
	Results []Result
	// Delay is when the recipients that are Open are due again.
	Delay time.Duration
	// Emit is put in the same step: reports of what happened here. Their IDs
	// are idempotent, as in Put.
	Emit []Emission
}

// An Emission is a message that a Settlement puts.
type Emission struct {
	Message Message
	Content mailspine.Content
}

// A Waiter is a Store that can tell when there is work, so that the queue need
// not poll.
type Waiter interface {
	// Wait returns nil when an item that is not excluded is due, or when something
	// changed so that it may be; or ctx's error. It never returns twice for the
	// same cause without anything being due.
	Wait(ctx context.Context, exclude []Route) error
}

// A HealthChecker is a Store that knows when it must not be trusted with new
// messages.
type HealthChecker interface {
	// Health returns nil, or why Put fails at present.
	Health(ctx context.Context) error
}
