package report

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFeedbackRoundTrip(t *testing.T) {
	want := &Feedback{
		Type: "abuse", UserAgent: "Some/1.0", Version: "1", OriginalMailFrom: "news@example.org", OriginalRcptTo: []string{"a@example.com", "b@example.com"},
		OriginalEnvelopeID: "e1", Arrival: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), ReportingMTA: Typed{"dns", "mx.example.com"},
		SourceIP: netip.MustParseAddr("2001:db8::1"), Incidents: 3, Authentication: []string{"mx.example.com; spf=pass"},
		ReportedDomains: []string{"example.org"}, ReportedURIs: []string{"https://example.org/x"},
	}
	got, err := ParseFeedback(want.Format())
	if err != nil || !got.Arrival.Equal(want.Arrival) {
		t.Fatalf("%+v, %v", got, err)
	}
	got.Arrival = want.Arrival
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

func TestFeedbackTolerance(t *testing.T) {
	for name, tt := range map[string]struct{ in, want string }{
		"capitals":        {"FEEDBACK-TYPE: Abuse\n", "abuse"},
		"after a gap":     {"User-Agent: x\n\nFeedback-Type: fraud\n", "fraud"},
		"with parameters": {"Feedback-Type: abuse; x=y\n", "abuse"},
		"twice":           {"Feedback-Type: abuse\nFeedback-Type: virus\n", "abuse"},
		"folded":          {"Feedback-Type:\n abuse\n", "abuse"},
		"none":            {"Version: 1\n", ""},
		"empty":           {"", ""},
	} {
		f, err := ParseFeedback([]byte(tt.in))
		if (err == nil) != (tt.want != "") || err == nil && f.Type != tt.want {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	many := "Feedback-Type: abuse\n" + strings.Repeat("Original-Rcpt-To: a@example.com\n\n", 10_000)
	if f, err := ParseFeedback([]byte(many)); err != nil || len(f.OriginalRcptTo) > maxRepeated {
		t.Errorf("%d recipients, %v", len(f.OriginalRcptTo), err)
	}
}

func TestObsoleteZones(t *testing.T) {
	want := time.Date(2005, 3, 8, 18, 0, 0, 0, time.UTC)
	for _, s := range []string{"Thu, 8 Mar 2005 14:00:00 EDT", "Thu, 8 Mar 2005 14:00:00 -0400", "Thu, 8 Mar 2005 18:00:00 GMT", "Thu, 8 Mar 2005 10:00:00 PST"} {
		if got := new(dates).date(s); !got.Equal(want) {
			t.Errorf("%s is %v", s, got)
		}
	}
}

func FuzzParseFeedback(f *testing.F) {
	f.Add([]byte("Feedback-Type: abuse\r\nUser-Agent: x\r\nVersion: 1\r\nOriginal-Rcpt-To: <a@example.com>\r\n"))
	f.Add([]byte("Feedback-Type: abuse\n\n\nSource-IP: [192.0.2.1] (x)\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		fb, err := ParseFeedback(b)
		if err != nil {
			return
		}
		text := fb.Format()
		if bytes.Contains(text, []byte("\r\n\r\n")) || bytes.IndexFunc(text, func(r rune) bool { return r >= 0x80 || r == 0 }) >= 0 {
			t.Errorf("%q", text)
		}
		fb.Recipients()
	})
}
