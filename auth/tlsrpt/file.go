package tlsrpt

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/mailspine/mailspine/internal/durable"
)

// The rows in a directory are one log of records in JSON, the last of a day and domain being the one that counts. When it has
// grown to twice what is needed and more, a new one takes its place, with a higher number in its name.
const (
	logMagic   = "MStlsrpt"
	logVersion = 1
	logPrefix  = "sessions-"
	minCompact = 4 << 20
	// maxRow bounds a record, in octets. The bounds of a Collector are far below.
	maxRow = 16 << 20
	// maxLive bounds what all rows take in a new log, so that it can be written at once.
	maxLive = 192 << 20
)

// FileOptions tune a File. The zero value, and nil, mean the defaults.
type FileOptions struct {
	// Logger gets what goes wrong behind the scenes; nil: slog.Default.
	Logger *slog.Logger

	fs      durable.FS // tests break it; nil: the operating system's
	compact int64      // tests make logs short; 0: minCompact
}

// A File is a Store in a directory. It is made by [OpenFile]. Rows that were saved survive a crash and a loss of power. It keeps a copy
// of all rows in memory, as they are in the file.
type File struct {
	dir string
	opt FileOptions

	mu     sync.Mutex
	log    *durable.Journal
	rows   map[rowKey][]byte
	live   int64 // octets that the rows would take in a new log
	closed bool
}

var _ Store = (*File)(nil)

// OpenFile opens the store in a directory, and makes what is missing of it. The directory is locked: if another process has it
// open, the error says which. A damaged store is an error, and so is one that a newer program wrote; nothing but
// statistics is lost if it is moved away.
func OpenFile(dir string, o *FileOptions) (*File, error) {
	f := &File{dir: dir, rows: map[rowKey][]byte{}}
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
		return nil, fmt.Errorf("tlsrpt: open %s: %w", dir, err)
	}
	return f, nil
}

// A fileRow is a row as it is in the log; with Forget it removes all days before that one instead.
type fileRow struct {
	Forget   string       `json:"forget,omitempty"`
	Day      string       `json:"day,omitempty"`
	Domain   string       `json:"domain,omitempty"`
	Policies []wirePolicy `json:"policies,omitempty"`
	ID       string       `json:"id,omitempty"`
	Attempts int          `json:"attempts,omitempty"`
	First    int64        `json:"first,omitempty"` // in seconds since 1970; 0: none
	Next     int64        `json:"next,omitempty"`
	Done     bool         `json:"done,omitempty"`
	Note     string       `json:"note,omitempty"`
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func fromUnix(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(n, 0).UTC()
}

func encodeRow(r *Row) ([]byte, error) {
	if d, err := cleanDomain(r.Domain); err != nil || d != r.Domain || !midnight(r.Day).Equal(r.Day) {
		return nil, fmt.Errorf("tlsrpt: a row of %.100q on %s is not in normal form", r.Domain, r.Day)
	}
	d := &r.Delivery
	b, err := encode(fileRow{
		Day: r.Day.UTC().Format(time.DateOnly), Domain: r.Domain, Policies: toWire(r.Policies),
		ID: d.ID, Attempts: d.Attempts, First: unix(d.First), Next: unix(d.Next), Done: d.Done, Note: d.Note,
	})
	if err == nil && len(b) > maxRow {
		err = fmt.Errorf("tlsrpt: the row of %s has %d octets", r.Domain, len(b))
	}
	return b, err
}

// decodeRow returns a row, or the day before which all is forgotten.
func decodeRow(b []byte) (r Row, forget time.Time, err error) {
	var w fileRow
	if len(b) > maxRow {
		return r, forget, fmt.Errorf("a record of %d octets", len(b))
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return r, forget, err
	}
	if w.Forget != "" {
		forget, err = time.Parse(time.DateOnly, w.Forget)
		return r, forget, err
	}
	if r.Day, err = time.Parse(time.DateOnly, w.Day); err != nil {
		return r, forget, err
	}
	r.Domain = w.Domain
	r.Delivery = Delivery{ID: w.ID, Attempts: w.Attempts, First: fromUnix(w.First), Next: fromUnix(w.Next), Done: w.Done, Note: w.Note}
	if d, err := cleanDomain(w.Domain); err != nil || d != w.Domain {
		return r, forget, errors.New("a domain that is not in normal form")
	}
	r.Policies, err = fromWire(w.Policies)
	return r, forget, err
}

// fromWire is the reverse of toWire, for what we wrote ourselves.
func fromWire(list []wirePolicy) ([]PolicyResult, error) {
	var out []PolicyResult
	parse := func(s string) (a netip.Addr, err error) {
		if s != "" {
			a, err = netip.ParseAddr(s)
		}
		return a, err
	}
	for _, w := range list {
		p := PolicyResult{
			Policy:     Policy{Type: cmp.Or(w.Policy.Type, PolicyNone), Domain: w.Policy.Domain, Strings: w.Policy.Strings, MXHosts: w.Policy.MXHosts},
			Successful: w.Summary.Successful, Failed: w.Summary.Failed,
		}
		for _, f := range w.Failures {
			from, err := parse(f.SendingIP)
			if err != nil {
				return nil, err
			}
			to, err := parse(f.ReceivingIP)
			if err != nil {
				return nil, err
			}
			p.Failures = append(p.Failures, Failure{
				Result: f.Result, SendingIP: from, ReceivingMX: f.ReceivingMX, ReceivingMXHelo: f.ReceivingMXHelo, ReceivingIP: to,
				Sessions: f.Sessions, Info: f.Info, Reason: f.Reason,
			})
		}
		out = append(out, p)
	}
	return out, nil
}

func rowSize(b []byte) int64 { return durable.Location{MetaLen: len(b)}.Size() }

func (f *File) replay(_ durable.Location, meta []byte) error {
	r, forget, err := decodeRow(meta)
	if err != nil {
		return fmt.Errorf("a record is no record: %w", err)
	}
	if !forget.IsZero() {
		f.drop(forget)
		return nil
	}
	f.set(r.key(), append([]byte(nil), meta...))
	return nil
}

func (f *File) set(k rowKey, b []byte) {
	if old, ok := f.rows[k]; ok {
		f.live -= rowSize(old)
	}
	f.rows[k] = b
	f.live += rowSize(b)
}

func (f *File) drop(before time.Time) {
	for k, b := range f.rows {
		if k.day < before.Unix() {
			f.live -= rowSize(b)
			delete(f.rows, k)
		}
	}
}

// Load calls fn for each row.
func (f *File) Load(_ context.Context, fn func(Row) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	for _, b := range f.rows {
		r, _, err := decodeRow(b)
		if err == nil {
			err = fn(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Save replaces rows, with one sync for all of them.
func (f *File) Save(_ context.Context, rows ...Row) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	recs := make([]durable.Record, len(rows))
	size := f.live
	for i := range rows {
		b, err := encodeRow(&rows[i])
		if err != nil {
			return err
		}
		recs[i].Meta = b
		size += rowSize(b) // a row that is replaced counts twice here, which does no harm
	}
	if size > maxLive {
		return fmt.Errorf("tlsrpt: %s: over %d octets", f.dir, maxLive)
	}
	if len(recs) == 0 {
		return nil
	}
	if _, err := f.log.Append(recs...); err != nil {
		return err
	}
	for i := range rows {
		f.set(rows[i].key(), recs[i].Meta)
	}
	f.tidy()
	return nil
}

// Forget removes the rows of days before one.
func (f *File) Forget(_ context.Context, before time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	b, err := encode(fileRow{Forget: midnight(before).Format(time.DateOnly)})
	if err != nil {
		return err
	}
	if _, err := f.log.Append(durable.Record{Meta: b}); err != nil {
		return err
	}
	f.drop(midnight(before))
	f.tidy()
	return nil
}

// tidy puts a new log in the place of one that has grown. It is called with mu. If it fails, what was to be saved is saved, and the
// next call tries again.
func (f *File) tidy() {
	if size := f.log.Size(); size <= f.opt.compact || size <= 2*f.live {
		return
	}
	recs := make([]durable.Record, 0, len(f.rows))
	for _, b := range f.rows {
		recs = append(recs, durable.Record{Meta: b})
	}
	err := f.log.Replace(recs)
	switch {
	case errors.Is(err, durable.ErrFailed):
		f.opt.Logger.Error("tlsrpt: the store has failed, and must be opened again", "dir", f.dir, "err", err)
	case err != nil:
		f.opt.Logger.Warn("tlsrpt: the store cannot be compacted", "dir", f.dir, "err", err)
	}
}

// Close closes the files. Flush the Collector first: from here on everything fails. A second Close does nothing.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return f.log.Close()
}
