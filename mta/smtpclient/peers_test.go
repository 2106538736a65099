package smtpclient_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/peertest"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

const peerMessage = "From: Joe <joe@example.org>\r\nTo: ann@example.net\r\nSubject: hello\r\nMessage-ID: <1@example.org>\r\n" +
	"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\n\r\n.\r\n..dots\r\nGr\u00fc\u00dfe\r\n"

// dialed opens a session with a server on loopback, under TLS.
func dialed(t *testing.T, addr string, config *tls.Config, o *smtpclient.Options) *smtpclient.Client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := smtpclient.New(conn, o)
	t.Cleanup(func() { c.Close() })
	ctx := t.Context()
	if r, err := c.Greeting(ctx); err != nil || r.Code != 220 {
		t.Fatal(r, err)
	}
	if r, err := c.Hello(ctx, "client.example.org"); err != nil || !r.OK() {
		t.Fatal(r, err)
	}
	if config != nil {
		if r, err := c.StartTLS(ctx, config); err != nil || !r.OK() {
			t.Fatal(r, err)
		}
		if r, err := c.Hello(ctx, "client.example.org"); err != nil || !r.OK() {
			t.Fatal(r, err)
		}
	}
	return c
}

func to(who ...string) *mailspine.Envelope {
	env := &mailspine.Envelope{ID: "01TEST", From: mailspine.Address{Local: "joe", Domain: "example.org"}, Body: mailspine.Body8Bit}
	for _, w := range who {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: w, Domain: "example.net"}})
	}
	return env
}

// Postfix takes messages in one flight, in every way of sending, with recipients that it refuses among others, all or none; what arrives is the
// same.
func TestPostfix(t *testing.T) {
	cert := peertest.SelfSigned(t, "mx.example.net")
	p := peertest.StartPostfix(t, peertest.PostfixConfig{
		Hostname: "mx.example.net", Domains: []string{"example.net"},
		Settings: map[string]string{
			"smtpd_tls_cert_file": cert.CertFile, "smtpd_tls_key_file": cert.KeyFile, "smtpd_tls_security_level": "may",
			"smtpd_recipient_restrictions": "check_recipient_access inline:{{nobody@example.net = 550 5.1.1 no such user}}, permit",
			"smtpd_sender_restrictions":    "check_sender_access inline:{{bad@example.org = 550 5.1.8 no such sender}}",
		},
	})
	big := peerMessage + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 2000)
	sent := 0
	for _, o := range []smtpclient.Options{{}, {NoPipelining: true}, {NoChunking: true}, {NoPipelining: true, NoChunking: true}} {
		c := dialed(t, p.Addr, &tls.Config{ServerName: "mx.example.net", RootCAs: cert.Pool}, &o)
		if !c.Has("CHUNKING") || !c.Has("PIPELINING") {
			t.Fatal("Postfix offers neither")
		}
		for _, tt := range []struct {
			from string
			to   []string
			msg  string
			want []smtpclient.State
		}{
			{"joe", []string{"ann"}, peerMessage, []smtpclient.State{smtpclient.Taken}},
			{"joe", []string{"nobody", "ann", "nobody"}, peerMessage, []smtpclient.State{smtpclient.Refused, smtpclient.Taken, smtpclient.Refused}},
			{"joe", []string{"nobody"}, peerMessage, []smtpclient.State{smtpclient.Refused}},
			{"joe", []string{"ann"}, strings.TrimSuffix(peerMessage, "\r\n"), []smtpclient.State{smtpclient.Taken}},
			{"bad", []string{"ann"}, peerMessage, []smtpclient.State{smtpclient.Refused}},
			{"joe", []string{"ann"}, big, []smtpclient.State{smtpclient.Taken}},
			{"joe", []string{"nobody"}, big, []smtpclient.State{smtpclient.Refused}},
			{"joe", []string{"ann"}, peerMessage, []smtpclient.State{smtpclient.Taken}},
		} {
			env := to(tt.to...)
			env.From.Local = tt.from
			msg, err := smtpclient.Prepare(t.Context(), mailspine.StringContent(tt.msg), nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := c.Send(t.Context(), &smtpclient.Transaction{Env: env, Msg: msg})
			if err != nil || !c.InStep() {
				t.Fatalf("%+v, %+v: %v", o, tt.to, err)
			}
			var got []smtpclient.State
			for _, oc := range res.Outcomes {
				got = append(got, oc.State)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%+v, %s to %v: %v, want %v", o, tt.from, tt.to, got, tt.want)
			}
			if slices.Contains(tt.want, smtpclient.Taken) {
				sent++
			}
		}
		if err := c.Quit(t.Context()); err != nil {
			t.Error(err)
		}
	}
	bigs := 0
	for _, got := range p.Messages(t, sent) {
		got = strings.ReplaceAll(got, "\n", "\r\n")
		switch {
		case strings.HasSuffix(got, big):
			bigs++
		case !strings.HasSuffix(got, peerMessage):
			t.Errorf("arrived:\n%.2000s", got)
		}
	}
	if bigs != 4 {
		t.Errorf("%d large messages arrived whole", bigs)
	}
}

// go-smtp's server: AUTH, BINARYMIME, LIMITS, and LMTP with a result for each recipient.
func TestGoSMTP(t *testing.T) {
	for _, lmtp := range []bool{false, true} {
		be := &backend{lmtp: lmtp}
		srv := smtp.NewServer(be)
		srv.Domain, srv.EnableBINARYMIME, srv.EnableSMTPUTF8, srv.LMTP, srv.MaxRecipients = "mx.example.net", true, true, lmtp, 3
		srv.ReadTimeout, srv.WriteTimeout = time.Minute, time.Minute
		cert := peertest.SelfSigned(t, "mx.example.net")
		srv.TLSConfig = cert.Config
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { srv.Serve(l) })
		c := dialed(t, l.Addr().String(), &tls.Config{ServerName: "mx.example.net", RootCAs: cert.Pool}, &smtpclient.Options{LMTP: lmtp})
		if err := c.Auth(t.Context(), &smtpclient.Credentials{Username: "joe", Password: "wrong"}); mailspine.Status(err) == nil || mailspine.Status(err).Temporary() {
			t.Errorf("a wrong password: %v", err)
		}
		if err := c.Auth(t.Context(), &smtpclient.Credentials{Username: "joe", Password: "secret"}); err != nil {
			t.Fatal(err)
		}
		if c.Limits().RcptMax != 3 {
			t.Errorf("limits: %+v", c.Limits())
		}
		env := to("a", "nobody", "b", "c")
		env.Body = mailspine.BodyBinary
		binary := "Subject: x\r\n\r\n\x00\n\r.\r\n.\xff"
		msg, err := smtpclient.Prepare(t.Context(), mailspine.StringContent(binary), nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Send(t.Context(), &smtpclient.Transaction{Env: env, Msg: msg})
		if err != nil {
			t.Fatal(err)
		}
		want := []smtpclient.State{smtpclient.Taken, smtpclient.Refused, smtpclient.Taken, smtpclient.Open}
		if lmtp {
			want[2] = smtpclient.Refused
		}
		for i, o := range res.Outcomes {
			if o.State != want[i] {
				t.Errorf("LMTP %v, %d: %+v", lmtp, i, o)
			}
		}
		if len(be.got) != 1 || !bytes.Equal(be.got[0], []byte(binary)) {
			t.Errorf("LMTP %v: the server got %q", lmtp, be.got)
		}
		if err := c.Quit(t.Context()); err != nil {
			t.Error(err)
		}
		srv.Close()
		wg.Wait()
	}
}

type backend struct {
	lmtp bool
	got  [][]byte
}

func (b *backend) NewSession(*smtp.Conn) (smtp.Session, error) {
	s := &session{b: b}
	if b.lmtp {
		return lmtpSession{s}, nil
	}
	return s, nil
}

type session struct{ b *backend }

func (*session) AuthMechanisms() []string { return []string{sasl.Plain} }
func (*session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != "joe" || password != "secret" {
			return smtp.ErrAuthFailed
		}
		return nil
	}), nil
}
func (*session) Mail(string, *smtp.MailOptions) error { return nil }
func (*session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if strings.HasPrefix(to, "nobody@") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	}
	return nil
}
func (s *session) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	s.b.got = append(s.b.got, b)
	return err
}
func (*session) Reset()        {}
func (*session) Logout() error { return nil }

type lmtpSession struct{ *session }

func (s lmtpSession) LMTPData(r io.Reader, status smtp.StatusCollector) error {
	if err := s.Data(r); err != nil {
		return err
	}
	status.SetStatus("a@example.net", nil)
	status.SetStatus("b@example.net", &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 2, 2}, Message: "over quota"})
	return nil
}
