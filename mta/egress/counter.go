package egress

import (
	"math"
	"time"
)

// A counter counts the copies of one key on one day. It is a value that the
// Selector's mutex protects.
//
// A copy counts for the day on which it was granted, also when it goes out a little after midnight.
// What was granted and has not ended is reserved.
type counter struct {
	key      Key
	schedule Schedule // nil: no cap

	day      Day
	number   int   // which sending day it is, if something is sent; 0: the counter was never used
	sent     int64 // known to be sent
	lost     int64 // reserved before a crash, of which nothing is known: it counts as sent
	reserved int64
	bound    int64 // the State has it that no more than this was reserved

	// prev is the day used before day, and late says that what was reserved on it may
	// still make it a sending day.
	prev Day
	late bool
	// missed is when a grant ended of which no server heard; zero: one has heard since.
	missed time.Time
	// touched says that something was reserved since the counter was loaded.
	touched bool
}

func (c *counter) load(r Record) {
	c.day, c.number, c.sent, c.lost, c.bound = r.Day, r.Number, r.Sent, r.Held-r.Sent, r.Held
}

// on returns the counter as it is on a day. A day that has been is not
// returned to, or a clock that goes back would give its cap twice.
func (c counter) on(today Day) counter {
	switch {
	case c.number == 0:
		c.day, c.number = today, 1
	case today > c.day:
		// What was lost may not have been sent: a day without anything known to be
		// sent raises no cap.
		sent := c.sent > 0
		c.prev, c.late = c.day, !sent && c.reserved > 0
		if sent {
			c.number++
		}
		c.day, c.sent, c.lost, c.reserved, c.bound = today, 0, 0, 0, 0
	}
	return c
}

func (c *counter) used() int64 { return c.sent + c.lost + c.reserved }

// limit returns the cap of the day.
func (c *counter) limit() (int64, bool) {
	if c.schedule == nil {
		return math.MaxInt64, false
	}
	n, ok := c.schedule.Cap(c.number)
	if !ok {
		return math.MaxInt64, false
	}
	return max(n, 0), true
}

func (c *counter) room() int64 {
	n, _ := c.limit()
	return max(n-c.used(), 0)
}

func (c *counter) reserve(n int64) {
	c.reserved += n
	c.touched = true
}

// settle ends a reservation of n copies that was made on a day. It reports whether it
// was the first that made that a sending day.
func (c *counter) settle(day Day, n, sent int64) (first bool) {
	if day == c.day {
		first = sent > 0 && c.sent == 0
		c.reserved -= n
		c.sent += sent
		return first
	}
	if day == c.prev && c.late && sent > 0 {
		c.late = false
		c.number++
		return true
	}
	return false
}

// ahead returns how much may be reserved ahead of what is used.
func (c *counter) ahead(block int64) int64 {
	if block <= 0 {
		// A crash loses it: little, then, where there is little.
		block = maxBlock
		if limit, capped := c.limit(); capped {
			block = max(1, min(maxBlock, limit/50))
		}
	}
	return block - 1
}

// stale reports whether the State has less than what is used, or more than is allowed ahead of it.
func (c *counter) stale(block int64) bool {
	return c.used() > c.bound || c.bound-c.used() > c.ahead(block)
}

// want returns what is to be saved so that the counter is not stale, but never more than the
// cap. ok is false if it is not. It is followed by a write at once.
func (c *counter) want(block int64) (r Record, ok bool) {
	if !c.stale(block) {
		return r, false
	}
	used, ahead := c.used(), c.ahead(block)
	r = c.record()
	if used > c.bound {
		limit, _ := c.limit()
		r.Held = max(used, min(used+ahead, limit))
	} else {
		// Much was given back. Half, so that the next few copies need no write in either
		// direction. The bound falls before it is written: nobody must rely on the old one meanwhile.
		r.Held = used + ahead/2
		c.bound = r.Held
	}
	return r, true
}

const maxBlock = 1000

// record returns what is known, with what is reserved as held.
func (c *counter) record() Record {
	return Record{Key: c.key, Day: c.day, Number: c.number, Sent: c.sent, Held: max(c.bound, c.used())}
}

// final is record for a clean end: what was reserved ahead is given back.
func (c *counter) final() Record {
	r := c.record()
	r.Held = c.used()
	return r
}

// saved takes note of a record that is durable.
func (c *counter) saved(r Record) {
	if r.Day == c.day {
		c.bound = r.Held
	}
}

// A Count tells how much was sent from a source or for a domain today. Its day is
// the day of the clock, or a later one that the state has seen.
type Count struct {
	Key
	Day      Day   `json:"day"`
	Number   int   `json:"number"`   // which sending day it is, or will be with the first copy
	Capped   bool  `json:"capped"`   // false: no cap
	Cap      int64 `json:"cap"`      // of the day
	Sent     int64 `json:"sent"`     // known to be sent
	Reserved int64 `json:"reserved"` // granted, and under way
	Lost     int64 `json:"lost"`     // reserved before a crash: counts as sent
	Room     int64 `json:"room"`     // what can still be granted; meaningless without a cap
}

func (c *counter) count() Count {
	n := Count{Key: c.key, Day: c.day, Number: c.number, Sent: c.sent, Reserved: c.reserved, Lost: c.lost}
	if n.Cap, n.Capped = c.limit(); n.Capped {
		n.Room = c.room()
	} else {
		n.Cap = 0
	}
	return n
}
