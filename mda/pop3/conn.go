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
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

const (
	// maxLine is of a command with its line end. RFC 2449 section 4 has 255, but RFC 5034 section 4 lets
	// the response of AUTH be longer: two names and a password in base64.
	maxLine  = 4 << 10
	blockLen = 32 << 10
)

var errLineTooLong = errors.New("pop3: line too long")

// A conn is one connection. All but interrupt and abort is for its own goroutine.
type conn struct {
	srv      *Server
	nc       net.Conn // as accepted
	remote   netip.AddrPort
	implicit bool
	log      *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	rw     net.Conn // nc, or TLS over it
	tls    bool
	br     *bufio.Reader
	bw     *bufio.Writer
	ends   time.Time // of Limits.Session; zero: never
	login  time.Time // of Limits.Login; zero: never

	user     string // as USER said; "": not yet
	authBad  int
	errs     int // one after the other
	drop     *maildrop
	over     bool // nothing more is read
	timedOut bool

	mu      sync.Mutex
	waiting bool // for a command
	closing bool // Shutdown wants the connection to end
}

func newConn(s *Server, nc net.Conn, implicit bool) *conn {
	c := &conn{srv: s, nc: nc, implicit: implicit}
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		c.remote = a.AddrPort()
		c.remote = netip.AddrPortFrom(c.remote.Addr().Unmap(), c.remote.Port())
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.log = s.logger().With("remote", c.remote)
	return c
}

// use puts buffers around a connection; what was buffered is forgotten.
func (c *conn) use(rw net.Conn) {
	c.rw = rw
	c.br = bufio.NewReaderSize(rw, maxLine)
	c.bw = bufio.NewWriterSize(&timedWriter{c}, blockLen)
}

// A timedWriter gives each block its time.
type timedWriter struct{ c *conn }

func (w *timedWriter) Write(b []byte) (int, error) {
	at := w.c.ends
	if d := w.c.srv.limits.Write; d > 0 && (at.IsZero() || time.Now().Add(d).Before(at)) {
		at = time.Now().Add(d)
	}
	w.c.rw.SetWriteDeadline(at)
	n, err := w.c.rw.Write(b)
	if err != nil {
		w.c.over = true
		w.c.timeout(err)
	}
	return n, err
}

func (c *conn) timeout(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) && !c.timedOut {
		c.timedOut = true
		c.srv.stats.timeouts.Add(1)
	}
}

// interrupt ends the connection at once if it waits for a command, and after the command that runs otherwise.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closing = true
	if c.waiting {
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

func (c *conn) abort() {
	c.cancel()
	c.nc.Close()
}

func (c *conn) serve() {
	begin := time.Now()
	if c.rw == nil {
		c.use(c.nc)
	}
	if d := c.srv.limits.Session; d > 0 {
		c.ends = begin.Add(d)
	}
	if d := c.srv.limits.Login; d > 0 {
		c.login = begin.Add(d)
	}
	defer c.guard(func() {
		if t := c.srv.Trace; t != nil && t.Disconnected != nil {
			t.Disconnected(c.ctx, c.remote, time.Since(begin))
		}
	})
	defer c.abort()
	c.guard(c.talk)
	c.guard(func() { c.drop.release() })
}

// guard keeps a panic of a hook, of the store or of ours from ending more than the connection.
func (c *conn) guard(f func()) {
	defer func() {
		if p := recover(); p != nil {
			c.over = true
			c.srv.stats.panics.Add(1)
			c.log.Error("pop3: panic", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	f()
}

func (c *conn) talk() {
	if t := c.srv.Trace; t != nil && t.Connected != nil {
		t.Connected(c.ctx, c.remote)
	}
	if c.implicit && !c.handshake() {
		return
	}
	c.ok("Ready")
	for n := 0; !c.over; n++ {
		line, err := c.line()
		switch {
		case errors.Is(err, errLineTooLong):
			c.fail("Line too long")
			c.over = true
		case err != nil:
			c.ended(err)
		case c.srv.limits.MaxCommands > 0 && n >= c.srv.limits.MaxCommands:
			c.fail("[SYS/TEMP] Too many commands")
			c.over = true
		default:
			c.command(line)
		}
	}
	c.bw.Flush()
	if c.tls && !c.timedOut {
		c.rw.SetWriteDeadline(time.Now().Add(time.Second))
		c.rw.Close() // says so to the client
	}
}

// handshake begins TLS. Without success the connection is over.
func (c *conn) handshake() bool {
	t := tls.Server(c.nc, c.srv.TLSConfig)
	ctx := c.ctx
	if d := c.srv.limits.Handshake; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	c.nc.SetDeadline(time.Time{})
	if err := t.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil && c.ctx.Err() == nil {
			c.srv.stats.timeouts.Add(1)
		}
		c.log.Info("pop3: TLS handshake failed", "err", err)
		c.over = true
		return false
	}
	c.use(t)
	c.tls = true
	return true
}

// deadline is when the next line must be complete.
func (c *conn) deadline() time.Time {
	var at time.Time
	if d := c.srv.limits.Command; d > 0 {
		at = time.Now().Add(d)
	}
	for _, end := range []time.Time{c.ends, c.login} {
		if !end.IsZero() && (at.IsZero() || end.Before(at)) {
			at = end
		}
	}
	return at
}

// line reads a line without its end, which is CRLF; LF alone is taken too.
func (c *conn) line() (string, error) {
	// Clients that pipeline get their replies together.
	if c.br.Buffered() == 0 {
		if err := c.bw.Flush(); err != nil {
			return "", err
		}
	}
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		return "", net.ErrClosed
	}
	c.waiting = true
	c.rw.SetReadDeadline(c.deadline())
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.waiting = false
		c.mu.Unlock()
	}()
	b, err := c.br.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", errLineTooLong
	case err != nil:
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// ended says why no line came.
func (c *conn) ended(err error) {
	c.over = true
	c.mu.Lock()
	closing := c.closing
	c.mu.Unlock()
	switch {
	case closing:
		c.fail("[SYS/TEMP] Shutting down")
	case errors.Is(err, os.ErrDeadlineExceeded): // RFC 1939 section 3: without any response
		c.timeout(err)
	case !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed):
		c.log.Debug("pop3: connection lost", "err", err)
	}
}

func (c *conn) wire(sent bool, line string) {
	if t := c.srv.Trace; t != nil && t.Wire != nil {
		t.Wire(c.ctx, c.remote, sent, line)
	}
}

func (c *conn) ok(format string, args ...any) {
	c.errs = 0
	c.reply("+OK " + fmt.Sprintf(format, args...))
}

// fail refuses a command. The text may have no octets of the client's.
func (c *conn) fail(format string, args ...any) {
	c.srv.stats.errors.Add(1)
	c.errs++
	c.reply("-ERR " + fmt.Sprintf(format, args...))
	if n := c.srv.limits.MaxErrors; n > 0 && c.errs >= n {
		c.over = true
	}
}

func (c *conn) reply(line string) {
	c.wire(true, line)
	c.bw.WriteString(line + "\r\n")
}

// gone answers for a message that others removed, which is no mistake of the client.
func (c *conn) gone() {
	c.errs = 0
	c.reply("-ERR [SYS/PERM] The message is not there any more")
}

// internal answers what went wrong here; the cause is for the log.
func (c *conn) internal(what string, err error) {
	c.log.Error("pop3: "+what, "err", err)
	c.fail("[SYS/TEMP] Internal error, try again later")
}

// command executes one command.
func (c *conn) command(line string) {
	verb, arg, _ := strings.Cut(line, " ")
	if verb = strings.ToUpper(verb); verb != "PASS" { // RFC 1939 section 7: spaces are part of a password
		arg = strings.TrimSpace(arg)
	}
	c.wire(false, redact(line, verb, arg))
	if !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		c.fail("Control characters, or not UTF-8")
		return
	}
	if f, ok := anyState[verb]; ok {
		f(c, arg)
		return
	}
	states, other := authorization, transaction
	if c.drop != nil {
		states, other = transaction, authorization
	}
	if f, ok := states[verb]; ok {
		f(c, arg)
		return
	}
	switch _, known := other[verb]; {
	case known && c.drop != nil:
		c.fail("You are logged in already")
	case known:
		c.fail("Log in first")
	default:
		c.fail("No such command")
	}
}

// redact is what a trace sees of a line. A line that is not one of our commands may be a password: of a client that has
// put something before PASS, or goes on with an AUTH that was refused.
func redact(line, verb, arg string) string {
	_, any := anyState[verb]
	_, before := authorization[verb]
	_, after := transaction[verb]
	switch {
	case verb == "PASS":
		return "PASS ***"
	case verb == "AUTH":
		if mechanism, _, ok := strings.Cut(arg, " "); ok {
			return "AUTH " + strings.ToUpper(mechanism) + " ***"
		}
		return line
	case any || before || after:
		return line
	}
	return "***"
}

var anyState = map[string]func(*conn, string){
	"CAPA": (*conn).capa,
	"QUIT": (*conn).quit,
}

var authorization = map[string]func(*conn, string){
	"STLS": (*conn).stls,
	"USER": (*conn).userName,
	"PASS": (*conn).pass,
	"AUTH": (*conn).auth,
	"APOP": func(c *conn, _ string) { c.fail("APOP is not available") },
}

// capa lists what the client can use now (RFC 2449 section 5).
func (c *conn) capa(arg string) {
	if arg != "" {
		c.fail("CAPA has no argument")
		return
	}
	c.ok("Capabilities")
	list := []string{"TOP", "UIDL", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE", "EXPIRE NEVER"}
	if c.tls { // also who is logged in is told (RFC 2449 section 5)
		list = append(list, "USER", "SASL PLAIN")
	} else {
		list = append(list, "STLS")
	}
	for _, s := range append(list, ".") {
		c.reply(s)
	}
}

// stls begins TLS (RFC 2595 section 4).
func (c *conn) stls(arg string) {
	switch {
	case arg != "":
		c.fail("STLS has no argument")
		return
	case c.tls:
		c.fail("TLS is active already")
		return
	case c.br.Buffered() > 0:
		// Somebody in the middle may have put it there, to be taken for what the client says under TLS.
		c.fail("Nothing may follow STLS before TLS begins")
		c.over = true
		return
	}
	c.ok("Begin TLS")
	if c.bw.Flush() != nil {
		return
	}
	c.user = ""
	c.handshake()
}

const (
	maxCredential = 1024 // an Authenticator need not expect more

	// storeTime bounds a login, and what a store is asked for: a client has long gone then.
	storeTime = 5 * time.Minute
)

// check logs in, or answers why not. The mechanism is for the log.
func (c *conn) check(mechanism, authzID, username, password string) {
	for _, v := range []string{authzID, username, password} {
		if len(v) > maxCredential || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			c.badLogin(mechanism, mailspine.ErrBadCredentials)
			return
		}
	}
	if username == "" || password == "" { // RFC 4616 section 2; some directories take an empty password for a guest
		c.badLogin(mechanism, mailspine.ErrBadCredentials)
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, storeTime)
	defer cancel()
	login, err := c.srv.Auth.Authenticate(ctx, mailspine.Credentials{
		Username: username, Password: password, AuthzID: authzID, Service: "pop3", Remote: c.remote, TLS: c.tls,
	})
	switch {
	case errors.Is(err, mailspine.ErrBadCredentials):
		c.badLogin(mechanism, fmt.Errorf("user %.64q: %w", username, err))
		return
	case err != nil:
		c.internal("a login could not be checked", err)
		return
	case login == nil || login.Name == "":
		c.internal("a login could not be checked", errors.New("the Authenticator returned no login and no error"))
		return
	}
	c.srv.stats.authOK.Add(1)
	c.open(mechanism, login)
}

// badLogin answers a failed login; guesses take longer and longer.
func (c *conn) badLogin(mechanism string, err error) {
	c.authBad++
	c.srv.stats.authBad.Add(1)
	c.log.Warn("pop3: login failed", "mechanism", mechanism, "failures", c.authBad, "err", err)
	d := c.srv.AuthDelay
	if d == 0 {
		d = time.Second
	}
	if d = min(max(d, 0)<<min(c.authBad-1, 10), 8*time.Second); d > 0 {
		c.bw.Flush()
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.srv.closing:
		case <-c.ctx.Done():
		}
	}
	c.fail("[AUTH] Wrong user name or password") // RFC 3206 section 4
	if n := c.srv.limits.MaxAuthFailures; n > 0 && c.authBad >= n {
		c.over = true
	}
}

// encrypted refuses a login without TLS.
func (c *conn) encrypted() bool {
	if !c.tls {
		c.fail("[SYS/PERM] Begin TLS with STLS first")
	}
	return c.tls
}

func (c *conn) userName(arg string) {
	if !c.encrypted() {
		return
	}
	if arg == "" {
		c.fail("The name is missing")
		return
	}
	c.user = arg
	c.ok("Now the password")
}

func (c *conn) pass(arg string) {
	switch {
	case !c.encrypted():
	case c.user == "":
		c.fail("Say USER first")
	default:
		user := c.user
		c.user = ""
		c.check("USER", "", user, arg)
	}
}
