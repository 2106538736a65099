package smtpd

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
)

// peer is a go-smtp server that takes everything.
type peer struct {
	mu   sync.Mutex
	from []string
	data []string
	opts []smtp.MailOptions
}

type peerSession struct{ p *peer }

func (p *peer) NewSession(*smtp.Conn) (smtp.Session, error) { return &peerSession{p}, nil }
func (s *peerSession) Mail(from string, o *smtp.MailOptions) error {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.from, s.p.opts = append(s.p.from, from), append(s.p.opts, *o)
	return nil
}
func (s *peerSession) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (s *peerSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if err == nil {
		s.p.data = append(s.p.data, string(b))
	}
	return err
}
func (s *peerSession) Reset()        {}
func (s *peerSession) Logout() error { return nil }

func startPeer(t *testing.T, change func(*smtp.Server)) (string, *peer) {
	t.Helper()
	p := &peer{}
	s := smtp.NewServer(p)
	s.Domain, s.ReadTimeout, s.ErrorLog = "go-smtp.example", 10*time.Second, log.New(io.Discard, "", 0)
	if change != nil {
		change(s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String(), p
}

// What this package needs and go-smtp's server, v0.25.1, has no way to: each case
// is the wire against that server. When one fails, upstream has changed, and the reason
// to have an engine of our own has become smaller.
func TestWhatGoSMTPLacks(t *testing.T) {
	begin := func(t *testing.T, change func(*smtp.Server)) (*client, *peer) {
		addr, p := startPeer(t, change)
		c := dialTo(t, addr)
		c.expect("220 ")
		c.cmd("EHLO a", "250-")
		return c, p
	}
	t.Run("command lines end with a bare LF", func(t *testing.T) {
		c, p := begin(t, nil)
		c.send("MAIL FROM:<joe@example.com>\n")
		c.expect("250 ")
		if len(p.from) != 1 {
			t.Error("refused")
		}
	})
	t.Run("a bare CR behind a dot is gone before the session sees it", func(t *testing.T) {
		c, p := begin(t, nil)
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		c.cmd("RCPT TO:<ann@example.org>", "250 ")
		c.cmd("DATA", "354 ")
		c.send("a\r\n.\rb\r\n.\r\n")
		c.expect("250 ")
		if p.data[0] != "a\r\nb\r\n" {
			t.Errorf("%q", p.data[0])
		}
	})
	t.Run("four bad commands end the connection, whatever the owner wants", func(t *testing.T) {
		c, _ := begin(t, nil)
		for range 4 {
			c.cmd("XFOO x", "500 ")
		}
		c.expect("500 5.5.1 Too many errors")
		c.closed()
	})
	t.Run("and a million good ones do not", func(t *testing.T) {
		c, _ := begin(t, nil)
		for range 2000 { // no limit on commands to set
			c.cmd("NOOP", "250 ")
		}
		for range 50 { // refused sequences do not count as errors
			c.cmd("RCPT TO:<a@b>", "502 ")
		}
	})
	t.Run("a long line in a message ends the connection", func(t *testing.T) {
		c, _ := begin(t, nil)
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		c.cmd("RCPT TO:<ann@example.org>", "250 ")
		c.cmd("DATA", "354 ")
		c.send(strings.Repeat("x", 3000) + "\r\n.\r\n")
		c.expect("554 ")
		c.expect("500 5.4.0 Too long line, closing connection")
	})
	t.Run("a message of exactly the limit is refused", func(t *testing.T) {
		c, _ := begin(t, func(s *smtp.Server) { s.MaxMessageBytes = 3 })
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		c.cmd("RCPT TO:<ann@example.org>", "250 ")
		c.cmd("DATA", "354 ")
		c.send("x\r\n.\r\n")
		c.expect("552 ")
	})
	t.Run("RCPT TO postmaster without a domain is refused", func(t *testing.T) {
		c, _ := begin(t, nil)
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		c.cmd("RCPT TO:<Postmaster>", "501 ")
	})
	t.Run("two addresses become one string", func(t *testing.T) {
		c, p := begin(t, nil)
		c.cmd("MAIL FROM:<a@b@c>", "250 ")
		c.cmd("RSET", "250 ")
		c.cmd(`MAIL FROM:<"a@b"@c>`, "250 ")
		if p.from[0] != p.from[1] {
			t.Errorf("%q", p.from)
		}
	})
	t.Run("the client's octets come back in replies", func(t *testing.T) {
		c, _ := begin(t, nil)
		c.send("EHLO a\x1b[2Jb\rc\r\n")
		line, _ := c.br.ReadString('\n')
		if !strings.Contains(line, "\x1b[2Jb\rc") {
			t.Errorf("%q", line)
		}
	})
	t.Run("BY and MT-PRIORITY are parameters of RCPT, not of MAIL", func(t *testing.T) {
		c, _ := begin(t, func(s *smtp.Server) { s.EnableDELIVERBY, s.EnableMTPRIORITY = true, true })
		c.cmd("MAIL FROM:<joe@example.com> BY=100;R", "500 ")
		c.cmd("MAIL FROM:<joe@example.com> MT-PRIORITY=3", "500 ")
	})
	t.Run("after a failed TLS handshake the session goes on in the clear", func(t *testing.T) {
		c, p := begin(t, func(s *smtp.Server) { s.TLSConfig = testTLS() })
		c.cmd("STARTTLS", "220 ")
		c.send("this is no TLS\r\n")
		c.expect("550 5.0.0 Handshake error")
		c.cmd("EHLO a", "250-") // a reply at all
		c.cmd("MAIL FROM:<joe@example.com>", "250 ")
		if len(p.from) != 1 {
			t.Error("refused")
		}
	})
	t.Run("Shutdown does not end idle connections", func(t *testing.T) {
		var srv *smtp.Server
		c, _ := begin(t, func(s *smtp.Server) { srv = s })
		closed := make(chan struct{})
		go func() {
			c.nc.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			_, err := c.br.ReadByte()
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() {
				t.Errorf("the connection ended: %v", err)
			}
			c.nc.Close()
			close(closed)
		}()
		srv.Shutdown(t.Context())
		<-closed
	})
}

// The same messages through both servers, by go-smtp's client: the same comes out.
func TestDifferentialGoSMTP(t *testing.T) {
	theirAddr, p := startPeer(t, func(s *smtp.Server) { s.MaxLineLength = 2000 })
	r := &recorder{}
	ourAddr := start(t, &Server{Handler: r, Limits: Limits{MaxCommands: -1}})
	dial := func(addr string) *smtp.Client {
		c, err := smtp.Dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	ours, theirs := dial(ourAddr), dial(theirAddr)
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfN(rapid.StringMatching(`\.{0,2}[ -~]{0,20}`), 0, 10).Draw(t, "lines")
		msg := strings.Join(lines, "\r\n") + "\r\n"
		for _, c := range []*smtp.Client{ours, theirs} {
			if err := c.SendMail("joe@example.com", []string{"ann@example.org", `"b b"@example.org`}, strings.NewReader(msg)); err != nil {
				t.Fatal(err)
			}
		}
		got := r.got()
		p.mu.Lock()
		defer p.mu.Unlock()
		if a, b := got[len(got)-1].data, p.data[len(p.data)-1]; a != b || a != msg {
			t.Fatalf("sent %q, we have %q, go-smtp %q", msg, a, b)
		}
	})
}

// go-smtp's client with everything it can say.
func TestGoSMTPClient(t *testing.T) {
	r := &recorder{}
	s := &Server{Handler: r, TLSConfig: testTLS(), Extensions: Extensions{RequireTLS: true}}
	c, err := smtp.DialStartTLS(start(t, s), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Mail("jöe@example.com", &smtp.MailOptions{Body: smtp.Body8BitMIME, Size: 100, RequireTLS: true, UTF8: true,
		Return: smtp.DSNReturnHeaders, EnvelopeID: "id 1+2"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Rcpt("ann@example.org", &smtp.RcptOptions{Notify: []smtp.DSNNotify{smtp.DSNNotifyFailure, smtp.DSNNotifyDelayed},
		OriginalRecipientType: smtp.DSNAddressTypeRFC822, OriginalRecipient: "ann+x@example.org"}); err != nil {
		t.Fatal(err)
	}
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, hello)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Quit(); err != nil {
		t.Fatal(err)
	}
	env := r.got()[0].env
	if env.EnvID != "id 1+2" || env.Ret != mailspine.RetHdrs || !env.RequireTLS || !env.UTF8 || env.Origin.Proto != "UTF8SMTPS" ||
		env.Recipients[0].ORcpt != "RFC822;ann+x@example.org" && env.Recipients[0].ORcpt != "rfc822;ann+x@example.org" ||
		env.Recipients[0].Notify != mailspine.NotifyFailure|mailspine.NotifyDelay {
		t.Errorf("%+v", env)
	}
	// And LMTP.
	lr := &recorder{}
	nc, err := net.Dial("tcp", start(t, &Server{Handler: lr, LMTP: true}))
	if err != nil {
		t.Fatal(err)
	}
	lc := smtp.NewClientLMTP(nc)
	defer lc.Close()
	if err := lc.SendMail("joe@example.com", []string{"ann@example.org"}, strings.NewReader(hello)); err != nil {
		t.Fatal(err)
	}
	if got := lr.got(); len(got) != 1 || got[0].env.Origin.Proto != "LMTP" {
		t.Errorf("%+v", got)
	}
}
