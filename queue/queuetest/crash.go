package queuetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
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

// A Crash tells [RunCrash] how to get at the driver.
type Crash struct {
	// Open opens the store in a directory, or what stands for it, in the child process that will be killed and
	// in the test's own at the end. The store calls hook, from any goroutine, at the moments that Points names;
	// a store that has no such moments ignores it. Required.
	Open func(dir string, hook func(point string)) (queue.Store, error)
	// Points names moments inside of the store at which the child is killed: between a write and its sync,
	// before a Put returns, in the middle of cleaning up. RunCrash has some of its own outside of the store.
	Points []string
	// Rounds is how many children there are, one after the other, on the same directory. 0: 20; 200 with MAILSPINE_SOAK=1.
	Rounds int
	// LeaseTTL is for stores whose leases outlive the process: how long a dead child's work is its own. Too short, a busy
	// machine loses leases, which is no failure. 0: an hour; opening the store ends the leases.
	LeaseTTL time.Duration
}

const crashRule = "What Put has accepted survives kill -9: accepted = delivered + bounced + held + queued, and deleted by command; something is delivered twice only if the kill came between the remote's 250 and Settle."

// crashEnv tells a child that it is one: the test's name, and what it is to do.
const crashEnv = "QUEUETEST_CRASH"

// linePrefix begins what a child tells its parent, so that nothing else on its standard
// output is taken for it.
const linePrefix = "queuetest: "

// RunCrash kills processes. Each round starts a child that puts, delivers, bounces, and commands,
// several at a time, telling the parent what it has done; it is killed with SIGKILL at a point, or by the
// parent at a random moment. The next child opens what is there, and every message is accounted for.
//
// The child is the test binary itself, run with -test.run for the test that called RunCrash: it comes to the same call, does
// its work there, and exits. So what the test does before that call is done in the
// child too, and dir is not the child's own t.TempDir. A TestMain need not know of it. MAILSPINE_SEED repeats the choices of a
// run, as far as the scheduler does.
func RunCrash(t *testing.T, c Crash) {
	if c.Open == nil {
		t.Fatal("queuetest: Crash.Open is nil")
	}
	if c.LeaseTTL == 0 {
		c.LeaseTTL = time.Hour
	}
	if name, job, ok := strings.Cut(os.Getenv(crashEnv), "|"); ok {
		if name != t.Name() {
			t.Skip("queuetest: this is the child of another test")
		}
		if err := c.child(job); err != nil {
			say("error", err.Error())
			os.Exit(3)
		}
		os.Exit(0)
	}
	printRule(t, crashRule)
	exe, err := os.Executable()
	if err != nil {
		t.Skipf("queuetest: no path of the test binary: %v", err)
	}
	rounds := pick(c.Rounds, 20, 20, 200)
	r := rand.New(rand.NewPCG(seed(t), 1))
	points := slices.Concat([]string{"", "", "accepted", "delivered", "commanded"}, c.Points)
	order := r.Perm(len(points))
	dir := t.TempDir()
	l := &ledger{t: t, units: map[unit]*fate{}, puts: map[mailspine.MsgID]int{}, killed: map[string]int{}, outlive: c.LeaseTTL < time.Hour}
	for round := range rounds {
		point := points[order[round%len(order)]]
		nth := 1 + r.IntN(1<<r.IntN(5)) // rare points are reached a few times only
		after := -1                     // lines until the parent kills
		if point == "" {
			after = r.IntN(350)
		}
		if round == rounds-1 {
			point, nth = "accepted", 20 // so that much is left for the end
		}
		l.what = fmt.Sprintf("round %d, kill %d at %q", round, nth, point)
		l.round(exe, point, after, fmt.Sprintf("%s=%s|%s|%d|%s|%d", crashEnv, t.Name(), dir, round, point, nth))
		if t.Failed() {
			return
		}
	}
	l.what = "at the end"
	c.finish(l, dir)
	l.sum(rounds)
}

func say(words ...string) {
	// One write is one line, and what is written is in the pipe, whatever happens then.
	io.WriteString(os.Stdout, linePrefix+strings.ReplaceAll(strings.Join(words, " "), "\n", " ")+"\n")
}

// A unit is one recipient of a message, with an item of its own: "ID:index".
type unit string

func unitOf(id mailspine.MsgID, i int) unit { return unit(fmt.Sprintf("%s:%d", id, i)) }

func (u unit) id() mailspine.MsgID {
	id, _, _ := strings.Cut(string(u), ":")
	return mailspine.MsgID(id)
}

// report is the message that a bounce of the unit emits.
func (u unit) report() unit {
	return unitOf(mailspine.MsgID(strings.ReplaceAll(string(u), ":", "-")+"-b-s"), 0)
}

func unitsOf(l queue.Lease) unit { return unitOf(l.Envelope.ID, l.Recipients[0].Index) }

// A child puts, delivers and commands until it is killed.
type child struct {
	c     Crash
	ctx   context.Context
	s     queue.Store
	hook  func(point string)
	round string
	puts  atomic.Int64 // putters that have finished
	stop  chan struct{}

	mu  sync.Mutex
	ids []mailspine.MsgID // that were accepted here, of one item each
}

const putters, putsEach = 4, 25

// child does the job "directory|round|point|count". It is the whole life of its process.
func (c Crash) child(job string) error {
	f := strings.Split(job, "|")
	if len(f) != 4 {
		return fmt.Errorf("bad job %q", job)
	}
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
	ch := &child{c: c, ctx: context.Background(), round: round, stop: make(chan struct{})}
	ch.hook = func(p string) {
		if p == point && hits.Add(1) == nth {
			self.Kill()
			select {}
		}
	}
	if ch.s, err = c.Open(dir, ch.hook); err != nil {
		return err
	}
	if err := census(ch.ctx, ch.s, func(u unit, state queue.ItemState) { say("found", string(u), state.String()) }); err != nil {
		return err
	}
	say("opened", strconv.FormatBool(is[queue.Inspector](&kit{s: ch.s})))
	var work, operator sync.WaitGroup
	for w := range putters {
		work.Go(func() { ch.put(w) })
	}
	for range 2 {
		work.Go(ch.deliver)
	}
	if ctl, ok := ch.s.(queue.Controller); ok {
		operator.Go(func() { ch.command(ctl) })
	}
	work.Wait()
	close(ch.stop)
	operator.Wait()
	return ch.s.Close()
}

// census calls found for everything that is stored, if the store can be looked into.
func census(ctx context.Context, s queue.Store, found func(unit, queue.ItemState)) error {
	in, ok := s.(queue.Inspector)
	if !ok {
		return nil
	}
	for it, err := range in.List(ctx, queue.Filter{}) {
		if err != nil {
			return fmt.Errorf("queuetest: List: %w", err)
		}
		if err := contentIs(ctx, s, it.Message, it.Size); err != nil {
			return err
		}
		for _, st := range it.States {
			found(unitOf(it.Message, st.Index), it.State)
		}
	}
	return nil
}

func (ch *child) put(w int) {
	defer ch.puts.Add(1)
	_, holds := ch.s.(queue.Controller)
	for i := range putsEach {
		id := mailspine.MsgID(fmt.Sprintf("r%s-%d-%d-%c", ch.round, w, i, "smmsl"[i%5]))
		m := message(string(id), "x: ann")
		if i%4 == 3 {
			m = message(string(id), "x: ann", "y: bob")
		}
		if holds && i%6 == 5 {
			m.Hold = "content filter"
		}
		say("putting", string(id), strconv.Itoa(len(m.Items)))
		if err := ch.s.Put(ch.ctx, m, mailspine.StringContent(bodyOf(id))); err != nil {
			say("error", "Put:", err.Error())
			return
		}
		ch.hook("accepted")
		say("accepted", string(id))
		if len(m.Items) == 1 {
			ch.mu.Lock()
			ch.ids = append(ch.ids, id)
			ch.mu.Unlock()
		}
	}
}

func (ch *child) deliver() {
	for {
		finished := ch.puts.Load() == putters
		l, err := ch.s.Lease(ch.ctx, queue.LeaseRequest{Max: 3, TTL: ch.c.LeaseTTL})
		if err != nil {
			say("error", "Lease:", err.Error())
			return
		}
		if len(l) == 0 && finished {
			return
		}
		for i, x := range l {
			if i == 2 { // some are tried again
				if err := ch.settle(x, settlement(x, queue.Open)); err != nil {
					say("error", "Settle:", err.Error())
					return
				}
				continue
			}
			if err := ch.end(x); err != nil {
				say("error", err.Error())
				return
			}
		}
	}
}

// end delivers what is leased, or bounces it.
func (ch *child) end(x queue.Lease) error {
	u := unitsOf(x)
	if err := contentIs(ch.ctx, ch.s, x.Envelope.ID, x.Size); err != nil {
		return err
	}
	if x.Route != "reports" && len(u)%5 == 0 {
		id := u.report().id()
		s := settlement(x, queue.Failed)
		s.Emit = []queue.Emission{{Message: message(string(id), "reports: sender"), Content: mailspine.StringContent(bodyOf(id))}}
		say("bouncing", string(u))
		if err := ch.settle(x, s); err != nil {
			return err
		}
		say("bounced", string(u))
		return nil
	}
	say("delivered", string(u))
	ch.hook("delivered")
	if err := ch.settle(x, settlement(x, queue.Delivered)); err != nil {
		return err
	}
	say("settled", string(u))
	return nil
}

// settle settles; a lease that is lost is told, and no error.
func (ch *child) settle(x queue.Lease, s queue.Settlement) error {
	errs, err := ch.s.Settle(ch.ctx, s)
	if err == nil {
		err = errs[0]
	}
	if errors.Is(err, queue.ErrLeaseLost) {
		say("lost", string(unitsOf(x)))
		return nil
	}
	return err
}

// command does what an operator may, to any message, until it is stopped.
func (ch *child) command(ctl queue.Controller) {
	r := rand.New(rand.NewPCG(uint64(len(ch.round)), uint64(os.Getpid())))
	for {
		select {
		case <-ch.stop:
			return
		case <-time.After(time.Millisecond / 2):
		}
		ch.mu.Lock()
		if len(ch.ids) == 0 {
			ch.mu.Unlock()
			continue
		}
		id := ch.ids[len(ch.ids)-1-r.IntN(min(len(ch.ids), 8))]
		ch.mu.Unlock()
		u := unitOf(id, 0)
		f := queue.Filter{ID: id}
		var err error
		var changed queue.Changed
		switch r.IntN(8) {
		case 0, 1, 2:
			if changed, err = ctl.Control(ch.ctx, f, hold("operator")); changed.Changed > 0 {
				say("held", string(u))
			}
		case 3:
			say("releasing")
			_, err = ctl.Control(ch.ctx, queue.Filter{State: queue.ItemHeld}, release)
		case 4:
			_, err = ctl.Control(ch.ctx, f, reroute("z"))
		case 5:
			say("deleting", string(u))
			changed, err = ctl.Control(ch.ctx, f, remove)
			if err == nil {
				say(map[bool]string{true: "deleted", false: "kept"}[changed.Changed > 0], string(u))
			}
		default:
			var l []queue.Lease
			l, err = ctl.Take(ch.ctx, queue.Filter{State: queue.ItemHeld}, 1, ch.c.LeaseTTL)
			for _, x := range l {
				say("taken", string(unitsOf(x)))
				if err == nil {
					err = ch.end(x)
				}
			}
		}
		if err != nil {
			say("error", "a command:", err.Error())
			return
		}
		ch.hook("commanded")
	}
}

// A tail keeps the last octets that were written to it.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p)
	if n := t.b.Len(); n > 16<<10 {
		t.b.Next(n - 8<<10)
	}
	return len(p), nil
}

// testPattern is the -test.run for one test or subtest.
func testPattern(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

func command(exe, name, env string) *exec.Cmd {
	cmd := exec.Command(exe, "-test.run", testPattern(name), "-test.timeout", "120s")
	cmd.Env = append(os.Environ(), env)
	return cmd
}
