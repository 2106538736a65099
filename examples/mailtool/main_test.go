package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

func tool(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
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

func writeFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Wrong usage is exit code 2, with nothing on the standard output and the flag's name in the error.
func TestUsage(t *testing.T) {
	bad := writeFile(t, "example.org. IN MX mail\n")
	cname := writeFile(t, "www IN CNAME a.example.org.\nwww IN TXT x\n")
	include := writeFile(t, "$INCLUDE "+bad+"\n")
	none := filepath.Join(t.TempDir(), "none")
	key, cert := writeFile(t, testKey(t, 1)), writeFile(t, testCert(t, 1))
	const logo = "https://example.org/l.svg"
	for _, tt := range []struct{ want, args string }{
		{"usage", ""},
		{`"nothing"`, "nothing"},
		{"domain is missing", "setup"},
		{"more than one domain", "setup a.example b.example"},
		{"not defined: -colour", "setup -colour example.org"},
		{"needs an argument: -ip", "setup example.org -ip"},
		{"domain:", "setup localhost"},
		{"domain:", "setup exa%mple.org"},
		{"domain:", "setup [192.0.2.1]"},
		{"domain:", "setup " + strings.Repeat("a", 64) + ".example"},
		{"-ip", "setup -ip 192.0.2 example.org"},
		{"-ip", "setup -ip fe80::1%eth0 example.org"},
		{"-ip", "setup -ip 192.0.2.1 -ip ::ffff:192.0.2.1 example.org"},
		{"-hostname", "setup -hostname mail example.org"},
		{"-mx", "setup -mx 70000:mail.example.org example.org"},
		{"-mx", "setup -mx 192.0.2.1. -mx [::1] example.org"},
		{"-selector", "setup -selector a..b example.org"},
		{"-dkim-key", "setup -dkim-key " + none + " example.org"},
		{"-dkim-key", "setup -dkim-key " + bad + " example.org"},
		{"-dkim-key", "setup -dkim-key a..b=" + key + " example.org"},
		{"two keys for the selector mail", "setup -dkim-key " + key + " -dkim-key MAIL=" + key + " example.org"},
		{"two keys for the selector mail", "setup -dkim-key " + key + " -dkim-new " + none + " example.org"},
		{"-dkim-new", "setup -dkim-new " + key + " example.org"},
		{"exclude", "setup -zone x -dns 192.0.2.1 example.org"},
		{"-dmarc-policy", "setup -dmarc-policy strict example.org"},
		{"-rua", "setup -rua nobody example.org"},
		{"-rua", "setup -rua a,b@example.org example.org"},
		{"-tlsrpt", "setup -tlsrpt http://example.org/ example.org"},
		{"-tlsrpt", "setup -tlsrpt https://a;b/ example.org"},
		{"-bimi:", "setup -bimi http://example.org/l.svg -dmarc-policy reject example.org"},
		{"-bimi:", "setup -bimi https://example.org/l.png -dmarc-policy reject example.org"},
		{"-bimi:", "setup -bimi https://example.org/l.svg;a=b -dmarc-policy reject example.org"},
		{"-bimi: no indicator is shown", "setup -bimi " + logo + " example.org"},
		{"-bimi-evidence:", "setup -bimi " + logo + " -bimi-evidence http://example.org/l.pem -dmarc-policy reject example.org"},
		{"-bimi-evidence:", "setup -bimi-evidence https://example.org/l.pem example.org"},
		{"-mta-sts", "setup -mta-sts on example.org"},
		{"-tls-cert", "setup -tls-cert " + none + " example.org"},
		{"no certificate (PEM)", "setup -tls-cert " + key + " example.org"},
		{"mx.example.net is no MX host", "setup -tls-cert mx.example.net=" + cert + " example.org"},
		{"-tls-cert", "setup -tls-cert [::1]=" + cert + " example.org"},
		{"there are two for all hosts", "setup -tls-cert " + cert + " -tls-cert " + cert + " example.org"},
		{"-tls-next-cert: needs -tls-cert", "setup -tls-next-cert " + cert + " example.org"},
		{"-trust: needs -dns", "setup -trust -check example.org"},
		{"-zone and -fetch exclude", "setup -zone x -fetch example.org"},
		{"-ca", "setup -fetch -ca " + bad + " example.org"},
		{"-allow", "setup -fetch -allow 10.0.0.1 example.org"},
		{"-port", "setup -fetch -port 0 example.org"},
		{"-https-port", "setup -fetch -https-port 65536 example.org"},
		{"-imaps", "setup -imaps mail.example.org example.org"},
		{"-imaps", "setup -imaps mail.example.org:0 example.org"},
		{"-pop3", "setup -pop3 192.0.2.1:110 example.org"},
		{"-dns", "setup -dns ns.example.org example.org"},
		{"-zone", "setup -zone " + none + " example.org"},
		{"-zone", "setup -zone " + bad + " example.org"},
		{"-zone", "setup -zone " + cname + " example.org"},
		{"-zone", "setup -zone " + include + " example.org"},
		// A key is made only when all else is well.
		{"-zone", "setup -dkim-new " + none + " -zone " + bad + " example.org"},
	} {
		code, out, errs := tool(t, strings.Fields(tt.args)...)
		if code != exitUsage || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%s: exit %d: %s%s", tt.args, code, out, errs)
		}
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("a key was made in spite of wrong usage")
	}
	for _, args := range [][]string{{"help"}, {"-h"}, {"setup", "-h"}} {
		if code, out, errs := tool(t, args...); code != exitOK || !strings.Contains(out+errs, "usage") {
			t.Errorf("%v: exit %d", args, code)
		}
	}
}
