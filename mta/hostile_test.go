package mta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// A moment is a place in a dialogue where a server speaks, with what comes
// before it.
type moment struct {
	name, before, right string
	doubt               bool // after the final dot: another host is not tried
}

// moments are those of a server that gets one command at a time.
var moments = []moment{
	{"greeting", "", "S: 220 hi", false},
	{"EHLO", "C: EHLO out.sender.example", "S: 250 hi", false},
	{"MAIL", "C: MAIL FROM:<ann@sender.example>", "S: 250 ok", false},
	{"RCPT", "C: RCPT TO:<bob@dest.example>", "S: 250 ok", false},
	{"DATA", "C: DATA", "S: 354 go on", false},
	{"message", "C: x\nC: .", "S: 250 done", true},
}

// flights are the moments of one that offers PIPELINING.
var flights = []moment{
	{"greeting", "", "S: 220 hi", false},
	{"EHLO", "C: EHLO out.sender.example", "S: 250-hi\nS: 250 PIPELINING", false},
	{"MAIL", "C: MAIL FROM:<ann@sender.example>\nC: RCPT TO:<bob@dest.example>\nC: DATA\nQUIET", "S: 250 ok", false},
	{"RCPT", "", "S: 250 ok", false},
	{"DATA", "", "S: 354 go on", false},
	{"message", "C: x\nC: .", "S: 250 done", true},
}

// chunks are the moments of one that offers CHUNKING too: the message is in the flight.
var chunks = []moment{
	{"greeting", "", "S: 220 hi", false},
	{"EHLO", "C: EHLO out.sender.example", "S: 250-hi\nS: 250-PIPELINING\nS: 250 CHUNKING", false},
	{"MAIL", "C: MAIL FROM:<ann@sender.example>\nC: RCPT TO:<bob@dest.example>\nC: BDAT 3 LAST\nC: x\nQUIET", "S: 250 ok", true},
	{"RCPT", "", "S: 250 ok", true},
	{"message", "", "S: 250 done", true},
}

// doubtful reports whether after a misbehaviour the server may have the message: a good-bye in place of a reply says that it has not, but
// for the reply to the message itself, which is a result.
func (m moment) doubtful(want string) bool {
	return m.doubt && (want != "421 4.3.2" || m.name == "message")
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
	{"close", "CLOSE", "451 4.4.2"},
	{"close in the middle", `S> 250-half\r\n25`, "451 4.4.2"},
	{"421", "S: 421 4.3.2 shutting down", "421 4.3.2"},
	{"silence", "STALL", "451 4.4.2"},
	{"drip", "DRIP 250-on and on", "451 4.4.2"},
	{"300", "S: 300 hm", "451 4.5.0"},
}

// dialogue is the right one, down to moment i, where the server says what.
func dialogue(ms []moment, i int, what string) string {
	var s strings.Builder
	for _, m := range ms[:i] {
		s.WriteString(m.before + "\n" + m.right + "\n")
	}
	s.WriteString(ms[i].before + "\n" + what + "\n")
	return s.String()
}

// Every misbehaviour at every moment, with PIPELINING and without, and with CHUNKING: a classified error, never a hang, a panic, or a message
// that counts as delivered.
func TestRelayHostileServers(t *testing.T) {
	for kind, ms := range map[string][]moment{"": moments, "flight, ": flights, "chunk, ": chunks} {
		for _, bad := range misbehaviours {
			for i, m := range ms {
				t.Run(kind+bad.name+" at "+m.name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						n := newNetwork(t)
						n.mx("dest.example", "192.0.2.1", "192.0.2.2")
						n.scripts["192.0.2.1"] = []script{script(dialogue(ms, i, bad.script))}
						env := envelope(t, "ann@sender.example", "bob@dest.example")
						a := &attempt{}
						r := n.relay()
						r.IdleTimeout = 0
						start := time.Now()
						err := r.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent("x\r\n"))
						took := time.Since(start)
						n.wg.Wait()
						want := bad.want
						if !m.doubtful(bad.want) {
							// The second host is tried, where nobody is.
							want = "451 4.4.1"
						}
						wantStatus(t, bad.name+" at "+m.name, mailspine.ErrorAt(err, 0), want)
						if got := len(n.dialed); got != map[bool]int{true: 1, false: 2}[m.doubtful(bad.want)] {
							t.Errorf("connected to %v", n.dialed)
						}
						if took > 15*time.Minute {
							t.Errorf("took %v", took)
						}
						if n := r.idle.all.Len(); n > 0 {
							t.Errorf("%d connections are kept", n)
						}
					})
				})
			}
		}
	}
}

// Every misbehaviour on a connection that was kept. Before MAIL is accepted it costs nothing but a new connection to
// the same host; then the next host is tried; after the final dot none. With the message in the flight that is so as long as the server
// says good-bye, or hangs up without a sound; otherwise it may have it.
func TestRelayHostileReused(t *testing.T) {
	for kind, ms := range map[string][]moment{"": moments, "flight, ": flights, "chunk, ": chunks} {
		end := len(ms) - 1
		good := dialogue(ms, end, ms[end].right)
		for _, bad := range misbehaviours {
			for i, m := range ms[2:] {
				t.Run(kind+bad.name+" at "+m.name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						n := newNetwork(t)
						n.mx("dest.example", "192.0.2.1", "192.0.2.2")
						// Greeting and EHLO, a message, and then the second one down to the moment.
						n.scripts["192.0.2.1"] = []script{script(good + strings.TrimPrefix(dialogue(ms, 2+i, bad.script), dialogue(ms, 1, ms[1].right)))}
						next, dialed := "", 1
						doubt := m.doubtful(bad.want)
						switch {
						case m.name == "MAIL" && (!doubt || bad.name == "close"):
							// Not one octet: the server hung up before it read anything.
							next, dialed, doubt = "192.0.2.1", 2, false
						case !doubt:
							next, dialed = "192.0.2.2", 2
						}
						if next != "" {
							n.scripts[next] = append(n.scripts[next], script(good+"C: QUIT\nS: 221 bye"))
						}
						r := n.relay()
						r.IdleTimeout = 0
						env := envelope(t, "ann@sender.example", "bob@dest.example")
						if err := r.Deliver(t.Context(), env, mailspine.StringContent("x\r\n")); err != nil {
							t.Fatal(err)
						}
						want := ""
						if doubt {
							want = bad.want
						}
						err := r.Deliver(t.Context(), env, mailspine.StringContent("x\r\n"))
						wantStatus(t, bad.name+" at "+m.name, mailspine.ErrorAt(err, 0), want)
						if len(n.dialed) != dialed || next != "" && n.dialed[1] != next+":25" {
							t.Errorf("connected to %v, want %d, the last to %q", n.dialed, dialed, next)
						}
						r.CloseIdle()
						n.wg.Wait()
						for _, s := range n.scripts {
							if len(s) > 0 {
								t.Error("a dialogue was not held")
							}
						}
					})
				})
			}
		}
	}
}

// The same with one host only: the error is that of the server.
func TestRelayClassifies(t *testing.T) {
	upTo := func(i int) string { return dialogue(moments, i, "") }
	fly := func(i int) string { return dialogue(flights, i, "") }
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
		// The same in flights.
		{"flight, MAIL 452", fly(2) + "S: 452 4.3.1 disk full\nS: 503 no\nS: 503 no\nC: QUIT\nS: 221 bye", "452 4.3.1"},
		{"flight, MAIL 354", fly(2) + "S: 354 go on", "451 4.5.0"},
		{"flight, MAIL 550, 421", fly(2) + "S: 550 5.1.8 no such sender\nS: 421 bye", "550 5.1.8"},
		{"flight, MAIL 550, close", fly(2) + "S: 550 5.1.8 no such sender\nCLOSE", "550 5.1.8"},
		{"flight, MAIL 550, silence", fly(2) + "S: 550 5.1.8 no such sender\nSTALL", "550 5.1.8"},
		{"flight, MAIL 550, 354, silence", fly(2) + "S: 550 5.1.8 no\nS: 503 no\nS: 354 go on\nC: .\nSTALL", "550 5.1.8"},
		{"flight, RCPT 354", fly(3) + "S: 354 go on", "451 4.5.0"},
		{"flight, RCPT 452 for the first", fly(3) + "S: 452 4.5.3 too many\nS: 503 no\nC: QUIT\nS: 221 bye", "452 4.5.3"},
		{"flight, RCPT 550, DATA 250", fly(3) + "S: 550 5.1.1 no\nS: 250 delivered, honestly", "550 5.1.1"},
		{"flight, RCPT 550, 354, 421", fly(3) + "S: 550 5.1.1 no\nS: 354 go on\nC: .\nS: 421 down", "550 5.1.1"},
		{"flight, RCPT 550, 354, silence", fly(3) + "S: 550 5.1.1 no\nS: 354 go on\nC: .\nSTALL", "550 5.1.1"},
		{"flight, RCPT 550, 354 and 250 in advance", fly(3) + `S> 550 5.1.1 no\r\n354 go on\r\n250 delivered, honestly\r\n` + "\nSTALL", "550 5.1.1"},
		{"flight, DATA 250", fly(4) + "S: 250 ok", "451 4.5.0"},
		{"flight, all in advance", fly(4) + `S> 354 go on\r\n250 delivered, honestly\r\n` + "\nSTALL", "451 4.5.0"},
		{"flight, one reply too many", fly(2) + `S> 250 ok\r\n250 ok\r\n250 ok\r\n354 go on\r\n` + "\nSTALL", "451 4.5.0"},
		{"flight, in advance of EHLO", dialogue(flights, 0, `S> 220 hi\r\n250-hi\r\n250 PIPELINING\r\n`), "451 4.5.0"},
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

// A reply that is in the socket before the message is sent is not the answer to it.
func TestRelayEarlyReplySocket(t *testing.T) {
	if runtime.GOOS == "windows" || runtime.GOOS == "plan9" {
		t.Skip("it cannot be seen on " + runtime.GOOS)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := newNetwork(t)
	n.mx("dest.example", "192.0.2.1")
	var client, server net.Conn
	r := n.relay()
	r.Dial = func(context.Context, string, string) (net.Conn, error) {
		client, err = net.Dial("tcp", l.Addr().String())
		if err == nil {
			server, err = l.Accept()
		}
		n.wg.Go(func() {
			defer server.Close()
			// The end without a message is what is expected.
			if err := script(dialogue(flights, 4, "S: 354 go on\nC: x")).play(server, nil); !errors.Is(err, io.EOF) {
				t.Errorf("the server saw %v", err)
			}
		})
		return client, err
	}
	a := &hookedAttempt{hook: func() {
		io.WriteString(server, "250 delivered, honestly\r\n")
		waitFor(t, func() bool { return !smtpclient.New(client, nil).Quiet() })
	}}
	derr := r.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
	wantStatus(t, "early", mailspine.ErrorAt(derr, 0), "451 4.5.0")
	n.wg.Wait()
}

type hookedAttempt struct {
	attempt
	hook func()
}

func (a *hookedAttempt) BeforeCommit(context.Context, time.Duration) error {
	a.hook()
	return nil
}

// A connection that breaks while a small message is sent: as long as nothing of the dot's line has gone out the next
// host is tried; then there is doubt.
func TestRelayShortWrite(t *testing.T) {
	const wire = "x\r\n.\r\n"
	for n := range len(wire) + 1 {
		synctest.Test(t, func(t *testing.T) {
			nw := newNetwork(t)
			nw.mx("dest.example", "192.0.2.1", "192.0.2.2")
			nw.scripts["192.0.2.1"] = []script{script(dialogue(moments, 4, "S: 354 go on\nSTALL"))}
			nw.scripts["192.0.2.2"] = []script{script(dialogue(moments, 5, "S: 250 done\nC: QUIT\nS: 221 bye"))}
			r := nw.relay()
			r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := nw.dial(ctx, network, addr)
				if len(nw.dialed) > 1 {
					return conn, err
				}
				return &shortWriter{conn, wire, n}, err
			}
			err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
			doubt := n > len(wire)-len(dotLine)
			wantStatus(t, fmt.Sprintf("%d octets of %d", n, len(wire)), mailspine.ErrorAt(err, 0), map[bool]string{true: "451 4.4.2"}[doubt])
			if got := len(nw.dialed); got != map[bool]int{true: 1, false: 2}[doubt] {
				t.Errorf("%d octets of %d: connected to %v", n, len(wire), nw.dialed)
			}
			nw.wg.Wait()
		})
	}
}

// A shortWriter breaks after n octets of the message.
type shortWriter struct {
	net.Conn
	message string
	n       int
}

func (s *shortWriter) Write(p []byte) (int, error) {
	if string(p) != s.message || s.n == len(p) {
		return s.Conn.Write(p)
	}
	s.Conn.Close()
	return s.n, net.ErrClosed
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

// A small message that cannot be read is not even begun.
func TestRelayBrokenSmallContent(t *testing.T) {
	for _, tt := range []struct {
		name string
		msg  mailspine.Content
	}{
		{"shorter than its size", sized{mailspine.StringContent("x\r\n"), 100}},
		{"longer than its size", sized{mailspine.StringContent("x\r\n"), 1}},
		{"gone", &changing{size: 3}},
		{"stuck", sized{stuck{}, 3}},
	} {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		ctx, cancel := context.WithCancel(t.Context())
		if tt.name == "stuck" {
			cancel()
		}
		err := n.relay().Deliver(ctx, envelope(t, "ann@sender.example", "bob@dest.example"), tt.msg)
		cancel()
		if st := mailspine.Status(err); st == nil || !st.Temporary() {
			t.Errorf("%s: %v", tt.name, err)
		}
		if len(n.dialed) > 0 {
			t.Errorf("%s: connected to %v", tt.name, n.dialed)
		}
	}
}

// stuck is a Content whose reader yields neither octets nor an error.
type stuck struct{}

func (stuck) Size() int64                                   { return 3 }
func (s stuck) Open(context.Context) (io.ReadCloser, error) { return io.NopCloser(s), nil }
func (stuck) Read([]byte) (int, error)                      { return 0, nil }

// A message that cannot be read to its end is never finished with a dot.
func TestRelayBrokenContent(t *testing.T) {
	for _, tt := range []struct {
		name string
		msg  mailspine.Content
		want string
	}{
		{"shorter than its size", sized{mailspine.StringContent(large), int64(len(large)) + 100}, "451 4.3.0"},
		{"longer than its size", sized{mailspine.StringContent(large), int64(len(large)) - 1}, "451 4.3.0"},
		{"changed after it was looked at", &changing{bodies: []string{large, strings.Replace(large, "\r", "x", 1)}, size: len(large)}, "554 5.6.0"},
		{"gone after it was looked at", &changing{bodies: []string{large}, size: len(large)}, "451 4.3.0"},
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
type changing struct {
	bodies []string
	size   int
}

func (c *changing) Size() int64 { return int64(c.size) }

func (c *changing) Open(context.Context) (io.ReadCloser, error) {
	if len(c.bodies) == 0 {
		return nil, fmt.Errorf("it is gone")
	}
	b := c.bodies[0]
	c.bodies = c.bodies[1:]
	return io.NopCloser(strings.NewReader(b)), nil
}
