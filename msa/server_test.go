package msa

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mailspine/mailspine"
)

func TestDialoguePlain(t *testing.T) {
	b := &box{}
	s := newServer(t, b)
	transcript(t, start(t, s, s.Serve), "plain")
	env, data := b.last(t)
	want := &mailspine.Envelope{
		From: mailspine.Address{Local: "Joe", Domain: "EXAMPLE.org"}, Ret: mailspine.RetHdrs, Body: mailspine.Body8Bit,
		Tenant: "acme", Stream: "bulk", Pool: "p1",
		Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "bob", Domain: "example.com"}}, {Address: mailspine.Address{Local: "cat", Domain: "example.net"}}},
		Origin:     mailspine.Origin{Helo: "client.example", Proto: "ESMTPSA", Login: "joe@example.org"},
	}
	if diff := cmp.Diff(want, env, cmpopts.IgnoreFields(mailspine.Envelope{}, "ID"), cmpopts.IgnoreFields(mailspine.Origin{}, "Addr", "Local", "Time", "TLS")); diff != "" {
		t.Error(diff)
	}
	if env.Origin.TLS.Version != "TLS 1.3" || !env.Origin.Addr.IsValid() || env.Origin.Time.IsZero() {
		t.Errorf("%+v", env.Origin)
	}
	id := string(env.ID)
	wantData := "Received: from client.example ([127.0.0.1])\r\n\tby mail.example.org with ESMTPSA\r\n\t(TLS 1.3 " + env.Origin.TLS.Cipher + ")\r\n" +
		"\tid " + id + ";\r\n\tWed, 04 Mar 2026 05:06:07 +0000\r\n" +
		"From: Joe <joe@example.org>\r\nTo: bob@example.com\r\nSubject: hello\r\n" +
		"Date: Wed, 04 Mar 2026 05:06:07 +0000\r\nMessage-ID: <" + id + "@mail.example.org>\r\n\r\nHello.\r\n"
	if diff := cmp.Diff(wantData, data); diff != "" {
		t.Error(diff)
	}
	if st := s.Stats(); st.AuthOK != 1 || st.AuthBad != 2 || st.Messages != 1 {
		t.Errorf("%+v", st)
	}
}

func TestDialogueLogin(t *testing.T) {
	s := newServer(t, &box{})
	s.Limits.MaxAuthFailures = 5
	transcript(t, start(t, s, s.ServeTLS), "login")
}

// AUTH without TLS, and a relay attempt without AUTH.
func TestDialogueCleartext(t *testing.T) {
	b := &box{}
	s := newServer(t, b)
	transcript(t, start(t, s, s.Serve), "cleartext")
	if b.count() != 0 || s.Stats().AuthOK != 0 {
		t.Error("something came through")
	}
}

// A real client.
func TestGoSMTPClient(t *testing.T) {
	b := &box{}
	s := newServer(t, b)
	c, err := smtp.DialStartTLS(start(t, s, s.Serve), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, client := range []sasl.Client{sasl.NewPlainClient("other", "joe@example.org", "sesame"), sasl.NewLoginClient("joe@example.org", "open")} {
		if err := c.Auth(client); err == nil {
			t.Error("logged in")
		}
	}
	if err := c.Auth(sasl.NewLoginClient("joe@example.org", "sesame")); err != nil {
		t.Fatal(err)
	}
	msg := "From: joe@example.org\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\nMessage-ID: <1@x>\r\n\r\n.dots\r\n..\r\n"
	if err := c.SendMail("joe@example.org", []string{"bob@example.com"}, strings.NewReader(msg)); err != nil {
		t.Fatal(err)
	}
	_, data := b.last(t)
	if !strings.HasSuffix(data, "\tfor <bob@example.com>;\r\n\tWed, 04 Mar 2026 05:06:07 +0000\r\n"+msg) {
		t.Errorf("%q", data)
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
}

func TestNotReady(t *testing.T) {
	for _, change := range []func(*Server){
		func(s *Server) { s.TLSConfig = nil }, func(s *Server) { s.Auth = nil }, func(s *Server) { s.Next = nil },
	} {
		s := newServer(t, &box{})
		change(s)
		for _, serve := range []func(net.Listener) error{s.Serve, s.ServeTLS} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if err := serve(l); err == nil {
				t.Error("serves")
			}
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Error("the listener is open")
			}
		}
	}
	var s Server
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil || s.Stats() != (Stats{}) {
		t.Error(err)
	}
}

func TestSenderRights(t *testing.T) {
	s := newServer(t, &box{})
	s.Limits.MaxErrors = -1
	addr := start(t, s, s.Serve)
	for _, c := range []struct {
		user, from string
		ok         bool
	}{
		{"joe@example.org", "joe@example.org", true}, {"joe@example.org", "JOE@Example.Org", true},
		{"joe@example.org", "sales@example.org", true}, {"joe@example.org", "anything@joe.example", true},
		{"joe@example.org", "x@sub.joe.example", false}, {"joe@example.org", "ann@example.org", false},
		{"joe@example.org", "joe+x@example.org", false}, {"joe@example.org", `"joe@example.org"@evil.example`, false},
		{"role", "info@xn--bcher-kva.example", true}, {"role", "role@example.org", false}, {"role", "", true},
		{"../../etc/passwd", "passwd@example.org", false},
	} {
		cl := loggedIn(t, addr, c.user)
		want := "553 5.7.1 "
		if c.ok {
			want = "250 "
		}
		cl.cmd("MAIL FROM:<"+c.from+">", want)
	}
	// One's own policy: its words, and its failures.
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, "250 "}, {errors.New("ldap://10.0.0.1 down"), "451 4.3.0 Local error in processing"}, {fmt.Errorf("x: %w", ErrNotYours), "553 5.7.1 "},
		{mailspine.Errorf(550, "5.7.60", "Ask for a delegation"), "550 5.7.60 Ask"},
	} {
		s := newServer(t, &box{})
		s.Senders = SendersFunc(func(context.Context, *mailspine.Login, mailspine.Address) error { return c.err })
		loggedIn(t, start(t, s, s.Serve), "role").cmd("MAIL FROM:<whoever@example.com>", c.want)
	}
}

// The address of a domain whose name is a prefix of everything.
func TestOwnAddressesEdges(t *testing.T) {
	for _, own := range []string{"", "@", "example.org", "@@", "*", "joe@", "a@b@c"} {
		l := &mailspine.Login{Name: own, Addresses: []string{own}}
		if err := OwnAddresses(context.Background(), l, mailspine.Address{Local: "joe", Domain: "example.org"}); !errors.Is(err, ErrNotYours) {
			t.Errorf("%q: %v", own, err)
		}
	}
}

func TestUserNames(t *testing.T) {
	s := newServer(t, &box{})
	s.Limits.MaxAuthFailures = -1
	s.Limits.MaxErrors = -1
	c := dialTo(t, start(t, s, s.Serve))
	c.expect("220 ")
	c.startTLS()
	c.cmd("EHLO a", "250-")
	enc := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, user := range []string{"..", "/", "../joe@example.org", "./joe@example.org", "", "joe@example.org/", "joe\r\n", "\xff", strings.Repeat("x", 5000), "joe@example.org "} {
		c.cmd("AUTH PLAIN "+enc("\x00"+user+"\x00sesame"), "535 5.7.8 ")
	}
	c.cmd("AUTH PLAIN "+enc("\x00joe@example.org\x00x\x00sesame"), "501 5.5.2 ") // a NUL in the name is one field too many
	for _, user := range []string{"joe@example.org\x00", "\x00", "\x00joe@example.org"} {
		c.cmd("AUTH LOGIN "+enc(user), "334 ")
		c.cmd(enc("sesame"), "535 5.7.8 ")
	}
	c.cmd("AUTH PLAIN "+strings.Repeat("A", 20_000), "500 5.5.2 ") // longer than a command line
	c.cmd("AUTH PLAIN "+strings.Repeat("A", 12_000), "501 5.5.2 ") // long, but not too long
	c.cmd("NOOP "+strings.Repeat("A", 12_000), "500 5.5.2 ")
	c.cmd("AUTH LOGIN", "334 ")
	c.cmd(strings.Repeat("A", 20_000), "500 5.5.6 ")
	c.cmd("AUTH PLAIN "+enc("\x00../../etc/passwd\x00sesame"), "235 ") // a name like any other
}

func TestAuthUnavailable(t *testing.T) {
	for _, c := range []struct {
		login *mailspine.Login
		err   error
	}{{nil, errors.New("data base password is hunter2")}, {nil, nil}, {&mailspine.Login{}, nil}} {
		s := newServer(t, &box{})
		s.Auth = mailspine.AuthenticatorFunc(func(_ context.Context, cr mailspine.Credentials) (*mailspine.Login, error) {
			if cr.Service != "submission" || !cr.TLS || !cr.Remote.IsValid() || cr.AuthzID != "boss" {
				t.Errorf("%+v", cr)
			}
			return c.login, c.err
		})
		cl := dialTo(t, start(t, s, s.Serve))
		cl.expect("220 ")
		cl.startTLS()
		cl.cmd("EHLO a", "250-")
		for range 5 { // not the client's fault
			if r := cl.cmd("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("boss\x00joe\x00pw")), "454 4.7.0 "); strings.Contains(r, "hunter2") {
				t.Error(r)
			}
		}
	}
}

func TestBruteForceLimit(t *testing.T) {
	s := newServer(t, &box{})
	c := dialTo(t, start(t, s, s.Serve))
	c.expect("220 ")
	c.startTLS()
	c.cmd("EHLO a", "250-")
	bad := "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00joe@example.org\x00guess"))
	for range 3 {
		c.cmd(bad, "535 5.7.8 ")
	}
	c.expect("421 4.7.0 ")
	if r := c.reply(); r != "" {
		t.Errorf("%q", r)
	}
}

const plainMessage = "From: joe@example.org\r\nSubject: x\r\n\r\nbody\r\n"

func TestMixedResults(t *testing.T) {
	fail := func(r mailspine.Recipient) error {
		if r.Address.Local == "no" {
			return mailspine.Errorf(550, "5.1.1", "No such user")
		}
		return nil
	}
	next, rest := &box{fail: fail}, &box{}
	s := newServer(t, next)
	s.Undelivered = rest
	c := loggedIn(t, start(t, s, s.Serve), "joe@example.org")
	if r := c.submit("joe@example.org", plainMessage, "ann@example.com", "no@example.com"); !strings.HasPrefix(r, "250 ") {
		t.Fatal(r)
	}
	a, _ := next.last(t)
	b, data := rest.last(t)
	if next.count() != 1 || rest.count() != 1 || len(a.Recipients) != 1 || a.Recipients[0].Address.Local != "ann" || len(b.Recipients) != 1 || b.Recipients[0].Address.Local != "no" {
		t.Errorf("Next %+v, Undelivered %+v", a, b)
	}
	if len(rest.why) != 1 || mailspine.Status(rest.why[0]).Code != 550 || !strings.Contains(data, "body") {
		t.Errorf("%v, %q", rest.why, data)
	}
	if r := c.submit("joe@example.org", plainMessage, "no@example.com"); !strings.HasPrefix(r, "550 5.1.1 ") {
		t.Error(r)
	}
	// Without Undelivered: once, and then one recipient for each message.
	s = newServer(t, next)
	c = loggedIn(t, start(t, s, s.Serve), "joe@example.org")
	if r := c.submit("joe@example.org", plainMessage, "ann@example.com", "no@example.com"); !strings.HasPrefix(r, "550 5.1.1 ") {
		t.Error(r)
	}
	c.cmd("MAIL FROM:<joe@example.org>", "250 ")
	c.cmd("RCPT TO:<ann@example.com>", "250 ")
	c.cmd("RCPT TO:<no@example.com>", "452 4.5.3 ")
}

func TestDiskFull(t *testing.T) {
	next := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
		return fmt.Errorf("filequeue: write /var/spool/x: %w", syscall.ENOSPC)
	})
	s := newServer(t, next)
	c := loggedIn(t, start(t, s, s.Serve), "joe@example.org")
	if r := c.submit("joe@example.org", plainMessage, "bob@example.com"); r != "452 4.3.1 Insufficient system storage" {
		t.Error(r)
	}
	c.cmd("NOOP", "250 ")
}

func TestOversizeLongLineSmuggling(t *testing.T) {
	b := &box{}
	s := newServer(t, b)
	addr := start(t, s, s.Serve)
	c := loggedIn(t, addr, "joe@example.org")
	if r := c.submit("joe@example.org", plainMessage+strings.Repeat("0123456789\r\n", 1000), "bob@example.com"); !strings.HasPrefix(r, "552 5.3.4 ") {
		t.Error(r)
	}
	if r := c.submit("joe@example.org", plainMessage+strings.Repeat("x", 999)+"\r\n", "bob@example.com"); !strings.HasPrefix(r, "554 5.6.0 ") {
		t.Error(r)
	}
	if r := c.submit("joe@example.org", plainMessage+"x\n.\nMAIL FROM:<joe@example.org>\nRCPT TO:<bob@example.com>\nDATA\n"+plainMessage, "bob@example.com"); !strings.HasPrefix(r, "550 5.6.0 ") {
		t.Error(r)
	}
	c.expect("421 ")
	if b.count() != 0 {
		t.Errorf("%d messages came through", b.count())
	}
}

func TestShutdown(t *testing.T) {
	s := newServer(t, &box{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c := loggedIn(t, l.Addr().String(), "joe@example.org")
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.expect("421 4.3.2 ")
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := c.br.ReadByte(); err != io.EOF {
		t.Error(err)
	}
}

// An Authenticator is never asked about an empty name or password.
func TestEmptyCredentials(t *testing.T) {
	asked := false
	c := &credentials{ctx: t.Context(), s: &session{srv: &Server{Auth: mailspine.AuthenticatorFunc(func(context.Context, mailspine.Credentials) (*mailspine.Login, error) {
		asked = true
		return &mailspine.Login{Name: "guest"}, nil
	})}}}
	for _, v := range [][2]string{{"joe", ""}, {"", "x"}, {"", ""}} {
		if err := c.check("", v[0], v[1]); !errors.Is(err, mailspine.ErrBadCredentials) || asked {
			t.Errorf("%q: %v", v, err)
		}
	}
}
