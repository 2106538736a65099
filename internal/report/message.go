package report

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// A Message is a delivery status notification to be written.
type Message struct {
	From      string            // the From field: a mailbox, with a display name or without, in ASCII
	To        mailspine.Address // the sender of the message that it is about
	Subject   string
	Date      time.Time
	MessageID string // without angle brackets
	// Text is for people: lines with LF between them. Long lines are wrapped by
	// encoding, not in what is seen.
	Text     string
	Delivery Delivery
	// Feedback makes it a feedback report instead; nil: a delivery status notification.
	Feedback *Feedback
	// Returned is the message that it is about, or its header block (with or without the
	// empty line after it); nil: it is not returned.
	Returned []byte
	Full     bool // Returned is a whole message; see CanReturn
	// UTF8 says that the notification may hold UTF-8 where RFC 6533 allows it,
	// and so needs SMTPUTF8.
	UTF8 bool
}

// CanReturn reports whether a message can be part of a notification as it is: RFC 2046
// section 5.2.1 lets nobody encode it, so its lines must be lines that SMTP
// can carry.
func CanReturn(b []byte) bool { return isText(b) }

// isText reports whether b is lines of at most 998 octets with CRLF, without NUL.
func isText(b []byte) bool {
	n := 0
	for i, c := range b {
		switch {
		case c == 0, c == '\n' && (i == 0 || b[i-1] != '\r'), i > 0 && b[i-1] == '\r' && c != '\n':
			return false
		case c == '\n':
			n = 0
			continue
		}
		if n++; n > 999 { // the CR counts
			return false
		}
	}
	return len(b) == 0 || b[len(b)-1] != '\r'
}

func isASCII(b []byte) bool {
	return bytes.IndexFunc(b, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

// Bytes returns the message, with CRLF line ends, and what its envelope has to
// say of the body.
func (m *Message) Bytes() ([]byte, mailspine.Body) {
	var parts [3]part
	parts[0] = encode("text/plain; charset=utf-8", []byte(strings.ReplaceAll(m.Text, "\n", "\r\n")))
	if isASCII(parts[0].body) && parts[0].encoding == "7bit" {
		parts[0].kind = "text/plain; charset=us-ascii"
	}
	global := m.UTF8
	kind, text, auto := "delivery-status", "a delivery status notification (RFC 3464)", "auto-replied" // RFC 3834 section 5
	parts[1] = part{kind: "message/delivery-status", encoding: "7bit"}
	if m.Feedback != nil {
		kind, text, auto = "feedback-report", "an abuse report (RFC 5965)", "auto-generated"
		parts[1].kind, parts[1].body = "message/feedback-report", m.Feedback.Format()
	} else {
		parts[1].body = m.Delivery.Format(global)
	}
	if global && !isASCII(parts[1].body) {
		parts[1].kind, parts[1].encoding = "message/global-delivery-status", "8bit"
	}
	n := 2
	if m.Returned != nil {
		parts[2] = m.returned()
		n = 3
	}
	body := mailspine.Body7Bit
	encoding := "7bit"
	for _, p := range parts[:n] {
		if p.encoding == "8bit" {
			body, encoding = mailspine.Body8Bit, "8bit"
		}
	}
	boundary := m.boundary(parts[:n])

	head := writer{utf8: m.UTF8}
	head.field("From", m.From)
	head.field("To", m.To.Path())
	head.field("Subject", mime.QEncoding.Encode("utf-8", m.Subject))
	head.date("Date", m.Date)
	head.field("Message-ID", "<"+m.MessageID+">")
	head.field("Auto-Submitted", auto)
	head.field("MIME-Version", "1.0")
	fmt.Fprintf(&head, "Content-Type: multipart/report; report-type=%s;\r\n boundary=\"%s\"\r\n", kind, boundary)
	fmt.Fprintf(&head, "Content-Transfer-Encoding: %s\r\n\r\n", encoding)
	head.WriteString("This is " + text + ".\r\n")
	for i, p := range parts[:n] {
		fmt.Fprintf(&head, "\r\n--%s\r\n", boundary)
		fmt.Fprintf(&head, "Content-Type: %s\r\nContent-Description: %s\r\nContent-Transfer-Encoding: %s\r\n\r\n",
			p.kind, [...]string{"Notification", "Delivery report", "Returned message"}[i], p.encoding)
		head.Write(p.body)
	}
	fmt.Fprintf(&head, "\r\n--%s--\r\n", boundary)
	return head.Bytes(), body
}

type part struct {
	kind, encoding string
	body           []byte
}

// encode makes a text part: as it is if it is plain ASCII lines, otherwise
// quoted-printable.
func encode(kind string, b []byte) part {
	if isText(b) && isASCII(b) {
		return part{kind, "7bit", b}
	}
	var out bytes.Buffer
	w := quotedprintable.NewWriter(&out)
	w.Write(b) // to memory: there is no error
	w.Close()
	return part{kind, "quoted-printable", out.Bytes()}
}

// returned is the third part.
func (m *Message) returned() part {
	global := m.UTF8
	if m.Full {
		p := part{"message/rfc822", "7bit", m.Returned}
		if !isASCII(m.Returned) {
			p.encoding = "8bit"
			if global {
				p.kind = "message/global" // RFC 6533 section 5
			}
		}
		return p
	}
	kind := "text/rfc822-headers"
	if global && !isASCII(m.Returned) {
		kind = "message/global-headers"
	}
	return encode(kind, m.Returned)
}

// boundary returns one that is in no part. It depends on the content only, so that
// a report written again is the same.
func (m *Message) boundary(parts []part) string {
	sum := sha256.Sum256([]byte(m.MessageID))
	for i := 0; ; i++ {
		b := "report_" + hex.EncodeToString(sum[:12])
		found := false
		for _, p := range parts {
			found = found || bytes.Contains(p.body, []byte(b))
		}
		if !found {
			return b
		}
		// Each candidate that was found took its length of a bounded message, so
		// this ends.
		sum = sha256.Sum256(sum[:])
	}
}
