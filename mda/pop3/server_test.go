package pop3

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

const letter = "Subject: Hello\r\nTo: ann\r\n\r\n.dot\r\n..\r\n\r\nlast\r\n"

func TestDialogue(t *testing.T) { eachStore(t, testDialogue) }

func testDialogue(t *testing.T, store mailbox.Store) {
	b := newBenchOn(t, store, nil)
	b.add(letter)
	b.add("Subject: Second\r\n\r\n")
	c := b.dial()
	c.want("+OK")
	if got := c.lines("CAPA"); got != "TOP\r\nUIDL\r\nPIPELINING\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nEXPIRE NEVER\r\nSTLS\r\n" {
		t.Errorf("%q", got)
	}
	c.do("STAT", "-ERR Log in first")
	c.do("USER "+user, "-ERR [SYS/PERM]") // no secrets in clear
	c.do("AUTH PLAIN", "-ERR [SYS/PERM]")
	c.do("PASS x", "-ERR [SYS/PERM]")
	c.do("APOP ann x", "-ERR")
	c.do("XYZZY \x01", "-ERR")
	c.do("STLS now", "-ERR")
	c.do("stls", "+OK")
	tc := tls.Client(c.nc, b.clientTLS())
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	c = newClient(t, tc)
	if got := c.lines("CAPA "); !strings.HasSuffix(got, "USER\r\nSASL PLAIN\r\n") || strings.Contains(got, "STLS") {
		t.Errorf("%q", got)
	}
	c.do("STLS", "-ERR")
	c.do("PASS x", "-ERR Say USER first")
	c.do("user "+user, "+OK")
	c.do("PASS "+strings.TrimSpace(password), "-ERR [AUTH]")
	c.do("PASS "+password, "-ERR Say USER first")
	c.do("USER "+user, "+OK")
	c.do("PASS "+password, fmt.Sprintf("+OK 2 messages, %d octets", len(letter)+19))
	c.do("USER x", "-ERR You are logged in already")
	c.do("STAT", fmt.Sprintf("+OK 2 %d", len(letter)+19))
	if got := c.lines("LIST"); got != fmt.Sprintf("1 %d\r\n2 19\r\n", len(letter)) {
		t.Errorf("%q", got)
	}
	c.do("LIST 2", "+OK 2 19")
	for _, s := range []string{"LIST 3", "LIST 0", "LIST -1", "LIST x", "RETR", "RETR 99999999999", "DELE 3", "UIDL 3", "TOP 1", "TOP 1 x", "TOP x 1", "NOOP x", "STAT x", "QUIT now"} {
		c.do(s, "-ERR")
		c.do("NOOP", "+OK")
	}
	if got := c.lines("RETR 1"); got != letter {
		t.Errorf("%q", got)
	}
	for n, want := range map[string]string{"0": "Subject: Hello\r\nTo: ann\r\n\r\n", "1": "Subject: Hello\r\nTo: ann\r\n\r\n.dot\r\n", "3": "Subject: Hello\r\nTo: ann\r\n\r\n.dot\r\n..\r\n\r\n", "99": letter} {
		if got := c.lines("TOP 1 " + n); got != want {
			t.Errorf("TOP 1 %s: %q", n, got)
		}
	}
	ids := c.lines("UIDL")
	one := c.do("UIDL 1", "+OK 1 ")
	if f := strings.Fields(ids); len(f) != 4 || f[1] == f[3] || f[1] != strings.Fields(one)[2] || len(f[1]) != 16 {
		t.Errorf("%q", ids)
	}
	c.do("DELE 1", "+OK")
	c.do("DELE 1", "-ERR")
	c.do("RETR 1", "-ERR")
	c.do("LIST 1", "-ERR")
	c.do("STAT", "+OK 1 19")
	if got := c.lines("LIST"); got != "2 19\r\n" {
		t.Errorf("%q", got)
	}
	c.do("RSET", "+OK")
	c.do("STAT", fmt.Sprintf("+OK 2 %d", len(letter)+19))
	c.do("DELE 2", "+OK")
	if b.count() != 2 {
		t.Error("a message was removed before QUIT")
	}
	c.do("QUIT", "+OK Goodbye, 1")
	c.eof()
	if b.count() != 1 {
		t.Error("QUIT did not remove the message")
	}
	if st := b.Stats(); st.AuthOK != 1 || st.AuthBad != 1 || st.Retrieved != 1 || st.Deleted != 1 {
		t.Errorf("%+v", st)
	}
	c = b.session()
	if got := c.lines("CAPA"); !strings.HasSuffix(got, "USER\r\nSASL PLAIN\r\n") { // RFC 2449 section 5
		t.Errorf("%q", got)
	}
	if got := c.lines("UIDL"); !strings.HasSuffix(strings.TrimSpace(got), strings.Fields(ids)[1]) {
		t.Errorf("the name changed: %q, %q", ids, got)
	}
}

func TestAuth(t *testing.T) {
	b := newBench(t, func(s *Server) { s.Limits.MaxAuthFailures = -1; s.Limits.MaxErrors = -1 })
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	good := b64("\x00" + user + "\x00" + password)
	for _, bad := range []string{b64("\x00" + user + "\x00wrong"), b64("\x00nobody\x00x"), b64(user + "x\x00" + user + "\x00" + password), b64("\x00\xff\x00x"), b64("\x00" + strings.Repeat("u", 1025) + "\x00x")} {
		c := b.dialTLS()
		c.do("AUTH PLAIN "+bad, "-ERR [AUTH]")
		c.do("AUTH PLAIN", "+")
		c.do(bad, "-ERR [AUTH]")
		c.do("AUTH PLAIN "+good, "+OK")
		c.do("QUIT", "+OK")
	}
	c := b.dialTLS()
	for _, bad := range []string{"AUTH", "AUTH LOGIN", "AUTH CRAM-MD5", "AUTH PLAIN !", "AUTH PLAIN =", "AUTH PLAIN " + b64("no zero"), "AUTH PLAIN *"} {
		if got := c.do(bad, "-ERR"); strings.Contains(got, "[AUTH]") {
			t.Errorf("%s: %s", bad, got)
		}
	}
	c.do("AUTH PLAIN", "+")
	c.do("*", "-ERR Cancelled")
	c.do("USER bug", "+OK")
	c.do("PASS x", "-ERR [SYS/TEMP]")
	c.do("USER nothing", "+OK")
	c.do("PASS x", "-ERR [SYS/TEMP]")
	c.do("auth plain", "+")
	c.do(good, "+OK")
}

// Guesses cost time, and then the connection.
func TestAuthFailures(t *testing.T) {
	b := newBench(t, nil)
	c := b.dialTLS()
	for i := range 3 {
		c.do("USER "+user, "+OK")
		c.do(fmt.Sprint("PASS ", i), "-ERR [AUTH]")
	}
	c.eof()
}

func TestLock(t *testing.T) {
	b := newBench(t, nil)
	first := b.session()
	second := b.dialTLS()
	second.do("USER "+user, "+OK")
	second.do("PASS "+password, "-ERR [IN-USE]")
	first.do("QUIT", "+OK")
	first.eof()
	second.do("USER "+user, "+OK")
	second.do("PASS "+password, "+OK")
}

// Only QUIT removes.
func TestLostConnection(t *testing.T) { eachStore(t, testLostConnection) }

func testLostConnection(t *testing.T, store mailbox.Store) {
	b := newBenchOn(t, store, nil)
	b.add(letter)
	c := b.session()
	c.do("DELE 1", "+OK")
	c.nc.Close()
	// The lock is given back when the server has noticed.
	for {
		release, err := b.box.LockMaildrop(t.Context())
		if err == nil {
			release()
			break
		}
		if !errors.Is(err, mailbox.ErrInUse) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	c = b.session()
	c.do("STAT", "+OK 1 ")
	c.do("DELE 1", "+OK")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := b.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	c.want("-ERR [SYS/TEMP] Shutting down")
	c.eof()
	if b.count() != 1 {
		t.Error("a message was removed without QUIT")
	}
}

// What others do to the mailbox meanwhile.
func TestOthers(t *testing.T) { eachStore(t, testOthers) }

func testOthers(t *testing.T, store mailbox.Store) {
	b := newBenchOn(t, store, nil)
	uid := b.add(letter)
	b.add("Subject: Second\r\n\r\n")
	c := b.session()
	b.add("Subject: Third\r\n\r\n")
	if _, err := b.box.Expunge(t.Context(), []mailbox.UID{uid}, mailbox.ExpungeOptions{Any: true}); err != nil {
		t.Fatal(err)
	}
	c.do("STAT", fmt.Sprintf("+OK 2 %d", len(letter)+19))
	c.do("RETR 1", "-ERR [SYS/PERM]")
	c.do("TOP 1 1", "-ERR [SYS/PERM]")
	c.do("DELE 1", "+OK")
	c.do("DELE 2", "+OK")
	c.do("QUIT", "+OK")
	if n := b.count(); n != 1 {
		t.Errorf("%d messages are left, not the third alone", n)
	}
}

func TestPipelining(t *testing.T) { eachStore(t, testPipelining) }

func testPipelining(t *testing.T, store mailbox.Store) {
	b := newBenchOn(t, store, nil)
	b.add(letter)
	c := b.dialTLS()
	c.send("CAPA\r\nUSER " + user + "\r\nPASS " + password + "\r\nSTAT\r\nRETR 1\r\nDELE 1\r\nQUIT")
	c.want("+OK")
	c.rest()
	for range 3 {
		c.want("+OK")
	}
	c.want("+OK")
	if got := c.rest(); got != letter {
		t.Errorf("%q", got)
	}
	c.want("+OK")
	c.want("+OK")
	c.eof()
}

// What comes behind STLS before the handshake is not taken for what comes under TLS.
func TestSTLSInjection(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial()
	c.want("+OK")
	c.send("STLS\r\nUSER eve")
	c.want("-ERR")
	c.eof()
	// A handshake that fails ends the connection: nothing goes on in clear.
	c = b.dial()
	c.want("+OK")
	c.do("STLS", "+OK")
	c.send("CAPA\r\nCAPA\r\nCAPA\r\nCAPA\r\nCAPA\r\nCAPA")
	if rest, _ := io.ReadAll(c.r); strings.Contains(string(rest), "+OK") {
		t.Errorf("%q", rest)
	}
}

func TestLimits(t *testing.T) {
	b := newBench(t, func(s *Server) { s.Limits = Limits{MaxConns: 2, MaxErrors: 3, MaxCommands: 5} })
	one, two := b.dialTLS(), b.dialTLS()
	refused := b.dial()
	refused.want("-ERR [SYS/TEMP] Too many connections")
	refused.eof()
	for range 3 {
		one.do("X", "-ERR")
	}
	one.eof()
	for range 5 {
		two.do("CAPA", "+OK")
		two.rest()
	}
	two.do("CAPA", "-ERR")
	two.eof()
	b = newBench(t, func(s *Server) { s.Limits.MaxConnsPerAddr = 1 })
	c := b.dial()
	c.want("+OK")
	refused = b.dial()
	refused.want("-ERR [SYS/TEMP] Too many connections from")
	for _, long := range []string{strings.Repeat("x", maxLine), strings.Repeat("x", 100_000)} {
		b := newBench(t, nil)
		c := b.dial()
		c.want("+OK")
		go io.WriteString(c.nc, long+"\r\n")
		c.want("-ERR Line too long")
	}
}

// pipe runs a connection of a server without a network, so that time is the bubble's.
func pipe(t *testing.T, s *Server) (*client, func()) {
	s.init()
	ours, theirs := net.Pipe()
	s.admit(theirs, false)
	c := &client{t: t, nc: ours, r: bufio.NewReader(ours)}
	c.want("+OK")
	return c, func() { ours.Close(); s.Close() }
}

// Slow and silent clients are cut off.
func TestTime(t *testing.T) {
	for name, tt := range map[string]struct {
		limits Limits
		do     func(c *client)
		after  time.Duration
	}{
		"silent": {Limits{Login: -1}, func(*client) {}, 10 * time.Minute},
		"no login": {Limits{}, func(c *client) {
			for range 2 {
				time.Sleep(time.Minute)
				c.do("CAPA", "+OK")
				c.rest()
			}
		}, 3 * time.Minute},
		"dripping": {Limits{Login: -1}, func(c *client) {
			for range 9 {
				time.Sleep(time.Minute)
				io.WriteString(c.nc, "N")
			}
		}, 10 * time.Minute},
		"session": {Limits{Login: -1, Session: time.Hour}, func(c *client) {
			for range 59 {
				time.Sleep(time.Minute)
				c.do("CAPA", "+OK")
				c.rest()
			}
		}, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Server{Auth: users, TLSConfig: &tls.Config{}, Limits: tt.limits}
				begin := time.Now()
				c, end := pipe(t, s)
				defer end()
				tt.do(c)
				c.eof() // without a word (RFC 1939 section 3)
				if took := time.Since(begin); took != tt.after {
					t.Errorf("cut off after %v, not %v", took, tt.after)
				}
				if s.Stats().Timeouts != 1 {
					t.Error("no time-out was counted")
				}
			})
		})
	}
}

func TestNotReady(t *testing.T) {
	b := newBench(t, nil)
	for _, s := range []*Server{{}, {TLSConfig: b.TLSConfig, Auth: users}, {TLSConfig: b.TLSConfig, Mailboxes: b.Mailboxes}, {Auth: users, Mailboxes: b.Mailboxes}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Serve(l); err == nil {
			t.Error("it serves")
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error("the listener is open")
		}
	}
}

// A panic ends one connection, not the server.
func TestPanic(t *testing.T) {
	b := newBench(t, func(s *Server) {
		s.Auth = mailspine.AuthenticatorFunc(func(context.Context, mailspine.Credentials) (*mailspine.Login, error) { panic("bug") })
	})
	c := b.dialTLS()
	c.do("USER x", "+OK")
	c.send("PASS x")
	io.ReadAll(c.r)
	b.dialTLS().do("QUIT", "+OK")
	if b.Stats().Panics != 1 {
		t.Error("no panic was counted")
	}
}

func copied(t testing.TB, in string, lines int) (wire string, n int64) {
	t.Helper()
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	n, err := copyMessage(context.Background(), w, strings.NewReader(in), lines)
	if err != nil {
		t.Fatal(err)
	}
	w.Flush()
	return b.String(), n
}

// Whatever is stored, what is sent ends nowhere but at its end, and is the message with its line ends in order.
func TestCopyMessage(t *testing.T) {
	for in, want := range map[string]string{
		"":              "",
		"a":             "a\r\n",
		"a\r\n":         "a\r\n",
		"a\n.\nb\r.\rc": "a\r\n..\r\nb\r\n..\r\nc\r\n",
		"\r":            "\r\n",
		"\n":            "\r\n",
		"\r\r\n\n":      "\r\n\r\n\r\n",
		".\r\n.":        "..\r\n..\r\n",
		"a\r":           "a\r\n",
	} {
		if got, _ := copied(t, in, -1); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.StringMatching(`([.a]|\r\n|\r|\n|\r\n\r\n){0,30}`).Draw(t, "message")
		lines := rapid.IntRange(-1, 5).Draw(t, "lines")
		var b bytes.Buffer
		w := bufio.NewWriter(&b)
		n, err := copyMessage(context.Background(), w, strings.NewReader(in), lines)
		w.Flush()
		if err != nil {
			t.Fatal(err)
		}
		// The model: line ends in order, then cut, then stuffed.
		plain := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(in)
		all := strings.SplitAfter(plain, "\n")
		if all[len(all)-1] == "" {
			all = all[:len(all)-1]
		}
		var want strings.Builder
		octets, header := int64(0), true
		left := lines
		for _, l := range all {
			if !header && left == 0 {
				break
			}
			l = strings.TrimSuffix(l, "\n") + "\r\n"
			octets += int64(len(l))
			if strings.HasPrefix(l, ".") {
				want.WriteByte('.')
			}
			want.WriteString(l)
			if header {
				header = l != "\r\n"
			} else if left > 0 {
				left--
			}
		}
		if b.String() != want.String() || n != octets {
			t.Fatalf("%q with %d lines became %q of %d, not %q of %d", in, lines, b.String(), n, want.String(), octets)
		}
	})
}

// Random commands do what a simple model says.
func TestModel(t *testing.T) { eachStore(t, testModel) }

func testModel(t *testing.T, store mailbox.Store) {
	b := newBenchOn(t, store, func(s *Server) { s.Limits.MaxErrors = -1 })
	rapid.Check(t, func(rt *rapid.T) {
		if info, _ := b.box.Info(t.Context()); info.Messages < 4 {
			for i := range 6 {
				b.add(fmt.Sprintf("Subject: %d\r\n\r\n%s\r\n", i, strings.Repeat("x", i)))
			}
		}
		snap, err := b.box.Snapshot(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		deleted := make([]bool, len(snap.Messages))
		c := b.session()
		ok := map[bool]string{true: "+OK", false: "-ERR"}
		for range rapid.IntRange(0, 20).Draw(rt, "steps") {
			n := rapid.IntRange(0, len(deleted)+1).Draw(rt, "n")
			there := n >= 1 && n <= len(deleted) && !deleted[n-1]
			switch op := rapid.SampledFrom([]string{"DELE", "RETR", "LIST", "UIDL", "RSET", "STAT"}).Draw(rt, "op"); op {
			case "RSET":
				c.do(op, "+OK")
				clear(deleted)
			case "STAT":
				count, octets := 0, int64(0)
				for i, m := range snap.Messages {
					if !deleted[i] {
						count++
						octets += m.Size
					}
				}
				if got := c.do(op, "+OK"); got != fmt.Sprintf("+OK %d %d", count, octets) {
					rt.Fatalf("%s, not %d %d", got, count, octets)
				}
			default:
				c.do(fmt.Sprint(op, " ", n), ok[there])
				if op == "RETR" && there {
					if got := c.rest(); int64(len(got)) != snap.Messages[n-1].Size {
						rt.Fatalf("message %d has %d octets, not %d", n, len(got), snap.Messages[n-1].Size)
					}
				}
				if op == "DELE" && there {
					deleted[n-1] = true
				}
			}
		}
		quit := rapid.Bool().Draw(rt, "quit")
		if quit {
			c.do("QUIT", "+OK")
		}
		c.nc.Close()
		for { // until the lock is free
			release, err := b.box.LockMaildrop(t.Context())
			if err == nil {
				release()
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
		after, err := b.box.Snapshot(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		var left []mailbox.UID
		for i, m := range snap.Messages {
			if !deleted[i] || !quit {
				left = append(left, m.UID)
			}
		}
		var got []mailbox.UID
		for _, m := range after.Messages {
			got = append(got, m.UID)
		}
		if fmt.Sprint(left) != fmt.Sprint(got) {
			rt.Fatalf("%v are left, not %v", got, left)
		}
	})
}

// Nothing that a client says, under TLS or not, logged in or not, breaks the server or its replies.
func FuzzConversation(f *testing.F) {
	f.Add("CAPA\r\nQUIT\r\n", false)
	f.Add("LIST\r\nRETR 1\r\nTOP 1 0\r\nDELE 1\r\nRSET\r\nUIDL 1\r\nSTAT\r\nQUIT\r\n", true)
	f.Add("USER a\r\nPASS b\r\nAUTH PLAIN\r\n*\r\nAUTH PLAIN =\r\n\x00\r\n", true)
	b := newBench(f, func(s *Server) { s.Limits.MaxErrors = -1 })
	if _, err := b.box.Append(f.Context(), mailspine.StringContent(letter), mailbox.AppendOptions{}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string, in bool) {
		ours, theirs := net.Pipe()
		b.init()
		c := newConn(b.Server, theirs, false)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if in {
				c.use(theirs)
				c.tls = true
				login := &mailspine.Login{Name: fmt.Sprintf("fuzz%d@example.org", time.Now().UnixNano())}
				c.open("test", login)
			}
			c.serve()
		}()
		go func() {
			io.WriteString(ours, text)
			io.WriteString(ours, "\r\nQUIT\r\n")
			ours.SetReadDeadline(time.Now().Add(5 * time.Second))
		}()
		out, _ := io.ReadAll(ours)
		ours.Close()
		<-done
		for line := range strings.Lines(string(out)) {
			if !strings.HasSuffix(line, "\r\n") || strings.ContainsAny(strings.TrimSuffix(line, "\r\n"), "\r\n\x00") {
				t.Fatalf("%q among the replies to %q", line, text)
			}
		}
	})
}

// A hook that panics ends its connection, and nothing else.
func TestPanickingHooks(t *testing.T) {
	for name, trace := range map[string]*Trace{
		"Connected":    {Connected: func(context.Context, netip.AddrPort) { panic("bug") }},
		"Wire":         {Wire: func(context.Context, netip.AddrPort, bool, string) { panic("bug") }},
		"Disconnected": {Disconnected: func(context.Context, netip.AddrPort, time.Duration) { panic("bug") }},
	} {
		b := newBench(t, func(s *Server) { s.Trace = trace })
		for range 2 {
			c := b.dial()
			c.send("QUIT")
			io.ReadAll(c.r)
		}
		if err := b.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := b.Stats().Panics; n != 2 {
			t.Errorf("%s: %d panics were counted", name, n)
		}
	}
}

// No trace has a password, however it is sent.
func TestTraceSecrets(t *testing.T) {
	var mu sync.Mutex
	var lines []string
	b := newBench(t, func(s *Server) {
		s.Limits.MaxErrors, s.Limits.MaxAuthFailures = -1, -1
		s.Trace = &Trace{Wire: func(_ context.Context, _ netip.AddrPort, _ bool, line string) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, line)
		}}
	})
	c := b.dialTLS()
	secret := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00hunter2"))
	c.do("USER "+user, "+OK")
	for _, s := range []string{"PASS hunter2", "pass hunter2", " PASS hunter2", "PASS\thunter2", "PASS:hunter2", "hunter2", "AUTH PLAIN " + secret, "auth plain " + secret, "AUTH LOGIN " + secret, secret} {
		c.do(s, "-ERR")
	}
	c.do("AUTH PLAIN", "+")
	c.do(secret, "-ERR")
	c.do("QUIT", "+OK")
	c.eof()
	mu.Lock()
	defer mu.Unlock()
	for _, l := range lines {
		if strings.Contains(l, "hunter2") || strings.Contains(l, secret) {
			t.Errorf("the trace has %q", l)
		}
	}
	if len(lines) < 20 {
		t.Errorf("%d lines", len(lines))
	}
}

// An Authenticator is never asked about an empty name or password.
func TestEmptyCredentials(t *testing.T) {
	b := newBench(t, func(s *Server) {
		s.Limits.MaxAuthFailures = -1
		s.Auth = mailspine.AuthenticatorFunc(func(_ context.Context, c mailspine.Credentials) (*mailspine.Login, error) {
			return &mailspine.Login{Name: "guest@example.org"}, nil
		})
	})
	c := b.dialTLS()
	c.do("USER x", "+OK")
	c.do("PASS ", "-ERR [AUTH]")
	c.do("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00x\x00")), "-ERR")
	c.do("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00\x00x")), "-ERR")
}

// A client that reads slowly holds the maildrop no longer than a session may last.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(nil)
		account, err := store.Account(t.Context(), user)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := account.Deliver(t.Context(), mailspine.StringContent("Subject: x\r\n\r\n"+strings.Repeat("0123456789abcde\n", 1<<18)), mailbox.DeliverOptions{}); err != nil {
			t.Fatal(err)
		}
		s := &Server{Mailboxes: store, Auth: users, TLSConfig: &tls.Config{}, Limits: Limits{Session: time.Hour}}
		if err := s.ready(); err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		c := newConn(s, theirs, false)
		begin := time.Now()
		done := make(chan time.Duration)
		go func() {
			c.use(theirs)
			c.tls = true
			c.open("test", &mailspine.Login{Name: user})
			c.serve()
			done <- time.Since(begin)
		}()
		go io.WriteString(ours, "RETR 1\r\n")
		read := make(chan struct{}) // closed when the reader has ended
		go func() {
			defer close(read)
			buf := make([]byte, 32<<10)
			for {
				if _, err := ours.Read(buf); err != nil {
					return
				}
				time.Sleep(50 * time.Second)
			}
		}()
		took := <-done
		<-read
		if took > time.Hour+time.Minute {
			t.Errorf("it lasted %v", took)
		}
		if s.Stats().Timeouts != 1 {
			t.Error("no time-out was counted")
		}
	})
}

// Messages that others removed do not count against the client.
func TestManyGone(t *testing.T) {
	b := newBench(t, nil)
	for range 25 {
		b.add(letter)
	}
	c := b.session()
	if _, err := b.box.Expunge(t.Context(), nil, mailbox.ExpungeOptions{All: true, Any: true}); err != nil {
		t.Fatal(err)
	}
	for i := range 25 {
		c.do(fmt.Sprint("RETR ", i+1), "-ERR [SYS/PERM]")
	}
	c.do("QUIT", "+OK")
}
