package queuetest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A Faults tells [RunFaults] how to get at the driver.
type Faults[D Disk[D]] struct {
	// New returns an empty disk. Required.
	New func() D
	// Open opens the store that is on a disk. Every call that the store makes to it asks fault first, from any
	// goroutine, and says what it is, for messages ("write journal-1"); nil lets it through. An error makes it
	// fail with that error, or one that wraps it, without having done anything: syscall.ENOSPC and EIO, a *[ShortWrite], of
	// which a write lets a part through, or [ErrKilled]. A sync that fails loses to the disk what was not synced
	// before, as kernels do; not so with ErrKilled. Required.
	Open func(d D, fault func(call string) error) (queue.Store, error)
	// Unknown tells of the error of an operation that it may have happened all the same, as after a failed sync.
	// The store then has to refuse every Put with such an error, and to say so in Health, until it is opened again.
	// nil: no error is of that kind.
	Unknown func(err error) bool
	// Idle, if not nil, waits until the store's goroutines have nothing to do.
	Idle func(s queue.Store)
	// Step: every Step-th call fails, from a random one on, and of the rarer kinds of calls (by the first word of what
	// fault is told) more often. 0: 17, and about five of each kind at most; 3 with MAILSPINE_CI=1, 1 with MAILSPINE_SOAK=1.
	Step int
}

const faultsRule = "An operation that fails has not happened, or the store says that it does not know; out of space is 452 4.3.1 and leaves nothing behind; nothing that was promised is harmed."

// RunFaults runs the script of [RunPowerCut] over a disk of which one call fails, for each
// of the calls (of which some are chosen, see Faults.Step) and each way: the disk is
// full, an I/O error, a write that is cut short in the middle by a full disk, and the death of
// the process. It looks at the store after it, at what a power cut then leaves, and at what is found by
// the next process on the same disk, which works on until the power goes.
func RunFaults[D Disk[D]](t *testing.T, f Faults[D]) {
	if f.New == nil || f.Open == nil {
		t.Fatal("queuetest: Faults.New or Open is nil")
	}
	printRule(t, faultsRule)
	most := 5 // of a kind of calls
	if f.Step > 0 || more() {
		most = 1 << 30
	}
	f.Step = pick(f.Step, 17, 3, 1)
	if f.Unknown == nil {
		f.Unknown = func(error) bool { return false }
	}
	first := seed(t)
	calls := f.calls(t)
	for i, way := range []struct {
		name string
		err  error
	}{
		{"ENOSPC", syscall.ENOSPC}, {"EIO", syscall.EIO}, {"short write", &ShortWrite{N: 7, Err: syscall.ENOSPC}}, {"death", ErrKilled},
	} {
		r := rand.New(rand.NewPCG(first, uint64(i)))
		n := 0
		for _, kind := range slices.Sorted(maps.Keys(calls)) {
			of := calls[kind] // in order
			step := max(min(f.Step, max(1, len(of)/3)), len(of)/most)
			for at := r.IntN(step); at < len(of); at += step {
				f.one(t, way.name, way.err, of[at])
				n++
			}
		}
		// The store may do more, later, when something fails.
		for call := 1 + r.IntN(4*f.Step); f.one(t, way.name, way.err, call); call += 4 * f.Step {
			n++
		}
		t.Logf("%s: %d runs", way.name, n)
	}
}

// calls runs the script once, and returns its calls by their kind.
func (f Faults[D]) calls(t *testing.T) map[string][]int {
	t.Helper()
	var mu sync.Mutex
	n, calls := 0, map[string][]int{}
	s, err := f.Open(f.New(), func(call string) error {
		mu.Lock()
		defer mu.Unlock()
		n++
		kind, _, _ := strings.Cut(call, " ")
		calls[kind] = append(calls[kind], n)
		return nil
	})
	if err != nil {
		t.Fatalf("Open of an empty disk: %v", err)
	}
	inspector(t, s)
	w := newWorld(t, f.Unknown)
	w.s, w.what = s, "without a fault"
	w.script()
	if f.Idle != nil {
		f.Idle(s)
	}
	s.Close()
	mu.Lock()
	defer mu.Unlock()
	return calls
}

// A faultPlan makes the n-th call fail; all from there on if the process dies.
type faultPlan struct {
	n    int64
	err  error
	at   atomic.Int64
	call atomic.Pointer[string]
	over atomic.Bool
}

func (p *faultPlan) fault(call string) error {
	n := p.at.Add(1)
	if n == p.n {
		p.call.Store(&call)
	}
	if p.over.Load() || n != p.n && (n < p.n || !errors.Is(p.err, ErrKilled)) {
		return nil
	}
	return p.err
}

func (p *faultPlan) hit() bool { return p.call.Load() != nil }

func noFault(string) error { return nil }

// one reports whether there was an n-th call.
func (f Faults[D]) one(t *testing.T, way string, fault error, n int) bool {
	t.Helper()
	d := f.New()
	plan := &faultPlan{n: int64(n), err: fault}
	killed := errors.Is(fault, ErrKilled)
	w := newWorld(t, func(err error) bool { return f.Unknown(err) || killed && plan.hit() || d.WasCut() })
	w.what, w.murky = fmt.Sprintf("%s at call %d", way, n), plan.hit
	s, err := f.Open(d, plan.fault)
	if err != nil && !plan.hit() {
		t.Fatalf("%s: Open: %v", w.what, err)
	}
	if err == nil {
		inspector(t, s)
		w.s = s
		w.script()
		if f.Idle != nil {
			f.Idle(s)
		}
		if !plan.hit() {
			s.Close()
			return false
		}
		w.what = fmt.Sprintf("%s at call %d (%s)", way, n, *plan.call.Load())
		if !killed {
			plan.over.Store(true)
			f.after(w, s, errors.Is(fault, syscall.ENOSPC))
		}
		s.Close()
	}
	plan.over.Store(false)
	what := w.what
	for _, seed := range []uint64{0, 5} {
		w.what = fmt.Sprintf("%s, then a power cut, seed %d", what, seed)
		left := d.Crash(seed)
		s, err := f.Open(left, noFault)
		if err != nil {
			t.Fatalf("%s: Open: %v", w.what, err)
		}
		w.check(s)
		s.Close()
	}
	w.what = what + ", then the next process"
	f.next(w, d, n)
	return true
}

// after looks at a store of which a call has failed, because the disk is full or not.
func (f Faults[D]) after(w *world, s queue.Store, full bool) {
	w.t.Helper()
	unknown := w.either != nil
	for _, err := range w.failures {
		if st := mailspine.Status(err); st.Code/100 != 4 {
			w.t.Fatalf("%s: a failure of the disk is answered %v, which is not temporary: %v", w.what, st.Reply(), err)
		}
		if full && !f.Unknown(err) {
			if st := mailspine.Status(err); st.Code != 452 || st.Enhanced != (mailspine.EnhancedCode{4, 3, 1}) {
				w.t.Fatalf("%s: no space is answered %v: %v", w.what, st.Reply(), err)
			}
		}
		unknown = unknown || f.Unknown(err)
	}
	m := message("probe-s", "probe: ann")
	err := s.Put(w.ctx, m, mailspine.StringContent(bodyOf("probe-s")))
	if err != nil && !f.Unknown(err) {
		w.t.Fatalf("%s: Put after it: %v", w.what, err)
	}
	if unknown && err == nil {
		w.t.Fatalf("%s: Put after an operation of which nobody knows whether it happened: nil, want an error", w.what)
	}
	if h, ok := s.(queue.HealthChecker); ok {
		if herr := h.Health(w.ctx); (herr != nil) != (err != nil) {
			w.t.Fatalf("%s: Health is %v, and Put: %v", w.what, herr, err)
		}
	}
	if err == nil {
		w.add(m)(w.want)
		w.accepted["probe-s"] = true
		w.compare(w.actual(s))
	}
}

// next opens the same disk again, as the process does that comes next, and works on; and
// then the power goes: what the first process left to the system must be as good as
// what the second wrote.
func (f Faults[D]) next(w *world, d D, n int) {
	w.t.Helper()
	s, err := f.Open(d, noFault)
	if err != nil {
		w.t.Fatalf("%s: Open: %v", w.what, err)
	}
	got := w.actual(s)
	w.compare(got)
	w.s, w.want, w.either, w.each, w.lost, w.murky = s, got, nil, false, false, nil
	w.leases, w.out, w.failures = nil, map[string]bool{}, nil
	for k := range got { // what is there is accepted, told or not
		for id := range w.msgs {
			if len(k) > len(id) && k[:len(id)] == string(id) && k[len(id)] == '#' {
				w.accepted[id] = true
			}
		}
	}
	d.CutAt(0)
	for i := range 12 {
		w.put(message(fmt.Sprintf("k%d-m", i), "k: ann", "k2: bob"))
		w.lease(2)
		w.settle(0, 0)
		w.control(queue.Filter{ID: mailspine.MsgID(fmt.Sprintf("k%d-m", i))}, []queue.Command{hold("next"), reroute("k3"), flush}[i%3])
		w.settle(i%2, 0)
		if i == 6+n%5 {
			break
		}
	}
	if len(w.failures) > 0 {
		w.t.Fatalf("%s: %v", w.what, w.failures[0])
	}
	what := w.what
	for _, seed := range []uint64{0, 3} {
		w.what = fmt.Sprintf("%s, then a power cut, seed %d", what, seed)
		left, err := f.Open(d.Crash(seed), noFault)
		if err != nil {
			w.t.Fatalf("%s: Open: %v", w.what, err)
		}
		w.check(left)
		left.Close()
	}
	s.Close()
}
