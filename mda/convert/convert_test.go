package convert

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"pgregory.net/rapid"
)

// crlf makes a message of a text with bare line ends.
func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// derive converts a message, and checks what holds for every conversion: it is the same each time,
// and converting its result changes nothing.
func derive(t rapid.TB, o Options, in string) (string, Result) {
	t.Helper()
	once := func(in string) (string, Result) {
		d, err := o.Convert(context.Background(), mailspine.StringContent(in))
		if err != nil {
			t.Fatalf("%q: %v", in, err)
		}
		defer d.Close()
		out, err := mailspine.ReadContent(context.Background(), d.Content, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		return string(out), d.Result
	}
	out, res := once(in)
	if out2, _ := once(in); out2 != out {
		t.Fatalf("%q becomes\n%q and\n%q", in, out, out2)
	}
	if !res.Changed && out != in {
		t.Fatalf("%q is said to be unchanged, and is %q", in, out)
	}
	if res.Changed {
		if out3, res3 := once(out); res3.Changed || out3 != out {
			t.Fatalf("%q becomes\n%q, and that becomes\n%q\n(%v, %v)", in, out, out3, res3.Done, o.String())
		}
	}
	if o.SevenBit && res.Problem == nil && !res.EightBit {
		check7Bit(t, in, out)
	}
	return out, res
}

func check7Bit(t rapid.TB, in, out string) {
	t.Helper()
	for line := range strings.SplitSeq(out, "\n") {
		if !isASCII(line) || len(strings.TrimSuffix(line, "\r")) > maxLine {
			t.Fatalf("%q becomes %q, whose line %q is not in seven bits", in, out, line)
		}
	}
}

var (
	toUTF8  = Options{UTF8: true}
	toText  = Options{Text: true}
	to7Bit  = Options{SevenBit: true}
	addText = Options{Text: true, KeepHTML: true}
	toAll   = Options{UTF8: true, Text: true, SevenBit: true}
)

func TestConvert(t *testing.T) {
	const mime = "MIME-Version: 1.0\n"
	for _, c := range []struct {
		name    string
		o       Options
		in, out string // out "": unchanged
		notes   string // a part of them
	}{
		{"nothing asked for", Options{}, "Subject: \xff\n\n\xff\n", "", ""},
		{"nothing to do", toAll, "Subject: a\n\nb\n", "", ""},
		{"empty", toAll, "", "", ""},
		{"no header", toAll, "\nbody\n", "", ""},
		{"header only", toAll, "Subject: a\n", "", ""},

		// Charsets.
		{"latin", toUTF8, mime + "Content-Type: text/plain; charset=iso-8859-1; format=flowed\nContent-Transfer-Encoding: 8bit\n\n\xfcb \nx\n",
			mime + "Content-Type: text/plain; charset=utf-8; format=flowed\nContent-Transfer-Encoding: quoted-printable\nX-Mailspine-Converted: utf-8\n\n=C3=BCb=20\nx\n", ""},
		{"base64 stays base64", toUTF8, mime + "Content-Type: text/plain; charset=\"koi8-r\"\nContent-Transfer-Encoding: BASE64\n\nwMA=\n",
			mime + "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\nX-Mailspine-Converted: utf-8\n\n0Y7Rjg==\n", ""},
		{"iso-2022-jp", toUTF8, mime + "Content-Type: text/plain; charset=ISO-2022-JP\n\n\x1b$B$3\x1b(B\n",
			mime + "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\nX-Mailspine-Converted: utf-8\n\n44GTDQo=\n", ""},
		{"ASCII in another charset gets the label", toUTF8, mime + "Content-Type: text/plain; charset=iso-8859-1\n\na\n",
			mime + "Content-Type: text/plain; charset=utf-8\nX-Mailspine-Converted: utf-8\n\na\n", ""},
		{"UTF-8 without a label", toUTF8, "Subject: a\n\n\u00fc\n", "Subject: a\nContent-Type: text/plain; charset=utf-8\nMIME-Version: 1.0\nX-Mailspine-Converted: utf-8\n\n\u00fc\n", ""},
		{"UTF-8 as us-ascii", toUTF8, mime + "Content-Type: text/plain; charset=us-ascii\nContent-Transfer-Encoding: quoted-printable\n\n=C3=BC\n",
			mime + "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\nX-Mailspine-Converted: utf-8\n\n=C3=BC\n", ""},
		{"octets that are nothing", toUTF8, mime + "Content-Type: text/plain\n\n\xfc\n", "", "no charset"},
		{"UTF-8 that is none", toUTF8, mime + "Content-Type: text/plain; charset=utf-8\n\n\xfc\n", "", ""},
		{"a charset that lies", toUTF8, mime + "Content-Type: text/plain; charset=euc-jp\n\n\xff\xa4\xb3\n",
			mime + "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\nX-Mailspine-Converted: utf-8\n\n77+944GTDQo=\n", ""},
		{"UTF-7", toUTF8, mime + "Content-Type: text/plain; charset=utf-7\n\n+ADw-script+AD4-\n", "", "utf-7"},
		{"unknown", toUTF8, mime + "Content-Type: text/plain; charset=\"x<\x01y\"\n\n\xfc\n", "", `"x<y"`},
		{"replacement", toUTF8, mime + "Content-Type: text/plain; charset=iso-2022-kr\n\n\x1b$)C\n", "", "iso-2022-kr"},
		{"broken base64", toUTF8, mime + "Content-Type: text/plain; charset=koi8-r\nContent-Transfer-Encoding: base64\n\nwM#A\n", "", "damaged"},
		{"broken quoted-printable", toUTF8, mime + "Content-Type: text/plain; charset=koi8-r\nContent-Transfer-Encoding: quoted-printable\n\n\x01\xc0\n", "", "damaged"},
		{"uuencode", toUTF8, mime + "Content-Type: text/plain; charset=koi8-r\nContent-Transfer-Encoding: x-uuencode\n\nx\n", "", "damaged or not known"},
		{"an attachment", toUTF8, mime + "Content-Type: text/csv; charset=koi8-r\nContent-Disposition: Attachment; filename=a\n\n\xc0\n", "", ""},
		{"PGP", toUTF8, mime + "Content-Type: text/plain; charset=koi8-r\n\n-----BEGIN PGP SIGNED MESSAGE-----\n\n\xc0\n", "", "PGP"},
		{"HTML that names its charset", toUTF8, mime + "Content-Type: text/html\n\n<meta charset=koi8-r>\xc0\n",
			mime + "Content-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\nX-Mailspine-Converted: utf-8\n\n<meta charset=3Dkoi8-r>=D1=8E\n", ""},

		// Header fields in UTF-8.
		{"encoded words", toUTF8, "From: =?koi8-r?Q?=C0?= <a@b>\nSubject: =?iso-2022-jp?b?GyRCJDM=?=\n =?iso-2022-jp?b?JDMbKEI=?= x =?utf-8?q?=C3=BC?=\n\n",
			"From: =?utf-8?b?0Y4=?= <a@b>\nSubject: =?utf-8?b?44GT44GT?= x =?utf-8?q?=C3=BC?=\nX-Mailspine-Converted: utf-8\n\n", ""},
		{"encoded words of nothing", toUTF8, "Subject: =?x-none?q?=C0?= =?koi8-r?b?#?= =?koi8-r?x?y?=\n\n", "", `field "Subject"`},
		{"RFC 2231", toUTF8, mime + "Content-Type: application/pdf; name*=koi8-r'ru'%C0.pdf\nContent-Disposition: attachment; filename*0*=koi8-r''%C0; filename*1=\" x\"\n\nx\n",
			mime + "Content-Type: application/pdf; name*=utf-8''%D1%8E.pdf\nContent-Disposition: attachment; filename*=utf-8''%D1%8E%20x\nX-Mailspine-Converted: utf-8\n\nx\n", ""},

		// Text.
		{"HTML", toText, mime + "Content-Type: text/html; charset=koi8-r; name=a.html\nContent-Disposition: inline; filename=a.html\nContent-ID: <x>\nDKIM-Signature: x\nARC-Seal: x\nAuthentication-Results: x\n\n<p>\xc0<script>no</script>\n",
			mime + "Content-Type: text/plain; charset=utf-8\nContent-ID: <x>\nAuthentication-Results: x\nContent-Transfer-Encoding: quoted-printable\nX-Mailspine-Converted: text\n\n=D1=8E\n", ""},
		{"HTML in UTF-7", toText, mime + "Content-Type: text/html; charset=utf-7\n\n+ADw-script+AD4-\n", "", "utf-7"},
		{"HTML attached", toText, mime + "Content-Type: text/html\nContent-Disposition: attachment\n\n<p>\n", "", ""},
		{"an alternative", toText, mime + "Subject: s\nContent-Type: multipart/alternative; boundary=b\n\n--b\nContent-Type: text/plain; charset=utf-8\nX-Part: p\n\nplain\n--b\nContent-Type: text/html\n\n<p>html\n--b--\n",
			mime + "Subject: s\nX-Mailspine-Converted: text\nContent-Type: text/plain; charset=utf-8\n\nplain", ""},
		{"an alternative without HTML", toText, mime + "Content-Type: multipart/alternative; boundary=b\n\n--b\n\nplain\n--b\nContent-Type: text/calendar\n\nx\n--b--\n", "", ""},
		{"an alternative with a calendar", toText, mime + "Content-Type: multipart/alternative; boundary=b\n\n--b\n\nplain\n--b\nContent-Type: text/html\n\n<p>html\n--b\nContent-Type: text/calendar\n\nx\n--b--\n",
			mime + "Content-Type: multipart/alternative; boundary=b\nX-Mailspine-Converted: text\n\n--b\n\nplain\n--b\nContent-Type: text/calendar\n\nx\n--b--\n", ""},
		{"an alternative with a blank text", toText, mime + "Content-Type: multipart/alternative; boundary=b\n\n--b\n\n \n\n--b\nContent-Type: text/html\n\n<p>html\n--b--\n",
			mime + "X-Mailspine-Converted: text\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\nhtml\n", ""},
		{"an alternative with pictures", toText, mime + "Content-Type: multipart/alternative; boundary=b\n\n--b\n\nplain\n--b\nContent-Type: multipart/related; boundary=c\n\n--c\nContent-Type: text/html\n\n<p>html\n--c\nContent-Type: image/png\n\nx\n--c--\n--b--\n",
			mime + "X-Mailspine-Converted: text\n\nplain", ""},
		{"an alternative with a file", toText, mime + "Content-Type: multipart/alternative; boundary=b\n\n--b\n\nplain\n--b\nContent-Type: multipart/related; type=\"text/html\"; boundary=c\n\n--c\nContent-Type: text/html\n\n<p>html\n--c\nContent-Type: application/pdf\n\nx\n--c--\n--b--\n",
			mime + "Content-Type: multipart/alternative; boundary=b\nX-Mailspine-Converted: text\n\n--b\n\nplain\n--b\nContent-Type: multipart/mixed; boundary=c\n\n--c\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\nhtml\n\n--c\nContent-Type: application/pdf\n\nx\n--c--\n--b--\n", ""},

		// Seven bits.
		{"8bit", to7Bit, mime + "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n\u00fc=\nFrom a\n-b\n.\n" + strings.Repeat("x", 80) + "\n",
			mime + "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\nX-Mailspine-Converted: 7bit\n\n=C3=BC=3D\n=46rom a\n=2Db\n=2E\n" + strings.Repeat("x", 75) + "=\nxxxxx\n", ""},
		{"binary", to7Bit, mime + "Content-Type: application/x\nContent-Transfer-Encoding: binary\n\n\x00\xff\r\n", mime + "Content-Type: application/x\nContent-Transfer-Encoding: base64\nX-Mailspine-Converted: 7bit\n\nAP8NDQo=\n", ""},
		{"mostly not ASCII", to7Bit, mime + "Content-Type: text/plain; charset=koi8-r\n\n\xc0\xc0\xc0\n", mime + "Content-Type: text/plain; charset=koi8-r\nContent-Transfer-Encoding: base64\nX-Mailspine-Converted: 7bit\n\nwMDADQo=\n", ""},
		{"NUL", to7Bit, "A: b\n\n\x00\n", "A: b\nContent-Transfer-Encoding: quoted-printable\nMIME-Version: 1.0\nX-Mailspine-Converted: 7bit\n\n=00\n", ""},
		{"a line that is no field", to7Bit, "Subject: a \u00fcb c \xff\nX-\u00fc: x\n\n", // it is the first of the body
			"Subject: a =?unknown-8bit?b?w7xiIGMg/w==?=\nContent-Transfer-Encoding: base64\nMIME-Version: 1.0\nX-Mailspine-Converted: 7bit\n\nWC3DvDogeA0KDQo=\n", ""},
		{"SMTPUTF8", to7Bit, "From: J\u00fcrg <j@example.org>, \"A, \u00c4\" <a@b\u00fccher.example>, b@example.org\nTo: <\u00fc@example.org>, Z <z@example.org>\nSubject: a \u00fcb c d e \u00fc\nX-Raw: a \xff\nMessage-ID: <\u00fc@x>\n\nx\n",
			"From: =?utf-8?b?SsO8cmc=?= <j@example.org>, =?utf-8?b?QSwgw4Q=?=\n <a@xn--bcher-kva.example>, b@example.org\n" +
				"To: =?utf-8?b?w7xAZXhhbXBsZS5vcmc=?=: ;, Z <z@example.org>\nSubject: a =?utf-8?b?w7xi?= c d e =?utf-8?b?w7w=?=\nX-Raw: a =?unknown-8bit?q?=FF?=\n" +
				"Downgraded-Message-ID: =?utf-8?b?PMO8QHg+?=\nX-Mailspine-Converted: 7bit\n\nx\n", "Downgraded-Message-ID"},
		{"parameters", to7Bit, mime + "Content-Type: application/x; name=\"\u00fc a.pdf\"; x=\"a\\\"b\"\nContent-Disposition: attachment; filename=\"\xff\"\nContent-Description: \u00fc\n\nx\n",
			mime + "Content-Type: application/x; name*=utf-8''%C3%BC%20a.pdf; x=\"a\\\"b\"\nContent-Disposition: attachment; filename*=''%FF\nContent-Description: =?utf-8?b?w7w=?=\nX-Mailspine-Converted: 7bit\n\nx\n", ""},
		{"multipart", to7Bit, mime + "Content-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: 8bit\n\npre\u00fc\n--b\nContent-Type: application/x\n\n\xff\n--b--\nepi\n",
			mime + "Content-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: 7bit\nX-Mailspine-Converted: 7bit\n\n--b\nContent-Type: application/x\nContent-Transfer-Encoding: base64\n\n/w==\n\n--b--\n", ""},
		{"a message in it", to7Bit, mime + "Content-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\nSubject: \u00fc\nDKIM-Signature: kept\n\n\u00fc\n",
			mime + "Content-Type: message/rfc822\nContent-Transfer-Encoding: 7bit\nX-Mailspine-Converted: 7bit\n\nSubject: =?utf-8?b?w7w=?=\nDKIM-Signature: kept\nContent-Transfer-Encoding: base64\nMIME-Version: 1.0\n\nw7wNCg==\n", ""},
		{"a report", to7Bit, mime + "Content-Type: message/delivery-status\n\nX: \xff\n", "", "not in seven bits"},
		{"quoted-printable that is none", to7Bit, mime + "Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\n\xff=\n",
			mime + "Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\nX-Mailspine-Converted: 7bit\n\n=FF", ""},

		// What is ambiguous, and what is broken.
		{"two types", toAll, mime + "Content-Type: text/html\nContent-Type: text/plain\n\n<p>\u00fc\n", "", "several"},
		{"a type that is none", toUTF8, mime + "Content-Type: text/html; charset=\"x\n\n\xfc\n", "", "cannot be read"},
		{"a parameter twice", toUTF8, mime + "Content-Type: text/plain; charset=koi8-r; charset=utf-8\n\n\xfc\n", "", "cannot be read"},
		{"base64 multipart", toUTF8, mime + "Content-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: base64\n\n--b\n\n--b--\n", "", "may not have"},
		{"multipart in it without boundary", toText, mime + "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: multipart/x\n\n--\n--b\nContent-Type: text/html\n\n<p>x\n--b",
			mime + "Content-Type: multipart/mixed; boundary=b\nX-Mailspine-Converted: text\n\n--b\nContent-Type: multipart/x\n\n--\n--b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\nx\n\n--b\n\n--b--\n", "part 1"},
		{"no end", toText, mime + "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/html\n\n<p>x\n",
			mime + "Content-Type: multipart/mixed; boundary=b\nX-Mailspine-Converted: text\n\n--b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\nx\n\n--b--\n", ""},
		{"an outer boundary ends all", toText, mime + "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: multipart/mixed; boundary=c\n\n--c\nContent-Type: text/html\n\n<p>x\n--b--\n",
			mime + "Content-Type: multipart/mixed; boundary=b\nX-Mailspine-Converted: text\n\n--b\nContent-Type: multipart/mixed; boundary=c\n\n--c\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\nx\n\n--c--\n--b--\n", ""},
		{"a part without an empty line", toText, mime + "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/html\n--b\n<p>x\n--b--\n",
			mime + "Content-Type: multipart/mixed; boundary=b\nX-Mailspine-Converted: text\n\n--b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n" + emptyView + "\n\n--b\n<p>x\n--b--\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := crlf(c.out)
			if c.out == "" {
				want = crlf(c.in)
			}
			got, res := derive(t, c.o, crlf(c.in))
			if got != want {
				t.Errorf("%q becomes\n%q, want\n%q", crlf(c.in), got, want)
			}
			notes := ""
			for _, n := range res.Notes {
				notes += n.String() + "\n"
			}
			if !strings.Contains(notes, c.notes) || c.notes == "" && notes != "" && c.o != to7Bit {
				t.Errorf("notes: %q, want %q", notes, c.notes)
			}
		})
	}
}

// The view goes before the HTML, which stays as it is.
func TestKeepHTML(t *testing.T) {
	html := crlf("Content-Type: text/html; charset=koi8-r\nContent-ID: <x>\n\n<p>\xc0\n")
	got, res := derive(t, addText, crlf("Subject: s\nMIME-Version: 1.0\n")+html)
	_, rest, ok := strings.Cut(got, "boundary=\"")
	b, _, ok2 := strings.Cut(rest, "\"")
	if !ok || !ok2 || len(res.Done) != 1 {
		t.Fatalf("%q, %+v", got, res)
	}
	want := crlf("Subject: s\nMIME-Version: 1.0\nX-Mailspine-Converted: text\nContent-Type: multipart/alternative;\n boundary=\""+b+"\"\n\n--"+b+
		"\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n=D1=8E\n\n--"+b+"\n") + html + crlf("\n--"+b+"--\n")
	if got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}

	related := crlf("Content-Type: multipart/related; boundary=r\n\n--r\nContent-Type: text/html\n\n<p>html\n--r\nContent-Type: image/png\nContent-ID: <i>\n\npng\n--r--\n")
	got, _ = derive(t, addText, crlf("MIME-Version: 1.0\n")+related)
	if !strings.Contains(got, "multipart/alternative") || !strings.Contains(got, crlf("\n\nhtml\n\n--=_mailspine_")) || !strings.Contains(got, related) {
		t.Errorf("related: %q", got)
	}
	for _, in := range []string{
		"MIME-Version: 1.0\nContent-Type: multipart/alternative; boundary=b\n\n--b\n\nplain\n--b\nContent-Type: text/html\n\n<p>html\n--b--\n",
		"MIME-Version: 1.0\nContent-Type: multipart/alternative; boundary=b\n\n--b\n\nplain\n--b\nContent-Type: multipart/related; boundary=c\n\n--c\nContent-Type: text/html\n\n<p>html\n--c--\n--b--\n",
	} {
		if got, res := derive(t, addText, crlf(in)); res.Changed {
			t.Errorf("there is a text already: %q", got)
		}
	}
}

// What a signature covers comes out octet for octet, and what is around it is converted.
func TestSigned(t *testing.T) {
	for _, sealed := range []string{
		"Content-Type: multipart/signed; boundary=s; protocol=\"application/pgp-signature\"\n\n--s\nContent-Type: text/html; charset=koi8-r\n\n<p>\xc0\n--s\nContent-Type: message/rfc822\n\nSubject: \u00fc\n\n\xff\n--s\nContent-Type: application/pgp-signature\n\nsig\n--s--\n",
		"Content-Type: multipart/encrypted; boundary=s\n\n--s\nContent-Type: application/pgp-encrypted\n\nVersion: 1\n--s\nContent-Type: text/html\n\n<p>\xc0\n--s--\n",
		"Content-Type: application/pkcs7-mime; smime-type=signed-data\n\n\x00\xff\n",
	} {
		sealed = crlf(sealed)
		_, body, _ := strings.Cut(sealed, "\r\n\r\n")
		in := crlf("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n") + sealed + crlf("\n--b\nContent-Type: text/html\n\n<p>footer\n--b--\n")
		got, res := derive(t, toAll, in)
		if !strings.Contains(got, crlf("--b\n")+sealed+crlf("\n--b\n")) {
			t.Errorf("%q is in %q no more", sealed, got)
		}
		if !strings.Contains(got, crlf("\n\nfooter\n")) || !res.EightBit || len(res.Notes) != 1 || res.Notes[0].Part != "1" {
			t.Errorf("%q, %+v", got, res)
		}
		got, res = derive(t, toAll, "Subject: \xc3\xbc\r\n"+sealed)
		if !strings.HasSuffix(got, body) || !res.Changed || !strings.HasPrefix(got, "Subject: =?utf-8?b?w7w=?=\r\n") {
			t.Errorf("%q, %+v", got, res)
		}
	}
}

func TestBounds(t *testing.T) {
	deep := ""
	for i := range MaxDepth + 1 {
		deep += "Content-Type: multipart/mixed; boundary=b" + strings.Repeat("x", i) + "y\n\n--b" + strings.Repeat("x", i) + "y\n"
	}
	for _, c := range []struct {
		name, in string
		want     error
	}{
		{"depth", deep, ErrTooDeep},
		{"messages", strings.Repeat("Content-Type: message/rfc822\n\n", 100_000), ErrTooDeep},
		{"parts", "Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n", MaxParts+1), ErrTooManyParts},
		{"header", "A: " + strings.Repeat("x\n ", mailspine.MaxHeader/3) + "\n\n", ErrHeaderTooLarge},
		{"headers", "Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\nA: "+strings.Repeat("x\n ", 1000)+"\n\n", 500), ErrHeaderTooLarge},
		{"fields", strings.Repeat("A:\n", maxFields+1), ErrHeaderTooLarge},
		{"field line", "A: " + strings.Repeat("x", 100<<10) + "\n\n", ErrHeaderTooLarge},
		{"no boundary", "Content-Type: multipart/mixed\n\n--b\n", ErrMalformed},
		{"boundary that does not occur", "Content-Type: multipart/mixed; boundary=b\n\n--c\n", ErrMalformed},
		{"the same boundary", "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: multipart/mixed; boundary=b\n\n--b\n", ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, res := derive(t, toAll, crlf(c.in))
			if !errors.Is(res.Problem, c.want) || res.Changed {
				t.Errorf("%+v, want %v", res, c.want)
			}
		})
	}
}

// A result out of all proportion is none.
func TestTooLarge(t *testing.T) {
	in := "Content-Type: text/html\r\n\r\n" + strings.Repeat("<blockquote>", 8) + strings.Repeat("<p>x", 120_000)
	got, res := derive(t, toText, in)
	if !errors.Is(res.Problem, ErrTooLarge) || res.Changed || got != in {
		t.Errorf("%+v", res)
	}
	if _, err := toText.Write(context.Background(), io.Discard, mailspine.StringContent(in)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Write: %v", err)
	}
}

// A message with bare LF keeps them; where CRLF occurs as well, LF is an octet like others.
func TestLineFeeds(t *testing.T) {
	const in = "MIME-Version: 1.0\nContent-Type: text/plain; charset=koi8-r\n\na xxxxxx \xc0\rb\n"
	const head = "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\nX-Mailspine-Converted: utf-8\n\n"
	got, _ := derive(t, toAll, in)
	if want := head + "a xxxxxx =D1=8E=0Db\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	got, _ = derive(t, toAll, in+"\r\n")
	if want := "MIME-Version: 1.0\n" + crlf(strings.TrimPrefix(head, "MIME-Version: 1.0\n")) + "a xxxxxx =D1=8E=0Db=0A\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// Wherever the reader cuts a line, its end is one.
	for shift := range 4 {
		long := strings.Repeat("x", 64<<10-4+shift)
		got, _ := derive(t, toText, crlf("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: image/x\n\n"+long+"\n--b\nContent-Type: text/html\n\nx\n--b--\n"))
		if !strings.Contains(got, "\r\n\r\n"+long+"\r\n--b\r\n") {
			t.Errorf("cut at %d: %.300q", shift, got)
		}
	}
}

// The derived message is on disk when it is large, and is gone after Close.
func TestSpool(t *testing.T) {
	dir := t.TempDir()
	o := toUTF8
	o.Stager = &mailspine.SpoolStager{Dir: dir}
	in := "Content-Type: text/plain; charset=koi8-r\r\n\r\n" + strings.Repeat("\xc0\r\n", 100_000)
	d, err := o.Convert(context.Background(), mailspine.StringContent(in))
	if err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(dir + "/*"); len(files) != 1 {
		t.Errorf("while it is there: %q", files)
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if files, _ := filepath.Glob(dir + "/*"); len(files) != 0 {
		t.Errorf("after Close: %q", files)
	}
	o.Stager = &mailspine.SpoolStager{Dir: dir + "/missing"}
	if _, err := o.Convert(context.Background(), mailspine.StringContent(in)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a place: %v", err)
	}
}

// faulty is a message whose reader fails at some octet.
type faulty struct {
	mailspine.Content
	at  int64
	err error
}

func (f faulty) Open(ctx context.Context) (io.ReadCloser, error) {
	r, err := f.Content.Open(ctx)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, f.at), faultyReader{f.err}), r}, nil
}

type faultyReader struct{ err error }

func (r faultyReader) Read([]byte) (int, error) { return 0, r.err }

// A reader that fails is no damaged message: the error comes out, whatever is being read.
func TestFaultyReader(t *testing.T) {
	in := crlf("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/html; charset=koi8-r\nContent-Transfer-Encoding: base64\n\nwMDA\n--b\nContent-Type: text/plain; charset=koi8-r\nContent-Transfer-Encoding: quoted-printable\n\n=C0\n--b--\n")
	gone := errors.New("gone")
	for at := range int64(len(in)) {
		for _, fault := range []error{gone, io.EOF} {
			d, err := toAll.Convert(context.Background(), faulty{mailspine.StringContent(in), at, fault})
			if err == nil {
				t.Errorf("at %d: %+v", at, d.Result)
			} else if fault == gone && !errors.Is(err, gone) {
				t.Errorf("at %d: %v", at, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := toAll.Convert(ctx, mailspine.StringContent(in)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// counted is a message that counts what is read of it, and can be read from the middle or not.
type counted struct {
	mailspine.Content
	n *int64
}

func (c counted) Open(ctx context.Context) (io.ReadCloser, error) {
	r, err := c.Content.Open(ctx)
	return struct {
		io.Reader
		io.Closer
	}{io.TeeReader(r, countWriter{c.n}), r}, err
}

type countWriter struct{ n *int64 }

func (w countWriter) Write(p []byte) (int, error) { *w.n += int64(len(p)); return len(p), nil }

// How often a message is read does not depend on what is in it.
func TestReading(t *testing.T) {
	alternative := "--b\nContent-Type: multipart/alternative; boundary=c\n\n--c\nContent-Type: text/html\n\n<p>x\n--c\n\n\n--c--\n"
	in := crlf("Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: image/x\n\n" + strings.Repeat("x", 900<<10) + "\n" + strings.Repeat(alternative, 300) + "--b--\n")
	for _, o := range []Options{toAll, addText} {
		// One that cannot be read from the middle is left alone rather than read hundreds of times.
		n := int64(0)
		d, err := o.Convert(context.Background(), counted{mailspine.StringContent(in), &n})
		if err != nil || !errors.Is(d.Problem, ErrTooLarge) || n > 40*int64(len(in)) {
			t.Errorf("%s: %d octets read, %v, %v", &o, n/int64(len(in)), d, err)
		}
		// One with fields before it can be.
		want, res := derive(t, o, in)
		if !res.Changed {
			t.Fatalf("%+v", res)
		}
		c, err := mailspine.Edit(context.Background(), mailspine.StringContent("Drop: x\r\n"+in), mailspine.HeaderEdit{Drop: func(f mailspine.HeaderField) bool { return f.Is("Drop") }})
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if res, err := o.Write(context.Background(), &out, c); err != nil || !res.Changed || out.String() != want {
			t.Errorf("%s: %+v, %v", &o, res, err)
		}
	}
	// A small number of steps back is no matter.
	n := int64(0)
	small := crlf("Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat(alternative, 5) + "--b--\n")
	d, err := toAll.Convert(context.Background(), counted{mailspine.StringContent(small), &n})
	if err != nil || !d.Changed {
		t.Errorf("%+v, %v", d, err)
	}
	d.Close()
}

// endless is a large message that is made while it is read, and looks at the heap meanwhile.
type endless struct {
	head, unit string
	size       int64
	peak       *uint64
}

func (e endless) Size() int64 { return e.size }
func (e endless) Open(context.Context) (io.ReadCloser, error) {
	units := (64<<10 + len(e.unit) - 1) / len(e.unit)
	return io.NopCloser(&endlessReader{e: e, block: strings.Repeat(e.unit, units)}), nil
}

type endlessReader struct {
	e     endless
	block string
	pos   int64
	next  int64
}

func (r *endlessReader) Read(p []byte) (int, error) {
	if r.pos >= r.e.size {
		return 0, io.EOF
	}
	if r.pos >= r.next {
		r.next += 1 << 20
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		*r.e.peak = max(*r.e.peak, m.HeapInuse)
	}
	n := 0
	if h := int64(len(r.e.head)); r.pos < h {
		n = copy(p, r.e.head[r.pos:])
	} else {
		n = copy(p, r.block[(r.pos-h)%int64(len(r.block)):])
	}
	n = int(min(int64(n), r.e.size-r.pos))
	r.pos += int64(n)
	return n, nil
}

// Memory does not depend on the size of the message, whatever it is full of.
func TestMemory(t *testing.T) {
	size := int64(4 << 20)
	if os.Getenv("MAILSPINE_SOAK") == "1" {
		size = 100 << 20
	}
	for i, c := range []struct{ name, head, unit string }{
		{"text", "text/plain; charset=koi8-r\r\n\r\n", "\xc0\xc1 text\r\n"},
		{"one line", "text/plain; charset=koi8-r\r\n\r\n", "\xc0"},
		{"one line of UTF-8", "text/plain\r\n\r\n", "\u20ac"},
		{"html", "text/html; charset=koi8-r\r\n\r\n", "<p>\xc0 <a href='https://a.example/'>text</a></p>\r\n"},
		{"html without tags", "text/html; charset=koi8-r\r\n\r\n", "\xc0"},
		{"html tags", "text/html\r\n\r\n", "<div>"},
		{"html lists", "text/html\r\n\r\n", "<ol>"},
		{"html entities", "text/html\r\n\r\n", "&amp;"},
		{"html attribute", "text/html\r\n\r\n<a href='", "x"},
		{"html comment", "text/html\r\n\r\n<!--", "x"},
		{"html script", "text/html\r\n\r\n<script>", "x</"},
		{"html link", "text/html\r\n\r\n<a href='https://a.example/'>", "text "},
		{"html pre", "text/html\r\n\r\n<pre>", " x"},
		{"html base64", "text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n", "PHA+"},
		{"html quoted-printable", "text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n", "=3Cp>x=\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if (testing.Short() || raceEnabled) && i%5 > 0 {
				t.Skip("needs a run without -short and -race: one case in five runs there, since all take a minute")
			}
			defer debug.SetGCPercent(debug.SetGCPercent(10)) // so that the heap is hardly more than what is in use
			runtime.GC()
			var before runtime.MemStats
			runtime.ReadMemStats(&before)
			peak := uint64(0)
			head := "MIME-Version: 1.0\r\nContent-Type: " + c.head
			msg := endless{head, c.unit, size + int64(len(head)), &peak} // a whole number of base64's groups
			res, err := toAll.Write(context.Background(), io.Discard, msg)
			if err != nil || res.Problem != nil || !res.Changed {
				t.Errorf("%+v, %v", res, err)
			}
			if grown := int64(peak) - int64(before.HeapInuse); grown > 3<<20 {
				t.Errorf("the heap grew by %d KiB", grown>>10)
			}
		})
	}
}
