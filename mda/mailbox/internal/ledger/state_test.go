package ledger

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mailspine/mailspine/mda/mailbox"
	"pgregory.net/rapid"
)

// ops has one of each kind, in an order in which they can be applied.
func ops() Entry {
	h := hashOf("x")
	return Entry{
		{Kind: KindCounters, Box: 7, Validity: 1000},
		{Kind: KindMake, Box: 7, Name: "INBOX", Validity: 1001},
		{Kind: KindMake, Box: 8, Name: "Sent/2026", Use: mailbox.UseSent, Validity: 1002},
		{Kind: KindAdd, Box: 7, UIDs: []mailbox.UID{3}, ModSeq: 2, Flags: [][]mailbox.Flag{{mailbox.Seen, "tag"}}, Date: 12345, Size: 99, Key: "k1", EmailID: "e1", Delivery: h},
		{Kind: KindAdd, Box: 7, UIDs: []mailbox.UID{4}, ModSeq: 3, Flags: [][]mailbox.Flag{nil}, Size: 1, Key: "k2", EmailID: "e2"},
		{Kind: KindAdd, Box: 8, UIDs: []mailbox.UID{1}, ModSeq: 2, Flags: [][]mailbox.Flag{nil}, Size: 1, Key: "k3", EmailID: "e1"},
		{Kind: KindFlags, Box: 7, ModSeq: 5, UIDs: []mailbox.UID{3, 4}, Flags: [][]mailbox.Flag{nil, {mailbox.Deleted, "x", "y"}}},
		{Kind: KindExpunge, Box: 7, ModSeq: 6, UIDs: []mailbox.UID{4}},
		{Kind: KindTombs, Box: 7, ModSeq: 6, UIDs: []mailbox.UID{1, 2}},
		{Kind: KindCounts, Box: 7, UIDs: []mailbox.UID{10}, ModSeq: 9, Floor: 1},
		{Kind: KindRename, Box: 8, Name: "Out"},
		{Kind: KindSubscribe, Name: "Out", On: true},
		{Kind: KindSubscribe, Name: "Nowhere", On: true},
		{Kind: KindSubscribe, Name: "Nowhere"},
		{Kind: KindLimit, Size: 1000, Date: 10},
		{Kind: KindDelivery, Box: 8, UIDs: []mailbox.UID{1}, Delivery: h},
		{Kind: KindMake, Box: 9, Name: "Gone", Validity: 1003},
		{Kind: KindDrop, Box: 9},
	}
}

// view is what a state tells, so that two can be compared.
func view(s *State) any {
	type tombs struct {
		At   mailbox.ModSeq
		UIDs []mailbox.UID
	}
	type boxView struct {
		Info  mailbox.Info
		Floor mailbox.ModSeq
		Msgs  []mailbox.MessageInfo
		Keys  []string
		Tombs []tombs
	}
	v := struct {
		NextBox  uint64
		Validity uint32
		Boxes    []boxView
		Subs     map[string]struct{}
		Limit    mailbox.QuotaLimit
		Limited  bool
		Bytes    int64
		Messages int64
		Order    []Hash
		UIDs     []map[uint64]mailbox.UID
	}{NextBox: s.nextBox, Validity: s.validity, Subs: s.subs, Limit: s.limit, Limited: s.limited, Bytes: s.bytes, Messages: s.messages}
	for _, b := range s.Boxes() {
		bv := boxView{Info: s.info(b), Floor: b.floor}
		for _, m := range b.msgs {
			bv.Msgs = append(bv.Msgs, m.info())
			bv.Keys = append(bv.Keys, m.Key)
		}
		for _, t := range b.tombs {
			bv.Tombs = append(bv.Tombs, tombs{t.modseq, t.uids})
		}
		v.Boxes = append(v.Boxes, bv)
	}
	for _, d := range s.order {
		v.Order = append(v.Order, d.hash)
		v.UIDs = append(v.UIDs, d.uids)
	}
	return v
}

func TestEntryRoundTrip(t *testing.T) {
	e := ops()
	got, err := Decode(e.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e, got); diff != "" {
		t.Errorf("through the log (-was +is):\n%s", diff)
	}
	s := NewState(100)
	if _, err := s.Apply(got); err != nil {
		t.Fatal(err)
	}
	b := s.Box("INBOX")
	if b.next != 10 || b.modseq != 9 || len(b.msgs) != 1 || b.unseen != 1 || s.bytes != 100 || s.messages != 2 || s.Box("Out") == nil || s.Box("Gone") != nil {
		t.Errorf("%+v", view(s))
	}
}

// Each octet of an entry that is cut off or changed is noticed, or gives another valid entry; none
// makes trouble.
func TestDecodeDamaged(t *testing.T) {
	raw := ops().Append(nil)
	for i := range raw {
		if e, err := Decode(raw[:i]); err == nil {
			if again := e.Append(nil); !slices.Equal(again, raw[:i]) {
				t.Errorf("cut at %d it becomes another entry", i)
			}
		} else if !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut at %d: %v", i, err)
		}
		for _, x := range []byte{1, 0x80, 0xff} {
			bad := slices.Clone(raw)
			bad[i] ^= x
			if e, err := Decode(bad); err == nil {
				NewState(100).Apply(e)
			}
		}
	}
	if _, err := Decode(append([]byte{formatVersion + 1}, raw[1:]...)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a newer version: %v", err)
	}
}

func TestApplyRefuses(t *testing.T) {
	for name, op := range map[string]Op{
		"no mailbox":        {Kind: KindExpunge, Box: 99, ModSeq: 99, UIDs: []mailbox.UID{1}},
		"name twice":        {Kind: KindMake, Box: 20, Name: "INBOX", Validity: 2000},
		"number twice":      {Kind: KindMake, Box: 7, Name: "X", Validity: 2000},
		"no validity":       {Kind: KindMake, Box: 20, Name: "X"},
		"unclean name":      {Kind: KindMake, Box: 20, Name: "../x", Validity: 2000},
		"use twice":         {Kind: KindMake, Box: 20, Name: "X", Use: mailbox.UseSent, Validity: 2000},
		"unknown use":       {Kind: KindMake, Box: 20, Name: "X", Use: "sent", Validity: 2000},
		"rename to a name":  {Kind: KindRename, Box: 8, Name: "INBOX"},
		"old UID":           {Kind: KindAdd, Box: 7, UIDs: []mailbox.UID{9}, ModSeq: 20, Flags: [][]mailbox.Flag{nil}, Key: "k"},
		"last UID":          {Kind: KindAdd, Box: 7, UIDs: []mailbox.UID{1<<32 - 1}, ModSeq: 20, Flags: [][]mailbox.Flag{nil}, Key: "k"},
		"no key":            {Kind: KindAdd, Box: 7, UIDs: []mailbox.UID{20}, ModSeq: 20, Flags: [][]mailbox.Flag{nil}},
		"old ModSeq":        {Kind: KindFlags, Box: 7, ModSeq: 9, UIDs: []mailbox.UID{3}, Flags: [][]mailbox.Flag{nil}},
		"flags of nothing":  {Kind: KindFlags, Box: 7, ModSeq: 20, UIDs: []mailbox.UID{4}, Flags: [][]mailbox.Flag{nil}},
		"expunge twice":     {Kind: KindExpunge, Box: 7, ModSeq: 20, UIDs: []mailbox.UID{4}},
		"expunge too early": {Kind: KindExpunge, Box: 7, ModSeq: 9, UIDs: []mailbox.UID{3}},
		"tombs in disorder": {Kind: KindTombs, Box: 7, ModSeq: 1, UIDs: []mailbox.UID{1}},
		"unclean subscribe": {Kind: KindSubscribe, Name: "inbox", On: true},
		"unknown kind":      {Kind: 99, Box: 7},
	} {
		s := NewState(100)
		if _, err := s.Apply(ops()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(Entry{op}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSnapshot(t *testing.T) {
	s := NewState(100)
	if _, err := s.Apply(ops()); err != nil {
		t.Fatal(err)
	}
	copied := NewState(100)
	for e := range s.Snapshot {
		d, err := Decode(e.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := copied.Apply(d); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(view(s), view(copied)); diff != "" {
		t.Errorf("the snapshot makes another state (-was +is):\n%s", diff)
	}
	for range s.Snapshot { // stopping early is fine
		break
	}
}

func TestTombstones(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		max := rapid.IntRange(1, 20).Draw(t, "max")
		s := NewState(max)
		s.Apply(Entry{{Kind: KindMake, Box: 1, Name: "INBOX", Validity: 1}})
		b := s.Box("INBOX")
		at := mailbox.ModSeq(1)
		gone := map[mailbox.UID]mailbox.ModSeq{}
		for range rapid.IntRange(1, 15).Draw(t, "steps") {
			var uids []mailbox.UID
			for range rapid.IntRange(1, 8).Draw(t, "n") {
				u := b.next
				at++
				if _, err := s.Apply(Entry{{Kind: KindAdd, Box: 1, UIDs: []mailbox.UID{u}, ModSeq: at, Flags: [][]mailbox.Flag{nil}, Key: "k"}}); err != nil {
					t.Fatal(err)
				}
				uids = append(uids, u)
			}
			at++
			if _, err := s.Apply(Entry{{Kind: KindExpunge, Box: 1, ModSeq: at, UIDs: uids}}); err != nil {
				t.Fatal(err)
			}
			for _, u := range uids {
				gone[u] = at
			}
			if b.buried > max || b.buried < 0 {
				t.Fatalf("%d tombstones, at most %d", b.buried, max)
			}
			// Everything after floor is known.
			known := map[mailbox.UID]bool{}
			for _, x := range b.tombs {
				for _, u := range x.uids {
					known[u] = true
				}
			}
			for u, m := range gone {
				if m > b.floor && !known[u] {
					t.Fatalf("UID %d went at %d, after the floor %d, and is not known", u, m, b.floor)
				}
			}
		}
	})
}

func TestDeliveriesAreBounded(t *testing.T) {
	s := NewState(1)
	var first, last Hash
	for i := range mailbox.MaxDeliveries + 1 {
		last = hashOf(strings.Repeat("i", i+1))
		if i == 0 {
			first = last
		}
		s.remember(last, 1, 1)
	}
	if _, ok := s.remembered(first, 1); ok {
		t.Error("the oldest delivery is not forgotten")
	}
	if _, ok := s.remembered(last, 1); !ok {
		t.Error("the newest delivery is forgotten")
	}
	if len(s.deliveries) != mailbox.MaxDeliveries || len(s.order) != mailbox.MaxDeliveries {
		t.Errorf("%d and %d are remembered", len(s.deliveries), len(s.order))
	}
	if _, ok := s.remembered(Hash{}, 1); ok {
		t.Error("no delivery is remembered")
	}
}

func TestNextValidity(t *testing.T) {
	s := NewState(1)
	now := time.Unix(1_800_000_000, 0)
	if v := s.NextValidity(now); v != 1_800_000_000 {
		t.Errorf("%d", v)
	}
	s.validity = 1_900_000_000
	if v := s.NextValidity(now); v != 1_900_000_001 {
		t.Errorf("%d after the clock went back", v)
	}
}

func TestOrigin(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for i := range 256 {
		h := Hash{byte(i), 1}
		key := newKey(now, 7, h.origin())
		if got, mark := Origin(key); got != h || mark != "" {
			t.Errorf("%s is of delivery %x, copy of %q", key, got, mark)
		}
		copied := newKey(now, 7, CopyMark(key))
		if got, mark := Origin(copied); got != (Hash{}) || mark != CopyMark(key) {
			t.Errorf("%s is of delivery %x, copy of %q", copied, got, mark)
		}
	}
	for _, key := range []string{newKey(now, 7, ""), "", "1500000000.a.host", "1.2.x12,S=3", "1.2.x" + strings.Repeat("g", 16), "1.2." + strings.Repeat("0", 33), "a.b.c.d"} {
		if got, mark := Origin(key); got != (Hash{}) || mark != "" {
			t.Errorf("%s is of delivery %x, copy of %q", key, got, mark)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(ops().Append(nil))
	for _, o := range ops() {
		f.Add(Entry{o}.Append(nil))
	}
	f.Add([]byte{})
	f.Add([]byte{1, byte(KindExpunge), 7, 0xff, 0xff, 0xff, 0xff, 0x0f, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := Decode(e.Append(nil))
		if err != nil || !reflect.DeepEqual(e, again) {
			t.Fatalf("%+v becomes %+v (%v)", e, again, err)
		}
		for _, s := range []*State{NewState(10), NewState(10)} {
			s.Apply(Entry{{Kind: KindMake, Box: 7, Name: "INBOX", Validity: 1}})
			if _, err := s.Apply(e); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		}
	})
}
