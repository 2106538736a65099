package queuetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

var errPower = errors.New("the power is cut")

// A refDisk has all that a reference knows, as of its last operation: each is one
// write and one sync.
type refDisk struct {
	rule  string // that the store breaks; "": none
	ops   int
	cutAt int
	cut   bool
	synced,
	written *reference // what is synced, and what is written at most
}

func newRefDisk(rule string) *refDisk {
	return &refDisk{rule: rule, synced: newReference(), written: newReference()}
}

func (d *refDisk) CutAt(n int)  { d.cutAt = n }
func (d *refDisk) WasCut() bool { return d.cut }

func (d *refDisk) Crash(seed uint64) *refDisk {
	left := d.synced
	if seed == 1 || seed > 1 && rand.New(rand.NewPCG(seed, 1)).IntN(2) == 0 {
		left = d.written
	}
	n := newRefDisk(d.rule)
	n.synced, n.written = left.clone(), left.clone()
	for _, it := range n.synced.items {
		switch {
		case d.rule == "loses holds" && it.hold == "operator":
			it.held = false
		case d.rule == "loses another route" && it.line.route == "y":
			it.line.route = "x"
		case d.rule == "loses attempts":
			it.attempts = 0
		}
	}
	if d.rule == "loses tombstones" {
		clear(n.synced.tombs)
	}
	n.written = n.synced.clone()
	return n
}

func (s *reference) clone() *reference {
	c := newReference()
	c.tombs, c.next, c.epoch, c.turn = maps.Clone(s.tombs), s.next, s.epoch, s.turn
	for id, m := range s.msgs {
		n := *m
		c.msgs[id] = &n
	}
	for id, it := range s.items {
		n := *it
		n.msg = c.msgs[it.msg.env.ID]
		n.open = copyStates(n.open)
		c.items[id] = &n
	}
	for g, l := range s.lines {
		n := *l
		c.lines[g] = &n
	}
	return c
}

// A refStore is a reference on such a disk.
type refStore struct {
	*reference
	d      *refDisk
	fault  func(string) error
	failed error
	lost   bool // what is written from now on
}

func openRef(d *refDisk, fault func(string) error) (queue.Store, error) {
	if err := fault("open"); err != nil {
		return nil, err
	}
	if d.cut {
		return nil, errPower
	}
	return &refStore{reference: d.written.clone().reopen(), d: d, fault: fault}, nil
}

var errUnknown = errors.New("a sync failed")

// change does an operation, if it can be written.
func (s *refStore) change(call string, op func(*reference) error) error {
	if s.failed != nil {
		return s.failed
	}
	if s.d.cut {
		return errPower
	}
	for _, what := range []string{"write " + call, "sync " + call} {
		err := s.fault(what)
		switch {
		case err == nil:
			continue
		case errors.Is(err, ErrKilled):
		case strings.HasPrefix(what, "sync"):
			if s.d.rule == "goes on after a failed sync" {
				s.lost = true
				continue
			}
			s.failed = fmt.Errorf("%w: %w", errUnknown, err)
			return s.failed
		case s.d.rule == "calls a full disk temporary":
			err = errors.New("trouble")
		case s.d.rule == "calls trouble permanent":
			err = mailspine.Errorf(554, "5.3.0", "Trouble")
		case errors.Is(err, syscall.ENOSPC):
			err = &mailspine.Error{Code: 452, Enhanced: mailspine.EnhancedCode{4, 3, 1}, Message: "Full", Err: err}
		}
		if s.d.rule == "does what it says has failed" {
			op(s.reference)
		}
		return err
	}
	if err := op(s.reference); err != nil {
		return err
	}
	if s.lost {
		return nil
	}
	after := s.reference.clone()
	s.d.ops++
	s.d.written = after
	if s.d.cutAt > 0 && s.d.ops >= s.d.cutAt {
		s.d.cut = true
		return errPower
	}
	if s.d.rule == "answers before it is durable" && s.d.ops%3 == 0 {
		return nil
	}
	s.d.synced = after
	return nil
}

func (s *refStore) Put(ctx context.Context, m queue.Message, c mailspine.Content) error {
	return s.change("put", func(r *reference) error { return r.Put(ctx, m, c) })
}

func (s *refStore) Settle(ctx context.Context, list ...queue.Settlement) ([]error, error) {
	errs := make([]error, len(list))
	for i, x := range list {
		emit := x.Emit
		if s.d.rule == "settles in two steps" {
			x.Emit = nil
		}
		errs[i] = s.change("settle", func(r *reference) error { return r.settle(ctx, x) })
		if s.d.rule == "settles in two steps" && errs[i] == nil {
			for _, e := range emit {
				errs[i] = s.Put(ctx, e.Message, e.Content)
			}
		}
	}
	return errs, nil
}

// Control changes one item after the other.
func (s *refStore) Control(ctx context.Context, f queue.Filter, c queue.Command) (sum queue.Changed, err error) {
	for it, err := range s.List(ctx, f) {
		if err != nil {
			return sum, err
		}
		err = s.change("control", func(r *reference) error {
			ch, err := r.Control(ctx, queue.Filter{Item: it.ID}, c)
			sum.Matched, sum.Changed, sum.Leased = sum.Matched+ch.Matched, sum.Changed+ch.Changed, sum.Leased+ch.Leased
			return err
		})
		if err != nil {
			return sum, err
		}
		if s.d.rule == "deletes too much" && c.Op == queue.OpDelete && f.Route != "" {
			s.change("control", func(r *reference) error { _, err := r.Control(ctx, queue.Filter{ID: it.Message}, c); return err })
		}
	}
	return sum, nil
}

func (s *refStore) Health(ctx context.Context) error { return s.failed }

func powerCut(rule string) PowerCut[*refDisk] {
	return PowerCut[*refDisk]{
		New:  func() *refDisk { return newRefDisk(rule) },
		Open: func(d *refDisk) (queue.Store, error) { return openRef(d, noFault) },
	}
}

func faults(rule string) Faults[*refDisk] {
	return Faults[*refDisk]{
		New:     func() *refDisk { return newRefDisk(rule) },
		Open:    openRef,
		Unknown: func(err error) bool { return errors.Is(err, errUnknown) },
	}
}

func TestReferencePowerCut(t *testing.T) { RunPowerCut(t, powerCut("")) }

func TestReferenceFaults(t *testing.T) {
	f := faults("")
	if f.Step = 101; full() {
		f.Step = 1
	}
	RunFaults(t, f)
}

// Stores that break their promise are noticed by the power-cut and fault parts.
func TestDiskMutants(t *testing.T) {
	part, rule, _ := strings.Cut(os.Getenv("QUEUETEST_DISK_MUTANT"), "|")
	switch part {
	case "cut":
		p := powerCut(rule)
		p.Step, p.Seeds = 2, 4
		RunPowerCut(t, p)
		return
	case "faults":
		f := faults(rule)
		f.Step = 5
		RunFaults(t, f)
		return
	}
	for _, m := range []string{
		"cut|answers before it is durable", "cut|loses holds", "cut|loses another route", "cut|loses attempts", "cut|loses tombstones", "cut|settles in two steps", "cut|deletes too much",
		"faults|goes on after a failed sync", "faults|does what it says has failed", "faults|calls a full disk temporary", "faults|calls trouble permanent",
	} {
		t.Run(m, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run", "^TestDiskMutants$", "-test.timeout", "60s")
			cmd.Env = append(os.Environ(), "QUEUETEST_DISK_MUTANT="+m)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "the contract of queue.Store: ") || strings.Contains(string(out), "panic") {
				t.Errorf("a store that %s passes, or fails without the rule: %v\n%s", m, err, out)
			}
		})
	}
}
