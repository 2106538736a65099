package queue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

func TestNotNow(t *testing.T) {
	run(t, nil, func(b *bench) {
		n := 0
		b.answer = func(context.Context, *mailspine.Envelope) error {
			switch n++; n {
			case 1, 2:
				return fmt.Errorf("wrapped: %w", &mailspine.NotNow{Until: time.Now().Add(time.Hour), Reason: "daily cap reached", Rule: "cap"})
			case 3:
				return &mailspine.NotNow{}
			case 4:
				return errBusy
			}
			return nil
		}
		b.send(envelope("m1", "ann@example.net", "bob@example.net"))
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, it := range items(t, b.store) {
			if it.Reason != "daily cap reached (cap)" || it.Attempts != 0 {
				t.Errorf("the store shows reason %q and %d attempts", it.Reason, it.Attempts)
			}
		}
		time.Sleep(24 * time.Hour)
		// No attempt was counted: the first wait of the policy is that of a first attempt.
		b.wantLog("0s ann+bob, 1h0m0s ann+bob, 2h0m0s ann+bob, 2h1m0s ann+bob, 2h6m0s ann+bob")
		if c := b.q.Stats(); c.Held != 3 || c.Deferred != 2 || c.Delivered != 2 {
			t.Errorf("Stats: %+v", c)
		}
	})
}

// An *Error that has a NotNow for its cause is a refusal.
func TestNotNowInsideError(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.answer = func(context.Context, *mailspine.Envelope) error {
			return errUnknown.WithCause(&mailspine.NotNow{})
		}
		b.send(envelope("m1", "ann@example.net"))
		b.wantLog("0s ann, 0s sender report")
	})
}

func TestNotNowMixed(t *testing.T) {
	nn := &mailspine.NotNow{Until: time.Time{}, Reason: "warm-up"}
	run(t, nil, func(b *bench) {
		b.answer = byLocal(map[string]error{"bob": nn, "cid": errUnknown, "dan": errBusy})
		b.send(envelope("m1", "ann@example.net", "bob@example.net", "cid@example.net", "dan@example.net"))
		synctest.Wait()
		it := items(t, b.store)["example.net: bob dan"]
		if it.Attempts != 1 || len(it.States) != 2 || it.States[0].Last.Status != nil || it.States[1].Last.Status == nil || it.Due != 5*time.Minute {
			t.Errorf("after a mixture: %+v", it)
		}
		// Without a refusal, NotNow decides when.
		b.setAnswer(byLocal(map[string]error{"bob": &mailspine.NotNow{Until: time.Now().Add(40 * time.Minute)}}))
		time.Sleep(40*time.Minute + 1500*time.Millisecond)
		// An Until that has passed does not make it spin.
		b.wantLog("0s ann+bob+cid+dan, 0s sender report, 5m0s bob+dan, 40m0s bob, 40m1s bob")
		if c := b.q.Stats(); c.Delivered != 3 || c.Failed != 1 || c.Deferred != 1 || c.Held != 2 { // one of them is the report
			t.Errorf("Stats: %+v", c)
		}
	})
}

// What is never tried expires like the rest.
func TestNotNowExpires(t *testing.T) {
	run(t, func(b *bench) {
		b.q.Retry = queue.DefaultRetry{Lifetime: 3 * time.Hour}
	}, func(b *bench) {
		b.answer = func(context.Context, *mailspine.Envelope) error {
			return &mailspine.NotNow{Until: time.Now().Add(time.Hour), Reason: "secret rule"}
		}
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(24 * time.Hour)
		b.wantLog("0s ann, 1h0m0s ann, 2h0m0s ann, 3h0m0s ann, 3h0m0s sender report")
		if got := actions(b.report()); got != "ann failed 5.4.7" {
			t.Errorf("reported: %s", got)
		}
		if s := b.got[len(b.got)-1].body; strings.Contains(s, "secret rule") {
			t.Errorf("the rule is told to the sender:\n%s", s)
		}
	})
}

func TestGate(t *testing.T) {
	var asked atomic.Int64
	var closed atomic.Bool
	closed.Store(true)
	run(t, func(b *bench) {
		b.q.Gate = queue.GateFunc(func(_ context.Context, r queue.Route) (queue.Hold, error) {
			asked.Add(1)
			switch {
			case r == "held.example" && time.Since(b.start) < 2*time.Hour:
				return queue.Hold{Until: b.start.Add(2 * time.Hour), Reason: "night", Rule: "n"}, nil
			case r == "vague.example" && closed.Load():
				return queue.Hold{Reason: "no idea"}, nil
			case r == "broken.example" && closed.Load():
				return queue.Hold{}, errors.New("limiter is away")
			case r == "past.example":
				return queue.Hold{Until: time.Now().Add(-time.Hour), Reason: "it is over"}, nil
			}
			return queue.Hold{}, nil
		})
	}, func(b *bench) {
		b.send(envelope("m1", "ann@held.example"))
		b.send(envelope("m2", "bob@vague.example"))
		b.send(envelope("m3", "cid@broken.example"))
		b.send(envelope("m4", "dan@past.example"))
		b.send(envelope("m5", "eve@free.example"))
		synctest.Wait()
		if c := b.q.Stats(); c.HeldRoutes != 3 || c.Held != 3 {
			t.Errorf("Stats: %+v, want 3 routes held", c)
		}
		for range 20 { // they are not even leased
			b.send(envelope("", "fay@held.example"))
		}
		synctest.Wait()
		if n := asked.Load(); n != 5 {
			t.Errorf("the gate was asked %d times, want 5", n)
		}
		time.Sleep(30 * time.Second)
		closed.Store(false)
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if got := b.log(); got != "0s dan, 0s eve, 1m0s bob, 1m0s cid" && got != "0s dan, 0s eve, 1m0s cid, 1m0s bob" && got != "0s eve, 0s dan, 1m0s bob, 1m0s cid" && got != "0s eve, 0s dan, 1m0s cid, 1m0s bob" {
			t.Errorf("Next got %s", got)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := len(b.got); n != 25 {
			t.Errorf("Next got %d, want all 25: %s", n, b.log())
		}
	})
}

func TestGateExpires(t *testing.T) {
	run(t, func(b *bench) {
		b.q.Retry = queue.DefaultRetry{Lifetime: 3 * time.Hour}
		b.q.Gate = queue.GateFunc(func(_ context.Context, r queue.Route) (queue.Hold, error) {
			if r == "example.org" {
				return queue.Hold{}, nil
			}
			return queue.Hold{Until: time.Now().Add(2 * time.Hour), Reason: "closed"}, nil
		})
	}, func(b *bench) {
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(24 * time.Hour)
		b.wantLog("3h0m0s sender report") // not when the hold ends, an hour later
	})
}

func TestRouterAskedAgain(t *testing.T) {
	var moved atomic.Bool
	run(t, func(b *bench) {
		b.q.Router = queue.RouterFunc(func(_ context.Context, _ *mailspine.Envelope, r mailspine.Recipient) (queue.Route, error) {
			if moved.Load() {
				switch r.Address.Local {
				case "gone":
					return "", mailspine.Errorf(550, "5.1.2", "No route any more")
				case "unsure":
					return "", errors.New("lookup failed")
				case "moved":
					return "elsewhere", nil
				}
			}
			return "pool", nil
		})
	}, func(b *bench) {
		env := envelope("m1", "gone@a.example", "stays@b.example", "unsure@c.example", "moved@d.example")
		env.HoldUntil = time.Now().Add(time.Hour)
		b.answer = func(ctx context.Context, env *mailspine.Envelope) error {
			// Indices are those of the part: the receipt must land at its recipient.
			mailspine.AttemptFrom(ctx).Record(0, mailspine.Receipt{RemoteMTA: "mx.b.example"})
			return byLocal(map[string]error{"stays": errUnknown})(ctx, env)
		}
		b.send(env)
		moved.Store(true)
		time.Sleep(time.Hour + time.Second)
		b.wantLog("1h0m0s stays+moved, 1h0m0s sender report")
		r := b.report()
		if got := actions(r); got != "gone failed 5.1.2, stays failed 5.1.1" {
			t.Errorf("reported: %s", got)
		}
		if m := r.Delivery.Recipients; m[0].RemoteMTA.Value != "" || m[1].RemoteMTA.Value != "mx.b.example" {
			t.Errorf("Remote-MTA %v and %v", m[0].RemoteMTA, m[1].RemoteMTA)
		}
		if it := items(t, b.store)["pool: unsure"]; it.Attempts != 1 || it.States[0].Index != 2 {
			t.Errorf("left: %v", items(t, b.store))
		}
	})
}

// Whatever is plugged in may panic, or end its goroutine: the process lives, and the
// message is not lost.
func TestPanics(t *testing.T) {
	for name, setup := range map[string]func(b *bench, once func() bool){
		"Next": func(b *bench, once func() bool) {
			b.answer = func(context.Context, *mailspine.Envelope) error {
				if once() {
					panic("bug")
				}
				return nil
			}
		},
		"Gate": func(b *bench, once func() bool) {
			b.q.Gate = queue.GateFunc(func(context.Context, queue.Route) (queue.Hold, error) {
				if once() {
					panic("bug")
				}
				return queue.Hold{}, nil
			})
		},
		"Router": func(b *bench, once func() bool) {
			n := 0
			b.q.Router = queue.RouterFunc(func(context.Context, *mailspine.Envelope, mailspine.Recipient) (queue.Route, error) {
				if n++; n > 1 && once() {
					panic("bug")
				}
				return "r", nil
			})
		},
		"Trace.Leased": func(b *bench, once func() bool) {
			b.q.Trace = &queue.Trace{Leased: func(context.Context, queue.AttemptInfo) {
				if once() {
					panic("bug")
				}
			}}
		},
		"Retry": func(b *bench, once func() bool) {
			b.answer = func(context.Context, *mailspine.Envelope) error {
				if once() {
					return errBusy
				}
				return nil
			}
			b.q.Retry = queue.RetryFunc(func(int, time.Duration, float64) (time.Duration, bool) { panic("bug") })
		},
		"Classifier": func(b *bench, once func() bool) {
			b.answer = func(context.Context, *mailspine.Envelope) error {
				if once() {
					return errBusy
				}
				return nil
			}
			b.q.Classifier = classifierFunc(func(*mailspine.Error, mailspine.Receipt) mailspine.Cause { panic("bug") })
		},
		"Outcomes": func(b *bench, once func() bool) {
			b.q.Outcomes = mailspine.OutcomeSinkFunc(func(context.Context, mailspine.Outcome) {
				if once() {
					panic("bug")
				}
			})
		},
		"Goexit": func(b *bench, once func() bool) {
			b.answer = func(context.Context, *mailspine.Envelope) error {
				if once() {
					exit()
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var fired atomic.Bool
			run(t, func(b *bench) {
				setup(b, func() bool { return fired.CompareAndSwap(false, true) })
			}, func(b *bench) {
				b.send(envelope("m1", "ann@example.net"))
				time.Sleep(time.Hour)
				synctest.Wait()
				if st := b.stats(); st.Items != 0 || !fired.Load() {
					t.Errorf("left in the store %+v, fired %v; Next got %s", st, fired.Load(), b.log())
				}
				if want := 2; name != "Goexit" && (b.q.Stats().Panics == 0 || len(b.got) > want) {
					t.Errorf("Stats %+v, Next got %s", b.q.Stats(), b.log())
				}
				// It works as before.
				b.send(envelope("m2", "bob@example.net"))
				synctest.Wait()
				if !strings.HasSuffix(b.log(), "bob") || b.q.Stats().Running != 0 {
					t.Errorf("afterwards, Next got %s; %+v", b.log(), b.q.Stats())
				}
			})
		})
	}
}

type classifierFunc func(*mailspine.Error, mailspine.Receipt) mailspine.Cause

func (f classifierFunc) Classify(st *mailspine.Error, r mailspine.Receipt) mailspine.Cause {
	return f(st, r)
}

func TestConcurrency(t *testing.T) {
	var mu sync.Mutex
	now, most := map[queue.Route]int{}, map[queue.Route]int{}
	run(t, func(b *bench) {
		b.q.Concurrency, b.q.PerRoute = 10, 3
	}, func(b *bench) {
		b.answer = func(_ context.Context, env *mailspine.Envelope) error {
			r := queue.Route(env.Recipients[0].Address.Domain)
			mu.Lock()
			for _, k := range []queue.Route{r, "all"} {
				now[k]++
				most[k] = max(most[k], now[k])
			}
			mu.Unlock()
			time.Sleep(time.Minute)
			mu.Lock()
			now[r]--
			now["all"]--
			mu.Unlock()
			return nil
		}
		for range 20 {
			b.send(envelope("", "a@hog.example"))
		}
		for i := range 5 {
			b.send(envelope("", fmt.Sprintf("b@d%d.example", i)))
			b.send(envelope("", fmt.Sprintf("b@d%d.example", i)))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(b.got); n != 30 {
			t.Fatalf("%d deliveries, want 30", n)
		}
		if most["all"] != 10 || most["hog.example"] != 3 {
			t.Errorf("at most %d at a time, %d for one route; want 10 and 3", most["all"], most["hog.example"])
		}
		// 20 for one route, three at a time: seven rounds, and the others beside it.
		if last := b.got[29].at; last != 6*time.Minute {
			t.Errorf("the last began at %v, want 6m", last)
		}
		if c := b.q.Stats(); c.Held != 0 {
			t.Errorf("Stats %+v: items were leased only to be given back", c)
		}
	})
}

// A store that is no Waiter is polled.
func TestPoll(t *testing.T) {
	run(t, func(b *bench) {
		b.q.Store = struct{ queue.Store }{b.store}
		b.q.Poll = 10 * time.Second
	}, func(b *bench) {
		time.Sleep(12 * time.Second)
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(10 * time.Second)
		b.wantLog("20s ann")
	})
}

func TestTraceAndOutcomes(t *testing.T) {
	var mu sync.Mutex
	var events []string
	add := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, fmt.Sprintf(format, args...))
	}
	run(t, func(b *bench) {
		b.q.Trace = &queue.Trace{
			Queued: func(_ context.Context, i queue.QueuedInfo) { add("queued %s %d", i.Envelope.ID, len(i.Items)) },
			Leased: func(_ context.Context, i queue.AttemptInfo) { add("leased %s %d", i.Route, i.Attempt) },
			Delivered: func(_ context.Context, i queue.ResultInfo) {
				add("delivered %s %v %s", i.Recipient.Address, i.Duration, i.Result.Receipt.RemoteMTA)
			},
			Deferred: func(_ context.Context, i queue.ResultInfo) {
				add("deferred %s %v %s", i.Recipient.Address, i.Delay, i.Cause)
			},
			Failed: func(_ context.Context, i queue.ResultInfo) {
				add("failed %s %v %s", i.Recipient.Address, i.Expired, i.Cause)
			},
			Held: func(_ context.Context, i queue.HeldInfo) { add("held %s %v %s", i.Route, i.Delay, i.Reason) },
			Reported: func(_ context.Context, i queue.ReportedInfo) {
				add("reported %s to %s", i.Message, i.Envelope.Recipients[0].Address)
			},
		}
		b.q.Outcomes = mailspine.OutcomeSinkFunc(func(_ context.Context, o mailspine.Outcome) {
			add("outcome %s %s %d %v %s %s", o.Event, o.Recipient.Local, o.Attempt, o.First, o.Tenant, o.Cause)
		})
		b.q.Classifier = classifierFunc(func(st *mailspine.Error, _ mailspine.Receipt) mailspine.Cause {
			if st.Enhanced == (mailspine.EnhancedCode{5, 1, 1}) {
				return mailspine.CauseRecipientUnknown
			}
			return mailspine.CauseUnknown
		})
	}, func(b *bench) {
		n := 0
		b.answer = func(ctx context.Context, env *mailspine.Envelope) error {
			if n++; n == 1 {
				return &mailspine.NotNow{Until: time.Now().Add(time.Minute), Reason: "cap"}
			}
			a := mailspine.AttemptFrom(ctx)
			a.Record(0, mailspine.Receipt{RemoteMTA: "wrong"})
			a.Record(0, mailspine.Receipt{RemoteMTA: "mx.example.net"})
			a.Record(99, mailspine.Receipt{})
			a.Record(-1, mailspine.Receipt{})
			time.Sleep(time.Second)
			return byLocal(map[string]error{"bob": errUnknown, "cid": errBusy})(ctx, env)
		}
		env := envelope("m1", "ann@example.net", "bob@example.net", "cid@example.net")
		env.Tenant = "shop"
		b.send(env)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		want := `queued m1 1
leased example.net 1
held example.net 1m0s cap
leased example.net 1
reported m1 to sender@example.org
outcome delivered ann 1 true shop 
delivered ann@example.net 1s mx.example.net
outcome failed bob 1 true shop recipient-unknown
failed bob@example.net false recipient-unknown
outcome deferred cid 1 true shop 
deferred cid@example.net 5m0s 
leased example.org 1
outcome delivered sender 1 true shop 
delivered sender@example.org 0s `
		mu.Lock()
		defer mu.Unlock()
		// The report may be leased before the results were told, and the message before it was told to be queued.
		var queued, told, lease []string
		for _, e := range events {
			if strings.HasPrefix(e, "queued") {
				queued = append(queued, e)
				continue
			}
			if strings.HasSuffix(e, "example.org 1") && strings.HasPrefix(e, "leased") {
				lease = append(lease, e)
				continue
			}
			if strings.Contains(e, "sender") && !strings.HasPrefix(e, "reported") {
				lease = append(lease, e)
				continue
			}
			told = append(told, e)
		}
		if got := strings.Join(slices.Concat(queued, told, lease), "\n"); got != want {
			t.Errorf("events\n%s\nwant\n%s", got, want)
		}
	})
}

// A Router or a Gate that always panics undoes nothing that was delivered, and
// what it keeps from being tried expires.
func TestPanicsAlways(t *testing.T) {
	run(t, func(b *bench) {
		b.q.Router = queue.RouterFunc(func(_ context.Context, _ *mailspine.Envelope, r mailspine.Recipient) (queue.Route, error) {
			if r.Address.Local == "sender" {
				panic("bug")
			}
			return "r", nil
		})
	}, func(b *bench) {
		b.answer = byLocal(map[string]error{"bob": errUnknown})
		b.send(envelope("m1", "ann@example.net", "bob@example.net"))
		time.Sleep(6 * 24 * time.Hour)
		b.wantLog("0s ann+bob") // once; there is no way for the report
		if st, c := b.stats(), b.q.Stats(); st.Items != 0 || c.Delivered != 1 || c.Expired != 1 {
			t.Errorf("left in the store: %+v; %+v", st, c)
		}
	})
	run(t, func(b *bench) {
		b.q.Gate = queue.GateFunc(func(_ context.Context, r queue.Route) (queue.Hold, error) {
			if r == "example.net" {
				panic("bug")
			}
			return queue.Hold{}, nil
		})
	}, func(b *bench) {
		b.send(envelope("m1", "ann@example.net"))
		time.Sleep(6 * 24 * time.Hour)
		b.wantLog("4h0m0s sender report, 120h0m0s sender report") // delayed, failed
	})
}

// What the Gate was asked for when Grace ended is due at once.
func TestGateShutdown(t *testing.T) {
	run(t, func(b *bench) {
		b.q.Grace = time.Second
		b.q.Gate = queue.GateFunc(func(ctx context.Context, _ queue.Route) (queue.Hold, error) {
			<-ctx.Done()
			return queue.Hold{}, ctx.Err()
		})
	}, func(b *bench) {
		b.send(envelope("m1", "ann@example.net"))
		synctest.Wait()
		if err := b.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if it := items(t, b.store)["example.net: ann"]; it.State == queue.ItemLeased || it.Due > 0 || it.Attempts != 0 {
			t.Errorf("in the store: %+v, want it due at once", it)
		}
	})
}
