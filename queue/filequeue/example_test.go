package filequeue_test

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// What is put is there when the store is opened again. Programs give a Store to
// a queue.Queue, which does what is done by hand here.
func Example() {
	dir, err := os.MkdirTemp("", "spool")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	store, err := filequeue.Open(dir, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	env := &mailspine.Envelope{
		ID:         "first",
		From:       mailspine.Address{Local: "ann", Domain: "example.org"},
		Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "bob", Domain: "example.net"}}},
	}
	m := queue.Message{Envelope: env, Items: []queue.NewItem{{Route: "example.net", Recipients: []int{0}}}}
	err = store.Put(ctx, m, mailspine.StringContent("Subject: Hello\r\n\r\nHello, Bob.\r\n"))
	fmt.Println("put:", err)
	store.Close()

	store, err = filequeue.Open(dir, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer store.Close()
	leases, err := store.Lease(ctx, queue.LeaseRequest{Max: 10})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, l := range leases {
		r, err := store.Open(ctx, l.Envelope.ID)
		if err != nil {
			fmt.Println(err)
			return
		}
		b, _ := io.ReadAll(r)
		r.Close()
		fmt.Printf("%s to %s: %d octets\n", l.Envelope.ID, l.Envelope.Recipients[0].Address, len(b))
		errs, err := store.Settle(ctx, queue.Settlement{Token: l.Token, Results: []queue.Result{{State: queue.Delivered}}})
		fmt.Println("settled:", errs, err)
	}
	stats, _ := store.Stats(ctx)
	fmt.Println("left:", stats.Messages)
	// Output:
	// put: <nil>
	// first to bob@example.net: 31 octets
	// settled: [<nil>] <nil>
	// left: 0
}
