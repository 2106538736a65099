package filequeue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
)

var ctx = context.Background()

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// soak tells whether the full counts are wanted, and ci whether more than the
// least is.
func soak() bool { return os.Getenv("MAILSPINE_SOAK") == "1" }
func ci() bool   { return soak() || os.Getenv("MAILSPINE_CI") == "1" }

// bodyOf is the content of a message with an ID; its size follows from the ID's
// last letter: s small, m a few KiB, l larger than what goes into the journal.
func bodyOf(id mailspine.MsgID) string {
	n := map[byte]int{'s': 10, 'm': 5000, 'l': 30 << 10}[id[len(id)-1]]
	return "Subject: " + string(id) + "\r\n\r\n" + strings.Repeat(string(id)+"\r\n", n/(len(id)+2)+1)
}

// newMessage makes a message with items given as "route: rcpt rcpt".
func newMessage(id mailspine.MsgID, items ...string) queue.Message {
	env := &mailspine.Envelope{ID: id, From: mailspine.Address{Local: "sender", Domain: "example.org"}}
	m := queue.Message{Envelope: env}
	for _, it := range items {
		route, rcpts, _ := strings.Cut(it, ": ")
		n := queue.NewItem{Route: queue.Route(route)}
		for _, r := range strings.Fields(rcpts) {
			n.Recipients = append(n.Recipients, len(env.Recipients))
			env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: r, Domain: route}})
		}
		m.Items = append(m.Items, n)
	}
	return m
}

// A world is a store with what should be in it: for each item its open recipients and
// attempts.
type world struct {
	s        *Store
	want     map[string]string
	done     map[mailspine.MsgID]bool // finished for sure
	either   map[string]string        // another state that is as right, or nil
	unsure   func(error) bool         // whether an operation that failed may have happened
	leases   []queue.Lease
	failures []error
}

func key(id mailspine.MsgID, r queue.Route) string { return string(id) + "/" + string(r) }

func value(rcpts []mailspine.Recipient, attempts int) string {
	var names []string
	for _, r := range rcpts {
		names = append(names, r.Address.Local)
	}
	return fmt.Sprintf("%s #%d", strings.Join(names, " "), attempts)
}

// do runs an operation, and changes what should be there if it happened.
func (w *world) do(op func() error, change func(map[string]string)) bool {
	if w.either != nil {
		return false // the store has failed before
	}
	err := op()
	after := maps.Clone(w.want)
	change(after)
	switch {
	case err == nil:
		w.want = after
		return true
	case w.unsure(err):
		w.either = after
	}
	w.failures = append(w.failures, err)
	return false
}

func addTo(m queue.Message) func(map[string]string) {
	return func(want map[string]string) {
		for _, it := range m.Items {
			var rcpts []mailspine.Recipient
			for _, i := range it.Recipients {
				rcpts = append(rcpts, m.Envelope.Recipients[i])
			}
			want[key(m.Envelope.ID, it.Route)] = value(rcpts, 0)
		}
	}
}

func (w *world) put(id mailspine.MsgID, items ...string) {
	m := newMessage(id, items...)
	w.do(func() error { return w.s.Put(ctx, m, mailspine.StringContent(bodyOf(id))) }, addTo(m))
}

// putStaged puts what was staged, with a header prepended on the way.
func (w *world) putStaged(id mailspine.MsgID, items ...string) {
	m := newMessage(id, items...)
	w.do(func() error {
		st, err := w.s.Stage(ctx, 0)
		if err != nil {
			return err
		}
		defer st.Close()
		b := bodyOf(id)
		if _, err := io.WriteString(st, b[20:]); err != nil {
			return err
		}
		c, err := st.Content()
		if err != nil {
			return err
		}
		return w.s.Put(ctx, m, mailspine.Prepend(c, []byte(b[:20])))
	}, addTo(m))
}

func (w *world) lease(n int) {
	l, err := w.s.Lease(ctx, queue.LeaseRequest{Max: n, TTL: time.Hour})
	if err != nil {
		w.failures = append(w.failures, err)
	}
	w.leases = append(w.leases, l...)
}

// settle ends the oldest lease; the first open of its recipients stay open.
func (w *world) settle(open int, emit ...mailspine.MsgID) {
	if len(w.leases) == 0 {
		return
	}
	l := w.leases[0]
	w.leases = w.leases[1:]
	s := queue.Settlement{Token: l.Token}
	for i := range l.Envelope.Recipients {
		r := queue.Result{State: queue.Delivered}
		if i < open {
			r = queue.Result{State: queue.Open, Status: mailspine.Errorf(450, "4.2.1", "Try later")}
		}
		s.Results = append(s.Results, r)
	}
	open = min(open, len(s.Results))
	for _, id := range emit {
		s.Emit = append(s.Emit, queue.Emission{Message: newMessage(id, "reports: sender"), Content: mailspine.StringContent(bodyOf(id))})
	}
	id := l.Envelope.ID
	if w.do(func() error {
		errs, err := w.s.Settle(ctx, s)
		if err != nil {
			return err
		}
		return errs[0]
	}, func(want map[string]string) {
		k := key(id, l.Route)
		if open > 0 {
			want[k] = value(l.Envelope.Recipients[:open], l.Attempts+1)
		} else {
			delete(want, k)
		}
		for _, e := range s.Emit {
			addTo(e.Message)(want)
		}
	}) {
		w.done[id] = true
		for k := range w.want {
			if strings.HasPrefix(k, string(id)+"/") {
				delete(w.done, id)
			}
		}
	}
}

func (w *world) abandon() {
	if len(w.leases) == 0 {
		return
	}
	l := w.leases[0]
	w.leases = w.leases[1:]
	if err := w.s.Abandon(ctx, 0, "not now", l.Token); err != nil {
		w.failures = append(w.failures, err)
	}
}

// script is a workload in which everything happens, the compactor's work included.
func (w *world) script() {
	w.put("a-s", "x: ann bob", "y: cid")
	w.putStaged("b-l", "x: ann", "y: bob cid")
	w.lease(2)
	w.settle(1, "ra-s")
	w.settle(0)
	w.put("c-l", "z: ann")
	for i := range 14 { // the first segment fills up, mostly with what is done
		w.put(mailspine.MsgID(fmt.Sprintf("d%d-m", i)), "x: ann")
		w.lease(2)
		w.settle(i%5/4, mailspine.MsgID(fmt.Sprintf("rd%d-m", i)))
		w.settle(0)
	}
	w.putStaged("e-s", "y: ann bob cid dan")
	w.lease(3)
	w.abandon()
	w.settle(2, "re-l", "rf-s")
	for i := range 30 {
		w.put(mailspine.MsgID(fmt.Sprintf("g%d-m", i)), "x: ann")
		w.lease(2)
		w.settle(0)
		w.settle(0)
	}
	w.lease(3)
	w.settle(1)
	w.settle(0)
}

// actual is what is in a store; each message has the right content.
func actual(t *testing.T, s *Store) map[string]string {
	t.Helper()
	got := map[string]string{}
	for it, err := range s.List(ctx, queue.Filter{}) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		got[key(it.Message, it.Route)] = value(it.Envelope.Recipients, it.Attempts)
		r, err := s.Open(ctx, it.Message)
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if want := bodyOf(it.Message); err != nil || string(b) != want || it.Size != int64(len(want)) {
			t.Fatalf("%s has %d octets of content, size %d, want %d: %v", it.Message, len(b), it.Size, len(want), err)
		}
	}
	return got
}

// check opens what is left of the world, and looks at it.
func (w *world) check(t *testing.T, fsys durable.FS, what string) {
	t.Helper()
	s, err := Open("spool", &Options{fs: fsys, SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer s.Close()
	got := actual(t, s)
	if !maps.Equal(got, w.want) && (w.either == nil || !maps.Equal(got, w.either)) {
		t.Fatalf("%s: the store has\n%v\nit should have\n%v\nor\n%v", what, show(got), show(w.want), show(w.either))
	}
	for id := range w.done {
		if err := s.Put(ctx, newMessage(id, "x: again"), mailspine.StringContent(bodyOf(id))); err != nil {
			t.Fatalf("%s: Put of a finished message: %v", what, err)
		}
	}
	if again := actual(t, s); !maps.Equal(again, got) {
		t.Fatalf("%s: a finished message came back:\n%v", what, show(again))
	}
	// Nothing that did not arrive takes room.
	files := map[uint64]bool{}
	s.mu.Lock()
	for _, m := range s.messages {
		files[m.file] = true
	}
	s.mu.Unlock()
	delete(files, 0)
	bodies, _ := fsys.ReadDir("spool/bodies")
	stages, _ := fsys.ReadDir("spool/stage")
	if len(bodies) != len(files) || len(stages) != 0 {
		t.Fatalf("%s: %d bodies for %d messages, %d stages", what, len(bodies), len(files), len(stages))
	}
	// And it works on.
	if err := s.Put(ctx, newMessage("after-s", "new: ann"), mailspine.StringContent(bodyOf("after-s"))); err != nil {
		t.Fatalf("%s: Put after it: %v", what, err)
	}
	l, err := s.Lease(ctx, queue.LeaseRequest{Max: 1000})
	if err != nil || len(l) != len(got)+1 {
		t.Fatalf("%s: leased %d of %d items, %v", what, len(l), len(got)+1, err)
	}
	for _, x := range l {
		if errs, err := s.Settle(ctx, queue.Settlement{Token: x.Token, Results: make([]queue.Result, len(x.Recipients))}); err != nil || errs[0] != nil {
			t.Fatalf("%s: Settle: %v, %v", what, errs, err)
		}
	}
}

func show(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "\t%s: %s\n", k, m[k])
	}
	return b.String()
}

func newWorld(fsys durable.FS, unsure func(error) bool) (*world, error) {
	w := &world{want: map[string]string{}, done: map[mailspine.MsgID]bool{}, unsure: unsure}
	var err error
	w.s, err = Open("spool", &Options{fs: fsys, SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()})
	return w, err
}

// settleDown waits until the compactor has nothing to do.
func (w *world) settleDown() {
	for range 10 {
		w.s.mu.Lock()
		idle := !w.s.overgrown() || w.s.failed != nil
		w.s.mu.Unlock()
		if idle && len(w.s.kick) == 0 {
			return
		}
		time.Sleep(100 * time.Microsecond) // only bounds how soon it is noticed
	}
}

func TestScript(t *testing.T) {
	var d durabletest.Disk
	w, err := newWorld(&d, func(error) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	w.script()
	if len(w.failures) > 0 {
		t.Fatalf("failures: %v", w.failures)
	}
	w.settleDown()
	if got := actual(t, w.s); !maps.Equal(got, w.want) {
		t.Fatalf("the store has\n%v\nit should have\n%v", show(got), show(w.want))
	}
	w.s.mu.Lock()
	first := w.s.segments[0].number
	w.s.mu.Unlock()
	if first == 1 {
		t.Error("the compactor never removed a segment, so the other tests of this script prove too little")
	}
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d operations, %d syncs", d.Ops(), d.Syncs())
	w.check(t, d.Crash(0), "after Close and a power cut")
}

// The power is cut at every operation of the script, and what is left of the
// disk opened, for several choices of what reached it.
func TestPowerCut(t *testing.T) {
	step, seeds := 7, uint64(4)
	if ci() {
		step, seeds = 3, 6
	}
	if soak() {
		step, seeds = 1, 20
	}
	n := 0
	for cut := 1 + int(time.Now().UnixNano()%int64(step)); ; cut += step {
		d := new(durabletest.Disk)
		d.CutAt(cut)
		w, err := newWorld(d, func(error) bool { return d.WasCut() })
		if err == nil {
			w.script()
			w.s.Close()
		}
		if !d.WasCut() {
			break
		}
		for seed := range seeds {
			w.check(t, d.Crash(seed), fmt.Sprintf("cut at operation %d, seed %d", cut, seed))
			n++
		}
	}
	t.Logf("%d cuts", n)
}

// Power is cut also while the store recovers from a cut.
func TestPowerCutTwice(t *testing.T) {
	step := 41
	if ci() {
		step = 17
	}
	for cut := 5; ; cut += step {
		d := new(durabletest.Disk)
		d.CutAt(cut)
		w, err := newWorld(d, func(error) bool { return d.WasCut() })
		if err == nil {
			w.script()
			w.s.Close()
		}
		if !d.WasCut() {
			return
		}
		for again := 1; ; again++ {
			d2 := d.Crash(uint64(again))
			d2.CutAt(again)
			if s, err := Open("spool", &Options{fs: d2, SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()}); err == nil {
				s.Close()
			}
			if !d2.WasCut() {
				break
			}
			w.check(t, d2.Crash(uint64(again*7)), fmt.Sprintf("cut at operation %d, and at %d of the recovery", cut, again))
		}
	}
}

// Every call of the script fails once. What failed has not happened, unless a
// sync failed; and nothing else is harmed.
func TestFaults(t *testing.T) {
	step := 11
	if ci() {
		step = 2
	}
	if soak() {
		step = 1
	}
	ways := map[string]error{
		"ENOSPC": noSpace, "EIO": ioError, "short write": &durabletest.ShortWrite{N: 7, Err: noSpace},
	}
	for way, fault := range ways {
		for n := 1 + int(time.Now().UnixNano()%int64(step)); ; n += step {
			d := new(durabletest.Disk)
			f := &durabletest.Faults{FS: d}
			var first atomic.Pointer[durabletest.Call]
			f.Set(func(c durabletest.Call) error {
				if c.N != n {
					return nil
				}
				first.Store(&c)
				return fault
			})
			hit := func() durabletest.Call { // the zero Call before it is hit
				if c := first.Load(); c != nil {
					return *c
				}
				return durabletest.Call{}
			}
			w, err := newWorld(f, func(err error) bool { return errors.Is(err, durable.ErrFailed) })
			what := fmt.Sprintf("%s at call %d", way, n)
			if err == nil {
				w.script()
				w.settleDown()
				what = fmt.Sprintf("%s at call %d (%s %s)", way, n, hit().Op, hit().Name)
				f.Set(nil)
				if err := w.s.Health(ctx); (err != nil) != (w.s.failure() != nil) {
					t.Fatalf("%s: Health: %v", what, err)
				}
				if w.s.failure() == nil {
					if got := actual(t, w.s); !maps.Equal(got, w.want) {
						t.Fatalf("%s: the store has\n%v\nit should have\n%v\nfailures: %v", what, show(got), show(w.want), w.failures)
					}
				} else if err := w.s.Put(ctx, newMessage("x-s", "x: ann"), mailspine.StringContent(bodyOf("x-s"))); !errors.Is(err, durable.ErrFailed) {
					t.Fatalf("%s: Put after a failed sync: %v", what, err)
				}
				w.s.Close()
			} else if hit().N == 0 {
				t.Fatalf("%s: Open: %v", what, err)
			}
			if hit().N == 0 {
				break
			}
			for _, seed := range []uint64{0, 1, 5} {
				w.check(t, d.Crash(seed), what)
			}
		}
	}
}

// When the disk is full, Put answers 452 and leaves nothing; results are still recorded, and Put
// works again when there is room.
func TestDiskFull(t *testing.T) {
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", &Options{fs: d, MinFree: 100 << 10, SegmentSize: 1, Logger: quiet()})
	put := func(id mailspine.MsgID) error {
		return s.Put(ctx, newMessage(id, "x: ann"), mailspine.StringContent(bodyOf(id)))
	}
	if err := put("a-s"); err != nil {
		t.Fatal(err)
	}
	d.SetLimit(d.Used() + 90<<10)
	used := d.Used()
	full := func(err error) {
		t.Helper()
		if st := mailspine.Status(err); !errors.Is(err, noSpace) || st.Code != 452 || st.Enhanced != (mailspine.EnhancedCode{4, 3, 1}) {
			t.Fatalf("on a full disk: %v, status %v", err, st)
		}
	}
	full(put("b-s"))
	_, err := s.Stage(ctx, 0)
	full(err)
	full(s.Health(ctx))
	if d.Used() != used {
		t.Errorf("%d octets were left behind", d.Used()-used)
	}
	l, err := s.Lease(ctx, queue.LeaseRequest{})
	if err != nil || len(l) != 1 {
		t.Fatalf("Lease while there is room for results: %v", err)
	}
	if errs, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{State: queue.Open}}}); err != nil || errs[0] != nil {
		t.Fatalf("Settle while there is room for results: %v, %v", errs, err)
	}
	// Now there is none at all.
	d.SetLimit(d.Used())
	l, err = s.Lease(ctx, queue.LeaseRequest{})
	if err != nil || len(l) != 1 {
		t.Fatalf("Lease: %v", err)
	}
	errs, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{State: queue.Delivered}}})
	if err != nil {
		t.Fatal(err)
	}
	full(errs[0])
	_, err = s.Lease(ctx, queue.LeaseRequest{})
	full(err)
	d.SetLimit(0)
	if errs, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{State: queue.Delivered}}}); err != nil || errs[0] != nil {
		t.Fatalf("Settle when there is room again, the lease is still held: %v, %v", errs, err)
	}
	if err := put("b-s"); err != nil {
		t.Fatalf("Put when there is room again: %v", err)
	}
	if err := s.Health(ctx); err != nil {
		t.Errorf("Health when there is room again: %v", err)
	}
}

// A large message that finds the disk full in the middle leaves no file.
func TestDiskFullStaging(t *testing.T) {
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", &Options{fs: d, MinFree: -1, InlineMax: 1 << 10, Logger: quiet()})
	d.SetLimit(d.Used() + 20<<10)
	used := d.Used()
	if err := s.Put(ctx, newMessage("a-l", "x: ann"), mailspine.StringContent(bodyOf("a-l"))); mailspine.Status(err).Code != 452 {
		t.Fatalf("Put: %v", err)
	}
	st, err := s.Stage(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(st, bodyOf("a-l")); mailspine.Status(err).Code != 452 {
		t.Fatalf("Write to the stage: %v", err)
	}
	if _, err := st.Content(); err == nil {
		t.Fatal("a stage that is short has content")
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if d.Used() != used {
		t.Errorf("%d octets were left behind", d.Used()-used)
	}
	if _, err := d.Stat("spool/stage/1-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stage is still there: %v", err)
	}
}

// A large message whose record does not fit any more leaves no file either, and
// what was staged can be put again.
func TestDiskFullRecord(t *testing.T) {
	f := &durabletest.Faults{FS: new(durabletest.Disk)}
	s := mustOpen(t, "spool", &Options{fs: f, MinFree: -1, InlineMax: 1 << 10, Logger: quiet()})
	st, err := s.Stage(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := io.WriteString(st, bodyOf("a-l")); err != nil {
		t.Fatal(err)
	}
	c, err := st.Content()
	if err != nil {
		t.Fatal(err)
	}
	f.Set(durabletest.Nth(durabletest.Write, 1, noSpace))
	if err := s.Put(ctx, newMessage("a-l", "x: ann"), c); mailspine.Status(err).Code != 452 {
		t.Fatalf("Put: %v", err)
	}
	if list, err := f.ReadDir("spool/bodies"); err != nil || len(list) != 0 {
		t.Errorf("%d bodies are left, %v", len(list), err)
	}
	if err := s.Put(ctx, newMessage("a-l", "x: ann"), c); err != nil {
		t.Fatalf("Put again: %v", err)
	}
	if got := actual(t, s); len(got) != 1 {
		t.Errorf("the store has\n%v", show(got))
	}
}
