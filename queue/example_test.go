package queue_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
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

// An operator stops what a tenant sends, looks at it, and gives part of it up.
func ExampleQueue_Control() {
	ctx := context.Background()
	q := &queue.Queue{Store: memqueue.New(nil), Hostname: "mx.example.org", Logger: slog.New(slog.DiscardHandler)}
	joe, _ := mailspine.ParseAddress("joe@example.org")
	for _, to := range []string{"ann@example.net", "bob@example.net", "cid@example.com"} {
		rcpt, _ := mailspine.ParseAddress(to)
		env := &mailspine.Envelope{From: joe, Tenant: "shop", Recipients: []mailspine.Recipient{{Address: rcpt}}}
		if err := q.Deliver(ctx, env, mailspine.StringContent("Subject: hello\r\n\r\nHello.\r\n")); err != nil {
			fmt.Println(err)
		}
	}

	shop := queue.Filter{Tenant: "shop"}
	done, err := q.Control(ctx, shop, queue.Command{Op: queue.OpHold, Reason: "is this spam?"})
	fmt.Println(done.Changed, "held", err)
	done, err = q.Bounce(ctx, queue.Filter{Tenant: "shop", Domain: "example.com"}, mailspine.Errorf(554, "5.7.1", "Not from here"))
	fmt.Println(done.Changed, "bounced", err)
	done, err = q.Control(ctx, shop, queue.Command{Op: queue.OpRelease})
	fmt.Println(done.Changed, "released", err)

	var all []string
	for it, err := range q.List(ctx, queue.Filter{}) {
		if err != nil {
			fmt.Println(err)
			return
		}
		all = append(all, fmt.Sprint(it.State, " from ", it.Envelope.From.Path(), " to ", it.Envelope.Recipients[0].Address.Path()))
	}
	slices.Sort(all)
	fmt.Println(strings.Join(all, "\n"))
	fmt.Println(q.Health(ctx))
	// Output:
	// 3 held <nil>
	// 1 bounced <nil>
	// 2 released <nil>
	// due from <> to <joe@example.org>
	// due from <joe@example.org> to <ann@example.net>
	// due from <joe@example.org> to <bob@example.net>
	// queue: Run is not running: nothing is delivered
}
