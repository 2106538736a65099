package queuetest

import (
	"fmt"
	"testing"

	"github.com/mailspine/mailspine/queue"
)

// A Disk is a simulated disk that knows what was synced. D is the disk's own
// type. It is safe for concurrent use.
type Disk[D any] interface {
	// CutAt cuts the power during the n-th operation that changes something or makes something
	// durable, counted from 1 since the disk is new: it fails, having been done in part or not at all, and
	// so does every later call. 0 takes it back.
	CutAt(n int)
	// WasCut reports whether the power is cut.
	WasCut() bool
	// Crash returns the disk as it may be found after the power was cut now, if it was not
	// before: all that is synced, and of the rest what the seed chooses. 0 chooses
	// nothing, 1 all; others any part, in any order, as a disk does that reorders.
	// The disk itself is not changed.
	Crash(seed uint64) D
}

// A PowerCut tells [RunPowerCut] how to get at the driver.
type PowerCut[D Disk[D]] struct {
	// New returns an empty disk. Required.
	New func() D
	// Open opens the store that is on a disk, and makes it if there is none. It should be set to
	// clean up behind itself soon, so that this happens during the script, whose
	// content has about 1 MB. The store is an Inspector. Required.
	Open func(d D) (queue.Store, error)
	// Check, if not nil, looks at a store that was opened after a cut for what only its
	// driver knows: files that nobody needs.
	Check func(s queue.Store, d D) error
	// Step: the power is cut at every Step-th operation, from a random one on. 0: 9; 3 with MAILSPINE_CI=1, 1 with
	// MAILSPINE_SOAK=1.
	Step int
	// Seeds is for how many choices of what reached the disk each cut is looked at. 0: 4; 6 with MAILSPINE_CI=1, 20
	// with MAILSPINE_SOAK=1.
	Seeds int
}

const powerCutRule = "When Put, Settle or Control return nil, what they did survives a crash of the machine; one that had not returned has happened entirely or not at all."

// RunPowerCut runs a script of everything that a store does over a simulated
// disk, and cuts the power at each of its operations (of which some are chosen, see
// PowerCut.Step). What is left is opened, and has to be exactly what was
// promised: the contents, states, attempts, holds and routes of what was accepted, and
// of the operation that was cut off all or nothing. Power is cut also while the store
// recovers from a cut. MAILSPINE_SEED repeats the choices of a run, as far as
// the store's own goroutines do.
func RunPowerCut[D Disk[D]](t *testing.T, p PowerCut[D]) {
	if p.New == nil || p.Open == nil {
		t.Fatal("queuetest: PowerCut.New or Open is nil")
	}
	printRule(t, powerCutRule)
	p.Step, p.Seeds = pick(p.Step, 9, 3, 1), pick(p.Seeds, 4, 6, 20)
	first := seed(t)
	p.whole(t)
	cuts := 0
	for cut := 1 + int(first%uint64(p.Step)); ; cut += p.Step {
		d, w := p.run(t, cut)
		if !d.WasCut() {
			break
		}
		for i := range p.Seeds {
			w.what = fmt.Sprintf("power cut at operation %d, seed %d", cut, i)
			p.look(w, d.Crash(uint64(i)))
			cuts++
		}
	}
	twice := 0
	for cut := 5 + int(first%uint64(p.Step)); ; cut += 6 * p.Step {
		d, w := p.run(t, cut)
		if !d.WasCut() {
			break
		}
		for again := 1; ; again++ {
			d2 := d.Crash(uint64(again))
			d2.CutAt(again)
			if s, err := p.Open(d2); err == nil {
				s.Close()
			}
			if !d2.WasCut() {
				break
			}
			w.what = fmt.Sprintf("power cut at operation %d, and at %d of the recovery", cut, again)
			p.look(w, d2.Crash(uint64(again*7)))
			twice++
		}
	}
	t.Logf("%d power cuts, %d more during recovery", cuts, twice)
}

// pick returns n, or the default for how much is wanted.
func pick(n, least, ci, most int) int {
	switch {
	case n > 0:
		return n
	case full():
		return most
	case more():
		return ci
	}
	return least
}

// whole runs the script without a cut: nothing fails, and all is there at once and after a
// cut once the store is closed.
func (p PowerCut[D]) whole(t *testing.T) {
	t.Helper()
	d, w := p.run(t, 0)
	if len(w.failures) > 0 {
		t.Fatalf("the script fails without a cut: %v", w.failures[0])
	}
	w.what = "power cut after Close"
	p.look(w, d.Crash(0))
}

// run runs the script on a new disk until the power is cut, if it is.
func (p PowerCut[D]) run(t *testing.T, cut int) (D, *world) {
	t.Helper()
	d := p.New()
	d.CutAt(cut)
	w := newWorld(t, func(error) bool { return d.WasCut() })
	w.what = "without a cut"
	s, err := p.Open(d)
	if err != nil {
		if !d.WasCut() {
			t.Fatalf("Open of an empty disk: %v", err)
		}
		return d, w
	}
	inspector(t, s)
	w.s = s
	w.script()
	if cut == 0 { // else it may be cut at any moment, by the store's own doing
		w.compare(w.actual(s))
	}
	if err := s.Close(); err != nil && !d.WasCut() {
		t.Fatalf("Close: %v", err)
	}
	return d, w
}

// look opens what is left, and looks at it.
func (p PowerCut[D]) look(w *world, d D) {
	w.t.Helper()
	s, err := p.Open(d)
	if err != nil {
		w.t.Fatalf("%s: Open: %v", w.what, err)
	}
	defer s.Close()
	if p.Check != nil {
		w.compare(w.actual(s)) // which says more
		if err := p.Check(s, d); err != nil {
			w.t.Fatalf("%s: %v", w.what, err)
		}
	}
	w.check(s)
}
