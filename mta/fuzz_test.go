package mta

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
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
		br := bufio.NewReaderSize(bytes.NewReader(b), clientBuffer)
		r, err := readReply(br, func(l string) { presentable(t, l, maxReplyLine) })
		if err != nil {
			if !isProtocol(err) && err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if r.code < 200 || r.code > 599 || len(r.lines) == 0 {
			t.Fatalf("%+v", r)
		}
		if !r.enhanced.IsZero() && r.enhanced[0] != r.code/100 {
			t.Fatalf("code %d has the enhanced code %v", r.code, r.enhanced)
		}
		presentable(t, r.String(), maxReplyText)
		for _, l := range strings.Split(r.message(), "\n") {
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

// Whole sessions with a server that says anything, of two deliveries, the second one over the same connection if it was
// kept: there is a result for every
// recipient, and "taken" only if the server said so to a final dot.
func FuzzDialogue(f *testing.F) {
	for _, s := range []string{
		goodDialogue,
		"220 hi\r\n500 what\r\n250 hi\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n550 spam\r\n",
		"220 hi\r\n250-hi\r\n250-STARTTLS\r\n250 SIZE 5\r\n220 go\r\n", "220 hi\r\n250-hi\r\n250 STARTTLS\r\n454 no\r\n250 ok\r\n250 ok\r\n452 4.5.3 x\r\n354 go\r\n250 a\r\n250 b\r\n250 c\r\n354 go\r\n250 d\r\n",
		"220 hi\r\n250-hi\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n250 done\r\n250 ok\r\n450 no\r\n550 no\r\n354 go\r\n250 nobody\r\n221 bye\r\n",
		"220 hi\r\n250-hi\r\n250 PIPELINING\r\n250 ok\r\n550 no\r\n550 no\r\n503 no\r\n250 reset\r\n250 ok\r\n250 ok\r\n452 4.5.3 x\r\n354 go\r\n250 a\r\n250 ok\r\n250 ok\r\n354 go\r\n250 b\r\n",
		"220 hi\r\n250-hi\r\n250 PIPELINING\r\n550 no\r\n250 ok\r\n250 ok\r\n354 go\r\n250 nobody\r\n421 bye\r\n",
		goodDialogue + goodDialogue,
		"421 bye\r\n", "554 no\r\n", "", "220 hi\r\n250-hi\r\n250 STARTTLS\r\n354 no\r\n250 ok\r\n",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, early bool) {
		conns := 0
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		r := n.relay()
		r.Dial = func(context.Context, string, string) (net.Conn, error) {
			conns++
			return newCanned(b, early), nil
		}
		r.IdleTimeout = 0
		defer r.CloseIdle()
		env := envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example")
		for n, msg := range []string{"x\r\n", large} {
			a := &attempt{}
			err := r.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent(msg))
			for i := range env.Recipients {
				e := mailspine.ErrorAt(err, i)
				if e == nil && a.commits == 0 {
					t.Fatal("taken without a final dot")
				}
				if e == nil && !strings.HasPrefix(a.receipts[i].Reply, "2") {
					t.Fatalf("taken with the reply %q", a.receipts[i].Reply)
				}
				if e != nil && mailspine.Status(e).Code < 400 {
					t.Fatalf("status %v", mailspine.Status(e))
				}
			}
			if conns > 6 {
				t.Fatalf("%d connections", conns)
			}
			if string(b) == goodDialogue && !early && n == 0 && e0(err) != nil {
				t.Fatalf("the good dialogue fails: %v", err)
			}
			conns = 0
		}
	})
}

// large is a message that is sent as a stream.
var large = strings.Repeat("x\r\n", smallMessage/2)

const goodDialogue = "220 hi\r\n250 hi\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 done\r\n221 bye\r\n"

func e0(err error) error { return mailspine.ErrorAt(err, 0) }

// A canned connection is a server that says what it has to say, whatever it
// hears: one reply to each command, also if several come at once. While a message is sent to it, it is silent, unless it is early.
// Otherwise a read of what it has not said times out at once.
type canned struct {
	net.Conn // nil: nothing else is called
	early    bool

	mu     sync.Mutex
	cond   *sync.Cond
	data   []byte
	asked  []string // what may be replied to
	inData bool     // after a 354 to DATA
	past   bool     // the watcher was told to stop
}

func newCanned(b []byte, early bool) *canned {
	c := &canned{data: b, early: early, asked: []string{"greeting"}}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *canned) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.asked) == 0 {
		if !c.inData || c.past {
			return 0, os.ErrDeadlineExceeded
		}
		c.cond.Wait()
	}
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(c.data))
	if i := bytes.IndexByte(c.data[:n], '\n'); i >= 0 {
		n = i + 1
		if n < 5 || c.data[3] != '-' { // the last line of a reply
			c.inData = c.inData || c.asked[0] == "DATA" && bytes.HasPrefix(c.data, []byte("354"))
			c.asked = c.asked[1:]
		}
	}
	copy(p, c.data[:n])
	c.data = c.data[n:]
	return n, nil
}

func (c *canned) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := c.inData && (string(p) == dotLine || bytes.HasSuffix(p, []byte("\r\n"+dotLine)))
	switch {
	case !c.inData:
		c.asked, c.past = append(c.asked, strings.Split(strings.TrimSuffix(string(p), "\r\n"), "\r\n")...), false
	case end || c.early:
		c.asked = append(c.asked, "message")
	}
	c.cond.Broadcast()
	c.inData = c.inData && !end
	return len(p), nil
}

func (c *canned) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past = c.past || t.Before(time.Now()) && !t.IsZero()
	c.cond.Broadcast()
	return nil
}

func (c *canned) Close() error                     { return nil }
func (c *canned) SetDeadline(time.Time) error      { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }
func (c *canned) LocalAddr() net.Addr              { return nil }

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
		facts, ferr := inspect(t.Context(), mailspine.StringContent(msg), nil)
		if ferr != nil || facts.bare != bare || !bare && facts.eightBit != strings.Contains(msg, "\xff") {
			rt.Fatalf("inspect: %+v, %v", facts, ferr)
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
		if got, want := string(facts.wire), out.String()+dotLine; got != want {
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

func FuzzORcpt(f *testing.F) {
	for _, s := range []string{"rfc822;joe@example.org", "utf-8;jürgen@example.org", "rfc822;a+b=c@example.org", ";", "x", "rfc822; ", "rfc822;\r\nRSET"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if o := orcpt(s); strings.ContainsAny(o, " \r\n\x00") || !isPrintable(o) {
			t.Fatalf("%q became %q", s, o)
		}
		if x := xtext(s); strings.ContainsAny(x, " \r\n=") {
			t.Fatalf("%q became %q", s, x)
		}
	})
}
