package main

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// full is a complete set of records of example.org: its flags, and the zone.
func full(t *testing.T) (flags []string, zone string) {
	t.Helper()
	flags = []string{"setup", "-dkim-key", writeFile(t, testKey(t, 1)), "-ip", "192.0.2.25", "-ip", "2001:db8::25",
		"-dmarc-policy", "quarantine", "-bimi", "https://example.org/logo.svg", "-tls-cert", writeFile(t, testCert(t, 3)), "-tls-next-cert", "mail.example.org=" + writeFile(t, testCert(t, 4)), "example.org"}
	code, out, errs := tool(t, flags...)
	if code != exitOK {
		t.Fatal(errs)
	}
	return flags, out + "mta-sts.example.org. IN CNAME mail.example.org.\n"
}

// A finding is what programs read.
type finding struct {
	Name, Type, Purpose, Status, Problem string
	Values, Found                        []string
	Optional                             bool
}

func findings(t *testing.T, out string) (f []finding) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return f
}

// What is printed is what the check wants.
func TestCheckRoundTrip(t *testing.T) {
	flags, zone := full(t)
	code, out, errs := tool(t, append(flags, "-json", "-zone", writeFile(t, zone))...)
	if code != exitOK {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	for _, f := range findings(t, out) {
		if f.Status != "ok" || f.Problem != "" || f.Purpose == "" || len(f.Found) == 0 {
			t.Errorf("%+v", f)
		}
	}
	code, out, _ = tool(t, append(flags, "-zone", writeFile(t, zone))...)
	if code != exitOK || !strings.Contains(out, "20 ok, 0 missing, 0 different, 0 could not") {
		t.Errorf("exit %d: %s", code, out)
	}
}

// Each fault in a zone is found, at its record, and said.
func TestCheckFaults(t *testing.T) {
	flags, zone := full(t)
	const (
		mx, spf, dkim, dmarc = "example.org MX", "example.org TXT", "mail._domainkey.example.org TXT", "_dmarc.example.org TXT"
		tlsa                 = "_25._tcp.mail.example.org TLSA"
		bimi, sts, tls       = "default._bimi.example.org TXT", "_mta-sts.example.org TXT", "_smtp._tls.example.org TXT"
		key                  = "mail._domainkey.example.org.\tIN\tTXT\t"
	)
	line := func(name, typ, value string) string { return name + ".\tIN\t" + typ + "\t" + value + "\n" }
	for _, tt := range []struct {
		what, old, new      string
		at, status, problem string
		code                int
		also                string // other records that are not well for the same reason
	}{
		{"no MX", "MX\t10 mail.example.org.", "TXT\tgone", mx, "missing", "web server", 1, ""},
		{"null MX", "10 mail.example.org.", "0 .", mx, "differs", "null MX", 1, ""},
		{"MX elsewhere", "10 mail.example.org.", "10 mail.example.org.\n" + line("example.org", "MX", "5 mx.evil.example.") + line("mx.evil.example", "A", "192.0.2.66"), mx, "differs", "mail goes to mx.evil.example", 1, ""},
		{"MX is an alias", "10 mail.example.org.", "10 alias.example.org.\n" + line("alias.example.org", "CNAME", "mail.example.org."), mx, "differs", "CNAME", 1, ""},
		{"MX without address", "10 mail.example.org.", "10 void.example.org.", mx, "differs", "no address", 1, ""},
		{"MX is an address", "10 mail.example.org.", "10 192.0.2.25.", mx, "differs", "mail goes to 192.0.2.25 instead", 1, ""},
		{"MX with another number", "10 mail.example.org.", "77 Mail.Example.org.", mx, "ok", "", 0, ""},
		{"no A", "mail.example.org.\tIN\tA\t192.0.2.25", "; gone", "mail.example.org A", "missing", "nobody finds", 1, "mail.example.org TXT"},
		{"wrong A", "A\t192.0.2.25", "A\t192.0.2.26", "mail.example.org A", "differs", "not confirmed", 1, "mail.example.org TXT"},
		{"PTR of the provider", "PTR\tmail.example.org.", "PTR\tcustomer7.provider.example.", "25.2.0.192.in-addr.arpa PTR", "differs", "another name", 0, ""},
		{"no PTR, but that is elsewhere", "25.2.0.192.in-addr.arpa.", "26.2.0.192.in-addr.arpa.", "25.2.0.192.in-addr.arpa PTR", "error", "not in the zone of the file", 0, ""},
		{"no SPF", `"v=spf1 ip4`, `"v=spf2 ip4`, spf, "missing", "forged", 1, ""},
		{"SPF without our address", "ip4:192.0.2.25", "ip4:192.0.2.99", spf, "differs", "192.0.2.25 gets the result fail", 1, ""},
		{"SPF for everybody", "ip6:2001:db8::25 -all", "ip6:2001:db8::25 +all", spf, "differs", "everybody", 1, ""},
		{"SPF spelt otherwise", "v=spf1 ip4:192.0.2.25 ip6:2001:db8::25 -all", "v=spf1 mx ~all", spf, "ok", "", 0, ""},
		{"SPF in two strings", "v=spf1 ip4:192.0.2.25 ip6:2001:db8::25 -all", `v=spf1 ip4:192.0.2" ".25 ip6:2001:db8::25 -all`, spf, "ok", "", 0, ""},
		{"two SPF records", `"v=spf1 ip4`, "\"v=spf1 -all\"\n" + `example.org. IN TXT "v=spf1 ip4`, spf, "differs", "more than one", 1, ""},
		{"SPF loops", "ip4:192.0.2.25 ip6:2001:db8::25 -all", "redirect=example.org", spf, "differs", "permerror", 1, ""},
		{"SPF of somebody else", "ip4:192.0.2.25 ip6:2001:db8::25 -all", "include:_spf.provider.example -all", spf, "error", "could not be evaluated", 1, ""},
		{"SPF of nobody", "ip4:192.0.2.25 ip6:2001:db8::25 -all", "include:_spf.example.org -all", spf, "differs", "permerror", 1, ""},
		{"no DKIM", key, "x" + key, dkim, "missing", "cannot be verified", 1, ""},
		{"broken DKIM", `k=ed25519; p=`, `k=ed25519; p=!`, dkim, "differs", "cannot read", 1, ""},
		{"revoked DKIM key", key, key + "\"v=DKIM1; p=\" ;", dkim, "differs", "revoked", 1, ""},
		{"two DKIM keys", key, key + "\"v=DKIM1; p=\"\n" + key, dkim, "differs", "more than one", 1, ""},
		{"DKIM test mode", `k=ed25519;`, `t=y; k=ed25519;`, dkim, "differs", "test", 1, ""},
		{"short DKIM key", key, key + `"v=DKIM1; p=` + rsa512 + "\" ;", dkim, "differs", "512 bits", 1, ""},
		{"DKIM spelt otherwise", `"v=DKIM1; k=ed25519;`, `"k = ed25519 ; n=note;`, dkim, "ok", "", 0, ""},
		{"weak DMARC", "p=quarantine", "p=none", dmarc, "differs", "the policy is none, weaker than quarantine", 1, bimi},
		{"DMARC without a policy", "p=quarantine; ", "", dmarc, "differs", "the policy is missing or misspelt", 1, bimi},
		{"weak DMARC for subdomains", "p=quarantine", "p=quarantine; sp=none", dmarc, "differs", "subdomains is none", 1, bimi},
		{"weak DMARC for what does not exist", "p=quarantine", "p=quarantine; np=none", dmarc, "differs", "do not exist is none", 1, ""},
		{"DMARC test", "p=quarantine", "p=quarantine; t=y", dmarc, "differs", "only a test", 1, bimi},
		{"DMARC in part", "p=quarantine", "p=quarantine; pct=20", dmarc, "differs", "pct=20", 1, bimi},
		{"strong DMARC", "p=quarantine", "p=reject", dmarc, "ok", "", 0, ""},
		{"DMARC spelt otherwise", `"v=DMARC1; p=quarantine; rua=mailto:postmaster@example.org"`, `"v = DMARC1;p=Quarantine;" "rua=mailto:x@example.net,mailto:postmaster@example.org!10m;pct=100"`, dmarc, "ok", "", 0, ""},
		{"DMARC to nobody", "; rua=mailto:postmaster@example.org", "", dmarc, "differs", "reports do not go", 1, ""},
		{"no DMARC", "_dmarc.example.org", "dmarc.example.org", dmarc, "missing", "forge", 1, bimi},
		{"misspelt DMARC", `"v=DMARC1; p=quar`, `"v=dmarc1; p=quar`, dmarc, "differs", "for no DMARC record", 1, bimi},
		{"two DMARC records", `_dmarc.example.org.	IN	TXT	`, "_dmarc.example.org. IN TXT \"v=DMARC1; p=reject\"\n_dmarc.example.org. IN TXT ", dmarc, "differs", "more than one", 1, bimi},
		{"another indicator", "logo.svg", "other.svg", bimi, "differs", "other.svg, which is not", 1, ""},
		{"evidence that was not given", "logo.svg", "logo.svg; a=https://example.org/x.pem", bimi, "differs", "the evidence is", 1, ""},
		{"declined indicator", "l=https://example.org/logo.svg", "l=; a=;", bimi, "differs", "declines", 1, ""},
		{"broken indicator", "l=https://", "l=http://", bimi, "differs", "l=: not a https URI", 1, ""},
		{"two indicators", `"v=BIMI1; l`, "\"v=BIMI1; l=\"\ndefault._bimi.example.org. IN TXT \"v=BIMI1; l", bimi, "differs", "more than one", 1, ""},
		{"misspelt indicator", `"v=BIMI1; l`, `"v=bimi1; l`, bimi, "differs", "not a BIMI record", 1, ""},
		{"bad id of MTA-STS", "v=STSv1; id=", "v=STSv1; id=-", sts, "differs", "letters and digits", 0, ""},
		{"misspelt MTA-STS", "v=STSv1; id=", "v=stsv1; id=", sts, "differs", "does not begin with v=STSv1", 0, ""},
		{"two of MTA-STS", `"v=STSv1`, "\"v=STSv1; id=1\"\n_mta-sts.example.org. IN TXT \"v=STSv1", sts, "differs", "more than one", 0, ""},
		{"no policy host", "mta-sts.example.org. IN CNAME", "mta.example.org. IN CNAME", "mta-sts.example.org A", "missing", "fetch the policy", 0, ""},
		{"policy host with IPv6 only", "mta-sts.example.org. IN CNAME mail.example.org.", "mta-sts.example.org. IN AAAA 2001:db8::80", "mta-sts.example.org A", "ok", "", 0, ""},
		{"no TLS reports", "TLSRPTv1", "TLSRPTv2", tls, "missing", "unnoticed", 0, ""},
		{"TLS reports elsewhere", "TLSRPTv1; rua=mailto:", "TLSRPTv1; rua=mailto:x-", tls, "differs", "do not go to", 0, ""},
		{"TLS reports for others too", "TLSRPTv1; rua=", "TLSRPTv1; rua=https://r.example/ , ", tls, "ok", "", 0, ""},
		{"misspelt TLS reports", "TLSRPTv1;", "tlsrptv1;", tls, "differs", "does not begin with v=TLSRPTv1", 0, ""},
		{"TLS reports nowhere", "TLSRPTv1; rua=mailto:postmaster@example.org", "TLSRPTv1; x=y", tls, "differs", "cannot be read", 0, ""},
		{"TLSA that is none", "TLSA\t3 1 1 ", "TLSA\t3 1 2 ", tlsa, "differs", "no use to senders", 1, ""},
		{"TLSA of another key", tlsaLine(t, 3), tlsaLine(t, 5), tlsa, "differs", "senders with DANE hold their mail back", 1, ""},
		{"TLSA of the next key only", tlsaLine(t, 3), "", tlsa, "differs", "senders with DANE hold their mail back", 1, ""},
		{"no TLSA at all", tlsaLine(t, 3) + tlsaLine(t, 4), "", tlsa, "missing", "senders believe whoever", 1, ""},
		{"no TLSA for the next key", tlsaLine(t, 4), "", tlsa, "differs", "for the next certificate", 1, ""},
		{"TLSA of PKIX", "TLSA\t3 1 1", "TLSA\t1 1 1", tlsa, "differs", "no use to senders", 1, ""},
		{"TLSA spelt otherwise", tlsaLine(t, 4), strings.ToUpper(tlsaLine(t, 4)), tlsa, "ok", "", 0, ""},
		{"SRV elsewhere", "0 1 993 mail.example.org.", "0 1 993 imap.evil.example.", "_imaps._tcp.example.org SRV", "differs", "mail programs", 0, ""},
		{"SRV with another port", "0 1 993 mail.example.org.", "0 1 143 mail.example.org.", "_imaps._tcp.example.org SRV", "differs", "not sent to mail.example.org:993", 0, ""},
		{"SRV with another weight", "0 1 993 mail.example.org.", "9 9 993 mail.example.org.", "_imaps._tcp.example.org SRV", "ok", "", 0, ""},
		{"SRV offers what is off", "0 0 0 .", "0 0 143 mail.example.org.", "_imap._tcp.example.org SRV", "differs", "off", 0, ""},
		{"SRV of what is off is not there", "_imap._tcp.example.org.", "_x._tcp.example.org.", "_imap._tcp.example.org SRV", "ok", "", 0, ""},
	} {
		t.Run(tt.what, func(t *testing.T) {
			if !strings.Contains(zone, tt.old) {
				t.Fatalf("%q is not in the zone", tt.old)
			}
			file := writeFile(t, strings.Replace(zone, tt.old, tt.new, 1))
			code, out, errs := tool(t, append(slices.Clone(flags), "-json", "-zone", file)...)
			if code != tt.code {
				t.Fatalf("exit %d instead of %d: %s", code, tt.code, errs)
			}
			found := false
			for _, f := range findings(t, out) {
				switch at := f.Name + " " + f.Type; {
				case at == tt.at:
					found = true
					if f.Status != tt.status || !strings.Contains(f.Problem, tt.problem) || (f.Problem == "") != (f.Status == "ok") {
						t.Errorf("%+v", f)
					}
				case (f.Status == "ok") != (at != tt.also):
					t.Errorf("also %s: %s: %s", at, f.Status, f.Problem)
				}
			}
			if !found {
				t.Errorf("nothing is said of %s", tt.at)
			}
		})
	}
}

// rsa512 is a key that is too short.
const rsa512 = "MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAJm3fcUfBTt0Zb7iGJc8LXRvr0dtvGdwJt9ijwKvLQ2TA5RWZ9iHnmb1zDkNG0Fz2sRbNlRGGF8LzWZ6Wc2ER4MCAwEAAQ=="

func TestCheckKeys(t *testing.T) {
	flags, zone := full(t)
	file := writeFile(t, zone)
	i := slices.Index(flags, "-dkim-key")
	rest := slices.Concat(flags[:i], flags[i+2:], []string{"-zone", file})
	for _, tt := range []struct {
		what string
		args []string
		code int
		want string
	}{
		{"another", []string{"-dkim-key", writeFile(t, testKey(t, 2))}, exitProblem, "another key is published"},
		{"new", []string{"-dkim-new", filepath.Join(t.TempDir(), "new.pem")}, exitProblem, "another key is published"},
		{"none given", nil, exitOK, "0 missing, 0 different"},
		{"a second one", []string{"-dkim-key", flags[i+1], "-dkim-key", "next=" + writeFile(t, testKey(t, 2))}, exitProblem, "missing    TXT   next._domainkey.example.org"},
	} {
		if code, out, errs := tool(t, slices.Concat(rest[:1], tt.args, rest[1:])...); code != tt.code || !strings.Contains(out, tt.want) {
			t.Errorf("%s: exit %d: %s%s", tt.what, code, out, errs)
		}
	}
}

// A zone file says nothing about names outside of its zone, and the zone may be larger than the domain.
func TestCheckZone(t *testing.T) {
	const records = `
$ORIGIN example.org.
$TTL 300
@     SOA ns hostmaster 1 2 3 4 300
@     TXT "v=spf1 -all"
sub   MX 10 mail.sub
sub   MX 20 mx.elsewhere.example.
sub   TXT "v=spf1 ip4:192.0.2.25 -all"
_dmarc TXT "v=DMARC1; p=reject; sp=quarantine"
mail.sub A 192.0.2.25
mail._domainkey.sub TXT "v=DKIM1; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=; k=ed25519"
`
	args := []string{"setup", "-json", "-ip", "192.0.2.25", "-zone", writeFile(t, records), "-mx", "mail.sub.example.org", "-mx", "mx.elsewhere.example", "-rua", "r@reports.example", "sub.example.org"}
	code, out, errs := tool(t, append(args, "-dmarc-policy", "quarantine")...)
	if code != exitOK {
		t.Errorf("exit %d: %s", code, errs)
	}
	want := map[string]string{
		"sub.example.org MX": "ok", "sub.example.org TXT": "ok", "mail.sub.example.org A": "ok", "mail._domainkey.sub.example.org TXT": "ok",
		"_dmarc.sub.example.org TXT": "ok", "sub.example.org._report._dmarc.reports.example TXT": "error", "25.2.0.192.in-addr.arpa PTR": "error",
		"mail.sub.example.org TXT": "missing", "_imaps._tcp.sub.example.org SRV": "missing",
	}
	for _, f := range findings(t, out) {
		at := f.Name + " " + f.Type
		if w, ok := want[at]; ok && w != f.Status {
			t.Errorf("%+v", f)
		}
		delete(want, at)
		if f.Name == "_dmarc.sub.example.org" && !slices.Equal(f.Found, []string{"inherited from _dmarc.example.org: quarantine"}) {
			t.Errorf("%q", f.Found)
		}
	}
	if len(want) > 0 {
		t.Errorf("nothing is said of %v", want)
	}
	// What is inherited is weaker than reject.
	code, out, _ = tool(t, append(args, "-dmarc-policy", "reject")...)
	for _, f := range findings(t, out) {
		if f.Name == "_dmarc.sub.example.org" && (code != exitProblem || f.Status != "missing") {
			t.Errorf("exit %d: %+v", code, f)
		}
	}
}

// The network is asked, and a name server that fails is not taken for one that has nothing.
func TestCheckNetwork(t *testing.T) {
	s, err := dnstest.Start(dnstest.Zone{
		"example.org":                 {dnstest.MX(10, "mail.example.org"), dnstest.TXT("v=spf1 ip4:192.0.2.25 -all"), dnstest.TXT("something else")},
		"mail.example.org":            {dnstest.A("192.0.2.25"), dnstest.TXT("v=spf1 include:down.example -all")},
		"down.example":                {dnstest.ServFail},
		"_dmarc.example.org":          {dnstest.ServFail},
		"25.2.0.192.in-addr.arpa":     {dnstest.PTR("mail.example.org")},
		"mail._domainkey.example.org": {dnstest.TXT("v=DKIM1; p=\x1b[31m")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	code, out, errs := tool(t, "setup", "-dns", s.Addr(), "-ip", "192.0.2.25", "example.org", "-json")
	if code != exitProblem {
		t.Errorf("exit %d: %s", code, errs)
	}
	want := map[string]string{
		"example.org MX": "ok", "example.org TXT": "ok", "mail.example.org A": "ok", "25.2.0.192.in-addr.arpa PTR": "ok", "mail.example.org TXT": "error",
		"_dmarc.example.org TXT": "error", "mail._domainkey.example.org TXT": "differs", "_imap._tcp.example.org SRV": "ok", "_imaps._tcp.example.org SRV": "missing",
	}
	for _, f := range findings(t, out) {
		if w, ok := want[f.Name+" "+f.Type]; ok && w != f.Status {
			t.Errorf("%+v", f)
		}
	}
	code, out, _ = tool(t, "setup", "-dns", s.Addr(), "-ip", "192.0.2.25", "example.org")
	if code != exitProblem || strings.Contains(out, "\x1b") {
		t.Errorf("exit %d, %q", code, out)
	}
}
