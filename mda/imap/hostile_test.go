package imap

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

// Guesses that come in one packet are as many as the limit says.
func TestPipelinedGuesses(t *testing.T) {
	b := newBench(t, nil)
	c := b.dialTLS()
	c.send(strings.Repeat("x LOGIN nobody x\r\n", 100))
	rest, _ := io.ReadAll(c.r)
	if n := strings.Count(string(rest), "x NO"); n != 3 || !strings.Contains(string(rest), "* BYE Too many failed logins") {
		t.Errorf("%d guesses: %q", n, rest)
	}
	if st := b.Stats(); st.AuthBad != 3 {
		t.Errorf("%+v", st)
	}
}

// A literal is one in every form that the engine takes for one.
func TestRefusedLiteralForms(t *testing.T) {
	b := newBench(t, func(s *Server) { s.Limits.MaxMessage = 100 << 10 })
	text := "x CREATE Hacked\r\n" + strings.Repeat("a", 200_000)
	for _, command := range []string{
		"y APPEND INBOX {%d+} \r\n", "y APPEND INBOX {%d+}\n", "y APPEND INBOX {%d+} \n", "+y APPEND INBOX {%d+}\r\n", "+ APPEND INBOX {%d+}\r\n", "y APPEND INBOX {000000000000000000000000000%d+}\r\n",
		"y APPEND {5+}\r\nINBOX {%d+}\r\n", "y APPEND INBOX UTF8 (~{%d+}\r\n", "y APPEND \"IN\r\nBOX\" {%d+}\r\n",
		"y APPEND INBOX {" + strings.Repeat("0", 100) + "%d+}\r\n",
	} {
		for _, slow := range []bool{false, true} {
			c := b.session()
			line := fmt.Sprintf(command, len(text))
			go func() { // it may be cut off
				if slow { // each octet for itself
					for i := range len(line) {
						io.WriteString(c.nc, line[i:i+1])
					}
					line = ""
				}
				io.WriteString(c.nc, line+text+"\r\nz LOGOUT\r\n")
			}()
			rest, _ := io.ReadAll(c.r)
			if strings.Contains("\n"+string(rest), "\nx ") {
				t.Errorf("%q, slow: %t: %q", command, slow, rest)
			}
		}
	}
	if got := b.session().ok(`LIST "" *`); strings.Contains(got, "Hacked") {
		t.Error(got)
	}
}

// The engine keeps the literals of a command until it is whole, of whoever sends them.
func TestManyLiterals(t *testing.T) {
	b := newBench(t, nil)
	for _, n := range []int{maxLiterals, maxLiterals + 1} {
		c := b.dialTLS()
		go io.WriteString(c.nc, "a SEARCH "+strings.Repeat("TEXT {1+}\r\ny ", n)+"ALL\r\nb SEARCH TEXT {1+}\r\ny\r\nc LOGOUT\r\n")
		rest, _ := io.ReadAll(c.r)
		if bye := strings.HasPrefix(string(rest), "* BYE [CLIENTBUG]"); bye != (n > maxLiterals) || !bye && strings.Count(string(rest), "BAD") != 2 {
			t.Errorf("%d literals: %q", n, rest)
		}
	}
}

// Criteria are held against each message.
func TestManyCriteria(t *testing.T) {
	b := newBench(t, nil)
	b.add("INBOX", letter)
	c := b.session()
	c.ok("SELECT INBOX")
	c.ok("SEARCH " + strings.Repeat("OR SEEN ", 100) + "ALL")
	for _, keys := range []string{"OR SEEN ", "NOT ", "SEEN ", "UNSEEN ", "KEYWORD a ", "(ALL) NOT ", "TEXT a ", "1 ", "UID 1 "} {
		c.no("SEARCH "+strings.Repeat(keys, 1000)+"ALL", "NO [LIMIT]")
	}
	c.ok("SEARCH RETURN (SAVE) ALL")
	if got := c.ok("FETCH $ UID"); got != "* 1 FETCH (UID 1)" {
		t.Error(got)
	}
	c.no("SEARCH RETURN (SAVE) "+strings.Repeat("NOT ", 1000)+"ALL", "NO [LIMIT]")
	if got := c.ok("FETCH $ UID"); got != "" {
		t.Error(got)
	}
	c.no("SEARCH "+strings.Repeat("(", 2000)+"ALL"+strings.Repeat(")", 2000), "NO")
}

// A faulty store fails when it is told to.
type faulty struct {
	mailbox.Store
	setFlags func() error
}

type faultyAccount struct {
	mailbox.Account
	*faulty
}

type faultyBox struct {
	mailbox.Mailbox
	*faulty
}

func (f *faulty) Account(ctx context.Context, user string) (mailbox.Account, error) {
	a, err := f.Store.Account(ctx, user)
	return faultyAccount{a, f}, err
}

func (f faultyAccount) Close() error { return nil } // not the Store's

func (f faultyAccount) Open(ctx context.Context, name string) (mailbox.Mailbox, error) {
	m, err := f.Account.Open(ctx, name)
	return faultyBox{m, f.faulty}, err
}

func (f faultyBox) SetFlags(ctx context.Context, uids []mailbox.UID, change mailbox.FlagChange) (mailbox.FlagResult, error) {
	if err := f.setFlags(); err != nil {
		return mailbox.FlagResult{}, err
	}
	return f.Mailbox.SetFlags(ctx, uids, change)
}

// A command that fails halfway leaves no client with flags that are not so.
func TestHalfway(t *testing.T) {
	f := &faulty{Store: memory.New(nil)}
	b := newBenchOn(t, f, nil)
	calls := 0
	f.setFlags = func() error {
		if calls++; calls%2 == 0 {
			return errors.New("the disk is away")
		}
		return nil
	}
	const n = mailbox.MaxUIDs/10 + 1
	for range n {
		b.add("INBOX", "\r\n")
	}
	c := b.session()
	for command, flag := range map[string]string{"STORE 1:* +FLAGS (a)": "a", "STORE 1:* +FLAGS.SILENT (b)": "b", "FETCH 1:* BODY[]": `\Seen`} {
		c.ok("SELECT INBOX")
		if got := c.no(command, "NO [UNAVAILABLE]"); got != "" {
			t.Errorf("%s: %.100q", command, got)
		}
		if got := strings.Count(c.ok("NOOP"), flag); got != n-1 {
			t.Errorf("%s: the client learns of %d messages", command, got)
		}
	}
	if st := b.Stats(); st.Errors != 3 {
		t.Errorf("%+v", st)
	}
}

// A UID that is not there any more is no mistake; a sequence number is.
func TestVanished(t *testing.T) {
	for command, want := range map[string]string{
		"UID FETCH 1:* UID": "* 2 FETCH (UID 2)", "UID FETCH 1 BODY[]": "", "UID STORE 1,2 +FLAGS (a)": "* 2 FETCH (UID 2 FLAGS (a))", "UID COPY 1 Other": "", "UID MOVE 1 Other": "", "UID EXPUNGE 1": "", "UID SEARCH 1:2": "* SEARCH 2",
		"FETCH 1:2 UID": "NO", "STORE 1 +FLAGS (a)": "NO", "COPY 1:2 Other": "NO", "MOVE 1 Other": "NO",
	} {
		b := newBench(t, nil)
		b.add("INBOX", letter)
		b.add("INBOX", letter)
		c := b.session()
		c.ok("CREATE Other")
		c.ok("SELECT INBOX")
		if _, err := b.box("INBOX").Expunge(t.Context(), []mailbox.UID{1}, mailbox.ExpungeOptions{Any: true}); err != nil {
			t.Fatal(err)
		}
		if want == "NO" {
			c.no(command, "NO [EXPUNGEISSUED]")
			if got := c.ok("NOOP"); got != "* 1 EXPUNGE" {
				t.Errorf("%s: NOOP: %s", command, got)
			}
			continue
		}
		if got := strings.TrimSpace(strings.Replace(c.ok(command), "* 1 EXPUNGE", "", 1)); got != want {
			t.Errorf("%s: %q, not %q", command, got, want)
		}
	}
}

// A client that does not read holds up nobody, and ends with the server.
func TestStalled(t *testing.T) {
	b := newBench(t, nil)
	b.add("INBOX", letter+strings.Repeat("x", 20<<20))
	stall := func() *client {
		c := b.session()
		c.nc.(*tls.Conn).NetConn().(*net.TCPConn).SetReadBuffer(4096)
		c.ok("SELECT INBOX")
		return c
	}
	fetching, idling, other := stall(), stall(), b.session()
	fetching.send("s FETCH 1 BODY.PEEK[]\r\n")
	if s, err := fetching.r.ReadString('\n'); err != nil || !strings.HasPrefix(s, "* 1 FETCH (BODY[] {") {
		t.Fatal(s, err)
	}
	idling.send("s IDLE\r\n")
	idling.want("+")
	other.ok("SELECT INBOX")
	box := b.box("INBOX")
	for i := range 3000 { // more than buffers hold
		op := mailbox.FlagOp(i % 2)
		if _, err := box.SetFlags(t.Context(), []mailbox.UID{1}, mailbox.FlagChange{Op: op, Flags: []mailbox.Flag{mailbox.Flag(strings.Repeat("k", 128))}}); err != nil {
			t.Fatal(err)
		}
	}
	other.ok("NOOP")
	other.ok(`STORE 1 FLAGS (\Flagged)`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	begin := time.Now()
	b.Close()
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("Close takes %v", d)
	}
}

// Close may come at any moment, and leaves nothing behind.
func TestCloseAnytime(t *testing.T) {
	before := runtime.NumGoroutine()
	for i := range 20 {
		b := newBench(t, nil)
		begun := make(chan struct{}, 20)
		ended := make(chan struct{})
		for k := range cap(begun) {
			go func() {
				defer func() { ended <- struct{}{} }()
				nc, err := net.Dial("tcp", []string{b.plain, b.implicit}[k%2])
				begun <- struct{}{}
				if err != nil {
					return
				}
				defer nc.Close()
				if k%2 == 0 {
					io.WriteString(nc, "a STARTTLS\r\n")
					io.ReadFull(nc, make([]byte, 20))
				} else {
					nc = tls.Client(nc, b.clientTLS())
					io.WriteString(nc, "a LOGIN "+user+" \""+password+"\"\r\nb SELECT INBOX\r\nc IDLE\r\n")
				}
				nc.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("a connection is left open")
				}
			}()
		}
		for range i {
			<-begun
		}
		b.Close()
		for range cap(begun) {
			<-ended
		}
		if st := b.Stats(); st.Conns != 0 {
			t.Errorf("%+v", st)
		}
	}
	for at := time.Now(); runtime.NumGoroutine() > before+2*20; runtime.Gosched() { // the listeners' goroutines wait for t's end
		if time.Since(at) > 10*time.Second {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before: %s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

var endless = regexp.MustCompile(`\{[0-9]{50}`)

// What the octets of a literal are does not hang on how they come.
func FuzzGuard(f *testing.F) {
	for _, s := range []string{"a APPEND x {5+}\r\nhello\r\nb NOOP\r\n", "a SEARCH {3}\r\nabc {2+} \nxy\r\n", "{{{{{1+}\r\n", "a {00000000000001}\r\nx", strings.Repeat("{1+}\r\nx", 70), "a {9999999999999999999999+}\r\n"} {
		f.Add(s, byte(3), byte(1))
	}
	f.Fuzz(func(t *testing.T, s string, step, answers byte) {
		// An engine that accepts, refuses, or says nothing to what is announced.
		run := func(step int) string {
			var g guard
			in := s
			var out strings.Builder
			n := byte(0)
			for buf := make([]byte, 4096); ; {
				k, err := g.read(buf, func(b []byte) (int, error) {
					if in == "" {
						return 0, io.EOF
					}
					k := copy(b[:min(len(b), step)], in)
					in = in[k:]
					return k, nil
				})
				out.Write(buf[:k])
				if err != nil {
					if len(g.tail) > maxAnnouncement {
						t.Fatalf("%d octets are held back", len(g.tail))
					}
					return out.String() + fmt.Sprint(errors.Is(err, errGuard))
				}
				g.mu.Lock()
				ask := g.waiting && !g.asked && !g.refused
				g.mu.Unlock()
				if ask && strings.HasSuffix(out.String(), "\n") {
					switch n++; (answers >> (n % 4 * 2)) & 3 {
					case 0, 3:
						if g.written([]byte(goAhead)) == g.plus {
							t.Fatal("the client sees what it must not, or does not what it must")
						}
					case 1:
						g.written([]byte("x BAD\r\n"))
					}
				}
			}
		}
		whole, pieces := run(len(s)+1), run(1+int(step))
		if strings.HasSuffix(pieces, "true") && endless.MatchString(s) {
			return // so many digits are not waited for
		}
		if end, ok := strings.CutSuffix(whole, "true"); ok && strings.HasPrefix(pieces, end) && strings.HasSuffix(pieces, "true") {
			return // of the line that ends it, the engine may have got the beginning
		}
		if whole != pieces {
			t.Fatalf("%q: %q at once, %q in pieces", s, whole, pieces)
		}
	})
}
