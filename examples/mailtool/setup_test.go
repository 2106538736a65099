package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func tool(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s", name, got)
	}
}

func TestSetupGolden(t *testing.T) {
	for name, args := range map[string][]string{
		"plain.zone": {"example.org"},
		"all.zone": {"-ip", "192.0.2.25", "-ip", "2001:db8::25", "-hostname", "mx1.example.org", "-mx", "mx1.example.org", "-mx", "30:mx2.example.net",
			"-dmarc", "reject", "-rua", "dmarc@example.org", "-bimi", "https://example.org/logo.svg", "-bimi-evidence", "https://example.org/logo.pem",
			"-mta-sts", "enforce", "-tlsrpt", "https://example.org/tls", "-imap", "mx1.example.org:143", "-pop3s", "off", "Bücher.example"},
	} {
		code, out, errs := tool(t, append([]string{"setup"}, args...)...)
		if code != exitOK || errs != "" {
			t.Errorf("%s: exit %d: %s", name, code, errs)
		}
		golden(t, name, out)
	}
}

// full is a complete set of records of example.org, its flags, and the zone in a file.
func full(t *testing.T) (flags []string, zone string) {
	key := filepath.Join(t.TempDir(), "dkim.pem")
	flags = []string{"-ip", "192.0.2.25", "-ip", "2001:db8::25", "-dmarc", "quarantine", "-bimi", "https://example.org/logo.svg", "example.org"}
	code, out, errs := tool(t, append([]string{"setup", "-dkim-new", key}, flags...)...)
	if code != exitOK {
		t.Fatal(errs)
	}
	if fi, err := os.Stat(key); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v, %v", fi.Mode(), err)
	}
	if code, _, errs := tool(t, append([]string{"setup", "-dkim-new", key}, flags...)...); code != exitUsage || !strings.Contains(errs, "-dkim-new") {
		t.Errorf("an existing key is made again: exit %d: %s", code, errs)
	}
	return append([]string{"setup", "-dkim-key", key}, flags...), out
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "zone")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
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
func TestSetupRoundTrip(t *testing.T) {
	flags, zone := full(t)
	code, out, errs := tool(t, append(flags, "-json", "-zone", writeFile(t, zone))...)
	if code != exitOK {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	for _, f := range findings(t, out) {
		if f.Status != "ok" || f.Purpose == "" || len(f.Values) == 0 {
			t.Errorf("%+v", f)
		}
	}
	code, out, _ = tool(t, append(flags, "-zone", writeFile(t, zone))...)
	if code != exitOK || !strings.Contains(out, "18 ok, 0 missing, 0 different") {
		t.Errorf("exit %d: %s", code, out)
	}
}

// Each fault in a zone is found, at its record, and said.
func TestSetupFaults(t *testing.T) {
	flags, zone := full(t)
	line := func(name, typ, value string) string { return name + ".\tIN\t" + typ + "\t" + value + "\n" }
	for _, tt := range []struct {
		what, old, new       string
		at, status, problems string
		code                 int
	}{
		{"no MX", "MX\t10 mail.example.org.", "TXT\tgone", "example.org MX", "missing", "web server", 1},
		{"null MX", "10 mail.example.org.", "0 .", "example.org MX", "differs", "null MX", 1},
		{"MX elsewhere", "10 mail.example.org.", "10 mail.example.org.\n" + line("example.org", "MX", "5 mx.evil.example.") + line("mx.evil.example", "A", "192.0.2.66"), "example.org MX", "differs", "instead of", 1},
		{"MX is an alias", "10 mail.example.org.", "10 alias.example.org.\n" + line("alias.example.org", "CNAME", "mail.example.org."), "example.org MX", "differs", "CNAME", 1},
		{"MX without address", "10 mail.example.org.", "10 void.example.org.", "example.org MX", "differs", "no address", 1},
		{"MX with another number", "10 mail.example.org.", "77 mail.example.org.", "example.org MX", "ok", "", 0},
		{"wrong A", "A\t192.0.2.25", "A\t192.0.2.26", "mail.example.org A", "differs", "not confirmed", 1},
		{"PTR of the provider", "PTR\tmail.example.org.", "PTR\tcustomer7.provider.example.", "25.2.0.192.in-addr.arpa PTR", "differs", "another name", 0},
		{"SPF without our address", "ip4:192.0.2.25", "ip4:192.0.2.99", "example.org TXT", "differs", "192.0.2.25 gets the result fail", 1},
		{"SPF for everybody", "ip6:2001:db8::25 -all", "ip6:2001:db8::25 +all", "example.org TXT", "differs", "everybody", 1},
		{"SPF spelt otherwise", "v=spf1 ip4:192.0.2.25 ip6:2001:db8::25 -all", "v=spf1 mx ~all", "example.org TXT", "ok", "", 0},
		{"two SPF records", `"v=spf1 ip4`, "\"v=spf1 -all\"\n" + `example.org. IN TXT "v=spf1 ip4`, "example.org TXT", "differs", "more than one", 1},
		{"SPF loops", "ip4:192.0.2.25 ip6:2001:db8::25 -all", "redirect=example.org", "example.org TXT", "differs", "permerror", 1},
		{"broken DKIM", `"v=DKIM1; k=rsa; p=`, `"v=DKIM1; k=rsa; p=!`, "mail._domainkey.example.org TXT", "differs", "cannot read", 1},
		{"another DKIM key", "", "", "", "", "", 0}, // below
		{"revoked DKIM key", "mail._domainkey.example.org.\tIN\tTXT\t", "mail._domainkey.example.org.\tIN\tTXT\t\"v=DKIM1; p=\" ;", "mail._domainkey.example.org TXT", "differs", "revoked", 1},
		{"DKIM test mode", `"v=DKIM1; k=rsa;`, `"v=DKIM1; t=y; k=rsa;`, "mail._domainkey.example.org TXT", "differs", "test", 1},
		{"weak DMARC", "p=quarantine", "p=none", "_dmarc.example.org TXT", "differs", "weaker", 1},
		{"strong DMARC", "p=quarantine", "p=reject", "_dmarc.example.org TXT", "ok", "", 0},
		{"DMARC to nobody", "; rua=mailto:postmaster@example.org", "", "_dmarc.example.org TXT", "differs", "reports do not go", 1},
		{"no DMARC", "_dmarc.example.org", "dmarc.example.org", "_dmarc.example.org TXT", "missing", "forge", 1},
		{"another indicator", "logo.svg", "other.svg", "default._bimi.example.org TXT", "differs", "which is not", 1},
		{"bad id of MTA-STS", "v=STSv1; id=", "v=STSv1; id=-", "_mta-sts.example.org TXT", "differs", "letters and digits", 0},
		{"no TLS reports", "TLSRPTv1", "TLSRPTv2", "_smtp._tls.example.org TXT", "missing", "unnoticed", 0},
		{"SRV elsewhere", "0 1 993 mail.example.org.", "0 1 993 imap.evil.example.", "_imaps._tcp.example.org SRV", "differs", "mail programs", 0},
		{"SRV offers what is off", "_pop3._tcp.example.org.\tIN\tSRV\t0 0 0 .", "_pop3._tcp.example.org.\tIN\tSRV\t0 0 110 mail.example.org.", "_pop3._tcp.example.org SRV", "differs", "off", 0},
	} {
		if tt.at == "" {
			continue
		}
		if !strings.Contains(zone, tt.old) {
			t.Fatalf("%s: %q is not in the zone", tt.what, tt.old)
		}
		file := writeFile(t, strings.Replace(zone, tt.old, tt.new, 1))
		code, out, errs := tool(t, append(slices.Clone(flags), "-json", "-zone", file)...)
		if code != tt.code {
			t.Errorf("%s: exit %d instead of %d: %s", tt.what, code, tt.code, errs)
		}
		if code == exitUsage {
			continue
		}
		for _, f := range findings(t, out) {
			if f.Name+" "+f.Type == tt.at {
				if f.Status != tt.status || !strings.Contains(f.Problem, tt.problems) {
					t.Errorf("%s: %+v", tt.what, f)
				}
			} else if f.Status != "ok" && !strings.Contains(tt.what, "A") {
				t.Errorf("%s: also %s %s: %s", tt.what, f.Name, f.Type, f.Problem)
			}
		}
	}
	other := filepath.Join(t.TempDir(), "other.pem")
	i := slices.Index(flags, "-dkim-key")
	wrong := slices.Concat(flags[:i], []string{"-dkim-new", other}, flags[i+2:], []string{"-zone", writeFile(t, zone)})
	if code, out, _ := tool(t, wrong...); code != exitProblem || !strings.Contains(out, "another key is published") {
		t.Errorf("another DKIM key: exit %d: %s", code, out)
	}
}

// The network is asked, and a name server that fails is not taken for one that has nothing.
func TestSetupNetwork(t *testing.T) {
	s, err := dnstest.Start(dnstest.Zone{
		"example.org":                 {dnstest.MX(10, "mail.example.org"), dnstest.TXT("v=spf1 ip4:192.0.2.25 -all"), dnstest.TXT("something else")},
		"mail.example.org":            {dnstest.A("192.0.2.25"), dnstest.TXT("v=spf1 a -all")},
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
		"example.org MX": "ok", "example.org TXT": "ok", "mail.example.org A": "ok", "25.2.0.192.in-addr.arpa PTR": "ok", "mail.example.org TXT": "ok",
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

func TestUsage(t *testing.T) {
	bad := writeFile(t, "example.org. IN MX mail\n")
	none := filepath.Join(t.TempDir(), "none")
	for _, tt := range []struct{ want, args string }{
		{"usage", ""},
		{`"nothing"`, "nothing"},
		{"domain is missing", "setup"},
		{"more than one domain", "setup a.example b.example"},
		{"domain:", "setup localhost"},
		{"domain:", "setup exa%mple.org"},
		{"domain:", "setup [192.0.2.1]"},
		{"-ip", "setup -ip 192.0.2 example.org"},
		{"-ip", "setup -ip 192.0.2.1 -ip ::ffff:192.0.2.1 example.org"},
		{"-hostname", "setup -hostname mail example.org"},
		{"-mx", "setup -mx 70000:mail.example.org example.org"},
		{"-selector", "setup -selector a..b example.org"},
		{"-dkim-key", "setup -dkim-key " + none + " example.org"},
		{"-dkim-key", "setup -dkim-key " + bad + " example.org"},
		{"exclude", "setup -dkim-key x -dkim-new y example.org"},
		{"exclude", "setup -zone x -dns 192.0.2.1 example.org"},
		{"-dmarc", "setup -dmarc strict example.org"},
		{"-rua", "setup -rua nobody example.org"},
		{"-rua", "setup -rua a,b@example.org example.org"},
		{"-tlsrpt", "setup -tlsrpt http://example.org/ example.org"},
		{"-bimi:", "setup -bimi http://example.org/l.svg -dmarc reject example.org"},
		{"-bimi:", "setup -bimi https://example.org/l.svg example.org"},
		{"-bimi-evidence", "setup -bimi-evidence https://example.org/l.pem example.org"},
		{"-mta-sts", "setup -mta-sts on example.org"},
		{"-imaps", "setup -imaps mail.example.org example.org"},
		{"-imaps", "setup -imaps mail.example.org:0 example.org"},
		{"-dns", "setup -dns ns.example.org example.org"},
		{"-zone", "setup -zone " + none + " example.org"},
		{"-zone", "setup -zone " + bad + " example.org"},
	} {
		code, out, errs := tool(t, strings.Fields(tt.args)...)
		if code != exitUsage || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%s: exit %d: %s%s", tt.args, code, out, errs)
		}
	}
	for _, args := range [][]string{{"help"}, {"setup", "-h"}} {
		if code, out, errs := tool(t, args...); code != exitOK || !strings.Contains(out+errs, "usage") {
			t.Errorf("%v: exit %d", args, code)
		}
	}
}
