package queue_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// A message for two: one recipient is refused for good, and the sender is told so.
func ExampleQueue() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	next := mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
		res := make(mailspine.RecipientErrors, len(env.Recipients))
		for i, r := range env.Recipients {
			if r.Address.Local == "bob" {
				res[i] = mailspine.Errorf(550, "5.1.1", "No such user")
			}
			fmt.Println("from", env.From.Path(), "to", r.Address.Path())
		}
		if env.From.IsZero() {
			close(done) // the report
		}
		return res.Err()
	})
	q := &queue.Queue{
		Store: memqueue.New(nil), Next: next, Hostname: "mx.example.org",
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	ended := make(chan error)
	go func() { ended <- q.Run(ctx) }()

	ann, _ := mailspine.ParseAddress("ann@example.net")
	bob, _ := mailspine.ParseAddress("bob@example.net")
	joe, _ := mailspine.ParseAddress("joe@example.org")
	err := q.Deliver(ctx, &mailspine.Envelope{
		From:       joe,
		Recipients: []mailspine.Recipient{{Address: ann}, {Address: bob}},
	}, mailspine.StringContent("Subject: hello\r\n\r\nHello.\r\n"))
	fmt.Println("stored:", err == nil)
	<-done
	stop()
	fmt.Println("ended:", <-ended)
	c := q.Stats()
	fmt.Println(c.Delivered, "delivered,", c.Failed, "failed,", c.Reports, "reported")
	// Unordered output:
	// stored: true
	// from <joe@example.org> to <ann@example.net>
	// from <joe@example.org> to <bob@example.net>
	// from <> to <joe@example.org>
	// ended: <nil>
	// 2 delivered, 1 failed, 1 reported
}

func ExampleDefaultRetry() {
	p := queue.DefaultRetry{Jitter: -1}
	fmt.Println(p.Next(1, 0, 0))
	fmt.Println(p.Next(3, 15*time.Minute, 0))
	fmt.Println(p.Next(40, 5*24*time.Hour, 0))
	// Output:
	// 5m0s true
	// 20m0s true
	// 0s false
}
