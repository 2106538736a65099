package mta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
	"github.com/mailspine/mailspine/queue"
)

// A Fallback is a Deliverer made of Deliverers that are tried in turn: the way that is meant, and what there is if it is
// closed.
//
//	way := &mta.Fallback{To: []mailspine.Deliverer{
//		&mta.Smarthost{Relay: relay, Address: "mx-a.isp.example:25"},
//		&mta.Smarthost{Relay: relay, Address: "mx-b.isp.example:25"},
//	}}
//
// Each recipient is on its own: the next Deliverer gets those for whom the one before has not taken the message, and a result
// for which When says that another way may help. What was taken stays taken, what was
// refused for good stays refused, and what is in doubt (a *smtpclient.InDoubtError) or may be so is never tried another way, whatever When says: a
// connection that was lost (4.4.2), or a time that ran out (4.4.7), may have been so after the final dot, and the message would come twice. It
// waits like all that is left, for the queue to try again: then the first Deliverer is asked again, first.
//
// A recipient's result is that of the last Deliverer that was tried, and so is its Receipt. But
// a later one that did not try (a *mailspine.NotNow) does not stand for one that did; of
// several that did not, the one that ends first counts.
//
// All of it is one delivery: it takes as long as its parts together, while the queue's lease is renewed, and it ends with
// its context. A Fallback remembers nothing between deliveries. A Relay, which does (see [Relay]), fails
// soon at a host that is down.
//
// A Fallback has no Unwrap method: what one of its Deliverers can do besides (see mailspine.Stager) it cannot do for all. Of
// what the first one can do it passes on two things, looked for with mailspine.Find: queue.Router and
// mailspine.RecipientChecker. Those after it take what the first one was meant for.
//
// To is required: without it, or with a nil in it, every method is a temporary error, and mail waits. A Fallback is
// safe for concurrent use; its fields must not change, and it must not be copied, after first use.
type Fallback struct {
	// To are the Deliverers, in the order in which they are tried. One is allowed. Required.
	To []mailspine.Deliverer
	// When reports whether the next Deliverer is to be tried after a temporary result that is not in doubt. It
	// gets the result's mailspine.Status, whose Err has the cause, for errors.As: a *mailspine.NotNow is 451 4.3.2. It must be
	// certain of one thing, that nobody has the message after such a result. nil: [Unreached].
	When func(*mailspine.Error) bool
	// Logger gets a line at info level for each further Deliverer that a message goes to. nil: slog.Default().
	Logger *slog.Logger

	once sync.Once
	bad  error
}

var (
	_ mailspine.Deliverer        = (*Fallback)(nil)
	_ mailspine.RecipientChecker = (*Fallback)(nil)
	_ queue.Router               = (*Fallback)(nil)
)

// Unreached reports whether a result says that there was nobody to talk to: it is temporary, and its enhanced code is 4.4.1
// (no answer from a host), 4.4.3 (no answer from the directory, the DNS) or 4.4.4 (no way to the host). It is
// what a [Fallback] goes by unless it is told otherwise, and where a When of one's own may begin:
//
//	When: func(e *mailspine.Error) bool { return mta.Unreached(e) || e.Code == 421 }
//
// It is false for a limit of ours (*mailspine.NotNow), which holds mail so that it does not go, for a TLS policy that
// could not be met (4.7.x), and for what a server said about the message.
func Unreached(e *mailspine.Error) bool {
	if e == nil || !e.Temporary() {
		return false
	}
	switch e.Enhanced {
	case mailspine.EnhancedCode{4, 4, 1}, mailspine.EnhancedCode{4, 4, 3}, mailspine.EnhancedCode{4, 4, 4}:
		return true
	}
	return false
}

func (f *Fallback) ready() error {
	f.once.Do(func() {
		if len(f.To) == 0 {
			f.bad = errors.New("mta: Fallback.To is empty")
		}
		for i, d := range f.To {
			if d == nil {
				f.bad = fmt.Errorf("mta: Fallback.To[%d] is nil", i)
			}
		}
	})
	return f.bad
}

// Deliver gives the message to the first Deliverer, and then to each further one for those recipients that may go another
// way. The first gets the envelope as it is. A further one gets those that are left (Envelope.Subset), under an ID of their own if
// they are not all: two parts may end in one queue, which is idempotent by ID.
func (f *Fallback) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if err := f.ready(); err != nil {
		return err
	}
	if len(f.To) == 1 {
		return f.To[0].Deliver(ctx, env, msg)
	}
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	open := make([]int, len(env.Recipients)) // who is tried next
	for i := range open {
		open[i] = i
	}
	notes := newReceipts(ctx, len(env.Recipients))
	for n, to := range f.To {
		part, pctx := env, notes.lend(ctx)
		if len(open) < len(env.Recipients) {
			part = env.Subset(open)
			part.ID = part.PartID()
			pctx = mailspine.WithSubset(pctx, open)
		}
		if n > 0 {
			f.logger().LogAttrs(ctx, slog.LevelInfo, "a message goes another way", slog.String("id", string(env.ID)),
				slog.Int("way", n), slog.Int("recipients", len(open)), slog.Any("err", errs[open[0]]))
		}
		got := to.Deliver(pctx, part, msg)
		var left []int
		for j, i := range open {
			err := mailspine.ErrorAt(got, j)
			if n > 0 && outdone(errs[i], err) {
				notes.drop(i)
			} else {
				errs[i] = err
				notes.keep(i)
			}
			if err != nil && f.another(err) {
				left = append(left, i)
			}
		}
		if open = left; len(open) == 0 || ctx.Err() != nil {
			break
		}
	}
	notes.record()
	return errs.Err()
}

// outdone reports whether the result before counts for more than the one after it: who tried counts for more than who did
// not, and of those who did not, who may be asked again sooner.
func outdone(before, after error) bool {
	late := notNow(after)
	if late == nil {
		return false
	}
	soon := notNow(before)
	switch {
	case soon == nil:
		return true
	case soon.Until.IsZero():
		return !late.Until.IsZero()
	}
	return !late.Until.IsZero() && !late.Until.Before(soon.Until)
}

// notNow returns the NotNow that an error is; nil: it is another, or an *Error decides.
func notNow(err error) *mailspine.NotNow {
	var no *mailspine.Error
	var wait *mailspine.NotNow
	if errors.As(err, &no) || !errors.As(err, &wait) {
		return nil
	}
	return wait
}

// another reports whether a recipient with this result may go another way.
func (f *Fallback) another(err error) bool {
	st := mailspine.Status(err)
	var doubt *smtpclient.InDoubtError
	switch {
	case !st.Temporary(): // an answer
		return false
	case errors.As(err, &doubt):
		return false
	case st.Enhanced == mailspine.EnhancedCode{4, 4, 2}, st.Enhanced == mailspine.EnhancedCode{4, 4, 7}:
		return false // perhaps in doubt
	}
	if f.When != nil {
		return f.When(st)
	}
	return Unreached(st)
}

func (f *Fallback) logger() *slog.Logger {
	if f.Logger != nil {
		return f.Logger
	}
	return slog.Default()
}

// Route returns what the first Deliverer says if it is a queue.Router, and otherwise the domain. What a queue
// counts and holds by route is so that of the way that is meant.
func (f *Fallback) Route(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) (queue.Route, error) {
	if err := f.ready(); err != nil {
		return "", err
	}
	return routeOf(ctx, &target{f.To[0]}, env, rcpt)
}

// CheckRecipient accepts what the first Deliverer accepts. If that is no RecipientChecker, every recipient is refused with 550
// 5.7.1, as by a [Mux].
func (f *Fallback) CheckRecipient(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Recipient) error {
	if err := f.ready(); err != nil {
		return err
	}
	if c, ok := mailspine.Find[mailspine.RecipientChecker](f.To[0]); ok {
		return c.CheckRecipient(ctx, env, rcpt)
	}
	return errNoRelay
}

// Receipts keep what the Deliverers record until it is known whose results count: the Attempt would take the receipt
// of a way that failed for that of one that was taken, if the latter has none.
type receipts struct {
	mailspine.Attempt // the queue's; nil: there is none, and nothing is kept

	mu   sync.Mutex                // a Deliverer may record from several goroutines
	now  map[int]mailspine.Receipt // of the Deliverer that is being tried
	kept map[int]mailspine.Receipt // of the results that count
	over bool                      // the delivery has ended
}

func newReceipts(ctx context.Context, n int) *receipts {
	// Without a queue, those behind must not find an Attempt: a queue takes it for a sign of being behind another.
	if a := mailspine.AttemptFrom(ctx); a != mailspine.AttemptFrom(context.Background()) {
		return &receipts{Attempt: a, now: map[int]mailspine.Receipt{}, kept: make(map[int]mailspine.Receipt, n)}
	}
	return &receipts{}
}

// lend returns the context for the next Deliverer.
func (r *receipts) lend(ctx context.Context) context.Context {
	if r.Attempt == nil {
		return ctx
	}
	return mailspine.WithAttempt(ctx, r)
}

// Record implements mailspine.Attempt.
func (r *receipts) Record(i int, rec mailspine.Receipt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.now[i] = rec
	}
}

// keep takes what was recorded for a recipient last, if anything, for that of its result.
func (r *receipts) keep(i int) {
	if r.Attempt == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec, ok := r.now[i]; ok {
		r.kept[i] = rec
	} else {
		delete(r.kept, i)
	}
	delete(r.now, i)
}

// drop forgets what was recorded for a recipient last.
func (r *receipts) drop(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.now, i)
}

// record passes on what counts, and ends the delivery.
func (r *receipts) record() {
	if r.Attempt == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	for i, rec := range r.kept {
		r.Attempt.Record(i, rec)
	}
}
