package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/mta"
)

// A testCA vouches for the servers of a test.
type testCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	ca := &testCA{t: t}
	ca.cert, ca.key = ca.make(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return ca
}

// make issues a certificate, or that of the authority itself.
func (ca *testCA) make(tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(0, 2, 0)
	parent, signer := ca.cert, ca.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, key
}

// server is the TLS of a server with a certificate for some names.
func (ca *testCA) server(names ...string) (*tls.Config, *x509.Certificate) {
	cert, key := ca.make(&x509.Certificate{DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}}}, cert
}

func pemOf(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// listen runs a server until the test ends, and returns its port.
func listen(t *testing.T, config *tls.Config, serve func(net.Listener) error, stop func() error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if config != nil {
		l = tls.NewListener(l, config)
	}
	done := make(chan struct{})
	go func() { defer close(done); serve(l) }()
	t.Cleanup(func() { stop(); <-done })
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// -fetch looks at the policy file and at the certificate of the mail exchanger as senders do.
func TestFetch(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	quiet := slog.New(slog.DiscardHandler)
	policies := &mtasts.Handler{Policies: map[string]mtasts.Policy{
		"example.org":       {Mode: "enforce", MX: []string{"mail.example.org"}, MaxAge: 7 * 24 * time.Hour},
		"short.example.org": {Mode: "enforce", MX: []string{"mail.example.org"}, MaxAge: time.Hour},
		"alien.example.org": {Mode: "enforce", MX: []string{"mail.example.org"}, MaxAge: 7 * 24 * time.Hour},
		"other.example.org": {Mode: "enforce", MX: []string{"mx.example.org"}, MaxAge: 7 * 24 * time.Hour},
	}}
	web := &http.Server{Handler: policies, ErrorLog: slog.NewLogLogger(quiet.Handler(), 0)}
	webTLS, _ := ca.server("mta-sts.example.org", "mta-sts.short.example.org", "mta-sts.other.example.org")
	https := listen(t, webTLS, web.Serve, web.Close)
	mxTLS, cert := ca.server("mail.example.org")
	mx := &mta.Receiver{Hostname: "mail.example.org", TLSConfig: mxTLS, Next: &mta.Mux{}, Logger: quiet}
	port := listen(t, nil, mx.Serve, mx.Close)
	plain := &mta.Receiver{Hostname: "mail.example.org", Next: &mta.Mux{}, Logger: quiet}
	plainPort := listen(t, nil, plain.Serve, plain.Close)
	_, stranger := ca.server("mail.example.org")

	zone := dnstest.Zone{
		"example.org":          {dnstest.Signed, dnstest.MX(10, "mail.example.org")},
		"mail.example.org":     {dnstest.A("127.0.0.1")},
		"mta-sts.example.org":  {dnstest.A("127.0.0.1")},
		"_mta-sts.example.org": {dnstest.TXT("v=STSv1; id=1")},
	}
	for _, sub := range []string{"short", "other", "alien"} {
		zone[sub+".example.org"] = []dnstest.Record{dnstest.MX(10, "mail.example.org")}
		zone["_mta-sts."+sub+".example.org"] = []dnstest.Record{dnstest.TXT("v=STSv1; id=1")}
		zone["mta-sts."+sub+".example.org"] = []dnstest.Record{dnstest.A("127.0.0.1")}
	}
	ns, err := dnstest.Start(zone)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	tlsa := func(c *x509.Certificate, ports ...string) {
		for _, p := range ports {
			r := dane.Record(c, 3, 1, 1)
			ns.Set("_"+p+"._tcp.mail.example.org", dnstest.TLSA(r.Usage, r.Selector, r.MatchingType, r.Data))
		}
	}
	authority := writeFile(t, pemOf(ca.cert))
	own := writeFile(t, pemOf(cert))
	const policy, server, record = "HTTPS mta-sts.example.org", "TLS mail.example.org", "TLSA _25._tcp.mail.example.org"
	for _, tt := range []struct {
		what, args, port string
		published        *x509.Certificate
		signed           bool
		at               string
		status, problem  string
		optional         bool
	}{
		{"policy", "-mta-sts enforce example.org", port, cert, true, policy, "ok", "", false},
		{"policy that is not believed", "-mta-sts enforce -ca " + own + " example.org", port, cert, true, policy, "differs", "policy: ", false},
		{"policy host that is private", "-mta-sts enforce -allow 10.0.0.0/8 example.org", port, cert, true, policy, "differs", "127.0.0.1", false},
		{"policy host that is down", "-mta-sts enforce -https-port 1 example.org", port, cert, true, policy, "differs", "policy: ", false},
		{"another policy", "-mta-sts testing example.org", port, cert, true, policy, "differs", "another policy is published", true},
		{"policy host with a certificate for others", "-mta-sts enforce alien.example.org", port, cert, true, "HTTPS mta-sts.alien.example.org", "differs", "policy: ", false},
		{"policy for an hour", "-mta-sts enforce short.example.org", port, cert, true, "HTTPS mta-sts.short.example.org", "differs", "max_age: ", true},
		{"policy for another host", "-mta-sts enforce other.example.org", port, cert, true, "HTTPS mta-sts.other.example.org", "differs", "mx mail.example.org: the policy does not list it", false},
		{"mail exchanger without TLS", "-mta-sts enforce example.org", plainPort, cert, true, policy, "differs", "certificate mail.example.org", false},
		{"DANE", "example.org", port, cert, true, server, "ok", "", false},
		{"DANE, as if the zone were signed", "example.org", port, cert, false, server, "ok", "", false},
		{"no DANE", "example.org", port, nil, true, server, "missing", "there are no TLSA records", true},
		{"the record of another key", "example.org", port, stranger, true, server, "differs", "senders with DANE hold", false},
		{"a server without STARTTLS", "example.org", plainPort, cert, true, server, "error", "offers no STARTTLS", false},
		{"a server that is down", "example.org", "1", cert, true, server, "error", "refused", false},
		{"the key of the file", "-tls-cert " + own + " example.org", port, cert, true, server, "ok", "", false},
		{"another key than that of the file", "-tls-cert " + writeFile(t, pemOf(stranger)) + " example.org", port, cert, true, server, "differs", "another key", false},
		{"the record for the file", "-tls-cert " + own + " example.org", port, cert, true, record, "ok", "", false},
		{"the record for another file", "-tls-cert " + writeFile(t, pemOf(stranger)) + " example.org", port, cert, true, record, "differs", "hold their mail back", false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			for _, p := range []string{"1", "25", port, plainPort} {
				ns.Delete("_" + p + "._tcp.mail.example.org")
			}
			if tt.published != nil {
				tlsa(tt.published, "1", "25", port, plainPort)
			}
			args := []string{"setup", "-json", "-fetch", "-dns", ns.Addr(), "-hostname", "mail.example.org", "-https-port", https, "-port", tt.port}
			if tt.signed {
				args = append(args, "-trust")
			}
			more := strings.Fields(tt.args)
			if !strings.Contains(tt.args, "-ca ") {
				args = append(args, "-ca", authority)
			}
			if !strings.Contains(tt.args, "-allow ") {
				args = append(args, "-allow", "127.0.0.0/8")
			}
			code, out, errs := tool(t, append(args, more...)...)
			if code != exitProblem { // most records are not there
				t.Fatalf("exit %d: %s", code, errs)
			}
			found := false
			for _, f := range findings(t, out) {
				if at, _, _ := strings.Cut(f.Type+" "+f.Name, ":"); at != tt.at {
					continue
				}
				found = true
				if f.Status != tt.status || !strings.Contains(f.Problem, tt.problem) || (f.Problem == "") != (f.Status == "ok") || f.Status != "ok" && f.Optional != tt.optional {
					t.Errorf("%+v", f)
				}
			}
			if !found {
				t.Errorf("nothing is said of %s", tt.at)
			}
		})
	}
	// Without the resolver's word about DNSSEC to be believed, an unsigned zone is the same; with it, it is told.
	ns.Set("example.org", dnstest.MX(10, "mail.example.org"))
	tlsa(cert, "25", port)
	_, out, _ := tool(t, "setup", "-fetch", "-dns", ns.Addr(), "-trust", "-port", port, "-https-port", https, "-ca", authority, "-allow", "127.0.0.0/8", "example.org")
	if want := "(differs)  TLS   mail.example.org:" + port; !strings.Contains(out, want) || !strings.Contains(out, "not secured by DNSSEC") {
		t.Errorf("no %q in\n%s", want, out)
	}
}
