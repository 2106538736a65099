package authres

import (
	"strings"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// The bounds of [Parse] and of what [Header.Field] writes.
const (
	MaxLength     = 64 << 10 // octets of a field value
	MaxResults    = 256      // results in a field
	MaxProperties = 64       // properties of a result
	MaxKeyword    = 64       // octets of a method, result, type or name; longer ones are none
	MaxValue      = 400      // octets of a value that Field writes; longer ones are cut
)

// A Header is the content of one Authentication-Results field.
type Header struct {
	ID      string   // the authserv-id: who checked
	Results []Result // none: nothing was checked ("none")
}

// A Result is what one method found (RFC 8601 section 2.2, resinfo).
type Result struct {
	Method     string // "spf", "dkim", "dmarc" and so on, in lower case
	Value      string // "pass", "fail" and so on, in lower case
	Reason     string // why, for people; "": not said
	Comment    string // written after the value, in parentheses; Parse leaves it empty
	Properties []Property
}

// A Property is a detail of a result (RFC 8601 section 2.2, propspec):
// "header.d=example.org" has the Type "header", the Name "d" and the Value
// "example.org".
type Property struct {
	Type, Name, Value string
}

// Get returns the value of the first property of a type and name, or "".
func (r *Result) Get(typ, name string) string {
	for _, p := range r.Properties {
		if p.Type == typ && p.Name == name {
			return p.Value
		}
	}
	return ""
}

// Field returns the whole header field, folded, ended by CRLF. It cannot fail
// and never writes more than one field: results whose method or value are no
// keywords are left out, and so are properties whose type or name are none or whose value
// is empty; control characters become question marks.
func (h *Header) Field() []byte {
	var b strings.Builder
	b.WriteString("Authentication-Results: ")
	id := clean(h.ID)
	if id == "" {
		id = "unknown"
	}
	if plain(id) {
		b.WriteString(id)
	} else {
		b.WriteString(quoted(id))
	}
	n := 0
	for _, r := range h.Results {
		if !isKeyword(r.Method) || !isKeyword(r.Value) {
			continue
		}
		n++
		b.WriteString(";\r\n\t" + r.Method + "=" + r.Value)
		if c := clean(r.Comment); c != "" {
			b.WriteString(" (")
			for _, c := range c {
				if c == '(' || c == ')' || c == '\\' {
					b.WriteByte('\\')
				}
				b.WriteRune(c)
			}
			b.WriteString(")")
		}
		if v := clean(r.Reason); v != "" {
			b.WriteString("\r\n\t reason=" + quoted(v))
		}
		for _, p := range r.Properties {
			v := clean(p.Value)
			if !isKeyword(p.Type) || !isProperty(p.Name) || v == "" {
				continue
			}
			b.WriteString("\r\n\t " + p.Type + "." + p.Name + "=" + quote(v))
		}
	}
	if n == 0 {
		b.WriteString("; none")
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

// clean makes a foreign value something that can stand in a header: valid
// UTF-8 (RFC 6532) without control characters, at most MaxValue octets.
func clean(s string) string {
	if len(s) > MaxValue {
		s = strings.ToValidUTF8(s[:MaxValue], "")
	}
	s = strings.Map(func(r rune) rune {
		// U+0085, U+2028 and U+2029 end lines for some readers.
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
	return strings.TrimSpace(s)
}

// plain reports whether s is a token.
func plain(s string) bool {
	for _, c := range s {
		if !isToken(c) {
			return false
		}
	}
	return s != ""
}

// quote writes a pvalue: as it is when the grammar takes it, a token or a
// mailbox of tokens, and as a quoted string otherwise.
func quote(s string) string {
	local, domain, at := strings.Cut(s, "@")
	if !at && plain(s) || at && (local == "" || plain(local)) && plain(domain) {
		return s
	}
	return quoted(s)
}

func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		if c == '"' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteRune(c)
	}
	b.WriteByte('"')
	return b.String()
}

// isToken is a character of an RFC 2045 section 5.1 token, or beyond ASCII.
func isToken(c rune) bool {
	return c > ' ' && c != 0x7f && !strings.ContainsRune(`()<>@,;:\"/[]?=`, c)
}

// isKeyword is the Keyword of RFC 5321 section 4.1.2, in lower or upper case;
// RFC 8601 methods and results are made of it.
func isKeyword(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('a' <= c|0x20 && c|0x20 <= 'z') && !('0' <= c && c <= '9') && (c != '-' && c != '_' || i == 0) {
			return false
		}
	}
	return s != "" && len(s) <= MaxKeyword && s[len(s)-1] != '-'
}

// isProperty is the special-smtp-verb or Keyword of RFC 8601 section 2.2.
func isProperty(s string) bool { return isKeyword(s) }

// SameID reports whether two authserv-ids are the same to the most lenient of
// readers: without regard to case, a trailing dot, and the form of
// international names (RFC 8601 section 5 asks for IDN to be compared as one).
func SameID(a, b string) bool { return canonicalID(a) == canonicalID(b) }

func canonicalID(id string) string {
	id = strings.Trim(id, " \t")
	if a, err := mailspine.ASCIIDomain(id); err == nil {
		return strings.TrimRight(a, ".")
	}
	return strings.ToLower(strings.TrimRight(id, "."))
}
