package auth_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/dkim"
)

// A message is signed on one side and checked on the other.
func Example() {
	key, err := dkim.GenerateEd25519()
	if err != nil {
		panic(err)
	}
	signing := dkim.SigningKey{Domain: "example.org", Selector: "2026a", Key: key}

	// What the sender's domain publishes; auth/dns has the real Resolver.
	published := map[string]string{
		"example.org":        "v=spf1 ip4:192.0.2.1 -all",
		"_dmarc.example.org": "v=DMARC1; p=reject",
		signing.Name():       signing.Record().String(),
	}
	dns := mailspine.ResolverFunc(func(_ context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
		if txt, ok := published[name]; ok && t == mailspine.TypeTXT {
			return mailspine.Answer{TXT: []string{txt}}, nil
		}
		return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: mailspine.ErrNXDomain}
	})

	// The receiver: check while the message arrives, then decide.
	checker := &auth.Checker{Resolver: dns, ID: "mx.example.net"}
	receiver := mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
		check := checker.Start(ctx, env)
		defer check.Cancel()
		r, err := msg.Open(ctx)
		if err != nil {
			return err
		}
		defer r.Close()
		if _, err := io.Copy(check, r); err != nil {
			return err
		}
		res := check.Finish()
		v := res.Verdict()
		fmt.Println("spf", v.SPF, "dkim", v.DKIM, "dmarc", v.DMARC)
		if refusal := res.Reject(); refusal != nil {
			return refusal
		}
		return nil
	})

	// The sender: sign, and hand on.
	signer := &auth.Signer{Keys: auth.KeyMap{"example.org": {signing}}, Next: receiver, Required: true}
	env := &mailspine.Envelope{
		From:       mailspine.Address{Local: "joe", Domain: "example.org"},
		Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "ann", Domain: "example.net"}}},
		Origin:     mailspine.Origin{Addr: netip.MustParseAddrPort("192.0.2.1:40000"), Helo: "mail.example.org"},
	}
	msg := mailspine.StringContent("From: Joe <joe@example.org>\r\nSubject: hello\r\n\r\nHello, Ann.\r\n")
	fmt.Println(signer.Deliver(context.Background(), env, msg))

	// Somebody else says that he is Joe.
	env.Origin.Addr = netip.MustParseAddrPort("198.51.100.66:40000")
	fmt.Println(receiver.Deliver(context.Background(), env, msg))
	// Output:
	// spf pass dkim pass dmarc pass
	// <nil>
	// spf fail dkim none dmarc fail
	// 550 5.7.1 Rejected by the DMARC policy of example.org
}
