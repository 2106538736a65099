package smtpclient

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

// Whole sessions of two transactions with a server that says anything: there is a result for every
// recipient, and "taken" only if the server said 2yz to everything that it must say it to.
func FuzzSession(f *testing.F) {
	ok := strings.Repeat("250 ok\r\n", 8)
	for _, s := range []string{
		"220 hi\r\n250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n" + ok,
		"220 hi\r\n250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n250 ok\r\n550 no\r\n250 ok\r\n250 done\r\n550 no\r\n550 no\r\n550 no\r\n550 no\r\n",
		"220 hi\r\n250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n250 ok\r\n550 no\r\n550 no\r\n503 no\r\n250 reset\r\n" + ok,
		"220 hi\r\n250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n250 ok\r\n250 ok\r\n452 4.5.3 x\r\n250 done\r\n" + ok,
		"220 hi\r\n250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n250 ok\r\n250 ok\r\n250 ok\r\n552 done\r\n500 reset\r\n" + ok,
		"220 hi\r\n250-hi\r\n250 CHUNKING\r\n" + ok, "220 hi\r\n250-hi\r\n250-LIMITS RCPTMAX=1 MAILMAX=3\r\n250-PIPELINING\r\n250 CHUNKING\r\n" + ok,
		"220 hi\r\n250-hi\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n250 done\r\n250 ok\r\n450 no\r\n550 no\r\n354 go\r\n250 nobody\r\n221 bye\r\n",
		"220 hi\r\n250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n421 bye\r\n", "421 bye\r\n", "220 hi\r\n500 what\r\n250 hi\r\n250 ok\r\n354 go\r\n", "",
		"220 hi\r\n250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n250 ok\r\n250 ok\r\n250 ok\r\n250 done\r\n250 one more\r\n",
	} {
		for kind := range uint8(8) {
			f.Add([]byte(s), kind)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		o := Options{LMTP: kind&1 != 0, Peer: "x"}
		msg := "x\r\n"
		if kind&2 != 0 {
			msg = large
		}
		c := New(newCanned(b, kind&4 != 0), &o)
		if r, err := c.Greeting(t.Context()); err != nil || r.Code != 220 {
			return
		}
		if r, err := c.Hello(t.Context(), "x.example"); err != nil || !r.OK() {
			return
		}
		env := envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example")
		m := prepare(t, msg)
		for range 2 {
			rcpt := map[int]Reply{}
			var last []Reply
			res, err := c.Send(t.Context(), &Transaction{Env: env, Msg: m, Replied: func(command string, i int, r Reply) {
				switch command {
				case "RCPT":
					rcpt[i] = r
				case "message":
					last = append(last, r)
				}
			}})
			if len(res.Outcomes) != 2 {
				t.Fatal(res)
			}
			open := 0
			for _, o := range res.Outcomes {
				switch o.State {
				case Taken:
					if !res.Mail.OK() || !rcpt[o.Rcpt].OK() || len(last) == 0 || !o.Reply.OK() || !o.Heard || o.Err != nil {
						t.Fatalf("taken: %+v, MAIL %v, RCPT %v, message %v", o, res.Mail, rcpt[o.Rcpt], last)
					}
				case Refused:
					if o.Reply.Code != 0 && !o.Reply.Refusal() || mailspine.Status(o.Err) == nil {
						t.Fatalf("refused: %+v", o)
					}
				case InDoubt:
					var doubt *InDoubtError
					if !errors.As(o.Err, &doubt) || err == nil || !mailspine.Status(o.Err).Temporary() {
						t.Fatalf("in doubt: %+v, %v", o, err)
					}
				default:
					open++
				}
			}
			if err == nil && open == 2 {
				t.Fatal("no error and no result")
			}
			if err != nil {
				if st := mailspine.Status(err); st.Code < 400 || c.InStep() && !st.Temporary() && st.Code != 500 && len(b) == 0 {
					t.Fatal(err)
				}
				return
			}
		}
	})
}

// A canned connection is a server that says what it has to say, whatever it
// hears: one reply to each command, also if several come at once. While a message is sent to it, it is silent, unless it is early.
// Otherwise a read of what it has not said times out at once.
type canned struct {
	net.Conn // nil: nothing else is called
	early    bool

	mu    sync.Mutex
	cond  *sync.Cond
	data  []byte
	asked int  // replies that are due
	quiet bool // a message is under way, and who reads waits
	past  bool // the watcher was told to stop
}

func newCanned(b []byte, early bool) *canned {
	c := &canned{data: b, early: early, asked: 1}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *canned) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.asked == 0 {
		if !c.quiet || c.past {
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
			c.asked--
			c.quiet = c.quiet || bytes.HasPrefix(c.data, []byte("354"))
		}
	}
	copy(p, c.data[:n])
	c.data = c.data[n:]
	return n, nil
}

func (c *canned) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.cond.Broadcast()
	s := string(p)
	switch bdat := strings.Contains(s, "BDAT "); {
	case c.quiet && (len(p) < 100 || bytes.HasSuffix(p, []byte("\r\n.\r\n"))): // the end of a message, held back
		c.asked, c.quiet, c.past = c.asked+1, false, false
	case c.quiet:
		if c.early {
			c.asked++
		}
	case bdat && len(p) > 4096: // a large message begins
		c.quiet, c.past = true, false
	case bdat:
		c.asked += strings.Count(s, "\r\n") - 1
		c.past = false
	default:
		c.asked += strings.Count(s, "\r\n")
		c.past = false
	}
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
func (c *canned) RemoteAddr() net.Addr             { return nil }
