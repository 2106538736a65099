package mtasts

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"
)

// An Entry is what a [Store] keeps for a domain.
type Entry struct {
	Domain  string // in lower case with A-labels, without trailing dot
	Policy  Policy
	Fetched time.Time // when the policy was fetched; it counts until Fetched and Policy.MaxAge
	Used    time.Time // when it was last asked for, to the day
}

// Expired reports whether the policy counts no longer at a time.
func (e Entry) Expired(now time.Time) bool { return !now.Before(e.Fetched.Add(e.Policy.MaxAge)) }

// Validate reports an entry that cannot be.
func (e Entry) Validate() error {
	if d, ok := policyDomain(e.Domain); !ok || d != e.Domain {
		return fmt.Errorf("mtasts: an entry for the domain %.80q, which can have none", e.Domain)
	}
	if e.Fetched.IsZero() {
		return fmt.Errorf("mtasts: the entry for %s was never fetched", e.Domain)
	}
	if e.Policy.ID == "" {
		return fmt.Errorf("mtasts: the entry for %s has no id", e.Domain)
	}
	return e.Policy.Validate()
}

// The errors of a [Store].
var (
	// ErrNoEntry matches the error of Load for a domain that has no entry.
	ErrNoEntry = errors.New("mtasts: no entry")
	// ErrFull matches the error of Save where there is no room for another domain.
	ErrFull = errors.New("mtasts: the store is full")
)

// A Store keeps policies over a restart. They are worth keeping: a sender that forgets one can be kept from learning it
// again by whoever sits on the line (RFC 8461 section 10.2).
//
// All methods are safe for concurrent use. An Entry's slice belongs to nobody: neither side modifies it. A Store
// bounds itself, and does not judge whether an entry has expired.
type Store interface {
	// Load returns the entry of a domain, or an error that matches ErrNoEntry. What is damaged is no
	// entry; what could not be read now is another error.
	Load(ctx context.Context, domain string) (Entry, error)
	// Save adds or replaces the entry of its domain, and it is durable when Save returns nil. After an error the old
	// one or the new one is there. An entry that is not valid is refused.
	Save(ctx context.Context, e Entry) error
	// Delete removes the entry of a domain, if there is one. After a crash it may be there again.
	Delete(ctx context.Context, domain string) error
	// All yields all entries, in any order, without those that come or go meanwhile necessarily. An error is the last thing
	// that it yields. Other methods may be called between two entries.
	All(ctx context.Context) iter.Seq2[Entry, error]
}

// DefaultMaxEntries is how many domains a Memory and a File keep unless told otherwise.
const DefaultMaxEntries = 100_000

// Memory is a Store that ends with the process, for tests and demonstrations. The zero value is empty, ready to use, and must not be copied.
type Memory struct {
	// MaxEntries is how many domains it keeps; zero or negative: DefaultMaxEntries.
	MaxEntries int

	mu      sync.Mutex
	entries map[string]Entry
}

var _ Store = (*Memory)(nil)

// Load implements [Store].
func (m *Memory) Load(_ context.Context, domain string) (Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.entries[domain]; ok {
		return e, nil
	}
	return Entry{}, ErrNoEntry
}

// Save implements [Store].
func (m *Memory) Save(_ context.Context, e Entry) error {
	if err := e.Validate(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	limit := m.MaxEntries
	if limit <= 0 {
		limit = DefaultMaxEntries
	}
	if _, ok := m.entries[e.Domain]; !ok && len(m.entries) >= limit {
		return ErrFull
	}
	if m.entries == nil {
		m.entries = map[string]Entry{}
	}
	m.entries[e.Domain] = e
	return nil
}

// Delete implements [Store].
func (m *Memory) Delete(_ context.Context, domain string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, domain)
	return nil
}

// All implements [Store], with the entries as they are when it begins.
func (m *Memory) All(context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		m.mu.Lock()
		all := slices.Collect(maps.Values(m.entries))
		m.mu.Unlock()
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
}
