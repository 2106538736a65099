package queue

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"pgregory.net/rapid"
)

// What room says is what a look at everything would say, whatever happened before: no route gets more than
// its share, every place that may be filled is, and a route is left out exactly while it is held, for a quarter of an hour at a stretch.
func TestPlacesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all, each := rapid.IntRange(1, 12).Draw(t, "concurrency"), rapid.IntRange(1, 6).Draw(t, "per route")
		p := newPlaces(all, each)
		now := time.Unix(0, 0)
		running := map[Route][]*delivery{}
		type model struct{ end, out time.Time } // of the hold, and of being left out at the latest
		held := map[Route]model{}
		total := 0
		routes := []Route{"a", "b", "c", "d"}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			r := rapid.SampledFrom(routes).Draw(t, "route")
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(20*time.Minute)).Draw(t, "wait")))
			case 1: // as many as the room is for, all of a route that is not left out
				n, exclude, _ := p.room(now)
				if slices.Contains(exclude, r) {
					continue
				}
				for range n {
					d := newDelivery(nil, Lease{Route: r, Envelope: &mailspine.Envelope{}}, now)
					p.start(d)
					running[r] = append(running[r], d)
					total++
				}
			case 2:
				if l := running[r]; len(l) > 0 {
					p.stop(l[0])
					p.stop(l[0]) // twice is once
					running[r] = l[1:]
					total--
				}
			case 3:
				until := now.Add(time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "hold")))
				p.hold(r, now, until)
				m := held[r]
				m.end = until
				held[r] = model{end: until, out: now.Add(lookEvery)}
			case 4:
				p.pass(r, now)
				m := held[r]
				m.out = now.Add(lookEvery)
				held[r] = m
			case 5:
				p.looked(now)
				for r, m := range held {
					held[r] = model{m.end, now.Add(lookEvery)}
				}
			}
			n, exclude, next := p.room(now)
			seen := map[Route]bool{}
			for _, x := range exclude {
				seen[x] = true
			}
			most := 0
			for r, l := range running {
				if len(l) > min(each, all) || total > all {
					t.Fatalf("%d of %s are running, %d of all; at most %d and %d", len(l), r, total, each, all)
				}
				if len(l) == min(each, all) && !seen[r] {
					t.Fatalf("%s has no place left, and is not left out", r)
				}
				if len(l) < min(each, all) {
					most = max(most, len(l))
				}
				m := held[r]
				if seen[r] && len(l) < min(each, all) && (!now.Before(m.end) || now.After(m.out)) {
					t.Fatalf("%s is left out at %v, and is held until %v, to be looked at at %v", r, now.Sub(time.Unix(0, 0)), m.end.Sub(time.Unix(0, 0)), m.out.Sub(time.Unix(0, 0)))
				}
			}
			if want := min(all-total, min(each, all)-most); n != want {
				t.Fatalf("room for %d, want %d: %d run, %d of a route", n, want, total, most)
			}
			if next < 0 || next > lookEvery {
				t.Fatalf("the next hold ends in %v", next)
			}
		}
	})
}

// What is held beyond maxHolds is not remembered, and what is over makes room.
func TestPlacesManyHolds(t *testing.T) {
	p := newPlaces(10, 5)
	now := time.Unix(0, 0)
	for i := range maxHolds + 10 {
		p.hold(Route(fmt.Sprint(i)), now, now.Add(time.Minute))
	}
	if _, exclude, _ := p.room(now); len(exclude) != maxHolds || p.held(now) != maxHolds {
		t.Errorf("%d are left out, %d held; want %d", len(exclude), p.held(now), maxHolds)
	}
	now = now.Add(2 * time.Minute)
	p.hold("new", now, now.Add(time.Minute))
	if _, exclude, next := p.room(now); len(exclude) != 1 || next != time.Minute || p.held(now) != 1 {
		t.Errorf("left out: %v, until %v", exclude, next)
	}
}
