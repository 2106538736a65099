package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// The defaults of a Server's fields.
const (
	DefaultMaxConns     = 32
	DefaultReadTimeout  = 10 * time.Second
	DefaultWriteTimeout = 30 * time.Second
)

const (
	maxHeader   = 8 << 10     // octets of an HTTP header
	maxRejects  = 4           // connections that are being told that they are not let in
	idleTimeout = time.Minute // between requests
)

// A Server answers Clients about a queue. The zero value refuses to serve, since it has no Queue.
// Fields must not be changed once it serves. All methods are safe for concurrent use.
type Server struct {
	// Queue is what is shown and controlled. Required.
	Queue Queue
	// Open opens the content of a message. nil: that of the Store of Queue, if Queue is a *queue.Queue, and
	// its own Open method, if Queue is a *Client; otherwise content is not shown.
	Open func(ctx context.Context, id mailspine.MsgID) (io.ReadCloser, error)
	// AllowUIDs are users who are let in besides root and the user that the server runs
	// as. Where the system does not say who has connected, they do not matter. They have to get through the mode of
	// the socket, too: 0600, unless the application changes it after Listen.
	AllowUIDs []uint32
	// MaxConns is how many connections are served at a time; further ones are closed. 0 or negative:
	// DefaultMaxConns.
	MaxConns int
	// ReadTimeout is how long a client may take for the header of a request, and again for its body; 0 or negative:
	// DefaultReadTimeout.
	ReadTimeout time.Duration
	// WriteTimeout is how long a client may take none of what it is sent; 0 or negative:
	// DefaultWriteTimeout.
	WriteTimeout time.Duration
	// Logger gets each command, with who gave it, and what it did; nil: slog.Default.
	Logger *slog.Logger

	once    sync.Once
	http    *http.Server
	cancel  context.CancelFunc // ends the contexts of requests
	places  chan struct{}      // of connections
	rejects chan struct{}      // of those that are not let in
	started time.Time

	mu      sync.Mutex
	stopped bool
	calls   sync.WaitGroup // requests that are being answered; added to with mu held
}

func (s *Server) init() {
	s.once.Do(func() {
		if s.MaxConns > 0 {
			s.places = make(chan struct{}, s.MaxConns)
		} else {
			s.places = make(chan struct{}, DefaultMaxConns)
		}
		s.rejects = make(chan struct{}, maxRejects)
		s.started = time.Now()
		ctx, cancel := context.WithCancel(context.Background())
		s.cancel = cancel
		s.http = &http.Server{
			Handler:           s.handler(),
			ReadHeaderTimeout: s.readTimeout(), // that of bodies is set where they are read: ReadTimeout would bound the answer, too
			WriteTimeout:      s.writeTimeout(),
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeader,
			ErrorLog:          slog.NewLogLogger(s.logger().Handler(), slog.LevelDebug),
			// OPTIONS is refused like everything else that is not known.
			DisableGeneralOptionsHandler: true,
			BaseContext:                  func(net.Listener) context.Context { return ctx },
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				p := peer{rejected: ErrForbidden}
				if c, ok := c.(*conn); ok {
					p = c.peer
				}
				return context.WithValue(ctx, peerKey{}, p)
			},
		}
	})
}

type peerKey struct{}

func peerFrom(ctx context.Context) peer {
	p, ok := ctx.Value(peerKey{}).(peer)
	if !ok {
		p.rejected = ErrForbidden
	}
	return p
}

func (s *Server) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

func (s *Server) readTimeout() time.Duration {
	if s.ReadTimeout > 0 {
		return s.ReadTimeout
	}
	return DefaultReadTimeout
}

func (s *Server) writeTimeout() time.Duration {
	if s.WriteTimeout > 0 {
		return s.WriteTimeout
	}
	return DefaultWriteTimeout
}

// Serve answers those who connect to l until l fails, or Shutdown or Close is called; then it returns nil. It
// closes l. Only a Unix socket is served: see [Listen].
func (s *Server) Serve(l net.Listener) error {
	switch {
	case s.Queue == nil:
		l.Close()
		return errors.New("control: Server.Queue is nil")
	case l.Addr().Network() != "unix":
		l.Close()
		return fmt.Errorf("control: %s is no Unix socket: anybody could control the queue", l.Addr())
	}
	s.init()
	if err := s.http.Serve(&listener{l, s}); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control: serve %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown stops accepting, and returns when what was asked before has been answered. If ctx ends before that, the
// rest is cut off as by Close, and Shutdown returns ctx's error without waiting further.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.cut()
	}
	return err
}

// Close stops accepting, closes all connections, and returns when what was being done for them has ended. A command is
// stopped where it is.
func (s *Server) Close() error {
	s.init()
	err := s.cut()
	s.calls.Wait()
	return err
}

func (s *Server) cut() error {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.cancel()
	return s.http.Close()
}

// handler answers requests.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/info", s.info)
	mux.HandleFunc("GET /v1/health", s.health)
	mux.HandleFunc("GET /v1/stats", s.stats)
	mux.HandleFunc("GET /v1/breakdown", s.breakdown)
	mux.HandleFunc("GET /v1/messages/{id}/content", s.content)
	mux.HandleFunc("POST /v1/list", s.list)
	mux.HandleFunc("POST /v1/control", s.control)
	mux.HandleFunc("POST /v1/bounce", s.bounce)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		stopped := s.stopped
		if !stopped {
			s.calls.Add(1)
			defer s.calls.Done()
		}
		s.mu.Unlock()
		switch err := peerFrom(r.Context()).rejected; {
		case stopped:
			s.fail(w, errors.New("control: the server is stopping"))
		case err != nil:
			w.Header().Set("Connection", "close")
			s.fail(w, err)
		default:
			mux.ServeHTTP(w, r)
		}
	})
}

// order reads the body of a request. If it is bad, it answers.
func (s *Server) order(w http.ResponseWriter, r *http.Request, call string) (order, bool) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(s.readTimeout()))
	o, err := decode(http.MaxBytesReader(w, r.Body, maxRequest), call)
	if err != nil {
		w.Header().Set("Connection", "close") // whatever else is in the body
		s.fail(w, err)
		return order{}, false
	}
	_ = rc.SetReadDeadline(time.Time{}) // a client that waits for its answer may be silent
	return o, true
}

func (s *Server) fail(w http.ResponseWriter, err error) {
	f := failureOf(err)
	s.reply(w, f.http(), line{Error: f})
}

func (s *Server) reply(w http.ResponseWriter, code int, v any) {
	// Finding the answer may have taken long.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.writeTimeout()))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := encoder(w).Encode(v); err != nil {
		s.logger().Debug("control: an answer did not get through", "err", err)
	}
}

// Info says what a server is.
type Info struct {
	Protocol int       `json:"protocol"` // 1
	Version  string    `json:"version"`  // of the program's module; "(devel)" or "" if it was built without one
	PID      int       `json:"pid"`
	UID      int       `json:"uid"` // -1 where there are none
	Started  time.Time `json:"started"`
	// Counts is what the queue has done since it was made, with the names that they have in Go; nil: it does not
	// count.
	Counts *queue.Counts `json:"counts,omitempty"`
}

func (s *Server) info(w http.ResponseWriter, _ *http.Request) {
	i := newInfo(s.started)
	if c, ok := s.Queue.(counter); ok {
		n := c.Stats()
		i.Counts = &n
	}
	s.reply(w, http.StatusOK, i)
}

func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	if err := s.Queue.Health(r.Context()); err != nil {
		f := failureOf(err)
		code := f.http()
		if code == http.StatusInternalServerError {
			code = http.StatusServiceUnavailable
		}
		s.reply(w, code, line{Error: f})
		return
	}
	s.reply(w, http.StatusOK, line{End: true})
}

func (s *Server) stats(w http.ResponseWriter, r *http.Request) {
	st, err := s.Queue.StoreStats(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, http.StatusOK, statsOf(st))
}

func (s *Server) breakdown(w http.ResponseWriter, r *http.Request) {
	out := s.stream(w, "application/x-ndjson")
	for g, err := range s.Queue.Breakdown(r.Context()) {
		w := group(g)
		if !out.line(line{Group: &w}, err) {
			return
		}
	}
	out.end()
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	o, ok := s.order(w, r, "list")
	if !ok {
		return
	}
	out := s.stream(w, "application/x-ndjson")
	for it, err := range s.Queue.List(r.Context(), o.filter) {
		if !out.line(line{Item: itemOf(it)}, err) {
			return
		}
	}
	out.end()
}

func (s *Server) control(w http.ResponseWriter, r *http.Request) {
	o, ok := s.order(w, r, "control")
	if !ok {
		return
	}
	c, err := s.Queue.Control(r.Context(), o.filter, o.command)
	s.done(w, r, o, o.command.Op.String(), c, err)
}

func (s *Server) bounce(w http.ResponseWriter, r *http.Request) {
	o, ok := s.order(w, r, "bounce")
	if !ok {
		return
	}
	c, err := s.Queue.Bounce(r.Context(), o.filter, o.status)
	s.done(w, r, o, "bounce", c, err)
}

// done logs and answers what a command did.
func (s *Server) done(w http.ResponseWriter, r *http.Request, o order, op string, c queue.Changed, err error) {
	p := peerFrom(r.Context())
	filter, _ := json.Marshal(filterOf(o.filter)) // with what was asked for only
	level, args := slog.LevelInfo, []any{"op", op, "uid", p.uid, "pid", p.pid, "filter", string(filter),
		"matched", c.Matched, "changed", c.Changed, "leased", c.Leased}
	if o.command.Reason != "" {
		args = append(args, "reason", o.command.Reason)
	}
	if o.command.Route != "" {
		args = append(args, "route", o.command.Route)
	}
	if err != nil {
		level, args = slog.LevelWarn, append(args, "err", err)
	}
	s.logger().Log(r.Context(), level, "control: command", args...)
	code, answer := http.StatusOK, changedOf(c)
	if err != nil {
		answer.Error = failureOf(err)
		code = answer.Error.http()
	}
	s.reply(w, code, answer)
}

func (s *Server) content(w http.ResponseWriter, r *http.Request) {
	body, err := s.open(r.Context(), mailspine.MsgID(r.PathValue("id")))
	if err != nil {
		s.fail(w, err)
		return
	}
	defer body.Close()
	out := s.stream(w, "message/rfc822")
	// Not by its size: asking for that means a Seek, and a reader that is read from one end to the
	// other may check what it reads.
	_, err = io.Copy(out.w, body)
	if err == nil {
		err = out.w.Flush()
	}
	if err != nil {
		s.logger().Warn("control: content did not get through", "id", r.PathValue("id"), "err", err)
		panic(http.ErrAbortHandler) // net/http's way to cut the answer off, so that it is not taken for whole
	}
}

func (s *Server) open(ctx context.Context, id mailspine.MsgID) (io.ReadCloser, error) {
	if err := id.Validate(); err != nil { // the ID is part of a URL, and of nothing else
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	if s.Open != nil {
		return s.Open(ctx, id)
	}
	switch q := s.Queue.(type) {
	case *Client:
		return q.Open(ctx, id)
	case *queue.Queue:
		if q.Store == nil {
			return nil, queue.ErrNoStore
		}
		return q.Store.Open(ctx, id)
	}
	return nil, fmt.Errorf("control: this server does not show content: %w", errors.ErrUnsupported)
}
