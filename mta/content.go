package mta

import (
	"context"
	"net"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// What the Relay says in SMTP is said by smtpclient.
type (
	reply    = smtpclient.Reply
	tlsError = smtpclient.TLSError
)

// A contentFacts is what the transfer of a message depends on.
type contentFacts struct {
	msg         *smtpclient.Message // sent by one session at a time: the commands of a flight are written before it, in its memory
	bare        bool                // has a bare CR or LF: can be sent as BINARYMIME only
	tlsOptional bool                // its header says "TLS-Required: No" (RFC 8689 section 3)
}

// inspect reads a message once. buf is what a small message may be kept in, if it has the room; it is nil, or the buffer of
// one that is not needed any more.
func inspect(ctx context.Context, msg mailspine.Content, buf []byte) (contentFacts, error) {
	m, err := smtpclient.Prepare(ctx, msg, buf)
	if err != nil {
		return contentFacts{}, err
	}
	return contentFacts{msg: m, bare: m.BareLineEnd, tlsOptional: m.TLSOptional}, nil
}

// buffer returns the memory of a message that is not needed any more; nil: there is none.
func (f contentFacts) buffer() []byte {
	if f.msg == nil {
		return nil
	}
	return f.msg.Buffer()
}

var errBareLineEnd = mailspine.Errorf(554, "5.6.0", "The message has a CR or LF that is not part of a CRLF, and cannot be sent unchanged")

// client makes the client of a connection.
func (t *transfer) client(conn net.Conn, peer string) *smtpclient.Client {
	return smtpclient.New(conn, &smtpclient.Options{
		LMTP: t.fixed != nil && t.fixed.lmtp,
		Peer: peer, NoPipelining: t.r.NoPipelining, NoChunking: t.r.NoChunking,
		Timeouts: smtpclient.Timeouts{
			Greeting: t.times.Greeting, Hello: t.times.Hello, TLS: t.times.TLS, Auth: t.times.Hello,
			Mail: t.times.Mail, Rcpt: t.times.Rcpt, Data: t.times.Data,
			DataBlock: t.times.DataBlock, DataDone: t.times.DataDone, Quit: t.times.Quit, Total: t.times.Total,
		},
	})
}

func localAddr(conn interface{ LocalAddr() net.Addr }) string {
	if a := conn.LocalAddr(); a != nil {
		return a.String()
	}
	return ""
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// clean makes a stranger's text safe to be shown.
func clean(s string) string { return smtpclient.Clean(s) }
