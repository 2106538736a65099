package tlsrpt

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The bounds of what is read of a report, in octets and entries. RFC 8460 section 5.2 tells of receivers that take ten
// megabytes.
const (
	MaxCompressed = 4 << 20  // of a report as it comes, if it is compressed
	MaxReport     = 16 << 20 // of a report, unpacked
	MaxPolicies   = 1000     // of a report
	MaxFailures   = 50_000   // of a report, in all of its policies
)

// ErrNotReport is matched by the errors for what is no report.
var ErrNotReport = errors.New("tlsrpt: not a report")

// ErrTooLarge is matched by the errors for a report over one of the bounds.
var ErrTooLarge = errors.New("tlsrpt: report is too large")

// ParseReport reads a report, JSON or JSON that is compressed with gzip; which of them, its first octets say. It takes what
// providers really send: strings for lists and lists for strings, numbers in quotes, dates without a zone, missing
// and unknown fields. What cannot be read of a field makes the field empty. What must be there is a JSON object with policies.
//
// The error matches ErrNotReport or ErrTooLarge, or is the reader's. It holds at most about five times MaxReport while it reads.
func ParseReport(r io.Reader) (*Report, error) {
	src := &source{r: r}
	br := bufio.NewReader(src)
	magic, err := br.Peek(2)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var b []byte
	if bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		src.left, src.bounded = MaxCompressed, true
		src.left -= int64(br.Buffered())
		b, err = gunzip(br)
	} else {
		b, err = io.ReadAll(io.LimitReader(br, MaxReport+1))
	}
	switch {
	case src.err != nil:
		return nil, src.err
	case src.bounded && src.over:
		return nil, fmt.Errorf("%w: over %d octets compressed", ErrTooLarge, MaxCompressed)
	case len(b) > MaxReport:
		return nil, fmt.Errorf("%w: over %d octets", ErrTooLarge, MaxReport)
	case err != nil:
		return nil, fmt.Errorf("%w: gzip: %w", ErrNotReport, err)
	}
	return parse(b)
}

// gunzip returns up to MaxReport octets and one more. What is behind the last member is let pass, since some systems pad.
func gunzip(br *bufio.Reader) ([]byte, error) {
	var out bytes.Buffer
	z, err := gzip.NewReader(br)
	// Each member takes some twenty octets of MaxCompressed.
	for err == nil {
		z.Multistream(false)
		if _, err := out.ReadFrom(io.LimitReader(z, MaxReport+1-int64(out.Len()))); err != nil || out.Len() > MaxReport {
			return out.Bytes(), err
		}
		if next, _ := br.Peek(2); !bytes.Equal(next, []byte{0x1f, 0x8b}) {
			return out.Bytes(), nil
		}
		err = z.Reset(br)
	}
	return out.Bytes(), err
}

// A source remembers an error of its reader, to tell it from damage of the report, and ends after a number of octets.
type source struct {
	r       io.Reader
	left    int64
	bounded bool // left counts
	over    bool
	err     error
}

func (s *source) Read(p []byte) (int, error) {
	if s.bounded && s.left <= 0 {
		s.over = true
		return 0, io.EOF
	}
	n, err := s.r.Read(p)
	s.left -= int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// The report as it is read. Everything is raw first: a field of a wrong type costs that field only.
type (
	rawReport struct {
		Organization text    `json:"organization-name"`
		Range        rawDays `json:"date-range"`
		Contact      text    `json:"contact-info"`
		ID           text    `json:"report-id"`
		Policies     rawList `json:"policies"`
	}
	rawDays struct {
		Start moment `json:"start-datetime"`
		End   moment `json:"end-datetime"`
	}
	rawPolicy struct {
		Policy   rawRule    `json:"policy"`
		Summary  rawSummary `json:"summary"`
		Failures rawList    `json:"failure-details"`
	}
	rawRule struct {
		Type    text  `json:"policy-type"`
		Strings texts `json:"policy-string"`
		Domain  text  `json:"policy-domain"`
		MXHosts texts `json:"mx-host"`
	}
	rawSummary struct {
		Successful count `json:"total-successful-session-count"`
		Failed     count `json:"total-failure-session-count"`
	}
	rawFailure struct {
		Result          text   `json:"result-type"`
		SendingIP       ipAddr `json:"sending-mta-ip"`
		ReceivingMX     text   `json:"receiving-mx-hostname"`
		ReceivingMXHelo text   `json:"receiving-mx-helo"`
		ReceivingIP     ipAddr `json:"receiving-ip"`
		Sessions        count  `json:"failed-session-count"`
		Info            text   `json:"additional-information"`
		Reason          text   `json:"failure-reason-code"`
	}
)

// Their plain forms have no UnmarshalJSON of their own.
type (
	plainDays    rawDays
	plainRule    rawRule
	plainSummary rawSummary
	plainFailure rawFailure
)

// ifObject reads an object, and leaves v as it is for anything else.
func ifObject(b []byte, v any) error {
	if len(b) == 0 || b[0] != '{' {
		return nil
	}
	return json.Unmarshal(b, v)
}

func (d *rawDays) UnmarshalJSON(b []byte) error    { return ifObject(b, (*plainDays)(d)) }
func (d *rawRule) UnmarshalJSON(b []byte) error    { return ifObject(b, (*plainRule)(d)) }
func (d *rawSummary) UnmarshalJSON(b []byte) error { return ifObject(b, (*plainSummary)(d)) }
func (d *rawFailure) UnmarshalJSON(b []byte) error { return ifObject(b, (*plainFailure)(d)) }

// A rawList is a list that is not taken apart yet, so that its entries can be counted first.
type rawList []byte

func (l *rawList) UnmarshalJSON(b []byte) error {
	*l = bytes.Clone(b)
	return nil
}

// each decodes the entries of a list one after the other; a single object counts as a list of one, and what
// is neither as an empty one.
func each[T any](l rawList, f func(*T) error) error {
	if len(l) == 0 || l[0] != '[' && l[0] != '{' {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(l))
	if l[0] == '[' {
		if _, err := d.Token(); err != nil {
			return err
		}
	}
	for d.More() {
		v := new(T)
		if err := d.Decode(v); err != nil {
			return err
		}
		if err := f(v); err != nil {
			return err
		}
		if l[0] == '{' {
			break
		}
	}
	return nil
}

func parse(b []byte) (*Report, error) {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	if t := bytes.TrimLeft(b, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return nil, fmt.Errorf("%w: no JSON object", ErrNotReport)
	}
	var raw rawReport
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReport, err)
	}
	if len(raw.Policies) == 0 || raw.Policies[0] != '[' && raw.Policies[0] != '{' {
		return nil, fmt.Errorf("%w: no policies", ErrNotReport)
	}
	r := &Report{
		Organization: string(raw.Organization), Contact: string(raw.Contact), ID: string(raw.ID),
		Start: time.Time(raw.Range.Start), End: time.Time(raw.Range.End),
	}
	failures := 0
	err := each(raw.Policies, func(p *rawPolicy) error {
		if len(r.Policies) >= MaxPolicies {
			return fmt.Errorf("%w: over %d policies", ErrTooLarge, MaxPolicies)
		}
		pr := PolicyResult{
			Policy: Policy{
				Type: PolicyType(p.Policy.Type), Domain: string(p.Policy.Domain),
				Strings: p.Policy.Strings, MXHosts: p.Policy.MXHosts,
			},
			Successful: int64(p.Summary.Successful), Failed: int64(p.Summary.Failed),
		}
		err := each(p.Failures, func(f *rawFailure) error {
			if failures++; failures > MaxFailures {
				return fmt.Errorf("%w: over %d failure details", ErrTooLarge, MaxFailures)
			}
			if f.Result == "" && f.Sessions == 0 {
				return nil // it says nothing
			}
			pr.Failures = append(pr.Failures, Failure{
				Result: ResultType(f.Result), SendingIP: netip.Addr(f.SendingIP), ReceivingMX: string(f.ReceivingMX),
				ReceivingMXHelo: string(f.ReceivingMXHelo), ReceivingIP: netip.Addr(f.ReceivingIP), Sessions: int64(f.Sessions),
				Info: string(f.Info), Reason: string(f.Reason),
			})
			return nil
		})
		r.Policies = append(r.Policies, pr)
		return err
	})
	if errors.Is(err, ErrTooLarge) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReport, err)
	}
	return r, nil
}

// A text is a string; a number or a list of one is taken for one.
type text string

func (t *text) UnmarshalJSON(b []byte) error {
	switch b[0] {
	case '"':
		return json.Unmarshal(b, (*string)(t))
	case '[':
		var l texts
		if err := l.UnmarshalJSON(b); err != nil {
			return err
		}
		if len(l) > 0 {
			*t = text(strings.Join(l, ", "))
		}
	case '{', 'n', 't', 'f':
	default:
		*t = text(b)
	}
	return nil
}

// maxTexts bounds a list of strings.
const maxTexts = 1000

// texts is a list of strings; a string is a list of one.
type texts []string

func (l *texts) UnmarshalJSON(b []byte) error {
	var t text
	switch b[0] {
	case '"':
		if err := t.UnmarshalJSON(b); err != nil {
			return err
		}
		if t != "" {
			*l = texts{string(t)}
		}
	case '[':
		d := json.NewDecoder(bytes.NewReader(b))
		if _, err := d.Token(); err != nil {
			return err
		}
		for len(*l) < maxTexts && d.More() {
			var raw json.RawMessage
			if err := d.Decode(&raw); err != nil {
				return err
			}
			if len(raw) > 0 && raw[0] == '"' {
				var s string
				if err := json.Unmarshal(raw, &s); err != nil {
					return err
				}
				*l = append(*l, s)
			}
		}
	}
	return nil
}

// A count is a number of sessions, in quotes or not. What is none, or negative, is 0.
type count int64

func (c *count) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b[:min(len(b), 64)]), `" `)
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		*c = count(max(n, 0))
		return nil
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil && f > 0 {
		*c = math.MaxInt64
		if f < math.MaxInt64 {
			*c = count(f)
		}
	}
	return nil
}

// An ipAddr is an IP address; what is none is the zero one.
type ipAddr netip.Addr

func (a *ipAddr) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b[:min(len(b), 100)]), `" []`)
	if ip, err := netip.ParseAddr(s); err == nil {
		*a = ipAddr(ip.WithZone("").Unmap())
	}
	return nil
}

// A moment is a time; what is none is the zero one. What has no zone is taken for UTC.
type moment time.Time

var momentLayouts = [...]string{
	time.RFC3339Nano, "2006-01-02T15:04:05Z0700", "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05", "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05 -0700",
	"2006-01-02 15:04:05", "2006-01-02", time.RFC1123Z, time.RFC1123,
}

func (m *moment) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b[:min(len(b), 64)]), `" `)
	for _, layout := range momentLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			*m = moment(t.UTC())
			return nil
		}
	}
	// Seconds since 1970, up to the year 9999.
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n > 0 && n < 253402300800 {
		*m = moment(time.Unix(n, 0).UTC())
	}
	return nil
}
