package suppress

import (
	"context"
	"iter"
	"sync"
	"time"
)

// DefaultMaxEntries bounds a list unless its options say otherwise. An entry takes some 300 octets
// of memory, more with long evidence.
const DefaultMaxEntries = 1 << 20

// Memory is a List that ends with the process. It is made by [NewMemory]; the zero value is an empty list
// too. It must not be copied.
type Memory struct {
	clock func() time.Time // nil: time.Now
	max   int              // 0: DefaultMaxEntries

	mu   sync.RWMutex
	recs map[Key]*Entry // in normal form; the values do not change
	// next is when the first of the entries ends, as far as is known: a full list is not gone through before.
	next time.Time
}

var _ List = (*Memory)(nil)

// NewMemory returns an empty list. now is its clock; nil: time.Now.
func NewMemory(now func() time.Time) *Memory { return &Memory{clock: now} }

func (m *Memory) now() time.Time {
	if m.clock != nil {
		return m.clock()
	}
	return time.Now()
}

func (m *Memory) limit() int {
	if m.max > 0 {
		return m.max
	}
	return DefaultMaxEntries
}

// Check returns the entry that stops mail.
func (m *Memory) Check(_ context.Context, k Key) (*Entry, error) {
	k, err := k.clean()
	if err != nil {
		return nil, err
	}
	now := m.now()
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, at := range [...]Key{k, {Tenant: k.Tenant, Address: k.Address}, {Address: k.Address}} {
		if e := m.recs[at]; e != nil && e.live(now) {
			found := *e
			return &found, nil
		}
	}
	return nil, nil
}

// Add makes an entry.
func (m *Memory) Add(_ context.Context, e Entry) error {
	now := m.now()
	e, err := e.clean(now)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.wanted(&e, now) {
		return nil
	}
	if m.recs[e.Key] == nil && !m.room(now) {
		return ErrFull
	}
	m.set(&e)
	return nil
}

// set is called with mu, or before there is another goroutine.
func (m *Memory) set(e *Entry) {
	if m.recs == nil {
		m.recs = map[Key]*Entry{}
	}
	m.recs[e.Key] = e
	if !e.Expires.IsZero() && (m.next.IsZero() || e.Expires.Before(m.next)) {
		m.next = e.Expires
	}
}

// wanted reports whether an entry changes anything. It is called with mu.
func (m *Memory) wanted(e *Entry, now time.Time) bool {
	old := m.recs[e.Key]
	return e.live(now) && (old == nil || !old.live(now) || e.longer(old))
}

// room makes room for one more entry, and reports whether there is. It is called with mu.
func (m *Memory) room(now time.Time) bool {
	if len(m.recs) < m.limit() {
		return true
	}
	if m.next.IsZero() || now.Before(m.next) {
		return false // none has ended: else each Add to a full list would go through all of it
	}
	m.next = time.Time{}
	for k, e := range m.recs {
		switch {
		case !e.live(now):
			delete(m.recs, k)
		case !e.Expires.IsZero() && (m.next.IsZero() || e.Expires.Before(m.next)):
			m.next = e.Expires
		}
	}
	return len(m.recs) < m.limit()
}

// Remove takes away an entry.
func (m *Memory) Remove(_ context.Context, k Key) error {
	k, err := k.clean()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.recs, k)
	return nil
}

// All returns the entries.
func (m *Memory) All(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		now := m.now()
		m.mu.RLock()
		list := make([]*Entry, 0, len(m.recs))
		for _, e := range m.recs {
			list = append(list, e)
		}
		m.mu.RUnlock()
		for _, e := range list {
			if err := ctx.Err(); err != nil {
				yield(Entry{}, err)
				return
			}
			if e.live(now) && !yield(*e, nil) {
				return
			}
		}
	}
}
