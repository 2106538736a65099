package msa

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/emersion/go-sasl"

	"github.com/mailspine/mailspine"
)

// credentials checks what an exchange found out.
type credentials struct {
	ctx   context.Context // of the connection, for the one exchange
	s     *session
	login *mailspine.Login
}

// maxCredential bounds user names and passwords, in octets.
const maxCredential = 1024

func (c *credentials) check(authzID, username, password string) error {
	for _, v := range []string{authzID, username, password} {
		// RFC 4616 section 2: UTF-8 without NUL. An Authenticator need not expect more.
		if len(v) > maxCredential || !utf8.ValidString(v) || hasControl(v) {
			return fmt.Errorf("malformed credentials: %w", mailspine.ErrBadCredentials)
		}
	}
	if username == "" || password == "" { // RFC 4616 section 2; some directories take an empty password for a guest
		return fmt.Errorf("empty user name or password: %w", mailspine.ErrBadCredentials)
	}
	login, err := c.s.srv.Auth.Authenticate(c.ctx, mailspine.Credentials{
		Username: username, Password: password, AuthzID: authzID,
		Service: "submission", Remote: c.s.c.Remote(), TLS: c.s.c.TLS() != nil,
	})
	if err != nil {
		return fmt.Errorf("user %.64q: %w", username, err)
	}
	if login == nil || login.Name == "" {
		return errors.New("msa: Authenticator returned no login and no error")
	}
	c.login = login
	return nil
}

func (c *credentials) Login() *mailspine.Login { return c.login }

func hasControl(s string) bool {
	for _, r := range s {
		if r < 0x20 || r == 0x7f {
			return true
		}
	}
	return false
}

// plain is PLAIN (RFC 4616).
type plain struct {
	*credentials
	sasl.Server
	checked bool
}

func newPlain(c *credentials) *plain {
	p := &plain{credentials: c}
	p.Server = sasl.NewPlainServer(func(authzID, username, password string) error {
		p.checked = true
		return c.check(authzID, username, password)
	})
	return p
}

func (p *plain) Next(response []byte) ([]byte, bool, error) {
	challenge, done, err := p.Server.Next(response)
	if err != nil && !p.checked {
		err = mailspine.Errorf(501, "5.5.2", "Malformed PLAIN response").WithCause(err)
	}
	return challenge, done, err
}

// login is LOGIN (draft-murchison-sasl-login), which go-sasl has for clients
// only: two questions, user name and password.
type login struct {
	*credentials
	asked    int
	username string
}

func (l *login) Next(response []byte) ([]byte, bool, error) {
	if response == nil {
		l.asked = 1
		return []byte("Username:"), false, nil
	}
	switch l.asked {
	case 0, 1: // an initial response is the user name
		l.asked, l.username = 2, string(response)
		return []byte("Password:"), false, nil
	default:
		return nil, true, l.check("", l.username, string(response))
	}
}
