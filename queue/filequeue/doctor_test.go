package filequeue

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

// A patientCase is a store with known content, to be damaged.
type patientCase struct {
	disk  *durabletest.Disk
	want  map[string]string
	chart *chart            // of the whole store
	files map[string][]byte // segments, by name
}

func newPatient(t testing.TB) *patientCase {
	t.Helper()
	d, want := filled(t)
	s := mustOpen(t, "spool", &Options{fs: d, SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()})
	for i := range 4 {
		m := newMessage(mailspine.MsgID(fmt.Sprintf("big%d-l", i)), "big: ann bob", "bigger: cid")
		mustPut(t, s, m)
		addTo(m)(want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	doc := &doctor{ctx: ctx, dir: "spool", fsys: d, rep: &Report{}}
	if err := doc.examine(); err != nil {
		t.Fatal(err)
	}
	p := &patientCase{disk: d, want: want, chart: doc.chart, files: map[string][]byte{}}
	for _, name := range segments(t, d) {
		p.files[name[len("spool/"):]] = must(durable.ReadFile(d, name, 1<<30))
	}
	return p
}

// A blow is damage: octets of a segment that are not what they were. Offset 0 and Length 0 is all of it.
type blow struct {
	seg         string
	off, length int64
}

// touches reports whether a blow hits the record at an offset.
func (b *blow) touches(p *patientCase, seg string, off int64) bool {
	if b == nil || b.seg != seg {
		return false
	}
	return b.length == 0 || b.off < off+recordLen(p.files[seg], off) && off < b.off+b.length
}

func recordLen(file []byte, off int64) int64 {
	u := func(i int64) int64 {
		return int64(file[i]) | int64(file[i+1])<<8 | int64(file[i+2])<<16 | int64(file[i+3])<<24
	}
	return 24 + u(off+4) + u(off+8)
}

// treat repairs a damaged store, and checks that all that is not damaged is there, and all that is not there, told.
func (p *patientCase) treat(t *testing.T, d *durabletest.Disk, b *blow, what string) *Report {
	t.Helper()
	ops, used := d.Ops(), d.Used()
	look, err := Doctor(ctx, "spool", DoctorOptions{fs: d})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if d.Ops() != ops || d.Used() != used {
		t.Fatalf("%s: looking changed something", what)
	}
	rep, err := Doctor(ctx, "spool", DoctorOptions{fs: d, Repair: true})
	if err != nil {
		t.Fatalf("%s: %v\n%s", what, err, rep)
	}
	if rep.Lost != look.Lost || rep.Damages != look.Damages || len(rep.Findings) != len(look.Findings) {
		t.Fatalf("%s: looking found\n%s\nand the repair\n%s", what, look, rep)
	}
	if !rep.OK() != rep.Repaired || (rep.Saved != "") != rep.Repaired {
		t.Fatalf("%s: %+v", what, rep)
	}
	p.healthy(t, d, b, rep, what)
	return rep
}

// healthy checks a store that was repaired.
func (p *patientCase) healthy(t *testing.T, d *durabletest.Disk, b *blow, rep *Report, what string) {
	t.Helper()
	s, err := Open("spool", &Options{fs: d, SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()})
	if err != nil {
		t.Fatalf("%s: %v\n%s", what, err, rep)
	}
	defer s.Close()
	got := actual(t, s) // compares the content, too
	tail := slices.ContainsFunc(rep.Findings, func(f Finding) bool { return f.Kind == KindTail })
	covers := func(f Finding) bool {
		return f.File == b.seg && (f.Length == 0 || f.Offset <= b.off+1 && b.off <= f.Offset+f.Length) || f.Kind == KindTail || b.length == 0
	}
	told := map[mailspine.MsgID]bool{}
	for _, f := range rep.Findings {
		if f.Severity == Missing {
			told[f.Message] = true
		}
	}
	for k, v := range p.want {
		id := mailspine.MsgID(k[:strings.Index(k, "/")])
		m := p.chart.messages[id]
		hit := b.touches(p, m.seg.name(), m.offset) || m.body.file != 0 && b != nil && b.seg == fmt.Sprintf("%016x", m.body.file)
		switch {
		case got[k] == "" && !hit:
			t.Fatalf("%s: %s was not touched, and is not there\n%s", what, k, rep)
		case got[k] == "" && rep.OK() && b.length == 0: // the first segment, or the last: nobody can tell
		case got[k] == "" && !told[id] && !slices.ContainsFunc(rep.Findings, covers):
			t.Fatalf("%s: %s is not there, and the report does not say so\n%s", what, k, rep)
		case got[k] != "" && told[id]:
			t.Fatalf("%s: %s is there, and is said to be lost\n%s", what, k, rep)
		case got[k] != "" && got[k] != v && rep.OK() && !tail:
			t.Fatalf("%s: %s is %s, and was %s\n%s", what, k, got[k], v, rep)
		}
	}
	for k := range got {
		if p.want[k] == "" && rep.OK() && !tail {
			t.Fatalf("%s: %s came back\n%s", what, k, rep)
		}
	}
	for _, f := range rep.Findings {
		if f.Severity == Missing && !f.Guess && f.Message != "" && f.Envelope == nil {
			t.Fatalf("%s: a lost message without its envelope: %s", what, f)
		}
	}
	if int64(len(got)) != rep.Items {
		t.Fatalf("%s: %d items, the report says %d\n%s", what, len(got), rep.Items, rep)
	}
	// Numbers are not used again, and it works on.
	if err := s.Put(ctx, newMessage("after-l", "x: ann"), mailspine.StringContent(bodyOf("after-l"))); err != nil {
		t.Fatalf("%s: Put: %v", what, err)
	}
	if again := actual(t, s); len(again) != len(got)+1 {
		t.Fatalf("%s: %d items after a Put, %d before", what, len(again), len(got))
	}
}

// damage returns a copy of the disk with a segment changed.
func (p *patientCase) damage(t *testing.T, seg string, change func([]byte) []byte) *durabletest.Disk {
	t.Helper()
	d := p.disk.Crash(1)
	overwrite(t, d, "spool/"+seg, change(bytes.Clone(p.files[seg])))
	return d
}

func TestDoctorHealthy(t *testing.T) {
	p := newPatient(t)
	rep := p.treat(t, p.disk, nil, "a whole store")
	if !rep.OK() || len(rep.Findings) != 0 || int(rep.Items) != len(p.want) || rep.Segments < 2 {
		t.Errorf("the report is\n%s\nwith %d items, want %d", rep, rep.Items, len(p.want))
	}
	if _, err := p.disk.Stat("spool/damaged"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a repair of what is whole kept something: %v", err)
	}
}

// Any octet of the journal may be another.
func TestDoctorFlips(t *testing.T) {
	p := newPatient(t)
	n, heads := 12, 8
	if ci() {
		n, heads = 80, 48
	}
	if soak() {
		n = 3000
	}
	lost := 0
	for _, seg := range slices.Sorted(maps.Keys(p.files)) {
		size := len(p.files[seg])
		at := rand.Perm(48)[:heads] // headers, the file's and the first record's
		for range n {
			at = append(at, rand.IntN(size))
		}
		for _, i := range at {
			bit := byte(1) << rand.IntN(8)
			d := p.damage(t, seg, func(b []byte) []byte { b[i] ^= bit; return b })
			rep := p.treat(t, d, &blow{seg, int64(i), 1}, fmt.Sprintf("%s, octet %d xor %#x", seg, i, bit))
			lost += rep.Lost
			if len(rep.Findings) == 0 {
				t.Errorf("%s, octet %d: nobody noticed", seg, i)
			}
		}
	}
	if lost == 0 {
		t.Error("nothing was ever lost: the test proves too little")
	}
}

// A segment may end anywhere.
func TestDoctorTruncation(t *testing.T) {
	p := newPatient(t)
	n := 10
	if ci() {
		n = 80
	}
	for _, seg := range slices.Sorted(maps.Keys(p.files)) {
		size := len(p.files[seg])
		for i := range n {
			at := rand.IntN(size)
			if i < 4 {
				at = []int{0, 7, 20, 21}[i]
			}
			for off := int64(20); off <= int64(at); off += recordLen(p.files[seg], off) {
				if off == int64(at) {
					at-- // a segment that ends between two records looks whole
				}
			}
			d := p.damage(t, seg, func(b []byte) []byte { return b[:at] })
			p.treat(t, d, &blow{seg, int64(at), int64(size)}, fmt.Sprintf("%s, cut at %d of %d", seg, at, size))
		}
	}
}

// Stretches of a segment are overwritten, as a stray write would.
func TestDoctorGarbage(t *testing.T) {
	p := newPatient(t)
	n := 10
	if ci() {
		n = 80
	}
	for _, seg := range slices.Sorted(maps.Keys(p.files)) {
		size := len(p.files[seg])
		for i := range n {
			at, length := rand.IntN(size), 1+rand.IntN(20_000)
			length = min(length, size-at)
			d := p.damage(t, seg, func(b []byte) []byte {
				for j := range b[at : at+length] {
					b[at+j] = byte(rand.Uint32()) * byte(i%2) // zeros, too
				}
				return b
			})
			p.treat(t, d, &blow{seg, int64(at), int64(max(length, 2))}, fmt.Sprintf("%s, %d octets of garbage at %d", seg, length, at))
		}
	}
}

func TestDoctorMissingSegment(t *testing.T) {
	p := newPatient(t)
	names := slices.Sorted(maps.Keys(p.files))
	for i, seg := range names {
		d := p.disk.Crash(1)
		if err := d.Remove("spool/" + seg); err != nil {
			t.Fatal(err)
		}
		rep := p.treat(t, d, &blow{seg: seg}, seg+" is missing")
		between := i > 0 && i < len(names)-1
		if got := slices.ContainsFunc(rep.Findings, func(f Finding) bool { return f.Kind == KindSegment && f.File == seg }); got != between {
			t.Errorf("%s of %v: the report is\n%s", seg, names, rep)
		}
	}
	// All of them.
	d := p.disk.Crash(1)
	bodies := len(must(d.ReadDir("spool/bodies")))
	if bodies == 0 {
		t.Fatal("no bodies")
	}
	for _, seg := range names {
		if err := d.Remove("spool/" + seg); err != nil {
			t.Fatal(err)
		}
	}
	rep, err := Doctor(ctx, "spool", DoctorOptions{fs: d, Repair: true})
	if err != nil || rep.Damages != bodies || len(must(d.ReadDir("spool/"+rep.Saved+"/bodies"))) != bodies {
		t.Errorf("without a journal: %v\n%s", err, rep)
	}
	mustOpen(t, "spool", &Options{fs: d, Logger: quiet()})
}

// A body that is gone, short or rotten costs its message, and nothing else.
func TestDoctorBodies(t *testing.T) {
	p := newPatient(t)
	list := must(p.disk.ReadDir("spool/bodies"))
	if len(list) == 0 {
		t.Fatal("no bodies")
	}
	for _, e := range list {
		name := "spool/bodies/" + e.Name()
		for what, harm := range map[string]func(d *durabletest.Disk){
			"gone": func(d *durabletest.Disk) { d.Remove(name) },
			"short": func(d *durabletest.Disk) {
				b := must(durable.ReadFile(d, name, 1<<30))
				overwrite(t, d, name, b[:len(b)-1])
			},
			"rotten": func(d *durabletest.Disk) {
				b := must(durable.ReadFile(d, name, 1<<30))
				b[100] ^= 1
				overwrite(t, d, name, b)
			},
		} {
			d := p.disk.Crash(1)
			harm(d)
			rep := p.treat(t, d, &blow{seg: e.Name(), length: 1}, e.Name()+" is "+what)
			if rep.Lost != 1 || rep.Damages != 1 {
				t.Errorf("%s is %s: the report is\n%s", e.Name(), what, rep)
			}
			if _, err := d.Stat("spool/" + rep.Saved + "/bodies/" + e.Name()); (err == nil) != (what != "gone") {
				t.Errorf("%s is %s: what is kept of it: %v", e.Name(), what, err)
			}
			if _, err := d.Stat("spool/" + rep.Saved + "/report.txt"); err != nil {
				t.Error(err)
			}
		}
	}
}

// What is lost is told with its envelope, as far as it goes.
func TestDoctorTells(t *testing.T) {
	d := new(durabletest.Disk)
	o := &Options{fs: d, InlineMax: 100, Logger: quiet()}
	s := mustOpen(t, "spool", o)
	mustPut(t, s, newMessage("a-l", "x: ann bob", "y: cid"))
	mustPut(t, s, newMessage("b-s", "x: ann"))
	for _, l := range mustLease(t, s, 3) {
		if l.Envelope.ID == "a-l" && l.Route == "y" {
			mustSettle(t, s, l, 1) // delivered
		}
	}
	s.Close()
	if err := d.Remove("spool/bodies/0000000000000001"); err != nil {
		t.Fatal(err)
	}
	var heard []Finding
	rep, err := Doctor(ctx, "spool", DoctorOptions{fs: d, Found: func(f Finding) { heard = append(heard, f) }, MaxFindings: 1})
	if err != nil || rep.Lost != 1 || rep.Messages != 1 || len(rep.Findings) != 1 || rep.Omitted != 1 || len(heard) != 2 {
		t.Fatalf("%v, %d heard\n%s", err, len(heard), rep)
	}
	f := heard[1]
	if f.Severity != Missing || f.Message != "a-l" || f.Envelope.From.String() != "sender@example.org" || len(f.Envelope.Recipients) != 2 {
		t.Errorf("found %s", f)
	}
	if line := f.String(); !strings.Contains(line, `message "a-l" from "sender@example.org" to "ann@x" "bob@x" [left out`) {
		t.Errorf("the line is %s", line)
	}
}

// A repair may be interrupted anywhere, and the next one finishes it.
func TestDoctorCrash(t *testing.T) {
	p := newPatient(t)
	names := slices.Sorted(maps.Keys(p.files))
	step, seeds := 9, uint64(3)
	if ci() {
		step, seeds = 1, 6
	}
	body := must(p.disk.ReadDir("spool/bodies"))[0].Name()
	for _, hurt := range []int{0, len(names) - 2, len(names) - 1} {
		seg := names[hurt]
		at := int64(len(p.files[seg]) / 2)
		for n := 1 + rand.IntN(step); ; n += step {
			d := p.damage(t, seg, func(b []byte) []byte { clear(b[at : at+50]); return b })
			if err := d.Remove("spool/bodies/" + body); err != nil {
				t.Fatal(err)
			}
			if err := d.SyncDir("spool/bodies"); err != nil {
				t.Fatal(err)
			}
			d.CutAt(d.Ops() + n)
			if _, err := Doctor(ctx, "spool", DoctorOptions{fs: d, Repair: true}); err == nil && !d.WasCut() {
				break
			}
			for seed := range seeds {
				what := fmt.Sprintf("%s damaged, power cut at operation %d, seed %d", seg, n, seed)
				c := d.Crash(seed)
				rep, err := Doctor(ctx, "spool", DoctorOptions{fs: c, Repair: true})
				if err != nil {
					t.Fatalf("%s: %v\n%s", what, err, rep)
				}
				kept := false
				for _, e := range must(c.ReadDir("spool/damaged")) {
					b, err := durable.ReadFile(c, "spool/damaged/"+e.Name()+"/"+seg, 1<<30)
					kept = kept || err == nil && bytes.Equal(b[:at], p.files[seg][:at]) && len(b) == len(p.files[seg])
				}
				if !kept {
					t.Fatalf("%s: what was damaged is not kept", what)
				}
				b := &blow{seg, at, 50}
				s, err := Open("spool", &Options{fs: c, SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()})
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				got := actual(t, s)
				s.Close()
				for k := range p.want {
					m := p.chart.messages[mailspine.MsgID(k[:strings.Index(k, "/")])]
					if got[k] == "" && !b.touches(p, m.seg.name(), m.offset) && fmt.Sprintf("%016x", m.body.file) != body {
						t.Fatalf("%s: %s was not touched, and is not there", what, k)
					}
				}
			}
		}
	}
}

// Whatever call fails, nothing is lost by it.
func TestDoctorFaults(t *testing.T) {
	p := newPatient(t)
	seg := slices.Sorted(maps.Keys(p.files))[0]
	step := 23
	if ci() {
		step = 3
	}
	for way, fault := range map[string]error{"ENOSPC": noSpace, "EIO": ioError} {
		for n := 1 + rand.IntN(step); ; n += step {
			d := p.damage(t, seg, func(b []byte) []byte { clear(b[1000:1050]); return b })
			f := &durabletest.Faults{FS: d}
			f.Set(durabletest.Nth("", n, fault))
			_, err := Doctor(ctx, "spool", DoctorOptions{fs: f, Repair: true})
			if f.Calls("") < n {
				break
			}
			rep, err2 := Doctor(ctx, "spool", DoctorOptions{fs: d, Repair: true})
			if err2 != nil {
				t.Fatalf("%s at call %d: %v, then %v\n%s", way, n, err, err2, rep)
			}
			s, err := Open("spool", &Options{fs: d, SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()})
			if err != nil {
				t.Fatalf("%s at call %d: %v", way, n, err)
			}
			got := actual(t, s)
			s.Close()
			b := &blow{seg, 1000, 50}
			for k := range p.want {
				m := p.chart.messages[mailspine.MsgID(k[:strings.Index(k, "/")])]
				if got[k] == "" && !b.touches(p, m.seg.name(), m.offset) {
					t.Fatalf("%s at call %d: %s was not touched, and is not there\n%s", way, n, k, rep)
				}
			}
		}
	}
}

func TestDoctorRefuses(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	_, err := Doctor(ctx, dir, DoctorOptions{Repair: true})
	var le *durable.LockedError
	if !errors.As(err, &le) || le.PID != os.Getpid() || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a store that is open: %v", err)
	}
	s.Close()
	if rep, err := Doctor(ctx, dir, DoctorOptions{Repair: true}); err != nil || !rep.OK() {
		t.Errorf("a new store: %v\n%s", err, rep)
	}
	if _, err := Doctor(ctx, dir+"/none", DoctorOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := os.Stat(dir + "/none"); err == nil {
		t.Error("looking made a directory")
	}
	l, err := durable.CreateLog(nil, dir+"/"+segmentName(2), durable.LogOptions{Magic: magic, Version: formatVersion + 1})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	var ve *durable.VersionError
	if _, err := Doctor(ctx, dir, DoctorOptions{Repair: true}); !errors.As(err, &ve) {
		t.Errorf("a store of a newer program: %v", err)
	}
}

// A spool that an older program left is repaired too.
func TestDoctorVersion1(t *testing.T) {
	dir := version1(t)
	rep, err := Doctor(ctx, dir, DoctorOptions{})
	if err != nil || !rep.OK() || rep.Items != 4 {
		t.Fatalf("%v\n%s", err, rep)
	}
	name := dir + "/" + segmentName(1)
	b := must(os.ReadFile(name))
	b[3] ^= 1 // its header says no version any more
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, &Options{Logger: quiet()}); err == nil {
		t.Fatal("it is damaged, and opened")
	}
	rep, err = Doctor(ctx, dir, DoctorOptions{Repair: true})
	if err != nil || rep.Lost != 0 || rep.Damages != 1 {
		t.Fatalf("%v\n%s", err, rep)
	}
	want := map[string]string{"two-s/y": "cid #1", "two-s/z": "dan #0", "held-s/x": "eve #0", "large-m/x": "fay #0"}
	if got := actual(t, mustOpen(t, dir, &Options{Logger: quiet()})); !maps.Equal(got, want) {
		t.Errorf("the store has\n%v\nit should have\n%v", show(got), show(want))
	}
}

// What a power cut leaves is no damage, wherever it comes, and nothing is lost by it.
func TestDoctorAfterPowerCut(t *testing.T) {
	looked, step := 0, 0
	if !ci() {
		step = 29
	}
	queuetest.RunPowerCut(t, queuetest.PowerCut[*durabletest.Disk]{
		Step: step,
		New:  func() *durabletest.Disk { return new(durabletest.Disk) },
		Open: func(d *durabletest.Disk) (queue.Store, error) {
			rep, err := Doctor(ctx, "spool", DoctorOptions{fs: d})
			switch {
			case errors.Is(err, fs.ErrNotExist) || d.WasCut():
			case err != nil || !rep.OK():
				return nil, fmt.Errorf("%w\n%s", err, rep)
			default:
				looked++
			}
			s, err := Open("spool", small(d))
			if err == nil && rep.Segments > 0 {
				if st := must(s.Stats(ctx)); st.Messages != rep.Messages || st.Items != rep.Items || st.Bytes != rep.Bytes {
					return nil, fmt.Errorf("the store has %+v, and the report says\n%s", st, rep)
				}
			}
			if err != nil {
				return nil, err
			}
			return s, nil
		},
	})
	if looked < 10 {
		t.Errorf("%d looks only", looked)
	}
}

// Whatever is in a segment, a doctor makes a store of it.
func FuzzDoctor(f *testing.F) {
	p := newPatient(f)
	for _, b := range p.files {
		f.Add(b[:min(len(b), 30_000)], 3000, []byte("x"))
		f.Add(b[max(len(b)-20_000, 0):], 0, []byte{})
	}
	f.Add([]byte(magic), 0, []byte{})
	f.Fuzz(func(t *testing.T, b []byte, at int, put []byte) {
		d := new(durabletest.Disk)
		if err := durable.MkdirAll(d, "spool", 0o700); err != nil {
			t.Fatal(err)
		}
		b = bytes.Clone(b)
		if at >= 0 && at < len(b) {
			copy(b[at:], put)
		}
		overwrite(t, d, "spool/"+segmentName(1), b)
		rep, err := Doctor(ctx, "spool", DoctorOptions{fs: d, Repair: true})
		var ve *durable.VersionError
		if errors.As(err, &ve) {
			return
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, rep)
		}
		s, err := Open("spool", &Options{fs: d, Logger: quiet()})
		if err != nil {
			t.Fatalf("%v\n%s", err, rep)
		}
		defer s.Close()
		if st := must(s.Stats(ctx)); st.Messages != rep.Messages || st.Items != rep.Items || st.Bytes != rep.Bytes {
			t.Fatalf("the store has %+v, and the report\n%s", st, rep)
		}
	})
}

// Nor does it matter what a record says whose checksum is right.
func FuzzDoctorRecords(f *testing.F) {
	d, _ := filled(f)
	n := 0
	for _, name := range segments(f, d) {
		var last []byte
		err := durable.Salvage(d, name, durable.LogOptions{Magic: magic, Version: formatVersion}, func(p *durable.Piece) error {
			if n++; p.Whole && n%5 == 0 {
				f.Add(last, p.Meta, must(p.Body()))
			}
			last = bytes.Clone(p.Meta)
			return nil
		})
		if err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, a, b, body []byte) {
		d := new(durabletest.Disk)
		if err := durable.MkdirAll(d, "spool", 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := durable.CreateLog(d, "spool/"+segmentName(1), durable.LogOptions{Magic: magic, Version: formatVersion},
			durable.Record{Meta: a, Body: body}, durable.Record{Meta: b, Body: body}, durable.Record{Meta: a})
		if err != nil {
			t.Skip("a log needs records of a size that it takes: ", err)
		}
		l.Close()
		rep, err := Doctor(ctx, "spool", DoctorOptions{fs: d, Repair: true})
		if err != nil {
			t.Fatalf("%v\n%s", err, rep)
		}
		s, err := Open("spool", &Options{fs: d, Logger: quiet()})
		if err != nil {
			t.Fatalf("%v\n%s", err, rep)
		}
		defer s.Close()
		for it, err := range s.List(ctx, queue.Filter{}) {
			if err != nil {
				t.Fatalf("List: %v\n%s", err, rep)
			}
			r, err := s.Open(ctx, it.Message)
			if err != nil {
				t.Fatalf("Open: %v\n%s", err, rep)
			}
			r.Close()
		}
	})
}
