package dns

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mailspine/mailspine"
)

// maxName is the longest name in text, without the trailing dot: 255 octets
// on the wire with the length octets and the root (RFC 1035 section 3.1).
const maxName = 253

// ErrBadName is the detail of an error for a name that cannot be in the DNS,
// and was not asked for. The error is also a mailspine.ErrNXDomain: such a name
// does not exist.
var ErrBadName = errors.New("malformed name")

// canonicalName returns a name in the form in which names are compared, in
// lower case and without a trailing dot; "" is the root. It refuses, with an error
// that matches ErrBadName, what is no name: empty or too long labels,
// control characters, blanks, backslashes (with which names are escaped
// elsewhere) and octets beyond ASCII. Host name rules do not apply: "_dmarc" is a name,
// and so is what SPF macros make of an odd local part.
func canonicalName(name string) (string, error) {
	if name == "." {
		return "", nil
	}
	n := strings.TrimSuffix(name, ".")
	if n == "" {
		return "", fmt.Errorf("%w: empty", ErrBadName)
	}
	if len(n) > maxName {
		return "", fmt.Errorf("%w: longer than 253 octets", ErrBadName)
	}
	label := 0
	for i := range len(n) {
		switch c := n[i]; {
		case c == '.':
			if label == 0 {
				return "", fmt.Errorf("%w: empty label", ErrBadName)
			}
			label = 0
		case c <= ' ' || c >= 0x7f || c == '\\':
			return "", fmt.Errorf("%w: octet %#02x", ErrBadName, c)
		default:
			if label++; label > 63 {
				return "", fmt.Errorf("%w: label longer than 63 octets", ErrBadName)
			}
		}
	}
	if label == 0 {
		return "", fmt.Errorf("%w: empty label", ErrBadName)
	}
	return strings.ToLower(n), nil
}

// under reports whether name is zone or below it. Both are in the form in which
// package miekg/dns writes names, in lower case and with the trailing dot.
func under(name, zone string) bool {
	if zone == "." || name == zone {
		return true
	}
	// An escaped dot before the zone is part of a label, not its end.
	head, ok := strings.CutSuffix(name, "."+zone)
	return ok && !oddBackslashes(head)
}

func oddBackslashes(s string) bool {
	n := 0
	for n < len(s) && s[len(s)-1-n] == '\\' {
		n++
	}
	return n%2 == 1
}

// unescape returns the octets of a character string as package miekg/dns
// writes them, in the presentation format of RFC 1035 section 5.1.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		if i+3 < len(s) && digit(s[i+1]) && digit(s[i+2]) && digit(s[i+3]) {
			b = append(b, (s[i+1]-'0')*100+(s[i+2]-'0')*10+(s[i+3]-'0'))
			i += 3
			continue
		}
		i++
		b = append(b, s[i])
	}
	return string(b)
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func dnsError(name string, t mailspine.Type, kind, detail error) *mailspine.DNSError {
	return &mailspine.DNSError{Name: name, Type: t, Kind: kind, Err: detail}
}
