package egress

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unicode/utf8"
)

// The kinds of a [Key].
const (
	KindSource = "source"
	KindDomain = "domain"
)

// A Key names what is counted.
type Key struct {
	Kind string `json:"kind"` // KindSource or KindDomain
	Name string `json:"name"` // the source's name; the domain in lower case with A-labels
}

// String returns kind and name.
func (k Key) String() string { return k.Kind + " " + k.Name }

// A Record is what must be known of a key after a restart.
type Record struct {
	Key
	Day    Day   `json:"day"`    // the last day for which something was reserved
	Number int   `json:"number"` // which sending day that is, from 1
	Sent   int64 `json:"sent"`   // copies that were sent on it, as far as it was known then
	// Held is how many were reserved on it, those sent included. Nothing beyond it was sent. After a clean end it is Sent;
	// after a crash the difference counts as sent, since some of it may have been.
	Held int64 `json:"held"`
}

// Validate reports a record that cannot be.
func (r Record) Validate() error {
	switch {
	case r.Kind != KindSource && r.Kind != KindDomain:
		return fmt.Errorf("egress: a record of an unknown kind %.40q", r.Kind)
	case r.Name == "" || len(r.Name) > 1000 || !utf8.ValidString(r.Name):
		return fmt.Errorf("egress: a record with a bad name %.40q", r.Name)
	case r.Day < 0 || r.Day > lastDay || r.Number < 1 || r.Sent < 0 || r.Held < r.Sent:
		return fmt.Errorf("egress: the record of %v cannot be: %v is sending day %d, sent %d, held %d", r.Key, r.Day, r.Number, r.Sent, r.Held)
	}
	return nil
}

// lastDay is 9999-12-31, the last that has a form of ten characters.
const lastDay Day = 2932896

// A State keeps the records of one [Selector], which does all counting. It keeps records of
// keys that the Selector does not know of any more, so that a source that comes back
// goes on where it was. All methods are safe for concurrent use.
type State interface {
	// Claim returns all records, at most one for each key, and gives the State to
	// the caller: until Release every other Claim fails with an error that matches
	// [ErrInUse]. Two that count by themselves would send twice what a cap allows.
	Claim(ctx context.Context) ([]Record, error)
	// Save replaces the records of some keys, each at most once. They are durable when it
	// returns nil. After an error, or a crash, each of them may be as it was or as it was to be. The
	// slice is the caller's. It is refused where nobody has claimed the State, and for a record that is
	// not valid (Record.Validate): then none is saved.
	Save(ctx context.Context, recs ...Record) error
	// Release ends a claim. Closing the State is up to who opened it.
	Release() error
}

// ErrInUse is matched when a State has been claimed by another Selector.
var ErrInUse = errors.New("egress: the state is used by another Selector")

var errNotClaimed = errors.New("egress: the state is not claimed")

// Memory is a State that ends with the process: for tests, demonstrations, and sources that
// have no caps. It is made by [NewMemory].
type Memory struct {
	mu      sync.Mutex
	claimed bool
	recs    map[Key]Record
}

var _ State = (*Memory)(nil)

// NewMemory returns an empty State.
func NewMemory() *Memory { return &Memory{recs: map[Key]Record{}} }

// Claim returns all records.
func (m *Memory) Claim(context.Context) ([]Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.claimed {
		return nil, ErrInUse
	}
	m.claimed = true
	recs := make([]Record, 0, len(m.recs))
	for _, r := range m.recs {
		recs = append(recs, r)
	}
	return recs, nil
}

// Save replaces records.
func (m *Memory) Save(_ context.Context, recs ...Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.claimed {
		return errNotClaimed
	}
	for _, r := range recs {
		if err := r.Validate(); err != nil {
			return err
		}
	}
	for _, r := range recs {
		m.recs[r.Key] = r
	}
	return nil
}

// Release ends a claim.
func (m *Memory) Release() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.claimed {
		return errNotClaimed
	}
	m.claimed = false
	return nil
}
