package mta_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/auth/tlsrpt"
	"github.com/mailspine/mailspine/internal/peertest"
	"github.com/mailspine/mailspine/mta"
)

// All of it together: a Postfix with a certificate, DNS over the wire with what is published about it, policies over HTTPS, the outcomes counted,
// and the report of the day sent to a domain whose own policy would not let it in.
func TestRelayTLSPoliciesToPostfix(t *testing.T) {
	domains := []string{"dane.example", "moved.example", "plain.example", "sts.example", "strict.example", "testing.example", "gone.example"}
	cert := peertest.SelfSigned(t, "mx.sts.example", "mx.plain.example")
	p := peertest.StartPostfix(t, peertest.PostfixConfig{
		Hostname: "postfix.example", Domains: domains,
		Settings: map[string]string{
			"smtpd_tls_cert_file": cert.CertFile, "smtpd_tls_key_file": cert.KeyFile, "smtpd_tls_security_level": "may",
			"smtpd_relay_restrictions": "reject_unauth_destination",
		},
	})
	port := netip.MustParseAddrPort(p.Addr).Port()
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	leaf, err := x509.ParseCertificate(cert.Config.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	key := dane.Record(leaf, dane.UsageEE, dane.SelectorSPKI, dane.MatchSHA256)

	// The policy host of all domains.
	policies := &mtasts.Handler{Policies: map[string]mtasts.Policy{
		"sts.example":     {Mode: mtasts.ModeEnforce, MX: []string{"mx.sts.example"}, MaxAge: 24 * time.Hour},
		"strict.example":  {Mode: mtasts.ModeEnforce, MX: []string{"mx.strict.example"}, MaxAge: 24 * time.Hour},
		"testing.example": {Mode: mtasts.ModeTesting, MX: []string{"mx.other.example"}, MaxAge: 24 * time.Hour},
	}}
	var names []string
	for _, d := range domains {
		names = append(names, "mta-sts."+d)
	}
	web := peertest.SelfSigned(t, names...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: policies, TLSConfig: web.Config, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), ReadTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(l, "", "") }()
	t.Cleanup(func() { server.Close(); <-served })

	zone := dnstest.Zone{
		"dane.example": {dnstest.Signed}, "moved.example": {dnstest.Signed},
		"_mta-sts.sts.example":  {dnstest.TXT("v=STSv1; id=1;")},
		"_mta-sts.gone.example": {dnstest.TXT("v=STSv1; id=1;")}, // 404
	}
	for _, d := range domains {
		zone[d] = append(zone[d], dnstest.MX(10, "mx."+d))
		zone["mx."+d] = []dnstest.Record{dnstest.A("127.0.0.1")}
		zone["mta-sts."+d] = []dnstest.Record{dnstest.A("127.0.0.1")}
	}
	for _, d := range []string{"strict.example", "testing.example"} {
		zone["_mta-sts."+d] = []dnstest.Record{dnstest.TXT("v=STSv1; id=1;")}
	}
	zone[dane.Name("mx.dane.example", port)] = []dnstest.Record{dnstest.TLSA(key.Usage, key.Selector, key.MatchingType, key.Data)}
	zone[dane.Name("mx.moved.example", port)] = []dnstest.Record{dnstest.TLSA(3, 1, 1, make([]byte, 32))}
	zone["_smtp._tls.moved.example"] = []dnstest.Record{dnstest.TXT("v=TLSRPTv1; rua=mailto:tls@moved.example")}
	if err := zone.Check(); err != nil {
		t.Fatal(err)
	}
	ns, err := dnstest.Start(zone)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	resolver := &dns.Cache{Resolver: &dns.Client{Servers: []string{ns.Addr()}, Trusted: []string{ns.Addr()}}}

	quiet := slog.New(slog.DiscardHandler)
	today := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	now := today
	collector := &tlsrpt.Collector{Now: func() time.Time { return now }, Logger: quiet}
	relay := &mta.Relay{
		Resolver: resolver, Hostname: "client.example.org", Port: port, AllowPrivate: loopback, Logger: quiet,
		TLSConfig: &tls.Config{RootCAs: cert.Pool},
		TLSPolicy: mta.TLSRules{"plain.example": {Level: mta.TLSVerify, Roots: cert.Pool}},
		MTASTS: &mtasts.Cache{Logger: quiet, Fetcher: &mtasts.Fetcher{
			Resolver: resolver, AllowPrivate: loopback, Port: netip.MustParseAddrPort(l.Addr().String()).Port(), Roots: web.Pool, Timeout: 10 * time.Second,
		}},
		TLSReports: collector,
	}
	defer relay.CloseIdle()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, tt := range []struct {
		domain, want, peer string
		rows               []string
	}{
		{"dane.example", "", "mx.dane.example", []string{"tlsa mx.dane.example: 1 good, 0 failed"}},
		{"moved.example", "451 4.7.5", "", []string{"tlsa mx.moved.example: 0 good, 1 failed, 1 tlsa-invalid at 127.0.0.1 mx.moved.example postfix.example"}},
		{"plain.example", "", "mx.plain.example", []string{"no-policy-found plain.example: 1 good, 0 failed"}},
		{"sts.example", "", "mx.sts.example", []string{"sts sts.example: 1 good, 0 failed"}},
		{"strict.example", "451 4.7.5", "", []string{"sts strict.example: 0 good, 1 failed, 1 certificate-host-mismatch at 127.0.0.1 mx.strict.example postfix.example"}},
		{"testing.example", "", "", []string{"sts testing.example: 0 good, 1 failed, 1 validation-failure at 127.0.0.1 mx.testing.example postfix.example"}},
		{"gone.example", "", "", []string{"no-policy-found gone.example: 1 good, 0 failed", "sts gone.example: 0 good, 1 failed, 1 sts-policy-fetch-error at invalid IP  "}},
	} {
		att := &attempt{}
		env := &mailspine.Envelope{ID: mailspine.NewMsgID(), From: mailspine.Address{Local: "joe", Domain: "example.org"},
			Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "ann", Domain: tt.domain}}}, Body: mailspine.Body8Bit}
		err := relay.Deliver(mailspine.WithAttempt(ctx, att), env, mailspine.StringContent(peerMessage))
		got := ""
		if st := mailspine.Status(mailspine.ErrorAt(err, 0)); st != nil {
			got = fmt.Sprintf("%d %s", st.Code, st.Enhanced)
		}
		if r := att.receipts[0]; got != tt.want || got == "" && (r.TLS.Version == "" || r.TLS.Peer != tt.peer) {
			t.Errorf("%s: %q (%v), want %q; verified for %q, want %q", tt.domain, got, err, tt.want, r.TLS.Peer, tt.peer)
		}
		rows, err := collector.Rows(ctx, now)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, row := range rows {
			if row.Domain != tt.domain {
				continue
			}
			for _, p := range row.Policies {
				s := fmt.Sprintf("%s %s: %d good, %d failed", p.Policy.Type, p.Policy.Domain, p.Successful, p.Failed)
				for _, f := range p.Failures {
					s += fmt.Sprintf(", %d %s at %v %s %s", f.Sessions, f.Result, f.ReceivingIP, f.ReceivingMX, f.ReceivingMXHelo)
				}
				lines = append(lines, s)
			}
		}
		slices.Sort(lines)
		if !slices.Equal(lines, tt.rows) {
			t.Errorf("%s: counted\n\t%s\nwant\n\t%s", tt.domain, strings.Join(lines, "\n\t"), strings.Join(tt.rows, "\n\t"))
		}
	}
	p.Messages(t, 5)

	// The report goes to the domain that fails, since a report must not depend on what it complains about; nobody is told of that.
	now = today.Add(24 * time.Hour)
	reporter := &tlsrpt.Reporter{
		Collector: collector, Resolver: resolver, From: mailspine.Address{Local: "tls", Domain: "client.example.org"},
		Mail: relay, Now: func() time.Time { return now }, Logger: quiet,
	}
	if err := reporter.Send(ctx, today); err != nil {
		t.Fatal(err)
	}
	var report *tlsrpt.Message
	for _, m := range p.Messages(t, 6) {
		if strings.Contains(m, "TLS-Report-Domain:") {
			if report, err = tlsrpt.ParseMessage(strings.NewReader(strings.ReplaceAll(m, "\n", "\r\n"))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if report == nil {
		t.Fatal("no report arrived")
	}
	if good, failed := report.Report.Total(); report.Domain != "moved.example" || good != 0 || failed != 1 {
		t.Errorf("a report about %s, %d good and %d failed", report.Domain, good, failed)
	}
	if rows, err := collector.Rows(ctx, now); err != nil || len(rows) > 0 {
		t.Errorf("the sending of a report is counted: %+v, %v", rows, err)
	}
}

// DANE with nothing made up: zones that are signed, a resolver that validates them, and a Postfix whose key is in one of them.
func TestRelayDANEWithUnbound(t *testing.T) {
	cert := peertest.SelfSigned(t, "nobody.example")
	p := peertest.StartPostfix(t, peertest.PostfixConfig{
		Hostname: "postfix.example", Domains: []string{"good.example", "moved.example", "spoilt.example", "none.example", "plain.example"},
		Settings: map[string]string{
			"smtpd_tls_cert_file": cert.CertFile, "smtpd_tls_key_file": cert.KeyFile, "smtpd_tls_security_level": "may",
			"smtpd_relay_restrictions": "reject_unauth_destination",
		},
	})
	port := netip.MustParseAddrPort(p.Addr).Port()
	leaf, err := x509.ParseCertificate(cert.Config.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	key := dane.Record(leaf, dane.UsageEE, dane.SelectorSPKI, dane.MatchSHA256)
	other := key
	other.Data = make([]byte, 32)
	zone := func(domain string, recs ...mailspine.TLSA) *peertest.Zone {
		z := &peertest.Zone{Name: domain, Records: []string{domain + ". 600 IN MX 10 mx." + domain + ".", "mx." + domain + ". 600 IN A 127.0.0.1"}}
		for _, r := range recs {
			z.Records = append(z.Records, strings.Replace(dane.Format("mx."+domain, port, r), " IN", " 600 IN", 1))
		}
		return z
	}
	plain, spoilt := zone("plain.example", other), zone("spoilt.example", key)
	plain.Unsigned = true
	spoilt.After = func(_ []mdns.RR, sig *mdns.RRSIG) *mdns.RRSIG {
		if sig.TypeCovered == mdns.TypeTLSA {
			sig.Signature = strings.Repeat("A", 40) + sig.Signature[40:] // 30 octets of zeros in base64
		}
		return sig
	}
	u := peertest.StartUnbound(t, peertest.UnboundConfig{Zones: []*peertest.Zone{
		{Name: "example"}, zone("good.example", other, key), zone("moved.example", other), spoilt, zone("none.example"), plain,
	}})
	quiet := slog.New(slog.DiscardHandler)
	var lines []string
	relay := &mta.Relay{
		Resolver: &dns.Cache{Resolver: &dns.Client{Servers: []string{u.Addr}, Trusted: []string{u.Addr}}},
		Hostname: "client.example.org", Port: port, AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Logger: quiet,
		TLSReports: tlsrpt.RecorderFunc(func(_ context.Context, s tlsrpt.Session) error {
			lines = append(lines, fmt.Sprintf("%s %s %s", s.Policy.Type, s.Policy.Domain, s.Result))
			return nil
		}),
	}
	defer relay.CloseIdle()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, tt := range []struct{ domain, want, peer, report string }{
		{"good.example", "", "mx.good.example", "tlsa mx.good.example "},
		{"moved.example", "451 4.7.5", "", "tlsa mx.moved.example tlsa-invalid"},
		{"spoilt.example", "451 4.7.5", "", "tlsa mx.spoilt.example dnssec-invalid"},
		{"none.example", "", "", "no-policy-found none.example "},
		{"plain.example", "", "", "no-policy-found plain.example "},
	} {
		lines = nil
		att := &attempt{}
		env := &mailspine.Envelope{ID: mailspine.NewMsgID(), From: mailspine.Address{Local: "joe", Domain: "example.org"},
			Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "ann", Domain: tt.domain}}}, Body: mailspine.Body8Bit}
		err := relay.Deliver(mailspine.WithAttempt(ctx, att), env, mailspine.StringContent(peerMessage))
		got := ""
		if st := mailspine.Status(mailspine.ErrorAt(err, 0)); st != nil {
			got = fmt.Sprintf("%d %s", st.Code, st.Enhanced)
		}
		if r := att.receipts[0]; got != tt.want || got == "" && (r.TLS.Version == "" || r.TLS.Peer != tt.peer) {
			t.Errorf("%s: %q (%v), want %q; verified for %q, want %q", tt.domain, got, err, tt.want, r.TLS.Peer, tt.peer)
		}
		if !slices.Equal(lines, []string{tt.report}) {
			t.Errorf("%s: reports %q, want %q", tt.domain, lines, tt.report)
		}
	}
	p.Messages(t, 3)
	if t.Failed() {
		t.Log(u.Log())
	}
}
