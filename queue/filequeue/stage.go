package filequeue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
)

// Stage gives an arriving message a place in the store: memory up to
// Options.InlineMax, then a file in stage/, which Put adopts. It implements
// mailspine.Stager.
func (s *Store) Stage(ctx context.Context, size int64) (mailspine.Stage, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	if err := s.accepts(); err != nil {
		return nil, err
	}
	return &stage{s: s, reserve: s.opt.MinFree}, nil
}

// roomStep is how many octets are written to a stage between looks at the room
// that is left, so that messages that arrive do not use up what is kept for results.
const roomStep = 64 << 10

var errStageDone = errors.New("filequeue: stage is closed")

// A stage is where a message arrives. A Put may adopt its file: the name is the
// store's then, and the descriptor still the stage's, until Close.
type stage struct {
	s       *Store
	reserve int64 // what is to stay free; 0: not looked at

	mu     sync.Mutex
	buf    bytes.Buffer
	file   durable.File
	name   string // of the file; "": it was adopted
	size   int64
	crc    uint32
	since  int64 // octets written to the file since the room was looked at
	sealed bool
	closed bool
	failed error
}

// Write implements mailspine.Stage.
func (st *stage) Write(p []byte) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.sealed || st.closed {
		return 0, errStageDone
	}
	if st.failed != nil {
		return 0, st.failed
	}
	n, err := st.write(p)
	st.size += int64(n)
	st.crc = crc32.Update(st.crc, castagnoli, p[:n])
	if err != nil {
		// What was written is short of what was given: no later Write can be right.
		st.failed = fmt.Errorf("filequeue: staging a message: %w", err)
		return n, st.failed
	}
	return n, nil
}

func (st *stage) write(p []byte) (int, error) {
	if st.file == nil {
		if int64(st.buf.Len()+len(p)) <= st.s.opt.InlineMax {
			return st.buf.Write(p)
		}
		// The generation keeps apart from those of a store that is opened later
		// the stages that outlive this one's Close.
		name := filepath.Join(st.s.dir, stageDir, fmt.Sprintf("%d-%d", st.s.genera, st.s.stages.Add(1)))
		f, err := st.s.fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return 0, err
		}
		st.file, st.name = f, name
		if _, err := f.Write(st.buf.Bytes()); err != nil {
			return 0, err
		}
		st.buf = bytes.Buffer{}
	}
	if st.since += int64(len(p)); st.since >= roomStep {
		if err := st.s.room(st.reserve); err != nil {
			return 0, err
		}
		st.since = 0
	}
	return st.file.Write(p)
}

// Content implements mailspine.Stage.
func (st *stage) Content() (mailspine.Content, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.closed:
		return nil, errStageDone
	case st.failed != nil:
		return nil, st.failed
	}
	st.sealed = true
	if st.file == nil {
		return mailspine.BytesContent(st.buf.Bytes()), nil
	}
	return (*staged)(st), nil
}

// Close implements mailspine.Stage.
func (st *stage) Close() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return nil
	}
	st.closed = true
	if st.file == nil {
		return nil
	}
	err := st.file.Close()
	if st.name != "" {
		err = errors.Join(err, st.s.fsys.Remove(st.name))
	}
	return err
}

// adopt makes the file a body: renamed, synced, and the name synced. It returns the
// body's number, or 0 if the file is another message's already.
func (st *stage) adopt() (uint64, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return 0, errStageDone
	}
	if st.name == "" {
		return 0, nil
	}
	s := st.s
	s.hook("put.staged")
	// The name comes before the syncs: what makes the file durable then takes the name along in most file systems, and
	// the sync of the directory has little left to do. A body that no record refers to is removed by Open.
	n := s.files.Add(1)
	if err := s.fsys.Rename(st.name, s.bodyName(n)); err != nil {
		return 0, err
	}
	st.name = ""
	s.hook("put.renamed")
	err := st.file.Sync()
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		// Some file systems look for room only now. What was written is lost, and is this message only.
		s.removeBody(n)
		return 0, err
	}
	if err == nil {
		s.hook("put.synced")
		err = s.bodySync.Sync()
	}
	if err != nil {
		// This file only is lost, but a disk that fails a sync is not to be trusted
		// with more, and nothing says that it was the file's fault.
		s.removeBody(n)
		err = fmt.Errorf("%w: %w", durable.ErrFailed, err)
		s.fail(err)
		return 0, err
	}
	s.hook("put.dirsynced")
	return n, nil
}

// staged is the Content of a stage with a file.
type staged stage

// Size implements mailspine.Content.
func (c *staged) Size() int64 { return c.size }

// Open implements mailspine.Content.
func (c *staged) Open(context.Context) (io.ReadCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errStageDone
	}
	return newReader(nil, c.file, 0, c.size, nil), nil
}

// A body is content that has been brought in: in head, or in a file that is durable.
type body struct {
	head []byte
	ref  bodyRef // but for headOff
	buf  *[]byte // of head, if that is Store.buffers'
}

// free gives back the buffer of head, which nobody must use any more. Without it the
// buffer is left to the garbage collector.
func (b *body) free(s *Store) {
	if b.buf != nil {
		s.buffers.Put(b.buf)
		b.head, b.buf = nil, nil
	}
}

// bring brings in content. A file that it made is the caller's to remove when
// no record comes to refer to it.
func (s *Store) bring(ctx context.Context, c mailspine.Content) (*body, error) {
	size := c.Size()
	if size <= s.opt.InlineMax {
		return s.read(ctx, c, size)
	}
	head, base, off := mailspine.Splice(c)
	// A head larger than what is put into records is unusual enough to be
	// copied with the rest.
	if in, ok := base.(*staged); ok && in.s == s && int64(len(head)) <= max(s.opt.InlineMax, mailspine.DefaultSpoolMemory) {
		b, err := s.adopt((*stage)(in), head, off)
		if b != nil || err != nil {
			return b, err
		}
	}
	st := &stage{s: s}
	defer st.Close()
	r, err := c.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	n, err := io.Copy(st, &boundedReader{ctx: ctx, r: r, left: size})
	if err != nil {
		return nil, err
	}
	if n < size {
		return nil, fmt.Errorf("message has %d octets, its size is %d: %w", n, size, io.ErrUnexpectedEOF)
	}
	return s.adopt(st, nil, 0)
}

// read brings in content of a size up to Options.InlineMax.
func (s *Store) read(ctx context.Context, c mailspine.Content, size int64) (*body, error) {
	r, err := c.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	buf, _ := s.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	if int64(cap(*buf)) < size {
		*buf = make([]byte, size)
	}
	b := &body{head: (*buf)[:size:size], ref: bodyRef{headLen: uint64(size)}, buf: buf}
	if _, err := io.ReadFull(r, b.head); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		b.free(s)
		return nil, fmt.Errorf("message is shorter than its size of %d octets: %w", size, err)
	}
	return b, nil
}

func (s *Store) adopt(st *stage, head []byte, off int64) (*body, error) {
	n, err := st.adopt()
	if n == 0 {
		return nil, err
	}
	b := &body{head: bytes.Clone(head)}
	b.ref = bodyRef{headLen: uint64(len(head)), file: n, fileOff: off, fileSize: st.size, fileCRC: st.crc}
	return b, nil
}

// A boundedReader reads at most left octets, as long as the context lasts.
type boundedReader struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.left <= 0 {
		return 0, io.EOF
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// newReader returns a reader of head, then of file from off on, size octets in all. It
// closes closer, if that is not nil.
func newReader(head []byte, file io.ReaderAt, off, size int64, closer io.Closer) *reader {
	return &reader{io.NewSectionReader(&joined{head, file, off, size}, 0, size), closer}
}

type reader struct {
	*io.SectionReader
	closer io.Closer
}

// Close implements io.Closer.
func (r *reader) Close() error {
	if r.closer == nil {
		return nil
	}
	return r.closer.Close()
}

// joined is head, followed by file from off on.
type joined struct {
	head []byte
	file io.ReaderAt
	off  int64
	size int64
}

// ReadAt implements io.ReaderAt. That the file ends before size is not io.EOF:
// half a message must not pass for a whole one.
func (j *joined) ReadAt(p []byte, at int64) (int, error) {
	n := 0
	if at < int64(len(j.head)) {
		n = copy(p, j.head[at:])
		if n == len(p) {
			return n, nil
		}
	}
	if j.file == nil {
		return n, io.EOF
	}
	m, err := j.file.ReadAt(p[n:], at+int64(n)-int64(len(j.head))+j.off)
	n += m
	if err == io.EOF && at+int64(n) < j.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Open implements queue.Store.
func (s *Store) Open(ctx context.Context, id mailspine.MsgID) (io.ReadCloser, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	s.mu.Lock()
	list := s.candidates(id)
	s.mu.Unlock()
	err := error(queue.ErrNotFound)
	for _, c := range list {
		var r io.ReadCloser
		if errors.Is(err, queue.ErrNotFound) {
			if r, err = s.open(id, c.put); err != nil && !s.stored(c) {
				err = queue.ErrNotFound // it was finished meanwhile
			}
		}
		s.release(c.put)
		if r != nil {
			return r, nil
		}
	}
	return nil, fmt.Errorf("filequeue: message %s: %w", id, err)
}

// open returns the content of a message, or ErrNotFound if it is not that one.
func (s *Store) open(id mailspine.MsgID, at spot) (io.ReadCloser, error) {
	rec, err := at.seg.log.ReadRecord(at.offset)
	if err != nil {
		return nil, err
	}
	d, err := entryAt(rec.Meta, at.entry, kindPut)
	if err != nil {
		return nil, err
	}
	p := d.putHead()
	ref := p.body
	if d.err != nil || ref.headOff > uint64(len(rec.Body)) || ref.headLen > uint64(len(rec.Body))-ref.headOff {
		return nil, errDecode
	}
	if p.env.ID != id {
		return nil, queue.ErrNotFound
	}
	head := rec.Body[ref.headOff:][:ref.headLen:ref.headLen]
	if ref.file == 0 {
		return newReader(head, nil, 0, int64(len(head)), nil), nil
	}
	f, err := s.fsys.OpenFile(s.bodyName(ref.file), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != ref.fileSize {
		err = fmt.Errorf("the body %s has %d octets, not %d", f.Name(), fi.Size(), ref.fileSize)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &checkedReader{reader: newReader(head, f, ref.fileOff, ref.size(), f), file: f, ref: ref}, nil
}

// A checkedReader reads content with a file, and compares the file with its checksum if it is read from the first octet to
// the last. If that is wrong, the Read that would give the last octets gives an error in
// their place, so that what is half rotten does not pass for a message. Who seeks reads without the check, until he begins anew.
type checkedReader struct {
	*reader
	file durable.File
	ref  bodyRef
	pos  int64
	done int64 // what the sum has, of the whole content
	sum  uint32
	bad  error // what every Read gives until the next Seek
}

// Read implements io.Reader.
func (c *checkedReader) Read(p []byte) (int, error) {
	if c.bad != nil {
		return 0, c.bad
	}
	at := c.pos
	n, err := c.reader.Read(p)
	c.pos += int64(n)
	if at == 0 && n > 0 {
		c.done, c.sum = 0, 0
		if c.bad = c.skipped(); c.bad != nil {
			return 0, c.bad
		}
	}
	if at != c.done || n == 0 {
		return n, err
	}
	// What is before headLen comes from the record, which has a checksum of its own.
	from := min(max(int64(c.ref.headLen)-at, 0), int64(n))
	c.sum = crc32.Update(c.sum, castagnoli, p[from:n])
	if c.done += int64(n); c.done == c.ref.size() && c.sum != c.ref.fileCRC {
		c.bad = &durable.CorruptError{Name: c.file.Name(), Reason: "the checksum of the body is wrong"}
		return 0, c.bad
	}
	return n, err
}

// skipped adds to the sum the octets of the file that are no more of the message.
func (c *checkedReader) skipped() error {
	b := make([]byte, min(c.ref.fileOff, 32<<10))
	for off := int64(0); off < c.ref.fileOff; {
		n := min(int64(len(b)), c.ref.fileOff-off)
		if _, err := c.file.ReadAt(b[:n], off); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		c.sum = crc32.Update(c.sum, castagnoli, b[:n])
		off += n
	}
	return nil
}

// Seek implements io.Seeker.
func (c *checkedReader) Seek(offset int64, whence int) (int64, error) {
	n, err := c.reader.Seek(offset, whence)
	if err == nil {
		c.pos, c.bad = n, nil
	}
	return n, err
}

func (s *Store) bodyName(n uint64) string {
	return filepath.Join(s.dir, bodyDir, fmt.Sprintf("%016x", n))
}

// removeBody removes a body that no record refers to any more. If that fails, Open
// does it.
func (s *Store) removeBody(n uint64) {
	if n == 0 {
		return
	}
	if err := s.fsys.Remove(s.bodyName(n)); err != nil {
		s.log.Warn("filequeue: a body that is not needed any more stays until the store is opened again", "file", s.bodyName(n), "err", err)
	}
}
