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
// MX, null MX), tries them in order of preference, uses TLS as its [TLSPolicy]
// says (opportunistic without one), and gives each recipient its own result.
// Retries are not its business: it sits behind a queue, which asks it to send
// when it is time, and lends it a mailspine.Attempt, so that the final dot is
// sent only while the queue still holds its lease, and so that the remote
// server's name, reply and TLS reach the delivery status notifications.
//
// Connections are used again: one on which all went well is kept for some seconds, and the next message for the same
// host, from the same source and under the same TLS rule, needs no new one (Relay.IdleTimeout, MaxIdle, MaxPerConnection,
// MaxAge). If the server has ended it in the meantime, that is no failed attempt. Where PIPELINING (RFC 2920) is offered, MAIL,
// RCPT and DATA go together, and a message of up to 64 KiB with its final dot. So a message takes two round trips.
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
//	451 4.4.1   no mail exchanger could be connected to, or the address to send from is not ours
//	451 4.4.2   the connection was lost, or a time-out ran out
//	451 4.4.3   the name lookup failed for now, or the host of a Smarthost has no address
//	451 4.5.0   the server does not speak SMTP
//	451 4.7.4   the TLS policy demands TLS, and the server does not offer it
//	451 4.7.5   the TLS policy demands TLS, and the handshake or the certificate is bad, or
//	            no mail exchanger is one that it allows, or the policy cannot be found out
//	550 5.1.2   the domain does not exist, or has neither mail exchanger nor address
//	550 5.1.3   the recipient's address has no valid form
//	553 5.1.7   the sender's address has no valid form
//	556 5.1.10  the domain takes no mail (null MX, RFC 7505)
//	550 5.3.3   DELIVERBY with mode R, and the server does not know it (RFC 2852)
//	552 5.3.4   the message is larger than the server takes (RFC 1870)
//	550 5.4.4   the mail exchangers have no address, or only forbidden ones
//	554 5.4.6   the best mail exchanger is ourselves
//	554 5.4.7   the DELIVERBY time is over (RFC 2852)
//	554 5.6.0   a bare CR or LF in the message: it cannot be sent unchanged
//	554 5.6.3   8-bit or binary data, and the server cannot take it
//	553 5.6.7   an internationalised address or message, and no SMTPUTF8
//	550 5.7.10  REQUIRETLS, and no TLS, or mail exchangers found insecurely
//	550 5.7.30  REQUIRETLS, and the server does not know it (RFC 8689)
//
// Which of our addresses it sends from, and how much, is decided by an [Egress], which is asked
// before a connection is made; package egress has one. What is over a limit
// comes back as a *mailspine.NotNow, and waits in the queue.
//
// # Routing
//
// A [Smarthost] sends all messages to one host that the operator configured.
//
// A [Mux] is a Deliverer made of Deliverers. It is also the queue.Router that
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
package mta
