package report

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// parts reads what a splitter finds in the body of a message, as "type encoding: body".
func parts(t testing.TB, r io.Reader, boundary string) (list []string) {
	t.Helper()
	s := newSplitter(r)
	if _, err := s.header(); err != nil {
		return nil
	}
	s.split(boundary)
	for {
		e := s.next()
		if e == nil {
			return list
		}
		b, err := io.ReadAll(s) // not decoded
		if err != nil {
			t.Fatalf("part %d: %v", len(list), err)
		}
		list = append(list, e.Header.Get("Content-Type")+" "+e.Header.Get("Content-Transfer-Encoding")+": "+string(b))
	}
}

// What real systems send, and some do not.
func TestParts(t *testing.T) {
	long := strings.Repeat("y", pieceSize)
	for name, tt := range map[string]struct {
		in   string
		want []string
	}{
		"usual":                       {"A: b\n\n--b\nContent-Type: x/y\n\none\n\n--b\n\ntwo\n--b--\n", []string{"x/y : one\n", " : two"}},
		"CRLF":                        {"A: b\r\n\r\n--b\r\nContent-Type: x/y\r\n\r\none\r\n\r\n--b\r\n\r\ntwo\r\n--b--\r\n", []string{"x/y : one\r\n", " : two"}},
		"both":                        {"A: b\n\n--b\r\n\none\r\n--b\n\r\ntwo\n--b--", []string{" : one", " : two"}},
		"preamble and epilogue":       {"A: b\n\nnot\n-- b\n--bb\n--b\n\none\n--b--\n--b\n\nnot\n", []string{" : one"}},
		"cut off":                     {"A: b\n\n--b\n\none\n\ntwo\n", []string{" : one\n\ntwo\n"}},
		"cut off in a header":         {"A: b\n\n--b\nContent-Type: x/y", []string{"x/y : "}},
		"cut off in a boundary":       {"A: b\n\n--b\n\none\n--", []string{" : one\n--"}},
		"cut off after a CR":          {"A: b\n\n--b\n\none\r", []string{" : one\r"}},
		"space after the boundary":    {"A: b\n\n--b  \n\none\n--b-- \t\n", []string{" : one"}},
		"much of it":                  {"A: b\n\n--b\n\none\n--b" + strings.Repeat(" ", pieceSize) + "\n--b--", []string{" : one\n--b" + strings.Repeat(" ", pieceSize)}},
		"text like a boundary":        {"A: b\n\n--b\n\none\n--bb\n--b-\n--b--x\n --b\nx--b\n--b--", []string{" : one\n--bb\n--b-\n--b--x\n --b\nx--b"}},
		"empty parts":                 {"A: b\n\n--b\n--b\n\n--b\n\n\n--b--", []string{" : ", " : ", " : "}},
		"no empty line":               {"A: b\n\n--b\nHello there\nContent-Type: x/y\n--b--", []string{" : Hello there\nContent-Type: x/y"}},
		"no empty line, cut off":      {"A: b\n\n--b\nContent-Type: x/y\n--b--", []string{"x/y : "}},
		"a long line for a header":    {"A: b\n\n--b\n" + long + long + "\n--b--", []string{" : " + long + long}},
		"folded":                      {"A: b\n\n--b\ncontent-type :\n x/y;\r\n\tz=1  \nCONTENT-TRANSFER-ENCODING:8bit\n\none\n--b--", []string{"x/y; z=1 8bit: one"}},
		"the first counts":            {"A: b\n\n--b\nContent-Type: x/y\nB: c\n d\nContent-Type: z/z\n e\n\none\n--b--", []string{"x/y : one"}},
		"no name":                     {"A: b\n\n--b\n: x\nContent-Type: x/y\n\none\n--b--", []string{"x/y : one"}},
		"a long field that counts":    {"A: b\n\n--b\nContent-Type: " + long + "\n x\n\none\n--b--", []string{" : one"}},
		"and in folds":                {"A: b\n\n--b\nContent-Type: x\n" + strings.Repeat(" yyyyyyy\n", maxField/8) + "\none\n--b--", []string{" : one"}},
		"a long field that does not":  {"A: b\n\n--b\nB: " + long + long + "\nContent-Type: x/y\n\none\n--b--", []string{"x/y : one"}},
		"a header that is too large":  {"A: b\n\n--b\n\none\n--b\n" + strings.Repeat("a:\n", maxHeader/3+1) + "\ntwo\n--b--", []string{" : one"}},
		"no end of the first header":  {"A: b\n--b\n\none", []string{" : one"}},
		"nothing":                     {"", nil},
		"a boundary and nothing else": {"\n--b", []string{" : "}},
	} {
		if got := parts(t, strings.NewReader(tt.in), "b"); !cmp.Equal(got, tt.want) {
			t.Errorf("%s: %.300q, want %.300q", name, got, tt.want)
		}
		if got := parts(t, iotest.OneByteReader(strings.NewReader(tt.in)), "b"); !cmp.Equal(got, tt.want) {
			t.Errorf("%s, octet by octet: %.300q, want %.300q", name, got, tt.want)
		}
	}
	for _, boundary := range []string{"", strings.Repeat("b", maxBoundary+1)} {
		if got := parts(t, strings.NewReader("\n--"+boundary+"\n\none\n--"+boundary+"--\n"), boundary); got != nil {
			t.Errorf("a boundary of %d octets: %.300q", len(boundary), got)
		}
	}
}

// Bodies are what they were, wherever the pieces end in which they are read.
func TestPartsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		eol := rapid.SampledFrom([]string{"\n", "\r\n"}).Draw(t, "eol")
		bodies := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			var b strings.Builder
			for range rapid.IntRange(0, 6).Draw(t, "chunks") {
				b.WriteString(rapid.SampledFrom([]string{"\r\n", "\n", "\r", "-", "--", "--b\r", "b", " ", "x"}).Draw(t, "chunk"))
				b.WriteString(strings.Repeat("x", rapid.SampledFrom([]int{0, 0, 1, pieceSize - 2, pieceSize - 1, pieceSize}).Draw(t, "fill")))
			}
			return strings.TrimRight(b.String(), "\r") // a CR before LF is half of a CRLF
		}), 1, 4).Draw(t, "bodies")
		in := "A: b" + eol + eol
		for _, b := range bodies {
			in += "--bound" + eol + eol + b + eol
		}
		in += "--bound--" + eol
		s := newSplitter(strings.NewReader(in))
		if _, err := s.header(); err != nil {
			t.Fatal(err)
		}
		s.split("bound")
		for i, want := range bodies {
			if s.next() == nil {
				t.Fatalf("part %d is not there", i)
			}
			// Some of it is read, and next passes over the rest.
			p := make([]byte, rapid.SampledFrom([]int{0, 1, 7, pieceSize, len(want), len(want) + 9}).Draw(t, "read"))
			n, err := io.ReadFull(s, p)
			if n != min(len(p), len(want)) || string(p[:n]) != want[:n] {
				t.Fatalf("part %d: %d octets and %v, of %d: %q", i, n, err, len(want), p[:n])
			}
			if len(p) > len(want) && n != len(want) {
				t.Fatalf("part %d: %d octets, want %d", i, n, len(want))
			}
		}
		if s.next() != nil {
			t.Fatal("a part too many")
		}
	})
}

// A splitter is total, and the same whatever pieces it gets.
func FuzzParts(f *testing.F) {
	f.Add([]byte("A: b\r\n\r\n--b\r\nContent-Type: x/y\r\n\r\none\r\n\r\n--b\r\n\r\ntwo\r\n--b--\r\n"))
	f.Add([]byte("\n--b\n: x\n y\nContent-Type: x\n z\n--b\n--b--"))
	f.Add([]byte("\r\r\n--b\r\n\r\r\n\r--b\r"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := parts(t, bytes.NewReader(b), "b")
		if again := parts(t, iotest.OneByteReader(bytes.NewReader(b)), "b"); !cmp.Equal(got, again) {
			t.Fatalf("%q, and in pieces %q", got, again)
		}
		size := 0
		for _, p := range got {
			size += len(p) - len(" : ")
		}
		if size > len(b) {
			t.Fatalf("%d octets of %d", size, len(b))
		}
	})
}
