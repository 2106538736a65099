package queuetest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// The envelope by which stores are tested has no zero field: a field that is
// added to Envelope must be added there, or no store is tested with it.
func TestFullEnvelope(t *testing.T) {
	env := fullEnvelope()
	if err := env.Validate(); err != nil {
		t.Fatal(err)
	}
	var walk func(name string, v reflect.Value)
	walk = func(name string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if v.IsNil() {
				t.Errorf("%s is nil", name)
				return
			}
			walk(name, v.Elem())
		case reflect.Slice:
			if v.Len() == 0 {
				t.Errorf("%s is empty", name)
			}
			for i := range v.Len() {
				walk(fmt.Sprintf("%s[%d]", name, i), v.Index(i))
			}
		case reflect.Struct:
			if v.IsZero() {
				t.Errorf("%s is zero", name)
			}
			for i := range v.NumField() {
				if f := v.Type().Field(i); f.IsExported() {
					walk(name+"."+f.Name, v.Field(i))
				}
			}
		default:
			if v.IsZero() {
				t.Errorf("%s is zero", name)
			}
		}
	}
	walk("Envelope", reflect.ValueOf(env))
}

func TestCases(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range cases() {
		if seen[c.name] || c.name == "" || !strings.HasSuffix(c.rule, ".") {
			t.Errorf("case %q: it has a name of its own and a rule that is a sentence: %q", c.name, c.rule)
		}
		seen[c.name] = true
	}
	if len(seen) < 50 {
		t.Errorf("%d cases", len(seen))
	}
}

// A mutant breaks one rule. The embedded interfaces keep the optional ones.
type mutant struct {
	*memqueue.Store
	rule string
	now  int
}

func (m *mutant) Put(ctx context.Context, msg queue.Message, c mailspine.Content) error {
	if msg.Envelope == nil {
		return m.Store.Put(ctx, msg, c)
	}
	e := msg.Envelope.Clone()
	msg.Envelope = e
	switch m.rule {
	case "forgets the tombstone":
		if _, err := m.Store.Open(ctx, e.ID); err != nil && e.ID != "" {
			m.now++
			e.ID = mailspine.MsgID(fmt.Sprintf("%s-%d", e.ID, m.now))
		}
	case "drops a field":
		e.Origin.TLS.ServerID = ""
	case "ignores the delay":
		msg.Delay = 0
	case "ignores the hold":
		msg.Hold = ""
	}
	return m.Store.Put(ctx, msg, c)
}

func (m *mutant) Lease(ctx context.Context, r queue.LeaseRequest) ([]queue.Lease, error) {
	switch m.rule {
	case "ignores Exclude":
		r.Exclude = nil
	case "leases too long":
		r.TTL *= 3
	}
	l, err := m.Store.Lease(ctx, r)
	for i := range l {
		switch m.rule {
		case "counts wrong":
			l[i].Attempts++
		case "forgets the status":
			for j := range l[i].Recipients {
				l[i].Recipients[j].Last.Status = nil
			}
		}
	}
	return l, err
}

func (m *mutant) Settle(ctx context.Context, s ...queue.Settlement) ([]error, error) {
	for i := range s {
		switch m.rule {
		case "emits nothing":
			s[i].Emit = nil
		case "retries at once":
			s[i].Delay = 0
		}
	}
	errs, err := m.Store.Settle(ctx, s...)
	if m.rule == "hides a lost lease" {
		clear(errs)
	}
	return errs, err
}

func (m *mutant) Extend(ctx context.Context, ttl time.Duration, t ...queue.Token) ([]queue.Token, error) {
	lost, err := m.Store.Extend(ctx, ttl, t...)
	if m.rule == "extends what is lost" {
		lost = nil
	}
	return lost, err
}

func (m *mutant) Abandon(ctx context.Context, d time.Duration, reason string, t ...queue.Token) error {
	if m.rule == "loses the reason" {
		reason = ""
	}
	return m.Store.Abandon(ctx, d, reason, t...)
}

var mutants = map[string]string{
	"forgets the tombstone": "Tombstone", "drops a field": "Envelope", "ignores the delay": "PutDelay", "ignores the hold": "Hold",
	"ignores Exclude": "Exclude", "leases too long": "LeaseExpires", "counts wrong": "SettleCounts", "forgets the status": "SettleKeeps",
	"emits nothing": "Emit", "retries at once": "SettleDelay", "hides a lost lease": "FencedSettle", "extends what is lost": "FencedExtend",
	"loses the reason": "ListReason",
}

// A kit that never fails tests nothing: stores that break a rule are run
// through it, in a process of their own, and the rule is printed.
func TestMutants(t *testing.T) {
	if rule := os.Getenv("QUEUETEST_MUTANT"); rule != "" {
		Run(t, Harness{
			Open:     func(*testing.T) queue.Store { return &mutant{Store: memqueue.New(nil), rule: rule} },
			Synctest: true, NoModel: true,
		})
		return
	}
	for rule, name := range mutants {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestMutants$/^"+name+"$", "-test.v", "-test.timeout", "60s")
		cmd.Env = append(os.Environ(), "QUEUETEST_MUTANT="+rule)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: TestMutants/"+name) || !strings.Contains(string(out), "the contract of queue.Store: ") {
			t.Errorf("a store that %s passes, or fails without the rule: %v\n%s", rule, err, out)
		}
	}
}
