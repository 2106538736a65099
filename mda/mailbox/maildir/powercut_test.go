package maildir

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/mda/mailbox"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// seeds returns how many ways of losing what was not synced are tried.
func seeds(t *testing.T) uint64 {
	switch {
	case os.Getenv("MAILSPINE_SOAK") != "":
		return 60
	case os.Getenv("MAILSPINE_CI") != "":
		return 12
	}
	return 3
}

// runScript does the steps until one fails, and returns which, with the state before it.
func runScript(t *testing.T, a mailbox.Account, steps []step) (failed int, before contents, snaps map[string]mailbox.Snapshot) {
	before = contents{"INBOX": {}}
	for i, s := range steps {
		if err := s.do(t.Context(), a); err != nil {
			return i, before, snaps
		}
		s.then(before)
		var got contents
		if got, snaps = look(t, a); got == nil {
			return i + 1, before, nil // cut while looking
		}
		if got.String() != before.String() {
			t.Fatalf("after %s: %v, want %v", s.name, got, before)
		}
	}
	return len(steps), before, snaps
}

// The power is cut at every operation, and of what was not synced this or that is lost. What was
// answered for is there afterwards, with the same UIDs; the step that was interrupted
// happened or did not; a repeated delivery arrives once.
func TestPowerCut(t *testing.T) {
	steps := script()
	dry := &durabletest.Disk{}
	s, a, err := openAccount(t, dry)
	if err != nil {
		t.Fatal(err)
	}
	if n, _, _ := runScript(t, a, steps); n != len(steps) {
		t.Fatalf("step %s fails without a cut", steps[n].name)
	}
	s.Close()
	ops := dry.Ops()
	t.Logf("%d operations, %d ways to lose data", ops, seeds(t))
	for n := 1; n <= ops; n++ {
		for seed := range seeds(t) {
			d := &durabletest.Disk{}
			d.CutAt(n)
			failed, before := 0, contents{"INBOX": {}}
			var snaps map[string]mailbox.Snapshot
			if s, a, err := openAccount(t, d); err == nil {
				failed, before, snaps = runScript(t, a, steps)
				s.Close()
			}
			if seed > 1 { // 0 and 1 mean nothing and everything; the others are other ones each time
				seed += uint64(2 * n)
			}
			after := d.Crash(seed)
			if seed%3 == 2 { // and again, while it is being repaired
				after.CutAt(1 + int(seed+uint64(n))%9)
				if s, _, err := openAccount(t, after); err == nil {
					s.Close()
				}
				after = after.Crash(seed + 1)
			}
			checkRecovered(t, after, steps, failed, before, snaps)
			if t.Failed() {
				t.Fatalf("power cut at operation %d, seed %d", n, seed)
			}
		}
	}
}

func checkRecovered(t *testing.T, fsys durable.FS, steps []step, failed int, before contents, snaps map[string]mailbox.Snapshot) {
	t.Helper()
	s, a, err := openAccount(t, fsys)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer s.Close()
	got, is := look(t, a)
	keepsUIDs(t, snaps, is)
	if failed == len(steps) {
		if got.String() != before.String() {
			t.Errorf("at the end: %v, want %v", got, before)
		}
		return
	}
	st := steps[failed]
	if !st.oneOf(got, before) {
		t.Errorf("interrupted %s: %v, before it was %v", st.name, got, before)
		return
	}
	want := before.clone()
	st.then(want)
	if err := st.do(t.Context(), a); err != nil && !repeated(err) {
		t.Errorf("%s again: %v", st.name, err)
	}
	if st.again {
		if got, _ := look(t, a); got.String() != want.String() {
			t.Errorf("after %s again: %v, want %v", st.name, got, want)
		}
	}
}

// Each call to the file system fails once, in several ways. The step fails or does not; nothing is half done,
// and when it is repeated everything goes on.
func TestFaults(t *testing.T) {
	steps := script()
	dry := &durabletest.Faults{FS: &durabletest.Disk{}}
	s, a, err := openAccount(t, dry)
	if err != nil {
		t.Fatal(err)
	}
	runScript(t, a, steps)
	s.Close()
	calls := dry.Calls("")
	every := 5
	if os.Getenv("MAILSPINE_CI") != "" || os.Getenv("MAILSPINE_SOAK") != "" {
		every = 1
	}
	faults := map[string]error{
		"EIO":    syscall.EIO,
		"ENOSPC": syscall.ENOSPC,
		"short":  &durabletest.ShortWrite{N: 5, Err: syscall.ENOSPC},
	}
	for name, fault := range faults {
		for n := 1 + len(name)%every; n <= calls; n += every {
			disk := &durabletest.Disk{}
			f := &durabletest.Faults{FS: disk}
			f.Set(durabletest.Nth("", n, fault))
			s, a, err := openAccount(t, f)
			if err != nil {
				if s, a, err = openAccount(t, f); err != nil {
					t.Fatalf("%s at call %d: open again: %v", name, n, err)
				}
			}
			model := contents{"INBOX": {}}
			var snaps map[string]mailbox.Snapshot
			for _, st := range steps {
				err := st.do(t.Context(), a)
				if err != nil {
					got, is := look(t, a)
					keepsUIDs(t, snaps, is)
					if !st.oneOf(got, model) {
						t.Errorf("failed %s (%v): %v, before it was %v", st.name, err, got, model)
					}
					after := model.clone()
					st.then(after)
					if got.String() != after.String() || st.again {
						if err := st.do(t.Context(), a); err != nil {
							t.Errorf("%s again: %v", st.name, err)
						}
					}
				}
				st.then(model)
				var got contents
				if got, snaps = look(t, a); got.String() != model.String() {
					t.Errorf("after %s (%v): %v, want %v", st.name, err, got, model)
				}
				if t.Failed() {
					t.Fatalf("%s at call %d", name, n)
				}
			}
			// Neither a cut now, with nothing that is not synced, nor a clean end changes anything.
			checkRecovered(t, disk.Crash(0), steps, len(steps), model, snaps)
			s.Close()
			checkRecovered(t, f, steps, len(steps), model, snaps)
			if t.Failed() {
				t.Fatalf("%s at call %d, opened again", name, n)
			}
		}
	}
}

// While a delivery has its file in new and no entry yet, another change fails, and the account is loaded
// again. The file must not be taken for somebody else's.
func TestReloadDuringDelivery(t *testing.T) {
	f := &durabletest.Faults{FS: &durabletest.Disk{}}
	s, a, err := openAccount(t, f)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := a.Deliver(t.Context(), mailspine.StringContent(scriptText(1)), mailbox.DeliverOptions{}); err != nil {
		t.Fatal(err)
	}
	m, err := a.Open(t.Context(), "INBOX")
	if err != nil {
		t.Fatal(err)
	}
	var once, failing atomic.Bool
	f.Set(func(c durabletest.Call) error {
		switch {
		case c.Op == durabletest.SyncDir && strings.HasSuffix(c.Name, "new") && once.CompareAndSwap(false, true):
			failing.Store(true)
			if _, err := m.SetFlags(t.Context(), []mailbox.UID{1}, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Seen}}); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("the other change: %v", err)
			}
			failing.Store(false)
			if snap, err := m.Snapshot(t.Context()); err != nil || len(snap.Messages) != 1 || len(snap.Messages[0].Flags) != 0 {
				t.Errorf("after the other change failed: %+v, %v", snap, err)
			}
		case failing.Load() && c.Op == durabletest.Write:
			return syscall.ENOSPC
		}
		return nil
	})
	if _, err := a.Deliver(t.Context(), mailspine.StringContent(scriptText(2)), mailbox.DeliverOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, _ := look(t, a); !once.Load() || got.String() != (contents{"INBOX": {1: "", 2: ""}}).String() {
		t.Errorf("%v", got)
	}
}
