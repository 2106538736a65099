package mailspine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
)

// MaxHeader is the default bound on a header block, in octets.
const MaxHeader = 1 << 20

// MaxHeaderFields bounds the number of fields of a header block.
const MaxHeaderFields = 5000

// ErrHeaderTooLarge is returned when a header block passes its bound.
var ErrHeaderTooLarge = errors.New("mailspine: header block is too large")

// A HeaderField is one field of a header block (RFC 5322 section 2.2), with its
// octets as they are.
type HeaderField struct {
	Name string // as written; "" for a line that is no field
	Raw  []byte // the whole field with its folds and its last line end
}

// Is reports whether the field has a name, without regard to case.
func (f HeaderField) Is(name string) bool { return strings.EqualFold(f.Name, name) }

// Value returns the field body, unfolded (RFC 5322 section 2.2.3), without
// white space around it. Nothing in it is decoded.
func (f HeaderField) Value() string {
	v := f.Raw
	if f.Name != "" {
		if i := bytes.IndexByte(v, ':'); i >= 0 {
			v = v[i+1:]
		}
	}
	return strings.Trim(strings.NewReplacer("\r\n", "", "\n", "").Replace(string(v)), " \t\r\n")
}

// A Header is a header block: its fields in order, and where the body begins.
type Header struct {
	Fields []HeaderField
	// Body is the offset of the first octet after the block: of the empty line
	// that separates it from the body. A message without an empty line whose
	// next line is no field has its body right there.
	Body int64
}

// Values returns the unfolded values of all fields of a name, in order.
func (h *Header) Values(name string) []string {
	var v []string
	for _, f := range h.Fields {
		if f.Is(name) {
			v = append(v, f.Value())
		}
	}
	return v
}

// Get returns the first value of a name, or "".
func (h *Header) Get(name string) string {
	for _, f := range h.Fields {
		if f.Is(name) {
			return f.Value()
		}
	}
	return ""
}

// ReadHeader reads the header block of a message, at most max octets of it (0:
// [MaxHeader]) and [MaxHeaderFields] fields; beyond that the error is
// [ErrHeaderTooLarge]. The block ends at an empty line, at the first line that
// is neither a field nor a fold of one, or with the message. Lines may end with CRLF or
// LF. Everything before Header.Body is in some field's Raw.
func ReadHeader(ctx context.Context, c Content, max int) (*Header, error) {
	r, err := c.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return parseHeader(r, max)
}

// ParseHeader is ReadHeader for a reader, which it may read past the block.
func ParseHeader(r io.Reader, max int) (*Header, error) { return parseHeader(r, max) }

func parseHeader(r io.Reader, max int) (*Header, error) {
	if max <= 0 {
		max = MaxHeader
	}
	br := bufio.NewReaderSize(r, 4096)
	h := &Header{}
	var line []byte
	for {
		line = line[:0]
		for {
			frag, err := br.ReadSlice('\n')
			line = append(line, frag...)
			if h.Body+int64(len(line)) > int64(max) {
				// The body may be larger than max: only a line that belongs to the
				// block counts. A line this long without an end is no body line
				// that matters, unless the header already ended.
				if len(h.Fields) > 0 && !isHeaderLine(line) {
					return h, nil
				}
				return nil, ErrHeaderTooLarge
			}
			if err == nil {
				break
			}
			if err == bufio.ErrBufferFull {
				continue
			}
			if err != io.EOF {
				return nil, err
			}
			break
		}
		if len(line) == 0 || string(line) == "\r\n" || string(line) == "\n" {
			return h, nil
		}
		switch {
		case (line[0] == ' ' || line[0] == '\t') && len(h.Fields) > 0:
			f := &h.Fields[len(h.Fields)-1]
			f.Raw = append(f.Raw, line...)
		case fieldName(line) != "":
			if len(h.Fields) >= MaxHeaderFields {
				return nil, ErrHeaderTooLarge
			}
			h.Fields = append(h.Fields, HeaderField{Name: fieldName(line), Raw: bytes.Clone(line)})
		default:
			return h, nil
		}
		h.Body += int64(len(line))
	}
}

func isHeaderLine(line []byte) bool {
	return len(line) > 0 && (line[0] == ' ' || line[0] == '\t' || fieldName(line) != "")
}

// fieldName returns the name that a header line begins with, or "". White space
// before the colon (RFC 5322 section 4.5, obsolete) is let pass.
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

// A HeaderEdit says how [Edit] changes a header block.
type HeaderEdit struct {
	// Prepend is put before the first field: complete fields with their CRLF.
	Prepend []byte
	// Drop says which fields go; nil: none.
	Drop func(HeaderField) bool
	// Append is put after the last field: complete fields with their CRLF.
	Append []byte
	// Max bounds the block; 0: MaxHeader.
	Max int
}

// Edit returns a message with another header block and the same body, which is
// not copied. The block is read once, now.
func Edit(ctx context.Context, c Content, e HeaderEdit) (Content, error) {
	h, err := ReadHeader(ctx, c, e.Max)
	if err != nil {
		return nil, err
	}
	head := bytes.Clone(e.Prepend)
	changed := len(e.Append) > 0
	for _, f := range h.Fields {
		if e.Drop != nil && e.Drop(f) {
			changed = true
			continue
		}
		head = append(head, f.Raw...)
	}
	if !changed {
		return Prepend(c, e.Prepend), nil
	}
	if n := len(head); n > 0 && head[n-1] != '\n' {
		head = append(head, "\r\n"...) // the message ended inside of its last field
	}
	head = append(head, e.Append...)
	// The body's offset is one in c; in what c is spliced of it is another.
	oldHead, base, off := Splice(c)
	if rest := h.Body - int64(len(oldHead)); rest >= 0 {
		return &spliced{head: head, base: base, off: off + rest}, nil
	}
	// Part of the old head is already body.
	return &spliced{head: append(head, oldHead[h.Body:]...), base: base, off: off}, nil
}
