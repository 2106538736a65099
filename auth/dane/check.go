package dane

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A Level says how bad a finding is.
type Level uint8

// The levels.
const (
	Note    Level = iota // good, or good to know
	Warning              // mail arrives, but with less protection than meant, or not for long
	Problem              // senders with DANE hold their mail back
)

// String returns "note", "warning" or "problem".
func (l Level) String() string {
	switch l {
	case Note:
		return "note"
	case Warning:
		return "warning"
	case Problem:
		return "problem"
	}
	return fmt.Sprintf("Level(%d)", uint8(l))
}

// The codes of findings.
const (
	CodeOK       = "ok"       // note: a record authenticates the server
	CodeLookup   = "lookup"   // problem: the records, or whether there are any, cannot be had
	CodeInsecure = "insecure" // warning: the zone, or the records in it, are not signed, so that nothing in it counts
	CodeAbsent   = "absent"   // warning: no records; the text has one to publish, if the certificate is known
	CodeUnusable = "unusable" // warning: a record that no sender uses; problem: all are
	CodeMismatch = "mismatch" // problem: no record authenticates the server
	CodeExpiring = "expiring" // warning: the chain of a record with usage 2 ends within two weeks
	CodeIgnored  = "ignored"  // note: a record with a weaker digest than another one with its usage and selector
	CodeUnused   = "unused"   // note: a record that does not match now: for the next key, or left behind by the last
	CodeRollover = "rollover" // note: no record but for the key in use
	CodeFragile  = "fragile"  // note: a record of usage 3 that changes with each renewal of the certificate
	CodeProbe    = "probe"    // warning: the server's certificate cannot be seen
)

// A Finding is one thing that [Check] found.
type Finding struct {
	Host  string
	Level Level
	Code  string
	Text  string // a sentence or two, for people
}

// String returns the finding as one line.
func (f Finding) String() string {
	return f.Host + ": " + f.Level.String() + ": " + f.Text + " [" + f.Code + "]"
}

const (
	// maxListed bounds the findings about single records of a host.
	maxListed = 20
	// soon is how long before its end a chain is warned of.
	soon = 14 * 24 * time.Hour
)

// Check looks at one's own mail exchangers as a sender with DANE does, and returns what it finds, in the order of hosts; at
// least one finding for each. A port of 0 is 25.
//
// probe returns the certificates that a host shows after STARTTLS when asked (SNI) for that name. nil: the records are not held against anything. r
// must be able to give authentic answers, or all is insecure.
//
// The hosts are looked at in turn, each within what r and probe take, and ctx bounds it all.
func Check(ctx context.Context, r mailspine.Resolver, hosts []string, port uint16,
	probe func(ctx context.Context, host string) ([]*x509.Certificate, error)) []Finding {
	var all []Finding
	for _, h := range hosts {
		c := check{host: h, port: port, now: time.Now()}
		c.run(ctx, r, probe)
		all = append(all, c.found...)
	}
	return all
}

// A check is what is found about one host.
type check struct {
	host  string
	port  uint16
	now   time.Time
	found []Finding
	chain []*x509.Certificate
}

func (c *check) add(l Level, code, format string, args ...any) {
	c.found = append(c.found, Finding{Host: c.host, Level: l, Code: code, Text: fmt.Sprintf(format, args...)})
}

func (c *check) run(ctx context.Context, r mailspine.Resolver, probe func(context.Context, string) ([]*x509.Certificate, error)) {
	recs, err := Lookup(ctx, r, c.host, c.port)
	if err != nil {
		c.add(Problem, CodeLookup, "senders with DANE do not use this host now: %v", err)
		return
	}
	if probe != nil {
		sni := recs.Base
		if sni == "" {
			sni = recs.Host
		}
		chain, err := probe(ctx, sni)
		switch {
		case err != nil:
			c.add(Warning, CodeProbe, "the certificate cannot be seen: %v", err)
		case len(chain) == 0 || chain[0] == nil:
			c.add(Warning, CodeProbe, "the server shows no certificate")
		default:
			c.chain = chain
		}
	}
	if len(recs.All) == 0 {
		c.absent(ctx, r, recs)
		return
	}
	c.unusable(recs)
	if len(recs.Usable) > 0 {
		c.records(recs)
	}
}

// absent says why there are no records.
func (c *check) absent(ctx context.Context, r mailspine.Resolver, recs Records) {
	if a, err := r.Lookup(ctx, Name(recs.Host, c.port), mailspine.TypeTLSA); err == nil && !a.Authentic {
		c.add(Warning, CodeInsecure, "%d TLSA records at %s are not secured by DNSSEC, so that senders ignore them", len(a.TLSA), Name(recs.Host, c.port))
		return
	}
	advice := ""
	if c.chain != nil {
		advice = ". The record for the certificate in use: " + Format(recs.Host, c.port, Record(c.chain[0], UsageEE, SelectorSPKI, MatchSHA256))
	}
	if !recs.Secure {
		c.add(Warning, CodeInsecure, "the host has no addresses, or they are not secured by DNSSEC, which comes before any TLSA record%s", advice)
		return
	}
	c.add(Warning, CodeAbsent, "there are no TLSA records at %s%s", Name(recs.Host, c.port), advice)
}

func (c *check) unusable(recs Records) {
	bad := 0
	for _, r := range recs.All {
		if err := Usable(r); err != nil {
			if bad++; bad <= maxListed {
				c.add(Warning, CodeUnusable, "the record %s is of no use to senders: %v", brief(r), err)
			}
		}
	}
	if bad > maxListed {
		c.add(Warning, CodeUnusable, "%d more records are of no use to senders", bad-maxListed)
	}
	if len(recs.Usable) == 0 {
		c.add(Problem, CodeUnusable, "no record is usable: senders demand TLS, and authenticate nothing")
	}
}

// records holds each usable record against what the server shows.
func (c *check) records(recs Records) {
	counting := strongest(recs.Usable)
	if weaker := len(recs.Usable) - len(counting); weaker > 0 {
		c.add(Note, CodeIgnored, "%d records are ignored since others with their usage and selector have a stronger digest", weaker)
	}
	listed := 0
	for _, r := range counting {
		if r.Usage == UsageEE && r.Selector == SelectorCert {
			if listed++; listed <= maxListed {
				c.add(Note, CodeFragile, "the record %s matches one certificate only: there must be another one before each renewal, "+
					"while one with selector 1 holds as long as the key", brief(r))
			}
		}
	}
	if c.chain == nil {
		return
	}
	rec, err := Verify(recs.Usable, c.chain, recs.Names, c.now)
	if err != nil {
		hint := ""
		for _, r := range recs.Usable[:min(len(recs.Usable), maxListed)] {
			if _, err := Verify([]mailspine.TLSA{r}, c.chain, recs.Names, c.now); err == nil {
				hint = fmt.Sprintf(". The record %s would match, but is ignored for its weaker digest", brief(r))
				break
			}
		}
		var why *VerifyError
		if errors.As(err, &why) {
			err = errors.New(strings.TrimPrefix(why.Error(), "dane: "))
		}
		c.add(Problem, CodeMismatch, "senders with DANE hold their mail back: %v%s. The record for the certificate in use: %s", err, hint,
			Format(recs.Base, c.port, Record(c.chain[0], UsageEE, SelectorSPKI, MatchSHA256)))
		return
	}
	c.add(Note, CodeOK, "the record %s at %s authenticates the server", brief(rec), Name(recs.Base, c.port))
	if _, err := Verify(recs.Usable, c.chain, recs.Names, c.now.Add(soon)); err != nil {
		c.add(Warning, CodeExpiring, "within two weeks no record will authenticate the server: %v", err)
	}
	c.rollover(recs, counting)
}

// rollover looks for the record of the next key: it is published at least two TTLs before the key is used (RFC 7671 section 8.1).
func (c *check) rollover(recs Records, counting []mailspine.TLSA) {
	next, authority := 0, false
	for i, r := range counting {
		if i == maxListed {
			break
		}
		if _, err := Verify([]mailspine.TLSA{r}, c.chain, recs.Names, c.now); err == nil {
			authority = authority || r.Usage == UsageTA // it vouches for the next key as well
			continue
		}
		next++
		c.add(Note, CodeUnused, "the record %s does not match now: it is for the next key, or was left behind", brief(r))
	}
	if next == 0 && !authority {
		c.add(Note, CodeRollover, "there are records for the key in use only: publish that of the next key beside them, and "+
			"change the key no sooner than twice the TTL after (of which %v are left now)", recs.TTL)
	}
}
