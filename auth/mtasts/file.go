package mtasts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine/internal/durable"
)

// A directory has a file for each domain: a line with the format's name and the checksum of the rest, and the entry in
// JSON. It is replaced as a whole, so a crash leaves the old one or the new one.
const (
	fileMagic  = "mailspine-mtasts-1 "
	filePrefix = "sts."
	fileSuffix = ".json"
	lockName   = "lock"

	// maxFile bounds a file in octets: a policy of MaxPolicy octets in JSON, with the other fields.
	maxFile = 2 * MaxPolicy
	// maxPlain bounds the domains that are in the names of files as they are; longer ones are hashed, so that
	// a name has no more than 255 octets even while it is being written.
	maxPlain = 200
)

// Options tune a File. The zero value, and nil, mean the defaults.
type Options struct {
	// MaxEntries is how many domains are kept; zero or negative: DefaultMaxEntries. Each takes a file of less than 1 KiB, as a rule.
	MaxEntries int
	// Logger hears of files that are damaged; nil: slog.Default.
	Logger *slog.Logger

	fs durable.FS // tests break it; nil: the operating system's
}

// A File is a Store in a directory. It is made by [OpenFile]. What was saved survives a crash and a loss of power.
type File struct {
	dir string
	opt Options
	fs  durable.FS

	mu     sync.Mutex // held for writing and removing
	lock   io.Closer
	count  int // files that there are
	closed bool
}

var _ Store = (*File)(nil)

// OpenFile opens a store in a directory, and makes the directory if it is missing, with mode 0700; its files have 0600. It is
// locked: if another process has it open, the error says which. What a crash has left behind is removed.
func OpenFile(dir string, o *Options) (*File, error) {
	f := &File{dir: dir}
	if o != nil {
		f.opt = *o
	}
	if f.opt.MaxEntries <= 0 {
		f.opt.MaxEntries = DefaultMaxEntries
	}
	if f.opt.Logger == nil {
		f.opt.Logger = slog.Default()
	}
	f.fs = durable.Or(f.opt.fs)
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("mtasts: open %s: %w", dir, err)
	}
	return f, nil
}

func (f *File) open() (err error) {
	if err := durable.MkdirAll(f.fs, f.dir, 0o700); err != nil {
		return err
	}
	if f.lock, err = f.fs.Lock(filepath.Join(f.dir, lockName)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.lock.Close())
		}
	}()
	// A process may have been killed before it had synced the directory's own name.
	if err := f.fs.SyncDir(filepath.Dir(filepath.Clean(f.dir))); err != nil {
		return err
	}
	list, err := f.fs.ReadDir(f.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		switch name := e.Name(); {
		case !strings.HasPrefix(name, filePrefix): // not ours
		case strings.HasSuffix(name, fileSuffix+durable.TempSuffix):
			if err := f.fs.Remove(filepath.Join(f.dir, name)); err != nil {
				return err
			}
		case strings.HasSuffix(name, fileSuffix):
			f.count++
		}
	}
	return f.fs.SyncDir(f.dir)
}

// Close gives the directory back. What is called later returns fs.ErrClosed; a second Close does nothing.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	return f.lock.Close()
}

// path is the file of a domain, which policyDomain or Entry.Validate has found to be letters, digits, hyphens and dots.
func (f *File) path(domain string) string {
	name := domain
	if len(name) > maxPlain {
		sum := sha256.Sum256([]byte(domain))
		name = "=" + hex.EncodeToString(sum[:]) // no domain has an equals sign
	}
	return filepath.Join(f.dir, filePrefix+name+fileSuffix)
}

// Load implements [Store]. A damaged file is logged and is no entry.
func (f *File) Load(_ context.Context, domain string) (Entry, error) {
	if d, ok := policyDomain(domain); !ok || d != domain {
		return Entry{}, ErrNoEntry
	}
	if f.isClosed() {
		return Entry{}, fmt.Errorf("mtasts: load %s: %w", domain, fs.ErrClosed)
	}
	e, err := f.read(f.path(domain))
	if err == nil && e.Domain != domain {
		f.damaged(f.path(domain), fmt.Errorf("it is of the domain %s", e.Domain))
		err = ErrNoEntry
	}
	if err != nil {
		return Entry{}, err
	}
	return e, nil
}

func (f *File) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// read reads a file, without the lock: files are replaced whole.
func (f *File) read(name string) (Entry, error) {
	b, err := durable.ReadFile(f.fs, name, maxFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Entry{}, ErrNoEntry
	case err != nil:
		if fi, serr := f.fs.Stat(name); serr == nil && fi.Size() > maxFile {
			f.damaged(name, err)
			return Entry{}, ErrNoEntry
		}
		return Entry{}, fmt.Errorf("mtasts: %w", err)
	}
	e, err := decode(b)
	if err != nil {
		f.damaged(name, err)
		return Entry{}, ErrNoEntry
	}
	return e, nil
}

func (f *File) damaged(name string, err error) {
	f.opt.Logger.Warn("mtasts: a file is damaged and its policy forgotten", "file", name, "err", err)
}

// Save implements [Store].
func (f *File) Save(_ context.Context, e Entry) error {
	b, err := encode(e)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("mtasts: save %s: %w", e.Domain, fs.ErrClosed)
	}
	name := f.path(e.Domain)
	_, err = f.fs.Stat(name)
	isNew := errors.Is(err, fs.ErrNotExist)
	if err != nil && !isNew {
		return fmt.Errorf("mtasts: %w", err)
	}
	if isNew && f.count >= f.opt.MaxEntries {
		return ErrFull
	}
	if err := durable.WriteFile(f.fs, name, b, 0o600); err != nil {
		// The rename may have been done.
		if _, serr := f.fs.Stat(name); isNew && serr == nil {
			f.count++
		}
		return fmt.Errorf("mtasts: %w", err)
	}
	if isNew {
		f.count++
	}
	return nil
}

// Delete implements [Store].
func (f *File) Delete(_ context.Context, domain string) error {
	if d, ok := policyDomain(domain); !ok || d != domain {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("mtasts: delete %s: %w", domain, fs.ErrClosed)
	}
	err := f.fs.Remove(f.path(domain))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("mtasts: %w", err)
	}
	f.count--
	return nil
}

// All implements [Store]. Damaged files are logged and left out.
func (f *File) All(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if f.isClosed() {
			yield(Entry{}, fmt.Errorf("mtasts: list: %w", fs.ErrClosed))
			return
		}
		list, err := f.fs.ReadDir(f.dir)
		if err != nil {
			yield(Entry{}, fmt.Errorf("mtasts: %w", err))
			return
		}
		for _, d := range list {
			if err := ctx.Err(); err != nil {
				yield(Entry{}, err)
				return
			}
			if !strings.HasPrefix(d.Name(), filePrefix) || !strings.HasSuffix(d.Name(), fileSuffix) {
				continue
			}
			name := filepath.Join(f.dir, d.Name())
			e, err := f.read(name)
			if err == nil && f.path(e.Domain) != name {
				f.damaged(name, fmt.Errorf("it is of the domain %s", e.Domain))
				err = ErrNoEntry
			}
			if errors.Is(err, ErrNoEntry) {
				continue
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// record is an Entry in a file.
type record struct {
	Domain  string    `json:"domain"`
	ID      string    `json:"id"`
	Mode    Mode      `json:"mode"`
	MX      []string  `json:"mx,omitempty"`
	MaxAge  int64     `json:"max_age"` // seconds
	Fetched time.Time `json:"fetched"`
	Used    time.Time `json:"used"`
}

// castagnoli is made on first use and never changes.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

func encode(e Entry) ([]byte, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(record{e.Domain, e.Policy.ID, e.Policy.Mode, e.Policy.MX, int64(e.Policy.MaxAge / time.Second), e.Fetched.UTC(), e.Used.UTC()})
	if err != nil {
		return nil, fmt.Errorf("mtasts: %w", err)
	}
	if b = seal(append(b, '\n')); len(b) > maxFile {
		return nil, fmt.Errorf("mtasts: the entry of %s has %d octets", e.Domain, len(b))
	}
	return b, nil
}

// seal puts the line with the checksum in front.
func seal(body []byte) []byte {
	return append(fmt.Appendf(nil, "%s%08x\n", fileMagic, crc32.Checksum(body, castagnoli())), body...)
}

func decode(b []byte) (Entry, error) {
	head, body, _ := bytes.Cut(b, []byte("\n"))
	sum, ok := bytes.CutPrefix(head, []byte(fileMagic))
	switch {
	case !ok:
		return Entry{}, errors.New("not a file of this format")
	case string(sum) != fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli())):
		return Entry{}, errors.New("the checksum is wrong")
	}
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		return Entry{}, err
	}
	if r.MaxAge < 0 || r.MaxAge > int64(MaxMaxAge/time.Second) {
		return Entry{}, fmt.Errorf("a max_age of %d", r.MaxAge)
	}
	e := Entry{Domain: r.Domain, Policy: Policy{r.ID, r.Mode, r.MX, time.Duration(r.MaxAge) * time.Second}, Fetched: r.Fetched, Used: r.Used}
	return e, e.Validate()
}
