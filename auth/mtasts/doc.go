// Package mtasts is SMTP MTA Strict Transport Security, RFC 8461: a domain says which hosts take its mail, and that they do
// so over TLS with a valid certificate, in a file on a web server whose own certificate vouches for it.
//
// # Sending
//
// A [Cache] answers, for the domain of a recipient, which [Policy] is to be obeyed now:
//
//	store, err := mtasts.OpenFile("/var/lib/example/mta-sts", nil)
//	...
//	cache := &mtasts.Cache{Fetcher: &mtasts.Fetcher{Resolver: resolver}, Store: store}
//	go cache.Run(ctx) // refreshes once a day
//
//	p, problem := cache.Policy(ctx, "example.org")
//	switch p.Mode {
//	case mtasts.ModeEnforce: // only to hosts for which p.Matches(host), over TLS with a valid certificate; else defer
//	case mtasts.ModeTesting: // the same is tried and failures are reported, but mail is delivered
//	}
//	// problem is for the TLS report and the log.
//
// The first mail to a domain trusts the network: whoever can suppress the TXT record or the web server then makes the domain
// look as if it had no policy, and by RFC 8461 mail goes on without. From then on the policy that is kept protects
// until its max_age, and so it is kept over a restart, refreshed daily, and survives all that can be done to DNS and the web
// server meanwhile. That is also why no failure here is a reason to defer mail.
//
// What a stranger's domain can cost is bounded: one fetch of it at a time, few within five minutes, a minute and 64 KiB for
// each, a number of fetches for all domains, room in memory and in the Store. A policy host is reached through the guard that refuses
// addresses that are not public.
//
// # Receiving
//
// [Handler] serves the policies of one's own domains, [Record] is the TXT record for one, and [Check] looks at all of it as a sender does.
//
// # What is not here
//
// Revocation of the policy host's certificate is not checked. Whether a host's certificate is valid, and what becomes of the mail, is up
// to the relay that obeys the policy; the TLS reports of RFC 8460 are in auth/tlsrpt.
package mtasts
