// Package fbl hears what the world says back: complaints of readers (abuse reports, RFC 5965) and bounces
// that come after the next hop had taken a message (RFC 3464). Each of them stops mail to that reader, in package
// suppress, and is told to an OutcomeSink.
//
//	tokens := &fbl.Tokens{Keys: keys, Domain: "bounces.example.org", Scopes: scopes}
//	out := &fbl.Stamp{Tokens: tokens, ReturnPath: true, Next: signer} // before the queue
//	in := &fbl.Intake{Tokens: tokens, Addresses: []mailspine.Address{feedback}, Suppress: list, Review: review, Forward: queue}
//	mux.Routes["bounces.example.org"] = in
//
// # Whom to believe
//
// Anybody can send a report. Were it believed, a stranger could stop mail to anybody. So a [Stamp]
// gives each copy of a message a token of its own, in its return path and in the header field [Header]: an HMAC over
// the message, the recipient, the day, and whose mail it is. A complaint counts if all of these hold:
//
//   - its Feedback-Type is abuse, fraud, virus or opt-out;
//   - it has a token that one of our keys made and that has not expired, in the header of the reported message
//     or in its return path;
//   - the token was made for a recipient that the report names, so that who has got a message can stop
//     mail to himself only;
//   - the reporter passes DKIM or SPF, as the Verdict of the envelope says, which mta.Receiver writes, and the policy of the
//     domain that the report claims to come from does not have it quarantined.
//
// The token is what protects: it shows that the reporter has seen that copy. DKIM or SPF sees to it that somebody answers for the
// report. A reader who publishes a message with its header hands its token to everybody.
//
// A bounce counts if it comes to a sealed return path, is a delivery status notification, and says that the path's
// own recipient failed for a reason on the recipient's side (suppress.Hard). Where its Status says nothing (5.0.0), the code at the
// beginning of the diagnostic reply counts.
//
// Each counts once: a report that comes again changes nothing, and is not told to the OutcomeSink again.
//
// Everything else changes nothing. A report goes to Intake.Review with the field [ReviewHeader], which says
// why: nothing is lost, and a person can decide. So does what comes to a return path whose token does not open any more.
// What comes to a sealed return path and is no bounce that counts (an automatic reply, a delay, a letter) is passed on to
// the message's original sender, as all bounces are, if Intake.Forward is set.
//
// # Bounds
//
// Of a report 4 MiB are read, with 100 recipients and 10 tokens; of a notification the 10,000
// recipients that package report reads. The lookups are in memory.
package fbl
