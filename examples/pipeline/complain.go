package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/fbl"
	"github.com/mailspine/mailspine/fbl/suppress"
)

// complain: bob reports one of shop's letters as spam, and gets no more of them. A forged
// report stops nobody.
func (d *demo) complain(ctx context.Context) (string, error) {
	bob := mailspine.Address{Local: "bob", Domain: d.beta.Domain}
	if d.letter == nil {
		return "", errors.New("bob has no letter of shop's")
	}
	shop := suppress.Key{Tenant: "shop", Address: bob}

	// The forger has seen what our reports look like, and passes SPF. He has no token for bob.
	forged := d.report(bob, []byte("From: shop@"+d.alpha.Domain+"\r\nTo: "+bob.String()+"\r\n"+fbl.Header+": "+strings.Repeat("a", 61)+"\r\n\r\nBuy.\r\n"))
	forged.From = "Complaints <staff@forger.example>"
	text, _ := forged.Bytes()
	c, err := smtp.Dial(d.alpha.smtp.Addr().String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.Hello("mail.forger.example"); err != nil {
		return "", err
	}
	if _, err := transact(c, "x@forger.example", []string{d.alpha.feedback().String()}, string(text)); err != nil {
		return "", fmt.Errorf("the forged report: %w", err)
	}
	if _, err := d.postmaster.await(ctx, func(msg []byte) bool {
		h, err := mailspine.ParseHeader(bytes.NewReader(msg), 0)
		return err == nil && strings.Contains(h.Get(fbl.ReviewHeader), "forged")
	}); err != nil {
		return "", fmt.Errorf("the forged report is not kept for review: %w", err)
	}
	if e, err := d.alpha.list.Check(ctx, shop); e != nil || err != nil {
		return "", fmt.Errorf("after the forged report bob is suppressed: %v, %v", e, err)
	}
	d.show.hop("postmaster", "finds the forged report in his mailbox; bob is not suppressed")

	// The real one goes the way of all mail: beta signs it, alpha checks that.
	d.show.hop("bob", "marks shop's letter as spam, and beta.example reports it to %s", d.alpha.feedback().Path())
	report := d.report(bob, d.letter)
	msg, body := report.Bytes()
	env := &mailspine.Envelope{
		ID: mailspine.NewMsgID(), From: mailspine.Address{Local: "postmaster", Domain: d.beta.Domain}, Body: body,
		Recipients: []mailspine.Recipient{{Address: d.alpha.feedback()}},
	}
	if err := d.beta.outbound.Deliver(ctx, env, mailspine.BytesContent(msg)); err != nil {
		return "", fmt.Errorf("the report: %w", err)
	}
	for {
		if e, err := d.alpha.list.Check(ctx, shop); err != nil {
			return "", err
		} else if e != nil {
			break
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the complaint suppresses nobody: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	before := d.beta.taken()
	if err := d.alpha.refuses("shop@"+d.alpha.Domain, bob.String()); err != nil {
		return "", err
	}
	if n := d.beta.taken(); n != before {
		return "", fmt.Errorf("the receiver took %d messages after the complaint", n-before)
	}
	// It is shop's mail that he does not want, and nobody else's.
	if e, err := d.alpha.list.Check(ctx, suppress.Key{Tenant: "office", Address: bob}); e != nil || err != nil {
		return "", fmt.Errorf("alice's mail is stopped too: %v, %v", e, err)
	}
	return "shop's next message to bob refused with 550 5.1.0; alice may write; a forged complaint stopped nobody", nil
}

// report is what beta sends when a reader complains.
func (d *demo) report(reader mailspine.Address, letter []byte) *fbl.Complaint {
	return &fbl.Complaint{
		From: "Complaints <postmaster@" + d.beta.Domain + ">", To: d.alpha.feedback(), Date: time.Now(),
		MessageID: strings.Trim(newID("report", d.beta.Domain), "<>"), Type: fbl.TypeAbuse, UserAgent: "Pipeline/1.0",
		Recipients: []mailspine.Address{reader}, ReportingMTA: d.beta.host(), Returned: letter, Full: true,
	}
}

// taken returns how many messages the receiver took.
func (o *org) taken() (n int) {
	for _, k := range o.seen("") {
		n += k
	}
	return n
}
