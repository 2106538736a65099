package tlsrpt

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/internal/dial"
)

// A testCA signs certificates of tests.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newCA(t testing.TB) *testCA {
	t.Helper()
	ca := &testCA{pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if ca.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &ca.key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.pool.AddCert(ca.cert)
	return ca
}

// issue makes a certificate for names, valid until a time.
func (ca *testCA) issue(t testing.TB, until time.Time, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key}
}

// serve starts a HTTPS server on loopback, and returns its port.
func serve(t testing.TB, cert tls.Certificate, h http.Handler) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func TestReportByHTTPS(t *testing.T) {
	ca := newCA(t)
	var got []*Received
	handler := &Handler{Logger: quiet, Handle: func(_ context.Context, r *Received) error { got = append(got, r); return nil }}
	port := serve(t, ca.issue(t, time.Now().Add(time.Hour), "reports.example"), handler)
	zone := dnstest.Zone{
		"reports.example":        {dnstest.A("127.0.0.1")},
		"_smtp._tls.a.example":   wants("https://reports.example:" + port + "/v1/tlsrpt?x=y"),
		"_smtp._tls.b.example":   wants("https://127.0.0.2:" + port + "/,mailto:r@b.example"),
		"_smtp._tls.c.example":   wants("https://10.0.0.1:" + port + "/"),
		"_smtp._tls.d.example":   wants("https://missing.example/"),
		"_smtp._tls.two.example": wants("mailto:r@two.example,https://reports.example:" + port + "/"),
	}
	r, out, k := newReporter(t, zone, nil)
	r.AllowPrivate, r.Roots = loopback, ca.pool
	record(t, r.Collector, Session{Domain: "a.example", Result: CertificateExpired, ReceivingIP: ip4}, Session{Domain: "b.example"}, Session{Domain: "c.example"},
		Session{Domain: "d.example"}, Session{Domain: "two.example"})
	k.add(24 * time.Hour)
	err := r.Send(context.Background(), day0)
	if !errors.Is(err, dial.ErrForbidden) || strings.Contains(err.Error(), "a.example of") || !strings.Contains(err.Error(), "d.example of") {
		t.Errorf("%v", err)
	}
	if len(got) != 2 || len(out.mail) != 2 {
		t.Fatalf("%d posted, %d mailed", len(got), len(out.mail))
	}
	slices.SortFunc(got, func(a, b *Received) int {
		return strings.Compare(a.Report.Policies[0].Policy.Domain, b.Report.Policies[0].Policy.Domain) // they are sent in any order
	})
	want := &Report{
		Organization: "example.com", Contact: "tls@example.com", ID: got[0].Report.ID, Start: day0, End: day0.Add(24*time.Hour - time.Second),
		Policies: []PolicyResult{{Policy: Policy{Type: PolicyNone, Domain: "a.example"}, Failed: 1, Failures: []Failure{{Result: CertificateExpired, ReceivingIP: ip4, Sessions: 1}}}},
	}
	if !reflect.DeepEqual(got[0].Report, want) || got[0].Message != nil || got[0].Vouched != "" || !strings.HasPrefix(got[0].Remote, "127.0.0.1:") {
		t.Errorf("%+v\n%+v", got[0], got[0].Report)
	}
	for d, c := range map[string]struct {
		done bool
		note string
	}{
		"a.example": {true, "sent to https://reports.example"}, "b.example": {true, "sent to mailto:r@b.example; https://127.0.0.2"}, // the certificate is not for an address
		"c.example": {true, "given up"}, "d.example": {false, "missing.example"}, "two.example": {true, "sent to mailto:r@two.example, https://"},
	} {
		if got := delivery(t, r.Collector, d); got.Done != c.done || !strings.HasPrefix(got.Note, c.note) && (c.done || !strings.Contains(got.Note, c.note)) {
			t.Errorf("%s: %+v", d, got)
		}
	}
	// Loopback is a stranger's choice too, unless it is allowed.
	r.AllowPrivate = nil
	if err := r.post(context.Background(), sample(), Destination{URI: "https://reports.example:" + port + "/"}, r.timeout()); !errors.Is(err, dial.ErrForbidden) || !permanent(err) {
		t.Errorf("%v", err)
	}
}

// What a server may answer, and what becomes of it.
func TestPostAnswers(t *testing.T) {
	ca := newCA(t)
	calls := 0
	var port string
	mux := http.NewServeMux()
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, req *http.Request) {
		calls++
		b, _ := io.ReadAll(req.Body)
		if req.Header.Get("Content-Type") != MediaTypeGzip || req.Header.Get("Content-Encoding") != "" || int64(len(b)) != req.ContentLength || req.Method != http.MethodPost || !bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
			t.Errorf("%s %v", req.Method, req.Header)
		}
		w.Header().Set("Location", "https://reports.example:"+port+"/elsewhere")
		var code int
		fmt.Sscan(req.PathValue("code"), &code)
		w.WriteHeader(code)
	})
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { t.Error("a redirect is followed") })
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(200)
		w.Write(bytes.Repeat([]byte("x"), 4*maxAnswer))
	})
	mux.HandleFunc("/drip", func(w http.ResponseWriter, req *http.Request) {
		for req.Context().Err() == nil {
			w.Write([]byte("x"))
			w.(http.Flusher).Flush()
			select {
			case <-time.After(5 * time.Millisecond):
			case <-req.Context().Done():
			}
		}
	})
	mux.HandleFunc("/close", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	block := make(chan struct{})
	mux.HandleFunc("/silent", func(_ http.ResponseWriter, req *http.Request) {
		select {
		case <-block:
		case <-req.Context().Done():
		}
	})
	port = serve(t, ca.issue(t, time.Now().Add(time.Hour), "reports.example"), mux)
	t.Cleanup(func() { close(block) }) // before the server is closed
	zone := dnstest.Zone{"reports.example": {dnstest.A("127.0.0.1")}}
	r, _, _ := newReporter(t, zone, nil)
	r.AllowPrivate, r.Roots = loopback, ca.pool
	post := func(path string) error {
		return r.post(context.Background(), sample(), Destination{URI: "https://reports.example:" + port + path}, r.timeout())
	}
	for code, want := range map[int]string{
		200: "", 201: "", 202: "", 204: "", 299: "",
		301: "again", 302: "again", 307: "again", 308: "again", 500: "again", 503: "again", 599: "again", 408: "again", 425: "again", 429: "again",
		400: "never", 401: "never", 404: "never", 405: "never", 410: "never", 413: "never", 415: "never",
	} {
		err := post(fmt.Sprintf("/status/%d", code))
		got := "again"
		if err == nil {
			got = ""
		} else if permanent(err) {
			got = "never"
		}
		if got != want {
			t.Errorf("%d: %v, %q", code, err, got)
		}
	}
	if calls != 22 {
		t.Errorf("%d calls", calls)
	}
	if err := post("/long"); err != nil {
		t.Errorf("a long answer: %v", err)
	}
	if err := post("/close"); err == nil || permanent(err) {
		t.Errorf("a connection that breaks: %v", err)
	}
	r.Timeout = 100 * time.Millisecond
	if err := post("/silent"); err == nil || permanent(err) {
		t.Errorf("no answer: %v", err)
	}
	start := time.Now()
	if err := post("/drip"); err != nil { // it said 200 at once
		t.Errorf("a slow answer: %v", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("took %s", d)
	}
	r.Timeout = 0
	for uri, want := range map[string]string{"https://reports.example:0/": "again", "https://reports.example:" + port + "/%zz": "never"} {
		if err := r.post(context.Background(), sample(), Destination{URI: uri}, r.timeout()); err == nil || permanent(err) != (want == "never") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// Certificates that do not hold get no report, and another try.
func TestPostCertificates(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	hour := time.Now().Add(time.Hour)
	for name, cert := range map[string]tls.Certificate{
		"expired": ca.issue(t, time.Now().Add(-time.Minute), "reports.example"), "another name": ca.issue(t, hour, "other.example"), "another CA": other.issue(t, hour, "reports.example"),
	} {
		port := serve(t, cert, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Errorf("%s: a report is sent", name) }))
		r, _, _ := newReporter(t, dnstest.Zone{"reports.example": {dnstest.A("127.0.0.1")}}, nil)
		r.AllowPrivate, r.Roots = loopback, ca.pool
		if err := r.post(context.Background(), sample(), Destination{URI: "https://reports.example:" + port + "/"}, r.timeout()); err == nil || permanent(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
