package mta

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

const (
	open = "S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\n"
	one  = "C: MAIL FROM:<ann@sender.example>\nS: 250 ok\nC: RCPT TO:<bob@dest.example>\nS: 250 ok\nC: DATA\nS: 354 go\nC: x\nC: .\nS: 250 2.0.0 taken\n"
	bye  = "C: QUIT\nS: 221 bye\n"
)

// bob delivers one message to him.
func bob(t testing.TB, d mailspine.Deliverer, want string) *attempt {
	t.Helper()
	a := &attempt{}
	err := d.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
	wantStatus(t, "bob", mailspine.ErrorAt(err, 0), want)
	return a
}

// The second message goes over the connection of the first, with the same receipt and a dot guard of its own; after
// the idle time the connection ends with QUIT.
func TestRelayReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.scripts["192.0.2.1"] = []script{open + one + one + one + bye}
		var got []string
		r := n.relay()
		r.IdleTimeout = 0
		r.Trace = &RelayTrace{
			Dialed: func(_ context.Context, i DialedInfo) { got = append(got, "dialed "+i.Addr) },
			Reused: func(_ context.Context, i ReusedInfo) {
				got = append(got, fmt.Sprint("reused ", i.Domain, " ", i.Host, " ", i.Addr, " ", i.Idle, " ", i.Messages))
			},
			Reply: func(_ context.Context, i ReplyInfo) {
				if i.Command == "EHLO" || i.Command == "message" {
					got = append(got, i.Command)
				}
			},
			Wire: func(ctx context.Context, l WireLine) {
				if l.Line == "QUIT" {
					got = append(got, fmt.Sprint("QUIT, ", ctx.Err()))
				}
			},
		}
		first := bob(t, r, "")
		time.Sleep(time.Second)
		for range 2 {
			again := bob(t, r, "")
			if again.commits != 1 || again.receipts[0] != first.receipts[0] || again.receipts[0].Reply != "250 2.0.0 taken" {
				t.Errorf("the receipts are\n%+v and\n%+v, with %d calls of BeforeCommit", first.receipts[0], again.receipts[0], again.commits)
			}
		}
		start := time.Now()
		n.done() // the server waits for QUIT
		if took := time.Since(start); took != defaultIdleTimeout {
			t.Errorf("QUIT came after %v, want %v", took, defaultIdleTimeout)
		}
		want := []string{"dialed 192.0.2.1:25", "EHLO", "message", "reused dest.example mx1.dest.example 192.0.2.1:25 1s 1", "message",
			"reused dest.example mx1.dest.example 192.0.2.1:25 0s 2", "message", "QUIT, <nil>"}
		synctest.Wait()
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// The limits of reuse, each at its edge. A delivery is made every second, to one host or another.
func TestRelayReuseLimits(t *testing.T) {
	for _, tt := range []struct {
		name  string
		edit  func(*Relay)
		hosts []int // to which host each delivery goes
		pause time.Duration
		want  []bool // whether it used a connection again
	}{
		{"off", func(r *Relay) { r.IdleTimeout = -1 }, []int{1, 1}, 0, []bool{false, false}},
		{"idle for long enough", nil, []int{1, 1}, 5 * time.Second, []bool{false, false}},
		{"just not", nil, []int{1, 1}, 5*time.Second - 1, []bool{false, true}},
		{"idle time", func(r *Relay) { r.IdleTimeout = time.Minute }, []int{1, 1, 1}, time.Minute - 1, []bool{false, true, true}},
		{"messages", func(r *Relay) { r.MaxPerConnection = 2 }, []int{1, 1, 1, 1}, 0, []bool{false, true, false, true}},
		{"one message", func(r *Relay) { r.MaxPerConnection = 1 }, []int{1, 1}, 0, []bool{false, false}},
		{"age", func(r *Relay) { r.MaxAge = 5 * time.Second }, []int{1, 1, 1, 1}, 2 * time.Second, []bool{false, true, true, false}},
		{"the longest idle gives way", func(r *Relay) { r.MaxIdle = 2 }, []int{1, 2, 3, 2, 3, 1, 3, 2}, 0,
			[]bool{false, false, false, true, true, false, true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				r := n.relay()
				r.IdleTimeout = 0
				for i := range 4 {
					n.mx(fmt.Sprintf("d%d.example", i), fmt.Sprintf("192.0.2.%d", i))
				}
				// A server that takes whatever comes.
				r.Dial = func(context.Context, string, string) (net.Conn, error) {
					client, server := net.Pipe()
					n.wg.Go(func() { (&taker{}).serve(server) })
					return client, nil
				}
				reused := false
				r.Trace = &RelayTrace{Reused: func(context.Context, ReusedInfo) { reused = true }}
				if tt.edit != nil {
					tt.edit(r)
				}
				var got []bool
				for _, h := range tt.hosts {
					reused = false
					if err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", fmt.Sprintf("x@d%d.example", h)), mailspine.StringContent("x\r\n")); err != nil {
						t.Fatal(err)
					}
					got = append(got, reused)
					time.Sleep(tt.pause)
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("used again: %v, want %v", got, tt.want)
				}
				start := time.Now()
				n.wg.Wait() // all end without help
				if took := time.Since(start); took > time.Minute {
					t.Errorf("the last connection ended after %v", took)
				}
			})
		})
	}
}

// A connection is used again only for what would have opened the same.
func TestRelayReuseKey(t *testing.T) {
	good, other := newCA(t), newCA(t)
	type delivery struct {
		to      string // "": bob@dest.example
		rule    TLSRule
		require bool
		source  Source
		smart   string // through a Smarthost at this address
	}
	verify := TLSRule{Level: TLSVerify, Roots: good.pool}
	for _, tt := range []struct {
		name  string
		a, b  delivery
		clear bool // the server has no TLS
		want  bool
	}{
		{name: "the same", want: true},
		{name: "the same in clear", clear: true, want: true},
		{name: "another domain with the same host", b: delivery{to: "x@friend.example"}, want: true},
		{name: "the same address under another host's name", b: delivery{to: "x@alias.example"}},
		{name: "another address", b: delivery{to: "x@far.example"}},
		{name: "verify, both", a: delivery{rule: verify}, b: delivery{rule: verify}, want: true},
		{name: "verify after opportunistic", b: delivery{rule: verify}},
		{name: "encrypt after opportunistic", b: delivery{rule: TLSRule{Level: TLSEncrypt}}},
		{name: "opportunistic after verify", a: delivery{rule: verify}},
		{name: "other names", a: delivery{rule: verify}, b: delivery{rule: TLSRule{Level: TLSVerify, Roots: good.pool, Names: []string{"alt.example"}}}},
		{name: "the host's own name, spelled out", a: delivery{rule: verify},
			b: delivery{rule: TLSRule{Level: TLSVerify, Roots: good.pool, Names: []string{"mx1.dest.example"}}}},
		{name: "other roots", a: delivery{rule: TLSRule{Roots: good.pool}}, b: delivery{rule: TLSRule{Roots: other.pool}}},
		{name: "other hosts allowed", a: delivery{rule: verify},
			b: delivery{rule: TLSRule{Level: TLSVerify, Roots: good.pool, Hosts: []string{"mx1.dest.example"}}}, want: true},
		{name: "REQUIRETLS, both", a: delivery{rule: verify, require: true}, b: delivery{rule: verify, require: true}, want: true},
		{name: "REQUIRETLS after verify", a: delivery{rule: verify}, b: delivery{rule: verify, require: true}},
		{name: "verify after REQUIRETLS", a: delivery{rule: verify, require: true}, b: delivery{rule: verify}},
		{name: "the same source", a: delivery{source: srcA}, b: delivery{source: srcA}, want: true},
		{name: "another source", a: delivery{source: srcA}, b: delivery{source: srcB}},
		{name: "another name in EHLO", a: delivery{source: srcB}, b: delivery{source: Source{Name: srcB.Name, Addr: srcB.Addr, Hostname: "b.out.example"}}},
		{name: "two Smarthosts, one address", a: delivery{smart: "192.0.2.1:25"}, b: delivery{smart: "192.0.2.1:25"}, want: true},
		{name: "Smarthosts with different ports", a: delivery{smart: "192.0.2.1:25"}, b: delivery{smart: "192.0.2.1:587"}},
		{name: "a Smarthost's is not for MX", a: delivery{smart: "mx1.dest.example:25"}},
		{name: "nor the other way", b: delivery{smart: "mx1.dest.example:25"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1")
				n.mx("far.example", "192.0.2.9")
				n.zone["friend.example MX"] = []mailspine.MX{{Host: "mx1.dest.example"}}
				n.zone["alias.example MX"] = []mailspine.MX{{Host: "alt.example"}}
				n.zone["alt.example A"] = "192.0.2.1"
				certs := good.server(t, "mx1.dest.example", "alt.example")
				r := n.relay()
				r.IdleTimeout = 0
				dials, reused := 0, false
				r.Dial = func(context.Context, string, string) (net.Conn, error) {
					dials++
					client, server := net.Pipe()
					n.wg.Go(func() { serveTLS(server, certs, tt.clear) })
					return client, nil
				}
				r.Trace = &RelayTrace{Reused: func(context.Context, ReusedInfo) { reused = true }}
				var now delivery
				r.TLSPolicy = TLSPolicyFunc(func(context.Context, string) (TLSRule, error) { return now.rule, nil })
				if tt.a.source != tt.b.source || tt.a.source != (Source{}) {
					r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
						return []Grant{{Source: now.source, Recipients: req.Recipients}}, nil
					})
				}
				for _, now = range []delivery{tt.a, tt.b} {
					if now.to == "" {
						now.to = "bob@dest.example"
					}
					if now.require {
						now.rule.Hosts = []string{"mx1.dest.example"} // secures the MX
					}
					var d mailspine.Deliverer = r
					if now.smart != "" {
						d = &Smarthost{Relay: r, Address: now.smart}
					}
					env := envelope(t, "ann@sender.example", now.to)
					env.RequireTLS = now.require
					a := &attempt{}
					if err := d.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent("x\r\n")); err != nil {
						t.Fatal(err)
					}
					if got := a.receipts[0]; (got.TLS.Version == "") != tt.clear || now.rule.Level == TLSVerify && got.TLS.Peer == "" || now.source.Name != "" && got.Source != now.source.Name {
						t.Errorf("receipt %+v", got)
					}
				}
				if reused != tt.want || (dials == 1) != tt.want {
					t.Errorf("used again: %v, after %d connections; want %v", reused, dials, tt.want)
				}
				r.CloseIdle()
				n.wg.Wait()
			})
		})
	}
}

// serveTLS takes all mail, under TLS unless clear.
func serveTLS(conn net.Conn, certs *tls.Config, clear bool) {
	defer conn.Close()
	if clear {
		(&taker{}).serve(conn)
		return
	}
	if script("S: 220 hi\nC: EHLO *\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go").play(conn, nil) == nil {
		(&taker{greeted: true}).serve(tls.Server(conn, certs))
	}
}

// What makes a connection one that is not kept: the next delivery opens another.
func TestRelayReuseNot(t *testing.T) {
	ca := newCA(t)
	mail := "C: MAIL FROM:<ann@sender.example>\nS: 250 ok\n"
	for _, tt := range []struct {
		name   string
		first  []script // each a connection
		want   string
		policy TLSPolicy
	}{
		{"421 to the message", []script{open + script(strings.Replace(one, "250 2.0.0 taken", "421 4.3.2 down", 1))}, "421 4.3.2", nil},
		{"421 to RCPT", []script{open + script(mail) + "C: RCPT TO:<bob@dest.example>\nS: 421 4.3.2 down"}, "421 4.3.2", nil},
		{"MAIL is refused for now", []script{open + "C: MAIL FROM:<ann@sender.example>\nS: 450 4.7.0 later\n" + bye}, "450 4.7.0", nil},
		{"nonsense", []script{open + script(mail) + "C: RCPT TO:<bob@dest.example>\nS: 354 what"}, "451 4.5.0", nil},
		{"a reply too many", []script{open + script(strings.Replace(one, "S: 250 2.0.0 taken\n", `S> 250 2.0.0 taken\r\n250 and one more\r\n`+"\n", 1))}, "", nil},
		{"STARTTLS is refused", []script{"S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 454 not now\n" + one + bye}, "", nil},
		{"in clear after a failed handshake", []script{
			"S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\nJUNK this is no TLS\nCLOSE",
			"S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 STARTTLS\n" + one + bye}, "", nil},
		{"no TLS where it must be", []script{open + bye}, "451 4.7.4", TLSRules{"": {Level: TLSEncrypt}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.certs = ca.server(t, "mx1.dest.example")
				n.mx("dest.example", "192.0.2.1")
				n.scripts["192.0.2.1"] = slices.Clone(tt.first)
				r := n.relay()
				r.IdleTimeout = 0
				r.TLSPolicy = tt.policy
				bob(t, r, tt.want)
				r.TLSPolicy = nil
				n.scripts["192.0.2.1"] = []script{open + one + bye}
				r.Trace = &RelayTrace{Reused: func(context.Context, ReusedInfo) { t.Error("it was used again") }}
				bob(t, r, "")
				r.CloseIdle()
				n.done()
			})
		})
	}
}

// A kept connection that is of no use any more costs nothing: no attempt, no other host, none of MaxConnections, and
// the next one's answer counts.
func TestRelayStale(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  string // what comes after the first message
		next script // the new connection; "": there is none
		want string
		took time.Duration
	}{
		{"closed", "CLOSE", open + one + bye, "", 0},
		{"closed on MAIL", "C: MAIL FROM:<ann@sender.example>\nCLOSE", open + one + bye, "", 0},
		{"421 to MAIL", "C: MAIL FROM:<ann@sender.example>\nS: 421 4.4.2 idle for too long", open + one + bye, "", 0},
		{"221 to MAIL", "C: MAIL FROM:<ann@sender.example>\nS: 221 idle for too long", open + one + bye, "", 0},
		{"450 to MAIL", "C: MAIL FROM:<ann@sender.example>\nS: 450 4.7.0 enough for one connection\n" + bye, open + one + bye, "", 0},
		{"554 to MAIL", "C: MAIL FROM:<ann@sender.example>\nS: 554 5.7.0 enough for one connection\n" + bye, open + one + bye, "", 0},
		{"silence", "C: MAIL FROM:<ann@sender.example>\nSTALL", open + one + bye, "", 5 * time.Minute},
		{"MAIL is refused on both", "C: MAIL FROM:<ann@sender.example>\nS: 554 5.7.1 no\n" + bye,
			open + "C: MAIL FROM:<ann@sender.example>\nS: 550 5.7.1 no\n" + bye, "550 5.7.1", 0},
		{"no new connection", "CLOSE", "", "451 4.4.1", 0},
		{"421 at the new one", "CLOSE", "S: 421 4.3.2 down", "421 4.3.2", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1")
				n.scripts["192.0.2.1"] = []script{open + one + script(tt.end)}
				if tt.next != "" {
					n.scripts["192.0.2.1"] = append(n.scripts["192.0.2.1"], tt.next)
				}
				r := n.relay()
				r.IdleTimeout, r.MaxConnections = 0, 1
				bob(t, r, "")
				start := time.Now()
				a := bob(t, r, tt.want)
				if took := time.Since(start); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if want := 1; tt.want == "" && a.commits != want {
					t.Errorf("BeforeCommit was called %d times", a.commits)
				}
				if len(n.dialed) != 2 {
					t.Errorf("connected to %v", n.dialed)
				}
				r.CloseIdle()
				n.done()
			})
		})
	}
}

// ctx ends a delivery on a kept connection, and no other one is opened then.
func TestRelayReuseContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.scripts["192.0.2.1"] = []script{open + one + "C: MAIL FROM:<ann@sender.example>\nSTALL"}
		r := n.relay()
		r.IdleTimeout = 0
		// The end of the first delivery's context does not matter any more.
		ctx, cancel := context.WithCancel(t.Context())
		if err := r.Deliver(ctx, envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n")); err != nil {
			t.Fatal(err)
		}
		cancel()
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		err := r.Deliver(ctx, envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
		wantStatus(t, "ctx", mailspine.ErrorAt(err, 0), "451 4.4.7")
		if took := time.Since(start); took != time.Minute || len(n.dialed) != 1 {
			t.Errorf("took %v, connected to %v", took, n.dialed)
		}
		n.done()
	})
}

// Timeouts.Total is for each use, and MaxConnections counts those that are used again.
func TestRelayReuseCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		n.scripts["192.0.2.1"] = []script{open + one + one + "C: MAIL FROM:<ann@sender.example>\nS: 250 ok\nC: RCPT TO:<bob@dest.example>\nDRIP 250-on and on"}
		r := n.relay()
		r.IdleTimeout, r.MaxAge, r.MaxConnections = 2*time.Hour, 24*time.Hour, 1
		r.Timeouts.Rcpt = 24 * time.Hour
		bob(t, r, "")
		time.Sleep(90 * time.Minute)
		bob(t, r, "")
		start := time.Now()
		bob(t, r, "451 4.4.2") // and the second host is not tried
		if took := time.Since(start); took != time.Hour {
			t.Errorf("took %v, want an hour", took)
		}
		if len(n.dialed) != 1 {
			t.Errorf("connected to %v", n.dialed)
		}
		n.wg.Wait()
	})
}

// A transaction that came to nothing is ended by RSET before the next one, when that comes.
func TestRelayReuseReset(t *testing.T) {
	mail, rcpt := "C: MAIL FROM:<ann@sender.example>\n", "C: RCPT TO:<bob@dest.example>\n"
	for _, tt := range []struct {
		name   string
		script string
		want   []string
	}{
		{"RCPT", mail + "S: 250 ok\n" + rcpt + "S: 550 5.1.1 no\nC: RSET\nS: 250 ok\n" + one, []string{"550 5.1.1", ""}},
		{"DATA", mail + "S: 250 ok\n" + rcpt + "S: 250 ok\nC: DATA\nS: 451 4.3.0 no\nC: RSET\nS: 250 ok\n" + one, []string{"451 4.3.0", ""}},
		{"MAIL", mail + "S: 550 5.1.8 no\n" + one, []string{"550 5.1.8", ""}},
		{"the message", strings.Replace(one, "250 2.0.0 taken", "550 5.7.1 no", 1) + one, []string{"550 5.7.1", ""}},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			n.mx("dest.example", "192.0.2.1")
			n.scripts["192.0.2.1"] = []script{open + script(tt.script) + bye}
			r := n.relay()
			r.IdleTimeout = 0
			for _, want := range tt.want {
				bob(t, r, want)
			}
			n.done()
		})
	}
	// In a flight it is the first command. If it is refused, the connection is of no use.
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		flight := mail + rcpt + "C: DATA\n"
		n.scripts["192.0.2.1"] = []script{
			"S: 220 hi\nC: EHLO out.sender.example\nS: 250-hi\nS: 250 PIPELINING\n" + script(flight) + "S: 250 ok\nS: 550 5.1.1 no\nS: 503 no\n" +
				"C: RSET\n" + script(flight) + "QUIET\nS: 250 ok\nS: 250 ok\nS: 250 ok\nS: 354 go\nC: x\nC: .\nS: 250 ok\n" +
				script(flight) + "S: 250 ok\nS: 550 5.1.1 no\nS: 503 no\n" +
				"C: RSET\n" + script(flight) + "S: 502 no\nS: 503 no\nS: 503 no\nS: 503 no\n" + bye,
			open + one + bye,
		}
		r := n.relay()
		r.IdleTimeout = 0
		for _, want := range []string{"550 5.1.1", "", "550 5.1.1", ""} {
			bob(t, r, want)
		}
		n.done()
	})
}

// CloseIdle says good-bye to all at once, waits for the answers, and not for longer than it may.
func TestRelayCloseIdle(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  string
		took time.Duration
	}{{"polite", "C: QUIT\nS: 221 bye", 0}, {"closed", "CLOSE", 0}, {"silent", "C: QUIT\nSTALL", 2 * time.Second}, {"deaf", "SIP", 2 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			r := n.relay()
			r.IdleTimeout = 0
			r.CloseIdle() // nothing is there
			for i := range 10 {
				n.mx(fmt.Sprintf("d%d.example", i), fmt.Sprintf("192.0.2.%d", i))
				n.scripts[fmt.Sprintf("192.0.2.%d", i)] = []script{open + script(strings.Replace(one, "bob@dest", fmt.Sprintf("x@d%d", i), 1)) + script(tt.end)}
				env := envelope(t, "ann@sender.example", fmt.Sprintf("x@d%d.example", i))
				if err := r.Deliver(t.Context(), env, mailspine.StringContent("x\r\n")); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			r.CloseIdle()
			if took := time.Since(start); took != tt.took {
				t.Errorf("%s: took %v, want %v", tt.name, took, tt.took)
			}
			if r.idle.all.Len() > 0 || len(r.idle.byKey) > 0 || r.idle.run != nil {
				t.Errorf("%s: something is left: %+v", tt.name, &r.idle)
			}
			n.wg.Wait()
		})
	}
	// It also waits for the good-byes that are under way already.
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.scripts["192.0.2.1"] = []script{open + one + "C: QUIT\nSTALL"}
		r := n.relay()
		r.IdleTimeout = 0
		bob(t, r, "")
		time.Sleep(defaultIdleTimeout + time.Second)
		start := time.Now()
		r.CloseIdle()
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v, want the second that is left", took)
		}
		n.done()
	})
}

// A Smarthost without a Relay keeps connections too.
func TestSmarthostReuse(t *testing.T) {
	d := newTaker(t)
	s := &Smarthost{Address: d.l.Addr().String()}
	for range 10 {
		bob(t, s, "")
	}
	if got := d.conns.Load(); got != 1 {
		t.Errorf("%d connections", got)
	}
	s.CloseIdle()
}

// quiet sees what waits in a socket, and takes nothing of it away.
func TestQuiet(t *testing.T) {
	if runtime.GOOS == "windows" || runtime.GOOS == "plan9" {
		t.Skip("it cannot be seen on " + runtime.GOOS)
	}
	pair := func() (client, server net.Conn) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if server, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		return client, server
	}
	client, server := pair()
	defer client.Close()
	if !smtpclient.New(client, nil).Quiet() {
		t.Error("a new connection is not quiet")
	}
	io.WriteString(server, "421 bye\r\n")
	waitFor(t, func() bool { return !smtpclient.New(client, nil).Quiet() })
	if b, err := bufio.NewReader(client).ReadString('\n'); err != nil || b != "421 bye\r\n" {
		t.Errorf("read %q, %v", b, err)
	}
	if !smtpclient.New(client, nil).Quiet() {
		t.Error("not quiet after it was read")
	}
	server.Close()
	waitFor(t, func() bool { return !smtpclient.New(client, nil).Quiet() })
	client.Close()
	if smtpclient.New(client, nil).Quiet() {
		t.Error("a closed connection is quiet")
	}
}

// waitFor tries again until ok, for things that the kernel does.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// Many deliveries at once to servers that hang up when they like: each message arrives once, no connection is used
// by two deliveries at a time, and at the end no goroutine and no descriptor is left.
func TestRelayReuseLeaks(t *testing.T) {
	total, sessions := 10_000, 20
	if testing.Short() {
		total = 1000
	}
	goroutines, files := runtime.NumGoroutine(), descriptors()
	var arrived sync.Map
	var conns, twice atomic.Int64
	var servers sync.WaitGroup
	var listeners []net.Listener
	n := newNetwork(t)
	for i := range 4 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.%d:0", 1+i%map[bool]int{true: 4, false: 1}[runtime.GOOS == "linux"]))
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		n.zone[fmt.Sprintf("d%d.example A", i)] = "192.0.2." + fmt.Sprint(i)
		servers.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				number := conns.Add(1)
				servers.Go(func() {
					k := &taker{took: func(message string) {
						if _, ok := arrived.LoadOrStore(message, true); ok {
							twice.Add(1)
						}
					}}
					switch number % 4 {
					case 1:
						k.hangUp = int(number%7) + 1 // after so many messages, without a word
					case 2:
						k.hangUp, k.last = int(number%5)+1, "421 4.3.2 enough\r\n"
					}
					k.serve(conn)
				})
			}
		})
	}
	var d net.Dialer
	r := n.relay()
	r.IdleTimeout, r.MaxIdle = 0, 10 // fewer than there are sessions
	r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		i := netip.MustParseAddrPort(addr).Addr().As4()[3]
		return d.DialContext(ctx, network, listeners[i].Addr().String())
	}
	var wg sync.WaitGroup
	var next atomic.Int64
	for range sessions {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(total); i = next.Add(1) {
				env := envelope(t, "ann@sender.example", fmt.Sprintf("x@d%d.example", i%4))
				if err := r.Deliver(t.Context(), env, mailspine.StringContent(fmt.Sprintf("message %d\r\n", i))); err != nil {
					t.Errorf("message %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	count := 0
	arrived.Range(func(any, any) bool { count++; return true })
	if count != total || twice.Load() > 0 {
		t.Errorf("%d messages of %d arrived, %d of them twice", count, total, twice.Load())
	}
	if c := int(conns.Load()); c > total/2 {
		t.Errorf("%d connections for %d messages", c, total)
	}
	r.CloseIdle()
	for _, l := range listeners {
		l.Close()
	}
	servers.Wait()
	waitFor(t, func() bool { return runtime.NumGoroutine() <= goroutines && descriptors() <= files })
}

// descriptors counts the open files; 0 where it cannot.
func descriptors() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(d)
}

// A server's certificate, and what else TLS needs, is there for reused connections over real sockets too.
func TestRelayReuseTLSSockets(t *testing.T) {
	ca := newCA(t)
	certs := ca.server(t, "mail.isp.example")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			wg.Go(func() { serveTLS(conn, certs, false) })
		}
	})
	n := newNetwork(t)
	n.zone["mail.isp.example A"] = "127.0.0.1"
	s := &Smarthost{
		Relay: &Relay{Hostname: "out.sender.example", Resolver: mailspine.ResolverFunc(n.lookup), Logger: slog.New(slog.DiscardHandler),
			TLSPolicy: TLSRules{"": {Level: TLSVerify, Roots: ca.pool}}},
		Address: fmt.Sprintf("mail.isp.example:%d", l.Addr().(*net.TCPAddr).Port),
	}
	for i := range 20 {
		a := &attempt{}
		err := s.Deliver(mailspine.WithAttempt(t.Context(), a), envelope(t, "ann@sender.example", "bob@dest.example"),
			mailspine.StringContent(strings.Repeat("line\r\n", i*i*100)))
		if err != nil || a.receipts[0].TLS.Peer != "mail.isp.example" {
			t.Fatalf("message %d: %v, %+v", i, err, a.receipts[0])
		}
	}
	if got := conns.Load(); got != 1 {
		t.Errorf("%d connections", got)
	}
	s.CloseIdle()
	l.Close()
	wg.Wait()
}

// A Dial that fails is not asked for what a kept connection can do, and a hook that panics loses no connection.
func TestRelayReuseDialFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		n.scripts["192.0.2.1"] = []script{open + one + one + bye}
		r := n.relay()
		r.IdleTimeout = 0
		bob(t, r, "")
		r.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no network") }
		bob(t, r, "")
		n.done()
	})
}
