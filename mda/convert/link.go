package convert

import (
	"fmt"
	"net/url"
	"strings"

	"golang.org/x/net/idna"
)

// maxTarget is how much of a link's target is shown, in octets.
const maxTarget = 2000

// target returns what is shown of a link's target: an address as a browser would understand
// it, in printable ASCII; or, when it is not shown, the scheme that it has. Both are empty for
// links that lead nowhere outside of the message.
//
// What a browser forgives is forgiven here as well (WHATWG URL, section 4.4): white space around and line ends
// within, backslashes, and any number of slashes. Otherwise one could write links that look
// harmless here, and are none there.
func target(href, base string) (shown, scheme string) {
	href = strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, strings.TrimFunc(href, func(r rune) bool { return r <= ' ' }))
	scheme, rest, ok := cutScheme(href)
	if !ok {
		if href == "" || href[0] == '#' {
			return "", ""
		}
		if len(href) > 1 && isSlash(href[0]) && isSlash(href[1]) {
			scheme, rest = "https", href
			if s, _, ok := cutScheme(base); ok && isWeb(s) {
				scheme = s
			}
		} else {
			b, err := url.Parse(base)
			if err != nil || !isWeb(b.Scheme) || b.Host == "" {
				return "", ""
			}
			u, err := b.Parse(strings.ReplaceAll(href, `\`, "/"))
			if err != nil {
				return "", ""
			}
			scheme, rest, _ = cutScheme(u.String())
		}
	}
	switch {
	case isWeb(scheme):
		host, path := authority(rest)
		if host == "" {
			return "", ""
		}
		shown = scheme + "://" + host + path
	case scheme == "mailto" || scheme == "tel":
		// The address alone: what a draft of a message would have in it is no place that
		// it leads to.
		rest, _, _ = strings.Cut(rest, "?")
		if rest == "" {
			return "", ""
		}
		shown = scheme + ":" + escape(rest)
	case scheme == "cid", scheme == "mid", scheme == "about":
		return "", ""
	default:
		return "", scheme
	}
	if len(shown) > maxTarget {
		shown = fmt.Sprintf("%s...(%d octets more)", shown[:maxTarget], len(shown)-maxTarget)
	}
	return shown, ""
}

func isSlash(c byte) bool { return c == '/' || c == '\\' }

func isWeb(scheme string) bool { return scheme == "http" || scheme == "https" || scheme == "ftp" }

// cutScheme returns the scheme of a URL in lower case, and what is after its colon.
func cutScheme(s string) (scheme, rest string, ok bool) {
	for i := 0; i < len(s) && i < 40; i++ {
		switch c := s[i]; {
		case isLetter(c):
		case i > 0 && ('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.'):
		case i > 0 && c == ':':
			return strings.ToLower(s[:i]), s[i+1:], true
		default:
			return "", "", false
		}
	}
	return "", "", false
}

// authority returns the host and port of what is after the scheme, and the rest. The user name
// goes: it is where a link says that it leads elsewhere.
func authority(s string) (host, rest string) {
	i := 0
	for i < len(s) && isSlash(s[i]) {
		i++
	}
	s = s[i:]
	if i = strings.IndexAny(s, `/\?#`); i >= 0 {
		s, rest = s[:i], s[i:]
	}
	if k := strings.LastIndexByte(s, '@'); k >= 0 {
		s = s[k+1:]
	}
	if len(s) > 1000 {
		return "", ""
	}
	if q, err := url.PathUnescape(s); err == nil {
		s = q
	}
	if !isASCII(s) {
		// The A-labels: what looks like the letters of a known name and is none shows there.
		name, port, _ := strings.Cut(s, ":")
		if a, err := idna.Lookup.ToASCII(name); err == nil {
			s = a
			if port != "" {
				s += ":" + port
			}
		}
	}
	if i = strings.IndexByte(rest, '?'); i < 0 {
		i = len(rest)
	}
	if k := strings.IndexByte(rest, '#'); k >= 0 {
		i = min(i, k)
	}
	rest = strings.ReplaceAll(rest[:i], `\`, "/") + rest[i:]
	return escape(strings.ToLower(s)), escape(rest)
}

// escape writes octets that are not printable ASCII, and those that would end the mark of a link,
// as %XX.
func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c > '~' || strings.IndexByte("<>\"`{}|\\^", c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
