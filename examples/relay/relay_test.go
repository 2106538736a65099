package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/emersion/go-smtp"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/control"
)

// What is taken arrives with a Received field on top, and is otherwise as it was.
func TestRelay(t *testing.T) {
	t.Parallel()
	s := newSink(t)
	p := start(t, t.TempDir(), "-relay", s.addr, "-redact")
	if err := p.sendFrom("127.0.0.1", "ann@a.example", "hello", "bob@b.example", "eve@c.example"); err != nil {
		t.Fatal(err)
	}
	got := s.waitFor(t, 1)[0]
	head, ok := strings.CutSuffix(got.text, letter("ann@a.example", "bob@b.example", "hello"))
	if !ok || !strings.HasPrefix(head, "Received: from localhost ([127.0.0.1])\r\n\tby relay.example with ESMTP\r\n\tid ") || strings.Count(head, ":") != 3 {
		t.Errorf("arrived:\n%s", got.text)
	}
	if got.from != "ann@a.example" || len(got.to) != 2 || got.to[0] != "bob@b.example" || got.to[1] != "eve@c.example" {
		t.Errorf("the envelope: %q to %q", got.from, got.to)
	}
	p.stop()
	if log := p.log.String(); !strings.Contains(log, "***@a.example") || strings.Contains(log, "ann@") || strings.Contains(log, "bob@") {
		t.Errorf("the log is not redacted:\n%s", log)
	}
}

// Without -v there is nothing to say of what goes well.
func TestQuiet(t *testing.T) {
	t.Parallel()
	s := newSink(t)
	p := start(t, t.TempDir(), "-relay", s.addr, "-v=false")
	if err := p.send("ann@a.example", "bob@b.example", "hello"); err != nil {
		t.Fatal(err)
	}
	s.waitFor(t, 1)
	p.stop()
	if log := p.log.String(); log != "" {
		t.Errorf("the log:\n%s", log)
	}
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	own, parent, rest := newSink(t), newSink(t), newSink(t)
	file := writeFile(t, "routes", fmt.Sprintf("# where\n\nB.example. %s # itself\n\t.b.example\t%s\r\n", own.addr, parent.addr))
	p := start(t, t.TempDir(), "-routes", file, "-relay", rest.addr)
	if err := p.sendFrom("127.0.0.1", "ann@a.example", "hello", "1@b.example", "2@x.b.example", "3@bb.example", "4@x.y.B.example"); err != nil {
		t.Fatal(err)
	}
	// Route by route: one message for each host.
	for _, c := range []struct {
		s  *sink
		to string
	}{{own, "[1@b.example]"}, {parent, "[2@x.b.example 4@x.y.B.example]"}, {rest, "[3@bb.example]"}} {
		if got := c.s.waitFor(t, 1)[0]; fmt.Sprint(got.to) != c.to {
			t.Errorf("%v arrived where %s should have", got.to, c.to)
		}
	}
	p.stop()

	// Without a way for the rest, it is refused at once.
	p = start(t, t.TempDir(), "-routes", file)
	if err := p.send("ann@a.example", "3@bb.example", "hello"); !refused(err, 550, smtp.EnhancedCode{5, 7, 1}) {
		t.Errorf("a recipient without a route: %v", err)
	}
	if err := p.send("ann@a.example", "1@b.example", "again"); err != nil {
		t.Error(err)
	}
	own.waitFor(t, 2)
	p.stop()
}

// What was held is in the spool, and goes out with the next start, also after a kill.
func TestHold(t *testing.T) {
	t.Parallel()
	s, spool := newSink(t), t.TempDir()
	const n = 5
	for i := range n {
		p := start(t, spool, "-hold", "-relay", s.addr)
		if err := p.send("ann@a.example", "bob@b.example", fmt.Sprint("held ", i)); err != nil {
			t.Fatal(err)
		}
		p.end([]os.Signal{syscall.SIGTERM, syscall.SIGKILL, os.Interrupt}[i%3])
	}
	p := start(t, spool, "-hold")
	if err := p.send("ann@a.example", "bob@b.example", "held nowhere"); err != nil {
		t.Fatal(err)
	}
	p.stop()
	if got := s.subjects(); len(got) > 0 {
		t.Fatalf("sent in spite of -hold: %v", got)
	}
	p = start(t, spool, "-relay", s.addr)
	s.waitFor(t, n+1)
	p.stop()
	for subject, times := range s.subjects() {
		if times != 1 {
			t.Errorf("%q arrived %d times", subject, times)
		}
	}
}

// The control socket shows what is in the spool, and ends with the relay.
func TestControl(t *testing.T) {
	t.Parallel()
	spool := t.TempDir()
	socket := filepath.Join(spool, "control")
	p := start(t, spool, "-hold")
	for i := range 3 {
		if err := p.send("ann@a.example", "bob@b.example", fmt.Sprint("held ", i)); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	c := &control.Client{Path: socket}
	n := 0
	for item, err := range c.List(t.Context(), queue.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; item.Route != "b.example" {
			t.Errorf("%+v", item)
		}
	}
	if n != 3 {
		t.Errorf("%d items", n)
	}
	p.stop()
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is still there")
	}
	// A socket that a kill leaves is no obstacle; without one there is none.
	start(t, spool, "-hold").end(syscall.SIGKILL)
	start(t, spool, "-hold").stop()
	p = start(t, spool, "-hold", "-control", "")
	if _, err := os.Stat(socket); err == nil {
		t.Error("there is a socket")
	}
	p.stop()
}

// However the relay is asked, it takes nothing from who is not of the network.
func TestNoOpenRelay(t *testing.T) {
	t.Parallel()
	s := newSink(t)
	p := start(t, t.TempDir(), "-relay", s.addr, "-networks", "127.0.0.7, 127.1.0.0/16,::1")
	for _, to := range []string{
		"bob@b.example", "postmaster@relay.example", "bob%b.example@relay.example", "b.example!bob@relay.example",
		`"bob@b.example"@relay.example`, "bob@[127.0.0.1]", "postmaster@localhost", "@relay.example:bob@b.example",
	} {
		for _, from := range []string{"ann@relay.example", "", "postmaster@relay.example"} {
			if err := p.sendFrom("127.0.0.1", from, "no", to); !refused(err, 550, smtp.EnhancedCode{5, 7, 1}) {
				t.Errorf("from %q to %q: %v", from, to, err)
			}
		}
	}
	for _, ip := range []string{"127.0.0.7", "127.1.2.3"} {
		if err := p.sendFrom(ip, "ann@a.example", "yes "+ip, "bob@b.example"); err != nil {
			t.Errorf("a client of the network: %v", err)
		}
	}
	s.waitFor(t, 2)
	p.stop()
	if got := s.subjects(); len(got) != 2 || got["no"] != 0 {
		t.Errorf("arrived: %v", got)
	}
}

func TestSigned(t *testing.T) {
	t.Parallel()
	key, err := dkim.GenerateRSA(2048)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := dkim.MarshalKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, "key.pem", string(pem))
	k := dkim.SigningKey{Domain: "a.example", Selector: "s1", Key: key}
	zone := dnstest.Zone{k.Name(): {dnstest.TXT(k.Record().String())}}

	s := newSink(t)
	p := start(t, t.TempDir(), "-relay", s.addr, "-dkim-key", file, "-dkim-domain", "A.example", "-dkim-selector", "s1")
	for _, from := range []string{"ann@a.example", "ann@other.example"} {
		if err := p.send(from, "bob@b.example", from); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range s.waitFor(t, 2) {
		signed := strings.Contains(a.text, "DKIM-Signature:")
		if signed != (a.subject() == "ann@a.example") {
			t.Errorf("signed is %v:\n%s", signed, a.text)
		}
		if !signed {
			continue
		}
		v := &dkim.Verifier{Resolver: zone}
		res, err := v.Verify(context.Background(), mailspine.StringContent(a.text))
		if err != nil || len(res) != 1 || res[0].Status != dkim.Pass {
			t.Errorf("%+v, %v of\n%s", res, err, a.text)
		}
	}
	p.stop()
}

// What a host refuses for good is returned to its sender, by the routes that there are.
func TestReturned(t *testing.T) {
	t.Parallel()
	s := newSink(t)
	s.refuse = "bob@b.example"
	p := start(t, t.TempDir(), "-relay", s.addr)
	if err := p.send("ann@a.example", "bob@b.example", "no luck"); err != nil {
		t.Fatal(err)
	}
	got := s.waitFor(t, 1)[0]
	if got.from != "" || fmt.Sprint(got.to) != "[ann@a.example]" || !strings.Contains(got.text, "Reporting-MTA: dns; relay.example\r\n") ||
		!strings.Contains(got.text, "Status: 5.1.1\r\n") || !strings.Contains(got.text, "Subject: no luck\r\n") {
		t.Errorf("returned to %v:\n%s", got.to, got.text)
	}
	p.stop()
}

// What was accepted is delivered when the relay is stopped in the middle of load, and when it is killed; after an
// orderly end once, after a kill what was under way may be twice.
func TestEndUnderLoad(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			const clients, most, sessions = 4, 400, 5 // most bounds it, should the relay never end
			s, spool := newSink(t), t.TempDir()
			p := start(t, spool, "-relay", s.addr, "-sessions", fmt.Sprint(sessions))
			var mu sync.Mutex
			var wg sync.WaitGroup
			accepted := map[string]bool{}
			begun := make(chan struct{})
			for c := range clients {
				wg.Go(func() {
					for i := range most {
						subject := fmt.Sprintf("load %d-%d", c, i)
						if err := p.send("ann@a.example", "bob@b.example", subject); err != nil {
							return
						}
						mu.Lock()
						if accepted[subject] = true; len(accepted) == 40 {
							close(begun)
						}
						mu.Unlock()
					}
				})
			}
			<-begun
			p.end(sig)
			wg.Wait()

			p = start(t, spool, "-relay", s.addr)
			s.wait(t, "all that was accepted", func([]arrival) bool {
				got := s.subjects()
				for subject := range accepted {
					if got[subject] == 0 {
						return false
					}
				}
				return true
			})
			p.stop()
			twice, got := 0, s.subjects()
			for _, n := range got {
				twice += n - 1
			}
			t.Logf("%d accepted, %d arrived, %d of them again", len(accepted), len(got), twice)
			if sig == syscall.SIGTERM && twice > 0 || twice > sessions {
				t.Errorf("%d messages arrived twice", twice)
			}
			// A client may not have had the answer for the message that it was sending.
			if len(got) > len(accepted)+clients {
				t.Errorf("%d accepted, %d arrived", len(accepted), len(got))
			}
		})
	}
}

// A client in the middle of a message holds up the end, and a second signal does not wait for it.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	spool := t.TempDir()
	p := start(t, spool, "-hold")
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := smtp.NewClient(conn)
	for _, err := range []error{c.Mail("ann@a.example", nil), c.Rcpt("bob@b.example", nil)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Data(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// Its port is closed once it stops.
	for {
		other, err := net.Dial("tcp", p.addr)
		if err != nil {
			break
		}
		other.Close()
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.wait()
	if st, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !st.Signaled() {
		t.Errorf("it ended with %v", p.cmd.ProcessState)
	}
	start(t, spool, "-hold").stop()
}
