package spf

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxExpansion bounds what a macro-string may expand to, in octets: a record of
// 64 KiB full of %{s} would otherwise become megabytes. A domain name has 253.
const maxExpansion = 4096

// A macro is a parsed macro-expand (RFC 7208 section 7.1).
type macro struct {
	letter  byte // in lower case
	escape  bool // the letter was in upper case
	keep    int  // how many parts; 0: all
	reverse bool
	delims  string
}

// parseMacro parses what follows "%{" and returns its length with the brace.
func parseMacro(s string) (m macro, n int, rule string) {
	const bad = "not a macro (RFC 7208 section 7.1)"
	end := strings.IndexByte(s, '}')
	if end < 1 {
		return m, 0, bad
	}
	body := s[:end]
	m.letter = body[0] | 0x20
	m.escape = body[0] < 'a'
	if !isAlpha(body[0]) || strings.IndexByte("slodiphcrtv", m.letter) < 0 {
		return m, 0, "unknown macro letter (RFC 7208 section 7.2)"
	}
	i := 1
	for i < len(body) && body[i] >= '0' && body[i] <= '9' {
		i++
	}
	if i > 1 {
		// 128 labels is more than any name has; larger numbers mean all.
		k, err := strconv.Atoi(body[1:i])
		if err != nil || k > 128 {
			k = 128
		}
		if k == 0 {
			return m, 0, "a macro keeps at least one part (RFC 7208 section 7.3)"
		}
		m.keep = k
	}
	if i < len(body) && body[i]|0x20 == 'r' {
		m.reverse = true
		i++
	}
	m.delims = body[i:]
	for _, c := range []byte(m.delims) {
		if strings.IndexByte(".-+,/_=", c) < 0 {
			return m, 0, bad
		}
	}
	return m, end + 1, ""
}

// scanMacros checks the syntax of a macro-string and returns the offset after
// the last macro in it. The letters c, r and t are for explanations only.
func scanMacros(s string, explanation bool) (tail int, rule string) {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '%' {
			if c < 0x21 || c > 0x7e {
				if c == ' ' && explanation {
					continue
				}
				return 0, "character not allowed (RFC 7208 section 7.1, macro-literal)"
			}
			continue
		}
		if i++; i >= len(s) {
			return 0, "a % stands alone (RFC 7208 section 7.1)"
		}
		switch s[i] {
		case '%', '_', '-':
		case '{':
			m, n, rule := parseMacro(s[i+1:])
			if rule != "" {
				return 0, rule
			}
			if !explanation && strings.IndexByte("crt", m.letter) >= 0 {
				return 0, "the macro letters c, r and t are for explanations (RFC 7208 section 7.2)"
			}
			i += n
		default:
			return 0, "not a macro (RFC 7208 section 7.1)"
		}
		tail = i + 1
	}
	return tail, ""
}

// expand expands a macro-string whose syntax is known to be right. ok is
// false if the result would be longer than maxExpansion.
func (e *evaluation) expand(ctx context.Context, s, domain string) (_ string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
		} else {
			i++
			switch s[i] {
			case '%':
				b.WriteByte('%')
			case '_':
				b.WriteByte(' ')
			case '-':
				b.WriteString("%20")
			case '{':
				m, n, _ := parseMacro(s[i+1:])
				i += n
				b.WriteString(m.transform(e.macroValue(ctx, m.letter, domain)))
			}
		}
		if b.Len() > maxExpansion {
			return "", false
		}
	}
	return b.String(), true
}

func (e *evaluation) macroValue(ctx context.Context, letter byte, domain string) string {
	switch letter {
	case 's':
		return e.local + "@" + e.senderDomain
	case 'l':
		return e.local
	case 'o':
		return e.senderDomain
	case 'd':
		return domain
	case 'i':
		return dotted(e.ip)
	case 'p':
		return e.validatedName(ctx, domain)
	case 'v':
		if e.ip.Is4() {
			return "in-addr"
		}
		return "ip6"
	case 'h':
		return e.helo
	case 'c':
		return e.ip.String()
	case 'r':
		if e.v.Receiver == "" {
			return "unknown"
		}
		return e.v.Receiver
	case 't':
		return strconv.FormatInt(e.v.now().Unix(), 10)
	}
	return ""
}

// transform splits, reverses, truncates, joins and escapes (section 7.3).
func (m macro) transform(s string) string {
	if m.keep > 0 || m.reverse || m.delims != "" {
		delims := m.delims
		if delims == "" {
			delims = "."
		}
		var parts []string
		start := 0
		for i := 0; i <= len(s); i++ {
			if i == len(s) || strings.IndexByte(delims, s[i]) >= 0 {
				parts = append(parts, s[start:i])
				start = i + 1
			}
		}
		if m.reverse {
			slices.Reverse(parts)
		}
		if m.keep > 0 && m.keep < len(parts) {
			parts = parts[len(parts)-m.keep:]
		}
		s = strings.Join(parts, ".")
	}
	if !m.escape {
		return s
	}
	// The unreserved characters of RFC 3986 section 2.3 stay.
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if isAlnum(c) || c == '-' || c == '.' || c == '_' || c == '~' {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// dotted is the macro i: a dotted quad, or all 32 nibbles with dots, in upper
// case as the RFC 7208 test suite has them (names are asked for in lower case).
func dotted(ip netip.Addr) string {
	if ip.Is4() {
		return ip.String()
	}
	const hex = "0123456789ABCDEF"
	b := ip.As16()
	s := make([]byte, 0, 63)
	for _, c := range b {
		s = append(s, hex[c>>4], '.', hex[c&15], '.')
	}
	return string(s[:len(s)-1])
}
