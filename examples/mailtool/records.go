package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/auth/tlsrpt"
)

// A record is what one name should have of one type, and what a check finds.
type record struct {
	Name     string   `json:"name"`
	Type     string   `json:"type"`
	Values   []string `json:"values"` // as in a zone file, but TXT without quotes; empty: the flags do not tell
	Purpose  string   `json:"purpose"`
	Optional bool     `json:"optional"`

	Status  string   `json:"status,omitempty"` // ok, missing, differs, error
	Found   []string `json:"found,omitempty"`
	Problem string   `json:"problem,omitempty"` // what is wrong, and what that means for mail

	kind    string  // which TXT records of the name concern us; "": all
	compare compare // called when there is something of the type
	absent  string  // what it means that there is nothing
	none    bool    // nothing is right as well
	untold  string  // printed if there are no Values: how to tell them
	note    string  // printed below them; "": nothing
	// instead is asked when there is nothing: an empty verdict means that nothing else will do. nil: nothing will.
	instead func(context.Context, mailspine.Resolver) (verdict, []string)
}

// mtasts is the MTA-STS policy to serve (RFC 8461 section 3.2).
func (p *plan) mtasts() mtasts.Policy {
	return mtasts.Policy{Mode: mtasts.Mode(p.sts), MX: p.hosts(), MaxAge: 7 * 24 * time.Hour}
}

func (p *plan) bimiRecord() string {
	s := "v=BIMI1; l=" + p.bimi
	if p.evidence != "" {
		s += "; a=" + p.evidence
	}
	return s
}

// tlsTarget is the URI that TLS reports go to.
func (p *plan) tlsTarget() string {
	if strings.HasPrefix(p.tlsReports, "https:") {
		return p.tlsReports
	}
	return "mailto:" + p.tlsReports
}

// under reports whether a name is in the domain's zone, as far as names tell.
func under(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}

// records lists what the domain needs.
func (p *plan) records() []*record {
	var recs []*record
	add := func(r *record) {
		if r.Values == nil {
			r.Values = []string{} // in JSON an array, too
		}
		recs = append(recs, r)
	}

	mx := &record{
		Name: p.domain, Type: "MX", Purpose: "where mail for the domain goes (RFC 5321 section 5.1)",
		absent:  "mail for the domain goes to the address of its web server, or nowhere",
		compare: p.compareMX,
	}
	for _, m := range p.mx {
		mx.Values = append(mx.Values, fmt.Sprintf("%d %s.", m.Preference, m.Host))
	}
	add(mx)
	for _, family := range []string{"A", "AAAA"} {
		rec := &record{
			Name: p.host, Type: family, Purpose: "the mail server's address", compare: p.compareAddrs(family),
			absent: "the name has no such address, and nobody finds the server there", untold: "give the addresses with -ip",
		}
		if len(p.ips) == 0 {
			rec.instead = onlyIPv6(p.host)
		}
		for _, ip := range p.ips {
			if ip.Is4() == (family == "A") {
				rec.Values = append(rec.Values, ip.String())
			}
		}
		if len(rec.Values) > 0 || len(p.ips) == 0 && family == "A" {
			add(rec)
		}
	}
	for _, ip := range p.ips {
		add(&record{
			Name: strings.TrimSuffix(mailspine.ReverseName(ip), "."), Type: "PTR", Values: []string{p.host + "."},
			Purpose: "the name of the sending address, which whoever runs the network publishes",
			absent:  "large providers refuse mail from an address without a name",
			compare: p.comparePTR,
		})
	}
	spf := "v=spf1 mx -all"
	if len(p.ips) > 0 {
		spf = "v=spf1"
		for _, ip := range p.ips {
			if ip.Is4() {
				spf += " ip4:" + ip.String()
			} else {
				spf += " ip6:" + ip.String()
			}
		}
		spf += " -all"
	}
	add(&record{
		Name: p.domain, Type: "TXT", kind: "spf", Values: []string{spf}, Purpose: "SPF: which addresses send mail of the domain (RFC 7208)",
		absent: "receivers cannot tell the domain's mail from forged mail; large providers refuse it", compare: p.compareSPF(p.domain),
	})
	add(&record{
		Name: p.host, Type: "TXT", kind: "spf", Values: []string{"v=spf1 a -all"}, Purpose: "SPF for the server's own name, for bounces, which have no sender (RFC 7208 section 2.4)",
		Optional: true, absent: "bounces and reports from here pass no SPF check", compare: p.compareSPF(p.host),
	})
	keys := p.keys
	if len(keys) == 0 {
		keys = []signingKey{{selector: p.selector}}
	}
	for _, k := range keys {
		rec := &record{
			Name: k.selector + "._domainkey." + p.domain, Type: "TXT", Purpose: "DKIM: the public key of the domain's signatures (RFC 6376)",
			absent: "signatures cannot be verified", compare: compareDKIM(k.key), untold: "give the key with -dkim-key FILE, or make one with -dkim-new FILE",
		}
		if k.key != nil {
			rec.Values = []string{(&dkim.SigningKey{Domain: p.domain, Selector: k.selector, Key: k.key}).Record().String()}
		}
		add(rec)
	}
	policy := "v=DMARC1; p=" + string(p.policy)
	if p.reports != "" {
		policy += "; rua=mailto:" + p.reports
	}
	observes := ""
	if p.policy == dmarc.NonePolicy {
		observes = "p=none only observes. When the reports show that all of the domain's mail passes, go on to quarantine and reject."
	}
	add(&record{
		Name: "_dmarc." + p.domain, note: observes, Type: "TXT", kind: "dmarc", Values: []string{policy}, Purpose: "DMARC: what receivers do with forged mail, and to whom they report (RFC 9989)",
		absent: "anybody can forge the domain's From address; large providers ask bulk senders for the record", compare: p.compareDMARC, instead: p.inheritDMARC,
	})
	if _, at, ok := strings.Cut(p.reports, "@"); ok {
		if at, err := mailDomain(at); err == nil && !under(at, p.domain) && !under(p.domain, at) {
			add(&record{
				Name: p.domain + "._report._dmarc." + at, Type: "TXT", kind: "dmarc", Values: []string{"v=DMARC1"},
				Purpose: "DMARC: " + at + " agrees to get the reports (RFC 7489 section 7.1)",
				absent:  "receivers send no reports to another domain that has not agreed", compare: anything,
			})
		}
	}
	if p.bimi != "" {
		add(&record{
			Name: "default._bimi." + p.domain, Type: "TXT", kind: "bimi", Values: []string{p.bimiRecord()}, Purpose: "BIMI: the domain's indicator",
			absent: "no indicator is shown", compare: p.compareBIMI,
		})
	}
	for _, r := range p.tlsaRecords() {
		add(r)
	}
	if p.sts != "" {
		add(&record{
			Name: "_mta-sts." + p.domain, Type: "TXT", kind: "sts", Values: []string{mtasts.Record(p.mtasts())}, Purpose: "MTA-STS: there is a policy of TLS, and this is its version (RFC 8461)",
			Optional: !p.given["mta-sts"], absent: "senders do not look for the policy", compare: compareSTS,
		})
		add(&record{
			Name: "mta-sts." + p.domain, Type: "A", Purpose: "MTA-STS: the web server that has the policy (RFC 8461 section 3.3)",
			Optional: !p.given["mta-sts"], absent: "nobody can fetch the policy", compare: anything, instead: onlyIPv6("mta-sts." + p.domain),
			untold: "the address of a web server with a certificate for this name",
		})
	}
	if p.tlsReports != "" {
		add(&record{
			Name: tlsrpt.RecordName(p.domain), Type: "TXT", kind: "tlsrpt", Values: []string{tlsrpt.Record{Destinations: []tlsrpt.Destination{{URI: p.tlsTarget()}}}.String()}, Purpose: "who is told of failing TLS connections (RFC 8460)",
			Optional: !p.given["tlsrpt"], absent: "failing TLS stays unnoticed", compare: p.compareTLSRPT,
		})
	}
	for _, s := range p.services {
		rec := &record{
			Name: s.label + "._tcp." + p.domain, Type: "SRV", Optional: !p.given[s.flag], compare: compareSRV(s),
			Purpose: s.what + ", for mail programs to find (RFC 6186, RFC 8314)", absent: "mail programs cannot set themselves up",
		}
		if s.host == "" {
			rec.Values, rec.Purpose, rec.none = []string{"0 0 0 ."}, s.what+": not offered (RFC 6186 section 3.4)", true
		} else {
			// RFC 8314 section 5.1: implicit TLS is preferred.
			prio := 0
			if !strings.HasSuffix(s.label, "s") {
				prio = 10
			}
			rec.Values = []string{fmt.Sprintf("%d 1 %d %s.", prio, s.port, s.host)}
		}
		add(rec)
	}
	return recs
}

// printZone prints the records as lines of a zone file.
func printZone(w io.Writer, p *plan, recs []*record) {
	fmt.Fprintf(w, "; Mail records of %s. Lines that begin with a semicolon are comments.\n", p.domain)
	for _, r := range recs {
		fmt.Fprintf(w, "\n; %s\n", r.Purpose)
		if r.Type == "PTR" || !under(r.Name, p.domain) {
			fmt.Fprintf(w, "; (This name is not in the zone of %s.)\n", p.domain)
		}
		for _, v := range r.Values {
			if r.Type == "TXT" {
				v = quote(v)
			}
			fmt.Fprintf(w, "%s.\tIN\t%s\t%s\n", r.Name, r.Type, v)
		}
		if len(r.Values) == 0 {
			fmt.Fprintf(w, "; %s.: %s.\n", r.Name, r.untold)
		}
		if r.note != "" {
			fmt.Fprintln(w, ";", r.note)
		}
	}
	if p.sts != "" {
		fmt.Fprintf(w, "\n; The policy itself, to be served as https://mta-sts.%s%s:\n", p.domain, mtasts.WellKnownPath)
		for _, line := range p.mtasts().Lines() {
			fmt.Fprintf(w, ";   %s\n", line)
		}
	}
}

// quote writes the strings of a TXT record: at most 255 octets each.
func quote(s string) string {
	var parts []string
	for part := range slices.Chunk([]byte(s), 255) {
		var b strings.Builder
		for _, c := range part {
			switch {
			case c == '"' || c == '\\':
				b.WriteByte('\\')
				b.WriteByte(c)
			case c < 0x20 || c >= 0x7f:
				fmt.Fprintf(&b, "\\%03d", c)
			default:
				b.WriteByte(c)
			}
		}
		parts = append(parts, `"`+b.String()+`"`)
	}
	return strings.Join(parts, " ")
}
