package dmarc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// DefaultTimeout bounds the lookups of a discovery and of an evaluation,
// unless a Verifier says otherwise.
const DefaultTimeout = 15 * time.Second

// maxIdentifiers bounds the identifiers that an evaluation looks at; each
// costs at most eight queries.
const maxIdentifiers = 20

// A Status is a result of RFC 9989 section 9.2.
type Status string

// The results.
const (
	None      Status = "none"      // no policy applies to the author domain
	Pass      Status = "pass"      // something that passes is aligned with the author domain
	Fail      Status = "fail"      // nothing is
	TempError Status = "temperror" // DNS did not answer what had to be known
	PermError Status = "permerror" // there is not exactly one author domain
)

// An Identifier is a domain that SPF or DKIM evaluated.
type Identifier struct {
	Domain string
	// Status is the result of RFC 8601 section 2.7. "pass" can be aligned;
	// "temperror" might have been, and is not taken for a failure; everything else counts for nothing.
	Status string
}

// A Result is the outcome for one message. It shares nothing with its Verifier.
type Result struct {
	Status Status
	// FromDomain is the author domain, with A-labels in lower case.
	FromDomain string
	// OrgDomain is the organisational domain of FromDomain, if it was determined.
	OrgDomain string
	// PolicyDomain is where Record was found: FromDomain, its organisational
	// domain or its public suffix.
	PolicyDomain string
	Record       *Record // nil: none
	// Policy is the owner's wish for FromDomain: p=, sp= or np= as applies.
	Policy Policy
	// Disposition is what is to be done with this message by the owner's wish:
	// none, unless Status is fail, and one level below Policy for a domain that is testing (t=y). It is
	// reject for a permerror.
	Disposition Policy
	// AlignedDKIM and AlignedSPF are the domains that pass and are aligned.
	AlignedDKIM []string
	AlignedSPF  string
	// Queries are the names asked, in order, those answered from this run's memory left out.
	Queries []string
	Problem string // why none, temperror or permerror
}

// A Verifier evaluates DMARC. It is safe for concurrent use as long as its
// fields do not change. The zero value has no Resolver, and every result for
// a domain is temperror.
type Verifier struct {
	Resolver mailspine.Resolver
	// Timeout bounds the lookups of Discover, and those of Evaluate; 0: DefaultTimeout.
	Timeout time.Duration
}

// Verify is Discover and Evaluate in one.
func (v *Verifier) Verify(ctx context.Context, fromDomain string, spf Identifier, dkim []Identifier) Result {
	return v.Discover(ctx, fromDomain).Evaluate(ctx, spf, dkim)
}

// Rejected is the result for a message without exactly one author domain (see
// [Author]), with the reason.
func Rejected(err error) Result {
	return Result{Status: PermError, Disposition: Reject, Problem: strings.TrimPrefix(err.Error(), "dmarc: ")}
}

// A Discovery is the policy that applies to an author domain. It is used by
// one goroutine, and once.
type Discovery struct {
	v      *Verifier
	res    Result
	own    *Record // the record at the author domain itself
	memory map[string]answer
}

// An answer is what one name has.
type answer struct {
	rec *Record
	err error // a temporary failure
}

// Discover finds the policy record that applies to an author domain (RFC 9989
// section 4.10.1). It never fails: what went wrong is in the result of Evaluate.
// It asks at most nine names.
func (v *Verifier) Discover(ctx context.Context, fromDomain string) *Discovery {
	d := &Discovery{v: v, memory: map[string]answer{}}
	name, err := mailspine.ASCIIDomain(fromDomain)
	if err != nil || !validName(name) {
		d.res = Rejected(errors.New("the author domain is no domain name"))
		d.res.FromDomain = fromDomain
		return d
	}
	d.res.FromDomain = name
	ctx, cancel := v.bound(ctx)
	defer cancel()

	w := d.walk(ctx, name)
	if w.err != nil {
		d.fail(w.err)
		return d
	}
	d.res.OrgDomain = w.org
	d.own = w.records[name]
	// The author domain's own record, else the organisational domain's, else the
	// public suffix's.
	for _, at := range []string{name, w.org, w.psd} {
		if rec := w.records[at]; at != "" && rec != nil {
			d.res.Record, d.res.PolicyDomain = rec, at
			break
		}
	}
	rec := d.res.Record
	switch {
	case rec == nil:
		d.res.Status, d.res.Problem = None, "no policy record"
		return d
	case !rec.usable():
		d.res.Status, d.res.Problem = None, "the policy record has no valid policy and no report address (RFC 9989 section 4.10.1)"
		d.res.Record = nil
		return d
	}
	sub := d.res.PolicyDomain != name
	exists := true
	if sub && rec.wish(true, true) != rec.wish(true, false) {
		// RFC 9989 section 3.2.13: only NXDOMAIN says that a domain does not exist.
		d.res.Queries = append(d.res.Queries, name)
		_, err := mailspine.LookupA(ctx, v.Resolver, name)
		switch {
		case errors.Is(err, mailspine.ErrNXDomain):
			exists = false
		case err != nil && !errors.Is(err, mailspine.ErrNoData):
			d.fail(fmt.Errorf("cannot find out whether %s exists: %w", name, err))
			return d
		}
	}
	d.res.Policy = rec.wish(sub, exists)
	return d
}

func (v *Verifier) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	t := v.Timeout
	if t <= 0 {
		t = DefaultTimeout
	}
	return context.WithTimeout(ctx, t)
}

func (d *Discovery) fail(err error) {
	d.res.Status, d.res.Problem = TempError, problem(err)
}

// problem words a failed lookup; the server's own words stay out.
func problem(err error) string {
	var dns *mailspine.DNSError
	switch {
	case errors.As(err, &dns):
		return fmt.Sprintf("lookup of %s %s: %v", dns.Name, dns.Type, dns.Kind)
	case errors.Is(err, context.DeadlineExceeded):
		return "time-out of a lookup"
	}
	return "temporary failure of a lookup"
}

// Evaluate checks whether what SPF and DKIM found is aligned with the author
// domain (RFC 9989 sections 4.10.2 and 5.3). spf is the domain of MAIL FROM, or of
// HELO for a null reverse-path; dkim are the domains d= of the signatures. At most
// 20 of them are looked at.
func (d *Discovery) Evaluate(ctx context.Context, spf Identifier, dkim []Identifier) Result {
	res := &d.res
	res.Disposition = NonePolicy
	switch res.Status {
	case PermError:
		res.Disposition = Reject
		return d.result()
	case None, TempError:
		// Whatever the policy, a domain that vouches for itself has not failed.
		for _, id := range dkim[:min(len(dkim), maxIdentifiers)] {
			if id.Status == "pass" && sameDomain(id.Domain, res.FromDomain) {
				res.AlignedDKIM = append(res.AlignedDKIM, res.FromDomain)
			}
		}
		if spf.Status == "pass" && sameDomain(spf.Domain, res.FromDomain) {
			res.AlignedSPF = res.FromDomain
		}
		return d.result()
	}
	ctx, cancel := d.v.bound(ctx)
	defer cancel()
	var unsure string
	check := func(id Identifier, strict bool, what string) (string, bool) {
		if id.Status != "pass" && id.Status != "temperror" {
			return "", false
		}
		name, ok, err := d.aligned(ctx, id.Domain, strict)
		switch {
		case err != nil:
			unsure = problem(err)
		case ok && id.Status == "temperror":
			unsure = what + " of " + name + " could not be evaluated"
		case ok:
			return name, true
		}
		return "", false
	}
	if name, ok := check(spf, res.Record.StrictSPF, "SPF"); ok {
		res.AlignedSPF = name
	}
	for _, id := range dkim[:min(len(dkim), maxIdentifiers)] {
		if name, ok := check(id, res.Record.StrictDKIM, "DKIM"); ok && !slices.Contains(res.AlignedDKIM, name) {
			res.AlignedDKIM = append(res.AlignedDKIM, name)
		}
	}
	switch {
	case len(res.AlignedDKIM) > 0 || res.AlignedSPF != "":
		res.Status = Pass
	case unsure != "":
		// RFC 9989 section 5.3.6: neither pass nor fail, and the policy cannot be applied.
		res.Status, res.Problem = TempError, unsure
	default:
		res.Status = Fail
		res.Disposition = res.Policy
		if res.Record.Testing {
			switch res.Policy {
			case Reject:
				res.Disposition = Quarantine
			default:
				res.Disposition = NonePolicy
			}
		}
	}
	return d.result()
}

func (d *Discovery) result() Result { return d.res }

func sameDomain(a, b string) bool {
	x, err := mailspine.ASCIIDomain(a)
	return err == nil && x == b
}

// aligned reports whether a domain is aligned with the author domain.
func (d *Discovery) aligned(ctx context.Context, domain string, strict bool) (name string, ok bool, err error) {
	name, err = mailspine.ASCIIDomain(domain)
	if err != nil || !validName(name) {
		return "", false, nil
	}
	from, org := d.res.FromDomain, d.res.OrgDomain
	switch {
	case name == from:
		// The same domain has the same organisational domain.
		return name, true, nil
	case strict, name != org && !strings.HasSuffix(name, "."+org):
		// An organisational domain is the domain itself or above it, so what is
		// not in ours has another. This saves a stranger's identifiers their walks.
		return name, false, nil
	}
	w := d.walk(ctx, name)
	return name, w.err == nil && w.org == org, w.err
}

// A walk is a DNS tree walk (RFC 9989 section 4.10) with what it found.
type walk struct {
	records map[string]*Record
	org     string // the organisational domain
	psd     string // the public suffix domain, if one was found above the start
	err     error
}

// walk asks at most eight names from a domain upwards.
func (d *Discovery) walk(ctx context.Context, start string) walk {
	w := walk{records: map[string]*Record{}}
	labels := strings.Split(start, ".")
	var found []string // names with records, longest first
	for name := start; ; {
		a := d.ask(ctx, name)
		if a.err != nil {
			w.err = a.err
			return w
		}
		if a.rec != nil {
			w.records[name] = a.rec
			found = append(found, name)
			if a.rec.PSD != "u" {
				break
			}
		}
		if len(labels) >= 8 {
			labels = labels[len(labels)-7:] // the shortcut: eight queries at most
		} else {
			labels = labels[1:]
		}
		if len(labels) == 0 {
			break
		}
		name = strings.Join(labels, ".")
	}
	w.org = start
	for i, name := range found {
		switch psd := w.records[name].PSD; {
		case psd == "n":
			w.org = name
			return w
		case psd == "y" && name != start:
			w.psd = name
			w.org = below(start, name)
			return w
		case i == len(found)-1:
			w.org = name // the fewest labels
		}
	}
	return w
}

// below returns the ancestor of start that is one label below name.
func below(start, name string) string {
	head := strings.TrimSuffix(start, "."+name)
	return head[strings.LastIndexByte(head, '.')+1:] + "." + name
}

// ask looks up the policy record of one name.
func (d *Discovery) ask(ctx context.Context, name string) answer {
	if a, ok := d.memory[name]; ok {
		return a
	}
	q := "_dmarc." + name
	d.res.Queries = append(d.res.Queries, q)
	var a answer
	if d.v.Resolver == nil {
		a.err = errors.New("dmarc: no resolver")
	} else if txts, err := mailspine.LookupTXT(ctx, d.v.Resolver, q); err == nil {
		n := 0
		for _, t := range txts {
			if rec, ok := ParseRecord(t); ok {
				a.rec = rec
				n++
			}
		}
		if n > 1 {
			a.rec = nil // RFC 9989 section 4.10: several are none
		}
	} else if !mailspine.IsNotFound(err) {
		a.err = err
	}
	d.memory[name] = a
	return a
}

// validName reports whether a name can be asked for below _dmarc.
func validName(name string) bool {
	n := 0
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '.' {
			if n == 0 {
				return false
			}
			n = 0
			continue
		}
		if !('a' <= c && c <= 'z') && !('0' <= c && c <= '9') && c != '-' && c != '_' {
			return false
		}
		if n++; n > 63 {
			return false
		}
	}
	return n > 0 && len(name) <= 253-len("_dmarc.")
}
