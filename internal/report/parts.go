package report

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/emersion/go-message"
)

// The bounds of what a splitter keeps, in octets.
const (
	pieceSize   = 4 << 10 // of a line at a time
	maxField    = 8 << 10 // of a header field that counts; a longer one is as good as absent
	maxBoundary = 1000    // RFC 2046 section 5.1.1 has 70, and a line of SMTP no more than this
)

var errHeader = errors.New("the header is too large")

// A splitter takes a message apart: its header, and then the parts of its body (RFC 2046 section 5.1), in their order. It keeps a piece of a
// line and the two fields that say what a part is, however many fields and lines there are: mime/multipart and
// go-message make a map and several copies of each header, which is a hundred times as much as a hostile part has octets. (go-message
// decodes the bodies.)
//
// It takes what real systems send: lines ended by CRLF or LF, space after a boundary, parts without a header or without the empty line after it, no
// closing boundary. It is used by one goroutine. An error of the reader is taken for the end; see limited.
type splitter struct {
	br   *bufio.Reader
	dash []byte // "--" and the boundary; nil in the header of the message

	frag   []byte // the current piece: a line with its end, or a part of a longer one; valid until advance
	begin  bool   // frag is the beginning of a line
	whole  bool   // frag has the line's end
	unread bool   // advance gives frag once more
	done   bool   // there is nothing more

	// Of the part that is being read:
	glue  string // not taken out of it yet: a line end,
	text  []byte // and then a piece of frag
	eol   string // the line end before frag, which is the boundary's if one follows
	ended bool   // the part is over
	last  bool   // and no other follows
}

func newSplitter(r io.Reader) *splitter {
	return &splitter{br: bufio.NewReaderSize(r, pieceSize), whole: true}
}

// advance makes frag the next piece, at most pieceSize octets, and reports whether there is one.
func (s *splitter) advance() bool {
	if s.unread {
		s.unread = false
		return true
	}
	if s.done {
		return false
	}
	s.begin = s.whole
	frag, err := s.br.ReadSlice('\n')
	s.frag, s.whole = frag, err == nil
	s.done = err != nil && err != bufio.ErrBufferFull
	return len(frag) > 0
}

// A head is what counts of the header of a message or a part: unfolded values, "" for an absent field.
type head struct{ kind, encoding string }

// header reads a header of at most maxHeader octets. Like mailspine.ParseHeader it takes the empty line for its end, or else the first line that is neither
// a field nor a fold of one, with which the body begins, or a boundary.
func (s *splitter) header() (head, error) {
	var h head
	var kind, encoding, other value
	current := &other
	for size, first := 0, true; s.advance(); first = false {
		if size += len(s.frag); size > maxHeader {
			return h, errHeader
		}
		if !s.begin {
			current.tooLong() // the rest of a line
			continue
		}
		if s.whole && len(bytes.TrimRight(s.frag, "\r\n")) == 0 {
			break
		}
		if delimiter, _ := s.boundary(); delimiter {
			s.unread = true
			break
		}
		if !first && (s.frag[0] == ' ' || s.frag[0] == '\t') {
			current.add(s.frag)
			continue
		}
		name, rest, ok := cutField(s.frag)
		if !ok {
			s.unread = true
			break
		}
		switch current = &other; {
		// The first one of several counts.
		case !kind.seen && bytes.EqualFold(name, []byte("Content-Type")):
			current = &kind
		case !encoding.seen && bytes.EqualFold(name, []byte("Content-Transfer-Encoding")):
			current = &encoding
		}
		if current != &other {
			current.seen = true
			current.add(rest)
		}
	}
	h.kind, h.encoding = kind.String(), encoding.String()
	return h, nil
}

// A value is that of a field that counts, as its lines come; the zero value, which is not seen, takes nothing.
type value struct {
	seen, long bool
	text       []byte // at most maxField octets
}

func (v *value) tooLong() { v.long, v.text = true, nil }

func (v *value) add(line []byte) {
	line = bytes.Trim(line, " \t\r\n")
	switch {
	case !v.seen || v.long || len(line) == 0:
	case len(v.text)+1+len(line) > maxField:
		v.tooLong()
	default:
		if len(v.text) > 0 {
			v.text = append(v.text, ' ')
		}
		v.text = append(v.text, line...)
	}
}

func (v *value) String() string { return string(v.text) }

// cutField returns the name of the field that a line begins, without the white space before the colon (RFC 5322 section 4.5), and
// what is after the colon. A name may be missing.
func cutField(line []byte) (name, rest []byte, ok bool) {
	name, rest, ok = bytes.Cut(line, []byte(":"))
	name = bytes.TrimRight(name, " \t")
	for _, c := range name {
		ok = ok && c > ' ' && c < 0x7f
	}
	return name, rest, ok
}

// boundary reports whether the current piece is a line that ends a part, and whether it is the closing one.
func (s *splitter) boundary() (delimiter, closing bool) {
	if s.dash == nil || !s.begin || !s.whole && !s.done {
		return false, false
	}
	rest, ok := bytes.CutPrefix(s.frag, s.dash)
	if !ok {
		return false, false
	}
	rest = bytes.TrimRight(rest, " \t\r\n")
	closing = string(rest) == "--"
	return closing || len(rest) == 0, closing
}

// split says that the rest is parts. What is before the first of them is passed over by next.
func (s *splitter) split(boundary string) {
	s.dash = []byte("--" + boundary)
	s.ended = boundary == "" || len(boundary) > maxBoundary
	s.last = s.ended
}

// next goes to the next part, passing over what was not read of the one before, and returns it with its body decoded; nil: there are no more, or the
// header of the next one is too large.
func (s *splitter) next() *message.Entity {
	for !s.ended {
		s.more()
	}
	if s.last {
		return nil
	}
	h, err := s.header()
	if err != nil {
		s.last = true
		return nil
	}
	s.ended, s.eol = false, ""
	e, _ := message.New(h.fields(), s) // never nil; an unknown encoding or character set is left as it is
	return e
}

// fields are h as go-message has them.
func (h head) fields() (m message.Header) {
	if h.kind != "" {
		m.Set("Content-Type", h.kind)
	}
	if h.encoding != "" {
		m.Set("Content-Transfer-Encoding", h.encoding)
	}
	return m
}

// Read reads the body of the part, as it comes.
func (s *splitter) Read(p []byte) (int, error) {
	for len(s.glue)+len(s.text) == 0 {
		if s.ended {
			return 0, io.EOF
		}
		s.more()
	}
	n := copy(p, s.glue)
	s.glue = s.glue[n:]
	k := copy(p[n:], s.text)
	s.text = s.text[k:]
	return n + k, nil
}

// more takes the next piece of the part, or sets ended.
func (s *splitter) more() {
	s.glue, s.text = "", nil
	if !s.advance() {
		// Cut off: the line end before it was text.
		s.glue, s.eol = s.eol, ""
		s.ended, s.last = true, true
		return
	}
	if delimiter, closing := s.boundary(); delimiter {
		// RFC 2046 section 5.1.1: the line end before a boundary is part of it.
		s.eol = ""
		s.ended, s.last = true, closing
		return
	}
	text, eol := s.frag, ""
	for _, end := range []string{"\r\n", "\n", "\r"} {
		// A CR that ends a piece may be half of a line end.
		if rest, ok := bytes.CutSuffix(text, []byte(end)); ok {
			text, eol = rest, end
			break
		}
	}
	if s.eol == "\r" && len(text) == 0 && eol == "\n" {
		s.eol = "\r\n" // the other half
		return
	}
	s.glue, s.text, s.eol = s.eol, text, eol
}
