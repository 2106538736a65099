package smtpclient

import (
	"strconv"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// fit settles what this server's extensions make impossible, for good: another
// host of the domain is expected to be no different. It reports whether anybody is left.
func (c *Client) fit(t *Transaction, res *Result) bool {
	refuse := func(o *Outcome, err *mailspine.Error) { o.State, o.Err = Refused, err }
	if err := c.impossible(t); err != nil {
		for i := range res.Outcomes {
			refuse(&res.Outcomes[i], err)
		}
		return false
	}
	if c.has("SMTPUTF8") {
		return len(res.Outcomes) > 0
	}
	left := 0
	for i := range res.Outcomes {
		o := &res.Outcomes[i]
		if isASCII(t.Env.Recipients[o.Rcpt].Address.Local) {
			left++
			continue
		}
		refuse(o, mailspine.Errorf(553, "5.6.7", "The recipient's address needs SMTPUTF8, which %s does not offer", c.peer))
	}
	return left > 0
}

// impossible says why nobody can get the message from this server; nil: somebody may.
func (c *Client) impossible(t *Transaction) *mailspine.Error {
	size, binary := t.Msg.size, t.Env.Body == mailspine.BodyBinary
	if v, ok := c.ext["SIZE"]; ok {
		// RFC 1870 section 4: no number, or 0, is no limit.
		if limit, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64); err == nil && limit > 0 && size > limit {
			return mailspine.Errorf(552, "5.3.4", "The message has %d octets, and %s takes at most %d", size, c.peer, limit)
		}
	}
	switch {
	case binary && (!c.has("BINARYMIME") || !c.has("CHUNKING") || c.o.NoChunking):
		return mailspine.Errorf(554, "5.6.3", "The message is binary, and %s does not offer BINARYMIME and CHUNKING", c.peer)
	case !binary && t.Msg.BareLineEnd:
		return errBareLineEnd
	case !binary && t.Msg.EightBit && !c.has("8BITMIME"):
		return mailspine.Errorf(554, "5.6.3", "The message has 8-bit data, and %s does not offer 8BITMIME", c.peer)
	case t.Env.UTF8 && !c.has("SMTPUTF8"):
		return mailspine.Errorf(550, "5.6.7", "The message needs SMTPUTF8, which %s does not offer", c.peer)
	case !isASCII(t.Env.From.Local) && !c.has("SMTPUTF8"):
		return mailspine.Errorf(553, "5.6.7", "The sender's address needs SMTPUTF8, which %s does not offer", c.peer)
	case t.Env.RequireTLS && !c.secure():
		return mailspine.Errorf(550, "5.7.10", "The message requires TLS, and there is none with %s", c.peer)
	case t.Env.RequireTLS && !c.has("REQUIRETLS"):
		return mailspine.Errorf(550, "5.7.30", "The message requires REQUIRETLS, which %s does not offer", c.peer)
	}
	if by := t.Env.DeliverBy; !by.Time.IsZero() && by.Return {
		// RFC 2852 section 4.1.4: with mode R a message is not relayed when its time is over, nor
		// to a server that would not watch it.
		if !by.Time.After(time.Now()) {
			return mailspine.Errorf(554, "5.4.7", "The time for delivery is over")
		}
		if !c.has("DELIVERBY") {
			return mailspine.Errorf(550, "5.3.3", "The message needs DELIVERBY, which %s does not offer", c.peer)
		}
	}
	return nil
}
