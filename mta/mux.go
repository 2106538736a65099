package mta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A Mux is a Deliverer made of Deliverers: it routes each recipient, by its rules and else by its
// domain, splits the message accordingly, and puts the results together again.
//
//	mux := &mta.Mux{
//		Rules:   []mta.Rule{{Name: "bulk", Stream: "newsletter", To: bulk}},
//		Routes:  map[string]mailspine.Deliverer{"example.org": agent, ".example.org": agent},
//		Default: relay,
//	}
//
// The first rule that is for a recipient decides; if none is, Routes does, and then Default. Each
// recipient is looked at by itself, and nothing in the message counts. Deliver, Route and CheckRecipient find the
// same way.
//
// It is also the queue.Router for a queue in front of it, and a
// RecipientChecker for a Receiver in front of that.
//
// A Mux has no Unwrap method: it wraps several Deliverers, and what one of them
// can do (see mailspine.Stager) it cannot do for all. Of what they can do besides, it
// passes on two things, recipient by recipient: RecipientChecker and queue.Router, looked for with
// mailspine.Find.
//
// The zero value refuses every recipient. A Mux is safe for concurrent use; its
// fields must not change after first use. It must not be copied then.
type Mux struct {
	// Rules are looked at in order, before Routes; nil: none. Looking costs time by the number of rules that are for any tenant or for the
	// envelope's own, not by that of other tenants. A Rule without any condition, with
	// one that is malformed, with the same conditions as another, or without a Deliverer is a mistake like those in Routes.
	Rules []Rule

	// Routes maps a domain to the Deliverer for its recipients. A key is a domain
	// ("example.org"), an address literal ("[192.0.2.1]"), or a dot and a domain
	// for all of its subdomains, at any depth, but not itself
	// (".example.org"). A domain's own key goes before the keys of its parents,
	// and a longer parent before a shorter. Keys are compared as
	// mailspine.ASCIIDomain has them: case and IDNA form do not matter.
	//
	// A key that is no domain, two keys that are the same, or a nil Deliverer is a mistake of the
	// program: every method then returns an error that names the key, and mail
	// waits.
	Routes map[string]mailspine.Deliverer

	// Default is for the recipients that no route is for; nil: they are refused,
	// by Deliver with 550 5.1.2, by CheckRecipient with 550 5.7.1.
	Default mailspine.Deliverer

	once  sync.Once
	rules ruleTable
	table map[string]*target // by normal key
	deflt *target
	bad   error
}

var (
	_ mailspine.Deliverer        = (*Mux)(nil)
	_ mailspine.RecipientChecker = (*Mux)(nil)
	_ queue.Router               = (*Mux)(nil)
)

// A target is one Deliverer; keys with the same Deliverer share it.
type target struct{ to mailspine.Deliverer }

func (m *Mux) init() error {
	m.once.Do(func() {
		// Funcs cannot be compared, so two keys with the same DelivererFunc are two
		// targets: one more call, the same result.
		known := map[mailspine.Deliverer]*target{}
		intern := func(d mailspine.Deliverer) *target {
			if !canCompare(d) {
				return &target{d}
			}
			t, ok := known[d]
			if !ok {
				t = &target{d}
				known[d] = t
			}
			return t
		}
		errs := m.rules.ready(m.Rules, intern)
		m.table = make(map[string]*target, len(m.Routes))
		for _, key := range slices.Sorted(maps.Keys(m.Routes)) {
			norm, err := routeKey(key)
			switch {
			case err != nil:
			case m.Routes[key] == nil:
				err = errors.New("the Deliverer is nil")
			case m.table[norm] != nil:
				err = errors.New("the same domain has another key")
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("mta: Mux.Routes[%q]: %w", key, err))
				continue
			}
			m.table[norm] = intern(m.Routes[key])
		}
		if m.Default != nil {
			m.deflt = intern(m.Default)
		}
		m.bad = errors.Join(errs...)
	})
	return m.bad
}

func routeKey(key string) (string, error) {
	domain, sub := strings.CutPrefix(key, ".")
	if sub && strings.HasPrefix(domain, "[") {
		return "", errors.New("an address literal has no subdomains")
	}
	domain = strings.TrimSuffix(domain, ".")
	if err := (mailspine.Address{Local: "x", Domain: domain}).Validate(); err != nil {
		return "", err
	}
	norm, err := mailspine.ASCIIDomain(domain)
	if sub {
		norm = "." + norm
	}
	return norm, err
}

// lookup returns the target for a domain in normal form; nil: there is none.
// A domain has at most 127 labels.
func (m *Mux) lookup(domain string) *target {
	if t := m.table[domain]; t != nil {
		return t
	}
	if !strings.HasPrefix(domain, "[") {
		for i := range len(domain) {
			if domain[i] == '.' {
				if t := m.table[domain[i:]]; t != nil {
					return t
				}
			}
		}
	}
	return m.deflt
}

// find returns the way of a recipient: the target, nil if there is none, and the rule that chose it, nil if none did.
func (m *Mux) find(s sender, rcpt mailspine.Address) (*target, *rule, error) {
	domain, err := rcpt.ASCIIDomain()
	if err != nil || domain == "" {
		return nil, nil, mailspine.Errorf(550, "5.1.3", "The address has no valid domain").WithCause(err)
	}
	if c := m.rules.first(s, domain); c != nil {
		return c.to, c, nil
	}
	return m.lookup(domain), nil, nil
}

// Deliver gives each recipient to the Deliverer of its route, each Deliverer
// called once with all of its recipients, one after the other in the order of their first
// recipients: a queue that uses the Mux as its Router hands over one domain
// at a time, so there is seldom more than one. Each part has its own envelope
// (Envelope.Subset) and context (mailspine.WithSubset); msg is the same for all.
// If there are several, each has an ID of its own, the same one whenever the message is delivered again: two parts
// may end in one queue, which is idempotent by ID.
//
// The results come back as RecipientErrors in the order of env.Recipients.
// A part that fails does not keep the others from being delivered.
func (m *Mux) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if err := m.init(); err != nil {
		return err
	}
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	index := map[*target][]int{}
	var order []*target
	from := newSender(env)
	for i, r := range env.Recipients {
		t, _, err := m.find(from, r.Address)
		switch {
		case err != nil:
			errs[i] = err
		case t == nil:
			errs[i] = mailspine.Errorf(550, "5.1.2", "There is no route to this domain")
		default:
			if index[t] == nil {
				order = append(order, t)
			}
			index[t] = append(index[t], i)
		}
	}
	for _, t := range order {
		part := index[t]
		if len(part) == len(env.Recipients) {
			return t.to.Deliver(ctx, env, msg)
		}
		sub := env.Subset(part)
		sub.ID = sub.PartID()
		err := t.to.Deliver(mailspine.WithSubset(ctx, part), sub, msg)
		for j, i := range part {
			errs[i] = mailspine.ErrorAt(err, j)
		}
	}
	return errs.Err()
}

// Route returns the key under which a queue keeps a recipient: what the
// Deliverer of the recipient's way says if it is a queue.Router itself, and
// otherwise the domain, in lower case with A-labels. If a rule chose another Deliverer than Routes and Default
// would have, "#" and the rule's Name (or number) follow: "example.org#bulk". So what holds or limits
// one way to a domain does not touch another, and two Relays need not know of each other. Recipients that nothing is for
// have a key too, so that they come to Deliver and bounce there.
//
// A queue.Gate gets such a route as it is: one that has a say about a domain in every way has to look at what is before
// the "#", which is in no domain and no Smarthost's route.
func (m *Mux) Route(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) (queue.Route, error) {
	if err := m.init(); err != nil {
		return "", err
	}
	t, c, err := m.find(newSender(env), rcpt.Address)
	if err != nil {
		return "", err
	}
	route, err := routeOf(ctx, t, env, rcpt)
	if err == nil && c != nil {
		// There is a domain, or nothing would have been found.
		if domain, _ := rcpt.Address.ASCIIDomain(); m.lookup(domain) != t {
			route += queue.Route("#" + c.tag)
		}
	}
	return route, err
}

// routeOf is the route of a recipient on the way to a Deliverer; t is nil if there is none.
func routeOf(ctx context.Context, t *target, env *mailspine.Envelope, rcpt mailspine.Recipient) (queue.Route, error) {
	if t != nil {
		if r, ok := mailspine.Find[queue.Router](t.to); ok {
			return r.Route(ctx, env, rcpt)
		}
	}
	domain, err := rcpt.Address.ASCIIDomain()
	return queue.Route(domain), err
}

// CheckRecipient accepts what the Deliverer of the recipient's way accepts, if
// that is a RecipientChecker (mda.Agent is one, [Checked] makes one). A recipient whose
// Deliverer is none is refused with 550 5.7.1: a Relay as Default takes mail for
// anybody, and must not become an open relay because a Receiver asks its Mux.
func (m *Mux) CheckRecipient(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) error {
	if err := m.init(); err != nil {
		return err
	}
	t, _, err := m.find(newSender(env), rcpt.Address)
	if err != nil {
		return err
	}
	if t != nil {
		if c, ok := mailspine.Find[mailspine.RecipientChecker](t.to); ok {
			return c.CheckRecipient(ctx, env, rcpt)
		}
	}
	return errNoRelay
}

// errNoRelay is the answer to a relay attempt.
var errNoRelay = mailspine.Errorf(550, "5.7.1", "Relaying denied")

// Checked is a Deliverer together with the RecipientChecker that says which
// recipients it takes, for a Deliverer that is none itself.
type Checked struct {
	To         mailspine.Deliverer        // gets the messages; nil: Deliver is an error, and mail waits
	Recipients mailspine.RecipientChecker // nil: every recipient is refused, 550 5.7.1
}

var (
	_ mailspine.Deliverer        = Checked{}
	_ mailspine.RecipientChecker = Checked{}
)

// Deliver passes the message to c.To.
func (c Checked) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if c.To == nil {
		return errors.New("mta: Checked.To is nil")
	}
	return c.To.Deliver(ctx, env, msg)
}

// CheckRecipient asks c.Recipients.
func (c Checked) CheckRecipient(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) error {
	if c.Recipients == nil {
		return errNoRelay
	}
	return c.Recipients.CheckRecipient(ctx, env, rcpt)
}

// Unwrap returns c.To.
func (c Checked) Unwrap() mailspine.Deliverer { return c.To }
