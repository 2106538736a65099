// Package suppress remembers which recipients are to get no more mail of a sender,
// and keeps it from them.
//
// An [Entry] suppresses one address for a stream of a tenant, for all streams of
// a tenant, or for everybody. A [List] has the entries: [Memory], and [File], which survives
// crashes. A [Filter] is a mailspine.Deliverer that stands before another one and refuses
// what the list has (see [ErrSuppressed]); it can also learn from what is refused for good there.
//
// Use two Filters with the same list: one at the door, so that who submits a message hears
// at once, and one before the relay, so that what was queued before the entry was
// made is not sent either:
//
//	door := &suppress.Filter{List: list, Next: signer}
//	out := &suppress.Filter{List: list, Next: relay, Bounces: &suppress.BounceRule{}}
//
// # Which refusals suppress
//
// With Filter.Bounces, a recipient that the next hop refuses for good is added, if the refusal says
// something about the recipient and not about the sender, the message or the way: enhanced codes
// X.1.1, X.1.2, X.1.3, X.1.6, X.1.10 and X.2.1 (RFC 3463, RFC 7505). Without a code of that kind nothing is added: a server that
// says "550 no" may mean anything. See [Hard].
package suppress
