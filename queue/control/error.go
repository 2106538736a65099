package control

import (
	"errors"
	"net/http"
	"syscall"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// The errors of this package, matched with errors.Is. A Client's errors also match those of package
// queue, errors.ErrUnsupported and syscall.ENOSPC if the server's did, and mailspine.Status answers the same to
// them as to the server's.
var (
	// ErrNoServer: there is no socket, or nobody behind it.
	ErrNoServer = errors.New("control: no server")
	// ErrForbidden: the server does not let this user in.
	ErrForbidden = errors.New("control: not allowed")
	// ErrBadRequest: the server does not understand. A newer client may want what an older server does not know.
	ErrBadRequest = errors.New("control: bad request")
)

// The classes of errors, and what they are in HTTP. The first that matches counts.
var classes = []struct {
	name string
	err  error
	code int
}{
	{"bad_request", ErrBadRequest, http.StatusBadRequest},
	{"bad_filter", queue.ErrBadFilter, http.StatusBadRequest},
	{"bad_command", queue.ErrBadCommand, http.StatusBadRequest},
	{"forbidden", ErrForbidden, http.StatusForbidden},
	{"not_found", queue.ErrNotFound, http.StatusNotFound},
	{"unsupported", errors.ErrUnsupported, http.StatusNotImplemented},
	{"closed", queue.ErrClosed, http.StatusServiceUnavailable},
	{"no_store", queue.ErrNoStore, http.StatusServiceUnavailable},
	{"not_running", queue.ErrNotRunning, http.StatusServiceUnavailable},
	{"no_space", syscall.ENOSPC, http.StatusInsufficientStorage},
} // never written

// A failure is an error on its way to a client.
type failure struct {
	Class    string                 `json:"class"`
	Message  string                 `json:"message"`
	Code     int                    `json:"code,omitempty"`
	Enhanced mailspine.EnhancedCode `json:"enhanced,omitzero"`
	Reply    string                 `json:"reply,omitempty"`
}

func failureOf(err error) *failure {
	st := mailspine.Status(err)
	f := &failure{Class: "failed", Message: err.Error(), Code: st.Code, Enhanced: st.Enhanced, Reply: st.Message}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			f.Class = c.name
			break
		}
	}
	return f
}

// http returns what a failure is in HTTP.
func (f *failure) http() int {
	for _, c := range classes {
		if c.name == f.Class {
			return c.code
		}
	}
	return http.StatusInternalServerError
}

// error makes an error of it again.
func (f *failure) error() error {
	e := &remoteError{text: f.Message}
	for _, c := range classes {
		if c.name == f.Class {
			e.is = append(e.is, c.err)
		}
	}
	if f.Code != 0 {
		e.is = append(e.is, &mailspine.Error{Code: f.Code, Enhanced: f.Enhanced, Message: f.Reply})
	}
	if e.text == "" {
		e.text = "control: the server failed, and does not say why"
	}
	return e
}

// A remoteError is an error of the server.
type remoteError struct {
	text string
	is   []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.is }
