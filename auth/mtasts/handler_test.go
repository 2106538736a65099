package mtasts

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHandler(t *testing.T) {
	org := Policy{ID: "7", Mode: ModeEnforce, MX: []string{"mx.example.org", "*.example.org"}, MaxAge: 14 * 24 * time.Hour}
	net := Policy{Mode: ModeNone}
	h := &Handler{Policies: map[string]Policy{"example.org": org, "xn--bcher-kva.example": net, "broken.example": {Mode: ModeEnforce}, "zero.example": {}}}
	for _, c := range []struct {
		method, host, path string
		code               int
		body               string
	}{
		{"GET", "mta-sts.example.org", WellKnownPath, 200, org.String()},
		{"GET", "mta-sts.example.org:8443", WellKnownPath, 200, org.String()},
		{"GET", "MTA-STS.Example.ORG.", WellKnownPath, 200, org.String()},
		{"GET", "mta-sts.example.org", WellKnownPath + "?x=y", 200, org.String()},
		{"GET", "mta-sts.xn--bcher-kva.example", WellKnownPath, 200, net.String()},
		{"HEAD", "mta-sts.example.org", WellKnownPath, 200, ""},
		{"POST", "mta-sts.example.org", WellKnownPath, 405, "GET or HEAD\n"},
		{"PUT", "mta-sts.example.org", WellKnownPath, 405, "GET or HEAD\n"},
		{"OPTIONS", "mta-sts.example.org", WellKnownPath, 405, "GET or HEAD\n"},
		{"GET", "mta-sts.example.org", "/", 404, "no policy here\n"},
		{"GET", "mta-sts.example.org", "/.well-known/mta-sts.txt/", 404, "no policy here\n"},
		{"GET", "mta-sts.example.org", "/.well-known/MTA-STS.txt", 404, "no policy here\n"},
		{"GET", "example.org", WellKnownPath, 404, "no policy here\n"},
		{"GET", "mta-sts.example.net", WellKnownPath, 404, "no policy here\n"},
		{"GET", "mta-sts.sub.example.org", WellKnownPath, 404, "no policy here\n"},
		{"GET", "mta-sts.broken.example", WellKnownPath, 404, "no policy here\n"},
		{"GET", "mta-sts.zero.example", WellKnownPath, 404, "no policy here\n"},
		{"GET", "mta-sts.", WellKnownPath, 404, "no policy here\n"},
		{"GET", "", WellKnownPath, 404, "no policy here\n"},
	} {
		r := httptest.NewRequest(c.method, "https://x"+c.path, nil)
		r.Host = c.host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.code || w.Body.String() != c.body {
			t.Errorf("%s %s %s: %d %q", c.method, c.host, c.path, w.Code, w.Body)
		}
		header := w.Result().Header
		if w.Code == 200 && (header.Get("Content-Type") != "text/plain; charset=utf-8" || header.Get("Content-Length") == "" || header.Get("Cache-Control") != "no-cache") {
			t.Errorf("%v", header)
		}
		if w.Code == 405 && header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%v", header)
		}
	}
	w := httptest.NewRecorder()
	new(Handler).ServeHTTP(w, httptest.NewRequest("GET", "https://mta-sts.example.org"+WellKnownPath, nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("a Handler without policies: %d", w.Code)
	}
}

// What we serve is what we fetch, and what we publish is what we look up.
func TestHandlerFetched(t *testing.T) {
	p := Policy{Mode: ModeTesting, MX: []string{"mx.example.org", "*.example.org"}, MaxAge: 86400 * time.Second}
	w := newWorld(t, (&Handler{Policies: map[string]Policy{"example.org": p}}).ServeHTTP)
	id, err := ParseRecord(Record(p))
	if err != nil {
		t.Fatal(err)
	}
	w.id("example.org", id)
	got, problem := w.cache(nil).Policy(t.Context(), "example.org")
	p.ID = id
	if problem != nil || !cmp.Equal(got, p) {
		t.Errorf("%v\n%s", problem, cmp.Diff(p, got))
	}
}

// Over a real connection, HEAD included.
func TestHandlerServer(t *testing.T) {
	p := Policy{Mode: ModeTesting, MX: []string{"mx.example.org"}, MaxAge: time.Hour}
	srv := httptest.NewServer(&Handler{Policies: map[string]Policy{"example.org": p}})
	defer srv.Close()
	for _, method := range []string{"GET", "HEAD"} {
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+WellKnownPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "mta-sts.example.org"
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || resp.ContentLength != int64(len(p.String())) || method == "GET" && string(b) != p.String() || method == "HEAD" && len(b) != 0 {
			t.Errorf("%s: %v %q, %v", method, resp, b, err)
		}
	}
}

// Whatever a client sends, it gets an answer, and no policy but the one that it asked for.
func FuzzHandler(f *testing.F) {
	f.Add("GET", "mta-sts.example.org", WellKnownPath)
	f.Add("HEAD", "mta-sts.[::1]:x", "//.well-known/../mta-sts.txt")
	f.Add("", "mta-sts.MTA-STS.example.org.", "*")
	p := Policy{Mode: ModeTesting, MX: []string{"mx.example.org"}, MaxAge: time.Hour}
	h := &Handler{Policies: map[string]Policy{"example.org": p}}
	f.Fuzz(func(t *testing.T, method, host, path string) {
		r := httptest.NewRequest("GET", "https://x/", nil)
		r.Method, r.Host, r.URL.Path = method, host, path
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch w.Code {
		case 200:
			if !strings.HasPrefix(strings.ToLower(host), "mta-sts.example.org") || path != WellKnownPath || method != "GET" && method != "HEAD" {
				t.Fatalf("%q %q %q", method, host, path)
			}
		case 404, 405:
		default:
			t.Fatalf("%q %q %q: %d", method, host, path, w.Code)
		}
	})
}
