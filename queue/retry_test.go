package queue_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"pgregory.net/rapid"
)

func TestDefaultRetryTable(t *testing.T) {
	p := queue.DefaultRetry{Jitter: -1}
	var got []string
	var age time.Duration
	attempts := 0
	for {
		attempts++
		d, ok := p.Next(attempts, age, 0.99)
		if !ok {
			break
		}
		if attempts <= 8 {
			got = append(got, d.String())
		}
		age += d
	}
	if s := strings.Join(got, " "); s != "5m0s 10m0s 20m0s 30m0s 1h0m0s 2h0m0s 3h0m0s 3h0m0s" {
		t.Errorf("waits %s", s)
	}
	if age != queue.DefaultLifetime || attempts < 40 || attempts > 50 {
		t.Errorf("gives up after %v and %d attempts", age, attempts)
	}
}

func TestDefaultRetryProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := queue.DefaultRetry{
			Lifetime: time.Duration(rapid.Int64Range(0, int64(100*24*time.Hour)).Draw(t, "lifetime")),
			Jitter:   rapid.Float64Range(-1, 2).Draw(t, "jitter"),
		}
		for range rapid.IntRange(0, 3).Draw(t, "delays") {
			p.Delays = append(p.Delays, time.Duration(rapid.Int64Range(0, int64(48*time.Hour)).Draw(t, "delay")))
		}
		attempts := rapid.IntRange(-1, 1000).Draw(t, "attempts")
		age := time.Duration(rapid.Int64Range(0, int64(200*24*time.Hour)).Draw(t, "age"))
		life := p.Lifetime
		if life == 0 {
			life = queue.DefaultLifetime
		}
		random := rapid.Float64Range(0, 0.999).Draw(t, "random")
		d, ok := p.Next(attempts, age, random)
		if ok != (age < life) {
			t.Fatalf("at %v of %v: %v, %v", age, life, d, ok)
		}
		if ok && (d <= 0 || age+d > life) {
			t.Fatalf("waits %v at %v of %v", d, age, life)
		}
		if d2, ok2 := p.Next(attempts, age, random); d2 != d || ok2 != ok {
			t.Fatal("not a pure function")
		}
	})
}

func TestRetrySchedule(t *testing.T) {
	run(t, nil, func(b *bench) {
		n := 0
		b.answer = func(context.Context, *mailspine.Envelope) error {
			if n++; n < 5 {
				return errBusy
			}
			return nil
		}
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(24 * time.Hour)
		b.wantLog("0s ann, 5m0s ann, 15m0s ann, 35m0s ann, 1h5m0s ann")
		if c := b.q.Stats(); c.Delivered != 1 || c.Deferred != 4 || c.Queued != 1 || c.Running != 0 {
			t.Errorf("Stats: %+v", c)
		}
		if st := b.stats(); st != (queue.Stats{}) {
			t.Errorf("the store is not empty: %+v", st)
		}
	})
}

func TestJitter(t *testing.T) {
	random := 0.0
	run(t, func(b *bench) {
		b.q.Retry = nil
		b.q.Rand = func() float64 { random += 0.25; return random }
	}, func(b *bench) {
		b.answer = byLocal(map[string]error{"ann": errBusy})
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(30 * time.Minute)
		// 5 min * 0.9, 10 min * 1.0
		b.wantLog("0s ann, 4m30s ann, 14m30s ann")
	})
}

func TestExpiry(t *testing.T) {
	run(t, func(b *bench) {
		b.q.Retry = queue.DefaultRetry{Delays: []time.Duration{time.Hour}, Lifetime: 150 * time.Minute, Jitter: -1}
		b.q.WarnAfter = -1
	}, func(b *bench) {
		b.answer = func(ctx context.Context, _ *mailspine.Envelope) error {
			mailspine.AttemptFrom(ctx).Record(0, mailspine.Receipt{RemoteMTA: "mx.example.net", Reply: "450 4.2.1 Mailbox busy"})
			return errBusy
		}
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(24 * time.Hour)
		b.wantLog("0s ann, 1h0m0s ann, 2h0m0s ann, 2h30m0s ann, 2h30m0s sender report")
		r := b.report()
		if got := actions(r); got != "ann failed 5.4.7" {
			t.Errorf("reported: %s", got)
		}
		if d := r.Delivery.Recipients[0].Diagnostic; d.Type != "smtp" || !strings.Contains(d.Value, "expired") || !strings.Contains(d.Value, "450 4.2.1 Mailbox busy") {
			t.Errorf("Diagnostic-Code: %v", d)
		}
		if m := r.Delivery.Recipients[0].RemoteMTA.Value; m != "mx.example.net" {
			t.Errorf("Remote-MTA: %s", m)
		}
		if c := b.q.Stats(); c.Failed != 1 || c.Expired != 1 || c.Deferred != 3 || c.Reports != 1 {
			t.Errorf("Stats: %+v", c)
		}
	})
}

func TestUnknownErrorIsTemporaryAndSecret(t *testing.T) {
	run(t, func(b *bench) {
		b.q.Retry = queue.RetryFunc(func(attempts int, _ time.Duration, _ float64) (time.Duration, bool) { return time.Minute, attempts < 3 })
	}, func(b *bench) {
		b.answer = func(context.Context, *mailspine.Envelope) error { return errors.New("open /var/spool/secret: broken") }
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(time.Hour)
		b.wantLog("0s ann, 1m0s ann, 2m0s ann, 2m0s sender report")
		for _, d := range b.got {
			if strings.Contains(d.body, "secret") {
				t.Errorf("the cause of an unknown error is told to the sender:\n%s", d.body)
			}
		}
	})
}

func TestDeliverBy(t *testing.T) {
	run(t, func(b *bench) { b.q.WarnAfter = -1 }, func(b *bench) {
		env := envelope("m1", "ann@example.net")
		env.DeliverBy = mailspine.DeliverBy{Time: time.Now().Add(12 * time.Minute), Return: true}
		b.answer = byLocal(map[string]error{"ann": errBusy, "bob": errBusy})
		b.send(env)
		time.Sleep(24 * time.Hour)
		b.wantLog("0s ann, 5m0s ann, 12m0s ann, 12m0s sender report")
		if got := actions(b.report()); got != "ann failed 5.4.7" {
			t.Errorf("reported: %s", got)
		}
	})
	run(t, nil, func(b *bench) {
		env := envelope("m1", "ann@example.net")
		env.DeliverBy = mailspine.DeliverBy{Time: time.Now().Add(12 * time.Minute)}
		b.answer = byLocal(map[string]error{"ann": errBusy})
		b.send(env)
		time.Sleep(30 * time.Minute)
		// N: the sender is told, and it goes on (RFC 2852 section 4).
		b.wantLog("0s ann, 5m0s ann, 12m0s ann, 12m0s sender report")
		if got := actions(b.report()); got != "ann delayed 4.4.7" {
			t.Errorf("reported: %s", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := strings.Count(b.log(), "report"); n != 1 {
			t.Errorf("%d reports, want 1", n)
		}
	})
}
