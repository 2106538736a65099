package filequeue

import (
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// Times in memory are nanoseconds of the monotonic clock since the store was
// opened; before that they are negative.

// maxDelay is what longer delays are cut to, 73 years, so that no sum of times overflows.
const maxDelay = 1 << 61

// span is a delay as it is calculated with: not negative, and not over maxDelay.
func span(d time.Duration) int64 { return min(max(0, int64(d)), maxDelay) }

type status uint8

const (
	waiting status = iota // in the heap until due
	leased                // in the heap until the lease ends
	busy                  // in no place: its lease is being ended
	ready                 // in its line
	held                  // in no place, until released
	statuses
)

// A message is what is known of one in memory. It is guarded by Store.mu.
type message struct {
	id     mailspine.MsgID
	put    int64 // when
	size   int64 // of the content
	loc    location
	file   uint64 // of the body; 0: the content is in the record
	cost   int64  // octets of its put entry and content in the journal
	items  []*item
	busy   int  // items whose status is busy
	moving bool // the compactor is copying it
}

// An item is part of a message. It is guarded by Store.mu.
type item struct {
	id       queue.ItemID
	msg      *message
	line     *line
	state    location // of the settle entry that has its recipients; zero: in the message's put entry
	cost     int64    // octets of that settle entry
	due      int64
	seq      uint64 // orders what is due at the same time
	epoch    uint64
	attempts uint32
	open     uint32 // recipients
	at       int32  // in the heap
	status   status
	lapsed   bool // a lease ended by itself, so due is not what the journal says
	reason   string
	next     *item // in its line
}

// A location is that of an entry. It is only used with the segment kept open.
type location struct {
	seg    *segment
	offset int64  // of the record
	entry  uint32 // in its meta
}

// A schedule knows what is due, and whose turn it is.
type schedule struct {
	heap   []*item // waiting and leased; the first that is due at index 0
	seq    uint64
	count  [statuses]int
	routes map[queue.Route]*lane
	turn   *lane // the ring of lanes that have something ready; the next one's turn
	active int   // lanes in the ring
}

// A lane is a route. It exists while there are items that go it.
type lane struct {
	route      queue.Route
	tenants    map[string]*line
	turn       *line // the ring of lines that have something ready
	prev, next *lane
}

// A line is a tenant's items of a route.
type line struct {
	lane        *lane
	tenant      string
	items       int   // in any status
	first, last *item // those that are ready, in the order in which they became due
	prev, next  *line
}

// line returns the line for a route and tenant, for one more item.
func (s *schedule) line(r queue.Route, tenant string) *line {
	l := s.routes[r]
	if l == nil {
		l = &lane{route: r, tenants: map[string]*line{}}
		if s.routes == nil {
			s.routes = map[queue.Route]*lane{}
		}
		s.routes[r] = l
	}
	q := l.tenants[tenant]
	if q == nil {
		q = &line{lane: l, tenant: tenant}
		l.tenants[tenant] = q
	}
	q.items++
	return q
}

// leave takes an item that is in no place out of its line for good.
func (s *schedule) leave(it *item) {
	s.count[it.status]--
	q := it.line
	if q.items--; q.items > 0 {
		return
	}
	delete(q.lane.tenants, q.tenant)
	if len(q.lane.tenants) == 0 {
		delete(s.routes, q.lane.route)
	}
}

// wait puts an item that is in no place into the heap.
func (s *schedule) wait(it *item, due int64, st status) {
	s.count[st]++
	it.status, it.due = st, due
	s.seq++
	it.seq = s.seq
	it.at = int32(len(s.heap))
	s.heap = append(s.heap, it)
	s.up(len(s.heap) - 1)
}

// rest puts an item that is in no place into none, as held or busy.
func (s *schedule) rest(it *item, st status) {
	s.count[st]++
	it.status = st
}

// take takes an item out of the heap, or out of no place, to put it elsewhere.
func (s *schedule) take(it *item) {
	s.count[it.status]--
	if it.status == waiting || it.status == leased {
		s.remove(int(it.at))
	}
}

// advance makes ready what is due: waiting items, and those whose lease ended.
func (s *schedule) advance(now int64) {
	for len(s.heap) > 0 && s.heap[0].due <= now {
		it := s.heap[0]
		s.take(it)
		it.lapsed = it.lapsed || it.status == leased
		it.status = ready
		s.count[ready]++
		// The heap yields in the order of due times, and nothing becomes due
		// before what was made ready earlier: appending keeps the order.
		q := it.line
		if q.last != nil {
			q.last.next = it
			q.last = it
			continue
		}
		q.first, q.last = it, it
		l := q.lane
		if l.turn == nil {
			s.enter(l)
		}
		if l.turn == nil {
			q.prev, q.next, l.turn = q, q, q
		} else { // last in turn
			q.prev, q.next = l.turn.prev, l.turn
			q.prev.next, q.next.prev = q, q
		}
	}
}

func (s *schedule) enter(l *lane) {
	s.active++
	if s.turn == nil {
		l.prev, l.next, s.turn = l, l, l
		return
	}
	l.prev, l.next = s.turn.prev, s.turn
	l.prev.next, l.next.prev = l, l
}

// next takes out the ready item whose turn it is, of a route that is not to be
// skipped; nil if there is none. What it returns is in no place.
func (s *schedule) next(skip map[queue.Route]bool) *item {
	for range s.active { // each lane at most once
		l := s.turn
		s.turn = l.next
		if skip[l.route] {
			continue
		}
		q := l.turn
		it := q.first
		q.first, it.next = it.next, nil
		l.turn = q.next
		if q.first == nil {
			q.last = nil
			if q.next == q {
				l.turn = nil
			}
			q.prev.next, q.next.prev = q.next, q.prev
			q.prev, q.next = nil, nil
		}
		if l.turn == nil {
			s.active--
			if l.next == l {
				s.turn = nil
			}
			l.prev.next, l.next.prev = l.next, l.prev
			l.prev, l.next = nil, nil
		}
		s.count[ready]--
		return it
	}
	return nil
}

// hasReady reports whether a route that is not among exclude has something ready.
func (s *schedule) hasReady(exclude []queue.Route) bool {
	left := s.active
	seen := make(map[queue.Route]bool, len(exclude))
	for _, r := range exclude {
		if l := s.routes[r]; l != nil && l.turn != nil && !seen[r] {
			seen[r] = true
			left--
		}
	}
	return left > 0
}

func (s *schedule) less(i, j int) bool {
	a, b := s.heap[i], s.heap[j]
	return a.due < b.due || a.due == b.due && a.seq < b.seq
}

func (s *schedule) swap(i, j int) {
	h := s.heap
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = int32(i), int32(j)
}

func (s *schedule) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !s.less(i, p) {
			return
		}
		s.swap(i, p)
		i = p
	}
}

func (s *schedule) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(s.heap) {
			return
		}
		if c+1 < len(s.heap) && s.less(c+1, c) {
			c++
		}
		if !s.less(c, i) {
			return
		}
		s.swap(i, c)
		i = c
	}
}

func (s *schedule) remove(i int) {
	last := len(s.heap) - 1
	s.swap(i, last)
	s.heap[last] = nil
	s.heap = s.heap[:last]
	if i < last {
		s.down(i)
		s.up(i)
	}
	if cap(s.heap) > 1024 && len(s.heap) < cap(s.heap)/4 {
		s.heap = append(make([]*item, 0, cap(s.heap)/2), s.heap...)
	}
}
