package spf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
)

// counted counts the queries that an evaluation makes.
type counted struct {
	mailspine.Resolver
	n int
}

func (c *counted) Lookup(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	c.n++
	return c.Resolver.Lookup(ctx, name, t)
}

func TestLimits(t *testing.T) {
	many := func(format string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, " "+format, i)
		}
		return b.String()
	}
	z := txt(map[string]string{
		"redirect.example": "v=spf1 redirect=redirect.example",
		"include.example":  "v=spf1 include:include.example -all",
		"pair-a.example":   "v=spf1 include:pair-b.example",
		"pair-b.example":   "v=spf1 redirect=pair-a.example",
		"ten.example":      "v=spf1" + many("include:no%d.example", 10) + " -all",
		"eleven.example":   "v=spf1" + many("include:no%d.example", 11) + " -all",
		"bomb.example":     "v=spf1 exists:" + strings.Repeat("%{s}", 10000) + ".example -all",
		"voids.example":    "v=spf1" + many("exists:void%d.example", 3) + " -all",
		"twovoids.example": "v=spf1" + many("exists:void%d.example", 2) + " -all",
		"long.example":     "v=spf1 exists:" + strings.Repeat("x", 64) + ".example a:" + strings.Repeat("y.", 200) + "example -all",
		"expbomb.example":  "v=spf1 -all exp=bombtext.example",
		"bombtext.example": strings.Repeat("%{s}", 10000),
		"explong.example":  "v=spf1 -all exp=longtext.example",
		"longtext.example": strings.Repeat("x", 501),
		"exptab.example":   "v=spf1 -all exp=tabtext.example",
		"tabtext.example":  "a\tb",
		"terms.example":    "v=spf1" + many("ip4:10.0.%d.0/24", 200) + " -all",
		"huge.example":     "v=spf1 " + strings.Repeat("ip4:10.0.0.1 ", 5000) + "-all",
		"mx.example":       "v=spf1 mx -all",
		"tenmx.example":    "v=spf1 mx -all",
		"ptr.example":      "v=spf1 ptr -all",
		"p.example":        "v=spf1 exists:%{p}.x.example -all",
		"quote.example":    `v=spf1 exists:%{l}.x.example -all`,
	})
	for i := range 11 {
		z[fmt.Sprintf("no%d.example", i)] = []yamlPair{{"TXT", "v=spf1 ?all"}}
		z["mx.example"] = append(z["mx.example"], yamlPair{"MX", []any{"10", fmt.Sprintf("mx%d.example", i)}})
		if i < 10 {
			z["tenmx.example"] = append(z["tenmx.example"], yamlPair{"MX", []any{"10", fmt.Sprintf("mx%d.example", i)}})
		}
		z[fmt.Sprintf("mx%d.example", i)] = []yamlPair{{"A", "203.0.113.9"}}
	}
	for i := range 500 {
		z["1.2.0.192.in-addr.arpa"] = append(z["1.2.0.192.in-addr.arpa"], yamlPair{"PTR", fmt.Sprintf("p%d.example", i)})
	}
	for _, c := range []struct {
		domain  string
		want    Status
		queries int // at most
		problem string
	}{
		{"redirect.example", PermError, 11, "more than 10 terms"},
		{"include.example", PermError, 11, "more than 10 terms"},
		{"pair-a.example", PermError, 11, "more than 10 terms"},
		{"ten.example", Fail, 11, ""},
		{"eleven.example", PermError, 11, "more than 10 terms"},
		{"bomb.example", Fail, 1, ""},
		{"voids.example", PermError, 4, "found nothing"},
		{"twovoids.example", Fail, 3, ""},
		{"long.example", Fail, 2, ""},
		{"expbomb.example", Fail, 2, ""},
		{"explong.example", Fail, 2, ""},
		{"exptab.example", Fail, 2, ""},
		{"terms.example", Fail, 1, ""},
		{"huge.example", Fail, 1, ""},
		{"mx.example", PermError, 2, "more than 10 MX"},
		{"tenmx.example", Fail, 12, ""},
		{"ptr.example", Fail, 12, ""},
		{"p.example", Fail, 13, ""},
		{"quote.example", Fail, 1, ""}, // a backslash cannot be asked for, so nothing matches
	} {
		t.Run(c.domain, func(t *testing.T) {
			r := &counted{Resolver: z}
			local := strings.Repeat("l", 60)
			if c.domain == "quote.example" {
				local = `a\.b`
			}
			res := (&Verifier{Resolver: r}).Check(t.Context(), netip.MustParseAddr("192.0.2.1"), "h.example", mailspine.Address{Local: local, Domain: c.domain})
			if res.Status != c.want || !strings.Contains(res.Problem, c.problem) || res.Explanation != "" {
				t.Errorf("%+v", res)
			}
			if r.n > c.queries {
				t.Errorf("%d queries, want at most %d", r.n, c.queries)
			}
			if res.Lookups > MaxLookups {
				t.Errorf("%d lookups", res.Lookups)
			}
			checkField(t, res.Header(""))
		})
	}
}

func TestResolverErrors(t *testing.T) {
	from := mailspine.Address{Local: "joe", Domain: "example.org"}
	ip := netip.MustParseAddr("192.0.2.1")
	for kind, want := range map[error]Status{
		mailspine.ErrNXDomain: None, mailspine.ErrNoData: None,
		mailspine.ErrDNSTemporary: TempError, mailspine.ErrDNSBogus: TempError, errors.New("odd"): TempError,
	} {
		r := (&Verifier{Resolver: failing(kind)}).Check(t.Context(), ip, "h.example", from)
		if r.Status != want || r.Problem == "" || strings.Contains(r.Problem, "secret") {
			t.Errorf("%v: %+v", kind, r)
		}
	}
	if r := (&Verifier{}).Check(t.Context(), ip, "h.example", from); r.Status != TempError {
		t.Errorf("no resolver: %+v", r)
	}
	if r := (&Verifier{Resolver: zone{}}).Check(t.Context(), netip.Addr{}, "h.example", from); r.Status != None {
		t.Errorf("no address: %+v", r)
	}
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			if name == "example.org" {
				return mailspine.Answer{TXT: []string{"v=spf1 a:slow.example -all"}}, nil
			}
			<-ctx.Done()
			return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: typ, Kind: mailspine.ErrDNSTemporary, Err: ctx.Err()}
		})
		begin := time.Now()
		r := (&Verifier{Resolver: stuck}).Check(t.Context(), netip.MustParseAddr("192.0.2.1"), "h.example", mailspine.Address{Local: "joe", Domain: "example.org"})
		if r.Status != TempError || time.Since(begin) != DefaultTimeout || !strings.Contains(r.Problem, "time-out") {
			t.Errorf("after %v: %+v", time.Since(begin), r)
		}
	})
}

func TestIdentities(t *testing.T) {
	v := &Verifier{Resolver: txt(map[string]string{
		"mail.example.org":        "v=spf1 ip4:192.0.2.1 -all",
		"example.org":             "v=spf1 -all",
		"xn--bcher-kva.example":   "v=spf1 ip6:2001:db8::/32 -all",
		"local.example":           "v=spf1 exists:%{l}.x.example -all exp=text.example",
		"text.example":            "%{l} %{h} %{r} %{t} %{c}",
		"xn--bcher-kva.x.example": "A 127.0.0.2",
	}), Receiver: "mx.example.net", Now: func() time.Time { return time.Unix(1234, 0) }}
	ip := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		ip     string
		helo   string
		from   mailspine.Address
		status Status
		id     Identity
		domain string
	}{
		{"192.0.2.1", "mail.example.org", mailspine.Address{}, Pass, Helo, "mail.example.org"},
		{"::ffff:192.0.2.1", "mail.example.org", mailspine.Address{}, Pass, Helo, "mail.example.org"},
		{"192.0.2.1", "mail.example.org", mailspine.Address{Local: "joe", Domain: "Example.ORG."}, Fail, MailFrom, "example.org"},
		{"2001:db8::1", "x", mailspine.Address{Local: "joe", Domain: "Bücher.example"}, Pass, MailFrom, "xn--bcher-kva.example"},
		{"192.0.2.1", "[192.0.2.1]", mailspine.Address{}, None, Helo, "[192.0.2.1]"},
		{"192.0.2.1", "", mailspine.Address{}, None, Helo, ""},
		{"192.0.2.1", "h", mailspine.Address{Local: "a", Domain: "a\x00.example"}, None, MailFrom, "a\x00.example"},
		{"192.0.2.1", "h", mailspine.Address{Local: "a", Domain: "a\\.b.example"}, None, MailFrom, "a\\.b.example"},
		{"192.0.2.1", "h", mailspine.Address{Local: "bücher", Domain: "local.example"}, Fail, MailFrom, "local.example"}, // RFC 8616 section 4
	} {
		r := v.Check(t.Context(), netip.MustParseAddr(c.ip), c.helo, c.from)
		if r.Status != c.status || r.Identity != c.id || r.Domain != c.domain {
			t.Errorf("%+v: %+v", c, r)
		}
		checkField(t, r.Header("mx.example.net"))
	}
	for _, helo := range []string{"a\u0085X: y", "a\u2028X: y", "a\u2029X: y", "a\xffb", "a\r\nX: y"} {
		r := v.Check(t.Context(), ip, helo, mailspine.Address{})
		if f := string(r.Header(helo)); strings.ContainsAny(f, "\u0085\u2028\u2029") || strings.Contains(f, "\xff") || strings.Contains(f, "\nX") {
			t.Errorf("%q: %q", helo, f)
		}
	}
	r := v.Check(t.Context(), ip, "h.example", mailspine.Address{Local: "joe", Domain: "local.example"})
	if r.Explanation != "joe h.example mx.example.net 1234 192.0.2.1" {
		t.Errorf("%+v", r)
	}
	v.NoExplanation = true
	if r := v.Check(t.Context(), ip, "h.example", mailspine.Address{Local: "joe", Domain: "local.example"}); r.Explanation != "" {
		t.Errorf("%+v", r)
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, s := range []string{
		"v=spf1 -all", "v=spf1 a/24//64 mx:x.example ptr ip4:1.2.3.4/8 ip6:::1/64 ~exists:%{ir}.%{v}.%{d2}.example ?include:%{l1r+-}.x redirect=a.b exp=%{o}.c",
		"v=spf1 a:%%%_%-.example a:x/y.example/0//0 foo=%{c} -all", "V=SPF1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rec, err := ParseRecord(s)
		var se *SyntaxError
		switch {
		case err == nil:
			for _, d := range rec.Directives {
				if !strings.Contains(s, d.Text) {
					t.Errorf("%q is not in %q", d.Text, s)
				}
			}
		case !errors.As(err, &se) || se.Offset > len(s):
			t.Errorf("%v", err)
		case strings.ContainsAny(err.Error(), "\r\n\x00\x1b"):
			t.Errorf("control characters in %q", err)
		}
	})
}

func FuzzCheck(f *testing.F) {
	f.Add("v=spf1 exists:%{l1r-}.%{d}.%{h} a:%{p} mx ptr:%{o} -all exp=%{d}", "%{S} %{i} %{c} %{t}", "joe-x", "example.org", "h.example")
	f.Add("v=spf1 redirect=%{d} exp=a.b", "", "", "a.b", "")
	f.Add("v=spf1 include:%{s} -all", "x", "\"\\", "a.b.", "a b")
	f.Fuzz(func(t *testing.T, record, other, local, domain, helo string) {
		n := 0
		r := mailspine.ResolverFunc(func(_ context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			if n++; n > 250 {
				t.Fatal("too many queries")
			}
			if !validName(name) {
				t.Errorf("asked for %q", name)
			}
			switch {
			case typ == mailspine.TypeTXT && n%2 == 1:
				return mailspine.Answer{TXT: []string{record}}, nil
			case typ == mailspine.TypeTXT:
				return mailspine.Answer{TXT: []string{other}}, nil
			case typ == mailspine.TypeMX:
				return mailspine.Answer{MX: []mailspine.MX{{Host: domain}, {Host: other}, {Host: "a.b"}}}, nil
			case typ == mailspine.TypePTR:
				return mailspine.Answer{Names: []string{other, domain, "a.b"}}, nil
			case typ == mailspine.TypeA:
				return mailspine.Answer{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}, nil
			}
			return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: typ, Kind: mailspine.ErrNoData}
		})
		for _, ip := range []string{"192.0.2.7", "2001:db8::1"} {
			n = 0
			res := (&Verifier{Resolver: r, Now: func() time.Time { return time.Unix(0, 0) }}).
				Check(t.Context(), netip.MustParseAddr(ip), helo, mailspine.Address{Local: local, Domain: domain})
			if res.Status == "" || res.Lookups > MaxLookups {
				t.Errorf("%+v", res)
			}
			for _, s := range []string{res.Explanation, res.Mechanism} {
				for i := 0; i < len(s); i++ {
					if s[i] < ' ' || s[i] > 0x7e {
						t.Errorf("not printable: %q", s)
					}
				}
			}
			checkField(t, res.Header(helo))
		}
	})
}
