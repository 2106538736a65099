package dkim

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"hash"
	"strings"

	"github.com/mailspine/mailspine"
)

// A bodyHash canonicalizes a body as it is written and hashes it (RFC 6376 sections
// 3.4.3 and 3.4.4). Its memory is constant: empty lines at the end, which count only
// if something follows, are a number. A lone LF counts as a line end, a lone CR
// as itself.
type bodyHash struct {
	relaxed bool
	limit   int64 // octets to hash; negative: all

	h       hash.Hash
	out     *bufio.Writer
	written int64 // canonical octets so far, also those beyond limit

	cr    bool  // the last octet was a CR
	wsp   bool  // relaxed: white space not written yet
	eols  int64 // line ends not written yet
	begun bool  // something was written

	// glue holds line ends and then a space: what is written between the texts,
	// here so that it costs no allocation.
	glue [2*glueLines + 1]byte
}

const glueLines = 32

func newBodyHash(relaxed bool, limit int64) *bodyHash {
	h := sha256.New()
	c := &bodyHash{relaxed: relaxed, limit: limit, h: h, out: bufio.NewWriterSize(h, 4096)}
	copy(c.glue[:], strings.Repeat("\r\n", glueLines)+" ")
	return c
}

func (c *bodyHash) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		seg, eol := p, false
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			seg, p, eol = p[:i], p[i+1:], true
		} else {
			p = nil
		}
		if c.cr {
			c.cr = false
			if !(eol && len(seg) == 0) {
				c.text(c.glue[:1])
			}
		}
		if k := len(seg); k > 0 && seg[k-1] == '\r' {
			seg = seg[:k-1]
			c.cr = !eol
		}
		c.text(seg)
		if eol {
			c.wsp = false
			c.eols++
		}
	}
	return n, nil
}

func (c *bodyHash) text(seg []byte) {
	if len(seg) == 0 {
		return
	}
	if !c.relaxed {
		c.flush()
		c.emit(seg)
		return
	}
	// Most lines are canonical already, and go through in one piece.
	if last := seg[len(seg)-1]; seg[0] != ' ' && last != ' ' && bytes.IndexByte(seg, '\t') < 0 && !bytes.Contains(seg, []byte("  ")) {
		c.flush()
		c.emit(seg)
		return
	}
	for len(seg) > 0 {
		i := 0
		for i < len(seg) && (seg[i] == ' ' || seg[i] == '\t') {
			i++
		}
		c.wsp = c.wsp || i > 0
		if seg = seg[i:]; len(seg) == 0 {
			return
		}
		i = 1
		for i < len(seg) && seg[i] != ' ' && seg[i] != '\t' {
			i++
		}
		c.flush()
		c.emit(seg[:i])
		seg = seg[i:]
	}
}

// flush writes the line ends and the white space that turned out to count.
func (c *bodyHash) flush() {
	for c.eols > 0 {
		k := min(c.eols, glueLines)
		c.emit(c.glue[:2*k])
		c.eols -= k
	}
	if c.wsp {
		c.emit(c.glue[2*glueLines:])
		c.wsp = false
	}
}

func (c *bodyHash) emit(b []byte) {
	c.begun = true
	if c.limit < 0 && len(b) <= c.out.Available() {
		c.written += int64(len(b))
		c.out.Write(b)
		return
	}
	if c.limit >= 0 {
		if room := c.limit - c.written; room < int64(len(b)) {
			c.written += int64(len(b))
			c.out.Write(b[:max(0, room)])
			return
		}
	}
	c.written += int64(len(b))
	c.out.Write(b)
}

// sum ends the body. It is called once.
func (c *bodyHash) sum() []byte {
	if c.cr {
		c.cr = false
		c.text(c.glue[:1])
	}
	c.wsp = false
	// What is not empty ends with exactly one line end; an empty simple body is
	// one too, an empty relaxed body is nothing.
	if c.begun || !c.relaxed {
		c.emit(c.glue[:2])
	}
	c.out.Flush()
	return c.h.Sum(nil)
}

// canonicalField canonicalizes one header field with its folds (RFC 6376
// sections 3.4.1 and 3.4.2). The last line end stays.
func canonicalField(raw []byte, relaxed bool) []byte {
	if !relaxed {
		return raw
	}
	i := bytes.IndexByte(raw, ':')
	if i < 0 {
		i = len(raw) - 1
	}
	out := make([]byte, 0, len(raw))
	out = append(out, strings.ToLower(strings.TrimRight(string(raw[:i]), " \t"))...)
	out = append(out, ':')
	wsp, begun := false, false
	value := raw[i+1:]
	for i, c := range value {
		// A CR that ends no line is no white space: it could replace a signed blank.
		if c == ' ' || c == '\t' || c == '\n' || c == '\r' && i+1 < len(value) && value[i+1] == '\n' {
			wsp = true
			continue
		}
		if wsp && begun {
			out = append(out, ' ')
		}
		wsp, begun = false, true
		out = append(out, c)
	}
	return append(out, "\r\n"...)
}

// A block is a header block split into its fields.
type block struct {
	fields []field
	byName map[string][]int // lower-case name -> indices, top to bottom
}

type field struct {
	name string // lower case; "" for a line that is no field
	raw  []byte // with folds and one CRLF at the end
}

// splitBlock splits a header block at its line ends. Lines that are no field
// stay, without a name: they can be signed by nobody.
func splitBlock(b []byte) *block {
	bl := &block{byName: map[string][]int{}}
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		line := b
		if i >= 0 {
			line, b = b[:i+1], b[i+1:]
		} else {
			b = nil
		}
		text := bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if n := len(bl.fields); n > 0 && len(text) > 0 && (text[0] == ' ' || text[0] == '\t') {
			f := &bl.fields[n-1]
			f.raw = append(append(f.raw, text...), "\r\n"...)
			continue
		}
		f := field{raw: append(append(make([]byte, 0, len(text)+2), text...), "\r\n"...)}
		if colon := bytes.IndexByte(text, ':'); colon > 0 {
			f.name = strings.ToLower(strings.TrimRight(string(text[:colon]), " \t"))
		}
		bl.fields = append(bl.fields, f)
	}
	for i, f := range bl.fields {
		if f.name != "" {
			bl.byName[f.name] = append(bl.byName[f.name], i)
		}
	}
	return bl
}

// value is the field body with its folds.
func (f *field) value() string {
	return string(f.raw[bytes.IndexByte(f.raw, ':')+1:])
}

// pick hashes the fields of h= in its order. A name that occurs several times
// takes its fields from the bottom up; a name with no field left adds nothing
// (RFC 6376 section 5.4.2).
func (bl *block) pick(h hash.Hash, names []string, relaxed bool) {
	used := make(map[string]int, len(names))
	for _, n := range names {
		n = strings.ToLower(n)
		all := bl.byName[n]
		if k := len(all) - 1 - used[n]; k >= 0 {
			used[n]++
			h.Write(canonicalField(bl.fields[all[k]].raw, relaxed))
		}
	}
}

// A splitter gathers the header block of a message that arrives in pieces, and
// hands on what follows the empty line.
type splitter struct {
	max    int
	buf    []byte
	line   int // where the current line begins in buf
	fields int // lines that are no folds, at most mailspine.MaxHeaderFields
	done   bool
	over   bool // the block is larger than max, or has too many fields
}

// write takes a piece and returns the part of it that belongs to the body.
func (s *splitter) write(p []byte) (body []byte) {
	for len(p) > 0 && !s.done {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i+1]
		}
		if len(s.buf)+len(part) > s.max {
			s.done, s.over, s.buf = true, true, nil
			return nil
		}
		s.buf = append(s.buf, part...)
		p = p[len(part):]
		if i < 0 {
			break
		}
		if l := string(s.buf[s.line:]); l == "\r\n" || l == "\n" {
			s.buf = s.buf[:s.line]
			s.done = true
			return p
		}
		// Fields cost memory far beyond their octets, and "a:" is one.
		if c := s.buf[s.line]; c != ' ' && c != '\t' {
			s.fields++
		}
		if s.fields > mailspine.MaxHeaderFields {
			s.done, s.over, s.buf = true, true, nil
			return nil
		}
		s.line = len(s.buf)
	}
	if s.done && !s.over {
		return p
	}
	return nil
}
