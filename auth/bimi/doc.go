// Package bimi finds out which indicator, a logo, a domain wants to see beside its mail: Brand
// Indicators for Message Identification, the Internet-Draft of the
// AuthIndicators group (draft-brand-indicators-for-message-identification).
//
// A [Verifier] looks the assertion record up, and only for a message that has earned it: DMARC
// passes, and the policies of the author domain and of its organisational domain are
// enforced (quarantine of all mail, or reject; also for subdomains; not under test). The [Result] says in a
// word what came out and names the indicator's address. [ParseRecord] and [ParseSelector]
// read the record and the BIMI-Selector field as strictly as the draft demands:
// nothing is repaired.
//
// Nothing is fetched. The indicator is not looked at, and neither is the evidence document
// (a mark certificate) that may vouch for it, so that policy.authority is always none. What the
// result names is a domain owner's wish: anybody can publish a record that points to another's logo. Whoever shows
// indicators has to decide which domains to believe.
//
// What one message can cause is bounded: six names are asked at most, two of which
// DMARC has asked before. A name server that fails never looks like a domain without a record.
package bimi
