package tlsrpt

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// Each report that is read takes much memory, so few are at a time, and who waits has the time of its context.
func TestIntakeConcurrent(t *testing.T) {
	mail, err := sampleMessage().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var under, most atomic.Int64
		in := &Intake{
			Logger: quiet, Concurrent: 2, Trust: func(*mailspine.Verdict, *Message) (string, error) { return "", nil },
			Handle: func(context.Context, *Received) error {
				if n := under.Add(1); n > most.Load() {
					most.Store(n)
				}
				time.Sleep(time.Minute)
				under.Add(-1)
				return nil
			},
		}
		deliver := func(ctx context.Context) error {
			return in.Deliver(ctx, &mailspine.Envelope{ID: "X1", Recipients: []mailspine.Recipient{{Address: addr("tls@example.org")}}}, mailspine.BytesContent(mail))
		}
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				if err := deliver(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := deliver(ctx); !errors.Is(err, context.DeadlineExceeded) || !mailspine.Status(err).Temporary() {
			t.Errorf("no slot: %v", err)
		}
		wg.Wait()
		if most.Load() != 2 {
			t.Errorf("%d at a time", most.Load())
		}
	})
}

// A Store that is full takes nothing before it has forgotten: were it asked to save first, it would stay full for ever.
func TestCollectorFullStore(t *testing.T) {
	k := &clock{t: day0}
	store := &fullStore{max: 2}
	c := &Collector{Store: store, Now: k.now, Logger: quiet, FlushEvery: 1000 * time.Hour}
	record(t, c, Session{Domain: "a.example"}, Session{Domain: "b.example"})
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.add(24 * time.Hour)
	record(t, c, Session{Domain: "c.example"})
	if err := c.Flush(t.Context()); err == nil {
		t.Fatal("the store is not full")
	}
	c.forgetBefore(day0.AddDate(0, 0, 1))
	if err := c.Flush(t.Context()); err != nil || len(store.rows) != 1 {
		t.Errorf("%d rows, %v", len(store.rows), err)
	}
}

// A fullStore has a bound, as a File has.
type fullStore struct {
	Memory
	max int
}

func (s *fullStore) Save(ctx context.Context, rows ...Row) error {
	if len(s.rows)+len(rows) > s.max {
		return errors.New("full")
	}
	return s.Memory.Save(ctx, rows...)
}

// The addresses of a network behind a translator or a proxy are nobody's business.
func TestSessionPrivateAddress(t *testing.T) {
	for _, tt := range []struct {
		addr string
		told bool
	}{
		{"192.0.2.1", true}, {"2001:db8::1", true}, {"10.1.2.3", false}, {"::ffff:192.168.0.9", false}, {"127.0.0.1", false}, {"fd00::1", false}, {"fe80::1%eth0", false}, {"::1", false},
	} {
		s, _, err := Session{Domain: "example.org", Result: ValidationFailure, SendingIP: netip.MustParseAddr(tt.addr)}.normal()
		if err != nil || s.SendingIP.IsValid() != tt.told {
			t.Errorf("%s: %s, %v", tt.addr, s.SendingIP, err)
		}
	}
}

// Targets that do not answer cost one Timeout, however many a record names; and one that does is still reached.
func TestReportSlowTargets(t *testing.T) {
	ca := newCA(t)
	var taken atomic.Int64
	port := serve(t, ca.issue(t, time.Now().Add(time.Hour), "reports.example"), http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			select {
			case <-req.Context().Done():
			case <-time.After(2 * time.Second):
			}
			return
		}
		taken.Add(1)
	}))
	slow := "https://reports.example:" + port + "/slow"
	r, _, k := newReporter(t, dnstest.Zone{
		"reports.example":        {dnstest.A("127.0.0.1")},
		"_smtp._tls.example.org": wants(slow + "," + slow + "," + slow + "," + slow + "," + slow + "," + slow + ",https://reports.example:" + port + "/"),
	}, nil)
	r.AllowPrivate, r.Roots, r.Timeout = loopback, ca.pool, 1400*time.Millisecond
	record(t, r.Collector, Session{Domain: "example.org"})
	k.add(26 * time.Hour)
	start := time.Now()
	if err := r.Send(t.Context(), day0); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); taken.Load() != 1 || d > 5*time.Second {
		t.Errorf("%d taken, after %s", taken.Load(), d)
	}
}

// What failed before waits for what did not, and no domain is first by its name.
func TestJobsOrder(t *testing.T) {
	k := &clock{t: day0}
	c := &Collector{Now: k.now, Logger: quiet}
	for _, d := range []string{"a.example", "b.example", "c.example", "d.example"} {
		record(t, c, Session{Domain: d})
	}
	k.add(24 * time.Hour)
	all := func(job) bool { return true }
	first := map[string]bool{}
	for range 200 { // the chance that one of the four is never first is 1 in 10^25
		list, err := c.jobs(t.Context(), k.now(), all)
		if err != nil || len(list) != 4 {
			t.Fatal(list, err)
		}
		first[list[0].domain] = true
	}
	if len(first) != 4 {
		t.Errorf("always first: %v", first)
	}
	for d := range first {
		if d != "d.example" {
			c.update(&job{day: day0, domain: d, delivery: Delivery{Attempts: 1}})
		}
	}
	if list, err := c.jobs(t.Context(), k.now(), all); err != nil || list[0].domain != "d.example" {
		t.Errorf("%+v, %v", list, err)
	}
}
