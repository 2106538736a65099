package imap

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/google/go-cmp/cmp"
)

const mixed = "From: a@b.example\r\nContent-Type: multipart/mixed; boundary=\"out\"\r\n\r\npreamble\r\n--out\r\nContent-Type: text/plain; charset=utf-8\r\n\r\none\r\n--out\r\n" +
	"Content-Type: multipart/alternative; boundary=outer\r\n\r\n--outer\r\n\r\nplain\r\n--outer\r\nContent-Type: text/html\r\n\r\n<p>\r\n--outer--\r\nepilogue\r\n--out\r\n" +
	"Content-Type: message/rfc822\r\nContent-Disposition: attachment; filename=\"x.eml\"\r\n\r\nSubject: inner\r\nContent-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n\r\ndeep\r\n--in--\r\n--out--\r\nend\r\n"

// text returns a section's octets.
func text(t testing.TB, msg string, item *imap.FetchItemBodySection) string {
	t.Helper()
	p, err := scan(strings.NewReader(msg), int64(len(msg)), true)
	if err != nil {
		t.Fatal(err)
	}
	r, n := p.section(item).open(strings.NewReader(msg), item.Partial)
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil || int64(b.Len()) != n {
		t.Fatalf("%d octets, not %d, %v", b.Len(), n, err)
	}
	return b.String()
}

func TestSections(t *testing.T) {
	h, m, txt := imap.PartSpecifierHeader, imap.PartSpecifierMIME, imap.PartSpecifierText
	for _, tt := range []struct {
		msg  string
		part []int
		spec imap.PartSpecifier
		want string
	}{
		{mixed, nil, "", mixed},
		{mixed, []int{1}, "", "one"},
		{mixed, []int{1}, m, "Content-Type: text/plain; charset=utf-8\r\n\r\n"},
		{mixed, []int{2, 1}, "", "plain"},
		{mixed, []int{2, 1}, m, "\r\n"},
		{mixed, []int{2, 2}, "", "<p>"},
		{mixed, []int{3}, h, "Subject: inner\r\nContent-Type: multipart/mixed; boundary=in\r\n\r\n"},
		{mixed, []int{3}, txt, "--in\r\n\r\ndeep\r\n--in--"},
		{mixed, []int{3, 1}, "", "deep"},
		{mixed, []int{4}, "", ""},
		{mixed, []int{1, 1}, "", ""},
		{mixed, []int{2, 3}, "", ""},
		{mixed, []int{0}, "", ""},
		{mixed, []int{1}, h, ""},
		{letter, []int{1}, "", "Hello Ann,\r\nhow are you?\r\n"},
		{letter, []int{1, 1}, "", ""},
		{"Subject: header only\r\n", nil, h, "Subject: header only\r\n"},
		{"Subject: header only\r\n", nil, txt, ""},
		{"\r\nno header", nil, txt, "no header"},
		{"", nil, "", ""},
		{"Content-Type: multipart/mixed; boundary=x\r\n\r\nno boundary\r\n", []int{1}, "", "no boundary\r\n"},
		{"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\na\r\n--x\r\n\r\nno end", []int{2}, "", "no end"},
		{"Content-Type: multipart/mixed; boundary=x\n\n--x\n\na\n--x--\n", []int{1}, "", "a"},
		{"Content-Type: multipart/digest; boundary=x\r\n\r\n--x\r\n\r\nSubject: d\r\n\r\nbody\r\n--x--\r\n", []int{1}, txt, "body"},
	} {
		if got := text(t, tt.msg, &imap.FetchItemBodySection{Part: tt.part, Specifier: tt.spec}); got != tt.want {
			t.Errorf("%.30q %v %s: %q, not %q", tt.msg, tt.part, tt.spec, got, tt.want)
		}
	}
}

// On ordinary messages we say what go-imap's own functions say.
func TestStructureAgrees(t *testing.T) {
	for _, msg := range []string{letter, mixed, "Subject: x\r\n\r\n"} {
		p, err := scan(strings.NewReader(msg), int64(len(msg)), true)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := p.structure(strings.NewReader(msg))
		if err != nil {
			t.Fatal(err)
		}
		theirs := imapserver.ExtractBodyStructure(strings.NewReader(msg))
		opt := cmp.Options{cmp.Transformer("params", func(m map[string]string) string { return fmt.Sprint(m) }), cmp.Transformer("lang", func(s []string) string { return fmt.Sprint(s) })}
		if d := cmp.Diff(theirs, ours, opt); d != "" {
			t.Errorf("%.30q: %s", msg, d)
		}
		for _, item := range []*imap.FetchItemBodySection{
			{}, {Specifier: imap.PartSpecifierHeader}, {Specifier: imap.PartSpecifierText}, {Specifier: imap.PartSpecifierHeader, HeaderFields: []string{"subject", "FROM"}},
			{Specifier: imap.PartSpecifierHeader, HeaderFieldsNot: []string{"subject"}}, {Part: []int{1}}, {Part: []int{2, 1}}, {Part: []int{3, 1}},
			{Partial: &imap.SectionPartial{Offset: 3, Size: 10}}, {Partial: &imap.SectionPartial{Offset: 1 << 40, Size: 1 << 40}},
		} {
			if got, want := text(t, msg, item), string(imapserver.ExtractBodySection(strings.NewReader(msg), item)); got != want {
				t.Errorf("%.30q %+v: %q, not %q", msg, item, got, want)
			}
		}
	}
}

// nested makes a multipart in a multipart, so many times.
func nested(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
	}
	return b.String() + "\r\nx\r\n"
}

func TestStructureBounds(t *testing.T) {
	wide := "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\n\r\nx\r\n", 5000) + "--b--\r\n"
	for name, msg := range map[string]string{"deep": nested(5000), "wide": wide, "long line": "Subject: " + strings.Repeat("x", 1<<20), "long header": strings.Repeat("X: y\r\n", 1<<18)} {
		p, err := scan(strings.NewReader(msg), int64(len(msg)), true)
		if err != nil {
			t.Fatal(err)
		}
		depth, parts := 0, 0
		var walk func(p *part, d int)
		walk = func(p *part, d int) {
			depth, parts = max(depth, d), parts+1
			for _, c := range p.children {
				walk(c, d+1)
			}
			if p.message != nil {
				walk(p.message, d+1)
			}
		}
		walk(p, 0)
		if depth > maxDepth || parts > maxParts+1 {
			t.Errorf("%s: %d deep, %d parts", name, depth, parts)
		}
		if _, err := p.structure(strings.NewReader(msg)); err != nil {
			t.Error(err)
		}
	}
}

// Any octets are a message, with parts that are inside of each other.
func FuzzStructure(f *testing.F) {
	for _, s := range []string{letter, mixed, nested(3), "", "\n", "Content-Type: message/rfc822\n\nContent-Type: message/rfc822\n\n", "Content-Type: multipart/x; boundary=\"\"\r\n\r\n--\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		r := bytes.NewReader(msg)
		p, err := scan(r, int64(len(msg)), true)
		if err != nil {
			t.Fatal(err)
		}
		var walk func(p *part, from, to int64)
		walk = func(p *part, from, to int64) {
			if p.start < from || p.body < p.start || p.end < p.body || p.end > to {
				t.Fatalf("a part from %d over %d to %d, inside of %d to %d", p.start, p.body, p.end, from, to)
			}
			at := p.body
			for _, c := range p.children {
				walk(c, at, p.end)
				at = c.end
			}
			if p.message != nil {
				walk(p.message, p.body, p.end)
			}
		}
		walk(p, 0, int64(len(msg)))
		if _, err := p.structure(r); err != nil {
			t.Fatal(err)
		}
		p.envelope()
		for _, path := range [][]int{nil, {1}, {2}, {1, 1}, {1, 2, 3}} {
			for _, spec := range []imap.PartSpecifier{"", imap.PartSpecifierHeader, imap.PartSpecifierMIME, imap.PartSpecifierText} {
				text(t, string(msg), &imap.FetchItemBodySection{Part: path, Specifier: spec, Partial: &imap.SectionPartial{Offset: 1, Size: 1 << 62}})
			}
		}
	})
}
