package queue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

var ctx = context.Background()

// bare hides the optional interfaces of a store.
type bare struct{ queue.Store }

func TestOperatorUnsupported(t *testing.T) {
	q := &queue.Queue{Store: bare{memqueue.New(nil)}, Logger: slog.New(slog.DiscardHandler)}
	none := &queue.Queue{}
	for name, f := range map[string]func(q *queue.Queue) error{
		"List": func(q *queue.Queue) (err error) {
			for _, err = range q.List(ctx, queue.Filter{}) {
			}
			return err
		},
		"Breakdown": func(q *queue.Queue) (err error) {
			for _, err = range q.Breakdown(ctx) {
			}
			return err
		},
		"StoreStats": func(q *queue.Queue) error { _, err := q.StoreStats(ctx); return err },
		"Control": func(q *queue.Queue) error {
			_, err := q.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpFlush})
			return err
		},
		"Bounce": func(q *queue.Queue) error { _, err := q.Bounce(ctx, queue.Filter{}, nil); return err },
	} {
		if err := f(q); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v, want errors.ErrUnsupported", name, err)
		}
		if err := f(none); !errors.Is(err, queue.ErrNoStore) {
			t.Errorf("%s without a store: %v", name, err)
		}
	}
	if err := q.Health(ctx); !errors.Is(err, queue.ErrNotRunning) {
		t.Errorf("Health: %v", err)
	}
	if err := none.Health(ctx); !errors.Is(err, queue.ErrNoStore) {
		t.Errorf("Health without a store: %v", err)
	}
}

type ill struct{ queue.Store }

var errIll = errors.New("the disk is ill")

func (ill) Health(context.Context) error { return errIll }

func TestHealth(t *testing.T) {
	run(t, nil, func(b *bench) {
		synctest.Wait()
		if err := b.q.Health(ctx); err != nil {
			t.Errorf("Health of a running queue: %v", err)
		}
		b.stop()
		if err := b.q.Health(ctx); !errors.Is(err, queue.ErrNotRunning) {
			t.Errorf("Health after Run: %v", err)
		}
		b.q.Store = ill{b.store}
		if err := b.q.Health(ctx); !errors.Is(err, queue.ErrNotRunning) || !errors.Is(err, errIll) {
			t.Errorf("Health of an ill store: %v", err)
		}
	})
}

func TestOperatorRefuses(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.answer = byLocal(map[string]error{"ann": errBusy})
		b.send(envelope("m1", "ann@example.net"))
		synctest.Wait()
		before := b.stats()
		for _, c := range []struct {
			f   queue.Filter
			c   queue.Command
			err error
		}{
			{queue.Filter{Sender: "no address"}, queue.Command{Op: queue.OpDelete}, queue.ErrBadFilter},
			{queue.Filter{}, queue.Command{}, queue.ErrBadCommand},
			{queue.Filter{}, queue.Command{Op: queue.OpHold}, queue.ErrBadCommand},
		} {
			if done, err := b.q.Control(ctx, c.f, c.c); !errors.Is(err, c.err) || done != (queue.Changed{}) {
				t.Errorf("Control(%+v, %+v): %+v, %v", c.f, c.c, done, err)
			}
		}
		if _, err := b.q.Bounce(ctx, queue.Filter{}, errBusy); !errors.Is(err, queue.ErrBadCommand) {
			t.Errorf("Bounce with a temporary status: %v", err)
		}
		if _, err := b.q.Bounce(ctx, queue.Filter{MinAge: -1}, nil); !errors.Is(err, queue.ErrBadFilter) {
			t.Errorf("Bounce with a bad filter: %v", err)
		}
		if after := b.stats(); after != before {
			t.Errorf("%+v became %+v", before, after)
		}
	})
}

// The loop looks at once at what an operator made due.
func TestControlWakes(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.answer = byLocal(map[string]error{"ann": errBusy, "bob": errBusy})
		b.send(envelope("m1", "ann@example.net"))
		b.send(envelope("m2", "bob@example.com"))
		synctest.Wait()
		b.setAnswer(nil)
		time.Sleep(time.Minute)
		for _, c := range []struct {
			f    queue.Filter
			c    queue.Command
			want queue.Changed
		}{
			{queue.Filter{ID: "m1"}, queue.Command{Op: queue.OpHold, Reason: "wait"}, queue.Changed{Matched: 1, Changed: 1}},
			{queue.Filter{}, queue.Command{Op: queue.OpFlush}, queue.Changed{Matched: 2, Changed: 1}},
		} {
			if got, err := b.q.Control(ctx, c.f, c.c); err != nil || got != c.want {
				t.Errorf("%s: %+v, %v, want %+v", c.c.Op, got, err, c.want)
			}
			synctest.Wait()
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		for it, err := range b.q.List(ctx, queue.Filter{}) {
			if err != nil || it.Message != "m1" || it.State != queue.ItemHeld || it.Reason != "wait" {
				t.Errorf("List has %+v, %v", it, err)
			}
		}
		if _, err := b.q.Control(ctx, queue.Filter{State: queue.ItemHeld}, queue.Command{Op: queue.OpRelease}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := strings.Replace(b.log(), "0s bob, 0s ann", "0s ann, 0s bob", 1); got != "0s ann, 0s bob, 1m0s bob, 1h1m0s ann" {
			t.Errorf("Next got %s", got)
		}
		if st, err := b.q.StoreStats(ctx); err != nil || st.Items != 0 {
			t.Errorf("StoreStats: %+v, %v", st, err)
		}
	})
}

// A flush makes the queue ask the Gate again, which would not have been asked for hours.
func TestFlushAsksTheGate(t *testing.T) {
	for _, f := range []queue.Filter{{}, {Route: "example.net"}} {
		var open atomic.Bool
		run(t, func(b *bench) {
			b.q.Gate = queue.GateFunc(func(context.Context, queue.Route) (queue.Hold, error) {
				if open.Load() {
					return queue.Hold{}, nil
				}
				return queue.Hold{Until: time.Now().Add(3 * time.Hour), Reason: "closed"}, nil
			})
		}, func(b *bench) {
			b.send(envelope("m1", "ann@example.net"))
			synctest.Wait()
			b.send(envelope("m2", "bob@example.net")) // not even leased
			open.Store(true)
			time.Sleep(time.Minute)
			b.wantLog("")
			if _, err := b.q.Control(ctx, f, queue.Command{Op: queue.OpFlush}); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			if got := b.log(); got != "1m0s ann, 1m0s bob" && got != "1m0s bob, 1m0s ann" {
				t.Errorf("Next got %s", got)
			}
		})
	}
}

func TestReroute(t *testing.T) {
	var by atomic.Value
	by.Store("one")
	run(t, func(b *bench) {
		b.q.Router = queue.RouterFunc(func(_ context.Context, _ *mailspine.Envelope, r mailspine.Recipient) (queue.Route, error) {
			switch {
			case by.Load() == "one":
				return "one", nil
			case by.Load() == "bug":
				panic("bug")
			case r.Address.Local == "lost":
				return "", errUnknown
			case r.Address.Local == "stays":
				return "one", nil
			}
			return queue.Route("two/" + r.Address.Local), nil
		})
	}, func(b *bench) {
		b.answer = func(context.Context, *mailspine.Envelope) error { return errBusy }
		b.send(envelope("m1", "lost@example.net", "ann@example.net", "bob@example.net"))
		b.send(envelope("m2", "lost@example.net"))
		b.send(envelope("m3", "stays@example.net"))
		synctest.Wait()
		by.Store("two")
		done, err := b.q.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpReroute})
		if !errors.Is(err, errUnknown) || done != (queue.Changed{Matched: 3, Changed: 1}) {
			t.Errorf("reroute: %+v, %v", done, err)
		}
		by.Store("bug")
		if done, err := b.q.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpReroute}); err == nil || done != (queue.Changed{Matched: 3}) {
			t.Errorf("reroute with a Router that panics: %+v, %v", done, err)
		}
		if done, err := b.q.Control(ctx, queue.Filter{ID: "m3"}, queue.Command{Op: queue.OpReroute, Route: "three"}); err != nil || done.Changed != 1 {
			t.Errorf("reroute to a route: %+v, %v", done, err)
		}
		var routes []string
		for it := range b.q.List(ctx, queue.Filter{}) {
			routes = append(routes, fmt.Sprint(it.Message, " ", it.Route))
		}
		slices.Sort(routes)
		if got := strings.Join(routes, ", "); got != "m1 two/ann, m2 one, m3 three" {
			t.Errorf("routes %s", got)
		}
	})
}

// Bounce is a failure as any other, whatever the items wait for.
func TestBounce(t *testing.T) {
	var outcomes []string
	var failed atomic.Int64
	run(t, func(b *bench) {
		b.q.Postmaster = addr("postmaster@example.org")
		b.q.Outcomes = mailspine.OutcomeSinkFunc(func(_ context.Context, o mailspine.Outcome) {
			if o.Event == mailspine.EventFailed {
				b.mu.Lock()
				defer b.mu.Unlock()
				outcomes = append(outcomes, fmt.Sprintf("%s %s %d %v", o.Recipient.Local, o.Status.Enhanced, o.Attempt, o.First))
			}
		})
		b.q.Trace = &queue.Trace{Failed: func(context.Context, queue.ResultInfo) { failed.Add(1) }}
	}, func(b *bench) {
		busy := make(chan struct{})
		b.answer = func(_ context.Context, env *mailspine.Envelope) error {
			if env.Recipients[0].Address.Local == "busy" {
				<-busy
				return nil
			}
			return errBusy
		}
		b.send(envelope("m1", "waits@example.net")) // tried once
		held := envelope("m2", "held@example.net", "never@example.net")
		held.Recipients[1].Notify = mailspine.NotifyNever
		b.send(held)
		later := envelope("m3", "later@example.com")
		later.HoldUntil = time.Now().Add(time.Hour)
		b.send(later)
		null := envelope("m4", "null@example.net")
		null.From = mailspine.Address{}
		null.Recipients[0].Notify = mailspine.NotifyNever
		b.send(null)
		b.send(envelope("m5", "busy@example.edu"))
		synctest.Wait()
		if _, err := b.q.Control(ctx, queue.Filter{ID: "m2"}, queue.Command{Op: queue.OpHold, Reason: "look at it"}); err != nil {
			t.Fatal(err)
		}
		done, err := b.q.Bounce(ctx, queue.Filter{}, mailspine.Errorf(554, "5.7.1", "We do not send this").WithCause(errors.New("secret")))
		if want := (queue.Changed{Matched: 5, Changed: 4, Leased: 1}); err != nil || done != want {
			t.Errorf("Bounce: %+v, %v, want %+v", done, err, want)
		}
		close(busy)
		synctest.Wait()
		if st := b.stats(); st.Items != 0 {
			t.Errorf("left: %+v", st)
		}
		var got []string
		for _, r := range b.reports() {
			got = append(got, actions(r))
			if strings.Contains(r.Text, "secret") || !strings.Contains(r.Text, "554 5.7.1 We do not send this") {
				t.Errorf("a report says\n%s", r.Text)
			}
			if d := r.Delivery.Recipients[0].LastAttempt; !d.IsZero() {
				t.Errorf("Last-Attempt-Date %v", d)
			}
		}
		slices.Sort(got)
		if s := strings.Join(got, ", "); s != "held failed 5.7.1, later failed 5.7.1, null failed 5.7.1, waits failed 5.7.1" {
			t.Errorf("reports: %s", s)
		}
		slices.Sort(outcomes)
		// No attempt was made: those that were tried have their last one.
		if s := strings.Join(outcomes, ", "); s != "held 5.7.1 1 false, later 5.7.1 0 false, never 5.7.1 1 false, null 5.7.1 1 false, waits 5.7.1 1 false" {
			t.Errorf("outcomes: %s", s)
		}
		if c := b.q.Stats(); c.Failed != 5 || failed.Load() != 5 || c.Reports != 4 || c.Unreported != 0 || c.Expired != 0 {
			t.Errorf("Stats: %+v, trace %d", c, failed.Load())
		}
	})
}

// Bounce ends although its reports match too, works without Run, and stops with its context.
func TestBounceAll(t *testing.T) {
	for name, store := range map[string]func() queue.Store{
		"snapshot":  func() queue.Store { return memqueue.New(nil) },
		"live list": func() queue.Store { return newNaive() }, // reports are listed while they come
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &bench{T: t, store: store()}
				b.q = &queue.Queue{Store: b.store, Hostname: "mx.example.org", Logger: slog.New(slog.DiscardHandler)}
				defer b.store.Close()
				const n = 500
				for range n {
					b.send(envelope("", "ann@example.net"))
				}
				over, cancel := context.WithCancel(ctx)
				cancel()
				if done, err := b.q.Bounce(over, queue.Filter{}, nil); !errors.Is(err, context.Canceled) || done.Changed > 50 {
					t.Errorf("Bounce with a context that is over: %+v, %v", done, err)
				}
				done, err := b.q.Bounce(ctx, queue.Filter{}, nil)
				if err != nil || done.Changed < n-50 || done.Changed > n {
					t.Errorf("Bounce: %+v, %v", done, err)
				}
				if st := b.stats(); st.Items != n || st.Leased != 0 { // the reports
					t.Errorf("left: %+v", st)
				}
			})
		})
	}
}

// A store that fails ends a Bounce, and what was not recorded is still there.
func TestBounceFails(t *testing.T) {
	f := &faulty{}
	run(t, func(b *bench) {
		f.Store, b.q.Store = b.store, f
		b.q.Gate = queue.GateFunc(func(context.Context, queue.Route) (queue.Hold, error) {
			return queue.Hold{Until: b.start.Add(time.Hour)}, nil
		})
	}, func(b *bench) {
		const n = 100
		for range n {
			b.send(envelope("", "ann@example.net"))
		}
		synctest.Wait()
		left := 10
		f.mu.Lock()
		f.settle = func() error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if left--; left < 0 {
				return errIll
			}
			return nil
		}
		f.mu.Unlock()
		done, err := b.q.Bounce(ctx, queue.Filter{}, nil)
		if !errors.Is(err, errIll) || done.Changed != 10 {
			t.Errorf("Bounce: %+v, %v", done, err)
		}
		if st := b.stats(); st.Items != n || st.Leased != 0 { // ten are reports by now
			t.Errorf("left: %+v", st)
		}
		if c := b.q.Stats(); c.Failed != 10 || c.Reports != 10 {
			t.Errorf("Stats: %+v", c)
		}
	})
}

func byTwo(_ context.Context, _ *mailspine.Envelope, r mailspine.Recipient) (queue.Route, error) {
	return "two/" + queue.DomainRoute(r), nil
}
