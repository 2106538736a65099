package mta

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/mtasts"
)

// tlsConfig returns the configuration for one connection. verified gets the name
// that the certificate was found valid for, before the handshake returns: for DANE, the TLSA base domain.
func (t *transfer) tlsConfig(host string, verified *string) *tls.Config {
	t.tls.tested = new(error)
	d := t.tls // a copy: a connection that is kept has c, and must not have the delivery with it
	var c *tls.Config
	if base := t.r.TLSConfig; base != nil {
		c = base.Clone()
	} else {
		c = &tls.Config{}
	}
	if c.MinVersion == 0 || c.MinVersion < tls.VersionTLS12 && d.bySTS() {
		c.MinVersion = tls.VersionTLS12 // RFC 8996; RFC 8461 section 4.2
	}
	// A message goes in records of 16 KiB from the first octet on: nobody looks at its beginning before its end is there.
	c.DynamicRecordSizingDisabled = true
	c.ServerName = host
	if ip, ok := (mailspine.Address{Domain: host}).Literal(); ok {
		c.ServerName, host = "", ip.String() // RFC 6066 section 3: SNI has no addresses
	}
	if d.byDANE() {
		c.ServerName = d.recs.Base // RFC 7672 section 8.1
	}
	v := &tlsVerifier{d: &d, host: host, roots: c.RootCAs, now: c.Time}
	if v.now == nil {
		v.now = time.Now
	}
	must := d.rule.Level >= TLSVerify
	next := c.VerifyConnection
	// crypto/tls verifies for ServerName only, and not at all opportunistically
	// without failing; so the verification is done here. VerifyConnection is
	// called for resumed connections too.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		name, err := v.verify(cs)
		if err != nil && must {
			return err
		}
		*verified = name
		if d.sts.Mode == mtasts.ModeTesting {
			*d.tested = v.test(cs)
		}
		if next != nil {
			return next(cs)
		}
		return nil
	}
	t.resume(c, host)
	return c
}

// A tlsVerifier verifies the certificate of a host as its decision says.
type tlsVerifier struct {
	d     *tlsDecision
	host  string         // an address literal as its address
	roots *x509.CertPool // of the configuration
	now   func() time.Time
}

// verify returns the name that the certificate is valid for.
func (v *tlsVerifier) verify(cs tls.ConnectionState) (string, error) {
	d := v.d
	local := d.rule.Names != nil || d.rule.Roots != nil
	if d.byDANE() {
		if _, err := dane.Verify(d.recs.Usable, cs.PeerCertificates, d.names, v.now()); err != nil {
			return "", err
		}
		if local {
			if _, err := v.rule(cs); err != nil {
				return "", err
			}
		}
		return d.recs.Base, nil
	}
	name, err := v.rule(cs)
	if err == nil && local && d.bySTS() {
		// RFC 8461 section 4.2 asks for the name of the host, whatever the rule says.
		_, err = verifyPeer(cs, []string{v.host}, v.roots, v.now())
	}
	if err != nil {
		return "", err
	}
	return name, nil
}

// rule verifies for the local rule.
func (v *tlsVerifier) rule(cs tls.ConnectionState) (string, error) {
	names, roots := v.d.rule.Names, v.d.rule.Roots
	if names == nil {
		names = []string{v.host}
	}
	if roots == nil {
		roots = v.roots
	}
	return verifyPeer(cs, names, roots, v.now())
}

// test verifies for an MTA-STS policy that is not enforced.
func (v *tlsVerifier) test(cs tls.ConnectionState) error {
	if cs.Version < tls.VersionTLS12 {
		return errors.New(tls.VersionName(cs.Version))
	}
	_, err := verifyPeer(cs, []string{v.host}, v.roots, v.now())
	return err
}

// verifyPeer returns the first of names that the peer's certificate is valid for.
func verifyPeer(cs tls.ConnectionState, names []string, roots *x509.CertPool, now time.Time) (string, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", errors.New("no certificate")
	}
	opts := x509.VerifyOptions{Roots: roots, CurrentTime: now, Intermediates: x509.NewCertPool()}
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	leaf := cs.PeerCertificates[0]
	if _, err := leaf.Verify(opts); err != nil {
		return "", err
	}
	var err error
	for _, n := range names {
		if err = leaf.VerifyHostname(n); err == nil {
			return n, nil
		}
	}
	if err == nil {
		err = errors.New("the rule has no names")
	}
	return "", err
}

func tlsInfo(cs tls.ConnectionState, verified string) mailspine.TLSInfo {
	return mailspine.TLSInfo{
		Version:  tls.VersionName(cs.Version),
		Cipher:   tls.CipherSuiteName(cs.CipherSuite),
		Peer:     verified,
		ServerID: cs.ServerName,
	}
}
