package dnstest_test

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// ask puts a question to the real server.
func ask(t *testing.T, s *dnstest.Server, network, name string, qtype uint16, change func(*dns.Msg)) *dns.Msg {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	if change != nil {
		change(q)
	}
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := c.Exchange(q, s.Addr())
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return m
}

func TestServerWire(t *testing.T) {
	s, err := dnstest.Start(dnstest.Zone{
		"example.org":    {dnstest.Signed, dnstest.SOA(time.Minute), dnstest.A("192.0.2.1"), dnstest.NS("ns.example.org")},
		"long.example":   {dnstest.TXT(strings.Repeat("x", 1000)), dnstest.TXT(strings.Repeat("y", 1000))},
		"bogus.example":  {dnstest.Bogus, dnstest.A("192.0.2.66")},
		"old.example":    {dnstest.FormErr, dnstest.A("192.0.2.1")},
		"medium.example": {dnstest.TXT(strings.Repeat("x", 800))},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	edns := func(m *dns.Msg) { m.SetEdns0(1232, false) }
	for _, network := range []string{"udp", "tcp"} {
		m := ask(t, s, network, "eXample.org", dns.TypeA, nil)
		if !m.Response || !m.RecursionAvailable || m.Rcode != 0 || len(m.Answer) != 1 || m.AuthenticatedData || m.Question[0].Name != "eXample.org." {
			t.Errorf("%s: %v", network, m)
		}
		if m := ask(t, s, network, "example.org", dns.TypeA, func(m *dns.Msg) { m.AuthenticatedData = true }); !m.AuthenticatedData {
			t.Errorf("%s: no AD bit for a question with AD", network)
		}
		if m := ask(t, s, network, "example.org", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, true) }); !m.AuthenticatedData || m.IsEdns0() == nil {
			t.Errorf("%s: no AD bit for a question with DO", network)
		}
		m = ask(t, s, network, "no.example.org", dns.TypeA, nil)
		if soa, ok := m.Ns[0].(*dns.SOA); m.Rcode != dns.RcodeNameError || !ok || soa.Hdr.Name != "example.org." || soa.Minttl != 60 {
			t.Errorf("%s: absence is told as %v", network, m)
		}
		if m := ask(t, s, network, "example.org", dns.TypeNS, nil); len(m.Answer) != 1 {
			t.Errorf("%s: NS: %v", network, m)
		}
		m = ask(t, s, network, "long.example", dns.TypeTXT, edns)
		if m.Truncated != (network == "udp") || (len(m.Answer) == 2) != (network == "tcp") {
			t.Errorf("%s: 2,000 octets came as %d records, TC is %v", network, len(m.Answer), m.Truncated)
		}
		if m := ask(t, s, network, "bogus.example", dns.TypeA, edns); m.Rcode != dns.RcodeServerFailure || len(m.IsEdns0().Option) != 1 {
			t.Errorf("%s: bogus: %v", network, m)
		}
		if m := ask(t, s, network, "bogus.example", dns.TypeA, func(m *dns.Msg) { m.CheckingDisabled = true }); m.Rcode != 0 || len(m.Answer) != 1 {
			t.Errorf("%s: bogus with CD: %v", network, m)
		}
		if m := ask(t, s, network, "old.example", dns.TypeA, edns); m.Rcode != dns.RcodeFormatError {
			t.Errorf("%s: EDNS at an old server: %v", network, m)
		}
		if m := ask(t, s, network, "old.example", dns.TypeA, nil); len(m.Answer) != 1 {
			t.Errorf("%s: an old server: %v", network, m)
		}
		if m := ask(t, s, network, "example.org", dns.TypeA, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }); m.Rcode != dns.RcodeRefused {
			t.Errorf("%s: another class: %v", network, m)
		}
	}
	// RFC 1035 section 4.2.1: 512 octets, unless the asker can take more.
	if m := ask(t, s, "udp", "medium.example", dns.TypeTXT, nil); !m.Truncated {
		t.Error("800 octets without EDNS were not truncated")
	}
	if m := ask(t, s, "udp", "medium.example", dns.TypeTXT, edns); m.Truncated {
		t.Error("800 octets with EDNS were truncated")
	}
}

func TestServerChanges(t *testing.T) {
	s := dnstest.New(dnstest.Zone{"A.example": {dnstest.A("192.0.2.1")}})
	look := func(name string) string {
		a, err := s.Lookup(t.Context(), name, mailspine.TypeA)
		switch {
		case errors.Is(err, mailspine.ErrNXDomain):
			return "NXDOMAIN"
		case errors.Is(err, mailspine.ErrNoData):
			return "no data"
		case err != nil:
			return "failure"
		}
		return a.Addrs[0].String()
	}
	for _, c := range []struct {
		change func()
		want   string
	}{
		{func() {}, "192.0.2.1"},
		{func() { s.Set("a.EXAMPLE.", dnstest.A("192.0.2.2")) }, "192.0.2.2"},
		{func() { s.Set("a.example") }, "no data"},
		{func() { s.Delete("A.example.") }, "NXDOMAIN"},
		{func() { s.Set("b.a.example", dnstest.A("192.0.2.3")) }, "no data"},
		{func() { s.Set("*.example", dnstest.A("192.0.2.4")); s.Delete("b.a.example") }, "192.0.2.4"},
		{func() { s.Set("a.example", dnstest.ServFail) }, "failure"},
	} {
		c.change()
		if got := look("a.example"); got != c.want {
			t.Errorf("got %s, not %s", got, c.want)
		}
	}
	var zero dnstest.Server
	if _, err := zero.Lookup(t.Context(), "a.example", mailspine.TypeA); !errors.Is(err, mailspine.ErrNXDomain) {
		t.Errorf("the zero Server: %v", err)
	}
	zero.Set("a.example", dnstest.A("192.0.2.1"))
	if _, err := zero.Lookup(t.Context(), "a.example", mailspine.TypeA); err != nil {
		t.Errorf("the zero Server: %v", err)
	}
	if zero.Addr() != "" || zero.Close() != nil {
		t.Error("a Server that does not listen")
	}
}

func TestServerTimes(t *testing.T) {
	s := dnstest.New(dnstest.Zone{"a": {dnstest.Fault{Kind: dnstest.Refused, Times: 2, Type: mailspine.TypeA}, dnstest.A("192.0.2.1"), dnstest.TXT("x")}})
	for i, want := range []bool{false, false, true, true} {
		if _, err := mailspine.LookupTXT(t.Context(), s, "a"); err != nil {
			t.Error(err)
		}
		if _, err := mailspine.LookupA(t.Context(), s, "a"); (err == nil) != want {
			t.Errorf("question %d: %v", i, err)
		}
	}
	s.Set("a", dnstest.Fault{Kind: dnstest.Refused, Times: 1}, dnstest.A("192.0.2.1"))
	if _, err := mailspine.LookupA(t.Context(), s, "a"); err == nil {
		t.Error("Set did not start the count anew")
	}
}

func TestServerQueries(t *testing.T) {
	s, err := dnstest.Start(dnstest.Zone{"a.example": {dnstest.A("192.0.2.1")}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, _ = s.Lookup(t.Context(), "A.example", mailspine.TypeA)
	ask(t, s, "udp", "a.example", dns.TypeMX, nil)
	ask(t, s, "tcp", "a.EXAMPLE", dns.TypeA, nil)
	want := []dnstest.Query{{"A.example", mailspine.TypeA, "memory"}, {"a.example", mailspine.TypeMX, "udp"}, {"a.EXAMPLE", mailspine.TypeA, "tcp"}}
	if got := s.Queries(); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if n := s.Count("a.example.", mailspine.TypeA); n != 2 {
		t.Errorf("counted %d", n)
	}
	s.ResetQueries()
	if len(s.Queries()) != 0 {
		t.Error("not reset")
	}
	for range 25_000 {
		_, _ = s.Lookup(t.Context(), "b.example", mailspine.TypeA)
	}
	if n := len(s.Queries()); n > 10_000 || n < 9_000 {
		t.Errorf("the log has %d entries", n)
	}
}

// Close must not leave goroutines or a port behind, and must not wait for delays.
func TestServerClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 20 {
		s, err := dnstest.Start(dnstest.Zone{"slow": {dnstest.Fault{Kind: dnstest.Delay, Delay: time.Hour}}, "a": {dnstest.A("192.0.2.1")}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Listen(); err == nil {
			t.Error("listens twice")
		}
		udp, err := net.Dial("udp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		q := new(dns.Msg)
		q.SetQuestion("slow.", dns.TypeA)
		b, _ := q.Pack()
		if _, err := udp.Write(b); err != nil {
			t.Fatal(err)
		}
		idle, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		ask(t, s, "tcp", "a", dns.TypeA, nil) // so that the others have come in, too
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if _, err := net.DialTimeout("tcp", s.Addr(), time.Second); err == nil {
			t.Error("the port is still open")
		}
		udp.Close()
		idle.Close()
		if _, err := mailspine.LookupA(t.Context(), s, "a"); err != nil {
			t.Errorf("Lookup after Close: %v", err)
		}
	}
	if after := runtime.NumGoroutine(); after > before+2 {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}

func TestServerConcurrent(t *testing.T) {
	s, err := dnstest.Start(dnstest.Zone{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				name := fmt.Sprintf("n%d.example", i%10)
				switch (i + g) % 4 {
				case 0:
					s.Set(name, dnstest.A("192.0.2.1"), dnstest.Fault{Kind: dnstest.ServFail, Times: 1})
				case 1:
					s.Delete(name)
				case 2:
					_, _ = s.Lookup(t.Context(), name, mailspine.TypeA)
					s.Queries()
				case 3:
					q := new(dns.Msg)
					q.SetQuestion(name+".", dns.TypeA)
					if _, err := dns.Exchange(q, s.Addr()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}
