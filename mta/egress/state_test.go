package egress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

func sorted(recs []Record) []Record {
	slices.SortFunc(recs, func(a, b Record) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	return recs
}

func rec(kind, name string, day Day, number int, sent, held int64) Record {
	return Record{Key: Key{kind, name}, Day: day, Number: number, Sent: sent, Held: held}
}

// testState holds a driver to the contract of State. open returns a state that has what an earlier one of the same test
// saved, once that is closed.
func testState(t *testing.T, lasting bool, open func(t *testing.T) (State, func())) {
	ctx := context.Background()
	s, end := open(t)
	must := func(rule string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", rule, err)
		}
	}
	if err := s.Save(ctx, rec(KindSource, "a", 1, 1, 0, 1)); err == nil {
		t.Error("Save is refused where nobody has claimed the State")
	}
	recs, err := s.Claim(ctx)
	must("a new State can be claimed", err)
	if len(recs) != 0 {
		t.Errorf("a new State has no records, not %v", recs)
	}
	if _, err := s.Claim(ctx); !errors.Is(err, ErrInUse) {
		t.Errorf("a second Claim is ErrInUse, not %v", err)
	}
	want := []Record{rec(KindDomain, "a", 20000, 1, 3, 7), rec(KindSource, "a", 20001, 2, 5, 5), rec(KindSource, "b", 20002, 9, 0, 1<<53)}
	must("records can be saved", s.Save(ctx, want...))
	must("no records can be saved", s.Save(ctx))
	want[1] = rec(KindSource, "a", 20002, 3, 1, 2)
	must("a record can be replaced", s.Save(ctx, want[1]))
	must("a claim can be ended", s.Release())
	if err := s.Release(); err == nil {
		t.Error("Release without a claim is an error")
	}
	recs, err = s.Claim(ctx)
	must("a State can be claimed again", err)
	if !slices.Equal(sorted(recs), want) {
		t.Errorf("the last record of each key is kept, its fields as they were:\n%v, want\n%v", recs, want)
	}
	must("a claim can be ended", s.Release())
	end()
	if !lasting {
		return
	}
	s, end = open(t)
	defer end()
	recs, err = s.Claim(ctx)
	must("a State can be opened again", err)
	if !slices.Equal(sorted(recs), want) {
		t.Errorf("records survive:\n%v, want\n%v", recs, want)
	}
}

func TestMemory(t *testing.T) {
	testState(t, false, func(*testing.T) (State, func()) { return NewMemory(), func() {} })
}

func TestFile(t *testing.T) {
	for name, fsys := range map[string]durable.FS{"disk": nil, "model": new(durabletest.Disk)} {
		t.Run(name, func(t *testing.T) {
			dir := "state"
			if fsys == nil {
				dir = filepath.Join(t.TempDir(), "a", "state")
			}
			testState(t, true, func(t *testing.T) (State, func()) {
				f, err := Open(dir, &Options{fs: fsys})
				if err != nil {
					t.Fatal(err)
				}
				return f, func() {
					if err := f.Close(); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// Modes, the lock, and what is said of a state that is damaged, of another program, or newer.
func TestFileOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	f, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", fi.Mode(), err)
	}
	name := filepath.Join(dir, durable.JournalName(logPrefix, 1))
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the log has mode %v, %v", fi, err)
	}
	var locked *durable.LockedError
	if _, err := Open(dir, nil); !errors.As(err, &locked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("opened twice: %v", err)
	}
	f.Claim(t.Context())
	for i := range int64(3) {
		if err := f.Save(t.Context(), rec(KindSource, "a", 20000, 1, i, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	if err := f.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if err := f.Save(t.Context(), rec(KindSource, "a", 20000, 1, 1, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Save after Close: %v", err)
	}
	if _, err := f.Claim(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Claim after Close: %v", err)
	}

	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for what, b := range map[string][]byte{
		"empty":         {},
		"of another":    append([]byte("MSother!"), whole[8:]...),
		"damaged early": append(append(slices.Clone(whole[:60]), whole[60]^1), whole[61:]...),
	} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var ce *durable.CorruptError
		if f, err := Open(dir, nil); !errors.As(err, &ce) || !strings.Contains(err.Error(), dir) {
			t.Errorf("a log that is %s: %v", what, err)
			if err == nil {
				f.Close()
			}
		}
	}
	// A torn end is what a crash leaves.
	if err := os.WriteFile(name, whole[:len(whole)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	f, err = Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	recs, _ := f.Claim(t.Context())
	if len(recs) != 1 || recs[0].Held != 2 {
		t.Errorf("after a torn end: %v", recs)
	}
}

// Records that cannot be are refused, in both directions.
func TestFileRefuses(t *testing.T) {
	d := new(durabletest.Disk)
	f, err := Open("state", &Options{fs: d})
	if err != nil {
		t.Fatal(err)
	}
	f.Claim(t.Context())
	for _, r := range []Record{
		{}, rec("person", "a", 1, 1, 0, 0), rec(KindSource, "", 1, 1, 0, 0), rec(KindSource, "\xff", 1, 1, 0, 0), rec(KindSource, strings.Repeat("a", 1001), 1, 1, 0, 0),
		rec(KindSource, strings.Repeat("<", 400), 1, 1, 0, 0), rec(KindSource, "a", -1, 1, 0, 0), rec(KindSource, "a", lastDay+1, 1, 0, 0),
		rec(KindSource, "a", 1, 0, 0, 0), rec(KindSource, "a", 1, 1, -1, 0), rec(KindSource, "a", 1, 1, 2, 1),
	} {
		if err := f.Save(t.Context(), rec(KindSource, "good", 1, 1, 0, 1), r); err == nil {
			t.Errorf("%+v was saved", r)
		}
	}
	f.Close()
	f, err = Open("state", &Options{fs: d})
	if err != nil {
		t.Fatal(err)
	}
	if recs, _ := f.Claim(t.Context()); len(recs) != 0 {
		t.Errorf("%v was kept of what was refused", recs)
	}
	f.Close()

	for _, meta := range []string{"", "x", "[]", `{"kind":"source","name":"a","day":"2026-02-30","number":1}`, `{"kind":"source","name":"a","day":"2026-02-03","number":0}`, `{"pad":"` + strings.Repeat("x", maxRecord) + `"}`} {
		d := new(durabletest.Disk)
		durable.MkdirAll(d, "state", 0o700)
		l, err := durable.CreateLog(d, filepath.Join("state", durable.JournalName(logPrefix, 1)), durable.LogOptions{Magic: logMagic, Version: logVersion}, durable.Record{Meta: []byte(meta)})
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if _, err := Open("state", &Options{fs: d}); err == nil || !strings.Contains(err.Error(), durable.JournalName(logPrefix, 1)) {
			t.Errorf("a log with the record %.30q: %v", meta, err)
		}
	}
}

// The directory does not grow with what is saved, and after a compaction everything is there.
func TestFileCompacts(t *testing.T) {
	d := new(durabletest.Disk)
	f, err := Open("state", &Options{fs: d, compact: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	f.Claim(t.Context())
	for i := range 2000 {
		if err := f.Save(t.Context(), rec(KindSource, fmt.Sprint("s", i%10), 20000, 1, int64(i), int64(i))); err != nil {
			t.Fatal(err)
		}
		if f.log.Size() > 8<<10 {
			t.Fatalf("the log has %d octets for ten records", f.log.Size())
		}
	}
	if f.log.Number() < 10 {
		t.Errorf("compacted %d times", f.log.Number()-1)
	}
	f.Close()
	names, _ := d.ReadDir("state")
	if len(names) != 2 {
		t.Errorf("the directory has %v", names)
	}
	f, err = Open("state", &Options{fs: d})
	if err != nil {
		t.Fatal(err)
	}
	recs, _ := f.Claim(t.Context())
	for i, r := range sorted(recs) {
		if want := int64(1990 + i); r.Sent != want {
			t.Errorf("%v sent %d, want %d", r.Key, r.Sent, want)
		}
	}
	if len(recs) != 10 {
		t.Errorf("%d records", len(recs))
	}
}

// A log that needs its size is not written anew with each record.
func TestFileCompactsSeldom(t *testing.T) {
	d := new(durabletest.Disk)
	f, err := Open("state", &Options{fs: d, compact: 1 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Claim(t.Context())
	for i := range 3000 {
		if err := f.Save(t.Context(), rec(KindSource, fmt.Sprint("s", i%100), 20000, 1, int64(i), int64(i))); err != nil {
			t.Fatal(err)
		}
	}
	if f.log.Number() < 10 || f.log.Number() > 35 {
		t.Errorf("compacted %d times for 3,000 records of 100 keys", f.log.Number()-1)
	}
}

// The power is cut at each step of saving, compacting and opening, and some steps fail: what was saved
// is there, and never anything that was not to be saved.
func TestFilePowerCut(t *testing.T) {
	run := func(d durable.FS) (saved, tried map[Key]Record) {
		saved, tried = map[Key]Record{}, map[Key]Record{}
		for range 2 {
			f, err := Open("state", &Options{fs: d, compact: 700})
			if err != nil {
				return
			}
			f.Claim(context.Background())
			for i := range 8 {
				r := rec(KindSource, fmt.Sprint("s", i%3), 20000, 1, int64(i), saved[Key{KindSource, fmt.Sprint("s", i%3)}].Held+1)
				tried[r.Key] = r
				if f.Save(context.Background(), r) != nil {
					f.Close()
					return
				}
				saved[r.Key] = r
			}
			f.Close()
		}
		return
	}
	check := func(what string, d *durabletest.Disk, saved, tried map[Key]Record) {
		f, err := Open("state", &Options{fs: d})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		defer f.Close()
		recs, _ := f.Claim(context.Background())
		got := map[Key]Record{}
		for _, r := range recs {
			got[r.Key] = r
		}
		for k, r := range tried {
			if g := got[k]; g != saved[k] && g != r {
				t.Errorf("%s: %v is %+v; saved was %+v, tried %+v", what, k, g, saved[k], r)
			}
		}
	}
	dry := new(durabletest.Disk)
	run(dry)
	ops := dry.Ops()
	step := 1
	if testing.Short() {
		step = 5
	}
	for cut := 1; cut <= ops; cut += step {
		d := new(durabletest.Disk)
		d.CutAt(cut)
		saved, tried := run(d)
		for seed := range uint64(3) {
			check(fmt.Sprintf("power cut at step %d of %d, outcome %d", cut, ops, seed), d.Crash(seed), saved, tried)
		}
	}
	for _, op := range []durabletest.Op{durabletest.Write, durabletest.Sync, durabletest.Rename, durabletest.SyncDir, durabletest.Remove} {
		for n := 1; n <= 40; n++ {
			d := new(durabletest.Disk)
			faults := &durabletest.Faults{FS: d}
			faults.Set(durabletest.Nth(op, n, errors.New("broken")))
			saved, tried := run(faults)
			what := fmt.Sprintf("%v number %d fails", op, n)
			check(what+", power cut", d.Crash(uint64(n)), saved, tried)
			check(what, d, saved, tried)
		}
	}
}

// decode is total, and reads what encode writes.
func FuzzRecord(f *testing.F) {
	for _, r := range []Record{rec(KindSource, "a1", 20000, 3, 17, 20), rec(KindDomain, "news.example", 0, 1, 0, 0), rec(KindSource, "<&>", lastDay, 1, 0, 1)} {
		b, _ := encode(r)
		f.Add(b)
	}
	f.Add([]byte(`{"day":null}`))
	f.Add([]byte(`{"kind":"source","name":"\ud800","day":"1970-01-01","number":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b)
		if err != nil {
			return
		}
		again, err := encode(r)
		if err != nil {
			// Escapes may make it longer than what is read.
			if len(r.Name) > 300 {
				return
			}
			t.Fatalf("%+v was read and cannot be written: %v", r, err)
		}
		if back, err := decode(again); err != nil || back != r {
			t.Fatalf("%+v became %+v, %v", r, back, err)
		}
	})
}

func TestDay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := Day(rapid.Int32Range(0, int32(lastDay)).Draw(t, "day"))
		if got := DayOf(d.Start()); got != d {
			t.Fatalf("%v became %v", d, got)
		}
		if got := DayOf(d.Start().Add(-1)); got != d-1 {
			t.Fatalf("the moment before %v is of %v", d, got)
		}
		b, _ := d.MarshalText()
		var back Day
		if err := back.UnmarshalText(b); err != nil || back != d {
			t.Fatalf("%s was read as %v, %v", b, back, err)
		}
	})
}

func soak() bool { return os.Getenv("MAILSPINE_SOAK") == "1" }
