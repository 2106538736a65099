package tlsrpt

import (
	"context"
	"sync"
	"time"
)

// A Store keeps what a Collector counted, so that a restart does not lose it. It belongs to one Collector at a
// time, which has everything in memory too: it loads once, and then only saves.
//
// The methods are called by one goroutine at a time. A Store keeps nothing of the rows that it is given, nor changes them.
type Store interface {
	// Load calls f for each row that is kept, in any order. An error of f ends it, and is returned.
	Load(ctx context.Context, f func(Row) error) error
	// Save replaces the rows of the same day and domain. They are as durable as the Store makes them when it returns nil; after
	// an error any of them may be there, and they are saved again later.
	Save(ctx context.Context, rows ...Row) error
	// Forget removes the rows of all days before one.
	Forget(ctx context.Context, before time.Time) error
}

// A Row is what is known of one domain on one day.
type Row struct {
	Day    time.Time // midnight UTC, when it began
	Domain string    // in lower case with A-labels
	// Policies are the sessions. They are dropped once the report is done with.
	Policies []PolicyResult
	// Delivery is how far the report has come.
	Delivery Delivery
}

// A Delivery is how far the report of a day has come.
type Delivery struct {
	ID       string    // of the report; "": not begun, and sessions still count
	Attempts int       // how often it was tried
	First    time.Time // when it was tried first; zero: not yet
	Next     time.Time // when it is tried next; zero: by the schedule of the day
	Done     bool      // it is sent, not wanted or given up: see Note
	Note     string    // what came of the last attempt, for people
}

// midnight is the beginning of t's day in UTC.
func midnight(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

type rowKey struct {
	day    int64 // in seconds since 1970
	domain string
}

func (r *Row) key() rowKey { return rowKey{r.Day.Unix(), r.Domain} }

// A Memory is a Store that ends with the process: for tests, and to hand what was counted from one Collector to the
// next. The zero value is ready to use.
type Memory struct {
	mu   sync.Mutex
	rows map[rowKey]Row
}

var _ Store = (*Memory)(nil)

// Load calls f for each row.
func (m *Memory) Load(_ context.Context, f func(Row) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rows {
		if err := f(r.clone()); err != nil {
			return err
		}
	}
	return nil
}

// Save replaces rows.
func (m *Memory) Save(_ context.Context, rows ...Row) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rows == nil {
		m.rows = map[rowKey]Row{}
	}
	for _, r := range rows {
		m.rows[r.key()] = r.clone()
	}
	return nil
}

// Forget removes the rows of days before one.
func (m *Memory) Forget(_ context.Context, before time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.rows {
		if k.day < before.Unix() {
			delete(m.rows, k)
		}
	}
	return nil
}

// clone copies what a Collector changes; the strings of a policy never change.
func (r Row) clone() Row {
	r.Policies = clonePolicies(r.Policies)
	return r
}

func clonePolicies(list []PolicyResult) []PolicyResult {
	if list == nil {
		return nil
	}
	out := make([]PolicyResult, len(list))
	for i, p := range list {
		p.Failures = append([]Failure(nil), p.Failures...)
		out[i] = p
	}
	return out
}
