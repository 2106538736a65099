package mtasts

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A Severity says how much a [Finding] matters.
type Severity string

// The severities.
const (
	OK      Severity = "ok"      // as it should be
	Note    Severity = "note"    // worth knowing
	Warning Severity = "warning" // works, and should be changed
	Failure Severity = "failure" // senders do not find the policy, or do not deliver
)

// A Finding is one thing that Check has looked at.
type Finding struct {
	Severity Severity
	Subject  string // what was looked at: "record", "policy", "max_age", "mx NAME", "pattern NAME", "certificate NAME"
	Text     string // what was found, for people
	Err      error  // what went wrong; nil: nothing
}

// String returns a line of a report.
func (f Finding) String() string { return string(f.Severity) + ": " + f.Subject + ": " + f.Text }

const (
	// maxCheckedMX bounds the hosts that Check looks at.
	maxCheckedMX = 100
	// shortAge is the max_age under which a policy in force protects little: RFC 8461 section 3.2 expects weeks.
	shortAge = 7 * 24 * time.Hour
	// endingSoon is how long before its end a certificate is worth a warning.
	endingSoon = 14 * 24 * time.Hour
)

// CheckOptions tune Check. The zero value, and nil, mean the defaults.
type CheckOptions struct {
	// Probe connects to a host as a sender does, to port 25 with STARTTLS and the host's name as SNI, and returns the
	// certificates that it shows, its own first. It is called for one host at a time, and bounds its own time. nil: the
	// certificates of mail hosts are not looked at.
	Probe func(ctx context.Context, host string) ([]*x509.Certificate, error)
	// Now tells at what time the certificates must be valid; nil: time.Now.
	Now func() time.Time
}

// Check looks at what a domain publishes as its senders will: the record, the policy file, whether the policy lists every MX and no
// dead ones, and whether it is kept long enough. It is for one's own domain, before and after a change.
//
// f's Resolver is required; the certificates of mail hosts are checked against its Roots. The findings are in the order in which things were
// looked at. A policy that cannot be fetched ends the check after the finding that says so.
func Check(ctx context.Context, f *Fetcher, domain string, o *CheckOptions) []Finding {
	var opt CheckOptions
	if o != nil {
		opt = *o
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	probe := opt.Probe
	k := &checker{now: opt.Now()}
	if f == nil || f.Resolver == nil {
		k.add(Failure, "record", nil, "there is no Resolver to look with")
		return k.findings
	}
	k.roots = f.Roots
	d, ok := policyDomain(domain)
	if !ok {
		k.add(Failure, "record", nil, "%q is no domain that can have a policy", domain)
		return k.findings
	}
	id, err := LookupRecord(ctx, f.Resolver, d)
	switch {
	case errors.Is(err, ErrNoRecord):
		k.add(Failure, "record", err, "there is no TXT record at %s%s, so that senders do not look for a policy", recordPrefix, d)
	case err != nil:
		k.add(Failure, "record", err, "%v", err)
	default:
		k.add(OK, "record", nil, "the id is %s", id)
	}
	p, err := f.Fetch(ctx, d)
	if err != nil {
		k.add(Failure, "policy", err, "%v", err)
		return k.findings
	}
	k.policy(p)
	hosts, ok := k.hosts(ctx, f.Resolver, d)
	if !ok || p.Mode == ModeNone {
		return k.findings
	}
	k.matches(p, hosts)
	if probe == nil {
		return k.findings
	}
	for _, h := range hosts {
		chain, err := probe(ctx, h)
		k.certificate(p, h, chain, err)
	}
	return k.findings
}

// checker gathers findings.
type checker struct {
	now      time.Time
	roots    *x509.CertPool
	findings []Finding
}

func (k *checker) add(s Severity, subject string, err error, format string, args ...any) {
	k.findings = append(k.findings, Finding{Severity: s, Subject: subject, Text: fmt.Sprintf(format, args...), Err: err})
}

// bad is how much it matters that mail could not be delivered under the policy.
func bad(p Policy) Severity {
	if p.Mode == ModeEnforce {
		return Failure
	}
	return Warning
}

func (k *checker) policy(p Policy) {
	switch p.Mode {
	case ModeEnforce:
		k.add(OK, "policy", nil, "the mode is enforce")
	case ModeTesting:
		k.add(Note, "policy", nil, "the mode is testing: senders report failures and deliver all the same")
	default:
		k.add(Note, "policy", nil, "the mode is none: the domain says that it has no policy")
	}
	switch {
	case p.Mode == ModeNone:
	case p.Mode == ModeEnforce && p.MaxAge < shortAge:
		k.add(Warning, "max_age", nil, "the policy is kept for %v; weeks are expected (RFC 8461 section 3.2), since whoever can block it for that long ends it", p.MaxAge)
	case p.MaxAge < 24*time.Hour:
		k.add(Warning, "max_age", nil, "the policy is kept for %v, less than the day after which senders refresh it", p.MaxAge)
	default:
		k.add(OK, "max_age", nil, "the policy is kept for %v", p.MaxAge)
	}
}

// hosts are the domain's MX hosts in order of preference, or the domain itself where it has no MX (RFC 5321 section 5.1).
func (k *checker) hosts(ctx context.Context, r mailspine.Resolver, domain string) ([]string, bool) {
	mx, err := mailspine.LookupMX(ctx, r, domain)
	switch {
	case errors.Is(err, mailspine.ErrNoData):
		return []string{domain}, true
	case err != nil:
		k.add(Failure, "mx", err, "%v", err)
		return nil, false
	}
	mx = slices.Clone(mx) // answers are shared
	slices.SortStableFunc(mx, func(a, b mailspine.MX) int { return int(a.Preference) - int(b.Preference) })
	if len(mx) == 1 && mx[0].Host == "" {
		k.add(Note, "mx", nil, "the domain takes no mail (RFC 7505)")
		return nil, false
	}
	if len(mx) > maxCheckedMX {
		k.add(Warning, "mx", nil, "there are %d, of which %d are looked at", len(mx), maxCheckedMX)
		mx = mx[:maxCheckedMX]
	}
	var hosts []string
	for _, m := range mx {
		if h := strings.ToLower(m.Host); !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts, true
}

// matches compares the hosts with the policy's patterns, both ways.
func (k *checker) matches(p Policy, hosts []string) {
	for _, h := range hosts {
		if p.Matches(h) {
			k.add(OK, "mx "+h, nil, "the policy lists it")
		} else {
			k.add(bad(p), "mx "+h, nil, "the policy does not list it")
		}
	}
	for _, m := range p.MX {
		one := Policy{MX: []string{m}}
		if !slices.ContainsFunc(hosts, one.Matches) {
			k.add(Warning, "pattern "+m, nil, "no MX of the domain is meant by it")
		}
	}
}

// certificate checks what a host showed as senders do (RFC 8461 section 4.2).
func (k *checker) certificate(p Policy, host string, chain []*x509.Certificate, err error) {
	subject := "certificate " + host
	switch {
	case err != nil:
		k.add(bad(p), subject, err, "not seen: %v", err)
		return
	case len(chain) == 0:
		k.add(bad(p), subject, nil, "the host showed none")
		return
	}
	opt := x509.VerifyOptions{DNSName: host, Roots: k.roots, Intermediates: x509.NewCertPool(), CurrentTime: k.now}
	for _, c := range chain[1:] {
		opt.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(opt); err != nil {
		k.add(bad(p), subject, err, "%v", err)
		return
	}
	if left := chain[0].NotAfter.Sub(k.now); left < endingSoon {
		k.add(Warning, subject, nil, "it is valid for %d hours more", int(left.Hours()))
		return
	}
	k.add(OK, subject, nil, "it is valid until %s", chain[0].NotAfter.UTC().Format(time.DateOnly))
}
