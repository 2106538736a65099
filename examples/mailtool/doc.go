// Mailtool shows what the parts of Mailspine know, from the command line.
//
// # Setup
//
// A domain that sends and receives mail needs a dozen DNS records, and a poor set
// of them ruins its reputation. This prints them, as lines for a zone file, each
// with what it is for:
//
//	go run ./examples/mailtool setup -ip 192.0.2.25 -dkim-new dkim.pem example.org
//
// -dkim-new makes the key; from then on it is -dkim-key dkim.pem. With -check the tool
// asks the DNS whether they are published, and says of each one what is wrong and what that
// means for mail; the addresses are tried against the SPF record as a receiver would:
//
//	go run ./examples/mailtool setup -check -ip 192.0.2.25 -dkim-key dkim.pem example.org
//
// -dns ADDR asks a name server of your choice, and -zone FILE looks into a zone file instead, before
// it is published. Both mean -check. -json prints an array with an object for each record:
// name, type, values, purpose, optional; and after a check status (ok, missing, differs, error),
// found and problem.
//
// The exit code is 0 when all is well, 1 when a record that is not optional is missing or differs or could
// not be looked up, and 2 for wrong usage. What is only good to have, such as the SRV records that let mail programs set
// themselves up, is optional unless its flag is given.
//
// DNS records are all that is looked at: the policy file of MTA-STS, the image of BIMI and the
// servers themselves are not fetched.
package main
