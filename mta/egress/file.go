package egress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"

	"github.com/mailspine/mailspine/internal/durable"
)

// The state in a directory is one log of records in JSON, the last of a key being the one that counts.
// When it has grown to twice what is needed and more, a new one takes its place, with a higher
// number in its name.
const (
	logMagic   = "MSegress"
	logVersion = 1
	logPrefix  = "state-"

	// minCompact is the size under which a log is not compacted.
	minCompact = 1 << 20
	// maxKeys bounds how many keys a directory remembers. They come from
	// configurations only.
	maxKeys = 4 << 20
)

// Options tune a File. The zero value, and nil, mean the defaults.
type Options struct {
	// Logger gets what goes wrong behind the scenes; nil: slog.Default.
	Logger *slog.Logger

	fs      durable.FS // tests break it; nil: the operating system's
	compact int64      // tests make logs short; 0: minCompact
}

// A File is a State in a directory. It is made by [Open]. Records that were saved survive a crash and a
// loss of power. All records are in memory, about 200 octets for each key.
type File struct {
	dir string
	opt Options

	mu      sync.Mutex
	log     *durable.Journal
	recs    map[Key]Record
	live    int64 // octets that the records would take in a new log
	claimed bool
	closed  bool
}

var _ State = (*File)(nil)

// Open opens the state in a directory, and makes what is missing of it. The directory is
// locked: if another process has it open, the error says which. A damaged state is an
// error, and so is one that a newer program wrote: nothing is sent then, rather than too much.
func Open(dir string, o *Options) (*File, error) {
	f := &File{dir: dir, recs: map[Key]Record{}}
	if o != nil {
		f.opt = *o
	}
	if f.opt.Logger == nil {
		f.opt.Logger = slog.Default()
	}
	if f.opt.compact == 0 {
		f.opt.compact = minCompact
	}
	var err error
	f.log, err = durable.OpenJournal(f.opt.fs, dir, logPrefix, durable.LogOptions{Magic: logMagic, Version: logVersion}, f.replay)
	if err != nil {
		return nil, fmt.Errorf("egress: open %s: %w", dir, err)
	}
	return f, nil
}

func (f *File) replay(loc durable.Location, meta []byte) error {
	r, err := decode(meta)
	if err != nil {
		return err
	}
	return f.set(r, loc.Size())
}

func (f *File) set(r Record, size int64) error {
	old, ok := f.recs[r.Key]
	if ok {
		meta, _ := encode(old)
		f.live -= durable.Location{MetaLen: len(meta)}.Size()
	} else if len(f.recs) >= maxKeys {
		return fmt.Errorf("over %d keys", maxKeys)
	}
	f.recs[r.Key] = r
	f.live += size
	return nil
}

// maxRecord bounds a record in octets. Names are bounded by Selector.Validate.
const maxRecord = 2048

func encode(r Record) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(r)
	if err == nil && len(b) > maxRecord {
		err = fmt.Errorf("egress: the record of a %s with a name of %d octets is too long", r.Kind, len(r.Name))
	}
	return b, err
}

func decode(b []byte) (r Record, err error) {
	if len(b) > maxRecord {
		return r, errors.New("egress: a record is too long")
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("egress: a record is no record: %w", err)
	}
	return r, r.Validate()
}

// Claim returns all records.
func (f *File) Claim(context.Context) ([]Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, fs.ErrClosed
	case f.claimed:
		return nil, ErrInUse
	}
	f.claimed = true
	recs := make([]Record, 0, len(f.recs))
	for _, r := range f.recs {
		recs = append(recs, r)
	}
	return recs, nil
}

// Save replaces records, with one sync for all of them.
func (f *File) Save(_ context.Context, recs ...Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return fs.ErrClosed
	case !f.claimed:
		return errNotClaimed
	}
	fresh := 0
	rows := make([]durable.Record, len(recs))
	for i, r := range recs {
		b, err := encode(r)
		if err != nil {
			return err
		}
		rows[i].Meta = b
		if _, ok := f.recs[r.Key]; !ok {
			fresh++
		}
	}
	if len(f.recs)+fresh > maxKeys {
		return fmt.Errorf("egress: %s: over %d keys", f.dir, maxKeys)
	}
	locs, err := f.log.Append(rows...)
	if err != nil {
		return err
	}
	for i, r := range recs {
		f.set(r, locs[i].Size()) // there is room: see above
	}
	if size := f.log.Size(); size > f.opt.compact && size > 2*f.live {
		if err := f.compact(); err != nil {
			// What was to be saved is saved. The next Save tries again.
			f.opt.Logger.Warn("egress: the state cannot be compacted", "dir", f.dir, "err", err)
		}
	}
	return nil
}

// compact puts a new log in the place of the old one. It is called with mu.
func (f *File) compact() error {
	rows := make([]durable.Record, 0, len(f.recs))
	for _, r := range f.recs {
		b, err := encode(r)
		if err != nil {
			return err
		}
		rows = append(rows, durable.Record{Meta: b})
	}
	err := f.log.Replace(rows)
	if errors.Is(err, durable.ErrFailed) {
		f.opt.Logger.Error("egress: the state has failed, and must be opened again", "dir", f.dir, "err", err)
	}
	return err
}

// Release ends a claim.
func (f *File) Release() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.claimed {
		return errNotClaimed
	}
	f.claimed = false
	return nil
}

// Close closes the files. Close the Selector first, so that it can write its exact counts: from here on Save fails. A
// second Close does nothing.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return f.log.Close()
}
