package smtpclient

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

// A script is a server's side of a dialogue, one step a line:
//
//	S: text    send the line
//	S> text    send the text as it is, with \r \n \0 \x1b \x8f escapes, no line end
//	C: text    a line that the client must send; with a star at its end, one that begins so
//	EAT n      read n octets, whatever they are
//	QUIET      the client has sent nothing else so far
//	TLS        the handshake, as a server
//	CLOSE      hang up
//	STALL      say nothing more
//	DRIP text  send the text one octet a minute, again and again
//	FLOOD text send the text again and again
//
// At its end the server hangs up. The same text is the golden transcript of the client.
type script string

var unescape = strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\0`, "\x00", `\x1b`, "\x1b", `\x8f`, "\x8f")

func (s script) play(conn net.Conn, certs *tls.Config) error {
	br := bufio.NewReaderSize(conn, 128<<10)
	for i, step := range strings.Split(strings.TrimSuffix(string(s), "\n"), "\n") {
		what, arg, _ := strings.Cut(step, " ")
		var err error
		switch what {
		case "":
			continue
		case "S:":
			_, err = io.WriteString(conn, arg+"\r\n")
		case "S>":
			_, err = io.WriteString(conn, unescape.Replace(arg))
		case "C:":
			var line string
			line, err = br.ReadString('\n')
			if verb, any := strings.CutSuffix(arg, "*"); err == nil && line != arg+"\r\n" && !(any && strings.HasPrefix(line, verb)) {
				return fmt.Errorf("step %d: the client said\n\t%q, not\n\t%q", i+1, line, arg+"\r\n")
			}
		case "EAT":
			var n int64
			fmt.Sscan(arg, &n)
			_, err = io.CopyN(io.Discard, br, n)
		case "QUIET":
			if br.Buffered() > 0 {
				b, _ := br.Peek(br.Buffered())
				return fmt.Errorf("step %d: the client has already said %q", i+1, b)
			}
		case "TLS":
			tc := tls.Server(conn, certs)
			if err = tc.Handshake(); err == nil {
				conn, br = tc, bufio.NewReaderSize(tc, 128<<10)
			}
		case "CLOSE":
			return conn.Close()
		case "STALL":
			io.Copy(io.Discard, conn)
			return nil
		case "DRIP":
			for i := 0; err == nil; i++ {
				_, err = conn.Write([]byte{arg[i%len(arg)]})
				time.Sleep(time.Minute) // in a bubble only
			}
			return nil
		case "FLOOD":
			for err == nil {
				_, err = io.WriteString(conn, unescape.Replace(arg))
			}
			return nil
		default:
			return fmt.Errorf("step %d: what is %q?", i+1, step)
		}
		if err != nil {
			return fmt.Errorf("step %d, %q: %w", i+1, step, err)
		}
	}
	return nil
}

// start plays a script for a client over a pipe. done waits for its end, and returns what the client did not do as written.
func (s script) start(o *Options, certs *tls.Config) (c *Client, done func() error) {
	client, server := net.Pipe()
	var wg sync.WaitGroup
	var err error
	wg.Go(func() {
		defer server.Close()
		err = s.play(server, certs)
	})
	if o == nil {
		o = &Options{}
	}
	if o.Peer == "" {
		o.Peer = "mx.dest.example"
	}
	return New(client, o), func() error {
		wg.Wait()
		return err
	}
}

func golden(t testing.TB, name string) script {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	return script(b)
}

// begin does greeting and hello.
func begin(t testing.TB, c *Client) {
	t.Helper()
	if r, err := c.Greeting(t.Context()); err != nil || r.Code != 220 {
		t.Fatalf("greeting: %v, %v", r, err)
	}
	if r, err := c.Hello(t.Context(), "out.sender.example"); err != nil || !r.OK() {
		t.Fatalf("hello: %v, %v", r, err)
	}
}

func address(t testing.TB, s string) mailspine.Address {
	t.Helper()
	if s == "" {
		return mailspine.Address{}
	}
	a, err := mailspine.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func envelope(t testing.TB, from string, to ...string) *mailspine.Envelope {
	t.Helper()
	env := &mailspine.Envelope{ID: "01TEST", From: address(t, from)}
	for _, a := range to {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: address(t, a)})
	}
	return env
}

func prepare(t testing.TB, msg string) *Message {
	t.Helper()
	m, err := Prepare(t.Context(), mailspine.StringContent(msg), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// large is a message that is sent as a stream.
var large = strings.Repeat("x\r\n", InMemory/2)

// outcome says in a word what became of a recipient.
func outcome(o Outcome) string {
	st := mailspine.Status(o.Err)
	switch o.State {
	case Open:
		return "open"
	case Taken:
		return "taken"
	case InDoubt:
		return fmt.Sprint("doubt ", st.Code, " ", st.Enhanced)
	}
	return fmt.Sprint(st.Code, " ", st.Enhanced)
}

func outcomes(res *Result) string {
	var s []string
	for _, o := range res.Outcomes {
		s = append(s, outcome(o))
	}
	return strings.Join(s, ", ")
}

func status(err error) string {
	st := mailspine.Status(err)
	if st == nil {
		return ""
	}
	return fmt.Sprint(st.Code, " ", st.Enhanced)
}

// sendAll sends to all recipients, in as many transactions as it takes. The word of each is the last one.
func sendAll(ctx context.Context, c *Client, tr Transaction) (words []string, err error) {
	words = make([]string, len(tr.Env.Recipients))
	var pending []int
	for i := range words {
		pending = append(pending, i)
	}
	for len(pending) > 0 && err == nil {
		var res *Result
		tr.Rcpts = pending
		res, err = c.Send(ctx, &tr)
		n := len(pending)
		pending = nil
		for _, o := range res.Outcomes {
			if words[o.Rcpt] = outcome(o); o.State == Open {
				pending = append(pending, o.Rcpt)
			}
		}
		if err == nil && len(pending) == n {
			return words, errors.New("a transaction without a result")
		}
	}
	return words, err
}

// certify makes a server's configuration and the roots that trust it.
func certify(t testing.TB, name string) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	// Over a net.Pipe, which has no buffer, a ticket that nobody reads yet would stop the server.
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, SessionTicketsDisabled: true}, pool
}
