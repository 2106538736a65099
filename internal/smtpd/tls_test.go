package smtpd

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

// CVE-2011-0411: what is sent in the clear behind STARTTLS must not be executed.
func TestSTARTTLSInjection(t *testing.T) {
	r := &recorder{}
	addr := start(t, &Server{Handler: r, TLSConfig: testTLS()})
	c := dialTo(t, addr)
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	c.send("STARTTLS\r\nEHLO b\r\nMAIL FROM:<evil@example.com>\r\n")
	c.expect("503 5.5.1 ")
	c.expect("421 4.7.0 ")
	c.closed()

	// The same a little later, as the server already waits for a handshake.
	c = dialTo(t, addr)
	c.expect("220 ")
	c.cmd("STARTTLS", "220 ")
	c.send("EHLO b\r\nMAIL FROM:<evil@example.com>\r\n")
	for { // an alert may come, in TLS or not at all; then nothing
		if _, err := c.br.ReadByte(); err != nil {
			break
		}
	}
	for _, call := range r.noted() {
		if strings.HasPrefix(call, "mail") {
			t.Errorf("%s", call)
		}
	}
}

func TestImplicitTLS(t *testing.T) {
	r := &recorder{}
	s := &Server{Handler: r, TLSConfig: testTLS()}
	addr := startOn(t, s, s.ServeTLS)
	nc, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, ServerName: "mx.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c := newClient(t, nc)
	c.expect("220 ")
	if ehlo := c.cmd("EHLO a", "250-"); strings.Contains(ehlo, "STARTTLS") {
		t.Error("STARTTLS is offered under TLS")
	}
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	c.cmd("RCPT TO:<ann@example.org>", "250 ")
	c.cmd("DATA", "354 ")
	c.send("x\r\n.\r\n")
	c.expect("250 ")
	c.cmd("QUIT", "221 ")
	c.closed()
	if got := r.got(); len(got) != 1 || got[0].env.Origin.Proto != "ESMTPS" || got[0].env.Origin.TLS.ServerID != "mx.example.org" {
		t.Errorf("%+v", got)
	}
	// A client that speaks no TLS gets nothing.
	plain := dialTo(t, addr)
	plain.send("EHLO a\r\n")
	io.Copy(io.Discard, plain.nc)
}

func TestNoTLS(t *testing.T) {
	c := dialTo(t, start(t, &Server{Handler: &recorder{login: true}}))
	c.expect("220 ")
	if ehlo := c.cmd("EHLO a", "250-"); strings.Contains(ehlo, "STARTTLS") || strings.Contains(ehlo, "AUTH") {
		t.Errorf("%q", ehlo)
	}
	c.cmd("STARTTLS", "502 5.5.1 ")
}

func TestPanics(t *testing.T) {
	l := &logs{}
	where := ""
	var mu sync.Mutex
	at := func(w string) {
		mu.Lock()
		defer mu.Unlock()
		if where == w {
			panic("boom at " + w)
		}
	}
	set := func(w string) {
		mu.Lock()
		defer mu.Unlock()
		where = w
	}
	base := &recorder{login: true,
		mail: func(*Transaction) error { at("mail"); return nil },
		rcpt: func(*Transaction, *mailspine.Recipient) error { at("rcpt"); return nil },
		data: func(_ *Transaction, r io.Reader) (string, error) {
			io.CopyN(io.Discard, r, 1)
			at("data")
			_, err := io.Copy(io.Discard, r)
			return "", err
		},
	}
	h := HandlerFunc(func(ctx context.Context, c *Conn) (Session, error) {
		at("new")
		s, err := base.NewSession(ctx, c)
		return &panickySession{s.(AuthSession), at}, err
	})
	s := &Server{Handler: h, TLSConfig: testTLS(), Logger: l.logger()}
	addr := start(t, s)
	other := dialTo(t, addr)
	other.expect("220 ")
	other.cmd("EHLO a", "250-")
	for _, w := range []string{"new", "mechanisms", "auth", "exchange", "mail", "rcpt", "data", "reset"} {
		set(w)
		c := dialTo(t, addr)
		for _, step := range []struct{ at, line, ok string }{
			{"new", "", "220 "}, {"", "STARTTLS", "220 "}, {"mechanisms", "EHLO a", "250-"}, {"auth", "AUTH TEST", "334 "},
			{"exchange", "cGFuaWM=", "535 "}, {"mail", "MAIL FROM:<joe@example.com>", "250 "}, {"rcpt", "RCPT TO:<ann@example.org>", "250 "},
			{"", "DATA", "354 "}, {"data", "x\r\n.", "250 "}, {"reset", "", ""},
		} {
			if w != "exchange" && step.at == "exchange" {
				step.line, step.ok = "*", "501 "
			}
			if step.line == "STARTTLS" {
				c.startTLS()
				continue
			}
			if step.line != "" {
				c.send(step.line + "\r\n")
			}
			if step.at == w {
				c.expect("421 4.3.0 Internal error")
				c.closed()
				break
			}
			c.expect(step.ok)
		}
		if log := l.String(); !strings.Contains(log, "boom at "+w) && w != "exchange" || !strings.Contains(log, "goroutine") {
			t.Errorf("%s: no stack in the log", w)
		}
	}
	set("")
	other.cmd("MAIL FROM:<joe@example.com>", "250 ") // nothing has happened to it
	if n := s.Stats().Panics; n != 8 {
		t.Errorf("%d panics counted", n)
	}
	set("close")
	other.cmd("QUIT", "221 ")
	other.closed()
	waitFor(t, func() bool { return s.Stats().Conns == 0 })
	if n := s.Stats().Panics; n != 9 {
		t.Errorf("%d panics counted", n)
	}
}

type panickySession struct {
	AuthSession
	at func(string)
}

func (p *panickySession) Mechanisms() []string { p.at("mechanisms"); return p.AuthSession.Mechanisms() }
func (p *panickySession) Auth(ctx context.Context, m string) (Exchange, error) {
	p.at("auth")
	return p.AuthSession.Auth(ctx, m)
}
func (p *panickySession) Reset() { p.at("reset"); p.AuthSession.Reset() }
func (p *panickySession) Close() { p.at("close"); p.AuthSession.Close() }

func TestTrace(t *testing.T) {
	var mu sync.Mutex
	var wire []string
	events := map[string]int{}
	count := func(e string) { mu.Lock(); events[e]++; mu.Unlock() }
	tr := &Trace{
		Connected: func(_ context.Context, a netip.AddrPort) {
			if a.Addr().IsLoopback() {
				count("connected")
			}
		},
		Disconnected: func(context.Context, netip.AddrPort, time.Duration) { count("disconnected") },
		Message: func(_ context.Context, env *mailspine.Envelope, size int64, err error) {
			if size == 3 && err == nil && env.ID != "" {
				count("message")
			}
			panic("a hook's own problem")
		},
		Wire: func(_ context.Context, _ netip.AddrPort, sent bool, line string) {
			who := "C"
			if sent {
				who = "S"
			}
			mu.Lock()
			defer mu.Unlock()
			wire = append(wire, who+": "+line)
		},
	}
	c := dialTo(t, start(t, &Server{Handler: &recorder{login: true}, TLSConfig: testTLS(), Trace: tr}))
	c.expect("220 ")
	c.startTLS()
	c.cmd("EHLO a", "250-")
	c.cmd("AUTH TEST aGVsbG8=", "334 YW5k")
	c.cmd("c2VjcmV0", "235 ")
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	c.cmd("RCPT TO:<ann@example.org>", "250 ")
	c.cmd("DATA", "354 ")
	c.send("x\r\n.\r\n")
	c.expect("250 ")
	c.cmd("QUIT", "221 ")
	c.closed()
	waitFor(t, func() bool { mu.Lock(); defer mu.Unlock(); return events["disconnected"] == 1 })
	mu.Lock()
	defer mu.Unlock()
	all := strings.Join(wire, "\n")
	for _, secret := range []string{"aGVsbG8", "c2VjcmV0", "YW5k"} {
		if strings.Contains(all, secret) {
			t.Errorf("AUTH is in the wire log:\n%s", all)
		}
	}
	for _, want := range []string{"C: AUTH TEST ***", "S: 334 ***", "C: ***", "C: [message of 3 octets]", "S: 220 2.0.0 Ready to start TLS", "C: QUIT"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in the wire log:\n%s", want, all)
		}
	}
	if events["connected"] != 1 || events["message"] != 1 {
		t.Errorf("%v", events)
	}
}

// A listener that does TLS itself counts as implicit TLS.
func TestTLSListener(t *testing.T) {
	s := &Server{Handler: &recorder{}, Logger: quiet()}
	defer s.Close()
	inner := newPipeListener()
	l := tls.NewListener(inner, testTLS())
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	tc := tls.Client(inner.dial(), &tls.Config{InsecureSkipVerify: true})
	c := &client{t, tc, bufio.NewReader(tc)}
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	c.cmd("STARTTLS", "503 ")
	c.cmd("QUIT", "221 ")
	c.closed()
	inner.Close()
	if err := <-served; err == nil {
		t.Error("Serve hides that its listener failed")
	}
}

// A client that does not look at the reply to AUTH sends its user name and
// password as if it had been asked: they are not traced either.
func TestTraceUnaskedCredentials(t *testing.T) {
	for _, login := range []bool{false, true} {
		var mu sync.Mutex
		var wire []string
		tr := &Trace{Wire: func(_ context.Context, _ netip.AddrPort, sent bool, line string) {
			mu.Lock()
			defer mu.Unlock()
			wire = append(wire, line)
		}}
		c := dialTo(t, start(t, &Server{Handler: &recorder{login: login}, Trace: tr}))
		c.expect("220 ")
		c.cmd("EHLO a", "250-")
		c.cmd("AUTH LOGIN", "50")
		c.cmd("am9lQGV4YW1wbGUub3Jn", "500 ")
		c.cmd("c2VjcmV0", "500 ")
		c.cmd("NOOP still here", "250 ")
		mu.Lock()
		all := strings.Join(wire, "\n")
		mu.Unlock()
		if strings.Contains(all, "c2VjcmV0") || !strings.Contains(all, "\n***\n") || !strings.Contains(all, "NOOP still here") {
			t.Errorf("login %v: the wire log has\n%s", login, all)
		}
	}
}

// A client that gives up a message is nothing to be alarmed about.
func TestAbortedChunksLog(t *testing.T) {
	l := &logs{}
	c := dialTo(t, start(t, &Server{Handler: &recorder{}, Logger: l.logger()}))
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	c.cmd("RCPT TO:<ann@example.org>", "250 ")
	c.send("BDAT 3\r\na\r\n")
	c.expect("250 ")
	c.cmd("RSET", "250 2.0.0 Ok")
	if s := l.String(); strings.Contains(s, "level=ERROR") {
		t.Error(s)
	}
}
