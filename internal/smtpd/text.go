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
	if t.sound(p) {
		return nil
	}
	// Line by line, so that what is found does not depend on how the message came.
	for len(p) > 0 && !t.bare {
		n := len(p)
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			n = i + 1
		}
		t.scanLine(p[:n])
		p = p[n:]
	}
	return t.bad
}

// scanLine is scan for no more than one line.
func (t *textCheck) scanLine(p []byte) {
	t.size += int64(len(p))
	switch {
	case t.bad != nil:
	case t.maxSize > 0 && t.size > t.maxSize:
		t.bad = errTooBig(t.maxSize)
	case bytes.IndexByte(p, 0) >= 0:
		t.bad = mailspine.Errorf(554, "5.6.0", "Message has a NUL (RFC 2045 section 2.8)")
	}
	seg, lf := bytes.CutSuffix(p, []byte{'\n'})
	if len(seg) > 0 {
		j := bytes.IndexByte(seg, '\r')
		if t.cr || j >= 0 && j < len(seg)-1 {
			t.isBare()
			return
		}
		t.cr = j >= 0
	}
	t.line += len(p)
	if t.bad == nil && t.maxLine > 0 && t.line > t.maxLine {
		t.bad = mailspine.Errorf(554, "5.6.0", "Message has a line of more than %d octets (RFC 5321 section 4.5.3.1.6)", t.maxLine)
	}
	switch {
	case !lf:
	case !t.cr:
		t.isBare()
	default:
		t.cr, t.line = false, 0
	}
}

// sound is the short way through a piece that breaks no rule, as nearly all do: it reports whether
// that is so, and only then moves on. Whatever is unusual is left to scan.
func (t *textCheck) sound(p []byte) bool {
	size := t.size + int64(len(p))
	if len(p) == 0 || t.bad != nil || t.cr || t.maxSize > 0 && size > t.maxSize {
		return false
	}
	lines, line, rest := 0, t.line, p
	for {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			break
		}
		if i == 0 || rest[i-1] != '\r' || t.maxLine > 0 && line+i+1 > t.maxLine {
			return false
		}
		lines, line, rest = lines+1, 0, rest[i+1:]
	}
	if line += len(rest); t.maxLine > 0 && line > t.maxLine {
		return false
	}
	// Each LF has a CR before it. If there are no more CRs than that, none stands alone.
	cr := p[len(p)-1] == '\r'
	if cr {
		lines++
	}
	if bytes.Count(p, []byte{'\r'}) != lines || bytes.IndexByte(p, 0) >= 0 {
		return false
	}
	t.size, t.line, t.cr = size, line, cr
	return true
}

func (t *textCheck) isBare() {
	t.bare = true
	if t.bad == nil {
		t.bad = errBare
	}
}

// end is called after the last piece.
func (t *textCheck) end() error {
	if t.cr {
		t.isBare()
		return t.bad
	}
	return nil
}
