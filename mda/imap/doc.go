// Package imap serves mailboxes by IMAP4rev1 (RFC 3501) with the extensions that mail programs use, most of which
// became IMAP4rev2 (RFC 9051): IDLE, MOVE, UIDPLUS, NAMESPACE, SPECIAL-USE, CREATE-SPECIAL-USE, LIST-EXTENDED,
// LIST-STATUS, ESEARCH, SEARCHRES, UNSELECT, ENABLE, CHILDREN, STATUS=SIZE, APPENDLIMIT, SASL-IR, LITERAL+.
//
//	srv := &imap.Server{Mailboxes: store, Auth: users, TLSConfig: config}
//	go srv.ServeTLS(l993) // implicit TLS, which RFC 8314 wants
//	go srv.Serve(l143)    // STARTTLS
//
// The protocol is spoken by go-imap's server; connections, what comes before TLS, literals, the mailboxes, and what a
// session sees of them, are ours. Nobody logs in without TLS (LOGINDISABLED).
//
// # What a session sees
//
// Sequence numbers are a view that belongs to the session: the messages that it was told of. It learns of
// changes that others make with its next command, and at once in IDLE. A message that somebody removes keeps its number until
// the session may be told (RFC 9051 section 7.5.1: not during FETCH, STORE and SEARCH); what is asked of it meanwhile is
// answered for the others, with NO [EXPUNGEISSUED] if it was asked by number, and with OK if by UID. EXAMINE is read-only: nothing changes, \Seen neither. \Recent
// is never set. If the mailbox is deleted under a session, its messages vanish.
//
// Flags are in canonical case; keywords are kept, up to the store's bounds. Sections of messages are exact octets of what is stored,
// and streamed; nothing but header blocks is held in memory. A multipart is looked into up to 30 levels and 1,000 parts; what is
// deeper is a part without structure. Of the headers of a message's parts 4 MiB and 50,000 fields together are interpreted.
// A search has at most 500 criteria, of which 20 read messages.
//
// A session holds some 100 octets for each message of its mailbox: 1,000 sessions with 100,000 messages each need 10 GB.
//
// # What is absent
//
// IMAP4rev2 by name (its BINARY is missing), CONDSTORE, QRESYNC, ID, QUOTA, SORT, THREAD, COMPRESS, ACL, METADATA:
// go-imap v2.0.0-beta.8 has no way to add them from outside. SASL mechanisms other than PLAIN.
//
// Of the engine's own faults these remain: SEARCH forgets SMALLER when a date or LARGER follows it ("SINCE 1-Jan-2026 SMALLER 100" is
// right); a search key that it does not know, and a mailbox name that is no modified UTF-7, is answered NO [SERVERBUG], and such a name as a literal
// ends the connection; a message of APPEND has to come within five minutes, and goes out in FETCH within five; LARGER 0 and SMALLER 0 say nothing;
// ENABLE IMAP4rev2 is granted although it is not offered. UTF8=ACCEPT (RFC 6855) is offered by the engine of itself: names of mailboxes are in UTF-8
// then, header fields stay encoded.
package imap
