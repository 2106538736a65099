package smtpclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Client speaks the client's side of SMTP or LMTP on one connection.
//
// It is used by one goroutine at a time; Close may be called by any. Every method is bounded by a time-out, by
// Timeouts.Total and by its context: when ctx ends, the connection is closed. A reply that says no is
// not an error of the methods that return a Reply. After an error the connection is of no use any more, since it cannot be told what a
// late reply belongs to, unless InStep says otherwise: close it.
//
// Errors are *mailspine.Error, whose Status is what the failure means for a message: 421 or another refusal as the server said
// it, 451 4.5.0 for a breach of the protocol, 451 4.4.2 for a time-out and a lost connection, 451 4.7.5 for TLS. Their
// cause has the type that says more: [ProtocolError], [TLSError], [ReplyError]. When ctx has ended the error wraps its error
// instead. An error never has octets of a server's reply in it but in the form of Reply.Message.
type Client struct {
	o     Options
	times Timeouts
	peer  string     // for texts
	mu    sync.Mutex // guards conn where it is changed, and Close, which others may call
	raw   net.Conn   // as it was dialed; closing it ends whatever waits for it
	conn  net.Conn   // raw, or TLS over it
	br    *bufio.Reader
	out   []byte // commands that are queued; at most maxFlight, or one command
	end   time.Time

	ext    map[string]string // keywords in upper case; nil: HELO
	limits Limits

	inStep  bool   // each reply is that to its command, as far as is known
	state   state  // of the server, before the next MAIL
	mails   int    // transactions that were begun
	got     int    // octets of the last reply, or of what was there of it
	hide    string // what Wire sees in place of the argument of a command or the text of a reply; "": itself
	aborted atomic.Bool
}

// A state is what the server knows of earlier transactions.
type state uint8

const (
	fresh  state = iota // nothing
	begun               // a transaction without recipients, which RSET has to end before the next MAIL
	loaded              // one with recipients
)

// Options are the options of a Client. The zero value is useful.
type Options struct {
	// LMTP speaks LMTP (RFC 2033): LHLO, and after the message a reply for each recipient.
	LMTP bool
	// Peer is the server's name in the texts of errors: "mx.example.org[192.0.2.1]". "": the remote address.
	Peer string
	// Timeouts bound each step. Zero is the default of each.
	Timeouts Timeouts
	// NoPipelining sends one command at a time, also to servers that offer PIPELINING.
	NoPipelining bool
	// NoChunking sends messages with DATA, also to servers that offer CHUNKING. What needs BINARYMIME cannot be sent then.
	NoChunking bool
	// Wire is called for each line sent and received, without line end and with control characters replaced. Of the
	// message only the number of octets is shown; secrets of Auth are not. nil: nobody looks.
	Wire func(sent bool, line string)
}

// Timeouts has the time-outs of a [Client]. Zero is the default of each, from RFC 5321 section 4.5.3.2 where that
// has one. A negative value is taken for zero. A reply has to arrive whole within its time; one octet a minute does not extend it.
type Timeouts struct {
	Greeting  time.Duration // for the greeting; 0: 5 min
	Hello     time.Duration // for EHLO, HELO, LHLO, STARTTLS and NOOP; 0: 5 min
	TLS       time.Duration // for the handshake; 0: 1 min
	Auth      time.Duration // for each step of AUTH; 0: 5 min
	Mail      time.Duration // for MAIL; 0: 5 min
	Rcpt      time.Duration // for each RCPT; 0: 5 min
	Data      time.Duration // for DATA; 0: 2 min
	DataBlock time.Duration // to send 32 KiB of the message, or a message that goes in one piece; 0: 3 min
	DataDone  time.Duration // for the reply to the message; 0: 10 min
	Quit      time.Duration // for RSET and QUIT; 0: 2 s
	// Total bounds the use of the connection from New or Renew to the end of the message, however its parts share it. 0: 1 h.
	Total time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	set(&t.Greeting, 5*time.Minute)
	set(&t.Hello, 5*time.Minute)
	set(&t.TLS, time.Minute)
	set(&t.Auth, 5*time.Minute)
	set(&t.Mail, 5*time.Minute)
	set(&t.Rcpt, 5*time.Minute)
	set(&t.Data, 2*time.Minute)
	set(&t.DataBlock, 3*time.Minute)
	set(&t.DataDone, 10*time.Minute)
	set(&t.Quit, 2*time.Second)
	set(&t.Total, time.Hour)
	return t
}

// maxFlight bounds the octets of commands that are sent before a reply is read. No socket has a smaller buffer, and
// when a flight begins all that went before it was answered: so it is written without waiting for the
// server to read, and a server that waits for us to read its replies stops nobody (RFC 2920 section 3.1). A message
// of up to InMemory behind it (see Send) may have to wait for the server to read; the replies to a flight, for which the
// server may have to wait in turn, have room in the buffers of any two sockets, and a server for which they have
// not costs no more than a time-out.
const maxFlight = 4096

// New returns a Client on a connection, which is its own from now on. If TLS begins with the connection, pass a
// tls.Conn or call Handshake. nil options: the zero Options.
func New(conn net.Conn, o *Options) *Client {
	c := &Client{raw: conn}
	if o != nil {
		c.o = *o
	}
	c.times = c.o.Timeouts.withDefaults()
	c.peer = c.o.Peer
	if c.peer == "" {
		c.peer = "the server"
		if a := conn.RemoteAddr(); a != nil {
			c.peer = a.String()
		}
	}
	c.Renew()
	c.setConn(conn)
	return c
}

// Renew starts Timeouts.Total anew, for a connection that was kept.
func (c *Client) Renew() { c.end = time.Now().Add(c.times.Total) }

// SetWire replaces Options.Wire.
func (c *Client) SetWire(wire func(sent bool, line string)) { c.o.Wire = wire }

func (c *Client) setConn(conn net.Conn) {
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
	c.br = bufio.NewReaderSize(conn, maxReplyLine) // the limit on a reply line
	if t, ok := conn.(*tls.Conn); ok && c.raw == conn {
		c.raw = t.NetConn()
	}
}

// Close closes the connection without a word. It may be called by any goroutine, and more than once.
func (c *Client) Close() error {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	return conn.Close()
}

// abort closes the connection from another goroutine, without the good manners of TLS.
func (c *Client) abort() {
	c.aborted.Store(true)
	c.raw.Close()
}

// InStep reports whether the dialogue is in step: a greeting was read, each command has had its reply, nothing else was said that has
// been seen, and nothing went wrong. Only then further commands make sense, QUIT among them.
func (c *Client) InStep() bool { return c.inStep && !c.aborted.Load() && c.br.Buffered() == 0 }

// Park readies a connection for being kept between two uses: it clears the deadlines, and forgets Options.Wire. It reports whether the
// connection can be kept.
func (c *Client) Park() bool {
	c.o.Wire = nil
	return c.InStep() && c.conn.SetDeadline(time.Time{}) == nil
}

// Quiet reports whether the server has neither said anything nor hung up, as far as can be known without waiting. It is for
// connections that were kept: one that is not quiet is of no use any more. Where the system cannot tell, it is true.
func (c *Client) Quiet() bool { return c.br.Buffered() == 0 && quiet(c.conn) }

// LocalAddr is our side of the connection; nil if it is not known.
func (c *Client) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// TLS describes the TLS of the connection. ok is false if there is none.
func (c *Client) TLS() (state tls.ConnectionState, ok bool) {
	if t, is := c.conn.(*tls.Conn); is {
		return t.ConnectionState(), true
	}
	return tls.ConnectionState{}, false
}

func (c *Client) secure() bool { _, ok := c.conn.(*tls.Conn); return ok }

// limit returns when an operation that may last d must end.
func (c *Client) limit(d time.Duration) time.Time {
	t := time.Now().Add(d)
	if t.After(c.end) {
		return c.end
	}
	return t
}

// read reads a reply. 421 is good-bye (RFC 5321 section 4.2.1), whatever it answers.
func (c *Client) read() (r Reply, err error) {
	var seen func(string)
	if wire, hide := c.o.Wire, c.hide; wire != nil {
		seen = func(line string) {
			if hide != "" && strings.HasPrefix(line, "334") {
				line = "334 " + hide
			}
			wire(false, line)
		}
	}
	r, c.got, err = readReply(c.br, seen)
	if err != nil || r.Code == 421 {
		c.inStep = false
	}
	return r, err
}

// do runs one operation, which ctx can end. Its error, if it is not classified yet, is that of command.
func (c *Client) do(ctx context.Context, command string, f func() (Reply, error)) (Reply, error) {
	if !c.inStep && command != "greeting" && command != "TLS" {
		return Reply{}, c.fail(ctx, command, errOutOfStep)
	}
	stop := context.AfterFunc(ctx, c.abort)
	defer stop()
	r, err := f()
	if err != nil {
		c.inStep = false
		return r, c.fail(ctx, command, err)
	}
	return r, nil
}

// errOutOfStep is for a connection that is used when it is at its end.
var errOutOfStep = errors.New("the connection is at its end")

// cmd sends a command and reads the reply to it.
func (c *Client) cmd(d time.Duration, line string) (Reply, error) {
	if err := c.queue(line); err != nil {
		return Reply{}, err
	}
	if r, err := c.flush(d); err != nil || r.Code != 0 {
		return r, err
	}
	return c.read()
}

// queue adds a command to those that the next flush sends.
func (c *Client) queue(line string) error {
	if strings.ContainsAny(line, "\r\n\x00") {
		return errors.New("a command with a line end in it") // addresses are validated; this is the last line of defence
	}
	c.out = append(append(c.out, line...), "\r\n"...)
	return nil
}

// flush sends what is queued, in one piece. Then there is a reply to read for each command, with next. A
// reply that is returned here stands for the one to the first command, and there are no others: the server said it
// before it heard us, or hung up after it.
func (c *Client) flush(d time.Duration) (Reply, error) {
	out := c.out
	c.out = c.out[:0]
	derr := c.conn.SetDeadline(c.limit(d)) // fails when the connection is closed already
	if c.br.Buffered() > 0 {
		return c.unasked()
	}
	if derr != nil {
		return Reply{}, derr
	}
	c.show(out)
	if _, err := c.conn.Write(out); err != nil {
		return c.lastWords(err)
	}
	return Reply{}, nil
}

// unasked reads a reply that was here before its command was sent. It is not a reply to it, unless the server is
// saying good-bye.
func (c *Client) unasked() (Reply, error) {
	r, err := c.read()
	if err == nil && r.Code != 421 {
		err = protocolErrorf("a reply to no command")
	}
	return r, err
}

// show shows commands to Wire.
func (c *Client) show(out []byte) {
	if c.o.Wire == nil {
		return
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(out), "\r\n"), "\r\n") {
		switch verb, rest, _ := strings.Cut(line, " "); {
		case c.hide == "":
		case verb == "AUTH": // the name of the mechanism is no secret
			mech, _, more := strings.Cut(rest, " ")
			if line = verb + " " + mech; more {
				line += " " + c.hide
			}
		default:
			line = c.hide
		}
		c.o.Wire(true, Clean(line))
	}
}

// next reads the reply to the next command of a flight.
func (c *Client) next(d time.Duration) (Reply, error) {
	if err := c.conn.SetReadDeadline(c.limit(d)); err != nil {
		return Reply{}, err
	}
	return c.read()
}

// lastWords reads what a server said before it hung up on us. Without a refusal
// in it, it returns err.
func (c *Client) lastWords(err error) (Reply, error) {
	c.conn.SetReadDeadline(c.limit(lastWordsTime))
	r, rerr := c.read()
	c.inStep = false
	if rerr == nil && r.Refusal() {
		return r, nil
	}
	return Reply{}, err
}

// lastWordsTime is for a reply that should be here already.
const lastWordsTime = 2 * time.Second

// localName is the name to say hello with when none is configured: the address
// literal of our side of the connection (RFC 5321 section 4.1.4).
func localName(conn net.Conn) string {
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		ip := a.AddrPort().Addr().Unmap().WithZone("")
		if ip.Is4() {
			return "[" + ip.String() + "]"
		}
		if ip.Is6() {
			return "[IPv6:" + ip.String() + "]"
		}
	}
	return "localhost"
}
