package tlsrpt

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A Message is a report as mail (RFC 8460 section 5.3).
type Message struct {
	From, To  mailspine.Address
	Domain    string // the domain that it is about: TLS-Report-Domain
	Submitter string // the domain of who sends it: TLS-Report-Submitter
	Date      time.Time
	MessageID string // without angle brackets
	Report    *Report
}

// valid says which field would break the header.
func (m *Message) valid() error {
	for _, a := range []mailspine.Address{m.From, m.To} {
		if a.IsZero() || a.Validate() != nil || !a.IsASCII() {
			return fmt.Errorf("tlsrpt: message: %q is no ASCII address", a.String())
		}
	}
	for _, d := range []string{m.Domain, m.Submitter} {
		if c, err := cleanDomain(d); err != nil || c != d {
			return fmt.Errorf("tlsrpt: message: %.100q is no domain name in normal form", d)
		}
	}
	if m.Report == nil {
		return errors.New("tlsrpt: message without a report")
	}
	for _, id := range []string{m.MessageID, m.Report.ID} {
		if id == "" || len(id) > maxString || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > 0x7e || r == '<' || r == '>' }) {
			return fmt.Errorf("tlsrpt: message: %.100q is no ID", id)
		}
	}
	return nil
}

// Bytes returns the message with CRLF line ends, in ASCII. It has no DKIM-Signature yet: an auth.Signer adds it. A field that cannot
// be in a header is an error: addresses must be valid and ASCII, domains in lower case with A-labels, IDs without spaces and brackets.
func (m *Message) Bytes() ([]byte, error) {
	if err := m.valid(); err != nil {
		return nil, err
	}
	z, err := m.Report.Gzip()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\r\n", args...) }
	sum := sha256.Sum256([]byte(m.MessageID))
	// Neither text has a line that begins so: the one is ours, the other base64.
	boundary := "tlsrpt_" + hex.EncodeToString(sum[:12])
	name := m.Report.FileName(m.Submitter, m.Domain)
	line("From: %s", m.From.Path())
	line("To: %s", m.To.Path())
	line("Subject: Report Domain: %s\r\n Submitter: %s\r\n Report-ID: <%s>", m.Domain, m.Submitter, m.Report.ID)
	line("Date: %s", m.Date.UTC().Format(time.RFC1123Z))
	line("Message-ID: <%s>", m.MessageID)
	line("TLS-Report-Domain: %s", m.Domain)
	line("TLS-Report-Submitter: %s", m.Submitter)
	line("TLS-Required: No") // RFC 8689 section 3: or the report of a failure would fail in the same way
	line("Auto-Submitted: auto-generated")
	line("MIME-Version: 1.0")
	line("Content-Type: multipart/report; report-type=\"tlsrpt\";\r\n boundary=\"%s\"", boundary)
	line("")
	line("This is an SMTP TLS report (RFC 8460).")
	line("")
	line("--%s", boundary)
	line("Content-Type: text/plain; charset=us-ascii")
	line("Content-Transfer-Encoding: 7bit")
	line("")
	b.WriteString(m.text())
	line("")
	line("--%s", boundary)
	line("Content-Type: %s", MediaTypeGzip)
	line("Content-Transfer-Encoding: base64")
	line("Content-Disposition: attachment;\r\n filename=\"%s\"", name)
	line("")
	for s := base64.StdEncoding.EncodeToString(z); s != ""; {
		n := min(len(s), 76)
		line("%s", s[:n])
		s = s[n:]
	}
	line("")
	line("--%s--", boundary)
	return b.Bytes(), nil
}

// text is for people.
func (m *Message) text() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\r\n", args...) }
	r := m.Report
	ok, failed := r.Total()
	line("This is an aggregate TLS report from %s", m.Submitter)
	line("about mail to %s.", m.Domain)
	line("")
	line("From:     %s", timeText(r.Start))
	line("To:       %s", timeText(r.End))
	line("Sessions: %d successful, %d failed", ok, failed)
	var s Summary
	s.Add(r)
	for _, res := range s.Results() {
		line("          %d %s", res.Sessions, res.Result)
	}
	line("Contact:  %s", ascii(r.Contact))
	line("")
	line("The report itself is attached.")
	return b.String()
}

// ascii is for a part that says it is.
func ascii(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
}
