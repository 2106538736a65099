package smtpclient

import (
	"strings"
	"testing"
)

func FuzzORcpt(f *testing.F) {
	for _, s := range []string{"rfc822;joe@example.org", "utf-8;jürgen@example.org", "rfc822;a+b=c@example.org", ";", "x", "rfc822; ", "rfc822;\r\nRSET"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if o := orcpt(s); strings.ContainsAny(o, " \r\n\x00") || !isPrintable(o) {
			t.Fatalf("%q became %q", s, o)
		}
		if x := xtext(s); strings.ContainsAny(x, " \r\n=") {
			t.Fatalf("%q became %q", s, x)
		}
	})
}
