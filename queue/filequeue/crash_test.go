package filequeue

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

const crashEnv = "FILEQUEUE_CRASH_CHILD"

func TestMain(m *testing.M) {
	if job := os.Getenv(crashEnv); job != "" {
		if err := crashChild(job); err != nil {
			fmt.Println("error", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// crashPoints are where a child kills itself; "" lets the parent do it at some moment.
var crashPoints = []string{
	"", "put.encoded", "journal.written", "journal.durable", "put.done", "settle.prepared", "settle.done", "put.staged", "put.synced",
	"put.renamed", "put.dirsynced", "journal.rotated", "compact.copied", "compact.removed", "delivered",
}

// crashChild puts and delivers, telling on its standard output what it has
// done, until it is killed. The job is "directory|round|point|count".
func crashChild(job string) error {
	f := strings.Split(job, "|")
	dir, round, point := f[0], f[1], f[2]
	nth, err := strconv.ParseInt(f[3], 10, 64)
	if err != nil {
		return err
	}
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		return err
	}
	var hits atomic.Int64
	hook := func(p string) {
		if p == point && hits.Add(1) == nth {
			self.Kill()
			select {}
		}
	}
	// One write is one line, and what is written is in the pipe, whatever happens then.
	say := func(what string, id mailspine.MsgID) { fmt.Fprintf(os.Stdout, "%s %s\n", what, id) }
	s, err := Open(dir, &Options{SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet(), testHook: hook})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var puts atomic.Int64
	const putters, each = 4, 25
	for w := range putters {
		wg.Go(func() {
			defer puts.Add(1)
			for i := range each {
				id := mailspine.MsgID(fmt.Sprintf("r%s-%d-%d-%c", round, w, i, "smmsl"[i%5]))
				if err := s.Put(ctx, newMessage(id, "x: ann"), mailspine.StringContent(bodyOf(id))); err != nil {
					say("error-put", id)
					return
				}
				say("accepted", id)
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for {
				finished := puts.Load() == putters
				l, err := s.Lease(ctx, queue.LeaseRequest{Max: 3, TTL: time.Hour})
				if err != nil {
					say("error-lease", "")
					return
				}
				if len(l) == 0 && finished {
					return
				}
				for i, x := range l {
					if err := deliver(s, x); err != nil {
						say("error-content", x.Envelope.ID)
						return
					}
					if i == 2 { // some are tried again
						s.Settle(ctx, queue.Settlement{Token: x.Token, Results: []queue.Result{{State: queue.Open}}})
						continue
					}
					say("delivered", x.Envelope.ID)
					hook("delivered")
					if errs, err := s.Settle(ctx, queue.Settlement{Token: x.Token, Results: []queue.Result{{State: queue.Delivered}}}); err != nil || errs[0] != nil {
						say("error-settle", x.Envelope.ID)
						return
					}
					say("settled", x.Envelope.ID)
				}
			}
		})
	}
	wg.Wait()
	return s.Close()
}

// deliver reads a message and compares it with what was put.
func deliver(s *Store, x queue.Lease) error {
	r, err := s.Open(ctx, x.Envelope.ID)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err == nil && string(b) != bodyOf(x.Envelope.ID) {
		err = fmt.Errorf("%s has other content", x.Envelope.ID)
	}
	return err
}

// Accepted is delivered and queued, through any number of kills: nothing is
// lost, and only what was delivered but not settled when the kill came is
// delivered again.
func TestCrash(t *testing.T) {
	rounds := 5
	if ci() {
		rounds = 20
	}
	if soak() {
		rounds = 200
	}
	exe, err := os.Executable()
	if err != nil {
		t.Skipf("no path of the test binary: %v", err)
	}
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("MAILSPINE_SEED"); v != "" {
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MAILSPINE_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	order := r.Perm(len(crashPoints))
	dir := t.TempDir()
	accepted, delivered, again := map[string]bool{}, map[string]int{}, map[string]int{}
	killed := 0
	for round := range rounds {
		point := crashPoints[order[round%len(order)]]
		nth := 1 + r.IntN(12)
		switch point {
		case "journal.rotated", "compact.copied", "compact.removed":
			nth = 1 + r.IntN(3)
		}
		what := fmt.Sprintf("round %d, kill %d at %q", round, nth, point)
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%d|%s|%d", crashEnv, dir, round, point, nth))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := -1 // lines until the parent kills
		if point == "" {
			after = r.IntN(250)
		}
		open := map[string]bool{} // delivered and not settled
		n := 0
		for lines := bufio.NewScanner(out); lines.Scan(); n++ {
			if n == after {
				cmd.Process.Kill()
			}
			verb, id, _ := strings.Cut(lines.Text(), " ")
			switch verb {
			case "accepted":
				accepted[id] = true
			case "delivered":
				delivered[id]++
				open[id] = true
			case "settled":
				delete(open, id)
			default:
				t.Errorf("%s: the child says %q", what, lines.Text())
			}
		}
		if err := cmd.Wait(); err != nil {
			killed++
		}
		for id := range open {
			again[id]++
		}
		if t.Failed() {
			return
		}
	}
	s := mustOpen(t, dir, &Options{SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet()})
	queued := 0
	for {
		l, err := s.Lease(ctx, queue.LeaseRequest{Max: 100, TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if len(l) == 0 {
			break
		}
		for _, x := range l {
			if err := deliver(s, x); err != nil {
				t.Fatal(err)
			}
			delivered[string(x.Envelope.ID)]++
			queued++
			if errs, err := s.Settle(ctx, queue.Settlement{Token: x.Token, Results: []queue.Result{{State: queue.Delivered}}}); err != nil || errs[0] != nil {
				t.Fatal(errs, err)
			}
		}
	}
	if st, err := s.Stats(ctx); err != nil || st != (queue.Stats{}) {
		t.Errorf("left are %+v, %v", st, err)
	}
	twice := 0
	for id := range accepted {
		if delivered[id] == 0 {
			t.Errorf("%s was accepted and is lost", id)
		}
	}
	for id, n := range delivered {
		if n > 1 {
			twice++
		}
		if n > 1+again[id] {
			t.Errorf("%s was delivered %d times, and %d kills came between delivery and Settle", id, n, again[id])
		}
	}
	t.Logf("%d rounds, %d killed: %d accepted, %d delivered, %d of them at the end, %d twice because of a kill before Settle",
		rounds, killed, len(accepted), len(delivered), queued, twice)
}
