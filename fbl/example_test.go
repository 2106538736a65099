package fbl_test

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/fbl"
	"github.com/mailspine/mailspine/fbl/suppress"
)

// A reader reports a message as spam, and gets no more of the stream.
func Example() {
	ctx := context.Background()
	list := suppress.NewMemory(nil)
	tokens := &fbl.Tokens{Keys: [][]byte{bytes.Repeat([]byte("k"), fbl.MinKey)}, Scopes: &fbl.MemoryScopes{}}

	// The way out: what is suppressed is refused, the rest is stamped and sent.
	var arrived []byte
	world := mailspine.DelivererFunc(func(ctx context.Context, _ *mailspine.Envelope, msg mailspine.Content) (err error) {
		arrived, err = mailspine.ReadContent(ctx, msg, 1<<20)
		return err
	})
	out := &suppress.Filter{List: list, Next: &fbl.Stamp{Tokens: tokens, Next: world}}

	// The way in, for reports.
	feedback := mailspine.Address{Local: "fbl", Domain: "example.org"}
	review := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
		fmt.Println("kept for review")
		return nil
	})
	in := &fbl.Intake{Tokens: tokens, Addresses: []mailspine.Address{feedback}, Suppress: list, Review: review}

	ann := mailspine.Address{Local: "ann", Domain: "example.com"}
	letter := &mailspine.Envelope{
		ID: mailspine.NewMsgID(), From: mailspine.Address{Local: "news", Domain: "example.org"}, Tenant: "shop", Stream: "news",
		Recipients: []mailspine.Recipient{{Address: ann}},
	}
	text := mailspine.StringContent("From: news@example.org\r\nTo: ann@example.com\r\nSubject: Offer\r\n\r\nBuy.\r\n")
	fmt.Println("first:", out.Deliver(ctx, letter, text))

	// Her provider reports it. The envelope has the verdict of mta.Receiver.
	complaint := &fbl.Complaint{
		From: "Complaints <staff@example.com>", To: feedback, Date: time.Now(), MessageID: "1@example.com",
		Type: fbl.TypeAbuse, Recipients: []mailspine.Address{ann}, Returned: arrived, Full: true,
	}
	report, _ := complaint.Bytes()
	env := &mailspine.Envelope{ID: "report", Recipients: []mailspine.Recipient{{Address: feedback}}, Verdict: &mailspine.Verdict{DKIM: "pass"}}
	fmt.Println("report:", in.Deliver(ctx, env, mailspine.BytesContent(report)))

	err := out.Deliver(ctx, letter, text)
	fmt.Println("second:", mailspine.Status(err).Code, mailspine.Status(err).Enhanced)
	// Output:
	// first: <nil>
	// report: <nil>
	// second: 550 5.1.0
}
