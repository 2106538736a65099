package suppress

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

// The zero Memory is a list.
func TestMemoryZero(t *testing.T) {
	var m Memory
	k := key("t", "s", "ann@example.org")
	if e, err := m.Check(t.Context(), k); e != nil || err != nil {
		t.Errorf("%v, %v", e, err)
	}
	if err := m.Remove(t.Context(), k); err != nil {
		t.Error(err)
	}
	if err := m.Add(t.Context(), Entry{Key: k, Reason: Manual}); err != nil {
		t.Error(err)
	}
	if e, err := m.Check(t.Context(), k); e == nil || err != nil || time.Since(e.Time) > time.Minute {
		t.Errorf("%v, %v", e, err)
	}
}

// A List that fails holds mail back, even if its error calls itself permanent.
func TestFilterListRefuses(t *testing.T) {
	n := &next{}
	f := &Filter{Next: n, List: broken{check: mailspine.Errorf(550, "5.1.1", "secret")}}
	err := f.Deliver(t.Context(), envelope("ann bob"), nil)
	s := mailspine.Status(err)
	if s == nil || !s.Temporary() || s.Message == "secret" || n.got != nil {
		t.Errorf("%v, %v", s, n.got)
	}
}

// A full list looks for entries that have ended when one has, and not at each Add.
func TestMemoryFull(t *testing.T) {
	now := t0
	m := NewMemory(func() time.Time { return now })
	m.max = 3
	add := func(local string, ends time.Duration) error {
		e := Entry{Key: key("t", "s", local+"@example.org"), Reason: Manual}
		if ends > 0 {
			e.Expires = t0.Add(ends)
		}
		return m.Add(t.Context(), e)
	}
	for i, ends := range []time.Duration{3 * time.Hour, time.Hour, 0} {
		if err := add(fmt.Sprint("a", i), ends); err != nil {
			t.Fatal(err)
		}
	}
	if err := add("b", 0); !errors.Is(err, ErrFull) {
		t.Errorf("full: %v", err)
	}
	now = t0.Add(time.Hour) // a1 is over
	if err := add("b", 2*time.Hour); err != nil {
		t.Error(err)
	}
	if err := add("c", 0); !errors.Is(err, ErrFull) {
		t.Errorf("full again: %v", err)
	}
	now = t0.Add(2 * time.Hour) // b, which came later, is over before a0
	if err := add("c", 0); err != nil {
		t.Error(err)
	}
	now = t0.Add(3 * time.Hour)
	if err := add("d", 0); err != nil {
		t.Error(err)
	}
	if err := add("e", 0); !errors.Is(err, ErrFull) || !m.next.IsZero() {
		t.Errorf("full of entries without an end: %v, next %v", err, m.next)
	}
}

// A full list that is opened again knows when its entries end.
func TestFileFullAfterOpen(t *testing.T) {
	now, dir := t0, t.TempDir()
	open := func() *File {
		f, err := Open(dir, &Options{MaxEntries: 2, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := open()
	for i := range 2 {
		if err := f.Add(t.Context(), Entry{Key: key("t", "s", fmt.Sprintf("a%d@example.org", i)), Reason: Manual, Expires: t0.Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	f = open()
	defer f.Close()
	now = t0.Add(time.Hour)
	if err := f.Add(t.Context(), Entry{Key: key("t", "s", "b@example.org"), Reason: Manual}); err != nil {
		t.Error(err)
	}
}

// Changes from all sides, compactions among them: what was added and not removed is there.
func TestFileConcurrent(t *testing.T) {
	disk := &durabletest.Disk{}
	f, err := Open("list", &Options{fs: disk, compact: 4096})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 60 {
				k := key("t", "s", fmt.Sprintf("a%d-%d@example.org", w, i))
				if err := f.Add(t.Context(), Entry{Key: k, Reason: Complaint}); err != nil {
					t.Error(err)
				}
				if e, err := f.Check(t.Context(), k); e == nil || err != nil {
					t.Errorf("%v, %v", e, err)
				}
				if i%2 == 0 {
					if err := f.Remove(t.Context(), k); err != nil {
						t.Error(err)
					}
				}
				for _, err := range f.All(t.Context()) {
					if err != nil {
						t.Error(err)
					}
					break
				}
			}
		})
	}
	wg.Wait()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	f, err = Open("list", &Options{fs: disk})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for range f.All(t.Context()) {
		n++
	}
	if n != 4*30 {
		t.Errorf("%d entries", n)
	}
}

// After a failed sync nothing is added any more, and what was told to be there is there when the power goes.
func TestFileSyncFails(t *testing.T) {
	disk := &durabletest.Disk{}
	faults := &durabletest.Faults{FS: disk}
	f, err := Open("list", &Options{fs: faults})
	if err != nil {
		t.Fatal(err)
	}
	a, b := key("t", "s", "a@example.org"), key("t", "s", "b@example.org")
	if err := f.Add(t.Context(), Entry{Key: a, Reason: Manual}); err != nil {
		t.Fatal(err)
	}
	faults.Set(durabletest.Nth(durabletest.Sync, 1, syscall.EIO))
	for range 2 {
		if err := f.Add(t.Context(), Entry{Key: b, Reason: Manual}); !errors.Is(err, durable.ErrFailed) {
			t.Errorf("Add after a failed sync: %v", err)
		}
	}
	if e, err := f.Check(t.Context(), b); e != nil || err != nil {
		t.Errorf("it is there, and was said not to be: %v, %v", e, err)
	}
	if e, err := f.Check(t.Context(), a); e == nil || err != nil {
		t.Errorf("%v, %v", e, err)
	}
	f.Close()
	for seed := range uint64(6) {
		f, err := Open("list", &Options{fs: disk.Crash(seed)})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := f.Check(t.Context(), a); e == nil || err != nil {
			t.Errorf("seed %d: %v, %v", seed, e, err)
		}
		f.Close()
	}
}

// A full disk is said to be one, and harms nothing.
func TestFileDiskFull(t *testing.T) {
	disk := &durabletest.Disk{}
	f, err := Open("list", &Options{fs: disk})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	disk.SetLimit(disk.Used() + 40)
	k := key("t", "s", "a@example.org")
	err = f.Add(t.Context(), Entry{Key: k, Reason: Manual})
	if s := mailspine.Status(err); s == nil || s.Code != 452 {
		t.Errorf("%v", err)
	}
	disk.SetLimit(0)
	if err := f.Add(t.Context(), Entry{Key: k, Reason: Manual}); err != nil {
		t.Error(err)
	}
	if e, err := f.Check(t.Context(), k); e == nil || err != nil {
		t.Errorf("%v, %v", e, err)
	}
}
