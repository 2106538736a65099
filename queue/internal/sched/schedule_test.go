package sched

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"
)

func (s *Schedule) addReady(n Item) Slot {
	i := s.Add(n)
	s.Wait(i, math.MinInt64)
	return i
}

func leaseOne(t testing.TB, s *Schedule, exclude ...string) Slot {
	t.Helper()
	l := s.Lease(nil, 1, 1<<60, exclude)
	if len(l) != 1 {
		t.Fatalf("%d leases, want 1", len(l))
	}
	return l[0]
}

// Tenants get turns in proportion to their weights, in every stretch of a few rounds.
func TestWeights(t *testing.T) {
	var s Schedule
	s.Advance(0)
	weights := map[string]int{"a": 1, "b": 3, "c": 6}
	for tenant, w := range weights {
		for range 1000 {
			s.addReady(Item{Route: "r", Tenant: tenant, Weight: w})
		}
	}
	got := map[string]int{}
	for k := 1; k <= 1500; k++ {
		got[s.Tenant(leaseOne(t, &s))]++
		for tenant, w := range weights {
			if want := float64(k) * float64(w) / 10; math.Abs(float64(got[tenant])-want) > 2 {
				t.Fatalf("after %d turns %q has had %d, want %.1f", k, tenant, got[tenant], want)
			}
		}
	}
	// The latest weight counts.
	s.addReady(Item{Route: "r", Tenant: "a", Weight: 6})
	clear(got)
	for range 130 {
		got[s.Tenant(leaseOne(t, &s))]++
	}
	if a, c := got["a"], got["c"]; a < c-2 || a > c+2 {
		t.Errorf("with the same weight now, a got %d turns and c %d", a, c)
	}
}

// For tenants that always have something to send, what they have had divided by their weights differs by no
// more than one item of each (Goyal, Vin and Cheng, "Start-time fair queuing", 1996, theorem 1).
func TestWeightedCosts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		var s Schedule
		s.Advance(0)
		const n = 5
		var weight, most [n]float64
		var had [n]float64
		cost := map[Slot]int{}
		add := func(k int) {
			c := 1 + r.IntN(20)
			if r.IntN(50) == 0 {
				c = MaxCost
			}
			most[k] = max(most[k], float64(c))
			cost[s.addReady(Item{Route: "r", Tenant: fmt.Sprint(k), Weight: int(weight[k]), Size: int64(c) * CostUnit})] = c
		}
		for k := range n {
			weight[k] = float64(1 + r.IntN(20))
			for range 5 {
				add(k)
			}
		}
		for range 2000 {
			i := leaseOne(t, &s)
			var k int
			fmt.Sscan(s.Tenant(i), &k)
			had[k] += float64(cost[i])
			s.Remove(i)
			add(k)
			for a := range n {
				for b := range n {
					if d := had[a]/weight[a] - had[b]/weight[b]; d > most[a]/weight[a]+most[b]/weight[b]+1e-2 {
						t.Fatalf("tenants %d and %d have had %v and %v, with weights %v and %v", a, b, had[a], had[b], weight[a], weight[b])
					}
				}
			}
		}
	}
}

// A tenant with a large backlog delays another's single item by one, whenever that comes, and
// one that comes again and again with a single item does not starve the one with the backlog.
func TestHog(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 1000
	}
	for _, size := range []int64{0, 100 << 20} {
		var s Schedule
		s.Advance(0)
		for range n {
			s.addReady(Item{Route: "r", Tenant: "hog", Size: size})
		}
		hog := 0
		for k := range 100 {
			for range k {
				s.Lease(nil, 1, 1<<60, nil)
			}
			s.addReady(Item{Route: "r", Tenant: "shop"})
			waited := 0
			for s.Tenant(leaseOne(t, &s)) != "shop" {
				waited++
			}
			if waited > 1 {
				t.Fatalf("size %d: behind a hog, an item waited for %d others", size, waited)
			}
		}
		s.addReady(Item{Route: "r", Tenant: "shop"})
		for range 100 { // never more than one at a time
			i := leaseOne(t, &s)
			if s.Tenant(i) == "hog" {
				hog++
				continue
			}
			s.Remove(i)
			s.addReady(Item{Route: "r", Tenant: "shop"})
		}
		if want := 40; size == 0 && hog < want {
			t.Errorf("of 100 turns the tenant with the backlog got %d, want %d at least", hog, want)
		}
	}
}

func TestPriority(t *testing.T) {
	var s Schedule
	s.Advance(0)
	want := map[Slot]int{}
	for k, p := range []int{0, -9, 9, 0, 4, 9, -9, 4} {
		want[s.addReady(Item{Route: "r", Priority: p})] = k
	}
	var got []int
	for range want {
		got = append(got, want[leaseOne(t, &s)])
	}
	if fmt.Sprint(got) != "[2 5 4 7 0 3 1 6]" {
		t.Errorf("taken in the order %v", got)
	}
	// Another tenant's priority is nobody else's matter.
	for range 10 {
		s.addReady(Item{Route: "r", Tenant: "a", Priority: 9})
		s.addReady(Item{Route: "r", Tenant: "b", Priority: -9})
	}
	n := map[string]int{}
	for range 10 {
		n[s.Tenant(leaseOne(t, &s))]++
	}
	if n["a"] != 5 || n["b"] != 5 {
		t.Errorf("turns %v, want five of each", n)
	}
}

// A route that is excluded keeps its turn, and is looked at once.
func TestExclude(t *testing.T) {
	var s Schedule
	s.Advance(0)
	for k := range 5 {
		for _, r := range []string{"a", "b", "c"} {
			_ = k
			s.addReady(Item{Route: r})
		}
	}
	var got string
	for _, exclude := range [][]string{{"a"}, {"a"}, nil, {"b", "b", "x"}, nil, {"a", "b", "c"}} {
		for _, i := range s.Lease(nil, 1, 1<<60, exclude) {
			got += s.Route(i)
		}
	}
	if got != "bcaab" && got != "bcaba" && got != "bcacb" {
		t.Errorf("routes took turns as %s", got)
	}
	if s.HasReady([]string{"a", "b", "c", "c"}) || !s.HasReady([]string{"a", "a", "b"}) {
		t.Error("HasReady is wrong")
	}
}

// Everything becomes due at one instant: nothing takes long, counts are right at once, an item that is put now
// waits for nobody, and in the end all are leased in order.
func TestBurst(t *testing.T) {
	n := 30_000
	if os.Getenv("MAILSPINE_SOAK") == "1" {
		n = 1_000_000
	}
	for _, routes := range []int{1, 1000, n} {
		var s Schedule
		s.Advance(0)
		order := map[Slot]int{}
		for k := range n {
			i := s.Add(Item{Route: fmt.Sprint("r", k%routes), Tenant: "hog"})
			order[i] = k
			s.Wait(i, 1000)
		}
		var slow time.Duration
		timed := func(f func()) {
			start := time.Now()
			f()
			slow = max(slow, time.Since(start))
		}
		timed(func() { s.Advance(1000) })
		if !s.Behind() {
			t.Fatal("all were made ready at once")
		}
		if c := s.Counts(); c[Ready] != int64(n) || c[Waiting] != 0 {
			t.Fatalf("counts %v, want %d ready", c, n)
		}
		sum := int64(0)
		for _, l := range s.Lines() {
			sum += l.Counts[Ready]
			if l.Counts[Waiting] != 0 {
				t.Fatalf("line %+v", l)
			}
		}
		if sum != int64(n) {
			t.Fatalf("lines have %d ready, want %d", sum, n)
		}
		// Another tenant's item on a route that is behind, with others that wait there.
		old := s.Add(Item{Route: "r0", Tenant: "shop"})
		s.Wait(old, 5000)
		late := s.Add(Item{Route: "r0", Tenant: "shop"})
		s.Wait(late, 0)
		turns := 0
		last := map[string]int{}
		for got := 0; got < n+1; {
			var l []Slot
			timed(func() {
				s.Advance(1000)
				l = s.Lease(nil, 20, 1<<60, nil)
			})
			if len(l) == 0 {
				t.Fatalf("nothing is leased after %d", got)
			}
			for _, i := range l {
				if i == late {
					turns = got
					continue
				}
				if k := order[i]; k < last[s.Route(i)] {
					t.Fatalf("item %d after %d", k, last[s.Route(i)])
				} else {
					last[s.Route(i)] = k
				}
			}
			got += len(l)
		}
		// One for each route that was found before: a call finds a few hundred.
		if turns > 2*stepBands {
			t.Errorf("%d routes: the late item came after %d others", routes, turns)
		}
		if s.Behind() || s.total[Ready] != 0 {
			t.Error("something is left")
		}
		t.Logf("%d items on %d routes: the slowest call took %v, the late item came after %d", n, routes, slow, turns)
		if slow > 100*time.Millisecond { // 5 ms, on a machine that has time
			t.Errorf("a call took %v", slow)
		}
	}
}

// octets returns how much memory what f makes takes, and keeps it.
func octets(f func() any) int64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	x := f()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(x)
	return int64(after.HeapAlloc) - int64(before.HeapAlloc)
}

func TestMemory(t *testing.T) {
	const n = 100_000
	per := func(routes int) float64 {
		return float64(octets(func() any {
			var s Schedule
			for k := range n {
				i := s.Add(Item{Route: fmt.Sprintf("domain%d.example", k%routes), Tenant: "tenant"})
				s.Wait(i, int64(k))
			}
			return &s
		})) / n
	}
	few, many := per(1000), per(n)
	index := float64(octets(func() any {
		x := &Index{Hash: func(i Slot) uint64 { return uint64(i) * 0x9e3779b97f4a7c15 }}
		for i := range Slot(n) {
			x.Add(i + 1)
		}
		return x
	})) / n
	t.Logf("octets an item: %.1f on 1,000 routes, %.1f with a route for each; in an Index %.1f", few, many, index)
	if few > 40 {
		t.Errorf("%.1f octets an item, want 40", few)
	}
	if many > 450 {
		t.Errorf("%.1f octets an item with a route of its own, want 450", many)
	}
	if index > 14 {
		t.Errorf("%.1f octets an item in an Index, want 14", index)
	}
	// It is given back.
	var s Schedule
	used := octets(func() any {
		var list []Slot
		for k := range n {
			i := s.Add(Item{Route: "r"})
			s.Wait(i, int64(k))
			list = append(list, i)
		}
		for _, i := range list {
			s.Remove(i)
		}
		return nil
	})
	runtime.KeepAlive(&s)
	if used > 4*n {
		t.Errorf("%d octets are kept for nothing", used)
	}
}
