// Package smtpd is the SMTP and LMTP server engine (RFC 5321, RFC 2033) behind
// submission, the receiver and the LMTP door. It speaks the protocol, keeps the
// limits and owns the connections; a [Handler] decides what is accepted.
//
// The layers, from the socket inwards:
//
//   - [Server] accepts connections, counts them in all and by client address,
//     drains them at Shutdown.
//   - [Conn] is one connection: TLS, deadlines, command lines, the reply to each,
//     AUTH. It hands a [Session] what it has parsed into the root package's types.
//   - [Door] is what sessions use to take a message: it stages the data, hands it
//     to a Deliverer, and turns the results of many recipients into the one reply
//     that SMTP has.
//   - [Received] writes the trace field.
//
// # Errors
//
// Whatever a Handler or Session returns goes through [mailspine.Status]: an
// *Error is told to the client as it is, an unknown error is 451 4.3.0 with a
// fixed text, its own text going to the log only. A panic is 421 4.3.0 and a log
// line with the stack, and ends the one connection.
//
// # What ends a message
//
// Only the five octets CR LF . CR LF do (RFC 5321 section 4.1.1.4). A message in
// which a CR or an LF stands alone is refused whole, after its real end, with 550
// 5.6.0, and the connection is closed with a 421: nothing after such a message is
// ever read as a command, whichever line end a careless relay before us believed
// in (CVE-2023-51764, CVE-2023-51765, CVE-2023-51766). A command line with a
// bare LF, a bare CR or a NUL is refused with 500 5.5.2. NUL in a message is refused with 554 5.6.0: neither 7bit
// nor 8bit data may hold one (RFC 2045 sections 2.7 and 2.8), and programs that
// end strings at a NUL would see another message than the one that was checked. A text line
// longer than the limit is refused with 554 5.6.0 after the data, never cut.
//
// # Replies
//
// A reply never repeats what the client sent, is printable ASCII, and each of its
// lines has at most 512 octets. The 250 to the message names it: "250 2.0.0 Ok:
// queued as 01ARZ3NDEKTSV4RRFFQ69G5FAV".
//
// # Engine
//
// The engine is our own; go-smtp is the peer that the tests compare it with.
// TestWhatGoSMTPLacks shows, against go-smtp itself, each thing that could not be
// had on top of it.
package smtpd
