package mta

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/mailspine/mailspine"
)

// A Rule of a [Mux] says which way the recipients go that it is for. Every condition that is given must hold; one that is
// empty always does. Only the envelope is looked at, never the message: what decides is what the login or the application
// says (Tenant, Stream), or what the client says (From, Domain).
//
//	Rules: []mta.Rule{
//		{Name: "bulk", Stream: "newsletter", To: bulkRelay},
//		{Name: "acme", Tenant: "acme", Domain: "example.org", To: &mta.Smarthost{Address: "10.0.0.7:25"}},
//		{Name: "reports", From: "<>", To: quietRelay},
//	}
//
// Anybody can say that he is From. A rule with it chooses a way for mail; it must not be what
// lets mail in.
type Rule struct {
	// Name is what the way is called in the routes of a queue, see [Mux.Route]: 1 to 63 letters, digits, '-', '_' and '.', the
	// first a letter. Rules of one Name are one way, and must have one To. "": the number of the first of the rules without a
	// Name that have this To, from 1. A name stays when other rules come and go.
	Name string

	// Tenant and Stream are those of the envelope, octet for octet. "": any, none too.
	Tenant, Stream string
	// From is the sender of the envelope, the reverse-path, as it is by then: a wrapper
	// that seals return paths has changed it. "<>" is the null sender; what has an @ is an address, whose local part is compared octet for octet; otherwise
	// it is a key as in Mux.Routes, for the sender's domain. "": any.
	From string
	// Domain is a key as in Mux.Routes, for the recipient's domain. "": any.
	Domain string

	// To gets the recipients. Required.
	To mailspine.Deliverer
}

// A rule is a Rule, made ready.
type rule struct {
	at             int // in Mux.Rules
	tag            string
	tenant, stream string
	null           bool              // only the null sender
	address        mailspine.Address // only this sender, with the domain in normal form; zero: any
	from           string            // normal key for the sender's domain; "": any
	domain         string            // normal key for the recipient's domain; "": any
	to             *target
}

// readyRule checks a Rule. to and tag are left to the caller.
func readyRule(r Rule) (rule, error) {
	c := rule{tenant: r.Tenant, stream: r.Stream}
	var err error
	switch {
	case r.To == nil:
		return c, errors.New("the Deliverer is nil")
	case r.Tenant == "" && r.Stream == "" && r.From == "" && r.Domain == "":
		// An unset variable must not make a rule for a few one for all: Default is for all.
		return c, errors.New("there is no condition")
	case r.Name != "" && !validWay(r.Name):
		return c, fmt.Errorf("the Name %q is not 1 to 63 letters, digits, '-', '_' and '.' with a letter first", r.Name)
	case r.From == "<>":
		c.null = true
	case strings.Contains(r.From, "@"):
		if c.address, err = mailspine.ParseAddress(r.From); err == nil {
			c.address.Domain, err = c.address.ASCIIDomain()
		}
	case r.From != "":
		c.from, err = routeKey(r.From)
	}
	if err != nil {
		return c, fmt.Errorf("field From: %w", err)
	}
	if r.Domain != "" {
		if c.domain, err = routeKey(r.Domain); err != nil {
			return c, fmt.Errorf("field Domain: %w", err)
		}
	}
	return c, nil
}

// canCompare reports whether Deliverers like this one can be compared: functions, and structs with one in them, cannot.
func canCompare(d mailspine.Deliverer) bool { return reflect.ValueOf(d).Comparable() }

func validWay(name string) bool {
	for i := 0; i < len(name); i++ {
		c := name[i]
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || (c < '0' || c > '9') && c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return name != "" && len(name) <= 63
}

// conditions is the same for rules that hold for the same mail as far as it can be told by comparing: the second
// of two would never be used.
func (c *rule) conditions() any {
	k := *c
	k.at, k.tag, k.to = 0, "", nil
	return k
}

// A sender is what rules ask of an envelope, prepared once for all of its recipients.
type sender struct {
	env    *mailspine.Envelope // nil: nothing is known
	domain string              // in normal form; "": there is none
}

func newSender(env *mailspine.Envelope) sender {
	s := sender{env: env}
	if env != nil && !env.From.IsZero() {
		s.domain, _ = env.From.ASCIIDomain() // without a normal form it is no domain of a rule
	}
	return s
}

// holds reports whether a rule is for a recipient's domain, which is in normal form.
func (c *rule) holds(s sender, domain string) bool {
	if c.domain != "" && !keyHolds(c.domain, domain) {
		return false
	}
	if s.env == nil {
		return c.tenant == "" && c.stream == "" && !c.null && c.address.IsZero() && c.from == ""
	}
	switch {
	case c.tenant != "" && c.tenant != s.env.Tenant, c.stream != "" && c.stream != s.env.Stream:
		return false
	case c.null:
		return s.env.From.IsZero()
	case !c.address.IsZero():
		return c.address.Local == s.env.From.Local && c.address.Domain == s.domain
	case c.from != "":
		return s.domain != "" && keyHolds(c.from, s.domain)
	}
	return true
}

// keyHolds reports whether a normal key is for a domain.
func keyHolds(key, domain string) bool {
	if key[0] == '.' {
		return domain[0] != '[' && strings.HasSuffix(domain, key)
	}
	return key == domain
}

// A ruleTable has the rules of a Mux. Those that name a tenant are found by it, since there may be one for each of many
// thousands; what is left to look at one by one is the rules of one tenant, and those of any.
type ruleTable struct {
	byTenant map[string][]*rule // "": of any tenant; each in order
}

// first returns the first rule that is for a recipient's domain; nil: there is none.
func (t *ruleTable) first(s sender, domain string) *rule {
	all := t.byTenant[""]
	var own []*rule
	if s.env != nil && s.env.Tenant != "" {
		own = t.byTenant[s.env.Tenant]
	}
	for len(own) > 0 || len(all) > 0 {
		list := &own
		if len(own) == 0 || len(all) > 0 && all[0].at < own[0].at {
			list = &all
		}
		c := (*list)[0]
		*list = (*list)[1:]
		if c.holds(s, domain) {
			return c
		}
	}
	return nil
}

// ready fills the table, and returns what is wrong with the rules.
func (t *ruleTable) ready(rules []Rule, intern func(mailspine.Deliverer) *target) (errs []error) {
	if len(rules) == 0 {
		return nil
	}
	t.byTenant = map[string][]*rule{}
	before := map[any]int{}    // the rule that has these conditions
	ways := map[string]*rule{} // by Name
	tags := map[*target]string{}
	for i, r := range rules {
		bad := func(err error) { errs = append(errs, fmt.Errorf("mta: Mux.Rules[%d]: %w", i, err)) }
		c, err := readyRule(r)
		if err != nil {
			bad(err)
			continue
		}
		if at, twice := before[c.conditions()]; twice {
			bad(fmt.Errorf("the same conditions as Rules[%d]", at))
			continue
		}
		before[c.conditions()] = i
		c.at, c.to = i, intern(r.To)
		if c.tag = r.Name; c.tag == "" {
			if tags[c.to] == "" {
				tags[c.to] = strconv.Itoa(i + 1)
			}
			c.tag = tags[c.to]
		} else if w := ways[r.Name]; w == nil {
			ways[r.Name] = &c
		} else if w.to != c.to && canCompare(w.to.to) && canCompare(r.To) { // of two functions nobody can say
			bad(fmt.Errorf("another Deliverer than Rules[%d], which has the Name %q too", w.at, r.Name))
			continue
		}
		t.byTenant[c.tenant] = append(t.byTenant[c.tenant], &c)
	}
	return errs
}
