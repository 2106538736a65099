package durable

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"sync"
)

// The format of a log, all numbers little-endian:
//
//	header:  magic [8]  version [4]  marker [4]  crc [4]
//	record:  marker [4]  meta length [4]  body length [4]  back [4]
//	         meta crc [4]  body crc [4]  meta  body
//
// The crc are CRC-32C; that of meta covers the record's header before it too.
// The marker is random in each file, so that nothing in a body, which strangers
// write, can pass for a record. back is the distance to the first record of the same
// batch, and tells a torn batch from damage: a batch is written only after
// the one before it was synced, so if a whole record is found whose batch begins
// behind a broken one, what is broken had been synced.
const (
	logHeader    = 20
	recordHeader = 24
)

// The limits of a [Log], in octets.
const (
	MaxRecord = 32 << 20  // of one record, meta and body together
	MaxAppend = 256 << 20 // of all records of one Append
)

const (
	maxGather = 64 << 20 // a batch that has more takes no more writers, so none passes MaxAppend plus this
	maxSpare  = 4 << 20  // the largest buffer that is kept between batches
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli) // written once, by the runtime's init

// A Record is what a Log keeps. Meta is what has to be read when the log is
// opened; Body is left where it is until it is asked for.
type Record struct {
	Meta, Body []byte
}

// A Location says where a record is in its log, and how large it is.
type Location struct {
	Offset  int64
	MetaLen int
	BodyLen int
}

// Size returns the octets that the record takes in the file.
func (l Location) Size() int64 { return recordHeader + int64(l.MetaLen) + int64(l.BodyLen) }

// LogOptions describe a log. Magic is required.
type LogOptions struct {
	Magic   string // 8 octets that tell whose file this is
	Version uint32 // of the format of the records; a log of a newer one is refused
	// Strict is for a log that was complete before this one was opened: a torn
	// tail is corruption there, and nothing is cut or appended.
	Strict bool
	// VerifyBodies reads each body to check it. Without it bodies are checked when they are
	// read, and in the part of the file that a crash may have torn.
	VerifyBodies bool
	// Written is called, if not nil, after a batch is written and before it
	// is synced: tests of crashes stop there.
	Written func()
}

// A VersionError is returned for a log that a newer program has written.
type VersionError struct {
	Name         string
	Found, Known uint32
}

// Error tells both versions.
func (e *VersionError) Error() string {
	return fmt.Sprintf("durable: %s has format version %d, and this program knows none after %d: use a newer program", e.Name, e.Found, e.Known)
}

// A CorruptError is returned when a log has damage that no crash explains.
type CorruptError struct {
	Name   string
	Offset int64
	Reason string
}

// Error tells where and what.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("durable: %s is damaged at octet %d: %s", e.Name, e.Offset, e.Reason)
}

// A Log is a file of records that is only appended to. All methods are safe
// for concurrent use.
//
// Append returns when its records are durable. While one batch is being synced the
// next one gathers, so that any number of writers share one sync; the first
// writer that finds nobody syncing begins at once, in its own goroutine.
type Log struct {
	fsys FS
	name string
	file File
	opt  LogOptions
	mark [4]byte

	mu     sync.Mutex
	size   int64 // durable and whole up to here
	next   *batch
	busy   bool // somebody is writing a batch
	failed error
	closed bool
	active int        // Append calls
	idle   *sync.Cond // of mu: active fell to 0
	spare  [][]byte   // buffers of batches that are done, at most two: one gathers while one is written
}

type batch struct {
	buf  []byte
	lead chan struct{} // one of those who wait is to write the batch
	done chan struct{}
	base int64 // where it was written; set before done is closed
	err  error
}

func newLog(fsys FS, name string, f File, o LogOptions) *Log {
	l := &Log{fsys: fsys, name: name, file: f, opt: o}
	l.idle = sync.NewCond(&l.mu)
	return l
}

// CreateLog makes a log that begins with the records first; name must not exist. All of
// it is durable when it returns nil. After an error that matches [ErrFailed] the log may exist, with these records; after
// any other it does not.
func CreateLog(fsys FS, name string, o LogOptions, first ...Record) (*Log, error) {
	fsys = Or(fsys)
	if len(o.Magic) != 8 {
		return nil, errors.New("durable: the magic of a log has 8 octets")
	}
	h := make([]byte, logHeader)
	copy(h, o.Magic)
	binary.LittleEndian.PutUint32(h[8:], o.Version)
	rand.Read(h[12:16])
	binary.LittleEndian.PutUint32(h[16:], crc32.Checksum(h[:16], castagnoli))
	l := newLog(fsys, name, nil, o)
	copy(l.mark[:], h[12:])
	for _, r := range first {
		if len(r.Meta)+len(r.Body) > MaxRecord {
			return nil, fmt.Errorf("durable: %s: a record of %d octets, over %d", name, len(r.Meta)+len(r.Body), MaxRecord)
		}
		// Each is a batch of its own: back is 0.
		h = append(h, l.encode(nil, r, crc32.Checksum(r.Body, castagnoli))...)
	}
	if _, err := fsys.Stat(name); err == nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// Under a temporary name until the header is synced, so that a log is never found
	// without one.
	tmp := name + TempSuffix
	f, err := Create(fsys, tmp, 0o600, h)
	if err != nil {
		return nil, err
	}
	if err := fsys.Rename(tmp, name); err != nil {
		f.Close()
		fsys.Remove(tmp)
		return nil, err
	}
	if err := fsys.SyncDir(filepath.Dir(name)); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %s: %w", ErrFailed, name, err)
	}
	l.file, l.size = f, int64(len(h))
	return l, nil
}

// Append appends records, all in the order given and next to each other, and returns when they are
// durable, with their locations. If it fails, none of them is there and will
// not be, unless the error is [ErrFailed]: then that shows when the log is
// opened again. After any other error, as out of space, the log can be used on.
func (l *Log) Append(recs ...Record) ([]Location, error) {
	total := 0
	for _, r := range recs {
		n := len(r.Meta) + len(r.Body)
		if total += n; n > MaxRecord || total > MaxAppend {
			return nil, fmt.Errorf("durable: %s: a record of %d octets of %d in one call: the limits are %d and %d", l.name, n, total, MaxRecord, MaxAppend)
		}
	}
	if len(recs) == 0 {
		return nil, nil
	}
	// Checksums of bodies are made here, not under the lock.
	var one [1]uint32
	sums := one[:0]
	for _, r := range recs {
		sums = append(sums, crc32.Checksum(r.Body, castagnoli))
	}
	l.mu.Lock()
	l.active++
	defer l.leave()
	for l.next != nil && len(l.next.buf) > maxGather {
		// Too much has gathered: this is for a later batch.
		done := l.next.done
		l.mu.Unlock()
		<-done
		l.mu.Lock()
	}
	if err := l.usable(); err != nil {
		l.mu.Unlock()
		return nil, err
	}
	b := l.next
	if b == nil {
		b = &batch{lead: make(chan struct{}, 1), done: make(chan struct{})}
		if n := len(l.spare); n > 0 {
			b.buf, l.spare = l.spare[n-1], l.spare[:n-1]
		}
		l.next = b
	}
	locs := make([]Location, len(recs))
	for i, r := range recs {
		locs[i] = Location{int64(len(b.buf)), len(r.Meta), len(r.Body)} // in the batch, until that has a place
		b.buf = l.encode(b.buf, r, sums[i])
	}
	mine := !l.busy
	l.busy = true
	l.mu.Unlock()
	if !mine {
		select {
		case <-b.lead:
			// Those whom the last batch set free come back about now. Letting
			// them in makes one batch of two half ones.
			runtime.Gosched()
			mine = true
		case <-b.done:
		}
	}
	if mine {
		l.write(b)
	}
	if b.err != nil {
		return nil, b.err
	}
	for i := range locs {
		locs[i].Offset += b.base
	}
	return locs, nil
}

func (l *Log) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active--; l.active == 0 {
		l.idle.Broadcast()
	}
}

func (l *Log) usable() error {
	switch {
	case l.closed:
		return fs.ErrClosed
	case l.failed != nil:
		return l.failed
	case l.opt.Strict:
		return errors.New("durable: the log is complete and takes no more")
	}
	return nil
}

func (l *Log) encode(buf []byte, r Record, bodySum uint32) []byte {
	back := len(buf)
	buf = append(buf, l.mark[:]...)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(r.Meta)))
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(r.Body)))
	buf = binary.LittleEndian.AppendUint32(buf, uint32(back))
	sum := crc32.Update(crc32.Checksum(buf[back:], castagnoli), castagnoli, r.Meta)
	buf = binary.LittleEndian.AppendUint32(buf, sum)
	buf = binary.LittleEndian.AppendUint32(buf, bodySum)
	buf = append(buf, r.Meta...)
	return append(buf, r.Body...)
}

// write writes and syncs a batch, and passes the lead on. Only one goroutine is here
// at a time: the one that set busy, or was handed it.
func (l *Log) write(b *batch) {
	l.mu.Lock()
	l.next = nil // from here on others gather for the next one
	b.base = l.size
	err := l.failed
	l.mu.Unlock()
	var failed error
	if err == nil {
		err, failed = l.put(b)
	}
	l.mu.Lock()
	b.err = err
	if failed != nil {
		l.failed = failed
	}
	if err == nil {
		l.size += int64(len(b.buf))
	}
	if cap(b.buf) <= maxSpare && len(l.spare) < 2 {
		l.spare = append(l.spare, b.buf[:0])
	}
	b.buf = nil
	next := l.next
	l.busy = next != nil
	l.mu.Unlock()
	close(b.done)
	if next != nil {
		// Told last, the one that leads runs first: the disk is idle until it does.
		next.lead <- struct{}{}
	}
}

// put returns the error of the batch, and a second one if the log has failed for good.
func (l *Log) put(b *batch) (err, failed error) {
	n, err := l.file.WriteAt(b.buf, b.base)
	if err == nil && n < len(b.buf) {
		err = io.ErrShortWrite
	}
	if err != nil {
		// What was written of the batch goes, durably: it must not be found after a
		// crash, behind the back of writers who were told that it failed.
		cut := l.file.Truncate(b.base)
		if cut == nil {
			cut = l.file.Sync()
		}
		if cut != nil {
			failed = fmt.Errorf("%w: %s: %w, and the cut: %w", ErrFailed, l.name, err, cut)
			return failed, failed
		}
		return err, nil
	}
	if l.opt.Written != nil {
		l.opt.Written()
	}
	if err := l.file.Sync(); err != nil {
		failed = fmt.Errorf("%w: %s: %w", ErrFailed, l.name, err)
		return failed, failed
	}
	return nil, nil
}

// Size returns how long the file is, as far as it is durable.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Err returns the error that the log has failed with for good, or nil.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// Name returns the file's name.
func (l *Log) Name() string { return l.name }

// Close closes the file. Appends under way are finished first; later ones
// return fs.ErrClosed.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return fs.ErrClosed
	}
	l.closed = true
	for l.active > 0 {
		l.idle.Wait()
	}
	l.mu.Unlock()
	return l.file.Close()
}
