package mta

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/mailspine/mailspine"
)

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

// A contentFacts is what the transfer of a message depends on.
type contentFacts struct {
	eightBit bool // needs 8BITMIME
	bare     bool // has a bare CR or LF: cannot be sent
	// wire is a small message as DATA has it, dots doubled, with the final dot. nil: the message is read again when
	// it is sent.
	wire []byte
}

// smallMessage bounds the messages that are read into memory, once; larger ones are read twice, in constant
// memory.
const smallMessage = 64 << 10

// inspect reads a message once. buf is what a small message may be kept in, if it has the room; it is nil, or the wire of
// one that is not needed any more.
func inspect(ctx context.Context, msg mailspine.Content, buf []byte) (contentFacts, error) {
	r, err := msg.Open(ctx)
	if err != nil {
		return contentFacts{}, err
	}
	defer r.Close()
	if size := msg.Size(); size >= 0 && size <= smallMessage {
		return inspectSmall(ctx, r, int(size), buf)
	}
	var s lineState
	var f contentFacts
	buf = make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		f.eightBit = f.eightBit || hasEightBit(buf[:n])
		for p := buf[:n]; len(p) > 0; {
			n, _, ok := s.next(p)
			if !ok {
				return contentFacts{bare: true}, nil
			}
			p = p[n:]
		}
		if err == io.EOF {
			f.bare = s.cr
			return f, nil
		}
		if err != nil {
			return contentFacts{}, err
		}
		if ctx.Err() != nil {
			return contentFacts{}, ctx.Err()
		}
	}
}

// inspectSmall reads a message of size octets, and makes its wire.
func inspectSmall(ctx context.Context, r io.Reader, size int, buf []byte) (contentFacts, error) {
	if cap(buf) < size+len("\r\n"+dotLine) {
		buf = make([]byte, size+512) // the same for messages of much the same size
	}
	msg := buf[:size+1] // one more octet, so that a message that is too long shows
	n := 0
	for {
		m, err := r.Read(msg[n:])
		if n += m; n > size {
			return contentFacts{}, fmt.Errorf("the message is longer than its size of %d octets", size)
		}
		if err == io.EOF {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return contentFacts{}, err
		}
	}
	if n < size {
		return contentFacts{}, fmt.Errorf("the message has %d octets, not %d", n, size)
	}
	msg = msg[:size]
	dots, bare := scanLines(msg)
	if bare {
		return contentFacts{bare: true}, nil
	}
	f := contentFacts{eightBit: hasEightBit(msg)}
	if size > 0 && msg[size-1] != '\n' {
		msg = append(msg, "\r\n"...) // the dot needs a line of its own
	}
	if dots > 0 {
		msg = stuff(msg, dots)
	}
	f.wire = append(msg, dotLine...)
	return f, nil
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

// A dotWriter writes a message in the form of DATA: a dot at the start of a line is
// doubled (RFC 5321 section 4.5.2). It refuses a bare CR or LF even though
// inspect did, since the safety of the next server hangs on it.
type dotWriter struct {
	w     *bufio.Writer
	state lineState
}

func (d *dotWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, dot, ok := d.state.next(p[done:])
		if !ok {
			return done, &localError{errBareLineEnd}
		}
		if dot {
			if err := d.w.WriteByte('.'); err != nil {
				return done, err
			}
		}
		if _, err := d.w.Write(p[done : done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// finish completes the last line, if the message does not end with CRLF: the dot
// needs a line of its own.
func (d *dotWriter) finish() error {
	switch {
	case d.state.cr:
		return &localError{errBareLineEnd}
	case d.state.mid:
		_, err := d.w.WriteString("\r\n")
		return err
	}
	return nil
}

var errBareLineEnd = mailspine.Errorf(554, "5.6.0", "The message has a CR or LF that is not part of a CRLF, and cannot be sent unchanged")
