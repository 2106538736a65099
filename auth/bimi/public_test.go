package bimi

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
)

// publicFile reads a file of the public suites, or skips the test.
func publicFile(t *testing.T, name string) []byte {
	t.Helper()
	dir := os.Getenv("MAILSPINE_VECTORS")
	if dir != "" {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			return b
		}
	}
	if os.Getenv("MAILSPINE_STRICT") == "1" {
		t.Fatalf("MAILSPINE_STRICT=1 and %q is not in MAILSPINE_VECTORS=%q", name, dir)
	}
	t.Skipf("MAILSPINE_VECTORS does not lead to %s: it is not tested", name)
	return nil
}

// A real message names a selector in a field that neither of its signatures covers.
func TestPublicMessage(t *testing.T) {
	msg := mailspine.BytesContent(publicFile(t, "bimi/bimi.eml"))
	h, err := mailspine.ReadHeader(t.Context(), msg, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := Read(h)
	if want := (mailspine.Address{Local: "info", Domain: "srv.dev"}); m.Author != want || m.Selector != "mailauth" {
		t.Errorf("%+v", m)
	}
	z := txt{
		"_dmarc.srv.dev":         "v=DMARC1; p=reject; sp=reject",
		"mailauth._bimi.srv.dev": "v=BIMI1; l=https://srv.dev/other.svg",
		"default._bimi.srv.dev":  "v=BIMI1; l=https://srv.dev/logo.svg",
	}
	sigs, err := (&dkim.Verifier{Resolver: z}).Verify(t.Context(), msg)
	if err != nil || len(sigs) != 2 || len(sigs[0].Headers) != 10 {
		t.Fatalf("%v %+v", err, sigs)
	}
	// Their keys are no longer there to be had; say that they pass.
	var ids []dmarc.Identifier
	for i := range sigs {
		sigs[i].Status = dkim.Pass
		ids = append(ids, dmarc.Identifier{Domain: sigs[i].Domain, Status: "pass"})
	}
	d := (&dmarc.Verifier{Resolver: z}).Verify(t.Context(), "srv.dev", dmarc.Identifier{}, ids)
	if r := (&Verifier{Resolver: z}).Verify(t.Context(), m, d, sigs); r.Status != Pass || r.Selector != "default" {
		t.Errorf("%+v", r)
	}
	if r := (&Verifier{Resolver: z, UnsignedSelector: true}).Verify(t.Context(), m, d, sigs); r.Status != Pass || r.Selector != "mailauth" {
		t.Errorf("%+v", r)
	}
}

// The other public cases are images to accept and to refuse. Nothing here looks at an image, so
// that they say nothing about this package; this fails when the suite has cases of another kind.
func TestPublicSuiteIsImages(t *testing.T) {
	var cases []struct{ Test, Fn string }
	if err := json.Unmarshal(publicFile(t, "bimi/mailauth-svg-vectors.json"), &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if c.Fn != "validateSvg" {
			t.Errorf("%s is a case of %s, and not tested", c.Test, c.Fn)
		}
	}
}
