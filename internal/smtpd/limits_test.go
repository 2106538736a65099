package smtpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

func TestSizeLimit(t *testing.T) {
	r := &recorder{}
	c := dialTo(t, start(t, &Server{Handler: r, Limits: Limits{MaxSize: 1000}}))
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	begin := func() {
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		c.cmd("RCPT TO:<ann@example.org>", "250 ")
		c.cmd("DATA", "354 ")
	}
	line := strings.Repeat("x", 98) + "\r\n"
	begin()
	c.send(strings.Repeat(line, 10) + ".\r\n") // exactly 1,000
	c.expect("250 ")
	begin()
	c.send("..\r\n" + strings.Repeat(line, 9) + strings.Repeat("x", 95) + "\r\n.\r\n") // the stuffed dot does not count
	c.expect("250 ")
	begin()
	c.send(strings.Repeat(line, 10) + "\r\n.\r\n")
	c.expect("552 5.3.4 ")
	// The connection survives, and the next message is fine.
	begin()
	c.send("ok\r\n.\r\n")
	c.expect("250 ")
	c.cmd("MAIL FROM:<joe@example.com> SIZE=1001", "552 5.3.4 ")
	c.cmd("MAIL FROM:<joe@example.com> SIZE=1000", "250 ")
	c.cmd("RCPT TO:<ann@example.org>", "250 ")
	c.send("BDAT 1001 LAST\r\n" + strings.Repeat("x", 1001))
	c.expect("552 5.3.4 ")
	if n := len(r.got()); n != 3 {
		t.Errorf("%d messages taken", n)
	}
	// Who goes on far beyond is cut off.
	begin()
	go func() {
		for i := 0; i < 20_000; i++ {
			if _, err := io.WriteString(c.nc, line); err != nil {
				return
			}
		}
	}()
	c.expect("552 5.3.4 ")
	c.expect("421 4.7.0 ")
	c.closed()
}

func TestLineLimit(t *testing.T) {
	r := &recorder{}
	c := dialTo(t, start(t, &Server{Handler: r}))
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	for _, n := range []int{998, 999, 5000} {
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		c.cmd("RCPT TO:<ann@example.org>", "250 ")
		c.cmd("DATA", "354 ")
		c.send("Subject: x\r\n\r\n" + strings.Repeat("y", n) + "\r\n.\r\n")
		if n == 998 {
			c.expect("250 ")
		} else {
			c.expect("554 5.6.0 ")
		}
	}
	c.cmd("QUIT", "221 ")
	if got := r.got(); len(got) != 1 || len(got[0].data) != 14+1000 {
		t.Errorf("%d messages", len(got))
	}
}

func TestCommandLimit(t *testing.T) {
	c := dialTo(t, start(t, &Server{Handler: &recorder{}, Limits: Limits{MaxCommands: 10}}))
	c.expect("220 ")
	for range 10 {
		c.cmd("NOOP", "250 ")
	}
	c.cmd("NOOP", "421 4.7.0 Too many commands")
	c.closed()
}

func TestErrorLimit(t *testing.T) {
	s := &Server{Handler: &recorder{}, Limits: Limits{MaxErrors: 3}}
	addr := start(t, s)
	c := dialTo(t, addr)
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	bad := func(n int) {
		for range n {
			c.cmd("FOO", "500 ")
		}
	}
	bad(3)
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	c.cmd("RCPT TO:<ann@example.org>", "250 ")
	c.cmd("DATA", "354 ")
	c.send("x\r\n.\r\n")
	c.expect("250 ") // a good message wipes the slate clean
	bad(4)
	c.expect("421 4.7.0 Too many errors")
	c.closed()
	if n := s.Stats().Errors; n != 7 {
		t.Errorf("%d errors counted", n)
	}
}

func TestConnectionLimits(t *testing.T) {
	s := &Server{Handler: &recorder{}, Limits: Limits{MaxConns: 3, MaxConnsPerAddr: 2}}
	addr := start(t, s)
	a, b := dialTo(t, addr), dialTo(t, addr)
	a.expect("220 ")
	b.expect("220 ")
	c := dialTo(t, addr)
	c.expect("421 4.7.0 Too many connections from your address")
	c.closed()
	// A slot comes back.
	a.cmd("QUIT", "221 ")
	a.closed()
	waitFor(t, func() bool { return s.Stats().Conns == 1 })
	d := dialTo(t, addr)
	d.expect("220 ")
	if st := s.Stats(); st.TooMany != 1 || st.Accepted != 3 || st.Conns != 2 {
		t.Errorf("%+v", st)
	}
}

func TestConnectionLimitTotal(t *testing.T) {
	s := &Server{Handler: &recorder{}, Limits: Limits{MaxConns: 1}}
	addr := start(t, s)
	dialTo(t, addr).expect("220 ")
	c := dialTo(t, addr)
	c.expect("421 4.3.2 Too many connections")
	c.closed()
}

func TestNetwork(t *testing.T) {
	for _, c := range []struct{ addr, want string }{
		{"192.0.2.1", "192.0.2.1/32"}, {"::ffff:192.0.2.1", "192.0.2.1/32"},
		{"2001:db8:1:2:3::4", "2001:db8:1:2::/64"}, {"fe80::1%eth0", "fe80::/64"},
	} {
		if got := network(netip.MustParseAddr(c.addr)).String(); got != c.want {
			t.Errorf("%s counts as %s, want %s", c.addr, got, c.want)
		}
	}
	if network(netip.Addr{}).IsValid() {
		t.Error("no address counts as one")
	}
}

// A thousand clients that say nothing cost little, and nothing when they are gone.
func TestIdleConnections(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 100
	}
	s := &Server{Handler: &recorder{}, Limits: Limits{MaxConnsPerAddr: -1}}
	addr := start(t, s)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	conns := make([]net.Conn, n)
	for i := range conns {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer nc.Close()
		conns[i] = nc
	}
	buf := make([]byte, 100)
	for _, nc := range conns {
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		if k, err := nc.Read(buf); err != nil || !strings.HasPrefix(string(buf[:k]), "220 ") {
			t.Fatalf("%q, %v", buf[:k], err)
		}
	}
	if got := s.Stats().Conns; got != int64(n) {
		t.Fatalf("%d connections", got)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := int64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse) / int64(n)
	t.Logf("%d octets and %.2f goroutines for each connection, both sides", each, float64(runtime.NumGoroutine()-goroutines)/float64(n))
	if each > 40<<10 {
		t.Errorf("%d octets for an idle connection", each)
	}
	if got := runtime.NumGoroutine() - goroutines; got > n+10 {
		t.Errorf("%d goroutines for %d connections", got, n)
	}
	// Others are served meanwhile.
	c := dialTo(t, addr)
	c.expect("220 ")
	c.cmd("QUIT", "221 ")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if k, err := io.ReadFull(conns[n-1], buf[:9]); err != nil || string(buf[:k]) != "421 4.3.2" {
		t.Errorf("%q, %v", buf[:k], err)
	}
	waitFor(t, func() bool { return runtime.NumGoroutine() <= goroutines+2 })
}

func TestShutdown(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	r := &recorder{data: func(tx *Transaction, r io.Reader) (string, error) {
		if _, err := io.ReadAll(r); err != nil {
			return "", err
		}
		close(entered)
		<-leave
		return "taken", nil
	}}
	s := &Server{Handler: r, TLSConfig: testTLS()}
	addr := start(t, s)
	idle, idleTLS, running, between := dialTo(t, addr), dialTo(t, addr), dialTo(t, addr), dialTo(t, addr)
	idle.expect("220 ")
	idleTLS.expect("220 ")
	idleTLS.startTLS()
	idleTLS.cmd("EHLO a", "250-")
	for _, c := range []*client{running, between} {
		c.expect("220 ")
		c.cmd("EHLO a", "250-")
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	}
	running.cmd("RCPT TO:<ann@example.org>", "250 ")
	running.cmd("DATA", "354 ")
	running.send("x\r\n.\r\n")
	<-entered
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	for _, c := range []*client{idle, idleTLS} {
		c.expect("421 4.3.2 ")
		c.closed()
	}
	if nc, err := net.Dial("tcp", addr); err == nil {
		nc.Close()
		t.Error("the listener is still open")
	}
	// A transaction that has begun goes on to its end.
	between.cmd("RCPT TO:<ann@example.org>", "250 ")
	between.cmd("RSET", "250 ")
	between.expect("421 4.3.2 ")
	between.closed()
	select {
	case err := <-done:
		t.Fatalf("Shutdown returned %v while a message was on its way", err)
	default:
	}
	close(leave)
	running.expect("250 2.0.0 taken")
	running.expect("421 4.3.2 ")
	running.closed()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(&brokenListener{}); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func TestShutdownTimeout(t *testing.T) {
	r := &recorder{}
	s := &Server{Handler: r}
	addr := start(t, s)
	c := dialTo(t, addr)
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(ctx) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
	c.closed()
	s.Close()
	if n := len(r.noted()); n != 4 { // new, mail, reset, close
		t.Errorf("%q", r.noted())
	}
}

// brokenListener fails as one does that has run out of descriptors, and then for good.
type brokenListener struct {
	mu    sync.Mutex
	tries int
}

type temporary struct{ error }

func (temporary) Timeout() bool   { return false }
func (temporary) Temporary() bool { return true }

func (l *brokenListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tries++; l.tries < 4 {
		return nil, temporary{errors.New("too many open files")}
	}
	return nil, errors.New("gone")
}
func (l *brokenListener) Close() error   { return nil }
func (l *brokenListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestAcceptErrors(t *testing.T) {
	s := &Server{Handler: &recorder{}, Logger: quiet()}
	l := &brokenListener{}
	if err := s.Serve(l); err == nil || err.Error() != "gone" || l.tries != 4 {
		t.Errorf("%v after %d tries", err, l.tries)
	}
	s.Close()
	s = &Server{Handler: &recorder{}, Logger: quiet()}
	if err := s.ServeTLS(l); err == nil {
		t.Error("ServeTLS without a certificate")
	}
}

// A flood of connections at the same time, each with a message: for -race.
func TestManyAtOnce(t *testing.T) {
	r := &recorder{}
	s := &Server{Handler: r, Limits: Limits{MaxConnsPerAddr: -1}}
	addr := start(t, s)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			c := dialTo(t, addr)
			c.expect("220 ")
			c.cmd("EHLO a", "250-")
			for j := range 5 {
				c.send(fmt.Sprintf("MAIL FROM:<joe@example.com>\r\nRCPT TO:<ann%d-%d@example.org>\r\nDATA\r\n", i, j))
				c.expect("250 ")
				c.expect("250 ")
				c.expect("354 ")
				c.send(fmt.Sprintf("message %d-%d\r\n.\r\n", i, j))
				c.expect("250 2.0.0 Ok: queued as ")
			}
			c.cmd("QUIT", "221 ")
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, m := range r.got() {
		key := strings.TrimSuffix(strings.TrimPrefix(m.env.Recipients[0].Address.Local, "ann"), "")
		if m.data != "message "+key+"\r\n" || seen[key] || m.env.ID == "" {
			t.Errorf("%s: %q", key, m.data)
		}
		seen[key] = true
	}
	if len(seen) != 100 || s.Stats().Messages != 100 {
		t.Errorf("%d messages", len(seen))
	}
}

func TestStatusRule(t *testing.T) {
	l := &logs{}
	next := func() error { return nil }
	r := &recorder{
		mail: func(*Transaction) error { return next() },
		rcpt: func(*Transaction, *mailspine.Recipient) error { return next() },
		data: func(*Transaction, io.Reader) (string, error) { return "", next() },
	}
	c := dialTo(t, start(t, &Server{Handler: r, Logger: l.logger(), Limits: Limits{MaxErrors: -1}}))
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	secret := errors.New("open /var/spool/secret")
	for _, tc := range []struct {
		err  error
		want string
	}{
		{secret, "451 4.3.0 Local error in processing"},
		{mailspine.Errorf(550, "5.7.1", "No.\nReally \x00 not, Jürgen").WithCause(secret), "550-5.7.1 No.\n550 5.7.1 Really ? not, J?rgen"},
		{context.DeadlineExceeded, "451 4.4.7 "},
		{&mailspine.Error{Code: 200, Message: "fine"}, "451 4.3.0 "},
	} {
		next = func() error { return tc.err }
		c.cmd("MAIL FROM:<joe@example.com>", tc.want)
		next = func() error { return nil }
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		next = func() error { return tc.err }
		c.cmd("RCPT TO:<ann@example.org>", tc.want)
		next = func() error { return nil }
		c.cmd("RCPT TO:<ann@example.org>", "250 ")
		next = func() error { return tc.err }
		c.cmd("DATA", "354 ")
		c.send("x\r\n.\r\n")
		if r := c.expect(tc.want); strings.Contains(r, "secret") {
			t.Errorf("told to the client: %q", r)
		}
	}
	if !strings.Contains(l.String(), "/var/spool/secret") {
		t.Error("the cause is not in the log")
	}
	// nil without having read the message is a bug, not a 250.
	next = func() error { return nil }
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	c.cmd("RCPT TO:<ann@example.org>", "250 ")
	c.cmd("DATA", "354 ")
	c.send("x\r\n.\r\n")
	c.expect("451 4.3.0 ")
	// 421 ends the connection.
	next = func() error { return mailspine.Errorf(421, "4.7.0", "Enough") }
	c.cmd("MAIL FROM:<joe@example.com>", "421 4.7.0 Enough")
	c.closed()
}

func TestHandlerRefuses(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{errors.New("secret"), "421 4.3.0 Local error in processing"},
		{mailspine.Errorf(450, "4.7.1", "Later"), "421 4.7.1 Later"},
		{mailspine.Errorf(550, "5.7.1", "Listed"), "554 5.7.1 Listed"},
		{nil, "421 4.3.0 "}, // no session, no error
	} {
		h := HandlerFunc(func(context.Context, *Conn) (Session, error) { return nil, tc.err })
		c := dialTo(t, start(t, &Server{Handler: h}))
		c.expect(tc.want)
		c.closed()
	}
	c := dialTo(t, start(t, &Server{}))
	c.expect("554 5.3.2 ")
	c.closed()
}

// 452 4.5.3 asks the client to go on with the recipients that it has. It is not
// held against it, whoever says it: a client that sends its recipients at once
// would be cut off at the error limit each time, and never deliver to anyone.
func TestTooManyRecipientsIsNoError(t *testing.T) {
	r := &recorder{rcpt: func(tx *Transaction, _ *mailspine.Recipient) error {
		if len(tx.Envelope.Recipients) > 0 {
			return mailspine.Errorf(452, "4.5.3", "One recipient for each message")
		}
		return nil
	}}
	c := dialTo(t, start(t, &Server{Handler: r}))
	c.expect("220 ")
	c.cmd("EHLO a", "250-")
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	c.cmd("RCPT TO:<r0@example.org>", "250 ")
	for i := range 50 {
		c.cmd(fmt.Sprintf("RCPT TO:<r%d@example.org>", i+1), "452 4.5.3 ")
	}
	c.cmd("DATA", "354 ")
	c.send("x\r\n.\r\n")
	c.expect("250 ")
	if got := r.got(); len(got) != 1 || len(got[0].env.Recipients) != 1 {
		t.Errorf("%v", got)
	}
}

// Many recipients that an LMTP server refuses after the data are no errors of
// the client's, if others were taken.
func TestErrorLimitLMTP(t *testing.T) {
	r := &recorder{data: func(tx *Transaction, r io.Reader) (string, error) {
		io.Copy(io.Discard, r)
		res := make(mailspine.RecipientErrors, len(tx.Envelope.Recipients))
		for i := 1; i < len(res); i++ {
			res[i] = mailspine.Errorf(452, "4.2.2", "Full")
		}
		return "", res.Err()
	}}
	c := dialTo(t, start(t, &Server{Handler: r, LMTP: true, Limits: Limits{MaxErrors: 3}}))
	c.expect("220 ")
	c.cmd("LHLO a", "250-")
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	for i := range 10 {
		c.cmd(fmt.Sprintf("RCPT TO:<r%d@example.org>", i), "250 ")
	}
	c.cmd("DATA", "354 ")
	c.send("x\r\n.\r\n")
	c.expect("250 ")
	for range 9 {
		c.expect("452 4.2.2 ")
	}
	c.cmd("NOOP", "250 ")
}

// A 421 or 521 that is the result of one recipient is not the end of the connection.
func TestClosingStatusLMTP(t *testing.T) {
	r := &recorder{data: func(_ *Transaction, r io.Reader) (string, error) {
		io.Copy(io.Discard, r)
		return "", mailspine.RecipientErrors{mailspine.Errorf(421, "4.4.2", "Away"), nil, mailspine.Errorf(521, "5.3.2", "No mail")}
	}}
	c := dialTo(t, start(t, &Server{Handler: r, LMTP: true}))
	c.expect("220 ")
	c.cmd("LHLO a", "250-")
	c.cmd("MAIL FROM:<joe@example.com>", "250 ")
	for i := range 3 {
		c.cmd(fmt.Sprintf("RCPT TO:<r%d@example.org>", i), "250 ")
	}
	c.cmd("DATA", "354 ")
	c.send("x\r\n.\r\n")
	c.expect("450 4.4.2 Away")
	c.expect("250 ")
	c.expect("550 5.3.2 No mail")
	c.cmd("NOOP", "250 ")
}
