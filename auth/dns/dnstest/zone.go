package dnstest

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/mailspine/mailspine"
)

// A Zone is what is known of all names: the records by name. Names are absolute
// and in any case, with or without a trailing dot; "" and "." are the root. A
// name that begins with "*." is a wildcard (RFC 4592).
//
// A Zone is a mailspine.Resolver, safe for concurrent use while nobody
// changes the map. Each question reads the whole map, so for many names, use a
// [Server], which can also change.
type Zone map[string][]Record

var _ mailspine.Resolver = Zone(nil)

// maxChain is how many CNAMEs are followed before a question is answered
// SERVFAIL, as resolvers do.
const maxChain = 16

// Check returns the errors of all records whose arguments made no sense, of
// names that are none, and of names with a CNAME and something else; nil if
// there are none. Until they are mended, questions about such a name fail.
func (z Zone) Check() error {
	_, err := compile(z)
	return err
}

// Lookup implements mailspine.Resolver.
func (z Zone) Lookup(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	d, _ := compile(z)
	return lookup(ctx, d.answer(name, uint16(t), nil), name, t)
}

// canonical returns the form of a name in which it is a key: lower case,
// without trailing dot.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// parent returns the name without its first label, and false for the root.
func parent(name string) (string, bool) {
	if name == "" {
		return "", false
	}
	_, p, _ := strings.Cut(name, ".")
	return p, true
}

// A node is what a name has.
type node struct {
	rrs    []resource
	faults []Fault
	ttl    uint32
	mark   mark
	broken bool // the literals make no sense
}

// data is a zone in the form in which it is searched.
type data struct {
	nodes map[string]*node
	// below has every name that has something below it, itself existing or not.
	below map[string]bool
}

func compile(z Zone) (*data, error) {
	d := &data{nodes: map[string]*node{}, below: map[string]bool{}}
	var errs []error
	keys := make([]string, 0, len(z))
	for k := range z {
		keys = append(keys, k)
	}
	slices.Sort(keys) // so that the errors have an order
	for _, k := range keys {
		name := canonical(k)
		n := d.nodes[name]
		if n == nil {
			n = &node{ttl: seconds(DefaultTTL)}
			d.nodes[name] = n
		}
		if _, ok := dns.IsDomainName(name); name != "" && !ok {
			n.broken = true
			errs = append(errs, fmt.Errorf("dnstest: %q is not a domain name", k))
		}
		for _, r := range z[k] {
			switch r := r.(type) {
			case resource:
				if r.err != nil {
					n.broken = true
					errs = append(errs, fmt.Errorf("dnstest: %s: %w", k, r.err))
					continue
				}
				n.rrs = append(n.rrs, r)
			case Fault:
				n.faults = append(n.faults, r)
			case FaultKind:
				n.faults = append(n.faults, Fault{Kind: r})
			case TTL:
				n.ttl = seconds(time.Duration(r))
			case mark:
				n.mark = r
			}
		}
		isCNAME := func(r resource) bool { _, ok := r.rr.(*dns.CNAME); return ok }
		if len(n.rrs) > 1 && slices.ContainsFunc(n.rrs, isCNAME) {
			n.broken = true
			errs = append(errs, fmt.Errorf("dnstest: %s has a CNAME and other records (RFC 1034 section 3.6.2)", k))
		}
		for p, ok := parent(name); ok; p, ok = parent(p) {
			d.below[p] = true
		}
	}
	return d, errors.Join(errs...)
}

// find returns the node that answers for a name, which may be a wildcard's;
// nil if there is none, and then whether the name exists all the same, as an
// empty non-terminal (RFC 4592 section 2.2.2).
func (d *data) find(name string) (n *node, exists bool) {
	if n := d.nodes[name]; n != nil {
		return n, true
	}
	if d.below[name] {
		return nil, true
	}
	// The closest encloser is the nearest ancestor that exists; only a wildcard
	// directly below that one counts (RFC 4592 section 3.3.1).
	for p, ok := parent(name); ok; p, ok = parent(p) {
		if d.nodes[p] == nil && !d.below[p] && p != "" {
			continue
		}
		star := "*"
		if p != "" {
			star += "." + p
		}
		if n := d.nodes[star]; n != nil {
			return n, true
		}
		return nil, false
	}
	return nil, false
}

// authentic tells the nearest mark at or above a name.
func (d *data) authentic(name string, n *node) bool {
	if n != nil && n.mark != 0 {
		return n.mark == Signed
	}
	for p, ok := name, true; ok; p, ok = parent(p) {
		if n := d.nodes[p]; n != nil && n.mark != 0 {
			return n.mark == Signed
		}
	}
	return false
}

// authority returns the SOA for the absence of something at name: the
// nearest one, or a made-up one at the highest name that has something.
func (d *data) authority(name string) *dns.SOA {
	top := ""
	for p, ok := name, true; ok; p, ok = parent(p) {
		n := d.nodes[p]
		if n == nil {
			continue
		}
		if p != "" {
			top = p
		}
		for _, r := range n.rrs {
			if s, ok := r.rr.(*dns.SOA); ok {
				s = dns.Copy(s).(*dns.SOA)
				s.Hdr = header(p, dns.TypeSOA, n.ttl)
				return s
			}
		}
	}
	s := soa(DefaultTTL)
	s.Hdr = header(top, dns.TypeSOA, seconds(DefaultTTL))
	return s
}

func header(name string, t uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: dns.Fqdn(name), Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}

// A result is the truth about a question, and the fault that befalls it.
type result struct {
	rcode     int
	answer    []dns.RR
	txt       []string // the values of the TXT records in answer
	soa       *dns.SOA // for absence
	canonical string
	authentic bool
	fault     Fault // Kind 0: none
	broken    bool
}

// answer finds the truth about a question. use is asked for each fault that
// would apply whether it does, for faults that end after some times; nil: always.
func (d *data) answer(name string, qtype uint16, use func(name string, index int, f Fault) bool) result {
	r := result{authentic: true}
	name = canonical(name)
	for range maxChain {
		n, exists := d.find(name)
		r.canonical = name
		r.authentic = r.authentic && d.authentic(name, n)
		if n != nil {
			r.broken = r.broken || n.broken
			for i, f := range n.faults {
				if r.fault.Kind == 0 && (f.Type == 0 || uint16(f.Type) == qtype) && (use == nil || use(name, i, f)) {
					r.fault = f
				}
			}
		}
		if !exists {
			r.rcode = dns.RcodeNameError
			r.soa = d.authority(name)
			return r
		}
		var alias string
		found := false
		if n != nil {
			for _, rec := range n.rrs {
				t := typeOf(rec.rr)
				if t != qtype && t != dns.TypeCNAME {
					continue
				}
				rr := dns.Copy(rec.rr)
				*rr.Header() = header(name, t, n.ttl)
				r.answer = append(r.answer, rr)
				if t == qtype {
					found = true
					if t == dns.TypeTXT {
						r.txt = append(r.txt, rec.txt)
					}
				} else {
					alias = canonical(rr.(*dns.CNAME).Target)
				}
			}
		}
		if found {
			return r
		}
		if alias == "" {
			r.soa = d.authority(name)
			return r
		}
		name = alias
	}
	r.rcode = dns.RcodeServerFailure
	r.answer = nil
	return r
}

// A timeoutError is the detail of a Timeout in memory.
type timeoutError struct{}

func (timeoutError) Error() string { return "time-out" }
func (timeoutError) Timeout() bool { return true }

// lookup makes of a result what a Resolver returns.
func lookup(ctx context.Context, r result, name string, t mailspine.Type) (mailspine.Answer, error) {
	fail := func(a mailspine.Answer, kind, err error) (mailspine.Answer, error) {
		return a, &mailspine.DNSError{Name: name, Type: t, Kind: kind, Err: err}
	}
	if err := sleep(ctx, nil, r.fault.Delay); err != nil {
		return fail(mailspine.Answer{}, mailspine.ErrDNSTemporary, err)
	}
	if ctx.Err() != nil {
		return fail(mailspine.Answer{}, mailspine.ErrDNSTemporary, ctx.Err())
	}
	switch k := r.fault.Kind; k {
	case 0, Truncate, Delay, Spoof, FormErr, Close, Flood:
	case Bogus, BogusPlain:
		return fail(mailspine.Answer{}, mailspine.ErrDNSBogus, nil)
	case Timeout:
		return fail(mailspine.Answer{}, mailspine.ErrDNSTemporary, timeoutError{})
	default:
		return fail(mailspine.Answer{}, mailspine.ErrDNSTemporary, fmt.Errorf("fault %d", k))
	}
	if _, ok := dns.IsDomainName(name); name != "" && !ok || r.broken {
		return fail(mailspine.Answer{}, mailspine.ErrDNSTemporary, errors.New("not a name, or broken records in the test zone"))
	}
	a := mailspine.Answer{CanonicalName: r.canonical, Authentic: r.authentic}
	ttl := ^uint32(0)
	for _, rr := range r.answer {
		ttl = min(ttl, rr.Header().Ttl)
	}
	if r.soa != nil {
		ttl = min(ttl, r.soa.Hdr.Ttl, r.soa.Minttl)
	}
	a.TTL = time.Duration(ttl) * time.Second
	switch {
	case r.rcode == dns.RcodeNameError:
		return fail(a, mailspine.ErrNXDomain, nil)
	case r.rcode != dns.RcodeSuccess:
		return fail(mailspine.Answer{}, mailspine.ErrDNSTemporary, errors.New("too many CNAMEs"))
	case r.soa != nil:
		return fail(a, mailspine.ErrNoData, nil)
	}
	a.TXT = r.txt
	supported := t == mailspine.TypeTXT
	for _, rr := range r.answer {
		if rr.Header().Rrtype != uint16(t) {
			continue
		}
		supported = true
		switch rr := rr.(type) {
		case *dns.A:
			ip, _ := netip.AddrFromSlice(rr.A)
			a.Addrs = append(a.Addrs, ip.Unmap())
		case *dns.AAAA:
			ip, _ := netip.AddrFromSlice(rr.AAAA)
			a.Addrs = append(a.Addrs, ip)
		case *dns.MX:
			a.MX = append(a.MX, mailspine.MX{Preference: rr.Preference, Host: strings.TrimSuffix(rr.Mx, ".")})
		case *dns.PTR:
			a.Names = append(a.Names, strings.TrimSuffix(rr.Ptr, "."))
		case *dns.CNAME:
			a.Names = append(a.Names, strings.TrimSuffix(rr.Target, "."))
		case *dns.SRV:
			a.SRV = append(a.SRV, mailspine.SRV{Priority: rr.Priority, Weight: rr.Weight, Port: rr.Port, Target: strings.TrimSuffix(rr.Target, ".")})
		case *dns.TLSA:
			b, _ := hex.DecodeString(rr.Certificate)
			a.TLSA = append(a.TLSA, mailspine.TLSA{Usage: rr.Usage, Selector: rr.Selector, MatchingType: rr.MatchingType, Data: b})
		case *dns.TXT:
		default:
			supported = false
		}
	}
	if !supported {
		return fail(mailspine.Answer{}, mailspine.ErrDNSTemporary, errors.ErrUnsupported)
	}
	return a, nil
}

// sleep waits for d, for the end of ctx, or for done, whichever is first. Only
// ctx's end is an error.
func sleep(ctx context.Context, done <-chan struct{}, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
