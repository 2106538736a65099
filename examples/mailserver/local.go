package main

import (
	"context"

	"github.com/mailspine/mailspine"
)

// An inside is a place for mail to our own domain.
type inside interface {
	mailspine.Deliverer
	mailspine.RecipientChecker
}

// A local takes the mail for our own domain: what some addresses get goes to programs, all else
// to the mailboxes.
type local struct {
	programs  map[mailspine.Address]inside // in lower case
	mailboxes inside
}

// place is who takes a recipient.
func (l *local) place(r mailspine.Recipient) inside {
	if p, ok := l.programs[mailspine.Address{Local: lower(r.Address.Local), Domain: lower(r.Address.Domain)}]; ok {
		return p
	}
	return l.mailboxes
}

// CheckRecipient asks who takes the recipient.
func (l *local) CheckRecipient(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) error {
	return l.place(rcpt).CheckRecipient(ctx, env, rcpt)
}

// Deliver divides the recipients.
func (l *local) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	var places []inside // in the order of their first recipients
	index := map[inside][]int{}
	for i, r := range env.Recipients {
		p := l.place(r)
		if index[p] == nil {
			places = append(places, p)
		}
		index[p] = append(index[p], i)
	}
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	for _, p := range places {
		part, sub, ctx := index[p], env, ctx
		if len(part) < len(env.Recipients) {
			sub = env.Subset(part)
			sub.ID = sub.PartID()
			ctx = mailspine.WithSubset(ctx, part)
		}
		err := p.Deliver(ctx, sub, msg)
		for j, i := range part {
			errs[i] = mailspine.ErrorAt(err, j)
		}
	}
	return errs.Err()
}
