package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/control"
)

// A fakeQueue says what it is told to, so that what is printed does not depend on the time.
type fakeQueue struct {
	items   []queue.Item
	groups  []queue.Group
	stats   queue.Stats
	health  error
	changed queue.Changed
	err     error // of commands
	did     []string
}

func (f *fakeQueue) List(_ context.Context, filter queue.Filter) iter.Seq2[queue.Item, error] {
	return func(yield func(queue.Item, error) bool) {
		for _, it := range f.items {
			if filter.Match(it) && !yield(it, nil) {
				return
			}
		}
	}
}

func (f *fakeQueue) StoreStats(context.Context) (queue.Stats, error) { return f.stats, nil }
func (f *fakeQueue) Health(context.Context) error                    { return f.health }

func (f *fakeQueue) Breakdown(context.Context) iter.Seq2[queue.Group, error] {
	return func(yield func(queue.Group, error) bool) {
		for _, g := range f.groups {
			if !yield(g, nil) {
				return
			}
		}
	}
}

func (f *fakeQueue) Control(_ context.Context, filter queue.Filter, c queue.Command) (queue.Changed, error) {
	f.did = append(f.did, fmt.Sprintf("%s %q %q %+v", c.Op, c.Reason, c.Route, filter))
	return f.changed, f.err
}

func (f *fakeQueue) Bounce(_ context.Context, filter queue.Filter, st *mailspine.Error) (queue.Changed, error) {
	f.did = append(f.did, fmt.Sprintf("bounce %q %+v", st.Reply(), filter))
	return f.changed, f.err
}

const fakeContent = "Received: from client.example\r\n\tby mx.example.org\r\nSubject: \x1b[31mred\x1b[0m \xff\u009b1m\r\n\r\nHello,\r\n\ttab\x07 bell\rreturn\nbare \u202eLTR\r\n\r\nBye"

func newFake() *fakeQueue {
	addr := func(s string) mailspine.Address {
		a, err := mailspine.ParseAddress(s)
		if err != nil {
			panic(err)
		}
		return a
	}
	env := func(id mailspine.MsgID, tenant, from string, rcpts ...string) *mailspine.Envelope {
		e := &mailspine.Envelope{ID: id, Tenant: tenant}
		if from != "" {
			e.From = addr(from)
		}
		for _, r := range rcpts {
			e.Recipients = append(e.Recipients, mailspine.Recipient{Address: addr(r)})
		}
		return e
	}
	first := env("01KA5N3MBJ5ZXD1W6M0R7F0Q2A", "acme", "ann@example.org", "bob@example.net", "eve@example.net")
	first.Stream, first.Pool, first.Ret, first.EnvID, first.Priority, first.Body = "news", "shared", mailspine.RetHdrs, "QQ314159", 3, mailspine.Body8Bit
	first.Recipients[1].Notify, first.Recipients[1].ORcpt = mailspine.NotifyFailure|mailspine.NotifyDelay, "rfc822;eve@example.com"
	first.Origin = mailspine.Origin{
		Addr: netip.MustParseAddrPort("192.0.2.1:4711"), Helo: "evil\x1b]0;title\x07", Proto: "ESMTPSA", Login: "ann",
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), TLS: mailspine.TLSInfo{Version: "TLS 1.3"},
	}
	first.Verdict = &mailspine.Verdict{SPF: "pass", DKIM: "fail", FromDomain: "example.org"}
	first.Meta = map[string]string{"order": "17", "batch": "a\nb"}
	refused := queue.Result{
		Status:  &mailspine.Error{Code: 450, Enhanced: mailspine.EnhancedCode{4, 2, 0}, Message: "Greylisted \x1b[2J\u009b2J\u202e", Err: errors.New("450 4.2.0 Greylisted \x1b[2J\u009b2J\u202e: try \x07later")},
		Receipt: mailspine.Receipt{RemoteMTA: "mx.example.net", RemoteAddr: "192.0.2.9:25", TLS: mailspine.TLSInfo{Version: "TLS 1.2"}},
	}
	return &fakeQueue{
		items: []queue.Item{
			{ID: 3, Message: "01KA5N3MBJ5ZXD1W6M0R7F0Q2C", Route: "example.com", State: queue.ItemHeld, Age: 26 * time.Hour, Size: 900,
				Reason: "unpaid", Envelope: env("01KA5N3MBJ5ZXD1W6M0R7F0Q2C", "", "", "Zoë@bücher.example"), States: []queue.RecipientState{{}}},
			{ID: 1, Message: first.ID, Route: "example.net", State: queue.ItemWaiting, Age: 90 * time.Minute, Due: 5*time.Minute + 30*time.Second,
				Attempts: 4, Size: 10240, Envelope: first, States: []queue.RecipientState{{Last: refused, Warned: true}, {Index: 1}}},
			{ID: 2, Message: first.ID, Route: "slow.example", State: queue.ItemLeased, Age: 90 * time.Minute, Due: 4 * time.Minute, Size: 10240,
				Envelope: env(first.ID, "acme", "ann@example.org", "joe@slow.example"), States: []queue.RecipientState{{Index: 2}}},
			{ID: 4, Message: "x", Route: "", State: queue.ItemDue, Age: 59 * time.Second, Due: -time.Second, Size: 1,
				Envelope: env("x", "te\tnant", "a@example.org", "b@[192.0.2.1]"), States: []queue.RecipientState{{}}},
		},
		groups: []queue.Group{
			{Route: "example.net", Tenant: "acme", Items: 5, Waiting: 4, Held: 1}, {Route: "example.net", Tenant: "other", Items: 2, Due: 2},
			{Route: "example.com", Tenant: "", Items: 1, Held: 1}, {Route: "slow.example", Tenant: "acme", Items: 1, Leased: 1},
			{Route: "\x1b[2J", Tenant: "acme", Items: 1, Leased: 1},
		},
		stats:   queue.Stats{Messages: 9, Items: 10, Due: 2, Waiting: 4, Leased: 2, Held: 2, Bytes: 123456},
		changed: queue.Changed{Matched: 4, Changed: 2, Leased: 1},
	}
}

// serveQueue serves a queue, and returns the path of its socket: short, since systems bound it.
func serveQueue(t *testing.T, q control.Queue, open func(context.Context, mailspine.MsgID) (io.ReadCloser, error)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "control")
	serveQueueAt(t, path, q, open)
	return path
}

func serveQueueAt(t *testing.T, path string, q control.Queue, open func(context.Context, mailspine.MsgID) (io.ReadCloser, error)) {
	t.Helper()
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &control.Server{Queue: q, Open: open, Logger: slog.New(slog.DiscardHandler)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func openFake(context.Context, mailspine.MsgID) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(fakeContent)), nil
}

// What is printed, for people and for programs. None of it drives a terminal.
func TestQueueGolden(t *testing.T) {
	path := serveQueue(t, newFake(), openFake)
	for _, tt := range []struct{ name, args string }{
		{"list", "list"},
		{"list-filter", "list -tenant acme -state waiting"},
		{"show", "show 01KA5N3MBJ5ZXD1W6M0R7F0Q2A"},
		{"show-body", "show -body x"},
		{"stats", "stats -top 2"},
		{"delete-dry", "delete -n -tenant acme"},
		{"flush", "flush -all"},
	} {
		for _, form := range []string{"txt", "json"} {
			args := append(strings.Fields("queue "+tt.args), "-control", path)
			if form == "json" {
				args = append(args, "-json")
			}
			code, out, errs := tool(t, args...)
			if code != exitOK || errs != "" {
				t.Errorf("%s: exit %d: %s", tt.args, code, errs)
			}
			out = steady(out)
			golden(t, "queue-"+tt.name+"."+form, out)
			for _, c := range out {
				if c != '\n' && drives(c) {
					t.Errorf("%s %s: %q gets to the terminal", tt.args, form, c)
					break
				}
			}
		}
	}
}

// steady takes out what differs from run to run.
func steady(s string) string {
	lines := strings.SplitAfter(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "Server ") {
			lines[i] = "Server     (varies)\n"
		}
		if head, _, ok := strings.Cut(l, `,"server":{`); ok {
			lines[i] = head + ",\"server\":(varies)\n"
		}
	}
	return strings.Join(lines, "")
}

func TestQueueRaw(t *testing.T) {
	path := serveQueue(t, newFake(), openFake)
	code, out, errs := tool(t, "queue", "show", "-control", path, "-raw", "x")
	if code != exitOK || out != fakeContent || errs != "" {
		t.Errorf("exit %d: %q, %s", code, out, errs)
	}
}

// A message that cannot be read to its end is a failure, whatever was printed.
func TestQueueRotten(t *testing.T) {
	path := serveQueue(t, newFake(), func(context.Context, mailspine.MsgID) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader("Subject: x\r\n\r\nhalf"), failing{})), nil
	})
	for _, args := range [][]string{{"-body"}, {"-raw"}, {"-json", "-body"}} {
		if code, _, errs := tool(t, append([]string{"queue", "show", "-control", path, "x"}, args...)...); code != exitProblem || errs == "" {
			t.Errorf("%v: exit %d: %s", args, code, errs)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("checksum") }

// Each command does what its name says with what its flags select.
func TestQueueCommands(t *testing.T) {
	f := newFake()
	path := serveQueue(t, f, openFake)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"hold", "-id", "x"}, `hold "held by the operator" "" ` + fmt.Sprintf("%+v", queue.Filter{ID: "x"})},
		{[]string{"hold", "-all", "-reason", "un paid"}, `hold "un paid" "" ` + fmt.Sprintf("%+v", queue.Filter{})},
		{[]string{"release", "x"}, `release "" "" ` + fmt.Sprintf("%+v", queue.Filter{ID: "x"})},
		{[]string{"flush", "-route", "r", "-item", "7"}, `flush "" "" ` + fmt.Sprintf("%+v", queue.Filter{Route: "r", Item: 7})},
		{[]string{"delete", "-sender", "<>", "-older", "1d12h", "-younger", "5d"}, `delete "" "" ` +
			fmt.Sprintf("%+v", queue.Filter{Sender: "<>", MinAge: 36 * time.Hour, MaxAge: 120 * time.Hour})},
		{[]string{"reroute", "-domain", "d.example", "-to", "x"}, `reroute "" "x" ` + fmt.Sprintf("%+v", queue.Filter{Domain: "d.example"})},
		{[]string{"reroute", "-recipient", "@d.example", "-anew"}, `reroute "" "" ` + fmt.Sprintf("%+v", queue.Filter{Recipient: "@d.example"})},
		{[]string{"bounce", "-tenant", "t", "-stream", "s", "-state", "held", "-status", "5.7.1 Not wanted"}, `bounce "550 5.7.1 Not wanted" ` +
			fmt.Sprintf("%+v", queue.Filter{Tenant: "t", Stream: "s", State: queue.ItemHeld})},
		{[]string{"bounce", "-all", "-status", "554 5.3.0  Gone "}, `bounce "554 5.3.0 Gone" ` + fmt.Sprintf("%+v", queue.Filter{})},
	} {
		f.did = nil
		code, out, errs := tool(t, append([]string{"queue", tt.args[0], "-control", path}, tt.args[1:]...)...)
		if code != exitOK || errs != "" || !strings.Contains(out, "2 of 4 items") || !strings.Contains(out, "1 being delivered") {
			t.Errorf("%v: exit %d: %s%s", tt.args, code, out, errs)
		}
		if got := strings.Join(f.did, "\n"); got != tt.want {
			t.Errorf("%v:\n got %s\nwant %s", tt.args, got, tt.want)
		}
		// The same, only pretended.
		f.did = nil
		if code, _, errs := tool(t, append([]string{"queue", tt.args[0], "-n", "-control", path}, tt.args[1:]...)...); len(f.did) != 0 || errs != "" && code != exitProblem {
			t.Errorf("%v -n: exit %d: %s; %v", tt.args, code, errs, f.did)
		}
	}
	f.err = errors.New("disk")
	code, out, errs := tool(t, "queue", "delete", "-all", "-control", path)
	if code != exitProblem || !strings.Contains(out, "2 of 4") || !strings.Contains(errs, "disk") {
		t.Errorf("a failure in the middle: exit %d: %s%s", code, out, errs)
	}
	f.err, f.changed = nil, queue.Changed{}
	if code, _, errs := tool(t, "queue", "flush", "-all", "-control", path); code != exitOK {
		t.Errorf("an empty queue: exit %d: %s", code, errs)
	}
	for _, args := range []string{"flush -id gone", "flush gone", "list gone", "show gone", "flush -item 99", "flush -n gone"} {
		if code, _, errs := tool(t, append([]string{"queue"}, strings.Fields(args+" -control "+path)...)...); code != exitProblem || !strings.Contains(errs, "no such message") {
			t.Errorf("%s: exit %d: %s", args, code, errs)
		}
	}
	f.health = errors.New("the disk is full")
	for _, form := range []string{"", "-json"} {
		code, out, _ := tool(t, strings.Fields("queue stats -control "+path+" "+form)...)
		if code != exitProblem || !strings.Contains(out, "the disk is full") {
			t.Errorf("bad health: exit %d: %s", code, out)
		}
	}
}

// Wrong usage changes nothing, and says which flag it is.
func TestQueueUsage(t *testing.T) {
	f := newFake()
	path := serveQueue(t, f, openFake)
	empty := t.TempDir()
	for _, tt := range []struct {
		want string
		args string
	}{
		{"usage", ""},
		{`"explode"`, "explode"},
		{"-spool or -control", "list"},
		{"-nonsense", "list -nonsense -control P"},
		{"-all", "delete -control P"},
		{"-all", "bounce -status 5.1.1_x -control P"},
		{"exclude", "delete -all -id x -control P"},
		{"exclude", "delete -all x -control P"},
		{"more than one ID", "delete a b -control P"},
		{"-id, and an ID", "delete -id a b -control P"},
		{"no message ID", "delete a/b -control P"},
		{"-id", "delete -id a/b -control P"},
		{"-id", "delete -control P -id="},
		{"-tenant", "delete -control P -tenant="},
		{"-route", "delete -control P -route="},
		{"-item", "delete -item 0 -control P"},
		{"-item", "delete -item x -control P"},
		{"-state", "list -state broken -control P"},
		{"-state", "list -state any -control P"},
		{"-older", "list -older soon -control P"},
		{"-older", "list -older 0s -control P"},
		{"-older", "list -older -5m -control P"},
		{"-older", "list -older= -control P"},
		{"-older", "list -older d -control P"},
		{"MaxAge", "list -older 2d -younger 1d -control P"},
		{"Sender", "list -sender nobody -control P"},
		{"Domain", "list -domain a..b -control P"},
		{"ID is missing", "show -control P"},
		{"-raw", "show -raw -json x -control P"},
		{"-id", "show -id x -control P"},
		{"a reason", "hold x -reason= -control P"},
		{"where to", "reroute x -control P"},
		{"where to", "reroute x -to y -anew -control P"},
		{"-status", "bounce x -control P"},
		{"-status", "bounce x -status 5.1.1 -control P"},
		{"-status", "bounce x -status 4.1.1_x -control P"},
		{"-status", "bounce x -status 450_5.1.1_x -control P"},
		{"-status", "bounce x -status hello -control P"},
		{"-top", "stats -top -1 -control P"},
		{`"x"`, "stats x -control P"},
	} {
		args := strings.Fields("queue " + tt.args)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "_", " ")
			if args[i] == "P" {
				args[i] = path
			}
		}
		code, out, errs := tool(t, args...)
		if code != exitUsage || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%s: exit %d: %s%s", tt.args, code, out, errs)
		}
	}
	if len(f.did) > 0 {
		t.Errorf("in spite of wrong usage: %v", f.did)
	}
	for _, args := range [][]string{{"queue", "-h"}, {"queue", "help"}, {"queue", "list", "-h"}, {"queue", "bounce", "-h"}} {
		if code, out, errs := tool(t, args...); code != exitOK || !strings.Contains(out+errs, "usage") {
			t.Errorf("%v: exit %d: %s%s", args, code, out, errs)
		}
	}
	// What is not there, or is something else, is not made and not touched.
	for _, tt := range []struct{ want, args string }{
		{"no such file", "-spool " + filepath.Join(empty, "none")},
		{"is not the spool of a queue", "-spool " + empty},
		{"is no directory", "-spool " + writeFile(t, "x")},
		{"no server", "-control " + filepath.Join(empty, "none")},
	} {
		code, _, errs := tool(t, strings.Fields("queue list "+tt.args)...)
		if code != exitProblem || !strings.Contains(errs, tt.want) {
			t.Errorf("%s: exit %d: %s", tt.args, code, errs)
		}
	}
	if entries, err := os.ReadDir(empty); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

// More than is sorted is printed all the same.
func TestQueueLong(t *testing.T) {
	f := &fakeQueue{}
	for n := range queue.ItemID(maxSorted + 100) {
		f.items = append(f.items, queue.Item{ID: n + 1, Message: "m", State: queue.ItemDue, Age: time.Duration(n) * time.Second,
			Envelope: &mailspine.Envelope{Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "a", Domain: "b.example"}}}}, States: make([]queue.RecipientState, 1)})
	}
	path := serveQueue(t, f, openFake)
	code, out, errs := tool(t, "queue", "list", "-control", path, "-json")
	if n := strings.Count(out, "\n"); code != exitOK || n != maxSorted+100 {
		t.Errorf("exit %d: %d lines; %s", code, n, errs)
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 59*time.Second + 999*time.Millisecond: "59s", time.Minute: "1m00s", 90 * time.Minute: "1h30m", 25 * time.Hour: "1d01h", -90 * time.Second: "-1m30s",
	} {
		if got := short(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
