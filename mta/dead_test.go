package mta

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// again is a delivery to bob, and what it connected to.
func (n *network) again(t testing.TB, r *Relay, want string) string {
	t.Helper()
	n.dialed = nil
	bob(t, r, want)
	return strings.Join(n.dialed, " ")
}

// An address that could not be connected to is tried after all others, of all hosts, until its time is over or it works again.
func TestRelayDeadOrder(t *testing.T) {
	const good = script(open + one + bye)
	for _, tt := range []struct {
		name   string
		edit   func(*Relay)
		pause  time.Duration
		first  script // of 192.0.2.1, which is best, in the first delivery
		second string // what is connected to in the second
	}{
		{"nobody there", nil, 0, "", "192.0.2.2:25"},
		{"until the time is over", nil, 5*time.Minute - 1, "", "192.0.2.2:25"},
		{"but not longer", nil, 5 * time.Minute, "", "192.0.2.1:25 192.0.2.2:25"},
		{"own time", func(r *Relay) { r.DeadTime = time.Hour }, time.Hour - 1, "", "192.0.2.2:25"},
		{"not remembered", func(r *Relay) { r.DeadTime = -1 }, 0, "", "192.0.2.1:25 192.0.2.2:25"},
		{"421 in place of a greeting", nil, 0, "S: 421 4.3.2 busy", "192.0.2.2:25"},
		{"450 in place of a greeting", nil, 0, "S: 450 4.3.2 busy\nC: QUIT", "192.0.2.2:25"},
		{"no greeting in time", nil, 0, "STALL", "192.0.2.2:25"},
		{"hangs up", nil, 0, "CLOSE", "192.0.2.2:25"},
		{"554 in place of a greeting", nil, 0, "S: 554 5.7.1 no\nC: QUIT", "192.0.2.1:25 192.0.2.2:25"},
		{"421 after the greeting", nil, 0, "S: 220 hi\nC: EHLO out.sender.example\nS: 421 4.3.2 busy", "192.0.2.1:25 192.0.2.2:25"},
		{"421 to MAIL", nil, 0, open + "C: MAIL FROM:<ann@sender.example>\nS: 421 4.3.2 busy", "192.0.2.1:25 192.0.2.2:25"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1", "192.0.2.2")
				r := n.relay()
				if tt.edit != nil {
					tt.edit(r)
				}
				if tt.first != "" {
					n.scripts["192.0.2.1"] = []script{tt.first}
				}
				n.scripts["192.0.2.2"] = []script{good, good}
				if got := n.again(t, r, ""); got != "192.0.2.1:25 192.0.2.2:25" {
					t.Errorf("the first connected to %s", got)
				}
				time.Sleep(tt.pause)
				if got := n.again(t, r, ""); got != tt.second {
					t.Errorf("the second connected to %s, want %s", got, tt.second)
				}
				n.done()
			})
		})
	}
}

// What is remembered comes last, but it comes; and it is remembered for each source.
func TestRelayDeadLast(t *testing.T) {
	n := newNetwork(t)
	n.mx("dest.example", "192.0.2.1", "192.0.2.2", "192.0.2.3")
	r := n.relay()
	n.scripts["192.0.2.3"] = []script{open + one + bye}
	if got := n.again(t, r, ""); got != "192.0.2.1:25 192.0.2.2:25 192.0.2.3:25" {
		t.Errorf("connected to %s", got)
	}
	n.scripts["192.0.2.2"] = []script{open + one + bye}
	if got := n.again(t, r, ""); got != "192.0.2.3:25 192.0.2.1:25 192.0.2.2:25" {
		t.Errorf("connected to %s; want the third, which fails now, and then the remembered ones", got)
	}
	n.scripts["192.0.2.2"] = []script{open + one + bye}
	if got := n.again(t, r, ""); got != "192.0.2.2:25" {
		t.Errorf("connected to %s; want the one that worked", got)
	}
	n.done()
	r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
		return []Grant{{Source: srcB, Recipients: req.Recipients}}, nil
	})
	if got := n.again(t, r, "451 4.4.1"); got != "192.0.2.1:25 192.0.2.2:25 192.0.2.3:25" {
		t.Errorf("from another source it connected to %s", got)
	}
}

// A site that is dead costs one worker: while one delivery tries it, the others get the same error at once. When it is alive again the next that comes
// gets through at once, and so do all others.
func TestRelayDeadSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		r := n.relay()
		var mu sync.Mutex
		dials, alive := 0, false
		gate := make(chan struct{}) // closed: the server goes on after the greeting
		r.Dial = func(ctx context.Context, _, addr string) (net.Conn, error) {
			mu.Lock()
			dials++
			up := alive
			mu.Unlock()
			if !up {
				time.Sleep(15 * time.Second)
				return nil, syscall.ETIMEDOUT
			}
			client, server := net.Pipe()
			n.wg.Go(func() {
				defer server.Close()
				if err := script("S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi").play(server, nil); err != nil {
					return
				}
				<-gate
				if err := script(one+bye).play(server, nil); err != nil && !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			})
			return client, nil
		}
		count := func() int {
			mu.Lock()
			defer mu.Unlock()
			return dials
		}
		began := time.Now()
		bob(t, r, "451 4.4.1")
		if count() != 2 {
			t.Fatalf("%d connections were tried", count())
		}
		// One tries again, at length.
		var wg sync.WaitGroup
		wg.Go(func() { bob(t, r, "451 4.4.1") })
		synctest.Wait()
		if count() != 3 {
			t.Fatalf("%d connections were tried", count())
		}
		for range 100 {
			start := time.Now()
			a := &attempt{}
			err := r.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
			wantStatus(t, "while another tries", mailspine.ErrorAt(err, 0), "451 4.4.1")
			text := mailspine.Status(mailspine.ErrorAt(err, 0)).Message
			want := fmt.Sprintf("mx1.dest.example[192.0.2.1]: connection timed out (not tried again: not reachable since %s)", began.Add(15*time.Second).UTC().Format(time.RFC3339))
			if text != want {
				t.Fatalf("the sender is told %q, want %q", text, want)
			}
			if !errors.Is(err, syscall.ETIMEDOUT) || a.receipts[0].RemoteMTA != "mx1.dest.example" {
				t.Fatalf("%v, %+v", err, a.receipts[0])
			}
			if time.Since(start) != 0 || count() != 3 {
				t.Fatalf("took %v, with %d connections", time.Since(start), count())
			}
		}
		// Another site is not concerned.
		n.mx("other.example", "192.0.2.9")
		start := time.Now()
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "eve@other.example"), mailspine.StringContent("x\r\n"))
		wantStatus(t, "another site", mailspine.ErrorAt(err, 0), "451 4.4.1")
		if time.Since(start) != 15*time.Second {
			t.Errorf("another site took %v", time.Since(start))
		}
		wg.Wait()

		// It comes back. The first that comes tries, and when it is greeted all others are let through.
		mu.Lock()
		alive = true
		mu.Unlock()
		start = time.Now()
		for range 3 {
			wg.Go(func() { bob(t, r, "") })
			synctest.Wait()
		}
		if got := count(); got != 4+1+3 {
			t.Errorf("%d connections", got)
		}
		close(gate)
		wg.Wait()
		if time.Since(start) != 0 {
			t.Errorf("took %v", time.Since(start))
		}
		n.wg.Wait()
		if len(r.dead.probing) != 0 {
			t.Errorf("probes %v", r.dead.probing)
		}
	})
}

// With an Egress the source is known only when the Egress was asked: one delivery for each source tries.
func TestRelayDeadSiteEgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		r := n.relay()
		var mu sync.Mutex
		var told []string
		from := srcA
		r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
			src := from
			return []Grant{{Source: src, Recipients: req.Recipients, Done: func(sent int) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, fmt.Sprint(src, " ", sent))
			}}}, nil
		})
		dials := 0
		r.Dial = func(context.Context, string, string) (net.Conn, error) {
			mu.Lock()
			dials++
			mu.Unlock()
			time.Sleep(10 * time.Second)
			return nil, errors.New("nobody there")
		}
		bob(t, r, "451 4.4.1")
		var wg sync.WaitGroup
		wg.Go(func() { bob(t, r, "451 4.4.1") })
		synctest.Wait()
		start := time.Now()
		bob(t, r, "451 4.4.1")
		if time.Since(start) != 0 || dials != 2 {
			t.Errorf("took %v, with %d connections", time.Since(start), dials)
		}
		from = srcB
		wg.Go(func() { bob(t, r, "451 4.4.1") })
		synctest.Wait()
		if dials != 3 {
			t.Errorf("%d connections: another source has not tried", dials)
		}
		wg.Wait()
		slices.Sort(told)
		if want := []string{"a 0", "a 0", "a 0", "b 0"}; !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

// A probe ends with its delivery, also if that was given up, or panicked.
func TestRelayDeadProbeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		r := n.relay()
		bob(t, r, "451 4.4.1")
		dial := r.Dial
		r.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		since := func() time.Time {
			d, _ := r.dead.get(deadKey{addr: netip.MustParseAddrPort("192.0.2.1:25")}, time.Now())
			return d.until
		}
		until := since()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		r.Deliver(ctx, envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
		cancel()
		if len(r.dead.probing) != 0 || !since().Equal(until) {
			t.Errorf("probes %v; what the caller gave up counts as dead until %v", r.dead.probing, since())
		}
		r.Dial = func(context.Context, string, string) (net.Conn, error) { panic("dialer") }
		func() {
			defer func() { recover() }()
			bob(t, r, "")
			t.Error("no panic")
		}()
		if len(r.dead.probing) != 0 {
			t.Errorf("probes %v", r.dead.probing)
		}
		r.Dial = dial
		n.scripts["192.0.2.1"] = []script{open + one + bye}
		bob(t, r, "")
		n.done()
	})
}

// A host for which a connection is kept is there, whatever is remembered of its address: with it nothing waits.
func TestRelayDeadButKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		r := n.relay()
		r.IdleTimeout = time.Minute
		hold := make(chan struct{})
		r.Dial = func(_ context.Context, _, addr string) (net.Conn, error) {
			n.mu.Lock()
			n.dialed = append(n.dialed, addr)
			first := len(n.dialed) == 1
			n.mu.Unlock()
			client, server := net.Pipe()
			n.wg.Go(func() {
				defer server.Close()
				if !first {
					script("S: 421 4.7.0 too many connections").play(server, nil)
					return
				}
				if err := script(open+one).play(server, nil); err != nil {
					t.Error(err)
				}
				<-hold
				if err := script(one+bye).play(server, nil); err != nil {
					t.Error(err)
				}
			})
			return client, nil
		}
		bob(t, r, "")
		// While the kept connection is in use, the server takes no other.
		var wg sync.WaitGroup
		wg.Go(func() { bob(t, r, "") })
		synctest.Wait()
		wg.Go(func() { bob(t, r, "421 4.7.0") })
		synctest.Wait()
		if _, ok := r.dead.get(deadKey{addr: netip.MustParseAddrPort("192.0.2.1:25")}, time.Now()); !ok {
			t.Error("the address that turned a connection away is not remembered")
		}
		close(hold)
		wg.Wait()
		if _, ok := r.dead.get(deadKey{addr: netip.MustParseAddrPort("192.0.2.1:25")}, time.Now()); ok {
			t.Error("it is remembered although a message went through since")
		}
		r.CloseIdle()
		n.wg.Wait()
	})
}

// What the address is not to blame for is not remembered.
func TestRelayDeadNot(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*network, *Relay)
		want string
	}{
		{"forbidden", func(n *network, r *Relay) { n.mx("dest.example", "10.0.0.1") }, "550 5.4.4"},
		{"no address", func(n *network, r *Relay) { delete(n.zone, "mx1.dest.example A") }, "550 5.4.4"},
		{"our own address", func(n *network, r *Relay) {
			r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
				return []Grant{{Source: srcB, Recipients: req.Recipients}}, nil
			})
			r.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, bindError() }
		}, "451 4.4.1"},
		{"the proxy", func(n *network, r *Relay) {
			r.Dial = func(context.Context, string, string) (net.Conn, error) {
				return nil, &ProxyError{Err: errors.New("down")}
			}
		}, "451 4.4.1"},
	} {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		r := n.relay()
		tt.edit(n, r)
		bob(t, r, tt.want)
		if r.dead.recent.Len() > 0 {
			t.Errorf("%s: %v is remembered", tt.name, r.dead.recent.Front().Value)
		}
	}
}

// The memory against a model: a map with times, of which the oldest failures go.
func TestDeadHostsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d deadHosts
		model := map[deadKey]deadAddr{}
		now := time.Unix(1_000_000, 0)
		key := func() deadKey {
			ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(0, 5).Draw(t, "ip"))})
			return deadKey{netip.AddrPortFrom(ip, 25), Source{Name: rapid.SampledFrom([]string{"", "a"}).Draw(t, "from")}}
		}
		t.Repeat(map[string]func(*rapid.T){
			"note": func(t *rapid.T) {
				k, err := key(), fmt.Errorf("%d", now.Unix())
				since := now
				if old, ok := model[k]; ok {
					since = old.since
				}
				until := now.Add(time.Duration(rapid.IntRange(1, 60).Draw(t, "time")) * time.Second)
				d.note(k, now, until, err)
				model[k] = deadAddr{k, since, until, err}
			},
			"forget": func(t *rapid.T) {
				k := key()
				d.forget(k)
				delete(model, k)
			},
			"time": func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "time")) * time.Second) },
			"get": func(t *rapid.T) {
				k := key()
				want, ok := model[k]
				if ok && !now.Before(want.until) {
					delete(model, k)
					want, ok = deadAddr{}, false
				}
				if got, is := d.get(k, now); is != ok || got != want {
					t.Fatalf("%+v, %v; want %+v, %v", got, is, want, ok)
				}
			},
			"": func(t *rapid.T) {
				if len(d.byKey) != len(model) || d.recent.Len() != len(model) {
					t.Fatalf("%d and %d entries, want %d", len(d.byKey), d.recent.Len(), len(model))
				}
			},
		})
	})
}

func TestDeadHostsBounded(t *testing.T) {
	var d deadHosts
	now := time.Now()
	at := func(i int) deadKey {
		return deadKey{addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 25)}
	}
	for i := range 2 * maxDead {
		d.note(at(i), now, now.Add(time.Hour), errors.New("x"))
		d.note(at(0), now, now.Add(time.Hour), errors.New("x"))
	}
	if len(d.byKey) != maxDead || d.recent.Len() != maxDead {
		t.Errorf("%d and %d are remembered", len(d.byKey), d.recent.Len())
	}
	if _, ok := d.get(at(0), now); !ok {
		t.Error("the one that fails again and again is forgotten")
	}
	if _, ok := d.get(at(1), now); ok {
		t.Error("the one that failed first is still there")
	}
}

// Of the hosts of one preference, those for which a connection is kept are tried first, so that random order does not cost a connection
// each time; a worse host does not come first for that.
func TestRelayWarmFirst(t *testing.T) {
	n := newNetwork(t)
	n.zone["dest.example MX"] = mxs("10:a.dest.example 10:b.dest.example 10:c.dest.example 10:d.dest.example")
	for i, h := range []string{"a", "b", "c", "d"} {
		n.zone[h+".dest.example A"] = fmt.Sprintf("192.0.2.%d", i+1)
	}
	n.zone["worse.example MX"] = mxs("5:e.worse.example 10:a.dest.example")
	n.zone["e.worse.example A"] = "192.0.2.5"
	r := n.relay()
	r.IdleTimeout = time.Minute
	r.Dial = func(_ context.Context, _, addr string) (net.Conn, error) {
		n.dialed = append(n.dialed, addr)
		client, server := net.Pipe()
		n.wg.Go(func() { (&taker{}).serve(server) })
		return client, nil
	}
	for range 20 {
		bob(t, r, "")
	}
	if len(n.dialed) != 1 {
		t.Errorf("connected to %v", n.dialed)
	}
	n.zone["worse.example MX"] = []mailspine.MX{{Preference: 5, Host: "e.worse.example"}, {Preference: 10, Host: "a.dest.example"},
		{Preference: 10, Host: "b.dest.example"}, {Preference: 10, Host: "c.dest.example"}, {Preference: 10, Host: "d.dest.example"}}
	if err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "x@worse.example"), mailspine.StringContent("x\r\n")); err != nil {
		t.Error(err)
	}
	if len(n.dialed) != 2 || n.dialed[1] != "192.0.2.5:25" {
		t.Errorf("connected to %v", n.dialed)
	}
	// A connection under another TLS rule is none to this delivery.
	r.TLSPolicy = TLSRules{"dest.example": {Roots: newCA(t).pool}}
	tr := r.transfer(t.Context(), envelope(t, "", "x@dest.example"), nil, contentFacts{}, "dest.example", nil)
	tr.find(t.Context())
	if got := tr.arrange(t.Context(), tr.hosts); !slices.Equal(got, tr.hosts) {
		t.Errorf("%v was changed to %v", tr.hosts, got)
	}
	r.CloseIdle()
	n.wg.Wait()
}

// An address that does not answer while another one of its host does is remembered too: otherwise each new connection waits for it.
func TestRelayDeadSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1 192.0.2.2")
		n.scripts["192.0.2.2"] = []script{open + one + bye, open + one + bye}
		r := n.relay()
		dial := r.Dial
		r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "192.0.2.1:25" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dial(ctx, network, addr)
		}
		start := time.Now()
		bob(t, r, "")
		if took := time.Since(start); took != defaultFallbackDelay {
			t.Errorf("the first took %v", took)
		}
		start = time.Now()
		bob(t, r, "")
		if took := time.Since(start); took != 0 {
			t.Errorf("the second took %v", took)
		}
		n.done()
	})
}

func bindError() error {
	return &net.OpError{Op: "dial", Err: os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)}
}

// A queue full of mail for a dead site goes on with other mail at once: one worker is with the dead site, however many messages are due.
func TestRelayDeadSiteInQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.mx("live.example", "192.0.2.2")
		n.scripts["192.0.2.2"] = []script{taking("ann@sender.example", "eve@live.example")}
		r := n.relay()
		dial := r.Dial
		var mu sync.Mutex
		busy, most := 0, 0
		r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr != "192.0.2.1:25" {
				return dial(ctx, network, addr)
			}
			mu.Lock()
			busy++
			most = max(most, busy)
			mu.Unlock()
			<-ctx.Done() // after Timeouts.Connect
			mu.Lock()
			busy--
			mu.Unlock()
			return nil, ctx.Err()
		}
		bob(t, r, "451 4.4.1")
		most = 0
		delivered := make(chan mailspine.Outcome, 100)
		q := &queue.Queue{
			Store: memqueue.New(nil), Hostname: "out.sender.example", Logger: r.Logger, Next: r, Concurrency: 2,
			Outcomes: mailspine.OutcomeSinkFunc(func(_ context.Context, o mailspine.Outcome) {
				if o.Event == mailspine.EventDelivered {
					delivered <- o
				}
			}),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		put := func(id, to string) {
			env := envelope(t, "ann@sender.example", to)
			env.ID = mailspine.MsgID(id)
			if err := q.Deliver(ctx, env, mailspine.StringContent("x\r\n")); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 50 {
			put(fmt.Sprintf("01DEAD%d", i), "bob@dest.example")
		}
		time.Sleep(time.Second)
		start := time.Now()
		put("01LIVE", "eve@live.example")
		<-delivered
		if took := time.Since(start); took > time.Second {
			t.Errorf("the other site had to wait for %v", took)
		}
		time.Sleep(20 * time.Minute)
		cancel()
		<-done
		if most != 1 {
			t.Errorf("%d deliveries tried the dead site at a time", most)
		}
		q.Store.Close()
		n.done()
	})
}

// A domain whose policy allows fewer hosts, or passes some over, does not speak for the others of its site.
func TestRelayDeadSiteOfSome(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Relay)
	}{
		{"local policy", func(r *Relay) {
			r.TLSPolicy = TLSRules{"strict.example": {Hosts: []string{"b.host.example"}}}
		}},
		{"MTA-STS", func(r *Relay) {
			r.MTASTS = policyFunc(func(domain string) (mtasts.Policy, error) {
				if domain == "strict.example" {
					return mtasts.Policy{ID: "1", Mode: mtasts.ModeEnforce, MX: []string{"b.host.example"}, MaxAge: time.Hour}, nil
				}
				return mtasts.Policy{}, nil
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				for _, d := range []string{"strict.example", "dest.example"} {
					n.zone[d+" MX"] = mxs("10:a.host.example 20:b.host.example")
				}
				n.zone["a.host.example A"] = "192.0.2.1"
				n.zone["b.host.example A"] = "192.0.2.2"
				n.scripts["192.0.2.1"] = []script{open + one + bye}
				r := n.relay()
				tt.edit(r)
				dial := r.Dial
				r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					if addr == "192.0.2.2:25" {
						time.Sleep(10 * time.Second)
						return nil, syscall.ECONNREFUSED
					}
					return dial(ctx, network, addr)
				}
				strict := func() time.Duration {
					start := time.Now()
					err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "x@strict.example"), mailspine.StringContent("x\r\n"))
					if st := mailspine.Status(mailspine.ErrorAt(err, 0)); st == nil || !st.Temporary() {
						t.Errorf("strict.example: %v", err)
					}
					return time.Since(start)
				}
				strict()
				var wg sync.WaitGroup
				wg.Go(func() { strict() })
				synctest.Wait()
				if took := strict(); took != 0 {
					t.Errorf("the same domain took %v while it is being tried", took)
				}
				start := time.Now()
				bob(t, r, "")
				if took := time.Since(start); took != 0 {
					t.Errorf("a domain with a live host took %v", took)
				}
				wg.Wait()
				n.done()
			})
		})
	}
}

// While one delivery tries a site again, another one that has a kept connection uses it.
func TestRelayDeadProbeAndKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		r := n.relay()
		r.IdleTimeout = time.Minute
		r.Limits.Max = -1 // no window
		hold := make(chan struct{})
		dials := 0
		r.Dial = func(ctx context.Context, _, addr string) (net.Conn, error) {
			dials++
			switch dials {
			case 1:
				client, server := net.Pipe()
				n.wg.Go(func() {
					defer server.Close()
					if err := script(open).play(server, nil); err != nil {
						t.Error(err)
					}
					<-hold
					if err := script(one+one+bye).play(server, nil); err != nil {
						t.Error(err)
					}
				})
				return client, nil
			case 2:
				return nil, syscall.EHOSTUNREACH
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		var wg sync.WaitGroup
		wg.Go(func() { bob(t, r, "") })
		synctest.Wait()
		bob(t, r, "451 4.4.1") // no route
		wg.Go(func() { bob(t, r, "451 4.4.1") })
		synctest.Wait() // tries again, at length
		bob(t, r, "451 4.4.1")
		close(hold)
		synctest.Wait() // the first connection is kept
		start := time.Now()
		bob(t, r, "")
		if took := time.Since(start); took != 0 || dials != 3 {
			t.Errorf("took %v, with %d connections", took, dials)
		}
		wg.Wait()
		r.CloseIdle()
		n.wg.Wait()
	})
}

// A certificate that is not believed is no reason to let the host alone: with TLS from the start it comes before the greeting.
func TestSmarthostDeadTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.zone["smart.example A"] = "192.0.2.1"
		n.certs = newCA(t).server(t, "smart.example")
		n.scripts["192.0.2.1"] = []script{"TLSFAIL"}
		r := n.relay()
		r.TLSPolicy = TLSRules{"": {Level: TLSVerify, Roots: newCA(t).pool}}
		s := &Smarthost{Relay: r, Address: "smart.example:465", ImplicitTLS: true}
		bob(t, s, "451 4.7.5")
		n.wg.Wait()
		if r.dead.recent.Len() > 0 {
			t.Errorf("%v is remembered", r.dead.recent.Front().Value)
		}
		// One that is not there is remembered, and told of in the plan.
		bob(t, s, "451 4.4.1")
		if p, err := s.Explain(t.Context()); err != nil || p.Hosts[0].Addrs[0].Dead == "" || p.Site != "smart.example:465" || !p.Limits.Known {
			t.Errorf("%v, %v", p, err)
		}
	})
}

// Deliveries, routes and plans at the same time, to sites that come and go: each recipient has a result of its own, nothing is
// left over, and nobody waits for good.
func TestRelayRoutingTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		const domains = 12
		for i := range domains {
			// Four sites of three domains.
			d := fmt.Sprintf("d%d.example", i)
			n.zone[d+" MX"] = mxs(fmt.Sprintf("10:a.s%d.example 10:b.s%d.example 20:c.s%d.example", i/3, i/3, i/3))
			for j, h := range []string{"a", "b", "c"} {
				n.zone[fmt.Sprintf("%s.s%d.example A", h, i/3)] = fmt.Sprintf("192.0.2.%d", 10*(i/3)+j)
			}
		}
		r := n.relay()
		r.BySite, r.IdleTimeout, r.DeadTime = true, time.Second, 10*time.Second
		r.Dial = func(ctx context.Context, _, addr string) (net.Conn, error) {
			// Which are there changes every few seconds; one site is never.
			ip := netip.MustParseAddrPort(addr).Addr().As4()[3]
			if ip >= 30 || (int(ip)+int(time.Now().Unix()/4))%3 == 0 {
				time.Sleep(time.Duration(ip) * 100 * time.Millisecond)
				return nil, syscall.ECONNREFUSED
			}
			client, server := net.Pipe()
			n.wg.Go(func() { (&taker{}).serve(server) })
			return client, nil
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		taken, failed, waited := 0, 0, 0
		for g := range 10 {
			wg.Go(func() {
				for i := range 30 {
					var to []string
					for k := range 1 + (g+i)%6 {
						to = append(to, fmt.Sprintf("x@d%d.example", (g+i*7+k*5)%domains))
					}
					env := envelope(t, "ann@sender.example", to...)
					if _, err := r.Route(t.Context(), env, env.Recipients[0]); err != nil {
						t.Error(err)
					}
					if p, err := r.Explain(t.Context(), env.Recipients[0].Address.Domain); err != nil || p.Site == "" || len(p.Hosts) != 3 {
						t.Errorf("%v, %v", p, err)
					}
					err := r.Deliver(t.Context(), env, mailspine.StringContent("x\r\n"))
					mu.Lock()
					for i := range to {
						var nn *mailspine.NotNow
						switch st := mailspine.Status(mailspine.ErrorAt(err, i)); {
						case st == nil:
							taken++
							if strings.HasPrefix(env.Recipients[i].Address.Domain, "d9.") {
								t.Error("delivered to a site that is not there")
							}
						case errors.As(mailspine.ErrorAt(err, i), &nn):
							waited++
						case st.Code == 451 && st.Enhanced.String() == "4.4.1":
							failed++
						default:
							t.Errorf("%s: %v", to[i], mailspine.ErrorAt(err, i))
						}
					}
					mu.Unlock()
					time.Sleep(time.Duration(g*37+i*11) * time.Millisecond)
				}
			})
		}
		wg.Wait()
		if taken == 0 || failed == 0 {
			t.Errorf("%d were taken, %d failed, %d did not go", taken, failed, waited)
		}
		if len(r.dead.probing) > 0 || len(r.dead.byKey) != r.dead.recent.Len() || r.dead.recent.Len() > 12 {
			t.Errorf("left over: %d probes, %d and %d addresses", len(r.dead.probing), len(r.dead.byKey), r.dead.recent.Len())
		}
		for _, s := range r.Sites() {
			if s.Busy != 0 || s.Open != 0 || s.Waiting != 0 {
				t.Errorf("left over: %+v", s)
			}
		}
		r.CloseIdle()
		n.wg.Wait()
		t.Logf("%d were taken, %d failed, %d did not go", taken, failed, waited)
	})
}
