package report

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// multipart makes a report of parts, as they stand between the boundary lines.
func multipart(kind string, parts ...string) string {
	return "From: a@example.net\r\nContent-Type: multipart/report; report-type=" + kind + "; boundary=b\r\n\r\n--b\r\n" + strings.Join(parts, "\r\n--b\r\n") + "\r\n--b--\r\n"
}

// fill repeats s up to n octets.
func fill(s string, n int) string { return strings.Repeat(s, n/len(s)) }

// A stranger's message is at most MaxReport octets to Parse, and what it makes of them is bounded too, whatever they are: the
// measure is what is allocated, all in all.
func TestParseAllocations(t *testing.T) {
	const status = "Content-Type: message/delivery-status\r\n\r\nFinal-Recipient: rfc822; a@example.org\r\nStatus: 5.1.1\r\n"
	const nothing = "Content-Type: message/delivery-status\r\n\r\n" // is read, and the next one after it
	const feedback = "Content-Type: message/feedback-report\r\n\r\n"
	// A large part is enough to see what is made of each octet; MAILSPINE_SOAK has all that Parse reads, 4 MiB.
	big, one, most := MaxReport/8, MaxStatus/2, 16<<20
	if os.Getenv("MAILSPINE_SOAK") == "1" {
		big, one, most = MaxReport-1000, MaxStatus-100, 32<<20
	}
	statuses := big / one
	repeat := func(n int, part string) (list []string) {
		for range n {
			list = append(list, part)
		}
		return list
	}
	fold := fill("X: v\r\n"+fill(" a\r\n", 8<<10), one)
	folds := fill("\r\n"+fill("Diagnostic-Code: v\r\n"+fill(" a\r\n", 8<<10), one/3), one)
	for name, in := range map[string]string{
		"fields of the message":        fill("a:\r\n", maxHeader-1000) + multipart("delivery-status", status),
		"fields of a part":             multipart("delivery-status", "\r\nx", "a: b\r\n"+fill("a:\n", big)+status),
		"fields of a part, distinct":   multipart("delivery-status", "\r\nx", distinct(big)+status),
		"a folded field":               multipart("delivery-status", "\r\nx", "a: b\r\n"+fill(" \n", big)+status),
		"a field without an end":       multipart("delivery-status", "\r\nx", "a: "+fill("b", big)),
		"a header without a body":      multipart("delivery-status", repeat(9, fill("a:\n", big/9))...),
		"types":                        multipart("delivery-status", repeat(9, fill("Content-Type: text/plain; a=b\n", big/9)+"\nx")...),
		"parameters":                   multipart("delivery-status", repeat(9, "Content-Type: text/plain"+params(big/9)+"\r\n\r\nx")...),
		"parameters that are read":     multipart("delivery-status", repeat(9, "Content-Type: text/plain"+params(maxField-100)+"\r\n\r\nx")...),
		"parameters of the message":    "Content-Type: multipart/report; boundary=b" + params(maxHeader-100) + "\r\n\r\n--b\r\n" + status + "--b--\r\n",
		"continued parameters":         multipart("delivery-status", repeat(9, "Content-Type: text/plain"+strings.ReplaceAll(params(big/9), "=", "*0*=")+"\r\n\r\nx")...),
		"parts":                        multipart("delivery-status", fill("\r\n--b\r\n", big)),
		"words of a status":            multipart("delivery-status", repeat(statuses, nothing+fill("X: "+fill("a ", 4000)+"\r\n\r\n", one))...),
		"folds of a status":            multipart("delivery-status", repeat(statuses, nothing+fold)...),
		"folds of a status, in groups": multipart("delivery-status", repeat(statuses, nothing+folds)...),
		"groups of a status":           multipart("delivery-status", repeat(statuses, nothing+fill("a:\n\n", one))...),
		"dates of a status":            multipart("delivery-status", repeat(statuses, nothing+fill("Arrival-Date: x\n", one))...),
		"dates, in groups":             multipart("delivery-status", repeat(statuses, nothing+fill("Arrival-Date: x\n\n", one))...),
		"good dates, in groups":        multipart("delivery-status", repeat(statuses, nothing+fill("Arrival-Date: Mon, 2 Jan 2006 15:04:05 -0700\n\n", one))...),
		"dates with comments":          multipart("delivery-status", repeat(statuses, nothing+fill("Arrival-Date: "+fill("(", 4000)+"\n\n", one))...),
		"recipients":                   multipart("delivery-status", "Content-Type: message/delivery-status\r\n\r\n"+fill("Final-Recipient: a\n\n", one)),
		"statuses":                     multipart("delivery-status", "Content-Type: message/delivery-status\r\n\r\n"+fill("Final-Recipient: a\n"+fill("Status: 5.1.1\n", 600)+"\n", one)),
		"escapes":                      multipart("delivery-status", "Content-Type: message/delivery-status\r\n\r\n"+fill("Final-Recipient: utf-8;"+fill(`\x{41}`, 4000)+"\n", one)),
		"words of feedback":            multipart("feedback-report", repeat(statuses, feedback+fill("Reported-URI: "+fill("a ", 4000)+"\r\n\r\n", one))...),
		"folds of feedback":            multipart("feedback-report", repeat(statuses, feedback+fold)...),
		"groups of feedback":           multipart("feedback-report", repeat(statuses, feedback+fill(fill("Source-IP: x\n", 600)+"\n", one))...),
		"text":                         multipart("delivery-status", "\r\n"+fill("\xff\n", big)),
		"base64":                       multipart("delivery-status", "Content-Transfer-Encoding: base64\r\n\r\n"+fill("AAAA\n", big)),
		"quoted-printable":             multipart("delivery-status", "Content-Transfer-Encoding: quoted-printable\r\n\r\n"+fill("=41", big)),
		"an encoding":                  multipart("delivery-status", repeat(9, "Content-Transfer-Encoding: "+fill("x", big/9)+"\r\n\r\nx")...),
		"a message that is returned":   multipart("delivery-status", status, "Content-Type: message/rfc822\r\n\r\n"+fill("a:\r\n", big)),
		"boundaries that are none":     multipart("delivery-status", "\r\n"+fill("\r\n--bb", big)),
		"a boundary with much space":   multipart("delivery-status", "\r\n\r\n--b"+fill(" ", big)+"\r\n"),
		"line ends":                    multipart("delivery-status", "\r\n"+fill("\r\n", big)),
		"a preamble":                   "Content-Type: multipart/report; boundary=b\r\n\r\n" + fill("x", big) + "\r\n--b\r\n" + status,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		Parse(strings.NewReader(in)) // whatever it says
		runtime.ReadMemStats(&after)
		n := after.TotalAlloc - before.TotalAlloc
		t.Logf("%-30s %8d KiB of %d", name, n>>10, len(in))
		if n > uint64(most) {
			t.Errorf("%s: %d KiB were allocated for a message of %d", name, n>>10, len(in)>>10)
		}
	}
}

// distinct makes fields of as many names.
func distinct(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		b.WriteString("a" + strconv.Itoa(i) + ":\n")
	}
	return b.String()[:n-n%2] + "\n"
}

// params makes as many parameters of a media type.
func params(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n-16; i++ {
		b.WriteString(";a" + strconv.Itoa(i) + "=b")
		if i%50 == 49 {
			b.WriteString("\r\n ")
		}
	}
	return b.String()
}

// Dates are read in all their forms, but not in any number of them.
func TestDates(t *testing.T) {
	want := time.Date(2006, 1, 2, 22, 4, 5, 0, time.UTC)
	var p dates
	for _, s := range []string{"Mon, 2 Jan 2006 15:04:05 -0700", "Mon, 02 Jan 2006 15:04:05 -0700 (MST)", "2 Jan 2006 15:04:05 -0700", "Mon, 2 Jan 2006 22:04:05 GMT", "Mon, 2 Jan 06 15:04:05 MST"} {
		if got := p.date(s); !got.Equal(want) {
			t.Errorf("%s is %v", s, got)
		}
	}
	if p.slow != 3 {
		t.Errorf("%d of them were slow", p.slow)
	}
	for _, s := range []string{"", "x", "Mon, 2 Jan 2006 15:04:05 -0700" + strings.Repeat(" ", 200)} {
		if got := p.date(s); !got.IsZero() {
			t.Errorf("%q is %v", s, got)
		}
	}
	for range maxSlow {
		p.date("x")
	}
	if !p.date("2 Jan 2006 15:04:05 -0700").IsZero() || p.date("Mon, 2 Jan 2006 15:04:05 -0700").IsZero() {
		t.Errorf("after %d slow dates", p.slow)
	}
	// Groups without a recipient are looked at a hundred times.
	text := strings.Repeat("X: y\n\n", maxRepeated-1) + "Reporting-MTA: dns; a\n\nReporting-MTA: dns; b\n\nFinal-Recipient: rfc822; a@x\nAction: failed\n"
	if d, err := ParseDelivery([]byte(text)); err != nil || d.ReportingMTA.Value != "a" || len(d.Recipients) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
}
