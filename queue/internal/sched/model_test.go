package sched

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A model is a Schedule made of slices, in which everything is looked for.
type model struct {
	now   int64
	seq   int
	items map[Slot]*modelItem
	lines map[string]*modelLine
	ring  []string
	had   map[string]uint64
	order int
}

type modelItem struct {
	n      Item
	state  State
	due    int64
	seq    int
	held   bool // goes back to Held
	lapsed bool
	listed int // the order in which it became ready
}

type modelLine struct {
	items  int
	weight uint64
	had    uint64
	seq    int
	in     bool // among the turns
}

func lineName(r string, t string) string { return r + "/" + t }

func (m *model) add(i Slot, n Item) {
	it := &modelItem{n: n}
	m.items[i] = it
	m.join(it, n.Weight, 1)
}

func (m *model) join(it *modelItem, weight int, otherwise uint64) {
	k := lineName(it.n.Route, it.n.Tenant)
	l := m.lines[k]
	if l == nil {
		l = &modelLine{weight: otherwise}
		m.lines[k] = l
	}
	l.items++
	if weight > 0 {
		l.weight = uint64(weight)
	}
}

func (m *model) part(it *modelItem) {
	k := lineName(it.n.Route, it.n.Tenant)
	l := m.lines[k]
	if l.items--; l.items == 0 {
		delete(m.lines, k)
	}
	for k := range m.lines {
		if len(k) > len(it.n.Route) && k[:len(it.n.Route)+1] == it.n.Route+"/" {
			return
		}
	}
	delete(m.had, it.n.Route)
}

func (m *model) ready(r string, tenant string) (list []*modelItem) {
	for _, it := range m.items {
		if it.state == Ready && it.n.Route == r && it.n.Tenant == tenant {
			list = append(list, it)
		}
	}
	slices.SortFunc(list, func(a, b *modelItem) int {
		if a.n.Priority != b.n.Priority {
			return b.n.Priority - a.n.Priority
		}
		return a.listed - b.listed
	})
	return list
}

// turns returns the tenants of a route that have something ready, in the order of their turns.
func (m *model) turns(r string) (list []string) {
	for _, t := range tenants {
		if l := m.lines[lineName(r, t)]; l != nil && l.in {
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b string) int {
		x, y := m.lines[lineName(r, a)], m.lines[lineName(r, b)]
		if x.had != y.had {
			if x.had < y.had {
				return -1
			}
			return 1
		}
		return x.seq - y.seq
	})
	return list
}

func (m *model) list(it *modelItem) {
	it.state = Ready
	m.order++
	it.listed = m.order
	l := m.lines[lineName(it.n.Route, it.n.Tenant)]
	if l.in {
		return
	}
	from := m.had[it.n.Route]
	turns := m.turns(it.n.Route)
	if len(turns) > 0 {
		from = m.lines[lineName(it.n.Route, turns[0])].had
	} else {
		m.ring = append(m.ring, it.n.Route)
	}
	l.had = max(l.had, from)
	m.order++
	l.seq, l.in = m.order, true
}

func (m *model) advance(now int64) {
	m.now = max(m.now, now)
	var due []*modelItem
	for _, it := range m.items {
		if (it.state == Waiting || it.state == Leased) && it.due <= m.now {
			due = append(due, it)
		}
	}
	slices.SortFunc(due, func(a, b *modelItem) int {
		if a.due != b.due {
			return int(a.due - b.due)
		}
		return a.seq - b.seq
	})
	for _, it := range due {
		if it.held {
			it.state, it.held = Held, false
			continue
		}
		it.lapsed = it.lapsed || it.state == Leased
		m.list(it)
	}
}

// take makes an item Busy.
func (m *model) take(it *modelItem) {
	was := it.state
	it.state = Busy
	if was != Ready {
		return
	}
	r := it.n.Route
	if len(m.ready(r, it.n.Tenant)) == 0 {
		m.lines[lineName(r, it.n.Tenant)].in = false
	}
	if len(m.turns(r)) == 0 {
		m.ring = slices.DeleteFunc(m.ring, func(x string) bool { return x == r })
	}
}

func (m *model) place(it *modelItem, st State, due int64) {
	m.seq++
	it.state, it.due, it.seq = st, max(due, m.now), m.seq
	if st == Waiting || due <= m.now {
		m.advance(m.now)
	}
}

func (m *model) lease(n int, until int64, exclude []string) (got []*modelItem) {
	for i := 0; n > 0 && i < len(m.ring); {
		r := m.ring[i]
		if slices.Contains(exclude, r) {
			i++
			continue
		}
		tenant := m.turns(r)[0]
		l := m.lines[lineName(r, tenant)]
		it := m.ready(r, tenant)[0]
		m.had[r] = l.had
		l.had += uint64(max(1, min((it.n.Size+CostUnit-1)/CostUnit, MaxCost))) * unit / l.weight
		m.order++
		l.seq = m.order
		// What was passed over stays in front; what was served goes to the back.
		m.ring = append(slices.Delete(m.ring, i, i+1), r)
		m.take(it)
		it.lapsed, it.held = false, false
		m.place(it, Leased, until)
		got = append(got, it)
		n--
	}
	return got
}

var (
	routes  = []string{"a", "b", "c", "d"}
	tenants = []string{"", "shop", "news"}
)

func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var s Schedule
		m := &model{items: map[Slot]*modelItem{}, lines: map[string]*modelLine{}, had: map[string]uint64{}}
		s.Advance(0)
		some := func(rt *rapid.T) (Slot, *modelItem) {
			if len(m.items) == 0 {
				rt.Skip("empty")
			}
			var list []Slot
			for i := range m.items {
				list = append(list, i)
			}
			slices.Sort(list)
			i := rapid.SampledFrom(list).Draw(rt, "slot")
			return i, m.items[i]
		}
		delay := func(rt *rapid.T) int64 { return rapid.SampledFrom([]int64{-5, 0, 0, 1, 2, 10, 100}).Draw(rt, "delay") }
		add := func(rt *rapid.T) {
			n := Item{
				Route: rapid.SampledFrom(routes).Draw(rt, "route"), Tenant: rapid.SampledFrom(tenants).Draw(rt, "tenant"),
				Priority: rapid.SampledFrom([]int{0, 0, 0, 9, -9, 3}).Draw(rt, "priority"), Size: rapid.SampledFrom([]int64{0, 1, CostUnit, CostUnit + 1, 1 << 40}).Draw(rt, "size"),
				Weight: rapid.SampledFrom([]int{0, 0, 1, 3, 1000}).Draw(rt, "weight"),
			}
			i := s.Add(n)
			if i == 0 || m.items[i] != nil {
				rt.Fatalf("Add returned %d, which is in use", i)
			}
			m.add(i, n)
			if rapid.IntRange(0, 9).Draw(rt, "hold") == 0 {
				s.Hold(i)
				m.items[i].state = Held
				return
			}
			d := m.now + delay(rt)
			s.Wait(i, d)
			m.place(m.items[i], Waiting, d)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"add": add, "add2": add, "add3": add,
			"advance": func(rt *rapid.T) {
				now := m.now + delay(rt)
				s.Advance(now)
				m.advance(now)
			},
			"lease": func(rt *rapid.T) {
				n := rapid.IntRange(1, 6).Draw(rt, "n")
				until := m.now + 1 + max(0, delay(rt))
				exclude := rapid.SliceOfN(rapid.SampledFrom(append(routes, "other")), 0, 3).Draw(rt, "exclude")
				has := s.HasReady(exclude)
				got := s.Lease(nil, n, until, exclude)
				want := m.lease(n, until, exclude)
				if len(got) != len(want) || has != (len(want) > 0) {
					rt.Fatalf("leased %d, want %d; HasReady %v", len(got), len(want), has)
				}
				for k, i := range got {
					if m.items[i] != want[k] {
						rt.Fatalf("leased %+v, want %+v", m.items[i], want[k])
					}
				}
			},
			"wait": func(rt *rapid.T) {
				i, it := some(rt)
				d := m.now + delay(rt)
				s.Wait(i, d)
				m.take(it)
				it.held, it.lapsed = false, false
				m.place(it, Waiting, d)
			},
			"lend": func(rt *rapid.T) {
				i, it := some(rt)
				d := m.now + 1 + max(0, delay(rt))
				s.Lend(i, d)
				it.held = it.held || it.state == Held
				m.take(it)
				m.place(it, Leased, d)
			},
			"hold": func(rt *rapid.T) {
				i, it := some(rt)
				s.Hold(i)
				m.take(it)
				it.state, it.held, it.lapsed = Held, false, false
			},
			"reserve": func(rt *rapid.T) {
				i, it := some(rt)
				s.Reserve(i)
				m.take(it)
			},
			"move": func(rt *rapid.T) {
				i, it := some(rt)
				to := rapid.SampledFrom(routes).Draw(rt, "to")
				s.Move(i, to)
				if to == it.n.Route {
					return
				}
				st := it.state
				m.take(it)
				weight := m.lines[lineName(it.n.Route, it.n.Tenant)].weight
				old := *it
				it.n.Route = to
				m.join(it, 0, weight)
				m.part(&old)
				switch st {
				case Waiting, Ready:
					m.place(it, Waiting, it.due)
				case Leased:
					m.place(it, Leased, it.due)
				case Held:
					it.state = Held
				}
			},
			"remove": func(rt *rapid.T) {
				i, it := some(rt)
				s.Remove(i)
				m.take(it)
				delete(m.items, i)
				m.part(it)
			},
			"": func(rt *rapid.T) {
				var want Counts
				byLine := map[string]Counts{}
				next, ok := int64(0), false
				for i, it := range m.items {
					want[it.state]++
					k := lineName(it.n.Route, it.n.Tenant)
					c := byLine[k]
					c[it.state]++
					byLine[k] = c
					if s.State(i) != it.state || s.Route(i) != it.n.Route || s.Tenant(i) != it.n.Tenant || s.Priority(i) != it.n.Priority ||
						s.FromHold(i) != it.held || s.Lapsed(i) != it.lapsed || it.state != Held && it.state != Busy && s.Due(i) != it.due {
						rt.Fatalf("item %d is %v at %s for %q, due at %d, held %v, lapsed %v; want %+v", i, s.State(i), s.Route(i), s.Tenant(i), s.Due(i), s.FromHold(i), s.Lapsed(i), it)
					}
					if (it.state == Waiting || it.state == Leased) && (!ok || it.due < next) {
						next, ok = it.due, true
					}
				}
				if got := s.Counts(); got != want || s.Len() != len(m.items) {
					rt.Fatalf("counts %v, want %v", got, want)
				}
				if due, has := s.Next(); has != ok || due != next {
					rt.Fatalf("Next is %d, %v, want %d, %v", due, has, next, ok)
				}
				for _, l := range s.Lines() {
					if l.Counts != byLine[lineName(l.Route, l.Tenant)] {
						rt.Fatalf("line %+v, want %v", l, byLine[lineName(l.Route, l.Tenant)])
					}
					delete(byLine, lineName(l.Route, l.Tenant))
				}
				if len(byLine) != 0 {
					rt.Fatalf("Lines lacks %v", byLine)
				}
				if err := s.check(); err != nil {
					rt.Fatal(err)
				}
			},
		})
	})
}

// check finds what is inconsistent in a Schedule.
func (s *Schedule) check() error {
	inHeap, inList := 0, 0
	for bi, b := range s.bands.All() {
		n := 0
		var walk func(i, up Slot) (int, error)
		walk = func(i, up Slot) (int, error) {
			if i == 0 {
				return 0, nil
			}
			n++
			it := s.items.At(i)
			if it.up != up || it.band != bi || up != 0 && s.less(it, s.items.At(up)) || it.state() != Waiting && it.state() != Leased {
				return 0, fmt.Errorf("heap of band %d is broken at %d", bi, i)
			}
			l, err := walk(it.left, i)
			if err != nil {
				return 0, err
			}
			r, err := walk(it.right, i)
			if err != nil {
				return 0, err
			}
			if l < r || int(it.rank) != r+1 {
				return 0, fmt.Errorf("ranks of %d: %d, %d, %d", i, l, r, it.rank)
			}
			return r + 1, nil
		}
		if _, err := walk(b.root, 0); err != nil {
			return err
		}
		inHeap += n
		for i, prev := b.first, Slot(0); i != 0; i = s.items.At(i).right {
			it := s.items.At(i)
			if it.up != prev || it.state() != Ready || it.band != bi {
				return fmt.Errorf("list of band %d is broken at %d", bi, i)
			}
			prev = i
			n++
			inList++
		}
		if n > int(b.items) || b.items == 0 || b.behind && b.root == 0 && s.behind == 0 {
			return fmt.Errorf("band %d has %d of %d items", bi, n, b.items)
		}
		if (b.at != 0) != (b.root != 0 && !b.behind) || b.at != 0 && s.clock.v.at(int(b.at)-1).band != bi {
			return fmt.Errorf("band %d is at %d of the clock", bi, b.at)
		}
		if b.at != 0 && s.clock.v.at(int(b.at)-1).due != s.items.At(b.root).due {
			return fmt.Errorf("the clock has band %d at another time", bi)
		}
	}
	for i := 1; i < s.clock.v.n; i++ {
		if s.clock.less(i, (i-1)/2) {
			return fmt.Errorf("the clock is no heap at %d", i)
		}
	}
	if int64(inHeap) != s.total[Waiting]+s.total[Leased] || int64(inList) != s.total[Ready] {
		return fmt.Errorf("%d in heaps and %d in lists of %v", inHeap, inList, s.total)
	}
	active := 0
	for ri, r := range s.routes.All() {
		if (len(r.turns) > 0) != (r.next != 0) {
			return fmt.Errorf("route %s is in the ring: %v", r.name, r.next != 0)
		}
		if r.next != 0 {
			active++
			if s.routes.At(r.next).prev != ri {
				return fmt.Errorf("the ring is broken at %s", r.name)
			}
		}
		for k, li := range r.turns {
			l := s.lines.At(li)
			if int(l.at) != k+1 || l.ready == 0 || k > 0 && s.beforeTurn(li, r.turns[(k-1)/2]) {
				return fmt.Errorf("turns of route %s are broken at %d", r.name, k)
			}
		}
	}
	if active != s.active || (s.turn != 0) != (active > 0) {
		return fmt.Errorf("%d of %d routes are in the ring", active, s.active)
	}
	if len(s.routeOf) != s.routes.Len() || len(s.lineOf) != s.lines.Len() {
		return fmt.Errorf("%d names of %d routes, %d of %d lines", len(s.routeOf), s.routes.Len(), len(s.lineOf), s.lines.Len())
	}
	return nil
}
