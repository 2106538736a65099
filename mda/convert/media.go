package convert

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A mediaType is the value of a Content-Type or a Content-Disposition field (RFC 2045 section
// 5.1, RFC 2183).
type mediaType struct {
	typ, sub string // in lower case; a disposition has no sub
	params   []param
}

// A param is one parameter as it is written, but for quotes: RFC 2231 is not decoded.
type param struct{ name, value string } // the name in lower case

func (m mediaType) is(typ, sub string) bool { return m.typ == typ && m.sub == sub }

// get returns a parameter, put together of its pieces (RFC 2231 section 3) when it was cut,
// and "" when there is none.
func (m mediaType) get(name string) string {
	for _, p := range m.params {
		if p.name == name {
			return p.value
		}
	}
	var b strings.Builder
	for i := 0; ; i++ { // bounded by the number of parameters
		v, ok := m.lookup(name + "*" + strconv.Itoa(i))
		if !ok {
			return b.String()
		}
		b.WriteString(v)
	}
}

func (m mediaType) lookup(name string) (string, bool) {
	for _, p := range m.params {
		if p.name == name {
			return p.value, true
		}
	}
	return "", false
}

// set returns m with a parameter, in the place of the one of that name.
func (m mediaType) set(name, value string) mediaType {
	m.params = slices.Clone(m.params)
	for i, p := range m.params {
		if p.name == name {
			m.params[i].value = value
			return m
		}
	}
	m.params = slices.Insert(m.params, 0, param{name, value})
	return m
}

// without returns m without some parameters.
func (m mediaType) without(names ...string) mediaType {
	m.params = slices.DeleteFunc(slices.Clone(m.params), func(p param) bool { return slices.Contains(names, p.name) })
	return m
}

const maxParams = 100

// parseMediaType reads a media type, or a disposition, of an unfolded field value. It is lenient where
// there is one reading only: empty parameters, white space, values that want quotes and have
// none. A parameter that occurs twice has two readings.
func parseMediaType(v string) (mediaType, bool) {
	var m mediaType
	p := paramParser{v}
	p.space()
	m.typ = strings.ToLower(p.token())
	if m.typ == "" {
		return m, false
	}
	p.space()
	if p.eat('/') {
		p.space()
		if m.sub = strings.ToLower(p.token()); m.sub == "" {
			return m, false
		}
		p.space()
	}
	seen := map[string]bool{}
	for p.s != "" {
		if !p.eat(';') {
			return m, false
		}
		p.space()
		if p.s == "" || p.s[0] == ';' {
			continue
		}
		name := strings.ToLower(p.token())
		p.space()
		if name == "" || !p.eat('=') || seen[name] || len(m.params) == maxParams {
			return m, false
		}
		p.space()
		value, ok := p.value()
		if !ok {
			return m, false
		}
		value = printable(value)
		seen[name] = true
		m.params = append(m.params, param{name, value})
		p.space()
	}
	return m, true
}

// printable leaves out control characters, of which nothing good comes.
func printable(s string) string {
	control := func(c byte) bool { return c < ' ' && c != '\t' || c == 0x7f }
	return string(slices.DeleteFunc([]byte(s), control))
}

type paramParser struct{ s string }

func (p *paramParser) eat(c byte) bool {
	if p.s != "" && p.s[0] == c {
		p.s = p.s[1:]
		return true
	}
	return false
}

// space skips white space and comments (RFC 5322 section 3.2.2).
func (p *paramParser) space() {
	for depth := 0; p.s != ""; p.s = p.s[1:] {
		switch c := p.s[0]; {
		case c == '(':
			depth++
		case depth > 0 && c == ')':
			depth--
		case depth > 0 && c == '\\' && len(p.s) > 1:
			p.s = p.s[1:]
		case depth == 0 && c != ' ' && c != '\t' && c != '\r' && c != '\n':
			return
		}
	}
}

// token reads a token (RFC 2045 section 5.1). Octets over 127 are let pass.
func (p *paramParser) token() string {
	i := 0
	for i < len(p.s) && isToken(p.s[i]) {
		i++
	}
	t := p.s[:i]
	p.s = p.s[i:]
	return t
}

func isToken(c byte) bool {
	return c > ' ' && c != 0x7f && strings.IndexByte(`()<>@,;:\"/[]?=`, c) < 0
}

func (p *paramParser) value() (string, bool) {
	if !p.eat('"') {
		// Up to the semicolon: file names with spaces and brackets are often bare.
		i := strings.IndexByte(p.s, ';')
		if i < 0 {
			i = len(p.s)
		}
		v := p.s[:i]
		p.s = p.s[i:]
		if j := strings.Index(v, " ("); j >= 0 {
			v = v[:j] // a comment
		}
		return strings.TrimRight(v, " \t\r\n"), true
	}
	var b strings.Builder
	for p.s != "" {
		c := p.s[0]
		p.s = p.s[1:]
		switch {
		case c == '"':
			return b.String(), true
		case c == '\\' && p.s != "":
			// RFC 2045 has quoted pairs, and some clients have paths: C:\x. A backslash
			// is one of the former only where it has to be.
			if p.s[0] == '"' || p.s[0] == '\\' {
				c = p.s[0]
				p.s = p.s[1:]
			}
		}
		b.WriteByte(c)
	}
	return "", false
}

// trimComment cuts a value at its first comment or white space.
func trimComment(v string) string {
	if i := strings.IndexAny(v, " \t("); i >= 0 {
		v = v[:i]
	}
	return v
}

// field writes a field of a media type, folded (RFC 5322 section 2.2.3).
func (m mediaType) field(name, nl string) []byte {
	line := name + ": " + m.typ
	if m.sub != "" {
		line += "/" + m.sub
	}
	b := []byte(line)
	col := len(line)
	for _, p := range m.params {
		s := p.name + "=" + quoteParam(p.value)
		b = append(b, ';')
		if col+2+len(s) > 76 {
			b = append(b, nl...)
			col = 0
		}
		b = append(b, ' ')
		b = append(b, s...)
		col += 2 + len(s)
	}
	return append(b, nl...)
}

// quoteParam writes a value as a token or a quoted string, without control characters.
func quoteParam(v string) string {
	plain := v != ""
	for i := 0; i < len(v); i++ {
		plain = plain && isToken(v[i]) && v[i] < 0x80
	}
	if plain {
		return v
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(printable(v)) {
		if c == '"' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	b.WriteByte('"')
	return b.String()
}

// An extended is a parameter of RFC 2231: its octets and their charset.
type extended struct {
	base    string
	charset string
	octets  string
	at      int   // where its first piece is
	pieces  []int // indices of all of them
}

// extendeds returns the parameters that are written as RFC 2231 has it, with a charset.
func (m mediaType) extendeds() []extended {
	var out []extended
	for i, p := range m.params {
		base, rest, ok := strings.Cut(p.name, "*")
		if !ok || rest != "" && rest != "0*" {
			continue // not the beginning of one that has a charset
		}
		charset, value, ok := strings.Cut(p.value, "'")
		_, value, ok2 := strings.Cut(value, "'")
		if !ok || !ok2 {
			continue
		}
		e := extended{base: base, charset: charset, octets: unescape(value), at: i, pieces: []int{i}}
		for k := 1; rest != ""; k++ { // bounded by maxParams
			name := base + "*" + strconv.Itoa(k)
			j := slices.IndexFunc(m.params, func(p param) bool { return p.name == name || p.name == name+"*" })
			if j < 0 {
				break
			}
			v := m.params[j].value
			if strings.HasSuffix(m.params[j].name, "*") {
				v = unescape(v)
			}
			e.octets += v
			e.pieces = append(e.pieces, j)
		}
		out = append(out, e)
	}
	return out
}

// unescape decodes %XX; what is none stays.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// encodeParam writes a value as RFC 2231 has it, in pieces of at most 60 octets. One that is not
// UTF-8 has no charset, as RFC 2231 section 4 allows.
func encodeParam(base, value string) []param {
	charset := "utf-8"
	if !utf8.ValidString(value) {
		charset = ""
	}
	first := charset + "''"
	var pieces []string
	piece := first
	for i := 0; i < len(value); i++ {
		c := value[i]
		s := string(c)
		if !isToken(c) || c >= 0x80 || c == '%' || c == '\'' || c == '*' {
			s = fmt.Sprintf("%%%02X", c)
		}
		if len(piece)+len(s) > 60 {
			pieces = append(pieces, piece)
			piece = ""
		}
		piece += s
	}
	pieces = append(pieces, piece)
	if len(pieces) == 1 {
		return []param{{base + "*", piece}}
	}
	out := make([]param, len(pieces))
	for i, p := range pieces {
		out[i] = param{base + "*" + strconv.Itoa(i) + "*", p}
	}
	return out
}

// recode turns RFC 2231 parameters of other charsets into UTF-8.
func (m mediaType) recode() (mediaType, bool) {
	changed := false
	for { // one at a time, since indices move; each is UTF-8 afterwards
		var e extended
		var text string
		for _, x := range m.extendeds() {
			if t, ok := decodeWord(x.charset, x.octets); ok {
				e, text = x, t
				break
			}
		}
		if e.base == "" {
			return m, changed
		}
		n := m.replace(e, encodeParam(e.base, text))
		if len(n.params) > maxParams {
			return m, changed // it could not be read again
		}
		m, changed = n, true
	}
}

func (m mediaType) replace(e extended, by []param) mediaType {
	var out []param
	for i, p := range m.params {
		if i == e.at {
			out = append(out, by...)
		}
		// A parameter may be there twice, in two forms of RFC 2231: one goes.
		same := slices.ContainsFunc(by, func(b param) bool { return b.name == p.name })
		if !slices.Contains(e.pieces, i) && !same {
			out = append(out, p)
		}
	}
	m.params = out
	return m
}

// keywords are parameters whose values are words of a protocol. With others in them they say nothing,
// and so they do afterwards.
var keywords = []string{"charset", "format", "delsp", "type", "start", "start-info", "protocol", "micalg", "report-type", "method"}

// sevenBit writes parameters with octets over 127 as RFC 2231 has it.
func (m mediaType) sevenBit() mediaType {
	var out []param
	extended := func(name string) bool { // it is there as RFC 2231 has it as well
		return slices.ContainsFunc(m.params, func(p param) bool { return strings.HasPrefix(p.name, name+"*") })
	}
	for _, p := range m.params {
		switch {
		case isASCII(p.value) && isASCII(p.name):
			out = append(out, p)
		case isASCII(p.name) && !strings.Contains(p.name, "*") && len(p.value) < 1000 && !slices.Contains(keywords, p.name) && !extended(p.name):
			out = append(out, encodeParam(p.name, p.value)...)
		default:
			out = append(out, param{ascii(p.name), ascii(p.value)})
		}
	}
	m.typ, m.sub, m.params = ascii(m.typ), ascii(m.sub), out
	return m
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// ascii puts a question mark for each octet over 127, where nothing else is possible.
func ascii(s string) string {
	if isASCII(s) {
		return s
	}
	b := []byte(s)
	for i, c := range b {
		if c >= 0x80 {
			b[i] = '?'
		}
	}
	return string(b)
}
