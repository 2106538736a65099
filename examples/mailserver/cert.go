package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certLife is how long a self-signed certificate lasts: the most that all mail programs believe in.
const certLife = 825 * 24 * time.Hour

// loadPair reads a certificate chain and its key.
func loadPair(certFile, keyFile string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err == nil && pair.Leaf == nil {
		pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0])
	}
	return pair, err
}

// newTLS has the certificate of the flags, or a self-signed one that stays in
// the directory, so that mail programs need to be told of it once.
func newTLS(o *options, log *slog.Logger) (*tls.Config, error) {
	certFile, keyFile := o.cert, o.key
	if certFile == "" {
		certFile, keyFile = filepath.Join(o.dir, "cert.pem"), filepath.Join(o.dir, "key.pem")
		if err := makePair(o, certFile, keyFile); err != nil {
			return nil, fmt.Errorf("self-signed certificate: %w", err)
		}
	}
	pair, err := loadPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", certFile, err)
	}
	if err := pair.Leaf.VerifyHostname(o.hostname); err != nil {
		log.Warn("the certificate is not for our host name; remove both files for a new one", "cert", certFile, "key", keyFile, "err", err)
	}
	if end := pair.Leaf.NotAfter; time.Until(end) < 30*24*time.Hour {
		log.Warn("the certificate expires soon or has expired", "cert", certFile, "end", end)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

// makePair makes a certificate and its key in files that are not there yet. A
// key alone is what an interrupted start left, and is used.
func makePair(o *options, certFile, keyFile string) error {
	if _, err := os.Stat(certFile); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	keyPEM, err := once(keyFile, func() ([]byte, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
	})
	if err != nil {
		return err
	}
	_, err = once(certFile, func() ([]byte, error) {
		block, _ := pem.Decode(keyPEM)
		if block == nil {
			return nil, fmt.Errorf("%s is not PEM", keyFile)
		}
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		key, ok := parsed.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("%s has another kind of key", keyFile)
		}
		serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
		if err != nil {
			return nil, err
		}
		// It is its own authority, so that a program can be told to trust it, and it alone: it signs nothing else.
		tmpl := &x509.Certificate{
			SerialNumber: serial, Subject: pkix.Name{CommonName: o.hostname},
			DNSNames: []string{o.hostname, "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certLife),
			IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
	})
	return err
}

// once returns what a file of ours holds, and makes it the first time.
func once(file string, make func() ([]byte, error)) ([]byte, error) {
	b, err := os.ReadFile(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	if b, err = make(); err != nil {
		return nil, err
	}
	return b, write(file, b)
}

// write replaces a file: its owner's alone, and on the disk when it returns, whole or not at all.
func write(file string, b []byte) (err error) {
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, ".new-*") // CreateTemp's mode is 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
