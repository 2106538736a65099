package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// Every domain and host has a postmaster (RFC 5321 section 4.5.1), and the addresses for complaints and
// for people can be recipients of one message.
func TestRoles(t *testing.T) {
	t.Parallel()
	ns, err := dnstest.Start(dnstest.Zone{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	p := start(t, t.TempDir(), append(defaults(), "-user", "abuse:letmein", "-dns", ns.Addr())...)
	for i, c := range []struct {
		to, user, mailbox string
	}{
		{"postmaster", "ann@example.test", ""},
		{"PostMaster@example.test", "ann@example.test", ""},
		{"postmaster@mail.example.test", "ann@example.test", ""},
		{"abuse@example.test", "abuse@example.test", ""},
		{"fbl@Example.Test", "ann@example.test", "Feedback"},
	} {
		subject := fmt.Sprint("role ", i)
		if _, err := p.send("joe@sender.example", []string{c.to}, letter("joe@sender.example", c.to, subject)); err != nil {
			t.Errorf("%s: %v", c.to, err)
			continue
		}
		p.with(c.user, c.mailbox, subject)
	}
	for _, to := range []string{"ann@mail.example.test", "joe@elsewhere.example", "ann@[127.0.0.1]", "ann%elsewhere.example@example.test"} {
		if _, err := p.send("joe@sender.example", []string{to}, letter("joe@sender.example", to, "no")); err == nil || !strings.Contains(err.Error(), "550") {
			t.Errorf("%s: %v", to, err)
		}
	}
	if _, err := p.send("joe@sender.example", []string{"bob@example.test", "fbl@example.test"}, letter("joe@sender.example", "bob@example.test", "both")); err != nil {
		t.Error(err)
	}
	p.with("bob@example.test", "", "both")
	p.with("ann@example.test", "Feedback", "both")
	p.stop()
}
