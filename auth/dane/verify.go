package dane

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
)

const (
	// maxChain bounds the certificates of a server that are looked at. Chains have two to four.
	maxChain = 16
	// maxAnchors bounds the authorities that are taken from the records themselves, since each costs parsing and signature checks.
	maxAnchors = 8
	// maxRSABits is what package crypto/tls takes in a chain; a larger key from a record would cost too much.
	maxRSABits = 8192
)

// A Reason says why a certificate was not accepted.
type Reason uint8

// The reasons.
const (
	// Unusable: none of the records can authenticate a server.
	Unusable Reason = iota + 1
	// NoCertificate: the server showed none.
	NoCertificate
	// NoMatch: no record matches what the server showed.
	NoMatch
	// Untrusted: a record with usage 2 names an authority, but it does not vouch for the certificate.
	Untrusted
	// Expired: it does, but a certificate of the chain is not valid now.
	Expired
	// WrongName: it does, but the certificate is for another host.
	WrongName
)

var reasons = [...]struct{ text, result string }{
	Unusable:      {"no record is usable", "tlsa-invalid"},
	NoCertificate: {"the server showed no certificate", "validation-failure"},
	NoMatch:       {"no record matches the certificate", "tlsa-invalid"},
	Untrusted:     {"the certificate does not lead to the authority of a record", "certificate-not-trusted"},
	Expired:       {"a certificate is not valid at this time", "certificate-expired"},
	WrongName:     {"the certificate is for another host", "certificate-host-mismatch"},
}

// String returns the reason as a sentence without a full stop.
func (r Reason) String() string {
	if r == 0 || int(r) >= len(reasons) {
		return fmt.Sprintf("Reason(%d)", uint8(r))
	}
	return reasons[r].text
}

// ResultType returns the type of the failure for a TLS report (RFC 8460 section 4.3).
func (r Reason) ResultType() string {
	if r == 0 || int(r) >= len(reasons) {
		return "validation-failure"
	}
	return reasons[r].result
}

// A VerifyError says why [Verify] did not accept a server.
type VerifyError struct {
	Reason Reason
	// Records is how many records counted: those that are usable, with the strongest digest.
	Records int
	// Names are those of which the certificate should have had one; for WrongName only.
	Names []string
	Err   error // the cause, from package crypto/x509; nil: none
}

// Error is a text for logs. It quotes what the certificate says, so it is no text for a peer.
func (e *VerifyError) Error() string {
	s := "dane: " + e.Reason.String()
	if e.Reason == NoMatch {
		s += fmt.Sprintf(" (%d looked at)", e.Records)
	}
	if len(e.Names) > 0 {
		s += fmt.Sprintf(", not for any of %q", e.Names)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *VerifyError) Unwrap() error { return e.Err }

// Verify holds what a server showed in its handshake against the records of the host, and returns the record that authenticates it.
// Records that are not usable are passed over, as are those with a digest weaker than another's (RFC 7671 section 9).
//
// With usage 3 the first certificate of the chain must match; its name, dates and uses are ignored (RFC 7672 section
// 3.1.1). With usage 2 the chain must lead from the first certificate to another one that matches, or that the record
// itself holds in full, as a certificate or as a public key (section 3.1.2). All below that one must be valid at the time
// now (zero: time.Now) for a TLS server, and the first one must be for one of names: see Records.Names. Names in a
// certificate may begin with a wildcard for one label; the common name counts if there is no DNS name beside it (section 3.2.3).
//
// The chain is as in tls.ConnectionState.PeerCertificates, which a resumed connection has as well. What comes after the
// 16th certificate is ignored, as are authorities in full beyond the eighth and records beyond the 1000th. So the work is
// bounded: at most four digests for each certificate, and some hundred signature checks.
//
// Errors are *VerifyError; delivery is then put off, or another host tried (section 2.2). Verify changes nothing that it
// is given.
func Verify(recs []mailspine.TLSA, chain []*x509.Certificate, names []string, now time.Time) (mailspine.TLSA, error) {
	if now.IsZero() {
		now = time.Now()
	}
	counting := strongest(usable(recs))
	fail := func(r Reason, err error) (mailspine.TLSA, error) {
		return mailspine.TLSA{}, &VerifyError{Reason: r, Records: len(counting), Err: err}
	}
	if len(counting) == 0 {
		return fail(Unusable, nil)
	}
	if len(chain) == 0 || chain[0] == nil {
		return fail(NoCertificate, nil)
	}
	shown := make([]certificate, 0, min(len(chain), maxChain))
	for i, c := range chain[:min(len(chain), maxChain)] {
		if c != nil && (i == 0 || affordable(c.PublicKey)) {
			shown = append(shown, certificate{Certificate: c})
		}
	}
	for _, r := range counting {
		if r.Usage == UsageEE && shown[0].matches(r) {
			return r, nil
		}
	}
	a := findAnchors(counting, shown, now)
	if len(a.records) == 0 {
		return fail(NoMatch, nil)
	}
	opts := x509.VerifyOptions{Roots: a.pool, Intermediates: x509.NewCertPool(), CurrentTime: now}
	for _, c := range shown[1:] {
		opts.Intermediates.AddCert(c.Certificate)
	}
	leaf := shown[0].Certificate
	// Package x509 ends with an error after a hundred signature checks.
	paths, err := leaf.Verify(opts)
	if err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return fail(Expired, err)
		}
		return fail(Untrusted, err)
	}
	for _, path := range paths {
		rec, ok := a.records[string(path[len(path)-1].Raw)]
		if ok && forOneOf(path, names) {
			return rec, nil
		}
	}
	return mailspine.TLSA{}, &VerifyError{Reason: WrongName, Records: len(counting), Names: names}
}

// A certificate remembers its digests, so that many records cost no more than one.
type certificate struct {
	*x509.Certificate
	data [2][3][]byte // by selector and matching type
}

// matches reports whether a usable record is about the certificate.
func (c *certificate) matches(r mailspine.TLSA) bool {
	d := &c.data[r.Selector][r.MatchingType]
	if *d == nil {
		*d = association(c.Certificate, r.Selector, r.MatchingType)
	}
	return *d != nil && bytes.Equal(*d, r.Data)
}

// anchors are the authorities that the records with usage 2 name.
type anchors struct {
	pool    *x509.CertPool
	records map[string]mailspine.TLSA // by the encoded certificate
}

func (a *anchors) add(c *x509.Certificate, r mailspine.TLSA) {
	if _, ok := a.records[string(c.Raw)]; !ok {
		a.pool.AddCert(c)
		a.records[string(c.Raw)] = r
	}
}

// trust adds a certificate that a record names. As a trust anchor it counts for its name and its key, whatever its dates (RFC
// 5280 section 6.1.1): how long it is trusted, the record says.
func (a *anchors) trust(c *x509.Certificate, r mailspine.TLSA, now time.Time) {
	timeless := *c
	timeless.NotBefore, timeless.NotAfter = now, now
	a.add(&timeless, r)
}

func findAnchors(recs []mailspine.TLSA, shown []certificate, now time.Time) anchors {
	a := anchors{pool: x509.NewCertPool(), records: map[string]mailspine.TLSA{}}
	leaf := shown[0].Certificate
	var full []mailspine.TLSA // what the server did not show
	for _, r := range recs {
		if r.Usage != UsageTA {
			continue
		}
		found := false
		for i := range shown {
			// No server vouches for itself, not even if it signed itself: that is what usage 3 is for.
			if shown[i].matches(r) && !shown[i].Equal(leaf) {
				a.trust(shown[i].Certificate, r, now)
				found = true
			}
		}
		if !found && r.MatchingType == MatchFull && len(full) < maxAnchors {
			full = append(full, r)
		}
	}
	// The server need not show what the record has in full (RFC 7671 section 5.2.2).
	for _, r := range full {
		if r.Selector == SelectorCert {
			if c, err := x509.ParseCertificate(r.Data); err == nil && affordable(c.PublicKey) && !c.Equal(leaf) {
				a.trust(c, r, now)
			}
			continue
		}
		key, err := x509.ParsePKIXPublicKey(r.Data)
		if err != nil || !affordable(key) || bytes.Equal(r.Data, leaf.RawSubjectPublicKeyInfo) {
			continue
		}
		// A key alone is no certificate that package x509 could take for an authority. What it signed is one, while it is valid.
		for i := range shown {
			if c := shown[i].Certificate; signedBy(c, key) {
				a.add(c, r)
			}
		}
	}
	return a
}

func signedBy(c *x509.Certificate, key crypto.PublicKey) bool {
	parent := x509.Certificate{PublicKey: key}
	return parent.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

func affordable(key crypto.PublicKey) bool {
	k, ok := key.(*rsa.PublicKey)
	return !ok || k.N.BitLen() <= maxRSABits
}

// forOneOf reports whether the certificate at the beginning of a path is for one of names.
func forOneOf(path []*x509.Certificate, names []string) bool {
	leaf := path[0]
	if cn := leaf.Subject.CommonName; len(leaf.DNSNames) == 0 && cn != "" && !constrained(path) {
		// RFC 7672 section 3.2.3. Package x509 ignores the common name.
		leaf = &x509.Certificate{DNSNames: []string{cn}}
	}
	for _, n := range names {
		n, err := mailspine.ASCIIDomain(n)
		if err == nil && leaf.VerifyHostname(n) == nil {
			return true
		}
	}
	return false
}

// constrained reports whether an authority of a path may only vouch for some names: package x509 has not
// held the common name against that.
func constrained(path []*x509.Certificate) bool {
	for _, c := range path[1:] {
		if len(c.PermittedDNSDomains)+len(c.ExcludedDNSDomains) > 0 {
			return true
		}
	}
	return false
}
