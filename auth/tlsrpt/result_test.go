package tlsrpt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

// What handshakes with real certificates end with.
func TestResultOfHandshakes(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	hour := time.Now().Add(time.Hour)
	for _, c := range []struct {
		name   string
		server *tls.Config
		want   ResultType
		reason string
	}{
		{"fine", &tls.Config{Certificates: []tls.Certificate{ca.issue(t, hour, "mx.example.org")}}, Success, ""},
		{"expired", &tls.Config{Certificates: []tls.Certificate{ca.issue(t, time.Now().Add(-time.Minute), "mx.example.org")}}, CertificateExpired, "x509: certificate has expired or is not yet valid"},
		{"another name", &tls.Config{Certificates: []tls.Certificate{ca.issue(t, hour, "mx.example.com")}}, CertificateHostMismatch, "x509: certificate is valid for mx.example.com, not mx.example.org"},
		{"another CA", &tls.Config{Certificates: []tls.Certificate{other.issue(t, hour, "mx.example.org")}}, CertificateNotTrusted, "x509: certificate signed by unknown authority"},
		{"too old", &tls.Config{Certificates: []tls.Certificate{ca.issue(t, hour, "mx.example.org")}, MaxVersion: tls.VersionTLS11}, ValidationFailure, "tls: "},
	} {
		a, b := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			tls.Server(b, c.server).Handshake()
			b.Close()
		}()
		err := tls.Client(a, &tls.Config{RootCAs: ca.pool, ServerName: "mx.example.org"}).Handshake()
		a.Close()
		<-done
		if got := ResultOf(err); got != c.want || Transient(err) {
			t.Errorf("%s: %v is %q", c.name, err, got)
		}
		if got := ReasonOf(err); !strings.Contains(got, c.reason) || (got == "") != (c.want == Success) || strings.Contains(got, "failed to verify") {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

func TestResultOf(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("mx.example.org: %w", err) }
	for _, c := range []struct {
		err       error
		want      ResultType
		transient bool
	}{
		{nil, Success, false},
		{errors.New("what"), ValidationFailure, false},
		{wrap(x509.CertificateInvalidError{Reason: x509.Expired}), CertificateExpired, false},
		{wrap(x509.CertificateInvalidError{Reason: x509.NameConstraintsWithoutSANs}), CertificateNotTrusted, false},
		{wrap(x509.CertificateInvalidError{Reason: x509.CANotAuthorizedForThisName}), CertificateNotTrusted, false},
		{wrap(x509.UnknownAuthorityError{}), CertificateNotTrusted, false},
		{wrap(x509.UnhandledCriticalExtension{}), CertificateNotTrusted, false},
		{wrap(x509.ConstraintViolationError{}), CertificateNotTrusted, false},
		{wrap(x509.InsecureAlgorithmError(x509.MD5WithRSA)), CertificateNotTrusted, false},
		{wrap(&tls.CertificateVerificationError{Err: errors.New("pinned")}), CertificateNotTrusted, false},
		{wrap(&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}, Host: "a"}}), CertificateHostMismatch, false},
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, ValidationFailure, false},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: handshake failure")}, ValidationFailure, false},
		{io.EOF, ValidationFailure, false},
		{wrap(os.ErrDeadlineExceeded), ValidationFailure, true},
		{wrap(context.DeadlineExceeded), ValidationFailure, true},
		{wrap(context.Canceled), ValidationFailure, true},
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, ValidationFailure, true},
	} {
		if got := ResultOf(c.err); got != c.want || Transient(c.err) != c.transient {
			t.Errorf("%v is %q, transient: %v", c.err, got, Transient(c.err))
		}
	}
	// Our addresses and ports are nobody's business, and would make each failure one of its own.
	from, to := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 40001}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 25), Port: 25}
	reset := &net.OpError{Op: "read", Net: "tcp", Source: from, Addr: to, Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	for _, c := range []struct {
		err  error
		want string
	}{
		{reset, "read: read: connection reset by peer"},
		{fmt.Errorf("handshake: %w", reset), "handshake: read: read: connection reset by peer"},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: handshake failure")}, "remote error: tls: handshake failure"},
		{&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "a.example", Server: "10.0.0.53:53"}}, "dial: lookup a.example: no such host"},
		{&mailspine.DNSError{Name: "a.example", Type: mailspine.TypeTLSA, Kind: mailspine.ErrDNSBogus, Server: "10.0.0.53:53"}, "lookup \"a.example\" TLSA: answer failed DNSSEC checking"},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, "x509: certificate signed by unknown authority"},
	} {
		if got := ReasonOf(c.err); got != c.want {
			t.Errorf("%q is told as %q", c.err, got)
		}
	}
	if got := ReasonOf(errors.New("a\r\nb" + strings.Repeat("ü", 300))); len(got) > 255 || !strings.HasPrefix(got, "a  b") {
		t.Errorf("%q", got)
	}
}

func TestSummary(t *testing.T) {
	var s Summary
	if s.String() != "0 reports: 0 sessions successful, 0 failed" || len(s.Results()) != 0 {
		t.Errorf("%s", &s)
	}
	s.Add(sample())
	s.Add(&Report{Policies: []PolicyResult{{Policy: Policy{Type: "odd"}, Failed: 1<<63 - 1, Failures: []Failure{{Result: "CERTIFICATE-expired", Sessions: 1<<63 - 1}, {}}}}})
	for i := range 200 {
		s.Add(&Report{Policies: []PolicyResult{{Failures: []Failure{{Result: ResultType(fmt.Sprint(i)), Sessions: 1}}}}})
	}
	if s.Failed != 1<<63-1 || s.ByResult[CertificateExpired] != 1<<63-1 || len(s.ByResult) > maxResults+1 || s.ByResult[OtherResult] < 150 || s.Reports != 202 {
		t.Errorf("%+v", s)
	}
	if s.ByPolicy[PolicySTS] != 5629 || s.ByPolicy[PolicyTLSA] != 7 || s.ByPolicy["other"] != 1<<63-1 {
		t.Errorf("%v", s.ByPolicy)
	}
	if r := s.Results(); r[0].Result != CertificateExpired || r[1].Result != StartTLSNotSupported && r[1].Result != OtherResult {
		t.Errorf("%v", r)
	}
}
