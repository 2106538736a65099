package smtpclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
)

// The main dialogues, each against its golden transcript.
func TestDialogues(t *testing.T) {
	certs, roots := certify(t, "mx.dest.example")
	abcd := []string{"a@dest.example", "b@dest.example", "c@dest.example", "d@dest.example"}
	for _, tt := range []struct {
		name    string
		to      []string
		msg     string
		options Options
		edit    func(*mailspine.Envelope)
		max     int
		commits int
		want    string // the outcomes
		err     string // the status of the last error
	}{
		{name: "bdat", to: abcd[:1], msg: "Subject: hello\r\n\r\n.one dot\r\n..two\r\nend\r\n", want: "taken"},
		{name: "bdat", to: abcd[:1], msg: "Subject: hello\r\n\r\n.one dot\r\n..two\r\nend", want: "taken"}, // the line end is ours
		{name: "bdat-mixed", to: abcd, want: "taken, 550 5.1.1, 450 4.2.0, taken"},
		{name: "bdat-nobody", to: abcd[:3], max: 2, commits: 2, want: "550 5.1.1, 552 5.2.2, taken"},
		{name: "bdat-nobody250", to: abcd[:2], want: "550 5.1.1, 552 5.2.2"},
		{name: "bdat-mail", to: abcd[:2], want: "550 5.1.8, 550 5.1.8"},
		{name: "bdat-refused", to: abcd[:3], max: 2, commits: 2, want: "552 5.3.4, 550 5.1.1, taken"},
		{name: "bdat-toomany", to: abcd, commits: 2, want: "taken, taken, taken, 550 5.1.1"},
		{name: "bdat-421", to: abcd[:3], want: "550 5.1.1, open, open", err: "421 4.3.2"},
		{name: "bdat-alone", to: abcd[:2], want: "taken, 550 5.1.1"},
		{name: "bdat-large", to: abcd[:2], msg: large, want: "taken, 550 5.1.1"},
		{name: "bdat-large-nobody", to: abcd[:2], msg: large, commits: -1, want: "550 5.1.1, 550 5.1.1"},
		{name: "bdat-binary", to: abcd[:1], msg: "\nx\x00\ry\xff\n", want: "taken",
			edit: func(e *mailspine.Envelope) { e.Body = mailspine.BodyBinary }},
		{name: "off", to: abcd[:1], options: Options{NoPipelining: true, NoChunking: true}, want: "taken"},
		{name: "limits", to: []string{"a@dest.example", "b@other.example", "c@dest.example", "d@dest.example"}, commits: 2,
			want: "taken, taken, taken, open", err: "451 4.3.2"},
		{name: "lmtp", to: abcd, options: Options{LMTP: true}, want: "taken, 550 5.1.1, 452 4.2.2, 552 5.2.3"},
		{name: "lmtp-bdat", to: abcd[:3], options: Options{LMTP: true}, want: "taken, 550 5.1.1, 452 4.2.2"},
		{name: "lmtp-nobody", to: abcd[:1], options: Options{LMTP: true}, commits: -1, want: "550 5.1.1"},
		{name: "lmtp-lost", to: abcd[:3], options: Options{LMTP: true}, want: "taken, 421 4.3.2, doubt 451 4.4.2", err: "451 4.4.2"},
		{name: "starttls", to: abcd[:1], want: "taken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, done := golden(t, tt.name).start(&tt.options, certs)
				begin(t, c)
				if c.Has("STARTTLS") {
					if auth, _ := c.Extension("AUTH"); auth != "LOGIN PLAIN" {
						t.Errorf("AUTH is offered as %q", auth)
					}
					if r, err := c.StartTLS(t.Context(), &tls.Config{ServerName: "mx.dest.example", RootCAs: roots}); err != nil || !r.OK() {
						t.Fatal(r, err)
					}
					if _, ok := c.TLS(); !ok || c.Has("CHUNKING") || c.Has("AUTH") {
						t.Error("no TLS, or what was said before it still counts")
					}
					if r, err := c.Hello(t.Context(), "out.sender.example"); err != nil || !r.OK() {
						t.Fatal(r, err)
					}
				}
				if tt.msg == "" {
					tt.msg = "x\r\n"
				}
				env := envelope(t, "ann@sender.example", tt.to...)
				if tt.edit != nil {
					tt.edit(env)
				}
				commits := 0
				words, err := sendAll(t.Context(), c, Transaction{Env: env, Msg: prepare(t, tt.msg), Max: tt.max,
					Commit: func(_ context.Context, max time.Duration) error {
						if commits++; max != 13*time.Minute && max != 18*time.Minute {
							t.Errorf("up to %v may pass", max)
						}
						return nil
					}})
				if got := strings.Join(words, ", "); got != tt.want || status(err) != tt.err {
					t.Errorf("%s, %v; want %s, %q", got, err, tt.want, tt.err)
				}
				if tt.commits == 0 {
					tt.commits = 1
				}
				if commits != max(tt.commits, 0) {
					t.Errorf("Commit was called %d times", commits)
				}
				c.Quit(t.Context())
				if err := done(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What the caller is told of a transaction in one flight: each reply, and who was heard of.
func TestReplied(t *testing.T) {
	c, done := golden(t, "bdat-mixed").start(nil, nil)
	begin(t, c)
	var got, wire []string
	c.SetWire(func(sent bool, line string) { wire = append(wire, fmt.Sprint(sent, " ", line)) })
	env := envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example", "c@dest.example", "d@dest.example")
	res, err := c.Send(t.Context(), &Transaction{Env: env, Msg: prepare(t, "x\r\n"), Replied: func(command string, rcpt int, r Reply) {
		got = append(got, fmt.Sprint(command, " ", rcpt, " ", r.Code))
	}})
	c.Quit(t.Context())
	if err := errors.Join(err, done()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"MAIL -1 250", "RCPT 0 250", "RCPT 1 550", "RCPT 2 450", "RCPT 3 250", "message -1 250"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for i, o := range res.Outcomes {
		if !o.Heard || o.Rcpt != i || (o.Command == "message") != (o.State == Taken) || o.Reply.Code == 0 {
			t.Errorf("%d: %+v", i, o)
		}
	}
	if want := []string{"true MAIL FROM:<ann@sender.example>", "true RCPT TO:<a@dest.example>"}; !slices.Equal(wire[:2], want) ||
		!slices.Equal(wire[5:8], []string{"true BDAT 3 LAST", "true (3 octets of message)", "false 250 2.1.0 Ok"}) {
		t.Errorf("wire:\n%s", strings.Join(wire, "\n"))
	}
}

// Nobody was heard of where the server did not look at the recipients.
func TestHeard(t *testing.T) {
	c, done := golden(t, "bdat-mail").start(nil, nil)
	begin(t, c)
	res, err := c.Send(t.Context(), &Transaction{Env: envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example"), Msg: prepare(t, "x\r\n")})
	c.Quit(t.Context())
	if err := errors.Join(err, done()); err != nil {
		t.Fatal(err)
	}
	for _, o := range res.Outcomes {
		if o.Heard || o.Command != "MAIL" {
			t.Errorf("%+v", o)
		}
	}
	if res.Mail.Code != 550 {
		t.Errorf("MAIL: %v", res.Mail)
	}
}

// Without leave nothing of the flight is sent, and the connection is at its end.
func TestCommitRefused(t *testing.T) {
	const hi = "S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250-PIPELINING\nS: 250 CHUNKING\n"
	for _, tt := range []struct{ msg, script, seen string }{
		{"x\r\n", hi + "C: MAIL*", `step 6, "C: MAIL*": EOF`},
		{large, hi + "C: MAIL*\nC: RCPT*\nS: 250 ok\nS: 250 ok\nC: BDAT 98304 LAST\nEAT 98303\nEAT 1", `step 12, "EAT 1": EOF`},
	} {
		c, done := script(tt.script).start(nil, nil)
		begin(t, c)
		lost := errors.New("the lease is lost")
		res, err := c.Send(t.Context(), &Transaction{Env: envelope(t, "ann@sender.example", "a@dest.example"), Msg: prepare(t, tt.msg),
			Commit: func(context.Context, time.Duration) error { return lost }})
		var local *MessageError
		if !errors.Is(err, lost) || !errors.As(err, &local) || outcomes(res) != "open" || c.InStep() {
			t.Errorf("%v, %s, in step: %v", err, outcomes(res), c.InStep())
		}
		c.Close()
		if err := done(); err == nil || !strings.Contains(err.Error(), tt.seen) {
			t.Errorf("the server saw %v", err)
		}
	}
}

// What a server's extensions make impossible is refused without a command.
func TestUnfit(t *testing.T) {
	for _, tt := range []struct {
		name, ext, msg string
		edit           func(*mailspine.Envelope)
		want           string
	}{
		{"size", "SIZE 10", "twelve octets", nil, "552 5.3.4"},
		{"8-bit", "CHUNKING", "\xe4\r\n", nil, "554 5.6.3"},
		{"bare LF", "CHUNKING", "a\nb\r\n", nil, "554 5.6.0"},
		{"bare LF, large", "CHUNKING", large + "\n", nil, "554 5.6.0"},
		{"binary, no BINARYMIME", "CHUNKING", "\n", func(e *mailspine.Envelope) { e.Body = mailspine.BodyBinary }, "554 5.6.3"},
		{"binary, no CHUNKING", "BINARYMIME", "x\r\n", func(e *mailspine.Envelope) { e.Body = mailspine.BodyBinary }, "554 5.6.3"},
		{"UTF-8", "8BITMIME", "x\r\n", func(e *mailspine.Envelope) { e.UTF8 = true }, "550 5.6.7"},
		{"sender", "8BITMIME", "x\r\n", func(e *mailspine.Envelope) { e.From.Local = "j\u00fcrgen" }, "553 5.6.7"},
		{"recipient", "8BITMIME", "x\r\n", func(e *mailspine.Envelope) { e.Recipients[0].Address.Local = "j\u00fcrgen" }, "553 5.6.7"},
		{"REQUIRETLS in clear", "REQUIRETLS", "x\r\n", func(e *mailspine.Envelope) { e.RequireTLS = true }, "550 5.7.10"},
		{"DELIVERBY", "8BITMIME", "x\r\n", func(e *mailspine.Envelope) {
			e.DeliverBy = mailspine.DeliverBy{Time: time.Now().Add(time.Hour), Return: true}
		}, "550 5.3.3"},
		{"over", "DELIVERBY", "x\r\n", func(e *mailspine.Envelope) {
			e.DeliverBy = mailspine.DeliverBy{Time: time.Now().Add(-time.Hour), Return: true}
		}, "554 5.4.7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, done := script("S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 "+tt.ext+"\nC: QUIT\nS: 221 bye").start(nil, nil)
			begin(t, c)
			env := envelope(t, "ann@sender.example", "a@dest.example")
			if tt.edit != nil {
				tt.edit(env)
			}
			res, err := c.Send(t.Context(), &Transaction{Env: env, Msg: prepare(t, tt.msg)})
			if got := outcomes(res); got != tt.want || err != nil {
				t.Errorf("%s, %v; want %s", got, err, tt.want)
			}
			c.Quit(t.Context())
			if err := done(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for params, want := range map[string]Limits{
		"":                                       {},
		"RCPTMAX=100 MAILMAX=10 RCPTDOMAINMAX=1": {MailMax: 10, RcptMax: 100, RcptDomainMax: 1},
		"rcptmax=5":                              {RcptMax: 5},
		"RCPTMAX=0 MAILMAX=-1 RCPTDOMAINMAX=x":   {},
		"RCPTMAX=1000000 MAILMAX RCPTMAX":        {},
		"RCPTMAX=7 RCPTMAX=5 RCPTMAX=9 NEW=1":    {RcptMax: 5},
		strings.Repeat("A=1 ", 30) + "RCPTMAX=5": {},
	} {
		if got := parseLimits(params); got != want {
			t.Errorf("%q: %+v, want %+v", params, got, want)
		}
	}
}

// The end of the context closes the connection, but not while replies to the message are missing: then it waits for ten seconds.
func TestContext(t *testing.T) {
	const hi = "S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250-PIPELINING\nS: 250 CHUNKING\n"
	for _, tt := range []struct {
		name, script, msg, want string
		took                    time.Duration
	}{
		{"the flight is sent", hi + "C: MAIL*\nC: RCPT*\nC: BDAT*\nC: x\nS: 250 ok\nSTALL", "x\r\n", "doubt 451 4.4.2", time.Second + commitGrace},
		{"before the message", hi + "C: MAIL*\nC: RCPT*\nS: 250 ok\nSTALL", large, "open", time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, done := script(tt.script).start(nil, nil)
				begin(t, c)
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				res, err := c.Send(ctx, &Transaction{Env: envelope(t, "ann@sender.example", "a@dest.example"), Msg: prepare(t, tt.msg)})
				if got := outcomes(res); got != tt.want || err == nil || c.InStep() {
					t.Errorf("%s, %v", got, err)
				}
				if tt.want == "open" && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v", err)
				}
				if took := time.Since(start); took != tt.took {
					t.Errorf("took %v", took)
				}
				c.Close()
				done()
			})
		})
	}
}

// A hook that panics leaves no connection behind.
func TestHookPanics(t *testing.T) {
	c, done := golden(t, "bdat").start(nil, nil)
	begin(t, c)
	func() {
		defer func() { recover() }()
		c.Send(t.Context(), &Transaction{Env: envelope(t, "ann@sender.example", "a@dest.example"), Msg: prepare(t, "Subject: hello\r\n\r\n.one dot\r\n..two\r\nend\r\n"),
			Replied: func(string, int, Reply) { panic("hook") }})
		t.Error("no panic")
	}()
	if c.InStep() {
		t.Error("still in step")
	}
	done()
}
