package queuetest

import (
	"time"

	"github.com/mailspine/mailspine/queue"
)

var limiterKindCases = []limiterCase{
	{"Slots", "Slots are held at the same time, at most Max of them, and come back when their permits are returned.", func(k *limiterKit) {
		l := slots("site/example.net", 3)
		a := k.take(1, l)
		k.take(1, l)
		k.take(1, l)
		if over := k.refused(1, l); over.Limit.Key != l.Key || over.Never || over.Wait > time.Second {
			k.Errorf("the refusal is %+v", over)
		}
		k.giveBack(a, 0)
		k.take(1, l)
		k.refused(1, l)
	}, ""},
	{"SlotsEnd", "A slot comes back when its permit ends, so that those of a node that died do.", func(k *limiterKit) {
		l := slots("s", 1)
		if _, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{l}, TTL: k.tick}); err != nil {
			k.Fatal(err)
		}
		k.refused(1, l)
		time.Sleep(k.tick + k.tick/2)
		k.take(1, l)
	}, ""},
	{"SlotsRenew", "Renew makes permits last for ttl from now. Those that have ended already are returned.", func(k *limiterKit) {
		l := slots("s", 2)
		kept, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{l}, TTL: 4 * k.tick})
		if err != nil || kept.TTL <= 0 || kept.TTL > 4*k.tick {
			k.Fatalf("%+v, %v", kept, err)
		}
		left, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{l}, TTL: 4 * k.tick})
		if err != nil {
			k.Fatal(err)
		}
		time.Sleep(2 * k.tick)
		if ended, err := k.l.Renew(k.ctx, time.Hour, kept.ID); err != nil || len(ended) > 0 {
			k.Fatalf("Renew of a permit that lasts: %v, %v", ended, err)
		}
		time.Sleep(4 * k.tick)
		k.take(1, l) // the one that was not renewed
		k.refused(1, l)
		ended, err := k.l.Renew(k.ctx, 0, left.ID, kept.ID, kept.ID+left.ID+1)
		if err != nil || len(ended) != 2 || ended[0] != left.ID {
			k.Errorf("Renew returned %v, %v; want the one that ended and the one that never was", ended, err)
		}
	}, ""},
	{"Quota", "Of a Quota no more than Max is granted in a period.", func(k *limiterKit) {
		l := quota("login/ann", 100)
		k.take(60, l)
		k.take(30, l)
		if over := k.refused(11, l); over.Room != 10 || over.Need != 11 || over.Never {
			k.Errorf("the refusal is %+v", over)
		}
		k.take(10, l)
		k.refused(1, l)
	}, ""},
	{"QuotaPeriod", "A period of a Quota begins at a multiple of Per, and with all of Max.", func(k *limiterKit) {
		for _, per := range []time.Duration{time.Hour, queue.Day, 7 * time.Minute} {
			l := queue.Limit{Kind: queue.Quota, Key: "q", Max: 10, Per: per}
			time.Sleep(nextPeriod(per, 0) + per/3)
			p := k.take(10, l)
			over := k.refused(1, l)
			if want := nextPeriod(per, 0); over.Wait != want || p.Period != want {
				k.Fatalf("per %v: wait %v, the permit's period %v, want %v", per, over.Wait, p.Period, want)
			}
			time.Sleep(over.Wait - time.Millisecond)
			k.refused(1, l)
			time.Sleep(time.Millisecond)
			k.take(10, l)
			k.refused(1, l)
			time.Sleep(2 * per)
			k.take(1, l)
			k.refused(10, l)
		}
	}, limiterHours},
	{"QuotaOffset", "Offset moves the beginnings of periods, and a period goes on when it changes: a day with daylight saving time has one count.", func(k *limiterKit) {
		winter, summer := daily("q", 10), daily("q", 10)
		winter.Offset, summer.Offset = time.Hour, 2*time.Hour
		time.Sleep(nextPeriod(queue.Day, winter.Offset))
		k.take(4, winter)
		if over := k.refused(7, winter); over.Wait != queue.Day {
			k.Errorf("at local midnight the next one is %v away", over.Wait)
		}
		time.Sleep(3 * time.Hour) // the clocks go forward
		k.take(6, summer)
		k.refused(1, summer)
		k.refused(1, winter)
		time.Sleep(20*time.Hour - time.Second) // an hour less than a day since local midnight
		k.refused(1, summer)
		time.Sleep(time.Second)
		k.take(10, summer)
		time.Sleep(20 * time.Hour) // and back
		k.refused(1, summer)
		k.refused(1, winter)
		time.Sleep(nextPeriod(queue.Day, winter.Offset))
		k.take(10, winter)
		k.refused(1, summer)

		west := daily("west", 10)
		west.Offset = -8 * time.Hour
		time.Sleep(nextPeriod(queue.Day, west.Offset) - time.Second)
		k.take(10, west)
		k.refused(1, west)
		time.Sleep(time.Second)
		k.take(10, west)
	}, limiterHours},
	{"QuotaClock", "The time of periods never goes back: a clock that is set back grants nothing twice.", func(k *limiterKit) {
		start := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
		now := start
		k.l = k.h.Open(k.T, func() time.Time { return now })
		l := daily("q", 10)
		k.take(10, l)
		now = start.Add(queue.Day)
		k.take(10, l)
		for _, back := range []time.Duration{time.Minute, queue.Day, 30 * queue.Day} {
			now = start.Add(queue.Day - back)
			k.refused(1, l)
			k.refused(1, l)
		}
		other := daily("other", 10) // used for the first time while the clock is back
		k.take(10, other)
		now = start
		k.refused(1, other)
		if over := k.refused(1, l); over.Wait < queue.Day || over.Wait > 2*queue.Day {
			k.Errorf("on the day before, the wait is %v", over.Wait)
		}
		now = start.Add(2 * queue.Day)
		k.take(10, l)
		k.take(10, other)
	}, limiterClock},
	{"Rate", "Of a Rate Burst can be taken at once, and Max come back in the time Per.", func(k *limiterKit) {
		l := rate("r", 60, time.Hour)
		l.Burst = 5
		k.take(5, l)
		over := k.refused(1, l)
		if over.Wait != time.Minute {
			k.Errorf("the wait is %v, want a minute", over.Wait)
		}
		if over := k.refused(3, l); over.Wait != 3*time.Minute {
			k.Errorf("the wait for three is %v", over.Wait)
		}
		time.Sleep(over.Wait - time.Millisecond)
		k.refused(1, l)
		time.Sleep(time.Millisecond)
		k.take(1, l)
		k.refused(1, l)
		time.Sleep(150 * time.Second)
		k.take(2, l)
		if over := k.refused(1, l); over.Wait != 30*time.Second {
			k.Errorf("half of one has come back, and the wait is %v", over.Wait)
		}
	}, limiterExact},
	{"RateRest", "Of a Rate no rest gives more than Burst.", func(k *limiterKit) {
		l := rate("r", 60, time.Hour)
		k.take(60, l)
		time.Sleep(50 * time.Hour)
		k.take(60, l)
		k.refused(1, l)
		time.Sleep(time.Hour / 2)
		k.take(30, l)
		k.refused(1, l)
		few := rate("few", 1, 3*time.Hour)
		for range 3 {
			k.take(1, few)
			k.refused(1, few)
			time.Sleep(3 * time.Hour)
		}
	}, limiterHours},
	{"RateSpan", "In no span of time a Rate grants more than Burst and what comes back in it.", func(k *limiterKit) {
		l := queue.Limit{Kind: queue.Rate, Key: "r", Max: 7, Per: 3 * time.Minute, Burst: 4}
		begun, n := time.Now(), int64(0)
		for i := range 400 {
			p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: []queue.Limit{l}, N: 4, Min: 1, TTL: -1})
			if err == nil {
				n += p.N
			}
			if most := 4 + int64(7*time.Since(begun)/(3*time.Minute)); n > most {
				k.Fatalf("after %v there were %d, over %d", time.Since(begun), n, most)
			}
			time.Sleep(time.Duration(i*7919%30_011) * time.Millisecond)
		}
		if least := int64(7*time.Since(begun)/(3*time.Minute)) - 8; n < least {
			k.Errorf("in %v there were %d, at least %d had come back", time.Since(begun), n, least)
		}
	}, limiterExact},
	{"Keys", "What is counted is Kind, Key and Per; limits that agree in these share one count.", func(k *limiterKit) {
		k.take(5, quota("a", 5))
		k.take(5, quota("A", 5))
		k.take(5, quota("a ", 5))
		k.take(5, quota("a\x00\xff", 5))
		day := daily("a", 5)
		k.take(5, day)
		k.take(1, slots("a", 1))
		r := rate("a", 5, queue.MaxPer)
		k.take(5, r)
		for _, l := range []queue.Limit{quota("a", 5), quota("A", 5), quota("a ", 5), quota("a\x00\xff", 5), slots("a", 1), r} {
			k.refused(1, l)
		}
		more := quota("a", 7)
		more.N = 2
		k.take(1, more)
	}, ""},
}

// nextPeriod is how far away the next beginning is.
func nextPeriod(per, offset time.Duration) time.Duration {
	t := time.Now().UnixNano() + int64(offset)
	return per - time.Duration(t%int64(per))
}
