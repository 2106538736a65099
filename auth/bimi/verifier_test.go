package bimi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
)

// txt is a Resolver of TXT records, several separated by newlines; "!" is a temporary failure, "bogus" a forged
// answer, "-" a name with other records.
type txt map[string]string

func (z txt) Lookup(_ context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	kind := mailspine.ErrNXDomain
	switch v, ok := z[name]; {
	case v == "!":
		kind = mailspine.ErrDNSTemporary
	case v == "bogus":
		kind = mailspine.ErrDNSBogus
	case ok && t == mailspine.TypeTXT && v != "-":
		return mailspine.Answer{TXT: strings.Split(v, "\n")}, nil
	case ok:
		kind = mailspine.ErrNoData
	}
	return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: kind, Err: errors.New("secret")}
}

const logo = "https://example.com/logo.svg"

// verify runs BIMI behind DMARC, with one signature of the author domain that covers From and
// BIMI-Selector.
func verify(t testing.TB, z txt, from, selector string) Result {
	t.Helper()
	h := "From: " + from + "\r\n"
	if selector != "" {
		h += "BIMI-Selector: " + selector + "\r\n"
	}
	return verifyHeader(t, &Verifier{Resolver: z}, z, h, "BIMI-Selector")
}

func verifyHeader(t testing.TB, v *Verifier, z txt, header string, signed ...string) Result {
	t.Helper()
	h, err := mailspine.ParseHeader(strings.NewReader(header+"\r\n"), 0)
	if err != nil {
		t.Fatal(err)
	}
	var d dmarc.Result
	var sigs []dkim.Verification
	if author, err := dmarc.Author(h); err != nil {
		d = dmarc.Rejected(err)
	} else {
		sigs = []dkim.Verification{{Status: dkim.Pass, Domain: author, Headers: append([]string{"From"}, signed...)}}
		d = (&dmarc.Verifier{Resolver: z}).Verify(t.Context(), author, dmarc.Identifier{}, []dmarc.Identifier{{Domain: author, Status: "pass"}})
	}
	return v.Verify(t.Context(), Read(h), d, sigs)
}

func TestDiscovery(t *testing.T) {
	const dm, dmSub = "_dmarc.example.com", "_dmarc.sub.example.com"
	reject := func(more ...string) txt {
		z := txt{dm: "v=DMARC1; p=reject"}
		for i := 0; i < len(more); i += 2 {
			z[more[i]] = more[i+1]
		}
		return z
	}
	const rec = "v=BIMI1; l=" + logo
	for _, c := range []struct {
		name, from, selector string
		zone                 txt
		want                 Status
		at                   string // domain and selector
		queries              []string
		problem              string
	}{
		// The draft's appendices.
		{"successful", "s@example.com", "v=BIMI1; s=myselector;", reject("myselector._bimi.example.com", rec),
			Pass, "example.com myselector", []string{dm, "myselector._bimi.example.com"}, ""},
		{"no record", "s@sub.example.com", "", reject(),
			None, " ", []string{dmSub, dm, "default._bimi.sub.example.com", "default._bimi.example.com"}, "no record"},
		{"declination", "s@example.com", "", reject("default._bimi.example.com", "v=BIMI1; l=; a=;"),
			Declined, "example.com default", []string{dm, "default._bimi.example.com"}, "declines"},
		{"organisational domain", "s@sub.example.com", "", reject("default._bimi.example.com", rec),
			Pass, "example.com default", []string{dmSub, dm, "default._bimi.sub.example.com", "default._bimi.example.com"}, ""},
		{"no default for a selector", "s@sub.example.com", "v=BIMI1; s=myselector;", reject("default._bimi.example.com", rec),
			None, " ", []string{dmSub, dm, "myselector._bimi.sub.example.com", "myselector._bimi.example.com"}, "no record"},
		{"selector at the organisational domain", "s@sub.example.com", "v=BIMI1; s=myselector;", reject("myselector._bimi.example.com", rec),
			Pass, "example.com myselector", nil, ""},
		{"bad selector field", "s@example.com", "s=myselector;", reject("default._bimi.example.com", rec),
			Pass, "example.com default", []string{dm, "default._bimi.example.com"}, ""},

		{"a subdomain declines", "s@sub.example.com", "", reject("default._bimi.sub.example.com", "v=BIMI1; l=", "default._bimi.example.com", rec),
			Declined, "sub.example.com default", nil, "declines"},
		{"nothing but other records", "s@example.com", "", reject("default._bimi.example.com", "v=spf1 -all\n v=BIMI1; l=x\nv=BIMI2"),
			None, " ", nil, "no record"},
		{"other records beside it", "s@example.com", "", reject("default._bimi.example.com", "v=spf1 -all\n"+rec),
			Pass, "example.com default", nil, ""},
		{"no TXT", "s@sub.example.com", "", reject("default._bimi.sub.example.com", "-", "default._bimi.example.com", rec),
			Pass, "example.com default", nil, ""},
		{"several", "s@sub.example.com", "", reject("default._bimi.sub.example.com", rec+"\n"+rec, "default._bimi.example.com", rec),
			Fail, " ", []string{dmSub, dm, "default._bimi.sub.example.com"}, "several records"},
		{"a good one and a broken one", "s@example.com", "", reject("default._bimi.example.com", rec+"\nv=BIMI1; l"),
			Fail, " ", nil, "several records"},
		{"broken", "s@sub.example.com", "", reject("default._bimi.sub.example.com", "v=BIMI1; l=http://a.example/", "default._bimi.example.com", rec),
			Fail, "sub.example.com default", nil, "octet 8: l=: not a https URI"},
		{"evidence only", "s@example.com", "", reject("default._bimi.example.com", "v=BIMI1; l=; a=https://example.com/vmc.pem"),
			Fail, "example.com default", nil, "no indicator"},
		{"temporary", "s@sub.example.com", "", reject("default._bimi.sub.example.com", "!", "default._bimi.example.com", rec),
			TempError, " ", []string{dmSub, dm, "default._bimi.sub.example.com"}, "lookup of default._bimi.sub.example.com TXT"},
		{"temporary above", "s@sub.example.com", "", reject("default._bimi.example.com", "!"), TempError, " ", nil, "lookup of"},
		{"bogus", "s@example.com", "", reject("default._bimi.example.com", "bogus"), TempError, " ", nil, "lookup of"},
		{"U-labels", "s@Bücher.Example.COM", "", reject("default._bimi.xn--bcher-kva.example.com", rec), Pass, "xn--bcher-kva.example.com default", nil, ""},
		{"name too long", "s@" + strings.Repeat("a.", 100) + "example.com", "v=BIMI1; s=" + strings.Repeat("b", 60),
			reject(strings.Repeat("b", 60)+"._bimi.example.com", rec), Pass, "example.com " + strings.Repeat("b", 60), nil, ""},

		// Local-part selectors.
		{"local part", "News_Letter+x@example.com", "", reject("default._bimi.example.com", rec+"; lps=", "news-letter._bimi.example.com", rec),
			Pass, "example.com news-letter", []string{dm, "default._bimi.example.com", "news-letter._bimi.example.com"}, ""},
		{"no such local part", "joe@example.com", "", reject("default._bimi.example.com", rec+"; lps="),
			Pass, "example.com default", []string{dm, "default._bimi.example.com", "joe._bimi.example.com"}, ""},
		{"prefix", "brand-Indicators-1@example.com", "", reject("default._bimi.example.com", "v=BIMI1; l=; a=; lps=x,brand-indicators-;", "brand-indicators-1._bimi.example.com", rec),
			Pass, "example.com brand-indicators-1", nil, ""},
		{"no prefix", "joe@example.com", "", reject("default._bimi.example.com", "v=BIMI1; l=; lps=brand-", "joe._bimi.example.com", rec),
			Declined, "example.com default", []string{dm, "default._bimi.example.com"}, "declines"},
		{"local part declines", "joe@example.com", "", reject("default._bimi.example.com", rec+"; lps=", "joe._bimi.example.com", "v=BIMI1; l="),
			Declined, "example.com joe", nil, "declines"},
		{"local part is broken", "joe@example.com", "", reject("default._bimi.example.com", rec+"; lps=", "joe._bimi.example.com", "v=BIMI1"),
			Pass, "example.com default", nil, ""},
		{"local part has several", "joe@example.com", "", reject("default._bimi.example.com", rec+"; lps=", "joe._bimi.example.com", rec+"\n"+rec),
			Pass, "example.com default", nil, ""},
		{"local part is temporary", "joe@example.com", "", reject("default._bimi.example.com", rec+"; lps=", "joe._bimi.example.com", "!"),
			TempError, " ", nil, "lookup of joe._bimi"},
		{"local part is no selector", "\"a b\"@example.com", "", reject("default._bimi.example.com", rec+"; lps="),
			Pass, "example.com default", []string{dm, "default._bimi.example.com"}, ""},
		{"local part is the selector", "Default@example.com", "", reject("default._bimi.example.com", rec+"; lps="),
			Pass, "example.com default", []string{dm, "default._bimi.example.com"}, ""},
		{"local part at the organisational domain", "joe@sub.example.com", "", reject("default._bimi.example.com", rec+"; lps=", "joe._bimi.example.com", rec, "joe._bimi.sub.example.com", rec),
			Pass, "example.com joe", []string{dmSub, dm, "default._bimi.sub.example.com", "default._bimi.example.com", "joe._bimi.example.com"}, ""},
		{"local part of a local part", "joe@example.com", "", reject("default._bimi.example.com", rec+"; lps=", "joe._bimi.example.com", rec+"; lps="),
			Pass, "example.com joe", []string{dm, "default._bimi.example.com", "joe._bimi.example.com"}, ""},
	} {
		r := verify(t, c.zone, c.from, c.selector)
		if r.Status != c.want || r.Domain+" "+r.Selector != c.at {
			t.Errorf("%s: %+v", c.name, r)
		}
		if c.queries != nil && !slices.Equal(r.Queries, c.queries) || len(r.Queries) > 6 {
			t.Errorf("%s: queries %q", c.name, r.Queries)
		}
		if !strings.Contains(r.Problem, c.problem) || (r.Status == Pass) != (r.Problem == "") || strings.Contains(r.Problem, "secret") {
			t.Errorf("%s: problem %q", c.name, r.Problem)
		}
		if want := ""; r.Status == Pass {
			want = logo
			if r.Indicator != want {
				t.Errorf("%s: indicator %q", c.name, r.Indicator)
			}
		} else if r.Indicator != "" || r.Evidence != "" || r.Header() != nil {
			t.Errorf("%s: an indicator without a pass: %+v", c.name, r)
		}
	}
}

// Section "Authentication Requirements".
func TestRequirements(t *testing.T) {
	const rec = "v=BIMI1; l=" + logo
	for _, c := range []struct {
		name, from string
		org, sub   string // the DMARC records of example.com and sub.example.com
		want       Status
	}{
		{"reject", "a@example.com", "v=DMARC1; p=reject", "", Pass},
		{"quarantine", "a@example.com", "v=DMARC1; p=quarantine", "", Pass},
		{"quarantine of all", "a@example.com", "v=DMARC1; p=quarantine; pct=100", "", Pass},
		{"quarantine of a part", "a@example.com", "v=DMARC1; p=quarantine; pct=99", "", Skipped},
		{"quarantine of nonsense", "a@example.com", "v=DMARC1; p=quarantine; PCT = all", "", Skipped},
		{"the first pct counts", "a@example.com", "v=DMARC1; p=quarantine; pct=5; pct=100", "", Skipped},
		{"reject of a part", "a@example.com", "v=DMARC1; p=reject; pct=1", "", Pass},
		{"quarantine of a part of subdomains", "a@example.com", "v=DMARC1; p=reject; sp=quarantine; pct=1", "", Skipped},
		{"none", "a@example.com", "v=DMARC1; p=none", "", Skipped},
		{"no policy", "a@example.com", "v=DMARC1; rua=mailto:a@example.com", "", Skipped},
		{"no record", "a@example.com", "", "", Skipped},
		{"two records", "a@example.com", "v=DMARC1; p=reject\nv=DMARC1; p=reject", "", Skipped},
		{"test", "a@example.com", "v=DMARC1; p=reject; t=y", "", Skipped},
		{"no test", "a@example.com", "v=DMARC1; p=reject; t=n", "", Pass},
		{"subdomains none", "a@example.com", "v=DMARC1; p=reject; sp=none", "", Skipped},
		{"subdomains", "a@example.com", "v=DMARC1; p=reject; SP = Quarantine", "", Pass},
		{"subdomains broken", "a@example.com", "v=DMARC1; p=reject; sp=rejct; rua=mailto:a@example.com", "", Skipped},

		{"inherited", "a@sub.example.com", "v=DMARC1; p=reject", "", Pass},
		{"inherited sp=none", "a@sub.example.com", "v=DMARC1; p=reject; sp=none", "", Skipped},
		{"inherited np=none", "a@sub.example.com", "v=DMARC1; p=reject; np=none", "", Skipped}, // it does not exist
		{"both", "a@sub.example.com", "v=DMARC1; p=quarantine", "v=DMARC1; p=reject", Pass},
		{"only the subdomain", "a@sub.example.com", "v=DMARC1; p=none", "v=DMARC1; p=reject", Skipped},
		{"only the organisational domain", "a@sub.example.com", "v=DMARC1; p=reject", "v=DMARC1; p=none", Skipped},
		{"subdomain in part", "a@sub.example.com", "v=DMARC1; p=reject", "v=DMARC1; p=quarantine; pct=50", Skipped},
		{"subdomain's sp", "a@sub.example.com", "v=DMARC1; p=reject", "v=DMARC1; p=reject; sp=none", Skipped},
		{"organisational domain in part", "a@sub.example.com", "v=DMARC1; p=quarantine; pct=50", "v=DMARC1; p=reject", Skipped},
		{"policy of the public suffix only", "a@sub.example.com", "v=DMARC1; p=reject; psd=y", "", Skipped},
		{"its own organisation", "a@sub.example.com", "v=DMARC1; p=none", "v=DMARC1; p=reject; psd=n", Pass},
		{"DMARC is not known", "a@example.com", "!", "", Skipped},

		{"two addresses", "a@example.com, b@example.com", "v=DMARC1; p=reject", "", Skipped},
		{"two fields", "a@example.com\r\nFrom: a@example.com", "v=DMARC1; p=reject", "", Skipped},
		{"no address", "nobody:;", "v=DMARC1; p=reject", "", Skipped},
		{"strange charset", "=?x-none?q?J=FCrgen?= <a@example.com>", "v=DMARC1; p=reject", "", Pass},
	} {
		z := txt{"default._bimi.sub.example.com": rec, "default._bimi.example.com": rec}
		for name, r := range map[string]string{"_dmarc.example.com": c.org, "_dmarc.sub.example.com": c.sub} {
			if r != "" {
				z[name] = r
			}
		}
		r := verify(t, z, c.from, "")
		if r.Status != c.want || (c.want == Skipped) != (r.Problem != "") {
			t.Errorf("%s: %+v", c.name, r)
		}
		if c.want == Skipped && slices.ContainsFunc(r.Queries, func(q string) bool { return strings.Contains(q, "_bimi") }) {
			t.Errorf("%s: discovery was attempted: %q", c.name, r.Queries)
		}
	}

	pass := dmarc.Result{Status: dmarc.Pass, FromDomain: "sub.example.com", OrgDomain: "example.com", Policy: dmarc.Reject}
	m := Message{Author: mailspine.Address{Local: "a", Domain: "sub.example.com"}}
	for _, c := range []struct {
		name string
		z    txt
		d    func(*dmarc.Result)
		m    Message
		want Status
	}{
		{"dmarc=fail", nil, func(d *dmarc.Result) { d.Status = dmarc.Fail }, m, Skipped},
		{"dmarc=none", nil, func(d *dmarc.Result) { d.Status = dmarc.None }, m, Skipped},
		{"dmarc=temperror", nil, func(d *dmarc.Result) { d.Status = dmarc.TempError }, m, Skipped},
		{"zero", nil, func(d *dmarc.Result) { *d = dmarc.Result{} }, Message{}, Skipped},
		{"another author", nil, func(*dmarc.Result) {}, Message{Author: mailspine.Address{Local: "a", Domain: "example.com"}}, Skipped},
		{"organisational policy is not known", txt{"_dmarc.sub.example.com": "v=DMARC1; p=reject", "_dmarc.example.com": "!"}, func(*dmarc.Result) {}, m, TempError},
		{"own policy is not known", txt{"_dmarc.sub.example.com": "bogus", "_dmarc.example.com": "v=DMARC1; p=reject"}, func(*dmarc.Result) {}, m, TempError},
	} {
		d := pass
		c.d(&d)
		r := (&Verifier{Resolver: c.z}).Verify(t.Context(), c.m, d, nil)
		if r.Status != c.want || r.Problem == "" {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
	if r := (&Verifier{}).Verify(t.Context(), m, pass, nil); r.Status != TempError {
		t.Errorf("no resolver: %+v", r)
	}
}

// Only a selector that an aligned signature covers is believed.
func TestSelectorSigned(t *testing.T) {
	z := txt{
		"_dmarc.example.com":        "v=DMARC1; p=reject",
		"a._bimi.example.com":       "v=BIMI1; l=https://example.com/a.svg",
		"b._bimi.example.com":       "v=BIMI1; l=https://example.com/b.svg",
		"default._bimi.example.com": "v=BIMI1; l=https://example.com/default.svg",
	}
	const from, sel = "From: joe@example.com\r\n", "BIMI-Selector: v=BIMI1; s=a\r\n"
	for _, c := range []struct {
		name, header string
		v            Verifier
		signed       []string
		want         string
	}{
		{"signed", from + sel, Verifier{}, []string{"bimi-selector"}, "a"},
		{"not signed", from + sel, Verifier{}, []string{"Subject"}, "default"},
		{"not signed, and believed", from + sel, Verifier{UnsignedSelector: true}, nil, "a"},
		{"one was added", from + sel + "BIMI-Selector: v=BIMI1; s=b\r\n", Verifier{}, []string{"BIMI-Selector"}, "default"},
		{"folded", from + "bimi-selector:\r\n v=BIMI1;\r\n\ts=b\r\n", Verifier{}, []string{"BIMI-Selector"}, "b"},
		{"broken", from + "BIMI-Selector: v=BIMI1\r\n", Verifier{UnsignedSelector: true}, nil, "default"},
	} {
		v := c.v
		v.Resolver = z
		if r := verifyHeader(t, &v, z, c.header, c.signed...); r.Status != Pass || r.Selector != c.want {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
	// A signature that fails, or of somebody else, covers nothing.
	d := dmarc.Result{Status: dmarc.Pass, FromDomain: "example.com", OrgDomain: "example.com", Policy: dmarc.Reject,
		AlignedDKIM: []string{"example.com"}}
	m := Message{Author: mailspine.Address{Local: "joe", Domain: "example.com"}, Selector: "a"}
	h := []string{"From", "BIMI-Selector"}
	for _, c := range []struct {
		sig  dkim.Verification
		want string
	}{
		{dkim.Verification{Status: dkim.Pass, Domain: "EXAMPLE.com", Headers: h}, "a"},
		{dkim.Verification{Status: dkim.Fail, Domain: "example.com", Headers: h}, "default"},
		{dkim.Verification{Status: dkim.Pass, Domain: "evil.example", Headers: h}, "default"},
	} {
		if r := (&Verifier{Resolver: z}).Verify(t.Context(), m, d, []dkim.Verification{c.sig}); r.Selector != c.want {
			t.Errorf("%+v: %+v", c.sig, r)
		}
	}
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			<-ctx.Done()
			return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: typ, Kind: mailspine.ErrDNSTemporary, Err: ctx.Err()}
		})
		d := dmarc.Result{Status: dmarc.Pass, FromDomain: "example.com", OrgDomain: "example.com", Policy: dmarc.Reject}
		m := Message{Author: mailspine.Address{Local: "joe", Domain: "example.com"}}
		for limit, want := range map[time.Duration]time.Duration{0: DefaultTimeout, time.Second: time.Second} {
			begin := time.Now()
			r := (&Verifier{Resolver: slow, Timeout: limit}).Verify(t.Context(), m, d, nil)
			if r.Status != TempError || time.Since(begin) != want {
				t.Errorf("%v: %+v after %v", limit, r, time.Since(begin))
			}
		}
	})
}

func TestHeader(t *testing.T) {
	r := Result{Status: Pass, Indicator: logo, Evidence: "https://example.com/vmc.pem"}
	if got, want := string(r.Header()), "BIMI-Location: v=BIMI1;\r\n\tl=https://example.com/logo.svg\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	r.Preference = "personal"
	if got := string(r.Header()); !strings.HasSuffix(got, "\r\nBIMI-Logo-Preference: avp=personal;\r\n") {
		t.Errorf("%q", got)
	}
	for _, bad := range []Result{{}, {Status: Pass}, {Status: Fail, Indicator: logo}, {Status: Pass, Indicator: logo + "\r\nX: y"}} {
		if b := bad.Header(); b != nil {
			t.Errorf("%+v: %q", bad, b)
		}
	}
	for name, want := range map[string]bool{"BIMI-Location": true, "bimi-indicator": true, "Bimi-Logo-Preference": true, "BIMI-Selector": false, "BIMI": false} {
		if Reserved(mailspine.HeaderField{Name: name}) != want {
			t.Errorf("Reserved(%s) is not %v", name, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("From: Joe <joe@example.com>\r\nBIMI-Selector: v=BIMI1; s=a\r\n")
	f.Add("From: a@b, c@d\r\nfrom: =?x?q?=?= <\"a@b\"@c>\r\n")
	f.Add("From: g: (((a)@b;\r\nBIMI-Selector:\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := mailspine.ParseHeader(strings.NewReader(s), 0)
		if err != nil {
			return
		}
		m := Read(h)
		if m.Selector != "" && !isSelector(m.Selector) {
			t.Errorf("selector %q", m.Selector)
		}
		// What DMARC protects and what BIMI reads is the same domain, or there is no result.
		author, err := dmarc.Author(h)
		if err != nil || m.Author.IsZero() {
			return
		}
		if d, err := mailspine.ASCIIDomain(m.Author.Domain); err == nil && d != author {
			z := txt{"_dmarc." + author: "v=DMARC1; p=reject", "_dmarc." + d: "v=DMARC1; p=reject"}
			if r := verifyHeader(t, &Verifier{Resolver: z}, z, s); r.Status != Skipped {
				t.Errorf("%q and %q: %+v", d, author, r)
			}
		}
	})
}

func ExampleVerifier() {
	published := map[string]string{
		"_dmarc.example.com":        "v=DMARC1; p=reject",
		"default._bimi.example.com": "v=BIMI1; l=https://example.com/logo.svg; a=https://example.com/vmc.pem",
	}
	dns := mailspine.ResolverFunc(func(_ context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
		if s, ok := published[name]; ok && t == mailspine.TypeTXT {
			return mailspine.Answer{TXT: []string{s}}, nil
		}
		return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: mailspine.ErrNXDomain}
	})
	h, err := mailspine.ParseHeader(strings.NewReader("From: Joe <joe@news.example.com>\r\n\r\n"), 0)
	if err != nil {
		panic(err)
	}
	// What DMARC found: a signature of example.com passes.
	d := (&dmarc.Verifier{Resolver: dns}).Verify(context.Background(), "news.example.com",
		dmarc.Identifier{}, []dmarc.Identifier{{Domain: "example.com", Status: "pass"}})

	v := &Verifier{Resolver: dns}
	r := v.Verify(context.Background(), Read(h), d, nil)
	fmt.Println(r.Status, r.Domain, r.Selector)
	fmt.Println(r.Indicator)
	fmt.Println(r.Evidence)

	published["_dmarc.example.com"] = "v=DMARC1; p=none"
	d = (&dmarc.Verifier{Resolver: dns}).Verify(context.Background(), "news.example.com",
		dmarc.Identifier{}, []dmarc.Identifier{{Domain: "example.com", Status: "pass"}})
	r = v.Verify(context.Background(), Read(h), d, nil)
	fmt.Println(r.Status, r.Problem)
	// Output:
	// pass example.com default
	// https://example.com/logo.svg
	// https://example.com/vmc.pem
	// skipped the DMARC policy of news.example.com is not enforced: it is none
}
