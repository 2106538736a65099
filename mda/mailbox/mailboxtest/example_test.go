package mailboxtest_test

import (
	"fmt"
	"testing"

	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/mailboxtest"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

// A driver's test file is one call.
func ExampleRun() {
	_ = func(t *testing.T) { // TestStore
		mailboxtest.Run(t, mailboxtest.Harness{
			Open: func(_ *testing.T, c mailboxtest.Config) mailbox.Store {
				return memory.New(&memory.Options{MaxTombs: c.MaxTombs, MaxMessage: c.MaxMessage})
			},
		})
	}
}

func ExampleRules() {
	for _, r := range mailboxtest.Rules() {
		if r.Name == "AppendAndRead" {
			fmt.Println(r.Sentence)
		}
	}
	// Output:
	// a message is kept octet for octet, whatever it contains
}
