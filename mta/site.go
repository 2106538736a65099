package mta

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// The bounds on looking several domains up.
const (
	maxLookups   = 8 // look-ups of mail exchangers by one delivery at a time
	routeTimeout = 2 * time.Second
	maxRoutes    = 8192 // domains whose site is remembered
	minRouteTTL  = time.Minute
	maxRouteTTL  = time.Hour
)

// Site returns the name of the site that a set of mail exchangers makes: what shares connections and
// limits, whatever the domains are called. The order of mxs does not matter, and of the preferences only the order that they
// bring: a provider whose customers write 1, 5, 5 or 10, 20, 20 is one site. Hosts that a [Relay] does not use (no host names, those
// after the sixteenth) do not count; without any the site is "".
//
// A single host is its own name. For several it is what their names have in common, or else the name of the best one, with a hash
// of all of them, so that no domain can make itself part of another's site without sending its mail there:
// "l.google.com~" and 16 hexadecimal digits. It is in lower case, and the same everywhere and for good.
func Site(mxs []mailspine.MX) string { return siteName(usable(mxs)) }

// siteName is Site for hosts in any order.
func siteName(hosts []host) string {
	switch len(hosts) {
	case 0:
		return ""
	case 1:
		return hosts[0].name
	}
	hosts = slices.Clone(hosts)
	slices.SortFunc(hosts, compareHosts)
	sum, rank := sha256.New(), 0
	for i, h := range hosts {
		if i > 0 && h.pref != hosts[i-1].pref {
			rank++
		}
		fmt.Fprintf(sum, "%d %s\n", rank, h.name) // a host name has neither space nor line end
	}
	return commonName(hosts) + "~" + hex.EncodeToString(sum.Sum(nil)[:8])
}

// commonName is the longest name that all hosts are at or below of, if it has at least two labels; or else the name of the first
// host.
func commonName(hosts []host) string {
	common := strings.Split(hosts[0].name, ".")
	for _, h := range hosts[1:] {
		labels := strings.Split(h.name, ".")
		n := 0
		for n < len(common) && n < len(labels) && common[len(common)-1-n] == labels[len(labels)-1-n] {
			n++
		}
		common = common[len(common)-n:]
	}
	if len(common) < 2 {
		return hosts[0].name
	}
	return strings.Join(common, ".")
}

// A part is the recipients of one domain in a transfer to a site.
type part struct {
	domain string
	index  []int // into Envelope.Recipients
}

// recipients are those of all parts.
func (t *transfer) recipients() []int {
	if len(t.parts) == 1 {
		return t.parts[0].index
	}
	var all []int
	for _, p := range t.parts {
		all = append(all, p.index...)
	}
	return all
}

// join puts the transfers to the same site into one, in the order of the first of each. ts are those of domains, whose
// hosts are known.
func join(ts []*transfer) []*transfer {
	var joined []*transfer
	bySite := map[string][]*transfer{}
	for _, t := range ts {
		if t.site == "" || t.failed != nil {
			joined = append(joined, t)
			continue
		}
		i := slices.IndexFunc(bySite[t.site], func(o *transfer) bool { return o.sameWay(t) })
		if i >= 0 {
			o := bySite[t.site][i]
			o.parts = append(o.parts, t.parts...)
			continue
		}
		joined = append(joined, t)
		bySite[t.site] = append(bySite[t.site], t)
	}
	return joined
}

// sameWay reports whether mail for the domains of two transfers to one site may go in one transaction: nothing that is demanded
// of the connection is different. Where that cannot be told, it is taken for different.
func (t *transfer) sameWay(o *transfer) bool {
	return slices.EqualFunc(t.all, o.all, func(a, b host) bool { return a.name == b.name }) && sameRule(t.rule, o.rule) && t.sameTLS(o)
}

// sameRule compares rules; their Roots have to be the same pool, not an equal one.
func sameRule(a, b TLSRule) bool {
	if a.Roots != b.Roots {
		return false
	}
	a.Roots, b.Roots = nil, nil
	return reflect.DeepEqual(a, b)
}

// findAll finds out where each transfer goes, some of them at a time.
func findAll(ctx context.Context, ts []*transfer) {
	atOnce(len(ts), maxLookups, func(i int) { ts[i].find(ctx) })
}

// atOnce calls f with 0 to n-1, at most limit of them at a time, and returns when all calls have. A panic in one becomes the
// caller's, who may have somebody above that catches it, as a queue does.
func atOnce(n, limit int, f func(int)) {
	if n == 1 {
		f(0)
		return
	}
	var wg sync.WaitGroup
	var once sync.Once
	var caught any
	free := make(chan struct{}, limit)
	for i := range n {
		free <- struct{}{} // given back when a call is over
		wg.Go(func() {
			defer func() {
				if r := recover(); r != nil {
					once.Do(func() { caught = fmt.Sprintf("%v\n%s", r, debug.Stack()) })
				}
				<-free
			}()
			f(i)
		})
	}
	wg.Wait()
	if caught != nil {
		panic(caught)
	}
}

var _ queue.Router = (*Relay)(nil)

// Route makes the Relay the queue.Router of its recipients. Without BySite the route of a recipient is its domain
// (queue.DomainRoute), and with it the name of the domain's [Site], so that a queue leases and counts by site, and hands over
// together what can go in one transaction.
//
// A site is looked up for at most two seconds, for less while DNS does not answer in time again and again, and remembered for as long as the MX records hold, but for at least a minute and at most
// an hour, for 8,192 domains. Where it cannot be found out, or the domain takes no mail, the route is the domain, for a minute: the
// delivery will tell. So there is no error.
func (r *Relay) Route(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) (queue.Route, error) {
	route := queue.DomainRoute(rcpt)
	if !r.BySite || r.Resolver == nil {
		return route, nil
	}
	domain, err := recipientDomain(rcpt)
	if err != nil || strings.HasPrefix(domain, "[") {
		return route, nil
	}
	if site := r.routes.site(ctx, domain, r.siteOf); site != "" {
		return queue.Route(site), nil
	}
	return route, nil
}

// siteOf looks up the site of a domain, and says for how long it is that; "": it has none.
func (r *Relay) siteOf(ctx context.Context, domain string) (string, time.Duration) {
	// A message to many domains whose DNS is dead must not take as many times two seconds.
	wait := routeTimeout >> min(r.routes.missed.Load(), 5)
	asked, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	a, err := r.Resolver.Lookup(asked, domain, mailspine.TypeMX)
	switch {
	case asked.Err() == nil:
		r.routes.missed.Store(0)
	case ctx.Err() == nil:
		r.routes.missed.Add(1)
	}
	switch {
	case err == nil && isNullMX(a.MX):
		return "", a.TTL
	case err == nil:
		return Site(a.MX), a.TTL
	case errors.Is(err, mailspine.ErrNoData):
		return domain, a.TTL // the implicit MX
	}
	return "", 0
}

// A routeTable remembers the sites of domains, those that were asked for last. Each is looked up once at a time.
type routeTable struct {
	mu     sync.Mutex
	byName map[string]*list.Element // of *routeEntry
	recent list.List                // the one that was asked for last in front

	missed atomic.Int32 // look-ups in a row that came to no end in time
}

type routeEntry struct {
	domain string
	ready  chan struct{} // closed when the rest is known
	site   string        // "": none
	until  time.Time
}

// site returns the site of a domain, from look if it is not known.
func (rt *routeTable) site(ctx context.Context, domain string, look func(context.Context, string) (string, time.Duration)) string {
	for {
		e, mine := rt.entry(domain)
		if mine {
			rt.fill(ctx, e, look)
			return e.site
		}
		select {
		case <-e.ready:
		case <-ctx.Done():
			return ""
		}
		if time.Now().Before(e.until) {
			return e.site
		}
		rt.forget(e) // and look again, or wait for another who does
	}
}

// entry returns the entry of a domain; mine: it is new, and has to be filled by the caller.
func (rt *routeTable) entry(domain string) (e *routeEntry, mine bool) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if el, ok := rt.byName[domain]; ok {
		rt.recent.MoveToFront(el)
		return el.Value.(*routeEntry), false
	}
	if rt.byName == nil {
		rt.byName = map[string]*list.Element{}
	}
	e = &routeEntry{domain: domain, ready: make(chan struct{})}
	rt.byName[domain] = rt.recent.PushFront(e)
	if rt.recent.Len() > maxRoutes {
		last := rt.recent.Back()
		rt.recent.Remove(last)
		delete(rt.byName, last.Value.(*routeEntry).domain)
	}
	return e, true
}

// fill looks an entry up.
func (rt *routeTable) fill(ctx context.Context, e *routeEntry, look func(context.Context, string) (string, time.Duration)) {
	defer close(e.ready) // also if the Resolver panics
	site, ttl := look(ctx, e.domain)
	if site == "" {
		ttl = minRouteTTL
	}
	e.site, e.until = site, time.Now().Add(min(max(ttl, minRouteTTL), maxRouteTTL))
	if ctx.Err() != nil && site == "" {
		e.until = time.Time{} // the caller's end says nothing about the domain
	}
}

// forget takes an entry out, if it is still there.
func (rt *routeTable) forget(e *routeEntry) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if el, ok := rt.byName[e.domain]; ok && el.Value.(*routeEntry) == e {
		rt.recent.Remove(el)
		delete(rt.byName, e.domain)
	}
}
