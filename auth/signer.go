package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
)

// A Signer is a Deliverer that adds DKIM signatures to a message and hands it
// to Next. It reads the message once, as a stream, and keeps only its header
// block in memory. It belongs after everything that changes the message, and before the queue, so
// that a retry does not sign again.
//
// A key that is not published yet, one of another domain, a message that breaks its own signature: with SelfCheck such mail
// does not leave the house, where every receiver would hold it against the domain.
//
// Next and Keys are required. It is safe for concurrent use as long as its fields
// do not change.
type Signer struct {
	Next mailspine.Deliverer
	Keys Keys

	// Required refuses (550 5.7.1) what cannot be signed for its author: a message without
	// exactly one author domain, one whose domain has no key, and one whose keys
	// are all of unrelated domains. False: the first two go on unsigned, with a log line.
	Required bool
	// MaxHeader bounds the header block, in octets; 0: mailspine.MaxHeader. A larger one is
	// refused (552 5.3.4).
	MaxHeader int

	// SelfCheck judges each signed message as receivers will, before it goes on. nil: it goes on as it is.
	SelfCheck *SelfCheck
	// Comply has the last word about a message, after SelfCheck: for the rules of mailbox providers, of a service, of a law. Its error is what
	// Deliver returns, with the meaning that mailspine.Status gives it; nil: the message goes on. It is called by many
	// goroutines at a time. A nil Comply takes everything.
	Comply func(ctx context.Context, env *mailspine.Envelope, m *Outgoing) error

	Logger *slog.Logger     // nil: slog.Default()
	Now    func() time.Time // the clock of t= and x=; nil: time.Now
}

var _ mailspine.Deliverer = (*Signer)(nil)

// Unwrap returns Next.
func (s *Signer) Unwrap() mailspine.Deliverer { return s.Next }

// Deliver signs msg and delivers it to Next. Every error of its own holds for
// all recipients; a failing key or Keys is a temporary one.
func (s *Signer) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if s.Next == nil || s.Keys == nil {
		return errors.New("auth: Signer without Next or Keys")
	}
	h, err := mailspine.ReadHeader(ctx, msg, s.MaxHeader)
	if err != nil {
		return s.failed("read header", err)
	}
	domain, err := dmarc.Author(h)
	if err != nil {
		return s.unsigned(ctx, env, &Outgoing{Header: h, Content: msg}, "Message has not exactly one author domain in From", err)
	}
	keys, err := s.Keys.SigningKeys(ctx, env, domain)
	if err != nil {
		return fmt.Errorf("auth: signing keys of %s: %w", domain, err)
	}
	if len(keys) > MaxKeys {
		return fmt.Errorf("auth: %d signing keys for %s, more than %d", len(keys), domain, MaxKeys)
	}
	if len(keys) == 0 {
		return s.unsigned(ctx, env, &Outgoing{Author: domain, Header: h, Content: msg}, "Not authorised to send for "+domain, errors.New("no signing key"))
	}
	if s.Required && !related(keys, domain) {
		return mailspine.Errorf(550, "5.7.1", "Not authorised to send for %s", domain).
			WithCause(errors.New("auth: no signing key is of the author domain"))
	}
	sigs, err := dkim.Sign(ctx, msg, &dkim.SignOptions{Now: s.Now, MaxHeader: s.MaxHeader}, keys...)
	if errors.Is(err, dkim.ErrNoAuthor) {
		// A line that is no field ended the header for dmarc.Author, and a From is below it.
		return s.unsigned(ctx, env, &Outgoing{Header: h, Content: msg}, "Message has not exactly one author domain in From", err)
	}
	if err != nil {
		return s.failed("sign for "+domain, err)
	}
	return s.next(ctx, env, &Outgoing{Author: domain, Header: h, Content: mailspine.Prepend(msg, sigs), keys: keys})
}

// next sends a message on if it passes the checks.
func (s *Signer) next(ctx context.Context, env *mailspine.Envelope, m *Outgoing) error {
	if s.SelfCheck != nil && len(m.keys) > 0 {
		if err := s.SelfCheck.check(ctx, m); err != nil {
			return err
		}
	}
	if s.Comply != nil {
		if err := s.Comply(ctx, env, m); err != nil {
			return err
		}
	}
	return s.Next.Deliver(ctx, env, m.Content)
}

func (s *Signer) failed(what string, err error) error {
	if errors.Is(err, mailspine.ErrHeaderTooLarge) {
		return mailspine.Errorf(552, "5.3.4", "Message header is too large").WithCause(err)
	}
	return fmt.Errorf("auth: %s: %w", what, err)
}

func (s *Signer) unsigned(ctx context.Context, env *mailspine.Envelope, m *Outgoing, text string, why error) error {
	if s.Required {
		return mailspine.Errorf(550, "5.7.1", "%s", text).WithCause(why)
	}
	l := s.Logger
	if l == nil {
		l = slog.Default()
	}
	l.LogAttrs(ctx, slog.LevelWarn, "message is sent unsigned", slog.String("id", string(env.ID)), slog.Any("reason", why))
	return s.next(ctx, env, m)
}

// related reports whether a key's domain is the author domain, or above or
// below it: anything else cannot be aligned.
func related(keys []dkim.SigningKey, domain string) bool {
	for _, k := range keys {
		d, err := mailspine.ASCIIDomain(k.Domain)
		if err == nil && (d == domain || strings.HasSuffix(domain, "."+d) || strings.HasSuffix(d, "."+domain)) {
			return true
		}
	}
	return false
}
