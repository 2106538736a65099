package convert

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"

	"github.com/mailspine/mailspine"
)

// maxLine is the longest line of a message, without its end (RFC 5322 section 2.1.1).
const maxLine = 998

const (
	maxBoundary = 200    // RFC 2046 section 5.1.1 has 70
	maxFields   = 10_000 // of all header blocks together
)

type kind uint8

const (
	leaf     kind = iota
	multi         // multipart, with children
	embedded      // message/rfc822, with one child
)

// A node is an entity (RFC 2045 section 2.4): the message, or a part. Offsets are
// those of the message: the header is [start, sep), the empty line after it
// [sep, body), the body [body, end).
type node struct {
	kind     kind
	parent   *node
	path     string
	children []*node

	fields                 []mailspine.HeaderField
	start, sep, body, end  int64
	firstDelim, closeDelim int64 // of a multi: where the preamble ends, and where the epilogue begins (0: no end)

	media    mediaType
	typed    bool   // it has a Content-Type
	encoding string // in lower case; "": none
	boundary string
	sealed   bool   // signed or encrypted
	opaque   string // why nothing is known of the body; "": it is known

	facts    facts // of a leaf's body
	preamble facts
	epilogue facts

	todo
}

// facts are what the octets of a body are like.
type facts struct {
	size int64
	high int64 // octets over 127
	ctl  bool  // NUL, or CR alone
	lf   bool  // LF alone
	long bool  // a line over 998 octets
	line int64 // length of the line so far
	cr   bool  // the last octet was a CR
}

// sevenBit is "7bit data" of RFC 2045 section 2.7, in a message whose line end is nl.
func (f *facts) sevenBit(nl string) bool {
	return f.high == 0 && !f.ctl && !f.long && !(f.lf && nl == "\r\n")
}

// add counts the octets of a line, or of a piece of one.
func (f *facts) add(b []byte) {
	f.size += int64(len(b))
	for _, c := range b {
		switch {
		case c == '\n':
			f.lf = f.lf || !f.cr
			n := f.line
			if f.cr {
				n--
			}
			if n > maxLine {
				f.long = true
			}
			f.line, f.cr = 0, false
			continue
		case f.cr:
			f.ctl = true
		}
		f.line++
		f.cr = c == '\r'
		if c >= 0x80 {
			f.high++
		} else if c == 0 {
			f.ctl = true
		}
	}
	if f.line > maxLine+2 {
		f.long = true
	}
}

// finish says that the body has ended; the line end before a delimiter is not of
// the body (RFC 2046 section 5.1.1), but it does no harm that it was counted.
func (f *facts) finish() {
	if f.line > maxLine {
		f.long = true
	}
	if f.cr {
		f.ctl = true
	}
}

type state uint8

const (
	inHeader state = iota
	inBody
	inPreamble
	inEpilogue
)

// A scanner makes the tree of a message, line by line.
type scanner struct {
	r     *bufio.Reader
	off   int64 // of the line that is looked at
	eol   int64 // length of the end of the line before
	crlf  bool  // a line ended with CRLF
	lf    bool  // a line ended with LF
	root  *node
	open  []*node // from the root to the node that lines belong to
	state state
	parts int

	headSize, headFields int
	sum                  hash.Hash
}

// scan reads the message and makes its tree.
func (j *job) scan() error {
	r, err := j.src.section(0, j.src.msg.Size())
	if err != nil {
		return err
	}
	s := &scanner{r: bufio.NewReaderSize(r, 64<<10)}
	if j.o.Text && j.o.KeepHTML {
		s.sum = sha256.New()
	}
	if err := s.run(); err != nil {
		return err
	}
	j.root, j.nl = s.root, "\r\n"
	if s.lf && !s.crlf {
		j.nl = "\n" // a message from a file, all of it; where both occur LF is no line end
	}
	if s.sum != nil {
		s.sum.Sum(j.sum[:0])
	}
	return nil
}

func (s *scanner) run() error {
	s.root = &node{}
	s.open, s.parts = []*node{s.root}, 1
	first := true // of the pieces of a line, which the reader cuts at 64 KiB
	cr := false   // the piece before ended with CR
	for {
		piece, err := s.r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull && err != io.EOF {
			return err
		}
		if len(piece) == 0 {
			s.crlf = s.crlf || cr // cut in the middle; LF put behind it would make a line end of two kinds
			return s.close(0, s.off)
		}
		if s.sum != nil {
			s.sum.Write(piece)
		}
		whole := first && err != bufio.ErrBufferFull
		if !first {
			s.bodyLine(piece)
		} else if err := s.line(piece, whole); err != nil {
			return err
		}
		s.off += int64(len(piece))
		first, s.eol = err == nil, 0
		if n := len(piece); first {
			if n > 1 && piece[n-2] == '\r' || n == 1 && cr {
				s.eol, s.crlf = 2, true
			} else {
				s.eol, s.lf = 1, true
			}
		}
		cr = piece[len(piece)-1] == '\r'
	}
}

// line takes in a line, or the beginning of one.
func (s *scanner) line(b []byte, whole bool) error {
	for { // each round opens a node, and there are MaxDepth of them
		if whole && b[0] == '-' {
			if done, err := s.delimiter(b); done || err != nil {
				return err
			}
		}
		if s.state != inHeader {
			s.bodyLine(b)
			return nil
		}
		n := s.open[len(s.open)-1]
		switch {
		case whole && (b[0] == '\n' || b[0] == '\r' && len(b) == 2 && b[1] == '\n'):
			n.sep, n.body = s.off, s.off+int64(len(b))
			return s.endHeader(n)
		case (b[0] == ' ' || b[0] == '\t') && len(n.fields) > 0:
			if !whole {
				return ErrHeaderTooLarge
			}
			f := &n.fields[len(n.fields)-1]
			f.Raw = append(f.Raw, b...)
			return s.spend(len(b), 0)
		case fieldName(b) != "":
			if !whole {
				return ErrHeaderTooLarge
			}
			n.fields = append(n.fields, mailspine.HeaderField{Name: fieldName(b), Raw: bytes.Clone(b)})
			return s.spend(len(b), 1)
		}
		// A line that is no field is the first of the body.
		n.sep, n.body = s.off, s.off
		if err := s.endHeader(n); err != nil {
			return err
		}
	}
}

// spend counts what the header blocks take.
func (s *scanner) spend(octets, fields int) error {
	s.headSize += octets
	s.headFields += fields
	if s.headSize > mailspine.MaxHeader || s.headFields > maxFields {
		return ErrHeaderTooLarge
	}
	return nil
}

// fieldName is mailspine.ParseHeader's rule for what begins a field.
func fieldName(line []byte) string {
	i := bytes.IndexByte(line, ':')
	if i <= 0 {
		return ""
	}
	name := bytes.TrimRight(line[:i], " \t")
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return ""
		}
	}
	return string(name)
}

func (s *scanner) bodyLine(b []byte) {
	n := s.open[len(s.open)-1]
	f := &n.facts
	switch s.state {
	case inPreamble:
		f = &n.preamble
	case inEpilogue:
		f = &n.epilogue
	}
	f.add(b)
}

// delimiter looks whether a line is a delimiter of one of the multiparts that are
// open, and says whether it was. RFC 2046 section 5.1.2: that of an outer one ends
// those inside of it.
func (s *scanner) delimiter(b []byte) (bool, error) {
	if len(b) < 3 || b[1] != '-' {
		return false, nil
	}
	line := bytes.TrimRight(b[2:], " \t\r\n")
	for i := len(s.open) - 1; i >= 0; i-- { // MaxDepth at most
		m := s.open[i]
		if m.kind != multi || m.closeDelim > 0 || !bytes.HasPrefix(line, []byte(m.boundary)) {
			continue
		}
		rest := string(line[len(m.boundary):])
		if rest != "" && rest != "--" {
			continue
		}
		if m.firstDelim == 0 {
			m.firstDelim = s.off
		}
		if err := s.close(i+1, s.off-s.eol); err != nil {
			return true, err
		}
		after := s.off + int64(len(b))
		if rest == "--" {
			m.closeDelim = after
			s.state = inEpilogue
			return true, nil
		}
		return true, s.push(m, after)
	}
	return false, nil
}

// push opens a child of n.
func (s *scanner) push(n *node, start int64) error {
	if s.parts++; s.parts > MaxParts {
		return ErrTooManyParts
	}
	if len(s.open) >= MaxDepth {
		return ErrTooDeep
	}
	c := &node{parent: n, start: start, path: n.path}
	n.children = append(n.children, c)
	// IMAP's numbers (RFC 9051 section 6.4.5.1), except that a message that is in a part has
	// that part's.
	if n.kind == multi {
		if c.path != "" {
			c.path += "."
		}
		c.path += strconv.Itoa(len(n.children))
	}
	s.open = append(s.open, c)
	s.state = inHeader
	return nil
}

// close ends the nodes from index i of those that are open.
func (s *scanner) close(i int, end int64) error {
	for len(s.open) > i {
		n := s.open[len(s.open)-1]
		if s.state == inHeader {
			n.sep, n.body = s.off, s.off
			if err := s.describe(n); err != nil {
				return err
			}
			if n.kind != leaf {
				n.kind, n.opaque = leaf, "it has no body"
			}
		}
		s.state = inBody // of whatever is around it, no header is open
		s.open = s.open[:len(s.open)-1]
		n.end = max(n.body, end)
		n.facts.finish()
		if n.kind != multi {
			continue
		}
		n.preamble.finish()
		n.epilogue.finish()
		if len(n.children) == 0 {
			n.kind, n.facts, n.opaque = leaf, n.preamble, "its boundary does not occur in it"
			if n.parent == nil {
				return fmt.Errorf("%w: it is a multipart, and its boundary does not occur in it", ErrMalformed)
			}
			continue
		}
		if n.closeDelim == 0 || n.closeDelim > n.end {
			n.closeDelim = n.end
		}
	}
	return nil
}

// endHeader decides what the lines after a header block are.
func (s *scanner) endHeader(n *node) error {
	if err := s.describe(n); err != nil {
		return err
	}
	switch n.kind {
	case multi:
		for _, o := range s.open[:len(s.open)-1] {
			if o.kind == multi && o.boundary == n.boundary {
				return fmt.Errorf("%w: a multipart has the boundary of the one around it", ErrMalformed)
			}
		}
		s.state = inPreamble
	case embedded:
		return s.push(n, n.body)
	default:
		s.state = inBody
	}
	return nil
}

// describe reads what the header block of a node says of its body.
func (s *scanner) describe(n *node) error {
	var types, encodings []string
	for _, f := range n.fields {
		switch {
		case f.Is("Content-Type"):
			types = append(types, f.Value())
		case f.Is("Content-Transfer-Encoding"):
			encodings = append(encodings, f.Value())
		}
	}
	n.media = mediaType{typ: "text", sub: "plain"} // RFC 2045 section 5.2
	if n.parent != nil && n.parent.kind == multi && n.parent.media.is("multipart", "digest") {
		n.media = mediaType{typ: "message", sub: "rfc822"} // RFC 2046 section 5.1.5
	}
	if len(encodings) > 0 {
		n.encoding = strings.ToLower(trimComment(encodings[0]))
	}
	// What can be read in two ways is not read at all: a client may choose the other.
	if len(types) > 1 || len(encodings) > 1 {
		n.opaque = "it has several Content-Type or Content-Transfer-Encoding fields"
		return nil
	}
	if len(types) == 1 {
		m, ok := parseMediaType(types[0])
		if !ok {
			n.opaque = "its Content-Type cannot be read"
			return nil
		}
		n.media, n.typed = m, true
	}
	identity := n.encoding == "" || n.encoding == "7bit" || n.encoding == "8bit" || n.encoding == "binary"
	switch m := n.media; {
	case m.is("multipart", "signed"), m.is("multipart", "encrypted"), m.is("application", "pkcs7-mime"), m.is("application", "x-pkcs7-mime"):
		n.sealed = true
	case m.typ == "multipart" && !identity, m.is("message", "rfc822") && !identity:
		n.opaque = "it has a transfer encoding that its type may not have" // RFC 2045 section 6.4
	case m.typ == "multipart":
		n.boundary = strings.TrimRight(m.get("boundary"), " \t")
		if n.boundary == "" || len(n.boundary) > maxBoundary || strings.ContainsAny(n.boundary, "\r\n") || !isASCII(n.boundary) {
			n.opaque = "it has no usable boundary"
			if n.parent == nil {
				return fmt.Errorf("%w: it is a multipart without a usable boundary", ErrMalformed)
			}
			return nil
		}
		n.kind = multi
	case m.is("message", "rfc822"):
		n.kind = embedded
	}
	return nil
}
