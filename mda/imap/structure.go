package imap

import (
	"bufio"
	"bytes"
	"io"
	"mime"
	"slices"
	"strings"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-message/textproto"

	"github.com/mailspine/mailspine"
)

// The bounds of what is looked into.
const (
	maxHeader = 256 << 10 // octets of a header block that are interpreted
	maxDepth  = 30
	maxParts  = 1000
	// Of all headers of a message together: fields cost more memory than octets. What is beyond it has no fields.
	maxHeaders = 4 << 20
	maxFields  = 50_000
)

// A part is a message or a part of one: where it is in the octets of the message.
type part struct {
	start, body, end int64 // of the header, of what follows it, and of the whole
	header           *mailspine.Header
	kind, subtype    string // in lower case
	params           map[string]string
	children         []*part // of a multipart
	message          *part   // of a message/rfc822
}

// A scanner finds the parts of a message.
type scanner struct {
	r     io.ReaderAt
	deep  bool // look into multiparts and messages
	parts int
	err   error // of the reader
	// of the headers that were interpreted
	octets, fields int
}

// scan reads the structure of a message, or only its header unless it is to be deep. The error is that of the reader: any octets are
// a message.
func scan(r io.ReaderAt, size int64, deep bool) (*part, error) {
	s := &scanner{r: r, deep: deep}
	p := s.part(0, size, 0, "text", "plain")
	return p, s.err
}

// header reads a header block, and returns where the body begins.
func (s *scanner) header(start, end int64) (*mailspine.Header, int64) {
	br := bufio.NewReaderSize(io.NewSectionReader(s.r, start, end-start), 4096)
	var block []byte
	at := start
	begin := true // of a line
	for {
		line, err := br.ReadSlice('\n')
		at += int64(len(line))
		if room := min(maxHeader, maxHeaders-s.octets) - len(block); room > 0 && s.fields < maxFields {
			block = append(block, line[:min(len(line), room)]...)
		}
		if begin && len(bytes.TrimRight(line, "\r\n")) == 0 && err == nil {
			break
		}
		begin = err == nil
		if err == bufio.ErrBufferFull {
			continue
		}
		if err != nil {
			if err != io.EOF {
				s.err = err
			}
			break
		}
	}
	h, err := mailspine.ParseHeader(bytes.NewReader(block), maxHeader+1)
	if err != nil || h == nil {
		h = &mailspine.Header{}
	}
	s.octets += len(block)
	s.fields += len(h.Fields)
	return h, at
}

// part reads a part that begins with a header. The default type is for one that says none (RFC 2046
// section 5.1.5).
func (s *scanner) part(start, end int64, depth int, kind, subtype string) *part {
	p := &part{start: start, end: end, kind: kind, subtype: subtype}
	s.parts++
	p.header, p.body = s.header(start, end)
	if v := p.header.Get("Content-Type"); v != "" {
		t, params, err := mime.ParseMediaType(v)
		if k, sub, ok := strings.Cut(t, "/"); ok && k != "" && sub != "" && (err == nil || err == mime.ErrInvalidMediaParameter) {
			p.kind, p.subtype, p.params = k, sub, params
		} else {
			p.kind, p.subtype = "text", "plain" // RFC 2045 section 5.2
		}
	}
	if !s.deep || depth >= maxDepth || s.err != nil {
		return p
	}
	switch {
	case p.kind == "multipart" && p.params["boundary"] != "":
		kind, subtype := "text", "plain"
		if p.subtype == "digest" {
			kind, subtype = "message", "rfc822"
		}
		for _, r := range s.split(p.body, end, p.params["boundary"]) {
			p.children = append(p.children, s.part(r[0], r[1], depth+1, kind, subtype))
		}
	case p.kind == "message" && (p.subtype == "rfc822" || p.subtype == "global"):
		if e := strings.ToLower(p.header.Get("Content-Transfer-Encoding")); e != "base64" && e != "quoted-printable" {
			p.message = s.part(p.body, end, depth+1, "text", "plain")
		}
	}
	return p
}

// split finds the parts between boundaries (RFC 2046 section 5.1.1). The line end before a boundary belongs to
// it.
func (s *scanner) split(start, end int64, boundary string) (ranges [][2]int64) {
	delim := []byte("--" + boundary)
	br := bufio.NewReaderSize(io.NewSectionReader(s.r, start, end-start), 32<<10)
	at := start
	from := int64(-1)
	begin := true
	lineEnd := int64(0) // octets of the line end before at
	for {
		line, err := br.ReadSlice('\n')
		if begin && bytes.HasPrefix(line, delim) {
			rest := line[len(delim):]
			last := bytes.HasPrefix(rest, []byte("--"))
			if last {
				rest = rest[2:]
			}
			if len(bytes.TrimRight(rest, " \t\r\n")) == 0 && (err == nil || err == io.EOF) {
				if from >= 0 {
					ranges = append(ranges, [2]int64{from, max(from, at-lineEnd)})
				}
				from = at + int64(len(line))
				if last || s.parts+len(ranges) >= maxParts {
					return ranges
				}
			}
		}
		at += int64(len(line))
		begin = err == nil
		switch {
		case bytes.HasSuffix(line, []byte("\r\n")):
			lineEnd = 2
		case bytes.HasSuffix(line, []byte("\n")):
			lineEnd = 1
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err != nil {
			if err != io.EOF {
				s.err = err
			}
			if from >= 0 && from <= end && s.parts+len(ranges) < maxParts { // the end is missing
				ranges = append(ranges, [2]int64{from, end})
			}
			return ranges
		}
	}
}

// find returns the part with a number such as 1.2, or nil (RFC 9051 section 6.4.5.1).
func (p *part) find(path []int) *part {
	for i, n := range path {
		whole := i == 0 // p is a message
		if p.message != nil && i > 0 {
			p, whole = p.message, true
		}
		switch {
		case p.kind == "multipart" && len(p.children) > 0:
			if n < 1 || n > len(p.children) {
				return nil
			}
			p = p.children[n-1]
		case !whole || n != 1: // a message that is no multipart has one part: its body
			return nil
		}
	}
	return p
}

// A section is a piece of a message: octets of it, or a header that was put together.
type section struct {
	start, end int64
	text       []byte // instead, if not nil
}

// section returns what an item asks for; nothing is an empty one.
func (p *part) section(item *imap.FetchItemBodySection) section {
	sub := p
	if len(item.Part) > 0 {
		if sub = p.find(item.Part); sub == nil {
			return section{}
		}
	}
	top := len(item.Part) == 0
	switch item.Specifier {
	case imap.PartSpecifierNone:
		if top {
			return section{start: p.start, end: p.end}
		}
		return section{start: sub.body, end: sub.end}
	case imap.PartSpecifierMIME:
		if top {
			return section{}
		}
		return section{start: sub.start, end: sub.body}
	}
	// HEADER and TEXT are of messages.
	m := sub
	if !top {
		if m = sub.message; m == nil {
			return section{}
		}
	}
	if item.Specifier == imap.PartSpecifierText {
		return section{start: m.body, end: m.end}
	}
	if len(item.HeaderFields) == 0 && len(item.HeaderFieldsNot) == 0 {
		return section{start: m.start, end: m.body}
	}
	names := map[string]bool{}
	for _, name := range slices.Concat(item.HeaderFields, item.HeaderFieldsNot) {
		names[strings.ToLower(name)] = true
	}
	text := []byte{}
	for _, f := range m.header.Fields {
		if names[strings.ToLower(f.Name)] == (len(item.HeaderFields) > 0) {
			text = append(text, f.Raw...)
		}
	}
	return section{text: append(text, "\r\n"...)}
}

// open returns a section's octets, of which a partial item wants some.
func (s section) open(r io.ReaderAt, partial *imap.SectionPartial) (io.Reader, int64) {
	if s.text != nil {
		r, s.start, s.end = bytes.NewReader(s.text), 0, int64(len(s.text))
	}
	if partial != nil {
		// The numbers are a client's: their sum may not fit.
		s.start = min(s.start+min(max(partial.Offset, 0), s.end-s.start), s.end)
		s.end = s.start + min(max(partial.Size, 0), s.end-s.start)
	}
	return io.NewSectionReader(r, s.start, s.end-s.start), s.end - s.start
}

// lines counts the lines of a part's body.
func (p *part) lines(r io.ReaderAt) (n int64, err error) {
	buf := make([]byte, 32<<10)
	sr := io.NewSectionReader(r, p.body, p.end-p.body)
	for {
		k, err := sr.Read(buf)
		n += int64(bytes.Count(buf[:k], []byte("\n")))
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// textHeader is the header as go-message has it.
func (p *part) textHeader() textproto.Header {
	var h textproto.Header
	for i := len(p.header.Fields) - 1; i >= 0; i-- { // Add puts a field at the top
		h.AddRaw(p.header.Fields[i].Raw)
	}
	return h
}

func (p *part) envelope() *imap.Envelope { return imapserver.ExtractEnvelope(p.textHeader()) }

// structure returns BODYSTRUCTURE.
func (p *part) structure(r io.ReaderAt) (imap.BodyStructure, error) {
	var language []string
	for l := range strings.SplitSeq(p.header.Get("Content-Language"), ",") {
		if l = plain(l); l != "" {
			language = append(language, l)
		}
	}
	var disp *imap.BodyStructureDisposition
	if v, params, err := mime.ParseMediaType(p.header.Get("Content-Disposition")); err == nil || err == mime.ErrInvalidMediaParameter {
		if v = plain(v); v != "" {
			disp = &imap.BodyStructureDisposition{Value: v, Params: plainMap(params)}
		}
	}
	location := plain(p.header.Get("Content-Location"))
	if p.kind == "multipart" && len(p.children) > 0 {
		m := &imap.BodyStructureMultiPart{
			Subtype:  plain(p.subtype),
			Extended: &imap.BodyStructureMultiPartExt{Params: plainMap(p.params), Disposition: disp, Language: language, Location: location},
		}
		for _, c := range p.children {
			b, err := c.structure(r)
			if err != nil {
				return nil, err
			}
			m.Children = append(m.Children, b)
		}
		return m, nil
	}
	kind, subtype := p.kind, p.subtype
	if kind == "multipart" || kind == "message" && p.message == nil && (subtype == "rfc822" || subtype == "global") {
		// It cannot be looked into, and a structure of that type would have to say what is in it.
		kind, subtype = "application", "octet-stream"
	}
	b := &imap.BodyStructureSinglePart{
		Type: plain(kind), Subtype: plain(subtype), Params: plainMap(p.params), ID: plain(p.header.Get("Content-Id")),
		Description: plain(p.header.Get("Content-Description")), Encoding: plain(p.header.Get("Content-Transfer-Encoding")),
		Size:     uint32(min(p.end-p.body, 1<<32-1)),
		Extended: &imap.BodyStructureSinglePartExt{Disposition: disp, Language: language, Location: location},
	}
	if kind == "text" || p.message != nil {
		lines, err := p.lines(r)
		if err != nil {
			return nil, err
		}
		if kind == "text" {
			b.Text = &imap.BodyStructureText{NumLines: lines}
		}
		if p.message != nil {
			inner, err := p.message.structure(r)
			if err != nil {
				return nil, err
			}
			b.MessageRFC822 = &imap.BodyStructureMessageRFC822{Envelope: p.message.envelope(), BodyStructure: inner, NumLines: lines}
		}
	}
	return b, nil
}

// plain makes a string of a message one that a reply can hold: no controls, valid UTF-8.
func plain(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?")))
}

func plainMap(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		if k = plain(k); k != "" {
			out[k] = plain(v)
		}
	}
	return out
}
