package dkim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
)

// publicFile reads a file of the public suites, or skips the test.
func publicFile(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("MAILSPINE_VECTORS")
	if dir != "" {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			return string(b)
		}
	}
	if os.Getenv("MAILSPINE_STRICT") == "1" {
		t.Fatalf("MAILSPINE_STRICT=1 and %q is not in MAILSPINE_VECTORS=%q", name, dir)
	}
	t.Skipf("MAILSPINE_VECTORS does not lead to %s: it is not tested", name)
	return ""
}

// The message of RFC 8463 appendix A, with an Ed25519 and an RSA signature, and a message of Exim's.
func TestPublicMessages(t *testing.T) {
	rsaRecord := strings.TrimSpace(publicFile(t, "dkim/dkimpy/test.txt"))
	exim := strings.TrimSpace(publicFile(t, "dkim/dkimpy/eximtest.dns"))
	zone := keys{
		"brisbane._domainkey.football.example.com": {"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="},
		"test._domainkey.football.example.com":     {rsaRecord},
		"sed._domainkey.test.ex":                   {exim},
	}
	for file, want := range map[string]string{
		"dkim/dkimpy/rfc6376.signed.msg": "pass pass",
		"dkim/dkimpy/ed25519test2.msg":   "pass",
	} {
		res, err := (&Verifier{Resolver: zone}).Verify(t.Context(), mailspine.StringContent(publicFile(t, file)))
		if err != nil || statuses(res) != want {
			t.Errorf("%s: %v %+v", file, err, res)
		}
	}
}

func TestPublicRecords(t *testing.T) {
	for name, ok := range map[string]bool{
		"test.txt": true, "test2.txt": true, "eximtest.dns": true, "ed25519test.dns": true,
		"badk.txt": false, "badversion.txt": false, "test_bad.txt": false, "test_tlsrpt.txt": false,
	} {
		_, err := ParseRecord(strings.TrimSpace(publicFile(t, "dkim/dkimpy/"+name)))
		if (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
