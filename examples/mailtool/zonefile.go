package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/miekg/dns"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// maxZone bounds a zone file, in octets.
const maxZone = 64 << 20

// errElsewhere is in the error for a name that the file of a zone need not have: nothing
// is known of it.
var errElsewhere = errors.New("the name is not in the zone of the file")

// A zoneFile answers from a file. A name that is not there is known not to exist only if it would be in
// the zone. The domains above it, which the search for a DMARC policy reaches, are taken for public suffixes that
// publish nothing.
type zoneFile struct {
	all  mailspine.Resolver
	apex string
}

func (z *zoneFile) Lookup(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	a, err := z.all.Lookup(ctx, name, t)
	name = canonical(name)
	if mailspine.IsNotFound(err) && !under(name, z.apex) && !under(z.apex, strings.TrimPrefix(name, "_dmarc.")) {
		return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: mailspine.ErrDNSTemporary, Err: errElsewhere}
	}
	return a, err
}

// readZone reads a file in the format of RFC 1035 section 5. Names that are not absolute are
// below the domain. The zone is that of the first SOA record, or else the domain's. A file that includes another
// is refused.
func readZone(file, domain string) (mailspine.Resolver, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if fi.Size() > maxZone {
		return nil, fmt.Errorf("%s: larger than %d octets", file, maxZone)
	}
	apex := ""
	zone := dnstest.Zone{}
	z := dns.NewZoneParser(f, dns.Fqdn(domain), file)
	z.SetDefaultTTL(3600)
	for rr, ok := z.Next(); ok; rr, ok = z.Next() {
		var r dnstest.Record
		switch rr := rr.(type) {
		case *dns.A:
			r = dnstest.A(rr.A.String())
		case *dns.AAAA:
			r = dnstest.AAAA(rr.AAAA.String())
		case *dns.MX:
			r = dnstest.MX(rr.Preference, rr.Mx)
		case *dns.TXT:
			parts := make([]string, len(rr.Txt))
			for i, s := range rr.Txt {
				parts[i] = unescape(s)
			}
			r = dnstest.TXT(parts...)
		case *dns.PTR:
			r = dnstest.PTR(rr.Ptr)
		case *dns.CNAME:
			r = dnstest.CNAME(rr.Target)
		case *dns.SRV:
			r = dnstest.SRV(rr.Priority, rr.Weight, rr.Port, rr.Target)
		case *dns.TLSA:
			data, err := hex.DecodeString(rr.Certificate)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: the data of a TLSA record are not hexadecimal", file, rr.Hdr.Name)
			}
			r = dnstest.TLSA(rr.Usage, rr.Selector, rr.MatchingType, data)
		case *dns.SOA:
			if apex == "" {
				apex = canonical(rr.Hdr.Name)
			}
			continue
		default:
			continue // of no concern to mail, or not looked at here
		}
		name := canonical(rr.Header().Name)
		zone[name] = append(zone[name], r)
	}
	if err := z.Err(); err != nil {
		return nil, err
	}
	if err := zone.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &zoneFile{dnstest.New(zone), or(apex, domain)}, nil
}

// unescape turns the presentation form of a string (RFC 1035 section 5.1) into its octets.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i+2 < len(s) && isDigit(s[i]) && isDigit(s[i+1]) && isDigit(s[i+2]) {
			b.WriteByte((s[i]-'0')*100 + (s[i+1]-'0')*10 + s[i+2] - '0')
			i += 2
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
