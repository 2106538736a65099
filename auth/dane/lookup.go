package dane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// Records are what the DNS says about the certificates of a host.
type Records struct {
	// Host is the name that was asked for, in lower case with A-labels.
	Host string
	// Base is the TLSA base domain, where the records were found: Host, or what Host is an alias of. It
	// is the name for SNI (RFC 7672 section 8.1). "": there are no records.
	Base string
	// Names are the names of which a certificate must have one where the usage is 2 (RFC 7672 section 3.2.2): Base and Host, without
	// repetition. The caller adds the domain whose MX record led to the host.
	Names []string
	// All are the authentic records, and Usable those of them that can authenticate a server (see [Usable]). All without Usable
	// make TLS mandatory, with any certificate (RFC 7672 section 2.2). Both are shared and must not be changed.
	All, Usable []mailspine.TLSA
	// Secure tells that the host's name is secured by DNSSEC: without records, that their absence is proven or that
	// they are not signed themselves; else it is always set.
	Secure bool
	// TTL is how long this may be kept.
	TTL time.Duration
}

// Lookup finds the records of a mail exchanger (RFC 7672 sections 2.2.2 and 2.2.3). The caller asks only where the name of the host
// is authentic: from an authentic MX answer, or because there is no MX and the host is the domain. A port of 0 is 25.
//
// A nil error with records in Usable means that DANE is in force; with records in All only, that TLS is mandatory without
// authentication; without records, that there is no DANE for this host: its zone is not
// signed, or it is proven that there are none, or it has no address.
//
// With an error the host must not be used (section 2.1.2): somebody may be hiding the records. Errors match
// mailspine.ErrDNSTemporary or mailspine.ErrDNSBogus as the resolver's do, so they are temporary, and the message is for later
// unless another host takes it.
//
// It takes at most four lookups, most often two, in turn. They and the time are bounded by the resolver and by ctx. Address literals
// have no records and are not looked up.
func Lookup(ctx context.Context, r mailspine.Resolver, host string, port uint16) (Records, error) {
	l := lookup{ctx: ctx, r: r, recs: Records{Host: host, TTL: maxTTL}}
	if r == nil {
		return l.fail(errors.New("no resolver"))
	}
	name, err := mailspine.ASCIIDomain(host)
	if err != nil || name == "" || strings.HasPrefix(name, "[") {
		return l.recs, nil // no name under which anything could be published
	}
	l.recs.Host = name
	bases, err := l.bases()
	if err != nil {
		return l.fail(err)
	}
	for _, base := range bases {
		a, err := l.ask(Name(base, port), mailspine.TypeTLSA)
		switch {
		case err != nil && !mailspine.IsNotFound(err):
			// Not the next candidate: that would be another's records, at the wish of whoever made this one fail.
			return l.fail(err)
		case err != nil || !a.Authentic:
			continue // proven absent, or not signed: as if it were absent (section 2.2)
		}
		l.recs.Base = base
		n := min(len(a.TLSA), maxRecords)
		// Clipped, so that who appends to them changes nothing for others.
		l.recs.Names = slices.Clip(slices.Compact([]string{base, name}))
		l.recs.All = a.TLSA[:n:n]
		l.recs.Usable = usable(l.recs.All)
		return l.recs, nil
	}
	return l.recs, nil
}

// maxTTL is more than any resolver keeps anything.
const maxTTL = 24 * time.Hour

// A lookup is one call of Lookup.
type lookup struct {
	ctx  context.Context
	r    mailspine.Resolver
	recs Records
}

func (l *lookup) ask(name string, t mailspine.Type) (mailspine.Answer, error) {
	a, err := l.r.Lookup(l.ctx, name, t)
	if err == nil || mailspine.IsNotFound(err) { // a failure has no TTL
		l.recs.TTL = min(l.recs.TTL, a.TTL)
	}
	return a, err
}

// fail returns nothing but the host of what was found so far, so that nobody who overlooks the error takes it for something.
func (l *lookup) fail(err error) (Records, error) {
	if !errors.Is(err, mailspine.ErrDNSTemporary) && !errors.Is(err, mailspine.ErrDNSBogus) {
		// A Resolver that keeps its contract has no other errors here.
		err = &mailspine.DNSError{Name: l.recs.Host, Type: mailspine.TypeTLSA, Kind: mailspine.ErrDNSTemporary, Err: err}
	}
	return Records{Host: l.recs.Host}, fmt.Errorf("dane: %s: %w", l.recs.Host, err)
}

// bases returns the candidates for the TLSA base domain, at most two, in order (RFC 7672 section 2.2.2); none where DANE does not
// apply. In a zone that is not signed, TLSA records are not even asked for: they would mean nothing, and the
// servers of some such zones do not answer questions of this type.
func (l *lookup) bases() ([]string, error) {
	name := l.recs.Host
	a, err := l.addresses()
	if err != nil {
		if mailspine.IsNotFound(err) {
			return nil, nil // nothing to connect to
		}
		return nil, err
	}
	target := a.CanonicalName
	if target == "" {
		target = name
	}
	if a.Authentic {
		l.recs.Secure = true
		// The end of the alias chain first, since who runs the server publishes there; then the name itself.
		return slices.Compact([]string{target, name}), nil
	}
	if target == name {
		return nil, nil
	}
	// The chain as a whole is not authentic, but its first link may be: then the name itself is in a signed zone and may have records.
	a, err = l.ask(name, mailspine.TypeCNAME)
	switch {
	case err != nil && !mailspine.IsNotFound(err):
		return nil, err
	case err != nil || !a.Authentic:
		return nil, nil
	}
	l.recs.Secure = true
	return []string{name}, nil
}

// addresses returns the answer with the host's addresses: A, or AAAA if there is none. Where one type
// cannot be had, an authentic answer of the other one tells enough, since both are in the same zone: many servers
// that fail for AAAA would otherwise be out of reach.
func (l *lookup) addresses() (mailspine.Answer, error) {
	a, err := l.ask(l.recs.Host, mailspine.TypeA)
	if err == nil {
		return a, nil
	}
	b, err2 := l.ask(l.recs.Host, mailspine.TypeAAAA)
	switch {
	case err2 == nil && (b.Authentic || mailspine.IsNotFound(err)):
		return b, nil
	case !mailspine.IsNotFound(err):
		return mailspine.Answer{}, err
	}
	return mailspine.Answer{}, err2
}
