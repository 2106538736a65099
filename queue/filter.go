package queue

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// ErrBadFilter is matched by the errors of a [Filter] that is not valid.
var ErrBadFilter = errors.New("queue: bad filter")

// A Filter selects items: those that match every field that is not zero. The
// zero Filter selects all.
type Filter struct {
	ID     mailspine.MsgID // the items of one message
	Item   ItemID
	Route  Route
	Tenant string
	Stream string
	// Sender is the reverse-path: an address, "@example.org" for all of a domain,
	// "<>" for the null reverse-path.
	Sender string
	// Recipient is one of the recipients that are not done: an address, or "@example.org" for all of
	// a domain.
	Recipient string
	// Domain is the domain of one of the recipients that are not done.
	Domain string
	// State is that of the item; AnyState: all.
	State ItemState
	// MinAge and MaxAge bound the time since the message was put: not less than
	// MinAge, less than MaxAge. 0: no bound.
	MinAge, MaxAge time.Duration
}

// Validate returns nil, or an error that matches ErrBadFilter and says which field is wrong.
func (f Filter) Validate() error {
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrBadFilter, field, fmt.Sprintf(format, args...))
	}
	if f.Sender != "" && f.Sender != "<>" {
		if err := validPattern(f.Sender); err != nil {
			return bad("Sender", "%v", err)
		}
	}
	if f.Recipient != "" {
		if err := validPattern(f.Recipient); err != nil {
			return bad("Recipient", "%v", err)
		}
	}
	if f.Domain != "" {
		if err := validPattern("@" + f.Domain); err != nil {
			return bad("Domain", "%v", err)
		}
	}
	switch {
	case f.State > ItemHeld:
		return bad("State", "%d is none", f.State)
	case f.MinAge < 0:
		return bad("MinAge", "is negative")
	case f.MaxAge < 0:
		return bad("MaxAge", "is negative")
	case f.MaxAge > 0 && f.MinAge >= f.MaxAge:
		return bad("MaxAge", "nothing is at least %v and less than %v old", f.MinAge, f.MaxAge)
	}
	return nil
}

func validPattern(s string) error {
	if strings.HasPrefix(s, "@") {
		s = "x" + s
	}
	_, err := mailspine.ParseAddress(s)
	return err
}

// NeedsEnvelope reports whether the items' envelopes have to be read to know
// which match; without, Match looks at the other fields only.
func (f Filter) NeedsEnvelope() bool {
	return f.Stream != "" || f.Sender != "" || f.Recipient != "" || f.Domain != ""
}

// Match reports whether an item matches a valid Filter. Item.Envelope may be nil if the Filter
// does not need it and has no Tenant. Domains are compared without regard to case, and
// as A-labels; local parts without regard to case, since whoever looks for mail rarely knows.
func (f Filter) Match(it Item) bool {
	switch {
	case f.ID != "" && f.ID != it.Message,
		f.Item != 0 && f.Item != it.ID,
		f.Route != "" && f.Route != it.Route,
		f.State != AnyState && f.State != it.State,
		it.Age < f.MinAge,
		f.MaxAge > 0 && it.Age >= f.MaxAge:
		return false
	}
	if f.Tenant == "" && !f.NeedsEnvelope() {
		return true
	}
	env := it.Envelope
	switch {
	case env == nil,
		f.Tenant != "" && f.Tenant != env.Tenant,
		f.Stream != "" && f.Stream != env.Stream,
		f.Sender != "" && !matchAddress(f.Sender, env.From):
		return false
	}
	return (f.Recipient == "" || anyRecipient(env, f.Recipient)) && (f.Domain == "" || anyRecipient(env, "@"+f.Domain))
}

func anyRecipient(env *mailspine.Envelope, pattern string) bool {
	for _, r := range env.Recipients {
		if matchAddress(pattern, r.Address) {
			return true
		}
	}
	return false
}

func matchAddress(pattern string, a mailspine.Address) bool {
	if a.IsZero() || pattern == "<>" {
		return a.IsZero() && pattern == "<>"
	}
	any := strings.HasPrefix(pattern, "@")
	if any {
		pattern = "x" + pattern
	}
	p, err := mailspine.ParseAddress(pattern)
	return err == nil && foldDomain(p) == foldDomain(a) && (any || strings.EqualFold(p.Local, a.Local))
}

func foldDomain(a mailspine.Address) string {
	if d, err := a.ASCIIDomain(); err == nil {
		return strings.ToLower(d)
	}
	return strings.ToLower(a.Domain)
}
