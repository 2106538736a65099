package mailspine

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// A Deliverer takes responsibility for a message, or says why it will not.
// It is to mail what http.Handler is to the web: queues, relays, mail drops,
// complaint intakes and routers are Deliverers, servers have a Next Deliverer,
// and cross-cutting work (signing, suppression, archiving) is a Deliverer that
// wraps another.
//
// Deliver returns nil when the message has been taken for every recipient of
// env: it is then the Deliverer's to bring on its way, and the caller may
// forget it. Any other error means that the caller keeps the responsibility:
//
//   - a plain error holds for every recipient; [Status] says what it means, and
//     an error that Status does not know is temporary;
//   - [RecipientErrors] has one entry for each recipient, nil for those taken;
//   - *[NotNow] means that nothing was attempted, and when to ask again.
//
// Deliver must not modify env nor keep it after it returns (see
// [Envelope.Clone]); msg is valid until it returns. A Deliverer is safe for
// concurrent use, does not retry (queues do), passes ctx on to what it wraps,
// and returns soon after ctx is done. A wrapper has a method
// Unwrap() Deliverer, so that what the inner one can do besides (see [Stager])
// is found.
//
// Deliver may be called again with the same env.ID after a crash or a lost
// reply; taking a message twice is then better than losing it.
type Deliverer interface {
	Deliver(ctx context.Context, env *Envelope, msg Content) error
}

// The DelivererFunc type makes a Deliverer of a function.
type DelivererFunc func(ctx context.Context, env *Envelope, msg Content) error

// Deliver calls f.
func (f DelivererFunc) Deliver(ctx context.Context, env *Envelope, msg Content) error {
	return f(ctx, env, msg)
}

// RecipientErrors is the outcome of a delivery by recipient: as long as
// Envelope.Recipients and in its order, nil for each recipient that was taken.
// Return it through [RecipientErrors.Err], so that "all taken" is a nil error, and
// do not join it with other errors: wrap one error with one %w, or none.
type RecipientErrors []error

// Err returns nil if every entry is nil, and otherwise e itself.
func (e RecipientErrors) Err() error {
	for _, err := range e {
		if err != nil {
			return e
		}
	}
	return nil
}

// Error lists the entries that are not nil, at most ten of them, by index.
func (e RecipientErrors) Error() string {
	var b strings.Builder
	n := 0
	for i, err := range e {
		if err == nil {
			continue
		}
		if n++; n > 10 {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "recipient %d: %v", i, err)
	}
	if n > 10 {
		fmt.Fprintf(&b, "; and %d more", n-10)
	}
	if n == 0 {
		return "no recipient failed"
	}
	return b.String()
}

// Unwrap returns the entries that are not nil.
func (e RecipientErrors) Unwrap() []error {
	var errs []error
	for _, err := range e {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// ErrorAt returns what a Deliver error means for recipient i: the entry if err
// is (or wraps) RecipientErrors, otherwise err. An *Error outside of the
// RecipientErrors decides for all, as in [Status]. RecipientErrors too short to
// have an entry i is a bug of the Deliverer, and counts as not taken.
func ErrorAt(err error, i int) error {
	re, ok := recipientErrors(err)
	switch {
	case !ok:
		return err
	case i < 0 || i >= len(re):
		return fmt.Errorf("mailspine: delivery has %d results, none for recipient %d: %w", len(re), i, err)
	}
	return re[i]
}

func recipientErrors(err error) (RecipientErrors, bool) {
	for {
		switch e := err.(type) {
		case RecipientErrors:
			return e, true
		case *Error:
			return nil, false
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		default:
			return nil, false
		}
	}
}

// ErrorsFor spreads a Deliver error over n recipients: the result has length n
// and entry i is ErrorAt(err, i).
func ErrorsFor(err error, n int) RecipientErrors {
	res := make(RecipientErrors, n)
	if err != nil {
		for i := range res {
			res[i] = ErrorAt(err, i)
		}
	}
	return res
}

// NotNow is the error of a Deliverer that did not try: a limit, a closed
// window, a destination on hold. A queue gives the message back to its store
// without counting an attempt, and asks again at Until.
type NotNow struct {
	Until  time.Time // when to ask again; zero: the asker's choice
	Reason string    // why, for people: "daily cap of 203.0.113.7 at gmail.com reached"
	Rule   string    // the rule or limit that says so, for programs; "": none
}

// Error tells reason, rule and time.
func (e *NotNow) Error() string {
	s := "not now"
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Rule != "" {
		s += " (" + e.Rule + ")"
	}
	if !e.Until.IsZero() {
		s += " until " + e.Until.UTC().Format(time.RFC3339)
	}
	return s
}

// A RecipientChecker decides at RCPT, before any data is sent, whether a server
// takes mail for a recipient.
//
// env is the transaction so far: From, Origin, and the recipients accepted
// before this one; it must not be modified or kept. nil accepts; an error
// refuses with its [Status], so an unknown error is temporary. It is called
// once for each RCPT command and must be safe for concurrent use. A server
// whose RecipientChecker is nil refuses every recipient with 550 5.7.1: an open
// relay has to be asked for.
type RecipientChecker interface {
	CheckRecipient(ctx context.Context, env *Envelope, rcpt Recipient) error
}

// The RecipientCheckerFunc type makes a RecipientChecker of a function.
type RecipientCheckerFunc func(ctx context.Context, env *Envelope, rcpt Recipient) error

// CheckRecipient calls f.
func (f RecipientCheckerFunc) CheckRecipient(ctx context.Context, env *Envelope, rcpt Recipient) error {
	return f(ctx, env, rcpt)
}

// Find looks for a T in d and in what it wraps (Unwrap() Deliverer), outermost
// first, at most 100 deep.
func Find[T any](d Deliverer) (T, bool) {
	for range 100 {
		if t, ok := d.(T); ok {
			return t, true
		}
		u, ok := d.(interface{ Unwrap() Deliverer })
		if !ok {
			break
		}
		d = u.Unwrap()
	}
	var zero T
	return zero, false
}
