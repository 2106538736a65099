// Package dnstest is a DNS to test against: a map of names that answers
// questions in memory, and over UDP and TCP on loopback with all that can go
// wrong there.
//
// A [Zone] is written as a literal, and is itself a mailspine.Resolver:
//
//	zone := dnstest.Zone{
//		"example.org":                 {dnstest.MX(10, "mx.example.org"), dnstest.TXT("v=spf1 mx -all")},
//		"mx.example.org":              {dnstest.A("192.0.2.25"), dnstest.AAAA("2001:db8::25")},
//		"sel._domainkey.example.org":  {dnstest.TXT("v=DKIM1; p=...")},
//		"*.users.example.org":         {dnstest.CNAME("example.org")},
//		"broken.example.org":          {dnstest.ServFail},
//	}
//
// What is not in the map does not exist: the answer is NXDOMAIN, with a SOA, and
// for a name that has other records or names below it, no data. CNAMEs are
// followed, wildcards expand by RFC 4592.
//
// A [Server] holds a zone that can change while it is used, keeps a log of
// what it was asked, and can [Server.Listen] on a port of the kernel's choice on
// 127.0.0.1. A [Fault] among the records of a name makes it fail in a way of
// choice: SERVFAIL, REFUSED, silence, truncation, garbage, a wrong ID.
//
// [Signed] among the records of a name makes answers for it and for all below
// authentic, as if a validating resolver had checked them, and [Unsigned] ends
// that; [Bogus] is a name whose signatures do not hold.
//
// The package does not import testing, so that examples can use it.
package dnstest
