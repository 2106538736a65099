package mta

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// A Smarthost logs in under verified TLS, on STARTTLS and from the beginning; what goes wrong with that defers mail, and says nothing of
// the password.
func TestSmarthostLogin(t *testing.T) {
	const (
		hi    = "S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250-AUTH PLAIN\nS: 250 STARTTLS\n"
		start = hi + "C: STARTTLS\nS: 220 go\nTLS\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 AUTH PLAIN LOGIN\n"
		plain = "C: AUTH PLAIN AGFubgBwYSBzcw==\n"
		sent  = "S: 235 2.7.0 welcome\n" + one + bye
	)
	for _, tt := range []struct {
		name, script string
		cert         string // "": that of the host
		edit         func(*Smarthost)
		want         string
	}{
		{"STARTTLS", start + plain + sent, "", nil, ""},
		{"implicit TLS", "TLS\nS: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 AUTH PLAIN\n" + plain + sent, "", func(s *Smarthost) { s.ImplicitTLS = true }, ""},
		{"another certificate", hi + "C: STARTTLS\nS: 220 go\nTLSFAIL", "other.example", nil, "451 4.7.5"},
		{"another certificate, implicit TLS", "TLSFAIL", "other.example", func(s *Smarthost) { s.ImplicitTLS = true }, "451 4.7.5"},
		{"another certificate, unverified", start + plain + sent, "other.example", func(s *Smarthost) { s.Unverified = true }, ""},
		{"no TLS", "S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 AUTH PLAIN\n" + bye, "", nil, "451 4.7.4"},
		{"no TLS, unverified", "S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 AUTH PLAIN\n" + bye, "", func(s *Smarthost) { s.Unverified = true }, "451 4.7.8"},
		{"no TLS, allowed", "S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 AUTH PLAIN\n" + plain + sent, "",
			func(s *Smarthost) { s.Unverified, s.Credentials.AllowClear = true, true }, ""},
		{"wrong", start + plain + "S: 535 5.7.8 no\n" + bye, "", nil, "451 4.7.8"},
		{"not now", start + plain + "S: 454 4.7.0 later\n" + bye, "", nil, "454 4.7.0"},
		{"good-bye", start + plain + "S: 421 4.3.2 down\n", "", nil, "421 4.3.2"},
		{"gone", start + plain + "CLOSE", "", nil, "451 4.4.2"},
		{"not offered", strings.ReplaceAll(start, "S: 250 AUTH PLAIN LOGIN", "S: 250 HELP") + bye, "", nil, "451 4.7.8"},
		{"a mechanism that is not allowed", start + bye, "", func(s *Smarthost) { s.Credentials.Mechanisms = []string{"SCRAM-SHA-256"} }, "451 4.7.8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				authority := newCA(t)
				n := newNetwork(t)
				if tt.cert == "" {
					tt.cert = "mail.isp.example"
				}
				n.certs = authority.server(t, tt.cert)
				n.zone["mail.isp.example A"] = "10.0.0.7"
				n.scripts["10.0.0.7"] = []script{script(tt.script)}
				var log bytes.Buffer
				s := &Smarthost{Relay: n.relay(), Address: "mail.isp.example:465", Credentials: smtpclient.Credentials{Username: "ann", Password: "pa ss"}}
				s.Relay.TLSPolicy = TLSRules{"mail.isp.example": {Roots: authority.pool}}
				s.Relay.Logger = slog.New(slog.NewTextHandler(&log, nil))
				if tt.edit != nil {
					tt.edit(s)
				}
				err := s.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
				n.done()
				wantStatus(t, tt.name, mailspine.ErrorAt(err, 0), tt.want)
				var ae *smtpclient.AuthError
				if tt.want == "451 4.7.8" && (!errors.As(err, &ae) || !strings.Contains(log.String(), "authentication failed")) {
					t.Errorf("%v, and in the log %q", err, log.String())
				}
				if strings.Contains(log.String(), "pa ss") || err != nil && strings.Contains(err.Error(), "pa ss") {
					t.Errorf("the password is shown: %v\n%s", err, log.String())
				}
			})
		})
	}
}

// A connection with a login is used again by the Smarthost that logged in, and by no other.
func TestSmarthostLoginReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		in := "S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 AUTH PLAIN\nC: AUTH PLAIN *\nS: 235 welcome\n"
		n.scripts["10.0.0.7"] = []script{script(in + one + one + bye), script(in + one + bye), script(open + one + bye)}
		r := n.relay()
		r.IdleTimeout = 0
		login := func(user string) *Smarthost {
			return &Smarthost{Relay: r, Address: "10.0.0.7:587", Unverified: true,
				Credentials: smtpclient.Credentials{Username: user, Password: "x", AllowClear: true}}
		}
		ann := login("ann")
		bob(t, ann, "")
		bob(t, ann, "")
		bob(t, login("ann"), "")
		bob(t, &Smarthost{Relay: r, Address: "10.0.0.7:587"}, "")
		if len(n.dialed) != 3 {
			t.Errorf("connected %d times", len(n.dialed))
		}
		r.CloseIdle()
		n.done()
	})
}

// LMTP has a result for each recipient.
func TestSmarthostLMTP(t *testing.T) {
	n := newNetwork(t)
	n.scripts["10.0.0.7"] = []script{"S: 220 hi\nC: LHLO out.sender.example\nS: 250-hi\nS: 250 PIPELINING\nC: MAIL FROM:<ann@sender.example>\n" +
		"C: RCPT TO:<a@one.example>\nC: RCPT TO:<b@two.example>\nC: RCPT TO:<c@three.example>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 550 5.1.1 no\nS: 250 ok\nS: 354 go\n" +
		"C: x\nC: .\nS: 250 2.1.5 filed\nS: 452 4.2.2 full\n" + bye}
	s := &Smarthost{Relay: n.relay(), Address: "10.0.0.7:24", LMTP: true}
	a := &attempt{}
	err := s.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "a@one.example", "b@two.example", "c@three.example"), mailspine.StringContent("x\r\n"))
	n.done()
	for i, want := range []string{"", "550 5.1.1", "452 4.2.2"} {
		wantStatus(t, want, mailspine.ErrorAt(err, i), want)
	}
	if a.receipts[0].Reply != "250 2.1.5 filed" || a.receipts[2].Reply != "452 4.2.2 full" {
		t.Errorf("%+v", a.receipts)
	}
	if err := (&Smarthost{Address: "10.0.0.7:25", LMTP: true}).Validate(); err == nil {
		t.Error("LMTP on port 25")
	}
}

// A server that takes so many messages on a connection, and so many recipients in a message, gets no more, and everybody is served
// all the same (RFC 9422).
func TestRelayLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		hi := "S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 LIMITS MAILMAX=2 RCPTMAX=1\n"
		msg := func(who string) string { return strings.ReplaceAll(one, "bob", who) }
		n.scripts["192.0.2.1"] = []script{script(hi + msg("a") + msg("b") + bye), script(hi + msg("c") + msg("bob") + bye), script(hi + msg("bob") + bye)}
		r := n.relay()
		r.IdleTimeout = 0
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "a@dest.example", "b@dest.example", "c@dest.example"), mailspine.StringContent("x\r\n"))
		wantStatus(t, "three recipients", err, "")
		bob(t, r, "") // over the second connection, which is used up then
		bob(t, r, "")
		r.CloseIdle()
		n.done()
	})
}

// A binary message goes to a server that can take it, as it is.
func TestRelayBinary(t *testing.T) {
	n := newNetwork(t)
	n.mx("dest.example", "192.0.2.1")
	n.scripts["192.0.2.1"] = []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250-PIPELINING\nS: 250-BINARYMIME\nS: 250 CHUNKING\n" +
		"C: MAIL FROM:<ann@sender.example> BODY=BINARYMIME\nC: RCPT TO:<bob@dest.example>\nC: BDAT 8 LAST\nC: a\x00\nC: .b\nQUIET\nS: 250 ok\nS: 250 ok\nS: 250 done\n" + bye}
	env := envelope(t, "ann@sender.example", "bob@dest.example")
	env.Body = mailspine.BodyBinary
	err := n.relay().Deliver(t.Context(), env, mailspine.StringContent("a\x00\r\n.b\r\n"))
	n.done()
	wantStatus(t, "binary", err, "")
}
