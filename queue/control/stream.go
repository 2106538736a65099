package control

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"time"
)

// A stream is an answer of any length. It goes out in pieces of 32 KiB, and a client that takes none for
// the time-out is cut off, so that it keeps nothing from ending.
type stream struct {
	s     *Server
	http  http.ResponseWriter
	w     *bufio.Writer
	json  *json.Encoder
	lines int64
}

func (s *Server) stream(w http.ResponseWriter, contentType string) *stream {
	w.Header().Set("Content-Type", contentType)
	bw := bufio.NewWriterSize(&timedWriter{w, http.NewResponseController(w), s.writeTimeout()}, 32<<10)
	return &stream{s: s, http: w, w: bw, json: encoder(bw)}
}

func encoder(w io.Writer) *json.Encoder {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // addresses in <> stay readable
	return e
}

// line adds a line, or ends the stream with an error. It reports whether to go on.
func (st *stream) line(l line, err error) bool {
	if err == nil {
		if err = st.json.Encode(l); err == nil {
			st.lines++
			return true
		}
		if st.w.Flush() != nil {
			return false // the client is gone, or takes nothing
		}
	}
	if st.lines == 0 {
		st.s.fail(st.http, err) // nothing was sent yet: an error like any other
		return false
	}
	_ = st.json.Encode(line{Error: failureOf(err)})
	_ = st.w.Flush()
	return false
}

func (st *stream) end() {
	_ = st.json.Encode(line{End: true})
	_ = st.w.Flush()
}

// A timedWriter gives each write its own time.
type timedWriter struct {
	w       io.Writer
	rc      *http.ResponseController
	timeout time.Duration
}

func (t *timedWriter) Write(p []byte) (int, error) {
	_ = t.rc.SetWriteDeadline(time.Now().Add(t.timeout))
	return t.w.Write(p)
}

func newInfo(started time.Time) Info {
	i := Info{Protocol: 1, PID: os.Getpid(), UID: os.Getuid(), Started: started.UTC()}
	if b, ok := debug.ReadBuildInfo(); ok {
		i.Version = b.Main.Version
	}
	return i
}
