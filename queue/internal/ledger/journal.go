package ledger

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/mailspine/mailspine/queue"
)

// A Record is what must be known of a key after a restart.
type Record struct {
	Kind queue.LimitKind // Rate or Quota; 0: the record tells the time only
	Key  string
	Per  time.Duration

	Period int64 // of a Quota
	Held   int64 // no more than this was granted
	Max    int64 // of a Rate, by the latest policy: it says when the key can be forgotten
	Wall   int64 // when this was so, in nanoseconds since 1970
}

// Validate reports a record that cannot be.
func (r Record) Validate() error {
	switch {
	case r.Wall < 0:
	case r.Kind == 0:
		if r == (Record{Wall: r.Wall}) {
			return nil
		}
	case r.Kind != queue.Rate && r.Kind != queue.Quota, len(r.Key) < 1, len(r.Key) > queue.MaxLimitKey,
		r.Per < time.Millisecond, r.Per > queue.MaxPer, r.Held < 0, r.Held > maxHeld, r.Max < 0, r.Max > queue.MaxLimit:
	case r.Kind == queue.Rate && r.Period == 0, r.Kind == queue.Quota && r.Max == 0 && r.Period >= -1 && r.Period <= math.MaxInt64/int64(r.Per)-2:
		return nil
	}
	return fmt.Errorf("ledger: the record of %v %.300q cannot be: per %v, period %d, held %d, max %d, at %d",
		r.Kind, r.Key, r.Per, r.Period, r.Held, r.Max, r.Wall)
}

// maxHeld is what can be held: a limit that was taken, and as much again, and a block.
const maxHeld = 4 * queue.MaxLimit

// A Journal makes records durable. Its methods are called by one goroutine at a time.
type Journal interface {
	// Save appends records; the last of a key counts. They are durable when it returns nil; after an error each may be there or not.
	Save(recs []Record) error
	// Large reports whether the journal wants to be replaced, if it needs n records.
	Large(n int) bool
	// Replace puts these records in the place of all there are, if it can. If it cannot, the others stay.
	Replace(recs []Record)
}

// A write is one call of Save, for all who wait.
type write struct {
	want map[*account]want
	done chan struct{}
	err  error
}

// want is what the Takes that wait need of an account.
type want struct {
	n   int64       // the sum
	lim queue.Limit // the most generous
}

// load takes over the records of the journal.
func (l *Ledger) load(recs []Record) {
	for _, r := range recs {
		l.last.wall = max(l.last.wall, r.Wall)
	}
	now := l.now()
	for _, r := range recs {
		if r.Kind == 0 {
			continue
		}
		k := key{r.Kind, r.Per, r.Key}
		// A wall clock that shows less than it did makes nothing drain.
		at := now.at - time.Duration(max(0, now.clock-r.Wall))
		l.accounts[k] = &account{
			key: k, used: r.Held, period: r.Period, at: at, bound: r.Held, boundAt: at, max: r.Max, burst: r.Max, saved: r.Max,
		}
	}
	l.sweep(now)
}

// reserve sees to it that the journal knows of a grant of n. It returns nil if it does, and
// otherwise the write that has to be waited for.
func (l *Ledger) reserve(req queue.TakeRequest, accounts []*account, n int64, t moment) *write {
	if l.opt.Journal == nil {
		return nil
	}
	var w *write
	for i, a := range accounts {
		lim := req.Limits[i]
		k := lim.N
		if k == 0 {
			k = n
		}
		if lim.Kind == queue.Slots {
			continue
		}
		if bound, _ := a.bounded(t); a.used+k <= bound && (lim.Kind != queue.Rate || lim.Max >= a.saved) {
			continue
		}
		if l.next == nil {
			l.next = &write{want: map[*account]want{}, done: make(chan struct{})}
		}
		w = l.next
		x := w.want[a]
		if x.n += k; lim.Max >= x.lim.Max {
			x.lim = lim
		}
		w.want[a] = x
	}
	return w
}

// await writes w, or waits until somebody has. It is called with mu, and returns with it.
func (l *Ledger) await(ctx context.Context, w *write) error {
	for {
		cur := l.writing
		if cur == nil {
			if l.next != w { // it was written
				return w.err
			}
			l.write()
			return w.err
		}
		l.mu.Unlock()
		select {
		case <-cur.done:
		case <-w.done:
		case <-ctx.Done():
		}
		l.mu.Lock()
		select {
		case <-w.done:
			return w.err
		default:
		}
		if err := ctx.Err(); err != nil {
			return err // what it wanted may be reserved for nobody: it is used by the next
		}
		if l.closed {
			return queue.ErrClosed
		}
	}
}

// write writes what has gathered. It is called with mu, which it gives up meanwhile.
func (l *Ledger) write() {
	w := l.next
	l.next, l.writing = nil, w
	t := l.now()
	recs := make([]Record, 0, len(w.want)+len(l.lowered))
	for a, x := range w.want {
		held := a.used + x.n + ahead(x.lim, l.opt.Block)
		if a.kind == queue.Quota {
			held = min(held, max(x.lim.Max, a.used))
		}
		recs = append(recs, a.record(held, t))
	}
	for a := range l.lowered {
		if _, ok := w.want[a]; !ok {
			recs = append(recs, a.record(a.bound, t))
			a.saved = max(a.saved, a.max)
		}
	}
	clear(l.lowered)
	l.mu.Unlock()
	err := l.opt.Journal.Save(recs)
	l.mu.Lock()
	if err != nil {
		w.err = fmt.Errorf("queue: the limiter cannot count: %w", err)
	} else {
		for _, r := range recs {
			a := l.accounts[key{r.Kind, r.Per, r.Key}]
			// In a period that has begun meanwhile it says nothing.
			if _, ok := w.want[a]; ok && a.period == r.Period {
				a.bound, a.boundAt, a.saved = r.Held, t.at, r.Max
			}
		}
		if l.opt.Journal.Large(len(l.accounts)) {
			l.compact()
		}
	}
	l.writing = nil
	close(w.done)
	l.idle.Broadcast()
}

// compact gives the journal the records that it needs, and no others. It is called by write, with mu, which it gives up meanwhile.
func (l *Ledger) compact() {
	t := l.now()
	l.sweep(t)
	recs := l.records(t, false)
	clear(l.lowered)
	l.mu.Unlock()
	l.opt.Journal.Replace(recs)
	l.mu.Lock()
}

// record says that so much is held.
func (a *account) record(held int64, t moment) Record {
	r := Record{Kind: a.kind, Key: a.name, Per: a.per, Held: min(held, maxHeld), Wall: t.wall}
	if a.kind == queue.Quota {
		r.Period = a.period
	} else {
		r.Max = a.max
	}
	return r
}

// records returns all that must be known, with what is reserved; or, for a clean end, the records of which the journal has others.
func (l *Ledger) records(t moment, exact bool) []Record {
	recs := []Record{{Wall: t.wall}} // keys that are forgotten are so for a time that never goes back
	for _, a := range l.accounts {
		if a.kind == queue.Slots {
			continue
		}
		if a.kind == queue.Rate {
			a.advance(a.policy(), t)
		}
		held := a.used
		_, bound := a.bounded(t)
		_, lowered := l.lowered[a]
		switch {
		case !exact && max(held, bound) > 0:
			recs = append(recs, a.record(max(held, bound), t))
			a.saved = max(a.saved, a.max)
		case exact && (held != bound || lowered || a.kind == queue.Rate && a.max != a.saved):
			recs = append(recs, a.record(held, t))
		}
	}
	return recs
}

// lower takes note that much less is used than is reserved: a crash would cost it. The next write tells the journal.
// The bound falls at once, since nobody must rely on the old one when the journal has the new.
func (l *Ledger) lower(a *account, t moment) {
	if l.opt.Journal == nil || a.kind == queue.Slots || l.accounts[a.key] != a {
		return
	}
	most := ahead(a.policy(), l.opt.Block)
	if bound, _ := a.bounded(t); bound-a.used > 4*(most+1) {
		a.bound, a.boundAt = a.used+most, t.at
		l.lowered[a] = struct{}{}
	}
}

// Close implements queue.Limiter. With a journal, what was reserved and not used is given back.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.writing != nil {
		l.idle.Wait()
	}
	if l.closed {
		return nil
	}
	l.closed = true
	if w := l.next; w != nil {
		l.next, w.err = nil, queue.ErrClosed
		close(w.done)
	}
	if l.opt.Journal == nil {
		return nil
	}
	t := l.now()
	recs := l.records(t, true)
	for chunk := range slices.Chunk(recs, 10_000) {
		if err := l.opt.Journal.Save(chunk); err != nil {
			return fmt.Errorf("queue: the limiter's exact counts are not saved, what was reserved counts as used: %w", err)
		}
	}
	return nil
}
