package mta

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/mailspine/mailspine"
)

// IPv6: greeted with an IPv6 literal, from an IPv6 source, refused to an IPv4 host, and the guard knows it in every disguise.
func TestRelayIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("this machine has no IPv6 loopback: %v", err)
	}
	hello := make(chan string, 10)
	var from []string
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			from = append(from, conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().String())
			wg.Go(func() {
				defer conn.Close()
				b := make([]byte, 100)
				conn.Write([]byte("220 hi\r\n"))
				n, _ := conn.Read(b)
				hello <- string(b[:n])
				conn.Write([]byte("250 hi\r\n"))
				(&taker{greeted: true}).serve(conn)
			})
		}
	})
	n := newNetwork(t)
	n.zone["dest.example MX"] = []mailspine.MX{{Host: "mx.dest.example"}}
	n.zone["mx.dest.example A"] = "127.0.0.1"
	n.zone["mx.dest.example AAAA"] = "::1"
	n.zone["four.example MX"] = []mailspine.MX{{Host: "mx4.dest.example"}}
	n.zone["mx4.dest.example A"] = "127.0.0.1"
	r := n.relay()
	r.Dial, r.Hostname, r.Port = nil, "", uint16(l.Addr().(*net.TCPAddr).Port)
	r.DeadTime = -1
	r.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("::1/128")}
	source := Source{Name: "six", Addr: netip.MustParseAddr("::1"), Hostname: "six.sender.example"}
	for _, want := range []string{"EHLO six.sender.example\r\n", "EHLO [IPv6:::1]\r\n"} {
		r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
			return []Grant{{Source: source, Recipients: req.Recipients}}, nil
		})
		a := bob(t, r, "")
		if got := <-hello; got != want {
			t.Errorf("greeted with %q, want %q", got, want)
		}
		if rec := a.receipts[0]; rec.Source != "six" || rec.RemoteAddr != l.Addr().String() {
			t.Errorf("the receipt is %+v", rec)
		}
		source.Hostname = ""
	}
	// Without a source both families are tried; IPv4 is forbidden here.
	r.Egress = nil
	bob(t, r, "")
	<-hello
	r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
		return []Grant{{Source: source, Recipients: req.Recipients}}, nil
	})
	err = r.Deliver(t.Context(), envelope(t, "ann@sender.example", "x@four.example"), mailspine.StringContent("x\r\n"))
	wantStatus(t, "IPv6 source, IPv4 host", mailspine.ErrorAt(err, 0), "451 4.4.1")
	// Without leave it is not connected to, with a Dial or without.
	r.AllowPrivate, r.Egress = nil, nil
	bob(t, r, "550 5.4.4")
	r.Dial = func(context.Context, string, string) (net.Conn, error) {
		t.Error("a forbidden address was dialed")
		return nil, net.ErrClosed
	}
	bob(t, r, "550 5.4.4")
	l.Close()
	wg.Wait()
	if !slices.Equal(from, []string{"::1", "::1", "::1"}) {
		t.Errorf("connections from %v", from)
	}
}
