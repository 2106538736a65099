package fbl

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/fbl/suppress"
	"github.com/mailspine/mailspine/internal/report"
)

// A reader can complain of a message once. To send the same report again, or a report about another
// message that he got before, makes no sender look worse.
func TestReplayedComplaint(t *testing.T) {
	b := newBench(t)
	var seen []bool
	b.Trace = &Trace{Complaint: func(_ context.Context, i ComplaintInfo) { seen = append(seen, i.Repeated) }}
	first, second := b.sent(true, "bob@example.com")[0], b.sent(true, "bob@example.com")[0]
	for _, got := range []taken{first, first, second, first} {
		text, _ := complaint(got).Bytes()
		if err := b.report(string(text), passes); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.outcomes) != 1 || len(b.review.got) != 0 {
		t.Errorf("%d outcomes of one reader, %d reviewed", len(b.outcomes), len(b.review.got))
	}
	if len(seen) != 4 || seen[0] || !seen[1] || !seen[2] || !seen[3] {
		t.Errorf("Repeated is %v", seen)
	}
	// A wider entry is not his complaint.
	b = newBench(t)
	if err := b.list.Add(t.Context(), suppress.Entry{Key: suppress.Key{Tenant: "shop", Address: addr("bob@example.com")}, Reason: suppress.Manual}); err != nil {
		t.Fatal(err)
	}
	text, _ := complaint(b.sent(true, "bob@example.com")[0]).Bytes()
	if err := b.report(string(text), passes); err != nil || len(b.outcomes) != 1 {
		t.Errorf("%v, %d outcomes", err, len(b.outcomes))
	}
}

// So it is when the same report comes in many times at once.
func TestComplaintConcurrent(t *testing.T) {
	b := newBench(t)
	b.Suppress = &stepping{List: b.list}
	text, _ := complaint(b.sent(true, "bob@example.com")[0]).Bytes()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			env := &mailspine.Envelope{ID: mailspine.NewMsgID(), Verdict: passes, Recipients: []mailspine.Recipient{{Address: addr("fbl@example.org")}}}
			if err := b.Deliver(t.Context(), env, mailspine.BytesContent(text)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(b.outcomes) != 1 {
		t.Errorf("%d outcomes", len(b.outcomes))
	}
	if b.Suppress.(*stepping).overlap.Load() {
		t.Error("two look for an entry at the same time, and then both add it")
	}
}

// A stepping list notes when two are between Check and the end of Add.
type stepping struct {
	suppress.List
	inside  atomic.Int32
	overlap atomic.Bool
}

func (s *stepping) Check(ctx context.Context, k suppress.Key) (*suppress.Entry, error) {
	if s.inside.Add(1) > 1 {
		s.overlap.Store(true)
	}
	for range 100 {
		runtime.Gosched()
	}
	return s.List.Check(ctx, k)
}

func (s *stepping) Add(ctx context.Context, e suppress.Entry) error {
	defer s.inside.Add(-1)
	return s.List.Add(ctx, e)
}

// When who has to write something down refuses it for good, the report is not given up: its sender
// cannot mend it, and it would be lost.
func TestIntakeKeepsReports(t *testing.T) {
	refuses := func(*mailspine.Envelope) error { return mailspine.Errorf(552, "5.2.3", "Too large") }
	for name, change := range map[string]func(b *bench){
		"list": func(b *bench) { b.Suppress = refusing{b.list} },
		"review": func(b *bench) {
			b.Addresses, b.review.err = append(b.Addresses, addr("x@example.org")), refuses
			b.Tokens.Keys = [][]byte{secret(7)}
		},
	} {
		b := newBench(t)
		text, _ := complaint(b.sent(true, "bob@example.com")[0]).Bytes()
		change(b)
		if err := b.report(string(text), passes); err == nil || !mailspine.Status(err).Temporary() {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What cannot be passed on goes to a person.
	b := newBench(t)
	b.forward.err = refuses
	env := &mailspine.Envelope{ID: "x", Recipients: []mailspine.Recipient{{Address: b.sent(true, "bob@example.com")[0].env.From}}}
	if err := b.Deliver(t.Context(), env, mailspine.StringContent("Subject: Away\r\n\r\n")); err != nil {
		t.Error(err)
	}
	if len(b.review.got) != 1 || !strings.Contains(b.review.got[0].msg, "passed on") {
		t.Errorf("reviewed: %v", b.review.got)
	}
}

// A refusing list is one that says no for good.
type refusing struct{ suppress.List }

func (refusing) Add(context.Context, suppress.Entry) error {
	return mailspine.Errorf(550, "5.7.1", "No")
}

// A bounce that waited in the queue until its path was too old, or the key was changed, is kept too.
func TestLateBounce(t *testing.T) {
	for name, change := range map[string]struct {
		do  func(b *bench)
		why string
	}{
		"expired":  {func(b *bench) { b.now = b.now.Add(1000 * 24 * time.Hour) }, "too old"},
		"forged":   {func(b *bench) { b.Tokens.Keys = [][]byte{secret(7)} }, "forged"},
		"no scope": {func(b *bench) { b.Tokens.Scopes = &MemoryScopes{} }, "scope"},
	} {
		b := newBench(t)
		path := b.sent(true, "bob@example.com")[0].env.From
		change.do(b)
		env := &mailspine.Envelope{ID: "x", Recipients: []mailspine.Recipient{{Address: path}}}
		if err := b.CheckRecipient(t.Context(), env, env.Recipients[0]); mailspine.Status(err) == nil || mailspine.Status(err).Code != 550 {
			t.Errorf("%s: at the door: %v", name, err)
		}
		if err := b.Deliver(t.Context(), env, mailspine.StringContent(notification("bob@example.com", "5.1.1", report.Failed))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(b.review.got) != 1 || !strings.Contains(b.review.got[0].msg, change.why) || b.suppressed("bob@example.com") || len(b.forward.got) != 0 {
			t.Errorf("%s: reviewed %v, forwarded %d", name, b.review.got, len(b.forward.got))
		}
	}
}

// Who knows a return path can write to it. What was found about the letter goes with it, so that it does not
// come to the sender in better standing than if it had been sent to him.
func TestForwardKeepsVerdict(t *testing.T) {
	b := newBench(t)
	v := &mailspine.Verdict{DMARC: "fail", Disposition: "quarantine"}
	env := &mailspine.Envelope{ID: "x", From: addr("eve@example.net"), Verdict: v, Recipients: []mailspine.Recipient{{Address: b.sent(true, "bob@example.com")[0].env.From}}}
	if err := b.Deliver(t.Context(), env, mailspine.StringContent("From: boss@example.org\r\n\r\nPay this.\r\n")); err != nil {
		t.Fatal(err)
	}
	if len(b.forward.got) != 1 || b.forward.got[0].env.Verdict == nil || b.forward.got[0].env.Verdict.Disposition != "quarantine" {
		t.Errorf("%+v", b.forward.got)
	}
}

// A report that our own policy would put among the junk is not believed, and what goes to review answers to nobody.
func TestQuarantinedComplaint(t *testing.T) {
	b := newBench(t)
	text, _ := complaint(b.sent(true, "bob@example.com")[0]).Bytes()
	for _, d := range []string{"quarantine", "reject"} {
		if err := b.report(string(text), &mailspine.Verdict{SPF: "pass", DMARC: "fail", Disposition: d}); err != nil {
			t.Fatal(err)
		}
	}
	if b.suppressed("bob@example.com") || len(b.review.got) != 2 {
		t.Fatalf("reviewed %d", len(b.review.got))
	}
	if n := b.review.got[0].env.Recipients[0].Notify; n != mailspine.NotifyNever {
		t.Errorf("Notify is %v: a forged reporter may get a notification", n)
	}
}

// Two scopes with the same name in tokens: both senders can send, and each token is its own.
func TestScopeCollision(t *testing.T) {
	now := t0
	tokens := newTokens(&now)
	env := letter("bob@example.com")
	s := Scope{Tenant: env.Tenant, Stream: env.Stream, Sender: env.From}
	other := Scope{Tenant: "other"}
	for n := range 3 {
		if err := tokens.Scopes.Remember(t.Context(), s.id(secret(1), n), other); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		token, err := tokens.Token(t.Context(), env, addr("bob@example.com"))
		if err != nil {
			t.Fatal(err)
		}
		if o, err := tokens.OpenToken(t.Context(), token); err != nil || o.Scope != s {
			t.Errorf("%+v, %v", o, err)
		}
	}
	if err := tokens.Scopes.Remember(t.Context(), s.id(secret(1), 3), other); !errors.Is(err, ErrScopeTaken) {
		t.Errorf("the fourth name is not used: %v", err)
	}
}

// Whatever is sealed opens to what it was sealed for, and to nothing else.
func TestTokenModel(t *testing.T) {
	local := rapid.StringMatching(`[A-Za-z0-9.+_=-]{1,20}`).Filter(func(s string) bool {
		_, err := mailspine.ParseAddress(s + "@x")
		return err == nil
	})
	domain := rapid.SampledFrom([]string{"example.com", "EXAMPLE.com", "bücher.example", "xn--bcher-kva.example", "example.net"})
	rapid.Check(t, func(t *rapid.T) {
		now := t0.Add(time.Duration(rapid.IntRange(0, 1<<30).Draw(t, "seconds")) * time.Second)
		tokens := newTokens(&now)
		draw := func(what string) mailspine.Address {
			return mailspine.Address{Local: local.Draw(t, what), Domain: domain.Draw(t, what+" domain")}
		}
		env := &mailspine.Envelope{
			ID: mailspine.NewMsgID(), From: draw("from"),
			Tenant: rapid.StringMatching(`[a-zA-Z]{0,3}`).Draw(t, "tenant"), Stream: rapid.StringMatching(`[a-zA-Z]{0,3}`).Draw(t, "stream"),
		}
		a, b := draw("a"), draw("b")
		path, err := tokens.Seal(env, mailspine.Recipient{Address: a})
		if err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "upper") {
			path.Local = strings.ToUpper(path.Local)
		}
		age := rapid.IntRange(0, 80).Draw(t, "days")
		now = now.Add(time.Duration(age) * 24 * time.Hour)
		o, ok, err := tokens.OpenPath(context.Background(), path)
		if !ok || (err == nil) != (age <= 60) || err != nil && !errors.Is(err, ErrExpired) {
			t.Fatalf("after %d days: %v, %v", age, ok, err)
		}
		if err != nil {
			return
		}
		if o.Message != env.ID || o.Scope != (Scope{env.Tenant, env.Stream, env.From}) || !o.For(a) || o.For(b) != (normal(a) == normal(b)) {
			t.Fatalf("%+v, for %s and %s", o, a, b)
		}
	})
}

// Reports made to cost time or memory, or to smuggle an address in, cost little and change nothing.
func TestReportBombs(t *testing.T) {
	const head = "Content-Type: multipart/report; report-type=feedback-report; boundary=x\r\n\r\n--x\r\n\r\n"
	deep := strings.Builder{}
	for range 5000 {
		deep.WriteString("--x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n")
	}
	for name, text := range map[string]string{
		"10,000 parts":      head + strings.Repeat("--x\r\nContent-Type: message/feedback-report\r\n\r\nVersion: 1\r\n", 10_000),
		"nesting":           head + deep.String(),
		"10,000 recipients": head + "--x\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\n" + strings.Repeat("Original-Rcpt-To: bob@example.com\r\n", 10_000) + "\r\n--x--\r\n",
		"10,000 in To":      head + "--x\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\n\r\n--x\r\nContent-Type: message/rfc822\r\n\r\n" + Header + ": x\r\nTo: " + strings.Repeat("bob@example.com, ", 10_000) + "bob@example.com\r\n\r\n--x--\r\n",
		"long lines":        head + "--x\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: " + strings.Repeat("a", 2<<20) + "\r\n--x--\r\n",
		"folds":             head + "--x\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\nUser-Agent: x\r\n" + strings.Repeat(" y\r\n", 500_000) + "\r\n--x--\r\n",
		"tokens":            head + "--x\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\n\r\n--x\r\nContent-Type: message/rfc822\r\n\r\n" + strings.Repeat(Header+": "+strings.Repeat("a", tokenText)+"\r\n", 3000) + "\r\n--x--\r\n",
	} {
		b := newBench(t)
		if err := b.report(text, passes); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(b.review.got) != 1 || len(b.outcomes) != 0 || b.suppressed("bob@example.com") {
			t.Errorf("%s: reviewed %d, outcomes %d", name, len(b.review.got), len(b.outcomes))
		}
	}
	// An address in the text of a notification, in a field that is none, or with a line of its own.
	for _, text := range []string{
		strings.Replace(notification("bob@example.com", "4.0.0", report.Delayed), "It failed.", "Final-Recipient: rfc822; bob@example.com\r\nAction: failed\r\nStatus: 5.1.1", 1),
		strings.Replace(notification("x@example.com", "5.1.1", report.Failed), "x@example.com", "x@example.com bob@example.com", 1),
		strings.Replace(notification("x@example.com", "5.1.1", report.Failed), "rfc822; x@example.com", "bob@example.com; x@example.com", 1),
	} {
		b := newBench(t)
		env := &mailspine.Envelope{ID: "x", Recipients: []mailspine.Recipient{{Address: b.sent(true, "bob@example.com")[0].env.From}}}
		if err := b.Deliver(t.Context(), env, mailspine.StringContent(text)); err != nil {
			t.Error(err)
		}
		if b.suppressed("bob@example.com") {
			t.Errorf("suppressed by\n%s", text)
		}
	}
}

// The code of a failure is in Status, or in the reply where Status says nothing.
func TestBounceCode(t *testing.T) {
	for _, tt := range []struct {
		status, kind, text, want string
		cause                    mailspine.Cause // of a hard bounce; "": it is none
	}{
		{"5.1.1", "smtp", "550 5.7.1 No", "5.1.1", mailspine.CauseRecipientUnknown},
		{"5.0.0", "smtp", "550 5.1.1 No such user", "5.1.1", mailspine.CauseRecipientUnknown},
		{"", "smtp", "550-5.2.1 Disabled", "5.2.1", mailspine.CauseInactive},
		{"5.0.0", "smtp", "556 5.1.10 Null MX", "5.1.10", mailspine.CauseDomainBad},
		{"5.1.2", "", "", "5.1.2", mailspine.CauseDomainBad},
		{"5.1.6", "smtp", "551 Moved", "5.1.6", mailspine.CauseMoved},
		{"5.0.0", "x-unix", "550 5.1.1 No such user", "5.0.0", ""},
		{"5.0.0", "smtp", "450 5.1.1 Later", "5.0.0", ""},
		{"5.0.0", "smtp", "550 4.1.1 Later", "5.0.0", ""},
		{"4.0.0", "smtp", "550 5.1.1 No such user", "4.0.0", ""},
		{"5.0.0", "smtp", "550 User said 5.1.1", "5.0.0", ""},
		{"5.0.0", "smtp", "550 ", "5.0.0", ""},
		{"5.0.0", "smtp", "550", "5.0.0", ""},
		{"5.7.1", "smtp", "550 5.1.1 No", "5.7.1", ""},
	} {
		r := &report.Recipient{Action: report.Failed, Final: report.Typed{Type: "rfc822", Value: "bob@example.com"}, Diagnostic: report.Typed{Type: tt.kind, Value: tt.text}}
		if tt.status != "" {
			r.Status, _ = mailspine.ParseEnhancedCode(tt.status)
		}
		c := code(r)
		if c.String() != tt.want {
			t.Errorf("%+v: %s", tt, c)
		}
		hard := suppress.Hard(&mailspine.Error{Code: 550, Enhanced: c})
		if hard != (tt.cause != "") || hard && cause(c) != tt.cause {
			t.Errorf("%+v: hard is %t, cause %s", tt, hard, cause(c))
		}
	}
}

// Bounces of real systems to the path of their own recipient: who is suppressed is one whose mailbox or domain an
// established parser finds at fault too, never one whose sender is.
func TestBounceVectors(t *testing.T) {
	dir := os.Getenv("MAILSPINE_VECTORS")
	raw, err := os.ReadFile(filepath.Join(dir, "bounces", "expected.json"))
	if dir == "" || err != nil {
		if os.Getenv("MAILSPINE_STRICT") == "1" {
			t.Fatal("MAILSPINE_VECTORS has no bounces/expected.json")
		}
		t.Skip("MAILSPINE_VECTORS is not set: see docs/conformance.md")
	}
	var expected []struct {
		File, Recipient, Reason string
		Hardbounce              bool
	}
	if err := json.Unmarshal(raw, &expected); err != nil {
		t.Fatal(err)
	}
	hard, found := 0, 0
	for _, want := range expected {
		text, err := os.ReadFile(filepath.Join(dir, "bounces", "eml", want.File))
		if err != nil {
			t.Fatal(err)
		}
		rcpt, err := mailspine.ParseAddress(want.Recipient)
		if err != nil {
			continue // redacted
		}
		b := newBench(t)
		env := &mailspine.Envelope{ID: "x", Recipients: []mailspine.Recipient{{Address: b.sent(true, rcpt.String())[0].env.From}}}
		if err := b.Deliver(t.Context(), env, mailspine.BytesContent(text)); err != nil {
			t.Errorf("%s: %v", want.File, err)
		}
		if len(b.forward.got) != 1 || b.forward.got[0].msg != string(text) {
			t.Errorf("%s: not passed on", want.File)
		}
		if want.Hardbounce {
			hard++
		}
		if !b.suppressed(rcpt.String()) {
			continue
		}
		if want.Hardbounce {
			found++
		} else if !slices.Contains([]string{"suspend", "filtered", "mailererror", "hasmoved"}, want.Reason) {
			t.Errorf("%s: the recipient is suppressed, and the reason is %s", want.File, want.Reason)
		}
	}
	// Most of the others have no delivery status, or no code that says anything.
	t.Logf("%d of %d hard bounces", found, hard)
	if found < 16 {
		t.Errorf("%d hard bounces, fewer than when this was written", found)
	}
}

// Reports as systems write them that nobody told how.
func TestTolerance(t *testing.T) {
	for name, change := range map[string]func(s string) string{
		"empty lines first": func(s string) string { return strings.Replace(s, Header+": ", "\r\n"+Header+": ", 1) },
		"mailbox file": func(s string) string {
			return strings.Replace(s, Header+": ", "From news@example.org Sun Mar  1 12:00:00 2026\r\n"+Header+": ", 1)
		},
		"upper case": func(s string) string { return strings.Replace(s, Header, strings.ToUpper(Header), 1) },
		"folded":     func(s string) string { return strings.Replace(s, Header+": ", Header+":\r\n\t", 1) },
		"typed":      func(s string) string { return strings.Replace(s, "<Bob@example.com>", "rfc822; bob@example.com", 1) },
		"with a name": func(s string) string {
			return strings.Replace(s, "<Bob@example.com>", "\"B, ob\" <bob@example.com>", 1)
		},
		"several in one": func(s string) string {
			return strings.Replace(s, "<Bob@example.com>", "<x@example.com>, <bob@example.com>", 1)
		},
		"removal":        func(s string) string { return strings.Replace(s, "Original-Rcpt-To", "Removal-Recipient", 1) },
		"bare LF":        func(s string) string { return strings.ReplaceAll(s, "\r\n", "\n") },
		"no version":     func(s string) string { return strings.Replace(s, "Version: 1\r\n", "", 1) },
		"no report-type": func(s string) string { return strings.Replace(s, " report-type=feedback-report;", "", 1) },
		"base64 of the message": func(s string) string {
			head, rest, _ := strings.Cut(s, "Content-Type: message/rfc822\r\n")
			desc, rest, _ := strings.Cut(rest, "\r\n\r\n")
			msg, end, _ := strings.Cut(rest, "\r\n--report_")
			_ = desc
			return head + "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.StdEncoding.EncodeToString([]byte(msg)) + "\r\n--report_" + end
		},
	} {
		b := newBench(t)
		c := complaint(b.sent(false, "Bob@example.com")[0])
		text, _ := c.Bytes()
		changed := change(string(text))
		if changed == string(text) {
			t.Fatalf("%s: nothing was changed in\n%s", name, text)
		}
		if err := b.report(changed, passes); err != nil {
			t.Fatal(err)
		}
		if !b.suppressed("bob@example.com") {
			t.Errorf("%s: not taken; review %q in\n%s", name, b.review.got[0].msg[:80], changed)
		}
	}
}

// A report names nobody else in place of a recipient that it cannot write.
func TestComplaintAddresses(t *testing.T) {
	c := &Complaint{From: "a@example.com", To: addr("fbl@example.org"), MessageID: "x@y", Type: TypeAbuse, Recipients: []mailspine.Address{
		addr("dörte@example.com"), addr("bob@bücher.example"), {}, addr("\"a b\"@example.com"),
	}}
	text, _ := c.Bytes()
	got, err := Parse(t.Context(), mailspine.BytesContent(text))
	if err != nil || len(got.Recipients) != 2 || !got.Recipients[0].Equal(addr("bob@bücher.example")) || got.Recipients[1] != addr("\"a b\"@example.com") {
		t.Errorf("%+v, %v", got, err)
	}
}

// Whatever comes to the return path that was made for bob, nobody but bob is suppressed, and it is passed on.
func FuzzBounce(f *testing.F) {
	f.Add(notification("bob@example.com", "5.1.1", report.Failed))
	f.Add(notification("x@example.com", "5.0.0", report.Failed))
	f.Add("Content-Type: multipart/report; boundary=x\n\n--x\nContent-Type: message/delivery-status\n\nOriginal-Recipient: rfc822; <bob@example.com>\nAction: failed\nDiagnostic-Code: smtp; 550-5.1.1 x\n--x--\n")
	f.Fuzz(func(t *testing.T, text string) {
		b := newBench(t)
		env := &mailspine.Envelope{ID: "x", Recipients: []mailspine.Recipient{{Address: b.sent(true, "bob@example.com")[0].env.From}}}
		if err := b.Deliver(t.Context(), env, mailspine.StringContent(text)); err != nil {
			t.Fatal(err)
		}
		for e := range b.list.All(t.Context()) {
			if e.Address != addr("bob@example.com") || e.Tenant != "shop" || e.Stream != "news" {
				t.Errorf("%+v", e)
			}
		}
		if len(b.forward.got) != 1 || b.forward.got[0].msg != text || len(b.review.got) != 0 {
			t.Errorf("forwarded %d, reviewed %d", len(b.forward.got), len(b.review.got))
		}
	})
}

// Whatever a report says, with a token for bob in it: nobody but bob is suppressed, and what is not believed is kept.
func FuzzComplaint(f *testing.F) {
	f.Add("abuse", "<bob@example.com>", "bob@example.com", "")
	f.Add("fraud", "rfc822; x@example.com", "Ann <ann@example.com>", "X: y\r\n\r\n")
	f.Add("", "", "", "\r\nFrom x\r\n")
	f.Fuzz(func(t *testing.T, kind, named, to, head string) {
		b := newBench(t)
		token := b.sent(false, "bob@example.com")[0].msg
		err := b.report("Content-Type: multipart/report; boundary=x\r\n\r\n--x\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: "+kind+
			"\r\nOriginal-Rcpt-To: "+named+"\r\n\r\n--x\r\nContent-Type: message/rfc822\r\n\r\n"+head+"To: "+to+"\r\n"+token+"\r\n--x--\r\n", passes)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for e := range b.list.All(t.Context()) {
			if n++; e.Address != addr("bob@example.com") {
				t.Errorf("%+v", e)
			}
		}
		if n+len(b.review.got) != 1 || n != len(b.outcomes) {
			t.Errorf("suppressed %d, reviewed %d, outcomes %d", n, len(b.review.got), len(b.outcomes))
		}
	})
}
