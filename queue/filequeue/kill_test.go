package filequeue

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
)

// After a failed sync the page cache still shows what the disk does not have.
// A store that is opened again must not count on it before it is on the disk.
func TestFailedSyncThenPowerCut(t *testing.T) {
	d := new(durabletest.Disk)
	f := &durabletest.Faults{FS: d}
	s := mustOpen(t, "spool", &Options{fs: f, Logger: quiet()})
	m := newMessage("a-s", "x: ann")
	f.Set(durabletest.Nth(durabletest.Sync, 1, syscall.EIO))
	if err := s.Put(ctx, m, mailspine.StringContent(bodyOf("a-s"))); !errors.Is(err, durable.ErrFailed) {
		t.Fatalf("Put with a failing sync: %v", err)
	}
	f.Set(nil)
	s.Close()
	s = mustOpen(t, "spool", &Options{fs: f, Logger: quiet()})
	// The client tries again with the same ID, and is told that it is stored.
	mustPut(t, s, m)
	for seed := range uint64(8) {
		s, err := Open("spool", &Options{fs: d.Crash(seed), Logger: quiet()})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got := actual(t, s); len(got) != 1 {
			t.Fatalf("seed %d: accepted and lost; there is %v", seed, got)
		}
		s.Close()
	}
}

// The process is killed before a sync, or the sync fails; another process opens the directory
// and works on, and then the power goes: what the first left to the kernel must
// be as good as what the second wrote.
func TestKillThenPowerCut(t *testing.T) {
	step := 9
	if ci() {
		step = 3
	}
	if soak() {
		step = 1
	}
	for _, why := range []error{durabletest.ErrKilled, ioError} {
		for op, step := range map[durabletest.Op]int{durabletest.SyncDir: 1, durabletest.Sync: step} {
			for n := 1 + int(time.Now().UnixNano()%int64(step)); killThenCut(t, op, n, why); n += step {
			}
		}
	}
}

// killThenCut reports whether there was an n-th call of the kind.
func killThenCut(t *testing.T, op durabletest.Op, n int, why error) bool {
	d := new(durabletest.Disk)
	f := &durabletest.Faults{FS: d}
	var hit, dead atomic.Bool
	f.Set(func(c durabletest.Call) error {
		if c.Op == op && c.OfOp == n {
			hit.Store(true)
			dead.Store(why == durabletest.ErrKilled)
			return why
		}
		if dead.Load() {
			return durabletest.ErrKilled
		}
		return nil
	})
	what := fmt.Sprintf("%s %d: %v", op, n, why)
	w, err := newWorld(f, func(err error) bool { return dead.Load() || d.WasCut() || errors.Is(err, durable.ErrFailed) })
	if err == nil {
		w.script()
		w.s.Close()
	}
	if !hit.Load() {
		return false
	}
	w.s, err = Open("spool", &Options{fs: d, SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	got := actual(t, w.s)
	if !maps.Equal(got, w.want) && (w.either == nil || !maps.Equal(got, w.either)) {
		t.Fatalf("%s: the store has\n%v\nit should have\n%v\nor\n%v", what, show(got), show(w.want), show(w.either))
	}
	w.want, w.either, w.leases = got, nil, nil
	at := d.Ops() + 1 + n*37%400
	d.CutAt(at)
	for i := range 60 {
		w.put(mailspine.MsgID(fmt.Sprintf("k%d-m", i)), "k: ann")
		w.lease(2)
		w.settle(0)
		w.settle(0)
	}
	d.Cut()
	w.s.Close()
	for seed := range uint64(6) {
		w.check(t, d.Crash(seed), fmt.Sprintf("%s, cut at operation %d, seed %d", what, at, seed))
	}
	return true
}

// The head is not followed by a new segment after its sync failed, even when the
// store has not been told yet: its torn tail would be damage then, and no store
// could be opened on it any more.
func TestNoRotationAfterFailedSync(t *testing.T) {
	f := &durabletest.Faults{FS: new(durabletest.Disk)}
	s := mustOpen(t, "spool", &Options{fs: f, SegmentSize: 1, Logger: quiet()})
	s.head.log.Append(durable.Record{Body: make([]byte, s.opt.SegmentSize)})
	f.Set(durabletest.Nth(durabletest.Sync, 1, syscall.EIO))
	if _, err := s.head.log.Append(durable.Record{Body: []byte("x")}); !errors.Is(err, durable.ErrFailed) {
		t.Fatal(err)
	}
	f.Set(nil)
	s.rotate()
	if _, err := f.Stat(filepath.Join("spool", segmentName(2))); err == nil {
		t.Error("there is a second segment")
	}
}

// A stage that outlives its store does not touch those of the next one.
func TestStageOutlivesStore(t *testing.T) {
	d := new(durabletest.Disk)
	o := &Options{fs: d, InlineMax: 100, Logger: quiet()}
	fill := func(s *Store) mailspine.Stage {
		t.Helper()
		st, err := s.Stage(ctx, 0)
		if err == nil {
			_, err = io.WriteString(st, bodyOf("a-l"))
		}
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	s := mustOpen(t, "spool", o)
	old := fill(s)
	late, err := s.Stage(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = mustOpen(t, "spool", o)
	st := fill(s)
	defer st.Close()
	old.Close()
	io.WriteString(late, bodyOf("b-l"))
	more := fill(s)
	defer more.Close()
	late.Close()
	for id, st := range map[mailspine.MsgID]mailspine.Stage{"a-l": st, "c-l": more} {
		c, err := st.Content()
		if err == nil {
			err = s.Put(ctx, newMessage(id, "x: ann"), c)
		}
		if err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// What arrives does not use up the room that is kept for results.
func TestStagingLeavesRoom(t *testing.T) {
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", &Options{fs: d, MinFree: 200 << 10, InlineMax: 1 << 10, Logger: quiet()})
	d.SetLimit(d.Used() + 300<<10)
	st, err := s.Stage(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = st.Write(make([]byte, 4<<10))
	}
	if mailspine.Status(err).Code != 452 {
		t.Errorf("Write to the stage: %v", err)
	}
	if free := must(d.Free("spool")); free < 200<<10-roomStep {
		t.Errorf("%d octets are left for results", free)
	}
	if err := st.Close(); err != nil {
		t.Error(err)
	}
}

// "Never" is a delay too, and not one that has passed already.
func TestLongestDelay(t *testing.T) {
	const never = time.Duration(math.MaxInt64)
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", &Options{fs: d, Logger: quiet()})
	lease := func(want int) (l []queue.Lease) {
		t.Helper()
		l, err := s.Lease(ctx, queue.LeaseRequest{Max: 10, TTL: never})
		if err != nil || len(l) != want {
			t.Fatalf("%d leases, want %d: %v", len(l), want, err)
		}
		return l
	}
	again := func() {
		t.Helper()
		s.Close()
		s = mustOpen(t, "spool", &Options{fs: d, Logger: quiet()})
		lease(0)
	}
	m := newMessage("a-s", "x: ann")
	m.Delay = never
	mustPut(t, s, m)
	again()
	mustPut(t, s, newMessage("b-s", "x: ann"))
	l := lease(1)
	lease(0)
	if lost, err := s.Extend(ctx, never, l[0].Token); err != nil || len(lost) > 0 {
		t.Fatal(lost, err)
	}
	lease(0)
	if errs, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: make([]queue.Result, 1), Delay: never}); err != nil || errs[0] != nil {
		t.Fatal(errs, err)
	}
	again()
	mustPut(t, s, newMessage("c-s", "x: ann"))
	if err := s.Abandon(ctx, never, "never", lease(1)[0].Token); err != nil {
		t.Fatal(err)
	}
	again()
}
