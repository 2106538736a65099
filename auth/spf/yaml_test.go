package spf

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The RFC 7208 and RFC 4408 suites are YAML. This reads the part of YAML that
// they use: documents, block mappings and sequences, flow sequences, plain and quoted
// scalars, block scalars. Mappings keep their order.

type yamlPair struct {
	key   string
	value any // string, []any or []yamlPair
}

type yamlLine struct {
	indent int
	text   string
	number int
}

func parseYAML(src string) (docs [][]yamlPair, err error) {
	defer func() {
		// The suites are fixed files: what this parser does not know is a failure of the test.
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	var lines []yamlLine
	flush := func() {
		if len(lines) > 0 {
			p := &yamlParser{lines: lines}
			docs = append(docs, p.mapping(lines[0].indent))
			if p.i < len(lines) {
				panic(fmt.Sprintf("line %d: left over", lines[p.i].number))
			}
			lines = nil
		}
	}
	for n, l := range strings.Split(src, "\n") {
		trimmed := strings.TrimLeft(l, " ")
		switch {
		case l == "---":
			flush()
		case strings.TrimSpace(l) == "", strings.HasPrefix(trimmed, "#"):
			lines = append(lines, yamlLine{-1, "", n + 1}) // counts in block scalars only
		default:
			lines = append(lines, yamlLine{len(l) - len(trimmed), strings.TrimRight(trimmed, " "), n + 1})
		}
		for len(lines) > 0 && lines[0].indent < 0 {
			lines = lines[1:]
		}
	}
	flush()
	return docs, nil
}

type yamlParser struct {
	lines []yamlLine
	i     int
}

func (p *yamlParser) skip() {
	for p.i < len(p.lines) && p.lines[p.i].indent < 0 {
		p.i++
	}
}

func (p *yamlParser) mapping(indent int) (m []yamlPair) {
	for p.skip(); p.i < len(p.lines) && p.lines[p.i].indent == indent && !strings.HasPrefix(p.lines[p.i].text, "- "); p.skip() {
		key, rest := cutKey(p.lines[p.i].text)
		p.i++
		m = append(m, yamlPair{key, p.value(rest, indent)})
	}
	return m
}

// value reads what follows "key:" or "- " at an indentation.
func (p *yamlParser) value(rest string, indent int) any {
	switch {
	case rest == "":
		p.skip()
		if p.i >= len(p.lines) || p.lines[p.i].indent < indent {
			return ""
		}
		l := p.lines[p.i]
		if strings.HasPrefix(l.text, "- ") {
			return p.sequence(l.indent)
		}
		if l.indent == indent {
			return ""
		}
		return p.mapping(l.indent)
	case rest[0] == '>' || rest[0] == '|':
		var text []string
		for p.i < len(p.lines) && (p.lines[p.i].indent < 0 || p.lines[p.i].indent > indent) {
			text = append(text, p.lines[p.i].text)
			p.i++
		}
		return strings.TrimSpace(strings.Join(text, " "))
	}
	// A plain or quoted scalar may go on on deeper lines.
	for p.i < len(p.lines) && p.lines[p.i].indent > indent && !strings.HasPrefix(p.lines[p.i].text, "- ") {
		rest += " " + p.lines[p.i].text
		p.i++
	}
	v, left := flow(rest)
	if strings.TrimSpace(left) != "" && !strings.HasPrefix(strings.TrimSpace(left), "#") {
		panic("left over: " + left)
	}
	return v
}

func (p *yamlParser) sequence(indent int) (s []any) {
	for p.skip(); p.i < len(p.lines) && p.lines[p.i].indent == indent && strings.HasPrefix(p.lines[p.i].text, "- "); p.skip() {
		item := strings.TrimLeft(p.lines[p.i].text[2:], " ")
		p.i++
		if item[0] != '"' && item[0] != '\'' && item[0] != '[' && strings.Contains(item, ":") {
			key, rest := cutKey(item)
			s = append(s, []yamlPair{{key, p.value(rest, indent)}})
			continue
		}
		s = append(s, p.value(item, indent))
	}
	return s
}

// cutKey splits "key: value".
func cutKey(text string) (key, rest string) {
	if text[0] == '"' {
		v, left := flow(text)
		return v.(string), strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(left), ":"))
	}
	if k, ok := strings.CutSuffix(text, ":"); ok {
		return k, ""
	}
	key, rest, ok := strings.Cut(text, ": ")
	if !ok {
		panic("no key in " + text)
	}
	return key, strings.TrimSpace(rest)
}

// flow reads a scalar or a flow sequence.
func flow(s string) (v any, left string) {
	switch s[0] {
	case '[':
		var l []any
		s = strings.TrimLeft(s[1:], " ")
		for s[0] != ']' {
			end := strings.IndexAny(s, ",]")
			var item any
			if s[0] == '"' || s[0] == '\'' {
				item, s = flow(s)
			} else {
				item, s = strings.TrimSpace(s[:end]), s[end:]
			}
			l = append(l, item)
			s = strings.TrimLeft(strings.TrimPrefix(strings.TrimLeft(s, " "), ","), " ")
		}
		return l, s[1:]
	case '\'':
		end := strings.IndexByte(s[1:], '\'')
		return s[1 : 1+end], s[end+2:]
	case '"':
		var b strings.Builder
		for i := 1; i < len(s); i++ {
			switch s[i] {
			case '"':
				return b.String(), s[i+1:]
			case '\\':
				i++
				switch s[i] {
				case 'x':
					n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
					if err != nil {
						panic(err)
					}
					b.Write(utf8.AppendRune(nil, rune(n)))
					i += 2
				case '0':
					b.WriteByte(0)
				case '"', '\\':
					b.WriteByte(s[i])
				default:
					panic("escape in " + s)
				}
			default:
				b.WriteByte(s[i])
			}
		}
		panic("not closed: " + s)
	}
	if i := strings.Index(s, " #"); i >= 0 {
		s = s[:i]
	}
	return strings.TrimSpace(s), ""
}
