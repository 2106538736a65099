// Package mailspine is the shared vocabulary of an embeddable mail system: the
// parts of e-mail infrastructure as packages that a program imports and
// assembles into its own pipeline, from the user's mail client and back to it.
//
// One idea carries everything: the [Deliverer], which is to mail what
// http.Handler is to the web. A Deliverer takes responsibility for a message,
// or says why it will not. The queue is one (nil means durably stored), the
// outbound relay is one (nil means that the remote server took it), the mail
// drop is one, and a router is a Deliverer made of Deliverers. Servers have a
// Next Deliverer. The example of this package is a whole pipeline.
//
//	MUA --SMTP AUTH--> msa.Server --> fbl.Stamp --> auth.Signer --> queue.Queue --> mta.Mux --> mta.Relay --SMTP/TLS--> the world
//	the world --SMTP--> mta.Receiver (SPF DKIM DMARC BIMI) --> queue.Queue --> mta.Mux --> mda.Agent --> mailbox --IMAP/POP3--> MUA
//	                                                                                 \--> fbl.Intake --> suppress.Filter
//
// # The map
//
// This package imports nothing else of the module. It has [Address],
// [Envelope] and [Content] (what is delivered), [Deliverer], [RecipientErrors],
// [NotNow] and [Attempt] (how), [Error] and [Status] (the answer to every
// error), [Stager] (where arriving messages are put), and the interfaces
// by which the rooms know each other: [RecipientChecker], [Resolver],
// [Authenticator], [OutcomeSink], [Classifier], [Reputation], [ReturnPaths].
//
// The rooms, each with its own page:
//
//   - auth: is this mail what it says it is, and who vouches for ours. SPF,
//     DKIM, DMARC, BIMI, Authentication-Results, the Checker that runs them all, the
//     Signer, and the DNS resolver with its test server.
//   - queue: durable hand-over. The scheduler with leases, retries and delivery
//     status notifications, over a Store in memory or in files.
//   - mta: between domains. Receiver (port 25), Relay (outbound), Smarthost, Mux (routes), and mta/egress: the
//     addresses that mail leaves from, and how much of it on which day.
//   - msa: submission by the domain's own users.
//   - mda: into the mailbox and out of it. The delivery agent, mailbox stores, IMAP and POP3 servers, conversion.
//   - fbl: what the world says back. Complaints, bounces, and who gets no more mail.
//
// Everything acquires its resources explicitly and has a zero value that is
// safe: limits and time-outs are on, nothing relays without being told whom
// for, and a message is answered 250 only when it would survive a power cut.
package mailspine
