package mta

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mailspine/mailspine"
)

func TestRelayTLS(t *testing.T) {
	good, other := newCA(t), newCA(t)
	const ehlo = "S: 220 hi\nC: EHLO out.sender.example\n"
	const offer = ehlo + "S: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\n"
	const mail = "C: MAIL FROM:<ann@sender.example>\nS: 250 ok\nC: RCPT TO:<bob@dest.example>\nS: 250 ok\nC: DATA\nS: 354 ok\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye\n"
	const clear = ehlo + "S: 250 hi\n" + mail
	const secure = offer + "TLS\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 REQUIRETLS\n" + mail
	verify := TLSRules{"dest.example": {Level: TLSVerify}}
	for _, tt := range []struct {
		name    string
		certs   *tls.Config
		policy  TLSPolicy
		require bool
		secure  bool // the MX answer is authentic
		scripts []string
		want    string
		peer    string // the name that was verified
		noTLS   bool
	}{
		{name: "opportunistic, verified", certs: good.server(t, "mx1.dest.example"), scripts: []string{secure}, peer: "mx1.dest.example"},
		{name: "opportunistic, wrong certificate", certs: other.server(t, "nobody.example"), scripts: []string{secure}},
		{name: "opportunistic, not offered", scripts: []string{clear}, noTLS: true},
		{name: "opportunistic, handshake fails: again in clear", scripts: []string{
			offer + "JUNK this is no TLS\nCLOSE", ehlo + "S: 250-hi\nS: 250 STARTTLS\n" + mail}, noTLS: true},
		{name: "opportunistic, data injected before TLS: again in clear", certs: good.server(t, "mx1.dest.example"), scripts: []string{
			ehlo + "S: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\n" + `S> 220 go\r\n250 injected\r\n` + "\nCLOSE", ehlo + "S: 250-hi\nS: 250 STARTTLS\n" + mail}, noTLS: true},
		{name: "encrypt, any certificate", certs: other.server(t, "nobody.example"), policy: TLSRules{"": {Level: TLSEncrypt}}, scripts: []string{secure}},
		{name: "encrypt, not offered", policy: TLSRules{"": {Level: TLSEncrypt}}, scripts: []string{ehlo + "S: 250 hi\nC: QUIT\nCLOSE"}, want: "451 4.7.4"},
		{name: "encrypt, offered and refused", policy: TLSRules{"": {Level: TLSEncrypt}}, scripts: []string{
			ehlo + "S: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 454 no\nC: QUIT\nCLOSE"}, want: "451 4.7.4"},
		{name: "encrypt, HELO only", policy: TLSRules{"": {Level: TLSEncrypt}}, scripts: []string{
			ehlo + "S: 502 no\nC: HELO out.sender.example\nS: 250 hi\nC: QUIT\nCLOSE"}, want: "451 4.7.4"},
		{name: "encrypt, handshake fails: never in clear", policy: TLSRules{"": {Level: TLSEncrypt}}, scripts: []string{
			offer + "JUNK this is no TLS\nCLOSE"}, want: "451 4.7.5"},
		{name: "encrypt, data injected before TLS", policy: TLSRules{"": {Level: TLSEncrypt}}, certs: good.server(t, "mx1.dest.example"), scripts: []string{
			ehlo + "S: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\n" + `S> 220 go\r\n250 injected\r\n` + "\nCLOSE"}, want: "451 4.7.5"},
		{name: "verify", certs: good.server(t, "mx1.dest.example"), policy: verify, scripts: []string{secure}, peer: "mx1.dest.example"},
		{name: "verify, wrong name", certs: good.server(t, "mx1.other.example"), policy: verify, scripts: []string{offer + "TLSFAIL"}, want: "451 4.7.5"},
		{name: "verify, unknown authority", certs: other.server(t, "mx1.dest.example"), policy: verify, scripts: []string{offer + "TLSFAIL"}, want: "451 4.7.5"},
		{name: "verify, a name of the rule", certs: good.server(t, "mail.example"),
			policy: TLSRules{"dest.example": {Level: TLSVerify, Names: []string{"dest.example", "mail.example"}}}, scripts: []string{secure}, peer: "mail.example"},
		{name: "verify, the host's own name is not in the rule", certs: good.server(t, "mx1.dest.example"),
			policy: TLSRules{"dest.example": {Level: TLSVerify, Names: []string{"mail.example"}}}, scripts: []string{offer + "TLSFAIL"}, want: "451 4.7.5"},
		{name: "verify, roots of the rule", certs: other.server(t, "mx1.dest.example"),
			policy: TLSRules{"dest.example": {Level: TLSVerify, Roots: other.pool}}, scripts: []string{secure}, peer: "mx1.dest.example"},
		{name: "host that the rule does not allow", policy: TLSRules{"dest.example": {Level: TLSVerify, Hosts: []string{"mx2.dest.example", "*.mx1.dest.example"}}}, want: "451 4.7.5"},
		{name: "the policy cannot be found out", policy: TLSPolicyFunc(func(context.Context, string) (TLSRule, error) { return TLSRule{}, errors.New("no network") }), want: "451 4.7.5"},
		{name: "REQUIRETLS, authentic MX", certs: good.server(t, "mx1.dest.example"), require: true, secure: true, peer: "mx1.dest.example",
			scripts: []string{strings.Replace(secure, "<ann@sender.example>", "<ann@sender.example> REQUIRETLS", 1)}},
		{name: "REQUIRETLS, MX not authentic", require: true, want: "550 5.7.10"},
		{name: "REQUIRETLS, no TLS", require: true, secure: true, scripts: []string{ehlo + "S: 250 hi\nC: QUIT\nCLOSE"}, want: "550 5.7.10"},
		{name: "REQUIRETLS, not offered", certs: good.server(t, "mx1.dest.example"), require: true, secure: true,
			scripts: []string{offer + "TLS\nC: EHLO out.sender.example\nS: 250 hi\nC: QUIT\nCLOSE"}, want: "550 5.7.30"},
		{name: "REQUIRETLS, wrong certificate", certs: other.server(t, "mx1.dest.example"), require: true, secure: true,
			scripts: []string{offer + "TLSFAIL"}, want: "451 4.7.5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1")
				if tt.secure {
					n.zone["dest.example MX"] = mailspine.Answer{MX: n.zone["dest.example MX"].([]mailspine.MX), Authentic: true}
				}
				n.certs = tt.certs
				for _, s := range tt.scripts {
					n.scripts["192.0.2.1"] = append(n.scripts["192.0.2.1"], script(s))
				}
				env := envelope(t, "ann@sender.example", "bob@dest.example")
				env.RequireTLS = tt.require
				r := n.relay()
				r.TLSConfig = &tls.Config{RootCAs: good.pool, InsecureSkipVerify: true, ServerName: "ignored.example"}
				r.TLSPolicy = tt.policy
				a := &attempt{}
				err := r.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent("x\r\n"))
				n.done()
				wantStatus(t, tt.name, mailspine.ErrorAt(err, 0), tt.want)
				got := a.receipts[0].TLS
				if tt.want == "" && (got.Version == "") != tt.noTLS {
					t.Errorf("the receipt says TLS %+v", got)
				}
				if tt.want == "" && got.Peer != tt.peer {
					t.Errorf("verified for %q, want %q", got.Peer, tt.peer)
				}
			})
		})
	}
}

// The certificate of an address literal is for the address, whatever the literal's form.
func TestRelayTLSLiteral(t *testing.T) {
	ca := newCA(t)
	for domain, ip := range map[string]string{"[192.0.2.1]": "192.0.2.1", "[IPv6:2001:db8::1]": "2001:db8::1"} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			n.certs = ca.server(t, ip)
			n.scripts[ip] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\nTLS\n" +
				"C: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 550 5.7.0 no\nC: QUIT\nS: 221 bye\n"}
			r := n.relay()
			r.TLSConfig = &tls.Config{RootCAs: ca.pool, ServerName: "ignored.example"}
			r.TLSPolicy = TLSRules{"": {Level: TLSVerify}}
			a := &attempt{}
			err := r.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@"+domain), mailspine.StringContent("x\r\n"))
			n.done()
			wantStatus(t, domain, mailspine.ErrorAt(err, 0), "550 5.7.0")
			if got := a.receipts[0].TLS; got.Peer != ip || got.ServerID != "" {
				t.Errorf("%s: %+v", domain, got)
			}
		})
	}
}

func TestTLSRules(t *testing.T) {
	rules := TLSRules{"example.org": {Level: TLSVerify}, ".example.org": {Level: TLSEncrypt}, ".a.example.org": {Level: TLSOpportunistic}}
	for domain, want := range map[string]TLSLevel{
		"example.org": TLSVerify, "b.example.org": TLSEncrypt, "x.a.example.org": TLSOpportunistic, "a.example.org": TLSEncrypt,
		"example.net": TLSOpportunistic, "badexample.org": TLSOpportunistic,
	} {
		got, err := rules.TLSRule(t.Context(), domain)
		if err != nil || got.Level != want {
			t.Errorf("%s: %v, %v; want %v", domain, got.Level, err, want)
		}
	}
}

func TestTLSRuleHosts(t *testing.T) {
	r := TLSRule{Hosts: []string{"MX.example.org", "*.example.net"}}
	for host, want := range map[string]bool{
		"mx.example.org": true, "a.example.net": true, "a.b.example.net": false, "example.net": false, ".example.net": false,
		"mx.example.org.evil.example": false, "xmx.example.org": false,
	} {
		if got := r.allows(host); got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
}
