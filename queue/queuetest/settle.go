package queuetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

func isLost(err error) bool { return errors.Is(err, queue.ErrLeaseLost) }

var settleCases = []testCase{
	{"SettleEach", "A recipient that is delivered or failed is not leased again; the others keep their order, their index and their last result.", func(k *kit) {
		k.put(message("m1", "example.net: ann bob cid dan"))
		l := k.one(long)
		s := settlement(l, queue.Delivered)
		s.Results[1] = queue.Result{State: queue.Open, Status: mailspine.Errorf(450, "4.2.1", "Busy")}
		s.Results[2] = queue.Result{State: queue.Failed, Status: mailspine.Errorf(550, "5.1.1", "Unknown")}
		s.Results[3] = queue.Result{State: queue.Open, Status: mailspine.Errorf(452, "4.2.2", "Full")}
		k.settle(s)
		l = k.one(long)
		if rcpts(l) != "bob dan" || len(l.Recipients) != 2 {
			k.Fatalf("left are %s with %d states, want bob and dan", rcpts(l), len(l.Recipients))
		}
		if l.Recipients[0].Index != 1 || l.Recipients[1].Index != 3 {
			k.Errorf("indices %d and %d, want 1 and 3", l.Recipients[0].Index, l.Recipients[1].Index)
		}
		if st := l.Recipients[1].Last.Status; st == nil || st.Reply() != "452 4.2.2 Full" {
			k.Errorf("dan's last status is %v", st)
		}
		s = settlement(l, queue.Open)
		s.Results[0] = queue.Result{State: queue.Delivered}
		k.settle(s)
		l = k.one(long)
		if rcpts(l) != "dan" || l.Recipients[0].Index != 3 {
			k.Errorf("left are %s, want dan with index 3", rcpts(l))
		}
		k.finish(l, queue.Failed)
		k.gone("m1")
	}, 0},
	{"SettleDelay", "Delay is when the recipients that are open are due again.", func(k *kit) {
		k.put(simple("m1"))
		s := settlement(k.one(long), queue.Open)
		s.Delay = k.tick
		start := time.Now()
		k.settle(s)
		k.after(start, k.tick, long)
	}, 0},
	{"SettleCounts", "Attempts counts the deliveries tried so far: each settlement is one.", func(k *kit) {
		k.put(simple("m1"))
		for i := range 4 {
			l := k.one(long)
			if l.Attempts != i {
				k.Fatalf("lease %d has %d attempts", i, l.Attempts)
			}
			k.finish(l, queue.Open)
		}
	}, 0},
	{"SettleKeeps", "What is remembered of a recipient is the whole result of the last attempt, of the status's cause its text, and that the sender was warned.", func(k *kit) {
		k.put(simple("m1"))
		s := settlement(k.one(long), queue.Open)
		cause := "dial tcp 192.0.2.1:25: i/o \xff timeout"
		s.Results[0] = queue.Result{
			State:  queue.Open,
			Status: &mailspine.Error{Code: 451, Enhanced: mailspine.EnhancedCode{4, 4, 2}, Message: "Line one\nline two é", Err: errors.New(cause)},
			Receipt: mailspine.Receipt{RemoteMTA: "mx.example.net", RemoteAddr: "192.0.2.1:25", Reply: "451 4.4.2 Line one", Source: "198.51.100.7",
				TLS: mailspine.TLSInfo{Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256", Peer: "mx.example.net", ServerID: "mx.example.net"}, DSNRelayed: true},
			Warned: true,
		}
		k.settle(s)
		l := k.one(long)
		got := l.Recipients[0]
		if !got.Warned || !got.Last.Warned {
			k.Errorf("Warned is %v, Last.Warned is %v", got.Warned, got.Last.Warned)
		}
		want := s.Results[0]
		if got.Last.State != queue.Open || got.Last.Receipt != want.Receipt {
			k.Errorf("Last is %+v", got.Last)
		}
		st := got.Last.Status
		if st == nil || st.Code != 451 || st.Enhanced != want.Status.Enhanced || st.Message != want.Status.Message {
			k.Fatalf("Status is %+v", st)
		}
		if st.Err == nil || st.Err.Error() != cause {
			k.Errorf("the cause is %v, want its text %q", st.Err, cause)
		}
		k.finish(l, queue.Open) // Warned false now, but "or was before"
		if l = k.one(long); !l.Recipients[0].Warned {
			k.Error("that the sender was warned has been forgotten")
		}
	}, 0},
	{"SettleMany", "Settle's slice has an entry for each Settlement; each of them is a step of its own.", func(k *kit) {
		k.put(simple("m1"))
		k.put(simple("m2"))
		k.put(simple("m3"))
		l := k.lease(3, long)
		if len(l) != 3 {
			k.Fatalf("leased %v", names(l))
		}
		wrong := settlement(l[1], queue.Delivered)
		wrong.Results = append(wrong.Results, queue.Result{State: queue.Delivered})
		gone := settlement(l[0], queue.Delivered)
		gone.Token.Epoch += 1000
		errs, err := k.s.Settle(k.ctx, gone, settlement(l[0], queue.Delivered), wrong, settlement(l[2], queue.Failed))
		if err != nil || len(errs) != 4 {
			k.Fatalf("Settle: %v, %v", errs, err)
		}
		if !isLost(errs[0]) || errs[1] != nil || errs[2] == nil || isLost(errs[2]) || errs[3] != nil {
			k.Errorf("entries %v; want lost, nil, an error about the results, nil", errs)
		}
		k.gone(l[0].Envelope.ID)
		k.gone(l[2].Envelope.ID)
		k.finish(l[1], queue.Delivered) // still held
		if errs, err := k.s.Settle(k.ctx); err != nil || len(errs) != 0 {
			k.Errorf("Settle of nothing: %v, %v", errs, err)
		}
	}, 0},
	{"SettleTwice", "A settlement ends its lease: a second one is ErrLeaseLost.", func(k *kit) {
		k.put(simple("m1"))
		l := k.one(long)
		k.finish(l, queue.Open)
		k.lost(l)
		k.one(long)
	}, 0},
	{"LastItem", "The content is shared by the items of a message, and is removed when the last recipient is done.", func(k *kit) {
		k.put(message("m1", "example.net: ann", "example.com: bob"))
		l := k.lease(10, long)
		if len(l) != 2 || l[0].Token.Item == l[1].Token.Item {
			k.Fatalf("leased %v", names(l))
		}
		k.finish(l[0], queue.Delivered)
		k.read("m1")
		k.finish(l[1], queue.Delivered)
		k.gone("m1")
	}, 0},
	{"Emit", "The messages that a Settlement emits are put in the same step.", func(k *kit) {
		k.put(simple("m1"))
		s := settlement(k.one(long), queue.Failed)
		held := simple("r2")
		held.Hold = "look at it"
		s.Emit = []queue.Emission{{Message: message("r1", "example.org: sender", "example.com: bob"), Content: text("r1")}, {Message: held, Content: text("r2")}}
		k.settle(s)
		k.gone("m1")
		l := k.lease(10, long)
		if len(l) != 2 || l[0].Envelope.ID != "r1" || l[1].Envelope.ID != "r1" {
			k.Fatalf("leased %v, want the two items of r1", names(l))
		}
		if got := k.read("r1"); got != "Subject: r1\r\n\r\nHello.\r\n" {
			k.Errorf("content of the emitted message: %q", got)
		}
		k.read("r2")
		k.finish(l[0], queue.Delivered)
		k.finish(l[1], queue.Delivered)
	}, 0},
	{"EmitIdempotent", "The IDs of what a Settlement emits are idempotent, as in Put, and the settlement happens all the same.", func(k *kit) {
		k.put(message("m1", "example.net: ann", "example.com: bob"))
		k.put(simple("old"))
		l := k.lease(10, long)
		if len(l) != 3 {
			k.Fatalf("leased %v", names(l))
		}
		for _, x := range l {
			s := settlement(x, queue.Failed)
			s.Emit = []queue.Emission{{Message: message("r1", "example.org: sender"), Content: text("r1")}}
			k.settle(s)
		}
		k.gone("m1")
		r := k.one(long)
		s := settlement(r, queue.Delivered)
		s.Emit = []queue.Emission{{Message: simple("old"), Content: text("old")}} // has a tombstone
		k.settle(s)
		k.gone("r1")
		k.none("all was emitted before")
	}, 0},
	{"EmitOwn", "What a Settlement emits may be read from the store itself, from the message that is settled.", func(k *kit) {
		k.put(simple("m1"))
		s := settlement(k.one(long), queue.Failed)
		own := mailspine.Prepend(stored{k.s, "m1", text("m1").Size()}, []byte("Received: again\r\n"))
		s.Emit = []queue.Emission{{Message: simple("r1"), Content: own}}
		k.settle(s)
		k.gone("m1")
		if got := k.read("r1"); got != "Received: again\r\nSubject: m1\r\n\r\nHello.\r\n" {
			k.Errorf("content is %q", got)
		}
	}, 0},
	{"EmitBad", "Each Settlement is one atomic step: if a message that it emits cannot be put, nothing has changed.", func(k *kit) {
		k.put(simple("m1"))
		l := k.one(long)
		for name, e := range map[string]queue.Emission{
			"no ID":      {Message: simple(""), Content: text("")},
			"no content": {Message: simple("r2"), Content: broken{data: "Sub", err: errors.New("read error")}},
		} {
			s := settlement(l, queue.Failed)
			s.Emit = []queue.Emission{{Message: simple("r1"), Content: text("r1")}, e}
			errs, err := k.s.Settle(k.ctx, s)
			if err == nil && (len(errs) != 1 || errs[0] == nil) {
				k.Errorf("%s: Settle: %v, %v; want an error", name, errs, err)
			}
		}
		k.gone("r1")
		k.gone("r2")
		k.read("m1")
		k.none("the item is leased still")
		k.finish(l, queue.Delivered)
	}, 0},
	{"Together", "All methods are safe for concurrent use; every recipient is settled as done exactly once.", func(k *kit) {
		const producers, each = 4, 30
		var wg sync.WaitGroup
		var done sync.Map
		var left atomic.Int64
		left.Store(producers * each * 2)
		for p := range producers {
			wg.Go(func() {
				for i := range each {
					id := fmt.Sprintf("m%d-%d", p, i)
					if err := k.s.Put(k.ctx, message(id, "example.net: ann", fmt.Sprintf("d%d.example: bob", i%5)), text(id)); err != nil {
						k.Errorf("Put: %v", err)
						left.Add(-2)
					}
				}
			})
		}
		deadline := time.Now().Add(patience)
		for w := range 4 {
			wg.Go(func() {
				for n := w; left.Load() > 0 && time.Now().Before(deadline); n++ {
					l, err := k.s.Lease(k.ctx, queue.LeaseRequest{Max: 4, TTL: long})
					if err != nil {
						k.Errorf("Lease: %v", err)
						return
					}
					if len(l) == 0 {
						time.Sleep(time.Millisecond)
					}
					for i, x := range l {
						if r, err := k.s.Open(k.ctx, x.Envelope.ID); err != nil {
							k.Errorf("Open: %v", err)
						} else {
							r.Close()
						}
						switch (n + i) % 4 {
						case 0:
							if err := k.s.Abandon(k.ctx, 0, "not now", x.Token); err != nil {
								k.Errorf("Abandon: %v", err)
							}
							continue
						case 1:
							if errs, err := k.s.Settle(k.ctx, settlement(x, queue.Open)); err != nil || errs[0] != nil {
								k.Errorf("Settle: %v, %v", errs, err)
							}
							continue
						}
						if errs, err := k.s.Settle(k.ctx, settlement(x, queue.Delivered)); err != nil || errs[0] != nil {
							k.Errorf("Settle: %v, %v", errs, err)
						}
						if _, twice := done.LoadOrStore(x.Token.Item, true); twice {
							k.Errorf("item %d was delivered twice", x.Token.Item)
						}
						left.Add(-1)
					}
				}
			})
		}
		wg.Wait()
		if n := left.Load(); n != 0 {
			k.Errorf("%d items were never delivered", n)
		}
		k.none("all was delivered")
	}, 0},
}

// stored is the content of a message in a store.
type stored struct {
	s    queue.Store
	id   mailspine.MsgID
	size int64
}

func (c stored) Size() int64 { return c.size }

func (c stored) Open(ctx context.Context) (io.ReadCloser, error) { return c.s.Open(ctx, c.id) }
