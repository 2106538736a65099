package tlsrpt

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"

	"github.com/mailspine/mailspine"
)

// MaxMessage is how much is read of the message that a report is in, in octets.
const MaxMessage = 24 << 20

const (
	maxHeader = 256 << 10
	maxParts  = 20 // of a message, at all depths
	maxDepth  = 3  // of parts in parts
)

// ParseMessage reads a report from a message. It takes a multipart/report and what gateways make of it: the report is the first part of
// one of the two media types, or else the first one whose type or file name is of JSON or gzip, at most three parts deep, or
// the message itself. Domain and Submitter are what the header says, in lower case, and "" if it does not or is nonsense; the report is the
// authority on itself (RFC 8460 section 5.6). MessageID may be empty.
//
// The error matches ErrNotReport or ErrTooLarge, or is the reader's.
func ParseMessage(r io.Reader) (*Message, error) {
	src := &source{r: r, left: MaxMessage, bounded: true}
	br := bufio.NewReader(src)
	h, err := readHeader(br)
	if src.err != nil {
		return nil, src.err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReport, err)
	}
	m := &Message{
		From: address(h.Get("From")), To: address(h.Get("To")),
		Domain: headerDomain(h.Get("TLS-Report-Domain")), Submitter: headerDomain(h.Get("TLS-Report-Submitter")),
		MessageID: printable(strings.Trim(h.Get("Message-ID"), "<>"), maxString),
	}
	if t, err := mail.ParseDate(h.Get("Date")); err == nil {
		m.Date = t.UTC()
	}
	f := finder{src: src}
	err = f.entity(entity{
		kind: h.Get("Content-Type"), disposition: h.Get("Content-Disposition"), encoding: h.Get("Content-Transfer-Encoding"), body: br,
	}, 0)
	if src.err != nil {
		return nil, src.err
	}
	if f.report == nil && f.other != nil {
		f.report, err = f.other, nil
	}
	switch {
	case f.report != nil:
		m.Report = f.report
		return m, nil
	case src.over:
		return nil, fmt.Errorf("%w: a message of over %d octets", ErrTooLarge, MaxMessage)
	case f.err != nil:
		return nil, f.err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrNotReport, err)
	}
	return nil, fmt.Errorf("%w: no part of the message is one", ErrNotReport)
}

// readHeader reads up to the empty line, and leaves the body in br.
func readHeader(br *bufio.Reader) (*mailspine.Header, error) {
	var block []byte
	begin := true // of a line
	for {
		frag, err := br.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF // a report has a body
			}
			return nil, err
		}
		if begin && (string(frag) == "\r\n" || string(frag) == "\n") {
			break
		}
		begin = err == nil
		if block = append(block, frag...); len(block) > maxHeader {
			return nil, mailspine.ErrHeaderTooLarge
		}
	}
	return mailspine.ParseHeader(bytes.NewReader(block), maxHeader)
}

// address returns the first address of a field, which is only told, and so may be zero.
func address(value string) mailspine.Address {
	list, err := mail.ParseAddressList(value)
	if err != nil || len(list) == 0 {
		return mailspine.Address{}
	}
	a, err := mailspine.ParseAddress(list[0].Address)
	if err != nil {
		return mailspine.Address{}
	}
	return a
}

func headerDomain(s string) string {
	d, err := cleanDomain(strings.TrimSpace(s))
	if err != nil {
		return ""
	}
	return d
}

// A finder looks for the report among the parts of a message.
type finder struct {
	src    *source
	parts  int
	report *Report // from a part of the right type
	other  *Report // from a part that looks like one
	err    error   // of the part of the right type, or else of the first that looked like one
}

// An entity is the message or a part: three of its fields, and the body as it comes.
type entity struct {
	kind, disposition, encoding string
	body                        io.Reader
}

// entity returns an error for damage that ends the reading. The parts are taken apart by mime/multipart, whose bounds of headers
// (10 MB and 10,000 fields a part) are good enough here.
func (f *finder) entity(e entity, depth int) error {
	kind, params, err := mime.ParseMediaType(e.kind)
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
		kind = "text/plain" // RFC 2045 section 5.2
	}
	if strings.HasPrefix(kind, "multipart/") && params["boundary"] != "" {
		if depth >= maxDepth {
			return nil
		}
		mr := multipart.NewReader(e.body, params["boundary"])
		for f.report == nil {
			if f.parts++; f.parts > maxParts {
				return nil
			}
			p, err := mr.NextRawPart()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			err = f.entity(entity{
				kind: p.Header.Get("Content-Type"), disposition: p.Header.Get("Content-Disposition"),
				encoding: p.Header.Get("Content-Transfer-Encoding"), body: p,
			}, depth+1)
			if err != nil {
				return err
			}
		}
		return nil
	}
	exact := kind == MediaTypeJSON || kind == MediaTypeGzip
	if !exact && (f.other != nil || !looksLike(kind, fileName(e.disposition, params))) {
		return nil
	}
	r, err := ParseReport(e.decoded())
	switch {
	case f.src.err != nil:
		return f.src.err
	case exact && err == nil:
		f.report = r
	case err == nil:
		f.other = r
	case exact || f.err == nil:
		if !errors.Is(err, ErrNotReport) && !errors.Is(err, ErrTooLarge) {
			err = fmt.Errorf("%w: %w", ErrNotReport, err) // a broken encoding
		}
		f.err = err
	}
	return nil
}

// decoded returns the content of a part. Where the message was cut off it just ends: a report that is not whole shows that by itself.
func (e *entity) decoded() io.Reader {
	body := io.Reader(&untilCut{e.body})
	switch strings.ToLower(strings.TrimSpace(e.encoding)) {
	case "base64":
		// RFC 2045 section 6.8: everything else is to be ignored.
		return base64.NewDecoder(base64.StdEncoding, &base64Only{body})
	case "quoted-printable":
		return quotedprintable.NewReader(body)
	}
	return body
}

type untilCut struct{ r io.Reader }

func (u *untilCut) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return n, err
}

// base64Only drops the octets that are not of the alphabet.
type base64Only struct{ r io.Reader }

func (b *base64Only) Read(p []byte) (int, error) {
	for {
		n, err := b.r.Read(p)
		kept := 0
		for _, c := range p[:n] {
			if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '+' || c == '/' || c == '=' {
				p[kept] = c
				kept++
			}
		}
		if kept > 0 || err != nil || len(p) == 0 {
			return kept, err
		}
	}
}

func fileName(disposition string, params map[string]string) string {
	if _, p, err := mime.ParseMediaType(disposition); err == nil && p["filename"] != "" {
		return p["filename"]
	}
	return params["name"]
}

// looksLike reports whether a part may be a report that lost its type on the way.
func looksLike(kind, name string) bool {
	switch kind {
	case "application/gzip", "application/x-gzip", "application/json":
		return true
	}
	name = strings.ToLower(name)
	return strings.HasSuffix(name, ".json") || strings.HasSuffix(name, ".json.gz") || strings.HasSuffix(name, ".gz") && strings.Contains(name, "!")
}
