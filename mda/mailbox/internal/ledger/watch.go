package ledger

import (
	"context"
	"sync"

	"github.com/mailspine/mailspine/mda/mailbox"
)

// A hub tells watchers of changes. It never waits for one.
type hub struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
	closed   bool
}

// maxPending is how many mailboxes a watcher remembers to have changed. With more, it is
// told to look at all of them.
const maxPending = 1024

type watcher struct {
	hub     *hub
	release func()
	wake    chan struct{} // holds one token when there is something to tell

	// guarded by hub.mu
	pending map[string]mailbox.Event
	all     bool
	closed  bool
}

func (h *hub) watch(release func()) (*watcher, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, mailbox.ErrClosed
	}
	w := &watcher{hub: h, release: release, wake: make(chan struct{}, 1), pending: map[string]mailbox.Event{}}
	if h.watchers == nil {
		h.watchers = map[*watcher]struct{}{}
	}
	h.watchers[w] = struct{}{}
	return w, nil
}

// tell makes events of what was done. The state stands still meanwhile.
func (h *hub) tell(s *State, effects []Effect) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) == 0 {
		return
	}
	for _, e := range effects {
		if e.Box == nil {
			if e.Kind == KindSubscribe { // a name without a mailbox
				for w := range h.watchers {
					w.setAll()
				}
			}
			continue
		}
		ev := mailbox.Event{ID: e.Box.id(), Mailbox: e.Box.Name, ModSeq: e.Box.modseq}
		switch e.Kind {
		case KindMake, KindRename, KindSubscribe:
			ev.Listed = true
		case KindDrop:
			ev.Listed, ev.Gone = true, true
		}
		for w := range h.watchers {
			w.add(ev)
		}
	}
}

// all tells everybody to look at everything.
func (h *hub) all() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.setAll()
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for w := range h.watchers {
		w.closed = true
		w.signal()
	}
	h.watchers = nil
}

func (w *watcher) add(ev mailbox.Event) {
	if w.all {
		return
	}
	old := w.pending[ev.ID]
	ev.Listed = ev.Listed || old.Listed
	ev.Gone = ev.Gone || old.Gone
	w.pending[ev.ID] = ev
	if len(w.pending) > maxPending {
		w.setAll()
	}
	w.signal()
}

func (w *watcher) setAll() {
	w.all = true
	clear(w.pending)
	w.signal()
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Next implements mailbox.Watcher.
func (w *watcher) Next(ctx context.Context) ([]mailbox.Event, error) {
	for { // each turn takes a token, and tokens come with events
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		w.hub.mu.Lock()
		if w.closed {
			w.hub.mu.Unlock()
			w.signal() // for the next call
			return nil, mailbox.ErrClosed
		}
		var out []mailbox.Event
		if w.all {
			out = []mailbox.Event{{Listed: true}}
			w.all = false
		}
		for _, ev := range w.pending {
			out = append(out, ev)
		}
		clear(w.pending)
		w.hub.mu.Unlock()
		if len(out) > 0 {
			return out, nil
		}
	}
}

// Close implements mailbox.Watcher.
func (w *watcher) Close() error {
	w.hub.mu.Lock()
	done := w.closed
	w.closed = true
	delete(w.hub.watchers, w)
	w.hub.mu.Unlock()
	w.signal()
	if !done {
		w.release()
	}
	return nil
}

var _ mailbox.Watcher = (*watcher)(nil)
