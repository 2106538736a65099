package tlsrpt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/dial"
)

// maxAnswer bounds what is read of the answer to a POST, in octets. Nothing in it matters.
const maxAnswer = 64 << 10

// A hopelessError is a refusal for good.
type hopelessError struct{ err error }

func (e *hopelessError) Error() string { return e.err.Error() }
func (e *hopelessError) Unwrap() error { return e.err }

func permanent(err error) bool {
	var h *hopelessError
	return errors.As(err, &h) || errors.Is(err, dial.ErrForbidden)
}

// mail hands a report to Mail for one destination (RFC 8460 section 5.3).
func (r *Reporter) mail(ctx context.Context, rep *Report, domain string, d Destination) error {
	sum := sha256.Sum256([]byte(rep.ID + "\n" + d.URI))
	// The same at each try, so that a queue which has it already takes it for what it is.
	id := mailspine.MsgID("tlsrpt-" + hex.EncodeToString(sum[:16]))
	m := &Message{
		From: r.From, To: d.Address, Domain: domain, Submitter: r.submitter(), Date: r.now(),
		MessageID: string(id) + "@" + r.submitter(), Report: rep,
	}
	b, err := m.Bytes()
	if err != nil {
		return err
	}
	env := &mailspine.Envelope{
		ID: id, From: r.From,
		// Nobody reads what came of it, and a notification of a notification is a loop.
		Recipients: []mailspine.Recipient{{Address: d.Address, Notify: mailspine.NotifyNever}},
		Origin:     mailspine.Origin{Time: m.Date},
		Meta:       map[string]string{metaReport: rep.ID},
	}
	err = mailspine.ErrorAt(r.Mail.Deliver(ctx, env, mailspine.BytesContent(b)), 0)
	if s := mailspine.Status(err); s != nil && !s.Temporary() {
		return &hopelessError{err}
	}
	return err
}

// post sends a report to a https destination (RFC 8460 section 5.4), within a time.
func (r *Reporter) post(ctx context.Context, rep *Report, d Destination, within time.Duration) error {
	b, err := rep.Gzip()
	if err != nil {
		return err
	}
	g := &dial.Guard{AllowPrivate: r.AllowPrivate, Resolver: r.Resolver}
	// A redirect is not followed: who moved says so in the record.
	client := g.HTTPClient(&dial.HTTPOptions{Roots: r.Roots, Timeout: within, MaxResponse: maxAnswer})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URI, bytes.NewReader(b))
	if err != nil {
		return &hopelessError{err}
	}
	req.Header.Set("Content-Type", MediaTypeGzip)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body) // bounded; what it says, and whether it breaks off, changes nothing
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return nil
	}
	err = fmt.Errorf("answered %d", resp.StatusCode)
	switch c := resp.StatusCode; {
	case c == http.StatusRequestTimeout, c == http.StatusTooEarly, c == http.StatusTooManyRequests:
	case c >= 400 && c <= 499:
		return &hopelessError{err}
	}
	return err
}
