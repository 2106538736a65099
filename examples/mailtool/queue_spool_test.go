package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

var quiet = slog.New(slog.DiscardHandler)

// put stores messages from a tenant to recipients of their own, each with its ID.
func put(t *testing.T, q *queue.Queue, tenant string, to ...string) {
	t.Helper()
	for _, rcpt := range to {
		a, err := mailspine.ParseAddress(rcpt)
		if err != nil {
			t.Fatal(err)
		}
		env := &mailspine.Envelope{
			ID: mailspine.MsgID(a.Local), From: mailspine.Address{Local: "ann", Domain: "example.org"}, Tenant: tenant,
			Recipients: []mailspine.Recipient{{Address: a}},
		}
		if err := q.Deliver(t.Context(), env, mailspine.StringContent("Subject: to "+a.Local+"\r\n\r\nHello\r\n")); err != nil {
			t.Fatal(err)
		}
	}
}

// spool makes a spool with messages m1 to m3, and closes it.
func spool(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "q") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	store, err := filequeue.Open(dir, &filequeue.Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	put(t, &queue.Queue{Store: store, Logger: quiet}, "acme", "m1@example.net", "m2@example.net")
	put(t, &queue.Queue{Store: store, Logger: quiet}, "other", "m3@example.com")
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ok runs the tool, which has to succeed.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := tool(t, append([]string{"queue"}, args...)...)
	if code != exitOK || errs != "" {
		t.Fatalf("%v: exit %d: %s%s", args, code, out, errs)
	}
	return out
}

// states returns the state of each message that list shows.
func states(t *testing.T, args ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for l := range strings.Lines(ok(t, append([]string{"list", "-json"}, args...)...)) {
		var it shownItem
		if err := json.Unmarshal([]byte(l), &it); err != nil {
			t.Fatal(err)
		}
		all[string(it.Message)] = it.State + " " + string(it.Route)
	}
	return all
}

func same(t *testing.T, got map[string]string, want ...string) {
	t.Helper()
	if len(got) != len(want)/2 {
		t.Errorf("got %v, want %v", got, want)
		return
	}
	for i := 0; i < len(want); i += 2 {
		if got[want[i]] != want[i+1] {
			t.Errorf("%s: %q, want %q", want[i], got[want[i]], want[i+1])
		}
	}
}

// The commands on the spool of a queue that is not running.
func TestQueueStopped(t *testing.T) {
	dir := spool(t)
	same(t, states(t, "-spool", dir), "m1", "due example.net", "m2", "due example.net", "m3", "due example.com")
	if out := ok(t, "show", "-spool", dir, "m1"); !strings.Contains(out, "Subject: to m1\n") || strings.Contains(out, "Hello") {
		t.Errorf("show: %s", out)
	}
	if out := ok(t, "stats", "-spool", dir); !strings.Contains(out, "not running") || !strings.Contains(out, "Messages   3 with") || !strings.Contains(out, "Health     ok") {
		t.Errorf("stats: %s", out)
	}
	if out := ok(t, "hold", "-spool", dir, "-tenant", "acme", "-reason", "unpaid"); out != "2 of 2 items held\n" {
		t.Errorf("hold: %s", out)
	}
	same(t, states(t, "-spool", dir), "m1", "held example.net", "m2", "held example.net", "m3", "due example.com")
	if out := ok(t, "release", "-spool", dir, "-all"); out != "2 of 3 items released\n" {
		t.Errorf("release: %s", out)
	}
	ok(t, "reroute", "-spool", dir, "m1", "-to", "elsewhere")
	same(t, states(t, "-spool", dir), "m1", "due elsewhere", "m2", "due example.net", "m3", "due example.com")
	ok(t, "reroute", "-spool", dir, "-route", "elsewhere", "-anew")
	same(t, states(t, "-spool", dir), "m1", "due example.net", "m2", "due example.net", "m3", "due example.com")
	if out := ok(t, "delete", "-spool", dir, "-n", "-all"); !strings.Contains(out, "3 of 3 items would be deleted\n") {
		t.Errorf("delete -n: %s", out)
	}
	if out := ok(t, "delete", "-spool", dir, "-domain", "example.com"); out != "1 of 1 item deleted\n" {
		t.Errorf("delete: %s", out)
	}
	same(t, states(t, "-spool", dir), "m1", "due example.net", "m2", "due example.net")

	// The report of a bounce waits in the spool, and says what the operator said.
	if out := ok(t, "bounce", "-spool", dir, "-hostname", "mx.example.org", "-status", "5.7.1 Not wanted here", "m2"); out != "1 of 1 item bounced\n" {
		t.Errorf("bounce: %s", out)
	}
	got := states(t, "-spool", dir, "-sender", "<>")
	if len(got) != 1 {
		t.Fatalf("reports: %v", got)
	}
	for id, state := range got {
		out := ok(t, "show", "-spool", dir, "-body", id)
		if state != "due example.org" || !strings.Contains(out, "550 5.7.1 Not wanted here") || !strings.Contains(out, "mx.example.org") {
			t.Errorf("report, %s: %s", state, out)
		}
	}
	if code, _, errs := tool(t, "queue", "delete", "-spool", dir, "m2"); code != exitProblem || !strings.Contains(errs, "no such message") {
		t.Errorf("what is gone: exit %d: %s", code, errs)
	}
}

// A spool that is in use is not opened a second time: without a socket that is an error, with one it is asked.
func TestQueueRunning(t *testing.T) {
	dir := spool(t)
	store, err := filequeue.Open(dir, &filequeue.Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for _, args := range []string{"list", "delete -all", "doctor"} {
		code, _, errs := tool(t, strings.Fields("queue "+args+" -spool "+dir)...)
		if code != exitProblem || !strings.Contains(errs, "locked by process") {
			t.Errorf("%s: exit %d: %s", args, code, errs)
		}
		if args != "doctor" && !strings.Contains(errs, "there is no "+dir) {
			t.Errorf("%s: %s", args, errs)
		}
	}
	q := &queue.Queue{Store: store, Logger: quiet}
	serveQueueAt(t, filepath.Join(dir, "control"), q, nil)
	same(t, states(t, "-spool", dir, "-tenant", "acme"), "m1", "due example.net", "m2", "due example.net")
	if code, _, errs := tool(t, "queue", "doctor", "-spool", dir); code != exitProblem || !strings.Contains(errs, fmt.Sprintf("process %d: stop it first", os.Getpid())) {
		t.Errorf("doctor: exit %d: %s", code, errs)
	}
	// Its health is that of a queue that does not deliver.
	if code, out, _ := tool(t, "queue", "stats", "-spool", dir); code != exitProblem || !strings.Contains(out, "not running") {
		t.Errorf("stats: exit %d: %s", code, out)
	}
}

// A socket that a killed process left is no queue.
func TestQueueKilled(t *testing.T) {
	dir := spool(t)
	path := filepath.Join(dir, "control")
	deadSocket(t, path).Close()
	same(t, states(t, "-spool", dir, "-tenant", "other"), "m3", "due example.com")
	ok(t, "doctor", "-spool", dir)
	if code, _, errs := tool(t, "queue", "list", "-control", path); code != exitProblem || !strings.Contains(errs, "no server") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

// As another user than the spool's own a command would leave files there that the queue cannot use.
func TestQueueOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	dir := spool(t)
	if err := os.Chown(dir, 4711, 4711); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"list", "delete -all", "doctor", "doctor -repair"} {
		if code, _, errs := tool(t, strings.Fields("queue "+args+" -spool "+dir)...); code != exitProblem || !strings.Contains(errs, "belongs to user 4711") {
			t.Errorf("%s: exit %d: %s", args, code, errs)
		}
	}
	// One that is running is another matter: it does the writing.
	path := filepath.Join(dir, "control")
	serveQueueAt(t, path, newFake(), openFake)
	ok(t, "list", "-spool", dir)
}

// A next hop that takes what it is given when it is told to.
type gateway struct {
	mu    sync.Mutex
	open  bool
	taken []string
	tried chan string
}

func (g *gateway) Deliver(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	name := env.Recipients[0].Address.Local
	g.tried <- name
	if !g.open {
		return mailspine.Errorf(450, "4.2.0", "Come back later")
	}
	g.taken = append(g.taken, name)
	return nil
}

// The commands on a queue that is running.
func TestQueueLive(t *testing.T) {
	for _, name := range []string{"memqueue", "filequeue"} {
		t.Run(name, func(t *testing.T) {
			var store queue.Store = memqueue.New(nil)
			if name == "filequeue" {
				var err error
				if store, err = filequeue.Open(t.TempDir(), &filequeue.Options{Logger: quiet}); err != nil {
					t.Fatal(err)
				}
			}
			defer store.Close()
			next := &gateway{tried: make(chan string, 100)}
			settled := make(chan string, 100)
			tell := func(_ context.Context, r queue.ResultInfo) { settled <- r.Recipient.Address.Local }
			q := &queue.Queue{Store: store, Next: next, Logger: quiet, Hostname: "mx.example.org", Trace: &queue.Trace{Deferred: tell, Delivered: tell, Failed: tell}}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- q.Run(ctx) }()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			path := serveQueue(t, q, nil)
			put(t, q, "acme", "m1@example.net", "m2@example.net", "m3@example.com")
			for range 3 {
				<-settled
			}
			same(t, states(t, "-control", path), "m1", "waiting example.net", "m2", "waiting example.net", "m3", "waiting example.com")
			if out := ok(t, "list", "-control", path, "m1"); !strings.Contains(out, "450 4.2.0 Come back later") {
				t.Errorf("list: %s", out)
			}
			if out := ok(t, "show", "-control", path, "m2", "-body"); !strings.Contains(out, "450 4.2.0 Come back later") || !strings.Contains(out, "Hello") {
				t.Errorf("show: %s", out)
			}
			if out := ok(t, "stats", "-control", path); !strings.Contains(out, "3 messages accepted") || !strings.Contains(out, "3 deferrals") || !strings.Contains(out, "Health     ok") {
				t.Errorf("stats: %s", out)
			}
			next.mu.Lock()
			next.open = true
			next.mu.Unlock()

			// What is held is not flushed.
			ok(t, "hold", "-control", path, "m2")
			if out := ok(t, "flush", "-control", path, "-route", "example.net"); out != "1 of 2 items flushed\n" {
				t.Errorf("flush: %s", out)
			}
			if got := <-settled; got != "m1" {
				t.Errorf("%s was delivered", got)
			}
			same(t, states(t, "-control", path), "m2", "held example.net", "m3", "waiting example.com")
			ok(t, "release", "-control", path, "-state", "held")
			if got := <-settled; got != "m2" {
				t.Errorf("%s was delivered", got)
			}
			// A bounce tells the sender at once, over the same queue.
			ok(t, "bounce", "-control", path, "-status", "5.7.1 Not wanted", "-recipient", "m3@EXAMPLE.com")
			// The report may be delivered before the failure is told.
			if got := []string{<-settled, <-settled}; !slices.Contains(got, "m3") || !slices.Contains(got, "ann") {
				t.Errorf("m3 failed and ann was told: %v", got)
			}
			same(t, states(t, "-control", path))
		})
	}
}

// A damaged spool: what is wrong is said, nothing is changed without -repair, and afterwards the spool can be used.
func TestQueueDoctor(t *testing.T) {
	dir := spool(t)
	if out := ok(t, "doctor", "-spool", dir); !strings.Contains(out, "3 messages with 3 items") || !strings.Contains(out, "Nothing is damaged") {
		t.Errorf("%s", out)
	}
	segments, err := filepath.Glob(filepath.Join(dir, "journal-*.log"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	for _, name := range segments {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i := strings.Index(string(b), "Subject: to m2"); i >= 0 {
			b[i] ^= 1
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	code, out, errs := tool(t, "queue", "doctor", "-spool", dir)
	if code != exitProblem || errs != "" || !strings.Contains(out, `"m2"`) || !strings.Contains(out, "Nothing was changed") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	code, out, errs = tool(t, "queue", "doctor", "-json", "-spool", dir)
	var last struct {
		OK      bool
		Lost    int
		Damages int
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || code != exitProblem || errs != "" || last.OK || last.Lost+last.Damages == 0 || len(lines) < 2 {
		t.Errorf("exit %d: %s%s %v", code, out, errs, err)
	}
	code, out, errs = tool(t, "queue", "doctor", "-repair", "-spool", dir)
	if code != exitProblem || errs != "" || !strings.Contains(out, "was repaired") || !strings.Contains(out, "What was damaged is in") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	ok(t, "doctor", "-spool", dir)
	same(t, states(t, "-spool", dir), "m1", "due example.net", "m3", "due example.com")

	for _, args := range []string{"", "-control x", "-spool x -control y", "-spool x y"} {
		if code, _, errs := tool(t, strings.Fields("queue doctor "+args)...); code != exitUsage || errs == "" {
			t.Errorf("%s: exit %d: %s", args, code, errs)
		}
	}
}

// A failure of the terminal is not ignored.
func TestQueueBrokenPipe(t *testing.T) {
	path := serveQueue(t, newFake(), openFake)
	for _, args := range []string{"list", "list -json", "show x", "show -raw x", "show -json x", "stats", "stats -json"} {
		if code := run(t.Context(), append(strings.Fields("queue "+args), "-control", path), brokenPipe{}, io.Discard); code != exitProblem {
			t.Errorf("%s: exit %d", args, code)
		}
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// deadSocket makes a socket that stays when nobody listens any more.
func deadSocket(t *testing.T, path string) io.Closer {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	return l
}
