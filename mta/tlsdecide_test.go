package mta

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/auth/tlsrpt"
)

// Whatever a domain publishes and the operator demands: the level is never below what either has in force, and a host that must not be
// used is not.
func TestTLSDecisionProperties(t *testing.T) {
	ee := dnstest.TLSA(3, 1, 1, make([]byte, 32))
	unusable := dnstest.TLSA(0, 0, 1, make([]byte, 32))
	const at = "_25._tcp.mx1.dest.example"
	rapid.Check(t, func(t *rapid.T) {
		records := rapid.SampledFrom([]string{"none", "usable", "unusable", "mixed", "bogus", "failing", "not signed"}).Draw(t, "records")
		secure := rapid.Bool().Draw(t, "secure")
		mode := rapid.SampledFrom([]mtasts.Mode{"", mtasts.ModeNone, mtasts.ModeTesting, mtasts.ModeEnforce}).Draw(t, "mode")
		listed := rapid.Bool().Draw(t, "listed")
		problem := rapid.Bool().Draw(t, "problem")
		rule := TLSRule{
			Level: TLSLevel(rapid.IntRange(0, 2).Draw(t, "level")), Override: rapid.Bool().Draw(t, "override"),
			Names: rapid.SampledFrom([][]string{nil, {"mail.example"}}).Draw(t, "names"),
		}
		require, optional := rapid.Bool().Draw(t, "require"), rapid.Bool().Draw(t, "optional")
		noDANE, noSTS := rapid.Bool().Draw(t, "noDANE"), rapid.Bool().Draw(t, "noSTS")

		zone := dnstest.Zone{"dest.example": {dnstest.MX(10, "mx1.dest.example")}, "mx1.dest.example": {dnstest.A("192.0.2.1")}}
		if secure {
			zone["dest.example"] = append(zone["dest.example"], dnstest.Signed)
		}
		switch records {
		case "usable":
			zone[at] = []dnstest.Record{ee}
		case "unusable":
			zone[at] = []dnstest.Record{unusable}
		case "mixed":
			zone[at] = []dnstest.Record{unusable, ee}
		case "bogus":
			zone[at] = []dnstest.Record{dnstest.Bogus}
		case "failing":
			zone[at] = []dnstest.Record{dnstest.ServFail}
		case "not signed":
			zone[at] = []dnstest.Record{dnstest.Unsigned, ee}
		}
		m := &stsMap{policies: map[string]mtasts.Policy{}, problems: map[string]error{}}
		if mode != "" {
			m.policies["dest.example"] = mtasts.Policy{ID: "1", Mode: mode, MX: []string{map[bool]string{true: "*", false: "*.not"}[listed] + ".dest.example"}}
		}
		if problem {
			m.problems["dest.example"] = &mtasts.Error{Kind: mtasts.KindFetch, Domain: "dest.example", Err: errors.New("503")}
		}
		r := &Relay{Resolver: zone, NoDANE: noDANE, TLSPolicy: TLSPolicyFunc(func(context.Context, string) (TLSRule, error) { return rule, nil })}
		if !noSTS {
			r.MTASTS = m
		}
		env := &mailspine.Envelope{RequireTLS: require}
		x := r.transfer(context.Background(), env, nil, contentFacts{tlsOptional: optional}, "dest.example", nil)
		x.find(context.Background())
		var d tlsDecision
		err := x.failed
		if err == nil {
			d, err = x.decision(context.Background(), x.hosts[0])
		}

		theirs := !rule.Override && (!optional || require)
		ourDANE, ourSTS := theirs && secure && !noDANE, theirs && !noSTS
		usable := ourDANE && (records == "usable" || records == "mixed")
		enforce := ourSTS && mode == mtasts.ModeEnforce && !usable
		lost := ourDANE && (records == "bogus" || records == "failing")
		named := secure || rule.Names != nil || enforce && listed
		switch want := lost || enforce && !listed || require && !named; {
		case want && err == nil:
			t.Fatalf("the host may be used: %v", d)
		case !want && err != nil:
			t.Fatalf("the host may not be used: %v", err)
		case err != nil:
			// Only what is certain and stays so bounces.
			st := mailspine.Status(err)
			if st.Temporary() == (require && !lost && !(enforce && !listed) && !(problem && ourSTS)) {
				t.Fatalf("%v", err)
			}
			return
		}
		least := rule.Level
		if require || usable || enforce {
			least = TLSVerify
		} else if ourDANE && records == "unusable" {
			least = max(least, TLSEncrypt)
		}
		if d.rule.Level != least {
			t.Fatalf("the level is %v, want %v: %v", d.rule.Level, least, d)
		}
		if d.byDANE() != usable || d.bySTS() != enforce {
			t.Fatalf("by DANE: %v, want %v; by MTA-STS: %v, want %v", d.byDANE(), usable, d.bySTS(), enforce)
		}
		if own := rule.Level == TLSVerify || require; least == TLSVerify && (d.rule.Names != nil) != (own && rule.Names != nil) {
			t.Fatalf("the names are %v", d.rule.Names)
		}
		if (d.fingerprint() == "") != (!usable && !enforce && !(ourDANE && records == "unusable")) {
			t.Fatalf("the fingerprint is %q", d.fingerprint())
		}
		if s := d.String(); s == "" || strings.ContainsAny(s, "\r\n") {
			t.Fatalf("%q", s)
		}
	})
}

// Decisions that demand different things have different fingerprints, and the order of records is no difference.
func TestTLSFingerprint(t *testing.T) {
	rec := func(usage uint8, b byte) mailspine.TLSA {
		return mailspine.TLSA{Usage: usage, Selector: 1, MatchingType: 1, Data: bytes.Repeat([]byte{b}, 32)}
	}
	d := func(base string, names []string, recs ...mailspine.TLSA) tlsDecision {
		return tlsDecision{recs: dane.Records{Base: base, All: recs, Usable: recs}, names: names}
	}
	sts := func(id string, m mtasts.Mode) tlsDecision { return tlsDecision{sts: mtasts.Policy{ID: id, Mode: m}} }
	a := d("mx.example", []string{"mx.example", "example"}, rec(3, 1), rec(2, 2))
	if b := d("mx.example", []string{"mx.example", "example"}, rec(2, 2), rec(3, 1)); a.fingerprint() != b.fingerprint() {
		t.Error("the order of records makes a difference")
	}
	if sts("1", mtasts.ModeTesting).fingerprint() != (tlsDecision{}).fingerprint() {
		t.Error("a policy that is tested makes a difference")
	}
	seen := map[string]int{}
	for i, x := range []tlsDecision{
		{}, a, d("mx.example", []string{"mx.example", "example"}, rec(3, 1)), d("mx.example", []string{"mx.example"}, rec(3, 1), rec(2, 2)),
		d("other.example", []string{"mx.example", "example"}, rec(3, 1), rec(2, 2)), d("mx.example", []string{"mx.example", "example"}, rec(3, 1), rec(2, 3)),
		sts("1", mtasts.ModeEnforce), sts("2", mtasts.ModeEnforce),
	} {
		f := x.fingerprint()
		if j, ok := seen[f]; ok {
			t.Errorf("decisions %d and %d are the same", i, j)
		}
		seen[f] = i
	}
}

// A connection that was opened under other records is not used, and one that is used again is no session of its own.
func TestTLSPolicyReuse(t *testing.T) {
	ca := newCA(t)
	first, second := ca.issue(t, time.Unix(1<<33, 0), "nobody.example"), ca.issue(t, time.Unix(1<<33, 0), "nobody.example")
	const mail = "C: MAIL FROM:<ann@sender.example>\nS: 250 ok\nC: RCPT TO:<bob@dest.example>\nS: 250 ok\nC: DATA\nS: 354 ok\nC: x\nC: .\nS: 250 ok\n"
	const tls13 = polOffer + "TLS\nC: EHLO out.sender.example\nS: 250 hi\n"
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		served := first
		n.certs = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return served, nil }}
		n.scripts["192.0.2.1"] = []script{tls13 + mail + mail + bye, tls13 + mail + bye}
		zone := func(c ...dnstest.Record) dnstest.Zone {
			return dnstest.Zone{"dest.example": {dnstest.Signed, dnstest.MX(10, "mx1.dest.example")}, "mx1.dest.example": {dnstest.A("192.0.2.1")},
				"_25._tcp.mx1.dest.example": c}
		}
		now := zone(tlsa(t, first, 3, 1, 1), tlsa(t, second, 3, 1, 1))
		told := &sessions{}
		var policies []string
		r := n.relay()
		r.IdleTimeout = 0
		r.Resolver = mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			return now.Lookup(ctx, name, typ)
		})
		r.TLSReports = told
		r.Trace = &RelayTrace{TLS: func(_ context.Context, i TLSDoneInfo) { policies = append(policies, i.Policy+" "+i.Level.String()) }}
		bob(t, r, "")
		now = zone(tlsa(t, second, 3, 1, 1), tlsa(t, first, 3, 1, 1)) // another order
		bob(t, r, "")
		now, served = zone(tlsa(t, second, 3, 1, 1)), second
		bob(t, r, "")
		r.CloseIdle()
		n.done()
		if want := []string{"dane verify", "dane verify"}; !slices.Equal(policies, want) {
			t.Errorf("handshakes %q, want %q", policies, want)
		}
		if len(told.lines) != 2 {
			t.Errorf("reports of %d sessions:\n%s", len(told.lines), strings.Join(told.lines, "\n"))
		}
	})
}

// Domains with the same mail exchangers share a transaction only if they publish the same, and each gets its own report.
func TestTLSPolicySites(t *testing.T) {
	ca := newCA(t)
	enforce := mtasts.Policy{ID: "1", Mode: mtasts.ModeEnforce, MX: []string{"mx.host.example"}}
	testing1 := mtasts.Policy{ID: "1", Mode: mtasts.ModeTesting, MX: []string{"mx.host.example"}}
	problem := &mtasts.Error{Kind: mtasts.KindFetch, Domain: "b.example", Err: errors.New("404")}
	for _, tt := range []struct {
		name     string
		signed   bool
		policies map[string]mtasts.Policy
		problems map[string]error
		mails    int // transactions
		reports  []string
	}{
		{name: "none at all", mails: 1, reports: []string{
			"a.example: no-policy-found a.example, mx.host.example 192.0.2.1 as me.example: success",
			"b.example: no-policy-found b.example, mx.host.example 192.0.2.1 as me.example: success"}},
		{name: "the same", policies: map[string]mtasts.Policy{"a.example": enforce, "b.example": enforce}, mails: 1, reports: []string{
			"a.example: sts a.example (4), mx.host.example 192.0.2.1 as me.example: success",
			"b.example: sts b.example (4), mx.host.example 192.0.2.1 as me.example: success"}},
		{name: "one of them", policies: map[string]mtasts.Policy{"b.example": enforce}, mails: 2, reports: []string{
			"a.example: no-policy-found a.example, mx.host.example 192.0.2.1 as me.example: success",
			"b.example: sts b.example (4), mx.host.example 192.0.2.1 as me.example: success"}},
		{name: "two of them", policies: map[string]mtasts.Policy{"a.example": testing1, "b.example": enforce}, mails: 2, reports: []string{
			"a.example: sts a.example (4), mx.host.example 192.0.2.1 as me.example: success",
			"b.example: sts b.example (4), mx.host.example 192.0.2.1 as me.example: success"}},
		{name: "another version", policies: map[string]mtasts.Policy{"a.example": enforce, "b.example": {ID: "2", Mode: enforce.Mode, MX: enforce.MX}}, mails: 2, reports: []string{
			"a.example: sts a.example (4), mx.host.example 192.0.2.1 as me.example: success",
			"b.example: sts b.example (4), mx.host.example 192.0.2.1 as me.example: success"}},
		{name: "DANE, where the certificate may be for the domain", signed: true, mails: 2, reports: []string{
			"a.example: tlsa mx.host.example (1), mx.host.example 192.0.2.1 as me.example: success",
			"b.example: tlsa mx.host.example (1), mx.host.example 192.0.2.1 as me.example: success"}},
		{name: "one cannot be had", problems: map[string]error{"b.example": problem}, mails: 2, reports: []string{
			"a.example: no-policy-found a.example, mx.host.example 192.0.2.1 as me.example: success",
			"b.example: no-policy-found b.example, mx.host.example 192.0.2.1 as me.example: success",
			"b.example: sts b.example: sts-policy-fetch-error"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.certs = ca.server(t, "mx.host.example")
				rcpts := [][]string{{"a.example", "b.example"}}
				if tt.mails == 2 {
					rcpts = [][]string{{"a.example"}, {"b.example"}}
				}
				for _, domains := range rcpts {
					s := polOffer + "TLS\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n"
					for _, d := range domains {
						s += "C: RCPT TO:<bob@" + d + ">\nS: 250 ok\n"
					}
					n.scripts["192.0.2.1"] = append(n.scripts["192.0.2.1"], script(s+"C: DATA\nS: 354 ok\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye\n"))
				}
				told := &sessions{}
				r := n.relay()
				zone := dnstest.Zone{"a.example": {dnstest.MX(10, "mx.host.example")}, "b.example": {dnstest.MX(10, "mx.host.example")},
					"mx.host.example": {dnstest.A("192.0.2.1")}, "_25._tcp.mx.host.example": {tlsa(t, n.certs, 3, 1, 1)}}
				if tt.signed {
					zone["example"] = []dnstest.Record{dnstest.Signed}
				}
				r.Resolver = zone
				r.TLSConfig = &tls.Config{RootCAs: ca.pool}
				r.MTASTS = &stsMap{policies: tt.policies, problems: tt.problems}
				r.TLSReports = told
				err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@a.example", "bob@b.example"), mailspine.StringContent("x\r\n"))
				n.done()
				if err != nil {
					t.Error(err)
				}
				slices.Sort(told.lines)
				if !slices.Equal(told.lines, tt.reports) {
					t.Errorf("reports\n\t%s\nwant\n\t%s", strings.Join(told.lines, "\n\t"), strings.Join(tt.reports, "\n\t"))
				}
			})
		})
	}
}

// A Smarthost's name may have TLSA records, at its port; nobody gets a report of it, and it has no MTA-STS policy.
func TestTLSPolicySmarthost(t *testing.T) {
	ca := newCA(t)
	cert := ca.issue(t, time.Unix(1<<33, 0), "nobody.example")
	for _, tt := range []struct {
		name, address string
		zone          dnstest.Zone
		rule          TLSRule
		script        string
		want, peer    string
	}{
		{name: "records", address: "smart.example:587", zone: dnstest.Zone{"smart.example": {dnstest.Signed, dnstest.A("192.0.2.1")},
			"_587._tcp.smart.example": {tlsa(t, cert, 3, 1, 1)}}, script: polTLS, peer: "smart.example"},
		{name: "of another port", address: "smart.example:587", zone: dnstest.Zone{"smart.example": {dnstest.Signed, dnstest.A("192.0.2.1")},
			"_25._tcp.smart.example": {dnstest.TLSA(3, 1, 1, make([]byte, 32))}}, script: polTLS},
		{name: "another certificate", address: "smart.example:587", zone: dnstest.Zone{"smart.example": {dnstest.Signed, dnstest.A("192.0.2.1")},
			"_587._tcp.smart.example": {dnstest.TLSA(3, 1, 1, make([]byte, 32))}}, script: polFail, want: "451 4.7.5"},
		{name: "bogus", address: "smart.example:587", zone: dnstest.Zone{"smart.example": {dnstest.Signed, dnstest.A("192.0.2.1")},
			"_587._tcp.smart.example": {dnstest.Bogus}}, want: "451 4.7.5"},
		{name: "Override", address: "smart.example:587", zone: dnstest.Zone{"smart.example": {dnstest.Signed, dnstest.A("192.0.2.1")},
			"_587._tcp.smart.example": {dnstest.Bogus}}, rule: TLSRule{Override: true}, script: polTLS},
		{name: "not signed", address: "smart.example:587", zone: dnstest.Zone{"smart.example": {dnstest.A("192.0.2.1")},
			"_587._tcp.smart.example": {dnstest.TLSA(3, 1, 1, make([]byte, 32))}}, script: polTLS},
		{name: "an address", address: "192.0.2.1:587", zone: dnstest.Zone{}, script: polTLS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.certs = cert
				if tt.script != "" {
					n.scripts["192.0.2.1"] = []script{script(tt.script)}
				}
				told, sts := &sessions{}, &stsMap{}
				r := n.relay()
				r.Resolver, r.MTASTS, r.TLSReports = tt.zone, sts, told
				r.TLSPolicy = TLSRules{"smart.example": tt.rule}
				a := &attempt{}
				err := (&Smarthost{Relay: r, Address: tt.address}).Deliver(mailspine.WithAttempt(t.Context(), a),
					envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
				n.done()
				wantStatus(t, tt.name, mailspine.ErrorAt(err, 0), tt.want)
				if got := a.receipts[0].TLS.Peer; tt.want == "" && got != tt.peer {
					t.Errorf("verified for %q, want %q", got, tt.peer)
				}
				if len(told.lines) > 0 || len(sts.asked) > 0 {
					t.Errorf("reports %q, and policies of %q were asked for", told.lines, sts.asked)
				}
			})
		})
	}
}

// An address literal has neither policy nor report.
func TestTLSPolicyLiteral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.scripts["192.0.2.1"] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 550 5.7.0 no\nC: QUIT\nS: 221 bye\n"}
		told, sts := &sessions{}, &stsMap{}
		r := n.relay()
		r.MTASTS, r.TLSReports = sts, told
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@[192.0.2.1]"), mailspine.StringContent("x\r\n"))
		n.done()
		wantStatus(t, "literal", mailspine.ErrorAt(err, 0), "550 5.7.0")
		if len(told.lines) > 0 || len(sts.asked) > 0 {
			t.Errorf("reports %q, and policies of %q were asked for", told.lines, sts.asked)
		}
	})
}

// MTA-STS wants TLS 1.2, whatever the configuration allows (RFC 8461 section 4.2).
func TestTLSPolicyVersion(t *testing.T) {
	ca := newCA(t)
	for mode, want := range map[mtasts.Mode]string{mtasts.ModeEnforce: "451 4.7.5", mtasts.ModeTesting: ""} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			n.certs = ca.server(t, "mx1.dest.example")
			n.certs.MinVersion, n.certs.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			n.scripts["192.0.2.1"] = []script{polOffer + "TLSFAIL"}
			if want == "" {
				n.scripts["192.0.2.1"] = []script{polTLS}
			}
			told := &sessions{}
			r := n.relay()
			r.Resolver = dnstest.Zone{"dest.example": {dnstest.MX(10, "mx1.dest.example")}, "mx1.dest.example": {dnstest.A("192.0.2.1")}}
			r.TLSConfig = &tls.Config{RootCAs: ca.pool, MinVersion: tls.VersionTLS10}
			r.MTASTS = &stsMap{policies: map[string]mtasts.Policy{"dest.example": {ID: "1", Mode: mode, MX: []string{"mx1.dest.example"}}}}
			r.TLSReports = told
			err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
			n.wg.Wait() // the server's handshake fails too
			wantStatus(t, string(mode), mailspine.ErrorAt(err, 0), want)
			if lines := []string{"dest.example: sts dest.example (4), mx1.dest.example 192.0.2.1 as me.example: validation-failure"}; !slices.Equal(told.lines, lines) {
				t.Errorf("%s: reports %q", mode, told.lines)
			}
		})
	}
}

// When the time is over, that says nothing about the host.
func TestTLSReportsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		told := &sessions{}
		zone := dnstest.Zone{"dest.example": {dnstest.Signed, dnstest.MX(10, "mx1.dest.example")}, "mx1.dest.example": {dnstest.A("192.0.2.1")}}
		r := newNetwork(t).relay()
		r.Resolver = mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			if typ == mailspine.TypeTLSA {
				cancel()
				return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: typ, Kind: mailspine.ErrDNSTemporary, Err: ctx.Err()}
			}
			return zone.Lookup(ctx, name, typ)
		})
		r.TLSReports = told
		err := r.Deliver(ctx, envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
		wantStatus(t, "bob", mailspine.ErrorAt(err, 0), "451 4.3.2")
		if len(told.lines) > 0 {
			t.Errorf("reports %q", told.lines)
		}
	})
}

// A Recorder that fails is logged, once for each session, and stops nothing.
func TestTLSReportsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.scripts["192.0.2.1"] = []script{open + one + bye}
		var log bytes.Buffer
		r := n.relay()
		r.TLSReports = &sessions{fail: errors.New("no room")}
		r.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
		bob(t, r, "")
		n.done()
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "no room") {
			t.Errorf("logged: %s", got)
		}
	})
}

// A breach of a policy is told to the operator at warning level, with the reason that no peer hears; what is only tested is not.
func TestTLSPolicyLog(t *testing.T) {
	ca := newCA(t)
	enforce := mtasts.Policy{ID: "1", Mode: mtasts.ModeEnforce, MX: []string{"mx1.dest.example"}}
	for _, tt := range []struct {
		name   string
		signed bool
		at     dnstest.Record
		sts    mtasts.Policy
		script string
		want   []string // in the one line; nil: there is none
	}{
		{name: "bogus", signed: true, at: dnstest.Bogus, want: []string{"must not be used", "peer=mx1.dest.example", "domain=dest.example", "DNSSEC"}},
		{name: "not listed", at: dnstest.Unsigned, sts: mtasts.Policy{ID: "1", Mode: mtasts.ModeEnforce, MX: []string{"mx9.dest.example"}}, want: []string{"must not be used", "MTA-STS"}},
		{name: "DANE", signed: true, at: dnstest.TLSA(3, 1, 1, make([]byte, 32)), script: polFail, want: []string{"session failed", "dane: no record matches"}},
		{name: "MTA-STS", at: dnstest.Unsigned, sts: enforce, script: polFail, want: []string{"session failed", "x509"}},
		{name: "tested", at: dnstest.Unsigned, sts: mtasts.Policy{ID: "1", Mode: mtasts.ModeTesting, MX: []string{"mx9.dest.example"}}, script: polTLS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.certs = ca.server(t, "nobody.example")
				if tt.script != "" {
					n.scripts["192.0.2.1"] = []script{script(tt.script)}
				}
				zone := dnstest.Zone{"dest.example": {dnstest.MX(10, "mx1.dest.example")}, "mx1.dest.example": {dnstest.A("192.0.2.1")}, "_25._tcp.mx1.dest.example": {tt.at}}
				if tt.signed {
					zone["dest.example"] = append(zone["dest.example"], dnstest.Signed)
				}
				var log bytes.Buffer
				r := n.relay()
				r.Resolver, r.MTASTS = zone, &stsMap{policies: map[string]mtasts.Policy{"dest.example": tt.sts}}
				r.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
				err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
				n.done()
				if st := mailspine.Status(err); st != nil && (strings.Contains(st.Message, "x509") || strings.Contains(st.Message, "dane:")) {
					t.Errorf("the sender is told %q", st.Message)
				}
				if lines := strings.Count(log.String(), "\n"); lines != min(len(tt.want), 1) {
					t.Errorf("%d lines:\n%s", lines, log.String())
				}
				for _, w := range tt.want {
					if !strings.Contains(log.String(), w) {
						t.Errorf("no %q in %s", w, log.String())
					}
				}
			})
		})
	}
}

// What a report says of a failure: addresses, names and reasons.
func TestTLSReportDetails(t *testing.T) {
	good, other := newCA(t), newCA(t)
	var got []tlsrpt.Session
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.certs = other.server(t, "mx1.dest.example")
		n.scripts["192.0.2.1"] = []script{polFail}
		r := n.relay()
		r.Resolver = dnstest.Zone{"dest.example": {dnstest.MX(10, "mx1.dest.example")}, "mx1.dest.example": {dnstest.A("192.0.2.1")}}
		r.TLSConfig = &tls.Config{RootCAs: good.pool}
		r.MTASTS = &stsMap{policies: map[string]mtasts.Policy{"dest.example": {ID: "1", Mode: mtasts.ModeEnforce, MX: []string{"*.dest.example"}, MaxAge: time.Hour}}}
		r.TLSReports = tlsrpt.RecorderFunc(func(_ context.Context, s tlsrpt.Session) error { got = append(got, s); return nil })
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
		n.done()
		wantStatus(t, "bob", mailspine.ErrorAt(err, 0), "451 4.7.5")
	})
	if len(got) != 1 {
		t.Fatalf("%d sessions", len(got))
	}
	s := got[0]
	text := fmt.Sprintf("%s|%s|%s|%s|%s|%s|%s|%s|%s|%s", s.Domain, s.Policy.Type, s.Policy.Domain, strings.Join(s.Policy.Strings, ";"), strings.Join(s.Policy.MXHosts, ";"),
		s.Result, s.ReceivingIP, s.ReceivingMX, s.ReceivingMXHelo, s.Reason)
	want := "dest.example|sts|dest.example|version: STSv1;mode: enforce;mx: *.dest.example;max_age: 3600|*.dest.example|" +
		"certificate-not-trusted|192.0.2.1|mx1.dest.example|me.example|x509: certificate signed by unknown authority"
	if !strings.HasPrefix(text, want) { // package x509 may say more
		t.Errorf("the session is\n\t%s, want\n\t%s", text, want)
	}
}
