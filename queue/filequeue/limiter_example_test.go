package filequeue_test

import (
	"context"
	"fmt"
	"os"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// What was counted is known after a restart.
func ExampleOpenLimiter() {
	dir, err := os.MkdirTemp("", "limits")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	warmUp := queue.Limit{Kind: queue.Quota, Key: "ip/192.0.2.1", Max: 1000, Per: queue.MaxPer}
	for range 2 {
		limiter, err := filequeue.OpenLimiter(dir, nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		permit, err := limiter.Take(ctx, queue.TakeRequest{Limits: []queue.Limit{warmUp}, N: 600, Min: 1})
		fmt.Println(permit.N, err)
		limiter.Close()
	}
	// Output:
	// 600 <nil>
	// 400 <nil>
}
