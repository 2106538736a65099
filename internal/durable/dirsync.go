package durable

import "sync"

// A DirSync makes the names in one directory durable for many at a time: those who come while a
// sync is under way share the next one, and a lone caller waits for nobody. It is safe for concurrent use.
type DirSync struct {
	fsys FS
	dir  string

	mu   sync.Mutex
	next *dirBatch // who waits for the next sync
	busy bool      // somebody is syncing
}

type dirBatch struct {
	lead chan struct{} // one of those who wait is to sync
	done chan struct{}
	err  error
}

// NewDirSync returns a DirSync for a directory; a nil fsys is [OS].
func NewDirSync(fsys FS, dir string) *DirSync { return &DirSync{fsys: Or(fsys), dir: dir} }

// Sync returns when the names are durable that were made before the call. An error is
// that of FS.SyncDir, and everybody's who shared it.
func (s *DirSync) Sync() error {
	s.mu.Lock()
	b := s.next
	if b == nil {
		b = &dirBatch{lead: make(chan struct{}, 1), done: make(chan struct{})}
		s.next = b
	}
	mine := !s.busy
	s.busy = true
	s.mu.Unlock()
	if !mine {
		select {
		case <-b.lead:
			mine = true
		case <-b.done:
		}
	}
	if !mine {
		return b.err
	}
	s.mu.Lock()
	s.next = nil // who comes from here on may have a name that this sync misses
	s.mu.Unlock()
	b.err = s.fsys.SyncDir(s.dir)
	s.mu.Lock()
	next := s.next
	s.busy = next != nil
	s.mu.Unlock()
	close(b.done)
	if next != nil {
		next.lead <- struct{}{}
	}
	return b.err
}
