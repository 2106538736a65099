package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// Whatever a message has in it, what is printed of it has nothing that a terminal obeys.
func FuzzPrintable(f *testing.F) {
	f.Add([]byte(fakeContent))
	f.Add([]byte("\r\n\r\n\r\r\n\n\x00\x7f\xc2\x9b\xe2\x80\xa8\xe2\x80\xae\xff\xfe"))
	f.Add([]byte(strings.Repeat("a: b\r\n", 20_000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, header := range []bool{false, true} {
			var out bytes.Buffer
			w := bufio.NewWriter(&out)
			more, err := copyPrintable(w, bytes.NewReader(b), header, 1000)
			if err != nil {
				t.Fatal(err)
			}
			if more && len(b) <= 1000 {
				t.Fatal("more of nothing")
			}
			if !utf8.Valid(out.Bytes()) {
				t.Fatalf("%q is no UTF-8", out.String())
			}
			for _, c := range out.String() {
				if c != '\n' && drives(c) {
					t.Fatalf("%q in %q", c, out.String())
				}
			}
			if header && strings.Contains(out.String(), "\n\n") {
				t.Fatalf("more than a header: %q", out.String())
			}
		}
		if s := printable(string(b)); strings.ContainsFunc(s, drives) {
			t.Fatalf("%q", s)
		}
		// JSON says the same as it would without our escapes.
		var out bytes.Buffer
		if err := writeJSON(&out, map[string]string{string(b): string(b)}); err != nil {
			t.Fatal(err)
		}
		if s := strings.TrimSuffix(out.String(), "\n"); strings.ContainsFunc(s, drives) {
			t.Fatalf("%q", s)
		}
		plain, err := json.Marshal(map[string]string{string(b): string(b)})
		if err != nil {
			t.Fatal(err)
		}
		var got, want map[string]string
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatalf("%q: %v", out.String(), err)
		}
		if err := json.Unmarshal(plain, &want); err != nil {
			t.Fatal(err)
		}
		for k, v := range want {
			if got[k] != v {
				t.Fatalf("%q became %q", v, got[k])
			}
		}
	})
}

// A header that has no end is cut, and that is said.
func TestQueueLongHeader(t *testing.T) {
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	tl := &queueTool{}
	if err := tl.showContent(w, strings.NewReader(strings.Repeat("X: y\r\n", maxShownHeader))); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	if !strings.HasSuffix(out.String(), "-body shows all\n") || out.Len() > maxShownHeader+100 {
		t.Errorf("%d octets, ...%q", out.Len(), out.String()[out.Len()-100:])
	}
}
