package imap

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A Server is an IMAP server. Its fields must not change after the first Serve. Mailboxes, Auth and
// TLSConfig are needed; every other zero is a default.
type Server struct {
	// Mailboxes has the accounts, by Login.Name. nil: Serve and ServeTLS fail.
	Mailboxes mailbox.Store
	// Auth says who may log in, as Service "imap". nil: Serve and ServeTLS fail.
	Auth mailspine.Authenticator
	// TLSConfig has the certificate. nil: Serve and ServeTLS fail, since nobody logs in without TLS.
	TLSConfig *tls.Config
	// Stager gives messages that are appended a place until they are filed; nil: a mailspine.SpoolStager.
	Stager mailspine.Stager
	// Limits; the zero value: the defaults.
	Limits Limits
	// AuthDelay is how long the reply to the first failed login of a connection
	// waits; it doubles with each further one, up to 8 s. 0: 1 s; negative: none.
	AuthDelay time.Duration
	Logger    *slog.Logger // nil: slog.Default
	Trace     *Trace       // nil: none

	once    sync.Once
	limits  Limits
	engine  *imapserver.Server
	closing chan struct{} // closed by Shutdown and Close

	mu        sync.Mutex
	done      bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	perAddr   map[netip.Prefix]int
	wg        sync.WaitGroup // connections, from Accept to the end of their sessions

	stats struct {
		conns, accepted, tooMany, authOK, authBad, appended, errors atomic.Int64
	}
}

func (s *Server) init() {
	s.once.Do(func() {
		s.limits = s.Limits.withDefaults()
		s.closing = make(chan struct{})
		s.listeners = map[net.Listener]struct{}{}
		s.conns = map[*conn]struct{}{}
		s.perAddr = map[netip.Prefix]int{}
		caps := imap.CapSet{}
		for _, c := range []imap.Cap{
			imap.CapIMAP4rev1, imap.CapNamespace, imap.CapUIDPlus, imap.CapESearch, imap.CapSearchRes, imap.CapListExtended, imap.CapListStatus,
			imap.CapMove, imap.CapStatusSize, imap.CapChildren, imap.CapSpecialUse, imap.CapCreateSpecialUse, imap.CapLiteralPlus,
		} {
			caps[c] = struct{}{}
		}
		s.engine = imapserver.New(&imapserver.Options{
			Caps: caps, Logger: engineLog{s},
			// The engine sees connections that have TLS already, in our wrapper, so that it cannot tell.
			InsecureAuth: true,
			NewSession: func(c *imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
				return s.session(c), nil, nil
			},
		})
	})
}

// engineLog takes what go-imap logs: clients that break off, mostly. It never has secrets.
type engineLog struct{ s *Server }

func (l engineLog) Printf(format string, args ...any) {
	if strings.HasPrefix(format, "panic") {
		l.s.stats.errors.Add(1)
		l.s.logger().Error("imap: " + fmt.Sprintf(format, args...))
		return
	}
	l.s.logger().Debug("imap: " + fmt.Sprintf(format, args...))
}

func (s *Server) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

func (s *Server) ready() error {
	switch {
	case s.TLSConfig == nil:
		return errors.New("imap: Server.TLSConfig is nil, and nobody logs in without TLS")
	case s.Auth == nil:
		return errors.New("imap: Server.Auth is nil: nobody could log in")
	case s.Mailboxes == nil:
		return errors.New("imap: Server.Mailboxes is nil")
	}
	s.init()
	return nil
}

// Serve accepts connections on l, whose clients say STARTTLS (port 143). It returns nil after
// Shutdown or Close, and otherwise why l failed. It closes l. Several Serves and ServeTLSs may run at
// once.
func (s *Server) Serve(l net.Listener) error { return s.serve(l, false) }

// ServeTLS is Serve for implicit TLS (port 993, RFC 8314 section 3.2).
func (s *Server) ServeTLS(l net.Listener) error { return s.serve(l, true) }

func (s *Server) serve(l net.Listener, implicit bool) error {
	defer l.Close()
	if err := s.ready(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.done {
		s.mu.Unlock()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	// The engine accepts from a queue, so that a client which is slow with its handshake delays nobody.
	q := &acceptQueue{addr: l.Addr(), conns: make(chan net.Conn), done: make(chan struct{})}
	var engine sync.WaitGroup
	engine.Go(func() { s.engine.Serve(q) })
	err := s.accept(l, q, implicit)
	close(q.done)
	engine.Wait()
	select {
	case <-s.closing:
		return nil
	default:
		return err
	}
}

func (s *Server) accept(l net.Listener, q *acceptQueue, implicit bool) error {
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			s.admit(nc, q, implicit)
			continue
		}
		select {
		case <-s.closing:
			return nil
		default:
		}
		// Out of descriptors, say: it passes. As net/http does.
		//lint:ignore SA1019 there is no other way to tell
		if ne, ok := err.(net.Error); !ok || !ne.Temporary() {
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.logger().Warn("imap: accept failed, trying again", "err", err, "pause", pause)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-s.closing:
			t.Stop()
		}
	}
}

// An acceptQueue is the listener that the engine sees.
type acceptQueue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
}

func (q *acceptQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *acceptQueue) Close() error   { return nil }
func (q *acceptQueue) Addr() net.Addr { return q.addr }

// admit counts a connection, and hands it to the engine or refuses it.
func (s *Server) admit(nc net.Conn, q *acceptQueue, implicit bool) {
	c := newConn(s, nc)
	s.mu.Lock()
	refusal := ""
	switch {
	case s.done:
		refusal = "Shutting down"
	case s.limits.MaxConns > 0 && len(s.conns) >= s.limits.MaxConns:
		refusal = "Too many connections, try again later"
	case c.network.IsValid() && s.limits.MaxConnsPerAddr > 0 && s.perAddr[c.network] >= s.limits.MaxConnsPerAddr:
		refusal = "Too many connections from your address"
	default:
		s.conns[c] = struct{}{}
		if c.network.IsValid() {
			s.perAddr[c.network]++
		}
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if refusal != "" {
		s.stats.tooMany.Add(1)
		s.logger().Info("imap: connection refused", "remote", c.remote, "reason", refusal)
		if !implicit {
			// Into an empty socket buffer: this does not wait.
			nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			nc.Write([]byte("* BYE [UNAVAILABLE] " + refusal + "\r\n"))
		}
		nc.Close()
		return
	}
	s.stats.accepted.Add(1)
	s.stats.conns.Add(1)
	go func() { // until the engine has it; the connection's end calls s.forget
		if !c.secure(implicit) {
			c.raw.Close()
			s.forget(c)
			return
		}
		select {
		case q.conns <- c:
		case <-q.done:
			c.Close()
			s.forget(c)
		}
	}()
}

// secure begins TLS, after STARTTLS unless it is implicit.
func (c *conn) secure(implicit bool) bool {
	if !implicit && !c.clear() {
		return false
	}
	t := tls.Server(c.raw, c.srv.TLSConfig)
	ctx, cancel := c.ctx, context.CancelFunc(func() {})
	if d := c.srv.limits.Handshake; d > 0 {
		ctx, cancel = context.WithTimeout(ctx, d)
	}
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		c.srv.logger().Info("imap: TLS handshake failed", "remote", c.remote, "err", err)
		return false
	}
	c.raw.SetDeadline(time.Time{})
	c.Conn, c.silent = t, !implicit
	return true
}

// forget gives back a connection's place.
func (s *Server) forget(c *conn) {
	c.forget.Do(func() {
		c.cancel()
		s.mu.Lock()
		delete(s.conns, c)
		if c.network.IsValid() {
			if s.perAddr[c.network]--; s.perAddr[c.network] <= 0 {
				delete(s.perAddr, c.network)
			}
		}
		s.mu.Unlock()
		s.stats.conns.Add(-1)
		s.wg.Done()
	})
}

// stop closes the listeners, once, and returns the connections.
func (s *Server) stop() []*conn {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		s.done = true
		close(s.closing)
		for l := range s.listeners {
			l.Close()
		}
	}
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

// Shutdown stops accepting, lets commands that have begun be answered, says BYE to each client, and returns when every connection is
// gone. If ctx ends before that, the connections that are left are closed as by Close, and Shutdown returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	for _, c := range s.stop() {
		c.end("Shutting down")
	}
	gone := make(chan struct{})
	go func() { // ends when the connections have, which the Close below sees to
		s.wg.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		for _, c := range s.stop() {
			c.abort()
		}
		return ctx.Err()
	}
}

// Close stops accepting, closes every connection, and waits until what they were doing has ended.
func (s *Server) Close() error {
	for _, c := range s.stop() {
		c.abort()
	}
	s.wg.Wait()
	return nil
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	return Stats{
		Conns: s.stats.conns.Load(), Accepted: s.stats.accepted.Load(), TooMany: s.stats.tooMany.Load(), AuthOK: s.stats.authOK.Load(),
		AuthBad: s.stats.authBad.Load(), Appended: s.stats.appended.Load(), Errors: s.stats.errors.Load(),
	}
}
