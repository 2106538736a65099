package smtpd

import (
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// auth is the AUTH command (RFC 4954).
func (c *Conn) auth(arg string) {
	as, ok := c.sess.(AuthSession)
	switch {
	case !ok:
		c.refuse(502, "5.5.1", "AUTH is not available")
		return
	case c.helo == "" || !c.esmtp:
		c.refuse(503, "5.5.1", "Say EHLO first")
		return
	case c.login != nil:
		c.refuse(503, "5.5.1", "You are authenticated already")
		return
	case c.tx != nil: // section 4: not during a transaction
		c.refuse(503, "5.5.1", "A transaction has begun")
		return
	}
	mech, ir, hasIR := strings.Cut(arg, " ")
	if mech == "" || len(mech) > 20 { // RFC 4422 section 3.1
		c.refuse(501, "5.5.4", "The syntax is AUTH mechanism [initial-response]")
		return
	}
	var ex Exchange
	err := errPanicked
	c.guard(func() { ex, err = as.Auth(c.ctx, strings.ToUpper(mech)) })
	if c.over {
		return
	}
	if err != nil {
		c.refuseErr("AUTH refused", err)
		return
	}
	var response []byte
	if hasIR {
		if response, ok = decodeSASL(ir); !ok {
			c.refuse(501, "5.5.2", "Response is not base64")
			return
		}
	}
	for range 10 { // no mechanism has more rounds
		var challenge []byte
		done, err := false, errPanicked
		c.guard(func() { challenge, done, err = ex.Next(response) })
		if c.over {
			return
		}
		if err != nil {
			c.authFailed(strings.ToUpper(mech), err)
			return
		}
		if done {
			c.guard(func() { c.login = ex.Login() })
			if c.login == nil {
				if !c.over {
					c.authFailed(mech, errors.New("smtpd: exchange is done, but has no login"))
				}
				return
			}
			c.server.stats.authOK.Add(1)
			c.Logger().Info("smtpd: logged in", "mechanism", strings.ToUpper(mech), "login", c.login.Name)
			c.ok(235, "2.7.0", "Authentication succeeded")
			return
		}
		c.traceWire(true, "334 ***")
		c.bw.WriteString("334 " + base64.StdEncoding.EncodeToString(challenge) + "\r\n")
		line, err := c.readLine(maxAuthLine)
		if err == errTooLong {
			c.refuse(500, "5.5.6", "Authentication exchange line is too long")
			return
		}
		if err != nil {
			c.readFailed(err)
			c.over = true
			return
		}
		text, why := cleanLine(line)
		if why == "" && text == "*" {
			c.traceWire(false, "*")
			c.refuse(501, "5.7.0", "Authentication cancelled")
			return
		}
		c.traceWire(false, "***")
		if response, ok = decodeSASL(text); why != "" || !ok {
			c.refuse(501, "5.5.2", "Response is not base64")
			return
		}
		if response == nil {
			response = []byte{}
		}
	}
	c.refuse(535, "5.7.8", "Authentication exchange does not end")
}

// decodeSASL decodes a response; "=" is an empty initial one.
func decodeSASL(s string) ([]byte, bool) {
	if s == "=" {
		return []byte{}, true
	}
	b, err := base64.StdEncoding.DecodeString(s)
	return b, err == nil
}

// authFailed answers an exchange that failed; guesses take longer and longer.
func (c *Conn) authFailed(mech string, err error) {
	var st *mailspine.Error
	switch {
	case errors.Is(err, mailspine.ErrBadCredentials):
		st = mailspine.Errorf(535, "5.7.8", "Authentication credentials invalid")
	case errors.As(err, &st):
		st = mailspine.Status(err)
	default:
		st = mailspine.Errorf(454, "4.7.0", "Temporary authentication failure")
	}
	if st.Temporary() {
		c.Logger().Error("smtpd: login could not be checked", "mechanism", mech, "err", err)
		c.errs++
		c.server.stats.errors.Add(1)
		c.say(st.Code, st.Enhanced, st.Message)
		return
	}
	c.authBad++
	c.server.stats.authBad.Add(1)
	c.Logger().Warn("smtpd: login failed", "mechanism", mech, "failures", c.authBad, "err", err)
	c.pause(c.authDelay())
	c.refuse(st.Code, st.Enhanced.String(), st.Message)
	if n := c.server.limits.MaxAuthFailures; n > 0 && c.authBad >= n {
		c.bye("4.7.0", "Too many failed logins")
	}
}

func (c *Conn) authDelay() time.Duration {
	d := c.server.AuthDelay
	if d == 0 {
		d = time.Second
	}
	return min(max(d, 0)<<min(c.authBad-1, 10), 8*time.Second)
}

// pause waits, unless the connection or the server ends before.
func (c *Conn) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ctx.Done():
	case <-c.server.closing:
	}
}
