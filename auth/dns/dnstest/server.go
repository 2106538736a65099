package dnstest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"github.com/mailspine/mailspine"
)

// maxQueries bounds the log of a Server: older questions are forgotten.
const maxQueries = 10_000

// A Query is a question that a Server was asked.
type Query struct {
	Name    string // as it came, without trailing dot
	Type    mailspine.Type
	Network string // "udp", "tcp", or "memory" for [Server.Lookup]
}

// A Server answers from a zone that can change: in memory as a
// mailspine.Resolver, and after [Server.Listen] over UDP and TCP as a
// resolver would. It is safe for concurrent use.
//
// The zero Server is ready to use and knows no names. It must not be copied.
type Server struct {
	mu      sync.Mutex
	zone    Zone
	data    *data // nil: zone has changed since
	used    map[faultID]int
	queries []Query

	listening bool
	addr      netip.AddrPort
	udp, tcp  *dns.Server
	done      chan struct{} // closed by Close
	serving   sync.WaitGroup
}

var _ mailspine.Resolver = (*Server)(nil)

type faultID struct {
	name  string
	index int
}

// New returns a Server for a zone, which is copied.
func New(z Zone) *Server {
	s := &Server{zone: Zone{}}
	for name, recs := range z {
		k := canonical(name)
		s.zone[k] = append(s.zone[k], recs...)
	}
	return s
}

// Start is New, Check and Listen.
func Start(z Zone) (*Server, error) {
	if err := z.Check(); err != nil {
		return nil, err
	}
	s := New(z)
	if err := s.Listen(); err != nil {
		return nil, err
	}
	return s, nil
}

// Set replaces all that is known of a name. Without records the name exists and has no
// data.
func (s *Server) Set(name string, recs ...Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(name)
	if s.zone == nil {
		s.zone = Zone{}
	}
	s.zone[canonical(name)] = slices.Clone(recs)
}

// Delete makes a name unknown. Names below it stay.
func (s *Server) Delete(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(name)
	delete(s.zone, canonical(name))
}

func (s *Server) forget(name string) {
	s.data = nil
	maps.DeleteFunc(s.used, func(id faultID, _ int) bool { return id.name == canonical(name) })
}

// Queries returns what was asked since the last ResetQueries, in order, at
// most the last 10,000.
func (s *Server) Queries() []Query {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.queries)
}

// Count returns how often a name was asked for a type, over any network, since
// the last ResetQueries.
func (s *Server) Count(name string, t mailspine.Type) int {
	n := 0
	for _, q := range s.Queries() {
		if q.Type == t && canonical(q.Name) == canonical(name) {
			n++
		}
	}
	return n
}

// ResetQueries empties the log.
func (s *Server) ResetQueries() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries = nil
}

// Lookup implements mailspine.Resolver, from memory.
func (s *Server) Lookup(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	return lookup(ctx, s.answer("memory", name, uint16(t)), name, t)
}

func (s *Server) answer(network, name string, qtype uint16) result {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queries) >= maxQueries {
		s.queries = slices.Delete(s.queries, 0, maxQueries/10)
	}
	s.queries = append(s.queries, Query{Name: trimDot(name), Type: mailspine.Type(qtype), Network: network})
	if s.data == nil {
		s.data, _ = compile(s.zone)
	}
	return s.data.answer(name, qtype, func(name string, index int, f Fault) bool {
		if f.Times <= 0 {
			return true
		}
		if s.used == nil {
			s.used = map[faultID]int{}
		}
		id := faultID{name, index}
		s.used[id]++
		return s.used[id] <= f.Times
	})
}

// Listen opens one port of the kernel's choice on 127.0.0.1 for UDP and TCP,
// and serves it until Close. A Server listens once.
func (s *Server) Listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listening {
		return errors.New("dnstest: the server listens already")
	}
	udp, tcp, err := listenBoth()
	if err != nil {
		return fmt.Errorf("dnstest: %w", err)
	}
	s.listening = true
	s.addr = udp.LocalAddr().(*net.UDPAddr).AddrPort()
	s.done = make(chan struct{})
	var started sync.WaitGroup
	started.Add(2)
	serve := func(srv *dns.Server, network string) *dns.Server {
		srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { s.serve(network, w, q) })
		srv.NotifyStartedFunc = started.Done
		s.serving.Go(func() { _ = srv.ActivateAndServe() })
		return srv
	}
	s.udp = serve(&dns.Server{PacketConn: udp}, "udp")
	s.tcp = serve(&dns.Server{Listener: tcp}, "tcp")
	started.Wait() // a shutdown before that would miss it
	return nil
}

// listenBoth finds a port that is free for both protocols. The kernel gives one
// for TCP, and somebody else can have it for UDP.
func listenBoth() (udp net.PacketConn, tcp net.Listener, err error) {
	for range 20 {
		if tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, nil, err
		}
		if udp, err = net.ListenPacket("udp", tcp.Addr().String()); err == nil {
			return udp, tcp, nil
		}
		tcp.Close()
	}
	return nil, nil, err
}

// Addr returns the address and port that the server listens on, "127.0.0.1:12345"; ""
// before Listen.
func (s *Server) Addr() string {
	if a := s.AddrPort(); a.IsValid() {
		return a.String()
	}
	return ""
}

// AddrPort is Addr as a value.
func (s *Server) AddrPort() netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Close ends the listening and returns when all its goroutines have ended; a
// delayed answer is not waited for. Lookup works on. Close can be called more
// than once.
func (s *Server) Close() error {
	s.mu.Lock()
	udp, tcp, done, listening := s.udp, s.tcp, s.done, s.listening
	s.udp, s.tcp, s.done = nil, nil, nil
	s.mu.Unlock()
	if !listening {
		return nil
	}
	var err error
	if udp != nil { // the first call
		close(done)
		err = errors.Join(udp.Shutdown(), tcp.Shutdown())
	}
	s.serving.Wait()
	return err
}

// ends returns a channel that is closed when the server is.
func (s *Server) ends() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil { // closed meanwhile
		c := make(chan struct{})
		close(c)
		return c
	}
	return s.done
}

// serve answers one question from the network.
func (s *Server) serve(network string, w dns.ResponseWriter, q *dns.Msg) {
	if len(q.Question) != 1 || q.Question[0].Qclass != dns.ClassINET {
		m := new(dns.Msg)
		m.SetRcode(q, dns.RcodeRefused)
		_ = w.WriteMsg(m)
		return
	}
	qq := q.Question[0]
	r := s.answer(network, qq.Name, qq.Qtype)
	if r.fault.Delay > 0 {
		_ = sleep(context.Background(), s.ends(), r.fault.Delay)
	}
	m := r.message(q)
	if r.fault.Kind != 0 && fault(r.fault.Kind, network, w, q, m) {
		return
	}
	send(network, w, q, m)
}

// message is the true reply.
func (r result) message(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	m.Rcode = r.rcode
	m.Answer = r.answer
	if r.broken {
		m.Rcode, m.Answer = dns.RcodeServerFailure, nil
	}
	if r.soa != nil && !r.broken {
		m.Ns = []dns.RR{r.soa}
	}
	opt := q.IsEdns0()
	// RFC 6840 section 5.7: the AD bit answers a question with AD or DO.
	m.AuthenticatedData = r.authentic && (q.AuthenticatedData || opt != nil && opt.Do()) && m.Rcode != dns.RcodeServerFailure
	m.CheckingDisabled = q.CheckingDisabled
	if opt != nil {
		m.SetEdns0(1232, opt.Do())
	}
	return m
}

// send writes m, truncated to what the asker can take over UDP.
func send(network string, w dns.ResponseWriter, q, m *dns.Msg) {
	m.Compress = true
	size := dns.MaxMsgSize
	if network == "udp" {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = min(max(size, int(opt.UDPSize())), 4096)
		}
	}
	m.Truncate(size)
	_ = w.WriteMsg(m)
}

func trimDot(name string) string { return strings.TrimSuffix(name, ".") }
