package pop3

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

// broken fails to expunge.
type broken struct{ mailbox.Mailbox }

func (broken) Expunge(context.Context, []mailbox.UID, mailbox.ExpungeOptions) ([]mailbox.UID, error) {
	return nil, errors.New("disk")
}

// A wrappedStore has mailboxes that misbehave.
type wrappedStore struct {
	mailbox.Store
	wrap func(mailbox.Mailbox) mailbox.Mailbox
}

func (s wrappedStore) Account(ctx context.Context, u string) (mailbox.Account, error) {
	a, err := s.Store.Account(ctx, u)
	return wrappedAccount{a, s.wrap}, err
}

type wrappedAccount struct {
	mailbox.Account
	wrap func(mailbox.Mailbox) mailbox.Mailbox
}

func (a wrappedAccount) Open(ctx context.Context, name string) (mailbox.Mailbox, error) {
	m, err := a.Account.Open(ctx, name)
	return a.wrap(m), err
}

func TestQuitFails(t *testing.T) {
	b := newBench(t, func(s *Server) {
		s.Mailboxes = wrappedStore{s.Mailboxes, func(m mailbox.Mailbox) mailbox.Mailbox { return broken{m} }}
	})
	b.add(letter)
	c := b.session()
	c.do("DELE 1", "+OK")
	c.do("QUIT", "-ERR [SYS/TEMP]")
	c.eof()
}

// What a client that pipelines was not sent, it finds again.
func TestGoneBeforeQuit(t *testing.T) {
	store := memory.New(nil)
	account, err := store.Account(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := account.Deliver(t.Context(), mailspine.StringContent(letter), mailbox.DeliverOptions{}); err != nil {
		t.Fatal(err)
	}
	s := &Server{Mailboxes: store, Auth: users, TLSConfig: &tls.Config{}, Logger: slog.New(slog.DiscardHandler)}
	s.init()
	ours, theirs := net.Pipe()
	c := newConn(s, theirs, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.use(theirs)
		c.tls = true
		c.open("test", &mailspine.Login{Name: user})
		c.serve()
	}()
	r := bufio.NewReader(ours)
	for range 2 { // of the login and the greeting
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(ours, "RETR 1\r\nDELE 1\r\nQUIT\r\n"); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	<-done
	box, err := account.Open(t.Context(), mailbox.Inbox)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := box.Info(t.Context()); err != nil || info.Messages != 1 {
		t.Errorf("%d messages are left, %v", info.Messages, err)
	}
}

// panicky panics where a maildrop is locked: at Snapshot, or when it is released.
type panicky struct {
	mailbox.Mailbox
	snapshot bool
}

func (p panicky) Snapshot(ctx context.Context) (mailbox.Snapshot, error) {
	if p.snapshot {
		panic("bug")
	}
	return p.Mailbox.Snapshot(ctx)
}

func (p panicky) LockMaildrop(ctx context.Context) (func(), error) {
	release, err := p.Mailbox.LockMaildrop(ctx)
	if p.snapshot || err != nil {
		return release, err
	}
	return func() { release(); panic("bug") }, nil
}

// A store that panics leaves no maildrop locked, and ends one connection only.
func TestPanickingStore(t *testing.T) {
	for _, snapshot := range []bool{true, false} {
		b := newBench(t, func(s *Server) {
			s.Mailboxes = wrappedStore{s.Mailboxes, func(m mailbox.Mailbox) mailbox.Mailbox { return panicky{m, snapshot} }}
		})
		c := b.dialTLS()
		c.do("USER "+user, "+OK")
		c.send("PASS " + password + "\r\nQUIT")
		io.ReadAll(c.r)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if b.Stats().Panics == 0 {
			t.Error("no panic was counted")
		}
		release, err := b.box.LockMaildrop(t.Context())
		if err != nil {
			t.Fatalf("snapshot %v: %v", snapshot, err)
		}
		release()
	}
}

// The names of messages survive a restart of the server and its store.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	var ids [2]string
	for i := range ids {
		store := onDisk(t, dir)
		b := newBenchOn(t, store, nil)
		if i == 0 {
			b.add(letter)
			b.add(letter)
		}
		c := b.session()
		ids[i] = c.lines("UIDL")
		if i == 0 {
			c.do("DELE 1", "+OK")
		}
		c.do("QUIT", "+OK")
		c.eof()
		b.Close()
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	first, second := strings.Fields(ids[0]), strings.Fields(ids[1])
	if len(first) != 4 || len(second) != 2 || first[3] != second[1] {
		t.Errorf("%q became %q", ids[0], ids[1])
	}
}

// A Shutdown that has waited long enough for a client that does not read gives up on it.
func TestShutdownGivesUp(t *testing.T) {
	b := newBench(t, nil)
	b.add("Subject: x\r\n\r\n" + strings.Repeat("0123456789abcde\n", 1<<20))
	b.add(letter)
	c := b.session()
	c.do("DELE 2", "+OK")
	c.do("RETR 1", "+OK") // and no more is read
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := b.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if err := b.Close(); err != nil { // waits for the connection
		t.Error(err)
	}
	release, err := b.box.LockMaildrop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release()
	if n := b.Stats().Conns; n != 0 || b.count() != 2 {
		t.Errorf("%d connections and %d messages are left", n, b.count())
	}
}

// A mailbox of very many messages.
type huge struct {
	mailbox.Mailbox
	messages int
	expunged *int
}

func (h huge) Snapshot(context.Context) (mailbox.Snapshot, error) {
	snap := mailbox.Snapshot{Messages: make([]mailbox.MessageInfo, h.messages)}
	for i := range snap.Messages {
		snap.Messages[i] = mailbox.MessageInfo{UID: mailbox.UID(i + 1), Size: 1000}
	}
	return snap, nil
}

func (h huge) Expunge(_ context.Context, uids []mailbox.UID, _ mailbox.ExpungeOptions) ([]mailbox.UID, error) {
	*h.expunged += len(uids)
	return uids, nil
}

// What a session holds of a large mailbox is what the page of the package says.
func TestManyMessages(t *testing.T) {
	n := 50_000
	if os.Getenv("MAILSPINE_SOAK") == "1" {
		n = 1_000_000
	}
	expunged := 0
	store := wrappedStore{memory.New(nil), func(m mailbox.Mailbox) mailbox.Mailbox { return huge{m, n, &expunged} }}
	s := &Server{Mailboxes: store, Auth: users, TLSConfig: &tls.Config{}, Logger: slog.New(slog.DiscardHandler)}
	s.init()
	ours, theirs := net.Pipe()
	c := newConn(s, theirs, false)
	c.use(theirs)
	c.tls = true
	lines := make(chan int)
	go func() {
		n := 0
		for r := bufio.NewScanner(ours); r.Scan(); n++ {
		}
		lines <- n
	}()
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	c.open("test", &mailspine.Login{Name: user})
	if held := (heap() - before) / n; held > 20 {
		t.Errorf("%d octets for each message", held)
	}
	c.command("LIST")
	c.command("UIDL")
	for i := range n {
		c.command(fmt.Sprint("DELE ", i+1))
	}
	c.command("QUIT")
	c.bw.Flush()
	c.abort()
	if got, want := <-lines, 1+2*(n+2)+n+1; got != want {
		t.Errorf("%d lines, not %d", got, want)
	}
	if expunged != n {
		t.Errorf("%d messages were removed", expunged)
	}
}
