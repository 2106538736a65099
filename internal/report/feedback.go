package report

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A Feedback is a message/feedback-report (RFC 5965 section 3). Type is required in what is
// written; zero fields are absent.
type Feedback struct {
	Type      string // feedback-type in lower case: abuse, fraud, virus, other, not-spam, auth-failure, ...
	UserAgent string
	Version   string // "": 1 in what is written

	OriginalMailFrom string // an address without angle brackets, "<>" for the null one
	// OriginalRcptTo are the recipients, without angle brackets.
	OriginalRcptTo     []string
	OriginalEnvelopeID string
	Arrival            time.Time
	ReportingMTA       Typed
	SourceIP           netip.Addr
	Incidents          int // 0: not said, which means 1
	Authentication     []string
	ReportedDomains    []string
	ReportedURIs       []string
}

// maxRepeated is how often a field that may be repeated is read.
const maxRepeated = 100

// ErrNoFeedback is returned for text that has no Feedback-Type.
var ErrNoFeedback = errors.New("report: no Feedback-Type (RFC 5965 section 3.1)")

// Format returns the report with CRLF line ends, in ASCII.
func (f *Feedback) Format() []byte {
	var w writer
	version, agent := f.Version, f.UserAgent
	if version == "" {
		version = "1"
	}
	if agent == "" {
		agent = "Mailspine/0" // RFC 5965 section 3.1 requires one
	}
	w.field("Feedback-Type", f.Type)
	w.field("User-Agent", agent)
	w.field("Version", version)
	if f.OriginalEnvelopeID != "" {
		w.field("Original-Envelope-Id", f.OriginalEnvelopeID)
	}
	if f.OriginalMailFrom != "" {
		w.field("Original-Mail-From", brackets(f.OriginalMailFrom))
	}
	for _, r := range f.OriginalRcptTo {
		w.field("Original-Rcpt-To", brackets(r))
	}
	w.date("Arrival-Date", f.Arrival)
	w.typed("Reporting-MTA", f.ReportingMTA)
	if f.SourceIP.IsValid() {
		w.field("Source-IP", f.SourceIP.String())
	}
	if f.Incidents > 0 {
		w.field("Incidents", strconv.Itoa(f.Incidents))
	}
	for _, s := range f.Authentication {
		w.field("Authentication-Results", s)
	}
	for _, s := range f.ReportedDomains {
		w.field("Reported-Domain", s)
	}
	for _, s := range f.ReportedURIs {
		w.field("Reported-URI", s)
	}
	return w.Bytes()
}

func brackets(s string) string {
	if s == "<>" {
		return s
	}
	return "<" + s + ">"
}

// noBrackets undoes brackets, but for the null address.
func noBrackets(s string) string {
	if n := len(s); n > 2 && s[0] == '<' && s[n-1] == '>' {
		return s[1 : n-1]
	}
	return s
}

// ParseFeedback reads a message/feedback-report, as tolerant as ParseDelivery: the error is
// ErrNoFeedback. At most 100 of each field that may be repeated are read.
func ParseFeedback(b []byte) (*Feedback, error) {
	f := &Feedback{}
	add := func(list *[]string, s string) {
		if s != "" && len(*list) < maxRepeated {
			*list = append(*list, s)
		}
	}
	// Some systems put empty lines between the fields.
	var p dates
	g := grouper{rest: b}
	for range maxRepeated {
		fields := g.next()
		if len(fields) == 0 {
			break
		}
		for _, x := range fields {
			switch x.name {
			case "feedback-type":
				if f.Type == "" {
					word, _, _ := strings.Cut(x.value, ";")
					f.Type = strings.ToLower(strings.TrimSpace(word))
				}
			case "user-agent":
				f.UserAgent = x.value
			case "version":
				f.Version = x.value
			case "original-envelope-id":
				f.OriginalEnvelopeID = x.value
			case "original-mail-from":
				f.OriginalMailFrom = noBrackets(x.value)
			case "original-rcpt-to", "removal-recipient":
				add(&f.OriginalRcptTo, noBrackets(x.value))
			case "arrival-date", "received-date": // the second was in drafts
				f.Arrival = p.date(x.value)
			case "reporting-mta":
				f.ReportingMTA = typed(x.value)
			case "source-ip":
				ip, _, _ := strings.Cut(x.value, " ") // some add a name as a comment
				if a, err := netip.ParseAddr(strings.Trim(ip, "[]")); err == nil {
					f.SourceIP = a.WithZone("")
				}
			case "incidents":
				if n, err := strconv.Atoi(x.value); err == nil && n > 0 {
					f.Incidents = n
				}
			case "authentication-results":
				add(&f.Authentication, x.value)
			case "reported-domain":
				add(&f.ReportedDomains, x.value)
			case "reported-uri":
				add(&f.ReportedURIs, x.value)
			}
		}
	}
	if f.Type == "" {
		return nil, ErrNoFeedback
	}
	return f, nil
}

// Recipients returns those of OriginalRcptTo that are addresses. Some systems write them as DSNs do ("rfc822; a@b"), with a
// name in front ("A <a@b>"), or several in one field.
func (f *Feedback) Recipients() (list []mailspine.Address) {
	add := func(s string) bool {
		a, err := mailspine.ParseAddress(s)
		if err == nil && !a.IsZero() {
			list = append(list, a)
		}
		return err == nil
	}
	for _, s := range f.OriginalRcptTo {
		if add(s) {
			continue
		}
		if t, rest, ok := strings.Cut(s, ";"); ok && strings.EqualFold(strings.TrimSpace(t), "rfc822") {
			s = rest
		}
		for part := range strings.SplitSeq(s, ",") {
			if len(list) >= maxRepeated {
				return list
			}
			if i := strings.LastIndexByte(part, '<'); i >= 0 {
				part, _, _ = strings.Cut(part[i+1:], ">")
			}
			add(strings.TrimSpace(part))
		}
	}
	return list
}
