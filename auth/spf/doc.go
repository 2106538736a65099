// Package spf evaluates the Sender Policy Framework, RFC 7208: may this host
// send mail that names this domain in MAIL FROM or HELO?
//
// A [Verifier] answers with a [Result], which is always complete: broken records
// and failing name servers are results too (permerror, temperror), with the
// reason in Problem. The result says which mechanism matched, carries the
// domain owner's explanation of a fail, and writes its own Received-SPF field.
//
// Everything that a stranger's records can make it do is bounded: ten terms that
// need DNS, counted over all included and redirected records when they are
// entered; two lookups that find nothing; ten MX hosts and ten PTR names; the
// length of what macros expand to; and the time of the whole evaluation.
package spf
