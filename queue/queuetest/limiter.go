package queuetest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine/queue"
)

// A LimiterHarness tells the kit how to get at a driver of queue.Limiter.
type LimiterHarness struct {
	// Open returns a Limiter that has counted nothing, independent of all others. The kit closes it. Its clock
	// is now; nil: its own. A driver that has no other ignores it. In a synctest bubble t is the bubble's. Required.
	Open func(t *testing.T, now func() time.Time) queue.Limiter
	// Reopen closes l and opens what it counted anew, as a process does that starts again. nil: the counts are
	// volatile, and these cases are skipped.
	Reopen func(t *testing.T, l queue.Limiter) queue.Limiter
	// Crash opens what l counted anew as after a kill: without Close. nil: these cases are skipped.
	Crash func(t *testing.T, l queue.Limiter) queue.Limiter
	// OpenSmall returns a Limiter that remembers at most 10 keys and 10 permits. nil: that case is skipped.
	OpenSmall func(t *testing.T) queue.Limiter
	// Clock says that Open heeds now.
	Clock bool
	// Synctest says that the Limiter keeps time with package time, and that its goroutines can live in a
	// testing/synctest bubble.
	Synctest bool
	// Coarse says that what comes back of a Rate may be granted later, as by a queue.BlockLimiter: the cases that
	// count it to the second, and the property test, are left out.
	Coarse bool
	// NoModel leaves out the property test. It is left out without Synctest in any case.
	NoModel bool
}

type limiterCase struct {
	name  string
	rule  string // the sentence of the contract, printed upon failure
	run   func(k *limiterKit)
	needs limiterNeed
}

// A limiterNeed is what a case needs of the driver.
type limiterNeed string

const (
	limiterReopen limiterNeed = "Reopen: the counts are volatile"
	limiterCrash  limiterNeed = "Crash: the counts are volatile"
	limiterHours  limiterNeed = "package time, and the case takes too long without"
	limiterExact  limiterNeed = "package time and an exact Rate"
	limiterSmall  limiterNeed = "OpenSmall"
	limiterClock  limiterNeed = "Clock"
)

// RunLimiter runs every case as a subtest of t.
func RunLimiter(t *testing.T, h LimiterHarness) {
	if h.Open == nil {
		t.Fatal("queuetest: LimiterHarness.Open is nil")
	}
	for _, c := range limiterCases() {
		t.Run(c.name, func(t *testing.T) {
			if why := c.skip(h); why != "" {
				t.Skip("queuetest: the limiter has no " + why)
			}
			if !h.Synctest {
				t.Parallel() // in real time most of a case is waiting
				runLimiterCase(t, h, c)
				return
			}
			synctest.Test(t, func(t *testing.T) { runLimiterCase(t, h, c) })
		})
	}
	t.Run("Model", func(t *testing.T) {
		if !h.Synctest || h.NoModel || h.Coarse {
			t.Skip("queuetest: the property test needs Synctest, and neither NoModel nor Coarse")
		}
		checkLimiterModel(t, h)
	})
}

func limiterCases() []limiterCase {
	return slices.Concat(limiterKindCases, limiterTakeCases, limiterReturnCases, limiterLifeCases)
}

// LimiterRules lists the rules that RunLimiter enforces, in order; the model aside.
func LimiterRules() []Rule {
	var rules []Rule
	for _, c := range limiterCases() {
		rules = append(rules, Rule{c.name, c.rule})
	}
	return rules
}

func (c limiterCase) skip(h LimiterHarness) string {
	has := map[limiterNeed]bool{
		"": true, limiterReopen: h.Reopen != nil, limiterCrash: h.Crash != nil, limiterHours: h.Synctest,
		limiterExact: h.Synctest && !h.Coarse, limiterSmall: h.OpenSmall != nil, limiterClock: h.Clock,
	}
	if has[c.needs] {
		return ""
	}
	return string(c.needs)
}

func runLimiterCase(t *testing.T, h LimiterHarness, c limiterCase) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the contract of queue.Limiter: %s", c.rule)
		}
	})
	k := &limiterKit{T: t, h: h, ctx: context.Background(), tick: 300 * time.Millisecond}
	if h.Synctest {
		k.tick = time.Minute
	}
	if c.needs != limiterSmall && c.needs != limiterClock {
		k.l = h.Open(t, nil)
	}
	defer func() {
		if k.l != nil {
			k.l.Close()
		}
	}()
	c.run(k)
}

// A limiterKit is what a case works with.
type limiterKit struct {
	*testing.T
	h    LimiterHarness
	ctx  context.Context
	l    queue.Limiter
	tick time.Duration
}

func slots(key string, max int64) queue.Limit {
	return queue.Limit{Kind: queue.Slots, Key: key, Max: max}
}

func rate(key string, max int64, per time.Duration) queue.Limit {
	return queue.Limit{Kind: queue.Rate, Key: key, Max: max, Per: per}
}

// quota is one whose period does not end in real time.
func quota(key string, max int64) queue.Limit {
	return queue.Limit{Kind: queue.Quota, Key: key, Max: max, Per: queue.MaxPer}
}

func daily(key string, max int64) queue.Limit {
	return queue.Limit{Kind: queue.Quota, Key: key, Max: max, Per: queue.Day}
}

// take takes n for an hour, and fails if that is refused.
func (k *limiterKit) take(n int64, limits ...queue.Limit) queue.Permit {
	k.Helper()
	p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: limits, N: n, TTL: time.Hour})
	if err != nil {
		k.Fatalf("Take of %d of %v: %v", n, limits, err)
	}
	if p.N != n && n > 0 {
		k.Fatalf("Take of %d of %v granted %d", n, limits, p.N)
	}
	return p
}

// refused checks that n is refused, and returns why.
func (k *limiterKit) refused(n int64, limits ...queue.Limit) *queue.OverLimit {
	k.Helper()
	p, err := k.l.Take(k.ctx, queue.TakeRequest{Limits: limits, N: n})
	var over *queue.OverLimit
	if !errors.As(err, &over) {
		k.Fatalf("Take of %d of %v: %+v, %v, want an *OverLimit", n, limits, p, err)
	}
	if over.Never != (over.Wait == 0) || over.Wait < 0 || over.Room >= over.Need {
		k.Fatalf("an *OverLimit that cannot be: %+v", over)
	}
	return over
}

func (k *limiterKit) giveBack(p queue.Permit, unused int64) {
	k.Helper()
	if err := k.l.Return(k.ctx, p.ID, unused); err != nil {
		k.Fatalf("Return(%d, %d): %v", p.ID, unused, err)
	}
}

func (k *limiterKit) usage(l queue.Limit) queue.Usage {
	k.Helper()
	u, err := k.l.Usage(k.ctx, l)
	if err != nil {
		k.Fatalf("Usage of %v: %v", l, err)
	}
	if len(u) != 1 {
		k.Fatalf("Usage of one limit has %d entries", len(u))
	}
	return u[0]
}

// used checks how much of a limit is used, and that the rest is room.
func (k *limiterKit) used(l queue.Limit, want int64) {
	k.Helper()
	u := k.usage(l)
	most := l.Max
	if l.Burst > 0 {
		most = l.Burst
	}
	if u.Used != want || u.Room != max(0, most-want) {
		k.Fatalf("Usage of %v: used %d, room %d; want used %d, room %d", l, u.Used, u.Room, want, max(0, most-want))
	}
}
