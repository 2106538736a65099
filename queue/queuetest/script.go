package queuetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// full tells whether the full counts of the crash, power-cut and fault parts are wanted,
// and more whether more than the least is.
func full() bool { return os.Getenv("MAILSPINE_SOAK") == "1" }
func more() bool { return full() || os.Getenv("MAILSPINE_CI") == "1" }

// seed returns what random choices are made from, and prints it.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if v := os.Getenv("MAILSPINE_SEED"); v != "" {
		var err error
		if n, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("MAILSPINE_SEED: %v", err)
		}
	}
	t.Logf("MAILSPINE_SEED=%d", n)
	return n
}

// printRule makes a test print its rule when it fails.
func printRule(t *testing.T, rule string) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the contract of queue.Store: %s", rule)
		}
	})
}

// bodyOf is the content of a message with an ID; its size follows from the ID's
// last letter: s small, m a few KiB, l larger than what most stores keep beside
// the envelope.
func bodyOf(id mailspine.MsgID) string {
	n := map[byte]int{'s': 10, 'm': 5000, 'l': 90 << 10}[id[len(id)-1]]
	return "Subject: " + string(id) + "\r\n\r\n" + strings.Repeat(string(id)+"\r\n", n/(len(id)+2)+1)
}

// An entry is what should be in a store of an item.
type entry struct {
	route    queue.Route
	rcpts    string // that are open
	attempts int
	state    queue.ItemState // due, waiting or held; also while a lease lasts
	reason   string          // of the hold
}

// A world is a store with what should be in it, by message and item.
type world struct {
	ctx      context.Context
	t        *testing.T
	s        queue.Store
	what     string // for messages
	unsure   func(error) bool
	msgs     map[mailspine.MsgID]queue.Message // all that were ever put
	want     map[string]entry
	accepted map[mailspine.MsgID]bool // for sure
	either   map[string]entry         // another state that is as right, or nil
	each     bool                     // it is as right for each item by itself
	leases   []queue.Lease            // to be settled, oldest first
	out      map[string]bool          // the items that are leased
	murky    func() bool              // whether others may be leased as well, because a call has failed; nil: no
	lost     bool                     // others may be, because a Lease or Abandon has failed
	failures []error
}

// newWorld makes a world of an empty store, which is opened later. unsure tells of the
// error of an operation whether it may have happened.
func newWorld(t *testing.T, unsure func(error) bool) *world {
	return &world{
		ctx: context.Background(), t: t, unsure: unsure, msgs: map[mailspine.MsgID]queue.Message{}, accepted: map[mailspine.MsgID]bool{},
		want: map[string]entry{}, out: map[string]bool{},
	}
}

func key(id mailspine.MsgID, item int) string { return fmt.Sprintf("%s#%d", id, item) }

// keyOf names the item of a message that has a recipient.
func (w *world) keyOf(id mailspine.MsgID, recipient int) string {
	for i, n := range w.msgs[id].Items {
		if slices.Contains(n.Recipients, recipient) {
			return key(id, i)
		}
	}
	return fmt.Sprintf("%s, recipient %d, which was never put", id, recipient)
}

func locals(rcpts []mailspine.Recipient) string {
	var names []string
	for _, r := range rcpts {
		names = append(names, r.Address.Local)
	}
	return strings.Join(names, " ")
}

// do runs an operation, and changes what should be there if it happened. An
// operation on several items may happen to some, each entirely or not at all.
func (w *world) do(each bool, op func() error, change func(map[string]entry)) bool {
	w.t.Helper()
	if w.either != nil {
		return false // the store has failed before
	}
	err := op()
	after := maps.Clone(w.want)
	change(after)
	if err == nil {
		w.want = after
		return true
	}
	w.failures = append(w.failures, err)
	switch {
	case w.unsure(err):
		w.either, w.each = after, each
	case each:
		w.resolve(after)
	}
	return false
}

// resolve looks which of the items are as in after.
func (w *world) resolve(after map[string]entry) {
	w.t.Helper()
	w.either, w.each = after, true
	got := w.actual(w.s)
	w.compare(got)
	w.want, w.either = got, nil
}

func (w *world) add(m queue.Message) func(map[string]entry) {
	w.msgs[m.Envelope.ID] = m
	return func(want map[string]entry) {
		for i, it := range m.Items {
			e := entry{route: it.Route, state: queue.ItemDue}
			var rcpts []mailspine.Recipient
			for _, r := range it.Recipients {
				rcpts = append(rcpts, m.Envelope.Recipients[r])
			}
			e.rcpts = locals(rcpts)
			switch {
			case m.Hold != "":
				e.state, e.reason = queue.ItemHeld, m.Hold
			case m.Delay > 0:
				e.state = queue.ItemWaiting
			}
			want[key(m.Envelope.ID, i)] = e
		}
	}
}

func (w *world) put(m queue.Message) {
	w.t.Helper()
	if w.do(false, func() error {
		return w.s.Put(w.ctx, m, mailspine.StringContent(bodyOf(m.Envelope.ID)))
	}, w.add(m)) {
		w.accepted[m.Envelope.ID] = true
	}
}

// stage puts what was staged, with a header prepended on the way, if the store
// is a Stager.
func (w *world) stage(m queue.Message) {
	w.t.Helper()
	stager, ok := w.s.(mailspine.Stager)
	if !ok {
		w.put(m)
		return
	}
	if w.do(false, func() error {
		st, err := stager.Stage(w.ctx, 0)
		if err != nil {
			return err
		}
		defer st.Close()
		b := bodyOf(m.Envelope.ID)
		if _, err := io.WriteString(st, b[20:]); err != nil {
			return err
		}
		c, err := st.Content()
		if err != nil {
			return err
		}
		return w.s.Put(w.ctx, m, mailspine.Prepend(c, []byte(b[:20])))
	}, w.add(m)) {
		w.accepted[m.Envelope.ID] = true
	}
}

// lent notes leases that were given.
func (w *world) lent(l []queue.Lease, err error) {
	if err != nil {
		w.failures = append(w.failures, err)
		w.lost = true
	}
	w.leases = append(w.leases, l...)
	for _, x := range l {
		w.out[w.keyOf(x.Envelope.ID, x.Recipients[0].Index)] = true
	}
}

func (w *world) lease(n int) {
	w.lent(w.s.Lease(w.ctx, queue.LeaseRequest{Max: n, TTL: time.Hour}))
}

// take leases what matches, if the store is a Controller.
func (w *world) take(f queue.Filter, n int) {
	if c, ok := w.s.(queue.Controller); ok {
		w.lent(c.Take(w.ctx, f, n, time.Hour))
	}
}

// settle ends the oldest lease; the first open of its recipients stay open, until the delay
// is over.
func (w *world) settle(open int, delay time.Duration, emit ...mailspine.MsgID) {
	w.t.Helper()
	if len(w.leases) == 0 {
		return
	}
	l := w.leases[0]
	w.leases = w.leases[1:]
	s := settlement(l, queue.Delivered)
	s.Delay = delay
	open = min(open, len(s.Results))
	for i := range open {
		s.Results[i] = queue.Result{State: queue.Open, Status: mailspine.Errorf(450, "4.2.1", "Try later")}
	}
	for _, id := range emit {
		s.Emit = append(s.Emit, queue.Emission{Message: message(string(id), "reports: sender"), Content: mailspine.StringContent(bodyOf(id))})
	}
	k := w.keyOf(l.Envelope.ID, l.Recipients[0].Index)
	if w.do(false, func() error {
		errs, err := w.s.Settle(w.ctx, s)
		if err != nil {
			return err
		}
		return errs[0]
	}, func(want map[string]entry) {
		if open > 0 {
			e := entry{route: l.Route, rcpts: locals(l.Envelope.Recipients[:open]), attempts: l.Attempts + 1, state: queue.ItemDue}
			if delay > 0 {
				e.state = queue.ItemWaiting
			}
			want[k] = e
		} else {
			delete(want, k)
		}
		for _, e := range s.Emit {
			w.add(e.Message)(want)
		}
	}) {
		delete(w.out, k)
		for _, id := range emit {
			w.accepted[id] = true
		}
	}
}

// abandon gives the oldest lease back.
func (w *world) abandon() {
	if len(w.leases) == 0 {
		return
	}
	l := w.leases[0]
	w.leases = w.leases[1:]
	k := w.keyOf(l.Envelope.ID, l.Recipients[0].Index)
	if err := w.s.Abandon(w.ctx, 0, "not now", l.Token); err != nil {
		w.failures = append(w.failures, err)
		w.lost = true
		return
	}
	delete(w.out, k)
}

// control carries out a command, if the store is a Controller.
func (w *world) control(f queue.Filter, c queue.Command) {
	w.t.Helper()
	ctl, ok := w.s.(queue.Controller)
	if !ok {
		return
	}
	before := maps.Clone(w.want)
	murky := w.lost || w.murky != nil && w.murky()
	if w.do(true, func() error {
		_, err := ctl.Control(w.ctx, f, c)
		return err
	}, func(want map[string]entry) {
		for k, e := range want {
			if w.out[k] || !w.match(f, k, e) {
				continue
			}
			switch c.Op {
			case queue.OpHold:
				e.state, e.reason = queue.ItemHeld, c.Reason
			case queue.OpRelease:
				if e.state == queue.ItemHeld {
					e.state, e.reason = queue.ItemDue, ""
				}
			case queue.OpFlush:
				if e.state == queue.ItemWaiting {
					e.state = queue.ItemDue
				}
			case queue.OpReroute:
				e.route = c.Route
			}
			want[k] = e
			if c.Op == queue.OpDelete {
				delete(want, k)
			}
		}
	}) && murky {
		after := w.want
		w.want = before
		w.resolve(after)
	}
}

func (w *world) match(f queue.Filter, k string, e entry) bool {
	id, _, _ := strings.Cut(k, "#")
	env := w.msgs[mailspine.MsgID(id)].Envelope.Clone()
	env.Recipients = slices.DeleteFunc(env.Recipients, func(r mailspine.Recipient) bool { return !slices.Contains(strings.Fields(e.rcpts), r.Address.Local) })
	return f.Match(queue.Item{Message: mailspine.MsgID(id), Route: e.route, Envelope: env, State: e.state})
}

// done tells which messages are finished for sure.
func (w *world) done() []mailspine.MsgID {
	left := map[string]bool{}
	for _, m := range []map[string]entry{w.want, w.either} {
		for k := range m {
			id, _, _ := strings.Cut(k, "#")
			left[id] = true
		}
	}
	var list []mailspine.MsgID
	for id := range w.accepted {
		if !left[string(id)] {
			list = append(list, id)
		}
	}
	return list
}

const month = 30 * 24 * time.Hour

// script is a workload in which everything happens: small and large content, staged or not,
// reports, retries, every command, leases that are taken; and enough of
// it comes and goes that a store that cleans up behind itself has to.
func (w *world) script() {
	w.t.Helper()
	put := func(id string, items ...string) { w.t.Helper(); w.put(message(id, items...)) }
	held := func(id string, items ...string) {
		w.t.Helper()
		m := message(id, items...)
		m.Hold = "content filter"
		w.put(m)
	}
	late := func(id string, items ...string) {
		w.t.Helper()
		m := message(id, items...)
		m.Delay = month
		w.put(m)
	}
	id := func(id mailspine.MsgID) queue.Filter { return queue.Filter{ID: id} }

	put("a-s", "x: ann bob", "y: cid")
	w.stage(message("b-l", "x: ann", "y: bob cid"))
	w.lease(2)
	w.settle(1, 0, "ra-s")
	w.settle(0, 0)
	put("c-l", "z: ann")
	// Some that stay, each as a command left it, so that they are carried along.
	put("hold-s", "stay: ann", "stay: bob")
	w.control(id("hold-s"), hold("operator"))
	held("release-m", "stay: ann", "stay2: bob")
	w.control(queue.Filter{Route: "stay2"}, release)
	late("flush-s", "stay: ann")
	late("late-m", "stay: ann")
	w.control(id("flush-s"), flush)
	put("route-s", "stay: ann", "stay2: bob")
	w.control(queue.Filter{Route: "stay2"}, reroute("stay3"))
	held("delete-l", "stay: ann", "stay2: bob")
	w.control(queue.Filter{ID: "delete-l", Route: "stay2"}, remove)
	w.control(queue.Filter{Route: "stay", State: queue.ItemDue}, hold("later"))
	w.control(queue.Filter{Route: "stay3"}, hold("later"))
	held("gone-l", "stay: ann", "stay2: bob")
	w.control(id("gone-l"), remove)
	w.control(id("c-l"), remove)
	// What is held is ended out of turn, or given back.
	held("take-m", "t: ann bob", "t2: cid", "t3: dan")
	for range 3 {
		w.take(id("take-m"), 1)
	}
	w.settle(1, month, "rt-s")
	w.abandon()
	w.settle(0, 0)
	for i := range 14 { // most of it is soon done
		put(fmt.Sprintf("d%d-m", i), "x: ann")
		w.lease(2)
		w.settle(i%5/4, 0, mailspine.MsgID(fmt.Sprintf("rd%d-m", i)))
		w.settle(0, 0)
	}
	w.stage(message("e-s", "y: ann bob cid dan"))
	w.lease(3)
	w.control(queue.Filter{}, reroute("y")) // also of what is leased
	w.abandon()
	w.settle(2, 0, "re-l", "rf-s")
	w.control(queue.Filter{Sender: "sender@example.org", State: queue.ItemHeld, Recipient: "bob@stay3"}, release)
	w.control(queue.Filter{Domain: "x"}, hold("all of x"))
	for i := range 30 {
		put(fmt.Sprintf("g%d-m", i), "x: ann")
		w.lease(2)
		w.settle(0, 0)
		w.settle(0, 0)
		if i%10 == 9 {
			w.control(queue.Filter{Domain: "x", State: queue.ItemHeld}, []queue.Command{hold("again"), reroute("w"), release}[i/10])
		}
	}
	w.lease(3)
	w.settle(1, 0)
	w.settle(0, 0)
}

// actual is what is in a store; each message has the right content.
func (w *world) actual(s queue.Store) map[string]entry {
	w.t.Helper()
	got := map[string]entry{}
	read := map[mailspine.MsgID]bool{}
	for it, err := range s.(queue.Inspector).List(w.ctx, queue.Filter{}) {
		if err != nil {
			w.t.Fatalf("%s: List: %v", w.what, err)
		}
		if len(it.States) == 0 || w.msgs[it.Message].Envelope == nil {
			w.t.Fatalf("%s: the store has %s, with %d recipients, which is none of what was put", w.what, it.Message, len(it.States))
		}
		k := w.keyOf(it.Message, it.States[0].Index)
		e := entry{route: it.Route, rcpts: locals(it.Envelope.Recipients), attempts: it.Attempts, state: it.State}
		switch it.State {
		case queue.ItemHeld:
			e.reason = it.Reason
		case queue.ItemLeased: // what comes when the lease ends
			e.state, e.reason = w.want[k].state, w.want[k].reason
		}
		if _, twice := got[k]; twice {
			w.t.Fatalf("%s: item %s is there twice", w.what, k)
		}
		got[k] = e
		if read[it.Message] {
			continue
		}
		read[it.Message] = true
		if err := contentIs(w.ctx, s, it.Message, it.Size); err != nil {
			w.t.Fatalf("%s: %v", w.what, err)
		}
	}
	return got
}

// contentIs checks the content of a message.
func contentIs(ctx context.Context, s queue.Store, id mailspine.MsgID, size int64) error {
	r, err := s.Open(ctx, id)
	if err != nil {
		return fmt.Errorf("Open(%s): %w", id, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("reading %s: %w", id, err)
	}
	if want := bodyOf(id); string(b) != want || size != int64(len(want)) {
		return fmt.Errorf("%s has %d octets of content, its size is %d, want %d", id, len(b), size, len(want))
	}
	return nil
}

// compare checks that got is what should be there.
func (w *world) compare(got map[string]entry) {
	w.t.Helper()
	ok := maps.Equal(got, w.want)
	switch {
	case ok || w.either == nil:
	case !w.each:
		ok = maps.Equal(got, w.either)
	default:
		ok = true
		for _, m := range []map[string]entry{got, w.want, w.either} {
			for k := range m {
				g, inGot := got[k]
				a, inWant := w.want[k]
				b, inEither := w.either[k]
				ok = ok && (g == a && inGot == inWant || g == b && inGot == inEither)
			}
		}
	}
	if !ok {
		w.t.Fatalf("%s: the store has (<), and should have (>)\n%s", w.what, difference(got, w.want, w.either))
	}
}

// difference shows where got is neither of two.
func difference(got, want, either map[string]entry) string {
	keys := map[string]bool{}
	for _, m := range []map[string]entry{got, want, either} {
		for k := range m {
			keys[k] = true
		}
	}
	show := func(m map[string]entry, k string) string {
		e, ok := m[k]
		if !ok {
			return "nothing"
		}
		return fmt.Sprintf("route %s, %s, %d attempts, %v %s", e.route, e.rcpts, e.attempts, e.state, e.reason)
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		g, a := show(got, k), show(want, k)
		if g == a && (either == nil || g == show(either, k)) {
			continue
		}
		fmt.Fprintf(&b, "\t%s\n\t\t< %s\n\t\t> %s\n", k, g, a)
		if o := show(either, k); either != nil && o != a {
			fmt.Fprintf(&b, "\t\t  or %s\n", o)
		}
	}
	return b.String()
}

// check looks at a store that was opened on what was left, and works with it.
func (w *world) check(s queue.Store) {
	w.t.Helper()
	got := w.actual(s)
	w.compare(got)
	for _, id := range w.done() {
		if err := s.Put(w.ctx, message(string(id), "x: again"), mailspine.StringContent(bodyOf(id))); err != nil {
			w.t.Fatalf("%s: Put of a finished message: %v", w.what, err)
		}
	}
	if again := w.actual(s); !maps.Equal(again, got) {
		w.t.Fatalf("%s: a finished message came back (>):\n%s", w.what, difference(got, again, nil))
	}
	if err := s.Put(w.ctx, message("after-s", "new: ann"), mailspine.StringContent(bodyOf("after-s"))); err != nil {
		w.t.Fatalf("%s: Put after it: %v", w.what, err)
	}
	st, err := s.(queue.Inspector).Stats(w.ctx)
	if err != nil || st.Items != int64(len(got)+1) {
		w.t.Fatalf("%s: Stats: %+v, %v; want %d items", w.what, st, err, len(got)+1)
	}
	l, err := s.Lease(w.ctx, queue.LeaseRequest{Max: 1000})
	if err != nil || int64(len(l)) != st.Due {
		w.t.Fatalf("%s: leased %d of %d items that are due, %v", w.what, len(l), st.Due, err)
	}
	for _, x := range l {
		if errs, err := s.Settle(w.ctx, settlement(x, queue.Open)); err != nil || errs[0] != nil {
			w.t.Fatalf("%s: Settle: %v, %v", w.what, errs, err)
		}
	}
	if c, ok := s.(queue.Controller); ok {
		want := queue.Changed{Matched: st.Items, Changed: st.Items - st.Leased, Leased: st.Leased}
		if ch, err := c.Control(w.ctx, queue.Filter{}, hold("check")); err != nil || ch != want {
			w.t.Fatalf("%s: Control: %+v, %v; want %+v", w.what, ch, err, want)
		}
	}
}

// inspector fails the test of a store that cannot be looked into.
func inspector(t *testing.T, s queue.Store) {
	t.Helper()
	if _, ok := s.(queue.Inspector); !ok {
		t.Fatal("queuetest: this part needs a store that is a queue.Inspector")
	}
}

// A ShortWrite is what a fault returns that lets N octets of a write through, and
// fails then with Err. Calls other than writes fail with Err.
type ShortWrite struct {
	N   int
	Err error
}

// Error describes the fault; who writes gets Err.
func (s *ShortWrite) Error() string { return "short write: " + s.Err.Error() }

// Unwrap returns Err.
func (s *ShortWrite) Unwrap() error { return s.Err }

// ErrKilled is what a fault returns to a process that is dead: the call, and every later one, does
// nothing, but what was written before is left to the system.
var ErrKilled = errors.New("queuetest: the process is dead")
