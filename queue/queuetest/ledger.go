package queuetest

import (
	"bufio"
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A ledger accounts for every recipient of every message through the kills.
type ledger struct {
	t       *testing.T
	what    string
	units   map[unit]*fate
	puts    map[mailspine.MsgID]int // messages of which it is not known that they were accepted, with the number of their items
	killed  map[string]int          // rounds, by the point
	found   map[unit]string         // in which state the child that was started last found what is stored
	outlive bool                    // leases outlive a child
	looked  bool                    // the store can be looked into, so that what was not found is not there

	delivered, bounced, deleted, taken, twice int
}

// A fate is what is known of a unit.
type fate struct {
	accepted bool // Put returned nil, or it was seen in the store
	ended    bool // for sure
	held     bool // for sure
	// Since the last line it may have ended: it was delivered, is being bounced, or deleted.
	delivering, bouncing, deleting bool
	deliveries                     int
	unsettled                      int // of which Settle had not returned when the kill came, or lost the lease
}

func (l *ledger) unit(u unit) *fate {
	f := l.units[u]
	if f == nil {
		f = &fate{}
		l.units[u] = f
	}
	return f
}

// round runs a child, and notes what it says.
func (l *ledger) round(exe, point string, after int, env string) {
	l.t.Helper()
	cmd := command(exe, l.t.Name(), env)
	var stderr tail
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.found = map[unit]string{}
	opened := false
	n := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		text, ok := strings.CutPrefix(lines.Text(), linePrefix)
		if !ok {
			stderr.Write([]byte(lines.Text() + "\n"))
			continue
		}
		if n == after {
			cmd.Process.Kill()
		}
		n++
		if looked, ok := strings.CutPrefix(text, "opened "); ok {
			opened, l.looked = true, looked == "true"
			l.account()
			continue
		}
		l.note(text)
	}
	if err := cmd.Wait(); err != nil {
		l.killed[point]++
		// A signal leaves no exit code; where there are no signals, a kill leaves 1.
		if code := cmd.ProcessState.ExitCode(); code >= 0 && (code != 1 || runtime.GOOS != "windows") && !l.t.Failed() {
			l.t.Errorf("%s: the child: %v", l.what, err)
		}
	}
	if !opened {
		// It was killed while it opened the store, and told nothing; what is there is accounted for by the
		// next one.
		l.found = nil
	}
	if l.t.Failed() {
		l.t.Logf("%s: the child's last words:\n%s", l.what, stderr.b.String())
	}
}

// note takes down a line.
func (l *ledger) note(text string) {
	l.t.Helper()
	verb, rest, _ := strings.Cut(text, " ")
	name, more, _ := strings.Cut(rest, " ")
	u := unit(name)
	switch verb {
	case "found":
		l.found[u] = more
	case "putting":
		l.puts[mailspine.MsgID(name)], _ = strconv.Atoi(more)
	case "accepted":
		for i := range l.puts[mailspine.MsgID(name)] {
			l.unit(unitOf(mailspine.MsgID(name), i)).accepted = true
		}
		delete(l.puts, mailspine.MsgID(name))
	case "delivered":
		f := l.unit(u)
		f.delivering = true
		f.deliveries++
	case "settled":
		l.unit(u).end()
		l.delivered++
	case "bouncing":
		l.unit(u).bouncing = true
	case "bounced":
		l.unit(u).end()
		l.unit(u.report()).accepted = true
		l.bounced++
	case "lost":
		f := l.unit(u)
		if f.delivering {
			f.unsettled++
		}
		f.delivering, f.bouncing = false, false
	case "deleting":
		l.unit(u).deleting = true
	case "deleted":
		l.unit(u).end()
		l.deleted++
	case "kept":
		l.unit(u).deleting = false
	case "held":
		l.unit(u).held = true
	case "taken":
		l.unit(u).held = false
		l.taken++
	case "releasing":
		for _, f := range l.units {
			f.held = false
		}
	default:
		l.t.Errorf("%s: the child says %q", l.what, text)
	}
}

func (f *fate) end() {
	*f = fate{accepted: true, ended: true, deliveries: f.deliveries, unsettled: f.unsettled}
}

// account compares what is stored with what should be, after a kill.
func (l *ledger) account() {
	l.t.Helper()
	for id, n := range l.puts { // a Put that had not returned: all or nothing
		there := 0
		for i := range n {
			u := unitOf(id, i)
			if f := l.unit(u); l.found[u] != "" || f.ended || f.delivering || f.bouncing || f.deleting {
				there++
			}
		}
		if there != 0 && there != n && l.looked {
			l.t.Errorf("%s: of %s, which was being put, %d of %d items are there", l.what, id, there, n)
		}
		delete(l.puts, id)
	}
	for u := range l.found {
		l.unit(u).accepted = true
	}
	var reports []unit
	for u, f := range l.units {
		if f.delivering {
			f.unsettled++
		}
		maybe := f.delivering || f.bouncing || f.deleting
		if !l.looked {
			f.delivering, f.bouncing, f.deleting = false, false, false
			continue
		}
		state, there := l.found[u]
		switch {
		case f.ended && there:
			l.t.Errorf("%s: %s was ended, and is there again", l.what, u)
		case f.accepted && !f.ended && !maybe && !there:
			l.t.Errorf("%s: %s was accepted and is lost", l.what, u)
		case f.held && there && state != queue.ItemHeld.String() && !maybe && !(l.outlive && state == queue.ItemLeased.String()):
			l.t.Errorf("%s: %s was held, and is %s now", l.what, u, state)
		case maybe && !there:
			if f.bouncing && !f.deleting { // in one step with its report
				reports = append(reports, u.report())
				l.bounced++
			}
			f.end()
		case f.bouncing && there:
			if _, twice := l.found[u.report()]; twice {
				l.t.Errorf("%s: %s is there, and the report of its failure too", l.what, u)
			}
		}
		f.delivering, f.bouncing, f.deleting = false, false, false
	}
	for _, u := range reports {
		if f := l.unit(u); !f.accepted {
			l.t.Errorf("%s: %s, the report of a failure that was settled, is lost", l.what, u)
		}
	}
}

// finish accounts for what is in the end, and delivers it.
func (c Crash) finish(l *ledger, dir string) {
	t := l.t
	ctx := context.Background()
	s, err := c.Open(dir, func(string) {})
	if err != nil {
		t.Fatalf("%s: Open: %v", l.what, err)
	}
	defer s.Close()
	l.found = map[unit]string{}
	if err := census(ctx, s, func(u unit, st queue.ItemState) { l.found[u] = st.String() }); err != nil {
		t.Fatalf("%s: %v", l.what, err)
	}
	_, l.looked = s.(queue.Inspector)
	l.account()
	held := map[string]int{}
	for _, st := range l.found {
		held[st]++
	}
	queued := 0
	deadline := time.Now().Add(patience)
	if c.LeaseTTL < time.Hour {
		deadline = deadline.Add(c.LeaseTTL)
	}
	for time.Now().Before(deadline) {
		if ctl, ok := s.(queue.Controller); ok {
			if _, err := ctl.Control(ctx, queue.Filter{}, release); err != nil {
				t.Fatalf("%s: Control: %v", l.what, err)
			}
		}
		list, err := s.Lease(ctx, queue.LeaseRequest{Max: 100, TTL: time.Hour})
		if err != nil {
			t.Fatalf("%s: Lease: %v", l.what, err)
		}
		for _, x := range list {
			if err := contentIs(ctx, s, x.Envelope.ID, x.Size); err != nil {
				t.Fatalf("%s: %v", l.what, err)
			}
			u := unitsOf(x)
			f := l.unit(u)
			if f.ended {
				t.Errorf("%s: %s was ended, and is due", l.what, u)
			}
			f.deliveries++
			queued++
			if errs, err := s.Settle(ctx, settlement(x, queue.Delivered)); err != nil || errs[0] != nil {
				t.Fatalf("%s: Settle: %v, %v", l.what, errs, err)
			}
			f.end()
		}
		if len(list) == 0 {
			if in, ok := s.(queue.Inspector); !ok || c.LeaseTTL >= time.Hour || isEmpty(ctx, in) {
				break
			}
			time.Sleep(50 * time.Millisecond) // until the leases of dead children end
		}
	}
	if in, ok := s.(queue.Inspector); ok && !isEmpty(ctx, in) {
		t.Errorf("%s: not all that is stored can be delivered", l.what)
	}
	t.Logf("at the end: %d delivered, of which %d were held", queued, held[queue.ItemHeld.String()])
}

func isEmpty(ctx context.Context, in queue.Inspector) bool {
	st, err := in.Stats(ctx)
	return err == nil && st == (queue.Stats{})
}

// sum checks the equation, and says what happened.
func (l *ledger) sum(rounds int) {
	l.t.Helper()
	accepted := 0
	for u, f := range l.units {
		if f.accepted {
			accepted++
			if !f.ended {
				l.t.Errorf("%s was accepted and is lost", u)
			}
		}
		if f.deliveries > 1 {
			l.twice++
		}
		if f.deliveries > 1+f.unsettled {
			l.t.Errorf("%s was delivered %d times, and %d kills came between delivery and Settle", u, f.deliveries, f.unsettled)
		}
	}
	n := 0
	for _, k := range l.killed {
		n += k
	}
	l.t.Logf("%d rounds, %d killed: %d recipients accepted; %d delivered, %d bounced, %d deleted, %d taken out of turn before the end; %d delivered twice because of a kill before Settle",
		rounds, n, accepted, l.delivered, l.bounced, l.deleted, l.taken, l.twice)
	l.t.Logf("rounds that ended by a kill, by its point: %v", fmt.Sprint(l.killed))
}
