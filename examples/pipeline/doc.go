// Pipeline carries real mail from a user's mail client to a reader's mailbox,
// between two organisations on loopback, and shows each hop:
//
//	go run ./examples/pipeline
//
// Each organisation has its DNS zone, served by a real DNS server, a DKIM key, a
// certificate, a queue on disk, a submission server, a receiver, mailboxes with IMAP and POP3 servers, and an intake for
// complaints and bounces. The steps:
//
//  1. Both are set up.
//  2. A message goes from the client over submission, feedback token, DKIM signature, durable
//     queue, MX lookup, TLS that DANE verifies and the receiver's SPF, DKIM, DMARC and BIMI checks into a
//     Maildir. Its header and body are compared byte for byte with what was sent.
//  3. The reader fetches it over IMAP and over POP3: the same octets.
//  4. Another server answers for the receiver, with a certificate for its name and a key that is not in its zone. The message
//     waits in the queue, and goes when the right one answers.
//  5. Two tenants send from a pool of two addresses that are still warming up. The receiving side counts what came from which:
//     exactly the caps of the first day. The rest waits for tomorrow.
//  6. A forged message is refused by the author domain's DMARC policy.
//  7. A message to an unknown user comes back as a delivery status notification, and the next one
//     there is refused at once.
//  8. A reader complains of one tenant's mail, and gets no more of it. A forged complaint is kept for review, and stops
//     nobody.
//  9. A child process that runs the sender's queue is killed after it said 250,
//     and started again on the same directory: the message arrives, once.
//  10. Many messages at once, each of which arrives once.
//  11. The books balance: what was accepted is delivered, bounced or waiting.
//
// The program exits with 1, naming the failing step, if anything differs.
package main
