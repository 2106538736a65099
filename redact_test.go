package mailspine

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "",
		"no address":                   "no address",
		"<joe@example.org>: unknown":   "<***@example.org>: unknown",
		"from=joe@example.org":         "from=***@example.org",
		`"joe smith"@example.org said`: `***@example.org said`,
		`"a\"b@c"@example.org`:         `***@example.org`,
		"joe@a, ann@b":                 "***@a, ***@b",
		"δοκιμή@παράδειγμα.δοκιμή":       "***@παράδειγμα.δοκιμή",
		"/spool/ann@example.org/journal": "/spool/***@example.org/journal",
		"@ @@ joe@@x":                    "@ @@ ***@@x",
		`"@x`:                            `"@x`,
		`said "no" to "a b"@x`:           `said "no" to ***@x`,
	} {
		if got := redact(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestRedactAddresses(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: RedactAddresses}))
	a := Address{Local: "secret.name", Domain: "example.org"}
	log.With("from", a).WithGroup("g").Info("mail of secret.name@example.org", "rcpt", a.Path(), "err", errors.New("no "+a.String()),
		"n", 7, slog.Group("h", "to", a.String()))
	if s := b.String(); strings.Contains(s, "secret") || strings.Count(s, "***@example.org") != 5 || !strings.Contains(s, "n=7") {
		t.Errorf("%s", s)
	}
}

// However an address is written, its local part does not come through.
func TestRedactModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		local := "SECRET" + rapid.StringMatching(`[a-z .@"\\<>]{0,6}`).Draw(t, "local") + "SECRET"
		a := Address{Local: local, Domain: "example.org"}
		s := rapid.StringMatching(`[a-z <:]{0,5}`).Draw(t, "before") + a.Path() + rapid.StringMatching(`[a-z@>" ]{0,5}`).Draw(t, "after")
		if got := redact(s); strings.Contains(got, "SECRET") || !strings.Contains(got, "@example.org>") {
			t.Fatalf("%q: %q", s, got)
		}
	})
}
