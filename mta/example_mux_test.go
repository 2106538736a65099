package mta_test

import (
	"context"
	"fmt"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta"
)

// Which way does a recipient go? A Mux splits a message by domain, and gives
// each recipient its own result.
func ExampleMux() {
	deliver := func(name string) mailspine.Deliverer {
		return mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
			for _, r := range env.Recipients {
				fmt.Println(name, "gets", r.Address)
			}
			return nil
		})
	}
	mux := &mta.Mux{
		Routes: map[string]mailspine.Deliverer{
			"example.org":  deliver("mailboxes"),
			".example.org": deliver("department"), // any subdomain
		},
		Default: deliver("relay"),
	}
	env := &mailspine.Envelope{
		From: mailspine.Address{Local: "ann", Domain: "example.org"},
		Recipients: []mailspine.Recipient{
			{Address: mailspine.Address{Local: "bob", Domain: "Example.ORG"}},
			{Address: mailspine.Address{Local: "eve", Domain: "example.net"}},
			{Address: mailspine.Address{Local: "dan", Domain: "sales.example.org"}},
		},
	}
	err := mux.Deliver(context.Background(), env, mailspine.StringContent("Subject: hello\r\n\r\nhello\r\n"))
	fmt.Println("error:", err)

	route, _ := mux.Route(context.Background(), env, env.Recipients[0])
	fmt.Println("queued under:", route)
	// Output:
	// mailboxes gets bob@Example.ORG
	// relay gets eve@example.net
	// department gets dan@sales.example.org
	// error: <nil>
	// queued under: example.org
}
