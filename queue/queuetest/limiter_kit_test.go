package queuetest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

func TestLimiterCases(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range limiterCases() {
		if seen[c.name] || c.name == "" || !strings.HasSuffix(c.rule, ".") {
			t.Errorf("case %q: it has a name of its own and a rule that is a sentence: %q", c.name, c.rule)
		}
		seen[c.name] = true
	}
	if len(seen) < 30 {
		t.Errorf("%d cases", len(seen))
	}
}

// A limiterMutant breaks one rule.
type limiterMutant struct {
	queue.Limiter
	rule string
}

func (m *limiterMutant) Take(ctx context.Context, r queue.TakeRequest) (queue.Permit, error) {
	r.Limits = append([]queue.Limit(nil), r.Limits...)
	for i := range r.Limits {
		l := &r.Limits[i]
		switch {
		case m.rule == "grants one more" && l.Max > 0 && l.Kind == queue.Quota, m.rule == "holds a slot more" && l.Kind == queue.Slots:
			l.Max++
		case m.rule == "has no bursts" && l.Burst > 0:
			l.Burst = l.Max
		case m.rule == "ignores the offset":
			l.Offset = 0
		case m.rule == "folds keys":
			l.Key = strings.ToLower(l.Key)
		case m.rule == "ignores own N":
			l.N = 0
		}
	}
	switch m.rule {
	case "keeps slots longer":
		r.TTL *= 3
	case "is not partial":
		r.Min = 0
	case "takes the first only":
		if len(r.Limits) > 1 {
			if p, err := m.Limiter.Take(ctx, queue.TakeRequest{Limits: r.Limits[:1], N: r.N, TTL: -1}); err != nil {
				return p, err
			}
			r.Limits = r.Limits[1:]
		}
	case "ignores the context":
		ctx = context.Background()
	}
	p, err := m.Limiter.Take(ctx, r)
	if over := (*queue.OverLimit)(nil); m.rule == "knows no wait" && errors.As(err, &over) && !over.Never {
		o := *over
		o.Wait = time.Minute * 3
		err = &o
	}
	return p, err
}

func (m *limiterMutant) Return(ctx context.Context, id queue.PermitID, unused int64) error {
	switch m.rule {
	case "takes nothing back":
		unused = 0
	case "forgets who returns":
		id = 0
	}
	return m.Limiter.Return(ctx, id, unused)
}

func (m *limiterMutant) Renew(ctx context.Context, ttl time.Duration, ids ...queue.PermitID) ([]queue.PermitID, error) {
	ended, err := m.Limiter.Renew(ctx, ttl, ids...)
	if m.rule == "hides a permit that ended" {
		ended = nil
	}
	return ended, err
}

func (m *limiterMutant) Usage(ctx context.Context, limits ...queue.Limit) ([]queue.Usage, error) {
	if m.rule == "takes when it is asked" && len(limits) > 0 {
		m.Limiter.Take(ctx, queue.TakeRequest{Limits: limits[len(limits)-1:], TTL: -1})
	}
	return m.Limiter.Usage(ctx, limits...)
}

var limiterMutants = map[string]string{
	"grants one more": "Quota", "holds a slot more": "Slots", "has no bursts": "Rate", "ignores the offset": "QuotaOffset", "folds keys": "Keys",
	"ignores own N": "OwnN", "keeps slots longer": "SlotsEnd", "is not partial": "Min", "takes the first only": "AllOrNothing", "ignores the context": "Context",
	"knows no wait": "QuotaPeriod", "takes nothing back": "ReturnUnused", "forgets who returns": "Slots", "hides a permit that ended": "SlotsRenew",
	"takes when it is asked": "Usage", "heeds a clock that is set back": "QuotaClock", "forgets with each opening": "Reopen", "forgets in a crash": "Crash",
}

// A kit that never fails tests nothing: limiters that break a rule are run through it, in a process of their
// own, and the rule is printed.
func TestLimiterMutants(t *testing.T) {
	if rule := os.Getenv("QUEUETEST_MUTANT"); rule != "" {
		open := func(_ *testing.T, now func() time.Time) queue.Limiter {
			if rule == "heeds a clock that is set back" && now != nil {
				return &rewinder{now: now, Limiter: memqueue.NewLimiter(&memqueue.LimiterOptions{Now: now})}
			}
			return &limiterMutant{Limiter: memqueue.NewLimiter(&memqueue.LimiterOptions{Now: now}), rule: rule}
		}
		again := func(t *testing.T, l queue.Limiter) queue.Limiter { return open(t, nil) }
		RunLimiter(t, LimiterHarness{Open: open, Reopen: again, Crash: again, Clock: true, Synctest: true, NoModel: true})
		return
	}
	for rule, name := range limiterMutants {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestLimiterMutants$/^"+name+"$", "-test.v", "-test.timeout", "60s")
		cmd.Env = append(os.Environ(), "QUEUETEST_MUTANT="+rule)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: TestLimiterMutants/"+name) || !strings.Contains(string(out), "the contract of queue.Limiter: ") {
			t.Errorf("a limiter that %s passes, or fails without the rule: %v\n%s", rule, err, out)
		}
	}
}

// A rewinder begins anew when its clock goes back.
type rewinder struct {
	queue.Limiter
	now  func() time.Time
	last time.Time
}

func (r *rewinder) Take(ctx context.Context, req queue.TakeRequest) (queue.Permit, error) {
	if t := r.now(); t.Before(r.last) {
		r.Limiter = memqueue.NewLimiter(&memqueue.LimiterOptions{Now: r.now})
	}
	r.last = r.now()
	return r.Limiter.Take(ctx, req)
}
