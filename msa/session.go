package msa

import (
	"context"
	"io"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/smtpd"
)

// A session is one client connection.
type session struct {
	srv *Server
	c   *smtpd.Conn
}

var _ smtpd.AuthSession = (*session)(nil)

func (s *session) Mechanisms() []string {
	if s.c.TLS() == nil {
		return nil
	}
	return []string{"PLAIN", "LOGIN"}
}

func (s *session) Auth(ctx context.Context, mechanism string) (smtpd.Exchange, error) {
	var ex smtpd.Exchange
	switch check := (&credentials{ctx: ctx, s: s}); mechanism {
	case "PLAIN":
		ex = newPlain(check)
	case "LOGIN":
		ex = &login{credentials: check}
	default:
		return nil, mailspine.Errorf(504, "5.5.4", "Mechanism not offered")
	}
	if s.c.TLS() == nil { // RFC 4954 section 6
		return nil, mailspine.Errorf(538, "5.7.11", "Encryption required for this mechanism, say STARTTLS")
	}
	return ex, nil
}

func (s *session) Mail(ctx context.Context, tx *smtpd.Transaction) error {
	login := s.c.Login()
	switch {
	case s.c.TLS() == nil: // RFC 3207 section 4
		return mailspine.Errorf(530, "5.7.0", "Must issue a STARTTLS command first")
	case login == nil: // RFC 4954 section 6
		return mailspine.Errorf(530, "5.7.0", "Authentication required")
	}
	env := tx.Envelope
	env.Tenant, env.Stream, env.Pool = login.Tenant, login.Stream, login.Pool
	if env.From.IsZero() {
		return nil
	}
	return s.srv.mayUse(ctx, login, env.From, 553, "Sender address is not yours")
}

func (s *session) Rcpt(_ context.Context, tx *smtpd.Transaction, rcpt *mailspine.Recipient) error {
	d := rcpt.Address.Domain
	if !strings.HasPrefix(d, "[") && !strings.Contains(d, ".") && d != s.c.Hostname() {
		// RFC 6409 section 4.2: guessing what was meant helps nobody.
		return mailspine.Errorf(553, "5.1.3", "Recipient domain is not fully qualified")
	}
	return s.srv.door.Rcpt(tx)
}

func (s *session) Data(ctx context.Context, tx *smtpd.Transaction, r io.Reader) (string, error) {
	return s.srv.door.Take(ctx, tx, r, func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content, h *mailspine.Header) (mailspine.Content, error) {
		return s.srv.fix(ctx, s.c.Login(), s.c.Hostname(), env, msg, h)
	})
}

func (s *session) Reset() {}
func (s *session) Close() {}
