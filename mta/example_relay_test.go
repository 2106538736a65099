package mta_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/mta"
)

// How does mail get from one domain to another? A Relay finds the mail exchanger
// and sends; a Receiver there checks and takes. Both are here, on loopback.
func Example() {
	quiet := slog.New(slog.DiscardHandler)
	dns := dnstest.Zone{
		"example.org":        {dnstest.MX(10, "mx.example.org")},
		"mx.example.org":     {dnstest.A("127.0.0.1")},
		"example.com":        {dnstest.TXT("v=spf1 ip4:127.0.0.1 -all")},
		"_dmarc.example.com": {dnstest.TXT("v=DMARC1; p=reject")},
		"null.example":       {dnstest.MX(0, "")},
	}

	receiver := &mta.Receiver{
		Hostname: "mx.example.org",
		Checker:  &auth.Checker{Resolver: dns, ID: "mx.example.org", Logger: quiet},
		Recipients: mailspine.RecipientCheckerFunc(func(_ context.Context, _ *mailspine.Envelope, r mailspine.Recipient) error {
			if r.Address.String() != "bob@example.org" {
				return mailspine.Errorf(550, "5.1.1", "No such user")
			}
			return nil
		}),
		Next: mailspine.DelivererFunc(func(_ context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
			h, err := mailspine.ReadHeader(context.Background(), msg, 0)
			if err != nil {
				return err
			}
			fmt.Printf("arrived: %q, spf=%s dmarc=%s\n", h.Get("Subject"), env.Verdict.SPF, env.Verdict.DMARC)
			return nil
		}),
		Logger: quiet,
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	served := make(chan error)
	go func() { served <- receiver.Serve(l) }()

	relay := &mta.Relay{
		Resolver:     dns,
		Hostname:     "out.example.com",
		Port:         l.Addr().(*net.TCPAddr).AddrPort().Port(),            // 25, in the world
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, // none, in the world
		Logger:       quiet,
	}
	env := &mailspine.Envelope{From: mailspine.Address{Local: "ann", Domain: "example.com"}}
	for _, to := range []string{"bob@example.org", "nobody@example.org", "eve@null.example"} {
		a, _ := mailspine.ParseAddress(to)
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: a})
	}
	err = relay.Deliver(context.Background(), env, mailspine.StringContent(
		"From: ann@example.com\r\nSubject: hello\r\n\r\nHello Bob\r\n"))
	for i, r := range env.Recipients {
		if st := mailspine.Status(mailspine.ErrorAt(err, i)); st != nil {
			fmt.Printf("%s: %s\n", r.Address, st.Reply())
			continue
		}
		fmt.Printf("%s: taken\n", r.Address)
	}

	if err := receiver.Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	fmt.Println("served:", <-served)
	// Output:
	// arrived: "hello", spf=pass dmarc=pass
	// bob@example.org: taken
	// nobody@example.org: 550 5.1.1 No such user
	// eve@null.example: 556 5.1.10 The domain null.example takes no mail (null MX)
	// served: <nil>
}

// Which domains must have TLS? The policy of a Relay says so.
func ExampleTLSRules() {
	policy := mta.TLSRules{
		"bank.example": {Level: mta.TLSVerify, Hosts: []string{"*.bank.example"}},
		".example":     {Level: mta.TLSEncrypt},
	}
	for _, domain := range []string{"bank.example", "shop.example", "example.org"} {
		rule, err := policy.TLSRule(context.Background(), domain)
		fmt.Println(domain, rule.Level, err)
	}
	// Output:
	// bank.example verify <nil>
	// shop.example encrypt <nil>
	// example.org opportunistic <nil>
}

// How is a dialogue shown? Trace has a hook for each line.
func ExampleRelay_trace() {
	client, server := net.Pipe()
	go func() { // a server of few words
		io.WriteString(server, "421 4.3.2 Closed on Sundays\r\n")
		server.Close()
	}()
	relay := &mta.Relay{
		Resolver: dnstest.Zone{"example.org": {dnstest.A("203.0.113.1")}},
		Dial:     func(context.Context, string, string) (net.Conn, error) { return client, nil },
		// The documentation range is not public.
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		Trace: &mta.RelayTrace{
			Resolved: func(_ context.Context, r mta.ResolvedInfo) { fmt.Println("hosts:", r.Hosts) },
			Wire:     func(_ context.Context, l mta.WireLine) { fmt.Println(l.Addr, l.Line) },
		},
	}
	err := relay.Deliver(context.Background(), &mailspine.Envelope{
		Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "bob", Domain: "example.org"}}},
	}, mailspine.StringContent("Subject: hello\r\n\r\nhello\r\n"))
	fmt.Println("temporary:", mailspine.Status(err).Temporary())
	// Output:
	// hosts: [example.org]
	// 203.0.113.1:25 421 4.3.2 Closed on Sundays
	// temporary: true
}
