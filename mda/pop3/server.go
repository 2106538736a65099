package pop3

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A Server is a POP3 server. Its fields must not change after the first Serve. Mailboxes, Auth and
// TLSConfig are needed; every other zero is a default.
type Server struct {
	// Mailboxes has the accounts, by Login.Name. nil: Serve and ServeTLS fail.
	Mailboxes mailbox.Store
	// Auth says who may log in, as Service "pop3". nil: Serve and ServeTLS fail.
	Auth mailspine.Authenticator
	// TLSConfig has the certificate. nil: Serve and ServeTLS fail, since nobody logs in without TLS.
	TLSConfig *tls.Config
	// Limits; the zero value: the defaults.
	Limits Limits
	// AuthDelay is how long the reply to the first failed login of a connection
	// waits; it doubles with each further one, up to 8 s. 0: 1 s; negative: none.
	AuthDelay time.Duration
	Logger    *slog.Logger // nil: slog.Default
	Trace     *Trace       // nil: none

	once    sync.Once
	limits  Limits
	closing chan struct{} // closed by Shutdown and Close

	mu        sync.Mutex
	done      bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	perAddr   map[netip.Prefix]int
	wg        sync.WaitGroup

	stats struct {
		conns, accepted, tooMany, authOK, authBad, retrieved, deleted, errors, timeouts, panics atomic.Int64
	}
}

func (s *Server) init() {
	s.once.Do(func() {
		s.limits = s.Limits.withDefaults()
		s.closing = make(chan struct{})
		s.listeners = map[net.Listener]struct{}{}
		s.conns = map[*conn]struct{}{}
		s.perAddr = map[netip.Prefix]int{}
	})
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
		return errors.New("pop3: Server.TLSConfig is nil, and nobody logs in without TLS")
	case s.Auth == nil:
		return errors.New("pop3: Server.Auth is nil: nobody could log in")
	case s.Mailboxes == nil:
		return errors.New("pop3: Server.Mailboxes is nil")
	}
	s.init()
	return nil
}

// Serve accepts connections on l, whose clients say STLS (port 110). It returns nil after
// Shutdown or Close, and otherwise why l failed. It closes l. Several Serves and ServeTLSs may run at
// once.
func (s *Server) Serve(l net.Listener) error { return s.serve(l, false) }

// ServeTLS is Serve for implicit TLS (port 995, RFC 8314 section 3.3).
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
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			s.admit(nc, implicit)
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
		s.logger().Warn("pop3: accept failed, trying again", "err", err, "pause", pause)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-s.closing:
			t.Stop()
		}
	}
}

// admit counts a connection, and starts or refuses it.
func (s *Server) admit(nc net.Conn, implicit bool) {
	c := newConn(s, nc, implicit)
	from := network(c.remote.Addr())
	s.mu.Lock()
	refusal := ""
	switch {
	case s.done:
		refusal = "-ERR [SYS/TEMP] Shutting down"
	case s.limits.MaxConns > 0 && len(s.conns) >= s.limits.MaxConns:
		refusal = "-ERR [SYS/TEMP] Too many connections, try again later"
	case from.IsValid() && s.limits.MaxConnsPerAddr > 0 && s.perAddr[from] >= s.limits.MaxConnsPerAddr:
		refusal = "-ERR [SYS/TEMP] Too many connections from your address"
	default:
		s.conns[c] = struct{}{}
		if from.IsValid() {
			s.perAddr[from]++
		}
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if refusal != "" {
		s.stats.tooMany.Add(1)
		s.logger().Info("pop3: connection refused", "remote", c.remote, "reply", refusal)
		if !implicit {
			// Into an empty socket buffer: this does not wait. Other kinds of
			// connection get little time to.
			nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			nc.Write([]byte(refusal + "\r\n"))
		}
		nc.Close()
		return
	}
	s.stats.accepted.Add(1)
	s.stats.conns.Add(1)
	go func() {
		defer s.wg.Done()
		defer func() {
			s.mu.Lock()
			delete(s.conns, c)
			if from.IsValid() {
				if s.perAddr[from]--; s.perAddr[from] <= 0 {
					delete(s.perAddr, from)
				}
			}
			s.mu.Unlock()
			s.stats.conns.Add(-1)
		}()
		c.serve()
	}()
}

// network is what connections are counted by: an IPv4 address, or the /64 of an
// IPv6 address, since one customer has at least that. Invalid: not counted.
func network(a netip.Addr) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
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

// Shutdown stops accepting, tells clients -ERR [SYS/TEMP] and closes their connections when the command
// under way has been answered, and returns when every connection is gone. Nothing is removed but by a QUIT that was under
// way. If ctx ends before that, the connections that are left are closed as by Close, and Shutdown returns
// ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	for _, c := range s.stop() {
		c.interrupt()
	}
	gone := make(chan struct{})
	go func() { // ends when the connections have, which the abort below sees to
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
		Conns: s.stats.conns.Load(), Accepted: s.stats.accepted.Load(), TooMany: s.stats.tooMany.Load(),
		AuthOK: s.stats.authOK.Load(), AuthBad: s.stats.authBad.Load(), Retrieved: s.stats.retrieved.Load(),
		Deleted: s.stats.deleted.Load(), Errors: s.stats.errors.Load(), Timeouts: s.stats.timeouts.Load(), Panics: s.stats.panics.Load(),
	}
}
