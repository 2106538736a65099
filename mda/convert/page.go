package convert

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	pageWidth = 76   // columns, where there is a space to break at
	maxQuote  = 8    // quotation marks shown
	maxIndent = 24   // columns of lists and definitions
	maxPiece  = 4096 // octets of a word that are held at once
	maxMarks  = 8    // combining marks on one character
)

// A page sets text in lines. It holds a word, and nothing else: what is
// written cannot be taken back.
type page struct {
	w  *bufio.Writer
	nl string

	word   []byte
	cols   int  // width of the word
	spaced bool // white space was before it
	marks  int  // combining marks at its end

	col     int  // of the line that is written; the prefix does not count
	brk     int  // what must come before the next word: 1 a line end, 2 an empty line as well
	started bool // something was written
	ruled   bool // the last thing was a rule
	cell    bool // a cell of a table has begun

	quote  int    // depth of quotation
	quoted int    // that of the line before
	indent int    // columns
	lead   string // goes before the next word, within the indent: the bullet of a list
	mark   string // goes before the next word: the mark of a heading
	pre    bool   // line ends and spaces stand as they are

	copied []byte // the words since the beginning of a link, as far as maxTarget
	link   bool
	seen   bool // something of the link is visible
}

// text writes a piece of text.
func (p *page) text(s string) {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		s = s[n:]
		switch r = clean(r); {
		case r < 0:
		case r == '\n' && p.pre:
			p.endWord()
			p.spaced = false
			p.breakLine(p.brk + 1)
		case r == '\t' && p.pre, r == ' ' && p.pre:
			p.add(r)
		case r == ' ' || r == '\n' || r == '\t':
			p.endWord()
			p.spaced = true
		case r == '\u200c' || r == '\u200d':
			// Joiners mean something between letters of some scripts, and in emoji.
			if last, _ := utf8.DecodeLastRune(p.word); len(p.word) > 0 && last >= 0x590 && last != r {
				p.add(r)
			}
		case unicode.In(r, unicode.Mn, unicode.Me):
			if p.marks++; p.marks <= maxMarks {
				p.add(r)
				p.cols--
			}
		default:
			p.marks = 0
			p.add(r)
		}
	}
}

// clean returns the rune that is shown for r: white space is ' ' or '\n'; -1 for what is not shown. Those are
// control characters, and format characters, which are invisible or change the direction of what is
// around them, apart from marks of direction, joiners, and signs that are visible.
func clean(r rune) rune {
	switch {
	case r == '\n' || r == '\t':
		return r
	case r == '\r' || r == '\f' || r == 0x85:
		return ' '
	case r < ' ' || 0x7f <= r && r < 0xa0:
		return -1
	case r < 0x80:
		return r
	case r == 0x200c || r == 0x200d || r == 0x200e || r == 0x200f || r == 0x61c:
		return r
	case r == 0x2028 || r == 0x2029 || unicode.Is(unicode.Zs, r):
		return ' '
	case r == 0x115f || r == 0x1160 || r == 0x3164 || r == 0xffa0 || r == 0x2800: // letters that look like a space
		return ' '
	case r == 0x34f || 0xe0000 <= r && r < 0xe1000: // invisible, tags among them
		return -1
	case unicode.Is(unicode.Cf, r) && !unicode.Is(unicode.Prepended_Concatenation_Mark, r):
		return -1
	case 0xfdd0 <= r && r <= 0xfdef || r&0xfffe == 0xfffe: // no characters
		return -1
	}
	return r
}

func (p *page) add(r rune) {
	if len(p.word) >= maxPiece {
		p.endPiece()
	}
	p.word = utf8.AppendRune(p.word, r)
	p.cols++
}

// endPiece writes the beginning of a word that is too long to be held. Its end stays, so that what
// could be taken for a link is seen also where it is cut.
func (p *page) endPiece() {
	k := len(p.word) - 16
	for !utf8.RuneStart(p.word[k]) {
		k--
	}
	rest := string(p.word[k:])
	p.word = p.word[:k]
	p.cols = utf8.RuneCount(p.word)
	p.endWord()
	p.word = append(p.word, rest...)
	p.cols = utf8.RuneCountInString(rest)
}

// apart sets apart what could be taken for the mark of a link, which only the view itself writes.
func apart(word string) string {
	i := 0
	for {
		k := strings.IndexByte(word[i:], '<')
		if k < 0 {
			return word
		}
		i += k + 1
		for _, s := range []string{"http:", "https:", "ftp:", "mailto:", "tel:"} {
			if len(word) >= i+len(s) && strings.EqualFold(word[i:i+len(s)], s) {
				word = word[:i] + " " + word[i:]
				break
			}
		}
	}
}

// endWord writes the word.
func (p *page) endWord() {
	if len(bytes.TrimSpace(p.word)) == 0 { // spaces are part of a word in preformatted text
		p.word, p.cols, p.marks = p.word[:0], 0, 0
		return
	}
	word := apart(string(p.word))
	p.cols += len(word) - len(p.word)
	if p.link && len(p.copied) <= maxTarget {
		if p.spaced && len(p.copied) > 0 {
			p.copied = append(p.copied, ' ')
		}
		p.copied = append(p.copied, p.word...)
	}
	p.seen = true
	p.put(word, p.cols)
	p.word, p.cols, p.marks = p.word[:0], 0, 0
}

// put writes something that is not broken, of a width.
func (p *page) put(s string, cols int) {
	sep := ""
	switch {
	case p.col == 0:
	case p.cell && p.brk == 0:
		sep = " | "
	case p.spaced:
		sep = " "
	}
	p.cell = false
	if p.brk == 0 && p.started && !p.pre && sep != "" && p.col+len(sep)+cols+p.margin() > pageWidth {
		p.brk = 1
	}
	if p.brk > 0 || !p.started {
		p.newLine()
		sep = ""
	}
	p.w.WriteString(sep)
	p.w.WriteString(s)
	p.col += len(sep) + cols
	p.spaced, p.ruled = false, false
}

func (p *page) margin() int { return 2*min(p.quote, maxQuote) + min(p.indent, maxIndent) }

// newLine ends the line that is written, and begins another one with its prefix.
func (p *page) newLine() {
	quote := min(p.quote, maxQuote)
	if p.started {
		p.w.WriteString(p.nl)
		if p.brk > 1 {
			// An empty line is quoted where both of its neighbours are.
			p.w.WriteString(strings.TrimRight(strings.Repeat("> ", min(quote, p.quoted)), " "))
			p.w.WriteString(p.nl)
		}
	}
	indent := min(p.indent, maxIndent)
	p.w.WriteString(strings.Repeat("> ", quote))
	if n := len(p.lead); n > 0 {
		p.w.WriteString(strings.Repeat(" ", max(0, indent-n)))
		p.w.WriteString(p.lead)
	} else {
		p.w.WriteString(strings.Repeat(" ", indent))
	}
	p.w.WriteString(p.mark)
	p.lead, p.mark = "", ""
	p.quoted, p.started, p.brk, p.col = quote, true, 0, 0
}

// breakLine asks for n line ends, of which more than two are two, before what follows.
func (p *page) breakLine(n int) {
	p.endWord()
	p.spaced = false
	p.brk = max(p.brk, min(n, 2))
}

// rule draws a line, unless there is one.
func (p *page) rule() {
	p.breakLine(1)
	if !p.ruled {
		p.put("--------------------", 20)
		p.ruled = true
	}
	p.brk = 1
}

// beginLink begins to note what is visible of a link.
func (p *page) beginLink() {
	p.endWord()
	p.link, p.copied, p.seen = true, p.copied[:0], false
}

// endLink writes a mark behind a link.
func (p *page) endLink(mark string) {
	p.endWord()
	p.link = false
	if p.seen && mark != "" {
		p.spaced = true
		p.put(mark, len(mark))
	}
}

// end writes what is left, and says so when that was nothing.
func (p *page) end(empty string) error {
	p.endWord()
	if !p.started {
		p.brk = 0
		p.lead, p.mark = "", ""
		p.quote, p.indent = 0, 0
		p.put(empty, len(empty))
	}
	p.w.WriteString(p.nl)
	return p.w.Flush()
}

func newPage(w io.Writer, nl string) *page {
	return &page{w: bufio.NewWriterSize(w, 16<<10), nl: nl}
}
