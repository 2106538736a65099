package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A Server serves SMTP or LMTP. Its fields must not change after the first
// Serve. The zero value, given a Handler, serves without TLS.
type Server struct {
	// Hostname is the name in the greeting, the reply to EHLO and where the
	// address <postmaster> lives; "": os.Hostname, or "localhost" if that fails.
	Hostname string
	// Handler makes the sessions; nil: every connection is refused with 554 5.3.2.
	Handler Handler
	// TLSConfig enables STARTTLS and ServeTLS; nil: neither. The lowest version is TLS 1.2 unless
	// it says otherwise.
	TLSConfig *tls.Config
	// LMTP makes it an LMTP server (RFC 2033): LHLO, and a reply for each
	// recipient after the data.
	LMTP bool
	// Extensions says which optional extensions are offered, because what comes
	// after obeys them; the zero value: none.
	Extensions Extensions
	// Limits; the zero value: the defaults.
	Limits Limits
	// Logger; nil: slog.Default().
	Logger *slog.Logger
	// Trace; nil: none.
	Trace *Trace
	// AuthDelay is how long the reply to the first failed AUTH of a connection waits; it doubles
	// with each further one, up to 8 s. 0: 1 s; negative: none.
	AuthDelay time.Duration

	once    sync.Once
	limits  Limits
	name    string
	closing chan struct{} // closed by the first Shutdown or Close

	mu        sync.Mutex
	done      bool
	listeners map[net.Listener]struct{}
	conns     map[*Conn]struct{}
	perAddr   map[netip.Prefix]int // no more entries than conns
	wg        sync.WaitGroup       // the connections; Add only under mu and before done

	// Buffers of connections that are over, for those that come: *bufio.Reader of readBuffer and
	// dataBuffer octets, *bufio.Writer.
	readers, wideReaders, writers sync.Pool

	stats struct {
		conns, accepted, tooMany, messages, refused, errors, authOK, authBad, timeouts, panics atomic.Int64
	}
}

// Extensions are the extensions of MAIL that not every next hop can honour. One
// that is off is not listed in the reply to EHLO, and its parameter is refused
// with 555 5.5.4.
type Extensions struct {
	RequireTLS bool // REQUIRETLS (RFC 8689), offered under TLS
	DeliverBy  bool // DELIVERBY (RFC 2852)
	Priority   bool // MT-PRIORITY (RFC 6710)
}

func (s *Server) init() {
	s.once.Do(func() {
		s.limits = s.Limits.withDefaults()
		s.name = s.Hostname
		if s.name == "" {
			if h, err := os.Hostname(); err == nil && validHelo(h) {
				s.name = h
			} else {
				s.name = "localhost"
			}
		}
		s.closing = make(chan struct{})
		s.listeners = map[net.Listener]struct{}{}
		s.conns = map[*Conn]struct{}{}
		s.perAddr = map[netip.Prefix]int{}
	})
}

func (s *Server) log() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

// Serve accepts connections on l until l fails, or Shutdown or Close is called; then it returns
// nil. It closes l. Clients start TLS with STARTTLS. A connection that is a *tls.Conn is
// taken as implicit TLS. Several Serves may run at once.
func (s *Server) Serve(l net.Listener) error { return s.serve(l, false) }

// ServeTLS is Serve for implicit TLS (RFC 8314 section 3): clients begin with a TLS handshake.
func (s *Server) ServeTLS(l net.Listener) error {
	if s.TLSConfig == nil {
		l.Close()
		return errors.New("smtpd: ServeTLS without a TLSConfig")
	}
	return s.serve(l, true)
}

func (s *Server) serve(l net.Listener, implicit bool) error {
	s.init()
	defer l.Close()
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
		if err != nil {
			select {
			case <-s.closing:
				return nil
			default:
			}
			// Out of descriptors, say: it passes. As net/http does.
			//lint:ignore SA1019 there is no other way to tell
			if ne, ok := err.(net.Error); ok && ne.Temporary() {
				pause = min(max(2*pause, 5*time.Millisecond), time.Second)
				s.log().Warn("smtpd: accept failed, trying again", "err", err, "pause", pause)
				t := time.NewTimer(pause)
				select {
				case <-t.C:
				case <-s.closing:
					t.Stop()
				}
				continue
			}
			return err
		}
		pause = 0
		s.admit(nc, implicit)
	}
}

// admit counts a connection, and starts or refuses it.
func (s *Server) admit(nc net.Conn, implicit bool) {
	c := newConn(s, nc, implicit)
	net := network(c.remote.Addr())
	s.mu.Lock()
	var reply string
	switch {
	case s.done:
		reply = "421 4.3.2 Service shutting down"
	case s.limits.MaxConns > 0 && len(s.conns) >= s.limits.MaxConns:
		reply = "421 4.3.2 Too many connections, try again later"
	case net.IsValid() && s.limits.MaxConnsPerAddr > 0 && s.perAddr[net] >= s.limits.MaxConnsPerAddr:
		reply = "421 4.7.0 Too many connections from your address"
	default:
		s.conns[c] = struct{}{}
		if net.IsValid() {
			s.perAddr[net]++
		}
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if reply != "" {
		s.stats.tooMany.Add(1)
		s.log().Info("smtpd: connection refused", "remote", c.remote, "reply", reply)
		if !c.implicit {
			// Into an empty socket buffer: this does not wait. Other kinds of
			// connection get little time to.
			nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			nc.Write([]byte(reply + "\r\n"))
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
			if net.IsValid() {
				if s.perAddr[net]--; s.perAddr[net] <= 0 {
					delete(s.perAddr, net)
				}
			}
			s.mu.Unlock()
			s.stats.conns.Add(-1)
		}()
		deepen(len(c.server.name))
		c.serve()
	}()
}

// deepen makes the stack of a new goroutine large enough, at once, for most of what a message needs. Otherwise it
// grows step by step in the life of each connection, and each step copies the frames of all calls that are open: for a
// client that sends one message that is a fifteenth of the work.
//
//go:noinline
func deepen(i int) byte {
	var room [5 << 10]byte
	room[i%len(room)] = 1 // or there would be no room
	return room[(i+1)%len(room)]
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
func (s *Server) stop() []*Conn {
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
	conns := make([]*Conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

// Shutdown stops accepting, tells idle clients 421 4.3.2, lets transactions that
// have begun end, and returns when every connection is gone. If ctx ends before
// that, the connections that are left are closed as by Close, and Shutdown returns ctx's
// error without waiting further.
func (s *Server) Shutdown(ctx context.Context) error {
	for _, c := range s.stop() {
		c.interruptIfIdle()
	}
	gone := make(chan struct{})
	go func() { // ends when the connections have, which Close below sees to
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

// Close stops accepting, closes every connection, cancels the contexts of the
// sessions, and waits until they have returned. A message whose data was
// complete is still delivered, within Limits.Deliver, though its client will not
// learn of it: prefer Shutdown.
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
		Messages: s.stats.messages.Load(), Refused: s.stats.refused.Load(), Errors: s.stats.errors.Load(),
		AuthOK: s.stats.authOK.Load(), AuthBad: s.stats.authBad.Load(),
		Timeouts: s.stats.timeouts.Load(), Panics: s.stats.panics.Load(),
	}
}
