package filequeue

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
)

// Messages whose IDs have the same hash are different messages everywhere.
func TestCollisions(t *testing.T) {
	d := new(durabletest.Disk)
	o := &Options{fs: d, SegmentSize: 1, Logger: quiet(), testHash: func(mailspine.MsgID) uint32 { return 7 }}
	s := mustOpen(t, "spool", o)
	want := map[string]string{}
	for i := range 30 {
		m := newMessage(mailspine.MsgID(fmt.Sprintf("m%d-%c", i, "sm"[i%2])), "x: ann", "y: bob")
		for range 2 { // the second is the same
			mustPut(t, s, m)
		}
		addTo(m)(want)
	}
	for _, l := range must(s.Lease(ctx, queue.LeaseRequest{Max: 10, Exclude: []queue.Route{"y"}})) {
		mustSettle(t, s, l, queue.Delivered)
		delete(want, key(l.Envelope.ID, "x"))
	}
	if n := must(s.Control(ctx, queue.Filter{ID: "m20-s"}, queue.Command{Op: queue.OpDelete})); n.Matched != 2 || n.Changed != 2 {
		t.Errorf("of one message were deleted %+v", n)
	}
	delete(want, "m20-s/x")
	delete(want, "m20-s/y")
	for range 2 {
		if got := actual(t, s); !maps.Equal(got, want) {
			t.Fatalf("the store has\n%v\nit should have\n%v", show(got), show(want))
		}
		if _, err := s.Open(ctx, "m20-s"); !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("Open of a message that was deleted: %v", err)
		}
		mustPut(t, s, newMessage("m20-s", "x: again")) // it has a tombstone
		for i := range 30 {
			id := mailspine.MsgID(fmt.Sprintf("m%d-%c", i, "sm"[i%2]))
			n := 0
			for it, err := range s.List(ctx, queue.Filter{ID: id}) {
				if err != nil || it.Message != id {
					t.Fatalf("List of %s: %s, %v", id, it.Message, err)
				}
				n++
			}
			if i != 20 && (n == 0 || n > 2) {
				t.Errorf("List of %s has %d items", id, n)
			}
		}
		for range len(s.segments) - 1 {
			if err := s.evacuate(s.segments[0]); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
		s = mustOpen(t, "spool", o)
	}
}

// A Put of an ID that is stored looks into the journal, and not while others wait: here it cannot read, and
// others go on.
func TestKnownReadsUnlocked(t *testing.T) {
	d := new(durabletest.Disk)
	f := &durabletest.Faults{FS: d}
	s := mustOpen(t, "spool", &Options{fs: f, Logger: quiet()})
	mustPut(t, s, newMessage("a-s", "x: ann"))
	stuck, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.Set(func(c durabletest.Call) error {
		if c.Op == durabletest.Read {
			once.Do(func() { close(stuck) })
			<-free
		}
		return nil
	})
	again := make(chan error)
	go func() { again <- s.Put(ctx, newMessage("a-s", "x: ann"), mailspine.StringContent("x")) }()
	<-stuck
	mustPut(t, s, newMessage("b-s", "x: ann"))
	if st := must(s.Stats(ctx)); st.Messages != 2 {
		t.Errorf("%+v", st)
	}
	close(free)
	if err := <-again; err != nil {
		t.Error(err)
	}
	f.Set(durabletest.Nth(durabletest.Read, 1, ioError))
	if err := s.Put(ctx, newMessage("a-s", "x: ann"), mailspine.StringContent("x")); !errors.Is(err, ioError) {
		t.Errorf("Put of an ID whose record cannot be read: %v", err)
	}
	if err := s.Put(ctx, newMessage("a-s", "x: ann"), mailspine.StringContent("x")); err != nil {
		t.Errorf("and when it can: %v", err)
	}
	if st := must(s.Stats(ctx)); st.Messages != 2 {
		t.Errorf("%+v", st)
	}
}

// An item that cannot be read once is leased at once again; one that cannot be read again
// does not keep anybody busy. What was delivered is recorded though its record cannot be read.
func TestUnreadable(t *testing.T) {
	f := &durabletest.Faults{FS: new(durabletest.Disk)}
	s := mustOpen(t, "spool", &Options{fs: f, Logger: quiet()})
	mustPut(t, s, newMessage("a-s", "x: ann"))
	broken := func(on bool) {
		f.Set(nil)
		if on {
			f.Set(func(c durabletest.Call) error {
				if c.Op == durabletest.Read {
					return ioError
				}
				return nil
			})
		}
	}
	broken(true)
	if l, err := s.Lease(ctx, queue.LeaseRequest{}); !errors.Is(err, ioError) || len(l) != 0 {
		t.Fatalf("Lease of what cannot be read: %v, %v", l, err)
	}
	if st := must(s.Stats(ctx)); st.Due != 1 {
		t.Errorf("after one failure: %+v, want it due", st)
	}
	broken(false)
	l := mustLease(t, s, 1)
	if err := s.Abandon(ctx, 0, "", l[0].Token); err != nil {
		t.Fatal(err)
	}
	broken(true)
	for range 2 {
		if _, err := s.Lease(ctx, queue.LeaseRequest{}); !errors.Is(err, ioError) {
			t.Fatal(err)
		}
	}
	if st := must(s.Stats(ctx)); st.Leased != 1 {
		t.Errorf("after two failures: %+v, want it leased", st)
	}
	mustPut(t, s, newMessage("b-s", "x: ann"))
	broken(false)
	l = mustLease(t, s, 1)
	broken(true)
	mustSettle(t, s, l[0], queue.Delivered)
	broken(false)
	mustPut(t, s, newMessage("b-s", "x: ann"))
	if st := must(s.Stats(ctx)); st.Messages != 1 {
		t.Errorf("%+v: what was delivered is there, or came again", st)
	}
}

// What an operator does to an item ends what an old lease of it could do.
func TestControlFences(t *testing.T) {
	s := mustOpen(t, t.TempDir(), &Options{Logger: quiet()})
	mustPut(t, s, newMessage("a-s", "x: ann"))
	l := mustLease(t, s, 1)
	if err := s.Abandon(ctx, time.Hour, "", l[0].Token); err != nil {
		t.Fatal(err)
	}
	if n := must(s.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpHold, Reason: "x"})); n != (queue.Changed{Matched: 1, Changed: 1}) {
		t.Errorf("%+v", n)
	}
	if lost := must(s.Extend(ctx, time.Hour, l[0].Token)); len(lost) != 1 {
		t.Error("a lease that was given back can be extended")
	}
}

// An item with a damaged record can be removed, and does not keep a command from the others.
func TestControlDamaged(t *testing.T) {
	d := new(durabletest.Disk)
	o := &Options{fs: d, Logger: quiet()}
	s := mustOpen(t, "spool", o)
	for _, id := range []mailspine.MsgID{"a-s", "b-s", "c-s"} {
		mustPut(t, s, newMessage(id, "x: ann"))
	}
	b := s.messages.At(s.items.At(s.item(2)).msg).loc
	name := "spool/" + segmentName(1)
	f := must(d.OpenFile(name, 2, 0))
	if _, err := f.WriteAt([]byte{0xff, 0xff}, int64(b.offset)+40); err != nil {
		t.Fatal(err)
	}
	f.Close()
	n, err := s.Control(ctx, queue.Filter{Sender: "@example.org"}, queue.Command{Op: queue.OpHold, Reason: "x"})
	var ce *durable.CorruptError
	if !errors.As(err, &ce) || n != (queue.Changed{Matched: 2, Changed: 2}) {
		t.Errorf("Control by what cannot be read: %+v, %v", n, err)
	}
	if n := must(s.Control(ctx, queue.Filter{Item: 2}, queue.Command{Op: queue.OpDelete})); n.Changed != 1 {
		t.Errorf("%+v", n)
	}
	if got := actual(t, s); len(got) != 2 {
		t.Errorf("left are\n%s", show(got))
	}
}

// A command on many items is a few records, and none holds up a Put.
func TestControlMany(t *testing.T) {
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", &Options{fs: d, Logger: quiet()})
	const n = 3000
	for i := range n {
		m := newMessage(mailspine.MsgID(fmt.Sprintf("m%d-s", i)), "x: ann")
		m.Delay = time.Hour
		mustPut(t, s, m)
	}
	syncs := d.Syncs()
	for _, c := range []queue.Command{{Op: queue.OpHold, Reason: "x"}, {Op: queue.OpRelease}, {Op: queue.OpReroute, Route: "y"}} {
		if got := must(s.Control(ctx, queue.Filter{}, c)); got != (queue.Changed{Matched: n, Changed: n}) {
			t.Errorf("%s: %+v", c.Op, got)
		}
	}
	if got := d.Syncs() - syncs; got > 12 {
		t.Errorf("three commands on %d items took %d syncs", n, got)
	}
	if got := must(s.Control(ctx, queue.Filter{Domain: "x"}, queue.Command{Op: queue.OpDelete})); got.Changed != n {
		t.Errorf("%+v", got)
	}
	if st := must(s.Stats(ctx)); st != (queue.Stats{}) || len(s.reasons)+s.names.Len()+len(s.ids)+s.byID.Len()+s.byMsg.Len() != 0 {
		t.Errorf("left are %+v, and %d, %d, %d, %d, %d", st, len(s.reasons), s.names.Len(), len(s.ids), s.byID.Len(), s.byMsg.Len())
	}
}

// Bodies in files go with what is deleted.
func TestControlDeleteBody(t *testing.T) {
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", &Options{fs: d, InlineMax: 100, Logger: quiet()})
	mustPut(t, s, newMessage("a-l", "x: ann", "y: bob"))
	r := must(s.Open(ctx, "a-l"))
	defer r.Close()
	must(s.Control(ctx, queue.Filter{Route: "x"}, queue.Command{Op: queue.OpDelete}))
	if list := must(d.ReadDir("spool/bodies")); len(list) != 1 {
		t.Errorf("%d bodies while an item is left", len(list))
	}
	must(s.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpDelete}))
	if list := must(d.ReadDir("spool/bodies")); len(list) != 0 {
		t.Errorf("%d bodies are left", len(list))
	}
	if b := must(io.ReadAll(r)); string(b) != bodyOf("a-l") {
		t.Error("an open reader lost its content")
	}
}

// What a million of them take is what they take.
func TestRecordSizes(t *testing.T) {
	if n := unsafe.Sizeof(message{}); n != 40 {
		t.Errorf("a message takes %d octets, want 40", n)
	}
	if n := unsafe.Sizeof(item{}); n != 40 {
		t.Errorf("an item takes %d octets, want 40", n)
	}
}

// What does not fit a record is kept all the same.
func TestRecordLimits(t *testing.T) {
	s := mustOpen(t, "spool", &Options{fs: new(durabletest.Disk), Logger: quiet()})
	m := newMessage("a-s", "x: ann")
	p := s.newPut(m, bodyRef{file: 1, fileSize: 5 << 30})
	p.items[0].attempts = 1 << 20
	s.mu.Lock()
	mi := s.insert(p, location{1, 0, 0}, 10, 0)
	i := s.messages.At(mi).items
	if s.size(mi) != 5<<30 || s.bytes != 5<<30 || s.items.At(i).tries != 65535 {
		t.Errorf("size %d, %d octets in all, %d attempts", s.size(mi), s.bytes, s.items.At(i).tries)
	}
	s.removeItem(i)
	if s.bytes != 0 || len(s.huge)+len(s.bodies) != 0 {
		t.Errorf("%d octets are left, %v, %v", s.bytes, s.huge, s.bodies)
	}
	s.mu.Unlock()
}
