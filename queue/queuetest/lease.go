package queuetest

import (
	"fmt"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

var leaseCases = []testCase{
	{"LeaseNone", "Lease returns at once, with none if none is due.", func(k *kit) {
		start := time.Now()
		k.none("the store is empty")
		if k.h.Synctest && time.Since(start) != 0 {
			k.Errorf("Lease of nothing took %v", time.Since(start))
		}
	}, 0},
	{"LeaseMax", "Lease returns up to Max items; 0 is 1.", func(k *kit) {
		for i := range 5 {
			k.put(simple(fmt.Sprintf("m%d", i)))
		}
		l, err := k.s.Lease(k.ctx, queue.LeaseRequest{TTL: long})
		if err != nil || len(l) != 1 {
			k.Errorf("Max 0: %v, %v; want one", names(l), err)
		}
		if l := k.lease(3, long); len(l) != 3 {
			k.Errorf("Max 3 of 4: %v", names(l))
		}
		if l := k.lease(3, long); len(l) != 1 {
			k.Errorf("Max 3 of 1: %v", names(l))
		}
	}, 0},
	{"LeaseExclusive", "Two callers never hold the same lease.", func(k *kit) {
		const n = 200
		for i := range n {
			k.put(message(fmt.Sprintf("m%d", i), fmt.Sprintf("d%d.example: ann", i%7)))
		}
		var mu sync.Mutex
		seen := map[queue.ItemID]int{}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					l, err := k.s.Lease(k.ctx, queue.LeaseRequest{Max: 3, TTL: long})
					if err != nil {
						k.Errorf("Lease: %v", err)
					}
					if len(l) == 0 {
						return
					}
					mu.Lock()
					for _, x := range l {
						seen[x.Token.Item]++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		for id, c := range seen {
			if c != 1 {
				k.Errorf("item %d was leased %d times at the same time", id, c)
			}
		}
		if len(seen) != n {
			k.Errorf("%d items were leased, want %d", len(seen), n)
		}
	}, 0},
	{"LeaseEpoch", "Each lease of an item has a higher Epoch than the one before.", func(k *kit) {
		k.put(simple("m1"))
		var last queue.Token
		for i := range 5 {
			l := k.one(long)
			if i > 0 && (l.Token.Item != last.Item || l.Token.Epoch <= last.Epoch) {
				k.Errorf("lease %d is %+v after %+v", i, l.Token, last)
			}
			last = l.Token
			if i%2 == 0 {
				k.finish(l, queue.Open)
			} else if err := k.s.Abandon(k.ctx, 0, "", l.Token); err != nil {
				k.Fatalf("Abandon: %v", err)
			}
		}
	}, 0},
	{"LeaseExpires", "A lease that ends makes the item due again, not before its TTL, and no attempt is counted.", func(k *kit) {
		k.put(simple("m1"))
		start := time.Now()
		first := k.one(k.tick)
		second := k.after(start, k.tick, long)
		if second.Token.Item != first.Token.Item || second.Token.Epoch <= first.Token.Epoch {
			k.Errorf("leases %+v and then %+v", first.Token, second.Token)
		}
		if second.Attempts != 0 {
			k.Errorf("a lease that ended counts %d attempts", second.Attempts)
		}
	}, 0},
	{"LeaseDefaultTTL", "A lease whose TTL is 0 lasts 5 minutes.", func(k *kit) {
		k.put(simple("m1"))
		start := time.Now()
		k.one(0)
		k.after(start, queue.DefaultLeaseTTL, long)
	}, hours},
	{"LeaseEnded", "The epoch fences: with a lease that has ended nothing can be changed, even before somebody else takes the item.", func(k *kit) {
		k.put(simple("m1"))
		l := k.one(k.tick)
		time.Sleep(k.tick + k.tick/2)
		k.lost(l)
		if lost, err := k.s.Extend(k.ctx, long, l.Token); err != nil || len(lost) != 1 || lost[0] != l.Token {
			k.Errorf("Extend of an ended lease: lost %v, %v", lost, err)
		}
		if err := k.s.Abandon(k.ctx, long, "", l.Token); err != nil {
			k.Errorf("Abandon of an ended lease: %v, want nil", err)
		}
		k.one(long)
	}, 0},
	{"FencedSettle", "Settle with a lease that is not held any more is ErrLeaseLost, and nothing has changed.", func(k *kit) {
		k.put(simple("m1"))
		start := time.Now()
		old := k.one(k.tick)
		l := k.after(start, k.tick, long)
		s := settlement(old, queue.Failed)
		s.Emit = []queue.Emission{{Message: simple("report"), Content: text("report")}}
		errs, err := k.s.Settle(k.ctx, s)
		if err != nil || len(errs) != 1 || errs[0] != nil && !isLost(errs[0]) || errs[0] == nil {
			k.Fatalf("Settle: %v, %v, want one queue.ErrLeaseLost", errs, err)
		}
		k.gone("report")
		k.read("m1")
		k.none("the item is leased by somebody else")
		k.finish(l, queue.Delivered)
		k.gone("m1")
		k.lost(l) // and twice is once too often
	}, 0},
	{"FencedExtend", "Leases that had been lost already are returned by Extend, and nothing is changed for them.", func(k *kit) {
		k.put(simple("m1"))
		start := time.Now()
		old := k.one(k.tick)
		l := k.after(start, k.tick, k.tick)
		unknown := queue.Token{Item: 1 << 60, Epoch: 1}
		start = time.Now()
		lost, err := k.s.Extend(k.ctx, 100*k.tick, old.Token, unknown)
		if err != nil || len(lost) != 2 {
			k.Fatalf("Extend: lost %v, %v; want %v", lost, err, []queue.Token{old.Token, unknown})
		}
		third, took := k.soon(start, long)
		if third.Token.Item != l.Token.Item || k.h.Synctest && took > 2*k.tick {
			k.Errorf("a lost lease extended the one that is held: due after %v", took)
		}
	}, 0},
	{"FencedAbandon", "Abandon ignores leases that are lost.", func(k *kit) {
		k.put(simple("m1"))
		start := time.Now()
		old := k.one(k.tick)
		l := k.after(start, k.tick, long)
		if err := k.s.Abandon(k.ctx, 0, "", old.Token, queue.Token{Item: 1 << 60}); err != nil {
			k.Fatalf("Abandon: %v, want nil", err)
		}
		k.none("somebody else holds the lease")
		k.finish(l, queue.Delivered)
	}, 0},
	{"Extend", "Extend makes leases last for ttl from now.", func(k *kit) {
		k.put(simple("m1"))
		start := time.Now()
		l := k.one(20 * k.tick)
		lost, err := k.s.Extend(k.ctx, 40*k.tick, l.Token)
		if err != nil || len(lost) != 0 {
			k.Fatalf("Extend: lost %v, %v", lost, err)
		}
		if k.h.Synctest {
			time.Sleep(39 * k.tick)
			k.none("the lease was extended")
			if lost, err := k.s.Extend(k.ctx, 40*k.tick, l.Token); err != nil || len(lost) != 0 {
				k.Fatalf("Extend again: lost %v, %v", lost, err)
			}
			k.after(start, 79*k.tick, long)
			k.lost(l)
			return
		}
		if lost, err := k.s.Extend(k.ctx, k.tick, l.Token); err != nil || len(lost) != 0 {
			k.Fatalf("Extend again: lost %v, %v", lost, err)
		}
		k.after(start, k.tick, long)
		k.lost(l)
	}, 0},
	{"Abandon", "Abandon ends leases without a delivery having been tried: the attempt is not counted, and the items are due again after delay.", func(k *kit) {
		k.put(message("m1", "example.net: ann bob"))
		l := k.one(long)
		s := settlement(l, queue.Open)
		k.settle(s)
		l = k.one(long)
		start := time.Now()
		if err := k.s.Abandon(k.ctx, k.tick, "daily cap", l.Token); err != nil {
			k.Fatalf("Abandon: %v", err)
		}
		l2 := k.after(start, k.tick, long)
		if l2.Attempts != 1 || rcpts(l2) != "ann bob" || l2.Recipients[0].Last.Status == nil {
			k.Errorf("after Abandon: %d attempts, want 1; recipients %s; states %+v", l2.Attempts, rcpts(l2), l2.Recipients)
		}
		k.lost(l)
	}, 0},
	{"LeaseOwned", "Slices and envelopes returned by a Store belong to the caller.", func(k *kit) {
		m := message("m1", "example.net: ann bob")
		m.Envelope.Meta = map[string]string{"k": "v"}
		m.Envelope.Verdict = &mailspine.Verdict{SPF: "pass", DKIMDomains: []string{"example.org"}}
		k.put(m)
		l := k.one(long)
		k.finish(l, queue.Open)
		l = k.one(long)
		tok := l.Token
		l.Envelope.Recipients[0].Address.Local = "eve"
		l.Envelope.Meta["k"] = "changed"
		l.Envelope.Verdict.DKIMDomains[0] = "example.com"
		l.Recipients[0].Last.Status.Message = "changed"
		if err := k.s.Abandon(k.ctx, 0, "", tok); err != nil {
			k.Fatal(err)
		}
		l = k.one(long)
		if rcpts(l) != "ann bob" || l.Envelope.Meta["k"] != "v" || l.Envelope.Verdict.DKIMDomains[0] != "example.org" || l.Recipients[0].Last.Status.Message != "Try later" {
			k.Errorf("what the caller changed came back: %+v %+v", l.Envelope, l.Recipients)
		}
	}, 0},
	{"Age", "The age of a lease is the time since the message was put.", func(k *kit) {
		k.put(simple("m1"))
		start := time.Now()
		k.one(k.tick)
		l := k.after(start, k.tick, long)
		if l.Age < k.tick || k.h.Synctest && l.Age > 2*k.tick {
			k.Errorf("Age is %v, want about %v", l.Age, k.tick)
		}
	}, 0},
}
