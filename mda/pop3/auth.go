package pop3

import (
	"encoding/base64"
	"strings"

	"github.com/emersion/go-sasl"
)

// auth is the AUTH command (RFC 5034).
func (c *conn) auth(arg string) {
	if !c.encrypted() {
		return
	}
	mechanism, initial, hasInitial := strings.Cut(arg, " ")
	if !strings.EqualFold(mechanism, sasl.Plain) {
		c.fail("The mechanism is PLAIN")
		return
	}
	if !hasInitial {
		c.wire(true, "+ ")
		c.bw.WriteString("+ \r\n")
		if c.bw.Flush() != nil {
			return
		}
		line, err := c.line()
		if err == errLineTooLong {
			c.fail("Line too long")
			c.over = true
			return
		}
		if err != nil {
			c.ended(err)
			return
		}
		c.wire(false, "***")
		initial = line
	}
	if initial == "*" {
		c.fail("Cancelled")
		return
	}
	if initial == "=" { // an empty response
		initial = ""
	}
	response, err := base64.StdEncoding.DecodeString(initial)
	if err != nil {
		c.fail("The response is not base64")
		return
	}
	checked := false
	server := sasl.NewPlainServer(func(authzID, username, password string) error {
		checked = true
		c.check("PLAIN", authzID, username, password)
		return nil
	})
	if _, _, err := server.Next(response); err != nil && !checked {
		c.fail("The response is not one of PLAIN")
	}
}
