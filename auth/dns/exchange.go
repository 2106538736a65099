package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mailspine/mailspine"
)

const (
	// maxUDPSize bounds what is read of a datagram. A longer one is cut off, and
	// then refused as malformed.
	maxUDPSize = 4096
	// maxForged is how many datagrams that answer something else are passed
	// over before the question goes over TCP, where they cannot come from outside.
	maxForged = 16
	// sickTime is how long a server that did not answer is asked last.
	sickTime = 30 * time.Second
	// maxServers bounds the servers that one question is taken to.
	maxServers = 8
)

// ask takes a question to the servers until one gives a usable answer, and
// returns that, or the failure that tells most, and whose it is.
func (c *Client) ask(ctx context.Context, q question) (reply, string) {
	rounds := c.Rounds
	if rounds <= 0 {
		rounds = DefaultRounds
	}
	worst := reply{kind: mailspine.ErrDNSTemporary, detail: errors.New("no server to ask")}
	server, definite := "", false
	servers := c.healthyFirst(c.config.servers)
	for range rounds {
		var silent []netip.AddrPort
		for _, s := range servers {
			r, err := c.askOne(ctx, s, q)
			if err == nil && r.kind != mailspine.ErrDNSTemporary {
				return r, s.String()
			}
			if ctx.Err() != nil {
				// Nobody waits any longer, or Total is over.
				if !definite {
					worst.detail, server = os.ErrDeadlineExceeded, s.String()
				}
				return worst, server
			}
			if err != nil {
				silent = append(silent, s)
				if !definite {
					worst.detail, server = err, s.String()
				}
			} else {
				worst, server, definite = r, s.String(), true
			}
		}
		servers = silent
	}
	return worst, server
}

// healthyFirst returns the servers in the order in which they are to be asked.
func (c *Client) healthyFirst(servers []netip.AddrPort) []netip.AddrPort {
	servers = servers[:min(len(servers), maxServers)]
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sick) == 0 {
		return servers
	}
	sick := func(s netip.AddrPort) int {
		if at, ok := c.sick[s]; ok && time.Since(at) < sickTime {
			return 1
		}
		return 0
	}
	servers = slices.Clone(servers)
	slices.SortStableFunc(servers, func(a, b netip.AddrPort) int { return sick(a) - sick(b) })
	return servers
}

// askOne asks one server, over TCP if the answer is too long for UDP, and
// without EDNS if the server does not know it. An error means that there was no
// answer: it may help to try again.
func (c *Client) askOne(ctx context.Context, server netip.AddrPort, q question) (reply, error) {
	how := manner{udpSize: c.udpSize(), randomCase: c.RandomCase}
	trusted := slices.Contains(c.config.trusted, server)
	r, err := c.exchange(ctx, server, q, how)
	if err == nil && r.plain {
		how.udpSize = 0 // RFC 6891 section 7
		if r, err = c.exchange(ctx, server, q, how); err == nil && r.plain {
			r = failure("FORMERR or NOTIMP")
		}
	}
	if err == nil && r.servFail && trusted {
		// A validating server that knows no extended errors says SERVFAIL for a
		// bogus answer, too. If it has an answer when told not to check, that was it.
		how.checkingDisabled = true
		if u, err := c.exchange(ctx, server, q, how); err == nil && !u.plain && u.kind != mailspine.ErrDNSTemporary {
			r = reply{kind: mailspine.ErrDNSBogus, detail: errors.New("SERVFAIL, but not without checking")}
		}
	}
	r.Authentic = r.Authentic && trusted

	log := c.logger()
	if err == nil && r.kind != mailspine.ErrDNSTemporary {
		c.mu.Lock()
		delete(c.sick, server)
		c.mu.Unlock()
		return r, nil
	}
	if ctx.Err() == nil && log.Enabled(ctx, slog.LevelDebug) {
		why := err
		if why == nil {
			why = r.detail
		}
		log.DebugContext(ctx, "dns: no usable answer", "server", server, "name", q.name, "type", q.typ, "err", why)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.stats.Failures++
		return r, nil
	}
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return r, err // the askers left: no fault of the server
	}
	c.stats.Timeouts++
	if c.sick == nil {
		c.sick = map[netip.AddrPort]time.Time{}
	}
	c.sick[server] = time.Now()
	return r, err
}

// exchange sends one question and returns the reply to it.
func (c *Client) exchange(ctx context.Context, server netip.AddrPort, q question, how manner) (reply, error) {
	qu, err := newQuery(q, how)
	if err != nil {
		return reply{}, err
	}
	msg, err := c.overUDP(ctx, server, qu)
	if err == nil {
		if r := parseReply(msg, qu); !r.truncated {
			return r, nil
		}
	} else if !errors.Is(err, errForged) {
		return reply{}, err
	}
	// A new ID: whoever saw or guessed the old one has no use of it.
	if qu, err = newQuery(q, how); err != nil {
		return reply{}, err
	}
	if msg, err = c.overTCP(ctx, server, qu); err != nil {
		return reply{}, err
	}
	r := parseReply(msg, qu)
	if r.truncated {
		r = failure("truncated over TCP")
	}
	return r, nil
}

// connect opens a connection that ends with ctx and after Timeout. The caller
// calls done.
func (c *Client) connect(ctx context.Context, network string, server netip.AddrPort) (conn net.Conn, done func(), err error) {
	deadline := time.Now().Add(c.timeout())
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	dctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	dial := c.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	conn, err = dial(dctx, network, server.String())
	if err != nil {
		return nil, nil, err
	}
	if err := conn.SetDeadline(deadline); err != nil {
		conn.Close()
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return conn, func() { stop(); conn.Close() }, nil
}

var errForged = errors.New("many replies that answer something else")

func (c *Client) overUDP(ctx context.Context, server netip.AddrPort, q *query) ([]byte, error) {
	conn, done, err := c.connect(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	c.count(func(s *ClientStats) { s.Queries++ })
	if _, err := conn.Write(q.wire); err != nil {
		return nil, err
	}
	buf := make([]byte, maxUDPSize)
	for range maxForged {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if q.answers(buf[:n]) {
			return buf[:n], nil
		}
		c.count(func(s *ClientStats) { s.Forged++ })
	}
	c.logger().WarnContext(ctx, "dns: replies that answer something else, asking over TCP",
		"server", server, "name", q.name, "type", q.typ)
	return nil, errForged
}

func (c *Client) overTCP(ctx context.Context, server netip.AddrPort, q *query) ([]byte, error) {
	conn, done, err := c.connect(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	c.count(func(s *ClientStats) { s.Queries++; s.TCP++ })
	// In one write, as RFC 7766 section 8 asks.
	out := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(q.wire)), uint16(len(q.wire)))
	if _, err := conn.Write(append(out, q.wire...)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, fmt.Errorf("reading from %s over TCP: %w", server, err)
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:])) // at most 64 KiB
	if _, err := io.ReadFull(conn, msg); err != nil {
		return nil, fmt.Errorf("reading from %s over TCP: %w", server, err)
	}
	if !q.answers(msg) {
		return nil, fmt.Errorf("reply from %s over TCP answers something else", server)
	}
	return msg, nil
}
