package memqueue_test

import (
	"context"
	"fmt"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

func Example() {
	ctx := context.Background()
	store := memqueue.New(&memqueue.Options{MaxMessages: 1})
	defer store.Close()
	q := &queue.Queue{Store: store}
	send := func(local string) {
		err := q.Deliver(ctx, &mailspine.Envelope{
			Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: local, Domain: "example.net"}}},
		}, mailspine.StringContent("Subject: hello\r\n\r\n"))
		if err != nil {
			fmt.Println(mailspine.Status(err).Reply())
		}
	}
	send("ann")
	send("bob")
	st, _ := store.Stats(ctx)
	fmt.Println(st.Messages, "message,", st.Due, "item due")
	// Output:
	// 452 4.3.1 Insufficient system storage
	// 1 message, 1 item due
}
