package mtasts

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// The bounds of what is read.
const (
	// MaxPolicy is the size of a policy file in octets, as RFC 8461 section 3.3 suggests.
	MaxPolicy = 64 << 10
	// MaxMX is how many mx patterns a policy may have.
	MaxMX = 500
	// MaxRecord is the size of a TXT record in octets.
	MaxRecord = 4 << 10
	// MaxMaxAge is the longest life of a policy (RFC 8461 section 3.2: 31557600 seconds, a year). A longer one is
	// taken for this.
	MaxMaxAge = 31557600 * time.Second
)

// A Mode is what a policy asks of senders (RFC 8461 section 5).
type Mode string

// The modes.
const (
	// ModeNone: the domain has no policy any more, and says so.
	ModeNone Mode = "none"
	// ModeTesting: failures are reported, and mail is delivered all the same.
	ModeTesting Mode = "testing"
	// ModeEnforce: mail is not delivered to a host that the policy does not list, or that has no TLS with a valid certificate.
	ModeEnforce Mode = "enforce"
)

// A Policy is a domain's MTA-STS policy. The zero Policy, with Mode "", is no policy. A Policy that a [Cache]
// returned is shared: its slice is not to be modified.
type Policy struct {
	// ID is that of the TXT record under which the policy was fetched. It is not in the file: ParsePolicy and
	// Fetcher.Fetch leave it empty.
	ID   string
	Mode Mode
	// MX are the patterns of hosts, in the file's order, in lower case: "mx.example.org" or "*.example.org".
	MX []string
	// MaxAge is how long the policy may be kept, in whole seconds, at most MaxMaxAge.
	MaxAge time.Duration
}

// A SyntaxError says what is wrong in a policy file.
type SyntaxError struct {
	Line   int    // from 1; 0: no single line
	Key    string // "version", "mode", "max_age" or "mx"; "": none of them
	Reason string
}

// Error puts the parts together.
func (e *SyntaxError) Error() string {
	s := "policy file: "
	if e.Line > 0 {
		s = fmt.Sprintf("policy file, line %d: ", e.Line)
	}
	if e.Key != "" {
		s += e.Key + ": "
	}
	return s + e.Reason
}

// ParsePolicy reads a policy file (RFC 8461 section 3.2). The error is a *[SyntaxError].
//
// It is as strict as the RFC, with one exception: empty lines are skipped. Lines end in CRLF or LF. Keys and
// the values of version and mode are compared with their case. Unknown keys are ignored. Of a key that may occur once the
// first counts and others are not even looked at. Host names are A-labels without a trailing dot. max_age is
// cut to MaxMaxAge. A policy needs an mx unless its mode is none.
func ParsePolicy(b []byte) (Policy, error) {
	fail := func(line int, key, format string, args ...any) (Policy, error) {
		return Policy{}, &SyntaxError{Line: line, Key: key, Reason: fmt.Sprintf(format, args...)}
	}
	if len(b) > MaxPolicy {
		return fail(0, "", "longer than %d octets", MaxPolicy)
	}
	var p Policy
	var version, maxAge bool
	n := 0
	// As many lines as fit into MaxPolicy.
	for line := range strings.SplitSeq(string(b), "\n") {
		n++
		line = strings.TrimSuffix(line, "\r")
		if strings.Trim(line, " \t") == "" {
			continue
		}
		if !utf8.ValidString(line) {
			return fail(n, "", "not UTF-8")
		}
		key, value, found := strings.Cut(line, ":")
		switch {
		case !found:
			return fail(n, "", "no colon, so this is no key and value")
		case !isExtName(key):
			return fail(n, "", "%.40q is no name of a key", key)
		}
		value = strings.Trim(value, " \t")
		if i := strings.IndexFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
			return fail(n, "", "a control character in the value")
		}
		switch key {
		case "version":
			if version {
				continue
			}
			if value != "STSv1" {
				return fail(n, key, "%.40q is not STSv1", value)
			}
			version = true
		case "mode":
			if p.Mode != "" {
				continue
			}
			switch m := Mode(value); m {
			case ModeNone, ModeTesting, ModeEnforce:
				p.Mode = m
			default:
				return fail(n, key, "%.40q is not enforce, testing or none", value)
			}
		case "max_age":
			if maxAge {
				continue
			}
			// 1*10(DIGIT), which fits into an int64.
			if len(value) == 0 || len(value) > 10 || strings.Trim(value, "0123456789") != "" {
				return fail(n, key, "%.40q is not a number of seconds of at most ten digits", value)
			}
			sec, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return fail(n, key, "%.40q is not a number of seconds", value)
			}
			p.MaxAge = MaxMaxAge
			if sec < int64(MaxMaxAge/time.Second) {
				p.MaxAge = time.Duration(sec) * time.Second
			}
			maxAge = true
		case "mx":
			if len(p.MX) == MaxMX {
				return fail(n, key, "more than %d patterns", MaxMX)
			}
			pattern := strings.ToLower(value)
			if reason := checkPattern(pattern); reason != "" {
				return fail(n, key, "%.80q %s", value, reason)
			}
			p.MX = append(p.MX, pattern)
		}
	}
	switch {
	case !version:
		return fail(0, "version", "missing")
	case p.Mode == "":
		return fail(0, "mode", "missing")
	case !maxAge:
		return fail(0, "max_age", "missing")
	case len(p.MX) == 0 && p.Mode != ModeNone:
		return fail(0, "mx", "missing, and the mode is not none")
	}
	return p, nil
}

// Validate reports what would keep others from reading the policy's file: an unknown mode, a bad pattern, an age that is
// negative, over a year or not of whole seconds. The zero Policy is not valid. The ID, if there is one, must be one too.
func (p Policy) Validate() error {
	switch {
	case p.ID != "" && !isID(p.ID):
		return fmt.Errorf("mtasts: the id %.40q is not 1 to 32 letters and digits", p.ID)
	case p.MaxAge < 0 || p.MaxAge > MaxMaxAge || p.MaxAge%time.Second != 0:
		return fmt.Errorf("mtasts: a max_age of %v is not 0 to %d whole seconds", p.MaxAge, MaxMaxAge/time.Second)
	}
	for _, m := range p.MX {
		if strings.ToLower(m) != m || checkPattern(m) != "" {
			return fmt.Errorf("mtasts: the mx pattern %.80q is not a host name in lower case", m)
		}
	}
	switch p.Mode {
	case ModeNone:
	case ModeTesting, ModeEnforce:
		if len(p.MX) == 0 {
			return fmt.Errorf("mtasts: the mode is %s, and there is no mx", p.Mode)
		}
	default:
		return fmt.Errorf("mtasts: the mode %.40q is not enforce, testing or none", p.Mode)
	}
	if len(p.MX) > MaxMX {
		return fmt.Errorf("mtasts: more than %d mx patterns", MaxMX)
	}
	return nil
}

// Lines returns the lines of the policy's file without their ends, as a report has them (RFC 8460 section 4.4, policy-string).
// What was not understood in the file that was fetched is not among them. The zero Policy has none.
func (p Policy) Lines() []string {
	if p.Mode == "" {
		return nil
	}
	lines := []string{"version: STSv1", "mode: " + string(p.Mode)}
	for _, m := range p.MX {
		lines = append(lines, "mx: "+m)
	}
	return append(lines, "max_age: "+strconv.FormatInt(int64(p.MaxAge/time.Second), 10))
}

// String returns the policy's file, lines ending in CRLF; for the zero Policy "".
func (p Policy) String() string {
	var b strings.Builder
	for _, l := range p.Lines() {
		b.WriteString(l + "\r\n")
	}
	return b.String()
}

// Matches reports whether the policy lists a host (RFC 8461 section 4.1): a pattern is its name, or "*." and what follows
// the first label of its name. host may be in any case, with U-labels and a trailing dot. It does not look at Mode, and the zero
// Policy lists nobody.
func (p Policy) Matches(host string) bool {
	h, err := mailspine.ASCIIDomain(host)
	if err != nil || !isHostname(h) {
		return false
	}
	_, parent, _ := strings.Cut(h, ".")
	return slices.ContainsFunc(p.MX, func(m string) bool { return patternMatches(m, h, parent) })
}

// patternMatches compares a pattern, in lower case, with a host and with what follows its first label.
func patternMatches(pattern, host, parent string) bool {
	if wild, ok := strings.CutPrefix(pattern, "*."); ok {
		return parent != "" && wild == parent
	}
	return pattern == host
}

// checkPattern says what is wrong with a pattern in lower case; "" for nothing.
func checkPattern(m string) string {
	switch name := strings.TrimPrefix(m, "*."); {
	case name == "":
		return "is empty"
	case strings.IndexFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0:
		return "has characters outside of ASCII; A-labels are needed (RFC 8461 section 4.1)"
	case strings.HasSuffix(name, "."):
		return "ends in a dot"
	case strings.Contains(name, "*"):
		return "has an asterisk that is not the whole first label"
	case !isHostname(name):
		return "is no host name"
	}
	return ""
}

// isHostname reports whether s is labels of letters, digits and hyphens (RFC 5321 section 4.1.2, Domain), in ASCII.
func isHostname(s string) bool {
	// 253: a name takes its own length and two octets in a message of DNS (RFC 1035 section 2.3.4).
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := 0; i < len(label); i++ {
			if !isAlnum(label[i]) && label[i] != '-' {
				return false
			}
		}
	}
	return true
}

// isExtName is the ABNF's sts-policy-ext-name, and sts-ext-name of records, of which the known ones are cases.
func isExtName(s string) bool {
	if s == "" || len(s) > 32 || !isAlnum(s[0]) {
		return false
	}
	for i := 1; i < len(s); i++ {
		if c := s[i]; !isAlnum(c) && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// policyDomain returns a domain in the form in which it is looked up and kept, and whether it can have a policy at all: not an
// address literal, nor a name for which there is no host.
func policyDomain(domain string) (string, bool) {
	d, err := mailspine.ASCIIDomain(domain)
	if err != nil || !isHostname(d) || len(recordPrefix)+len(d) > 253 {
		return "", false
	}
	return d, true
}
