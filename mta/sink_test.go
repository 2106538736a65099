package mta_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/internal/peertest"
	"github.com/mailspine/mailspine/mta"
)

// Postfix's smtp-sink in all its moods, alone and as one of several hosts of a domain: what counts as taken is there, whole
// and for that recipient, and who should get it from one of the hosts does.
func TestRelayToSMTPSink(t *testing.T) {
	sinks := []struct {
		name  string
		flags []string
		takes bool
	}{
		{"good", nil, true}, {"one-by-one", []string{"-p"}, true}, {"no-esmtp", []string{"-e", "-8", "-a", "-E", "-N"}, true},
		{"no-codes", []string{"-E", "-F", "-C"}, true}, {"pix", []string{"-P"}, true},
		{"soft-connect", []string{"-r", "CONNECT"}, false}, {"soft-ehlo", []string{"-r", "EHLO,HELO"}, false},
		{"soft-mail", []string{"-r", "MAIL"}, false}, {"soft-rcpt", []string{"-r", "RCPT"}, false},
		{"soft-data", []string{"-r", "DATA"}, false}, {"soft-dot", []string{"-r", "."}, false},
		{"hard-mail", []string{"-f", "MAIL"}, false}, {"hard-rcpt", []string{"-f", "RCPT"}, false}, {"hard-dot", []string{"-f", "."}, false},
		{"gone-connect", []string{"-q", "CONNECT"}, false}, {"gone-ehlo", []string{"-q", "EHLO"}, false}, {"gone-mail", []string{"-q", "MAIL"}, false},
		{"gone-rcpt", []string{"-q", "RCPT"}, false}, {"gone-data", []string{"-q", "DATA"}, false}, {"gone-dot", []string{"-q", "."}, false},
		{"bye-mail", []string{"-Q", "MAIL"}, false}, {"bye-rcpt", []string{"-Q", "RCPT"}, false}, {"bye-data", []string{"-Q", "DATA"}, false},
		{"bye-dot", []string{"-Q", "."}, false}, {"abort", []string{"-A", "0"}, false}, {"gone-rset", []string{"-q", "RSET"}, true},
	}
	peertest.Need(t, "smtp-sink")
	_, port, err := net.SplitHostPort("127.0.0.1:" + peertest.FreePort(t))
	if err != nil {
		t.Fatal(err)
	}
	zone := dnstest.Zone{}
	servers := map[string]*peertest.SMTPSink{}
	for i, s := range sinks {
		ip := fmt.Sprint("127.0.1.", i+1)
		servers[s.name] = peertest.StartSMTPSink(t, net.JoinHostPort(ip, port), append(s.flags, "-h", s.name+".example")...)
		zone[s.name+".example"] = []dnstest.Record{dnstest.MX(10, "mx."+s.name+".example")}
		zone["mx."+s.name+".example"] = []dnstest.Record{dnstest.A(ip)}
		zone["then."+s.name+".example"] = []dnstest.Record{dnstest.MX(10, "mx."+s.name+".example"), dnstest.MX(20, "mx.good.example")}
	}
	relay := &mta.Relay{
		Resolver: zone, Hostname: "client.example.org", Port: netip.MustParseAddrPort("127.0.0.1:" + port).Port(),
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, NoDANE: true,
		Logger: slog.New(slog.DiscardHandler), IdleTimeout: time.Minute,
		Timeouts: mta.RelayTimeouts{Greeting: 10 * time.Second, Hello: 10 * time.Second, Mail: 10 * time.Second, Rcpt: 10 * time.Second, Data: 10 * time.Second, DataDone: 10 * time.Second},
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	type taken struct{ marker, rcpt string }
	var mu sync.Mutex
	var took []taken
	deliver := func(i int, domain string, size int) (n int) {
		marker := fmt.Sprintf("end of %d to %s", i, domain)
		env := &mailspine.Envelope{ID: mailspine.NewMsgID(), From: mailspine.Address{Local: "joe", Domain: "example.org"}}
		for _, l := range []string{"ann", "bob", "eve"} {
			env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: fmt.Sprint(l, i), Domain: domain}})
		}
		err := relay.Deliver(ctx, env, mailspine.StringContent("Subject: hello\r\n\r\n"+strings.Repeat("..dots\r\n", size)+marker+"\r\n"))
		mu.Lock()
		defer mu.Unlock()
		for j, r := range env.Recipients {
			if mailspine.ErrorAt(err, j) == nil {
				took = append(took, taken{marker, r.Address.String()})
				n++
			}
		}
		return n
	}
	var wg sync.WaitGroup
	for _, s := range sinks {
		wg.Go(func() {
			for i, size := range []int{1, 20_000, 2} { // the second one is streamed, the third may find a kept connection
				if n := deliver(i, s.name+".example", size); (n == 3) != s.takes || n != 0 && n != 3 {
					t.Errorf("%s, message %d: %d recipients taken", s.name, i, n)
				}
			}
			// A refusal for good, or of what is only known after the end, is no reason to ask the next host.
			moves := strings.HasPrefix(s.name, "gone") && s.name != "gone-dot" || strings.HasPrefix(s.name, "bye-") && s.name != "bye-dot" || s.name == "soft-connect" || s.name == "soft-mail" || s.name == "soft-ehlo"
			if n := deliver(9, "then."+s.name+".example", 1); moves && n != 3 {
				t.Errorf("%s, then good: %d recipients taken", s.name, n)
			}
		})
	}
	wg.Wait()
	relay.CloseIdle()
	var there []string
	for _, s := range servers {
		there = append(there, s.Messages(t)...)
	}
	copies := func(w taken) (n int) {
		for _, m := range there {
			if strings.Contains(m, "\n"+w.marker+"\n") && strings.Contains(m, "X-Rcpt-Args: <"+w.rcpt+">\n") {
				n++
			}
		}
		return n
	}
	for _, w := range took {
		if n := copies(w); n == 0 {
			t.Errorf("%s, %s: counts as taken, and nobody has it", w.marker, w.rcpt)
		} else if n > 1 {
			t.Errorf("%s, %s: %d servers have it", w.marker, w.rcpt, n)
		}
	}
	t.Logf("%d taken, %d dumped", len(took), len(there))
}
