package queuetest

import (
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

var takeCases = []testCase{
	{"Take", "Take leases items that match and are not leased, whatever they are waiting for.", func(k *kit) {
		late, held := simple("late"), simple("held")
		late.Delay, held.Hold = 100*long, "look at it"
		k.put(simple("leased"))
		k.one(long)
		k.put(simple("due"))
		k.put(late)
		k.put(held)
		k.put(message("other", "example.com: ann"))
		got := map[mailspine.MsgID]queue.Lease{}
		for _, l := range k.take(queue.Filter{Route: "example.net"}, 10, long) {
			got[l.Envelope.ID] = l
		}
		if len(got) != 3 || got["due"].Token.Item == 0 || got["late"].Token.Item == 0 || got["held"].Token.Item == 0 {
			k.Fatalf("took %v, want due, late and held", got)
		}
		l := got["held"]
		if l.Route != "example.net" || rcpts(l) != "ann" || l.Attempts != 0 || l.Size != text("held").Size() || len(l.Recipients) != 1 {
			k.Errorf("took %+v of %+v", l, l.Envelope)
		}
		if again := k.take(queue.Filter{Route: "example.net"}, 10, long); len(again) != 0 {
			k.Errorf("took %v, which are leased", names(again))
		}
		if l := k.one(long); l.Envelope.ID != "other" {
			k.Errorf("leased %s, want what was not taken", l.Envelope.ID)
		}
	}, controlling},
	{"TakeMax", "Take takes up to max items; 0 is 1.", func(k *kit) {
		for i := range 5 {
			k.put(simple(fmt.Sprintf("m%d", i)))
		}
		l, err := k.s.(queue.Controller).Take(k.ctx, queue.Filter{}, 0, long)
		if err != nil || len(l) != 1 {
			k.Errorf("max 0: %v, %v; want one", names(l), err)
		}
		if l := k.take(queue.Filter{}, 3, long); len(l) != 3 {
			k.Errorf("max 3 of 4: %v", names(l))
		}
		if l := k.take(queue.Filter{}, 3, long); len(l) != 1 {
			k.Errorf("max 3 of 1: %v", names(l))
		}
		if l := k.take(queue.Filter{}, 3, long); len(l) != 0 {
			k.Errorf("max 3 of none: %v", names(l))
		}
	}, controlling},
	{"TakeDefaultTTL", "A lease that is taken with a ttl of 0 lasts 5 minutes.", func(k *kit) {
		k.put(simple("m1"))
		start := time.Now()
		k.takeOne(queue.Filter{}, 0)
		k.after(start, queue.DefaultLeaseTTL, long)
	}, controlling | hours},
	{"TakeSettle", "A lease that was taken is settled as any other: what is done goes, the attempt is counted, and what is open is due after the delay, held before or not.", func(k *kit) {
		m := message("m1", "example.net: ann bob", "example.com: cid")
		m.Hold = "look at it"
		k.put(m)
		k.finish(k.takeOne(queue.Filter{Route: "example.com"}, long), queue.Delivered)
		k.read("m1")
		s := settlement(k.takeOne(queue.Filter{}, long), queue.Open)
		s.Results[0] = queue.Result{State: queue.Failed, Status: mailspine.Errorf(550, "5.7.1", "Refused by the operator")}
		s.Emit = []queue.Emission{{Message: message("r1", "example.org: sender"), Content: text("r1")}}
		s.Delay = 2 * k.tick
		start := time.Now()
		k.settle(s)
		r := k.one(long)
		if r.Envelope.ID != "r1" {
			k.Fatalf("leased %s, want the report", r.Envelope.ID)
		}
		k.finish(r, queue.Delivered)
		l := k.after(start, 2*k.tick, long)
		if rcpts(l) != "bob" || l.Attempts != 1 || l.Recipients[0].Index != 1 || l.Recipients[0].Last.Status == nil {
			k.Errorf("left are %s with %d attempts, %+v", rcpts(l), l.Attempts, l.Recipients)
		}
		k.finish(l, queue.Delivered)
		k.gone("m1")
		k.put(simple("m1"))
		k.none("it is finished, and its ID remembered")
	}, controlling},
	{"TakeHeldLapses", "When the lease of an item that was held ends without a settlement, the item is held again, for the same reason.", func(k *kit) {
		m := simple("m1")
		m.Hold = "content filter"
		k.put(m)
		for range 2 {
			old := k.takeOne(queue.Filter{}, k.tick)
			k.shows("m1/example.net", queue.ItemLeased, "")
			time.Sleep(k.tick + k.tick/2)
			k.none("it is held again")
			k.shows("m1/example.net", queue.ItemHeld, "content filter")
			k.lost(old)
		}
		k.control(queue.Filter{State: queue.ItemHeld}, release, changed(1))
		if l := k.one(long); l.Attempts != 0 {
			k.Errorf("%d attempts", l.Attempts)
		}
	}, controlling},
	{"TakeHeldAbandoned", "When the lease of an item that was held is abandoned, the item is held again, for the same reason, and no attempt is counted.", func(k *kit) {
		k.put(simple("m1"))
		k.control(queue.Filter{}, hold("operator"), changed(1))
		for _, delay := range []time.Duration{0, k.tick} {
			old := k.takeOne(queue.Filter{}, long)
			if err := k.s.Abandon(k.ctx, delay, "another reason", old.Token); err != nil {
				k.Fatalf("Abandon: %v", err)
			}
			time.Sleep(delay + k.tick/2)
			k.none("it is held again")
			k.shows("m1/example.net", queue.ItemHeld, "operator")
			k.lost(old)
		}
		k.control(queue.Filter{}, release, changed(1))
		l := k.one(long)
		if l.Attempts != 0 {
			k.Errorf("%d attempts", l.Attempts)
		}
		// That it was held once is forgotten: this is another lease.
		k.abandon(0, l)
		k.one(long)
	}, controlling},
	{"TakeWaiting", "The lease of an item that was not held ends as any other: it is due then, or after the delay with which it is abandoned.", func(k *kit) {
		m := simple("m1")
		m.Delay = 100 * long
		k.put(m)
		start := time.Now()
		k.takeOne(queue.Filter{}, k.tick)
		l := k.after(start, k.tick, long)
		k.abandon(100*long, l)
		l = k.takeOne(queue.Filter{}, long)
		start = time.Now()
		k.abandon(2*k.tick, l)
		if l := k.after(start, 2*k.tick, long); l.Attempts != 0 {
			k.Errorf("%d attempts", l.Attempts)
		}
	}, controlling},
	{"TakeFenced", "Each lease of an item has a higher Epoch than the one before, whoever takes it: with that of a lease that has ended, nothing can be changed.", func(k *kit) {
		k.put(simple("m1"))
		a := k.one(k.tick)
		time.Sleep(k.tick + k.tick/2)
		b := k.takeOne(queue.Filter{Item: a.Token.Item}, long)
		if b.Token.Item != a.Token.Item || b.Token.Epoch <= a.Token.Epoch {
			k.Errorf("took %+v after %+v", b.Token, a.Token)
		}
		k.lost(a)
		k.abandon(0, a)
		if lost, err := k.s.Extend(k.ctx, long, a.Token, b.Token); err != nil || len(lost) != 1 || lost[0] != a.Token {
			k.Errorf("Extend: lost %v, %v; want the first lease", lost, err)
		}
		k.none("it was taken")
		k.abandon(0, b)
		c := k.one(long)
		if c.Token.Epoch <= b.Token.Epoch {
			k.Errorf("leased %+v after %+v", c.Token, b.Token)
		}
		k.lost(b)
		k.finish(c, queue.Delivered)
	}, controlling},
	{"TakeExtend", "Extend makes a lease that was taken last for ttl from now.", func(k *kit) {
		m := simple("m1")
		m.Hold = "content filter"
		k.put(m)
		l := k.takeOne(queue.Filter{}, 20*k.tick)
		if lost, err := k.s.Extend(k.ctx, 100*k.tick, l.Token); err != nil || len(lost) != 0 {
			k.Fatalf("Extend: lost %v, %v", lost, err)
		}
		if k.h.Synctest {
			time.Sleep(90 * k.tick)
		}
		k.finish(l, queue.Delivered)
		k.gone("m1")
	}, controlling},
	{"TakeReopen", "A lease that was taken ends as others do, by itself or when the store is opened again: what was held is held again then, for the same reason.", func(k *kit) {
		held := simple("held")
		held.Hold = "content filter"
		k.put(held)
		late := message("late", "example.com: ann")
		late.Delay = 100 * long
		k.put(late)
		old := k.takeOne(queue.Filter{ID: "held"}, k.tick)
		k.takeOne(queue.Filter{ID: "late"}, long)
		k.control(queue.Filter{}, flush, queue.Changed{Matched: 2, Leased: 2})
		k.reopen()
		time.Sleep(k.tick + k.tick/2)
		if l := k.lease(10, long, "example.com"); len(l) != 0 {
			k.Fatalf("leased %v, want it held", names(l))
		}
		k.shows("held/example.net", queue.ItemHeld, "content filter")
		k.lost(old)
		l := k.takeOne(queue.Filter{ID: "held"}, long)
		if l.Token.Item != old.Token.Item || l.Token.Epoch <= old.Token.Epoch || l.Attempts != 0 {
			k.Errorf("took %+v with %d attempts after %+v", l.Token, l.Attempts, old.Token)
		}
		s := settlement(l, queue.Open)
		s.Delay = 0
		k.settle(s)
		k.reopen()
		if l := k.lease(10, long, "example.com"); len(l) != 1 || l[0].Attempts != 1 {
			k.Errorf("leased %v, want it due after one attempt", names(l))
		}
	}, controlling | reopening},
}
