package durable_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

var testLog = durable.LogOptions{Magic: "TESTLOG\n", Version: 3}

func create(t testing.TB, fsys durable.FS, name string) *durable.Log {
	t.Helper()
	l, err := durable.CreateLog(fsys, name, testLog)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// open returns the metas of the records.
func open(t testing.TB, fsys durable.FS, name string) (*durable.Log, []string) {
	t.Helper()
	l, metas, err := tryOpen(fsys, name, testLog)
	if err != nil {
		t.Fatal(err)
	}
	return l, metas
}

func tryOpen(fsys durable.FS, name string, o durable.LogOptions) (*durable.Log, []string, error) {
	var metas []string
	l, err := durable.OpenLog(fsys, name, o, func(_ durable.Location, meta []byte) error {
		metas = append(metas, string(meta))
		return nil
	})
	return l, metas, err
}

func appendOne(t testing.TB, l *durable.Log, meta, body string) durable.Location {
	t.Helper()
	locs, err := l.Append(durable.Record{Meta: []byte(meta), Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	return locs[0]
}

func readFile(t testing.TB, fsys durable.FS, name string) []byte {
	t.Helper()
	b, err := durable.ReadFile(fsys, name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// place makes a file with any content, without ceremony.
func place(t testing.TB, fsys durable.FS, name string, b []byte) {
	t.Helper()
	f, err := durable.Create(fsys, name, 0o600, b)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestLog(t *testing.T) {
	for name, fsys := range map[string]durable.FS{"os": durable.OS{}, "disk": new(durabletest.Disk)} {
		t.Run(name, func(t *testing.T) {
			file := "log"
			if name == "os" {
				file = filepath.Join(t.TempDir(), "log")
			}
			l, err := durable.CreateLog(fsys, file, testLog, durable.Record{Meta: []byte("first")})
			if err != nil {
				t.Fatal(err)
			}
			want := []string{"first"}
			var locs []durable.Location
			for i := range 100 {
				meta := strings.Repeat(fmt.Sprint(i, " "), i*31%5000)
				want = append(want, meta)
				locs = append(locs, appendOne(t, l, meta, strings.Repeat("b", i*977)))
			}
			check := func(l *durable.Log) {
				t.Helper()
				for i, loc := range locs {
					r, err := l.ReadRecord(loc.Offset)
					if err != nil || string(r.Meta) != want[i+1] || string(r.Body) != strings.Repeat("b", i*977) {
						t.Fatalf("record %d: %d and %d octets, %v", i, len(r.Meta), len(r.Body), err)
					}
					got, meta, err := l.ReadMeta(loc.Offset)
					if err != nil || string(meta) != want[i+1] || got != loc {
						t.Fatalf("meta %d: %+v, want %+v, %v", i, got, loc, err)
					}
				}
				n := 0
				if err := l.Scan(func(_ durable.Location, meta []byte) error {
					if string(meta) != want[n] {
						t.Errorf("Scan: record %d differs", n)
					}
					n++
					return nil
				}); err != nil || n != len(want) {
					t.Errorf("Scan: %d records, %v", n, err)
				}
			}
			check(l)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Append(durable.Record{Meta: []byte("late")}); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("Append after Close: %v", err)
			}
			l, metas := open(t, fsys, file)
			if fmt.Sprint(metas) != fmt.Sprint(want) {
				t.Errorf("%d records after opening again, want %d", len(metas), len(want))
			}
			check(l)
			appendOne(t, l, "more", "")
			l.Close()
			if _, metas := open(t, fsys, file); len(metas) != len(want)+1 {
				t.Errorf("%d records after one more", len(metas))
			}
			if _, err := durable.CreateLog(fsys, file, testLog); !errors.Is(err, fs.ErrExist) {
				t.Errorf("CreateLog over a log: %v", err)
			}
			if _, err := l.ReadRecord(7); err == nil {
				t.Error("a record was read where none begins")
			}
		})
	}
}

func TestLogVersion(t *testing.T) {
	var d durabletest.Disk
	create(t, &d, "log").Close()
	older := testLog
	older.Version = 2
	_, _, err := tryOpen(&d, "log", older)
	var ve *durable.VersionError
	if !errors.As(err, &ve) || ve.Found != 3 || ve.Known != 2 || !strings.Contains(err.Error(), "newer program") {
		t.Errorf("opening a newer log: %v", err)
	}
	other := testLog
	other.Magic = "OTHERLOG"
	var ce *durable.CorruptError
	if _, _, err := tryOpen(&d, "log", other); !errors.As(err, &ce) {
		t.Errorf("opening another kind of log: %v", err)
	}
}

// Whatever a crash leaves of the last batch, what was synced before is there,
// and the log goes on.
func TestLogTornTail(t *testing.T) {
	var d durabletest.Disk
	l := create(t, &d, "log")
	appendOne(t, l, "one", "body one")
	appendOne(t, l, "two", "body two")
	whole := len(readFile(t, &d, "log"))
	if _, err := l.Append(durable.Record{Meta: []byte("three"), Body: bytes.Repeat([]byte("x"), 700)},
		durable.Record{Meta: []byte("four"), Body: bytes.Repeat([]byte("y"), 700)}); err != nil {
		t.Fatal(err)
	}
	b := readFile(t, &d, "log")
	boundary := whole + (len(b)-whole+1)/2 // three is one octet longer than four
	try := func(what string, b []byte, want ...string) {
		t.Helper()
		var d durabletest.Disk
		place(t, &d, "log", b)
		l, metas, err := tryOpen(&d, "log", testLog)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		ok := false
		for _, w := range want {
			ok = ok || fmt.Sprint(metas) == w
		}
		if !ok {
			t.Fatalf("%s: records %v, want one of %v", what, metas, want)
		}
		appendOne(t, l, "next", "")
		l.Close()
		if _, again := open(t, &d, "log"); fmt.Sprint(again) != fmt.Sprint(append(metas, "next")) {
			t.Fatalf("%s: then %v", what, again)
		}
		strict := testLog
		strict.Strict = true
		place(t, &d, "log", b)
		var ce *durable.CorruptError
		if _, all, err := tryOpen(&d, "log", strict); len(metas) < 4 && len(b) != whole && len(b) != boundary && !errors.As(err, &ce) {
			t.Fatalf("%s: strict: %v, %v", what, all, err)
		}
	}
	for n := whole; n < len(b); n++ {
		try(fmt.Sprintf("cut at %d", n), b[:n], "[one two]", "[one two three]")
	}
	for n := whole; n < len(b); n += 13 { // a hole from there to the end, or to a later place
		for m := n + 1; m <= len(b); m += 101 {
			h := bytes.Clone(b)
			clear(h[n:m])
			if bytes.Equal(h, b) {
				continue
			}
			try(fmt.Sprintf("hole from %d to %d", n, m), h, "[one two]", "[one two three]", "[one two three four]")
		}
	}
	try("garbage behind", append(bytes.Clone(b), 1, 2, 3), "[one two three four]")
	try("zeros behind", append(bytes.Clone(b), make([]byte, 5000)...), "[one two three four]")
}

// What is left of a torn batch does not come back behind a record that is
// written in its place.
func TestLogTornTailGone(t *testing.T) {
	var d durabletest.Disk
	l := create(t, &d, "log")
	appendOne(t, l, "one", "")
	locs, err := l.Append(durable.Record{Meta: []byte("torn"), Body: make([]byte, 600)}, durable.Record{Meta: []byte("whole")})
	if err != nil {
		t.Fatal(err)
	}
	b := readFile(t, &d, "log")
	b[locs[0].Offset+25] ^= 1
	place(t, &d, "log", b)
	l, metas := open(t, &d, "log")
	if fmt.Sprint(metas) != "[one]" {
		t.Fatalf("records %v", metas)
	}
	appendOne(t, l, "two!", strings.Repeat("x", 600)) // as long as the torn one
	l.Close()
	for seed := range uint64(4) {
		if _, metas := open(t, d.Crash(seed+1), "log"); fmt.Sprint(metas) != "[one two!]" {
			t.Fatalf("records %v", metas)
		}
	}
}

// A broken record that is followed by later batches was synced: no crash breaks it.
func TestLogCorrupt(t *testing.T) {
	var d durabletest.Disk
	l := create(t, &d, "log")
	for i := range 5 {
		appendOne(t, l, fmt.Sprint("record ", i), strings.Repeat("body", 100))
	}
	last, err := l.Append(durable.Record{Meta: []byte("last")})
	if err != nil {
		t.Fatal(err)
	}
	b := readFile(t, &d, "log")
	verify := testLog
	verify.VerifyBodies = true
	for i := 0; i < int(last[0].Offset); i++ {
		c := bytes.Clone(b)
		c[i] ^= 1 << (i % 8)
		var d durabletest.Disk
		place(t, &d, "log", c)
		var ce *durable.CorruptError
		var ve *durable.VersionError
		if _, metas, err := tryOpen(&d, "log", verify); !errors.As(err, &ce) && !errors.As(err, &ve) {
			t.Fatalf("octet %d flipped: records %q, %v", i, metas, err)
		}
		if !bytes.Equal(readFile(t, &d, "log"), c) {
			t.Fatalf("octet %d flipped: the damaged file was changed", i)
		}
	}
}

// A body that is not read when the log is opened is checked when it is read.
func TestLogBodyChecked(t *testing.T) {
	var d durabletest.Disk
	l := create(t, &d, "log")
	loc := appendOne(t, l, "m", strings.Repeat("body", 100))
	appendOne(t, l, "n", "")
	b := readFile(t, &d, "log")
	b[loc.Offset+100] ^= 4
	place(t, &d, "log", b)
	l, _ = open(t, &d, "log")
	var ce *durable.CorruptError
	if _, err := l.ReadRecord(loc.Offset); !errors.As(err, &ce) {
		t.Errorf("reading a damaged body: %v", err)
	}
	if _, _, err := l.ReadMeta(loc.Offset); err != nil {
		t.Errorf("reading the meta before it: %v", err)
	}
}

// Strangers write bodies: one that holds a copy of the log itself is no record.
func TestLogForgedBody(t *testing.T) {
	var d durabletest.Disk
	l := create(t, &d, "forged")
	appendOne(t, l, "evil", "evil")
	appendOne(t, l, "evil", "evil")
	evil := readFile(t, &d, "forged")
	l = create(t, &d, "log")
	appendOne(t, l, "good", "")
	appendOne(t, l, "carrier", string(evil))
	b := readFile(t, &d, "log")
	place(t, &d, "log", b[:len(b)-1])
	if _, metas := open(t, &d, "log"); fmt.Sprint(metas) != "[good]" {
		t.Errorf("records %v, want the good one", metas)
	}
}

func TestLogGroupCommit(t *testing.T) {
	var d durabletest.Disk
	slow := &durabletest.Faults{FS: &d}
	l := create(t, slow, "log")
	release := make(chan struct{})
	started := make(chan struct{})
	slow.Set(func(c durabletest.Call) error {
		if c.Op == durabletest.Sync && c.OfOp == 1 {
			close(started)
			<-release
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() { appendOne(t, l, "leader", "") })
	<-started
	const n = 40
	for i := range n {
		wg.Go(func() { appendOne(t, l, fmt.Sprint(i), "") })
	}
	// All have to have gathered: they hold on to the log's lock only while they encode.
	for l.Gathered() < n {
		// The race detector's scheduler needs no help to get here.
	}
	close(release)
	wg.Wait()
	if s := slow.Calls(durabletest.Sync); s != 2 {
		t.Errorf("%d syncs for one and %d more writers, want 2", s, n)
	}
	l.Close()
	if _, metas := open(t, &d, "log"); len(metas) != n+1 {
		t.Errorf("%d records, want %d", len(metas), n+1)
	}
}

// Each writer alone has a sync to itself, and does not wait for company.
func TestLogLoneWriter(t *testing.T) {
	var d durabletest.Disk
	f := &durabletest.Faults{FS: &d}
	l := create(t, f, "log")
	f.Set(nil)
	for range 10 {
		appendOne(t, l, "x", "")
	}
	if s := f.Calls(durabletest.Sync); s != 10 {
		t.Errorf("%d syncs for 10 appends one after the other", s)
	}
}

// A failed sync ends the log: a second one would call what was lost good.
func TestLogFailedSync(t *testing.T) {
	var d durabletest.Disk
	f := &durabletest.Faults{FS: &d}
	l := create(t, f, "log")
	appendOne(t, l, "one", "")
	f.Set(durabletest.Nth(durabletest.Sync, 1, syscall.EIO))
	_, err := l.Append(durable.Record{Meta: []byte("two")})
	if !errors.Is(err, durable.ErrFailed) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("Append with a failing sync: %v", err)
	}
	for range 3 {
		if _, err := l.Append(durable.Record{Meta: []byte("three")}); !errors.Is(err, durable.ErrFailed) {
			t.Fatalf("Append after a failed sync: %v", err)
		}
	}
	if l.Err() == nil {
		t.Error("Err is nil after a failed sync")
	}
	if n := f.Calls(durabletest.Sync); n != 1 {
		t.Errorf("the sync was tried %d times", n)
	}
	l.Close()
	if _, metas := open(t, d.Crash(0), "log"); fmt.Sprint(metas) != "[one]" {
		t.Errorf("records %v, want what was synced", metas)
	}
}

// What a log reads when it is opened again is durable from then on, though the
// kernel dropped it when a sync failed, or never got to sync it.
func TestLogReadIsDurable(t *testing.T) {
	for _, why := range []error{syscall.EIO, durabletest.ErrKilled} {
		var d durabletest.Disk
		f := &durabletest.Faults{FS: &d}
		l := create(t, f, "log")
		appendOne(t, l, "one", "")
		f.Set(durabletest.Nth(durabletest.Sync, 1, why))
		if _, err := l.Append(durable.Record{Meta: []byte("two"), Body: make([]byte, 600<<10)}); err == nil {
			t.Fatal("Append succeeded without a sync")
		}
		l.Close()
		l, metas := open(t, &d, "log")
		if fmt.Sprint(metas) != "[one two]" {
			t.Fatalf("%v: records %v", why, metas)
		}
		for seed := range uint64(4) {
			if _, metas := open(t, d.Crash(seed), "log"); fmt.Sprint(metas) != "[one two]" {
				t.Errorf("%v, crash %d: records %v, those that were read are gone", why, seed, metas)
			}
		}
		appendOne(t, l, "three", "")
		l.Close()
		if _, metas := open(t, d.Crash(0), "log"); fmt.Sprint(metas) != "[one two three]" {
			t.Errorf("%v: records %v", why, metas)
		}
	}
}

// When the disk is full nothing of the batch stays, and the log goes on when there is room.
func TestLogDiskFull(t *testing.T) {
	var d durabletest.Disk
	l := create(t, &d, "log")
	appendOne(t, l, "one", strings.Repeat("x", 1000))
	d.SetLimit(d.Used() + 500)
	size := d.Used()
	for range 3 {
		_, err := l.Append(durable.Record{Meta: []byte("big"), Body: make([]byte, 1000)})
		if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, durable.ErrFailed) {
			t.Fatalf("Append on a full disk: %v", err)
		}
		if d.Used() != size {
			t.Fatalf("the disk has %d octets, it had %d", d.Used(), size)
		}
		for seed := range uint64(10) {
			if _, metas := open(t, d.Crash(seed), "log"); fmt.Sprint(metas) != "[one]" {
				t.Fatalf("after a crash: %v", metas)
			}
		}
	}
	appendOne(t, l, "small", "")
	d.SetLimit(0)
	appendOne(t, l, "big", strings.Repeat("y", 1000))
	l.Close()
	if _, metas := open(t, &d, "log"); fmt.Sprint(metas) != "[one small big]" {
		t.Errorf("records %v", metas)
	}
}

// Every call of a workload fails once, in every way: what Append said is true.
func TestLogFaults(t *testing.T) {
	ways := map[string]error{
		"ENOSPC": syscall.ENOSPC, "EIO": syscall.EIO,
		"short":   &durabletest.ShortWrite{N: 10, Err: syscall.ENOSPC},
		"shorter": &durabletest.ShortWrite{N: 1, Err: io.ErrShortWrite},
	}
	for way, fault := range ways {
		for n := 1; ; n++ {
			var d durabletest.Disk
			f := &durabletest.Faults{FS: &d}
			f.Set(durabletest.Nth("", n, fault))
			var promised []string
			unknown := map[string]bool{}
			l, err := durable.CreateLog(f, "log", testLog)
			if err == nil {
				for i := range 4 {
					meta := fmt.Sprint("r", i)
					switch _, err := l.Append(durable.Record{Meta: []byte(meta), Body: make([]byte, 600)}); {
					case err == nil:
						promised = append(promised, meta)
					case errors.Is(err, durable.ErrFailed):
						unknown[meta] = true
					}
				}
				l.Close()
			}
			if f.Calls("") < n {
				break
			}
			for seed := range uint64(4) {
				after := d.Crash(seed)
				if _, err := after.Stat("log"); err != nil {
					if len(promised) > 0 {
						t.Fatalf("%s at call %d: the log is gone, with %v", way, n, promised)
					}
					continue
				}
				_, metas := open(t, after, "log")
				var known []string
				for _, m := range metas {
					if !unknown[m] {
						known = append(known, m)
					}
				}
				if fmt.Sprint(known) != fmt.Sprint(promised) {
					t.Fatalf("%s at call %d, crash %d: records %v, promised %v", way, n, seed, metas, promised)
				}
			}
		}
	}
}

// The power is cut at every operation of a workload with several writers; the
// records that were promised are there, in order for each writer, and no others.
func TestLogPowerCut(t *testing.T) {
	run := func(d *durabletest.Disk) (promised [3][]string) {
		l, err := durable.CreateLog(d, "log", testLog)
		if err != nil {
			return promised
		}
		defer l.Close()
		var wg sync.WaitGroup
		for w := range promised {
			wg.Go(func() {
				for i := range 4 {
					meta := fmt.Sprint(w, i)
					if _, err := l.Append(durable.Record{Meta: []byte(meta), Body: make([]byte, 300)},
						durable.Record{Meta: []byte(meta + "+"), Body: make([]byte, 900)}); err == nil {
						promised[w] = append(promised[w], meta, meta+"+")
					}
				}
			})
		}
		wg.Wait()
		return promised
	}
	for cut := 1; ; cut++ {
		var d durabletest.Disk
		d.CutAt(cut)
		promised := run(&d)
		if !d.WasCut() {
			break
		}
		for seed := range uint64(12) {
			after := d.Crash(seed)
			var found [3][]string
			if _, err := after.Stat("log"); err == nil {
				l, metas := open(t, after, "log")
				for _, m := range metas {
					found[m[0]-'0'] = append(found[m[0]-'0'], m)
				}
				appendOne(t, l, "0end", "")
				l.Close()
				if _, again := open(t, after, "log"); len(again) != len(metas)+1 {
					t.Fatalf("cut at %d, crash %d: %d records, then %d", cut, seed, len(metas), len(again))
				}
			}
			for w := range promised {
				if n := len(promised[w]); len(found[w]) < n || fmt.Sprint(found[w][:n]) != fmt.Sprint(promised[w]) || len(found[w]) > n+2 {
					t.Fatalf("cut at %d, crash %d: writer %d was promised %v, found are %v", cut, seed, w, promised[w], found[w])
				}
			}
		}
	}
}

// A log is a list, through any number of crashes.
func TestLogModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := new(durabletest.Disk)
		l := create(t, d, "log")
		var want []string
		n := 0
		rt.Repeat(map[string]func(*rapid.T){
			"append": func(rt *rapid.T) {
				var recs []durable.Record
				for range rapid.IntRange(1, 3).Draw(rt, "records") {
					n++
					want = append(want, fmt.Sprint(n))
					recs = append(recs, durable.Record{Meta: []byte(fmt.Sprint(n)), Body: make([]byte, rapid.IntRange(0, 3000).Draw(rt, "body"))})
				}
				if _, err := l.Append(recs...); err != nil {
					rt.Fatal(err)
				}
			},
			"crash": func(rt *rapid.T) {
				d = d.Crash(rapid.Uint64Range(0, 1000).Draw(rt, "seed"))
				var metas []string
				if l, metas = open(t, d, "log"); fmt.Sprint(metas) != fmt.Sprint(want) {
					rt.Fatalf("records %v, want %v", metas, want)
				}
			},
			"crash in an append": func(rt *rapid.T) {
				d.CutAt(d.Ops() + rapid.IntRange(1, 2).Draw(rt, "op"))
				if _, err := l.Append(durable.Record{Meta: []byte("torn"), Body: make([]byte, 2000)}); err == nil {
					rt.Fatal("Append without power")
				}
				d = d.Crash(rapid.Uint64Range(0, 1000).Draw(rt, "seed"))
				var metas []string
				l, metas = open(t, d, "log")
				if len(metas) == len(want)+1 && metas[len(want)] == "torn" {
					want = append(want, "torn")
				}
				if fmt.Sprint(metas) != fmt.Sprint(want) {
					rt.Fatalf("records %v, want %v", metas, want)
				}
			},
		})
	})
}

func FuzzLog(f *testing.F) {
	var d durabletest.Disk
	l := create(f, &d, "log")
	f.Add(readFile(f, &d, "log"))
	for i := range 3 {
		appendOne(f, l, fmt.Sprint("meta", i), strings.Repeat("x", i*50))
	}
	b := readFile(f, &d, "log")
	f.Add(b)
	f.Add(b[:len(b)-3])
	r := rand.New(rand.NewPCG(1, 2))
	for range 10 {
		c := bytes.Clone(b)
		c[r.IntN(len(c))] ^= byte(1 + r.IntN(255))
		f.Add(c)
	}
	huge := bytes.Clone(b)
	binary.LittleEndian.PutUint32(huge[24:], 1<<31)
	f.Add(huge)
	f.Fuzz(func(t *testing.T, b []byte) {
		var d durabletest.Disk
		place(t, &d, "log", b)
		l, metas, err := tryOpen(&d, "log", testLog)
		if err != nil {
			if !bytes.Equal(readFile(t, &d, "log"), b) {
				t.Fatal("a file that was refused was changed")
			}
			return
		}
		// What was opened can be used, and opened again with the same records.
		if _, err := l.Append(durable.Record{Meta: []byte("more"), Body: []byte("body")}); err != nil {
			t.Fatal(err)
		}
		l.Close()
		if _, again := open(t, &d, "log"); fmt.Sprint(again) != fmt.Sprint(append(metas, "more")) {
			t.Fatalf("records %q, then %q", metas, again)
		}
	})
}

// One writer, and fifty, 10 KB each. The baseline of the queue's figures.
func BenchmarkLog(b *testing.B) {
	for _, n := range []int{1, 50} {
		b.Run(fmt.Sprint(n, "-writers"), func(b *testing.B) {
			l, err := durable.CreateLog(nil, filepath.Join(b.TempDir(), "log"), testLog)
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			body := make([]byte, 10<<10)
			work := make(chan struct{}, b.N)
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			b.ResetTimer()
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() {
					for range work {
						if _, err := l.Append(durable.Record{Body: body}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
