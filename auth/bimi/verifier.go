package bimi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
)

// DefaultTimeout bounds the lookups for one message, unless a Verifier says
// otherwise.
const DefaultTimeout = 15 * time.Second

// A Status is a result of section "Affix BIMI Status to Authentication Results
// Header Field".
type Status string

// The results.
const (
	// Pass: there is a record, and it names an indicator, at which nobody has looked.
	Pass      Status = "pass"
	None      Status = "none"      // there is no record
	Fail      Status = "fail"      // the record is broken, or there are several
	TempError Status = "temperror" // DNS did not answer what had to be known
	Declined  Status = "declined"  // the domain does not want an indicator
	Skipped   Status = "skipped"   // not looked for: DMARC does not pass, or its policy is not enforced
)

// A Result is the outcome for one message. It shares nothing with its Verifier.
type Result struct {
	Status Status
	// Domain is where the record was found: the author domain or its organisational
	// domain. Selector is its selector. Both are empty if there is no single record.
	Domain, Selector string
	// Indicator is where the indicator is, a https URI; Evidence where the document is that is said to vouch for it, or
	// "". Both are empty unless Status is pass. Strangers chose them: whoever fetches them guards
	// where they lead.
	Indicator, Evidence string
	// Preference is "brand" or "personal"; "": not said (see Record).
	Preference string
	// Queries are the names asked, in order.
	Queries []string
	Problem string // why not pass
}

// A Verifier looks assertion records up. It is safe for concurrent use as long as its
// fields do not change. The zero value has no Resolver, and the result of every message
// that passes DMARC is temperror.
type Verifier struct {
	Resolver mailspine.Resolver
	// Timeout bounds the lookups for one message; 0: DefaultTimeout. When it passes the result is
	// temperror.
	Timeout time.Duration
	// UnsignedSelector believes a BIMI-Selector field that no aligned DKIM signature covers.
	// False: it is ignored (section "Header Signing"), since whoever resends a message could choose
	// another of the domain's indicators.
	UnsignedSelector bool
}

// Verify looks the indicator of a message up (sections "Authentication Requirements" and "Assertion
// Record Discovery"). d is the result of DMARC for it, signatures are the results of DKIM. Nothing is looked up
// unless DMARC passes. Six names are asked at most, one after the other.
func (v *Verifier) Verify(ctx context.Context, m Message, d dmarc.Result, signatures []dkim.Verification) Result {
	t := v.Timeout
	if t <= 0 {
		t = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, t)
	defer cancel()
	l := &lookup{v: v, ctx: ctx, selector: DefaultSelector, local: m.Author.Local}
	if m.Selector != "" && (v.UnsignedSelector || covered(d.AlignedDKIM, signatures)) {
		l.selector = m.Selector
	}
	skip := func(why string) Result {
		l.res.Status, l.res.Problem = Skipped, why
		return l.res
	}
	if d.Status != dmarc.Pass {
		return skip("dmarc=" + string(d.Status))
	}
	author, err := mailspine.ASCIIDomain(m.Author.Domain)
	if m.Author.IsZero() || err != nil || author != d.FromDomain {
		return skip("the From field has not exactly one address")
	}
	switch why, err := l.enforced(d); {
	case err != nil:
		return l.fail(err)
	case why != "":
		return skip(why)
	}
	return l.discover(d.FromDomain, d.OrgDomain)
}

// covered reports whether a signature that DMARC goes by covers BIMI-Selector. There is only one such field,
// so that a signature which names it signs it.
func covered(aligned []string, signatures []dkim.Verification) bool {
	for _, s := range signatures {
		name, err := mailspine.ASCIIDomain(s.Domain)
		if err != nil || s.Status != dkim.Pass || !slices.Contains(aligned, name) {
			continue
		}
		if slices.ContainsFunc(s.Headers, func(h string) bool { return strings.EqualFold(h, "BIMI-Selector") }) {
			return true
		}
	}
	return false
}

// A lookup is the discovery for one message.
type lookup struct {
	v               *Verifier
	ctx             context.Context
	selector, local string
	res             Result
}

// ask looks up the TXT records of a name; nil: there are none.
func (l *lookup) ask(name string) ([]string, error) {
	if l.v.Resolver == nil {
		return nil, errors.New("bimi: no resolver")
	}
	if len(name) > 253 {
		return nil, nil // there can be no such name
	}
	l.res.Queries = append(l.res.Queries, name)
	txt, err := mailspine.LookupTXT(l.ctx, l.v.Resolver, name)
	if mailspine.IsNotFound(err) {
		return nil, nil
	}
	return txt, err
}

// fail ends with a temporary failure; the server's own words stay out.
func (l *lookup) fail(err error) Result {
	l.res.Status, l.res.Problem = TempError, "temporary failure of a lookup"
	var dns *mailspine.DNSError
	switch {
	case errors.As(err, &dns):
		l.res.Problem = fmt.Sprintf("lookup of %s %s: %v", dns.Name, dns.Type, dns.Kind)
	case errors.Is(err, context.DeadlineExceeded):
		l.res.Problem = "time-out of a lookup"
	}
	return l.res
}

// enforced says why a policy is not enforced; "": it is. Both records are read again, for pct=
// and because DMARC goes by one of them only; a resolver with a cache has them.
func (l *lookup) enforced(d dmarc.Result) (why string, err error) {
	if d.Policy != dmarc.Quarantine && d.Policy != dmarc.Reject {
		return "the DMARC policy of " + d.FromDomain + " is not enforced: it is " + string(d.Policy), nil
	}
	names := []string{d.FromDomain}
	if d.OrgDomain != d.FromDomain {
		names = append(names, d.OrgDomain)
	}
	for _, name := range names {
		txts, err := l.ask("_dmarc." + name)
		if err != nil {
			return "", err
		}
		var found []string
		for _, t := range txts {
			if _, ok := dmarc.ParseRecord(t); ok {
				found = append(found, t)
			}
		}
		switch {
		case len(found) == 1:
			if why := weak(found[0]); why != "" {
				return "the DMARC policy of " + name + " is not enforced: " + why, nil
			}
		case name == d.OrgDomain:
			// "Be published for the Organizational Domain": that of a public suffix is not enough.
			return name + " has no DMARC policy of its own", nil
		}
	}
	return "", nil
}

// weak says what makes the policy of a DMARC record weaker than BIMI demands.
func weak(txt string) string {
	rec, _ := dmarc.ParseRecord(txt)
	// dmarc.Record has no pct, which RFC 9989 removed, and does not tell a broken sp= from none.
	tags := map[string]string{}
	for spec := range strings.SplitSeq(txt, ";") { // bounded by the length of a TXT record
		name, value, ok := strings.Cut(spec, "=")
		name = strings.ToLower(trim(name))
		if _, again := tags[name]; ok && !again {
			tags[name] = strings.ToLower(trim(value))
		}
	}
	sp, hasSub := tags["sp"]
	pct, hasPct := tags["pct"]
	switch {
	case rec.Policy == "" || rec.Policy == dmarc.NonePolicy:
		return "it is none"
	case hasSub && sp != string(dmarc.Quarantine) && sp != string(dmarc.Reject):
		return "that of subdomains is none"
	case hasPct && pct != "100" && (rec.Policy == dmarc.Quarantine || sp == string(dmarc.Quarantine)):
		return "it is quarantine of a part of the mail only"
	case rec.Testing:
		return "it is under test (t=y)"
	}
	return ""
}

// A find is what a name has.
type find struct {
	rec   *Record // nil: none, or err
	err   error   // a *SyntaxError, or several records
	empty bool
}

var errSeveral = errors.New("bimi: several records")

// record looks up the record at one name.
func (l *lookup) record(selector, domain string) (find, error) {
	txts, err := l.ask(selector + "._bimi." + domain)
	if err != nil {
		return find{}, err
	}
	f := find{empty: true}
	for _, t := range txts {
		rec, err := ParseRecord(t)
		switch {
		case errors.Is(err, ErrNoRecord):
			continue
		case !f.empty:
			return find{err: errSeveral}, nil
		}
		f = find{rec: rec, err: err}
	}
	return f, nil
}

// discover is section "Assertion Record Discovery".
func (l *lookup) discover(author, org string) Result {
	domains := []string{author}
	if org != "" && org != author {
		domains = append(domains, org)
	}
	for _, domain := range domains {
		f, err := l.record(l.selector, domain)
		if err != nil {
			return l.fail(err)
		}
		if f.empty {
			continue // steps 6 and 7: the organisational domain is asked only if there is none
		}
		if f.err != nil {
			return l.broken(f.err, domain, l.selector)
		}
		used := l.selector
		if s, ok := f.rec.local(l.local); ok && s != l.selector {
			g, err := l.record(s, domain)
			if err != nil {
				return l.fail(err)
			}
			// Steps 5 and 8: what is not valid leaves the first record in force. Its own lps= would lead
			// to the same name again.
			if g.rec != nil {
				f, used = g, s
			}
		}
		return l.found(f.rec, domain, used)
	}
	l.res.Status, l.res.Problem = None, "no record"
	return l.res
}

func (l *lookup) broken(err error, domain, selector string) Result {
	l.res.Status, l.res.Problem = Fail, strings.TrimPrefix(err.Error(), "bimi: ")
	if !errors.Is(err, errSeveral) {
		l.res.Domain, l.res.Selector = domain, selector
	}
	return l.res
}

func (l *lookup) found(rec *Record, domain, selector string) Result {
	l.res.Domain, l.res.Selector = domain, selector
	switch {
	case rec.Declined():
		l.res.Status, l.res.Problem = Declined, "the domain declines"
	case rec.Indicator == "":
		// Section "Indicator Discovery", step 1: there is no valid location in l=.
		l.res.Status, l.res.Problem = Fail, "the record has no indicator"
	default:
		l.res.Status = Pass
		l.res.Indicator, l.res.Evidence, l.res.Preference = rec.Indicator, rec.Evidence, rec.Preference
	}
	return l.res
}

// Header returns the fields for the reader's program, to prepend to the message: BIMI-Location, and
// BIMI-Logo-Preference if the domain has one; nil unless Status is pass. They have CRLF line ends. Evidence is
// left out of BIMI-Location, since it has not been compared with the indicator (section "Construct
// BIMI-Location URI").
//
// Any such field that a message came with must be dropped; see [Reserved].
func (r *Result) Header() []byte {
	if r.Status != Pass || checkURI(r.Indicator) != "" || r.Indicator == "" {
		return nil
	}
	b := []byte("BIMI-Location: v=BIMI1;\r\n\tl=" + r.Indicator + "\r\n")
	if r.Preference == "brand" || r.Preference == "personal" {
		b = append(b, "BIMI-Logo-Preference: avp="+r.Preference+";\r\n"...)
	}
	return b
}

// Reserved reports whether a header field is one that only the receiver may
// write: a message from elsewhere that has it has forged it, or got it from a receiver who is
// not ours (section "Header Removal").
func Reserved(f mailspine.HeaderField) bool {
	return f.Is("BIMI-Location") || f.Is("BIMI-Indicator") || f.Is("BIMI-Logo-Preference")
}
