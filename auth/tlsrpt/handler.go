package tlsrpt

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"mime"
	"net/http"
	"sync/atomic"
	"time"
)

// The defaults of a Handler; the second one is an Intake's, too.
const (
	DefaultReadTimeout = time.Minute
	DefaultConcurrent  = 4
)

// A Handler is the receiving side of a https destination (RFC 8460 section 5.4): it takes the reports that are posted to it and hands
// them to Handle. It answers 201 when Handle has taken one. A POST says nothing about who made it: what is
// reported this way is a stranger's claim.
//
// Otherwise it answers 405 to another method, 415 to another type or encoding, 413 to what is over MaxCompressed (or MaxReport, for
// one that is not compressed, and unpacked), 400 to what is no report, and 503 when Handle fails or too many are under way; texts of errors are
// in the log only. It is safe for concurrent use; its fields must not change once it is in use.
type Handler struct {
	Handle Sink // required
	// ReadTimeout bounds the reading of a request's body; 0: DefaultReadTimeout.
	ReadTimeout time.Duration
	// Concurrent bounds the reports that are read and handled at a time, since each is held in memory; 0: DefaultConcurrent.
	Concurrent int
	Logger     *slog.Logger // nil: slog.Default()

	under atomic.Int64
}

var _ http.Handler = (*Handler)(nil)

func (h *Handler) logger() *slog.Logger {
	if h.Logger != nil {
		return h.Logger
	}
	return slog.Default()
}

// ServeHTTP takes a report.
func (h *Handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	status, err := h.serve(w, req)
	level := slog.LevelInfo
	if status >= 500 {
		level = slog.LevelError
	}
	if err != nil {
		h.logger().Log(req.Context(), level, "tlsrpt: posted report is not taken", "remote", req.RemoteAddr, "status", status, "err", err)
	}
	head := w.Header()
	switch status {
	case http.StatusMethodNotAllowed:
		head.Set("Allow", http.MethodPost)
	case http.StatusServiceUnavailable:
		head.Set("Retry-After", "900")
	}
	if status == http.StatusCreated {
		w.WriteHeader(status)
		return
	}
	http.Error(w, http.StatusText(status), status)
}

func (h *Handler) serve(w http.ResponseWriter, req *http.Request) (status int, err error) {
	if req.Method != http.MethodPost {
		return http.StatusMethodNotAllowed, errors.New("method is not POST")
	}
	kind, _, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
	limit := int64(MaxReport)
	switch kind {
	case MediaTypeGzip, "application/gzip", "application/x-gzip":
		limit = MaxCompressed
	case MediaTypeJSON, "application/json":
	default:
		return http.StatusUnsupportedMediaType, errors.Join(errors.New("not the type of a report"), err)
	}
	switch req.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip", "x-gzip": // some compress what they call JSON; the octets tell
		limit = MaxCompressed
	default:
		return http.StatusUnsupportedMediaType, errors.New("unknown Content-Encoding")
	}
	if h.Handle == nil {
		return http.StatusServiceUnavailable, errors.New("tlsrpt: Handler.Handle is nil")
	}
	if req.ContentLength > limit {
		return http.StatusRequestEntityTooLarge, ErrTooLarge
	}
	defer h.under.Add(-1)
	if h.under.Add(1) > int64(cmp.Or(max(h.Concurrent, 0), DefaultConcurrent)) {
		return http.StatusServiceUnavailable, errors.New("too many at a time")
	}
	timeout := cmp.Or(max(h.ReadTimeout, 0), DefaultReadTimeout)
	// A server that has no deadlines (a test's) has time-outs of its own or none.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(timeout))
	rep, err := ParseReport(http.MaxBytesReader(w, req.Body, limit))
	var tooLong *http.MaxBytesError
	switch {
	case errors.Is(err, ErrTooLarge), errors.As(err, &tooLong):
		return http.StatusRequestEntityTooLarge, err
	case err != nil:
		return http.StatusBadRequest, err // or it was not read to the end, and nobody hears this
	}
	// Who has sent a whole report may hang up: it is handled all the same, within time.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), timeout)
	defer cancel()
	if err := h.Handle(ctx, &Received{Report: rep, Remote: req.RemoteAddr}); err != nil {
		return http.StatusServiceUnavailable, err
	}
	return http.StatusCreated, nil
}
