package egress

import (
	"cmp"
	"context"

	"github.com/mailspine/mailspine"
)

// An Explanation says what Choose would do with one copy of a message now, and
// with which numbers. It may get more fields.
type Explanation struct {
	Tenant        string `json:"tenant"`
	Pool          string `json:"pool"`          // where it is sent from
	SendingDomain string `json:"sendingDomain"` // as which domain; "": none
	Domain        string `json:"domain"`        // where it goes; no rule looks at it yet

	// Sending is the count of the sending domain; nil: it has none.
	Sending *Count `json:"sending,omitempty"`
	// Sources are those of the pool, in the order in which they are chosen: those with room
	// first, and of them the one that has sent least for its weight.
	Sources []Candidate `json:"sources"`

	// Source is the name of the one that is chosen; "": the copy waits.
	Source string `json:"source,omitempty"`
	// Wait says why it waits; nil: it does not.
	Wait *mailspine.NotNow `json:"wait,omitempty"`
}

// A Candidate is a source with its numbers.
type Candidate struct {
	Count
	Weight int `json:"weight"`
	// StandsBack is set while the source lets the others go first, since it reached nobody a moment ago.
	StandsBack bool `json:"standsBack,omitempty"`
	// Load is what was sent and reserved today, over Weight: the least goes first.
	Load float64 `json:"load"`
}

// Explain says what Choose would do with one copy of a message to a domain. It reserves
// nothing. Its errors are those of Choose.
func (s *Selector) Explain(ctx context.Context, env *mailspine.Envelope, domain string) (Explanation, error) {
	e := Explanation{Tenant: env.Tenant, Domain: domain, SendingDomain: s.domain(env)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(ctx); err != nil {
		return e, err
	}
	now := s.now()
	p, err := s.plan(env, e.SendingDomain, 1)
	if err != nil {
		return e, err
	}
	e.Pool = p.pool.name
	if p.domain != nil {
		n := p.domain.count()
		e.Sending = &n
	}
	for _, m := range p.pool.byLoad(now) {
		e.Sources = append(e.Sources, Candidate{Count: m.count(), Weight: int(m.weight), StandsBack: m.standsBack(now), Load: float64(m.used()) / float64(m.weight)})
	}
	if len(p.shares) > 0 {
		e.Source = p.shares[0].Name
	}
	e.Wait = cmp.Or(p.domainHolds, p.sourceHolds)
	return e, nil
}

// Status returns the counts of all sources and domains, in the order of the
// fields.
func (s *Selector) Status(ctx context.Context) ([]Count, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	today := DayOf(s.now())
	counts := make([]Count, 0, len(s.house.sources)+len(s.house.order))
	for _, src := range s.house.sources {
		c := src.on(today)
		counts = append(counts, c.count())
	}
	for _, d := range s.house.order {
		c := d.on(today)
		counts = append(counts, c.count())
	}
	return counts, nil
}
