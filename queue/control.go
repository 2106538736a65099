package queue

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Controller is a Store that lets an operator interfere.
type Controller interface {
	// Control carries out a command on the items that match. Items that are leased match too, but are not
	// changed: they are being delivered. When Control returns nil the changes are as durable as a Put. Each item is changed
	// entirely or not at all; after an error some may be changed, and Changed
	// counts them. Items that come meanwhile may be missed. A Filter that is not valid is ErrBadFilter, a Command
	// that is not, ErrBadCommand; nothing is changed then.
	Control(ctx context.Context, f Filter, c Command) (Changed, error)

	// Take leases up to max items that match and are not leased, for ttl, whatever they are
	// waiting for, in no particular order. max 0 is 1, ttl 0 is DefaultLeaseTTL. It is how an item is ended out of
	// turn: the lease is settled as any other. When the lease of an item that was held ends
	// without a settlement, or is abandoned, the item is held again, for the same reason.
	Take(ctx context.Context, f Filter, max int, ttl time.Duration) ([]Lease, error)
}

// ErrBadCommand is matched by the errors of a [Command] that is not valid.
var ErrBadCommand = errors.New("queue: bad command")

// An Op says what a [Command] does.
type Op uint8

// The operations.
const (
	// OpHold keeps an item from being leased until it is released. What is held
	// already gets the new reason.
	OpHold Op = iota + 1
	// OpRelease makes an item that is held due now.
	OpRelease
	// OpFlush makes an item that is waiting due now. What is held stays so.
	OpFlush
	// OpDelete removes an item; nobody is told. A message goes with its last item, and its ID is
	// remembered for TombstoneTTL.
	OpDelete
	// OpReroute gives an item another route.
	OpReroute
)

// String returns the operation's name in lower case.
func (o Op) String() string {
	switch o {
	case OpHold:
		return "hold"
	case OpRelease:
		return "release"
	case OpFlush:
		return "flush"
	case OpDelete:
		return "delete"
	case OpReroute:
		return "reroute"
	}
	return "invalid"
}

// A Command is what an operator does with items.
type Command struct {
	Op     Op
	Reason string // of OpHold: for people; required. A store may cut it after 1,000 octets
	Route  Route  // of OpReroute
}

// Validate returns nil, or an error that matches ErrBadCommand.
func (c Command) Validate() error {
	switch {
	case c.Op < OpHold || c.Op > OpReroute:
		return fmt.Errorf("%w: Op %d is none", ErrBadCommand, c.Op)
	case c.Op == OpHold && c.Reason == "":
		return fmt.Errorf("%w: a hold without a reason", ErrBadCommand)
	case c.Op != OpHold && c.Reason != "":
		return fmt.Errorf("%w: a reason, and no hold", ErrBadCommand)
	case c.Op != OpReroute && c.Route != "":
		return fmt.Errorf("%w: a route, and no reroute", ErrBadCommand)
	}
	return nil
}

// Changed counts what a [Command] did.
type Changed struct {
	Matched int64 // items
	Changed int64 // items; what was already as it was to be is not changed
	Leased  int64 // items that match, and were left alone because they are being delivered
}
