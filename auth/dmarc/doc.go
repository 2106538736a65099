// Package dmarc decides whether the domain in From, which readers see, is
// vouched for, and what its owner wants done if it is not: RFC 9989, which
// replaces RFC 7489.
//
// [Author] takes the author domain out of a header block. A [Verifier]
// discovers the policy by the DNS tree walk, and evaluates the alignment of
// what SPF and DKIM found. Both halves are bounded: a walk asks at most eight names
// however long a domain is, and an identifier that cannot be aligned costs no query at all.
//
// A failing name server never looks like a domain without a policy: where an
// answer is missing that would matter, the result is temperror. A From field
// that two readers could understand in two ways has no author (permerror), and
// the disposition is reject, because the domain that is to be protected cannot be told.
//
// The public suffix list of RFC 7489 is not used, and pct= is ignored (RFC 9989
// appendix A.6). Reports are not made here.
package dmarc
