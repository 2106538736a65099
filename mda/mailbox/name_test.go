package mailbox

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/text/unicode/norm"
)

func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{
		"a": "a", "a/b": "a/b", "inbox": "INBOX", "InBox": "INBOX", "inbox/x": "INBOX/x", "a/inbox": "a/inbox", "INBOXES": "INBOXES",
		"cafe\u0301": "caf\u00e9", "a b": "a b", "...": "...", "a.b": "a.b", "~": "~", "a\\b": "a\\b", "ınbox": "ınbox",
		strings.Repeat("x", MaxName): strings.Repeat("x", MaxName),
	} {
		if got, err := CleanName(in); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "\x00", "a\x00b", "a\r", "a\nb", "a\x7fb", "a\u0085b", "a\u2028b",
		"\xff", "a\xc3", "a*", "%a", " a", "a ", "a/ b", "\u00a0a", strings.Repeat("x", MaxName+1), strings.Repeat("a/", MaxDepth) + "a"} {
		got, err := CleanName(bad)
		if !errors.Is(err, ErrBadName) {
			t.Errorf("%q is taken as %q (%v)", bad, got, err)
			continue
		}
		if strings.ContainsAny(err.Error(), "\x00\r\n\x7f") || len(err.Error()) > 500 {
			t.Errorf("%q: the error has it raw: %q", bad, err)
		}
	}
}

func TestCheckUser(t *testing.T) {
	for _, ok := range []string{"a", "a@b", "..", "a/b", "日本", strings.Repeat("x", MaxUser)} {
		if err := CheckUser(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "a\x00", "\n", "\xff", strings.Repeat("x", MaxUser+1)} {
		if err := CheckUser(bad); !errors.Is(err, ErrBadName) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAbove(t *testing.T) {
	if got := Above("a/b/c"); !slices.Equal(got, []string{"a", "a/b"}) {
		t.Errorf("%q", got)
	}
	if got := Above("a"); got != nil {
		t.Errorf("%q", got)
	}
}

func TestFlags(t *testing.T) {
	got, err := CleanFlags([]Flag{"zeta", `\seen`, "$MDNSENT", "Alpha", `\SEEN`, "ALPHA"})
	if want := []Flag{"$MDNSent", `\Seen`, "alpha", "zeta"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	for _, c := range []struct {
		op   FlagOp
		want []Flag
	}{{AddFlags, []Flag{Seen, "a", "b"}}, {RemoveFlags, []Flag{"a"}}, {ReplaceFlags, []Flag{Seen, "b"}}} {
		have := []Flag{Seen, "a"}
		got, err := ApplyFlags(have, c.op, []Flag{Seen, "b"})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("operation %d: %q, %v; want %q", c.op, got, err, c.want)
		}
	}
	if _, err := ApplyFlags(nil, 9, nil); !errors.Is(err, ErrBadFlag) {
		t.Errorf("unknown operation: %v", err)
	}
	if u, err := CleanSpecialUse(`\TRASH`); err != nil || u != UseTrash {
		t.Errorf("%q, %v", u, err)
	}
	if _, err := CleanSpecialUse(`\Nonsense`); !errors.Is(err, ErrBadName) {
		t.Errorf("unknown special use: %v", err)
	}
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"INBOX", "a/b", "cafe\u0301", "../x", "a\x00", "İnbox", "\u1100\u1161", strings.Repeat("e\u0301", 400)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := CleanName(s)
		if err != nil {
			if !errors.Is(err, ErrBadName) {
				t.Fatal(err)
			}
			return
		}
		if again, err := CleanName(n); err != nil || again != n {
			t.Fatalf("%q becomes %q, and that %q (%v)", s, n, again, err)
		}
		if len(n) > MaxName || !norm.NFC.IsNormalString(n) || strings.ContainsAny(n, "\x00\r\n*%") {
			t.Fatalf("%q becomes %q", s, n)
		}
		for _, p := range strings.Split(n, Separator) {
			if p == "" || p == "." || p == ".." {
				t.Fatalf("%q has the part %q", n, p)
			}
		}
	})
}

func FuzzCleanFlag(f *testing.F) {
	for _, s := range []string{`\Seen`, "$Junk", "KeyWord", `\*`, "a b", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := CleanFlag(Flag(s))
		if err != nil {
			return
		}
		if again, err := CleanFlag(c); err != nil || again != c || !strings.EqualFold(string(c), s) {
			t.Fatalf("%q becomes %q, and that %q (%v)", s, c, again, err)
		}
	})
}
