package queuetest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

// A driver's test file is one call.
func ExampleRunLimiter() {
	_ = func(t *testing.T) { // TestLimiter
		queuetest.RunLimiter(t, queuetest.LimiterHarness{
			Open: func(t *testing.T, now func() time.Time) queue.Limiter {
				return memqueue.NewLimiter(&memqueue.LimiterOptions{Now: now})
			},
			Clock:    true,
			Synctest: true,
		})
	}
}

func ExampleLimiterRules() {
	for _, r := range queuetest.LimiterRules() {
		if r.Name == "AllOrNothing" || r.Name == "ReturnTwice" {
			fmt.Printf("%s: %s\n", r.Name, r.Sentence)
		}
	}
	// Output:
	// AllOrNothing: Take takes from all the limits of a request, or from none.
	// ReturnTwice: Return can be repeated: nothing is given back twice.
}
