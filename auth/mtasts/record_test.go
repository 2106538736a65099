package mtasts

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

func TestParseRecord(t *testing.T) {
	for txt, want := range map[string]string{
		"v=STSv1; id=20160831085700Z;":                      "20160831085700Z", // RFC 8461 section 3.1
		"v=STSv1;id=1":                                      "1",
		"v=STSv1; id=aB9":                                   "aB9",
		"v=STSv1 \t; \t id=1 \t; ":                          "1",
		"v=STSv1; x=y; id=1; z.a_b-c=~!:<>{}":               "1",
		"v=STSv1; id=1; id=2":                               "1",
		"v=STSv1; id=1; id=-":                               "1", // all but the first are ignored
		"v=STSv1; id=" + strings.Repeat("a", 32):            strings.Repeat("a", 32),
		"v=STSv1; " + strings.Repeat("n", 32) + "=v; id=1;": "1",
	} {
		if id, err := ParseRecord(txt); err != nil || id != want {
			t.Errorf("%q: %q, %v", txt, id, err)
		}
	}
	for _, txt := range []string{"", "v=STSv1", "v=STSv2; id=1;", "v=stsv1; id=1;", " v=STSv1; id=1", "V=STSv1; id=1", "v =STSv1; id=1", "v=STSv10; id=1", "v=spf1 -all", "id=1; v=STSv1;"} {
		if id, err := ParseRecord(txt); !errors.Is(err, ErrNoRecord) || id != "" {
			t.Errorf("%q is no record: %q, %v", txt, id, err)
		}
	}
	for txt, want := range map[string]string{
		"v=STSv1;":                               "missing",
		"v=STSv1; ;":                             "missing",
		"v=STSv1; x=y;":                          "missing",
		"v=STSv1; ID=1;":                         "missing",
		"v=STSv1; id=;":                          "1 to 32",
		"v=STSv1; id=" + strings.Repeat("a", 33): "1 to 32",
		"v=STSv1; id=2016-08-31":                 "1 to 32",
		"v=STSv1; id=é":                          "1 to 32",
		"v=STSv1; id=1 2":                        "1 to 32",
		"v=STSv1; id =1":                         "no name",
		"v=STSv1; id= 1":                         "1 to 32",
		"v=STSv1; id=1; x":                       "no name",
		"v=STSv1; id=1;; x=y":                    "no name",
		"v=STSv1; id=1; x=":                      "not allowed",
		"v=STSv1; id=1; x=a b":                   "not allowed",
		"v=STSv1; id=1; x=a=b":                   "not allowed",
		"v=STSv1; id=1; x=\x7f":                  "not allowed",
		"v=STSv1; id=1; _x=y":                    "no name",
		"v=STSv1; id=1; " + strings.Repeat("n", 33) + "=v":   "no name",
		"v=STSv1; id=1; x=" + strings.Repeat("a", MaxRecord): "longer",
	} {
		if id, err := ParseRecord(txt); err == nil || errors.Is(err, ErrNoRecord) || id != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %q, %v", txt, id, err)
		}
	}
}

func TestLookupRecord(t *testing.T) {
	zone := dnstest.Zone{
		"_mta-sts.good.example":     {dnstest.TXT("v=spf1 -all"), dnstest.TXT("v=ST", "Sv1; i", "d=17;"), dnstest.TXT("v=STSv2; id=3;")},
		"_mta-sts.two.example":      {dnstest.TXT("v=STSv1; id=1;"), dnstest.TXT("v=STSv1; id=1;")},
		"_mta-sts.twobad.example":   {dnstest.TXT("v=STSv1; id=1;"), dnstest.TXT("v=STSv1 ;id=-;")},
		"_mta-sts.bad.example":      {dnstest.TXT("v=STSv1; id=a-b;")},
		"_mta-sts.other.example":    {dnstest.TXT("v=spf1 -all")},
		"_mta-sts.nodata.example":   {dnstest.A("192.0.2.1")},
		"_mta-sts.fails.example":    {dnstest.ServFail},
		"_mta-sts.bogus.example":    {dnstest.Bogus},
		"_mta-sts.alias.example":    {dnstest.CNAME("_mta-sts.good.example")},
		"_mta-sts.xn--bcher-kva.ch": {dnstest.TXT("v=STSv1; id=b")},
	}
	for domain, want := range map[string]string{"good.example": "17", "GOOD.Example.": "17", "alias.example": "17", "bücher.ch": "b", "xn--bcher-kva.ch": "b"} {
		if id, err := LookupRecord(t.Context(), zone, domain); err != nil || id != want {
			t.Errorf("%s: %q, %v", domain, id, err)
		}
	}
	for domain, c := range map[string]struct {
		kind Kind
		none bool
		is   error
	}{
		"nothing.example": {KindRecord, true, nil}, "other.example": {KindRecord, true, nil}, "nodata.example": {KindRecord, true, nil},
		"two.example": {KindRecord, false, nil}, "twobad.example": {KindRecord, false, nil}, "bad.example": {KindRecord, false, nil},
		"fails.example": {KindDNS, false, mailspine.ErrDNSTemporary}, "bogus.example": {KindDNS, false, mailspine.ErrDNSBogus},
		"[192.0.2.1]": {KindRecord, true, nil}, "": {KindRecord, true, nil}, "a b.example": {KindRecord, true, nil}, strings.Repeat("a.", 125) + "ab": {KindRecord, true, nil},
	} {
		id, err := LookupRecord(t.Context(), zone, domain)
		var e *Error
		if id != "" || !errors.As(err, &e) || e.Kind != c.kind || errors.Is(err, ErrNoRecord) != c.none || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%.40s: %q, %v", domain, id, err)
		}
	}
	if _, err := LookupRecord(t.Context(), nil, "good.example"); err == nil {
		t.Error("without a Resolver nothing is known")
	}
}

func TestRecord(t *testing.T) {
	p := Policy{Mode: ModeEnforce, MX: []string{"mx.example.org"}, MaxAge: time.Hour}
	seen := map[string]bool{}
	for _, f := range []func(){
		func() {}, func() { p.Mode = ModeTesting }, func() { p.MaxAge *= 2 }, func() { p.MX = append(p.MX, "*.example.org") }, func() { p.Mode, p.MX = ModeNone, nil },
	} {
		f()
		txt := Record(p)
		id, err := ParseRecord(txt)
		if err != nil || seen[id] || Record(p) != txt {
			t.Errorf("%+v: %q, %v", p, txt, err)
		}
		seen[id] = true
	}
	p.ID = "20261124"
	if txt := Record(p); txt != "v=STSv1; id=20261124;" {
		t.Error(txt)
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, s := range []string{"v=STSv1; id=20160831085700Z;", "v=STSv1;id=1;x=y", "v=STSv1 ;;id=", "v=STSv1; =; id=1", "v=spf1 -all"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, txt string) {
		id, err := ParseRecord(txt)
		if (err == nil) != isID(id) {
			t.Fatalf("%q, %v", id, err)
		}
		if err != nil && len(err.Error()) > 600 {
			t.Fatalf("an error of %d octets", len(err.Error()))
		}
		if err == nil {
			if again, err := ParseRecord(Record(Policy{ID: id})); again != id || err != nil {
				t.Fatalf("%q and again %q, %v", id, again, err)
			}
		}
	})
}
