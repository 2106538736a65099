package mta

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// The main dialogues, each against its golden transcript.
func TestRelayDialogues(t *testing.T) {
	ca := newCA(t)
	for _, tt := range []struct {
		name string
		to   []string
		msg  string
		edit func(*mailspine.Envelope, *Relay)
		want []string // status by recipient; "": delivered
	}{
		{name: "plain"},
		{name: "helo", msg: "no header, no line end", edit: func(e *mailspine.Envelope, _ *Relay) { e.From = mailspine.Address{} }},
		{name: "mixed", to: []string{"a@dest.example", "b@dest.example", "c@dest.example", "d@dest.example"},
			want: []string{"", "550 5.1.1", "450 4.2.0", ""}},
		{name: "nobody", to: []string{"a@dest.example", "b@dest.example"}, want: []string{"550 5.1.1", "552 5.2.2"}},
		{name: "toomany", to: []string{"a@dest.example", "b@dest.example", "c@dest.example"}, msg: "x\r\n",
			want: []string{"", "552 5.3.4", "552 5.3.4"}},
		{name: "batches", msg: "x\r\n",
			to:   []string{"a@dest.example", "b@dest.example", "c@dest.example", "d@dest.example", "e@dest.example"},
			edit: func(_ *mailspine.Envelope, r *Relay) { r.MaxRecipients = 2 },
			want: []string{"550 5.0.0", "550 5.0.0", "451 4.3.0", "451 4.3.0", ""}},
		{name: "extensions", to: []string{"jürgen@dest.example", `"a b"@dest.example`}, msg: "Subject: grüße\r\n\r\ngröße\r\n",
			edit: func(e *mailspine.Envelope, _ *Relay) {
				e.Ret, e.EnvID, e.UTF8, e.Body, e.Priority = mailspine.RetHdrs, "a+b c", true, mailspine.Body8Bit, -3
				e.DeliverBy = mailspine.DeliverBy{Time: time.Now().Add(time.Hour), Trace: true}
				e.Recipients[0].Notify, e.Recipients[0].ORcpt = mailspine.NotifySuccess|mailspine.NotifyDelay, "utf-8;jürgen@dest.example"
				e.Recipients[1].Notify, e.Recipients[1].ORcpt = mailspine.NotifyNever, "rfc822;a+b@old.example"
			}},
		{name: "starttls", msg: "x\r\n"},
		{name: "tlsrefused", msg: "x\r\n"},
		{name: "requiretls", msg: "x\r\n", edit: func(e *mailspine.Envelope, r *Relay) {
			e.RequireTLS = true
			r.TLSPolicy = TLSRules{"dest.example": {Level: TLSVerify, Hosts: []string{"*.dest.example"}, Roots: ca.pool}}
		}},
		{name: "flight"},
		{name: "flight-mixed", to: []string{"a@dest.example", "b@dest.example", "c@dest.example", "d@dest.example"}, msg: "x\r\n",
			want: []string{"", "550 5.1.1", "450 4.2.0", ""}},
		{name: "flight-nobody", to: []string{"a@dest.example", "b@dest.example"}, want: []string{"550 5.1.1", "552 5.2.2"}},
		{name: "flight-nobody354", to: []string{"a@dest.example", "b@dest.example"}, want: []string{"550 5.1.1", "552 5.2.2"}},
		{name: "flight-mail", to: []string{"a@dest.example", "b@dest.example"}, want: []string{"550 5.1.8", "550 5.1.8"}},
		{name: "flight-data", to: []string{"a@dest.example", "b@dest.example"}, want: []string{"451 4.3.0", "550 5.1.1"}},
		{name: "flight-toomany", to: []string{"a@dest.example", "b@dest.example", "c@dest.example", "d@dest.example"}, msg: "x\r\n",
			want: []string{"", "552 5.3.4", "", "550 5.1.1"}},
		{name: "flight-batches", msg: "x\r\n",
			to:   []string{"a@dest.example", "b@dest.example", "c@dest.example", "d@dest.example", "e@dest.example"},
			edit: func(_ *mailspine.Envelope, r *Relay) { r.MaxRecipients = 2 },
			want: []string{"550 5.0.0", "550 5.0.0", "451 4.3.0", "451 4.3.0", ""}},
		{name: "flight-421", to: []string{"a@dest.example", "b@dest.example", "c@dest.example"}, want: []string{"550 5.1.1", "421 4.3.2", "421 4.3.2"}},
		{name: "flight-off", msg: "x\r\n", edit: func(_ *mailspine.Envelope, r *Relay) { r.NoPipelining = true }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.certs = ca.server(t, "mx1.dest.example")
				n.mx("dest.example", "192.0.2.1")
				n.scripts["192.0.2.1"] = []script{golden(t, tt.name)}
				if tt.to == nil {
					tt.to = []string{"bob@dest.example"}
				}
				if tt.msg == "" {
					tt.msg = hello
				}
				env := envelope(t, "ann@sender.example", tt.to...)
				r := n.relay()
				if tt.edit != nil {
					tt.edit(env, r)
				}
				err := r.Deliver(t.Context(), env, mailspine.StringContent(tt.msg))
				n.done()
				if tt.want == nil {
					tt.want = make([]string, len(tt.to))
				}
				for i, w := range tt.want {
					wantStatus(t, tt.to[i], mailspine.ErrorAt(err, i), w)
				}
			})
		})
	}
}

// What nil cannot carry: the dot guard, and the receipts of each recipient.
func TestRelayAttempt(t *testing.T) {
	n := newNetwork(t)
	n.mx("dest.example", "192.0.2.1")
	n.scripts["192.0.2.1"] = []script{golden(t, "mixed")}
	env := envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example", "c@dest.example", "d@dest.example")
	a := &attempt{}
	var wire []WireLine
	r := n.relay()
	r.Trace = &RelayTrace{Wire: func(_ context.Context, l WireLine) { wire = append(wire, l) }}
	r.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent(hello))
	n.done()
	if a.commits != 1 || a.max != 13*time.Minute {
		t.Errorf("BeforeCommit was called %d times, with %v; want once, with 13m", a.commits, a.max)
	}
	for i, want := range []string{"250 2.0.0 Ok", "550 5.1.1 Nobody of that name, try another", "450 4.2.0 Greylisted", "250 2.0.0 Ok"} {
		got := a.receipts[i]
		if got.Reply != want || got.RemoteMTA != "mx1.dest.example" || got.RemoteAddr != "192.0.2.1:25" || got.DSNRelayed {
			t.Errorf("receipt %d: %+v, want reply %q", i, got, want)
		}
	}
	if got := transcript(wire[len(wire)-5:]); got != "C: (40 octets of message)\nC: .\nS: 250 2.0.0 Ok\nC: QUIT\nS: 221 2.0.0 Bye\n" {
		t.Errorf("wire:\n%s", got)
	}
}

// The lease is lost: the connection is dropped, and the dot is never sent; with a small message, which goes together
// with its dot, nothing is.
func TestRelayDotGuard(t *testing.T) {
	for _, tt := range []struct{ msg, end, seen string }{
		{"x\r\n", "C: x\nC: .", `step 10, "C: x": EOF`},
		{strings.Repeat("x\r\n", smtpclient.InMemory), strings.Repeat("C: x\n", smtpclient.InMemory) + "C: .", fmt.Sprintf(`step %d, "C: .": EOF`, 10+smtpclient.InMemory)},
	} {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		n.scripts["192.0.2.1"] = []script{script("S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n" +
			"C: RCPT TO:<bob@dest.example>\nS: 250 ok\nC: DATA\nS: 354 ok\n" + tt.end)}
		lost := errors.New("lease is lost")
		a := &attempt{refuse: lost}
		r := n.relay()
		r.IdleTimeout = 0
		err := r.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent(tt.msg))
		n.wg.Wait()
		if !errors.Is(mailspine.ErrorAt(err, 0), lost) {
			t.Errorf("the error is %v, not that of BeforeCommit", err)
		}
		if len(n.errs) != 1 || !strings.Contains(n.errs[0].Error(), tt.seen) {
			t.Errorf("the server saw %v; want the connection to end where the dot would be", n.errs)
		}
		if len(n.dialed) != 1 {
			t.Errorf("connected to %v: another server would not help", n.dialed)
		}
	}
}

// A delivery to several domains: each is served on its own, and the results are in order.
func TestRelayDomains(t *testing.T) {
	n := newNetwork(t)
	n.mx("dest.example", "192.0.2.1")
	n.zone["null.example MX"] = []mailspine.MX{{Host: ""}}
	n.scripts["192.0.2.1"] = []script{golden(t, "mixed")}
	env := envelope(t, "ann@sender.example", "a@dest.example", "x@null.example", "b@DEST.example", "c@dest.example", "y@gone.example", "d@dest.example")
	env.Recipients[2].Address.Domain = "dest.example"
	err := n.relay().Deliver(t.Context(), env, mailspine.StringContent(hello))
	n.done()
	for i, w := range []string{"", "556 5.1.10", "550 5.1.1", "450 4.2.0", "550 5.1.2", ""} {
		wantStatus(t, env.Recipients[i].Address.String(), mailspine.ErrorAt(err, i), w)
	}
}

// What a Relay refuses without a connection.
func TestRelayRefuses(t *testing.T) {
	n := newNetwork(t)
	ok := envelope(t, "ann@sender.example", "bob@dest.example")
	for _, tt := range []struct {
		name string
		msg  string
		edit func(*mailspine.Envelope, *Relay)
		want string
	}{
		{"no resolver", "x\r\n", func(_ *mailspine.Envelope, r *Relay) { r.Resolver = nil }, "451 4.3.0"},
		{"hostname", "x\r\n", func(_ *mailspine.Envelope, r *Relay) { r.Hostname = "two words" }, "451 4.3.0"},
		{"bare LF", "x\n.\r\nMAIL", nil, "554 5.6.0"},
		{"bare CR", "x\r.\r\n", nil, "554 5.6.0"},
		{"CR at the end", "x\r", nil, "554 5.6.0"},
		{"sender", "x\r\n", func(e *mailspine.Envelope, _ *Relay) { e.From.Local = "a>\r\nRSET" }, "553 5.1.7"},
		{"recipient", "x\r\n", func(e *mailspine.Envelope, _ *Relay) { e.Recipients[0].Address.Domain = "a\r\nb" }, "550 5.1.3"},
		{"no domain", "x\r\n", func(e *mailspine.Envelope, _ *Relay) { e.Recipients[0].Address = mailspine.Address{} }, "550 5.1.3"},
	} {
		env, r := ok.Clone(), n.relay()
		if tt.edit != nil {
			tt.edit(env, r)
		}
		err := r.Deliver(t.Context(), env, mailspine.StringContent(tt.msg))
		wantStatus(t, tt.name, err, tt.want)
	}
	if len(n.dialed) > 0 {
		t.Errorf("connected to %v", n.dialed)
	}
}

// What the server's extensions make impossible, each without a transaction.
func TestRelayUnfit(t *testing.T) {
	for _, tt := range []struct {
		name, ehlo, msg string
		edit            func(*mailspine.Envelope)
		want            string
	}{
		{"size", "S: 250-hi\nS: 250 SIZE 10", "twelve octets", nil, "552 5.3.4"},
		{"8-bit", "S: 250 hi", "\xe4\r\n", nil, "554 5.6.3"},
		{"binary", "S: 250-hi\nS: 250 CHUNKING", "\n\x00", func(e *mailspine.Envelope) { e.Body = mailspine.BodyBinary }, "554 5.6.3"},
		{"message in UTF-8", "S: 250-hi\nS: 250 8BITMIME", "x\r\n", func(e *mailspine.Envelope) { e.UTF8 = true }, "550 5.6.7"},
		{"sender in UTF-8", "S: 250 hi", "x\r\n", func(e *mailspine.Envelope) { e.From.Local = "jürgen" }, "553 5.6.7"},
		{"recipient in UTF-8", "S: 250 hi", "x\r\n", func(e *mailspine.Envelope) { e.Recipients[0].Address.Local = "jürgen" }, "553 5.6.7"},
		{"DELIVERBY", "S: 250 hi", "x\r\n", func(e *mailspine.Envelope) {
			e.DeliverBy = mailspine.DeliverBy{Time: time.Now().Add(time.Hour), Return: true}
		}, "550 5.3.3"},
		{"DELIVERBY over", "S: 250-hi\nS: 250 DELIVERBY", "x\r\n", func(e *mailspine.Envelope) {
			e.DeliverBy = mailspine.DeliverBy{Time: time.Now().Add(-time.Hour), Return: true}
		}, "554 5.4.7"},
	} {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		n.scripts["192.0.2.1"] = []script{script("S: 220 hi\nC: EHLO out.sender.example\n" + tt.ehlo + "\nC: QUIT\nS: 221 bye")}
		env := envelope(t, "ann@sender.example", "bob@dest.example")
		if tt.edit != nil {
			tt.edit(env)
		}
		err := n.relay().Deliver(t.Context(), env, mailspine.StringContent(tt.msg))
		n.done()
		wantStatus(t, tt.name, mailspine.ErrorAt(err, 0), tt.want)
	}
}

// A recipient with U-labels in the domain and an ASCII local part can be sent to
// any server.
func TestRelayIDN(t *testing.T) {
	n := newNetwork(t)
	n.mx("xn--bcher-kva.example", "192.0.2.1")
	n.scripts["192.0.2.1"] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n" +
		"C: RCPT TO:<bob@xn--bcher-kva.example>\nS: 250 ok\nC: DATA\nS: 354 ok\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye"}
	err := n.relay().Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@bücher.example"), mailspine.StringContent("x\r\n"))
	n.done()
	wantStatus(t, "IDN", err, "")
}

// Without a Hostname the client greets with the literal of its address, which for
// a pipe is not known.
func TestRelayWithoutHostname(t *testing.T) {
	n := newNetwork(t)
	n.mx("dest.example", "192.0.2.1")
	n.scripts["192.0.2.1"] = []script{"S: 220 hi\nC: EHLO localhost\nS: 421 go away"}
	r := n.relay()
	r.Hostname = ""
	err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
	n.done()
	wantStatus(t, "421", mailspine.ErrorAt(err, 0), "421 4.0.0")
}

// ctx ends a delivery that waits, but not the wait for the reply to the dot.
func TestRelayContext(t *testing.T) {
	upTo := "S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n" +
		"C: RCPT TO:<bob@dest.example>\nS: 250 ok\nC: DATA\n"
	for _, tt := range []struct {
		name   string
		script script
		want   string
		took   time.Duration
	}{
		{"greeting", "STALL", "451 4.4.7", time.Minute},
		{"DATA", script(upTo + "STALL"), "451 4.4.7", time.Minute},
		{"reply to the dot", script(upTo + "S: 354 ok\nC: x\nC: .\nSTALL"), "451 4.4.2", time.Minute + commitGrace},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1", "192.0.2.2")
				n.scripts["192.0.2.1"] = []script{tt.script}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				err := n.relay().Deliver(ctx, envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
				wantStatus(t, tt.name, mailspine.ErrorAt(err, 0), tt.want)
				if took := time.Since(start); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				n.done()
			})
		})
	}
}

func TestRelayTrace(t *testing.T) {
	n := newNetwork(t)
	n.mx("dest.example", "192.0.2.1", "192.0.2.2")
	n.certs = newCA(t).server(t, "mx2.dest.example")
	n.scripts["192.0.2.2"] = []script{golden(t, "starttls")}
	var got []string
	note := func(s string) { got = append(got, s) }
	r := n.relay()
	r.Trace = &RelayTrace{
		Resolved: func(_ context.Context, i ResolvedInfo) { note("resolved " + strings.Join(i.Hosts, " ")) },
		Dialed: func(_ context.Context, i DialedInfo) {
			note("dialed " + i.Addr + " " + map[bool]string{true: "ok", false: "failed"}[i.Err == nil])
		},
		TLS:   func(_ context.Context, i TLSDoneInfo) { note("TLS " + i.Level.String() + " " + i.TLS.Version) },
		Reply: func(_ context.Context, i ReplyInfo) { note(i.Command + " " + i.Recipient + ": " + i.Reply) },
	}
	if err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n")); err != nil {
		t.Fatal(err)
	}
	n.done()
	want := []string{"resolved mx1.dest.example mx2.dest.example", "dialed 192.0.2.1:25 failed", "dialed 192.0.2.2:25 ok",
		"greeting : 220 mx1.dest.example ESMTP", "EHLO : 250 mx1.dest.example STARTTLS", "TLS opportunistic TLS 1.3",
		"STARTTLS : 220 2.0.0 Ready", "EHLO : 250 mx1.dest.example REQUIRETLS DSN", "MAIL : 250 2.1.0 Ok",
		"RCPT bob@dest.example: 250 2.1.5 Ok", "DATA : 354 go on", "message : 250 2.0.0 Ok"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
