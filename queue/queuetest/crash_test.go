package queuetest

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// A crashMutant is a store that breaks its promise when the process is killed.
type crashMutant struct {
	*filequeue.Store
	rule string
	hook func(string)
}

func (m *crashMutant) later(op func()) {
	go func() {
		time.Sleep(2 * time.Millisecond)
		op()
	}()
}

func (m *crashMutant) Put(ctx context.Context, msg queue.Message, c mailspine.Content) error {
	if m.rule == "answers before it puts" {
		m.later(func() { m.Store.Put(ctx, msg, c) })
		return nil
	}
	return m.Store.Put(ctx, msg, c)
}

func (m *crashMutant) Settle(ctx context.Context, list ...queue.Settlement) ([]error, error) {
	switch {
	case m.rule == "answers before it settles":
		m.later(func() { m.Store.Settle(ctx, list...) })
		return make([]error, len(list)), nil
	case m.rule == "bounces in two steps" && len(list[0].Emit) > 0:
		emit := list[0].Emit
		list[0].Emit = nil
		errs, err := m.Store.Settle(ctx, list...)
		m.hook("between")
		for _, e := range emit {
			m.Store.Put(ctx, e.Message, e.Content)
		}
		return errs, err
	}
	return m.Store.Settle(ctx, list...)
}

// control is Control if the store has it.
func (m *crashMutant) control(ctx context.Context, f queue.Filter, c queue.Command) (queue.Changed, error) {
	return any(m.Store).(queue.Controller).Control(ctx, f, c)
}

func (m *crashMutant) Control(ctx context.Context, f queue.Filter, c queue.Command) (queue.Changed, error) {
	switch {
	case m.rule == "holds in memory" && c.Op == queue.OpHold, m.rule == "deletes in memory" && c.Op == queue.OpDelete:
		return queue.Changed{Matched: 1, Changed: 1}, nil
	}
	return m.control(ctx, f, c)
}

func (m *crashMutant) Take(ctx context.Context, f queue.Filter, n int, ttl time.Duration) ([]queue.Lease, error) {
	return any(m.Store).(queue.Controller).Take(ctx, f, n, ttl)
}

// plain hides what a mutant adds.
type plain struct {
	queue.Store
	queue.Inspector
}

// Stores that break their promise are noticed by the crash part.
func TestCrashMutants(t *testing.T) {
	_, controller := any((*filequeue.Store)(nil)).(queue.Controller)
	if rule := os.Getenv("QUEUETEST_CRASH_MUTANT"); rule != "" {
		RunCrash(t, Crash{
			Open: func(dir string, hook func(string)) (queue.Store, error) {
				s, err := filequeue.Open(dir, &filequeue.Options{Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					return nil, err
				}
				if m := (&crashMutant{s, rule, hook}); controller {
					return m, nil
				} else {
					return plain{m, m}, nil
				}
			},
			Points: []string{"between"},
			Rounds: 30,
		})
		return
	}
	for rule, says := range map[string]string{
		"answers before it puts":    "was accepted and is lost",
		"answers before it settles": "was ended, and is there again",
		"bounces in two steps":      "is lost",
		"holds in memory":           "was held, and is",
		"deletes in memory":         "was ended, and is",
	} {
		if !controller && strings.HasSuffix(rule, "memory") {
			continue
		}
		t.Run(rule, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run", "^TestCrashMutants$", "-test.timeout", "60s")
			cmd.Env = append(os.Environ(), "QUEUETEST_CRASH_MUTANT="+rule)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "the contract of queue.Store: ") || !strings.Contains(string(out), says) {
				t.Errorf("a store that %s passes, or fails otherwise: %v\n%s", rule, err, out)
			}
		})
	}
}
