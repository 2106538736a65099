package convert

import (
	"bufio"
	"encoding/base64"
	"errors"
	"io"
	"mime/quotedprintable"
)

// The transfer encodings that are written.
const (
	quotedPrintable = "quoted-printable"
	base64Encoding  = "base64"
)

var errEncoding = errors.New("its transfer encoding is not known")

// decoder returns a reader of what is encoded in r (RFC 2045 section 6). Damage is an
// error of the reader.
func decoder(encoding string, r io.Reader) (io.Reader, error) {
	switch encoding {
	case "", "7bit", "8bit", "binary":
		return r, nil
	case quotedPrintable:
		// Its lines may be as long as this buffer.
		return quotedprintable.NewReader(bufio.NewReaderSize(r, 64<<10)), nil
	case base64Encoding:
		return base64.NewDecoder(base64.StdEncoding, spaceless{r}), nil
	}
	return nil, errEncoding
}

// spaceless leaves out white space.
type spaceless struct{ r io.Reader }

func (s spaceless) Read(p []byte) (int, error) {
	for {
		n, err := s.r.Read(p)
		k := 0
		for _, c := range p[:n] {
			if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
				p[k] = c
				k++
			}
		}
		if k > 0 || err != nil {
			return k, err
		}
	}
}

// encoder returns a writer that encodes for w; Close writes what is left.
func encoder(encoding, nl string, w *bufio.Writer) io.WriteCloser {
	if encoding == base64Encoding {
		l := &lines{w: w, nl: nl}
		return base64Writer{base64.NewEncoder(base64.StdEncoding, l)}
	}
	return &qpWriter{w: w, nl: nl}
}

type base64Writer struct{ io.WriteCloser }

// lines cuts base64 into lines of 76 characters.
type lines struct {
	w   *bufio.Writer
	nl  string
	col int
}

func (l *lines) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if l.col == 76 {
			if _, err := l.w.WriteString(l.nl); err != nil {
				return 0, err
			}
			l.col = 0
		}
		n := min(76-l.col, len(rest))
		if _, err := l.w.Write(rest[:n]); err != nil {
			return 0, err
		}
		l.col += n
		rest = rest[n:]
	}
	return len(p), nil
}

// A qpWriter writes quoted-printable (RFC 2045 section 6.7) in lines of at most 76 octets. The line ends of
// the text, and nothing else, are line ends of the encoding: CR LF, or LF in a message that has LF.
// Unlike mime/quotedprintable's writer it keeps every octet, also a CR or LF that is
// alone; and no line begins with "-", so that none can be taken for a delimiter, with
// "From ", or with a dot.
type qpWriter struct {
	w     *bufio.Writer
	nl    string
	line  [80]byte
	n     int
	cr    bool // a CR, of which it is not known yet what follows
	space byte // white space, of which it is not known whether it ends the line; 0: none
}

func (q *qpWriter) Write(p []byte) (int, error) {
	for _, c := range p {
		if q.cr {
			q.cr = false
			if c == '\n' {
				q.endLine()
				continue
			}
			q.flushSpace(false)
			q.escape('\r')
		}
		switch {
		case c == '\r' && q.nl == "\r\n":
			q.cr = true
		case c == '\n' && q.nl == "\n":
			q.endLine()
		case c == ' ' || c == '\t':
			q.flushSpace(false)
			q.space = c
		case c < ' ' || c > '~' || c == '=':
			q.flushSpace(false)
			q.escape(c)
		default:
			q.flushSpace(false)
			if q.n == 0 && (c == '-' || c == 'F' || c == '.') {
				q.escape(c)
			} else {
				q.put(c)
			}
		}
	}
	return len(p), q.err()
}

// flushSpace writes the white space that waits; at the end of a line it is encoded, lest somebody cut
// it off.
func (q *qpWriter) flushSpace(last bool) {
	if c := q.space; c != 0 {
		q.space = 0
		if last {
			q.escape(c)
		} else {
			q.put(c)
		}
	}
}

func (q *qpWriter) endLine() {
	q.flushSpace(true)
	q.w.Write(q.line[:q.n])
	q.w.WriteString(q.nl)
	q.n = 0
}

func (q *qpWriter) room(n int) {
	if q.n+n > 75 {
		q.line[q.n] = '='
		q.w.Write(q.line[:q.n+1])
		q.w.WriteString(q.nl)
		q.n = 0
	}
}

func (q *qpWriter) put(c byte) {
	q.room(1)
	if q.n == 0 && (c == '-' || c == 'F' || c == '.') {
		q.escape(c)
		return
	}
	q.line[q.n] = c
	q.n++
}

func (q *qpWriter) escape(c byte) {
	const hex = "0123456789ABCDEF"
	q.room(3)
	q.n += copy(q.line[q.n:], []byte{'=', hex[c>>4], hex[c&15]})
}

// err returns the error that the bufio.Writer keeps.
func (q *qpWriter) err() error {
	_, err := q.w.Write(nil)
	return err
}

func (q *qpWriter) Close() error {
	if q.cr {
		q.cr = false
		q.flushSpace(false)
		q.escape('\r')
	}
	q.flushSpace(true)
	q.w.Write(q.line[:q.n])
	q.n = 0
	return q.err()
}
