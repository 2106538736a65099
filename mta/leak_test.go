package mta

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

// A leakSite is a server of TestRelayLeaks.
type leakSite struct {
	name  string
	l     net.Listener // nil: nobody listens
	serve func(conn net.Conn, number int64)
	limit int64 // of connections at a time; over it they get 421; 0: none

	conns, open atomic.Int64
	// The results of its deliveries.
	taken, later, failed atomic.Int64
}

// accept serves connections until the listener is closed.
func (s *leakSite) accept(wg *sync.WaitGroup) {
	wg.Go(func() {
		for {
			conn, err := s.l.Accept()
			if err != nil {
				return
			}
			number, open := s.conns.Add(1), s.open.Add(1)
			wg.Go(func() {
				defer s.open.Add(-1)
				defer conn.Close()
				if s.limit > 0 && open > s.limit {
					conn.Write([]byte("421 4.7.0 too many connections\r\n"))
					return
				}
				s.serve(conn, number)
			})
		}
	})
}

// Many deliveries at once to sites of all kinds: servers that hang up when they like, that speak TLS and resume sessions, that
// take few connections, that refuse and break off at every step, that are not there, or whose first address is a black hole.
// What was taken arrived once, and nothing else arrived; and at the end no goroutine, no descriptor, no place and no
// connection is left. MAILSPINE_SOAK=1 makes it 100,000 messages.
func TestRelayLeaks(t *testing.T) {
	total, sessions := 6000, 40
	switch {
	case os.Getenv("MAILSPINE_SOAK") == "1":
		total = 100_000
	case testing.Short():
		total = 600
	}
	goroutines, files := runtime.NumGoroutine(), descriptors()
	var arrived sync.Map
	var twice atomic.Int64
	took := func(message string) {
		if _, ok := arrived.LoadOrStore(message, true); ok {
			twice.Add(1)
		}
	}
	certs := newCA(t).server(t, "mx1.tls.example").Clone()
	certs.SessionTicketsDisabled = false
	trouble := []script{
		"CLOSE",
		"S: 554 5.7.1 no",
		"S: what",
		"S: 220 hi\nCLOSE",
		open + "C: MAIL*\nCLOSE",
		open + "C: MAIL*\nS: 451 4.7.1 later\nC: QUIT\nS: 221 bye",
		open + "C: MAIL*\nS: 250 ok\nC: RCPT*\nS: 550 5.1.1 no\nC: QUIT\nS: 221 bye",
		open + "C: MAIL*\nS: 250 ok\nC: RCPT*\nS: 421 4.3.2 down",
		open + "C: MAIL*\nS: 250 ok\nC: RCPT*\nS: 250 ok\nC: DATA\nCLOSE",
		"S: 220 hi\nC: EHLO*\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\nJUNK this is no TLS\nCLOSE",
	}
	sites := []*leakSite{
		{name: "plain", serve: func(conn net.Conn, number int64) {
			k := &taker{took: took}
			switch number % 4 {
			case 1:
				k.hangUp = int(number%7) + 1 // after so many messages, without a word
			case 2:
				k.hangUp, k.last = int(number%5)+1, "421 4.3.2 enough\r\n"
			}
			k.serve(conn)
		}},
		{name: "tls", serve: func(conn net.Conn, number int64) {
			if script("S: 220 hi\nC: EHLO *\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go").play(conn, nil) == nil {
				tc := tls.Server(conn, certs)
				defer tc.Close()
				(&taker{greeted: true, took: took, hangUp: int(number%9) + 1}).serve(tc)
			}
		}},
		{name: "small", limit: 3, serve: func(conn net.Conn, number int64) { (&taker{took: took, hangUp: 5}).serve(conn) }},
		{name: "trouble", serve: func(conn net.Conn, number int64) {
			if i := number % int64(len(trouble)+1); i < int64(len(trouble)) {
				trouble[i].play(conn, nil)
				return
			}
			(&taker{took: took, hangUp: 1}).serve(conn)
		}},
		{name: "nobody"},
		{name: "hole", serve: func(conn net.Conn, number int64) { (&taker{took: took, hangUp: 10}).serve(conn) }},
	}
	var servers sync.WaitGroup
	n := newNetwork(t)
	for i, s := range sites {
		n.mx(s.name+".example", fmt.Sprint("192.0.2.", i))
		if s.serve == nil {
			continue
		}
		var err error
		if s.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		s.accept(&servers)
	}
	n.zone["mx1.hole.example A"] = "192.0.2.99 192.0.2.5"
	var d net.Dialer
	r := n.relay()
	r.IdleTimeout, r.MaxIdle = 0, 10 // fewer than there are sessions
	r.DeadTime, r.FallbackDelay = 50*time.Millisecond, 20*time.Millisecond
	r.Limits = SiteLimits{Initial: 5, Max: 10, Wait: 50 * time.Millisecond}
	r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		i := int(netip.MustParseAddrPort(addr).Addr().As4()[3])
		switch {
		case i == 99:
			<-ctx.Done() // a black hole
			return nil, ctx.Err()
		case sites[i].l == nil:
			return nil, refused()
		}
		return d.DialContext(ctx, network, sites[i].l.Addr().String())
	}
	var resumed, handshakes, given atomic.Int64
	r.Trace = &RelayTrace{
		TLS: func(_ context.Context, i TLSDoneInfo) {
			if i.Err == nil {
				handshakes.Add(1)
			}
			if i.Resumed {
				resumed.Add(1)
			}
		},
		Dialed: func(_ context.Context, i DialedInfo) {
			if errors.Is(i.Err, errOvertaken) {
				given.Add(1)
			}
		},
	}
	deliver := func(i int64) {
		s := sites[i%int64(len(sites))]
		ctx := t.Context()
		if i%101 == 0 {
			// One that is broken off somewhere.
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Duration(i%7)*time.Millisecond)
			defer cancel()
		}
		text := fmt.Sprintf("message %d\r\n", i)
		err := mailspine.ErrorAt(r.Deliver(ctx, envelope(t, "ann@sender.example", "x@"+s.name+".example"), mailspine.StringContent(text)), 0)
		var later *mailspine.NotNow
		_, there := arrived.Load(text)
		switch {
		case err == nil:
			s.taken.Add(1)
			if !there {
				t.Errorf("message %d was taken and is not there", i)
			}
		case errors.As(err, &later):
			s.later.Add(1)
		default:
			s.failed.Add(1)
		}
		if st := mailspine.Status(err); err != nil && there && (st.Code != 451 || st.Enhanced[1] != 4) {
			t.Errorf("message %d is there, and was not taken: %v", i, err)
		}
	}
	start := time.Now()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range sessions {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(total); i = next.Add(1) {
				deliver(i)
			}
		})
	}
	wg.Wait()
	spent := time.Since(start)
	for _, st := range r.Sites() {
		if st.Busy != 0 || st.Waiting != 0 || st.Open != 0 {
			t.Errorf("a place is left: %+v", st)
		}
	}
	r.CloseIdle()
	if r.idle.all.Len() != 0 || len(r.idle.byKey) != 0 || len(r.idle.fit) != 0 || len(r.idle.hosts) != 0 {
		t.Errorf("a connection is left: %+v", &r.idle)
	}
	for _, s := range sites {
		if s.l != nil {
			s.l.Close()
		}
	}
	servers.Wait()
	waitFor(t, func() bool { return runtime.NumGoroutine() <= goroutines && descriptors() <= files })
	if twice.Load() > 0 {
		t.Errorf("%d messages arrived twice", twice.Load())
	}
	for _, s := range sites {
		t.Logf("%-8s %6d taken, %6d not now, %6d failed, %6d connections", s.name, s.taken.Load(), s.later.Load(), s.failed.Load(), s.conns.Load())
		if all := s.taken.Load() + s.later.Load() + s.failed.Load(); s.serve != nil && s.taken.Load() == 0 || s.serve == nil && s.taken.Load() > 0 || all == 0 {
			t.Errorf("%s: %d of %d taken", s.name, s.taken.Load(), all)
		}
	}
	t.Logf("%d messages in %v, %d handshakes of which %d resumed, %d connections given up for another; goroutines %d and %d, descriptors %d and %d",
		total, spent.Round(time.Millisecond), handshakes.Load(), resumed.Load(), given.Load(), goroutines, runtime.NumGoroutine(), files, descriptors())
	if resumed.Load() == 0 || given.Load() == 0 {
		t.Error("no session was resumed, or no connection given up: this tests less than it says")
	}
}
