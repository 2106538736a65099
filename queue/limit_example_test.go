package queue_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// A message counts against the login's hour and day and the tenant's rate, all or none. What was not used is given back.
func ExampleLimiter() {
	ctx := context.Background()
	noon := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	limiter := memqueue.NewLimiter(&memqueue.LimiterOptions{Now: func() time.Time { return noon }})
	defer limiter.Close()
	limits := []queue.Limit{
		{Kind: queue.Quota, Key: "login/ann", Max: 100, Per: time.Hour},
		{Kind: queue.Quota, Key: "login/ann", Max: 250, Per: queue.Day},
		{Kind: queue.Rate, Key: "tenant/shop", Max: 600, Per: time.Hour, Burst: 200},
	}
	permit, err := limiter.Take(ctx, queue.TakeRequest{Limits: limits, N: 90})
	fmt.Println(permit.N, err)
	limiter.Return(ctx, permit.ID, 3) // three of the recipients were refused

	_, err = limiter.Take(ctx, queue.TakeRequest{Limits: limits, N: 20})
	var over *queue.OverLimit
	fmt.Println(errors.As(err, &over))
	fmt.Println(over)

	// As many as there is room for.
	permit, err = limiter.Take(ctx, queue.TakeRequest{Limits: limits, N: 20, Min: 1})
	fmt.Println(permit.N, err)
	usage, _ := limiter.Usage(ctx, limits...)
	for _, u := range usage {
		fmt.Printf("%v: %d used, room for %d\n", u.Limit, u.Used, u.Room)
	}
	// Output:
	// 90 <nil>
	// true
	// queue: quota login/ann (100 in 1h0m0s) has room for 13, not 20: again in 1h0m0s
	// 13 <nil>
	// quota login/ann (100 in 1h0m0s): 100 used, room for 0
	// quota login/ann (250 in 24h0m0s): 100 used, room for 150
	// rate tenant/shop (600 in 1h0m0s, 200 at once): 100 used, room for 100
}

// In front of a queue, Limited holds each login to its quota.
func ExampleLimited() {
	ctx := context.Background()
	limiter := memqueue.NewLimiter(nil)
	defer limiter.Close()
	store := memqueue.New(nil)
	defer store.Close()
	door := &queue.Limited{
		Next:    &queue.Queue{Store: store},
		Limiter: limiter,
		Limits: func(env *mailspine.Envelope) []queue.Limit {
			return []queue.Limit{{Kind: queue.Quota, Key: "login/" + env.Origin.Login, Max: 2, Per: queue.Day}}
		},
		Counts: func(err error) bool { return err == nil }, // what the queue did not accept is nobody's mail
	}
	send := func(login string) error {
		return door.Deliver(ctx, &mailspine.Envelope{
			Origin:     mailspine.Origin{Login: login},
			Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "bob", Domain: "example.net"}}},
		}, mailspine.StringContent("Subject: hello\r\n\r\n"))
	}
	for range 2 {
		fmt.Println("ann:", send("ann"))
	}
	err := send("ann")
	fmt.Println("ann:", mailspine.Status(err).Reply())
	var later *mailspine.NotNow
	if errors.As(err, &later) {
		fmt.Println(later.Rule)
	}
	fmt.Println("joe:", send("joe"))
	// Output:
	// ann: <nil>
	// ann: <nil>
	// ann: 451 4.3.2 Not accepting this message now, try again later
	// quota login/ann
	// joe: <nil>
}

// Two nodes share one cap, and ask for ten at a time.
func ExampleNewBlockLimiter() {
	ctx := context.Background()
	shared := memqueue.NewLimiter(nil) // that of a database, where the nodes are different machines
	defer shared.Close()
	sent := 0
	for range 2 {
		node := queue.NewBlockLimiter(shared, &queue.BlockOptions{Block: 10})
		for range 100 {
			_, err := node.Take(ctx, queue.TakeRequest{Limits: []queue.Limit{{Kind: queue.Quota, Key: "ip/192.0.2.1", Max: 150, Per: queue.MaxPer}}})
			if err == nil {
				sent++
			}
		}
		node.Close()
	}
	fmt.Println(sent)
	// Output: 150
}
