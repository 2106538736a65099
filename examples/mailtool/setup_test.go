package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mailspine/mailspine/auth/dkim"
)

// testKey is a private key that is always the same.
func testKey(t *testing.T, n byte) string {
	t.Helper()
	b, err := dkim.MarshalKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// testCert is a certificate for mail.example.org whose key is always the same.
func testCert(t *testing.T, n byte) string {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, 32))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(n)), DNSNames: []string{"mail.example.org"}, NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(nil, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// tlsaLine is what setup prints of the record of testCert.
func tlsaLine(t *testing.T, n byte) string {
	t.Helper()
	chain, err := readChain(writeFile(t, testCert(t, n)))
	if err != nil {
		t.Fatal(err)
	}
	return "_25._tcp.mail.example.org.\tIN\tTLSA\t" + tlsaValue(eeRecord(chain)) + "\n"
}

func TestSetupGolden(t *testing.T) {
	for name, args := range map[string][]string{
		"plain.zone": {"example.org"},
		"all.zone": {"-ip", "192.0.2.25", "-ip", "2001:db8::25", "-hostname", "mx1.example.org", "-mx", "mx1.example.org", "-mx", "30:mx2.example.net",
			"-dmarc-policy", "reject", "-rua", "dmarc@example.org", "-bimi", "https://example.org/logo.svg", "-bimi-evidence", "https://example.org/logo.pem",
			"-mta-sts", "enforce", "-tlsrpt", "https://example.org/tls", "-imap", "mx1.example.org:143", "-pop3s", "off",
			"-dkim-key", writeFile(t, testKey(t, 1)), "-dkim-key", "next=" + writeFile(t, testKey(t, 2)), "Bücher.example"},
		"tlsa.zone": {"-mx", "mail.example.org", "-mx", "mx2.example.net", "-mx", "mx3.example.org", "-mta-sts", "enforce",
			"-tls-cert", writeFile(t, testKey(t, 3)+testCert(t, 3)), "-tls-cert", "mx3.example.org=" + writeFile(t, testCert(t, 5)),
			"-tls-next-cert", "mail.example.org=" + writeFile(t, testCert(t, 4)), "-tls-next-cert", "mx3.example.org=" + writeFile(t, testCert(t, 5)), "example.org"},
		"least.zone": {"-ip", "192.0.2.25", "-rua", "off", "-mta-sts", "off", "-tlsrpt", "off", "-dmarc-policy", "quarantine",
			"-submissions", "off", "-submission", "off", "-imaps", "off", "-pop3s", "off", "example.org."},
	} {
		code, out, errs := tool(t, append([]string{"setup"}, args...)...)
		if code != exitOK || errs != "" {
			t.Errorf("%s: exit %d: %s", name, code, errs)
		}
		golden(t, name, out)
	}
}

// What is printed is a zone file: another parser reads every line of it.
func TestSetupIsZoneFile(t *testing.T) {
	for _, name := range []string{"plain.zone", "all.zone", "tlsa.zone", "least.zone"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		for line := range strings.Lines(string(b)) {
			if strings.TrimSpace(line) != "" && line[0] != ';' {
				want++
			}
		}
		z := dns.NewZoneParser(bytes.NewReader(b), "", name)
		z.SetDefaultTTL(60)
		n := 0
		for _, ok := z.Next(); ok; _, ok = z.Next() {
			n++
		}
		if z.Err() != nil || n != want || n == 0 {
			t.Errorf("%s: %d records of %d: %v", name, n, want, z.Err())
		}
	}
}

func TestQuote(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`a"b\c`, `"a\"b\\c"`},
		{"a\tb\x7fé", `"a\009b\127\195\169"`},
		{strings.Repeat("x", 255), `"` + strings.Repeat("x", 255) + `"`},
		{strings.Repeat("x", 256), `"` + strings.Repeat("x", 255) + `" "x"`},
	} {
		got := quote(c.in)
		if got != c.want {
			t.Errorf("%.20q: %s", c.in, got)
		}
		rr, err := dns.NewRR("example.org. 60 IN TXT " + got)
		if err != nil {
			t.Errorf("%s: %v", got, err)
			continue
		}
		back := ""
		for _, s := range rr.(*dns.TXT).Txt {
			back += unescape(s)
		}
		if back != c.in {
			t.Errorf("%.20q came back as %.20q", c.in, back)
		}
	}
}

// Programs rely on the keys, and on arrays being arrays.
func TestSetupJSON(t *testing.T) {
	code, out, errs := tool(t, "setup", "-json", "example.org")
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, errs)
	}
	var recs []map[string]any
	if err := json.Unmarshal([]byte(out), &recs); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range recs {
		if len(r) != 5 || r["name"] == "" || r["type"] == "" || r["purpose"] == "" {
			t.Errorf("%v", r)
		}
		if _, ok := r["optional"].(bool); !ok {
			t.Errorf("optional: %v", r)
		}
		if _, ok := r["values"].([]any); !ok {
			t.Errorf("values: %v", r)
		}
		seen[r["name"].(string)+" "+r["type"].(string)] = true
	}
	for _, want := range []string{"example.org MX", "mail.example.org A", "example.org TXT", "mail._domainkey.example.org TXT", "_dmarc.example.org TXT",
		"_mta-sts.example.org TXT", "_smtp._tls.example.org TXT", "_submissions._tcp.example.org SRV", "_imaps._tcp.example.org SRV"} {
		if !seen[want] {
			t.Errorf("there is no %s", want)
		}
	}
}

// A key that is made is private, has a record, and is never made over another.
func TestNewKey(t *testing.T) {
	key := filepath.Join(t.TempDir(), "dkim.pem")
	code, made, errs := tool(t, "setup", "-dkim-new", key, "example.org")
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, errs)
	}
	if fi, err := os.Stat(key); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v, %v", fi.Mode(), err)
	}
	if _, read, _ := tool(t, "setup", "-dkim-key", key, "example.org"); read != made {
		t.Errorf("made:\n%s\nread:\n%s", made, read)
	}
	// The key is longer than a string of a TXT record can be.
	if !strings.Contains(made, `mail._domainkey.example.org.	IN	TXT	"v=DKIM1; `) || !strings.Contains(made, `" "`) {
		t.Errorf("%s", made)
	}
	if code, out, errs := tool(t, "setup", "-dkim-new", key, "example.org"); code != exitUsage || out != "" || !strings.Contains(errs, "-dkim-new") {
		t.Errorf("made again: exit %d: %s", code, errs)
	}
}

// What is quoted is one TXT record for a parser of zone files, and comes back as it was.
func FuzzQuote(f *testing.F) {
	f.Add(`a"b\c;d`)
	f.Add("\\123\x00\n é")
	f.Fuzz(func(t *testing.T, s string) {
		if s == "" || len(s) > 2000 {
			return
		}
		z := dns.NewZoneParser(strings.NewReader("example.org. 60 IN TXT "+quote(s)+"\n"), "", "")
		rr, ok := z.Next()
		if !ok {
			t.Fatalf("%q: %s: %v", s, quote(s), z.Err())
		}
		back := ""
		for _, part := range rr.(*dns.TXT).Txt {
			back += unescape(part)
		}
		if back != s {
			t.Errorf("%q came back as %q", s, back)
		}
		if _, more := z.Next(); more {
			t.Errorf("%q is more than one record", s)
		}
	})
}
