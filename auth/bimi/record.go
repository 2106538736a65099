package bimi

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
)

// The bounds of what is read.
const (
	MaxRecord = 16 << 10 // octets of a record or of a BIMI-Selector field
	MaxURI    = 900      // octets of a URI, so that it fits in a header line
	MaxTags   = 100      // tags of a record
)

// ErrNoRecord is the error for a text that is no assertion record, and is to be ignored: it does
// not begin with v=BIMI1, exactly.
var ErrNoRecord = errors.New("bimi: not a BIMI record")

// A SyntaxError says what is wrong in a record or in a field. For results it is a fail.
type SyntaxError struct {
	Offset int    // where, in octets
	Tag    string // the tag's name; "": no tag
	Reason string
}

// Error puts the parts together.
func (e *SyntaxError) Error() string {
	if e.Tag == "" {
		return fmt.Sprintf("bimi: octet %d: %s", e.Offset, e.Reason)
	}
	return fmt.Sprintf("bimi: octet %d: %s=: %s", e.Offset, e.Tag, e.Reason)
}

// A Record is an assertion record (section 4.4, "Assertion Record Definition").
type Record struct {
	// Indicator is l=, where the indicator is: a https URI as it was written. "": none.
	Indicator string
	// Evidence is a=, where the evidence document is, or "".
	Evidence string
	// Preference is avp=, "brand" or "personal": which picture the domain wants shown to those
	// who also have the author's own. "": not given, or not valid; that means brand.
	Preference string
	// LocalPart is set if lps= is there: the author's local part, normalised, is a selector, if one of
	// LocalPrefixes (in lower case) begins it; without prefixes, always.
	LocalPart     bool
	LocalPrefixes []string
}

// Declined reports whether the record refuses to take part (section
// "Declination to Publish"): both URIs are empty.
func (r *Record) Declined() bool { return r.Indicator == "" && r.Evidence == "" }

// ParseRecord parses an assertion record, the strings of a TXT record joined. The
// error is ErrNoRecord for a text that is to be ignored, and a *SyntaxError for a record that
// is broken. Unknown tags are ignored, and so is an avp= that is not valid.
func ParseRecord(txt string) (*Record, error) {
	list, err := parseTags(txt)
	if err != nil {
		return nil, err
	}
	rec := &Record{}
	located := false
	for _, t := range list {
		bad := func(reason string) (*Record, error) { return nil, &SyntaxError{t.offset, t.name, reason} }
		switch t.name {
		case "l":
			located = true
			if reason := checkURI(t.value); reason != "" {
				return bad(reason)
			}
			if reason := checkFormat(t.value); reason != "" {
				return bad(reason)
			}
			rec.Indicator = t.value
		case "a":
			if reason := checkURI(t.value); reason != "" {
				return bad(reason)
			}
			rec.Evidence = t.value
		case "avp":
			if t.value == "brand" || t.value == "personal" {
				rec.Preference = t.value
			}
		case "lps":
			rec.LocalPart = true
			if t.value == "" {
				continue
			}
			// Bounded by the length of the record.
			for p := range strings.SplitSeq(t.value, ",") {
				p = strings.ToLower(strings.Trim(p, " \t"))
				if !isLocalSelector(p) {
					return bad("a prefix is not 1 to 63 letters, digits and dashes")
				}
				rec.LocalPrefixes = append(rec.LocalPrefixes, p)
			}
		}
	}
	if !located {
		return nil, &SyntaxError{len(txt), "l", "the tag is missing"}
	}
	return rec, nil
}

// checkURI says what is wrong with the URI of a tag; "" for none, and for an empty one.
func checkURI(s string) string {
	if s == "" {
		return ""
	}
	if len(s) > MaxURI {
		return fmt.Sprintf("the URI is longer than %d octets", MaxURI)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case isLetDig(c), strings.IndexByte("-._~:/?#@!$&'()*+=", c) >= 0:
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
		case c == ',':
			return "a comma in the URI is not encoded"
		default:
			return "not a single URI (RFC 3986)"
		}
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "not a URI (RFC 3986)"
	case u.Scheme != "https":
		return "not a https URI"
	case u.User != nil:
		return "a user name in the URI (RFC 9110 section 4.2.4)"
	case !isFQDN(u.Hostname()):
		return "the URI has no fully qualified domain name"
	}
	return ""
}

// checkFormat refuses an indicator whose name says that it is no SVG (section "Supported Image
// Formats"). A name need not end in a suffix at all.
func checkFormat(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "" // has been checked
	}
	switch strings.ToLower(path.Ext(u.Path)) {
	case ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jp2", ".jxl", ".gif", ".webp", ".avif", ".heic", ".heif",
		".bmp", ".ico", ".tif", ".tiff", ".eps", ".pdf":
		return "the indicator is not in the format SVG"
	}
	return ""
}

// isFQDN reports whether a host is a name of at least two labels, and no address.
func isFQDN(host string) bool {
	host = strings.TrimSuffix(host, ".")
	last := host[strings.LastIndexByte(host, '.')+1:]
	return strings.Contains(host, ".") && isSelector(host) &&
		strings.ContainsFunc(last, func(c rune) bool { return c < '0' || c > '9' })
}

// A tag is one tag-spec of a list.
type tag struct {
	name, value string
	offset      int // of the tag-spec
}

// parseTags reads a tag-list (RFC 6376 section 3.2) whose first tag is v=BIMI1, and
// returns the others. Names are case-sensitive, and none may occur twice.
func parseTags(s string) ([]tag, error) {
	var list []tag
	for rest, offset := s, 0; ; {
		spec, next, more := strings.Cut(rest, ";")
		if spec = trim(spec); spec == "" && !more && offset > 0 {
			return list, nil // after the last semicolon
		}
		name, value, ok := strings.Cut(spec, "=")
		name, value = trimRight(name), trim(value)
		if offset == 0 {
			// Exactly so, without white space before it.
			if !ok || name != "v" || value != "BIMI1" || s[0] != 'v' {
				return nil, ErrNoRecord
			}
			if len(s) > MaxRecord {
				return nil, &SyntaxError{MaxRecord, "", fmt.Sprintf("longer than %d octets", MaxRecord)}
			}
		} else {
			bad := func(reason string) ([]tag, error) { return nil, &SyntaxError{offset, "", reason} }
			switch {
			case !ok:
				return bad("a tag without =")
			case !isTagName(name):
				return bad("not the name of a tag")
			case !isTagValue(value):
				return bad("the value of a tag has other characters than printable ASCII")
			case name == "v" || slices.ContainsFunc(list, func(t tag) bool { return t.name == name }):
				return bad("a tag occurs twice")
			case len(list) >= MaxTags:
				return bad("too many tags")
			}
			list = append(list, tag{name, value, offset})
		}
		if !more {
			return list, nil
		}
		offset += len(rest) - len(next)
		rest = next
	}
}

func trim(s string) string      { return strings.Trim(s, " \t") }
func trimRight(s string) string { return strings.TrimRight(s, " \t") }

// isTagName is tag-name: ALPHA *ALNUMPUNC.
func isTagName(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !isLetDig(c) && (c != '_' || i == 0) || i == 0 && '0' <= c && c <= '9' {
			return false
		}
	}
	return s != ""
}

// isTagValue is tag-value, in one line.
func isTagValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < ' ' && c != '\t') || c > '~' {
			return false
		}
	}
	return true
}

func isLetDig(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' }
func isHex(c byte) bool    { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f' }
