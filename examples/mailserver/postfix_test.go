package main

import (
	"net/smtp"
	"strings"
	"testing"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/internal/peertest"
)

// A real Postfix gets what a -route and what the -relay leads to, and sends to us.
func TestPostfix(t *testing.T) {
	t.Parallel()
	ns, err := dnstest.Start(dnstest.Zone{"sender.example": {dnstest.TXT("v=spf1 ip4:127.0.0.1 -all")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	routed := peertest.StartPostfix(t, peertest.PostfixConfig{Hostname: "routed.example", Domains: []string{"routed.example"}})
	rest := peertest.StartPostfix(t, peertest.PostfixConfig{Hostname: "rest.example", Domains: []string{"one.example", "two.example"}})
	// The targets are on loopback, and allowed since flags name them and not strangers.
	p := start(t, t.TempDir(), append(defaults(), "-route", "routed.example="+routed.Addr, "-relay", rest.Addr, "-dns", ns.Addr(), "-source", "127.0.0.1")...)
	t.Cleanup(p.stop)

	to := []string{"joe@routed.example", "joe@one.example", "joe@two.example", "bob@example.test"}
	if err := p.write("to all", to...); err != nil {
		t.Fatal(err)
	}
	for _, arrived := range [][]string{routed.Messages(t, 1), rest.Messages(t, 2)} {
		for _, m := range arrived {
			if !strings.Contains(m, "Subject: to all\n") || !strings.Contains(m, "DKIM-Signature: ") || !strings.Contains(m, "from mail.example.test ") {
				t.Errorf("arrived:\n%s", m)
			}
		}
	}
	p.with("bob@example.test", "", "to all")

	// And back, as from the world: checked, filed, and only for users that there are.
	from := peertest.StartPostfix(t, peertest.PostfixConfig{Hostname: "sender.example", Domains: []string{"sender.example"}, Relay: p.addr["smtp"]})
	for _, to := range []string{"bob+lists@example.test", "Postmaster@example.test", "nobody@example.test"} {
		err := smtp.SendMail(from.Addr, nil, "joe@sender.example", []string{to}, []byte("From: joe@sender.example\r\nTo: "+to+"\r\nSubject: from Postfix\r\n\r\nHello.\r\n"))
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, user := range []string{"bob@example.test", "ann@example.test"} {
		if got := p.with(user, "", "from Postfix"); !strings.Contains(got, "spf=pass") || !strings.Contains(got, "with UTF8SMTPS\r\n\t(TLS 1.3") {
			t.Errorf("%s got\n%s", user, got)
		}
	}
	if m := from.Messages(t, 1)[0]; !strings.Contains(m, "nobody@example.test") || !strings.Contains(m, "550 5.1.1") {
		t.Errorf("the sender is told:\n%s", m)
	}
}
