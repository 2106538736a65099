// Package dkim signs messages and verifies their signatures: DomainKeys
// Identified Mail, RFC 6376 with RFC 8301 (no SHA-1, keys of 1024 bits and
// more), RFC 8463 (Ed25519) and RFC 8616 (international names).
//
// Both directions are one pass over the message as a stream. A [Verifier] is
// written to while a message arrives: the header block is kept, up to a bound, the
// keys are fetched as soon as it is complete, and the body only flows through
// hashes, each canonical form once however many signatures share it. [Sign]
// makes several signatures in one pass, with keys that may live in hardware.
//
// A signature says only that a domain takes responsibility for what is signed.
// Whether that domain is the one that the reader sees is for package dmarc.
//
// The tag l=, which signs only the beginning of a body, is reported, and
// refused unless a Verifier allows it: whoever has such a message can add what
// he likes to it (RFC 6376 section 8.2).
//
// A key may be published for certain services only (s=). Without more a [Verifier]
// takes keys for e-mail; for reports about TLS (RFC 8460) it can be asked to take
// those that are for nothing else, and they sign nothing else then.
package dkim
