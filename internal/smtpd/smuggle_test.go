package smtpd

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A careless relay before us passes what it believes to be one message, with an
// odd line end around a dot in it; behind that is a second message that no such
// relay has checked (CVE-2023-51764 Postfix, CVE-2023-51765 Sendmail,
// CVE-2023-51766 Exim). Nothing of it may become a transaction.
func TestSmuggling(t *testing.T) {
	const evil = "MAIL FROM:<admin@example.com>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\nevil\r\n.\r\n"
	shapes := []string{
		"\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r.\r", "\r\n.\r", "\n.\r", "\r.\n", "\r\n.\r\r\n", "\r\n\r.\r\n",
		"\r\r\n.\r\n", // has the real end in it: the message ends there, is refused, and the connection is closed
		"\r\n.\x00\r\n", "\r\n\x00.\r\n", "\r\n .\r\n", "\r\n. \r\n", "\r\n..\r\n", "\n\n.\n\n", "\r\n.\n\r\n", "\n.\n.\n",
	}
	for _, tls := range []bool{false, true} {
		for _, shape := range shapes {
			t.Run(fmt.Sprintf("tls=%v/%q", tls, shape), func(t *testing.T) {
				r := &recorder{}
				s := &Server{Handler: r, TLSConfig: testTLS()}
				addr := start(t, s)
				c := dialTo(t, addr)
				c.expect("220 ")
				if tls {
					c.startTLS()
				}
				c.cmd("EHLO relay.example", "250-")
				c.cmd("MAIL FROM:<joe@example.com>", "250 ")
				c.cmd("RCPT TO:<ann@example.org>", "250 ")
				c.cmd("DATA", "354 ")
				c.send("Subject: outer\r\n\r\nhello" + shape + evil + "NOOP\r\n")
				// The dot line at the end of evil is the first real end, except in the
				// one shape. Harmless shapes are data like any other, and taken.
				reply := c.reply()
				harmless := strings.Trim(shape, "\r\n. ") == "" && !strings.Contains(strings.ReplaceAll(shape, "\r\n", ""), "\n") &&
					!strings.Contains(strings.ReplaceAll(shape, "\r\n", ""), "\r")
				switch {
				case harmless:
					if !strings.HasPrefix(reply, "250 ") {
						t.Errorf("reply %q", reply)
					}
					c.expect("250 2.0.0 Ok") // NOOP
				case strings.Contains(shape, "\x00"):
					if !strings.HasPrefix(reply, "554 5.6.0 ") {
						t.Errorf("reply %q", reply)
					}
					c.expect("250 2.0.0 Ok")
				default:
					if !strings.HasPrefix(reply, "550 5.6.0 ") {
						t.Errorf("reply %q", reply)
					}
					c.expect("421 4.7.0 ")
					c.closed()
				}
				for _, call := range r.noted() {
					if strings.Contains(call, "victim") || strings.Contains(call, "admin") {
						t.Fatalf("smuggled: %s", call)
					}
				}
				if n := len(r.got()); harmless && n != 1 || !harmless && n != 0 {
					t.Errorf("%d messages taken", n)
				}
			})
		}
	}
}

// The same through BDAT, where nothing but the count ends a chunk.
func TestSmugglingChunks(t *testing.T) {
	for _, body := range []string{"a\n.\n", "a\rb\r\n", "a\r", "a\x00"} {
		r := &recorder{}
		c := dialTo(t, start(t, &Server{Handler: r}))
		c.expect("220 ")
		c.cmd("EHLO a", "250-")
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		c.cmd("RCPT TO:<ann@example.org>", "250 ")
		c.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(body), body))
		c.expect("55")
		if len(r.got()) != 0 {
			t.Errorf("%q is taken", body)
		}
	}
	// A CRLF may fall between two chunks.
	r := &recorder{}
	c := dialTo(t, start(t, &Server{Handler: r}))
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	c.cmd("RCPT TO:<ann@example.org>", "250 ")
	c.send("BDAT 2\r\na\rBDAT 2 LAST\r\n\nb")
	c.expect("250 2.0.0 Ok")
	c.expect("250 2.0.0 Ok: queued")
	if got := r.got(); len(got) != 1 || got[0].data != "a\r\nb" {
		t.Errorf("%v", got)
	}
}

func TestBadCommandLines(t *testing.T) {
	for _, line := range []string{"NOOP\n", "NO\rOP\r\n", "NOOP\r\r\n", "NOOP \x00\r\n", "NOOP \x7f\r\n", "NOOP \xff\r\n", "NOOP\t\r\n",
		"EHLO a\nMAIL FROM:<x@y>\n"} {
		r := &recorder{}
		c := dialTo(t, start(t, &Server{Handler: r}))
		c.expect("220 ")
		c.send(line)
		for range strings.Count(line, "\n") {
			c.expect("500 5.5.2 ")
		}
		c.cmd("NOOP", "250 2.0.0 Ok")
		for _, call := range r.noted() {
			if strings.HasPrefix(call, "mail") {
				t.Errorf("%q: %s", line, call)
			}
		}
	}
}

func TestLongCommandLine(t *testing.T) {
	c := dialTo(t, start(t, &Server{Handler: &recorder{}}))
	c.expect("220 ")
	for _, n := range []int{maxCommandLine - 2, maxCommandLine - 1, 4096, 5000, 100_000} {
		c.send("NOOP " + strings.Repeat("x", n-5) + "\r\n")
		if n <= maxCommandLine-2 {
			c.expect("250 ")
		} else {
			c.expect("500 5.5.2 Line too long")
		}
	}
	go io.WriteString(c.nc, strings.Repeat("x", maxJunkLine+10_000)) // no end in sight
	c.expect("421 4.7.0 Line too long")
	c.closed()
}

func TestHTTP(t *testing.T) {
	r := &recorder{}
	c := dialTo(t, start(t, &Server{Handler: r}))
	c.expect("220 ")
	c.send("POST / HTTP/1.1\r\nHost: x\r\n\r\nEHLO a\r\nMAIL FROM:<a@b>\r\n")
	c.expect("421 4.7.0 ")
	c.closed()
	if n := len(r.noted()); n > 2 {
		t.Errorf("%q", r.noted())
	}
}

// stuff is what a sender does to a message, RFC 5321 section 4.5.2.
func stuff(msg string) string {
	var b strings.Builder
	for _, l := range strings.SplitAfter(msg, "\r\n") {
		if strings.HasPrefix(l, ".") {
			b.WriteByte('.')
		}
		b.WriteString(l)
	}
	if !strings.HasSuffix(msg, "\r\n") && msg != "" {
		b.WriteString("\r\n")
	}
	return b.String() + ".\r\n"
}

// Whatever the sizes of lines and pieces, what comes out is what went in.
func TestDataRoundTrip(t *testing.T) {
	r := &recorder{}
	addr := start(t, &Server{Handler: r, Limits: Limits{MaxLine: -1, MaxCommands: -1}})
	c := dialTo(t, addr)
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	rapid.Check(t, func(t *rapid.T) {
		line := rapid.OneOf(
			rapid.StringMatching(`\.{0,3}[a-z]{0,6}`),
			rapid.Map(rapid.SampledFrom([]int{997, 998, 4092, 4093, 4094, 4095, 4096, 4097, 8191, 8192, 8193}),
				func(n int) string { return strings.Repeat("x", n) }),
			rapid.Map(rapid.SampledFrom([]int{4093, 4094, 4095, 8190}), func(n int) string { return "." + strings.Repeat("y", n) }))
		msg := strings.Join(rapid.SliceOfN(line, 0, 8).Draw(t, "lines"), "\r\n")
		if msg != "" {
			msg += "\r\n"
		}
		before := len(r.got())
		c.send("MAIL FROM:<joe@example.com>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n")
		for range 2 {
			c.expect("250 ")
		}
		c.expect("354 ")
		wire := stuff(msg)
		cut := rapid.IntRange(0, len(wire)).Draw(t, "cut")
		c.send(wire[:cut])
		c.send(wire[cut:])
		c.expect("250 2.0.0 Ok: queued")
		got := r.got()
		if len(got) != before+1 || got[before].data != msg {
			t.Fatalf("got %q, want %q", got[before].data, msg)
		}
	})
}

// textCheck finds the same in any division of a text into pieces.
func TestTextCheckPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`([a.\r\n]|\r\n|\x00|aaaaa){0,30}`).Draw(t, "text")
		var pieces []string
		for rest := text; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		check := textCheck{maxLine: 12}
		var err error
		for _, p := range pieces {
			if err = check.scan([]byte(p)); err != nil {
				break
			}
		}
		if err == nil {
			err = check.end()
		}
		if want := sound(text, 12); (err == nil) != want {
			t.Fatalf("%q in pieces %q: %v, sound is %v", text, pieces, err, want)
		}
	})
}

// sound is the plain form of what textCheck does.
func sound(text string, maxLine int) bool {
	if strings.Contains(text, "\x00") {
		return false
	}
	lines := strings.SplitAfter(text, "\r\n")
	for _, l := range lines {
		body := strings.TrimSuffix(l, "\r\n")
		if strings.ContainsAny(body, "\r\n") || len(l) > maxLine {
			return false
		}
	}
	return true
}

// A message that is bad for another reason first, and has a bare LF later: its
// connection is closed all the same.
func TestBareAfterOtherFault(t *testing.T) {
	for name, fault := range map[string]string{
		"NUL":       "a\x00b\r\n",
		"same line": "a\x00b\nc\r\n",
		"long line": strings.Repeat("x", 1200) + "\r\n",
		"size":      strings.Repeat("x\r\n", 2000),
	} {
		r := &recorder{}
		c := dialTo(t, start(t, &Server{Handler: r, Limits: Limits{MaxSize: 5000}}))
		c.expect("220 ")
		beginMessage(c)
		c.send("Subject: x\r\n\r\n" + fault + "\n.\nMAIL FROM:<evil@example.com>\r\n.\r\nNOOP\r\n")
		c.expect("55")
		if reply := c.reply(); !strings.HasPrefix(reply, "421 4.7.0 ") {
			t.Errorf("%s: %q follows", name, reply)
			continue
		}
		c.closed()
	}
}

// RFC 2033 section 4.2 and RFC 3030: a chunk that is not the last one has one
// reply, with LMTP too. More would be taken for the replies to later commands.
func TestChunkRefusedLMTP(t *testing.T) {
	r := &recorder{}
	c := dialTo(t, start(t, &Server{Handler: r, LMTP: true}))
	c.expect("220 ")
	c.cmd("LHLO a", "250-")
	for _, last := range []string{"", " LAST"} {
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		for i := range 3 {
			c.cmd(fmt.Sprintf("RCPT TO:<r%d@example.org>", i), "250 ")
		}
		c.send("BDAT 3" + last + "\r\na\x00b")
		c.expect("554 5.6.0 ")
		if last != "" {
			c.expect("554 5.6.0 ")
			c.expect("554 5.6.0 ")
		}
		c.cmd("NOOP", "250 2.0.0 Ok")
	}
}

// A command line that is too long is refused inside of a sequence of chunks, too.
func TestLongLineBetweenChunks(t *testing.T) {
	r := &recorder{}
	c := dialTo(t, start(t, &Server{Handler: r}))
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	c.cmd("RCPT TO:<ann@example.org>", "250 ")
	c.send("BDAT 3\r\na\r\n")
	c.expect("250 ")
	c.cmd("NOOP "+strings.Repeat("x", 5000), "500 5.5.2 Line too long")
	c.send("BDAT 3 LAST\r\nb\r\n")
	c.expect("250 ")
	if got := r.got(); len(got) != 1 || got[0].data != "a\r\nb\r\n" {
		t.Errorf("%v", got)
	}
}
