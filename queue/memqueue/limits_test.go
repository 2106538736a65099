package memqueue_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

func message(id string) queue.Message {
	return queue.Message{
		Envelope: &mailspine.Envelope{ID: mailspine.MsgID(id), Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "ann", Domain: "example.net"}}}},
		Items:    []queue.NewItem{{Route: "example.net", Recipients: []int{0}}},
	}
}

func isFull(err error) bool {
	return err != nil && mailspine.Status(err).Code == 452 && mailspine.Status(err).Enhanced == (mailspine.EnhancedCode{4, 3, 1})
}

func TestFull(t *testing.T) {
	ctx := context.Background()
	for name, o := range map[string]*memqueue.Options{"messages": {MaxMessages: 3}, "bytes": {MaxBytes: 35}} {
		s := memqueue.New(o)
		body := mailspine.StringContent("0123456789")
		for i := range 3 {
			if err := s.Put(ctx, message(fmt.Sprintf("m%d", i)), body); err != nil {
				t.Fatalf("%s: Put: %v", name, err)
			}
		}
		if err := s.Put(ctx, message("m3"), body); !isFull(err) {
			t.Errorf("%s: Put to a full store: %v, want 452 4.3.1", name, err)
		}
		if err := s.Put(ctx, message("m1"), body); err != nil {
			t.Errorf("%s: Put of a stored ID to a full store: %v", name, err)
		}
		if st, err := s.Stats(ctx); err != nil || st.Messages != 3 || st.Bytes != 30 {
			t.Errorf("%s: Stats: %+v, %v", name, st, err)
		}
		if err := s.Health(ctx); (name == "messages") != isFull(err) {
			t.Errorf("%s: Health: %v", name, err)
		}
		// A report is never refused: it takes its message's place.
		l, err := s.Lease(ctx, queue.LeaseRequest{Max: 1})
		if err != nil || len(l) != 1 {
			t.Fatalf("%s: Lease: %v, %v", name, l, err)
		}
		errs, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{State: queue.Failed}},
			Emit: []queue.Emission{{Message: message("report"), Content: body}}})
		if err != nil || errs[0] != nil {
			t.Errorf("%s: Settle: %v, %v", name, errs, err)
		}
		l, _ = s.Lease(ctx, queue.LeaseRequest{Max: 1})
		if _, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{State: queue.Delivered}}}); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(ctx, message("m4"), body); err != nil {
			t.Errorf("%s: Put when there is room again: %v", name, err)
		}
	}
}

// What is being read counts: many at once do not pass the limit.
func TestFullConcurrent(t *testing.T) {
	s := memqueue.New(&memqueue.Options{MaxMessages: 10, MaxBytes: 1000})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if err := s.Put(context.Background(), message(fmt.Sprintf("m%d", i)), mailspine.BytesContent(make([]byte, 90))); err != nil && !isFull(err) {
				t.Errorf("Put: %v", err)
			}
		})
	}
	wg.Wait()
	if st, err := s.Stats(context.Background()); err != nil || st.Messages > 10 || st.Bytes > 1000 || st.Messages == 0 {
		t.Errorf("Stats: %+v, %v", st, err)
	}
}

func TestMaxTombstones(t *testing.T) {
	ctx := context.Background()
	s := memqueue.New(&memqueue.Options{MaxTombstones: 5})
	for i := range 10 {
		if err := s.Put(ctx, message(fmt.Sprintf("m%d", i)), mailspine.StringContent("")); err != nil {
			t.Fatal(err)
		}
		l, err := s.Lease(ctx, queue.LeaseRequest{})
		if err != nil || len(l) != 1 {
			t.Fatalf("Lease: %v, %v", l, err)
		}
		if _, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{}}[:1:1], Delay: 0}); err != nil {
			t.Fatal(err)
		}
		l, _ = s.Lease(ctx, queue.LeaseRequest{})
		if _, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{State: queue.Delivered}}}); err != nil {
			t.Fatal(err)
		}
	}
	for id, known := range map[string]bool{"m9": true, "m5": true, "m0": false} {
		if err := s.Put(ctx, message(id), mailspine.StringContent("")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(ctx, mailspine.MsgID(id)); (err != nil) != known {
			t.Errorf("Put of %s after it was finished: stored %v, want %v", id, err == nil, !known)
		}
	}
}
