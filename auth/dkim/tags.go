package dkim

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// A tag is one name=value of a tag-list (RFC 6376 section 3.2).
type tag struct {
	name, value string
	// from and to are the offsets between which the value stands in the list,
	// white space included.
	from, to int
}

// maxTags bounds a tag-list. RFC 6376 knows 15.
const maxTags = 100

// parseTags parses a tag-list strictly: names by the grammar, none twice, a
// semicolon after the last one allowed. rule says what is wrong.
func parseTags(s string) (tags []tag, rule string) {
	if !utf8.ValidString(s) {
		return nil, "not valid UTF-8"
	}
	for pos := 0; pos <= len(s); {
		end := strings.IndexByte(s[pos:], ';')
		if end < 0 {
			end = len(s)
		} else {
			end += pos
		}
		spec := s[pos:end]
		if isBlank(spec) {
			if end != len(s) || len(tags) == 0 {
				return nil, "empty tag"
			}
			break
		}
		eq := strings.IndexByte(spec, '=')
		if eq < 0 {
			return nil, "tag without a value"
		}
		t := tag{name: trimFWS(spec[:eq]), value: trimFWS(spec[eq+1:]), from: pos + eq + 1, to: end}
		if !isTagName(t.name) {
			return nil, "not a tag name"
		}
		for i := 0; i < len(t.value); i++ {
			if c := t.value[i]; c < ' ' && c != '\t' && c != '\r' && c != '\n' || c == 0x7f {
				return nil, "control character in the value of " + t.name + "="
			}
		}
		for _, u := range tags {
			if u.name == t.name {
				return nil, "tag " + t.name + "= occurs twice"
			}
		}
		if len(tags) >= maxTags {
			return nil, "too many tags"
		}
		tags = append(tags, t)
		pos = end + 1
	}
	return tags, ""
}

func isTagName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('a' <= c|0x20 && c|0x20 <= 'z') && (i == 0 || !('0' <= c && c <= '9') && c != '_') {
			return false
		}
	}
	return s != ""
}

// tagValue returns the value of a tag and whether it is there.
func tagValue(tags []tag, name string) (string, bool) {
	for _, t := range tags {
		if t.name == name {
			return t.value, true
		}
	}
	return "", false
}

func isBlank(s string) bool { return trimFWS(s) == "" }

func trimFWS(s string) string { return strings.Trim(s, " \t\r\n") }

// noFWS removes the white space that may stand anywhere in some values.
func noFWS(s string) string {
	if !strings.ContainsAny(s, " \t\r\n") {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\r' || r == '\n' {
			return -1
		}
		return r
	}, s)
}

// listed splits a colon-separated list; white space around the colons goes.
func listed(s string) []string {
	l := strings.Split(s, ":")
	for i := range l {
		l[i] = trimFWS(l[i])
	}
	return l
}

func decodeBase64(s string) ([]byte, error) {
	return base64.StdEncoding.DecodeString(noFWS(s))
}
