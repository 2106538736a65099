package convert

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/html"
)

// maxToken is the largest tag or comment that is looked at, and the largest piece of text that is
// held at once.
const maxToken = 64 << 10

// A token is what a document is made of: a piece of text, or a tag.
type token struct {
	text   string // of a piece of text
	name   string // of a tag, in lower case; "": text
	end    bool   // it is an end tag
	closed bool   // it is a start tag that has no end tag, as in <svg/>
	attrs  map[string]string
}

// tokens reads a document with html.Tokenizer in bounded memory. That ends at a token which is too large:
// here it is passed over, and the tokenizer begins anew behind it. Large tags are no rarity, since
// pictures come as data: URLs.
type tokens struct {
	r     io.Reader
	z     *html.Tokenizer
	raw   string // the element whose content is no markup: script, style
	begin []byte // the first octets of the last comment, and its last ones
	tail  []byte
}

func newTokens(r io.Reader) *tokens {
	t := &tokens{}
	t.resume(nil, r, "")
	return t
}

// resume begins with what was read already, inside of an element whose content is no markup, if that is
// not "".
func (t *tokens) resume(buffered []byte, r io.Reader, inside string) {
	t.r = r
	if len(buffered) > 0 {
		t.r = io.MultiReader(bytes.NewReader(bytes.Clone(buffered)), r)
	}
	if inside == "" {
		t.z = html.NewTokenizer(t.r)
	} else {
		// NewTokenizerFragment would not see the end tag.
		t.r = io.MultiReader(strings.NewReader("<"+inside+">"), t.r)
		t.z = html.NewTokenizer(t.r)
		t.z.Next()
	}
	t.z.SetMaxBuf(maxToken)
}

// rawElements have content that is no markup, as the tokenizer knows. Of these, shown says
// whether a reader sees it.
func rawElement(name string) (raw, shown bool) {
	switch name {
	case "script", "style", "iframe", "noembed", "noframes", "title":
		return true, false
	case "textarea", "xmp", "plaintext":
		return true, true
	}
	return false, false
}

// next returns the next piece of text or tag; io.EOF at the end.
func (t *tokens) next() (token, error) {
	for {
		switch kind := t.z.Next(); kind {
		case html.TextToken:
			_, shown := rawElement(t.raw)
			shown = shown || t.raw == ""
			text := ""
			if raw := t.z.Raw(); len(raw) < maxToken-1 {
				text = string(t.z.Text())
			} else {
				text = t.split(string(raw))
			}
			if shown && text != "" {
				return token{text: text}, nil
			}
		case html.CommentToken, html.DoctypeToken:
			raw := t.z.Raw()
			t.begin = append(t.begin[:0], raw[:min(4, len(raw))]...)
			t.tail = append(t.tail[:0], raw[max(0, len(raw)-3):]...)
		case html.StartTagToken, html.SelfClosingTagToken, html.EndTagToken:
			tok := t.tag(kind == html.EndTagToken)
			tok.closed = kind == html.SelfClosingTagToken && (tok.name == "svg" || tok.name == "math")
			t.raw = ""
			if raw, _ := rawElement(tok.name); raw && !tok.end {
				t.raw = tok.name
			}
			if tok.name == "noscript" {
				t.z.NextIsNotRawText() // nothing is run, so this is what is shown
			}
			return tok, nil
		default:
			err := t.z.Err()
			if !errors.Is(err, html.ErrBufferExceeded) {
				return token{}, err
			}
			tok, err := t.large()
			if err != nil || tok.name != "" {
				return tok, err
			}
		}
	}
}

// split returns a piece of text that was too large, and begins anew with what is the beginning of
// a tag, a character reference or a rune at its end.
func (t *tokens) split(raw string) string {
	cut := len(raw)
	for i := len(raw) - 1; i >= len(raw)-64; i-- {
		if c := raw[i]; c == '<' || c == '&' {
			cut = i
			break
		}
	}
	if cut == len(raw) {
		for i := len(raw) - 1; i >= len(raw)-utf8.UTFMax; i-- {
			if utf8.RuneStart(raw[i]) {
				if !utf8.FullRuneInString(raw[i:]) {
					cut = i
				}
				break
			}
		}
	}
	t.resume(append([]byte(raw[cut:]), t.z.Buffered()...), t.r, t.raw)
	text := raw[:cut]
	if t.raw != "xmp" && t.raw != "plaintext" {
		text = html.UnescapeString(text)
	}
	return text
}

func (t *tokens) tag(end bool) token {
	name, more := t.z.TagName()
	tok := token{name: string(name), end: end}
	if !end && more {
		tok.attrs = make(map[string]string, 4)
	}
	for i := 0; more && i < 100; i++ {
		var k, v []byte
		k, v, more = t.z.TagAttr()
		switch key := string(k); key {
		case "href", "style", "hidden", "alt", "type", "value", "action", "start", "checked":
			tok.attrs[key] = string(v)
		}
	}
	return tok
}

// large goes on behind a tag or a comment that was too large, of which the tokenizer has read the
// beginning.
func (t *tokens) large() (token, error) {
	raw := bytes.Clone(t.z.Raw())
	r := &peeked{buf: bytes.Clone(t.z.Buffered()), r: t.r}
	var tok token
	var err error
	t.raw = ""
	switch {
	case len(raw) > 2 && raw[0] == '<' && (isLetter(raw[1]) || raw[1] == '/' && isLetter(raw[2])):
		tok.end = raw[1] == '/'
		name := strings.TrimPrefix(string(raw[1:min(len(raw), 64)]), "/")
		if i := strings.IndexAny(name, " \t\r\n\f/>"); i >= 0 {
			name = name[:i]
		}
		tok.name = strings.ToLower(name)
		if raw, _ := rawElement(tok.name); raw && !tok.end {
			t.raw = tok.name
		}
		err = skipTag(raw, r)
	case string(t.begin) == "<!--":
		err = skipPast(r, t.tail, "-->")
	default:
		err = skipPast(r, t.tail[max(0, len(t.tail)-1):], ">")
	}
	t.resume(r.buf, r.r, t.raw)
	return tok, err
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// peeked is a reader with octets before it; what was not read of a block stays in buf.
type peeked struct {
	buf []byte
	r   io.Reader
}

func (p *peeked) ReadByte() (byte, error) {
	if len(p.buf) == 0 {
		if cap(p.buf) < 4096 {
			p.buf = make([]byte, 4096)
		}
		p.buf = p.buf[:cap(p.buf)]
		for range 100 {
			n, err := p.r.Read(p.buf)
			if n > 0 {
				p.buf = p.buf[:n]
				break
			}
			if err != nil {
				p.buf = nil
				return 0, err
			}
		}
		if len(p.buf) == 0 {
			return 0, io.ErrNoProgress
		}
	}
	c := p.buf[0]
	p.buf = p.buf[1:]
	return c, nil
}

// skipTag reads to the end of a tag of which raw was read, as the tokenizer would: a > in
// quotes does not end it.
func skipTag(raw []byte, r *peeked) error {
	const (
		name   = iota
		before // of an attribute
		key
		equals // white space after the sign
		bare   // a value without quotes
	)
	state, quote := name, byte(0)
	step := func(c byte) bool {
		space := c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\f'
		switch {
		case quote != 0:
			if c == quote {
				quote, state = 0, before
			}
		case c == '>':
			return true
		case state == equals && (c == '"' || c == '\''):
			quote = c
		case state == equals && !space:
			state = bare
		case state == equals:
		case state == bare && !space:
		case space, c == '/':
			if state == key && space {
				state = key // an equals sign may follow
			} else {
				state = before
			}
		case state == name:
		case c == '=' && state == key:
			state = equals
		default:
			state = key
		}
		return false
	}
	for i, c := range raw[1:] {
		if step(c) && i == len(raw)-2 {
			return nil // the one octet too many was its end
		}
	}
	for {
		c, err := r.ReadByte()
		if err != nil || step(c) {
			return err
		}
	}
}

// skipPast reads past the first occurrence of end, of which the beginning may have been read.
func skipPast(r *peeked, before []byte, end string) error {
	window := append(make([]byte, 0, 8), before...)
	if string(window) == end {
		return nil
	}
	for {
		c, err := r.ReadByte()
		if err != nil {
			return err
		}
		if len(window) == len(end) {
			window = append(window[:0], window[1:]...)
		}
		if window = append(window, c); string(window) == end {
			return nil
		}
	}
}
