package dane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

// now is when all certificates of the tests are valid, unless they say otherwise.
var now = time.Now()

// An issued certificate has its key, so that it can issue others.
type issued struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

// issue makes a certificate that parent signs; nil: itself. change may alter the template, which is that of a mail server named by name.
func issue(t testing.TB, parent *issued, name string, change func(*x509.Certificate)) *issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return issueFor(t, parent, key, name, change)
}

func issueFor(t testing.TB, parent *issued, key *ecdsa.PrivateKey, name string, change func(*x509.Certificate)) *issued {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(90 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	if change != nil {
		change(tmpl)
	}
	from, signer := tmpl, key
	if parent != nil {
		from, signer = parent.Certificate, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, from, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{c, key}
}

// authority makes the template that of a certification authority.
func authority(c *x509.Certificate) {
	c.IsCA, c.KeyUsage, c.ExtKeyUsage, c.DNSNames = true, x509.KeyUsageCertSign, nil, nil
}

// A pki is an authority, one below it, and a server of the latter.
type pki struct {
	root, middle, leaf *issued
}

func newPKI(t testing.TB) pki {
	root := issue(t, nil, "Test Root", authority)
	middle := issue(t, root, "Test Middle", authority)
	return pki{root, middle, issue(t, middle, "mx.example.org", nil)}
}

func chainOf(cs ...*issued) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range cs {
		out = append(out, c.Certificate)
	}
	return out
}

// publishing is a resolver that has the same records everywhere, authentic.
func publishing(recs []mailspine.TLSA) mailspine.Resolver {
	return mailspine.ResolverFunc(func(_ context.Context, name string, _ mailspine.Type) (mailspine.Answer, error) {
		return mailspine.Answer{CanonicalName: name, Authentic: true, TLSA: recs, TTL: time.Minute}, nil
	})
}

func probing(chain []*x509.Certificate) func(context.Context, string) ([]*x509.Certificate, error) {
	return func(context.Context, string) ([]*x509.Certificate, error) { return chain, nil }
}
