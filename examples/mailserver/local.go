package main

import (
	"context"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/fbl"
	"github.com/mailspine/mailspine/mda"
)

// A local takes the mail for our own domain: complaints for their intake, all else for the
// mailboxes.
type local struct {
	feedback mailspine.Address
	intake   *fbl.Intake
	agent    *mda.Agent
}

func (l *local) isFeedback(r mailspine.Recipient) bool {
	return mailspine.Address{Local: lower(r.Address.Local), Domain: lower(r.Address.Domain)} == l.feedback
}

// CheckRecipient asks who takes the recipient.
func (l *local) CheckRecipient(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) error {
	if l.isFeedback(rcpt) {
		return l.intake.CheckRecipient(ctx, env, rcpt)
	}
	return l.agent.CheckRecipient(ctx, env, rcpt)
}

// Deliver divides the recipients.
func (l *local) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	var complaints, letters []int
	for i, r := range env.Recipients {
		if l.isFeedback(r) {
			complaints = append(complaints, i)
		} else {
			letters = append(letters, i)
		}
	}
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	for _, part := range []struct {
		to    mailspine.Deliverer
		index []int
	}{{l.agent, letters}, {l.intake, complaints}} {
		if len(part.index) == 0 {
			continue
		}
		sub, ctx := env, ctx
		if len(part.index) < len(env.Recipients) {
			sub = env.Subset(part.index)
			sub.ID = sub.PartID()
			ctx = mailspine.WithSubset(ctx, part.index)
		}
		err := part.to.Deliver(ctx, sub, msg)
		for j, i := range part.index {
			errs[i] = mailspine.ErrorAt(err, j)
		}
	}
	return errs.Err()
}
