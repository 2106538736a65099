package mta

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// Whole sessions with a server that says anything, of two deliveries, the second one over the same connection if it was
// kept: there is a result for every
// recipient, and "taken" only if the server said so to a final dot.
func FuzzDialogue(f *testing.F) {
	for _, s := range []string{
		goodDialogue,
		"220 hi\r\n500 what\r\n250 hi\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n550 spam\r\n",
		"220 hi\r\n250-hi\r\n250-STARTTLS\r\n250 SIZE 5\r\n220 go\r\n", "220 hi\r\n250-hi\r\n250 STARTTLS\r\n454 no\r\n250 ok\r\n250 ok\r\n452 4.5.3 x\r\n354 go\r\n250 a\r\n250 b\r\n250 c\r\n354 go\r\n250 d\r\n",
		"220 hi\r\n250-hi\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n250 done\r\n250 ok\r\n450 no\r\n550 no\r\n354 go\r\n250 nobody\r\n221 bye\r\n",
		"220 hi\r\n250-hi\r\n250 PIPELINING\r\n250 ok\r\n550 no\r\n550 no\r\n503 no\r\n250 reset\r\n250 ok\r\n250 ok\r\n452 4.5.3 x\r\n354 go\r\n250 a\r\n250 ok\r\n250 ok\r\n354 go\r\n250 b\r\n",
		"220 hi\r\n250-hi\r\n250 PIPELINING\r\n550 no\r\n250 ok\r\n250 ok\r\n354 go\r\n250 nobody\r\n421 bye\r\n",
		goodDialogue + goodDialogue,
		chunkHello + strings.Repeat("250 ok\r\n", 8), chunkHello + "250 ok\r\n550 no\r\n250 ok\r\n250 done\r\n250 ok\r\n550 no\r\n550 no\r\n503 no\r\n",
		chunkHello + "550 no\r\n503 no\r\n503 no\r\n503 no\r\n", chunkHello + "250 ok\r\n421 bye\r\n", chunkHello + "250 ok\r\n250 ok\r\n",
		chunkHello + "250 ok\r\n250 ok\r\n250 ok\r\n552 no\r\n500 no\r\n", chunkHello + "250 ok\r\n250 ok\r\n452 4.5.3 x\r\n250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n",
		"421 bye\r\n", "554 no\r\n", "", "220 hi\r\n250-hi\r\n250 STARTTLS\r\n354 no\r\n250 ok\r\n",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, early bool) {
		conns := 0
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		r := n.relay()
		r.Dial = func(context.Context, string, string) (net.Conn, error) {
			conns++
			return newCanned(b, early), nil
		}
		r.IdleTimeout = 0
		defer r.CloseIdle()
		env := envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example")
		for n, msg := range []string{"x\r\n", large} {
			a := &attempt{}
			err := r.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent(msg))
			for i := range env.Recipients {
				e := mailspine.ErrorAt(err, i)
				if e == nil && a.commits == 0 {
					t.Fatal("taken without a final dot")
				}
				if e == nil && !strings.HasPrefix(a.receipts[i].Reply, "2") {
					t.Fatalf("taken with the reply %q", a.receipts[i].Reply)
				}
				if e != nil && mailspine.Status(e).Code < 400 {
					t.Fatalf("status %v", mailspine.Status(e))
				}
			}
			if conns > 6 {
				t.Fatalf("%d connections", conns)
			}
			if string(b) == goodDialogue && !early && n == 0 && e0(err) != nil {
				t.Fatalf("the good dialogue fails: %v", err)
			}
			conns = 0
		}
	})
}

const chunkHello = "220 hi\r\n250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n"

// large is a message that is sent as a stream.
var large = strings.Repeat("x\r\n", smtpclient.InMemory/2)

const goodDialogue = "220 hi\r\n250 hi\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 done\r\n221 bye\r\n"

func e0(err error) error { return mailspine.ErrorAt(err, 0) }

// A canned connection is a server that says what it has to say, whatever it
// hears: one reply to each command, also if several come at once. While a message is sent to it, it is silent, unless it is early.
// Otherwise a read of what it has not said times out at once.
type canned struct {
	net.Conn // nil: nothing else is called
	early    bool

	mu     sync.Mutex
	cond   *sync.Cond
	data   []byte
	asked  []string // what may be replied to
	inData bool     // after a 354 to DATA
	past   bool     // the watcher was told to stop
}

func newCanned(b []byte, early bool) *canned {
	c := &canned{data: b, early: early, asked: []string{"greeting"}}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *canned) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.asked) == 0 {
		if !c.inData || c.past {
			return 0, os.ErrDeadlineExceeded
		}
		c.cond.Wait()
	}
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(c.data))
	if i := bytes.IndexByte(c.data[:n], '\n'); i >= 0 {
		n = i + 1
		if n < 5 || c.data[3] != '-' { // the last line of a reply
			c.inData = c.inData || c.asked[0] == "DATA" && bytes.HasPrefix(c.data, []byte("354"))
			c.asked = c.asked[1:]
		}
	}
	copy(p, c.data[:n])
	c.data = c.data[n:]
	return n, nil
}

func (c *canned) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := c.inData && (string(p) == dotLine || bytes.HasSuffix(p, []byte("\r\n"+dotLine)) || len(p) == 1) // BDAT holds an octet back
	switch {
	case !c.inData && len(p) > maxFlight: // a large message with BDAT
		c.inData, c.past = true, false
	case !c.inData:
		lines := strings.Split(strings.TrimSuffix(string(p), "\r\n"), "\r\n")
		for i, l := range lines {
			if strings.HasPrefix(l, "BDAT ") {
				lines = lines[:i+1] // what is behind it is the message
				break
			}
		}
		c.asked, c.past = append(c.asked, lines...), false
	case end || c.early:
		c.asked = append(c.asked, "message")
	}
	c.cond.Broadcast()
	c.inData = c.inData && !end
	return len(p), nil
}

func (c *canned) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past = c.past || t.Before(time.Now()) && !t.IsZero()
	c.cond.Broadcast()
	return nil
}

func (c *canned) Close() error                     { return nil }
func (c *canned) SetDeadline(time.Time) error      { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }
func (c *canned) LocalAddr() net.Addr              { return nil }
