package mta

import (
	"context"

	"github.com/mailspine/mailspine"
)

// A tlsDecision is what holds for the TLS of the connections to one host, and why.
type tlsDecision struct {
	rule TLSRule
}

// fingerprint tells two decisions apart whose rules are the same, so that no connection that was opened under one is
// used under the other.
func (d tlsDecision) fingerprint() string { return "" }

// decide finds out what holds for a host, before its addresses are looked up. An error means that it must not be used
// now; it is a *mailspine.Error.
func (t *transfer) decide(ctx context.Context, h host) error {
	t.tls = tlsDecision{rule: t.rule}
	return nil
}

// outcome is told how the TLS of a connection came out, once for each connection that got as far as the answer to
// EHLO, for reports. err: why there is no TLS, or none that is good enough; nil: the handshake was done, or TLS was not offered
// and need not be (s.tls is zero then).
func (t *transfer) outcome(ctx context.Context, s *session, err error) {}

// loadRule asks the policy, and raises the rule for REQUIRETLS.
func (t *transfer) loadRule(ctx context.Context) error {
	if p := t.r.TLSPolicy; p != nil {
		rule, err := p.TLSRule(ctx, t.domain)
		if err != nil {
			return mailspine.Errorf(451, "4.7.5", "The TLS policy of %s could not be found out, try again later", t.domain).WithCause(err)
		}
		t.rule = rule
	}
	if t.env.RequireTLS {
		t.rule.Level = max(t.rule.Level, TLSVerify)
	}
	return nil
}

// checkSecure is RFC 8689 section 4.2.1: with REQUIRETLS, the names of the hosts must not
// come from an answer that could be forged. A Smarthost's comes from none.
func (t *transfer) checkSecure() error {
	if !t.env.RequireTLS || t.secure || t.fixed != nil || t.rule.Hosts != nil || t.rule.Names != nil {
		return nil
	}
	return mailspine.Errorf(550, "5.7.10", "The message requires TLS, and the mail exchangers of %s are not secured by DNSSEC or policy", t.domain)
}
