package smtpd

import (
	"context"
	"io"
	"net/netip"
	"time"

	"github.com/mailspine/mailspine"
)

// A Handler makes the sessions of a [Server].
//
// NewSession is called once for each connection, after the TLS handshake of an
// implicit TLS listener and before the greeting. An error takes the place of the greeting (its
// Status, made a 554 or 421 as RFC 5321 section 3.1 wants it) and ends the
// connection. ctx lives as long as the connection: it is cancelled when the
// connection ends and when the server is closed. c is valid as long. NewSession
// is called by many goroutines at the same time.
type Handler interface {
	NewSession(ctx context.Context, c *Conn) (Session, error)
}

// The HandlerFunc type makes a Handler of a function.
type HandlerFunc func(ctx context.Context, c *Conn) (Session, error)

// NewSession calls f.
func (f HandlerFunc) NewSession(ctx context.Context, c *Conn) (Session, error) { return f(ctx, c) }

// A Session is one connection as the application sees it. Its methods are called by
// one goroutine, one after the other, and get contexts that live as long as the
// connection. Their errors go through mailspine.Status. A method that panics
// ends the connection with 421 4.3.0.
//
// The engine has checked the syntax, the sequence and the limits of a command
// before it calls the Session.
type Session interface {
	// Mail begins a transaction. tx.Envelope has everything but recipients; the
	// session may fill in more. An error refuses the sender.
	Mail(ctx context.Context, tx *Transaction) error

	// Rcpt decides about one recipient. tx.Envelope.Recipients are the ones
	// accepted before; after nil the engine appends *rcpt, which the session may
	// have changed.
	Rcpt(ctx context.Context, tx *Transaction, rcpt *mailspine.Recipient) error

	// Data takes the message, which r yields with its dots unstuffed and CRLF line ends. It is called with at least
	// one recipient. When r has yielded all of a sound message it returns io.EOF;
	// any other error of r says what is wrong with the message or the connection, and then the message
	// must not be taken: whatever Data returns, the client is told r's error. A Data
	// that returns nil before r's io.EOF has a bug, and the client is told 451.
	//
	// nil takes the message for all recipients: the reply is "250 2.0.0 " and
	// text, or "Ok" if that is empty. An error with an SMTP client refuses it for all: its Status is the
	// reply (see [Door] for what to do when some are taken). With an LMTP client
	// each recipient is answered with mailspine.ErrorAt(err, i).
	Data(ctx context.Context, tx *Transaction, r io.Reader) (text string, err error)

	// Reset tells that the transaction is over: after Data, RSET, EHLO, STARTTLS, and
	// before Close. It is called only after Mail was, whatever that returned.
	Reset()

	// Close tells that the connection is over. Nothing is called after it.
	Close()
}

// An AuthSession is a Session that offers AUTH (RFC 4954).
type AuthSession interface {
	Session

	// Mechanisms returns the names to list in the reply to EHLO, in order of
	// preference; none: AUTH is not offered at this point, for want of TLS, say.
	Mechanisms() []string

	// Auth begins an exchange. mechanism is in upper case, and may be one that
	// Mechanisms did not list: the error is then an *Error with 504 5.5.4, or 538
	// 5.7.11 where TLS is missing.
	Auth(ctx context.Context, mechanism string) (Exchange, error)
}

// An Exchange is the server's side of one SASL exchange (RFC 4422); the method
// Next is that of go-sasl's Server.
//
// Errors of Next: mailspine.ErrBadCredentials is answered 535 5.7.8 and counted
// against the client, with a delay that grows; an *Error goes out as it is and counts if it is
// permanent; any other error is answered 454 4.7.0, and does not count.
type Exchange interface {
	// Next gets the client's response, nil if there is no initial response, and
	// returns a challenge, or done.
	Next(response []byte) (challenge []byte, done bool, err error)
	// Login is who logged in, after done. It is not nil.
	Login() *mailspine.Login
}

// A Transaction is one message on its way in, from MAIL to the reply to its data.
type Transaction struct {
	// Envelope has a new ID, what MAIL said, and the Origin. The session may write
	// to it as long as the transaction lasts; then the engine forgets it.
	Envelope *mailspine.Envelope
	// Size is what the client announced (RFC 1870), already checked against
	// MaxSize; 0: nothing.
	Size int64
	// LMTP says that each recipient gets its own reply.
	LMTP bool
}

// A Trace has hooks into a server. Each may be nil. They are called by the
// connection's goroutine, which waits for them, and get its context.
type Trace struct {
	// Connected is called when a connection is accepted, before anything is sent.
	Connected func(ctx context.Context, remote netip.AddrPort)
	// Disconnected is called when it is over.
	Disconnected func(ctx context.Context, remote netip.AddrPort, lasted time.Duration)
	// Wire is called for each line, without its line end, sent by us or by the
	// client. What AUTH exchanges is replaced by "***", and a
	// message by its size in brackets.
	Wire func(ctx context.Context, remote netip.AddrPort, sent bool, line string)
	// Message is called before the reply to a message: its envelope, the octets
	// received, and the error; nil: taken.
	Message func(ctx context.Context, env *mailspine.Envelope, size int64, err error)
}

// Stats are counts since the server began, and Conns the connections now.
type Stats struct {
	Conns    int64 // open now
	Accepted int64 // connections let in
	TooMany  int64 // connections refused by a limit
	Messages int64 // messages taken
	Refused  int64 // messages refused after their data
	Errors   int64 // commands refused
	AuthOK   int64
	AuthBad  int64
	Timeouts int64 // connections cut off for being slow or silent
	Panics   int64
}
