// Mailtool shows what the parts of Mailspine know, from the command line.
//
// # Setup
//
// A domain that sends and receives mail needs a dozen DNS records, and a poor set
// of them ruins its reputation. This prints them, as lines for a zone file, each
// with what it is for:
//
//	$ go run ./examples/mailtool setup -ip 192.0.2.25 -dkim-new dkim.pem example.org
//	; Mail records of example.org. Lines that begin with a semicolon are comments.
//
//	; where mail for the domain goes (RFC 5321 section 5.1)
//	example.org.	IN	MX	10 mail.example.org.
//	...
//	; DMARC: what receivers do with forged mail, and to whom they report (RFC 9989)
//	_dmarc.example.org.	IN	TXT	"v=DMARC1; p=none; rua=mailto:postmaster@example.org"
//	; p=none only observes. When the reports show that all of the domain's mail passes, go on to quarantine and reject.
//	...
//
// -dkim-new makes the key; from then on it is -dkim-key dkim.pem, or -dkim-key SELECTOR=FILE for each of
// several. The DMARC policy is none unless -dmarc-policy says otherwise, since a domain that also sends from
// elsewhere would lose that mail; for one that sends only through this server reject is right. setup -h lists
// all flags and what they are by default.
//
// With -check the tool asks the DNS whether the records are published, and says of each one what is
// wrong and what that means for mail. Records are not compared as text: the
// addresses are tried against the SPF record as a receiver would, the DMARC record may be stricter or inherited, the
// preferences of MX records may be other numbers in the same order.
//
//	$ go run ./examples/mailtool setup -check -ip 192.0.2.25 -dkim-key dkim.pem example.org
//	ok         MX    example.org
//	ok         A     mail.example.org
//	differs    PTR   25.2.0.192.in-addr.arpa
//	           want   mail.example.org.
//	           found  host25.provider.example.
//	           the address has another name than mail.example.org: receivers compare it with what the server calls itself
//	differs    TXT   example.org
//	           want   v=spf1 ip4:192.0.2.25 -all
//	           found  v=spf1 ip4:192.0.2.52 -all
//	           mail from 192.0.2.25 gets the result fail
//	ok         TXT   mail.example.org
//	...
//	(missing)  TXT   _smtp._tls.example.org
//	           want   v=TLSRPTv1; rua=mailto:postmaster@example.org
//	           failing TLS stays unnoticed
//	...
//	12 ok, 2 missing, 2 different, 0 could not be looked up; in parentheses: optional
//
// -dns ADDR asks a name server of your choice, and -zone FILE looks into a zone file instead, before
// it is published. Both mean -check. Of names outside of its zone, such as those of addresses, a file need not tell;
// they are optional then.
//
// -json prints an array with an object for each record: name, type, values (empty: the flags do not tell), purpose,
// optional; and after a check status (ok, missing, differs, error), found and problem, the last two where there is something to say.
//
// The exit code is 0 when all is well, 1 when a record that is not optional is missing or differs or could
// not be looked up, and 2 for wrong usage. What is only good to have, such as the SRV records that let mail programs set
// themselves up, is optional unless its flag is given.
//
// With -tls-cert FILE the certificate of the mail server gets a TLSA record for DANE, for each MX host, or with -tls-cert HOST=FILE
// for one; with -tls-next-cert that of the next certificate is beside it, which has to be published before the server has it:
//
//	$ go run ./examples/mailtool setup -tls-cert fullchain.pem -tls-next-cert next.pem example.org
//	...
//	; DANE: the key of the mail server's certificate, for a zone that is signed (RFC 7672)
//	_25._tcp.mail.example.org.	IN	TLSA	3 1 1 8cef065b7af83669150b7d32704d3d3e75c3e9aee0d4f6740544c68e81b377aa
//	_25._tcp.mail.example.org.	IN	TLSA	3 1 1 d016df3d83373617c06b5e1d6359caa06eeba8b3af2c7077234f109f2194516c
//	...
//
// A check looks at these records as if the zone were signed, unless -trust says that the server of -dns is believed about that too.
//
// DNS records are all that a check looks at, unless -fetch is given: it fetches the policy file of MTA-STS as senders do (-ca, -allow,
// -https-port), connects to the MX hosts (-port), and holds their certificates against the policy, the TLSA records and
// the files of -tls-cert. The image of BIMI is not fetched.
//
//	differs    HTTPS mta-sts.example.org
//	           found  ok: record: the id is 28e818ad7f955baccc45
//	           found  ok: policy: the mode is enforce
//	           found  ok: max_age: the policy is kept for 168h0m0s
//	           found  failure: mx mail.example.org: the policy does not list it
//	           mx mail.example.org: the policy does not list it
//
// # Route
//
// Where mail for a domain would go, in which order, how, and why not elsewhere:
//
//	$ go run ./examples/mailtool route example.org
//	example.org: found by mx, site example.org~0e71b9c2485312bd
//	     10 mx1.example.org
//	        TLS opportunistic (no DANE: the mail exchangers are not secured by DNSSEC)
//	        1.    198.51.100.25:25
//	        2.    [2001:db8:25::25]:25
//	     20 mx2.example.org
//	        TLS opportunistic (no DANE: the mail exchangers are not secured by DNSSEC)
//	        3.    203.0.113.25:25
//	        never 10.1.2.3:25
//	              10.1.2.3 is not allowed: 10.0.0.0/8, private use (RFC 1918)
//	  site: 5 deliveries at a time; now 0, and 0 waiting, over 0 connections
//	  at most 6 addresses are tried in one delivery
//
// It is what a fresh mta.Relay would do (Relay.Explain): no mail server is connected to, and nothing is known of what a running one
// remembers. Hosts of the same preference are tried in random order. Domains with the same site share connections, limits and, in one message, transactions.
//
// -dns ADDR asks a name server of your choice, and -trust believes what that says about DNSSEC: without it there is no DANE. -zone
// FILE looks into a zone file. -mta-sts fetches the MTA-STS policies of the domains from their web servers. -hostname, -own, -port
// and -allow are Relay.Hostname, OwnAddrs, Port and AllowPrivate. -json prints an array of plans.
//
// The exit code is 0 when there is an address to try for each domain, 1 when there is none for one of them, and 2 for wrong usage.
//
// # Queue
//
// What a queue has, and why it is still there:
//
//	$ go run ./examples/mailtool queue list -spool /var/spool/mailspine -domain example.net
//	MESSAGE                                ITEM STATE       AGE    NEXT TRIES      SIZE ROUTE                TENANT     FROM -> TO
//	01KA5N3MBJ5ZXD1W6M0R7F0Q2A                1 waiting   1h30m   5m30s     4     10240 example.net          acme       <ann@example.org> -> <bob@example.net> +1
//	    mx.example.net: 450 4.2.0 Greylisted
//
//	1 item
//
// The commands are
//
//	list     the items, those with the oldest message first
//	show     a message: its envelope, what became of each recipient, its header; -body: all of it
//	hold     keep items from being delivered; -reason says why
//	release  make items that are held due now
//	flush    make items that wait due now
//	delete   remove items; nobody is told
//	bounce   give items up, and tell their senders: -status "5.7.1 Not wanted"
//	reroute  give items another route: -to ROUTE, or -anew for the one that the queue would choose now
//	stats    totals, and the routes and tenants with the most items; -top N
//	doctor   whether a spool is whole; -repair
//
// An item is a message for one route, with some of its recipients. -id, -item, -sender, -recipient, -domain, -tenant,
// -stream, -route, -state, -older and -younger select items, which have to fit all that are given; an ID without
// a flag is -id. Without any of them list shows everything, and a command that changes something wants -all. -n changes nothing and shows what
// would be changed. Items that are being delivered are left alone, and counted.
//
// -spool is the directory of a filequeue store. If there is a socket called control in it, or where -control says, and a queue
// answers (see package queue/control), that queue is asked: it may be as busy as it likes. Otherwise the spool itself is
// opened, which the store's lock only allows when no process has it, and only as the user whose it is; the report of a bounce waits
// there until the queue runs again.
//
// A list of up to 5,000 items is sorted; a longer one is printed as it comes. -json prints an object for each line of list,
// and one for each of the other commands; durations in it are in seconds. Addresses, replies and headers
// are what strangers wrote: in what is printed for people control characters are question marks, and in JSON they are
// escaped. show -raw writes a message as it is, to a file or a pipe.
//
// doctor compares each octet of a spool with its checksums, and says of each finding where it is, which message
// is concerned, and what -repair does about it; what is damaged is kept. It needs a queue that is not running.
//
// The exit code is 0 when all is well, 1 when something failed, a message that was named is not there, the queue is not healthy
// (stats) or the spool is not whole (doctor, also after a repair), and 2 for wrong usage.
package main
