package smtpclient

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
)

// 221 is good-bye, whatever it answers: nobody's mail is taken by it.
func TestGoodbyeTakesNothing(t *testing.T) {
	byName := map[string]way{}
	for _, w := range ways {
		byName[w.name] = w
	}
	for _, tt := range []struct {
		name, way  string
		moment     int
		what       string
		state, err string
	}{
		{"to RCPT, one by one", "one by one", 3, "S: 221 bye", "open", "451 4.5.0"},
		{"to RCPT, in a flight", "flight with message", 3, "S: 221 bye", "doubt 451 4.5.0", "451 4.5.0"},
		{"to the dot", "one by one", 5, "S: 221 bye", "doubt 451 4.5.0", "451 4.5.0"},
		{"to BDAT", "flight with message", 4, "S: 221 bye", "doubt 451 4.5.0", "451 4.5.0"},
		{"to a recipient of LMTP", "LMTP", 5, "S: 221 bye", "doubt 451 4.5.0", "451 4.5.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := byName[tt.way]
				c, done, state, err := w.talk(t.Context(), t, w.dialogue(tt.moment, tt.what))
				if state != tt.state || err != tt.err || c.InStep() {
					t.Errorf("%q, %q, in step: %v; want %q, %q", state, err, c.InStep(), tt.state, tt.err)
				}
				c.Close()
				done()
			})
		})
	}
}

// In LMTP a refusal before the end of the message is that of one recipient; the others are not refused, nor taken.
func TestLMTPEarlyRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, done := script("S: 220 hi\nC: LHLO*\nS: 250-hi\nS: 250 PIPELINING\nC: MAIL*\nC: RCPT*\nC: RCPT*\nC: DATA\n"+
			`S> 250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n550 5.2.1 disabled\r\n`+"\nSTALL").start(&Options{LMTP: true}, nil)
		begin(t, c)
		var about []int
		res, err := c.Send(t.Context(), &Transaction{Env: envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example"), Msg: prepare(t, "x\r\n"),
			Replied: func(command string, rcpt int, _ Reply) {
				if command == "message" {
					about = append(about, rcpt)
				}
			}})
		if outcomes(res) != "550 5.2.1, open" || status(err) != "451 4.4.2" || fmt.Sprint(about) != "[0]" {
			t.Errorf("%s, %v, told %v", outcomes(res), err, about)
		}
		c.Close()
		done()
	})
}

// What is kept of the replies for many recipients is bounded, however long each reply is.
func TestLongRepliesAreNotKept(t *testing.T) {
	for name, line := range map[string]string{"long": strings.Repeat("y", 300), "empty": ""} {
		const n = 20
		var s strings.Builder
		s.WriteString("S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250 PIPELINING\nC: MAIL*\n")
		to := make([]string, n)
		for i := range to {
			to[i] = fmt.Sprintf("r%d@dest.example", i)
			s.WriteString("C: RCPT*\n")
		}
		s.WriteString("C: DATA\nS: 250 ok\n")
		for range n {
			s.WriteString("S> " + strings.Repeat(`550-`+line+`\r\n`, 190) + `550 no\r\n` + "\n")
		}
		s.WriteString("S: 503 nobody")
		c, done := script(s.String()).start(nil, nil)
		begin(t, c)
		res, err := c.Send(t.Context(), &Transaction{Env: envelope(t, "ann@sender.example", to...), Msg: prepare(t, "x\r\n")})
		kept, lines := 0, 0
		for _, o := range res.Outcomes {
			lines += len(o.Reply.Lines)
			for _, l := range o.Reply.Lines {
				kept += len(l)
			}
			if o.State != Refused || mailspine.Status(o.Err).Code != 550 {
				t.Fatalf("%s: %+v", name, o)
			}
		}
		if err != nil || kept > n*(maxReplyText+maxReplyLine) || lines > n*maxBriefLines {
			t.Errorf("%s: %d octets in %d lines are kept of the replies for %d recipients, %v", name, kept, lines, n, err)
		}
		c.Close()
		done()
	}
}

// Close may be called by anybody, a handshake under way or not.
func TestCloseDuringHandshake(t *testing.T) {
	certs, roots := certify(t, "mx.dest.example")
	for range 20 {
		c, done := script("S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\nTLS").start(nil, certs)
		begin(t, c)
		var wg sync.WaitGroup
		wg.Go(func() { c.StartTLS(t.Context(), &tls.Config{ServerName: "mx.dest.example", RootCAs: roots}) })
		done() // the server's part of the handshake is done, and ours nearly
		c.Close()
		wg.Wait()
		c.Close()
	}
}

// A certificate that tls-server-end-point is not defined for: SCRAM without binding, which does not claim that the server
// has none either.
func TestSCRAMNoBindingForCertificate(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"smart.example"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	certs := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, SessionTicketsDisabled: true, MaxVersion: tls.VersionTLS12}
	client, server := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer server.Close()
		tc := tls.Server(server, certs)
		if tc.Handshake() == nil {
			script("S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250 AUTH SCRAM-SHA-256 SCRAM-SHA-256-PLUS").play(tc, nil)
		}
	})
	c := New(client, nil)
	if err := c.Handshake(t.Context(), &tls.Config{InsecureSkipVerify: true}); err != nil {
		t.Fatal(err)
	}
	begin(t, c)
	mech, s, err := c.mechanism(t.Context(), &Credentials{Username: "ann", Password: "x"}, c.ext["AUTH"])
	if err != nil || mech != "SCRAM-SHA-256" {
		t.Fatal(mech, err)
	}
	if _, first, err := s.Start(); err != nil || !strings.HasPrefix(string(first), "n,") {
		t.Errorf("%q, %v", first, err)
	}
	c.Close()
	wg.Wait()
}
