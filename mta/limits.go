package mta

import (
	"cmp"
	"container/list"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// SiteLimits bounds what a [Relay] does to one site at once. A site is what shares mail exchangers (see [Site]), whatever the
// domains are called; for a [Smarthost] its host and port. The zero value is the defaults.
//
// How many deliveries are under way to a site is its window. It begins with Initial, and grows by one when as many deliveries as it is
// large have found a server, if it was at least half used, up to Max. It shrinks by one when as many as it is large have found none: no
// connection, no greeting, a 421, or a refusal that speaks of too many connections; that many of them in a row make it 1. When an
// address turns a connection away that has others, the number n of those that are open to the site becomes its ceiling, which is raised by
// one every ten minutes after that. The window is never less than 1. (The feedback is Postfix's published scheme with 1/window; the ceiling is not in there.)
//
// A delivery that finds no place waits for one, in the order of coming. When Wait is over it has not been attempted: its
// recipients get a *mailspine.NotNow, with the Rule SiteConcurrency or SiteRate, whose Until is a guess from how long deliveries to the
// site take.
//
// A site without deliveries is forgotten after an hour, or when there are more than 8,192.
type SiteLimits struct {
	// Initial is the window of a site of which nothing is known. 0 or less: 5, or Max if that is less.
	Initial int
	// Max bounds the window. 0: 20. Negative: there is no window, and no bound.
	Max int
	// OpenRate bounds how many connections are opened to a site in a second, in the long run, and OpenBurst how many at once after
	// a pause. The first connection of a delivery waits for its turn; a delivery that has begun does not. A kept connection
	// that is used again does not count. 0 or less: OpenRate has no bound (the window bounds connections as well); OpenBurst is
	// OpenRate, but at least 1.
	OpenRate  float64
	OpenBurst int
	// Wait is for how long a delivery waits for a place, and for its turn to open a connection. 0: 250 ms; negative: it does not
	// wait.
	Wait time.Duration
}

// The rules of a *mailspine.NotNow, and a queue.Hold, that comes from [SiteLimits].
const (
	SiteConcurrency = "site/concurrency"
	SiteRate        = "site/rate"
)

// The bounds of what is known about sites.
const (
	defaultSiteInitial = 5
	defaultSiteMax     = 20
	defaultSiteWait    = 250 * time.Millisecond
	unlimitedSite      = 1 << 20
	maxSites           = 8192
	siteTTL            = time.Hour
	// maxSiteWaiting bounds who waits for a place at one site.
	maxSiteWaiting = 1024
	// NotNow.Until is between these from now, but for a rate, whose time is known.
	minSiteDelay = 100 * time.Millisecond
	maxSiteDelay = 30 * time.Second
)

func (l SiteLimits) withDefaults() SiteLimits {
	switch {
	case l.Max < 0:
		l.Max = unlimitedSite
		l.Initial = unlimitedSite
	case l.Max == 0:
		l.Max = defaultSiteMax
	}
	if l.Initial <= 0 {
		l.Initial = defaultSiteInitial
	}
	l.Initial = min(l.Initial, l.Max)
	switch {
	case l.Wait == 0:
		l.Wait = defaultSiteWait
	case l.Wait < 0:
		l.Wait = 0
	}
	return l
}

// SiteState is what a [Relay] knows about a site.
type SiteState struct {
	Site    string   `json:"site"`
	Hosts   []string `json:"hosts,omitempty"` // as the last delivery had them
	Busy    int      `json:"busy"`            // deliveries under way
	Waiting int      `json:"waiting"`         // deliveries that wait for a place
	Open    int      `json:"open"`            // connections in use
	Idle    int      `json:"idle"`            // connections to the hosts that are kept, for whatever site
	Window  int      `json:"window"`          // how many deliveries may be under way; 0: any number
	Ceiling int      `json:"ceiling"`         // what Window is not raised above for now; 0: Max
	Failed  int      `json:"failed"`          // deliveries in a row that found no server
	// NextOpen is when the next connection may be opened, where OpenRate makes it wait; zero: now.
	NextOpen time.Time `json:"next_open,omitzero"`
	// Known is false where nothing is known: then the state is that of a site that is new.
	Known bool `json:"known"`
}

// A site is what is known about one. All of it is guarded by siteTable.mu.
type site struct {
	name  string
	hosts []string
	win   window
	rate  bucket

	busy    int
	open    int                    // connections in use
	openAt  map[netip.AddrPort]int // the same by address
	waiters list.List              // of *siteWaiter, the first in front; at most maxSiteWaiting
	took    time.Duration          // how long a delivery takes, as an average over the last ones
	used    time.Time
	elem    *list.Element
}

// A siteWaiter waits for a place.
type siteWaiter struct {
	granted bool
	ready   chan struct{} // closed when it is granted
}

// A siteTable has the sites of a Relay. The zero value is empty. A site is in it while it is in use, however many there are:
// they are bounded by the deliveries under way.
type siteTable struct {
	mu     sync.Mutex
	byName map[string]*site
	recent list.List // of *site, the one that was used last in front
}

// get returns a site, made if need be. mu is held.
func (st *siteTable) get(name string, l SiteLimits, now time.Time) *site {
	s := st.byName[name]
	if s != nil && s.expired(now) {
		st.remove(s)
		s = nil
	}
	if s == nil {
		if st.byName == nil {
			st.byName = map[string]*site{}
		}
		s = &site{name: name, win: newWindow(l.Initial, l.Max), rate: newBucket(l.OpenRate, l.OpenBurst)}
		s.elem = st.recent.PushFront(s)
		st.byName[name] = s
	} else {
		st.recent.MoveToFront(s.elem)
	}
	s.used = now
	return s
}

func (st *siteTable) remove(s *site) {
	st.recent.Remove(s.elem)
	delete(st.byName, s.name)
}

// forget removes what is of no interest any more: over maxSites the one that was used least recently and is
// not in use; and what has expired, of the last two. It looks at no more than are in use, and two. mu is held.
func (st *siteTable) forget(now time.Time) {
	over := len(st.byName) > maxSites
	n := 0
	for e := st.recent.Back(); e != nil && (n < 2 || over); n++ {
		s := e.Value.(*site)
		e = e.Prev()
		if s.inUse() {
			continue
		}
		if over || s.expired(now) {
			st.remove(s)
			over = false
		}
	}
}

func (s *site) inUse() bool { return s.busy > 0 || s.waiters.Len() > 0 }

func (s *site) expired(now time.Time) bool { return !s.inUse() && now.Sub(s.used) >= siteTTL }

// admit gives places to those who wait. mu is held.
func (s *site) admit(now time.Time) {
	for s.waiters.Len() > 0 && s.busy < s.win.places(now) {
		w := s.waiters.Remove(s.waiters.Front()).(*siteWaiter)
		w.granted = true
		close(w.ready)
		s.busy++
	}
}

// expected guesses how long one waits for a place who comes now, if all are taken. mu is held.
func (s *site) expected(now time.Time) time.Duration {
	return s.took * time.Duration(s.waiters.Len()+1) / time.Duration(s.win.places(now))
}

// delay is for how long one stays away who got none. mu is held.
func (s *site) delay(now time.Time) time.Duration {
	return min(max(s.expected(now), minSiteDelay), maxSiteDelay)
}

// enter takes a place, and waits for it for at most l.Wait.
func (st *siteTable) enter(ctx context.Context, name string, hosts []host, l SiteLimits) (*visit, error) {
	w := &siteWaiter{ready: make(chan struct{})}
	st.mu.Lock()
	now := time.Now()
	s := st.get(name, l, now)
	st.forget(now)
	s.hosts = s.hosts[:0]
	for _, h := range hosts { // at most maxHosts
		s.hosts = append(s.hosts, h.name)
	}
	var e *list.Element
	full := s.waiters.Len() >= maxSiteWaiting
	if !full {
		e = s.waiters.PushBack(w)
		s.admit(now)
	}
	granted := w.granted
	st.mu.Unlock()
	if !granted && !full && l.Wait > 0 {
		timer := time.NewTimer(l.Wait)
		defer timer.Stop()
		select {
		case <-w.ready:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	now = time.Now()
	if w.granted {
		return &visit{table: st, site: s, limits: l, began: now}, nil
	}
	if e != nil {
		s.waiters.Remove(e)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("mta: delivery to %s: %w", name, err)
	}
	return nil, &mailspine.NotNow{
		Until: now.Add(spread(s.delay(now))), Rule: SiteConcurrency,
		Reason: fmt.Sprintf("%d of %d places at %s are taken", s.busy, s.win.places(now), name),
	}
}

// spread makes a delay longer by up to a half, so that not all come back at once.
func spread(d time.Duration) time.Duration { return d + rand.N(d/2+1) }

// A visit is a delivery's place at a site. A nil visit is one without limits and memory, which hears of everything in vain.
type visit struct {
	table  *siteTable
	site   *site
	limits SiteLimits
	began  time.Time

	// Of the delivery's goroutine.
	tried  bool           // a connection was, or is to be, opened, or a kept one used
	worked bool           // one was of use
	failed bool           // one was not, and that may be because of how many there are
	open   netip.AddrPort // the connection in use; zero: none

	raced *raced // see race; nil: none
}

// mayOpen takes a turn to open a connection. The first of a delivery waits for it; slept says that it did.
func (v *visit) mayOpen(ctx context.Context) (slept bool, err error) {
	if v == nil {
		return false, nil
	}
	st, s := v.table, v.site
	st.mu.Lock()
	now := time.Now()
	wait := s.rate.wait(now)
	if v.tried {
		wait = 0
	}
	if wait > v.limits.Wait {
		st.mu.Unlock()
		return false, &mailspine.NotNow{
			Until: now.Add(spread(max(wait, minSiteDelay))), Rule: SiteRate,
			Reason: fmt.Sprintf("no more than %s connections a second are opened to %s", strconv.FormatFloat(s.rate.rate, 'g', 3, 64), s.name),
		}
	}
	s.rate.take(now)
	st.mu.Unlock()
	v.tried = true
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			v.giveTurn()
			return true, fmt.Errorf("mta: delivery to %s: %w", s.name, ctx.Err())
		}
	}
	return wait > 0, nil
}

// takeTurn is mayOpen for one that does not wait.
func (v *visit) takeTurn() {
	if v == nil {
		return
	}
	v.table.mu.Lock()
	defer v.table.mu.Unlock()
	v.site.rate.take(time.Now())
}

// giveTurn gives back one that was not used.
func (v *visit) giveTurn() {
	if v == nil {
		return
	}
	v.table.mu.Lock()
	defer v.table.mu.Unlock()
	v.site.rate.back()
}

// opened is told of a connection that the delivery uses from now on, one at a time, and closed of its end.
func (v *visit) opened(addr netip.AddrPort) {
	if v == nil {
		return
	}
	v.tried, v.open = true, addr
	v.table.mu.Lock()
	defer v.table.mu.Unlock()
	s := v.site
	if s.openAt == nil {
		s.openAt = map[netip.AddrPort]int{}
	}
	s.open++
	s.openAt[addr]++
}

func (v *visit) closed() {
	if v == nil {
		return
	}
	v.table.mu.Lock()
	defer v.table.mu.Unlock()
	v.close()
}

// close is closed with mu held.
func (v *visit) close() {
	if !v.open.IsValid() {
		return
	}
	v.site.open--
	less(v.site.openAt, v.open)
	v.open = netip.AddrPort{}
}

// setRaced and takeRaced keep what came of an address that was tried before its turn.
func (v *visit) setRaced(r *raced) {
	if v != nil {
		v.raced = r
	}
}

func (v *visit) takeRaced(addr netip.AddrPort, s Source) *raced {
	if v == nil || v.raced == nil || v.raced.addr != addr || v.raced.source != s {
		return nil
	}
	r := v.raced
	v.raced = nil
	return r
}

// turnedAway is told that an address takes no more connections for now. The delivery's own may still be open. If there are others to
// that address it is because of them, and so the site has as many as it takes, those to its other addresses included;
// otherwise it is not there, or does not want us.
func (v *visit) turnedAway(addr netip.AddrPort) {
	if v == nil {
		return
	}
	v.failed = true
	v.table.mu.Lock()
	defer v.table.mu.Unlock()
	all, there := v.site.open, v.site.openAt[addr]
	if v.open.IsValid() {
		all--
		if v.open == addr {
			there--
		}
	}
	if there > 0 {
		v.site.win.pushed(time.Now(), all)
	}
}

// leave gives the place back, and tells the window how the delivery went: whether it found a server, if not with
// the first host then with another.
func (v *visit) leave() {
	st, s := v.table, v.site
	st.mu.Lock()
	defer st.mu.Unlock()
	now := time.Now()
	switch {
	case v.worked:
		s.win.worked(now, s.busy+s.waiters.Len())
	case v.failed:
		s.win.failed(now)
	}
	if v.tried {
		if took := now.Sub(v.began); s.took == 0 {
			s.took = took
		} else {
			s.took += (took - s.took) / 8
		}
	}
	v.close() // after a hook that panicked
	s.busy--
	s.used = now
	st.recent.MoveToFront(s.elem)
	s.admit(now)
}

// enter takes a place at the site of the hosts. An error is what the recipients get in place of a delivery now: most often a
// *mailspine.NotNow. leave gives the place back.
func (t *transfer) enter(ctx context.Context, hosts []host) (leave func(), err error) {
	t.visit, err = t.r.sites.enter(ctx, t.site, hosts, t.r.Limits.withDefaults())
	if err != nil {
		return nil, err
	}
	return t.visit.leave, nil
}

// key is the name of the site that a Smarthost is: its Address, in one form.
func (e *endpoint) key() string {
	if ip, ok := (mailspine.Address{Domain: e.name}).Literal(); ok {
		return net.JoinHostPort(ip.String(), strconv.Itoa(int(e.port)))
	}
	return net.JoinHostPort(e.name, strconv.Itoa(int(e.port)))
}

// Sites returns what is known about sites, sorted by name. It is a snapshot, of at most 8,192 sites and those in use.
func (r *Relay) Sites() []SiteState {
	r.sites.mu.Lock()
	now := time.Now()
	all := make([]SiteState, 0, len(r.sites.byName))
	for _, s := range r.sites.byName {
		if !s.expired(now) {
			all = append(all, s.state(now))
		}
	}
	r.sites.mu.Unlock()
	for i := range all {
		all[i].Idle = r.idle.toHosts(all[i].Hosts)
	}
	slices.SortFunc(all, func(a, b SiteState) int { return cmp.Compare(a.Site, b.Site) })
	return all
}

// limitsOf returns what is known about a site, or what would be known about one that is new.
func (r *Relay) limitsOf(name string) SiteState {
	l := r.Limits.withDefaults()
	r.sites.mu.Lock()
	now := time.Now()
	s, known := r.sites.byName[name]
	if known = known && !s.expired(now); !known {
		s = &site{name: name, win: newWindow(l.Initial, l.Max), rate: newBucket(l.OpenRate, l.OpenBurst)}
	}
	state := s.state(now)
	r.sites.mu.Unlock()
	state.Known = known
	state.Idle = r.idle.toHosts(state.Hosts)
	return state
}

// state describes a site. mu is held.
func (s *site) state(now time.Time) SiteState {
	st := SiteState{
		Site: s.name, Hosts: slices.Clone(s.hosts), Busy: s.busy, Waiting: s.waiters.Len(), Open: s.open,
		Window: s.win.places(now), Ceiling: s.win.top(now), Failed: s.win.row, Known: true,
	}
	if s.win.off() {
		st.Window, st.Ceiling = 0, 0
	}
	if wait := s.rate.wait(now); wait > 0 {
		st.NextOpen = now.Add(wait)
	}
	return st
}

var _ queue.Gate = (*Relay)(nil)

// Ready makes the Relay the queue.Gate of the routes that it and its Smarthosts gave out: those of [Relay.Route] with BySite, and
// of [Smarthost.Route]. A route is held while all places of its site are taken and one more would wait in vain: as many wait as there are places, or
// the next one is expected to be free after Wait only; and, where no kept connection could be used, while its OpenRate lets none
// be opened soon. So what would come back is not leased. About any other route it knows nothing, and lets it through. It never fails.
//
//	relay := &mta.Relay{Resolver: resolver, Hostname: "out.example.org", BySite: true}
//	mux := &mta.Mux{Routes: local, Default: relay}
//	q := &queue.Queue{Store: store, Next: mux, Router: mux, Gate: relay}
//
// Without a Gate nothing is wrong: then deliveries over the limits are leased, and come back not attempted.
func (r *Relay) Ready(_ context.Context, route queue.Route) (queue.Hold, error) {
	name := string(route)
	if strings.Contains(name, ":") {
		if e, err := (&Smarthost{Address: name}).endpoint(); err == nil {
			name = e.key()
		}
	}
	l := r.Limits.withDefaults()
	r.sites.mu.Lock()
	defer r.sites.mu.Unlock()
	now := time.Now()
	s := r.sites.byName[name]
	if s == nil || s.expired(now) {
		return queue.Hold{}, nil
	}
	if n := s.win.places(now); s.busy >= n && (s.waiters.Len() >= n || s.expected(now) > l.Wait) {
		return queue.Hold{
			Until: now.Add(s.delay(now)), Rule: SiteConcurrency,
			Reason: fmt.Sprintf("%d of %d places at %s are taken, and %d wait for one", s.busy, n, name, s.waiters.Len()),
		}, nil
	}
	if wait := s.rate.wait(now); wait > l.Wait && r.idle.toHosts(s.hosts) == 0 {
		return queue.Hold{
			Until: now.Add(max(wait, minSiteDelay)), Rule: SiteRate,
			Reason: fmt.Sprintf("no more than %s connections a second are opened to %s", strconv.FormatFloat(s.rate.rate, 'g', 3, 64), name),
		}, nil
	}
	return queue.Hold{}, nil
}
