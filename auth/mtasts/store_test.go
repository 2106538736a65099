package mtasts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 123456789, time.UTC)

func entry(domain, id string, mx ...string) Entry {
	e := Entry{Domain: domain, Policy: Policy{ID: id, Mode: ModeEnforce, MX: mx, MaxAge: 240 * time.Hour}, Fetched: noon, Used: noon.Add(-time.Hour)}
	if mx == nil {
		e.Policy.Mode = ModeNone
	}
	return e
}

func all(t *testing.T, s Store) map[string]Entry {
	t.Helper()
	m := map[string]Entry{}
	for e, err := range s.All(t.Context()) {
		if err != nil {
			t.Error(err)
			continue
		}
		if _, twice := m[e.Domain]; twice {
			t.Errorf("%s comes twice", e.Domain)
		}
		m[e.Domain] = e
	}
	return m
}

// testStore holds a driver to the contract of Store. open returns a store for at most 4 domains, which has what an earlier one of the
// same test saved.
func testStore(t *testing.T, lasting bool, open func(t *testing.T) Store) {
	ctx := t.Context()
	s := open(t)
	must := func(rule string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", rule, err)
		}
	}
	has := func(rule string, want ...Entry) {
		t.Helper()
		m := map[string]Entry{}
		for _, e := range want {
			m[e.Domain] = e
			if got, err := s.Load(ctx, e.Domain); err != nil || !cmp.Equal(got, e) {
				t.Errorf("%s: %v\n%s", rule, err, cmp.Diff(e, got))
			}
		}
		if d := cmp.Diff(m, all(t, s)); d != "" {
			t.Errorf("%s: %s", rule, d)
		}
	}
	has("a new store is empty")
	for _, d := range []string{"a.example", "", "../x", "A.example", "a b", strings.Repeat("a", 300)} {
		if _, err := s.Load(ctx, d); !errors.Is(err, ErrNoEntry) {
			t.Errorf("Load of a domain without an entry is ErrNoEntry: %q: %v", d, err)
		}
		must("Delete of a domain without an entry is no error", s.Delete(ctx, d))
	}
	long := strings.Repeat(strings.Repeat("a", 60)+".", 3) + strings.Repeat("b", 60) // 243 octets
	a, b, c, d := entry("a.example", "1", "mx.example", "*.example"), entry("xn--bcher-kva.example", "2"), entry("con", strings.Repeat("z", 32), "mx"), entry(long, "4", long)
	for _, e := range []Entry{a, b, c, d} {
		must("an entry can be saved", s.Save(ctx, e))
	}
	has("what was saved is there", a, b, c, d)
	a.Policy = Policy{ID: "9", Mode: ModeTesting, MX: []string{"other.example"}, MaxAge: time.Second}
	a.Used = time.Time{}
	must("an entry can be replaced in a full store", s.Save(ctx, a))
	has("the new one is there", a, b, c, d)
	if err := s.Save(ctx, entry("e.example", "1")); !errors.Is(err, ErrFull) {
		t.Errorf("there is no room for another: %v", err)
	}
	for name, f := range map[string]func(*Entry){
		"domain": func(e *Entry) { e.Domain = "A.example" }, "no domain": func(e *Entry) { e.Domain = "" }, "path": func(e *Entry) { e.Domain = "../x" },
		"time": func(e *Entry) { e.Fetched = time.Time{} }, "id": func(e *Entry) { e.Policy.ID = "" }, "mode": func(e *Entry) { e.Policy.Mode = "x" }, "mx": func(e *Entry) { e.Policy.MX = []string{"A b"} },
	} {
		e := entry("a.example", "1", "mx.example")
		if f(&e); s.Save(ctx, e) == nil {
			t.Errorf("an entry that is not valid is refused: %s", name)
		}
	}
	has("and nothing of them is there", a, b, c, d)
	must("an entry can be deleted", s.Delete(ctx, b.Domain))
	e := entry("e.example", "1", "mx.example")
	must("which makes room", s.Save(ctx, e))
	has("for another", a, c, d, e)
	for range s.All(ctx) {
		break // the iterator can be left
	}
	for x := range s.All(ctx) {
		must("other methods may be called between two entries", s.Delete(ctx, x.Domain))
		must("other methods may be called between two entries", s.Save(ctx, x))
	}
	has("nothing is lost by that", a, c, d, e)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 10 {
				x := []Entry{a, c, d, e}[(i+j)%4]
				if err := s.Save(ctx, x); err != nil {
					t.Error(err)
				}
				if got, err := s.Load(ctx, x.Domain); err != nil || !cmp.Equal(got, x) {
					t.Errorf("%+v, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	has("all at once is the same", a, c, d, e)
	if lasting {
		if c, ok := s.(io.Closer); ok {
			must("it can be closed", c.Close())
			must("a second time, too", c.Close())
			if _, err := s.Load(ctx, "a.example"); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("Load after Close: %v", err)
			}
			if err := s.Save(ctx, a); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("Save after Close: %v", err)
			}
			if err := s.Delete(ctx, "a.example"); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("Delete after Close: %v", err)
			}
			for _, err := range s.All(ctx) {
				if !errors.Is(err, fs.ErrClosed) {
					t.Errorf("All after Close: %v", err)
				}
			}
		}
		s = open(t)
		has("it survives", a, c, d, e)
		if err := s.Save(ctx, entry("f.example", "1")); !errors.Is(err, ErrFull) {
			t.Errorf("there is no room for another, still: %v", err)
		}
	}
}

func TestMemory(t *testing.T) {
	testStore(t, false, func(*testing.T) Store { return &Memory{MaxEntries: 4} })
}

func TestFile(t *testing.T) {
	for name, fsys := range map[string]durable.FS{"disk": nil, "model": new(durabletest.Disk)} {
		t.Run(name, func(t *testing.T) {
			dir := "sts"
			if fsys == nil {
				dir = filepath.Join(t.TempDir(), "a", "sts")
			}
			testStore(t, true, func(t *testing.T) Store {
				f, err := OpenFile(dir, &Options{MaxEntries: 4, fs: fsys})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
				return f
			})
		})
	}
}

func TestFileModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x", "sts")
	f, err := OpenFile(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Save(t.Context(), entry("a.example", "1")); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(filepath.Dir(dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v", path, fi.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	var locked *durable.LockedError
	if _, err := OpenFile(dir, nil); !errors.As(err, &locked) {
		t.Errorf("a second process: %v", err)
	}
	if _, err := OpenFile(filepath.Join(dir, "sts.a.example.json"), nil); err == nil {
		t.Error("a file is no directory")
	}
}

// A damaged file costs its own policy and nothing else.
func TestFileDamaged(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	open := func() *File {
		f, err := OpenFile(dir, &Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := open()
	e, other := entry("a.example", "1", "mx.example"), entry("b.example", "2", "mx.example")
	for _, x := range []Entry{e, other} {
		if err := f.Save(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	name := f.path(e.Domain)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(f.path(other.Domain))
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"empty": nil, "zeros": make([]byte, len(whole)), "cut off": whole[:len(whole)/2], "longer": append(bytes.Clone(whole), ' '), "another's": foreign,
		"of a newer format": bytes.Replace(whole, []byte("-1 "), []byte("-2 "), 1), "huge": bytes.Repeat([]byte("x"), maxFile+1),
		"another mode": bytes.Replace(whole, []byte(`"enforce"`), []byte(`"none"`), 1),
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 8)
		cases[fmt.Sprintf("bit %d of octet %d", i%8, i)] = b
	}
	for what, b := range cases {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		log.Reset()
		if got, err := f.Load(t.Context(), e.Domain); !errors.Is(err, ErrNoEntry) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		if !strings.Contains(log.String(), "damaged") || !strings.Contains(log.String(), "sts.a.example.json") {
			t.Errorf("%s: the log is not told: %s", what, log.String())
		}
		if m := all(t, f); len(m) != 1 || !cmp.Equal(m["b.example"], other) {
			t.Errorf("%s: %v", what, m)
		}
	}
	if err := f.Save(t.Context(), e); err != nil {
		t.Error(err)
	}
	if got, err := f.Load(t.Context(), e.Domain); err != nil || !cmp.Equal(got, e) {
		t.Errorf("it can be written again: %v", err)
	}
	// What does not belong there is left alone, what a crash left is not.
	for _, n := range []string{"README", "sts.x.json.tmp", "other.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	f = open()
	defer f.Close()
	if f.count != 2 || len(all(t, f)) != 2 {
		t.Errorf("%d files", f.count)
	}
	for n, want := range map[string]bool{"README": true, "sts.x.json.tmp": false, "other.tmp": true} {
		if _, err := os.Stat(filepath.Join(dir, n)); (err == nil) != want {
			t.Errorf("%s: %v", n, err)
		}
	}
}

// The power is cut at each operation: what was saved is there, and each entry is an old one or a new one, whole.
func TestFilePowerCut(t *testing.T) {
	was := func(list []Entry, e Entry) bool {
		return slices.ContainsFunc(list, func(x Entry) bool { return cmp.Equal(x, e) })
	}
	work := func(fsys durable.FS) (saved map[string]Entry, tried map[string][]Entry) {
		saved, tried = map[string]Entry{}, map[string][]Entry{}
		f, err := OpenFile("sts", &Options{fs: fsys})
		if err != nil {
			return
		}
		defer f.Close()
		for i := range 12 {
			e := entry(fmt.Sprintf("d%d.example", i%5), fmt.Sprint(i+1), fmt.Sprintf("mx%d.example", i))
			tried[e.Domain] = append(tried[e.Domain], e)
			if err := f.Save(context.Background(), e); err != nil {
				return
			}
			saved[e.Domain] = e
			if i == 8 {
				delete(saved, "d4.example")
				if f.Delete(context.Background(), "d4.example") != nil {
					return
				}
			}
		}
		return
	}
	whole := new(durabletest.Disk)
	if saved, _ := work(whole); len(saved) != 5 {
		t.Fatalf("%v", saved)
	}
	for cut := 1; cut <= whole.Ops()+1; cut++ {
		disk := new(durabletest.Disk)
		disk.CutAt(cut)
		saved, tried := work(disk)
		for seed := range uint64(6) {
			f, err := OpenFile("sts", &Options{fs: disk.Crash(seed), Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatalf("cut at %d, seed %d: %v", cut, seed, err)
			}
			got := all(t, f)
			for d, e := range saved {
				// It, or what was being saved after it.
				if !cmp.Equal(got[d], e) && !cmp.Equal(got[d], tried[d][len(tried[d])-1]) {
					t.Fatalf("cut at %d, seed %d: %s is %+v, saved was %+v of %+v", cut, seed, d, got[d], e, tried[d])
				}
			}
			for d, e := range got {
				if !was(tried[d], e) {
					t.Fatalf("cut at %d, seed %d: %s is %+v", cut, seed, d, e)
				}
			}
			if f.count != len(got) {
				t.Fatalf("cut at %d, seed %d: %d files counted, %d entries", cut, seed, f.count, len(got))
			}
			if err := f.Save(context.Background(), entry("new.example", "1")); err != nil {
				t.Fatalf("cut at %d, seed %d: %v", cut, seed, err)
			}
			f.Close()
		}
	}
}

// Each call fails once, in each way: the error is told, nothing is counted wrongly, and the store goes on.
func TestFileFaults(t *testing.T) {
	ctx := context.Background()
	a, b, c := entry("a.example", "1", "mx.example"), entry("b.example", "2", "mx.example"), entry("c.example", "3", "mx.example")
	work := func(f *File) (errs []error) {
		for _, step := range []func() error{
			func() error { return f.Save(ctx, b) }, func() error { return f.Save(ctx, a) }, func() error { return f.Save(ctx, c) }, func() error { return f.Delete(ctx, "c.example") },
			func() error { _, err := f.Load(ctx, "a.example"); return err },
			func() error {
				for _, err := range f.All(ctx) {
					if err != nil {
						return err
					}
				}
				return nil
			},
		} {
			if err := step(); err != nil && !errors.Is(err, ErrNoEntry) {
				errs = append(errs, err)
			}
		}
		return errs
	}
	open := func(t *testing.T) (*durabletest.Faults, *File) {
		faults := &durabletest.Faults{FS: new(durabletest.Disk)}
		f, err := OpenFile("sts", &Options{fs: faults})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Save(ctx, a); err != nil {
			t.Fatal(err)
		}
		return faults, f
	}
	faults, f := open(t)
	faults.Set(nil)
	if errs := work(f); errs != nil {
		t.Fatal(errs)
	}
	calls := faults.Calls("")
	if calls < 20 {
		t.Fatalf("%d calls", calls)
	}
	for n := 1; n <= calls; n++ {
		for _, fault := range []error{syscall.EIO, syscall.ENOSPC, &durabletest.ShortWrite{N: 7, Err: syscall.ENOSPC}} {
			faults, f := open(t)
			faults.Set(durabletest.Nth("", n, fault))
			errs := work(f)
			for _, err := range errs {
				if !strings.HasPrefix(err.Error(), "mtasts: ") {
					t.Errorf("call %d: %v", n, err)
				}
			}
			faults.Set(nil)
			files := 0
			list, err := faults.ReadDir("sts")
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range list {
				if strings.HasSuffix(d.Name(), fileSuffix) {
					files++
				}
			}
			if f.count != files {
				t.Errorf("call %d, %v: %d files, counted %d", n, fault, files, f.count)
			}
			got := all(t, f)
			if !cmp.Equal(got["a.example"], a) || len(errs) == 0 && !maps.EqualFunc(got, map[string]Entry{"a.example": a, "b.example": b}, func(x, y Entry) bool { return cmp.Equal(x, y) }) {
				t.Errorf("call %d, %v: %v after %v", n, fault, got, errs)
			}
			if errs := work(f); errs != nil {
				t.Errorf("call %d, %v: it does not go on: %v", n, fault, errs)
			}
			f.Close()
		}
	}
	// Opening.
	faults.Set(nil)
	disk := new(durabletest.Disk)
	faults = &durabletest.Faults{FS: disk}
	faults.Set(nil)
	f, err := OpenFile("sts", &Options{fs: faults})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for n, calls := 1, faults.Calls(""); n <= calls; n++ {
		faults.Set(durabletest.Nth("", n, syscall.EIO))
		if f, err := OpenFile("sts", &Options{fs: faults}); err == nil {
			f.Close()
		} else if !errors.Is(err, syscall.EIO) {
			t.Errorf("call %d: %v", n, err)
		}
		faults.Set(nil)
		f, err := OpenFile("sts", &Options{fs: faults})
		if err != nil {
			t.Fatalf("call %d: the lock is not given back: %v", n, err)
		}
		f.Close()
	}
}

// A process is killed while it saves; each entry that it said was saved is there.
func TestFileKilled(t *testing.T) {
	if dir := os.Getenv("MTASTS_TEST_SAVE"); dir != "" {
		f, err := OpenFile(dir, nil)
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		for i := 1; ; i++ { // until it is killed
			if err := f.Save(context.Background(), entry(fmt.Sprintf("d%d.example", i%7), fmt.Sprint(i), "mx.example")); err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
			fmt.Printf("saved %d\n", i)
		}
	}
	dir := filepath.Join(t.TempDir(), "sts")
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFileKilled$")
		cmd.Env = append(os.Environ(), "MTASTS_TEST_SAVE="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last := 0
		var line string
		for last < 20+round*7 {
			if _, err := fmt.Fscanf(out, "%s %d\n", &line, &last); err != nil || line != "saved" {
				t.Errorf("%q, %v", line, err)
				break
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		// What it said before it was killed.
		for {
			if _, err := fmt.Fscanf(out, "%s %d\n", &line, &last); err != nil {
				break
			}
		}
		_ = cmd.Wait() // killed
		f, err := OpenFile(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := all(t, f)
		if len(got) != 7 {
			t.Errorf("%d entries", len(got))
		}
		for i := last; i > last-7; i-- {
			d := fmt.Sprintf("d%d.example", i%7)
			var id int
			fmt.Sscan(got[d].Policy.ID, &id)
			if id != i && id != last+1 {
				t.Errorf("%s has id %d, saved was %d, the last %d", d, id, i, last)
			}
		}
		f.Close()
	}
}

// Files are ours, and a disk can damage them in any way.
func FuzzDecode(f *testing.F) {
	b, err := encode(entry("a.example", "1", "mx.example", "*.example"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	_, body, _ := bytes.Cut(b, []byte("\n"))
	f.Add(body)
	f.Add([]byte(`{"domain":"a.example","id":"1","mode":"none","max_age":-1,"fetched":"2026-11-24T12:00:00Z"}`))
	f.Add([]byte(`{"domain":"../x","id":"1","mode":"none"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decode(b)
		if err != nil {
			// Most are stopped by the checksum; look behind it, too.
			if e, err = decode(seal(b)); err != nil {
				return
			}
		}
		if err := e.Validate(); err != nil {
			t.Fatal(err)
		}
		again, err := encode(e)
		if err != nil {
			t.Fatal(err)
		}
		if e2, err := decode(again); err != nil || !e2.Fetched.Equal(e.Fetched) || !cmp.Equal(e2.Policy.MX, e.Policy.MX) {
			t.Fatalf("%+v and again %+v, %v", e, e2, err)
		}
	})
}
