package smtpclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/xdg-go/scram"

	"github.com/mailspine/mailspine"
)

// The example of RFC 7677 section 3.
func TestSCRAMVector(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	c := New(client, nil)
	s, err := newSCRAMConversation(c, &Credentials{Username: "user", Password: "pencil"}, "SCRAM-SHA-256", func() string { return "rOprNGfwEbeRWgbNEkqO" })
	if err != nil {
		t.Fatal(err)
	}
	_, first, err := s.Start()
	if err != nil || string(first) != "n,,n=user,r=rOprNGfwEbeRWgbNEkqO" {
		t.Errorf("first: %q, %v", first, err)
	}
	final, err := s.Next([]byte("r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"))
	if want := "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="; err != nil || string(final) != want {
		t.Errorf("final: %q, %v", final, err)
	}
	if s.verified() {
		t.Error("verified before the server's proof")
	}
	last, err := s.Next([]byte("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="))
	if err != nil || len(last) != 0 || !s.verified() {
		t.Errorf("last: %q, %v, verified: %v", last, err, s.verified())
	}
	if _, err := s.Next(nil); err == nil {
		t.Error("a challenge after the end")
	}
}

// What a server may ask for, and prove, in SCRAM.
func TestSCRAMHostile(t *testing.T) {
	const nonce = "r=rOprNGfwEbeRWgbNEkqO"
	for _, tt := range []struct{ first, final string }{
		{nonce + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4095", ""}, // RFC 7677 section 4
		{nonce + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=99999999", ""},
		{nonce + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=-1", ""},
		{nonce + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=99999999999999999999", ""},
		{nonce + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==", ""},
		{nonce + "x,s=?,i=4096", ""},
		{"r=another,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", ""},
		{"m=ext," + nonce + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", ""},
		{"", ""},
		{nonce + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "v=AAAA"},
		{nonce + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "e=other-error"},
		{nonce + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", ""},
	} {
		client, _ := net.Pipe()
		s, err := newSCRAMConversation(New(client, nil), &Credentials{Username: "user", Password: "pencil"}, "SCRAM-SHA-256", func() string { return "rOprNGfwEbeRWgbNEkqO" })
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		_, err = s.Next([]byte(tt.first))
		if tt.final != "" || strings.HasSuffix(tt.first, "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096") && err == nil {
			_, err = s.Next([]byte(tt.final))
		}
		if err == nil || s.verified() || !isProtocol(err) {
			t.Errorf("%q, %q: %v", tt.first, tt.final, err)
		}
	}
}

// An authServer is a server with AUTH, over go-sasl's mechanisms and xdg-go's SCRAM.
type authServer struct {
	offer string // the parameters of AUTH
	certs *tls.Config
	deny  string // the reply to whatever fails; "": 535 5.7.8 no

	conn net.Conn
	log  []string // who came, how
}

func (a *authServer) serve(conn net.Conn) {
	defer conn.Close()
	a.conn = conn
	br := bufio.NewReader(conn)
	io.WriteString(conn, "220 hi\r\n")
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		verb, arg, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		switch verb {
		case "EHLO":
			fmt.Fprintf(conn, "250-hi\r\n250-STARTTLS\r\n250 AUTH %s\r\n", a.offer)
		case "STARTTLS":
			io.WriteString(conn, "220 go\r\n")
			tc := tls.Server(conn, a.certs)
			if tc.Handshake() != nil {
				return
			}
			a.conn, conn, br = tc, tc, bufio.NewReader(tc)
		case "AUTH":
			mech, ir, given := strings.Cut(arg, " ")
			if err := a.auth(br, mech, ir, given); err != nil {
				deny := a.deny
				if deny == "" {
					deny = "535 5.7.8 no"
				}
				io.WriteString(conn, deny+"\r\n")
				a.log = append(a.log, mech+" failed")
			} else {
				io.WriteString(conn, "235 2.7.0 welcome\r\n")
			}
		case "QUIT":
			io.WriteString(conn, "221 bye\r\n")
			return
		default:
			io.WriteString(conn, "250 ok\r\n")
		}
	}
}

func (a *authServer) auth(br *bufio.Reader, mech, ir string, given bool) error {
	says := func(user, password string) error {
		if user != "ann" || password != "pa ss" {
			return errors.New("wrong")
		}
		a.log = append(a.log, mech+" "+user)
		return nil
	}
	var s sasl.Server
	switch mech {
	case "PLAIN":
		s = sasl.NewPlainServer(func(identity, user, password string) error { return says(user, password) })
	case "OAUTHBEARER":
		s = sasl.NewOAuthBearerServer(func(o sasl.OAuthBearerOptions) *sasl.OAuthBearerError {
			if says(o.Username, strings.Replace(o.Token, "t0k3n", "pa ss", 1)) != nil {
				return &sasl.OAuthBearerError{Status: "invalid_token"}
			}
			return nil
		})
	case "LOGIN", "XOAUTH2":
		s = &stepServer{mech: mech, says: says}
	default:
		s = a.scram(mech, says)
	}
	var resp []byte
	if given && ir != "=" {
		resp, _ = base64.StdEncoding.DecodeString(ir)
	} else if given {
		resp = []byte{}
	}
	for {
		challenge, done, err := s.Next(resp)
		if err != nil || done && len(challenge) == 0 {
			return err
		}
		fmt.Fprintf(a.conn, "334 %s\r\n", base64.StdEncoding.EncodeToString(challenge))
		line, err := br.ReadString('\n')
		if err != nil {
			return err
		}
		if line = strings.TrimRight(line, "\r\n"); line == "*" {
			return errors.New("cancelled")
		}
		if resp, err = base64.StdEncoding.DecodeString(line); err != nil || done {
			return err
		}
		if resp == nil {
			resp = []byte{}
		}
	}
}

// stepServer is LOGIN, with prompts of its own, or XOAUTH2.
type stepServer struct {
	mech, user string
	step       int
	says       func(user, password string) error
}

func (s *stepServer) Next(resp []byte) ([]byte, bool, error) {
	s.step++
	if s.mech == "XOAUTH2" {
		if s.step > 1 {
			return nil, true, errors.New("refused")
		}
		user, token, _ := strings.Cut(strings.TrimPrefix(string(resp), "user="), "\x01auth=Bearer ")
		if s.says(user, strings.Replace(strings.TrimSuffix(token, "\x01\x01"), "t0k3n", "pa ss", 1)) != nil {
			return []byte(`{"status":"401"}`), false, nil
		}
		return nil, true, nil
	}
	switch s.step {
	case 1:
		return []byte("User Name\x00"), false, nil
	case 2:
		s.user = string(resp)
		return []byte("Password\x00"), false, nil
	}
	return nil, true, s.says(s.user, string(resp))
}

type scramServer struct {
	conv *scram.ServerConversation
	says func(user, password string) error
}

func (a *authServer) scram(mech string, says func(string, string) error) sasl.Server {
	lookup := func(user string) (scram.StoredCredentials, error) {
		if user != "ann" {
			return scram.StoredCredentials{}, errors.New("unknown")
		}
		c, err := scram.SHA256.NewClient("ann", "pa ss", "")
		if err != nil {
			return scram.StoredCredentials{}, err
		}
		return c.GetStoredCredentialsWithError(scram.KeyFactors{Salt: "salt of the test", Iters: 4096})
	}
	server, err := scram.SHA256.NewServer(lookup)
	if err != nil {
		panic(err)
	}
	s := &scramServer{says: says}
	if mech == "SCRAM-SHA-256-PLUS" {
		state := a.conn.(*tls.Conn).ConnectionState()
		var cb scram.ChannelBinding
		if state.Version == tls.VersionTLS13 {
			cb, err = scram.NewTLSExporterBinding(&state)
		} else {
			// The helper wants the peer's certificate, which here is our own.
			state.PeerCertificates = append(state.PeerCertificates, a.certs.Certificates[0].Leaf)
			cb, err = scram.NewTLSServerEndpointBinding(&state)
		}
		if err != nil {
			panic(err)
		}
		s.conv = server.NewConversationWithChannelBinding(cb)
	} else {
		s.conv = server.NewConversation()
	}
	return s
}

func (s *scramServer) Next(resp []byte) ([]byte, bool, error) {
	out, err := s.conv.Step(string(resp))
	if err != nil {
		return nil, true, err
	}
	if s.conv.Done() {
		if !s.conv.Valid() {
			return nil, true, errors.New("invalid")
		}
		return []byte(out), true, s.says(s.conv.Username(), "pa ss")
	}
	return []byte(out), false, nil
}

func token(context.Context) (string, error) { return "t0k3n", nil }

// The strongest mechanism that both sides have, against servers of other hands; and why it fails.
func TestAuth(t *testing.T) {
	const all = "PLAIN LOGIN XOAUTH2 OAUTHBEARER SCRAM-SHA-1 SCRAM-SHA-256 SCRAM-SHA-256-PLUS"
	ann := Credentials{Username: "ann", Password: "pa ss"}
	with := func(f func(*Credentials)) Credentials { c := ann; f(&c); return c }
	bearer := with(func(c *Credentials) { c.Password, c.Token = "", token })
	for _, tt := range []struct {
		name, offer string
		tls         uint16 // 0: none
		cred        Credentials
		deny        string
		want        string // what the server saw
		err         string
		mech        string // in the error
		out         bool   // the dialogue is not in step after it
	}{
		{name: "everything, TLS 1.3", offer: all, tls: tls.VersionTLS13, cred: ann, want: "SCRAM-SHA-256-PLUS ann"},
		{name: "everything, TLS 1.2", offer: all, tls: tls.VersionTLS12, cred: ann, want: "SCRAM-SHA-256-PLUS ann"},
		{name: "no binding", offer: "PLAIN SCRAM-SHA-256", tls: tls.VersionTLS13, cred: ann, want: "SCRAM-SHA-256 ann"},
		{name: "lower case", offer: "plain scram-sha-256", tls: tls.VersionTLS13, cred: ann, want: "SCRAM-SHA-256 ann"},
		{name: "without TLS", offer: all, cred: ann, want: "SCRAM-SHA-256 ann"},
		{name: "PLAIN", offer: "LOGIN PLAIN", tls: tls.VersionTLS13, cred: ann, want: "PLAIN ann"},
		{name: "LOGIN", offer: "LOGIN", tls: tls.VersionTLS13, cred: ann, want: "LOGIN ann"},
		{name: "chosen", offer: all, tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Mechanisms = []string{"LOGIN"} }), want: "LOGIN ann"},
		{name: "chosen, without binding", offer: all, tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Mechanisms = []string{"SCRAM-SHA-256"} }), want: "SCRAM-SHA-256 ann"},
		{name: "a token", offer: all, tls: tls.VersionTLS13, cred: bearer, want: "OAUTHBEARER ann"},
		{name: "a token, XOAUTH2", offer: "PLAIN XOAUTH2", tls: tls.VersionTLS13, cred: bearer, want: "XOAUTH2 ann"},
		{name: "in clear, allowed", offer: "PLAIN", cred: with(func(c *Credentials) { c.AllowClear = true }), want: "PLAIN ann"},

		{name: "in clear", offer: "PLAIN LOGIN", cred: ann, err: "538 5.7.11"},
		{name: "a token in clear", offer: "XOAUTH2", cred: bearer, err: "538 5.7.11"},
		{name: "not offered", offer: "", tls: tls.VersionTLS13, cred: ann, err: "535 5.7.8"},
		{name: "nothing in common", offer: "GSSAPI NTLM", tls: tls.VersionTLS13, cred: ann, err: "535 5.7.8"},
		{name: "no token", offer: "XOAUTH2", tls: tls.VersionTLS13, cred: ann, err: "535 5.7.8"},
		{name: "wrong, SCRAM", offer: all, tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Password = "x" }), want: "SCRAM-SHA-256-PLUS failed", err: "535 5.7.8", mech: "SCRAM-SHA-256-PLUS"},
		{name: "unknown, SCRAM", offer: all, tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Username = "x" }), want: "SCRAM-SHA-256-PLUS failed", err: "535 5.7.8", mech: "SCRAM-SHA-256-PLUS"},
		{name: "wrong, PLAIN", offer: "PLAIN", tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Password = "x" }), want: "PLAIN failed", err: "535 5.7.8", mech: "PLAIN"},
		{name: "wrong, LOGIN", offer: "LOGIN", tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Password = "x" }), want: "LOGIN failed", err: "535 5.7.8", mech: "LOGIN"},
		{name: "not now", offer: "PLAIN", deny: "454 4.7.0 try later", tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Password = "x" }), want: "PLAIN failed", err: "454 4.7.0", mech: "PLAIN"},
		{name: "good-bye", offer: "PLAIN", deny: "421 4.7.0 enough", tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Password = "x" }), want: "PLAIN failed", err: "421 4.7.0", mech: "PLAIN", out: true},
		{name: "wrong token", offer: "OAUTHBEARER", tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Username, c.Token = "x", token }), want: "OAUTHBEARER failed", err: "535 5.7.8", mech: "OAUTHBEARER"},
		{name: "wrong token, XOAUTH2", offer: "XOAUTH2", tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Username, c.Token = "x", token }), want: "XOAUTH2 failed", err: "535 5.7.8", mech: "XOAUTH2"},
		{name: "the token cannot be had", offer: "XOAUTH2", tls: tls.VersionTLS13, cred: with(func(c *Credentials) {
			c.Token = func(context.Context) (string, error) { return "", errors.New("the endpoint is down") }
		}), err: "451 4.7.0", mech: "XOAUTH2"},
		{name: "a token that is none", offer: "XOAUTH2", tls: tls.VersionTLS13, cred: with(func(c *Credentials) {
			c.Token = func(context.Context) (string, error) { return "a\x01b", nil }
		}), err: "535 5.7.8", mech: "XOAUTH2"},
		{name: "a password with NUL", offer: "PLAIN", tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Password = "a\x00b" }), err: "535 5.7.8", mech: "PLAIN"},
		{name: "an identity", offer: "LOGIN", tls: tls.VersionTLS13, cred: with(func(c *Credentials) { c.Identity = "bob" }), err: "535 5.7.8", mech: "LOGIN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			certs, roots := certify(t, "smart.example")
			certs.Certificates[0].Leaf = mustLeaf(t, certs)
			a := &authServer{offer: tt.offer, certs: certs, deny: tt.deny}
			client, server := net.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() { a.serve(server) })
			var wire strings.Builder
			c := New(client, &Options{Peer: "smart.example", Wire: func(_ bool, line string) { wire.WriteString(line + "\n") }})
			begin(t, c)
			if tt.tls != 0 {
				if _, err := c.StartTLS(t.Context(), &tls.Config{ServerName: "smart.example", RootCAs: roots, MaxVersion: tt.tls}); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Hello(t.Context(), "out.sender.example"); err != nil {
					t.Fatal(err)
				}
			}
			err := c.Auth(t.Context(), &tt.cred)
			if status(err) != tt.err {
				t.Errorf("%v, want %q", err, tt.err)
			}
			var ae *AuthError
			if err != nil && (!errors.As(err, &ae) || ae.Mechanism != tt.mech) {
				t.Errorf("%+v", ae)
			}
			if c.InStep() == tt.out {
				t.Errorf("in step: %v", c.InStep())
			}
			for _, secret := range []string{"pa ss", "pa=20ss", "t0k3n", base64.StdEncoding.EncodeToString([]byte("\x00ann\x00pa ss")),
				base64.StdEncoding.EncodeToString([]byte("pa ss")), "YW5u", "n=ann", "dXNlcj1hbm4"} {
				if strings.Contains(wire.String(), secret) || err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("%q is shown: %v\n%s", secret, err, wire.String())
				}
			}
			if tt.want != "" && !strings.Contains(wire.String(), "AUTH "+strings.Fields(tt.want)[0]) {
				t.Errorf("the mechanism is not shown:\n%s", wire.String())
			}
			if c.InStep() {
				if r, err := c.Noop(t.Context()); err != nil || r.Code != 250 {
					t.Errorf("afterwards: %v, %v", r, err)
				}
			}
			c.Quit(t.Context())
			wg.Wait()
			if got := strings.Join(a.log, ", "); got != tt.want {
				t.Errorf("the server saw %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzAuth(f *testing.F) {
	for _, s := range []string{
		"235 ok\r\n", "334 \r\n235 ok\r\n", "535 5.7.8 no\r\n", "334 cj1yT3ByTkdmd0ViZVJXZ2JORWtxTyx4LHM9VzIyWmFKMFNOWTdzb0VzVUVqYjZnUT09LGk9NDA5Ng==\r\n535 no\r\n",
		"334 ?\r\n501 cancelled\r\n", "334 eyJzdGF0dXMiOiI0MDEifQ==\r\n535 no\r\n", strings.Repeat("334 \r\n", 20), "250 ok\r\n", "354 go\r\n", "421 bye\r\n", "",
	} {
		for i := range mechanisms {
			f.Add([]byte(s), uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, which uint8) {
		mech := mechanisms[int(which)%len(mechanisms)]
		c := New(newCanned(append([]byte("220 hi\r\n250-hi\r\n250 AUTH "+mech+"\r\n"), b...), false), nil)
		begin(t, c)
		cred := Credentials{Username: "ann", Password: "pa ss", AllowClear: true}
		if strings.Contains(mech, "OAUTH") {
			cred.Token = token
		}
		err := c.Auth(t.Context(), &cred)
		if err != nil && mailspine.Status(err).Code < 400 {
			t.Fatal(err)
		}
		if err == nil && strings.HasPrefix(mech, "SCRAM-") {
			t.Fatal("accepted without a proof")
		}
		if err == nil && !strings.Contains(string(b), "2") {
			t.Fatal("accepted without a word")
		}
	})
}

func mustLeaf(t *testing.T, c *tls.Config) *x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(c.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// A server that accepts without having shown that it knows the password is not believed.
func TestSCRAMWithoutProof(t *testing.T) {
	c, done := script("S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250 AUTH SCRAM-SHA-256\nC: AUTH SCRAM-SHA-256 *\nS: 235 come in").start(nil, nil)
	begin(t, c)
	err := c.Auth(t.Context(), &Credentials{Username: "ann", Password: "pa ss"})
	var ae *AuthError
	if !errors.As(err, &ae) || status(err) != "451 4.5.0" || c.InStep() {
		t.Errorf("%v, in step: %v", err, c.InStep())
	}
	c.Close()
	if err := done(); err != nil {
		t.Error(err)
	}
}
