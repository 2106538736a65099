package smtpclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// errEarly is returned when the server spoke before the end of the message. Its reply was
// a refusal; the end was not sent, and the connection is useless.
var errEarly = errors.New("refused before the end of the message")

// errStopped ends the sending of a message because the server spoke.
var errStopped = errors.New("the server spoke before the end of the message")

// commitGrace is for how much longer the reply to the message is waited for when ctx is done.
const commitGrace = 10 * time.Second

// An encoder writes a message in the form that it has on the wire. It refuses what must not be sent.
type encoder interface {
	io.Writer
	finish() error // completes the last line
	last() []byte  // what the message ends with, and is held back until the leave is there; not empty
}

// streamed sends a large message, after a 354 or behind a BDAT command. Without an error it is sent, and the replies are those to it.
// An *InDoubtError means that the server may have it; any other error, that it has not. With errEarly the
// reply is valid.
func (x *exchange) streamed(ctx context.Context, bw *bufio.Writer, enc encoder) (Reply, error) {
	c := x.c
	r, err := x.t.Msg.content.Open(ctx)
	if err != nil {
		return Reply{}, &MessageError{fmt.Errorf("open the message: %w", err)}
	}
	defer r.Close()
	early := c.watch()
	err = x.body(bw, enc, r, early.done)
	var cerr error
	if err == nil {
		cerr = x.commit(ctx, c.times.DataBlock+c.times.DataDone)
	}
	// The watcher is gone before the end is sent, so that from here on what comes is the
	// answer to it.
	spoke := early.stop()
	if cerr != nil {
		return Reply{}, cerr
	}
	var local *MessageError
	if errors.As(err, &local) {
		return Reply{}, err
	}
	if spoke || err != nil {
		return c.early(err)
	}
	if err := c.conn.SetDeadline(c.limit(c.times.DataBlock)); err != nil {
		return Reply{}, err
	}
	bw.Write(enc.last())
	if err := bw.Flush(); err != nil {
		return Reply{}, &InDoubtError{Err: err} // part of it may have gone out
	}
	return Reply{}, nil
}

// body sends everything but the end. It gives up when stop is closed.
func (x *exchange) body(bw *bufio.Writer, enc encoder, r io.Reader, stop <-chan struct{}) error {
	c, size := x.c, x.t.Msg.size
	buf := make([]byte, 32<<10)
	var sent int64
	for {
		n, rerr := r.Read(buf)
		if sent += int64(n); sent > size {
			return &MessageError{fmt.Errorf("the message is longer than its size of %d octets", size)}
		}
		c.conn.SetWriteDeadline(c.limit(c.times.DataBlock))
		if _, err := enc.Write(buf[:n]); err != nil {
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
			return &MessageError{fmt.Errorf("read the message: %w", rerr)}
		}
	}
	if sent < size {
		return &MessageError{fmt.Errorf("the message has %d octets, not %d", sent, size)}
	}
	if err := enc.finish(); err != nil {
		return err
	}
	if err := bw.Flush(); err != nil {
		return err
	}
	x.showMessage()
	return nil
}

func (x *exchange) showMessage() {
	if wire := x.c.o.Wire; wire != nil {
		wire(true, fmt.Sprintf("(%d octets of message)", x.t.Msg.size))
	}
}

// atOnce sends a small message after a 354, with its dot, in one piece. So the leave is asked for before it, and nobody watches for
// a server that refuses in the middle:
// what it says then is read as its answer. Results are as those of streamed.
func (x *exchange) atOnce(ctx context.Context) (Reply, error) {
	c, wire := x.c, x.t.Msg.asData()
	if c.br.Buffered() > 0 {
		return c.early(nil)
	}
	if err := x.commit(ctx, c.times.DataBlock+c.times.DataDone); err != nil {
		return Reply{}, err
	}
	if c.conn == c.raw && !quiet(c.raw) {
		return c.early(nil)
	}
	if err := c.conn.SetDeadline(c.limit(c.times.DataBlock)); err != nil {
		return Reply{}, err
	}
	x.showMessage()
	if n, err := c.conn.Write(wire); err != nil {
		if n <= len(wire)-len(dotLine) {
			return c.early(err) // nothing of the dot has gone out
		}
		return Reply{}, &InDoubtError{Err: err}
	}
	return Reply{}, nil
}

// early reads what the server said before the end of the message. err is why the sending ended; nil or
// errStopped: because the server spoke.
func (c *Client) early(err error) (Reply, error) {
	c.conn.SetReadDeadline(c.limit(lastWordsTime))
	rep, rerr := c.read()
	switch {
	case rerr == nil && rep.Refusal():
		return rep, errEarly
	case rerr == nil:
		err = protocolErrorf("a reply before the end of the message")
	case err == nil || err == errStopped:
		err = rerr
	}
	return Reply{}, err
}

// A watcher waits for the server to speak, or to hang up, while the message is
// being sent. It owns a goroutine until stop returns.
type watcher struct {
	c     *Client
	done  chan struct{} // closed when there is something to read, or an error
	spoke bool          // valid once done is closed
}

func (c *Client) watch() *watcher {
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

// A wait bounds the reading of replies after the end of the message. They are waited for even when the connection's total
// time is over, and for a while when ctx is done: to
// give up now is to send the message twice.
type wait struct {
	conn net.Conn
	stop func() bool

	mu   sync.Mutex
	over bool
	set  time.Time // the deadline that is set
	most time.Time // none is later
}

// newWait waits for d at most, and for commitGrace after the end of ctx.
func newWait(ctx context.Context, conn net.Conn, d time.Duration) *wait {
	w := &wait{conn: conn, most: time.Now().Add(d)}
	w.stop = context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if end := time.Now().Add(commitGrace); !w.over && end.Before(w.most) {
			if w.most = end; w.set.After(end) {
				w.conn.SetReadDeadline(end)
			}
		}
	})
	return w
}

// next sets the deadline for a reply that may take d.
func (w *wait) next(d time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.set = time.Now().Add(d); w.set.After(w.most) {
		w.set = w.most
	}
	return w.conn.SetReadDeadline(w.set)
}

// end ends it: the connection is left alone.
func (w *wait) end() {
	w.stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
}
