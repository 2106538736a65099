package filequeue

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
)

// A limiterWorld takes and gives back by a script, on a clock of its own, and remembers what was granted.
type limiterWorld struct {
	r       *rand.Rand
	now     time.Time
	limits  []queue.Limit
	granted map[string][]limiterGrant // by Limit.String
}

type limiterGrant struct {
	at time.Time
	n  int64
}

func newLimiterWorld(seed uint64) *limiterWorld {
	return &limiterWorld{
		r:   rand.New(rand.NewPCG(seed, 7)),
		now: time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC),
		limits: []queue.Limit{
			{Kind: queue.Quota, Key: "login/ann", Max: 100, Per: queue.Day},
			{Kind: queue.Quota, Key: "login/ann", Max: 20, Per: time.Hour, Offset: 30 * time.Minute},
			{Kind: queue.Quota, Key: "login/bob", Max: 5, Per: time.Hour},
			{Kind: queue.Rate, Key: "site", Max: 60, Per: time.Hour, Burst: 20},
			{Kind: queue.Rate, Key: "slow", Max: 3, Per: time.Hour},
			{Kind: queue.Quota, Key: "large", Max: 100_000, Per: 6 * time.Hour},
		},
		granted: map[string][]limiterGrant{},
	}
}

func (w *limiterWorld) clock() time.Time { return w.now }

func (w *limiterWorld) options(fsys durable.FS) *LimiterOptions {
	return &LimiterOptions{fs: fsys, compact: 1, Now: w.clock, Logger: quiet()}
}

// run takes some steps, until one fails.
func (w *limiterWorld) run(l *Limiter, steps int) error {
	type open struct {
		id    queue.PermitID
		n     int64
		place map[string]int
	}
	var permits []open
	for range steps {
		switch w.r.IntN(10) {
		case 0, 1, 2:
			w.now = w.now.Add(time.Duration(w.r.IntN(1000)) * time.Second)
		case 3:
			if len(permits) == 0 {
				continue
			}
			p := permits[0]
			permits = permits[1:]
			unused := w.r.Int64N(p.n + 1)
			if err := l.Return(ctx, p.id, unused); err != nil {
				return err
			}
			for key, i := range p.place {
				w.granted[key][i].n -= unused
			}
		default:
			req := queue.TakeRequest{N: 1 + w.r.Int64N(6), Min: 1}
			for _, lim := range w.limits {
				if w.r.IntN(3) == 0 {
					req.Limits = append(req.Limits, lim)
				}
			}
			if len(req.Limits) == 0 {
				continue
			}
			if len(req.Limits) == 1 && req.Limits[0].Key == "large" {
				req.N *= 500
			}
			p, err := l.Take(ctx, req)
			var over *queue.OverLimit
			if errors.As(err, &over) {
				continue
			}
			if err != nil {
				return err
			}
			o := open{p.ID, p.N, map[string]int{}}
			for _, lim := range req.Limits {
				key := lim.String()
				o.place[key] = len(w.granted[key])
				w.granted[key] = append(w.granted[key], limiterGrant{w.now, p.N})
			}
			permits = append(permits, o)
		}
	}
	return nil
}

// check checks that no limit was passed, whatever came between.
func (w *limiterWorld) check(t *testing.T, what string) {
	t.Helper()
	for _, lim := range w.limits {
		grants := w.granted[lim.String()]
		switch lim.Kind {
		case queue.Quota:
			sums := map[int64]int64{}
			for _, g := range grants {
				p := (g.at.UnixNano() + int64(lim.Offset)) / int64(lim.Per)
				if sums[p] += g.n; sums[p] > lim.Max {
					t.Fatalf("%s: %v: in one period there were %d", what, lim, sums[p])
				}
			}
		case queue.Rate:
			burst := max(lim.Burst, 0)
			if burst == 0 {
				burst = lim.Max
			}
			for i := range grants {
				sum := int64(0)
				for _, g := range grants[i:] {
					sum += g.n
					span := g.at.Sub(grants[i].at)
					if most := burst + int64(float64(lim.Max)*float64(span)/float64(lim.Per)+1e-6); sum > most {
						t.Fatalf("%s: %v: in %v there were %d, over %d", what, lim, span, sum, most)
					}
				}
			}
		}
	}
}

// The power goes at every operation on the disk, and nothing that was granted is granted again.
func TestLimiterPowerCut(t *testing.T) {
	const steps = 120
	d := new(durabletest.Disk)
	w := newLimiterWorld(1)
	l := mustOpenLimiter(t, "limits", w.options(d))
	if err := w.run(l, steps); err != nil {
		t.Fatal(err)
	}
	w.check(t, "without a cut")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := l.log.log.Number(); n < 3 {
		t.Fatalf("the log was replaced %d times: that is not tested", n-1)
	}
	total := d.Ops()
	step := 3
	if ci() {
		step = 1
	}
	for at := 1; at <= total; at += step {
		for seed := range uint64(6) {
			d := new(durabletest.Disk)
			d.CutAt(at)
			w := newLimiterWorld(1)
			if l, err := OpenLimiter("limits", w.options(d)); err == nil {
				w.run(l, steps)
				l.Close()
			}
			d.Cut()
			what := fmt.Sprintf("cut at %d of %d, seed %d", at, total, seed)
			w.now = w.now.Add(time.Duration(w.r.IntN(100)) * time.Second)
			l, err := OpenLimiter("limits", w.options(d.Crash(seed)))
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if err := w.run(l, steps); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			w.check(t, what)
			l.Close()
		}
	}
}

// Each write fails once, in each way: what needed it is refused, and what was granted holds. A failed sync ends it until it is opened
// again, and what was told to be granted then is on the disk.
func TestLimiterFaults(t *testing.T) {
	const steps = 100
	for _, why := range []error{syscall.ENOSPC, syscall.EIO, &durabletest.ShortWrite{N: 7, Err: syscall.ENOSPC}} {
		for _, op := range []durabletest.Op{durabletest.Write, durabletest.Sync, durabletest.Create, durabletest.SyncDir, durabletest.Rename, durabletest.Open, durabletest.Remove} {
			for n := 1; ; n += 3 { // until there is no such call
				d := new(durabletest.Disk)
				f := &durabletest.Faults{FS: d}
				w := newLimiterWorld(2)
				hit := false
				f.Set(func(c durabletest.Call) error {
					if c.Op != op || c.OfOp != n || hit {
						return nil
					}
					hit = true
					return why
				})
				what := fmt.Sprintf("%s %d: %v", op, n, why)
				l, err := OpenLimiter("limits", w.options(f))
				if err == nil {
					for range 5 {
						err := w.run(l, steps/5)
						if err == nil {
							continue
						}
						var over *queue.OverLimit
						if errors.As(err, &over) || !mailspine.Status(err).Temporary() {
							t.Fatalf("%s: Take: %v", what, err)
						}
						if errors.Is(err, durable.ErrFailed) {
							break
						}
						// There is room again.
						if err := w.run(l, 1); err != nil {
							t.Fatalf("%s: afterwards: %v", what, err)
						}
					}
					l.Close()
				}
				d.Cut()
				for seed := range uint64(3) {
					w := &limiterWorld{r: rand.New(rand.NewPCG(seed, 3)), now: w.now, limits: w.limits, granted: cloneGrants(w.granted)}
					l, err := OpenLimiter("limits", w.options(d.Crash(seed)))
					if err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					if err := w.run(l, steps); err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					w.check(t, what)
					l.Close()
				}
				if !hit {
					break
				}
			}
		}
	}
}

func cloneGrants(m map[string][]limiterGrant) map[string][]limiterGrant {
	c := map[string][]limiterGrant{}
	for k, v := range m {
		c[k] = append([]limiterGrant(nil), v...)
	}
	return c
}

// The process is killed before a sync, another one goes on, and then the power goes.
func TestLimiterKillThenPowerCut(t *testing.T) {
	step := 4
	if ci() {
		step = 1
	}
	for n := 1; ; n += step {
		d := new(durabletest.Disk)
		f := &durabletest.Faults{FS: d}
		w := newLimiterWorld(3)
		f.Set(func(c durabletest.Call) error {
			if c.Op == durabletest.Sync && c.OfOp >= n {
				return durabletest.ErrKilled
			}
			return nil
		})
		if l, err := OpenLimiter("limits", w.options(f)); err == nil {
			w.run(l, 100)
			l.Close()
		}
		if f.Calls(durabletest.Sync) < n {
			break
		}
		l, err := OpenLimiter("limits", w.options(d))
		if err != nil {
			t.Fatalf("killed before sync %d: %v", n, err)
		}
		d.CutAt(d.Ops() + 1 + n%25)
		w.run(l, 60)
		d.Cut()
		l.Close()
		l, err = OpenLimiter("limits", w.options(d.Crash(uint64(n%5))))
		if err != nil {
			t.Fatalf("killed before sync %d, and cut: %v", n, err)
		}
		w.run(l, 100)
		w.check(t, fmt.Sprintf("killed before sync %d, and cut", n))
		l.Close()
	}
}

const limiterChild = "FILEQUEUE_LIMITER_CHILD"

var crashLimits = []queue.Limit{
	{Kind: queue.Quota, Key: "q", Max: 40_000, Per: queue.MaxPer},
	{Kind: queue.Rate, Key: "r", Max: 30_000, Per: queue.MaxPer},
	{Kind: queue.Quota, Key: "few", Max: 20, Per: queue.MaxPer},
}

// TestLimiterCrashChild is the process that TestLimiterCrash kills.
func TestLimiterCrashChild(t *testing.T) {
	job := os.Getenv(limiterChild)
	if job == "" {
		t.Skip("it is started by TestLimiterCrash")
	}
	dir, nth, _ := strings.Cut(job, "|")
	kill, err := strconv.ParseInt(nth, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	var hits atomic.Int64
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	l := mustOpenLimiter(t, dir, &LimiterOptions{compact: 1, written: func() {
		if hits.Add(1) == kill {
			self.Kill()
			select {}
		}
	}})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 400 {
				lim := crashLimits[i%len(crashLimits)]
				p, err := l.Take(ctx, queue.TakeRequest{Limits: []queue.Limit{lim}, N: 1 + int64(i%7), Min: 1})
				if err != nil {
					continue
				}
				// One write is one line. What is granted and not told yet when the kill comes is not used either.
				fmt.Fprintf(os.Stdout, "granted %s %d\n", lim.Key, p.N)
			}
		})
	}
	wg.Wait()
}

// Through any number of kills no more is granted than the limits allow, and a kill costs at most a block of each.
func TestLimiterCrash(t *testing.T) {
	rounds := 4
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
	dir := filepath.Join(t.TempDir(), "limits")
	granted := map[string]int64{}
	killed := int64(0)
	for round := range rounds {
		nth, after := 0, -1
		if round%2 == 0 {
			nth = 1 + rand.IntN(20)
		} else {
			after = rand.IntN(600)
		}
		cmd := exec.Command(exe, "-test.run=^TestLimiterCrashChild$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%d", limiterChild, dir, nth))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if n++; n == after {
				cmd.Process.Kill()
			}
			var key string
			var k int64
			if _, err := fmt.Sscanf(lines.Text(), "granted %s %d", &key, &k); err == nil {
				granted[key] += k
			} else if strings.Contains(lines.Text(), "FAIL") {
				t.Errorf("the child says %q", lines.Text())
			}
		}
		if cmd.Wait() != nil {
			killed++
		}
	}
	l := mustOpenLimiter(t, dir, nil)
	for _, lim := range crashLimits {
		used := granted[lim.Key]
		u, err := l.Usage(ctx, lim)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v: %d granted, %d used after %d kills", lim, used, u[0].Used, killed)
		if used > lim.Max || u[0].Used < used {
			t.Errorf("%v: %d were granted, and %d count", lim, used, u[0].Used)
		}
		// A block, and what four workers had been granted and not told.
		if most := used + killed*(lim.Max/50+4*7); u[0].Used > most {
			t.Errorf("%v: %d count after %d kills, over %d: they cost more than a block each", lim, u[0].Used, killed, most)
		}
	}
}

// A directory that is in use, damaged, or of a newer version is not opened: nothing is granted then.
func TestLimiterOpenErrors(t *testing.T) {
	dir := t.TempDir()
	l := mustOpenLimiter(t, dir, nil)
	var locked *durable.LockedError
	if _, err := OpenLimiter(dir, nil); !errors.As(err, &locked) {
		t.Errorf("in use: %v", err)
	}
	lim := queue.Limit{Kind: queue.Quota, Key: "q", Max: 100, Per: queue.MaxPer}
	for range 3 {
		if _, err := l.Take(ctx, queue.TakeRequest{Limits: []queue.Limit{lim}, N: 10}); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	name := filepath.Join(dir, durable.JournalName(limiterPrefix, 1))
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for at := range len(whole) {
		bad := append([]byte(nil), whole...)
		bad[at] ^= 0x40
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := OpenLimiter(dir, nil)
		if err != nil {
			continue
		}
		// The tail of a log may be torn, and there are octets that say nothing.
		u, err := l.Usage(ctx, lim)
		if err != nil || u[0].Used < 30 {
			t.Fatalf("octet %d of the log is damaged, and %d of 30 count, %v", at, u[0].Used, err)
		}
		l.Close()
	}
	log, err := durable.CreateLog(nil, filepath.Join(t.TempDir(), "x"), durable.LogOptions{Magic: limiterMagic, Version: limiterVersion + 1})
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	newer, err := os.ReadFile(log.Name())
	if err == nil {
		err = os.WriteFile(name, newer, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	var version *durable.VersionError
	if _, err := OpenLimiter(dir, nil); !errors.As(err, &version) {
		t.Errorf("a newer version: %v", err)
	}
}

// One crash after another, clean ends between them, at random moments of a random history: never more than the limits allow, and
// about as much as the limits allow when nothing crashes.
func TestLimiterLife(t *testing.T) {
	seeds := uint64(40)
	if ci() {
		seeds = 200
	}
	if soak() {
		seeds = 5000
	}
	for seed := range seeds {
		d := new(durabletest.Disk)
		w := newLimiterWorld(100 + seed)
		for range 12 {
			l, err := OpenLimiter("limits", w.options(d))
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err := w.run(l, 20+w.r.IntN(40)); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if w.r.IntN(3) == 0 {
				l.Close()
				continue
			}
			next := d.Crash(w.r.Uint64N(8))
			l.Close()
			d = next
		}
		w.check(t, fmt.Sprintf("seed %d", seed))
	}
}
