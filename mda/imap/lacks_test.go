package imap

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-imap/v2/imapserver/imapmemserver"

	"github.com/mailspine/mailspine/internal/peertest"
)

// What go-imap's server lacks, shown on it: why there is more here than an implementation of its Session. When one of
// these fails, the module has learned something, and what we do instead can go.
func TestWhatGoIMAPLacks(t *testing.T) {
	mem := imapmemserver.New()
	u := imapmemserver.NewUser("ann", "secret")
	if err := u.Create("INBOX", nil); err != nil {
		t.Fatal(err)
	}
	mem.AddUser(u)
	srv := imapserver.New(&imapserver.Options{
		NewSession: func(*imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
			return mem.NewSession(), nil, nil
		},
		Caps:         imap.CapSet{imap.CapIMAP4rev1: {}, imap.CapCondStore: {}, imap.CapID: {}, imap.CapQuota: {}, imap.CapSort: {}},
		InsecureAuth: true, Logger: log.New(io.Discard, "", 0),
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()
	dial := func() *client {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, nc)
		c.want("* OK")
		return c
	}

	t.Run("refused literals are commands", func(t *testing.T) {
		c := dial()
		c.ok("LOGIN ann secret")
		text := "x CREATE Hacked\r\n" + strings.Repeat("a", 5000)
		c.send(fmt.Sprintf("y APPEND INBOX {%d+}\r\n%s\r\n", len(text), text))
		c.want("y BAD")
		c.want("x OK") // so the text of a message was carried out
	})
	t.Run("a synchronizing literal that is refused gets no answer", func(t *testing.T) {
		c := dial()
		c.ok("LOGIN ann secret")
		c.ok("SELECT INBOX")
		c.send("y SEARCH TEXT {5000}\r\n")
		c.nc.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // it would wait for 30 s
		if s, err := c.r.ReadString('\n'); err == nil {
			t.Errorf("it answers %q", s)
		}
	})
	t.Run("extensions", func(t *testing.T) {
		c := dial()
		c.ok("LOGIN ann secret")
		if caps := c.ok("CAPABILITY"); strings.Contains(caps, "CONDSTORE") || strings.Contains(caps, "QUOTA") || strings.Contains(caps+" ", " ID ") || strings.Contains(caps, "SORT") {
			t.Errorf("it has learned: %s", caps)
		}
	})
	t.Run("SMALLER is forgotten", func(t *testing.T) {
		c := imap.SearchCriteria{Smaller: 100}
		if c.And(&imap.SearchCriteria{Since: time.Now()}); c.Smaller == 100 {
			t.Error("it is kept")
		}
	})
	t.Run("no limits, no graceful end", func(t *testing.T) {
		if _, ok := reflect.TypeOf(srv).MethodByName("Shutdown"); ok {
			t.Error("there is a Shutdown")
		}
		for f := range reflect.TypeFor[imapserver.Options]().NumField() {
			if name := reflect.TypeFor[imapserver.Options]().Field(f).Name; strings.Contains(name, "Max") || strings.Contains(name, "Timeout") || strings.Contains(name, "Context") {
				t.Errorf("there is an option %s", name)
			}
		}
	})
	t.Run("a handshake may take for ever", func(t *testing.T) {
		cert := peertest.SelfSigned(t, "localhost")
		synctest.Test(t, func(t *testing.T) {
			srv := imapserver.New(&imapserver.Options{
				NewSession: func(*imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
					return mem.NewSession(), nil, nil
				},
				Logger: log.New(io.Discard, "", 0),
			})
			ours, theirs := net.Pipe()
			q := &acceptQueue{conns: make(chan net.Conn, 1), done: make(chan struct{})}
			q.conns <- tls.Server(theirs, cert.Config)
			go srv.Serve(q)
			time.Sleep(24 * time.Hour)
			if _, err := ours.Write([]byte{22}); err != nil { // a ClientHello begins so
				t.Errorf("it has not waited a day: %v", err)
			}
			ours.Close()
			close(q.done)
		})
	})
}
