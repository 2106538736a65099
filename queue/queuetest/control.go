package queuetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

func hold(reason string) queue.Command { return queue.Command{Op: queue.OpHold, Reason: reason} }

func reroute(r queue.Route) queue.Command { return queue.Command{Op: queue.OpReroute, Route: r} }

var (
	release = queue.Command{Op: queue.OpRelease}
	flush   = queue.Command{Op: queue.OpFlush}
	remove  = queue.Command{Op: queue.OpDelete}
) // never written

// control carries out a command, and checks what it counts.
func (k *kit) control(f queue.Filter, c queue.Command, want queue.Changed) {
	k.Helper()
	got, err := k.s.(queue.Controller).Control(k.ctx, f, c)
	if err != nil {
		k.Fatalf("Control(%+v, %v): %v", f, c.Op, err)
	}
	if got != want {
		k.Fatalf("Control(%+v, %v): %+v, want %+v", f, c.Op, got, want)
	}
}

// changed is what Control counts when all that match are changed.
func changed(n int64) queue.Changed { return queue.Changed{Matched: n, Changed: n} }

// unchanged is what it counts when nothing is to be done.
func unchanged(n int64) queue.Changed { return queue.Changed{Matched: n} }

func (k *kit) take(f queue.Filter, max int, ttl time.Duration) []queue.Lease {
	k.Helper()
	l, err := k.s.(queue.Controller).Take(k.ctx, f, max, ttl)
	if err != nil {
		k.Fatalf("Take(%+v): %v", f, err)
	}
	if len(l) > max {
		k.Fatalf("Take returned %d items, max was %d", len(l), max)
	}
	return l
}

// takeOne takes the only item that matches.
func (k *kit) takeOne(f queue.Filter, ttl time.Duration) queue.Lease {
	k.Helper()
	l := k.take(f, 10, ttl)
	if len(l) != 1 {
		k.Fatalf("Take(%+v) returned %d items, want 1: %v", f, len(l), names(l))
	}
	return l[0]
}

// shows checks what the store shows of an item, if it can be looked into.
func (k *kit) shows(name string, want queue.ItemState, reason string) {
	k.Helper()
	if !is[queue.Inspector](k) {
		return
	}
	it, ok := k.list(queue.Filter{})[name]
	if !ok || it.State != want || reason != "" && it.Reason != reason {
		k.Fatalf("List shows %s as %v, reason %q; want %v, reason %q", name, it.State, it.Reason, want, reason)
	}
	if want == queue.ItemHeld && it.Due != 0 {
		k.Fatalf("Due of %s, which is held, is %v", name, it.Due)
	}
}

func (k *kit) abandon(delay time.Duration, l ...queue.Lease) {
	k.Helper()
	for _, x := range l {
		if err := k.s.Abandon(k.ctx, delay, "", x.Token); err != nil {
			k.Fatalf("Abandon: %v", err)
		}
	}
}

var controlCases = []testCase{
	{"ControlHold", "OpHold keeps an item from being leased until it is released; OpRelease makes an item that is held due now.", func(k *kit) {
		late := simple("late")
		late.Delay = k.tick
		k.put(late)
		k.put(simple("m1"))
		k.control(queue.Filter{}, hold("look at it"), changed(2))
		k.none("both are held")
		time.Sleep(2 * k.tick)
		k.none("both are held, also after the delay of one")
		k.shows("m1/example.net", queue.ItemHeld, "look at it")
		k.read("m1")
		k.control(queue.Filter{ID: "late"}, release, changed(1))
		if l := k.one(long); l.Envelope.ID != "late" || l.Attempts != 0 {
			k.Errorf("released was late; leased %s with %d attempts", l.Envelope.ID, l.Attempts)
		}
		far := simple("far")
		far.Delay = 100 * long
		k.put(far)
		k.control(queue.Filter{ID: "far"}, hold("x"), changed(1))
		k.control(queue.Filter{ID: "far"}, release, changed(1))
		if l := k.one(long); l.Envelope.ID != "far" {
			k.Errorf("leased %s, want far: a release does not wait for the delay", l.Envelope.ID)
		}
		k.none("m1 is held")
	}, controlling},
	{"ControlHoldPut", "OpRelease makes an item that is held due now, also one that was put with a Hold.", func(k *kit) {
		m := message("m1", "example.net: ann", "example.com: bob")
		m.Hold = "content filter"
		m.Delay = 100 * long
		k.put(m)
		k.control(queue.Filter{Route: "example.com"}, release, changed(1))
		if l := k.one(long); rcpts(l) != "bob" {
			k.Errorf("leased %s, want bob", rcpts(l))
		}
		k.none("the other item is held")
		k.shows("m1/example.net", queue.ItemHeld, "content filter")
	}, controlling},
	{"ControlHoldAgain", "What is held already gets the new reason; what was already as it was to be is not changed.", func(k *kit) {
		k.put(simple("m1"))
		k.put(message("m2", "example.com: ann"))
		k.control(queue.Filter{ID: "m1"}, hold("first"), changed(1))
		k.control(queue.Filter{}, hold("first"), queue.Changed{Matched: 2, Changed: 1})
		k.control(queue.Filter{}, hold("first"), unchanged(2))
		k.control(queue.Filter{ID: "m1"}, hold("second"), changed(1))
		k.shows("m1/example.net", queue.ItemHeld, "second")
		k.shows("m2/example.com", queue.ItemHeld, "first")
		k.control(queue.Filter{}, release, changed(2))
		k.control(queue.Filter{}, release, unchanged(2))
		k.control(queue.Filter{}, flush, unchanged(2))
		k.control(queue.Filter{ID: "m1"}, reroute("example.net"), unchanged(1))
		if l := k.lease(10, long); len(l) != 2 {
			k.Errorf("leased %v, want both", names(l))
		}
		k.control(queue.Filter{ID: "unknown"}, remove, unchanged(0))
	}, controlling},
	{"ControlHoldReason", "The reason of a hold is for people; a store may cut it after 1,000 octets, not before.", func(k *kit) {
		k.put(simple("m1"))
		reason := strings.Repeat("because ", 250)
		k.control(queue.Filter{}, hold(reason), changed(1))
		if got := k.list(queue.Filter{})["m1/example.net"].Reason; len(got) < 1000 || !strings.HasPrefix(reason, got) {
			k.Errorf("the reason has %d octets: %.50q", len(got), got)
		}
		k.none("it is held")
	}, controlling | inspecting},
	{"ControlFlush", "OpFlush makes an item that is waiting due now. What is held stays so.", func(k *kit) {
		late := simple("late")
		late.Delay = 100 * long
		k.put(late)
		never := simple("never")
		never.Delay = math.MaxInt64
		k.put(never)
		held := message("held", "example.com: ann")
		held.Hold = "look at it"
		k.put(held)
		k.put(message("tried", "example.org: ann"))
		s := settlement(k.one(long), queue.Open)
		s.Delay = 100 * long
		k.settle(s)
		k.none("none is due")
		k.control(queue.Filter{}, flush, queue.Changed{Matched: 4, Changed: 3})
		k.control(queue.Filter{}, flush, unchanged(4))
		k.shows("held/example.com", queue.ItemHeld, "look at it")
		got := map[mailspine.MsgID]int{}
		for _, l := range k.lease(10, long) {
			got[l.Envelope.ID] = l.Attempts
		}
		if len(got) != 3 || got["tried"] != 1 {
			k.Errorf("after the flush these were due, with so many attempts: %v; want late, never and tried (1)", got)
		}
	}, controlling},
	{"ControlDelete", "OpDelete removes an item; nobody is told. A message goes with its last item, with its content, and its ID is remembered for TombstoneTTL.", func(k *kit) {
		k.put(message("m1", "example.net: ann", "example.com: bob"))
		k.put(simple("m2"))
		k.control(queue.Filter{ID: "m1", Route: "example.net"}, remove, changed(1))
		k.read("m1") // the other item needs it
		k.put(message("m1", "example.net: ann", "example.com: bob"))
		l := k.lease(10, long)
		if len(l) != 2 || l[0].Route == l[1].Route {
			k.Fatalf("leased %v, want the rest of m1 and m2", names(l))
		}
		k.abandon(0, l...)
		k.control(queue.Filter{ID: "m1"}, remove, changed(1))
		k.gone("m1")
		k.put(message("m1", "example.net: ann", "example.com: bob"))
		k.gone("m1")
		k.control(queue.Filter{ID: "m1"}, remove, unchanged(0))
		if l := k.one(long); l.Envelope.ID != "m2" {
			k.Errorf("leased %s, want m2 alone", l.Envelope.ID)
		}
		if k.h.Synctest {
			time.Sleep(queue.TombstoneTTL + time.Minute)
			k.put(simple("m1"))
			k.read("m1")
		}
	}, controlling},
	{"ControlDeleteStates", "OpDelete removes what is due, what is waiting and what is held, also after some recipients are done.", func(k *kit) {
		late, held := simple("late"), simple("held")
		late.Delay, held.Hold = 100*long, "look at it"
		k.put(late)
		k.put(held)
		k.put(message("m1", "example.net: ann bob"))
		s := settlement(k.one(long), queue.Open)
		s.Results[0] = queue.Result{State: queue.Delivered}
		k.settle(s)
		if is[queue.Inspector](k) {
			if st, err := k.s.(queue.Inspector).Stats(k.ctx); err != nil || st.Items != 3 || st.Due != 1 || st.Waiting != 1 || st.Held != 1 {
				k.Fatalf("Stats: %+v, %v", st, err)
			}
		}
		k.control(queue.Filter{}, remove, changed(3))
		for _, id := range []mailspine.MsgID{"late", "held", "m1"} {
			k.gone(id)
		}
		k.none("all was deleted")
		if is[queue.Inspector](k) {
			if st, err := k.s.(queue.Inspector).Stats(k.ctx); err != nil || st != (queue.Stats{}) {
				k.Errorf("Stats: %+v, %v; want zero", st, err)
			}
		}
	}, controlling},
	{"ControlDeleteReader", "A reader stays readable until it is closed, even if the message is deleted meanwhile.", func(k *kit) {
		for i, n := range []int{1000, 300 << 10} {
			id := fmt.Sprintf("m%d", i)
			want := pattern(n)
			if err := k.s.Put(k.ctx, simple(id), mailspine.BytesContent(want)); err != nil {
				k.Fatal(err)
			}
			r, err := k.s.Open(k.ctx, mailspine.MsgID(id))
			if err != nil {
				k.Fatal(err)
			}
			k.control(queue.Filter{ID: mailspine.MsgID(id)}, remove, changed(1))
			k.gone(mailspine.MsgID(id))
			if got, err := io.ReadAll(r); err != nil || string(got) != string(want) {
				k.Errorf("%d octets of %d, %v", len(got), n, err)
			}
			r.Close()
		}
	}, controlling},
	{"ControlReroute", "OpReroute gives an item another route: it is leased, excluded and listed by that from then on, and is the same item otherwise.", func(k *kit) {
		k.put(message("m1", "example.net: ann bob", "example.com: cid"))
		l := k.lease(10, long, "example.com")[0]
		s := settlement(l, queue.Open)
		s.Results[0] = queue.Result{State: queue.Delivered}
		k.settle(s)
		k.control(queue.Filter{Route: "example.net"}, reroute("smarthost"), changed(1))
		k.control(queue.Filter{Route: "example.net"}, hold("x"), unchanged(0))
		if got := k.lease(10, long, "smarthost", "example.com"); len(got) != 0 {
			k.Fatalf("leased %v, both routes were excluded", names(got))
		}
		got := k.lease(10, long, "example.net", "example.com")
		if len(got) != 1 || got[0].Route != "smarthost" || got[0].Token.Item != l.Token.Item || got[0].Token.Epoch <= l.Token.Epoch ||
			rcpts(got[0]) != "bob" || got[0].Attempts != 1 || got[0].Recipients[0].Index != 1 || got[0].Recipients[0].Last.Status == nil {
			k.Fatalf("leased %+v, want bob by smarthost after one attempt", got)
		}
		k.abandon(0, got...)
		// Several items of a message may have the same route.
		k.control(queue.Filter{Route: "example.com"}, reroute("smarthost"), changed(1))
		got = k.lease(10, long)
		if len(got) != 2 || got[0].Route != "smarthost" || got[1].Route != "smarthost" {
			k.Fatalf("leased %v, want two items by smarthost", names(got))
		}
		k.finish(got[0], queue.Delivered)
		k.read("m1")
		k.finish(got[1], queue.Delivered)
		k.gone("m1")
		// The empty route is one as well.
		k.put(simple("m2"))
		k.control(queue.Filter{}, reroute(""), changed(1))
		k.control(queue.Filter{}, reroute(""), unchanged(1))
		if l := k.one(long); l.Route != "" {
			k.Errorf("leased by %q, want the empty route", l.Route)
		}
	}, controlling},
	{"ControlRerouteStates", "OpReroute changes the route alone: what was waiting or held is so still.", func(k *kit) {
		late, held := simple("late"), simple("held")
		late.Delay, held.Hold = 4*k.tick, "look at it"
		start := time.Now()
		k.put(late)
		k.put(held)
		k.control(queue.Filter{}, reroute("smarthost"), changed(2))
		k.shows("held/smarthost", queue.ItemHeld, "look at it")
		if l := k.after(start, 4*k.tick, long); l.Envelope.ID != "late" || l.Route != "smarthost" {
			k.Errorf("leased %v, want late by smarthost", names([]queue.Lease{l}))
		}
		k.none("the other is held")
		k.control(queue.Filter{State: queue.ItemHeld}, release, changed(1))
		if l := k.one(long); l.Route != "smarthost" {
			k.Errorf("released by %s, want smarthost", l.Route)
		}
	}, controlling},
	{"ControlLeased", "Items that are leased match too, but are not changed: they are being delivered.", func(k *kit) {
		k.put(message("m1", "example.net: ann"))
		held := message("m2", "example.com: bob")
		held.Hold = "look at it"
		k.put(held)
		a := k.one(long)
		b := k.takeOne(queue.Filter{ID: "m2"}, long)
		k.put(message("m3", "example.org: cid"))
		for _, c := range []queue.Command{hold("x"), release, flush, remove, reroute("smarthost")} {
			k.control(queue.Filter{State: queue.ItemLeased}, c, queue.Changed{Matched: 2, Leased: 2})
			k.control(queue.Filter{ID: "m1"}, c, queue.Changed{Matched: 1, Leased: 1})
		}
		k.control(queue.Filter{}, hold("x"), queue.Changed{Matched: 3, Changed: 1, Leased: 2})
		k.read("m1")
		k.read("m2")
		if lost, err := k.s.Extend(k.ctx, long, a.Token, b.Token); err != nil || len(lost) != 0 {
			k.Errorf("Extend: lost %v, %v", lost, err)
		}
		k.finish(a, queue.Open)
		if l := k.one(long); l.Envelope.ID != "m1" || l.Route != "example.net" {
			k.Errorf("leased %v, want m1 as it was", names([]queue.Lease{l}))
		}
		k.finish(b, queue.Delivered)
		k.gone("m2")
	}, controlling},
	{"ControlLapsed", "An item whose lease has ended is due, and is changed; the old token can change nothing.", func(k *kit) {
		k.put(simple("m1"))
		old := k.one(k.tick)
		time.Sleep(k.tick + k.tick/2)
		k.control(queue.Filter{State: queue.ItemDue}, hold("look at it"), changed(1))
		k.lost(old)
		if lost, err := k.s.Extend(k.ctx, long, old.Token); err != nil || len(lost) != 1 {
			k.Errorf("Extend of a lease that has ended: lost %v, %v", lost, err)
		}
		k.abandon(0, old)
		k.none("it is held")
		k.control(queue.Filter{}, release, changed(1))
		l := k.one(long)
		if l.Token.Item != old.Token.Item || l.Token.Epoch <= old.Token.Epoch || l.Attempts != 0 {
			k.Errorf("lease %+v with %d attempts after %+v", l.Token, l.Attempts, old.Token)
		}
		k.lost(old)
	}, controlling},
	{"ControlDeleteBesideLease", "A message whose other items were deleted lives on with the one that is leased.", func(k *kit) {
		k.put(message("m1", "example.net: ann", "example.com: bob", "example.org: cid"))
		l := k.lease(1, long, "example.com", "example.org")[0]
		k.control(queue.Filter{ID: "m1"}, remove, queue.Changed{Matched: 3, Changed: 2, Leased: 1})
		k.read("m1")
		k.none("the others were deleted")
		k.finish(l, queue.Open)
		k.read("m1")
		k.finish(k.one(long), queue.Delivered)
		k.gone("m1")
		k.put(simple("m1"))
		k.none("its ID is remembered")
	}, controlling},
	{"ControlMany", "Control carries out a command on all items that match, however many.", func(k *kit) {
		const n = 2500
		k.pile("a", "shop", "r1", n, 0, nil)
		k.pile("b", "news", "r2", n/10, 0, nil)
		all := int64(n + n/10)
		k.control(queue.Filter{}, hold("x"), changed(all))
		k.none("all are held")
		k.control(queue.Filter{Tenant: "shop"}, reroute("r3"), changed(n))
		k.control(queue.Filter{Domain: "example.net"}, release, changed(all))
		count := k.turns(20)
		if count["shop"] != 10 || count["news"] != 10 {
			k.Errorf("20 turns of two routes: %v", count)
		}
		if k.h.Reopen != nil && k.h.Synctest {
			k.reopen() // ends the leases
			time.Sleep(2 * long)
			k.control(queue.Filter{Route: "r3"}, remove, changed(n))
		} else {
			k.control(queue.Filter{Route: "r3"}, remove, queue.Changed{Matched: n, Changed: n - 10, Leased: 10})
		}
		k.control(queue.Filter{Recipient: "u77@example.net"}, hold("x"), changed(1))
	}, controlling},
	{"ControlInvalid", "A Filter that is not valid is ErrBadFilter, a Command that is not, ErrBadCommand; nothing is changed then.", func(k *kit) {
		k.put(simple("m1"))
		c := k.s.(queue.Controller)
		for name, f := range badFilters() {
			if _, err := c.Control(k.ctx, f, remove); !errors.Is(err, queue.ErrBadFilter) {
				k.Errorf("%s: Control: %v, want queue.ErrBadFilter", name, err)
			}
			if l, err := c.Take(k.ctx, f, 1, long); !errors.Is(err, queue.ErrBadFilter) || len(l) != 0 {
				k.Errorf("%s: Take: %v, %v; want queue.ErrBadFilter", name, names(l), err)
			}
		}
		for name, cmd := range map[string]queue.Command{
			"no operation": {}, "unknown operation": {Op: queue.OpReroute + 1}, "a hold without a reason": {Op: queue.OpHold},
			"a reason without a hold": {Op: queue.OpDelete, Reason: "x"}, "a route without a reroute": {Op: queue.OpRelease, Route: "x"},
		} {
			if _, err := c.Control(k.ctx, queue.Filter{}, cmd); !errors.Is(err, queue.ErrBadCommand) {
				k.Errorf("%s: Control: %v, want queue.ErrBadCommand", name, err)
			}
		}
		if l := k.one(long); l.Envelope.ID != "m1" || l.Route != "example.net" {
			k.Errorf("leased %v, want m1 as it was", names([]queue.Lease{l}))
		}
	}, controlling},
	{"ControlContext", "A method whose context has ended returns its error, and nothing has happened; after Close it is ErrClosed.", func(k *kit) {
		k.put(simple("m1"))
		c := k.s.(queue.Controller)
		ctx, cancel := context.WithCancel(k.ctx)
		cancel()
		_, errControl := c.Control(ctx, queue.Filter{}, remove)
		_, errTake := c.Take(ctx, queue.Filter{}, 1, long)
		if !errors.Is(errControl, context.Canceled) || !errors.Is(errTake, context.Canceled) {
			k.Errorf("Control: %v, Take: %v; want context.Canceled", errControl, errTake)
		}
		k.abandon(0, k.one(long))
		if err := k.s.Close(); err != nil {
			k.Fatalf("Close: %v", err)
		}
		_, errControl = c.Control(k.ctx, queue.Filter{}, remove)
		_, errTake = c.Take(k.ctx, queue.Filter{}, 1, long)
		if !errors.Is(errControl, queue.ErrClosed) || !errors.Is(errTake, queue.ErrClosed) {
			k.Errorf("Control: %v, Take: %v; want queue.ErrClosed", errControl, errTake)
		}
	}, controlling},
	{"ControlWait", "Wait returns when something changed so that an item may be due: a release, a flush, another route.", func(k *kit) {
		late, held := simple("late"), simple("held")
		late.Delay, held.Hold = 100*long, "look at it"
		k.put(late)
		k.put(held)
		for _, c := range []struct {
			f queue.Filter
			c queue.Command
		}{{queue.Filter{}, release}, {queue.Filter{}, flush}, {queue.Filter{Route: "blocked"}, reroute("open")}} {
			res := k.wait(k.ctx, "blocked")
			k.control(c.f, c.c, queue.Changed{Matched: int64(k.count(c.f)), Changed: 1})
			// It may return early, but not for ever: Lease decides.
			for {
				if err := res(); err != nil {
					k.Fatalf("Wait after %v: %v", c.c.Op, err)
				}
				if l := k.lease(1, long, "blocked"); len(l) == 1 {
					k.finish(l[0], queue.Delivered)
					break
				}
				res = k.wait(k.ctx, "blocked")
			}
			if c.c.Op == queue.OpFlush {
				k.put(message("other", "blocked: ann"))
			}
		}
	}, controlling | inspecting | waiting},
	{"ControlConcurrent", "All methods are safe for concurrent use: commands during deliveries lose nothing, and end nothing twice.", func(k *kit) {
		const n = 60
		for i := range n {
			k.put(message(fmt.Sprintf("m%d", i), fmt.Sprintf("d%d.example: ann", i%4)))
		}
		c := k.s.(queue.Controller)
		var left atomic.Int64
		left.Store(n)
		var wg sync.WaitGroup
		var done sync.Map
		deadline := time.Now().Add(patience)
		ended := func(item queue.ItemID) {
			if _, twice := done.LoadOrStore(item, true); twice {
				k.Errorf("item %d was ended twice", item)
			}
			left.Add(-1)
		}
		for w := range 3 {
			wg.Go(func() {
				for i := w; left.Load() > 0 && time.Now().Before(deadline); i++ {
					l, err := k.s.Lease(k.ctx, queue.LeaseRequest{Max: 2, TTL: long})
					if i%5 == 0 && err == nil {
						var more []queue.Lease
						more, err = c.Take(k.ctx, queue.Filter{State: queue.ItemHeld}, 2, long)
						l = append(l, more...)
					}
					if err != nil {
						k.Errorf("Lease or Take: %v", err)
						return
					}
					for j, x := range l {
						st := queue.Delivered
						if (i+j)%3 == 0 {
							st = queue.Open
						}
						if errs, err := k.s.Settle(k.ctx, settlement(x, st)); err != nil || errs[0] != nil {
							k.Errorf("Settle: %v, %v", errs, err)
						} else if st == queue.Delivered {
							ended(x.Token.Item)
						}
					}
					if len(l) == 0 {
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
		wg.Go(func() {
			for i := 0; left.Load() > 0 && time.Now().Before(deadline); i++ {
				f := queue.Filter{ID: mailspine.MsgID(fmt.Sprintf("m%d", i%n))}
				cmd := []queue.Command{hold("x"), reroute("e.example"), release, flush}[i%4]
				if i%4 == 2 {
					f = queue.Filter{}
				}
				if i%41 == 40 { // now and then something is deleted, if it is not leased
					cmd = remove
				}
				got, err := c.Control(k.ctx, f, cmd)
				if err != nil {
					k.Errorf("Control: %v", err)
					return
				}
				if cmd.Op == queue.OpDelete {
					left.Add(-got.Changed)
				}
				time.Sleep(time.Millisecond / 4)
			}
		})
		wg.Wait()
		if n := left.Load(); n != 0 {
			k.Errorf("%d items were never ended, or some twice", n)
		}
		if _, err := c.Control(k.ctx, queue.Filter{}, release); err != nil {
			k.Errorf("Control: %v", err)
		}
		k.none("all was delivered or deleted")
	}, controlling},
	{"ControlReopen", "When Control returns nil the changes are as durable as a Put.", func(k *kit) {
		late := func(id string) queue.Message {
			m := simple(id)
			m.Delay = 100 * long
			return m
		}
		held := func(id string) queue.Message {
			m := simple(id)
			m.Hold = "content filter"
			return m
		}
		k.put(simple("hold"))
		k.put(late("hold-late"))
		k.put(held("hold-again"))
		k.put(held("release"))
		k.put(late("flush"))
		k.put(simple("delete"))
		k.put(message("delete-one", "example.net: ann", "example.com: bob"))
		k.put(simple("reroute"))
		k.put(held("reroute-held"))
		k.put(held("all"))
		id := func(id mailspine.MsgID) queue.Filter { return queue.Filter{ID: id} }
		k.control(id("hold"), hold("operator"), changed(1))
		k.control(id("hold-late"), hold("operator"), changed(1))
		k.control(id("hold-again"), hold("operator"), changed(1))
		k.control(id("release"), release, changed(1))
		k.control(id("flush"), flush, changed(1))
		k.control(id("delete"), remove, changed(1))
		k.control(queue.Filter{ID: "delete-one", Route: "example.net"}, remove, changed(1))
		k.control(id("reroute"), reroute("smarthost"), changed(1))
		k.control(id("reroute-held"), reroute("smarthost"), changed(1))
		k.control(id("all"), release, changed(1))
		k.control(id("all"), hold("again"), changed(1))
		k.control(id("all"), reroute("elsewhere"), changed(1))
		for range 2 { // the second time what the first restart wrote is read
			k.reopen()
		}
		got := map[string]bool{}
		for _, l := range k.lease(20, long) {
			got[string(l.Envelope.ID)+"/"+string(l.Route)] = true
		}
		for _, want := range []string{"release/example.net", "flush/example.net", "delete-one/example.com", "reroute/smarthost"} {
			if !got[want] {
				k.Errorf("%s is not due", want)
			}
		}
		if len(got) != 4 {
			k.Errorf("due are %v, want 4", got)
		}
		k.gone("delete")
		k.put(simple("delete"))
		k.gone("delete")
		k.shows("hold/example.net", queue.ItemHeld, "operator")
		k.shows("hold-late/example.net", queue.ItemHeld, "operator")
		k.shows("hold-again/example.net", queue.ItemHeld, "operator")
		k.shows("reroute-held/smarthost", queue.ItemHeld, "content filter")
		k.shows("all/elsewhere", queue.ItemHeld, "again")
		k.control(queue.Filter{State: queue.ItemHeld}, remove, changed(5))
		k.reopen()
		k.gone("all")
	}, controlling | reopening},
}

// count tells how many items match.
func (k *kit) count(f queue.Filter) int {
	k.Helper()
	n := 0
	for _, err := range k.s.(queue.Inspector).List(k.ctx, f) {
		if err != nil {
			k.Fatalf("List: %v", err)
		}
		n++
	}
	return n
}
