package tlsrpt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"pgregory.net/rapid"
)

var quiet = slog.New(slog.DiscardHandler)

// A clock is moved by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func record(t testing.TB, c *Collector, list ...Session) {
	t.Helper()
	for _, s := range list {
		if err := c.Record(context.Background(), s); err != nil {
			t.Fatalf("%+v: %v", s, err)
		}
	}
}

func rows(t testing.TB, c *Collector, day time.Time) []Row {
	t.Helper()
	list, err := c.Rows(context.Background(), day)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestCollectorCounts(t *testing.T) {
	k := &clock{t: day0.Add(23 * time.Hour)}
	c := &Collector{Now: k.now}
	sts := Policy{Type: PolicySTS, Domain: "Example.ORG", Strings: []string{"version: STSv1\r\n", "mode: enforce"}, MXHosts: []string{"mx.example.org"}}
	record(t, c,
		Session{Domain: "example.org"},
		Session{Domain: "EXAMPLE.org.", Reason: "of no matter"},
		Session{Domain: "example.org", Policy: sts},
		Session{Domain: "example.org", Policy: sts, Result: CertificateExpired, SendingIP: netip.MustParseAddr("::ffff:192.0.2.25"), ReceivingMX: "MX.example.org."},
		Session{Domain: "example.org", Policy: sts, Result: CertificateExpired, SendingIP: ip4, ReceivingMX: "mx.example.org"},
		Session{Domain: "example.org", Policy: sts, Result: CertificateExpired, SendingIP: ip6, ReceivingMX: "mx.example.org"},
		Session{Domain: "example.org", Policy: Policy{Type: "what"}, Result: "that", Reason: "a\r\nb"},
		Session{Domain: "[192.0.2.1]"}, // nobody to report to
		Session{Domain: "bücher.example"},
	)
	k.add(time.Hour) // the next day
	record(t, c, Session{Domain: "example.org"})
	sts.Domain, sts.Strings = "example.org", []string{"version: STSv1", "mode: enforce"}
	want := []Row{
		{Day: day0, Domain: "example.org", Policies: []PolicyResult{
			{Policy: Policy{Type: PolicyNone, Domain: "example.org"}, Successful: 2, Failed: 1, Failures: []Failure{{Result: ValidationFailure, Sessions: 1, Reason: "a  b"}}},
			{Policy: sts, Successful: 1, Failed: 3, Failures: []Failure{
				{Result: CertificateExpired, SendingIP: ip4, ReceivingMX: "mx.example.org", Sessions: 2},
				{Result: CertificateExpired, SendingIP: ip6, ReceivingMX: "mx.example.org", Sessions: 1},
			}},
		}},
		{Day: day0, Domain: "xn--bcher-kva.example", Policies: []PolicyResult{{Policy: Policy{Type: PolicyNone, Domain: "xn--bcher-kva.example"}, Successful: 1}}},
	}
	if got := rows(t, c, day0.Add(time.Minute)); !reflect.DeepEqual(got, want) {
		t.Errorf("counted %+v\nnot     %+v", got, want)
	}
	if got := rows(t, c, day0.Add(24*time.Hour)); len(got) != 1 || got[0].Policies[0].Successful != 1 {
		t.Errorf("the next day: %+v", got)
	}
	for _, d := range []string{"", "a b", "a..b", "x\r\nY: z", "a/b", strings.Repeat("a", 64) + ".example", "!"} {
		if err := c.Record(context.Background(), Session{Domain: d}); err == nil {
			t.Errorf("a session for %q is counted", d)
		}
	}
	if s := c.Stats(); s.Sessions != 9 || s.Dropped != 0 || s.Rows != 3 || s.Memory <= 0 {
		t.Errorf("%+v", s)
	}
}

func TestTLSAPolicy(t *testing.T) {
	p := TLSAPolicy("mx.example.org", []mailspine.TLSA{{Usage: 3, Selector: 1, MatchingType: 1, Data: []byte{0xab, 0xcd}}, {Usage: 2, MatchingType: 2, Data: []byte{1}}})
	if want := (Policy{Type: PolicyTLSA, Domain: "mx.example.org", Strings: []string{"3 1 1 abcd", "2 0 2 01"}}); !reflect.DeepEqual(p, want) {
		t.Errorf("%+v", p)
	}
}

// Whatever is over a bound, the totals hold.
func TestCollectorBounds(t *testing.T) {
	c := &Collector{Now: func() time.Time { return day0 }, Logger: quiet, MaxDomains: 3, MaxPolicies: 4, MaxFailures: 5}
	for i := range 100 {
		record(t, c,
			Session{Domain: fmt.Sprintf("d%d.example", i%10)},
			Session{Domain: "d0.example", Policy: Policy{Type: PolicySTS, Strings: []string{fmt.Sprint(i)}}, Result: STSPolicyInvalid, Reason: fmt.Sprint(i)},
			Session{Domain: "d1.example", Result: ValidationFailure, Reason: fmt.Sprint(i)},
			Session{Domain: "d1.example", Result: CertificateExpired, ReceivingMX: fmt.Sprint(i)},
		)
	}
	list := rows(t, c, day0)
	if len(list) != 3 {
		t.Fatalf("%d domains", len(list))
	}
	if s := c.Stats(); s.Sessions != 330 || s.Dropped != 70 {
		t.Errorf("%+v", s)
	}
	d0, d1 := list[0], list[1]
	var ok, failed int64
	for _, p := range d0.Policies {
		ok, failed = ok+p.Successful, failed+p.Failed
	}
	last := d0.Policies[len(d0.Policies)-1]
	if len(d0.Policies) != 5 || ok != 10 || failed != 100 || last.Policy.Strings != nil || last.Failed != 97 || last.Policy.Type != PolicySTS {
		t.Errorf("policies over the bound: %d, %d successful, %d failed, %+v", len(d0.Policies), ok, failed, last)
	}
	p := d1.Policies[0]
	if len(d1.Policies) != 1 || p.Successful != 10 || p.Failed != 200 || len(p.Failures) != 7 {
		t.Fatalf("failures over the bound: %+v", p)
	}
	var sum int64
	for i, f := range p.Failures {
		if sum += f.Sessions; (f.Reason == reasonOmitted) != (i > 4) {
			t.Errorf("failure %d: %+v", i, f)
		}
	}
	if sum != 200 {
		t.Errorf("%d sessions in the details", sum)
	}

	// Memory: new things are left out, and what is known goes on.
	c = &Collector{Now: func() time.Time { return day0 }, Logger: quiet, MaxMemory: 10_000}
	for i := range 1000 {
		record(t, c,
			Session{Domain: "first.example", Policy: Policy{Type: PolicySTS, Strings: []string{strings.Repeat("x", 500), fmt.Sprint(i)}}, Result: CertificateExpired, Reason: fmt.Sprint(i)},
			Session{Domain: fmt.Sprintf("d%d.example", i)},
		)
	}
	s := c.Stats()
	// A known domain may go over by its rests: a policy of each type, with each result.
	if s.Memory > 10_000+4*costPolicy*13 || s.Sessions+s.Dropped != 2000 || s.Sessions < 1000 {
		t.Errorf("%+v", s)
	}
	failed = 0
	for _, r := range rows(t, c, day0) {
		for _, p := range r.Policies {
			failed += p.Failed
		}
	}
	if failed != 1000 {
		t.Errorf("%d sessions failed", failed)
	}
}

// Nothing of what is huge or odd in a session gets into a report as it is.
func TestSessionNormal(t *testing.T) {
	big := strings.Repeat("ä", 2000)
	many := slices.Repeat([]string{strings.Repeat("x", 600)}, 1000)
	s, ok, err := Session{
		Domain: "example.org", Policy: Policy{Type: PolicySTS, Domain: "not a domain", Strings: many, MXHosts: many},
		Result: ValidationFailure, ReceivingMX: big, ReceivingMXHelo: big + "\x00", Reason: big, Info: "\u2028" + big, SendingIP: netip.MustParseAddr("fe80::1%eth0"),
	}.normal()
	if !ok || err != nil {
		t.Fatal(err)
	}
	if s.Policy.Domain != "example.org" || s.SendingIP.Zone() != "" {
		t.Errorf("%q, %s", s.Policy.Domain, s.SendingIP)
	}
	size := 0
	for _, x := range append(s.Policy.Strings, s.Policy.MXHosts...) {
		size += len(x)
	}
	if size > maxPolicy {
		t.Errorf("a policy of %d octets", size)
	}
	for _, x := range []string{s.ReceivingMX, s.ReceivingMXHelo, s.Reason, s.Info} {
		if len(x) > maxString || strings.ContainsRune(x, '\uFFFD') || strings.ContainsAny(x, "\x00\u2028") || strings.HasSuffix(x, "?") {
			t.Errorf("%d octets, %q", len(x), x)
		}
	}
	if got := printable("\xff\xfe\xfd\xfc\xfb", 4); got != "?" && got != "" {
		t.Errorf("%q", got)
	}
	// Whoever recorded it may change it.
	c := &Collector{Now: func() time.Time { return day0 }}
	own := []string{"a"}
	record(t, c, Session{Domain: "example.org", Policy: Policy{Type: PolicySTS, Strings: own}})
	own[0] = "b"
	if p := rows(t, c, day0)[0].Policies[0].Policy; p.Strings[0] != "a" {
		t.Errorf("%+v", p)
	}
}

// A Collector counts what a list of all sessions would, over restarts.
func TestCollectorModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := &Memory{}
		k := &clock{t: day0}
		open := func() *Collector { return &Collector{Store: store, Now: k.now, Logger: quiet} }
		c := open()
		type key struct {
			day    time.Time
			domain string
			policy PolicyType
			f      Failure
		}
		model := map[key]int64{}
		ctx := context.Background()
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "op") {
			case 0:
				k.add(time.Duration(rapid.IntRange(0, 20).Draw(t, "hours")) * time.Hour)
			case 1:
				if err := c.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				c = open()
			default:
				s := Session{
					Domain: rapid.SampledFrom([]string{"a.example", "b.example"}).Draw(t, "domain"),
					Policy: Policy{Type: rapid.SampledFrom([]PolicyType{PolicyNone, PolicySTS, PolicyTLSA}).Draw(t, "policy")},
					Result: rapid.SampledFrom([]ResultType{Success, CertificateExpired, TLSAInvalid}).Draw(t, "result"),
					Reason: rapid.SampledFrom([]string{"", "r"}).Draw(t, "reason"),
				}
				if err := c.Record(ctx, s); err != nil {
					t.Fatal(err)
				}
				m := key{midnight(k.now()), s.Domain, s.Policy.Type, Failure{}}
				if s.Result != Success {
					m.f = Failure{Result: s.Result, Reason: s.Reason}
				}
				model[m]++
			}
		}
		got := map[key]int64{}
		for d := range 160 {
			list, err := c.Rows(ctx, day0.AddDate(0, 0, d))
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list {
				for _, p := range r.Policies {
					if p.Successful > 0 {
						got[key{r.Day, r.Domain, p.Policy.Type, Failure{}}] += p.Successful
					}
					var sum int64
					for _, f := range p.Failures {
						n := f.Sessions
						f.Sessions = 0
						got[key{r.Day, r.Domain, p.Policy.Type, f}] += n
						sum += n
					}
					if sum != p.Failed {
						t.Fatalf("%d failed, %d in the details", p.Failed, sum)
					}
				}
			}
		}
		if !reflect.DeepEqual(got, model) {
			t.Fatalf("counted %v\nnot     %v", got, model)
		}
	})
}

func TestCollectorConcurrent(t *testing.T) {
	store := &Memory{}
	c := &Collector{Store: store, FlushEvery: time.Microsecond, Now: func() time.Time { return day0.Add(time.Duration(time.Now().UnixNano() % 1e9)) }}
	const workers, each = 8, 500
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				s := Session{Domain: fmt.Sprintf("d%d.example", i%7), Reason: fmt.Sprint(w)}
				if i%2 == 0 {
					s.Result = TLSAInvalid
				}
				if err := c.Record(context.Background(), s); err != nil {
					t.Error(err)
				}
				if i%50 == 0 {
					c.Stats()
					if _, err := c.Rows(context.Background(), day0); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := c.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	var total int64
	err := store.Load(context.Background(), func(r Row) error {
		for _, p := range r.Policies {
			total += p.Successful + p.Failed
		}
		return nil
	})
	if err != nil || total != workers*each {
		t.Errorf("%d sessions are saved, %v", total, err)
	}
}

// A flaky Store fails when it is told to.
type flaky struct {
	Memory
	fault              sync.Mutex
	load, save, forget error
	saves              int
}

func (f *flaky) failSave(err error) {
	f.fault.Lock()
	defer f.fault.Unlock()
	f.save = err
}

func (f *flaky) Load(ctx context.Context, fn func(Row) error) error {
	if f.load != nil {
		return f.load
	}
	return f.Memory.Load(ctx, fn)
}

func (f *flaky) Save(ctx context.Context, rows ...Row) error {
	f.fault.Lock()
	f.saves++
	err := f.save
	f.fault.Unlock()
	if err != nil {
		return err
	}
	return f.Memory.Save(ctx, rows...)
}

func (f *flaky) Forget(ctx context.Context, day time.Time) error {
	if f.forget != nil {
		return f.forget
	}
	return f.Memory.Forget(ctx, day)
}

func TestCollectorSaves(t *testing.T) {
	broken := errors.New("broken")
	store := &flaky{load: broken}
	k := &clock{t: day0.Add(12 * time.Hour)}
	c := &Collector{Store: store, Now: k.now, FlushEvery: time.Minute}
	ctx := context.Background()
	s := Session{Domain: "example.org"}
	if err := c.Record(ctx, s); !errors.Is(err, broken) {
		t.Errorf("the Store cannot be loaded, and Record says %v", err)
	}
	store.load = nil
	record(t, c, s, s)
	if store.saves != 0 {
		t.Error("saved before its time")
	}
	k.add(time.Minute)
	store.save = broken
	if err := c.Record(ctx, s); !errors.Is(err, broken) {
		t.Errorf("the Store cannot save, and Record says %v", err)
	}
	record(t, c, s) // is not due again yet
	store.save = nil
	k.add(time.Minute)
	record(t, c, s)
	if store.saves != 2 {
		t.Errorf("%d times saved", store.saves)
	}
	saved := func() (n int64) {
		store.Memory.Load(ctx, func(r Row) error { n += r.Policies[0].Successful; return nil })
		return n
	}
	if saved() != 5 {
		t.Errorf("%d sessions are saved", saved())
	}
	record(t, c, s)
	k.add(-time.Hour) // a clock that goes back does not keep it from saving
	record(t, c, s)
	if saved() != 7 {
		t.Errorf("%d sessions are saved", saved())
	}
	// Many rows go in several steps.
	for i := range 2*flushBatch + 1 {
		record(t, c, Session{Domain: fmt.Sprintf("d%d.example", i)})
	}
	n := store.saves
	if err := c.Flush(ctx); err != nil || store.saves != n+3 {
		t.Errorf("%d steps, %v", store.saves-n, err)
	}
	if err := c.Flush(ctx); err != nil || store.saves != n+3 {
		t.Errorf("%d steps without a change, %v", store.saves-n, err)
	}
	if n := len(rows(t, &Collector{Store: store}, day0)); n != 2*flushBatch+2 {
		t.Errorf("%d rows", n)
	}
	// Forgetting waits for a Store that can.
	store.forget = broken
	c.forgetBefore(day0.AddDate(0, 0, 1))
	if err := c.Flush(ctx); !errors.Is(err, broken) {
		t.Error(err)
	}
	store.forget = nil
	if err := c.Flush(ctx); err != nil || len(store.rows) != 0 || c.Stats().Rows != 0 || c.Stats().Memory != 0 {
		t.Errorf("%v, %d rows, %+v", err, len(store.rows), c.Stats())
	}
}

// Once a report has begun, its day does not change any more, even if a clock goes back.
func TestCollectorLate(t *testing.T) {
	k := &clock{t: day0}
	c := &Collector{Now: k.now, Logger: quiet}
	record(t, c, Session{Domain: "example.org"})
	k.add(24 * time.Hour)
	jobs, err := c.jobs(context.Background(), k.now(), func(job) bool { return true })
	if err != nil || len(jobs) != 1 {
		t.Fatal(jobs, err)
	}
	jobs[0].delivery.ID = "x"
	c.update(&jobs[0])
	k.add(-time.Hour)
	record(t, c, Session{Domain: "example.org"}, Session{Domain: "example.net"})
	if list := rows(t, c, day0); list[1].Policies[0].Successful != 1 {
		t.Errorf("%+v", list)
	}
	if s := c.Stats(); s.Dropped != 1 || s.Sessions != 2 {
		t.Errorf("%+v", s)
	}
	jobs[0].delivery.Done = true
	c.update(&jobs[0])
	if list := rows(t, c, day0); list[1].Policies != nil {
		t.Errorf("%+v", list)
	}
	// Today is nobody's job.
	if jobs, _ := c.jobs(context.Background(), k.now(), func(job) bool { return true }); len(jobs) != 0 {
		t.Error(jobs)
	}
}

func BenchmarkRecord(b *testing.B) {
	for _, bc := range []struct {
		name   string
		result ResultType
	}{{"success", Success}, {"failure", CertificateExpired}} {
		b.Run(bc.name, func(b *testing.B) {
			c := &Collector{Now: func() time.Time { return day0 }}
			domains := make([]string, 1000)
			for i := range domains {
				domains[i] = fmt.Sprintf("d%d.example", i)
			}
			policy := Policy{Type: PolicySTS, Domain: "example.org", Strings: []string{"version: STSv1", "mode: enforce", "mx: *.mail.example.org", "max_age: 604800"}, MXHosts: []string{"*.mail.example.org"}}
			b.ReportAllocs()
			for i := range b.N {
				s := Session{Domain: domains[i%1000], Policy: policy, Result: bc.result, ReceivingMX: "mx1.mail.example.org", ReceivingIP: ip4, SendingIP: ip6, Reason: "x509: certificate has expired"}
				if err := c.Record(context.Background(), s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
