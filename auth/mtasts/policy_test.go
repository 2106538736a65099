package mtasts

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The policy of RFC 8461 section 3.2.
const rfcPolicy = "version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmx: backupmx.example.com\r\nmax_age: 604800\r\n"

func TestParsePolicy(t *testing.T) {
	const day = 24 * time.Hour
	rfc := Policy{Mode: ModeEnforce, MX: []string{"mail.example.com", "*.example.net", "backupmx.example.com"}, MaxAge: 7 * day}
	one := Policy{Mode: ModeTesting, MX: []string{"a.example"}, MaxAge: day}
	for name, c := range map[string]struct {
		in   string
		want Policy
	}{
		"of the RFC":                   {rfcPolicy, rfc},
		"LF":                           {strings.ReplaceAll(rfcPolicy, "\r\n", "\n"), rfc},
		"no end of the last line":      {strings.TrimSuffix(rfcPolicy, "\r\n"), rfc},
		"other order":                  {"max_age: 86400\nmx: a.example\nmode: testing\nversion: STSv1\n", one},
		"no space":                     {"version:STSv1\nmode:testing\nmx:a.example\nmax_age:86400", one},
		"much space":                   {"version: \t STSv1 \t\nmode:\t testing\t\r\nmx:  a.example  \nmax_age: 86400 \n", one},
		"empty lines":                  {"\nversion: STSv1\n\r\nmode: testing\n  \nmx: a.example\nmax_age: 86400\n\n\n", one},
		"case of hosts":                {"version: STSv1\nmode: testing\nmx: A.Example\nmax_age: 86400\n", one},
		"unknown keys":                 {"version: STSv1\nmode: testing\nx-y.z_1: whatever: \"it\" is é\nmx: a.example\nmax_age: 86400\nlast: 1\n", one},
		"known key in other case":      {"version: STSv1\nmode: testing\nMODE: enforce\nMx: b.example\nmx: a.example\nmax_age: 86400\n", one},
		"the first counts":             {"version: STSv1\nversion: STSv2\nmode: testing\nmode: enforce\nmode: 7\nmx: a.example\nmax_age: 86400\nmax_age: -1\n", one},
		"none without mx":              {"version: STSv1\nmode: none\nmax_age: 0\n", Policy{Mode: ModeNone}},
		"none with mx":                 {"version: STSv1\nmode: none\nmx: a.example\nmax_age: 86400\n", Policy{Mode: ModeNone, MX: []string{"a.example"}, MaxAge: day}},
		"max_age cut to a year":        {"version: STSv1\nmode: testing\nmx: a.example\nmax_age: 9999999999\n", Policy{Mode: ModeTesting, MX: []string{"a.example"}, MaxAge: 31557600 * time.Second}},
		"max_age of a year":            {"version: STSv1\nmode: testing\nmx: a.example\nmax_age: 31557600\n", Policy{Mode: ModeTesting, MX: []string{"a.example"}, MaxAge: MaxMaxAge}},
		"max_age with leading zeros":   {"version: STSv1\nmode: testing\nmx: a.example\nmax_age: 0000086400\n", one},
		"a host of one label":          {"version: STSv1\nmode: testing\nmx: localhost\nmx: *.org\nmax_age: 86400\n", Policy{Mode: ModeTesting, MX: []string{"localhost", "*.org"}, MaxAge: day}},
		"A-labels":                     {"version: STSv1\nmode: testing\nmx: xn--bcher-kva.example\nmax_age: 86400\n", Policy{Mode: ModeTesting, MX: []string{"xn--bcher-kva.example"}, MaxAge: day}},
		"key of 32 characters":         {"version: STSv1\nmode: testing\n" + strings.Repeat("k", 32) + ": v\nmx: a.example\nmax_age: 86400\n", one},
		"unknown key without a value":  {"version: STSv1\nmode: testing\nfuture:\nmx: a.example\nmax_age: 86400\n", one},
		"the same pattern twice stays": {"version: STSv1\nmode: testing\nmx: a.example\nmx: a.example\nmax_age: 86400\n", Policy{Mode: ModeTesting, MX: []string{"a.example", "a.example"}, MaxAge: day}},
	} {
		got, err := ParsePolicy([]byte(c.in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("%s: what was parsed is valid: %v", name, err)
		}
	}
}

func TestParsePolicyErrors(t *testing.T) {
	with := func(old, new string) string {
		if !strings.Contains(rfcPolicy, old) {
			panic(old)
		}
		return strings.Replace(rfcPolicy, old, new, 1)
	}
	for name, c := range map[string]struct {
		in     string
		line   int
		key    string
		reason string
	}{
		"empty":                  {"", 0, "version", "missing"},
		"no version":             {with("version: STSv1\r\n", ""), 0, "version", "missing"},
		"no mode":                {with("mode: enforce\r\n", ""), 0, "mode", "missing"},
		"no max_age":             {with("max_age: 604800\r\n", ""), 0, "max_age", "missing"},
		"no mx":                  {"version: STSv1\nmode: enforce\nmax_age: 1\n", 0, "mx", "missing"},
		"no mx when testing":     {"version: STSv1\nmode: testing\nmax_age: 1\n", 0, "mx", "missing"},
		"other version":          {with("STSv1", "STSv2"), 1, "version", `"STSv2" is not STSv1`},
		"version in lower case":  {with("STSv1", "stsv1"), 1, "version", "is not STSv1"},
		"Version":                {with("version", "Version"), 0, "version", "missing"},
		"mode in upper case":     {with("enforce", "ENFORCE"), 2, "mode", "is not enforce"},
		"empty mode":             {with("enforce", ""), 2, "mode", "is not enforce"},
		"negative age":           {with("604800", "-1"), 6, "max_age", "not a number"},
		"age with a sign":        {with("604800", "+1"), 6, "max_age", "not a number"},
		"age with a fraction":    {with("604800", "1.5"), 6, "max_age", "not a number"},
		"age with a unit":        {with("604800", "1w"), 6, "max_age", "not a number"},
		"age of 11 digits":       {with("604800", "00000604800"), 6, "max_age", "at most ten digits"},
		"age in other digits":    {with("604800", "६"), 6, "max_age", "not a number"},
		"empty age":              {with("604800", ""), 6, "max_age", "not a number"},
		"empty mx":               {with("mail.example.com", ""), 3, "mx", "is empty"},
		"asterisk alone":         {with("mail.example.com", "*"), 3, "mx", "asterisk"},
		"asterisk and dot":       {with("mail.example.com", "*."), 3, "mx", "is empty"},
		"two asterisks":          {with("mail.example.com", "*.*.example"), 3, "mx", "asterisk"},
		"asterisk in the middle": {with("mail.example.com", "mail.*.example"), 3, "mx", "asterisk"},
		"asterisk in a label":    {with("mail.example.com", "mx*.example"), 3, "mx", "asterisk"},
		"dot in front (a draft)": {with("mail.example.com", ".example.com"), 3, "mx", "no host name"},
		"dot at the end":         {with("mail.example.com", "mail.example.com."), 3, "mx", "ends in a dot"},
		"empty label":            {with("mail.example.com", "mail..example"), 3, "mx", "no host name"},
		"address":                {with("mail.example.com", "[192.0.2.1]"), 3, "mx", "no host name"},
		"underscore":             {with("mail.example.com", "mx_1.example"), 3, "mx", "no host name"},
		"two hosts":              {with("mail.example.com", "a.example, b.example"), 3, "mx", "no host name"},
		"port":                   {with("mail.example.com", "a.example:25"), 3, "mx", "no host name"},
		"U-label":                {with("mail.example.com", "bücher.example"), 3, "mx", "A-labels"},
		"long label":             {with("mail.example.com", strings.Repeat("a", 64)+".example"), 3, "mx", "no host name"},
		"long name":              {with("mail.example.com", strings.Repeat("a.", 127)+"example"), 3, "mx", "no host name"},
		"no colon":               {with("mode: enforce", "mode enforce"), 2, "", "no colon"},
		"space before the colon": {with("mode: enforce", "mode : enforce"), 2, "", "no name of a key"},
		"space before the key":   {with("mode: enforce", " mode: enforce"), 2, "", "no name of a key"},
		"no key":                 {with("mode: enforce", ": enforce"), 2, "", "no name of a key"},
		"long key":               {with("mode: enforce", strings.Repeat("k", 33)+": v"), 2, "", "no name of a key"},
		"comment":                {"# policy\n" + rfcPolicy, 1, "", "no colon"},
		"byte order mark":        {"\ufeff" + rfcPolicy, 1, "", "no name of a key"},
		"not UTF-8":              {with("mode: enforce", "x: \xff"), 2, "", "UTF-8"},
		"NUL":                    {with("mode: enforce", "x: \x00"), 2, "", "control character"},
		"bare CR":                {with("mode: enforce\r\n", "mode: enforce\rx: y\r\n"), 2, "", "control character"},
		"only CR":                {strings.ReplaceAll(rfcPolicy, "\r\n", "\r"), 1, "", "control character"},
		"HTML":                   {"<!DOCTYPE html>\n<html><head>", 1, "", "no colon"},
		"the TXT record":         {"v=STSv1; id=20160831085700Z;", 1, "", "no colon"},
		"too many hosts":         {rfcPolicy + strings.Repeat("mx: a.b\n", MaxMX-2), 4 + MaxMX, "mx", "more than 500"},
		"too long":               {rfcPolicy + strings.Repeat("\n", MaxPolicy-len(rfcPolicy)+1), 0, "", "longer than 65536"},
	} {
		_, err := ParsePolicy([]byte(c.in))
		var se *SyntaxError
		if !errors.As(err, &se) || se.Line != c.line || se.Key != c.key || !strings.Contains(se.Reason, c.reason) {
			t.Errorf("%s: %#v, want line %d, key %q, %q", name, err, c.line, c.key, c.reason)
		}
	}
	if _, err := ParsePolicy([]byte(rfcPolicy + strings.Repeat("\n", MaxPolicy-len(rfcPolicy)))); err != nil {
		t.Errorf("exactly as long as allowed: %v", err)
	}
	if p, err := ParsePolicy([]byte(rfcPolicy + strings.Repeat("mx: a.b\n", MaxMX-3))); err != nil || len(p.MX) != MaxMX {
		t.Errorf("exactly as many hosts as allowed: %v", err)
	}
}

func TestPolicyString(t *testing.T) {
	p, err := ParsePolicy([]byte(rfcPolicy))
	if err != nil {
		t.Fatal(err)
	}
	if p.String() != rfcPolicy {
		t.Errorf("%q", p.String())
	}
	// RFC 8460 section 4.4: an array of strings, one for each line.
	want := []string{"version: STSv1", "mode: enforce", "mx: mail.example.com", "mx: *.example.net", "mx: backupmx.example.com", "max_age: 604800"}
	if !slices.Equal(p.Lines(), want) {
		t.Errorf("%q", p.Lines())
	}
	if zero := (Policy{}); zero.String() != "" || zero.Lines() != nil || zero.Matches("a.example") || zero.Validate() == nil {
		t.Error("the zero Policy is no policy")
	}
}

func TestPolicyValidate(t *testing.T) {
	good := Policy{ID: "1", Mode: ModeEnforce, MX: []string{"a.example"}, MaxAge: time.Hour}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(p *Policy){
		"id":          func(p *Policy) { p.ID = "a b" },
		"long id":     func(p *Policy) { p.ID = strings.Repeat("1", 33) },
		"mode":        func(p *Policy) { p.Mode = "Enforce" },
		"no mode":     func(p *Policy) { p.Mode = "" },
		"no mx":       func(p *Policy) { p.MX = nil },
		"upper case":  func(p *Policy) { p.MX = []string{"A.example"} },
		"line break":  func(p *Policy) { p.MX = []string{"a.example\r\nmx: b.example"} },
		"many":        func(p *Policy) { p.MX = slices.Repeat([]string{"a.example"}, MaxMX+1) },
		"negative":    func(p *Policy) { p.MaxAge = -time.Second },
		"long":        func(p *Policy) { p.MaxAge = MaxMaxAge + time.Second },
		"no seconds":  func(p *Policy) { p.MaxAge = time.Millisecond },
		"empty mx":    func(p *Policy) { p.MX = []string{""} },
		"asterisk mx": func(p *Policy) { p.MX = []string{"*"} },
	} {
		p := good
		if f(&p); p.Validate() == nil {
			t.Errorf("%s: %+v is valid", name, p)
		}
	}
}

// RFC 8461 section 4.1: *.example.com matches mail.example.com, and neither example.com nor foo.bar.example.com.
func TestMatches(t *testing.T) {
	p := Policy{Mode: ModeEnforce, MX: []string{"mx.example.org", "*.example.com", "xn--bcher-kva.example", "*.xn--bcher-kva.example"}}
	for host, want := range map[string]bool{
		"mail.example.com": true, "example.com": false, "foo.bar.example.com": false,
		"MAIL.Example.COM": true, "mail.example.com.": true, "mail.example.com..": false, ".example.com": false, "*.example.com": false,
		"mx.example.org": true, "mx.example.org.": true, "MX.example.org": true, "a.mx.example.org": false, "example.org": false, "mx.example.org.evil.example": false,
		"mxxexample.org": false, "evilexample.com": false, "a.evilexample.com": false,
		"bücher.example": true, "BÜCHER.example": true, "mx.bücher.example": true, "xn--bcher-kva.example": true,
		"": false, ".": false, "com": false, "192.0.2.1": false, "[192.0.2.1]": false, "a b.example.com": false, "-.example.com": false,
	} {
		if got := p.Matches(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}

func genHost(t *rapid.T) string {
	labels := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "mx", "example", "xn--bcher-kva"}), 1, 4).Draw(t, "labels")
	return strings.Join(labels, ".")
}

// Matches is what the RFC says in words: equal, or equal without the first label of each.
func TestMatchesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p Policy
		host := genHost(t)
		want := false
		for range rapid.IntRange(0, 4).Draw(t, "patterns") {
			m := genHost(t)
			if rapid.Bool().Draw(t, "wild") {
				h := strings.Split(host, ".")
				want = want || len(h) > 1 && slices.Equal(h[1:], strings.Split(m, "."))
				m = "*." + m
			} else {
				want = want || m == host
			}
			p.MX = append(p.MX, m)
		}
		if got := p.Matches(strings.ToUpper(host) + "."); got != want {
			t.Fatalf("%q matches %q: %v", p.MX, host, got)
		}
	})
}

// A valid policy is what its file says.
func TestPolicyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{
			Mode:   rapid.SampledFrom([]Mode{ModeNone, ModeTesting, ModeEnforce}).Draw(t, "mode"),
			MaxAge: time.Duration(rapid.Int64Range(0, int64(MaxMaxAge/time.Second)).Draw(t, "max_age")) * time.Second,
		}
		for range rapid.IntRange(0, 5).Draw(t, "mx") {
			p.MX = append(p.MX, rapid.SampledFrom([]string{"", "*."}).Draw(t, "wild")+genHost(t))
		}
		valid := p.Validate() == nil
		got, err := ParsePolicy([]byte(p.String()))
		if valid != (err == nil) {
			t.Fatalf("valid %v, and parsed: %v", valid, err)
		}
		if valid && !cmp.Equal(p, got) {
			t.Fatal(cmp.Diff(p, got))
		}
	})
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(rfcPolicy))
	f.Add([]byte("version: STSv1\nmode: none\nmax_age: 0"))
	f.Add([]byte("mx:\x00\r\rversion:STSv1:\nmx: *.xn--\xff\n"))
	f.Add([]byte(strings.Repeat("mx: *.a.example\n", MaxMX+1)))
	f.Add([]byte("version: STSv1\nmode: testing\nmx: a\nmax_age: 99999999999999999999\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePolicy(b)
		if err != nil {
			if !cmp.Equal(p, Policy{}) {
				t.Fatalf("a policy with an error: %+v", p)
			}
			var se *SyntaxError
			if !errors.As(err, &se) || se.Line < 0 || se.Line > strings.Count(string(b), "\n")+1 || len(err.Error()) > 600 {
				t.Fatalf("%q", fmt.Sprint(err))
			}
			return
		}
		if err := p.Validate(); err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
		again, err := ParsePolicy([]byte(p.String()))
		if err != nil && len(p.String()) <= MaxPolicy || err == nil && !cmp.Equal(p, again) {
			t.Fatalf("%+v and again %+v, %v", p, again, err)
		}
		for _, m := range p.MX {
			if !p.Matches(strings.Replace(m, "*", "a", 1)) && len(m) < 253 {
				t.Fatalf("%q does not match itself", m)
			}
		}
	})
}
