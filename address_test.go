package mailspine

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	good := []struct{ in, local, domain, out string }{
		{"joe@example.org", "joe", "example.org", "joe@example.org"},
		{"Joe.Q.Public@Example.ORG", "Joe.Q.Public", "Example.ORG", "Joe.Q.Public@Example.ORG"},
		{"a!#$%&'*+-/=?^_`{|}~@x", "a!#$%&'*+-/=?^_`{|}~", "x", "a!#$%&'*+-/=?^_`{|}~@x"},
		{`"joe smith"@example.org`, "joe smith", "example.org", `"joe smith"@example.org`},
		{`"joe"@example.org`, "joe", "example.org", `joe@example.org`},
		{`"a\"b\\c"@example.org`, `a"b\c`, "example.org", `"a\"b\\c"@example.org`},
		{`"a@b"@example.org`, `a@b`, "example.org", `"a@b"@example.org`},
		{`""@example.org`, ``, "example.org", `""@example.org`},
		{`"a..b"@example.org`, `a..b`, "example.org", `"a..b"@example.org`},
		{"δοκιμή@παράδειγμα.δοκιμή", "δοκιμή", "παράδειγμα.δοκιμή", "δοκιμή@παράδειγμα.δοκιμή"},
		{"joe@[192.0.2.1]", "joe", "[192.0.2.1]", "joe@[192.0.2.1]"},
		{"joe@[IPv6:2001:db8::1]", "joe", "[IPv6:2001:db8::1]", "joe@[IPv6:2001:db8::1]"},
		{"joe@_dmarc.example", "joe", "_dmarc.example", "joe@_dmarc.example"},
		{strings.Repeat("a", 64) + "@x.org", strings.Repeat("a", 64), "x.org", strings.Repeat("a", 64) + "@x.org"},
	}
	for _, c := range good {
		a, err := ParseAddress(c.in)
		if err != nil {
			t.Errorf("ParseAddress(%q): %v", c.in, err)
			continue
		}
		if a.Local != c.local || a.Domain != c.domain || a.String() != c.out {
			t.Errorf("ParseAddress(%q) = %q %q, String %q; want %q %q, %q", c.in, a.Local, a.Domain, a.String(), c.local, c.domain, c.out)
		}
		if err := a.Validate(); err != nil {
			t.Errorf("Validate of %q: %v", c.in, err)
		}
	}
	bad := []struct {
		in  string
		off int
	}{
		{"", 0}, {"joe", 3}, {"@example.org", 0}, {"joe@", 4}, {".joe@x", 0}, {"joe.@x", 3}, {"j..oe@x", 2},
		{"jo e@x", 2}, {"joe@x y", 5}, {"joe@.x", 4}, {"joe@x.", 6}, {"joe@x..y", 6}, {"joe@-x", 4}, {"joe@x-", 4},
		{`"joe@x`, 6}, {`"jo` + "\n" + `e"@x`, 3}, {`"joe"x@y`, 5}, {`"a\` + "\x00" + `"@x`, 3}, {"joe@x\x00", 5},
		{"joe@[1.2.3]", 4}, {"joe@[2001:db8::1]", 4}, {"joe@[IPv6:1.2.3.4]", 4}, {"joe@[IPv6:fe80::1%eth0]", 4}, {"joe@[192.0.2.1", 4},
		{"joe@x>", 5}, {"joe@example.org\r\nRCPT TO:<x@y>", 15}, {strings.Repeat("a", 65) + "@x", 64},
		{"joe@" + strings.Repeat("a", 64) + ".org", 67}, {"joe@" + strings.Repeat("a.", 130) + "a", 259}, {"a\xff@x", 0}, {"a@\xffx", 2},
		{"a b <joe@x>", 1}, {"joe,x@y", 3}, {"joe@x@y", 5},
	}
	for _, c := range bad {
		a, err := ParseAddress(c.in)
		var ae *AddressError
		if !errors.As(err, &ae) {
			t.Errorf("ParseAddress(%q) = %v, %v; want an *AddressError", c.in, a, err)
			continue
		}
		if ae.Offset != c.off {
			t.Errorf("ParseAddress(%q): offset %d, want %d (%v)", c.in, ae.Offset, c.off, err)
		}
		if strings.ContainsAny(err.Error(), "\r\n\x00") {
			t.Errorf("ParseAddress(%q): raw control characters in the error", c.in)
		}
	}
}

func TestAddressEqual(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"joe@example.org", "joe@EXAMPLE.org", true},
		{"joe@example.org", "Joe@example.org", false},
		{"joe@bücher.example", "joe@xn--bcher-kva.example", true},
		{"joe@BÜCHER.example", "joe@bücher.example", true},
		{"joe@a.example", "joe@b.example", false},
	} {
		a, err := ParseAddress(c.a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := ParseAddress(c.b)
		if err != nil {
			t.Fatal(err)
		}
		if a.Equal(b) != c.want || b.Equal(a) != c.want {
			t.Errorf("%s equal %s: got %v", c.a, c.b, !c.want)
		}
	}
}

func TestAddressValidate(t *testing.T) {
	if err := (Address{}).Validate(); err != nil {
		t.Errorf("the null reverse-path is valid, but: %v", err)
	}
	for _, a := range []Address{{Local: "joe"}, {Local: "a\r\nb", Domain: "x"}, {Local: "a", Domain: "x y"}, {Local: strings.Repeat("é", 33), Domain: "x"}} {
		if a.Validate() == nil {
			t.Errorf("%q@%q passes as valid", a.Local, a.Domain)
		}
	}
}

func TestAddressText(t *testing.T) {
	in := []Address{{}, {Local: "joe smith", Domain: "example.org"}}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out []Address
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if len(out) != 2 || out[0] != in[0] || out[1] != in[1] {
		t.Errorf("through JSON %s: %v", b, out)
	}
	if err := json.Unmarshal([]byte(`["no address"]`), &out); err == nil {
		t.Error("JSON with a bad address was taken")
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"joe@example.org", `"a b"@[IPv6:::1]`, `"\""@x`, "δ@παράδειγμα", "a@xn--bcher-kva.example", "a@b\xff", "\"é\"@x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			if a != (Address{}) {
				t.Fatal("an error comes with the zero Address")
			}
			return
		}
		if a.IsZero() {
			t.Fatal("a parsed mailbox is never the null path")
		}
		if err := a.Validate(); err != nil {
			t.Fatalf("parsed, but not valid: %v", err)
		}
		b, err := ParseAddress(a.String())
		if err != nil || b != a {
			t.Fatalf("String gives %q, which parses as %+v, %v; want %+v", a.String(), b, err, a)
		}
		if strings.ContainsAny(a.String(), "\r\n\x00") {
			t.Fatalf("control characters got through: %q", a.String())
		}
		if _, err := a.ASCIIDomain(); err != nil {
			t.Fatalf("a valid domain has an ASCII form: %v", err)
		}
		if !a.Equal(b) {
			t.Fatal("an address equals itself")
		}
	})
}
