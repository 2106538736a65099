package convert

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
)

func TestParseMediaType(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"text/plain", "text/plain"},
		{" TEXT / HTML ; Charset = \"utf-8\" ; ", "text/html; charset=utf-8"},
		{"text/plain; (comment (nested) \\) ;x=y) charset=utf-8 (last)", "text/plain; charset=utf-8"},
		{"a/b; name=a b.pdf; x=\"c;\\\"d\\\\\"", "a/b; name=\"a b.pdf\"; x=\"c;\\\"d\\\\\""},
		{`a/b; name="C:\dir\x"`, `a/b; name="C:\\dir\\x"`},
		{"a/b; boundary=\"=_x?y\"", "a/b; boundary=\"=_x?y\""},
		{"a/b; x=\"a\x01b\"", "a/b; x=ab"},
		{"a/b;;;x=1;", "a/b; x=1"},
		{"a/b; x=", "a/b; x=\"\""},
		{"attachment; filename=x", "attachment; filename=x"},
		{"", ""}, {"/b", ""}, {"a/", ""}, {"a/b c", ""}, {"a/b; x", ""}, {"a/b; x=1; X=2", ""}, {"a/b; x=\"y", ""}, {"a/b; =y", ""}, {"a,b/c", ""},
		{"a/b" + strings.Repeat("; x=", 200), ""},
	} {
		m, ok := parseMediaType(c.in)
		got := ""
		if ok {
			got = strings.TrimSuffix(strings.TrimPrefix(string(m.field("X", "\n")), "X: "), "\n")
		}
		if got != c.out {
			t.Errorf("%q is read as %q, want %q", c.in, got, c.out)
		}
	}
}

func FuzzMediaType(f *testing.F) {
	for _, s := range []string{"text/plain; charset=\"utf-8\"", "a/b; n*0*=koi8-r''%C0; n*1=x; n*2*=%C1", "a; (c) x=y z", "a;n*0*=koi8-r''%C0=koi8-r;n*=C1", "a/b; name=\"\xc3\xbc\"; name*=utf-8''%C3%BC", "a/b; x*=utf-8'de'%C3%BC; \xc3\xbc=\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		m, ok := parseMediaType(in)
		if !ok {
			return
		}
		again := func(m mediaType) mediaType {
			h := mailspine.HeaderField{Name: "X", Raw: m.field("X", "\r\n")}
			n, ok := parseMediaType(h.Value())
			if !ok {
				t.Fatalf("%q is written as %q, which cannot be read", in, h.Raw)
			}
			return n
		}
		if n := again(m); n.typ != m.typ || n.sub != m.sub || len(n.params) != len(m.params) {
			t.Fatalf("%q is %+v, and then %+v", in, m, n)
		}
		r, changed := m.recode()
		if _, more := again(r).recode(); changed && more {
			t.Fatalf("%q is recoded twice", in)
		}
		if s := m.sevenBit(); !isASCII(string(s.field("X", "\r\n"))) {
			t.Fatalf("%q is written as %q", in, s.field("X", "\r\n"))
		}
	})
}

func TestRecodeWords(t *testing.T) {
	for _, c := range []struct{ in, out, unknown string }{
		{"a =?koi8-r?Q?=C0_x?= b", "a =?utf-8?q?=D1=8E_x?= b", ""},
		{"=?KOI8-R*ru?b?wMA?=", "=?utf-8?b?0Y7Rjg==?=", ""},
		{"=?koi8-r?q?=C0?= =?koi8-r?q?=C0?=\r\n =?koi8-r?b?wA==?=", "=?utf-8?b?0Y7RjtGO?=", ""},
		{"=?koi8-r?q?=C0?= =?utf-8?q?x?= =?koi8-r?q?=C0?=", "=?utf-8?b?0Y4=?= =?utf-8?q?x?= =?utf-8?b?0Y4=?=", ""},
		{"=?gb2312?b?xOPK?= =?gb2312?b?xw==?=", "=?utf-8?b?5L2g5piv?=", ""}, // some senders cut characters in two
		{"(=?koi8-r?q?=C0?=)", "(=?utf-8?b?0Y4=?=)", ""},
		{"=?koi8-r?q?=C0=?=", "=?koi8-r?q?=C0=?=", ""},
		{"=?koi8-r?q?a b?=", "=?koi8-r?q?a b?=", ""},
		{"=?euc-jp?q?=FF?=", "=?euc-jp?q?=FF?=", "euc-jp"},
		{"=?utf-7?q?+AGE-?=", "=?utf-7?q?+AGE-?=", "utf-7"},
		{"=?unknown-8bit?q?=FF?= =?us-ascii?q?x?=", "=?unknown-8bit?q?=FF?= =?us-ascii?q?x?=", ""},
		{"=?=?=?koi8-r?q?=C0?=?=", "=?=?=?utf-8?b?0Y4=?=?=", ""},
		{"=?", "=?", ""}, {"=??q?x?=", "=??q?x?=", ""},
	} {
		out, unknown := recodeWords(c.in, "\r\n")
		if out != c.out || strings.Join(unknown, " ") != c.unknown {
			t.Errorf("%q becomes %q (%q), want %q (%q)", c.in, out, unknown, c.out, c.unknown)
		}
	}
}

// A header block of one kind of trouble only; what takes quadratic time takes minutes here.
func TestHostileHeaders(t *testing.T) {
	for _, unit := range []string{
		"=?koi8-r?q?=C0?=\r\n ", "=?koi8-r?q?=C0?= x\r\n ", "=?a?q?x", "=?x-none?q?x?=\r\n ", "\xc3\xbc\r\n ", "\xff x y z w\r\n ", "(", "\"", "a@b,\r\n ", "\xc3\xbc@\xc3\xbc,\r\n ", "<\xff>,\r\n ", "x\r\n ", " \r\n ",
	} {
		for _, name := range []string{"Subject", "To", "Content-Type", "Message-ID"} {
			in := name + ": " + strings.Repeat(unit, 120_000/len(unit)) + "\r\n\r\nx"
			derive(t, toAll, in)
		}
	}
	for _, unit := range []string{"; x*0*=koi8-r''%C0", "; a", "%C0", "\xc3\xbc"} {
		derive(t, toAll, "Content-Type: a/b; n*=koi8-r''"+strings.Repeat(unit, 50_000/len(unit))+"\r\n\r\nx")
		derive(t, toAll, "Content-Type: a/b; n=\""+strings.Repeat(unit, 50_000/len(unit))+"\"\r\n\r\nx")
	}
}

func TestRefold(t *testing.T) {
	long := strings.Repeat("x", 600)
	for _, c := range []struct{ in, out string }{
		{"A: b\r\n", "A: b\r\n"},
		{"A: " + long + " " + long + "\r\n", "A: " + long + "\r\n " + long + "\r\n"},
		{"A: " + long + long + " " + long + "\r\n", "A:\r\n " + long + long + "\r\n " + long + "\r\n"},
		{"A: " + long + long + "\r\n", "A:\r\n " + long + long + "\r\n"},
		{"A:" + long + long + " \r\n", "A:" + long + long + " \r\n"},
	} {
		if got := refold([]byte(c.in), "\r\n"); string(got) != c.out {
			t.Errorf("%.10q... of %d octets becomes %q", c.in, len(c.in), got)
		}
	}
}

func TestLookupCharset(t *testing.T) {
	for _, label := range []string{"utf-7", "UTF-7", "csUTF7", "unicode-1-1-utf-7", "iso-2022-kr", "iso-2022-cn", "x-user-defined", "replacement", "unknown-8bit", "binary", "x", strings.Repeat("x", 1000), "utf-8\x00"} {
		if c, err := lookupCharset(label); err == nil {
			t.Errorf("%.20q is %v", label, c.enc)
		}
	}
	for _, label := range []string{"", "US-ASCII", "utf8", "UTF-8", " utf-8 "} {
		if c, err := lookupCharset(label); err != nil || c.enc != nil || !c.ascii {
			t.Errorf("%q is %+v, %v", label, c, err)
		}
	}
	for label, want := range map[string]charset{"iso-8859-1": {ascii: true}, "cp1251": {ascii: true}, "gb2312": {ascii: true, wide: true}, "iso-2022-jp": {wide: true}, "utf-16": {wide: true}, "utf-32": {wide: true}, "ibm037": {}} {
		c, err := lookupCharset(label)
		if err != nil || c.enc == nil || c.ascii != want.ascii || c.wide != want.wide {
			t.Errorf("%q is %+v, %v", label, c, err)
		}
	}
}

func TestExtendeds(t *testing.T) {
	m, ok := parseMediaType("a/b; n*1*=%C1; n*0*=koi8-r'ru'%C0; n*2=\"%C0\"; o*0=x; o*1=y; p*=utf-8''%C3%BC; q*=x")
	if !ok {
		t.Fatal("cannot be read")
	}
	r, changed := m.recode()
	if !changed {
		t.Error("not changed")
	}
	if got := r.get("o"); got != "xy" {
		t.Errorf("o is %q", got)
	}
	i := slices.IndexFunc(r.params, func(p param) bool { return p.name == "n*" })
	if i != 0 || r.params[i].value != "utf-8''%D1%8E%D0%B0%25C0" {
		t.Errorf("%q", r.field("X", "\n"))
	}
	if bytes.Contains(r.field("X", "\n"), []byte("koi8")) {
		t.Errorf("%q", r.field("X", "\n"))
	}
}
