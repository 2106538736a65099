package smtpclient

import (
	"fmt"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// mail builds the MAIL command, with the parameters that the server knows. utf8: SMTPUTF8 is one of them.
func (c *Client) mail(env *mailspine.Envelope, msg *Message, utf8 bool) string {
	var b strings.Builder
	b.WriteString("MAIL FROM:" + path(env.From, utf8))
	if c.has("SIZE") {
		// RFC 1870 section 5: as the message is, without the stuffed dots.
		fmt.Fprintf(&b, " SIZE=%d", msg.size)
	}
	switch {
	case env.Body == mailspine.BodyBinary:
		b.WriteString(" BODY=BINARYMIME")
	case msg.EightBit:
		b.WriteString(" BODY=8BITMIME")
	}
	if utf8 {
		b.WriteString(" SMTPUTF8")
	}
	if env.RequireTLS {
		b.WriteString(" REQUIRETLS")
	}
	if c.has("DSN") {
		switch env.Ret {
		case mailspine.RetFull:
			b.WriteString(" RET=FULL")
		case mailspine.RetHdrs:
			b.WriteString(" RET=HDRS")
		}
		if env.EnvID != "" && isPrintable(env.EnvID) {
			b.WriteString(" ENVID=" + xtext(env.EnvID))
		}
	}
	if by := env.DeliverBy; !by.Time.IsZero() && c.has("DELIVERBY") {
		mode := "N"
		if by.Return {
			mode = "R"
		}
		if by.Trace {
			mode += "T"
		}
		// RFC 2852 section 4: whole seconds, negative for N when the time is over, nine digits at most.
		secs := min(max(int64(time.Until(by.Time).Round(time.Second)/time.Second), -999999999), 999999999)
		if by.Return {
			secs = max(secs, 1)
		}
		fmt.Fprintf(&b, " BY=%d;%s", secs, mode)
	}
	if env.Priority != 0 && c.has("MT-PRIORITY") {
		fmt.Fprintf(&b, " MT-PRIORITY=%d", env.Priority)
	}
	return b.String()
}

// rcpt builds the RCPT command.
func (c *Client) rcpt(r mailspine.Recipient) string {
	var b strings.Builder
	b.WriteString("RCPT TO:" + path(r.Address, c.has("SMTPUTF8") && !isASCII(r.Address.Local)))
	if !c.has("DSN") {
		return b.String()
	}
	if r.Notify != 0 {
		var words []string
		for _, n := range []struct {
			bit  mailspine.Notify
			word string
		}{
			{mailspine.NotifyNever, "NEVER"}, {mailspine.NotifySuccess, "SUCCESS"},
			{mailspine.NotifyFailure, "FAILURE"}, {mailspine.NotifyDelay, "DELAY"},
		} {
			if r.Notify&n.bit != 0 {
				words = append(words, n.word)
			}
		}
		b.WriteString(" NOTIFY=" + strings.Join(words, ","))
	}
	if o := orcpt(r.ORcpt); o != "" {
		b.WriteString(" ORCPT=" + o)
	}
	return b.String()
}

// path is the address in angle brackets, the domain as A-labels unless the
// transaction is one with SMTPUTF8.
func path(a mailspine.Address, utf8 bool) string {
	if !utf8 && !isASCII(a.Domain) {
		if d, err := a.ASCIIDomain(); err == nil {
			a.Domain = d
		}
	}
	return a.Path()
}

// xtext encodes as RFC 3461 section 4 says. s is printable ASCII.
func xtext(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < '!' || c > '~' || c == '+' || c == '=' {
			fmt.Fprintf(&b, "+%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// orcpt encodes "type;address" for ORCPT; "" if it cannot be sent. What is not
// ASCII goes as utf-8-addr-xtext, which every server with DSN can take (RFC 6533 section 3).
func orcpt(s string) string {
	typ, addr, ok := strings.Cut(s, ";")
	if !ok || typ == "" || addr == "" || strings.ContainsFunc(typ, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '+' || r == '=' }) {
		return ""
	}
	if isPrintable(addr) && !strings.EqualFold(typ, "utf-8") {
		return typ + ";" + xtext(addr)
	}
	if !strings.EqualFold(typ, "rfc822") && !strings.EqualFold(typ, "utf-8") {
		return ""
	}
	var b strings.Builder
	for _, r := range addr {
		if r <= ' ' || r >= 0x7f || r == '+' || r == '=' || r == '\\' {
			fmt.Fprintf(&b, "\\x{%02X}", r)
		} else {
			b.WriteRune(r)
		}
	}
	if b.Len() > 500 {
		return "" // RFC 3461 section 4.2: the parameter has at most 500 characters
	}
	return "utf-8;" + b.String()
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
