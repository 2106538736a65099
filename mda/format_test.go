package mda

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

// upper is a conversion to upper case, and a policy that wants it for everything but the
// mailbox "Plain".
type upper struct {
	mu    sync.Mutex
	calls int
	seen  []string // the mailboxes asked for
	err   error    // of the conversion
	fail  error    // of the policy
	same  bool     // there is nothing to do
	more  int      // octets that it adds
	orig  string
}

func (u *upper) Format(_ context.Context, d Destination, _ *mailspine.Envelope, _ mailspine.Content) (Format, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.seen = append(u.seen, d.Account+"/"+d.Mailbox)
	if d.Mailbox == "Plain" || u.fail != nil {
		return Format{}, u.fail
	}
	return Format{Name: "upper", Originals: u.orig, Convert: u.convert}, nil
}

func (u *upper) convert(ctx context.Context, w io.Writer, msg mailspine.Content) (bool, error) {
	u.mu.Lock()
	u.calls++
	err, same := u.err, u.same
	u.mu.Unlock()
	b, rerr := mailspine.ReadContent(ctx, msg, 1<<20)
	if rerr != nil || same {
		return false, rerr
	}
	w.Write(bytes.ToUpper(b))
	w.Write(bytes.Repeat([]byte("x"), u.more))
	return true, err
}

const trace = "Return-Path: <joe@example.com>\r\nDelivered-To: ann@example.org\r\n"

// holdings checks what the mailboxes of ann have.
func holdings(t *testing.T, s mailbox.Store, want map[string][]string) {
	t.Helper()
	for _, name := range []string{"INBOX", "Originals", "Plain", "Junk", "lists"} {
		if got := contents(t, s, "ann", name); !slices.Equal(got, want[name]) {
			t.Errorf("%s has %q, want %q", name, got, want[name])
		}
	}
}

func TestFormats(t *testing.T) {
	original, derived := trace+letter, trace+strings.ToUpper(letter)
	two := MapDirectory{"ann@example.org": {{Account: "ann"}, {Account: "ann", Mailbox: "Plain"}}}
	for _, c := range []struct {
		name string
		u    *upper
		dir  Directory
		want map[string][]string
	}{
		{"a form", &upper{}, nil, map[string][]string{"INBOX": {derived}, "Originals": {original}}},
		{"nothing to do", &upper{same: true}, nil, map[string][]string{"INBOX": {original}}},
		{"a conversion that fails", &upper{err: errors.New("bug")}, nil, map[string][]string{"INBOX": {original}}},
		{"a mailbox that wants none beside it", &upper{}, two, map[string][]string{"INBOX": {derived}, "Originals": {original}, "Plain": {original}}},
		{"originals into a mailbox of the recipient", &upper{orig: "Plain"}, two, map[string][]string{"INBOX": {derived}, "Plain": {original}}},
		{"originals into the mailbox itself", &upper{orig: "inbox"}, nil, map[string][]string{"INBOX": {original}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := memory.New(nil)
			defer s.Close()
			a := &Agent{Mailboxes: s, Directory: directory(t), Formats: c.u}
			if c.dir != nil {
				a.Directory = c.dir
			}
			env := envelope(t, "ann@example.org")
			for range 3 { // a queue may repeat it
				if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
					t.Fatal(err)
				}
				holdings(t, s, c.want)
			}
			acct, _ := s.Account(t.Context(), "ann")
			list, _ := acct.Mailboxes(t.Context())
			for _, m := range list {
				if m.SpecialUse != mailbox.UseNone {
					t.Errorf("%s has the use %s", m.Name, m.SpecialUse)
				}
			}
		})
	}
}

// The policy is asked for the mailbox that the message is filed into.
func TestFormatsOfWhichMailbox(t *testing.T) {
	s := memory.New(nil)
	defer s.Close()
	acct, err := s.Account(t.Context(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	if err := acct.Create(t.Context(), "lists", mailbox.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	u := &upper{}
	a := &Agent{Mailboxes: s, Directory: directory(t), Formats: u, Separator: "+"}
	env := envelope(t, "ann+lists@example.org")
	if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	env = envelope(t, "ann@example.org")
	env.Verdict = &mailspine.Verdict{Disposition: "quarantine"}
	if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if want := []string{"ann/lists", "ann/Junk"}; !slices.Equal(u.seen, want) {
		t.Errorf("asked for %q, want %q", u.seen, want)
	}
	if n := len(contents(t, s, "ann", "lists")); n != 1 {
		t.Errorf("lists has %d messages", n)
	}
	for _, name := range []string{"Junk", "Originals"} {
		m, err := acct.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		snap, _ := m.Snapshot(t.Context())
		if last := snap.Messages[len(snap.Messages)-1]; !mailbox.HasFlag(last.Flags, mailbox.Junk) {
			t.Errorf("%s: flags %q", name, last.Flags)
		}
	}
}

// flaky is a store whose deliveries fail at one point, before or after they were done.
type flaky struct {
	mailbox.Store
	mu     sync.Mutex
	log    []string // the targets of each delivery that was tried
	failAt int      // the number of the delivery; counted from 1
	after  bool
}

func (f *flaky) Account(ctx context.Context, user string) (mailbox.Account, error) {
	a, err := f.Store.Account(ctx, user)
	return flakyAccount{a, f}, err
}

type flakyAccount struct {
	mailbox.Account
	f *flaky
}

func (a flakyAccount) Deliver(ctx context.Context, msg mailspine.Content, o mailbox.DeliverOptions) (mailbox.Delivered, error) {
	a.f.mu.Lock()
	a.f.log = append(a.f.log, strings.Join(o.Mailboxes, ","))
	fail := len(a.f.log) == a.f.failAt
	a.f.mu.Unlock()
	if fail && !a.f.after {
		return mailbox.Delivered{}, errors.New("cut off before")
	}
	d, err := a.Account.Deliver(ctx, msg, o)
	if fail {
		return mailbox.Delivered{}, errors.New("cut off after")
	}
	return d, err
}

// The original is there before the derived message, and wherever a delivery ends, it is
// completed when it is repeated, and nothing is there twice.
func TestFormatsInterrupted(t *testing.T) {
	want := map[string][]string{"INBOX": {trace + strings.ToUpper(letter)}, "Originals": {trace + letter}}
	for failAt := 1; failAt <= 2; failAt++ {
		for _, after := range []bool{false, true} {
			s := &flaky{Store: memory.New(nil), failAt: failAt, after: after}
			a := &Agent{Mailboxes: s, Directory: directory(t), Formats: &upper{}}
			env := envelope(t, "ann@example.org")
			err := a.Deliver(t.Context(), env, mailspine.StringContent(letter))
			if got := status(err, 0); got != "451 4.3.0" {
				t.Errorf("failure at %d: %q", failAt, got)
			}
			if got := contents(t, s.Store, "ann", "Originals"); failAt == 2 && !slices.Equal(got, want["Originals"]) {
				t.Errorf("failure at %d: the original is not there: %q", failAt, got)
			}
			for range 2 {
				if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
					t.Fatal(err)
				}
			}
			holdings(t, s.Store, want)
			if s.log[0] != "Originals" {
				t.Errorf("deliveries: %q", s.log)
			}
			s.Close()
		}
	}
}

// A conversion that fails once and then succeeds, or the reverse, leaves one message in
// the mailbox.
func TestFormatsOfTwoMinds(t *testing.T) {
	s := memory.New(nil)
	defer s.Close()
	u := &upper{err: errors.New("no space")}
	a := &Agent{Mailboxes: s, Directory: directory(t), Formats: u}
	env := envelope(t, "ann@example.org")
	for _, err := range []error{u.err, nil, u.err} {
		u.err = err
		if err := a.Deliver(t.Context(), env, mailspine.StringContent(letter)); err != nil {
			t.Fatal(err)
		}
	}
	if got := contents(t, s, "ann", "INBOX"); len(got) != 1 || got[0] != trace+letter {
		t.Errorf("INBOX has %q", got)
	}
}

// Where there is no room for both, the original goes where its reader looks for it.
func TestFormatsWithoutRoom(t *testing.T) {
	original := trace + letter
	for _, c := range []struct {
		name  string
		limit mailbox.QuotaLimit
		opts  memory.Options
		u     *upper
		want  map[string][]string
	}{
		{"octets", mailbox.QuotaLimit{Bytes: int64(2*len(original)) - 1}, memory.Options{}, &upper{}, map[string][]string{"INBOX": {original}}},
		{"just enough", mailbox.QuotaLimit{Bytes: int64(2 * len(original))}, memory.Options{}, &upper{}, map[string][]string{"INBOX": {trace + strings.ToUpper(letter)}, "Originals": {original}}},
		{"messages", mailbox.QuotaLimit{Messages: 1}, memory.Options{}, &upper{}, map[string][]string{"INBOX": {original}}},
		{"too big", mailbox.QuotaLimit{}, memory.Options{MaxMessage: int64(len(original)) + 5}, &upper{more: 6}, map[string][]string{"INBOX": {original}, "Originals": {original}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := memory.New(&c.opts)
			defer s.Close()
			acct, err := s.Account(t.Context(), "ann")
			if err != nil {
				t.Fatal(err)
			}
			if err := acct.SetQuota(t.Context(), c.limit); err != nil {
				t.Fatal(err)
			}
			a := &Agent{Mailboxes: s, Directory: directory(t), Formats: c.u}
			if err := a.Deliver(t.Context(), envelope(t, "ann@example.org"), mailspine.StringContent(letter)); err != nil {
				t.Fatal(err)
			}
			holdings(t, s, c.want)
		})
	}
}

func TestFormatErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		u    *upper
		want string
	}{
		{"a policy that cannot be asked", &upper{fail: errors.New("database: secret")}, "451 4.3.0"},
		{"a policy that refuses", &upper{fail: mailspine.Errorf(550, "5.7.1", "No")}, "550 5.7.1"},
		{"a bad name", &upper{orig: "a//b"}, "451 4.3.5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := memory.New(nil)
			defer s.Close()
			a := &Agent{Mailboxes: s, Directory: directory(t), Formats: c.u}
			err := a.Deliver(t.Context(), envelope(t, "ann@example.org"), mailspine.StringContent(letter))
			if got := status(err, 0); got != c.want || strings.Contains(mailspine.Status(err).Reply(), "secret") {
				t.Errorf("%v, want %s", err, c.want)
			}
			holdings(t, s, nil)
		})
	}
	s := memory.New(nil)
	defer s.Close()
	a := &Agent{Mailboxes: s, Directory: directory(t), Formats: FormatPolicyFunc(func(context.Context, Destination, *mailspine.Envelope, mailspine.Content) (Format, error) {
		return Format{Name: strings.Repeat("x", maxFormatName+1), Convert: (&upper{}).convert}, nil
	})}
	if got := status(a.Deliver(t.Context(), envelope(t, "ann@example.org"), mailspine.StringContent(letter)), 0); got != "451 4.3.5" {
		t.Errorf("a long name: %q", got)
	}
}

// stages counts the places that are open.
type stages struct {
	mu         sync.Mutex
	all, open  int
	staged     mailspine.SpoolStager
	failing    bool
	mostAtOnce int
}

func (s *stages) Stage(ctx context.Context, n int64) (mailspine.Stage, error) {
	if s.failing {
		return nil, errors.New("no place")
	}
	st, err := s.staged.Stage(ctx, n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all++
	s.open++
	s.mostAtOnce = max(s.mostAtOnce, s.open)
	return &countedStage{Stage: st, s: s}, err
}

type countedStage struct {
	mailspine.Stage
	s    *stages
	once sync.Once
}

func (c *countedStage) Close() error {
	c.once.Do(func() { c.s.mu.Lock(); c.s.open--; c.s.mu.Unlock() })
	return c.Stage.Close()
}

// A message is converted once for all recipients, each of whom gets it with trace fields of
// their own, and no place is left open. Trace fields that are not ASCII are converted with it.
func TestConvertedOnce(t *testing.T) {
	s := memory.New(nil)
	defer s.Close()
	d := MapDirectory{"ü@example.org": {{Account: "ann"}}}
	var rcpts []string
	for i := range 50 {
		r := fmt.Sprintf("u%d@example.org", i)
		rcpts = append(rcpts, r)
		d[r] = []Destination{{Account: r}}
	}
	u, st := &upper{}, &stages{}
	a := &Agent{Mailboxes: s, Directory: d, Formats: u, Stager: st}
	if err := a.Deliver(t.Context(), envelope(t, rcpts...), mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	for _, r := range rcpts {
		got := contents(t, s, r, "INBOX")
		if len(got) != 1 || got[0] != "Return-Path: <joe@example.com>\r\nDelivered-To: "+r+"\r\n"+strings.ToUpper(letter) {
			t.Errorf("%s has %q", r, got)
		}
	}
	if u.calls != 1 || st.all != 1 || st.open != 0 {
		t.Errorf("%d conversions, %d places, %d of them open", u.calls, st.all, st.open)
	}
	if err := a.Deliver(t.Context(), envelope(t, "ü@example.org"), mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, s, "ann", "INBOX"); len(got) != 1 || got[0] != strings.ToUpper("Return-Path: <joe@example.com>\r\nDelivered-To: ü@example.org\r\n"+letter) {
		t.Errorf("ü has %q", got)
	}
	st.failing = true
	if err := a.Deliver(t.Context(), envelope(t, "u0@example.org"), mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, s, "u0@example.org", "INBOX"); len(got) != 2 || !strings.HasSuffix(got[1], letter) || st.open != 0 {
		t.Errorf("without a place: %q, %d open", got, st.open)
	}
}

// More forms than are kept are made and given back one by one.
func TestManyForms(t *testing.T) {
	s := memory.New(nil)
	defer s.Close()
	d := MapDirectory{}
	for i := range maxFormats + 8 {
		d["x@example.org"] = append(d["x@example.org"], Destination{Account: fmt.Sprint("x", i)})
	}
	st := &stages{}
	a := &Agent{Mailboxes: s, Directory: d, Stager: st, Formats: FormatPolicyFunc(func(_ context.Context, d Destination, _ *mailspine.Envelope, _ mailspine.Content) (Format, error) {
		return Format{Name: d.Account, Convert: (&upper{}).convert}, nil
	})}
	if err := a.Deliver(t.Context(), envelope(t, "x@example.org"), mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if st.all != maxFormats+8 || st.open != 0 || st.mostAtOnce > maxFormats+1 {
		t.Errorf("%d places, %d open, %d at once", st.all, st.open, st.mostAtOnce)
	}
	if got := contents(t, s, fmt.Sprint("x", maxFormats+7), "INBOX"); len(got) != 1 || !strings.HasSuffix(got[0], strings.ToUpper(letter)) {
		t.Errorf("the last one has %q", got)
	}
}
