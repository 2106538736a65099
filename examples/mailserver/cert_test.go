package main

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine/internal/peertest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestSelfSigned(t *testing.T) {
	o := &options{dir: t.TempDir(), hostname: "mail.example.test"}
	first, err := newTLS(o, quiet())
	if err != nil {
		t.Fatal(err)
	}
	leaf := first.Certificates[0].Leaf
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	for _, name := range []string{"mail.example.test", "localhost", "127.0.0.1", "::1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: time.Now().Add(certLife + time.Hour)}); err == nil {
		t.Error("it holds for ever")
	}
	// What an interrupted start leaves: the key without the certificate.
	if err := os.Remove(filepath.Join(o.dir, "cert.pem")); err != nil {
		t.Fatal(err)
	}
	second, err := newTLS(o, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if !leaf.PublicKey.(*ecdsa.PublicKey).Equal(second.Certificates[0].Leaf.PublicKey) {
		t.Error("the key was thrown away")
	}
	// A certificate whose key is gone is a reason to stop, and not to make another.
	if err := os.Remove(filepath.Join(o.dir, "key.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := newTLS(o, quiet()); err == nil || !strings.Contains(err.Error(), "key.pem") {
		t.Errorf("the key is gone: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(o.dir, ".new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The certificate of the flags is served, at all doors with TLS from the start.
func TestOwnCertificate(t *testing.T) {
	t.Parallel()
	c := peertest.SelfSigned(t, "mail.example.test")
	p := start(t, t.TempDir(), append(defaults(), "-cert", c.CertFile, "-key", c.KeyFile)...)
	for _, service := range []string{"submissions", "imaps", "pop3s"} {
		conn, err := tls.Dial("tcp", p.addr[service], &tls.Config{RootCAs: c.Pool, ServerName: "mail.example.test"})
		if err != nil {
			t.Errorf("%s: %v", service, err)
			continue
		}
		conn.Close()
	}
	if _, err := os.Stat(filepath.Join(p.dir, "key.pem")); err == nil {
		t.Error("a key was made that nobody needs")
	}
	p.stop()
}
