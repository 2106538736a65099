package memqueue_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

func BenchmarkLimiter(b *testing.B) {
	l := memqueue.NewLimiter(nil)
	defer l.Close()
	quota := queue.Limit{Kind: queue.Quota, Key: "tenant/shop", Max: queue.MaxLimit, Per: queue.Day}
	rate := queue.Limit{Kind: queue.Rate, Key: "ip/192.0.2.1", Max: queue.MaxLimit, Per: time.Second}
	slot := queue.Limit{Kind: queue.Slots, Key: "site/example.net", Max: queue.MaxLimit}
	for _, bench := range []struct {
		name string
		req  queue.TakeRequest
	}{
		{"Take", queue.TakeRequest{Limits: []queue.Limit{quota}, TTL: -1}},
		{"TakeReturn", queue.TakeRequest{Limits: []queue.Limit{quota}}},
		{"ThreeTakeReturn", queue.TakeRequest{Limits: []queue.Limit{quota, rate, slot}}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := l.Take(b.Context(), bench.req)
				if err != nil {
					b.Fatal(err)
				}
				if bench.req.TTL == 0 {
					l.Return(b.Context(), p.ID, 0)
				}
			}
		})
	}
	b.Run("OpenPermits", func(b *testing.B) { // a new key each, and 100,000 permits open
		l := memqueue.NewLimiter(nil)
		var ids [100_000]queue.PermitID
		var keys [1 << 16]string
		for i := range keys {
			keys[i] = fmt.Sprintf("login/%d", i)
		}
		b.ReportAllocs()
		b.ResetTimer()
		for i := range b.N {
			l.Return(b.Context(), ids[i%len(ids)], 0)
			quota.Key = keys[i%len(keys)]
			p, err := l.Take(b.Context(), queue.TakeRequest{Limits: []queue.Limit{quota}, TTL: time.Hour})
			if err != nil {
				b.Fatal(err)
			}
			ids[i%len(ids)] = p.ID
		}
	})
}
