package mta

import (
	"context"
	"errors"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// maxBusy is how many domains in a row may be turned away with 421 by themselves, before the rest is left: then the server is busy, and it
// was not because of one of them.
const maxBusy = 2

// apart gives the domains of a shared transaction one more try by themselves, one after the other, where the server's answer may
// have been meant for another domain, or for their being together: large receivers take one domain in a transaction ("451 4.3.0 Multiple
// destination domains per transaction is unsupported"), hang up on all because of one, or refuse the message because of what one of
// them wants. Nobody has the message after such an answer; what is in doubt stays so. It is bounded by the domains, each with the
// bounds of along.
func (t *transfer) apart(ctx context.Context) {
	var again []part
	for i := range t.parts {
		if p := t.shared(i); len(p.index) > 0 {
			again = append(again, p)
		}
	}
	defer func(parts []part, domain string) { t.parts, t.domain = parts, domain }(t.parts, t.domain)
	busy := 0 // in a row
	for _, p := range again {
		if ctx.Err() != nil || busy == maxBusy {
			return
		}
		t.parts, t.domain = []part{p}, p.domain
		t.along(ctx, p.index)
		busy++
		for _, i := range p.index {
			if _, code := answered(t.errs[i]); code != 421 {
				busy = 0
			}
		}
	}
}

// shared returns those recipients of a part whose results may be due to another part.
func (t *transfer) shared(n int) part {
	// How others fared.
	var taken, data bool // one was not refused at RCPT; one was refused with the message
	for m, p := range t.parts {
		if m == n {
			continue
		}
		for _, i := range p.index {
			command, _ := answered(t.errs[i])
			taken = taken || command != "RCPT"
			data = data || command == "DATA" || command == "message"
		}
	}
	p := part{domain: t.parts[n].domain}
	for _, i := range t.parts[n].index {
		again := false
		switch command, code := answered(t.errs[i]); command {
		case "RCPT":
			again = code == 421 || code/100 == 4 && taken
		case "DATA", "message":
			again = code == 421 || data
		}
		if again {
			p.index = append(p.index, i)
		}
	}
	return p
}

// answered returns the command whose answer a result is, and the code; "": it is none, or the message may have been taken.
func answered(err error) (command string, code int) {
	var doubt *smtpclient.InDoubtError
	var re *smtpclient.ReplyError
	var me *mailspine.Error
	if errors.As(err, &doubt) || !errors.As(err, &re) || !errors.As(err, &me) {
		return "", 0
	}
	return re.Command, me.Code
}
