package queuetest

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A mutant breaks one rule. Some it breaks inside, by the reference's quirk.
type mutant struct {
	*reference
	rule string
	now  int
}

func newMutant(rule string) *mutant {
	m := &mutant{reference: newReference(), rule: rule}
	m.quirk = rule
	return m
}

// mutants has the case that notices each.
var mutants = map[string]string{
	"forgets the tombstone": "Tombstone", "drops a field": "Envelope", "drops the Meta": "Meta", "ignores the delay": "PutDelay", "ignores the hold": "Hold",
	"waits for an instant": "Delays", "takes the longest delay for none": "DelayLongest",
	"ignores Exclude": "Exclude", "leases too long": "LeaseExpires", "counts wrong": "SettleCounts", "forgets the status": "SettleKeeps",
	"emits nothing": "Emit", "retries at once": "SettleDelay", "hides a lost lease": "FencedSettle", "extends what is lost": "FencedExtend",
	"loses the reason": "ListReason",

	"ignores weights": "WeightProportion", "ignores large weights": "WeightMany", "keeps the first weight": "WeightLatest", "counts messages, not octets": "WeightSize",
	"ignores priorities": "PriorityOrder", "lets a priority pass other tenants": "PriorityTenants",

	"ignores Filter.ID": "FilterControl", "ignores Filter.Item": "FilterTake", "ignores Filter.Route": "FilterList", "ignores Filter.Tenant": "FilterControl",
	"ignores Filter.Stream": "FilterControl", "ignores Filter.Sender": "FilterTake", "ignores Filter.Recipient": "FilterList", "ignores Filter.Domain": "FilterControl",
	"ignores Filter.State": "FilterState", "ignores Filter.MinAge": "FilterAge", "ignores Filter.MaxAge": "FilterAge",
	"matches what is done": "FilterDone", "takes any filter": "ControlInvalid", "takes any command": "ControlInvalid",

	"changes what is leased": "ControlLeased", "counts no leases": "ControlLeased", "counts what it does not change": "ControlHoldAgain",
	"keeps the first reason": "ControlHoldAgain", "cuts the reason": "ControlHoldReason", "releases after the delay": "ControlHold",
	"flushes what is held": "ControlFlush", "deletes the message with its first item": "ControlDelete", "forgets what it deleted": "ControlDelete",
	"makes due what it reroutes": "ControlRerouteStates", "forgets attempts when it reroutes": "ControlReroute", "wakes nobody": "ControlWait",
	"forgets commands at a restart": "ControlReopen", "closes nothing": "ControlContext",

	"takes what is leased": "Take", "takes what is due alone": "Take", "takes one too many": "TakeMax", "forgets the hold of what it takes": "TakeHeldLapses",
	"holds again without a reason": "TakeHeldAbandoned", "holds again what was settled": "TakeSettle", "uses an epoch again": "TakeFenced",

	"counts a group twice": "Breakdown", "counts by the first route": "BreakdownControl", "lists one more": "ListEnds", "lists with a bad filter": "ListInvalid",
	"wakes for nothing": "WaitQuiet",
} // never written

// A kit that never fails tests nothing: stores that break a rule are run
// through it, in a process of their own, and the rule is printed.
func TestMutants(t *testing.T) {
	if rule := os.Getenv("QUEUETEST_MUTANT"); rule != "" {
		Run(t, Harness{
			Open: func(*testing.T) queue.Store { return newMutant(rule) },
			Reopen: func(_ *testing.T, s queue.Store) queue.Store {
				old := s.(*mutant)
				old.Close()
				n := newMutant(rule)
				n.reference = old.reopen()
				if rule == "forgets commands at a restart" {
					for _, it := range n.items {
						if it.hold == "operator" {
							it.held = false
						}
					}
				}
				return n
			},
			Synctest: true, NoModel: true,
		})
		return
	}
	for rule, name := range mutants {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run", "^TestMutants$/^"+name+"$", "-test.v", "-test.timeout", "60s")
			cmd.Env = append(os.Environ(), "QUEUETEST_MUTANT="+rule)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestMutants/"+name) || !strings.Contains(string(out), "the contract of queue.Store: ") {
				t.Errorf("a store that %s passes %s, or fails without the rule: %v\n%s", rule, name, err, out)
			}
		})
	}
}

func (m *mutant) Put(ctx context.Context, msg queue.Message, c mailspine.Content) error {
	if msg.Envelope == nil {
		return m.reference.Put(ctx, msg, c)
	}
	e := msg.Envelope.Clone()
	msg.Envelope = e
	switch m.rule {
	case "forgets the tombstone":
		if _, err := m.Open(ctx, e.ID); err != nil && e.ID != "" {
			m.now++
			e.ID = mailspine.MsgID(fmt.Sprintf("%s-%d", e.ID, m.now))
		}
	case "drops a field":
		e.Origin.TLS.ServerID = ""
	case "drops the Meta":
		delete(e.Meta, "")
	case "ignores the delay":
		msg.Delay = 0
	case "waits for an instant":
		msg.Delay = max(msg.Delay, time.Until(e.HoldUntil))
	case "ignores the hold":
		msg.Hold = ""
	case "ignores weights":
		msg.Weight = 0
	case "ignores large weights":
		msg.Weight = min(msg.Weight, 5)
	}
	return m.reference.Put(ctx, msg, c)
}

func (m *mutant) Lease(ctx context.Context, r queue.LeaseRequest) ([]queue.Lease, error) {
	switch m.rule {
	case "ignores Exclude":
		r.Exclude = nil
	case "leases too long":
		r.TTL *= 3
	}
	l, err := m.reference.Lease(ctx, r)
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
		case "takes the longest delay for none":
			if s[i].Delay > 1000*time.Hour {
				s[i].Delay = 0
			}
		case "holds again what was settled":
			if it := m.items[s[i].Token.Item]; it != nil && it.hold != "" {
				defer func() { it.held, it.hold = true, "x" }()
			}
		}
	}
	errs, err := m.reference.Settle(ctx, s...)
	if m.rule == "hides a lost lease" {
		clear(errs)
	}
	return errs, err
}

func (m *mutant) Extend(ctx context.Context, ttl time.Duration, t ...queue.Token) ([]queue.Token, error) {
	lost, err := m.reference.Extend(ctx, ttl, t...)
	if m.rule == "extends what is lost" {
		lost = nil
	}
	return lost, err
}

func (m *mutant) Abandon(ctx context.Context, d time.Duration, reason string, t ...queue.Token) error {
	switch m.rule {
	case "loses the reason":
		reason = ""
	case "holds again without a reason":
		defer func() {
			for _, it := range m.items {
				it.reason = reason
			}
		}()
	}
	return m.reference.Abandon(ctx, d, reason, t...)
}

func (m *mutant) Wait(ctx context.Context, exclude []queue.Route) error {
	if m.rule == "wakes for nothing" {
		return ctx.Err()
	}
	return m.reference.Wait(ctx, exclude)
}

func (m *mutant) Close() error {
	if m.rule == "closes nothing" {
		return nil
	}
	return m.reference.Close()
}

// blind is the filter without a field.
func (m *mutant) blind(f queue.Filter) queue.Filter {
	field, _ := strings.CutPrefix(m.rule, "ignores Filter.")
	switch field {
	case "ID":
		f.ID = ""
	case "Item":
		f.Item = 0
	case "Route":
		f.Route = ""
	case "Tenant":
		f.Tenant = ""
	case "Stream":
		f.Stream = ""
	case "Sender":
		f.Sender = ""
	case "Recipient":
		f.Recipient = ""
	case "Domain":
		f.Domain = ""
	case "State":
		f.State = queue.AnyState
	case "MinAge":
		f.MinAge = 0
	case "MaxAge":
		f.MaxAge = 0
	case "takes any filter":
		if f.Validate() != nil {
			return queue.Filter{}
		}
	case "matches what is done":
		f.Recipient = ""
	}
	return f
}

func (m *mutant) List(ctx context.Context, f queue.Filter) iter.Seq2[queue.Item, error] {
	seq := m.reference.List(ctx, m.blind(f))
	return func(yield func(queue.Item, error) bool) {
		for it, err := range seq {
			if m.rule == "lists with a bad filter" && err != nil {
				return
			}
			if !yield(it, err) {
				return
			}
			if m.rule == "lists one more" && !yield(it, err) {
				return
			}
		}
	}
}

func (m *mutant) Breakdown(ctx context.Context) iter.Seq2[queue.Group, error] {
	seq := m.reference.Breakdown(ctx)
	return func(yield func(queue.Group, error) bool) {
		for g, err := range seq {
			if m.rule == "counts by the first route" && g.Route == "c" {
				g.Route = "a"
			}
			if !yield(g, err) || m.rule == "counts a group twice" && !yield(g, err) {
				return
			}
		}
	}
}

func (m *mutant) Control(ctx context.Context, f queue.Filter, c queue.Command) (queue.Changed, error) {
	f = m.blind(f)
	if c.Validate() != nil && m.rule == "takes any command" {
		return queue.Changed{}, nil
	}
	before := map[queue.ItemID]refItem{}
	for id, it := range m.items {
		before[id] = *it
	}
	switch m.rule {
	case "changes what is leased":
		for _, it := range m.items {
			it.leased = false
		}
	case "cuts the reason":
		c.Reason = c.Reason[:min(len(c.Reason), 900)]
	case "flushes what is held":
		if c.Op == queue.OpFlush {
			m.Control(ctx, f, queue.Command{Op: queue.OpRelease})
		}
	}
	ch, err := m.reference.Control(ctx, f, c)
	switch m.rule {
	case "counts no leases":
		ch.Leased = 0
	case "counts what it does not change":
		ch.Changed = ch.Matched
	case "deletes the message with its first item":
		if c.Op == queue.OpDelete {
			for id := range before {
				if it := m.items[id]; it != nil && it.msg.env.ID == f.ID {
					m.drop(it)
				}
			}
		}
	case "forgets what it deleted":
		clear(m.tombs)
	}
	for id, old := range before {
		it := m.items[id]
		if it == nil {
			continue
		}
		switch m.rule {
		case "keeps the first reason":
			if old.held && it.held {
				it.reason = old.reason
			}
		case "releases after the delay":
			it.due = old.due
		case "makes due what it reroutes":
			if it.line != old.line {
				it.due = time.Now()
			}
		case "forgets attempts when it reroutes":
			if it.line != old.line {
				it.attempts = 0
			}
		}
	}
	return ch, err
}

func (m *mutant) Take(ctx context.Context, f queue.Filter, n int, ttl time.Duration) ([]queue.Lease, error) {
	f = m.blind(f)
	switch m.rule {
	case "takes what is leased":
		for _, it := range m.items {
			it.leased = false
		}
	case "takes what is due alone":
		f.State = queue.ItemDue
	case "takes one too many":
		n++
	case "uses an epoch again":
		m.epoch = 0
	}
	held := maps.Clone(m.items)
	l, err := m.reference.Take(ctx, f, n, ttl)
	if m.rule == "forgets the hold of what it takes" {
		for _, x := range l {
			held[x.Token.Item].hold = ""
		}
	}
	return l, err
}
