package tlsrpt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"pgregory.net/rapid"
)

func load(t testing.TB, s Store) map[rowKey]Row {
	t.Helper()
	m := map[rowKey]Row{}
	if err := s.Load(context.Background(), func(r Row) error { m[r.key()] = r; return nil }); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "tlsrpt")
	f, err := OpenFile(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	var locked *durable.LockedError
	if _, err := OpenFile(dir, nil); !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Errorf("opened twice: %v", err)
	}
	row := Row{
		Day: day0, Domain: "example.org", Policies: sample().Policies,
		Delivery: Delivery{ID: "x@example.com", Attempts: 2, First: day0.Add(30 * time.Hour), Next: day0.Add(31 * time.Hour), Note: "ünlucky"},
	}
	old := Row{Day: day0.AddDate(0, 0, -3), Domain: "example.org", Delivery: Delivery{Done: true}}
	ctx := context.Background()
	for _, err := range []error{f.Save(ctx, row, old), f.Save(ctx), f.Forget(ctx, day0.Add(-time.Hour)), f.Close(), f.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{f.Save(ctx, row), f.Forget(ctx, day0), f.Load(ctx, nil)} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	if f, err = OpenFile(dir, nil); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := load(t, f); len(got) != 1 || !reflect.DeepEqual(got[row.key()], row) {
		t.Errorf("loaded %+v\nnot    %+v", got, row)
	}
	mine := errors.New("mine")
	if err := f.Load(ctx, func(Row) error { return mine }); !errors.Is(err, mine) {
		t.Error(err)
	}
	for _, r := range []Row{{Day: day0, Domain: "Example.org"}, {Day: day0.Add(time.Hour), Domain: "example.org"}, {Day: day0, Domain: "a/b"}, {Day: day0}} {
		if f.Save(ctx, r) == nil {
			t.Errorf("saved %+v", r)
		}
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestFileDamaged(t *testing.T) {
	dir := t.TempDir()
	f, err := OpenFile(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := f.Save(context.Background(), Row{Day: day0, Domain: fmt.Sprintf("d%d.example", i), Delivery: Delivery{Note: strings.Repeat("n", 1000)}}); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	name := filepath.Join(dir, durable.JournalName(logPrefix, 1))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var corrupt *durable.CorruptError
	if _, err := OpenFile(dir, nil); !errors.As(err, &corrupt) {
		t.Errorf("a damaged store opens: %v", err)
	}
	// Whole records that say nothing that we understand.
	for _, s := range []string{"", "{}", "x", `{"day":"2026-11-23"}`, `{"day":"2026-11-23","domain":"A"}`, `{"day":"x","domain":"a"}`, `{"forget":"x"}`, `{"day":"2026-11-23","domain":"a","policies":[{"failure-details":[{"receiving-ip":"x"}]}]}`} {
		if r, _, err := decodeRow([]byte(s)); err == nil {
			t.Errorf("%q is %+v", s, r)
		}
	}
}

// A File is what a Memory would be, over restarts and compactions.
func TestFileModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := &durabletest.Disk{}
		open := func() *File {
			f, err := OpenFile("d", &FileOptions{fs: disk, compact: 2048, Logger: quiet})
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		f, model := open(), &Memory{}
		defer func() { f.Close() }()
		ctx := context.Background()
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 7).Draw(t, "op") {
			case 0:
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
				f = open()
			case 1:
				day := day0.AddDate(0, 0, rapid.IntRange(0, 3).Draw(t, "before"))
				if err := errors.Join(f.Forget(ctx, day), model.Forget(ctx, day)); err != nil {
					t.Fatal(err)
				}
			default:
				var list []Row
				for range rapid.IntRange(1, 3).Draw(t, "rows") {
					r := Row{
						Day: day0.AddDate(0, 0, rapid.IntRange(0, 3).Draw(t, "day")), Domain: rapid.SampledFrom([]string{"a.example", "b.example"}).Draw(t, "domain"),
						Delivery: Delivery{Attempts: rapid.IntRange(0, 3).Draw(t, "attempts"), Note: strings.Repeat("n", rapid.IntRange(0, 100).Draw(t, "note"))},
					}
					if rapid.Bool().Draw(t, "policies") {
						r.Policies = sample().Policies[:rapid.IntRange(1, 3).Draw(t, "n")]
					}
					list = append(list, r)
				}
				if err := errors.Join(f.Save(ctx, list...), model.Save(ctx, list...)); err != nil {
					t.Fatal(err)
				}
			}
			got, want := map[rowKey]Row{}, map[rowKey]Row{}
			f.Load(ctx, func(r Row) error { got[r.key()] = r; return nil })
			model.Load(ctx, func(r Row) error { want[r.key()] = r; return nil })
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%d rows: %v\nnot %v", len(got), slices.Collect(maps.Keys(got)), slices.Collect(maps.Keys(want)))
			}
			var live int64
			for _, b := range f.rows {
				live += rowSize(b)
			}
			if live != f.live || f.log.Size() > 2*max(f.live, 2048)+16<<10 {
				t.Fatalf("%d octets live, counted as %d, in a log of %d", live, f.live, f.log.Size())
			}
		}
	})
}

// Whenever the power goes, what was saved is there afterwards.
func TestFilePowerCut(t *testing.T) {
	work := func(fsys durable.FS) (saved int, forgotten bool) {
		f, err := OpenFile("d", &FileOptions{fs: fsys, compact: 700, Logger: quiet})
		if err != nil {
			return 0, false
		}
		defer f.Close()
		old := Row{Day: day0.AddDate(0, 0, -1), Domain: "old.example"}
		if f.Save(context.Background(), old) != nil {
			return 0, false
		}
		for i := range 12 {
			r := Row{Day: day0, Domain: "example.org", Policies: []PolicyResult{{Policy: Policy{Type: PolicyNone, Domain: "example.org"}, Successful: int64(i + 1)}}}
			if f.Save(context.Background(), r) != nil {
				return saved, forgotten
			}
			saved = i + 1
			if i == 6 {
				if f.Forget(context.Background(), day0) != nil {
					return saved, false
				}
				forgotten = true
			}
		}
		return saved, forgotten
	}
	whole := &durabletest.Disk{}
	if saved, forgotten := work(whole); saved != 12 || !forgotten {
		t.Fatalf("%d saved, %v", saved, forgotten)
	}
	for cut := 1; cut <= whole.Ops(); cut++ {
		disk := &durabletest.Disk{}
		disk.CutAt(cut)
		saved, forgotten := work(disk)
		for seed := range uint64(6) {
			f, err := OpenFile("d", &FileOptions{fs: disk.Crash(seed), Logger: quiet})
			if err != nil {
				t.Fatalf("cut at %d, seed %d: %v", cut, seed, err)
			}
			got := load(t, f)
			n := 0
			if r, ok := got[rowKey{day0.Unix(), "example.org"}]; ok {
				n = int(r.Policies[0].Successful)
			}
			_, old := got[rowKey{day0.AddDate(0, 0, -1).Unix(), "old.example"}]
			if n < saved || n > saved+1 || forgotten && old {
				t.Errorf("cut at %d, seed %d: %d sessions, %d were saved; the old row is there: %v, forgotten: %v", cut, seed, n, saved, old, forgotten)
			}
			f.Close()
		}
	}
}

// After a sync that failed nothing is believed any more, and what the Collector has is still counted.
func TestFileFailedSync(t *testing.T) {
	faults := &durabletest.Faults{FS: &durabletest.Disk{}}
	f, err := OpenFile("d", &FileOptions{fs: faults, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := &Collector{Store: f, Now: func() time.Time { return day0 }}
	record(t, c, Session{Domain: "example.org"})
	faults.Set(durabletest.Nth(durabletest.Sync, 1, errors.New("I/O error")))
	for range 2 {
		if err := c.Flush(context.Background()); !errors.Is(err, durable.ErrFailed) {
			t.Errorf("flush: %v", err)
		}
	}
	record(t, c, Session{Domain: "example.org"})
	if list := rows(t, c, day0); list[0].Policies[0].Successful != 2 {
		t.Errorf("%+v", list)
	}
}

func FuzzDecodeRow(f *testing.F) {
	b, _ := encodeRow(&Row{Day: day0, Domain: "example.org", Policies: sample().Policies, Delivery: Delivery{ID: "x", Attempts: 1, Next: day0}})
	f.Add(b)
	f.Add([]byte(`{"forget":"2026-11-23"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, forget, err := decodeRow(b)
		if err != nil || !forget.IsZero() {
			return
		}
		again, err := encodeRow(&r)
		if err != nil {
			t.Fatal(err)
		}
		s, _, err := decodeRow(again)
		if err != nil || !reflect.DeepEqual(r, s) {
			t.Fatalf("%+v\n%+v\n%v", r, s, err)
		}
	})
}
