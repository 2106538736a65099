package dial

import (
	"bufio"
	"compress/gzip"
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
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// httpsServer returns a server whose certificate is for 127.0.0.1 and example.com, and options that believe it.
func httpsServer(t *testing.T, h http.HandlerFunc, setup ...func(*httptest.Server)) (*httptest.Server, *HTTPOptions) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	for _, f := range setup {
		f(srv)
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	return srv, &HTTPOptions{Roots: roots, Timeout: 20 * time.Second}
}

var here = &Guard{AllowPrivate: loopback}

func get(t *testing.T, c *http.Client, target string) (int, string, error) {
	t.Helper()
	resp, err := c.Get(target)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func TestHTTPClient(t *testing.T) {
	srv, opt := httpsServer(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s|%s|%s|%s|%v", r.Method, r.URL.Path, r.Proto, r.UserAgent(), r.Header.Get("Accept-Encoding"), r.Header.Get("Cookie"), r.Close)
	})
	// A proxy of the environment is not asked; there is none at that address.
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("https_proxy", "http://127.0.0.1:1")
	code, body, err := get(t, here.HTTPClient(opt), srv.URL+"/x")
	if err != nil || code != 200 || body != "GET /x HTTP/1.1|mailspine|||true" {
		t.Errorf("%d %q, %v", code, body, err)
	}
	opt.UserAgent = "other/1"
	if _, body, err = get(t, here.HTTPClient(opt), srv.URL+"/x"); err != nil || !strings.Contains(body, "|other/1|") {
		t.Errorf("%q, %v", body, err)
	}
	// A request keeps what its caller set, and is not changed.
	req, _ := http.NewRequest("POST", srv.URL+"/y", strings.NewReader("body"))
	req.Header.Set("User-Agent", "mine")
	resp, err := here.HTTPClient(opt).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !strings.HasPrefix(string(b), "POST /y HTTP/1.1|mine|") {
		t.Errorf("%q", b)
	}
}

// Nobody's private network is reached, whatever the host of the URL resolves to.
func TestHTTPGuard(t *testing.T) {
	var asked atomic.Int32
	srv, opt := httpsServer(t, func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	u, _ := url.Parse(srv.URL)
	var none *Guard
	for name, g := range map[string]*Guard{
		"nil": none, "zero": {}, "resolver": {Resolver: fixed("127.0.0.1", "::1")}, "forbidden": {AllowPrivate: loopback, Forbid: loopback},
	} {
		for _, host := range []string{"127.0.0.1", "[::ffff:127.0.0.1]", "policy.example"} {
			if host == "policy.example" && (g == nil || g.Resolver == nil) {
				continue // the system would be asked
			}
			_, _, err := get(t, g.HTTPClient(opt), "https://"+host+":"+u.Port())
			if !errors.Is(err, ErrForbidden) {
				t.Errorf("%s, %s: %v", name, host, err)
			}
		}
	}
	if asked.Load() != 0 {
		t.Error("the server was asked")
	}
}

func TestHTTPCertificate(t *testing.T) {
	srv, opt := httpsServer(t, func(http.ResponseWriter, *http.Request) {})
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	g := &Guard{AllowPrivate: loopback, Resolver: fixed("127.0.0.1")}
	if code, _, err := get(t, g.HTTPClient(opt), "https://example.com:"+port); err != nil || code != 200 {
		t.Errorf("the right name: %d, %v", code, err)
	}
	var cert *tls.CertificateVerificationError
	if _, _, err := get(t, g.HTTPClient(opt), "https://example.net:"+port); !errors.As(err, &cert) {
		t.Errorf("the wrong name: %v", err)
	}
	if _, _, err := get(t, g.HTTPClient(nil), "https://example.com:"+port); !errors.As(err, &cert) {
		t.Errorf("an authority that nobody knows: %v", err)
	}
	old, opt := httpsServer(t, func(http.ResponseWriter, *http.Request) {}, func(s *httptest.Server) {
		s.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	})
	if _, _, err := get(t, here.HTTPClient(opt), old.URL); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.1: %v", err)
	}
}

func TestHTTPNotHTTPS(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked in the clear") }))
	defer plain.Close()
	for _, target := range []string{plain.URL, "HTTP://127.0.0.1/", "file:///etc/passwd", "ftp://127.0.0.1/", "/relative"} {
		if _, _, err := get(t, here.HTTPClient(nil), target); !errors.Is(err, ErrNotHTTPS) {
			t.Errorf("%s: %v", target, err)
		}
	}
	body := &closer{Reader: strings.NewReader("x")}
	req, _ := http.NewRequest("POST", plain.URL, body)
	if _, err := here.HTTPClient(nil).Do(req); !errors.Is(err, ErrNotHTTPS) || !body.closed {
		t.Errorf("the body is closed: %v; %v", body.closed, err)
	}
	srv, opt := httpsServer(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, plain.URL, http.StatusFound) })
	opt.Redirects = 5
	if _, _, err := get(t, here.HTTPClient(opt), srv.URL); !errors.Is(err, ErrNotHTTPS) {
		t.Errorf("redirected to http: %v", err)
	}
}

type closer struct {
	io.Reader
	closed bool
}

func (c *closer) Close() error { c.closed = true; return nil }

func TestHTTPRedirects(t *testing.T) {
	var hops []string
	srv, opt := httpsServer(t, func(w http.ResponseWriter, r *http.Request) {
		hops = append(hops, r.URL.Path)
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
		if r.Header.Get("Cookie") != "" {
			t.Error("a cookie came back")
		}
		if n := strings.Count(r.URL.Path, "x"); n < 3 {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusTemporaryRedirect)
			return
		}
		fmt.Fprint(w, "here")
	})
	for _, c := range []struct {
		redirects, hops, code int
		err                   string
	}{
		{0, 1, 307, ""}, {-1, 1, 307, ""}, {1, 2, 0, "more than 1 redirects"}, {2, 3, 0, "more than 2 redirects"}, {3, 4, 200, ""}, {9, 4, 200, ""},
	} {
		hops = nil
		opt.Redirects = c.redirects
		code, _, err := get(t, here.HTTPClient(opt), srv.URL+"/")
		if code != c.code || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || len(hops) != c.hops {
			t.Errorf("Redirects %d: %d %v after %v", c.redirects, code, err, hops)
		}
	}
	// A redirect is a target of a stranger's choice like any other.
	away, opt := httpsServer(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://169.254.169.254/latest/meta-data", http.StatusFound)
	})
	opt.Redirects = 1
	if _, _, err := get(t, here.HTTPClient(opt), away.URL); !errors.Is(err, ErrForbidden) {
		t.Errorf("redirected to the metadata service: %v", err)
	}
}

func TestHTTPMaxResponse(t *testing.T) {
	srv, opt := httpsServer(t, func(w http.ResponseWriter, r *http.Request) {
		var n int
		fmt.Sscanf(r.URL.Path, "/%d", &n)
		if r.URL.RawQuery == "length" {
			w.Header().Set("Content-Length", fmt.Sprint(n))
		}
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		for ; n > 0; n -= 1000 { // chunked, unless there is a length
			if _, err := io.WriteString(w, strings.Repeat("x", min(n, 1000))); err != nil {
				return
			}
		}
	})
	opt.MaxResponse = 10_000
	for _, c := range []struct {
		path string
		n    int
		ok   bool
	}{
		{"/0", 0, true}, {"/9999", 9999, true}, {"/10000", 10000, true}, {"/10001", 10000, false}, {"/100000000", 10000, false},
		{"/10000?length", 10000, true}, {"/10001?length", 0, false}, {"/100000000?length", 0, false},
	} {
		_, body, err := get(t, here.HTTPClient(opt), srv.URL+c.path)
		if len(body) != c.n || (err == nil) != c.ok || err != nil && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %d octets, %v", c.path, len(body), err)
		}
	}
	opt.MaxResponse = 0
	if _, body, err := get(t, here.HTTPClient(opt), srv.URL+"/100000000"); len(body) != DefaultMaxResponse || !errors.Is(err, ErrTooLarge) {
		t.Errorf("%d octets, %v", len(body), err)
	}
	// The length of what a GET would have had is no length of an answer to HEAD.
	resp, err := here.HTTPClient(opt).Head(srv.URL + "/100000000?length")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("HEAD: %v", err)
	}
	resp.Body.Close()
}

// What is packed stays packed.
func TestHTTPNoDecompression(t *testing.T) {
	srv, opt := httpsServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		z.Write(make([]byte, 10<<20))
		z.Close()
	})
	_, body, err := get(t, here.HTTPClient(opt), srv.URL)
	if err != nil || len(body) < 100 || len(body) > 100_000 || body[0] != 0x1f {
		t.Errorf("%d octets, %v", len(body), err)
	}
}

// A server that drips, says nothing, or has no end of a header, costs no more than the time-out.
func TestHTTPHostile(t *testing.T) {
	raw := func(script func(w *bufio.Writer) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if script(rw.Writer) == nil {
				rw.Flush()
			}
		}
	}
	drip := func(head, each string) http.HandlerFunc {
		return raw(func(w *bufio.Writer) error {
			w.WriteString(head)
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				w.WriteString(each)
				if err := w.Flush(); err != nil {
					return err
				}
				<-tick.C // ends when the client has gone
			}
		})
	}
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		want string // of the error; "": a time-out
	}{
		"drips its body":      {drip("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "x"), ""},
		"drips its header":    {drip("HTTP/1.1 200 OK\r\n", "X: y\r\n"), ""},
		"drips its status":    {drip("", " "), ""},
		"interim without end": {drip("", "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"), ""},
		"says nothing":        {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, ""},
		"switches protocols": {raw(func(w *bufio.Writer) error {
			_, err := w.WriteString("HTTP/1.1 101 Hi\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			return err
		}), "switches protocols"},
		"garbage": {raw(func(w *bufio.Writer) error { _, err := w.WriteString("\x00\xff220 hello\r\n\r\n"); return err }), "malformed HTTP"},
		"closes":  {raw(func(w *bufio.Writer) error { return nil }), "EOF"},
		"cut off": {raw(func(w *bufio.Writer) error {
			_, err := w.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nxx")
			return err
		}), "unexpected EOF"},
		"chunk of absurd length": {raw(func(w *bufio.Writer) error {
			_, err := w.WriteString("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nx")
			return err
		}), "chunk length too large"},
		"a header of 10 MB": {raw(func(w *bufio.Writer) error {
			_, err := w.WriteString("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 10<<20) + "\r\n\r\n")
			return err
		}), "exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			srv, opt := httpsServer(t, c.h)
			opt.Timeout = 20 * time.Second
			if c.want == "" {
				opt.Timeout = 200 * time.Millisecond
			}
			began := time.Now()
			_, _, err := get(t, here.HTTPClient(opt), srv.URL)
			var timeout interface{ Timeout() bool }
			switch {
			case err == nil:
				t.Error("no error")
			case c.want == "" && !strings.Contains(err.Error(), "exceeded") && !(errors.As(err, &timeout) && timeout.Timeout()):
				t.Errorf("no time-out, but %v", err)
			case !strings.Contains(err.Error(), c.want):
				t.Errorf("%v, want %q", err, c.want)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// A client leaves no goroutine and no connection behind.
func TestHTTPLeavesNothing(t *testing.T) {
	srv, opt := httpsServer(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Repeat("x", 100)) })
	before := runtime.NumGoroutine()
	for i := range 20 {
		if i%2 == 0 {
			opt.MaxResponse = 10 // refused
		} else {
			opt.MaxResponse = 1000
		}
		get(t, here.HTTPClient(opt), srv.URL)
	}
	srv.Close() // waits for the connections
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, before %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}

// The limit is exact whatever sizes are read in.
func TestBoundedBody(t *testing.T) {
	for _, size := range []int{0, 1, 7, 8, 9, 100} {
		for _, buf := range []int{1, 3, 8, 9, 64} {
			b := &boundedBody{ctx: t.Context(), body: io.NopCloser(strings.NewReader(strings.Repeat("x", size))), left: 8, max: 8}
			var got int
			var err error
			for err == nil {
				var n int
				n, err = b.Read(make([]byte, buf))
				got += n
			}
			if want := min(size, 8); got != want || errors.Is(err, ErrTooLarge) != (size > 8) {
				t.Errorf("%d octets read by %d: %d, %v", size, buf, got, err)
			}
			if n, again := b.Read(make([]byte, buf)); n != 0 || again == nil {
				t.Errorf("%d octets read by %d: more after the end", size, buf)
			}
		}
	}
}

// A body that a server ends in good order because the client's time was over is not whole.
func TestBoundedBodyLate(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := &boundedBody{ctx: ctx, body: io.NopCloser(strings.NewReader("half")), left: 8, max: 8}
	if n, err := b.Read(make([]byte, 8)); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	cancel()
	for range 2 {
		if n, err := b.Read(make([]byte, 8)); n != 0 || !errors.Is(err, context.Canceled) {
			t.Error(n, err)
		}
	}
	// One that was whole before stays so.
	ctx, cancel = context.WithCancel(t.Context())
	b = &boundedBody{ctx: ctx, body: io.NopCloser(strings.NewReader("all")), left: 8, max: 8}
	if all, err := io.ReadAll(b); string(all) != "all" || err != nil {
		t.Fatal(string(all), err)
	}
	cancel()
	if _, err := b.Read(make([]byte, 8)); err != io.EOF {
		t.Error(err)
	}
}

func TestHTTPOptionsCopied(t *testing.T) {
	srv, opt := httpsServer(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })
	c := (&Guard{AllowPrivate: slices.Clone([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")})}).HTTPClient(opt)
	opt.MaxResponse, opt.Roots = 1, nil
	if _, body, err := get(t, c, srv.URL); err != nil || body != "hello" {
		t.Errorf("%q, %v", body, err)
	}
}
