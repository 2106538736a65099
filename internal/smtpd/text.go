package smtpd

import (
	"bytes"

	"github.com/mailspine/mailspine"
)

// textCheck looks at a message as it passes, in pieces of any size: line ends,
// line length, NUL, and the size of the whole.
type textCheck struct {
	maxLine int   // with CRLF; 0: any
	maxSize int64 // 0: any

	size int64
	line int   // octets of the current line
	cr   bool  // the last octet was a CR
	bare bool  // a CR or an LF stood alone
	bad  error // the first rule broken
}

var errBare = mailspine.Errorf(550, "5.6.0", "Message has a CR or an LF that stands alone, lines end with CR LF (RFC 5321 section 2.3.8)")

func errTooBig(max int64) *mailspine.Error {
	return mailspine.Errorf(552, "5.3.4", "Message is larger than %d octets", max)
}

// scan looks at the next piece and returns the first rule that the message breaks. It may be called after
// that, to find out whether the message is bare besides.
func (t *textCheck) scan(p []byte) error {
	t.size += int64(len(p))
	switch {
	case t.bad != nil:
	case t.maxSize > 0 && t.size > t.maxSize:
		t.bad = errTooBig(t.maxSize)
	case bytes.IndexByte(p, 0) >= 0:
		t.bad = mailspine.Errorf(554, "5.6.0", "Message has a NUL (RFC 2045 section 2.8)")
	}
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		seg := p
		if i >= 0 {
			seg = p[:i]
		}
		if len(seg) > 0 {
			j := bytes.IndexByte(seg, '\r')
			if t.cr || j >= 0 && j < len(seg)-1 {
				return t.isBare()
			}
			t.cr = j >= 0
		}
		t.line += len(seg)
		if i >= 0 {
			t.line++
		}
		if t.bad == nil && t.maxLine > 0 && t.line > t.maxLine {
			t.bad = mailspine.Errorf(554, "5.6.0", "Message has a line of more than %d octets (RFC 5321 section 4.5.3.1.6)", t.maxLine)
		}
		if i < 0 {
			break
		}
		if !t.cr {
			return t.isBare()
		}
		t.cr, t.line = false, 0
		p = p[i+1:]
	}
	return t.bad
}

func (t *textCheck) isBare() error {
	t.bare = true
	if t.bad == nil {
		t.bad = errBare
	}
	return t.bad
}

// end is called after the last piece.
func (t *textCheck) end() error {
	if t.cr {
		return t.isBare()
	}
	return nil
}
