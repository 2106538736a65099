package queue_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
	"pgregory.net/rapid"
)

// accepted = delivered + bounced + held + queued, whatever fails: Next answers at
// random and panics, the gate closes, the store fails and loses leases, Run is
// stopped and started, operators interfere. Nothing is delivered twice without a lost lease.
func TestInvariant(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rapid.SyncTest(rt, func(rt *rapid.T) { checkInvariant(rt) })
	})
}

func checkInvariant(rt *rapid.T) {
	// All chance is drawn before anything runs, so that histories can be shrunk
	// and do not depend on the order of goroutines.
	n := rapid.IntRange(1, 8).Draw(rt, "messages")
	answers := rapid.SliceOfN(rapid.IntRange(0, 9), 20, 60).Draw(rt, "answers")
	faults := rapid.SliceOfN(rapid.IntRange(0, 9), 20, 60).Draw(rt, "faults")
	gates := rapid.SliceOfN(rapid.IntRange(0, 5), 5, 20).Draw(rt, "gates")
	rcpts := rapid.SliceOfN(rapid.IntRange(1, 4), n, n).Draw(rt, "recipients")
	stops := rapid.SliceOfN(rapid.IntRange(1, 500), 0, 3).Draw(rt, "stops")
	losing := rapid.Bool().Draw(rt, "losing")
	commands := rapid.SliceOfN(rapid.IntRange(0, 5), 0, 8).Draw(rt, "commands")

	var mu sync.Mutex
	next := func(s []int) func() int {
		i := 0
		return func() int {
			mu.Lock()
			defer mu.Unlock()
			i++
			return s[i%len(s)]
		}
	}
	answer, fault, gate := next(answers), next(faults), next(gates)
	store := memqueue.New(nil)
	f := &faulty{Store: store}
	f.lease = func() error { return fail(fault()) }
	f.settle = func() error { return fail(fault()) }
	f.extend = func(time.Duration) (bool, error) { x := fault(); return losing && x == 5, fail(x) }

	taken, failed := map[string]int{}, map[string]int{}
	count := func(m map[string]int, id mailspine.MsgID, a mailspine.Address) {
		mu.Lock()
		defer mu.Unlock()
		m[string(id)+" "+a.String()]++
	}
	q := &queue.Queue{
		Store: f, Hostname: "mx.example.org", Concurrency: 3, PerRoute: 2, Grace: time.Minute, WarnAfter: -1,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Retry:  queue.DefaultRetry{Delays: []time.Duration{10 * time.Minute}, Lifetime: 5 * time.Hour},
		Rand:   func() float64 { return 0.5 },
		Gate: queue.GateFunc(func(context.Context, queue.Route) (queue.Hold, error) {
			switch gate() {
			case 1:
				return queue.Hold{Until: time.Now().Add(7 * time.Minute)}, nil
			case 2:
				return queue.Hold{}, errors.New("away")
			}
			return queue.Hold{}, nil
		}),
		Trace: &queue.Trace{Failed: func(_ context.Context, i queue.ResultInfo) { count(failed, i.Envelope.ID, i.Recipient.Address) }},
	}
	q.Next = mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
		if err := mailspine.AttemptFrom(ctx).BeforeCommit(ctx, time.Minute); err != nil {
			return err
		}
		res := make(mailspine.RecipientErrors, len(env.Recipients))
		for i := range env.Recipients {
			switch answer() {
			case 0:
				res[i] = errUnknown
			case 1, 2, 3:
				res[i] = errBusy
			case 4:
				res[i] = &mailspine.NotNow{Until: time.Now().Add(3 * time.Minute)}
			case 5:
				if i == 0 { // nothing was taken before
					panic("bug")
				}
			case 6:
				time.Sleep(30 * time.Minute)
			}
		}
		for i, r := range env.Recipients {
			if res[i] == nil {
				count(taken, env.ID, r.Address)
			}
		}
		return res.Err()
	})

	accepted := map[string]bool{}
	put := func(id int) {
		env := envelope(fmt.Sprintf("m%d", id))
		for j := range rcpts[id] {
			a := addr(fmt.Sprintf("u%d@d%d.example", j, j%2))
			env.Recipients = append(env.Recipients, mailspine.Recipient{Address: a})
			accepted[string(env.ID)+" "+a.String()] = true
		}
		if err := q.Deliver(context.Background(), env, mailspine.StringContent(letter)); err != nil {
			rt.Fatalf("Deliver: %v", err)
		}
	}
	runs := append(stops, 2000)
	for i, minutes := range runs {
		for id := range n {
			if id%len(runs) == i {
				put(id)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(minutes)*time.Minute)
		// Operators interfere while it runs. What they get as an error is the store's.
		var operators sync.WaitGroup
		for j, c := range commands {
			operators.Go(func() {
				time.Sleep(time.Duration(minutes*(j+1)/(len(commands)+1)) * time.Minute)
				one := queue.Filter{Route: queue.Route(fmt.Sprintf("d%d.example", j%2))}
				switch c {
				case 0:
					q.Control(ctx, one, queue.Command{Op: queue.OpHold, Reason: "wait"})
				case 1:
					q.Control(ctx, one, queue.Command{Op: queue.OpRelease})
				case 2:
					q.Control(ctx, one, queue.Command{Op: queue.OpFlush})
				case 3:
					q.Bounce(ctx, one, nil)
				case 4:
					q.Control(ctx, one, queue.Command{Op: queue.OpReroute, Route: "d7.example"})
				case 5:
					q.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpReroute})
				}
			})
		}
		if err := q.Run(ctx); err != nil {
			rt.Fatalf("Run: %v", err)
		}
		operators.Wait()
		cancel()
		synctest.Wait()
		left := map[string]int{}
		for it, err := range store.List(context.Background(), queue.Filter{}) {
			if err != nil {
				rt.Fatal(err)
			}
			for _, r := range it.Envelope.Recipients {
				left[string(it.Message)+" "+r.Address.String()]++
			}
		}
		lost := q.Stats().Lost > 0
		for k := range accepted {
			done := min(taken[k], 1) + failed[k] + left[k]
			if done == 0 {
				rt.Fatalf("%s is lost", k)
			}
			if !lost && (done != 1 || taken[k] > 1) {
				rt.Fatalf("%s: taken %d times, failed %d times, %d times in the store, and no lease was lost", k, taken[k], failed[k], left[k])
			}
		}
	}
	if st, err := store.Stats(context.Background()); err != nil || st.Items > 0 && !losing && q.Stats().Lost == 0 && st.Waiting+st.Due+st.Held != st.Items {
		rt.Fatalf("%+v, %v: something stays leased", st, err)
	}
	store.Close()
}

func fail(x int) error {
	if x < 3 {
		return errors.New("the store fails")
	}
	return nil
}
