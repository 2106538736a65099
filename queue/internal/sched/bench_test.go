package sched

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// filled returns a schedule with n items that are deferred, on n/100 routes.
func filled(n int) (*Schedule, []Slot) {
	s := new(Schedule)
	s.Advance(0)
	r := rand.New(rand.NewPCG(1, 1))
	var list []Slot
	for range n {
		i := s.Add(Item{Route: fmt.Sprintf("domain%d.example", r.IntN(n/100)), Tenant: fmt.Sprint(r.IntN(3))})
		s.Wait(i, 1e12+r.Int64N(1e12))
		list = append(list, i)
	}
	return s, list
}

var sizes = []int{1000, 1_000_000}

// An item goes through: put, leased, settled with a delay, and removed.
func BenchmarkItem(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, _ := filled(n)
			now := int64(0)
			var got []Slot
			for k := 0; b.Loop(); k++ {
				now++
				i := s.Add(Item{Route: "domain7.example", Tenant: "x"})
				s.Wait(i, now)
				s.Advance(now)
				got = s.Lease(got[:0], 1, now+3e11, nil)
				s.Reserve(got[0])
				s.Wait(got[0], now+1e12)
				s.Remove(got[0])
			}
		})
	}
}

// Time goes on, and items become due, are leased and deferred again.
func BenchmarkDeferred(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, _ := filled(n)
			var got []Slot
			r := rand.New(rand.NewPCG(1, 1))
			for b.Loop() {
				due, _ := s.Next()
				s.Advance(due)
				got = s.Lease(got[:0], 20, due+3e11, nil)
				for _, i := range got {
					s.Wait(i, due+1e12+r.Int64N(1e12))
				}
			}
		})
	}
}

func BenchmarkLeaseExcluding(b *testing.B) {
	s := new(Schedule)
	s.Advance(0)
	var exclude []string
	for k := range 100_000 {
		r := fmt.Sprintf("domain%d.example", k)
		if k%100 == 0 {
			exclude = append(exclude, r)
		}
		s.Wait(s.Add(Item{Route: r}), 0)
	}
	var got []Slot
	for b.Loop() {
		got = s.Lease(got[:0], 20, 10, exclude)
		for _, i := range got {
			s.Wait(i, 0)
		}
	}
}

func BenchmarkCounts(b *testing.B) {
	s, _ := filled(1_000_000)
	b.Run("caught up", func(b *testing.B) {
		for b.Loop() {
			s.Counts()
		}
	})
	s.Advance(2e12)
	b.Run("behind", func(b *testing.B) {
		for b.Loop() {
			s.Counts()
		}
	})
	b.Run("behind, by lines", func(b *testing.B) {
		for b.Loop() {
			s.Lines()
		}
	})
}
