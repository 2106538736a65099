package main

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/bimi"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/auth/spf"
	"github.com/mailspine/mailspine/auth/tlsrpt"
)

// What TXT records are compared with: not their text, but what receivers make of it.

// compareSPF tries the record as a receiver would.
func (p *plan) compareSPF(domain string) compare {
	return func(ctx context.Context, r mailspine.Resolver, a mailspine.Answer) verdict {
		if len(a.TXT) > 1 {
			return bad("more than one SPF record: receivers take that for an error, as if there were none (RFC 7208 section 4.5)")
		}
		v := &spf.Verifier{Resolver: r, NoExplanation: true}
		from := mailspine.Address{Local: "postmaster", Domain: domain}
		for _, ip := range p.ips {
			switch res := v.Check(ctx, ip, p.host, from); res.Status {
			case spf.Pass:
			case spf.TempError:
				return unsure("the record could not be evaluated for %s%s", ip, because(res.Problem))
			default:
				return bad("mail from %s gets the result %s%s", ip, res.Status, because(res.Problem))
			}
		}
		// Documentation addresses (RFC 5737, RFC 3849): nobody's.
		for _, s := range []string{"203.0.113.199", "198.51.100.199", "2001:db8:dead::199"} {
			ip := netip.MustParseAddr(s)
			if slices.Contains(p.ips, ip) {
				continue
			}
			switch res := v.Check(ctx, ip, "stranger.invalid", from); res.Status {
			case spf.Pass:
				return bad("the record lets everybody send in the domain's name: %s passes", ip)
			case spf.PermError:
				return bad("receivers take the record for an error%s", because(res.Problem))
			case spf.TempError:
				return unsure("the record could not be evaluated%s", because(res.Problem))
			}
		}
		return good()
	}
}

func because(problem string) string {
	if problem == "" {
		return ""
	}
	return ": " + problem
}

// compareDKIM wants the public half of a key; nil: any that can be used.
func compareDKIM(key crypto.Signer) compare {
	return func(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) verdict {
		if len(a.TXT) > 1 {
			return bad("more than one record: which of them receivers take is chance")
		}
		rec, err := dkim.ParseRecord(a.TXT[0])
		switch {
		case errors.Is(err, dkim.ErrRevoked):
			return bad("the key is revoked: all signatures with it fail")
		case err != nil:
			return bad("receivers cannot read the record: %v", err)
		case rec.Testing:
			return bad("the record says that it is only a test (t=y): receivers may ignore the signatures")
		}
		if k, ok := rec.Key.(*rsa.PublicKey); ok && k.N.BitLen() < 1024 {
			return bad("the key has %d bits: receivers do not believe so short a one (RFC 8301 section 3.2)", k.N.BitLen())
		}
		if key != nil && !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(rec.Key) {
			return bad("another key is published: signatures with the private key fail")
		}
		return good()
	}
}

// rank orders policies by what they protect; an absent one protects nothing.
func rank(p dmarc.Policy) int {
	return slices.Index([]dmarc.Policy{dmarc.NonePolicy, dmarc.Quarantine, dmarc.Reject}, p)
}

func (p *plan) compareDMARC(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) verdict {
	if len(a.TXT) > 1 {
		return bad("more than one DMARC record: receivers ignore them all (RFC 9989 section 4.7)")
	}
	rec, ok := dmarc.ParseRecord(a.TXT[0])
	if !ok {
		return bad("receivers take this for no DMARC record")
	}
	pct, part := tags(a.TXT[0])["pct"]
	switch {
	case rank(rec.Policy) < rank(p.policy):
		return bad("the policy is %s, weaker than %s", or(string(rec.Policy), "missing or misspelt"), p.policy)
	case rec.SubdomainPolicy != "" && rank(rec.SubdomainPolicy) < rank(p.policy):
		return bad("the policy of subdomains is %s, weaker than %s: they can be forged", rec.SubdomainPolicy, p.policy)
	case rec.NonexistentPolicy != "" && rank(rec.NonexistentPolicy) < rank(p.policy):
		return bad("the policy of subdomains that do not exist is %s, weaker than %s: they can be forged", rec.NonexistentPolicy, p.policy)
	case rec.Testing && p.policy != dmarc.NonePolicy:
		return bad("the record says that it is only a test (t=y)")
	case part && pct != "100" && p.policy != dmarc.NonePolicy:
		return bad("pct=%s: older receivers apply the policy to a part of the mail only", pct)
	case p.reports != "" && !slices.ContainsFunc(rec.AggregateReports, func(u string) bool { return strings.EqualFold(u, "mailto:"+p.reports) }):
		return bad("reports do not go to %s", p.reports)
	}
	return good()
}

// inheritDMARC looks for a policy above a domain that has none of its own (RFC 9989 section 4.10).
func (p *plan) inheritDMARC(ctx context.Context, r mailspine.Resolver) (verdict, []string) {
	res := (&dmarc.Verifier{Resolver: r}).Verify(ctx, p.domain, dmarc.Identifier{}, nil)
	if res.Record == nil || rank(res.Policy) < rank(p.policy) {
		return verdict{}, nil
	}
	return good(), []string{"inherited from _dmarc." + res.PolicyDomain + ": " + string(res.Policy)}
}

// compareBIMI asks as a receiver would, for a message that passes.
func (p *plan) compareBIMI(ctx context.Context, r mailspine.Resolver, a mailspine.Answer) verdict {
	if len(a.TXT) > 1 {
		return bad("more than one record: no indicator is shown")
	}
	switch rec, err := bimi.ParseRecord(a.TXT[0]); {
	case err != nil:
		return bad("receivers do not take the record: %v", err)
	case rec.Declined():
		return bad("the record declines: no indicator is shown")
	case rec.Indicator != p.bimi:
		return bad("the indicator is %s, which is not %s", rec.Indicator, p.bimi)
	case rec.Evidence != p.evidence:
		return bad("the evidence is %q, which is not %q", rec.Evidence, p.evidence)
	}
	d := (&dmarc.Verifier{Resolver: r}).Verify(ctx, p.domain, dmarc.Identifier{}, []dmarc.Identifier{{Domain: p.domain, Status: "pass"}})
	m := bimi.Message{Author: mailspine.Address{Local: "postmaster", Domain: p.domain}}
	switch res := (&bimi.Verifier{Resolver: r}).Verify(ctx, m, d, nil); {
	case res.Status == bimi.TempError || d.Status == dmarc.TempError:
		return unsure("%s", res.Problem)
	case res.Status != bimi.Pass:
		return bad("no indicator is shown: %s", res.Problem)
	}
	return good()
}

// tags splits a list of tags (RFC 6376 section 3.2): name=value, separated by semicolons. The first of a name counts.
func tags(s string) map[string]string {
	m := map[string]string{}
	for part := range strings.SplitSeq(s, ";") {
		k, v, ok := strings.Cut(part, "=")
		if k = strings.ToLower(strings.TrimSpace(k)); ok {
			if _, again := m[k]; !again {
				m[k] = strings.TrimSpace(v)
			}
		}
	}
	return m
}

func (p *plan) compareTLSRPT(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) verdict {
	if len(a.TXT) > 1 {
		return bad("more than one record: they are all ignored (RFC 8460 section 3)")
	}
	rec, err := tlsrpt.ParseRecord(a.TXT[0])
	if errors.Is(err, tlsrpt.ErrNoRecord) {
		return bad("the record does not begin with v=TLSRPTv1 and a semicolon: it is ignored")
	}
	if err != nil {
		return bad("the record cannot be read: %v", err)
	}
	var got []string
	for _, d := range rec.Destinations {
		if got = append(got, d.URI); d.URI == p.tlsTarget() || !d.Address.IsZero() && d.Address.String() == p.tlsReports {
			return good()
		}
	}
	return bad("rua=%s: reports do not go to %s", strings.Join(append(got, rec.Ignored...), ","), p.tlsTarget())
}

func compareSTS(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) verdict {
	if len(a.TXT) > 1 {
		return bad("more than one record: they are ignored (RFC 8461 section 3.1)")
	}
	switch _, err := mtasts.ParseRecord(a.TXT[0]); {
	case errors.Is(err, mtasts.ErrNoRecord):
		return bad("the record does not begin with v=STSv1 and a semicolon: it is ignored (RFC 8461 section 3.1)")
	case err != nil:
		return bad("senders do not look for the policy: %v (RFC 8461 section 3.1)", err)
	}
	return good()
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
