package filequeue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

var ctx = context.Background()

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// soak tells whether the full counts are wanted, and ci whether more than the
// least is.
func soak() bool { return os.Getenv("MAILSPINE_SOAK") == "1" }
func ci() bool   { return soak() || os.Getenv("MAILSPINE_CI") == "1" }

// bodyOf is the content of a message with an ID; its size follows from the ID's
// last letter: s small, m a few KiB, l larger than what goes into the journal.
func bodyOf(id mailspine.MsgID) string {
	n := map[byte]int{'s': 10, 'm': 5000, 'l': 30 << 10}[id[len(id)-1]]
	return "Subject: " + string(id) + "\r\n\r\n" + strings.Repeat(string(id)+"\r\n", n/(len(id)+2)+1)
}

// newMessage makes a message with items given as "route: rcpt rcpt".
func newMessage(id mailspine.MsgID, items ...string) queue.Message {
	env := &mailspine.Envelope{ID: id, From: mailspine.Address{Local: "sender", Domain: "example.org"}}
	m := queue.Message{Envelope: env}
	for _, it := range items {
		route, rcpts, _ := strings.Cut(it, ": ")
		n := queue.NewItem{Route: queue.Route(route)}
		for _, r := range strings.Fields(rcpts) {
			n.Recipients = append(n.Recipients, len(env.Recipients))
			env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: r, Domain: route}})
		}
		m.Items = append(m.Items, n)
	}
	return m
}

func key(id mailspine.MsgID, r queue.Route) string { return string(id) + "/" + string(r) }

func value(rcpts []mailspine.Recipient, attempts int) string {
	var names []string
	for _, r := range rcpts {
		names = append(names, r.Address.Local)
	}
	return fmt.Sprintf("%s #%d", strings.Join(names, " "), attempts)
}

func addTo(m queue.Message) func(map[string]string) {
	return func(want map[string]string) {
		for _, it := range m.Items {
			var rcpts []mailspine.Recipient
			for _, i := range it.Recipients {
				rcpts = append(rcpts, m.Envelope.Recipients[i])
			}
			want[key(m.Envelope.ID, it.Route)] = value(rcpts, 0)
		}
	}
}

// actual is what is in a store; each message has the right content.
func actual(t *testing.T, s *Store) map[string]string {
	t.Helper()
	got := map[string]string{}
	for it, err := range s.List(ctx, queue.Filter{}) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		got[key(it.Message, it.Route)] = value(it.Envelope.Recipients, it.Attempts)
		r, err := s.Open(ctx, it.Message)
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if want := bodyOf(it.Message); err != nil || string(b) != want || it.Size != int64(len(want)) {
			t.Fatalf("%s has %d octets of content, size %d, want %d: %v", it.Message, len(b), it.Size, len(want), err)
		}
	}
	return got
}

func show(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "\t%s: %s\n", k, m[k])
	}
	return b.String()
}

// small has segments so small that the compactor is busy during the kit's
// script, and content in files of its own.
func small(fsys durable.FS) *Options {
	return &Options{fs: fsys, SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()}
}

func TestPowerCut(t *testing.T) {
	var first atomic.Uint64 // segment that was left
	queuetest.RunPowerCut(t, queuetest.PowerCut[*durabletest.Disk]{
		New:  func() *durabletest.Disk { return new(durabletest.Disk) },
		Open: func(d *durabletest.Disk) (queue.Store, error) { return Open("spool", small(d)) },
		Check: func(s queue.Store, d *durabletest.Disk) error {
			list, err := d.ReadDir("spool")
			if err != nil {
				return err
			}
			for _, e := range list {
				if n, ok := parseSegment(e.Name()); ok {
					first.Store(max(first.Load(), n))
					break
				}
			}
			return leftovers(s, d)
		},
	})
	if first.Load() < 2 {
		t.Error("the compactor never removed a segment, so this proves too little")
	}
}

// leftovers tells what takes room on the disk for no message.
func leftovers(s queue.Store, d *durabletest.Disk) error {
	large := 0
	seen := map[mailspine.MsgID]bool{}
	for it, err := range s.(queue.Inspector).List(ctx, queue.Filter{}) {
		if err != nil {
			return err
		}
		if it.Size > 8<<10 && !seen[it.Message] {
			seen[it.Message] = true
			large++
		}
	}
	bodies, err := d.ReadDir("spool/bodies")
	if err != nil {
		return err
	}
	stages, err := d.ReadDir("spool/stage")
	if err != nil {
		return err
	}
	if len(bodies) != large || len(stages) != 0 {
		return fmt.Errorf("%d bodies for %d large messages, %d stages", len(bodies), large, len(stages))
	}
	return nil
}

func TestFaults(t *testing.T) {
	queuetest.RunFaults(t, queuetest.Faults[*durabletest.Disk]{
		New: func() *durabletest.Disk { return new(durabletest.Disk) },
		Open: func(d *durabletest.Disk, fault func(string) error) (queue.Store, error) {
			f := &durabletest.Faults{FS: d}
			f.Set(func(c durabletest.Call) error {
				err := fault(string(c.Op) + " " + c.Name)
				var short *queuetest.ShortWrite
				switch {
				case errors.Is(err, queuetest.ErrKilled):
					return durabletest.ErrKilled
				case errors.As(err, &short) && c.Op == durabletest.Write:
					return &durabletest.ShortWrite{N: short.N, Err: short.Err}
				case errors.As(err, &short):
					return short.Err
				}
				return err
			})
			return Open("spool", small(f))
		},
		Unknown: func(err error) bool { return errors.Is(err, durable.ErrFailed) },
		Idle:    func(s queue.Store) { idle(s.(*Store)) },
	})
}

// idle waits until the compactor has nothing to do.
func idle(s *Store) {
	for range 10 {
		s.mu.Lock()
		idle := !s.overgrown() || s.failed != nil
		s.mu.Unlock()
		if idle && len(s.kick) == 0 {
			return
		}
		time.Sleep(100 * time.Microsecond) // only bounds how soon it is noticed
	}
}

// When the disk is full, Put answers 452 and leaves nothing; results are still recorded, and Put
// works again when there is room.
func TestDiskFull(t *testing.T) {
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", &Options{fs: d, MinFree: 100 << 10, SegmentSize: 1, Logger: quiet()})
	put := func(id mailspine.MsgID) error {
		return s.Put(ctx, newMessage(id, "x: ann"), mailspine.StringContent(bodyOf(id)))
	}
	if err := put("a-s"); err != nil {
		t.Fatal(err)
	}
	d.SetLimit(d.Used() + 90<<10)
	used := d.Used()
	full := func(err error) {
		t.Helper()
		if st := mailspine.Status(err); !errors.Is(err, noSpace) || st.Code != 452 || st.Enhanced != (mailspine.EnhancedCode{4, 3, 1}) {
			t.Fatalf("on a full disk: %v, status %v", err, st)
		}
	}
	full(put("b-s"))
	_, err := s.Stage(ctx, 0)
	full(err)
	full(s.Health(ctx))
	if d.Used() != used {
		t.Errorf("%d octets were left behind", d.Used()-used)
	}
	l, err := s.Lease(ctx, queue.LeaseRequest{})
	if err != nil || len(l) != 1 {
		t.Fatalf("Lease while there is room for results: %v", err)
	}
	if errs, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{State: queue.Open}}}); err != nil || errs[0] != nil {
		t.Fatalf("Settle while there is room for results: %v, %v", errs, err)
	}
	// Now there is none at all.
	d.SetLimit(d.Used())
	l, err = s.Lease(ctx, queue.LeaseRequest{})
	if err != nil || len(l) != 1 {
		t.Fatalf("Lease: %v", err)
	}
	errs, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{State: queue.Delivered}}})
	if err != nil {
		t.Fatal(err)
	}
	full(errs[0])
	_, err = s.Lease(ctx, queue.LeaseRequest{})
	full(err)
	d.SetLimit(0)
	if errs, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{State: queue.Delivered}}}); err != nil || errs[0] != nil {
		t.Fatalf("Settle when there is room again, the lease is still held: %v, %v", errs, err)
	}
	if err := put("b-s"); err != nil {
		t.Fatalf("Put when there is room again: %v", err)
	}
	if err := s.Health(ctx); err != nil {
		t.Errorf("Health when there is room again: %v", err)
	}
}

// A large message that finds the disk full in the middle leaves no file.
func TestDiskFullStaging(t *testing.T) {
	d := new(durabletest.Disk)
	s := mustOpen(t, "spool", &Options{fs: d, MinFree: -1, InlineMax: 1 << 10, Logger: quiet()})
	d.SetLimit(d.Used() + 20<<10)
	used := d.Used()
	if err := s.Put(ctx, newMessage("a-l", "x: ann"), mailspine.StringContent(bodyOf("a-l"))); mailspine.Status(err).Code != 452 {
		t.Fatalf("Put: %v", err)
	}
	st, err := s.Stage(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(st, bodyOf("a-l")); mailspine.Status(err).Code != 452 {
		t.Fatalf("Write to the stage: %v", err)
	}
	if _, err := st.Content(); err == nil {
		t.Fatal("a stage that is short has content")
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if d.Used() != used {
		t.Errorf("%d octets were left behind", d.Used()-used)
	}
	if _, err := d.Stat("spool/stage/1-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stage is still there: %v", err)
	}
}

// A large message whose record does not fit any more leaves no file either, and
// what was staged can be put again.
func TestDiskFullRecord(t *testing.T) {
	f := &durabletest.Faults{FS: new(durabletest.Disk)}
	s := mustOpen(t, "spool", &Options{fs: f, MinFree: -1, InlineMax: 1 << 10, Logger: quiet()})
	st, err := s.Stage(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := io.WriteString(st, bodyOf("a-l")); err != nil {
		t.Fatal(err)
	}
	c, err := st.Content()
	if err != nil {
		t.Fatal(err)
	}
	f.Set(durabletest.Nth(durabletest.Write, 1, noSpace))
	if err := s.Put(ctx, newMessage("a-l", "x: ann"), c); mailspine.Status(err).Code != 452 {
		t.Fatalf("Put: %v", err)
	}
	if list, err := f.ReadDir("spool/bodies"); err != nil || len(list) != 0 {
		t.Errorf("%d bodies are left, %v", len(list), err)
	}
	if err := s.Put(ctx, newMessage("a-l", "x: ann"), c); err != nil {
		t.Fatalf("Put again: %v", err)
	}
	if got := actual(t, s); len(got) != 1 {
		t.Errorf("the store has\n%v", show(got))
	}
}
