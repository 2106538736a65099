package queuetest

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

func (k *kit) reopen() {
	k.Helper()
	s := k.h.Reopen(k.T, k.s)
	if s == nil {
		k.Fatal("queuetest: Harness.Reopen returned nil")
	}
	k.s = s
}

var reopenCases = []testCase{
	{"ReopenPut", "When Put returns nil, message and items survive.", func(k *kit) {
		want := fullEnvelope()
		body := pattern(300 << 10)
		m := queue.Message{Envelope: want.Clone(), Items: []queue.NewItem{{Route: "r1", Recipients: []int{0}}, {Route: "r2", Recipients: []int{1}}}}
		if err := k.s.Put(k.ctx, m, mailspine.BytesContent(body)); err != nil {
			k.Fatal(err)
		}
		k.put(simple("m2"))
		k.reopen()
		l := k.lease(10, long)
		if len(l) != 3 {
			k.Fatalf("leased %v, want three items", names(l))
		}
		for _, x := range l {
			if x.Envelope.ID == "m2" {
				continue
			}
			env := want.Clone()
			env.Recipients = env.Recipients[x.Recipients[0].Index:][:1]
			if d := cmp.Diff(env, x.Envelope, sameEnvelope); d != "" || x.Size != int64(len(body)) {
				k.Errorf("size %d, want %d; envelope (-put +leased):\n%s", x.Size, len(body), d)
			}
		}
		if got := k.read(want.ID); got != string(body) {
			k.Errorf("%d octets of content, want %d", len(got), len(body))
		}
		if got := k.read("m2"); got != "Subject: m2\r\n\r\nHello.\r\n" {
			k.Errorf("content %q", got)
		}
	}, reopening},
	{"ReopenSettle", "A Settlement is durable: results, attempts, delay and what it emitted survive, and what is done stays done.", func(k *kit) {
		k.put(message("m1", "example.net: ann bob cid"))
		l := k.one(long)
		s := settlement(l, queue.Open)
		s.Results[0] = queue.Result{State: queue.Delivered}
		s.Results[1].Warned = true
		s.Results[1].Status = &mailspine.Error{Code: 450, Message: "Busy", Err: errors.New("cause")}
		s.Results[1].Receipt = mailspine.Receipt{RemoteMTA: "mx.example.net", DSNRelayed: true}
		s.Results[2] = queue.Result{State: queue.Failed}
		s.Delay = k.tick
		s.Emit = []queue.Emission{{Message: message("r1", "example.org: sender"), Content: text("r1")}}
		start := time.Now()
		k.settle(s)
		k.put(simple("m2"))
		for _, x := range k.lease(1, long, "example.org") {
			k.finish(x, queue.Delivered)
		}
		k.reopen()
		k.gone("m2")
		r := k.lease(10, long, "example.net")
		if len(r) != 1 || r[0].Envelope.ID != "r1" {
			k.Fatalf("leased %v, want the report", names(r))
		}
		if got := k.read("r1"); got != "Subject: r1\r\n\r\nHello.\r\n" {
			k.Errorf("content of the report: %q", got)
		}
		next := k.after(start, k.tick, long)
		if rcpts(next) != "bob" || next.Attempts != 1 || next.Recipients[0].Index != 1 || !next.Recipients[0].Warned {
			k.Fatalf("left are %s, %d attempts, %+v", rcpts(next), next.Attempts, next.Recipients)
		}
		last := next.Recipients[0].Last
		if last.Status == nil || last.Status.Code != 450 || last.Status.Message != "Busy" || last.Status.Err == nil || last.Status.Err.Error() != "cause" || last.Receipt != s.Results[1].Receipt {
			k.Errorf("last result %+v, status %v", last, last.Status)
		}
		if next.Token.Item != l.Token.Item || next.Token.Epoch <= l.Token.Epoch {
			k.Errorf("lease %+v after %+v", next.Token, l.Token)
		}
		k.finish(next, queue.Delivered)
		k.reopen()
		k.gone("m1")
	}, reopening},
	{"ReopenTombstone", "A Put of an ID that was stored within the last hour changes nothing, also after a restart.", func(k *kit) {
		k.put(simple("m1"))
		k.finish(k.one(long), queue.Delivered)
		k.reopen()
		k.put(simple("m1"))
		k.none("the message was finished a moment ago")
	}, reopening},
	{"ReopenLease", "Leases end by themselves, or when the store is opened again; the old token can change nothing then.", func(k *kit) {
		k.put(simple("m1"))
		old := k.one(k.tick)
		k.reopen()
		l, _ := k.soon(time.Now(), long)
		if l.Token.Item != old.Token.Item || l.Token.Epoch <= old.Token.Epoch || l.Attempts != 0 {
			k.Errorf("lease %+v with %d attempts after %+v", l.Token, l.Attempts, old.Token)
		}
		k.lost(old)
		k.finish(l, queue.Delivered)
	}, reopening},
	{"ReopenWaiting", "A delay, an abandoned lease's delay and a hold survive.", func(k *kit) {
		d := 4 * k.tick // long enough to put all, in real time
		held, late := simple("held"), simple("late")
		held.Hold = "look at it"
		late.Delay = 2 * d
		start := time.Now()
		k.put(late)
		k.put(held)
		k.put(simple("m1"))
		if err := k.s.Abandon(k.ctx, d, "later", k.one(long).Token); err != nil {
			k.Fatal(err)
		}
		k.reopen()
		if l := k.after(start, d, long); l.Envelope.ID != "m1" || l.Attempts != 0 {
			k.Errorf("first %s with %d attempts, want m1 with 0", l.Envelope.ID, l.Attempts)
		}
		if l := k.after(start, 2*d, long); l.Envelope.ID != "late" {
			k.Errorf("then %s, want late", l.Envelope.ID)
		}
		k.none("the third is held")
		k.read("held")
	}, reopening},
	{"ReopenItemIDs", "An ItemID is never used again.", func(k *kit) {
		seen := map[queue.ItemID]bool{}
		for i := range 4 {
			k.put(simple(fmt.Sprintf("m%d", i)))
			l := k.one(long)
			if seen[l.Token.Item] {
				k.Errorf("item %d was another message's before", l.Token.Item)
			}
			seen[l.Token.Item] = true
			k.finish(l, queue.Delivered)
			k.reopen()
		}
	}, reopening},
	{"ReopenMany", "What is stored survives any number of restarts, and is there once.", func(k *kit) {
		const n = 300
		for i := range n {
			k.put(message(fmt.Sprintf("m%d", i), fmt.Sprintf("d%d.example: ann", i%3)))
			if i%50 == 0 {
				k.reopen()
			}
		}
		done := 0
		for _, l := range k.lease(100, long) {
			k.finish(l, queue.Delivered)
			done++
		}
		k.reopen()
		k.reopen()
		left := k.lease(n, long)
		if done+len(left) != n {
			k.Errorf("%d were delivered and %d are left, want %d together", done, len(left), n)
		}
	}, reopening},
}
