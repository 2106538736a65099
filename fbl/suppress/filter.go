package suppress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mailspine/mailspine"
)

// ErrSuppressed is matched (errors.Is) by the error of a recipient that a [Filter] stopped: 550 5.1.0
// "Other address status" (RFC 3463 section 3.2), a code that nothing else in this
// module uses, and that no rule takes for a hard bounce. Its text says since when and why.
var ErrSuppressed = errors.New("suppress: the recipient is suppressed")

// A BounceRule says how a [Filter] learns from refusals. The zero value adds every hard one
// for good.
type BounceRule struct {
	// For is how long an entry lasts; 0: for ever.
	For time.Duration
	// Hard decides which refusals count; nil: [Hard].
	Hard func(status *mailspine.Error) bool
}

// Hard reports whether a refusal says that there is no mailbox behind the address, now and in
// the future: a permanent one with one of the codes that the page of the package
// lists.
func Hard(status *mailspine.Error) bool {
	if status == nil || status.Code < 500 || status.Code > 599 || status.Enhanced[0] != 5 {
		return false
	}
	switch [2]int{status.Enhanced[1], status.Enhanced[2]} {
	case [2]int{1, 1}, // bad destination mailbox address
		[2]int{1, 2},  // bad destination system address
		[2]int{1, 3},  // bad destination mailbox address syntax
		[2]int{1, 6},  // mailbox has moved, no forwarding address
		[2]int{1, 10}, // null MX (RFC 7505)
		[2]int{2, 1}:  // mailbox disabled
		return true
	}
	return false
}

// A Filter is a Deliverer that refuses suppressed recipients, and hands the others to
// Next. Recipients are looked up with the Tenant and Stream of the envelope. Mail with the null
// reverse-path, which is notifications, passes.
//
// The refusal is permanent (see [ErrSuppressed]). When List cannot be read, the error is
// temporary and nothing is sent. Some recipients may be taken when others are refused: a server with a Filter behind it needs its
// Undelivered, which should lead into the queue, so that the Filter before the relay refuses them again and the sender gets a
// notification. It is safe for concurrent use; its fields must not
// change once it is in use.
type Filter struct {
	Next mailspine.Deliverer // required
	List List                // required

	// Bounces adds recipients that Next refuses for good; nil: none. That an entry cannot be written is logged, and
	// changes nothing about the result of the delivery.
	Bounces *BounceRule

	Logger *slog.Logger     // gets each recipient that is stopped or added; nil: slog.Default
	Now    func() time.Time // for the ends of entries; nil: time.Now
}

var _ mailspine.Deliverer = (*Filter)(nil)

// Unwrap returns Next.
func (f *Filter) Unwrap() mailspine.Deliverer { return f.Next }

func (f *Filter) logger() *slog.Logger {
	if f.Logger != nil {
		return f.Logger
	}
	return slog.Default()
}

// Deliver refuses who is suppressed and delivers to the others.
func (f *Filter) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if f.Next == nil || f.List == nil {
		return errors.New("suppress: Filter without Next or List")
	}
	if env.From.IsZero() {
		return f.Next.Deliver(ctx, env, msg)
	}
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	var pass []int
	for i, r := range env.Recipients {
		e, err := f.List.Check(ctx, Key{env.Tenant, env.Stream, r.Address})
		switch {
		case err != nil:
			// Nobody is sent anything, and it is tried again, whatever the error says of itself.
			return mailspine.Errorf(451, "4.3.0", "Local error in processing").WithCause(fmt.Errorf("suppress: look up a recipient: %w", err))
		case e == nil:
			pass = append(pass, i)
		default:
			errs[i] = refusal(e)
			f.logger().InfoContext(ctx, "suppressed recipient refused", "id", env.ID, "to", r.Address.String(),
				"tenant", env.Tenant, "stream", env.Stream, "reason", string(e.Reason), "since", e.Time)
		}
	}
	if len(pass) == 0 {
		return errs.Err()
	}
	sub := env
	if len(pass) < len(errs) {
		sub = env.Subset(pass)
		sub.ID = sub.PartID()
		ctx = mailspine.WithSubset(ctx, pass)
	}
	err := f.Next.Deliver(ctx, sub, msg)
	for j, i := range pass {
		errs[i] = mailspine.ErrorAt(err, j)
	}
	f.learn(ctx, env, errs, pass)
	return errs.Err()
}

func refusal(e *Entry) error {
	return mailspine.Errorf(550, "5.1.0", "The recipient is on the sender's suppression list since %s: %s",
		e.Time.Format("2006-01-02"), cut(string(e.Reason))).WithCause(ErrSuppressed)
}

// learn adds the recipients that were refused for good.
func (f *Filter) learn(ctx context.Context, env *mailspine.Envelope, errs mailspine.RecipientErrors, tried []int) {
	if f.Bounces == nil {
		return
	}
	hard := f.Bounces.Hard
	if hard == nil {
		hard = Hard
	}
	for _, i := range tried {
		if errs[i] == nil || errors.Is(errs[i], ErrSuppressed) {
			continue
		}
		var known *mailspine.Error
		if !errors.As(errs[i], &known) || !hard(mailspine.Status(errs[i])) {
			continue
		}
		now := time.Now()
		if f.Now != nil {
			now = f.Now()
		}
		e := Entry{
			Key:    Key{env.Tenant, env.Stream, env.Recipients[i].Address},
			Reason: HardBounce, Evidence: mailspine.Status(errs[i]).Reply(), Time: now,
		}
		if f.Bounces.For > 0 {
			e.Expires = now.Add(f.Bounces.For)
		}
		if err := f.List.Add(context.WithoutCancel(ctx), e); err != nil {
			f.logger().ErrorContext(ctx, "a hard bounce is not suppressed", "id", env.ID, "to", e.Address.String(), "err", err)
			continue
		}
		f.logger().InfoContext(ctx, "hard bounce suppressed", "id", env.ID, "to", e.Address.String(), "tenant", env.Tenant, "stream", env.Stream, "evidence", e.Evidence)
	}
}
