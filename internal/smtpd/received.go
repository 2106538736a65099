package smtpd

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// Received returns the trace field for a message that by took (RFC 5321 section
// 4.4): from whom, with which protocol (RFC 3848) and TLS, under which ID, when,
// and for whom if there is one recipient only, lest one learn of the others.
// proto and TLS come from env.Origin; a HELO that is no domain becomes "unknown".
func Received(env *mailspine.Envelope, by string, now time.Time) []byte {
	o := env.Origin
	b := make([]byte, 0, 256)
	b = append(b, "Received: from "...)
	b = append(b, traceName(o.Helo, env.UTF8)...)
	if a := o.Addr.Addr(); a.IsValid() {
		a = a.WithZone("")
		if b = append(b, " (["...); !a.Unmap().Is4() {
			b = append(b, "IPv6:"...)
		}
		b = append(a.Unmap().AppendTo(b), "])"...)
	}
	b = append(b, "\r\n\tby "...)
	b = append(b, traceName(by, env.UTF8)...)
	if o.Proto != "" {
		b = append(b, " with "...)
		b = append(b, traceName(o.Proto, false)...)
	}
	if o.TLS.Version != "" {
		b = append(b, "\r\n\t("...)
		b = append(b, comment(o.TLS.Version+" "+o.TLS.Cipher)...)
		b = append(b, ')')
	}
	b = append(b, "\r\n\tid "...)
	b = append(b, traceName(string(env.ID), false)...)
	if len(env.Recipients) == 1 {
		if a := env.Recipients[0].Address; a.IsASCII() || env.UTF8 {
			b = append(b, "\r\n\tfor "...)
			b = append(b, a.Path()...)
		}
	}
	b = append(b, ";\r\n\t"...)
	b = now.AppendFormat(b, "Mon, 02 Jan 2006 15:04:05 -0700")
	return append(b, "\r\n"...)
}

// HeaderEnds reports whether msg's header block h ends properly, with an empty line or
// with the message. Where it ends with a line that is no field, programs disagree about
// what is header.
func HeaderEnds(ctx context.Context, msg mailspine.Content, h *mailspine.Header) (bool, error) {
	r, err := msg.Open(ctx)
	if err != nil {
		return false, err
	}
	defer r.Close()
	if sk, ok := r.(io.Seeker); ok {
		_, err = sk.Seek(h.Body, io.SeekStart)
	} else {
		_, err = io.CopyN(io.Discard, r, h.Body)
	}
	if err != nil {
		return false, err
	}
	var next [2]byte
	n, err := io.ReadFull(r, next[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return false, err
	}
	return n == 0 || string(next[:n]) == "\r\n", nil
}

// traceName makes sure that nothing foreign breaks the syntax of the field.
func traceName(s string, utf8 bool) string {
	if !validHelo(s) || !utf8 && printable(s) != s {
		return "unknown"
	}
	return s
}

func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '(' || r == ')' || r == '\\' {
			return '?'
		}
		return r
	}, printable(strings.TrimSpace(s)))
}
