package queue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

const day = 24 * time.Hour

// What is only held is told of and expires in time, not when the hold ends.
func TestHeldIsToldOf(t *testing.T) {
	shut := func(b *bench) {
		b.q.Gate = queue.GateFunc(func(_ context.Context, r queue.Route) (queue.Hold, error) {
			if r == "example.org" {
				return queue.Hold{}, nil
			}
			return queue.Hold{Until: b.start.Add(30 * day), Reason: "secret rule"}, nil
		})
	}
	busyThenShut := func(b *bench) {
		tried := false
		b.q.Gate = queue.GateFunc(func(_ context.Context, r queue.Route) (queue.Hold, error) {
			if r == "example.org" || !tried {
				tried = tried || r == "example.net"
				return queue.Hold{}, nil
			}
			return queue.Hold{Until: b.start.Add(30 * day), Reason: "secret rule"}, nil
		})
		b.answer = byLocal(map[string]error{"ann": errBusy})
	}
	notNow := func(b *bench) {
		b.answer = func(context.Context, *mailspine.Envelope) error {
			return &mailspine.NotNow{Until: b.start.Add(30 * day), Reason: "secret rule"}
		}
	}
	mixed := func(b *bench) {
		b.answer = byLocal(map[string]error{"ann": &mailspine.NotNow{Until: b.start.Add(30 * day), Reason: "secret rule"}})
	}
	for name, c := range map[string]struct {
		setup func(b *bench)
		env   func(env *mailspine.Envelope, start time.Time)
		log   string
		tell  string
	}{
		"gate": {shut, nil, "4h0m0s sender report, 120h0m0s sender report", "ann delayed 4.0.0, ann failed 5.4.7"},
		"next": {notNow, nil, "0s ann, 4h0m0s ann, 4h0m0s sender report, 120h0m0s ann, 120h0m0s sender report", "ann delayed 4.0.0, ann failed 5.4.7"},
		"in a part": {mixed, func(e *mailspine.Envelope, _ time.Time) {
			e.Recipients = envelope("", "ann@example.net", "bob@example.net").Recipients
		}, "0s ann+bob, 4h0m0s ann, 4h0m0s sender report, 120h0m0s ann, 120h0m0s sender report", "ann delayed 4.0.0, ann failed 5.4.7"},
		"refused before": {busyThenShut, nil, "0s ann, 4h0m0s sender report, 120h0m0s sender report",
			"ann delayed 4.2.1, ann failed 5.4.7"},
		"own policy": {func(b *bench) {
			shut(b)
			b.q.Retry = queue.RetryFunc(func(_ int, age time.Duration, _ float64) (time.Duration, bool) { return time.Hour, age < 50*time.Hour })
		}, nil, "4h0m0s sender report, 50h0m0s sender report", "ann delayed 4.0.0, ann failed 5.4.7"},
		"no warnings": {func(b *bench) { shut(b); b.q.WarnAfter = -1 }, nil, "120h0m0s sender report", "ann failed 5.4.7"},
		"never":       {shut, func(e *mailspine.Envelope, _ time.Time) { e.Recipients[0].Notify = mailspine.NotifyNever }, "", ""},
		"failure only": {shut, func(e *mailspine.Envelope, _ time.Time) { e.Recipients[0].Notify = mailspine.NotifyFailure },
			"120h0m0s sender report", "ann failed 5.4.7"},
		"deliver by, or return": {shut, func(e *mailspine.Envelope, start time.Time) {
			e.DeliverBy = mailspine.DeliverBy{Time: start.Add(time.Hour), Return: true}
		}, "1h0m0s sender report", "ann failed 5.4.7"},
		"deliver by, or notify": {shut, func(e *mailspine.Envelope, start time.Time) {
			e.DeliverBy = mailspine.DeliverBy{Time: start.Add(time.Hour)}
		}, "1h0m0s sender report, 120h0m0s sender report", "ann delayed 4.4.7, ann failed 5.4.7"},
		"deliver by, or notify, without other warnings": {func(b *bench) { shut(b); b.q.WarnAfter = -1 }, func(e *mailspine.Envelope, start time.Time) {
			e.DeliverBy = mailspine.DeliverBy{Time: start.Add(time.Hour)}
		}, "1h0m0s sender report, 120h0m0s sender report", "ann delayed 4.4.7, ann failed 5.4.7"},
		// HOLDUNTIL does not count against the lifetime.
		"hold until": {shut, func(e *mailspine.Envelope, start time.Time) { e.HoldUntil = start.Add(10 * day) },
			"244h0m0s sender report, 360h0m0s sender report", "ann delayed 4.0.0, ann failed 5.4.7"},
		"hold until after deliver by": {shut, func(e *mailspine.Envelope, start time.Time) {
			e.HoldUntil, e.DeliverBy = start.Add(10*day), mailspine.DeliverBy{Time: start.Add(day), Return: true}
		}, "24h0m0s sender report", "ann failed 5.4.7"},
		"hold until after notify by": {shut, func(e *mailspine.Envelope, start time.Time) {
			e.HoldUntil, e.DeliverBy = start.Add(10*day), mailspine.DeliverBy{Time: start.Add(day)}
		}, "24h0m0s sender report, 360h0m0s sender report", "ann delayed 4.4.7, ann failed 5.4.7"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, c.setup, func(b *bench) {
				env := envelope("m1", "ann@example.net")
				if c.env != nil {
					c.env(env, b.start)
				}
				b.send(env)
				// Who asks why it waits is told, after the sender was told of the delay too.
				time.Sleep(4*time.Hour + time.Minute)
				if it, ok := items(t, b.store)["example.net: ann"]; ok && it.Reason == "" && env.HoldUntil.IsZero() {
					t.Errorf("there is no reason: %+v", it)
				}
				time.Sleep(40 * day)
				b.wantLog(c.log)
				var told []string
				for i, r := range b.reports() {
					told = append(told, actions(r))
					if strings.Contains(r.Text, "secret") {
						t.Errorf("the rule is told to the sender:\n%s", r.Text)
					}
					if !strings.Contains(r.Text, "no attempt") && name != "refused before" && name != "next" {
						t.Errorf("report %d does not say that there was no attempt:\n%s", i, r.Text)
					}
				}
				if got := strings.Join(told, ", "); got != c.tell {
					t.Errorf("told: %s, want %s", got, c.tell)
				}
				if st := b.stats(); st.Items != 0 {
					t.Errorf("left in the store: %+v", st)
				}
			})
		})
	}
}

// A queue behind a closed gate is looked at, though it is not leased all the time: no item is told of
// more than a quarter of an hour late, and the gate is asked a few times for each.
func TestHeldBacklog(t *testing.T) {
	for name, hold := range map[string]time.Duration{"long": 30 * day, "short": time.Minute, "failing": 0} {
		t.Run(name, func(t *testing.T) {
			const n = 100
			asked, said := 0, &counting{}
			run(t, func(b *bench) {
				b.q.Logger = slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelError}))
				b.q.PerRoute = 4
				b.q.Retry = queue.DefaultRetry{Lifetime: 12 * time.Hour}
				b.q.Gate = queue.GateFunc(func(_ context.Context, r queue.Route) (queue.Hold, error) {
					if r == "example.org" {
						return queue.Hold{}, nil
					}
					b.mu.Lock()
					defer b.mu.Unlock()
					asked++
					if hold == 0 {
						return queue.Hold{}, errors.New("the limiter is away")
					}
					return queue.Hold{Until: time.Now().Add(hold), Reason: "closed"}, nil
				})
			}, func(b *bench) {
				for i := range n {
					b.send(envelope(fmt.Sprintf("m%d", i), "ann@example.net"))
				}
				synctest.Wait()
				if asked > 4 {
					t.Errorf("the gate was asked %d times at once", asked)
				}
				if c := b.q.Stats(); c.HeldRoutes != 1 {
					t.Errorf("Stats: %+v", c)
				}
				time.Sleep(4*time.Hour + lookEvery + time.Second)
				synctest.Wait()
				if got := b.q.Stats().Reports; got != n {
					t.Errorf("%d senders were told of the delay, want %d", got, n)
				}
				time.Sleep(8 * time.Hour)
				synctest.Wait()
				if c := b.q.Stats(); c.Expired != n || b.stats().Items != 0 {
					t.Errorf("Stats: %+v; %+v", c, b.stats())
				}
				// Once in each look, or each hold if that is longer, and for the two reports; and a few when each hold ends.
				most := n * 5
				if hold <= time.Minute {
					most = n*int(12*time.Hour/lookEvery+5) + 4*int(12*time.Hour/time.Minute)
				}
				// A gate that fails does so for a minute at a time, and is told of once then.
				if got := said.n.Load(); hold != 0 && got != 0 || hold == 0 && (got < 100 || got > 12*60+5) {
					t.Errorf("%d lines in the log", got)
				}
				if asked > most {
					t.Errorf("the gate was asked %d times, want at most %d", asked, most)
				}
			})
		})
	}
}

// lookEvery is how late what is held may be told of.
const lookEvery = 15 * time.Minute

// counting counts what is written.
type counting struct{ n atomic.Int64 }

func (c *counting) Write(b []byte) (int, error) {
	c.n.Add(1)
	return len(b), nil
}
