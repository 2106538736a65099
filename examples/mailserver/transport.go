package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/auth/tlsrpt"
	"github.com/mailspine/mailspine/mta"
)

// reportsName is the local part of the address for TLS reports: they come there, and ours are from there.
const reportsName = "tls-reports"

// A transport is what we know and keep of the TLS on the way to others: their MTA-STS policies and, with -tls-reports, how
// our connections came out, for the reports that they ask for.
type transport struct {
	policies *mtasts.Cache
	reporter *tlsrpt.Reporter // sends what its Collector has counted; nil: nothing is counted
}

// newTransport opens what is kept over a restart: a policy that is forgotten protects nobody until it is
// fetched again, which is what an attacker would wait for.
func (s *server) newTransport(resolver mailspine.Resolver) (*transport, error) {
	o := s.o
	known, err := mtasts.OpenFile(filepath.Join(o.dir, "mtasts"), &mtasts.Options{Logger: s.log})
	if err != nil {
		return nil, fmt.Errorf("-dir: %w", err)
	}
	s.opened("MTA-STS policies", known.Close)
	fetcher := &mtasts.Fetcher{Resolver: resolver, AllowPrivate: o.allowPrivate}
	t := &transport{policies: &mtasts.Cache{Fetcher: fetcher, Store: known, Logger: s.log}}
	if !o.tlsReports {
		return t, nil
	}
	counts, err := tlsrpt.OpenFile(filepath.Join(o.dir, "tlsrpt"), &tlsrpt.FileOptions{Logger: s.log})
	if err != nil {
		return nil, fmt.Errorf("-dir: %w", err)
	}
	sessions := &tlsrpt.Collector{Store: counts, Logger: s.log}
	s.opened("TLS reports", func() error { return errors.Join(sessions.Flush(context.Background()), counts.Close()) })
	t.reporter = &tlsrpt.Reporter{
		Collector: sessions, Resolver: resolver, AllowPrivate: o.allowPrivate, Logger: s.log,
		From: o.reports(), Contact: mailspine.Address{Local: "postmaster", Domain: o.domain},
	}
	return t, nil
}

// join makes a Relay obey the policies and count its connections.
func (t *transport) join(relay *mta.Relay) {
	relay.MTASTS = t.policies
	if t.reporter != nil {
		relay.TLSReports = t.reporter.Collector
	}
}

// mail is how the reports leave: signed, since nobody believes others, and queued.
func (t *transport) mail(keys auth.Keys, queue mailspine.Deliverer) error {
	if t.reporter == nil {
		return nil
	}
	t.reporter.Mail = &auth.Signer{Required: true, Keys: keys, Next: queue, Logger: t.reporter.Logger}
	return t.reporter.Validate()
}

// run keeps the policies fresh until ctx ends.
func (t *transport) run(ctx context.Context) error {
	if err := t.policies.Run(ctx); ctx.Err() == nil {
		return err
	}
	return nil
}

// reports is the address for TLS reports.
func (o *options) reports() mailspine.Address {
	return mailspine.Address{Local: reportsName, Domain: o.domain}
}

// newReports takes the reports of others about their connections to us. What is no report, or not signed by whom it
// is from, is for the first user to look at.
func (s *server) newReports(review mailspine.Deliverer) *tlsrpt.Intake {
	return &tlsrpt.Intake{
		Addresses: []mailspine.Address{s.o.reports()}, Review: review, Logger: s.log,
		Handle: func(_ context.Context, r *tlsrpt.Received) error {
			var sum tlsrpt.Summary
			sum.Add(r.Report)
			s.log.Info("TLS report", "from", r.Vouched, "begin", r.Report.Start, "summary", sum.String())
			return nil
		},
	}
}
