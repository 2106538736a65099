package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/queue"
)

// Options are what the flags say, checked.
type options struct {
	listen, spool, hostname string
	relay                   string            // host:port; "": none
	routes                  map[string]string // host:port by domain, or dot and domain
	networks                []netip.Prefix    // who may send
	control                 string            // of a socket; "": none
	hold                    bool
	sessions                int
	keys                    auth.KeyMap // nil: nothing is signed
	redact, verbose         bool
}

// parse reads the flags, and the files that they name. Its errors name the flag.
func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("relay", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: relay -spool directory -relay host:port [flags]")
		fs.PrintDefaults()
	}
	fs.StringVar(&o.listen, "listen", "127.0.0.1:2525", "`address` to take mail on; port 0: a free one")
	fs.StringVar(&o.spool, "spool", "", "`directory` of the queue; it is made if need be")
	fs.StringVar(&o.relay, "relay", "", "`host:port` that takes all mail that no route is for")
	routes := fs.String("routes", "", "`file` with a line for each domain: domain host:port")
	networks := fs.String("networks", "127.0.0.0/8,::1", "who may send: addresses and `networks`, separated by commas")
	fs.StringVar(&o.hostname, "hostname", "", "`name` of this host, for greetings and Received fields (default: the system's)")
	fs.StringVar(&o.control, "control", "control", "`path` of the control socket, from the spool on if it is relative; empty: none")
	fs.BoolVar(&o.hold, "hold", false, "take mail, and send none")
	fs.IntVar(&o.sessions, "sessions", queue.DefaultConcurrency, "`number` of deliveries at the same time, from 1 to 10000")
	keyFile := fs.String("dkim-key", "", "`file` with the private key to sign with, PEM (default: nothing is signed)")
	domain := fs.String("dkim-domain", "", "`domain` whose mail is signed")
	selector := fs.String("dkim-selector", "", "`name` under which the key is published")
	fs.BoolVar(&o.redact, "redact", false, "keep the local parts of addresses out of the log")
	fs.BoolVar(&o.verbose, "v", false, "log each message, and not what goes wrong only")
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
	if err := hostPort(o.listen, true); err != nil {
		return nil, fmt.Errorf("-listen: %w", err)
	}
	if o.spool == "" {
		return nil, errors.New("-spool: a directory is needed")
	}
	if o.control != "" && !filepath.IsAbs(o.control) {
		o.control = filepath.Join(o.spool, o.control)
	}
	if o.hostname, err = hostname(o.hostname); err != nil {
		return nil, fmt.Errorf("-hostname: %w", err)
	}
	if o.relay != "" {
		if err := hostPort(o.relay, false); err != nil {
			return nil, fmt.Errorf("-relay: %w", err)
		}
	}
	if *routes != "" {
		if o.routes, err = readRoutes(*routes); err != nil {
			return nil, fmt.Errorf("-routes: %w", err)
		}
	}
	if o.relay == "" && len(o.routes) == 0 && !o.hold {
		return nil, errors.New("-relay, -routes: neither says where mail goes; -hold takes it nevertheless")
	}
	if o.networks, err = parseNetworks(*networks); err != nil {
		return nil, fmt.Errorf("-networks: %w", err)
	}
	if o.sessions < 1 || o.sessions > 10_000 {
		return nil, fmt.Errorf("-sessions: %d is not from 1 to 10000", o.sessions)
	}
	if *keyFile != "" || *domain != "" || *selector != "" {
		if o.keys, err = readKey(*keyFile, *domain, *selector); err != nil {
			return nil, err
		}
	}
	_, err = (&relay{o: o}).routes() // the names of hosts
	return o, err
}

// hostname checks the name of this host. An empty one is the system's.
func hostname(name string) (string, error) {
	if name != "" {
		return domainName(name)
	}
	if h, err := os.Hostname(); err == nil {
		if name, err = domainName(h); err == nil {
			return name, nil
		}
	}
	return "localhost", nil
}

// domainName checks a domain and brings it into the form of the DNS.
func domainName(s string) (string, error) {
	a, err := mailspine.ASCIIDomain(s)
	if err == nil {
		err = mailspine.Address{Local: "x", Domain: a}.Validate()
	}
	if err != nil || strings.HasPrefix(a, "[") {
		return "", fmt.Errorf("%q is no domain name", s)
	}
	return a, nil
}

// hostPort checks the form of an address. A listener's may have no host, and port 0.
func hostPort(s string, listener bool) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not of the form host:port", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 && !listener {
		return fmt.Errorf("%q has no port from 1 to 65535", s)
	}
	if host == "" && !listener {
		return fmt.Errorf("%q has no host", s)
	}
	return nil
}

// parseNetworks reads the networks whose clients may send. One that has a good part of the
// Internet in it is a mistake, and would make an open relay.
func parseNetworks(list string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("%q is no address and no network such as 10.0.0.0/8", s)
			}
			a = a.Unmap()
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p.Addr().Is4In6() { // connections are compared by their IPv4 address
			p = netip.PrefixFrom(p.Addr().Unmap(), max(p.Bits()-96, 0))
		}
		if p.Addr().Is4() && p.Bits() < 8 || p.Addr().Is6() && p.Bits() < 7 { // fc00::/7 is the widest private one
			return nil, fmt.Errorf("%q is too large a network: this would be an open relay", s)
		}
		all = append(all, p.Masked())
	}
	if len(all) == 0 {
		return nil, errors.New("nobody may send")
	}
	return all, nil
}

// readKey reads the key to sign with.
func readKey(file, domain, selector string) (auth.KeyMap, error) {
	if file == "" || domain == "" || selector == "" {
		return nil, errors.New("-dkim-key, -dkim-domain, -dkim-selector: give all of them or none")
	}
	d, err := domainName(domain)
	if err != nil {
		return nil, fmt.Errorf("-dkim-domain: %w", err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("-dkim-key: %w", err)
	}
	key, err := dkim.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("-dkim-key: %s: %w", file, err)
	}
	k := dkim.SigningKey{Domain: d, Selector: selector, Key: key}
	if err := k.Validate(); err != nil {
		return nil, fmt.Errorf("-dkim-key, -dkim-selector: %w", err)
	}
	return auth.KeyMap{d: {k}}, nil
}

// perRoute is how many of the deliveries may be to one destination.
func (o *options) perRoute() int {
	if len(o.routes) == 0 {
		return o.sessions
	}
	return cmp.Or(o.sessions/2, 1)
}
