package dmarc

import (
	"net/url"
	"strings"
)

// A Policy is what a domain owner wants done with mail that fails.
type Policy string

// The policies (RFC 9989 section 4.7). The zero Policy means that none is given.
const (
	NonePolicy Policy = "none"
	Quarantine Policy = "quarantine"
	Reject     Policy = "reject"
)

// A Record is a DMARC policy record (RFC 9989 section 4.7). The zero values are the defaults
// of absent tags.
type Record struct {
	Policy            Policy   // p=; "": absent or not valid
	SubdomainPolicy   Policy   // sp=
	NonexistentPolicy Policy   // np=
	StrictDKIM        bool     // adkim=s
	StrictSPF         bool     // aspf=s
	PSD               string   // psd=: "y", "n" or "u"
	Testing           bool     // t=y: apply one level less
	AggregateReports  []string // rua=, the URIs that are valid
	FailureReports    []string // ruf=
	FailureOptions    string   // fo=; "": "0"
	invalid           bool     // sp= or np= is there, and not valid
}

// maxURIs bounds the report addresses that are kept of each kind.
const maxURIs = 20

// ParseRecord parses a policy record. ok is false for a text that is none:
// v=DMARC1, in this case, must come first. Beyond that nothing is an error: unknown
// tags are ignored, and broken values count as absent (RFC 9989 section 4.8).
// Of a tag that occurs twice the first counts.
func ParseRecord(txt string) (rec *Record, ok bool) {
	first, rest, _ := strings.Cut(txt, ";")
	name, value, _ := strings.Cut(first, "=")
	if !strings.EqualFold(trim(name), "v") || trim(value) != "DMARC1" {
		return nil, false
	}
	rec = &Record{PSD: "u"}
	seen := map[string]bool{}
	// Bounded by the length of a TXT record, 64 KiB.
	for rest != "" {
		var spec string
		spec, rest, _ = strings.Cut(rest, ";")
		name, value, has := strings.Cut(spec, "=")
		name, value = strings.ToLower(trim(name)), trim(value)
		if !has || seen[name] || len(seen) > 100 {
			continue
		}
		seen[name] = true
		word := strings.ToLower(value)
		switch name {
		case "p":
			rec.Policy, _ = policy(word)
		case "sp", "np":
			p, ok := policy(word)
			if name == "sp" {
				rec.SubdomainPolicy = p
			} else {
				rec.NonexistentPolicy = p
			}
			rec.invalid = rec.invalid || !ok
		case "adkim":
			rec.StrictDKIM = word == "s"
		case "aspf":
			rec.StrictSPF = word == "s"
		case "psd":
			if word == "y" || word == "n" {
				rec.PSD = word
			}
		case "t":
			rec.Testing = word == "y"
		case "rua":
			rec.AggregateReports = uris(value)
		case "ruf":
			rec.FailureReports = uris(value)
		case "fo":
			rec.FailureOptions = word
		}
	}
	return rec, true
}

func trim(s string) string { return strings.Trim(s, " \t") }

func policy(s string) (Policy, bool) {
	switch p := Policy(s); p {
	case NonePolicy, Quarantine, Reject:
		return p, true
	}
	return "", false
}

// uris parses a list of report URIs; an obsolete size limit is cut off.
func uris(s string) []string {
	var out []string
	for u := range strings.SplitSeq(s, ",") {
		u, _, _ = strings.Cut(trim(u), "!")
		if p, err := url.Parse(u); err == nil && p.Scheme != "" && (p.Opaque != "" || p.Host != "") && len(out) < maxURIs {
			out = append(out, u)
		}
	}
	return out
}

// usable applies RFC 9989 section 4.10.1: a record whose policies are not valid counts as p=none if
// it asks for reports, and otherwise as no wish at all.
func (r *Record) usable() (ok bool) {
	if r.Policy != "" && !r.invalid {
		return true
	}
	return len(r.AggregateReports) > 0
}

// wish returns the policy for the domain of the record itself, for an existing
// subdomain, or for one that does not exist.
func (r *Record) wish(sub, exists bool) Policy {
	if r.Policy == "" || r.invalid {
		return NonePolicy
	}
	p := r.Policy
	if sub && r.SubdomainPolicy != "" {
		p = r.SubdomainPolicy
	}
	if sub && !exists && r.NonexistentPolicy != "" {
		p = r.NonexistentPolicy
	}
	return p
}
