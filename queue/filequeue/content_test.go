package filequeue

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

// stored puts a message whose content is head, then a large stage without its first octets, and returns what it is.
func stored(t *testing.T, s *Store, id mailspine.MsgID, head string, skip int) string {
	t.Helper()
	st, err := s.Stage(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	field := "X-Gone: " + strings.Repeat("x", max(skip-10, 0)) + "\r\n"
	if skip == 0 {
		field = ""
	}
	rest := "Subject: large\r\n\r\n" + strings.Repeat("0123456789abcd\r\n", 5000)
	if _, err := io.WriteString(st, field+rest); err != nil {
		t.Fatal(err)
	}
	c, err := st.Content()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, newMessage(id, "x: ann"), mailspine.NewSpliced([]byte(head), c, int64(len(field)))); err != nil {
		t.Fatal(err)
	}
	return head + rest
}

// A body with a file is compared with its checksum by who reads it from the first octet to the
// last, in whatever pieces; with whatever before it, and whatever left out.
func TestBodyChecked(t *testing.T) {
	for _, head := range []string{"", "Received: here\r\n", strings.Repeat("X: y\r\n", 9000)} {
		for _, skip := range []int{0, 10, 500, 40_000} {
			d := new(durabletest.Disk)
			s := mustOpen(t, "spool", &Options{fs: d, InlineMax: 1 << 10, Logger: quiet()})
			want := stored(t, s, "a", head, skip)
			open := func() io.ReadSeekCloser { return must(s.Open(ctx, "a")).(io.ReadSeekCloser) }
			ways := map[string]func(io.Reader) io.Reader{
				"whole":   func(r io.Reader) io.Reader { return r },
				"halves":  iotest.HalfReader,
				"octets":  iotest.OneByteReader,
				"dataerr": iotest.DataErrReader,
				"random":  func(r io.Reader) io.Reader { return &randomReader{r} },
			}
			for way, f := range ways {
				r := open()
				if b, err := io.ReadAll(f(r)); err != nil || string(b) != want {
					t.Fatalf("head %d, skip %d, %s: %d octets of %d, %v", len(head), skip, way, len(b), len(want), err)
				}
				r.Close()
			}
			name := "spool/bodies/0000000000000001"
			b := must(durable.ReadFile(d, name, 1<<30))
			for _, at := range []int{0, skip / 2, skip, len(b) / 2, len(b) - 1} {
				bad := bytes.Clone(b)
				bad[at] ^= 4
				overwrite(t, d, name, bad)
				var ce *durable.CorruptError
				for way, f := range ways {
					r := open()
					got, err := io.ReadAll(f(r))
					if !errors.As(err, &ce) || len(got) >= len(want) || ce.Name != name {
						t.Fatalf("head %d, skip %d, octet %d rotten, %s: %d octets of %d, %v", len(head), skip, at, way, len(got), len(want), err)
					}
					if n, err := r.Read(make([]byte, 10)); n != 0 || !errors.As(err, &ce) {
						t.Fatalf("the error is forgotten: %d, %v", n, err)
					}
					r.Close()
				}
				// Also who knows the size and does not ask for the end.
				r := open()
				if n, err := io.CopyN(io.Discard, r, int64(len(want))); !errors.As(err, &ce) {
					t.Fatalf("CopyN: %d, %v", n, err)
				}
				// Who begins anew is told anew, who begins elsewhere is not.
				if _, err := r.Seek(0, io.SeekStart); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadAll(r); !errors.As(err, &ce) {
					t.Fatalf("after Seek: %v", err)
				}
				if _, err := r.Seek(int64(len(want)-100), io.SeekStart); err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(r); err != nil || len(got) != 100 {
					t.Fatalf("the last 100 octets: %d, %v", len(got), err)
				}
				r.Close()
			}
		}
	}
}

type randomReader struct{ r io.Reader }

func (r *randomReader) Read(p []byte) (int, error) {
	return r.r.Read(p[:min(len(p), rand.IntN(5000))])
}

// Content in the journal is compared with its checksum before the first octet is given.
func TestJournalBodyChecked(t *testing.T) {
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", &Options{fs: d, Logger: quiet()})
	mustPut(t, s, newMessage("a-m", "x: ann"))
	mustPut(t, s, newMessage("b-m", "x: ann"))
	name := segments(t, d)[0]
	f := must(d.OpenFile(name, os.O_RDWR, 0))
	b := must(durable.ReadFile(d, name, 1<<30))
	at := bytes.Index(b, []byte(bodyOf("a-m")))
	if at < 0 {
		t.Fatal("the content is not in the journal")
	}
	for _, i := range []int{at, at + 2500, at + len(bodyOf("a-m")) - 1} {
		bad := b[i] ^ 0x20
		if _, err := f.WriteAt([]byte{bad}, int64(i)); err != nil {
			t.Fatal(err)
		}
		var ce *durable.CorruptError
		if _, err := s.Open(ctx, "a-m"); !errors.As(err, &ce) {
			t.Errorf("octet %d of the content is rotten: %v", i-at, err)
		}
		if _, err := f.WriteAt(b[i:i+1], int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []mailspine.MsgID{"a-m", "b-m"} {
		if got := string(must(io.ReadAll(must(s.Open(ctx, id))))); got != bodyOf(id) {
			t.Errorf("%s has %d octets", id, len(got))
		}
	}
}
