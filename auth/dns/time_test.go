package dns_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns"
)

// A pipeNet is a network inside a synctest bubble: servers by address, each a
// function that answers, or returns nil and stays silent.
type pipeNet struct {
	mu      sync.Mutex
	servers map[string]func(q *mdns.Msg) *mdns.Msg
	asked   []string // addresses, in order
}

func (n *pipeNet) dial(_ context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	answer := n.servers[address]
	if answer == nil || network != "udp" {
		return nil, errors.New("connection refused")
	}
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		// A pipe keeps the borders of writes as long as the buffer is large
		// enough, so it does for a datagram.
		b := make([]byte, 4096)
		for {
			l, err := far.Read(b)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.asked = append(n.asked, address)
			n.mu.Unlock()
			var q mdns.Msg
			if err := q.Unpack(b[:l]); err != nil {
				return
			}
			if m := answer(&q); m != nil {
				if p, err := m.Pack(); err == nil {
					_, _ = far.Write(p)
				}
			}
		}
	}()
	return near, nil
}

func (n *pipeNet) count(address string) (c int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.asked {
		if a == address {
			c++
		}
	}
	return c
}

func address(q *mdns.Msg) *mdns.Msg {
	m := new(mdns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	m.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 1)}}
	return m
}

func rcode(code int) func(q *mdns.Msg) *mdns.Msg {
	return func(q *mdns.Msg) *mdns.Msg {
		m := new(mdns.Msg)
		return m.SetRcode(q, code)
	}
}

func silent(*mdns.Msg) *mdns.Msg { return nil }

func after(d time.Duration, answer func(q *mdns.Msg) *mdns.Msg) func(q *mdns.Msg) *mdns.Msg {
	return func(q *mdns.Msg) *mdns.Msg {
		time.Sleep(d) // the bubble's time
		return answer(q)
	}
}

const (
	first  = "192.0.2.1:53"
	second = "192.0.2.2:53"
)

// Bad input of issue 2: a DNS time-out is temporary, bounded by default, and its
// text does not reach a peer.
func TestClientTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &pipeNet{servers: map[string]func(*mdns.Msg) *mdns.Msg{first: silent}}
		c := &dns.Client{Servers: []string{first}, Dial: n.dial}
		begin := time.Now()
		_, err := c.Lookup(t.Context(), "a.example", mailspine.TypeMX)
		if d, want := time.Since(begin), dns.DefaultRounds*dns.DefaultTimeout; d != want {
			t.Errorf("one silent server took %v, not %v", d, want)
		}
		var de *mailspine.DNSError
		if !errors.As(err, &de) || !errors.Is(err, mailspine.ErrDNSTemporary) || !de.Timeout() || de.Server != first {
			t.Errorf("got %v", err)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error("the caller's context has not ended, and the error says so")
		}
		if s := mailspine.Status(err).Reply(); s != "451 4.4.3 Temporary failure of a name lookup" {
			t.Errorf("status %q", s)
		}
		if got := n.count(first); got != dns.DefaultRounds {
			t.Errorf("asked %d times", got)
		}
	})
}

func TestClientTotal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &pipeNet{servers: map[string]func(*mdns.Msg) *mdns.Msg{}}
		var servers []string
		for _, s := range []string{"192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53", "192.0.2.4:53", "192.0.2.5:53", "192.0.2.6:53"} {
			servers = append(servers, s)
			n.servers[s] = silent
		}
		c := &dns.Client{Servers: servers, Dial: n.dial}
		begin := time.Now()
		_, err := c.Lookup(t.Context(), "a.example", mailspine.TypeA)
		if d := time.Since(begin); d != dns.DefaultTotal {
			t.Errorf("six silent servers took %v, not %v", d, dns.DefaultTotal)
		}
		var de *mailspine.DNSError
		if !errors.As(err, &de) || !de.Timeout() {
			t.Errorf("got %v", err)
		}
	})
}

func TestClientAsksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int32
		n := &pipeNet{servers: map[string]func(*mdns.Msg) *mdns.Msg{
			first: func(q *mdns.Msg) *mdns.Msg {
				if tries.Add(1) < 3 {
					return nil
				}
				return address(q)
			},
			second: rcode(mdns.RcodeRefused),
		}}
		c := &dns.Client{Servers: []string{first, second}, Rounds: 3, Dial: n.dial}
		begin := time.Now()
		if _, err := c.Lookup(t.Context(), "a.example", mailspine.TypeA); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d != 2*dns.DefaultTimeout {
			t.Errorf("took %v", d)
		}
		// RFC 9520: who has said no is not asked again at once.
		if a, b := n.count(first), n.count(second); a != 3 || b != 1 {
			t.Errorf("asked the silent server %d times and the refusing one %d times", a, b)
		}
	})
}

func TestClientSilentServerLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		n := &pipeNet{servers: map[string]func(*mdns.Msg) *mdns.Msg{
			first: func(q *mdns.Msg) *mdns.Msg {
				if up.Load() {
					return address(q)
				}
				return nil
			},
			second: address,
		}}
		c := &dns.Client{Servers: []string{first, second}, Dial: n.dial}
		look := func(want time.Duration) {
			t.Helper()
			begin := time.Now()
			if _, err := c.Lookup(t.Context(), "a.example", mailspine.TypeA); err != nil {
				t.Error(err)
			}
			if d := time.Since(begin); d != want {
				t.Errorf("took %v, not %v", d, want)
			}
		}
		look(dns.DefaultTimeout)
		look(0) // the first is known to be silent
		time.Sleep(31 * time.Second)
		look(dns.DefaultTimeout) // it has another chance
		up.Store(true)
		time.Sleep(31 * time.Second)
		look(0)
		if s := c.Stats(); s.Silent != 0 || n.count(first) != 3 {
			t.Errorf("%+v, asked %d times", s, n.count(first))
		}
	})
}

// A server that answers after all is no longer asked last.
func TestClientServerComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turned atomic.Bool
		n := &pipeNet{servers: map[string]func(*mdns.Msg) *mdns.Msg{
			first: func(q *mdns.Msg) *mdns.Msg {
				if turned.Load() {
					return address(q)
				}
				return nil
			},
			second: func(q *mdns.Msg) *mdns.Msg {
				if turned.Load() {
					return rcode(mdns.RcodeServerFailure)(q)
				}
				return address(q)
			},
		}}
		c := &dns.Client{Servers: []string{first, second}, Dial: n.dial}
		for range 2 {
			if _, err := c.Lookup(t.Context(), "a.example", mailspine.TypeA); err != nil {
				t.Error(err)
			}
			turned.Store(true)
		}
		if s := c.Stats(); s.Silent != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// The last who leaves a question waits for its end, and who comes in
// the meantime does not get the leaver's failure.
func TestClientLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &pipeNet{servers: map[string]func(*mdns.Msg) *mdns.Msg{first: address}}
		release := make(chan struct{})
		var dials atomic.Int32
		c := &dns.Client{Servers: []string{first}, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				<-release // a dial that does not listen to its context
				return nil, errors.New("too late")
			}
			return n.dial(ctx, network, address)
		}}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var left atomic.Bool
		wg.Go(func() {
			if _, err := c.Lookup(ctx, "a.example", mailspine.TypeA); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			left.Store(true)
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		if left.Load() {
			t.Error("Lookup returned, and its question is still out")
		}
		if _, err := c.Lookup(t.Context(), "a.example", mailspine.TypeA); err != nil {
			t.Errorf("the next one: %v", err)
		}
		close(release)
		wg.Wait()
		if s := c.Stats(); s.InFlight != 0 || s.Silent != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestClientContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &pipeNet{servers: map[string]func(*mdns.Msg) *mdns.Msg{first: silent}}
		c := &dns.Client{Servers: []string{first}, Dial: n.dial}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		_, err := c.Lookup(ctx, "a.example", mailspine.TypeA)
		if !errors.Is(err, mailspine.ErrDNSTemporary) || !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		// Nothing is left, and the server is not to blame.
		if s := c.Stats(); s.InFlight != 0 || s.Silent != 0 || s.Timeouts != 0 {
			t.Errorf("%+v", s)
		}
		if _, err := c.Lookup(ctx, "a.example", mailspine.TypeA); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if n.count(first) != 1 {
			t.Error("asked although the context had ended")
		}
	})
}

func TestClientSharesQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &pipeNet{servers: map[string]func(*mdns.Msg) *mdns.Msg{first: after(time.Second, address)}}
		c := &dns.Client{Servers: []string{first}, Dial: n.dial}
		// The one who began the question leaves; the others get their answer.
		leaver, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Lookup(leaver, "a.example", mailspine.TypeA); !errors.Is(err, context.Canceled) {
				t.Errorf("the one who left: %v", err)
			}
		})
		synctest.Wait()
		for i := range 20 {
			wg.Go(func() {
				a, err := c.Lookup(t.Context(), []string{"a.example", "A.Example."}[i%2], mailspine.TypeA)
				if err != nil || len(a.Addrs) != 1 {
					t.Error(a, err)
				}
			})
		}
		synctest.Wait()
		leave()
		wg.Wait()
		if s := c.Stats(); n.count(first) != 1 || s.Shared != 20 || s.InFlight != 0 {
			t.Errorf("21 lookups were %d questions: %+v", n.count(first), s)
		}
		// The next one is a question of its own: a Client keeps nothing.
		if _, err := c.Lookup(t.Context(), "a.example", mailspine.TypeA); err != nil || n.count(first) != 2 {
			t.Error(err)
		}
	})
}

// An error that is shared is told to each in the words of their question.
func TestClientSharedError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &pipeNet{servers: map[string]func(*mdns.Msg) *mdns.Msg{first: after(time.Second, rcode(mdns.RcodeServerFailure))}}
		c := &dns.Client{Servers: []string{first}, Dial: n.dial}
		var wg sync.WaitGroup
		for _, name := range []string{"a.example", "A.EXAMPLE."} {
			wg.Go(func() {
				_, err := c.Lookup(t.Context(), name, mailspine.TypeA)
				var de *mailspine.DNSError
				if !errors.As(err, &de) || de.Name != name {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		wg.Wait()
		if n.count(first) != 1 {
			t.Error("not shared")
		}
	})
}

func TestClientMaxInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &pipeNet{servers: map[string]func(*mdns.Msg) *mdns.Msg{first: after(time.Second, address)}}
		c := &dns.Client{Servers: []string{first}, MaxInFlight: 2, Total: 3500 * time.Millisecond, Dial: n.dial}
		var wg sync.WaitGroup
		var mu sync.Mutex
		took := map[time.Duration]int{}
		failed := 0
		begin := time.Now()
		for i := range 8 {
			wg.Go(func() {
				_, err := c.Lookup(t.Context(), string(rune('a'+i))+".example", mailspine.TypeA)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed++
					return
				}
				took[time.Since(begin)]++
			})
		}
		wg.Wait()
		// Two at a time, and the last two ran out of it.
		if took[time.Second] != 2 || took[2*time.Second] != 2 || took[3*time.Second] != 2 || failed != 2 {
			t.Errorf("answers after %v, %d failed", took, failed)
		}
		time.Sleep(time.Second) // for the servers that nobody listens to
	})
}
