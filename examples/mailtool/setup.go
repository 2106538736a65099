package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/bimi"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
	"github.com/mailspine/mailspine/auth/dns"
)

// A plan is what a domain wants to publish.
type plan struct {
	domain, host string
	ips          []netip.Addr
	mx           []mailspine.MX
	selector     string       // of a key that names none
	keys         []signingKey // none: not given
	policy       dmarc.Policy
	reports      string     // an address; "": none
	bimi         string     // a URL; "": no indicator
	evidence     string     // a URL; "": none
	sts          string     // none, testing, enforce; "": not published
	tlsReports   string     // an address or URL; "": none
	certs        []hostCert // of the mail exchangers
	nextCerts    []hostCert // that they will have next
	services     []service
	given        map[string]bool // the flags that were given

	trust bool  // the resolver's word about DNSSEC
	reach reach // how servers are reached
}

// A service is a SRV record of RFC 6186 or RFC 8314.
type service struct {
	flag, label, what string
	host              string // "": not offered
	port              uint16
}

// A signingKey is a DKIM key with its selector.
type signingKey struct {
	selector, file string
	key            crypto.Signer // nil: not known
}

// each makes a flag that can be repeated.
type each func(string) error

func (f each) String() string     { return "" }
func (f each) Set(s string) error { return f(s) }

func setup(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("mailtool setup", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: mailtool setup [flags] DOMAIN")
		fs.PrintDefaults()
	}
	p := &plan{given: map[string]bool{}}
	fs.StringVar(&p.host, "hostname", "", "`name` of the mail server; default: mail.DOMAIN")
	fs.Var(each(func(s string) error {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.Zone() != "" {
			return errors.New("not an IP address")
		}
		p.ips = append(p.ips, ip.Unmap())
		return nil
	}), "ip", "`address` that mail is sent from and received at; repeatable")
	fs.Var(each(func(s string) error {
		mx, err := parseMX(s, len(p.mx))
		p.mx = append(p.mx, mx)
		return err
	}), "mx", "`[preference:]host` that receives mail; repeatable; default: 10, 20, ... and the host name")
	fs.StringVar(&p.selector, "selector", "mail", "DKIM selector")
	fs.Var(each(func(s string) error {
		selector, file, ok := strings.Cut(s, "=")
		if !ok {
			selector, file = "", s
		}
		p.keys = append(p.keys, signingKey{selector: selector, file: file})
		return nil
	}), "dkim-key", "`[selector=]file` with a private DKIM key (PEM); repeatable")
	newKey := fs.String("dkim-new", "", "make an RSA key of 2048 bits for -selector in this `file`, which must not exist")
	policy := fs.String("dmarc-policy", "none", "DMARC `policy`: none, quarantine or reject")
	fs.StringVar(&p.reports, "rua", "postmaster@DOMAIN", "`address` for DMARC reports; off: none")
	fs.StringVar(&p.bimi, "bimi", "", "https `URL` of the domain's indicator (SVG)")
	fs.StringVar(&p.evidence, "bimi-evidence", "", "https `URL` of its mark certificate (PEM)")
	fs.Var(certFlag(&p.certs), "tls-cert", "`[host=]file` with the certificate chain (PEM) of an MX host, or of all: TLSA records for DANE; repeatable")
	fs.Var(certFlag(&p.nextCerts), "tls-next-cert", "`[host=]file` with the certificate that comes next, whose key is announced; repeatable")
	fs.StringVar(&p.sts, "mta-sts", "testing", "MTA-STS `mode`: none, testing, enforce; off: not published")
	fs.StringVar(&p.tlsReports, "tlsrpt", "postmaster@DOMAIN", "`address` or https URL for TLS reports; off: none")
	for _, s := range []struct {
		name, label string
		port        int
		what        string
	}{
		{"submissions", "_submissions", 465, "submission with TLS from the start"},
		{"submission", "_submission", 587, "submission with STARTTLS"},
		{"imaps", "_imaps", 993, "IMAP with TLS from the start"},
		{"imap", "_imap", 0, "IMAP with STARTTLS"},
		{"pop3s", "_pop3s", 995, "POP3 with TLS from the start"},
		{"pop3", "_pop3", 0, "POP3 with STLS"},
	} {
		def := "off"
		if s.port > 0 {
			def = "HOSTNAME:" + strconv.Itoa(s.port)
		}
		p.services = append(p.services, service{flag: s.name, label: s.label, what: s.what})
		fs.String(s.name, def, "`host:port` of "+s.what+"; off: not offered")
	}
	checking := fs.Bool("check", false, "compare with what is published")
	server := fs.String("dns", "", "name server `address` to ask; implies -check; default: the system's")
	zone := fs.String("zone", "", "zone `file` to look into instead of the network; implies -check")
	fs.BoolVar(&p.trust, "trust", false, "believe what the server of -dns says about DNSSEC; without it TLSA records are looked at as if the zone were signed")
	fetching := fs.Bool("fetch", false, "connect as well: fetch the MTA-STS policy, and see what certificates the MX hosts show; implies -check")
	ca := fs.String("ca", "", "`file` with the certificate authorities (PEM) that -fetch believes; default: the system's")
	fs.Var(each(func(s string) error {
		r, err := netip.ParsePrefix(s)
		if err != nil {
			return errors.New("not a range of IP addresses such as 10.0.0.0/8")
		}
		p.reach.allow = append(p.reach.allow, r)
		return nil
	}), "allow", "`range` of addresses in which the policy host may be although it is not public; repeatable")
	smtpPort := fs.Uint("port", 25, "`port` of the MX hosts for -fetch, for closed networks")
	httpsPort := fs.Uint("https-port", 443, "`port` of the policy host for -fetch, for closed networks")
	asJSON := fs.Bool("json", false, "print JSON")

	// The domain may come before the flags, between them and after them.
	for rest := args; ; {
		if err := fs.Parse(rest); errors.Is(err, flag.ErrHelp) {
			return exitOK
		} else if err != nil {
			return exitUsage
		}
		if rest = fs.Args(); len(rest) == 0 {
			break
		}
		if p.domain != "" {
			fmt.Fprintf(stderr, "mailtool setup: more than one domain: %s and %s\n", p.domain, rest[0])
			return exitUsage
		}
		p.domain, rest = rest[0], rest[1:]
	}
	fs.Visit(func(f *flag.Flag) { p.given[f.Name] = true })
	wrong := func(err error) int {
		fmt.Fprintln(stderr, "mailtool setup:", err)
		return exitUsage
	}
	if p.domain == "" {
		return wrong(errors.New("the domain is missing; -h lists the flags"))
	}
	if *zone != "" && *server != "" {
		return wrong(errors.New("-zone and -dns exclude each other"))
	}
	if p.trust && *server == "" {
		return wrong(errors.New("-trust: needs -dns, the server that is believed"))
	}
	if *fetching && *zone != "" {
		return wrong(errors.New("-zone and -fetch exclude each other: what is not published yet cannot be reached"))
	}
	for _, f := range []struct {
		name string
		n    uint
		to   *uint16
	}{{"port", *smtpPort, &p.reach.port}, {"https-port", *httpsPort, &p.reach.https}} {
		if f.n == 0 || f.n > 65535 {
			return wrong(fmt.Errorf("-%s: %d is not from 1 to 65535", f.name, f.n))
		}
		*f.to = uint16(f.n)
	}
	if *ca != "" {
		chain, err := readChain(*ca)
		if err != nil {
			return wrong(fmt.Errorf("-ca: %w", err))
		}
		p.reach.roots = x509.NewCertPool()
		for _, c := range chain {
			p.reach.roots.AddCert(c)
		}
	}
	p.policy = dmarc.Policy(strings.ToLower(*policy))
	for i := range p.services {
		p.services[i].host = fs.Lookup(p.services[i].flag).Value.String()
	}
	if err := p.complete(*newKey != ""); err != nil {
		return wrong(err)
	}
	for i := range p.keys {
		if err := p.keys[i].read(); err != nil {
			return wrong(fmt.Errorf("-dkim-key: %w", err))
		}
	}
	var resolver mailspine.Resolver = &dns.System{}
	if len(p.certs) > 0 || *fetching {
		resolver = &dns.Client{} // System knows no TLSA
	}
	var err error
	switch {
	case *zone != "":
		if resolver, err = readZone(*zone, p.domain); err != nil {
			return wrong(fmt.Errorf("-zone: %w", err))
		}
	case *server != "":
		if resolver, err = client(*server); err != nil {
			return wrong(fmt.Errorf("-dns: %w", err))
		}
		if c := resolver.(*dns.Client); p.trust {
			c.Trusted = c.Servers
		}
	}
	if *newKey != "" { // last, so that whoever mends another flag can give the same once more
		key, err := makeKey(*newKey)
		if err != nil {
			return wrong(fmt.Errorf("-dkim-new: %w", err))
		}
		p.keys = append(p.keys, signingKey{selector: p.selector, key: key})
	}

	recs := p.records()
	if !*checking && !*fetching && *zone == "" && *server == "" {
		if *asJSON {
			return printJSON(recs, stdout, stderr)
		}
		printZone(stdout, p, recs)
		return exitOK
	}
	if *zone != "" {
		// The file of one zone has no names of others, such as those of addresses.
		for _, r := range recs {
			r.Optional = r.Optional || !under(r.Name, p.domain)
		}
	}
	well := check(ctx, resolver, recs)
	if *fetching {
		fetched := p.fetch(ctx, resolver)
		recs, well = append(recs, fetched...), well && allWell(fetched)
	}
	if *asJSON {
		if code := printJSON(recs, stdout, stderr); code != exitOK {
			return code
		}
	} else {
		printCheck(stdout, recs)
	}
	if !well {
		return exitProblem
	}
	return exitOK
}

// complete fills in the defaults and says what is wrong with which flag.
func (p *plan) complete(newKey bool) error {
	var err error
	if p.domain, err = mailDomain(p.domain); err != nil {
		return fmt.Errorf("domain: %w", err)
	}
	if p.host == "" {
		p.host = "mail." + p.domain
	}
	if p.host, err = mailDomain(p.host); err != nil {
		return fmt.Errorf("-hostname: %w", err)
	}
	if len(p.mx) == 0 {
		p.mx = []mailspine.MX{{Preference: 10, Host: p.host}}
	}
	for i := range p.ips {
		if slices.Contains(p.ips[:i], p.ips[i]) {
			return fmt.Errorf("-ip: %s is there twice", p.ips[i])
		}
	}
	p.selector = strings.ToLower(p.selector)
	if _, err := mailDomain(p.selector + "." + p.domain); err != nil {
		return fmt.Errorf("-selector: %w", err)
	}
	selectors := map[string]bool{}
	if newKey {
		selectors[p.selector] = true
	}
	for i := range p.keys {
		k := &p.keys[i]
		k.selector = strings.ToLower(or(k.selector, p.selector))
		if _, err := mailDomain(k.selector + "." + p.domain); err != nil {
			return fmt.Errorf("-dkim-key: %w", err)
		}
		if selectors[k.selector] {
			return fmt.Errorf("-dkim-key: there are two keys for the selector %s", k.selector)
		}
		selectors[k.selector] = true
	}
	switch p.policy {
	case dmarc.NonePolicy, dmarc.Quarantine, dmarc.Reject:
	default:
		return fmt.Errorf("-dmarc-policy: %q is not none, quarantine or reject", p.policy)
	}
	for _, f := range []struct {
		name   string
		value  *string
		orHTTP bool
	}{{"rua", &p.reports, false}, {"tlsrpt", &p.tlsReports, true}} {
		switch {
		case *f.value == "off":
			*f.value = ""
		case f.orHTTP && strings.HasPrefix(*f.value, "https:"):
			err = checkURL(*f.value)
		default:
			*f.value = strings.Replace(*f.value, "@DOMAIN", "@"+p.domain, 1)
			_, err = mailspine.ParseAddress(*f.value)
			if err == nil && strings.ContainsAny(*f.value, ",;!%?\" ") {
				err = errors.New("an address with characters that a report URI would need encoded")
			}
		}
		if err != nil {
			return fmt.Errorf("-%s: %w", f.name, err)
		}
	}
	switch {
	case p.evidence != "" && p.bimi == "":
		return errors.New("-bimi-evidence: needs -bimi, the indicator that it vouches for")
	case p.bimi != "" && p.policy == dmarc.NonePolicy:
		return errors.New("-bimi: no indicator is shown under the policy none; give -dmarc-policy quarantine or reject")
	}
	for _, f := range []struct{ name, value string }{{"bimi", p.bimi}, {"bimi-evidence", p.evidence}} {
		if strings.Contains(f.value, ";") {
			return fmt.Errorf("-%s: a semicolon in a URL has to be written %%3B", f.name)
		}
	}
	if p.bimi != "" {
		_, err := bimi.ParseRecord(p.bimiRecord())
		if syntax := (*bimi.SyntaxError)(nil); errors.As(err, &syntax) {
			name := "-bimi"
			if syntax.Tag == "a" {
				name = "-bimi-evidence"
			}
			return fmt.Errorf("%s: %s", name, syntax.Reason)
		} else if err != nil {
			return fmt.Errorf("-bimi: %w", err)
		}
	}
	switch p.sts {
	case "off":
		p.sts = ""
	case "none", "testing", "enforce":
		if err := p.mtasts().Validate(); err != nil {
			return fmt.Errorf("-mta-sts: %w", err)
		}
	default:
		return fmt.Errorf("-mta-sts: %q is not none, testing, enforce or off", p.sts)
	}
	if err := p.completeCerts(); err != nil {
		return err
	}
	for i := range p.services {
		s := &p.services[i]
		if s.host == "off" || s.host == "" {
			s.host = ""
			continue
		}
		host, port, err := net.SplitHostPort(strings.Replace(s.host, "HOSTNAME", p.host, 1))
		if err != nil {
			return fmt.Errorf("-%s: %w", s.flag, err)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("-%s: %q is no port", s.flag, port)
		}
		if s.host, err = mailDomain(host); err != nil {
			return fmt.Errorf("-%s: %w", s.flag, err)
		}
		s.port = uint16(n)
	}
	return nil
}

// mailDomain checks a name and brings it into the form of the DNS.
func mailDomain(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if err := (mailspine.Address{Local: "x", Domain: s}).Validate(); err != nil {
		return "", fmt.Errorf("%q is no domain name: %w", s, err)
	}
	a, err := mailspine.ASCIIDomain(s)
	if err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(a); err == nil {
		return "", fmt.Errorf("%q is an address, and not a name", s)
	}
	if strings.HasPrefix(a, "[") || !strings.Contains(a, ".") {
		return "", fmt.Errorf("%q is no domain name with a dot", s)
	}
	return a, nil
}

func parseMX(s string, before int) (mailspine.MX, error) {
	mx := mailspine.MX{Preference: uint16(10 * (before + 1))}
	if pref, host, ok := strings.Cut(s, ":"); ok {
		n, err := strconv.ParseUint(pref, 10, 16)
		if err != nil {
			return mx, fmt.Errorf("%q is no preference from 0 to 65535", pref)
		}
		mx.Preference, s = uint16(n), host
	}
	host, err := mailDomain(s)
	mx.Host = host
	return mx, err
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	if u.Scheme != "https" || u.Host == "" || u.User != nil || strings.ContainsAny(s, " ,;!\"") {
		return fmt.Errorf("%q is no https URL that a record can hold", s)
	}
	return nil
}

func client(server string) (mailspine.Resolver, error) {
	if _, err := netip.ParseAddr(server); err == nil {
		server = net.JoinHostPort(server, "53")
	}
	if _, err := netip.ParseAddrPort(server); err != nil {
		return nil, fmt.Errorf("%q is no IP address with or without a port", server)
	}
	return &dns.Client{Servers: []string{server}}, nil
}

func (k *signingKey) read() error {
	b, err := os.ReadFile(k.file)
	if err != nil {
		return err
	}
	if k.key, err = dkim.ParseKey(b); err != nil {
		return fmt.Errorf("%s: %w", k.file, err)
	}
	return nil
}

// makeKey never overwrites a key: a published record would lose its other half.
func makeKey(file string) (_ crypto.Signer, err error) {
	key, err := dkim.GenerateRSA(2048)
	if err != nil {
		return nil, err
	}
	b, err := dkim.MarshalKey(key)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return key, nil
}

func printJSON(recs []*record, stdout, stderr io.Writer) int {
	e := json.NewEncoder(stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(recs); err != nil {
		fmt.Fprintln(stderr, "mailtool setup:", err)
		return exitProblem
	}
	return exitOK
}
