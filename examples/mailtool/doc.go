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
// DNS records are all that is looked at: the policy file of MTA-STS, the image of BIMI and the
// servers themselves are not fetched.
package main
