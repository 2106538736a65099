package smtpclient

import (
	"bufio"
	"errors"

	"github.com/mailspine/mailspine"
)

// A dotWriter writes a message in the form of DATA: a dot at the start of a line is
// doubled (RFC 5321 section 4.5.2). It refuses a bare CR or LF even though
// Prepare did, since the safety of the next server hangs on it.
type dotWriter struct {
	w     *bufio.Writer
	state lineState
}

func (d *dotWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, dot, ok := d.state.next(p[done:])
		if !ok {
			return done, &MessageError{errBareLineEnd}
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
		return &MessageError{errBareLineEnd}
	case d.state.mid:
		_, err := d.w.WriteString("\r\n")
		return err
	}
	return nil
}

// last is the final dot.
func (d *dotWriter) last() []byte { return []byte(dotLine) }

// A chunkWriter writes a message in the form of BDAT: as it is, but for a line end at its end if it has none. Unless it is
// binary it refuses a bare CR or LF, as a dotWriter does. The last octet is held back.
type chunkWriter struct {
	w      *bufio.Writer
	binary bool
	state  lineState
	left   int64 // of what the BDAT command said
	held   []byte
}

func (c *chunkWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !c.binary {
		for rest := p; len(rest) > 0; {
			n, _, ok := c.state.next(rest)
			if !ok {
				return 0, &MessageError{errBareLineEnd}
			}
			rest = rest[n:]
		}
	}
	if err := c.put(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// put writes octets and holds back the last one. p is not empty.
func (c *chunkWriter) put(p []byte) error {
	if int64(len(p)) > c.left {
		return &MessageError{errChanged} // the held octet may be the last that the server waits for
	}
	if _, err := c.w.Write(c.held); err != nil {
		return err
	}
	c.left -= int64(len(p))
	end := len(p) - 1
	c.held = append(c.held[:0], p[end])
	_, err := c.w.Write(p[:end])
	return err
}

// finish completes the last line. That the message has become another since it was looked at is found out before its last
// octet is sent.
func (c *chunkWriter) finish() error {
	if !c.binary && c.state.cr {
		return &MessageError{errBareLineEnd}
	}
	if !c.binary && c.state.mid {
		if err := c.put([]byte("\r\n")); err != nil {
			return err
		}
	}
	if c.left != 0 {
		return &MessageError{errChanged}
	}
	return nil
}

func (c *chunkWriter) last() []byte { return c.held }

var (
	errBareLineEnd = mailspine.Errorf(554, "5.6.0", "The message has a CR or LF that is not part of a CRLF, and cannot be sent unchanged")
	errChanged     = errors.New("the message is not the one that was looked at")
)
