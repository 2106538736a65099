package smtpclient

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const chunkHello = "S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250-PIPELINING\nS: 250 CHUNKING\n"

// Who was put off with 452 is not in doubt when the rest is, nor is who was refused, or comes in a later transaction.
func TestDoubtOfSome(t *testing.T) {
	c, done := script(chunkHello+"C: MAIL*\nC: RCPT*\nC: RCPT*\nC: RCPT*\nC: RCPT*\nC: BDAT*\nC: x\n"+
		"S: 250 ok\nS: 250 ok\nS: 452 4.5.3 too many\nS: 550 5.1.1 no\nCLOSE").start(nil, nil)
	begin(t, c)
	env := envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example", "c@dest.example", "d@dest.example", "e@dest.example")
	res, err := c.Send(t.Context(), &Transaction{Env: env, Msg: prepare(t, "x\r\n"), Max: 4})
	if got := outcomes(res); got != "doubt 451 4.4.2, open, 550 5.1.1, doubt 451 4.4.2, open" || status(err) != "451 4.4.2" {
		t.Errorf("%s, %v", got, err)
	}
	c.Close()
	if err := done(); err != nil {
		t.Error(err)
	}
}

// A connection that is reset after a part of a reply is not one that broke without a sound.
func TestSilentReset(t *testing.T) {
	for said, silent := range map[string]bool{"": true, "25": false} {
		c, done := script(chunkHello+"STALL").start(nil, nil)
		begin(t, c)
		c.br.Reset(&resetting{said: said})
		_, err := c.Send(t.Context(), &Transaction{Env: envelope(t, "ann@sender.example", "a@dest.example"), Msg: prepare(t, "x\r\n")})
		var doubt *InDoubtError
		if !errors.As(err, &doubt) || doubt.Silent != silent {
			t.Errorf("%q: %+v", said, err)
		}
		c.Close()
		done()
	}
}

type resetting struct{ said string }

func (r *resetting) Read(p []byte) (int, error) {
	if r.said == "" {
		return 0, &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	}
	n := copy(p, r.said)
	r.said = r.said[n:]
	return n, nil
}

// Octets behind the reply to STARTTLS, which would pass for something said under TLS, end it; so does a second STARTTLS.
func TestStartTLSInjection(t *testing.T) {
	certs, roots := certify(t, "mx.dest.example")
	config := &tls.Config{ServerName: "mx.dest.example", RootCAs: roots}
	const hi = "S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\n"
	c, done := script(hi+`S> 220 go\r\n250-injected\r\n250 AUTH PLAIN\r\n`+"\nSTALL").start(nil, nil)
	begin(t, c)
	_, err := c.StartTLS(t.Context(), config)
	var te *TLSError
	if !errors.As(err, &te) || !isProtocol(err) || status(err) != "451 4.7.5" || c.InStep() {
		t.Errorf("%v, in step: %v", err, c.InStep())
	}
	c.Close()
	done()

	c, done = script(hi+"S: 220 go\nTLS\nC: STARTTLS\nS: 220 again\nSTALL").start(nil, certs)
	begin(t, c)
	if _, err := c.StartTLS(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if _, err := c.StartTLS(t.Context(), config); !errors.As(err, &te) {
		t.Errorf("TLS in TLS: %v", err)
	}
	c.Close()
	done()
}

// A refused STARTTLS leaves the connection as it is; a handshake that fails ends it. Handshake is for TLS from the beginning.
func TestHandshake(t *testing.T) {
	// A pipe has no buffer: each side may wait for the other until a time-out.
	synctest.Test(t, testHandshake)
}

func testHandshake(t *testing.T) {
	certs, roots := certify(t, "mx.dest.example")
	c, done := script("S: 220 hi\nC: EHLO*\nS: 250 hi\nC: STARTTLS\nS: 454 4.7.0 not now\nC: NOOP\nS: 250 ok\nC: RSET\nS: 250 ok\nC: QUIT\nS: 221 bye").start(nil, nil)
	begin(t, c)
	if r, err := c.StartTLS(t.Context(), nil); err != nil || r.Code != 454 || !c.InStep() {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := c.Noop(t.Context()); err != nil || !r.OK() {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := c.Reset(t.Context()); err != nil || !r.OK() {
		t.Errorf("%v, %v", r, err)
	}
	if !c.Park() {
		t.Error("it cannot be kept")
	}
	c.Renew()
	c.Quit(t.Context())
	if err := done(); err != nil {
		t.Error(err)
	}

	c, done = script("TLS\nS: 220 hi\nC: EHLO*\nS: 250 hi\nC: QUIT").start(nil, certs)
	if err := c.Handshake(t.Context(), &tls.Config{ServerName: "mx.dest.example", RootCAs: roots}); err != nil {
		t.Fatal(err)
	}
	begin(t, c)
	c.Leave()
	if err := done(); err != nil {
		t.Error(err)
	}

	c, done = script("TLS\nS: 220 hi\nC: EHLO*\nS: 250 hi\nC: QUIT").start(nil, certs)
	c = New(tls.Client(c.raw, &tls.Config{ServerName: "mx.dest.example", RootCAs: roots}), nil)
	begin(t, c)
	if _, ok := c.TLS(); !ok {
		t.Error("no TLS")
	}
	c.Leave()
	if err := done(); err != nil {
		t.Error(err)
	}

	c, done = script("TLS\nSTALL").start(nil, certs)
	err := c.Handshake(t.Context(), &tls.Config{ServerName: "other.example", RootCAs: roots})
	var te *TLSError
	if !errors.As(err, &te) || status(err) != "451 4.7.5" {
		t.Errorf("%v", err)
	}
	c.Close()
	done()
}

// LIMITS counts also where the caller would send more.
func TestLimitsAndMax(t *testing.T) {
	for _, tt := range []struct {
		limit string
		max   int
		want  int
	}{{"RCPTMAX=2", 3, 2}, {"RCPTMAX=3", 2, 2}, {"RCPTMAX=3", 0, 3}, {"MAILMAX=3", 0, 4}, {"MAILMAX=3", 9, 4}} {
		c, done := script("S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250 LIMITS "+tt.limit+"\nC: MAIL*\nS: 250 ok\n"+
			strings.Repeat("C: RCPT*\nS: 550 5.1.1 no\n", tt.want)).start(nil, nil)
		begin(t, c)
		env := envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example", "c@dest.example", "d@dest.example")
		res, err := c.Send(t.Context(), &Transaction{Env: env, Msg: prepare(t, "x\r\n"), Max: tt.max})
		if got := strings.Count(outcomes(res), "550"); got != tt.want || err != nil {
			t.Errorf("%s, at most %d: %s, %v", tt.limit, tt.max, outcomes(res), err)
		}
		c.Close()
		if err := done(); err != nil {
			t.Error(err)
		}
	}
}

// Replies that are in the socket before the flight is sent are not the answers to it, even if they come while leave is asked for.
func TestEarlyReplySocket(t *testing.T) {
	if runtime.GOOS == "windows" || runtime.GOOS == "plan9" {
		t.Skip("it cannot be seen on " + runtime.GOOS)
	}
	for said, want := range map[string]string{"250 ok\r\n250 ok\r\n250 taken, honestly\r\n": "451 4.5.0", "421 4.3.2 bye\r\n": "421 4.3.2"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var server net.Conn
		wg.Go(func() {
			var aerr error
			if server, aerr = l.Accept(); aerr == nil {
				script(strings.ReplaceAll(chunkHello, "EHLO*", "EHLO out.sender.example")).play(unclosed{server}, nil)
			}
		})
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c := New(conn, nil)
		begin(t, c)
		wg.Wait()
		res, err := c.Send(t.Context(), &Transaction{Env: envelope(t, "ann@sender.example", "a@dest.example"), Msg: prepare(t, "x\r\n"),
			Commit: func(context.Context, time.Duration) error {
				io.WriteString(server, said)
				for quiet(conn) {
					runtime.Gosched()
				}
				return nil
			}})
		if outcomes(res) != "open" || status(err) != want || c.InStep() {
			t.Errorf("%q: %s, %v", said, outcomes(res), err)
		}
		c.Close()
		// Nothing of the flight was sent.
		server.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := server.Read(make([]byte, 100)); n > 0 || !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server got %d octets, %v", n, err)
		}
		server.Close()
		l.Close()
	}
}

// unclosed stays open at the end of a script.
type unclosed struct{ net.Conn }

func (unclosed) Close() error { return nil }

// QuitAll has one time for all of them, and forgets none.
func TestQuitAll(t *testing.T) {
	var all []*Client
	var dones []func() error
	for _, end := range []string{"C: QUIT\nS: 221 bye", "CLOSE", "C: QUIT\nS: 221 bye", "C: QUIT\nSTALL"} {
		c, done := script("S: 220 hi\nC: EHLO*\nS: 250 hi\n"+end).start(nil, nil)
		begin(t, c)
		all, dones = append(all, c), append(dones, done)
	}
	start := time.Now()
	QuitAll(50*time.Millisecond, all...)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	for i, done := range dones {
		if err := done(); err != nil || all[i].InStep() {
			t.Errorf("%d: %v", i, err)
		}
	}
}
