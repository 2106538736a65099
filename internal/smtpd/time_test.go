package smtpd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
)

// A pipeListener hands out net.Pipes, whose deadlines live in the bubble's time.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{make(chan net.Conn), make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (l *pipeListener) dial() net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- theirs
	return ours
}

// inBubble runs f with a server that it can dial, in a bubble with its own time.
func inBubble(t *testing.T, s *Server, implicit bool, f func(t *testing.T, dial func() *client)) {
	synctest.Test(t, func(t *testing.T) {
		s.Hostname, s.Logger = "mx.example.org", quiet()
		l := newPipeListener()
		served := make(chan error, 1)
		go func() {
			if implicit {
				served <- s.ServeTLS(l)
			} else {
				served <- s.Serve(l)
			}
		}()
		defer time.Sleep(time.Hour) // of the bubble's time: let every drip notice
		defer func() {
			s.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
		}()
		f(t, func() *client {
			nc := l.dial()
			t.Cleanup(func() { nc.Close() })
			return &client{t, nc, bufio.NewReader(nc)}
		})
	})
}

// took checks that about d has gone by since began.
func took(t *testing.T, what string, began time.Time, d time.Duration) {
	t.Helper()
	if got := time.Since(began); got < d || got > d+time.Second {
		t.Errorf("%s took %v, want %v", what, got, d)
	}
}

func TestSilentClient(t *testing.T) {
	s := &Server{Handler: &recorder{}}
	inBubble(t, s, false, func(t *testing.T, dial func() *client) {
		began := time.Now()
		c := dial()
		c.expect("220 ")
		c.expect("421 4.4.2 Timed out")
		c.closed()
		took(t, "silence", began, 5*time.Minute)
		if n := s.Stats().Timeouts; n != 1 {
			t.Errorf("%d time-outs", n)
		}
	})
}

// drip sends text one octet at a time until the server has had enough.
func drip(nc net.Conn, text string, every time.Duration) {
	for _, b := range []byte(text) {
		if _, err := nc.Write([]byte{b}); err != nil {
			return
		}
		time.Sleep(every)
	}
}

func TestDripCommand(t *testing.T) {
	inBubble(t, &Server{Handler: &recorder{}}, false, func(t *testing.T, dial func() *client) {
		began := time.Now()
		c := dial()
		c.expect("220 ")
		go drip(c.nc, "NOOP "+strings.Repeat("x", 1000), 10*time.Second)
		c.expect("421 4.4.2 ")
		c.closed()
		took(t, "a command in drops", began, 5*time.Minute)
	})
}

func TestSilentInData(t *testing.T) {
	r := &recorder{}
	inBubble(t, &Server{Handler: r}, false, func(t *testing.T, dial func() *client) {
		c := dial()
		c.expect("220 ")
		beginMessage(c)
		c.send("Subject: x\r\n")
		began := time.Now()
		c.expect("421 4.4.2 ")
		c.closed()
		took(t, "silence in a message", began, 3*time.Minute)
		if len(r.got()) != 0 {
			t.Error("half a message is taken")
		}
	})
}

func beginMessage(c *client) {
	c.t.Helper()
	c.cmd("EHLO a", "250-")
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	c.cmd("RCPT TO:<ann@example.org>", "250 ")
	c.cmd("DATA", "354 ")
}

func TestDripData(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		r := &recorder{}
		inBubble(t, &Server{Handler: r}, false, func(t *testing.T, dial func() *client) {
			c := dial()
			c.expect("220 ")
			began := time.Now()
			if chunked {
				c.cmd("EHLO a", "250-")
				c.cmd("MAIL FROM:<joe@example.com>", "250 ")
				c.cmd("RCPT TO:<ann@example.org>", "250 ")
				c.send("BDAT 100000\r\n")
			} else {
				beginMessage(c)
			}
			go drip(c.nc, strings.Repeat("x\r\n", 10_000), time.Minute)
			c.expect("421 4.4.2 ")
			c.closed()
			took(t, "a message in drops", began, 30*time.Minute)
			if len(r.got()) != 0 {
				t.Error("half a message is taken")
			}
		})
	}
}

// Chunk after chunk, each in good time, is bounded all the same.
func TestDripChunks(t *testing.T) {
	inBubble(t, &Server{Handler: &recorder{}}, false, func(t *testing.T, dial func() *client) {
		c := dial()
		c.expect("220 ")
		c.cmd("EHLO a", "250-")
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		c.cmd("RCPT TO:<ann@example.org>", "250 ")
		began := time.Now()
		for time.Since(began) < 28*time.Minute {
			c.send("BDAT 1\r\nx")
			c.expect("250 ")
			time.Sleep(3 * time.Minute)
		}
		c.closedWith("421 4.4.2 ")
		took(t, "many chunks", began, 30*time.Minute)
	})
}

func (c *client) closedWith(prefix string) {
	c.t.Helper()
	c.expect(prefix)
	c.closed()
}

func TestSessionLimit(t *testing.T) {
	inBubble(t, &Server{Handler: &recorder{}, Limits: Limits{MaxCommands: -1}}, false, func(t *testing.T, dial func() *client) {
		began := time.Now()
		c := dial()
		c.expect("220 ")
		for time.Since(began) < 119*time.Minute {
			time.Sleep(3 * time.Minute)
			if time.Since(began) < 2*time.Hour {
				c.cmd("NOOP", "250 ")
			}
		}
		c.closedWith("421 4.4.2 The connection has lasted too long")
		took(t, "the session", began, 2*time.Hour)
	})
}

func TestStuckHandshake(t *testing.T) {
	for _, implicit := range []bool{false, true} {
		s := &Server{Handler: &recorder{}, TLSConfig: testTLS()}
		inBubble(t, s, implicit, func(t *testing.T, dial func() *client) {
			c := dial()
			if !implicit {
				c.expect("220 ")
				c.cmd("STARTTLS", "220 ")
			}
			began := time.Now()
			go drip(c.nc, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"+strings.Repeat("x", 500), time.Second)
			c.closed()
			took(t, "a handshake in drops", began, 30*time.Second)
			if n := s.Stats().Timeouts; n != 1 {
				t.Errorf("%d time-outs", n)
			}
		})
	}
}

// A client that does not read our replies is dropped.
func TestClientThatDoesNotRead(t *testing.T) {
	s := &Server{Handler: &recorder{}}
	inBubble(t, s, false, func(t *testing.T, dial func() *client) {
		dial()
		time.Sleep(59 * time.Second)
		if s.Stats().Conns != 1 {
			t.Error("gone too early")
		}
		time.Sleep(2 * time.Second)
		if s.Stats().Conns != 0 {
			t.Error("still here")
		}
	})
}

func TestLimitsOff(t *testing.T) {
	l := Limits{MaxConns: -1, MaxConnsPerAddr: -1, MaxCommands: -1, MaxErrors: -1, MaxAuthFailures: -1, MaxRecipients: -1, MaxSize: -1, MaxLine: -1,
		Command: -1, DataBlock: -1, Data: -1, Write: -1, Handshake: -1, Session: -1}
	inBubble(t, &Server{Handler: &recorder{}, Limits: l, TLSConfig: testTLS()}, false, func(t *testing.T, dial func() *client) {
		c := dial()
		c.expect("220 ")
		time.Sleep(1000 * time.Hour)
		ehlo := c.cmd("EHLO a", "250-")
		if strings.Contains(ehlo, "RCPTMAX") || !strings.Contains(ehlo, "250-SIZE\n") {
			t.Errorf("%q", ehlo)
		}
		c.cmd("MAIL FROM:<joe@example.com> SIZE=99999999999999999999", "250 ")
		c.cmd("RCPT TO:<ann@example.org>", "250 ")
		c.cmd("DATA", "354 ")
		time.Sleep(1000 * time.Hour)
		c.send("x\r\n.\r\n")
		c.expect("250 ")
	})
}

func TestAuthFailures(t *testing.T) {
	s := &Server{Handler: &recorder{login: true}, TLSConfig: testTLS()}
	inBubble(t, s, true, func(t *testing.T, dial func() *client) {
		c := dial()
		tc := tls.Client(c.nc, &tls.Config{InsecureSkipVerify: true})
		c.nc, c.br = tc, bufio.NewReader(tc)
		c.expect("220 ")
		c.cmd("EHLO a", "250-")
		began := time.Now()
		c.cmd("AUTH TEST YnJva2Vu", "454 ") // our fault: no delay, no count
		took(t, "our failure", began, 0)
		c.cmd("AUTH TEST eA==", "535 5.7.8 ")
		took(t, "the first failure", began, time.Second)
		c.cmd("AUTH TEST eA==", "535 5.7.8 ")
		took(t, "the second failure", began, 3*time.Second)
		c.cmd("AUTH TEST eA==", "535 5.7.8 ")
		took(t, "the third failure", began, 7*time.Second)
		c.closedWith("421 4.7.0 Too many failed logins")
		if st := s.Stats(); st.AuthBad != 3 || st.AuthOK != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Contexts live as long as the connection.
func TestContexts(t *testing.T) {
	var ctx context.Context
	inBubble(t, &Server{Handler: HandlerFunc(func(c context.Context, conn *Conn) (Session, error) {
		ctx = c
		if conn.Remote().IsValid() || conn.Hostname() != "mx.example.org" || conn.TLS() != nil || conn.Login() != nil || conn.Logger() == nil {
			t.Error("odd connection")
		}
		return &recorderSession{r: &recorder{}, c: conn}, nil
	})}, false, func(t *testing.T, dial func() *client) {
		c := dial()
		c.expect("220 ")
		if ctx.Err() != nil {
			t.Error("done too early")
		}
		c.cmd("QUIT", "221 ")
		c.closed()
		synctest.Wait()
		if ctx.Err() == nil {
			t.Error("not done")
		}
	})
}

// Close cancels what a session is waiting for.
func TestCloseCancels(t *testing.T) {
	var s *Server
	got := make(chan error, 1)
	h := HandlerFunc(func(_ context.Context, c *Conn) (Session, error) { return &blockedSession{got}, nil })
	s = &Server{Handler: h}
	inBubble(t, s, false, func(t *testing.T, dial func() *client) {
		c := dial()
		c.expect("220 ")
		c.cmd("EHLO a", "250-")
		c.send("MAIL FROM:<joe@example.com>\r\n")
		synctest.Wait()
		s.Close()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		c.closed()
	})
}

type blockedSession struct{ got chan error }

func (b *blockedSession) Mail(ctx context.Context, _ *Transaction) error {
	<-ctx.Done()
	b.got <- ctx.Err()
	return ctx.Err()
}
func (*blockedSession) Rcpt(context.Context, *Transaction, *mailspine.Recipient) error { return nil }
func (*blockedSession) Data(context.Context, *Transaction, io.Reader) (string, error)  { return "", nil }
func (*blockedSession) Reset()                                                         {}
func (*blockedSession) Close()                                                         {}
