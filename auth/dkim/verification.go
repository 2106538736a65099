package dkim

import "time"

// A Status is a result of RFC 8601 section 2.7.1.
type Status string

// The results of a signature.
const (
	None      Status = "none"      // there is no signature
	Pass      Status = "pass"      // the signature is valid and acceptable
	Fail      Status = "fail"      // header or body are not what was signed
	Policy    Status = "policy"    // not acceptable here: weak, expired, l=, too many
	TempError Status = "temperror" // the key could not be fetched now
	PermError Status = "permerror" // the signature or its key cannot be used
)

// A Verification is what came out for one signature. Its strings are what the
// signature says, as far as it could be read; Problem is for people.
type Verification struct {
	Status   Status
	Domain   string // d=, in lower case; U-labels stay as they are
	Selector string // s=
	Identity string // i=, or "@" and the domain
	// Algorithm is a=, "rsa-sha256" or "ed25519-sha256" if the signature passes.
	Algorithm string
	// KeyBits is the size of the key that was found; 0: none was.
	KeyBits int
	// Service is the service type as which the key was taken: ServiceEmail, or another one of Verifier.Services if it is not
	// for e-mail; "": no key was found.
	Service string
	// HeaderCanonicalization and BodyCanonicalization are "simple" or "relaxed".
	HeaderCanonicalization, BodyCanonicalization string
	Headers                                      []string  // h=, in its order
	Signed                                       time.Time // t=; zero: not given
	Expires                                      time.Time // x=; zero: never
	// Length is l=, how many octets of the body are signed; -1: all.
	Length int64
	// Signature is the beginning of b=, 12 characters without white space, to tell signatures
	// apart (RFC 6008).
	Signature string
	// Testing is the key's flag t=y: the domain asks that a failure be taken as no signature.
	Testing bool
	// Authentic is set when the key came with DNSSEC, from a trusted resolver.
	Authentic bool
	Problem   string // why it does not pass; "" if it does
}
