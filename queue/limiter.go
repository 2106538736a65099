package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
)

// A Limiter counts what is taken against limits that several parts of a program, or several programs, share:
// connections to a site, messages of a login in an hour, copies from an address in a day. It is how any number of
// nodes keep one cap.
//
// The caller knows the policy, and gives it with each call as [Limit] values; the Limiter only counts. A policy that
// changes holds from the next call on, in both directions. What is granted is lent as a [Permit]: the caller ends it
// with Return when it knows how much it used.
//
// A Limiter fails closed: what it cannot count it does not grant. What was granted is never counted as less than it
// was, also after a crash: the driver says what a crash costs. Grants never add up to more than a limit allows, as
// each [LimitKind] says.
//
// All methods are safe for concurrent use. They do not wait for room: a refusal says when to ask again. Delays, never
// instants, cross the interface: the Limiter owns the clock. Slices are not kept, and those returned belong to the
// caller. A method whose context ends returns its error; it then has happened entirely or not at all, and what such a
// Take took comes back as it would from a caller that died. Errors are temporary, as mailspine.Status has it. Nothing
// is retried.
type Limiter interface {
	// Take takes from all the limits of a request, or from none. If one of them has no room the error is an
	// *[OverLimit] that says which and for how long: the one with the longest wait, if there are several. A request
	// that is not valid is [ErrBadLimit]; one that the Limiter has no memory for is [ErrLimiterFull].
	Take(ctx context.Context, req TakeRequest) (Permit, error)

	// Renew makes permits last for ttl from now; 0 is DefaultPermitTTL. Those that have ended already are returned:
	// their slots may be somebody else's by now.
	Renew(ctx context.Context, ttl time.Duration, ids ...PermitID) (ended []PermitID, err error)

	// Return ends a permit. Its slots are given back. Of the rest, unused is given back, from 0 to Permit.N: less is
	// 0, and more is all. A limit with an N of its own is given back if all is unused.
	//
	// What is given back to a Quota whose period is over, or to a Rate that has refilled meanwhile, is worth nothing.
	// A permit that has ended changes nothing, so that Return can be repeated, and nothing is given back twice.
	Return(ctx context.Context, id PermitID, unused int64) error

	// Usage tells how much of each limit is taken, in the order given. It takes nothing, and remembers no keys.
	Usage(ctx context.Context, limits ...Limit) ([]Usage, error)

	// Close gives back what the Limiter holds of the system. It waits for calls under way; later ones return
	// ErrClosed. Permits are not ended.
	Close() error
}

// A LimitKind says how a [Limit] counts. Zero is none, and not valid.
type LimitKind uint8

// The kinds.
const (
	// Slots are held at the same time, at most Max of them. A slot comes back when its permit is returned or ends, so
	// that those of a node that died do.
	Slots LimitKind = iota + 1
	// Rate is a token bucket: Burst can be taken at once, and Max come back in the time Per. In no span of time is
	// more granted than Burst and what comes back in it; in the first Per after a rest that is Burst + Max.
	Rate
	// Quota is Max in each period of length Per. The time of a Limiter's periods never goes back, or a clock that is
	// set back would grant a period's Max twice: after a clock was ahead, the count stays in the period that it was
	// ahead in until that is over.
	Quota
)

// String returns the kind's name in lower case.
func (k LimitKind) String() string {
	switch k {
	case Slots:
		return "slots"
	case Rate:
		return "rate"
	case Quota:
		return "quota"
	}
	return "invalid"
}

// A Limit is a policy and the name of what it counts. Kind, Key and Per together say what is counted: limits that
// agree in these share one count, whatever their other fields are.
type Limit struct {
	Kind LimitKind
	// Key names what is counted, 1 to MaxLimitKey octets: "login/ann", "ip/192.0.2.1/gmail". It is compared as it is.
	Key string
	// Max is how much is allowed, up to MaxLimit. 0: nothing.
	Max int64
	// Per is the time in which Max comes back (Rate), or the length of a period (Quota), from a millisecond to
	// MaxPer. Slots have none.
	Per time.Duration
	// Burst is how much of a Rate can be taken at once, up to MaxLimit; 0: Max. Others have none.
	Burst int64
	// Offset moves the beginnings of a Quota's periods, which are the multiples of Per since 1970 in UTC, to where a
	// clock that is Offset ahead of UTC shows them. It is less than Per, either way. See [DayOffset].
	Offset time.Duration
	// N is how much a Take takes of this limit, whatever the request's N is: 1 for a message beside its recipients, a
	// size in octets. 0: the request's N; of Slots 1.
	N int64
}

// The bounds of a [Limit] and of a [TakeRequest].
const (
	MaxLimitKey = 256                  // octets
	MaxLimit    = 1_000_000_000_000    // of Max, Burst and N
	MaxPer      = 366 * 24 * time.Hour // of Limit.Per
	MaxLimits   = 16                   // in one call
)

// Day is the Per of a daily [Quota].
const Day = 24 * time.Hour

// DayOffset is the Limit.Offset with which a quota per Day counts the calendar days of a place. It changes with
// daylight saving time: ask for each Take, with the present time. The count then goes on through a day that has 23 or
// 25 hours. nil is UTC.
func DayOffset(now time.Time, loc *time.Location) time.Duration {
	if loc == nil {
		return 0
	}
	_, seconds := now.In(loc).Zone()
	return time.Duration(seconds) * time.Second
}

// A TakeRequest says what a Take wants.
type TakeRequest struct {
	// Limits are those that it counts against, 1 to MaxLimits, no two of which share a count.
	Limits []Limit
	// N is how much is taken of those that have no N of their own; 0: 1.
	N int64
	// Min is how much is better than nothing: as much as there is room for is taken, from Min to N. 0: N. Without a
	// limit that takes N it means nothing, and N is granted.
	Min int64
	// TTL is for how long the permit lasts, up to MaxPermitTTL; 0: DefaultPermitTTL. Negative: there is no permit,
	// and nothing can be given back; that is not for Slots.
	TTL time.Duration
}

// The times of a [Permit].
const (
	DefaultPermitTTL = 10 * time.Minute
	MaxPermitTTL     = 24 * time.Hour
)

// A PermitID names a permit of one Limiter, and is never used again there. 0 is none.
type PermitID uint64

// A Permit is what a Take was granted. It is ended by Return, or ends by itself: its slots then come back, and the
// rest counts as used.
type Permit struct {
	ID PermitID // 0: there is no permit, since TakeRequest.TTL was negative
	// N is how much was taken of the limits that have no N of their own.
	N int64
	// TTL is for how long the permit lasts, from when it was given.
	TTL time.Duration
	// Period is until when the first period of the quotas ends: what is used later belongs to another. 0: there are
	// no quotas.
	Period time.Duration
}

// A Usage tells how much of a limit is taken.
type Usage struct {
	Limit Limit // with its defaults filled in
	Used  int64 // held, not come back yet, or taken in this period; it may be over Max if that was lowered
	Room  int64 // how much a Take gets now
	Wait  time.Duration
	Never bool // with Wait, as in OverLimit, for a Take of Limit.N, or of 1; zero if there is room for that
}

// An OverLimit is the error of a Take that would go over a limit. Nothing was taken.
type OverLimit struct {
	Limit Limit // the one that has no room, with its defaults filled in
	Need  int64 // what it was to give at least
	Room  int64 // what it has
	// Wait is when there will be room, if nobody else takes it. For Slots, which come back when they come back, it is
	// when to look again, at most a second.
	Wait time.Duration
	// Never says that waiting does not help while the limit is what it is: Need is more than it ever gives. Wait is
	// 0 then.
	Never bool
}

// Error tells the limit, and when there is room.
func (e *OverLimit) Error() string {
	if e.Never {
		return fmt.Sprintf("queue: %d is more than %v ever gives", e.Need, e.Limit)
	}
	return fmt.Sprintf("queue: %v has room for %d, not %d: again in %v", e.Limit, e.Room, e.Need, e.Wait)
}

// Hold says the same to a Queue. Until is zero if waiting does not help.
func (e *OverLimit) Hold(now time.Time) Hold {
	h := Hold{Reason: fmt.Sprintf("%v is reached", e.Limit), Rule: e.Limit.rule()}
	if e.Never {
		h.Reason = fmt.Sprintf("%d is more than %v ever gives", e.Need, e.Limit)
	} else {
		h.Until = now.Add(e.Wait)
	}
	return h
}

// NotNow says the same to whoever asked for a delivery.
func (e *OverLimit) NotNow(now time.Time) *mailspine.NotNow {
	h := e.Hold(now)
	return &mailspine.NotNow{Until: h.Until, Reason: h.Reason, Rule: h.Rule}
}

// The errors of a [Limiter], matched with errors.Is.
var (
	// ErrBadLimit is a call that is not valid. It is a bug of the caller, or of its configuration.
	ErrBadLimit = errors.New("queue: bad limit")
	// ErrLimiterFull is a Limiter that has no room for another key or permit.
	ErrLimiterFull = errors.New("queue: the limiter is full")
)
