package smtpclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/mailspine/mailspine"
)

// A ProtocolError says how a server broke the rules. Its text is ours, not the server's. Methods wrap it in an
// *mailspine.Error of 451 4.5.0.
type ProtocolError struct{ Rule string }

// Error names the rule that was broken.
func (e *ProtocolError) Error() string { return "protocol error: " + e.Rule }

func protocolErrorf(format string, args ...any) error {
	return &ProtocolError{fmt.Sprintf(format, args...)}
}

// A TLSError is a failure of a TLS handshake: that of STARTTLS after the server agreed to it, or one that begins the
// connection. Methods wrap it in an *mailspine.Error of 451 4.7.5.
type TLSError struct{ Err error }

// Error has the text of the cause.
func (e *TLSError) Error() string { return "TLS handshake: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *TLSError) Unwrap() error { return e.Err }

// A ReplyError is a reply that ends the session, and is no recipient's result: 421 at any moment, or a refused RSET.
// Methods wrap it in an *mailspine.Error with the reply's codes and text.
type ReplyError struct {
	Command string // that it answered: "greeting", "EHLO", "MAIL", "RCPT", "DATA", "message" and so on
	Reply   Reply
}

// Error has the command, and the reply in one line, fit to be shown.
func (e *ReplyError) Error() string { return e.Command + " was answered with " + e.Reply.String() }

// A MessageError is a failure on our side before the end of the message was sent: the message cannot be read, or
// is not what it was, or Transaction.Commit did not give leave. The server has no message, and
// another server would not help.
type MessageError struct{ Err error }

// Error is the text of the cause.
func (e *MessageError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *MessageError) Unwrap() error { return e.Err }

// An InDoubtError is a failure after the last octet of the message: the server may have it.
type InDoubtError struct {
	// Silent: the server ended the connection without one octet of reply to anything that was sent with the message. If the
	// connection had been used before, it is almost certain that the server had ended it before it read a
	// thing; see [Client.Send].
	Silent bool
	Err    error
}

// Error has the text of the cause.
func (e *InDoubtError) Error() string { return "after the end of the message: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *InDoubtError) Unwrap() error { return e.Err }

// ErrUsedUp is wrapped by the error of Send when the server's LIMITS allow no further transaction on this connection
// (MAILMAX, RFC 9422). The dialogue is in step: end it with Quit, and open another connection.
var ErrUsedUp = errors.New("the connection has had its MAILMAX transactions")

// refusal makes the error of a reply that says no.
func (c *Client) refusal(command string, r Reply) *mailspine.Error {
	return &mailspine.Error{
		Code: r.Code, Enhanced: r.Enhanced, Message: r.Message(),
		Err: fmt.Errorf("smtpclient: %s: %w", c.peer, &ReplyError{command, r}),
	}
}

// Refusal makes of a reply that says no, to a command of that name, the error that a recipient or a log gets. Of a
// reply that neither says no nor is expected it makes the error of a broken protocol, 451 4.5.0; the dialogue is not in step
// any more then.
func (c *Client) Refusal(command string, r Reply) *mailspine.Error {
	if r.Refusal() {
		return c.refusal(command, r)
	}
	c.inStep = false
	return c.nonsense(command, r)
}

// nonsense is for a reply that is neither yes nor no, or yes to something that cannot be.
func (c *Client) nonsense(command string, r Reply) *mailspine.Error {
	return c.broke(command, protocolErrorf("%s was answered with %d", command, r.Code))
}

// broke classifies what is wrong with the connection.
func (c *Client) broke(command string, err error) *mailspine.Error {
	var te *TLSError
	cause := fmt.Errorf("smtpclient: %s, %s: %w", c.peer, command, err)
	switch {
	case errors.As(err, &te):
		return mailspine.Errorf(451, "4.7.5", "TLS with %s failed", c.peer).WithCause(cause)
	case isProtocol(err):
		return mailspine.Errorf(451, "4.5.0", "%s does not follow the protocol (%s)", c.peer, command).WithCause(cause)
	case isTimeout(err):
		return mailspine.Errorf(451, "4.4.2", "%s timed out (%s)", c.peer, command).WithCause(cause)
	}
	return mailspine.Errorf(451, "4.4.2", "Lost the connection with %s (%s)", c.peer, command).WithCause(cause)
}

// fail is broke for an operation that ctx may have ended: then that is what counts.
func (c *Client) fail(ctx context.Context, command string, err error) error {
	if cerr := ctx.Err(); cerr != nil {
		return fmt.Errorf("smtpclient: %s after %s: %w", c.peer, command, errors.Join(cerr, err))
	}
	return c.broke(command, err)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// hungUp reports whether err says that the other side ended the connection.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
