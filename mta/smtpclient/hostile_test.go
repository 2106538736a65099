package smtpclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
)

// A moment is a place in a dialogue where a server speaks, with what comes before it.
type moment struct {
	name, before, right string
	sent                bool // the whole message has gone out
}

// A way is how a message is sent.
type way struct {
	name    string
	options Options
	msg     string
	moments []moment
}

const (
	hail = "C: EHLO out.sender.example"
	mail = "C: MAIL FROM:<ann@sender.example>"
	rcpt = "C: RCPT TO:<bob@dest.example>"
)

var ways = []way{
	{"one by one", Options{}, "x\r\n", []moment{
		{"greeting", "", "S: 220 hi", false}, {"EHLO", hail, "S: 250 hi", false}, {"MAIL", mail, "S: 250 ok", false}, {"RCPT", rcpt, "S: 250 ok", false},
		{"DATA", "C: DATA", "S: 354 go", false}, {"message", "C: x\nC: .", "S: 250 done", true}}},
	{"flight", Options{}, "x\r\n", []moment{
		{"greeting", "", "S: 220 hi", false}, {"EHLO", hail, "S: 250-hi\nS: 250 PIPELINING", false}, {"MAIL", mail + "\n" + rcpt + "\nC: DATA", "S: 250 ok", false}, {"RCPT", "", "S: 250 ok", false},
		{"DATA", "", "S: 354 go", false}, {"message", "C: x\nC: .", "S: 250 done", true}}},
	{"flight, large", Options{}, large, []moment{
		{"greeting", "", "S: 220 hi", false}, {"EHLO", hail, "S: 250-hi\nS: 250 PIPELINING", false}, {"MAIL", mail + "\n" + rcpt + "\nC: DATA", "S: 250 ok", false}, {"RCPT", "", "S: 250 ok", false},
		{"DATA", "", "S: 354 go", false}, {"message", fmt.Sprintf("EAT %d", len(large)+3), "S: 250 done", true}}},
	{"flight with message", Options{}, "x\r\n", []moment{
		{"greeting", "", "S: 220 hi", false}, {"EHLO", hail, "S: 250-hi\nS: 250-PIPELINING\nS: 250 CHUNKING", false},
		{"MAIL", mail + "\n" + rcpt + "\nC: BDAT 3 LAST\nC: x\nQUIET", "S: 250 ok", true}, {"RCPT", "", "S: 250 ok", true}, {"message", "", "S: 250 done", true}}},
	{"chunk", Options{}, "x\r\n", []moment{
		{"greeting", "", "S: 220 hi", false}, {"EHLO", hail, "S: 250-hi\nS: 250 CHUNKING", false}, {"MAIL", mail, "S: 250 ok", false}, {"RCPT", rcpt, "S: 250 ok", false},
		{"message", "C: BDAT 3 LAST\nC: x", "S: 250 done", true}}},
	{"chunk, large", Options{}, large, []moment{
		{"greeting", "", "S: 220 hi", false}, {"EHLO", hail, "S: 250-hi\nS: 250-PIPELINING\nS: 250 CHUNKING", false}, {"MAIL", mail + "\n" + rcpt, "S: 250 ok", false}, {"RCPT", "", "S: 250 ok", false},
		{"message", fmt.Sprintf("C: BDAT %d LAST\nEAT %d", len(large), len(large)), "S: 250 done", true}}},
	{"LMTP", Options{LMTP: true}, "x\r\n", []moment{
		{"greeting", "", "S: 220 hi", false}, {"LHLO", "C: LHLO out.sender.example", "S: 250-hi\nS: 250 PIPELINING", false}, {"MAIL", mail + "\n" + rcpt + "\nC: DATA", "S: 250 ok", false}, {"RCPT", "", "S: 250 ok", false},
		{"DATA", "", "S: 354 go", false}, {"message", "C: x\nC: .", "S: 250 done", true}}},
}

// dialogue is the right one, down to moment i, where the server says what.
func (w way) dialogue(i int, what string) script {
	var s strings.Builder
	for _, m := range w.moments[:i] {
		s.WriteString(m.before + "\n" + m.right + "\n")
	}
	s.WriteString(w.moments[i].before + "\n" + what + "\n")
	return script(s.String())
}

// misbehaviours are what a server says instead of the right thing.
var misbehaviours = []struct{ name, script, want string }{
	{"garbage", "S: <html>400 Bad Request</html>", "451 4.5.0"},
	{"binary", `S> \0\x1b\x8f\r\n`, "451 4.5.0"},
	{"no digits", "S: 2", "451 4.5.0"},
	{"100", "S: 100 continue", "451 4.5.0"},
	{"600", "S: 600 what", "451 4.5.0"},
	{"wrong separator", "S: 250_ok", "451 4.5.0"},
	{"codes differ", "S: 250-ok\nS: 550 no", "451 4.5.0"},
	{"endless lines", `FLOOD 250-on and on\r\n`, "451 4.5.0"},
	{"endless line", "FLOOD 250 on and on", "451 4.5.0"},
	{"huge line", "S: 250 " + strings.Repeat("x", maxReplyLine), "451 4.5.0"},
	{"300", "S: 300 hm", "451 4.5.0"},
	{"close", "CLOSE", "451 4.4.2"},
	{"close in the middle", `S> 250-half\r\n25`, "451 4.4.2"},
	{"421", "S: 421 4.3.2 shutting down", "421 4.3.2"},
	{"421 and more", `S> 421 4.3.2 shutting down\r\n250 ok\r\n250 ok\r\n250 ok\r\n`, "421 4.3.2"},
	{"silence", "STALL", "451 4.4.2"},
	{"drip", "DRIP 250-on and on", "451 4.4.2"},
	{"450", "S: 450 4.7.0 greylisted", "450 4.7.0"},
	{"550", "S: 550 5.7.1 no", "550 5.7.1"},
}

// talk holds the dialogue down to the end of a transaction, and returns what became of the recipient ("" before there was a transaction) and
// the status of the error.
func (w way) talk(ctx context.Context, t *testing.T, s script) (c *Client, done func() error, state, err string) {
	o := w.options
	c, done = s.start(&o, nil)
	r, e := c.Greeting(ctx)
	if e == nil && r.Code != 220 {
		e = c.Refusal("greeting", r)
	}
	if e != nil {
		return c, done, "", status(e)
	}
	if r, e = c.Hello(ctx, "out.sender.example"); e == nil && !r.OK() {
		e = c.Refusal("EHLO", r)
	}
	if e != nil {
		return c, done, "", status(e)
	}
	res, e := c.Send(ctx, &Transaction{Env: envelope(t, "ann@sender.example", "bob@dest.example"), Msg: prepare(t, w.msg)})
	return c, done, outcomes(res), status(e)
}

// Every misbehaviour at every moment of every way: a classified error, never a hang or a message that counts as taken; in doubt is what may
// have been taken, and only that.
func TestHostileServers(t *testing.T) {
	for _, w := range ways {
		for _, bad := range misbehaviours {
			for i, m := range w.moments {
				t.Run(w.name+", "+bad.name+" at "+m.name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						what := bad.script
						refusal := bad.want[:1] == "5" || bad.want == "450 4.7.0"
						if refusal && m.name == "EHLO" && bad.want[:1] == "5" {
							what += "\nC: HELO*\n" + bad.script
						}
						if refusal && m.name == "MAIL" && len(w.moments) == 5 && m.sent {
							what += "\nS: 503 what\nS: 503 what" // the replies to what has become void
						} else if refusal && (m.name == "MAIL" || m.name == "RCPT") && strings.Contains(w.moments[2].before, "RCPT") {
							what += "\nS: 503 what"
							if m.name == "MAIL" && strings.Contains(w.moments[2].before, "DATA") {
								what += "\nS: 503 what"
							}
						}
						start := time.Now()
						c, done, state, err := w.talk(t.Context(), t, w.dialogue(i, what))
						took := time.Since(start)
						inStep := c.InStep()
						c.Close()
						done()
						wantState, wantErr := "open", bad.want
						switch {
						case i < 2:
							wantState = ""
						case refusal:
							wantState, wantErr = bad.want, ""
						case bad.want == "421 4.3.2" && m.name == "message":
							wantState = bad.want
						case m.sent && bad.want != "421 4.3.2":
							wantState = "doubt " + bad.want
						}
						if state != wantState || err != wantErr {
							t.Errorf("%q, %q; want %q, %q", state, err, wantState, wantErr)
						}
						if inStep != refusal {
							t.Errorf("in step: %v", inStep)
						}
						if took > 15*time.Minute {
							t.Errorf("took %v", took)
						}
					})
				})
			}
		}
	}
}

// Replies that do not fit what they are replies to.
func TestHostileOrder(t *testing.T) {
	byName := map[string]way{}
	for _, w := range ways {
		byName[w.name] = w
	}
	for _, tt := range []struct {
		name, way  string
		moment     int
		what       string
		state, err string
		inStep     bool
	}{
		{"two greetings", "flight", 0, `S> 220 hi\r\n220 hi\r\n`, "", "451 4.5.0", false},
		{"in advance of EHLO", "flight with message", 0, `S> 220 hi\r\n250-hi\r\n250 CHUNKING\r\n`, "", "451 4.5.0", false},
		{"in advance of MAIL", "flight with message", 1, `S> 250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n250 ok\r\n250 ok\r\n250 done\r\n`, "open", "451 4.5.0", false},
		{"421 in advance", "flight with message", 1, `S> 250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n421 4.3.2 bye\r\n`, "open", "421 4.3.2", false},
		{"250 in advance of the dot", "one by one", 4, `S> 354 go on\r\n250 delivered, honestly\r\n` + "\nSTALL", "open", "451 4.5.0", false},
		{"552 in advance of the dot", "one by one", 4, `S> 354 go on\r\n552 5.3.4 too large\r\n` + "\nSTALL", "552 5.3.4", "552 5.3.4", false},
		{"in advance of a chunk", "chunk", 3, `S> 250 ok\r\n250 delivered, honestly\r\n` + "\nSTALL", "open", "451 4.5.0", false},
		{"refused in the middle of a chunk", "chunk, large", 3, "S: 250 ok\nC: BDAT*\nEAT 10\nS: 552 5.3.4 too large\nSTALL", "552 5.3.4", "552 5.3.4", false},
		{"taken in the middle of a chunk", "chunk, large", 3, "S: 250 ok\nC: BDAT*\nEAT 10\nS: 250 delivered, honestly\nSTALL", "open", "451 4.5.0", false},
		{"gone in the middle of a chunk", "chunk, large", 3, "S: 250 ok\nC: BDAT*\nEAT 10\nCLOSE", "open", "451 4.4.2", false},
		{"421 in the middle of a chunk", "chunk, large", 3, "S: 250 ok\nC: BDAT*\nEAT 10\nS: 421 4.3.2 bye\nSTALL", "open", "421 4.3.2", false},
		{"354 to MAIL", "flight with message", 2, "S: 354 go", "doubt 451 4.5.0", "451 4.5.0", false},
		{"221 to MAIL", "flight with message", 2, "S: 221 bye", "doubt 451 4.5.0", "451 4.5.0", false},
		{"354 to RCPT", "flight with message", 3, "S: 354 go", "doubt 451 4.5.0", "451 4.5.0", false},
		{"354 to BDAT", "flight with message", 4, "S: 354 go", "doubt 451 4.5.0", "451 4.5.0", false},
		{"251 to BDAT", "flight with message", 4, "S: 251 fine", "taken", "", true},
		{"250 to DATA", "flight", 4, "S: 250 ok", "open", "451 4.5.0", false},
		{"one reply too many", "flight with message", 2, `S> 250 ok\r\n250 ok\r\n250 ok\r\n550 5.7.1 no\r\n` + "\nSTALL", "doubt 451 4.5.0", "451 4.5.0", false},
		{"one reply too many, and refused", "flight with message", 2, `S> 250 ok\r\n250 ok\r\n550 5.7.1 no\r\n550 5.7.1 no\r\n` + "\nSTALL", "550 5.7.1", "451 4.5.0", false},
		{"good-bye behind the last reply", "flight with message", 2, `S> 250 ok\r\n250 ok\r\n250 done\r\n421 bye\r\n` + "\nSTALL", "taken", "", false},
		{"one reply too few", "flight with message", 2, "S: 250 ok\nS: 250 ok\nSTALL", "doubt 451 4.4.2", "451 4.4.2", false},
		{"MAIL and the message disagree", "flight with message", 2, "S: 550 5.1.8 no\nS: 250 ok\nS: 250 taken, honestly", "550 5.1.8", "", true},
		{"MAIL refused, RCPT and BDAT not answered", "flight with message", 2, "S: 550 5.1.8 no\nSTALL", "550 5.1.8", "", false},
		{"RCPT and the message disagree", "flight with message", 3, "S: 550 5.1.1 no\nS: 250 taken, honestly", "550 5.1.1", "", true},
		{"RCPT refused, gone", "flight with message", 3, "S: 550 5.1.1 no\nCLOSE", "550 5.1.1", "451 4.4.2", false},
		{"RCPT refused, 354", "flight with message", 3, "S: 550 5.1.1 no\nS: 354 go", "550 5.1.1", "451 4.5.0", false},
		{"LMTP, 354 for nobody", "LMTP", 3, "S: 550 5.1.1 no\nS: 354 go", "550 5.1.1", "451 4.5.0", false},
		{"LMTP, one reply too few", "LMTP", 5, "STALL", "doubt 451 4.4.2", "451 4.4.2", false},
		// The octets of the message are taken for commands.
		{"a chunk is not swallowed", "flight with message", 2, `S> 550 5.1.8 no\r\n503 what\r\n503 what\r\n500 x is no command\r\n` + "\nSTALL", "550 5.1.8", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := byName[tt.way]
				c, done, state, err := w.talk(t.Context(), t, w.dialogue(tt.moment, tt.what))
				if state != tt.state || err != tt.err || c.InStep() != tt.inStep {
					t.Errorf("%q, %q, in step: %v; want %q, %q, %v", state, err, c.InStep(), tt.state, tt.err, tt.inStep)
				}
				c.Close()
				done()
			})
		})
	}
}

// An RSET that is refused at the head of a flight with a message makes the rest void.
func TestHostileReset(t *testing.T) {
	const first = "S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250-PIPELINING\nS: 250 CHUNKING\n" +
		"C: MAIL*\nC: RCPT*\nC: BDAT*\nC: x\nS: 250 ok\nS: 550 5.1.1 no\nS: 503 no\nC: RSET\nC: MAIL*\nC: RCPT*\nC: BDAT*\nC: x\n"
	for _, tt := range []struct{ replies, state, err string }{
		{"S: 500 what\nS: 503 no\nS: 503 no\nS: 503 no", "open", "500 5.0.0"},
		{"S: 500 what\nS: 250 ok\nS: 250 ok\nS: 250 taken", "doubt 451 4.5.0", "451 4.5.0"},
		{"S: 500 what\nS: 250 ok\nS: 250 ok\nCLOSE", "doubt 451 4.4.2", "451 4.4.2"},
		{"S: 500 what\nS: 250 ok\nS: 421 bye", "open", "500 5.0.0"},
		{"S: 421 4.3.2 bye", "open", "421 4.3.2"},
		{"CLOSE", "doubt 451 4.4.2", "451 4.4.2"},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, done := script(first+tt.replies).start(nil, nil)
			begin(t, c)
			env := envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example")
			m := prepare(t, "x\r\n")
			if _, err := c.Send(t.Context(), &Transaction{Env: env, Rcpts: []int{0}, Msg: m}); err != nil {
				t.Fatal(err)
			}
			res, err := c.Send(t.Context(), &Transaction{Env: env, Rcpts: []int{1}, Msg: m})
			if outcomes(res) != tt.state || status(err) != tt.err {
				t.Errorf("%q: %s, %v", tt.replies, outcomes(res), err)
			}
			c.Close()
			if err := done(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Silent is a connection that broke without one octet, and nothing else.
func TestSilent(t *testing.T) {
	w := ways[3]
	for _, tt := range []struct {
		what   string
		silent bool
	}{
		{"CLOSE", true}, {"S> 2", false}, {"STALL", false}, {"S: 250 ok\nCLOSE", false}, {"S: <html>", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, done := w.dialogue(2, tt.what).start(nil, nil)
			begin(t, c)
			res, err := c.Send(t.Context(), &Transaction{Env: envelope(t, "ann@sender.example", "bob@dest.example"), Msg: prepare(t, w.msg)})
			var doubt *InDoubtError
			if !errors.As(err, &doubt) || doubt.Silent != tt.silent || res.Outcomes[0].State != InDoubt {
				t.Errorf("%s: %+v, %v", tt.what, doubt, err)
			}
			c.Close()
			done()
		})
	}
}

// A connection that breaks while a flight with a message is sent: as long as one octet is missing nobody has it.
func TestShortWrite(t *testing.T) {
	const flight = "MAIL FROM:<ann@sender.example>\r\nRCPT TO:<bob@dest.example>\r\nBDAT 3 LAST\r\nx\r\n"
	for n := range len(flight) + 1 {
		synctest.Test(t, func(t *testing.T) {
			c, done := script("S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250-PIPELINING\nS: 250 CHUNKING\nSTALL").start(nil, nil)
			begin(t, c)
			c.conn = &shortWriter{c.conn, n}
			res, err := c.Send(t.Context(), &Transaction{Env: envelope(t, "ann@sender.example", "bob@dest.example"), Msg: prepare(t, "x\r\n")})
			want := "open"
			if n == len(flight) {
				want = "doubt 451 4.4.2"
			}
			if outcomes(res) != want || status(err) != "451 4.4.2" {
				t.Errorf("%d octets of %d: %s, %v", n, len(flight), outcomes(res), err)
			}
			c.Close()
			done()
		})
	}
}

// A shortWriter breaks after n octets.
type shortWriter struct {
	net.Conn
	n int
}

func (s *shortWriter) Write(p []byte) (int, error) {
	n, _ := s.Conn.Write(p[:s.n])
	s.Conn.Close()
	return n, io.ErrClosedPipe
}

// What is not there any more, or was never there: an error, at once.
func TestAfterTheEnd(t *testing.T) {
	c, done := script("S: 220 hi\nC: EHLO*\nS: 250 hi").start(nil, nil)
	begin(t, c)
	done()
	env := envelope(t, "ann@sender.example", "bob@dest.example")
	for range 2 {
		res, err := c.Send(t.Context(), &Transaction{Env: env, Msg: prepare(t, "x\r\n")})
		if outcomes(res) != "open" || status(err) != "451 4.4.2" || c.InStep() {
			t.Errorf("%s, %v", outcomes(res), err)
		}
	}
	if _, err := c.Noop(t.Context()); err == nil {
		t.Error("NOOP is answered")
	}
	if c.Quit(t.Context()); c.Leave() != nil && c.Close() != nil {
		t.Log("closed twice")
	}
	env.Recipients[0].Address.Local = "a\r\nRSET"
	c, done = script("S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250 PIPELINING\nSTALL").start(nil, nil)
	begin(t, c)
	if res, err := c.Send(t.Context(), &Transaction{Env: env, Msg: prepare(t, "x\r\n")}); err == nil || outcomes(res) != "open" {
		t.Errorf("a command with a line end: %s, %v", outcomes(res), err)
	}
	env.Recipients[0].Address = mailspine.Address{Local: strings.Repeat("x", 5000), Domain: "dest.example"}
	if res, err := c.Send(t.Context(), &Transaction{Env: env, Msg: prepare(t, "x\r\n")}); err == nil || outcomes(res) != "open" {
		t.Errorf("an endless command: %s, %v", outcomes(res), err)
	}
	c.Close()
	done()
}
