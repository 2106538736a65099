package mta

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
)

// Domains that share a transaction get no result that was meant for another, or for their being together, where it can be told by asking for each by itself.
func TestRelayApart(t *testing.T) {
	const hello = "S: 220 hi\nC: EHLO out.sender.example\nS: 250 hi\nC: MAIL FROM:<ann@sender.example>\nS: 250 ok\n"
	const bye = "C: QUIT\nS: 221 bye\n"
	const body = "C: DATA\nS: 354 go\nC: x\nC: .\n"
	rcpt := func(domain, answer string) string {
		return "C: RCPT TO:<x@" + domain + ".example>\nS: " + answer + "\n"
	}
	const many = "451 4.3.0 Multiple destination domains per transaction is unsupported"
	alone := func(domain string) string { return hello + rcpt(domain, "250 ok") + body + "S: 250 ok\n" + bye }
	for _, tt := range []struct {
		name    string
		scripts []string
		want    []string // of a, b and c
	}{
		{
			"one domain only", []string{
				hello + rcpt("a", "250 ok") + rcpt("b", many) + rcpt("c", many) + body + "S: 250 ok\n" + bye,
				alone("b"), alone("c"),
			}, []string{"", "", ""},
		}, {
			"one domain only, and a mailbox that is full", []string{
				hello + rcpt("a", "250 ok") + rcpt("b", "452 4.2.2 full") + rcpt("c", "550 5.1.1 no") + body + "S: 250 ok\n" + bye,
				hello + rcpt("b", "452 4.2.2 full") + bye,
			}, []string{"", "452 4.2.2", "550 5.1.1"},
		}, {
			"all are put off", []string{
				hello + rcpt("a", "451 4.7.1 greylisted") + rcpt("b", "451 4.7.1 greylisted") + rcpt("c", "451 4.7.1 greylisted") + bye,
			}, []string{"451 4.7.1", "451 4.7.1", "451 4.7.1"},
		}, {
			"one domain's hang-up", []string{
				hello + rcpt("a", "250 ok") + rcpt("b", "421 4.7.0 TLS required for RCPT domain, closing connection"),
				alone("a"),
				hello + rcpt("b", "421 4.7.0 TLS required for RCPT domain, closing connection"),
				alone("c"),
			}, []string{"", "421 4.7.0", ""},
		}, {
			"a server that is busy", []string{
				hello + rcpt("a", "421 4.3.2 busy"), hello + rcpt("a", "421 4.3.2 busy"), hello + rcpt("b", "421 4.3.2 busy"),
			}, []string{"421 4.3.2", "421 4.3.2", "421 4.3.2"},
		}, {
			"one domain's rule about the message", []string{
				hello + rcpt("a", "250 ok") + rcpt("b", "250 ok") + rcpt("c", "550 5.1.1 no") + body + "S: 552 5.7.0 no such attachment\n" + bye,
				hello + rcpt("a", "250 ok") + body + "S: 552 5.7.0 no such attachment\n" + bye,
				alone("b"),
			}, []string{"552 5.7.0", "", "550 5.1.1"},
		}, {
			"the message of one domain is nobody else's", []string{
				hello + rcpt("a", "550 5.1.1 no") + rcpt("b", "250 ok") + rcpt("c", "550 5.1.1 no") + body + "S: 552 5.7.0 no\n" + bye,
			}, []string{"550 5.1.1", "552 5.7.0", "550 5.1.1"},
		}, {
			"what is in doubt is not repeated", []string{
				hello + rcpt("a", "250 ok") + rcpt("b", "250 ok") + rcpt("c", many) + body,
				alone("c"),
			}, []string{"451 4.4.2", "451 4.4.2", ""},
		}, {
			"a sender that is refused", []string{
				strings.Replace(hello, "250 ok", "550 5.1.8 no", 1) + bye,
			}, []string{"550 5.1.8", "550 5.1.8", "550 5.1.8"},
		},
	} {
		for _, egress := range []bool{false, true} {
			n := newNetwork(t)
			for _, d := range []string{"a", "b", "c"} {
				n.zone[d+".example MX"] = mxs("10:mx1.host.example")
			}
			n.zone["mx1.host.example A"] = "192.0.2.1"
			for _, s := range tt.scripts {
				n.scripts["192.0.2.1"] = append(n.scripts["192.0.2.1"], script(s))
			}
			r := n.relay()
			r.MaxConnections = 1
			books := &ledger{answer: func(req EgressRequest) ([]Grant, error) {
				return []Grant{{Recipients: req.Recipients, Source: Source{Name: "one"}}}, nil
			}}
			if egress {
				r.Egress = books
			}
			err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "x@a.example", "x@b.example", "x@c.example"), mailspine.StringContent("x\r\n"))
			n.done()
			if egress && strings.HasPrefix(tt.name, "one domain") {
				books.check(t, "one 1", "one 1", "one 1") // however often a server heard of them
			}
			for i, want := range tt.want {
				wantStatus(t, fmt.Sprintf("%s, Egress %v, %c", tt.name, egress, 'a'+i), mailspine.ErrorAt(err, i), want)
			}
		}
	}
}

// What came of an address that was tried beside another one is a result of the recipients that it was tried for, and not of those of a
// further grant.
func TestRelayRacedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.zone["a.example MX"] = mxs("10:mx1.host.example")
		n.zone["mx1.host.example A"] = "192.0.2.1 192.0.2.2"
		n.scripts["192.0.2.2"] = []script{taking("ann@sender.example", "y@a.example")}
		r := n.relay()
		r.DeadTime, r.MaxConnections = -1, 2
		var first atomic.Int32
		r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if first.Add(1) > 2 {
				return n.dial(ctx, network, addr)
			}
			time.Sleep(defaultFallbackDelay + time.Second)
			return nil, syscall.ECONNREFUSED
		}
		r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
			one := Source{Name: "one"}
			return []Grant{{Recipients: req.Recipients[:1], Source: one}, {Recipients: req.Recipients[1:], Source: one}}, nil
		})
		err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", "x@a.example", "y@a.example"), mailspine.StringContent("x\r\n"))
		n.done()
		wantStatus(t, "the first", mailspine.ErrorAt(err, 0), "451 4.4.1")
		wantStatus(t, "the second", mailspine.ErrorAt(err, 1), "")
	})
}
