package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// DefaultTimeout is what Client.Timeout 0 means.
const DefaultTimeout = 10 * time.Minute

const (
	maxLine   = 64 << 20 // octets of a line of a stream: an item with 1,000 recipients and their replies
	maxAnswer = 1 << 20  // octets of any other answer in JSON
)

// A Client asks the Server behind a socket. It has no state: each call makes a connection of its own. All methods
// are safe for concurrent use.
type Client struct {
	// Path is that of the socket. Required.
	Path string
	// Timeout is how long the server may be silent. A command is silent until it has been carried out, which
	// takes its time when there are millions of items. 0: DefaultTimeout, negative: for ever.
	Timeout time.Duration
}

// Info returns what the server is. It does not ask the store.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var i Info
	return i, c.call(ctx, http.MethodGet, "info", nil, &i)
}

// Health implements [Queue].
func (c *Client) Health(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "health", nil, new(line))
}

// StoreStats implements [Queue].
func (c *Client) StoreStats(ctx context.Context) (queue.Stats, error) {
	var w stats
	err := c.call(ctx, http.MethodGet, "stats", nil, &w)
	return w.queue(), err
}

// Control implements [Queue]. When ctx ends, or the connection breaks, it is not known how many items were changed.
func (c *Client) Control(ctx context.Context, f queue.Filter, cmd queue.Command) (queue.Changed, error) {
	if err := f.Validate(); err != nil {
		return queue.Changed{}, err
	}
	if err := cmd.Validate(); err != nil {
		return queue.Changed{}, err
	}
	return c.change(ctx, "control", request{Filter: filterOf(f), Command: commandOf(cmd)})
}

// Bounce implements [Queue].
func (c *Client) Bounce(ctx context.Context, f queue.Filter, st *mailspine.Error) (queue.Changed, error) {
	if err := f.Validate(); err != nil {
		return queue.Changed{}, err
	}
	if st != nil && st.Temporary() {
		return queue.Changed{}, fmt.Errorf("%w: a bounce needs a permanent status, not %s", queue.ErrBadCommand, st.Reply())
	}
	w := statusOf(st)
	if w != nil {
		w.Cause = "" // for our log
	}
	return c.change(ctx, "bounce", request{Filter: filterOf(f), Status: w})
}

func (c *Client) change(ctx context.Context, call string, req request) (queue.Changed, error) {
	var w changed
	err := c.call(ctx, http.MethodPost, call, &req, &w)
	return w.queue(), err
}

// List implements [Queue]. When yield returns false, the server stops looking.
func (c *Client) List(ctx context.Context, f queue.Filter) iter.Seq2[queue.Item, error] {
	return func(yield func(queue.Item, error) bool) {
		if err := f.Validate(); err != nil {
			yield(queue.Item{}, err)
			return
		}
		for l, err := range c.lines(ctx, http.MethodPost, "list", &request{Filter: filterOf(f)}) {
			if err == nil && l.Item == nil {
				continue // of a kind that is not known here
			}
			var it queue.Item
			if err == nil {
				it, err = l.Item.queue()
			}
			if !yield(it, err) || err != nil {
				return
			}
		}
	}
}

// Breakdown implements [Queue].
func (c *Client) Breakdown(ctx context.Context) iter.Seq2[queue.Group, error] {
	return func(yield func(queue.Group, error) bool) {
		for l, err := range c.lines(ctx, http.MethodGet, "breakdown", nil) {
			if err == nil && l.Group == nil {
				continue
			}
			var g queue.Group
			if err == nil {
				g = queue.Group(*l.Group)
			}
			if !yield(g, err) || err != nil {
				return
			}
		}
	}
}

// Show returns the items of a message, or queue.ErrNotFound. They are as many as the message has routes.
func (c *Client) Show(ctx context.Context, id mailspine.MsgID) ([]queue.Item, error) {
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	var items []queue.Item
	for it, err := range c.List(ctx, queue.Filter{ID: id}) {
		if err != nil {
			return nil, err
		}
		items = append(items, it)
	}
	if len(items) == 0 {
		return nil, fmt.Errorf("control: message %s: %w", id, queue.ErrNotFound)
	}
	return items, nil
}

// Open returns the content of a message, as Store.Open does, but for seeking. The reader is valid until ctx ends. An
// error of the store in the middle is io.ErrUnexpectedEOF.
func (c *Client) Open(ctx context.Context, id mailspine.MsgID) (io.ReadCloser, error) {
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	return c.do(ctx, http.MethodGet, "messages/"+string(id)+"/content", nil)
}

// call asks for one object.
func (c *Client) call(ctx context.Context, method, path string, req *request, answer any) error {
	body, err := c.do(ctx, method, path, req)
	var re *answerError
	if errors.As(err, &re) { // a command that failed in the middle has something to say, too
		if ch, ok := answer.(*changed); ok {
			*ch = re.changed
		}
		return re.error
	}
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(answer); err != nil {
		return c.broken(ctx, err)
	}
	return nil
}

// lines asks for a stream. It yields lines up to the first error, and an error if the stream was cut off.
func (c *Client) lines(ctx context.Context, method, path string, req *request) iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		body, err := c.do(ctx, method, path, req)
		if err != nil {
			yield(line{}, err)
			return
		}
		defer body.Close()
		in := &allowance{r: body}
		d := json.NewDecoder(in)
		for {
			in.left = maxLine
			var l line
			if err := d.Decode(&l); err != nil {
				yield(line{}, c.broken(ctx, err))
				return
			}
			switch {
			case l.End:
				return
			case l.Error != nil:
				yield(line{}, l.Error.error())
				return
			}
			if !yield(l, nil) {
				return
			}
		}
	}
}

// broken is an answer that ended too early, or does not parse.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("control: the answer of %s: %w", c.Path, err)
}

// An answerError is an error of the server, with what a command did before it.
type answerError struct {
	error
	changed changed
}

func (e *answerError) Unwrap() error { return e.error }

// do sends a request, and returns the body of an answer that is no error.
func (c *Client) do(ctx context.Context, method, path string, req *request) (io.ReadCloser, error) {
	if err := checkPath(c.Path); err != nil {
		return nil, fmt.Errorf("control: %s: %w", c.Path, err)
	}
	var body io.Reader = http.NoBody
	if req != nil {
		b, err := json.Marshal(req)
		if err != nil {
			return nil, fmt.Errorf("control: %w", err)
		}
		if len(b) > maxRequest {
			return nil, fmt.Errorf("%w: it has %d octets, over %d", ErrBadRequest, len(b), maxRequest)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://control/v1/"+path, body)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	// Without connections that are kept nothing is left behind, and nothing has to be closed. No proxy, no redirects, no
	// compression.
	t := &http.Transport{DialContext: c.dial, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10}
	resp, err := t.RoundTrip(r)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("control: asking %s: %w", c.Path, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var w changed
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&w); err != nil || w.Error == nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("control: %s answers %s to %s: is it a control socket, and of this version?", c.Path, resp.Status, path)
	}
	return nil, &answerError{w.Error.error(), w}
}

func (c *Client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	timeout := c.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	nc, err := (&net.Dialer{Timeout: max(timeout, 0)}).DialContext(ctx, "unix", c.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: %w", ErrNoServer, err)
	case err != nil:
		return nil, err
	case timeout < 0:
		return nc, nil
	}
	return &timedConn{nc, timeout}, nil
}

// A timedConn bounds the silence of the other end.
type timedConn struct {
	net.Conn
	timeout time.Duration
}

func (c *timedConn) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(c.timeout))
	return c.Conn.Read(p)
}

func (c *timedConn) Write(p []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(c.timeout))
	return c.Conn.Write(p)
}

// An allowance bounds what a value that is being decoded takes of memory.
type allowance struct {
	r    io.Reader
	left int
}

func (a *allowance) Read(p []byte) (int, error) {
	if a.left <= 0 {
		return 0, fmt.Errorf("a line has over %d octets", maxLine)
	}
	n, err := a.r.Read(p[:min(len(p), a.left)])
	a.left -= n
	return n, err
}
