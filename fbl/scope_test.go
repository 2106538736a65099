package fbl

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

func scope(i int) (ScopeID, Scope) {
	return ScopeID{byte(i)}, Scope{fmt.Sprint("t", i), "s", addr(fmt.Sprintf("a%d@example.org", i))}
}

func TestScopes(t *testing.T) {
	dir := t.TempDir()
	file, err := OpenScopes(dir, &ScopesOptions{Max: 3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenScopes(dir, nil); err == nil {
		t.Error("two have it open")
	}
	for name, s := range map[string]Scopes{"memory": &MemoryScopes{Max: 3}, "file": file} {
		for range 2 {
			for i := range 3 {
				id, want := scope(i)
				if err := s.Remember(t.Context(), id, want); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if got, err := s.Find(t.Context(), id); err != nil || got != want {
					t.Errorf("%s: %v, %v", name, got, err)
				}
			}
		}
		id, _ := scope(1)
		_, other := scope(2)
		if err := s.Remember(t.Context(), id, other); !errors.Is(err, ErrScopeTaken) {
			t.Errorf("%s: an ID for two scopes: %v", name, err)
		}
		id, more := scope(4)
		if err := s.Remember(t.Context(), id, more); !errors.Is(err, ErrScopesFull) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Find(t.Context(), id); !errors.Is(err, ErrNoScope) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := errors.Join(file.Close(), file.Close()); err != nil {
		t.Error(err)
	}
	again, err := OpenScopes(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for i := range 3 {
		id, want := scope(i)
		if got, err := again.Find(t.Context(), id); err != nil || got != want {
			t.Errorf("after a restart: %v, %v", got, err)
		}
	}
	id, more := scope(5)
	if err := file.Remember(t.Context(), id, more); err == nil {
		t.Error("Remember after Close")
	}
}

// What was remembered is there whenever the power goes.
func TestScopesPowerCut(t *testing.T) {
	work := func(fsys durable.FS) (n int) {
		f, err := OpenScopes("scopes", &ScopesOptions{fs: fsys})
		if err != nil {
			return 0
		}
		defer f.Close()
		for ; n < 5; n++ {
			if id, s := scope(n); f.Remember(t.Context(), id, s) != nil {
				break
			}
		}
		return n
	}
	whole := &durabletest.Disk{}
	if n := work(whole); n != 5 {
		t.Fatal(n)
	}
	for cut := 1; cut <= whole.Ops(); cut++ {
		disk := &durabletest.Disk{}
		disk.CutAt(cut)
		n := work(disk)
		for seed := range uint64(6) {
			f, err := OpenScopes("scopes", &ScopesOptions{fs: disk.Crash(seed)})
			if err != nil {
				t.Fatalf("cut at %d, seed %d: %v", cut, seed, err)
			}
			for i := range n {
				id, want := scope(i)
				if got, err := f.Find(t.Context(), id); err != nil || got != want {
					t.Errorf("cut at %d, seed %d: scope %d: %v, %v", cut, seed, i, got, err)
				}
			}
			f.Close()
		}
	}
}

func TestScopesDamaged(t *testing.T) {
	for name, row := range map[string]string{"no JSON": "{", "no ID": `{"id":"00"}`, "not hex": `{"id":"zzzzzzzzzz"}`} {
		disk := &durabletest.Disk{}
		l, err := durable.CreateLog(disk, scopesName, durable.LogOptions{Magic: scopesMagic, Version: scopesVersion}, durable.Record{Meta: []byte(row)})
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if _, err := OpenScopes(".", &ScopesOptions{fs: disk}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// A call to the disk that fails is an error, nothing that failed is taken for known, and what was remembered stays.
func TestScopesFaults(t *testing.T) {
	for n := 1; ; n++ {
		disk := &durabletest.Disk{}
		faults := &durabletest.Faults{FS: disk}
		faults.Set(durabletest.Nth("", n, syscall.EIO))
		known := map[int]bool{}
		f, err := OpenScopes("scopes", &ScopesOptions{fs: faults})
		if err == nil {
			for i := range 5 {
				id, s := scope(i)
				err := f.Remember(t.Context(), id, s)
				known[i] = err == nil
				if _, ferr := f.Find(t.Context(), id); (ferr == nil) != (err == nil) {
					t.Errorf("fault %d: Remember: %v, Find: %v", n, err, ferr)
				}
			}
			f.Close()
		}
		if faults.Calls("") < n {
			if len(known) != 5 || !known[4] {
				t.Fatal("it fails without a fault")
			}
			return
		}
		f, err = OpenScopes("scopes", &ScopesOptions{fs: disk})
		if err != nil {
			t.Fatalf("fault %d: %v", n, err)
		}
		for i := range 5 {
			id, want := scope(i)
			if got, err := f.Find(t.Context(), id); known[i] && (err != nil || got != want) {
				t.Errorf("fault %d: scope %d is lost: %v", n, i, err)
			}
		}
		f.Close()
	}
}

// From all sides: a name stands for one scope only.
func TestScopesConcurrent(t *testing.T) {
	file, err := OpenScopes(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, s := range map[string]Scopes{"memory": &MemoryScopes{}, "file": file} {
		var wg sync.WaitGroup
		var taken atomic.Int32
		for i := range 20 {
			wg.Go(func() {
				_, sc := scope(i)
				if err := s.Remember(t.Context(), ScopeID{}, sc); err == nil {
					if got, err := s.Find(t.Context(), ScopeID{}); err != nil || got != sc {
						t.Errorf("%s: %v, %v", name, got, err)
					}
					taken.Add(1)
				} else if !errors.Is(err, ErrScopeTaken) {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		wg.Wait()
		if taken.Load() != 1 {
			t.Errorf("%s: %d scopes have one name", name, taken.Load())
		}
	}
}
