package memqueue

import (
	"container/heap"
	"container/list"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

type state uint8

const (
	waiting state = iota // until due
	leased               // until due
	ready                // is due
	held                 // until released
	states  = iota
)

type item struct {
	id       queue.ItemID
	msg      *message
	route    queue.Route
	rcpts    []recipient // those that are open, by index
	attempts int
	epoch    uint64
	reason   string

	// These belong to schedule.
	state state
	due   time.Time
	seq   uint64 // orders what is due at the same time
	at    int    // in the heap
}

// open returns the envelope for the recipients that are open, and what is
// remembered of each; both are the caller's.
func (it *item) open() (*mailspine.Envelope, []queue.RecipientState) {
	index := make([]int, len(it.rcpts))
	states := make([]queue.RecipientState, len(it.rcpts))
	for i, r := range it.rcpts {
		index[i] = r.index
		states[i] = queue.RecipientState{Index: r.index, Last: keep(r.last), Warned: r.warned}
	}
	return it.msg.env.Subset(index).Clone(), states
}

// A schedule knows which items are due, and whose turn it is. Every item is in
// one of three places: the heap (waiting and leased), a lane (ready), or
// nowhere (held). It is guarded by the store's lock.
type schedule struct {
	clock dueHeap
	seq   uint64
	count [states]int

	ring   *list.List // of *lane: the routes with something ready, next first
	routes map[queue.Route]*list.Element
}

// A lane is one route's ready items.
type lane struct {
	route   queue.Route
	n       int
	ring    *list.List // of *line: its tenants with something ready, next first
	tenants map[string]*list.Element
}

// A line is one tenant's ready items of a route, in the order of their due times.
type line struct {
	tenant string
	items  []*item
}

func (s *schedule) init() {
	s.ring = list.New()
	s.routes = map[queue.Route]*list.Element{}
}

// wait puts an item that is in no place into the heap.
func (s *schedule) wait(it *item, due time.Time, st state) {
	s.seq++
	it.state, it.due, it.seq = st, due, s.seq
	s.count[st]++
	heap.Push(&s.clock, it)
}

// hold keeps an item that is in no place from becoming due.
func (s *schedule) hold(it *item) {
	it.state = held
	s.count[held]++
}

// remove takes an item out of the heap.
func (s *schedule) remove(it *item) {
	heap.Remove(&s.clock, it.at)
	s.count[it.state]--
}

// promote makes ready what is due: waiting items, and those whose lease ended.
func (s *schedule) promote(now time.Time) {
	for len(s.clock) > 0 && !s.clock[0].due.After(now) {
		it := heap.Pop(&s.clock).(*item)
		s.count[it.state]--
		it.state = ready
		s.count[ready]++
		e := s.routes[it.route]
		if e == nil {
			e = s.ring.PushBack(&lane{route: it.route, ring: list.New(), tenants: map[string]*list.Element{}})
			s.routes[it.route] = e
		}
		l := e.Value.(*lane)
		t := l.tenants[it.msg.env.Tenant]
		if t == nil {
			t = l.ring.PushBack(&line{tenant: it.msg.env.Tenant})
			l.tenants[it.msg.env.Tenant] = t
		}
		// The heap yields in the order of due times, and nothing becomes due
		// before what was promoted earlier: appending keeps the order.
		q := t.Value.(*line)
		q.items = append(q.items, it)
		l.n++
	}
}

// take removes up to n ready items, one of each route that is not excluded in
// turn. It visits each excluded route at most once.
func (s *schedule) take(n int, exclude []queue.Route) []*item {
	var skip map[queue.Route]bool
	if len(exclude) > 0 {
		skip = make(map[queue.Route]bool, len(exclude))
		for _, r := range exclude {
			skip[r] = true
		}
	}
	var out []*item
	for e := s.ring.Front(); e != nil && len(out) < n; {
		l := e.Value.(*lane)
		next := e.Next()
		if !skip[l.route] {
			out = append(out, s.pop(l))
			if l.n == 0 {
				s.ring.Remove(e)
				delete(s.routes, l.route)
			} else {
				s.ring.MoveToBack(e)
				if next == nil {
					next = e
				}
			}
		}
		e = next
	}
	return out
}

// pop takes an item of the lane's next tenant.
func (s *schedule) pop(l *lane) *item {
	e := l.ring.Front()
	q := e.Value.(*line)
	it := q.items[0]
	q.items[0] = nil
	q.items = q.items[1:]
	if len(q.items) == 0 {
		l.ring.Remove(e)
		delete(l.tenants, q.tenant)
	} else {
		l.ring.MoveToBack(e)
	}
	l.n--
	s.count[ready]--
	return it
}

// has reports whether a route that is not excluded has something ready.
func (s *schedule) has(exclude []queue.Route) bool {
	left := len(s.routes)
	seen := make(map[queue.Route]bool, len(exclude))
	for _, r := range exclude {
		if _, ok := s.routes[r]; ok && !seen[r] {
			seen[r] = true
			left--
		}
	}
	return left > 0
}

// next returns when the next item becomes due.
func (s *schedule) next() (time.Time, bool) {
	if len(s.clock) == 0 {
		return time.Time{}, false
	}
	return s.clock[0].due, true
}

// A dueHeap has the item that is due first at index 0.
type dueHeap []*item

func (h dueHeap) Len() int { return len(h) }

func (h dueHeap) Less(i, j int) bool {
	if !h[i].due.Equal(h[j].due) {
		return h[i].due.Before(h[j].due)
	}
	return h[i].seq < h[j].seq
}

func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *dueHeap) Push(x any) {
	it := x.(*item)
	it.at = len(*h)
	*h = append(*h, it)
}

func (h *dueHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}
