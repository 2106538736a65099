package tlsrpt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

// An outbox takes mails, and fails when it is told to.
type outbox struct {
	mu   sync.Mutex
	envs []*mailspine.Envelope
	mail []*Message
	when []time.Time
	err  error
}

func (o *outbox) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return o.err
	}
	r, err := msg.Open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	m, err := ParseMessage(r)
	if err != nil {
		return err
	}
	o.envs, o.mail, o.when = append(o.envs, env.Clone()), append(o.mail, m), append(o.when, time.Now())
	return nil
}

func (o *outbox) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.mail)
}

func wants(rua string) []dnstest.Record {
	return []dnstest.Record{dnstest.TXT("v=TLSRPTv1; rua=" + rua)}
}

// newReporter returns a Reporter whose clock stands three hours after the end of day0, and one that counts in day0.
func newReporter(t *testing.T, zone dnstest.Zone, store Store) (*Reporter, *outbox, *clock) {
	k := &clock{t: day0.Add(time.Hour)}
	out := &outbox{}
	n := 0
	r := &Reporter{
		Collector: &Collector{Store: store, Now: k.now, Logger: quiet}, Resolver: zone, From: addr("tls@example.com"), Mail: out, Now: k.now, Logger: quiet, Concurrency: 1,
		newID: func() string { n++; return fmt.Sprintf("id%d@example.com", n) },
	}
	t.Cleanup(func() {
		if n := r.Collector.running.Load(); n != 0 {
			t.Errorf("%d are running", n)
		}
	})
	return r, out, k
}

func delivery(t *testing.T, c *Collector, domain string) Delivery {
	t.Helper()
	for _, r := range rows(t, c, day0) {
		if r.Domain == domain {
			return r.Delivery
		}
	}
	t.Fatalf("%s is not known", domain)
	return Delivery{}
}

// From the session to the function that gets the report: signed, checked, believed.
func TestReportByMail(t *testing.T) {
	key, err := dkim.GenerateEd25519()
	if err != nil {
		t.Fatal(err)
	}
	signing := dkim.SigningKey{Domain: "example.com", Selector: "tls", Key: key}
	zone := dnstest.Zone{
		"_smtp._tls.example.org": wants("mailto:tlsrpt@example.org"),
		signing.Name():           {dnstest.TXT(signing.Record().String())},
	}
	var got []*Received
	intake := &Intake{
		Addresses: []mailspine.Address{addr("TLSRPT@example.org")}, Logger: quiet,
		Handle: func(_ context.Context, r *Received) error { got = append(got, r); return nil },
	}
	var raw []byte
	var env *mailspine.Envelope
	door := mailspine.DelivererFunc(func(ctx context.Context, e *mailspine.Envelope, msg mailspine.Content) error {
		raw, err = mailspine.ReadContent(ctx, msg, 1<<20)
		if err != nil {
			return err
		}
		env = e.Clone()
		check := (&auth.Checker{Resolver: zone, ID: "mx.example.org"}).Start(ctx, e)
		defer check.Cancel()
		if _, err := io.Copy(check, strings.NewReader(string(raw))); err != nil {
			return err
		}
		in := e.Clone()
		in.Meta = nil // it stays at home
		in.Verdict = check.Finish().Verdict()
		return intake.Deliver(ctx, in, msg)
	})
	r, _, k := newReporter(t, zone, nil)
	r.Organization, r.Contact = "Example Ltd", addr("postmaster@example.com")
	r.Mail = &auth.Signer{Next: door, Keys: auth.KeyMap{"example.com": {signing}}, Required: true}
	record(t, r.Collector,
		Session{Domain: "example.org", ReceivingMX: "mx.example.org"},
		Session{Domain: "example.org", Result: StartTLSNotSupported, ReceivingMX: "mx.example.org", ReceivingIP: ip4, SendingIP: ip6},
	)
	k.add(26 * time.Hour)
	if err := r.Send(context.Background(), day0.Add(5*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 {
		t.Fatalf("%d reports", len(got))
	}
	want := &Report{
		Organization: "Example Ltd", Contact: "postmaster@example.com", ID: "id1@example.com", Start: day0, End: day0.Add(24*time.Hour - time.Second),
		Policies: []PolicyResult{{
			Policy: Policy{Type: PolicyNone, Domain: "example.org"}, Successful: 1, Failed: 1,
			Failures: []Failure{{Result: StartTLSNotSupported, SendingIP: ip6, ReceivingMX: "mx.example.org", ReceivingIP: ip4, Sessions: 1}},
		}},
	}
	if g := got[0]; !reflect.DeepEqual(g.Report, want) || g.Vouched != "example.com" || g.Message.Domain != "example.org" || g.Message.Submitter != "example.com" || g.Message.To != addr("tlsrpt@example.org") {
		t.Errorf("%+v\n%+v", g, g.Report)
	}
	if !strings.Contains(string(raw), "\r\nTLS-Required: No\r\n") || !strings.HasPrefix(string(raw), "DKIM-Signature:") {
		t.Errorf("%s", raw)
	}
	if err := env.Validate(); err != nil || !IsReport(env) || env.Recipients[0].Notify != mailspine.NotifyNever || env.From != r.From || env.RequireTLS {
		t.Errorf("%+v, %v", env, err)
	}
	if IsReport(nil) || IsReport(&mailspine.Envelope{}) {
		t.Error("anything is a report")
	}
	// It is sent, and never again.
	if d := delivery(t, r.Collector, "example.org"); !d.Done || d.Note != "sent to mailto:tlsrpt@example.org" || d.Attempts != 1 {
		t.Errorf("%+v", d)
	}
	if err := r.Send(context.Background(), day0); err != nil || len(got) != 1 {
		t.Errorf("%d reports, %v", len(got), err)
	}

	// Without a key it is not sent, and with a stranger's signature it is not believed.
	k.add(-26 * time.Hour)
	record(t, r.Collector, Session{Domain: "example.org"}) // late: dropped
	k.add(24 * time.Hour)
	record(t, r.Collector, Session{Domain: "example.org"})
	k.add(24 * time.Hour)
	r.Mail = &auth.Signer{Next: door, Keys: auth.KeyMap{}, Required: true, Logger: quiet}
	if err := r.Send(context.Background(), day0.AddDate(0, 0, 1)); err == nil || len(got) != 1 {
		t.Errorf("%d reports, %v", len(got), err)
	}
}

// Which domains get one, and what is remembered of the others.
func TestReporterDomains(t *testing.T) {
	zone := dnstest.Zone{
		"_smtp._tls.a.example":        wants("mailto:r@a.example"),
		"_smtp._tls.broken.example":   wants(""),
		"_smtp._tls.other.example":    wants("ftp://a/"),
		"_smtp._tls.failing.example":  {dnstest.ServFail},
		"_smtp._tls.failing2.example": {dnstest.Bogus},
		"_smtp._tls.two.example":      wants("mailto:r@two.example,mailto:s@two.example"),
	}
	r, out, k := newReporter(t, zone, &Memory{})
	type settled struct {
		domain string
		sent   bool
	}
	var settles []settled
	attempts := 0
	var mu sync.Mutex
	r.Trace = &Trace{
		Settled: func(_ context.Context, i SettledInfo) {
			mu.Lock()
			defer mu.Unlock()
			settles = append(settles, settled{i.Domain, i.Sent})
		},
		Attempt: func(_ context.Context, i AttemptInfo) { mu.Lock(); defer mu.Unlock(); attempts++ },
	}
	for _, d := range []string{"a", "broken", "other", "failing", "failing2", "two", "none"} {
		record(t, r.Collector, Session{Domain: d + ".example"})
	}
	if err := r.Send(context.Background(), day0); err == nil || len(out.mail) != 0 {
		t.Errorf("a day that is not over: %v", err)
	}
	k.add(24 * time.Hour)
	err := r.Send(context.Background(), day0)
	if err == nil || !errors.Is(err, mailspine.ErrDNSTemporary) || !errors.Is(err, mailspine.ErrDNSBogus) || strings.Contains(err.Error(), "broken") {
		t.Errorf("%v", err)
	}
	if len(out.mail) != 3 || attempts != 3 || len(settles) != 5 {
		t.Errorf("%d mails, %d attempts, settled %v", len(out.mail), attempts, settles)
	}
	for _, s := range settles {
		if s.sent != (s.domain == "a.example" || s.domain == "two.example") {
			t.Errorf("%+v", s)
		}
	}
	for d, note := range map[string]string{
		"a.example": "sent to", "none.example": "no reports are wanted", "broken.example": "rua= is missing", "other.example": "no destination",
		"two.example": "sent to mailto:r@two.example, mailto:s@two.example", "failing.example": "temporary",
	} {
		if got := delivery(t, r.Collector, d); !strings.Contains(got.Note, note) || got.Done == (d == "failing.example") {
			t.Errorf("%s: %+v", d, got)
		}
	}
	// The same ID to both, and different names of the mails.
	byTo := map[string]*mailspine.Envelope{}
	for i, m := range out.mail {
		byTo[m.To.String()] = out.envs[i]
	}
	if a, b := byTo["r@two.example"], byTo["s@two.example"]; a == nil || b == nil || a.ID == b.ID || a.Meta["tlsrpt"] != b.Meta["tlsrpt"] {
		t.Errorf("%+v\n%+v", a, b)
	}
	// Without Mail no mailto destination can be used.
	r.Mail = nil
	record(t, r.Collector, Session{Domain: "a.example"})
	k.add(24 * time.Hour)
	if err := r.Send(context.Background(), day0.AddDate(0, 0, 1)); err != nil || len(out.mail) != 3 {
		t.Errorf("%d mails, %v", len(out.mail), err)
	}
}

// RFC 8460 section 5.5: for a day, less and less often.
func TestReporterRetries(t *testing.T) {
	r, out, k := newReporter(t, dnstest.Zone{"_smtp._tls.a.example": wants("mailto:r@a.example")}, &Memory{})
	record(t, r.Collector, Session{Domain: "a.example"})
	k.add(24 * time.Hour)
	out.err = errors.New("the queue is full")
	start := k.now()
	var after []time.Duration
	ctx := context.Background()
	for range 40 * 60 {
		before := delivery(t, r.Collector, "a.example").Attempts
		err := r.Send(ctx, day0)
		d := delivery(t, r.Collector, "a.example")
		if d.Attempts > before {
			after = append(after, k.now().Sub(start))
			if err == nil || !errors.Is(err, out.err) {
				t.Errorf("a try that failed: %v", err)
			}
		} else if err != nil {
			t.Errorf("no try, and %v", err)
		}
		if d.ID != "id1@example.com" {
			t.Errorf("ID %q", d.ID)
		}
		k.add(time.Minute)
	}
	const m = time.Minute
	if want := []time.Duration{0, 15 * m, 45 * m, 105 * m, 225 * m, 465 * m, 945 * m}; !reflect.DeepEqual(after, want) {
		t.Errorf("tried after %v, not %v", after, want)
	}
	if d := delivery(t, r.Collector, "a.example"); !d.Done || !strings.HasPrefix(d.Note, "given up: ") {
		t.Errorf("%+v", d)
	}

	// One that a try after an hour brings there.
	r, out, k = newReporter(t, dnstest.Zone{"_smtp._tls.a.example": wants("mailto:r@a.example")}, nil)
	record(t, r.Collector, Session{Domain: "a.example"})
	k.add(24 * time.Hour)
	out.err = &mailspine.NotNow{Reason: "later"}
	r.Send(ctx, day0)
	k.add(time.Hour)
	out.err = nil
	if err := r.Send(ctx, day0); err != nil || len(out.mail) != 1 || out.mail[0].Report.ID != "id1@example.com" {
		t.Errorf("%v, %d mails", err, len(out.mail))
	}

	// A refusal for good is believed.
	r, out, k = newReporter(t, dnstest.Zone{"_smtp._tls.a.example": wants("mailto:r@a.example")}, nil)
	record(t, r.Collector, Session{Domain: "a.example"})
	k.add(24 * time.Hour)
	out.err = mailspine.RecipientErrors{mailspine.Errorf(550, "5.1.1", "no")}
	if err := r.Send(ctx, day0); !errors.Is(err, out.err.(mailspine.RecipientErrors)[0]) || !delivery(t, r.Collector, "a.example").Done {
		t.Errorf("%v, %+v", err, delivery(t, r.Collector, "a.example"))
	}

	// One that nobody could try for days is not sent any more.
	r, out, k = newReporter(t, dnstest.Zone{"_smtp._tls.a.example": wants("mailto:r@a.example")}, nil)
	record(t, r.Collector, Session{Domain: "a.example"})
	k.add((keepDays + 2) * 24 * time.Hour)
	if err := r.Send(ctx, day0); err != nil || len(out.mail) != 0 || !strings.Contains(delivery(t, r.Collector, "a.example").Note, "too old") {
		t.Errorf("%v, %d mails", err, len(out.mail))
	}
}

// Two that share a Collector send nothing twice.
func TestReportersShare(t *testing.T) {
	zone := dnstest.Zone{}
	r, out, k := newReporter(t, zone, nil)
	for i := range 50 {
		d := fmt.Sprintf("d%d.example", i)
		zone[RecordName(d)] = wants("mailto:r@a.example")
		record(t, r.Collector, Session{Domain: d})
	}
	k.add(24 * time.Hour)
	other := &Reporter{Collector: r.Collector, Resolver: zone, From: r.From, Mail: out, Now: k.now, Logger: quiet}
	var wg sync.WaitGroup
	for _, r := range []*Reporter{r, other, other} {
		wg.Go(func() {
			if err := r.Send(context.Background(), day0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if out.count() != 50 {
		t.Errorf("%d mails", out.count())
	}
}

// What is interrupted counts as not tried, and begins nothing more.
func TestReporterInterrupted(t *testing.T) {
	zone := dnstest.Zone{}
	for i := range 100 {
		zone[fmt.Sprintf("_smtp._tls.d%d.example", i)] = wants("mailto:r@a.example")
	}
	r, out, k := newReporter(t, zone, &Memory{})
	for i := range 100 {
		record(t, r.Collector, Session{Domain: fmt.Sprintf("d%d.example", i)})
	}
	k.add(24 * time.Hour)
	ctx, cancel := context.WithCancel(context.Background())
	n := 0
	r.Mail = mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
		if n++; n == 10 {
			cancel()
			return ctx.Err()
		}
		return out.Deliver(ctx, env, msg)
	})
	if err := r.Send(ctx, day0); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	done := 0
	for _, row := range rows(t, &Collector{Store: r.Collector.Store}, day0) {
		switch d := row.Delivery; {
		case d.Done:
			done++
		case d.Attempts != 0 || !d.First.IsZero():
			t.Errorf("%s: %+v", row.Domain, d)
		}
	}
	if done != 9 || n != 10 || len(out.mail) != 9 {
		t.Errorf("%d are done after %d deliveries", done, n)
	}
	if err := r.Send(context.Background(), day0); err != nil || len(out.mail) != 100 {
		t.Errorf("%d mails, %v", len(out.mail), err)
	}
	ids := map[string]string{}
	for _, m := range out.mail {
		if ids[m.Report.ID] != "" {
			t.Errorf("%s and %s have the same ID", ids[m.Report.ID], m.Domain)
		}
		ids[m.Report.ID] = m.Domain
	}
}

// A Store that fails sends nothing: the ID could not be remembered.
func TestReporterStoreFails(t *testing.T) {
	store := &flaky{}
	r, out, k := newReporter(t, dnstest.Zone{"_smtp._tls.a.example": wants("mailto:r@a.example")}, store)
	record(t, r.Collector, Session{Domain: "a.example"})
	k.add(24 * time.Hour)
	store.save = errors.New("broken")
	if err := r.Send(context.Background(), day0); !errors.Is(err, store.save) || len(out.mail) != 0 {
		t.Errorf("%v, %d mails", err, len(out.mail))
	}
	store.save = nil
	if err := r.Send(context.Background(), day0); err != nil || len(out.mail) != 1 {
		t.Errorf("%v, %d mails", err, len(out.mail))
	}
	r.Collector = &Collector{Store: &flaky{load: errors.New("broken")}}
	if err := r.Send(context.Background(), day0); err == nil {
		t.Error("a Store that cannot be loaded")
	}
}

// Whenever the power goes while reports are sent, each gets there, and what comes twice has the same ID.
func TestReporterPowerCut(t *testing.T) {
	zone := dnstest.Zone{"_smtp._tls.bad.example": {dnstest.TXT("v=spf1 -all")}}
	for i := range 3 {
		zone[fmt.Sprintf("_smtp._tls.d%d.example", i)] = wants("mailto:r@a.example")
	}
	send := func(disk *durabletest.Disk, ids map[string][]string, prefix string) error {
		f, err := OpenFile("d", &FileOptions{fs: disk, compact: 600, Logger: quiet})
		if err != nil {
			return err
		}
		defer f.Close()
		r, out, k := newReporter(t, zone, f)
		n := 0
		r.newID = func() string { n++; return fmt.Sprintf("%s%d@x", prefix, n) }
		k.add(26 * time.Hour)
		err = r.Send(context.Background(), day0)
		for _, m := range out.mail {
			ids[m.Domain] = append(ids[m.Domain], m.Report.ID)
		}
		return err
	}
	prepare := func() *durabletest.Disk {
		disk := &durabletest.Disk{}
		f, err := OpenFile("d", &FileOptions{fs: disk})
		if err != nil {
			t.Fatal(err)
		}
		c := &Collector{Store: f, Now: func() time.Time { return day0 }}
		record(t, c, Session{Domain: "d0.example"}, Session{Domain: "d1.example"}, Session{Domain: "d2.example"}, Session{Domain: "bad.example"})
		if err := c.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
		f.Close()
		return disk
	}
	whole := prepare()
	begin := whole.Ops()
	if err := send(whole, map[string][]string{}, "a"); err != nil {
		t.Fatal(err)
	}
	twice := 0
	for cut := begin + 1; cut <= whole.Ops(); cut++ {
		for seed := range uint64(4) {
			disk, ids := prepare(), map[string][]string{}
			disk.CutAt(cut)
			send(disk, ids, "a")
			if err := send(disk.Crash(seed), ids, "b"); err != nil {
				t.Fatalf("cut at %d, seed %d: %v", cut, seed, err)
			}
			for i := range 3 {
				got := ids[fmt.Sprintf("d%d.example", i)]
				if len(got) == 0 || len(got) > 2 || len(got) == 2 && got[0] != got[1] {
					t.Errorf("cut at %d, seed %d: the report to d%d.example was sent as %q", cut, seed, i, got)
				}
				twice += len(got) - 1
			}
		}
	}
	if twice == 0 {
		t.Error("nothing was ever sent twice: the cuts do not reach where it matters")
	}
}

// Run sends each day's reports in the hours after it, and saves in the meantime.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := dnstest.Zone{}
		const n = 200
		for i := range n {
			zone[fmt.Sprintf("_smtp._tls.d%d.example", i)] = wants("mailto:r@a.example")
		}
		store, out := &Memory{}, &outbox{}
		c := &Collector{Store: store, Logger: quiet}
		r := &Reporter{Collector: c, Resolver: zone, From: addr("tls@example.com"), Mail: out, Logger: quiet}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		midnight := time.Now() // it is midnight UTC in a bubble
		time.Sleep(12 * time.Hour)
		for i := range n {
			record(t, c, Session{Domain: fmt.Sprintf("d%d.example", i)})
		}
		time.Sleep(DefaultFlushEvery + time.Second)
		if got := len(load(t, store)); got != n {
			t.Errorf("%d rows are saved", got)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if out.count() != n {
			t.Fatalf("%d reports", out.count())
		}
		first, last := out.when[0].Sub(midnight), out.when[n-1].Sub(midnight)
		if first < 26*time.Hour || first > 27*time.Hour || last > 30*time.Hour+2*roundEvery || last < 29*time.Hour {
			t.Errorf("sent from %s to %s", first, last)
		}
		id := out.mail[0].Report.ID
		if local, ok := strings.CutSuffix(id, "@example.com"); !ok || mailspine.MsgID(local).Validate() != nil {
			t.Errorf("ID %q", id)
		}
		// Nothing is sent twice, and the rows go after some days.
		time.Sleep(5 * 24 * time.Hour)
		synctest.Wait()
		if out.count() != n || len(load(t, store)) != 0 || c.Stats().Rows != 0 {
			t.Errorf("%d reports, %d rows", out.count(), len(load(t, store)))
		}
		// What was counted last is saved at the end.
		record(t, c, Session{Domain: "example.org"})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := len(load(t, store)); got != 1 {
			t.Errorf("%d rows are saved at the end", got)
		}
	})
}

// Run goes on when its Store and its resolver fail.
func TestRunFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, out := &flaky{}, &outbox{}
		dns := dnstest.New(dnstest.Zone{"_smtp._tls.a.example": {dnstest.Fault{Kind: dnstest.ServFail, Times: 2}, dnstest.TXT("v=TLSRPTv1; rua=mailto:r@a.example")}})
		c := &Collector{Store: store, Logger: quiet}
		r := &Reporter{Collector: c, Resolver: dns, From: addr("tls@example.com"), Mail: out, Logger: quiet, Delay: -1, Spread: -1}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		record(t, c, Session{Domain: "a.example"})
		store.failSave(errors.New("broken"))
		time.Sleep(time.Hour)
		store.failSave(nil)
		time.Sleep(23*time.Hour + 30*time.Minute) // tried at midnight and after 15 minutes
		synctest.Wait()
		if out.count() != 0 {
			t.Error("sent too early")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if out.count() != 1 {
			t.Errorf("%d mails", out.count())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestReporterValidate(t *testing.T) {
	ok := func() *Reporter {
		return &Reporter{Collector: &Collector{}, Resolver: dnstest.Zone{}, From: addr("a@example.com")}
	}
	if err := ok().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Reporter){
		"Collector": func(r *Reporter) { r.Collector = nil },
		"Resolver":  func(r *Reporter) { r.Resolver = nil },
		"From":      func(r *Reporter) { r.From = mailspine.Address{} },
		"ASCII":     func(r *Reporter) { r.From = addr("ü@example.com") },
		"domain":    func(r *Reporter) { r.From = addr("a@[192.0.2.1]") },
		"Contact":   func(r *Reporter) { r.Contact = mailspine.Address{Local: "a\r\n", Domain: "b"} },
		"Submitter": func(r *Reporter) { r.Submitter = "a b" },
	} {
		r := ok()
		change(r)
		if err := r.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if err := r.Run(context.Background()); err == nil {
			t.Errorf("%s: Run runs", name)
		}
		if err := r.Send(context.Background(), day0); err == nil {
			t.Errorf("%s: Send sends", name)
		}
	}
}
