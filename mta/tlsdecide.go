package mta

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/auth/tlsrpt"
)

// A tlsSource says what a decision about TLS comes from.
type tlsSource string

// The sources, in order of strength.
const (
	fromRequireTLS    tlsSource = "requiretls" // the message demands it (RFC 8689)
	fromDANE          tlsSource = "dane"       // RFC 7672
	fromMTASTS        tlsSource = "mta-sts"    // RFC 8461, a policy in force
	fromLocal         tlsSource = "local"      // Relay.TLSPolicy
	fromOpportunistic tlsSource = "opportunistic"
)

// A tlsDecision is what holds for the TLS of the connections to one host, and why.
type tlsDecision struct {
	// rule has the level in force. Its Names and Roots are those of the local rule where that demands a verified certificate
	// by itself, else nil.
	rule  TLSRule
	from  tlsSource
	host  string
	base  string        // the name of the TLSA records, for people
	recs  dane.Records  // with Usable: they verify the certificate; with All only: they demand TLS
	names []string      // for which a certificate may be that an authority in recs vouches for
	sts   mtasts.Policy // in force, or tested; Mode "": neither
	notes []string      // what was looked for and not found, for people

	// For reports. See outcome.
	unlisted bool   // sts is tested, and does not list the host
	tested   *error // gets what verifying for sts said about the certificate of the last handshake, where it is only tested
}

// byDANE reports whether TLSA records verify the certificate.
func (d *tlsDecision) byDANE() bool { return len(d.recs.Usable) > 0 }

// bySTS reports whether an MTA-STS policy is in force.
func (d *tlsDecision) bySTS() bool { return d.sts.Mode == mtasts.ModeEnforce }

// fingerprint tells two decisions apart whose rules are the same, so that no connection that was opened under one is
// used under the other.
func (d tlsDecision) fingerprint() string {
	var lines []string
	for _, r := range d.recs.All { // the order is DNS's, and any
		lines = append(lines, fmt.Sprintf("%d %d %d %x", r.Usage, r.Selector, r.MatchingType, r.Data))
	}
	slices.Sort(lines)
	if len(lines) > 0 {
		lines = append(lines, "base "+d.recs.Base)
	}
	for _, n := range d.names {
		lines = append(lines, "name "+n)
	}
	if d.bySTS() {
		lines = append(lines, "sts "+d.sts.ID)
	}
	if lines == nil {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	return hex.EncodeToString(sum[:])
}

// String says what the decision demands and why, on one line.
func (d tlsDecision) String() string {
	var s string
	switch {
	case d.byDANE():
		s = "DANE: " + count(len(d.recs.Usable), "usable TLSA record") + " at " + d.base + "; "
		ee := func(r mailspine.TLSA) bool { return r.Usage == dane.UsageEE }
		switch named := "certificate for " + strings.Join(d.names, " or "); {
		case !slices.ContainsFunc(d.recs.Usable, func(r mailspine.TLSA) bool { return !ee(r) }):
			s += "the certificate need not name the host"
		case !slices.ContainsFunc(d.recs.Usable, ee):
			s += named
		default:
			s += named + ", unless a record is about itself"
		}
		if d.rule.Names != nil || d.rule.Roots != nil {
			s += "; and local rule: " + d.certificate()
		}
	case d.bySTS():
		s = "MTA-STS: enforce, policy " + d.sts.ID + "; certificate for " + d.host
		if len(d.recs.All) > 0 {
			s = "DANE: " + count(len(d.recs.All), "TLSA record") + " at " + d.base + ", none usable; " + s
		}
		if d.rule.Names != nil || d.rule.Roots != nil {
			s += "; and local rule: " + d.certificate()
		}
	case len(d.recs.All) > 0:
		s = "DANE: " + count(len(d.recs.All), "TLSA record") + " at " + d.base + ", none usable; "
		if d.rule.Level >= TLSVerify {
			s += d.certificate()
		} else {
			s += "TLS with any certificate"
		}
	case d.rule.Level >= TLSVerify:
		s = d.rule.Level.String() + ": " + d.certificate()
	case d.rule.Level == TLSEncrypt:
		s = d.rule.Level.String() + ": any certificate"
	default:
		s = d.rule.Level.String()
	}
	switch {
	case d.from == fromRequireTLS:
		s = "REQUIRETLS, " + s
	case d.from == fromLocal && !d.byDANE() && !d.bySTS():
		s = "local rule, " + s
	}
	if len(d.notes) > 0 {
		s += " (" + strings.Join(d.notes, ", ") + ")"
	}
	return clean(s)
}

// certificate says what the rule demands of it.
func (d *tlsDecision) certificate() string {
	names := d.rule.Names
	if names == nil {
		names = []string{d.host}
	}
	s := "certificate for " + strings.Join(names, " or ")
	if d.rule.Roots != nil {
		s += " from an authority of the rule"
	}
	return s
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// decide finds out what holds for a host, before its addresses are looked up, and tells it to the reports if the host must not
// be used now: then there is an error, a *mailspine.Error.
func (t *transfer) decide(ctx context.Context, h host) error {
	d, err := t.decision(ctx, h)
	t.tls = d
	if len(t.env.Recipients) == 0 || ctx.Err() != nil {
		return err // nothing is sent: it is only explained, or there is no time left and it says nothing about the host
	}
	t.reportFetch(ctx)
	if err == nil {
		return nil
	}
	t.reportHost(ctx, h, err)
	t.log(ctx, slog.LevelWarn, "mta: host must not be used", h.name, err)
	return err
}

// decision is decide without anybody being told.
//
// In order of strength: REQUIRETLS demands a verified certificate, and a host whose name is secured (RFC 8689 section 4.2.1). DANE
// decides before MTA-STS, and what it refuses MTA-STS does not allow (RFC 8461 section 2). The local rule adds to both; with Override it
// is alone.
func (t *transfer) decision(ctx context.Context, h host) (tlsDecision, error) {
	d := tlsDecision{rule: t.rule, from: fromOpportunistic, host: h.name}
	if d.rule.Level > TLSOpportunistic {
		d.from = fromLocal
	}
	// By REQUIRETLS too: see loadRule.
	own := d.rule.Level >= TLSVerify
	if t.publishes() {
		if err := t.byDANE(ctx, h, &d); err != nil {
			return d, err
		}
		// RFC 8461 section 2. Records that only demand TLS leave the certificate to MTA-STS.
		if !d.byDANE() {
			if err := t.bySTS(ctx, h, &d); err != nil {
				return d, err
			}
		}
	}
	if !own && (d.byDANE() || d.bySTS()) {
		// They matter for TLSVerify only, and the rule does not say that.
		d.rule.Names, d.rule.Roots = nil, nil
	}
	if t.env.RequireTLS {
		d.from = fromRequireTLS
		if !t.named() && !d.byDANE() && !d.bySTS() {
			return d, t.insecure()
		}
	}
	return d, nil
}

// publishes reports whether what the domain publishes about TLS counts for this message.
func (t *transfer) publishes() bool {
	return !t.rule.Override && !t.tlsOptional() && !strings.HasPrefix(t.domain, "[")
}

// tlsOptional reports whether the sender wants the message delivered even if that breaks the recipient domain's TLS policy: its header
// says "TLS-Required: No" (RFC 8689 section 5). REQUIRETLS is stronger. Reports about TLS are such messages.
func (t *transfer) tlsOptional() bool {
	return !t.env.RequireTLS && (t.facts.tlsOptional || tlsrpt.IsReport(t.env))
}

// byDANE adds what the TLSA records of a host say (RFC 7672).
func (t *transfer) byDANE(ctx context.Context, h host, d *tlsDecision) error {
	switch {
	case t.r.NoDANE || t.r.Resolver == nil:
		return nil
	case !t.secure && !t.implicit && t.fixed == nil:
		// Section 2.2.1: whoever forges the name of the host can prove whatever he likes about it.
		d.notes = append(d.notes, "no DANE: the mail exchangers are not secured by DNSSEC")
		return nil
	}
	port := t.port()
	recs, err := dane.Lookup(ctx, t.r.Resolver, h.name, port)
	if err != nil {
		// Section 2.1.2: whether there are records is not known, and somebody may be hiding them.
		return mailspine.Errorf(451, "4.7.5", "The TLSA records (DANE) of %s could not be looked up, try again later", h.name).
			WithCause(&daneLookupError{err})
	}
	d.recs = recs
	if len(recs.All) == 0 {
		d.notes = append(d.notes, "no DANE: no authentic TLSA record for "+h.name)
		return nil
	}
	d.base = dane.Name(recs.Base, port)
	if !d.byDANE() {
		// Section 2.2: TLS, with any certificate.
		if d.rule.Level < TLSEncrypt {
			d.rule.Level, d.from = TLSEncrypt, fromDANE
		}
		return nil
	}
	d.rule.Level, d.from = TLSVerify, fromDANE
	d.names = slices.Clone(recs.Names)
	if t.fixed == nil {
		// Section 3.2.2: the next-hop domain too, and what it is an alias of.
		for _, n := range []string{t.domain, t.target} {
			if n != "" && !slices.Contains(d.names, n) {
				d.names = append(d.names, n)
			}
		}
	}
	return nil
}

// A daneLookupError is the cause of an error of decide.
type daneLookupError struct{ err error }

func (e *daneLookupError) Error() string { return e.err.Error() }
func (e *daneLookupError) Unwrap() error { return e.err }

// errUnlisted is the cause of an error of decide.
var errUnlisted = errors.New("mta: the host is not in the MTA-STS policy")

// bySTS adds what the MTA-STS policy of the domain says (RFC 8461).
func (t *transfer) bySTS(ctx context.Context, h host, d *tlsDecision) error {
	if t.loadSTS(ctx); t.sts == nil {
		return nil
	}
	p := t.sts.policy
	switch p.Mode {
	case mtasts.ModeEnforce, mtasts.ModeTesting:
		d.sts = p
	default:
		if t.sts.problem != nil {
			d.notes = append(d.notes, "no MTA-STS: the policy could not be had")
		} else {
			d.notes = append(d.notes, "no MTA-STS")
		}
		return nil
	}
	listed := p.Matches(h.name)
	if p.Mode == mtasts.ModeTesting {
		// Section 5: all is looked at, and nothing enforced.
		d.unlisted = !listed
		note := "MTA-STS: testing, policy " + p.ID
		if !listed {
			note += ", which does not list " + h.name
		}
		d.notes = append(d.notes, note)
		return nil
	}
	if !listed {
		// Section 4.1. The host is passed over.
		return mailspine.Errorf(451, "4.7.5", "The MTA-STS policy of %s does not list the mail exchanger %s", t.whom(), h.name).WithCause(errUnlisted)
	}
	d.rule.Level = TLSVerify
	d.from = fromMTASTS
	return nil
}

// An stsState is what is known of the MTA-STS policy of a transfer's domain.
type stsState struct {
	policy  mtasts.Policy
	problem error // for reports; never a reason to defer
	told    bool  // the reports know of it
}

// loadSTS finds out the MTA-STS policy of the domain, once for each transfer.
func (t *transfer) loadSTS(ctx context.Context) {
	if t.sts != nil || t.r.MTASTS == nil || t.fixed != nil || !t.publishes() {
		return
	}
	t.sts = &stsState{}
	t.sts.policy, t.sts.problem = t.r.MTASTS.Policy(ctx, t.domain)
	if errors.Is(t.sts.problem, mtasts.ErrNoRecord) {
		t.sts.problem = nil // the domain has no policy, or none any more
	}
}

// sameTLS reports whether what two domains publish about TLS demands the same of a connection to a host, where they have the same hosts.
func (t *transfer) sameTLS(o *transfer) bool {
	// RFC 7672 section 3.2.2: with DANE the domain itself is a name that the certificate may have.
	if t.secure || o.secure || t.implicit || o.implicit {
		return false
	}
	if t.sts == nil || o.sts == nil {
		return t.sts == nil && o.sts == nil
	}
	p, q := t.sts.policy, o.sts.policy
	return p.ID == q.ID && p.Mode == q.Mode && slices.Equal(p.MX, q.MX) && t.sts.problem == nil && o.sts.problem == nil
}

// STSPolicies knows the MTA-STS policies of domains (RFC 8461). *mtasts.Cache is one.
//
// Policy returns the policy of a domain that must be obeyed now, from a cache or
// freshly fetched; the zero Policy: there is none. problem says what went wrong with finding it out, for reports and logs; it never
// defers a message (RFC 8461 section 5), and comes with the policy that was known before, if there is one. domain is in lower case
// with A-labels, and no address literal. Policy bounds its own time, and must be safe for concurrent use. The
// slices of a Policy may be shared and are not modified.
type STSPolicies interface {
	Policy(ctx context.Context, domain string) (p mtasts.Policy, problem error)
}

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
// come from an answer that could be forged. Where only what is published for each host can tell, decide does. What the domain
// publishes is known then, for sameTLS; with DANE, it may do without.
func (t *transfer) checkSecure(ctx context.Context) error {
	if !t.secure {
		t.loadSTS(ctx)
	}
	if !t.env.RequireTLS || t.named() || t.publishes() && (t.sts != nil || t.implicit && !t.r.NoDANE) {
		return nil
	}
	return t.insecure()
}

// named reports whether nobody could have forged the names of the hosts: they come from an authentic answer or from the local rule. A
// Smarthost's comes from none.
func (t *transfer) named() bool {
	return t.secure || t.fixed != nil || t.rule.Hosts != nil || t.rule.Names != nil
}

// insecure is the error of a message with REQUIRETLS for hosts whose names could be forged.
func (t *transfer) insecure() error {
	if t.sts != nil && t.sts.problem != nil {
		// There may be a policy that says more.
		return mailspine.Errorf(451, "4.7.5", "The message requires TLS, and the MTA-STS policy of %s could not be had, try again later", t.whom()).
			WithCause(t.sts.problem)
	}
	return mailspine.Errorf(550, "5.7.10", "The message requires TLS, and the mail exchangers of %s are not secured by DNSSEC or policy", t.whom())
}
