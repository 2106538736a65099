package authres

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// A ParseError says what is wrong with a field value, and where.
type ParseError struct {
	Offset int    // in octets
	Rule   string // what the grammar wants there
}

// Error tells position and rule; nothing of the value is repeated.
func (e *ParseError) Error() string {
	return fmt.Sprintf("authres: at octet %d: %s", e.Offset, e.Rule)
}

// Parse parses the value of an Authentication-Results field, folded or
// unfolded. Comments are skipped, wherever they stand and however they nest.
// A version other than 1 is an error, since such a field must be ignored (RFC
// 8601 section 2.6). A semicolon at the end is let pass. Methods and values come back in lower case.
// Errors are *ParseError.
func Parse(value string) (*Header, error) {
	p := &parser{s: value}
	if rule := p.check(); rule != "" {
		return nil, &ParseError{p.i, rule}
	}
	h := &Header{}
	id, rule := p.id()
	if rule != "" {
		return nil, &ParseError{p.i, rule}
	}
	h.ID = id
	for p.i < len(p.s) {
		if p.s[p.i] != ';' {
			return nil, &ParseError{p.i, "a semicolon comes before each result (RFC 8601 section 2.2)"}
		}
		p.i++
		if rule := p.cfws(); rule != "" {
			return nil, &ParseError{p.i, rule}
		}
		if p.i == len(p.s) {
			if len(h.Results) == 0 {
				return nil, &ParseError{p.i, "a result or none follows the id (RFC 8601 section 2.2)"}
			}
			break // a trailing semicolon: not by the grammar, but common
		}
		r, none, rule := p.result()
		if rule != "" {
			return nil, &ParseError{p.i, rule}
		}
		if none {
			if len(h.Results) > 0 || p.i < len(p.s) {
				return nil, &ParseError{p.i, "none stands alone (RFC 8601 section 2.2, no-result)"}
			}
			return h, nil
		}
		if len(h.Results) >= MaxResults {
			return nil, &ParseError{p.i, "too many results"}
		}
		h.Results = append(h.Results, r)
	}
	if len(h.Results) == 0 {
		return nil, &ParseError{p.i, "a result or none follows the id (RFC 8601 section 2.2)"}
	}
	return h, nil
}

// ID returns the authserv-id of a field value. ok is false if there is none
// that every reader would read alike: more text glued to it, control characters,
// a comment that does not end. The results after it need not be well formed, and the
// version is not looked at, since a careless reader may believe such a field.
func ID(value string) (id string, ok bool) {
	p := &parser{s: value}
	if p.check() != "" || p.cfws() != "" {
		return "", false
	}
	id, rule := p.value()
	if rule != "" || id == "" {
		return "", false
	}
	before := p.i
	if p.cfws() != "" {
		return "", false
	}
	if p.i == len(p.s) || p.s[p.i] == ';' {
		return id, true
	}
	c := p.s[p.i]
	return id, p.i > before && '0' <= c && c <= '9'
}

// A parser walks over a field value once. It does not recurse: nested comments
// are counted.
type parser struct {
	s string
	i int
}

// check refuses what may stand nowhere in a field.
func (p *parser) check() string {
	if len(p.s) > MaxLength {
		p.i = MaxLength
		return "the field is too long"
	}
	for i, c := range p.s {
		switch {
		case c == utf8.RuneError:
			if _, n := utf8.DecodeRuneInString(p.s[i:]); n == 1 {
				p.i = i
				return "not valid UTF-8 (RFC 6532 section 3.1)"
			}
		case c < ' ' && c != '\t' && c != '\r' && c != '\n', c == 0x7f:
			p.i = i
			return "control character (RFC 5322 section 3.2.3)"
		}
	}
	return ""
}

// cfws skips white space, folds and comments.
func (p *parser) cfws() (rule string) {
	depth := 0
	for p.i < len(p.s) {
		switch c := p.s[p.i]; {
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
		case c == '(':
			depth++
		case depth == 0:
			return ""
		case c == ')':
			depth--
		case c == '\\':
			p.i++
		}
		p.i++
	}
	if depth > 0 || p.i > len(p.s) {
		p.i = len(p.s)
		return "a comment is not closed (RFC 5322 section 3.2.2)"
	}
	return ""
}

// value reads a token or a quoted string.
func (p *parser) value() (v, rule string) {
	if p.i < len(p.s) && p.s[p.i] == '"' {
		return p.quoted()
	}
	start := p.i
	for i, c := range p.s[start:] {
		if !isToken(c) {
			p.i = start + i
			if i == 0 {
				return "", "a token or quoted string is missing (RFC 8601 section 2.2, value)"
			}
			return p.s[start:p.i], ""
		}
	}
	p.i = len(p.s)
	if p.i == start {
		return "", "a token or quoted string is missing (RFC 8601 section 2.2, value)"
	}
	return p.s[start:], ""
}

func (p *parser) quoted() (v, rule string) {
	var b strings.Builder
	for p.i++; p.i < len(p.s); p.i++ {
		switch c := p.s[p.i]; c {
		case '"':
			p.i++
			return b.String(), ""
		case '\\':
			if p.i++; p.i < len(p.s) {
				b.WriteByte(p.s[p.i])
			}
		case '\r', '\n': // a fold inside of a quoted string
		default:
			b.WriteByte(c)
		}
	}
	p.i = len(p.s)
	return "", "a quoted string is not closed (RFC 5322 section 3.2.4)"
}

// id reads authserv-id and version, and the white space after them.
func (p *parser) id() (id, rule string) {
	if rule := p.cfws(); rule != "" {
		return "", rule
	}
	if id, rule = p.value(); rule != "" {
		return "", rule
	}
	if id == "" {
		return "", "the authserv-id is empty (RFC 8601 section 2.2)"
	}
	before := p.i
	if rule := p.cfws(); rule != "" {
		return "", rule
	}
	start := p.i
	for p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '9' {
		p.i++
	}
	if p.i > start {
		if before == start || p.s[start:p.i] != "1" {
			p.i = start
			return "", "a version other than 1 (RFC 8601 section 2.6)"
		}
		if rule := p.cfws(); rule != "" {
			return "", rule
		}
	}
	return id, ""
}

// keyword reads a method, result, ptype or property, in lower case.
func (p *parser) keyword() (v, rule string) {
	start := p.i
	for p.i < len(p.s) {
		c := p.s[p.i]
		if !('a' <= c|0x20 && c|0x20 <= 'z') && !('0' <= c && c <= '9') && c != '-' && c != '_' {
			break
		}
		p.i++
	}
	v = p.s[start:p.i]
	if !isKeyword(v) {
		p.i = start
		return "", "a keyword is missing (RFC 8601 section 2.2)"
	}
	return strings.ToLower(v), ""
}

// char skips white space, one character, and white space after it.
func (p *parser) char(c byte) (rule string) {
	if rule := p.cfws(); rule != "" {
		return rule
	}
	if p.i >= len(p.s) || p.s[p.i] != c {
		return "'" + string(c) + "' is missing (RFC 8601 section 2.2)"
	}
	p.i++
	return p.cfws()
}

// result reads what follows a semicolon and the white space after it.
func (p *parser) result() (r Result, none bool, rule string) {
	if r.Method, rule = p.keyword(); rule != "" {
		return r, false, rule
	}
	if rule = p.cfws(); rule != "" {
		return r, false, rule
	}
	if r.Method == "none" && (p.i == len(p.s) || p.s[p.i] == ';') {
		return r, true, ""
	}
	if p.i < len(p.s) && p.s[p.i] == '/' {
		// A method version; only 1 is known (RFC 8601 section 2.2).
		if rule = p.char('/'); rule != "" {
			return r, false, rule
		}
		start := p.i
		for p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '9' {
			p.i++
		}
		if p.s[start:p.i] != "1" {
			return r, false, "a method version other than 1 (RFC 8601 section 2.6)"
		}
	}
	if rule = p.char('='); rule != "" {
		return r, false, rule
	}
	if r.Value, rule = p.keyword(); rule != "" {
		return r, false, rule
	}
	for {
		before := p.i
		if rule = p.cfws(); rule != "" {
			return r, false, rule
		}
		if p.i == len(p.s) || p.s[p.i] == ';' {
			return r, false, ""
		}
		if before == p.i {
			return r, false, "white space comes before each property (RFC 8601 section 2.2)"
		}
		word, rule := p.keyword()
		if rule != "" {
			return r, false, rule
		}
		if rule = p.cfws(); rule != "" {
			return r, false, rule
		}
		if word == "reason" && p.i < len(p.s) && p.s[p.i] == '=' {
			if r.Reason != "" || len(r.Properties) > 0 {
				return r, false, "the reason stands once, before the properties (RFC 8601 section 2.2)"
			}
			if rule = p.char('='); rule != "" {
				return r, false, rule
			}
			if r.Reason, rule = p.value(); rule != "" {
				return r, false, rule
			}
			continue
		}
		prop := Property{Type: word}
		if rule = p.char('.'); rule != "" {
			return r, false, rule
		}
		if prop.Name, rule = p.keyword(); rule != "" {
			return r, false, rule
		}
		if rule = p.char('='); rule != "" {
			return r, false, rule
		}
		if prop.Value, rule = p.pvalue(); rule != "" {
			return r, false, rule
		}
		if len(r.Properties) >= MaxProperties {
			return r, false, "too many properties"
		}
		r.Properties = append(r.Properties, prop)
	}
}

// pvalue reads a token, a quoted string or a mailbox. Addresses of IPv6 and
// base64, which are often written without the quotes that they should have, are taken too.
func (p *parser) pvalue() (v, rule string) {
	var b strings.Builder
	start := p.i
	for p.i < len(p.s) {
		c := p.s[p.i]
		if c == '"' {
			q, rule := p.quoted()
			if rule != "" {
				return "", rule
			}
			b.WriteString(q)
			continue
		}
		if c <= ' ' || strings.IndexByte(`();\`, c) >= 0 {
			break
		}
		b.WriteByte(c)
		p.i++
	}
	if p.i == start {
		return "", "a value is missing (RFC 8601 section 2.2, pvalue)"
	}
	return b.String(), ""
}
