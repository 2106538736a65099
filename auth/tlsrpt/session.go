package tlsrpt

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// A PolicyType says where the policy of a session came from (RFC 8460 section 4.4). What strangers write
// in their reports is kept as it is.
type PolicyType string

// The policy types.
const (
	PolicyTLSA PolicyType = "tlsa"            // DANE
	PolicySTS  PolicyType = "sts"             // MTA-STS
	PolicyNone PolicyType = "no-policy-found" // neither
)

// A Policy is what a session had to obey. The zero value is a policy of type PolicyNone for the
// recipient domain.
type Policy struct {
	// Type is "" for PolicyNone.
	Type PolicyType
	// Domain is the policy domain: that of the MTA-STS policy, or the TLSA base domain for DANE. "": the
	// recipient domain.
	Domain string
	// Strings is the policy: the lines of the MTA-STS file, or the TLSA records ("3 1 1 ..."). May be empty.
	Strings []string
	// MXHosts are the mx patterns of an MTA-STS policy. May be empty.
	MXHosts []string
}

// TLSAPolicy returns the policy that the TLSA records at a base domain make.
func TLSAPolicy(base string, recs []mailspine.TLSA) Policy {
	p := Policy{Type: PolicyTLSA, Domain: base}
	for _, r := range recs[:min(len(recs), maxStrings)] {
		p.Strings = append(p.Strings, fmt.Sprintf("%d %d %d %s", r.Usage, r.Selector, r.MatchingType, hex.EncodeToString(r.Data[:min(len(r.Data), maxString/2)])))
	}
	return p
}

// A ResultType says how a session ended (RFC 8460 section 4.3, and its registry in section 6.6). What strangers write
// in their reports is kept as it is.
type ResultType string

// The result types.
const (
	Success ResultType = "" // TLS was negotiated, and the policy complied with

	// Negotiation (section 4.3.1).
	StartTLSNotSupported    ResultType = "starttls-not-supported"
	CertificateHostMismatch ResultType = "certificate-host-mismatch"
	CertificateExpired      ResultType = "certificate-expired"
	CertificateNotTrusted   ResultType = "certificate-not-trusted"
	ValidationFailure       ResultType = "validation-failure" // everything else; say more in Reason

	// DANE (section 4.3.2.1).
	TLSAInvalid   ResultType = "tlsa-invalid"
	DNSSECInvalid ResultType = "dnssec-invalid"
	DANERequired  ResultType = "dane-required"

	// MTA-STS (section 4.3.2.2).
	STSPolicyFetchError ResultType = "sts-policy-fetch-error"
	STSPolicyInvalid    ResultType = "sts-policy-invalid"
	STSWebPKIInvalid    ResultType = "sts-webpki-invalid"
)

// A Session is the outcome of one attempt to speak TLS with a host of a recipient domain, or of one attempt to
// find out how. A connection that serves many messages is one session. Sessions that failed before TLS was
// tried, by a time-out or a full server, need not be recorded (RFC 8460 section 4.3.4).
type Session struct {
	// Domain is the recipient domain, whose reports it belongs to. Required; it is compared in lower case with
	// A-labels. A session for an address literal is not counted, since nobody could get the report.
	Domain string
	// Policy is what the session had to obey. A type that is none of the three counts as PolicyNone.
	Policy Policy
	// Result is how it ended. One that is none of those above counts as ValidationFailure.
	Result ResultType

	// The others are details of a failure. A session that succeeded is counted and nothing else kept of it.

	SendingIP   netip.Addr // our address; zero: not known. One that is not public (RFC 1918 and such) is left out
	ReceivingIP netip.Addr // the server's; zero: not known
	ReceivingMX string     // the server's name in the MX record; "": not known
	// ReceivingMXHelo is the name that the server gave itself in its greeting or its reply to EHLO; "": not known.
	ReceivingMXHelo string
	// Reason is a text for the domain's owner, such as that of the TLS error: see ReasonOf. It goes to strangers. Octets beyond 255
	// are cut off. "": none.
	Reason string
	// Info is a URI where more is to be read; "": none.
	Info string
}

// A Recorder takes the outcomes of sessions. Record is called on the path of delivery, by many goroutines
// at once: it returns soon, and never waits for a network. Its error is for the log, and must never stop a delivery. It
// keeps nothing of s that the caller could change.
type Recorder interface {
	Record(ctx context.Context, s Session) error
}

// The RecorderFunc type makes a Recorder of a function.
type RecorderFunc func(ctx context.Context, s Session) error

// Record calls f.
func (f RecorderFunc) Record(ctx context.Context, s Session) error { return f(ctx, s) }

// metaReport is the key in the Meta of the envelope of a report.
const metaReport = "tlsrpt"

// IsReport reports whether a message is a report that a Reporter sent. A sender must deliver it whatever the TLS policy
// of the recipient says, and should not record the session (RFC 8460 section 3): else each report would be the
// subject of the next. The envelope must be that which the Reporter made, Meta included; the message itself has a
// field "TLS-Required: No" (RFC 8689 section 3), too.
func IsReport(env *mailspine.Envelope) bool { return env != nil && env.Meta[metaReport] != "" }

// The bounds of what a session may say, in octets and strings. What is over is cut off.
const (
	maxString  = 512 // of a policy string, or a host name
	maxStrings = 100 // of a policy
	maxPolicy  = 8 << 10
	maxReason  = 255
)

// normal returns s as it is counted, and whether it is to be counted at all.
func (s Session) normal() (Session, bool, error) {
	if strings.HasPrefix(s.Domain, "[") {
		return s, false, nil
	}
	var err error
	if s.Domain, err = cleanDomain(s.Domain); err != nil {
		return s, false, err
	}
	s.Policy = s.Policy.normal(s.Domain)
	s.ReceivingMX = strings.ToLower(strings.TrimSuffix(printable(s.ReceivingMX, maxString), "."))
	s.ReceivingMXHelo = printable(s.ReceivingMXHelo, maxReason)
	s.Reason = printable(s.Reason, maxReason)
	s.Info = printable(s.Info, maxString)
	if s.SendingIP = s.SendingIP.WithZone("").Unmap(); s.SendingIP.IsPrivate() || s.SendingIP.IsLoopback() || s.SendingIP.IsLinkLocalUnicast() {
		// Behind a translator or a proxy: it tells strangers about our network, and the server has seen another one.
		s.SendingIP = netip.Addr{}
	}
	s.ReceivingIP = s.ReceivingIP.WithZone("").Unmap()
	switch s.Result {
	case Success, StartTLSNotSupported, CertificateHostMismatch, CertificateExpired, CertificateNotTrusted, ValidationFailure, TLSAInvalid,
		DNSSECInvalid, DANERequired, STSPolicyFetchError, STSPolicyInvalid, STSWebPKIInvalid:
	default:
		// The registry is the limit of what others understand, and of what is kept of a domain.
		s.Result = ValidationFailure
	}
	return s, true, nil
}

// normal returns a copy within the bounds.
func (p Policy) normal(domain string) Policy {
	if p.Type != PolicyTLSA && p.Type != PolicySTS {
		p.Type = PolicyNone
	}
	d, err := cleanDomain(p.Domain)
	if err != nil {
		d = domain
	}
	p.Domain = d
	size := 0
	cut := func(list []string) []string {
		var out []string
		for _, s := range list[:min(len(list), maxStrings)] {
			s = printable(s, maxString)
			if size += len(s); s == "" || size > maxPolicy {
				continue
			}
			out = append(out, s)
		}
		return out
	}
	p.Strings, p.MXHosts = cut(p.Strings), cut(p.MXHosts)
	return p
}

// same reports whether two policies in normal form are one.
func (p Policy) same(q Policy) bool {
	return p.Type == q.Type && p.Domain == q.Domain && slices.Equal(p.Strings, q.Strings) && slices.Equal(p.MXHosts, q.MXHosts)
}

// cleanDomain returns a domain name in lower case with A-labels. File names, header fields and queries are made
// of it, so it has letters, digits, hyphens, underscores and dots only.
func cleanDomain(domain string) (string, error) {
	d, err := mailspine.ASCIIDomain(domain)
	if err != nil {
		return "", fmt.Errorf("tlsrpt: %w", err)
	}
	label := 0
	for i := range len(d) {
		switch c := d[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			label++
		case c == '.' && label > 0:
			label = 0
		default:
			label = 64
		}
		if label > 63 {
			break
		}
	}
	if d == "" || len(d) > 253 || label > 63 || d[len(d)-1] == '.' {
		return "", fmt.Errorf("tlsrpt: %.100q is no domain name", domain)
	}
	return d, nil
}

// printable makes s one line of valid UTF-8 of at most max octets.
func printable(s string, max int) string {
	if len(s) > max {
		s = s[:max]
		// No character is cut in two.
		for i := 0; i < utf8.UTFMax && s != "" && !utf8.ValidString(s[len(s)-min(len(s), utf8.UTFMax):]); i++ {
			s = s[:len(s)-1]
		}
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?")))
}
