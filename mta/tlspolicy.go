package mta

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
)

// A TLSLevel says how much TLS a transfer must have.
type TLSLevel uint8

// The levels, in order of strength.
const (
	// TLSOpportunistic uses TLS with any certificate where the server offers it.
	// If the handshake fails, the message goes in clear over a new connection
	// (RFC 7435): whoever can break the handshake could have hidden the offer. The
	// certificate is still looked at, so that a receipt tells whether it was good.
	TLSOpportunistic TLSLevel = iota
	// TLSEncrypt sends nothing without TLS, with any certificate.
	TLSEncrypt
	// TLSVerify sends nothing without TLS and a certificate that is valid for a
	// name of the rule.
	TLSVerify
)

// String returns "opportunistic", "encrypt" or "verify".
func (l TLSLevel) String() string {
	switch l {
	case TLSOpportunistic:
		return "opportunistic"
	case TLSEncrypt:
		return "encrypt"
	case TLSVerify:
		return "verify"
	}
	return fmt.Sprintf("TLSLevel(%d)", uint8(l))
}

// A TLSRule is what a [TLSPolicy] demands for a domain. The zero value is
// opportunistic TLS.
type TLSRule struct {
	Level TLSLevel
	// Hosts lists the mail exchangers that may be used: names, or "*.example.org"
	// for names with one more label (as RFC 8461 section 4.1 has them). Others are passed over. nil:
	// any. Without it a forger of DNS answers chooses the host, and with it the name
	// that TLSVerify verifies.
	Hosts []string
	// Names lists names for one of which the certificate must be valid. nil: the
	// name of the host that was connected to. It matters for TLSVerify only. Where DANE is in force it verifies the
	// certificate; Names and Roots are verified in addition if one of them is set.
	Names []string
	// Roots are the authorities that certificates are verified against. nil: those of
	// Relay.TLSConfig, or else of the system.
	Roots *x509.CertPool
	// Override puts the rule in the place of what the domain publishes itself, DANE and MTA-STS, which is then not even
	// looked up, nor reported on: the operator's way around a receiver's mistake. A message with RequireTLS needs a verified certificate
	// all the same. Without it both hold, and the stricter one decides.
	Override bool
}

// A TLSPolicy decides which rule holds for a recipient domain. It is asked
// once for each domain of a delivery, and must be safe for concurrent use. domain
// is in lower case with A-labels, or an address literal. An error means that
// the rule could not be found out, and defers the message: it must never be answered with less
// security.
type TLSPolicy interface {
	TLSRule(ctx context.Context, domain string) (TLSRule, error)
}

// The TLSPolicyFunc type makes a TLSPolicy of a function.
type TLSPolicyFunc func(ctx context.Context, domain string) (TLSRule, error)

// TLSRule calls f.
func (f TLSPolicyFunc) TLSRule(ctx context.Context, domain string) (TLSRule, error) {
	return f(ctx, domain)
}

// TLSRules is a TLSPolicy made by hand. Keys are as in Mux.Routes, but in lower
// case with A-labels: a domain, a dot and a domain for its subdomains, "" for all others.
// A domain without a key has the zero rule. It must not change while it is used.
type TLSRules map[string]TLSRule

var _ TLSPolicy = TLSRules(nil)

// TLSRule returns the rule of the most specific key.
func (t TLSRules) TLSRule(_ context.Context, domain string) (TLSRule, error) {
	if r, ok := t[domain]; ok {
		return r, nil
	}
	for i := range len(domain) {
		if domain[i] == '.' {
			if r, ok := t[domain[i:]]; ok {
				return r, nil
			}
		}
	}
	return t[""], nil
}

// allows reports whether a mail exchanger may be used. host is in lower case.
func (r TLSRule) allows(host string) bool {
	if r.Hosts == nil {
		return true
	}
	for _, p := range r.Hosts {
		p = strings.ToLower(p)
		if rest, ok := strings.CutPrefix(p, "*"); ok && strings.HasPrefix(rest, ".") {
			// The star stands for exactly one label.
			if label, ok := strings.CutSuffix(host, rest); ok && label != "" && !strings.Contains(label, ".") {
				return true
			}
		} else if p == host {
			return true
		}
	}
	return false
}
