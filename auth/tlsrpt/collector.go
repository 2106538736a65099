package tlsrpt

import (
	"cmp"
	"context"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The defaults of a Collector.
const (
	DefaultMaxDomains   = 50_000
	DefaultMaxPolicies  = 16
	DefaultMaxFailures  = 64
	DefaultMaxMemory    = 64 << 20
	DefaultFlushEvery   = 10 * time.Second
	flushTimeout        = 10 * time.Second
	flushBatch          = 500 // rows of one Save
	reasonOmitted       = "further sessions, their details are left out"
	costRow, costPolicy = 256, 256 // octets of memory, besides what the texts take
	costFailure         = 256
)

// A Collector is a Recorder that counts sessions by day (UTC), recipient domain and policy, and failures by their
// details. A Reporter makes reports of what it counted.
//
// Everything is in memory, within bounds, and saved to the Store now and then: a crash costs what was recorded in
// the last FlushEvery. While a Reporter runs, it does the saving; otherwise the Record that finds it due does it, and
// takes as long as one write to the Store. Flush saves at once, for the end of a program.
//
// The zero value is ready to use, and counts in memory alone. It is safe for concurrent use; its fields must not change
// once it is in use, and it must not be copied. Everything that was saved is loaded by the first call of any method.
type Collector struct {
	// Store is where it is saved; nil: nowhere. It belongs to this Collector alone, and is closed by whoever opened it, after the last
	// Flush.
	Store Store

	// MaxDomains bounds the domains of a day; 0: DefaultMaxDomains. Sessions of further ones count in Stats.Dropped
	// only.
	MaxDomains int
	// MaxPolicies bounds the policies of a domain and day; 0: DefaultMaxPolicies. Sessions of further ones are counted together, by the type
	// of policy.
	MaxPolicies int
	// MaxFailures bounds the details of a policy; 0: DefaultMaxFailures. Further sessions are counted together, by result, with a reason that says so.
	MaxFailures int
	// MaxMemory bounds what all of it takes, in octets, as an estimate; 0: DefaultMaxMemory. Over it, what is new
	// is counted as if the bounds above were reached.
	MaxMemory int64
	// FlushEvery is how often what changed is saved; 0: DefaultFlushEvery.
	FlushEvery time.Duration

	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: slog.Default()

	running  atomic.Int32 // Reporters that do the saving
	sending  sync.Mutex   // held while reports are sent
	flushing sync.Mutex   // held while rows are saved
	mu       sync.Mutex   // held for what follows, never during a Save
	loaded   bool
	days     map[int64]map[string]*tally
	dirty    map[*tally]struct{}
	memory   int64
	flushed  time.Time
	forget   time.Time // the Store is to forget the days before this one; zero: nothing
	stats    Stats
	warned   int64 // the day for which dropped sessions were logged
}

var _ Recorder = (*Collector)(nil)

// Stats are counts since the Collector was first used, and what it holds now.
type Stats struct {
	Sessions int64 // counted
	Dropped  int64 // not counted: over a bound, or of a day whose report was made already
	Memory   int64 // octets held, as an estimate
	Rows     int   // domains held, of all days
}

// A tally is a row with what is kept about it.
type tally struct {
	row  Row
	size int64
}

func (c *Collector) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Collector) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.Default()
}

// load reads the Store, once. It is called with mu.
func (c *Collector) load(ctx context.Context) error {
	if c.loaded {
		return nil
	}
	days, memory := map[int64]map[string]*tally{}, int64(0)
	if c.Store != nil {
		err := c.Store.Load(ctx, func(r Row) error {
			d := days[r.Day.Unix()]
			if d == nil {
				d = map[string]*tally{}
				days[r.Day.Unix()] = d
			}
			t := &tally{row: r}
			t.size = t.cost()
			memory += t.size
			d[r.Domain] = t
			return nil
		})
		if err != nil {
			return err
		}
	}
	c.days, c.memory, c.loaded = days, memory, true
	c.dirty = map[*tally]struct{}{}
	c.flushed = c.now()
	return nil
}

// cost estimates what a row takes.
func (t *tally) cost() int64 {
	n := costRow + int64(len(t.row.Domain)+len(t.row.Delivery.ID)+len(t.row.Delivery.Note))
	for i := range t.row.Policies {
		p := &t.row.Policies[i]
		n += p.Policy.cost()
		for j := range p.Failures {
			n += p.Failures[j].cost()
		}
	}
	return n
}

func (p *Policy) cost() int64 {
	n := costPolicy + len(p.Domain)
	for _, s := range p.Strings {
		n += 16 + len(s)
	}
	for _, s := range p.MXHosts {
		n += 16 + len(s)
	}
	return int64(n)
}

func (f *Failure) cost() int64 {
	return costFailure + int64(len(f.ReceivingMX)+len(f.ReceivingMXHelo)+len(f.Info)+len(f.Reason))
}

// Record counts a session for the present day. An error means that it is not counted, or that saving has failed, what was counted
// being kept in memory until the next try.
func (c *Collector) Record(ctx context.Context, s Session) error {
	s, ok, err := s.normal()
	if err != nil || !ok {
		return err
	}
	now := c.now()
	day := midnight(now)
	c.mu.Lock()
	if err := c.load(ctx); err != nil {
		c.mu.Unlock()
		return err
	}
	t, warn := c.tally(day, s.Domain)
	if t != nil {
		c.stats.Sessions++
		c.count(t, &s)
		c.touch(t)
	} else {
		c.stats.Dropped++
	}
	every := cmp.Or(max(c.FlushEvery, 0), DefaultFlushEvery)
	due := c.Store != nil && c.running.Load() == 0 && (now.Sub(c.flushed) >= every || now.Before(c.flushed))
	if due {
		c.flushed = now // nobody else tries at the same time
	}
	c.mu.Unlock()
	if warn {
		c.logger().WarnContext(ctx, "tlsrpt: sessions of further domains are not counted today", "day", day.Format(time.DateOnly))
	}
	if !due || !c.flushing.TryLock() {
		return nil
	}
	defer c.flushing.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	return c.flush(ctx)
}

// tally finds or makes the row of a day and domain; nil if there is no room, or it is too late. It is called with mu.
func (c *Collector) tally(day time.Time, domain string) (t *tally, warn bool) {
	d := c.days[day.Unix()]
	if t := d[domain]; t != nil {
		if t.row.Delivery.ID != "" || t.row.Delivery.Done {
			return nil, false // a clock went back
		}
		return t, false
	}
	cost := costRow + int64(len(domain))
	if len(d) >= cmp.Or(max(c.MaxDomains, 0), DefaultMaxDomains) || !c.room(cost) {
		warn = c.warned != day.Unix()
		c.warned = day.Unix()
		return nil, warn
	}
	if d == nil {
		d = map[string]*tally{}
		c.days[day.Unix()] = d
	}
	t = &tally{row: Row{Day: day, Domain: domain}, size: cost}
	c.memory += cost
	d[domain] = t
	return t, false
}

func (c *Collector) room(cost int64) bool {
	return c.memory+cost <= cmp.Or(max(c.MaxMemory, 0), DefaultMaxMemory)
}

func (c *Collector) touch(t *tally) {
	if c.Store != nil {
		c.dirty[t] = struct{}{}
	}
}

// count adds a session in normal form to a row. It is called with mu. What is searched is short: the bounds are.
func (c *Collector) count(t *tally, s *Session) {
	p := t.policy(s.Policy)
	if p == nil && len(t.row.Policies) < cmp.Or(max(c.MaxPolicies, 0), DefaultMaxPolicies) && c.room(s.Policy.cost()) {
		p = c.addPolicy(t, s.Policy)
	}
	if p == nil {
		// One for each of three types.
		rest := Policy{Type: s.Policy.Type, Domain: t.row.Domain}
		if p = t.policy(rest); p == nil {
			p = c.addPolicy(t, rest)
		}
	}
	if s.Result == Success {
		p.Successful = add(p.Successful, 1)
		return
	}
	p.Failed = add(p.Failed, 1)
	f := Failure{
		Result: s.Result, SendingIP: s.SendingIP, ReceivingMX: s.ReceivingMX, ReceivingMXHelo: s.ReceivingMXHelo,
		ReceivingIP: s.ReceivingIP, Info: s.Info, Reason: s.Reason,
	}
	i := p.failure(f)
	if i < 0 && len(p.Failures) < cmp.Or(max(c.MaxFailures, 0), DefaultMaxFailures) && c.room(f.cost()) {
		i = c.addFailure(t, p, f)
	}
	if i < 0 {
		// One for each of the results.
		f = Failure{Result: s.Result, Reason: reasonOmitted}
		if i = p.failure(f); i < 0 {
			i = c.addFailure(t, p, f)
		}
	}
	p.Failures[i].Sessions = add(p.Failures[i].Sessions, 1)
}

// policy returns the result for a policy, valid until the next is added, or nil.
func (t *tally) policy(p Policy) *PolicyResult {
	for i := range t.row.Policies {
		if t.row.Policies[i].Policy.same(p) {
			return &t.row.Policies[i]
		}
	}
	return nil
}

func (c *Collector) addPolicy(t *tally, p Policy) *PolicyResult {
	t.row.Policies = append(t.row.Policies, PolicyResult{Policy: p})
	t.size += p.cost()
	c.memory += p.cost()
	return &t.row.Policies[len(t.row.Policies)-1]
}

func (p *PolicyResult) failure(f Failure) int {
	return slices.IndexFunc(p.Failures, func(g Failure) bool {
		g.Sessions = 0
		return g == f
	})
}

func (c *Collector) addFailure(t *tally, p *PolicyResult, f Failure) int {
	p.Failures = append(p.Failures, f)
	t.size += f.cost()
	c.memory += f.cost()
	return len(p.Failures) - 1
}

// Flush saves what has changed since it was saved last. Without a Store it does nothing.
func (c *Collector) Flush(ctx context.Context) error {
	c.mu.Lock()
	err := c.load(ctx)
	c.mu.Unlock()
	if err != nil || c.Store == nil {
		return err
	}
	c.flushing.Lock()
	defer c.flushing.Unlock()
	return c.flush(ctx)
}

// flush is called with flushing. It goes on until nothing is left that had changed when it began, more or less: rows
// that change all the time are at most those of one more batch.
func (c *Collector) flush(ctx context.Context) error {
	c.mu.Lock()
	c.flushed = c.now()
	left := len(c.dirty)
	forget := c.forget
	c.mu.Unlock()
	// Before the saving: a Store that is full has room again then.
	if !forget.IsZero() {
		if err := c.Store.Forget(ctx, forget); err != nil {
			return err
		}
		c.mu.Lock()
		if c.forget.Equal(forget) {
			c.forget = time.Time{}
		}
		c.mu.Unlock()
	}
	for left > 0 {
		batch := make([]*tally, 0, min(left, flushBatch))
		rows := make([]Row, 0, cap(batch))
		c.mu.Lock()
		for t := range c.dirty {
			if len(batch) == cap(batch) {
				break
			}
			delete(c.dirty, t)
			batch = append(batch, t)
			rows = append(rows, t.row.clone())
		}
		c.mu.Unlock()
		if len(rows) == 0 {
			break
		}
		if err := c.Store.Save(ctx, rows...); err != nil {
			c.mu.Lock()
			for _, t := range batch {
				if c.days[t.row.Day.Unix()][t.row.Domain] == t { // not forgotten in the meantime
					c.dirty[t] = struct{}{}
				}
			}
			c.mu.Unlock()
			return err
		}
		left -= len(rows)
	}
	return nil
}

// Stats returns the counts.
func (c *Collector) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Memory = c.memory
	for _, d := range c.days {
		s.Rows += len(d)
	}
	return s
}

// Rows returns a copy of what is known of a day, sorted by domain. day is any time within it.
func (c *Collector) Rows(ctx context.Context, day time.Time) ([]Row, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(ctx); err != nil {
		return nil, err
	}
	d := c.days[midnight(day).Unix()]
	rows := make([]Row, 0, len(d))
	for _, t := range d {
		rows = append(rows, t.row.clone())
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.Domain, b.Domain) })
	return rows, nil
}

// A job is a report that is not done with.
type job struct {
	day      time.Time
	domain   string
	delivery Delivery
}

// jobs lists what is to be reported of the days that were over at now, for which want is true.
func (c *Collector) jobs(ctx context.Context, now time.Time, want func(job) bool) ([]job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(ctx); err != nil {
		return nil, err
	}
	var list []job
	for day, d := range c.days {
		if now.Before(time.Unix(day, 0).Add(24 * time.Hour)) {
			continue
		}
		for _, t := range d {
			j := job{t.row.Day, t.row.Domain, t.row.Delivery}
			if !t.row.Delivery.Done && want(j) {
				list = append(list, j)
			}
		}
	}
	// Earlier days first: their time runs out first. In a day what failed comes last, and the others in an order that nobody can choose by a
	// name: domains of one owner whose targets are slow must not be before all others.
	key := maphash.MakeSeed()
	turns := make(map[string]uint64, len(list))
	for _, j := range list {
		turns[j.domain] = maphash.String(key, j.domain)
	}
	slices.SortFunc(list, func(a, b job) int {
		return cmp.Or(a.day.Compare(b.day), cmp.Compare(a.delivery.Attempts, b.delivery.Attempts), cmp.Compare(turns[a.domain], turns[b.domain]))
	})
	return list, nil
}

// update sets how far a report has come. Sessions of one that is done with are dropped.
func (c *Collector) update(j *job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.days[j.day.Unix()][j.domain]
	if t == nil {
		return
	}
	t.row.Delivery = j.delivery
	if j.delivery.Done {
		t.row.Policies = nil
	}
	c.memory -= t.size
	t.size = t.cost()
	c.memory += t.size
	c.touch(t)
}

// forgetBefore drops the days before one, in memory now and in the Store with the next flush.
func (c *Collector) forgetBefore(day time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, d := range c.days {
		if k >= day.Unix() {
			continue
		}
		for _, t := range d {
			c.memory -= t.size
			delete(c.dirty, t)
		}
		delete(c.days, k)
		if c.Store != nil {
			c.forget = day
		}
	}
}

// policies returns the sessions of a report.
func (c *Collector) policies(j *job) []PolicyResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.days[j.day.Unix()][j.domain]; t != nil {
		return clonePolicies(t.row.Policies)
	}
	return nil
}
