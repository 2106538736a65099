package mta

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A Plan says how a [Relay] would send a message for a domain now, and why. It is for people and programs that look, and
// changes nothing.
//
// Names and texts in it come from DNS, but for control characters.
type Plan struct {
	Domain string `json:"domain"` // in lower case with A-labels; of a Smarthost the host's name
	// Site is what the hosts are called together; "": there are none. See [Site].
	Site string `json:"site,omitempty"`
	// Found says how the hosts were found: "mx", "implicit mx" (there is no MX, the domain is its own), "address literal",
	// "smarthost"; "": they were not.
	Found string `json:"found,omitempty"`
	// Authentic: the answer that named them was validated with DNSSEC.
	Authentic bool `json:"authentic"`
	// Error is the result that each recipient would get before any host is tried, as "550 5.1.2 The domain x does not exist"; "": none.
	Error string `json:"error,omitempty"`
	// Cause is what is behind it, for the operator and not for a sender.
	Cause string `json:"cause,omitempty"`
	// Hosts are by preference; those of the same preference come in random order, but those with kept connections first. Those
	// that are not used come last.
	Hosts []PlanHost `json:"hosts,omitempty"`
	// MaxConnections is how many addresses are tried at most.
	MaxConnections int `json:"max_connections"`
	// Limits is what is known of the site.
	Limits SiteState `json:"limits"`
}

// A PlanHost is one host of a [Plan].
type PlanHost struct {
	Name       string `json:"name"`
	Preference uint16 `json:"preference"`
	// Skipped says why the host is not used: it is this host, or no better, or the TLS policy does not allow it; "": it is.
	Skipped string `json:"skipped,omitempty"`
	// TLS says what holds for its connections, and why.
	TLS string `json:"tls,omitempty"`
	// Error is why it would be passed over now: its addresses or its TLS could not be found out.
	Error string `json:"error,omitempty"`
	// Kept is how many connections to it are kept.
	Kept  int        `json:"kept"`
	Addrs []PlanAddr `json:"addresses,omitempty"`

	warm bool // one of the kept connections would be used
}

// A PlanAddr is one address of a host.
type PlanAddr struct {
	Addr netip.AddrPort `json:"address"`
	// Turn is its place in the order in which addresses are tried, over all hosts, from 1; 0: it is not tried.
	Turn int `json:"turn"`
	// Forbidden says why it is never connected to; "": it may be.
	Forbidden string `json:"forbidden,omitempty"`
	// Dead is why no connection could be opened to it lately; "": nothing is known. DeadSince is the time of the first failure,
	// and until DeadUntil the address is tried after all others. See Relay.DeadTime.
	Dead      string    `json:"dead,omitempty"`
	DeadSince time.Time `json:"dead_since,omitzero"`
	DeadUntil time.Time `json:"dead_until,omitzero"`
}

// Explain says where mail for a domain would go now: how its hosts are found, which addresses are tried in which order, which
// are not and why, what is remembered of them, and what holds for TLS and for the site. It asks DNS and the policies as a delivery
// does, but connects to no mail server, and does not ask the Egress, which would count it. A message that demands more (RequireTLS) may
// find less.
//
// The plan is for a source that the system chooses: what is remembered of others is not in it. The error is one of
// the question or the Relay: domain is neither a domain name nor an address literal, or there is no Resolver, or ctx ended. What DNS
// says is in the plan.
func (r *Relay) Explain(ctx context.Context, domain string) (*Plan, error) {
	if r.Resolver == nil {
		return nil, errors.New("mta: Relay.Resolver is nil")
	}
	name, err := recipientDomain(mailspine.Recipient{Address: mailspine.Address{Local: "x", Domain: strings.TrimSuffix(domain, ".")}})
	if err != nil {
		return nil, fmt.Errorf("mta: %q is neither a domain name nor an address literal: %w", domain, errors.Unwrap(err))
	}
	t := r.transfer(ctx, &mailspine.Envelope{}, nil, contentFacts{}, name, nil)
	return t.explain(ctx)
}

// Explain is [Relay.Explain] for the host of the Smarthost. An error says in addition that Address is not valid.
func (s *Smarthost) Explain(ctx context.Context) (*Plan, error) {
	e, err := s.endpoint()
	if err != nil {
		return nil, err
	}
	t := s.relay().transfer(ctx, &mailspine.Envelope{}, nil, contentFacts{}, e.name, nil)
	t.fixed = e
	return t.explain(ctx)
}

func (t *transfer) explain(ctx context.Context) (*Plan, error) {
	t.parts = []part{{domain: t.domain}}
	t.find(ctx)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("mta: explain %s: %w", t.domain, err)
	}
	p := &Plan{Domain: t.domain, Site: t.site, Found: t.how, Authentic: t.secure, MaxConnections: t.maxConnections()}
	if t.failed != nil {
		p.Error, p.Cause = result(t.failed), cause(t.failed)
	}
	if t.site != "" {
		p.Limits = t.r.limitsOf(t.site)
	}
	// In the order of names, so that the same question has the same answer.
	var used []host
	for _, h := range t.all {
		if h.skipped == "" && t.failed == nil {
			used = append(used, h)
		}
	}
	turn := 0
	var late []*PlanAddr
	for _, h := range t.arrange(ctx, used) {
		p.Hosts = append(p.Hosts, t.explainHost(ctx, h))
	}
	for i := range p.Hosts {
		for j := range p.Hosts[i].Addrs {
			switch a := &p.Hosts[i].Addrs[j]; {
			case a.Forbidden != "":
			case a.Dead != "" && !p.Hosts[i].warm:
				late = append(late, a)
			default:
				turn++
				a.Turn = turn
			}
		}
	}
	for _, a := range late {
		turn++
		a.Turn = turn
	}
	for _, h := range t.all {
		if h.skipped != "" || t.failed != nil {
			p.Hosts = append(p.Hosts, PlanHost{Name: clean(h.name), Preference: h.pref, Skipped: h.skipped})
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("mta: explain %s: %w", t.domain, err)
	}
	return p, nil
}

// explainHost looks at one host as serve does.
func (t *transfer) explainHost(ctx context.Context, h host) PlanHost {
	p := PlanHost{Name: clean(h.name), Preference: h.pref, Kept: t.r.idle.toHosts([]string{h.name})}
	addrs, err := t.addrs(ctx, h)
	if err == nil {
		err = t.decide(ctx, h)
	}
	if err != nil {
		p.Error = result(err)
		return p
	}
	p.TLS = t.tls.rule.Level.String()
	if s, ok := any(t.tls).(fmt.Stringer); ok {
		p.TLS = s.String()
	}
	p.warm = t.warm(h.name)
	guard, now := t.guard(), time.Now()
	for _, ip := range addrs {
		key := t.deadKey(ip)
		a := PlanAddr{Addr: key.addr}
		if err := guard.Check(ip); err != nil {
			a.Forbidden = err.Error()
		}
		if d, ok := t.r.dead.get(key, now); ok {
			a.Dead, a.DeadSince, a.DeadUntil = result(d.err), d.since, d.until
		}
		p.Addrs = append(p.Addrs, a)
	}
	return p
}

// result is an error as a sender would see it.
func result(err error) string {
	st := mailspine.Status(err)
	return clean(fmt.Sprintf("%d %s %s", st.Code, st.Enhanced, st.Message))
}

// cause is what a sender would not see.
func cause(err error) string {
	var me *mailspine.Error
	if errors.As(err, &me) {
		if err = me.Err; err == nil {
			return ""
		}
	}
	return clean(err.Error())
}

// Usable reports whether there is any address to try.
func (p *Plan) Usable() bool {
	for _, h := range p.Hosts {
		for _, a := range h.Addrs {
			if a.Turn > 0 {
				return true
			}
		}
	}
	return false
}

// String is the plan for people, in several lines.
func (p *Plan) String() string {
	var b strings.Builder
	b.WriteString(p.Domain)
	if p.Found != "" {
		fmt.Fprintf(&b, ": found by %s", p.Found)
	}
	if p.Authentic {
		b.WriteString(", authentic")
	}
	if p.Site != "" {
		fmt.Fprintf(&b, ", site %s", p.Site)
	}
	b.WriteByte('\n')
	if p.Error != "" {
		fmt.Fprintf(&b, "  nothing is sent: %s\n", p.Error)
		if p.Cause != "" {
			fmt.Fprintf(&b, "    %s\n", p.Cause)
		}
	}
	for _, h := range p.Hosts {
		h.write(&b)
	}
	if p.Usable() {
		p.Limits.write(&b)
		fmt.Fprintf(&b, "  at most %d addresses are tried in one delivery\n", p.MaxConnections)
	} else if p.Error == "" {
		b.WriteString("  nothing is sent: there is no address to try\n")
	}
	return b.String()
}

func (h PlanHost) write(b *strings.Builder) {
	fmt.Fprintf(b, "  %5d %s", h.Preference, h.Name)
	switch {
	case h.Skipped != "":
		fmt.Fprintf(b, ": not used: %s", h.Skipped)
	case h.Kept == 1:
		b.WriteString(": 1 connection is kept")
	case h.Kept > 1:
		fmt.Fprintf(b, ": %d connections are kept", h.Kept)
	}
	b.WriteByte('\n')
	if h.TLS != "" {
		fmt.Fprintf(b, "        TLS %s\n", h.TLS)
	}
	if h.Error != "" {
		fmt.Fprintf(b, "        passed over: %s\n", h.Error)
	}
	for _, a := range h.Addrs {
		turn := "never"
		if a.Turn > 0 {
			turn = fmt.Sprintf("%d.", a.Turn)
		}
		fmt.Fprintf(b, "        %-5s %s\n", turn, a.Addr)
		if a.Forbidden != "" {
			fmt.Fprintf(b, "              %s\n", a.Forbidden)
		}
		if a.Dead != "" {
			fmt.Fprintf(b, "              not reachable since %s, after all others until %s: %s\n",
				a.DeadSince.UTC().Format(time.RFC3339), a.DeadUntil.UTC().Format(time.RFC3339), a.Dead)
		}
	}
}

func (s SiteState) write(b *strings.Builder) {
	window := "any number of deliveries at a time"
	if s.Window > 0 {
		window = fmt.Sprintf("%d deliveries at a time", s.Window)
	}
	fmt.Fprintf(b, "  site: %s; now %d, and %d waiting, over %d connections\n", window, s.Busy, s.Waiting, s.Open)
	if s.Ceiling > 0 {
		fmt.Fprintf(b, "        not more than %d for now, since it turned connections away\n", s.Ceiling)
	}
	if s.Failed > 0 {
		fmt.Fprintf(b, "        the last %d deliveries found no server\n", s.Failed)
	}
	if !s.NextOpen.IsZero() {
		fmt.Fprintf(b, "        the next connection is opened at %s\n", s.NextOpen.UTC().Format(time.RFC3339))
	}
}
