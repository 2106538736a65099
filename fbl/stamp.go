package fbl

import (
	"context"
	"errors"
	"fmt"

	"github.com/mailspine/mailspine"
)

// Header is the field that has the token of a message.
const Header = "X-Feedback-Token"

// A Stamp is a Deliverer that gives each recipient a copy of the message with a token
// of its own, and hands the copies to Next, one by one. Fields of the name Header that the message brings are dropped.
//
// It belongs after all that looks at the sender, and before auth.Signer and the queue. Mail with the
// null reverse-path passes as it is. A copy has an ID of its own (see
// Envelope.PartID), which is the same when the same message is delivered again; a message with one
// recipient keeps its ID.
//
// Some copies may be taken when others fail, so a server before it needs its Undelivered. It
// is safe for concurrent use; its fields must not change once it is in use.
type Stamp struct {
	Next   mailspine.Deliverer // required
	Tokens *Tokens             // required
	// ReturnPath also seals the return path: bounces come to the Intake, which passes them on. Tokens.Domain is required
	// then, its mail must come to the Intake, and SPF must allow our addresses for it.
	ReturnPath bool
}

var _ mailspine.Deliverer = (*Stamp)(nil)

// Unwrap returns Next.
func (s *Stamp) Unwrap() mailspine.Deliverer { return s.Next }

// Deliver stamps the copies and delivers them.
func (s *Stamp) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if s.Next == nil || s.Tokens == nil {
		return errors.New("fbl: Stamp without Next or Tokens")
	}
	if env.From.IsZero() {
		return s.Next.Deliver(ctx, env, msg)
	}
	head, err := mailspine.ReadHeader(ctx, msg, 0)
	if errors.Is(err, mailspine.ErrHeaderTooLarge) {
		return mailspine.Errorf(552, "5.3.4", "Message header is too large").WithCause(err)
	}
	if err != nil {
		return fmt.Errorf("fbl: read header: %w", err)
	}
	if len(head.Values(Header)) > 0 {
		if msg, err = mailspine.Edit(ctx, msg, mailspine.HeaderEdit{Drop: func(f mailspine.HeaderField) bool { return f.Is(Header) }}); err != nil {
			return fmt.Errorf("fbl: drop %s: %w", Header, err)
		}
	}
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	for i := range env.Recipients {
		errs[i] = s.deliver(ctx, env, i, msg)
	}
	return errs.Err()
}

func (s *Stamp) deliver(ctx context.Context, env *mailspine.Envelope, i int, msg mailspine.Content) error {
	token, err := s.Tokens.Token(ctx, env, env.Recipients[i].Address)
	if err != nil {
		return err
	}
	sub := env.Subset([]int{i})
	if len(env.Recipients) > 1 {
		sub.ID = sub.PartID()
		ctx = mailspine.WithSubset(ctx, []int{i})
	}
	if s.ReturnPath {
		if s.Tokens.Domain == "" {
			return errors.New("fbl: Tokens.Domain is empty")
		}
		sub.From = mailspine.Address{Local: pathPrefix + token, Domain: s.Tokens.Domain}
	}
	return mailspine.ErrorAt(s.Next.Deliver(ctx, sub, mailspine.Prepend(msg, []byte(Header+": "+token+"\r\n"))), 0)
}
