// Package msa is the submission server (RFC 6409, RFC 8314): where the users of
// a site hand in their mail.
//
//	srv := &msa.Server{
//		Hostname:  "mail.example.org",
//		TLSConfig: tlsConfig,
//		Auth:      users,          // a mailspine.Authenticator, *msa.MemoryUsers for one
//		Next:      signerAndQueue, // a mailspine.Deliverer
//	}
//	go srv.Serve(port587)    // STARTTLS
//	go srv.ServeTLS(port465) // implicit TLS
//	...
//	srv.Shutdown(ctx)
//
// # Who may send what
//
// A client has to use TLS before AUTH (538 5.7.11), and AUTH before MAIL (530
// 5.7.0); PLAIN and LOGIN are offered. The address in MAIL FROM, every mailbox
// of the header fields From and Sender, and those of Resent-From and
// Resent-Sender must be the login's (553 5.7.1, 554 5.7.1): [Server.Senders]
// says which are, and its default is the login's name and Login.Addresses. The
// null reverse-path is anyone's, for receipts (RFC 8098 section 3); the header
// is checked all the same. Recipients can be anywhere: that is what submission
// is for. The envelope's Tenant, Stream and Pool come from the login.
//
// # What is done to a message
//
// Added: a Received field; Date and Message-ID where they are missing (RFC 6409
// section 8). Removed: Bcc and Resent-Bcc, which are nobody's business
// (RFC 5322 section 3.6.3); Return-Path (RFC 5321 section 4.4); every
// Authentication-Results, since a user vouches for nothing (RFC 8601 section
// 5); every X-Mailspine-... field, which steer the systems behind. The rest of
// the header and the body pass octet by octet, broken MIME too.
//
// # What is refused
//
//	421 4.3.0  internal error            a panic; logged with its stack
//	421 4.3.2  too many connections; shutting down
//	421 4.4.2  too slow, silent, or too long connected
//	421 4.7.0  too many connections of one address, commands, errors, failed logins
//	451 4.3.0  local error               anything unplanned; its text is in the log only
//	452 4.3.1  insufficient storage      nothing is left behind
//	452 4.5.3  too many recipients       of one message
//	454 4.7.0  temporary authentication failure
//	500 5.5.2  line too long, bare CR or LF, control character in a command
//	501 5.1.3  malformed recipient address; 5.1.7 sender address; 5.5.4 parameter
//	530 5.7.0  STARTTLS first; AUTH first
//	530 5.7.10 REQUIRETLS without TLS
//	535 5.7.8  credentials invalid       the same for an unknown user
//	538 5.7.11 AUTH without TLS
//	550 5.6.0  a CR or LF alone in the message; the connection is closed, too
//	552 5.3.4  message larger than Limits.MaxSize
//	553 5.1.3  recipient domain is not fully qualified (RFC 6409 section 4.2)
//	553 5.7.1  MAIL FROM is not the login's
//	554 5.4.6  more than 100 Received fields
//	554 5.6.0  header malformed, or a field missing or repeated (RFC 5322 section 3.6); NUL; line too long
//	554 5.7.1  From or Sender is not the login's
//	555 5.5.4  unknown or unsupported parameter
package msa
