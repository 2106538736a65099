package queue_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// bounce is a message from <>, as reports are.
func bounce(id string, rcpts ...string) *mailspine.Envelope {
	env := envelope(id, rcpts...)
	env.From = mailspine.Address{}
	for i := range env.Recipients {
		env.Recipients[i].Notify = mailspine.NotifyNever
	}
	return env
}

// A report that fails is told to the postmaster, though its NOTIFY is NEVER; what fails of that is dropped.
func TestPostmaster(t *testing.T) {
	run(t, func(b *bench) {
		b.q.Postmaster = addr("postmaster@example.org")
		b.q.Next = mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
			b.deliver(ctx, env, msg)
			return errUnknown
		})
	}, func(b *bench) {
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(200 * time.Hour)
		b.wantLog("0s ann, 0s sender report, 0s postmaster report")
		if got := b.got[2]; !strings.HasPrefix(string(got.env.ID), "dsn-pm-") {
			t.Errorf("the postmaster's has the ID %s", got.env.ID)
		}
		r := b.reports()[1]
		if got := actions(r); got != "sender failed 5.1.1" {
			t.Errorf("the postmaster is told %s", got)
		}
		if r.Full || !strings.Contains(string(r.Returned), "From: Mail Delivery System") {
			t.Errorf("returned: full %v, %s", r.Full, r.Returned)
		}
		if c := b.q.Stats(); c.Unreported != 1 || c.Reports != 2 || c.Failed != 3 || b.stats().Items != 0 {
			t.Errorf("Stats: %+v", c)
		}
	})
}

// Only failures are for the postmaster, and all of them.
func TestPostmasterOnlyFailures(t *testing.T) {
	run(t, func(b *bench) { b.q.Postmaster = addr("postmaster@example.org") }, func(b *bench) {
		b.answer = byLocal(map[string]error{"bob": errUnknown, "cid": errBusy})
		env := bounce("m1", "ann@example.net", "bob@example.net", "cid@example.net", "dan@example.net")
		env.Recipients[0].Notify = mailspine.NotifySuccess
		env.Recipients[2].Notify = mailspine.NotifySuccess | mailspine.NotifyDelay // no word of a failure
		env.DeliverBy = mailspine.DeliverBy{Time: time.Now().Add(time.Hour), Trace: true}
		b.send(env)
		time.Sleep(121 * time.Hour)
		synctest.Wait()
		var got []string
		for _, r := range b.reports() {
			got = append(got, actions(r))
		}
		if s := strings.Join(got, "; "); s != "bob failed 5.1.1; cid failed 5.4.7" {
			t.Errorf("told: %s", s)
		}
	})
}

// Many bounces that fail make one report each, also if their results are settled more than once.
func TestPostmasterStorm(t *testing.T) {
	n := 500
	if os.Getenv("MAILSPINE_SOAK") == "1" {
		n = 100_000
	}
	told := map[mailspine.MsgID]int{}
	f := &faulty{}
	run(t, func(b *bench) {
		b.store = memqueue.New(&memqueue.Options{MaxMessages: 2 * n, MaxBytes: 1 << 30})
		f.Store, b.q.Store = b.store, f
		lost := 0
		f.settle = func() error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if lost++; lost%10 == 0 && lost < n {
				return queue.ErrLeaseLost
			}
			return nil
		}
		b.q.Postmaster = addr("postmaster@example.org")
		b.q.Next = mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
			if env.Recipients[0].Address.Local == "postmaster" {
				b.mu.Lock()
				defer b.mu.Unlock()
				told[env.ID]++
				return nil
			}
			return errUnknown
		})
	}, func(b *bench) {
		for i := range n {
			b.send(bounce(fmt.Sprintf("m%d", i), "ann@example.net"))
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if len(told) != n || b.stats().Items != 0 {
			t.Errorf("%d reports, want %d; left %+v", len(told), n, b.stats())
		}
	})
}

// A report to the postmaster that is forwarded stays one, and starts no circle.
func TestPostmasterForwarded(t *testing.T) {
	run(t, func(b *bench) {
		b.q.Postmaster = addr("postmaster@example.org")
		b.q.Next = mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
			b.deliver(ctx, env, msg)
			if env.Recipients[0].Address.Local != "postmaster" {
				return errUnknown
			}
			env = env.Clone()
			env.Recipients[0].Address = addr("joe@example.com")
			return b.q.Deliver(ctx, env, msg)
		})
	}, func(b *bench) {
		b.send(bounce("m1", "ann@example.net"))
		time.Sleep(200 * time.Hour)
		b.wantLog("0s ann, 0s postmaster report, 0s joe report")
		if c := b.q.Stats(); c.Unreported != 1 || b.stats().Items != 0 {
			t.Errorf("Stats: %+v", c)
		}
	})
}

// by-trace (RFC 2852) asks for a report of each hand-over to another system.
func TestDeliverByTrace(t *testing.T) {
	for name, c := range map[string]struct {
		notify mailspine.Notify
		remote string
		trace  bool
		want   string
	}{
		"traced":       {0, "mx.example.net", true, "ann relayed 2.0.0"},
		"not traced":   {0, "mx.example.net", false, ""},
		"never":        {mailspine.NotifyNever, "mx.example.net", true, ""},
		"failure":      {mailspine.NotifyFailure, "mx.example.net", true, "ann relayed 2.0.0"},
		"into a store": {0, "", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(b *bench) {
				b.answer = func(ctx context.Context, _ *mailspine.Envelope) error {
					mailspine.AttemptFrom(ctx).Record(0, mailspine.Receipt{RemoteMTA: c.remote, DSNRelayed: true})
					return nil
				}
				env := envelope("m1", "ann@example.net")
				env.Recipients[0].Notify = c.notify
				env.DeliverBy = mailspine.DeliverBy{Time: time.Now().Add(time.Hour), Trace: c.trace}
				b.send(env)
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

// What the sender asked for besides stays with the message, and its priority with the report.
func TestPriorityIsKept(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.answer = byLocal(map[string]error{"ann": errUnknown})
		env := envelope("m1", "ann@example.net")
		env.Priority = -4
		env.EnvID, env.Ret = "x", mailspine.RetHdrs
		env.DeliverBy = mailspine.DeliverBy{Time: time.Now().Add(time.Hour), Return: true, Trace: true}
		b.send(env)
		synctest.Wait()
		if got := b.got[0].env; got.Priority != -4 || got.EnvID != "x" || got.Ret != mailspine.RetHdrs || !got.DeliverBy.Time.Equal(env.DeliverBy.Time) || !got.DeliverBy.Return || !got.DeliverBy.Trace {
			t.Errorf("Next got %+v", got)
		}
		if got := b.got[1].env; got.Priority != -4 || !got.DeliverBy.Time.IsZero() || got.EnvID != "" {
			t.Errorf("the report is %+v", got)
		}
	})
}
