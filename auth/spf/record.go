package spf

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A Record is a parsed SPF record (RFC 7208 section 4.6). It is for tools that
// show and check records; a [Verifier] does its own parsing.
type Record struct {
	Directives []Directive
	Redirect   string // the domain-spec of redirect=; "": none
	Explain    string // the domain-spec of exp=; "": none
}

// A Directive is a mechanism with its qualifier.
type Directive struct {
	Qualifier Status // Pass, Fail, SoftFail or Neutral
	Mechanism string // all, include, a, mx, ptr, ip4, ip6 or exists, in lower case
	// Domain is the domain-spec, its macros not expanded; "": the current domain.
	Domain string
	// Prefix is the network of ip4 and ip6.
	Prefix netip.Prefix
	// Bits4 and Bits6 are the prefix lengths of a and mx: 32 and 128 by default.
	Bits4, Bits6 int
	// Text is the directive as published.
	Text string
}

// A SyntaxError says what is wrong with a record, and where.
type SyntaxError struct {
	Term   string // the term; "" for the record as a whole
	Offset int    // where it begins in the record, in octets
	Rule   string // the rule that it breaks
}

// Error quotes the term as ASCII.
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("spf: term %q at octet %d: %s", printable(e.Term), e.Offset, e.Rule)
}

// IsRecord reports whether a TXT record claims to be an SPF record: it begins
// with the version, followed by a space or the end (RFC 7208 section 4.5).
func IsRecord(txt string) bool {
	const v = "v=spf1"
	return len(txt) >= len(v) && strings.EqualFold(txt[:len(v)], v) && (len(txt) == len(v) || txt[len(v)] == ' ')
}

// ParseRecord parses a whole record: a syntax error anywhere makes the record
// useless (RFC 7208 section 4.6). Errors are *SyntaxError.
func ParseRecord(txt string) (*Record, error) {
	if !IsRecord(txt) {
		return nil, &SyntaxError{Term: txt, Rule: "does not begin with v=spf1 (RFC 7208 section 4.5)"}
	}
	for i := 0; i < len(txt); i++ {
		if txt[i] >= 0x80 {
			return nil, &SyntaxError{Offset: i, Rule: "octet outside of ASCII (RFC 7208 section 3.1)"}
		}
	}
	rec := &Record{}
	redirects, explains := 0, 0
	// Terms are separated by spaces and nothing else (RFC 7208 section 4.6.1).
	for pos := len("v=spf1"); pos < len(txt); {
		if txt[pos] == ' ' {
			pos++
			continue
		}
		end := pos
		for end < len(txt) && txt[end] != ' ' {
			end++
		}
		term := txt[pos:end]
		fail := func(rule string) (*Record, error) {
			return nil, &SyntaxError{Term: term, Offset: pos, Rule: rule}
		}
		if name, value, ok := cutModifier(term); ok {
			switch strings.ToLower(name) {
			case "redirect":
				if redirects++; redirects > 1 {
					return fail("redirect= occurs twice (RFC 7208 section 6)")
				}
				if rule := checkDomainSpec(value); rule != "" {
					return fail(rule)
				}
				rec.Redirect = value
			case "exp":
				if explains++; explains > 1 {
					return fail("exp= occurs twice (RFC 7208 section 6)")
				}
				if rule := checkDomainSpec(value); rule != "" {
					return fail(rule)
				}
				rec.Explain = value
			default:
				// Unknown modifiers are ignored if they are well formed (section 6).
				if _, rule := scanMacros(value, true); rule != "" {
					return fail(rule)
				}
			}
		} else {
			d, rule := parseDirective(term)
			if rule != "" {
				return fail(rule)
			}
			rec.Directives = append(rec.Directives, d)
		}
		pos = end
	}
	return rec, nil
}

// cutModifier splits name=value if the term has the form of a modifier.
func cutModifier(term string) (name, value string, ok bool) {
	i := strings.IndexByte(term, '=')
	if i <= 0 || !isAlpha(term[0]) {
		return "", "", false
	}
	for _, c := range []byte(term[:i]) {
		if !isAlnum(c) && c != '-' && c != '_' && c != '.' {
			return "", "", false
		}
	}
	return term[:i], term[i+1:], true
}

func parseDirective(term string) (d Directive, rule string) {
	d = Directive{Qualifier: Pass, Bits4: 32, Bits6: 128, Text: term}
	rest := term
	switch rest[0] {
	case '+':
		rest = rest[1:]
	case '-':
		d.Qualifier, rest = Fail, rest[1:]
	case '~':
		d.Qualifier, rest = SoftFail, rest[1:]
	case '?':
		d.Qualifier, rest = Neutral, rest[1:]
	}
	n := 0
	for n < len(rest) && rest[n] != ':' && rest[n] != '/' {
		n++
	}
	d.Mechanism, rest = strings.ToLower(rest[:n]), rest[n:]
	switch d.Mechanism {
	case "all":
		if rest != "" {
			return d, "all takes no argument (RFC 7208 section 5.1)"
		}
	case "a", "mx":
		var ok bool
		if rest, d.Bits4, d.Bits6, ok = cutDualCIDR(rest); !ok {
			return d, "not a prefix length (RFC 7208 section 5.6)"
		}
		fallthrough
	case "ptr":
		if rest == "" {
			break
		}
		if rest[0] != ':' {
			return d, "a domain follows a colon (RFC 7208 sections 5.3 to 5.5)"
		}
		d.Domain = rest[1:]
		return d, checkDomainSpec(d.Domain)
	case "include", "exists":
		if rest == "" || rest[0] != ':' {
			return d, d.Mechanism + " needs a domain (RFC 7208 sections 5.2 and 5.7)"
		}
		d.Domain = rest[1:]
		return d, checkDomainSpec(d.Domain)
	case "ip4", "ip6":
		if rest == "" || rest[0] != ':' {
			return d, d.Mechanism + " needs an address (RFC 7208 section 5.6)"
		}
		addr, bits, hasBits := strings.Cut(rest[1:], "/")
		ip, err := netip.ParseAddr(addr)
		if err != nil || ip.Zone() != "" || ip.Is4() != (d.Mechanism == "ip4") {
			return d, "not an " + d.Mechanism + " address (RFC 7208 section 5.6)"
		}
		n := ip.BitLen()
		if hasBits {
			var ok bool
			if n, ok = parseBits(bits, n); !ok {
				return d, "not a prefix length (RFC 7208 section 5.6)"
			}
		}
		d.Prefix = netip.PrefixFrom(ip, n).Masked()
	default:
		return d, "unknown mechanism (RFC 7208 section 4.6.1)"
	}
	return d, ""
}

// cutDualCIDR takes [ "/" n ] [ "//" n ] off the end. A slash may also stand in a domain-spec, so
// only digits at the end count.
func cutDualCIDR(s string) (rest string, bits4, bits6 int, ok bool) {
	bits4, bits6 = 32, 128
	digits := func(s string) int {
		i := len(s)
		for i > 0 && s[i-1] >= '0' && s[i-1] <= '9' {
			i--
		}
		return i
	}
	if i := digits(s); i < len(s) && i >= 2 && s[i-2:i] == "//" {
		if bits6, ok = parseBits(s[i:], 128); !ok {
			return s, 0, 0, false
		}
		s = s[:i-2]
	}
	if i := digits(s); i < len(s) && i >= 1 && s[i-1] == '/' {
		if bits4, ok = parseBits(s[i:], 32); !ok {
			return s, 0, 0, false
		}
		s = s[:i-1]
	}
	return s, bits4, bits6, true
}

func parseBits(s string, max int) (int, bool) {
	if s == "" || len(s) > 3 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 8)
	return int(n), err == nil && int(n) <= max
}

// checkDomainSpec checks the syntax of RFC 7208 section 7.1, domain-spec: macros
// and literals that end in a macro or in a top label.
func checkDomainSpec(s string) (rule string) {
	if s == "" {
		return "the domain is empty (RFC 7208 section 7.1)"
	}
	tail, rule := scanMacros(s, false)
	if rule != "" {
		return rule
	}
	if tail == len(s) {
		return "" // ends in a macro
	}
	lit := strings.TrimSuffix(s[tail:], ".")
	dot := strings.LastIndexByte(lit, '.')
	if dot < 0 {
		return "the domain has no top label (RFC 7208 section 7.1)"
	}
	top := lit[dot+1:]
	if top == "" || top[0] == '-' || top[len(top)-1] == '-' {
		return "not a top label (RFC 7208 section 7.1)"
	}
	letters := false
	for _, c := range []byte(top) {
		if !isAlnum(c) && c != '-' {
			return "not a top label (RFC 7208 section 7.1)"
		}
		letters = letters || !('0' <= c && c <= '9')
	}
	if !letters {
		return "a top label has a letter (RFC 7208 section 7.1)"
	}
	return ""
}

func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isAlnum(c byte) bool { return isAlpha(c) || '0' <= c && c <= '9' }
