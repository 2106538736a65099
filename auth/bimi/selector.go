package bimi

import (
	"strings"
)

// DefaultSelector is the selector of mail that names no other.
const DefaultSelector = "default"

// ParseSelector reads the value of a BIMI-Selector field, unfolded, and returns
// the selector in lower case. The error is ErrNoRecord if the field does not begin with v=BIMI1, and otherwise a
// *SyntaxError; in both cases the field is to be ignored (appendix "Invalid BIMI-Selector Header").
func ParseSelector(value string) (string, error) {
	list, err := parseTags(value)
	if err != nil {
		return "", err
	}
	for _, t := range list {
		if t.name != "s" {
			continue
		}
		if !isSelector(t.value) {
			return "", &SyntaxError{t.offset, "s", "not a selector"}
		}
		return strings.ToLower(t.value), nil
	}
	return "", &SyntaxError{len(value), "s", "the tag is missing"}
}

// isSelector is sub-domain *("." sub-domain) of RFC 5321 section 4.1.2, in the bounds of DNS.
func isSelector(s string) bool {
	if len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for i := 0; i < len(l); i++ {
			if !isLetDig(l[i]) && l[i] != '-' {
				return false
			}
		}
	}
	return true
}

// isLocalSelector is local-part-prefix: 1*63 letters, digits and dashes.
func isLocalSelector(s string) bool {
	for i := 0; i < len(s); i++ {
		if !isLetDig(s[i]) && s[i] != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// LocalSelector makes a selector of an author's local part (section "Local-part
// Selectors", step 3): without the subaddress, each run of dots and underscores
// a dash, no dash at either end, in lower case. ok is false if other characters are left, or
// none, or more than 63.
func LocalSelector(local string) (selector string, ok bool) {
	local, _, _ = strings.Cut(local, "+")
	var b strings.Builder
	for i := 0; i < len(local); i++ {
		if c := local[i]; c != '_' && c != '.' {
			b.WriteByte(c)
		} else if i == 0 || local[i-1] != '_' && local[i-1] != '.' {
			b.WriteByte('-')
		}
	}
	s := strings.ToLower(strings.Trim(b.String(), "-"))
	if !isLocalSelector(s) {
		return "", false
	}
	return s, true
}

// local returns the selector that lps= asks for, if it asks for one.
func (r *Record) local(author string) (string, bool) {
	if !r.LocalPart {
		return "", false
	}
	s, ok := LocalSelector(author)
	if !ok || len(r.LocalPrefixes) == 0 {
		return s, ok
	}
	for _, p := range r.LocalPrefixes {
		if strings.HasPrefix(s, p) {
			return s, true
		}
	}
	return "", false
}
