package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
	"github.com/mailspine/mailspine/auth/spf"
)

var types = map[string]mailspine.Type{
	"A": mailspine.TypeA, "AAAA": mailspine.TypeAAAA, "MX": mailspine.TypeMX, "TXT": mailspine.TypeTXT,
	"PTR": mailspine.TypePTR, "SRV": mailspine.TypeSRV,
}

// lookupTime bounds one lookup.
const lookupTime = 15 * time.Second

// check looks up each record and fills in what it finds. It reports whether all
// that is not optional is well.
func (p *plan) check(ctx context.Context, r mailspine.Resolver, recs []*record) bool {
	good := true
	for _, rec := range recs {
		rec.look(ctx, r)
		if rec.Status != "ok" && !rec.Optional {
			good = false
		}
	}
	return good
}

func (rec *record) look(ctx context.Context, r mailspine.Resolver) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	a, err := r.Lookup(ctx, rec.Name, types[rec.Type])
	if err == nil && rec.Type == "TXT" {
		a.TXT = slices.DeleteFunc(slices.Clone(a.TXT), func(s string) bool { return !rec.concerns(s) })
		if len(a.TXT) == 0 {
			err = mailspine.ErrNoData
		}
	}
	switch {
	case mailspine.IsNotFound(err) || errors.Is(err, mailspine.ErrNoData):
		if rec.none {
			rec.Status = "ok"
			return
		}
		rec.Status, rec.Problem = "missing", rec.absent
		return
	case err != nil:
		rec.Status, rec.Problem = "error", err.Error()
		return
	}
	rec.Found = present(a, rec.Type)
	if rec.Problem = rec.compare(ctx, r, a); rec.Problem != "" {
		rec.Status = "differs"
		return
	}
	rec.Status = "ok"
}

// concerns reports whether a TXT record is of the kind that is looked for: a domain has others too.
func (rec *record) concerns(txt string) bool {
	txt = strings.ToLower(strings.TrimLeft(txt, " \t"))
	switch label, _, _ := strings.Cut(rec.Name, "."); {
	case label == "_dmarc":
		return strings.HasPrefix(txt, "v=dmarc1")
	case label == "_mta-sts":
		return strings.HasPrefix(txt, "v=stsv1")
	case label == "_smtp":
		return strings.HasPrefix(txt, "v=tlsrptv1")
	case strings.HasPrefix(rec.Name, "default._bimi."):
		return strings.HasPrefix(txt, "v=bimi1")
	case strings.Contains(rec.Name, "._domainkey."):
		return true
	}
	return spf.IsRecord(txt)
}

// present shows an answer as Values are.
func present(a mailspine.Answer, typ string) []string {
	var out []string
	switch typ {
	case "A", "AAAA":
		for _, ip := range a.Addrs {
			out = append(out, ip.String())
		}
	case "MX":
		for _, m := range a.MX {
			out = append(out, fmt.Sprintf("%d %s.", m.Preference, strings.TrimSuffix(m.Host, ".")))
		}
	case "TXT":
		out = slices.Clone(a.TXT)
	case "PTR":
		for _, n := range a.Names {
			out = append(out, strings.TrimSuffix(n, ".")+".")
		}
	case "SRV":
		for _, s := range a.SRV {
			out = append(out, fmt.Sprintf("%d %d %d %s.", s.Priority, s.Weight, s.Port, strings.TrimSuffix(s.Target, ".")))
		}
	}
	slices.Sort(out)
	return out
}

func (p *plan) compareMX(ctx context.Context, r mailspine.Resolver, a mailspine.Answer) string {
	var hosts []string
	for _, m := range a.MX {
		host := canonical(m.Host)
		if host == "" {
			return "a null MX: the domain says that it takes no mail (RFC 7505)"
		}
		hosts = append(hosts, host)
		ans, err := r.Lookup(ctx, host, mailspine.TypeA)
		if mailspine.IsNotFound(err) || errors.Is(err, mailspine.ErrNoData) {
			ans, err = r.Lookup(ctx, host, mailspine.TypeAAAA)
		}
		switch {
		case mailspine.IsNotFound(err) || errors.Is(err, mailspine.ErrNoData):
			return host + " has no address: mail waits and then comes back to its sender"
		case err != nil:
			return fmt.Sprintf("the address of %s: %v", host, err)
		case ans.CanonicalName != "" && canonical(ans.CanonicalName) != host:
			return host + " is an alias (CNAME), which the name of a mail exchanger must not be (RFC 5321 section 5.1)"
		}
	}
	// Only the order of the preferences matters, not their numbers.
	if got, want := byPreference(a.MX), byPreference(p.mx); !slices.EqualFunc(got, want, slices.Equal) {
		return fmt.Sprintf("mail goes to %s instead of %s, in this order", strings.Join(hosts, ", "), strings.Join(slices.Concat(want...), ", "))
	}
	return ""
}

// byPreference groups hosts of the same preference.
func byPreference(mx []mailspine.MX) (groups [][]string) {
	mx = slices.Clone(mx)
	slices.SortFunc(mx, func(a, b mailspine.MX) int {
		if a.Preference != b.Preference {
			return int(a.Preference) - int(b.Preference)
		}
		return strings.Compare(canonical(a.Host), canonical(b.Host))
	})
	for i, m := range mx {
		if i == 0 || m.Preference != mx[i-1].Preference {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], canonical(m.Host))
	}
	return groups
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (p *plan) compareAddrs(family string) func(context.Context, mailspine.Resolver, mailspine.Answer) string {
	return func(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) string {
		for _, ip := range p.ips {
			if ip.Is4() == (family == "A") && !slices.ContainsFunc(a.Addrs, func(b netip.Addr) bool { return b.Unmap() == ip }) {
				return fmt.Sprintf("%s is not an address of %s: its name is not confirmed, and much of its mail is refused", ip, p.host)
			}
		}
		return ""
	}
}

func (p *plan) comparePTR(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) string {
	for _, n := range a.Names {
		if canonical(n) == p.host {
			return ""
		}
	}
	return "the address has another name than " + p.host + ": receivers compare it with what the server calls itself"
}

// compareSPF tries the record as a receiver would.
func (p *plan) compareSPF(domain string) func(context.Context, mailspine.Resolver, mailspine.Answer) string {
	return func(ctx context.Context, r mailspine.Resolver, a mailspine.Answer) string {
		if len(a.TXT) > 1 {
			return "more than one SPF record: receivers take that for an error, as if there were none (RFC 7208 section 4.5)"
		}
		v := &spf.Verifier{Resolver: r, NoExplanation: true}
		from := mailspine.Address{Local: "postmaster", Domain: domain}
		for _, ip := range p.ips {
			if res := v.Check(ctx, ip, p.host, from); res.Status != spf.Pass {
				return fmt.Sprintf("mail from %s gets the result %s%s", ip, res.Status, because(res.Problem))
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
				return "the record lets everybody send in the domain's name: " + ip.String() + " passes"
			case spf.PermError:
				return "receivers take the record for an error" + because(res.Problem)
			case spf.TempError:
				return "the record could not be evaluated" + because(res.Problem)
			}
		}
		return ""
	}
}

func because(problem string) string {
	if problem == "" {
		return ""
	}
	return ": " + problem
}

func (p *plan) compareDKIM(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) string {
	if len(a.TXT) > 1 {
		return "more than one record: which of them receivers take is chance"
	}
	rec, err := dkim.ParseRecord(a.TXT[0])
	switch {
	case errors.Is(err, dkim.ErrRevoked):
		return "the key is revoked: all signatures with it fail"
	case err != nil:
		return fmt.Sprintf("receivers cannot read the record: %v", err)
	case rec.Testing:
		return "the record says that it is only a test (t=y): receivers may ignore the signatures"
	case p.key == nil:
		return ""
	}
	want := p.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !want.Equal(rec.Key) {
		return "another key is published: signatures with the private key fail"
	}
	return ""
}

func (p *plan) compareDMARC(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) string {
	if len(a.TXT) > 1 {
		return "more than one DMARC record: receivers ignore them all (RFC 9989 section 4.7)"
	}
	rec, ok := dmarc.ParseRecord(a.TXT[0])
	if !ok {
		return "receivers take this for no DMARC record"
	}
	rank := map[dmarc.Policy]int{dmarc.NonePolicy: 0, dmarc.Quarantine: 1, dmarc.Reject: 2}
	switch {
	case rank[rec.Policy] < rank[p.policy]:
		return fmt.Sprintf("the policy is %s, weaker than %s", rec.Policy, p.policy)
	case rec.Testing && p.policy != dmarc.NonePolicy:
		return "the record says that it is only a test (t=y)"
	case p.reports != "" && !slices.ContainsFunc(rec.AggregateReports, func(u string) bool {
		return strings.EqualFold(strings.SplitN(u, "!", 2)[0], "mailto:"+p.reports)
	}):
		return "reports do not go to " + p.reports
	}
	return ""
}

// tags splits a list of tags (RFC 6376 section 3.2): name=value, separated by semicolons.
func tags(s string) map[string]string {
	m := map[string]string{}
	for part := range strings.SplitSeq(s, ";") {
		if k, v, ok := strings.Cut(part, "="); ok {
			m[strings.ToLower(strings.TrimSpace(k))] = strings.TrimSpace(v)
		}
	}
	return m
}

// compareTags wants one record of a version in which the named tags are ours.
func (p *plan) compareTags(version string, names ...string) func(context.Context, mailspine.Resolver, mailspine.Answer) string {
	want := map[string]string{"l": p.bimi, "a": p.evidence}
	if version == "TLSRPTv1" {
		want["rua"] = "mailto:" + p.tlsReports
		if strings.HasPrefix(p.tlsReports, "https:") {
			want["rua"] = p.tlsReports
		}
	}
	return func(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) string {
		if len(a.TXT) > 1 {
			return "more than one record: they are all ignored"
		}
		got := tags(a.TXT[0])
		if got["v"] != version {
			return fmt.Sprintf("v=%s, which is not %s", got["v"], version)
		}
		for _, n := range names {
			if got[n] != want[n] {
				return fmt.Sprintf("%s=%s, which is not %s", n, got[n], want[n])
			}
		}
		return ""
	}
}

func compareSTS(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) string {
	if len(a.TXT) > 1 {
		return "more than one record: they are ignored (RFC 8461 section 3.1)"
	}
	t := tags(a.TXT[0])
	id := t["id"]
	if id == "" || len(id) > 32 || strings.ContainsFunc(id, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	}) {
		return fmt.Sprintf("id=%s, which is not 1 to 32 letters and digits: the record is ignored (RFC 8461 section 3.1)", id)
	}
	return ""
}

func compareSRV(s service) func(context.Context, mailspine.Resolver, mailspine.Answer) string {
	return func(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) string {
		for _, x := range a.SRV {
			target := canonical(x.Target)
			if s.host == "" {
				if target == "" {
					return ""
				}
				continue
			}
			if target == s.host && x.Port == s.port {
				return ""
			}
		}
		if s.host == "" {
			return "the record offers what is said to be off"
		}
		return fmt.Sprintf("mail programs are not sent to %s:%d", s.host, s.port)
	}
}

// printCheck prints what was found, problems with what they mean.
func printCheck(w io.Writer, recs []*record) {
	count := map[string]int{}
	for _, r := range recs {
		mark := r.Status
		if r.Optional && r.Status != "ok" {
			mark = "(" + r.Status + ")"
		}
		count[r.Status]++
		fmt.Fprintf(w, "%-9s  %-5s %s\n", mark, r.Type, r.Name)
		if r.Status == "ok" {
			continue
		}
		for _, v := range r.Values {
			fmt.Fprintf(w, "%11swant   %s\n", "", v)
		}
		for _, v := range r.Found {
			fmt.Fprintf(w, "%11sfound  %s\n", "", printable(v))
		}
		fmt.Fprintf(w, "%11s%s\n", "", printable(r.Problem))
	}
	fmt.Fprintf(w, "\n%d ok, %d missing, %d different, %d could not be looked up; in parentheses: optional\n", count["ok"], count["missing"], count["differs"], count["error"])
}

// printable keeps what strangers published from driving the terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < 0x20 || c >= 0x7f && c < 0xa0 {
			return '?'
		}
		return c
	}, s)
}
