package filequeue

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
)

// busyLife puts and settles so much that there are bodies, new segments and compaction, until something
// fails for good. It returns the IDs of what was accepted and not settled.
func busyLife(s *Store) map[mailspine.MsgID]bool {
	left := map[mailspine.MsgID]bool{}
	for i := range 60 {
		id := mailspine.MsgID(fmt.Sprintf("m%d-%c", i, "mml"[i%3]))
		if s.Put(ctx, newMessage(id, "x: ann"), mailspine.StringContent(bodyOf(id))) == nil {
			left[id] = true
		}
		if i%8 == 7 {
			l, _ := s.Lease(ctx, queue.LeaseRequest{Max: 7, TTL: time.Hour})
			for _, x := range l {
				errs, err := s.Settle(ctx, queue.Settlement{Token: x.Token, Results: []queue.Result{{State: queue.Delivered}}})
				if err == nil && errs[0] == nil {
					delete(left, x.Envelope.ID)
				}
			}
		}
	}
	return left
}

// A sync that fails, of whatever file or directory, stops the store: Health says so, nothing is accepted, and the file is never
// synced again.
func TestEverySyncFails(t *testing.T) {
	step := 7
	if ci() {
		step = 1
	}
	for _, op := range []durabletest.Op{durabletest.Sync, durabletest.SyncDir} {
		stopped := map[string]int{}
		for n := 1; ; n += step {
			d := new(durabletest.Disk)
			f := &durabletest.Faults{FS: d}
			s, err := Open("spool", small(f))
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			failed, again := "", 0
			f.Set(func(c durabletest.Call) error {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case c.Op == op && c.OfOp == n:
					failed = c.Name
					return ioError
				case failed != "" && (c.Op == durabletest.Sync || c.Op == durabletest.SyncDir) && c.Name == failed:
					again++
				}
				return nil
			})
			left := busyLife(s)
			idle(s)
			mu.Lock()
			name, twice := failed, again
			mu.Unlock()
			if name == "" {
				s.Close()
				break
			}
			what := fmt.Sprintf("%s %d, of %s, fails", op, n, name)
			if err := s.Health(ctx); !errors.Is(err, ioError) || !errors.Is(err, durable.ErrFailed) {
				t.Fatalf("%s: Health: %v", what, err)
			}
			if err := s.Put(ctx, newMessage("z-s", "x: ann"), mailspine.StringContent(bodyOf("z-s"))); !errors.Is(err, durable.ErrFailed) {
				t.Fatalf("%s: Put: %v", what, err)
			}
			if _, err := s.Stage(ctx, 0); !errors.Is(err, durable.ErrFailed) {
				t.Fatalf("%s: Stage: %v", what, err)
			}
			if st := mailspine.Status(s.Health(ctx)); st.Code != 451 || strings.Contains(st.Reply(), "spool") {
				t.Fatalf("%s: the peer is told %s", what, st.Reply())
			}
			if twice > 0 {
				t.Fatalf("%s: it was synced again", what)
			}
			s.Close()
			kind := "journal"
			for _, k := range []string{"bodies", "stage", ".tmp"} {
				if strings.Contains(name, k) {
					kind = k
				}
			}
			stopped[kind]++
			// What was accepted is there when the machine is started again.
			for _, seed := range []uint64{0, 1, 3} {
				s, err := Open("spool", small(d.Crash(seed)))
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				got := actual(t, s)
				for id := range left {
					if got[key(id, "x")] == "" {
						t.Fatalf("%s, seed %d: %s was accepted, and is lost", what, seed, id)
					}
				}
				s.Close()
			}
		}
		t.Logf("%s: %v", op, stopped)
	}
}

// A full disk that gets no room from outside is emptied by deliveries: results are recorded in what MinFree kept, the
// compactor makes room of what is done, and Put works again by itself.
func TestDiskFullResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := new(durabletest.Disk)
		s := mustOpen(t, "spool", &Options{fs: d, MinFree: 128 << 10, SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()})
		defer s.Close()
		d.SetLimit(1 << 20)
		put := func(i int) error {
			id := mailspine.MsgID(fmt.Sprintf("m%d-%c", i, "mml"[i%3]))
			return s.Put(ctx, newMessage(id, "x: ann"), mailspine.StringContent(bodyOf(id)))
		}
		n := 0
		fill := func() (accepted int) {
			for ; ; n++ {
				err := put(n)
				if err == nil {
					accepted++
					continue
				}
				if st := mailspine.Status(err); st.Code != 452 || st.Enhanced != (mailspine.EnhancedCode{4, 3, 1}) {
					t.Fatalf("Put on a full disk: %v, status %v", err, st)
				}
				if err := s.Health(ctx); !errors.Is(err, noSpace) {
					t.Fatalf("Health on a full disk: %v", err)
				}
				return accepted
			}
		}
		first := fill()
		if free := must(d.Free("spool")); first < 30 || free > 128<<10 || free < 64<<10 {
			t.Fatalf("full after %d messages, with %d octets free", first, free)
		}
		for round := range 5 {
			// All but a few are delivered; each result needs room.
			for _, l := range mustLease(t, s, 1000)[3:] {
				mustSettle(t, s, l, queue.Delivered)
			}
			synctest.Wait() // for the compactor
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if err := s.Health(ctx); err != nil {
				t.Fatalf("round %d: Health after the deliveries: %v; %d octets are free", round, err, must(d.Free("spool")))
			}
			if again := fill(); again < first/3 {
				t.Fatalf("round %d: room for %d messages, and at first for %d", round, again, first)
			}
			time.Sleep(2 * time.Hour) // leases end
		}
	})
}

// A compactor that found no room tries again, also when nobody does anything meanwhile: its work may be what makes room.
func TestCompactorTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := new(durabletest.Disk)
		f := &durabletest.Faults{FS: d}
		s := mustOpen(t, "spool", small(f))
		defer s.Close()
		for i := range 80 {
			mustPut(t, s, newMessage(mailspine.MsgID(fmt.Sprintf("m%d-m", i)), "x: ann"))
		}
		f.Set(func(c durabletest.Call) error {
			if c.Op == durabletest.Write && c.Size > 4000 {
				return noSpace // for messages; there is still some for results
			}
			return nil
		})
		for i, l := range mustLease(t, s, 100) {
			if i%8 == 0 {
				continue
			}
			// A result that shares a write with what the compactor copies fails with it, and is tried again.
			set := queue.Settlement{Token: l.Token, Results: []queue.Result{{State: queue.Delivered}}}
			for tries := 0; ; tries++ {
				errs, err := s.Settle(ctx, set)
				if err == nil && errs[0] == nil {
					break
				}
				if tries == 10 || !errors.Is(errors.Join(errs...), noSpace) {
					t.Fatal(errs, err)
				}
				synctest.Wait() // until the compactor waits
			}
		}
		synctest.Wait()
		over := func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.overgrown()
		}
		if !over() {
			t.Fatal("the compactor found room")
		}
		time.Sleep(10 * time.Minute)
		f.Set(nil)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if over() {
			t.Error("the journal is as large as it was")
		}
	})
}

// Where a file system finds out in the sync that there is no room, the message is refused, and the store goes on.
func TestDiskFullInSync(t *testing.T) {
	d := new(durabletest.Disk)
	f := &durabletest.Faults{FS: d}
	s := mustOpen(t, "spool", small(f))
	m := newMessage("a-l", "x: ann")
	f.Set(durabletest.Nth(durabletest.Sync, 1, noSpace))
	if err := s.Put(ctx, m, mailspine.StringContent(bodyOf("a-l"))); mailspine.Status(err).Code != 452 {
		t.Fatalf("Put: %v", err)
	}
	if err := s.Health(ctx); err != nil {
		t.Errorf("Health: %v", err)
	}
	if err := leftovers(s, d); err != nil {
		t.Error(err)
	}
	mustPut(t, s, m)
	if got := actual(t, s); len(got) != 1 {
		t.Errorf("the store has\n%v", show(got))
	}
}

// Put finds out soon when there is room again, or none any more.
func TestDiskFullNoticed(t *testing.T) {
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", &Options{fs: d, Logger: quiet()}) // 64 MiB
	for _, id := range []mailspine.MsgID{"a-s", "b-s", "c-s"} {
		d.SetLimit(d.Used() + 10<<20)
		if err := s.Put(ctx, newMessage(id, "x: ann"), mailspine.StringContent("x")); mailspine.Status(err).Code != 452 {
			t.Fatalf("Put with 10 MiB free: %v", err)
		}
		d.SetLimit(0)
		mustPut(t, s, newMessage(id, "x: ann"))
	}
}
