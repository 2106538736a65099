package smtpclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/mailspine/mailspine"
)

// InMemory bounds the messages that Prepare reads into memory, once. With CHUNKING they go in one piece with their commands.
// Larger ones are read twice, in constant memory.
const InMemory = 64 << 10

// A Message is a message that Prepare has looked at, for any number of calls of [Client.Send], one at a time. Its exported fields are
// what was found; they must not be changed.
type Message struct {
	EightBit bool // it has octets over 127, and needs 8BITMIME (RFC 6152)
	// BareLineEnd: it has a CR or LF that is not part of a CRLF, and can be sent as BINARYMIME only: anywhere else the
	// next server could take it for another end of the message (RFC 5321 section 2.3.8).
	BareLineEnd bool
	// TLSOptional: its header says "TLS-Required: No": the sender would rather have it delivered without TLS than not at
	// all (RFC 8689 section 3).
	TLSOptional bool

	content mailspine.Content
	size    int64
	open    bool // the last line has no CRLF
	dots    int  // lines that begin with a dot; of a small message

	// buf has a small message: room for the commands that go before it, the message, a CRLF if it is open, a dot and CRLF.
	// nil: a large message, that is read again when it is sent.
	buf     []byte
	stuffed []byte // the form of DATA where it is another
}

// Size is the number of octets of the message as it is, without what DATA adds.
func (m *Message) Size() int64 { return m.size }

// Buffer returns the memory of a message that is not used any more, for another Prepare; nil if there is none.
func (m *Message) Buffer() []byte {
	b := m.buf
	m.buf, m.stuffed = nil, nil
	return b
}

// Prepare reads a message once. buf is what a small message is kept in if it has the room; nil: memory is allocated. The
// Message is valid as long as msg is. An error is that of msg, or tells that the size of a
// small one is wrong; that of a large one is found out by Send, before its end is sent.
func Prepare(ctx context.Context, msg mailspine.Content, buf []byte) (*Message, error) {
	m := &Message{content: msg, size: msg.Size()}
	if m.size < 0 {
		return nil, fmt.Errorf("smtpclient: the message has a size of %d", m.size)
	}
	r, err := msg.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if m.size <= InMemory {
		return m, m.load(ctx, r, buf)
	}
	return m, m.scan(ctx, r)
}

// scan reads a large message.
func (m *Message) scan(ctx context.Context, r io.Reader) error {
	var s lineState
	var head []byte // the header so far, as far as it is looked at
	inHead := true
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		p := buf[:n]
		if inHead {
			head = append(head, p[:min(len(p), maxHeader-len(head))]...)
			if end := bytes.Index(head, []byte("\r\n\r\n")); end >= 0 || len(head) >= maxHeader || err != nil {
				m.TLSOptional, inHead, head = tlsOptional(head), false, nil
			}
		}
		m.EightBit = m.EightBit || hasEightBit(p)
		for len(p) > 0 && !m.BareLineEnd {
			n, _, ok := s.next(p)
			m.BareLineEnd = !ok
			p = p[n:]
		}
		if err == io.EOF {
			m.BareLineEnd = m.BareLineEnd || s.cr
			m.open = s.mid
			return nil
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// load reads a small message.
func (m *Message) load(ctx context.Context, r io.Reader, buf []byte) error {
	size := int(m.size)
	if cap(buf) < maxFlight+size+len("\r\n"+dotLine) {
		buf = make([]byte, maxFlight+size+512) // the same for messages of much the same size
	}
	text := buf[maxFlight : maxFlight+size+1] // one more octet, so that a message that is too long shows
	n := 0
	for {
		k, err := r.Read(text[n:])
		if n += k; n > size {
			return fmt.Errorf("the message is longer than its size of %d octets", size)
		}
		if err == io.EOF {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	if n < size {
		return fmt.Errorf("the message has %d octets, not %d", n, size)
	}
	text = text[:size]
	m.dots, m.BareLineEnd = scanLines(text)
	m.EightBit = hasEightBit(text)
	m.open = size > 0 && text[size-1] != '\n'
	m.TLSOptional = tlsOptional(text)
	m.buf = buf[:maxFlight+size]
	if m.open {
		m.buf = append(m.buf, "\r\n"...) // the dot needs a line of its own
	}
	m.buf = append(m.buf, dotLine...)
	return nil
}

// dotLine ends a message that is sent with DATA.
const dotLine = ".\r\n"

// asData is a small message as DATA has it, with the final dot.
func (m *Message) asData() []byte {
	if m.dots == 0 {
		return m.buf[maxFlight:]
	}
	if m.stuffed == nil {
		m.stuffed = append(stuff(m.buf[maxFlight:len(m.buf)-len(dotLine)], m.dots), dotLine...)
	}
	return m.stuffed
}

// chunk is how many octets a message has as BDAT has it. As with DATA it ends with a line end, so that
// what arrives does not depend on how it was sent; with BINARYMIME it is what it is.
func (m *Message) chunk(binary bool) int64 {
	if m.open && !binary {
		return m.size + 2
	}
	return m.size
}

// behind returns commands with a small message behind them, as one piece, in the memory of the message. commands are
// at most maxFlight octets.
func (m *Message) behind(commands []byte, binary bool) []byte {
	start := maxFlight - len(commands)
	copy(m.buf[start:], commands)
	return m.buf[start : maxFlight+int(m.chunk(binary))]
}

// maxHeader bounds how much of a header is looked at.
const maxHeader = 64 << 10

// tlsOptional reports whether a message has the field "TLS-Required: No" in its header (RFC 8689 section 3). Of several such
// fields none counts.
func tlsOptional(msg []byte) bool {
	const name = "tls-required"
	found, no := 0, false
	msg = msg[:min(len(msg), maxHeader)]
	for len(msg) > 0 {
		// A field with the lines that continue it.
		end := 0
		for {
			i := bytes.IndexByte(msg[end:], '\n')
			if i < 0 {
				end = len(msg)
				break
			}
			if end += i + 1; end >= len(msg) || msg[end] != ' ' && msg[end] != '\t' {
				break
			}
		}
		field := msg[:end]
		msg = msg[end:]
		if len(field) <= 2 && len(bytes.TrimSpace(field)) == 0 {
			break // the header has ended
		}
		if len(field) <= len(name) || field[0] != 't' && field[0] != 'T' {
			continue
		}
		key, value, ok := bytes.Cut(field, []byte(":"))
		if ok && strings.EqualFold(strings.TrimRight(string(key), " \t"), name) {
			found++
			no = strings.EqualFold(strings.TrimSpace(string(value)), "no")
		}
	}
	return found == 1 && no
}

// A lineState walks through a message and watches its line ends. A message on the
// wire has CR and LF only as CRLF (RFC 5321 section 2.3.8): anything else could
// be read as another end of data by the next server, which is how messages are smuggled.
type lineState struct {
	cr  bool // the last octet was CR
	mid bool // inside of a line; with cr too
}

// next takes the next octets, up to the end of a line or of p. It returns how many there are, whether they begin
// with a dot at the start of a line, and false when there is a bare CR or LF among them or just before them. p is
// not empty.
func (s *lineState) next(p []byte) (n int, dot, ok bool) {
	if s.cr {
		if p[0] != '\n' {
			return 0, false, false
		}
		s.cr, s.mid = false, false
		return 1, false, true
	}
	dot = !s.mid && p[0] == '.'
	i := bytes.IndexByte(p, '\n')
	if i < 0 {
		// A CR may be the last octet: its LF comes with the next.
		cr := bytes.IndexByte(p, '\r')
		s.cr, s.mid = cr >= 0, true
		return len(p), dot, cr < 0 || cr == len(p)-1
	}
	// The first CR of the line is the one before the LF.
	s.mid = false
	return i + 1, dot, i > 0 && bytes.IndexByte(p[:i], '\r') == i-1
}

// scanLines counts the lines that begin with a dot, and reports whether there is a CR or LF that is not part of a
// CRLF.
func scanLines(b []byte) (dots int, bare bool) {
	var s lineState
	for len(b) > 0 {
		n, dot, ok := s.next(b)
		if !ok {
			return dots, true
		}
		if dot {
			dots++
		}
		b = b[n:]
	}
	return dots, s.cr
}

func hasEightBit(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.NativeEndian.Uint64(b)&0x8080808080808080 != 0 {
			return true
		}
	}
	return !isASCII(string(b))
}

// stuff doubles the dots at the start of lines (RFC 5321 section 4.5.2), of which there are some. All lines end with CRLF.
func stuff(b []byte, dots int) []byte {
	out := make([]byte, 0, len(b)+dots+len(dotLine))
	for len(b) > 0 {
		if b[0] == '.' {
			out = append(out, '.')
		}
		i := bytes.IndexByte(b, '\n') + 1
		out = append(out, b[:i]...)
		b = b[i:]
	}
	return out
}
