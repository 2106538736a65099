package convert

import (
	"io"
	"strconv"
	"strings"
)

const maxLists = 32 // lists in lists whose numbers are counted

// emptyView is the view of HTML that shows no text.
const emptyView = "[There is no text in this part of the message.]"

// A list is one that is open.
type list struct {
	ordered bool
	n       int
}

// A document is HTML on its way to a page.
type document struct {
	p      *page
	base   string
	hidden region

	lists  []list
	deep   int // lists open beyond maxLists
	pres   int
	terms  bool // inside of a dd, which is indented
	target string
	refuse string
}

// textView writes a text view of HTML in UTF-8, with nl at the end of each line. It
// takes memory for a token and a word. Errors are those of r and w: any octets make some text.
func textView(w io.Writer, r io.Reader, nl string) error {
	d := &document{p: newPage(w, nl)}
	t := newTokens(r)
	for {
		tok, err := t.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		switch {
		case d.hidden.active() && (tok.name == "" || d.hidden.tag(tok)):
		case tok.name == "":
			d.p.text(tok.text)
		case tok.end:
			d.end(tok.name)
		default:
			d.start(tok)
		}
	}
	d.closeLink()
	return d.p.end(emptyView)
}

// start takes in a start tag.
func (d *document) start(t token) {
	p := d.p
	if !t.closed {
		switch t.name {
		case "svg", "math", "object", "video", "audio", "canvas", "template", "applet", "map", "datalist":
			d.hidden.begin(t.name)
			return
		}
	}
	if isHidden(t.attrs) {
		if !isVoid(t.name) && t.name != "html" {
			d.hidden.begin(t.name)
		}
		return
	}
	switch t.name {
	case "base":
		if d.base == "" && len(t.attrs["href"]) <= maxTarget {
			d.base = strings.TrimSpace(t.attrs["href"])
		}
	case "a":
		d.closeLink() // a link in a link ends the first
		if href, ok := t.attrs["href"]; ok {
			d.target, d.refuse = target(href, d.base)
			p.beginLink()
		}
	case "img":
		d.image(t)
	case "br":
		p.endWord()
		p.breakLine(p.brk + 1)
	case "wbr":
	case "hr":
		p.rule()
	case "p", "dl", "fieldset", "figure", "details":
		d.terms = d.terms && t.name != "dl"
		p.breakLine(2)
	case "h1", "h2", "h3", "h4", "h5", "h6":
		p.breakLine(2)
		p.mark = strings.Repeat("#", int(t.name[1]-'0')) + " "
	case "blockquote":
		p.breakLine(2)
		p.quote++
	case "pre", "listing", "xmp", "plaintext":
		p.breakLine(2)
		d.pres++
		p.pre = true
	case "ul", "ol", "menu", "dir":
		d.openList(t)
	case "li":
		d.item(t)
	case "dt":
		p.breakLine(1)
		d.closeTerm()
	case "dd":
		p.breakLine(1)
		d.closeTerm()
		d.terms = true
		p.indent += 4
	case "td", "th":
		p.endWord()
		p.cell = true
	case "tr":
		p.breakLine(1)
		p.cell = false
	case "q":
		p.text("\u201c")
	case "form":
		p.breakLine(1)
		if m := mark(target(t.attrs["action"], d.base)); m != "" {
			m = "[a form that sends to " + m + "]"
			p.put(m, len(m))
			p.breakLine(1)
		}
	case "input":
		switch strings.ToLower(t.attrs["type"]) {
		case "submit", "button", "reset":
			d.bracket(t.attrs["value"])
		case "checkbox", "radio":
			if _, ok := t.attrs["checked"]; ok {
				p.text(" [x] ")
			} else {
				p.text(" [ ] ")
			}
		}
	default:
		if isBlock(t.name) {
			p.breakLine(1)
		}
	}
}

// end takes in an end tag.
func (d *document) end(name string) {
	p := d.p
	switch name {
	case "a":
		d.closeLink()
	case "br": // it is <br>
		p.endWord()
		p.breakLine(p.brk + 1)
	case "p", "h1", "h2", "h3", "h4", "h5", "h6", "fieldset", "figure", "details":
		p.breakLine(2)
		p.mark = ""
	case "blockquote":
		p.breakLine(2)
		p.quote = max(0, p.quote-1)
	case "pre", "listing", "xmp", "plaintext":
		p.breakLine(2)
		if d.pres > 0 {
			d.pres--
		}
		p.pre = d.pres > 0
	case "ul", "ol", "menu", "dir":
		d.closeList()
	case "dd", "dl":
		p.breakLine(1)
		d.closeTerm()
	case "td", "th":
		p.endWord()
		p.cell = true
	case "q":
		p.text("\u201d")
	default:
		if isBlock(name) {
			p.breakLine(1)
		}
	}
}

func (d *document) openList(t token) {
	if len(d.lists) == 0 {
		d.p.breakLine(2)
	} else {
		d.p.breakLine(1)
	}
	if len(d.lists) >= maxLists {
		d.deep++
		return
	}
	l := list{ordered: t.name == "ol"}
	if n, err := strconv.Atoi(t.attrs["start"]); err == nil && n > -1_000_000 && n < 1_000_000 {
		l.n = n - 1
	}
	d.lists = append(d.lists, l)
	d.p.indent += l.width()
}

func (l list) width() int {
	if l.ordered {
		return 4
	}
	return 2
}

func (d *document) closeList() {
	n := len(d.lists)
	if d.deep > 0 {
		d.deep--
		d.p.breakLine(1)
		return
	}
	if n > 1 {
		d.p.breakLine(1)
	} else {
		d.p.breakLine(2)
	}
	d.p.lead = ""
	if n > 0 {
		d.p.indent = max(0, d.p.indent-d.lists[n-1].width())
		d.lists = d.lists[:n-1]
	}
}

func (d *document) item(t token) {
	d.p.breakLine(1)
	d.p.lead = "* "
	if n := len(d.lists); n > 0 && d.lists[n-1].ordered {
		l := &d.lists[n-1]
		if v, err := strconv.Atoi(t.attrs["value"]); err == nil && v > -1_000_000 && v < 1_000_000 {
			l.n = v - 1
		}
		l.n++
		d.p.lead = strconv.Itoa(l.n) + ". "
	}
}

func (d *document) closeTerm() {
	if d.terms {
		d.terms = false
		d.p.indent = max(0, d.p.indent-4)
	}
}

// image shows the alternative text of an image. One without is decoration, or a counter of
// readers, unless it is what a link is made of.
func (d *document) image(t token) {
	switch {
	case strings.TrimSpace(t.attrs["alt"]) != "":
		d.bracket("image: " + t.attrs["alt"])
	case d.p.link:
		d.bracket("image")
	}
}

// bracket sets something in brackets that is no text of the document.
func (d *document) bracket(text string) {
	text = strings.Join(strings.Fields(cut(text, 500)), " ")
	if text == "" {
		return
	}
	pre := d.p.pre
	d.p.pre = false
	d.p.text(" [" + text + "] ")
	d.p.pre = pre
}

func cut(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// closeLink writes where a link leads, unless its text says so.
func (d *document) closeLink() {
	if !d.p.link {
		return
	}
	d.p.endWord()
	text := string(d.p.copied)
	m := mark(d.target, d.refuse)
	if d.target != "" && (text == d.target || text+"/" == d.target || "mailto:"+text == d.target || "tel:"+text == d.target) {
		m = ""
	}
	d.p.endLink(m)
	d.target, d.refuse = "", ""
}

func mark(target, refused string) string {
	switch {
	case target != "":
		return "<" + target + ">"
	case refused != "":
		return "[" + refused + ": link left out]"
	}
	return ""
}
