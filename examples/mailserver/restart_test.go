package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/emersion/go-smtp"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/maildir"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/control"
)

// uids are the UIDs of the messages of a user's INBOX, by what their text has after
// "Subject: ". The server must be down.
func uids(t *testing.T, dir, user string) (validity uint32, byFile map[string][]mailbox.UID) {
	t.Helper()
	ctx := within(t)
	store, err := maildir.Open(filepath.Join(dir, "mail"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	a, err := store.Account(ctx, user)
	if err != nil {
		t.Fatal(err)
	}
	box, err := a.Open(ctx, mailbox.Inbox)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := box.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	byFile = map[string][]mailbox.UID{}
	for _, m := range snap.Messages {
		body, err := box.Body(ctx, m.UID)
		if err != nil {
			t.Fatal(err)
		}
		text := make([]byte, m.Size)
		if _, err := body.ReadAt(text, 0); err != nil {
			t.Fatal(err)
		}
		body.Close()
		_, s, _ := strings.Cut(string(text), "\nSubject: ")
		s, _, _ = strings.Cut(s, "\r\n")
		byFile[s] = append(byFile[s], m.UID)
	}
	return snap.Info.UIDValidity, byFile
}

// Another start on the same directory has the same mail under the same UIDs, the same
// certificate and the same keys; passwords may have changed.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	own := func() map[string]string {
		files := map[string]string{}
		for _, name := range []string{"cert.pem", "key.pem", "dkim.pem", "dns.txt", "feedback.key"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
			}
			files[name] = string(b)
		}
		return files
	}
	p := start(t, dir, defaults()...)
	for i := range 3 {
		if err := p.write(fmt.Sprint("first ", i), "bob@example.test"); err != nil {
			t.Fatal(err)
		}
		p.with("bob@example.test", "", fmt.Sprint("first ", i))
	}
	p.stop()
	files := own()
	validity, before := uids(t, dir, "bob@example.test")
	if len(before) != 3 {
		t.Fatalf("bob has %v", before)
	}

	p = start(t, dir, "-user", "ann:new secret", "-user", "bob:swordfish")
	if err := p.write("refused", "bob@example.test"); err == nil || !strings.Contains(err.Error(), "535") {
		t.Errorf("the old password: %v", err)
	}
	if _, err := p.submit("ann", "new secret", "ann@example.test", []string{"bob@example.test"}, letter("ann@example.test", "bob@example.test", "second")); err != nil {
		t.Fatal(err)
	}
	p.with("bob@example.test", "", "second")
	p.signal(os.Interrupt)
	p.wait()
	if p.err != nil {
		t.Errorf("after SIGINT: %v", p.err)
	}
	if now := own(); !maps.Equal(files, now) {
		t.Error("a key or certificate has changed")
	}
	validity2, after := uids(t, dir, "bob@example.test")
	if validity2 != validity {
		t.Errorf("UIDVALIDITY %d became %d", validity, validity2)
	}
	for s, u := range before {
		if !slices.Equal(after[s], u) {
			t.Errorf("%q had UIDs %v and has %v", s, u, after[s])
		}
	}
	if len(after) != 4 {
		t.Errorf("bob has %v", after)
	}
}

// load submits from several connections at once until the server is gone, and returns the
// subjects that were accepted. begun is closed when some were.
func load(p *process, enough int, begun chan<- struct{}) (accepted []string) {
	const clients, most = 4, 500 // a bound, in case the server never goes
	var mu sync.Mutex
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range most {
				subject := fmt.Sprintf("load %d-%d", c, i)
				if err := p.write(subject, "bob@example.test"); err != nil {
					return
				}
				mu.Lock()
				accepted = append(accepted, subject)
				if len(accepted) == enough {
					close(begun)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return accepted
}

// What was accepted is delivered, once, when the server is stopped in the middle of load, and when it is
// killed.
func TestEndUnderLoad(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		end  func(*process)
	}{{"SIGTERM", (*process).stop}, {"SIGKILL", (*process).kill}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			p := start(t, dir, defaults()...)
			begun, done := make(chan struct{}), make(chan []string, 1)
			go func() { done <- load(p, 20, begun) }()
			select {
			case <-begun:
			case <-within(t).Done():
				t.Fatal("nothing is accepted")
			}
			c.end(p)
			accepted := <-done

			p = start(t, dir, defaults()...)
			eventually(t, "all that was accepted arrives", func() bool {
				have := strings.Join(p.mailbox("bob@example.test", ""), "\n")
				return !slices.ContainsFunc(accepted, func(s string) bool { return !strings.Contains(have, "\nSubject: "+s+"\r\n") })
			})
			p.stop()
			_, arrived := uids(t, dir, "bob@example.test")
			for s, u := range arrived {
				if len(u) != 1 {
					t.Errorf("%q arrived %d times", s, len(u))
				}
			}
			t.Logf("%d accepted, %d arrived", len(accepted), len(arrived))
			// A client may have lost the answer for the message that was under way, no more.
			if len(arrived) < len(accepted) || len(arrived) > len(accepted)+4 {
				t.Errorf("%d accepted, %d arrived", len(accepted), len(arrived))
			}
		})
	}
}

// A client in the middle of a message holds up the end, for a while, and a second signal does not wait for it.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, dir, defaults()...)
	conn, err := net.Dial("tcp", p.addr["smtp"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := smtp.NewClient(conn)
	if err := errors.Join(c.Mail("joe@sender.example", nil), c.Rcpt("ann@example.test", nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Data(); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGTERM)
	eventually(t, "it begins to stop", func() bool { return strings.Contains(p.log.String(), `msg="stopping`) })
	p.signal(syscall.SIGTERM)
	p.wait()
	if s, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !s.Signaled() {
		t.Errorf("it ended with %v\n%s", p.cmd.ProcessState, p.log)
	}
	start(t, dir, defaults()...).stop()
}

// What waits in the queue, or is under way, when the server is killed is delivered by the next one, once.
func TestKilledWithQueue(t *testing.T) {
	t.Parallel()
	ns, err := dnstest.Start(dnstest.Zone{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	// A server that takes connections and says nothing.
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mute.Close() })
	busy := make(chan net.Conn)
	go func() {
		defer close(busy)
		for {
			c, err := mute.Accept()
			if err != nil {
				return
			}
			busy <- c
		}
	}()
	const messages, underWay = 12, 5 // as many as a Relay lets go to one host at first
	dir := t.TempDir()
	p := start(t, dir, append(defaults(), "-route", "beta.example="+mute.Addr().String())...)
	for i := range messages {
		if err := p.write(fmt.Sprint("queued ", i), "rita@beta.example"); err != nil {
			t.Fatal(err)
		}
	}
	for range underWay {
		select {
		case c := <-busy:
			defer c.Close()
		case <-within(t).Done():
			t.Fatal("the queue does not try to send")
		}
	}
	p.kill()

	beta := start(t, t.TempDir(), "-domain", "beta.example", "-user", "rita:moor", "-dns", ns.Addr())
	p = start(t, dir, append(defaults(), "-route", "beta.example="+beta.addr["smtp"])...)
	for i := range messages {
		beta.with("rita@beta.example", "", fmt.Sprint("queued ", i))
	}
	p.stop()
	beta.stop()
	if n := len(beta.mailbox("rita@beta.example", "")); n != messages {
		t.Errorf("%d messages arrived, want %d", n, messages)
	}
}

// The control socket shows what waits in the queue, and lets an operator end it.
func TestControl(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, dir, append(defaults(), "-route", "example.net=127.0.0.1:1")...) // where nobody listens
	if err := p.write("waits", "eve@example.net"); err != nil {
		t.Fatal(err)
	}
	c := &control.Client{Path: filepath.Join(dir, "queue", "control")}
	if info, err := os.Stat(c.Path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	f := queue.Filter{Recipient: "eve@example.net", State: queue.ItemWaiting}
	eventually(t, "the message waits for its second attempt", func() bool {
		for it, err := range c.List(t.Context(), f) {
			if err != nil {
				t.Fatal(err)
			}
			return it.Attempts == 1
		}
		return false
	})
	n, err := c.Bounce(t.Context(), f, mailspine.Errorf(550, "5.7.1", "Not from here"))
	if err != nil || n.Changed != 1 {
		t.Errorf("Bounce: %+v, %v", n, err)
	}
	eventually(t, "ann is told", func() bool {
		return slices.ContainsFunc(p.mailbox("ann@example.test", ""), func(m string) bool { return strings.Contains(m, "550 5.7.1 Not from here") })
	})
	p.stop()
	if _, err := os.Stat(c.Path); err == nil {
		t.Error("the socket is still there after the end")
	}
}
