package mailspine

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// Content is a message as it travels: the header and body of RFC 5322, lines
// ended by CRLF, dots not stuffed.
//
// Open may be called any number of times, also at the same time, and each
// reader starts at the first octet. The context bounds the opening, not the
// reading. Size is the number of octets that a reader yields; a reader that ends
// earlier returns an error other than io.EOF. Readers that are also io.Seeker
// are used as such. Whoever hands out a Content says how long it is valid: a Deliverer's
// until Deliver returns.
type Content interface {
	Open(ctx context.Context) (io.ReadCloser, error)
	Size() int64
}

// BytesContent returns a Content for a message in memory. It keeps b, which
// must not change any more.
func BytesContent(b []byte) Content { return &bytesContent{b} }

// StringContent is BytesContent for a string.
func StringContent(s string) Content { return &bytesContent{[]byte(s)} }

// bytesContent is used by pointer, so that Contents can be compared.
type bytesContent struct{ b []byte }

func (c *bytesContent) Open(context.Context) (io.ReadCloser, error) {
	return nopSeekCloser{bytes.NewReader(c.b)}, nil
}

func (c *bytesContent) Size() int64 { return int64(len(c.b)) }

type nopSeekCloser struct{ *bytes.Reader }

func (nopSeekCloser) Close() error { return nil }

// ReadContent reads a whole message into memory, if it has no more than max
// octets.
func ReadContent(ctx context.Context, c Content, max int64) ([]byte, error) {
	if n := c.Size(); n > max {
		return nil, fmt.Errorf("mailspine: message has %d octets, over the limit of %d", n, max)
	}
	r, err := c.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, c.Size())
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("mailspine: message is shorter than its size of %d: %w", c.Size(), noEOF(err))
	}
	return b, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Prepend returns a Content that is head followed by c, without copying c.
// head is one or more complete header fields, each with its CRLF; it must not
// change any more. This is how trace fields are added (RFC 5321 section 4.4).
func Prepend(c Content, head []byte) Content {
	if len(head) == 0 {
		return c
	}
	if s, ok := c.(*spliced); ok {
		return &spliced{head: append(bytes.Clone(head), s.head...), base: s.base, off: s.off}
	}
	return &spliced{head: bytes.Clone(head), base: c}
}

// Splice takes apart what [Prepend] and [Edit] made: the message is head, then
// base from octet offset on. For any other Content head is nil, base is c and
// offset 0. A store that recognises base as its own (see [Stager]) need not
// write it again. head must not be modified.
func Splice(c Content) (head []byte, base Content, offset int64) {
	if s, ok := c.(*spliced); ok {
		return s.head, s.base, s.off
	}
	return nil, c, 0
}

// NewSpliced is the reverse of [Splice]: a Content of head, then base from octet
// offset on. It keeps head. It is for stores that give back what Splice took apart.
func NewSpliced(head []byte, base Content, offset int64) Content {
	if len(head) == 0 && offset == 0 {
		return base
	}
	return &spliced{head: head, base: base, off: offset}
}

// spliced never has a spliced base.
type spliced struct {
	head []byte
	base Content
	off  int64
}

func (s *spliced) Size() int64 { return int64(len(s.head)) + max(0, s.base.Size()-s.off) }

func (s *spliced) Open(ctx context.Context) (io.ReadCloser, error) {
	r, err := s.base.Open(ctx)
	if err != nil {
		return nil, err
	}
	if s.off > 0 {
		if sk, ok := r.(io.Seeker); ok {
			_, err = sk.Seek(s.off, io.SeekStart)
		} else {
			_, err = io.CopyN(io.Discard, r, s.off)
		}
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("mailspine: message is shorter than its header: %w", noEOF(err))
		}
	}
	return &splicedReader{head: s.head, rest: r}, nil
}

type splicedReader struct {
	head []byte
	rest io.ReadCloser
}

func (r *splicedReader) Read(p []byte) (int, error) {
	if len(r.head) > 0 {
		n := copy(p, r.head)
		r.head = r.head[n:]
		return n, nil
	}
	return r.rest.Read(p)
}

// WriteTo writes what is left; io.Copy uses it, so that the rest is copied as
// its reader likes best.
func (r *splicedReader) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(r.head)
	r.head = r.head[n:]
	if err != nil {
		return int64(n), err
	}
	m, err := io.Copy(w, r.rest)
	return int64(n) + m, err
}

func (r *splicedReader) Close() error { return r.rest.Close() }
