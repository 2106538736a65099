package mta

import (
	"container/list"
	"crypto/tls"
	"net/netip"
	"sync"
	"time"
)

// maxTLSSessions bounds the TLS sessions that a Relay remembers, those that were used last.
const maxTLSSessions = 1024

// A resumeKey is what a connection must have in common with the one that a TLS session comes from: all that a kept
// connection must have (see sessionKey), but for the address, since the addresses of a host often share their tickets. So
// no session goes from one rule, source or host to another.
type resumeKey struct {
	session sessionKey
	name    string // what crypto/tls calls it
}

// A resumeEntry is a TLS session.
type resumeEntry struct {
	key   resumeKey
	state *tls.ClientSessionState
	until time.Time // when the first of the server's certificates expires; zero: never
}

// tlsSessions has the TLS sessions of a Relay that can be resumed. The zero value is empty.
type tlsSessions struct {
	mu     sync.Mutex
	byKey  map[resumeKey]*list.Element
	recent list.List // of resumeEntry, the one that was used last in front
}

func (s *tlsSessions) get(key resumeKey, now time.Time) (*tls.ClientSessionState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.byKey[key]
	if !ok {
		return nil, false
	}
	entry := e.Value.(resumeEntry)
	if !entry.until.IsZero() && !now.Before(entry.until) {
		s.remove(e)
		return nil, false
	}
	s.recent.MoveToFront(e)
	return entry.state, true
}

// put replaces what is there; a nil state only removes it.
func (s *tlsSessions) put(entry resumeEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.byKey[entry.key]; ok {
		s.remove(e)
	}
	if entry.state == nil {
		return
	}
	if s.byKey == nil {
		s.byKey = map[resumeKey]*list.Element{}
	}
	s.byKey[entry.key] = s.recent.PushFront(entry)
	if s.recent.Len() > maxTLSSessions {
		s.remove(s.recent.Back())
	}
}

// remove forgets a session. mu is held.
func (s *tlsSessions) remove(e *list.Element) {
	delete(s.byKey, s.recent.Remove(e).(resumeEntry).key)
}

// A resumption is the tls.ClientSessionCache of one connection.
type resumption struct {
	sessions *tlsSessions
	key      sessionKey
	now      func() time.Time

	mu    sync.Mutex
	until time.Time
}

var _ tls.ClientSessionCache = (*resumption)(nil)

// Get returns the session that was remembered last for such a connection.
func (r *resumption) Get(name string) (*tls.ClientSessionState, bool) {
	return r.sessions.get(resumeKey{r.key, name}, r.now())
}

// Put remembers a session. With TLS 1.3 it is called when the server's tickets are read, after the handshake.
func (r *resumption) Put(name string, state *tls.ClientSessionState) {
	r.mu.Lock()
	until := r.until
	r.mu.Unlock()
	r.sessions.put(resumeEntry{resumeKey{r.key, name}, state, until})
}

// resume makes the connection to a host resume the TLS session of an earlier one, where the server allows it. c is complete
// otherwise. The server's certificate is verified again: VerifyConnection is called for resumed sessions too, with the
// certificates of the first handshake; so a session ends with them, lest a certificate that was renewed meanwhile looks expired. If
// the verification fails crypto/tls forgets the session. A cache that Relay.TLSConfig has, or SessionTicketsDisabled, is left
// as it is.
func (t *transfer) resume(c *tls.Config, name string) {
	if c.ClientSessionCache != nil || c.SessionTicketsDisabled {
		return
	}
	r := &resumption{sessions: &t.r.sessions, key: t.key(host{name: name}, netip.AddrPort{}), now: time.Now}
	if c.Time != nil {
		r.now = c.Time
	}
	c.ClientSessionCache = r
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		r.mu.Lock()
		for _, cert := range cs.PeerCertificates {
			if r.until.IsZero() || cert.NotAfter.Before(r.until) {
				r.until = cert.NotAfter
			}
		}
		r.mu.Unlock()
		if verify != nil {
			return verify(cs)
		}
		return nil
	}
}
