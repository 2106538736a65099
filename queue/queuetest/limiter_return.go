package queuetest

import (
	"errors"
	"time"

	"github.com/mailspine/mailspine/queue"
)

var limiterReturnCases = []limiterCase{
	{"ReturnUnused", "Return gives back what was not used, and slots whole.", func(k *limiterKit) {
		q, r, s := quota("q", 100), rate("r", 100, queue.MaxPer), slots("s", 3)
		s.N = 2
		p := k.take(40, q, r, s)
		k.giveBack(p, 3)
		k.used(q, 37)
		k.used(r, 37)
		k.used(s, 0)
		p = k.take(10, q)
		k.giveBack(p, 0)
		k.used(q, 47)
	}, ""},
	{"ReturnOwnN", "A limit with an N of its own is given back if all is unused.", func(k *limiterKit) {
		q, m := quota("q", 100), quota("m", 100)
		m.N = 1
		k.giveBack(k.take(10, q, m), 9)
		k.used(q, 1)
		k.used(m, 1)
		k.giveBack(k.take(10, q, m), 10)
		k.used(q, 1)
		k.used(m, 1)
	}, ""},
	{"ReturnTwice", "Return can be repeated: nothing is given back twice.", func(k *limiterKit) {
		q, s := quota("q", 10), slots("s", 2)
		p := k.take(4, q, s)
		k.take(4, q, s)
		for range 3 {
			k.giveBack(p, 3)
			k.used(q, 5)
			k.used(s, 1)
		}
		k.giveBack(queue.Permit{ID: p.ID ^ 1<<40}, 5) // one that never was
		k.giveBack(queue.Permit{}, 5)
		k.used(q, 5)
		k.used(s, 1)
	}, ""},
	{"ReturnBounds", "Less than 0 unused is 0, and more than there is is all.", func(k *limiterKit) {
		q := quota("q", 10)
		k.take(1, q)
		k.giveBack(k.take(3, q), -5)
		k.used(q, 4)
		k.giveBack(k.take(3, q), 100)
		k.used(q, 4)
		k.giveBack(k.take(3, q), 1<<62)
		k.used(q, 4)
	}, ""},
	{"ReturnEnded", "A permit that has ended changes nothing.", func(k *limiterKit) {
		q, s := quota("q", 10), slots("s", 1)
		p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{q, s}, N: 5, TTL: k.tick})
		if err != nil {
			k.Fatal(err)
		}
		time.Sleep(k.tick + k.tick/2)
		k.used(q, 5) // without a word it counts
		k.take(1, s)
		k.giveBack(p, 5)
		k.used(q, 5)
		k.used(s, 1)
	}, ""},
	{"ReturnLate", "What is given back to a Quota whose period is over is worth nothing.", func(k *limiterKit) {
		l := queue.Limit{Kind: queue.Quota, Key: "q", Max: 10, Per: 10 * time.Minute}
		time.Sleep(nextPeriod(l.Per, 0) + 5*time.Minute)
		p := k.take(10, l)
		time.Sleep(l.Per)
		k.take(8, l)
		k.giveBack(p, 10)
		k.used(l, 8)
		k.refused(3, l)
	}, limiterHours},
	{"ReturnRate", "What is given back to a Rate that has refilled meanwhile is worth nothing.", func(k *limiterKit) {
		l := rate("r", 60, time.Hour)
		l.Burst = 10
		p := k.take(10, l)
		time.Sleep(10 * time.Minute)
		k.take(10, l)
		k.giveBack(p, 10)
		k.used(l, 10)
		k.refused(1, l)
		time.Sleep(10 * time.Minute)

		p = k.take(10, l)
		time.Sleep(4 * time.Minute)
		k.take(4, l)
		k.giveBack(p, 10) // four of them have come back
		k.used(l, 4)
		k.take(6, l)
		k.refused(1, l)
		time.Sleep(10 * time.Minute)

		p = k.take(2, l)
		time.Sleep(40 * time.Second)
		k.take(1, l)
		k.giveBack(p, 2) // two thirds of one of them had come back, which is worth nothing now
		time.Sleep(30 * time.Second)
		k.used(l, 1)
		time.Sleep(30 * time.Second)
		k.used(l, 0)

		a, b := k.take(5, l), k.take(5, l)
		k.giveBack(a, 5)
		time.Sleep(5 * time.Minute)
		k.take(5, l)
		k.giveBack(b, 5)
		if u := k.usage(l); u.Used < 5 {
			k.Errorf("five were taken at this moment, and %d count", u.Used)
		}
	}, limiterExact},
}

var limiterLifeCases = []limiterCase{
	{"Closed", "After Close calls return ErrClosed, and a second Close does nothing.", func(k *limiterKit) {
		l := quota("q", 10)
		p := k.take(1, l)
		if err := k.l.Close(); err != nil {
			k.Fatalf("Close: %v", err)
		}
		_, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{l}})
		_, err2 := k.l.Renew(k.ctx, 0, p.ID)
		_, err3 := k.l.Usage(k.ctx, l)
		for i, err := range []error{err, err2, k.l.Return(k.ctx, p.ID, 1), err3} {
			if err != queue.ErrClosed {
				k.Errorf("%s: %v, want ErrClosed", []string{"Take", "Renew", "Return", "Usage"}[i], err)
			}
		}
		if err := k.l.Close(); err != nil {
			k.Errorf("the second Close: %v", err)
		}
	}, ""},
	{"Full", "What it has no memory for is ErrLimiterFull, and there is room again when keys and permits have ended.", func(k *limiterKit) {
		k.l = k.h.OpenSmall(k.T)
		req := func(kind queue.LimitKind, i int, ttl time.Duration) error {
			l := queue.Limit{Kind: kind, Key: "k" + string(rune('a'+i)), Max: 5}
			if kind != queue.Slots {
				l.Per = time.Hour
			}
			_, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{l}, TTL: ttl})
			return err
		}
		fill := func(kind queue.LimitKind, ttl time.Duration) {
			k.Helper()
			for i := range 10 {
				if err := req(kind, i, ttl); err != nil {
					k.Fatalf("%v %d: %v", kind, i, err)
				}
			}
			for i := range 2 {
				if err := req(kind, 10+i, ttl); !errors.Is(err, queue.ErrLimiterFull) {
					k.Fatalf("%v: an eleventh: %v, want ErrLimiterFull", kind, err)
				}
			}
		}
		fill(queue.Slots, time.Hour)
		if err := req(queue.Slots, 0, time.Hour); !errors.Is(err, queue.ErrLimiterFull) {
			k.Errorf("an eleventh permit: %v", err)
		}
		time.Sleep(time.Hour + time.Minute)
		fill(queue.Rate, -1)
		if err := req(queue.Rate, 0, -1); err != nil {
			k.Errorf("a key that is known: %v", err)
		}
		time.Sleep(time.Hour + time.Minute)
		fill(queue.Quota, -1)
		time.Sleep(4 * time.Hour)
		fill(queue.Slots, time.Hour)
	}, limiterSmall},
	{"Reopen", "What was counted is known when it is opened again, to the last one.", func(k *limiterKit) {
		q, r, back := quota("q", 100), rate("r", 100, queue.MaxPer), quota("back", 50)
		for round := range int64(3) {
			k.take(13, q, r)
			k.giveBack(k.take(40, back), 37)
			k.giveBack(k.take(7, quota("unused", 7)), 7)
			k.l = k.h.Reopen(k.T, k.l)
			k.used(q, 13*(round+1))
			k.used(r, 13*(round+1))
			k.used(back, 3*(round+1))
			k.used(quota("unused", 7), 0)
		}
		k.take(41, back)
		k.l = k.h.Reopen(k.T, k.l)
		k.used(back, 50)
		k.refused(1, back)
	}, limiterReopen},
	{"Crash", "What was granted before a crash is not granted again after it.", func(k *limiterKit) {
		keys := []string{"a", "b", "c"}
		granted := map[string]int64{}
		for round := range 40 {
			for i, key := range keys {
				q, r := quota(key, 100), rate(key, 100, queue.MaxPer)
				n := int64(3 + (round+i)%4) // more in all than there is
				for _, l := range []queue.Limit{q, r} {
					p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{l}, N: n, Min: 1})
					if err != nil {
						continue
					}
					unused := int64(round % 2)
					k.giveBack(p, unused)
					granted[l.String()] += p.N - unused
				}
			}
			if round%3 == 0 {
				k.l = k.h.Crash(k.T, k.l)
			}
		}
		for l, n := range granted {
			if n > 100 {
				k.Errorf("%s: %d were granted", l, n)
			}
			if n < 50 {
				k.Errorf("%s: 14 crashes left only %d to grant", l, n)
			}
		}
	}, limiterCrash},
}
