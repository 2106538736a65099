package durable_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

var journalOptions = durable.LogOptions{Magic: "MStestjr", Version: 1}

// openJournal returns the journal and what it has.
func openJournal(fsys durable.FS) (j *durable.Journal, recs []string, err error) {
	j, err = durable.OpenJournal(fsys, "dir", "t-", journalOptions, func(_ durable.Location, meta []byte) error {
		recs = append(recs, string(meta))
		return nil
	})
	return j, recs, err
}

// Whenever the power goes, a journal has what was appended since it was replaced, or before.
func TestJournalPowerCut(t *testing.T) {
	// work returns what must be there, and what may be there as well.
	work := func(fsys durable.FS) (sure []string, maybe []string) {
		j, _, err := openJournal(fsys)
		if err != nil {
			return nil, nil
		}
		defer j.Close()
		for i := range 9 {
			rec := fmt.Sprint("record ", i)
			if _, err := j.Append(durable.Record{Meta: []byte(rec)}); err != nil {
				return sure, append(slices.Clone(sure), rec)
			}
			sure = append(sure, rec)
			if i%3 == 2 { // the last one alone stays
				next := sure[len(sure)-1:]
				if err := j.Replace([]durable.Record{{Meta: []byte(rec)}}); err != nil {
					return sure, next
				}
				sure = slices.Clone(next)
			}
		}
		return sure, nil
	}
	whole := &durabletest.Disk{}
	if sure, _ := work(whole); len(sure) != 1 {
		t.Fatal(sure)
	}
	for n := 1; n <= whole.Ops(); n++ {
		disk := &durabletest.Disk{}
		disk.CutAt(n)
		sure, maybe := work(disk)
		for seed := range uint64(6) {
			j, got, err := openJournal(disk.Crash(seed))
			if err != nil {
				t.Fatalf("cut at %d, seed %d: %v", n, seed, err)
			}
			if !slices.Equal(got, sure) && !slices.Equal(got, maybe) {
				t.Errorf("cut at %d, seed %d: %q, not %q or %q", n, seed, got, sure, maybe)
			}
			j.Close()
		}
	}
}

func TestJournal(t *testing.T) {
	disk := &durabletest.Disk{}
	j, _, err := openJournal(disk)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := openJournal(disk); err == nil {
		t.Error("two have it open")
	}
	if err := j.Replace([]durable.Record{{Meta: []byte("a")}}); err != nil || j.Number() != 2 {
		t.Errorf("number %d, %v", j.Number(), err)
	}
	if err := errors.Join(j.Close(), j.Close()); err != nil {
		t.Error(err)
	}
	if _, err := j.Append(durable.Record{Meta: []byte("b")}); err == nil {
		t.Error("Append after Close")
	}
	if err := j.Replace(nil); err == nil {
		t.Error("Replace after Close")
	}
	list, err := disk.ReadDir("dir")
	if err != nil || len(list) != 2 || list[1].Name() != durable.JournalName("t-", 2) {
		t.Errorf("%v, %v", list, err)
	}
	wrong := errors.New("wrong")
	if _, err := durable.OpenJournal(disk, "dir", "t-", journalOptions, func(durable.Location, []byte) error { return wrong }); !errors.Is(err, wrong) {
		t.Error(err)
	}
	if _, got, err := openJournal(disk); err != nil || len(got) != 1 || got[0] != "a" {
		t.Errorf("%q, %v", got, err)
	}
}
