package filequeue

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// What is in a large queue: messages of 2 KB, with one recipient each.
const (
	scaleRoutes  = 10_000
	scaleTenants = 10
	scaleSoon    = 2000 // are due at once; the others in hours
)

func scaleMessage(i int) queue.Message {
	m := newMessage(mailspine.MsgID(fmt.Sprintf("scale-%08d-01M86T5B42K9HP0P", i)), fmt.Sprintf("domain%d.example: somebody.or.other", i%scaleRoutes))
	m.Envelope.Tenant = fmt.Sprintf("tenant%d", i/scaleRoutes%scaleTenants)
	return m
}

// deferMany puts n messages, from several goroutines, and tries to deliver them once: they are
// deferred.
func deferMany(t testing.TB, s *Store, n int) {
	t.Helper()
	const writers = 100
	body := mailspine.StringContent("Subject: scale\r\n\r\n" + strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n", 32))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := s.Put(ctx, scaleMessage(i), body); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	r := rand.New(rand.NewPCG(1, 1))
	for done := 0; done < n; {
		l, err := s.Lease(ctx, queue.LeaseRequest{Max: 1000, TTL: time.Hour})
		if err != nil || len(l) == 0 {
			t.Fatalf("%d leases after %d: %v", len(l), done, err)
		}
		list := make([]queue.Settlement, len(l))
		for k, x := range l {
			list[k] = queue.Settlement{Token: x.Token, Delay: 12*time.Hour + time.Duration(r.Int64N(int64(12*time.Hour))), Results: []queue.Result{{
				Status: mailspine.Errorf(451, "4.4.1", "No answer from %s", x.Route), Warned: true,
			}}}
		}
		errs, err := s.Settle(ctx, list...)
		if err != nil || slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
			t.Fatal(err)
		}
		done += len(l)
	}
}

// resident returns VmRSS and VmHWM in octets; 0 where the system does not tell.
func resident() (now, most int64) {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			now = n << 10
		case "VmHWM:":
			most = n << 10
		}
	}
	return now, most
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// An item with its message takes about 150 octets of memory, and some for its route and tenant.
func TestItemMemory(t *testing.T) {
	const n = 10_000
	s := mustOpen(t, t.TempDir(), &Options{MinFree: -1, Logger: quiet()})
	m := newMessage("first-s", "x: ann")
	m.Delay = time.Hour
	mustPut(t, s, m)
	before := heap()
	var wg sync.WaitGroup
	for w := range 50 {
		wg.Go(func() {
			for i := range n / 50 {
				m := newMessage(mailspine.MsgID(fmt.Sprintf("scale-%d-%d-01M86T5B42K9HP0P", w, i)), fmt.Sprintf("domain%d.example: ann", i%100))
				m.Delay = time.Hour
				if err := s.Put(ctx, m, mailspine.StringContent("x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	each := float64(heap()-before) / n
	t.Logf("%.0f octets of heap an item", each)
	if each > 200 {
		t.Errorf("an item takes %.0f octets of heap, want 200 at most", each)
	}
	runtime.KeepAlive(s)
}

func report(what string, value float64, unit, target string) {
	fmt.Printf("scale\t%s\t%.4g\t%s\t%s\n", what, value, unit, target)
}

// TestScaleChild is the part of TestScale that runs in a process of its own.
func TestScaleChild(t *testing.T) {
	job := strings.Split(os.Getenv("FILEQUEUE_SCALE"), "|")
	if len(job) != 3 {
		t.Skip("it runs as a child of TestScale")
	}
	n, err := strconv.Atoi(job[2])
	if err != nil {
		t.Fatal(err)
	}
	at := func(what string) string { return fmt.Sprintf("%s at %d items", what, n) }
	o := &Options{MinFree: -1, Logger: quiet()}
	if job[0] == "fill" {
		s := mustOpen(t, job[1], o)
		start := time.Now()
		deferMany(t, s, n)
		took := time.Since(start)
		_, most := resident()
		report(at("peak memory while filled"), float64(most)/(1<<20), "MiB", "400")
		report(at("filled"), float64(n)/took.Seconds(), "items/s", "")
		return
	}
	if job[0] == "reopen" { // nothing else, so that the parent sees what it costs
		start := time.Now()
		s := mustOpen(t, job[1], o)
		if st := must(s.Stats(ctx)); st.Items != int64(n) {
			t.Fatalf("%+v", st)
		}
		report(at("reopened"), time.Since(start).Seconds(), "s", "10")
		return
	}
	base := heap()
	empty, _ := resident()
	s := mustOpen(t, job[1], o)
	now, most := resident()
	report(at("memory before opened"), float64(empty)/(1<<20), "MiB", "")
	report(at("peak memory until opened"), float64(most)/(1<<20), "MiB", "400")
	report(at("memory when opened"), float64(now)/(1<<20), "MiB", "400")
	report(at("heap an item"), float64(heap()-base)/float64(n), "octets", "")
	st, err := s.Stats(ctx)
	if err != nil || st.Items != int64(n) || st.Waiting != int64(n) {
		t.Fatalf("opened: %+v, %v", st, err)
	}
	timed := func(what string, times int, target string, f func(i int)) {
		list := make([]time.Duration, times)
		for i := range list {
			start := time.Now()
			f(i)
			list[i] = time.Since(start)
		}
		slices.Sort(list)
		report(at(what+", median"), float64(list[times/2])/1e6, "ms", target)
		report(at(what+", 99th percentile"), float64(list[times*99/100])/1e6, "ms", target)
	}
	timed("Stats", 1000, "50", func(int) { s.Stats(ctx) })
	timed("Breakdown", 5, "", func(int) {
		for _, err := range s.Breakdown(ctx) {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	// Some of what is stored becomes due.
	soon := min(scaleSoon, n)
	var ids []queue.ItemID
	for i := range s.items.All() {
		if i%slot(n/soon) == 0 {
			ids = append(ids, queue.ItemID(s.items.At(i).id))
		}
	}
	for _, id := range ids[:soon/2] {
		if _, err := s.Control(ctx, queue.Filter{Item: id}, queue.Command{Op: queue.OpFlush}); err != nil {
			t.Fatal(err)
		}
	}
	timed("Lease of 20", soon/40, "5", func(int) {
		if l := must(s.Lease(ctx, queue.LeaseRequest{Max: 20, TTL: time.Hour})); len(l) != 20 {
			t.Fatalf("%d leases", len(l))
		}
	})
	// The life of a message beside them.
	body := mailspine.BytesContent(make([]byte, 2000))
	rounds := 200
	if soak() {
		rounds = 2000
	}
	timed("Put", rounds, "", func(i int) {
		if err := s.Put(ctx, newMessage(mailspine.MsgID(fmt.Sprintf("life-%d", i)), "life.example: ann"), body); err != nil {
			t.Fatal(err)
		}
	})
	leases := make([]queue.Lease, rounds)
	timed("Lease", rounds, "", func(i int) { leases[i] = mustLease(t, s, 1)[0] })
	timed("Settle, deferred", rounds/2, "", func(i int) { mustSettle(t, s, leases[i], queue.Open) })
	timed("Settle, delivered", rounds/2, "", func(i int) { mustSettle(t, s, leases[rounds/2+i], queue.Delivered) })
	timed("Put of a known ID", rounds/2, "", func(i int) {
		if err := s.Put(ctx, scaleMessage(i), body); err != nil {
			t.Fatal(err)
		}
	})
	now, _ = resident()
	report(at("memory at the end"), float64(now)/(1<<20), "MiB", "400")
	start := time.Now()
	listed := 0
	for _, err := range s.List(ctx, queue.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		listed++
	}
	report(at("List"), time.Since(start).Seconds()/float64(listed)*1e6, "us/item", "")
	start = time.Now()
	held := must(s.Control(ctx, queue.Filter{State: queue.ItemWaiting}, queue.Command{Op: queue.OpHold, Reason: "scale"}))
	report(at("hold of all that waits"), time.Since(start).Seconds(), "s", "")
	// All become due at one instant.
	start = time.Now()
	released := must(s.Control(ctx, queue.Filter{State: queue.ItemHeld}, queue.Command{Op: queue.OpRelease}))
	report(at("release of all that is held"), time.Since(start).Seconds(), "s", "")
	if held.Changed < int64(n)/2 || released.Changed != held.Changed {
		t.Errorf("%+v were held and %+v released", held, released)
	}
	timed("Lease of 20 when all are due", 100, "5", func(int) { must(s.Lease(ctx, queue.LeaseRequest{Max: 20, TTL: time.Hour})) })
	timed("Stats when all are due", 100, "50", func(int) { s.Stats(ctx) })
	now, most = resident()
	report(at("memory after all"), float64(now)/(1<<20), "MiB", "400")
	report(at("peak memory of all"), float64(most)/(1<<20), "MiB", "400")
}

// TestScale fills a store with deferred items, opens it in another process, and tells in lines of
// tab-separated values what things take (what, value, unit, target). With MAILSPINE_SOAK=1 it is a
// million, and fewer to compare with; otherwise it only shows that it works.
func TestScale(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Skipf("no path of the test binary: %v", err)
	}
	sizes := []int{1000}
	if soak() {
		sizes = append(sizes, 10_000, 100_000, 1_000_000)
	}
	for _, n := range sizes {
		dir := t.TempDir()
		for _, phase := range []string{"fill", "reopen", "open"} {
			cmd := exec.Command(exe, "-test.run=^TestScaleChild$", "-test.timeout=30m")
			cmd.Env = append(os.Environ(), fmt.Sprintf("FILEQUEUE_SCALE=%s|%s|%d", phase, dir, n))
			out, err := cmd.CombinedOutput()
			for line := range strings.Lines(string(out)) {
				if testing.Verbose() && strings.HasPrefix(line, "scale\t") {
					fmt.Print(line)
				}
			}
			if err != nil {
				t.Fatalf("%s, %d items: %v\n%s", phase, n, err, out)
			}
			if phase == "reopen" {
				cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
				if testing.Verbose() {
					report(fmt.Sprintf("CPU time of reopening %d items", n), cpu.Seconds(), "s", "")
				}
			}
		}
	}
}
