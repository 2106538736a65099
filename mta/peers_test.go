package mta_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/internal/peertest"
	"github.com/mailspine/mailspine/mta"
)

const peerMessage = "From: Joe <joe@example.org>\r\nTo: ann@example.net\r\nSubject: hello\r\nMessage-ID: <1@example.org>\r\n" +
	"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\n\r\n.\r\n..dots\r\nGr\u00fc\u00dfe\r\n"

// Postfix takes what the Relay sends, over verified TLS, with its DSN parameters;
// and what it refuses comes back per recipient.
func TestRelayToPostfix(t *testing.T) {
	cert := peertest.SelfSigned(t, "mx.example.net")
	p := peertest.StartPostfix(t, peertest.PostfixConfig{
		Hostname: "mx.example.net", Domains: []string{"example.net"},
		Settings: map[string]string{
			"smtpd_tls_cert_file": cert.CertFile, "smtpd_tls_key_file": cert.KeyFile, "smtpd_tls_security_level": "may",
			"smtpd_relay_restrictions": "reject_unauth_destination", "smtputf8_enable": "yes",
			"smtpd_recipient_restrictions": "check_recipient_access inline:{{nobody@example.net = 550 5.1.1 no such user}}, permit",
		},
	})
	addr := netip.MustParseAddrPort(p.Addr)
	relay := &mta.Relay{
		Resolver: dnstest.Zone{"example.net": {dnstest.MX(10, "mx.example.net")}, "mx.example.net": {dnstest.A("127.0.0.1")}},
		Hostname: "client.example.org", Port: addr.Port(), AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		TLSPolicy: mta.TLSRules{"example.net": {Level: mta.TLSVerify, Roots: cert.Pool}},
		Logger:    slog.New(slog.DiscardHandler),
	}
	env := &mailspine.Envelope{
		ID: mailspine.NewMsgID(), From: mailspine.Address{Local: "joe", Domain: "example.org"}, Body: mailspine.Body8Bit,
		Ret: mailspine.RetHdrs, EnvID: "QQ+314",
		Recipients: []mailspine.Recipient{
			{Address: mailspine.Address{Local: "ann", Domain: "example.net"}, Notify: mailspine.NotifyFailure, ORcpt: "rfc822;ann@example.net"},
			{Address: mailspine.Address{Local: "nobody", Domain: "example.net"}},
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	att := &attempt{}
	err := relay.Deliver(mailspine.WithAttempt(ctx, att), env, mailspine.StringContent(peerMessage))
	if e := mailspine.ErrorAt(err, 0); e != nil {
		t.Fatalf("ann: %v", e)
	}
	if s := mailspine.Status(mailspine.ErrorAt(err, 1)); s == nil || s.Code != 550 || s.Enhanced.String() != "5.1.1" {
		t.Errorf("nobody: %v", s)
	}
	if r := att.receipts[0]; r.RemoteMTA != "mx.example.net" || r.TLS.Peer != "mx.example.net" || !strings.HasPrefix(r.Reply, "250 2.0.0") || !r.DSNRelayed {
		t.Errorf("receipt: %+v", r)
	}
	got := p.Messages(t, 1)[0]
	if !strings.HasSuffix(got, strings.ReplaceAll(peerMessage, "\r\n", "\n")) {
		t.Errorf("arrived:\n%s", got)
	}
	if !strings.Contains(got, "with ESMTPS id") {
		t.Errorf("Postfix saw no TLS:\n%s", got)
	}
}

// Messages to Postfix, from several deliveries at a time, share connections and go in flights; the recipients that
// Postfix refuses in the middle of a flight, all or some, change nothing for the others.
func TestRelayToPostfixReuse(t *testing.T) {
	cert := peertest.SelfSigned(t, "mx.example.net")
	p := peertest.StartPostfix(t, peertest.PostfixConfig{
		Hostname: "mx.example.net", Domains: []string{"example.net"},
		Settings: map[string]string{
			"smtpd_tls_cert_file": cert.CertFile, "smtpd_tls_key_file": cert.KeyFile, "smtpd_tls_security_level": "may",
			"smtpd_recipient_restrictions": "check_recipient_access inline:{{nobody@example.net = 550 5.1.1 no such user}}, permit",
		},
	})
	addr := netip.MustParseAddrPort(p.Addr)
	var dialed, reused, mails, bdats atomic.Int64
	relay := &mta.Relay{
		Resolver: dnstest.Zone{"example.net": {dnstest.MX(10, "mx.example.net")}, "mx.example.net": {dnstest.A("127.0.0.1")}},
		Hostname: "client.example.org", Port: addr.Port(), AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		TLSPolicy: mta.TLSRules{"example.net": {Level: mta.TLSVerify, Roots: cert.Pool}},
		Logger:    slog.New(slog.DiscardHandler), IdleTimeout: time.Minute,
	}
	relay.Trace = &mta.RelayTrace{
		Dialed: func(context.Context, mta.DialedInfo) { dialed.Add(1) },
		Reused: func(context.Context, mta.ReusedInfo) { reused.Add(1) },
		Wire: func(_ context.Context, l mta.WireLine) {
			if l.Sent && strings.HasPrefix(l.Line, "MAIL ") {
				mails.Add(1)
			}
			if l.Sent && strings.HasPrefix(l.Line, "BDAT ") {
				bdats.Add(1)
			}
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const sessions, each = 4, 12
	var wg sync.WaitGroup
	for range sessions {
		wg.Go(func() {
			for i := range each {
				var to []string
				switch i % 3 {
				case 0:
					to = []string{"ann"}
				case 1:
					to = []string{"nobody"}
				case 2:
					to = []string{"nobody", "bob", "nobody"}
				}
				env := &mailspine.Envelope{ID: mailspine.NewMsgID(), From: mailspine.Address{Local: "joe", Domain: "example.org"}, Body: mailspine.Body8Bit}
				for _, who := range to {
					env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: who, Domain: "example.net"}})
				}
				err := relay.Deliver(ctx, env, mailspine.StringContent(peerMessage))
				for i, who := range to {
					s := mailspine.Status(mailspine.ErrorAt(err, i))
					if who == "nobody" && (s == nil || s.Code != 550) || who != "nobody" && s != nil {
						t.Errorf("%s of %v: %v", who, to, s)
					}
				}
			}
		})
	}
	wg.Wait()
	for _, got := range p.Messages(t, sessions*each*2/3) {
		if !strings.HasSuffix(got, strings.ReplaceAll(peerMessage, "\r\n", "\n")) {
			t.Errorf("arrived:\n%s", got)
		}
	}
	if d, r := dialed.Load(), reused.Load(); d > sessions || d+r != sessions*each {
		t.Errorf("%d connections were opened, and %d used again, for %d messages", d, r, sessions*each)
	}
	// In a flight the message is there before it is known that nobody is accepted.
	if m, b := mails.Load(), bdats.Load(); m != sessions*each || b != m {
		t.Errorf("%d times MAIL and %d times BDAT for %d messages", m, b, sessions*each)
	}
	relay.CloseIdle()
}

type attempt struct{ receipts [8]mailspine.Receipt }

func (a *attempt) BeforeCommit(context.Context, time.Duration) error { return nil }
func (a *attempt) Record(i int, r mailspine.Receipt)                 { a.receipts[i] = r }

// Postfix sends to the Receiver: pipelined, over TLS, several messages on a
// connection; what the Receiver refuses comes back as a report.
func TestPostfixToReceiver(t *testing.T) {
	cert := peertest.SelfSigned(t)
	got := make(chan string, 100)
	r := &mta.Receiver{
		Hostname: "mx.example.net", TLSConfig: cert.Config, Logger: slog.New(slog.DiscardHandler),
		Recipients: mailspine.RecipientCheckerFunc(func(_ context.Context, _ *mailspine.Envelope, rcpt mailspine.Recipient) error {
			switch rcpt.Address.String() {
			case "ann@example.net", "joe@example.org":
				return nil
			}
			return mailspine.Errorf(550, "5.1.1", "No such user here")
		}),
		Next: mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
			b, err := mailspine.ReadContent(ctx, msg, 1<<20)
			got <- fmt.Sprintf("%s|%s|%s|%s", env.From.Path(), env.Origin.Proto, env.Recipients[0].Address, b)
			return err
		}),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Serve(l) }()
	defer func() {
		r.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	p := peertest.StartPostfix(t, peertest.PostfixConfig{Hostname: "client.example.org", Relay: l.Addr().String()})
	relay := &mta.Relay{
		Resolver: dnstest.Zone{"example.net": {dnstest.A("127.0.0.1")}}, Hostname: "test.example.org",
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Logger: slog.New(slog.DiscardHandler),
	}
	_, port, _ := net.SplitHostPort(p.Addr)
	n, _ := strconv.Atoi(port)
	relay.Port = uint16(n)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const messages = 10
	for i := range messages + 1 {
		to := "ann"
		if i == messages {
			to = "nobody"
		}
		env := &mailspine.Envelope{From: mailspine.Address{Local: "joe", Domain: "example.org"}, Body: mailspine.Body8Bit,
			Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: to, Domain: "example.net"}}}}
		if err := relay.Deliver(ctx, env, mailspine.StringContent(peerMessage)); err != nil {
			t.Fatalf("message %d into Postfix: %v", i, err)
		}
	}
	arrived, reports := 0, 0
	for arrived < messages || reports < 1 {
		select {
		case s := <-got:
			parts := strings.SplitN(s, "|", 4)
			if parts[1] != "ESMTPS" {
				t.Errorf("Postfix sent with %s", parts[1])
			}
			switch {
			case parts[0] == "<>" && parts[2] == "joe@example.org" && strings.Contains(s, "No such user here"):
				reports++
			case parts[2] == "ann@example.net" && strings.HasSuffix(s, peerMessage):
				arrived++
			default:
				t.Errorf("unexpected: %s", s)
			}
		case <-ctx.Done():
			t.Fatalf("%d messages and %d reports arrived", arrived, reports)
		}
	}
	if arrived != messages {
		t.Errorf("%d messages arrived, want %d", arrived, messages)
	}
}
