package filequeue

import (
	"testing"

	"github.com/mailspine/mailspine/queue"
)

// Most Takes are within a block, and write nothing.
func BenchmarkLimiter(b *testing.B) {
	for name, block := range map[string]int64{"Block1000": 0, "Block1": 1} {
		b.Run(name, func(b *testing.B) {
			l := mustOpenLimiter(b, b.TempDir(), &LimiterOptions{Block: block})
			req := queue.TakeRequest{Limits: []queue.Limit{{Kind: queue.Quota, Key: "login/ann", Max: queue.MaxLimit, Per: queue.Day}}}
			b.ReportAllocs()
			for b.Loop() {
				p, err := l.Take(ctx, req)
				if err != nil {
					b.Fatal(err)
				}
				l.Return(ctx, p.ID, 0)
			}
		})
	}
}
