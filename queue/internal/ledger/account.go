package ledger

import (
	"math"
	"math/bits"
	"time"

	"github.com/mailspine/mailspine/queue"
)

// A key says what is counted.
type key struct {
	kind queue.LimitKind
	per  time.Duration
	name string
}

func keyOf(l queue.Limit) key { return key{l.Kind, l.Per, l.Key} }

// An account is the count of one key. The Ledger's mutex protects it.
//
// A Rate is kept as what was taken and has not come back yet: it drains by Max in Per, and has room while it is under Burst. So a key
// that was never used and one that has drained are the same, and neither needs memory.
type account struct {
	key
	used int64

	period int64         // Quota: the number of the one that used is of
	at     time.Duration // Rate: until when it was drained, on the Ledger's clock
	// gone counts what has drained from a Rate, and back what was given back to it. They tell how much of what a permit put in is still
	// there, if what came first drains first.
	gone, back int64

	// The journal has it that no more than bound was granted, at boundAt; that of a Rate has drained since.
	bound   int64
	boundAt time.Duration

	max, burst int64 // of the latest policy
	// saved is the Max that the journal has of a Rate, at least. A lower one is written before anything is granted by it: a
	// count that would have drained long ago by the old one is forgotten when the journal is read.
	saved int64
	pins  int // Takes that wait for the journal
}

// drained returns how much comes back in a time, and how much of the time that took. exact is false if a part of one more
// has come back.
func drained(elapsed time.Duration, max int64, per time.Duration) (n int64, took time.Duration, exact bool) {
	if elapsed <= 0 || max <= 0 {
		return 0, 0, true
	}
	hi, lo := bits.Mul64(uint64(elapsed), uint64(max))
	if hi >= uint64(per) {
		return math.MaxInt64, elapsed, true
	}
	q, r := bits.Div64(hi, lo, uint64(per))
	if q > math.MaxInt64 {
		return math.MaxInt64, elapsed, true
	}
	return int64(q), min(refill(int64(q), max, per), elapsed), r == 0
}

// refill returns how long it takes until n came back, rounded up, so that nothing comes too early.
func refill(n, max int64, per time.Duration) time.Duration {
	hi, lo := bits.Mul64(uint64(n), uint64(per))
	if hi >= uint64(max) {
		return math.MaxInt64
	}
	q, r := bits.Div64(hi, lo, uint64(max))
	if r > 0 {
		q++
	}
	if q > math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(q)
}

// periodOf returns the number of the period at a wall time in nanoseconds.
func periodOf(wall int64, l queue.Limit) int64 {
	return floorDiv(wall+int64(l.Offset), int64(l.Per))
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// advance brings the account to a moment.
func (a *account) advance(l queue.Limit, t moment) {
	switch a.kind {
	case queue.Rate:
		n, took, _ := drained(t.at-a.at, l.Max, l.Per)
		a.at += took
		a.drain(n)
		if a.used == 0 {
			// A full bucket gets no fuller: time that is past is no credit.
			a.at = max(a.at, t.at)
		}
	case queue.Quota:
		if p := periodOf(t.wall, l); p > a.period {
			a.period, a.used, a.bound = p, 0, 0
		}
	}
	a.max, a.burst = l.Max, l.Burst
}

func (a *account) drain(n int64) {
	a.gone += min(n, a.used)
	a.used -= min(n, a.used)
}

// remains returns how much of what a permit took of a Rate can be given back. What has drained cannot: it has been granted to somebody
// else by now, or could have been. What stood before it drained first; how much of that was given back is not known, so that there
// is a least and a most.
//
// The first that is there may have drained in part. If that one is given back, begun says so.
func (a *account) remains(x part, unused int64) (give int64, begun bool) {
	most := x.before - (a.gone - x.gone) // stands before it still
	least := most - (a.back - x.back)
	rest := min(max(x.n-max(0, -least), 0), a.used)
	switch {
	case least > 0: // what has begun to drain is somebody else's
		return min(unused, rest), false
	case most <= 0:
		return min(unused, rest), rest > 0 && unused >= rest
	}
	// It may be ours, or not: it stays. So a return costs at most one.
	return min(unused, max(rest-1, 0)), false
}

// bounded returns what the journal says at a moment: between least and most, since a Rate drains bit by bit. What may be granted
// goes by the least, and what is written by the most. It is computed from the record each time, as it is after a crash; in
// steps it would round otherwise.
func (a *account) bounded(t moment) (least, most int64) {
	if a.kind != queue.Rate {
		return a.bound, a.bound
	}
	n, _, exact := drained(t.at-a.boundAt, a.max, a.per)
	most = a.bound - min(n, a.bound)
	if least = most; !exact && least > 0 {
		least--
	}
	return least, most
}

// policy returns the latest policy.
func (a *account) policy() queue.Limit {
	return queue.Limit{Kind: a.kind, Key: a.name, Per: a.per, Max: a.max, Burst: a.burst}
}

// room returns how much can be taken.
func (a *account) room(l queue.Limit) int64 {
	if l.Max == 0 {
		return 0
	}
	if l.Kind == queue.Rate {
		return max(l.Burst-a.used, 0)
	}
	return max(l.Max-a.used, 0)
}

// most returns what the limit gives at all.
func most(l queue.Limit) int64 {
	if l.Kind == queue.Rate && l.Max > 0 {
		return l.Burst
	}
	return l.Max
}

// slotWait is for how long one waits for a slot before one asks again: nobody knows when it comes back.
const slotWait = time.Second

// wait returns when there is room for need, which there is not, and whether there never is.
func (a *account) wait(l queue.Limit, need int64, t moment) (wait time.Duration, never bool) {
	if need > most(l) {
		return 0, true
	}
	switch l.Kind {
	case queue.Rate:
		wait = refill(a.used+need-l.Burst, l.Max, l.Per) - (t.at - a.at)
	case queue.Quota:
		wait = a.left(l, t)
	default:
		wait = slotWait
	}
	return min(max(wait, 1), queue.MaxPer), false
}

// left returns how long the period of a Quota goes on.
func (a *account) left(l queue.Limit, t moment) time.Duration {
	return max(time.Duration((a.period+1)*int64(l.Per)-int64(l.Offset)-t.clock), 1)
}

// ahead returns how much is reserved ahead of what is used: little where there is little, since a crash costs it.
func ahead(l queue.Limit, block int64) int64 {
	if block > 0 {
		return block - 1 + margin(l)
	}
	n := l.Max / 50
	if l.Kind == queue.Rate {
		// What comes back in a second, so that there is not more than a write a second.
		s, _, _ := drained(time.Second, l.Max, l.Per)
		n = max(l.Burst/50, s)
	}
	return min(max(n, 1), maxBlock) - 1 + margin(l)
}

const maxBlock = 1000

// margin is for what drains of a Rate while it is written, and then counts as one.
func margin(l queue.Limit) int64 {
	if l.Kind == queue.Rate {
		return 1
	}
	return 0
}

// dead reports whether the account says no more than none does. Nobody must hold a permit of it.
func (a *account) dead(t moment) bool {
	if a.pins > 0 {
		return false
	}
	switch a.kind {
	case queue.Slots:
		return a.used == 0
	case queue.Rate:
		n, _, _ := drained(t.at-a.at, a.max, a.per)
		return n >= a.used
	}
	// Offsets differ by less than two periods, so after three no caller is in this one.
	return a.period+2 < floorDiv(t.wall, int64(a.per))
}
