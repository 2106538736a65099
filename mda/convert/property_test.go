package convert

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/emersion/go-message"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/ianaindex"
	"pgregory.net/rapid"
)

// octets returns the decoded leaves of a message, as another library reads it: parser and
// decoders of go-message have nothing in common with those of this package.
func octets(t rapid.TB, msg string) []string {
	e, err := message.ReadWithOptions(strings.NewReader(msg), &message.ReadOptions{MaxHeaderBytes: -1})
	if err != nil && !message.IsUnknownCharset(err) {
		t.Fatalf("go-message reads %q: %v", msg, err)
	}
	var out []string
	var walk func(e *message.Entity)
	walk = func(e *message.Entity) {
		if mr := e.MultipartReader(); mr != nil {
			for {
				p, err := mr.NextPart()
				if err == io.EOF {
					return
				}
				if err != nil && !message.IsUnknownCharset(err) {
					t.Fatalf("go-message reads a part of %q: %v", msg, err)
				}
				walk(p)
			}
		}
		b, err := io.ReadAll(e.Body)
		if err != nil {
			t.Fatalf("go-message decodes %q: %v", msg, err)
		}
		out = append(out, string(b))
	}
	walk(e)
	return out
}

// encodeBody writes octets in a transfer encoding. Raw octets are lines of a message, which
// end with CRLF here, and have no CR and LF otherwise.
func encodeBody(encoding string, b []byte) string {
	var out bytes.Buffer
	switch encoding {
	case "quoted-printable":
		w := quotedprintable.NewWriter(&out)
		w.Write(b)
		w.Close()
	case "base64":
		s := base64.StdEncoding.EncodeToString(b)
		for len(s) > 76 {
			out.WriteString(s[:76] + "\r\n")
			s = s[76:]
		}
		out.WriteString(s)
	default:
		out.Write(b)
	}
	return out.String()
}

// charsets are those whose text must come out as it went in.
var charsets = []string{
	"iso-8859-2", "iso-8859-5", "iso-8859-7", "iso-8859-15", "windows-1250", "windows-1251", "windows-1252", "windows-1256", "koi8-r", "koi8-u", "macintosh",
	"ibm866", "windows-874", "gbk", "gb18030", "big5", "euc-jp", "shift_jis", "iso-2022-jp", "euc-kr", "hz-gb-2312", "utf-16be", "utf-16le", "ibm037",
}

// repertoire returns the letters of a charset, of those that are tried.
func repertoire(enc encoding.Encoding) []rune {
	var out []rune
	for _, block := range [][2]rune{{' ', '~'}, {0xa1, 0x17f}, {0x391, 0x3c9}, {0x401, 0x45f}, {0x621, 0x64a}, {0xe01, 0xe3a}, {0x3041, 0x3093}, {0x4e00, 0x4e60}, {0xac00, 0xac40}} {
		for r := block[0]; r <= block[1]; r++ {
			b, err := enc.NewEncoder().Bytes([]byte(string(r)))
			if err != nil {
				continue
			}
			if back, err := enc.NewDecoder().Bytes(b); err == nil && string(back) == string(r) && r != '~' && r != '\\' {
				out = append(out, r)
			}
		}
	}
	return out
}

// Text in any charset and any transfer encoding says the same in UTF-8, and so does the subject.
func TestCharsetsRoundTrip(t *testing.T) {
	type table struct {
		enc   encoding.Encoding
		runes []rune
	}
	tables := map[string]table{}
	for _, label := range charsets {
		c, err := lookupCharset(label)
		if err != nil {
			t.Fatalf("%s: %v", label, err)
		}
		tables[label] = table{c.enc, repertoire(c.enc)}
		if len(tables[label].runes) < 90 {
			t.Errorf("%s has %d letters", label, len(tables[label].runes))
		}
		if enc, err := ianaindex.MIME.Encoding(label); err == nil && enc != nil && label != "gbk" && enc != c.enc {
			t.Logf("%s: IANA has another table", label)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		label := rapid.SampledFrom(charsets).Draw(t, "charset")
		tab := tables[label]
		line := rapid.StringOfN(rapid.SampledFrom(tab.runes), 1, 60, -1)
		text := strings.Join(rapid.SliceOfN(line, 1, 20).Draw(t, "lines"), "\r\n")
		subject := line.Draw(t, "subject")
		if strings.TrimSpace(text) == "" {
			return
		}
		b, err := tab.enc.NewEncoder().Bytes([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		cte := rapid.SampledFrom([]string{"8bit", "quoted-printable", "base64"}).Draw(t, "encoding")
		if strings.HasPrefix(label, "utf-16") || label == "ibm037" {
			cte = "base64" // their line ends are none
		}
		sb, _ := tab.enc.NewEncoder().Bytes([]byte(subject))
		in := fmt.Sprintf("MIME-Version: 1.0\r\nSubject: =?%s?b?%s?=\r\nContent-Type: text/plain; charset=%s\r\nContent-Transfer-Encoding: %s\r\n\r\n%s",
			label, base64.StdEncoding.EncodeToString(sb), label, cte, encodeBody(cte, b))
		out, res := derive(t, Options{UTF8: true, SevenBit: rapid.Bool().Draw(t, "seven")}, in)
		if len(res.Notes) > 0 {
			t.Fatalf("%v", res.Notes)
		}
		e, err := message.Read(strings.NewReader(out))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(e.Body)
		if err != nil || strings.TrimSuffix(string(body), "\r\n") != text && string(body) != text {
			t.Fatalf("%q in %s is %q: %v", text, label, body, err)
		}
		if _, p, err := e.Header.ContentType(); err != nil || p["charset"] != "utf-8" && !(isASCII(string(b))) {
			t.Fatalf("labelled %q: %v", p, err)
		}
		got, err := new(mime.WordDecoder).DecodeHeader(e.Header.Get("Subject"))
		if err != nil || got != subject {
			t.Fatalf("subject %q is %q (%q): %v", subject, got, e.Header.Get("Subject"), err)
		}
	})
}

// part draws an entity with arbitrary octets inside; with messages in it if they are wanted.
func part(t *rapid.T, depth int, boundary *int, messages bool) string {
	if messages && depth < 3 && rapid.IntRange(0, 7).Draw(t, "message") == 0 {
		return "Content-Type: message/rfc822\r\n\r\nSubject: =?koi8-r?q?=C0?=\r\n" + part(t, depth+1, boundary, true)
	}
	if depth < 3 && rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
		*boundary++
		b := fmt.Sprintf("b%d", *boundary)
		s := fmt.Sprintf("Content-Type: multipart/%s; boundary=%s\r\nContent-Transfer-Encoding: 8bit\r\n\r\n%s",
			rapid.SampledFrom([]string{"mixed", "alternative", "related", "signed"}).Draw(t, "multi"), b, rapid.SampledFrom([]string{"", "preamble\xff\r\n"}).Draw(t, "preamble"))
		for range rapid.IntRange(1, 4).Draw(t, "parts") {
			s += "--" + b + "\r\n" + part(t, depth+1, boundary, messages) + "\r\n"
		}
		return s + "--" + b + "--\r\n" + rapid.SampledFrom([]string{"", "epilogue\r\n"}).Draw(t, "epilogue")
	}
	cte := rapid.SampledFrom([]string{"8bit", "binary", "7bit", "quoted-printable", "base64", ""}).Draw(t, "encoding")
	var body []byte
	for range rapid.IntRange(0, 6).Draw(t, "lines") {
		alphabet := rapid.SampledFrom([]string{"a -=.F\t", "<p>a&amp;\u00fc", "\x00\xff\x80\x7f=", "\r", "\n", "xyz"}).Draw(t, "alphabet")
		body = append(body, rapid.StringOfN(rapid.SampledFrom([]rune(alphabet)), 0, 3000, -1).Draw(t, "line")...)
		body = append(body, "\r\n"...)
	}
	if cte == "quoted-printable" {
		body = bytes.ReplaceAll(bytes.ReplaceAll(body, []byte("\r"), nil), []byte("\n"), []byte("\r\n")) // its writer knows lines only
	}
	s := "Content-Type: " + rapid.SampledFrom([]string{"text/plain", "application/octet-stream", "image/png", "text/plain; charset=koi8-r", "text/html", "text/html; charset=shift_jis"}).Draw(t, "type") + "\r\n"
	if cte != "" {
		s += "Content-Transfer-Encoding: " + cte + "\r\n"
	}
	return s + "X-Note: \xc3\xbc\r\n\r\n" + encodeBody(cte, body)
}

// In seven bits every part has the octets that it had.
func TestSevenBitKeepsOctets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := 0
		in := "MIME-Version: 1.0\r\n" + part(t, 0, &n, false)
		out, res := derive(t, to7Bit, in)
		if res.EightBit && !strings.Contains(in, "multipart/signed") || res.Problem != nil {
			t.Fatalf("%+v", res)
		}
		before, after := octets(t, in), octets(t, out)
		if len(before) != len(after) {
			t.Fatalf("%d parts became %d: %q, %q", len(before), len(after), in, out)
		}
		for i := range before {
			if before[i] != after[i] {
				t.Fatalf("part %d of %q\nwas %q\nand is %q in\n%q", i, in, before[i], after[i], out)
			}
		}
	})
}

// Whatever is done to whatever message, the result is a message, and is not changed again;
// what is signed is in it as it was.
func TestAnyConversion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := 0
		in := "MIME-Version: 1.0\r\n" + part(t, 0, &n, true)
		o := Options{UTF8: rapid.Bool().Draw(t, "utf8"), Text: rapid.Bool().Draw(t, "text"), KeepHTML: rapid.Bool().Draw(t, "keep"), SevenBit: rapid.Bool().Draw(t, "seven")}
		out, res := derive(t, o, in)
		if res.Problem != nil {
			t.Fatalf("%+v", res)
		}
		before, after := octets(t, in), octets(t, out)
		if !o.Text && len(before) != len(after) {
			t.Fatalf("%d parts became %d: %q, %q", len(before), len(after), in, out)
		}
		for rest := in; ; {
			_, r, ok := strings.Cut(rest, "multipart/signed; boundary=")
			if !ok {
				break
			}
			rest = r
			b, _, _ := strings.Cut(r, "\r\n")
			_, body, _ := strings.Cut(r, "\r\n\r\n")
			if k := strings.Index(body, "--"+b+"--"); k >= 0 && strings.Contains(out, "boundary="+b+"\r\n") && !strings.Contains(out, body[:k]) {
				t.Fatalf("what is signed in %q is not in %q", in, out)
			}
		}
	})
}

// What quoted-printable writes, it reads, and so does everybody else.
func TestQuotedPrintable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.SliceOf(rapid.SampledFrom([]byte("ab =\r\n\t-.F\x00\xff~"))).Draw(t, "octets")
		var out bytes.Buffer
		w := newQP(&out, "\r\n")
		for rest := in; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			w.Write(rest[:n])
			rest = rest[n:]
		}
		w.Close()
		back, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(out.Bytes())))
		if err != nil || !bytes.Equal(back, in) {
			t.Fatalf("%q is %q, and then %q: %v", in, out.String(), back, err)
		}
		for line := range strings.SplitSeq(out.String(), "\r\n") {
			if len(line) > 76 || strings.HasPrefix(line, "-") || strings.HasPrefix(line, ".") || strings.HasPrefix(line, "From ") || strings.TrimRight(line, " \t") != line {
				t.Fatalf("%q has the line %q", in, line)
			}
		}
	})
}

// Encoded words are short, whole characters each, and say what they should.
func TestEncodeWords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.String().Draw(t, "text")
		words := encodeWords("utf-8", in)
		for _, w := range words {
			s, err := new(mime.WordDecoder).Decode(w)
			if len(w) > 75 || err != nil || !utf8.ValidString(s) {
				t.Fatalf("%q is %q: %v", in, w, err)
			}
		}
		if got, err := new(mime.WordDecoder).DecodeHeader(strings.Join(words, "\r\n ")); err != nil || got != in {
			t.Fatalf("%q is %q: %v", in, got, err)
		}
	})
}

func FuzzConvert(f *testing.F) {
	for i, s := range []string{
		"Subject: =?koi8-r?q?=C0?=\n\n\xc0", "Content-Type: text/html; charset=koi8-r\n\n<p>\xc0<a href=x:y>",
		"Content-Type: multipart/mixed; boundary=b\n\np\n--b\nContent-Type: text/html\n\n<p>\n--b\n\nx\xff\n--b--\ne",
		"Content-Type: multipart/alternative; boundary=b\n\n--b\n\nplain\n--b\nContent-Type: multipart/related; boundary=c\n\n--c\nContent-Type: text/html\n\n<b>\n--c--\n--b--",
		"Content-Type: multipart/signed; boundary=b\n\n--b\nContent-Type: text/html\n\n\xff\n--b--", "Content-Type: message/rfc822\n\nContent-Type: text/plain; charset=iso-2022-jp\n\n\x1b$B$3",
		"To: \xc3\xbc <\xc3\xbc@\xc3\xbc.example>, a:;\nMessage-ID: <\xff>\n\n", "Content-Type: a/b; name*0*=koi8-r''%C0; name*1=\"x\"; n=\"\xc3\xbc\"\n\n\x00",
		"Content-Type: text/plain; charset=gbk\nContent-Transfer-Encoding: base64\n\nxOPK\nx==", "Content-Type: text/html\nContent-Transfer-Encoding: quoted-printable\n\n=3Cp>=\n x=20\n",
		"Content-Type: multipart/digest; boundary=\"b b\"\n\n--b b\n\nSubject: \xff\n\n\xff\n--b b--", "X: " + strings.Repeat("y ", 600) + "\n\n" + strings.Repeat("z", 1000),
		// What was found.
		"Content-Type:text/html\nContent-Transfer-Encoding: quoted-printabl\xde", "Content-Type: text/html;Charset=\x94\n\xc0", "Content-Type:a;e*=koi\x10''x; n=te\xbc",
		"Content-Type:0;00=;0\r00=\xbc\n\r", "Content-Type:text/html\n0:\r\n", "Content-Type:text/html;t=\n<a:\r", "X: y \xc9 " + strings.Repeat("f", 1000),
	} {
		f.Add([]byte(s), byte(i))
		f.Add([]byte(crlf(s)), byte(15))
	}
	f.Fuzz(func(t *testing.T, in []byte, opts byte) {
		o := Options{UTF8: opts&1 != 0, Text: opts&2 != 0, KeepHTML: opts&4 != 0, SevenBit: opts&8 != 0}
		out, res := derive(t, o, string(in))
		if res.Changed != (len(res.Done) > 0) || res.Problem != nil && res.Changed {
			t.Fatalf("%+v", res)
		}
		if res.Changed && !strings.Contains(out, markField+": "+strings.Join(res.Done, ", ")) {
			t.Fatalf("%q has no mark", out)
		}
		for _, n := range res.Notes {
			if !isASCII(n.Text) && !utf8.ValidString(n.Text) || strings.ContainsAny(n.Text, "\r\n\x00") {
				t.Fatalf("note %q", n.Text)
			}
		}
	})
}
