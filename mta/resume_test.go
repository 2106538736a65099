package mta

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// A tlsServer takes mail under TLS on a real socket, since tickets need one with a buffer. Its certificate can be changed while its
// tickets stay good.
type tlsServer struct {
	l  net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	certs *tls.Config
}

func newTLSServer(t *testing.T, certs *tls.Config) *tlsServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &tlsServer{l: l}
	s.use(certs)
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			certs := s.certs
			s.mu.Unlock()
			s.wg.Go(func() { serveTLS(conn, certs, false) })
		}
	})
	t.Cleanup(func() { l.Close(); s.wg.Wait() })
	return s
}

// use changes the certificate.
func (s *tlsServer) use(certs *tls.Config) {
	certs = certs.Clone()
	certs.SessionTicketsDisabled = false
	certs.SetSessionTicketKeys([][32]byte{{1}})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certs = certs
}

// relay returns a Relay whose connections all go to the server.
func (s *tlsServer) relay(t *testing.T, infos *[]TLSDoneInfo) (*network, *Relay) {
	n := newNetwork(t)
	n.mx("dest.example", "192.0.2.1")
	r := n.relay()
	r.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", s.l.Addr().String())
	}
	r.Trace = &RelayTrace{TLS: func(_ context.Context, i TLSDoneInfo) { *infos = append(*infos, i) }}
	return n, r
}

// Connections to the same host resume the session of the one before, in every version, and are verified again.
func TestTLSResumption(t *testing.T) {
	ca := newCA(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			s := newTLSServer(t, ca.server(t, "mx1.dest.example"))
			var infos []TLSDoneInfo
			_, r := s.relay(t, &infos)
			r.TLSConfig = &tls.Config{MaxVersion: version}
			r.TLSPolicy = TLSRules{"": {Level: TLSVerify, Roots: ca.pool}}
			for range 3 {
				a := bob(t, r, "")
				if p := a.receipts[0].TLS.Peer; p != "mx1.dest.example" {
					t.Errorf("verified for %q", p)
				}
			}
			for i, info := range infos {
				if info.Resumed != (i > 0) || info.TLS.Version != tls.VersionName(version) {
					t.Errorf("handshake %d: %+v", i+1, info)
				}
			}
			if len(infos) != 3 {
				t.Errorf("%d handshakes", len(infos))
			}
		})
	}
}

// Nothing that one rule let pass is let pass by another because of a session: not even where both come to share one.
func TestTLSResumptionRules(t *testing.T) {
	good, other := newCA(t), newCA(t)
	s := newTLSServer(t, other.server(t, "mx1.dest.example"))
	var infos []TLSDoneInfo
	_, r := s.relay(t, &infos)
	rule := TLSRule{}
	r.TLSPolicy = TLSPolicyFunc(func(context.Context, string) (TLSRule, error) { return rule, nil })
	bob(t, r, "")
	bob(t, r, "")
	if !infos[1].Resumed {
		t.Fatal("there is no resumption, so this tests nothing")
	}
	verify := TLSRule{Level: TLSVerify, Roots: good.pool}
	rule = verify
	bob(t, r, "451 4.7.5")
	if infos[2].Resumed || infos[2].Err == nil {
		t.Errorf("the handshake: %+v", infos[2])
	}
	// A cache that does share sessions between rules: that of TLSConfig.
	r.TLSConfig = &tls.Config{ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	rule = TLSRule{}
	bob(t, r, "")
	bob(t, r, "")
	if !infos[4].Resumed {
		t.Fatal("there is no resumption, so this tests nothing")
	}
	rule = verify
	bob(t, r, "451 4.7.5")
	rule = TLSRule{Level: TLSVerify, Roots: other.pool, Names: []string{"else.example"}}
	bob(t, r, "451 4.7.5")
	rule = TLSRule{Level: TLSVerify, Roots: other.pool}
	bob(t, r, "")
}

// Sessions are not shared by sources, and end with the certificate; what cannot be resumed costs a whole handshake and no failure.
func TestTLSResumptionNot(t *testing.T) {
	ca := newCA(t)
	certs := ca.server(t, "mx1.dest.example")
	s := newTLSServer(t, certs)
	var infos []TLSDoneInfo
	_, r := s.relay(t, &infos)
	rule := TLSRule{Level: TLSVerify, Roots: ca.pool}
	r.TLSPolicy = TLSPolicyFunc(func(context.Context, string) (TLSRule, error) { return rule, nil })
	last := func() bool { return infos[len(infos)-1].Resumed }

	source := srcA
	r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
		return []Grant{{Source: source, Recipients: req.Recipients}}, nil
	})
	for _, step := range []struct {
		source Source
		want   bool
	}{{srcA, false}, {srcA, true}, {srcB, false}, {srcB, true}, {srcA, true}} {
		source = step.source
		if bob(t, r, ""); last() != step.want {
			t.Errorf("source %s: resumed %v", source, last())
		}
	}
	r.Egress = nil

	// The server has a new certificate, and the old one has expired.
	bob(t, r, "")
	clock := time.Now()
	r.TLSConfig = &tls.Config{Time: func() time.Time { return clock }}
	if bob(t, r, ""); !last() {
		t.Error("not resumed")
	}
	cert, err := x509.ParseCertificate(certs.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	clock = cert.NotAfter
	if _, ok := r.sessions.get(resumeKey{}, clock); ok {
		t.Error("there is a session without a key")
	}
	found := 0
	for e := r.sessions.recent.Front(); e != nil; {
		entry := e.Value.(resumeEntry)
		e = e.Next()
		if !entry.until.Equal(cert.NotAfter) {
			t.Errorf("a session until %v, want %v", entry.until, cert.NotAfter)
		}
		if _, ok := r.sessions.get(entry.key, clock.Add(-1)); ok {
			found++
		}
		if _, ok := r.sessions.get(entry.key, clock); ok {
			t.Error("a session of a certificate that has expired")
		}
	}
	if found != 3 || r.sessions.recent.Len() != 0 || len(r.sessions.byKey) != 0 {
		t.Errorf("%d sessions were good, %d are left", found, r.sessions.recent.Len())
	}

	// The server does not know its tickets any more.
	r.TLSConfig = nil
	bob(t, r, "")
	other := certs.Clone()
	s.use(other)
	s.mu.Lock()
	s.certs.SetSessionTicketKeys([][32]byte{{2}})
	s.mu.Unlock()
	if bob(t, r, ""); last() {
		t.Error("resumed with a ticket that nobody knows")
	}
	// Tickets are not wanted.
	r.TLSConfig = &tls.Config{SessionTicketsDisabled: true}
	if bob(t, r, ""); last() {
		t.Error("resumed without tickets")
	}
}

// The sessions are bounded, those that were used last.
func TestTLSSessionsBound(t *testing.T) {
	var s tlsSessions
	key := func(i int) resumeKey { return resumeKey{name: fmt.Sprint(i)} }
	now := time.Now()
	for i := range maxTLSSessions + 1 {
		s.put(resumeEntry{key: key(i), state: &tls.ClientSessionState{}})
		s.get(key(0), now)
	}
	if _, ok := s.get(key(0), now); !ok {
		t.Error("the one that is used was forgotten")
	}
	if _, ok := s.get(key(1), now); ok {
		t.Error("the oldest one is still there")
	}
	s.put(resumeEntry{key: key(0)})
	if _, ok := s.get(key(0), now); ok {
		t.Error("what was taken back is still there")
	}
	if n := len(s.byKey); n != maxTLSSessions-1 || s.recent.Len() != n {
		t.Errorf("%d sessions", n)
	}
}
