package mtasts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

func TestCheck(t *testing.T) {
	w := newWorld(t, nil)
	w.dns.Set("example.org", dnstest.MX(10, "mx1.example.org"), dnstest.MX(20, "mx2.Example.org"))
	w.dns.Set("self.example.org", dnstest.A("127.0.0.1"))
	good := file(ModeEnforce, "1209600", "mx1.example.org", "mx2.example.org")
	chain := func(c *tls.Certificate) []*x509.Certificate { return []*x509.Certificate{c.Leaf} }
	certs := map[string][]*x509.Certificate{
		"mx1.example.org": chain(w.ca.issue(t, nil, "mx1.example.org")),
		"mx2.example.org": chain(w.ca.issue(t, nil, "*.example.org")),
	}
	probe := func(_ context.Context, host string) ([]*x509.Certificate, error) {
		if c, ok := certs[host]; ok {
			return c, nil
		}
		return nil, errors.New("STARTTLS is not offered")
	}
	const ok = `ok: record: the id is 1
ok: policy: the mode is enforce
ok: max_age: the policy is kept for 336h0m0s
ok: mx mx1.example.org: the policy lists it
ok: mx mx2.example.org: the policy lists it
`
	for _, c := range []struct {
		name  string
		setup func()
		o     *CheckOptions
		want  string // all findings if it begins with "ok: record", else lines that must be among them
	}{
		{"good", func() {}, nil, ok},
		{"good certificates", func() {}, &CheckOptions{Probe: probe}, ok + fmt.Sprintf("ok: certificate mx1.example.org: it is valid until %[1]s\nok: certificate mx2.example.org: it is valid until %[1]s\n", time.Now().Add(90*24*time.Hour).UTC().Format(time.DateOnly))},
		{"no record", func() { w.record("example.org") }, nil, "failure: record: there is no TXT record at _mta-sts.example.org, so that senders do not look for a policy\nok: policy: the mode is enforce"},
		{"broken record", func() { w.record("example.org", dnstest.TXT("v=STSv1; id=a-b;")) }, nil, `failure: record: mtasts: example.org: record: record: the id "a-b" is not 1 to 32 letters and digits`},
		{"DNS", func() { w.record("example.org", dnstest.ServFail) }, nil, "failure: record: mtasts: example.org: dns: "},
		{"404", func() { w.set(status(404)) }, nil, "ok: record: the id is 1\nfailure: policy: mtasts: example.org: fetch: the policy host answers 404, and only 200 counts\n"},
		{"no policy", func() { w.set(policy("x")) }, nil, "failure: policy: mtasts: example.org: policy: policy file, line 1: no colon"},
		{"testing", func() { w.set(file(ModeTesting, "1209600", "mx1.example.org")) }, nil, "note: policy: the mode is testing\nwarning: mx mx2.example.org: the policy does not list it"},
		{"none", func() { w.set(file(ModeNone, "86400")) }, &CheckOptions{Probe: probe}, "ok: record: the id is 1\nnote: policy: the mode is none: the domain says that it has no policy\n"},
		{"short", func() { w.set(file(ModeEnforce, "518400", "*.example.org")) }, nil, "warning: max_age: the policy is kept for 144h0m0s; weeks are expected"},
		{"short for testing", func() { w.set(file(ModeTesting, "3600", "*.example.org")) }, nil, "warning: max_age: the policy is kept for 1h0m0s, less than the day"},
		{"missing MX", func() { w.set(file(ModeEnforce, "1209600", "mx1.example.org")) }, nil, "failure: mx mx2.example.org: the policy does not list it"},
		{"dead MX", func() { w.set(file(ModeEnforce, "1209600", "*.example.org", "old.example.net", "*.old.example.net")) }, nil, "warning: pattern old.example.net: no MX of the domain is meant by it\nwarning: pattern *.old.example.net: no MX of the domain is meant by it"},
		{"no MX", func() { w.dns.Set("example.org", dnstest.A("127.0.0.1")) }, nil, "failure: mx example.org: the policy does not list it"},
		{"null MX", func() { w.dns.Set("example.org", dnstest.MX(0, ".")) }, nil, "note: mx: the domain takes no mail"},
		{"MX unknown", func() { w.dns.Set("example.org", dnstest.ServFail) }, nil, "failure: mx: lookup"},
		{"no TLS", func() { delete(certs, "mx2.example.org") }, &CheckOptions{Probe: probe}, "failure: certificate mx2.example.org: not seen: STARTTLS is not offered"},
		{"no certificate", func() { certs["mx2.example.org"] = nil }, &CheckOptions{Probe: probe}, "failure: certificate mx2.example.org: the host showed none"},
		{"wrong name", func() { certs["mx2.example.org"] = certs["mx1.example.org"] }, &CheckOptions{Probe: probe}, "failure: certificate mx2.example.org: x509: certificate is valid for mx1.example.org"},
		{"other authority", func() { certs["mx2.example.org"] = chain(newCA(t).issue(t, nil, "mx2.example.org")) }, &CheckOptions{Probe: probe}, "failure: certificate mx2.example.org: x509: certificate signed by unknown authority"},
		{"ends soon", func() {}, &CheckOptions{Probe: probe, Now: func() time.Time { return time.Now().Add(80 * 24 * time.Hour) }}, "warning: certificate mx1.example.org: it is valid for 239 hours more"},
		{"ended", func() {}, &CheckOptions{Probe: probe, Now: func() time.Time { return time.Now().Add(95 * 24 * time.Hour) }}, "failure: certificate mx1.example.org: x509: certificate has expired"},
	} {
		w.id("example.org", "1")
		w.set(good)
		w.dns.Set("example.org", dnstest.MX(20, "mx2.Example.org"), dnstest.MX(10, "mx1.example.org"), dnstest.MX(30, "mx1.example.org"))
		certs["mx2.example.org"] = chain(w.ca.issue(t, nil, "*.example.org"))
		c.setup()
		var b strings.Builder
		for _, f := range Check(t.Context(), w.fetcher, "Example.org", c.o) {
			b.WriteString(f.String() + "\n")
			if f.Text == "" || f.Severity == OK && f.Err != nil {
				t.Errorf("%s: %+v", c.name, f)
			}
		}
		if strings.HasPrefix(c.want, "ok: record") {
			if b.String() != c.want {
				t.Errorf("%s:\n%swant\n%s", c.name, b.String(), c.want)
			}
			continue
		}
		for line := range strings.SplitSeq(c.want, "\n") {
			if !strings.Contains("\n"+b.String(), "\n"+line) {
				t.Errorf("%s: no line %q in\n%s", c.name, line, b.String())
			}
		}
	}
	for _, f := range []*Fetcher{nil, {}} {
		if f := Check(t.Context(), f, "example.org", nil); len(f) != 1 || f[0].Severity != Failure {
			t.Errorf("without a Resolver: %v", f)
		}
	}
	if f := Check(t.Context(), w.fetcher, "[192.0.2.1]", nil); len(f) != 1 || f[0].Severity != Failure {
		t.Errorf("%v", f)
	}
}

// A domain with a thousand hosts is not looked at for hours.
func TestCheckBounded(t *testing.T) {
	w := newWorld(t, file(ModeEnforce, "1209600", "*.example.org"))
	var mx []dnstest.Record
	for i := range 300 {
		mx = append(mx, dnstest.MX(10, fmt.Sprintf("mx%d.example.org", i)))
	}
	w.dns.Set("example.org", mx...)
	probes := 0
	findings := Check(t.Context(), w.fetcher, "example.org", &CheckOptions{Probe: func(context.Context, string) ([]*x509.Certificate, error) { probes++; return nil, nil }})
	if probes != maxCheckedMX || len(findings) > 2*maxCheckedMX+10 {
		t.Errorf("%d probes, %d findings", probes, len(findings))
	}
}
