package imap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// shape writes what a part is made of, on one line.
func shape(msg string, p *part) string {
	switch {
	case len(p.children) > 0:
		var s []string
		for _, c := range p.children {
			s = append(s, shape(msg, c))
		}
		return p.subtype + "(" + strings.Join(s, " ") + ")"
	case p.message != nil:
		return "message<" + shape(msg, p.message) + ">"
	}
	return fmt.Sprintf("%s/%s:%q", p.kind, p.subtype, msg[p.body:p.end])
}

func TestShapes(t *testing.T) {
	const mixed = "Content-Type: multipart/mixed; boundary=x\r\n\r\n"
	for _, tt := range []struct{ msg, want string }{
		{mixed + "--x\r\n\r\na\r\n--x--\r\n", `mixed(text/plain:"a")`},
		{mixed + "\r\n--x\r\n\r\na\r\n\r\n--x--", `mixed(text/plain:"a\r\n")`},                                // one line end belongs to the boundary
		{mixed + "before --x\r\n--x\r\n\r\na\r\n--x--\r\n--x\r\n\r\nb\r\n--x--\r\n", `mixed(text/plain:"a")`}, // an epilogue that looks like a part
		{mixed + "--x\r\n\r\n--x\r\n\r\n--x--\r\n", `mixed(text/plain:"" text/plain:"")`},                     // nothing between
		{mixed + "--x\r\n--x\r\n--x--\r\n", `mixed(text/plain:"" text/plain:"")`},                             // not even a header
		{mixed + "--x\r\nSubject: y\r\n--x--\r\n", `mixed(text/plain:"")`},                                    // a header without end
		{mixed + "--x  \t\r\n\r\na\r\n--x-- \r\n", `mixed(text/plain:"a")`},                                   // padding
		{mixed + "--xy\r\n\r\na\r\n--x-y\r\n", `multipart/mixed:"--xy\r\n\r\na\r\n--x-y\r\n"`},                // longer ones are others
		{mixed + " --x\r\n\r\na\r\n", `multipart/mixed:" --x\r\n\r\na\r\n"`},
		{mixed + "--x--\r\n\r\na", `multipart/mixed:"--x--\r\n\r\na"`},
		{mixed + "--x\n\na\n--x\n\nb\n--x--\n", `mixed(text/plain:"a" text/plain:"b")`},
		{mixed + "--x\r\n\r\na\n--x\r\n\r\nb\r--x\r\n\r\n", `mixed(text/plain:"a" text/plain:"b\r--x\r\n\r\n")`},
		{mixed + "--x", `mixed(text/plain:"")`},
		// The inner boundary begins with the outer one; the inner part has no end.
		{mixed + "--x\r\nContent-Type: multipart/alternative; boundary=xx\r\n\r\n--xx\r\n\r\na\r\n--xx\r\n\r\nb\r\n--x\r\n\r\nc\r\n--x--", `mixed(alternative(text/plain:"a" text/plain:"b") text/plain:"c")`},
		// Both have the same.
		{mixed + "--x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\na\r\n--x--\r\n", `mixed(multipart/mixed:"" text/plain:"a")`},
		{"Content-Type: multipart/digest; boundary=x\r\n\r\n--x\r\n\r\nSubject: a\r\n\r\nb\r\n--x\r\nContent-Type: text/plain\r\n\r\nc\r\n--x--\r\n", `digest(message<text/plain:"b"> text/plain:"c")`},
		{mixed + "--x\r\nContent-Type: message/rfc822\r\n\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\na\r\n--y--\r\n--x--", `mixed(message<mixed(text/plain:"a")>)`},
		{"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: BASE64\r\n\r\nU3ViamVjdDogeA0KDQp5", `message/rfc822:"U3ViamVjdDogeA0KDQp5"`},
		{"Content-Type: multipart/mixed; boundary=x\r\nContent-Type: text/plain\r\n\r\n--x\r\n\r\na", `mixed(text/plain:"a")`},
		{"Content-Type: text/plain\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\na", `text/plain:"--x\r\n\r\na"`},
		{"Content-Type: multipart/mixed\r\n\r\n--\r\n\r\na", `multipart/mixed:"--\r\n\r\na"`},
		{"Content-Type: multipart/mixed; boundary=\"x\xe4\"\r\n\r\n--x\xe4\r\n\r\na", "mixed(text/plain:\"a\")"},
		{"Content-Type: multipart/mixed;\r\n boundary*0=\"x\";\r\n boundary*1=y\r\n\r\n--xy\r\n\r\na", `mixed(text/plain:"a")`},
		{"Content-Type: \xff\r\n\r\na", `text/plain:"a"`},
		{"Content-Type: ; boundary=x\r\n\r\na", `text/plain:"a"`},
		{"no header\r\n\r\na", `text/plain:"a"`},
		{"", `text/plain:""`},
	} {
		p, err := scan(strings.NewReader(tt.msg), int64(len(tt.msg)), true)
		if err != nil {
			t.Fatal(err)
		}
		if got := shape(tt.msg, p); got != tt.want {
			t.Errorf("%q:\n%s, not\n%s", tt.msg, got, tt.want)
		}
	}
}

// Where the bounds are, exactly.
func TestShapeBounds(t *testing.T) {
	depth := func(msg string) (n int) {
		p, err := scan(strings.NewReader(msg), int64(len(msg)), true)
		if err != nil {
			t.Fatal(err)
		}
		for len(p.children) > 0 || p.message != nil {
			if n++; p.message != nil {
				p = p.message
			} else {
				p = p.children[0]
			}
		}
		return n
	}
	if a, b := depth(nested(maxDepth)), depth(nested(maxDepth+1)); a != maxDepth || b != maxDepth {
		t.Errorf("%d and %d levels", a, b)
	}
	if n := depth(strings.Repeat("Content-Type: message/rfc822\r\n\r\n", 40)); n != maxDepth {
		t.Errorf("%d messages in messages", n)
	}
	for _, n := range []int{maxParts - 1, maxParts, maxParts + 1} {
		msg := "Content-Type: multipart/mixed; boundary=x\r\n\r\n" + strings.Repeat("--x\r\n\r\na\r\n", n) + "--x--\r\n"
		p, err := scan(strings.NewReader(msg), int64(len(msg)), true)
		if err != nil || len(p.children) != min(n, maxParts-1) {
			t.Errorf("%d of %d parts, %v", len(p.children), n, err)
		}
	}
}

// The headers of all parts together are bounded: fields cost many times their octets, and 15 MB would become 225.
func TestHeaderBudget(t *testing.T) {
	for name, head := range map[string]string{"fields": strings.Repeat("a:\n", 4990), "octets": "a: " + strings.Repeat("x", 200_000) + "\n"} {
		msg := "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\n"+head+"\nbody\n", 60) + "--b--\n"
		p, err := scan(strings.NewReader(msg), int64(len(msg)), true)
		if err != nil || len(p.children) != 60 {
			t.Fatalf("%s: %d parts, %v", name, len(p.children), err)
		}
		fields, octets := 0, 0
		for _, c := range p.children {
			fields += len(c.header.Fields)
			for _, f := range c.header.Fields {
				octets += len(f.Raw)
			}
			if got := msg[c.body:c.end]; got != "body" { // where things are is known all the same
				t.Fatalf("%s: %q", name, got)
			}
		}
		if fields > maxFields+5000 || octets > maxHeaders || fields == 0 {
			t.Errorf("%s: %d fields, %d octets", name, fields, octets)
		}
	}
}

// A lazy reader counts what is read of it.
type lazy struct {
	at   func(off int64) byte
	size int64
	read int64
	fail error
}

func (l *lazy) ReadAt(b []byte, off int64) (int, error) {
	if l.fail != nil && off > l.size/2 {
		return 0, l.fail
	}
	n := int(min(int64(len(b)), max(0, l.size-off)))
	for i := range n {
		b[i] = l.at(off + int64(i))
	}
	l.read += int64(n)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// However long a line or a header is, scanning reads it a few times at most, and holds little of it.
func TestScanCost(t *testing.T) {
	const size = 50 << 20
	head := "Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n"
	long := func(begin, again string) *lazy {
		return &lazy{size: size, at: func(off int64) byte {
			if off < int64(len(begin)) {
				return begin[off]
			}
			return again[(off-int64(len(begin)))%int64(len(again))]
		}}
	}
	for name, r := range map[string]*lazy{
		"header without end": long("", "X: y\r\n"), "one line": long("X: ", "y"), "fold": long("X: y\r\n", " z\r\n"), "body of one line": long("X: y\r\n\r\n", "z"),
		"part of one line": long(head+"\r\n", "z"), "part with a header without end": long(head, "X: y\r\n"), "parts": long(head, "\r\n--x\r\n"), "hyphens": long(head+"\r\n", "-"), "empty lines": long(head+"\r\n", "\r\n"),
	} {
		begin := time.Now()
		p, err := scan(r, r.size, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.structure(r); err != nil {
			t.Fatal(err)
		}
		if r.read > 4*size {
			t.Errorf("%s: %d MiB are read of %d, in %v", name, r.read>>20, size>>20, time.Since(begin))
		}
		if testing.Short() {
			break
		}
	}
	r := long(head+"\r\n", "z\r\n")
	r.fail = errors.New("the disk is away")
	if _, err := scan(r, r.size, true); !errors.Is(err, r.fail) {
		t.Errorf("the reader's error is %v", err)
	}
}

// drawPart draws an ordinary part, with its header.
func drawPart(t *rapid.T, depth int, id string) string {
	kinds := []string{"text", "html", "image", "none", "mixed", "alternative", "message"}
	if depth == 0 {
		kinds = kinds[:4]
	}
	body := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"one", "--", "", "two words", "--b", "=C3=BC"}), 0, 5).Draw(t, "lines"), "\r\n")
	switch kind := rapid.SampledFrom(kinds).Draw(t, "kind"); kind {
	case "text":
		return "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + body
	case "html":
		return "Content-Type: text/html\r\nContent-ID: <x@y>\r\nContent-Language: en, de\r\n\r\n" + body
	case "image":
		return "Content-Type: image/png; name=\"a b.png\"\r\nContent-Disposition: attachment; filename=\"a b.png\"\r\nContent-Transfer-Encoding: base64\r\nContent-Description: x\r\n\r\nAAAA\r\nBBBB"
	case "none":
		return "\r\n" + body
	case "message":
		return "Content-Type: message/rfc822\r\n\r\nFrom: Ann <ann@example.org>\r\nTo: b@example.org, c@example.org\r\nSubject: inner\r\n" + drawPart(t, depth-1, id+"m")
	default:
		b := "b" + id
		s := "Content-Type: multipart/" + kind + "; boundary=\"" + b + "\"\r\n\r\n" + rapid.SampledFrom([]string{"", "preamble\r\n"}).Draw(t, "preamble")
		for i := range rapid.IntRange(1, 3).Draw(t, "parts") {
			s += "--" + b + "\r\n" + drawPart(t, depth-1, fmt.Sprintf("%s.%d", id, i)) + "\r\n"
		}
		return s + "--" + b + "--\r\n" + rapid.SampledFrom([]string{"", "epilogue\r\n"}).Draw(t, "epilogue")
	}
}

// paths lists the numbers of all parts below one. A message that is no multipart has one part.
func paths(p *part, at []int, message bool) (list [][]int) {
	below := func(c *part, n int) {
		path := append(at[:len(at):len(at)], n)
		list = append(list, path)
		if c.message != nil {
			list = append(list, paths(c.message, path, true)...)
		} else if c != p {
			list = append(list, paths(c, path, false)...)
		}
	}
	for i, c := range p.children {
		below(c, i+1)
	}
	if message && len(p.children) == 0 {
		below(p, 1)
	}
	return list
}

// On whatever ordinary message we say what go-imap's own functions say.
func TestStructureAgreesOnAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		msg := "From: Joe <joe@example.com>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nDate: Sun, 01 Mar 2026 10:00:00 +0100\r\nMessage-ID: <1@example.com>\r\n" + drawPart(t, 3, "0")
		p, err := scan(strings.NewReader(msg), int64(len(msg)), true)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := p.structure(strings.NewReader(msg))
		if err != nil {
			t.Fatal(err)
		}
		opt := cmp.Options{cmp.Transformer("params", func(m map[string]string) string { return fmt.Sprint(m) }), cmp.Transformer("lang", func(s []string) string { return fmt.Sprint(s) })}
		if d := cmp.Diff(imapserver.ExtractBodyStructure(strings.NewReader(msg)), ours, opt); d != "" {
			t.Errorf("%s\n%s", msg, d)
		}
		for _, path := range append(paths(p, nil, true), nil) {
			for _, spec := range []imap.PartSpecifier{"", imap.PartSpecifierHeader, imap.PartSpecifierText, imap.PartSpecifierMIME} {
				message := path == nil || p.find(path).message != nil
				if spec == imap.PartSpecifierMIME && path == nil || spec != imap.PartSpecifierMIME && spec != "" && !message { // there is no such thing
					continue
				}
				item := &imap.FetchItemBodySection{Part: path, Specifier: spec}
				r, _ := p.section(item).open(strings.NewReader(msg), nil)
				got, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				if want := imapserver.ExtractBodySection(strings.NewReader(msg), item); !bytes.Equal(got, want) {
					t.Errorf("%v %s of %s\n%q, not\n%q", path, spec, msg, got, want)
				}
			}
		}
	})
}
