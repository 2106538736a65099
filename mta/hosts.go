package mta

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
)

// The bounds on what DNS can make a delivery do.
const (
	maxHosts        = 16 // mail exchangers that are considered, the best first
	maxAddrsPerHost = 8
)

// A host is one mail exchanger.
type host struct {
	name string // in lower case; an address literal with its brackets
	pref uint16
}

// hosts finds the mail exchangers of t.domain, in the order in which they are to
// be tried (RFC 5321 section 5.1). Errors are *mailspine.Error.
func (t *transfer) hosts(ctx context.Context) ([]host, error) {
	if t.fixed != nil {
		return t.fixed.hosts(t)
	}
	if strings.HasPrefix(t.domain, "[") {
		return []host{{name: t.domain}}, nil
	}
	a, err := t.r.Resolver.Lookup(ctx, t.domain, mailspine.TypeMX)
	t.secure = a.Authentic
	switch {
	case err == nil:
	case errors.Is(err, mailspine.ErrNXDomain):
		return nil, mailspine.Errorf(550, "5.1.2", "The domain %s does not exist", t.domain).WithCause(err)
	case errors.Is(err, mailspine.ErrNoData):
		// RFC 5321 section 5.1: the domain itself is its mail exchanger, but only
		// when it is certain that it has no MX.
		t.implicit = true
		a.MX = []mailspine.MX{{Host: t.domain}}
	default:
		return nil, lookupFailed("The mail exchangers of "+t.domain, err)
	}
	// RFC 7505 section 3: a single MX with an empty host says that the domain takes no mail.
	// Beside others it means nothing.
	if len(a.MX) == 1 && strings.Trim(a.MX[0].Host, ".") == "" {
		return nil, mailspine.Errorf(556, "5.1.10", "The domain %s takes no mail (null MX)", t.domain)
	}
	return t.order(a.MX)
}

// order sorts mail exchangers by preference, in random order inside of one,
// and drops what cannot be used.
func (t *transfer) order(mxs []mailspine.MX) ([]host, error) {
	var hosts []host
	seen := map[string]bool{}
	for _, mx := range mxs {
		name, err := mailspine.ASCIIDomain(mx.Host)
		if err != nil || name == "" || !isHostname(name) || seen[name] {
			continue
		}
		seen[name] = true
		hosts = append(hosts, host{name, mx.Preference})
	}
	if len(hosts) == 0 {
		return nil, mailspine.Errorf(550, "5.4.4", "The domain %s has no usable mail exchanger", t.domain)
	}
	// RFC 5321 section 5.1: the order inside of one preference must be random.
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	slices.SortStableFunc(hosts, func(a, b host) int { return cmp.Compare(a.pref, b.pref) })
	// The same section: we are in the list, so hosts no better than us are of no
	// use: they would give the message back to us.
	for _, h := range hosts {
		if t.isSelf(h.name) {
			hosts = slices.DeleteFunc(hosts, func(o host) bool { return o.pref >= h.pref })
			if len(hosts) == 0 {
				return nil, mailspine.Errorf(554, "5.4.6", "Mail for %s loops back to this host", t.domain)
			}
			break
		}
	}
	n := len(hosts)
	hosts = slices.DeleteFunc(hosts, func(h host) bool { return !t.rule.allows(h.name) })
	if len(hosts) == 0 {
		return nil, mailspine.Errorf(451, "4.7.5", "None of the %d mail exchangers of %s is allowed by its TLS policy", n, t.domain)
	}
	return hosts[:min(len(hosts), maxHosts)], nil
}

func (t *transfer) isSelf(name string) bool {
	for _, own := range append([]string{t.r.Hostname}, t.r.OwnNames...) {
		own, err := mailspine.ASCIIDomain(own)
		if err == nil && own == name {
			return true
		}
	}
	return false
}

// isHostname keeps names out of commands, texts and logs that are no host
// names. The resolver has its own opinion on lengths.
func isHostname(s string) bool {
	for _, c := range []byte(s) {
		if c != '-' && c != '.' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// addrs returns the addresses of a host, IPv4 and IPv6 in turn. IPv4 goes first: large
// receivers refuse IPv6 clients without a matching PTR record, for good, and
// many of those that send have none. A source with an address reaches only those of its family.
// Errors are *mailspine.Error.
func (t *transfer) addrs(ctx context.Context, h host) ([]netip.Addr, error) {
	addrs, err := t.lookupAddrs(ctx, h)
	if from := t.source.Addr; from.IsValid() && err == nil {
		addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() != from.Is4() })
		if len(addrs) == 0 {
			err = mailspine.Errorf(451, "4.4.1", "The host %s has no address of the family that is sent from", h.name)
		}
	}
	return addrs, err
}

func (t *transfer) lookupAddrs(ctx context.Context, h host) ([]netip.Addr, error) {
	if ip, ok := (mailspine.Address{Domain: h.name}).Literal(); ok {
		return []netip.Addr{ip}, nil
	}
	if t.r.Resolver == nil {
		return nil, mailspine.Errorf(451, "4.4.3", "The addresses of %s could not be looked up, try again later", h.name).
			WithCause(errors.New("mta: Relay.Resolver is nil")) // of a Smarthost
	}
	v4, err4 := t.r.Resolver.Lookup(ctx, h.name, mailspine.TypeA)
	v6, err6 := t.r.Resolver.Lookup(ctx, h.name, mailspine.TypeAAAA)
	var addrs []netip.Addr
	for i := range maxAddrsPerHost {
		for _, list := range [][]netip.Addr{v4.Addrs, v6.Addrs} {
			if i < len(list) && len(addrs) < maxAddrsPerHost && !slices.Contains(addrs, list[i]) {
				addrs = append(addrs, list[i])
			}
		}
	}
	if len(addrs) > 0 {
		return addrs, nil
	}
	for _, err := range []error{err4, err6} {
		if err != nil && !mailspine.IsNotFound(err) {
			return nil, lookupFailed("The addresses of "+h.name, err)
		}
	}
	if t.fixed != nil {
		// A mistake of the configuration must not bounce mail.
		return nil, mailspine.Errorf(451, "4.4.3", "The host %s has no address", h.name).WithCause(err4)
	}
	if t.implicit {
		return nil, mailspine.Errorf(550, "5.1.2", "The domain %s has neither mail exchanger nor address", t.domain).WithCause(err4)
	}
	return nil, mailspine.Errorf(550, "5.4.4", "The mail exchanger %s has no address", h.name).WithCause(err4)
}

// lookupFailed is for every lookup error that proves nothing: a bogus answer
// and an error that is no *DNSError are temporary too.
func lookupFailed(what string, err error) *mailspine.Error {
	return mailspine.Errorf(451, "4.4.3", "%s could not be looked up, try again later", what).WithCause(err)
}
