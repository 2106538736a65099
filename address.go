package mailspine

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// The limits of RFC 5321 section 4.5.3.1, in octets.
const (
	MaxLocalPart = 64  // section 4.5.3.1.1
	MaxDomain    = 255 // section 4.5.3.1.2
	MaxPath      = 256 // section 4.5.3.1.3, with the angle brackets
)

// An Address is the mailbox of an SMTP path (RFC 5321 section 4.1.2, widened
// by RFC 6531 section 3.3). The zero Address is the null reverse-path, <>.
//
// Local is the decoded local part: without quotes and backslashes. Domain is
// as it was written, a domain name (A-labels or U-labels, without a trailing
// dot) or an address literal with its brackets. Addresses made by hand are not
// checked until they are used: see [Address.Validate]. Address is comparable,
// but == tells domains in different case apart: see [Address.Equal].
type Address struct {
	Local, Domain string
}

// An AddressError says what is wrong with an address, and where.
type AddressError struct {
	Input  string // what was parsed
	Offset int    // the octet at which the rule was broken
	Rule   string // the rule, with its source
}

// Error quotes the input, so that control characters cannot reach a terminal
// or a log raw.
func (e *AddressError) Error() string {
	in := e.Input
	if len(in) > 80 {
		in = in[:77] + "..."
	}
	return fmt.Sprintf("mailspine: address %q: at octet %d: %s", in, e.Offset, e.Rule)
}

var idnaProfile = idna.New(
	idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.StrictDomainName(true))

// ParseAddress parses a Mailbox of RFC 5321 section 4.1.2 with the
// extensions of RFC 6531 section 3.3: local-part@domain, the local part a
// dot-string or a quoted string, the domain a name or an address literal.
// There is no display name, no comment and no source route. The empty string is an
// error: the null reverse-path is not a mailbox. Errors are *AddressError.
func ParseAddress(s string) (Address, error) {
	fail := func(off int, rule string) (Address, error) {
		return Address{}, &AddressError{Input: s, Offset: off, Rule: rule}
	}
	if s == "" {
		return fail(0, "empty (RFC 5321 section 4.1.2)")
	}
	// The domain is looked for after the local part, never with LastIndex
	// alone: a quoted local part may hold an @.
	var local strings.Builder
	i := 0
	if s[0] == '"' {
		for i = 1; ; i++ {
			if i >= len(s) {
				return fail(i, "quoted string is not closed (RFC 5321 section 4.1.2)")
			}
			c := s[i]
			if c == '"' {
				i++
				break
			}
			if c == '\\' {
				if i++; i >= len(s) || s[i] < 0x20 || s[i] > 0x7e {
					return fail(i, "only printable ASCII follows a backslash (RFC 5321 section 4.1.2, quoted-pairSMTP)")
				}
				local.WriteByte(s[i])
				continue
			}
			if c < 0x20 || c == 0x7f {
				return fail(i, "control character in a quoted string (RFC 5321 section 4.1.2, qtextSMTP)")
			}
			local.WriteByte(c)
		}
	} else {
		for ; i < len(s) && s[i] != '@'; i++ {
			switch c := s[i]; {
			case isAtext(c) || c >= 0x80:
			case c == '.' && i > 0 && s[i-1] != '.' && i+1 < len(s) && s[i+1] != '@':
			case c == '.':
				return fail(i, "a dot must stand between atoms (RFC 5321 section 4.1.2, Dot-string)")
			default:
				return fail(i, "character not allowed in an atom (RFC 5321 section 4.1.2, Dot-string)")
			}
			local.WriteByte(s[i])
		}
		if i == 0 {
			return fail(0, "the local part is empty (RFC 5321 section 4.1.2)")
		}
	}
	if i >= len(s) || s[i] != '@' {
		return fail(i, "no @ after the local part (RFC 5321 section 4.1.2)")
	}
	a := Address{Local: local.String(), Domain: s[i+1:]}
	if off, rule := checkLocal(a.Local); rule != "" {
		return fail(min(off, i), rule)
	}
	if off, rule := checkDomain(a.Domain); rule != "" {
		return fail(i+1+off, rule)
	}
	if len(a.String()) > MaxPath-2 {
		return fail(len(s), "longer than 254 octets (RFC 5321 section 4.5.3.1.3)")
	}
	return a, nil
}

// Validate reports whether a could have come out of [ParseAddress]. The zero
// Address is valid.
func (a Address) Validate() error {
	if a.IsZero() {
		return nil
	}
	s := a.String()
	if off, rule := checkLocal(a.Local); rule != "" {
		return &AddressError{Input: s, Offset: off, Rule: rule}
	}
	if off, rule := checkDomain(a.Domain); rule != "" {
		return &AddressError{Input: s, Offset: len(s) - len(a.Domain) + off, Rule: rule}
	}
	if len(s) > MaxPath-2 {
		return &AddressError{Input: s, Offset: MaxPath - 2, Rule: "longer than 254 octets (RFC 5321 section 4.5.3.1.3)"}
	}
	return nil
}

func checkLocal(local string) (off int, rule string) {
	if len(local) > MaxLocalPart {
		return MaxLocalPart, "local part longer than 64 octets (RFC 5321 section 4.5.3.1.1)"
	}
	if !utf8.ValidString(local) {
		return 0, "local part is not valid UTF-8 (RFC 6531 section 3.3)"
	}
	for i := 0; i < len(local); i++ {
		if c := local[i]; c < 0x20 || c == 0x7f {
			return i, "control character in the local part (RFC 5321 section 4.1.2)"
		}
	}
	return 0, ""
}

func checkDomain(d string) (off int, rule string) {
	switch {
	case d == "":
		return 0, "the domain is empty (RFC 5321 section 4.1.2)"
	case len(d) > MaxDomain:
		return MaxDomain, "domain longer than 255 octets (RFC 5321 section 4.5.3.1.2)"
	case d[0] == '[':
		if _, ok := parseLiteral(d); !ok {
			return 0, "not an IPv4 or IPv6 address literal (RFC 5321 section 4.1.3)"
		}
		return 0, ""
	case !utf8.ValidString(d):
		return 0, "domain is not valid UTF-8 (RFC 6531 section 3.3)"
	}
	start := 0
	for i := 0; i <= len(d); i++ {
		if i < len(d) && d[i] != '.' {
			c := d[i]
			if c < 0x80 && !isLetDig(c) && c != '-' && c != '_' {
				return i, "character not allowed in a domain (RFC 5321 section 4.1.2, sub-domain)"
			}
			continue
		}
		label := d[start:i]
		switch {
		case label == "":
			return i, "empty label in the domain (RFC 5321 section 4.1.2)"
		case len(label) > 63 && isASCII(label):
			return start + 63, "label longer than 63 octets (RFC 1035 section 2.3.4)"
		case label[0] == '-' || label[len(label)-1] == '-':
			return start, "label begins or ends with a hyphen (RFC 5321 section 4.1.2, sub-domain)"
		}
		start = i + 1
	}
	if !isASCII(d) {
		if _, err := idnaProfile.ToASCII(d); err != nil {
			return 0, "not an internationalised domain name (RFC 5890 section 2.3.2.3)"
		}
	}
	return 0, ""
}

func parseLiteral(d string) (netip.Addr, bool) {
	if len(d) < 3 || d[0] != '[' || d[len(d)-1] != ']' {
		return netip.Addr{}, false
	}
	in := d[1 : len(d)-1]
	v6 := len(in) > 5 && strings.EqualFold(in[:5], "IPv6:")
	if v6 {
		in = in[5:]
	}
	ip, err := netip.ParseAddr(in)
	if err != nil || ip.Is4() == v6 || ip.Zone() != "" {
		return netip.Addr{}, false
	}
	return ip, true
}

// IsZero reports whether a is the null reverse-path.
func (a Address) IsZero() bool { return a == Address{} }

// Literal returns the IP address of an address literal domain, as in
// user@[192.0.2.1], and whether the domain is one.
func (a Address) Literal() (netip.Addr, bool) { return parseLiteral(a.Domain) }

// IsASCII reports whether a can be sent to a server without SMTPUTF8
// (RFC 6531). A domain with U-labels counts as not ASCII even though it has an
// ASCII form: see [Address.ASCIIDomain].
func (a Address) IsASCII() bool { return isASCII(a.Local) && isASCII(a.Domain) }

// ASCIIDomain returns the domain in lower case with A-labels, the form in
// which it is compared and looked up. Address literals come back in lower
// case with their brackets. A domain that has no such form is an error.
func (a Address) ASCIIDomain() (string, error) { return ASCIIDomain(a.Domain) }

// ASCIIDomain returns a domain name in lower case with A-labels and without a
// trailing dot, the form in which it is compared and looked up.
func ASCIIDomain(domain string) (string, error) {
	domain = strings.TrimSuffix(domain, ".")
	if isASCII(domain) {
		if len(domain) > MaxDomain {
			return "", errors.New("mailspine: domain longer than 255 octets (RFC 1035 section 2.3.4)")
		}
		return strings.ToLower(domain), nil
	}
	d, err := idnaProfile.ToASCII(domain)
	if err != nil {
		return "", fmt.Errorf("mailspine: domain %q has no ASCII form: %w", domain, err)
	}
	return strings.ToLower(d), nil
}

// Equal reports whether a and b are the same mailbox as far as SMTP knows:
// the local parts are the same octets (RFC 5321 section 2.4: only the
// destination may fold their case), and the domains are equal when compared
// without regard to case and as A-labels.
func (a Address) Equal(b Address) bool {
	if a.Local != b.Local {
		return false
	}
	if strings.EqualFold(a.Domain, b.Domain) {
		return true
	}
	x, err := a.ASCIIDomain()
	y, err2 := b.ASCIIDomain()
	return err == nil && err2 == nil && x == y
}

// String returns the mailbox as it stands between the angle brackets of a
// path, the local part quoted where it must be; "" for the zero Address.
func (a Address) String() string {
	if a.IsZero() {
		return ""
	}
	return quoteLocal(a.Local) + "@" + a.Domain
}

// Path returns the address with its angle brackets: "<joe@example.org>", or
// "<>" for the zero Address.
func (a Address) Path() string { return "<" + a.String() + ">" }

// MarshalText is [Address.String].
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText is [ParseAddress], but empty text is the zero Address.
func (a *Address) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*a = Address{}
		return nil
	}
	b, err := ParseAddress(string(text))
	if err == nil {
		*a = b
	}
	return err
}

func quoteLocal(s string) string {
	plain := s != "" && s[0] != '.' && s[len(s)-1] != '.' && !strings.Contains(s, "..")
	for i := 0; plain && i < len(s); i++ {
		plain = isAtext(s[i]) || s[i] == '.' || s[i] >= 0x80
	}
	if plain {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' || s[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

func isLetDig(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// isAtext is atext of RFC 5322 section 3.2.3.
func isAtext(c byte) bool {
	return isLetDig(c) || c != 0 && strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
