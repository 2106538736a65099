package fbl

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// A Scope is whose mail a token is about. There are as many as there are pairs of senders and
// streams.
type Scope struct {
	Tenant, Stream string
	Sender         mailspine.Address // the reverse-path before it was sealed
}

// The bounds of scopes.
const (
	// MaxScopeName is the largest Tenant or Stream, in octets.
	MaxScopeName = 255
	// DefaultMaxScopes is how many scopes are remembered, unless options say otherwise. One takes some 300 octets.
	DefaultMaxScopes = 1 << 20
)

func (s Scope) validate() error {
	if len(s.Tenant) > MaxScopeName || len(s.Stream) > MaxScopeName {
		return fmt.Errorf("fbl: a tenant or stream of over %d octets", MaxScopeName)
	}
	if !utf8.ValidString(s.Tenant) || !utf8.ValidString(s.Stream) {
		return errors.New("fbl: a tenant or stream that is not UTF-8")
	}
	return s.Sender.Validate()
}

// A ScopeID is the short name of a scope in tokens: a keyed hash.
type ScopeID [5]byte

// id is the n-th name of a scope: another one is used where a name is taken by another scope.
func (s Scope) id(key []byte, n int) (id ScopeID) {
	parts := []string{s.Tenant, s.Stream, s.Sender.String()}
	if n > 0 {
		parts = append(parts, strconv.Itoa(n))
	}
	copy(id[:], keyed(key, "scope", parts...))
	return id
}

// Scopes is the dictionary of scopes. All methods are safe for concurrent use.
type Scopes interface {
	// Remember notes what an ID stands for, durably in the sense of the driver when it returns nil. To repeat
	// it is cheap, and done for each copy of a message. An ID that stands for another scope
	// is an error ([ErrScopeTaken]), and another name is tried: of a million scopes two have the same first name with a
	// probability of one half.
	Remember(ctx context.Context, id ScopeID, s Scope) error
	// Find returns what an ID stands for, or ErrNoScope.
	Find(ctx context.Context, id ScopeID) (Scope, error)
}

var (
	// ErrScopeTaken is matched by the error of Scopes.Remember for an ID that is taken.
	ErrScopeTaken = errors.New("fbl: another scope has the same ID")
	// ErrScopesFull is matched when there are as many scopes as there may be.
	ErrScopesFull = errors.New("fbl: too many scopes")
)

// MemoryScopes is a Scopes that ends with the process: after a restart, tokens that were
// made before it are of no use. The zero value is ready.
type MemoryScopes struct {
	// Max bounds the scopes; 0: DefaultMaxScopes.
	Max int

	mu sync.RWMutex
	m  map[ScopeID]Scope
}

var _ Scopes = (*MemoryScopes)(nil)

// known reports whether an ID stands for a scope, and an error if it stands for another, or there
// is no room for one more.
func (m *MemoryScopes) known(id ScopeID, s Scope) (bool, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	old, ok := m.m[id]
	switch {
	case ok && old == s:
		return true, nil
	case ok:
		return false, fmt.Errorf("%w: %x", ErrScopeTaken, id)
	}
	if len(m.m) >= m.limit() {
		return false, fmt.Errorf("%w: %d", ErrScopesFull, m.limit())
	}
	return false, nil
}

func (m *MemoryScopes) set(id ScopeID, s Scope) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[ScopeID]Scope{}
	}
	m.m[id] = s
}

// Remember notes what an ID stands for.
func (m *MemoryScopes) Remember(_ context.Context, id ScopeID, s Scope) error {
	if ok, err := m.known(id, s); ok || err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch old, ok := m.m[id]; { // somebody may have been faster
	case ok && old != s:
		return fmt.Errorf("%w: %x", ErrScopeTaken, id)
	case !ok && len(m.m) >= m.limit():
		return fmt.Errorf("%w: %d", ErrScopesFull, m.limit())
	case m.m == nil:
		m.m = map[ScopeID]Scope{}
	}
	m.m[id] = s
	return nil
}

func (m *MemoryScopes) limit() int {
	if m.Max <= 0 {
		return DefaultMaxScopes
	}
	return m.Max
}

// Find returns what an ID stands for.
func (m *MemoryScopes) Find(_ context.Context, id ScopeID) (Scope, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s, ok := m.m[id]
	if !ok {
		return Scope{}, ErrNoScope
	}
	return s, nil
}
