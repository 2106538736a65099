package mta

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
)

// moments are the places in a dialogue where a server speaks, each with what comes
// before it.
var moments = []struct {
	name, before, right string
	doubt               bool // after the final dot: another host is not tried
}{
	{"greeting", "", "S: 220 hi", false},
	{"EHLO", "C: EHLO out.sender.example", "S: 250 hi", false},
	{"MAIL", "C: MAIL FROM:<ann@sender.example>", "S: 250 ok", false},
	{"RCPT", "C: RCPT TO:<bob@dest.example>", "S: 250 ok", false},
	{"DATA", "C: DATA", "S: 354 go on", false},
	{"message", "C: x\nC: .", "S: 250 done", true},
}

// Every misbehaviour at every moment: a classified error, never a hang, a panic, or a message
// that counts as delivered.
func TestRelayHostileServers(t *testing.T) {
	const temp = "451 4.5.0"
	for _, bad := range []struct {
		name, script, want string
	}{
		{"garbage", "S: <html>400 Bad Request</html>", temp},
		{"binary", `S> \0\x1b\x8f\r\n`, temp},
		{"no digits", "S: 2", temp},
		{"100", "S: 100 continue", temp},
		{"600", "S: 600 what", temp},
		{"wrong separator", "S: 250_ok", temp},
		{"codes differ", "S: 250-ok\nS: 550 no", temp},
		{"endless lines", `FLOOD 250-on and on\r\n`, temp},
		{"endless line", "FLOOD 250 on and on", temp},
		{"huge line", "S: 250 " + strings.Repeat("x", maxReplyLine), temp},
		{"close", "CLOSE", "451 4.4.2"},
		{"close in the middle", `S> 250-half\r\n25`, "451 4.4.2"},
		{"421", "S: 421 4.3.2 shutting down", "421 4.3.2"},
		{"silence", "STALL", "451 4.4.2"},
		{"drip", "DRIP 250-on and on", "451 4.4.2"},
		{"300", "S: 300 hm", temp},
	} {
		for i, m := range moments {
			t.Run(bad.name+" at "+m.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var s strings.Builder
					for _, before := range moments[:i] {
						s.WriteString(before.before + "\n" + before.right + "\n")
					}
					s.WriteString(m.before + "\n" + bad.script + "\n")
					n := newNetwork(t)
					n.mx("dest.example", "192.0.2.1", "192.0.2.2")
					n.scripts["192.0.2.1"] = []script{script(s.String())}
					env := envelope(t, "ann@sender.example", "bob@dest.example")
					a := &attempt{}
					start := time.Now()
					err := n.relay().Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent("x\r\n"))
					took := time.Since(start)
					n.wg.Wait()
					want := bad.want
					if !m.doubt {
						// The second host is tried, where nobody is.
						want = "451 4.4.1"
					}
					wantStatus(t, bad.name+" at "+m.name, mailspine.ErrorAt(err, 0), want)
					if got := len(n.dialed); got != map[bool]int{true: 1, false: 2}[m.doubt] {
						t.Errorf("connected to %v", n.dialed)
					}
					if took > 10*time.Minute {
						t.Errorf("took %v", took)
					}
				})
			})
		}
	}
}

// The same with one host only: the error is that of the server.
func TestRelayClassifies(t *testing.T) {
	upTo := func(i int) string {
		var s strings.Builder
		for _, m := range moments[:i] {
			s.WriteString(m.before + "\n" + m.right + "\n")
		}
		if i < len(moments) {
			s.WriteString(moments[i].before + "\n")
		}
		return s.String()
	}
	for _, tt := range []struct {
		name   string
		script string
		want   string
	}{
		{"greeting 554", "S: 554 5.7.1 listed\nC: QUIT\nS: 221 bye", "554 5.7.1"},
		{"greeting 450", "S: 450 later\nC: QUIT\nS: 221 bye", "450 4.0.0"},
		{"greeting 250", "S: 250 hello to you too", "451 4.5.0"},
		{"EHLO and HELO 550", upTo(1) + "S: 550 5.7.1 bad name\nC: HELO out.sender.example\nS: 550 5.7.1 bad name\nC: QUIT\nS: 221 bye", "550 5.7.1"},
		{"EHLO 450", upTo(1) + "S: 450 4.7.1 later\nC: QUIT\nS: 221 bye", "450 4.7.1"},
		{"STARTTLS 354", upTo(1) + "S: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 354 go on", "451 4.5.0"},
		{"MAIL 550", upTo(2) + "S: 550 5.1.8 no such sender\nC: QUIT\nS: 221 bye", "550 5.1.8"},
		{"MAIL 452", upTo(2) + "S: 452 4.3.1 disk full\nC: QUIT\nS: 221 bye", "452 4.3.1"},
		{"MAIL 354", upTo(2) + "S: 354 go on", "451 4.5.0"},
		{"RCPT 550", upTo(3) + "S: 550 5.1.1 unknown\nC: QUIT\nS: 221 bye", "550 5.1.1"},
		{"RCPT 452 for the first", upTo(3) + "S: 452 4.5.3 too many\nC: QUIT\nS: 221 bye", "452 4.5.3"},
		{"RCPT 354", upTo(3) + "S: 354 go on", "451 4.5.0"},
		{"DATA 550", upTo(4) + "S: 550 5.7.1 no\nC: QUIT\nS: 221 bye", "550 5.7.1"},
		{"DATA 250", upTo(4) + "S: 250 ok", "451 4.5.0"},
		{"DATA 221", upTo(4) + "S: 221 bye", "451 4.5.0"},
		{"message 550", upTo(5) + "S: 550 5.7.1 spam\nC: QUIT\nS: 221 bye", "550 5.7.1"},
		{"message 421", upTo(5) + "S: 421 4.3.2 down", "421 4.3.2"},
		{"message 354", upTo(5) + "S: 354 more", "451 4.5.0"},
		{"message 251", upTo(5) + "S: 251 fine\nC: QUIT\nS: 221 bye", ""},
		// Replies that come before what they are replies to.
		{"two greetings", "S> 220 hi\\r\\n220 hi\\r\\n", "451 4.5.0"},
		{"reply in advance", upTo(2) + `S> 250 ok\r\n250 ok\r\n`, "451 4.5.0"},
		{"421 in advance", upTo(2) + `S> 250 ok\r\n421 4.3.2 down\r\n`, "421 4.3.2"},
		{"250 in advance", upTo(4) + `S> 354 go on\r\n250 delivered, honestly\r\n` + "\nSTALL", "451 4.5.0"},
		{"552 in advance", upTo(4) + `S> 354 go on\r\n552 5.3.4 too large\r\n` + "\nSTALL", "552 5.3.4"},
		{"421 instead of the message", upTo(4) + `S> 354 go on\r\n421 4.3.2 down\r\n` + "\nSTALL", "421 4.3.2"},
		{"close instead of the message", upTo(4) + "S: 354 go on\nCLOSE", "451 4.4.2"},
		// What a server says does not get through raw.
		{"enhanced code contradicts", upTo(3) + "S: 550 2.1.5 unknown\nC: QUIT\nS: 221 bye", "550 5.0.0"},
		{"enhanced code too long", upTo(3) + "S: 550 5.1111.1 unknown\nC: QUIT\nS: 221 bye", "550 5.0.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1")
				n.scripts["192.0.2.1"] = []script{script(tt.script)}
				err := n.relay().Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
				n.done()
				wantStatus(t, tt.name, mailspine.ErrorAt(err, 0), tt.want)
			})
		})
	}
}

// A server may refuse in the middle of a large message: sending stops there.
func TestRelayEarlyRefusal(t *testing.T) {
	n := newNetwork(t)
	n.mx("dest.example", "192.0.2.1")
	n.scripts["192.0.2.1"] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n" +
		"C: RCPT TO:<bob@dest.example>\nS: 250 ok\nC: DATA\nS: 354 ok\nC: line\nS: 550 5.7.1 spam\nSTALL"}
	a := &attempt{}
	err := n.relay().Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@dest.example"),
		mailspine.StringContent(strings.Repeat("line\r\n", 1<<20)))
	n.done()
	wantStatus(t, "refused early", mailspine.ErrorAt(err, 0), "550 5.7.1")
	if a.commits != 0 {
		t.Error("BeforeCommit was called for a message that was refused")
	}
}

// The peer reads one octet a minute: the total time ends it.
func TestRelaySlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.scripts["192.0.2.1"] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n" +
			"C: RCPT TO:<bob@dest.example>\nS: 250 ok\nC: DATA\nS: 354 ok\nSIP"}
		start := time.Now()
		r := n.relay()
		r.Timeouts.DataBlock = 24 * time.Hour
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"),
			mailspine.StringContent(strings.Repeat("line\r\n", 1<<18)))
		took := time.Since(start)
		n.done()
		wantStatus(t, "slow reader", mailspine.ErrorAt(err, 0), "451 4.4.2")
		if took != time.Hour {
			t.Errorf("took %v, want an hour", took)
		}
	})
}

// Text of a server in errors and receipts: no control characters, bounded.
func TestRelayReplyText(t *testing.T) {
	long := strings.Repeat("wörter ", 500)
	for _, tt := range []struct{ raw, reply, message string }{
		{`S> 550 5.1.1 a\x1b[31mred\0\x8f\r\n`, "550 5.1.1 a?[31mred??", "a?[31mred??"},
		{`S> 550-5.1.1 one\r\n550-5.1.1\r\n550 5.1.1 three\r\n`, "550 5.1.1 one  three", "one\n\nthree"},
		{`S> 550\r\n`, "550", ""},
		{`S> 550 bare LF\n`, "550 bare LF", "bare LF"},
		{"S: 550 " + long, cut("550 "+long, 1000), strings.TrimSpace(cut(long, 1000))},
	} {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.scripts["192.0.2.1"] = []script{script("S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\n" + tt.raw + "\nC: QUIT\nCLOSE")}
		a := &attempt{}
		err := n.relay().Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
		n.done()
		st := mailspine.Status(mailspine.ErrorAt(err, 0))
		if st.Message != tt.message || a.receipts[0].Reply != tt.reply {
			t.Errorf("%s:\nmessage %q, want %q\nreceipt %q, want %q", tt.raw, st.Message, tt.message, a.receipts[0].Reply, tt.reply)
		}
	}
}

// A message that cannot be read to its end is never finished with a dot.
func TestRelayBrokenContent(t *testing.T) {
	for _, tt := range []struct {
		name string
		msg  mailspine.Content
		want string
	}{
		{"shorter than its size", sized{mailspine.StringContent("x\r\n"), 100}, "451 4.3.0"},
		{"longer than its size", sized{mailspine.StringContent("x\r\n"), 1}, "451 4.3.0"},
		{"changed after it was looked at", &changing{bodies: []string{"x\r\n", "x\n."}}, "554 5.6.0"},
		{"gone after it was looked at", &changing{bodies: []string{"x\r\n"}}, "451 4.3.0"},
	} {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		n.scripts["192.0.2.1"] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n" +
			"C: RCPT TO:<bob@dest.example>\nS: 250 ok\nC: DATA\nS: 354 ok\nUNTILDOT"}
		err := n.relay().Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), tt.msg)
		n.wg.Wait()
		wantStatus(t, tt.name, mailspine.ErrorAt(err, 0), tt.want)
		if len(n.errs) != 1 || !strings.Contains(n.errs[0].Error(), "EOF") {
			t.Errorf("%s: the server saw %v; want an end without a dot", tt.name, n.errs)
		}
		if len(n.dialed) != 1 {
			t.Errorf("%s: connected to %v: another server would not help", tt.name, n.dialed)
		}
	}
}

type sized struct {
	mailspine.Content
	n int64
}

func (s sized) Size() int64 { return s.n }

// changing is a Content whose reading differs from time to time.
type changing struct{ bodies []string }

func (c *changing) Size() int64 { return 3 }

func (c *changing) Open(context.Context) (io.ReadCloser, error) {
	if len(c.bodies) == 0 {
		return nil, fmt.Errorf("it is gone")
	}
	b := c.bodies[0]
	c.bodies = c.bodies[1:]
	return io.NopCloser(strings.NewReader(b)), nil
}
