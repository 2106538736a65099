package filequeue

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// The defaults of Options.
const (
	DefaultInlineMax     = 64 << 10
	DefaultSegmentSize   = 32 << 20
	DefaultMinFree       = 64 << 20
	DefaultMaxTombstones = 4 << 20
)

// Options tune a Store. The zero value, and nil, mean the defaults.
type Options struct {
	// InlineMax is the size up to which content is stored in the journal, in octets; larger
	// content gets a file of its own. At most 1 MiB. 0: DefaultInlineMax, negative: none.
	InlineMax int64
	// SegmentSize is the size at which a segment of the journal is followed by
	// the next one, in octets, from 64 KiB to 1 GiB. 0: DefaultSegmentSize.
	SegmentSize int64
	// MinFree is the room on the disk that Put leaves for the results of deliveries, in octets. Below it
	// Put fails as if the disk were full. 0: DefaultMinFree, negative: none.
	MinFree int64
	// MaxTombstones is how many IDs of finished messages are remembered at most. Beyond it the
	// oldest are forgotten before queue.TombstoneTTL is over. The default is reached
	// by 1,165 messages a second for an hour. 0: DefaultMaxTombstones.
	MaxTombstones int
	// Logger gets what goes wrong behind the scenes; nil: slog.Default.
	Logger *slog.Logger

	fs       durable.FS         // tests break it; nil: the operating system's
	testHook func(point string) // tests kill the process there
	testHash func(mailspine.MsgID) uint32
}

const (
	bodyDir  = "bodies"
	stageDir = "stage"
	lockName = "lock"
)

// A Store is a queue.Store in a directory. It is made by [Open]. All methods are safe for
// concurrent use.
type Store struct {
	dir  string
	opt  Options
	fsys durable.FS
	log  *slog.Logger
	lock interface{ Close() error }

	began  time.Time // zero of the monotonic times
	files  atomic.Uint64
	stages atomic.Uint64
	// buffers holds *[]byte of up to Options.InlineMax octets, for content on its way to the journal.
	buffers  sync.Pool
	bodySync *durable.DirSync // of the directory of bodies
	full     atomic.Bool      // the last append found the disk full

	// jmu is held for reading while a record is appended and applied to what is in
	// memory, and for writing when the segment changes. So every record of a segment that is
	// not the head has been applied. It is taken before mu.
	jmu      sync.RWMutex
	head     *segment
	rotating atomic.Bool // somebody changes the segment

	mu       sync.Mutex
	cond     *sync.Cond // of mu: an operation ended, an item is not busy, a message does not move
	closed   bool
	done     chan struct{} // closed with the store
	ops      int           // under way
	failed   error         // a sync failed
	segments []*segment    // oldest first; the last is the head
	sealed   int64         // octets of the segments before the head
	live     int64         // octets of the journal that are needed
	sched    sched.Schedule
	items    sched.Slab[item] // with the Slots of sched
	messages sched.Slab[message]
	byID     sched.Index     // items
	byMsg    sched.Index     // messages, by the hashes of their IDs
	seed     maphash.Seed    // of these
	bodies   map[slot]uint64 // the files of messages that have one
	huge     map[slot]int64  // the sizes of messages of 4 GiB and more
	reasons  map[slot]slot   // of items that have one, in names
	names    sched.Names
	ids      map[slot]string // of the messages of items that are leased
	unread   map[slot]bool   // items whose records could not be read when they were leased
	bytes    int64           // of content
	pending  map[mailspine.MsgID]chan struct{}
	nextItem uint64
	genera   uint64        // the generation: the high bits of epochs
	epoch    uint64        // the last that was given
	changed  chan struct{} // closed and replaced when an item may be due earlier than before
	waiters  int           // of changed
	tombs    tombstones

	kick      chan struct{} // wakes the compactor
	compactor sync.WaitGroup
}

var (
	_ queue.Store         = (*Store)(nil)
	_ queue.Inspector     = (*Store)(nil)
	_ queue.Controller    = (*Store)(nil)
	_ queue.Waiter        = (*Store)(nil)
	_ queue.HealthChecker = (*Store)(nil)
	_ mailspine.Stager    = (*Store)(nil)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli) // never written

// Open opens the store in a directory, and makes what is missing of it. The
// directory is locked: if another process has it open, the error says which.
// A store that a newer program wrote is refused with an error that says so.
//
// The store reads the whole journal but for large bodies, gives back all
// leases, and removes what was left by messages that did not arrive.
func Open(dir string, o *Options) (*Store, error) {
	s := &Store{
		dir:     dir,
		began:   time.Now(),
		done:    make(chan struct{}),
		pending: map[mailspine.MsgID]chan struct{}{},
		changed: make(chan struct{}),
		kick:    make(chan struct{}, 1),
	}
	s.cond = sync.NewCond(&s.mu)
	s.initRecords()
	if o != nil {
		s.opt = *o
	}
	s.opt.defaults()
	s.fsys, s.log = durable.Or(s.opt.fs), s.opt.Logger
	s.bodySync = durable.NewDirSync(s.fsys, filepath.Join(dir, bodyDir))
	s.tombs.init(s.opt.MaxTombstones)
	if err := s.start(); err != nil {
		for _, seg := range s.segments {
			seg.log.Close()
		}
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, fmt.Errorf("filequeue: open %s: %w", dir, err)
	}
	s.compactor.Go(s.compact)
	s.wakeCompactor()
	return s, nil
}

func (o *Options) defaults() {
	pick := func(v *int64, zero, least, most int64) {
		if *v == 0 {
			*v = zero
		}
		*v = min(max(*v, least), most)
	}
	pick(&o.InlineMax, DefaultInlineMax, 0, 1<<20)
	pick(&o.SegmentSize, DefaultSegmentSize, 64<<10, 1<<30)
	pick(&o.MinFree, DefaultMinFree, 0, 1<<62)
	if o.MaxTombstones <= 0 {
		o.MaxTombstones = DefaultMaxTombstones
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

func (s *Store) start() error {
	// The bodies are there before the journal can speak of them.
	for _, d := range []string{s.dir, filepath.Join(s.dir, bodyDir), filepath.Join(s.dir, stageDir)} {
		if err := durable.MkdirAll(s.fsys, d, 0o700); err != nil {
			return err
		}
	}
	lock, err := s.fsys.Lock(filepath.Join(s.dir, lockName))
	if err != nil {
		return err
	}
	s.lock = lock
	// A process that was killed may have begun or removed a segment, or made a
	// directory, without a sync of the name. What is done from here on counts on it.
	if err := s.fsys.SyncDir(s.dir); err != nil {
		return err
	}
	stages, err := s.fsys.ReadDir(filepath.Join(s.dir, stageDir))
	if err != nil {
		return err
	}
	for _, e := range stages {
		if err := durable.RemoveAll(s.fsys, filepath.Join(s.dir, stageDir, e.Name())); err != nil {
			return err
		}
	}
	return s.load()
}

// now returns the time on the store's clock.
func (s *Store) now() int64 { return int64(time.Since(s.began)) }

// advance tells the schedule what time it is. mu is held.
func (s *Store) advance() int64 {
	now := s.now()
	s.sched.Advance(now)
	return now
}

// wall returns a time of the store's clock as a stamp.
func (s *Store) wall(t int64) int64 { return s.began.UnixNano() + t }

// begin starts an operation, which ends with end.
func (s *Store) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return queue.ErrClosed
	}
	s.ops++
	return nil
}

func (s *Store) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ops--; s.ops == 0 {
		s.cond.Broadcast()
	}
}

// Close implements queue.Store. It also waits for content that a Put is reading.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	for s.ops > 0 {
		s.cond.Wait()
	}
	s.mu.Unlock()
	s.compactor.Wait()
	if s.failed == nil {
		if err := s.recordLapsed(); err != nil { // costs an order only
			s.log.Warn("filequeue: close: the ends of leases were not recorded", "dir", s.dir, "err", err)
		}
	}
	var errs []error
	for _, seg := range s.segments {
		errs = append(errs, seg.log.Close())
	}
	errs = append(errs, s.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("filequeue: close %s: %w", s.dir, err)
	}
	return nil
}

func (s *Store) hook(point string) {
	if s.opt.testHook != nil {
		s.opt.testHook(point)
	}
}

// fail ends the store's trust in the disk.
func (s *Store) fail(err error) {
	s.mu.Lock()
	first := s.failed == nil
	if first {
		s.failed = fmt.Errorf("filequeue: %s: the store has stopped: %w", s.dir, err)
		s.notify()
	}
	s.mu.Unlock()
	if first {
		s.log.Error("filequeue: a sync failed; the store has stopped until it is opened again", "dir", s.dir, "err", err)
	}
}

func (s *Store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// accepts returns why no message can be taken now, or nil.
func (s *Store) accepts() error {
	if err := s.failure(); err != nil {
		return err
	}
	return s.room(s.opt.MinFree)
}

// room returns an error if fewer than n octets are free.
func (s *Store) room(n int64) error {
	if n <= 0 {
		return nil
	}
	free, err := s.fsys.Free(s.dir)
	if err != nil || free >= n {
		return nil // what cannot be known, the write will tell
	}
	return fmt.Errorf("filequeue: %s: %d octets are free, and %d are kept for results: %w", s.dir, free, n, syscall.ENOSPC)
}

// Health implements queue.HealthChecker: a failed sync, or too little room on
// the disk.
func (s *Store) Health(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.end()
	return s.accepts()
}

// notify is called with mu held when an item may be due earlier than was known.
func (s *Store) notify() {
	if s.waiters == 0 {
		return
	}
	close(s.changed)
	s.changed = make(chan struct{})
}
