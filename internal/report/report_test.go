package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
)

var when = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func sample() *Message {
	return &Message{
		From: "Mail Delivery System <MAILER-DAEMON@mx.example.org>", To: mailspine.Address{Local: "joe", Domain: "example.org"},
		Subject: "Your message could not be delivered", Date: when, MessageID: "1@mx.example.org", Text: "Sorry.\n",
		Delivery: Delivery{
			ReportingMTA: Typed{"dns", "mx.example.org"}, EnvelopeID: "QQ314159", ReceivedFrom: Typed{"dns", "client.example.org"}, Arrival: when,
			Recipients: []Recipient{
				{Original: Typed{"rfc822", "ann@example.com"}, Final: Typed{"rfc822", "ann@example.net"}, Action: Failed, Status: mailspine.EnhancedCode{5, 1, 1},
					RemoteMTA: Typed{"dns", "mx.example.net"}, Diagnostic: Typed{"smtp", "550 5.1.1 No such user; " + strings.Repeat("really ", 40) + "none"}, LastAttempt: when},
				{Final: Typed{"rfc822", "bob@example.net"}, Action: Delayed, Status: mailspine.EnhancedCode{4, 4, 1}, WillRetryUntil: when.Add(time.Hour)},
			},
		},
		Returned: []byte("From: joe@example.org\r\nSubject: hello\r\n"),
	}
}

var sameTime = cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })

func TestRoundTrip(t *testing.T) {
	m := sample()
	b, body := m.Bytes()
	if body != mailspine.Body7Bit || !CanReturn(b) {
		t.Errorf("body %v, lines that SMTP can carry: %v", body, CanReturn(b))
	}
	r, err := Parse(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, b)
	}
	if r.Type != "delivery-status" || strings.TrimSpace(r.Text) != "Sorry." || r.Full || strings.TrimRight(string(r.Returned), "\r\n") != strings.TrimRight(string(m.Returned), "\r\n") {
		t.Errorf("read back: %+v", r)
	}
	if d := cmp.Diff(&m.Delivery, r.Delivery, sameTime); d != "" {
		t.Errorf("delivery status (-written +read):\n%s", d)
	}
	for _, line := range strings.Split(string(b), "\r\n") {
		if len(line) > 78 && !strings.HasPrefix(line, "Message") {
			t.Errorf("line of %d octets: %q", len(line), line)
		}
	}
}

// drawValue makes a value as a stranger might send it, with characters that
// break headers.
func drawValue(t *rapid.T, label string) string {
	return rapid.StringOfN(rapid.RuneFrom([]rune("ab 1.;<>@\\{}x+=\r\n\t\x00\"-é中\U0001F600")), 0, 200, -1).Draw(t, label)
}

// What is written is read back, but for what no field can hold.
func TestRoundTripProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		utf8 := rapid.Bool().Draw(t, "utf8")
		typ := func(label string) Typed {
			v := clean(drawValue(t, label), true)
			if v == "" {
				return Typed{}
			}
			return Typed{"x-test", v}
		}
		addr := func(label string) Typed {
			a := mailspine.Address{Local: rapid.StringOfN(rapid.RuneFrom([]rune("ab1é中\\{}+=")), 1, 20, -1).Draw(t, label), Domain: "example.net"}
			return ForAddress(a)
		}
		d := &Delivery{ReportingMTA: typ("reporting"), EnvelopeID: clean(drawValue(t, "envid"), true), Arrival: when}
		for range rapid.IntRange(1, 4).Draw(t, "recipients") {
			d.Recipients = append(d.Recipients, Recipient{
				Original: addr("original"), Final: addr("final"), Action: rapid.SampledFrom([]Action{Failed, Delayed, Relayed}).Draw(t, "action"),
				Status: mailspine.EnhancedCode{5, rapid.IntRange(0, 999).Draw(t, "subject"), 0}, Diagnostic: typ("diagnostic"), LastAttempt: when,
			})
		}
		b := d.Format(utf8)
		if !utf8 && !isASCII(b) || !isText(b) {
			t.Fatalf("not lines of ASCII: %q", b)
		}
		got, err := ParseDelivery(b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if len(got.Recipients) != len(d.Recipients) {
			t.Fatalf("%d recipients, want %d:\n%s", len(got.Recipients), len(d.Recipients), b)
		}
		for i, r := range got.Recipients {
			want := d.Recipients[i]
			if r.Final != want.Final || r.Original != want.Original || r.Action != want.Action || r.Status != want.Status || !r.LastAttempt.Equal(want.LastAttempt) {
				t.Fatalf("read %+v, want %+v, from\n%s", r, want, b)
			}
			if utf8 && strings.TrimSpace(r.Diagnostic.Value) != want.Diagnostic.Value {
				t.Fatalf("diagnostic %q, want %q", r.Diagnostic.Value, want.Diagnostic.Value)
			}
		}
	})
}

// Values cannot make fields, parts or messages of their own.
func TestNoInjection(t *testing.T) {
	m := sample()
	evil := "x\r\nStatus: 2.0.0\r\n\r\nFinal-Recipient: rfc822; eve@example.net\r\n--report\r\n"
	m.Subject, m.MessageID, m.From = evil, evil, evil
	m.Delivery.EnvelopeID = evil
	m.Delivery.Recipients[0].Diagnostic.Value = evil
	m.Delivery.Recipients[1].Final.Value = evil
	b, _ := m.Bytes()
	r, err := Parse(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, b)
	}
	if len(r.Delivery.Recipients) != 2 || r.Delivery.Recipients[0].Status != (mailspine.EnhancedCode{5, 1, 1}) {
		t.Errorf("read %+v from\n%s", r.Delivery, b)
	}
	head, _, _ := strings.Cut(string(b), "\r\n\r\n")
	for _, line := range strings.Split(head, "\r\n") {
		if strings.HasPrefix(line, "Status:") || strings.HasPrefix(line, "Final-Recipient:") {
			t.Errorf("a field was made: %q", line)
		}
	}
}

// A message that holds the boundary gets another one.
func TestBoundary(t *testing.T) {
	m := sample()
	first := m.boundary(nil)
	m.Full = true
	m.Returned = []byte("Subject: x\r\n\r\n--" + first + "--\r\nmore\r\n")
	b, _ := m.Bytes()
	r, err := Parse(bytes.NewReader(b))
	if err != nil || !r.Full || strings.TrimRight(string(r.Returned), "\r\n") != strings.TrimRight(string(m.Returned), "\r\n") {
		t.Errorf("Parse: %v, returned %q", err, r.Returned)
	}
}

func TestAddressEscape(t *testing.T) {
	// RFC 6533 section 3: space, backslash, plus and equals are escaped too.
	got := escapeAddress("dörte+x@bücher.example")
	if want := `d\x{F6}rte\x{2B}x@b\x{FC}cher.example`; got != want {
		t.Errorf("escaped %q, want %q", got, want)
	}
	if got := unescapeAddress(got); got != "dörte+x@bücher.example" {
		t.Errorf("unescaped %q", got)
	}
	for in, want := range map[string]string{
		`\x{`: `\x{`, `\x{}`: `\x{}`, `\x{110000}`: `\x{110000}`, `\x{D800}`: `\x{D800}`, `\x{0A}`: `\x{0A}`, `a\x{41}b`: "aAb", `\x{zz}\x{42}`: `\x{zz}B`,
	} {
		if got := unescapeAddress(in); got != want {
			t.Errorf("unescaped %q: %q, want %q", in, got, want)
		}
	}
}

func TestParseDelivery(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"plain":            {"Reporting-MTA: dns; a\r\n\r\nFinal-Recipient: rfc822;ann@x\r\nAction: failed\r\nStatus: 5.1.1\r\n", "rfc822; ann@x failed 5.1.1 [dns; a]"},
		"LF and comments":  {"reporting-mta: DNS;a\n\nFINAL-RECIPIENT: RFC822; <ann@x>\nAction: Failed (sic)\nStatus: 5.1.1 (bad)\n", "rfc822; ann@x failed 5.1.1 [dns; a]"},
		"one group":        {"Reporting-MTA: dns; a\nFinal-Recipient: rfc822; ann@x\nAction: failed\nStatus: 5.0.0\n", "rfc822; ann@x failed 5.0.0 [dns; a]"},
		"no type":          {"Final-Recipient: ann@x\nAction: failed\nStatus: bogus\n", "rfc822; ann@x failed  [; ]"},
		"original only":    {"\n\n\nOriginal-Recipient: rfc822;ann@x\nAction: delayed\n", " delayed  [; ]"},
		"folded":           {"Final-Recipient: rfc822;\n  ann@x\nAction:\n failed\n garbage line\nno colon\nStatus:\t5.2.2\n", "rfc822; ann@x failed 5.2.2 [; ]"},
		"two, much spaced": {"\n \nReporting-MTA: dns; a\n\n\n\nFinal-Recipient: rfc822; a@x\nAction: failed\n\t\nFinal-Recipient: rfc822; b@x\nAction: relayed", "rfc822; a@x failed  [dns; a], rfc822; b@x relayed  [dns; a]"},
		"empty":            {"", "error"},
		"no recipient":     {"Reporting-MTA: dns; a\n\nX: y\n", "error"},
	} {
		d, err := ParseDelivery([]byte(c.in))
		got := "error"
		if err == nil {
			var s []string
			for _, r := range d.Recipients {
				f := r.Final.String()
				if r.Final.IsZero() {
					f = ""
				}
				s = append(s, fmt.Sprintf("%s %s %v [%v]", f, r.Action, r.Status, d.ReportingMTA))
			}
			got = strings.Join(s, ", ")
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestParseBounds(t *testing.T) {
	if _, err := Parse(strings.NewReader("Subject: x\r\n\r\nhello\r\n")); !errors.Is(err, ErrNotReport) {
		t.Errorf("no report: %v", err)
	}
	if _, err := Parse(strings.NewReader("X: " + strings.Repeat("y", 2*maxHeader))); !errors.Is(err, ErrNotReport) {
		t.Errorf("endless header: %v", err)
	}
	b, _ := sample().Bytes()
	if _, err := Parse(io.MultiReader(bytes.NewReader(b[:800]), iotest.ErrReader(io.ErrClosedPipe))); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("reader that fails: %v", err)
	}
	// Cut off in the third part: what came before counts.
	if r, err := Parse(bytes.NewReader(b[:len(b)-60])); err != nil || len(r.Delivery.Recipients) != 2 {
		t.Errorf("cut off: %v", err)
	}
	many := strings.Repeat("Final-Recipient: rfc822; a@x\n\n", 2*maxRecipients)
	if d, err := ParseDelivery([]byte(many)); err != nil || len(d.Recipients) != maxRecipients {
		t.Errorf("many recipients: %v", err)
	}
}

// Bounces of some 60 real systems: the address and status that an established parser
// reads from their delivery status are in ours.
func TestVectors(t *testing.T) {
	dir := os.Getenv("MAILSPINE_VECTORS")
	if dir == "" {
		if os.Getenv("MAILSPINE_STRICT") == "1" {
			t.Fatal("MAILSPINE_VECTORS is not set")
		}
		t.Skip("MAILSPINE_VECTORS is not set: the bounces of real systems are not there")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "bounces", "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var expected []struct{ File, Recipient, Status, Reason string }
	if err := json.Unmarshal(raw, &expected); err != nil {
		t.Fatal(err)
	}
	reports, recipients, statuses := 0, 0, 0
	for _, want := range expected {
		b, err := os.ReadFile(filepath.Join(dir, "bounces", "eml", want.File))
		if err != nil {
			t.Fatal(err)
		}
		r, err := Parse(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrNotReport) {
				t.Errorf("%s: %v", want.File, err)
			}
			continue // many bounces are no multipart/report
		}
		if r.Delivery == nil {
			continue
		}
		reports++
		found, status := false, false
		for _, x := range r.Delivery.Recipients {
			found = found || strings.EqualFold(x.Final.Value, want.Recipient) || strings.EqualFold(x.Original.Value, want.Recipient)
			status = status || x.Status.String() == want.Status
		}
		if found {
			recipients++
		} else {
			t.Logf("%s: read %+v, expected %s", want.File, r.Delivery.Recipients, want.Recipient)
		}
		if status {
			statuses++
		}
	}
	t.Logf("of %d bounces, %d are delivery status reports; the expected recipient is in %d of them, the expected status in %d", len(expected), reports, recipients, statuses)
	// The others write the recipient where no standard has it, or the parser
	// guesses the status from the text.
	if reports < 50 || recipients*100 < reports*85 || statuses*100 < reports*60 {
		t.Error("less than what was read when this test was written")
	}
}

func FuzzParse(f *testing.F) {
	m := sample()
	b, _ := m.Bytes()
	f.Add(b)
	m.UTF8, m.Full = true, true
	m.Returned = []byte("Subject: grüße\r\n\r\nx\r\n")
	m.Delivery.Recipients[0].Final = Typed{"utf-8", "änne@example.net"}
	b, _ = m.Bytes()
	f.Add(b)
	f.Add([]byte("Content-Type: multipart/report; report-type=delivery-status; boundary=b\n\n--b\n\n--b\nContent-Type: message/delivery-status\nContent-Transfer-Encoding: base64\n\nRmluYWwtUmVjaXBpZW50OiBhQHg=\n--b--\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrNotReport) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if len(r.Text) > 3*MaxText || len(r.Returned) > MaxReturned {
			t.Fatal("a bound was passed")
		}
	})
}

// What was read can be written, and is then read the same.
func FuzzParseDelivery(f *testing.F) {
	d := sample().Delivery
	f.Add(d.Format(true))
	f.Add([]byte("Final-Recipient: utf-8; d\\x{F6}rte@x\nDiagnostic-Code: smtp;550\n  folded\n"))
	f.Add([]byte("Original-Recipient: <>\nFinal-Recipient: rfc822;<a@b>\n\nStatus: 5.1.1;\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDelivery(b)
		if err != nil {
			return
		}
		out := d.Format(true)
		if !isText(out) {
			t.Fatalf("written with lines that SMTP cannot carry: %q", out)
		}
		if !isASCII(d.Format(false)) {
			t.Fatal("not ASCII")
		}
		for _, r := range d.Recipients {
			if r.Status[0] > 5 || len(r.Final.Value) > 2*maxValue {
				t.Fatalf("read %+v", r)
			}
		}
	})
}

// Folds without text cost nothing: a stranger writes as many as fit into a message.
func TestParseDeliveryEmptyFolds(t *testing.T) {
	b := []byte("Final-Recipient: rfc822; a@example.org\r\nX: " + strings.Repeat("v", 4000) + "\n" + strings.Repeat(" \x01\n", MaxStatus/3))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	d, err := ParseDelivery(b)
	runtime.ReadMemStats(&after)
	if err != nil || len(d.Recipients) != 1 {
		t.Fatalf("ParseDelivery: %+v, %v", d, err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("%d octets were allocated for %d", n, len(b))
	}
}
