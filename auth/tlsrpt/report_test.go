package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file in testdata, whose line ends are LF.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", name, d)
	}
}

// publicDir returns a folder of the conformance data.
func publicDir(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("MAILSPINE_VECTORS")
	if dir != "" {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	if os.Getenv("MAILSPINE_STRICT") == "1" {
		t.Fatalf("MAILSPINE_STRICT=1 and %q is not in MAILSPINE_VECTORS=%q", name, dir)
	}
	t.Skipf("MAILSPINE_VECTORS does not lead to %s: it is not tested", name)
	return ""
}

var (
	day0 = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	ip4  = netip.MustParseAddr("192.0.2.25")
	ip6  = netip.MustParseAddr("2001:db8::25")
)

// sample is a report with everything in it.
func sample() *Report {
	return &Report{
		Organization: "Example & Söhne <GmbH>", Contact: "tls@example.com", ID: "01ABC@example.com",
		Start: day0, End: day0.Add(24*time.Hour - time.Second),
		Policies: []PolicyResult{{
			Policy: Policy{
				Type: PolicySTS, Domain: "example.org",
				Strings: []string{"version: STSv1", "mode: testing", "mx: *.mail.example.org", "max_age: 86400"}, MXHosts: []string{"*.mail.example.org"},
			},
			Successful: 5326, Failed: 303,
			Failures: []Failure{
				{Result: CertificateExpired, SendingIP: ip6, ReceivingMX: "mx1.mail.example.org", Sessions: 100},
				{Result: StartTLSNotSupported, SendingIP: ip6, ReceivingMX: "mx2.mail.example.org", ReceivingMXHelo: "mx2", ReceivingIP: ip4, Sessions: 200, Info: "https://example.com/info?id=1&x=<2>"},
				{Result: ValidationFailure, ReceivingIP: ip4, Sessions: 3, Reason: "remote error: \"tls\": handshake failure"},
			},
		}, {
			Policy:     Policy{Type: PolicyTLSA, Domain: "mx.example.org", Strings: []string{"3 1 1 1f850a337e6db9c609c522d136a475638cc43e1ed424f8eec8513d747d1d085d"}},
			Successful: 7,
		}, {
			Policy: Policy{Type: PolicyNone, Domain: "example.org"},
		}},
	}
}

func TestReportGolden(t *testing.T) {
	j, err := sample().MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, j, "", "  "); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	golden(t, "report.json", out.Bytes())

	for _, form := range []struct {
		name string
		make func() ([]byte, error)
	}{{"JSON", sample().MarshalJSON}, {"gzip", sample().Gzip}} {
		b, err := form.make()
		if err != nil {
			t.Fatal(err)
		}
		again, _ := form.make()
		if !bytes.Equal(b, again) {
			t.Errorf("%s is not the same twice", form.name)
		}
		got, err := ParseReport(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(sample(), got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Errorf("%s (-want +got):\n%s", form.name, d)
		}
	}
	var again Report
	if err := json.Unmarshal(j, &again); err != nil || !reflect.DeepEqual(&again, sample()) {
		t.Errorf("json.Unmarshal: %v", err)
	}
	if err := json.Unmarshal([]byte("{}"), &again); !errors.Is(err, ErrNotReport) || again.ID != sample().ID {
		t.Errorf("json.Unmarshal of no report: %v", err)
	}
	if got := sample().FileName("example.com", "example.org"); got != "example.com!example.org!1795392000!1795478399!001.json.gz" {
		t.Errorf("file name %q", got)
	}
}

// What is written is read back, whatever it is made of.
func TestReportRoundTrip(t *testing.T) {
	text := rapid.StringMatching(`[ -~äß€]{0,20}`)
	ip := rapid.Custom(func(t *rapid.T) netip.Addr {
		switch rapid.IntRange(0, 2).Draw(t, "family") {
		case 0:
			return netip.Addr{}
		case 1:
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4")))
		}
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6"))).Unmap()
	})
	list := func(t *rapid.T, name string) []string {
		l := rapid.SliceOfN(rapid.StringMatching(`[ -~]{1,20}`), 0, 4).Draw(t, name)
		if len(l) == 0 {
			return nil
		}
		return l
	}
	rapid.Check(t, func(t *rapid.T) {
		r := &Report{Organization: text.Draw(t, "org"), Contact: text.Draw(t, "contact"), ID: text.Draw(t, "id"), Start: day0, End: day0.Add(time.Hour)}
		for range rapid.IntRange(0, 3).Draw(t, "policies") {
			p := PolicyResult{
				Policy:     Policy{Type: PolicyType(rapid.SampledFrom([]string{"sts", "tlsa", "no-policy-found", "x"}).Draw(t, "type")), Domain: text.Draw(t, "domain"), Strings: list(t, "strings"), MXHosts: list(t, "mx")},
				Successful: rapid.Int64Range(0, 1<<62).Draw(t, "ok"), Failed: rapid.Int64Range(0, 9).Draw(t, "failed"),
			}
			for range rapid.IntRange(0, 3).Draw(t, "failures") {
				p.Failures = append(p.Failures, Failure{
					Result: ResultType(rapid.SampledFrom([]string{"certificate-expired", "x"}).Draw(t, "result")), SendingIP: ip.Draw(t, "from"), ReceivingIP: ip.Draw(t, "to"),
					ReceivingMX: text.Draw(t, "mx"), ReceivingMXHelo: text.Draw(t, "helo"), Sessions: rapid.Int64Range(0, 1<<62).Draw(t, "n"), Info: text.Draw(t, "info"), Reason: text.Draw(t, "reason"),
				})
			}
			r.Policies = append(r.Policies, p)
		}
		z, err := r.Gzip()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseReport(bytes.NewReader(z))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(r, got) {
			t.Fatalf("wrote %+v\nread %+v", r, got)
		}
	})
}

// What providers have sent, from other projects' collections.
func TestPublicReports(t *testing.T) {
	dir := publicDir(t, "tlsrpt")
	for _, c := range []struct {
		file       string
		org, id    string
		start, end string
		ok, failed int64
		domain     string
		results    string
	}{
		{"rfc8460.json", "Company-X", "5065427c-23d3-47ca-b6e0-946ea0e8c4be", "2016-04-01T00:00:00Z", "2016-04-01T23:59:59Z", 5326, 303, "company-y.example",
			"starttls-not-supported 200, certificate-expired 100, validation-failure 3"},
		{"smtp_tls.json", "Example Inc.", "2024-01-09T00:00:00Z_example.com", "2024-01-09T00:00:00Z", "2024-01-09T23:59:59Z", 0, 3, "example.com", "validation-failure 3"},
		{"mail.ru.json", "Mail.ru", "b28254de-7b2e-be36-bb5c-4c3b92da8b25@mail.ru", "2024-02-22T00:00:00Z", "2024-02-23T00:00:00Z", 0, 1, "example.com", "sts-policy-fetch-error 2"},
		{"google.com_smtp_tls_report.eml", "Google Inc.", "2024-09-03T00:00:00Z_cardinalhealth.ca", "2024-09-03T00:00:00Z", "2024-09-03T23:59:59Z", 48, 0, "cardinalhealth.ca", ""},
	} {
		b, err := os.ReadFile(filepath.Join(dir, c.file))
		if err != nil {
			t.Fatal(err)
		}
		var r *Report
		if strings.HasSuffix(c.file, ".eml") {
			m, err := ParseMessage(bytes.NewReader(b))
			if err != nil {
				t.Errorf("%s: %v", c.file, err)
				continue
			}
			if r = m.Report; m.Domain != c.domain || m.Submitter != "google.com" || m.From.String() != "noreply-smtp-tls-reporting@google.com" {
				t.Errorf("%s: %+v", c.file, m)
			}
		} else if r, err = ParseReport(bytes.NewReader(b)); err != nil {
			t.Errorf("%s: %v", c.file, err)
			continue
		}
		var s Summary
		s.Add(r)
		var results []string
		for _, x := range s.Results() {
			results = append(results, fmt.Sprintf("%s %d", x.Result, x.Sessions))
		}
		ok, failed := r.Total()
		if r.Organization != c.org || r.ID != c.id || timeText(r.Start) != c.start || timeText(r.End) != c.end || ok != c.ok || failed != c.failed ||
			len(r.Policies) != 1 || r.Policies[0].Policy.Domain != c.domain || strings.Join(results, ", ") != c.results {
			t.Errorf("%s: %+v, %v", c.file, r, results)
		}
	}
}

// Reports as they come, not as they should.
func TestParseTolerant(t *testing.T) {
	parse := func(s string) *Report {
		t.Helper()
		r, err := ParseReport(strings.NewReader(s))
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		return r
	}
	r := parse("\xef\xbb\xbf \n" + `{"organization-name":["A","B"],"date-range":{"start-datetime":"2026-11-23","end-datetime":1795478399},"report-id":17,"contact-info":null,
		"unknown":{"deep":[{"er":1}]},
		"policies":[{"policy":{"policy-type":"sts","policy-string":"version: STSv1","mx-host":["a",1,null,"b"]},"summary":{"total-successful-session-count":"12","total-failure-session-count":3.0},
		"failure-details":{"result-type":"certificate-expired","failed-session-count":"-3","receiving-ip":"nonsense","sending-mta-ip":"[192.0.2.25]"}}]}`)
	want := &Report{
		Organization: "A, B", ID: "17", Start: day0, End: day0.Add(24*time.Hour - time.Second),
		Policies: []PolicyResult{{
			Policy:     Policy{Type: PolicySTS, Strings: []string{"version: STSv1"}, MXHosts: []string{"a", "b"}},
			Successful: 12, Failed: 3, Failures: []Failure{{Result: CertificateExpired, SendingIP: ip4}},
		}},
	}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("read %+v\nnot  %+v", r, want)
	}

	for _, s := range []string{"2026-11-23T00:00:00Z", "2026-11-23T01:00:00+01:00", "2026-11-23T01:00:00+0100", "2026-11-23T00:00:00.000Z", "2026-11-23T00:00:00", "2026-11-23T00:00Z", "2026-11-23 00:00:00", "2026-11-23", "1795392000", "Mon, 23 Nov 2026 00:00:00 +0000"} {
		if r := parse(`{"date-range":{"start-datetime":"` + s + `"},"policies":[]}`); !r.Start.Equal(day0) {
			t.Errorf("%q is %s", s, r.Start)
		}
	}
	for _, s := range []string{`"x"`, `""`, `null`, `{}`, `[]`, `-1`, `1e30`, `true`} {
		if r := parse(`{"date-range":{"start-datetime":` + s + `},"policies":[]}`); !r.Start.IsZero() {
			t.Errorf("%s is %s", s, r.Start)
		}
	}
	for s, want := range map[string]int64{`1`: 1, `"7"`: 7, `1e3`: 1000, `-5`: 0, `1e300`: 1<<63 - 1, `9223372036854775808`: 1<<63 - 1, `null`: 0, `[]`: 0, `{}`: 0, `"x"`: 0, `NaN`: -1, `"NaN"`: 0, `"Infinity"`: 1<<63 - 1} {
		r, err := ParseReport(strings.NewReader(`{"policies":[{"summary":{"total-failure-session-count":` + s + `}}]}`))
		if err != nil {
			if want >= 0 {
				t.Errorf("%s: %v", s, err)
			}
		} else if r.Policies[0].Failed != want {
			t.Errorf("%s is %d", s, r.Policies[0].Failed)
		}
	}
	// Any field may be of any type.
	for _, field := range []string{"organization-name", "date-range", "contact-info", "report-id"} {
		for _, v := range []string{`null`, `1`, `"x"`, `[]`, `{}`, `[[[]]]`, `true`, `[{}]`} {
			parse(`{"` + field + `":` + v + `,"policies":[]}`)
		}
	}
	for _, field := range []string{"policy", "summary", "failure-details"} {
		for _, v := range []string{`null`, `1`, `"x"`, `[]`, `{}`, `[[[]]]`, `true`, `[{}]`, `[1,"x",null]`} {
			parse(`{"policies":[{"` + field + `":` + v + `}]}`)
		}
	}
	if r := parse(`{"policies":{"policy":{"policy-type":"tlsa"}}}`); len(r.Policies) != 1 || r.Policies[0].Policy.Type != PolicyTLSA {
		t.Errorf("one policy that is no list: %+v", r)
	}
	// Zeros behind a gzip file, as a mail system pads.
	z, _ := sample().Gzip()
	if _, err := ParseReport(bytes.NewReader(append(z, 0, 0, 0))); err != nil {
		t.Errorf("padded: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	z, _ := sample().Gzip()
	broken := bytes.Clone(z)
	broken[len(broken)-5] ^= 1 // in the checksum
	for name, b := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "list": []byte("[]"), "no policies": []byte(`{"report-id":"x"}`), "policies of a wrong type": []byte(`{"policies":"x"}`),
		"null": []byte("null"), "cut off": []byte(`{"policies":[`), "two": []byte(`{"policies":[]}{"policies":[]}`),
		"gzip of nothing": pack(nil), "gzip cut off": z[:len(z)/2], "gzip without its end": z[:len(z)-4], "gzip magic": {0x1f, 0x8b}, "gzip damaged": broken, "gzip in gzip": pack(z),
		"deep":        []byte(`{"policies":[],"x":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}"),
		"deep failed": []byte(`{"policies":[{"failure-details":[` + strings.Repeat(`{"a":`, 100_000)),
	} {
		if r, err := ParseReport(bytes.NewReader(b)); !errors.Is(err, ErrNotReport) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	list := func(entry string, n int) string {
		return "[" + strings.TrimSuffix(strings.Repeat(entry+",", n), ",") + "]"
	}
	for name, b := range map[string][]byte{
		"long":              []byte(`{"policies":[]` + strings.Repeat(" ", MaxReport) + "}"),
		"policies":          []byte(`{"policies":` + list("{}", MaxPolicies+1) + "}"),
		"failures":          []byte(`{"policies":[{"failure-details":` + list("{}", MaxFailures+1) + "}]}"),
		"failures of two":   []byte(`{"policies":` + list(`{"failure-details":`+list(`{"result-type":"x"}`, MaxFailures/2+1)+"}", 2) + "}"),
		"bomb":              bomb(),
		"compressed, noise": append(z[:10:10], bytes.Repeat([]byte{0, 255, 255, 0, 0}, MaxCompressed)...),
	} {
		if _, err := ParseReport(bytes.NewReader(b)); !errors.Is(err, ErrTooLarge) && (name != "compressed, noise" || !errors.Is(err, ErrNotReport)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An error of the reader is the reader's.
	mine := errors.New("mine")
	for n := range []int{0, 1, 2, 50} {
		if _, err := ParseReport(io.MultiReader(bytes.NewReader(z[:n]), iotest.ErrReader(mine))); !errors.Is(err, mine) || errors.Is(err, ErrNotReport) {
			t.Errorf("a reader that fails after %d octets: %v", n, err)
		}
	}
}

func pack(b []byte) []byte {
	var out bytes.Buffer
	w, _ := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// bomb is a gigabyte in many small members.
var bomb = sync.OnceValue(func() []byte { return bytes.Repeat(pack(bytes.Repeat([]byte(" "), 1<<20)), 1024) })

// A bomb and the worst that fits take memory within reason.
func TestParseMemory(t *testing.T) {
	var worst strings.Builder
	worst.WriteString(`{"policies":[{"failure-details":[`)
	for range MaxFailures - 1 {
		worst.WriteString(`{"result-type":"x"},`)
	}
	worst.WriteString(`{}]}],"x":[` + strings.Repeat("1,", 1<<20) + "1]}")
	texts := `{"policies":[{"policy":{"policy-string":[` + strings.Repeat(`"",`, 1<<20) + `""]}}]}`
	for name, b := range map[string][]byte{"bomb": bomb(), "worst": []byte(worst.String()), "texts": []byte(texts)} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		_, err := ParseReport(bytes.NewReader(b))
		runtime.ReadMemStats(&after)
		if (err == nil) != (name != "bomb") {
			t.Errorf("%s: %v", name, err)
		}
		most := 20*int64(len(b)) + 1024*MaxFailures
		if name == "bomb" {
			most = 9 * MaxReport
		}
		if got := int64(after.TotalAlloc - before.TotalAlloc); got > most {
			t.Errorf("%s of %d octets: %d allocated", name, len(b), got)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	j, _ := sample().MarshalJSON()
	z, _ := sample().Gzip()
	f.Add(j)
	f.Add(z)
	f.Add([]byte(`{"policies":[{"policy":{"policy-string":"x","mx-host":["a"]},"summary":{"total-failure-session-count":"3"},"failure-details":[{"result-type":"x"},null,1]}]}`))
	f.Add([]byte(`{"policies":{},"date-range":{"start-datetime":"2026-11-23"}}`))
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseReport(bytes.NewReader(b))
		if err != nil {
			if r != nil || !errors.Is(err, ErrNotReport) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("%v, %v", r, err)
			}
			return
		}
		for _, p := range r.Policies {
			if p.Successful < 0 || p.Failed < 0 {
				t.Fatalf("a negative count: %+v", p)
			}
		}
		// What was read can be written, and read again.
		again, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseReport(bytes.NewReader(again))
		if err != nil {
			t.Fatalf("%v: %s", err, again)
		}
		if len(s.Policies) != len(r.Policies) || s.ID != r.ID || !s.Start.Equal(r.Start) {
			t.Fatalf("%+v\n%+v", r, s)
		}
		var sum Summary
		sum.Add(r)
		_ = sum.String()
	})
}
