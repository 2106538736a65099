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

// adopt makes the file a body: synced, renamed, and the name synced. It returns the
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
	if err := st.file.Sync(); err != nil {
		// This file only is lost, but a disk that fails a sync is not to be trusted
		// with more, and nothing says that it was the file's fault.
		err = fmt.Errorf("%w: %w", durable.ErrFailed, err)
		s.fail(err)
		return 0, err
	}
	s.hook("put.synced")
	n := s.files.Add(1)
	if err := s.fsys.Rename(st.name, s.bodyName(n)); err != nil {
		return 0, err
	}
	st.name = ""
	s.hook("put.renamed")
	if err := s.fsys.SyncDir(filepath.Join(s.dir, bodyDir)); err != nil {
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
}

// bring brings in content. A file that it made is the caller's to remove when
// no record comes to refer to it.
func (s *Store) bring(ctx context.Context, c mailspine.Content) (*body, error) {
	size := c.Size()
	if size <= s.opt.InlineMax {
		b, err := mailspine.ReadContent(ctx, c, size)
		if err != nil {
			return nil, err
		}
		return &body{head: b, ref: bodyRef{headLen: uint64(len(b))}}, nil
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
	m := s.messages[id]
	if m == nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("filequeue: message %q: %w", id, queue.ErrNotFound)
	}
	loc := s.keep(m.loc)
	s.mu.Unlock()
	defer s.release(loc.seg)
	r, err := s.open(loc)
	if err != nil {
		if s.lookup(id) == nil { // it was finished meanwhile
			err = queue.ErrNotFound
		}
		return nil, fmt.Errorf("filequeue: message %s: %w", id, err)
	}
	return r, nil
}

func (s *Store) open(loc location) (io.ReadCloser, error) {
	rec, err := loc.seg.log.ReadRecord(loc.offset)
	if err != nil {
		return nil, err
	}
	d, err := entryAt(rec.Meta, loc.entry, kindPut)
	if err != nil {
		return nil, err
	}
	ref := d.putHead().body
	if d.err != nil || ref.headOff > uint64(len(rec.Body)) || ref.headLen > uint64(len(rec.Body))-ref.headOff {
		return nil, errDecode
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
	return newReader(head, f, ref.fileOff, ref.size(), f), nil
}

// lookup returns a message, or nil.
func (s *Store) lookup(id mailspine.MsgID) *message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.messages[id]
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
