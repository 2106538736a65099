package convert

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
	"unicode/utf8"
)

func viewOf(t testing.TB, in string) string {
	t.Helper()
	var out bytes.Buffer
	if err := textView(&out, strings.NewReader(in), "\n"); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestTextView(t *testing.T) {
	for _, c := range []struct{ name, in, out string }{
		{"paragraphs", "<p>One\n two</p>\n\n<p>Three<br>four<br><br>five</p>", "One two\n\nThree\nfour\n\nfive\n"},
		{"blocks", "<div>a<div>b</div>c</div>d", "a\nb\nc\nd\n"},
		{"empty blocks", "<div></div><p></p><div><br></div><p>x", "x\n"},
		{"headings", "<h1>Big</h1>text<h3>Small</h3>", "# Big\n\ntext\n\n### Small\n"},
		{"an empty heading", "<h1></h1>text", "text\n"},
		{"unordered", "x<ul><li>a<li>b<ul><li>c</ul><li>d</ul>y", "x\n\n* a\n* b\n  * c\n* d\n\ny\n"},
		{"ordered", "<ol start=9><li>a<li>b<li value=3>c</ol><ol><li>z</ol>", " 9. a\n10. b\n 3. c\n\n 1. z\n"},
		{"a list in a list", "<ul><li>two<ol><li>x</ol></ul>", "* two\n   1. x\n"},
		{"items without a list", "<li>a<li>b", "* a\n* b\n"},
		{"definitions", "<dl><dt>Word<dd>Meaning<dt>Other<dd>Else</dl>after", "Word\n    Meaning\nOther\n    Else\nafter\n"},
		{"quotation", "<p>Ann wrote:<blockquote><p>Hi<p>there<blockquote>deeper</blockquote></blockquote>me",
			"Ann wrote:\n\n> Hi\n>\n> there\n>\n> > deeper\n\nme\n"},
		{"table", "<table><tr><th>A</th><th>B</th></tr>\n<tr><td>1</td><td></td><td>3</td></tr></table>", "A | B\n1 | 3\n"},
		{"layout table", "<table><tr><td><table><tr><td>x</table></td></tr><tr><td><p>y</p></td><td><p>z</p></td></tr></table>", "x\n\ny\n\nz\n"},
		{"pre", "a<pre>  1\n\n    2\n</pre>b", "a\n\n  1\n\n    2\n\nb\n"},
		{"rules", "a<hr><hr/>b", "a\n--------------------\nb\n"},
		{"entities", "&lt;b&gt; &amp;amp; &euro;&#x41;&#66; &nosuch; &copy", "<b> &amp; \u20acAB &nosuch; \u00a9\n"},
		{"quotes", "<q>so</q>", "\u201cso\u201d\n"},
		{"inline", "<b>b</b><i>i</i> <span>s</span>", "bi s\n"},
		{"wrapping", strings.Repeat("word ", 20), strings.TrimSpace(strings.Repeat("word ", 15)) + "\n" + strings.TrimSpace(strings.Repeat("word ", 5)) + "\n"},
		{"a long word", "x " + strings.Repeat("y", 200) + " z", "x\n" + strings.Repeat("y", 200) + "\nz\n"},
		{"nothing", "", emptyView + "\n"},
		{"nothing visible", "<html><head><title>t</title><style>b{}</style></head><body>&nbsp;<!-- c --></body>", emptyView + "\n"},

		{"scripts", `a<script>alert("<b>no</b>")</script>b<style>p{}</style>c<!-- d --><noscript>e</noscript>`, "abce\n"},
		{"raw text", "<textarea>a &amp; <b></textarea><xmp>&amp;<i></xmp>", "a & <b>\n\n&amp;<i>\n"},
		{"embedded things", `<object data=x>no</object><iframe src=x>no</iframe><video>no</video><svg><title>no</title><text>no</text></svg>yes`, "yes\n"},
		{"svg that is not closed", "<svg><path d=1><p>shown", "shown\n"},
		{"svg that closes itself", "<svg/>shown", "shown\n"},
		{"images", `<img src="http://t.example/p.gif"><img alt="A  cat" src=x> <a href="https://x.example/"><img src=y></a>`, "[image: A cat] [image] <https://x.example/>\n"},
		{"form", `<form action="https://evil.example/login"><input type=hidden value=no><input type=password value=no><input type=submit value=Send><button>Go</button><input type=radio checked>A</form>`,
			"[a form that sends to <https://evil.example/login>]\n[Send] Go [x] A\n"},

		{"link", `See <a href="https://example.org/a?b=c&amp;d#e">this</a>, please.`, "See this <https://example.org/a?b=c&d#e>, please.\n"},
		{"link that says where it leads", `<a href="https://example.org/">https://example.org</a> <a href="mailto:joe@example.org">joe@example.org</a>`, "https://example.org joe@example.org\n"},
		{"link that lies", `<a href="https://evil.example/">https://bank.example/</a>`, "https://bank.example/ <https://evil.example/>\n"},
		{"text that looks like a mark", `<a href="https://evil.example/">Bank &lt;<b>HTTPS://bank.example/&gt;</b></a>`, "Bank < HTTPS://bank.example/> <https://evil.example/>\n"},
		{"link with nothing in it", `a<a href="https://evil.example/"></a>b`, "ab\n"},
		{"link in a link", `<a href="https://a.example/">a<a href="https://b.example/">b</a>`, "a <https://a.example/>b <https://b.example/>\n"},
		{"link to the end", `<a href="https://a.example/">a`, "a <https://a.example/>\n"},
		{"anchors", `<a name=x>a</a> <a href="#x">b</a> <a href="page.html">c</a>`, "a b c\n"},
		{"base", `<base href="https://evil.example/d/"><a href="page.html">c</a> <a href="//other.example">d</a>`, "c <https://evil.example/d/page.html> d <https://other.example>\n"},
		{"javascript", `<a href=" java` + "\n" + `script&colon;alert(1)">x</a>`, "x [javascript: link left out]\n"},
		{"data", `<a href="data:text/html,x">x</a> <a href="VBScript:y">y</a> <a href="file:///etc/passwd">z</a>`,
			"x [data: link left out] y [vbscript: link left out] z [file: link left out]\n"},

		{"hidden", `a<div hidden>no<p>no</div>b<span style="DISPLAY : None !important">no</span>c<p style="font-size:0px">no<p>d`, "abc\n\nd\n"},
		{"hidden in ways", `<i style="visibility:hidden">no</i><i style="opacity:0.0">no</i><i style="max-height:0;overflow:hidden">no</i><i style="text-indent:-9999px">no</i><i style="height:0">yes</i>`, "yes\n"},
		{"hidden and not closed", `<table><tr><td style="display:none">no<td>yes<tr><td><span hidden>no</td><td>also</table>`, "yes\nalso\n"},
		{"zero width", "p\u200ba\u00ady\u2060p\ufeffal \u202egro.live\u202c \u2066x\u2069 \U000e0041", "paypal gro.live x\n"},
		{"joiners", "a\u200db \u0628\u200c\u0627 \U0001f468\u200d\U0001f469", "ab \u0628\u200c\u0627 \U0001f468\u200d\U0001f469\n"},
		{"combining marks", "a" + strings.Repeat("\u0301", 100) + "b", "a" + strings.Repeat("\u0301", maxMarks) + "b\n"},
		{"control characters", "a\x00b\x1b[31m\x07c\u0085d\u2028e", "ab[31mc d e\n"},
		{"not UTF-8", "a\xffb", "a\ufffdb\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := viewOf(t, c.in); got != c.out {
				t.Errorf("%s\nis seen as\n%q, want\n%q", c.in, got, c.out)
			}
		})
	}
}

// Where a link leads is shown as a browser understands it.
func TestTarget(t *testing.T) {
	for _, c := range []struct{ href, base, shown, scheme string }{
		{"https://example.org", "", "https://example.org", ""},
		{"HTTPS://Example.ORG/Path", "", "https://example.org/Path", ""},
		{"https://bank.example@evil.example/", "", "https://evil.example/", ""},
		{"https://bank.example:443@evil.example:8443/x@y", "", "https://evil.example:8443/x@y", ""},
		{`https:\\evil.example\x`, "", "https://evil.example/x", ""},
		{`https:evil.example`, "", "https://evil.example", ""},
		{`https:////evil.example?a\b`, "", "https://evil.example?a%5Cb", ""},
		{`\\evil.example`, "", "https://evil.example", ""},
		{"//evil.example", "http://x.example/", "http://evil.example", ""},
		{`/\evil.example`, "http://x.example/", "http://evil.example", ""},
		{"../x", "https://example.org/a/b/", "https://example.org/a/x", ""},
		{"x", "mailto:a@b", "", ""},
		{"ht\ttp://exa\nmple.org/\x00", "", "http://example.org/", ""},
		{"https://b\u00fccher.example/", "", "https://xn--bcher-kva.example/", ""},
		{"https://p\u0430ypal.example/", "", "https://xn--pypal-4ve.example/", ""}, // a Cyrillic letter
		{"https://ex%61mple.org/", "", "https://example.org/", ""},
		{"https://example.org/a b\u00fc<>\"", "", "https://example.org/a%20b%C3%BC%3C%3E%22", ""},
		{"http://2130706433/", "", "http://2130706433/", ""},
		{"https://", "", "", ""},
		{"mailto:joe@example.org?subject=x&body=y", "", "mailto:joe@example.org", ""},
		{"tel:+49-30-1", "", "tel:+49-30-1", ""},
		{"cid:x", "", "", ""}, {"", "", "", ""}, {"#", "", "", ""},
		{"JaVaScRiPt:alert(1)", "", "", "javascript"},
		{"\x01javascript:alert(1)", "", "", "javascript"},
		{"blob:x", "", "", "blob"},
		{"https://example.org/" + strings.Repeat("x", 5000), "", "https://example.org/" + strings.Repeat("x", 1980) + "...(3020 octets more)", ""},
	} {
		if shown, scheme := target(c.href, c.base); shown != c.shown || scheme != c.scheme {
			t.Errorf("%.100q leads to %.100q, %q; want %.100q, %q", c.href, shown, scheme, c.shown, c.scheme)
		}
	}
}

// What is larger than memory is meant for is passed over, and what is after it is read.
func TestLargeTokens(t *testing.T) {
	mega := strings.Repeat("x", 3*maxToken+100)
	for _, c := range []struct{ name, in, out string }{
		{"attribute", `a <img src="data:image/png;base64,` + mega + `>" alt=no> b`, "a b\n"},
		{"attribute without quotes", "a <p x=" + mega + "> b", "a\n\nb\n"},
		{"attributes", "a <p " + strings.Repeat(`x="y>" `, 30_000) + "> b", "a\n\nb\n"},
		{"end tag", "a <b>c</b " + mega + `'">"> d`, "a c\"> d\n"},
		{"comment", "a <!-- <b> " + mega + " -- > --> b", "a b\n"},
		{"comment that ends at the edge", "a <!--" + strings.Repeat("-", maxToken-6) + "-> b", "a b\n"},
		{"declaration", "a <!x " + mega + "> b", "a b\n"},
		{"instruction", "a <?x " + mega + "?> b", "a b\n"},
		{"script", "a <script>" + mega + "</b>" + mega + "</script> b", "a b\n"},
		{"script with a large tag", "a <script src='" + mega + "'>" + mega + "</script> b", "a b\n"},
		{"style", "a <style>" + strings.Repeat("<", 3*maxToken) + "</style> b", "a b\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := viewOf(t, c.in)
			if got != c.out {
				t.Errorf("is seen as %.200q, want %q", got, c.out)
			}
		})
	}
	// Text has no bound; its runes, references and tags stay whole wherever it is cut.
	for shift := range 12 {
		in := strings.Repeat("y", maxToken-8+shift) + "\u20ac&euro;<b>\u20ac</b>&lt;" + mega
		want := strings.Repeat("y", maxToken-8+shift) + "\u20ac\u20ac\u20ac<" + mega + "\n"
		if got := viewOf(t, in); got != want {
			t.Errorf("text cut at %d: %.40q...", shift, got[maxToken-20:])
		}
	}
	if got := viewOf(t, "<textarea>"+mega+"</textarea>b"); got != mega+"b\n" {
		t.Errorf("a large textarea: %d octets", len(got))
	}
}

func TestHostileHTML(t *testing.T) {
	n := 10_000
	for _, c := range []struct{ name, in, has string }{
		{"divs", strings.Repeat("<div>", n) + "deep" + strings.Repeat("</div>", n), "deep\n"},
		{"hidden divs", strings.Repeat("<div hidden>", n) + "no" + strings.Repeat("</div>", n) + "yes", "yes\n"},
		{"quotations", strings.Repeat("<blockquote>", n) + "a<p>b" + strings.Repeat("</blockquote>", n) + "c", "> > a\n"},
		{"lists", strings.Repeat("<ul><li>", n) + "a" + strings.Repeat("</ul>", n) + "<p>c", "* a\n\nc\n"},
		{"definitions", strings.Repeat("<dd>", n) + "a", "    a\n"},
		{"tables", strings.Repeat("<table><tr><td>", n) + "a", "a\n"},
		{"links", strings.Repeat(`<a href="https://a.example/">`, n) + "a", "a <https://a.example/>\n"},
		{"end tags", strings.Repeat("</blockquote></ul></dd></pre></p>", n) + "a", "a\n"},
		{"entities", strings.Repeat("&amp;amp;", n), "&amp;&amp;"},
		{"bits of entities", strings.Repeat("&#1114112;&#0;&#xd800;&", n), "\ufffd"},
		{"lines", strings.Repeat("<br><hr><p>", n) + "a", "a\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := viewOf(t, c.in)
			if !strings.Contains(got, c.has) {
				t.Errorf("%.200q has no %q", got, c.has)
			}
			if len(got) > len(c.in)+1000 {
				t.Errorf("%d octets became %d", len(c.in), len(got))
			}
		})
	}
}

// The view is the same, however the document comes.
func TestTextViewInPieces(t *testing.T) {
	in := "<p>one &amp; two <a href='https://x.example/'>three</a><!-- c --><script>no</script><pre> a\r\n b</pre>\u20ac"
	want := viewOf(t, in)
	var out bytes.Buffer
	if err := textView(&out, iotest.OneByteReader(strings.NewReader(in)), "\n"); err != nil || out.String() != want {
		t.Errorf("%q, %v; want %q", out.String(), err, want)
	}
	failing := io.MultiReader(strings.NewReader(in), iotest.ErrReader(fmt.Errorf("gone")))
	if err := textView(io.Discard, failing, "\n"); err == nil {
		t.Error("an error of the reader is lost")
	}
}

func checkView(t *testing.T, in []byte, out string) {
	t.Helper()
	if !utf8.ValidString(out) || !strings.HasSuffix(out, "\n") {
		t.Fatalf("%q becomes %q", in, out)
	}
	for _, r := range out {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || clean(r) != r) {
			t.Fatalf("%q becomes %q, which has %U", in, out, r)
		}
	}
	for line := range strings.Lines(out) {
		if strings.HasSuffix(line, " \n") && strings.TrimSpace(line) == "" {
			t.Fatalf("%q becomes %q, which has a line of spaces", in, out)
		}
	}
}

func FuzzTextView(f *testing.F) {
	for _, s := range []string{
		"<p>a<b>b</b><a href='https://x@y/'>c</a>", "<ul><li>a<ol><li>b</ol></ul><blockquote>q</blockquote>", "<div hidden>a</div>b<svg><p>c",
		"<table><tr><td>a<td>b", "<pre> a\n\n b\n</pre>", "&amp;&#0;\u202e\u200b", "<script>a</script><!-- b --><![CDATA[c]]>", "<textarea></textarea><plaintext><b>",
		"<form action=javascript:x><input type=submit value=x><img alt=y>", "<base href=//x><a href=y>z", "<p style='display:none'>x<p>y</html>", "</br><li value=-5><dd><dt>",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		if err := textView(&out, bytes.NewReader(in), "\n"); err != nil {
			t.Fatal(err)
		}
		checkView(t, in, out.String())
		var again bytes.Buffer
		if err := textView(&again, iotest.HalfReader(bytes.NewReader(in)), "\n"); err != nil || again.String() != out.String() {
			t.Fatalf("%q becomes %q or %q: %v", in, out.String(), again.String(), err)
		}
	})
}
