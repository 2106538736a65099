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

// Memory is a List that ends with the process. It is made by [NewMemory].
type Memory struct {
	now func() time.Time
	max int

	mu   sync.RWMutex
	recs map[Key]*Entry // in normal form; the values do not change
}

var _ List = (*Memory)(nil)

// NewMemory returns an empty list. now is its clock; nil: time.Now.
func NewMemory(now func() time.Time) *Memory {
	if now == nil {
		now = time.Now
	}
	return &Memory{now: now, max: DefaultMaxEntries, recs: map[Key]*Entry{}}
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
	m.recs[e.Key] = &e
	return nil
}

// wanted reports whether an entry changes anything. It is called with mu.
func (m *Memory) wanted(e *Entry, now time.Time) bool {
	old := m.recs[e.Key]
	return e.live(now) && (old == nil || !old.live(now) || e.longer(old))
}

// room makes room for one more entry, and reports whether there is. It is called with mu.
func (m *Memory) room(now time.Time) bool {
	if len(m.recs) < m.max {
		return true
	}
	for k, e := range m.recs {
		if !e.live(now) {
			delete(m.recs, k)
		}
	}
	return len(m.recs) < m.max
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
