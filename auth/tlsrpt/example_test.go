package tlsrpt_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/auth/tlsrpt"
)

// A day of sessions, and the report about them.
func Example() {
	ctx := context.Background()
	now := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }

	// The sender counts.
	sessions := &tlsrpt.Collector{Now: clock}
	policy := tlsrpt.Policy{Type: tlsrpt.PolicySTS, Domain: "example.org", Strings: []string{"version: STSv1", "mode: testing", "mx: mx.example.org", "max_age: 86400"}}
	for _, err := range []error{nil, nil, x509.UnknownAuthorityError{}} {
		sessions.Record(ctx, tlsrpt.Session{
			Domain: "example.org", Policy: policy, ReceivingMX: "mx.example.org", Result: tlsrpt.ResultOf(err), Reason: tlsrpt.ReasonOf(err),
		})
	}

	// The receiver; between the two are an auth.Signer, a queue, and an auth.Checker that writes the Verdict.
	receiver := &tlsrpt.Intake{
		Handle: func(_ context.Context, r *tlsrpt.Received) error {
			var sum tlsrpt.Summary
			sum.Add(r.Report)
			fmt.Println("from", r.Report.Organization, "vouched for by", r.Vouched)
			fmt.Println(&sum)
			return nil
		},
	}
	wire := mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
		env = env.Clone()
		env.Verdict = &mailspine.Verdict{DKIM: "pass", DKIMDomains: []string{"example.com"}}
		return receiver.Deliver(ctx, env, msg)
	})

	// The day is over.
	now = now.AddDate(0, 0, 1)
	reporter := &tlsrpt.Reporter{
		Collector:    sessions,
		Resolver:     dnstest.Zone{"_smtp._tls.example.org": {dnstest.TXT("v=TLSRPTv1; rua=mailto:tlsrpt@example.org")}},
		Organization: "Example Ltd", From: mailspine.Address{Local: "tls-reports", Domain: "example.com"},
		Mail: wire, Now: clock, Logger: slog.New(slog.DiscardHandler),
	}
	fmt.Println(reporter.Send(ctx, now.AddDate(0, 0, -1)))
	// Output:
	// from Example Ltd vouched for by example.com
	// 1 reports: 2 sessions successful, 1 failed (certificate-not-trusted 1)
	// <nil>
}

func ExampleParseRecord() {
	rec, err := tlsrpt.ParseRecord("v=TLSRPTv1; rua=mailto:tlsrpt@example.org,https://reports.example.net/v1, ftp://old.example")
	for _, d := range rec.Destinations {
		fmt.Println(d.URI, "by mail:", !d.Address.IsZero())
	}
	fmt.Println(rec.Ignored, err)
	_, err = tlsrpt.ParseRecord("v=TLSRPTv1; rau=mailto:tlsrpt@example.org")
	fmt.Println(err)
	// Output:
	// mailto:tlsrpt@example.org by mail: true
	// https://reports.example.net/v1 by mail: false
	// [ftp://old.example] <nil>
	// tlsrpt: octet 41: rua= is missing (RFC 8460 section 3)
}

func ExampleParseReport() {
	// Not quite what the RFC says, and what some send.
	r, err := tlsrpt.ParseReport(strings.NewReader(`{
		"organization-name": "Somebody",
		"date-range": {"start-datetime": "2026-11-23", "end-datetime": "2026-11-23 23:59:59"},
		"policies": [{
			"policy": {"policy-type": "tlsa", "policy-string": "3 1 1 00", "policy-domain": "mx.example.org"},
			"summary": {"total-successful-session-count": "17", "total-failure-session-count": 2},
			"failure-details": {"result-type": "validation-failure", "failed-session-count": 2, "receiving-ip": "?"}
		}]
	}`))
	if err != nil {
		panic(err)
	}
	for _, p := range r.Policies {
		fmt.Println(p.Policy.Type, p.Policy.Strings, p.Successful, p.Failed)
		for _, f := range p.Failures {
			fmt.Println(f.Result, f.Sessions, f.ReceivingIP.IsValid())
		}
	}
	// Output:
	// tlsa [3 1 1 00] 17 2
	// validation-failure 2 false
}
