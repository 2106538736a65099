package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/miekg/dns"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// readZone reads a file in the format of RFC 1035 section 5. Names that are not absolute are
// below the domain. Files that it includes are not read.
func readZone(file, domain string) (mailspine.Resolver, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
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
		default:
			continue // of no concern to mail, or not looked at here
		}
		name := strings.TrimSuffix(strings.ToLower(rr.Header().Name), ".")
		zone[name] = append(zone[name], r)
	}
	if err := z.Err(); err != nil {
		return nil, err
	}
	if err := zone.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return dnstest.New(zone), nil
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
