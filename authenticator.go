package mailspine

import (
	"context"
	"errors"
	"net/netip"
)

// ErrBadCredentials is what an [Authenticator] returns for a user that does not
// exist and for a wrong password alike. Servers answer 535 5.7.8 or their
// protocol's like.
var ErrBadCredentials = errors.New("mailspine: bad credentials")

// An Authenticator decides who may log in. Submission, IMAP, POP3 and
// ManageSieve servers share one.
//
// Authenticate checks a name and a password. Its error is (or wraps)
// [ErrBadCredentials] when they are wrong; the same, after the same time, for a
// user that does not exist. Any other error means that it could not be found
// out: servers answer with a temporary failure, and no attempt is held against
// the client. It is safe for concurrent use. It must never log or return the
// password.
//
// An Authenticator that can do more implements the optional interfaces
// [SCRAMStore] and [TokenAuthenticator].
type Authenticator interface {
	Authenticate(ctx context.Context, c Credentials) (*Login, error)
}

// The AuthenticatorFunc type makes an Authenticator of a function.
type AuthenticatorFunc func(ctx context.Context, c Credentials) (*Login, error)

// Authenticate calls f.
func (f AuthenticatorFunc) Authenticate(ctx context.Context, c Credentials) (*Login, error) {
	return f(ctx, c)
}

// Credentials are what a client showed: secrets, which go into no log.
type Credentials struct {
	Username string
	Password string
	AuthzID  string // the user to act as (RFC 4616); "": Username. Refuse what is not granted.

	Service string         // "submission", "imap", "pop3", "managesieve"
	Remote  netip.AddrPort // the client
	TLS     bool           // the connection is encrypted
}

// String leaves out the password, so that not even an accident logs it.
func (c Credentials) String() string {
	return "credentials of " + c.Username + " for " + c.Service
}

// GoString is String, for %#v.
func (c Credentials) GoString() string { return c.String() }

// A Login is who somebody turned out to be, and what that entails.
type Login struct {
	// Name is the account, in the form that the mail store and the sender rights
	// know it by. It is not empty.
	Name string
	// Tenant, Stream and Pool go into the envelopes of what the login submits.
	Tenant, Stream, Pool string
	// Addresses are the senders that the login may use, besides its Name if that
	// is an address: "joe@example.org", or "@example.org" for a whole domain.
	// How far they bind is the server's Senders policy.
	Addresses []string
}

// A SCRAMStore is an [Authenticator] that keeps SCRAM keys (RFC 5802), so that a
// client can prove that it knows the password without sending it.
type SCRAMStore interface {
	// SCRAM returns the keys of a user for "SCRAM-SHA-256" or "SCRAM-SHA-1".
	// For an unknown user the error is ErrBadCredentials; the server then
	// carries on with made-up keys that are the same each time, so that nobody
	// learns which users exist (RFC 5802 section 9).
	SCRAM(ctx context.Context, mechanism, username string) (SCRAMKeys, *Login, error)
}

// SCRAMKeys are what a server stores for SCRAM (RFC 5802 section 3).
type SCRAMKeys struct {
	Salt                 []byte
	Iterations           int
	StoredKey, ServerKey []byte
}

// A TokenAuthenticator is an [Authenticator] that takes bearer tokens (RFC 7628
// OAUTHBEARER, XOAUTH2). In the Credentials, Password is the token.
type TokenAuthenticator interface {
	AuthenticateToken(ctx context.Context, c Credentials) (*Login, error)
}
