package bimi

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseRecord(t *testing.T) {
	const l = "https://example.org/logo.svg"
	long := "https://example.org/" + strings.Repeat("a", MaxURI-20)
	for _, c := range []struct {
		txt  string
		want *Record // nil: an error
		err  string  // "none": ErrNoRecord; otherwise part of the text of a SyntaxError
	}{
		{"v=BIMI1; l=" + l, &Record{Indicator: l}, ""},
		{"v=BIMI1; l=" + l + ";", &Record{Indicator: l}, ""},
		{"v=BIMI1;l=" + l + " ; ", &Record{Indicator: l}, ""},
		{"v = BIMI1 ; l\t=\t" + l + "\t;", &Record{Indicator: l}, ""},
		{"v=BIMI1; a=https://example.org/vmc.pem; l=" + l, &Record{Indicator: l, Evidence: "https://example.org/vmc.pem"}, ""},
		{"v=BIMI1; l=" + l + "; a=; new=thing; x_1=", &Record{Indicator: l}, ""},
		{"v=BIMI1; l=HTTPS://Example.ORG:8443/a/?b=c&d=%20#e", &Record{Indicator: "HTTPS://Example.ORG:8443/a/?b=c&d=%20#e"}, ""},
		{"v=BIMI1; l=https://image.example.com/bimi/logo/", &Record{Indicator: "https://image.example.com/bimi/logo/"}, ""},
		{"v=BIMI1; l=https://example.org/logo.SVGZ", &Record{Indicator: "https://example.org/logo.SVGZ"}, ""},
		{"v=BIMI1; l=" + long, &Record{Indicator: long}, ""},

		// Declination to Publish.
		{"v=BIMI1; l=; a=;", &Record{}, ""},
		{"v=BIMI1; l=", &Record{}, ""},
		{"v=BIMI1; a=; l= ; ", &Record{}, ""},
		{"v=BIMI1; l=; a=; lps=brand-indicators-;", &Record{LocalPart: true, LocalPrefixes: []string{"brand-indicators-"}}, ""},

		{"v=BIMI1; l=; lps=", &Record{LocalPart: true}, ""},
		{"v=BIMI1; l=; lps = Brand-one-noreply , brand-two", &Record{LocalPart: true, LocalPrefixes: []string{"brand-one-noreply", "brand-two"}}, ""},
		{"v=BIMI1; l=; avp=personal", &Record{Preference: "personal"}, ""},
		{"v=BIMI1; l=; avp=brand;", &Record{Preference: "brand"}, ""},
		{"v=BIMI1; l=; avp=Brand", &Record{}, ""}, // not valid: ignored
		{"v=BIMI1; l=; avp=", &Record{}, ""},

		// Not records at all.
		{"", nil, "none"},
		{"v=BIMI", nil, "none"},
		{"v=BIMI2; l=" + l, nil, "none"},
		{"v=BIMI10; l=" + l, nil, "none"},
		{"v=bimi1; l=" + l, nil, "none"},
		{"V=BIMI1; l=" + l, nil, "none"},
		{" v=BIMI1; l=" + l, nil, "none"},
		{"l=" + l + "; v=BIMI1", nil, "none"},
		{"v=BIMI1 l=" + l, nil, "none"},
		{"v=BIMI1\r\n; l=" + l, nil, "none"},
		{"v=spf1 -all", nil, "none"},
		{"; v=BIMI1; l=", nil, "none"},
		{strings.Repeat("x", MaxRecord+1), nil, "none"},

		// Broken ones.
		{"v=BIMI1", nil, "l=: the tag is missing"},
		{"v=BIMI1; a=https://example.org/vmc.pem", nil, "l=: the tag is missing"},
		{"v=BIMI1; L=" + l, nil, "l=: the tag is missing"},
		{"v=BIMI1; l=" + l + "; l=" + l, nil, "twice"},
		{"v=BIMI1; l=; v=BIMI1", nil, "twice"},
		{"v=BIMI1; l=; x=1; x=2", nil, "twice"},
		{"v=BIMI1;; l=", nil, "without ="},
		{"v=BIMI1; l=;;", nil, "without ="},
		{"v=BIMI1; l", nil, "without ="},
		{"v=BIMI1; =x; l=", nil, "not the name"},
		{"v=BIMI1; 1x=; l=", nil, "not the name"},
		{"v=BIMI1; l x=; l=", nil, "not the name"},
		{"v=BIMI1; l=; x=\x00", nil, "printable"},
		{"v=BIMI1; l=; x=é", nil, "printable"},
		{"v=BIMI1; l=http://example.org/logo.svg", nil, "https"},
		{"v=BIMI1; l=//example.org/logo.svg", nil, "https"},
		{"v=BIMI1; l=logo.svg", nil, "https"},
		{"v=BIMI1; l=javascript:alert(1)", nil, "https"},
		{"v=BIMI1; l=https:example.org", nil, "fully qualified"},
		{"v=BIMI1; l=https:///logo.svg", nil, "fully qualified"},
		{"v=BIMI1; l=https://localhost/logo.svg", nil, "fully qualified"},
		{"v=BIMI1; l=https://127.0.0.1/logo.svg", nil, "fully qualified"},
		{"v=BIMI1; l=https://0x7f.1/logo.svg", nil, "fully qualified"},
		{"v=BIMI1; l=https://[::1]/logo.svg", nil, "single URI"},
		{"v=BIMI1; l=https://-a.example.org/logo.svg", nil, "fully qualified"},
		{"v=BIMI1; l=https://exa%6Dple_.org/logo.svg", nil, ""},
		{"v=BIMI1; l=https://example.org:x/logo.svg", nil, "not a URI"},
		{"v=BIMI1; l=https://user@example.org/logo.svg", nil, "user name"},
		{"v=BIMI1; l=https://bank.example@evil.example/logo.svg", nil, "user name"},
		{"v=BIMI1; l=" + l + "," + l, nil, "comma"},
		{"v=BIMI1; l=" + l + " " + l, nil, "single URI"},
		{"v=BIMI1; l=https://example.org/%zz", nil, "single URI"},
		{"v=BIMI1; l=https://example.org/\"><script", nil, "single URI"},
		{"v=BIMI1; l=https://example.org\\logo.svg", nil, "single URI"},
		{"v=BIMI1; l=" + long + "a", nil, "longer"},
		{"v=BIMI1; l=https://example.org/logo.png", nil, "SVG"},
		{"v=BIMI1; l=https://example.org/logo.JPG?x=.svg", nil, "SVG"},
		{"v=BIMI1; l=" + l + "; a=http://example.org/vmc.pem", nil, "a=: not a https"},
		{"v=BIMI1; l=" + l + "; a=self", nil, "a=: not a https"},
		{"v=BIMI1; l=; lps=a_b", nil, "lps=: a prefix"},
		{"v=BIMI1; l=; lps=a,,b", nil, "lps=: a prefix"},
		{"v=BIMI1; l=; lps=" + strings.Repeat("a", 64), nil, "lps=: a prefix"},
		{"v=BIMI1; l=" + strings.Repeat("; x=", MaxRecord), nil, "longer"},
		{"v=BIMI1; l=" + tagsOf(MaxTags+1), nil, "too many"},
	} {
		rec, err := ParseRecord(c.txt)
		var syntax *SyntaxError
		switch {
		case c.want != nil:
			if err != nil || !reflect.DeepEqual(rec, c.want) {
				t.Errorf("%.80q: %+v %v, want %+v", c.txt, rec, err, c.want)
			}
		case rec != nil:
			t.Errorf("%.80q: %+v, want an error", c.txt, rec)
		case c.err == "none":
			if !errors.Is(err, ErrNoRecord) {
				t.Errorf("%.80q: %v, want ErrNoRecord", c.txt, err)
			}
		case !errors.As(err, &syntax) || errors.Is(err, ErrNoRecord) || !strings.Contains(err.Error(), c.err) || syntax.Offset > len(c.txt):
			t.Errorf("%.80q: %v, want %q", c.txt, err, c.err)
		}
	}
}

func tagsOf(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(";t" + strings.Repeat("x", i) + "=")
	}
	return b.String()
}

func TestSyntaxErrorOffset(t *testing.T) {
	_, err := ParseRecord("v=BIMI1; l=http://example.org/")
	if want := "bimi: octet 8: l=: not a https URI"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// Whatever its order and white space, a record means what was written into it.
func TestRecordProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ws := rapid.SampledFrom([]string{"", " ", "\t ", "  "})
		uri := rapid.SampledFrom([]string{"", "https://example.org/l.svg", "https://a.b.example/%2C/x?y=z", "https://example.org"})
		prefix := rapid.SliceOfN(rapid.StringMatching(`[a-z0-9-]{1,63}`), 0, 4)
		want := &Record{Indicator: uri.Draw(t, "l")}
		tags := [][2]string{{"l", want.Indicator}}
		if rapid.Bool().Draw(t, "has a") {
			want.Evidence = uri.Draw(t, "a")
			tags = append(tags, [2]string{"a", want.Evidence})
		}
		if rapid.Bool().Draw(t, "has lps") {
			want.LocalPart = true
			if p := prefix.Draw(t, "lps"); len(p) > 0 {
				want.LocalPrefixes = p
			}
			tags = append(tags, [2]string{"lps", strings.Join(want.LocalPrefixes, ws.Draw(t, "ws")+",")})
		}
		if rapid.Bool().Draw(t, "has avp") {
			want.Preference = rapid.SampledFrom([]string{"brand", "personal"}).Draw(t, "avp")
			tags = append(tags, [2]string{"avp", want.Preference})
		}
		if rapid.Bool().Draw(t, "has another") {
			tags = append(tags, [2]string{"other", rapid.StringMatching(`[!-:<-~]*`).Draw(t, "other")})
		}
		tags = rapid.Permutation(tags).Draw(t, "order")
		txt := "v" + ws.Draw(t, "ws") + "=" + ws.Draw(t, "ws") + "BIMI1"
		for _, tag := range tags {
			txt += ws.Draw(t, "ws") + ";" + ws.Draw(t, "ws") + tag[0] + ws.Draw(t, "ws") + "=" + ws.Draw(t, "ws") + tag[1]
		}
		txt += rapid.SampledFrom([]string{"", ";", " ; "}).Draw(t, "end")
		rec, err := ParseRecord(txt)
		if err != nil || !reflect.DeepEqual(rec, want) {
			t.Fatalf("%q: %+v %v, want %+v", txt, rec, err, want)
		}
	})
}

func TestParseSelector(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{"v=BIMI1; s=brand;", "brand"},
		{"v=BIMI1; s=Brand", "brand"},
		{"v=BIMI1;\ts = a-1.b2 ; other=1", "a-1.b2"},
		{"v=BIMI1; s=default", "default"},
		// Appendix "Invalid BIMI-Selector Header".
		{"s=myselector;", ""},
		{"s=myselector; v=BIMI1", ""},
		{"v=BIMI1", ""},
		{"v=BIMI1; s=", ""},
		{"v=BIMI2; s=a", ""},
		{"v=BIMI1; S=a", ""},
		{"v=BIMI1; s=a; s=b", ""},
		{"v=BIMI1; s=a b", ""},
		{"v=BIMI1; s=a_b", ""},
		{"v=BIMI1; s=-a", ""},
		{"v=BIMI1; s=a-", ""},
		{"v=BIMI1; s=.a", ""},
		{"v=BIMI1; s=a..b", ""},
		{"v=BIMI1; s=a.", ""},
		{"v=BIMI1; s=é", ""},
		{"v=BIMI1; s=" + strings.Repeat("a", 63), strings.Repeat("a", 63)},
		{"v=BIMI1; s=" + strings.Repeat("a", 64), ""},
		{"v=BIMI1; s=" + strings.Repeat("a.", 127) + "a", ""},
	} {
		got, err := ParseSelector(c.value)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%.80q: %q %v, want %q", c.value, got, err, c.want)
		}
	}
}

func TestLocalSelector(t *testing.T) {
	for _, c := range []struct{ local, want string }{
		{"News", "news"},
		{"brand_one.NoReply", "brand-one-noreply"},
		{"a._.b", "a-b"},
		{"a-.b", "a--b"}, // the dash was there: only dots and underscores are a group
		{"._a_.", "a"},
		{"-a-", "a"},
		{"joe+tag+tag", "joe"},
		{"+tag", ""},
		{"", ""},
		{"___", ""},
		{"a b", ""},
		{"a@b", ""},
		{"é", ""},
		{"a\x00", ""},
		{strings.Repeat("a", 63), strings.Repeat("a", 63)},
		{strings.Repeat("a", 64), ""},
	} {
		if got, ok := LocalSelector(c.local); got != c.want || ok != (c.want != "") {
			t.Errorf("%q: %q %v, want %q", c.local, got, ok, c.want)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add("v=BIMI1; l=https://example.org/l.svg; a=https://example.org/v.pem; lps=a,b; avp=personal")
	f.Add("v=BIMI1; l=; a=;")
	f.Add("v = BIMI1;;l")
	f.Add("v=BIMI1; l=https://[::1%25]/,")
	f.Fuzz(func(t *testing.T, s string) {
		rec, err := ParseRecord(s)
		var syntax *SyntaxError
		switch {
		case (rec == nil) != (err != nil):
			t.Fatal("record and error disagree")
		case err != nil && !errors.Is(err, ErrNoRecord) && !errors.As(err, &syntax):
			t.Fatalf("another error: %v", err)
		case syntax != nil && (syntax.Offset < 0 || syntax.Offset > len(s) || !strings.HasPrefix(s, "v")):
			t.Fatalf("%v for %q", err, s)
		case err != nil:
			return
		}
		for _, u := range []string{rec.Indicator, rec.Evidence} {
			if u != "" && (!strings.EqualFold(u[:min(len(u), 8)], "https://") || len(u) > MaxURI || strings.ContainsAny(u, " \t\r\n;,\"<>\\")) {
				t.Errorf("URI %q", u)
			}
		}
		if slices.ContainsFunc(rec.LocalPrefixes, func(p string) bool { return !isLocalSelector(p) }) {
			t.Errorf("%q", rec.LocalPrefixes)
		}
		r := Result{Status: Pass, Indicator: rec.Indicator, Preference: rec.Preference}
		for line := range strings.SplitSeq(strings.TrimSuffix(string(r.Header()), "\r\n"), "\r\n") {
			if len(line) > 998 || strings.ContainsAny(line, "\r\n\x00") {
				t.Errorf("%q", line)
			}
		}
	})
}

func FuzzParseSelector(f *testing.F) {
	f.Add("v=BIMI1; s=brand")
	f.Add("v=BIMI1; s=a.b-c;x=")
	f.Fuzz(func(t *testing.T, s string) {
		sel, err := ParseSelector(s)
		if (sel == "") != (err != nil) || err == nil && (!isSelector(sel) || sel != strings.ToLower(sel)) {
			t.Errorf("%q: %q %v", s, sel, err)
		}
	})
}
