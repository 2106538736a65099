package queue_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// page is a message of 2 KiB.
var page = append([]byte(letter), bytes.Repeat([]byte("All work and no play makes a dull message, as everybody knows.\r\n"), 30)...)

// What accepting costs beside the store: routing, the look for a loop, the log.
func BenchmarkDeliver(b *testing.B) {
	store := memqueue.New(&memqueue.Options{MaxMessages: 1 << 30, MaxBytes: 1 << 40})
	defer store.Close()
	q := &queue.Queue{Store: store, Hostname: "mx.example.org", Logger: slog.New(slog.DiscardHandler)}
	msg := mailspine.BytesContent(page)
	b.ReportAllocs()
	for b.Loop() {
		if err := q.Deliver(context.Background(), envelope("", "ann@example.net"), msg); err != nil {
			b.Fatal(err)
		}
	}
}

// The whole way of a message through the engine, to a Next that takes everything.
func BenchmarkRun(b *testing.B) {
	for _, c := range []struct{ routes, concurrency, perRoute int }{{1, 32, 8}, {200, 32, 8}, {200, 200, 8}, {2000, 1000, 4}} {
		b.Run(fmt.Sprintf("routes=%d/concurrency=%d", c.routes, c.concurrency), func(b *testing.B) {
			store := memqueue.New(&memqueue.Options{MaxMessages: 1 << 30, MaxBytes: 1 << 40})
			defer store.Close()
			var left atomic.Int64
			left.Store(int64(b.N))
			done := make(chan struct{})
			q := &queue.Queue{
				Store: store, Hostname: "mx.example.org", Logger: slog.New(slog.DiscardHandler), Concurrency: c.concurrency, PerRoute: c.perRoute,
				Next: mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
					if left.Add(-1) == 0 {
						close(done)
					}
					return nil
				}),
			}
			msg := mailspine.BytesContent([]byte(letter))
			for i := range b.N {
				if err := q.Deliver(context.Background(), envelope("", fmt.Sprintf("ann@d%d.example", i%c.routes)), msg); err != nil {
					b.Fatal(err)
				}
			}
			ctx, stop := context.WithCancel(context.Background())
			b.ReportAllocs()
			b.ResetTimer()
			ended := make(chan error)
			go func() { ended <- q.Run(ctx) }()
			<-done
			stop()
			if err := <-ended; err != nil {
				b.Fatal(err)
			}
		})
	}
}
