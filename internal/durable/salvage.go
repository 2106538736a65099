package durable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"syscall"
)

// A Piece is a stretch of a log that may be damaged: the header, which is at offset 0, a record, or what is
// neither.
type Piece struct {
	Offset, Length int64 // in the file

	// Whole says that this is a record whose header and meta have the right checksum.
	Whole bool
	// Damage says what is wrong; "" if nothing is. In a whole record it is the body's checksum.
	Damage string
	// Batch is the offset of the first record of the batch of a whole record. What is
	// broken before it had been synced, so no crash explains it.
	Batch int64
	// Meta is that of the record, valid until the next piece. If it is not whole these are the octets where its meta
	// should be, or nil: a hint for people, and nothing more.
	Meta []byte
	// MetaLen and BodyLen are the record's, if it is whole.
	MetaLen, BodyLen int

	file io.ReaderAt
}

// Body reads the body of a whole record, right or wrong.
func (p *Piece) Body() ([]byte, error) {
	if !p.Whole {
		return nil, errors.New("durable: the piece is no record")
	}
	if p.BodyLen == 0 {
		return nil, nil
	}
	b := make([]byte, p.BodyLen)
	if _, err := p.file.ReadAt(b, p.Offset+recordHeader+int64(p.MetaLen)); err != nil {
		return nil, noEOF(err)
	}
	return b, nil
}

// maxHint bounds Piece.Meta of what is no record, in octets.
const maxHint = 1 << 20

// Salvage reads what can be read of a log, whatever has happened to it, and changes nothing. It calls f for
// pieces that cover the file from the first octet to the last, in order: its header, records, and what is damaged between
// them. Of an empty file, which no log is, there are none. An error of f ends it. Every body is read. Sectors that the disk
// cannot read are damage.
//
// After damage it goes on at the next octets that are the file's marker and a record by their checksum. If the marker is
// not known, since the first 24 octets are all damaged, and what looks like records has several, the file is one
// piece of damage: some of it could be of the mail of a stranger.
//
// A log of a version after o.Version is a *[VersionError]: it is not damaged. It takes memory for one record's meta.
func Salvage(fsys FS, name string, o LogOptions, f func(p *Piece) error) error {
	fsys = Or(fsys)
	file, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	s := &salvager{size: fi.Size(), f: f}
	s.log = newLog(fsys, name, patient{file}, o)
	s.win.f = s.log.file
	return s.run()
}

type salvager struct {
	log  *Log
	win  window
	size int64
	f    func(p *Piece) error
}

func (s *salvager) run() error {
	at, bad, err := s.header()
	if err != nil {
		return err
	}
	if at == 0 {
		return nil
	}
	if err := s.f(&Piece{Length: at, Damage: bad}); err != nil {
		return err
	}
	for off := at; off < s.size; {
		p, err := s.piece(off)
		if err != nil {
			return err
		}
		if err := s.f(p); err != nil {
			return err
		}
		off += p.Length
	}
	return nil
}

// header finds the marker, and returns where the records begin and what is wrong with the file's header.
func (s *salvager) header() (at int64, bad string, err error) {
	l := s.log
	if s.size < logHeader {
		return s.size, "the file header is cut short", nil
	}
	b := make([]byte, min(s.size, logHeader+4))
	if _, err := l.file.ReadAt(b, 0); err != nil && err != io.EOF {
		return 0, "", err
	}
	copy(l.mark[:], b[12:])
	switch {
	case crc32.Checksum(b[:16], castagnoli) != binary.LittleEndian.Uint32(b[16:]):
		bad = "the checksum of the file header is wrong"
	case string(b[:8]) != l.opt.Magic:
		bad = fmt.Sprintf("it does not begin with %q", l.opt.Magic)
	default:
		if v := binary.LittleEndian.Uint32(b[8:]); v > l.opt.Version {
			return 0, "", &VersionError{l.name, v, l.opt.Version}
		}
		return logHeader, "", nil
	}
	// The marker is there twice: in the header, and where the first record begins.
	// Neither place is one that mail gets to. The one for which there is a record is right.
	for _, m := range [][]byte{b[12:16], b[logHeader:]} {
		if len(m) < 4 {
			continue
		}
		copy(l.mark[:], m)
		next, err := s.find(logHeader)
		if err != nil {
			return 0, "", err
		}
		if next < s.size {
			return logHeader, bad, nil
		}
	}
	if ok, err := s.guess(); ok || err != nil {
		return logHeader, bad, err
	}
	return s.size, bad, nil
}

// guess looks for the marker when both places where it should be are damaged: it is that of the records that there
// are. Mail may have octets that look like records, with another marker; those are inside of a record. If two markers are found
// side by side, the record around one of them is damaged; nobody knows which, and none is taken.
func (s *salvager) guess() (ok bool, err error) {
	// Each place that could be a record costs a checksum, and a stranger may have written many. So the sum of them is bounded.
	budget := 16*s.size + MaxRecord
	l := s.log
	const step = 64 << 10
	for off := int64(logHeader); off+recordHeader <= s.size; {
		n := int(min(step, s.size-off))
		b, err := s.win.read(off, n)
		if err != nil {
			return false, err
		}
		i, next := 0, off+int64(n-recordHeader+1)
		for ; i+recordHeader <= n; i++ {
			h := b[i : i+recordHeader]
			if binary.LittleEndian.Uint32(h[4:]) > MaxRecord {
				continue // most of what is no record
			}
			mark, at := [4]byte(h), off+int64(i)
			was := l.mark
			l.mark = mark
			loc, _, bad := l.parse(h, at, s.size)
			l.mark = was
			if bad != "" {
				continue
			}
			if budget -= int64(loc.MetaLen); budget < 0 {
				return false, nil
			}
			sum, want := crc32.Checksum(h[:16], castagnoli), binary.LittleEndian.Uint32(h[16:])
			meta := make([]byte, loc.MetaLen)
			if _, err := l.file.ReadAt(meta, at+recordHeader); err != nil && len(meta) > 0 {
				return false, noEOF(err)
			}
			if crc32.Update(sum, castagnoli, meta) != want {
				continue
			}
			if ok && mark != l.mark {
				return false, nil
			}
			l.mark, ok, next = mark, true, at+loc.Size()
			break
		}
		off = next
	}
	return ok, nil
}

// piece returns what is at an offset.
func (s *salvager) piece(off int64) (*Piece, error) {
	p, bad, err := s.whole(off)
	if err != nil || p != nil {
		return p, err
	}
	next, err := s.find(off + 1)
	if err != nil {
		return nil, err
	}
	p = &Piece{Offset: off, Length: next - off, Damage: bad}
	// A hint of what it was: the lengths are believed if the file agrees with them.
	if p.Length < recordHeader {
		return p, nil
	}
	h, err := s.win.read(off, recordHeader)
	if err != nil {
		return nil, err
	}
	m, body := int64(binary.LittleEndian.Uint32(h[4:])), int64(binary.LittleEndian.Uint32(h[8:]))
	if n := recordHeader + m; n <= p.Length && m <= maxHint && ([4]byte(h[:4]) == s.log.mark || n+body == p.Length) {
		b, err := s.win.read(off+recordHeader, int(m))
		if err != nil {
			return nil, err
		}
		p.Meta = b
	}
	return p, nil
}

// whole returns the record at an offset, or nil and what is wrong with it.
func (s *salvager) whole(off int64) (*Piece, string, error) {
	var h []byte
	var err error
	if off+recordHeader <= s.size {
		if h, err = s.win.read(off, recordHeader); err != nil {
			return nil, "", err
		}
	}
	loc, back, bad := s.log.parse(h, off, s.size)
	if bad != "" {
		return nil, bad, nil
	}
	want, body := binary.LittleEndian.Uint32(h[16:]), binary.LittleEndian.Uint32(h[20:])
	sum := crc32.Checksum(h[:16], castagnoli)
	// Most records are read at once, and more with them.
	small := loc.Size() <= 64<<10
	n := loc.MetaLen
	if small {
		n += loc.BodyLen
	}
	b, err := s.win.read(off+recordHeader, n)
	if err != nil {
		return nil, "", err
	}
	meta := b[:loc.MetaLen]
	if crc32.Update(sum, castagnoli, meta) != want {
		return nil, "the checksum of the record is wrong", nil
	}
	p := &Piece{
		Offset: off, Length: loc.Size(), Whole: true, Batch: off - back, Meta: meta,
		MetaLen: loc.MetaLen, BodyLen: loc.BodyLen, file: s.log.file,
	}
	ok := true
	if small {
		ok = crc32.Checksum(b[loc.MetaLen:], castagnoli) == body
	} else if ok, err = s.log.bodyOK(loc, body); err != nil {
		return nil, "", err
	}
	if !ok {
		p.Damage = "the checksum of the body is wrong"
	}
	return p, "", nil
}

// find returns the offset of the first record at or after an offset that is whole but for its body, or
// the size of the file.
func (s *salvager) find(off int64) (int64, error) {
	const step = 64 << 10
	for off+recordHeader <= s.size {
		n := int(min(step, s.size-off))
		b, err := s.win.read(off, n)
		if err != nil {
			return 0, err
		}
		i := bytes.Index(b[:n-recordHeader+4], s.log.mark[:])
		if i < 0 {
			off += int64(n - recordHeader + 1)
			continue
		}
		at := off + int64(i)
		loc, _, bad := s.log.parse(b[i:i+recordHeader], at, s.size)
		if bad == "" {
			sum, want := crc32.Checksum(b[i:i+16], castagnoli), binary.LittleEndian.Uint32(b[i+16:])
			meta, err := s.win.read(at+recordHeader, loc.MetaLen)
			if err != nil {
				return 0, err
			}
			if crc32.Update(sum, castagnoli, meta) == want {
				return at, nil
			}
		}
		off = at + 1
	}
	return s.size, nil
}

// A patient file reads zeros where the disk cannot read, in blocks: that is damage, as the
// checksums tell, and no reason to give up what is behind it.
type patient struct{ File }

func (p patient) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.File.ReadAt(b, off)
	if err == nil || err == io.EOF || !errors.Is(err, syscall.EIO) {
		return n, err
	}
	const block = 4 << 10
	for n := 0; n < len(b); {
		k := min(len(b)-n, int(block-(off+int64(n))%block))
		got, err := p.File.ReadAt(b[n:n+k], off+int64(n))
		switch {
		case err == nil:
		case err == io.EOF:
			return n + got, io.EOF
		case errors.Is(err, syscall.EIO):
			clear(b[n : n+k])
		default:
			return n + got, err
		}
		n += k
	}
	return len(b), nil
}
