package mta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// The defaults, and what a SiteLimits may say.
func TestSiteLimitsDefaults(t *testing.T) {
	for _, tt := range []struct{ in, want SiteLimits }{
		{SiteLimits{}, SiteLimits{Initial: 5, Max: 20, Wait: 250 * time.Millisecond}},
		{SiteLimits{Max: 3}, SiteLimits{Initial: 3, Max: 3, Wait: 250 * time.Millisecond}},
		{SiteLimits{Initial: 30}, SiteLimits{Initial: 20, Max: 20, Wait: 250 * time.Millisecond}},
		{SiteLimits{Initial: -1, Wait: -1}, SiteLimits{Initial: 5, Max: 20}},
		{SiteLimits{Max: -1, Wait: time.Second}, SiteLimits{Initial: unlimitedSite, Max: unlimitedSite, Wait: time.Second}},
	} {
		if got := tt.in.withDefaults(); got != tt.want {
			t.Errorf("%+v becomes %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

// A busyServer takes mail after a while, and turns away connections over its limit with 421. It is the Dial of its test.
type busyServer struct {
	wg     sync.WaitGroup
	took   time.Duration // for a message
	limit  int           // 0: none
	refuse bool          // to connect, in place of a 421

	open, most, turned, dials, messages atomic.Int64
}

func (b *busyServer) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	b.dials.Add(1)
	n := b.open.Add(1)
	if b.limit > 0 && n > int64(b.limit) && b.refuse {
		b.open.Add(-1)
		b.turned.Add(1)
		return nil, refused()
	}
	for m := b.most.Load(); n > m && !b.most.CompareAndSwap(m, n); m = b.most.Load() {
	}
	client, server := net.Pipe()
	b.wg.Go(func() {
		if b.limit > 0 && n > int64(b.limit) {
			b.turned.Add(1)
			io.WriteString(server, "421 4.7.0 too many connections\r\n")
			server.Close()
			return
		}
		(&taker{took: func(string) { b.messages.Add(1); time.Sleep(b.took) }}).serve(server) // in a bubble only
	})
	return &countedConn{Conn: client, open: &b.open}, nil
}

// A countedConn is open until it is closed, and not for a moment longer.
type countedConn struct {
	net.Conn
	once sync.Once
	open *atomic.Int64
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// Deliveries over the limit wait in the order of coming, and come back when Wait is over; a place that becomes free goes to
// the one who came first.
func TestSitePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		b := &busyServer{took: 200 * time.Millisecond}
		r := n.relay()
		r.Dial = b.dial
		r.Limits = SiteLimits{Initial: 2, Max: 2, Wait: 500 * time.Millisecond}
		start := time.Now()
		type result struct {
			i    int
			took time.Duration
			err  error
		}
		results := make(chan result, 10)
		for i := range 10 {
			go func() {
				err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
				results <- result{i, time.Since(start), mailspine.ErrorAt(err, 0)}
			}()
			synctest.Wait() // in this order
		}
		if st := r.limitsOf("mx1.dest.example"); st.Busy != 2 || st.Waiting != 8 || st.Window != 2 || st.Open != 2 || !st.Known {
			t.Errorf("the site is %+v", st)
		}
		var got []string
		for range 10 {
			res := <-results
			var later *mailspine.NotNow
			switch {
			case res.err == nil:
				got = append(got, fmt.Sprint(res.i, " after ", res.took))
			case errors.As(res.err, &later) && later.Rule == SiteConcurrency:
				got = append(got, fmt.Sprint("not now after ", res.took))
				if d := later.Until.Sub(start.Add(res.took)); d < minSiteDelay || d > 2*time.Second {
					t.Errorf("delivery %d is to come back after %v", res.i, d)
				}
				if later.Reason != "2 of 2 places at mx1.dest.example are taken" {
					t.Errorf("the reason is %q", later.Reason)
				}
			default:
				t.Error(res.err)
			}
		}
		slices.Sort(got)
		want := []string{"0 after 200ms", "1 after 200ms", "2 after 400ms", "3 after 400ms", "4 after 600ms", "5 after 600ms",
			"not now after 500ms", "not now after 500ms", "not now after 500ms", "not now after 500ms"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q\nwant %q", got, want)
		}
		if st := r.limitsOf("mx1.dest.example"); st.Busy != 0 || st.Waiting != 0 || st.Open != 0 {
			t.Errorf("at the end the site is %+v", st)
		}
		if m := b.most.Load(); m != 2 {
			t.Errorf("%d connections at a time", m)
		}
		b.wg.Wait()
	})
}

// The end of ctx ends the wait, and takes no place along; so does a place that comes in the same moment as the end of the wait.
func TestSiteWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var st siteTable
		l := SiteLimits{Initial: 1, Max: 1, Wait: time.Second}.withDefaults()
		first, err := st.enter(t.Context(), "a", nil, l)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := st.enter(ctx, "a", nil, l); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if _, err := st.enter(t.Context(), "b", nil, l); err != nil {
			t.Error("another site:", err)
		}
		// Again and again in the same moment: whoever wins, no place is lost, and none is given twice.
		for i := range 200 {
			done := make(chan struct{})
			go func() {
				defer close(done)
				time.Sleep(time.Second)
				first.leave()
			}()
			v, err := st.enter(t.Context(), "a", nil, l)
			<-done
			if err != nil {
				if v, err = st.enter(t.Context(), "a", nil, l); err != nil {
					t.Fatalf("round %d: %v", i, err)
				}
			}
			first = v
			if s := st.byName["a"]; s.busy != 1 || s.waiters.Len() != 0 {
				t.Fatalf("round %d: %d places taken, %d wait", i, s.busy, s.waiters.Len())
			}
		}
		first.leave()
		if s := st.byName["a"]; s.busy != 0 {
			t.Errorf("%d places are taken", s.busy)
		}
		// Without a Wait nobody waits, and nobody passes those who do.
		v, _ := st.enter(t.Context(), "a", nil, l)
		l.Wait = 0
		start := time.Now()
		var later *mailspine.NotNow
		if _, err := st.enter(t.Context(), "a", nil, l); !errors.As(err, &later) || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		v.leave()
	})
}

// No more than maxSiteWaiting wait.
func TestSiteWaitingBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var st siteTable
		l := SiteLimits{Initial: 1, Max: 1, Wait: time.Minute}.withDefaults()
		v, _ := st.enter(t.Context(), "a", nil, l)
		var wg sync.WaitGroup
		for range maxSiteWaiting {
			wg.Go(func() {
				if v, err := st.enter(t.Context(), "a", nil, l); err == nil {
					v.leave()
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		if _, err := st.enter(t.Context(), "a", nil, l); err == nil || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		v.leave()
		wg.Wait()
	})
}

// A server that takes so many connections and no more: the window finds that out, mail is not lost on the way, and in the end no connection
// is turned away any more.
func TestSiteLearns(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		t.Run(fmt.Sprint("refuse=", refuse), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1")
				b := &busyServer{took: 100 * time.Millisecond, limit: 7, refuse: refuse}
				r := n.relay()
				r.Dial, r.DeadTime = b.dial, -1
				r.Limits = SiteLimits{Initial: 20, Max: 20, Wait: time.Second}
				var wg sync.WaitGroup
				var sent, later, deferred atomic.Int64
				round := func(messages int) (turned int64) {
					before := b.turned.Load()
					for range 20 {
						wg.Go(func() {
							for range messages {
								err := mailspine.ErrorAt(r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n")), 0)
								var nn *mailspine.NotNow
								switch {
								case err == nil:
									sent.Add(1)
								case errors.As(err, &nn):
									later.Add(1)
									time.Sleep(time.Until(nn.Until))
								case mailspine.Status(err).Temporary():
									deferred.Add(1)
									time.Sleep(time.Second)
								default:
									t.Error(err)
								}
							}
						})
					}
					wg.Wait()
					return b.turned.Load() - before
				}
				first := round(20)
				if first == 0 {
					t.Error("no connection was turned away: this tests nothing")
				}
				if second := round(20); second != 0 {
					t.Errorf("%d connections were turned away at first, and %d later", first, second)
				}
				st := r.limitsOf("mx1.dest.example")
				if st.Window > 7 || st.Ceiling == 0 || st.Ceiling > 7 || st.Busy != 0 {
					t.Errorf("the site is %+v", st)
				}
				t.Logf("%d sent, %d not now, %d deferred, %d and 0 turned away, window %d", sent.Load(), later.Load(), deferred.Load(), first, st.Window)
				if b.messages.Load() != sent.Load() {
					t.Errorf("%d messages were sent, and %d arrived", sent.Load(), b.messages.Load())
				}
				b.wg.Wait()
			})
		})
	}
}

// The ceiling is how many others were open: neither the one that was turned away counts, nor one that was never let in.
func TestSiteCeiling(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			n.mx("dest.example", "192.0.2.1")
			b := &busyServer{took: time.Second, limit: 4, refuse: refuse}
			r := n.relay()
			r.Dial, r.DeadTime = b.dial, -1
			r.Limits = SiteLimits{Initial: 5}
			var wg sync.WaitGroup
			for _, want := range []string{"", "", "", "", map[bool]string{true: "451 4.4.1", false: "421 4.7.0"}[refuse]} {
				wg.Go(func() { bob(t, r, want) })
				synctest.Wait()
			}
			if st := r.limitsOf("mx1.dest.example"); st.Ceiling != 4 || st.Window != 4 || st.Busy != 4 || st.Open != 4 {
				t.Errorf("refuse %v: the site is %+v", refuse, st)
			}
			wg.Wait()
			b.wg.Wait()
		})
	}
}

// A server that is stopped says good-bye to all connections, and has not told how many it takes.
func TestSiteCeilingRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		r := n.relay()
		r.DeadTime = -1
		stop := make(chan struct{})
		r.Dial = func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			n.wg.Go(func() {
				defer server.Close()
				script(open+"C: MAIL*\nS: 250 ok\nC: RCPT*\n").play(server, nil)
				<-stop
				io.WriteString(server, "421 4.3.2 shutting down\r\n")
			})
			return client, nil
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { bob(t, r, "421 4.3.2") })
		}
		synctest.Wait()
		close(stop)
		wg.Wait()
		if st := r.limitsOf("mx1.dest.example"); st.Ceiling != 0 || st.Failed != 4 || st.Window != 5 {
			t.Errorf("the site is %+v", st)
		}
		n.wg.Wait()
	})
}

// A host that is down says nothing about how many connections the others take.
func TestSiteCeilingOtherHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		b := &busyServer{took: time.Second}
		r := n.relay()
		r.DeadTime = -1
		r.Dial = func(ctx context.Context, network, a string) (net.Conn, error) {
			if strings.HasPrefix(a, "192.0.2.1:") {
				return nil, refused()
			}
			return b.dial(ctx, network, a)
		}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { bob(t, r, "") })
			synctest.Wait()
		}
		if st := r.Sites()[0]; st.Ceiling != 0 || st.Window != 5 || st.Open != 5 {
			t.Errorf("the site is %+v", st)
		}
		wg.Wait()
		b.wg.Wait()
	})
}

// What a delivery tells the window: each outcome, and what it is after so many deliveries.
func TestSiteFeedback(t *testing.T) {
	const ok = script(open + one + bye)
	for _, tt := range []struct {
		name   string
		script script // "": nobody is there
		window int    // after six deliveries with a window of 3
		failed int    // in a row
	}{
		{"delivered", ok, 5, 0},
		{"refused", open + "C: MAIL FROM:<ann@sender.example>\nS: 550 5.7.1 no\n" + bye, 5, 0},
		{"greylisted", open + "C: MAIL FROM:<ann@sender.example>\nS: 451 4.7.1 later\n" + bye, 5, 0},
		{"nobody", "", 1, 0},
		{"no greeting", "CLOSE", 1, 0},
		{"421", "S: 421 4.3.2 down", 1, 0},
		{"450 in the greeting", "S: 450 4.3.2 later\n" + bye, 1, 0},
		{"nonsense", "S: hello", 1, 0},
		{"554 in the greeting says nothing", "S: 554 5.7.1 no\n" + bye, 3, 0},
		{"neither does TLS", "S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\n" + bye, 3, 0},
		{"421 to MAIL", open + "C: MAIL FROM:<ann@sender.example>\nS: 421 4.7.0 enough", 1, 0},
		{"421 later", open + "C: MAIL FROM:<ann@sender.example>\nS: 250 ok\nC: RCPT TO:<bob@dest.example>\nS: 421 4.3.2 down", 1, 0},
		{"too many connections, in other words", open + "C: MAIL FROM:<ann@sender.example>\nS: 450 4.7.0 Error: Too many concurrent connections\n" + bye, 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1")
				r := n.relay()
				r.Limits, r.DeadTime = SiteLimits{Initial: 3, Max: 9}, -1
				if tt.name == "neither does TLS" {
					r.TLSPolicy = TLSRules{"": {Level: TLSEncrypt}}
				}
				// Two others use the site, so that it is used.
				for range 2 {
					v, err := r.sites.enter(t.Context(), "mx1.dest.example", nil, r.Limits.withDefaults())
					if err != nil {
						t.Fatal(err)
					}
					defer v.leave()
				}
				for i := range 6 {
					if tt.script != "" {
						n.scripts["192.0.2.1"] = append(n.scripts["192.0.2.1"], tt.script)
					}
					if tt.name == "delivered" && i == 5 {
						break // 3 for the fourth place, 2 of 4 for the fifth
					}
					r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
				}
				st := r.limitsOf("mx1.dest.example")
				if st.Failed != tt.failed || st.Open != 0 {
					t.Errorf("the site is %+v", st)
				}
				if tt.window != 5 && st.Window != tt.window || tt.window == 5 && st.Window != 4 {
					t.Errorf("the window is %d, want %d", st.Window, tt.window)
				}
				n.wg.Wait()
			})
		})
	}
}

// A host that is down does not make the window of a site smaller whose other host works; nor do our own mistakes.
func TestSiteFeedbackOfDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		r := n.relay()
		r.DeadTime = -1
		for range 20 {
			n.scripts["192.0.2.2"] = append(n.scripts["192.0.2.2"], open+one+bye)
			bob(t, r, "")
		}
		site := Site(n.zone["dest.example MX"].([]mailspine.MX))
		if st := r.limitsOf(site); st.Window != 5 || st.Failed != 0 || !slices.Equal(st.Hosts, []string{"mx1.dest.example", "mx2.dest.example"}) {
			t.Errorf("the site is %+v", st)
		}
		for _, err := range []error{&ProxyError{"192.0.2.9:1080", io.EOF}, context.Canceled} {
			r.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, err }
			ctx, cancel := context.WithCancel(t.Context())
			if err == context.Canceled {
				cancel()
			}
			for range 20 {
				r.Deliver(ctx, envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
			}
			cancel()
			if st := r.limitsOf(site); st.Window != 5 || st.Failed != 0 {
				t.Errorf("after %v the site is %+v", err, st)
			}
		}
		n.done()
	})
}

// The rate of new connections: the first of a delivery waits for its turn or comes back, kept connections cost nothing.
func TestSiteRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		b := &busyServer{}
		r := n.relay()
		r.Dial = b.dial
		r.Limits = SiteLimits{OpenRate: 2, OpenBurst: 2, Wait: 600 * time.Millisecond}
		start := time.Now()
		for i, want := range []time.Duration{0, 0, 500 * time.Millisecond, time.Second} {
			bob(t, r, "")
			if at := time.Since(start); at != want {
				t.Errorf("connection %d at %v, want %v", i+1, at, want)
			}
		}
		if st := r.limitsOf("mx1.dest.example"); st.NextOpen.Sub(start) != 1500*time.Millisecond {
			t.Errorf("the next one at %v", st.NextOpen.Sub(start))
		}
		r.Limits.Wait = -1
		a := &attempt{}
		err := mailspine.ErrorAt(r.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n")), 0)
		var later *mailspine.NotNow
		if !errors.As(err, &later) || later.Rule != SiteRate || later.Until.Before(time.Now().Add(500*time.Millisecond)) || later.Until.After(time.Now().Add(time.Second)) {
			t.Errorf("got %v", err)
		}
		if got := b.dials.Load(); got != 4 {
			t.Errorf("%d connections", got)
		}
		// The end of ctx ends the wait, and gives the turn back.
		r.Limits.Wait = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := r.Deliver(ctx, envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n")); !errors.Is(mailspine.ErrorAt(err, 0), context.DeadlineExceeded) {
			t.Error(err)
		}
		bob(t, r, "")
		if at := time.Since(start); at != 1500*time.Millisecond {
			t.Errorf("a connection at %v", at)
		}
		// What is kept is used without a turn.
		r.IdleTimeout = time.Minute
		bob(t, r, "")
		at := time.Since(start)
		for range 10 {
			bob(t, r, "")
		}
		if time.Since(start) != at {
			t.Error("connections that were used again took their turn")
		}
		r.CloseIdle()
		b.wg.Wait()
	})
}

// A delivery that has begun does not wait with its next connection, but the one after it waits for both.
func TestSiteRateNextHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2") // nobody is at the first
		n.scripts["192.0.2.2"] = []script{open + one + bye, open + one + bye}
		r := n.relay()
		r.DeadTime = -1
		r.Limits = SiteLimits{OpenRate: 0.1, OpenBurst: 1, Wait: time.Minute}
		start := time.Now()
		bob(t, r, "")
		if at := time.Since(start); at != 0 {
			t.Errorf("the first took %v", at)
		}
		bob(t, r, "")
		if at := time.Since(start); at != 20*time.Second {
			t.Errorf("the second was done at %v, want 20 s", at)
		}
		n.done()
	})
}

// A delivery that waits for its turn uses the connection that another one keeps in the meantime.
func TestSiteRateKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		b := &busyServer{took: 3 * time.Second}
		r := n.relay()
		r.Dial, r.IdleTimeout = b.dial, time.Minute
		r.Limits = SiteLimits{OpenRate: 0.1, OpenBurst: 1, Wait: time.Minute}
		start := time.Now()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { bob(t, r, "") })
		}
		wg.Wait()
		if b.dials.Load() != 1 {
			t.Errorf("%d connections", b.dials.Load())
		}
		// Its turn is still there: the next one is ten seconds after the first.
		if st := r.limitsOf("mx1.dest.example"); st.Idle != 1 || st.NextOpen.After(start.Add(10*time.Second)) {
			t.Errorf("the site is %+v", st)
		}
		time.Sleep(time.Second)
		r.CloseIdle()
		b.wg.Wait()
	})
}

// Relay is the Gate of its routes and of those of its Smarthosts.
func TestRelayReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		b := &busyServer{took: time.Second}
		r := n.relay()
		r.Dial, r.BySite = b.dial, true
		r.Limits = SiteLimits{Initial: 2, Max: 2, Wait: 10 * time.Second}
		ready := func(route queue.Route) string {
			h, err := r.Ready(t.Context(), route)
			if err != nil {
				t.Fatal(err)
			}
			if !h.IsZero() && (h.Until.Before(time.Now().Add(minSiteDelay)) || h.Until.After(time.Now().Add(maxSiteDelay))) {
				t.Errorf("held for %v", time.Until(h.Until))
			}
			return h.Rule
		}
		host := &Smarthost{Relay: r, Address: "192.0.2.7:2525"}
		for _, d := range []mailspine.Deliverer{r, host} {
			router := d.(queue.Router)
			route, err := router.Route(t.Context(), nil, mailspine.Recipient{Address: addr(t, "bob@dest.example")})
			if err != nil {
				t.Fatal(err)
			}
			if got := ready(route); got != "" {
				t.Errorf("%s is held before anything is known: %s", route, got)
			}
			var wg sync.WaitGroup
			for i := range 5 {
				wg.Go(func() { bob(t, d, "") })
				synctest.Wait()
				// Two are under way and two wait: what would come after waits in the queue.
				if want := map[bool]string{true: SiteConcurrency}[i >= 3]; ready(route) != want {
					t.Errorf("%s with %d deliveries: %q, want %q", route, i+1, ready(route), want)
				}
			}
			if got := ready("elsewhere.example"); got != "" {
				t.Error("an unknown route is held by", got)
			}
			wg.Wait()
			if got := ready(route); got != "" {
				t.Errorf("%s is held at the end by %s", route, got)
			}
		}
		var names []string
		for _, st := range r.Sites() {
			names = append(names, st.Site)
		}
		if want := []string{"192.0.2.7:2525", "mx1.dest.example"}; !slices.Equal(names, want) {
			t.Errorf("the sites are %v, want %v", names, want)
		}
		// The rate holds too, unless there is a connection to use.
		r.Limits = SiteLimits{OpenRate: 0.01, Wait: -1}
		r.sites = siteTable{}
		r.IdleTimeout = time.Minute
		bob(t, r, "")
		if got := ready("mx1.dest.example"); got != "" {
			t.Errorf("held by %s while a connection is kept", got)
		}
		r.CloseIdle()
		h, _ := r.Ready(t.Context(), "mx1.dest.example")
		if wait := time.Until(h.Until); h.Rule != SiteRate || wait < 90*time.Second || wait > 100*time.Second {
			t.Errorf("held by %v for %v", h, wait)
		}
		b.wg.Wait()
	})
}

// A queue whose Router and Gate is the Relay: a site gets its places filled and no more, nothing is lost on the way, and no attempt
// is spent on waiting.
func TestRelayGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.zone["friend.example MX"] = n.zone["dest.example MX"]
		b := &busyServer{took: 2 * time.Second}
		r := n.relay()
		r.Dial, r.BySite = b.dial, true
		r.Limits = SiteLimits{Initial: 3, Max: 3}
		store := memqueue.New(nil)
		var attempts, delivered, asked atomic.Int64
		q := &queue.Queue{
			Store: store, Hostname: "out.sender.example", Logger: slog.New(slog.DiscardHandler), PerRoute: 16,
			Next: mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
				attempts.Add(1)
				return r.Deliver(ctx, env, msg)
			}),
			Router: r,
			Gate: queue.GateFunc(func(ctx context.Context, route queue.Route) (queue.Hold, error) {
				asked.Add(1)
				return r.Ready(ctx, route)
			}),
			Outcomes: mailspine.OutcomeSinkFunc(func(_ context.Context, o mailspine.Outcome) {
				if o.Event != mailspine.EventDelivered || o.Attempt > 1 {
					t.Errorf("%+v", o)
				}
				delivered.Add(1)
			}),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- q.Run(ctx) }()
		const total = 60
		for i := range total {
			env := envelope(t, "ann@sender.example", []string{"bob@dest.example", "eve@friend.example"}[i%2])
			env.ID = mailspine.MsgID(fmt.Sprint("01TEST", i))
			if err := q.Deliver(ctx, env, mailspine.StringContent("x\r\n")); err != nil {
				t.Fatal(err)
			}
		}
		for delivered.Load() < total && time.Since(start) < time.Hour {
			time.Sleep(time.Second)
		}
		took := time.Since(start)
		cancel()
		<-done
		store.Close()
		b.wg.Wait()
		if delivered.Load() != total || b.messages.Load() != total || b.most.Load() != 3 {
			t.Errorf("%d delivered, %d arrived, %d connections at a time", delivered.Load(), b.messages.Load(), b.most.Load())
		}
		// At best it takes 40 s. What comes too early for a place is not much, and costs no more than coming again.
		if took > 60*time.Second || attempts.Load() > 2*total {
			t.Errorf("took %v, and %d deliveries for %d messages", took, attempts.Load(), total)
		}
		t.Logf("%v, %d deliveries for %d messages, the gate was asked %d times", took, attempts.Load(), total, asked.Load())
	})
}

// Without limits there are none, and what happens is counted nevertheless.
func TestSiteNoLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		b := &busyServer{took: time.Second}
		r := n.relay()
		r.Dial = b.dial
		r.Limits.Max = -1
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() { bob(t, r, "") })
		}
		synctest.Wait()
		if st := r.limitsOf("mx1.dest.example"); st.Busy != 500 || st.Open != 500 || st.Window != 0 || st.Waiting != 0 {
			t.Errorf("the site is %+v", st)
		}
		// Nor does anything that happens make one.
		r.Dial, r.DeadTime = func(context.Context, string, string) (net.Conn, error) { return nil, refused() }, -1
		for range 5 {
			bob(t, r, "451 4.4.1")
		}
		if st := r.limitsOf("mx1.dest.example"); st.Ceiling != 0 || st.Window != 0 || st.Failed != 5 {
			t.Errorf("the site is %+v", st)
		}
		wg.Wait()
		b.wg.Wait()
	})
}

// Sites are forgotten: after an hour, and the least recently used one when there are too many; never one in use.
func TestSitesForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &Relay{}
		l := r.Limits.withDefaults()
		enter := func(name string) *visit {
			v, err := r.sites.enter(t.Context(), name, nil, l)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		inUse := enter("in use")
		v := enter("a")
		v.failed = true
		v.leave()
		time.Sleep(siteTTL - 1)
		if st := r.limitsOf("a"); !st.Known || st.Failed != 1 {
			t.Errorf("just before the hour: %+v", st)
		}
		time.Sleep(time.Nanosecond)
		if st := r.limitsOf("a"); st.Known || st.Failed != 0 || st.Window != 5 {
			t.Errorf("after an hour: %+v", st)
		}
		if all := r.Sites(); len(all) != 1 || all[0].Site != "in use" {
			t.Errorf("after an hour: %+v", all)
		}
		for i := range maxSites + 100 {
			enter(fmt.Sprint("site ", i)).leave()
		}
		if n := len(r.sites.byName); n != maxSites || n != r.sites.recent.Len() {
			t.Errorf("%d sites are known", n)
		}
		if !r.limitsOf("in use").Known || r.limitsOf("site 50").Known || !r.limitsOf("site 8291").Known {
			t.Error("the wrong ones were forgotten")
		}
		inUse.leave()
		time.Sleep(siteTTL)
		for range maxSites {
			enter("another").leave()
		}
		if n := len(r.sites.byName); n != 1 {
			t.Errorf("%d sites are known after an hour", n)
		}
	})
}

// Two domains with the same mail exchangers share the places of one site, two Smarthosts on one host do not.
func TestSiteShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.zone["friend.example MX"] = []mailspine.MX{{Preference: 7, Host: "MX1.dest.example."}}
		b := &busyServer{took: time.Second}
		r := n.relay()
		r.Dial = b.dial
		r.Limits = SiteLimits{Initial: 1, Max: 1, Wait: -1}
		var wg sync.WaitGroup
		wg.Go(func() { bob(t, r, "") })
		synctest.Wait()
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "x@friend.example"), mailspine.StringContent("x\r\n"))
		var later *mailspine.NotNow
		if !errors.As(mailspine.ErrorAt(err, 0), &later) {
			t.Errorf("got %v", err)
		}
		for _, a := range []string{"192.0.2.1:25", "192.0.2.1:26", "[2001:db8::1]:25"} {
			wg.Go(func() { bob(t, &Smarthost{Relay: r, Address: a}, "") })
		}
		wg.Wait()
		for _, name := range []string{"192.0.2.1:25", "192.0.2.1:26", "[2001:db8::1]:25"} {
			if !r.limitsOf(name).Known {
				t.Errorf("%s is not known", name)
			}
		}
		b.wg.Wait()
	})
}

// A hook that panics loses no place.
func TestSitePanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		b := &busyServer{}
		r := n.relay()
		r.Dial = b.dial
		r.Trace = &RelayTrace{Reply: func(_ context.Context, i ReplyInfo) {
			if i.Command == "RCPT" {
				panic("hook")
			}
		}}
		func() {
			defer func() { recover() }()
			r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
		}()
		if st := r.limitsOf("mx1.dest.example"); st.Busy != 0 || st.Open != 0 {
			t.Errorf("the site is %+v", st)
		}
	})
}

// refused is the error of a connection that nobody takes.
func refused() error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}
