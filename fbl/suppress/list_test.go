package suppress

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func addr(s string) mailspine.Address {
	a, err := mailspine.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return a
}

func key(tenant, stream, a string) Key { return Key{tenant, stream, addr(a)} }

// lists runs a test with each driver; reopen makes a File read itself anew.
func lists(t *testing.T, max int, f func(t *testing.T, l List, clock *time.Time, reopen func() List)) {
	t.Run("memory", func(t *testing.T) {
		clock := t0
		m := NewMemory(func() time.Time { return clock })
		m.max = max
		f(t, m, &clock, func() List { return m })
	})
	t.Run("file", func(t *testing.T) {
		clock := t0
		dir := filepath.Join(t.TempDir(), "a", "list")
		open := func() *File {
			l, err := Open(dir, &Options{MaxEntries: max, Now: func() time.Time { return clock }, compact: 4096})
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		l := open()
		t.Cleanup(func() { l.Close() })
		f(t, l, &clock, func() List {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open()
			return l
		})
	})
}

func TestListScopes(t *testing.T) {
	lists(t, 100, func(t *testing.T, l List, clock *time.Time, reopen func() List) {
		ctx := t.Context()
		for _, k := range []Key{
			key("shop", "news", "ann@example.org"), key("shop", "", "bob@example.org"), key("", "", "cid@example.org"), key("", "news", "dan@example.org"),
		} {
			if err := l.Add(ctx, Entry{Key: k, Reason: Complaint, Evidence: "x"}); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			for _, tt := range []struct {
				k    Key
				want bool
			}{
				{key("shop", "news", "ann@example.org"), true},
				{key("shop", "news", "ANN@Example.ORG"), true},
				{key("shop", "bills", "ann@example.org"), false},
				{key("shop", "", "ann@example.org"), false},
				{key("bank", "news", "ann@example.org"), false},
				{key("shop", "news", "ann@example.com"), false},
				{key("shop", "bills", "bob@example.org"), true},
				{key("bank", "bills", "bob@example.org"), false},
				{key("bank", "bills", "cid@example.org"), true},
				{key("", "", "cid@example.org"), true},
				{key("", "news", "dan@example.org"), true},
				{key("", "bills", "dan@example.org"), false},
				{key("shop", "news", "dan@example.org"), false},
			} {
				e, err := l.Check(ctx, tt.k)
				if err != nil || (e != nil) != tt.want {
					t.Errorf("Check(%v) = %v, %v", tt.k, e, err)
				}
				if e != nil && (e.Reason != Complaint || e.Evidence != "x" || !e.Time.Equal(t0)) {
					t.Errorf("%+v", e)
				}
			}
			l = reopen()
		}
	})
}

func TestListAddRemove(t *testing.T) {
	lists(t, 100, func(t *testing.T, l List, clock *time.Time, reopen func() List) {
		ctx := t.Context()
		k := key("shop", "news", "Ann@example.org")
		add := func(reason Reason, expires time.Time) {
			t.Helper()
			if err := l.Add(ctx, Entry{Key: k, Reason: reason, Expires: expires}); err != nil {
				t.Fatal(err)
			}
		}
		reason := func() Reason {
			t.Helper()
			e, err := l.Check(ctx, k)
			if err != nil {
				t.Fatal(err)
			}
			if e == nil {
				return ""
			}
			return e.Reason
		}
		add("one", t0.Add(time.Hour))
		add("two", t0.Add(time.Minute)) // shorter: the first stays
		if r := reason(); r != "one" {
			t.Errorf("the entry is of %q", r)
		}
		add("three", t0.Add(2*time.Hour))
		if r := reason(); r != "three" {
			t.Errorf("the entry is of %q", r)
		}
		*clock = t0.Add(2 * time.Hour)
		if r := reason(); r != "" {
			t.Errorf("an entry of %q after its end", r)
		}
		add("four", time.Time{})
		add("five", t0.Add(1000*time.Hour))
		l = reopen()
		if r := reason(); r != "four" {
			t.Errorf("the entry is of %q", r)
		}
		if err := l.Remove(ctx, key("shop", "", "ann@example.org")); err != nil {
			t.Error(err)
		}
		if r := reason(); r != "four" {
			t.Errorf("removing a wider key removed it: %q", r)
		}
		for range 2 {
			if err := l.Remove(ctx, key("shop", "news", "ANN@example.org")); err != nil {
				t.Error(err)
			}
		}
		l = reopen()
		if r := reason(); r != "" {
			t.Errorf("an entry of %q that was removed", r)
		}
		add("past", t0) // it has ended before it begins
		if r := reason(); r != "" {
			t.Errorf("an entry of %q", r)
		}
	})
}

func TestListBounds(t *testing.T) {
	lists(t, 3, func(t *testing.T, l List, clock *time.Time, reopen func() List) {
		ctx := t.Context()
		for _, e := range []Entry{
			{Key: Key{"t", "s", mailspine.Address{}}, Reason: Manual},
			{Key: Key{"t", "s", mailspine.Address{Local: "a b", Domain: "example.org\r\n"}}, Reason: Manual},
			{Key: Key{strings.Repeat("t", 256), "s", addr("a@example.org")}, Reason: Manual},
			{Key: Key{"t", "\xff", addr("a@example.org")}, Reason: Manual},
			{Key: key("t", "s", "a@example.org")},
			{Key: key("t", "s", "a@example.org"), Reason: Reason(strings.Repeat("r", 256))},
		} {
			if err := l.Add(ctx, e); err == nil {
				t.Errorf("%+v was added", e)
			}
		}
		for i := range 3 {
			if err := l.Add(ctx, Entry{Key: key("t", "s", fmt.Sprintf("a%d@example.org", i)), Reason: Manual, Expires: t0.Add(time.Hour), Evidence: "\x00" + strings.Repeat("ü", 1000)}); err != nil {
				t.Fatal(err)
			}
		}
		if e, err := l.Check(ctx, key("t", "s", "a0@example.org")); err != nil || len(e.Evidence) > MaxEvidence || strings.Contains(e.Evidence, "\x00") {
			t.Errorf("%+v, %v", e, err)
		}
		if err := l.Add(ctx, Entry{Key: key("t", "s", "b@example.org"), Reason: Manual}); !errors.Is(err, ErrFull) {
			t.Errorf("a full list: %v", err)
		}
		*clock = t0.Add(time.Hour) // the entries have ended, and make room
		if err := l.Add(ctx, Entry{Key: key("t", "s", "b@example.org"), Reason: Manual}); err != nil {
			t.Error(err)
		}
		n := 0
		for e, err := range l.All(ctx) {
			if err != nil || e.Address.Local != "b" {
				t.Errorf("%+v, %v", e, err)
			}
			n++
		}
		if n != 1 {
			t.Errorf("%d entries", n)
		}
		done, cancel := context.WithCancel(ctx)
		cancel()
		for _, err := range l.All(done) {
			if err == nil {
				t.Error("All goes on after its context ended")
			}
		}
	})
}

// A File is what a map would be, over restarts and compactions.
func TestFileModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := &durabletest.Disk{}
		clock := t0
		open := func() *File {
			l, err := Open("list", &Options{Now: func() time.Time { return clock }, fs: disk, compact: 2048})
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		l := open()
		defer func() { l.Close() }()
		model := map[Key]Entry{}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			k := Key{rapid.SampledFrom([]string{"", "t"}).Draw(t, "tenant"), rapid.SampledFrom([]string{"", "s"}).Draw(t, "stream"),
				mailspine.Address{Local: rapid.SampledFrom([]string{"a", "b", "ü"}).Draw(t, "local"), Domain: "example.org"}}
			switch rapid.IntRange(0, 5).Draw(t, "op") {
			case 0, 1, 2:
				e := Entry{Key: k, Reason: Manual, Evidence: strings.Repeat("e", rapid.IntRange(0, 200).Draw(t, "evidence")), Time: clock}
				if rapid.Bool().Draw(t, "ends") {
					e.Expires = clock.Add(time.Duration(rapid.IntRange(-1, 3).Draw(t, "hours")) * time.Hour)
				}
				if err := l.Add(context.Background(), e); err != nil {
					t.Fatal(err)
				}
				if old, ok := model[k]; e.live(clock) && (!ok || !old.live(clock) || e.longer(&old)) {
					model[k] = e
				}
			case 3:
				if err := l.Remove(context.Background(), k); err != nil {
					t.Fatal(err)
				}
				delete(model, k)
			case 4:
				clock = clock.Add(time.Hour)
			case 5:
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				l = open()
			}
			got := map[Key]Entry{}
			for e, err := range l.All(context.Background()) {
				if err != nil {
					t.Fatal(err)
				}
				got[e.Key] = e
			}
			maps.DeleteFunc(model, func(_ Key, e Entry) bool { return !e.live(clock) })
			if !maps.Equal(got, model) {
				t.Fatalf("the list has %v, not %v", got, model)
			}
		}
	})
}

// Whenever the power goes, what was added is there afterwards, and what was removed is not.
func TestFilePowerCut(t *testing.T) {
	work := func(fsys durable.FS) (added, removed []string) {
		l, err := Open("list", &Options{fs: fsys, compact: 600})
		if err != nil {
			return nil, nil
		}
		defer l.Close()
		for i := range 12 {
			a := fmt.Sprintf("a%d@example.org", i)
			if l.Add(context.Background(), Entry{Key: key("t", "s", a), Reason: Complaint, Evidence: strings.Repeat("e", 40)}) != nil {
				return added, removed
			}
			added = append(added, a)
			if i%3 == 2 {
				if l.Remove(context.Background(), key("t", "s", a)) != nil {
					return added[:len(added)-1], removed // it may be either
				}
				added = added[:len(added)-1]
				removed = append(removed, a)
			}
		}
		return added, removed
	}
	whole := &durabletest.Disk{}
	if added, _ := work(whole); len(added) != 8 {
		t.Fatalf("%d were added", len(added))
	}
	for n := 1; n <= whole.Ops(); n++ {
		disk := &durabletest.Disk{}
		disk.CutAt(n)
		added, removed := work(disk)
		for seed := range uint64(6) {
			l, err := Open("list", &Options{fs: disk.Crash(seed)})
			if err != nil {
				t.Fatalf("cut at %d, seed %d: %v", n, seed, err)
			}
			var got []string
			for e, err := range l.All(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e.Address.String())
			}
			l.Close()
			for _, a := range added {
				if !slices.Contains(got, a) {
					t.Errorf("cut at %d, seed %d: %s is lost", n, seed, a)
				}
			}
			for _, a := range removed {
				if slices.Contains(got, a) {
					t.Errorf("cut at %d, seed %d: %s is back", n, seed, a)
				}
			}
			if len(got) > len(added)+1 {
				t.Errorf("cut at %d, seed %d: %v, of which %v were added", n, seed, got, added)
			}
		}
	}
}

// Every failing call is an error, and nothing that was added before is lost.
func TestFileFaults(t *testing.T) {
	broken := errors.New("broken")
	for n := 1; ; n++ {
		disk := &durabletest.Disk{}
		faults := &durabletest.Faults{FS: disk}
		faults.Set(durabletest.Nth("", n, broken))
		var added []string
		failed := false
		l, err := Open("list", &Options{fs: faults, compact: 600})
		if err != nil {
			failed = true
		} else {
			for i := range 12 {
				a := fmt.Sprintf("a%d@example.org", i)
				if err := l.Add(t.Context(), Entry{Key: key("t", "s", a), Reason: Complaint, Evidence: strings.Repeat("e", 40)}); err != nil {
					failed = true
					continue
				}
				added = append(added, a)
				if e, err := l.Check(t.Context(), key("t", "s", a)); e == nil || err != nil {
					t.Errorf("fault %d: %s was added and is not there", n, a)
				}
			}
			l.Close()
		}
		if faults.Calls("") < n {
			if failed {
				t.Fatal("it fails without a fault")
			}
			break
		}
		l, err = Open("list", &Options{fs: disk})
		if err != nil {
			t.Fatalf("fault %d: %v", n, err)
		}
		for _, a := range added {
			if e, err := l.Check(t.Context(), key("t", "s", a)); e == nil || err != nil {
				t.Errorf("fault %d: %s is lost", n, a)
			}
		}
		l.Close()
	}
}

func TestFileRefuses(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, nil); err == nil {
		t.Error("two have it open")
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if err := l.Add(t.Context(), Entry{Key: key("", "", "a@example.org"), Reason: Manual}); err == nil {
		t.Error("Add after Close")
	}
	for name, meta := range map[string]string{
		"no JSON":        "{",
		"no address":     `{"reason":"manual"}`,
		"not normal":     `{"local":"A","domain":"example.org","reason":"manual"}`,
		"line in domain": `{"local":"a","domain":"example.org\r\n","reason":"manual"}`,
		"too long":       `{"local":"a","domain":"example.org","reason":"manual","evidence":"` + strings.Repeat("x", maxRecord) + `"}`,
	} {
		disk := &durabletest.Disk{}
		log, err := durable.CreateLog(disk, durable.JournalName(logPrefix, 1), durable.LogOptions{Magic: logMagic, Version: logVersion}, durable.Record{Meta: []byte(meta)})
		if err != nil {
			t.Fatal(err)
		}
		log.Close()
		if _, err := Open(".", &Options{fs: disk}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	disk := &durabletest.Disk{}
	log, err := durable.CreateLog(disk, durable.JournalName(logPrefix, 1), durable.LogOptions{Magic: logMagic, Version: logVersion + 1})
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	if _, err := Open(".", &Options{fs: disk}); err == nil {
		t.Error("a newer format is taken")
	}
}
