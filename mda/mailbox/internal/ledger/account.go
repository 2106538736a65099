package ledger

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/mailspine/mailspine/mda/mailbox"
)

// An Account is the state of one account in memory, and the order of its changes.
// There is one for each user whose account is open, owned by a [Store].
//
// Changes wait in a queue. The one that finds nobody at work becomes the leader:
// it runs what waits, up to maxBatch changes, commits all of it at once, and hands the lead to
// the next one that waits.
type Account struct {
	drv    Driver
	limits Limits
	log    *slog.Logger
	hub    hub

	// layout is held for reading while bodies get names in mailboxes and the
	// entries that belong to them are committed, and for writing while
	// mailboxes go or are renamed, so that the names of mailboxes stand still meanwhile.
	layout sync.RWMutex

	mu   sync.RWMutex // readers of st, against the leader
	st   *State       // nil: to be loaded
	held reservation  // guarded by mu
	shut bool         // close was called; guarded by mu

	qmu     sync.Mutex
	queue   []*change // one for each goroutine that waits: their number bounds it
	leading bool
	drops   map[uint64]struct{} // maildrop locks, by mailbox; guarded by qmu
}

// A reservation is what deliveries under way will add to the account.
type reservation struct{ bytes, messages int64 }

// A change is a request to the leader. fn sees the state and returns the entry to
// be applied; it must not change the state.
type change struct {
	fn   func(*State) (Entry, error)
	err  error
	done chan bool // true: take the lead
}

const maxBatch = 64

func newAccount(drv Driver, limits Limits, log *slog.Logger) *Account {
	return &Account{drv: drv, limits: limits, log: log, drops: map[uint64]struct{}{}}
}

// load returns the state. mu is held for writing.
func (a *Account) load() (*State, error) {
	if a.shut { // a pin may come after Store.Close: it must not open the driver again
		return nil, mailbox.ErrClosed
	}
	if a.st == nil {
		st, err := a.drv.Load()
		if err != nil {
			return nil, err
		}
		a.st = st
	}
	return a.st, nil
}

// view calls fn with the state, which it must not change.
func (a *Account) view(ctx context.Context, fn func(*State) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.mu.RLock()
	for a.st == nil {
		a.mu.RUnlock()
		a.mu.Lock()
		_, err := a.load()
		a.mu.Unlock()
		if err != nil {
			return err
		}
		a.mu.RLock() // the loop ends: only a commit that fails makes st nil again
	}
	defer a.mu.RUnlock()
	return fn(a.st)
}

// update applies the entry that fn returns; an empty one changes nothing. It
// does not end before the change is decided, so ctx is asked only before.
func (a *Account) update(ctx context.Context, fn func(*State) (Entry, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &change{fn: fn, done: make(chan bool, 1)}
	a.qmu.Lock()
	a.queue = append(a.queue, c)
	lead := !a.leading
	a.leading = true
	a.qmu.Unlock()
	if !lead {
		if lead = <-c.done; !lead {
			return c.err
		}
	}
	// The leader's own change is the first of the queue.
	a.qmu.Lock()
	n := min(len(a.queue), maxBatch)
	batch := a.queue[:n:n]
	a.queue = a.queue[n:]
	a.qmu.Unlock()
	a.run(batch)
	for _, other := range batch[1:] {
		other.done <- false
	}
	a.qmu.Lock()
	if len(a.queue) > 0 {
		a.queue[0].done <- true
	} else {
		a.queue = nil
		a.leading = false
	}
	a.qmu.Unlock()
	return c.err
}

func (a *Account) run(batch []*change) {
	a.mu.Lock()
	defer a.mu.Unlock()
	st, err := a.load()
	var entries []Entry
	var effects []Effect
	applied := 0
	for _, c := range batch {
		if err != nil {
			c.err = err
			continue
		}
		e, ferr := c.fn(st)
		if ferr == nil && e.bound() > maxEntry { // it alone fails, not all of the batch
			ferr = limitError("octets of one change", maxEntry)
		}
		if ferr != nil || len(e) == 0 {
			c.err = ferr
			continue
		}
		var eff []Effect
		applied++
		if eff, err = st.Apply(e); err == nil { // an error here is a bug, and nothing of the batch is kept
			entries = append(entries, e)
			effects = append(effects, eff...)
		}
	}
	if applied == 0 {
		return
	}
	if err == nil {
		err = a.drv.Commit(entries)
	}
	if err != nil {
		// Also those that changed nothing: they may have found what they wanted in an
		// entry that failed.
		for _, c := range batch {
			if c.err == nil {
				c.err = err
			}
		}
		// The log decides what is true now.
		a.st = nil
		a.hub.all()
		return
	}
	if err := a.drv.Settle(st, effects); err != nil {
		a.log.Error("mailbox: files do not follow the log; loading the account again", "err", err)
		a.st = nil
		a.hub.all()
		return
	}
	a.hub.tell(st, effects)
}

// reserve makes room for copies of a message, or says that there is none.
func (a *Account) reserve(ctx context.Context, size int64, copies int) (reservation, error) {
	r := reservation{size * int64(copies), int64(copies)}
	if size > a.limits.MaxMessage {
		return reservation{}, mailbox.ErrTooBig
	}
	if err := a.view(ctx, func(*State) error { return nil }); err != nil { // it is loaded now
		return reservation{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	st, err := a.load()
	if err != nil {
		return reservation{}, err
	}
	if limit := a.limit(st); limit.Bytes > 0 && size > limit.Bytes {
		return reservation{}, mailbox.ErrTooBig
	}
	return a.hold(st, r)
}

// hold reserves r if there is room for it. mu is held for writing.
func (a *Account) hold(st *State, r reservation) (reservation, error) {
	limit := a.limit(st)
	if limit.Bytes > 0 && st.bytes+a.held.bytes+r.bytes > limit.Bytes || limit.Messages > 0 && st.messages+a.held.messages+r.messages > limit.Messages {
		return reservation{}, mailbox.ErrOverQuota
	}
	a.held.bytes += r.bytes
	a.held.messages += r.messages
	return r, nil
}

// release gives a reservation back.
func (a *Account) release(r *reservation) {
	a.mu.Lock()
	a.spend(r)
	a.mu.Unlock()
}

// spend is release for who holds mu: in the moment in which the message counts.
func (a *Account) spend(r *reservation) {
	a.held.bytes -= r.bytes
	a.held.messages -= r.messages
	*r = reservation{}
}

// limit returns the limits that hold: those that were set, even to none, or else the default.
func (a *Account) limit(s *State) mailbox.QuotaLimit {
	if s.limited {
		return s.limit
	}
	return a.limits.Quota
}

// close ends the account when no operation is under way.
func (a *Account) close() error {
	a.hub.close()
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.st
	a.st, a.shut = nil, true
	return a.drv.Close(st)
}

// ClampDate makes a log's date of a time; zero is now.
func ClampDate(t time.Time) int64 {
	if t.IsZero() {
		t = time.Now()
	}
	return min(max(t.Unix(), 0), maxDate)
}
