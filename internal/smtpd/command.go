package smtpd

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// command answers one command line, given with its line end.
func (c *Conn) command(line []byte) {
	text, why := cleanLine(line)
	if why != "" {
		c.traceWire(false, "["+why+"]")
		c.refuse(500, "5.5.2", why)
		return
	}
	verb, arg, hasArg := strings.Cut(text, " ")
	verb = strings.ToUpper(verb)
	switch {
	case verb == "AUTH":
		c.authSeen = true
		mech, _, ir := strings.Cut(arg, " ")
		shown := "AUTH " + mech
		if ir {
			shown += " ***"
		}
		c.traceWire(false, shown)
	case c.authSeen && !isVerb(verb):
		// Credentials, perhaps, of a client that does not look at our replies.
		c.traceWire(false, "***")
	default:
		c.traceWire(false, text)
	}
	arg = strings.TrimRight(arg, " ") // RFC 5321 section 4.1.1: trailing white space is let pass
	noArg := func() bool {
		if hasArg && arg != "" {
			c.refuse(501, "5.5.4", verb+" takes no argument")
			return false
		}
		return true
	}
	switch verb {
	case "EHLO", "HELO", "LHLO":
		c.hello(verb, arg)
	case "MAIL":
		c.mail(arg)
	case "RCPT":
		c.rcpt(arg)
	case "DATA":
		if noArg() {
			c.data()
		}
	case "BDAT":
		c.bdat(arg)
	case "RSET":
		if noArg() {
			c.reset()
			c.ok(250, "2.0.0", "Ok")
		}
	case "NOOP": // RFC 5321 section 4.1.1.9: the argument is ignored
		c.ok(250, "2.0.0", "Ok")
	case "QUIT":
		if noArg() {
			c.ok(221, "2.0.0", c.server.name+" closing")
			c.over = true
		}
	case "AUTH":
		c.auth(arg)
	case "STARTTLS":
		if noArg() {
			c.startTLS()
		}
	case "VRFY": // RFC 5321 section 7.3: the answer of who does not want to tell
		c.ok(252, "2.0.0", "Addresses are not verified here, send a message to find out")
	case "HELP":
		c.ok(214, "2.0.0", "RFC 5321 says it all")
	case "EXPN", "SEND", "SOML", "SAML", "TURN", "ETRN", "ATRN", "XCLIENT", "XFORWARD", "BURL":
		c.refuse(502, "5.5.1", "Command not implemented")
	case "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT":
		// A browser that was made to talk to us: its body must not become commands.
		c.server.stats.errors.Add(1)
		c.bye("4.7.0", "This is not an HTTP server")
	default:
		c.refuse(500, "5.5.1", "Command not recognized")
	}
}

// isVerb reports whether a word is one of SMTP's, which may be traced after AUTH.
func isVerb(verb string) bool {
	switch verb {
	case "EHLO", "HELO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT", "STARTTLS", "VRFY", "HELP", "EXPN", "ETRN":
		return true
	}
	return false
}

// cleanLine takes the CRLF off a command line, and says what is wrong with it.
func cleanLine(line []byte) (text, why string) {
	body, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok || bytes.IndexByte(body, '\r') >= 0 {
		return "", "Lines end with CR LF, and hold neither alone"
	}
	for _, b := range body {
		if b < 0x20 || b == 0x7f {
			return "", "Control character in a command"
		}
	}
	if !utf8.Valid(body) {
		return "", "Command is neither ASCII nor UTF-8"
	}
	return string(body), ""
}

// reset ends the transaction, if there is one.
func (c *Conn) reset() {
	if c.tx == nil {
		return
	}
	c.tx, c.refused = nil, false
	c.guard(func() { c.sess.Reset() })
}

// validHelo reports whether s can be a domain or an address literal. It is
// lenient: clients on desktops have names with underscores and in UTF-8.
func validHelo(s string) bool {
	if s == "" || len(s) > mailspine.MaxDomain {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case isLetDig(c), c >= 0x80:
		case c == '.', c == '-', c == '_', c == ':', c == '[', c == ']':
		default:
			return false
		}
	}
	return true
}

func isLetDig(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func (c *Conn) hello(verb, arg string) {
	if c.server.LMTP != (verb == "LHLO") {
		if c.server.LMTP {
			c.refuse(500, "5.5.1", "This is an LMTP server, say LHLO")
		} else {
			c.refuse(500, "5.5.1", "This is not an LMTP server")
		}
		return
	}
	// What follows the name is a mistake of some clients, and ignored.
	name, _, _ := strings.Cut(arg, " ")
	if !validHelo(name) {
		c.refuse(501, "5.5.4", "A domain or an address literal is needed")
		return
	}
	c.reset() // RFC 5321 section 4.1.4
	if c.over {
		return
	}
	c.helo, c.esmtp = name, verb != "HELO"
	if !c.esmtp {
		c.say(250, mailspine.EnhancedCode{}, c.server.name)
		return
	}
	lines := append([]string{c.server.name}, c.extensions()...)
	if !c.over {
		c.say(250, mailspine.EnhancedCode{}, lines...)
	}
}

func (c *Conn) extensions() []string {
	size := "SIZE"
	if m := c.server.limits.MaxSize; m > 0 {
		size += " " + strconv.FormatInt(m, 10)
	}
	ext := []string{"PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN", "CHUNKING"}
	if c.OffersTLS() {
		ext = append(ext, "STARTTLS")
	}
	if as, ok := c.sess.(AuthSession); ok && c.login == nil {
		c.guard(func() {
			if m := as.Mechanisms(); len(m) > 0 {
				ext = append(ext, "AUTH "+strings.Join(m, " "))
			}
		})
	}
	if c.server.Extensions.RequireTLS && c.tls != nil { // RFC 8689 section 2: not without TLS
		ext = append(ext, "REQUIRETLS")
	}
	if c.server.Extensions.DeliverBy {
		ext = append(ext, "DELIVERBY")
	}
	if c.server.Extensions.Priority {
		ext = append(ext, "MT-PRIORITY")
	}
	if m := c.server.limits.MaxRecipients; m > 0 { // RFC 9422
		ext = append(ext, "LIMITS RCPTMAX="+strconv.Itoa(m))
	}
	return ext
}

func (c *Conn) mail(arg string) {
	switch {
	case c.helo == "" && c.server.LMTP:
		c.refuse(503, "5.5.1", "Say LHLO first")
		return
	case c.helo == "":
		c.refuse(503, "5.5.1", "Say EHLO first")
		return
	case c.tx != nil:
		c.refuse(503, "5.5.1", "A transaction has begun, end it or reset it") // RFC 5321 section 4.1.4
		return
	}
	rest, ok := cutFold(arg, "FROM:")
	if !ok {
		c.refuse(501, "5.5.4", "The syntax is MAIL FROM:<address>")
		return
	}
	now := time.Now()
	tx := &Transaction{LMTP: c.server.LMTP, Envelope: &mailspine.Envelope{ID: mailspine.NewMsgID()}}
	if err := c.parseMail(tx, strings.TrimLeft(rest, " "), now); err != nil {
		c.refuseErr("MAIL refused", err)
		return
	}
	tx.Envelope.Origin = mailspine.Origin{
		Addr: c.remote, Local: c.local, Helo: c.helo, Proto: c.proto(tx.Envelope.UTF8), TLS: c.TLSInfo(), Time: now,
	}
	if c.login != nil {
		tx.Envelope.Origin.Login = c.login.Name
	}
	err := errPanicked
	c.guard(func() { err = c.sess.Mail(c.ctx, tx) })
	c.tx = tx
	if err != nil {
		c.reset()
		if !c.over {
			c.refuseErr("MAIL refused", err)
		}
		return
	}
	c.ok(250, "2.1.0", "Ok")
}

// errPanicked stands for a result that never came.
var errPanicked = errors.New("smtpd: panic")

func (c *Conn) rcpt(arg string) {
	if c.tx == nil {
		c.refuse(503, "5.5.1", "Say MAIL first")
		return
	}
	rest, ok := cutFold(arg, "TO:")
	if !ok {
		c.refuse(501, "5.5.4", "The syntax is RCPT TO:<address>")
		return
	}
	env := c.tx.Envelope
	rcpt, err := c.parseRcpt(strings.TrimLeft(rest, " "))
	if err == nil && c.server.limits.MaxRecipients > 0 && len(env.Recipients) >= c.server.limits.MaxRecipients {
		// RFC 5321 section 4.5.3.1.10. Not held against the client, which is to
		// go on with the ones it has.
		c.ok(452, "4.5.3", "Too many recipients")
		return
	}
	if err == nil {
		err = errPanicked
		c.guard(func() { err = c.sess.Rcpt(c.ctx, c.tx, &rcpt) })
	}
	if c.over {
		return
	}
	if err != nil {
		c.refused = true
		before := c.errs
		c.refuseErr("RCPT refused", err)
		if st := mailspine.Status(err); st.Code == 452 && st.Enhanced == ec("4.5.3") {
			c.errs = before // as above
		}
		return
	}
	env.Recipients = append(env.Recipients, rcpt)
	c.ok(250, "2.1.5", "Ok")
}

func (c *Conn) startTLS() {
	switch {
	case c.tls != nil:
		c.refuse(503, "5.5.1", "TLS is active already")
		return
	case c.server.TLSConfig == nil:
		c.refuse(502, "5.5.1", "TLS is not available")
		return
	case c.br.Buffered() > 0:
		// RFC 3207 section 4.2, CVE-2011-0411: what came in the clear behind
		// STARTTLS may be somebody else's, and never counts as protected.
		c.refuse(503, "5.5.1", "Nothing may follow STARTTLS before its reply")
		c.bye("4.7.0", "Closing the connection")
		return
	}
	c.ok(220, "2.0.0", "Ready to start TLS")
	c.flush()
	if c.over {
		return
	}
	// What is known from the time without TLS is forgotten (RFC 3207 section 4.2).
	c.reset()
	c.helo, c.login = "", nil
	if !c.over {
		c.handshake()
	}
}

func cutFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return "", false
	}
	return s[len(prefix):], true
}
