// Package mta moves mail between domains (RFC 5321): the outbound Relay, the
// Smarthost that sends all mail one way, the Mux that decides which way a recipient
// goes, and the Receiver that takes mail from the world on port 25.
//
//	queue.Queue ==> mta.Mux --> mta.Relay --SMTP/TLS--> the world
//	                       \--> mda.Agent
//	the world --SMTP--> mta.Receiver --> [SPF DKIM DMARC] --> queue.Queue
//
// # Sending
//
// A [Relay] is a mailspine.Deliverer: nil means that the remote server took the
// message. It finds the mail exchangers of each recipient's domain (MX, implicit
// MX, null MX), tries them in order of preference, uses TLS as the recipient's domain and its own [TLSPolicy]
// demand (opportunistic where nobody demands anything), and gives each recipient its own result.
// Retries are not its business: it sits behind a queue, which asks it to send
// when it is time, and lends it a mailspine.Attempt, so that the final dot is
// sent only while the queue still holds its lease, and so that the remote
// server's name, reply and TLS reach the delivery status notifications.
//
// Connections are used again: one on which all went well is kept for some seconds, and the next message for the same
// host, from the same source and under the same TLS rule, needs no new one (Relay.IdleTimeout, MaxIdle, MaxPerConnection,
// MaxAge). If the server has ended it in the meantime, that is no failed attempt. Where PIPELINING (RFC 2920) is offered
// the commands go together, and with CHUNKING (RFC 3030) a message of up to 64 KiB goes with them: it takes one round trip, two
// without CHUNKING. What is said on a connection is the business of package smtpclient.
//
// The servers that it talks to are chosen by strangers. Addresses that are
// private, loopback or otherwise not of the public Internet are refused (see
// Relay.AllowPrivate); every reply is bounded in size, lines and time; what a
// server says reaches errors and logs without control characters and cut to
// length; a reply that comes before its command counts for nothing.
//
// The codes that Relay makes itself, in addition to the replies of remote
// servers, which are passed on as they are:
//
//	451 4.3.0   the Relay is not configured, or the message cannot be read
//	451 4.3.2   the server takes no more messages on a connection (LIMITS, RFC 9422), and no other one is left to try
//	451 4.4.1   no mail exchanger could be connected to, or the address to send from is not ours, or the
//	            proxy cannot be used, or another
//	            delivery is just trying whether a site that could not be reached is there again
//	451 4.4.2   the connection was lost, or a time-out ran out
//	451 4.4.3   the name lookup failed for now, or the host of a Smarthost has no address
//	451 4.5.0   the server does not speak SMTP
//	451 4.7.4   the TLS policy, DANE or MTA-STS demands TLS, and the server does not offer it
//	451 4.7.5   TLS is demanded by the TLS policy, DANE, MTA-STS or REQUIRETLS, and the handshake or the
//	            certificate is bad, or no mail exchanger is one that the policy allows or lists, or the local
//	            policy or the TLSA records cannot be found out (for REQUIRETLS: the MTA-STS policy too)
//	451 4.7.8   a Smarthost does not take our Credentials, or offers nothing that they can be used with
//	550 5.1.2   the domain does not exist, or has neither mail exchanger nor address
//	550 5.1.3   the recipient's address has no valid form
//	553 5.1.7   the sender's address has no valid form
//	556 5.1.10  the domain takes no mail (null MX, RFC 7505)
//	550 5.3.3   DELIVERBY with mode R, and the server does not know it (RFC 2852)
//	552 5.3.4   the message is larger than the server takes (RFC 1870)
//	550 5.4.4   the mail exchangers have no address, or only forbidden ones
//	554 5.4.6   the best mail exchanger is ourselves, by name, by address or by its greeting
//	554 5.4.7   the DELIVERBY time is over (RFC 2852)
//	554 5.6.0   a bare CR or LF in the message: it cannot be sent unchanged
//	554 5.6.3   8-bit or binary data, and the server cannot take it
//	553 5.6.7   an internationalised address or message, and no SMTPUTF8
//	550 5.7.10  REQUIRETLS, and no TLS, or mail exchangers secured by neither DNSSEC nor an enforced
//	            MTA-STS policy nor the rule
//	550 5.7.30  REQUIRETLS, and the server does not know it (RFC 8689)
//
// Which of our addresses it sends from, and how much, is decided by an [Egress], which is asked
// before a connection is made; package egress has one. What is over a limit
// comes back as a *mailspine.NotNow, and waits in the queue.
//
// # Transport security
//
// In order of strength: REQUIRETLS of the message (RFC 8689), DANE (RFC 7672, where the Resolver's answers are
// authentic), MTA-STS (RFC 8461, with Relay.MTASTS), and the operator's own [TLSPolicy], which can also take the place of what
// a domain publishes. A certificate that fails what is demanded keeps the message in the queue; nothing goes in clear then. The
// outcome of each session goes to Relay.TLSReports, for the reports of RFC 8460. See packages mtasts, dane and tlsrpt of auth.
//
// # Sites
//
// Domains with the same mail exchangers are one [Site]: they share connections, transactions and limits ([SiteLimits]), of
// which the window grows while deliveries succeed and shrinks when servers turn us away. With Relay.BySite the Relay is
// the queue.Router and queue.Gate by site too. [Relay.Explain] tells where mail for a domain would go, and why: hosts, addresses,
// TLS, limits.
//
// # Routing
//
// A [Smarthost] sends all messages to one host that the operator configured.
//
// A [Mux] is a Deliverer made of Deliverers. Its Rules choose by tenant, stream, sender and domain, before its Routes
// choose by domain. A [Fallback] is a way with others behind it. A Mux is also the queue.Router that
// tells a queue which recipients travel together, and a
// mailspine.RecipientChecker, so that a Receiver takes at RCPT exactly what the
// routes will take.
//
// # Receiving
//
// A [Receiver] serves port 25. It relays for nobody: its Recipients field
// decides at RCPT what is taken, and nil refuses everything. It checks SPF, DKIM
// and DMARC while the message is staged, removes forged results, adds its own,
// obeys a DMARC policy of reject, and keeps the verdict in the envelope.
// Under TLS it offers REQUIRETLS, which binds whoever sends the message on.
package mta
