package mta

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A window's way through what happens: "+" a delivery worked, "-" one failed, "3" three others were open when one was turned
// away, "t" ten minutes pass, "." the window is not used by a delivery that works.
func TestWindow(t *testing.T) {
	for _, tt := range []struct {
		name         string
		initial, max int
		events, want string // places after each event
	}{
		{"grows by one for each window full", 2, 4, "++ +++ ++++", "23 334 4444"},
		{"shrinks in the same way", 3, 9, "+--+--+--", "333333332"},
		{"up and down balance", 3, 9, "+-+-+-+-+-", "3333333333"},
		{"a window full of failures in a row", 5, 9, "----- + ++", "55551 2 23"},
		{"stays at one", 1, 9, "---", "111"},
		{"one success breaks the row", 3, 9, "--+--+", "333322"},
		{"a ceiling", 5, 9, "3 +++ ++++ t +++ t ++++", "3 333 3333 3 344 4 4455"},
		{"a ceiling goes only down while it lasts", 9, 9, "5 7 2", "5 5 2"},
		{"a ceiling is at least one", 5, 9, "1 + t +", "1 1 1 2"},
		{"alone it was not because of the number", 5, 9, "0", "5"},
		{"a ceiling does not make it larger", 2, 20, "8", "2"},
		{"a ceiling ends at the maximum", 4, 5, "3 tt ++++", "3 33 3344"},
		{"what is not used does not grow", 4, 9, "........ +...+++", "44444444 4444445"},
		{"a maximum of one", 1, 1, "++-+3t+", "1111111"},
	} {
		w, now := newWindow(tt.initial, tt.max), time.Unix(1e9, 0)
		var got strings.Builder
		for _, e := range tt.events {
			switch e {
			case ' ':
				got.WriteByte(' ')
				continue
			case '+':
				w.worked(now, w.places(now))
			case '.':
				w.worked(now, 1)
			case '-':
				w.failed(now)
			case 't':
				now = now.Add(ceilingStep)
			default:
				w.pushed(now, int(e-'0'))
			}
			fmt.Fprint(&got, w.places(now))
		}
		if got.String() != tt.want {
			t.Errorf("%s: %s makes %s, want %s", tt.name, tt.events, &got, tt.want)
		}
	}
}

// What holds for every window, whatever happens to it and whatever the clock does.
func TestWindowModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		max := rapid.IntRange(1, 30).Draw(rt, "max")
		w := newWindow(rapid.IntRange(1, 40).Draw(rt, "initial"), max)
		now := time.Unix(1e9, 0)
		type ceiling struct {
			n  int
			at time.Time
		}
		var told []ceiling
		worked, row := 0, 0 // since the last growth; failures in a row
		for range rapid.IntRange(1, 200).Draw(rt, "events") {
			before := w.places(now)
			switch rapid.SampledFrom([]string{"worked", "worked", "worked", "failed", "failed", "pushed", "later", "earlier"}).Draw(rt, "event") {
			case "worked":
				busy := rapid.IntRange(1, before).Draw(rt, "busy")
				w.worked(now, busy)
				worked, row = worked+1, 0
				switch after := w.places(now); {
				case after < before || after > before+1:
					rt.Fatalf("a success: %d becomes %d", before, after)
				case after > before && (2*busy < before || worked < before):
					rt.Fatalf("%d grew after %d successes, with %d under way", before, worked, busy)
				case after > before:
					worked = 0
				}
			case "failed":
				w.failed(now)
				row++
				after := w.places(now)
				if after > before || row >= before && after != 1 {
					rt.Fatalf("failure %d in a row: %d becomes %d", row, before, after)
				}
				if after == 1 && row >= before {
					row = 0
				}
			case "pushed":
				n := rapid.IntRange(0, 30).Draw(rt, "others")
				w.pushed(now, n)
				if after := w.places(now); n > 0 && after > n || after > before || n == 0 && after != before {
					rt.Fatalf("turned away while %d others were open: %d becomes %d", n, before, after)
				}
				if n > 0 {
					told = append(told, ceiling{n, now})
				}
			case "later":
				now = now.Add(time.Duration(rapid.IntRange(0, 40).Draw(rt, "minutes")) * time.Minute)
			case "earlier":
				now = now.Add(-time.Duration(rapid.IntRange(0, 40).Draw(rt, "minutes")) * time.Minute)
			}
			n := w.places(now)
			if n < 1 || n > max {
				rt.Fatalf("%d places, of at most %d", n, max)
			}
			// With a clock that goes forth only the last word of each ceiling counts.
			if len(told) > 0 {
				last := told[len(told)-1]
				if d := now.Sub(last.at); d >= 0 && n > last.n+int(d/ceilingStep) && last.n < max {
					rt.Fatalf("%d places, %v after there was no room for more than %d", n, d, last.n)
				}
			}
		}
	})
}

// A bucket never grants more in any span of time than its burst and what its rate adds, and never keeps anybody longer than that takes.
func TestBucketModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rate := rapid.Float64Range(0.01, 100).Draw(rt, "rate")
		burst := rapid.IntRange(1, 20).Draw(rt, "burst")
		b := newBucket(rate, burst)
		start := time.Unix(1e9, 0)
		now, last := start, start
		var turns []float64 // seconds since start
		for range rapid.IntRange(1, 100).Draw(rt, "takes") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(rt, "ms")) * time.Millisecond)
			turn := now.Add(b.wait(now))
			b.take(now)
			if turn.Before(last.Add(-time.Microsecond)) {
				rt.Fatalf("a turn at %v, after one at %v", turn, last)
			}
			last = turn
			at := turn.Sub(start).Seconds()
			turns = append(turns, at)
			for i, from := range turns {
				if n := len(turns) - i; float64(n) > float64(burst)+(at-from)*rate+1e-3*rate+1e-6 {
					rt.Fatalf("%d turns in %v s, at %v a second and %d at once", n, at-from, rate, burst)
				}
			}
		}
		// After a long pause there is room for the burst.
		now = last.Add(time.Duration(float64(burst)/rate*float64(time.Second)) + time.Second)
		for i := range burst {
			if w := b.wait(now); w != 0 {
				rt.Fatalf("turn %d of %d after a pause waits for %v", i+1, burst, w)
			}
			b.take(now)
		}
	})
	var none bucket
	for range 1000 {
		if w := none.wait(time.Now()); w != 0 {
			t.Fatal("no rate, and a wait of", w)
		}
		none.take(time.Now())
	}
	slow := newBucket(1e-12, 0)
	slow.take(time.Unix(1, 0))
	if w := slow.wait(time.Unix(1, 0)); w <= 0 || w > 24*time.Hour {
		t.Errorf("a wait of %v", w)
	}
}
