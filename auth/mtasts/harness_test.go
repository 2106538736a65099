package mtasts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// A ca is a certificate authority of the tests' own.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newCA(t testing.TB) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	c := &ca{cert: cert, key: key, pool: x509.NewCertPool()}
	c.pool.AddCert(cert)
	return c
}

// issue makes a certificate for names, changed by f.
func (c *ca) issue(t testing.TB, f func(*x509.Certificate), names ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if f != nil {
		f(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// A world is a policy host for every domain under example, DNS for it, a clock, and what was logged.
type world struct {
	ca      *ca
	dns     *dnstest.Server
	fetcher *Fetcher

	mu    sync.Mutex
	serve http.HandlerFunc // who answers
	asked []string         // the hosts that were, in order
	clock time.Time
	log   strings.Builder
}

// newWorld has a record with the id "1" for example.org, and a policy host that answers with p.
func newWorld(t testing.TB, serve http.HandlerFunc) *world {
	t.Helper()
	w := &world{ca: newCA(t), serve: serve, clock: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	w.dns = dnstest.New(dnstest.Zone{
		"*.example.org":        {dnstest.A("127.0.0.1")},
		"*.example.net":        {dnstest.A("127.0.0.1")},
		"_mta-sts.example.org": {dnstest.TXT("v=STSv1; id=1;")},
	})
	cert := w.ca.issue(t, nil, "mta-sts.example.org", "*.example.net", "mta-sts.xn--bcher-kva.example.org")
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		host, _, _ := net.SplitHostPort(r.Host)
		w.asked = append(w.asked, host)
		serve := w.serve
		w.mu.Unlock()
		serve(rw, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	w.fetcher = &Fetcher{Resolver: w.dns, AllowPrivate: loopback, Port: srv.Listener.Addr().(*net.TCPAddr).AddrPort().Port(), Roots: w.ca.pool, Timeout: 20 * time.Second}
	return w
}

// policy answers with a file.
func policy(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, text)
	}
}

// file is a policy in short.
func file(mode Mode, maxAge string, mx ...string) http.HandlerFunc {
	s := "version: STSv1\nmode: " + string(mode) + "\nmax_age: " + maxAge + "\n"
	for _, m := range mx {
		s += "mx: " + m + "\n"
	}
	return policy(s)
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, rfcPolicy)
	}
}

// set changes who answers.
func (w *world) set(serve http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serve = serve
}

// fetches returns how many requests there were, and forgets them.
func (w *world) fetches() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.asked)
	w.asked = nil
	return n
}

// record publishes a record for a domain; "" takes it away.
func (w *world) record(domain string, recs ...dnstest.Record) {
	w.dns.Set("_mta-sts."+domain, recs...)
}

func (w *world) id(domain, id string) { w.record(domain, dnstest.TXT("v=STSv1; id="+id+";")) }

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(d)
}

// Write takes what is logged.
func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

// logged returns what was logged, and forgets it.
func (w *world) logged() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.log.String()
	w.log.Reset()
	return s
}

// cache returns a Cache of this world over a store, which may be nil.
func (w *world) cache(s Store) *Cache {
	return &Cache{Fetcher: w.fetcher, Store: s, Now: w.now, Logger: slog.New(slog.NewTextHandler(w, nil))}
}

// serveNames starts another policy host, with a certificate for these names, and returns a Fetcher for it.
func (w *world) serveNames(t testing.TB, h http.HandlerFunc, names ...string) *Fetcher {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{*w.ca.issue(t, nil, names...)}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	f := *w.fetcher
	f.Port = srv.Listener.Addr().(*net.TCPAddr).AddrPort().Port()
	return &f
}
