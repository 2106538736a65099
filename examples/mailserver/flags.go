package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mailspine/mailspine"
)

// Options are what the flags say, checked.
type options struct {
	dir, domain, hostname string
	users                 []user
	listen                map[string]string // by the names of services; not there: off
	cert, key             string            // files; "": self-signed
	dns                   string            // IP and port; "": the system's
	trustDNS              bool              // what dns says about DNSSEC is believed
	tlsReports            bool              // to whoever asks for them
	routes                map[string]string // host:port by domain
	relay                 string            // host:port; "": to the mail exchangers
	sources               []netip.Addr
	warmUp                bool
	allowPrivate          []netip.Prefix
	mxPort                uint16
	redact, verbose       bool

	warnings []string
}

// A service is one of the doors, by the name of its flag.
type service struct{ name, what string }

func services() []service {
	return []service{
		{"smtp", "mail from other servers"},
		{"submission", "mail from the users, with STARTTLS"},
		{"submissions", "mail from the users, with TLS from the start"},
		{"imap", "IMAP with STARTTLS"},
		{"imaps", "IMAP with TLS from the start"},
		{"pop3", "POP3 with STLS"},
		{"pop3s", "POP3 with TLS from the start"},
	}
}

// A list is a flag that can be repeated. What is wrong with a value is said after
// all flags are read: package flag would print the value along, and it may be a password.
type list []string

func (l *list) String() string     { return "" }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// parse reads the flags. Its errors name the flag, and show no password.
func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{listen: map[string]string{}, routes: map[string]string{}}
	fs := flag.NewFlagSet("mailserver", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: mailserver -user name:password [flags]")
		fs.PrintDefaults()
	}
	fs.StringVar(&o.dir, "dir", "mailserver-data", "`directory` of queue, mailboxes and keys; it is made if need be")
	fs.StringVar(&o.domain, "domain", "example.test", "the mail `domain` of the users; the default exists nowhere")
	fs.StringVar(&o.hostname, "hostname", "", "`name` of this server, as its MX record has it (default mail.DOMAIN)")
	var users, routes, sources, private list
	fs.Var(&users, "user", "`name:password`, or name:@file with the password in the file's first line; repeatable, the first one gets the mail for postmaster and abuse")
	listen := map[string]*string{}
	for _, s := range services() {
		listen[s.name] = fs.String(s.name, "127.0.0.1:0", "`address` for "+s.what+"; port 0: a free one; empty: off")
	}
	fs.StringVar(&o.cert, "cert", "", "`file` with the certificate chain, PEM (default: a self-signed one, made once)")
	fs.StringVar(&o.key, "key", "", "`file` with its private key, PEM")
	fs.StringVar(&o.dns, "dns", "", "`address` of the name server to ask (default: the system's)")
	fs.BoolVar(&o.trustDNS, "trust-dns", false, "the server of -dns validates with DNSSEC and the way to it is safe, such as 127.0.0.1: DANE counts")
	fs.BoolVar(&o.tlsReports, "tls-reports", false, "count how the TLS of our connections came out, and tell the domains that ask for it, once a day")
	fs.Var(&routes, "route", "`domain=host:port` for the mail of a domain, instead of its MX; repeatable")
	fs.StringVar(&o.relay, "relay", "", "`host:port` that takes all other mail, instead of the MX of its domain")
	fs.Var(&sources, "source", "local `address` to send from; repeatable: they take turns (default: the system's choice)")
	fs.BoolVar(&o.warmUp, "warm-up", false, "the addresses of -source are new: 50 copies on the first day, twice as many on each next, for 14 days")
	fs.Var(&private, "allow-private", "`network` of private addresses that an MX record may lead to, such as 10.0.0.0/8; repeatable")
	mxPort := fs.Uint("mx-port", 25, "`port` of the mail exchangers, for tests and closed networks")
	fs.BoolVar(&o.redact, "redact", false, "keep the local parts of addresses out of the log")
	fs.BoolVar(&o.verbose, "v", false, "log more")
	if err := fs.Parse(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			err = fmt.Errorf("%w; -h lists the flags", err)
		}
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, errors.New("there are flags only, and no other arguments; -h lists them")
	}

	var err error
	if o.dir == "" {
		return nil, errors.New("-dir: is empty")
	}
	if o.domain, err = domainName(o.domain); err != nil {
		return nil, fmt.Errorf("-domain: %w", err)
	}
	if o.hostname == "" {
		o.hostname = "mail." + o.domain
	}
	if o.hostname, err = domainName(o.hostname); err != nil {
		return nil, fmt.Errorf("-hostname: %w", err)
	}
	if err := o.parseUsers(users); err != nil {
		return nil, fmt.Errorf("-user: %w", err)
	}
	for _, s := range services() {
		if addr := *listen[s.name]; addr != "" {
			if err := hostPort(addr, true); err != nil {
				return nil, fmt.Errorf("-%s: %w", s.name, err)
			}
			o.listen[s.name] = addr
		}
	}
	if len(o.listen) == 0 {
		return nil, errors.New("all services are off")
	}
	if (o.cert == "") != (o.key == "") {
		return nil, errors.New("-cert and -key: give both or none")
	}
	if o.cert != "" {
		if _, err := loadPair(o.cert, o.key); err != nil {
			return nil, fmt.Errorf("-cert, -key: %w", err)
		}
	}
	if o.dns != "" {
		if ip, err := netip.ParseAddr(o.dns); err == nil {
			o.dns = netip.AddrPortFrom(ip, 53).String()
		} else if _, err := netip.ParseAddrPort(o.dns); err != nil {
			return nil, fmt.Errorf("-dns: %q is no IP address with or without a port", o.dns)
		}
	}
	if o.trustDNS && o.dns == "" {
		return nil, errors.New("-trust-dns: needs -dns, the server that is believed")
	}
	for _, r := range routes {
		domain, target, ok := strings.Cut(r, "=")
		if !ok {
			return nil, fmt.Errorf("-route: %q is not of the form domain=host:port", r)
		}
		if domain, err = domainName(domain); err == nil {
			err = hostPort(target, false)
		}
		if err != nil {
			return nil, fmt.Errorf("-route: %w", err)
		}
		switch {
		case domain == o.domain || domain == o.hostname:
			return nil, fmt.Errorf("-route: the mail of %s is for the mailboxes here", domain)
		case o.routes[domain] != "":
			return nil, fmt.Errorf("-route: %s is there twice", domain)
		}
		o.routes[domain] = target
	}
	if o.relay != "" {
		if err := hostPort(o.relay, false); err != nil {
			return nil, fmt.Errorf("-relay: %w", err)
		}
	}
	for _, s := range sources {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.IsUnspecified() {
			return nil, fmt.Errorf("-source: %q is no IP address of this host", s)
		}
		if slices.Contains(o.sources, ip) {
			return nil, fmt.Errorf("-source: %s is there twice", ip)
		}
		o.sources = append(o.sources, ip)
	}
	if o.warmUp && len(o.sources) == 0 {
		return nil, errors.New("-warm-up: needs -source, the addresses that warm up")
	}
	for _, p := range private {
		prefix, err := netip.ParsePrefix(p)
		if err != nil {
			return nil, fmt.Errorf("-allow-private: %q is no network such as 10.0.0.0/8", p)
		}
		o.allowPrivate = append(o.allowPrivate, prefix.Masked())
	}
	if *mxPort < 1 || *mxPort > 65535 {
		return nil, fmt.Errorf("-mx-port: %d is no port", *mxPort)
	}
	o.mxPort = uint16(*mxPort)
	return o, nil
}

// domainName checks a domain and brings it into the form of the DNS.
func domainName(s string) (string, error) {
	a, err := mailspine.ASCIIDomain(strings.TrimSuffix(s, "."))
	if err == nil {
		err = mailspine.Address{Local: "x", Domain: a}.Validate()
	}
	if err != nil || strings.HasPrefix(a, "[") {
		return "", fmt.Errorf("%q is no domain name", s)
	}
	return a, nil
}

// hostPort checks the form of an address. To listen, the host may be empty and the port 0.
func hostPort(s string, listen bool) error {
	host, port, err := net.SplitHostPort(s)
	n, perr := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not of the form host:port", s)
	case perr != nil || n == 0 && !listen:
		return fmt.Errorf("%q has no valid port", s)
	case host == "" && !listen:
		return fmt.Errorf("%q has no host", s)
	}
	return nil
}
