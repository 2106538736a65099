package suppress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
)

// The list in a directory is one log of entries and removals in JSON, the last of a key being the one
// that counts. When it has grown to twice what is needed and more, a new one takes its
// place, with a higher number in its name.
const (
	logMagic   = "MSsuppre"
	logVersion = 1
	logPrefix  = "list-"
	minCompact = 1 << 20
	maxRecord  = 16 << 10 // octets of a record; JSON may need six for one
)

// Options tune a File. The zero value, and nil, mean the defaults.
type Options struct {
	// MaxEntries bounds the list; 0: DefaultMaxEntries.
	MaxEntries int
	Now        func() time.Time // nil: time.Now
	// Logger gets what goes wrong behind the scenes; nil: slog.Default.
	Logger *slog.Logger

	fs      durable.FS // tests break it; nil: the operating system's
	compact int64      // tests make logs short; 0: minCompact
}

// A File is a List in a directory. It is made by [Open]. Entries that were added survive a
// crash and a loss of power. All entries are in memory too.
type File struct {
	dir string
	opt Options
	mem *Memory

	mu     sync.Mutex // held while the log and mem change together
	log    *durable.Journal
	due    int64 // the size of the log from which compacting it is worth a look
	closed bool
}

var _ List = (*File)(nil)

// Open opens the list in a directory, and makes what is missing of it. The directory is locked: if
// another process has it open, the error says so. A damaged list is an error, and so is
// one that a newer program wrote: a list that has forgotten somebody is worse than none.
func Open(dir string, o *Options) (*File, error) {
	f := &File{dir: dir}
	if o != nil {
		f.opt = *o
	}
	if f.opt.Logger == nil {
		f.opt.Logger = slog.Default()
	}
	if f.opt.compact == 0 {
		f.opt.compact = minCompact
	}
	f.due = f.opt.compact
	f.mem = NewMemory(f.opt.Now)
	if f.opt.MaxEntries > 0 {
		f.mem.max = f.opt.MaxEntries
	}
	var err error
	f.log, err = durable.OpenJournal(f.opt.fs, dir, logPrefix, durable.LogOptions{Magic: logMagic, Version: logVersion}, f.replay)
	if err != nil {
		return nil, fmt.Errorf("suppress: open %s: %w", dir, err)
	}
	return f, nil
}

// A row is an entry as it is in the log; without a reason it is a removal.
type row struct {
	Tenant   string `json:"tenant,omitempty"`
	Stream   string `json:"stream,omitempty"`
	Local    string `json:"local"`
	Domain   string `json:"domain"`
	Reason   Reason `json:"reason,omitempty"`
	Evidence string `json:"evidence,omitempty"`
	Time     int64  `json:"time,omitempty"`
	Expires  int64  `json:"expires,omitempty"` // 0: never
}

func encode(e *Entry) ([]byte, error) {
	r := row{Tenant: e.Tenant, Stream: e.Stream, Local: e.Address.Local, Domain: e.Address.Domain, Reason: e.Reason, Evidence: e.Evidence}
	if !e.Time.IsZero() {
		r.Time = e.Time.Unix()
	}
	if !e.Expires.IsZero() {
		r.Expires = e.Expires.Unix()
	}
	b, err := json.Marshal(r)
	if err == nil && len(b) > maxRecord {
		err = fmt.Errorf("suppress: an entry of %d octets", len(b))
	}
	return b, err
}

func decode(b []byte) (*Entry, error) {
	var r row
	if len(b) > maxRecord {
		return nil, fmt.Errorf("a record of %d octets", len(b))
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	e := &Entry{
		Key:    Key{Tenant: r.Tenant, Stream: r.Stream, Address: mailspine.Address{Local: r.Local, Domain: r.Domain}},
		Reason: r.Reason, Evidence: r.Evidence,
	}
	if r.Time != 0 {
		e.Time = time.Unix(r.Time, 0).UTC()
	}
	if r.Expires != 0 {
		e.Expires = time.Unix(r.Expires, 0).UTC()
	}
	k, err := e.Key.clean()
	if err == nil && k != e.Key {
		err = errors.New("a key that is not in normal form")
	}
	return e, err
}

func (f *File) replay(_ durable.Location, meta []byte) error {
	e, err := decode(meta)
	if err != nil {
		return err
	}
	if e.Reason == "" {
		delete(f.mem.recs, e.Key)
	} else {
		f.mem.set(e)
	}
	return nil
}

// Check returns the entry that stops mail. It does not wait for the disk.
func (f *File) Check(ctx context.Context, k Key) (*Entry, error) { return f.mem.Check(ctx, k) }

// All returns the entries.
func (f *File) All(ctx context.Context) iter.Seq2[Entry, error] { return f.mem.All(ctx) }

// Add makes an entry. It is on the disk when Add returns nil.
func (f *File) Add(_ context.Context, e Entry) error {
	now := f.mem.now()
	e, err := e.clean(now)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.mem.mu.Lock()
	wanted := f.mem.wanted(&e, now)
	full := wanted && f.mem.recs[e.Key] == nil && !f.mem.room(now)
	f.mem.mu.Unlock()
	switch {
	case full:
		return ErrFull
	case !wanted:
		return nil
	}
	return f.write(&e)
}

// Remove takes away an entry.
func (f *File) Remove(_ context.Context, k Key) error {
	k, err := k.clean()
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.mem.mu.RLock()
	known := f.mem.recs[k] != nil
	f.mem.mu.RUnlock()
	if !known {
		return nil
	}
	return f.write(&Entry{Key: k})
}

// write puts an entry or a removal into the log and then into memory. It is called with mu.
func (f *File) write(e *Entry) error {
	b, err := encode(e)
	if err != nil {
		return err
	}
	if _, err := f.log.Append(durable.Record{Meta: b}); err != nil {
		return fmt.Errorf("suppress: %s: %w", f.dir, err)
	}
	f.mem.mu.Lock()
	if e.Reason == "" {
		delete(f.mem.recs, e.Key)
	} else {
		f.mem.set(e)
	}
	f.mem.mu.Unlock()
	if f.log.Size() > f.due {
		if err := f.compact(); err != nil {
			// What was to be saved is saved. The next change tries again.
			f.opt.Logger.Warn("suppress: the list cannot be compacted", "dir", f.dir, "err", err)
		}
	}
	return nil
}

// compact puts a new log in the place of the old one, if that halves it. It is called with mu.
func (f *File) compact() error {
	now := f.mem.now()
	var rows []durable.Record
	var live int64
	f.mem.mu.RLock()
	for _, e := range f.mem.recs {
		if !e.live(now) {
			continue
		}
		b, err := encode(e)
		if err != nil {
			f.mem.mu.RUnlock()
			return err
		}
		rows = append(rows, durable.Record{Meta: b})
		live += durable.Location{MetaLen: len(b)}.Size()
	}
	f.mem.mu.RUnlock()
	f.due = max(f.opt.compact, 2*live)
	if f.log.Size() < f.due {
		return nil
	}
	err := f.log.Replace(rows)
	if errors.Is(err, durable.ErrFailed) {
		f.opt.Logger.Error("suppress: the list has failed, and must be opened again", "dir", f.dir, "err", err)
	}
	return err
}

// Close closes the files. Changes fail from here on, Check goes on. A second Close
// does nothing.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return f.log.Close()
}
