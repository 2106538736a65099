package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// The defaults of HTTPOptions.
const (
	// DefaultHTTPTimeout is what RFC 8461 section 3.3 suggests for a policy.
	DefaultHTTPTimeout = time.Minute
	// DefaultMaxResponse is in octets of the body.
	DefaultMaxResponse = 1 << 20
	// DefaultUserAgent tells a server what calls it.
	DefaultUserAgent = "mailspine"
)

// maxResponseHeader bounds the header of a response, and those of all interim (1xx) responses together.
const maxResponseHeader = 64 << 10

// ErrTooLarge matches, with errors.Is, the error for a response whose body is over HTTPOptions.MaxResponse.
var ErrTooLarge = errors.New("response is too large")

// ErrNotHTTPS matches, with errors.Is, the refusal of a URL, or of the target of a redirect, that is not https.
var ErrNotHTTPS = errors.New("not a https URL")

// HTTPOptions tune a client of [Guard.HTTPClient]. The zero value, and nil, mean the defaults.
type HTTPOptions struct {
	// Roots are the certificate authorities that are believed. nil: the system's.
	Roots *x509.CertPool

	// Timeout bounds a whole exchange: names resolved, connection, TLS, redirects, request
	// and response, its body read to the end. It holds in addition to the request's context, and a
	// server that sends an octet now and then does not extend it. Zero or negative: DefaultHTTPTimeout.
	Timeout time.Duration

	// Redirects is how many redirects are followed, each to a https URL and through the guard again; one more is an
	// error. Zero or negative: none, and then a response with a code of 3xx comes back as it is, for
	// the caller to refuse.
	Redirects int

	// MaxResponse bounds the body of a response, in octets. A longer one makes
	// its reading fail with ErrTooLarge, and one that is announced is not read at all. Zero or
	// negative: DefaultMaxResponse.
	MaxResponse int64

	// UserAgent is sent in requests that have no User-Agent of their own. "": DefaultUserAgent.
	UserAgent string
}

// HTTPClient returns a client for URLs that a stranger chose. It speaks HTTP/1.1 over TLS 1.2 or later
// and nothing else: a URL that is not https is refused (ErrNotHTTPS), the server's certificate must be
// valid for the URL's host, and each connection goes through [Guard.DialContext], so that an address that is not
// allowed is an error that matches ErrForbidden. It uses no proxy, has no cookies, no cache and no client
// certificate, asks for no compression, and unpacks none.
//
// A connection serves one request, so nothing is left behind once the body is closed, and the client needs no closing.
// It is safe for concurrent use. The caller bounds how many requests it makes at a time, closes each body, and leaves the client's
// fields as they are. o is copied; g must not change while the client is in use, and may be nil.
//
// Revocation of certificates is not checked, as Go does not.
func (g *Guard) HTTPClient(o *HTTPOptions) *http.Client {
	var opt HTTPOptions
	if o != nil {
		opt = *o
	}
	if opt.Timeout <= 0 {
		opt.Timeout = DefaultHTTPTimeout
	}
	if opt.MaxResponse <= 0 {
		opt.MaxResponse = DefaultMaxResponse
	}
	if opt.UserAgent == "" {
		opt.UserAgent = DefaultUserAgent
	}
	var http1 http.Protocols
	http1.SetHTTP1(true)
	return &http.Client{
		Timeout: opt.Timeout,
		Transport: &guarded{opt: opt, next: &http.Transport{
			Proxy:                  nil, // not http.ProxyFromEnvironment: a proxy would connect for us, without our guard
			DialContext:            g.DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: opt.Roots, MinVersion: tls.VersionTLS12},
			Protocols:              &http1,
			DisableKeepAlives:      true,
			DisableCompression:     true, // or a small response could become a large one
			MaxResponseHeaderBytes: maxResponseHeader,
		}},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			switch {
			case opt.Redirects <= 0:
				return http.ErrUseLastResponse
			case len(via) > opt.Redirects:
				return fmt.Errorf("more than %d redirects", opt.Redirects)
			}
			return nil
		},
	}
}

// guarded is a transport for https only, whose responses are bounded.
type guarded struct {
	opt  HTTPOptions
	next *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (t *guarded) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL == nil || req.URL.Scheme != "https" {
		if req.Body != nil {
			req.Body.Close() // a RoundTripper closes it whatever happens
		}
		return nil, ErrNotHTTPS
	}
	if req.Header.Get("User-Agent") == "" {
		req = req.Clone(req.Context()) // a RoundTripper does not change the request
		if req.Header == nil {
			req.Header = http.Header{}
		}
		req.Header.Set("User-Agent", t.opt.UserAgent)
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if req.Method != http.MethodHead && resp.ContentLength > t.opt.MaxResponse {
		resp.Body.Close()
		return nil, fmt.Errorf("%w: %d octets, at most %d are taken", ErrTooLarge, resp.ContentLength, t.opt.MaxResponse)
	}
	// An upgraded connection (101) would be handed over as the body; nobody asked for one.
	if resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body.Close()
		return nil, errors.New("the server switches protocols, which nobody asked for")
	}
	resp.Body = &boundedBody{ctx: req.Context(), body: resp.Body, left: t.opt.MaxResponse, max: t.opt.MaxResponse}
	return resp, nil
}

// boundedBody fails where http.MaxBytesReader does, for a response. It is for one reader, as bodies are.
type boundedBody struct {
	ctx       context.Context // of the request, with the client's time-out in it
	body      io.ReadCloser
	left, max int64
	err       error // how it ended
}

// Read reads up to the limit, and one octet more to find out whether there is one.
func (b *boundedBody) Read(p []byte) (int, error) {
	if len(p) == 0 || b.err != nil {
		return 0, b.err
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.body.Read(p)
	switch {
	case int64(n) > b.left:
		n = int(b.left)
		err = fmt.Errorf("%w: over %d octets", ErrTooLarge, b.max)
	case err == io.EOF && b.ctx.Err() != nil:
		// At the end of its time the transport closes TLS before it closes the connection. A server that sees the one and ends
		// its response in good order before the other would make half a body look whole.
		err = context.Cause(b.ctx)
	}
	b.left -= int64(n)
	b.err = err
	return n, err
}

// Close closes the body, and with it the connection.
func (b *boundedBody) Close() error { return b.body.Close() }
