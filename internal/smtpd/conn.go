package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
)

// A Conn is one client connection. Sessions read from it who the client is; its
// exported methods are for the session's goroutine only, and do not wait.
type Conn struct {
	server   *Server
	implicit bool
	remote   netip.AddrPort
	local    netip.AddrPort
	log      *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	began  time.Time
	end    time.Time // of Limits.Session; zero: never

	raw    net.Conn // what was accepted: deadlines and Close
	tls    *tls.Conn
	src    source
	br     *bufio.Reader // narrow, or a wide one: only one of them holds anything
	bw     *bufio.Writer
	narrow *bufio.Reader
	buf    []byte // a line longer than br's buffer (AUTH), at most maxAuthLine

	sess     Session
	helo     string
	esmtp    bool
	login    *mailspine.Login
	tx       *Transaction
	refused  bool // a recipient of tx was refused
	commands int
	errs     int
	authBad  int
	authSeen bool // the client has said AUTH
	over     bool // the last reply has been written
	linger   bool // it was our wish: let the client read it
	lost     bool // nothing can be written any more

	// While a message comes in, every read gets a deadline of its own.
	inData  bool
	dataEnd time.Time

	mu       sync.Mutex
	idle     bool // waiting for the client, outside of a transaction
	draining bool
	aborted  bool
}

func newConn(s *Server, nc net.Conn, implicit bool) *Conn {
	c := &Conn{server: s, raw: nc, implicit: implicit, began: time.Now()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.remote, c.local = addrPort(nc.RemoteAddr()), addrPort(nc.LocalAddr())
	if tc, ok := nc.(*tls.Conn); ok {
		c.tls, c.implicit = tc, true
	}
	c.end = after(c.began, s.limits.Session)
	return c
}

// addrPort is invalid for what has no IP address, a pipe or a Unix socket.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case nil:
		return ap
	case *net.TCPAddr:
		ap = a.AddrPort()
	default:
		ap, _ = netip.ParseAddrPort(a.String())
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Remote is the client's address; invalid if it has none (a Unix socket).
func (c *Conn) Remote() netip.AddrPort { return c.remote }

// Local is our side's address; invalid if it has none.
func (c *Conn) Local() netip.AddrPort { return c.local }

// Hostname is the server's name, never empty.
func (c *Conn) Hostname() string { return c.server.name }

// Helo is the argument of EHLO, HELO or LHLO, letters, digits, ".-_:[]" and UTF-8; "" before, and again after STARTTLS.
func (c *Conn) Helo() string { return c.helo }

// Login is who logged in; nil: nobody.
func (c *Conn) Login() *mailspine.Login { return c.login }

// TLS is the state of the TLS connection; nil: there is none.
func (c *Conn) TLS() *tls.ConnectionState {
	if c.tls == nil {
		return nil
	}
	cs := c.tls.ConnectionState()
	return &cs
}

// OffersTLS reports whether the client could say STARTTLS now.
func (c *Conn) OffersTLS() bool { return c.tls == nil && c.server.TLSConfig != nil }

// TLSInfo is TLS in words.
func (c *Conn) TLSInfo() mailspine.TLSInfo {
	cs := c.TLS()
	if cs == nil {
		return mailspine.TLSInfo{}
	}
	return mailspine.TLSInfo{
		Version: tls.VersionName(cs.Version), Cipher: tls.CipherSuiteName(cs.CipherSuite), ServerID: printable(cs.ServerName),
	}
}

// Logger logs with the client's address.
func (c *Conn) Logger() *slog.Logger {
	if c.log == nil { // most connections have nothing to say
		c.log = c.server.log().With("remote", c.remote.String())
	}
	return c.log
}

// logs reports whether anybody wants to know.
func (c *Conn) logs(level slog.Level) bool { return c.server.log().Enabled(c.ctx, level) }

// proto is the protocol's name in the Received field (RFC 3848; RFC 6531 section 4.3).
func (c *Conn) proto(utf8 bool) string {
	if !c.esmtp {
		return "SMTP"
	}
	p := "ESMTP"
	switch {
	case c.server.LMTP && utf8:
		p = "UTF8LMTP"
	case c.server.LMTP:
		p = "LMTP"
	case utf8:
		p = "UTF8SMTP"
	}
	if c.tls != nil {
		p += "S"
	}
	if c.login != nil {
		p += "A"
	}
	return p
}

// The reasons why the wait for a line ended without one.
var (
	errDraining = errors.New("smtpd: shutting down")
	errJunk     = errors.New("smtpd: endless line")
	errTooLong  = errors.New("smtpd: line too long") // the line was skipped
)

// serve is the life of the connection.
func (c *Conn) serve() {
	c.trace(func(t *Trace) {
		if t.Connected != nil {
			t.Connected(c.ctx, c.remote)
		}
	})
	defer func() {
		c.cancel()
		c.hangUp()
		c.detach()
		c.trace(func(t *Trace) {
			if t.Disconnected != nil {
				t.Disconnected(c.ctx, c.remote, time.Since(c.began))
			}
		})
	}()
	// What is below runs foreign code only inside of guard; this is for our own bugs.
	defer func() {
		if v := recover(); v != nil {
			c.panicked(v)
		}
	}()

	c.attach(c.raw)
	if c.implicit && !c.handshake() {
		return
	}
	if !c.greet() {
		return
	}
	defer func() {
		c.reset()
		c.guard(func() { c.sess.Close() })
	}()
	for !c.over {
		line, err := c.readLine(maxAuthLine)
		if _, isAuth := cutFold(string(line[:min(len(line), 5)]), "AUTH "); len(line) > maxCommandLine && !isAuth {
			err = errTooLong
		}
		if err != nil && err != errTooLong {
			c.readFailed(err)
			return
		}
		c.commands++
		if n := c.server.limits.MaxCommands; n > 0 && c.commands > n {
			c.bye("4.7.0", "Too many commands on one connection")
			return
		}
		if err != nil {
			c.traceWire(false, "[line too long]")
			c.refuse(500, "5.5.2", "Line too long")
		} else {
			c.command(line)
		}
		if cap(c.buf) > readBuffer {
			c.buf = nil
		}
		if n := c.server.limits.MaxErrors; n > 0 && c.errs > n && !c.over {
			c.bye("4.7.0", "Too many errors")
		}
	}
}

// attach makes nc what is read from and written to. What br held is dropped.
func (c *Conn) attach(nc net.Conn) {
	c.detach()
	c.src = source{c, nc}
	c.narrow = reader(&c.server.readers, readBuffer, &c.src)
	c.br = c.narrow
	if c.bw, _ = c.server.writers.Get().(*bufio.Writer); c.bw == nil {
		c.bw = bufio.NewWriterSize(nil, writeBuffer)
	}
	c.bw.Reset(&sink{c, nc})
}

// detach gives the buffers back. What they held is dropped.
func (c *Conn) detach() {
	if c.br == nil {
		return
	}
	c.br.Reset(nil)
	if c.br != c.narrow {
		c.server.wideReaders.Put(c.br)
		c.narrow.Reset(nil)
	}
	c.server.readers.Put(c.narrow)
	c.bw.Reset(nil)
	c.server.writers.Put(c.bw)
	c.br, c.narrow, c.bw = nil, nil, nil
}

// widen takes a large buffer, if br is empty: a message comes in.
func (c *Conn) widen() {
	if c.br == c.narrow && c.br.Buffered() == 0 {
		c.br = reader(&c.server.wideReaders, dataBuffer, &c.src)
	}
}

// narrowAgain gives it back, unless there is something in it yet.
func (c *Conn) narrowAgain() {
	if c.br != c.narrow && c.br.Buffered() == 0 {
		c.br.Reset(nil)
		c.server.wideReaders.Put(c.br)
		c.br = c.narrow
	}
}

func reader(pool *sync.Pool, size int, r io.Reader) *bufio.Reader {
	br, _ := pool.Get().(*bufio.Reader)
	if br == nil {
		br = bufio.NewReaderSize(nil, size)
	}
	br.Reset(r)
	return br
}

// source is what the buffer reads from; while a message comes in it sets deadlines.
type source struct {
	c  *Conn
	nc net.Conn
}

func (s *source) Read(p []byte) (int, error) {
	if c := s.c; c.inData {
		c.raw.SetReadDeadline(earliest(after(time.Now(), c.server.limits.DataBlock), earliest(c.dataEnd, c.end)))
	}
	return s.nc.Read(p)
}

// sink is what the buffer writes to.
type sink struct {
	c  *Conn
	nc net.Conn
}

func (s *sink) Write(p []byte) (int, error) {
	s.c.raw.SetWriteDeadline(after(time.Now(), s.c.server.limits.Write))
	return s.nc.Write(p)
}

// wait is called before reading something from the client that is not a
// message. It sets the deadline, unless the connection should not go on.
func (c *Conn) wait(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.aborted:
		return net.ErrClosed
	case c.draining && c.tx == nil:
		return errDraining
	}
	c.idle = c.tx == nil
	return c.raw.SetReadDeadline(earliest(after(time.Now(), d), earliest(c.dataEnd, c.end)))
}

func (c *Conn) waited() {
	c.mu.Lock()
	c.idle = false
	c.mu.Unlock()
}

// interruptIfIdle begins the draining: a client that has no transaction is cut off, others when theirs is over.
func (c *Conn) interruptIfIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	if c.idle {
		c.raw.SetReadDeadline(time.Unix(1, 0))
	}
}

// abort ends the connection at once.
func (c *Conn) abort() {
	c.mu.Lock()
	c.aborted = true
	c.mu.Unlock()
	c.cancel()
	c.raw.Close()
}

// readLine returns a line without its CRLF, valid until the next read. The
// deadline is for the whole line, so that a drip gains nothing.
func (c *Conn) readLine(max int) ([]byte, error) {
	c.narrowAgain()
	if b, _ := c.br.Peek(c.br.Buffered()); bytes.IndexByte(b, '\n') < 0 {
		// The client waits for our replies (RFC 2920 section 3.2).
		if c.flush(); c.lost {
			return nil, net.ErrClosed
		}
	}
	if err := c.wait(c.server.limits.Command); err != nil {
		return nil, err
	}
	defer c.waited()
	c.buf = c.buf[:0]
	skipped := 0
	for {
		frag, err := c.br.ReadSlice('\n')
		if err == nil && skipped == 0 && len(c.buf) == 0 && len(frag) <= max {
			return frag, nil
		}
		if skipped > 0 || len(c.buf)+len(frag) > max {
			skipped += len(c.buf) + len(frag)
			if c.buf = c.buf[:0]; skipped > maxJunkLine {
				return nil, errJunk
			}
		} else {
			c.buf = append(c.buf, frag...)
		}
		switch err {
		case nil:
			if skipped > 0 {
				return nil, errTooLong
			}
			return c.buf, nil
		case bufio.ErrBufferFull:
		default:
			if err == io.EOF && (len(c.buf) > 0 || skipped > 0) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// readFailed ends the connection after a read that failed, with a reply where one can arrive.
func (c *Conn) readFailed(err error) {
	c.mu.Lock()
	draining := c.draining
	c.mu.Unlock()
	switch {
	case err == errDraining, draining && errors.Is(err, os.ErrDeadlineExceeded):
		c.bye("4.3.2", "Service shutting down")
	case err == errJunk:
		c.bye("4.7.0", "Line too long")
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.server.stats.timeouts.Add(1)
		c.Logger().Info("smtpd: client is too slow or silent", "after", time.Since(c.began).Round(time.Millisecond))
		if !c.end.IsZero() && !time.Now().Before(c.end) {
			c.bye("4.4.2", "The connection has lasted too long")
		} else {
			c.bye("4.4.2", "Timed out waiting for you")
		}
	default:
		c.lost = true
		if err != io.EOF && !errors.Is(err, net.ErrClosed) {
			c.Logger().Debug("smtpd: connection lost", "err", err)
		}
	}
}

// handshake is TLS's; false: it failed, and there is nothing more to say.
func (c *Conn) handshake() bool {
	if c.tls == nil {
		c.tls = tls.Server(c.raw, c.server.TLSConfig)
	}
	err := c.wait(c.server.limits.Handshake)
	if err == nil {
		c.raw.SetWriteDeadline(after(time.Now(), c.server.limits.Handshake))
		c.guard(func() { err = c.tls.HandshakeContext(c.ctx) }) // TLSConfig's callbacks are foreign code
		c.waited()
	}
	if err != nil || c.over {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.server.stats.timeouts.Add(1)
		}
		c.Logger().Info("smtpd: TLS handshake failed", "err", err)
		// RFC 3207 section 4: without TLS there is nothing to be trusted, and no going back.
		c.lost, c.over = true, true
		return false
	}
	c.attach(c.tls)
	return true
}

// greet makes the session, and says hello.
func (c *Conn) greet() bool {
	var err error
	c.guard(func() {
		if c.server.Handler == nil {
			err = mailspine.Errorf(554, "5.3.2", "No service here")
			return
		}
		c.sess, err = c.server.Handler.NewSession(c.ctx, c)
		if err == nil && c.sess == nil {
			err = errors.New("smtpd: NewSession returned neither a session nor an error")
		}
	})
	if c.over {
		return false
	}
	if err != nil {
		st := mailspine.Status(err)
		c.logRefusal("connection refused", err, st)
		// RFC 5321 section 3.1 has 554 and 421 for this place.
		st.Code = 421
		if !st.Temporary() || st.Enhanced[0] == 5 {
			st.Code = 554
		}
		c.finish(st.Code, st.Enhanced, st.Message)
		return false
	}
	kind := "ESMTP"
	if c.server.LMTP {
		kind = "LMTP"
	}
	c.say(220, mailspine.EnhancedCode{}, c.server.name+" "+kind+" ready")
	return true
}

// guard runs foreign code. If that panics, the client gets 421 and the connection is over.
func (c *Conn) guard(f func()) {
	defer func() {
		if v := recover(); v != nil {
			c.panicked(v)
		}
	}()
	f()
}

func (c *Conn) panicked(v any) {
	c.server.stats.panics.Add(1)
	c.Logger().Error("smtpd: panic in a session", "panic", v, "stack", string(debug.Stack()))
	if !c.over {
		c.bye("4.3.0", "Internal error")
	}
}

// say writes a reply into the buffer. A zero enhanced code is left out.
func (c *Conn) say(code int, enhanced mailspine.EnhancedCode, lines ...string) {
	text := ""
	if !enhanced.IsZero() {
		text = enhanced.String()
	}
	c.reply(code, text, lines...)
}

// reply is say with an enhanced code in words; "": none.
func (c *Conn) reply(code int, enhanced string, lines ...string) {
	if c.lost {
		return
	}
	// 512 octets a line (RFC 5321 section 4.5.3.1.5), 100 lines a reply.
	room := 512 - len("250-") - len("\r\n")
	if enhanced != "" {
		room -= len(enhanced) + len(" ")
	}
	left := 100
	for i, l := range lines {
		l = printable(l)
		for ; len(l) > room && left > 1; left-- {
			c.replyLine(code, '-', enhanced, l[:room])
			l = l[room:]
		}
		sep := byte('-')
		if left--; left == 0 || i == len(lines)-1 {
			sep = ' '
		}
		c.replyLine(code, sep, enhanced, l[:min(len(l), room)])
		if sep == ' ' {
			return
		}
	}
	c.replyLine(code, ' ', enhanced, "")
}

func (c *Conn) replyLine(code int, sep byte, enhanced, text string) {
	b := strconv.AppendInt(c.bw.AvailableBuffer(), int64(code), 10)
	b = append(b, sep)
	if enhanced != "" { // on each line: RFC 2034 section 4
		b = append(append(b, enhanced...), ' ')
	}
	b = append(b, text...)
	if c.traces() {
		c.traceWire(true, string(b))
	}
	c.bw.Write(append(b, "\r\n"...)) // the writer's error is sticky, flush sees it
}

// printable replaces whatever is not printable ASCII: foreign text stays one line.
func printable(s string) string {
	if clean(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
}

func clean(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

func (c *Conn) flush() {
	if c.lost || c.bw.Buffered() == 0 {
		return
	}
	if err := c.bw.Flush(); err != nil {
		c.lost, c.over = true, true
		c.Logger().Debug("smtpd: reply could not be written", "err", err)
	}
}

func (c *Conn) ok(code int, enhanced string, lines ...string) { c.reply(code, enhanced, lines...) }

// refuse says no to a command, and counts it.
func (c *Conn) refuse(code int, enhanced, text string) {
	c.errs++
	c.server.stats.errors.Add(1)
	c.say(code, ec(enhanced), text)
}

// refuseErr says no with the Status of a session's error. 421 and 521 end the
// connection (RFC 5321 section 3.8, RFC 7504).
func (c *Conn) refuseErr(what string, err error) {
	st := mailspine.Status(err)
	c.logRefusal(what, err, st)
	c.errs++
	c.server.stats.errors.Add(1)
	if st.Code == 421 || st.Code == 521 {
		c.finish(st.Code, st.Enhanced, st.Message)
		return
	}
	c.say(st.Code, st.Enhanced, strings.Split(st.Message, "\n")...)
}

// logRefusal logs what nobody planned for as an error, and a planned no as information.
func (c *Conn) logRefusal(what string, err error, st *mailspine.Error) {
	var planned *mailspine.Error
	level := slog.LevelError
	if errors.As(err, &planned) || st.Enhanced != (mailspine.EnhancedCode{4, 3, 0}) {
		level = slog.LevelInfo
	}
	if c.logs(level) {
		c.Logger().Log(c.ctx, level, "smtpd: "+what, "reply", st.Reply(), "err", err)
	}
}

// bye says 421, which ends the connection.
func (c *Conn) bye(enhanced, text string) { c.finish(421, ec(enhanced), text) }

func (c *Conn) finish(code int, enhanced mailspine.EnhancedCode, text string) {
	c.say(code, enhanced, strings.Split(text, "\n")...)
	c.over, c.linger = true, true
}

// hangUp writes what is left and closes.
func (c *Conn) hangUp() {
	defer c.raw.Close()
	if c.bw != nil {
		c.flush()
	}
	if c.lost {
		return
	}
	if c.tls != nil {
		c.raw.SetWriteDeadline(time.Now().Add(time.Second))
		c.tls.CloseWrite() // the close_notify alert
	}
	// Closing with input unread makes TCP reset the connection, and the client
	// may never see why. So it is given half a second to hang up itself.
	cw, ok := c.raw.(interface{ CloseWrite() error })
	if _, isTLS := c.raw.(*tls.Conn); !c.linger || !ok || isTLS {
		return
	}
	if err := cw.CloseWrite(); err != nil {
		return
	}
	c.mu.Lock()
	draining := c.draining
	c.mu.Unlock()
	if !draining {
		c.raw.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		io.CopyN(io.Discard, c.raw, 256<<10)
	}
}

func (c *Conn) trace(f func(*Trace)) {
	if t := c.server.Trace; t != nil {
		c.guardTrace(func() { f(t) })
	}
}

// guardTrace runs a hook: its panics are logged, and end nothing.
func (c *Conn) guardTrace(f func()) {
	defer func() {
		if v := recover(); v != nil {
			c.server.stats.panics.Add(1)
			c.Logger().Error("smtpd: panic in a trace hook", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	f()
}

// traces reports whether anybody looks at the lines.
func (c *Conn) traces() bool { return c.server.Trace != nil && c.server.Trace.Wire != nil }

func (c *Conn) traceWire(sent bool, line string) {
	if c.traces() {
		c.guardTrace(func() { c.server.Trace.Wire(c.ctx, c.remote, sent, line) })
	}
}

// ec parses an enhanced code that is a constant of this package.
func ec(s string) mailspine.EnhancedCode {
	e, err := mailspine.ParseEnhancedCode(s)
	if err != nil {
		panic(err)
	}
	return e
}
