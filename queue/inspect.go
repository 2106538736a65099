package queue

import (
	"context"
	"iter"
	"time"

	"github.com/mailspine/mailspine"
)

// An Inspector is a Store that can be looked into.
type Inspector interface {
	// List yields the items that match, in no particular order, as of some
	// moment during the iteration. Items that come or go meanwhile may be
	// missed. It holds no lock while it yields, and ends when yield returns false. A Filter that is
	// not valid is the only thing yielded, with ErrBadFilter.
	List(ctx context.Context, f Filter) iter.Seq2[Item, error]
	// Stats counts. It does not look at each item.
	Stats(ctx context.Context) (Stats, error)
	// Breakdown yields the same counts for each route and tenant that has items, in no
	// particular order. It does not look at each item, and holds no lock while it yields. If nothing changes
	// meanwhile, the groups' counts sum up to those of Stats.
	Breakdown(ctx context.Context) iter.Seq2[Group, error]
}

// An ItemState says what an item is waiting for.
type ItemState uint8

// The states of an item. An item whose lease has ended is due.
const (
	AnyState    ItemState = iota // in a Filter: every state
	ItemDue                      // can be leased
	ItemWaiting                  // until it is due
	ItemLeased                   // is being delivered
	ItemHeld                     // until somebody releases it
)

// String returns the state's name: "due", "waiting", "leased" or "held"; "any" for AnyState.
func (s ItemState) String() string {
	switch s {
	case AnyState:
		return "any"
	case ItemDue:
		return "due"
	case ItemWaiting:
		return "waiting"
	case ItemLeased:
		return "leased"
	case ItemHeld:
		return "held"
	}
	return "invalid"
}

// An Item is what an [Inspector] shows.
type Item struct {
	ID       ItemID
	Message  mailspine.MsgID
	Route    Route
	Envelope *mailspine.Envelope // with the recipients that are not done
	States   []RecipientState
	State    ItemState
	Attempts int
	Age      time.Duration // since the message was put
	Due      time.Duration // until it is due, or until its lease ends; not positive: due now; 0 if it is held
	Reason   string        // of the last Abandon or the hold
	Size     int64         // of the content, in octets
}

// Stats counts what is in a Store.
type Stats struct {
	Messages int64
	Items    int64 // all of them
	Due      int64
	Waiting  int64 // not due yet
	Leased   int64
	Held     int64
	Bytes    int64 // of content, each message counted once
}

// A Group counts the items of one tenant on one route.
type Group struct {
	Route  Route
	Tenant string

	Items   int64 // all of them
	Due     int64
	Waiting int64
	Leased  int64
	Held    int64
}
