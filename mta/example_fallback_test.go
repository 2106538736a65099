package mta_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta"
)

// What if the way out is closed? A Fallback tries the next one, for the recipients for whom nobody was reached. What was
// refused, or may have been taken, goes nowhere else.
func ExampleFallback() {
	results := map[string]error{
		"ann@away.example":    mailspine.Errorf(451, "4.4.1", "Could not connect to mx.away.example"),
		"bob@example.org":     mailspine.Errorf(550, "5.1.1", "No such user"),
		"dan@broken.example":  mailspine.Errorf(451, "4.4.2", "Lost the connection with mx.broken.example"),
		"eve@reached.example": nil,
	}
	direct := mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
		errs := make(mailspine.RecipientErrors, len(env.Recipients))
		for i, r := range env.Recipients {
			errs[i] = results[r.Address.String()]
		}
		return errs.Err()
	})
	smarthost := mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
		for _, r := range env.Recipients {
			fmt.Println("the smarthost takes it for", r.Address)
		}
		return nil
	})
	way := &mta.Fallback{To: []mailspine.Deliverer{direct, smarthost}, Logger: slog.New(slog.DiscardHandler)}

	env := &mailspine.Envelope{From: mailspine.Address{Local: "joe", Domain: "sender.example"}}
	for _, s := range []string{"ann@away.example", "bob@example.org", "dan@broken.example", "eve@reached.example"} {
		a, _ := mailspine.ParseAddress(s)
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: a})
	}
	err := way.Deliver(context.Background(), env, mailspine.StringContent("Subject: hello\r\n\r\nhello\r\n"))
	for i, r := range env.Recipients {
		fmt.Printf("%s: %v\n", r.Address, mailspine.ErrorAt(err, i))
	}
	// Output:
	// the smarthost takes it for ann@away.example
	// ann@away.example: <nil>
	// bob@example.org: 550 5.1.1 No such user
	// dan@broken.example: 451 4.4.2 Lost the connection with mx.broken.example
	// eve@reached.example: <nil>
}
