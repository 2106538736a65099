package mailspine_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/mailspine/mailspine"
)

// A Deliverer of one's own takes ten lines. This one counts what another
// Deliverer takes and refuses.
type counter struct {
	next           mailspine.Deliverer
	taken, refused int
}

func (c *counter) Unwrap() mailspine.Deliverer { return c.next }

func (c *counter) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	err := c.next.Deliver(ctx, env, msg)
	for i := range env.Recipients {
		if mailspine.ErrorAt(err, i) == nil {
			c.taken++
		} else {
			c.refused++
		}
	}
	return err
}

func ExampleDeliverer() {
	mailbox := mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
		res := make(mailspine.RecipientErrors, len(env.Recipients))
		for i, r := range env.Recipients {
			if r.Address.Local != "ann" {
				res[i] = mailspine.Errorf(550, "5.1.1", "No such user here")
			}
		}
		return res.Err()
	})
	c := &counter{next: mailbox}
	err := c.Deliver(context.Background(), &mailspine.Envelope{
		From: mailspine.Address{Local: "joe", Domain: "example.org"},
		Recipients: []mailspine.Recipient{
			{Address: mailspine.Address{Local: "ann", Domain: "example.net"}},
			{Address: mailspine.Address{Local: "bob", Domain: "example.net"}},
		},
	}, mailspine.StringContent("Subject: hello\r\n\r\nHello.\r\n"))
	fmt.Println(err)
	fmt.Println(c.taken, "taken,", c.refused, "refused")
	// Output:
	// recipient 1: 550 5.1.1 No such user here
	// 1 taken, 1 refused
}

func ExampleStatus() {
	// What a peer is told of an error that nobody planned for.
	err := fmt.Errorf("open /var/spool/mail/secret: %w", errors.New("broken"))
	fmt.Println(mailspine.Status(err).Reply())
	fmt.Println(mailspine.Status(fmt.Errorf("deliver: %w", mailspine.Errorf(552, "5.2.2", "Mailbox full"))).Reply())
	// Output:
	// 451 4.3.0 Local error in processing
	// 552 5.2.2 Mailbox full
}

func ExampleParseAddress() {
	a, err := mailspine.ParseAddress(`"joe smith"@Bücher.example`)
	if err != nil {
		panic(err)
	}
	ascii, _ := a.ASCIIDomain()
	fmt.Println(a.Local, ascii)
	_, err = mailspine.ParseAddress("joe..smith@example.org")
	fmt.Println(err)
	// Output:
	// joe smith xn--bcher-kva.example
	// mailspine: address "joe..smith@example.org": at octet 4: a dot must stand between atoms (RFC 5321 section 4.1.2, Dot-string)
}
