package durable

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// OpenLog opens a log and calls replay for each of its records, in order. meta is
// valid until replay returns; an error from replay ends the opening.
//
// A torn tail, which a crash during the last Append leaves, is cut off. Damage
// that a crash cannot explain is a *[CorruptError], and the file is left as it is.
// What replay was given is durable when OpenLog returns nil, even if an earlier
// process was killed before its sync, or its sync failed.
func OpenLog(fsys FS, name string, o LogOptions, replay func(loc Location, meta []byte) error) (*Log, error) {
	fsys = Or(fsys)
	flag := os.O_RDWR
	if o.Strict {
		flag = os.O_RDONLY
	}
	f, err := fsys.OpenFile(name, flag, 0)
	if err != nil {
		return nil, err
	}
	l := newLog(fsys, name, f, o)
	if err := l.load(replay); err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

func (l *Log) load(replay func(Location, []byte) error) error {
	fi, err := l.file.Stat()
	if err != nil {
		return err
	}
	var h [logHeader]byte
	if _, err := l.file.ReadAt(h[:], 0); err != nil && err != io.EOF {
		return err
	}
	switch {
	case fi.Size() < logHeader || string(h[:8]) != l.opt.Magic:
		return &CorruptError{l.name, 0, fmt.Sprintf("it does not begin with %q", l.opt.Magic)}
	case crc32.Checksum(h[:16], castagnoli) != binary.LittleEndian.Uint32(h[16:]):
		return &CorruptError{l.name, 0, "the checksum of the file header is wrong"}
	}
	if v := binary.LittleEndian.Uint32(h[8:]); v > l.opt.Version {
		return &VersionError{l.name, v, l.opt.Version}
	}
	copy(l.mark[:], h[12:])
	start, end, bad, err := l.scan(fi.Size(), replay)
	if err != nil {
		return err
	}
	l.size = end
	if l.opt.Strict {
		if bad != "" {
			return &CorruptError{l.name, end, bad}
		}
		return nil
	}
	if bad != "" {
		if err := l.tornFrom(end, fi.Size(), bad); err != nil {
			return err
		}
		// The cut is synced before anything is appended: otherwise a piece of the old
		// tail could be found behind a new, shorter one.
		if err := l.file.Truncate(end); err != nil {
			return err
		}
	}
	if err := l.rewrite(start, end); err != nil {
		return err
	}
	return l.file.Sync()
}

// rewrite writes what is read between two offsets to where it is. What is read may
// be in the memory of the kernel only: a process may have been killed before its
// sync, or have been told that it failed, and then the pages count as clean and
// another sync would do nothing for them. All before the last batch was synced.
func (l *Log) rewrite(start, end int64) error {
	b := make([]byte, min(end-start, 256<<10))
	for off := start; off < end; {
		n := min(int64(len(b)), end-off)
		if _, err := l.file.ReadAt(b[:n], off); err != nil {
			return noEOF(err)
		}
		if _, err := l.file.WriteAt(b[:n], off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// scan reads records until the end or the first that is not whole, and says
// what is wrong with that. The last batch begins at start.
func (l *Log) scan(size int64, replay func(Location, []byte) error) (start, end int64, bad string, err error) {
	r := &window{f: l.file}
	// Bodies are read in the last batch, which may be torn. Where it begins is
	// known only at the end, so its records wait until the next batch shows that
	// it had been synced. At most one batch waits.
	type waiting struct {
		loc  Location
		meta []byte
		crc  uint32
	}
	var last []waiting
	flush := func(verify bool) (int64, string, error) {
		for _, w := range last {
			if verify || l.opt.VerifyBodies {
				ok, err := l.bodyOK(w.loc, w.crc)
				if err != nil {
					return 0, "", err
				}
				if !ok {
					return w.loc.Offset, "the checksum of the body is wrong", nil
				}
			}
			if err := replay(w.loc, w.meta); err != nil {
				return 0, "", err
			}
		}
		last = last[:0]
		return 0, "", nil
	}
	start = logHeader
	for off := start; ; {
		var h []byte
		if off+recordHeader <= size {
			if h, err = r.read(off, recordHeader); err != nil {
				return 0, 0, "", err
			}
		}
		loc, back, why := l.parse(h, off, size)
		var meta []byte
		if why == "" {
			bodyCRC := binary.LittleEndian.Uint32(h[20:])
			want := binary.LittleEndian.Uint32(h[16:])
			sum := crc32.Checksum(h[:16], castagnoli)
			if meta, err = r.read(off+recordHeader, loc.MetaLen); err != nil {
				return 0, 0, "", err
			}
			if crc32.Update(sum, castagnoli, meta) != want {
				why = "the checksum of the record is wrong"
			} else if back != 0 && back != off-start {
				return 0, 0, "", &CorruptError{l.name, off, "the record belongs to another batch"}
			} else {
				if back == 0 {
					if at, bad, err := flush(false); err != nil {
						return 0, 0, "", err
					} else if bad != "" {
						return 0, 0, "", &CorruptError{l.name, at, bad}
					}
					start = off
				}
				last = append(last, waiting{loc, append([]byte(nil), meta...), bodyCRC})
				off += loc.Size()
				continue
			}
		}
		if off == size {
			why = ""
		}
		at, bad, err := flush(true)
		if err != nil {
			return 0, 0, "", err
		}
		if bad != "" {
			return start, at, bad, nil
		}
		return start, off, why, nil
	}
}

// parse checks a record's header as far as that goes without its content.
func (l *Log) parse(h []byte, off, size int64) (loc Location, back int64, bad string) {
	if h == nil {
		return loc, 0, "the record header is cut short"
	}
	if [4]byte(h[:4]) != l.mark {
		return loc, 0, "there is no record"
	}
	m, b := binary.LittleEndian.Uint32(h[4:]), binary.LittleEndian.Uint32(h[8:])
	back = int64(binary.LittleEndian.Uint32(h[12:]))
	if uint64(m)+uint64(b) > MaxRecord || off+recordHeader+int64(m)+int64(b) > size || back > off-logHeader {
		return loc, 0, "the record is longer than the file or the limit"
	}
	return Location{off, int(m), int(b)}, back, ""
}

func (l *Log) bodyOK(loc Location, crc uint32) (bool, error) {
	b := make([]byte, min(loc.BodyLen, 256<<10))
	off, sum := loc.Offset+recordHeader+int64(loc.MetaLen), uint32(0)
	for left := loc.BodyLen; left > 0; {
		n := min(left, len(b))
		if _, err := l.file.ReadAt(b[:n], off); err != nil {
			return false, err
		}
		sum = crc32.Update(sum, castagnoli, b[:n])
		off, left = off+int64(n), left-n
	}
	return sum == crc, nil
}

// tornFrom decides whether what is broken at end can be the rest of a batch
// whose sync did not finish. It looks for a whole record of a later batch.
func (l *Log) tornFrom(end, size int64, bad string) error {
	var found int64 = -1
	r := &window{f: l.file}
	const step = 64 << 10
	for off := end + 1; off+recordHeader <= size && found < 0; {
		n := int(min(step, size-off))
		b, err := r.read(off, n)
		if err != nil {
			return err
		}
		for i := 0; i+recordHeader <= n; i++ {
			if b[i] != l.mark[0] || [4]byte(b[i:i+4]) != l.mark {
				continue
			}
			at := off + int64(i)
			loc, back, why := l.parse(b[i:i+recordHeader], at, size)
			if why != "" || at-back <= end {
				continue // no record, or one of the broken batch
			}
			meta := make([]byte, recordHeader+loc.MetaLen)
			if _, err := l.file.ReadAt(meta, at); err != nil {
				return err
			}
			sum := crc32.Checksum(meta[:16], castagnoli)
			if crc32.Update(sum, castagnoli, meta[recordHeader:]) == binary.LittleEndian.Uint32(meta[16:]) {
				found = at
				break
			}
		}
		if n < step {
			break
		}
		off += step - recordHeader + 1
	}
	if found >= 0 {
		return &CorruptError{l.name, end, fmt.Sprintf("%s, and a later record at octet %d is whole", bad, found)}
	}
	return nil
}

// ReadMeta returns the meta part of the record at an offset that Append or replay
// gave, after checking it.
func (l *Log) ReadMeta(offset int64) (Location, []byte, error) {
	loc, _, b, err := l.read(offset)
	return loc, b, err
}

// guess is what is read at first of a record, to save a second read.
const guess = 2 << 10

func (l *Log) read(offset int64) (Location, uint32, []byte, error) {
	buf := make([]byte, guess)
	n, err := l.file.ReadAt(buf, offset)
	if err != nil && err != io.EOF {
		return Location{}, 0, nil, err
	}
	if n < recordHeader {
		return Location{}, 0, nil, &CorruptError{l.name, offset, "the record header is cut short"}
	}
	h := buf[:recordHeader]
	loc, _, bad := l.parse(h, offset, l.Size())
	if bad != "" {
		return Location{}, 0, nil, &CorruptError{l.name, offset, bad}
	}
	meta := buf[recordHeader:n]
	if len(meta) >= loc.MetaLen {
		meta = meta[:loc.MetaLen]
	} else {
		meta = make([]byte, loc.MetaLen)
		k := copy(meta, buf[recordHeader:n])
		if _, err := l.file.ReadAt(meta[k:], offset+recordHeader+int64(k)); err != nil {
			return Location{}, 0, nil, noEOF(err)
		}
	}
	if crc32.Update(crc32.Checksum(h[:16], castagnoli), castagnoli, meta) != binary.LittleEndian.Uint32(h[16:]) {
		return Location{}, 0, nil, &CorruptError{l.name, offset, "the checksum of the record is wrong"}
	}
	return loc, binary.LittleEndian.Uint32(h[20:]), meta, nil
}

// ReadRecord returns the whole record at an offset, after checking it.
func (l *Log) ReadRecord(offset int64) (Record, error) {
	loc, crc, meta, err := l.read(offset)
	if err != nil {
		return Record{}, err
	}
	body := make([]byte, loc.BodyLen)
	if len(body) > 0 {
		if _, err := l.file.ReadAt(body, offset+recordHeader+int64(loc.MetaLen)); err != nil {
			return Record{}, noEOF(err)
		}
	}
	if crc32.Checksum(body, castagnoli) != crc {
		return Record{}, &CorruptError{l.name, offset, "the checksum of the body is wrong"}
	}
	return Record{Meta: meta, Body: body}, nil
}

// Scan calls f for each record that is durable now, in order. meta is valid until f
// returns. It reads no bodies.
func (l *Log) Scan(f func(loc Location, meta []byte) error) error {
	size := l.Size()
	r := &window{f: l.file}
	for off := int64(logHeader); off < size; {
		h, err := r.read(off, min(recordHeader, int(size-off)))
		if err != nil {
			return err
		}
		if len(h) < recordHeader {
			h = nil
		}
		loc, _, bad := l.parse(h, off, size)
		if bad != "" {
			return &CorruptError{l.name, off, bad}
		}
		want, sum := binary.LittleEndian.Uint32(h[16:]), crc32.Checksum(h[:16], castagnoli)
		meta, err := r.read(off+recordHeader, loc.MetaLen)
		if err != nil {
			return err
		}
		if crc32.Update(sum, castagnoli, meta) != want {
			return &CorruptError{l.name, off, "the checksum of the record is wrong"}
		}
		if err := f(loc, meta); err != nil {
			return err
		}
		off += loc.Size()
	}
	return nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A window reads a file forward in pieces of 256 KiB, and jumps over what
// nobody asks for.
type window struct {
	f   File
	buf []byte
	off int64 // of buf
}

// read returns n octets at off, valid until the next call. They must exist.
func (w *window) read(off int64, n int) ([]byte, error) {
	if off >= w.off && off+int64(n) <= w.off+int64(len(w.buf)) {
		i := off - w.off
		return w.buf[i : i+int64(n)], nil
	}
	size := max(n, 256<<10)
	if cap(w.buf) < size {
		w.buf = make([]byte, size)
	}
	w.buf, w.off = w.buf[:size], off
	got, err := w.f.ReadAt(w.buf, off)
	w.buf = w.buf[:got]
	if got < n {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		w.buf = w.buf[:0]
		return nil, err
	}
	return w.buf[:n], nil
}
