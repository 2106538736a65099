package queue

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzLine(f *testing.F) {
	f.Add("550 no\r\nMAIL FROM:<eve@example.net>", 20)
	f.Add(strings.Repeat("中", 10), 7)
	f.Add("\xff\xfe\x80 abc", 3)
	f.Fuzz(func(t *testing.T, s string, max int) {
		if max < 0 || max > 1<<16 {
			return
		}
		got := line(s, max)
		if len(got) > max || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			t.Fatalf("line(%q, %d) is %q", s, max, got)
		}
		if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) && len(s) <= max && got != s {
			t.Fatalf("line(%q, %d) changed it to %q", s, max, got)
		}
	})
}
