package authres

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		value, want string // want: "id method=value{type.name=value ...}(reason) ..."; "": an error
	}{
		{"example.com; none", "example.com"},
		{"example.com 1; NONE", "example.com"},
		{"example.com (x) 1 (y) ; (z) none (w)", "example.com"},
		{"example.com; spf=pass", "example.com spf=pass"},
		{"example.com; SPF/1 = PASS (c) reason = \"because\" SMTP . MailFrom = a@b", "example.com spf=pass(because){smtp.mailfrom=a@b}"},
		{"example.com;\r\n spf=pass\r\n\tsmtp.mailfrom=\"a b\"@c", "example.com spf=pass{smtp.mailfrom=a b@c}"},
		{"example.com; iprev=pass policy.iprev=2001:db8::1", "example.com iprev=pass{policy.iprev=2001:db8::1}"},
		{"example.com; dkim=pass header.b=a/b+c= header.d=x", "example.com dkim=pass{header.b=a/b+c=,header.d=x}"},
		{"example.com; dkim=pass reason=\"a\\\"b\\\\c\"", "example.com dkim=pass(a\"b\\c)"},
		{"example.com; a=b; c=d", "example.com a=b c=d"},
		{"example.com; (((((nested))))) a=b", "example.com a=b"},
		{"", ""},
		{";", ""},
		{"; spf=pass", ""},
		{"example.com", ""},
		{"example.com;", ""},
		{"example.com; none; spf=pass", ""},
		{"example.com; spf=pass; none", ""},
		{"example.com 2; spf=pass", ""},
		{"example.com 11; spf=pass", ""},
		{"example.com spf=pass", ""},
		{"example.com; spf", ""},
		{"example.com; spf=", ""},
		{"example.com; spf/2=pass", ""},
		{"example.com; =pass", ""},
		{"example.com; spf=pass smtp.mailfrom", ""},
		{"example.com; spf=pass smtp.mailfrom=", ""},
		{"example.com; spf=pass smtp=x", ""},
		{"example.com; spf=pass reason=a reason=b", ""},
		{"example.com; spf=pass(x)smtp.mailfrom=a@b", "example.com spf=pass{smtp.mailfrom=a@b}"},
		{"example.com; spf=pass (not closed", ""},
		{"example.com; spf=pass reason=\"not closed", ""},
		{"example.com; spf=pass (\\", ""},
		{"example.com\x00; spf=pass", ""},
		{"example.com; spf=pass \xff", ""},
		{"a b; spf=pass", ""},
		{strings.Repeat("(", 50000) + strings.Repeat(")", 10000), ""},
		{"example.com" + strings.Repeat("; a=b", MaxResults+1), ""},
		{"example.com; a=b" + strings.Repeat(" c.d=e", MaxProperties+1), ""},
		{strings.Repeat("x", MaxLength+1), ""},
	} {
		h, err := Parse(c.value)
		var pe *ParseError
		if err != nil && (!errors.As(err, &pe) || pe.Offset > len(c.value) || c.want != "") || err == nil && describe(h) != c.want {
			short := c.value[:min(len(c.value), 80)]
			t.Errorf("%q: %v %q", short, err, describe(h))
		}
	}
}

func describe(h *Header) string {
	if h == nil {
		return ""
	}
	s := h.ID
	for _, r := range h.Results {
		s += " " + r.Method + "=" + r.Value
		if r.Reason != "" {
			s += "(" + r.Reason + ")"
		}
		var props []string
		for _, p := range r.Properties {
			props = append(props, p.Type+"."+p.Name+"="+p.Value)
		}
		if props != nil {
			s += "{" + strings.Join(props, ",") + "}"
		}
	}
	return s
}

// parseField parses what Field wrote, as a reader gets it.
func parseField(t interface{ Fatalf(string, ...any) }, b []byte) *Header {
	h, err := mailspine.ParseHeader(strings.NewReader(string(b)+"\r\n"), 0)
	if err != nil || len(h.Fields) != 1 || h.Body != int64(len(b)) {
		t.Fatalf("not one field: %q", b)
	}
	for l := range strings.SplitSeq(string(b), "\r\n") {
		if len(l) > 998 {
			t.Fatalf("line of %d octets", len(l))
		}
	}
	a, err := Parse(h.Fields[0].Value())
	if err != nil {
		t.Fatalf("%v: %q", err, b)
	}
	return a
}

// Whatever the values are, what is read back has the same results, no more and
// no fewer, and the values of those that can be written are the same.
func TestFieldModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.StringN(0, 20, 60), rapid.StringMatching(`[a-z"\\(); =@.\r\n\t/]{0,20}`), rapid.Just(""))
		word := rapid.SampledFrom([]string{"spf", "dkim", "x-1", "a_b"})
		h := Header{ID: text.Draw(t, "id")}
		want := &Header{ID: clean(h.ID)}
		if want.ID == "" {
			want.ID = "unknown"
		}
		for range rapid.IntRange(0, 4).Draw(t, "results") {
			r := Result{Method: word.Draw(t, "method"), Value: word.Draw(t, "value"), Reason: text.Draw(t, "reason"), Comment: text.Draw(t, "comment")}
			w := Result{Method: r.Method, Value: r.Value, Reason: clean(r.Reason)}
			for range rapid.IntRange(0, 3).Draw(t, "properties") {
				p := Property{word.Draw(t, "type"), word.Draw(t, "name"), text.Draw(t, "pvalue")}
				r.Properties = append(r.Properties, p)
				if p.Value = clean(p.Value); p.Value != "" {
					w.Properties = append(w.Properties, p)
				}
			}
			// What is no keyword is left out.
			if rapid.Bool().Draw(t, "bad") {
				h.Results = append(h.Results, Result{Method: text.Draw(t, "bad method") + " ", Value: "pass"}, Result{Method: "a", Value: ""})
				r.Properties = append(r.Properties, Property{"a b", "c", "d"}, Property{"a", "", "d"})
			}
			h.Results = append(h.Results, r)
			want.Results = append(want.Results, w)
		}
		if got := parseField(t, h.Field()); !reflect.DeepEqual(got, want) {
			t.Fatalf("%s\ngot  %#v\nwant %#v", h.Field(), got, want)
		}
	})
}

func TestID(t *testing.T) {
	for value, want := range map[string]string{
		"example.com; none": "example.com", "example.com": "example.com", " (c)\r\n example.com 7 nonsense": "example.com",
		"\"a b\";": "a b", "": "", ";": "", "a.b/c; x": "", "a\"b\"; x": "", "a b; x": "", "(a": "", "\"a": "", "a(b": "",
		strings.Repeat("x", MaxLength+1): "",
	} {
		if id, ok := ID(value); id != want || ok != (want != "") {
			if ok || want != "" {
				t.Errorf("%q: %q %v, want %q", value[:min(len(value), 60)], id, ok, want)
			}
		}
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"a.example", "A.Example.", true}, {"bücher.example", "xn--bcher-kva.example", true}, {"ａ.example", "a.example", true},
		{"a.example", "a.example.net", false}, {"a", "", false}, {strings.Repeat("a", 300), strings.Repeat("A", 300), true},
	} {
		if SameID(c.a, c.b) != c.same {
			t.Errorf("%q %q: want %v", c.a, c.b, c.same)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"example.org 1; none", "example.com; spf=pass smtp.mailfrom=example.net", "\"example.com\"; a=b (c; d=e) reason=\"x\\\"\" f.g=\"h\"@i",
		"foo.example.net (foobar) 1 (baz); dkim (Because I like it) / 1 (One yay) = (wait for it) fail policy (A dot can go here) . (like that) expired (this surprised me) = (as I wasn't expecting it) 1362471462",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := Parse(s)
		id, ok := ID(s)
		if err != nil {
			var pe *ParseError
			if !errors.As(err, &pe) || pe.Offset < 0 || pe.Offset > len(s) {
				t.Errorf("%v", err)
			}
			return
		}
		if !ok || id != h.ID {
			t.Errorf("ID %q %v, Parse %q", id, ok, h.ID)
		}
		if len(h.Results) > MaxResults {
			t.Errorf("%d results", len(h.Results))
		}
		// Written and read again it has the same results.
		var want, got []string
		for _, r := range h.Results {
			want = append(want, r.Method+"="+r.Value)
		}
		for _, r := range parseField(t, h.Field()).Results {
			got = append(got, r.Method+"="+r.Value)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}
