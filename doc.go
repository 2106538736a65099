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
//	MUA --SMTP AUTH--> msa.Server --> auth.Signer --> queue.Queue --> mta.Mux --> mta.Relay --SMTP/TLS--> the world
//	the world --SMTP--> mta.Receiver (SPF DKIM DMARC) --> queue.Queue --> mta.Mux --> mda.Agent --> mailbox
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
//     DKIM, DMARC, Authentication-Results, the Checker that runs them all, the
//     Signer, and the DNS resolver with its test server.
//   - queue: durable hand-over. The scheduler with leases, retries and delivery
//     status notifications, over a Store in memory or in files.
//   - mta: between domains. Receiver (port 25), Relay (outbound), Mux (routes).
//   - msa: submission by the domain's own users.
//   - mda: into the mailbox. The delivery agent and mailbox stores.
//   - fbl: what the world says back.
//
// Everything acquires its resources explicitly and has a zero value that is
// safe: limits and time-outs are on, nothing relays without being told whom
// for, and a message is answered 250 only when it would survive a power cut.
package mailspine
