package msa

import (
	"strings"
	"testing"
)

// RFC 8689 section 2: REQUIRETLS is offered under TLS only, and comes into the envelope; the TLS-Required field (section 3)
// stays in the message.
func TestRequireTLS(t *testing.T) {
	const msg = "From: joe@example.org\r\nTLS-Required: No\r\nDate: Wed, 04 Mar 2026 05:06:07 +0000\r\nMessage-ID: <a@b>\r\n\r\nx\r\n"
	for name, tt := range map[string]struct {
		off     bool
		param   string
		refused string
		want    bool
	}{
		"asked for":           {param: " REQUIRETLS", want: true},
		"in lower case":       {param: " requiretls", want: true},
		"not asked for":       {},
		"with a value":        {param: " REQUIRETLS=YES", refused: "501 5.5.4 "},
		"off":                 {off: true},
		"off, and asked for":  {off: true, param: " REQUIRETLS", refused: "555 5.5.4 "},
		"asked for two times": {param: " REQUIRETLS REQUIRETLS", refused: "501 5.5.4 "},
	} {
		t.Run(name, func(t *testing.T) {
			b := &box{}
			s := newServer(t, b)
			s.NoRequireTLS = tt.off
			addr := start(t, s, s.Serve)

			clear := dialTo(t, addr)
			clear.expect("220 ")
			if r := clear.cmd("EHLO client.example", "250-"); strings.Contains(r, "REQUIRETLS") {
				t.Errorf("offered in the clear: %s", r)
			}
			if tt.param == " REQUIRETLS" && !tt.off {
				clear.cmd("MAIL FROM:<joe@example.org> REQUIRETLS", "530 5.7.10 ")
			}
			c := loggedIn(t, addr, "joe@example.org")
			if r := c.cmd("EHLO client.example", "250-"); strings.Contains(r, "REQUIRETLS") == tt.off {
				t.Errorf("under TLS: %s", r)
			}
			if tt.refused != "" {
				c.cmd("MAIL FROM:<joe@example.org>"+tt.param, tt.refused)
				return
			}
			c.cmd("MAIL FROM:<joe@example.org>"+tt.param, "250 ")
			c.cmd("RCPT TO:<bob@example.com>", "250 ")
			c.cmd("DATA", "354 ")
			c.send(msg + ".\r\n")
			c.expect("250 ")
			env, data := b.last(t)
			if env.RequireTLS != tt.want {
				t.Errorf("Envelope.RequireTLS is %v", env.RequireTLS)
			}
			if !strings.Contains(data, "\r\nTLS-Required: No\r\n") {
				t.Errorf("TLS-Required is gone:\n%s", data)
			}
			// The next message of the connection is another one.
			c.submit("joe@example.org", strings.Replace(msg, "TLS-Required: No\r\n", "", 1), "bob@example.com")
			if env, _ := b.last(t); env.RequireTLS {
				t.Error("the next message requires TLS too")
			}
		})
	}
}
