package queue

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
)

// The defaults of a Queue's fields.
const (
	DefaultConcurrency = 32
	DefaultPerRoute    = 8
	DefaultWarnAfter   = 4 * time.Hour
	DefaultGrace       = 30 * time.Second
	DefaultPoll        = time.Second
	DefaultMaxHops     = 100 // RFC 5321 section 6.3: "normally at least 100"
	DefaultMaxReturn   = 256 << 10
)

// The errors of a Queue, matched with errors.Is.
var (
	ErrNoStore = errors.New("queue: Queue.Store is nil")
	ErrNoNext  = errors.New("queue: Queue.Next is nil")
	ErrRunning = errors.New("queue: Run is running already")
)

// A Queue takes responsibility for messages, and passes them on. The zero value is
// safe: without a Store, Deliver and Run return ErrNoStore. Fields must not be
// changed once the Queue is in use. All methods are safe for concurrent use.
type Queue struct {
	// Store keeps the messages. The Queue does not close it. Required.
	Store Store
	// Next is where messages go. It is called with a context that carries a
	// mailspine.Attempt and is done when the lease is lost or Grace is over.
	// Required for Run.
	Next mailspine.Deliverer

	// Router says which recipients go together; nil: those of a domain, see DomainRoute.
	Router Router
	// Gate says which routes can be served now; nil: all.
	Gate Gate
	// Retry says when to try again and when to give up; nil: DefaultRetry{}.
	Retry RetryPolicy

	// Notifications takes delivery status notifications, so that they can be
	// signed like other mail. It is called before the result that it tells of is
	// settled, and should be idempotent by Envelope.ID, as a Queue is. What it
	// refuses, the queue stores itself. nil: the queue itself, in the same
	// atomic step as the result.
	Notifications mailspine.Deliverer
	// Hostname is the name of this system in notifications (Reporting-MTA); "":
	// os.Hostname.
	Hostname string
	// WarnAfter is the age of a message at which the sender is told, once, that it is
	// delayed: with the next attempt that fails, or then if it is only held; 0: DefaultWarnAfter, negative: never,
	// but for a sender who asked to be told at a certain time (DELIVERBY, RFC 2852).
	WarnAfter time.Duration
	// Postmaster is told of the failures of messages whose sender is the null reverse-path
	// (bounces and the like), which nobody is told of otherwise, with the header of the message, and whatever their NOTIFY
	// says. Each is told once; a report to the postmaster that fails is dropped. The zero Address: such failures are
	// logged, and counted in Counts.Unreported.
	Postmaster mailspine.Address
	// MaxReturn is the size up to which a notification returns a whole message to
	// a sender who asked for that (RET=FULL), in octets; 0: DefaultMaxReturn,
	// negative: never. Otherwise the header is returned.
	MaxReturn int64

	// Weight is the share that the tenant of a message gets beside other tenants
	// (Message.Weight); nil: 1, as for what is below. Above MaxWeight it is MaxWeight. It is asked
	// when the message is stored, must not modify its argument, and must be safe for concurrent use.
	Weight func(*mailspine.Envelope) int

	// Concurrency is how many items are delivered at the same time; 0: DefaultConcurrency.
	Concurrency int
	// PerRoute is how many items of one route are; 0: DefaultPerRoute.
	PerRoute int
	// LeaseTTL is how long items stay with a process that died; 0 or negative: DefaultLeaseTTL.
	// Leases are renewed while a delivery runs, so it does not bound that.
	LeaseTTL time.Duration
	// Poll is how often a Store is asked that is no Waiter; 0 or negative: DefaultPoll.
	Poll time.Duration
	// Grace is how long deliveries may go on when Run's context is done; 0:
	// DefaultGrace, negative: not at all.
	Grace time.Duration

	// MaxHops is how many Received fields a message may have before it counts as
	// looping, and is refused with 554 5.4.6; 0: DefaultMaxHops, negative: any
	// number.
	MaxHops int

	Logger     *slog.Logger          // nil: slog.Default
	Trace      *Trace                // nil: none
	Outcomes   mailspine.OutcomeSink // is told the outcome of each attempt; nil: none
	Classifier mailspine.Classifier  // finds the Cause in Outcomes; nil: it stays unknown, but for expiry
	Now        func() time.Time      // for the dates in notifications and for instants in envelopes and holds; nil: time.Now
	Rand       func() float64        // from [0, 1), for jitter; nil: math/rand/v2

	mu       sync.Mutex
	active   bool               // Run is running
	places   places             // what is being delivered, and which routes are held
	wake     chan struct{}      // capacity 1: something changed for the loop; nil before Run
	rouse    context.CancelFunc // ends the loop's wait for work; nil: it does not wait
	tight    bool               // some route had no place left when the loop looked last
	readers  sync.Pool          // of *bufio.Reader, for checkHops
	counters counters
}

var (
	_ mailspine.Deliverer = (*Queue)(nil)
	_ mailspine.Stager    = (*Queue)(nil)
)

func (q *Queue) logger() *slog.Logger {
	if q.Logger != nil {
		return q.Logger
	}
	return slog.Default()
}

func (q *Queue) trace() *Trace {
	if q.Trace != nil {
		return q.Trace
	}
	return &Trace{}
}

func (q *Queue) now() time.Time {
	if q.Now != nil {
		return q.Now()
	}
	return time.Now()
}

func (q *Queue) random() float64 {
	if q.Rand != nil {
		return q.Rand()
	}
	return rand.Float64()
}

func (q *Queue) hostname() string {
	if q.Hostname != "" {
		return q.Hostname
	}
	if h, err := os.Hostname(); err == nil && h != "" {
		return h
	}
	return "localhost"
}

func (q *Queue) weight(env *mailspine.Envelope) int {
	if q.Weight == nil {
		return 1
	}
	return min(max(1, q.Weight(env)), MaxWeight)
}

// orDefault is for fields whose zero means a default.
func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Deliver stores a message. When it returns nil, it is stored as durably as the
// Store promises, for all recipients: it is all or nothing. An envelope without
// an ID gets a new one; a message whose ID the Store knows is not stored again.
// A message with HoldUntil is not tried before that. Inside a delivery of a queue
// (of another, or of this one, by way of a forwarder) the message is stored under an ID of its own, made of
// the envelope's and its sender and recipients: the parts of a message that a queue delivers
// one by one share their ID, and none must be taken for a repetition of another. A
// forwarder has to add a trace field, or nothing ends a loop.
//
// An envelope that is not valid is refused with 554 5.5.4, a message that loops with
// 554 5.4.6. If the Router has a way to none of the recipients, its first error is
// returned; if it has one to some, the others are reported to the sender.
func (q *Queue) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if q.Store == nil {
		return ErrNoStore
	}
	err := q.put(ctx, env, msg)
	if err != nil {
		q.counters.refused.Add(1)
		return err
	}
	q.counters.queued.Add(1)
	return nil
}

func (q *Queue) put(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if err := env.Validate(); err != nil {
		return mailspine.Errorf(554, "5.5.4", "Invalid envelope").WithCause(fmt.Errorf("queue: %w", err))
	}
	if env.ID == "" {
		env = env.Clone()
		env.ID = mailspine.NewMsgID()
	} else if mailspine.AttemptFrom(ctx) != mailspine.AttemptFrom(context.Background()) {
		env = env.Clone()
		env.ID = env.PartID()
	}
	if err := q.checkHops(ctx, msg); err != nil {
		return err
	}
	items, refused, err := q.split(ctx, env)
	if err != nil {
		return err
	}
	if refused != nil {
		return refused
	}
	m := Message{Envelope: env, Items: items, Weight: q.weight(env)}
	if !env.HoldUntil.IsZero() {
		now := q.now()
		m.Delay = min(max(0, env.HoldUntil.Sub(now)), maxDelay) // then it is looked at again
		if by := env.DeliverBy.Time; !by.IsZero() {
			m.Delay = min(m.Delay, max(0, by.Sub(now))) // its sender is to be told then
		}
	}
	if err := q.Store.Put(ctx, m, msg); err != nil {
		return fmt.Errorf("queue: storing message %s: %w", env.ID, err)
	}
	if log := q.logger(); log.Enabled(ctx, slog.LevelInfo) {
		log.LogAttrs(ctx, slog.LevelInfo, "queued", slog.String("id", string(env.ID)), slog.String("from", env.From.String()),
			slog.Int("recipients", len(env.Recipients)), slog.Int("items", len(items)), slog.Int64("size", msg.Size()), slog.Duration("delay", m.Delay))
	}
	if f := q.trace().Queued; f != nil {
		f(ctx, QueuedInfo{Envelope: env, Items: items, Size: msg.Size(), Delay: m.Delay})
	}
	return nil
}

// maxTogether is how many recipients an item has at most: it bounds the record of
// its results, which a store must be able to write, and what one notification tells.
const maxTogether = 1000

// split makes the items of a message. refused is the first error of the Router
// if it has a way to nobody; err is a temporary one.
func (q *Queue) split(ctx context.Context, env *mailspine.Envelope) (items []NewItem, refused, err error) {
	at := map[Route]int{}
	ways := 0
	for i, rcpt := range env.Recipients {
		route, rerr := q.route(ctx, env, rcpt)
		switch {
		case rerr == nil:
			ways++
		case mailspine.Status(rerr).Temporary():
			return nil, nil, fmt.Errorf("queue: routing %s: %w", rcpt.Address.Path(), rerr)
		default:
			// It is asked again when the item is leased, and then fails this
			// recipient alone.
			if refused == nil {
				refused = rerr
			}
			route = DomainRoute(rcpt)
		}
		n, ok := at[route]
		if !ok || len(items[n].Recipients) >= maxTogether {
			n = len(items)
			at[route] = n
			items = append(items, NewItem{Route: route})
		}
		items[n].Recipients = append(items[n].Recipients, i)
	}
	if ways > 0 {
		refused = nil
	}
	return items, refused, nil
}

func (q *Queue) route(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) (Route, error) {
	if q.Router == nil {
		return DomainRoute(rcpt), nil
	}
	return q.Router.Route(ctx, env, rcpt)
}

// checkHops refuses what has passed through too many systems (RFC 5321 section
// 6.3).
func (q *Queue) checkHops(ctx context.Context, msg mailspine.Content) error {
	limit := orDefault(q.MaxHops, DefaultMaxHops)
	if limit < 0 {
		return nil
	}
	r, err := msg.Open(ctx)
	if err != nil {
		return fmt.Errorf("queue: reading the header: %w", err)
	}
	defer r.Close()
	br, ok := q.readers.Get().(*bufio.Reader)
	if !ok {
		br = bufio.NewReaderSize(nil, hopsBuffer)
	}
	br.Reset(r)
	hops, err := countHops(br, limit)
	br.Reset(nil)
	q.readers.Put(br)
	if err != nil {
		return fmt.Errorf("queue: reading the header: %w", err)
	}
	if hops > limit {
		return mailspine.Errorf(554, "5.4.6", "Too many hops, the message loops").WithCause(fmt.Errorf("queue: over %d Received fields", limit))
	}
	return nil
}

// hopsBuffer is how much of a header is in memory to count its hops, in octets.
const hopsBuffer = 4 << 10

// countHops counts the Received fields of a header block of any size, up to
// limit+1. It holds a buffer of it: a loop must not escape by a header that is too
// large for mailspine.ReadHeader.
func countHops(br *bufio.Reader, limit int) (hops int, err error) {
	first, begins := true, true // of the message, of a line
	for hops <= limit {
		b, err := br.ReadSlice('\n')
		fold := len(b) > 0 && (b[0] == ' ' || b[0] == '\t') && !first
		if begins && !fold {
			name, _, ok := bytes.Cut(b, []byte(":"))
			name = bytes.TrimRight(name, " \t")
			switch {
			case !ok && err == bufio.ErrBufferFull: // too long for a name that matters
			case !ok, len(name) == 0, bytes.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
				return hops, noEOF(err) // an empty line, or one that is no field
			case bytes.EqualFold(name, []byte("Received")):
				hops++
			}
		}
		if err != nil && err != bufio.ErrBufferFull {
			return hops, noEOF(err)
		}
		first, begins = false, err == nil
	}
	return hops, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// Stage implements mailspine.Stager: with the Store if it is one, so that what
// arrives is written once, and otherwise as a mailspine.SpoolStager does.
func (q *Queue) Stage(ctx context.Context, size int64) (mailspine.Stage, error) {
	if s, ok := q.Store.(mailspine.Stager); ok {
		return s.Stage(ctx, size)
	}
	return (&mailspine.SpoolStager{}).Stage(ctx, size)
}

// storedContent is a message in a store.
type storedContent struct {
	store Store
	id    mailspine.MsgID
	size  int64
}

func (c storedContent) Size() int64 { return c.size }

func (c storedContent) Open(ctx context.Context) (io.ReadCloser, error) {
	return c.store.Open(ctx, c.id)
}
