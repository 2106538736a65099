package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// What others verify of our TLS, looked at as they do.

// A probe returns the certificates that a mail exchanger shows when it is asked for by a name.
type probe func(ctx context.Context, host string) ([]*x509.Certificate, error)

// maxAddrs bounds the addresses of a host that are tried.
const maxAddrs = 8

// reach is how -fetch gets to servers. The zero value is the world's own way.
type reach struct {
	allow []netip.Prefix // of policy hosts, although they are not public
	roots *x509.CertPool // nil: the system's
	port  uint16         // of mail exchangers; 0: 25
	https uint16         // of policy hosts; 0: 443
}

// believing takes all answers for authentic. What is found is then what would be if the zone were signed and the resolver
// believed: without either, senders with DANE see nothing at all.
type believing struct{ mailspine.Resolver }

func (b believing) Lookup(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	a, err := b.Resolver.Lookup(ctx, name, t)
	a.Authentic = true
	return a, err
}

// dnssec is the resolver as DANE is looked at with.
func (p *plan) dnssec(r mailspine.Resolver) mailspine.Resolver {
	if p.trust {
		return r
	}
	return believing{r}
}

// compareTLSA holds the records against the certificates of the flags, the next one's as well.
func (p *plan) compareTLSA(host string, now, next []*x509.Certificate) compare {
	return func(ctx context.Context, r mailspine.Resolver, a mailspine.Answer) verdict {
		has := func(context.Context, string) ([]*x509.Certificate, error) { return now, nil }
		v := good()
		for _, f := range dane.Check(ctx, p.dnssec(r), []string{host}, 25, has) {
			if w := daneVerdict(f); w.status != "" {
				v = w
				break
			}
		}
		if v.status == "ok" && next != nil {
			if _, err := dane.Verify(a.TLSA, next, []string{host}, time.Now()); err != nil {
				return bad("no record is for the next certificate: when the server has it, senders with DANE hold their mail back")
			}
		}
		return v
	}
}

// daneVerdict is what a finding makes of a record; empty: nothing.
func daneVerdict(f dane.Finding) verdict {
	switch {
	case f.Code == dane.CodeLookup || f.Code == dane.CodeProbe:
		return unsure("%s", f.Text)
	case f.Code == dane.CodeAbsent:
		return verdict{"missing", f.Text}
	case f.Level >= dane.Warning:
		return bad("%s", f.Text)
	}
	return verdict{}
}

// fetch connects to what the records lead to: the policy host of MTA-STS and the mail exchangers. What it finds is told as records
// are.
func (p *plan) fetch(ctx context.Context, r mailspine.Resolver) (recs []*record) {
	seen := remember(p.reach.probe(r))
	if p.sts != "" {
		recs = append(recs, p.fetchPolicy(ctx, r, seen))
	}
	for _, host := range p.hosts() {
		recs = append(recs, p.fetchHost(ctx, r, host, seen))
	}
	return recs
}

// fetchPolicy looks at MTA-STS as a sender does.
func (p *plan) fetchPolicy(ctx context.Context, r mailspine.Resolver, seen probe) *record {
	rec := &record{
		Name: "mta-sts." + p.domain, Type: "HTTPS", Values: []string{}, Status: "ok", Optional: !p.given["mta-sts"],
		Purpose: "MTA-STS: the policy as senders find it (RFC 8461 section 3.3)",
	}
	f := &mtasts.Fetcher{Resolver: r, AllowPrivate: p.reach.allow, Roots: p.reach.roots, Port: p.reach.https}
	warned := ""
	for _, x := range mtasts.Check(ctx, f, p.domain, &mtasts.CheckOptions{Probe: seen}) {
		rec.Found = append(rec.Found, x.String())
		switch {
		case x.Severity == mtasts.Failure && rec.Status == "ok":
			rec.Status, rec.Problem = "differs", x.Subject+": "+x.Text
		case x.Severity == mtasts.Warning && warned == "":
			warned = x.Subject + ": " + x.Text
		}
	}
	switch {
	case rec.Status == "ok" && warned != "": // it works, and should be better
		rec.Status, rec.Problem, rec.Optional = "differs", warned, true
	case rec.Status == "ok":
		rec.Values = p.mtasts().Lines()
		if got, err := f.Fetch(ctx, p.domain); err == nil && got.String() != p.mtasts().String() {
			rec.Status, rec.Optional, rec.Found = "differs", true, got.Lines()
			rec.Problem = "another policy is published; give its TXT record another id when it changes"
		}
	}
	return rec
}

// fetchHost looks at the certificate of a mail exchanger, and at the TLSA records for it.
func (p *plan) fetchHost(ctx context.Context, r mailspine.Resolver, host string, seen probe) *record {
	port := p.reach.smtp()
	rec := &record{
		Name: net.JoinHostPort(host, strconv.Itoa(int(port))), Type: "TLS", Values: []string{}, Status: "ok",
		Purpose: "the certificate that the mail server shows after STARTTLS",
	}
	for _, f := range dane.Check(ctx, p.dnssec(r), []string{host}, port, seen) {
		rec.Found = append(rec.Found, f.Level.String()+": "+f.Text)
		if v := daneVerdict(f); v.status != "" && rec.Status == "ok" {
			rec.Status, rec.Problem = v.status, v.problem
			// Without DANE nothing is wrong, and what is only a warning does not keep mail away.
			rec.Optional = f.Level == dane.Warning && f.Code != dane.CodeProbe
		}
	}
	if want := chainOf(p.certs, host); want != nil {
		rec.Values = []string{tlsaValue(eeRecord(want))}
		if chain, err := seen(ctx, host); err == nil && tlsaValue(eeRecord(chain)) != rec.Values[0] {
			rec.Found = append(rec.Found, tlsaValue(eeRecord(chain)))
			rec.Status, rec.Optional, rec.Problem = "differs", false, "the server has another key than the certificate of -tls-cert"
		}
	}
	return rec
}

// remember makes a probe that asks each host once.
func remember(f probe) probe {
	type answer struct {
		chain []*x509.Certificate
		err   error
	}
	known := map[string]answer{}
	return func(ctx context.Context, host string) ([]*x509.Certificate, error) {
		a, ok := known[host]
		if !ok {
			a.chain, a.err = f(ctx, host)
			known[host] = a
		}
		return a.chain, a.err
	}
}

func (w *reach) smtp() uint16 {
	if w.port == 0 {
		return 25
	}
	return w.port
}

// probe connects to a mail exchanger at the addresses that r knows, until one of them shows a certificate.
func (w *reach) probe(r mailspine.Resolver) probe {
	return func(ctx context.Context, host string) ([]*x509.Certificate, error) {
		ctx, cancel := context.WithTimeout(ctx, lookupTime)
		defer cancel()
		v4, err4 := mailspine.LookupA(ctx, r, host)
		v6, err6 := mailspine.LookupAAAA(ctx, r, host)
		addrs := append(v4[:len(v4):len(v4)], v6...)
		if len(addrs) == 0 {
			return nil, errors.Join(err4, err6)
		}
		var errs []error
		for _, a := range addrs[:min(len(addrs), maxAddrs)] {
			chain, err := shown(ctx, host, netip.AddrPortFrom(a.Unmap(), w.smtp()))
			if err == nil {
				return chain, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
}

// shown returns the certificates that a server shows, its own first. Whether they are any good is for others to say.
func shown(ctx context.Context, host string, addr netip.AddrPort) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime/2)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	c := smtpclient.New(conn, nil)
	defer c.Close()
	if r, err := c.Greeting(ctx); err != nil || !r.OK() {
		return nil, errors.Join(err, refusal(addr, "greeting", r))
	}
	if r, err := c.Hello(ctx, ""); err != nil || !r.OK() {
		return nil, errors.Join(err, refusal(addr, "EHLO", r))
	}
	if !c.Has("STARTTLS") {
		return nil, fmt.Errorf("%s offers no STARTTLS", addr)
	}
	if r, err := c.StartTLS(ctx, &tls.Config{ServerName: host, InsecureSkipVerify: true}); err != nil || !r.OK() {
		return nil, errors.Join(err, refusal(addr, "STARTTLS", r))
	}
	state, _ := c.TLS()
	c.Quit(ctx)
	return state.PeerCertificates, nil
}

// refusal is a reply that says no; nil: there is none.
func refusal(addr netip.AddrPort, command string, r smtpclient.Reply) error {
	if r.Code == 0 || r.OK() {
		return nil
	}
	return fmt.Errorf("%s answered %s with %d", addr, command, r.Code)
}
