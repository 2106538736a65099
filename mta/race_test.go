package mta

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
)

// When a second address of a host is tried beside the first, and what comes of it. The server's addresses are 192.0.2.1 to 3.
func TestRelayFallback(t *testing.T) {
	const ok, slow, never = 0, 3 * time.Second, time.Hour
	type way struct {
		after time.Duration
		err   error
	}
	bad := errors.New("bad")
	for _, tt := range []struct {
		name  string
		ways  []way
		edit  func(*Relay)
		want  string // the status
		took  time.Duration
		trace string
	}{
		{"at once", []way{{ok, nil}, {ok, nil}}, nil, "", 0, "1 ok"},
		{"just in time", []way{{2*time.Second - 1, nil}, {ok, nil}}, nil, "", 2*time.Second - 1, "1 ok"},
		{"the second wins", []way{{never, nil}, {ok, nil}}, nil, "", 2 * time.Second, "1 given up, 2 ok"},
		{"the first wins", []way{{slow, nil}, {slow, nil}}, nil, "", 3 * time.Second, "2 given up, 1 ok"},
		{"the second fails", []way{{slow, nil}, {ok, bad}}, nil, "", 3 * time.Second, "2 bad, 1 ok"},
		{"the first fails after the second was begun", []way{{slow, bad}, {slow, nil}}, nil, "", 5 * time.Second, "1 bad, 2 ok"},
		{"both fail, the third is there", []way{{slow, bad}, {slow, bad}, {ok, nil}}, nil, "", 5 * time.Second, "2 bad, 1 bad, 3 ok"},
		{"a failure is no reason to wait", []way{{ok, bad}, {ok, nil}}, nil, "", 0, "1 bad, 2 ok"},
		{"all fail", []way{{slow, bad}, {slow, bad}, {never, nil}}, nil, "451 4.4.1", 35 * time.Second, "2 bad, 1 bad, 3 timed out"},
		{"never three at once", []way{{never, nil}, {never, nil}, {ok, nil}}, nil, "", 32 * time.Second, "2 timed out, 1 timed out, 3 ok"},
		{"off", []way{{slow, nil}, {ok, nil}}, func(r *Relay) { r.FallbackDelay = -1 }, "", 3 * time.Second, "1 ok"},
		{"sooner", []way{{slow, nil}, {ok, nil}}, func(r *Relay) { r.FallbackDelay = time.Second }, "", time.Second, "1 given up, 2 ok"},
		{"one connection only", []way{{slow, bad}, {ok, nil}}, func(r *Relay) { r.MaxConnections = 1 }, "451 4.4.1", 3 * time.Second, "1 bad"},
		{"two connections", []way{{slow, bad}, {slow, bad}, {ok, nil}}, func(r *Relay) { r.MaxConnections = 2 }, "451 4.4.1", 5 * time.Second, "2 bad, 1 bad"},
		{"a forbidden one is passed over", []way{{slow, nil}, {ok, nil}, {ok, nil}}, func(r *Relay) {
			r.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.3/32")}
		}, "", 2 * time.Second, "1 given up, 3 ok"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1")
				var addrs []string
				for i := range tt.ways {
					addrs = append(addrs, fmt.Sprint("192.0.2.", i+1))
				}
				n.zone["mx1.dest.example A"] = strings.Join(addrs, " ")
				r := n.relay()
				r.DeadTime = -1
				r.Dial = func(ctx context.Context, _, a string) (net.Conn, error) {
					w := tt.ways[netip.MustParseAddrPort(a).Addr().As4()[3]-1]
					select {
					case <-time.After(w.after):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					if w.err != nil {
						return nil, w.err
					}
					client, server := net.Pipe()
					n.wg.Go(func() { (&taker{}).serve(server) })
					return client, nil
				}
				var trace []string
				r.Trace = &RelayTrace{Dialed: func(_ context.Context, i DialedInfo) {
					what := "ok"
					switch {
					case errors.Is(i.Err, errOvertaken):
						what = "given up"
					case errors.Is(i.Err, context.DeadlineExceeded):
						what = "timed out"
					case i.Err != nil:
						what = i.Err.Error()
					}
					trace = append(trace, strings.TrimSuffix(strings.TrimPrefix(i.Addr, "192.0.2."), ":25")+" "+what)
				}}
				if tt.edit != nil {
					tt.edit(r)
				}
				start := time.Now()
				a := bob(t, r, tt.want)
				if took := time.Since(start); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if got := strings.Join(trace, ", "); got != tt.trace {
					t.Errorf("connections: %s; want %s", got, tt.trace)
				}
				if tt.want == "" && !strings.HasSuffix(tt.trace, strings.TrimSuffix(strings.TrimPrefix(a.receipts[0].RemoteAddr, "192.0.2."), ":25")+" ok") {
					t.Errorf("the receipt says %s", a.receipts[0].RemoteAddr)
				}
				n.wg.Wait()
			})
		})
	}
}

// The one that came too late is closed, also if it comes in the same moment, or a Dial does not mind its context.
func TestRelayFallbackLoser(t *testing.T) {
	for _, after := range []time.Duration{2 * time.Second, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			n.mx("dest.example", "192.0.2.1")
			n.zone["mx1.dest.example A"] = "192.0.2.1 192.0.2.2"
			r := n.relay()
			r.Dial = func(_ context.Context, _, a string) (net.Conn, error) {
				if strings.HasPrefix(a, "192.0.2.1:") {
					time.Sleep(after)
				}
				client, server := net.Pipe()
				n.wg.Go(func() { (&taker{}).serve(server) }) // ends when the connection does
				return client, nil
			}
			bob(t, r, "")
			n.wg.Wait()
		})
	}
}

// The address that lost is tried again where the one that won turns out to be of no use, after it.
// A Dial that panics does so where the queue can catch it, whichever of two attempts it is, and the other's connection is closed.
func TestRelayFallbackPanics(t *testing.T) {
	for bad := range 2 {
		t.Run(fmt.Sprint(bad+1), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1")
				n.zone["mx1.dest.example A"] = "192.0.2.1 192.0.2.2"
				r := n.relay()
				r.Dial = func(ctx context.Context, _, a string) (net.Conn, error) {
					if int(netip.MustParseAddrPort(a).Addr().As4()[3]) == bad+1 {
						time.Sleep(3 * time.Second)
						panic("dial " + a)
					}
					time.Sleep(4 * time.Second)
					client, server := net.Pipe()
					n.wg.Go(func() { // ends when the other side is closed
						defer server.Close()
						server.Read(make([]byte, 1))
					})
					return client, nil
				}
				defer func() {
					if v := recover(); v != fmt.Sprintf("dial 192.0.2.%d:25", bad+1) {
						t.Errorf("recovered %v", v)
					}
				}()
				err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
				t.Errorf("Deliver returned %v", err)
			})
		})
	}
}

func TestRelayFallbackTrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.zone["mx1.dest.example A"] = "192.0.2.1 192.0.2.2 192.0.2.3"
		var mu sync.Mutex
		var dials []string
		r := n.relay()
		r.DeadTime = -1
		r.Dial = func(ctx context.Context, _, a string) (net.Conn, error) {
			ip := strings.TrimSuffix(a, ":25")
			mu.Lock()
			dials = append(dials, ip)
			first := len(dials) == 1
			mu.Unlock()
			if first {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			client, server := net.Pipe()
			s := script("S: 421 4.3.2 down\n")
			if ip == "192.0.2.3" {
				s = open + one + bye
			}
			n.wg.Go(func() { s.play(server, nil); server.Close() })
			return client, nil
		}
		bob(t, r, "")
		if want := []string{"192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3"}; !slices.Equal(dials, want) {
			t.Errorf("connected to %v, want %v", dials, want)
		}
		n.wg.Wait()
	})
}

// A kept connection to any address of a host is used before another one is dialed, and one to the first address before others.
func TestRelayReuseOtherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.zone["mx1.dest.example A"] = "192.0.2.1 192.0.2.2"
		n.scripts["192.0.2.2"] = []script{open + one + one + "C: MAIL FROM:<ann@sender.example>\nS: 250 ok\nC: RCPT TO:<bob@dest.example>\nCLOSE", open + one + one + bye}
		r := n.relay()
		r.IdleTimeout, r.DeadTime = time.Minute, -1
		for range 2 {
			bob(t, r, "") // nobody is at 192.0.2.1
		}
		warm := func(addr string) bool {
			tr := r.transfer(t.Context(), envelope(t, "ann@sender.example"), nil, contentFacts{}, "dest.example", nil)
			return tr.warm(addr)
		}
		if !warm("mx1.dest.example") || warm("mx2.dest.example") {
			t.Error("warm is wrong")
		}
		if want := []string{"192.0.2.1:25", "192.0.2.2:25"}; !slices.Equal(n.dialed, want) {
			t.Errorf("connected to %v, want %v", n.dialed, want)
		}
		// It breaks in the middle: the address that was passed over is next.
		n.scripts["192.0.2.1"] = []script{open + one + one + bye}
		for range 2 {
			bob(t, r, "")
		}
		if want := []string{"192.0.2.1:25", "192.0.2.2:25", "192.0.2.1:25"}; !slices.Equal(n.dialed, want) {
			t.Errorf("connected to %v, want %v", n.dialed, want)
		}
		n.scripts["192.0.2.2"] = nil
		r.CloseIdle()
		if warm("mx1.dest.example") || len(r.idle.fit) != 0 || len(r.idle.hosts) != 0 {
			t.Errorf("something is left: %v, %v", r.idle.fit, r.idle.hosts)
		}
		n.done()
	})
}

// A proxy that fails is the way to all addresses: no other is tried, and the sender is not told where it is.
func TestRelayProxyError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		r := n.relay()
		dials := 0
		r.Dial = func(context.Context, string, string) (net.Conn, error) {
			dials++
			return nil, &ProxyError{"10.9.8.7:1080", errors.New("no")}
		}
		a := &attempt{}
		err := mailspine.ErrorAt(r.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n")), 0)
		wantStatus(t, "proxy", err, "451 4.4.1")
		var pe *ProxyError
		if !errors.As(err, &pe) || strings.Contains(mailspine.Status(err).Message, "10.9") {
			t.Errorf("got %v", err)
		}
		if dials != 1 {
			t.Errorf("%d connections", dials)
		}
		// Nothing is remembered: the next delivery tries.
		n.scripts["192.0.2.1"] = []script{open + one + bye}
		r.Dial = n.dial
		bob(t, r, "")
		n.done()
	})
}
