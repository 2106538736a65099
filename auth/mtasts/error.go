package mtasts

import (
	"crypto/tls"
	"errors"
)

// A Kind is what kept a policy from being found.
type Kind string

// The kinds.
const (
	KindDNS    Kind = "dns"    // whether there is a record is not known: the lookup failed
	KindRecord Kind = "record" // the TXT record is invalid, or there are several, or it vanished while a policy is kept
	KindFetch  Kind = "fetch"  // the policy host was not reached, or did not answer 200
	KindWebPKI Kind = "webpki" // the policy host's certificate is not valid for it
	KindPolicy Kind = "policy" // what the policy host has is no valid policy
)

// ResultType returns the name that TLS reports have for the kind (RFC 8460 section 4.3.2). There is none for DNS, for which the
// nearest is taken: a policy that could not be fetched.
func (k Kind) ResultType() string {
	switch k {
	case KindWebPKI:
		return "sts-webpki-invalid"
	case KindPolicy, KindRecord:
		return "sts-policy-invalid"
	}
	return "sts-policy-fetch-error"
}

// An Error is what kept the policy of a domain from being found. It is for logs and reports, and never a reason to defer
// mail or to bounce it.
type Error struct {
	Kind   Kind
	Domain string
	Err    error // more detail; it may quote what the domain publishes
}

// Error names the domain, the kind and the detail.
func (e *Error) Error() string {
	s := "mtasts: " + e.Domain + ": " + string(e.Kind)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the detail.
func (e *Error) Unwrap() error { return e.Err }

// fetchKind tells a certificate that does not hold from all else that can go wrong on the way to a policy host.
func fetchKind(err error) Kind {
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return KindWebPKI
	}
	return KindFetch
}
