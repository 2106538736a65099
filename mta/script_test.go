package mta

import (
	"bufio"
	"bytes"
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
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// What is known of smtpclient here.
const (
	maxFlight    = 4096 // octets of commands in a flight
	maxReplyLine = 4096 // octets
	commitGrace  = 10 * time.Second
	dotLine      = ".\r\n"
)

// cut shortens s to at most n octets without cutting a character in two.
func cut(s string, n int) string {
	for len(s) > n || !utf8.ValidString(s) {
		s = s[:min(n, len(s)-1)]
	}
	return s
}

// A script is a server's side of a dialogue, one step a line:
//
//	S: text    send the line
//	S> text    send the text as it is, with \r \n \0 \xNN escapes, no line end
//	C: text    a line that the client must send; with a star at its end, one that begins so
//	QUIET      the client has sent nothing else so far
//	TLS        the handshake, as a server
//	TLSFAIL    a handshake that the client gives up
//	JUNK text  send the text, whether or not the client listens
//	CLOSE      hang up
//	STALL      say nothing more
//	DRIP text  send the text one octet a minute, again and again
//	FLOOD text send the line again and again
//	SIP        read one octet a minute
//	UNTILDOT   read lines until one is a dot
//
// At its end the server hangs up. The same text is the golden transcript of the client.
type script string

// A network is what a Relay under test can connect to: scripts by host address, played one
// after the other. It is both the Dial and the DNS of the test.
type network struct {
	t     testing.TB
	zone  map[string]any // "name TYPE" -> value or error
	certs *tls.Config

	mu      sync.Mutex
	scripts map[string][]script
	dialed  []string
	wg      sync.WaitGroup
	errs    []error
}

func newNetwork(t testing.TB) *network {
	return &network{t: t, zone: map[string]any{}, scripts: map[string][]script{}}
}

func (n *network) lookup(_ context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
	var a mailspine.Answer
	switch v := n.zone[name+" "+typ.String()].(type) {
	case nil:
		kind := mailspine.ErrNXDomain
		for k := range n.zone {
			if strings.HasPrefix(k, name+" ") {
				kind = mailspine.ErrNoData
			}
		}
		return a, &mailspine.DNSError{Name: name, Type: typ, Kind: kind}
	case error:
		return a, &mailspine.DNSError{Name: name, Type: typ, Kind: v}
	case []mailspine.MX:
		a.MX = v
	case mailspine.Answer:
		a = v
	case string:
		for _, s := range strings.Fields(v) {
			a.Addrs = append(a.Addrs, netip.MustParseAddr(s))
		}
	}
	return a, nil
}

// mx makes a zone: the domain with hosts mx1, mx2 and so on at the addresses, each better than the next.
func (n *network) mx(domain string, addrs ...string) {
	var mxs []mailspine.MX
	for i, a := range addrs {
		name := fmt.Sprintf("mx%d.%s", i+1, domain)
		mxs = append(mxs, mailspine.MX{Preference: uint16(10 * (i + 1)), Host: name})
		n.zone[name+" A"] = a
	}
	n.zone[domain+" MX"] = mxs
}

func (n *network) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	ip := netip.MustParseAddrPort(addr).Addr().String()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dialed = append(n.dialed, addr)
	if len(n.scripts[ip]) == 0 {
		return nil, errors.New("nobody is at " + ip)
	}
	s := n.scripts[ip][0]
	n.scripts[ip] = n.scripts[ip][1:]
	client, server := net.Pipe()
	n.wg.Go(func() {
		defer server.Close()
		if err := s.play(server, n.certs); err != nil {
			n.mu.Lock()
			n.errs = append(n.errs, err)
			n.mu.Unlock()
		}
	})
	return client, nil
}

// done waits for the servers, and reports what the client did not say as written.
func (n *network) done() {
	n.t.Helper()
	n.wg.Wait()
	for _, err := range n.errs {
		n.t.Error(err)
	}
	for ip, s := range n.scripts {
		if len(s) > 0 {
			n.t.Errorf("%d dialogues with %s were not held", len(s), ip)
		}
	}
}

func (n *network) relay() *Relay {
	return &Relay{
		Resolver: mailspine.ResolverFunc(n.lookup),
		Hostname: "out.sender.example",
		Dial:     n.dial,
		// The addresses of tests are those for documentation.
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		Logger:       slog.New(slog.DiscardHandler),
		IdleTimeout:  -1, // reuse has its own tests
	}
}

var unescape = strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\0`, "\x00", `\x1b`, "\x1b", `\x8f`, "\x8f")

func (s script) play(conn net.Conn, certs *tls.Config) error {
	br := bufio.NewReader(conn)
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
		case "QUIET":
			if br.Buffered() > 0 {
				b, _ := br.Peek(br.Buffered())
				return fmt.Errorf("step %d: the client has already said %q", i+1, b)
			}
		case "TLS":
			tc := tls.Server(conn, certs)
			if err = tc.Handshake(); err == nil {
				conn, br = tc, bufio.NewReader(tc)
			}
		case "TLSFAIL":
			tc := tls.Server(conn, certs)
			// In TLS 1.3 the server is done before the client has seen the certificate.
			if err = tc.Handshake(); err == nil {
				_, err = tc.Read(make([]byte, 1))
			}
			if err == nil {
				return fmt.Errorf("step %d: the client spoke under TLS", i+1)
			}
			return nil
		case "JUNK":
			io.WriteString(conn, arg+"\r\n")
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
		case "SIP":
			for err == nil {
				_, err = conn.Read(make([]byte, 1))
				time.Sleep(time.Minute) // in a bubble only
			}
			return nil
		case "UNTILDOT":
			for line := ""; err == nil && line != ".\r\n"; {
				line, err = br.ReadString('\n')
			}
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

func golden(t testing.TB, name string) script {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	return script(b)
}

func addr(t testing.TB, s string) mailspine.Address {
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
	env := &mailspine.Envelope{ID: "01TEST", From: addr(t, from)}
	for _, a := range to {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: addr(t, a)})
	}
	return env
}

const hello = "Subject: hello\r\n\r\n.one dot\r\n..two\r\nend\r\n"

// wantStatus checks what an error means for a recipient; "" is delivered.
func wantStatus(t testing.TB, what string, err error, want string) {
	t.Helper()
	got := ""
	if st := mailspine.Status(err); st != nil {
		got = fmt.Sprintf("%d %s", st.Code, st.Enhanced)
	}
	if got != want {
		t.Errorf("%s: %q (%v), want %q", what, got, err, want)
	}
}

// attempt is an Attempt that remembers.
type attempt struct {
	mu       sync.Mutex
	receipts map[int]mailspine.Receipt
	commits  int
	max      time.Duration
	refuse   error
}

func (a *attempt) BeforeCommit(_ context.Context, max time.Duration) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.commits++
	a.max = max
	return a.refuse
}

func (a *attempt) Record(i int, r mailspine.Receipt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.receipts == nil {
		a.receipts = map[int]mailspine.Receipt{}
	}
	a.receipts[i] = r
}

// A ca signs certificates for tests.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newCA(t testing.TB) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &ca{cert, key, pool}
}

func (c *ca) server(t testing.TB, names ...string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"}, DNSNames: names,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	// Over a net.Pipe, which has no buffer, a ticket that nobody reads yet would stop the server.
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, SessionTicketsDisabled: true}
}

// indent makes a transcript of wire lines.
func transcript(lines []WireLine) string {
	var b bytes.Buffer
	for _, l := range lines {
		who := "S: "
		if l.Sent {
			who = "C: "
		}
		b.WriteString(who + l.Line + "\n")
	}
	return b.String()
}
