package filequeue

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
)

func mustPut(t testing.TB, s *Store, m queue.Message) {
	t.Helper()
	if err := s.Put(ctx, m, mailspine.StringContent(bodyOf(m.Envelope.ID))); err != nil {
		t.Fatal(err)
	}
}

func mustSettle(t testing.TB, s *Store, l queue.Lease, st queue.State) {
	t.Helper()
	set := queue.Settlement{Token: l.Token, Results: make([]queue.Result, len(l.Recipients))}
	for i := range set.Results {
		set.Results[i].State = st
	}
	if errs, err := s.Settle(ctx, set); err != nil || errs[0] != nil {
		t.Fatal(errs, err)
	}
}

func mustLease(t testing.TB, s *Store, n int) []queue.Lease {
	t.Helper()
	l, err := s.Lease(ctx, queue.LeaseRequest{Max: n, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Two processes never have one directory; the second is told who has it.
func TestLocked(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, nil)
	_, err := Open(dir, nil)
	var le *durable.LockedError
	if !errors.As(err, &le) || le.PID != os.Getpid() || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Fatalf("second Open: %v", err)
	}
	s.Close()
	mustOpen(t, dir, nil)
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "spool")
	s := mustOpen(t, dir, &Options{InlineMax: 100})
	mustPut(t, s, newMessage("a-l", "x: ann"))
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", p, fi.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A store of a newer program is refused, and told so.
func TestNewerFormat(t *testing.T) {
	d := new(durabletest.Disk)
	if err := durable.MkdirAll(d, "spool", 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := durable.CreateLog(d, "spool/"+segmentName(1), durable.LogOptions{Magic: magic, Version: formatVersion + 1})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	var ve *durable.VersionError
	if _, err := Open("spool", &Options{fs: d}); !errors.As(err, &ve) {
		t.Fatalf("Open: %v", err)
	}
}

// filled returns a disk with a closed store of several segments, of which the compactor
// has removed the first, and what is in it by message and route.
func filled(t testing.TB) (*durabletest.Disk, map[string]string) {
	t.Helper()
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", small(d))
	want := map[string]string{}
	put := func(id mailspine.MsgID, items ...string) {
		t.Helper()
		m := newMessage(id, items...)
		mustPut(t, s, m)
		addTo(m)(want)
	}
	// settle ends a lease; the first open of its recipients stay open.
	settle := func(l queue.Lease, open int, emit ...mailspine.MsgID) {
		t.Helper()
		set := queue.Settlement{Token: l.Token, Results: make([]queue.Result, len(l.Recipients))}
		for i := range set.Results {
			set.Results[i].State = queue.Delivered
			if i < open {
				set.Results[i] = queue.Result{State: queue.Open, Status: mailspine.Errorf(450, "4.2.1", "Try later")}
			}
		}
		for _, id := range emit {
			m := newMessage(id, "reports: sender")
			set.Emit = append(set.Emit, queue.Emission{Message: m, Content: mailspine.StringContent(bodyOf(id))})
			addTo(m)(want)
		}
		if errs, err := s.Settle(ctx, set); err != nil || errs[0] != nil {
			t.Fatal(errs, err)
		}
		if k := key(l.Envelope.ID, l.Route); open > 0 {
			want[k] = value(l.Envelope.Recipients[:open], l.Attempts+1)
		} else {
			delete(want, k)
		}
	}
	put("a-s", "x: ann bob", "y: cid")
	put("b-l", "y: ann", "z: bob cid")
	put("c-l", "z: ann")
	for i, l := range mustLease(t, s, 3) {
		settle(l, i, mailspine.MsgID(fmt.Sprintf("ra%d-s", i)))
	}
	if c, ok := any(s).(queue.Controller); ok {
		put("route-s", "u: ann", "u2: bob")
		put("hold-m", "v: ann")
		put("delete-l", "w: ann", "w2: bob")
		for f, cmd := range map[queue.Filter]queue.Command{
			{Route: "u"}: {Op: queue.OpReroute, Route: "u3"}, {Route: "v"}: {Op: queue.OpHold, Reason: "operator"}, {Route: "w"}: {Op: queue.OpDelete},
		} {
			if n, err := c.Control(ctx, f, cmd); err != nil || n.Changed != 1 {
				t.Fatal(n, err)
			}
		}
		want[key("route-s", "u3")] = want[key("route-s", "u")]
		delete(want, key("route-s", "u"))
		delete(want, key("delete-l", "w"))
	}
	for i := range 60 { // what comes and goes
		put(mailspine.MsgID(fmt.Sprintf("d%d-m", i)), "go: ann")
		for _, l := range mustLease(t, s, 2) {
			settle(l, i%5/4)
		}
	}
	for i := range 30 { // and what stays, so that there is a second segment
		put(mailspine.MsgID(fmt.Sprintf("stay%d-m", i)), "stay: ann")
	}
	idle(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(segments(t, d)); n < 2 {
		t.Fatal("one segment only")
	}
	return d, want
}

func segments(t testing.TB, d *durabletest.Disk) []string {
	t.Helper()
	list, err := d.ReadDir("spool")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		if _, ok := parseSegment(e.Name()); ok {
			names = append(names, "spool/"+e.Name())
		}
	}
	return names
}

func overwrite(t testing.TB, d *durabletest.Disk, name string, b []byte) {
	t.Helper()
	if err := durable.WriteFile(d, name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Damage is reported, and never read as something else. Only in the last batch of the last segment can
// it not be told from a torn write.
func TestCorruption(t *testing.T) {
	d, want := filled(t)
	names := segments(t, d)
	try := func(what, name string, change func([]byte) []byte) (opened bool) {
		t.Helper()
		c := d.Crash(1)
		b, err := durable.ReadFile(c, name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		overwrite(t, c, name, change(b))
		s, err := Open("spool", &Options{fs: c, Logger: quiet(), InlineMax: 8 << 10, SegmentSize: 1})
		if err != nil {
			var ce *durable.CorruptError
			var ve *durable.VersionError
			if !errors.As(err, &ce) && !errors.As(err, &ve) {
				t.Fatalf("%s: %v", what, err)
			}
			if !strings.Contains(err.Error(), filepath.Base(name)) {
				t.Fatalf("%s: the error names no file: %v", what, err)
			}
			return false
		}
		defer s.Close()
		for it, err := range s.List(ctx, queue.Filter{}) {
			if err != nil {
				var ce *durable.CorruptError
				if !errors.As(err, &ce) {
					t.Fatalf("%s: List: %v", what, err)
				}
				continue
			}
			if got := value(it.Envelope.Recipients, it.Attempts); want[key(it.Message, it.Route)] != got {
				t.Fatalf("%s: %s is %s", what, it.Message, got)
			}
			r, err := s.Open(ctx, it.Message)
			if err != nil {
				continue // told
			}
			b, err := io.ReadAll(r)
			r.Close()
			if err == nil && string(b) != bodyOf(it.Message) {
				t.Fatalf("%s: %s has other content", what, it.Message)
			}
		}
		return true
	}
	for _, name := range names {
		size := len(must(durable.ReadFile(d, name, 1<<30)))
		step := size / 60
		if ci() {
			step = size / 600
		}
		for i := 0; i < size; i += step {
			try(fmt.Sprintf("%s, octet %d flipped", name, i), name, func(b []byte) []byte { b[i] ^= 0x10; return b })
		}
	}
	for n := 10; n < 5000; n += 611 {
		if try(fmt.Sprintf("first segment without %d octets", n), names[0], func(b []byte) []byte { return b[:len(b)-n] }) {
			// A cut between two records is found by nobody; there is none every 611 octets.
			t.Fatalf("a first segment without its last %d octets was taken", n)
		}
	}
	if try("no header", names[0], func([]byte) []byte { return nil }) {
		t.Error("an empty segment was taken")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestMissingSegment(t *testing.T) {
	d := new(durabletest.Disk)
	if err := durable.MkdirAll(d, "spool", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{4, 6} {
		l, err := durable.CreateLog(d, "spool/"+segmentName(n), durable.LogOptions{Magic: magic, Version: formatVersion})
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	if _, err := Open("spool", &Options{fs: d}); err == nil || !strings.Contains(err.Error(), segmentName(5)+" is missing") {
		t.Fatalf("Open: %v", err)
	}
}

// A body that somebody removed makes its message unreadable, not the store.
func TestMissingBody(t *testing.T) {
	d := new(durabletest.Disk)
	o := &Options{fs: d, InlineMax: 100, Logger: quiet()}
	s := mustOpen(t, "spool", o)
	mustPut(t, s, newMessage("a-l", "x: ann"))
	mustPut(t, s, newMessage("b-s", "x: ann"))
	s.Close()
	if err := d.Remove("spool/bodies/0000000000000001"); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, "spool", o)
	if _, err := s.Open(ctx, "a-l"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
	l := mustLease(t, s, 2)
	if len(l) != 2 {
		t.Fatalf("%d leases", len(l))
	}
	for _, x := range l {
		mustSettle(t, s, x, queue.Failed)
	}
}

// A wall clock that was set back makes nobody wait longer than the delay, and
// nobody's message younger than it was put.
func TestClockSetBack(t *testing.T) {
	d := new(durabletest.Disk)
	o := &Options{fs: d, Logger: quiet()}
	s := mustOpen(t, "spool", o) // today
	m := newMessage("a-s", "x: ann")
	m.Delay = time.Hour
	mustPut(t, s, m)
	mustPut(t, s, newMessage("b-s", "x: ann"))
	mustSettle(t, s, mustLease(t, s, 1)[0], queue.Delivered)
	s.Close()
	synctest.Test(t, func(t *testing.T) { // in the year 2000
		s := mustOpen(t, "spool", o)
		defer s.Close()
		if l := mustLease(t, s, 1); len(l) != 0 {
			t.Fatal("due before its delay")
		}
		if err := s.Put(ctx, newMessage("b-s", "x: ann"), mailspine.StringContent("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour - time.Second)
		if l := mustLease(t, s, 1); len(l) != 0 {
			t.Fatalf("leased %s before its delay, or after its end", l[0].Envelope.ID)
		}
		time.Sleep(time.Second)
		l := mustLease(t, s, 2)
		if len(l) != 1 || l[0].Age < 0 || l[0].Age > 2*time.Hour {
			t.Fatalf("after the delay: %+v", l)
		}
	})
}

// A staged message is written once and synced once, whatever is prepended.
func TestAdopt(t *testing.T) {
	d := new(durabletest.Disk)
	f := &durabletest.Faults{FS: d}
	s := mustOpen(t, "spool", &Options{fs: f, Logger: quiet()})
	body := bytes.Repeat([]byte("0123456789abcde\n"), 20_000)
	st, err := s.Stage(ctx, int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	before := d.Written()
	f.Set(nil)
	for rest := body; len(rest) > 0; {
		n, err := st.Write(rest[:min(len(rest), 32<<10)])
		if err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	c, err := st.Content()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, newMessage("a", "x: ann"), mailspine.Prepend(c, []byte("Received: here\r\n"))); err != nil {
		t.Fatal(err)
	}
	if n := d.Written() - before - int64(len(body)); n > 1000 {
		t.Errorf("%d octets were written besides the message", n)
	}
	if n, m := f.Calls(durabletest.Sync), f.Calls(durabletest.SyncDir); n != 2 || m != 1 {
		t.Errorf("%d syncs of files and %d of directories, want body, journal and one directory", n, m)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if b := must(io.ReadAll(must(s.Open(ctx, "a")))); string(b) != "Received: here\r\n"+string(body) {
		t.Errorf("%d octets came back", len(b))
	}
	// A small one is in memory until Put, and in the journal then: one sync.
	st, _ = s.Stage(ctx, 0)
	io.WriteString(st, "Subject: small\r\n\r\n")
	c, _ = st.Content()
	f.Set(nil)
	if err := s.Put(ctx, newMessage("b", "x: ann"), c); err != nil {
		t.Fatal(err)
	}
	st.Close()
	if n, m, w := f.Calls(durabletest.Sync), f.Calls(durabletest.SyncDir), f.Calls(durabletest.Write); n != 1 || m != 0 || w != 1 {
		t.Errorf("a small message took %d writes, %d and %d syncs; want 1, 1, 0", w, n, m)
	}
}

// The journal stays within its bound while far more goes through it, what stays
// is readable throughout, and open readers outlive their segment.
func TestCompaction(t *testing.T) {
	d := new(durabletest.Disk)
	o := &Options{fs: d, SegmentSize: 1, Logger: quiet()}
	s := mustOpen(t, "spool", o)
	want := map[string]string{}
	for i := range 20 {
		id := mailspine.MsgID(fmt.Sprintf("stay%d-m", i))
		m := newMessage(id, "stay: ann bob", "later: cid")
		if i%4 == 0 {
			m.Hold = "held"
		}
		mustPut(t, s, m)
		addTo(m)(want)
	}
	for _, l := range must(s.Lease(ctx, queue.LeaseRequest{Max: 5, Exclude: []queue.Route{"later"}})) {
		set := queue.Settlement{Token: l.Token, Results: []queue.Result{{State: queue.Delivered}, {State: queue.Open, Status: mailspine.Errorf(450, "4.2.0", "later")}}}
		if errs, err := s.Settle(ctx, set); err != nil || errs[0] != nil {
			t.Fatal(errs, err)
		}
		want[key(l.Envelope.ID, "stay")] = value(l.Envelope.Recipients[1:], 1)
	}
	r := must(s.Open(ctx, "stay1-m"))
	defer r.Close()
	var wg sync.WaitGroup
	var most int64
	for w := range 4 {
		wg.Go(func() {
			for i := range 300 {
				id := mailspine.MsgID(fmt.Sprintf("go%d-%d-m", w, i))
				if err := s.Put(ctx, newMessage(id, fmt.Sprintf("go%d: ann", w)), mailspine.StringContent(bodyOf(id))); err != nil {
					t.Error(err)
					return
				}
				exclude := []queue.Route{"stay", "later"}
				l, err := s.Lease(ctx, queue.LeaseRequest{Max: 2, Exclude: exclude})
				if err != nil {
					t.Error(err)
					return
				}
				for _, x := range l {
					if errs, err := s.Settle(ctx, queue.Settlement{Token: x.Token, Results: []queue.Result{{State: queue.Delivered}}}); err != nil || errs[0] != nil {
						t.Error(errs, err)
					}
				}
			}
		})
	}
	wg.Wait()
	for range 200 {
		s.mu.Lock()
		busy := s.overgrown()
		most = s.sealed + s.head.log.Size()
		s.mu.Unlock()
		if !busy {
			break
		}
		time.Sleep(time.Millisecond)
	}
	s.mu.Lock()
	bound := 2*(s.live+graveCost*int64(s.tombs.len())) + 3*s.opt.SegmentSize
	first := s.segments[0].number
	s.mu.Unlock()
	if most > bound {
		t.Errorf("the journal has %d octets, its bound is %d", most, bound)
	}
	if first < 20 {
		t.Errorf("the first segment is number %d: nothing was compacted", first)
	}
	for k := range actual(t, s) {
		if strings.HasPrefix(k, "go") {
			for _, l := range mustLease(t, s, 100) {
				if strings.HasPrefix(string(l.Envelope.ID), "go") {
					mustSettle(t, s, l, queue.Delivered)
				}
			}
			break
		}
	}
	if b := must(io.ReadAll(r)); string(b) != bodyOf("stay1-m") {
		t.Error("a reader lost its segment")
	}
	if got := actual(t, s); !maps.Equal(got, want) {
		t.Errorf("the store has\n%v\nit should have\n%v", show(got), show(want))
	}
	s.Close()
	s = mustOpen(t, "spool", o)
	if got := actual(t, s); !maps.Equal(got, want) {
		t.Errorf("opened again, the store has\n%v\nit should have\n%v", show(got), show(want))
	}
	if st := must(s.Stats(ctx)); st.Held != 10 {
		t.Errorf("%d items are held, want 10", st.Held)
	}
	// Tombstones were carried along.
	mustPut(t, s, newMessage("go0-0-m", "x: ann"))
	if got := actual(t, s); !maps.Equal(got, want) {
		t.Error("a message that was finished came back")
	}
}

// A failed sync of a body stops the store as well.
func TestFailedBodySync(t *testing.T) {
	f := &durabletest.Faults{FS: new(durabletest.Disk)}
	s := mustOpen(t, "spool", &Options{fs: f, InlineMax: 100, Logger: quiet()})
	mustPut(t, s, newMessage("a-s", "x: ann"))
	f.Set(durabletest.Nth(durabletest.Sync, 1, ioError))
	if err := s.Put(ctx, newMessage("a-l", "x: ann"), mailspine.StringContent(bodyOf("a-l"))); !errors.Is(err, durable.ErrFailed) {
		t.Fatalf("Put: %v", err)
	}
	syncs := f.Calls(durabletest.Sync)
	if err := s.Put(ctx, newMessage("b-s", "x: ann"), mailspine.StringContent("x")); !errors.Is(err, durable.ErrFailed) {
		t.Errorf("Put: %v", err)
	}
	if _, err := s.Lease(ctx, queue.LeaseRequest{}); !errors.Is(err, durable.ErrFailed) {
		t.Errorf("Lease: %v", err)
	}
	if err := s.Wait(ctx, nil); !errors.Is(err, durable.ErrFailed) {
		t.Errorf("Wait: %v", err)
	}
	err := s.Health(ctx)
	if !errors.Is(err, ioError) {
		t.Errorf("Health: %v", err)
	}
	if st := mailspine.Status(err); st.Code != 451 || strings.Contains(st.Reply(), "spool") {
		t.Errorf("status %v", st.Reply())
	}
	if f.Calls(durabletest.Sync) != syncs {
		t.Error("a sync was tried again")
	}
	if st, err := s.Stats(ctx); err != nil || st.Messages != 1 {
		t.Errorf("Stats: %+v, %v", st, err)
	}
	if b := must(io.ReadAll(must(s.Open(ctx, "a-s")))); string(b) != bodyOf("a-s") {
		t.Error("what is stored cannot be read any more")
	}
}

func TestMaxTombstones(t *testing.T) {
	s := mustOpen(t, "spool", &Options{fs: new(durabletest.Disk), MaxTombstones: 2, Logger: quiet()})
	for _, id := range []mailspine.MsgID{"a-s", "b-s", "c-s"} {
		mustPut(t, s, newMessage(id, "x: ann"))
		mustSettle(t, s, mustLease(t, s, 1)[0], queue.Delivered)
	}
	for id, n := range map[mailspine.MsgID]int{"a-s": 1, "b-s": 0, "c-s": 0} {
		mustPut(t, s, newMessage(id, "x: ann"))
		l := mustLease(t, s, 1)
		if len(l) != n {
			t.Errorf("%s: %d items after it was put again, want %d", id, len(l), n)
		}
		if n == 0 {
			continue
		}
		if err := s.Abandon(ctx, time.Hour, "", l[0].Token); err != nil { // out of the way, without a new tombstone
			t.Fatal(err)
		}
	}
}

// Close waits for what is under way, and what comes later is told.
func TestCloseConcurrent(t *testing.T) {
	d := new(durabletest.Disk)
	o := &Options{fs: d, Logger: quiet()}
	s := mustOpen(t, "spool", o)
	var wg sync.WaitGroup
	var mu sync.Mutex
	accepted := map[mailspine.MsgID]bool{}
	started := make(chan struct{}, 8)
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := mailspine.MsgID(fmt.Sprintf("m%d-%d-s", w, i))
				err := s.Put(ctx, newMessage(id, "x: ann"), mailspine.StringContent(bodyOf(id)))
				if i == 0 {
					started <- struct{}{}
				}
				if err != nil {
					if !errors.Is(err, queue.ErrClosed) {
						t.Errorf("Put: %v", err)
					}
					return
				}
				mu.Lock()
				accepted[id] = true
				mu.Unlock()
			}
		})
	}
	<-started
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	s = mustOpen(t, "spool", o)
	if st := must(s.Stats(ctx)); st.Messages != int64(len(accepted)) {
		t.Errorf("%d messages, %d were accepted", st.Messages, len(accepted))
	}
}
