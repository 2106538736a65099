package tlsrpt

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mailspine/mailspine"
)

func sampleMessage() *Message {
	return &Message{
		From: addr("tls-reports@example.com"), To: addr("tlsrpt@example.org"), Domain: "example.org", Submitter: "example.com",
		Date: day0.Add(26 * time.Hour), MessageID: "tlsrpt-1@example.com", Report: sample(),
	}
}

var base64Body = regexp.MustCompile(`(?s)(Content-Disposition: [^\n]*\n [^\n]*\n\n)[A-Za-z0-9+/=\n]+\n\n`)

func TestMessageGolden(t *testing.T) {
	b, err := sampleMessage().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range strings.SplitAfter(string(b), "\n") {
		if len(l) > 80 && !strings.Contains(l, "filename=") || l != "" && !strings.HasSuffix(l, "\r\n") || strings.ContainsFunc(l, func(r rune) bool { return r > 0x7e }) {
			t.Errorf("line %d: %q", i, l)
		}
	}
	// How gzip compresses is its own affair; what it says is in report.json.
	text := base64Body.ReplaceAllString(strings.ReplaceAll(string(b), "\r\n", "\n"), "$1(the report)\n\n")
	golden(t, "report.eml", []byte(text))

	m, err := ParseMessage(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if want := sampleMessage(); !reflect.DeepEqual(m, want) {
		t.Errorf("read %+v\nnot  %+v", m, want)
	}
}

// What a domain is called, and who answers for the report, is under nobody's control but ours, and yet.
func TestMessageLongNames(t *testing.T) {
	m := sampleMessage()
	m.Domain = strings.Repeat("a.", 126) + "b"
	m.Submitter = strings.Repeat("c.", 126) + "d"
	m.Report.Contact = "ü\r\nX: y"
	b, err := m.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\r\n") {
		if len(l) > 998 || strings.HasPrefix(l, "X: ") || strings.ContainsAny(l, "\r\n") {
			t.Errorf("line %q", l)
		}
	}
	got, err := ParseMessage(bytes.NewReader(b))
	if err != nil || got.Domain != m.Domain || got.Submitter != m.Submitter {
		t.Errorf("%+v, %v", got, err)
	}
}

// Nothing gets into a header that would begin another field.
func TestMessageInvalid(t *testing.T) {
	for name, change := range map[string]func(*Message){
		"From": func(m *Message) { m.From.Local = "a\r\nX: y" }, "no From": func(m *Message) { m.From = mailspine.Address{} },
		"To": func(m *Message) { m.To.Domain = "x\r\n" }, "not ASCII": func(m *Message) { m.To.Local = "ü" },
		"Domain": func(m *Message) { m.Domain = "a b" }, "Submitter": func(m *Message) { m.Submitter = "Example.com" },
		"MessageID": func(m *Message) { m.MessageID = "a\nb" }, "no MessageID": func(m *Message) { m.MessageID = "" },
		"ID": func(m *Message) { m.Report.ID = "a> <b" }, "no report": func(m *Message) { m.Report = nil },
	} {
		m := sampleMessage()
		change(m)
		if b, err := m.Bytes(); err == nil {
			t.Errorf("%s: %s", name, b)
		}
	}
}

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// multiPart makes a message of a type and parts.
func multiPart(kind string, parts ...string) string {
	b := strings.Builder{}
	b.WriteString("From: a@example.com\nTLS-Report-Domain: Example.ORG\nContent-Type: " + kind + "; boundary=\"b\"\n\n")
	for _, p := range parts {
		b.WriteString("--b\n" + p + "\n")
	}
	b.WriteString("--b--\n")
	return crlf(b.String())
}

func TestParseMessage(t *testing.T) {
	j, _ := sample().MarshalJSON()
	z, _ := sample().Gzip()
	b64 := base64.StdEncoding.EncodeToString(z) + "\n"
	text := "Content-Type: text/plain\n\nhello\n"
	gz := "Content-Type: application/tlsrpt+gzip\nContent-Transfer-Encoding: base64\n\n" + b64
	plain := "Content-Type: application/tlsrpt+json\n\n" + string(j) + "\n"
	other := func(kind, name string) string {
		return "Content-Type: " + kind + "\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment; filename=\"" + name + "\"\n\n" + b64
	}
	var quoted strings.Builder
	qp := quotedprintable.NewWriter(&quoted)
	qp.Write(j)
	qp.Close()
	wrong := "Content-Type: application/json\n\n{\"policies\":[],\"report-id\":\"wrong\"}\n"
	nest := func(part string) string {
		return "Content-Type: multipart/mixed; boundary=\"n\"\n\n--n\n" + part + "\n--n--\n"
	}
	deep := gz
	for i := range 4 {
		deep = fmt.Sprintf("Content-Type: multipart/mixed; boundary=\"d%d\"\n\n--d%d\n%s\n--d%d--\n", i, i, deep, i)
	}
	for name, s := range map[string]string{
		"as the RFC says":            multiPart("multipart/report; report-type=tlsrpt", text, gz),
		"JSON":                       multiPart("multipart/report; report-type=\"tlsrpt\"", text, plain),
		"quoted-printable":           multiPart("multipart/report", "Content-Type: application/tlsrpt+json\nContent-Transfer-Encoding: Quoted-Printable\n\n"+strings.ReplaceAll(quoted.String(), "\r\n", "\n")+"\n"),
		"base64 with a mark in it":   multiPart("multipart/report", "Content-Type: application/tlsrpt+gzip\nContent-Transfer-Encoding: base64\n\n"+b64[:10]+" !\t"+b64[10:]),
		"no text":                    multiPart("multipart/report", gz),
		"mixed":                      multiPart("multipart/mixed", text, gz, text),
		"another type before":        multiPart("multipart/mixed", wrong, gz),
		"gateway":                    multiPart("multipart/mixed", text, nest(gz)),
		"upper case":                 multiPart("Multipart/Report", "Content-Type: Application/TLSRPT+GZIP\nContent-Transfer-Encoding: BASE64\n\n"+b64),
		"application/gzip":           multiPart("multipart/mixed", text, other("application/gzip", "x")),
		"octet-stream":               multiPart("multipart/mixed", text, other("application/octet-stream", "a!b!1!2.json.gz")),
		"gz of RFC 8460's example":   multiPart("multipart/mixed", text, other("application/x-foo", "a!b!1!2.gz")),
		"damage before":              multiPart("multipart/mixed", "Content-Type: application/tlsrpt+gzip\n\nnothing\n", gz),
		"no multipart":               crlf("From: a@example.com\nTLS-Report-Domain: example.org\n" + gz),
		"no multipart, JSON":         crlf("From: a@example.com\nTLS-Report-Domain: example.org\n" + plain),
		"cut off behind the report":  strings.TrimSuffix(multiPart("multipart/report", text, gz), "--b--\r\n"),
		"unknown charset in a part":  multiPart("multipart/report", "Content-Type: text/plain; charset=x-klingon\n\nhello\n", gz),
		"unknown encoding in a part": multiPart("multipart/report", "Content-Type: text/plain\nContent-Transfer-Encoding: x-what\n\nhello\n", gz),
	} {
		m, err := ParseMessage(strings.NewReader(s))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(m.Report, sample()) || m.Domain != "example.org" || m.From != addr("a@example.com") || m.Submitter != "" {
			t.Errorf("%s: %+v", name, m)
		}
	}

	many := make([]string, 30)
	for i := range many {
		many[i] = text
	}
	for name, s := range map[string]string{
		"nothing":            "",
		"text":               crlf("From: a@example.com\n\nhello\n"),
		"no report":          multiPart("multipart/report; report-type=tlsrpt", text),
		"a bounce":           multiPart("multipart/report; report-type=delivery-status", text, "Content-Type: message/delivery-status\n\nReporting-MTA: dns; x\n"),
		"a message in it":    multiPart("multipart/mixed", text, "Content-Type: message/rfc822\n\n"+gz),
		"not base64":         multiPart("multipart/report", text, "Content-Type: application/tlsrpt+gzip\nContent-Transfer-Encoding: base64\n\n!!!!\n"),
		"not gzip":           multiPart("multipart/report", text, "Content-Type: application/tlsrpt+gzip\n\nhello\n"),
		"cut off inside":     crlf("Content-Type: multipart/report; boundary=b\n\n--b\n" + gz[:len(gz)/2]),
		"too deep":           multiPart("multipart/mixed", deep),
		"too many parts":     multiPart("multipart/mixed", append(many, gz)...),
		"header of a part":   multiPart("multipart/report", strings.Repeat("a:\n", 1<<20)+"\n"),
		"header without end": strings.Repeat("X: y\r\n", 100_000),
	} {
		if m, err := ParseMessage(strings.NewReader(s)); !errors.Is(err, ErrNotReport) || m != nil {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}

	long := crlf("Content-Type: multipart/report; boundary=b\n\n--b\n\n") + strings.Repeat("x\r\n", MaxMessage/3) + crlf("\n--b\n"+gz+"\n--b--\n")
	if _, err := ParseMessage(strings.NewReader(long)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too long: %v", err)
	}
	packed := crlf("Content-Type: application/tlsrpt+gzip\nContent-Transfer-Encoding: base64\n\n") + base64.StdEncoding.EncodeToString(bomb())
	if _, err := ParseMessage(strings.NewReader(packed)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("bomb: %v", err)
	}
	mine := errors.New("mine")
	whole := multiPart("multipart/report", text, gz)
	for n := 0; n < len(whole)-20; n += 37 {
		if _, err := ParseMessage(io.MultiReader(strings.NewReader(whole[:n]), iotest.ErrReader(mine))); !errors.Is(err, mine) {
			t.Errorf("a reader that fails after %d octets: %v", n, err)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	b, _ := sampleMessage().Bytes()
	f.Add(b)
	f.Add([]byte(multiPart("multipart/mixed", "Content-Type: application/json; name=\"a!b.json.gz\"\n\n{\"policies\":[]}\n")))
	f.Add([]byte("Content-Type: application/tlsrpt+json\nTLS-Report-Domain: a\n\n{\"policies\":[]}"))
	f.Add([]byte("Content-Type: multipart/report; boundary=\n\n--\n\n----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMessage(bytes.NewReader(b))
		if err != nil {
			if m != nil || !errors.Is(err, ErrNotReport) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("%v, %v", m, err)
			}
			return
		}
		if m.Report == nil {
			t.Fatal("no report, and no error")
		}
		for _, d := range []string{m.Domain, m.Submitter} {
			if c, err := cleanDomain(d); d != "" && (err != nil || c != d) {
				t.Fatalf("domain %q", d)
			}
		}
		if strings.ContainsAny(m.MessageID, "\r\n") {
			t.Fatalf("Message-ID %q", m.MessageID)
		}
	})
}
