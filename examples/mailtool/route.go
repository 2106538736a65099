package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/mta"
)

// maxRouteDomains bounds the domains of one call: each is a handful of questions to DNS.
const maxRouteDomains = 1000

// A routeJob is what the flags of route say.
type routeJob struct {
	relay   mta.Relay
	domains []string
	asJSON  bool
}

// route shows where mail for domains would go.
func route(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	job, code := routeFlags(args, stderr)
	if job == nil {
		return code
	}
	plans, well := []*mta.Plan{}, true
	for i, d := range job.domains {
		p, err := job.relay.Explain(ctx, d)
		if err != nil {
			fmt.Fprintln(stderr, "mailtool route:", err)
			return exitProblem
		}
		well = well && p.Usable()
		if job.asJSON {
			plans = append(plans, p)
			continue
		}
		if i > 0 {
			fmt.Fprintln(stdout)
		}
		fmt.Fprint(stdout, p)
	}
	if job.asJSON {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if err := e.Encode(plans); err != nil {
			fmt.Fprintln(stderr, "mailtool route:", err)
			return exitProblem
		}
	}
	if !well {
		return exitProblem
	}
	return exitOK
}

// routeFlags reads the flags; without a job the tool ends with code.
func routeFlags(args []string, stderr io.Writer) (job *routeJob, code int) {
	fs := flag.NewFlagSet("mailtool route", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: mailtool route [flags] DOMAIN...")
		fs.PrintDefaults()
	}
	job = &routeJob{relay: mta.Relay{Logger: slog.New(slog.DiscardHandler)}}
	r := &job.relay
	server := fs.String("dns", "", "name server `address` to ask; default: those of the system")
	trust := fs.Bool("trust", false, "believe what the server of -dns says about DNSSEC, which DANE needs")
	zone := fs.String("zone", "", "zone `file` to look into instead of the network; names outside of its zone are not known")
	sts := fs.Bool("mta-sts", false, "fetch MTA-STS policies too, from the web servers of the domains")
	fs.StringVar(&r.Hostname, "hostname", "", "our `name`: a mail exchanger called so is ourselves")
	fs.Var(each(func(s string) error {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.Zone() != "" {
			return errors.New("not an IP address")
		}
		r.OwnAddrs = append(r.OwnAddrs, ip)
		return nil
	}), "own", "`address` at which we receive: a mail exchanger that has it is ourselves; repeatable")
	fs.Var(each(func(s string) error {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return errors.New("not a range of IP addresses such as 10.0.0.0/8")
		}
		r.AllowPrivate = append(r.AllowPrivate, p)
		return nil
	}), "allow", "`range` of addresses that may be connected to although it is not public; repeatable")
	port := fs.Uint("port", 25, "`port` of the mail exchangers")
	fs.BoolVar(&job.asJSON, "json", false, "print JSON")

	// The domains may come before the flags, between them and after them.
	for rest := args; ; {
		if err := fs.Parse(rest); errors.Is(err, flag.ErrHelp) {
			return nil, exitOK
		} else if err != nil {
			return nil, exitUsage
		}
		if rest = fs.Args(); len(rest) == 0 {
			break
		}
		job.domains, rest = append(job.domains, rest[0]), rest[1:]
	}
	if err := job.complete(*server, *zone, *trust, *port); err != nil {
		fmt.Fprintln(stderr, "mailtool route:", err)
		return nil, exitUsage
	}
	if *sts {
		r.MTASTS = &mtasts.Cache{
			Fetcher: &mtasts.Fetcher{Resolver: r.Resolver, AllowPrivate: r.AllowPrivate},
			Logger:  r.Logger,
		}
	}
	return job, exitOK
}

// complete says what is wrong with which flag, and makes the Resolver.
func (j *routeJob) complete(server, zone string, trust bool, port uint) error {
	switch n := len(j.domains); {
	case n == 0:
		return errors.New("the domain is missing; -h lists the flags")
	case n > maxRouteDomains:
		return fmt.Errorf("%d domains are more than %d", n, maxRouteDomains)
	}
	for i, d := range j.domains {
		d, err := mailspine.ASCIIDomain(d)
		if err == nil && d == "" {
			err = errors.New("it is empty")
		}
		if err == nil {
			err = (mailspine.Address{Local: "x", Domain: d}).Validate()
		}
		if err != nil {
			return fmt.Errorf("%q is no domain: %w", j.domains[i], err)
		}
		j.domains[i] = d
	}
	if h := j.relay.Hostname; h != "" {
		if _, err := mailDomain(h); err != nil {
			return fmt.Errorf("-hostname: %w", err)
		}
	}
	if port == 0 || port > 65535 {
		return fmt.Errorf("-port: %d is not from 1 to 65535", port)
	}
	j.relay.Port = uint16(port)
	switch {
	case zone != "" && server != "":
		return errors.New("-zone and -dns exclude each other")
	case trust && server == "":
		return errors.New("-trust: needs -dns, the server that is believed")
	case zone != "":
		r, err := readZone(zone, j.domains[0])
		if err != nil {
			return fmt.Errorf("-zone: %w", err)
		}
		j.relay.Resolver = r
		return nil
	}
	c := &dns.Client{Logger: j.relay.Logger}
	if server != "" {
		r, err := client(server)
		if err != nil {
			return fmt.Errorf("-dns: %w", err)
		}
		c = r.(*dns.Client)
		c.Logger = j.relay.Logger
		if trust {
			c.Trusted = c.Servers
		}
	}
	// Hosts have a question or two in common.
	j.relay.Resolver = &dns.Cache{Resolver: c}
	return nil
}
