// Package pop3 serves a mailbox by POP3 (RFC 1939), with CAPA (RFC 2449), STLS (RFC 2595), AUTH PLAIN (RFC
// 5034), extended response codes (RFC 2449, RFC 3206), UIDL, TOP and pipelining.
//
//	srv := &pop3.Server{Mailboxes: store, Auth: users, TLSConfig: config}
//	go srv.ServeTLS(l995) // implicit TLS, which RFC 8314 wants
//	go srv.Serve(l110)    // STLS
//
// Each user sees INBOX. Nobody logs in without TLS. A session has the maildrop to itself (RFC 1939 section
// 4): a second one is told [IN-USE]. It sees the messages of the moment it logged in; new ones come with
// the next. Messages that somebody removes meanwhile by other ways cannot be retrieved any more.
//
// Messages are removed at QUIT and at no other time: a connection that is lost, timed out or shut
// down removes nothing. If QUIT cannot remove all of them it says so ([SYS/TEMP]), and those are there
// next time.
//
// # Sizes and names of messages
//
// LIST and STAT tell the size of a message as it is stored, which is what RETR sends, before stuffing, for
// all that came by SMTP. A message that was stored with bare CR or LF, or without a line end at its
// end, gets what is missing when it is sent, since a client could otherwise take a line of it for the end of the
// message; then it is larger than LIST said. UIDL is made of UIDVALIDITY and UID of the mailbox, so it is the
// same in all sessions and never given twice.
//
// # What is absent
//
// APOP (it needs passwords in clear on the server), UTF8 and LANG (RFC 6856), SASL mechanisms other than PLAIN, LAST and
// XTND. They are answered -ERR and not listed by CAPA.
//
// # Bounds
//
// Limits has those of connections and time. A session holds 16 octets for each message of the
// mailbox, and a mailbox.Snapshot while it logs in, and at QUIT 4 for each that is deleted; messages are streamed through 32 KiB.
package pop3
