package mtasts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/internal/dial"
)

func TestFetch(t *testing.T) {
	w := newWorld(t, nil)
	want, _ := ParsePolicy([]byte(rfcPolicy))
	var got *http.Request
	w.set(func(rw http.ResponseWriter, r *http.Request) { got = r; policy(rfcPolicy)(rw, r) })
	for _, domain := range []string{"example.org", "Example.ORG.", "bücher.example.org"} {
		p, err := w.fetcher.Fetch(t.Context(), domain)
		if err != nil || !cmp.Equal(p, want) {
			t.Errorf("%s: %v\n%s", domain, err, cmp.Diff(want, p))
		}
	}
	if got.Method != "GET" || got.URL.Path != "/.well-known/mta-sts.txt" || got.TLS.ServerName != "mta-sts.xn--bcher-kva.example.org" || !strings.HasPrefix(got.Host, got.TLS.ServerName+":") ||
		got.Header.Get("Cookie") != "" || got.Header.Get("Authorization") != "" || got.Header.Get("If-None-Match") != "" || got.ContentLength != 0 {
		t.Errorf("%+v", got)
	}
	// A wildcard for the leftmost label is a valid certificate (RFC 8461 section 3.3), for mta-sts itself only.
	if _, err := w.fetcher.Fetch(t.Context(), "example.net"); err != nil {
		t.Error(err)
	}
}

// What the policy host may say, and what it may not (RFC 8461 sections 3.2 and 3.3).
func TestFetchRules(t *testing.T) {
	w := newWorld(t, nil)
	typed := func(media ...string) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			rw.Header()["Content-Type"] = media
			_, _ = io.WriteString(rw, rfcPolicy)
		}
	}
	redirect := func(code int) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != WellKnownPath {
				t.Error("a redirect was followed")
			}
			rw.Header().Set("Content-Type", "text/plain")
			rw.Header().Set("Location", "/elsewhere")
			rw.WriteHeader(code)
			_, _ = io.WriteString(rw, rfcPolicy)
		}
	}
	ok := Kind("")
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		kind Kind
		text string
	}{
		"text/plain":      {typed("text/plain"), ok, ""},
		"a character set": {typed("text/plain; charset=utf-8"), ok, ""},
		"other case":      {typed("Text/Plain ; charset=us-ascii"), ok, ""},
		"odd parameters":  {typed(`text/plain; charset=utf-8; charset=utf-8; ="`), ok, ""},
		"HTML":            {typed("text/html"), KindPolicy, "media type"},
		"octets":          {typed("application/octet-stream"), KindPolicy, "media type"},
		"no type":         {typed(), KindPolicy, "media type"},
		"nearly":          {typed("text/plainer"), KindPolicy, "media type"},
		"201":             {status(201), KindFetch, "201"},
		"203":             {status(203), KindFetch, "203"},
		"206":             {status(206), KindFetch, "206"},
		"301":             {redirect(301), KindFetch, "301"},
		"302":             {redirect(302), KindFetch, "302"},
		"303":             {redirect(303), KindFetch, "303"},
		"307":             {redirect(307), KindFetch, "307"},
		"308":             {redirect(308), KindFetch, "308"},
		"404":             {status(404), KindFetch, "404"},
		"500":             {status(500), KindFetch, "500"},
		"no policy":       {policy("hello"), KindPolicy, "no colon"},
		"empty":           {policy(""), KindPolicy, "version: missing"},
		"64 KiB":          {policy(rfcPolicy + strings.Repeat("\n", MaxPolicy-len(rfcPolicy))), ok, ""},
		"an octet more":   {policy(rfcPolicy + strings.Repeat("\n", MaxPolicy-len(rfcPolicy)+1)), KindPolicy, "too large"},
		"huge, and announced": {func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Length", "1000000000")
			policy(rfcPolicy)(rw, r)
		}, KindPolicy, "too large"},
		"without end": {func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "text/plain")
			for {
				if _, err := io.WriteString(rw, rfcPolicy); err != nil {
					return
				}
			}
		}, KindPolicy, "too large"},
		"cut off": {func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Length", "1000")
			policy(rfcPolicy)(rw, r)
		}, KindFetch, "EOF"},
		"closes": {func(rw http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, KindFetch, "EOF"},
	} {
		w.set(c.h)
		p, err := w.fetcher.Fetch(t.Context(), "example.org")
		var e *Error
		switch {
		case c.kind == ok && (err != nil || p.Mode != ModeEnforce):
			t.Errorf("%s: %v", name, err)
		case c.kind != ok && (!errors.As(err, &e) || e.Kind != c.kind || e.Domain != "example.org" || !strings.Contains(err.Error(), c.text) || p.Mode != ""):
			t.Errorf("%s: %v, want %s %q", name, err, c.kind, c.text)
		}
	}
}

// The certificate is what makes a policy the domain's.
func TestFetchCertificate(t *testing.T) {
	w := newWorld(t, nil)
	now := time.Now()
	other := newCA(t)
	for name, c := range map[string]struct {
		cert *tls.Certificate
		kind Kind
		text string
	}{
		"right":             {w.ca.issue(t, nil, "mta-sts.example.org"), "", ""},
		"wildcard":          {w.ca.issue(t, nil, "*.example.org"), "", ""},
		"the domain":        {w.ca.issue(t, nil, "example.org"), KindWebPKI, "not mta-sts.example.org"},
		"its MX":            {w.ca.issue(t, nil, "mx.example.org"), KindWebPKI, "not mta-sts.example.org"},
		"common name only":  {w.ca.issue(t, func(c *x509.Certificate) { c.Subject.CommonName = "mta-sts.example.org" }), KindWebPKI, "certificate"},
		"wildcard too high": {w.ca.issue(t, nil, "*.org"), KindWebPKI, "not mta-sts.example.org"},
		"expired":           {w.ca.issue(t, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, "mta-sts.example.org"), KindWebPKI, "expired"},
		"not yet":           {w.ca.issue(t, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }, "mta-sts.example.org"), KindWebPKI, "expired or is not yet valid"},
		"for clients":       {w.ca.issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "mta-sts.example.org"), KindWebPKI, "key usage"},
		"other authority":   {other.issue(t, nil, "mta-sts.example.org"), KindWebPKI, "unknown authority"},
	} {
		srv := httptest.NewUnstartedServer(policy(rfcPolicy))
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{*c.cert}}
		srv.StartTLS()
		f := *w.fetcher
		f.Port = srv.Listener.Addr().(*net.TCPAddr).AddrPort().Port()
		_, err := f.Fetch(t.Context(), "example.org")
		srv.Close()
		var e *Error
		switch {
		case c.kind == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.kind != "" && (!errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(err.Error(), c.text)):
			t.Errorf("%s: %v, want %s %q", name, err, c.kind, c.text)
		}
	}
}

func TestFetchUnreachable(t *testing.T) {
	w := newWorld(t, policy(rfcPolicy))
	w.dns.Set("mta-sts.gone.example.org")
	w.dns.Set("mta-sts.private.example.org", dnstest.A("10.0.0.1"), dnstest.AAAA("fd00::1"))
	w.dns.Set("mta-sts.metadata.example.org", dnstest.CNAME("169-254-169-254.example"))
	w.dns.Set("169-254-169-254.example", dnstest.A("169.254.169.254"))
	w.dns.Set("mta-sts.fails.example.org", dnstest.ServFail)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := closed.Addr().(*net.TCPAddr).AddrPort().Port()
	closed.Close()
	for name, c := range map[string]struct {
		domain string
		change func(*Fetcher)
		is     error
	}{
		"no address":                     {"gone.example.org", nil, mailspine.ErrNoData},
		"no name":                        {"example.com", nil, mailspine.ErrNXDomain},
		"private":                        {"private.example.org", nil, dial.ErrForbidden},
		"metadata service":               {"metadata.example.org", nil, dial.ErrForbidden},
		"loopback, unless it is allowed": {"example.org", func(f *Fetcher) { f.AllowPrivate = nil }, dial.ErrForbidden},
		"DNS fails":                      {"fails.example.org", nil, mailspine.ErrDNSTemporary},
		"refuses":                        {"example.org", func(f *Fetcher) { f.Port = port }, nil},
		"address literal":                {"[192.0.2.1]", nil, nil},
		"no domain":                      {"", nil, nil},
		"a path in it":                   {"example.org/x?", nil, nil},
		"a port in it":                   {"example.org:25", nil, nil},
		"a user in it":                   {"x@example.org", nil, nil},
	} {
		f := *w.fetcher
		if c.change != nil {
			c.change(&f)
		}
		p, err := f.Fetch(t.Context(), c.domain)
		var e *Error
		if p.Mode != "" || !errors.As(err, &e) || e.Kind != KindFetch || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := w.fetches(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// Nobody holds a fetch longer than its time-out, or than the caller wants.
func TestFetchSlow(t *testing.T) {
	w := newWorld(t, nil)
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	drip := func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/plain")
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			fmt.Fprintf(rw, "x%d: y\n", i)
			if http.NewResponseController(rw).Flush() != nil {
				return
			}
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	}
	for name, h := range map[string]http.HandlerFunc{"silent": silent, "drip": drip} {
		w.set(h)
		f := *w.fetcher
		f.Timeout = 100 * time.Millisecond
		var e *Error
		var timeout interface{ Timeout() bool }
		if _, err := f.Fetch(t.Context(), "example.org"); !errors.As(err, &e) || e.Kind != KindFetch || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s: %v", name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, err := w.fetcher.Fetch(ctx, "example.org"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	// A server that accepts and never begins TLS.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := *w.fetcher
	f.Port, f.Timeout = l.Addr().(*net.TCPAddr).AddrPort().Port(), 100*time.Millisecond
	if _, err := f.Fetch(t.Context(), "example.org"); err == nil {
		t.Error("no error")
	}
}

func TestKindResultType(t *testing.T) {
	for k, want := range map[Kind]string{KindFetch: "sts-policy-fetch-error", KindDNS: "sts-policy-fetch-error", KindWebPKI: "sts-webpki-invalid", KindPolicy: "sts-policy-invalid", KindRecord: "sts-policy-invalid"} {
		if k.ResultType() != want {
			t.Errorf("%s: %s", k, k.ResultType())
		}
	}
}
