package smtpclient

import (
	"context"
	"crypto/tls"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Greeting reads the greeting, the first thing on a connection. Only 220 means that the server is willing.
func (c *Client) Greeting(ctx context.Context) (Reply, error) {
	return c.do(ctx, "greeting", func() (Reply, error) {
		if err := c.conn.SetDeadline(c.limit(c.times.Greeting)); err != nil {
			return Reply{}, err
		}
		c.inStep = true
		return c.read()
	})
}

// Hello greets the server with EHLO, or HELO if it does not know that (RFC 5321 section 3.2); in LMTP with
// LHLO. The reply returned is the last one. name is ours, a domain name or an address literal; "": the literal of the connection's
// local address, which many servers do not like.
func (c *Client) Hello(ctx context.Context, name string) (Reply, error) {
	if name == "" {
		name = localName(c.raw)
	}
	verb := "EHLO"
	if c.o.LMTP {
		verb = "LHLO"
	}
	return c.do(ctx, verb, func() (Reply, error) {
		c.ext, c.limits = nil, Limits{}
		r, err := c.cmd(c.times.Hello, verb+" "+name)
		if err != nil {
			return r, err
		}
		if r.Code/100 == 5 && !c.o.LMTP && c.inStep {
			return c.cmd(c.times.Hello, "HELO "+name)
		}
		if !r.OK() {
			return r, nil
		}
		c.ext = make(map[string]string, len(r.Lines))
		for _, l := range r.Lines[1:] {
			// RFC 5321 section 4.1.1.1: keywords are compared without regard to case.
			k, v, _ := strings.Cut(l, " ")
			k = strings.ToUpper(k)
			// Servers of old say AUTH=LOGIN, some of them beside the line of RFC 4954.
			if mech, ok := strings.CutPrefix(k, "AUTH="); ok {
				k, v = "AUTH", strings.TrimSpace(mech+" "+v)
				if c.has(k) {
					continue
				}
			}
			c.ext[k] = v
		}
		c.limits = parseLimits(c.ext["LIMITS"])
		return r, nil
	})
}

// Extension reports whether the server offered an extension in its answer to the last Hello, and with which
// parameters, as they came. keyword is in upper case.
func (c *Client) Extension(keyword string) (params string, ok bool) {
	params, ok = c.ext[keyword]
	return params, ok
}

// Has is Extension without the parameters.
func (c *Client) Has(keyword string) bool { return c.has(keyword) }

func (c *Client) has(ext string) bool { _, ok := c.ext[ext]; return ok }

// Limits are what a server says of itself in LIMITS (RFC 9422). Zero is no limit.
type Limits struct {
	MailMax       int // transactions on one connection
	RcptMax       int // recipients in one transaction
	RcptDomainMax int // domains of recipients in one transaction
}

// Limits returns what the server offered in its answer to the last Hello. Send obeys them.
func (c *Client) Limits() Limits { return c.limits }

// Transactions is how many transactions were begun on the connection.
func (c *Client) Transactions() int { return c.mails }

// parseLimits reads the parameters of LIMITS: name=value, with values of up to six digits. What is unknown or
// malformed is passed over; what is there twice counts once, the smaller value.
func parseLimits(params string) Limits {
	var l Limits
	for i, p := range strings.Fields(params) {
		if i >= 20 {
			break
		}
		name, value, _ := strings.Cut(p, "=")
		var field *int
		switch strings.ToUpper(name) {
		case "MAILMAX":
			field = &l.MailMax
		case "RCPTMAX":
			field = &l.RcptMax
		case "RCPTDOMAINMAX":
			field = &l.RcptDomainMax
		}
		n, err := strconv.ParseUint(value, 10, 32)
		if field == nil || err != nil || n == 0 || len(value) > 6 {
			continue
		}
		if *field == 0 || int(n) < *field {
			*field = int(n)
		}
	}
	return l
}

// StartTLS sends STARTTLS (RFC 3207) and does the handshake. A refusal is returned as a Reply
// without an error, and the connection goes on in clear. Octets that came in clear behind the reply are an error: they would be taken for something
// that the server said under TLS. After success the caller
// says Hello again: nothing that was said before counts (RFC 3207 section 4.2), so that Extension finds nothing.
func (c *Client) StartTLS(ctx context.Context, config *tls.Config) (Reply, error) {
	return c.do(ctx, "STARTTLS", func() (Reply, error) {
		r, err := c.cmd(c.times.Hello, "STARTTLS")
		if err != nil || !r.OK() {
			return r, err
		}
		if c.br.Buffered() > 0 {
			return r, &TLSError{protocolErrorf("data after the reply to STARTTLS, before TLS")}
		}
		return r, c.handshake(ctx, config)
	})
}

// Handshake begins TLS at once, before the greeting: for ports where TLS begins with the connection (RFC 8314).
func (c *Client) Handshake(ctx context.Context, config *tls.Config) error {
	_, err := c.do(ctx, "TLS", func() (Reply, error) { return Reply{}, c.handshake(ctx, config) })
	return err
}

func (c *Client) handshake(ctx context.Context, config *tls.Config) error {
	if c.secure() {
		return &TLSError{errors.New("there is TLS already")}
	}
	if err := c.conn.SetDeadline(c.limit(c.times.TLS)); err != nil {
		return err
	}
	conn := tls.Client(c.conn, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return &TLSError{err}
	}
	c.setConn(conn)
	c.ext, c.limits = nil, Limits{}
	return nil
}

// Reset ends a transaction. Send does it by itself where it is needed.
func (c *Client) Reset(ctx context.Context) (Reply, error) {
	return c.do(ctx, "RSET", func() (Reply, error) {
		r, err := c.cmd(c.times.Quit, "RSET")
		if err == nil && r.OK() {
			c.state = fresh
		}
		return r, err
	})
}

// Noop asks for a reply. To find out whether a connection that was kept is still there, Quiet costs less.
func (c *Client) Noop(ctx context.Context) (Reply, error) {
	return c.do(ctx, "NOOP", func() (Reply, error) { return c.cmd(c.times.Hello, "NOOP") })
}

// Quit says good-bye and waits a moment for the answer (RFC 5321 section 4.1.1.10: the client should), then closes
// the connection. If the dialogue is not in step it only closes it.
func (c *Client) Quit(ctx context.Context) error {
	if c.InStep() {
		c.do(ctx, "QUIT", func() (Reply, error) { return c.cmd(c.times.Quit, "QUIT") })
		c.inStep = false
	}
	return c.Close()
}

// Leave is Quit that does not wait for the answer.
func (c *Client) Leave() error {
	if c.InStep() {
		c.queue("QUIT")
		c.flush(c.times.Quit)
		c.inStep = false
	}
	return c.Close()
}

// QuitAll is Quit for several connections, with d for all of them together.
func QuitAll(d time.Duration, clients ...*Client) {
	end := time.Now().Add(d)
	for _, c := range clients {
		if c.end = end; c.InStep() {
			c.queue("QUIT")
			c.flush(d)
		}
	}
	for _, c := range clients {
		if c.inStep {
			c.next(d)
			c.inStep = false
		}
		c.Close()
	}
}
