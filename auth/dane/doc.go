// Package dane finds out what the DNS says about the certificates of a mail server, and holds a
// certificate against it: DNS-based authentication of named entities for SMTP (RFC 7672, on top of RFC
// 7671 and RFC 6698).
//
// A sender asks [Lookup] for each mail exchanger of an MX answer that was authentic, and gives what
// the server shows in the handshake to [Verify]:
//
//	recs, err := dane.Lookup(ctx, resolver, "mx.example.org", 25)
//	switch {
//	case err != nil:           // use another host, or defer: never fall back (RFC 7672 section 2.1.2)
//	case len(recs.All) == 0:   // no DANE here: another policy decides, or opportunistic TLS
//	case len(recs.Usable) == 0: // TLS is mandatory, with any certificate (section 2.2)
//	default:                   // TLS is mandatory, SNI is recs.Base, and Verify must pass
//		_, err = dane.Verify(recs.Usable, chain, append(recs.Names, nextHop), now)
//	}
//
// # Trust
//
// All of it rests on mailspine.Answer.Authentic, which a resolver sets for what was validated with
// DNSSEC. Of auth/dns, only a Client with a list of Trusted servers ever does. Without one nothing here has any effect: no host
// has records, and no mail is lost. List only trusted servers then: where the Client also has others, whoever silences the trusted
// one makes every answer insecure, and so turns DANE off.
//
// The MX answer is the caller's: RFC 7672 section 2.2.1 applies DANE only to hosts whose names could not be forged. A domain
// without MX records is its own host.
//
// # What counts
//
// Certificate usages 2 (DANE-TA) and 3 (DANE-EE) count, with selectors 0 and 1 and matching types 0, 1 and
// 2. Usages 0 and 1 are unusable, since there are no authorities on which all mail servers agree (section 3.1.3). With usage 3
// the name and the dates of the certificate are ignored (section 3.1.1): the record itself
// says whose it is and how long it holds. With usage 2 the chain, the dates and the name are verified (section 3.1.2).
// Of records with the same usage and selector, only those with the strongest digest count, besides those with the data in full (RFC 7671 section 9).
//
// # The receiving side
//
// [Record] and [Format] make the line for a zone file, and [Check] looks at one's own hosts as the
// world sees them: whether there are records, authentic and usable, whether they match what the server shows, and whether the
// next key is published before it is used. The advice is one record "3 1 1" for the key in use and one for the next.
//
// Left out: raw public keys (RFC 7250), DANE for clients, anything but TCP.
package dane
