package mda

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

const letter = "From: joe@example.com\r\nSubject: hello\r\n\r\nHello.\r\n"

func addr(t *testing.T, s string) mailspine.Address {
	t.Helper()
	a, err := mailspine.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func envelope(t *testing.T, rcpts ...string) *mailspine.Envelope {
	t.Helper()
	env := &mailspine.Envelope{ID: mailspine.NewMsgID(), From: addr(t, "joe@example.com")}
	for _, r := range rcpts {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: addr(t, r)})
	}
	return env
}

// directory has ann, bob, a list of both, and aliases that are wrong in several ways.
func directory(t *testing.T) MapDirectory {
	alias := func(s string) Destination { return Destination{Alias: addr(t, s)} }
	d := MapDirectory{
		"ann@example.org":        {{Account: "ann"}},
		"bob@example.org":        {{Account: "bob"}},
		"a+b@example.org":        {{Account: "plus"}},
		"all@example.org":        {alias("ann@example.org"), alias("BOB@example.org"), alias("staff@example.org")},
		"staff@example.org":      {alias("ann@example.org"), {Account: "ann", Mailbox: "Staff"}},
		"loop@example.org":       {alias("loop2@example.org")},
		"loop2@example.org":      {alias("loop@example.org")},
		"dead@example.org":       {alias("ann@example.org"), alias("nobody@example.org")},
		"postmaster@example.org": {{Account: "ann", Mailbox: "Admin"}},
		"badbox@example.org":     {{Account: "ann", Mailbox: "../x"}},
		"@catch.example":         {{Account: "catch"}},
	}
	for i := range maxAliasDepth + 2 {
		d[fmt.Sprintf("deep%d@example.org", i)] = []Destination{alias(fmt.Sprintf("deep%d@example.org", i+1))}
	}
	for range defaultMaxDestinations + 1 {
		d["many@example.org"] = append(d["many@example.org"], Destination{Account: "ann"})
	}
	return d
}

// contents returns the messages of a mailbox.
func contents(t *testing.T, s mailbox.Store, user, name string) []string {
	t.Helper()
	acct, err := s.Account(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	m, err := acct.Open(t.Context(), name)
	if errors.Is(err, mailbox.ErrNoMailbox) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	snap, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, x := range snap.Messages {
		b, err := m.Body(t.Context(), x.UID)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		out = append(out, string(raw))
	}
	return out
}

// status returns the reply for recipient i, "" for one that was taken.
func status(err error, i int) string {
	if s := mailspine.Status(mailspine.ErrorAt(err, i)); s != nil {
		return fmt.Sprint(s.Code, " ", s.Enhanced)
	}
	return ""
}

func TestDeliver(t *testing.T) {
	store := memory.New(nil)
	defer store.Close()
	a := &Agent{Mailboxes: store, Directory: directory(t)}
	env := envelope(t, "ann@example.org", "nobody@example.org", "Bob@EXAMPLE.org")
	err := a.Deliver(t.Context(), env, mailspine.StringContent(letter))
	for i, want := range []string{"", "550 5.1.1", ""} {
		if got := status(err, i); got != want {
			t.Errorf("recipient %d: %q, want %q", i, got, want)
		}
	}
	if got := contents(t, store, "ann", "INBOX"); len(got) != 1 || got[0] != "Return-Path: <joe@example.com>\r\nDelivered-To: ann@example.org\r\n"+letter {
		t.Errorf("ann has %q", got)
	}
	if got := contents(t, store, "bob", "INBOX"); len(got) != 1 || !strings.HasPrefix(got[0], "Return-Path: <joe@example.com>\r\nDelivered-To: Bob@EXAMPLE.org\r\n") {
		t.Errorf("bob has %q", got)
	}
}

// What the queue repeats after a crash, or because another recipient failed, arrives once.
func TestDeliverTwice(t *testing.T) {
	store := memory.New(nil)
	defer store.Close()
	a := &Agent{Mailboxes: store, Directory: directory(t)}
	env := envelope(t, "ann@example.org", "ann@example.org", "all@example.org", "bob@example.org")
	for range 3 {
		if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
			t.Fatal(err)
		}
	}
	// ann gets it under two addresses, and so does bob.
	if n, m := len(contents(t, store, "ann", "INBOX")), len(contents(t, store, "bob", "INBOX")); n != 2 || m != 2 {
		t.Errorf("ann has %d, bob %d copies, want 2 and 2", n, m)
	}
	if n := len(contents(t, store, "ann", "Staff")); n != 1 {
		t.Errorf("the folder that the alias names has %d copies", n)
	}
	env.ID = mailspine.NewMsgID()
	if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if n := len(contents(t, store, "ann", "INBOX")); n != 4 {
		t.Errorf("another message with the same text is not taken: %d", n)
	}
}

func TestRecipients(t *testing.T) {
	store := memory.New(nil)
	defer store.Close()
	full, err := store.Account(t.Context(), "bob")
	if err != nil {
		t.Fatal(err)
	}
	if err := full.SetQuota(t.Context(), mailbox.QuotaLimit{Messages: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := full.Deliver(t.Context(), mailspine.StringContent("x"), mailbox.DeliverOptions{}); err != nil {
		t.Fatal(err)
	}
	a := &Agent{Mailboxes: store, Directory: directory(t), Separator: "+"}
	for _, c := range []struct{ rcpt, check, deliver string }{
		{"ann@example.org", "", ""},
		{"ANN@Example.Org", "", ""},
		{"ann+x@example.org", "", ""},
		{"a+b@example.org", "", ""},
		{"+ann@example.org", "550 5.1.1", "550 5.1.1"},
		{"nobody@example.org", "550 5.1.1", "550 5.1.1"},
		{"nobody+ann@example.org", "550 5.1.1", "550 5.1.1"},
		{"ann@elsewhere.example", "550 5.1.1", "550 5.1.1"},
		{`"../../etc/passwd"@example.org`, "550 5.1.1", "550 5.1.1"},
		{"whoever@catch.example", "", ""},
		{"PostMaster@example.org", "", ""},
		{"bob@example.org", "452 4.2.2", "452 4.2.2"},
		{"all@example.org", "452 4.2.2", "452 4.2.2"},
		{"loop@example.org", "451 4.3.5", "451 4.3.5"},
		{"dead@example.org", "451 4.3.5", "451 4.3.5"},
		{"deep0@example.org", "451 4.3.5", "451 4.3.5"},
		{"many@example.org", "451 4.3.5", "451 4.3.5"},
		{"badbox@example.org", "", "451 4.3.5"},
	} {
		env := envelope(t, c.rcpt)
		if got := status(a.CheckRecipient(t.Context(), env, env.Recipients[0]), 0); got != c.check {
			t.Errorf("%s at RCPT: %q, want %q", c.rcpt, got, c.check)
		}
		if got := status(a.Deliver(t.Context(), env, mailspine.StringContent(letter)), 0); got != c.deliver {
			t.Errorf("%s at delivery: %q, want %q", c.rcpt, got, c.deliver)
		}
	}
}

// The zero Agent takes nothing, and says so in a way that loses no mail.
func TestZeroAgent(t *testing.T) {
	var a Agent
	env := envelope(t, "ann@example.org")
	if got := status(a.CheckRecipient(t.Context(), env, env.Recipients[0]), 0); got != "550 5.1.1" {
		t.Errorf("at RCPT: %q", got)
	}
	if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); !errors.Is(err, ErrNoStore) || !mailspine.Status(err).Temporary() {
		t.Errorf("at delivery: %v", err)
	}
}

func TestDetail(t *testing.T) {
	store := memory.New(nil)
	defer store.Close()
	a := &Agent{Mailboxes: store, Directory: directory(t), Separator: "+"}
	acct, err := store.Account(t.Context(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	for name, use := range map[string]mailbox.SpecialUse{"lists/go": "", "Sent": mailbox.UseSent} {
		if err := acct.Create(t.Context(), name, mailbox.CreateOptions{SpecialUse: use}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ detail, box string }{
		{"lists/go", "lists/go"},
		{"missing", "INBOX"}, // strangers make no mailboxes
		{"Sent", "INBOX"},    // and write nothing into those that are special
		{"../x", "INBOX"},
		{"", "INBOX"},
	} {
		before := len(contents(t, store, "ann", c.box))
		if err := a.Deliver(t.Context(), envelope(t, `"ann+`+c.detail+`"@example.org`), mailspine.StringContent(letter)); err != nil {
			t.Errorf("detail %q: %v", c.detail, err)
		}
		if after := len(contents(t, store, "ann", c.box)); after != before+1 {
			t.Errorf("detail %q did not go to %s", c.detail, c.box)
		}
	}
	list, err := acct.Mailboxes(t.Context())
	if err != nil || len(list) != 4 {
		t.Errorf("mailboxes: %+v, %v", list, err)
	}
}

func TestQuarantine(t *testing.T) {
	store := memory.New(nil)
	defer store.Close()
	a := &Agent{Mailboxes: store, Directory: directory(t)}
	env := envelope(t, "ann@example.org")
	env.Verdict = &mailspine.Verdict{Disposition: "quarantine"}
	if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if n := len(contents(t, store, "ann", "Junk")); n != 1 {
		t.Errorf("Junk has %d messages", n)
	}
	acct, _ := store.Account(t.Context(), "ann")
	m, err := acct.Open(t.Context(), "Junk")
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.Snapshot(t.Context())
	if err != nil || s.Info.SpecialUse != mailbox.UseJunk || !mailbox.HasFlag(s.Messages[0].Flags, mailbox.Junk) {
		t.Errorf("%+v, %v", s, err)
	}
	// A mailbox that the user has for it is preferred.
	if err := acct.Rename(t.Context(), "Junk", "Spam"); err != nil {
		t.Fatal(err)
	}
	env.ID = mailspine.NewMsgID()
	if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if n := len(contents(t, store, "ann", "Spam")); n != 2 {
		t.Errorf("Spam has %d messages", n)
	}
	a.IgnoreVerdict = true
	env.ID = mailspine.NewMsgID()
	if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if n := len(contents(t, store, "ann", "INBOX")); n != 1 {
		t.Errorf("INBOX has %d messages", n)
	}
}

func TestLoop(t *testing.T) {
	store := memory.New(nil)
	defer store.Close()
	a := &Agent{Mailboxes: store, Directory: directory(t)}
	msg := mailspine.StringContent("Delivered-To: ANN@example.org\r\n" + letter)
	err := a.Deliver(t.Context(), envelope(t, "ann@example.org", "bob@example.org"), msg)
	if got := status(err, 0); got != "554 5.4.6" {
		t.Errorf("ann: %q", got)
	}
	if got := status(err, 1); got != "" {
		t.Errorf("bob, who has not had it: %q", got)
	}
}

// Of the message nothing changes but a forged Return-Path.
func TestContentIsKept(t *testing.T) {
	store := memory.New(nil)
	defer store.Close()
	a := &Agent{Mailboxes: store, Directory: directory(t)}
	head := "Return-Path: <joe@example.com>\r\nDelivered-To: ann@example.org\r\n"
	for _, c := range []struct{ in, out string }{
		{letter, letter},
		{"", ""},
		{"no header\nat all", "no header\nat all"},
		{"A: b\n\nbare LF, NUL \x00, 8 bit \xff and a long line " + strings.Repeat("x", 5000), "A: b\n\nbare LF, NUL \x00, 8 bit \xff and a long line " + strings.Repeat("x", 5000)},
		{"Content-Type: multipart/mixed; boundary=\r\n\r\n--\r\nbroken", "Content-Type: multipart/mixed; boundary=\r\n\r\n--\r\nbroken"},
		{"X: 1\r\nReturn-Path: <forged@example.com>\r\nY: 2\r\n\r\nbody\r\n", "X: 1\r\nY: 2\r\n\r\nbody\r\n"},
		{"\r\nReturn-Path: in the body\r\n", "\r\nReturn-Path: in the body\r\n"},
	} {
		if err := a.Deliver(t.Context(), envelope(t, "ann@example.org"), mailspine.StringContent(c.in)); err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		all := contents(t, store, "ann", "INBOX")
		if got := all[len(all)-1]; got != head+c.out {
			t.Errorf("%q is kept as %q", c.in, got)
		}
	}
	long := "X: " + strings.Repeat("x", mailspine.MaxHeader) + "\r\n\r\n"
	if got := status(a.Deliver(t.Context(), envelope(t, "ann@example.org"), mailspine.StringContent(long)), 0); got != "552 5.3.4" {
		t.Errorf("a header of over 1 MiB: %q", got)
	}
}

func TestNullSender(t *testing.T) {
	store := memory.New(nil)
	defer store.Close()
	a := &Agent{Mailboxes: store, Directory: directory(t)}
	env := envelope(t, "ann@example.org")
	env.From = mailspine.Address{}
	if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, store, "ann", "INBOX"); !strings.HasPrefix(got[0], "Return-Path: <>\r\n") {
		t.Errorf("%q", got[0])
	}
}

// An envelope that nobody validated cannot write header fields.
func TestHostileEnvelope(t *testing.T) {
	store := memory.New(nil)
	defer store.Close()
	a := &Agent{Mailboxes: store, Directory: DirectoryFunc(func(context.Context, mailspine.Address) ([]Destination, error) {
		return []Destination{{Account: "ann"}}, nil
	})}
	env := envelope(t, "ann@example.org")
	env.From = mailspine.Address{Local: "joe\r\nBcc: x", Domain: "example.com"}
	if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err == nil {
		t.Error("taken")
	}
	if got := contents(t, store, "ann", "INBOX"); len(got) != 0 {
		t.Errorf("ann has %q", got)
	}
}

// What cannot be found out or done now is temporary, and the cause stays here.
func TestTroubles(t *testing.T) {
	trouble := errors.New("dial tcp 10.0.0.1: secret")
	env := envelope(t, "ann@example.org")
	a := &Agent{Mailboxes: memory.New(nil), Directory: DirectoryFunc(func(context.Context, mailspine.Address) ([]Destination, error) { return nil, trouble })}
	for _, err := range []error{a.Deliver(t.Context(), env, mailspine.StringContent(letter)), a.CheckRecipient(t.Context(), env, env.Recipients[0])} {
		if s := mailspine.Status(err); s == nil || s.Code != 451 || strings.Contains(s.Reply(), "secret") {
			t.Errorf("directory in trouble: %v", s)
		}
	}
	a = &Agent{Mailboxes: memory.New(&memory.Options{MaxBytes: 200}), Directory: directory(t)}
	big := letter + strings.Repeat("x", 300)
	if got := status(a.Deliver(t.Context(), env, mailspine.StringContent(big)), 0); got != "452 4.3.1" {
		t.Errorf("no room in the store: %q", got)
	}
	a = &Agent{Mailboxes: memory.New(&memory.Options{MaxMessage: 200}), Directory: directory(t)}
	if got := status(a.Deliver(t.Context(), env, mailspine.StringContent(big)), 0); got != "552 5.2.3" {
		t.Errorf("too big: %q", got)
	}
	a = &Agent{Mailboxes: broken{}, Directory: directory(t)}
	if got := status(a.Deliver(t.Context(), env, mailspine.StringContent(letter)), 0); got != "452 4.3.1" {
		t.Errorf("disk full: %q", got)
	}
}

// broken is a store whose disk is full.
type broken struct{}

func (broken) Account(context.Context, string) (mailbox.Account, error) {
	return nil, fmt.Errorf("mkdir /secret: %w", syscall.ENOSPC)
}
func (broken) Close() error { return nil }

func TestManyRecipients(t *testing.T) {
	store := memory.New(nil)
	defer store.Close()
	d := MapDirectory{}
	env := envelope(t)
	for i := range 200 {
		s := fmt.Sprintf("u%d@example.org", i)
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: addr(t, s)})
		if i%2 == 0 {
			d[s] = []Destination{{Account: s}}
		}
	}
	a := &Agent{Mailboxes: store, Directory: d, Concurrency: 16}
	err := a.Deliver(t.Context(), env, mailspine.StringContent(letter))
	for i := range 200 {
		if got, want := status(err, i), map[bool]string{true: "", false: "550 5.1.1"}[i%2 == 0]; got != want {
			t.Errorf("recipient %d: %q", i, got)
		}
	}
	if n := len(contents(t, store, "u198@example.org", "INBOX")); n != 1 {
		t.Errorf("the last one has %d messages", n)
	}
}

func FuzzUsers(f *testing.F) {
	f.Add("ann@example.org", "Ann@Example.ORG")
	f.Add(`""@example.org`, "all@example.org")
	f.Add(`"a b"@example.org`, "ü@bücher.example")
	f.Fuzz(func(t *testing.T, user, other string) {
		d, err := Users(user)
		if err != nil {
			return
		}
		a, err := mailspine.ParseAddress(user)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Lookup(t.Context(), a); err != nil {
			t.Fatalf("%q is not found: %v", user, err)
		}
		b, err := mailspine.ParseAddress(other)
		if err != nil {
			return
		}
		_, err = d.Lookup(t.Context(), b)
		if found := err == nil; found != (asciiLower(a.Local) == asciiLower(b.Local) && a.Equal(mailspine.Address{Local: a.Local, Domain: b.Domain})) {
			t.Fatalf("%q is found as %q: %v", user, other, found)
		}
	})
}

// A Return-Path that the message comes with goes, even an empty one.
func TestReturnPathOfOthers(t *testing.T) {
	for _, head := range []string{"Return-Path:\r\n", "return-path :\r\n <x@example.net>\r\n", "Return-Path: <>\r\nReturn-Path: <y@example.net>\r\n"} {
		s := memory.New(nil)
		a := &Agent{Mailboxes: s, Directory: directory(t)}
		if err := a.Deliver(t.Context(), envelope(t, "ann@example.org"), mailspine.StringContent(head+letter)); err != nil {
			t.Fatal(err)
		}
		want := "Return-Path: <joe@example.com>\r\nDelivered-To: ann@example.org\r\n" + letter
		if got := contents(t, s, "ann", "INBOX"); len(got) != 1 || got[0] != want {
			t.Errorf("%q became %q", head, got)
		}
	}
}

// One address with more mailboxes of an account than a delivery takes is a fault of the configuration, and
// no full mailbox.
func TestTooManyTargets(t *testing.T) {
	d := MapDirectory{}
	for i := range mailbox.MaxTargets + 1 {
		d["x@example.org"] = append(d["x@example.org"], Destination{Account: "x", Mailbox: fmt.Sprint("b", i)})
	}
	a := &Agent{Mailboxes: memory.New(nil), Directory: d}
	err := a.Deliver(t.Context(), envelope(t, "x@example.org"), mailspine.StringContent(letter))
	if st := mailspine.Status(err); st.Code != 451 || st.Enhanced != (mailspine.EnhancedCode{4, 3, 5}) {
		t.Errorf("%v", err)
	}
}
