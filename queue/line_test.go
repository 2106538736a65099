package queue

import (
	"bufio"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
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

// countHops sees the fields that mailspine.ReadHeader sees, where that reads the block.
func FuzzCountHops(f *testing.F) {
	for _, s := range []string{
		"", "\r\n", "Received: a\r\nreceived : b\r\n c\r\n\r\nReceived: body\r\n", " Received: fold first\r\nReceived: x",
		"no field\r\nReceived: x\r\n", "A B: x\nReceived: y\n", ": x\nReceived: y\n", "Received", "RECEIVED:",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := mailspine.ParseHeader(strings.NewReader(s), 0)
		if err != nil {
			return
		}
		want := len(h.Values("Received"))
		got, err := countHops(bufio.NewReaderSize(strings.NewReader(s), hopsBuffer), 1<<20)
		if err != nil || got != want && len(s) < 4096 {
			t.Errorf("%q has %d hops, %v; want %d", s, got, err, want)
		}
	})
}
