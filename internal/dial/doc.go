// Package dial makes connections to targets that a stranger chose: the host of
// an MX record, of an MTA-STS policy, of a report URI, of a webhook.
//
// Whoever publishes such a name can point it at 127.0.0.1, at a database in the
// private network or at the metadata service of a cloud, and have us speak to
// it. A [Guard] refuses that. It checks the address that is about to be connected
// to, inside the dial itself, so a name that resolves differently the second
// time (DNS rebinding) gains nothing.
//
//	var g dial.Guard // the zero value refuses everything that is not public
//	conn, err := g.DialContext(ctx, "tcp", "192.168.0.1:25")
//	errors.Is(err, dial.ErrForbidden) // true
//
// [Guard.HTTPClient] is an http.Client that fetches from such hosts: https only, bounded, without
// redirects unless asked for, proxies, cookies and decompression.
//
// Tests and demonstrations that live on loopback say so:
//
//	g := &dial.Guard{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
package dial
