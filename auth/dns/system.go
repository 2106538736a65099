package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// System is the Resolver that Go programs have anyway, net.Resolver, as a
// mailspine.Resolver: it follows the system's configuration, hosts file
// included. Use it where there is no server to point a [Client] at.
//
// It knows less than a Client:
//   - No answer is Authentic, so there is no DANE.
//   - TTLs are not known and zero: a [Cache] keeps nothing of it unless it has a MinTTL.
//   - That a name does not exist cannot be told from that it has no such record.
//     Both are mailspine.ErrNoData, which claims less.
//   - CanonicalName is the name itself, except for CNAME lookups, where Names has the
//     end of the chain.
//   - TLSA records cannot be looked up: a temporary failure that matches
//     errors.ErrUnsupported.
//
// The zero value is ready to use and safe for concurrent use.
type System struct {
	// Resolver is who is asked. nil: net.DefaultResolver.
	Resolver *net.Resolver
	// Timeout bounds a lookup. Zero or negative: DefaultTotal.
	Timeout time.Duration
}

var _ mailspine.Resolver = (*System)(nil)

// Lookup implements mailspine.Resolver.
func (s *System) Lookup(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	fail := func(kind, detail error) (mailspine.Answer, error) {
		return mailspine.Answer{}, dnsError(name, t, kind, detail)
	}
	n, err := canonicalName(name)
	if err != nil {
		return fail(mailspine.ErrNXDomain, err)
	}
	timeout := s.Timeout
	if timeout <= 0 {
		timeout = DefaultTotal
	}
	lctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	a, err := s.lookup(lctx, n, t)
	a.CanonicalName = n
	if found := len(a.Addrs) + len(a.MX) + len(a.TXT) + len(a.Names) + len(a.SRV); found > 0 {
		return a, nil // net.Resolver can return records and an error about others
	}
	var de *net.DNSError
	switch {
	case ctx.Err() != nil:
		return fail(mailspine.ErrDNSTemporary, ctx.Err())
	case err == nil, errors.As(err, &de) && de.IsNotFound:
		return a, dnsError(name, t, mailspine.ErrNoData, err)
	}
	return fail(mailspine.ErrDNSTemporary, err)
}

func (s *System) lookup(ctx context.Context, name string, t mailspine.Type) (a mailspine.Answer, err error) {
	r := s.Resolver
	if r == nil {
		r = net.DefaultResolver
	}
	abs := name + "." // no search list
	switch t {
	case mailspine.TypeA:
		a.Addrs, err = r.LookupNetIP(ctx, "ip4", abs)
		for i, ip := range a.Addrs {
			a.Addrs[i] = ip.Unmap()
		}
	case mailspine.TypeAAAA:
		a.Addrs, err = r.LookupNetIP(ctx, "ip6", abs)
	case mailspine.TypeMX:
		var mxs []*net.MX
		mxs, err = r.LookupMX(ctx, abs)
		for _, mx := range mxs {
			a.MX = append(a.MX, mailspine.MX{Preference: mx.Pref, Host: strings.TrimSuffix(mx.Host, ".")})
		}
	case mailspine.TypeTXT:
		a.TXT, err = r.LookupTXT(ctx, abs)
	case mailspine.TypeCNAME:
		var cname string
		cname, err = r.LookupCNAME(ctx, abs)
		if cname = strings.TrimSuffix(cname, "."); cname != "" && !strings.EqualFold(cname, name) {
			a.Names = []string{cname}
		}
	case mailspine.TypePTR:
		ip, ok := reverseAddr(name)
		if !ok {
			return a, errors.ErrUnsupported
		}
		a.Names, err = r.LookupAddr(ctx, ip.String())
		for i, n := range a.Names {
			a.Names[i] = strings.TrimSuffix(n, ".")
		}
	case mailspine.TypeSRV:
		var srvs []*net.SRV
		_, srvs, err = r.LookupSRV(ctx, "", "", abs)
		for _, v := range srvs {
			a.SRV = append(a.SRV, mailspine.SRV{Priority: v.Priority, Weight: v.Weight, Port: v.Port, Target: strings.TrimSuffix(v.Target, ".")})
		}
	default:
		return a, errors.ErrUnsupported
	}
	return a, err
}

// reverseAddr is the inverse of mailspine.ReverseName for names in lower case.
func reverseAddr(name string) (netip.Addr, bool) {
	if v4, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		l := strings.Split(v4, ".")
		if len(l) != 4 {
			return netip.Addr{}, false
		}
		ip, err := netip.ParseAddr(l[3] + "." + l[2] + "." + l[1] + "." + l[0])
		return ip, err == nil && ip.Is4()
	}
	v6, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(v6) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		c := v6[62-2*i]
		d := strings.IndexByte("0123456789abcdef", c)
		if d < 0 || i < 31 && v6[62-2*i-1] != '.' {
			return netip.Addr{}, false
		}
		b[i/2] = b[i/2]<<4 | byte(d)
	}
	return netip.AddrFrom16(b), true
}
