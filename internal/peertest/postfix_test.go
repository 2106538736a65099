package peertest

import (
	"net/smtp"
	"strings"
	"testing"
)

// Two instances: one relays to the other, which delivers.
func TestPostfix(t *testing.T) {
	to := StartPostfix(t, PostfixConfig{Domains: []string{"example.net"}})
	from := StartPostfix(t, PostfixConfig{Hostname: "from.example", Relay: to.Addr})
	err := smtp.SendMail(from.Addr, nil, "joe@example.org", []string{"ann@example.net"}, []byte("Subject: hello\r\n\r\nHello.\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if m := to.Messages(t, 1); !strings.Contains(m[0], "Hello.") {
		t.Errorf("arrived: %q", m[0])
	}
}
