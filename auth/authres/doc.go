// Package authres reads and writes Authentication-Results, the header field of
// RFC 8601 by which a receiver tells those behind it what it found out.
//
// Writing is the dangerous half: values come from strangers (domains,
// addresses, reasons), and a value that could close its quotes would let a
// stranger add a "dmarc=pass" of its own. [Header.Field] quotes by the grammar and
// drops what cannot be written at all.
//
// Reading matters for trust: only fields with the reader's own authserv-id mean
// anything, and a border server removes those that came from outside. [ID] finds
// the id of a field even where the rest of it is broken, and [SameID] compares ids as
// lenient readers would: without regard to case, trailing dot and the form of international names.
package authres
