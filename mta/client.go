package mta

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A client speaks the client's side of SMTP on one connection: one command at a time with cmd, or several in
// one flight with queue, flush and next (RFC 2920). It knows nothing of envelopes, policies and queues.
//
// It is used by one goroutine. Every method is bounded by a time-out and by the
// end of the connection's total time. A method that returns an error leaves the
// connection useless: what a late reply would belong to cannot be told. A reply that
// refuses is not an error.
type client struct {
	raw  net.Conn // as it was dialed; closing it ends whatever waits for it
	conn net.Conn // raw, or TLS over it
	br   *bufio.Reader
	out  []byte // commands that are queued; at most maxFlight, or one command
	end  time.Time
	wire func(sent bool, line string) // nil: nobody looks
	ext  map[string]string            // keywords in upper case; nil: HELO
}

// maxFlight bounds the octets of commands that are sent before a reply is read. No socket has a smaller buffer, and
// when a flight begins all that went before it was answered: so it is written without waiting for the
// server to read, and a server that waits for us to read its replies stops nobody (RFC 2920 section 3.1).
const maxFlight = 4096

// clientBuffer is the size of the read buffer, and so the limit on a reply line.
const clientBuffer = maxReplyLine

func newClient(conn net.Conn, total time.Duration) *client {
	c := &client{raw: conn, end: time.Now().Add(total)}
	c.setConn(conn)
	return c
}

func (c *client) setConn(conn net.Conn) {
	c.conn = conn
	c.br = bufio.NewReaderSize(conn, clientBuffer)
}

func (c *client) close() { c.conn.Close() }

// abort closes the connection from another goroutine, without the good manners of TLS.
func (c *client) abort() { c.raw.Close() }

// limit returns when an operation that may last d must end.
func (c *client) limit(d time.Duration) time.Time {
	t := time.Now().Add(d)
	if t.After(c.end) {
		return c.end
	}
	return t
}

func (c *client) read() (reply, error) {
	var seen func(string)
	if c.wire != nil {
		seen = func(line string) { c.wire(false, line) }
	}
	return readReply(c.br, seen)
}

// greeting reads the greeting.
func (c *client) greeting(d time.Duration) (reply, error) {
	if err := c.conn.SetDeadline(c.limit(d)); err != nil {
		return reply{}, err
	}
	return c.read()
}

// cmd sends a command and reads the reply to it.
func (c *client) cmd(d time.Duration, line string) (reply, error) {
	if err := c.queue(line); err != nil {
		return reply{}, err
	}
	if r, err := c.flush(d); err != nil || r.code != 0 {
		return r, err
	}
	return c.read()
}

// queue adds a command to those that the next flush sends.
func (c *client) queue(line string) error {
	if strings.ContainsAny(line, "\r\n\x00") {
		return errors.New("mta: a command with a line end in it") // addresses are validated; this is the last line of defence
	}
	c.out = append(append(c.out, line...), "\r\n"...)
	return nil
}

// flush sends what is queued, in one piece. Then there is a reply to read for each command, with next. A
// reply that is returned here stands for the one to the first command, and there are no others: the server said it
// before it heard us, or hung up after it.
func (c *client) flush(d time.Duration) (reply, error) {
	out := c.out
	c.out = c.out[:0]
	derr := c.conn.SetDeadline(c.limit(d)) // fails when the connection is closed already
	// A reply that is here before its command was sent is not a reply to it,
	// unless the server is saying good-bye.
	if c.br.Buffered() > 0 {
		r, err := c.read()
		if err == nil && r.code != 421 {
			err = protocolErrorf("a reply to no command")
		}
		return r, err
	}
	if derr != nil {
		return reply{}, derr
	}
	if c.wire != nil {
		for line := range strings.SplitSeq(strings.TrimSuffix(string(out), "\r\n"), "\r\n") {
			c.wire(true, clean(line))
		}
	}
	if _, err := c.conn.Write(out); err != nil {
		return c.lastWords(err)
	}
	return reply{}, nil
}

// next reads the reply to the next command of a flight.
func (c *client) next(d time.Duration) (reply, error) {
	if err := c.conn.SetReadDeadline(c.limit(d)); err != nil {
		return reply{}, err
	}
	return c.read()
}

// lastWords reads what a server said before it hung up on us. Without a refusal
// in it, it returns err.
func (c *client) lastWords(err error) (reply, error) {
	c.conn.SetReadDeadline(c.limit(lastWordsTime))
	if r, rerr := c.read(); rerr == nil && r.refusal() {
		return r, nil
	}
	return reply{}, err
}

// lastWordsTime is for a reply that should be here already.
const lastWordsTime = 2 * time.Second

// hello greets the server, with EHLO, or HELO for one that does not know it
// (RFC 5321 section 3.2). The reply returned is the last one.
func (c *client) hello(d time.Duration, name string) (reply, error) {
	c.ext = nil
	r, err := c.cmd(d, "EHLO "+name)
	if err != nil {
		return r, err
	}
	if r.code/100 == 5 {
		return c.cmd(d, "HELO "+name)
	}
	if !r.ok() {
		return r, nil
	}
	c.ext = make(map[string]string, len(r.lines))
	for _, l := range r.lines[1:] {
		// RFC 5321 section 4.1.1.1: keywords are compared without regard to case.
		k, v, _ := strings.Cut(l, " ")
		c.ext[strings.ToUpper(k)] = v
	}
	return r, nil
}

func (c *client) has(ext string) bool { _, ok := c.ext[ext]; return ok }

// A tlsError is a failure of STARTTLS after the server agreed to it.
type tlsError struct{ err error }

func (e *tlsError) Error() string { return "TLS handshake: " + e.err.Error() }
func (e *tlsError) Unwrap() error { return e.err }

// startTLS sends STARTTLS and does the handshake. A refusal is returned as reply
// without error, and the connection goes on in clear. After success the caller
// says hello again, since nothing said before counts (RFC 3207 section 4.2).
func (c *client) startTLS(ctx context.Context, cmdTime, handshake time.Duration, config *tls.Config) (reply, error) {
	r, err := c.cmd(cmdTime, "STARTTLS")
	if err != nil || !r.ok() {
		return r, err
	}
	// What came in clear after the reply would be taken for something the server said
	// under TLS.
	if c.br.Buffered() > 0 {
		return r, &tlsError{protocolErrorf("data after the reply to STARTTLS, before TLS")}
	}
	if err := c.conn.SetDeadline(c.limit(handshake)); err != nil {
		return r, err
	}
	conn := tls.Client(c.conn, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return r, &tlsError{err}
	}
	c.setConn(conn)
	c.ext = nil
	return r, nil
}

// A dataTimes has the time-outs of the data phase.
type dataTimes struct {
	block time.Duration // for each write
	done  time.Duration // for the reply to the final dot
}

// An inDoubtError is a failure after the final dot: the server may have the message.
type inDoubtError struct{ err error }

func (e *inDoubtError) Error() string { return "after the final dot: " + e.err.Error() }
func (e *inDoubtError) Unwrap() error { return e.err }

// errEarly is returned by data when the server spoke before the final dot. Its reply was
// a refusal; the dot was not sent, and the connection is useless.
var errEarly = errors.New("mta: refused before the end of the message")

// A localError is a failure on our side before the final dot: of the message, or of the
// leave to send it. Another server would not help.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// errStopped ends the sending of a message because the server spoke.
var errStopped = errors.New("mta: the server spoke before the end of the message")

// commitGrace is for how much longer the reply to the final dot is waited for when ctx is done.
const commitGrace = 10 * time.Second

// data sends the message and the final dot, after a 354. commit is called just before the dot; its error,
// as any before the dot, means that the server has
// no message. An *inDoubtError means that it may have it. With errEarly the
// reply is valid. ctx is for the time after the dot only: see commitGrace.
func (c *client) data(ctx context.Context, r io.Reader, size int64, t dataTimes, commit func() error) (reply, error) {
	early := c.watch()
	bw := bufio.NewWriterSize(c.conn, 32<<10)
	err := c.body(bw, r, size, t, early.done)
	var cerr error
	if err == nil {
		cerr = commit()
	}
	// The watcher is gone before the dot is sent, so that from here on what comes is the
	// answer to it.
	spoke := early.stop()
	if cerr != nil {
		return reply{}, &localError{cerr}
	}
	var local *localError
	if errors.As(err, &local) {
		return reply{}, err
	}
	if spoke || err != nil {
		return c.early(err)
	}
	if err := c.conn.SetDeadline(c.limit(t.block)); err != nil {
		return reply{}, err
	}
	bw.WriteString(dotLine)
	if err := bw.Flush(); err != nil {
		return reply{}, &inDoubtError{err} // part of it may have gone out
	}
	return c.verdict(ctx, t)
}

// dotLine ends a message.
const dotLine = ".\r\n"

// dataAtOnce is data for a message in memory, in the form that it has on the wire, with the final dot. It
// is sent in one piece, so commit is called before it, and nobody watches for a server that refuses in the middle:
// what it says then is read as its answer.
func (c *client) dataAtOnce(ctx context.Context, wire []byte, size int64, t dataTimes, commit func() error) (reply, error) {
	if c.br.Buffered() > 0 {
		return c.early(nil)
	}
	if err := commit(); err != nil {
		return reply{}, &localError{err}
	}
	if c.conn == c.raw && !quiet(c.raw) {
		return c.early(nil)
	}
	if err := c.conn.SetDeadline(c.limit(t.block)); err != nil {
		return reply{}, err
	}
	if c.wire != nil {
		c.wire(true, fmt.Sprintf("(%d octets of message)", size))
	}
	if n, err := c.conn.Write(wire); err != nil {
		if n <= len(wire)-len(dotLine) {
			return c.early(err) // nothing of the dot has gone out
		}
		return reply{}, &inDoubtError{err}
	}
	return c.verdict(ctx, t)
}

// early reads what the server said before the final dot. err is why the sending ended; nil or
// errStopped: because the server spoke.
func (c *client) early(err error) (reply, error) {
	c.conn.SetReadDeadline(c.limit(lastWordsTime))
	rep, rerr := c.read()
	switch {
	case rerr == nil && rep.refusal():
		return rep, errEarly
	case rerr == nil:
		err = protocolErrorf("a reply before the end of the message")
	case err == nil || err == errStopped:
		err = rerr
	}
	return reply{}, err
}

// verdict reads the reply to the final dot.
func (c *client) verdict(ctx context.Context, t dataTimes) (reply, error) {
	if c.wire != nil {
		c.wire(true, ".")
	}
	// The reply is waited for in full even when the connection's total time is over: to
	// give up now is to send the message twice.
	if err := c.conn.SetDeadline(time.Now().Add(t.done)); err != nil {
		return reply{}, &inDoubtError{err}
	}
	conn := c.conn
	stop := context.AfterFunc(ctx, func() {
		conn.SetReadDeadline(time.Now().Add(min(commitGrace, t.done)))
	})
	defer stop()
	rep, err := c.read()
	if err != nil {
		return reply{}, &inDoubtError{err}
	}
	if !rep.ok() && !rep.refusal() {
		return reply{}, &inDoubtError{protocolErrorf("the reply to the message is %d", rep.code)}
	}
	return rep, nil
}

// body sends everything but the final dot. It ends when stop is closed.
func (c *client) body(bw *bufio.Writer, r io.Reader, size int64, t dataTimes, stop <-chan struct{}) error {
	w := &dotWriter{w: bw}
	buf := make([]byte, 32<<10)
	var sent int64
	for {
		n, rerr := r.Read(buf)
		if sent += int64(n); sent > size {
			return &localError{fmt.Errorf("mta: the message is longer than its size of %d octets", size)}
		}
		c.conn.SetWriteDeadline(c.limit(t.block))
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		select {
		case <-stop:
			return errStopped
		default:
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return &localError{fmt.Errorf("mta: read the message: %w", rerr)}
		}
	}
	if sent < size {
		return &localError{fmt.Errorf("mta: the message has %d octets, not %d", sent, size)}
	}
	if err := w.finish(); err != nil {
		return err
	}
	if err := bw.Flush(); err != nil {
		return err
	}
	if c.wire != nil {
		c.wire(true, fmt.Sprintf("(%d octets of message)", sent))
	}
	return nil
}

// A watcher waits for the server to speak, or to hang up, while the message is
// being sent. It owns a goroutine until stop returns.
type watcher struct {
	c     *client
	done  chan struct{} // closed when there is something to read, or an error
	spoke bool          // valid once done is closed
}

func (c *client) watch() *watcher {
	w := &watcher{c: c, done: make(chan struct{})}
	c.conn.SetReadDeadline(c.end)
	go func() {
		defer close(w.done)
		_, err := c.br.Peek(1)
		w.spoke = err == nil || !errors.Is(err, os.ErrDeadlineExceeded)
	}()
	return w
}

// stop ends the goroutine, and reports whether the server spoke or hung up.
func (w *watcher) stop() bool {
	w.c.conn.SetReadDeadline(time.Unix(1, 0))
	<-w.done
	w.c.conn.SetReadDeadline(time.Time{})
	return w.spoke
}

// quit says good-bye and waits a moment for the answer (RFC 5321 section
// 4.1.1.10: the client should), then closes the connection.
func (c *client) quit(d time.Duration) {
	c.cmd(d, "QUIT")
	c.close()
}

// quitAll is quit for several connections, with d for all of them together.
func quitAll(d time.Duration, clients []*client) {
	end := time.Now().Add(d)
	for _, c := range clients {
		c.end = end
		c.queue("QUIT")
		c.flush(d)
	}
	for _, c := range clients {
		c.next(d)
		c.close()
	}
}

// leave is quit that does not wait.
func (c *client) leave(d time.Duration) {
	c.queue("QUIT")
	c.flush(d)
	c.close()
}

// tlsState describes the TLS of the connection; zero: none.
func (c *client) tlsState() tls.ConnectionState {
	if t, ok := c.conn.(*tls.Conn); ok {
		return t.ConnectionState()
	}
	return tls.ConnectionState{}
}

func localAddr(conn net.Conn) string {
	if a := conn.LocalAddr(); a != nil {
		return a.String()
	}
	return ""
}

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

// refusal makes the error of a recipient of a reply that refuses.
func refusal(peer, command string, r reply) *mailspine.Error {
	return &mailspine.Error{
		Code: r.code, Enhanced: r.enhanced, Message: r.message(),
		Err: fmt.Errorf("mta: %s answered %s", peer, command),
	}
}
