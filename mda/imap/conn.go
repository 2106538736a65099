package imap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2/imapserver"
)

// A conn is a connection between TLS and the engine. It knows when the engine waits for a command, which is when
// a connection can be ended in good manners, and it guards literals (see guard).
type conn struct {
	net.Conn          // with TLS, once the engine has it
	raw      net.Conn // without
	srv      *Server
	remote   netip.AddrPort
	network  netip.Prefix
	ctx      context.Context
	cancel   context.CancelFunc
	forget   sync.Once
	guard    guard
	silent   bool // the engine's greeting is not to be sent: STARTTLS has been answered

	mu      sync.Mutex
	engine  *imapserver.Conn // once the session has begun
	before  bool             // the client has to say STARTTLS, and we wait for it
	reading bool             // the engine waits for the client
	busy    int              // commands under way
	bye     string           // the connection shall end, for this reason
	said    bool             // that it ends
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{Conn: nc, raw: nc, srv: s}
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		c.remote = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		c.network = network(c.remote.Addr())
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// network is what connections are counted by: an IPv4 address, or the /64 of an
// IPv6 address, since one customer has at least that. Invalid: not counted.
func network(a netip.Addr) netip.Prefix {
	a = a.WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// Read gives the engine what the client says, and notes that it waits for it.
func (c *conn) Read(b []byte) (int, error) {
	c.mu.Lock()
	ends := c.bye != "" && c.busy == 0
	c.mu.Unlock()
	for ends { // commands that came along with the last one are not begun; sayBye closes the connection within two seconds
		if _, err := c.receive(b); err != nil {
			return 0, err
		}
	}
	n, err := c.guard.read(b, c.receive)
	if errors.Is(err, errGuard) {
		c.Write([]byte("* BYE " + err.Error() + "\r\n"))
		c.Close()
	}
	return n, err
}

// receive reads from the client.
func (c *conn) receive(b []byte) (int, error) {
	c.mu.Lock()
	c.reading = true
	c.sayBye()
	c.mu.Unlock()
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	c.reading = false
	c.mu.Unlock()
	return n, err
}

// Write sends what the engine says, but for what the client must not see.
func (c *conn) Write(b []byte) (int, error) {
	if c.silent {
		if i := bytes.Index(b, []byte("\r\n")); i >= 0 {
			c.silent = false
			if i+2 < len(b) {
				n, err := c.Conn.Write(b[i+2:])
				return i + 2 + n, err
			}
		}
		return len(b), nil
	}
	if !c.guard.written(b) {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Close also ends what the session does. A client that does not read gets no goodbye of TLS.
func (c *conn) Close() error {
	c.cancel()
	c.raw.SetWriteDeadline(time.Now().Add(time.Second))
	return c.Conn.Close()
}

// abort closes the connection without a word, from whichever goroutine.
func (c *conn) abort() {
	c.cancel()
	c.raw.Close()
}

// end lets the connection end as soon as no command is under way.
func (c *conn) end(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bye == "" {
		c.bye = why
	}
	c.sayBye()
}

// sayBye says so, if it is time. It is called with mu.
func (c *conn) sayBye() {
	switch {
	case c.bye == "" || c.said:
		return
	case c.engine == nil: // TLS has not begun, or is about to
		c.said = true
		if c.before {
			c.raw.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			c.raw.Write([]byte("* BYE " + c.bye + "\r\n"))
		}
		c.cancel()
		c.raw.Close()
		return
	case !c.reading || c.busy > 0:
		return
	}
	c.said = true
	engine, why := c.engine, c.bye
	c.srv.wg.Add(1) // the connection itself is in wg still
	go func() {     // ends within a second or two, and with it the connection
		defer c.srv.wg.Done()
		// A client that does not read gets no goodbye.
		t := time.AfterFunc(time.Second, func() { c.raw.Close() })
		defer t.Stop()
		engine.Bye(why)
		c.Close()
	}()
}

// work brackets a command: the connection is not ended in the middle of one.
func (c *conn) work() (done func()) {
	c.mu.Lock()
	c.busy++
	c.mu.Unlock()
	return func() {
		c.mu.Lock()
		c.busy--
		c.mu.Unlock()
	}
}

// clear is the conversation before TLS: the engine has no part in it. It reports whether the client said STARTTLS, and was
// told to begin.
func (c *conn) clear() bool {
	const caps = "CAPABILITY IMAP4rev1 SASL-IR LITERAL- STARTTLS LOGINDISABLED"
	say := func(line string) bool {
		c.raw.SetWriteDeadline(time.Now().Add(30 * time.Second))
		_, err := c.raw.Write([]byte(line + "\r\n"))
		return err == nil
	}
	if !say("* OK [" + caps + "] IMAP server ready") {
		return false
	}
	end := time.Time{}
	if d := c.srv.limits.Login; d > 0 {
		end = time.Now().Add(d)
	}
	br := bufio.NewReaderSize(c.raw, 1024)
	for range 20 { // commands
		at := time.Now().Add(time.Minute)
		if !end.IsZero() && end.Before(at) {
			at = end
		}
		c.raw.SetReadDeadline(at)
		c.mu.Lock()
		c.before = true
		c.sayBye()
		c.mu.Unlock()
		line, err := br.ReadSlice('\n')
		c.mu.Lock()
		c.before = false
		c.mu.Unlock()
		if err != nil || bytes.HasSuffix(bytes.TrimRight(line, "\r\n"), []byte("}")) {
			say("* BYE Begin TLS with STARTTLS, and say nothing else that is long")
			return false
		}
		words := bytes.Fields(line)
		if len(words) < 2 || !isTag(words[0]) {
			say("* BAD That is no command")
			continue
		}
		tag := string(words[0])
		switch string(bytes.ToUpper(words[1])) {
		case "STARTTLS":
			if br.Buffered() > 0 {
				// Somebody in the middle may have put it there, to be taken for what the client says under TLS.
				say(tag + " BAD Nothing may follow STARTTLS before TLS begins")
				return false
			}
			c.raw.SetReadDeadline(time.Time{})
			return say(tag + " OK Begin TLS negotiation now")
		case "CAPABILITY":
			say("* " + caps + "\r\n" + tag + " OK CAPABILITY completed")
		case "NOOP":
			say(tag + " OK NOOP completed")
		case "LOGOUT":
			say("* BYE Logging out\r\n" + tag + " OK LOGOUT completed")
			return false
		case "LOGIN", "AUTHENTICATE":
			say(tag + " NO [PRIVACYREQUIRED] Begin TLS with STARTTLS first")
		default:
			say(tag + " BAD Begin TLS with STARTTLS first")
		}
	}
	say("* BYE Too many commands before TLS")
	return false
}

// isTag keeps a client's octets that are no tag out of replies.
func isTag(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c >= 0x7f || bytes.IndexByte([]byte(`(){%*"\]+`), c) >= 0 {
			return false
		}
	}
	return len(b) <= 64
}
