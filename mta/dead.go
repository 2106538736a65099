package mta

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
)

const (
	defaultDeadTime = 5 * time.Minute
	maxDead         = 4096 // addresses that are remembered
)

// A deadKey is an address that was tried from a source: another source may get through.
type deadKey struct {
	addr netip.AddrPort
	from Source
}

// A deadAddr is an address that no connection could be opened to.
type deadAddr struct {
	key   deadKey
	since time.Time // of the first failure after the last success
	until time.Time // for how long it is remembered
	err   error     // of the last failure
}

// deadHosts remembers the addresses that could not be connected to, those that failed last. Its zero value is ready.
type deadHosts struct {
	mu      sync.Mutex
	byKey   map[deadKey]*list.Element // of deadAddr
	recent  list.List                 // the last failure in front
	probing map[probeKey]deadResult   // by deliveries under way, one each
}

// A deadResult is what the recipients get of whom nothing is tried.
type deadResult struct {
	err     error
	receipt mailspine.Receipt
}

// A probeKey is what one delivery at a time tries although all of it is remembered.
type probeKey struct {
	site string
	port uint16
	from Source
}

// note remembers a failure.
func (d *deadHosts) note(key deadKey, now, until time.Time, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byKey == nil {
		d.byKey = map[deadKey]*list.Element{}
	}
	since := now
	if e, ok := d.byKey[key]; ok {
		since = e.Value.(deadAddr).since
		d.recent.Remove(e)
	}
	d.byKey[key] = d.recent.PushFront(deadAddr{key, since, until, err})
	if d.recent.Len() > maxDead {
		d.remove(d.recent.Back())
	}
}

// remove forgets an entry. mu is held.
func (d *deadHosts) remove(e *list.Element) {
	d.recent.Remove(e)
	delete(d.byKey, e.Value.(deadAddr).key)
}

// get returns what is remembered of an address.
func (d *deadHosts) get(key deadKey, now time.Time) (deadAddr, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.byKey[key]
	if !ok {
		return deadAddr{}, false
	}
	a := e.Value.(deadAddr)
	if !now.Before(a.until) {
		d.remove(e)
		return deadAddr{}, false
	}
	return a, true
}

// forget ends the memory of an address.
func (d *deadHosts) forget(key deadKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.byKey[key]; ok {
		d.remove(e)
	}
}

// probe makes the caller the one who tries a site, until done; others get res meanwhile. If somebody is already, done is nil.
func (d *deadHosts) probe(key probeKey, res deadResult) (done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, busy := d.probing[key]; busy {
		return nil
	}
	if d.probing == nil {
		d.probing = map[probeKey]deadResult{}
	}
	d.probing[key] = res
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.probing, key)
	}
}

// probed returns what the others get while somebody tries a site.
func (d *deadHosts) probed(key probeKey) (deadResult, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	res, ok := d.probing[key]
	return res, ok
}

// probeKey is that of all deliveries to the same hosts, whatever their domains; a TLS policy may keep us from some.
func (t *transfer) probeKey() probeKey {
	k := probeKey{t.site, t.port(), t.source}
	if len(t.hosts) < len(t.all) {
		k.site = siteName(t.hosts)
	}
	return k
}

func (t *transfer) deadKey(a netip.Addr) deadKey {
	return deadKey{netip.AddrPortFrom(a, t.port()), t.source}
}

// unreached remembers that no connection could be opened to an address, or none that greeted us and meant it: that there
// is no sense in waiting for it again soon. err is why, classified. What the address is not to blame for is not remembered.
func (t *transfer) unreached(ctx context.Context, addr netip.AddrPort, err error) {
	d := t.r.DeadTime
	if d == 0 {
		d = defaultDeadTime
	}
	var bind *BindError
	var proxy *ProxyError
	var te *tlsError // of a Smarthost with implicit TLS
	if d < 0 || errors.As(err, &te) || ctx.Err() != nil || errors.As(err, &bind) || errors.As(err, &proxy) || !mailspine.Status(err).Temporary() {
		return
	}
	now := time.Now()
	t.r.dead.note(deadKey{addr, t.source}, now, now.Add(d), err)
}

// reached forgets what was remembered of an address. A site that was tried again is open to all others from here on.
func (t *transfer) reached(addr netip.AddrPort) {
	t.r.dead.forget(deadKey{addr, t.source})
	t.probed()
}

// answered is called when the recipients have their results from a server: it is there, also if its connection was a kept one
// and another one was turned away meanwhile.
func (t *transfer) answered() {
	if a, err := netip.ParseAddrPort(t.last.RemoteAddr); err == nil && t.said.Code != 0 && t.said.Code != 421 {
		t.reached(a)
	}
}

// probed ends the probe that the transfer is, if it is one.
func (t *transfer) probed() {
	if t.probing != nil {
		t.probing()
		t.probing = nil
	}
}

// sift parts the addresses of a host: those that are tried first from those that could not be connected to lately. A
// host that a connection is kept for is there.
func (t *transfer) sift(h host, addrs []netip.Addr) (fresh, dead []netip.Addr) {
	now, warm := time.Now(), t.warm(h.name)
	for _, a := range addrs {
		if warm {
			fresh = append(fresh, a)
		} else if _, ok := t.r.dead.get(t.deadKey(a), now); ok {
			dead = append(dead, a)
		} else {
			fresh = append(fresh, a)
		}
	}
	return fresh, dead
}

// A lateHost has addresses that are tried after all others, and what was decided about their TLS.
type lateHost struct {
	host  host
	tls   tlsDecision
	addrs []netip.Addr
}

// late tries the addresses that could not be connected to lately, and reports whether every recipient has a result. If there were no others, only one
// delivery at a time does so: a site that is dead costs one worker, and is found to be alive by the first that comes.
func (w *walk) late(ctx context.Context, hosts []lateHost) bool {
	t := w.t
	if !w.tried {
		res, key := t.stillDead(hosts[0]), t.probeKey()
		if w.worst.err != nil {
			key.site += " " + t.domain // some hosts were passed over, for reasons that other domains need not have
		}
		if t.probing = t.r.dead.probe(key, res); t.probing == nil {
			w.worst.add(res.err, res.receipt)
			return false
		}
		defer t.probed()
	}
	for _, l := range hosts {
		if !w.on(ctx, l.host) {
			continue // one that is better than ourselves may follow
		}
		t.tls = l.tls
		if w.try(ctx, l.host, l.addrs) {
			return true
		}
	}
	return false
}

// stillDead is the result of a delivery while another one tries a site again.
func (t *transfer) stillDead(l lateHost) deadResult {
	key := t.deadKey(l.addrs[0])
	rec := mailspine.Receipt{RemoteMTA: l.host.name, RemoteAddr: key.addr.String(), Source: t.source.Name}
	known, ok := t.r.dead.get(key, time.Now())
	if !ok { // forgotten a moment ago
		return deadResult{mailspine.Errorf(451, "4.4.1", "%s could not be reached, and was not tried again", l.host.name), rec}
	}
	return deadResult{mailspine.Errorf(451, "4.4.1", "%s (not tried again: not reachable since %s)",
		mailspine.Status(known.err).Message, known.since.UTC().Format(time.RFC3339)).WithCause(known.err), rec}
}

// stays reports whether nothing is to be tried since another delivery tries the site again, and gives the recipients their
// result. It is asked before a place at the site is waited for; with an Egress, the source is not known then, and late finds out.
func (t *transfer) stays() bool {
	if t.r.Egress != nil {
		return false
	}
	res, ok := t.r.dead.probed(t.probeKey())
	if ok = ok && t.r.idle.toHosts(hostNames(t.hosts)) == 0; ok {
		for _, i := range t.recipients() {
			t.errs[i] = res.err
			t.attempt.Record(i, res.receipt)
		}
	}
	return ok
}

// arrange puts the hosts for which a connection is kept before the others of their preference: what is said at random must
// not cost a connection each time.
func (t *transfer) arrange(ctx context.Context, hosts []host) []host {
	hosts = slices.Clone(hosts)
	warm := map[string]bool{}
	for i, h := range hosts {
		alone := (i == 0 || hosts[i-1].pref != h.pref) && (i+1 == len(hosts) || hosts[i+1].pref != h.pref)
		// What a connection must be like is decided only where there is any.
		if !alone && t.r.idle.toHosts([]string{h.name}) > 0 {
			var err error
			t.tls, err = t.decision(ctx, h)
			warm[h.name] = err == nil && t.warm(h.name)
		}
	}
	if len(warm) == 0 {
		return hosts
	}
	slices.SortStableFunc(hosts, func(a, b host) int {
		switch {
		case a.pref != b.pref:
			return cmp.Compare(a.pref, b.pref)
		case warm[a.name] == warm[b.name]:
			return 0
		case warm[a.name]:
			return -1
		}
		return 1
	})
	return hosts
}
