// Pipeline carries real mail from a user's mail client to a reader's mailbox,
// between two organisations on loopback, and shows each hop:
//
//	go run ./examples/pipeline
//
// Each organisation has its DNS zone, served by a real DNS server, a DKIM key, a
// certificate, a queue on disk, a submission server, a receiver, and mailboxes.
// The steps:
//
//  1. A message goes from the client over submission, DKIM signature, durable
//     queue, MX lookup, TLS and the receiver's SPF, DKIM and DMARC checks into a
//     Maildir. Its header and body are compared byte for byte with what was sent.
//  2. A forged message is refused by the author domain's DMARC policy.
//  3. A message to an unknown user comes back as a delivery status notification.
//  4. A child process that runs the sender's queue is killed after it said 250,
//     and started again on the same directory: the message arrives, once.
//  5. Many messages at once, each of which arrives once.
//
// The program exits with 1, naming the failing step, if anything differs.
package main
