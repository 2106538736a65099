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
	name    string // in lower case; an address literal with its brackets
	pref    uint16
	skipped string // why it is not used; "": it is
}

// compareHosts orders hosts by preference and name.
func compareHosts(a, b host) int {
	return cmp.Or(cmp.Compare(a.pref, b.pref), strings.Compare(a.name, b.name))
}

// How the hosts of a domain were found.
const (
	foundMX        = "mx"
	foundImplicit  = "implicit mx" // RFC 5321 section 5.1: the domain itself
	foundLiteral   = "address literal"
	foundSmarthost = "smarthost"
)

// find finds out what holds for t.domain, and to which hosts it sends. It writes only to t, and calls no
// hook, so that several domains can be looked up at a time.
func (t *transfer) find(ctx context.Context) {
	if t.failed = t.loadRule(ctx); t.failed != nil {
		return
	}
	t.hosts, t.failed = t.findHosts(ctx)
	t.looked, t.lookErr = true, t.failed
	if t.failed == nil {
		t.failed = t.checkSecure(ctx)
	}
}

// findHosts finds the mail exchangers of t.domain, in the order in which they are to
// be tried (RFC 5321 section 5.1). Errors are *mailspine.Error.
func (t *transfer) findHosts(ctx context.Context) ([]host, error) {
	if t.fixed != nil {
		t.how, t.site = foundSmarthost, t.fixed.key()
		hosts, err := t.fixed.hosts(t)
		t.all = hosts
		return hosts, err
	}
	if strings.HasPrefix(t.domain, "[") {
		t.how, t.site = foundLiteral, t.domain
		t.all = []host{{name: t.domain}}
		return t.choose(ctx)
	}
	a, err := t.r.Resolver.Lookup(ctx, t.domain, mailspine.TypeMX)
	t.secure, t.target = a.Authentic, a.CanonicalName
	switch {
	case err == nil:
		t.how = foundMX
	case errors.Is(err, mailspine.ErrNXDomain):
		return nil, mailspine.Errorf(550, "5.1.2", "The domain %s does not exist", t.domain).WithCause(err)
	case errors.Is(err, mailspine.ErrNoData):
		// RFC 5321 section 5.1: the domain itself is its mail exchanger, but only
		// when it is certain that it has no MX.
		t.how, t.implicit = foundImplicit, true
		a.MX = []mailspine.MX{{Host: t.domain}}
	default:
		return nil, lookupFailed("The mail exchangers of "+t.domain, err)
	}
	if isNullMX(a.MX) {
		return nil, mailspine.Errorf(556, "5.1.10", "The domain %s takes no mail (null MX)", t.domain)
	}
	t.all = usable(a.MX)
	t.site = siteName(t.all)
	return t.choose(ctx)
}

// isNullMX is RFC 7505 section 3: a single MX with an empty host says that the domain takes no mail.
// Beside others it means nothing.
func isNullMX(mxs []mailspine.MX) bool {
	return len(mxs) == 1 && strings.Trim(mxs[0].Host, ".") == ""
}

// usable returns the hosts that mail can be sent to, by preference and name, the best ones if there are too many.
// Which ones does not depend on the order of the answer, so that a site keeps its name.
func usable(mxs []mailspine.MX) []host {
	best := map[string]uint16{}
	for _, mx := range mxs {
		// DNS has A-labels. What is not ASCII there is a mistake, and no name that anybody else would find.
		name := strings.ToLower(strings.TrimSuffix(mx.Host, "."))
		if !isASCII(mx.Host) || name == "" || len(name) > mailspine.MaxDomain || !isHostname(name) {
			continue
		}
		if pref, ok := best[name]; !ok || mx.Preference < pref {
			best[name] = mx.Preference
		}
	}
	hosts := make([]host, 0, len(best))
	for name, pref := range best {
		hosts = append(hosts, host{name: name, pref: pref})
	}
	slices.SortFunc(hosts, compareHosts)
	return hosts[:min(len(hosts), maxHosts)]
}

// choose returns those of t.all that can be used, sorted by preference, in random order inside of one. Why the others cannot is
// noted in t.all.
func (t *transfer) choose(ctx context.Context) ([]host, error) {
	if len(t.all) == 0 {
		return nil, mailspine.Errorf(550, "5.4.4", "The domain %s has no usable mail exchanger", t.domain)
	}
	t.skipSelf(ctx)
	hosts := slices.DeleteFunc(slices.Clone(t.all), func(h host) bool { return h.skipped != "" })
	if len(hosts) == 0 {
		return nil, t.loops()
	}
	n := len(hosts)
	for i, h := range t.all {
		if h.skipped == "" && !t.rule.allows(h.name) {
			t.all[i].skipped = "not allowed by the TLS policy"
		}
	}
	hosts = slices.DeleteFunc(hosts, func(h host) bool { return !t.rule.allows(h.name) })
	if len(hosts) == 0 {
		return nil, mailspine.Errorf(451, "4.7.5", "None of the %d mail exchangers of %s is allowed by its TLS policy", n, t.domain)
	}
	// RFC 5321 section 5.1: the order inside of one preference must be random.
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	slices.SortStableFunc(hosts, func(a, b host) int { return cmp.Compare(a.pref, b.pref) })
	return hosts, nil
}

// skipSelf is RFC 5321 section 5.1: if we are in the list, hosts no better than us are of no
// use: they would give the message back to us. t.all is sorted.
func (t *transfer) skipSelf(ctx context.Context) {
	self := slices.IndexFunc(t.all, func(h host) bool { return t.isSelf(h.name) })
	if own := t.ownAddress(ctx, t.all); own >= 0 && (self < 0 || t.all[own].pref < t.all[self].pref) {
		self = own
	}
	if self < 0 {
		return
	}
	for i, h := range t.all {
		switch {
		case i == self:
			t.all[i].skipped = "this host itself"
		case h.pref >= t.all[self].pref:
			t.all[i].skipped = "no better than this host itself, " + t.all[self].name
		}
	}
}

// ownAddress returns the index of the best host with one of Relay.OwnAddrs, or -1. They are looked up together, for
// those of one preference must be known before any of them is tried. A host whose addresses
// cannot be found out is taken for another's: the greeting is looked at too.
func (t *transfer) ownAddress(ctx context.Context, hosts []host) int {
	if len(t.r.OwnAddrs) == 0 {
		return -1
	}
	found := make([]addrsFound, len(hosts)) // at most maxHosts
	atOnce(len(hosts), maxLookups, func(i int) { found[i].addrs, found[i].err = t.lookupAddrs(ctx, hosts[i]) })
	own := -1
	for i, f := range found {
		t.remember(hosts[i].name, f)
		if own < 0 && slices.ContainsFunc(f.addrs, t.isOwnAddr) {
			own = i
		}
	}
	return own
}

func (t *transfer) isOwnAddr(a netip.Addr) bool {
	return slices.ContainsFunc(t.r.OwnAddrs, func(own netip.Addr) bool { return own.Unmap() == a.Unmap() })
}

func (t *transfer) isSelf(name string) bool {
	for _, own := range append([]string{t.r.Hostname}, t.r.OwnNames...) {
		own, err := mailspine.ASCIIDomain(own)
		if err == nil && own == name && name != "" {
			return true
		}
	}
	return false
}

func (t *transfer) loops() *mailspine.Error {
	return mailspine.Errorf(554, "5.4.6", "Mail for %s loops back to this host", t.whom())
}

// greetedBy is told the text of a 220 greeting: somebody is there.
func (t *transfer) greetedBy(text string) error {
	t.greeted = true
	return t.looped(text)
}

// looped is told the text of a server's 220 greeting, which begins with the server's name (RFC 5321 section 4.2). It is an error if
// that is the name under which we would greet ourselves: then the host is this one, by an address or a translation that we did not know
// of. The hosts that are no better are not tried any more. A Smarthost may be another program on this host.
func (t *transfer) looped(greeting string) error {
	name, _, _ := strings.Cut(greeting, " ")
	name, err := mailspine.ASCIIDomain(name)
	if err != nil || name == "" || t.fixed != nil {
		return nil
	}
	own, err := mailspine.ASCIIDomain(t.source.Hostname)
	if t.isSelf(name) || err == nil && own == name {
		t.looping = true
		return t.loops()
	}
	return nil
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
	f, ok := t.known[h.name]
	if !ok {
		f.addrs, f.err = t.lookupAddrs(ctx, h)
		t.remember(h.name, f)
	}
	addrs, err := slices.Clone(f.addrs), f.err
	if from := t.source.Addr; from.IsValid() && err == nil {
		addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() != from.Is4() })
		if len(addrs) == 0 {
			err = mailspine.Errorf(451, "4.4.1", "The host %s has no address of the family that is sent from", h.name)
		}
	}
	return addrs, err
}

// addrsFound is the result of a look-up, which is done once in a transfer.
type addrsFound struct {
	addrs []netip.Addr
	err   error
}

func (t *transfer) remember(name string, f addrsFound) {
	if t.known == nil {
		t.known = map[string]addrsFound{} // at most maxHosts
	}
	t.known[name] = f
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
