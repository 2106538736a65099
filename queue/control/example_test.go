package control_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/control"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// A queue with a control socket, and an operator who holds back what a tenant sends.
func Example() {
	ctx := context.Background()
	quiet := slog.New(slog.DiscardHandler)
	store := memqueue.New(nil)
	defer store.Close()
	q := &queue.Queue{Store: store, Logger: quiet}
	for _, tenant := range []string{"acme", "acme", "other"} {
		env := &mailspine.Envelope{
			From: mailspine.Address{Local: "ann", Domain: "example.org"}, Tenant: tenant,
			Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "bob", Domain: "example.net"}}},
		}
		if err := q.Deliver(ctx, env, mailspine.StringContent("Subject: hello\r\n\r\n")); err != nil {
			fmt.Println(err)
		}
	}

	// In the process that has the queue:
	dir, err := os.MkdirTemp("", "spool")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "control")
	l, err := control.Listen(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &control.Server{Queue: q, Logger: quiet}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()

	// In another one:
	c := &control.Client{Path: path}
	changed, err := c.Control(ctx, queue.Filter{Tenant: "acme"}, queue.Command{Op: queue.OpHold, Reason: "unpaid"})
	fmt.Println(changed.Changed, "items held", err)
	for it, err := range c.List(ctx, queue.Filter{State: queue.ItemHeld}) {
		fmt.Println(it.Envelope.From, it.State, it.Reason, err)
	}
	st, err := c.StoreStats(ctx)
	fmt.Println(st.Items, "items,", st.Held, "held", err)

	server.Close()
	fmt.Println(<-served)
	// Output:
	// 2 items held <nil>
	// ann@example.org held unpaid <nil>
	// ann@example.org held unpaid <nil>
	// 3 items, 2 held <nil>
	// <nil>
}
