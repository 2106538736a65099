package queue_test

import (
	"context"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/report"
	"github.com/mailspine/mailspine/queue"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// A golden is a report that is kept whole, and what our own parser has to find in it.
type golden struct {
	setup   func(b *bench)
	env     func(env *mailspine.Envelope, start time.Time)
	answers map[string]error
	receipt mailspine.Receipt
	msg     string
	wait    time.Duration
	act     func(b *bench)

	to       string // "": sender@example.org
	utf8     bool   // the report needs SMTPUTF8
	delivery report.Delivery
	full     bool
}

func dns(s string) report.Typed    { return report.Typed{Type: "dns", Value: s} }
func smtp(s string) report.Typed   { return report.Typed{Type: "smtp", Value: s} }
func rfc822(s string) report.Typed { return report.Typed{Type: "rfc822", Value: s} }
func utf8(s string) report.Typed   { return report.Typed{Type: "utf-8", Value: s} }

// The text of reports, complete, as people read it, and what programs find in them.
func TestReportGolden(t *testing.T) {
	zero := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when a bubble begins
	end := zero.Add(queue.DefaultLifetime)
	busy := mailspine.Receipt{RemoteMTA: "mx.example.net", Reply: "450 4.2.1 Mailbox busy"}
	success := func(e *mailspine.Envelope, _ time.Time) { e.Recipients[0].Notify = mailspine.NotifySuccess }
	for name, c := range map[string]golden{
		"failed": {
			answers: map[string]error{"ann": errUnknown},
			receipt: mailspine.Receipt{RemoteMTA: "mx.example.net", Reply: "550 5.1.1 <ann@example.net> No such user here"},
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Failed, Status: code(5, 1, 1), RemoteMTA: dns("mx.example.net"),
				Diagnostic: smtp("550 5.1.1 <ann@example.net> No such user here"), LastAttempt: zero,
			}}},
		},
		"mixed": {
			env: func(e *mailspine.Envelope, _ time.Time) {
				e.EnvID = "QQ314159 +="
				e.Ret = mailspine.RetFull
				e.Origin.Helo = "client.example.org"
				e.Recipients = append(e.Recipients, mailspine.Recipient{Address: addr("bob@example.net"), Notify: mailspine.NotifySuccess, ORcpt: "rfc822;robert@example.com"})
			},
			answers: map[string]error{"ann": errUnknown},
			full:    true,
			delivery: report.Delivery{EnvelopeID: "QQ314159 +=", ReceivedFrom: dns("client.example.org"), Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Failed, Status: code(5, 1, 1), Diagnostic: smtp("550 5.1.1 No such user"), LastAttempt: zero,
			}, {
				Original: rfc822("robert@example.com"), Final: rfc822("bob@example.net"), Action: report.Delivered, Status: code(2, 0, 0), LastAttempt: zero,
			}}},
		},
		"delayed": {
			answers: map[string]error{"ann": errBusy}, receipt: busy, wait: 6 * time.Hour,
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Delayed, Status: code(4, 2, 1), RemoteMTA: dns("mx.example.net"),
				Diagnostic: smtp("450 4.2.1 Mailbox busy"), LastAttempt: zero.Add(4*time.Hour + 5*time.Minute), WillRetryUntil: end,
			}}},
		},
		"held": {
			setup: func(b *bench) {
				b.q.Gate = queue.GateFunc(func(_ context.Context, r queue.Route) (queue.Hold, error) {
					if r == "example.net" {
						return queue.Hold{Until: b.start.Add(50 * time.Hour), Reason: "secret rule"}, nil
					}
					return queue.Hold{}, nil
				})
			},
			wait: 6 * time.Hour,
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Delayed, Status: code(4, 0, 0), WillRetryUntil: end,
			}}},
		},
		"expired": {
			setup:   func(b *bench) { b.q.WarnAfter = -1 },
			answers: map[string]error{"ann": errBusy}, receipt: busy, wait: 121 * time.Hour,
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Failed, Status: code(5, 4, 7), RemoteMTA: dns("mx.example.net"),
				Diagnostic: smtp("554 5.4.7 Delivery time expired; the last answer was: 450 4.2.1 Mailbox busy"), LastAttempt: end,
			}}},
		},
		"notify-by": {
			env: func(e *mailspine.Envelope, start time.Time) {
				e.DeliverBy = mailspine.DeliverBy{Time: start.Add(time.Minute)}
			},
			answers: map[string]error{"ann": errBusy}, receipt: busy, wait: time.Hour,
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Delayed, Status: code(4, 4, 7), RemoteMTA: dns("mx.example.net"),
				Diagnostic: smtp("450 4.2.1 Mailbox busy"), LastAttempt: zero.Add(time.Minute), WillRetryUntil: end,
			}}},
		},
		"return-by": {
			env: func(e *mailspine.Envelope, start time.Time) {
				e.DeliverBy = mailspine.DeliverBy{Time: start.Add(time.Minute), Return: true}
			},
			answers: map[string]error{"ann": errBusy}, receipt: busy, wait: time.Hour,
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Failed, Status: code(5, 4, 7), RemoteMTA: dns("mx.example.net"),
				Diagnostic: smtp("554 5.4.7 Delivery time expired; the last answer was: 450 4.2.1 Mailbox busy"), LastAttempt: zero.Add(time.Minute),
			}}},
		},
		"traced": {
			env: func(e *mailspine.Envelope, start time.Time) {
				e.DeliverBy = mailspine.DeliverBy{Time: start.Add(time.Hour), Trace: true}
			},
			receipt: mailspine.Receipt{RemoteMTA: "mx.example.net", Reply: "250 2.0.0 Ok", DSNRelayed: true},
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Relayed, Status: code(2, 0, 0), RemoteMTA: dns("mx.example.net"), LastAttempt: zero,
			}}},
		},
		"relayed": {
			env: success, receipt: mailspine.Receipt{RemoteMTA: "mx.example.net", Reply: "250 2.0.0 Ok"},
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Relayed, Status: code(2, 0, 0), RemoteMTA: dns("mx.example.net"), LastAttempt: zero,
			}}},
		},
		"delivered": {
			env: success, receipt: mailspine.Receipt{Reply: "250 2.1.5 Delivered to the mailbox"},
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Delivered, Status: code(2, 0, 0), LastAttempt: zero,
			}}},
		},
		"bounced": {
			env: func(e *mailspine.Envelope, start time.Time) { e.HoldUntil = start.Add(time.Hour) },
			act: func(b *bench) {
				if _, err := b.q.Bounce(ctx, queue.Filter{}, mailspine.Errorf(554, "5.7.1", "This list is closed").WithCause(errors.New("secret"))); err != nil {
					b.Error(err)
				}
			},
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Failed, Status: code(5, 7, 1), Diagnostic: smtp("554 5.7.1 This list is closed"),
			}}},
		},
		"postmaster": {
			setup: func(b *bench) { b.q.Postmaster = addr("postmaster@example.org") },
			env: func(e *mailspine.Envelope, _ time.Time) {
				e.From = mailspine.Address{}
				e.Ret = mailspine.RetFull
				e.Recipients[0].Notify = mailspine.NotifyNever
				e.Origin.Helo = "mx.example.com"
				e.Origin.Addr = netip.MustParseAddrPort("192.0.2.7:2525")
			},
			answers: map[string]error{"ann": errUnknown}, receipt: mailspine.Receipt{RemoteMTA: "mx.example.net", Reply: "550 5.1.1 No such user"},
			to: "postmaster@example.org",
			delivery: report.Delivery{ReceivedFrom: dns("mx.example.com"), Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Failed, Status: code(5, 1, 1), RemoteMTA: dns("mx.example.net"),
				Diagnostic: smtp("550 5.1.1 No such user"), LastAttempt: zero,
			}}},
		},
		// RFC 6533: everything in UTF-8, and the types that say so.
		"utf8": {
			env: func(e *mailspine.Envelope, _ time.Time) {
				e.UTF8 = true
				e.From = addr("jürgen@bücher.example")
				e.Ret = mailspine.RetFull
				e.Recipients = []mailspine.Recipient{{Address: addr("änne@example.net"), ORcpt: "utf-8;änne@example.net"}}
			},
			answers: map[string]error{"änne": mailspine.Errorf(553, "5.6.7", "Keine Umlaute, bitte: ä")},
			msg:     "From: jürgen@bücher.example\r\nSubject: Grüße\r\n\r\nGrüße\r\n",
			to:      "jürgen@bücher.example", utf8: true, full: true,
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Original: utf8("änne@example.net"), Final: utf8("änne@example.net"), Action: report.Failed, Status: code(5, 6, 7),
				Diagnostic: smtp("553 5.6.7 Keine Umlaute, bitte: ä"), LastAttempt: zero,
			}}},
		},
		// The header only, in UTF-8: message/global-headers.
		"utf8-header": {
			env: func(e *mailspine.Envelope, _ time.Time) {
				e.UTF8 = true
				e.Recipients = []mailspine.Recipient{{Address: addr("änne@bücher.example")}}
			},
			answers: map[string]error{"änne": errUnknown},
			msg:     "From: sender@example.org\r\nTo: änne@bücher.example\r\nSubject: Grüße\r\n\r\nGrüße\r\n",
			utf8:    true,
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: utf8("änne@bücher.example"), Action: report.Failed, Status: code(5, 1, 1), Diagnostic: smtp("550 5.1.1 No such user"), LastAttempt: zero,
			}}},
		},
		// A message that needs SMTPUTF8, and a report that does not.
		"utf8-unneeded": {
			env:     func(e *mailspine.Envelope, _ time.Time) { e.UTF8 = true },
			answers: map[string]error{"ann": errUnknown},
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Final: rfc822("ann@example.net"), Action: report.Failed, Status: code(5, 1, 1), Diagnostic: smtp("550 5.1.1 No such user"), LastAttempt: zero,
			}}},
		},
		// A sender whose system may not know SMTPUTF8: addresses are escaped (RFC 6533 section 3).
		"utf8-escaped": {
			env: func(e *mailspine.Envelope, _ time.Time) {
				e.Recipients = []mailspine.Recipient{{Address: addr("änne@bücher.example"), ORcpt: "utf-8;jürgen@bücher.example"}}
			},
			answers: map[string]error{"änne": mailspine.Errorf(553, "5.6.7", "Keine Umlaute: ä")},
			delivery: report.Delivery{Recipients: []report.Recipient{{
				Original: utf8("jürgen@bücher.example"), Final: utf8("änne@bücher.example"), Action: report.Failed, Status: code(5, 6, 7),
				Diagnostic: smtp("553 5.6.7 Keine Umlaute: ?"), LastAttempt: zero,
			}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, c.setup, func(b *bench) { c.check(b, name) })
		})
	}
}

func code(c, s, d int) mailspine.EnhancedCode { return mailspine.EnhancedCode{c, s, d} }

func (c golden) check(b *bench, name string) {
	answer := byLocal(c.answers)
	b.setAnswer(func(ctx context.Context, env *mailspine.Envelope) error {
		mailspine.AttemptFrom(ctx).Record(0, c.receipt)
		return answer(ctx, env)
	})
	env := envelope("01H000000000000000000000M1", "ann@example.net")
	if c.env != nil {
		c.env(env, b.start)
	}
	msg := c.msg
	if msg == "" {
		msg = letter
	}
	if err := b.q.Deliver(context.Background(), env, mailspine.StringContent(msg)); err != nil {
		b.Fatal(err)
	}
	time.Sleep(c.wait + time.Second)
	if c.act != nil {
		c.act(b)
	}
	synctest.Wait()
	got := b.report()
	var d delivered
	for _, x := range b.got {
		if strings.HasPrefix(string(x.env.ID), "dsn-") {
			d = x
		}
	}
	to := c.to
	if to == "" {
		to = "sender@example.org"
	}
	if d.env.Recipients[0].Address != addr(to) || d.env.UTF8 != c.utf8 || got.Full != c.full || got.Type != "delivery-status" {
		b.Errorf("the report: envelope %+v, full %v, type %s", d.env, got.Full, got.Type)
	}
	want := c.delivery
	want.ReportingMTA, want.Arrival = dns("mx.example.org"), b.start
	if diff := cmp.Diff(&want, got.Delivery); diff != "" {
		b.Errorf("what the parser finds (-want +got):\n%s", diff)
	}
	if strings.Contains(d.body, "secret") {
		b.Errorf("a secret is told:\n%s", d.body)
	}
	file := filepath.Join("testdata", "report-"+name+".eml")
	// Kept with LF, so that editors and diffs show it.
	if *update {
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(d.body, "\r\n", "\n")), 0o666); err != nil {
			b.Fatal(err)
		}
	}
	kept, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	if strings.ReplaceAll(d.body, "\r\n", "\n") != string(kept) || strings.Count(d.body, "\n") != strings.Count(d.body, "\r\n") {
		b.Errorf("the report is\n%s\nwant\n%s", d.body, kept)
	}
}
