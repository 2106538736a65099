package egress_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/mta"
	"github.com/mailspine/mailspine/mta/egress"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

var quiet = slog.New(slog.DiscardHandler)

// loopback has two local addresses; where the system has only one, both are it.
func loopback() [2]string {
	if runtime.GOOS == "linux" {
		return [2]string{"127.0.0.2", "127.0.0.3"}
	}
	return [2]string{"127.0.0.1", "127.0.0.1"}
}

// copies counts what a receiver took, by the address and the name that it came from.
type copies struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *copies) Deliver(_ context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[env.Origin.Addr.Addr().String()+" "+env.Origin.Helo] += len(env.Recipients)
	return nil
}

func message(i int, tenant string, to ...string) *mailspine.Envelope {
	env := &mailspine.Envelope{ID: mailspine.MsgID(fmt.Sprint("M", i)), Tenant: tenant, From: mailspine.Address{Local: "ann", Domain: "sender.example"}}
	for _, local := range to {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: local, Domain: "dest.example"}})
	}
	return env
}

// The whole of it: a Relay asks a Selector over a state on the disk, and the receiver sees two addresses, each with
// exactly its cap; what is over waits, over a restart too, and is sent on the next day.
func TestRelayWarmsUp(t *testing.T) {
	got := &copies{n: map[string]int{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	receiver := &mta.Receiver{
		Hostname: "mx.dest.example", Next: got, Logger: quiet,
		Recipients: mailspine.RecipientCheckerFunc(func(context.Context, *mailspine.Envelope, mailspine.Recipient) error { return nil }),
	}
	served := make(chan error, 1)
	go func() { served <- receiver.Serve(l) }()
	defer func() { receiver.Close(); <-served }()

	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	dir := filepath.Join(t.TempDir(), "egress")
	addrs := loopback()
	var relay *mta.Relay
	start := func() func() {
		state, err := egress.Open(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		source := func(i int, warmUp egress.Schedule) egress.Source {
			return egress.Source{Name: fmt.Sprint("s", i+1), Addr: netip.MustParseAddr(addrs[i%2]), Hostname: fmt.Sprintf("s%d.out.example", i+1), WarmUp: warmUp}
		}
		sel := &egress.Selector{
			Pools: []egress.Pool{
				{Name: "shared", Tenants: []string{"one", "two"}, Members: []egress.Member{
					{Source: source(0, egress.Ladder{7, 20}), Weight: 2}, {Source: source(1, egress.Ladder{5, 20})}}},
				{Name: "own", Tenants: []string{"three"}, Members: []egress.Member{{Source: source(2, nil)}}},
			},
			Domains: []egress.Domain{{Name: "sender.example", WarmUp: egress.Ladder{100}}},
			State:   state, Logger: quiet, Now: func() time.Time { return now },
		}
		relay = &mta.Relay{
			Resolver: dnstest.New(dnstest.Zone{"dest.example": {dnstest.MX(10, "mx.dest.example")}, "mx.dest.example": {dnstest.A("127.0.0.1")}}),
			Hostname: "out.example", Port: l.Addr().(*net.TCPAddr).AddrPort().Port(),
			AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Egress: sel, Logger: quiet,
		}
		return func() {
			if err := errors.Join(sel.Close(), state.Close()); err != nil {
				t.Error(err)
			}
		}
	}
	send := func(i int, tenant string, to ...string) (waits int) {
		t.Helper()
		err := relay.Deliver(t.Context(), message(i, tenant, to...), mailspine.StringContent("Subject: x\r\nFrom: ann@sender.example\r\n\r\nhi\r\n"))
		for j := range to {
			err := mailspine.ErrorAt(err, j)
			var nn *mailspine.NotNow
			switch {
			case errors.As(err, &nn):
				waits++
				if nn.Rule != egress.RuleSource || !strings.HasPrefix(nn.Reason, "warm-up: source s1 sent 7 of 7 on its day 1; source s2 sent 5 of 5") {
					t.Errorf("waits for %v", nn)
				}
			case err != nil:
				t.Error(err)
			}
		}
		return waits
	}
	want := func(what string, lines map[string]int) {
		t.Helper()
		got.mu.Lock()
		defer got.mu.Unlock()
		if fmt.Sprint(got.n) != fmt.Sprint(lines) {
			t.Errorf("%s: the receiver counts %v, want %v", what, got.n, lines)
		}
	}

	stop := start()
	waits := 0
	for i := range 8 {
		waits += send(i, []string{"one", "two"}[i%2], "a", "b")
	}
	send(100, "three", "a", "b", "c")
	day1 := map[string]int{addrs[0] + " s1.out.example": 7, addrs[1] + " s2.out.example": 5, addrs[0] + " s3.out.example": 3}
	want("day 1", day1)
	if waits != 4 {
		t.Errorf("%d recipients wait, want 4", waits)
	}
	stop()
	stop = start()
	waits = send(10, "one", "a")
	want("after a restart", day1)
	if waits != 1 {
		t.Error("a full pool sent after a restart")
	}
	now = now.AddDate(0, 0, 1)
	send(11, "one", "a", "b", "c")
	want("day 2", map[string]int{addrs[0] + " s1.out.example": 10, addrs[1] + " s2.out.example": 5, addrs[0] + " s3.out.example": 3})
	stop()
}

// smtpServer takes all mail, on one side of a pipe.
func smtpServer(conn net.Conn, rcpt func()) {
	defer conn.Close()
	br := bufio.NewReader(conn)
	io.WriteString(conn, "220 hi\r\n")
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		reply := "250 ok\r\n"
		switch verb, _, _ := strings.Cut(strings.TrimSpace(line), " "); verb {
		case "RCPT":
			rcpt()
		case "DATA":
			io.WriteString(conn, "354 go\r\n")
			for line != ".\r\n" && err == nil {
				line, err = br.ReadString('\n')
			}
		case "QUIT":
			io.WriteString(conn, "221 bye\r\n")
			return
		}
		io.WriteString(conn, reply)
	}
}

// Behind a queue, a burst of many messages takes as many days as the warm-up says: each day sends exactly its cap, what
// is over waits with the reason and without an attempt counted, and nothing is lost.
func TestQueueWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		perDay := map[egress.Day]int{}
		var servers sync.WaitGroup
		sel := &egress.Selector{
			Pools: []egress.Pool{{Name: "p", Members: []egress.Member{{Source: egress.Source{Name: "a1", WarmUp: egress.Ladder{4, 8, 16}}}, {Source: egress.Source{Name: "a2", WarmUp: egress.Ladder{2, 4, 8}}}}}},
			State: egress.NewMemory(), Logger: quiet,
		}
		relay := &mta.Relay{
			Resolver: dnstest.New(dnstest.Zone{"dest.example": {dnstest.MX(10, "mx.dest.example")}, "mx.dest.example": {dnstest.A("192.0.2.1")}}),
			Hostname: "out.example", AllowPrivate: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Egress: sel, Logger: quiet,
			Dial: func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				servers.Go(func() {
					smtpServer(server, func() { mu.Lock(); perDay[egress.DayOf(time.Now())]++; mu.Unlock() })
				})
				return client, nil
			},
		}
		const messages = 40
		outcomes := make(chan mailspine.Outcome, messages)
		var reasons []string
		q := &queue.Queue{
			Store: memqueue.New(nil), Hostname: "out.example", Logger: quiet, Next: relay,
			WarnAfter: -1, // nobody resolves the sender
			Trace: &queue.Trace{Held: func(_ context.Context, i queue.HeldInfo) {
				mu.Lock()
				defer mu.Unlock()
				reasons = append(reasons, i.Reason)
			}},
			Outcomes: mailspine.OutcomeSinkFunc(func(_ context.Context, o mailspine.Outcome) { outcomes <- o }),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		for i := range messages {
			if err := q.Deliver(ctx, message(i, "", "bob"), mailspine.StringContent("x\r\n")); err != nil {
				t.Fatal(err)
			}
		}
		for range messages {
			if o := <-outcomes; o.Event != mailspine.EventDelivered || o.Attempt != 1 || o.Receipt.Source != "a1" && o.Receipt.Source != "a2" {
				t.Errorf("outcome %+v", o)
			}
		}
		var counts []int
		for _, day := range slices.Sorted(func(yield func(egress.Day) bool) {
			for d := range perDay {
				if !yield(d) {
					return
				}
			}
		}) {
			counts = append(counts, perDay[day])
		}
		if !slices.Equal(counts, []int{6, 12, 22}) {
			t.Errorf("sent on each day: %v, want 6, 12 and the rest", counts)
		}
		if !slices.Contains(reasons, "warm-up: source a1 sent 8 of 8 on its day 2; source a2 sent 4 of 4 on its day 2 (egress/source-cap)") {
			t.Errorf("the reasons are %q", reasons[:min(len(reasons), 5)])
		}
		cancel()
		<-done
		q.Store.Close()
		if err := sel.Close(); err != nil {
			t.Error(err)
		}
		servers.Wait()
	})
}

// A process that is killed at any moment has sent no more than the cap, and loses no more than a block and
// what was under way.
func TestKill(t *testing.T) {
	const limit, block = 400, 8
	if dir := os.Getenv("MAILSPINE_TEST_EGRESS_CHILD"); dir != "" {
		state, err := egress.Open(dir, nil)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		sel := &egress.Selector{
			Pools: []egress.Pool{{Name: "p", Members: []egress.Member{{Source: egress.Source{Name: "a", WarmUp: egress.Ladder{limit}}}}}},
			State: state, Block: block, Now: func() time.Time { return time.Unix(1800000000, 0) },
		}
		for {
			grants, err := sel.Choose(context.Background(), mta.EgressRequest{Env: message(1, ""), Recipients: []int{0}})
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			if grants[0].Err != nil {
				os.Stdout.WriteString("full\n")
				select {} // until it is killed
			}
			os.Stdout.WriteString("sent\n")
			grants[0].Done(1)
		}
	}
	kills := 6
	if s := os.Getenv("MAILSPINE_SOAK"); s == "1" {
		kills = 60
	}
	dir := t.TempDir()
	sent, killed, full := 0, 0, false
	for !full {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "MAILSPINE_TEST_EGRESS_CHILD="+dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		killAt := sent + limit/(kills+2)
		alive := true
		for lines.Scan() {
			switch lines.Text() {
			case "sent":
				sent++
			case "full":
				full = true
			}
			if alive && (full || sent >= killAt && killed < kills) {
				cmd.Process.Kill()
				alive = false
				killed++
			}
		}
		cmd.Wait()
		if alive {
			t.Fatalf("the child ended by itself: %s", cmp.Or(stderr.String(), strconv.Itoa(cmd.ProcessState.ExitCode())))
		}
	}
	if sent > limit || sent < limit-killed*block {
		t.Errorf("%d were sent of %d, with %d kills that lose at most %d each", sent, limit, killed, block)
	}
	t.Logf("%d sent of %d, %d kills", sent, limit, killed)
}
