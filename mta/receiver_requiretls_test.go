package mta

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// talkTLS is talk behind STARTTLS and a second EHLO, with whole replies.
func talkTLS(t testing.TB, addr string, commands ...string) []string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { conn.Close() }()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	br := bufio.NewReader(conn)
	reply := func() string {
		var b strings.Builder
		for {
			line, err := br.ReadString('\n')
			b.WriteString(line)
			if err != nil || len(line) < 4 || line[3] != '-' {
				return b.String()
			}
		}
	}
	reply()
	fmt.Fprint(conn, "EHLO helo.example\r\n")
	if r := reply(); strings.Contains(r, "REQUIRETLS") {
		t.Errorf("REQUIRETLS is offered in the clear: %s", r)
	}
	fmt.Fprint(conn, "STARTTLS\r\n")
	reply()
	tc := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	conn, br = tc, bufio.NewReader(tc)
	var replies []string
	for _, c := range append([]string{"EHLO helo.example"}, commands...) {
		if !strings.HasSuffix(c, "\r\n") {
			c += "\r\n"
		}
		io.WriteString(conn, c)
		replies = append(replies, reply())
	}
	return replies
}

// RFC 8689 section 2, at port 25.
func TestReceiverRequireTLS(t *testing.T) {
	certs := newCA(t).server(t, "mx1.here.example")
	receiver := func(next mailspine.Deliverer) *Receiver {
		r := newReceiverFor(next)
		r.TLSConfig = certs
		return r
	}
	next := &sink{}
	addr := serve(t, receiver(next))
	msg := "From: a@good.example\r\nTLS-Required: No\r\n\r\nx\r\n.\r\n"
	r := talkTLS(t, addr, "MAIL FROM:<a@good.example> REQUIRETLS", "RCPT TO:<bob@here.example>", "DATA", msg, "MAIL FROM:<a@good.example>", "RCPT TO:<bob@here.example>", "DATA", msg)
	if !strings.Contains(r[0], "250-REQUIRETLS\r\n") {
		t.Errorf("not offered: %q", r[0])
	}
	got := next.all()
	if len(got) != 2 || !got[0].env.RequireTLS || got[1].env.RequireTLS {
		t.Fatalf("%d messages: %+v\n%q", len(got), got, r)
	}
	if !strings.Contains(got[0].msg, "\r\nTLS-Required: No\r\n") {
		t.Errorf("the field is gone:\n%s", got[0].msg)
	}
	if r := talk(t, addr, "EHLO helo.example", "MAIL FROM:<a@good.example> REQUIRETLS"); !strings.HasPrefix(r[2], "530 5.7.10 ") {
		t.Errorf("in the clear: %q", r)
	}
	off := receiver(next)
	off.NoRequireTLS = true
	r = talkTLS(t, serve(t, off), "MAIL FROM:<a@good.example> REQUIRETLS")
	if strings.Contains(r[0], "REQUIRETLS") || !strings.HasPrefix(r[1], "555 5.5.4 ") {
		t.Errorf("off: %q", r)
	}
	without := newReceiverFor(next)
	if r := talk(t, serve(t, without), "EHLO helo.example", "MAIL FROM:<a@good.example> REQUIRETLS"); r[2][0] != '5' {
		t.Errorf("without a certificate: %q", r)
	}
}

// From the door through a queue on disk that is closed and opened again, to the next hop; and into the report of what fails there, which
// needs TLS as well and has no more than the header (RFC 8689 section 5).
func TestRequireTLSThroughQueue(t *testing.T) {
	dir := t.TempDir()
	quiet := slog.New(slog.DiscardHandler)
	open := func() *filequeue.Store {
		s, err := filequeue.Open(dir, &filequeue.Options{Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	store := open()
	r := newReceiverFor(&queue.Queue{Store: store, Logger: quiet})
	r.TLSConfig = newCA(t).server(t, "mx1.here.example")
	addr := serve(t, r)
	if got := talkTLS(t, addr, "MAIL FROM:<a@good.example> REQUIRETLS RET=FULL", "RCPT TO:<bob@here.example>", "DATA", "From: a@good.example\r\nSubject: secret plan\r\n\r\nthe body\r\n.\r\n"); !strings.HasPrefix(got[len(got)-1], "250 ") {
		t.Fatalf("%q", got)
	}
	r.Close()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	store = open()
	defer store.Close()
	type report struct {
		env *mailspine.Envelope
		msg string
	}
	reports, tried := make(chan report, 1), make(chan bool, 1)
	q := &queue.Queue{
		Store: store, Logger: quiet, Hostname: "q.example",
		Next: mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
			tried <- env.RequireTLS
			return mailspine.Errorf(550, "5.7.30", "REQUIRETLS is not offered")
		}),
		Notifications: mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
			b, err := mailspine.ReadContent(ctx, msg, 1<<20)
			reports <- report{env.Clone(), string(b)}
			return err
		}),
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	select {
	case require := <-tried:
		if !require {
			t.Error("the store has forgotten RequireTLS")
		}
	case <-ctx.Done():
		t.Fatal("nothing was delivered")
	}
	select {
	case rep := <-reports:
		if !rep.env.RequireTLS || !rep.env.From.IsZero() {
			t.Errorf("the report's envelope: %+v", rep.env)
		}
		if !strings.Contains(rep.msg, "Subject: secret plan") || strings.Contains(rep.msg, "the body") || !strings.Contains(rep.msg, "text/rfc822-headers") {
			t.Errorf("the report:\n%s", rep.msg)
		}
	case <-ctx.Done():
		t.Fatal("nothing was reported")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Both directions together: the Relay asks a Receiver for what it offers. One that offers no TLS, or not REQUIRETLS, gets no such message.
func TestRequireTLSRelayToReceiver(t *testing.T) {
	authority := newCA(t)
	certs := authority.server(t, "mx1.here.example")
	for _, tt := range []struct {
		name  string
		certs *tls.Config
		off   bool
		want  string
	}{
		{"offered", certs, false, ""},
		{"not offered", certs, true, "550 5.7.30"},
		{"no TLS", nil, false, "550 5.7.10"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next := &sink{}
			r := newReceiverFor(next)
			r.TLSConfig, r.NoRequireTLS = tt.certs, tt.off
			_, port, err := net.SplitHostPort(serve(t, r))
			if err != nil {
				t.Fatal(err)
			}
			relay := &Relay{
				Resolver: receiverZone(), Hostname: "out.sender.example", Logger: slog.New(slog.DiscardHandler), TLSConfig: &tls.Config{RootCAs: authority.pool},
			}
			defer relay.CloseIdle()
			way := &Smarthost{Relay: relay, Address: net.JoinHostPort("mx1.here.example", port)}
			for _, require := range []bool{true, false} {
				env := envelope(t, "ann@sender.example", "bob@here.example")
				env.RequireTLS = require
				err := mailspine.ErrorAt(way.Deliver(t.Context(), env, mailspine.StringContent(hello)), 0)
				if require {
					wantStatus(t, tt.name, err, tt.want)
				} else {
					wantStatus(t, tt.name+", not required", err, "")
				}
			}
			got := next.all()
			if ok := tt.want != "" && len(got) == 1 || len(got) == 2 && got[0].env.RequireTLS && !got[1].env.RequireTLS; !ok {
				t.Errorf("%d messages arrived: %+v", len(got), got)
			}
		})
	}
}
