package queuetest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailspine/mailspine/queue"
)

var limiterTakeCases = []limiterCase{
	{"AllOrNothing", "Take takes from all the limits of a request, or from none.", func(k *limiterKit) {
		login, tenant, conn := quota("login/ann", 10), quota("tenant/shop", 5), slots("ip", 1)
		over := k.refused(6, login, tenant, conn)
		if over.Limit.Key != tenant.Key {
			k.Errorf("refused by %v, want %v", over.Limit, tenant)
		}
		k.used(login, 0)
		k.used(tenant, 0)
		k.used(conn, 0)
		k.take(5, login, tenant, conn)
		k.used(login, 5)
		k.used(tenant, 5)
		k.used(conn, 1)
	}, ""},
	{"Longest", "If several limits have no room, the refusal is of the one with the longest wait; one that never has room comes first.", func(k *limiterKit) {
		s, q, none := slots("s", 1), quota("q", 5), quota("none", 0)
		k.take(5, q, s)
		for _, limits := range [][]queue.Limit{{s, q}, {q, s}} {
			if over := k.refused(1, limits...); over.Limit.Key != "q" || over.Wait < time.Second {
				k.Errorf("the refusal is %+v", over)
			}
		}
		for _, limits := range [][]queue.Limit{{s, none, q}, {q, s, none}, {none, q}} {
			if over := k.refused(1, limits...); over.Limit.Key != "none" || !over.Never {
				k.Errorf("the refusal is %+v", over)
			}
		}
	}, ""},
	{"Min", "With Min, as much is taken as there is room for, from Min to N, of all the limits the same.", func(k *limiterKit) {
		a, b := quota("a", 100), quota("b", 7)
		p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{a, b}, N: 50, Min: 2})
		if err != nil || p.N != 7 {
			k.Fatalf("granted %d, %v; want 7", p.N, err)
		}
		k.used(a, 7)
		k.used(b, 7)
		if p, err = k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{a}, N: 50, Min: 1}); err != nil || p.N != 50 {
			k.Fatalf("granted %d, %v; want 50", p.N, err)
		}
		_, err = k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{a}, N: 50, Min: 44})
		if over := (*queue.OverLimit)(nil); !errors.As(err, &over) || over.Need != 44 || over.Room != 43 {
			k.Fatalf("Take of at least 44 of 43: %v", err)
		}
		k.used(a, 57)
	}, ""},
	{"OwnN", "A limit with an N of its own gives that much, whatever the request's N is, and Slots one.", func(k *limiterKit) {
		rcpts, msgs, octets, conn := quota("rcpts", 100), quota("msgs", 2), quota("octets", 5000), slots("conn", 5)
		msgs.N, octets.N = 1, 1500
		k.take(30, rcpts, msgs, octets, conn)
		k.used(rcpts, 30)
		k.used(msgs, 1)
		k.used(octets, 1500)
		k.used(conn, 1)
		conn.N = 4
		p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{msgs, conn}, N: 12})
		if err != nil || p.N != 12 {
			k.Fatalf("without a limit that takes N: %d, %v; want 12", p.N, err)
		}
		k.used(conn, 5)
		if over := k.refused(1, rcpts, msgs); over.Limit.Key != "msgs" {
			k.Errorf("the refusal is %+v", over)
		}
	}, ""},
	{"Never", "More than a limit ever gives is refused with Never; a Max of 0 gives nothing.", func(k *limiterKit) {
		burst := rate("r", 100, time.Hour)
		burst.Burst = 10
		for _, c := range []struct {
			l queue.Limit
			n int64
		}{{quota("q", 5), 6}, {burst, 11}, {rate("r2", 5, time.Hour), 6}, {quota("q0", 0), 1}, {rate("r0", 0, time.Hour), 1}, {slots("s0", 0), 1}} {
			if over := k.refused(c.n, c.l); !over.Never || over.Wait != 0 {
				k.Errorf("%d of %v: %+v, want Never", c.n, c.l, over)
			}
		}
		none := rate("none", 0, time.Hour)
		none.Burst = 10
		if over := k.refused(1, none); !over.Never {
			k.Errorf("a rate of 0 with a burst: %+v, want Never", over)
		}
		k.take(5, quota("q", 5))
		if over := k.refused(5, quota("q", 5)); over.Never {
			k.Errorf("what fits another time: %+v", over)
		}
	}, ""},
	{"Policy", "A policy that changes holds from the next call on, in both directions.", func(k *limiterKit) {
		k.take(6, quota("q", 10))
		k.refused(1, quota("q", 5))
		if u := k.usage(quota("q", 5)); u.Used != 6 || u.Room != 0 || u.Never || u.Wait <= 0 {
			k.Errorf("over a limit that was lowered: %+v", u)
		}
		k.take(2, quota("q", 8))
		k.refused(1, quota("q", 8))
		k.take(12, quota("q", 20))
		k.refused(1, quota("q", 20))

		k.take(1, slots("s", 1))
		k.take(1, slots("s", 2))
		k.refused(1, slots("s", 2))
		k.refused(1, slots("s", 1))

		k.take(10, rate("r", 10, queue.MaxPer))
		k.take(10, rate("r", 20, queue.MaxPer))
		k.refused(1, rate("r", 20, queue.MaxPer))
	}, ""},
	{"PolicyRate", "A Rate that is raised comes back faster from then on.", func(k *limiterKit) {
		slow, fast := rate("r", 1, time.Hour), rate("r", 60, time.Hour)
		slow.Burst, fast.Burst = 10, 10
		k.take(10, slow)
		k.refused(1, slow)
		if over := k.refused(1, fast); over.Wait != time.Minute {
			k.Errorf("the wait is %v", over.Wait)
		}
		time.Sleep(2 * time.Minute)
		k.take(2, fast)
		k.refused(1, fast)
		if over := k.refused(1, slow); over.Wait != time.Hour {
			k.Errorf("lowered again, the wait is %v", over.Wait)
		}
	}, limiterExact},
	{"NoPermit", "With a negative TTL there is no permit, and what is taken counts as used.", func(k *limiterKit) {
		l := quota("q", 10)
		p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{l}, N: 4, TTL: -1})
		if err != nil || p.ID != 0 || p.N != 4 {
			k.Fatalf("%+v, %v", p, err)
		}
		k.giveBack(p, 4)
		k.used(l, 4)
	}, ""},
	{"Bad", "A request that is not valid is ErrBadLimit, and takes nothing.", func(k *limiterKit) {
		good := quota("good", 100)
		with := func(f func(l *queue.Limit)) queue.TakeRequest {
			l := quota("q", 5)
			f(&l)
			return queue.TakeRequest{Limits: []queue.Limit{good, l}}
		}
		var many []queue.Limit
		for i := range queue.MaxLimits + 1 {
			many = append(many, quota(strings.Repeat("x", i+1), 5))
		}
		for name, r := range map[string]queue.TakeRequest{
			"no limit":       {},
			"many limits":    {Limits: many},
			"no kind":        with(func(l *queue.Limit) { l.Kind = 0 }),
			"unknown kind":   with(func(l *queue.Limit) { l.Kind = 4 }),
			"no key":         with(func(l *queue.Limit) { l.Key = "" }),
			"long key":       with(func(l *queue.Limit) { l.Key = strings.Repeat("k", queue.MaxLimitKey+1) }),
			"negative Max":   with(func(l *queue.Limit) { l.Max = -1 }),
			"large Max":      with(func(l *queue.Limit) { l.Max = queue.MaxLimit + 1 }),
			"no Per":         with(func(l *queue.Limit) { l.Per = 0 }),
			"negative Per":   with(func(l *queue.Limit) { l.Per = -time.Hour }),
			"long Per":       with(func(l *queue.Limit) { l.Per = queue.MaxPer + 1 }),
			"slots with Per": with(func(l *queue.Limit) { l.Kind = queue.Slots }),
			"quota's Burst":  with(func(l *queue.Limit) { l.Burst = 1 }),
			"large Burst":    with(func(l *queue.Limit) { l.Kind, l.Burst = queue.Rate, queue.MaxLimit+1 }),
			"long Offset":    with(func(l *queue.Limit) { l.Offset = l.Per }),
			"rate's Offset":  with(func(l *queue.Limit) { l.Kind, l.Offset = queue.Rate, 1 }),
			"negative N":     with(func(l *queue.Limit) { l.N = -1 }),
			"large N":        with(func(l *queue.Limit) { l.N = queue.MaxLimit + 1 }),
			"twice the same": {Limits: []queue.Limit{good, quota("good", 7)}},
			"N":              {Limits: []queue.Limit{good}, N: -1},
			"huge N":         {Limits: []queue.Limit{good}, N: queue.MaxLimit + 1},
			"Min":            {Limits: []queue.Limit{good}, N: 2, Min: 3},
			"negative Min":   {Limits: []queue.Limit{good}, Min: -1},
			"lost slots":     {Limits: []queue.Limit{good, slots("s", 3)}, TTL: -1},
		} {
			if p, err := k.l.Take(k.ctx, r); !errors.Is(err, queue.ErrBadLimit) {
				k.Errorf("%s: %+v, %v, want ErrBadLimit", name, p, err)
			}
		}
		if _, err := k.l.Usage(k.ctx, good, queue.Limit{}); !errors.Is(err, queue.ErrBadLimit) {
			k.Errorf("Usage: %v, want ErrBadLimit", err)
		}
		k.used(good, 0)
	}, ""},
	{"Usage", "Usage tells how much of each limit is taken, in order, and takes nothing.", func(k *limiterKit) {
		q, s := quota("q", 10), slots("s", 2)
		k.take(7, q)
		k.take(1, s)
		for range 2 {
			u, err := k.l.Usage(k.ctx, s, quota("unused", 3), q)
			if err != nil || len(u) != 3 {
				k.Fatalf("%+v, %v", u, err)
			}
			for i, want := range []queue.Usage{{Used: 1, Room: 1}, {Used: 0, Room: 3}, {Used: 7, Room: 3}} {
				if u[i].Used != want.Used || u[i].Room != want.Room || u[i].Wait != 0 || u[i].Never {
					k.Errorf("entry %d: %+v", i, u[i])
				}
			}
			if u[0].Limit.Key != "s" || u[1].Limit.Key != "unused" || u[2].Limit.Key != "q" {
				k.Errorf("in another order: %+v", u)
			}
		}
		q.N = 4
		if u := k.usage(q); u.Wait <= 0 || u.Never || u.Room != 3 {
			k.Errorf("for four of three: %+v", u)
		}
		q.N = 11
		if u := k.usage(q); !u.Never || u.Wait != 0 {
			k.Errorf("for eleven of ten: %+v", u)
		}
	}, ""},
	{"Together", "Grants never add up to more than the limit, whoever asks at the same time, and no less.", func(k *limiterKit) {
		q, r := quota("q", 1000), rate("r", 700, queue.MaxPer)
		var inQ, inR atomic.Int64
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				for j := range 40 {
					n := int64(1 + (i+j)%3)
					p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{q}, N: n, Min: 1})
					var over *queue.OverLimit
					if err == nil {
						unused := int64(j % 2)
						if k.l.Return(k.ctx, p.ID, unused) == nil {
							inQ.Add(p.N - min(unused, p.N))
						}
					} else if !errors.As(err, &over) {
						k.Errorf("Take: %v", err)
					}
					if p, err = k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{r}, N: 1, TTL: -1}); err == nil {
						inR.Add(p.N)
					}
				}
			})
		}
		wg.Wait()
		for range 1000 { // what was given back at the end
			if p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{q}, TTL: -1}); err == nil {
				inQ.Add(p.N)
			}
		}
		if inQ.Load() != 1000 || inR.Load() != 700 {
			k.Errorf("of 1000 and 700 there were granted %d and %d", inQ.Load(), inR.Load())
		}
	}, ""},
	{"TogetherSlots", "Whoever asks at the same time, no more than Max slots are held.", func(k *limiterKit) {
		l := slots("s", 7)
		var held, most, granted atomic.Int64
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 20 {
					p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{l}, TTL: time.Hour})
					if err != nil {
						time.Sleep(time.Millisecond)
						continue
					}
					granted.Add(1)
					n := held.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					time.Sleep(time.Microsecond)
					held.Add(-1)
					k.l.Return(k.ctx, p.ID, 0)
				}
			})
		}
		wg.Wait()
		if most.Load() > 7 || granted.Load() < 50 {
			k.Errorf("%d were held at the same time, of %d", most.Load(), granted.Load())
		}
		k.used(l, 0)
	}, ""},
	{"Context", "A call whose context has ended returns its error, and takes nothing.", func(k *limiterKit) {
		l := quota("q", 10)
		p := k.take(2, l)
		ctx, cancel := context.WithCancel(k.ctx)
		cancel()
		if _, err := k.l.Take(ctx, queue.TakeRequest{Limits: []queue.Limit{l}}); !errors.Is(err, context.Canceled) {
			k.Errorf("Take: %v", err)
		}
		if err := k.l.Return(ctx, p.ID, 2); !errors.Is(err, context.Canceled) {
			k.Errorf("Return: %v", err)
		}
		if _, err := k.l.Renew(ctx, 0, p.ID); !errors.Is(err, context.Canceled) {
			k.Errorf("Renew: %v", err)
		}
		if _, err := k.l.Usage(ctx, l); !errors.Is(err, context.Canceled) {
			k.Errorf("Usage: %v", err)
		}
		k.used(l, 2)
	}, ""},
}
