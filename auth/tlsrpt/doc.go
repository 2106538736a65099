// Package tlsrpt is SMTP TLS reporting, RFC 8460, both sides of it: what a sender saw of the TLS of the domains it sends mail to
// is counted, and reported to those that want to know once a day; and the reports that others make about our own domains
// are taken in.
//
// # Counting
//
// A [Collector] is a [Recorder] of sessions. Whoever makes them (see mta.Relay) tells it the outcome of each: the recipient domain, the policy
// that held, and how it ended, for which [ResultOf] and [ReasonOf] translate the errors of crypto/tls:
//
//	store, err := tlsrpt.OpenFile("/var/lib/mail/tlsrpt", nil)
//	...
//	sessions := &tlsrpt.Collector{Store: store}
//	err = sessions.Record(ctx, tlsrpt.Session{
//		Domain: "example.org", ReceivingMX: "mx.example.org",
//		Policy: tlsrpt.Policy{Type: tlsrpt.PolicySTS, Domain: "example.org", Strings: lines},
//		Result: tlsrpt.ResultOf(tlsErr), Reason: tlsrpt.ReasonOf(tlsErr),
//	})
//
// Counts are by UTC day, domain and policy; sessions that failed also by their details. All is bounded: policies and details over the
// bounds are counted together, with a reason that says so, and domains over the bound only in [Stats]. What is
// counted is saved every ten seconds, and a crash costs what came since.
//
// # Reporting
//
// A [Reporter] looks up, for each domain that was counted, whether it wants reports (_smtp._tls TXT, [LookupRecord]), and sends them, by mail or
// by HTTPS:
//
//	reporter := &tlsrpt.Reporter{
//		Collector: sessions, Resolver: resolver,
//		Organization: "Example Ltd", From: mailspine.Address{Local: "tls-reports", Domain: "example.com"},
//		Mail: &auth.Signer{Next: q, Keys: keys, Required: true},
//	}
//	go reporter.Run(ctx) // until ctx is done; wait for it, then close the store
//
// A report goes out some hours after the end of its day, at a time that depends on the domain. What fails is tried again for 24 hours. How far each has
// come is in the store, so that a restart goes on where it stopped. Mails need the DKIM signature of the submitter, or they
// are ignored; they carry "TLS-Required: No", and their envelopes are known by [IsReport], so that a sender can leave their own sessions out.
//
// Targets are chosen by strangers, so connections go through the guard of internal/dial: only public addresses, HTTPS with a
// valid certificate, no redirects.
//
// # Receiving
//
// An [Intake] takes reports that come by mail, to be put behind an mta.Receiver or in an mta.Mux for the address that the record names. It believes those that the
// domain of their sender has signed. A [Handler] takes those that are posted to a https destination. Both hand a [Received] to a function of
// the application, which adds it up ([Summary]) or keeps it.
//
// [ParseReport] reads what providers really send, JSON or gzip, and is bounded in size and number. All of a report is text of a stranger.
package tlsrpt
