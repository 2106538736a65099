// Mailserver is the parts of Mailspine as one server: mail comes in and goes out, is checked, signed,
// queued and filed, and people read it. It is small enough to be read, and meant to be changed: each file is
// one part of the assembly.
//
// # Try it with your own mail program
//
// Start a server with two users. It makes a directory mailserver-data, listens on this host only, and
// prints where:
//
//	go build ./examples/mailserver
//	./mailserver -user ann:secret -user bob:secret2 \
//		-submission 127.0.0.1:5870 -submissions 127.0.0.1:4650 -imaps 127.0.0.1:9930 -pop3s 127.0.0.1:9950
//
// Without the addresses it works too, on free ports, which are others after each start. A password on the
// command line can be read by all users of the host: -user ann:@file takes it from a file.
//
// Then set up an account, in Thunderbird by "Configure manually", for ann@example.test:
//
//	incoming: IMAP, server 127.0.0.1, port 9930, SSL/TLS, normal password, user name ann
//	      or: POP3, server 127.0.0.1, port 9950, SSL/TLS, normal password, user name ann
//	outgoing: SMTP, server 127.0.0.1, port 4650, SSL/TLS, normal password, user name ann
//
// The user name ann@example.test does as well. The program asks once whether to trust the server's certificate, which
// it made itself; confirm that, or import mailserver-data/cert.pem. Write to ann@example.test or bob@example.test,
// and read it. For mutt, these lines do as a muttrc:
//
//	set realname="Ann" from=ann@example.test certificate_file=mailserver-data/cert.pem
//	set folder=imaps://ann@127.0.0.1:9930/ spoolfile=+INBOX record=+Sent postponed=+Drafts
//	set smtp_url=smtps://ann@127.0.0.1:4650/
//
// The same from the command line, in another terminal, with swaks and curl:
//
//	swaks --server 127.0.0.1:5870 --tls --auth PLAIN --auth-user ann --auth-password secret \
//		--from ann@example.test --to bob@example.test --h-Subject "Hello"
//	curl --cacert mailserver-data/cert.pem --user bob:secret2 "imaps://127.0.0.1:9930/INBOX;MAILINDEX=1"
//	curl --cacert mailserver-data/cert.pem --user bob:secret2 pop3s://127.0.0.1:9950/1
//
// Control-C ends the server. The mail stays, for the next start.
//
// # What it does
//
//	-submission(s) -> msa.Server -> suppress.Filter -> fbl.Stamp -> auth.Signer -> queue.Queue
//	-smtp -> mta.Receiver with auth.Checker -> queue.Queue
//	queue.Queue ==> mta.Mux -> mda.Agent -> mailboxes -> -imap(s), -pop3(s)
//	                        -> fbl.Intake, for complaints to fbl@DOMAIN
//	                        -> tlsrpt.Intake, for reports to tls-reports@DOMAIN
//	                        -> mta.Smarthost for -route and -relay, or mta.Relay to the world
//
// What is answered with 250 is on the disk. A mail of a user gets a Date and a Message-ID if it has none, a token, and a
// DKIM signature. What comes from the world is taken for our users only, and checked: SPF, DKIM, DMARC, BIMI; what the
// domain's policy rejects is refused, what it quarantines goes to Junk. Nobody logs in without TLS, and
// nobody but a user sends to others.
//
// A complaint that a provider sends to fbl@DOMAIN (in the format of RFC 5965, signed with DKIM or passing SPF, with
// the message's token) stops all further mail of that user to that reader; it is refused with 550 5.1.0. Every other mail to
// that address is put into the mailbox Feedback of the first user, and changes nothing. An address that does not
// exist gets no mail of the user who tried for a week.
//
// On the way to the world what other domains say about TLS is obeyed: MTA-STS (RFC 8461), whose policies are kept over a restart, and
// with -trust-dns DANE (RFC 7672). Mail that would go to a wrong certificate waits. With -tls-reports it is counted how the connections came
// out, and reported once a day to the domains that ask for it (RFC 8460). What others report to tls-reports@DOMAIN is a line in the log;
// what is no report there, or not signed by its sender, is in the mailbox Feedback.
//
// What is in the queue, and what happens to it, is in the operator's hand, as the same user or root:
//
//	go run ./examples/mailtool queue list -spool mailserver-data/queue
//	go run ./examples/mailtool queue hold -spool mailserver-data/queue -domain example.net -reason "their server is down"
//
// postmaster and abuse are the first user's, unless there are users of these names. ann+lists is ann, and goes into
// her mailbox "lists" if she has one.
//
// # Flags
//
// Listeners: -smtp -submission -submissions -imap -imaps -pop3 -pop3s, each an address, or empty for off; the
// default is a free port on 127.0.0.1. When all of them are open they are printed on stdout, a line each, name and
// address, in this order, and nothing else is. Logs go to stderr; -redact keeps the local parts of addresses out, -v says more.
//
// Names: -domain is the users' mail domain, -hostname the server's name (mail.DOMAIN). -user name:password or
// name:@file, at least one; names are ASCII letters and digits, with single dots, hyphens and underscores between
// them, and their case does not matter.
//
// Certificate: -cert and -key, which are read at the start; without them a self-signed one is made, once.
//
// The way out: -route domain=host:port sends a domain's mail to a host, -relay host:port all other mail; without it,
// mail goes to the MX of its domain, over TLS where that is offered. An MX that leads to a private address is not followed
// unless -allow-private lists it; -route and -relay may lead anywhere. -dns is the name server to ask; -trust-dns believes what it
// says about DNSSEC, which is for one that validates, such as unbound, on the same host. -tls-reports sends reports. -source
// names addresses to send from in turn, not for routes; with -warm-up they begin with 50 copies a day each, and
// what is over waits until the next day.
//
// Exit codes: 0 after SIGINT or SIGTERM, 1 when it cannot start or go on, 2 for bad flags. A second signal ends it at
// once, which loses nothing that was accepted. A part that fails ends the server, in order, for whatever
// watches it to start it again.
//
// # Its directory
//
//	cert.pem key.pem   the self-signed certificate, for the host name, localhost, 127.0.0.1 and ::1, for 825 days
//	dkim.pem           the DKIM key (selector "mailspine")
//	dns.txt            what to publish, as lines of a zone file: MX, SPF, DKIM, DMARC, TLS reports, DANE
//	feedback.key       the secrets of the tokens, one a line, the newest first
//	queue mail suppressed scopes egress mtasts tlsrpt   the stores of the packages, each with its own page
//
// All of it is made with mode 0700 and 0600, once, and never replaced but for dns.txt. One server can use a directory at
// a time. Its loss is the loss of the mail; back it up while the server is stopped.
//
// For mail to be believed elsewhere, publish dns.txt and the address of the host; examples/mailtool lists what
// is good to have besides, and checks it. For the Internet listen on ports 25, 465, 587, 993 and 995 with a
// certificate that others trust:
//
//	./mailserver -dir /var/lib/mailserver -domain example.org -hostname mail.example.org -user ann:@ann.password \
//		-smtp :25 -submissions :465 -submission :587 -imaps :993 -imap "" -pop3s :995 -pop3 "" \
//		-cert fullchain.pem -key privkey.pem -dns 127.0.0.1 -trust-dns -tls-reports
//
// # Not there
//
// Several domains, aliases, users in a file or database, changing anything without a restart (certificates too), SCRAM,
// spam filters, limits per user, Sieve, a way to take an address off the list of the suppressed,
// AUTH at the relay, an MTA-STS policy of its own (its file needs a web server: mailtool setup prints it), and all that its packages list.
package main
