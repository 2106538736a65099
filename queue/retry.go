package queue

import "time"

// A RetryPolicy says when to try again.
//
// Next is called after an attempt that left recipients open, and for items that
// were given back without one. attempts is how many were tried so far, age for
// how long the message could have been delivered (the time until its HoldUntil
// is not counted), random is from [0, 1). It returns for how long to wait (zero or less
// means a second), or ok false to give up. It is a pure function, and is asked about
// ages to come as well, to find out when it will give up: an item that only waits for a Gate is
// looked at again then, and senders are told.
type RetryPolicy interface {
	Next(attempts int, age time.Duration, random float64) (delay time.Duration, ok bool)
}

// The RetryFunc type makes a RetryPolicy of a function.
type RetryFunc func(attempts int, age time.Duration, random float64) (delay time.Duration, ok bool)

// Next calls f.
func (f RetryFunc) Next(attempts int, age time.Duration, random float64) (time.Duration, bool) {
	return f(attempts, age, random)
}

// DefaultLifetime is for how long a DefaultRetry tries. RFC 5321 section
// 4.5.4.1: "the give-up time generally needs to be at least 4-5 days".
const DefaultLifetime = 5 * 24 * time.Hour

// DefaultRetry is the RetryPolicy of a Queue that has none. The zero value waits
//
//	after attempt   1       2        3        4        5     6     7 and later
//	about           5 min   10 min   20 min   30 min   1 h   2 h   3 h
//
// and gives up after 5 days. The first waits are short because of receivers
// that refuse strangers once (greylisting), the later ones follow RFC 5321
// section 4.5.4.1. Each is varied by up to a fifth up or down, so that what
// failed together is not tried together. The last attempt is made when the
// lifetime ends.
type DefaultRetry struct {
	// Delays are the waits after each attempt; the last one repeats. Empty: the table.
	Delays []time.Duration
	// Lifetime is when to give up; 0: DefaultLifetime.
	Lifetime time.Duration
	// Jitter is the greatest part by which a wait is varied, up to 1; 0: 0.2,
	// negative: none.
	Jitter float64
}

// Next implements RetryPolicy.
func (p DefaultRetry) Next(attempts int, age time.Duration, random float64) (time.Duration, bool) {
	life := p.lifetime()
	if age >= life {
		return 0, false
	}
	d := p.delay(max(0, attempts-1))
	jitter := p.Jitter
	switch {
	case jitter == 0:
		jitter = 0.2
	case jitter < 0:
		jitter = 0
	}
	d += time.Duration(min(jitter, 1) * (2*random - 1) * float64(d))
	return min(max(d, time.Second), life-age), true
}

func (p DefaultRetry) lifetime() time.Duration {
	if p.Lifetime <= 0 {
		return DefaultLifetime
	}
	return p.Lifetime
}

func (p DefaultRetry) delay(n int) time.Duration {
	if len(p.Delays) > 0 {
		return p.Delays[min(n, len(p.Delays)-1)]
	}
	switch n {
	case 0:
		return 5 * time.Minute
	case 1:
		return 10 * time.Minute
	case 2:
		return 20 * time.Minute
	case 3:
		return 30 * time.Minute
	case 4:
		return time.Hour
	case 5:
		return 2 * time.Hour
	}
	return 3 * time.Hour
}
