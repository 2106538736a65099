package auth

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/authres"
	"github.com/mailspine/mailspine/auth/bimi"
	"github.com/mailspine/mailspine/auth/dkim"
)

// section returns the part of an Authentication-Results field that is BIMI's.
func section(r *Results) string {
	for part := range strings.SplitSeq(string(r.AuthenticationResults().Field()), ";\r\n\t") {
		if strings.HasPrefix(part, "bimi=") {
			return strings.Join(strings.Fields(part), " ")
		}
	}
	return ""
}

func TestCheckerBIMI(t *testing.T) {
	const logo = "https://example.org/logo.svg"
	z := world()
	z["default._bimi.example.org"] = "v=BIMI1; l=" + logo + "; a=https://example.org/vmc.pem; avp=personal"
	z["autumn._bimi.example.org"] = "v=BIMI1; l=https://example.org/autumn.svg"
	z["default._bimi.evil.example"] = "v=BIMI1; l=" + logo
	z["_dmarc.evil.example"] = "v=DMARC1; p=none"
	z["long._bimi.example.org"] = "v=BIMI1; l=https://example.org/" + strings.Repeat("x", 500)
	z["broken._bimi.example.org"] = "v=BIMI1; l=http://example.org/"
	z["off._bimi.example.org"] = "v=BIMI1; l=; a="
	z["down._bimi.example.org"] = "!"
	selector := func(s string, headers ...string) string { // none: the default, which has the field
		k := key("example.org")
		k.Headers = headers
		msg := "BIMI-Selector: v=BIMI1; s=" + s + "\r\n" + from("joe@example.org")
		sig, err := dkim.Sign(t.Context(), mailspine.StringContent(msg), nil, k)
		if err != nil {
			t.Fatal(err)
		}
		return string(sig) + msg
	}
	good := signed(t, "example.org", from("Joe <joe@example.org>"))
	for _, c := range []struct {
		name, mailFrom, msg string
		want                string // in Authentication-Results
		location            string
	}{
		{"pass", "joe@example.org", good,
			`bimi=pass header.d=example.org header.selector=default policy.authority=none policy.indicator-uri="` + logo + `" policy.logo-preference=personal`, logo},
		{"by SPF alone", "joe@example.org", from("joe@example.org"),
			`bimi=pass header.d=example.org header.selector=default policy.authority=none policy.indicator-uri="` + logo + `" policy.logo-preference=personal`, logo},
		{"selector", "joe@example.org", selector("autumn"),
			`bimi=pass header.d=example.org header.selector=autumn policy.authority=none policy.indicator-uri="https://example.org/autumn.svg"`, "https://example.org/autumn.svg"},
		{"selector not signed", "joe@example.org", selector("autumn", "From", "Subject"),
			`bimi=pass header.d=example.org header.selector=default policy.authority=none policy.indicator-uri="` + logo + `" policy.logo-preference=personal`, logo},
		{"long URI", "joe@example.org", selector("long"),
			`bimi=pass header.d=example.org header.selector=long policy.authority=none`, "https://example.org/" + strings.Repeat("x", 500)},
		{"none", "joe@example.org", selector("nothing"), `bimi=none (no record)`, ""},
		{"broken", "joe@example.org", selector("broken"), `bimi=fail (octet 8: l=: not a https URI) header.d=example.org header.selector=broken`, ""},
		{"declined", "joe@example.org", selector("off"), `bimi=declined (the domain declines) header.d=example.org header.selector=off`, ""},
		{"temperror", "joe@example.org", selector("down"), `bimi=temperror (lookup of down._bimi.example.org TXT: temporary failure)`, ""},
		{"DMARC fails", "joe@evil.example", from("a@bank.example"), `bimi=skipped (dmarc=fail)`, ""},
		{"not enforced", "joe@evil.example", from("a@evil.example"), `bimi=skipped (the DMARC policy of evil.example is not enforced: it is none)`, ""},
		{"no author", "joe@example.org", "Subject: x\r\n\r\n", `bimi=skipped (dmarc=permerror)`, ""},
	} {
		ip := "192.0.2.1"
		if strings.HasSuffix(c.mailFrom, "evil.example") {
			ip = "192.0.2.66"
		}
		k := checker(z)
		k.BIMI = &bimi.Verifier{}
		r := check(t, k, envelope(ip, c.mailFrom), c.msg)
		wellFormed(t, r)
		if got := section(r); got != c.want {
			t.Errorf("%s: %s\nwant %s", c.name, got, c.want)
		}
		v := r.Verdict()
		if v.BIMI != string(r.BIMI.Status) || v.Indicator != c.location || (v.Evidence != "") != (c.location == logo) {
			t.Errorf("%s: %+v", c.name, v)
		}
		h, err := mailspine.ParseHeader(strings.NewReader(string(r.Header())+"\r\n"), 0)
		if err != nil {
			t.Fatal(err)
		}
		want := ""
		if c.location != "" {
			want = "v=BIMI1;\tl=" + c.location
		}
		if got := h.Get("BIMI-Location"); got != want {
			t.Errorf("%s: BIMI-Location: %q, want %q", c.name, got, want)
		}
		a, err := authres.Parse(h.Get("Authentication-Results"))
		if err != nil {
			t.Fatal(err)
		}
		if b := a.Results[len(a.Results)-1]; b.Method != "bimi" || b.Get("header", "d") != r.BIMI.Domain || b.Get("header", "selector") != r.BIMI.Selector {
			t.Errorf("%s: read back as %+v", c.name, b)
		}

		// Unless it is asked for, nothing is said of it.
		r = check(t, checker(z), envelope(ip, c.mailFrom), c.msg)
		wellFormed(t, r)
		if s := section(r); s != "" || r.Verdict().BIMI != "" || strings.Contains(string(r.Header()), "BIMI") {
			t.Errorf("%s: not asked, %s", c.name, s)
		}
	}
}

// What a message says of itself is dropped, whether or not BIMI is looked for.
func TestForgedBIMI(t *testing.T) {
	const msg = "BIMI-Location: v=BIMI1; l=https://bank.example/logo.svg\r\nbimi-INDICATOR : QUJD\r\n QUJD\r\n" +
		"BIMI-Logo-Preference: avp=brand;\r\nBIMI-Selector: v=BIMI1; s=a\r\nFrom: a@evil.example\r\n\r\nBIMI-Location: body\r\n"
	for _, c := range []*Checker{{ID: "mx.example.net"}, {ID: "mx.example.net", BIMI: &bimi.Verifier{}}} {
		m, err := mailspine.Edit(t.Context(), mailspine.StringContent(msg), mailspine.HeaderEdit{Drop: c.Forged})
		if err != nil {
			t.Fatal(err)
		}
		b, err := mailspine.ReadContent(t.Context(), m, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if want := "BIMI-Selector: v=BIMI1; s=a\r\nFrom: a@evil.example\r\n\r\nBIMI-Location: body\r\n"; string(b) != want {
			t.Errorf("%q", b)
		}
	}
}

// A name server that is silent about BIMI holds a message up for no longer than the Checker allows,
// and costs it only the indicator.
func TestCheckerBIMITimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := world()
		z["default._bimi.example.org"] = "?"
		c := checker(z)
		c.BIMI, c.Timeout = &bimi.Verifier{}, 7*time.Second
		begin := time.Now()
		r := check(t, c, envelope("192.0.2.1", "joe@example.org"), from("joe@example.org"))
		if took := time.Since(begin); took != 7*time.Second || r.BIMI.Status != bimi.TempError || r.DMARC.Status != "pass" || r.Reject() != nil {
			t.Errorf("after %v: %+v %v", took, r.BIMI, r.Reject())
		}
	})
}
