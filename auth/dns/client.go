package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
)

// The limits of a Client unless its fields say otherwise.
const (
	DefaultTimeout     = 2 * time.Second
	DefaultTotal       = 10 * time.Second
	DefaultRounds      = 2
	DefaultUDPSize     = 1232 // the largest that is never fragmented (DNS flag day 2020)
	DefaultMaxInFlight = 256
)

// A Client asks name servers that resolve for others, and is a
// mailspine.Resolver. It keeps no answers: put a [Cache] before it.
//
// The zero value asks the servers of the system and believes no AD bit. A
// Client is safe for concurrent use, as long as its fields are not changed, and
// must not be copied. It keeps no connections and needs no closing: when a
// Lookup has returned and no other waits for the same question, nothing is left of it.
//
// Concurrent lookups of one name and type are one question, whose time runs
// from the first of them. Each server is asked in turn, those that lately did
// not answer last, until one gives a usable answer: NOERROR or NXDOMAIN,
// well-formed, from a server that resolves. Time-outs are asked again in the
// next round, SERVFAIL, REFUSED and nonsense are not (RFC 9520 section 3.1).
type Client struct {
	// Servers are the resolvers to ask, in order: "192.0.2.53", "192.0.2.53:5353",
	// "[2001:db8::53]:53". The port is 53 unless given. Empty: what
	// /etc/resolv.conf says when it is first needed, or 127.0.0.1 and ::1 if
	// there is none. An entry that does not parse makes every lookup fail.
	Servers []string

	// Trusted are those of the Servers, written as there, whose AD bit is
	// believed, because they validate and nobody can write to the path to them.
	// Empty: none.
	Trusted []string

	// Timeout is the time for one try with one server, UDP and TCP each. Zero
	// or negative: DefaultTimeout.
	Timeout time.Duration
	// Total is the time for a whole lookup. Zero or negative: DefaultTotal.
	Total time.Duration
	// Rounds is how often a server that does not answer is asked. Zero or
	// negative: DefaultRounds.
	Rounds int
	// UDPSize is the size of replies over UDP that servers are told to keep
	// to. Zero: DefaultUDPSize. Below 512 is 512, above 4096 is 4096.
	UDPSize int
	// RandomCase asks with letters in random case and takes only replies that
	// repeat them so, which makes forgery harder. Some servers do not repeat
	// them and can then not be used.
	RandomCase bool
	// MaxInFlight is how many questions are out at one time, each with one socket;
	// others wait, in their own time. Zero or negative: DefaultMaxInFlight.
	MaxInFlight int

	// Dial opens a connection to a server; network is "udp" or "tcp". nil:
	// net.Dialer, which gives each its own random port. The servers are the
	// application's choice, so there is no guard.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Logger gets failed tries at level Debug, and replies that look forged at
	// Warn. nil: slog.Default.
	Logger *slog.Logger

	once   sync.Once // of what depends on the fields
	config config

	mu      sync.Mutex
	flights map[question]*flight
	sick    map[netip.AddrPort]time.Time // when servers last did not answer; only known servers
	stats   ClientStats
}

var _ mailspine.Resolver = (*Client)(nil)

// config is what the fields amount to.
type config struct {
	servers []netip.AddrPort
	trusted []netip.AddrPort
	slots   chan struct{}
	err     error
}

// ClientStats counts what a [Client] did since it was made.
type ClientStats struct {
	Lookups  uint64 // calls of Lookup with a proper name
	Shared   uint64 // of these, answered by a question that was already out
	Queries  uint64 // messages sent
	TCP      uint64 // of these, over TCP
	Timeouts uint64 // tries without an answer
	Failures uint64 // tries with an unusable one
	Forged   uint64 // datagrams passed over because they answered something else
	InFlight int    // questions out now
	Silent   int    // servers that did not answer when they were last asked, within 30 s
}

// Stats returns the counters.
func (c *Client) Stats() ClientStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.InFlight = len(c.flights)
	for _, at := range c.sick {
		if time.Since(at) < sickTime {
			s.Silent++
		}
	}
	return s
}

func (c *Client) count(f func(*ClientStats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.stats)
}

// A flight is a question that is out, and those who wait for the answer.
type flight struct {
	done    chan struct{} // closed when answer and err are set
	waiters int           // guarded by Client.mu
	cancel  context.CancelFunc

	answer mailspine.Answer
	err    *mailspine.DNSError
}

// Lookup implements mailspine.Resolver. A name that cannot be in the DNS is a
// mailspine.ErrNXDomain that also matches [ErrBadName], without a question
// asked. Types other than those of package mailspine are a temporary failure
// that matches errors.ErrUnsupported.
func (c *Client) Lookup(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	if err := ctx.Err(); err != nil {
		return mailspine.Answer{}, dnsError(name, t, mailspine.ErrDNSTemporary, err)
	}
	n, err := canonicalName(name)
	if err != nil {
		return mailspine.Answer{}, dnsError(name, t, mailspine.ErrNXDomain, err)
	}
	if !supported(t) {
		return mailspine.Answer{}, dnsError(name, t, mailspine.ErrDNSTemporary, errors.ErrUnsupported)
	}
	q := question{n, t}

	c.mu.Lock()
	c.stats.Lookups++
	f := c.flights[q]
	if f == nil {
		// The question outlives the caller who began it if others wait for it, so it
		// has the caller's values but not its end. The last who leaves ends it.
		fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.total())
		f = &flight{done: make(chan struct{}), cancel: cancel}
		if c.flights == nil {
			c.flights = map[question]*flight{}
		}
		c.flights[q] = f
		go c.fly(fctx, q, f)
	} else {
		c.stats.Shared++
	}
	f.waiters++
	c.mu.Unlock()

	select {
	case <-f.done:
	case <-ctx.Done():
		c.mu.Lock()
		f.waiters--
		last := f.waiters == 0
		if last && c.flights[q] == f {
			delete(c.flights, q) // who comes now begins anew
		}
		c.mu.Unlock()
		if last {
			f.cancel()
			<-f.done // no goroutine is left behind
		}
		return mailspine.Answer{}, dnsError(name, t, mailspine.ErrDNSTemporary, ctx.Err())
	}
	if f.err != nil {
		e := *f.err
		e.Name = name
		return f.answer, &e
	}
	return f.answer, nil
}

func (c *Client) fly(ctx context.Context, q question, f *flight) {
	f.answer, f.err = c.resolve(ctx, q)
	f.cancel()
	c.mu.Lock()
	if c.flights[q] == f {
		delete(c.flights, q)
	}
	c.mu.Unlock()
	close(f.done)
}

func supported(t mailspine.Type) bool {
	switch t {
	case mailspine.TypeA, mailspine.TypeCNAME, mailspine.TypePTR, mailspine.TypeMX, mailspine.TypeTXT,
		mailspine.TypeAAAA, mailspine.TypeSRV, mailspine.TypeTLSA:
		return true
	}
	return false
}

// resolve asks until it has the answer: once, unless a server leaves a CNAME
// chain open.
func (c *Client) resolve(ctx context.Context, q question) (mailspine.Answer, *mailspine.DNSError) {
	cfg := c.configure()
	if cfg.err != nil {
		return mailspine.Answer{}, dnsError(q.name, q.typ, mailspine.ErrDNSTemporary, cfg.err)
	}
	select {
	case cfg.slots <- struct{}{}:
		defer func() { <-cfg.slots }()
	case <-ctx.Done():
		return mailspine.Answer{}, dnsError(q.name, q.typ, mailspine.ErrDNSTemporary, errTooMany)
	}
	next := q
	authentic, ttl := true, time.Duration(1<<63-1)
	for range maxChain {
		r, server := c.ask(ctx, next)
		if r.kind == mailspine.ErrDNSTemporary || r.kind == mailspine.ErrDNSBogus {
			return mailspine.Answer{}, &mailspine.DNSError{Name: q.name, Type: q.typ, Kind: r.kind, Server: server, Err: r.detail}
		}
		// Of the chain, the weakest link counts.
		authentic = authentic && r.Authentic
		ttl = min(ttl, r.TTL)
		r.Authentic, r.TTL = authentic, ttl
		switch {
		case r.next != "":
			next.name = r.next
		case r.kind != nil:
			return r.Answer, &mailspine.DNSError{Name: q.name, Type: q.typ, Kind: r.kind, Server: server, Err: r.detail}
		default:
			return r.Answer, nil
		}
	}
	return mailspine.Answer{}, dnsError(q.name, q.typ, mailspine.ErrDNSTemporary, fmt.Errorf("more than %d CNAMEs", maxChain))
}

var errTooMany = errors.New("too many questions at once")

func (c *Client) total() time.Duration {
	if c.Total > 0 {
		return c.Total
	}
	return DefaultTotal
}

func (c *Client) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return DefaultTimeout
}

func (c *Client) udpSize() uint16 {
	if c.UDPSize == 0 {
		return DefaultUDPSize
	}
	return uint16(min(max(c.UDPSize, 512), maxUDPSize))
}

func (c *Client) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.Default()
}

// configure reads the fields, once.
func (c *Client) configure() *config {
	c.once.Do(func() {
		slots := c.MaxInFlight
		if slots <= 0 {
			slots = DefaultMaxInFlight
		}
		c.config.slots = make(chan struct{}, slots)
		names := c.Servers
		if len(names) == 0 {
			names = systemServers(resolvConf)
		}
		c.config.servers, c.config.err = parseServers("Servers", names)
		trusted, err := parseServers("Trusted", c.Trusted)
		if c.config.err == nil {
			c.config.err = err
		}
		c.config.trusted = trusted
		for _, t := range trusted {
			if !slices.Contains(c.config.servers, t) && c.config.err == nil {
				c.config.err = fmt.Errorf("dns: Client.Trusted has %s, which is not one of the Servers", t)
			}
		}
	})
	return &c.config
}

// parseServers parses "address" and "address:port".
func parseServers(field string, list []string) ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for _, s := range list {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			ip, err2 := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
			if err2 != nil {
				return nil, fmt.Errorf("dns: Client.%s: %q is not an address or address:port", field, s)
			}
			ap = netip.AddrPortFrom(ip, 53)
		}
		all = append(all, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	return all, nil
}

const resolvConf = "/etc/resolv.conf"

// systemServers returns the name servers of a resolv.conf file, the first three as
// the C library has it, or those that it assumes when there is no such file.
func systemServers(file string) []string {
	var servers []string
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b[:min(len(b), 64<<10)])) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(servers) == 3 {
			continue
		}
		if _, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, f[1])
		}
	}
	if servers == nil {
		servers = []string{"127.0.0.1", "::1"}
	}
	return servers
}
