package smtpclient

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

// A reply of a stranger: it is read in bounds, and what is kept of it can be shown.
func FuzzReply(f *testing.F) {
	for _, s := range []string{
		"220 mx.example ESMTP\r\n", "250-mx\r\n250-SIZE 1000\r\n250 HELP\r\n", "550 5.1.1 no\r\n", "550-5.7.1 a\r\n550 5.7.1 b\r\n", "354\r\n",
		"421 4.3.2\n", "250-\r\n", "999 x\r\n", "25", "250-a\r\n251 b\r\n", "550 5.1.1\r\n", "550 \x1b[0m\x00\xff\r\n", "250" + strings.Repeat("x", 5000),
		strings.Repeat("250-x\r\n", 300),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		br := bufio.NewReaderSize(bytes.NewReader(b), maxReplyLine)
		r, size, err := readReply(br, func(l string) { presentable(t, l, maxReplyLine) })
		if size > len(b) || size > maxReplySize+maxReplyLine || size == 0 && len(b) > 0 {
			t.Fatalf("%d octets of %d", size, len(b))
		}
		if err != nil {
			if !isProtocol(err) && err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if r.Code < 200 || r.Code > 599 || len(r.Lines) == 0 {
			t.Fatalf("%+v", r)
		}
		if !r.Enhanced.IsZero() && r.Enhanced[0] != r.Code/100 {
			t.Fatalf("code %d has the enhanced code %v", r.Code, r.Enhanced)
		}
		presentable(t, r.String(), maxReplyText)
		for _, l := range strings.Split(r.Message(), "\n") {
			presentable(t, l, maxReplyText)
		}
	})
}

func presentable(t *testing.T, s string, max int) {
	// Cleaning may make an octet that is not UTF-8 into one that is; nothing grows otherwise.
	if len(s) > max || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
		t.Fatalf("not fit to be shown: %q", s)
	}
}

// What a server says, as it is kept and shown.
func TestReply(t *testing.T) {
	long := strings.Repeat("w\u00f6rter ", 500)
	for _, tt := range []struct{ raw, reply, message string }{
		{"550 5.1.1 a\x1b[31mred\x00\x8f\r\n", "550 5.1.1 a?[31mred??", "a?[31mred??"},
		{"550-5.1.1 one\r\n550-5.1.1\r\n550 5.1.1 three\r\n", "550 5.1.1 one  three", "one\n\nthree"},
		{"550\r\n", "550", ""},
		{"550 bare LF\n", "550 bare LF", "bare LF"},
		{"550 2.1.5 another class\r\n", "550 2.1.5 another class", "2.1.5 another class"},
		{"550 " + long + "\r\n", cut("550 "+long, 1000), strings.TrimSpace(cut(long, 1000))},
	} {
		r, _, err := readReply(bufio.NewReaderSize(strings.NewReader(tt.raw), maxReplyLine), nil)
		if err != nil || r.String() != tt.reply || r.Message() != tt.message {
			t.Errorf("%q: %v\nreply %q, want %q\nmessage %q, want %q", tt.raw, err, r.String(), tt.reply, r.Message(), tt.message)
		}
	}
}
