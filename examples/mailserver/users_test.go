package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

func TestParseUsers(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "password")
	if err := os.WriteFile(file, []byte("from a: file\r\nsecond line\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o := &options{domain: "example.test"}
	if err := o.parseUsers([]string{"Ann:a:b", "bob:@" + file, "c.d-e_f:@@x"}); err == nil || !strings.Contains(err.Error(), "c.d-e_f") {
		t.Errorf("a file that is not there: %v", err)
	}
	want := []user{{"ann", "a:b"}, {"bob", "from a: file"}}
	if !slices.Equal(o.users, want) {
		t.Errorf("users %q, want %q", o.users, want)
	}
	if len(o.warnings) != 1 || !strings.Contains(o.warnings[0], file) {
		t.Errorf("a password file that everybody can read: %q", o.warnings)
	}
	if o.first() != "ann@example.test" {
		t.Errorf("first: %s", o.first())
	}
}

func TestLoginNames(t *testing.T) {
	o := &options{domain: "xn--bcher-kva.example", users: []user{{"ann", "hunter2"}, {"abuse", "letmein"}}}
	l, err := newLogins(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, password, authz string
		want                  string // "": refused
	}{
		{"ann", "hunter2", "", "ann@xn--bcher-kva.example"},
		{"ANN", "hunter2", "", "ann@xn--bcher-kva.example"},
		{"ann@xn--bcher-kva.example", "hunter2", "", "ann@xn--bcher-kva.example"},
		{"Ann@Bücher.example", "hunter2", "ann", "ann@xn--bcher-kva.example"},
		{"ann", "hunter2", "ann@bücher.example", "ann@xn--bcher-kva.example"},
		{"abuse", "letmein", "", "abuse@xn--bcher-kva.example"},
		{"ann", "hunter2", "abuse", ""},
		{"ann", "letmein", "", ""},
		{"ann", "", "", ""},
		{"", "hunter2", "", ""},
		{"@xn--bcher-kva.example", "hunter2", "", ""},
		{"ann@", "hunter2", "", ""},
		{"ann@example.test", "hunter2", "", ""},
		{"ann@x@xn--bcher-kva.example", "hunter2", "", ""},
		{"postmaster", "hunter2", "", ""},
		{"ann\x00", "hunter2", "", ""},
	} {
		login, err := l.Authenticate(context.Background(), mailspine.Credentials{Username: c.name, Password: c.password, AuthzID: c.authz})
		switch {
		case c.want == "" && !errors.Is(err, mailspine.ErrBadCredentials):
			t.Errorf("%q as %q: %v, %v", c.name, c.authz, login, err)
		case c.want != "" && (err != nil || login.Name != c.want || login.Tenant != c.want):
			t.Errorf("%q: %+v, %v", c.name, login, err)
		}
	}
	// The first user answers for those roles that are nobody's.
	login, err := l.Authenticate(context.Background(), mailspine.Credentials{Username: "ann", Password: "hunter2"})
	if err != nil || !slices.Equal(login.Addresses, []string{"postmaster@xn--bcher-kva.example"}) {
		t.Errorf("ann may send as %q, %v", login.Addresses, err)
	}
}

// What a stranger types is one account or another, and the account's own name is that account.
func FuzzLoginName(f *testing.F) {
	for _, s := range []string{"ann", "Ann@Example.TEST", "@", "a@b@c", "\u212aate", "ann@\xff", "ann@xn--", "@@@"} {
		f.Add(s)
	}
	l := &logins{domain: "example.test"}
	f.Fuzz(func(t *testing.T, s string) {
		a := l.account(s)
		if again := l.account(a); again != a {
			t.Errorf("%q is %q is %q", s, a, again)
		}
		if a == "kate@example.test" && !strings.EqualFold(strings.TrimSuffix(strings.TrimSuffix(lower(s), "@example.test"), "@example.test."), "kate") {
			t.Errorf("%q is kate", s)
		}
	})
}

func TestDirectory(t *testing.T) {
	o := &options{domain: "example.test", hostname: "mail.example.test", users: []user{{"ann", "x"}, {"abuse", "x"}}}
	d, err := newDirectory(o)
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"ann@example.test": "ann@example.test", "Postmaster@example.test": "ann@example.test", "postmaster@mail.example.test": "ann@example.test",
		"abuse@example.test": "abuse@example.test", "ABUSE@mail.example.test": "abuse@example.test",
		"ann@mail.example.test": "", "nobody@example.test": "",
	} {
		a, err := mailspine.ParseAddress(address)
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.Lookup(context.Background(), a)
		if want == "" {
			if !errors.Is(err, mda.ErrNoUser) {
				t.Errorf("%s: %v, %v", address, got, err)
			}
		} else if err != nil || len(got) != 1 || got[0].Account != want {
			t.Errorf("%s: %v, %v", address, got, err)
		}
	}
}

// A new account has what mail programs look for; what its user made of it later stays so.
func TestFurnish(t *testing.T) {
	ctx := context.Background()
	o := &options{domain: "example.test", users: []user{{"ann", "x"}}}
	store := memory.New(nil)
	defer store.Close()
	names := func() (all []string) {
		a, err := store.Account(ctx, "ann@example.test")
		if err != nil {
			t.Fatal(err)
		}
		list, err := a.Mailboxes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list {
			all = append(all, m.Name+string(m.SpecialUse))
			if m.Name != mailbox.Inbox && !m.Subscribed {
				t.Errorf("%s is not subscribed", m.Name)
			}
		}
		return all
	}
	if err := furnish(ctx, o, store); err != nil {
		t.Fatal(err)
	}
	want := []string{"INBOX", `Drafts\Drafts`, `Junk\Junk`, `Sent\Sent`, `Trash\Trash`}
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("mailboxes %q, want %q", got, want)
	}
	a, _ := store.Account(ctx, "ann@example.test")
	if err := errors.Join(a.Delete(ctx, "Junk"), a.SetSubscribed(ctx, "Junk", false), furnish(ctx, o, store)); err != nil {
		t.Fatal(err)
	}
	if got := names(); slices.Contains(got, `Junk\Junk`) {
		t.Errorf("a deleted mailbox is back: %q", got)
	}
}
