package mta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// ledger is an Egress that gives the same answer each time, and remembers what it was asked and told.
type ledger struct {
	answer func(EgressRequest) ([]Grant, error)
	asked  []EgressRequest
	done   []string // "name sent"
}

func (l *ledger) Choose(_ context.Context, req EgressRequest) ([]Grant, error) {
	l.asked = append(l.asked, req)
	grants, err := l.answer(req)
	for i := range grants {
		name := grants[i].Source.String()
		grants[i].Done = func(sent int) { l.done = append(l.done, fmt.Sprint(name, " ", sent)) }
	}
	return grants, err
}

func (l *ledger) check(t testing.TB, want ...string) {
	t.Helper()
	if !slices.Equal(l.done, want) {
		t.Errorf("told %q, want %q", l.done, want)
	}
}

var (
	srcA = Source{Name: "a", Addr: netip.MustParseAddr("198.51.100.1"), Hostname: "a.out.example"}
	srcB = Source{Name: "b", Addr: netip.MustParseAddr("198.51.100.2")}
	src6 = Source{Name: "six", Addr: netip.MustParseAddr("2001:db8::6")}
)

// Each part of the recipients goes over a connection of its own, from its source, under its name; the rest waits. The
// grants are told how many the server heard of.
func TestRelayEgress(t *testing.T) {
	n := newNetwork(t)
	n.mx("dest.example", "192.0.2.1")
	n.scripts["192.0.2.1"] = []script{
		"S: 220 hi\nC: EHLO a.out.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n" +
			"C: RCPT TO:<r0@dest.example>\nS: 250 ok\nC: RCPT TO:<r3@dest.example>\nS: 550 5.1.1 no\nC: DATA\nS: 354 go\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye",
		"S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n" +
			"C: RCPT TO:<r1@dest.example>\nS: 450 4.2.0 greylisted\nC: QUIT\nS: 221 bye",
	}
	nn := &mailspine.NotNow{Until: time.Now().Add(time.Hour), Reason: "full", Rule: "cap"}
	l := &ledger{answer: func(EgressRequest) ([]Grant, error) {
		return []Grant{{Source: srcA, Recipients: []int{0, 3}}, {Source: srcB, Recipients: []int{1}}, {Recipients: []int{4}, Err: nn}}, nil
	}}
	r := n.relay()
	r.Egress = l
	var sources []string
	dial := r.Dial
	r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		s, ok := SourceFrom(ctx)
		sources = append(sources, fmt.Sprint(s.Name, s.Addr, ok))
		return dial(ctx, network, addr)
	}
	var granted, dialed []string
	r.Trace = &RelayTrace{
		Granted: func(_ context.Context, i GrantedInfo) {
			granted = append(granted, fmt.Sprint(i.Source, i.Recipients, i.Err != nil))
		},
		Dialed: func(_ context.Context, i DialedInfo) { dialed = append(dialed, i.Source) },
	}
	env := envelope(t, "ann@sender.example", "r0@dest.example", "r1@dest.example", "x@gone.example", "r3@dest.example", "r4@dest.example")
	a := &attempt{}
	err := r.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent("x\r\n"))
	n.done()
	for i, want := range []string{"", "450 4.2.0", "550 5.1.2", "550 5.1.1", "451 4.3.2"} {
		wantStatus(t, env.Recipients[i].Address.String(), mailspine.ErrorAt(err, i), want)
	}
	if !errors.Is(mailspine.ErrorAt(err, 4), nn) {
		t.Errorf("recipient 4: %v, not the NotNow", mailspine.ErrorAt(err, 4))
	}
	l.check(t, "a 2", "b 1", "default 0")
	if len(l.asked) != 1 || l.asked[0].Domain != "dest.example" || !slices.Equal(l.asked[0].Recipients, []int{0, 1, 3, 4}) ||
		!slices.Equal(l.asked[0].Hosts, []string{"mx1.dest.example"}) || l.asked[0].Env != env {
		t.Errorf("asked %+v", l.asked)
	}
	if got := strings.Join(sources, " "); got != "a198.51.100.1 true b198.51.100.2 true" {
		t.Errorf("the dialer saw %s", got)
	}
	if got := strings.Join(granted, " "); got != "a [0 3] false b [1] false default [4] true" {
		t.Errorf("granted %s", got)
	}
	if got := strings.Join(dialed, " "); got != "a b" {
		t.Errorf("dialed from %s", got)
	}
	if a.receipts[0].Source != "a" || a.receipts[1].Source != "b" {
		t.Errorf("receipts %+v", a.receipts)
	}
	if _, ok := a.receipts[4]; ok {
		t.Error("a receipt for a recipient that was not tried")
	}
}

// A recipient that two hosts heard of counts once, and one that none heard of does not.
func TestRelayEgressCounts(t *testing.T) {
	hello := "S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n"
	for _, tt := range []struct {
		name    string
		scripts [2]script
		want    string
	}{
		{"twice", [2]script{script(hello + "C: RCPT TO:<r0@dest.example>\nS: 250 ok\nC: RCPT TO:<r1@dest.example>\nS: 421 bye"),
			script(hello + "C: RCPT TO:<r0@dest.example>\nS: 250 ok\nC: RCPT TO:<r1@dest.example>\nS: 250 ok\nC: DATA\nS: 354 go\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye")}, "b 2"},
		{"one of two", [2]script{script(hello + "C: RCPT TO:<r0@dest.example>\nS: 421 bye"), "S: 554 go away"}, "b 1"},
		{"none", [2]script{"S: 421 busy", "S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 451 later\nC: QUIT\nS: 221 bye"}, "b 0"},
		{"lost at RCPT", [2]script{script(hello + "C: RCPT TO:<r0@dest.example>\nCLOSE"), "S: 421 busy"}, "b 1"},
	} {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1", "192.0.2.2")
		n.scripts["192.0.2.1"] = []script{tt.scripts[0]}
		n.scripts["192.0.2.2"] = []script{tt.scripts[1]}
		l := &ledger{answer: func(req EgressRequest) ([]Grant, error) {
			return []Grant{{Source: srcB, Recipients: req.Recipients}}, nil
		}}
		r := n.relay()
		r.Egress = l
		r.Deliver(t.Context(), envelope(t, "ann@sender.example", "r0@dest.example", "r1@dest.example"), mailspine.StringContent("x\r\n"))
		n.wg.Wait()
		t.Run(tt.name, func(t *testing.T) { l.check(t, tt.want) })
	}
}

// An Egress that is wrong, or fails, sends nothing, and each grant is told so.
func TestRelayEgressWrong(t *testing.T) {
	for _, tt := range []struct {
		name   string
		grants []Grant
		err    error
		want   string
		done   []string
	}{
		{"nothing", nil, nil, "451 4.3.0", nil},
		{"a recipient is missing", []Grant{{Source: srcA, Recipients: []int{0}}}, nil, "451 4.3.0", []string{"a 0"}},
		{"a recipient twice", []Grant{{Source: srcA, Recipients: []int{0, 1}}, {Source: srcB, Recipients: []int{1}}}, nil, "451 4.3.0", []string{"a 0", "b 0"}},
		{"another's recipient", []Grant{{Source: srcA, Recipients: []int{0, 1, 7}}}, nil, "451 4.3.0", []string{"a 0"}},
		{"a negative index", []Grant{{Source: srcA, Recipients: []int{0, 1, -1}}}, nil, "451 4.3.0", []string{"a 0"}},
		{"a host name with a command", []Grant{{Source: Source{Name: "c", Hostname: "a\r\nRSET"}, Recipients: []int{0, 1}}}, nil, "451 4.3.0", []string{"c 0"}},
		{"an error", []Grant{{Source: srcA, Recipients: []int{0, 1}}}, errors.New("disk"), "451 4.3.0", []string{"a 0"}},
		{"a refusal", nil, mailspine.Errorf(550, "5.7.1", "no"), "550 5.7.1", nil},
	} {
		n := newNetwork(t)
		n.mx("dest.example", "192.0.2.1")
		l := &ledger{answer: func(EgressRequest) ([]Grant, error) { return tt.grants, tt.err }}
		r := n.relay()
		r.Egress = l
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "r0@dest.example", "r1@dest.example"), mailspine.StringContent("x\r\n"))
		for i := range 2 {
			wantStatus(t, tt.name, mailspine.ErrorAt(err, i), tt.want)
		}
		if len(n.dialed) > 0 {
			t.Errorf("%s: connected to %v", tt.name, n.dialed)
		}
		t.Run(tt.name, func(t *testing.T) { l.check(t, tt.done...) })
	}
}

// Only hosts of the source's family are tried.
func TestRelayEgressFamily(t *testing.T) {
	for _, tt := range []struct {
		source Source
		addrs  string
		dialed string
		want   string
	}{
		{srcB, "192.0.2.1 2001:db8::1", "192.0.2.1:25", "451 4.4.1"},
		{src6, "192.0.2.1 2001:db8::1", "[2001:db8::1]:25", "451 4.4.1"},
		{src6, "192.0.2.1", "", "451 4.4.1"},
		{Source{Name: "any"}, "192.0.2.1 2001:db8::1", "192.0.2.1:25 [2001:db8::1]:25", "451 4.4.1"},
	} {
		n := newNetwork(t)
		n.zone["dest.example MX"] = []mailspine.MX{{Host: "mx.dest.example"}}
		for _, a := range strings.Fields(tt.addrs) {
			if strings.Contains(a, ":") {
				n.zone["mx.dest.example AAAA"] = a
			} else {
				n.zone["mx.dest.example A"] = a
			}
		}
		r := n.relay()
		r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
			return []Grant{{Source: tt.source, Recipients: req.Recipients}}, nil
		})
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
		wantStatus(t, tt.source.Name, mailspine.ErrorAt(err, 0), tt.want)
		if got := strings.Join(n.dialed, " "); got != tt.dialed {
			t.Errorf("from %s to %s: connected to %q, want %q", tt.source, tt.addrs, got, tt.dialed)
		}
	}
}

// A source whose address is not ours is tried once, not for each host, and says which rule it is; what
// other sources were granted is sent.
func TestRelayEgressBind(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = taking("ann@sender.example", "r1@dest.example").play(conn, nil)
			conn.Close()
		}
		served <- err
	}()
	n := newNetwork(t)
	n.mx("dest.example", "127.0.0.1 127.0.0.2", "127.0.0.3")
	led := &ledger{answer: func(EgressRequest) ([]Grant, error) {
		// RFC 5737: no host has this address.
		foreign := Source{Name: "foreign", Addr: netip.MustParseAddr("192.0.2.1")}
		return []Grant{{Source: foreign, Recipients: []int{0}}, {Source: Source{Addr: netip.MustParseAddr("127.0.0.1")}, Recipients: []int{1}}}, nil
	}}
	tried := 0
	r := n.relay()
	r.Dial, r.Egress = nil, led
	r.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	r.Port = l.Addr().(*net.TCPAddr).AddrPort().Port()
	r.Trace = &RelayTrace{Dialed: func(_ context.Context, i DialedInfo) {
		if i.Source == "foreign" {
			tried++
		}
	}}
	derr := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "r0@dest.example", "r1@dest.example"), mailspine.StringContent("x\r\n"))
	if err := <-served; err != nil {
		t.Error(err)
	}
	wantStatus(t, "foreign", mailspine.ErrorAt(derr, 0), "451 4.4.1")
	wantStatus(t, "ours", mailspine.ErrorAt(derr, 1), "")
	var be *BindError
	if !errors.As(mailspine.ErrorAt(derr, 0), &be) || be.Source.Name != "foreign" || !strings.Contains(be.Error(), BindRule) {
		t.Errorf("the error is %v, not a BindError with its rule", mailspine.ErrorAt(derr, 0))
	}
	if msg := mailspine.Status(mailspine.ErrorAt(derr, 0)).Message; strings.Contains(msg, "192.0.2.1") || strings.Contains(msg, "foreign") {
		t.Errorf("the sender is told %q", msg)
	}
	if tried != 1 {
		t.Errorf("tried %d times from an address that is not ours", tried)
	}
	led.check(t, "foreign 0", "127.0.0.1 1")
}

// The receiver sees exactly the addresses that were chosen.
func TestRelayEgressAddresses(t *testing.T) {
	addrs := []string{"127.0.0.2", "127.0.0.3"}
	if runtime.GOOS != "linux" {
		addrs = []string{"127.0.0.1", "127.0.0.1"} // elsewhere the loopback has one address
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var mu sync.Mutex
	var seen []string
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 4 {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			seen = append(seen, conn.RemoteAddr().(*net.TCPAddr).IP.String())
			mu.Unlock()
			conn.Write([]byte("421 that is all\r\n"))
			conn.Close()
		}
	})
	n := newNetwork(t)
	n.mx("dest.example", "127.0.0.1")
	turn := 0
	r := n.relay()
	r.Dial = nil
	r.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	r.Port = l.Addr().(*net.TCPAddr).AddrPort().Port()
	r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
		turn++
		return []Grant{{Source: Source{Addr: netip.MustParseAddr(addrs[turn%2])}, Recipients: req.Recipients}}, nil
	})
	for range 4 {
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n"))
		wantStatus(t, "loopback", mailspine.ErrorAt(err, 0), "421 4.0.0")
	}
	wg.Wait()
	want := []string{addrs[1], addrs[0], addrs[1], addrs[0]}
	if !slices.Equal(seen, want) {
		t.Errorf("the receiver saw %v, want %v", seen, want)
	}
}

// What an Egress gives back to a queue counts no attempt, and comes again when it said.
func TestRelayEgressInQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := dnstest.New(dnstest.Zone{"dest.example": {dnstest.MX(10, "mx1.dest.example")}, "mx1.dest.example": {dnstest.A("192.0.2.1")}})
		n := newNetwork(t)
		n.scripts["192.0.2.1"] = []script{taking("ann@sender.example", "bob@dest.example")}
		opens := time.Now().Add(3 * time.Hour) // before the sender is told of a delay
		r := n.relay()
		r.Resolver = dns
		r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
			if time.Now().Before(opens) {
				return []Grant{{Recipients: req.Recipients, Err: &mailspine.NotNow{Until: opens, Reason: "warm-up", Rule: "cap"}}}, nil
			}
			return []Grant{{Source: srcB, Recipients: req.Recipients}}, nil
		})
		r.Hostname = "out.sender.example"
		var held []string
		delivered := make(chan mailspine.Outcome, 1)
		q := &queue.Queue{
			Store: memqueue.New(nil), Hostname: "out.sender.example", Logger: slog.New(slog.DiscardHandler), Next: r,
			Trace:    &queue.Trace{Held: func(_ context.Context, i queue.HeldInfo) { held = append(held, i.Reason) }},
			Outcomes: mailspine.OutcomeSinkFunc(func(_ context.Context, o mailspine.Outcome) { delivered <- o }),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		if err := q.Deliver(ctx, envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n")); err != nil {
			t.Fatal(err)
		}
		o := <-delivered
		if o.Event != mailspine.EventDelivered || o.Attempt != 1 || o.Receipt.Source != "b" {
			t.Errorf("outcome %+v", o)
		}
		if got := o.Time.Sub(opens); got < 0 || got > time.Second {
			t.Errorf("delivered %v after the time that NotNow said", got)
		}
		if len(held) != 1 || held[0] != "warm-up (cap)" {
			t.Errorf("held %q", held)
		}
		cancel()
		<-done
		q.Store.Close()
		n.done()
	})
}
