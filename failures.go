package mailspine

import "context"

type failuresKey struct{}

// WithFailures returns a context that tells an Undelivered Deliverer why it
// gets a message: an error for each recipient of the envelope that it is given,
// none of them nil. Doors (see msa.Server, mta.Receiver) use it.
func WithFailures(ctx context.Context, why RecipientErrors) context.Context {
	return context.WithValue(ctx, failuresKey{}, why)
}

// FailuresFrom returns, inside of the Deliver method of a server's Undelivered,
// why the server's Next did not take the message: an error for each recipient of
// the envelope, none of them nil. Elsewhere it returns nil.
func FailuresFrom(ctx context.Context) RecipientErrors {
	why, _ := ctx.Value(failuresKey{}).(RecipientErrors)
	return why
}
