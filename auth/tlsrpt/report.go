package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// The media types of a report (RFC 8460 section 6.4 and 6.5).
const (
	MediaTypeJSON = "application/tlsrpt+json"
	MediaTypeGzip = "application/tlsrpt+gzip"
)

// A Report is what one sender saw in a day of the TLS of one domain (RFC 8460 section 4). Of one that was received, everything is text
// of a stranger: it may be missing, wrong, or made to be put in a page unescaped.
type Report struct {
	Organization string    // who made it, in words
	Start, End   time.Time // both are within it; zero: not given
	Contact      string    // an address
	ID           string
	Policies     []PolicyResult
}

// A PolicyResult is the outcome of the sessions under one policy.
type PolicyResult struct {
	Policy     Policy
	Successful int64 // sessions
	Failed     int64 // sessions; those of Failures may be fewer, or more if a session failed in several ways
	Failures   []Failure
}

// A Failure is a number of sessions that failed in the same way.
type Failure struct {
	Result          ResultType
	SendingIP       netip.Addr // zero: not given
	ReceivingMX     string
	ReceivingMXHelo string
	ReceivingIP     netip.Addr
	Sessions        int64
	Info            string // a URI
	Reason          string
}

// Total returns how many sessions of a report succeeded and failed.
func (r *Report) Total() (successful, failed int64) {
	for _, p := range r.Policies {
		successful = add(successful, p.Successful)
		failed = add(failed, p.Failed)
	}
	return successful, failed
}

// add does not overflow. Neither number is negative.
func add(a, b int64) int64 {
	if s := a + b; s >= a {
		return s
	}
	return 1<<63 - 1
}

// The report as it is written, in the order of RFC 8460 section 4.4.
type (
	wireReport struct {
		Organization string       `json:"organization-name"`
		Range        wireRange    `json:"date-range"`
		Contact      string       `json:"contact-info"`
		ID           string       `json:"report-id"`
		Policies     []wirePolicy `json:"policies"`
	}
	wireRange struct {
		Start string `json:"start-datetime"`
		End   string `json:"end-datetime"`
	}
	wirePolicy struct {
		Policy struct {
			Type    PolicyType `json:"policy-type"`
			Strings []string   `json:"policy-string,omitempty"`
			Domain  string     `json:"policy-domain"`
			// The example of the RFC has a string, its erratum 6241 a list, and so has what others send.
			MXHosts []string `json:"mx-host,omitempty"`
		} `json:"policy"`
		Summary struct {
			Successful int64 `json:"total-successful-session-count"`
			Failed     int64 `json:"total-failure-session-count"`
		} `json:"summary"`
		Failures []wireFailure `json:"failure-details,omitempty"`
	}
	wireFailure struct {
		Result          ResultType `json:"result-type"`
		SendingIP       string     `json:"sending-mta-ip,omitempty"`
		ReceivingMX     string     `json:"receiving-mx-hostname,omitempty"`
		ReceivingMXHelo string     `json:"receiving-mx-helo,omitempty"`
		ReceivingIP     string     `json:"receiving-ip,omitempty"`
		Sessions        int64      `json:"failed-session-count"`
		Info            string     `json:"additional-information,omitempty"`
		Reason          string     `json:"failure-reason-code,omitempty"`
	}
)

func toWire(list []PolicyResult) []wirePolicy {
	out := make([]wirePolicy, len(list))
	for i, p := range list {
		w := &out[i]
		w.Policy.Type, w.Policy.Strings, w.Policy.Domain, w.Policy.MXHosts = p.Policy.Type, p.Policy.Strings, p.Policy.Domain, p.Policy.MXHosts
		if w.Policy.Type == "" {
			w.Policy.Type = PolicyNone
		}
		w.Summary.Successful, w.Summary.Failed = p.Successful, p.Failed
		for _, f := range p.Failures {
			w.Failures = append(w.Failures, wireFailure{
				Result: f.Result, SendingIP: addrText(f.SendingIP), ReceivingMX: f.ReceivingMX, ReceivingMXHelo: f.ReceivingMXHelo,
				ReceivingIP: addrText(f.ReceivingIP), Sessions: f.Sessions, Info: f.Info, Reason: f.Reason,
			})
		}
	}
	return out
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// MarshalJSON writes the report in the form of RFC 8460 section 4.4.
func (r *Report) MarshalJSON() ([]byte, error) {
	return encode(wireReport{
		Organization: r.Organization, Contact: r.Contact, ID: r.ID, Policies: toWire(r.Policies),
		Range: wireRange{Start: timeText(r.Start), End: timeText(r.End)},
	})
}

// UnmarshalJSON reads a report, with the tolerance and the bounds of [ParseReport].
func (r *Report) UnmarshalJSON(b []byte) error {
	p, err := parse(b)
	if err == nil {
		*r = *p
	}
	return err
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// encode is json.Marshal without the escapes that are for web pages.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("tlsrpt: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Gzip returns the report as it is sent: JSON, compressed (RFC 8460 section 5.2). The same report is the same octets.
func (r *Report) Gzip() ([]byte, error) {
	j, err := r.MarshalJSON() // json.Marshal would escape once more
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b) // without a name and a time
	z.Write(j)              // to memory: there is no error
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("tlsrpt: %w", err)
	}
	return b.Bytes(), nil
}

// FileName is the name of the report's file (RFC 8460 section 5.1), compressed. submitter is the domain of who sends it.
func (r *Report) FileName(submitter, domain string) string {
	return fmt.Sprintf("%s!%s!%d!%d!001.json.gz", submitter, domain, r.Start.Unix(), r.End.Unix())
}
