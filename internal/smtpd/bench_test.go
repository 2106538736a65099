package smtpd

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

// tenKB is a message of about 10 KB, as a client sends it.
func tenKB() []byte {
	return []byte("From: <ann@a.example>\r\nTo: <bob@b.example>\r\nSubject: ten\r\n\r\n" +
		strings.Repeat("A line of text as people write it, some seventy octets of it.\r\n", 160) + ".\r\n")
}

// BenchmarkData is reading a message, in the pieces in which a client on the same host sends it.
func BenchmarkData(b *testing.B) {
	s := &Server{}
	s.init()
	c := &Conn{server: s}
	d := &dribble{sizes: []int{1 << 20}}
	c.raw = d
	c.attach(d)
	c.inData = true
	msg := tenKB()
	buf := make([]byte, dataBuffer)
	b.SetBytes(int64(len(msg)))
	b.ReportAllocs()
	for b.Loop() {
		d.in = msg
		m := c.dataMessage()
		for err := error(nil); err == nil; {
			_, err = m.Read(buf)
		}
		if !m.whole {
			b.Fatal(m.verdict, m.failed)
		}
	}
}

// BenchmarkMessage is a message over a TCP connection, from MAIL to the reply, and with a connection for each.
func BenchmarkMessage(b *testing.B) {
	for _, each := range []bool{false, true} {
		b.Run(map[bool]string{false: "kept", true: "connect"}[each], func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			door := &Door{Next: mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return nil })}
			s := &Server{Hostname: "mx.example", Limits: Limits{MaxCommands: -1}, Logger: slog.New(slog.DiscardHandler),
				Handler: HandlerFunc(func(context.Context, *Conn) (Session, error) { return benchSession{door}, nil })}
			served := make(chan struct{})
			go func() {
				defer close(served)
				s.Serve(l)
			}()
			defer func() {
				s.Close()
				<-served
			}()
			msg := tenKB()
			buf := make([]byte, 1024)
			var nc net.Conn
			talk := func(out []byte) {
				if _, err := nc.Write(out); err != nil {
					b.Fatal(err)
				}
				if _, err := nc.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
			dial := func() {
				if nc, err = net.Dial("tcp", l.Addr().String()); err != nil {
					b.Fatal(err)
				}
				nc.SetDeadline(time.Now().Add(5 * time.Minute))
				if _, err := nc.Read(buf); err != nil {
					b.Fatal(err)
				}
				talk([]byte("EHLO client.example\r\n"))
			}
			quit := func() {
				talk([]byte("QUIT\r\n"))
				nc.Close()
			}
			mail, rcpt, data := []byte("MAIL FROM:<ann@a.example>\r\n"), []byte("RCPT TO:<bob@b.example>\r\n"), []byte("DATA\r\n")
			b.ReportAllocs()
			if !each {
				dial()
			}
			for b.Loop() {
				if each {
					dial()
				}
				talk(mail)
				talk(rcpt)
				talk(data)
				talk(msg)
				if each {
					quit()
				}
			}
			if !each {
				quit()
			}
			if n := s.Stats().Messages; n < int64(b.N) {
				b.Errorf("%d of %d taken", n, b.N)
			}
		})
	}
}

type benchSession struct{ door *Door }

func (t benchSession) Mail(context.Context, *Transaction) error { return nil }
func (t benchSession) Rcpt(context.Context, *Transaction, *mailspine.Recipient) error {
	return nil
}
func (t benchSession) Data(ctx context.Context, tx *Transaction, r io.Reader) (string, error) {
	return t.door.Take(ctx, tx, r, func(_ context.Context, env *mailspine.Envelope, msg mailspine.Content, _ *mailspine.Header) (mailspine.Content, error) {
		return mailspine.Prepend(msg, Received(env, "mx.example", time.Now())), nil
	})
}
func (t benchSession) Reset() {}
func (t benchSession) Close() {}
