package suppress_test

import (
	"context"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/fbl/suppress"
)

// A recipient that the next hop does not know is not tried a second time.
func ExampleFilter() {
	relay := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
		fmt.Println("the relay tries")
		return mailspine.Errorf(550, "5.1.1", "No such user")
	})
	now := func() time.Time { return time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC) }
	out := &suppress.Filter{List: suppress.NewMemory(now), Next: relay, Bounces: &suppress.BounceRule{}, Now: now}

	env := &mailspine.Envelope{
		From:       mailspine.Address{Local: "news", Domain: "example.org"},
		Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "gone", Domain: "example.com"}}},
	}
	for range 2 {
		err := out.Deliver(context.Background(), env, mailspine.StringContent("Subject: Hello\r\n\r\n"))
		fmt.Println(mailspine.Status(err).Reply())
	}
	// Output:
	// the relay tries
	// 550 5.1.1 No such user
	// 550 5.1.0 The recipient is on the sender's suppression list since 2026-03-01: hard-bounce
}
