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

// How does one customer's mail, or one kind of mail, go another way than the rest? Rules look at the envelope, and the
// first that is for a recipient decides. What a rule sends another way has a route of its own in the queue, so that it waits, and is held, for itself.
func ExampleMux_rules() {
	deliver := func(name string) mailspine.Deliverer {
		return mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
			for _, r := range env.Recipients {
				fmt.Printf("%s for %s\n", name, r.Address)
			}
			return nil
		})
	}
	mux := &mta.Mux{
		Rules: []mta.Rule{
			{Name: "acme", Tenant: "acme", Domain: "example.net", To: deliver("acme's line to example.net")},
			{Name: "bulk", Stream: "newsletter", To: deliver("bulk relay")},
			{Name: "reports", From: "<>", To: deliver("relay for reports")},
		},
		Default: deliver("relay"),
	}
	send := func(tenant, stream, from string, to ...string) {
		env := &mailspine.Envelope{Tenant: tenant, Stream: stream}
		if from != "" {
			env.From, _ = mailspine.ParseAddress(from)
		}
		for _, s := range to {
			a, _ := mailspine.ParseAddress(s)
			env.Recipients = append(env.Recipients, mailspine.Recipient{Address: a})
			route, _ := mux.Route(context.Background(), env, mailspine.Recipient{Address: a})
			fmt.Printf("%s: ", route)
			mux.Deliver(context.Background(), env.Subset([]int{len(env.Recipients) - 1}), mailspine.StringContent("\r\n"))
		}
	}
	send("acme", "", "ann@acme.example", "bob@example.net", "eve@example.org")
	send("acme", "newsletter", "news@acme.example", "bob@example.net", "eve@example.org")
	send("", "", "", "bob@example.net")
	// Output:
	// example.net#acme: acme's line to example.net for bob@example.net
	// example.org: relay for eve@example.org
	// example.net#acme: acme's line to example.net for bob@example.net
	// example.org#bulk: bulk relay for eve@example.org
	// example.net#reports: relay for reports for bob@example.net
}
