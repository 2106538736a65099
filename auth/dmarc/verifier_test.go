package dmarc

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
)

// txt is a Resolver of TXT records; the value "!" is a temporary failure, "bogus" a forged answer.
type txt map[string]string

func (z txt) Lookup(_ context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	kind := mailspine.ErrNXDomain
	switch v, ok := z[name]; {
	case v == "!":
		kind = mailspine.ErrDNSTemporary
	case v == "bogus":
		kind = mailspine.ErrDNSBogus
	case ok && t == mailspine.TypeTXT:
		return mailspine.Answer{TXT: []string{v}}, nil
	case ok:
		kind = mailspine.ErrNoData
	}
	return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: kind, Err: errors.New("secret")}
}

func TestQueries(t *testing.T) {
	v := &Verifier{Resolver: txt{"_dmarc.example.com": "v=DMARC1; p=reject"}}
	// The example of RFC 9989 section 4.10.
	r := v.Verify(t.Context(), "a.b.c.d.e.f.g.h.i.j.mail.example.com", Identifier{}, nil)
	want := []string{
		"_dmarc.a.b.c.d.e.f.g.h.i.j.mail.example.com", "_dmarc.g.h.i.j.mail.example.com", "_dmarc.h.i.j.mail.example.com",
		"_dmarc.i.j.mail.example.com", "_dmarc.j.mail.example.com", "_dmarc.mail.example.com", "_dmarc.example.com", "_dmarc.com",
	}
	if !slices.Equal(r.Queries, want) || r.Status != Fail || r.OrgDomain != "example.com" || r.PolicyDomain != "example.com" {
		t.Errorf("%+v", r)
	}
	// Identifiers elsewhere cost nothing, and names are asked once.
	var ids []Identifier
	for i := range 30 {
		ids = append(ids, Identifier{fmt.Sprintf("x%d.elsewhere.example", i), "pass"}, Identifier{"other.example.com", "pass"})
	}
	r = v.Verify(t.Context(), "news.example.com", Identifier{"evilexample.com", "pass"}, ids)
	want = []string{"_dmarc.news.example.com", "_dmarc.example.com", "_dmarc.com", "_dmarc.other.example.com"}
	if !slices.Equal(r.Queries, want) || r.Status != Pass || !slices.Equal(r.AlignedDKIM, []string{"other.example.com"}) {
		t.Errorf("%+v", r)
	}
}

func TestAlignment(t *testing.T) {
	zone := txt{
		"_dmarc.example.com":        "v=DMARC1; p=reject",
		"_dmarc.strict.example":     "v=DMARC1; p=reject; adkim=s; aspf=s",
		"_dmarc.testing.example":    "v=DMARC1; p=quarantine; t=y",
		"_dmarc.np.example":         "v=DMARC1; p=none; sp=none; np=reject; rua=mailto:a@np.example",
		"there.np.example":          "x",
		"unsure.np.example":         "!",
		"_dmarc.down.example":       "!",
		"_dmarc.bogus.example":      "bogus",
		"_dmarc.sub.down.example":   "v=DMARC1; p=reject; psd=n",
		"_dmarc.down.example.com":   "!",
		"_dmarc.baduri.example":     "v=DMARC1; p=bad; rua=nonsense",
		"_dmarc.badsp.example":      "v=DMARC1; p=reject; sp=bad; rua=mailto:a@b",
		"_dmarc.xn--bcher-kva.test": "v=DMARC1; p=reject",
	}
	pass := func(d string) Identifier { return Identifier{d, "pass"} }
	for _, c := range []struct {
		name, from  string
		spf         Identifier
		dkim        []Identifier
		want        Status
		disposition Policy
	}{
		{"relaxed SPF", "example.com", pass("bounce.example.com"), nil, Pass, NonePolicy},
		{"relaxed DKIM", "a.example.com", Identifier{}, []Identifier{pass("b.example.com")}, Pass, NonePolicy},
		{"suffix without a dot", "example.com", pass("evilexample.com"), []Identifier{pass("example.com.evil.example")}, Fail, Reject},
		{"case and trailing dot", "Example.COM.", Identifier{}, []Identifier{pass("EXAMPLE.com")}, Pass, NonePolicy},
		{"IDN", "Bücher.test", Identifier{}, []Identifier{pass("xn--bcher-kva.test")}, Pass, NonePolicy},
		{"failed signature", "example.com", Identifier{"example.com", "softfail"}, []Identifier{{"example.com", "fail"}}, Fail, Reject},
		{"strict", "strict.example", pass("a.strict.example"), []Identifier{pass("b.strict.example")}, Fail, Reject},
		{"strict, the same", "strict.example", pass("strict.example"), nil, Pass, NonePolicy},
		{"testing", "testing.example", Identifier{}, nil, Fail, NonePolicy},
		{"does not exist", "gone.np.example", Identifier{}, nil, Fail, Reject},
		{"exists", "there.np.example", Identifier{}, nil, Fail, NonePolicy},
		{"exists, or not", "unsure.np.example", Identifier{}, nil, TempError, NonePolicy},
		{"no policy", "nothing.example", pass("nothing.example"), nil, None, NonePolicy},
		{"bad policy, bad address", "baduri.example", Identifier{}, nil, None, NonePolicy},
		{"bad sp", "badsp.example", Identifier{}, nil, Fail, NonePolicy},
		{"policy not known", "down.example", Identifier{}, nil, TempError, NonePolicy},
		{"policy above not known", "x.down.example", Identifier{}, nil, TempError, NonePolicy},
		{"psd=n ends the walk before it fails", "sub.down.example", Identifier{}, nil, Fail, Reject},
		{"bogus policy", "bogus.example", Identifier{}, nil, TempError, NonePolicy},
		{"SPF not known", "example.com", Identifier{"a.example.com", "temperror"}, nil, TempError, NonePolicy},
		{"DKIM not known", "example.com", Identifier{}, []Identifier{{"example.com", "temperror"}}, TempError, NonePolicy},
		{"DKIM not known, SPF passes", "example.com", pass("example.com"), []Identifier{{"example.com", "temperror"}}, Pass, NonePolicy},
		{"DKIM elsewhere not known", "example.com", Identifier{}, []Identifier{{"evil.example", "temperror"}}, Fail, Reject},
		{"walk of the identifier fails", "example.com", pass("down.example.com"), nil, TempError, NonePolicy},
		{"no domain", "a..b", Identifier{}, nil, PermError, Reject},
		{"NUL", "a\x00.b", pass("a\x00.b"), nil, PermError, Reject},
		{"empty", "", pass(""), nil, PermError, Reject},
	} {
		r := (&Verifier{Resolver: zone}).Verify(t.Context(), c.from, c.spf, c.dkim)
		if r.Status != c.want || r.Disposition != c.disposition {
			t.Errorf("%s: %+v", c.name, r)
		}
		if (r.Status == Pass || r.Status == Fail) != (r.Problem == "") || strings.Contains(r.Problem, "secret") {
			t.Errorf("%s: problem %q", c.name, r.Problem)
		}
	}
	if r := (&Verifier{}).Verify(t.Context(), "example.com", Identifier{}, nil); r.Status != TempError {
		t.Errorf("no resolver: %+v", r)
	}
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		v := &Verifier{Resolver: mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			<-ctx.Done()
			return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: typ, Kind: mailspine.ErrDNSTemporary, Err: ctx.Err()}
		})}
		if r := v.Verify(t.Context(), "example.com", Identifier{}, nil); r.Status != TempError || time.Since(begin) != DefaultTimeout {
			t.Errorf("after %v: %+v", time.Since(begin), r)
		}
	})
}

func TestParseRecord(t *testing.T) {
	rec, ok := ParseRecord("v=DMARC1;p=none; SP = Quarantine ;np=reject;adkim=s;psd=y;t=y;fo=1:d;rua=mailto:a@b.example!10m, nonsense ,https://c.example/d;p=reject")
	if !ok || rec.Policy != NonePolicy || rec.SubdomainPolicy != Quarantine || rec.NonexistentPolicy != Reject || !rec.StrictDKIM || rec.StrictSPF ||
		rec.PSD != "y" || !rec.Testing || rec.FailureOptions != "1:d" || !slices.Equal(rec.AggregateReports, []string{"mailto:a@b.example", "https://c.example/d"}) {
		t.Errorf("%+v", rec)
	}
	for _, s := range []string{"", "v=dmarc1; p=none", "v=DMARC2", " ;v=DMARC1", "p=none; v=DMARC1", "v=DMARC1 p=none", "vv=DMARC1"} {
		if _, ok := ParseRecord(s); ok {
			t.Errorf("%q is a record", s)
		}
	}
}

func ExampleVerifier() {
	v := &Verifier{Resolver: txt{"_dmarc.bank.example": "v=DMARC1; p=reject"}}
	ctx := context.Background()
	// Anybody's valid signature is not the bank's.
	r := v.Verify(ctx, "bank.example", Identifier{Domain: "evil.example", Status: "pass"}, []Identifier{{Domain: "evil.example", Status: "pass"}})
	fmt.Println(r.Status, r.Disposition)
	r = v.Verify(ctx, "news.bank.example", Identifier{}, []Identifier{{Domain: "bank.example", Status: "pass"}})
	fmt.Println(r.Status, r.OrgDomain, r.Queries)
	// Output:
	// fail reject
	// pass bank.example [_dmarc.news.bank.example _dmarc.bank.example _dmarc.example]
}
