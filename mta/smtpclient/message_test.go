package smtpclient

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
)

// What is sent as DATA, undone, is the message: with a CRLF at the end if it had
// none. What must not be sent is refused.
func TestDotStuffing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		msg := strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{".", "..", "a", "\r\n", "\r\n.", "\n", "\r", "\xff"})).Draw(rt, "msg"), "")
		var out bytes.Buffer
		bw := bufio.NewWriter(&out)
		w := &dotWriter{w: bw}
		var err error
		rest := []byte(msg)
		for len(rest) > 0 && err == nil {
			n := rapid.IntRange(1, len(rest)).Draw(rt, "piece")
			_, err = w.Write(rest[:n])
			rest = rest[n:]
		}
		if err == nil {
			err = w.finish()
		}
		bare := strings.ContainsAny(strings.ReplaceAll(msg, "\r\n", ""), "\r\n")
		m, merr := Prepare(t.Context(), mailspine.StringContent(msg), nil)
		if merr != nil || m.BareLineEnd != bare || m.EightBit != strings.Contains(msg, "\xff") {
			rt.Fatalf("Prepare: %+v, %v", m, merr)
		}
		if bare {
			if !errors.Is(err, errBareLineEnd) {
				rt.Fatalf("%q: %v", msg, err)
			}
			return
		}
		if err != nil {
			rt.Fatal(err)
		}
		bw.Flush()
		// A message in memory is the same.
		if got, want := string(m.asData()), out.String()+dotLine; got != want {
			rt.Fatalf("%q in memory was sent as %q, not %q", msg, got, want)
		}
		want := msg
		if want != "" && !strings.HasSuffix(want, "\r\n") {
			want += "\r\n"
		}
		var got strings.Builder
		for _, l := range strings.SplitAfter(out.String(), "\r\n") {
			if strings.HasPrefix(l, ".") && l == ".\r\n" {
				rt.Fatalf("%q ends early: %q", msg, out.String())
			}
			got.WriteString(strings.TrimPrefix(l, "."))
		}
		if got.String() != want {
			rt.Fatalf("%q was sent as %q", msg, out.String())
		}
	})
}

// What goes with BDAT is what DATA gives after its dots are undone; a binary message is itself. A message is the same in memory and as a
// stream, and the commands before it are where they belong.
func TestChunk(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		msg := strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{".", "a", "\r\n", "\r\n.", "\n", "\r", "\xff"})).Draw(rt, "msg"), "")
		binary := rapid.Bool().Draw(rt, "binary")
		commands := strings.Repeat("c", rapid.IntRange(0, maxFlight).Draw(rt, "commands"))
		m, err := Prepare(t.Context(), mailspine.StringContent(msg), nil)
		if err != nil {
			rt.Fatal(err)
		}
		if m.BareLineEnd && !binary {
			return
		}
		want := msg
		if !binary && want != "" && !strings.HasSuffix(want, "\r\n") {
			want += "\r\n"
		}
		m.asData() // changes nothing
		if got := string(m.behind([]byte(commands), binary)); got != commands+want || m.chunk(binary) != int64(len(want)) {
			rt.Fatalf("%q: %d octets: %q", msg, m.chunk(binary), got)
		}
		if want == "" {
			return
		}
		var out bytes.Buffer
		bw := bufio.NewWriter(&out)
		w := &chunkWriter{w: bw, binary: binary, left: m.chunk(binary)}
		for rest := []byte(msg); len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(rt, "piece")
			if _, err := w.Write(rest[:n]); err != nil {
				rt.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.finish(); err != nil {
			rt.Fatal(err)
		}
		bw.Flush()
		if out.Len() != len(want)-1 {
			rt.Fatalf("before the leave is there, %d octets of %d are sent", out.Len(), len(want))
		}
		bw.Write(w.last())
		bw.Flush()
		if out.String() != want {
			rt.Fatalf("%q was sent as %q", want, out.String())
		}
	})
}

// A message that is another one when it is sent never gets its last octet.
func TestChunkChanged(t *testing.T) {
	for _, tt := range []struct{ looked, sent string }{
		{"a\r\nb", "a\r\nbb"}, {"a\r\nbb", "a\r\nb"}, {"ab\r\n", "abcd"}, {"abcd", "ab\r\n"}, {"abcd", ""}, {"a\r\n", "a\n\r"}, {"ab\r\n", "abc\r"},
	} {
		m := prepare(t, tt.looked)
		var out bytes.Buffer
		bw := bufio.NewWriter(&out)
		w := &chunkWriter{w: bw, left: m.chunk(false)}
		_, err := w.Write([]byte(tt.sent))
		if err == nil {
			err = w.finish()
		}
		bw.Flush()
		var local *MessageError
		if !errors.As(err, &local) || int64(out.Len()) >= m.chunk(false) {
			t.Errorf("%q in place of %q: %v after %d octets of %d", tt.sent, tt.looked, err, out.Len(), m.chunk(false))
		}
	}
}

// The field of RFC 8689 section 3, also in a message that is not read into memory, and not where it means nothing.
func TestTLSOptional(t *testing.T) {
	pad := strings.Repeat("X-Pad: "+strings.Repeat("y", 70)+"\r\n", 500)
	for _, tt := range []struct {
		head string
		want bool
	}{
		{"TLS-Required: No\r\n", true},
		{"tls-required:no\r\n", true},
		{"Subject: x\r\nTLS-Required:\r\n No\r\nTo: x\r\n", true},
		{"TLS-Required : NO \r\n", true},
		{pad + "TLS-Required: No\r\n", true},
		{pad + pad + "TLS-Required: No\r\n", false}, // beyond what is looked at
		{"TLS-Required: Yes\r\n", false},
		{"TLS-Required: No, thanks\r\n", false},
		{"TLS-Required: No\r\nTLS-Required: No\r\n", false},
		{"X-TLS-Required: No\r\n", false},
		{"Subject: x\r\n TLS-Required: No\r\n", false},
		{"Subject: x\r\n\r\nTLS-Required: No\r\n", false},
		{"", false},
	} {
		for _, body := range []string{"x\r\n", large} {
			if m := prepare(t, tt.head+"\r\n"+body); m.TLSOptional != tt.want {
				t.Errorf("%.80q, %d octets: %v", tt.head, m.Size(), m.TLSOptional)
			}
		}
	}
}

// Memory is used again, and nothing of the message before is left.
func TestMessageBuffer(t *testing.T) {
	buf := prepare(t, strings.Repeat("secret ", 50)).Buffer()
	m, err := Prepare(t.Context(), mailspine.StringContent("x"), buf)
	if err != nil || &m.buf[0] != &buf[0] {
		t.Errorf("another buffer, or %v", err)
	}
	if got := string(m.behind(nil, false)); got != "x\r\n" {
		t.Errorf("got %q", got)
	}
	if prepare(t, large).Buffer() != nil {
		t.Error("a large message has a buffer")
	}
}

func TestPrepareErrors(t *testing.T) {
	for _, tt := range []struct {
		name string
		msg  mailspine.Content
	}{
		{"negative size", sized{mailspine.StringContent("x"), -1}},
		{"short", sized{mailspine.StringContent("x\r\n"), 100}},
		{"long", sized{mailspine.StringContent("x\r\n"), 1}},
		{"gone", broken{}},
	} {
		if m, err := Prepare(t.Context(), tt.msg, nil); err == nil {
			t.Errorf("%s: %+v", tt.name, m)
		}
	}
}

type sized struct {
	mailspine.Content
	n int64
}

func (s sized) Size() int64 { return s.n }

type broken struct{}

func (broken) Size() int64                                 { return 3 }
func (broken) Open(context.Context) (io.ReadCloser, error) { return nil, fmt.Errorf("it is gone") }

// A message is seen in the same way in memory and as a stream.
func FuzzPrepare(f *testing.F) {
	for _, s := range []string{"", "x", "TLS-Required: No\r\n\r\nx\r\n", "Subject: x\r\n\ty\r\nTLS-required :\r\n no\r\n\r\n", ".\r\n..\r\n", "a\rb\n", "\r", "\xff\r\n", "tls-required: no\n\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > InMemory {
			return
		}
		small, err := Prepare(t.Context(), mailspine.BytesContent(b), nil)
		if err != nil {
			t.Fatal(err)
		}
		stream := &Message{size: int64(len(b))}
		if err := stream.scan(t.Context(), iotest.OneByteReader(bytes.NewReader(b))); err != nil {
			t.Fatal(err)
		}
		if small.EightBit != stream.EightBit || small.BareLineEnd != stream.BareLineEnd || small.TLSOptional != stream.TLSOptional ||
			!small.BareLineEnd && small.open != stream.open {
			t.Fatalf("%q: %+v, %+v", b, small, stream)
		}
		if !bytes.Equal(small.behind(nil, true), b) {
			t.Fatalf("%q has become %q", b, small.behind(nil, true))
		}
	})
}
