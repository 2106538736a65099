package report

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/emersion/go-message"
)

// A Report is a multipart/report that was read.
type Report struct {
	// Type is the report-type in lower case: delivery-status, feedback-report,
	// disposition-notification.
	Type string
	// Text is for people: the first part, at most MaxText octets of it.
	Text string
	// Delivery is the second part of a delivery-status report; otherwise nil.
	Delivery *Delivery
	// Feedback is the second part of a feedback report; otherwise nil.
	Feedback *Feedback
	// Returned is the beginning of the message that it is about, or of its
	// header, at most MaxReturned octets; nil: it was not returned.
	Returned []byte
	// Full says that Returned is of a whole message.
	Full bool
}

// The bounds of Parse, in octets.
const (
	MaxReport   = 4 << 20 // read of a message
	MaxText     = 64 << 10
	MaxStatus   = 1 << 20 // read of the second part
	MaxReturned = 256 << 10
	maxHeader   = 256 << 10 // of the message, and of each part
	maxParts    = 10
)

// ErrNotReport is returned for a message that is no multipart/report, or is one
// without the part that its type stands for.
var ErrNotReport = errors.New("report: not a report")

// Parse reads a report. It reads at most MaxReport octets, and takes what it
// finds there: a report that is cut off has what came before. The error is
// ErrNotReport (or wraps it), or of the reader.
func Parse(r io.Reader) (*Report, error) {
	lr := &limited{r: r, left: MaxReport}
	parts := newSplitter(lr)
	h, err := parts.header()
	if lr.err != nil {
		return nil, lr.err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrNotReport, err)
	}
	fields := h.fields()
	kind, params, err := fields.ContentType()
	if err != nil || !strings.EqualFold(kind, "multipart/report") {
		return nil, fmt.Errorf("%w: it is %.100q", ErrNotReport, kind)
	}
	rep := &Report{Type: strings.ToLower(strings.Trim(params["report-type"], " \""))}
	parts.split(params["boundary"])
	for i := range maxParts {
		p := parts.next()
		if lr.err != nil {
			return nil, lr.err
		}
		if p == nil {
			break // the end, or damage: what came before counts
		}
		if err := rep.part(i, p); err != nil && lr.err != nil {
			return nil, lr.err
		}
	}
	if rep.Delivery == nil && rep.Type == "delivery-status" {
		return nil, fmt.Errorf("%w: it has no readable delivery status", ErrNotReport)
	}
	if rep.Feedback == nil && rep.Type == "feedback-report" {
		return nil, fmt.Errorf("%w: it has no readable feedback report", ErrNotReport)
	}
	return rep, nil
}

// part takes in the part number i.
func (rep *Report) part(i int, p *message.Entity) error {
	kind, _, err := p.Header.ContentType()
	if err != nil {
		// A type that does not parse is plain text (RFC 2045 section 5.2).
		kind = "text/plain"
	}
	switch strings.ToLower(kind) {
	case "message/delivery-status", "message/global-delivery-status":
		b, err := read(p.Body, MaxStatus)
		if rep.Delivery == nil {
			if d, derr := ParseDelivery(b); derr == nil {
				rep.Delivery = d
				if rep.Type == "" {
					rep.Type = "delivery-status"
				}
			}
		}
		return err
	case "message/feedback-report":
		b, err := read(p.Body, MaxStatus)
		if rep.Feedback == nil {
			if f, ferr := ParseFeedback(b); ferr == nil {
				rep.Feedback = f
				if rep.Type == "" {
					rep.Type = "feedback-report"
				}
			}
		}
		return err
	case "message/rfc822", "message/global":
		if rep.Returned == nil {
			rep.Full = true
			rep.Returned, err = read(p.Body, MaxReturned)
			return err
		}
	case "text/rfc822-headers", "message/rfc822-headers", "message/global-headers":
		if rep.Returned == nil {
			rep.Returned, err = read(p.Body, MaxReturned)
			return err
		}
	default:
		if i == 0 {
			b, err := read(p.Body, MaxText)
			rep.Text = strings.ToValidUTF8(strings.ReplaceAll(string(b), "\r\n", "\n"), "?")
			return err
		}
	}
	return nil
}

// read reads at most max octets, and keeps what it got before an error. The result is not nil.
func read(r io.Reader, max int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, max))
	if b == nil {
		b = []byte{}
	}
	return b, err
}

// limited ends after a number of octets, and remembers an error of the reader,
// to tell it from damage of the message.
type limited struct {
	r    io.Reader
	left int64
	err  error
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, io.EOF
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	if err != nil && err != io.EOF {
		l.err = err
	}
	return n, err
}
