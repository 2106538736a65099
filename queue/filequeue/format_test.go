package filequeue

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
)

// version1 returns a copy of a spool that a program with format version 1 left.
func version1(t testing.TB) string {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/version1")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A spool of version 1 is read, and goes on in a segment of version 2, so that
// the program that wrote it refuses the spool from then on and does not take the new entries for damage.
func TestVersion1(t *testing.T) {
	dir := version1(t)
	s := mustOpen(t, dir, &Options{InlineMax: 2000, Logger: quiet()})
	want := map[string]string{"two-s/y": "cid #1", "two-s/z": "dan #0", "held-s/x": "eve #0", "large-m/x": "fay #0"}
	if got := actual(t, s); !maps.Equal(got, want) {
		t.Fatalf("the store has\n%v\nit should have\n%v", show(got), show(want))
	}
	for it := range s.List(ctx, queue.Filter{Item: 3}) {
		if it.Reason != "the cap is reached" || it.Envelope.Tenant != "shop" || it.Envelope.Priority != 4 {
			t.Errorf("item 3 is %+v of %+v", it, it.Envelope)
		}
	}
	if n := must(s.Control(ctx, queue.Filter{ID: "held-s"}, queue.Command{Op: queue.OpRelease})); n.Changed != 1 {
		t.Errorf("a release changed %+v", n)
	}
	mustPut(t, s, newMessage("done-s", "x: ann")) // it has a tombstone, or had its hour
	mustPut(t, s, newMessage("new-s", "x: ann"))
	s.Close()
	old, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
	if err != nil {
		t.Fatal(err)
	}
	if before := must(os.ReadFile(filepath.Join("testdata/version1", segmentName(1)))); string(before) != string(old) {
		t.Error("something was written to the segment of version 1")
	}
	var ve *durable.VersionError
	if _, err := durable.OpenLog(nil, filepath.Join(dir, segmentName(2)), durable.LogOptions{Magic: magic, Version: 1}, nil); !errors.As(err, &ve) || ve.Found != 2 {
		t.Errorf("a program of version 1 opens the segment: %v", err)
	}
	s = mustOpen(t, dir, &Options{InlineMax: 2000, Logger: quiet()})
	if st := must(s.Stats(ctx)); st.Held != 0 || st.Messages < 4 {
		t.Errorf("opened again: %+v", st)
	}
	if n := len(s.segments); n != 2 {
		t.Errorf("%d segments after it was opened again, want 2", n)
	}
}

// Weights, priorities, routes and reasons survive, also through the compactor.
func TestReopenSchedule(t *testing.T) {
	for _, compact := range []bool{false, true} {
		dir := t.TempDir()
		o := &Options{SegmentSize: 1, Logger: quiet()}
		s := mustOpen(t, dir, o)
		put := func(id, tenant string, priority, weight int) {
			m := newMessage(mailspine.MsgID(id), "x: ann")
			m.Envelope.Tenant, m.Envelope.Priority, m.Weight = tenant, priority, weight
			mustPut(t, s, m)
		}
		for i := range 40 {
			put(fmt.Sprintf("a%d-s", i), "a", 0, 3)
			put(fmt.Sprintf("b%d-s", i), "b", 0, 1)
		}
		put("first-s", "b", 9, 1)
		m := newMessage("moved-s", "y: ann")
		mustPut(t, s, m)
		if n := must(s.Control(ctx, queue.Filter{Route: "y"}, queue.Command{Op: queue.OpReroute, Route: "w"})); n.Changed != 1 {
			t.Fatalf("%+v", n)
		}
		held := newMessage("held-s", "v: ann")
		held.Hold = "x"
		mustPut(t, s, held)
		if n := must(s.Control(ctx, queue.Filter{Route: "v"}, queue.Command{Op: queue.OpHold, Reason: "another"})); n.Changed != 1 {
			t.Fatalf("%+v", n)
		}
		if compact {
			for i := 0; s.head.number < 3; i++ {
				mustPut(t, s, newMessage(mailspine.MsgID(fmt.Sprintf("fill%d-l", i)), "fill: ann"))
			}
			for range s.head.number - 1 {
				if err := s.evacuate(s.segments[0]); err != nil {
					t.Fatal(err)
				}
			}
		}
		s.Close()
		s = mustOpen(t, dir, o)
		got := map[string]int{}
		for range 40 {
			l, err := s.Lease(ctx, queue.LeaseRequest{Exclude: []queue.Route{"fill", "w"}})
			if err != nil || len(l) != 1 {
				t.Fatal(l, err)
			}
			if got["b"] == 0 && l[0].Envelope.Tenant == "b" && l[0].Envelope.ID != "first-s" {
				t.Errorf("compacted %v: of tenant b, %s was leased first", compact, l[0].Envelope.ID)
			}
			got[l[0].Envelope.Tenant]++
		}
		if got["a"] < 28 || got["a"] > 32 {
			t.Errorf("compacted %v: tenants with weights 3 and 1 got %v", compact, got)
		}
		if l := must(s.Lease(ctx, queue.LeaseRequest{Max: 5, Exclude: []queue.Route{"fill", "x", "y"}})); len(l) != 1 || l[0].Route != "w" {
			t.Errorf("compacted %v: leased %+v, want what was given the route w", compact, l)
		}
		n := 0
		for it := range s.List(ctx, queue.Filter{State: queue.ItemHeld}) {
			n++
			if it.Reason != "another" {
				t.Errorf("compacted %v: held because of %q", compact, it.Reason)
			}
		}
		if n != 1 {
			t.Errorf("compacted %v: %d items are held", compact, n)
		}
	}
}
