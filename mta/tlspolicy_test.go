package mta

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/auth/tlsrpt"
)

// issue makes a certificate that holds until a time, with its authority's in the chain.
func (c *ca) issue(t testing.TB, until time.Time, names ...string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "server"}, DNSNames: names,
		NotBefore: time.Unix(0, 0), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der, c.cert.Raw}, PrivateKey: key}}}
}

// tlsa returns the TLSA record of a server's certificate.
func tlsa(t testing.TB, c *tls.Config, usage, selector, matching uint8) dnstest.Record {
	t.Helper()
	chain := c.Certificates[0].Certificate
	der := chain[0]
	if usage == dane.UsageTA {
		der = chain[len(chain)-1]
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	r := dane.Record(cert, dane.UsageEE, selector, matching)
	return dnstest.TLSA(usage, selector, matching, r.Data)
}

// A stsMap is STSPolicies made by hand. A domain in problems has one of fetching its policy.
type stsMap struct {
	policies map[string]mtasts.Policy
	problems map[string]error
	mu       sync.Mutex
	asked    []string
}

func (m *stsMap) Policy(_ context.Context, domain string) (mtasts.Policy, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, domain)
	return m.policies[domain], m.problems[domain]
}

// sessions is a Recorder that writes down what it is told, a line each.
type sessions struct {
	mu    sync.Mutex
	lines []string
	fail  error
}

func (s *sessions) Record(_ context.Context, r tlsrpt.Session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := fmt.Sprintf("%s: %s %s", r.Domain, r.Policy.Type, r.Policy.Domain)
	if len(r.Policy.Strings) > 0 {
		line += fmt.Sprintf(" (%d)", len(r.Policy.Strings))
	}
	if r.ReceivingMX != "" {
		line += ", " + r.ReceivingMX
	}
	if r.ReceivingIP.IsValid() {
		line += " " + r.ReceivingIP.String()
	}
	if r.ReceivingMXHelo != "" {
		line += " as " + r.ReceivingMXHelo
	}
	line += ": " + string(r.Result)
	if r.Result == tlsrpt.Success {
		line += "success"
	}
	s.lines = append(s.lines, line)
	return s.fail
}

// The dialogues of the tests of policies.
const (
	polHello = "S: 220 hi\nC: EHLO out.sender.example\n"
	polOffer = polHello + "S: 250-me.example\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\n"
	polMail  = "C: MAIL FROM:<ann@sender.example>*\nS: 250 ok\nC: RCPT TO:<bob@dest.example>\nS: 250 ok\nC: DATA\nS: 354 ok\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye\n"
	polClear = polHello + "S: 250 me.example\n" + polMail // TLS is not offered
	polNone  = polHello + "S: 250 me.example\nC: QUIT\nCLOSE"
	polTLS   = polOffer + "TLS\nC: EHLO out.sender.example\nS: 250-me.example\nS: 250 REQUIRETLS\n" + polMail
	polFail  = polOffer + "TLSFAIL"
	polJunk  = polOffer + "JUNK this is no TLS\nCLOSE"
	polAgain = polHello + "S: 250-me.example\nS: 250 STARTTLS\n" + polMail // in clear, after a handshake that failed
)

// Every policy, alone and against the others: what is delivered and how, and what the domain is told.
func TestRelayTLSPolicies(t *testing.T) {
	good, other := newCA(t), newCA(t)
	far := time.Unix(1<<33, 0)
	certs := map[string]*tls.Config{
		"good":    good.issue(t, far, "mx1.dest.example"),
		"mx2":     good.issue(t, far, "mx2.dest.example"),
		"name":    good.issue(t, far, "nobody.example"),
		"domain":  other.issue(t, far, "dest.example"),
		"self":    other.issue(t, far, "nobody.example"),
		"expired": other.issue(t, time.Unix(1, 0), "nobody.example"),
		"old":     good.issue(t, time.Unix(1, 0), "mx1.dest.example"),
	}
	ee := func(name string) dnstest.Record { return tlsa(t, certs[name], 3, 1, 1) }
	ta := func(name string) dnstest.Record { return tlsa(t, certs[name], 2, 0, 1) }
	unusable := dnstest.TLSA(1, 1, 1, make([]byte, 32))

	const at1, at2 = "_25._tcp.mx1.dest.example", "_25._tcp.mx2.dest.example"
	// The zones: two hosts, with the records of the names given.
	signed := func(more dnstest.Zone) dnstest.Zone {
		z := dnstest.Zone{
			"dest.example":     {dnstest.Signed, dnstest.MX(10, "mx1.dest.example"), dnstest.MX(20, "mx2.dest.example")},
			"mx1.dest.example": {dnstest.A("192.0.2.1")},
			"mx2.dest.example": {dnstest.A("192.0.2.2")},
		}
		for k, v := range more {
			z[k] = append(z[k], v...)
		}
		return z
	}
	plain := func(more dnstest.Zone) dnstest.Zone {
		z := signed(more)
		z["dest.example"] = z["dest.example"][1:]
		return z
	}
	sts := func(mode mtasts.Mode, mx ...string) mtasts.Policy {
		return mtasts.Policy{ID: "1", Mode: mode, MX: mx, MaxAge: time.Hour}
	}
	both := []string{"mx1.dest.example", "mx2.dest.example"}
	fetch := &mtasts.Error{Kind: mtasts.KindFetch, Domain: "dest.example", Err: errors.New("404")}

	for _, tt := range []struct {
		name    string
		zone    dnstest.Zone
		sts     mtasts.Policy
		problem error
		rule    TLSRule
		edit    func(*Relay)
		require bool
		report  bool   // the message is a report about TLS
		no      bool   // its header says "TLS-Required: No"
		cert    string // of mx1; mx2 has its own
		mx1     []string
		mx2     []string
		want    string
		tls     string // peer and SNI, or "clear"
		policy  string // that the trace and Explain tell
		reports []string
	}{
		// DANE.
		{name: "DANE-EE: neither name nor authority matter", zone: signed(dnstest.Zone{at1: {ee("self")}}), cert: "self", mx1: []string{polTLS},
			tls: "mx1.dest.example mx1.dest.example", policy: "DANE: 1 usable TLSA record at _25._tcp.mx1.dest.example; the certificate need not name the host",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "DANE-EE: nor does time", zone: signed(dnstest.Zone{at1: {ee("expired"), ee("good")}}), cert: "expired", mx1: []string{polTLS},
			tls: "mx1.dest.example mx1.dest.example", policy: "DANE: 2 usable TLSA records at _25._tcp.mx1.dest.example; the certificate need not name the host",
			reports: []string{"dest.example: tlsa mx1.dest.example (2), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "DANE-EE: a good certificate that is another one, at both hosts", zone: signed(dnstest.Zone{at1: {ee("self")}, at2: {ee("self")}}), cert: "good",
			mx1: []string{polFail}, mx2: []string{polFail}, want: "451 4.7.5",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: tlsa-invalid",
				"dest.example: tlsa mx2.dest.example (1), mx2.dest.example 192.0.2.2 as me.example: tlsa-invalid"}},
		{name: "DANE-EE: the next host", zone: signed(dnstest.Zone{at1: {ee("self")}, at2: {ee("mx2")}}), cert: "good",
			mx1: []string{polFail}, mx2: []string{polTLS}, tls: "mx2.dest.example mx2.dest.example",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: tlsa-invalid",
				"dest.example: tlsa mx2.dest.example (1), mx2.dest.example 192.0.2.2 as me.example: success"}},
		{name: "DANE-TA: the next-hop domain is a name too", zone: signed(dnstest.Zone{at1: {ta("domain")}}), cert: "domain", mx1: []string{polTLS},
			tls: "mx1.dest.example mx1.dest.example", policy: "DANE: 1 usable TLSA record at _25._tcp.mx1.dest.example; certificate for mx1.dest.example or dest.example",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "DANE-TA: what the next-hop domain is an alias of, too", zone: dnstest.Zone{
			"example": {dnstest.Signed}, "dest.example": {dnstest.CNAME("nobody.example")}, "nobody.example": {dnstest.MX(10, "mx1.dest.example")},
			"mx1.dest.example": {dnstest.A("192.0.2.1")}, at1: {ta("self")}},
			cert: "self", mx1: []string{polTLS}, tls: "mx1.dest.example mx1.dest.example",
			policy:  "DANE: 1 usable TLSA record at _25._tcp.mx1.dest.example; certificate for mx1.dest.example or dest.example or nobody.example",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "DANE-TA: another name", zone: signed(dnstest.Zone{at1: {ta("self")}, at2: {dnstest.Bogus}}), cert: "self", mx1: []string{polFail}, want: "451 4.7.5",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: certificate-host-mismatch",
				"dest.example: tlsa mx2.dest.example, mx2.dest.example: dnssec-invalid"}},
		{name: "DANE: no TLS offered, never in clear", zone: signed(dnstest.Zone{at1: {ee("good")}, at2: {ee("mx2")}}), cert: "good",
			mx1: []string{polNone}, mx2: []string{polNone}, want: "451 4.7.4",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: starttls-not-supported",
				"dest.example: tlsa mx2.dest.example (1), mx2.dest.example 192.0.2.2 as me.example: starttls-not-supported"}},
		{name: "DANE: the handshake fails, never in clear", zone: signed(dnstest.Zone{at1: {ee("good")}, at2: {dnstest.ServFail}}), cert: "good",
			mx1: []string{polJunk}, want: "451 4.7.5",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: validation-failure",
				"dest.example: tlsa mx2.dest.example, mx2.dest.example: dnssec-invalid"}},
		{name: "DANE: nothing usable, any certificate", zone: signed(dnstest.Zone{at1: {unusable}}), cert: "self", mx1: []string{polTLS},
			tls: " mx1.dest.example", policy: "DANE: 1 TLSA record at _25._tcp.mx1.dest.example, none usable; TLS with any certificate (no MTA-STS)",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: tlsa-invalid"}},
		{name: "DANE: nothing usable, no TLS offered", zone: signed(dnstest.Zone{at1: {unusable}, at2: {unusable}}), mx1: []string{polNone}, mx2: []string{polNone}, want: "451 4.7.4",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: starttls-not-supported",
				"dest.example: tlsa mx2.dest.example (1), mx2.dest.example 192.0.2.2 as me.example: starttls-not-supported"}},
		{name: "DANE: bogus, the next host", zone: signed(dnstest.Zone{at1: {dnstest.Bogus}, at2: {ee("mx2")}}), mx2: []string{polTLS}, tls: "mx2.dest.example mx2.dest.example",
			reports: []string{"dest.example: tlsa mx1.dest.example, mx1.dest.example: dnssec-invalid",
				"dest.example: tlsa mx2.dest.example (1), mx2.dest.example 192.0.2.2 as me.example: success"}},
		{name: "DANE: bogus, and no other host", zone: signed(dnstest.Zone{at1: {dnstest.Bogus}, at2: {dnstest.Bogus}}), want: "451 4.7.5",
			reports: []string{"dest.example: tlsa mx1.dest.example, mx1.dest.example: dnssec-invalid", "dest.example: tlsa mx2.dest.example, mx2.dest.example: dnssec-invalid"}},
		{name: "DANE: the mail exchangers are not secured", zone: plain(dnstest.Zone{at1: {dnstest.Signed, ee("good")}}), cert: "self", mx1: []string{polTLS}, tls: " mx1.dest.example",
			policy:  "opportunistic (no DANE: the mail exchangers are not secured by DNSSEC, no MTA-STS)",
			reports: []string{"dest.example: no-policy-found dest.example, mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "DANE: the host is not secured", zone: signed(dnstest.Zone{"mx1.dest.example": {dnstest.Unsigned}, at1: {ee("good")}}), mx1: []string{polClear}, tls: "clear",
			policy:  "opportunistic (no DANE: no authentic TLSA record for mx1.dest.example, no MTA-STS)",
			reports: []string{"dest.example: no-policy-found dest.example, mx1.dest.example 192.0.2.1 as me.example: starttls-not-supported"}},
		{name: "DANE: an alias, SNI is where the records are", zone: dnstest.Zone{
			"dest.example": {dnstest.Signed, dnstest.MX(10, "mx1.dest.example")}, "mx1.dest.example": {dnstest.CNAME("real.dest.example")},
			"real.dest.example": {dnstest.A("192.0.2.1")}, "_25._tcp.real.dest.example": {ee("self")}},
			cert: "self", mx1: []string{polTLS}, tls: "real.dest.example real.dest.example",
			policy:  "DANE: 1 usable TLSA record at _25._tcp.real.dest.example; the certificate need not name the host",
			reports: []string{"dest.example: tlsa real.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "DANE: implicit MX", zone: dnstest.Zone{"dest.example": {dnstest.Signed, dnstest.A("192.0.2.1")}, "_25._tcp.dest.example": {ee("self")}},
			cert: "self", mx1: []string{polTLS}, tls: "dest.example dest.example", policy: "DANE: 1 usable TLSA record at _25._tcp.dest.example; the certificate need not name the host",
			reports: []string{"dest.example: tlsa dest.example (1), dest.example 192.0.2.1 as me.example: success"}},
		{name: "NoDANE", zone: signed(dnstest.Zone{at1: {dnstest.Bogus}}), edit: func(r *Relay) { r.NoDANE = true }, mx1: []string{polClear}, tls: "clear", policy: "opportunistic (no MTA-STS)",
			reports: []string{"dest.example: no-policy-found dest.example, mx1.dest.example 192.0.2.1 as me.example: starttls-not-supported"}},

		// Local rules beside DANE.
		{name: "DANE in place of a local rule's authorities", zone: signed(dnstest.Zone{at1: {ee("self")}}), rule: TLSRule{Level: TLSVerify}, cert: "self", mx1: []string{polTLS},
			tls:     "mx1.dest.example mx1.dest.example",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "DANE and the names of a local rule", zone: signed(dnstest.Zone{at1: {ee("good")}}), rule: TLSRule{Level: TLSVerify, Names: []string{"mx1.dest.example"}}, cert: "good",
			mx1: []string{polTLS}, tls: "mx1.dest.example mx1.dest.example",
			policy:  "DANE: 1 usable TLSA record at _25._tcp.mx1.dest.example; the certificate need not name the host; and local rule: certificate for mx1.dest.example",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "DANE and other names of a local rule", zone: signed(dnstest.Zone{at1: {ee("good")}, at2: {dnstest.Bogus}}), rule: TLSRule{Level: TLSVerify, Names: []string{"mail.example"}}, cert: "good",
			mx1: []string{polFail}, want: "451 4.7.5",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: certificate-host-mismatch",
				"dest.example: tlsa mx2.dest.example, mx2.dest.example: dnssec-invalid"}},
		{name: "names of a rule that demands nothing", zone: signed(dnstest.Zone{at1: {ee("self")}}), rule: TLSRule{Names: []string{"mail.example"}}, cert: "self", mx1: []string{polTLS},
			tls:     "mx1.dest.example mx1.dest.example",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "Override of DANE", zone: signed(dnstest.Zone{at1: {ee("good")}}), rule: TLSRule{Override: true}, cert: "self", mx1: []string{polTLS}, tls: " mx1.dest.example", policy: "opportunistic"},
		{name: "Override of bogus records, with a demand", zone: signed(dnstest.Zone{at1: {dnstest.Bogus}}), rule: TLSRule{Override: true, Level: TLSEncrypt}, cert: "self", mx1: []string{polTLS},
			tls: " mx1.dest.example", policy: "local rule, encrypt: any certificate"},

		// MTA-STS.
		{name: "MTA-STS", zone: plain(nil), sts: sts(mtasts.ModeEnforce, both...), cert: "good", mx1: []string{polTLS}, tls: "mx1.dest.example mx1.dest.example",
			policy:  "MTA-STS: enforce, policy 1; certificate for mx1.dest.example (no DANE: the mail exchangers are not secured by DNSSEC)",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "MTA-STS: wrong name", zone: plain(nil), sts: sts(mtasts.ModeEnforce, both...), cert: "name", mx1: []string{polFail}, mx2: []string{polTLS}, tls: "mx2.dest.example mx2.dest.example",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: certificate-host-mismatch",
				"dest.example: sts dest.example (5), mx2.dest.example 192.0.2.2 as me.example: success"}},
		{name: "MTA-STS: unknown authority, and no TLS", zone: plain(nil), sts: sts(mtasts.ModeEnforce, both...), cert: "self", mx1: []string{polFail}, mx2: []string{polNone}, want: "451 4.7.4",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: certificate-not-trusted",
				"dest.example: sts dest.example (5), mx2.dest.example 192.0.2.2 as me.example: starttls-not-supported"}},
		{name: "MTA-STS: expired, and a handshake that fails", zone: plain(nil), sts: sts(mtasts.ModeEnforce, "*.dest.example"), cert: "old", mx1: []string{polFail}, mx2: []string{polJunk}, want: "451 4.7.5",
			reports: []string{"dest.example: sts dest.example (4), mx1.dest.example 192.0.2.1 as me.example: certificate-expired",
				"dest.example: sts dest.example (4), mx2.dest.example 192.0.2.2 as me.example: validation-failure"}},
		{name: "MTA-STS: a host that is not listed is passed over", zone: plain(nil), sts: sts(mtasts.ModeEnforce, "mx2.dest.example"), mx2: []string{polTLS}, tls: "mx2.dest.example mx2.dest.example",
			reports: []string{"dest.example: sts dest.example (4), mx1.dest.example: validation-failure", "dest.example: sts dest.example (4), mx2.dest.example 192.0.2.2 as me.example: success"}},
		{name: "MTA-STS: no host is listed", zone: plain(nil), sts: sts(mtasts.ModeEnforce, "dest.example", "*.mx1.dest.example"), want: "451 4.7.5",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example: validation-failure", "dest.example: sts dest.example (5), mx2.dest.example: validation-failure"}},
		{name: "MTA-STS in a secured zone without TLSA records", zone: signed(nil), sts: sts(mtasts.ModeEnforce, both...), cert: "good", mx1: []string{polTLS}, tls: "mx1.dest.example mx1.dest.example",
			policy:  "MTA-STS: enforce, policy 1; certificate for mx1.dest.example (no DANE: no authentic TLSA record for mx1.dest.example)",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "MTA-STS testing, good", zone: plain(nil), sts: sts(mtasts.ModeTesting, both...), cert: "good", mx1: []string{polTLS}, tls: "mx1.dest.example mx1.dest.example",
			policy:  "opportunistic (no DANE: the mail exchangers are not secured by DNSSEC, MTA-STS: testing, policy 1)",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "MTA-STS testing, wrong certificate", zone: plain(nil), sts: sts(mtasts.ModeTesting, both...), cert: "self", mx1: []string{polTLS}, tls: " mx1.dest.example",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: certificate-not-trusted"}},
		{name: "MTA-STS testing, not listed", zone: plain(nil), sts: sts(mtasts.ModeTesting, "mx2.dest.example"), cert: "good", mx1: []string{polTLS}, tls: "mx1.dest.example mx1.dest.example",
			policy:  "opportunistic (no DANE: the mail exchangers are not secured by DNSSEC, MTA-STS: testing, policy 1, which does not list mx1.dest.example)",
			reports: []string{"dest.example: sts dest.example (4), mx1.dest.example 192.0.2.1 as me.example: validation-failure"}},
		{name: "MTA-STS testing, no TLS", zone: plain(nil), sts: sts(mtasts.ModeTesting, both...), mx1: []string{polClear}, tls: "clear",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: starttls-not-supported"}},
		{name: "MTA-STS testing, the handshake fails", zone: plain(nil), sts: sts(mtasts.ModeTesting, both...), mx1: []string{polJunk, polAgain}, tls: "clear",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: validation-failure"}},
		{name: "MTA-STS testing leaves the local rule", zone: plain(nil), sts: sts(mtasts.ModeTesting, both...), rule: TLSRule{Level: TLSEncrypt}, mx1: []string{polNone}, mx2: []string{polTLS}, tls: "mx2.dest.example mx2.dest.example",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: starttls-not-supported",
				"dest.example: sts dest.example (5), mx2.dest.example 192.0.2.2 as me.example: success"}},
		{name: "MTA-STS none", zone: plain(nil), sts: sts(mtasts.ModeNone), mx1: []string{polClear}, tls: "clear",
			policy:  "opportunistic (no DANE: the mail exchangers are not secured by DNSSEC, no MTA-STS)",
			reports: []string{"dest.example: no-policy-found dest.example, mx1.dest.example 192.0.2.1 as me.example: starttls-not-supported"}},
		{name: "MTA-STS: a policy that cannot be fetched", zone: plain(nil), problem: fetch, cert: "self", mx1: []string{polTLS}, tls: " mx1.dest.example",
			policy: "opportunistic (no DANE: the mail exchangers are not secured by DNSSEC, no MTA-STS: the policy could not be had)",
			reports: []string{"dest.example: sts dest.example: sts-policy-fetch-error",
				"dest.example: no-policy-found dest.example, mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "MTA-STS: a policy that is kept and cannot be refreshed", zone: plain(nil), sts: sts(mtasts.ModeEnforce, both...), cert: "good", mx1: []string{polTLS}, tls: "mx1.dest.example mx1.dest.example",
			problem: &mtasts.Error{Kind: mtasts.KindWebPKI, Domain: "dest.example", Err: errors.New("expired")},
			reports: []string{"dest.example: sts dest.example (5): sts-webpki-invalid", "dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "MTA-STS: the DNS fails", zone: plain(nil), problem: &mtasts.Error{Kind: mtasts.KindDNS, Domain: "dest.example", Err: mailspine.ErrDNSTemporary}, mx1: []string{polClear}, tls: "clear",
			reports: []string{"dest.example: no-policy-found dest.example, mx1.dest.example 192.0.2.1 as me.example: starttls-not-supported"}},
		{name: "MTA-STS and a local rule: both", zone: plain(nil), sts: sts(mtasts.ModeEnforce, both...), rule: TLSRule{Level: TLSVerify, Names: []string{"nobody.example"}}, cert: "name",
			mx1: []string{polFail}, mx2: []string{polFail}, want: "451 4.7.5",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: certificate-host-mismatch",
				"dest.example: sts dest.example (5), mx2.dest.example 192.0.2.2 as me.example: certificate-host-mismatch"}},
		{name: "Override of MTA-STS", zone: plain(nil), sts: sts(mtasts.ModeEnforce, "mx9.dest.example"), rule: TLSRule{Override: true}, mx1: []string{polClear}, tls: "clear", policy: "opportunistic"},

		// DANE against MTA-STS.
		{name: "DANE passes, whatever MTA-STS says", zone: signed(dnstest.Zone{at1: {ee("self")}}), sts: sts(mtasts.ModeEnforce, "mx9.dest.example"), cert: "self", mx1: []string{polTLS},
			tls: "mx1.dest.example mx1.dest.example", reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "DANE fails, whatever MTA-STS says", zone: signed(dnstest.Zone{at1: {ee("self")}, at2: {ee("self")}}), sts: sts(mtasts.ModeEnforce, both...), cert: "good",
			mx1: []string{polFail}, mx2: []string{polFail}, want: "451 4.7.5",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: tlsa-invalid",
				"dest.example: tlsa mx2.dest.example (1), mx2.dest.example 192.0.2.2 as me.example: tlsa-invalid"}},
		{name: "DANE bogus, whatever MTA-STS says", zone: signed(dnstest.Zone{at1: {dnstest.Bogus}, at2: {dnstest.Bogus}}), sts: sts(mtasts.ModeEnforce, both...), cert: "good", want: "451 4.7.5",
			reports: []string{"dest.example: tlsa mx1.dest.example, mx1.dest.example: dnssec-invalid", "dest.example: tlsa mx2.dest.example, mx2.dest.example: dnssec-invalid"}},
		{name: "DANE at one host, MTA-STS at the other", zone: signed(dnstest.Zone{at1: {ee("self")}}), sts: sts(mtasts.ModeEnforce, both...), cert: "good", mx1: []string{polFail}, mx2: []string{polTLS},
			tls: "mx2.dest.example mx2.dest.example",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: tlsa-invalid",
				"dest.example: sts dest.example (5), mx2.dest.example 192.0.2.2 as me.example: success"}},
		{name: "DANE without a usable record leaves the certificate to MTA-STS", zone: signed(dnstest.Zone{at1: {unusable}}), sts: sts(mtasts.ModeEnforce, both...), cert: "self",
			mx1: []string{polFail}, mx2: []string{polTLS}, tls: "mx2.dest.example mx2.dest.example",
			policy: "DANE: 1 TLSA record at _25._tcp.mx1.dest.example, none usable; MTA-STS: enforce, policy 1; certificate for mx1.dest.example",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: certificate-not-trusted",
				"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: certificate-not-trusted",
				"dest.example: sts dest.example (5), mx2.dest.example 192.0.2.2 as me.example: success"}},

		// REQUIRETLS.
		{name: "REQUIRETLS by DANE", zone: signed(dnstest.Zone{at1: {ee("self")}}), require: true, cert: "self", mx1: []string{polTLS}, tls: "mx1.dest.example mx1.dest.example",
			policy:  "REQUIRETLS, DANE: 1 usable TLSA record at _25._tcp.mx1.dest.example; the certificate need not name the host",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "REQUIRETLS by an authority, nothing usable in DANE", zone: signed(dnstest.Zone{at1: {unusable}}), require: true, cert: "self", mx1: []string{polFail}, mx2: []string{polTLS},
			tls: "mx2.dest.example mx2.dest.example", policy: "REQUIRETLS, DANE: 1 TLSA record at _25._tcp.mx1.dest.example, none usable; certificate for mx1.dest.example (no MTA-STS)",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: certificate-not-trusted",
				"dest.example: no-policy-found dest.example, mx2.dest.example 192.0.2.2 as me.example: success"}},
		{name: "REQUIRETLS by MTA-STS", zone: plain(nil), sts: sts(mtasts.ModeEnforce, both...), require: true, cert: "good", mx1: []string{polTLS}, tls: "mx1.dest.example mx1.dest.example",
			policy:  "REQUIRETLS, MTA-STS: enforce, policy 1; certificate for mx1.dest.example (no DANE: the mail exchangers are not secured by DNSSEC)",
			reports: []string{"dest.example: sts dest.example (5), mx1.dest.example 192.0.2.1 as me.example: success"}},
		{name: "REQUIRETLS, MTA-STS does not list the host", zone: plain(nil), sts: sts(mtasts.ModeEnforce, "mx9.dest.example"), require: true, want: "451 4.7.5",
			reports: []string{"dest.example: sts dest.example (4), mx1.dest.example: validation-failure", "dest.example: sts dest.example (4), mx2.dest.example: validation-failure"}},
		{name: "REQUIRETLS, MTA-STS is only tested", zone: plain(nil), sts: sts(mtasts.ModeTesting, both...), require: true, want: "550 5.7.10"},
		{name: "REQUIRETLS, no policy", zone: plain(nil), require: true, want: "550 5.7.10"},
		{name: "REQUIRETLS, the policy cannot be fetched", zone: plain(nil), problem: fetch, require: true, want: "451 4.7.5",
			reports: []string{"dest.example: sts dest.example: sts-policy-fetch-error"}},
		{name: "REQUIRETLS, not offered", zone: signed(dnstest.Zone{at1: {ee("self")}, at2: {dnstest.Bogus}}), require: true, cert: "self",
			mx1: []string{polOffer + "TLS\nC: EHLO out.sender.example\nS: 250 me.example\nC: QUIT\nCLOSE"}, want: "451 4.7.5",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: success", "dest.example: tlsa mx2.dest.example, mx2.dest.example: dnssec-invalid"}},
		{name: "REQUIRETLS and Override", zone: signed(dnstest.Zone{at1: {ee("self")}}), rule: TLSRule{Override: true}, require: true, cert: "good", mx1: []string{polTLS},
			tls: "mx1.dest.example mx1.dest.example", policy: "REQUIRETLS, verify: certificate for mx1.dest.example"},

		// A message that is to be delivered in spite of it all.
		{name: "a report, DANE fails", zone: signed(dnstest.Zone{at1: {ee("good")}}), report: true, cert: "self", mx1: []string{polTLS}, tls: " mx1.dest.example", policy: "opportunistic"},
		{name: "a report, MTA-STS fails", zone: plain(nil), sts: sts(mtasts.ModeEnforce, "mx9.dest.example"), report: true, mx1: []string{polClear}, tls: "clear"},
		{name: "a report, but the local rule stays", zone: plain(nil), rule: TLSRule{Level: TLSEncrypt}, report: true, mx1: []string{polNone}, mx2: []string{polNone}, want: "451 4.7.4"},
		{name: "a report with REQUIRETLS", zone: plain(nil), report: true, require: true, want: "550 5.7.10"},

		{name: "TLS-Required: No, DANE fails", zone: signed(dnstest.Zone{at1: {ee("good")}}), no: true, cert: "self", mx1: []string{polTLS}, tls: " mx1.dest.example", policy: "opportunistic"},
		{name: "TLS-Required: No, DANE bogus, no TLS", zone: signed(dnstest.Zone{at1: {dnstest.Bogus}}), no: true, mx1: []string{polClear}, tls: "clear", policy: "opportunistic"},
		{name: "TLS-Required: No, MTA-STS fails, the handshake too", zone: plain(nil), sts: sts(mtasts.ModeEnforce, "mx9.dest.example"), no: true, mx1: []string{polJunk, polAgain}, tls: "clear"},
		{name: "TLS-Required: No, but the local rule stays", zone: plain(nil), rule: TLSRule{Level: TLSVerify}, no: true, cert: "self", mx1: []string{polFail}, mx2: []string{polTLS}, tls: "mx2.dest.example mx2.dest.example"},
		{name: "TLS-Required: No is weaker than REQUIRETLS", zone: signed(dnstest.Zone{at1: {ee("good")}, at2: {dnstest.Bogus}}), no: true, require: true, cert: "self", mx1: []string{polFail}, want: "451 4.7.5",
			reports: []string{"dest.example: tlsa mx1.dest.example (1), mx1.dest.example 192.0.2.1 as me.example: tlsa-invalid",
				"dest.example: tlsa mx2.dest.example, mx2.dest.example: dnssec-invalid"}},

		// No policy at all.
		{name: "opportunistic, the handshake fails", zone: plain(nil), mx1: []string{polJunk, polAgain}, tls: "clear",
			reports: []string{"dest.example: no-policy-found dest.example, mx1.dest.example 192.0.2.1 as me.example: validation-failure"}},
		{name: "opportunistic, offered and refused", zone: plain(nil), mx1: []string{polHello + "S: 250-me.example\nS: 250 STARTTLS\nC: STARTTLS\nS: 454 no\n" + polMail}, tls: "clear",
			reports: []string{"dest.example: no-policy-found dest.example, mx1.dest.example 192.0.2.1: starttls-not-supported"}},
		{name: "local rule", zone: plain(nil), rule: TLSRule{Level: TLSVerify, Roots: good.pool}, cert: "self", mx1: []string{polFail}, mx2: []string{polTLS}, tls: "mx2.dest.example mx2.dest.example",
			policy: "local rule, verify: certificate for mx1.dest.example from an authority of the rule (no DANE: the mail exchangers are not secured by DNSSEC, no MTA-STS)",
			reports: []string{"dest.example: no-policy-found dest.example, mx1.dest.example 192.0.2.1 as me.example: certificate-not-trusted",
				"dest.example: no-policy-found dest.example, mx2.dest.example 192.0.2.2 as me.example: success"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.certs = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
					if h.ServerName == "mx2.dest.example" {
						return certs["mx2"], nil
					}
					return certs[tt.cert], nil
				}}
				content := "x\r\n"
				if tt.no {
					content = "TLS-Required: No\r\n\r\nx\r\n"
				}
				for ip, scripts := range map[string][]string{"192.0.2.1": tt.mx1, "192.0.2.2": tt.mx2} {
					for _, s := range scripts {
						if tt.no {
							s = strings.Replace(s, "C: x\n", "C: TLS-Required: No\nC: \nC: x\n", 1)
						}
						n.scripts[ip] = append(n.scripts[ip], script(s))
					}
				}
				env := envelope(t, "ann@sender.example", "bob@dest.example")
				env.RequireTLS = tt.require
				if tt.report {
					env.Meta = map[string]string{"tlsrpt": "1"}
				}
				told := &sessions{}
				r := n.relay()
				r.Resolver = tt.zone
				r.TLSConfig = &tls.Config{RootCAs: good.pool}
				r.TLSPolicy = TLSPolicyFunc(func(context.Context, string) (TLSRule, error) { return tt.rule, nil })
				r.MTASTS = &stsMap{policies: map[string]mtasts.Policy{"dest.example": tt.sts}, problems: map[string]error{"dest.example": tt.problem}}
				r.TLSReports = told
				if tt.edit != nil {
					tt.edit(r)
				}
				a := &attempt{}
				err := r.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent(content))
				n.done()
				wantStatus(t, tt.name, mailspine.ErrorAt(err, 0), tt.want)
				if got := a.receipts[0].TLS; tt.want == "" {
					how := got.Peer + " " + got.ServerID
					if got.Version == "" {
						how = "clear"
					}
					if how != tt.tls {
						t.Errorf("TLS is %q, want %q", how, tt.tls)
					}
				}
				if !slices.Equal(told.lines, tt.reports) {
					t.Errorf("reports\n\t%s\nwant\n\t%s", strings.Join(told.lines, "\n\t"), strings.Join(tt.reports, "\n\t"))
				}
				// What Explain tells about the first host.
				if tt.policy != "" {
					x := r.transfer(t.Context(), env, nil, contentFacts{tlsOptional: tt.no}, "dest.example", nil)
					x.find(t.Context())
					if d, _ := x.decision(t.Context(), x.hosts[0]); d.String() != tt.policy {
						t.Errorf("the decision is\n\t%s, want\n\t%s", d, tt.policy)
					}
				}
			})
		})
	}
}
