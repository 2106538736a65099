package auth

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/authres"
	"github.com/mailspine/mailspine/auth/bimi"
)

// FuzzCheck runs a whole check over foreign bytes: there is always a result,
// its header is two fields that say what the result says, and removing what is
// forged leaves no field that claims our name.
func FuzzCheck(f *testing.F) {
	f.Add("From: a@example.org\r\nAuthentication-Results: mx.example.net; dmarc=pass\r\n\r\nx", "mail.example.org", "joe", "example.org")
	f.Add("Authentication-Results: (a) \"mx.example.net\"\r\n 1; dmarc=pass\r\nDKIM-Signature: v=1; d=\"; s=x\r\nFrom: x\r\n\r\n", "a\r\nb", "\"", "é")
	f.Add("From: a@example.org\r\nBIMI-Location: v=BIMI1; l=https://evil.example/\r\nBIMI-Selector: v=BIMI1; s=x\r\nbimi-indicator : QUJD\r\n\r\nx", "mail.example.org", "joe", "example.org")
	f.Fuzz(func(t *testing.T, msg, helo, local, domain string) {
		z := world()
		z["default._bimi.example.org"] = "v=BIMI1; l=https://example.org/logo.svg; lps=; avp=personal"
		c := checker(z)
		c.BIMI = &bimi.Verifier{UnsignedSelector: true}
		env := &mailspine.Envelope{From: mailspine.Address{Local: local, Domain: domain},
			Origin: mailspine.Origin{Helo: helo, Addr: netip.MustParseAddrPort("192.0.2.1:25")}}
		if strings.Contains(domain, "slow.example") || strings.Contains(helo, "slow.example") || strings.Contains(msg, "slow.example") {
			return // never answers
		}
		r := check(t, c, env, msg)
		wellFormed(t, r)
		r.Verdict()
		clean, err := mailspine.Edit(t.Context(), mailspine.StringContent(msg), mailspine.HeaderEdit{Drop: c.Forged})
		if err != nil {
			return
		}
		h, err := mailspine.ReadHeader(t.Context(), clean, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"Received-SPF", "BIMI-Location", "BIMI-Indicator", "BIMI-Logo-Preference"} {
			if len(h.Values(n)) > 0 {
				t.Errorf("left: %s", n)
			}
		}
		for _, v := range h.Values("Authentication-Results") {
			if a, err := authres.Parse(v); err == nil && authres.SameID(a.ID, c.ID) {
				t.Errorf("left: %q", v)
			}
		}
	})
}
