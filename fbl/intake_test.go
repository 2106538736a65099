package fbl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/fbl/suppress"
	"github.com/mailspine/mailspine/internal/report"
)

// A bench is an Intake and all around it.
type bench struct {
	*Intake
	t        *testing.T
	now      time.Time
	list     *suppress.Memory
	review   *next
	forward  *next
	outcomes []mailspine.Outcome
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, now: t0, review: &next{}, forward: &next{}}
	b.list = suppress.NewMemory(func() time.Time { return b.now })
	b.Intake = &Intake{
		Tokens: newTokens(&b.now), Addresses: []mailspine.Address{addr("fbl@example.org")}, Suppress: b.list,
		Review: b.review, Forward: b.forward, Now: func() time.Time { return b.now },
		Outcomes: mailspine.OutcomeSinkFunc(func(_ context.Context, o mailspine.Outcome) { b.outcomes = append(b.outcomes, o) }),
	}
	return b
}

// sent returns what bob gets of a message: the envelope and the text.
func (b *bench) sent(path bool, rcpts ...string) []taken {
	b.t.Helper()
	n := &next{}
	s := &Stamp{Next: n, Tokens: b.Tokens, ReturnPath: path}
	if err := s.Deliver(b.t.Context(), letter(rcpts...), mailspine.StringContent("From: news@example.org\r\nTo: undisclosed:;\r\nSubject: Offer\r\n\r\nBuy.\r\n")); err != nil {
		b.t.Fatal(err)
	}
	return n.got
}

// complaint is a good report about a message that bob got.
func complaint(got taken) *Complaint {
	return &Complaint{
		From: "Complaints <staff@provider.example>", To: addr("fbl@example.org"), Date: t0, MessageID: "r1@provider.example",
		Type: TypeAbuse, OriginalMailFrom: got.env.From.String(), Recipients: []mailspine.Address{got.env.Recipients[0].Address},
		Returned: []byte(got.msg), Full: true, ReportingMTA: "mx.provider.example", SourceIP: netip.MustParseAddr("192.0.2.1"), Arrival: t0,
	}
}

func (b *bench) report(text string, v *mailspine.Verdict) error {
	b.t.Helper()
	return b.Deliver(b.t.Context(), &mailspine.Envelope{
		ID: mailspine.NewMsgID(), From: addr("staff@provider.example"), Verdict: v,
		Recipients: []mailspine.Recipient{{Address: addr("FBL@example.org")}},
	}, mailspine.StringContent(text))
}

func (b *bench) suppressed(a string) bool {
	b.t.Helper()
	e, err := b.list.Check(b.t.Context(), suppress.Key{Tenant: "shop", Stream: "news", Address: addr(a)})
	if err != nil {
		b.t.Fatal(err)
	}
	return e != nil
}

var passes = &mailspine.Verdict{DKIM: "pass", SPF: "none"}

func TestComplaint(t *testing.T) {
	for name, change := range map[string]func(c *Complaint){
		"all there": func(*Complaint) {},
		"header only": func(c *Complaint) {
			c.Full, c.Returned = false, []byte(strings.SplitAfter(string(c.Returned), "\r\n\r\n")[0])
		},
		"return path only": func(c *Complaint) { c.Returned = nil },
		"token only":       func(c *Complaint) { c.OriginalMailFrom = "" },
		"fraud":            func(c *Complaint) { c.Type = TypeFraud },
		"opt-out":          func(c *Complaint) { c.Type = "Opt-Out" },
		"rcpt in header": func(c *Complaint) {
			c.Recipients, c.Returned = nil, append([]byte("Delivered-To: bob@example.com\r\n"), c.Returned...)
		},
		"rcpt in To": func(c *Complaint) {
			c.Recipients, c.Returned = nil, append([]byte("To: Ann <ann@example.com>,\r\n \"Bob, B.\" <bob@example.com>\r\n"), c.Returned...)
		},
		"several, one of them": func(c *Complaint) { c.Recipients = append([]mailspine.Address{addr("x@example.com")}, c.Recipients...) },
		"another token too":    func(c *Complaint) { c.Returned = append([]byte(Header+": nonsense\r\n"), c.Returned...) },
	} {
		b := newBench(t)
		var seen []ComplaintInfo
		b.Trace = &Trace{Complaint: func(_ context.Context, i ComplaintInfo) { seen = append(seen, i) }}
		c := complaint(b.sent(true, "Bob@example.com")[0])
		change(c)
		text, _ := c.Bytes()
		for range 2 {
			if err := b.report(string(text), passes); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if !b.suppressed("bob@example.com") || len(b.review.got) > 0 || len(b.forward.got) > 0 {
			t.Errorf("%s: not suppressed; review %v", name, b.review.got)
		}
		if len(b.outcomes) != 1 || b.outcomes[0].Event != mailspine.EventComplained || b.outcomes[0].Tenant != "shop" || b.outcomes[0].From != addr("news@example.org") {
			t.Errorf("%s: outcomes %+v", name, b.outcomes)
		}
		if len(seen) != 2 || seen[0].Scope.Stream != "news" {
			t.Errorf("%s: %+v", name, seen)
		}
		// Nobody else, and no other stream.
		if b.suppressed("ann@example.com") {
			t.Errorf("%s: ann is suppressed", name)
		}
		n := 0
		for e, err := range b.list.All(t.Context()) {
			if err != nil || e.Reason != suppress.Complaint || !strings.Contains(e.Evidence, "abuse") && !strings.Contains(e.Evidence, "fraud") && !strings.Contains(e.Evidence, "opt-out") {
				t.Errorf("%s: %+v, %v", name, e, err)
			}
			n++
		}
		if n != 1 {
			t.Errorf("%s: %d entries", name, n)
		}
	}
}

// Whatever is not right, nobody is suppressed, and the report is kept, octet for octet, with the reason.
func TestForgedComplaints(t *testing.T) {
	other := newBench(t)
	foreign := other.sent(true, "bob@example.com")[0]
	for name, tt := range map[string]struct {
		change func(b *bench, c *Complaint)
		v      *mailspine.Verdict
		why    string
	}{
		"no token": {func(_ *bench, c *Complaint) {
			c.Returned, c.OriginalMailFrom = []byte("From: news@example.org\r\nTo: bob@example.com\r\n\r\n"), "news@example.org"
		}, passes, "no token"},
		"nothing returned": {func(_ *bench, c *Complaint) { c.Returned, c.OriginalMailFrom = nil, "" }, passes, "no token"},
		"null return path": {func(_ *bench, c *Complaint) { c.Returned, c.OriginalMailFrom = nil, "<>" }, passes, "no token"},
		"token of another": {func(_ *bench, c *Complaint) { c.Recipients = []mailspine.Address{addr("victim@example.com")} }, passes, "none of the recipients"},
		"victim in To": {func(_ *bench, c *Complaint) {
			c.Recipients, c.Returned = nil, append([]byte("To: victim@example.com\r\n"), c.Returned...)
		}, passes, "none of the recipients"},
		"token of other key": {func(_ *bench, c *Complaint) {
			c.Returned, c.OriginalMailFrom = []byte(foreign.msg), foreign.env.From.String()
		}, passes, "forged"},
		"damaged token": {func(_ *bench, c *Complaint) {
			c.OriginalMailFrom, c.Returned = "", []byte(strings.Replace(string(c.Returned), Header+": ", Header+": a", 1))
		}, passes, "forged"},
		"too old":         {func(b *bench, _ *Complaint) { b.now = b.now.Add(61 * 24 * time.Hour) }, passes, "too old"},
		"not spam":        {func(_ *bench, c *Complaint) { c.Type = TypeNotSpam }, passes, "not-spam"},
		"auth failure":    {func(_ *bench, c *Complaint) { c.Type = TypeAuthFailure }, passes, "auth-failure"},
		"odd type":        {func(_ *bench, c *Complaint) { c.Type = "a\r\nX: y\x00" }, passes, "Feedback-Type"},
		"no verdict":      {func(*bench, *Complaint) {}, nil, "neither DKIM nor SPF"},
		"unauthenticated": {func(*bench, *Complaint) {}, &mailspine.Verdict{DKIM: "fail", SPF: "softfail", DMARC: "pass"}, "neither DKIM nor SPF"},
		"lost scope":      {func(b *bench, _ *Complaint) { b.Tokens.Scopes = &MemoryScopes{} }, passes, "scope"},
		"10 tokens before": {func(_ *bench, c *Complaint) {
			c.OriginalMailFrom, c.Returned = "", append([]byte(strings.Repeat(Header+": x\r\n", 10)), c.Returned...)
		}, passes, "forged"},
		"100 names before": {func(_ *bench, c *Complaint) {
			c.Recipients, c.Returned = nil, append([]byte("To: "+strings.Repeat("x@example.com, ", 100)+"bob@example.com\r\n"), c.Returned...)
		}, passes, "none of the recipients"},
	} {
		b := newBench(t)
		other.Tokens.Keys = [][]byte{secret(9)}
		if name == "token of other key" {
			foreign = other.sent(true, "bob@example.com")[0]
		}
		var reviewed []string
		b.Trace = &Trace{Reviewed: func(_ context.Context, i ReviewInfo) { reviewed = append(reviewed, i.Reason) }}
		c := complaint(b.sent(true, "bob@example.com")[0])
		tt.change(b, c)
		made, _ := c.Bytes()
		text := ReviewHeader + ": ok\r\n" + string(made)
		if err := b.report(text, tt.v); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for e := range b.list.All(t.Context()) {
			t.Errorf("%s: %+v", name, e)
		}
		if len(b.outcomes) > 0 || len(b.review.got) != 1 || len(reviewed) != 1 {
			t.Fatalf("%s: outcomes %v, review %d", name, b.outcomes, len(b.review.got))
		}
		got := b.review.got[0]
		head, kept := strings.CutSuffix(got.msg, string(made))
		if !kept || !strings.HasPrefix(head, ReviewHeader+": ") || strings.Count(head, "\r\n") != 1 || !strings.Contains(head, tt.why) || !strings.Contains(reviewed[0], tt.why) {
			t.Errorf("%s: kept %t, with %q", name, kept, head)
		}
		if got.env.Recipients[0].Address != addr("FBL@example.org") || got.env.From != addr("staff@provider.example") {
			t.Errorf("%s: %+v", name, got.env)
		}
	}
}

func TestNoReports(t *testing.T) {
	for _, text := range []string{
		"", "Subject: Stop it\r\n\r\nI do not want your mail.\r\n", "\x00\xff", "Content-Type: multipart/report; report-type=feedback-report; boundary=x\r\n\r\n--x\r\n",
		"Content-Type: multipart/report; report-type=feedback-report; boundary=x\r\n\r\n--x\r\n\r\n--x\r\nContent-Type: message/feedback-report\r\n\r\nVersion: 1\r\n--x--\r\n",
		"X: " + strings.Repeat("y", mailspine.MaxHeader) + "\r\n\r\n",
	} {
		b := newBench(t)
		b.ReviewTo = addr("people@example.org")
		if err := b.report(text, passes); err != nil {
			t.Fatal(err)
		}
		if len(b.review.got) != 1 || !strings.HasSuffix(b.review.got[0].msg, text) || b.review.got[0].env.Recipients[0].Address != addr("people@example.org") {
			t.Errorf("%.40q: %d", text, len(b.review.got))
		}
	}
}

// notification is a bounce of a message to a recipient.
func notification(rcpt, status string, action report.Action) string {
	code, err := mailspine.ParseEnhancedCode(status)
	if err != nil {
		panic(err)
	}
	m := &report.Message{From: "postmaster@example.com", To: addr("x@example.org"), Subject: "Failure", Date: t0, MessageID: "d1@example.com", Text: "It failed.\n",
		Delivery: report.Delivery{ReportingMTA: report.Typed{Type: "dns", Value: "mx.example.com"}, Recipients: []report.Recipient{{
			Final: report.ForAddress(addr(rcpt)), Action: action, Status: code, Diagnostic: report.Typed{Type: "smtp", Value: "550 No"},
		}}}}
	b, _ := m.Bytes()
	return string(b)
}

func TestBounce(t *testing.T) {
	for name, tt := range map[string]struct {
		text       string
		suppressed bool
	}{
		"hard":            {notification("Bob@Example.com", "5.1.1", report.Failed), true},
		"disabled":        {notification("bob@example.com", "5.2.1", report.Failed), true},
		"of another":      {notification("victim@example.com", "5.1.1", report.Failed), false},
		"full":            {notification("bob@example.com", "5.2.2", report.Failed), false},
		"blocked":         {notification("bob@example.com", "5.7.1", report.Failed), false},
		"delayed":         {notification("bob@example.com", "5.1.1", report.Delayed), false},
		"temporary":       {notification("bob@example.com", "4.1.1", report.Failed), false},
		"delivered":       {notification("bob@example.com", "2.0.0", report.Delivered), false},
		"automatic reply": {"Subject: Away\r\nAuto-Submitted: auto-replied\r\n\r\nbob@example.com 5.1.1\r\n", false},
		"no mail at all":  {"\x00", false},
	} {
		for _, forward := range []bool{true, false} {
			b := newBench(t)
			b.BounceFor = time.Hour
			if !forward {
				b.Forward = nil
			}
			path := b.sent(true, "bob@example.com")[0].env.From
			env := &mailspine.Envelope{ID: mailspine.NewMsgID(), Recipients: []mailspine.Recipient{{Address: path}}}
			if err := b.CheckRecipient(t.Context(), env, env.Recipients[0]); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := b.Deliver(t.Context(), env, mailspine.StringContent(tt.text)); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			if b.suppressed("bob@example.com") != tt.suppressed || b.suppressed("victim@example.com") {
				t.Errorf("%s: suppressed: %t", name, !tt.suppressed)
			}
			if want := map[bool]int{true: 1}[tt.suppressed]; len(b.outcomes) != want {
				t.Errorf("%s: outcomes %+v", name, b.outcomes)
			}
			b.now = b.now.Add(time.Hour)
			if b.suppressed("bob@example.com") {
				t.Errorf("%s: suppressed for ever", name)
			}
			switch {
			case forward:
				if len(b.forward.got) != 2 || len(b.review.got) != 0 {
					t.Fatalf("%s: forwarded %d", name, len(b.forward.got))
				}
				got := b.forward.got[0]
				if got.msg != tt.text || !got.env.From.IsZero() || got.env.Recipients[0].Address != addr("news@example.org") || got.env.Recipients[0].Notify != mailspine.NotifyNever ||
					got.env.Tenant != "shop" || got.env.ID == env.ID || got.env.ID != b.forward.got[1].env.ID {
					t.Errorf("%s: %+v", name, got.env)
				}
			case tt.suppressed:
				if len(b.review.got) != 0 {
					t.Errorf("%s: reviewed", name)
				}
			default:
				if len(b.review.got) != 2 {
					t.Errorf("%s: reviewed %d times", name, len(b.review.got))
				}
			}
		}
	}
}

func TestIntakeRecipients(t *testing.T) {
	b := newBench(t)
	path := b.sent(true, "bob@example.com")[0].env.From
	forged := path
	forged.Local = forged.Local[:10] + map[bool]string{true: "b", false: "a"}[forged.Local[10] == 'a'] + forged.Local[11:]
	env := &mailspine.Envelope{ID: "x"}
	for _, tt := range []struct {
		a    mailspine.Address
		want int
	}{{addr("fbl@example.org"), 0}, {path, 0}, {forged, 550}, {addr("bob@bounces.example.org"), 550}, {addr("ceo@example.org"), 550}} {
		err := b.CheckRecipient(t.Context(), env, mailspine.Recipient{Address: tt.a})
		if (err == nil) != (tt.want == 0) || err != nil && mailspine.Status(err).Code != tt.want {
			t.Errorf("%s: %v", tt.a, err)
		}
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: tt.a})
	}
	err := b.Deliver(t.Context(), env, mailspine.StringContent(notification("bob@example.com", "5.1.1", report.Failed)))
	for i := range env.Recipients {
		if e := mailspine.ErrorAt(err, i); (e != nil) != (i >= 3) {
			t.Errorf("recipient %d: %v", i, e)
		}
	}
	if len(b.review.got) != 2 || len(b.forward.got) != 1 || !b.suppressed("bob@example.com") {
		t.Error("a report to several is not dealt with for each")
	}
	b.now = b.now.Add(1000 * time.Hour * 24)
	if err := b.CheckRecipient(t.Context(), env, mailspine.Recipient{Address: path}); mailspine.Status(err).Code != 550 {
		t.Errorf("an expired path: %v", err)
	}
}

// failing is a List and a Scopes that fail.
type failing struct{}

var errDisk = errors.New("disk")

func (failing) Check(context.Context, suppress.Key) (*suppress.Entry, error) { return nil, errDisk }
func (failing) Add(context.Context, suppress.Entry) error                    { return errDisk }
func (failing) Remove(context.Context, suppress.Key) error                   { return errDisk }
func (failing) All(context.Context) iter.Seq2[suppress.Entry, error]         { return nil }
func (failing) Remember(context.Context, ScopeID, Scope) error               { return errDisk }
func (failing) Find(context.Context, ScopeID) (Scope, error)                 { return Scope{}, errDisk }

// What cannot be written down is not said to be done: the queue tries again.
func TestIntakeFails(t *testing.T) {
	for name, change := range map[string]func(b *bench){
		"list":   func(b *bench) { b.Suppress = failing{} },
		"scopes": func(b *bench) { b.Tokens.Scopes = failing{} },
		"review": func(b *bench) {
			b.Tokens.Scopes = &MemoryScopes{}
			b.review.err = func(*mailspine.Envelope) error { return errDisk }
		},
		"no review":  func(b *bench) { b.Review = nil },
		"no list":    func(b *bench) { b.Suppress = nil },
		"no tokens":  func(b *bench) { b.Tokens = nil },
		"bad tokens": func(b *bench) { b.Tokens.Keys = nil },
	} {
		b := newBench(t)
		got := b.sent(true, "bob@example.com")[0]
		text, _ := complaint(got).Bytes()
		change(b)
		if err := b.report(string(text), passes); err == nil || !mailspine.Status(err).Temporary() {
			t.Errorf("%s: %v", name, err)
		}
		if name == "review" {
			continue // a path of an unknown scope is unknown
		}
		env := &mailspine.Envelope{ID: "x", Recipients: []mailspine.Recipient{{Address: got.env.From}}}
		if err := b.Deliver(t.Context(), env, mailspine.StringContent(notification("bob@example.com", "5.1.1", report.Failed))); err == nil || !mailspine.Status(err).Temporary() {
			t.Errorf("%s, bounce: %v", name, err)
		}
	}
	b := newBench(t)
	b.forward.err = func(*mailspine.Envelope) error { return errDisk }
	env := &mailspine.Envelope{ID: "x", Recipients: []mailspine.Recipient{{Address: b.sent(true, "bob@example.com")[0].env.From}}}
	if err := b.Deliver(t.Context(), env, mailspine.StringContent("\r\n")); err == nil || !mailspine.Status(err).Temporary() {
		t.Error(err)
	}
}

// What we write, we read.
func TestComplaintRoundTrip(t *testing.T) {
	b := newBench(t)
	want := complaint(b.sent(true, "bob@example.com")[0])
	want.Incidents, want.UserAgent = 3, "Provider/1.0"
	text, _ := want.Bytes()
	got, err := Parse(t.Context(), mailspine.BytesContent(text))
	if err != nil {
		t.Fatal(err)
	}
	if got.Type != want.Type || got.OriginalMailFrom != want.OriginalMailFrom || len(got.Recipients) != 1 || got.Recipients[0] != want.Recipients[0] ||
		!got.Arrival.Equal(want.Arrival) || got.ReportingMTA != want.ReportingMTA || got.SourceIP != want.SourceIP || got.Incidents != 3 ||
		got.UserAgent != want.UserAgent || string(got.Returned) != string(want.Returned) || !got.Full {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(string(text), "report-type=feedback-report") || !strings.Contains(string(text), "Version: 1\r\n") {
		t.Errorf("%s", text)
	}
	// What would break out of a field does not.
	want.Type, want.UserAgent, want.ReportingMTA = "abuse\r\n\r\n--x", "a\r\nIncidents: 9", "mx\nX: y"
	want.Incidents, want.Returned = 0, []byte("bare\nLF")
	text, _ = want.Bytes()
	if got, err = Parse(t.Context(), mailspine.BytesContent(text)); err != nil || got.Incidents != 0 || got.Returned != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

// The reports of the vectors are read as another parser reads them.
func TestVectors(t *testing.T) {
	dir := os.Getenv("MAILSPINE_VECTORS")
	files, _ := filepath.Glob(filepath.Join(dir, "arf", "*", "*.eml"))
	if dir == "" || len(files) == 0 {
		if os.Getenv("MAILSPINE_STRICT") == "1" {
			t.Fatal("MAILSPINE_VECTORS has no arf/*/*.eml")
		}
		t.Skip("MAILSPINE_VECTORS is not set: see docs/conformance.md")
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		js, err := os.ReadFile(strings.TrimSuffix(file, ".eml") + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var want struct {
			Type      string `json:"feedback_type"`
			Arrival   int64  `json:"arrival_date"`
			Incidents int    `json:"incidents"`
			MailFrom  string `json:"original_mail_from"`
			RcptTo    string `json:"original_rcpt_to"`
			MTA       string `json:"reporting_mta"`
			IP        string `json:"source_ip"`
			Agent     string `json:"user_agent"`
		}
		if err := json.Unmarshal(js, &want); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		c, err := Parse(t.Context(), mailspine.BytesContent(text))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		rcpt, ip, arrival := "", "", int64(0)
		if len(c.Recipients) > 0 {
			rcpt = c.Recipients[0].String()
		}
		if c.SourceIP.IsValid() {
			ip = c.SourceIP.String()
		}
		if !c.Arrival.IsZero() {
			arrival = c.Arrival.Unix()
		}
		for _, f := range [][3]string{
			{"type", strings.ReplaceAll(c.Type, "-", ""), strings.ToLower(want.Type)},
			{"from", c.OriginalMailFrom, strings.Trim(want.MailFrom, "<>")},
			{"rcpt", rcpt, strings.Trim(want.RcptTo, "<>")},
			{"mta", c.ReportingMTA, want.MTA[strings.Index(want.MTA, ";")+1:]},
			{"ip", ip, want.IP},
			{"agent", c.UserAgent, want.Agent},
			{"arrival", fmt.Sprint(arrival), fmt.Sprint(want.Arrival)},
			{"incidents", fmt.Sprint(max(c.Incidents, 1)), fmt.Sprint(want.Incidents)},
		} {
			if strings.TrimSpace(f[1]) != strings.TrimSpace(f[2]) {
				t.Errorf("%s: %s is %q, not %q", filepath.Base(file), f[0], f[1], f[2])
			}
		}
	}
}

func FuzzIntake(f *testing.F) {
	b := newBench(nil)
	f.Add("Content-Type: multipart/report; report-type=feedback-report; boundary=x\r\n\r\n--x\r\n\r\n--x\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\n\r\n--x\r\nContent-Type: message/rfc822\r\n\r\nX-Feedback-Token: x\r\n--x--\r\n")
	f.Add(notification("bob@example.com", "5.1.1", report.Failed))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		b.t, b.review.got = t, nil
		if err := b.report(text, passes); err != nil {
			t.Fatal(err)
		}
		if len(b.review.got) != 1 || len(b.outcomes) > 0 {
			t.Error("a report without a token of ours counts")
		}
	})
}
