// Package dns asks a resolving name server, and keeps the answers.
//
// A [Client] is a mailspine.Resolver that speaks DNS with EDNS over UDP and,
// for long answers, TCP. A [Cache] in front of it, or of any other Resolver,
// keeps answers for as long as they may be kept. [System] is the adapter for
// Go's own resolver, which knows less.
//
//	resolver := &dns.Cache{Resolver: &dns.Client{
//		Servers: []string{"127.0.0.1:53"},
//		Trusted: []string{"127.0.0.1:53"}, // a validating resolver on this host
//	}}
//	a, err := resolver.Lookup(ctx, "example.org", mailspine.TypeMX)
//	switch {
//	case err == nil:                                // a.MX has at least one
//	case errors.Is(err, mailspine.ErrNXDomain):     // there is no example.org
//	case errors.Is(err, mailspine.ErrNoData):       // there is, but it has no MX
//	case errors.Is(err, mailspine.ErrDNSBogus):     // somebody lies, or broke DNSSEC
//	default:                                        // mailspine.ErrDNSTemporary: ask later
//	}
//
// # Trust
//
// Nothing here validates DNSSEC. A resolver does, and says so with one bit, AD,
// that anyone on the path can set. So a Client believes it only of the servers
// that the application lists in Trusted: servers that validate, on this host or over a
// path that nobody else can write to (RFC 6698 section A.3, RFC 7672 section
// 2.2). Without such a list, no answer is ever Authentic, and DANE has no
// effect.
//
// # Forgery
//
// Each question has a random ID and goes out of a socket of its own, so from a
// random port. A datagram counts as the reply if it comes from the server's
// address and port with the same ID and question (RFC 5452 section 9.1); others
// are passed over, and when there are many of them, the question is asked again
// over TCP. Of a reply, only the records that belong to the name asked for and
// its CNAMEs are used.
//
// Left out: validation, DNS over TLS or HTTPS, cookies (RFC 7873), iteration
// from the root (the servers must resolve), search lists, serving expired answers.
package dns
