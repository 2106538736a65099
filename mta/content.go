package mta

import (
	"bufio"
	"context"
	"io"

	"github.com/mailspine/mailspine"
)

// A lineState walks through a message and watches its line ends. A message on the
// wire has CR and LF only as CRLF (RFC 5321 section 2.3.8): anything else could
// be read as another end of data by the next server, which is how messages are smuggled.
type lineState struct {
	cr    bool // the last octet was CR
	mid   bool // inside of a line
	eight bool // an octet above 127 was seen
}

// next takes one octet, and reports false when it or the one before is a bare CR or LF.
func (s *lineState) next(c byte) bool {
	switch {
	case c == '\n':
		if !s.cr {
			return false
		}
		s.cr, s.mid = false, false
		return true
	case s.cr:
		return false
	case c == '\r':
		s.cr = true
	case c >= 0x80:
		s.eight = true
	}
	s.mid = true
	return true
}

// A contentFacts is what the transfer of a message depends on.
type contentFacts struct {
	eightBit bool // needs 8BITMIME
	bare     bool // has a bare CR or LF: cannot be sent
}

// inspect reads a message once, in constant memory.
func inspect(ctx context.Context, msg mailspine.Content) (contentFacts, error) {
	r, err := msg.Open(ctx)
	if err != nil {
		return contentFacts{}, err
	}
	defer r.Close()
	var s lineState
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		for _, c := range buf[:n] {
			if !s.next(c) {
				return contentFacts{bare: true}, nil
			}
		}
		if err == io.EOF {
			return contentFacts{eightBit: s.eight, bare: s.cr}, nil
		}
		if err != nil {
			return contentFacts{}, err
		}
		if ctx.Err() != nil {
			return contentFacts{}, ctx.Err()
		}
	}
}

// A dotWriter writes a message in the form of DATA: a dot at the start of a line is
// doubled (RFC 5321 section 4.5.2). It refuses a bare CR or LF even though
// inspect did, since the safety of the next server hangs on it.
type dotWriter struct {
	w     *bufio.Writer
	state lineState
}

func (d *dotWriter) Write(p []byte) (int, error) {
	start := 0 // what is not yet written begins here
	for i, c := range p {
		if c == '.' && !d.state.mid {
			if _, err := d.w.Write(p[start:i]); err != nil {
				return start, err
			}
			start = i
			if err := d.w.WriteByte('.'); err != nil {
				return start, err
			}
		}
		if !d.state.next(c) {
			return start, &localError{errBareLineEnd}
		}
	}
	if _, err := d.w.Write(p[start:]); err != nil {
		return start, err
	}
	return len(p), nil
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
