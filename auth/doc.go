// Package auth answers two questions: is this mail what it says it is, and who
// vouches for ours.
//
// A [Checker] is the receiver's side. It takes a message while it is being
// staged, in one pass: SPF begins at MAIL FROM, keys and the DMARC policy are fetched as soon
// as the header is complete, the body flows through DKIM's hashes, and what is
// left to wait for after the final dot is little. Its [Results] say it in
// full, and in short as a mailspine.Verdict, as the Authentication-Results and
// Received-SPF fields to prepend, and as the refusal that the author domain's
// DMARC policy asks for. If it is told to, it also finds the indicator that the author
// domain wants shown (BIMI).
//
// A [Signer] is the sender's side: a Deliverer that adds DKIM signatures and
// hands the message on.
//
// The protocols have their own packages, which work without this one: auth/spf,
// auth/dkim, auth/dmarc, auth/bimi, auth/authres. All of them look names up through a
// mailspine.Resolver; auth/dns has one.
package auth
