package mailspine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
)

// A Stager gives a message that is arriving a place to be written to. It is
// optional: servers look for one with [StagerOf] on their Next Deliverer, and a
// store that is one can adopt what was staged instead of writing it again.
type Stager interface {
	// Stage opens a place. size is the size announced by the client, a hint; 0
	// is unknown. It is safe for concurrent use.
	Stage(ctx context.Context, size int64) (Stage, error)
}

// A Stage is the place of one arriving message. It is used by one goroutine.
type Stage interface {
	// Write appends to the message. Being out of space is an error for which
	// Status answers 452 4.3.1.
	io.Writer
	// Content ends the writing and returns the message, valid until Close. The
	// message is not durable yet: whoever adopts it makes it so.
	Content() (Content, error)
	// Close gives back the place, unless a store adopted the message in the
	// meantime. It can be called at any point, and more than once.
	Close() error
}

// StagerOf returns the Stager of d, found through Unwrap, or a [SpoolStager]
// with its defaults if there is none.
func StagerOf(d Deliverer) Stager {
	if s, ok := Find[Stager](d); ok {
		return s
	}
	return &SpoolStager{}
}

// DefaultSpoolMemory is how much of a message a SpoolStager keeps in memory
// unless told otherwise, in octets.
const DefaultSpoolMemory = 64 << 10

// A SpoolStager stages in memory, and what is larger in a temporary file with
// mode 0600 that is removed by Close. The zero value is ready to use, and safe
// for concurrent use.
type SpoolStager struct {
	Memory int    // octets kept in memory; 0: DefaultSpoolMemory, negative: none
	Dir    string // where the files are made; "": os.TempDir
}

var _ Stager = (*SpoolStager)(nil)

// Stage returns an empty Stage.
func (s *SpoolStager) Stage(context.Context, int64) (Stage, error) {
	m := s.Memory
	if m == 0 {
		m = DefaultSpoolMemory
	}
	return &spool{memory: m, dir: s.Dir}, nil
}

type spool struct {
	memory int
	dir    string

	mu     sync.Mutex // Close may race with Open of a reader
	buf    bytes.Buffer
	file   *os.File
	size   int64
	sealed bool
	closed bool
}

var errStageDone = errors.New("mailspine: stage is closed")

func (s *spool) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sealed || s.closed {
		return 0, errStageDone
	}
	if s.file == nil && s.buf.Len()+len(p) > s.memory {
		f, err := os.CreateTemp(s.dir, "mailspine-*.eml") // CreateTemp's mode is 0600
		if err != nil {
			return 0, err
		}
		s.file = f
		if _, err := f.Write(s.buf.Bytes()); err != nil {
			return 0, err
		}
		s.buf = bytes.Buffer{}
	}
	var n int
	var err error
	if s.file != nil {
		n, err = s.file.Write(p)
	} else {
		n, err = s.buf.Write(p)
	}
	s.size += int64(n)
	return n, err
}

func (s *spool) Content() (Content, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errStageDone
	}
	s.sealed = true
	if s.file == nil {
		return BytesContent(s.buf.Bytes()), nil
	}
	return (*spoolContent)(s), nil
}

func (s *spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.file == nil {
		return nil
	}
	return errors.Join(s.file.Close(), os.Remove(s.file.Name()))
}

type spoolContent spool

func (c *spoolContent) Size() int64 { return c.size }

func (c *spoolContent) Open(context.Context) (io.ReadCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errStageDone
	}
	// A section of the one descriptor: readers cost no file of their own.
	return sectionCloser{io.NewSectionReader(c.file, 0, c.size)}, nil
}

type sectionCloser struct{ *io.SectionReader }

func (sectionCloser) Close() error { return nil }
