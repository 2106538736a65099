package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/auth/tlsrpt"
)

// certificate is what a server shows.
func (p *process) certificate() *x509.Certificate {
	p.t.Helper()
	text, err := os.ReadFile(p.ca())
	if err != nil {
		p.t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		p.t.Fatal(err)
	}
	return cert
}

// tlsa publishes the record of a certificate for a server's port, in a signed zone.
func (p *process) tlsa(ns *dnstest.Server, host string, cert *x509.Certificate) {
	rec := dane.Record(cert, dane.UsageEE, dane.SelectorSPKI, dane.MatchSHA256)
	ns.Set("_"+p.port("smtp")+"._tcp."+host, dnstest.TLSA(rec.Usage, rec.Selector, rec.MatchingType, rec.Data))
}

// counted adds up what the directory of a server that is stopped has of a domain and a type of policy.
func counted(t *testing.T, dir, domain string, policy tlsrpt.PolicyType) (r tlsrpt.PolicyResult) {
	t.Helper()
	f, err := tlsrpt.OpenFile(filepath.Join(dir, "tlsrpt"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = f.Load(t.Context(), func(row tlsrpt.Row) error {
		for _, p := range row.Policies {
			if row.Domain == domain && p.Policy.Type == policy {
				r.Policy, r.Successful, r.Failed = p.Policy, r.Successful+p.Successful, r.Failed+p.Failed
				r.Failures = append(r.Failures, p.Failures...)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Mail goes to a server that DANE verifies, and to no other; what came of it is counted over restarts, reported to the
// domain that asks for it, and taken in there.
func TestTransport(t *testing.T) {
	t.Parallel()
	ns, err := dnstest.Start(dnstest.Zone{
		"beta.example":      {dnstest.Signed, dnstest.MX(10, "mail.beta.example")},
		"mail.beta.example": {dnstest.A("127.0.0.1")}, "mail.alpha.example": {dnstest.A("127.0.0.1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	beta := start(t, t.TempDir(), "-domain", "beta.example", "-user", "rita:moor", "-dns", ns.Addr())
	dir := t.TempDir()
	args := []string{"-domain", "alpha.example", "-user", "ann:hunter2", "-dns", ns.Addr(), "-trust-dns", "-tls-reports",
		"-mx-port", beta.port("smtp"), "-allow-private", "127.0.0.0/8"}
	alpha := start(t, dir, args...)
	publish(t, ns, dir)
	ns.Set("_smtp._tls.beta.example", dnstest.TXT("v=TLSRPTv1; rua=mailto:tls-reports@beta.example"))
	write := func(subject string) {
		t.Helper()
		from, to := "ann@alpha.example", "rita@beta.example"
		if _, err := alpha.submit("ann", "hunter2", from, []string{to}, letter(from, to, subject)); err != nil {
			t.Fatal(err)
		}
	}

	// dns.txt has the record, for the real port.
	text, err := os.ReadFile(filepath.Join(beta.dir, "dns.txt"))
	want := dane.Format("mail.beta.example", 25, dane.Record(beta.certificate(), 3, 1, 1))
	if err != nil || !strings.Contains(string(text), "\n; "+want+"\n") {
		t.Errorf("%q is not in dns.txt: %v\n%s", want, err, text)
	}

	// Nobody vouches for beta's certificate but its own record.
	beta.tlsa(ns, "mail.beta.example", beta.certificate())
	write("by DANE")
	beta.with("rita@beta.example", "", "by DANE")
	alpha.stop()
	if r := counted(t, dir, "beta.example", tlsrpt.PolicyTLSA); r.Successful != 1 || r.Failed != 0 || r.Policy.Domain != "mail.beta.example" {
		t.Errorf("counted: %+v", r)
	}

	// With the record of another key the message stays.
	beta.tlsa(ns, "mail.beta.example", alpha.certificate())
	alpha = start(t, dir, append(args, "-v")...)
	write("not by DANE")
	eventually(t, "the server is not believed", func() bool { return strings.Contains(alpha.log.String(), "no record matches") })
	alpha.stop()
	if n := len(beta.mailbox("rita@beta.example", "")); n != 1 {
		t.Errorf("there are %d messages at beta", n)
	}
	r := counted(t, dir, "beta.example", tlsrpt.PolicyTLSA)
	if r.Successful != 1 || r.Failed != 1 || len(r.Failures) != 1 || r.Failures[0].ReceivingMX != "mail.beta.example" {
		t.Errorf("counted: %+v", r)
	}

	// The day before yesterday was as today: its report is due.
	counts, err := tlsrpt.OpenFile(filepath.Join(dir, "tlsrpt"), nil)
	if err != nil {
		t.Fatal(err)
	}
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -2)
	if err := counts.Save(t.Context(), tlsrpt.Row{Day: day, Domain: "beta.example", Policies: []tlsrpt.PolicyResult{r}}); err != nil {
		t.Fatal(err)
	}
	if err := counts.Close(); err != nil {
		t.Fatal(err)
	}
	beta.tlsa(ns, "mail.beta.example", beta.certificate())
	alpha = start(t, dir, args...)
	eventually(t, "the report comes in", func() bool {
		log := beta.log.String()
		return strings.Contains(log, `msg="TLS report" from=alpha.example`) && strings.Contains(log, "1 reports: 1 sessions successful, 1 failed")
	})
	alpha.stop()
	// How the report itself got there is nobody's business (RFC 8460 section 3).
	if r := counted(t, dir, "beta.example", tlsrpt.PolicyTLSA); r.Successful != 1 || r.Failed != 1 {
		t.Errorf("counted: %+v", r)
	}
	alpha = start(t, dir, args...)
	write("once more")
	beta.with("rita@beta.example", "", "once more")
	alpha.stop()
	if r := counted(t, dir, "beta.example", tlsrpt.PolicyTLSA); r.Successful != 2 || r.Failed != 1 {
		t.Errorf("counted: %+v", r)
	}
	if n := strings.Count(beta.log.String(), `msg="TLS report"`); n != 1 {
		t.Errorf("%d reports came in", n)
	}

	// A report that nobody signed is for people.
	forged := letter("joe@forger.example", "tls-reports@beta.example", "Report Domain: beta.example")
	if _, err := beta.send("joe@forger.example", []string{"TLS-Reports@beta.example"}, forged); err != nil {
		t.Error(err)
	}
	beta.with("rita@beta.example", "Feedback", "Report Domain: beta.example")
	beta.stop()
}

// A policy of MTA-STS that was fetched earlier protects after a restart, whatever the policy host does meanwhile. This
// test is no parallel one, since it tells a server by the environment whom it may believe.
func TestKeptPolicy(t *testing.T) {
	ns, err := dnstest.Start(dnstest.Zone{
		"beta.example":          {dnstest.MX(10, "mail.beta.example")},
		"mail.beta.example":     {dnstest.A("127.0.0.1")},
		"_mta-sts.beta.example": {dnstest.TXT("v=STSv1; id=1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	beta := start(t, t.TempDir(), "-domain", "beta.example", "-user", "rita:moor", "-dns", ns.Addr())
	dir := t.TempDir()
	known, err := mtasts.OpenFile(filepath.Join(dir, "mtasts"), nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	err = known.Save(context.Background(), mtasts.Entry{
		Domain: "beta.example", Fetched: now, Used: now,
		Policy: mtasts.Policy{ID: "1", Mode: mtasts.ModeEnforce, MX: []string{"mail.beta.example"}, MaxAge: 24 * time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := known.Close(); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		believed   string
		successful int64
		failed     int64
	}{{filepath.Join(t.TempDir(), "nobody"), 0, 1}, {beta.ca(), 1, 1}} {
		t.Setenv("SSL_CERT_FILE", c.believed)
		t.Setenv("SSL_CERT_DIR", t.TempDir())
		p := start(t, dir, append(defaults(), "-dns", ns.Addr(), "-mx-port", beta.port("smtp"), "-allow-private", "127.0.0.0/8", "-tls-reports", "-v")...)
		subject := fmt.Sprint("number ", i)
		if err := p.write(subject, "rita@beta.example"); err != nil {
			t.Fatal(err)
		}
		if c.successful > 0 {
			beta.with("rita@beta.example", "", subject)
		} else {
			eventually(t, "the certificate is refused", func() bool { return strings.Contains(p.log.String(), "certificate") })
		}
		p.stop()
		r := counted(t, dir, "beta.example", tlsrpt.PolicySTS)
		if r.Successful != c.successful || r.Failed != c.failed {
			t.Errorf("%s: %+v", c.believed, r)
		}
	}
	if n := len(beta.mailbox("rita@beta.example", "")); n != 1 {
		t.Errorf("%d messages arrived", n)
	}
	beta.stop()
}
