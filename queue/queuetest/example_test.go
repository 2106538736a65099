package queuetest_test

import (
	"fmt"
	"testing"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

// A driver's test file is one call.
func ExampleRun() {
	_ = func(t *testing.T) { // TestStore
		queuetest.Run(t, queuetest.Harness{
			Open:     func(t *testing.T) queue.Store { return memqueue.New(nil) },
			Synctest: true,
		})
	}
}

func ExampleRules() {
	for _, r := range queuetest.Rules() {
		if r.Name == "SettleTwice" || r.Name == "LeaseMax" {
			fmt.Printf("%s: %s\n", r.Name, r.Sentence)
		}
	}
	// Output:
	// LeaseMax: Lease returns up to Max items; 0 is 1.
	// SettleTwice: A settlement ends its lease: a second one is ErrLeaseLost.
}
