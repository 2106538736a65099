package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine/mta/egress"
)

// The demo's sources. Two warm up, shared by two tenants: on their first day they may send
// six copies and three. The third is alice's own, and warm.
func alphaPools() []pool {
	return []pool{
		{Name: "shared", Tenants: []string{"shop", "news"}, Sources: []source{
			{Name: "out1", Addr: loopbackAddr(2), Weight: 2, WarmUp: egress.Ladder{6, 12}},
			{Name: "out2", Addr: loopbackAddr(3), Weight: 1, WarmUp: egress.Ladder{3, 6}},
		}},
		{Name: "own", Tenants: []string{"office"}, Sources: []source{{Name: "out3", Addr: loopbackAddr(4)}}},
	}
}

// loopbackAddr returns 127.0.0.n, or 127.0.0.1 where the system has only that.
func loopbackAddr(n byte) netip.Addr {
	addr := netip.AddrFrom4([4]byte{127, 0, 0, n})
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	l.Close()
	return addr
}

// warm: two tenants write twelve letters from a pool that may send nine today.
func (d *demo) warm(ctx context.Context) (string, error) {
	const letters = 12
	to := "bob@" + d.beta.Domain
	shared := d.alpha.Pools[0]
	want, capped := map[string]int{}, 0
	for _, src := range shared.Sources {
		n, _ := src.WarmUp.Cap(1)
		want[d.alpha.sourceHost(src)+" "+src.Addr.String()] = int(n)
		capped += int(n)
	}
	d.show.hop("MUA", "%s write %d letters to bob", strings.Join(shared.Tenants, " and "), letters)
	d.show.quiet(true)
	ids := map[string]bool{}
	for i := range letters {
		from := shared.Tenants[i%len(shared.Tenants)] + "@" + d.alpha.Domain
		id := newID(fmt.Sprintf("warm-%d", i), d.alpha.Domain)
		ids[id] = true
		m := d.alpha.mua(from)
		m.show = nil
		if _, err := m.submit(from, []string{to}, compose(from, to, id, fmt.Sprintf("Letter %d", i+1))); err != nil {
			return "", err
		}
	}
	arrived := 0
	if _, err := d.bob.await(ctx, func(msg []byte) bool {
		if ids[messageID(msg)] {
			arrived++
			if strings.HasPrefix(messageID(msg), "<warm-0.") { // shop's first
				d.letter = msg
			}
		}
		return arrived == capped
	}); err != nil {
		return "", fmt.Errorf("%d of %d arrived: %w", arrived, capped, err)
	}
	// The rest waits, and says why. It is told when its lease is given back.
	held, err := d.alpha.waiting(ctx, letters-capped)
	if err != nil {
		return "", err
	}
	for _, why := range held {
		if !strings.Contains(why, "warm-up") {
			return "", fmt.Errorf("an item waits because: %s", why)
		}
	}
	why := held[0]
	d.show.quiet(false)
	if err := d.bob.look(ctx); err != nil {
		return "", err
	}
	got := d.beta.seen("out1.", "out2.")
	for _, who := range slices.Sorted(maps.Keys(got)) {
		d.show.hop("receiver", "took %d from %s", got[who], who)
	}
	if !maps.Equal(got, want) {
		return "", fmt.Errorf("the receiver took %v, not %v", got, want)
	}
	d.show.hop("queue", "%d wait: %s", len(held), why)
	return fmt.Sprintf("%d copies left from two addresses, exactly their caps; %d wait for tomorrow", capped, len(held)), nil
}

// waiting returns why items wait, once there are n.
func (o *org) waiting(ctx context.Context, n int) ([]string, error) {
	for {
		o.mu.Lock()
		why := slices.Collect(maps.Values(o.held))
		o.mu.Unlock()
		if len(why) > n {
			return nil, fmt.Errorf("%d items wait, not %d", len(why), n)
		}
		if len(why) == n {
			return why, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%d items wait, not %d", len(why), n), ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// waits returns how many items wait for room in a pool.
func (o *org) waits() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return int64(len(o.held))
}

// seen returns how many messages came from whom, for those whose name begins so.
func (o *org) seen(prefixes ...string) map[string]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := map[string]int{}
	for who, n := range o.from {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(who, p) }) {
			m[who] = n
		}
	}
	return m
}
