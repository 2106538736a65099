package queuetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A Harness tells the kit how to get at the driver.
type Harness struct {
	// Open returns an empty store, one that is independent of all others. The kit closes it.
	// In a synctest bubble t is the bubble's. Required.
	Open func(t *testing.T) queue.Store
	// Reopen closes s and opens what it stored anew, as a process does that
	// starts again. nil: the store is volatile, and these cases are skipped.
	Reopen func(t *testing.T, s queue.Store) queue.Store
	// Synctest says that the store's clock is package time, and that its
	// goroutines can live in a testing/synctest bubble.
	Synctest bool
	// NoModel leaves out the property test, which opens about a hundred stores.
	// It is left out without Synctest in any case.
	NoModel bool
}

// A testCase is one rule. The kit grows by such cases.
type testCase struct {
	name  string
	rule  string // the sentence of the contract, printed upon failure
	run   func(k *kit)
	needs need // 0: nothing
}

// Run runs every case as a subtest of t.
func Run(t *testing.T, h Harness) {
	if h.Open == nil {
		t.Fatal("queuetest: Harness.Open is nil")
	}
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			if !h.Synctest {
				t.Parallel() // in real time most of a case is waiting
				runCase(t, h, c)
				return
			}
			var skipped string
			synctest.Test(t, func(t *testing.T) { skipped = runCase(t, h, c) })
			if skipped != "" {
				t.Skip(skipped) // a bubble does not tell that it was skipped
			}
		})
	}
	t.Run("Model", func(t *testing.T) {
		if !h.Synctest || h.NoModel {
			t.Skip("queuetest: the property test needs Synctest, and not NoModel")
		}
		checkModel(t, h)
	})
}

func cases() []testCase {
	return slices.Concat(putCases, leaseCases, settleCases, fairCases, weightCases, contentCases, viewCases, filterCases, controlCases, takeCases, reopenCases)
}

// A Rule is what one case enforces.
type Rule struct {
	Name     string // of the subtest
	Sentence string // of the contract of queue.Store
}

// Rules lists the rules that Run enforces, in order; the model aside.
func Rules() []Rule {
	var rules []Rule
	for _, c := range cases() {
		rules = append(rules, Rule{c.name, c.rule})
	}
	return rules
}

// runCase returns why the case does not apply, or "".
func runCase(t *testing.T, h Harness, c testCase) (skipped string) {
	k := &kit{T: t, h: h, ctx: context.Background()}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the contract of queue.Store: %s", c.rule)
		}
	})
	// The tick is the shortest span of time that a case lets pass.
	k.tick = 250 * time.Millisecond
	if h.Synctest {
		k.tick = time.Minute
	}
	k.s = h.Open(t)
	defer func() { k.s.Close() }()
	if skipped = c.skip(k); skipped == "" {
		c.run(k)
	} else if !h.Synctest {
		t.Skip(skipped)
	}
	return skipped
}

// skip says why a case does not apply to a store, or "".
func (c testCase) skip(k *kit) string {
	for _, n := range needs {
		if c.needs&n.need != 0 && !n.has(k) {
			return "queuetest: the store has no " + n.name
		}
	}
	return ""
}

// A need is what a case needs of the driver; several are or-ed.
type need uint

const (
	reopening need = 1 << iota
	hours
	inspecting
	controlling
	waiting
	staging
	checking
)

var needs = []struct {
	need need
	name string
	has  func(k *kit) bool
}{
	{reopening, "Reopen: it is volatile", func(k *kit) bool { return k.h.Reopen != nil }},
	{hours, "package time, and the case takes too long without", func(k *kit) bool { return k.h.Synctest }},
	{inspecting, "queue.Inspector", is[queue.Inspector]},
	{controlling, "queue.Controller", is[queue.Controller]},
	{waiting, "queue.Waiter", is[queue.Waiter]},
	{staging, "mailspine.Stager", is[mailspine.Stager]},
	{checking, "queue.HealthChecker", is[queue.HealthChecker]},
} // never written

func is[T any](k *kit) bool { _, ok := k.s.(T); return ok }

// A kit is what a case works with.
type kit struct {
	*testing.T
	h    Harness
	ctx  context.Context
	s    queue.Store
	tick time.Duration
}

// long is a lease time that does not end during a case, and patience how long
// a case waits for what must happen.
const (
	long     = time.Hour
	patience = 30 * time.Second
)

func address(s string) mailspine.Address {
	a, err := mailspine.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return a
}

// message makes a message whose items are given as "route: rcpt rcpt".
func message(id string, items ...string) queue.Message {
	env := &mailspine.Envelope{ID: mailspine.MsgID(id), From: address("sender@example.org")}
	m := queue.Message{Envelope: env}
	for _, it := range items {
		route, rcpts, _ := strings.Cut(it, ": ")
		n := queue.NewItem{Route: queue.Route(route)}
		for _, r := range strings.Fields(rcpts) {
			n.Recipients = append(n.Recipients, len(env.Recipients))
			env.Recipients = append(env.Recipients, mailspine.Recipient{Address: address(r + "@" + route)})
		}
		m.Items = append(m.Items, n)
	}
	return m
}

// simple is a message with one recipient.
func simple(id string) queue.Message { return message(id, "example.net: ann") }

func text(id string) mailspine.Content {
	return mailspine.StringContent("Subject: " + id + "\r\n\r\nHello.\r\n")
}

func (k *kit) put(m queue.Message) {
	k.Helper()
	if err := k.s.Put(k.ctx, m, text(string(m.Envelope.ID))); err != nil {
		k.Fatalf("Put(%s): %v", m.Envelope.ID, err)
	}
}

// lease takes up to n items for ttl.
func (k *kit) lease(n int, ttl time.Duration, exclude ...queue.Route) []queue.Lease {
	k.Helper()
	l, err := k.s.Lease(k.ctx, queue.LeaseRequest{Max: n, TTL: ttl, Exclude: exclude})
	if err != nil {
		k.Fatalf("Lease: %v", err)
	}
	if len(l) > n {
		k.Fatalf("Lease returned %d items, Max was %d", len(l), n)
	}
	return l
}

// one leases the only item that is due.
func (k *kit) one(ttl time.Duration) queue.Lease {
	k.Helper()
	l := k.lease(10, ttl)
	if len(l) != 1 {
		k.Fatalf("Lease returned %d items, want 1: %v", len(l), names(l))
	}
	return l[0]
}

// none checks that nothing is due.
func (k *kit) none(why string) {
	k.Helper()
	if l := k.lease(10, long); len(l) != 0 {
		k.Fatalf("Lease returned %v, want none: %s", names(l), why)
	}
}

// soon leases the next item that becomes due, and says how long that took.
func (k *kit) soon(since time.Time, ttl time.Duration) (queue.Lease, time.Duration) {
	k.Helper()
	step := 5 * time.Millisecond
	limit := patience
	if k.h.Synctest {
		step, limit = k.tick/60, 100*time.Hour
	}
	for time.Since(since) < limit {
		if l := k.lease(1, ttl); len(l) == 1 {
			return l[0], time.Since(since)
		}
		time.Sleep(step)
	}
	k.Fatalf("nothing became due in %v", time.Since(since))
	panic("unreachable")
}

// after checks that the next item is due after d, not before. In real time
// "not long after" cannot be told from a busy machine.
func (k *kit) after(since time.Time, d, ttl time.Duration) queue.Lease {
	k.Helper()
	l, took := k.soon(since, ttl)
	if took < d {
		k.Fatalf("due after %v, want not before %v", took, d)
	}
	if k.h.Synctest && took > d+k.tick/2 {
		k.Fatalf("due after %v, want after %v", took, d)
	}
	return l
}

func (k *kit) settle(s queue.Settlement) {
	k.Helper()
	if err := k.trySettle(s); err != nil {
		k.Fatalf("Settle(%v): %v", s.Token, err)
	}
}

func (k *kit) trySettle(s queue.Settlement) error {
	k.Helper()
	errs, err := k.s.Settle(k.ctx, s)
	if err != nil {
		k.Fatalf("Settle: %v", err)
	}
	if len(errs) != 1 {
		k.Fatalf("Settle of one settlement returned %d entries", len(errs))
	}
	return errs[0]
}

// finish settles a lease with the same state for all recipients.
func (k *kit) finish(l queue.Lease, st queue.State) {
	k.Helper()
	k.settle(settlement(l, st))
}

func settlement(l queue.Lease, st queue.State) queue.Settlement {
	s := queue.Settlement{Token: l.Token, Results: make([]queue.Result, len(l.Envelope.Recipients))}
	for i := range s.Results {
		s.Results[i].State = st
		if st != queue.Delivered {
			s.Results[i].Status = mailspine.Errorf(450, "4.2.1", "Try later")
		}
	}
	return s
}

// lost checks that an operation with a lease failed because it is lost.
func (k *kit) lost(l queue.Lease) {
	k.Helper()
	if err := k.trySettle(settlement(l, queue.Delivered)); !errors.Is(err, queue.ErrLeaseLost) {
		k.Fatalf("Settle with the lost lease %v: %v, want queue.ErrLeaseLost", l.Token, err)
	}
}

func (k *kit) read(id mailspine.MsgID) string {
	k.Helper()
	r, err := k.s.Open(k.ctx, id)
	if err != nil {
		k.Fatalf("Open(%s): %v", id, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		k.Fatalf("reading %s: %v", id, err)
	}
	return string(b)
}

// gone checks that a message is not stored.
func (k *kit) gone(id mailspine.MsgID) {
	k.Helper()
	if r, err := k.s.Open(k.ctx, id); !errors.Is(err, queue.ErrNotFound) {
		if r != nil {
			r.Close()
		}
		k.Fatalf("Open(%s): %v, want queue.ErrNotFound", id, err)
	}
}

func names(l []queue.Lease) []string {
	var n []string
	for _, x := range l {
		n = append(n, fmt.Sprintf("%s/%s", x.Envelope.ID, x.Route))
	}
	return n
}

func rcpts(l queue.Lease) string {
	var n []string
	for _, r := range l.Envelope.Recipients {
		n = append(n, r.Address.Local)
	}
	return strings.Join(n, " ")
}
