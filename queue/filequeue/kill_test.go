package filequeue

import (
	"errors"
	"io"
	"math"
	"path/filepath"
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
