package spf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// The limits of RFC 7208 section 4.6.4, and the default of Verifier.Timeout
// (the section asks for at least 20 seconds).
const (
	MaxLookups     = 10 // terms that need DNS, over all records
	MaxVoids       = 2  // lookups that find nothing
	MaxMX          = 10 // hosts of one mx
	MaxPTR         = 10 // names of one ptr or %{p}
	DefaultTimeout = 20 * time.Second
)

// A Verifier evaluates SPF. It is safe for concurrent use as long as its
// fields do not change. The zero value has no Resolver, and every result is
// temperror.
type Verifier struct {
	Resolver mailspine.Resolver
	// Receiver is the name of the checking host, for the macro r; "": "unknown".
	Receiver string
	// Timeout bounds one evaluation; 0: DefaultTimeout. When it passes the
	// result is temperror.
	Timeout time.Duration
	// NoExplanation saves the lookup of exp= after a fail.
	NoExplanation bool
	// Now is the clock of the macro t; nil: time.Now.
	Now func() time.Time
}

func (v *Verifier) now() time.Time {
	if v.Now != nil {
		return v.Now()
	}
	return time.Now()
}

// Check evaluates the MAIL FROM identity (RFC 7208 section 2.4). For the zero
// Address that is the HELO name with the local part postmaster, and
// Result.Identity says so. It makes no more than MaxLookups*(1+MaxMX) and a few
// queries, one after the other.
func (v *Verifier) Check(ctx context.Context, ip netip.Addr, helo string, from mailspine.Address) Result {
	if from.IsZero() {
		return v.CheckHelo(ctx, ip, helo)
	}
	return v.check(ctx, MailFrom, ip, helo, from)
}

// CheckHelo evaluates the HELO identity (RFC 7208 section 2.3).
func (v *Verifier) CheckHelo(ctx context.Context, ip netip.Addr, helo string) Result {
	return v.check(ctx, Helo, ip, helo, mailspine.Address{Domain: helo})
}

func (v *Verifier) check(ctx context.Context, id Identity, ip netip.Addr, helo string, from mailspine.Address) Result {
	if from.Local == "" {
		from.Local = "postmaster" // RFC 7208 section 4.3
	}
	res := Result{
		Identity: id, Domain: from.Domain, Sender: from.Local + "@" + from.Domain,
		IP: ip.Unmap(), Helo: helo, // RFC 7208 section 5: an IPv4-mapped address is an IPv4 address
	}
	domain, rule := checkName(from.Domain)
	switch {
	case rule != "":
		res.Status, res.Problem = None, rule
		return res
	case !ip.IsValid():
		res.Status, res.Problem = None, "the client has no IP address"
		return res
	case v.Resolver == nil:
		res.Status, res.Problem = TempError, "no resolver"
		return res
	}
	res.Domain = domain
	limit := v.Timeout
	if limit <= 0 {
		limit = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	e := &evaluation{v: v, ip: res.IP, helo: helo, local: from.Local, senderDomain: domain}
	o := e.checkHost(ctx, domain)
	res.Status, res.Mechanism, res.Problem = o.status, printable(o.mechanism), o.problem
	if o.status == Fail && o.explain != "" && !v.NoExplanation {
		res.Explanation = e.explanation(ctx, o.explain, o.explainDomain)
	}
	res.Lookups, res.Voids = e.lookups, e.voids
	return res
}

// checkName returns the name in the form for lookups, or why there is nothing
// to look up (RFC 7208 section 4.3).
func checkName(d string) (name, rule string) {
	if strings.HasPrefix(d, "[") {
		return "", "the domain is an address literal (RFC 7208 section 4.3)"
	}
	name, err := mailspine.ASCIIDomain(d)
	if err != nil || !validName(name) {
		return "", "not a domain name (RFC 7208 section 4.3)"
	}
	if !strings.Contains(name, ".") {
		return "", "the domain has only one label (RFC 7208 section 4.3)"
	}
	return name, ""
}

// validName reports whether a name can be asked for: labels of 1 to 63 octets, 253 in
// all. Octets that resolvers use for escapes are refused, so that what is asked is what is meant.
func validName(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return false
	}
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
		if c < ' ' || c >= 0x7f || c == '\\' {
			return false
		}
		if n++; n > 63 {
			return false
		}
	}
	return n > 0
}

// An evaluation is one run of check_host() with all that it includes. Its
// counters are shared by all records (RFC 7208 section 4.6.4).
type evaluation struct {
	v                         *Verifier
	ip                        netip.Addr
	helo, local, senderDomain string

	lookups, voids int
	ptrNames       []string // validated names of ip, for ptr and %{p}
	ptrDone        bool
	ptrVoid        bool // the address has no name
}

// An outcome is what one record says.
type outcome struct {
	status                 Status
	mechanism, problem     string
	explain, explainDomain string // exp= and the domain whose record has it
}

func temporary(format string, args ...any) outcome {
	return outcome{status: TempError, problem: fmt.Sprintf(format, args...)}
}

func permanent(format string, args ...any) outcome {
	return outcome{status: PermError, problem: fmt.Sprintf(format, args...)}
}

// checkHost is check_host() of RFC 7208 section 4. It recurses for include and redirect; each counts
// as a lookup, so the depth is at most MaxLookups.
func (e *evaluation) checkHost(ctx context.Context, domain string) outcome {
	txts, err := mailspine.LookupTXT(ctx, e.v.Resolver, domain)
	if err != nil && !mailspine.IsNotFound(err) {
		return temporary("%s", describe(domain, "TXT", err))
	}
	var records []string
	for _, t := range txts {
		if IsRecord(t) {
			records = append(records, t)
		}
	}
	switch len(records) {
	case 0:
		return outcome{status: None, problem: domain + " has no SPF record"}
	case 1:
	default:
		return permanent("%s has %d SPF records (RFC 7208 section 4.5)", domain, len(records))
	}
	rec, err := ParseRecord(records[0])
	if err != nil {
		return permanent("record of %s: %s", domain, strings.TrimPrefix(err.Error(), "spf: "))
	}
	for _, d := range rec.Directives {
		matched, bad := e.match(ctx, d, domain)
		if bad.status != "" {
			return bad
		}
		if matched {
			return outcome{status: d.Qualifier, mechanism: d.Text, explain: rec.Explain, explainDomain: domain}
		}
	}
	if rec.Redirect == "" {
		return outcome{status: Neutral, mechanism: "default"} // RFC 7208 section 4.7
	}
	if bad := e.count(); bad.status != "" {
		return bad
	}
	target, ok := e.target(ctx, rec.Redirect, domain)
	if !ok {
		return permanent("redirect= of %s leads to no domain name (RFC 7208 section 6.1)", domain)
	}
	o := e.checkHost(ctx, target)
	if o.status == None {
		return permanent("redirect= of %s leads to %s, which has no SPF record (RFC 7208 section 6.1)", domain, target)
	}
	return o
}

func describe(name, typ string, err error) string {
	what := "temporary failure"
	switch {
	case errors.Is(err, mailspine.ErrDNSBogus):
		what = "bogus answer"
	case errors.Is(err, context.DeadlineExceeded):
		what = "time-out"
	}
	return fmt.Sprintf("%s looking up %s %s", what, printable(name), typ)
}

// count counts a term that needs DNS, when it is entered.
func (e *evaluation) count() outcome {
	if e.lookups >= MaxLookups {
		return permanent("more than %d terms need DNS (RFC 7208 section 4.6.4)", MaxLookups)
	}
	e.lookups++
	return outcome{}
}

// void counts a lookup that found nothing.
func (e *evaluation) void() outcome {
	if e.voids++; e.voids > MaxVoids {
		return permanent("more than %d lookups found nothing (RFC 7208 section 4.6.4)", MaxVoids)
	}
	return outcome{}
}

// target expands a domain-spec into a name to ask for; "" is the current
// domain. A name of more than 253 octets loses labels on the left (RFC 7208 section 7.3).
func (e *evaluation) target(ctx context.Context, spec, domain string) (string, bool) {
	if spec == "" {
		return domain, true
	}
	name, ok := e.expand(ctx, spec, domain)
	if !ok {
		return "", false
	}
	name = strings.TrimSuffix(name, ".")
	for len(name) > 253 {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			return "", false
		}
		name = rest
	}
	return strings.ToLower(name), validName(name)
}

// match evaluates one mechanism. A bad outcome ends the evaluation.
func (e *evaluation) match(ctx context.Context, d Directive, domain string) (matched bool, bad outcome) {
	switch d.Mechanism {
	case "all":
		return true, outcome{}
	case "ip4", "ip6":
		return d.Prefix.Contains(e.ip), outcome{}
	}
	if bad := e.count(); bad.status != "" {
		return false, bad
	}
	target, ok := e.target(ctx, d.Domain, domain)
	if d.Mechanism == "include" {
		if !ok {
			return false, permanent("%s of %s leads to no domain name (RFC 7208 section 5.2)", printable(d.Text), domain)
		}
		switch o := e.checkHost(ctx, target); o.status {
		case Pass:
			return true, outcome{}
		case TempError, PermError:
			return false, outcome{status: o.status, problem: o.problem}
		case None:
			return false, permanent("%s includes %s, which has no SPF record (RFC 7208 section 5.2)", domain, target)
		}
		return false, outcome{}
	}
	if !ok {
		return false, outcome{} // RFC 7208 section 4.8: what cannot be asked for does not match
	}
	switch d.Mechanism {
	case "a":
		addrs, bad := e.addrs(ctx, target)
		return e.within(addrs, d), bad
	case "exists":
		// RFC 7208 section 5.7: always an A lookup, also for IPv6 clients.
		_, err := mailspine.LookupA(ctx, e.v.Resolver, target)
		return err == nil, e.failed(target, "A", err)
	case "mx":
		mxs, err := mailspine.LookupMX(ctx, e.v.Resolver, target)
		if bad := e.failed(target, "MX", err); bad.status != "" {
			return false, bad
		}
		if len(mxs) > MaxMX {
			return false, permanent("%s has more than %d MX records (RFC 7208 section 4.6.4)", target, MaxMX)
		}
		for _, mx := range mxs {
			if !validName(mx.Host) {
				continue // a null MX, for one
			}
			addrs, bad := e.addrs(ctx, mx.Host)
			if bad.status != "" || e.within(addrs, d) {
				return bad.status == "", bad
			}
		}
		return false, outcome{}
	case "ptr":
		for _, name := range e.ptr(ctx) {
			if isUnder(name, target) {
				return true, outcome{}
			}
		}
		if e.ptrVoid {
			return false, e.void()
		}
	}
	return false, outcome{}
}

// failed turns a lookup error into an outcome: none, a void lookup, or temperror.
func (e *evaluation) failed(name, typ string, err error) outcome {
	switch {
	case err == nil:
		return outcome{}
	case mailspine.IsNotFound(err):
		return e.void()
	}
	return temporary("%s", describe(name, typ, err))
}

// addrs looks up the addresses of a host in the client's family.
func (e *evaluation) addrs(ctx context.Context, host string) ([]netip.Addr, outcome) {
	t := mailspine.TypeAAAA
	if e.ip.Is4() {
		t = mailspine.TypeA
	}
	a, err := e.v.Resolver.Lookup(ctx, host, t)
	return a.Addrs, e.failed(host, t.String(), err)
}

func (e *evaluation) within(addrs []netip.Addr, d Directive) bool {
	bits := d.Bits6
	if e.ip.Is4() {
		bits = d.Bits4
	}
	for _, a := range addrs {
		if a.BitLen() == e.ip.BitLen() {
			if p, err := a.Prefix(bits); err == nil && p.Contains(e.ip) {
				return true
			}
		}
	}
	return false
}

// ptr returns the names of the client that lead back to it (RFC 7208 section
// 5.5). Failing lookups mean no name. The reverse zone is the client's, not the
// domain's, so it is asked once for all.
func (e *evaluation) ptr(ctx context.Context) []string {
	if e.ptrDone {
		return e.ptrNames
	}
	e.ptrDone = true
	names, err := mailspine.LookupPTR(ctx, e.v.Resolver, e.ip)
	if err != nil {
		e.ptrVoid = mailspine.IsNotFound(err)
		return nil
	}
	t := mailspine.TypeAAAA
	if e.ip.Is4() {
		t = mailspine.TypeA
	}
	for _, name := range names[:min(len(names), MaxPTR)] {
		if !validName(name) {
			continue
		}
		a, err := e.v.Resolver.Lookup(ctx, name, t)
		if err != nil {
			continue
		}
		for _, addr := range a.Addrs {
			if addr.Unmap() == e.ip {
				e.ptrNames = append(e.ptrNames, strings.ToLower(strings.TrimSuffix(name, ".")))
				break
			}
		}
	}
	return e.ptrNames
}

// validatedName is the macro p: the domain itself before its subdomains before any
// other name (RFC 7208 section 7.3).
func (e *evaluation) validatedName(ctx context.Context, domain string) string {
	best := "unknown"
	rank := 0
	for _, name := range e.ptr(ctx) {
		r := 1
		switch {
		case name == domain:
			r = 3
		case isUnder(name, domain):
			r = 2
		}
		if r > rank {
			best, rank = name, r
		}
	}
	return best
}

// isUnder reports whether name is domain or in it.
func isUnder(name, domain string) bool {
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	return name == domain || strings.HasSuffix(name, "."+domain)
}

// maxExplanation bounds the text of exp=, in octets; longer ones are not used.
const maxExplanation = 500

// explanation fetches and expands exp=. Whatever goes wrong, there is just no
// explanation (RFC 7208 section 6.2).
func (e *evaluation) explanation(ctx context.Context, spec, domain string) string {
	name, ok := e.target(ctx, spec, domain)
	if !ok {
		return ""
	}
	txts, err := mailspine.LookupTXT(ctx, e.v.Resolver, name)
	if err != nil || len(txts) != 1 {
		return ""
	}
	if _, rule := scanMacros(txts[0], true); rule != "" {
		return ""
	}
	text, ok := e.expand(ctx, txts[0], domain)
	if !ok || len(text) > maxExplanation {
		return ""
	}
	for _, c := range []byte(text) {
		if c < ' ' || c > 0x7e {
			return ""
		}
	}
	return text
}
