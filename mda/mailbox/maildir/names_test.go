package maildir

import (
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine/mda/mailbox"
)

func TestEncodeUser(t *testing.T) {
	for in, want := range map[string]string{
		"ann@example.org": "ann@example=2eorg",
		"Ann":             "^ann",
		"..":              "=2e=2e",
		"../x":            "=2e=2e=2fx",
		"a b":             "a=20b",
		"con":             "=63on",
		"COM1":            "^c^o^m1",
		"com1":            "=63om1",
		"-rf":             "=2drf",
		"é":               "=c3=a9",
	} {
		if got := encodeUser(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestEncodeBox(t *testing.T) {
	long := strings.Repeat("Ü", 300)
	for in, want := range map[string]string{
		"INBOX":        "",
		"INBOX/x":      ".^i^n^b^o^x.x",
		"Archive/2026": ".^archive.2026",
		"a.b":          ".a=2eb",
		"a/b":          ".a.b",
		"~$x":          ".=7e=24x",
	} {
		if got := encodeBox(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		} else if back, ok := decodeBox(got); in != "INBOX" && (!ok || back != in) {
			t.Errorf("%q back is %q, %v", got, back, ok)
		}
	}
	if a, b := encodeBox(long), encodeBox(long+"x"); a == b || len(a) > maxEncoded || !isHashed(a) {
		t.Errorf("%q and %q", a, b)
	}
	for _, bad := range []string{"", ".", "..", "a", ".a.", "..a", ".A", ".a=2", ".a=zz", ".a=2E", ".a=61", ".^", ".^A", ".a^1", ".=2f", ".=00", ".^i^n^b^o^x", ".inbox", ".a=~00", ".a b"} {
		if name, ok := decodeBox(bad); ok {
			t.Errorf("%q is taken as %q", bad, name)
		}
	}
}

func TestParseName(t *testing.T) {
	sep := string(infoSep)
	for _, c := range []struct {
		in, key, info string
		ok            bool
	}{
		{"1.a,S=3", "1.a,S=3", "", true},
		{"1.a" + sep + "2,", "1.a", "", true},
		{"1.a" + sep + "2,SF", "1.a", "FS", true},
		{"1.a" + sep + "2,TSRPFDabc", "1.a", "DFPRST", true},
		{"1.a" + sep + "1,xyz", "1.a", "", true},
		{"1.a" + sep + "2", "1.a", "", true},
		{"1.a" + sep + "2,S" + sep + "2,F", "1.a", "FS", true},
		{".hidden", "", "", false},
		{"", "", "", false},
		{sep + "2,S", "", "", false},
		{strings.Repeat("x", 256), "", "", false},
	} {
		key, info, ok := parseName(c.in)
		if ok != c.ok || key != c.key || info != c.info {
			t.Errorf("%q: %q, %q, %v; want %q, %q, %v", c.in, key, info, ok, c.key, c.info, c.ok)
		}
	}
	flags := []mailbox.Flag{"$Forwarded", mailbox.Seen, "tag"}
	if got := fileName("k", flags, false); got != "cur/k"+sep+"2,PS" {
		t.Errorf("%q", got)
	}
	if a, b := fileName("k", []mailbox.Flag{"tag"}, false), fileName("k", nil, true); a != "new/k" || b != "cur/k"+sep+"2," {
		t.Errorf("%q, %q", a, b)
	}
	if got := withInfo(flags, "F"); !slices.Equal(got, []mailbox.Flag{mailbox.Flagged, "tag"}) {
		t.Errorf("%q", got)
	}
}

// No two names have folders that a file system could take for the same, and none leads anywhere.
func FuzzEncoding(f *testing.F) {
	for _, s := range [][2]string{{"a", "A"}, {"a/b", "a.b"}, {"=41", "A"}, {"^a", "A"}, {"..", "."}, {"INBOX", "inbox/x"}, {"é", "e\u0301"},
		{strings.Repeat("x", 300), strings.Repeat("x", 301)}, {strings.Repeat("É", 40), strings.Repeat("é", 40)}, {"con", "CON"}} {
		f.Add(s[0], s[1])
	}
	safe := func(t *testing.T, s string) {
		if len(s) > maxEncoded || strings.ContainsAny(s, "/\\:*?\"<>| \x00") || s == "." || s == ".." || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) || strings.HasSuffix(s, ".") {
			t.Fatalf("%q is not safe", s)
		}
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if mailbox.CheckUser(a) == nil && mailbox.CheckUser(b) == nil {
			x, y := encodeUser(a), encodeUser(b)
			safe(t, x)
			if x[0] == '.' || x[0] == '-' || reserved(x) {
				t.Fatalf("user %q: %q", a, x)
			}
			if (a == b) != strings.EqualFold(x, y) {
				t.Fatalf("users %q and %q: %q and %q", a, b, x, y)
			}
		}
		n, err := mailbox.CleanName(a)
		m, err2 := mailbox.CleanName(b)
		if err == nil && err2 == nil {
			x, y := encodeBox(n), encodeBox(m)
			safe(t, x)
			if x != "" && x[0] != '.' {
				t.Fatalf("mailbox %q: %q", n, x)
			}
			if (n == m) != strings.EqualFold(x, y) {
				t.Fatalf("mailboxes %q and %q: %q and %q", n, m, x, y)
			}
			if back, ok := decodeBox(x); n != "INBOX" && !isHashed(x) && (!ok || back != n) {
				t.Fatalf("mailbox %q: %q, and back %q", n, x, back)
			}
		}
		if name, ok := decodeBox(a); ok && encodeBox(name) != a {
			t.Fatalf("folder %q is %q, whose folder is %q", a, name, encodeBox(name))
		}
	})
}

func FuzzParseName(f *testing.F) {
	sep := string(infoSep)
	for _, s := range []string{"1700000000.01ABC,S=12" + sep + "2,FS", sep, ".", "a" + sep + "2,", "a" + sep + "2,zzSS"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, in, ok := parseName(s)
		if !ok {
			return
		}
		flags := withInfo(nil, in)
		if info(flags) != in {
			t.Fatalf("%q: letters %q are flags %q", s, in, flags)
		}
		for _, cur := range []bool{true, false} {
			file := fileName(key, flags, cur)
			again, in2, ok := parseName(file[4:])
			if !ok || again != key || in2 != in {
				t.Fatalf("%q: %q, and again %q %q %v", s, file, again, in2, ok)
			}
		}
	})
}
