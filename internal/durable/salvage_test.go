package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

type piece struct {
	durable.Piece
	meta, body string
}

// salvage returns the pieces, which cover the file.
func salvage(t testing.TB, fsys durable.FS, name string) []piece {
	t.Helper()
	var list []piece
	end := int64(0)
	err := durable.Salvage(fsys, name, testLog, func(p *durable.Piece) error {
		if p.Offset != end || p.Length <= 0 {
			t.Fatalf("a piece at %d of %d octets, and the last ended at %d", p.Offset, p.Length, end)
		}
		end += p.Length
		q := piece{Piece: *p, meta: string(p.Meta)}
		switch {
		case p.Whole:
			b, err := p.Body()
			if err != nil || len(b) != p.BodyLen || len(p.Meta) != p.MetaLen || p.Batch > p.Offset || p.Batch < 20 {
				t.Fatalf("the record at %d has %d and %d octets, batch %d: %v", p.Offset, len(p.Meta), len(b), p.Batch, err)
			}
			q.body = string(b)
		case (p.Damage == "") != (p.Offset == 0 && p.Length == 20) && p.Damage == "":
			t.Fatalf("the piece at %d is neither whole nor damaged", p.Offset)
		}
		list = append(list, q)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if size := int64(len(readFile(t, fsys, name))); end != size {
		t.Fatalf("the pieces end at %d of %d", end, size)
	}
	return list
}

// damaged makes a log of records and writes b over it at an offset; records are returned with their places.
func logOf(t testing.TB, fsys durable.FS, name string, n int) []durable.Location {
	t.Helper()
	l := create(t, fsys, name)
	defer l.Close()
	var locs []durable.Location
	for i := range n {
		locs = append(locs, appendOne(t, l, fmt.Sprintf("meta%d", i), strings.Repeat(fmt.Sprint("body", i), i*7%50)))
	}
	return locs
}

// Whatever is overwritten, all other records are found, with what they had.
func TestSalvage(t *testing.T) {
	d := new(durabletest.Disk)
	const n = 40
	locs := logOf(t, d, "log", n)
	whole := readFile(t, d, "log")
	list := salvage(t, d, "log")
	if len(list) != n+1 || list[0].Damage != "" {
		t.Fatalf("a whole log has %d pieces, the first %q", len(list), list[0].Damage)
	}
	rounds := 2000
	if testing.Short() {
		rounds = 300
	}
	for round := range rounds {
		b := bytes.Clone(whole)
		at := rand.IntN(len(b))
		length := 1 + rand.IntN(60)
		if round%3 == 0 {
			length = 1
		}
		length = min(length, len(b)-at)
		for i := range length {
			b[at+i] ^= byte(1 + rand.IntN(255))
		}
		place(t, d, "log", b)
		got := map[int64]piece{}
		damages := 0
		for _, p := range salvage(t, d, "log") {
			if p.Whole {
				got[p.Offset] = p
			}
			if p.Damage != "" {
				damages++
			}
		}
		if damages == 0 {
			t.Fatalf("%d octets at %d are others, and nobody says so", length, at)
		}
		for i, loc := range locs {
			end := loc.Offset + loc.Size()
			hit := int64(at) < end && loc.Offset < int64(at+length)
			p, ok := got[loc.Offset]
			switch {
			case !hit && (!ok || p.Damage != "" || p.meta != fmt.Sprint("meta", i) || p.body != strings.Repeat(fmt.Sprint("body", i), i*7%50)):
				t.Fatalf("%d octets at %d are others; record %d at %d is %+v", length, at, i, loc.Offset, p)
			case hit && ok && (p.Damage == "" || p.meta != fmt.Sprint("meta", i)):
				t.Fatalf("%d octets at %d are others; record %d at %d passes for whole", length, at, i, loc.Offset)
			}
		}
		if len(got) > n {
			t.Fatalf("%d records of %d", len(got), n)
		}
	}
}

func TestSalvageEdges(t *testing.T) {
	d := new(durabletest.Disk)
	locs := logOf(t, d, "log", 3)
	whole := readFile(t, d, "log")
	try := func(b []byte) []piece {
		t.Helper()
		place(t, d, "log", b)
		return salvage(t, d, "log")
	}
	if list := try(nil); len(list) != 0 {
		t.Errorf("an empty file: %+v", list)
	}
	if list := try(whole[:20]); len(list) != 1 || list[0].Damage != "" {
		t.Errorf("a log without records: %+v", list)
	}
	for _, n := range []int{1, 7, 19} {
		if list := try(whole[:n]); len(list) != 1 || list[0].Damage == "" {
			t.Errorf("%d octets: %+v", n, list)
		}
	}
	// The meta of what is no record is a hint.
	b := bytes.Clone(whole)
	b[locs[1].Offset+24] ^= 1
	if list := try(b); len(list) != 4 || list[2].Whole || list[2].meta != "leta1" || list[2].Length != locs[1].Size() {
		t.Errorf("a wrong octet in a meta: %+v", list)
	}
	// A large body is compared, too.
	l := create(t, d, "large")
	appendOne(t, l, "first", "x")
	loc := appendOne(t, l, "meta", strings.Repeat("y", 300_000))
	l.Close()
	b = readFile(t, d, "large")
	if list := salvage(t, d, "large"); len(list) != 3 || list[2].Damage != "" || len(list[2].body) != 300_000 {
		t.Errorf("a large body: %d pieces", len(list))
	}
	b[loc.Offset+200_000] ^= 1
	if list := try(b); len(list) != 3 || !list[2].Whole || list[2].Damage == "" || list[2].meta != "meta" {
		t.Errorf("a wrong octet in a large body: %d pieces", len(list))
	}
	// A newer version is no damage.
	l, err := durable.CreateLog(d, "new", durable.LogOptions{Magic: testLog.Magic, Version: testLog.Version + 1})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	var ve *durable.VersionError
	if err := durable.Salvage(d, "new", testLog, nil); !errors.As(err, &ve) {
		t.Errorf("a newer version: %v", err)
	}
	if err := durable.Salvage(d, "none", testLog, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	stop := errors.New("stop")
	if err := durable.Salvage(d, "log", testLog, func(*durable.Piece) error { return stop }); err != stop {
		t.Errorf("an error of f: %v", err)
	}
}

// If the marker is not known, it is that of the records, unless mail pretends to have some, too.
func TestSalvageMarker(t *testing.T) {
	forged := func(d durable.FS) []byte {
		l := create(t, d, "forged")
		defer l.Close()
		appendOne(t, l, "forged", "evil")
		appendOne(t, l, "forged", "evil")
		return readFile(t, d, "forged")[20:]
	}
	d := new(durabletest.Disk)
	l := create(t, d, "log")
	var locs []durable.Location
	for i := range 5 {
		body := []byte("harmless")
		if i == 1 || i == 3 {
			body = append([]byte("\r\n\r\n"), forged(d)...)
			if err := d.Remove("forged"); err != nil {
				t.Fatal(err)
			}
		}
		locs = append(locs, appendOne(t, l, fmt.Sprint("meta", i), string(body)))
	}
	l.Close()
	whole := readFile(t, d, "log")
	metas := func(zero ...durable.Location) (metas []string) {
		b := bytes.Clone(whole)
		for _, z := range zero {
			clear(b[z.Offset : z.Offset+int64(z.MetaLen)])
		}
		place(t, d, "log", b)
		for _, p := range salvage(t, d, "log") {
			if p.Whole {
				metas = append(metas, p.meta)
			}
		}
		return metas
	}
	check := func(what string, got []string, want ...string) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	header := durable.Location{Offset: 0, MetaLen: 20}
	check("no header", metas(header), "meta0", "meta1", "meta2", "meta3", "meta4")
	check("no first record", metas(durable.Location{Offset: 20, MetaLen: 24}), "meta1", "meta2", "meta3", "meta4")
	check("neither", metas(durable.Location{Offset: 0, MetaLen: 44}), "meta1", "meta2", "meta3", "meta4")
	// The header of the record around the forged ones is gone: with the marker they are
	// still what they are, without it nothing is believed.
	hurt := durable.Location{Offset: locs[1].Offset, MetaLen: 24}
	check("a body out in the open", metas(hurt), "meta0", "meta2", "meta3", "meta4")
	check("and no marker", metas(hurt, durable.Location{Offset: 0, MetaLen: 44}))
}

// Sectors that cannot be read are damage like any other.
func TestSalvageBadSector(t *testing.T) {
	d := new(durabletest.Disk)
	l := create(t, d, "log")
	var locs []durable.Location
	for i := range 40 {
		locs = append(locs, appendOne(t, l, fmt.Sprint("meta", i), strings.Repeat("x", 1000)))
	}
	l.Close()
	f := &badSector{FS: d, at: 4096, end: 8192}
	bad := 0
	got := map[int64]bool{}
	err := durable.Salvage(f, "log", testLog, func(p *durable.Piece) error {
		if p.Whole && p.Damage == "" {
			got[p.Offset] = true
		} else if p.Damage != "" {
			bad++
		}
		return nil
	})
	if err != nil || bad == 0 {
		t.Fatalf("%d pieces are damaged, %v", bad, err)
	}
	for i, loc := range locs {
		if hit := loc.Offset < 8192 && loc.Offset+loc.Size() > 4096; got[loc.Offset] == hit {
			t.Errorf("record %d at %d: read %v", i, loc.Offset, got[loc.Offset])
		}
	}
}

// badSector is a file system where some octets cannot be read.
type badSector struct {
	durable.FS
	at, end int64
}

func (b *badSector) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := b.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &badFile{f, b}, nil
}

type badFile struct {
	durable.File
	fs *badSector
}

func (b *badFile) ReadAt(p []byte, off int64) (int, error) {
	if off < b.fs.end && b.fs.at < off+int64(len(p)) {
		return 0, &fs.PathError{Op: "read", Path: "log", Err: syscall.EIO}
	}
	return b.File.ReadAt(p, off)
}

// Whatever the file has, it is covered, and what passes for whole is so.
func FuzzSalvage(f *testing.F) {
	d := new(durabletest.Disk)
	logOf(f, d, "log", 6)
	b := readFile(f, d, "log")
	f.Add(b, 0, []byte{})
	f.Add(b, 12, []byte{1})
	f.Add(b, 60, []byte{0, 0, 0, 0})
	f.Add(b, 0, make([]byte, 44))
	f.Add([]byte("TESTLOG\n"), 0, []byte{})
	f.Add(make([]byte, 100), 0, []byte{})
	f.Fuzz(func(t *testing.T, b []byte, at int, put []byte) {
		b = bytes.Clone(b)
		if at >= 0 && at < len(b) {
			copy(b[at:], put)
		}
		d := new(durabletest.Disk)
		place(t, d, "log", b)
		err := durable.Salvage(d, "log", testLog, func(*durable.Piece) error { return nil })
		var ve *durable.VersionError
		if errors.As(err, &ve) {
			return
		}
		var recs []durable.Record
		sound := true // as OpenLog sees it, too
		for _, p := range salvage(t, d, "log") {
			sound = sound && p.Damage == ""
			if p.Whole {
				recs = append(recs, durable.Record{Meta: []byte(p.meta), Body: []byte(p.body)})
			}
		}
		l, metas, err := tryOpen(d, "log", durable.LogOptions{Magic: testLog.Magic, Version: testLog.Version, Strict: true, VerifyBodies: true})
		if sound && len(b) > 0 && err != nil && !strings.Contains(err.Error(), "another batch") || err == nil && (!sound || len(metas) != len(recs)) {
			t.Fatalf("salvaged %d records, sound %v, and OpenLog has %d, %v", len(recs), sound, len(metas), err)
		}
		if err == nil {
			l.Close()
		}
		// What is whole makes a log.
		l, err = durable.CreateLog(d, "saved", testLog, recs...)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if l, metas = open(t, d, "saved"); len(metas) != len(recs) {
			t.Fatalf("%d records of %d", len(metas), len(recs))
		}
		l.Close()
	})
}
