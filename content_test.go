package mailspine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func readAll(t testing.TB, c Content) string {
	t.Helper()
	b, err := ReadContent(context.Background(), c, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// plainContent hides Seek, so that Splice has to skip.
type plainContent struct{ Content }

func (p plainContent) Open(ctx context.Context) (io.ReadCloser, error) {
	r, err := p.Content.Open(ctx)
	return struct {
		io.Reader
		io.Closer
	}{r, r}, err
}

func TestPrependAndEdit(t *testing.T) {
	ctx := context.Background()
	msg := "Subject: hello\r\nBcc: secret@x\r\n folded\r\nAuthentication-Results: evil\r\nFrom: a@b\r\n\r\nBcc: not a header\r\n"
	for _, base := range []Content{StringContent(msg), plainContent{StringContent(msg)}} {
		c := Prepend(Prepend(base, []byte("A: 1\r\n")), []byte("B: 2\r\n"))
		if got := readAll(t, c); got != "B: 2\r\nA: 1\r\n"+msg {
			t.Fatalf("prepended: %q", got)
		}
		head, b, off := Splice(c)
		if string(head) != "B: 2\r\nA: 1\r\n" || b != base && readAll(t, b) != msg || off != 0 {
			t.Fatalf("Splice: %q %v %d", head, b, off)
		}
		e, err := Edit(ctx, c, HeaderEdit{
			Prepend: []byte("Received: here\r\n"),
			Append:  []byte("X-Last: 1\r\n"),
			Drop:    func(f HeaderField) bool { return f.Is("bcc") || f.Is("AUTHENTICATION-RESULTS") || f.Is("A") },
		})
		if err != nil {
			t.Fatal(err)
		}
		want := "Received: here\r\nB: 2\r\nSubject: hello\r\nFrom: a@b\r\nX-Last: 1\r\n\r\nBcc: not a header\r\n"
		if got := readAll(t, e); got != want {
			t.Fatalf("edited: %q", got)
		}
		if e.Size() != int64(len(want)) {
			t.Fatalf("Size %d, want %d", e.Size(), len(want))
		}
		e2, err := Edit(ctx, e, HeaderEdit{Drop: func(f HeaderField) bool { return f.Is("B") }, Prepend: []byte("C: 3\r\n")})
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, Prepend(e2, []byte("D: 4\r\n"))); got != "D: 4\r\nC: 3\r\n"+strings.Replace(want, "B: 2\r\n", "", 1) {
			t.Fatalf("edited twice: %q", got)
		}
		// Readers are independent, and open again and again.
		r1, _ := e.Open(ctx)
		r2, _ := e.Open(ctx)
		io.CopyN(io.Discard, r1, 10)
		b2, _ := io.ReadAll(r2)
		b1, _ := io.ReadAll(r1)
		if string(b2) != want || string(b1) != want[10:] {
			t.Fatal("readers share their place")
		}
	}
}

func TestContentTooShort(t *testing.T) {
	c := NewSpliced([]byte("A: 1\r\n"), plainContent{StringContent("abc")}, 10)
	if _, err := c.Open(context.Background()); err == nil {
		t.Error("a body shorter than its offset opens")
	}
	if _, err := ReadContent(context.Background(), StringContent("12345"), 4); err == nil {
		t.Error("ReadContent passed its bound")
	}
}

func TestReadHeader(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		in    string
		names []string
		body  int64
	}{
		{"", nil, 0},
		{"\r\nbody", nil, 0},
		{"A: 1\r\nB: 2\r\n\r\nbody", []string{"A", "B"}, 12},
		{"A: 1\nB: 2\n\nbody", []string{"A", "B"}, 10},
		{"A: 1\r\nbody without a gap: x\x00y\r\n", []string{"A"}, 6},
		{"A : 1\r\n\r\n", []string{"A"}, 7},
		{" leading fold\r\nA: 1\r\n\r\n", nil, 0},
		{"A: 1", []string{"A"}, 4},
		{"A: 1\r\n\tfold\r\n fold\r\n\r\n", []string{"A"}, 20},
		{": no name\r\n\r\n", nil, 0},
	} {
		h, err := ReadHeader(ctx, StringContent(c.in), 0)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		var names []string
		raw := ""
		for _, f := range h.Fields {
			names = append(names, f.Name)
			raw += string(f.Raw)
		}
		if strings.Join(names, ",") != strings.Join(c.names, ",") || h.Body != c.body || raw != c.in[:c.body] {
			t.Errorf("%q: fields %q, body at %d", c.in, names, h.Body)
		}
	}
	if _, err := ReadHeader(ctx, StringContent("A: "+strings.Repeat("x", 200)+"\r\n\r\n"), 100); !errors.Is(err, ErrHeaderTooLarge) {
		t.Errorf("a header over the bound: %v", err)
	}
	if _, err := ReadHeader(ctx, StringContent(strings.Repeat("A: 1\r\n", MaxHeaderFields+1)+"\r\n"), 0); !errors.Is(err, ErrHeaderTooLarge) {
		t.Errorf("too many fields: %v", err)
	}
	if h, err := ReadHeader(ctx, StringContent("A: 1\r\n\r\n"+strings.Repeat("x", 1000)), 100); err != nil || h.Body != 6 {
		t.Errorf("the bound is for the block, not the body: %v", err)
	}
	f := HeaderField{Name: "Subject", Raw: []byte("Subject: a\r\n b\r\n")}
	if f.Value() != "a b" {
		t.Errorf("unfolded: %q", f.Value())
	}
}

// Whatever is dropped and added, the body is the same octets, and nothing
// but the dropped fields is missing.
func TestEditKeepsBody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		line := rapid.SampledFrom([]string{"A: 1\r\n", "B: 2\r\n", "\tfold\r\n", "C: 3\n", "\r\n", "text\r\n", "\n", "A:\r\n", "x"})
		msg := strings.Join(rapid.SliceOfN(line, 0, 12).Draw(t, "lines"), "")
		var c Content = StringContent(msg)
		for range rapid.IntRange(0, 3).Draw(t, "edits") {
			drop := rapid.SampledFrom([]string{"A", "B", "C", ""}).Draw(t, "drop")
			before := readAllRapid(t, c)
			h, err := ReadHeader(context.Background(), c, 0)
			if err != nil {
				t.Fatal(err)
			}
			want := "P: 0\r\n"
			for _, f := range h.Fields {
				if !f.Is(drop) {
					want += string(f.Raw)
				}
			}
			if !strings.HasSuffix(want, "\n") && want != before[:h.Body] {
				// Only an edit that drops completes a field that the message cut off.
				for _, f := range h.Fields {
					if f.Is(drop) {
						want += "\r\n"
						break
					}
				}
			}
			want += before[h.Body:]
			c, err = Edit(context.Background(), c, HeaderEdit{Prepend: []byte("P: 0\r\n"), Drop: func(f HeaderField) bool { return f.Is(drop) }})
			if err != nil {
				t.Fatal(err)
			}
			if got := readAllRapid(t, c); got != want {
				t.Fatalf("edit of %q without %s: %q, want %q", before, drop, got, want)
			}
		}
	})
}

func readAllRapid(t *rapid.T, c Content) string {
	b, err := ReadContent(context.Background(), c, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSpoolStager(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	for _, size := range []int{0, 10, 100, 101, 5000} {
		st, err := (&SpoolStager{Memory: 100, Dir: dir}).Stage(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte("x"), size)
		for i := 0; i < size; i += 33 {
			if _, err := st.Write(want[i:min(i+33, size)]); err != nil {
				t.Fatal(err)
			}
		}
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		if len(files) > 0 != (size > 100) {
			t.Errorf("%d octets: files %v", size, files)
		}
		for _, f := range files {
			if fi, _ := os.Stat(f); fi.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", fi.Mode())
			}
		}
		c, err := st.Content()
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, c); got != string(want) {
			t.Errorf("%d octets: read back %d", size, len(got))
		}
		if _, err := st.Write([]byte("x")); err == nil {
			t.Error("a sealed stage can be written to")
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) > 0 {
			t.Errorf("left behind: %v", files)
		}
		if _, err := st.Content(); err == nil {
			t.Error("a closed stage has content")
		}
	}
}

func FuzzReadHeader(f *testing.F) {
	f.Add([]byte("A: 1\r\n b\r\n\r\nbody"), 100)
	f.Add([]byte(": \n\x00"), 3)
	f.Fuzz(func(t *testing.T, b []byte, max int) {
		h, err := ParseHeader(bytes.NewReader(b), max%4096)
		if err != nil {
			return
		}
		var raw []byte
		for _, f := range h.Fields {
			if f.Name == "" {
				t.Fatal("a field without a name")
			}
			raw = append(raw, f.Raw...)
		}
		if !bytes.Equal(raw, b[:h.Body]) {
			t.Fatalf("fields are %q, block is %q", raw, b[:h.Body])
		}
	})
}
