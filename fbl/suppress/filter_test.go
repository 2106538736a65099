package suppress

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

// A next takes messages and answers by recipient.
type next struct {
	answer map[string]error
	got    []*mailspine.Envelope
}

func (n *next) Deliver(ctx context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
	n.got = append(n.got, env)
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	for i, r := range env.Recipients {
		errs[i] = n.answer[r.Address.Local]
		mailspine.AttemptFrom(ctx).Record(i, mailspine.Receipt{Reply: r.Address.Local})
	}
	return errs.Err()
}

type receipts map[int]string

func (receipts) BeforeCommit(context.Context, time.Duration) error { return nil }
func (r receipts) Record(i int, x mailspine.Receipt)               { r[i] = x.Reply }

func envelope(locals string) *mailspine.Envelope {
	env := &mailspine.Envelope{ID: "m1", From: addr("sender@example.org"), Tenant: "t", Stream: "s"}
	for l := range strings.FieldsSeq(locals) {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: addr(l + "@example.com")})
	}
	return env
}

func TestFilter(t *testing.T) {
	list := NewMemory(func() time.Time { return t0 })
	for _, l := range []string{"bad", "worse"} {
		if err := list.Add(t.Context(), Entry{Key: key("t", "s", l+"@example.com"), Reason: Complaint}); err != nil {
			t.Fatal(err)
		}
	}
	n := &next{answer: map[string]error{"full": mailspine.Errorf(452, "4.2.2", "Full")}}
	f := &Filter{Next: n, List: list}
	got := receipts{}
	ctx := mailspine.WithAttempt(t.Context(), got)
	env := envelope("ann bad full worse bob")
	err := f.Deliver(ctx, env, mailspine.StringContent("x"))
	for i, want := range []string{"", "550 5.1.0", "452 4.2.2", "550 5.1.0", ""} {
		e := mailspine.ErrorAt(err, i)
		if want == "" && e != nil || want != "" && (e == nil || !strings.HasPrefix(mailspine.Status(e).Reply(), want)) {
			t.Errorf("recipient %d: %v, not %q", i, e, want)
		}
		if errors.Is(e, ErrSuppressed) != (want == "550 5.1.0") {
			t.Errorf("recipient %d: %v", i, e)
		}
	}
	if text := mailspine.Status(mailspine.ErrorAt(err, 1)).Reply(); !strings.Contains(text, "2026-03-01") || !strings.Contains(text, "complaint") {
		t.Error(text)
	}
	if len(n.got) != 1 || len(n.got[0].Recipients) != 3 || n.got[0].ID == env.ID || env.ID != "m1" || len(env.Recipients) != 5 {
		t.Errorf("Next got %+v", n.got)
	}
	if got[0] != "ann" || got[2] != "full" || got[4] != "bob" || len(got) != 3 {
		t.Errorf("receipts %v", got)
	}
	// All stopped: Next hears nothing. None stopped: it gets what came.
	n.got = nil
	if err := f.Deliver(ctx, envelope("bad"), nil); !errors.Is(err, ErrSuppressed) && !errors.Is(mailspine.ErrorAt(err, 0), ErrSuppressed) || n.got != nil {
		t.Errorf("%v, %v", err, n.got)
	}
	env = envelope("ann bob")
	if err := f.Deliver(ctx, env, nil); err != nil || len(n.got) != 1 || n.got[0] != env {
		t.Errorf("%v, %v", err, n.got)
	}
	// Another stream, and notifications, pass.
	for _, change := range []func(*mailspine.Envelope){
		func(e *mailspine.Envelope) { e.Stream = "other" },
		func(e *mailspine.Envelope) { e.From = mailspine.Address{} },
	} {
		env := envelope("bad")
		change(env)
		if err := f.Deliver(ctx, env, nil); err != nil {
			t.Error(err)
		}
	}
}

// broken is a List that fails.
type broken struct{ add, check error }

func (b broken) Check(context.Context, Key) (*Entry, error)  { return nil, b.check }
func (b broken) Add(context.Context, Entry) error            { return b.add }
func (b broken) Remove(context.Context, Key) error           { return nil }
func (b broken) All(context.Context) iter.Seq2[Entry, error] { return func(func(Entry, error) bool) {} }

func TestFilterFailsClosed(t *testing.T) {
	n := &next{}
	err := (&Filter{Next: n, List: broken{check: errors.New("disk")}}).Deliver(t.Context(), envelope("ann bob"), nil)
	if s := mailspine.Status(err); s == nil || !s.Temporary() || n.got != nil {
		t.Errorf("%v, %v", err, n.got)
	}
	for _, f := range []*Filter{{Next: n}, {List: NewMemory(nil)}} {
		if err := f.Deliver(t.Context(), envelope("ann"), nil); err == nil || !mailspine.Status(err).Temporary() {
			t.Errorf("%v", err)
		}
	}
	// What cannot be added does not change the result.
	n.answer = map[string]error{"gone": mailspine.Errorf(550, "5.1.1", "Unknown")}
	f := &Filter{Next: n, List: broken{add: errors.New("disk")}, Bounces: &BounceRule{}}
	if err := f.Deliver(t.Context(), envelope("gone"), nil); mailspine.Status(err).Code != 550 {
		t.Error(err)
	}
}

func TestFilterLearns(t *testing.T) {
	list := NewMemory(func() time.Time { return t0 })
	n := &next{answer: map[string]error{
		"gone":    mailspine.Errorf(550, "5.1.1", "No such\r\nuser"),
		"nomx":    mailspine.Errorf(556, "5.1.10", "Null MX"),
		"moved":   mailspine.Errorf(551, "5.1.6", "Moved"),
		"off":     mailspine.Errorf(550, "5.2.1", "Disabled"),
		"full":    mailspine.Errorf(552, "5.2.2", "Full"),
		"blocked": mailspine.Errorf(550, "5.7.1", "Blocked"),
		"vague":   &mailspine.Error{Code: 550, Message: "No"},
		"later":   mailspine.Errorf(450, "4.1.1", "Later"),
		"lying":   mailspine.Errorf(450, "5.1.1", "Which is it?"),
		"own":     mailspine.Errorf(550, "5.1.0", "Suppressed elsewhere").WithCause(ErrSuppressed),
		"bug":     errors.New("550 5.1.1 in a text"),
		"held":    &mailspine.NotNow{Until: t0, Reason: "5.1.1"},
	}}
	f := &Filter{Next: n, List: list, Bounces: &BounceRule{For: time.Hour}, Now: func() time.Time { return t0 }}
	f.Deliver(t.Context(), envelope("ann gone nomx moved off full blocked vague later lying own bug held"), nil)
	var got []string
	for e, err := range list.All(t.Context()) {
		if err != nil || e.Reason != HardBounce || !e.Expires.Equal(t0.Add(time.Hour)) || e.Tenant != "t" || e.Stream != "s" || strings.ContainsAny(e.Evidence, "\r\n") {
			t.Errorf("%+v, %v", e, err)
		}
		got = append(got, e.Address.Local)
	}
	slices.Sort(got)
	if want := []string{"gone", "moved", "nomx", "off"}; !slices.Equal(got, want) {
		t.Errorf("added %v, not %v", got, want)
	}
	// The next message to them is not sent.
	n.got = nil
	if err := f.Deliver(t.Context(), envelope("gone"), nil); !errors.Is(mailspine.ErrorAt(err, 0), ErrSuppressed) || n.got != nil {
		t.Errorf("%v, %v", err, n.got)
	}
	// A rule of one's own, and none.
	list2 := NewMemory(nil)
	f = &Filter{Next: n, List: list2, Bounces: &BounceRule{Hard: func(s *mailspine.Error) bool { return s.Message == "Blocked" }}}
	f.Deliver(t.Context(), envelope("gone blocked"), nil)
	if e, _ := list2.Check(t.Context(), key("t", "s", "blocked@example.com")); e == nil || !e.Expires.IsZero() {
		t.Errorf("%+v", e)
	}
	if e, _ := list2.Check(t.Context(), key("t", "s", "gone@example.com")); e != nil {
		t.Errorf("%+v", e)
	}
}

func BenchmarkCheck(b *testing.B) {
	list := NewMemory(nil)
	for i := range 100_000 {
		list.Add(b.Context(), Entry{Key: Key{"t", "s", mailspine.Address{Local: "a" + string(rune('a'+i%26)) + time.Duration(i).String(), Domain: "example.org"}}, Reason: Manual})
	}
	k := key("t", "s", "nobody@example.org")
	for b.Loop() {
		if e, err := list.Check(b.Context(), k); e != nil || err != nil {
			b.Fatal(e, err)
		}
	}
}
