package mta

import "time"

// ceilingStep is for how long a ceiling of a window stays where it is, before it is raised by one, and so on.
const ceilingStep = 10 * time.Minute

// A window says how many deliveries may be under way to a site at once. It is a function of its events and their times, and knows
// no clock.
//
// It is Postfix's published scheme (SCHEDULER_README) with feedback of 1/window: as many deliveries that worked as the window is large
// make it larger by one, as many that found no server make it smaller by one, and so many of them in a row make it 1. In
// addition a server that turns away a connection while others are open has told how many it takes: that
// becomes a ceiling, so that the window does not run into it again and again. And a window that is not used
// does not grow.
type window struct {
	initial, max int

	size    int       // 1 to max
	credit  int       // -size to size, both exclusive: size of them are one more, or less
	row     int       // deliveries in a row that found no server
	ceiling int       // 0: none
	since   time.Time // when it was set
}

func newWindow(initial, max int) window {
	initial = min(initial, max)
	return window{initial: initial, max: max, size: initial}
}

// off reports whether there is no window: it is as large as can be, whatever happens.
func (w *window) off() bool { return w.max >= unlimitedSite }

// places is how many deliveries may be under way.
func (w *window) places(now time.Time) int {
	if c := w.top(now); c > 0 {
		return min(w.size, c)
	}
	return w.size
}

// top is the ceiling as it is by now; 0: there is none. A clock that goes back does not matter.
func (w *window) top(now time.Time) int {
	if w.ceiling == 0 {
		return 0
	}
	raised := now.Sub(w.since) / ceilingStep
	if raised >= time.Duration(w.max-w.ceiling) {
		return 0
	}
	return w.ceiling + max(0, int(raised))
}

// worked is told of a delivery that found a server, while so many, itself included, were under way or waited.
func (w *window) worked(now time.Time, busy int) {
	w.row = 0
	n := w.places(now)
	if 2*busy < n {
		return // nothing is learned about more than that
	}
	w.size = n // what is over a ceiling was never tried
	w.credit++
	if w.credit < w.size {
		return
	}
	w.credit = 0
	if top := w.top(now); w.size < w.max && (top == 0 || w.size < top) {
		w.size++
	}
}

// failed is told of a delivery that found none.
func (w *window) failed(now time.Time) {
	w.size = w.places(now)
	w.row++
	if w.off() {
		return
	}
	if w.row >= w.size {
		w.size, w.credit, w.row = 1, 0, 0
		return
	}
	w.credit--
	if w.credit <= -w.size {
		w.size, w.credit = max(1, w.size-1), 0
	}
}

// pushed is told that the site turned away a connection while so many others were open.
func (w *window) pushed(now time.Time, others int) {
	if others < 1 || w.off() {
		return // without others it was not because of their number
	}
	c := min(others, w.max)
	if top := w.top(now); top > 0 {
		c = min(c, top)
	}
	w.ceiling, w.since = c, now
	if w.size > c {
		w.size, w.credit = c, 0
	}
}

// A bucket bounds a rate: burst at once, and rate a second in the long run. Whoever comes takes his turn at once, and is told how long it
// is until then, so turns are in order. It knows no clock either.
type bucket struct {
	rate  float64 // a second; 0: no bound
	burst float64 // at least 1

	left float64 // less than 0: turns that were given in advance
	at   time.Time
}

func newBucket(rate float64, burst int) bucket {
	b := bucket{rate: max(rate, 0), burst: float64(burst)}
	if b.burst < 1 {
		b.burst = max(1, b.rate)
	}
	b.left = b.burst
	return b
}

// wait is how long it is until the next turn.
func (b *bucket) wait(now time.Time) time.Duration {
	if b.rate == 0 {
		return 0
	}
	left := b.have(now)
	if left >= 1 {
		return 0
	}
	// A rate of one in a century is still a time.
	return time.Duration(min((1-left)/b.rate, (24*time.Hour).Seconds()) * float64(time.Second))
}

// take takes the next turn. back is for one that came to nothing.
func (b *bucket) take(now time.Time) {
	if b.rate > 0 {
		b.left, b.at = b.have(now)-1, now
	}
}

func (b *bucket) back() { b.left = min(b.left+1, b.burst) }

func (b *bucket) have(now time.Time) float64 {
	if b.at.IsZero() {
		return b.left
	}
	return min(b.burst, b.left+max(0, now.Sub(b.at).Seconds())*b.rate)
}
