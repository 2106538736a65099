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

// Keys finds the keys that sign a message. It is safe for concurrent use.
//
// SigningKeys gets the envelope, which has the tenant, and the author domain
// in lower case with A-labels. It returns as many keys as there shall be signatures, at most MaxKeys; none, with a nil
// error, means that there is no key for the domain. An error means that it
// could not be found out: the message is not sent, and stays with the caller.
// The slice is not modified.
type Keys interface {
	SigningKeys(ctx context.Context, env *mailspine.Envelope, domain string) ([]dkim.SigningKey, error)
}

// The KeysFunc type makes Keys of a function.
type KeysFunc func(ctx context.Context, env *mailspine.Envelope, domain string) ([]dkim.SigningKey, error)

// SigningKeys calls f.
func (f KeysFunc) SigningKeys(ctx context.Context, env *mailspine.Envelope, domain string) ([]dkim.SigningKey, error) {
	return f(ctx, env, domain)
}

// MaxKeys bounds the signatures of a message; it is what a dkim.Verifier looks
// at by default.
const MaxKeys = dkim.DefaultMaxSignatures

// A KeyMap has the keys by author domain, in lower case with A-labels, for all
// tenants. The keys of a domain also sign for its subdomains that have none of their own, which
// DMARC's relaxed alignment accepts. It must not change while it is in use.
type KeyMap map[string][]dkim.SigningKey

// SigningKeys looks for the domain and then for the domains above it.
func (m KeyMap) SigningKeys(_ context.Context, _ *mailspine.Envelope, domain string) ([]dkim.SigningKey, error) {
	for {
		if k := m[domain]; len(k) > 0 {
			return k, nil
		}
		_, up, ok := strings.Cut(domain, ".")
		if !ok {
			return nil, nil
		}
		domain = up
	}
}

// A Signer is a Deliverer that adds DKIM signatures to a message and hands it
// to Next. It reads the message once, as a stream, and keeps only its header
// block in memory. It belongs after everything that changes the message, and before the queue, so
// that a retry does not sign again.
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
		return s.unsigned(ctx, env, msg, "Message has not exactly one author domain in From", err)
	}
	keys, err := s.Keys.SigningKeys(ctx, env, domain)
	if err != nil {
		return fmt.Errorf("auth: signing keys of %s: %w", domain, err)
	}
	if len(keys) > MaxKeys {
		return fmt.Errorf("auth: %d signing keys for %s, more than %d", len(keys), domain, MaxKeys)
	}
	if len(keys) == 0 {
		return s.unsigned(ctx, env, msg, "Not authorised to send for "+domain, errors.New("no signing key"))
	}
	if s.Required && !related(keys, domain) {
		return mailspine.Errorf(550, "5.7.1", "Not authorised to send for %s", domain).
			WithCause(errors.New("auth: no signing key is of the author domain"))
	}
	sigs, err := dkim.Sign(ctx, msg, &dkim.SignOptions{Now: s.Now, MaxHeader: s.MaxHeader}, keys...)
	if errors.Is(err, dkim.ErrNoAuthor) {
		// A line that is no field ended the header for dmarc.Author, and a From is below it.
		return s.unsigned(ctx, env, msg, "Message has not exactly one author domain in From", err)
	}
	if err != nil {
		return s.failed("sign for "+domain, err)
	}
	return s.Next.Deliver(ctx, env, mailspine.Prepend(msg, sigs))
}

func (s *Signer) failed(what string, err error) error {
	if errors.Is(err, mailspine.ErrHeaderTooLarge) {
		return mailspine.Errorf(552, "5.3.4", "Message header is too large").WithCause(err)
	}
	return fmt.Errorf("auth: %s: %w", what, err)
}

func (s *Signer) unsigned(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content, text string, why error) error {
	if s.Required {
		return mailspine.Errorf(550, "5.7.1", "%s", text).WithCause(why)
	}
	l := s.Logger
	if l == nil {
		l = slog.Default()
	}
	l.LogAttrs(ctx, slog.LevelWarn, "message is sent unsigned", slog.String("id", string(env.ID)), slog.Any("reason", why))
	return s.Next.Deliver(ctx, env, msg)
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
