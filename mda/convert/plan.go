package convert

import (
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
)

type action uint8

const (
	keep     action = iota // as it is, or with what changes inside of it
	recode                 // a leaf: decoded, turned into UTF-8, encoded again
	view                   // a leaf: HTML that becomes text
	encode                 // a leaf: its octets encoded
	drop                   // not in the derived message
	collapse               // a multi: the only child that is left takes its place
)

// todo is what is decided for a node, and what comes of it.
type todo struct {
	act     action
	relabel bool    // the charset of a leaf becomes utf-8, its octets stay
	from    charset // of recode
	out     string  // the encoding of recode and encode
	html    charset // of a leaf whose view is made
	htmlOut string  // the encoding of that view
	first   *node   // the HTML whose view goes before this node; nil: none
	mixed   bool    // a multi: multipart/related that becomes mixed, because its HTML is none any more
	noEdges bool    // a multi: preamble and epilogue go
	only    *node   // of a collapse: the child that is left
	exam    *exam   // nil: not examined

	head    []mailspine.HeaderField // the header, as it will be
	changed bool                    // the node does not come out as it is
	clean   bool                    // it comes out in seven bits
}

// plan decides what is done, for the whole tree.
func (j *job) plan() error {
	if err := j.decide(j.root, false); err != nil {
		return err
	}
	j.build(j.root)
	return nil
}

// decide decides for a node and those below it. hasPlain says that there is a plain text of the same
// beside it.
func (j *job) decide(n *node, hasPlain bool) error {
	switch n.kind {
	case embedded:
		return j.decide(n.children[0], false)
	case multi:
		return j.decideMulti(n, hasPlain)
	}
	if n.sealed || n.opaque != "" {
		if n.opaque != "" {
			j.note(n, "left as it is: %s", n.opaque)
		}
		return nil
	}
	if err := j.decideText(n, hasPlain); err != nil || n.act == view {
		return err
	}
	if j.o.UTF8 && n.media.typ == "text" && !n.attached() {
		if err := j.decideCharset(n); err != nil {
			return err
		}
	}
	if !j.o.SevenBit || n.act != keep || n.facts.sevenBit(j.nl) || n.media.typ == "message" || n.media.typ == "multipart" {
		return nil // RFC 2045 section 6.4: messages are not encoded
	}
	switch n.encoding {
	case "", "7bit", "8bit", "binary":
		n.act, n.out = encode, base64Encoding
		if n.media.typ == "text" && !mostlyHigh(n.facts.high, n.facts.size) {
			n.out = quotedPrintable
		}
	case quotedPrintable, base64Encoding:
		x, err := j.examine(n)
		if err != nil {
			return err
		}
		if x.damage == nil {
			n.act, n.out = recode, n.encoding
		}
	}
	return nil
}

// attached says that a part is a file and no text to be read.
func (n *node) attached() bool {
	for _, f := range n.fields {
		if f.Is("Content-Disposition") {
			return strings.HasPrefix(strings.ToLower(f.Value()), "attachment")
		}
	}
	return false
}

// decideText decides about a text view of HTML.
func (j *job) decideText(n *node, hasPlain bool) error {
	if !j.o.Text || !n.media.is("text", "html") || n.attached() || j.o.KeepHTML && hasPlain {
		return nil
	}
	ok, err := j.viewable(n)
	if err != nil || !ok {
		return err
	}
	if j.o.KeepHTML {
		n.first = n
	} else {
		n.act = view
	}
	j.done[doneText] = true
	return nil
}

// viewable says whether there can be a view of an HTML leaf, and how.
func (j *job) viewable(n *node) (bool, error) {
	x, err := j.examine(n)
	if err != nil {
		return false, err
	}
	if x.damage != nil {
		j.note(n, "HTML left as it is: its transfer encoding is damaged or not known")
		return false, nil
	}
	label := n.media.get("charset")
	c, ok := htmlCharset(label, x)
	if !ok {
		j.note(n, "HTML left as it is: charset %.40q", label)
		return false, nil
	}
	n.html, n.htmlOut = c, n.textEncoding(c, x)
	return true, nil
}

// textEncoding chooses how text in UTF-8 that came in some charset is encoded. It is always encoded: UTF-8
// may have longer lines than what it was made of, and nobody knows how long before it is
// written.
func (n *node) textEncoding(c charset, x *exam) string {
	if n.encoding == base64Encoding || c.wide || mostlyHigh(x.high, x.size) {
		return base64Encoding
	}
	return quotedPrintable
}

// mostlyHigh says that base64 is shorter than quoted-printable.
func mostlyHigh(high, size int64) bool { return high > size/6 }

// decideCharset decides about the charset of a text.
func (j *job) decideCharset(n *node) error {
	switch n.media.sub {
	case "xml", "rtf", "rfc822-headers", "xml-external-parsed-entity":
		return nil // they say their charset themselves, or have none
	}
	label := n.media.get("charset")
	if isUTF8(label) {
		return nil
	}
	c, err := lookupCharset(label)
	if err != nil {
		j.note(n, "text left as it is: charset %.40q is not known", label)
		return nil
	}
	x, err := j.examine(n)
	if err != nil {
		return err
	}
	if x.damage != nil {
		j.note(n, "text left as it is: its transfer encoding is damaged or not known")
		return nil
	}
	if c.enc == nil {
		if n.media.sub == "html" {
			c, _ = htmlCharset(label, x)
		}
		if c.enc == nil && x.high == 0 {
			return nil
		}
		if c.enc == nil && !x.utf8 {
			j.note(n, "text left as it is: it has no charset, and is not UTF-8")
			return nil
		}
	}
	switch {
	case x.armour:
		j.note(n, "text left as it is: a PGP signature may cover it")
		return nil
	case c.enc == nil, c.ascii && x.high == 0:
		n.relabel = true
	default:
		n.act, n.from, n.relabel, n.out = recode, c, true, n.textEncoding(c, x)
	}
	j.done[doneUTF8] = true
	return nil
}

func (j *job) decideMulti(n *node, hasPlain bool) error {
	alternative := j.o.Text && n.media.is("multipart", "alternative")
	var blank []*node
	plain := false
	if alternative {
		for _, c := range n.children {
			if c.kind != leaf || !c.media.is("text", "plain") || c.opaque != "" || c.attached() {
				continue
			}
			x, err := j.examine(c)
			if err != nil {
				return err
			}
			if x.damage == nil && x.blank {
				blank = append(blank, c)
			} else if x.damage == nil {
				plain = true
			}
		}
		if plain && !j.o.KeepHTML {
			for _, c := range n.children {
				if c.isHTML() {
					c.act = drop
				}
			}
		}
		hasPlain = hasPlain || plain
	}
	var root *node
	if j.o.Text && n.media.is("multipart", "related") {
		root = n.relatedRoot()
		if j.o.KeepHTML && !hasPlain && root.kind == leaf && root.media.is("text", "html") && root.opaque == "" && !root.attached() {
			ok, err := j.viewable(root)
			if err != nil {
				return err
			}
			if ok {
				n.first, hasPlain = root, true
				j.done[doneText] = true
			}
		}
	}
	views := false
	for _, c := range n.children {
		if c.act == drop {
			continue
		}
		if err := j.decide(c, hasPlain); err != nil {
			return err
		}
		views = views || c.act == view || c.mixed
	}
	n.mixed = root != nil && root.act == view
	if !alternative {
		return nil
	}
	if views {
		for _, c := range blank {
			c.act = drop
		}
	}
	left := 0
	for _, c := range n.children {
		if c.act != drop {
			left++
			n.only = c
		}
	}
	if left < len(n.children) {
		j.done[doneText] = true
		if left == 1 {
			n.act = collapse
		}
	}
	return nil
}

// relatedRoot returns the part of a multipart/related that the others belong to (RFC 2387
// section 3.2).
func (n *node) relatedRoot() *node {
	if start := n.media.get("start"); start != "" {
		for _, c := range n.children {
			for _, f := range c.fields {
				if f.Is("Content-ID") && f.Value() == start {
					return c
				}
			}
		}
	}
	return n.children[0]
}

// isHTML says that a part of a multipart/alternative is there for readers that show
// more than text, and has nothing that is not in the text: a related part with files stays.
func (n *node) isHTML() bool {
	if n.kind == leaf {
		switch n.media.sub {
		case "html", "x-amp-html", "watch-html", "enriched", "richtext":
			return n.media.typ == "text" && n.opaque == "" && !n.attached()
		}
		return false
	}
	if n.kind != multi || !n.media.is("multipart", "related") {
		return false
	}
	root := n.relatedRoot()
	for _, c := range n.children {
		switch {
		case c == root:
			if c.kind != leaf || !c.isHTML() {
				return false
			}
		case c.kind != leaf || c.attached() || c.media.typ != "image" && c.media.typ != "font" && !c.media.is("text", "css"):
			return false
		}
	}
	return true
}

// build makes the header of a node and of those below it, and finds out what changes.
func (j *job) build(n *node) {
	n.clean = true
	switch n.kind {
	case leaf:
		n.changed = n.act != keep || n.relabel || n.first != nil
		j.done[done7Bit] = j.done[done7Bit] || n.act == encode || n.act == recode && !n.relabel
		if n.act == keep && !n.facts.sevenBit(j.nl) && j.o.SevenBit {
			n.clean = false
			j.res.EightBit = true
			j.note(n, "%s/%s left as it is, and it is not in seven bits", quoteType(n.media.typ), quoteType(n.media.sub))
		}
	case multi:
		n.changed = n.act == collapse || n.mixed || n.first != nil
		if j.o.SevenBit && !(n.preamble.sevenBit(j.nl) && n.epilogue.sevenBit(j.nl)) {
			// Nobody reads what is before and after the parts (RFC 2046 section 5.1.1).
			n.noEdges, n.changed = true, true
			j.done[done7Bit] = true
		}
		fallthrough
	case embedded:
		for _, c := range n.children {
			if c.act == drop {
				n.changed = true
				continue
			}
			j.build(c)
			n.changed = n.changed || c.changed
			n.clean = n.clean && c.clean
		}
	}
	j.buildHead(n)
}

// quoteType shows a type in a note.
func quoteType(s string) string {
	if len(s) > 40 {
		s = s[:40]
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

func (j *job) buildHead(n *node) {
	message := n.parent == nil || n.parent.kind == embedded
	inside := n.changed // besides the header
	for _, f := range n.fields {
		raw, changed := j.field(n, f)
		g := mailspine.HeaderField{Name: f.Name, Raw: raw}
		if changed {
			n.changed = true
			g.Name = fieldName(raw)
		}
		n.clean = n.clean && isASCII(string(raw))
		if inside {
			var ok bool
			if g, ok = j.contentField(n, g); !ok {
				continue
			}
		}
		n.head = append(n.head, g)
	}
	add := func(name, value string) {
		if !slices.ContainsFunc(n.head, func(f mailspine.HeaderField) bool { return f.Is(name) }) {
			n.head = append(n.head, mailspine.HeaderField{Name: name, Raw: []byte(name + ": " + value + j.nl)})
		}
	}
	if inside && n.kind == leaf {
		if n.relabel && !n.typed {
			add("Content-Type", "text/plain; charset=utf-8")
		}
		switch n.act {
		case recode, encode:
			add("Content-Transfer-Encoding", n.out)
		case view:
			add("Content-Transfer-Encoding", n.htmlOut)
		}
	}
	if message && inside && (n.first != nil || slices.ContainsFunc(n.head, isContent)) {
		add("MIME-Version", "1.0")
	}
	if n.parent == nil && n.changed {
		n.head = slices.DeleteFunc(n.head, isWholeSignature)
		var words []string
		for _, d := range []string{doneUTF8, doneText, done7Bit} {
			if j.done[d] {
				words = append(words, d)
			}
		}
		n.head = append(n.head, mailspine.HeaderField{Name: markField, Raw: []byte(markField + ": " + strings.Join(words, ", ") + j.nl)})
	}
}

// isWholeSignature says that a field is about the octets of the whole message, which
// are others in the derived one.
func isWholeSignature(f mailspine.HeaderField) bool {
	switch strings.ToLower(f.Name) {
	case "dkim-signature", "arc-seal", "arc-message-signature", "arc-authentication-results", "domainkey-signature", "content-length", "lines":
		return true
	}
	return false
}

func isContent(f mailspine.HeaderField) bool {
	return len(f.Name) > 8 && strings.EqualFold(f.Name[:8], "Content-")
}

// contentField makes the fields that describe the body say what it will be. It is false when a field
// goes.
func (j *job) contentField(n *node, f mailspine.HeaderField) (mailspine.HeaderField, bool) {
	set := func(value string) (mailspine.HeaderField, bool) {
		f.Raw = []byte(f.Name + ": " + value + j.nl)
		return f, true
	}
	switch strings.ToLower(f.Name) {
	case "content-type":
		m, ok := parseMediaType(f.Value())
		if !ok {
			return f, true
		}
		switch {
		case n.act == view:
			return set("text/plain; charset=utf-8")
		case n.mixed:
			m.sub = "mixed"
			m = m.without("type", "start", "start-info")
		case n.relabel:
			m = m.without("charset*", "charset*0", "charset*0*").set("charset", "utf-8")
		default:
			return f, true
		}
		if j.o.SevenBit {
			m = m.sevenBit()
		}
		f.Raw = m.field(f.Name, j.nl)
	case "content-transfer-encoding":
		switch {
		case n.act == view:
			return set(n.htmlOut)
		case n.act == recode || n.act == encode:
			return set(n.out)
		case n.kind != leaf && j.o.SevenBit && n.clean && (n.encoding == "8bit" || n.encoding == "binary"):
			return set("7bit")
		}
	case "content-md5":
		return f, n.act != view && !(n.act == recode && n.relabel)
	case "content-disposition", "content-location", "content-base":
		return f, n.act != view
	}
	return f, true
}
