package tlsrpt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"

	"github.com/mailspine/mailspine"
)

// ResultOf says what an error of a TLS handshake, or of the verification of a certificate, is in a report: nil is Success, and
// what is not known is ValidationFailure. Errors of other kinds (the server offers no STARTTLS; DANE; MTA-STS) are for the caller to tell
// apart before. A network that failed is no result at all (RFC 8460 section 4.3.4): see Transient.
func ResultOf(err error) ResultType {
	if err == nil {
		return Success
	}
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var critical x509.UnhandledCriticalExtension
	var constraint x509.ConstraintViolationError
	var algorithm x509.InsecureAlgorithmError
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &invalid):
		switch invalid.Reason {
		case x509.Expired: // also for a certificate that is not valid yet
			return CertificateExpired
		}
		// Name constraints, path lengths, key usage and so on: section 4.3.1 puts them all here.
		return CertificateNotTrusted
	case errors.As(err, &host):
		return CertificateHostMismatch
	case errors.As(err, &unknown), errors.As(err, &critical), errors.As(err, &constraint), errors.As(err, &algorithm), errors.As(err, &verify):
		return CertificateNotTrusted
	}
	return ValidationFailure
}

// Transient reports whether an error says nothing about TLS: a time-out, a context that ended, or a connection that could not
// be made. Such failures need not be reported (RFC 8460 section 4.3.4). A server that drops the connection in
// the middle of a handshake is not among them: it may be its way to refuse one.
func Transient(err error) bool {
	var ne net.Error
	var op *net.OpError
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.As(err, &ne) && ne.Timeout() ||
		errors.As(err, &op) && op.Op == "dial"
}

// ReasonOf returns the text of an error for Session.Reason, which goes to strangers: on one line, at most 255 octets, and without what is
// nobody's business and different each time: our address and port, and that of our resolver.
func ReasonOf(err error) string {
	if err == nil {
		return ""
	}
	var verify *tls.CertificateVerificationError
	if errors.As(err, &verify) && verify.Err != nil {
		err = verify.Err
	}
	s := err.Error()
	replace := func(part error, with string) {
		if old := part.Error(); old != "" {
			s = strings.Replace(s, old, with, 1)
		}
	}
	// From the outside in: what is replaced first has the other in it, as it was or as it is in with.
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		replace(op, op.Op+": "+op.Err.Error())
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.Server != "" {
		short := *dns
		short.Server = ""
		replace(dns, short.Error())
	}
	var ours *mailspine.DNSError
	if errors.As(err, &ours) && ours.Server != "" {
		short := *ours
		short.Server = ""
		replace(ours, short.Error())
	}
	return printable(strings.TrimPrefix(s, "tls: failed to verify certificate: "), maxReason)
}
