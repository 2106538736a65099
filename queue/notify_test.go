package queue_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/report"
	"github.com/mailspine/mailspine/queue"
)

func TestFailureIsReported(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.answer = byLocal(map[string]error{"bob": errUnknown, "cid": errBusy})
		b.send(envelope("m1", "ann@example.net", "bob@example.net", "cid@example.net"))
		time.Sleep(5*time.Minute + time.Second)
		b.wantLog("0s ann+bob+cid, 0s sender report, 5m0s cid")
		r := b.report()
		if got := actions(r); got != "bob failed 5.1.1" {
			t.Errorf("reported: %s", got)
		}
		if r.Delivery.ReportingMTA != (report.Typed{Type: "dns", Value: "mx.example.org"}) {
			t.Errorf("Reporting-MTA: %v", r.Delivery.ReportingMTA)
		}
		if r.Full || !strings.Contains(string(r.Returned), "Subject: A letter") || strings.Contains(string(r.Returned), "Dear reader") {
			t.Errorf("returned: full %v, %q", r.Full, r.Returned)
		}
	})
}

func TestNullSender(t *testing.T) {
	run(t, func(b *bench) {
		b.q.WarnAfter = time.Nanosecond
		b.q.Retry = queue.RetryFunc(func(int, time.Duration, float64) (time.Duration, bool) { return time.Hour, true })
	}, func(b *bench) {
		b.answer = byLocal(map[string]error{"ann": errUnknown, "bob": errBusy})
		env := envelope("m1", "ann@example.net", "bob@example.net", "cid@example.net")
		env.From = mailspine.Address{}
		for i := range env.Recipients {
			env.Recipients[i].Notify = mailspine.NotifySuccess | mailspine.NotifyFailure | mailspine.NotifyDelay
		}
		b.send(env)
		time.Sleep(time.Hour + time.Second)
		b.wantLog("0s ann+bob+cid, 1h0m0s bob")
		if c := b.q.Stats(); c.Unreported != 1 || c.Reports != 0 || c.Failed != 1 || c.Delivered != 1 {
			t.Errorf("Stats: %+v", c)
		}
	})
}

// A report that fails is not reported.
func TestDoubleBounce(t *testing.T) {
	run(t, func(b *bench) {
		next := b.q.Next
		b.q.Next = mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
			next.Deliver(ctx, env, msg)
			return errUnknown
		})
	}, func(b *bench) {
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(48 * time.Hour)
		b.wantLog("0s ann, 0s sender report")
		if st := b.stats(); st.Items != 0 {
			t.Errorf("left in the store: %+v", st)
		}
	})
}

func TestNotify(t *testing.T) {
	const never, success, failure, delay = mailspine.NotifyNever, mailspine.NotifySuccess, mailspine.NotifyFailure, mailspine.NotifyDelay
	local := mailspine.Receipt{}
	remote := mailspine.Receipt{RemoteMTA: "mx.example.net", Reply: "250 2.0.0 Ok"}
	relayed := mailspine.Receipt{RemoteMTA: "mx.example.net", DSNRelayed: true}
	for _, c := range []struct {
		notify  mailspine.Notify
		err     error
		receipt mailspine.Receipt
		want    string
	}{
		{0, nil, local, ""}, {failure | delay, nil, local, ""}, {never, nil, local, ""},
		{success, nil, local, "ann delivered 2.0.0"},
		{success, nil, remote, "ann relayed 2.0.0"},
		{success, nil, relayed, ""},
		{0, errUnknown, remote, "ann failed 5.1.1"}, {failure, errUnknown, local, "ann failed 5.1.1"},
		{success | delay, errUnknown, local, ""}, {never, errUnknown, local, ""},
		{failure, errUnknown, relayed, "ann failed 5.1.1"},
		{0, errBusy, remote, "ann delayed 4.2.1"}, {delay, errBusy, local, "ann delayed 4.2.1"},
		{success | failure, errBusy, local, ""}, {never, errBusy, local, ""},
	} {
		t.Run(fmt.Sprintf("%d %v %v", c.notify, c.err, c.want), func(t *testing.T) {
			run(t, func(b *bench) {
				b.q.WarnAfter = 5 * time.Minute
				b.q.Retry = queue.DefaultRetry{Jitter: -1, Lifetime: 100 * time.Hour}
			}, func(b *bench) {
				b.answer = func(ctx context.Context, _ *mailspine.Envelope) error {
					mailspine.AttemptFrom(ctx).Record(0, c.receipt)
					return c.err
				}
				env := envelope("m1", "ann@example.net")
				env.Recipients[0].Notify = c.notify
				b.send(env)
				time.Sleep(50 * time.Hour)
				synctest.Wait()
				var got []string
				for _, r := range b.reports() {
					got = append(got, actions(r))
				}
				if s := strings.Join(got, "; "); s != c.want {
					t.Errorf("reports: %q, want %q", s, c.want)
				}
			})
		})
	}
}

func TestDelayReport(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.answer = byLocal(map[string]error{"ann": errBusy})
		b.send(envelope("m1", "ann@example.net", "bob@example.com"))
		time.Sleep(30 * time.Hour)
		r := b.report() // one only
		if got := actions(r); got != "ann delayed 4.2.1" {
			t.Errorf("reported: %s", got)
		}
		x := r.Delivery.Recipients[0]
		if want := b.start.Add(queue.DefaultLifetime); !x.WillRetryUntil.Equal(want) {
			t.Errorf("Will-Retry-Until: %v, want %v", x.WillRetryUntil, want)
		}
		if x.LastAttempt.Sub(b.start) < queue.DefaultWarnAfter {
			t.Errorf("told after %v, want not before %v", x.LastAttempt.Sub(b.start), queue.DefaultWarnAfter)
		}
	})
}

// RET (RFC 3461 section 4.3).
func TestReturn(t *testing.T) {
	long := letter + strings.Repeat("x", 2000) + "\r\n"
	for name, c := range map[string]struct {
		ret     mailspine.Ret
		msg     string
		setup   func(*queue.Queue)
		change  func(*mailspine.Envelope)
		err     error
		full    bool
		nothing bool
	}{
		"unset":       {mailspine.RetUnset, letter, nil, nil, errUnknown, false, false},
		"HDRS":        {mailspine.RetHdrs, letter, nil, nil, errUnknown, false, false},
		"FULL":        {mailspine.RetFull, letter, nil, nil, errUnknown, true, false},
		"too large":   {mailspine.RetFull, letter, func(q *queue.Queue) { q.MaxReturn = 20 }, nil, errUnknown, false, false},
		"never":       {mailspine.RetFull, letter, func(q *queue.Queue) { q.MaxReturn = -1 }, nil, errUnknown, false, false},
		"long line":   {mailspine.RetFull, long, nil, nil, errUnknown, false, false},
		"binary":      {mailspine.RetFull, letter + "a\x00b\r\n", nil, nil, errUnknown, false, false},
		"bare LF":     {mailspine.RetFull, letter + "a\nb\r\n", nil, nil, errUnknown, false, false},
		"REQUIRETLS":  {mailspine.RetFull, letter, nil, func(e *mailspine.Envelope) { e.RequireTLS = true }, errUnknown, false, false},
		"delivered":   {mailspine.RetFull, letter, nil, func(e *mailspine.Envelope) { e.Recipients[0].Notify = mailspine.NotifySuccess }, nil, false, false},
		"8-bit":       {mailspine.RetFull, letter + "gr\xc3\xbc\xc3\x9fe\r\n", nil, nil, errUnknown, true, false},
		"no header":   {mailspine.RetHdrs, "\r\nbody\r\n", nil, nil, errUnknown, false, true},
		"header only": {mailspine.RetHdrs, "From: sender@example.org\r\nSubject: A letter\r\n", nil, nil, errUnknown, false, false},
		"long header": {mailspine.RetHdrs, "Subject: A letter\r\nX: " + strings.Repeat("y", 3000) + "\r\nTo: z\r\n\r\n", nil, nil, errUnknown, false, false},
		"huge header": {mailspine.RetHdrs, "Subject: A letter\r\nX: " + strings.Repeat("y", 70<<10) + "\r\nTo: z\r\n\r\n", nil, nil, errUnknown, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bench) {
				if c.setup != nil {
					c.setup(b.q)
				}
			}, func(b *bench) {
				b.answer = byLocal(map[string]error{"ann": c.err})
				env := envelope("m1", "ann@example.net")
				env.Ret = c.ret
				if c.change != nil {
					c.change(env)
				}
				if err := b.q.Deliver(context.Background(), env, mailspine.StringContent(c.msg)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				r := b.report()
				if r.Full != c.full || c.full && string(r.Returned) != c.msg {
					t.Errorf("returned: full %v, %.200q", r.Full, r.Returned)
				}
				if !c.full && !c.nothing && (!strings.Contains(string(r.Returned), "Subject: A letter\r\n") || strings.Contains(string(r.Returned), "Dear")) {
					t.Errorf("the header that is returned: %.200q", r.Returned)
				}
				rep := b.got[len(b.got)-1].env
				if rep.RequireTLS != env.RequireTLS {
					t.Errorf("RequireTLS of the report is %v", rep.RequireTLS)
				}
				if want := name == "8-bit"; (rep.Body == mailspine.Body8Bit) != want {
					t.Errorf("body of the report is %v", rep.Body)
				}
			})
		})
	}
}

func TestNotifications(t *testing.T) {
	for name, refuse := range map[string]error{"taken": nil, "refused": errors.New("the signer is ill")} {
		t.Run(name, func(t *testing.T) {
			var got []*mailspine.Envelope
			run(t, func(b *bench) {
				b.q.Notifications = mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
					got = append(got, env.Clone())
					return refuse
				})
			}, func(b *bench) {
				b.answer = byLocal(map[string]error{"ann": errUnknown})
				b.send(envelope("m1", "ann@example.net"))
				time.Sleep(time.Second)
				want := "0s ann"
				if refuse != nil {
					want = "0s ann, 0s sender report" // not lost: it went into the queue
				}
				b.wantLog(want)
				if len(got) != 1 || got[0].Recipients[0].Address != addr("sender@example.org") {
					t.Errorf("Notifications got %v", got)
				}
			})
		})
	}
}

// What is told twice is one message; what is different is another.
func TestReportID(t *testing.T) {
	ids := map[mailspine.MsgID]int{}
	for _, failed := range []string{"ann", "ann", "bob", "ann bob"} {
		run(t, nil, func(b *bench) {
			answers := map[string]error{}
			for _, f := range strings.Fields(failed) {
				answers[f] = errUnknown
			}
			b.answer = byLocal(answers)
			b.send(envelope("m1", "ann@example.net", "bob@example.net"))
			time.Sleep(time.Second)
			synctest.Wait()
			b.report()
			ids[b.got[len(b.got)-1].env.ID]++
		})
	}
	if len(ids) != 3 {
		t.Errorf("IDs %v, want three different ones", ids)
	}
}

// A recipient that was given back each time, in a mixture, is delayed, not a success.
func TestDelayReportUntried(t *testing.T) {
	run(t, func(b *bench) { b.q.WarnAfter = time.Second }, func(b *bench) {
		answer := byLocal(map[string]error{"bob": &mailspine.NotNow{Reason: "secret rule"}, "cid": errBusy})
		b.answer = func(ctx context.Context, env *mailspine.Envelope) error {
			return answer(ctx, env)
		}
		b.send(envelope("m1", "bob@example.net", "cid@example.net"))
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		r := b.report()
		if got := actions(r); got != "bob delayed 4.0.0, cid delayed 4.2.1" {
			t.Errorf("reported: %s", got)
		}
		if d := r.Delivery.Recipients[0]; !d.LastAttempt.IsZero() {
			t.Errorf("an attempt at %v", d.LastAttempt)
		}
		if d := r.Delivery.Recipients[0].Diagnostic; !d.IsZero() || !strings.Contains(r.Text, "<bob@example.net>\n    There was no attempt yet") {
			t.Errorf("diagnostic %v, text:\n%s", d, r.Text)
		}
	})
}
