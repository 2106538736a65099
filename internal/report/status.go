package report

import (
	"bytes"
	"fmt"
	"net/mail"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// A Typed is a value with its type, as the fields of RFC 3464 section 2.1.2
// have them: "dns; mx.example.org", "rfc822; joe@example.org", "smtp; 550 no".
type Typed struct {
	Type  string // in lower case
	Value string
}

// IsZero reports whether there is no value.
func (t Typed) IsZero() bool { return t == Typed{} }

// String returns "type; value".
func (t Typed) String() string { return t.Type + "; " + t.Value }

// A Delivery is a message/delivery-status (RFC 3464 section 2). Zero fields are
// absent; ReportingMTA and at least one recipient are required in what is written.
type Delivery struct {
	ReportingMTA Typed
	EnvelopeID   string // decoded: no xtext
	ReceivedFrom Typed
	Arrival      time.Time
	Recipients   []Recipient
}

// An Action is what became of a recipient (RFC 3464 section 2.3.3), in lower case.
type Action string

// The actions.
const (
	Failed    Action = "failed"
	Delayed   Action = "delayed"
	Delivered Action = "delivered"
	Relayed   Action = "relayed" // to a system that sends no notifications
	Expanded  Action = "expanded"
)

// A Recipient is a group of per-recipient fields (RFC 3464 section 2.3). Final,
// Action and Status are required in what is written.
type Recipient struct {
	Original       Typed // as the sender gave it; decoded
	Final          Typed
	Action         Action
	Status         mailspine.EnhancedCode
	RemoteMTA      Typed
	Diagnostic     Typed
	LastAttempt    time.Time
	WillRetryUntil time.Time
}

// The bounds of what is read and written.
const (
	maxRecipients = 10_000
	maxFields     = 50      // in one group
	maxValue      = 4 << 10 // octets of one field's value
	lineWidth     = 76      // where fields are folded, if there is a place for it
	maxLine       = 990     // where they are cut
)

// ForAddress returns an address for Original or Final: of type "utf-8" if it is not
// ASCII (RFC 6533 section 3), otherwise "rfc822".
func ForAddress(a mailspine.Address) Typed {
	if a.IsASCII() {
		return Typed{"rfc822", a.String()}
	}
	return Typed{"utf-8", a.String()}
}

// Format writes d. With utf8 it is a message/global-delivery-status, which may
// hold any character; otherwise it is ASCII: addresses of type utf-8 are escaped as RFC 6533
// section 3 says (utf-8-addr-xtext), and other characters become '?'.
func (d *Delivery) Format(utf8 bool) []byte {
	w := writer{utf8: utf8}
	w.typed("Reporting-MTA", d.ReportingMTA)
	w.field("Original-Envelope-Id", d.EnvelopeID)
	w.typed("Received-From-MTA", d.ReceivedFrom)
	w.date("Arrival-Date", d.Arrival)
	for _, r := range d.Recipients {
		w.WriteString("\r\n")
		w.typed("Original-Recipient", r.Original)
		w.typed("Final-Recipient", r.Final)
		w.field("Action", string(r.Action))
		w.field("Status", r.Status.String())
		w.typed("Remote-MTA", r.RemoteMTA)
		w.typed("Diagnostic-Code", r.Diagnostic)
		w.date("Last-Attempt-Date", r.LastAttempt)
		w.date("Will-Retry-Until", r.WillRetryUntil)
	}
	return w.Bytes()
}

type writer struct {
	bytes.Buffer
	utf8 bool
}

func (w *writer) date(name string, t time.Time) {
	if !t.IsZero() {
		w.field(name, t.Format(dateLayout))
	}
}

// dateLayout is date-time of RFC 5322 section 3.3.
const dateLayout = "Mon, 2 Jan 2006 15:04:05 -0700"

func (w *writer) typed(name string, t Typed) {
	if t.IsZero() {
		return
	}
	if strings.EqualFold(t.Type, "utf-8") && !w.utf8 {
		t.Value = escapeAddress(t.Value)
	}
	w.field(name, t.String())
}

// field writes a field that has a value: on one line, folded at spaces where it
// is long. Unfolding it restores the value.
func (w *writer) field(name, value string) {
	value = clean(value, w.utf8)
	if value == "" {
		return
	}
	line := name + ":"
	for i, word := range strings.Split(value, " ") {
		if i > 0 && len(line)+1+len(word) > lineWidth {
			w.WriteString(line + "\r\n")
			line = ""
		}
		line += " " + cut(word, maxLine-len(line))
	}
	w.WriteString(line + "\r\n")
}

// clean makes one line of a value: controls and runs of space become one space.
func clean(s string, keep bool) string {
	var b strings.Builder
	for _, word := range strings.FieldsFunc(cut(s, maxValue), func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		for _, r := range word {
			if r >= utf8.RuneSelf && (!keep || r == utf8.RuneError) {
				r = '?'
			}
			b.WriteRune(r)
		}
	}
	return b.String()
}

// cut returns at most max octets of s, and no half characters.
func cut(s string, max int) string {
	if len(s) <= max {
		return s
	}
	for max > 0 && !utf8.RuneStart(s[max]) {
		max--
	}
	return s[:max]
}

// escapeAddress makes utf-8-addr-xtext of RFC 6533 section 3 of an address.
func escapeAddress(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r > 0x20 && r < 0x7f && r != '\\' && r != '+' && r != '=' {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\x{%02X}`, r)
		}
	}
	return b.String()
}

// unescapeAddress undoes escapeAddress. What is no escape stays as it is.
func unescapeAddress(s string) string {
	var b strings.Builder
	for {
		i := strings.Index(s, `\x{`)
		if i < 0 {
			break
		}
		end := strings.IndexByte(s[i:min(len(s), i+10)], '}') // six digits are the most
		n, err := strconv.ParseUint(s[i+3:max(i+3, i+end)], 16, 32)
		if err != nil || n > utf8.MaxRune || n < 0x20 || n == 0x7f || !utf8.ValidRune(rune(n)) {
			b.WriteString(s[:i+3])
			s = s[i+3:]
			continue
		}
		b.WriteString(s[:i])
		b.WriteRune(rune(n))
		s = s[i+end+1:]
	}
	b.WriteString(s)
	return b.String()
}

// ParseDelivery reads a message/delivery-status: groups of fields with empty
// lines between them. It takes what it understands and leaves out the rest;
// an error means that there is no recipient in it. At most 10,000 recipients, 50 fields a group
// and 4 KiB a value are read, of fields without a recipient at most 100 groups, and 1,000 dates of an unusual form.
func ParseDelivery(b []byte) (*Delivery, error) {
	d := &Delivery{}
	first := true
	var p dates
	g := grouper{rest: b}
	for others := 0; len(d.Recipients) < maxRecipients; {
		fields := g.next()
		if len(fields) == 0 {
			break
		}
		r, isRecipient := p.recipient(fields)
		// Some systems leave out the empty line after the message's fields, or the
		// message's fields themselves.
		if !isRecipient {
			others++
		}
		if (first || !isRecipient) && others <= maxRepeated {
			p.message(d, fields)
		}
		if isRecipient {
			d.Recipients = append(d.Recipients, r)
		}
		first = false
	}
	if len(d.Recipients) == 0 {
		return nil, fmt.Errorf("report: no recipient in the delivery status (RFC 3464 section 2.3)")
	}
	return d, nil
}

type field struct{ name, value string }

// A grouper takes groups of fields off a text. A stranger chooses how many fields, folds and groups there are, so none of
// them copies what came before it, and the slices are used again for each group.
type grouper struct {
	rest   []byte
	fields []field
	folded []byte // the value of the last field, from its first fold on; otherwise empty
	words  []byte // of a name or a value
}

// next returns the fields up to the next empty line, unfolded; none: it was the last group. They are valid until the next call.
func (g *grouper) next() []field {
	g.fields = g.fields[:0]
	for len(g.rest) > 0 {
		line, rest, _ := bytes.Cut(g.rest, []byte("\n"))
		g.rest = rest
		if line = bytes.TrimRight(line, "\r"); len(bytes.TrimSpace(line)) == 0 {
			if len(g.fields) > 0 {
				break
			}
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			g.fold(line)
			continue
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if ok && len(g.fields) < maxFields && len(name) <= 100 && len(value) <= maxValue {
			g.unfold()
			g.fields = append(g.fields, field{strings.ToLower(g.text(name)), g.text(value)})
		}
	}
	g.unfold()
	return g.fields
}

// fold adds a line to the last field, if there is one and room in it.
func (g *grouper) fold(line []byte) {
	if len(g.fields) == 0 {
		return
	}
	value := g.fields[len(g.fields)-1].value
	if max(len(value), len(g.folded))+len(line) > maxValue {
		return
	}
	if len(g.folded) == 0 {
		g.folded = append(g.folded, value...)
	}
	g.folded = appendWords(g.folded, line)
}

// unfold ends the last field.
func (g *grouper) unfold() {
	if len(g.folded) > 0 {
		g.fields[len(g.fields)-1].value = string(g.folded)
		g.folded = g.folded[:0]
	}
}

func (g *grouper) text(b []byte) string {
	g.words = appendWords(g.words[:0], b)
	return string(g.words)
}

// appendWords makes a value of foreign octets: no controls, no invalid UTF-8, one space between words, also before the first one if it has
// others before it.
func appendWords(to, b []byte) []byte {
	space, invalid := len(to) > 0, false
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r <= ' ' || r == 0x7f {
			space, invalid = len(to) > 0, false
			b = b[n:]
			continue
		}
		if space {
			to = append(to, ' ')
			space = false
		}
		if bad := r == utf8.RuneError && n == 1; !bad {
			to = append(to, b[:n]...)
			invalid = false
		} else if !invalid {
			to = append(to, '?') // one for a run of them
			invalid = true
		}
		b = b[n:]
	}
	return to
}

// message takes the fields that are not about a recipient; of several the last one counts.
func (p *dates) message(d *Delivery, fields []field) {
	for _, f := range fields {
		switch f.name {
		case "reporting-mta":
			d.ReportingMTA = typed(f.value)
		case "original-envelope-id":
			d.EnvelopeID = f.value
		case "received-from-mta":
			d.ReceivedFrom = typed(f.value)
		case "arrival-date":
			d.Arrival = p.date(f.value)
		}
	}
}

func (p *dates) recipient(fields []field) (r Recipient, ok bool) {
	for _, f := range fields {
		switch f.name {
		case "original-recipient":
			r.Original = address(f.value)
		case "final-recipient":
			r.Final = address(f.value)
		case "action":
			word, _, _ := strings.Cut(strings.ToLower(f.value), " ")
			r.Action = Action(strings.TrimRight(word, ";,("))
		case "status":
			// "5.1.1 (bad mailbox)" is common.
			word, _, _ := strings.Cut(f.value, " ")
			if c, err := mailspine.ParseEnhancedCode(strings.TrimRight(word, ";,(")); err == nil {
				r.Status = c
			}
		case "remote-mta":
			r.RemoteMTA = typed(f.value)
		case "diagnostic-code":
			r.Diagnostic = typed(f.value)
		case "last-attempt-date":
			r.LastAttempt = p.date(f.value)
		case "will-retry-until":
			r.WillRetryUntil = p.date(f.value)
		}
	}
	return r, !r.Final.IsZero() || !r.Original.IsZero()
}

// typed parses "type; value". Without a type it is all value.
func typed(s string) Typed {
	t, v, ok := strings.Cut(s, ";")
	if !ok || strings.ContainsAny(strings.TrimSpace(t), " <>@") {
		return Typed{Value: s}
	}
	return Typed{strings.ToLower(strings.TrimSpace(t)), strings.TrimSpace(v)}
}

// address is typed for addresses: without angle brackets, and unescaped.
func address(s string) Typed {
	t := typed(s)
	if t.Type == "" && t.Value != "" {
		t.Type = "rfc822"
	}
	if n := len(t.Value); n > 2 && t.Value[0] == '<' && t.Value[n-1] == '>' {
		t.Value = t.Value[1 : n-1]
	}
	if t.Type == "utf-8" {
		t.Value = unescapeAddress(t.Value)
	}
	if t.Value == "" {
		return Typed{}
	}
	return t
}

// obsolete are the zones of RFC 5322 section 4.3 that net/mail knows by name only, in hours.
var obsolete = map[string]int{"EDT": -4, "EST": -5, "CDT": -5, "CST": -6, "MDT": -6, "MST": -7, "PDT": -7, "PST": -8}

// dates reads the dates of a report. The zero value is ready.
type dates struct{ slow int }

// maxSlow is how many dates of a report are read by net/mail, which tries many forms and allocates several thousand octets for it.
const maxSlow = 1000

// date returns the zero time for what is no date.
func (p *dates) date(s string) time.Time {
	if len(s) > 200 {
		return time.Time{}
	}
	// The usual form, and a zone's name as a comment after it.
	usual, _, _ := strings.Cut(s, " (")
	if len(usual) <= len(dateLayout)+1 {
		if t, err := time.Parse(dateLayout, usual); err == nil {
			return t
		}
	}
	if p.slow++; p.slow > maxSlow {
		return time.Time{}
	}
	t, err := mail.ParseDate(s)
	if err != nil {
		return time.Time{}
	}
	if name, offset := t.Zone(); offset == 0 && obsolete[name] != 0 {
		t = t.Add(-time.Duration(obsolete[name]) * time.Hour)
	}
	return t
}
