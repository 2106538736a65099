package control

import (
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
)

// A peer is who is at the other end of a connection.
type peer struct {
	known    bool
	uid      uint32
	pid      int32
	rejected error // nil: let in
}

// A listener lets in whom the server allows, and bounds the connections.
type listener struct {
	net.Listener
	s *Server
}

// A conn is a connection with its place.
type conn struct {
	net.Conn
	peer    peer
	release func()
}

func (c *conn) Close() error {
	c.release()
	return c.Conn.Close()
}

// Accept returns a connection for which there is room. One that is not let in is answered too, with an
// error; it takes one of a few places of its own, so that it can keep nobody out.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		p := l.s.examine(c)
		places := l.s.places
		if p.rejected != nil {
			places = l.s.rejects
			l.s.logger().Warn("control: connection refused", "uid", p.uid, "pid", p.pid, "err", p.rejected)
		}
		select {
		case places <- struct{}{}:
			var once sync.Once
			return &conn{c, p, func() { once.Do(func() { <-places }) }}, nil
		default:
			l.s.logger().Warn("control: too many connections", "uid", p.uid, "pid", p.pid)
			c.Close()
		}
	}
}

// examine finds out who has connected, and whether that is allowed.
func (s *Server) examine(c net.Conn) peer {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return peer{rejected: fmt.Errorf("%w: no Unix socket", ErrForbidden)}
	}
	p, err := credentials(u)
	switch {
	case err != nil:
		p.rejected = fmt.Errorf("%w: the user is not known: %w", ErrForbidden, err)
	case !p.known: // this system does not say
	case p.uid != 0 && int64(p.uid) != int64(os.Geteuid()) && !slices.Contains(s.AllowUIDs, p.uid):
		p.rejected = fmt.Errorf("%w: user %d", ErrForbidden, p.uid)
	}
	return p
}
