package egress

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta"
)

// A Source is one local address that mail is sent from.
type Source struct {
	// Name is what counts, logs and receipts call it. Required: what was sent is
	// remembered under it, so that it must stay the same while the address does, and be a
	// new one when the source gets another address.
	Name string
	// Addr is the address; two sources may share one, each with its own cap. Zero: the system's choice.
	Addr netip.Addr
	// Hostname is its name in EHLO, which should resolve to Addr, and Addr to it. "": that of the Relay.
	Hostname string
	// WarmUp has the cap of each sending day. nil: no cap.
	WarmUp Schedule
}

// A Member is a source in a pool.
type Member struct {
	Source Source
	// Weight is its share of the mail, in relation to the weights of the other members; at most a million.
	// 0: 1. A source that is to send nothing is left out.
	Weight int
}

// A Pool is a set of sources.
type Pool struct {
	// Name is what envelopes and explanations call it. Required.
	Name string
	// Members are the sources, at least one. A source may be in several pools, with
	// one cap for all, unless one of them is dedicated.
	Members []Member
	// Tenants are those who send from the pool, and from no other. One: the pool
	// is dedicated, and its sources are in no other pool. None: the pool is for
	// all tenants that no pool lists; if there are several such pools they use the first unless an envelope
	// names another.
	Tenants []string
}

// A Domain is a sending domain that warms up.
type Domain struct {
	// Name is the domain; its subdomains are others. Required.
	Name string
	// WarmUp has the cap of each sending day, over all sources and tenants. nil: no cap, but
	// what is sent is counted.
	WarmUp Schedule
}

// source is a Source with its counter.
type source struct {
	Source
	counter
}

type member struct {
	*source
	weight uint64
}

type pool struct {
	name    string
	members []member
	general bool
}

// less is the order of selection: whether a has sent less than b, each in relation to its
// weight, with what is granted counted as sent.
func (a member) less(b member) bool {
	// a.used/a.weight < b.used/b.weight, without loss.
	ah, al := bits.Mul64(uint64(a.used()), b.weight)
	bh, bl := bits.Mul64(uint64(b.used()), a.weight)
	return ah < bh || ah == bh && al < bl
}

// byLoad returns the members in the order of selection: those with room first, of them those that stand back last, and else the one
// that has sent least for its weight; the order of the pool decides between equals.
func (p *pool) byLoad(now time.Time) []member {
	members := slices.Clone(p.members)
	slices.SortStableFunc(members, func(a, b member) int {
		fullA, fullB := a.room() == 0, b.room() == 0
		switch {
		case fullA != fullB && fullA, fullA == fullB && b.before(a, now):
			return 1
		case fullA != fullB, a.before(b, now):
			return -1
		}
		return 0
	})
	return members
}

// standBack is how long a source that reached nobody lets the others of its pool go first.
const standBack = time.Minute

// before is less, but that a source which reached nobody a moment ago comes after the others: it may have lost its
// address, and would stay the one that has sent least.
func (a member) before(b member, now time.Time) bool {
	am, bm := a.standsBack(now), b.standsBack(now)
	if am != bm {
		return bm
	}
	return a.less(b)
}

func (s *source) standsBack(now time.Time) bool {
	return !s.missed.IsZero() && now.Before(s.missed.Add(standBack))
}

// house is what a Selector's fields say, in a form to look things up.
type house struct {
	pools   map[string]*pool
	tenants map[string]*pool
	general []*pool
	sources []*source // in order of first mention
	byName  map[string]*source
	domains map[string]*counter
	order   []*counter // the domains, in their order
}

// build checks the fields and makes a house of them. Errors name the field.
func (s *Selector) build() (*house, error) {
	h := &house{pools: map[string]*pool{}, tenants: map[string]*pool{}, domains: map[string]*counter{}}
	known := map[string]*source{}
	h.byName = known
	owner := map[string]*Pool{}
	switch {
	case s.State == nil:
		return nil, ErrNoState
	case s.Block < 0:
		return nil, fmt.Errorf("egress: Selector.Block is %d", s.Block)
	case len(s.Pools) == 0:
		return nil, errors.New("egress: Selector.Pools is empty")
	}
	for i := range s.Pools {
		p := &s.Pools[i]
		bad := func(format string, args ...any) error {
			return fmt.Errorf("egress: Selector.Pools[%d]"+format, append([]any{i}, args...)...)
		}
		switch {
		case p.Name == "":
			return nil, bad(".Name is empty")
		case h.pools[p.Name] != nil:
			return nil, bad(".Name: there are two pools %q", p.Name)
		case len(p.Members) == 0:
			return nil, bad(".Members is empty")
		}
		hp := &pool{name: p.Name, general: len(p.Tenants) == 0}
		h.pools[p.Name] = hp
		if hp.general {
			h.general = append(h.general, hp)
		}
		for j, t := range p.Tenants {
			if o := h.tenants[t]; o != nil {
				return nil, bad(".Tenants[%d]: tenant %q is in pool %q already", j, t, o.name)
			}
			h.tenants[t] = hp
		}
		for j := range p.Members {
			m := &p.Members[j]
			if err := m.validate(); err != nil {
				return nil, bad(".Members[%d]%w", j, err)
			}
			src := known[m.Source.Name]
			switch {
			case src == nil:
				src = &source{Source: m.Source, counter: counter{key: Key{KindSource, m.Source.Name}, schedule: m.Source.WarmUp}}
				known[m.Source.Name], owner[m.Source.Name] = src, p
				h.sources = append(h.sources, src)
			case owner[m.Source.Name] == p:
				return nil, bad(".Members[%d].Source.Name: source %q is in the pool twice", j, m.Source.Name)
			case !reflect.DeepEqual(src.Source, m.Source):
				return nil, bad(".Members[%d].Source.Name: there are two different sources %q", j, m.Source.Name)
			case len(p.Tenants) == 1 || len(owner[m.Source.Name].Tenants) == 1:
				return nil, bad(".Members[%d].Source: source %q is in pool %q too, and one of them is dedicated", j, m.Source.Name, owner[m.Source.Name].Name)
			default:
				owner[m.Source.Name] = p
			}
			hp.members = append(hp.members, member{src, uint64(max(m.Weight, 1))})
		}
	}
	for i, d := range s.Domains {
		bad := func(format string, args ...any) error {
			return fmt.Errorf("egress: Selector.Domains[%d]"+format, append([]any{i}, args...)...)
		}
		name, err := mailspine.ASCIIDomain(d.Name)
		if err == nil {
			err = mailspine.Address{Local: "x", Domain: name}.Validate()
		}
		if err != nil {
			return nil, bad(".Name: %w", err)
		}
		if h.domains[name] != nil {
			return nil, bad(".Name: there are two domains %q", name)
		}
		if err := validate(d.WarmUp); err != nil {
			return nil, bad(".WarmUp: %w", err)
		}
		c := &counter{key: Key{KindDomain, name}, schedule: d.WarmUp}
		h.domains[name] = c
		h.order = append(h.order, c)
	}
	return h, nil
}

// validate returns an error that begins with a dot and the field.
func (m *Member) validate() error {
	src := m.Source
	switch {
	case m.Weight < 0 || m.Weight > 1e6:
		return fmt.Errorf(".Weight is %d, not from 0 to a million", m.Weight)
	case src.Name == "":
		return errors.New(".Source.Name is empty")
	case len(src.Name) > 255 || slices.ContainsFunc([]byte(src.Name), func(c byte) bool { return c < 0x21 || c > 0x7e }):
		return fmt.Errorf(".Source.Name %.40q has over 255 octets, or others than visible ASCII characters", src.Name)
	case src.Addr.IsValid() && (src.Addr.IsUnspecified() || src.Addr.IsMulticast() || src.Addr.Is4In6()):
		return fmt.Errorf(".Source.Addr %v is no address to send from", src.Addr)
	}
	if src.Hostname != "" {
		if err := (mailspine.Address{Local: "x", Domain: src.Hostname}).Validate(); err != nil {
			return fmt.Errorf(".Source.Hostname: %w", err)
		}
	}
	if err := validate(src.WarmUp); err != nil {
		return fmt.Errorf(".Source.WarmUp: %w", err)
	}
	return nil
}

func validate(s Schedule) error {
	if v, ok := s.(interface{ Validate() error }); ok {
		return v.Validate()
	}
	return nil
}

// find returns the pool that a message is sent from.
func (h *house) find(env *mailspine.Envelope) (*pool, error) {
	own := h.tenants[env.Tenant]
	switch {
	case env.Pool != "":
		p := h.pools[env.Pool]
		if p != nil && (p == own || own == nil && p.general) {
			return p, nil
		}
		return nil, fmt.Errorf("%w: tenant %q may not send from pool %q", ErrNoPool, env.Tenant, env.Pool)
	case own != nil:
		return own, nil
	case len(h.general) > 0:
		return h.general[0], nil
	}
	return nil, fmt.Errorf("%w: tenant %q", ErrNoPool, env.Tenant)
}

func (s *source) mta() mta.Source {
	return mta.Source{Name: s.Name, Addr: s.Addr, Hostname: s.Hostname}
}
