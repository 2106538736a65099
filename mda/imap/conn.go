package imap

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2/imapserver"
)

// A conn is a connection under the engine and under TLS. It knows when the engine waits for a command, which is when
// a connection can be ended in good manners.
type conn struct {
	net.Conn
	srv     *Server
	remote  netip.AddrPort
	network netip.Prefix
	ctx     context.Context
	cancel  context.CancelFunc
	forget  sync.Once

	mu      sync.Mutex
	engine  *imapserver.Conn // once the session has begun
	reading bool             // the engine waits for the client
	busy    int              // commands under way
	bye     string           // the connection shall end, for this reason
	said    bool             // that it ends
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{Conn: nc, srv: s}
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

// Read notes that the engine waits.
func (c *conn) Read(b []byte) (int, error) {
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

// Close also ends what the session does.
func (c *conn) Close() error {
	c.cancel()
	return c.Conn.Close()
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
	if c.bye == "" || c.said || !c.reading || c.busy > 0 {
		return
	}
	c.said = true
	if c.engine == nil {
		c.cancel()
		c.Conn.Close()
		return
	}
	engine, why := c.engine, c.bye
	go func() { // ends within a second, and with it the connection
		// A client that does not read gets no goodbye.
		t := time.AfterFunc(time.Second, func() { c.Close() })
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
