package egress

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// A Day is a day in UTC, as the number of days since 1970-01-01.
type Day int32

// DayOf returns the day of a time.
func DayOf(t time.Time) Day {
	s := t.Unix()
	d := s / 86400
	if s%86400 < 0 {
		d--
	}
	return Day(d)
}

// Start returns the beginning of the day.
func (d Day) Start() time.Time { return time.Unix(int64(d)*86400, 0).UTC() }

// String returns the day as "2006-01-02".
func (d Day) String() string { return d.Start().Format("2006-01-02") }

// MarshalText returns the day as String does.
func (d Day) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Day) UnmarshalText(b []byte) error {
	t, err := time.Parse("2006-01-02", string(b))
	if err != nil {
		return fmt.Errorf("egress: %q is no day", b)
	}
	*d = DayOf(t)
	return nil
}

// A Schedule is a warm-up: how many copies may be sent on each sending day. A
// sending day is a UTC day on which something was sent, counted from 1: a week without
// mail does not raise a cap, since receivers did not see any mail either.
//
// Cap returns the cap of a sending day, at least 1, in copies: one for each recipient. ok is
// false from the day on which there is no cap any more. It is a pure function, safe for
// concurrent use, and must not fall from one day to the next. A schedule with a method Validate() error is asked
// for mistakes by Selector.Validate.
type Schedule interface {
	Cap(day int) (n int64, ok bool)
}

// A Ladder is a Schedule with a cap for each sending day; after the last there is none.
type Ladder []int64

// Cap returns the entry of a day.
func (l Ladder) Cap(day int) (int64, bool) {
	if day > len(l) {
		return 0, false
	}
	return l[max(day, 1)-1], true
}

// Validate reports a ladder without steps, or with one down.
func (l Ladder) Validate() error {
	if len(l) == 0 {
		return errors.New("a Ladder without steps: no cap at all is a nil Schedule")
	}
	last := int64(1)
	for i, n := range l {
		if n < last {
			return fmt.Errorf("step %d of the Ladder is %d, under %d", i+1, n, last)
		}
		last = n
	}
	return nil
}

// Geometric is a Schedule that multiplies the cap from day to day. The zero value begins with 50,
// doubles, and ends after 14 sending days, the last of which has 409,600.
type Geometric struct {
	First  int64   // the cap of the first day; 0: 50
	Factor float64 // from 1 up; 0: 2
	Days   int     // how many days have a cap; 0: 14
}

// Cap returns First times Factor for each day after the first, rounded down.
func (g Geometric) Cap(day int) (int64, bool) {
	g = g.withDefaults()
	if day > g.Days {
		return 0, false
	}
	n := float64(g.First) * math.Pow(g.Factor, float64(max(day, 1)-1))
	// What is larger than that is never reached, and would not fit.
	if !(n < 1<<53) {
		return 1 << 53, true
	}
	return int64(n), true
}

// Validate reports fields that make no schedule.
func (g Geometric) Validate() error {
	g = g.withDefaults()
	switch {
	case g.First < 1 || g.First > 1<<53:
		return fmt.Errorf("Geometric.First is %d", g.First)
	case !(g.Factor >= 1 && g.Factor <= 1e6):
		return fmt.Errorf("Geometric.Factor is %v, not from 1 to a million", g.Factor)
	case g.Days < 1:
		return fmt.Errorf("Geometric.Days is %d", g.Days)
	}
	return nil
}

func (g Geometric) withDefaults() Geometric {
	if g.First == 0 {
		g.First = 50
	}
	if g.Factor == 0 {
		g.Factor = 2
	}
	if g.Days == 0 {
		g.Days = 14
	}
	return g
}
