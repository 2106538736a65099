package main

import (
	"context"
	"fmt"
	"os"
)

// The records of a domain that serves IMAP but not POP3.
func Example() {
	code := run(context.Background(), []string{"setup", "-ip", "192.0.2.25", "-pop3s", "off", "-mta-sts", "off", "example.org"}, os.Stdout, os.Stderr)
	fmt.Println("\n; exit code", code)
	// Output:
	// ; Mail records of example.org. Lines that begin with a semicolon are comments.
	//
	// ; where mail for the domain goes (RFC 5321 section 5.1)
	// example.org.	IN	MX	10 mail.example.org.
	//
	// ; the mail server's address
	// mail.example.org.	IN	A	192.0.2.25
	//
	// ; the name of the sending address, which whoever runs the network publishes
	// ; (This name is not in the zone of example.org.)
	// 25.2.0.192.in-addr.arpa.	IN	PTR	mail.example.org.
	//
	// ; SPF: which addresses send mail of the domain (RFC 7208)
	// example.org.	IN	TXT	"v=spf1 ip4:192.0.2.25 -all"
	//
	// ; SPF for the server's own name, for bounces, which have no sender (RFC 7208 section 2.4)
	// mail.example.org.	IN	TXT	"v=spf1 a -all"
	//
	// ; DKIM: the public key of the domain's signatures (RFC 6376)
	// ; mail._domainkey.example.org.: give the key with -dkim-key FILE, or make one with -dkim-new FILE.
	//
	// ; DMARC: what receivers do with forged mail, and to whom they report (RFC 9989)
	// _dmarc.example.org.	IN	TXT	"v=DMARC1; p=none; rua=mailto:postmaster@example.org"
	// ; p=none only observes. When the reports show that all of the domain's mail passes, go on to quarantine and reject.
	//
	// ; who is told of failing TLS connections (RFC 8460)
	// _smtp._tls.example.org.	IN	TXT	"v=TLSRPTv1; rua=mailto:postmaster@example.org"
	//
	// ; submission with TLS from the start, for mail programs to find (RFC 6186, RFC 8314)
	// _submissions._tcp.example.org.	IN	SRV	0 1 465 mail.example.org.
	//
	// ; submission with STARTTLS, for mail programs to find (RFC 6186, RFC 8314)
	// _submission._tcp.example.org.	IN	SRV	10 1 587 mail.example.org.
	//
	// ; IMAP with TLS from the start, for mail programs to find (RFC 6186, RFC 8314)
	// _imaps._tcp.example.org.	IN	SRV	0 1 993 mail.example.org.
	//
	// ; IMAP with STARTTLS: not offered (RFC 6186 section 3.4)
	// _imap._tcp.example.org.	IN	SRV	0 0 0 .
	//
	// ; POP3 with TLS from the start: not offered (RFC 6186 section 3.4)
	// _pop3s._tcp.example.org.	IN	SRV	0 0 0 .
	//
	// ; POP3 with STLS: not offered (RFC 6186 section 3.4)
	// _pop3._tcp.example.org.	IN	SRV	0 0 0 .
	//
	// ; exit code 0
}
