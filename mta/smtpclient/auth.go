package smtpclient

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emersion/go-sasl"

	"github.com/mailspine/mailspine"
)

// Credentials are what a client proves itself with. The zero value is none.
type Credentials struct {
	// Username and Password are for the SCRAM mechanisms, PLAIN and LOGIN. Username is the account for the bearer mechanisms too. It
	// must not be empty, but for OAUTHBEARER.
	Username, Password string
	// Identity is who to act as, if that is another than Username; "": Username. LOGIN, XOAUTH2 and OAUTHBEARER cannot do that.
	Identity string
	// Token returns an access token (RFC 6750), for OAUTHBEARER and XOAUTH2. It is called for each Auth, which may be often: it
	// keeps what it has got. An error defers. nil: there is none, and Password is used.
	Token func(ctx context.Context) (string, error)
	// Mechanisms restricts what may be used, in upper case. nil: SCRAM-SHA-256-PLUS, SCRAM-SHA-256, OAUTHBEARER,
	// XOAUTH2, PLAIN and LOGIN. The order is always this one.
	Mechanisms []string
	// AllowClear allows what shows the secret to the server, and to whoever listens, without TLS. SCRAM does not.
	AllowClear bool
}

// IsZero reports whether there are none.
func (c *Credentials) IsZero() bool {
	return c.Username == "" && c.Password == "" && c.Token == nil
}

// An AuthError says why the authentication failed. It is wrapped in an *mailspine.Error: as the server said it, or else of
// 451 4.7.0 for what goes away perhaps, and of 535 5.7.8 or 538 5.7.11 for what does not. A caller that sends for others makes all of them temporary: a wrong
// password must not bounce mail.
type AuthError struct {
	Mechanism string // "": none was begun
	Offered   string // by the server, as it came: not fit to be shown raw
	Reply     Reply  // the refusal; zero: it was not the server who refused
	Err       error  // what else went wrong; nil: nothing
}

// Error has the mechanism, the reply in one line, fit to be shown, and the cause. No secret is in it.
func (e *AuthError) Error() string {
	s := "AUTH"
	if e.Mechanism != "" {
		s += " " + e.Mechanism
	}
	if e.Reply.Code != 0 {
		s += " was answered with " + e.Reply.String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns Err.
func (e *AuthError) Unwrap() error { return e.Err }

// The mechanisms, strongest first. Never changed.
var mechanisms = []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN"}

// maxSteps bounds the exchange of one mechanism. SCRAM takes three.
const maxSteps = 8

// Auth authenticates with the strongest mechanism that the server offers in its answer to Hello and that the credentials
// allow (RFC 4954). It is tried alone: after a failure no weaker one follows, which an attacker could have wished for. With SCRAM the server proves
// itself too: one that accepts without a proof is an error. SCRAM-SHA-256-PLUS binds to the TLS connection, by tls-exporter in TLS 1.3 (RFC 9266) and otherwise
// by tls-server-end-point (RFC 5929).
//
// Without TLS, or where only its peer has been verified by nobody, this is the caller's concern: see Credentials.AllowClear for
// what Auth itself refuses.
//
// Its errors wrap an [AuthError] where it is the authentication that failed. If InStep, the
// connection can be used without it.
func (c *Client) Auth(ctx context.Context, cred *Credentials) error {
	params := c.ext["AUTH"]
	mech, client, err := c.mechanism(ctx, cred, params)
	if err != nil {
		return err
	}
	c.hide = "(hidden)"
	defer func() { c.hide = "" }()
	var denied *AuthError
	_, err = c.do(ctx, "AUTH", func() (Reply, error) {
		err := c.sasl(mech, client)
		if errors.As(err, &denied) {
			return Reply{}, nil // the connection may be all right
		}
		return Reply{}, err
	})
	if denied != nil {
		denied.Offered = params
		return c.denied(denied)
	}
	return err
}

// mechanism chooses one.
func (c *Client) mechanism(ctx context.Context, cred *Credentials, params string) (string, sasl.Client, error) {
	_, secure := c.TLS()
	offered := strings.Fields(strings.ToUpper(params))
	none := &AuthError{Offered: params}
	clear := false
	for _, mech := range mechanisms {
		if !slices.Contains(offered, mech) || cred.Mechanisms != nil && !slices.Contains(cred.Mechanisms, mech) {
			continue
		}
		token := mech == "OAUTHBEARER" || mech == "XOAUTH2"
		if token != (cred.Token != nil) || cred.Username == "" && mech != "OAUTHBEARER" {
			continue
		}
		if !secure && !cred.AllowClear && !strings.HasPrefix(mech, "SCRAM-") {
			clear = true
			continue
		}
		var client sasl.Client
		var err error
		switch mech {
		case "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256":
			if mech == "SCRAM-SHA-256-PLUS" && !secure {
				continue // there is nothing to bind to, and it should not be offered
			}
			client, err = newSCRAM(c, cred, mech)
			if err != nil && mech == "SCRAM-SHA-256-PLUS" {
				continue // a connection without a binding
			}
		case "PLAIN":
			client = sasl.NewPlainClient(cred.Identity, cred.Username, cred.Password)
		case "LOGIN":
			client = &login{answers: []string{cred.Username, cred.Password}}
		default:
			var secret string
			if secret, err = cred.Token(ctx); err != nil {
				return "", nil, mailspine.Errorf(451, "4.7.0", "There is no access token for %s", c.peer).
					WithCause(&AuthError{Mechanism: mech, Offered: params, Err: fmt.Errorf("get a token: %w", err)})
			}
			client = &bearer{mech: mech, user: cred.Username, token: secret}
		}
		if err == nil {
			err = cred.check(mech)
		}
		if err != nil {
			return "", nil, c.denied(&AuthError{Mechanism: mech, Offered: params, Err: err})
		}
		return mech, client, nil
	}
	switch {
	case len(offered) == 0:
		none.Err = errors.New("the server does not offer it")
	case clear:
		none.Err = errClear
	default:
		none.Err = errors.New("none of the mechanisms of the server can be used")
	}
	return "", nil, c.denied(none)
}

var errClear = errors.New("without TLS the secret would be shown")

// check refuses what would change the meaning of a mechanism's messages.
func (cred *Credentials) check(mech string) error {
	if strings.ContainsAny(cred.Username+cred.Password+cred.Identity, "\x00\x01\r\n") {
		return errors.New("credentials with control characters")
	}
	if cred.Identity != "" && cred.Identity != cred.Username && !strings.HasPrefix(mech, "SCRAM-") && mech != "PLAIN" {
		return errors.New("the mechanism has no other identity")
	}
	return nil
}

// denied classifies an AuthError.
func (c *Client) denied(e *AuthError) error {
	cause := fmt.Errorf("smtpclient: %s: %w", c.peer, e)
	switch {
	case e.Reply.Refusal():
		return &mailspine.Error{Code: e.Reply.Code, Enhanced: e.Reply.Enhanced, Message: e.Reply.Message(), Err: cause}
	case errors.Is(e, errClear):
		return mailspine.Errorf(538, "5.7.11", "The authentication with %s needs TLS", c.peer).WithCause(cause) // RFC 4954 section 6
	case isProtocol(e.Err):
		return mailspine.Errorf(451, "4.5.0", "%s does not follow the protocol (AUTH)", c.peer).WithCause(cause)
	}
	return mailspine.Errorf(535, "5.7.8", "The authentication with %s failed", c.peer).WithCause(cause)
}

// sasl holds the dialogue of a mechanism (RFC 4954 section 4). A failure of the authentication is an *AuthError; the dialogue is in
// step after it, where it could be ended.
func (c *Client) sasl(mech string, client sasl.Client) error {
	_, ir, err := client.Start()
	if err != nil {
		return &AuthError{Mechanism: mech, Err: err}
	}
	line := "AUTH " + mech
	late := false // the first response goes without being asked for, unless the line gets too long
	if ir != nil {
		if enc := encode(ir); len(line)+len(enc)+3 <= 512 {
			line += " " + enc
		} else {
			late = true
		}
	}
	for range maxSteps {
		r, err := c.cmd(c.times.Auth, line)
		switch {
		case err != nil:
			return err
		case r.OK():
			if v, ok := client.(interface{ verified() bool }); ok && !v.verified() {
				c.inStep = false
				return &AuthError{Mechanism: mech, Err: protocolErrorf("the server did not prove itself")}
			}
			return nil
		case r.Refusal():
			e := &AuthError{Mechanism: mech, Reply: r}
			if b, ok := client.(*bearer); ok && b.said != "" {
				e.Err = errors.New(b.said)
			}
			return e
		case r.Code != 334:
			c.inStep = false
			return &AuthError{Mechanism: mech, Err: protocolErrorf("AUTH was answered with %d", r.Code)}
		}
		challenge, err := base64.StdEncoding.DecodeString(strings.TrimSpace(strings.Join(r.Lines, "")))
		if err != nil {
			err = protocolErrorf("a challenge that is not base64")
		}
		var response []byte
		switch {
		case err != nil:
		case late:
			response, late = ir, false
		default:
			response, err = client.Next(challenge)
		}
		if err != nil {
			return c.cancel(mech, err)
		}
		line = base64.StdEncoding.EncodeToString(response)
	}
	c.inStep = false
	return &AuthError{Mechanism: mech, Err: protocolErrorf("over %d challenges", maxSteps)}
}

// encode is an initial response: "=" is an empty one.
func encode(ir []byte) string {
	if len(ir) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(ir)
}

// cancel gives up (RFC 4954 section 4: with "*"), because of err.
func (c *Client) cancel(mech string, err error) error {
	r, rerr := c.cmd(c.times.Auth, "*")
	if rerr != nil || !r.Refusal() {
		c.inStep = false
	}
	return &AuthError{Mechanism: mech, Err: err}
}
