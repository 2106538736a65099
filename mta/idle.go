package mta

import (
	"container/list"
	"context"
	"crypto/x509"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine/mta/smtpclient"
)

// A sessionKey is what a delivery must have in common with the one that a connection was opened for. What does not
// change while a Relay is used is not in it.
type sessionKey struct {
	addr    netip.AddrPort
	host    string
	fixed   bool   // a Smarthost's: its addresses are not checked, so that they are no other's
	manner  manner // a Smarthost's
	granted bool   // an Egress chose source
	source  Source // with the name in EHLO
	// The TLS rule. Whoever demands more than the rule that the connection was opened under gets one of his own,
	// even if this one would have been good enough.
	level   TLSLevel
	names   string // joined by NUL; "*": the host's
	policy  string // what else the decision about TLS says
	roots   *x509.CertPool
	require bool // REQUIRETLS is offered
}

func (t *transfer) key(h host, addr netip.AddrPort) sessionKey {
	k := sessionKey{
		addr: addr, host: h.name, fixed: t.fixed != nil, granted: t.granted, source: t.source,
		level: t.tls.rule.Level, names: "*", roots: t.tls.rule.Roots, policy: t.tls.fingerprint(), require: t.env.RequireTLS,
	}
	if t.fixed != nil {
		k.manner = t.fixed.manner
	}
	if t.tls.rule.Names != nil {
		k.names = strings.Join(t.tls.rule.Names, "\x00")
	}
	return k
}

// anywhere is the key without the address.
func (k sessionKey) anywhere() sessionKey {
	k.addr = netip.AddrPortFrom(netip.Addr{}, k.addr.Port())
	return k
}

// An idlePool keeps the connections of a Relay that are between two deliveries, at most Relay.MaxIdle. It has no
// goroutine but the one of its timer, which runs when a connection's time may be over, and is not set again when none
// is left. So a connection is ended late by as much as the timer was set for another one, which is IdleTimeout at most; but
// it is not used again when its time is over.
type idlePool struct {
	mu    sync.Mutex
	byKey map[sessionKey][]*session // the last is the one that was put in last
	fit   map[sessionKey]int        // how many there are for a host: by key without the address
	hosts map[string]int            // and for whatever key of a host
	all   list.List                 // of *session, the one that was put in first at the front
	timer *time.Timer
	run   chan struct{} // closed at the end of the run that the timer is set for, or that is under way; nil: none
}

// put keeps a session. Over most, the one that waited longest is returned.
func (p *idlePool) put(s *session, until time.Time, most int, reap func()) (over *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byKey == nil {
		p.byKey, p.fit, p.hosts = map[sessionKey][]*session{}, map[sessionKey]int{}, map[string]int{}
	}
	p.fit[s.key.anywhere()]++
	p.hosts[s.key.host]++
	s.until = until
	s.elem = p.all.PushBack(s)
	p.byKey[s.key] = append(p.byKey[s.key], s)
	if p.all.Len() > most {
		over = p.all.Front().Value.(*session)
		p.remove(over)
	}
	if p.run == nil {
		p.arm(time.Until(until), reap)
	}
	return over
}

// take returns the session with that key which was put in last, or nil.
func (p *idlePool) take(key sessionKey) *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	same := p.byKey[key]
	if len(same) == 0 {
		return nil
	}
	s := same[len(same)-1]
	p.remove(s)
	return s
}

// remove takes out a session that is in the pool.
func (p *idlePool) remove(s *session) {
	p.all.Remove(s.elem)
	s.elem = nil
	less(p.fit, s.key.anywhere())
	less(p.hosts, s.key.host)
	same := p.byKey[s.key]
	if i := slices.Index(same, s); i >= 0 {
		same = slices.Delete(same, i, i+1)
	}
	if len(same) == 0 {
		delete(p.byKey, s.key)
		return
	}
	p.byKey[s.key] = same
}

// less counts one less of something.
func less[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] == 0 {
		delete(m, k)
	}
}

// toHosts counts the connections to some hosts.
func (p *idlePool) toHosts(names []string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range names {
		n += p.hosts[h]
	}
	return n
}

// arm sets the timer. mu is held.
func (p *idlePool) arm(d time.Duration, reap func()) {
	p.run = make(chan struct{})
	p.timer = time.AfterFunc(d, reap)
}

// expired takes out the sessions whose time is over.
func (p *idlePool) expired(now time.Time) []*session {
	p.mu.Lock()
	defer p.mu.Unlock()
	var gone []*session
	for e := p.all.Front(); e != nil; {
		s := e.Value.(*session)
		e = e.Next()
		if !s.until.After(now) {
			p.remove(s)
			gone = append(gone, s)
		}
	}
	return gone
}

// again ends a run, and sets the timer for the session whose time is over first.
func (p *idlePool) again(reap func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.run)
	p.run = nil
	var first time.Time
	for e := p.all.Front(); e != nil; e = e.Next() {
		if s := e.Value.(*session); first.IsZero() || s.until.Before(first) {
			first = s.until
		}
	}
	if !first.IsZero() {
		p.arm(time.Until(first), reap)
	}
}

// empty takes out all sessions and stops the timer. running is closed when the run of it that is under way, if there
// is one, has ended.
func (p *idlePool) empty() (gone []*session, running <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for e := p.all.Front(); e != nil; e = p.all.Front() {
		s := e.Value.(*session)
		p.remove(s)
		gone = append(gone, s)
	}
	if p.run != nil && p.timer.Stop() {
		close(p.run)
		p.run = nil
	}
	return gone, p.run
}

// reap ends the connections that waited for too long. It is what the timer runs.
func (r *Relay) reap() {
	r.bye(r.idle.expired(time.Now()))
	r.idle.again(r.reap)
}

// bye says good-bye to connections that nobody uses, all at once.
func (r *Relay) bye(gone []*session) {
	clients := make([]*smtpclient.Client, len(gone))
	for i, s := range gone {
		s.watchWire(context.Background(), r)
		clients[i] = s.c
	}
	smtpclient.QuitAll(r.Timeouts.withDefaults().Quit, clients...)
}

// CloseIdle ends the connections that are kept for further deliveries, and returns when the servers have answered
// the good-bye, or Timeouts.Quit is over. Connections that are in use are kept when their delivery is done: to end
// all of them, call it when there are no more deliveries. If it is not called they end by themselves after IdleTimeout.
func (r *Relay) CloseIdle() {
	gone, running := r.idle.empty()
	r.bye(gone)
	if running != nil {
		<-running
	}
}

// The defaults of what is kept.
const (
	defaultIdleTimeout      = 5 * time.Second
	defaultMaxIdle          = 256
	defaultMaxPerConnection = 100
	defaultMaxAge           = 5 * time.Minute
)

// keeps returns until when a session may be kept; zero: not at all.
func (r *Relay) keeps(s *session, now time.Time) time.Time {
	idle, age, most := r.IdleTimeout, r.MaxAge, r.MaxPerConnection
	if idle == 0 {
		idle = defaultIdleTimeout
	}
	if age <= 0 {
		age = defaultMaxAge
	}
	if most <= 0 {
		most = defaultMaxPerConnection
	}
	if limit := s.c.Limits().MailMax; limit > 0 && limit < most {
		most = limit // RFC 9422
	}
	until := now.Add(idle)
	if end := s.born.Add(age); end.Before(until) {
		until = end
	}
	if idle < 0 || s.used >= most || !until.After(now) {
		return time.Time{}
	}
	return until
}

// keep puts a session into the pool if it may be used again, and reports whether it did. Nobody may use it after
// that.
func (r *Relay) keep(s *session) bool {
	if !s.reusable || !s.c.InStep() {
		return false
	}
	now := time.Now()
	until := r.keeps(s, now)
	if until.IsZero() || !s.c.Park() {
		return false
	}
	// Nothing of the delivery is kept.
	s.t, s.over, s.since = nil, nil, now
	most := r.MaxIdle
	if most <= 0 {
		most = defaultMaxIdle
	}
	if over := r.idle.put(s, until, most, r.reap); over != nil {
		over.watchWire(context.Background(), r)
		over.c.Leave()
	}
	return true
}

// reuse returns a session that was kept for such a delivery and is still there, or nil. It looks at as many as
// are kept.
func (t *transfer) reuse(ctx context.Context, h host, addr netip.AddrPort) *session {
	if t.r.IdleTimeout < 0 {
		return nil
	}
	key := t.key(h, addr)
	for s := t.r.idle.take(key); s != nil; s = t.r.idle.take(key) {
		now := time.Now()
		if !s.until.After(now) {
			s.c.Leave()
			continue
		}
		// A server that hung up, or said good-bye before it does.
		if !s.c.Quiet() {
			s.c.Close()
			continue
		}
		s.adopt(ctx, t, now)
		return s
	}
	return nil
}

// warm reports whether a connection is kept to one of the host's addresses that the transfer could use as it stands:
// with its source, and what was decided about TLS for the host. The server may have ended it by now.
func (t *transfer) warm(name string) bool {
	if t.r.IdleTimeout < 0 {
		return false
	}
	key := t.key(host{name: name}, netip.AddrPortFrom(netip.Addr{}, t.port()))
	p := &t.r.idle
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fit[key] > 0
}

// adopt gives a kept session to a transfer.
func (s *session) adopt(ctx context.Context, t *transfer, now time.Time) {
	s.t, s.reused, s.heard, s.failed, s.doubted = t, true, false, false, false
	s.c.Renew()
	s.watchWire(ctx, t.r)
	s.rewatch(ctx)
	t.last, t.said = s.receipt(), reply{}
	if f := t.r.trace().Reused; f != nil {
		f(ctx, ReusedInfo{
			Domain: t.domain, Host: s.host, Addr: s.addr, Source: t.source.Name, Local: localAddr(s.c),
			Idle: now.Sub(s.since), Messages: s.used,
		})
	}
}
