package tlsrpt

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestHandler(t *testing.T) {
	j, _ := sample().MarshalJSON()
	z, _ := sample().Gzip()
	var got []*Report
	var fail error
	h := &Handler{Logger: quiet, Handle: func(ctx context.Context, r *Received) error {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("no deadline")
		}
		if fail == nil {
			got = append(got, r.Report)
		}
		return fail
	}}
	post := func(body []byte, head ...string) int {
		t.Helper()
		req := httptest.NewRequest("POST", "/", bytes.NewReader(body))
		for i := 0; i < len(head); i += 2 {
			req.Header.Set(head[i], head[i+1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if strings.Contains(w.Body.String(), "tlsrpt") {
			t.Errorf("the text of an error: %q", w.Body)
		}
		return w.Code
	}
	const ct, ce = "Content-Type", "Content-Encoding"
	for _, c := range []struct {
		name string
		body []byte
		head []string
		code int
	}{
		{"gzip", z, []string{ct, MediaTypeGzip}, 201},
		{"JSON", j, []string{ct, MediaTypeJSON}, 201},
		{"JSON with a parameter", j, []string{ct, "application/tlsrpt+json; charset=utf-8"}, 201},
		{"plain JSON", j, []string{ct, "application/json"}, 201},
		{"plain gzip", z, []string{ct, "Application/GZIP"}, 201},
		{"JSON, encoded", z, []string{ct, MediaTypeJSON, ce, "gzip"}, 201},
		{"JSON that says it is gzip", j, []string{ct, MediaTypeGzip}, 201},

		{"no type", z, nil, 415},
		{"a form", z, []string{ct, "application/x-www-form-urlencoded"}, 415},
		{"a broken type", z, []string{ct, "application/"}, 415},
		{"brotli", z, []string{ct, MediaTypeJSON, ce, "br"}, 415},
		{"empty", nil, []string{ct, MediaTypeJSON}, 400},
		{"nonsense", []byte("hello"), []string{ct, MediaTypeJSON}, 400},
		{"cut off", z[:len(z)-9], []string{ct, MediaTypeGzip}, 400},
		{"a bomb", bomb(), []string{ct, MediaTypeGzip}, 413},
		{"long", bytes.Repeat([]byte(" "), MaxReport+1), []string{ct, MediaTypeJSON}, 413},
		{"long gzip", make([]byte, MaxCompressed+1), []string{ct, MediaTypeGzip}, 413},
	} {
		n := len(got)
		if code := post(c.body, c.head...); code != c.code {
			t.Errorf("%s: %d, not %d", c.name, code, c.code)
		}
		if (len(got) > n) != (c.code == 201) {
			t.Errorf("%s: %d reports", c.name, len(got)-n)
		}
	}
	for _, r := range got {
		if !reflect.DeepEqual(r, sample()) {
			t.Errorf("%+v", r)
		}
	}
	fail = errors.New("tlsrpt secret")
	if code := post(z, ct, MediaTypeGzip); code != 503 {
		t.Errorf("a Handle that fails: %d", code)
	}
	h.Handle = nil
	if code := post(z, ct, MediaTypeGzip); code != 503 {
		t.Errorf("no Handle: %d", code)
	}
	for _, m := range []string{"GET", "HEAD", "PUT", "OPTIONS"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(m, "/", nil))
		if w.Code != 405 || w.Header().Get("Allow") != "POST" {
			t.Errorf("%s: %d, %v", m, w.Code, w.Header())
		}
	}
}

// A body of unknown length is bounded while it is read.
func TestHandlerChunked(t *testing.T) {
	h := &Handler{Logger: quiet, Handle: func(context.Context, *Received) error { t.Error("taken"); return nil }}
	s := httptest.NewServer(h)
	defer s.Close()
	body := io.LimitReader(neverEnding(' '), MaxReport*4)
	resp, err := http.Post(s.URL, MediaTypeJSON, body)
	if err != nil {
		return // the connection was closed before the answer came, which is as good
	}
	defer resp.Body.Close()
	if resp.StatusCode != 413 {
		t.Errorf("%s", resp.Status)
	}
}

type neverEnding byte

func (b neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

// A client that sends no more is not waited for.
func TestHandlerSlow(t *testing.T) {
	h := &Handler{Logger: quiet, ReadTimeout: 50 * time.Millisecond, Handle: func(context.Context, *Received) error { t.Error("taken"); return nil }}
	s := httptest.NewServer(h)
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/tlsrpt+gzip\r\nContent-Length: 1000\r\n\r\n\x1f\x8b")
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 400 ") {
		t.Errorf("%q, %v", b, err)
	}
}

// Only so many are in memory at a time.
func TestHandlerConcurrent(t *testing.T) {
	z, _ := sample().Gzip()
	release, inside := make(chan struct{}), make(chan struct{}, 10)
	h := &Handler{Logger: quiet, Concurrent: 2, Handle: func(context.Context, *Received) error {
		inside <- struct{}{}
		<-release
		return nil
	}}
	post := func() *httptest.ResponseRecorder {
		req := httptest.NewRequest("POST", "/", bytes.NewReader(z))
		req.Header.Set("Content-Type", MediaTypeGzip)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if w := post(); w.Code != 201 {
				t.Errorf("%d", w.Code)
			}
		})
		<-inside
	}
	if w := post(); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("a third one: %d", w.Code)
	}
	close(release)
	wg.Wait()
	if w := post(); w.Code != 201 {
		t.Errorf("afterwards: %d", w.Code)
	}
}
