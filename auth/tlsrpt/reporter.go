package tlsrpt

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
)

// The defaults and the schedule of a Reporter.
const (
	DefaultDelay       = 2 * time.Hour
	DefaultSpread      = 4 * time.Hour
	DefaultConcurrency = 8
	DefaultTimeout     = time.Minute // of the exchanges by HTTPS of a report

	// A report is tried again for a day, less and less often (RFC 8460 section 5.5).
	retryFirst = 15 * time.Minute
	retryFor   = 24 * time.Hour
	// keepDays is for how many days after its end a day is kept, so that a program that stood still can report it.
	keepDays = 3

	roundEvery   = time.Minute // how often Run looks for what is due
	reportBatch  = 64          // domains that are saved together
	maxNote      = 500
	maxSendError = 10 // errors that Send tells
)

// A Reporter sends a report of each day to each domain that wants one (RFC 8460 section 5): it looks up the record
// of every domain that its Collector has counted, and mails the report, or posts it, or both.
//
// A report that one of the destinations of its domain took is sent, and the others are not tried again. What all of them
// failed to take is tried again for 24 hours, after 15 minutes, 30, an hour and so on; refused for good by all of them, it
// is given up. How far it has come is saved with the counts, so that a restart sends nothing a second time, but for a crash in the very moment
// between the sending and the saving: the repetition has the same report ID, by which receivers know it.
//
// Collector, Resolver and From are required. It is safe for concurrent use; its fields must not change once it is in use, and it
// must not be copied.
type Reporter struct {
	Collector *Collector
	Resolver  mailspine.Resolver

	// From is the author and the return path of the mails. ASCII, with a domain that can be looked up.
	From mailspine.Address
	// Submitter is the domain that reports are sent in the name of; "": the domain of From.
	Submitter string
	// Organization is who sends the reports, in words; "": Submitter.
	Organization string
	// Contact is for those who have a question about a report; zero: From.
	Contact mailspine.Address

	// Mail takes the mails: an auth.Signer before a queue, since a report without a DKIM signature of the submitter is ignored
	// (section 3); the key record should have s=tlsrpt or s=*. nil: mailto destinations are not used.
	Mail mailspine.Deliverer

	// AllowPrivate lists ranges in which a https destination may be although they are not public; see dial.Guard. Tests
	// need it. Empty: none.
	AllowPrivate []netip.Prefix
	// Roots are the certificate authorities that are believed at https destinations; nil: the system's. What no
	// certificate vouches for gets no report, although section 3 would allow it.
	Roots *x509.CertPool
	// Timeout bounds the exchanges by HTTPS of one report, which share it evenly, each from the lookup to the answer, so that
	// targets that are slow on purpose do not hold up those of others; and the lookup of a record. 0: DefaultTimeout.
	Timeout time.Duration

	// Delay is how long after midnight UTC Run begins to send the reports of the day, and Spread over how long it spreads them, by a hash of
	// the domain, so that receivers do not get all of the world's reports at once (section 4.1). 0: the defaults; negative: none.
	Delay, Spread time.Duration
	// Concurrency is how many reports are sent at a time; 0: DefaultConcurrency.
	Concurrency int

	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: slog.Default()
	Trace  *Trace           // nil: none

	newID func() string // tests make it predictable
}

// A Trace is a set of hooks, each of which may be nil. They are called by many goroutines at once, and return soon.
type Trace struct {
	// Attempt is called for each destination that was tried.
	Attempt func(ctx context.Context, info AttemptInfo)
	// Settled is called when a report is done with.
	Settled func(ctx context.Context, info SettledInfo)
}

// AttemptInfo describes one try to bring a report to a destination.
type AttemptInfo struct {
	Domain      string
	Report      *Report
	Destination Destination
	Err         error // nil: it was taken
}

// SettledInfo describes what became of a report.
type SettledInfo struct {
	Domain   string
	Day      time.Time
	Delivery Delivery
	Sent     bool // else it is not wanted, or given up
}

// Validate says which field is missing or wrong.
func (r *Reporter) Validate() error {
	switch {
	case r.Collector == nil:
		return errors.New("tlsrpt: Reporter.Collector is nil")
	case r.Resolver == nil:
		return errors.New("tlsrpt: Reporter.Resolver is nil")
	}
	for _, f := range []struct {
		name string
		a    mailspine.Address
	}{{"From", r.From}, {"Contact", r.contact()}} {
		if f.a.IsZero() {
			return fmt.Errorf("tlsrpt: Reporter.%s is not set", f.name)
		}
		if err := f.a.Validate(); err != nil {
			return fmt.Errorf("tlsrpt: Reporter.%s: %w", f.name, err)
		}
		if _, err := cleanDomain(f.a.Domain); err != nil || !f.a.IsASCII() {
			return fmt.Errorf("tlsrpt: Reporter.%s: an ASCII address with a domain name is needed", f.name)
		}
	}
	if _, err := cleanDomain(r.submitter()); err != nil {
		return fmt.Errorf("tlsrpt: Reporter.Submitter: %w", err)
	}
	return nil
}

func (r *Reporter) contact() mailspine.Address { return cmp.Or(r.Contact, r.From) }

// submitter is in normal form if it is valid.
func (r *Reporter) submitter() string {
	s := cmp.Or(r.Submitter, r.From.Domain)
	if d, err := cleanDomain(s); err == nil {
		return d
	}
	return s
}

func (r *Reporter) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

func (r *Reporter) logger() *slog.Logger {
	if r.Logger != nil {
		return r.Logger
	}
	return slog.Default()
}

func (r *Reporter) timeout() time.Duration { return cmp.Or(max(r.Timeout, 0), DefaultTimeout) }

func (r *Reporter) trace() *Trace {
	if r.Trace != nil {
		return r.Trace
	}
	return &Trace{}
}

// due is when a report is to be tried by Run.
func (r *Reporter) due(j job) time.Time {
	if j.delivery.Attempts > 0 {
		return j.delivery.Next
	}
	at := end(j.day)
	if d := r.Delay; d >= 0 {
		at = at.Add(cmp.Or(d, DefaultDelay))
	}
	if s := r.Spread; s >= 0 {
		h := sha256.Sum256([]byte(r.submitter() + "\n" + j.domain))
		part := float64(binary.BigEndian.Uint32(h[:])) / (1 << 32)
		at = at.Add(time.Duration(part * float64(cmp.Or(s, DefaultSpread))))
	}
	return at
}

// end is the first moment after a day.
func end(day time.Time) time.Time { return day.Add(24 * time.Hour) }

// Send sends the reports of a day now, those that wait for another try only if their time has come. day is any time within it; the day must
// be over in UTC. nil means that each of them is sent, not wanted, given up or not yet due again; otherwise the error tells of the first
// ten that failed, which another Send tries again in time. Reports that are due in other days are Run's.
//
// It ends early when ctx is done, or when the Store fails: what cannot be remembered is not sent.
func (r *Reporter) Send(ctx context.Context, day time.Time) error {
	if err := r.Validate(); err != nil {
		return err
	}
	day = midnight(day)
	now := r.now()
	if now.Before(end(day)) {
		return fmt.Errorf("tlsrpt: %s is not over", day.Format(time.DateOnly))
	}
	return r.send(ctx, now, func(j job) bool {
		return j.day.Equal(day) && (j.delivery.Attempts == 0 || !now.Before(j.delivery.Next))
	})
}

// Run sends the reports of each day when their time comes, and saves what the Collector counts, until ctx is
// done; then it saves once more and returns nil. Another error is that of Validate. It has one goroutine that saves, and those that send, at most
// Concurrency; all have ended when it returns. Failures are logged.
func (r *Reporter) Run(ctx context.Context) error {
	if err := r.Validate(); err != nil {
		return err
	}
	c := r.Collector
	c.running.Add(1)
	defer c.running.Add(-1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { r.save(ctx) })
	for {
		now := r.now()
		if err := r.send(ctx, now, func(j job) bool { return !now.Before(r.due(j)) }); err != nil && ctx.Err() == nil {
			r.logger().WarnContext(ctx, "tlsrpt: reports", "err", err)
		}
		c.forgetBefore(midnight(now).AddDate(0, 0, -keepDays))
		if !sleep(ctx, roundEvery) {
			return nil
		}
	}
}

// save flushes the Collector until ctx is done, and once more then.
func (r *Reporter) save(ctx context.Context) {
	every := cmp.Or(max(r.Collector.FlushEvery, 0), DefaultFlushEvery)
	failed := 0
	for more := true; more; {
		more = sleep(ctx, every)
		saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		err := r.Collector.Flush(saving)
		cancel()
		if err == nil {
			failed = 0
			continue
		}
		// The first time, and now and then.
		if failed%100 == 0 || !more {
			r.logger().ErrorContext(ctx, "tlsrpt: what was counted cannot be saved", "err", err)
		}
		failed++
	}
}

// sleep reports whether d has passed before ctx was done.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// send tries what want selects.
func (r *Reporter) send(ctx context.Context, now time.Time, want func(job) bool) error {
	// One at a time, of all Reporters of a Collector: two would send the same.
	r.Collector.sending.Lock()
	defer r.Collector.sending.Unlock()
	jobs, err := r.Collector.jobs(ctx, now, want)
	if err != nil {
		return err
	}
	var errs []error
	failed := 0
	for len(jobs) > 0 && ctx.Err() == nil {
		n := min(len(jobs), reportBatch)
		list, err := r.batch(ctx, jobs[:n])
		jobs = jobs[n:]
		failed += len(list)
		errs = append(errs, list[:min(len(list), max(0, maxSendError-len(errs)))]...)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	if failed > len(errs) {
		errs = append(errs, fmt.Errorf("tlsrpt: and %d more", failed-len(errs)))
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// A task is a job under way.
type task struct {
	job
	destinations []Destination
	err          error
}

// batch tries some reports, and returns the errors of those that failed; err is the Store's.
func (r *Reporter) batch(ctx context.Context, jobs []job) (errs []error, err error) {
	c := r.Collector
	tasks := make([]*task, len(jobs))
	for i, j := range jobs {
		tasks[i] = &task{job: j}
	}
	r.each(tasks, func(t *task) { r.lookup(ctx, t) })

	// The ID is remembered before anybody sees it.
	ready := tasks[:0:0]
	for _, t := range tasks {
		if len(t.destinations) > 0 {
			if t.delivery.ID == "" {
				t.delivery.ID = r.id()
			}
			c.update(&t.job)
			ready = append(ready, t)
		}
	}
	if len(ready) > 0 {
		if err := c.Flush(ctx); err != nil {
			return nil, err
		}
		r.each(ready, func(t *task) { r.attempt(ctx, t) })
	}
	for _, t := range tasks {
		if t.err != nil {
			errs = append(errs, fmt.Errorf("tlsrpt: report to %s of %s: %w", t.domain, t.day.Format(time.DateOnly), t.err))
		}
	}
	// What was sent must be remembered also when ctx is done.
	saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	return errs, c.Flush(saving)
}

func (r *Reporter) id() string {
	if r.newID != nil {
		return r.newID()
	}
	return string(mailspine.NewMsgID()) + "@" + r.submitter()
}

// each calls f for all tasks, Concurrency at a time, and returns when all calls have.
func (r *Reporter) each(tasks []*task, f func(*task)) {
	n := min(cmp.Or(max(r.Concurrency, 0), DefaultConcurrency), len(tasks))
	work := make(chan *task)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for t := range work {
				f(t)
			}
		})
	}
	for _, t := range tasks {
		work <- t
	}
	close(work)
	wg.Wait()
}

// lookup finds the destinations, or settles the task.
func (r *Reporter) lookup(ctx context.Context, t *task) {
	if r.now().After(end(t.day).Add(keepDays * 24 * time.Hour)) {
		r.settle(ctx, t, false, "given up: it is too old")
		return
	}
	asking, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	rec, err := LookupRecord(asking, r.Resolver, t.domain)
	var syntax *SyntaxError
	switch {
	case errors.Is(err, ErrNoRecord):
		r.settle(ctx, t, false, "no reports are wanted")
	case errors.As(err, &syntax):
		r.settle(ctx, t, false, err.Error())
	case err != nil:
		r.again(ctx, t, err)
	default:
		for _, d := range rec.Destinations {
			if d.Address.IsZero() || r.Mail != nil {
				t.destinations = append(t.destinations, d)
			}
		}
		if len(t.destinations) == 0 {
			r.settle(ctx, t, false, "no destination of its record can be used")
		}
	}
}

// attempt brings a report to its destinations.
func (r *Reporter) attempt(ctx context.Context, t *task) {
	rep := &Report{
		Organization: cmp.Or(r.Organization, r.submitter()), Contact: r.contact().String(), ID: t.delivery.ID,
		Start: t.day, End: end(t.day).Add(-time.Second),
		Policies: r.Collector.policies(&t.job),
	}
	var taken []string
	var errs []error
	hopeless := true
	var posts time.Duration
	for _, d := range t.destinations {
		if d.Address.IsZero() {
			posts++
		}
	}
	for _, d := range t.destinations {
		if ctx.Err() != nil {
			errs = append(errs, ctx.Err())
			hopeless = false
			break
		}
		var err error
		if d.Address.IsZero() {
			err = r.post(ctx, rep, d, r.timeout()/posts)
		} else {
			err = r.mail(ctx, rep, t.domain, d)
		}
		if f := r.trace().Attempt; f != nil {
			f(ctx, AttemptInfo{Domain: t.domain, Report: rep, Destination: d, Err: err})
		}
		if err == nil {
			taken = append(taken, d.URI)
			continue
		}
		errs = append(errs, fmt.Errorf("%s: %w", d.URI, err))
		hopeless = hopeless && permanent(err)
	}
	switch {
	case len(taken) > 0:
		note := "sent to " + strings.Join(taken, ", ")
		if len(errs) > 0 {
			note += "; " + errors.Join(errs...).Error()
		}
		t.delivery.Attempts++
		t.delivery.First = cmp.Or(t.delivery.First, r.now())
		r.settle(ctx, t, true, note)
	case ctx.Err() != nil:
		t.err = ctx.Err() // it was interrupted, which is no attempt
	case hopeless:
		t.err = errors.Join(errs...)
		t.delivery.Attempts++
		r.settle(ctx, t, false, "given up: "+t.err.Error())
	default:
		r.again(ctx, t, errors.Join(errs...))
	}
}

// again settles when a task that failed is tried again, or that it is not.
func (r *Reporter) again(ctx context.Context, t *task, err error) {
	t.err = err
	if ctx.Err() != nil {
		return
	}
	now := r.now()
	d := &t.delivery
	d.First = cmp.Or(d.First, now)
	// 15 minutes, 30, and so on: six more tries within a day.
	wait := retryFirst << min(d.Attempts, 10)
	d.Attempts++
	d.Next = now.Add(wait)
	if d.Next.After(d.First.Add(retryFor)) {
		r.settle(ctx, t, false, "given up: "+err.Error())
		return
	}
	d.Note = printable(err.Error(), maxNote)
	r.Collector.update(&t.job)
	r.logger().WarnContext(ctx, "tlsrpt: report failed, will be tried again", "domain", t.domain, "day", t.day.Format(time.DateOnly),
		"attempt", d.Attempts, "next", d.Next, "err", err)
}

// settle ends a task.
func (r *Reporter) settle(ctx context.Context, t *task, sent bool, note string) {
	d := &t.delivery
	d.Done, d.Next, d.Note = true, time.Time{}, printable(note, maxNote)
	r.Collector.update(&t.job)
	level := slog.LevelDebug
	switch {
	case sent:
		level = slog.LevelInfo
	case t.err != nil:
		level = slog.LevelWarn
	}
	r.logger().Log(ctx, level, "tlsrpt: report settled", "domain", t.domain, "day", t.day.Format(time.DateOnly), "id", d.ID, "sent", sent, "note", d.Note)
	if f := r.trace().Settled; f != nil {
		f(ctx, SettledInfo{Domain: t.domain, Day: t.day, Delivery: *d, Sent: sent})
	}
}
