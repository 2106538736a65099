package tlsrpt

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

func addr(s string) mailspine.Address {
	a, err := mailspine.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return a
}

func TestParseRecord(t *testing.T) {
	mailto := func(uri, a string) Destination { return Destination{URI: uri, Address: addr(a)} }
	https := func(uri string) Destination { return Destination{URI: uri} }
	for _, c := range []struct {
		txt     string
		want    []Destination
		ignored int
		err     string // "": none; "none": ErrNoRecord; else part of a *SyntaxError
	}{
		// The examples of RFC 8460 section 3.1.
		{"v=TLSRPTv1;rua=mailto:reports@example.com", []Destination{mailto("mailto:reports@example.com", "reports@example.com")}, 0, ""},
		{"v=TLSRPTv1; rua=https://reporting.example.com/v1/tlsrpt", []Destination{https("https://reporting.example.com/v1/tlsrpt")}, 0, ""},
		{"v=TLSRPTv1; rua=mailto:a@example.com,https://example.com/r", []Destination{mailto("mailto:a@example.com", "a@example.com"), https("https://example.com/r")}, 0, ""},
		{"v=TLSRPTv1 ; rua = mailto:a@example.com , mailto:b@Example.com ;", []Destination{mailto("mailto:a@example.com", "a@example.com"), mailto("mailto:b@Example.com", "b@example.com")}, 0, ""},
		{"v=TLSRPTv1; ext=1; rua=mailto:a@example.com; x-y_z.1=abc", []Destination{mailto("mailto:a@example.com", "a@example.com")}, 0, ""},
		{"v=TLSRPTv1; rua=mailto:a@example.com; rua=https://h/", []Destination{mailto("mailto:a@example.com", "a@example.com"), https("https://h/")}, 0, ""},
		{"v=TLSRPTv1; rua=MAILTO:a%2Cb@example.com", nil, 1, ""}, // a comma is no atext
		{"v=TLSRPTv1; rua=mailto:a%2Bb@example.com?subject=x", []Destination{mailto("mailto:a%2Bb@example.com?subject=x", "a+b@example.com")}, 0, ""},
		{"v=TLSRPTv1; rua=mailto:a@bücher.example", nil, 1, ""}, // a URI is ASCII
		{"v=TLSRPTv1; rua=mailto:a@b%C3%BCcher.example", []Destination{{"mailto:a@b%C3%BCcher.example", mailspine.Address{Local: "a", Domain: "xn--bcher-kva.example"}}}, 0, ""},
		{"v=TLSRPTv1; rua=mailto:%C3%BC@example.org", nil, 1, ""},
		{"v=TLSRPTv1; rua=http://example.org/,ftp://x/,mailto:,https://,https://u:p@h/,mailto:a@[192.0.2.1],https:x", nil, 7, ""},
		{"v=TLSRPTv1; rua=mailto:a@b%0d%0ac.example", nil, 1, ""},
		{"v=TLSRPTv1; rua=mailto:\"a b\"@example.org", nil, 1, ""},
		{"v=TLSRPTv1; rua=" + strings.Repeat("mailto:a@example.org,", 30), repeat(mailto("mailto:a@example.org", "a@example.org"), MaxDestinations), MaxDestinations, ""},

		{"", nil, 0, "none"},
		{"v=TLSRPTv1", nil, 0, "none"},
		{"v=tlsrptv1; rua=mailto:a@example.com", nil, 0, "none"},
		{" v=TLSRPTv1; rua=mailto:a@example.com", nil, 0, "none"},
		{"v=TLSRPTv2; rua=mailto:a@example.com", nil, 0, "none"},
		{"v=spf1 -all", nil, 0, "none"},
		{"v=TLSRPTv1;", nil, 0, "octet 11: rua= is missing"},
		{"v=TLSRPTv1; rua=", nil, 0, "rua= is missing"},
		{"v=TLSRPTv1; RUA=mailto:a@example.com", nil, 0, "rua= is missing"},
		{"v=TLSRPTv1; foo; rua=mailto:a@example.com", nil, 0, "octet 11: a field without ="},
		{"v=TLSRPTv1; ;rua=mailto:a@example.com", nil, 0, "a field without ="},
		{"v=TLSRPTv1; -a=b; rua=mailto:a@example.com", nil, 0, "not the name"},
		{"v=TLSRPTv1; rua=mailto:a@example.com" + strings.Repeat("; a=b", 200), nil, 0, "more than 100"},
		{"v=TLSRPTv1; rua=" + strings.Repeat("a", MaxRecord), nil, 0, "longer than"},
	} {
		rec, err := ParseRecord(c.txt)
		var syntax *SyntaxError
		switch {
		case c.err == "none" && !errors.Is(err, ErrNoRecord),
			c.err == "" && err != nil,
			c.err != "" && c.err != "none" && (!errors.As(err, &syntax) || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%.80q: error %v, not %q", c.txt, err, c.err)
		}
		if !reflect.DeepEqual(rec.Destinations, c.want) || len(rec.Ignored) != c.ignored {
			t.Errorf("%.80q: %v and %q ignored, not %v and %d", c.txt, rec.Destinations, rec.Ignored, c.want, c.ignored)
		}
	}
}

func TestRecordString(t *testing.T) {
	r := Record{Destinations: []Destination{{URI: "mailto:tls!rpt@example.org", Address: addr("tls!rpt@example.org")}, {URI: "https://example.org/a,b;c"}}}
	const want = "v=TLSRPTv1; rua=mailto:tls%21rpt@example.org,https://example.org/a%2Cb%3Bc"
	if r.String() != want || (Record{}).String() != "" {
		t.Errorf("%q", r.String())
	}
	got, err := ParseRecord(want)
	if err != nil || len(got.Destinations) != 2 || got.Destinations[0].Address != r.Destinations[0].Address {
		t.Errorf("%+v, %v", got, err)
	}
}

func repeat(d Destination, n int) (out []Destination) {
	for range n {
		out = append(out, d)
	}
	return out
}

func TestLookupRecord(t *testing.T) {
	const rec = "v=TLSRPTv1; rua=mailto:a@example.com"
	zone := dnstest.Zone{
		"_smtp._tls.one.example":                {dnstest.TXT(rec)},
		"_smtp._tls.split.example":              {dnstest.TXT("v=TLSRPTv1; ", "rua=mailto:a@example.com")},
		"_smtp._tls.other.example":              {dnstest.TXT("v=spf1 -all"), dnstest.TXT(rec), dnstest.TXT("v=TLSRPTv1")},
		"_smtp._tls.two.example":                {dnstest.TXT(rec), dnstest.TXT("v=TLSRPTv1; rua=https://x/")},
		"_smtp._tls.broken.example":             {dnstest.TXT("v=TLSRPTv1; what")},
		"_smtp._tls.nodata.example":             {dnstest.A("192.0.2.1")},
		"_smtp._tls.fail.example":               {dnstest.ServFail},
		"_smtp._tls.bogus.example":              {dnstest.Bogus},
		"_smtp._tls.alias.example":              {dnstest.CNAME("_smtp._tls.one.example")},
		"_smtp._tls.xn--bcher-kva.example":      {dnstest.TXT(rec)},
		"_smtp._tls.sub.of.a.long.name.example": {dnstest.TXT(rec)},
	}
	for domain, want := range map[string]error{
		"one.example": nil, "ONE.example.": nil, "split.example": nil, "other.example": nil, "alias.example": nil, "bücher.example": nil,
		"sub.of.a.long.name.example": nil,
		"two.example":                ErrNoRecord, "nodata.example": ErrNoRecord, "missing.example": ErrNoRecord,
		"fail.example": mailspine.ErrDNSTemporary, "bogus.example": mailspine.ErrDNSBogus,
		"[192.0.2.1]": ErrNoRecord, "": ErrNoRecord, "a b.example": ErrNoRecord, strings.Repeat("a.", 130) + "b": ErrNoRecord,
	} {
		got, err := LookupRecord(context.Background(), zone, domain)
		if !errors.Is(err, want) {
			t.Errorf("%q: error %v, not %v", domain, err, want)
		}
		if err == nil && (len(got.Destinations) != 1 || got.Destinations[0].Address != addr("a@example.com")) {
			t.Errorf("%q: %v", domain, got)
		}
	}
	var syntax *SyntaxError
	if _, err := LookupRecord(context.Background(), zone, "broken.example"); !errors.As(err, &syntax) {
		t.Errorf("a broken record: %v", err)
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, s := range []string{
		"v=TLSRPTv1;rua=mailto:reports@example.com", "v=TLSRPTv1; rua=https://e.example/v1/tlsrpt, mailto:a%2Bb@example.com?x=y; ext=1;",
		"v=TLSRPTv1; rua=mailto:%", "v=TLSRPTv1;", "v=TLSRPTv1; rua=https://[::1]:9/%zz", "v=spf1 -all", "v=TLSRPTv1;rua=,;rua=:",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rec, err := ParseRecord(s)
		if err != nil {
			var syntax *SyntaxError
			if !errors.Is(err, ErrNoRecord) && !errors.As(err, &syntax) {
				t.Fatalf("an error of no kind: %v", err)
			}
			if syntax != nil && (syntax.Offset < 0 || syntax.Offset > len(s)) {
				t.Fatalf("offset %d of %d", syntax.Offset, len(s))
			}
			return
		}
		if len(rec.Destinations) > MaxDestinations || len(rec.Ignored) > MaxDestinations || len(rec.Destinations)+len(rec.Ignored) == 0 {
			t.Fatalf("%d and %d", len(rec.Destinations), len(rec.Ignored))
		}
		for _, d := range rec.Destinations {
			if d.Address.IsZero() {
				if !strings.HasPrefix(strings.ToLower(d.URI), "https://") {
					t.Fatalf("%q is no https URI", d.URI)
				}
				continue
			}
			if again, err := ParseRecord(rec.String()); err != nil || len(again.Destinations) != len(rec.Destinations) {
				t.Fatalf("%q is written as %q: %v", s, rec, err)
			}
			if err := d.Address.Validate(); err != nil || !d.Address.IsASCII() || strings.ContainsAny(d.Address.String(), "\r\n") {
				t.Fatalf("address %q: %v", d.Address, err)
			}
		}
	})
}
